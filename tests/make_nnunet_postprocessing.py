#!/usr/bin/env python3
"""Makes post-processing files of nnU-Net and the labels that nnunetv2 2.8.1 and nnunet 1.7.1 make with them.

    python3 -m venv --system-site-packages /tmp/nn && /tmp/nn/bin/pip install nnunetv2==2.8.1
    pip download nnunet==1.7.1 --no-deps --no-binary :all: -d /tmp/nn1 && tar xf /tmp/nn1/nnunet-1.7.1.tar.gz -C /tmp/nn1
    /tmp/nn/bin/pip install --no-deps medpy
    PYTHONPATH=/tmp/nn1/nnunet-1.7.1 /tmp/nn/bin/python tests/make_nnunet_postprocessing.py tests/vectors/nnunet_postprocessing

Each case becomes FOLDER/NAME with `case.json` (`model`: the folder in tests/vectors whose labels it
starts from), `postprocessing.pkl` or `postprocessing.json`, and `expected.nii.gz`.
"""

import json
import pickle
import sys
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

VECTORS = Path(__file__).resolve().parent / "vectors"
V2 = "remove_all_but_largest_component_from_segmentation"

# the model's folder, and the arguments of each function of nnunetv2
SECOND = {
    "foreground": ("nnunet_kinds/ignore", [{"labels_or_regions": [1, 2]}]),
    "each": ("nnunet_kinds/ignore", [{"labels_or_regions": 1}, {"labels_or_regions": 2}]),
    "numpy": ("nnunet_kinds/ignore", [{"labels_or_regions": [np.int64(2)], "background_label": 1}]),
    "regions": ("nnunet_kinds/regions", [{"labels_or_regions": [1, 2, 3]}, {"labels_or_regions": (2, 3)}, {"labels_or_regions": [3, (1, 2)]}]),
    "nothing": ("nnunet_kinds/ignore", []),
}
# the model's folder, classes, and which of their components' sizes are valid, or none
FIRST = {
    "first": ("nnunet_v1", [1, 2], None),
    "first_regions": ("nnunet_v1", [(1, 2), 2], 0.6),
    "first_all": ("nnunet_v1", None, None),
}


def load(model):
    folder = VECTORS / model
    return sitk.ReadImage(str(folder / "expected.nii.gz"))


def write(out, like, labels):
    image = sitk.GetImageFromArray(labels.astype(np.uint8))
    image.CopyInformation(like)
    sitk.WriteImage(image, str(out / "expected.nii.gz"), True)
    # without the time of writing and the name that gzip keeps
    kept = nibabel.load(out / "expected.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(kept.dataobj), kept.affine), out / "expected.nii.gz")


def tell(name, before, after):
    print(name, np.bincount(before.ravel()).tolist(), np.bincount(after.ravel()).tolist(), int((before != after).sum()), flush=True)


def second(root):
    from nnunetv2.postprocessing.remove_connected_components import (apply_postprocessing, recursive_fix_for_json_export,
                                                                      remove_all_but_largest_component_from_segmentation)
    for name, (model, kwargs) in SECOND.items():
        out = root / name
        out.mkdir(parents=True, exist_ok=True)
        functions = [remove_all_but_largest_component_from_segmentation] * len(kwargs)
        image = load(model)
        before = sitk.GetArrayFromImage(image)
        after = apply_postprocessing(before, functions, kwargs)
        if name == "each":
            told = {"input_folder": {"mean": {"1": {"Dice": float("nan")}}}, "postprocessing_fns": [V2] * len(kwargs), "postprocessing_kwargs": kwargs}
            recursive_fix_for_json_export(told)
            (out / "postprocessing.json").write_text(json.dumps(told, indent=4))
        else:
            (out / "postprocessing.pkl").write_bytes(pickle.dumps((functions, kwargs)))
        (out / "case.json").write_text(json.dumps({"model": model}) + "\n")
        write(out, image, after)
        tell(name, before, after)


def first(root):
    from nnunet.postprocessing.connected_components import remove_all_but_the_largest_connected_component
    from scipy.ndimage import label
    for name, (model, classes, quantile) in FIRST.items():
        out = root / name
        out.mkdir(parents=True, exist_ok=True)
        image = load(model)
        before = sitk.GetArrayFromImage(image)
        volume = float(np.prod(image.GetSpacing(), dtype=np.float64))
        sizes = None
        if quantile is not None:
            sizes = {}
            for c in classes:
                found, count = label(np.isin(before, c))
                sizes[c] = float(np.quantile(np.bincount(found.ravel())[1:], quantile) * volume)
        after, _, _ = remove_all_but_the_largest_connected_component(before.copy(), classes, volume, sizes)
        told = {"for_which_classes": classes, "num_samples": 1}
        if sizes is not None:
            told["min_valid_object_sizes"] = str(sizes)
        (out / "postprocessing.json").write_text(json.dumps(told, indent=4) + "\n")
        (out / "case.json").write_text(json.dumps({"model": model}) + "\n")
        write(out, image, after)
        tell(name, before, after)


if __name__ == "__main__":
    second(Path(sys.argv[1]).absolute())
    first(Path(sys.argv[1]).absolute())
