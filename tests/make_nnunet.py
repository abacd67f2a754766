#!/usr/bin/env python3
"""Makes nnU-Net model folders with nnunetv2's own planner, preprocessor and trainer, and what nnunetv2 makes of a case with them.

    python3 -m venv --system-site-packages /tmp/nn && /tmp/nn/bin/pip install nnunetv2==2.8.1
    /tmp/nn/bin/python tests/make_nnunet.py /tmp/organum-nnunet [ct mr plane low colour variants readers]

Five cases: `ct` (anisotropic, CT norm, plain 3D network), `mr` (isotropic, two channels, z-score within the mask, plain 3D
network, two folds), `plane` (2d configuration, residual encoder), `low` (3d_lowres) and `colour` (2d, three channels of 0 to 255). Each becomes FOLDER/NAME with
    model/          plans.json, dataset.json, fold_K/checkpoint_final.pth, and the same weights as checkpoint_final.safetensors
    case_000C.nii.gz    the channels of a case that training did not see
    expected.safetensors    `data`: nnunetv2's preprocessed array; `logits`: its blended logits (16-bit floats)
    expected.nii.gz     its label map (CPU, mirroring on)
`readers` becomes what tests/vectors/nnunet_readers is: scans on every sort of grid, whose headers also contradict themselves, and the labels of the model
of tests/vectors/nnunet by each of nnU-Net's readers (READERS=60 for more of them).
Networks are cut to three narrow stages and half the patch, so that a minute of two cores trains one and windows overlap.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

ITERATIONS = int(os.environ.get("ITERATIONS", "25"))
CASES = {
    "ct": dict(id=801, channels=["CT"], configuration="3d_fullres", planner="ExperimentPlanner", folds=[0],
               shape=(16, 44, 40), spacing=(5.0, 0.8, 0.8), test=((14, 51, 46), (6.0, 0.7, 0.75))),
    "mr": dict(id=802, channels=["T1", "T2"], configuration="3d_fullres", planner="ExperimentPlanner", folds=[0, 1],
               shape=(40, 44, 42), spacing=(1.0, 1.0, 1.0), test=((37, 45, 50), (1.2, 1.1, 0.9))),
    "plane": dict(id=803, channels=["FLAIR"], configuration="2d", planner="nnUNetPlannerResEncM", folds=[0],
                  shape=(12, 56, 50), spacing=(3.0, 1.0, 1.0), test=((9, 60, 47), (3.5, 0.9, 1.2))),
    "low": dict(id=804, channels=["T1"], configuration="3d_lowres", planner="ExperimentPlanner", folds=[0],
                shape=(40, 44, 42), spacing=(1.0, 1.0, 1.0), test=((37, 45, 50), (1.2, 1.1, 0.9))),
    "colour": dict(id=805, channels=["rgb_to_0_1"] * 3, configuration="2d", planner="ExperimentPlanner", folds=[0],
                   shape=(8, 50, 44), spacing=(3.0, 1.0, 1.0), test=((7, 46, 52), (3.0, 1.1, 0.9))),
}


def blob(rng, shape, radius):
    """Where a random ellipsoid lies, with radii of `radius` times the shape."""
    grid = np.meshgrid(*[(np.arange(n) + 0.5) / n for n in shape], indexing="ij")
    centre = rng.uniform(0.4, 0.6, 3)
    return sum(((g - c) / (radius * rng.uniform(0.8, 1.2))) ** 2 for g, c in zip(grid, centre)) < 1


def synthetic(rng, channels, shape):
    """Channels and labels: a body with an organ in it, and a lesion in that."""
    from scipy.ndimage import gaussian_filter
    body, organ = blob(rng, shape, 0.42), blob(rng, shape, 0.25)
    organ &= body
    lesion = blob(rng, shape, 0.12) & organ
    labels = organ.astype(np.uint8) + lesion
    images = []
    for i, channel in enumerate(channels):
        noise = gaussian_filter(rng.normal(0, 1, shape), 0.7)
        if channel == "CT":
            images.append(np.round(-900 + 950 * body + 60 * organ + 50 * lesion + 40 * noise).astype(np.int16))
        elif channel == "rgb_to_0_1":
            images.append(np.clip(np.round(90 * body + (-1) ** i * 40 * organ + 60 * lesion + 15 * noise + 20), 0, 255).astype(np.float32))
        else:
            image = 300 + (-1) ** i * 80 * organ + 120 * lesion + 50 * noise
            images.append((np.clip(image, 1, None) * body).astype(np.float32))
    return images, labels


def write(path, array, spacing):
    import SimpleITK as sitk
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in spacing[::-1]])
    image.SetOrigin([3.0, -7.0, 11.0])
    sitk.WriteImage(image, str(path), True)


def raw(root, name, case, rng):
    folder = root / "raw" / f"Dataset{case['id']}_{name}"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for i in range(5):
        shape = tuple(n + int(d) for n, d in zip(case["shape"], rng.integers(-1, 2, 3)))
        images, labels = synthetic(rng, case["channels"], shape)
        for c, image in enumerate(images):
            write(folder / "imagesTr" / f"c{i}_{c:04d}.nii.gz", image, case["spacing"])
        write(folder / "labelsTr" / f"c{i}.nii.gz", labels, case["spacing"])
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {str(i): n for i, n in enumerate(case["channels"])},
        "labels": {"background": 0, "organ": 1, "lesion": 2}, "numTraining": 5, "file_ending": ".nii.gz"}))


def shrink(plans, configuration):
    """Three stages, narrow; half the patch."""
    conf = plans["configurations"][configuration]
    args = conf["architecture"]["arch_kwargs"]
    stages = 3
    args["n_stages"] = stages
    args["features_per_stage"] = [8, 12, 16]
    for key in ("kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage"):
        if key in args:
            args[key] = args[key][:stages]
    args["n_conv_per_stage_decoder"] = args["n_conv_per_stage_decoder"][: stages - 1]
    factor = np.prod(args["strides"], axis=0)
    conf["patch_size"] = [int(f * max(2, p // f * 6 // 10)) for p, f in zip(conf["patch_size"], factor)]
    conf["batch_size"] = 2


def train(case, dataset, plans, dataset_json, fold):
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Base

    class nnUNetTrainer(Base):
        """One short epoch; under the name by which the predictor finds it."""

        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, ITERATIONS, 1

    os.environ["nnUNet_n_proc_DA"] = "0"  # no processes for augmentation; the planner takes it for a number of threads
    torch.manual_seed(fold)
    np.random.seed(fold)
    trainer = nnUNetTrainer({**plans, "continue_training": False}, case["configuration"], fold, dataset_json, torch.device("cpu"))
    trainer.run_training()
    return Path(trainer.output_folder_base)


def plain(folder, fold):
    """The weights of a checkpoint as safetensors, with what else the predictor takes from it as metadata."""
    import torch
    from safetensors.torch import save_file
    checkpoint = torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    metadata = {"configuration": checkpoint["init_args"]["configuration"], "trainer_name": checkpoint["trainer_name"],
                "inference_allowed_mirroring_axes": json.dumps(checkpoint["inference_allowed_mirroring_axes"])}
    weights = {k: v.clone().contiguous() for k, v in checkpoint["network_weights"].items()}
    save_file(weights, folder / f"fold_{fold}" / "checkpoint_final.safetensors", metadata=metadata)


def predict(out, model, case):
    import torch
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from safetensors.numpy import save_file
    predictor = nnUNetPredictor(tile_step_size=0.5, use_gaussian=True, use_mirroring=True, perform_everything_on_device=False,
                                device=torch.device("cpu"), verbose=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), case["folds"], "checkpoint_final.pth")
    conf, plans = predictor.configuration_manager, predictor.plans_manager
    files = [str(out / f"case_{c:04d}.nii.gz") for c in range(len(case["channels"]))]
    data, _, properties = conf.preprocessor_class(verbose=False).run_case(files, None, plans, conf, predictor.dataset_json)
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).numpy()
    save_file({"data": np.ascontiguousarray(data), "logits": np.ascontiguousarray(logits)}, out / "expected.safetensors")
    export_prediction_from_logits(logits, properties, conf, plans, predictor.dataset_json, str(out / "expected"))
    print(f"{out.name}: {data.shape} {data.dtype}, patch {conf.patch_size}, spacing {conf.spacing}, logits {logits.dtype}")


def make(root, name):
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    os.environ["nnUNet_n_proc_DA"] = "2"
    case, rng, out = CASES[name], np.random.default_rng(CASES[name]["id"]), root / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    raw(root, name, case, rng)
    extract_fingerprints([case["id"]], num_processes=2, check_dataset_integrity=True)
    identifier = plan_experiments([case["id"]], experiment_planner_class_name=case["planner"])
    identifier = identifier or "nnUNetPlans"
    dataset = f"Dataset{case['id']}_{name}"
    preprocessed = root / "preprocessed" / dataset
    plans = json.loads((preprocessed / f"{identifier}.json").read_text())
    if case["configuration"] == "3d_lowres":
        # the planner makes one of large scans alone
        full = plans["configurations"]["3d_fullres"]
        low = json.loads(json.dumps(full))
        low.update(data_identifier=f"{identifier}_3d_lowres", spacing=[s * 1.5 for s in full["spacing"]], next_stage="3d_cascade_fullres")
        plans["configurations"]["3d_lowres"] = low
    shrink(plans, case["configuration"])
    (preprocessed / f"{identifier}.json").write_text(json.dumps(plans))
    preprocess([case["id"]], identifier, (case["configuration"],), (2,))
    dataset_json = json.loads((preprocessed / "dataset.json").read_text())
    for fold in case["folds"]:
        model = train(case, dataset, json.loads(json.dumps(plans)), dataset_json, fold)
    # the trainer copies the plans beside the dataset's description
    kept = out / "model"
    for fold in case["folds"]:
        (kept / f"fold_{fold}").mkdir(parents=True)
        shutil.copy(model / f"fold_{fold}" / "checkpoint_final.pth", kept / f"fold_{fold}")
        plain(kept, fold)
    for file in ("plans.json", "dataset.json"):
        shutil.copy(model / file, kept / file)
    images, _ = synthetic(rng, case["channels"], case["test"][0])
    for c, image in enumerate(images):
        write(out / f"case_{c:04d}.nii.gz", image, case["test"][1])
    predict(out, kept, case)


VARIANTS = {  # transpose_forward, spacing, order_z, force_separate_z, normalisation, reader
    "linear_along": ([1, 2, 0], [0.8, 0.8, 5.0], 1, None, "CTNormalization", "SimpleITKIO"),
    "cubic_along": ([2, 0, 1], [0.9, 4.0, 0.8], 3, None, "RescaleTo01Normalization", "NibabelIO"),
    "together": ([0, 1, 2], [5.0, 0.8, 0.8], 0, False, "NoNormalization", "SimpleITKIO"),
    "reoriented": ([1, 0, 2], [0.75, 3.0, 0.8], 0, True, "ZScoreNormalization", "NibabelIOWithReorient"),
}


def variants(root):
    """Other plans for the case `ct`: FOLDER/variant_NAME, in which only the prepared scan and the export of smooth random logits are
    nnunetv2's; `expected.nii.gz` is not what the network finds."""
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from safetensors.numpy import save_file
    from scipy.ndimage import gaussian_filter
    for name, (transpose, spacing, order_z, separate, normalisation, reader) in VARIANTS.items():
        out = root / f"variant_{name}"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(root / "ct", out)
        (out / "expected.nii.gz").unlink()
        plans = json.loads((out / "model/plans.json").read_text())
        plans.update(transpose_forward=transpose, transpose_backward=[int(i) for i in np.argsort(transpose)], image_reader_writer=reader)
        conf = plans["configurations"]["3d_fullres"]
        conf.update(spacing=spacing, normalization_schemes=[normalisation])
        for part in ("data", "probabilities"):
            conf[f"resampling_fn_{part}_kwargs"].update(order_z=order_z, force_separate_z=separate)
        (out / "model/plans.json").write_text(json.dumps(plans))
        manager, dataset = PlansManager(plans), json.loads((out / "model/dataset.json").read_text())
        conf, files = manager.get_configuration("3d_fullres"), [str(out / "case_0000.nii.gz")]
        data, _, properties = conf.preprocessor_class(verbose=False).run_case(files, None, manager, conf, dataset)
        rng = np.random.default_rng(1)
        logits = np.stack([gaussian_filter(rng.normal(size=data.shape[1:]), 2) * 50 for _ in range(3)]).astype(np.float16)
        save_file({"data": np.ascontiguousarray(data), "logits": logits}, out / "expected.safetensors")
        export_prediction_from_logits(logits, properties, conf, manager, dataset, str(out / "expected"))


