"""Models and segmentations."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from . import _native
from ._errors import ScanWarning
from ._images import Wrap, _affine, _floats, array_of, to_scan

Size = int | str
Mode = Literal["whole", "window", "slices"]
Precision = Literal["float32", "float16"]
_Call = Callable[[int, int], object]


class LabelVolume(TypedDict):
    """The size of a label."""

    #: The label in the voxels.
    label: int
    voxels: int
    #: The volume in millilitres.
    ml: float


def open(
    path: str | os.PathLike[str],
    *,
    folds: Iterable[int | str] | int | str | None = None,
    checkpoint: str | None = None,
    weights: str | None = None,
    allow_non_finite: bool = False,
    device: str | None = None,
) -> Model:
    """Opens whatever is a model. No code of a file is run.

    Args:
        path: a model file, a PyTorch checkpoint, an nnU-Net folder or a MONAI bundle.
        folds: the folds to take of an nnU-Net folder, averaged; ``None`` for those that there are.
        checkpoint: the checkpoint of each fold: ``"final"``, ``"best"``, ``"latest"``, or a file's
            name.
        weights: the key of a checkpoint that holds several networks, such as ``"ema"``.
        allow_non_finite: takes weights that are NaN or infinite as they are.
        device: where the model runs if a call does not say: an index or part of a name of
            :func:`organum.devices`, ``"gpu"``, ``"cpu"``, ``"reference"``; ``None`` for a hardware
            GPU if there is one, else the host. It is opened when it is first used.

    Raises:
        LoadError: there is no model, it is damaged, or it asks for what this version does not do.
    """
    if folds is None:
        folds = []
    elif isinstance(folds, (int, str)):
        folds = [folds]
    native = _native.Model.open(
        path, [str(fold) for fold in folds], checkpoint, weights, allow_non_finite
    )
    return Model(native, device)


def devices() -> list[dict[str, Any]]:
    """The adapters of this machine, then the host: name, backend, kind, driver, caps."""
    found: list[dict[str, Any]] = json.loads(_native.devices())
    return found


class Segmentation:
    """A segmented scan.

    Attributes:
        labels: the label of each voxel, an image of the kind of the scan: the array, nibabel or
            SimpleITK image that was given has one like it; of files and :class:`organum.Scan` it is
            ``array``.
        array: the labels of shape (D, H, W), uint8, or uint16 if the model has labels above 255. Of
            labels that may overlap a mask of each, (C, D, H, W). A file's voxels (i fastest) are
            (k, j, i).
        probabilities: of all classes, (C, D, H, W), float32, from 0 to 1; ``None`` unless asked
            for.
        affine: the (4, 4) map from indices along W, H, D to mm to the right, front and head.
        keeps_grid: whether labels lie on the scan's grid. They do, but for MONAI bundles that
            invert nothing.
        volumes: label, voxels and millilitres of each class but the background, by its name.
        warnings: what is to be known of scan, model and labels.
        report: plan, bytes and seconds, with the keys of the command line's JSON.
    """

    labels: Any
    array: NDArray[Any]
    probabilities: NDArray[np.float32] | None

    def __init__(self, native: _native.Segmentation, wrap: Wrap) -> None:
        self._native = native
        labels = native.labels
        self.array = labels[0] if labels.shape[0] == 1 else labels
        self.probabilities = native.probabilities
        self.affine = _affine(native)
        self.keeps_grid = native.keeps_grid
        self.labels = wrap(self.array, None if native.keeps_grid else self.affine)
        self.volumes: dict[str, LabelVolume] = {
            name: {"label": label, "voxels": voxels, "ml": ml}
            for label, name, voxels, ml in native.volumes
        }
        self.warnings = native.warnings
        self.report: dict[str, Any] = json.loads(native.report)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the labels, with names and colours, in the format of the name: ``.nii``,
        ``.nii.gz``, ``.nrrd``, ``.seg.nrrd``, ``.mha``; ``.dcm`` for scans read from DICOM. The
        file appears whole or not at all.

        Raises:
            ScanError: the name has another ending, or the file cannot be written.
        """
        self._native.save(path, np.ascontiguousarray(self._native.labels, dtype=np.uint16))

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {v['ml']:.3g} ml" for name, v in list(self.volumes.items())[:6])
        return f"<organum.Segmentation {'x'.join(map(str, self.array.shape))}: {found}>"


