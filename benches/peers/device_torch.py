"""PyTorch's side of ../device.sh: `layers FILE`, a line of JSON a case, or `net KIND DxHxW`, one.

On CUDA: f32 with TF32 off, then on, and f16, each contiguous and channels_last_3d. `--small` takes
the list's small extents; without CUDA f32 alone runs, on the CPU. Needs PyTorch alone.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import torch
from torch import nn

import windowed


class Conv(nn.Sequential):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__(
            nn.Conv3d(inputs, outputs, 3, stride, 1),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class NnUnet(nn.Module):
    """nnU-Net's plain network of the card nnu_net_32.json."""

    def __init__(self, features=(32, 64, 128, 256, 320, 320), classes=14):
        super().__init__()
        pairs = list(zip(features, features[1:]))
        two = lambda a, b, stride: nn.Sequential(Conv(a, b, stride), Conv(b, b))
        self.first = two(1, features[0], 1)
        self.down = nn.ModuleList(two(a, b, 2) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, 2) for a, b in pairs)
        self.merge = nn.ModuleList(two(2 * a, a, 1) for a, _ in pairs)
        self.head = nn.Conv3d(features[0], classes, 1)

    def forward(self, x):
        x = self.first(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, merge in zip(reversed(self.up), reversed(self.merge)):
            x = merge(torch.cat([up(x), skips.pop()], 1))
        return self.head(x).argmax(1)


class ConvBn(nn.Sequential):
    def __init__(self, inputs, outputs, kernel=3):
        super().__init__(
            nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """The U-Net with batch norm of the card u_net_32.json."""

    def __init__(self, channels=(32, 64, 128, 256, 320, 320), classes=14):
        super().__init__()
        pairs = list(zip(channels, channels[1:]))
        two = lambda a, b: nn.Sequential(ConvBn(a, b), ConvBn(b, b))
        self.enc = nn.ModuleList([two(1, channels[0]), *(two(a, b) for a, b in pairs)])
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv3d(b, b, 3, padding=1), ConvBn(b, a, 1)) for a, b in pairs
        )
        self.merge = nn.ModuleList(two(2 * a, a) for a, _ in pairs)
        self.head = nn.Conv3d(channels[0], classes, 1)

    def forward(self, x):
        skips = []
        for i, block in enumerate(self.enc):
            x = block(x if i == 0 else nn.functional.max_pool3d(x, 2))
            skips.append(x)
        skips.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge)):
            x = nn.functional.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x).argmax(1)


class Mhsa(windowed.SelfAttention):
    def forward(self, x):
        return super().forward(x.reshape(1, -1, x.shape[-1])).view(x.shape)


def layer(listed, extent):
    """The module, and its input on maps or on tokens."""
    kind, c = listed["layer"], listed["channels"]
    name = kind["kind"]
    shape = (1, c, *extent) if name in ("conv", "transposed") else (1, *extent, c)
    if name == "conv":
        module = nn.Conv3d(c, kind["outputs"], 3, padding=1)
    elif name == "transposed":
        module = nn.ConvTranspose3d(c, kind["outputs"], 2, 2)
    elif name == "linear":
        module = nn.Linear(c, kind["outputs"])
    elif name == "attention":
        module = Mhsa(c, kind["heads"])
    else:
        window, shift = tuple(kind["window"]), tuple(kind["shift"])
        module = windowed.WindowLayer(c, kind["heads"], window, shift, tuple(extent))
    return module, torch.randn(shape)


class Modes:
    """Precisions with memory layouts."""

    def __init__(self):
        self.cuda = torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"
        self.precisions = ("f32", "tf32", "f16") if self.cuda else ("f32",)

    def set(self, precision):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = True
        return torch.float16 if precision == "f16" else torch.float32

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()

    def time(self, module, x, samples):
        seconds = []
        for _ in range(samples + 2):
            begin = time.perf_counter()
            module(x)
            self.wait()
            seconds.append(time.perf_counter() - begin)
        return seconds[2:]


def layers(path, small, modes):
    for listed in json.loads(pathlib.Path(path).read_text()):
        module, x = layer(listed, listed["small" if small else "extent"])
        layouts = {"contiguous": torch.contiguous_format}
        if listed["layer"]["kind"] in ("conv", "transposed"):
            layouts["channels_last_3d"] = torch.channels_last_3d
        for precision in modes.precisions:
            dtype = modes.set(precision)
            for name, layout in layouts.items():
                row = {"case": listed["name"], "precision": precision, "layout": name}
                try:
                    m = module.to(modes.device, dtype).to(memory_format=layout)
                    if getattr(m, "mask", None) is not None:
                        m.mask = m.mask.to(modes.device, dtype)
                    there = x.to(modes.device, dtype, memory_format=layout)
                    row["seconds"] = statistics.median(modes.time(m, there, 7))
                except Exception as e:
                    row["error"] = str(e).splitlines()[0]
                print(json.dumps(row), flush=True)
                module = module.float()


def net(kind, extent, precision, layout, modes):
    if precision not in modes.precisions:
        return {"refused": f"{precision} is not timed on {modes.device}"}
    dtype = modes.set(precision)
    layout = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}[
        layout
    ]
    module = {"nnu_net": NnUnet, "u_net": UNet}[kind]().eval().to(modes.device, dtype)
    module = module.to(memory_format=layout)
    x = torch.randn(1, 1, *(int(n) for n in extent.split("x")))
    runs = []
    for _ in range(2):
        begin = time.perf_counter()
        module(x.to(modes.device, dtype, memory_format=layout)).to(torch.uint8).cpu()
        runs.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if modes.cuda else None
    return {"torch": torch.__version__, "run_seconds": runs, "peak_bytes": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["layers", "net"])
    parser.add_argument("what")
    parser.add_argument("extent", nargs="?")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--layout", default="contiguous")
    a = parser.parse_args()
    modes = Modes()
    with torch.inference_mode():
        if a.step == "layers":
            layers(a.what, a.small, modes)
        else:
            print(json.dumps(net(a.what, a.extent, a.precision, a.layout, modes)))


sys.exit(main())
