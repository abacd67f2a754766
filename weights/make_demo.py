"""Cuts the demo scans out of the MNI152 2009a template and labels them with PyTorch and an exported model.

Usage: python weights/make_demo.py weights/hippocampus_u_transformer.safetensors --shared ../shared --out weights/demo
Writes mni152_hippocampus_{right,left}.nii.gz (uint8, 1 mm, RAS, MNI coordinates) and *_labels.nii.gz beside them.
The template is left-right symmetric, so the two crops are mirror images of one another.
"""
import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from export import load, predict

TEMPLATE = "data/mri_t1/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
# First and last voxel centre in mm: 5 to 7 mm around the hippocampus, like the training crops.
BOX = {"x": (8, 43), "y": (-47, 2), "z": (-35, 9)}


def crop(template, side):
    (x0, x1), (y0, y1), (z0, z1) = BOX.values()
    first = np.array([x0 if side == "right" else -x1, y0, z0])
    origin = template.affine[:3, 3]
    at = np.round(first - origin).astype(int)
    size = np.array([x1 - x0, y1 - y0, z1 - z0]) + 1
    voxels = np.asarray(template.dataobj)[tuple(slice(i, i + n) for i, n in zip(at, size))]
    affine = template.affine.copy()
    affine[:3, 3] = first
    image = nib.Nifti1Image(np.ascontiguousarray(voxels), affine)
    for set_form in (image.set_qform, image.set_sform):
        set_form(affine, "mni")
    image.header.set_xyzt_units("mm")
    return image


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model", type=Path)
    a.add_argument("--shared", type=Path, default=Path("../shared"))
    a.add_argument("--out", type=Path, required=True)
    a = a.parse_args()
    torch.set_num_threads(1)
    net, card = load(a.model, a.shared)
    template = nib.load(a.shared / TEMPLATE)
    a.out.mkdir(parents=True, exist_ok=True)
    for side in ("right", "left"):
        scan = a.out / f"mni152_hippocampus_{side}.nii.gz"
        nib.save(crop(template, side), scan)
        labels = predict(net, scan)
        nib.save(labels, a.out / f"mni152_hippocampus_{side}_labels.nii.gz")
        voxels = np.asarray(labels.dataobj)
        volumes = ", ".join(f"{name} {(voxels == int(k)).sum() / 1000:.2f} ml" for k, name in card["labels"].items())
        print(f"{side}: {'x'.join(map(str, voxels.shape))}, {volumes}")


if __name__ == "__main__":
    main()
