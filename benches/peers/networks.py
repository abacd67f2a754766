"""The cases: PyTorch modules, what organum and burn are to build of their tensors, and the inputs.

Networks come from MONAI, dynamic_network_architectures, shared/reference and the modules beside
this file; none is copied here.
"""

import dataclasses
import pathlib
import sys

from torch import nn

import slices
import windowed

REFERENCE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "reference"


@dataclasses.dataclass
class Case:
    """`make` gives the module; `channels` and `extent` (D, H, W) are the input's."""

    name: str
    make: object
    channels: int
    extent: tuple
    # what organum is to compute of the tensors: a layer, or the card of a network
    layer: dict = None
    card: dict = None
    # the module takes and gives tokens (1, D, H, W, C), not a map
    tokens: bool = False
    sides: tuple = ("device", "burn", "host", "torch", "onnx")
    # what burn is to build of a network
    burn: dict = None

    @property
    def flat(self):
        """The module takes slices (1, C, H, W)."""
        return self.card is not None and self.extent[0] == 1


class One(nn.Module):
    """A layer whose tensors are called `m.weight` and `m.bias`."""

    def __init__(self, layer):
        super().__init__()
        self.m = layer

    def forward(self, x):
        return self.m(x)


def conv(channels, n):
    return Case(
        f"conv 3x3x3, {channels} channels, {n}^3",
        lambda: One(nn.Conv3d(channels, channels, 3, padding=1)),
        channels,
        (n,) * 3,
        layer={"kind": "conv", "outputs": channels, "kernel": 3},
    )


def transposed(inputs, outputs, n):
    make = lambda: One(nn.ConvTranspose3d(inputs, outputs, 2, 2))
    return Case(
        f"transposed 2x2x2, {inputs}-{outputs}, {n}^3",
        make,
        inputs,
        (n,) * 3,
        layer={"kind": "transposed", "outputs": outputs},
    )


def linear(inputs, outputs, extent):
    tokens = extent[0] * extent[1] * extent[2]
    return Case(
        f"linear {inputs}-{outputs}, {tokens} tokens",
        lambda: One(nn.Linear(inputs, outputs)),
        inputs,
        extent,
        layer={"kind": "linear", "outputs": outputs},
        tokens=True,
    )


def windows(label, channels, heads, window, shift, extent):
    make = lambda: windowed.WindowLayer(channels, heads, window, shift, extent)
    layer = {"kind": "windows", "heads": heads, "window": window, "shift": shift}
    return Case(f"windows, {label}", make, channels, extent, layer=layer, tokens=True)


class Mhsa(windowed.SelfAttention):
    def forward(self, x):
        return super().forward(x.reshape(1, -1, x.shape[-1])).view(x.shape)


def attention(channels, heads, extent):
    tokens = extent[0] * extent[1] * extent[2]
    return Case(
        f"MHSA of {tokens} tokens, {heads} x {channels // heads}",
        lambda: Mhsa(channels, heads),
        channels,
        extent,
        layer={"kind": "attention", "heads": heads},
        tokens=True,
    )


def res_blocks(channels, n, blocks=2):
    from monai.networks.blocks.segresnet_block import ResBlock

    norm = ("group", {"num_groups": 8})
    return Case(
        f"residual blocks as SegResNet's, {channels} channels, {n}^3",
        lambda: nn.Sequential(*(ResBlock(3, channels, norm) for _ in range(blocks))),
        channels,
        (n,) * 3,
        layer={"kind": "res_blocks", "blocks": blocks, "groups": 8},
        sides=("device", "host", "torch", "onnx"),
    )


# what nnU-Net gives all of its networks
NNUNET = {
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
    "deep_supervision": False,
}


def plain(features):
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    strides = [1] + [2] * (len(features) - 1)
    net = PlainConvUNet(
        1,
        len(features),
        features,
        nn.Conv3d,
        3,
        strides,
        2,
        14,
        2,
        **NNUNET,
    )
    return net


def residual(features, blocks):
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    strides = [1] + [2] * (len(features) - 1)
    return ResidualEncoderUNet(
        1,
        len(features),
        features,
        nn.Conv3d,
        3,
        strides,
        blocks,
        14,
        1,
        **NNUNET,
    )


def of_reference(config):
    sys.path.insert(0, str(REFERENCE))
    from u_transformer import UTransformer

    return UTransformer(**config)


def vnet():
    from monai.networks.nets import VNet

    return VNet(spatial_dims=3, in_channels=1, out_channels=14)


def unetr():
    from monai.networks.nets import UNETR

    return UNETR(
        in_channels=1,
        out_channels=14,
        img_size=(96, 96, 96),
        feature_size=16,
        hidden_size=768,
        mlp_dim=3072,
        num_heads=12,
        proj_type="perceptron",
        norm_name="instance",
        res_block=True,
    )


def card(architecture, **config):
    return {"architecture": architecture, "config": config}


def cubic(features):
    return {
        "dims": 3,
        "in_channels": 1,
        "classes": 14,
        "features": features,
        "kernels": [[3] * 3] * len(features),
        "strides": [[1] * 3] + [[2] * 3] * (len(features) - 1),
    }


