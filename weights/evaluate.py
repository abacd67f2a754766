"""Dice and HD95 of the exported models on the 20 validation cases, by PyTorch and, if asked, by organum.

Usage: python weights/evaluate.py weights/hippocampus_{unet,mhsa,mhca,u_transformer}.safetensors --shared ../shared --out DIR
           [--organum BIN] [--json FILE]
Writes each prediction to DIR/MODEL/CASE.nii.gz (organum's to DIR/MODEL/organum/CASE.nii.gz) and prints markdown tables.
HD95 is medpy's: the 95th percentile of the surface distances of both directions pooled, in mm; a surface is the mask
without its erosion by 6 neighbours. +- is the standard deviation over cases.
"""
import argparse
import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

from export import load, predict


def dice(p, t):
    total = p.sum() + t.sum()
    return 2 * (p & t).sum() / total if total else 1.0


def hd95(p, t, spacing):
    if not p.any() or not t.any():
        return 0.0 if p.any() == t.any() else np.inf
    six = generate_binary_structure(3, 1)
    p, t = (m ^ binary_erosion(m, six) for m in (p, t))
    there = distance_transform_edt(~t, sampling=spacing)[p]
    back = distance_transform_edt(~p, sampling=spacing)[t]
    return np.percentile(np.concatenate([there, back]), 95)


def scores(prediction, reference):
    """[[dice, hd95] per label] of two NIfTI files."""
    p, t = (np.asarray(nib.load(f).dataobj).astype(np.uint8) for f in (prediction, reference))
    spacing = nib.load(reference).header.get_zooms()[:3]
    return [[dice(p == k, t == k), hd95(p == k, t == k, spacing)] for k in (1, 2)]


def organum_scores(binary, model, scan, output, reference):
    subprocess.run([binary, "segment", scan, "--model", model, "--output", output], check=True, capture_output=True)
    text = subprocess.run([binary, "evaluate", output, reference, "--json"], check=True, capture_output=True, text=True).stdout
    labels = json.loads(text)["labels"]
    return [[labels[k]["dice"], labels[k]["hd95_mm"]] for k in sorted(labels)]


def summary(cases):
    """cases: (case, label, [dice, hd95]); mean and standard deviation over cases, per label and of the labels' mean."""
    c = np.asarray(cases, float)
    columns = np.concatenate([c, c.mean(1, keepdims=True)], 1)
    return {
        key: {"mean": columns[:, i, j].mean(), "std": columns[:, i, j].std(ddof=1)}
        for j, metric in enumerate(("dice", "hd95_mm"))
        for i, key in enumerate((f"{metric}_anterior", f"{metric}_posterior", f"{metric}_mean"))
    }


def row(name, parameters, s):
    cells = [f"{v['mean']:.4f} ± {v['std']:.4f}" if k.startswith("dice") else f"{v['mean']:.2f} ± {v['std']:.2f}" for k, v in s.items()]
    return f"| {name} | {parameters} | " + " | ".join(cells) + " |"


def main():
    a = argparse.ArgumentParser()
    a.add_argument("models", type=Path, nargs="+")
    a.add_argument("--shared", type=Path, default=Path("../shared"))
    a.add_argument("--out", type=Path, required=True)
    a.add_argument("--organum")
    a.add_argument("--json", type=Path)
    a = a.parse_args()
    torch.set_num_threads(1)
    root = a.shared / "data" / "hippocampus"
    names = json.loads((root / "split.json").read_text())["validation"]
    result = {}
    for model in a.models:
        net, card = load(model, a.shared)
        folder = a.out / model.stem
        (folder / "organum").mkdir(parents=True, exist_ok=True)
        r = {"parameters": sum(p.numel() for p in net.parameters()), "cases": {}}
        for name in names:
            scan, reference, ours, theirs = root / "images" / name, root / "labels" / name, folder / name, folder / "organum" / name
            labels = predict(net, scan)
            nib.save(labels, ours)
            case = r["cases"][name] = {"pytorch": scores(ours, reference)}
            if a.organum:
                case["organum"] = organum_scores(a.organum, model, scan, theirs, reference)
                case["differing_voxels"] = int((np.asarray(labels.dataobj) != np.asarray(nib.load(theirs).dataobj)).sum())
                case["voxels"] = labels.dataobj.size
        for engine in ("pytorch", "organum") if a.organum else ("pytorch",):
            r[engine] = summary([c[engine] for c in r["cases"].values()])
        result[model.stem] = r

    print("| model | parameters | Dice anterior | Dice posterior | Dice mean | HD95 anterior | HD95 posterior | HD95 mean (mm) |")
    print("|---|---|---|---|---|---|---|---|")
    for model, r in result.items():
        print(row(model, r["parameters"], r["pytorch"]))
        if a.organum:
            print(row(f"{model}, by organum", r["parameters"], r["organum"]))

    first, *others = result
    if others:
        mean_dice = lambda r: np.array([np.mean(c["pytorch"], 0)[0] for c in r["cases"].values()])
        print(f"\n| mean Dice less {first}'s, paired by case | mean ± std | cases better |\n|---|---|---|")
        for model in others:
            d = mean_dice(result[model]) - mean_dice(result[first])
            print(f"| {model} | {d.mean():+.4f} ± {d.std(ddof=1):.4f} | {(d > 0).sum()} of {len(d)} |")
    if a.organum:
        print("\n| voxels where organum differs from PyTorch | all cases | worst case |\n|---|---|---|")
        for model, r in result.items():
            n = [c["differing_voxels"] for c in r["cases"].values()]
            print(f"| {model} | {sum(n)} of {sum(c['voxels'] for c in r['cases'].values())} | {max(n)} |")
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
