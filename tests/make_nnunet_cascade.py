#!/usr/bin/env python3
"""Makes small cascades of nnU-Net v2 with random weights, and the labels that nnunetv2 finds in both stages.

    python3 -m venv --system-site-packages /tmp/nn && /tmp/nn/bin/pip install nnunetv2==2.8.1
    /tmp/nn/bin/python tests/make_nnunet_cascade.py tests/vectors/nnunet_cascade [NAME ..]

Each case becomes FOLDER/NAME with the folders of both models, `TRAINER__nnUNetPlans__3d_lowres` and
`TRAINER__nnUNetPlans__3d_cascade_fullres`, and
    previous.nii.gz     nnunetv2's label map of the first stage for tests/vectors/nnunet/case_0000.nii.gz (CPU)
    expected.nii.gz     that of the second, given the first's
"""

import copy
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import torch

from make_nnunet_kinds import REGIONS, SCAN, VECTORS, network

SEG = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}


def seg(function, **kwargs):
    return dict(function=function, kwargs=kwargs)


CASES = {  # spacing of the second stage, resampling of label maps, and else: of the dataset, mask of the normalisation
    "usual": dict(spacing=[3.5, 0.9, 1.0], seg=seg("resample_data_or_seg_to_shape", **SEG)),
    "together": dict(spacing=[2.5, 1.6, 0.4], seg=seg("resample_data_or_seg_to_shape", **{**SEG, "force_separate_z": False})),
    "halved": dict(spacing=[2.5, 0.4, 0.4], seg=seg("resample_data_or_seg_to_shape", **{**SEG, "order_z": 1})),
    "nearest": dict(spacing=[3.5, 0.9, 1.0], seg=seg("resample_data_or_seg_to_shape", **{**SEG, "order": 0})),
    "regions": dict(spacing=[3.5, 0.9, 1.0], seg=seg("resample_data_or_seg_to_shape", **SEG), dataset=REGIONS),
    "masked": dict(spacing=[3.5, 0.9, 1.0], seg=seg("resample_data_or_seg_to_shape", **SEG), masked=True),
    "torch": dict(spacing=[3.5, 0.9, 1.0], seg=seg("resample_torch_fornnunet", is_seg=True)),
    "torch_halves": dict(spacing=[3.5, 0.9, 1.0], seg=seg("resample_torch_fornnunet", is_seg=True, memefficient_seg_resampling=True)),
}


def save(out, labels):
    affine = nibabel.load(SCAN).affine
    nibabel.save(nibabel.Nifti1Image(np.asarray(labels).astype(np.uint8).transpose(2, 1, 0), affine), out)


def make(root, name):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from safetensors.torch import save_file
    case, out = CASES[name], root / name
    shutil.rmtree(out, ignore_errors=True)
    plans = json.loads((VECTORS / "model/plans.json").read_text())
    dataset = json.loads((VECTORS / "model/dataset.json").read_text())
    dataset.update(case.get("dataset", {}))
    del plans["configurations"]["2d"]
    full = plans["configurations"]["3d_fullres"]
    full["architecture"]["arch_kwargs"]["features_per_stage"] = [2, 4, 6]
    full.update(spacing=case["spacing"], resampling_fn_seg=case["seg"]["function"], resampling_fn_seg_kwargs=case["seg"]["kwargs"])
    if case.get("masked"):
        full.update(use_mask_for_norm=[True], normalization_schemes=["ZScoreNormalization"])
    low = copy.deepcopy(full)
    low.update(spacing=[6.0, 1.4, 1.6], next_stage="3d_cascade_fullres")
    plans["configurations"].update({"3d_lowres": low, "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}})
    previous = None
    for number, configuration in enumerate(["3d_lowres", "3d_cascade_fullres"]):
        folder = out / f"nnUNetTrainer__nnUNetPlans__{configuration}"
        with tempfile.TemporaryDirectory() as work:
            model = Path(work)
            for place in (model, folder):
                (place / "fold_0").mkdir(parents=True)
                (place / "plans.json").write_text(json.dumps(plans) + "\n")
                (place / "dataset.json").write_text(json.dumps(dataset) + "\n")
            state = network("nnUNetTrainer", plans, dataset, 11 + number, configuration, previous)
            init = {"configuration": configuration, "plans": plans, "dataset_json": dataset, "fold": 0}
            torch.save({"network_weights": state, "init_args": init, "trainer_name": "nnUNetTrainer",
                        "inference_allowed_mirroring_axes": (0, 1, 2)}, model / "fold_0/checkpoint_final.pth")
            own = {k: v.half().contiguous().clone() if v.is_floating_point() else v for k, v in state.items()
                   if not k.startswith("decoder.encoder.") and ".all_modules." not in k}
            metadata = {"configuration": configuration, "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": "[0, 1, 2]"}
            save_file(own, folder / "fold_0/checkpoint_final.safetensors", metadata=metadata)
            predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
            predictor.initialize_from_trained_model_folder(str(model), use_folds=(0,), checkpoint_name="checkpoint_final.pth")
            reader = predictor.plans_manager.image_reader_writer_class()
            images, properties = reader.read_images([str(SCAN)])
            # label maps are read as 32-bit floats
            given = None if previous is None else reader.read_seg(str(previous))[0]
            labels = np.asarray(predictor.predict_single_npy_array(images, properties, given, None, False))
        name_of = "previous" if previous is None else "expected"
        previous = out / f"{name_of}.nii.gz"
        save(previous, labels)
        print(name, configuration, labels.shape, np.bincount(labels.ravel()).tolist(), flush=True)


def main():
    root = Path(sys.argv[1]).absolute()
    for name in ("raw", "preprocessed", "results"):
        os.environ.setdefault(f"nnUNet_{name}", "/nonexistent")
    torch.set_num_threads(2)
    for name in sys.argv[2:] or CASES:
        make(root, name)


if __name__ == "__main__":
    main()
