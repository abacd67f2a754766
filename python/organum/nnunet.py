"""nnU-Net v2's predictor, with its arguments and file names.

A script changes one import::

    from organum.nnunet import nnUNetPredictor    # nnunetv2.inference.predict_from_raw_data

    predictor = nnUNetPredictor(tile_step_size=0.5, use_mirroring=True)
    predictor.initialize_from_trained_model_folder(folder, use_folds=(0,))
    predictor.predict_from_files("imagesTs", "predictions")

or does all of it at once by :func:`predict_from_files`. Labels equal those of nnunetv2 2.8.1 in
every voxel of all reference cases but one, of which one voxel in 32,844 differs. Neither PyTorch
nor nnunetv2 is needed.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from ._errors import Error, OptionError
from ._images import Scan, read
from ._model import Model, Size
from ._model import open as _open

_Cases = str | os.PathLike[str] | Sequence[Sequence[str | os.PathLike[str]]]
_Outputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None

__all__ = ["nnUNetPredictor", "predict_from_files"]


def _refused(option: str, why: str) -> OptionError:
    return OptionError(f"{option}: {why}", "option.refused", 2)


def _device(device: Any) -> str | None:
    """organum's name of a torch.device: what computes elsewhere than on the CPU is the best
    adapter."""
    kind = getattr(device, "type", device)
    if kind is None or isinstance(kind, str) and kind.partition(":")[0] in ("cuda", "mps", "xpu"):
        return None
    return str(kind)


def _whole(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file that appears whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".organum-{os.getpid()}-{path.name}")
    try:
        with partial.open("wb") as file:
            write(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_json(path: Path, value: Any) -> None:
    _whole(path, lambda file: file.write(json.dumps(value, indent=4).encode()))


def cases(folder: str | os.PathLike[str], file_ending: str) -> list[list[str]]:
    """The files of the cases in a folder: ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, .., a list
    for each case in the order of their names."""
    names = sorted(
        p.name for p in Path(folder).iterdir() if p.is_file() and p.name.endswith(file_ending)
    )
    wanted = re.compile(r"(.*)_\d\d\d\d" + re.escape(file_ending))
    found: dict[str, list[str]] = {}
    for name in names:
        match = wanted.fullmatch(name)
        if match:
            found.setdefault(match[1], []).append(os.path.join(folder, name))
    return [found[case] for case in sorted(found)]


class nnUNetPredictor:
    """A model of nnU-Net v2, and how it predicts.

    Args:
        tile_step_size: the distance of neighbouring windows as a share of one, above 0 to 1.
        use_gaussian: whether windows are weighed by a Gaussian; only ``True`` is done.
        use_mirroring: whether windows are mirrored along the axes of the training.
        perform_everything_on_device: of no account; organum bounds what lies on the device by
            ``memory``.
        device: a torch.device or its name: ``cpu`` is the host, any other a hardware GPU if there
            is one, else the host; or one of organum's names.
        verbose, verbose_preprocessing: of no account.
        allow_tqdm: whether a bar of tqdm shows the progress of each case, where tqdm is there.
        memory: the most bytes on the device, such as ``"2GiB"``.
        host_memory: the most bytes of host memory.
    """

    def __init__(
        self,
        tile_step_size: float = 0.5,
        use_gaussian: bool = True,
        use_mirroring: bool = True,
        perform_everything_on_device: bool = True,
        device: Any = None,
        verbose: bool = False,
        verbose_preprocessing: bool = False,
        allow_tqdm: bool = True,
        *,
        memory: Size | None = None,
        host_memory: Size | None = None,
    ) -> None:
        if not use_gaussian:
            raise _refused(
                "use_gaussian", "windows are weighed by nnU-Net's Gaussian; leave it True"
            )
        self.tile_step_size = tile_step_size
        self.use_gaussian = use_gaussian
        self.use_mirroring = use_mirroring
        self.perform_everything_on_device = perform_everything_on_device
        self.device = device
        self.verbose = verbose
        self.verbose_preprocessing = verbose_preprocessing
        self.allow_tqdm = allow_tqdm
        self.memory = memory
        self.host_memory = host_memory
        self.model: Model | None = None
        self.dataset_json: dict[str, Any] = {}
        self.plans: dict[str, Any] = {}

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str | os.PathLike[str],
        use_folds: Iterable[int | str] | int | str | None = None,
        checkpoint_name: str = "checkpoint_final.pth",
    ) -> None:
        """Opens the folder of a trained model.

        Args:
            model_training_output_dir: the folder with ``plans.json``, ``dataset.json`` and
                ``fold_K``.
            use_folds: the folds to average: numbers or ``"all"``; ``None`` for those that there
                are.
            checkpoint_name: the file in each fold's folder; where it is only there with the ending
                ``.safetensors``, that one.

        Raises:
            LoadError: it is no such folder, or the model is one that organum does not run.
        """
        folder = Path(model_training_output_dir)
        self.model = _open(folder, folds=use_folds, checkpoint=_checkpoint(checkpoint_name))
        self.dataset_json = json.loads((folder / "dataset.json").read_text())
        self.plans = json.loads((folder / "plans.json").read_text())

    def _opened(self) -> Model:
        if self.model is None:
            raise RuntimeError("call initialize_from_trained_model_folder first")
        return self.model

    def predict_from_files(
        self,
        list_of_lists_or_source_folder: _Cases,
        output_folder_or_list_of_truncated_output_files: _Outputs,
        save_probabilities: bool = False,
        overwrite: bool = True,
        num_processes_preprocessing: int = 1,
        num_processes_segmentation_export: int = 1,
        folder_with_segs_from_prev_stage: str | os.PathLike[str] | None = None,
        num_parts: int = 1,
        part_id: int = 0,
    ) -> list[Any] | None:
        """Predicts cases of files.

        Args:
            list_of_lists_or_source_folder: the files of each case, one for each channel; or a
                folder with ``CASE_0000.nii.gz`` and so on, of the dataset's file ending.
            output_folder_or_list_of_truncated_output_files: a folder, in which each case becomes
                ``CASE.nii.gz``; a list of names without ending; or ``None``, with which arrays are
                returned.
            save_probabilities: writes ``CASE.npz`` with ``probabilities`` (C, D, H, W), and
                ``CASE.pkl``, as ``nnUNetv2_ensemble`` reads them.
            overwrite: ``False`` leaves cases alone that were predicted.
            num_processes_preprocessing: 0 reads a scan when the one before is done; from 1 on the
                next scan is read meanwhile, by a thread.
            num_processes_segmentation_export: of no account.
            folder_with_segs_from_prev_stage: for cascades, which organum does not run.
            num_parts: into how many parts the cases are divided.
            part_id: the part that is predicted, from 0 on.

        Returns:
            As nnU-Net: a ``None`` for each case that was written; else the labels (D, H, W) in the
            files' axes, uint8 or uint16, with the probabilities in a tuple if they are saved.
            ``None`` if there was nothing to do.

        Raises:
            ScanError, PlanError, ..: of the first case that fails; cases before it are written.
        """
        model = self._opened()
        if folder_with_segs_from_prev_stage is not None:
            raise _refused("folder_with_segs_from_prev_stage", "organum does not run cascades")
        if not 0 <= part_id < max(num_parts, 1):
            raise _refused("part_id", f"{part_id} is not from 0 to below num_parts = {num_parts}")
        ending: str = self.dataset_json["file_ending"]
        if isinstance(list_of_lists_or_source_folder, (str, os.PathLike)):
            todo = cases(list_of_lists_or_source_folder, ending)
        else:
            todo = [[os.fspath(f) for f in files] for files in list_of_lists_or_source_folder]
        todo = todo[part_id::num_parts]
        outputs = self._outputs(
            todo, output_folder_or_list_of_truncated_output_files, ending, num_parts, part_id
        )
        told = output_folder_or_list_of_truncated_output_files
        arguments = {
            "list_of_lists_or_source_folder": list_of_lists_or_source_folder,
            "output_folder_or_list_of_truncated_output_files": told,
            "save_probabilities": save_probabilities,
            "overwrite": overwrite,
            "num_processes_preprocessing": num_processes_preprocessing,
            "num_processes_segmentation_export": num_processes_segmentation_export,
            "folder_with_segs_from_prev_stage": None,
            "num_parts": num_parts,
            "part_id": part_id,
        }
        self._describe(told, arguments)
        pairs = [
            (files, output)
            for files, output in zip(todo, outputs, strict=True)
            if overwrite or not _is_there(output, ending, save_probabilities)
        ]
        if not pairs:
            return None
        results: list[Any] = []
        with ThreadPoolExecutor(1) as pool:
            ahead = num_processes_preprocessing > 0
            following: Future[Scan] | None = None
            for at, (files, output) in enumerate(pairs):
                scan = following.result() if following else read(files)
                following = (
                    pool.submit(read, pairs[at + 1][0]) if ahead and at + 1 < len(pairs) else None
                )
                try:
                    results.append(self._predict(model, scan, output, ending, save_probabilities))
                except Error as e:
                    if following:
                        following.cancel()
                    e.args = (f"{files[0]}: {e}",)
                    raise
        return results

    def predict_from_files_sequential(
        self,
        list_of_lists_or_source_folder: _Cases,
        output_folder_or_list_of_truncated_output_files: _Outputs,
        save_probabilities: bool = False,
        overwrite: bool = True,
        folder_with_segs_from_prev_stage: str | os.PathLike[str] | None = None,
    ) -> list[Any] | None:
        """:meth:`predict_from_files` without a thread that reads ahead."""
        return self.predict_from_files(
            list_of_lists_or_source_folder,
            output_folder_or_list_of_truncated_output_files,
            save_probabilities,
            overwrite,
            num_processes_preprocessing=0,
            folder_with_segs_from_prev_stage=folder_with_segs_from_prev_stage,
        )

    def predict_single_npy_array(
        self,
        input_image: NDArray[Any],
        image_properties: dict[str, Any],
        segmentation_previous_stage: NDArray[Any] | None = None,
        output_file_truncated: str | os.PathLike[str] | None = None,
        save_or_return_probabilities: bool = False,
    ) -> Any:
        """Predicts an array.

        Args:
            input_image: (C, D, H, W), as nnU-Net's readers give it: a file's axes k, j, i.
            image_properties: with ``spacing``, three numbers in mm along D, H, W.
            segmentation_previous_stage: for cascades, which organum does not run.
            output_file_truncated: a file's name without ending, or ``None``, with which the labels
                are returned.
            save_or_return_probabilities: writes or returns probabilities, too.

        Returns:
            The labels (D, H, W), with the probabilities (C, D, H, W) in a tuple if they are asked
            for; ``None`` if they were written.
        """
        if segmentation_previous_stage is not None:
            raise _refused("segmentation_previous_stage", "organum does not run cascades")
        spacing = [float(s) for s in image_properties["spacing"]]
        # an array lies as the model wants it, whatever that is
        axes = self._opened().card["input"].get("axes") or "SPL"
        scan = Scan(_scan_of(np.asarray(input_image), spacing, axes))
        ending: str = self.dataset_json.get("file_ending", ".nii.gz")
        output = None if output_file_truncated is None else os.fspath(output_file_truncated)
        return self._predict(self._opened(), scan, output, ending, save_or_return_probabilities)

    def predict_from_list_of_npy_arrays(
        self,
        image_or_list_of_images: NDArray[Any] | Sequence[NDArray[Any]],
        segs_from_prev_stage_or_list_of_segs_from_prev_stage: Any,
        properties_or_list_of_properties: dict[str, Any] | Sequence[dict[str, Any]],
        truncated_ofname: str | Sequence[str] | None,
        num_processes: int = 3,
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = 1,
    ) -> list[Any]:
        """:meth:`predict_single_npy_array` of each of some arrays; ``num_processes`` are of no
        account."""
        images = image_or_list_of_images
        listed: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        told = properties_or_list_of_properties
        properties = [told] * len(listed) if isinstance(told, dict) else list(told)
        outputs: list[str | None]
        if truncated_ofname is None:
            outputs = [None] * len(listed)
        else:
            outputs = (
                [truncated_ofname] if isinstance(truncated_ofname, str) else list(truncated_ofname)
            )
        earlier = segs_from_prev_stage_or_list_of_segs_from_prev_stage
        segs = list(earlier) if isinstance(earlier, (list, tuple)) else [earlier] * len(listed)
        return [
            self.predict_single_npy_array(image, prop, seg, output, save_probabilities)
            for image, prop, seg, output in zip(listed, properties, segs, outputs, strict=True)
        ]

    def _outputs(
        self, todo: list[list[str]], told: _Outputs, ending: str, num_parts: int, part_id: int
    ) -> Sequence[str | None]:
        if told is None:
            return [None] * len(todo)
        if isinstance(told, (str, os.PathLike)):
            crop = len(ending) + 5
            return [os.path.join(told, os.path.basename(files[0])[:-crop]) for files in todo]
        outputs = [os.fspath(name) for name in told][part_id::num_parts]
        if len(outputs) != len(todo):
            raise _refused(
                "output_folder_or_list_of_truncated_output_files",
                f"{len(outputs)} names for {len(todo)} cases",
            )
        return outputs

    def _describe(self, told: _Outputs, arguments: dict[str, Any]) -> None:
        """Writes what nnU-Net writes beside predictions."""
        if isinstance(told, (str, os.PathLike)):
            folder = Path(told)
        elif told:
            folder = Path(told[0]).parent
        else:
            return
        folder.mkdir(parents=True, exist_ok=True)
        plain = json.loads(json.dumps(arguments, default=os.fspath))
        _write_json(folder / "predict_from_raw_data_args.json", plain)
        _write_json(folder / "dataset.json", self.dataset_json)
        _write_json(folder / "plans.json", self.plans)

    def _predict(
        self, model: Model, scan: Scan, output: str | None, ending: str, probabilities: bool
    ) -> Any:
        found = model.segmentation(
            scan,
            memory=self.memory,
            host_memory=self.host_memory,
            device=_device(self.device),
            progress=True if self.allow_tqdm and _has_tqdm() else None,
            step_size=self.tile_step_size,
            mirror=self.use_mirroring,
            probabilities=probabilities,
        )
        if output is None:
            return (found.array, found.probabilities) if probabilities else found.array
        if probabilities:
            maps = np.asarray(found.probabilities)
            _whole(output + ".npz", lambda file: np.savez_compressed(file, probabilities=maps))
            _whole(output + ".pkl", lambda file: pickle.dump(_properties(scan, self.plans), file))
        found.save(output + ending)
        return None


def _scan_of(array: NDArray[Any], spacing: list[float], axes: str) -> _native.Scan:
    if array.ndim != 4 or len(spacing) != 3:
        raise ValueError(
            f"an array of shape {array.shape} with spacing {spacing} is not (C, D, H, W) with three"
        )
    return _native.Scan.of_axes(np.ascontiguousarray(array, dtype=np.float32), spacing, axes)


def _checkpoint(name: str) -> str:
    """organum's name of a checkpoint, which stands for that with the ending .safetensors, too."""
    match = re.fullmatch(r"checkpoint_(\w+)\.pth", name)
    return match[1] if match else name


