"""Resampling, pooling, shifts, patches and picked tokens as PyTorch computes them in float64, for `src/model/resample_tests.rs`.

    python tests/vectors/make_resample.py

writes resample.safetensors beside this file: per case its input [C][D][H][W], its output, and in the metadata the attributes as
JSON. Needs torch and safetensors.
"""

import itertools
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

MODES = {
    "nearest": {"mode": "nearest"},
    "aligned": {"mode": "trilinear", "align_corners": True},
    "half_pixel": {"mode": "trilinear", "align_corners": False},
}
EXTENTS = {
    # name: extent, factors or size
    "twice": ((2, 3, 4), {"times": (2, 2, 2)}),
    "planar": ((2, 3, 4), {"times": (1, 2, 3)}),
    "larger": ((3, 4, 5), {"size": (7, 5, 9)}),
    "smaller": ((7, 5, 9), {"size": (3, 4, 5)}),
    "mixed": ((5, 3, 7), {"size": (2, 8, 7)}),
    "from_one_voxel": ((1, 1, 2), {"size": (3, 2, 2)}),
    "to_one_voxel": ((3, 2, 4), {"size": (1, 1, 1)}),
}
POOLS = {
    # name: extent, kernel, stride, padding
    "k3_stride2": ((5, 6, 7), (3, 3, 3), (2, 2, 2), (0, 0, 0)),
    "k3_stride2_padded": ((5, 6, 7), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "k3_stride2_planar": ((2, 8, 7), (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    "k122": ((3, 5, 4), (1, 2, 2), (1, 2, 2), (0, 0, 0)),
    "k222": ((5, 4, 7), (2, 2, 2), (2, 2, 2), (0, 0, 0)),
    "k3_stride1": ((3, 1, 4), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
}
AVERAGES = {
    # name: extent, kernel, which is the stride
    "k122": ((3, 5, 4), (1, 2, 2)),
    "k222": ((5, 4, 7), (2, 2, 2)),
    "k231": ((4, 7, 3), (2, 3, 1)),
}
SHIFTS = {
    # name: extent, along D, H, W: torch.roll by so many, padding before and after, or a flip
    "roll": ((5, 4, 7), ("roll", -2), ("roll", 3), ("roll", -9)),
    "roll_back": ((1, 7, 6), ("roll", 1), ("roll", 3), ("roll", 3)),
    "pad": ((3, 2, 4), ("pad", 2, 1), ("pad", 0, 3), ("pad", 1, 0)),
    "crop": ((6, 5, 7), ("pad", -1, -3), ("pad", -2, 0), ("pad", 0, -4)),
    "pad_and_crop": ((6, 5, 4), ("pad", 3, -4), ("pad", -2, 2), ("pad", 0, 0)),
    "flip": ((3, 4, 5), ("flip",), ("flip",), ("flip",)),
    "mixed": ((4, 5, 3), ("pad", -1, 2), ("roll", 2), ("flip",)),
    "flip_and_roll": ((4, 5, 3), ("flip",), ("pad", 1, 1), ("roll", 1)),
}
SWIN = [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
MERGES = {
    # name: channels, extent, patch, order
    "swin": (4, (2, 5, 7), (1, 2, 2), SWIN),
    "swin_unpadded": (3, (2, 4, 5), (1, 2, 2), SWIN),
    "cubes": (3, (5, 4, 3), (2, 2, 2), list(itertools.product((0, 1), repeat=3))),
    "cubes_of_fours": (4, (3, 4, 5), (2, 2, 2), [(x, y, z) for z, y, x in itertools.product((0, 1), repeat=3)]),
}
EXPANDS = {
    # name: channels of the result, extent, patch, crop
    "swin": (4, (2, 3, 2), (1, 2, 2), None),
    "swin_cropped": (3, (2, 3, 4), (1, 2, 2), (2, 5, 7)),
    "by_four": (2, (1, 2, 3), (1, 4, 4), None),
    "cubes_cropped": (5, (2, 3, 2), (2, 2, 2), (3, 6, 3)),
}
GATHERS = {
    # name: channels, extent, tokens
    "tokens": (5, (2, 3, 4), [23, 0, 7, 7, 12, 1]),
    "table": (4, (1, 1, 9), [8, 8, 0, 3] * 5),
}


def shift(x, *axes):
    for axis, (kind, *numbers) in enumerate(axes, 1):
        if kind == "roll":
            x = torch.roll(x, numbers[0], axis)
        elif kind == "flip":
            x = torch.flip(x, [axis])
        else:
            x = F.pad(x, [0, 0] * (3 - axis) + numbers)
    return x


def merge(x, patch, order):
    """Slices side by side, as Swin's patch merging takes them."""
    x = F.pad(x, [p for n, k in zip(reversed(x.shape[1:]), reversed(patch)) for p in (0, -n % k)])
    return torch.cat([x[:, d :: patch[0], h :: patch[1], w :: patch[2]] for d, h, w in order])


def expand(x, patch, crop):
    """(p1 p2 p3 c) D H W to c (D p1) (H p2) (W p3)."""
    (d, h, w), (a, b, c) = x.shape[1:], patch
    y = x.reshape(a, b, c, -1, d, h, w).permute(3, 4, 0, 5, 1, 6, 2).reshape(-1, d * a, h * b, w * c)
    return y if crop is None else y[:, : crop[0], : crop[1], : crop[2]]


def main():
    torch.manual_seed(22)
    tensors, attributes = {}, {}

    def case(name, channels, extent, function, **given):
        x = torch.randn(channels, *extent)
        y = function(x.double())
        tensors[f"{name}.input"], tensors[f"{name}.output"] = x, y.float().contiguous()
        attributes[name] = given

    for mode, arguments in MODES.items():
        for name, (extent, size) in EXTENTS.items():
            to = {"scale_factor": size["times"]} if "times" in size else {"size": size["size"]}
            case(f"{mode}_{name}", 2, extent, lambda x: F.interpolate(x[None], **to, **arguments)[0], op="resize", mode=mode, **size)
    for name, (extent, k, s, p) in POOLS.items():
        case(f"pool_{name}", 3, extent, lambda x: F.max_pool3d(x[None], k, s, p)[0], op="pool", kernel=k, stride=s, padding=p)
    for name, (extent, *axes) in SHIFTS.items():
        case(f"shift_{name}", 3, extent, lambda x: shift(x, *[(a, *n) for a, *n in axes]), op="shift", axes=axes)
    for name, (channels, extent, patch, order) in MERGES.items():
        case(f"merge_{name}", channels, extent, lambda x: merge(x, patch, order), op="merge", patch=patch, order=order)
    for name, (channels, extent, patch, crop) in EXPANDS.items():
        parts = patch[0] * patch[1] * patch[2]
        case(f"expand_{name}", channels * parts, extent, lambda x: expand(x, patch, crop), op="expand", patch=patch, crop=crop)
    for name, (channels, extent, tokens) in GATHERS.items():
        case(f"gather_{name}", channels, extent, lambda x: x.flatten(1)[:, tokens][:, None, None], op="gather", tokens=tokens)
    for name, (extent, k) in AVERAGES.items():
        case(f"average_{name}", 3, extent, lambda x: F.avg_pool3d(x[None], k)[0], op="average", kernel=k)
    save_file(tensors, Path(__file__).with_name("resample.safetensors"), {"cases": json.dumps(attributes)})


main()
