#!/usr/bin/env python3
"""Makes nnU-Net v1 model folders with nnunet 1.7.1's own planner, preprocessor and trainer, and what it makes of a case with them.

    python3 -m venv --system-site-packages /tmp/nn1
    /tmp/nn1/bin/pip install batchgenerators==0.25 nnunet==1.7.1
    /tmp/nn1/bin/python tests/make_nnunet_v1.py /tmp/organum-nnunet-v1 [ct mr plane low variants]

Four cases, with the synthetic scans of `make_nnunet.py`: `ct` (anisotropic, CT), `mr` (isotropic, two channels, nonCT within the
mask, two folds), `plane` (2d, nonCT within the mask) and `low` (the coarser of two stages, no mirror images). Each becomes FOLDER/NAME with
    model/          plans.pkl, fold_K/model_final_checkpoint.model and .model.pkl
    case_000C.nii.gz    the channels of a case that training did not see
    expected.safetensors    `data`: nnunet's preprocessed array; `probabilities`: the folds' mean softmax, in the network's axes
    expected.nii.gz     its label map, of `predict_cases` (CPU, f32, mirroring as the trainer has it)
Networks are cut to three narrow stages and half the patch; weights come of a short loop over nnunet's own loss and preprocessed
scans, and are written by the trainer's `save_checkpoint`.
"""

import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np

from make_nnunet import synthetic, write

STEPS = int(os.environ.get("STEPS", "120"))
CASES = {
    "ct": dict(id=811, channels=["CT"], planner="3D", stage=0, folds=[0], width=4,
               shape=(16, 44, 40), spacing=(5.0, 0.8, 0.8), test=((11, 38, 35), (6.0, 0.7, 0.75))),
    "mr": dict(id=812, channels=["T1", "T2"], planner="3D", stage=0, folds=[0, 1], width=8,
               shape=(40, 44, 42), spacing=(1.0, 1.0, 1.0), test=((37, 45, 50), (1.2, 1.1, 0.9))),
    "plane": dict(id=813, channels=["FLAIR"], planner="2D", stage=0, folds=[0], width=8,
                  shape=(12, 56, 50), spacing=(3.0, 1.0, 1.0), test=((9, 60, 47), (3.5, 0.9, 1.2))),
    "low": dict(id=814, channels=["CT"], planner="3D", stage=0, folds=[0], width=8, coarser=1.6, trainer="nnUNetTrainerV2_noMirroring",
                shape=(40, 54, 58), spacing=(1.0, 0.8, 0.8), test=((37, 61, 50), (1.1, 0.75, 0.9))),
}
VARIANTS = {  # transpose_forward, current_spacing, scheme, masked, force_separate_z, spacing of the scan
    # nnunet takes the thick axis of the network's transposed spacing for one of the scan's
    "thick_network": ([1, 2, 0], [4.0, 1.1, 0.9], "CT2", False, None, (1.5, 1.4, 1.0)),
    "masked_ct": ([2, 0, 1], [0.9, 4.0, 0.8], "CT", True, None, (6.0, 0.7, 0.75)),
    "together": ([0, 1, 2], [4.0, 0.9, 0.8], "nonCT", True, False, (6.0, 0.7, 0.75)),
    "as_it_is": ([1, 0, 2], [0.75, 3.0, 0.8], "noNorm", False, True, (6.0, 0.7, 0.75)),
}


def patch():
    """What nnunet 1.7.1 expects of libraries of its time."""
    import torch
    load = torch.load
    torch.load = lambda *args, **kwargs: load(*args, **{"weights_only": False, **kwargs})
    torch.set_num_threads(2)


def raw(task, case, rng):
    import json

    from nnunet.paths import nnUNet_raw_data
    folder = Path(nnUNet_raw_data) / task
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    training = []
    for i in range(4):
        shape = tuple(n + int(d) for n, d in zip(case["shape"], rng.integers(-1, 2, 3)))
        images, labels = synthetic(rng, case["channels"], shape)
        for c, image in enumerate(images):
            write(folder / "imagesTr" / f"c{i}_{c:04d}.nii.gz", image, case["spacing"])
        write(folder / "labelsTr" / f"c{i}.nii.gz", labels, case["spacing"])
        training.append({"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps({
        "name": task, "modality": {str(i): n for i, n in enumerate(case["channels"])},
        "labels": {"0": "background", "1": "organ", "2": "lesion"}, "numTraining": 4, "training": training, "test": [], "numTest": 0}))


