"""Expected logits of `Model::random` for tests/fullres.rs: PyTorch in float64, every 8th voxel of each axis, stored as float32.

Usage: python tests/vectors/make_fullres.py --shared ../shared --output tests/vectors/fullres_64x128x128.safetensors
Needs weights/requirements.txt. Repeats the xorshift64* of src/model/weights.rs, so that no weights need to be stored.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

EXTENT, BASE, SEED, STEP = (64, 128, 128), 8, 1, 8
MASK = (1 << 64) - 1


def units(seed):
    state = (seed * 0x9E3779B97F4A7C15 & MASK) | 1
    while True:
        state ^= state >> 12
        state = (state ^ state << 25) & MASK
        state ^= state >> 27
        bits = 0x40000000 | ((state * 0x2545F4914F6CDD1D & MASK) >> 41)
        yield bits


def fill(net, seed):
    bits = units(seed)
    for name, t in net.state_dict().items():
        if not t.is_floating_point():
            continue
        n = t.numel()
        u = np.fromiter(bits, np.uint32, n).view(np.float32) - np.float32(3)
        shape = tuple(t.shape)
        if len(shape) == 1 and (name.endswith("running_var") or name.endswith("weight")):
            v = np.float32(1) + np.float32(0.5) * u
        elif len(shape) == 1:
            v = np.float32(0.1) * u
        else:
            v = u * np.sqrt(np.float32(6) / np.float32(np.prod(shape[1:])))
        t.copy_(torch.from_numpy(v.reshape(shape)))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--shared", type=Path, default=Path("../shared"))
    a.add_argument("--output", type=Path, required=True)
    a = a.parse_args()
    sys.path.insert(0, str(a.shared / "reference"))
    from u_transformer import UTransformer

    net = UTransformer(dims=3, in_channels=1, classes=14, channels=[BASE << i for i in range(5)], mhsa=False, mhca_levels=0).eval()
    fill(net, SEED)
    i = np.arange(np.prod(EXTENT), dtype=np.uint64)
    x = ((i * np.uint64(0x9E3779B9) >> np.uint64(7)) % np.uint64(2001)).astype(np.float32) / np.float32(1000) - np.float32(1)
    with torch.no_grad():
        y = net.double()(torch.from_numpy(x).double().reshape(1, 1, *EXTENT))
    save_file({"logits": y[0, :, ::STEP, ::STEP, ::STEP].float().contiguous()}, a.output)


main()
