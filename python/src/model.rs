//! Models: opening them, planning, segmenting scans, running the network alone.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use numpy::{IntoPyArray, PyArray4, PyArrayMethods, PyReadonlyArray4, PyUntypedArrayMethods};
use organum::model::Mode;
use organum::segment::PreparedScan;
use organum::{
    Device, DeviceCaps, Elem, EngineError, Extent, Input, LoadOptions, Networks, OutputData,
    OutputMode, Plan, PlanOptions, Runner, SegmentError, SegmentOptions, Segmenter, Windows,
};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use serde_json::json;

use crate::errors::OrRaise;
use crate::scan::{Scan, shape};
use crate::segmentation::{Done, Segmentation};
use crate::watch::{LOOK, watched};

/// Options of a run: a dict with all of these keys.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Asked {
    device: Option<String>,
    memory: Option<u64>,
    mode: Option<String>,
    overlap: Option<f64>,
    step_size: Option<f64>,
    mirror: bool,
    half: bool,
    probabilities: bool,
    raw: bool,
    host_memory: Option<u64>,
    host_spill: Option<PathBuf>,
}

impl Asked {
    fn precision(&self) -> Elem {
        if self.half { Elem::F16 } else { Elem::F32 }
    }

    fn options(&self) -> PyResult<SegmentOptions> {
        let mut options = SegmentOptions::default().with_precision(self.precision());
        options.mode = match self.mode.as_deref() {
            None => None,
            Some("whole") => Some(Mode::Whole),
            Some("window") => Some(Mode::Window),
            Some("slices") => Some(Mode::Slices),
            Some(other) => {
                return Err(PyValueError::new_err(format!(
                    "mode {other:?} is none of whole, window, slices"
                )));
            }
        };
        (options.budget, options.host_memory) = (self.memory, self.host_memory);
        options.host_spill.clone_from(&self.host_spill);
        (options.overlap, options.step) = (self.overlap, self.step_size);
        (options.unmirrored, options.probabilities) = (!self.mirror, self.probabilities);
        options.raw_voxels = self.raw;
        Ok(options)
    }
}

/// The state that one call leaves to the next.
struct State {
    networks: Networks,
    /// The device, and the name by which it was asked for.
    device: Option<(Option<String>, Device)>,
    segmenter: Option<Segmenter>,
}

impl State {
    fn device(&mut self, name: Option<&str>) -> Result<Device, EngineError> {
        if let Some((_, device)) =
            self.device.as_ref().filter(|(opened, _)| opened.as_deref() == name)
        {
            return Ok(device.clone());
        }
        // what is open gives its memory back before the next device is opened
        self.segmenter = None;
        let device = pollster::block_on(Device::request(name))?;
        self.device = Some((name.map(str::to_owned), device.clone()));
        Ok(device)
    }

    fn segmenter(
        &mut self,
        device: Option<&str>,
        options: SegmentOptions,
    ) -> Result<&mut Segmenter, SegmentError> {
        let device = self.device(device)?;
        match self.segmenter.take() {
            Some(mut segmenter) => {
                let set = segmenter.set_options(options);
                let segmenter = self.segmenter.insert(segmenter);
                set.map(|()| segmenter)
            }
            None => {
                Ok(self.segmenter.insert(Segmenter::new(self.networks.clone(), device, options)?))
            }
        }
    }
}

/// The state of a model while a call works with it; dropping it gives it back.
struct Taken<'a> {
    slot: &'a Mutex<Option<State>>,
    state: Option<State>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(state) = &mut self.state
            && std::thread::panicking()
        {
            state.segmenter = None;
        }
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = self.state.take();
    }
}

impl Taken<'_> {
    fn state(&mut self) -> PyResult<&mut State> {
        self.state.as_mut().ok_or_else(|| PyRuntimeError::new_err("the model is in use"))
    }
}

/// A model and where it runs.
#[pyclass(frozen, module = "organum._native")]
pub(crate) struct Model {
    slot: Mutex<Option<State>>,
    /// The networks again, for what needs no device. Clones share the weights.
    networks: Networks,
}