def header(rng, number, shape):
    """A NIfTI header; the kind of its grid goes with the number."""
    import nibabel
    kind = ["sform", "qform", "both", "shear", "straight", "neither", "pixdim of 1", "sform of 1", "microns", "quarter"][number % 10]
    spacing = np.array([0.8, 0.7, 6.0])[: len(shape)] * rng.uniform(0.85, 1.2, len(shape))
    if len(shape) == 2:
        spacing = rng.uniform(0.03, 0.08, 2)
    spacing = np.append(spacing, 1.0)[:3]
    axis, angle = rng.normal(size=3), np.radians(rng.choice([2, 15, 30]))
    x, y, z = axis / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
    permuted = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    linear = permuted if kind in ("straight", "neither", "quarter") else turned @ permuted
    if len(shape) == 2:
        linear = np.diag([-1.0, -1, 1])
    if kind == "shear":
        linear = linear @ (np.eye(3) + np.triu(rng.uniform(-0.2, 0.2, (3, 3)), 1))
    affine = np.eye(4)
    affine[:3, :3] = linear * spacing
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    h = nibabel.Nifti1Header()
    h.set_data_shape(shape)
    h.set_data_dtype(np.int16)
    h.set_zooms(spacing[: len(shape)])
    if kind in ("qform", "both", "quarter"):
        h.set_qform(affine, 1)
    if kind not in ("qform", "neither"):
        h.set_sform(np.diag([-1.0, -1, 1, 1]) if kind == "sform of 1" else affine, 1)
    if kind == "pixdim of 1":
        h["pixdim"][1:4] = 1
    if kind == "microns":
        h["pixdim"][1:4] *= 1000
        for row in ("srow_x", "srow_y", "srow_z"):
            h[row] *= 1000
        h["xyzt_units"] = 3
    h["vox_offset"] = 352
    h["magic"] = b"n+1"
    return h