@contextmanager
def _shown(progress: Any) -> Iterator[_Call | None]:
    """What is called with operations done and operations of the whole run."""
    if progress is None or progress is False:
        yield None
        return
    if progress is True:
        import tqdm.auto

        progress = tqdm.auto.tqdm
    if not hasattr(progress, "update"):
        if not callable(progress):
            raise TypeError(
                f"progress is {progress!r}: give tqdm, a bar of it, or a function (done, total)"
            )
        yield progress
        return
    own = isinstance(progress, type)
    bar = progress(unit="FLOP", unit_scale=True) if own else progress

    def show(done: int, total: int) -> None:
        if bar.total != total:
            bar.total = total
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if own:
            bar.close()


def _size(size: Size | None) -> int | None:
    if isinstance(size, str):
        return _native.parse_bytes(size)
    return None if size is None else int(size)


class Model:
    """A model, from :func:`organum.open`.

    Calls release the interpreter's lock. Calls of several threads wait for each other. The session
    of the last scan stays open, so that the next one of the same extent is neither planned nor
    compiled again; :meth:`close`, or leaving a ``with`` block, gives its memory back.
    """

    def __init__(self, native: _native.Model, device: str | None) -> None:
        self._native = native
        self._device = device
        self.card: dict[str, Any] = json.loads(native.card)
        #: Names of the labels by their number, without the background.
        self.labels: dict[int, str] = dict(native.labels)
        #: Spatial dimensions, 2 or 3; channels of the input; classes, background included.
        self.dims, self.channels, self.classes = native.facts
        #: The folds of an nnU-Net model that are averaged.
        self.folds = native.folds
        #: What results lack of the reference implementation's, and what is assumed.
        self.warnings = native.warnings

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<organum.Model {self.card['architecture']}: {', '.join(self.labels.values())}>"

    def close(self) -> None:
        """Gives back the device, and its memory that is kept for the next scan. The model can be
        used again."""
        self._native.close()

    def _asked(
        self,
        memory: Size | None = None,
        device: str | None = None,
        precision: str = "float32",
        **more: Any,
    ) -> dict[str, Any]:
        precisions = {"float32": False, "f32": False, "float16": True, "f16": True}
        if precision not in precisions:
            raise ValueError(f"precision {precision!r} is neither float32 nor float16")
        asked: dict[str, Any] = dict.fromkeys(
            ["mode", "overlap", "step_size", "host_memory", "host_spill"]
        )
        asked.update(mirror=True, probabilities=False, raw=False)
        asked.update(
            memory=_size(memory), device=device or self._device, half=precisions[precision], **more
        )
        return asked

    def segment(self, image: Any, **options: Any) -> Any:
        """Segments a scan and gives the labels on its grid, an image of its kind.

        Arguments are those of :meth:`segmentation`, whose ``labels`` this is.
        """
        return self.segmentation(image, **options).labels

    def segmentation(
        self,
        image: Any,
        *,
        memory: Size | None = None,
        device: str | None = None,
        progress: Any = None,
        spacing: Sequence[float] | None = None,
        axes: str | None = None,
        affine: Any = None,
        probabilities: bool = False,
        precision: Precision = "float32",
        mode: Mode | None = None,
        overlap: float | None = None,
        step_size: float | None = None,
        mirror: bool = True,
        raw: bool = False,
        host_memory: Size | None = None,
        host_spill: str | os.PathLike[str] | None = None,
    ) -> Segmentation:
        """Segments a scan.

        Args:
            image: a nibabel or SimpleITK image; a path, or a list of paths of channels; a
                :class:`organum.Scan`; or an array, of numpy or anything with DLPack in the host's
                memory. An array is of shape (i, j, k) or (i, j, k, C) with ``affine``, as nibabel
                has it, or (D, H, W) or (C, D, H, W) with ``spacing`` and ``axes``.
            memory: the most bytes on the device, such as ``"2GiB"``. Labels have the same bits for
                every budget.
            device: as for :func:`organum.open`; ``None`` for that of the model.
            progress: ``tqdm``, or another class or bar like it; ``True`` for tqdm; or a function
                called with operations done and operations of the run. What it raises stops the run.
            spacing: the distances between voxels along D, H, W in mm.
            axes: the patient directions in which D, H, W increase, such as ``"SAR"``: one each of R
                or L, A or P, S or I.
            affine: the (4, 4) map from (i, j, k) to mm to the right, front and head.
            probabilities: returns those of all classes, too.
            precision: the type of activations and weights on the device.
            mode: ``"whole"``, ``"window"`` or ``"slices"``; ``None`` as the model's card has it.
            overlap: the share of a window that its neighbour overlaps, from 0 to below 1.
            step_size: the distance of windows as a share of one, in place of ``overlap``.
            mirror: ``False`` leaves out mirror images of windows.
            raw: gives voxels to a model that does not say how scans are prepared as they are.
            host_memory: the most bytes of host memory.
            host_spill: the folder for what does not fit ``host_memory``.

        Raises:
            OptionError, LoadError, ScanError, PlanError, DeviceError, RunError: each with its kind.
            KeyboardInterrupt: at Ctrl-C. The model can be used again.
        """
        asked = self._asked(
            memory,
            device,
            precision,
            probabilities=probabilities,
            mode=mode,
            overlap=overlap,
            step_size=step_size,
            mirror=mirror,
            raw=raw,
            host_memory=_size(host_memory),
            host_spill=host_spill,
        )
        scan, wrap = to_scan(image, spacing, axes, affine)
        told = self._native.check(scan, asked)
        for text in told:
            warnings.warn(text, ScanWarning, stacklevel=2)
        with _shown(progress) as call:
            found = Segmentation(self._native.segment(scan, asked, call), wrap)
        for text in found.warnings[len(told) :]:
            warnings.warn(text, ScanWarning, stacklevel=2)
        return found

    def infer(
        self,
        array: Any,
        *,
        memory: Size | None = None,
        device: str | None = None,
        precision: Precision = "float32",
        position: Sequence[int] | None = None,
        progress: Any = None,
    ) -> NDArray[np.float32]:
        """Runs the network alone, that of the first fold, on prepared voxels.

        Args:
            array: (C, D, H, W), or (C, H, W) for 2D networks, with a batch axis of 1 before it or
                without. A float32 array in C order is read where it lies, as is what gives one by
                DLPack; do not write to it meanwhile.
            memory: the most bytes on the device.
            device: as for :func:`organum.open`.
            precision: the type of activations and weights on the device.
            position: the centre of the crop less that of the volume in voxels (D, H, W), for
                networks with volume tokens.
            progress: as for :meth:`segmentation`.

        Returns:
            The logits, float32, of the array's shape with classes in place of channels.
        """
        values = array_of(array)
        axes = self.dims + 1
        batch = values.ndim == axes + 1 and values.shape[0] == 1
        if values.ndim != axes and not batch:
            wanted = "(C, H, W)" if self.dims == 2 else "(C, D, H, W)"
            raise ValueError(f"an array of shape {values.shape} is not {wanted}")
        shape = values.shape[-axes:]
        planes = shape if self.dims == 3 else (shape[0], 1, *shape[1:])
        asked = self._asked(memory, device, precision)
        with _shown(progress) as call:
            logits = self._native.infer(_floats(values).reshape(planes), asked, position, call)
        return logits.reshape((*values.shape[: values.ndim - axes], self.classes, *shape[1:]))

    def plan(
        self,
        image: Any,
        *,
        memory: Size | None = None,
        precision: Precision = "float32",
        mode: Mode | None = None,
        caps: Literal["default", "desktop", "host"] = "default",
        spacing: Sequence[float] | None = None,
        axes: str | None = None,
        affine: Any = None,
    ) -> dict[str, Any]:
        """Plans a run without a device.

        Args:
            image: the extent (D, H, W) of a scan as the network is given it, three whole numbers;
                or an image as for :meth:`segmentation`, which is prepared.
            memory: the most bytes on the device.
            precision: the type of activations and weights on the device.
            mode: as for :meth:`segmentation`.
            caps: the limits of the device: those that every WebGPU device has, of a desktop GPU, or
                of the host.
            spacing, axes, affine: as for :meth:`segmentation`.

        Returns:
            The keys of ``organum plan --json``: ``peak_bytes``, ``smallest_budget``, ``flops`` and
            others, of one window where the model runs in windows, then with ``windows``.

        Raises:
            PlanError: it does not fit; ``smallest_budget`` names what does.
        """
        asked = self._asked(memory, None, precision, mode=mode)
        if (
            isinstance(image, (list, tuple))
            and len(image) == 3
            and all(_is_whole(n) for n in image)
        ):
            extent = [int(n) for n in image]
        else:
            extent = self._native.extent(to_scan(image, spacing, axes, affine)[0], asked)
        planned: dict[str, Any] = json.loads(self._native.plan(extent, asked, caps))
        return planned


def _is_whole(n: object) -> bool:
    return isinstance(n, (int, np.integer))