impl Model {
    /// The state, as soon as no other thread works with it.
    fn take(&self, py: Python<'_>) -> PyResult<Taken<'_>> {
        loop {
            let state = self.slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if state.is_some() {
                return Ok(Taken { slot: &self.slot, state });
            }
            py.detach(|| std::thread::sleep(LOOK / 5));
            py.check_signals()?;
        }
    }
}

#[pymethods]
impl Model {
    /// Opens a model file, a checkpoint, an nnU-Net folder or a MONAI bundle.
    #[staticmethod]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        folds: Vec<String>,
        checkpoint: Option<String>,
        weights: Option<String>,
        allow_non_finite: bool,
    ) -> PyResult<Self> {
        let mut options = LoadOptions::default();
        (options.folds, options.checkpoint, options.weights) = (folds, checkpoint, weights);
        options.allow_non_finite = allow_non_finite;
        let networks = py.detach(|| organum::open(&path, &options)).or_raise(py)?;
        let state = State { networks: networks.clone(), device: None, segmenter: None };
        Ok(Self { slot: Mutex::new(Some(state)), networks })
    }

    /// The card as JSON.
    #[getter]
    fn card(&self) -> PyResult<String> {
        serde_json::to_string(self.networks.first.card())
            .map_err(|e| PyRuntimeError::new_err(e.to_string()))
    }

    /// Names of the labels by their number.
    #[getter]
    fn labels(&self) -> Vec<(u32, String)> {
        let card = self.networks.first.card();
        if card.labels_overlap() {
            return (0..card.classes()).map(|class| (class, card.label_name(class))).collect();
        }
        card.label_values().into_iter().map(|class| (class, card.label_name(class))).collect()
    }

    /// Spatial dimensions, channels of the input, classes.
    #[getter]
    fn facts(&self) -> (u32, u32, u32) {
        let card = self.networks.first.card();
        (card.dims(), card.in_channels(), card.classes())
    }

    /// The folds of an nnU-Net model.
    #[getter]
    fn folds(&self) -> Vec<String> {
        self.networks.folds().to_vec()
    }

