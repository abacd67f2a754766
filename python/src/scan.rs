//! Scans: voxels with their grid.

use std::path::PathBuf;

use numpy::{IntoPyArray, PyArray4, PyArrayMethods, PyReadonlyArray4, PyUntypedArrayMethods};
use organum::Extent;
use organum::volume::{Affine, Axes, Volume, file, nifti};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::OrRaise;

/// A scan: voxels `[C][D][H][W]` with their grid.
#[pyclass(frozen, module = "organum._native")]
pub(crate) struct Scan(pub(crate) file::Scan);

/// Columns and origin of the map from the indices of a voxel along W, H, D to mm, as nibabel has
/// it.
pub(crate) type Matrix = [[f64; 4]; 3];

/// The affine of a volume as nibabel has it.
pub(crate) fn matrix(affine: &Affine) -> Matrix {
    [0, 1, 2].map(|row| {
        [affine.steps[2][row], affine.steps[1][row], affine.steps[0][row], affine.origin[row]]
    })
}

/// Extent and channels of an array `[C][D][H][W]`.
pub(crate) fn shape(shape: &[usize]) -> PyResult<(u32, Extent)> {
    let short: Option<Vec<u32>> = shape.iter().map(|&n| u32::try_from(n).ok()).collect();
    match short.as_deref() {
        Some(&[c, d, h, w]) => Ok((c, Extent::new(d, h, w))),
        _ => Err(PyValueError::new_err(format!("an array of shape {shape:?} is not [C][D][H][W]"))),
    }
}

/// A copy of voxels in C order.
fn voxels(array: &PyReadonlyArray4<'_, f32>) -> PyResult<Vec<f32>> {
    Ok(array.as_slice().map_err(|_| PyValueError::new_err("the array is not in C order"))?.to_vec())
}

#[pymethods]
impl Scan {
    /// A scan of files: one of any format, a DICOM folder, or a file for each channel.
    #[staticmethod]
    fn read(py: Python<'_>, paths: Vec<PathBuf>, series: Option<String>) -> PyResult<Self> {
        let mut options = file::ReadOptions::default();
        options.series = series;
        py.detach(|| file::read_all(&paths, &options)).or_raise(py).map(Self)
    }

    /// A scan of voxels `[C][k][j][i]` and the 348 bytes of a NIfTI-1 header.
    #[staticmethod]
    fn of_nifti(py: Python<'_>, header: &[u8], array: PyReadonlyArray4<'_, f32>) -> PyResult<Self> {
        let data = voxels(&array)?;
        py.detach(|| nifti::scan(header, data)).or_raise(py).map(Self)
    }

    /// A scan of voxels `[C][D][H][W]` and an affine of their indices along W, H, D.
    #[staticmethod]
    fn of_affine(
        py: Python<'_>,
        array: PyReadonlyArray4<'_, f32>,
        affine: Matrix,
        planar: bool,
    ) -> PyResult<Self> {
        let (channels, extent) = shape(array.shape())?;
        let data = voxels(&array)?;
        let column = |axis: usize| affine.map(|row| row[axis]);
        let affine = Affine { steps: [column(2), column(1), column(0)], origin: column(3) };
        let made = py.detach(|| {
            file::Scan::of_volume(Volume::on_affine(channels, extent, affine, data)?, planar)
        });
        made.or_raise(py).map(Self)
    }

    /// A scan of voxels `[C][D][H][W]`, their distances in mm and their axes, three letters.
    #[staticmethod]
    fn of_axes(
        py: Python<'_>,
        array: PyReadonlyArray4<'_, f32>,
        spacing: [f64; 3],
        axes: &str,
    ) -> PyResult<Self> {
        let (channels, extent) = shape(array.shape())?;
        let data = voxels(&array)?;
        let axes: Axes = axes.parse().or_raise(py)?;
        let made = py.detach(|| {
            file::Scan::of_volume(Volume::new(channels, extent, spacing, axes, data)?, false)
        });
        made.or_raise(py).map(Self)
    }

    /// Channels, and voxels along D, H, W.
    #[getter]
    fn shape(&self) -> (u32, u32, u32, u32) {
        let [d, h, w] = self.0.image.extent.axes();
        (self.0.image.channels, d, h, w)
    }

    /// The distances between voxels along D, H, W in mm.
    #[getter]
    fn spacing(&self) -> [f64; 3] {
        self.0.image.spacing
    }

    /// The patient directions in which D, H, W increase, three letters.
    #[getter]
    fn axes(&self) -> String {
        self.0.image.axes.to_string()
    }

    /// The rows of the affine of the indices along W, H, D.
    #[getter]
    fn affine(&self) -> Matrix {
        matrix(self.0.image.affine())
    }

    /// Contradictions of the file, and how it was read.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.0.warnings.iter().map(ToString::to_string).collect()
    }

    /// A copy of the voxels `[C][D][H][W]`.
    fn array<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray4<f32>>> {
        let image = &self.0.image;
        let [d, h, w] = image.extent.axes().map(|n| n as usize);
        image.data.clone().into_pyarray(py).reshape([image.channels as usize, d, h, w])
    }
}
