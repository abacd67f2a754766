"""GLAM-Swin-Unets of images that are no squares of whole patches, and with the options of non-local upsampling, in float64.

    python tests/vectors/make_glam.py [GOLDEN]

writes glam.safetensors beside this file, for `src/model/swin/tests.rs`: per case its parameters under their state_dict names, its input
[C][2][H][W], its logits at every third voxel of H and W, and in the metadata the configs as JSON. Written from the paper and a
description of the authors' code (themyrl/glam); with a folder GOLDEN of cases that the authors' code computed, checks itself against
GOLDEN/glam_swin_unet and GOLDEN/glam_swin_unet_nlu first. Needs torch and safetensors.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

SMALL = {"patch": 4, "in_channels": 1, "embed_dim": 4, "depths": [1, 2, 1], "heads": [1, 2, 2], "window": 2, "window_tokens": 1, "classes": 2}
NLU = {"non_local_upsampling": True}
CASES = {
    "rectangle": {"image": [61, 89]},
    "weighted": NLU | {"image": [61, 89], "cross_attention_weight": 0.2},
    "linear_shortcut": NLU | {"image": [64, 93], "residual_patch_expand": False, "cross_attention_weight": 0.5},
}


class Network:
    """A config and its parameters: those given, or random ones of the shapes that are asked for."""

    def __init__(self, config, given=None):
        self.config = {"cross_attention_weight": 1.0, "residual_patch_expand": True, "non_local_upsampling": False} | config
        self.given, self.made = given, {}
        image = config["image"]
        self.image = image if isinstance(image, list) else [image, image]

    def tensor(self, name, *shape, around=0.0, spread=0.5):
        if self.given is not None:
            assert self.given[name].shape == shape, (name, shape)
            return self.given[name].double()
        if name not in self.made:
            self.made[name] = (around + spread * torch.randn(shape)).half()
        return self.made[name].double()

    def linear(self, name, x, cout, bias=True):
        weight = self.tensor(f"{name}.weight", cout, x.shape[-1], spread=x.shape[-1] ** -0.5)
        return F.linear(x, weight, self.tensor(f"{name}.bias", cout) if bias else None)

    def norm(self, name, x):
        c = x.shape[-1]
        return F.layer_norm(x, [c], self.tensor(f"{name}.weight", c, around=1.0, spread=0.2), self.tensor(f"{name}.bias", c), 1e-5)

    def mlp(self, name, x):
        c = x.shape[-1]
        return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", x, 4 * c)), c)

    def stage(self, module, i, x):
        """Blocks with window tokens over x [B][H][W][C]."""
        heads, tokens = self.config["heads"][i], self.config["window_tokens"]
        b, h, w, c = x.shape
        resolution = min(n // 4 >> i for n in self.image)
        window = min(self.config["window"], resolution)
        rows, columns = -(-h // window), -(-w // window)
        count = rows * columns * tokens
        gt = None
        for k in range(self.config["depths"][i]):
            block = f"{module}.blocks.{k}"
            shift = window // 2 if k % 2 == 1 and resolution > self.config["window"] else 0
            u = self.norm(f"{block}.norm1", x)
            u = F.pad(u, (0, 0, 0, columns * window - w, 0, rows * window - h))
            u = to_windows(torch.roll(u, (-shift, -shift), (1, 2)), window, window)
            if gt is None:
                gt = self.tensor(f"{module}.global_token", tokens, c).expand(u.shape[0], -1, -1)
            table = self.tensor(f"{block}.attn.relative_position_bias_table", (2 * window - 1) ** 2, heads)
            bias = table[relative(window)].permute(2, 0, 1)[None]
            if shift:
                bias = bias + masks(rows * window, columns * window, window, shift).repeat(b, 1, 1)[:, None]
            bias = F.pad(bias, (tokens, 0, tokens, 0))
            u = self.attention(f"{block}.attn", torch.cat([gt, u], 1), heads, bias)
            gt, u = u[:, :tokens], u[:, tokens:]
            u = torch.roll(from_windows(u, b, rows, columns, window, window), (shift, shift), (1, 2))[:, :h, :w]
            if k + 1 < self.config["depths"][i]:
                m = (45 * tokens // 2**i) ** 2
                start = m // 2 - count // 2
                among = gt.reshape(b, count, c) + self.tensor(f"{module}.pe", m, c)[start : start + count]
                gt = self.attention(f"{block}.gt_attn", among, heads, 0).reshape(-1, tokens, c)
            x = x + u
            x = x + self.mlp(f"{block}.mlp", self.norm(f"{block}.norm2", x))
        return x

    def attention(self, name, x, heads, bias):
        b, n, c = x.shape
        q, k, v = self.linear(f"{name}.qkv", x, 3 * c).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        scores = q * (c // heads) ** -0.5 @ k.transpose(-2, -1) + bias
        return self.linear(f"{name}.proj", (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c), c)

    def expand(self, name, x, fine):
        """Patch expanding, without what merging had added to the finer grid."""
        x = shuffled(self.linear(f"{name}.expand", x, 2 * x.shape[-1], bias=False), 2)
        return self.norm(f"{name}.norm", x[:, : fine[0], : fine[1]])

    def upsample(self, block, i, x, skip):
        b, h, w, fine = skip.shape
        c, heads, window, weight = x.shape[-1], self.config["heads"][i], self.config["window"], self.config["cross_attention_weight"]
        if self.config["residual_patch_expand"]:
            shortcut = self.expand(f"{block}.expand", x, (h, w))
        else:
            y = self.linear(f"{block}.proj_shortcut", x, fine).permute(0, 3, 1, 2)
            shortcut = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
        rows, columns = -(-x.shape[1] // window), -(-x.shape[2] // window)
        below = self.norm(f"{block}.norm1", x)
        below = F.pad(below, (0, 0, 0, columns * window - x.shape[2], 0, rows * window - x.shape[1]))
        above = F.pad(skip, (0, 0, 0, columns * 2 * window - w, 0, rows * 2 * window - h))
        kv = self.linear(f"{block}.attn.proj_kv", to_windows(below, window, window), 2 * c)
        k, v = kv.reshape(kv.shape[0], -1, 2, heads, c // heads).permute(2, 0, 3, 1, 4)
        q = self.linear(f"{block}.attn.proj_q", to_windows(above, 2 * window, 2 * window), c)
        q = q.reshape(q.shape[0], -1, heads, c // heads).transpose(1, 2)
        table = self.tensor(f"{block}.attn.relative_position_bias_table", (4 * window - 1) ** 2, heads)
        scores = q * (c // heads) ** -0.5 @ k.transpose(-2, -1) + table[across(window)].permute(2, 0, 1)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(q.shape[0], -1, c)
        y = from_windows(self.linear(f"{block}.attn.proj", y, fine), b, rows, columns, 2 * window, 2 * window)[:, :h, :w]
        x = weight * y + shortcut
        return x + weight * self.mlp(f"{block}.mlp", self.norm(f"{block}.norm2", x))

    def forward(self, x):
        """Logits [B][K][H][W] of images [B][C][H][W]."""
        stages, c = len(self.config["depths"]), self.config["embed_dim"]
        size = x.shape[2:]
        x = F.pad(x, (0, -size[1] % 4, 0, -size[0] % 4))
        kernel = self.tensor("patch_embed.proj.weight", c, x.shape[1], 4, 4)
        x = F.conv2d(x, kernel, self.tensor("patch_embed.proj.bias", c), stride=4)
        x = self.norm("patch_embed.norm", x.permute(0, 2, 3, 1))
        skips = []
        for i in range(stages):
            skips.append(x)
            x = self.stage(f"layers.{i}", i, x)
            if i + 1 < stages:
                x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
                x = torch.cat([x[:, y::2, z::2] for y, z in [(0, 0), (1, 0), (0, 1), (1, 1)]], -1)
                x = self.linear(f"layers.{i}.downsample.reduction", self.norm(f"layers.{i}.downsample.norm", x), x.shape[-1] // 2, bias=False)
        x = self.norm("norm", x)
        for k, i in enumerate(reversed(range(stages - 1))):
            skip = skips[i]
            if self.config["non_local_upsampling"]:
                x = self.upsample(f"layers_cross_attention_up.{k}.blocks.0", i, x, skip)
            else:
                x = self.expand(f"layers_up.{k}.upsample" if k else "layers_up.0", x, skip.shape[1:3])
                k += 1
            x = self.linear(f"concat_back_dim.{k}", torch.cat([x, skip], -1), skip.shape[-1])
            x = self.stage(f"layers_up.{k}", i, x)
        x = self.linear("up.expand", self.norm("norm_up", x), 16 * c, bias=False)
        x = self.norm("up.norm", shuffled(x, 4)).permute(0, 3, 1, 2)
        x = F.conv2d(x, self.tensor("output.weight", self.config["classes"], c, 1, 1))
        return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def to_windows(x, h, w):
    b, height, width, c = x.shape
    return x.reshape(b, height // h, h, width // w, w, c).transpose(2, 3).reshape(-1, h * w, c)


def from_windows(x, b, rows, columns, h, w):
    return x.reshape(b, rows, columns, h, w, -1).transpose(2, 3).reshape(b, rows * h, columns * w, -1)


def shuffled(x, n):
    b, h, w, c = x.shape
    return x.reshape(b, h, w, n, n, c // n // n).transpose(2, 3).reshape(b, h * n, w * n, -1)


def relative(window):
    y, x = torch.arange(window**2) // window, torch.arange(window**2) % window
    return (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1


def across(window):
    fine = torch.arange(4 * window**2)
    y, x = fine // (2 * window) // 2, fine % (2 * window) // 2
    return (y[:, None] - y[::4] + window - 1) * (2 * window - 1) + x[:, None] - x[::4] + window - 1


def masks(h, w, window, shift):
    def regions(n):
        at = torch.arange(n)
        return (at >= n - window).long() + (at >= n - shift).long()

    ids = 3 * regions(h)[:, None] + regions(w)
    ids = to_windows(ids[None, :, :, None], window, window)[..., 0]
    return torch.where(ids[:, :, None] == ids[:, None], 0.0, -100.0).double()


def check(golden):
    with safe_open(golden / "model.safetensors", "pt") as file:
        config = json.loads(file.metadata()["organum"])["config"]
    case, io = json.loads((golden / "case.json").read_text()), load_file(golden / "io.safetensors")
    stride, expected = case["output_stride"], io["output"].double()
    got = Network(config, load_file(golden / "model.safetensors")).forward(io["input"].double())[:, :, ::stride, ::stride]
    error = float((got.reshape(-1) - expected.reshape(-1)).norm() / expected.norm())
    print(golden.name, error)
    assert error < 1e-6


@torch.no_grad()
def main():
    for golden in sys.argv[1:]:
        for name in ["glam_swin_unet", "glam_swin_unet_nlu"]:
            check(Path(golden) / name)
    torch.manual_seed(23)
    tensors, configs = {}, {}
    for name, more in CASES.items():
        configs[name] = SMALL | more
        network = Network(configs[name])
        x = torch.randn(2, 1, *network.image).half()
        y = network.forward(x.double())
        tensors |= {f"{name}.{k}": v for k, v in network.made.items()}
        tensors |= {f"{name}.input": x.transpose(0, 1).contiguous()}
        tensors |= {f"{name}.output": y.transpose(0, 1)[..., ::3, ::3].float().contiguous()}
    save_file(tensors, Path(__file__).with_name("glam.safetensors"), {"cases": json.dumps(configs)})


main()