def readers(root):
    """Labels of the model of tests/vectors/nnunet for scans on grids of every sort, by each reader."""
    import nibabel
    import tempfile
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from safetensors.numpy import save_file
    rng = np.random.default_rng(5)
    vectors = Path(__file__).resolve().parent / "vectors" / "nnunet"
    out = root / "readers"
    out.mkdir(parents=True, exist_ok=True)
    whole = np.asarray(nibabel.load(vectors / "case_0000.nii.gz").dataobj).astype(np.int16)
    voxels = [np.ascontiguousarray(whole[10:32, 12:38, 4:11]), np.ascontiguousarray(whole[10:32, 12:38, 6])]
    arrays = {f"voxels{i}": v.T.copy() for i, v in enumerate(voxels)}
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(vectors / "model"), use_folds=(0,), checkpoint_name="checkpoint_final.pth")
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    classes, cases = [SimpleITKIO, NibabelIO, NibabelIOWithReorient], []
    for number in range(int(os.environ.get("READERS", "27"))):
        reader = classes[number % 3]
        flat = number % 12 == 9
        h = header(rng, number, voxels[flat].shape)
        if number % 10 == (3 if reader is SimpleITKIO else 8):
            continue  # ITK refuses sheared scans, and nibabel takes microns for millimetres
        name = f"case{number:02d}"
        with tempfile.TemporaryDirectory() as work:
            file = Path(work) / "scan.nii"
            file.write_bytes(h.binaryblock + bytes(4) + voxels[flat].tobytes(order="F"))
            images, properties = reader().read_images([str(file)])
            labels = predictor.predict_single_npy_array(images, properties, None, None, False)
            written = Path(work) / "labels.nii"
            reader().write_seg(labels, str(written), properties)
            labels = np.asarray(nibabel.load(written).dataobj).astype(np.uint8)
        arrays[f"{name}.header"] = np.frombuffer(h.binaryblock, np.uint8)
        plain = nibabel.Nifti1Image(labels.reshape(labels.shape + (1,) * (3 - labels.ndim)), np.eye(4))
        nibabel.save(plain, out / f"{name}.nii.gz")
        cases.append({"name": name, "voxels": int(flat), "reader": reader.__name__})
        print(name, reader.__name__, number % 10, properties["spacing"], np.bincount(labels.ravel()).tolist())
    save_file(arrays, out / "scans.safetensors")
    (out / "cases.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


def main():
    root = Path(sys.argv[1]).absolute()
    names = sys.argv[2:] or [*CASES, "variants", "readers"]
    for part in ("raw", "preprocessed", "results"):
        shutil.rmtree(root / part, ignore_errors=True)
        (root / part).mkdir(parents=True)
        os.environ[f"nnUNet_{part}"] = str(root / part)
    os.environ["nnUNet_compile"] = "false"
    for name in names:
        {"variants": variants, "readers": readers}.get(name, lambda root: make(root, name))(root)
    for part in ("raw", "preprocessed", "results"):
        shutil.rmtree(root / part, ignore_errors=True)


if __name__ == "__main__":
    main()
