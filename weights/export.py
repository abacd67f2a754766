"""Turns a checkpoint of train.py into organum's model file: f16 tensors under the state_dict's names, the card inside.

Usage: python weights/export.py CHECKPOINT.pt VARIANT --log TRAINING_LOG --out weights/hippocampus_VARIANT.safetensors
TRAINING_LOG is what train.py printed: it tells the provenance the checkpoint's step and validation Dice.
`load` and `predict` are the other direction, for make_demo.py and evaluate.py: the f16-rounded weights in f32 arithmetic.
"""
import argparse
import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from train import VARIANTS, center_pad, config, zscore

SOURCE = (
    "the 200 training cases of Medical Segmentation Decathlon Task04 Hippocampus (CC-BY-SA 4.0; Antonelli et al., "
    "Nat Commun 13:4128, doi 10.1038/s41467-022-30695-9; Simpson et al., arXiv 1902.09063)"
)


def card(variant, log):
    lines = re.findall(r"step (\d+) loss \S+ dice (\S+) \(.*?\) \d+ s( \*)?", log)
    step, dice = [(step, dice) for step, dice, best in lines if best][-1]
    return {
        "architecture": "u_transformer",
        "config": config(variant),
        "input": {
            "channels": ["T1"],
            "axes": "SAR",
            "spacing_mm": [1, 1, 1],
            "resample": "linear",
            "intensity": {"scheme": "zscore"},
        },
        "inference": {"mode": "whole", "pad": "center"},
        "labels": {"1": "anterior hippocampus", "2": "posterior hippocampus"},
        # the 220 cases of Task04: 24 to 47, 40 to 59, 31 to 43 mm; 1.05 to 2.59 and 0.99 to 2.17 ml;
        # no negative value. About a fifth more on either side, a third for the volumes
        "expects": {
            "scan": "a T1 crop that frames one hippocampus with about 5 mm around it",
            "field_of_view_mm": [[20, 60], [32, 72], [24, 56]],
            "values": [0, None],
            "volumes_ml": {"anterior hippocampus": [0.7, 3.5], "posterior hippocampus": [0.7, 3.0]},
        },
        "provenance": f"variant {variant}, trained by weights/train.py on {SOURCE}; step {step} of {lines[-1][0]}, "
        f"moving average of the weights; mean Dice {dice} on the 20 validation cases, which also chose the step; "
        "licence of the weights: CC-BY-SA 4.0",
    }


def to_f16(state):
    """Rounds every tensor; refuses what f16 cannot hold: overflow, or a variance that falls below the normal range."""
    tensors = {}
    for name, t in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        half = t.half().contiguous()
        if not half.isfinite().all():
            sys.exit(f"{name}: overflows f16 (largest magnitude {t.abs().max():g})")
        if name.endswith("running_var") and half.min() < torch.finfo(torch.float16).tiny:
            sys.exit(f"{name}: variance {t.min():g} is below f16's normal range")
        tensors[name] = half
    return tensors


def load(path, shared):
    """The network of an exported file, in f32, and its card."""
    sys.path.insert(0, str(shared / "reference"))
    from u_transformer import UTransformer

    with safe_open(path, "pt") as f:
        card = json.loads(f.metadata()["organum"])
        state = {name: f.get_tensor(name).float() for name in f.keys()}
    net = UTransformer(**card["config"]).eval()
    missing, extra = net.load_state_dict(state, strict=False)
    assert not extra and all(name.endswith("num_batches_tracked") for name in missing), (missing, extra)
    return net, card


@torch.no_grad()
def predict(net, path):
    """The label map (uint8 NIfTI on the scan's grid) of a 1 mm RAS scan."""
    image = nib.load(path)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S"), path
    x, inner = center_pad(zscore(torch.from_numpy(np.ascontiguousarray(image.get_fdata(dtype=np.float32).T))))
    labels = net(x[None, None]).argmax(1)[0][inner].numpy().T.astype(np.uint8)
    out = nib.Nifti1Image(labels, image.affine)
    out.set_qform(image.affine, int(image.header["qform_code"]))
    out.set_sform(image.affine, int(image.header["sform_code"]))
    out.header.set_xyzt_units("mm")
    return out


def main():
    a = argparse.ArgumentParser()
    a.add_argument("checkpoint", type=Path)
    a.add_argument("variant", choices=VARIANTS)
    a.add_argument("--log", type=Path, required=True)
    a.add_argument("--out", type=Path, required=True)
    a = a.parse_args()
    state = torch.load(a.checkpoint, map_location="cpu", weights_only=True)
    tensors = to_f16(state)
    text = json.dumps(card(a.variant, a.log.read_text()))
    save_file(tensors, a.out, metadata={"organum": text})
    worst = max(((state[n] - t.float()).norm() / state[n].norm().clamp_min(1e-30)).item() for n, t in tensors.items())
    least = min(t.min().item() for n, t in tensors.items() if n.endswith("running_var"))
    print(f"{a.out}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values())} numbers, {a.out.stat().st_size} bytes")
    print(f"largest relative rounding error of a tensor {worst:.2e}, least running_var {least:.3g}")


if __name__ == "__main__":
    main()
