"""Images of other libraries as scans, and labels as images of theirs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native

#: Makes an image of labels ``[D][H][W]``, or ``[C][D][H][W]``; the affine is that of their grid
#: where it is not the image's, else ``None``.
Wrap = Callable[[NDArray[Any], "NDArray[np.float64] | None"], Any]


class Scan:
    """A scan that was read once: voxels of shape (C, D, H, W), float32, with their grid.

    A file's voxels (i fastest) are (k, j, i) here, as SimpleITK's arrays are.
    """

    def __init__(self, native: _native.Scan) -> None:
        self._native = native

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels C and voxels along D, H, W."""
        return self._native.shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The distances between voxels along D, H, W in mm."""
        d, h, w = self._native.spacing
        return d, h, w

    @property
    def axes(self) -> str:
        """The patient directions in which D, H, W increase: ``"SAR"`` is superior, anterior,
        right."""
        return self._native.axes

    @property
    def affine(self) -> NDArray[np.float64]:
        """The (4, 4) map from indices along W, H, D to mm to the right, front and head: nibabel's
        affine of the file."""
        return _affine(self._native)

    @property
    def warnings(self) -> list[str]:
        """Where the file contradicts itself, and how it was read."""
        return self._native.warnings

    def array(self) -> NDArray[np.float32]:
        """A copy of the voxels, (C, D, H, W)."""
        return self._native.array()

    def __repr__(self) -> str:
        c, d, h, w = self.shape
        mm = " x ".join(f"{s:g}" for s in self.spacing)
        return f"<organum.Scan of {c} x {d} x {h} x {w} voxels, {mm} mm along {self.axes}>"


def read(path: Any, *, series: str | None = None) -> Scan:
    """Reads a scan: NIfTI, NRRD, MetaImage, MGH, or a DICOM folder, file or zip archive.

    Args:
        path: a file or folder, or a list of files: one for each channel, or those of a DICOM
            series.
        series: the UID of the DICOM series to read, where there are several.

    Raises:
        ScanError: it is missing, damaged, or of a sort that is not read.
    """
    paths = list(path) if isinstance(path, (list, tuple)) else [path]
    return Scan(_native.Scan.read(paths, series))


def _affine(native: _native.Scan | _native.Segmentation) -> NDArray[np.float64]:
    return np.array([*native.affine, [0.0, 0.0, 0.0, 1.0]])


def _floats(array: Any) -> NDArray[np.float32]:
    """Voxels in C order as float32; a copy only where they are not already."""
    return np.ascontiguousarray(array, dtype=np.float32)


def _channels_first(array: NDArray[Any]) -> NDArray[Any]:
    """(W, H[, D][, C]) as (C, D, H, W)."""
    turned = array.T
    if turned.ndim == 2:
        return turned[None, None]
    return turned[None] if turned.ndim == 3 else turned


def _is(image: Any, library: str) -> bool:
    """Whether a class of the image comes from a library, which need not be there."""
    return any(c.__module__.partition(".")[0] == library for c in type(image).__mro__)


def _nibabel(image: Any) -> tuple[_native.Scan, Wrap]:
    import nibabel

    array = np.asanyarray(image.dataobj)
    if array.ndim < 2 or array.ndim > 4:
        raise ValueError(
            f"an image of shape {array.shape} is not 2D or 3D, with channels or without"
        )
    voxels = _floats(_channels_first(array))
    header = b""
    if isinstance(image, nibabel.Nifti1Pair):
        # made anew, the header has shape and affine as they would be saved
        header = type(image)(array, image.affine, image.header).header.binaryblock
    if len(header) == 348:
        scan = _native.Scan.of_nifti(header, voxels)
    else:
        # NIfTI-2, or another format
        scan = _native.Scan.of_affine(voxels, image.affine[:3], array.ndim == 2)

    def wrap(labels: NDArray[Any], affine: NDArray[np.float64] | None) -> Any:
        turned = labels.T
        if affine is None and array.ndim == 2:
            turned = turned[:, :, 0]
        if not isinstance(image, nibabel.Nifti1Pair):
            return nibabel.Nifti1Image(turned, image.affine if affine is None else affine)
        if affine is not None:
            return nibabel.Nifti1Image(turned, affine)
        header = image.header.copy()
        header.set_data_dtype(labels.dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        return type(image)(turned, image.affine, header)

    return scan, wrap


def _simpleitk(image: Any) -> tuple[_native.Scan, Wrap]:
    import SimpleITK

    dimension = image.GetDimension()
    array = SimpleITK.GetArrayViewFromImage(image)
    if dimension not in (2, 3):
        raise ValueError(f"an image of {dimension} dimensions is not 2D or 3D")
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    else:
        array = array[None]
    if dimension == 2:
        array = array[:, None]
    matrix = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)
    matrix[:dimension, :dimension] = direction * np.array(image.GetSpacing())
    matrix[:dimension, 3] = image.GetOrigin()
    # to the left and the back in ITK, to the right and the front here
    matrix[:2] *= -1
    scan = _native.Scan.of_affine(_floats(array), matrix[:3], dimension == 2)

    def wrap(labels: NDArray[Any], affine: NDArray[np.float64] | None) -> Any:
        vector = labels.ndim == 4
        stored = np.moveaxis(labels, 0, -1) if vector else labels
        if affine is None:
            if dimension == 2:
                stored = stored[0]
            made = SimpleITK.GetImageFromArray(stored, isVector=vector)
            made.CopyInformation(image)
            return made
        made = SimpleITK.GetImageFromArray(stored, isVector=vector)
        steps = affine[:3].copy()
        steps[:2] *= -1
        spacing = np.linalg.norm(steps[:, :3], axis=0)
        made.SetSpacing(spacing.tolist())
        made.SetDirection((steps[:, :3] / spacing).ravel().tolist())
        made.SetOrigin(steps[:, 3].tolist())
        return made

    return scan, wrap


def to_scan(
    image: Any,
    spacing: Sequence[float] | None,
    axes: str | None,
    affine: Any,
) -> tuple[_native.Scan, Wrap]:
    """A scan of whatever is an image, and what makes labels an image of the same kind."""
    told = spacing is not None or axes is not None or affine is not None
    if isinstance(image, (str, os.PathLike, list, tuple, Scan)):
        if told:
            raise TypeError("spacing, axes and affine are for arrays; files say them themselves")
        scan = image if isinstance(image, Scan) else read(image)
        return scan._native, lambda labels, _: labels
    if _is(image, "nibabel") or _is(image, "SimpleITK"):
        if told:
            raise TypeError("spacing, axes and affine are for arrays; images say them themselves")
        return _nibabel(image) if _is(image, "nibabel") else _simpleitk(image)
    return _array(array_of(image), spacing, axes, affine)


def array_of(values: Any) -> NDArray[Any]:
    """An array of whatever has one, by DLPack without a copy where it lies in the host's memory."""
    if not isinstance(values, np.ndarray) and hasattr(values, "__dlpack__"):
        return np.from_dlpack(values)
    return np.asanyarray(values)


