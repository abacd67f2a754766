"""Transposed convolutions as PyTorch computes them in float64, with what `src/model/tests.rs` needs to repeat them.

    python tests/vectors/make.py

writes conv_transpose.safetensors beside this file: per case its input [C][D][H][W], its output after batch norm and ReLU, the
parameters under their state_dict names, and in the metadata the attributes as JSON. Needs torch and safetensors.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CASES = {
    # name: input channels, output channels, extent, kernel, stride, padding, output padding, bias, norm and ReLU
    "blocks": (5, 6, (2, 3, 2), (2, 2, 2), (2, 2, 2), (0, 0, 0), (0, 0, 0), True, True),
    "planar_blocks": (4, 3, (2, 2, 3), (1, 2, 2), (1, 2, 2), (0, 0, 0), (0, 0, 0), False, False),
    "large_blocks": (2, 3, (1, 2, 1), (4, 4, 4), (4, 4, 4), (0, 0, 0), (0, 0, 0), True, False),
    "overlapping": (3, 4, (3, 2, 3), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), True, True),
    "mixed": (3, 2, (2, 3, 2), (4, 3, 1), (3, 1, 2), (1, 1, 0), (2, 0, 1), False, False),
}


def main():
    torch.manual_seed(20)
    tensors, attributes = {}, {}
    for name, (cin, cout, extent, kernel, stride, padding, extra, bias, norm) in CASES.items():
        conv = torch.nn.ConvTranspose3d(cin, cout, kernel, stride, padding, extra, bias=bias)
        layers = torch.nn.Sequential()
        layers.add_module("conv", conv)
        if norm:
            bn = torch.nn.BatchNorm3d(cout)
            for values, low, high in [(bn.weight, 0.5, 1.5), (bn.bias, -1, 1), (bn.running_mean, -1, 1), (bn.running_var, 0.5, 2)]:
                torch.nn.init.uniform_(values, low, high)
            layers.add_module("norm", bn)
            layers.add_module("relu", torch.nn.ReLU())
        layers.eval()
        x = torch.randn(1, cin, *extent)
        with torch.no_grad():
            state = {k: v.clone() for k, v in layers.state_dict().items() if v.is_floating_point()}
            y = layers.double()(x.double())
        tensors |= {f"{name}.{k}": v.contiguous() for k, v in state.items()}
        tensors |= {f"{name}.input": x[0].contiguous(), f"{name}.output": y[0].float().contiguous()}
        attributes[name] = {"kernel": kernel, "stride": stride, "padding": padding, "output_padding": extra, "bias": bias, "norm": norm}
    save_file(tensors, Path(__file__).with_name("conv_transpose.safetensors"), {"cases": json.dumps(attributes)})


main()
