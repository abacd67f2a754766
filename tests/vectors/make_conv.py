"""Convolutions with dilation and groups, residual sums and broadcast sums and products as PyTorch computes them in float64, with
what `src/model/conv_tests.rs` needs to repeat them.

    python tests/vectors/make_conv.py

writes conv.safetensors beside this file: per case its input [C][D][H][W], its output, the parameters under their state_dict names,
and in the metadata the attributes as JSON. Needs torch and safetensors.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CONVS = {
    # name: input channels, output channels, extent, kernel, stride, padding, dilation, groups, bias, batch norm, activation
    "grouped": (6, 9, (3, 4, 3), 3, 1, 1, 1, 3, True, True, "relu"),
    "grouped_strided": (6, 4, (4, 4, 6), (2, 3, 4), (1, 2, 2), (1, 1, 2), 1, 2, False, False, "none"),
    "dilated": (2, 5, (5, 4, 6), 3, 1, 2, 2, 1, True, False, "relu"),
    "dilated_mixed": (3, 4, (7, 7, 6), (3, 2, 3), (2, 1, 2), (2, 0, 3), (3, 4, 2), 1, True, True, "none"),
    "depthwise": (10, 10, (3, 3, 4), 3, 1, 1, 1, 10, True, True, "relu"),
    "depthwise_wide": (2, 2, (3, 5, 6), 7, (1, 2, 2), 3, 1, 2, False, False, "none"),
    "depthwise_dilated": (5, 5, (5, 5, 4), 3, 1, (2, 3, 2), (2, 3, 2), 5, True, False, "none"),
    "multiplied": (3, 12, (3, 4, 5), 3, 1, 1, 1, 3, True, False, "none"),
    "large": (1, 2, (3, 6, 5), 7, (1, 2, 2), 3, 1, 1, True, False, "none"),
    "patches": (1, 4, (8, 4, 9), 4, 4, 0, 1, 1, True, False, "none"),
    "even_unpadded": (2, 4, (4, 4, 5), (2, 4, 2), 1, 0, 1, 1, True, False, "none"),
}

BLOCKS = {
    # name: channels of the input, channels of the block, extent
    "residual": (5, 5, (3, 4, 4)),
    "residual_pointwise": (6, 6, (3, 4, 5)),
    "residual_of_norm": (3, 6, (3, 4, 3)),
    "add_norm": (5, 5, (4, 4, 3)),
    "add_norms": (2, 5, (4, 3, 5)),
    "add_over_channels": (2, 6, (3, 4, 3)),
    "add_over_voxels": (5, 5, (3, 4, 5)),
    "multiply": (2, 6, (3, 4, 3)),
    "multiply_over_channels": (2, 6, (3, 4, 3)),
    "multiply_over_voxels": (6, 6, (2, 5, 3)),
}


def shaken(norm):
    """A norm with parameters and statistics that do something."""
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    torch.nn.init.uniform_(norm.bias, -1, 1)
    if norm.running_mean is not None:
        torch.nn.init.uniform_(norm.running_mean, -1, 1)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


class Block(torch.nn.Module):
    """`conv` and, in some, a second branch `other`; `src/model/conv_tests.rs` builds the same from the names."""

    def __init__(self, kind, cin, cout):
        super().__init__()
        self.kind = kind
        kernel = 1 if kind == "residual_pointwise" or kind.endswith("over_voxels") else 3
        self.conv = torch.nn.Conv3d(cin, cout, kernel, padding=kernel // 2)
        if kind.startswith("residual") and kind != "residual_of_norm":
            self.norm = shaken(torch.nn.BatchNorm3d(cout))
        if kind in ("add_norm", "add_norms"):
            self.norm = shaken(torch.nn.InstanceNorm3d(cout, affine=True))
        if kind in ("residual_of_norm", "add_norms"):
            self.other_norm = shaken(torch.nn.InstanceNorm3d(cout, affine=True))
        if kind in ("residual_of_norm", "add_norms", "multiply"):
            self.other = torch.nn.Conv3d(cin, cout, 1, bias=False)
        if kind.endswith("over_channels"):
            self.other = torch.nn.Conv3d(cin, 1, 1)

    def forward(self, x):
        kind = self.kind
        y = self.conv(x)
        if hasattr(self, "norm"):
            y = self.norm(y)
        if kind.endswith("over_voxels"):
            other = torch.amax(x, (2, 3, 4), keepdim=True)
        else:
            other = self.other(x) if hasattr(self, "other") else x
        if hasattr(self, "other_norm"):
            other = self.other_norm(other)
        if kind.startswith("multiply"):
            return y * torch.sigmoid(other)
        return torch.nn.functional.leaky_relu(y + other, 0.1)


def main():
    torch.manual_seed(22)
    tensors, attributes = {}, {}

    def store(name, module, cin, extent, case):
        module.eval()
        x = torch.randn(1, cin, *extent)
        with torch.no_grad():
            state = {k: v.clone() for k, v in module.state_dict().items() if v.is_floating_point()}
            y = module.double()(x.double())
        assert (y != 0).double().mean() > 0.4, f"{name} says nothing"
        tensors.update({f"{name}.{k}": v.contiguous() for k, v in state.items()})
        tensors.update({f"{name}.input": x[0].contiguous(), f"{name}.output": y[0].float().contiguous()})
        attributes[name] = case

    for name, (cin, cout, extent, kernel, stride, padding, dilation, groups, bias, norm, activation) in CONVS.items():
        conv = torch.nn.Conv3d(cin, cout, kernel, stride, padding, dilation, groups, bias)
        layers = torch.nn.Sequential()
        layers.add_module("conv", conv)
        if norm:
            layers.add_module("norm", shaken(torch.nn.BatchNorm3d(cout)))
        if activation == "relu":
            layers.add_module("relu", torch.nn.ReLU())
        case = {"kernel": conv.kernel_size, "stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        store(name, layers, cin, extent, case | {"groups": groups, "bias": bias, "norm": norm, "relu": activation == "relu"})
    for name, (cin, cout, extent) in BLOCKS.items():
        store(name, Block(name, cin, cout), cin, extent, {"block": True})
    save_file(tensors, Path(__file__).with_name("conv.safetensors"), {"cases": json.dumps(attributes)})


main()
