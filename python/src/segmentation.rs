//! A segmented scan.

use std::path::PathBuf;

use numpy::{IntoPyArray, PyArray4, PyArrayMethods, PyReadonlyArray4, PyUntypedArrayMethods};
use organum::segment::SegmentReport;
use organum::volume::{Legend, Volume, file, nifti};
use organum::{Device, SegmentError, Segmentation as Found};
use pyo3::prelude::*;
use serde_json::{Value, json};

use crate::errors::OrRaise;
use crate::scan::{Matrix, Scan, matrix, shape};

/// A segmented scan: labels with their grid, volumes, probabilities.
#[pyclass(frozen, module = "organum._native")]
pub(crate) struct Segmentation {
    scan: Py<Scan>,
    labels: Py<PyAny>,
    probabilities: Option<Py<PyArray4<f32>>>,
    /// The grid of the labels, without voxels.
    grid: Volume<u16>,
    keeps_grid: bool,
    volumes: Vec<(u32, String, u64, f64)>,
    legend: Legend,
    warnings: Vec<String>,
    report: Value,
}

/// Results of a run, without the interpreter.
pub(crate) struct Done {
    pub(crate) found: Found,
    pub(crate) probabilities: Option<Volume<f32>>,
    pub(crate) keeps_grid: bool,
    pub(crate) device: Device,
    /// True if the model has labels above 255.
    pub(crate) wide: bool,
}

/// Time and memory of a run; keys are those of the command line's JSON.
fn report(device: &Device, report: &SegmentReport) -> Value {
    let run = &report.run;
    let mut told = json!({
        "plan": run.plan,
        "device": device.name(),
        "backend": device.backend(),
        "allocated_bytes": run.allocated_bytes,
        "seconds": {
            "plan": run.planning.as_secs_f64(),
            "compile": run.opening.as_secs_f64(),
            "run": run.running.as_secs_f64(),
        },
        "host_memory": report.host_memory,
    });
    if let Some(w) = report.windows {
        told["windows"] = json!({"count": w.count, "passes": w.passes, "extent": w.extent.axes()});
    }
    if let Some((count, extent)) = report.slices {
        told["slices"] = json!({"count": count, "extent": extent});
    }
    if let Some(folds) = &report.folds {
        told["folds"] = json!(folds);
    }
    told
}

impl Segmentation {
    pub(crate) fn new(py: Python<'_>, scan: Py<Scan>, done: Done) -> PyResult<Self> {
        let Done { found, probabilities, keeps_grid, device, wide } = done;
        let legend = found.legend();
        let report = report(&device, &found.report);
        let warnings = found.warnings.iter().map(ToString::to_string).collect();
        let volumes =
            found.volumes.into_iter().map(|v| (v.class, v.name, v.voxels, v.ml)).collect();
        let mut grid = found.labels;
        let data = std::mem::take(&mut grid.data);
        let [d, h, w] = grid.extent.axes().map(|n| n as usize);
        let shape = [grid.channels as usize, d, h, w];
        let labels = if wide {
            data.into_pyarray(py).reshape(shape)?.into_any()
        } else {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the model has no labels above 255"
            )]
            let narrow: Vec<u8> = data.into_iter().map(|label| label as u8).collect();
            narrow.into_pyarray(py).reshape(shape)?.into_any()
        };
        let maps = |maps: Volume<f32>| {
            let [d, h, w] = maps.extent.axes().map(|n| n as usize);
            let array = maps.data.into_pyarray(py).reshape([maps.channels as usize, d, h, w])?;
            Ok::<_, PyErr>(array.unbind())
        };
        let probabilities = probabilities.map(maps).transpose()?;
        Ok(Self {
            scan,
            labels: labels.unbind(),
            probabilities,
            grid,
            keeps_grid,
            volumes,
            legend,
            warnings,
            report,
        })
    }
}

#[pymethods]
impl Segmentation {
    /// The labels `[C][D][H][W]`: one channel, or a mask for each of labels that may overlap.
    #[getter]
    fn labels(&self, py: Python<'_>) -> Py<PyAny> {
        self.labels.clone_ref(py)
    }

    /// Probabilities of all classes `[C][D][H][W]`, if they were asked for.
    #[getter]
    fn probabilities(&self, py: Python<'_>) -> Option<Py<PyArray4<f32>>> {
        self.probabilities.as_ref().map(|maps| maps.clone_ref(py))
    }

    /// True if the labels lie on the scan's grid.
    #[getter]
    fn keeps_grid(&self) -> bool {
        self.keeps_grid
    }

    /// The rows of the affine of the labels' indices along W, H, D.
    #[getter]
    fn affine(&self) -> Matrix {
        matrix(self.grid.affine())
    }

    /// Number, name, voxels and millilitres of every class but the background.
    #[getter]
    fn volumes(&self) -> Vec<(u32, String, u64, f64)> {
        self.volumes.clone()
    }

    /// All that is to be known of the scan, the model and the labels.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// Plan, memory and time as JSON.
    #[getter]
    fn report(&self) -> String {
        self.report.to_string()
    }

    /// Writes labels `[C][D][H][W]` of this grid in the format of the name.
    fn save(
        &self,
        py: Python<'_>,
        path: PathBuf,
        labels: PyReadonlyArray4<'_, u16>,
    ) -> PyResult<()> {
        let (channels, extent) = shape(labels.shape())?;
        let data: Vec<u16> = labels.as_array().iter().copied().collect();
        let (grid, legend, keeps) = (&self.grid, &self.legend, self.keeps_grid);
        let scan = &self.scan.get().0;
        let write = || {
            let labels = Volume::new(channels, extent, grid.spacing, grid.axes, data)?
                .with_affine(*grid.affine());
            if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("dcm")) {
                return file::write_segmentation(&path, scan, &labels, legend);
            }
            if keeps {
                return file::write_labels(&path, &scan.header, &labels, legend);
            }
            file::write_labels(&path, &nifti::header_on(&scan.header, &labels), &labels, legend)
        };
        py.detach(write).map_err(SegmentError::from).or_raise(py)
    }
}
