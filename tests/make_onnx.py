"""Writes tests/vectors/onnx: small networks as ONNX files, and onnxruntime's outputs.

python tests/make_onnx.py

Needs torch, monai, dynamic_network_architectures, onnx, onnxscript, onnxruntime, safetensors.
NAME.onnx is the network, NAME.safetensors holds x0, y0, x1, y1, ..: inputs of several extents and
what onnxruntime makes of them.
"""

import pathlib
import sys
import warnings

import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

warnings.filterwarnings("ignore")
FOLDER = pathlib.Path(__file__).parent / "vectors" / "onnx"


class Double(nn.Sequential):
    def __init__(self, i, o, m=None):
        m = m or o
        super().__init__(
            nn.Conv2d(i, m, 3, padding=1, bias=False),
            nn.BatchNorm2d(m),
            nn.ReLU(),
            nn.Conv2d(m, o, 3, padding=1, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU(),
        )


class Unet(nn.Module):
    """A 2D U-Net that pads what it upsampled to its skip, as milesial/Pytorch-UNet."""

    def __init__(self, bilinear, levels=2, w=2):
        super().__init__()
        f = 2 if bilinear else 1
        self.inc = Double(3, w)
        self.down = nn.ModuleList(
            [
                nn.Sequential(
                    nn.MaxPool2d(2), Double(w << i, (w << i + 1) // (f if i == levels - 1 else 1))
                )
                for i in range(levels)
            ]
        )
        self.up, self.conv = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(levels)):
            n, o = w << i + 1, (w << i) // (f if i else 1)
            self.up.append(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
                if bilinear
                else nn.ConvTranspose2d(n, n // 2, 2, stride=2)
            )
            self.conv.append(Double(n, o, n // 2 if bilinear else None))
        self.outc = nn.Conv2d(w, 2, 1)

    def forward(self, x):
        maps = [self.inc(x)]
        for down in self.down:
            maps.append(down(maps[-1]))
        y = maps.pop()
        for up, conv in zip(self.up, self.conv):
            y, skip = up(y), maps.pop()
            dy, dx = skip.size()[2] - y.size()[2], skip.size()[3] - y.size()[3]
            y = conv(torch.cat([skip, F.pad(y, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])], 1))
        return self.outc(y)


class Operations(nn.Module):
    """Groups, dilations, uneven padding, and activations and pools that are written out."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv3d(4, 8, 3, padding=2, dilation=2, groups=2)
        self.depth = nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1), groups=8)
        self.up = nn.ConvTranspose3d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.wide = nn.ConvTranspose3d(4, 4, 2, stride=1, dilation=2, padding=1)
        self.first = nn.Conv3d(1, 4, 3)
        self.squeeze = nn.Linear(4, 2)
        self.excite = nn.Linear(2, 4)
        self.alpha = nn.Parameter(torch.rand(1, 4, 1, 1, 1))

    def forward(self, x):
        x = self.first(F.pad(x, [0, 2, 1, 1, 2, 0]))
        y = F.hardswish(x) + torch.tanh(x) * F.silu(x)
        y = F.avg_pool3d(self.grouped(y), 3, 2, 1)
        y = F.elu(self.depth(y)) - F.relu6(3 * y)
        y = self.wide(F.hardsigmoid(self.up(y)))
        z = F.interpolate(F.avg_pool3d(y, 2), scale_factor=2, mode="trilinear", align_corners=False)
        z = z * 0.5 * (1 + torch.erf(z / 2**0.5)) + F.interpolate(
            F.max_pool3d(y, 2), scale_factor=2
        )
        gate = F.adaptive_avg_pool3d(z, 1).flatten(1)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(gate)))).view(1, 4, 1, 1, 1)
        a, b = torch.split(z * gate * self.alpha, 2, 1)
        y = torch.cat([1 - b, a], 1)
        return torch.softmax(y - y.mean(1, keepdim=True), 1)


class Tokens(nn.Module):
    """Attention and norms of tokens between convolutions."""

    def __init__(self):
        super().__init__()
        from monai.networks.blocks.transformerblock import TransformerBlock

        self.embed = nn.Conv3d(1, 8, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 64, 8))
        self.block = TransformerBlock(8, 16, 2, qkv_bias=True)
        self.qkv, self.out = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)]), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.ConvTranspose3d(8, 2, 2, 2)

    def forward(self, x):
        y = self.embed(x).flatten(2).transpose(1, 2) + self.position
        y = self.block(y)
        mean = y.mean(-1, keepdim=True)
        y = (y - mean) / torch.sqrt(((y - mean) ** 2).mean(-1, keepdim=True) + 1e-5)
        q, k, v = (part(y).view(1, 64, 4, 2).transpose(1, 2) for part in self.qkv)
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 64, 8)
        y = self.norm(y + self.out(a))
        return self.up(y.transpose(1, 2).reshape(1, 8, 4, 4, 4))


def nets():
    import monai.networks.nets as monai
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    norm = dict(
        conv_op=nn.Conv3d,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs=dict(eps=1e-5, affine=True),
        nonlin=nn.LeakyReLU,
        nonlin_kwargs=dict(inplace=True),
    )
    yield "milesial", Unet(False), [(3, 8, 12), (3, 13, 9)], (False, True)
    yield "milesial_bilinear", Unet(True), [(3, 8, 12), (3, 13, 9)], (False,)
    net = monai.UNet(3, 1, 3, (2, 2, 4), (2, 2), num_res_units=2)
    yield "monai_unet", net, [(1, 4, 4, 8), (1, 8, 4, 4)], (False,)
    net = monai.AttentionUnet(3, 1, 2, (2, 2, 2), (2, 2))
    yield "attention_unet", net, [(1, 4, 8, 4), (1, 4, 4, 8)], (False,)
    group = ("GROUP", {"num_groups": 2})
    net = monai.SegResNet(3, 2, 1, 2, blocks_down=(1, 1), blocks_up=(1,), norm=group)
    yield "seg_res_net", net, [(1, 4, 8, 4), (1, 6, 4, 4)], (False,)
    unet = dict(kernel_sizes=[[1, 3, 3], [3, 3, 3]], strides=[[1, 1, 1], [1, 2, 2]], **norm)
    unet |= dict(num_classes=3, conv_bias=True, deep_supervision=False)
    net = PlainConvUNet(1, 2, [3, 4], n_conv_per_stage=2, n_conv_per_stage_decoder=1, **unet)
    yield "plain_conv", net, [(1, 3, 4, 8), (1, 5, 4, 4)], (False,)
    blocks = dict(n_blocks_per_stage=[1, 2], n_conv_per_stage_decoder=[1])
    net = ResidualEncoderUNet(1, 2, [4, 4], **blocks, **unet)
    yield "resenc", net, [(1, 3, 4, 8), (1, 5, 4, 4)], (False,)
    yield "operations", Operations(), [(1, 4, 4, 8), (1, 6, 8, 4)], (False,)
    yield "tokens", Tokens(), [(1, 8, 8, 8)], (False, True)


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, net, extents, exporters in nets():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(3)
        for module in net.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
            if getattr(module, "affine", False) and module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
        net.eval()
        inputs = [torch.randn(1, *extent) for extent in extents]
        axes = range(2, inputs[0].ndim)
        for dynamo in exporters:
            path = FOLDER / f"{name}{'_dynamo' if dynamo else ''}.onnx"
            dynamic = {}
            if len(extents) > 1:
                dynamic = (
                    {"dynamic_shapes": ({axis: torch.export.Dim.AUTO for axis in axes},)}
                    if dynamo
                    else {"dynamic_axes": {"input": {axis: f"n{axis}" for axis in axes}}}
                )
            if dynamo:
                dynamic["external_data"] = False
            torch.onnx.export(
                net,
                (inputs[0],),
                str(path),
                dynamo=dynamo,
                input_names=["input"],
                output_names=["output"],
                **dynamic,
            )
            model = onnx.load(path)
            # where the network was written is of no account
            for node in model.graph.node:
                node.ClearField("doc_string")
                node.ClearField("metadata_props")
            del model.graph.value_info[:]
            onnx.save(model, path)
            session = onnxruntime.InferenceSession(str(path))
            tensors = {}
            for i, x in enumerate(inputs):
                tensors[f"x{i}"] = x
                tensors[f"y{i}"] = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
            save_file(tensors, str(path.with_suffix(".safetensors")))
            print(
                path.name,
                path.stat().st_size,
                path.with_suffix(".safetensors").stat().st_size,
                flush=True,
            )
    # the weights of one in a file beside it, in a folder of its own
    beside = FOLDER / "external"
    beside.mkdir(exist_ok=True)
    for file in beside.iterdir():
        file.unlink()
    model = onnx.load(FOLDER / "resenc.onnx")
    onnx.save_model(
        model,
        beside / "resenc.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="weights.data",
        size_threshold=64,
    )


main()