def _has_tqdm() -> bool:
    try:
        import tqdm.auto  # noqa: F401
    except ImportError:
        return False
    return True


def _is_there(output: str | None, ending: str, probabilities: bool) -> bool:
    if output is None:
        return False
    endings = [ending, ".npz"] if probabilities else [ending]
    return all(os.path.isfile(output + e) for e in endings)


def _properties(scan: Scan, plans: dict[str, Any]) -> dict[str, Any]:
    """What nnU-Net keeps of a case: the file's geometry as SimpleITK has it, and the box that is
    not 0."""
    steps = scan.affine[:3].copy()
    steps[:2] *= -1
    spacing = np.linalg.norm(steps[:, :3], axis=0)
    order = plans.get("transpose_forward", [0, 1, 2])
    voxels = scan.array().transpose([0, *(a + 1 for a in order)])
    filled = (voxels != 0).any(axis=0)
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        there = np.flatnonzero(filled.any(axis=others))
        box.append([int(there[0]), int(there[-1]) + 1] if len(there) else [0, filled.shape[axis]])
    return {
        "sitk_stuff": {
            "spacing": tuple(spacing.tolist()),
            "origin": tuple(steps[:, 3].tolist()),
            "direction": tuple((steps[:, :3] / spacing).ravel().tolist()),
        },
        "spacing": list(scan.spacing),
        "shape_before_cropping": filled.shape,
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": tuple(b - a for a, b in box),
    }


