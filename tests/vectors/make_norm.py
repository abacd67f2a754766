"""Norms and activations as PyTorch computes them in float64, with what `src/model/tests.rs` needs to repeat them.

    python tests/vectors/make_norm.py

writes norm.safetensors beside this file: per case its input [C][D][H][W], its output after norm and activation, the parameters
under their state_dict names, and in the metadata the attributes as JSON. Needs torch and safetensors.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CASES = {
    # name: channels, extent, norm, groups, eps, affine, each plane by itself, activation, its slope
    "instance": (5, (3, 9, 4), "instance", 5, 1e-5, True, False, "leaky_relu", 0.1),
    "instance_of_planes": (6, (3, 5, 4), "instance", 6, 1e-5, True, True, "none", 0),
    "instance_without_affine": (3, (2, 17, 3), "instance", 3, 1e-3, False, False, "elu", 1.5),
    "groups": (6, (2, 3, 10), "group", 2, 1e-6, True, False, "gelu", 0),
    "groups_of_planes": (8, (2, 9, 2), "group", 4, 1e-5, True, True, "relu", 0),
    "batch": (5, (2, 3, 4), "batch", 5, 1e-5, True, False, "sigmoid", 0),
}


def main():
    torch.manual_seed(21)
    tensors, attributes = {}, {}
    for name, (channels, extent, kind, groups, eps, affine, planes, activation, slope) in CASES.items():
        norm = {
            "instance": lambda: torch.nn.InstanceNorm3d(channels, eps, affine=affine),
            "group": lambda: torch.nn.GroupNorm(groups, channels, eps, affine),
            "batch": lambda: torch.nn.BatchNorm3d(channels, eps),
        }[kind]()
        if affine:
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.uniform_(norm.bias, -1, 1)
        if kind == "batch":
            torch.nn.init.uniform_(norm.running_mean, -1, 1)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        function = {
            "none": lambda y: y,
            "relu": torch.relu,
            "leaky_relu": lambda y: torch.nn.functional.leaky_relu(y, slope),
            "elu": lambda y: torch.nn.functional.elu(y, slope),
            "gelu": torch.nn.functional.gelu,
            "sigmoid": torch.sigmoid,
        }[activation]
        norm.eval()
        x = torch.randn(1, channels, *extent) * 2 + 1
        with torch.no_grad():
            state = {k: v.clone() for k, v in norm.state_dict().items() if v.is_floating_point()}
            norm.double()
            if planes:
                y = torch.cat([norm(x[:, :, z : z + 1].double()) for z in range(extent[0])], 2)
            else:
                y = norm(x.double())
            y = function(y)
        tensors |= {f"{name}.norm.{k}": v.contiguous() for k, v in state.items()}
        tensors |= {f"{name}.input": x[0].contiguous(), f"{name}.output": y[0].float().contiguous()}
        attributes[name] = {
            "norm": kind, "groups": groups, "eps": eps, "affine": affine, "per_plane": planes, "activation": activation, "slope": slope,
        }  # fmt: skip
    save_file(tensors, Path(__file__).with_name("norm.safetensors"), {"cases": json.dumps(attributes)})


main()
