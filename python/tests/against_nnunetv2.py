"""Runs nnunetv2's predictor and organum's with the same script on the same files, and compares what
they write: names, labels, probabilities, properties.

    python tests/against_nnunetv2.py MODEL_FOLDER IMAGES_FOLDER

Needs nnunetv2 (2.8.1 was compared). MODEL_FOLDER holds plans.json, dataset.json and fold_K with
.pth checkpoints: those of tests/vectors/nnunet/model, or of tests/make_nnunet.py.
"""

import os
import pickle
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np


def predict(library, model, images, out):
    if library == "nnunetv2":
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        device = torch.device("cpu")
    else:
        from organum.nnunet import nnUNetPredictor

        device = "cpu"
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=True,
        perform_everything_on_device=False,
        device=device,
        verbose=False,
        verbose_preprocessing=False,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(
        model, use_folds=None, checkpoint_name="checkpoint_final.pth"
    )
    predictor.predict_from_files(
        images,
        str(out),
        save_probabilities=True,
        overwrite=True,
        num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
        folder_with_segs_from_prev_stage=None,
        num_parts=1,
        part_id=0,
    )


def plain(value):
    """Properties without the types of arrays."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(one) for one in value]
    return round(float(value), 4) if isinstance(value, (int, float, np.number)) else value


def main(model, images):
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder, "nnunetv2"), Path(folder, "organum")
        predict("nnunetv2", model, images, theirs)
        predict("organum", model, images, ours)
        names = [sorted(p.name for p in out.iterdir()) for out in (theirs, ours)]
        if names[0] != names[1]:
            print(f"names differ: {names[0]}, {names[1]}")
            failed += 1
        for name in names[0]:
            if name.endswith(".nii.gz"):
                a, b = (nibabel.load(out / name) for out in (theirs, ours))
                x, y = (np.asarray(image.dataobj) for image in (a, b))
                differing = int((x != y).sum())
                same = np.allclose(a.affine, b.affine, atol=1e-4) and x.dtype == y.dtype
                print(
                    f"{name}: {differing} of {x.size} voxels differ, "
                    f"labels {np.unique(x)}, {x.dtype} and {y.dtype}"
                )
                failed += differing > 0 or not same
            elif name.endswith(".npz"):
                x, y = (np.load(out / name)["probabilities"] for out in (theirs, ours))
                print(
                    f"{name}: {x.shape} {x.dtype}, {y.dtype}: "
                    f"at most {abs(x.astype(float) - y).max():.1e} apart"
                )
                failed += x.shape != y.shape or abs(x.astype(float) - y).max() > 5e-3
            elif name.endswith(".pkl"):
                x, y = (pickle.loads((out / name).read_bytes()) for out in (theirs, ours))
                missing = [key for key in y if plain(x.get(key)) != plain(y[key])]
                print(f"{name}: {sorted(x)}; differing: {[(k, x.get(k), y[k]) for k in missing]}")
                failed += bool(missing)
    return failed


if __name__ == "__main__":
    os.environ.setdefault("nnUNet_raw", "/tmp")
    os.environ.setdefault("nnUNet_preprocessed", "/tmp")
    os.environ.setdefault("nnUNet_results", "/tmp")
    sys.exit(main(*sys.argv[1:]))
