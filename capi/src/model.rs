//! Models: opening, planning, segmenting.

use std::ffi::{c_char, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::slice;

use crate_organum::model::Mode;
use crate_organum::volume::{Affine, Volume, file, nifti};
use crate_organum::{
    Cancel, Device, DeviceCaps, Elem, Extent, LoadOptions, Networks, OutputMode, Plan, PlanOptions,
    Progress, RunOptions, Scan, SegmentError, SegmentOptions, Segmentation, Segmenter, Windows,
};

use crate::error::{guarded, organum_error, organum_status};
use crate::labels::organum_labels;
use crate::{refused, text};

/// A model. It may go from thread to thread, but only one may use it at a time.
pub struct organum_model {
    networks: Networks,
    /// The name by which the device was asked for, and what segments on it.
    open: Option<(Option<String>, Segmenter)>,
}

/// A volume of the caller's.
#[repr(C)]
pub struct organum_volume {
    /// The number of channels C.
    pub channels: u32,
    /// The voxels along D, H, W.
    pub extent: [u32; 3],
    /// The rows of the map from the indices along W, H, D, and 1, to millimetres to the right, the
    /// front and the head: the first three rows of a NIfTI affine, if W is the file's first axis.
    pub affine: [[f64; 4]; 3],
    /// The values in C order: channels, D, H, W.
    pub voxels: *const f32,
}

/// Options of a segmentation. All zeros is a good choice.
#[repr(C)]
pub struct organum_options {
    /// An index or part of a name of `organum devices`, "gpu", "cpu" or "reference"; null for a
    /// hardware GPU if there is one, else the host.
    pub device: *const c_char,
    /// The most bytes on the device; 0 for no bound.
    pub memory: u64,
    /// The most bytes of host memory; 0 for no bound.
    pub host_memory: u64,
    /// True for activations and weights in 16-bit floats.
    pub half_precision: bool,
    /// True to leave mirror images of windows out.
    pub no_mirror: bool,
    /// Called with operations done and operations of the run, on the calling thread; false stops
    /// the run. May be null. It must return: no longjmp, no exception.
    pub progress: Option<unsafe extern "C" fn(done: u64, total: u64, user: *mut c_void) -> bool>,
    /// Given to the callback.
    pub user: *mut c_void,
}

const NONE: organum_options = organum_options {
    device: null(),
    memory: 0,
    host_memory: 0,
    half_precision: false,
    no_mirror: false,
    progress: None,
    user: null_mut(),
};

/// Memory and work of a run; of one window where the model runs in windows.
#[repr(C)]
pub struct organum_plan {
    /// The voxels along D, H, W that the network runs on.
    pub extent: [u32; 3],
    /// Every byte on the device: weights, activations, uniforms, staging.
    pub peak_bytes: u64,
    /// Bytes of weights.
    pub weights_bytes: u64,
    /// The smallest budget that works.
    pub smallest_budget: u64,
    /// Floating-point operations of one run of the network.
    pub flops: u64,
    /// Runs of the network: windows times mirror images, or 1.
    pub passes: u64,
}

/// Opens a model file, a PyTorch checkpoint, an nnU-Net folder or a MONAI bundle, whose path is
/// UTF-8. No code of a file is run.
///
/// # Safety
/// `path` is a text; `model` has room for a pointer; `error` is null or has room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_open(
    path: *const c_char,
    model: *mut *mut organum_model,
    error: *mut *mut organum_error,
) -> organum_status {
    let work = || {
        // SAFETY: the caller vouches for it
        let path = unsafe { text(path, "path") }?.ok_or_else(|| refused("path", "it is null"))?;
        let networks = crate_organum::open(path, &LoadOptions::default())?;
        let opened = Box::new(organum_model { networks, open: None });
        // SAFETY: the caller vouches for the room
        unsafe { model.write(Box::into_raw(opened)) };
        Ok(())
    };
    // SAFETY: the caller vouches for the room
    unsafe { guarded(error, work) }
}

/// The number of channels that a volume must have.
///
/// # Safety
/// `model` is one that was opened.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_model_channels(model: *const organum_model) -> u32 {
    // SAFETY: the caller vouches for it
    unsafe { &*model }.networks.first.card().in_channels()
}