def nnu_net(extent, features=(32, 64, 128, 256, 320, 320), **more):
    features = list(features)
    return Case(
        f"nnU-Net {features[0]}..{features[-1]}, {by(extent)}",
        lambda: plain(features),
        1,
        extent,
        card=card("plain_conv_unet", **cubic(features), convs_per_stage=2),
        **more,
    )


def res_enc(extent, features=(32, 64, 128, 256, 320, 320), blocks=(1, 3, 4, 6, 6, 6)):
    features, blocks = list(features), list(blocks)
    return Case(
        f"ResEncM {features[0]}..{features[-1]}, {by(extent)}",
        lambda: residual(features, blocks),
        1,
        extent,
        card=card(
            "residual_encoder_unet",
            **cubic(features),
            blocks_per_stage=blocks,
            decoder_convs_per_stage=1,
        ),
        sides=("host", "torch", "onnx"),
    )


def u_net(extent, channels, attends, **more):
    config = {"dims": 3, "in_channels": 1, "classes": 14, "channels": list(channels)}
    config.update({} if attends else {"mhsa": False, "mhca_levels": 0})
    name = "U-Transformer" if attends else "U-Net"
    return Case(
        f"{name} {channels[0]}..{channels[-1]}, {by(extent)}",
        lambda: of_reference(config),
        1,
        extent,
        card=card("u_transformer", **config),
        **more,
    )


def by(extent):
    return f"{extent[0]}^3" if len(set(extent)) == 1 else "x".join(str(n) for n in extent)


TRANSFORMERS = ("device", "host", "torch", "onnx")
CPUS = ("host", "torch", "onnx")


def cases(which, small):
    """A list of cases; `small` has smaller extents and widths, to see that all runs."""
    n = 2 if small else 1
    layers = [
        conv(16, 64 // n),
        conv(32, 64 // n),
        conv(64, 32 // n),
        conv(128, 16 // n),
        conv(256, 8),
        conv(320, 8),
        transposed(64, 32, 16 // n),
        linear(768, 768, (8, 8, 8)),
        linear(768, 3072, (8, 8, 8)),
        windows("nnFormer's 4x4x4", 192, 6, (4, 4, 4), (2, 2, 2), (32 // n,) * 3),
        windows("nnFormer's 8x8x8", 768, 24, (8, 8, 8), (0, 0, 0), (8, 8, 8)),
        windows("Swin's 7x7", 96, 3, (1, 7, 7), (0, 3, 3), (1, 56, 56)),
        attention(256, 8, (16 // n,) * 3),
    ]
    former = lambda name, memory, sides: Case(
        f"{name}, {by((64, 128, 128))}",
        lambda: windowed.Former(memory, 32 if small else 192),
        1,
        (64, 128, 128),
        sides=sides,
        card=card(name.lower(), **({"embed_dim": 32, "heads": [1, 2, 4, 8]} if small else {})),
    )
    unetr_case = lambda sides: Case(
        "UNETR, 96^3",
        unetr,
        1,
        (96, 96, 96),
        sides=sides,
        card=card("unetr", image=[96, 96, 96], heads=12),
    )
    widths = (8, 16, 24, 32, 40, 40) if small else (32, 64, 128, 256, 320, 320)
    channels = (8, 16, 24, 32, 40) if small else (32, 64, 128, 256, 320)
    nets = [
        u_net((64,) * 3, channels, False, burn={"kind": "u_net", "levels": 5}),
        nnu_net((64,) * 3, widths, burn={"kind": "plain_conv_unet", "stages": 6}),
    ]
    crops = [
        former("nnFormer", False, TRANSFORMERS),
        former("FINE", True, TRANSFORMERS),
        unetr_case(TRANSFORMERS),
    ]
    host = [
        nnu_net((64, 128, 128), widths, sides=CPUS),
        res_enc((128,) * 3 if not small else (64,) * 3, widths),
        u_net((64,) * 3, channels, True, sides=CPUS),
        Case("VNet, 96^3", vnet, 1, (96,) * 3, card=card("vnet"), sides=CPUS),
        unetr_case(CPUS),
        res_blocks(32, 64 // n),
        former("nnFormer", False, CPUS),
        former("FINE", True, CPUS),
        Case(
            "Swin-Unet, 224^2",
            slices.SwinUnet,
            1,
            (1, 224, 224),
            card=card("swin_unet"),
            sides=CPUS,
        ),
        Case(
            "TransUNet, 224^2",
            slices.TransUnet,
            1,
            (1, 224, 224),
            card=card("transunet"),
            sides=CPUS,
        ),
        attention(256, 8, (16 // n,) * 3),
    ]
    return {"layers": layers, "nets": nets + crops, "host": host}[which]


def random_norms(module):
    """Statistics and affine parameters away from 1 and 0: one that is left out shows."""
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(m.running_mean, -0.2, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
        if (
            isinstance(
                m, (nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)
            )
            and m.weight is not None
        ):
            nn.init.uniform_(m.weight, 0.7, 1.3)
            nn.init.uniform_(m.bias, -0.2, 0.2)