    /// Warnings of what the results lack of the reference implementation's.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.networks.warnings().iter().map(ToString::to_string).collect()
    }

    /// What a run over an extent needs, as JSON; no device is opened. `caps` is `default`,
    /// `desktop` or `host`. In windows where the model runs in some.
    fn plan(&self, py: Python<'_>, extent: [u32; 3], asked: Asked, caps: &str) -> PyResult<String> {
        let caps = match caps {
            "default" => DeviceCaps::default(),
            "desktop" => DeviceCaps::desktop(),
            "host" => DeviceCaps::host(),
            other => {
                return Err(PyValueError::new_err(format!(
                    "caps {other:?} are none of default, desktop, host"
                )));
            }
        };
        let mut options = PlanOptions::default().with_precision(asked.precision());
        options.budget = asked.memory;
        let (model, extent) = (&self.networks.first, Extent::from(extent));
        let mode = asked.options()?.mode.unwrap_or_else(|| model.card().mode());
        let make = || {
            let windows =
                if mode == Mode::Window { Some(Windows::new(model.card(), extent)?) } else { None };
            if windows.is_some() {
                options = options.with_output(OutputMode::Logits);
            } else {
                organum::plan::check_extent(extent, model.card())?;
            }
            let plan =
                Plan::new(model, windows.as_ref().map_or(extent, Windows::tile), &caps, &options)?;
            let mut told = json!(plan.report());
            if let Some(w) = windows {
                told["windows"] =
                    json!({"count": w.count(), "passes": w.passes(), "extent": w.tile().axes()});
            }
            Ok::<_, SegmentError>(told.to_string())
        };
        py.detach(make).or_raise(py)
    }

    /// The extent of a scan as the network takes it.
    fn extent(&self, py: Python<'_>, scan: &Bound<'_, Scan>, asked: Asked) -> PyResult<[u32; 3]> {
        let card = self.networks.first.card();
        let mode = asked.options()?.mode.unwrap_or_else(|| card.mode());
        let scan = scan.get();
        let prepared = py.detach(|| PreparedScan::new(card, &scan.0, mode)).or_raise(py)?;
        Ok(prepared.volume().extent.axes())
    }

    /// Warnings of the model and a scan.
    fn check(&self, py: Python<'_>, scan: &Bound<'_, Scan>, asked: Asked) -> PyResult<Vec<String>> {
        let options = asked.options()?;
        let mut taken = self.take(py)?;
        let state = taken.state()?;
        let scan = scan.get();
        let check = || state.segmenter(asked.device.as_deref(), options)?.check(&scan.0);
        let warnings = py.detach(check).or_raise(py)?;
        Ok(warnings.iter().map(ToString::to_string).collect())
    }

    /// Segments a scan.
    fn segment(
        &self,
        py: Python<'_>,
        scan: &Bound<'_, Scan>,
        asked: Asked,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Segmentation> {
        let options = asked.options()?;
        let mut taken = self.take(py)?;
        let state = taken.state()?;
        let (device, voxels) = (asked.device.as_deref(), &scan.get().0);
        let done = watched(py, progress, |how| {
            let segmenter = state.segmenter(device, options)?;
            let mut found = segmenter.segment_blocking(voxels, how)?;
            let probabilities =
                found.probabilities.take().map(|maps| maps.to_volume()).transpose()?;
            let wide = segmenter.model().card().label_values().into_iter().any(|label| label > 255);
            let (keeps_grid, device) = (segmenter.keeps_grid(), segmenter.device().clone());
            Ok(Done { found, probabilities, keeps_grid, device, wide })
        })?;
        Segmentation::new(py, scan.clone().unbind(), done)
    }

    /// Runs the network on `[C][D][H][W]`, which is read where it lies, and gives logits
    /// `[K][D][H][W]`.
    fn infer<'py>(
        &self,
        py: Python<'py>,
        array: PyReadonlyArray4<'py, f32>,
        asked: Asked,
        position: Option<[i64; 3]>,
        progress: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArray4<f32>>> {
        let (channels, extent) = shape(array.shape())?;
        let data =
            array.as_slice().map_err(|_| PyValueError::new_err("the array is not in C order"))?;
        let mut model = self.networks.first.clone();
        let card = model.card();
        if !card.takes(channels) {
            let text = format!(
                "the array has {channels} channels, the network takes {}",
                card.in_channels()
            );
            return Err(PyValueError::new_err(text));
        }
        let classes = card.classes();
        if channels == 1 {
            model = model.for_grey_input().or_raise(py)?;
        }
        if let Some(position) = position {
            model = model.with_position(position).or_raise(py)?;
        }
        let mut taken = self.take(py)?;
        let state = taken.state()?;
        let mut outputs = watched(py, progress, |how| {
            organum::plan::check_extent(extent, model.card())?;
            let device = state.device(asked.device.as_deref())?;
            let mut runner = Runner::new(device).with_precision(asked.precision());
            if let Some(bytes) = asked.memory {
                runner = runner.with_budget(bytes);
            }
            let options = PlanOptions::default().with_output(OutputMode::Logits);
            Ok(runner.run_blocking(&model, Input { channels, extent, data }, &options, how)?.0)
        })?;
        drop(taken);
        let Some(OutputData::Map(logits)) = outputs.pop().map(|output| output.data) else {
            return Err(PyRuntimeError::new_err("the run brought no logits back"));
        };
        let [d, h, w] = extent.axes().map(|n| n as usize);
        logits.into_pyarray(py).reshape([classes as usize, d, h, w])
    }

    /// Gives back what is kept for the next scan: the session, and the device.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let mut taken = self.take(py)?;
        let state = taken.state()?;
        py.detach(|| (state.segmenter, state.device) = (None, None));
        Ok(())
    }
}
