"""Slices zoomed as TransUNet and Swin-Unet zoom them, by `scipy.ndimage.zoom`, for `src/volume/spline.rs`.

    python tests/vectors/make_slices.py

writes slices.safetensors beside this file: per case NAME.slice [H][W] and NAME.zoomed, f32 by cubic splines or i32 by nearest
labels. Needs numpy, scipy and safetensors.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.ndimage import zoom

EXTENTS = [
    # slice, target
    ((5, 7), (8, 4)),
    ((7, 7), (7, 12)),
    ((2, 3), (5, 5)),
    ((1, 4), (3, 6)),
    ((6, 9), (1, 2)),
    ((22, 20), (32, 32)),
    # places beyond the end by a rounding: the last row, column or both are 0
    ((32, 9), (16, 12)),
    ((12, 63), (9, 16)),
    ((512, 2), (224, 3)),
    ((224, 2), (512, 2)),
    ((4, 224), (6, 42)),
    # halfway between two voxels
    ((2, 4), (3, 7)),
]


def main():
    random = np.random.default_rng(5)
    tensors = {}
    for source, target in EXTENTS:
        factors = (target[0] / source[0], target[1] / source[1])
        name = f"{source[0]}x{source[1]}_to_{target[0]}x{target[1]}"
        image = random.uniform(0, 1, source).astype(np.float32)
        labels = random.integers(1, 1000, source).astype(np.int32)
        for kind, values, order in [("cubic", image, 3), ("nearest", labels, 0)]:
            zoomed = zoom(values, factors, order=order)
            assert zoomed.shape == target and zoomed.dtype == values.dtype
            tensors[f"{kind}.{name}.slice"], tensors[f"{kind}.{name}.zoomed"] = values, zoomed
    save_file(tensors, Path(__file__).with_name("slices.safetensors"))


main()