def predict_from_files(
    list_of_lists_or_source_folder: _Cases,
    output_folder_or_list_of_truncated_output_files: _Outputs,
    model_training_output_dir: str | os.PathLike[str],
    use_folds: Iterable[int | str] | int | str | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
    *,
    save_probabilities: bool = False,
    overwrite: bool = True,
    num_processes_preprocessing: int = 1,
    num_processes_segmentation_export: int = 1,
    folder_with_segs_from_prev_stage: str | os.PathLike[str] | None = None,
    num_parts: int = 1,
    part_id: int = 0,
    **predictor: Any,
) -> list[Any] | None:
    """Predicts cases of files with a trained model.

    Args are those of :meth:`nnUNetPredictor.predict_from_files`,
    :meth:`nnUNetPredictor.initialize_from_trained_model_folder` and :class:`nnUNetPredictor`.
    """
    made = nnUNetPredictor(**predictor)
    made.initialize_from_trained_model_folder(model_training_output_dir, use_folds, checkpoint_name)
    return made.predict_from_files(
        list_of_lists_or_source_folder,
        output_folder_or_list_of_truncated_output_files,
        save_probabilities,
        overwrite,
        num_processes_preprocessing,
        num_processes_segmentation_export,
        folder_with_segs_from_prev_stage,
        num_parts,
        part_id,
    )
