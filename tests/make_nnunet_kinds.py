#!/usr/bin/env python3
"""Makes small nnU-Net v2 models of every kind that its plans can ask for, with random weights, and the labels that nnunetv2 finds.

    python3 -m venv --system-site-packages /tmp/nn && /tmp/nn/bin/pip install nnunetv2==2.8.1
    /tmp/nn/bin/python tests/make_nnunet_kinds.py tests/vectors/nnunet_kinds [NAME ..]

Each case becomes FOLDER/NAME, a model's folder whose weights are safetensors of 16-bit floats, with
    case.json           `args`: options of `organum segment` that stand for how nnunetv2 was run
    expected.nii.gz     nnunetv2's label map of tests/vectors/nnunet/case_0000.nii.gz (CPU)
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import torch

VECTORS = Path(__file__).resolve().parent / "vectors" / "nnunet"
SCAN = VECTORS / "case_0000.nii.gz"
ANISO = {"separate_z_anisotropy_threshold": 3}


def old(plans, conf, name="PlainConvUNet"):
    """Plans as nnU-Net 2.0 to 2.3 wrote them."""
    args = conf.pop("architecture")["arch_kwargs"]
    conf.update(UNet_class_name=name, UNet_base_num_features=2, unet_max_num_features=6, num_pool_per_axis=[0, 2, 2],
                n_conv_per_stage_encoder=[1, 2, 1], n_conv_per_stage_decoder=[2, 1], pool_op_kernel_sizes=args["strides"],
                conv_kernel_sizes=args["kernel_sizes"])
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")


def residual(plans, conf):
    arch = conf["architecture"]
    arch["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    arch["arch_kwargs"]["n_blocks_per_stage"] = [1, 2, 1]
    del arch["arch_kwargs"]["n_conv_per_stage"]


def flat(plans, conf):
    """A 3d configuration whose windows are planes."""
    conf.update(patch_size=[1, 32, 24], spacing=[5.0, 0.9, 0.9])
    conf["architecture"]["arch_kwargs"]["kernel_sizes"] = [[1, 3, 3]] * 3


def inherits(plans, conf):
    """The configuration inherits, and so does what it inherits."""
    base = plans["configurations"]["3d_fullres"]
    plans["configurations"].update({"base": dict(base), "middle": {"inherits_from": "base", "spacing": [4.0, 1.0, 1.0]},
                                    "3d_fullres": {"inherits_from": "middle", "patch_size": [8, 20, 24]}})


def resampling(data, probabilities=None, spacing=None):
    def change(plans, conf):
        for part, (function, kwargs) in (("data", data), ("probabilities", probabilities or data)):
            conf[f"resampling_fn_{part}"], conf[f"resampling_fn_{part}_kwargs"] = function, kwargs
        conf["resampling_fn_seg"] = data[0]
        conf["resampling_fn_seg_kwargs"] = {**data[1], **({"is_seg": True} if "is_seg" in data[1] else {})}
        conf["spacing"] = spacing or [3.5, 0.9, 1.0]
    return change


def torchres(**kwargs):
    return "resample_torch_fornnunet", {"is_seg": False, "memefficient_seg_resampling": False, **kwargs}


def splines(**kwargs):
    return "resample_data_or_seg_to_shape", {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None, **kwargs}


REGIONS = {"labels": {"background": 0, "whole": [1, 2, 3], "enhancing": 3, "core": [2, 3], "ignore": 4}, "regions_class_order": [1, 3, 2]}

CASES = {  # change of the plans, and else: of the dataset, trainer, folds, options of nnunetv2 and of organum, name of the checkpoint
    "old_plain": dict(change=old),
    "old_residual": dict(change=lambda plans, conf: old(plans, conf, "ResidualEncoderUNet")),
    "batch_norm": dict(trainer="nnUNetTrainerBN"),
    "batch_norm_residual": dict(change=residual, trainer="nnUNetTrainerBN"),
    "no_deep_supervision": dict(trainer="nnUNetTrainerNoDeepSupervision"),
    "flat": dict(change=flat),
    "inherits": dict(change=inherits),
    "regions": dict(dataset=REGIONS),
    "ignore": dict(dataset={"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}}),
    "torch": dict(change=resampling(torchres(force_separate_z=False))),
    "torch_thick": dict(change=resampling(torchres(force_separate_z=None, **ANISO))),
    "torch_regions": dict(change=resampling(torchres(force_separate_z=False), spacing=[6.0, 0.9, 1.0]), dataset=REGIONS),
    "torch_along": dict(change=resampling(torchres(force_separate_z=True, aniso_axis_mode="linear"))),
    "none": dict(change=resampling(("no_resampling_hack", {}))),
    "threshold": dict(change=resampling(splines(separate_z_anisotropy_threshold=9), splines(order=1, separate_z_anisotropy_threshold=2))),
    "orders": dict(change=resampling(("resample_data_or_seg_to_shape", {"order_z": 3, "force_separate_z": True}),
                                     ("resample_data_or_seg_to_shape", {"order": 0}))),
    "steps": dict(predict=dict(tile_step_size=0.3), args=["--step-size", "0.3"]),
    "overlap": dict(predict=dict(tile_step_size=0.75, use_mirroring=False), args=["--overlap", "0.25", "--no-mirror"]),
    "folds": dict(folds=[0, 1, 2], use=(0, 2), args=["--fold", "0,2"]),
    "all": dict(folds=[0, "all"], use=("all",), args=["--fold", "all"]),
    "best": dict(checkpoint="checkpoint_best", args=["--checkpoint", "best"]),
}


def network(trainer, plans, dataset, seed, configuration="3d_fullres", previous=None):
    """The trainer's network with random weights in 16-bit floats; `previous` are labels of the stage before."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot, determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    manager = PlansManager(json.loads(json.dumps(plans)))
    label_manager = manager.get_label_manager(dataset)
    conf = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, conf, dataset)
    torch.manual_seed(seed)
    net = recursive_find_trainer_class_by_name(trainer).build_network_architecture(
        manager, conf, channels, label_manager.num_segmentation_heads, enable_deep_supervision=False)
    state = net.state_dict()
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        random = torch.randn(value.shape)
        if name.endswith("running_var"):
            random = random.abs() + 0.3
        elif value.ndim > 1:
            random *= (2 / value[0].numel()) ** 0.5
        elif name.endswith(".weight"):
            random = 1 + 0.3 * random
        else:
            random *= 0.3
        value.copy_(random.half().float())
    # heads that have no favourite among the classes
    data, seg, _ = conf.preprocessor_class(verbose=False).run_case([str(SCAN)], previous and str(previous), manager, conf, dataset)
    if previous:
        data = np.vstack((data, convert_labelmap_to_one_hot(seg[0], label_manager.foreground_labels, data.dtype)))
    patch = [min(n, p) for n, p in zip(data.shape[1:], conf.patch_size)]
    begin = [(n - p) // 2 for n, p in zip(data.shape[1:], patch)]
    window = torch.zeros(1, channels, *conf.patch_size)
    window[(0, slice(None), *(slice(p) for p in patch))] = torch.from_numpy(data[(slice(None), *(slice(b, b + p) for b, p in zip(begin, patch)))])
    with torch.no_grad():
        logits = net.eval()(window)[0].flatten(1)
    head = [name for name in state if name.startswith("decoder.seg_layers.") and name.endswith(".bias")][-1]
    state[head].copy_((state[head] - logits.median(1).values).half().float())
    return state


def make(root, name):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from safetensors.torch import save_file
    case, out = CASES[name], root / name
    shutil.rmtree(out, ignore_errors=True)
    plans = json.loads((VECTORS / "model/plans.json").read_text())
    dataset = json.loads((VECTORS / "model/dataset.json").read_text())
    del plans["configurations"]["2d"]
    conf = plans["configurations"]["3d_fullres"]
    conf["architecture"]["arch_kwargs"]["features_per_stage"] = [2, 4, 6]
    case.get("change", lambda plans, conf: None)(plans, conf)
    dataset.update(case.get("dataset", {}))
    trainer, checkpoint = case.get("trainer", "nnUNetTrainer"), case.get("checkpoint", "checkpoint_final")
    folds = case.get("folds", [0])
    with tempfile.TemporaryDirectory() as work:
        model = Path(work)
        for folder in (model, out):
            for fold in folds:
                (folder / f"fold_{fold}").mkdir(parents=True)
            (folder / "plans.json").write_text(json.dumps(plans) + "\n")
            (folder / "dataset.json").write_text(json.dumps(dataset) + "\n")
        for number, fold in enumerate(folds):
            state = network(trainer, plans, dataset, 7 + number)
            init = {"configuration": "3d_fullres", "plans": plans, "dataset_json": dataset, "fold": fold}
            torch.save({"network_weights": state, "init_args": init, "trainer_name": trainer,
                        "inference_allowed_mirroring_axes": (0, 1, 2)}, model / f"fold_{fold}" / f"{checkpoint}.pth")
            own = {k: v.half().contiguous().clone() if v.is_floating_point() else v for k, v in state.items()
                   if not k.startswith("decoder.encoder.") and ".all_modules." not in k}
            metadata = {"configuration": "3d_fullres", "trainer_name": trainer, "inference_allowed_mirroring_axes": "[0, 1, 2]"}
            save_file(own, out / f"fold_{fold}" / f"{checkpoint}.safetensors", metadata=metadata)
        predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False,
                                    **case.get("predict", {}))
        predictor.initialize_from_trained_model_folder(str(model), use_folds=case.get("use", (0,)), checkpoint_name=f"{checkpoint}.pth")
        reader = predictor.plans_manager.image_reader_writer_class()
        images, properties = reader.read_images([str(SCAN)])
        labels = predictor.predict_single_npy_array(images, properties, None, None, False)
    affine = nibabel.load(SCAN).affine
    nibabel.save(nibabel.Nifti1Image(np.asarray(labels).astype(np.uint8).transpose(2, 1, 0), affine), out / "expected.nii.gz")
    (out / "case.json").write_text(json.dumps({"args": case.get("args", [])}) + "\n")
    print(name, labels.shape, np.bincount(np.asarray(labels).ravel()).tolist(), flush=True)


def main():
    root = Path(sys.argv[1]).absolute()
    for name in ("raw", "preprocessed", "results"):
        os.environ.setdefault(f"nnUNet_{name}", "/nonexistent")
    torch.set_num_threads(2)
    for name in sys.argv[2:] or CASES:
        make(root, name)


if __name__ == "__main__":
    main()