/// Frees a model, and what it holds of the device; null is left alone.
///
/// # Safety
/// `model` is null or one that was opened, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_model_free(model: *mut organum_model) {
    if !model.is_null() {
        // SAFETY: it was a box, and the caller gives it back
        drop(unsafe { Box::from_raw(model) });
    }
}

/// Plans a run over `extent` voxels along D, H, W, as the network is given them, within `memory`
/// bytes of a device with the limits that every WebGPU device has; 0 for no bound. No device is
/// opened.
///
/// # Safety
/// `model` is one that was opened; `extent` are three numbers; `plan` has room; `error` is null or
/// has room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_plan_run(
    model: *const organum_model,
    extent: *const u32,
    memory: u64,
    plan: *mut organum_plan,
    error: *mut *mut organum_error,
) -> organum_status {
    let work = || {
        // SAFETY: the caller vouches for both
        let (model, extent) =
            unsafe { (&(*model).networks.first, extent.cast::<[u32; 3]>().read_unaligned()) };
        let (card, extent) = (model.card(), Extent::from(extent));
        let mut options = PlanOptions::default();
        options.budget = Some(memory).filter(|bytes| *bytes > 0);
        let windows =
            if card.mode() == Mode::Window { Some(Windows::new(card, extent)?) } else { None };
        if windows.is_some() {
            options = options.with_output(OutputMode::Logits);
        } else {
            crate_organum::plan::check_extent(extent, card)?;
        }
        let tile = windows.as_ref().map_or(extent, Windows::tile);
        let made = Plan::new(model, tile, &DeviceCaps::default(), &options)?;
        let report = made.report();
        let told = organum_plan {
            extent: tile.axes(),
            peak_bytes: report.peak_bytes,
            weights_bytes: report.weights_bytes,
            smallest_budget: report.smallest_budget,
            flops: report.flops,
            passes: windows.map_or(1, |w| w.passes() as u64),
        };
        // SAFETY: the caller vouches for the room
        unsafe { plan.write(told) };
        Ok(())
    };
    // SAFETY: the caller vouches for the room
    unsafe { guarded(error, work) }
}

/// The callback with what it is given; it is called where `organum_segment` was.
struct Callback {
    call: unsafe extern "C" fn(u64, u64, *mut c_void) -> bool,
    user: *mut c_void,
}

// SAFETY: a run on the calling thread reports from that thread
unsafe impl Send for Callback {}

impl Callback {
    fn tell(&self, p: Progress) -> bool {
        // SAFETY: the caller of organum_segment vouches for the callback
        unsafe { (self.call)(p.done, p.total, self.user) }
    }
}

impl organum_volume {
    /// A copy as a volume of organum's.
    ///
    /// # Safety
    /// `voxels` are as many as channels and extent say.
    unsafe fn read(&self) -> Result<Volume<f32>, SegmentError> {
        if self.voxels.is_null() {
            return Err(refused("voxels", "they are null"));
        }
        let [d, h, w] = self.extent.map(|n| n as usize);
        let count = [d, h, w].into_iter().try_fold(self.channels as usize, usize::checked_mul);
        let count = count
            .filter(|n| *n <= isize::MAX as usize / 4)
            .ok_or_else(|| refused("extent", "it has more voxels than any memory"))?;
        // SAFETY: the caller vouches for the voxels, and a slice of them is not too long
        let data = unsafe { slice::from_raw_parts(self.voxels, count) }.to_vec();
        let column = |axis: usize| self.affine.map(|row| row[axis]);
        let affine = Affine { steps: [column(2), column(1), column(0)], origin: column(3) };
        Ok(Volume::on_affine(self.channels, self.extent.into(), affine, data)?)
    }
}

