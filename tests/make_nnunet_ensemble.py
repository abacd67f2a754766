#!/usr/bin/env python3
"""Makes the labels that nnunetv2 finds with ensembles of the models in tests/vectors/nnunet_kinds.

    python3 -m venv --system-site-packages /tmp/nn && /tmp/nn/bin/pip install nnunetv2==2.8.1
    /tmp/nn/bin/python tests/make_nnunet_ensemble.py tests/vectors/nnunet_ensemble

Each case becomes FOLDER/NAME with `case.json` (`models`: folders of tests/vectors/nnunet_kinds) and
`expected.nii.gz`, nnunetv2's label map of tests/vectors/nnunet/case_0000.nii.gz (CPU).
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from make_nnunet_cascade import save
from make_nnunet_kinds import SCAN, VECTORS

KINDS = VECTORS.parent / "nnunet_kinds"
CASES = {
    "two": ["old_plain", "flat"],
    "folds": ["folds", "threshold", "batch_norm_residual"],
    "regions": ["regions", "torch_regions"],
}


def predictor(name, work):
    """nnunetv2's predictor of a model whose weights are safetensors."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from safetensors import safe_open
    from safetensors.torch import load_file
    plans, dataset = [json.loads((KINDS / name / part).read_text()) for part in ("plans.json", "dataset.json")]
    model = work / name
    folds = sorted(path.name for path in (KINDS / name).glob("fold_*"))
    for part, content in (("plans.json", plans), ("dataset.json", dataset)):
        model.mkdir(exist_ok=True)
        (model / part).write_text(json.dumps(content))
    for fold in folds:
        file = KINDS / name / fold / "checkpoint_final.safetensors"
        with safe_open(file, "pt") as opened:
            told = opened.metadata()
        state = {key: value.float() if value.is_floating_point() else value for key, value in load_file(file).items()}
        init = {"configuration": told["configuration"], "plans": plans, "dataset_json": dataset, "fold": fold}
        (model / fold).mkdir()
        torch.save({"network_weights": state, "init_args": init, "trainer_name": told["trainer_name"],
                    "inference_allowed_mirroring_axes": tuple(json.loads(told["inference_allowed_mirroring_axes"]))},
                   model / fold / "checkpoint_final.pth")
    made = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    # names of a network's modules that are there twice
    load = torch.nn.Module.load_state_dict
    torch.nn.Module.load_state_dict = lambda self, state, strict=True, **more: load(self, state, False, **more)
    made.initialize_from_trained_model_folder(str(model), use_folds=[int(fold[5:]) for fold in folds], checkpoint_name="checkpoint_final.pth")
    return made


def make(root, name):
    from nnunetv2.ensembling.ensemble import average_probabilities
    out = root / name
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        work, files = Path(work), []
        for model in CASES[name]:
            made = predictor(model, work)
            reader = made.plans_manager.image_reader_writer_class()
            images, properties = reader.read_images([str(SCAN)])
            _, probabilities = made.predict_single_npy_array(images, properties, None, None, True)
            files.append(str(work / f"{model}.npz"))
            np.savez_compressed(files[-1], probabilities=probabilities)
            if model == CASES[name][0]:
                label_manager = made.label_manager
        mean = average_probabilities(files)
        labels = np.asarray(label_manager.convert_probabilities_to_segmentation(mean))
    save(out / "expected.nii.gz", labels)
    (out / "case.json").write_text(json.dumps({"models": CASES[name]}) + "\n")
    print(name, labels.shape, np.bincount(labels.ravel()).tolist(), flush=True)


def main():
    root = Path(sys.argv[1]).absolute()
    for name in ("raw", "preprocessed", "results"):
        os.environ.setdefault(f"nnUNet_{name}", "/nonexistent")
    torch.set_num_threads(2)
    for name in sys.argv[2:] or CASES:
        make(root, name)


if __name__ == "__main__":
    main()