def _array(
    array: NDArray[Any],
    spacing: Sequence[float] | None,
    axes: str | None,
    affine: Any,
) -> tuple[_native.Scan, Wrap]:
    if affine is not None:
        if spacing is not None or axes is not None:
            raise TypeError("give either affine, or spacing and axes")
        matrix = np.asarray(affine, dtype=np.float64)
        if matrix.shape != (4, 4):
            raise ValueError(f"an affine of shape {matrix.shape} is not (4, 4)")
        if array.ndim not in (3, 4):
            raise ValueError(
                f"an array of shape {array.shape} is neither (i, j, k) nor (i, j, k, C)"
            )
        scan = _native.Scan.of_affine(_floats(_channels_first(array)), matrix[:3], False)
        return scan, lambda labels, _: labels.T
    if spacing is None or axes is None:
        raise TypeError(
            "an array does not say where its voxels lie: give affine=, of an array (i, j, k) as "
            "nibabel has it, or spacing= in mm and axes= (such as 'SAR'), of an array (D, H, W)"
        )
    if array.ndim not in (3, 4):
        raise ValueError(f"an array of shape {array.shape} is neither (D, H, W) nor (C, D, H, W)")
    voxels = _floats(array if array.ndim == 4 else array[None])
    return _native.Scan.of_axes(voxels, list(spacing), axes), lambda labels, _: labels
