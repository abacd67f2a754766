"""Trains the four ablations of the U-Transformer on MSD Task04 Hippocampus (CPU, PyTorch).

Usage: python weights/train.py VARIANT --shared ../shared --out DIR [--steps N] [--threads N]
VARIANT: unet | mhsa | mhca | u_transformer. Same widths, data order, augmentation and schedule for all four.
The network is `reference/u_transformer.py` of the shared folder; users of organum need neither that file nor Python.
"""
import argparse
import json
import math
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

CHANNELS = [12, 24, 48, 64]
STRIDE = 8
VARIANTS = {
    "unet": dict(mhsa=False, mhca_levels=0),
    "mhsa": dict(mhsa=True, mhca_levels=0),
    "mhca": dict(mhsa=False, mhca_levels=2),
    "u_transformer": dict(mhsa=True, mhca_levels=2),
}
PATCH = (40, 56, 40)  # D (superior), H (anterior), W (right): the card's axes "SAR"


def config(variant):
    return dict(dims=3, in_channels=1, classes=3, channels=CHANNELS, heads=4, profile="paper2021", **VARIANTS[variant])


def load_case(root, name):
    """Image as z-scored float tensor and label, both (D, H, W) with axes SAR; the files are RAS at 1 mm."""
    image = nib.load(root / "images" / name)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S"), name
    x = torch.from_numpy(np.ascontiguousarray(image.get_fdata(dtype=np.float32).T))
    y = torch.from_numpy(np.ascontiguousarray(np.asarray(nib.load(root / "labels" / name).dataobj).astype(np.uint8).T)).long()
    return zscore(x), y


def zscore(x):
    return (x - x.mean()) / x.std(unbiased=False).clamp_min(1e-8)


def center_pad(x, stride=STRIDE):
    """Zero-pads each axis to a multiple of `stride`, the smaller half before (what `organum segment` does)."""
    pads, inner = [], []
    for n in x.shape:
        extra = -n % stride
        pads.append((extra // 2, extra - extra // 2))
        inner.append(slice(extra // 2, extra // 2 + n))
    return F.pad(x, [p for before_after in reversed(pads) for p in before_after]), tuple(inner)


def blur(x, sigma):
    r = max(1, math.ceil(3 * sigma))
    k = torch.exp(-0.5 * (torch.arange(-r, r + 1) / sigma) ** 2)
    k = k / k.sum()
    x = x[None, None]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = -1
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = r
        x = F.conv3d(F.pad(x, pad, mode="replicate"), k.reshape(shape))
    return x[0, 0]


def augment(x, y, g):
    """Random affine onto PATCH (zeros outside), mirror along W, gamma, contrast, bias field, blur, noise; z-scored again."""
    u = lambda a, b: a + (b - a) * torch.rand((), generator=g).item()
    angles = [math.radians(u(-15, 15)) for _ in range(3)]
    m = torch.eye(3)
    for axis, a in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        r = torch.eye(3)
        r[i, i] = r[j, j] = math.cos(a)
        r[i, j], r[j, i] = -math.sin(a), math.sin(a)
        m = m @ r
    scale = 1 / u(0.8, 1.3)
    m = m @ torch.diag(torch.tensor([scale * u(0.93, 1.07) for _ in range(3)]))
    if u(0, 1) < 0.5:
        m = m @ torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    shift = torch.tensor([u(-4, 4) for _ in range(3)])
    z, h, w = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in PATCH], indexing="ij")
    p = torch.stack([z, h, w], -1) @ m.T + shift
    size = torch.tensor(x.shape, dtype=torch.float32)
    grid = (2 * p / (size - 1)).flip(-1)[None]
    x = F.grid_sample(x[None, None], grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0, 0]
    y = F.grid_sample(y[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=True)[0, 0].long()
    inside = (grid.abs() <= 1).all(-1)[0]
    if u(0, 1) < 0.5:
        lo, hi = x.min(), x.max()
        x = ((x - lo) / (hi - lo)) ** math.exp(u(-0.5, 0.5)) * (hi - lo) + lo
    if u(0, 1) < 0.3:
        field = F.interpolate(torch.randn(1, 1, 2, 2, 2, generator=g) * 0.2, PATCH, mode="trilinear", align_corners=True)[0, 0]
        x = x * (1 + field)
    if u(0, 1) < 0.35:
        x = blur(x, u(0.4, 1.3))
    if u(0, 1) < 0.4:
        x = x + torch.randn(PATCH, generator=g) * u(0.0, 0.25)
    v = x[inside]
    return ((x - v.mean()) / v.std().clamp_min(1e-6)) * inside, y


def loss_fn(logits, y):
    p = logits.softmax(1)
    one = F.one_hot(y, 3).movedim(-1, 1).float()
    axes = (0, 2, 3, 4)
    dice = (2 * (p * one).sum(axes) + 1) / (p.sum(axes) + one.sum(axes) + 1)
    return F.cross_entropy(logits, y) + 1 - dice[1:].mean()


@torch.no_grad()
def validate(net, cases):
    net.eval()
    scores = []
    for x, y in cases:
        padded, inner = center_pad(x)
        p = net(padded[None, None]).argmax(1)[0][inner]
        scores.append([2 * ((p == k) & (y == k)).sum().item() / max(1, ((p == k).sum() + (y == k).sum()).item()) for k in (1, 2)])
    return np.array(scores)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("variant", choices=VARIANTS)
    a.add_argument("--shared", type=Path, default=Path("../shared"))
    a.add_argument("--out", type=Path, required=True)
    a.add_argument("--steps", type=int, default=2400)
    a.add_argument("--batch", type=int, default=2)
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--every", type=int, default=300)
    a = a.parse_args()
    torch.set_num_threads(a.threads)
    sys.path.insert(0, str(a.shared / "reference"))
    from u_transformer import UTransformer

    root = a.shared / "data" / "hippocampus"
    split = json.loads((root / "split.json").read_text())
    train = [load_case(root, n) for n in split["train"]]
    valid = [load_case(root, n) for n in split["validation"]]
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    net, mean = (UTransformer(**config(a.variant)) for _ in range(2))
    mean.load_state_dict(net.state_dict())
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=a.steps, pct_start=0.1)
    best, order, start = -1.0, [], time.time()
    a.out.mkdir(parents=True, exist_ok=True)
    for step in range(1, a.steps + 1):
        if len(order) < a.batch:
            order = torch.randperm(len(train), generator=g).tolist()
        pairs = [augment(*train[order.pop()], g) for _ in range(a.batch)]
        x, y = (torch.stack(t) for t in zip(*pairs))
        net.train()
        loss = loss_fn(net(x[:, None]), y)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        decay = min(0.995, step / (step + 10))
        with torch.no_grad():  # exponential moving average of weights and statistics
            for m, n in zip(mean.state_dict().values(), net.state_dict().values()):
                m.lerp_(n, 1 - decay) if m.is_floating_point() else m.copy_(n)
        if step % a.every == 0 or step == a.steps:
            s = validate(mean, valid)
            line = f"{a.variant} step {step} loss {loss.item():.4f} dice {s.mean():.4f} ({s[:, 0].mean():.4f} {s[:, 1].mean():.4f}) {time.time() - start:.0f} s"
            if s.mean() > best:
                best = s.mean()
                torch.save(mean.state_dict(), a.out / f"{a.variant}.pt")
                line += " *"
            print(line, flush=True)


if __name__ == "__main__":
    main()