def plan(task, case):
    """The file of the plans, cut to three narrow stages and half the patch, after preprocessing; and the folder of that."""
    from nnunet.experiment_planning.DatasetAnalyzer import DatasetAnalyzer
    from nnunet.experiment_planning.experiment_planner_baseline_2DUNet_v21 import ExperimentPlanner2D_v21
    from nnunet.experiment_planning.experiment_planner_baseline_3DUNet_v21 import ExperimentPlanner3D_v21
    from nnunet.experiment_planning.utils import crop
    from nnunet.paths import nnUNet_cropped_data, preprocessing_output_dir
    crop(task, True, 2)
    cropped, out = Path(nnUNet_cropped_data) / task, Path(preprocessing_output_dir) / task
    DatasetAnalyzer(str(cropped), overwrite=False, num_processes=2).analyze_dataset("CT" in case["channels"])
    out.mkdir(parents=True)
    planner = (ExperimentPlanner2D_v21 if case["planner"] == "2D" else ExperimentPlanner3D_v21)(str(cropped), str(out))
    planner.plan_experiment()
    plans = planner.plans
    if "coarser" in case:
        full = planner.plans_per_stage[0]
        planner.plans_per_stage = {0: {**full, "current_spacing": full["current_spacing"] * case["coarser"]}, 1: full}
        plans.update(num_stages=2, plans_per_stage=planner.plans_per_stage)
    planner.run_preprocessing(2)
    plans["base_num_features"] = case["width"]
    for stage in plans["plans_per_stage"].values():
        stage["pool_op_kernel_sizes"] = stage["pool_op_kernel_sizes"][:2]
        stage["conv_kernel_sizes"] = stage["conv_kernel_sizes"][:3]
        factor = np.prod(stage["pool_op_kernel_sizes"], axis=0)
        stage["patch_size"] = np.array([int(f * max(2, p // f * 6 // 10)) for p, f in zip(stage["patch_size"], factor)])
    with open(planner.plans_fname, "wb") as file:
        pickle.dump(plans, file)
    return planner.plans_fname, out


def train(case, plans_file, preprocessed, model, fold):
    import nnunet
    import torch
    from nnunet.training.loss_functions.dice_loss import DC_and_CE_loss
    from nnunet.training.model_restore import recursive_find_python_class
    folder = Path(nnunet.__path__[0]) / "training/network_training"
    trainer = case.get("trainer", "nnUNetTrainerV2")
    trainer = recursive_find_python_class([str(folder)], trainer, "nnunet.training.network_training")
    torch.manual_seed(fold)
    rng = np.random.default_rng(fold)
    trainer = trainer(plans_file, fold, str(model), str(preprocessed), batch_dice=True, stage=case["stage"], fp16=True)
    trainer.initialize(False)
    network, size = trainer.network, [int(n) for n in trainer.patch_size]
    network.do_ds = False
    loss = DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False}, {})
    scans = [np.load(f)["data"] for f in sorted((preprocessed / f"{trainer.plans['data_identifier']}_stage{case['stage']}").glob("*.npz"))]
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.9, nesterov=True)
    trainer.optimizer = optimizer
    for step in range(STEPS):
        batch = []
        for _ in range(2):
            scan = scans[rng.integers(len(scans))]
            if len(size) == 2:
                scan = scan[:, rng.integers(scan.shape[1])]
            room = [max(0, p - n) for p, n in zip(size, scan.shape[1:])]
            scan = np.pad(scan, [(0, 0)] + [(r // 2, r - r // 2) for r in room])
            start = [rng.integers(n - p + 1) for n, p in zip(scan.shape[1:], size)]
            batch.append(scan[(slice(None), *[slice(s, s + p) for s, p in zip(start, size)])])
        batch = torch.from_numpy(np.stack(batch))
        optimizer.zero_grad()
        value = loss(network(batch[:, :-1]), batch[:, -1:].clamp(min=0))
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
    print(f"fold {fold}: loss {value.item():.3f}")
    trainer.epoch = trainer.max_num_epochs - 1
    trainer.save_checkpoint(str(model / f"fold_{fold}" / "model_final_checkpoint.model"))
    shutil.copy(plans_file, model / "plans.pkl")


def predict(out, case):
    from nnunet.inference.predict import predict_cases
    from nnunet.training.model_restore import load_model_and_checkpoint_files
    from safetensors.numpy import save_file
    files = [str(out / f"case_{c:04d}.nii.gz") for c in range(len(case["channels"]))]
    predict_cases(str(out / "model"), [files], [str(out / "expected.nii.gz")], case["folds"], False, 1, 1, mixed_precision=False,
                  all_in_gpu=False, step_size=0.5, do_tta="trainer" not in case, checkpoint_name="model_final_checkpoint")
    trainer, folds = load_model_and_checkpoint_files(str(out / "model"), case["folds"], False, "model_final_checkpoint")
    data, _, _ = trainer.preprocess_patient(files)
    mean = 0
    for parameters in folds:
        trainer.load_checkpoint_ram(parameters, False)
        mean = mean + trainer.predict_preprocessed_data_return_seg_and_softmax(
            data, do_mirroring="trainer" not in case, mirror_axes=trainer.data_aug_params["mirror_axes"], mixed_precision=False)[1]
    mean /= len(folds)
    save_file({"data": np.ascontiguousarray(data), "probabilities": np.ascontiguousarray(mean)}, out / "expected.safetensors")
    print(f"{out.name}: {data.shape} {data.dtype}, patch {trainer.patch_size}, probabilities {mean.dtype}")


def make(root, name):
    case = CASES[name]
    rng, out, task = np.random.default_rng(case["id"]), root / name, f"Task{case['id']}_{name}"
    shutil.rmtree(out, ignore_errors=True)
    (out / "model").mkdir(parents=True)
    raw(task, case, rng)
    plans_file, preprocessed = plan(task, case)
    for fold in case["folds"]:
        train(case, plans_file, preprocessed, out / "model", fold)
    images, _ = synthetic(rng, case["channels"], case["test"][0])
    for c, image in enumerate(images):
        write(out / f"case_{c:04d}.nii.gz", image, case["test"][1])
    predict(out, case)


def variants(root):
    """Other plans for the case `ct`: FOLDER/variant_NAME, in which only the prepared scan and the export of smooth random probabilities
    are nnunet's; `expected.nii.gz` is not what the network finds."""
    from nnunet.inference.segmentation_export import save_segmentation_nifti_from_softmax
    from nnunet.training.model_restore import load_model_and_checkpoint_files
    from safetensors.numpy import save_file
    from scipy.ndimage import gaussian_filter
    for name, (transpose, spacing, scheme, masked, separate, voxel) in VARIANTS.items():
        out = root / f"variant_{name}"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(root / "ct", out)
        (out / "expected.nii.gz").unlink()
        rng = np.random.default_rng(len(name))
        image = synthetic(rng, ["CT"], (14, 30, 36))[0][0].astype(np.float32)
        # a hull that is 0, so that there is an outside
        image[image < -600] = 0
        image = np.pad(image[:, 2:-2, 3:-3], 2)
        write(out / "case_0000.nii.gz", image, voxel)
        file = out / "model/fold_0/model_final_checkpoint.model.pkl"
        with open(file, "rb") as f:
            told = pickle.load(f)
        plans = told["plans"]
        plans.update(transpose_forward=transpose, transpose_backward=[int(i) for i in np.argsort(transpose)],
                     normalization_schemes={0: scheme}, use_mask_for_norm={0: masked})
        plans["segmentation_export_params"] = dict(force_separate_z=separate, interpolation_order=1, interpolation_order_z=0)
        plans["plans_per_stage"][0]["current_spacing"] = np.array(spacing)
        with open(file, "wb") as f:
            pickle.dump(told, f)
        trainer, _ = load_model_and_checkpoint_files(str(out / "model"), [0], False, "model_final_checkpoint")
        data, _, properties = trainer.preprocess_patient([str(out / "case_0000.nii.gz")])
        logits = np.stack([gaussian_filter(rng.normal(size=data.shape[1:]), 1.5) * 30 for _ in range(3)]).astype(np.float32)
        softmax = np.exp(logits) / np.exp(logits).sum(0)
        save_file({"data": np.ascontiguousarray(data), "probabilities": softmax}, out / "expected.safetensors")
        softmax = softmax.transpose([0] + [i + 1 for i in plans["transpose_backward"]])
        save_segmentation_nifti_from_softmax(softmax, str(out / "expected.nii.gz"), properties, 1, force_separate_z=separate,
                                             interpolation_order_z=0)


def main():
    root = Path(sys.argv[1]).absolute()
    names = sys.argv[2:] or [*CASES, "variants"]
    for variable, part in (("nnUNet_raw_data_base", "raw"), ("nnUNet_preprocessed", "preprocessed"), ("RESULTS_FOLDER", "results")):
        shutil.rmtree(root / part, ignore_errors=True)
        (root / part).mkdir(parents=True)
        os.environ[variable] = str(root / part)
    patch()
    for name in names:
        variants(root) if name == "variants" else make(root, name)
    for part in ("raw", "preprocessed", "results"):
        shutil.rmtree(root / part, ignore_errors=True)


if __name__ == "__main__":
    main()
