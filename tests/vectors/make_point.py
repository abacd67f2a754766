"""What is computed voxel by voxel: layer norm, PReLU and softmax as PyTorch computes them in float64, and weights of tiles.

    python tests/vectors/make_point.py

writes point.safetensors beside this file: per case its input [C][D][H][W], its output, the parameters under their state_dict names,
and in the metadata the attributes as JSON; per kind of weights the map of one tile as the framework makes it, by SciPy for nnU-Net.
Needs torch, scipy and safetensors.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter

LAYER_NORMS = {
    # name: channels, extent, eps, affine, before, after, mean and deviation of the input
    "layer_norm": (10, (2, 3, 5), 1e-5, True, "none", "none", 1, 2),
    "layer_norm_of_gelu": (24, (3, 2, 4), 1e-5, True, "gelu", "none", 0, 2),
    "layer_norm_then_relu": (7, (2, 4, 3), 1e-6, True, "gelu", "relu", 0, 2),
    "layer_norm_without_affine": (6, (3, 4, 2), 1e-5, False, "none", "none", 0, 1),
    "layer_norm_of_768": (768, (1, 1, 2), 1e-6, True, "none", "none", 0, 1),
    "layer_norm_of_a_large_mean": (45, (2, 2, 2), 1e-5, True, "none", "none", 1000, 1),
}
PRELUS = {
    # name: channels, extent, slopes, a norm before it, of each plane by itself
    "prelu_of_one_slope": (6, (2, 3, 4), 1, False, False),
    "prelu_of_channels": (7, (3, 2, 5), 7, False, False),
    "prelu_of_a_norm": (5, (3, 4, 3), 5, True, False),
    "prelu_of_a_norm_of_planes": (5, (3, 4, 3), 1, True, True),
}
SOFTMAXES = {"softmax_of_14": (14, (2, 3, 4)), "softmax_of_3": (3, (3, 4, 3)), "softmax_of_105": (105, (1, 2, 3))}
TILE = (8, 10, 7)
FUNCTIONS = {"none": lambda y: y, "relu": torch.relu, "gelu": torch.nn.functional.gelu}


def parameters(module):
    """Random parameters as stored; the module goes on in float64."""
    for name, p in module.named_parameters():
        low, high = (-1, 1) if name == "bias" else (0.1, 1.5)
        torch.nn.init.uniform_(p, low, high)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    module.double()
    return state


def add(tensors, name, x, y, **modules):
    tensors[f"{name}.input"], tensors[f"{name}.output"] = x[0].contiguous(), y[0].float().contiguous()
    for module, state in modules.items():
        tensors.update({f"{name}.{module}.{k}": v for k, v in state.items()})


def nnunet(tile, half):
    delta = np.zeros(tile)
    delta[tuple(n // 2 for n in tile)] = 1
    weights = gaussian_filter(delta, [n / 8 for n in tile], 0, mode="constant", cval=0)
    weights = weights / weights.max() * (10 if half else 1)
    weights = weights.astype(np.float16 if half else np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return weights.astype(np.float32)


def monai(tile):
    weights = np.ones(())
    for n in tile:
        x = np.arange(n) - (n - 1) / 2
        weights = weights[..., None] * np.exp(x**2 / (-2 * (n / 8) ** 2))
    return np.maximum(weights, max(weights.min(), 1e-3)).astype(np.float32)


def main():
    torch.manual_seed(23)
    tensors, attributes = {}, {}
    with torch.no_grad():
        for name, (channels, extent, eps, affine, before, after, mean, deviation) in LAYER_NORMS.items():
            norm = torch.nn.LayerNorm(channels, eps, elementwise_affine=affine)
            state = parameters(norm)
            x = torch.randn(1, channels, *extent) * deviation + mean
            y = FUNCTIONS[after](norm(FUNCTIONS[before](x.double()).movedim(1, -1)).movedim(-1, 1))
            add(tensors, name, x, y, norm=state)
            attributes[name] = {"kind": "layer_norm", "eps": eps, "affine": affine, "before": before, "after": after}
        for name, (channels, extent, slopes, normed, planes) in PRELUS.items():
            prelu = torch.nn.PReLU(slopes)
            state = {"prelu": parameters(prelu)}
            norm = torch.nn.InstanceNorm3d(channels, affine=True)
            x = torch.randn(1, channels, *extent)
            y = x.double()
            if normed:
                state["norm"] = parameters(norm)
                y = torch.cat([norm(y[:, :, z : z + 1]) for z in range(extent[0])], 2) if planes else norm(y)
            add(tensors, name, x, prelu(y), **state)
            attributes[name] = {"kind": "prelu", "slopes": slopes, "norm": normed, "per_plane": planes}
        for name, (channels, extent) in SOFTMAXES.items():
            x = torch.randn(1, channels, *extent) * 4
            add(tensors, name, x, x.double().softmax(1))
            attributes[name] = {"kind": "softmax"}
    maps = {"nnunet": nnunet(TILE, False), "nnunet_half": nnunet(TILE, True), "monai": monai(TILE)}
    tensors |= {f"weights.{kind}": torch.from_numpy(weights) for kind, weights in maps.items()}
    save_file(tensors, Path(__file__).with_name("point.safetensors"), {"cases": json.dumps(attributes)})


main()