impl organum_model {
    fn segment<'a>(
        &mut self,
        scan: impl Into<Scan<'a>>,
        options: &organum_options,
    ) -> Result<Segmentation, SegmentError> {
        // SAFETY: the caller of organum_segment vouches for the options
        let device = unsafe { text(options.device, "device") }?;
        let mut chosen = SegmentOptions::default();
        if options.half_precision {
            chosen = chosen.with_precision(Elem::F16);
        }
        let given = |bytes: u64| Some(bytes).filter(|bytes| *bytes > 0);
        (chosen.budget, chosen.host_memory) = (given(options.memory), given(options.host_memory));
        chosen.unmirrored = options.no_mirror;
        let kept = self.open.take().filter(|(name, _)| name.as_deref() == device);
        let segmenter = match kept {
            Some((name, mut segmenter)) => {
                let set = segmenter.set_options(chosen);
                let (_, segmenter) = self.open.insert((name, segmenter));
                set?;
                segmenter
            }
            None => {
                let found = pollster::block_on(Device::request(device))?;
                let segmenter = Segmenter::new(self.networks.clone(), found, chosen)?;
                &mut self.open.insert((device.map(str::to_owned), segmenter)).1
            }
        };
        let cancel = Cancel::new();
        let stop = cancel.clone();
        let callback = options.progress.map(|call| Callback { call, user: options.user });
        let mut show = move |p: Progress| {
            if callback.as_ref().is_some_and(|callback| !callback.tell(p)) {
                stop.raise();
            }
        };
        let how = RunOptions::default().with_cancel(cancel).with_progress(&mut show);
        segmenter.segment_blocking(scan, how)
    }
}

/// Segments a volume; the labels lie on its grid. The session stays open for the next volume of the
/// same extent, until the model is freed or another device is asked for.
///
/// # Safety
/// `model` is one that was opened; `volume` and what it names are there; `options` is null or its
/// texts and callback are there; `labels` has room for a pointer; `error` is null or has room for
/// one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_segment(
    model: *mut organum_model,
    volume: *const organum_volume,
    options: *const organum_options,
    labels: *mut *mut organum_labels,
    error: *mut *mut organum_error,
) -> organum_status {
    let work = || {
        // SAFETY: the caller vouches for them
        let (model, volume, options) =
            unsafe { (&mut *model, (*volume).read()?, options.as_ref()) };
        let found = model.segment(&volume, options.unwrap_or(&NONE))?;
        // SAFETY: the caller vouches for the room
        unsafe { labels.write(Box::into_raw(Box::new(found.into()))) };
        Ok(())
    };
    // SAFETY: the caller vouches for the room
    unsafe { guarded(error, work) }
}

/// Segments the scan in a file (NIfTI, NRRD, MetaImage, MGH, a DICOM folder) and writes the labels
/// to `output`, on the scan's grid and with their names: `.nii`, `.nii.gz`, `.nrrd`, `.seg.nrrd`,
/// `.mha`; `.dcm` where the scan is DICOM. The file appears whole or not at all. Gives the labels,
/// too, unless `labels` is null.
///
/// # Safety
/// `model` is one that was opened; `scan` and `output` are texts; `options` is null or its texts
/// and callback are there; `labels` and `error` are null or have room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_segment_file(
    model: *mut organum_model,
    scan: *const c_char,
    output: *const c_char,
    options: *const organum_options,
    labels: *mut *mut organum_labels,
    error: *mut *mut organum_error,
) -> organum_status {
    let work = || {
        // SAFETY: the caller vouches for them
        let (model, options) = unsafe { (&mut *model, options.as_ref()) };
        // SAFETY: the caller vouches for them
        let (scan, output) = unsafe { (text(scan, "scan")?, text(output, "output")?) };
        let scan = file::read(scan.ok_or_else(|| refused("scan", "it is null"))?)?;
        let output = Path::new(output.ok_or_else(|| refused("output", "it is null"))?);
        // a name of no format is refused before the run
        let format = file::LabelFormat::of(output)?;
        let found = model.segment(&scan, options.unwrap_or(&NONE))?;
        let grid = nifti::header_on(&scan.header, &found.labels);
        let kept = found.labels.affine() == scan.image.affine()
            && found.labels.extent == scan.image.extent;
        let header = if kept { &scan.header } else { &grid };
        match format {
            file::LabelFormat::Dicom => {
                file::write_segmentation(output, &scan, &found.labels, &found.legend())?
            }
            _ => file::write_labels(output, header, &found.labels, &found.legend())?,
        }
        if !labels.is_null() {
            // SAFETY: the caller vouches for the room
            unsafe { labels.write(Box::into_raw(Box::new(found.into()))) };
        }
        Ok(())
    };
    // SAFETY: the caller vouches for the room
    unsafe { guarded(error, work) }
}
