//! Segmenting scans: a model, a device and options, and scan after scan through them.

mod again;
mod bounded;
mod cascade;
mod ensemble;
mod error;
mod explain;
mod options;
mod prepared;
mod result;
mod route;
mod runner;

pub use error::SegmentError;
pub use explain::gates;
pub use options::SegmentOptions;
pub use prepared::{PreparedScan, Scores};
pub use result::{Attention, LabelVolume, SegmentReport, Segmentation, TokensReport, WindowsReport};
pub use runner::{RunReport, Runner};

use crate::device::Device;
use crate::error::LoadError;
use crate::model::{Mode, Model};
use crate::networks::Networks;
use crate::run::RunOptions;
use crate::scan::{Invert, Scan, Step, WayBack};
use crate::volume_tokens;
use crate::warning::{Warning, WarningKind};

/// Segments scans with a model on a device.
///
/// ```no_run
/// use organum::volume::nifti;
/// use organum::{Device, LoadOptions, RunOptions, SegmentOptions, Segmenter};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = organum::open("spleen_bundle", &LoadOptions::default())?;
/// let mut segmenter = Segmenter::new(model, Device::Host, SegmentOptions::default())?;
/// let scan = nifti::read("scan.nii.gz")?;
/// let result = segmenter.segment_blocking(&scan, RunOptions::default())?;
/// nifti::write_labels("labels.nii.gz", &scan.header, &result.labels)?;
/// # Ok(())
/// # }
/// ```
///
/// The session of the last scan stays open, so that the next scan of the same extent is neither
/// planned nor compiled again; [`Segmenter::close`] gives its memory back.
#[derive(Debug)]
pub struct Segmenter {
    networks: Networks,
    /// The first network for scans of one channel, where its own number is another.
    grey: Option<Model>,
    runner: Runner,
    options: SegmentOptions,
    /// The first stage of a cascade, once it was needed.
    previous: Option<Box<Self>>,
}

impl Segmenter {
    /// A segmenter for what [`crate::open`] opened, or for a [`Model`], on a device: an
    /// [`crate::Engine`], the host, or the host's scalar twins.
    ///
    /// # Errors
    /// [`SegmentError::Option`] when the model does not do what the options ask for.
    pub fn new(model: impl Into<Networks>, device: impl Into<Device>, options: SegmentOptions) -> Result<Self, SegmentError> {
        let networks = model.into();
        let mut runner = Runner::new(device).with_precision(options.precision);
        (runner.budget, runner.profile) = (options.budget, options.profile);
        let segmenter = Self { networks, grey: None, runner, options, previous: None };
        segmenter.check_options()?;
        Ok(segmenter)
    }

    /// The network, or that of the first fold.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.networks.first
    }

    /// The networks.
    #[must_use]
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// How a scan is segmented.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.options.mode.unwrap_or_else(|| self.model().card().mode())
    }

    /// Whether labels lie on the scan's grid. They do, but for MONAI bundles that invert nothing.
    #[must_use]
    pub fn keeps_grid(&self) -> bool {
        !matches!(self.model().card().way_back(), WayBack::Inverse { invert: Invert::Nothing, .. })
    }

    /// Gives back the device's memory that is kept for the next scan.
    pub fn close(&mut self) {
        self.runner.close();
    }

    fn check_options(&self) -> Result<(), SegmentError> {
        let (card, mode) = (self.model().card(), self.mode());
        let back = card.way_back();
        let (nnunet, monai) = (matches!(back, WayBack::Spline { .. }), matches!(back, WayBack::Inverse { .. }));
        if self.options.attention {
            if monai {
                let text = "pictures of attention are not drawn for models with MONAI's pipeline";
                return Err(SegmentError::option("attention", text));
            }
            let windows = mode == Mode::Window;
            let shown = if windows { volume_tokens::taps(self.model()) } else { gates(self.model()) };
            if shown.is_empty() {
                let windows_show = "volume tokens, which are what windows can show";
                let what = if windows { windows_show } else { "attention gates" };
                return Err(SegmentError::option("attention", format!("the network has no {what}")));
            }
        }
        let SegmentOptions { overlap, step, unmirrored, .. } = self.options;
        if let Some(share) = overlap.filter(|share| !(0.0..1.0).contains(share)) {
            return Err(SegmentError::option("overlap", format!("{share} is not in 0 to below 1")));
        }
        if let Some(share) = step.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            return Err(SegmentError::option("step-size", format!("{share} is not above 0 to 1")));
        }
        let windowed = [("overlap", overlap.is_some()), ("step-size", step.is_some()), ("no-mirror", unmirrored)];
        if let Some((option, _)) = windowed.into_iter().find(|(_, set)| *set && mode != Mode::Window) {
            return Err(SegmentError::option(option, "the model runs on the whole scan or in slices, not in windows"));
        }
        match mode {
            Mode::Window => Ok(()),
            _ if nnunet => Err(SegmentError::option("mode", "a model with nnU-Net's pipeline runs in windows")),
            Mode::Slices if monai => {
                let text = "a model with MONAI's pipeline runs in windows or at once";
                Err(SegmentError::option("mode slices", text))
            }
            Mode::Slices => {
                card.slice().map_err(|e| SegmentError::option("mode slices", e))?;
                Ok(())
            }
            Mode::Whole => Ok(()),
        }
    }

    /// Warnings of the model and of a scan, from their headers and the range of the scan's values:
    /// what is read otherwise than its owner may mean, or is not what the model expects.
    ///
    /// # Errors
    /// When the model does not say how scans are prepared, unless the options take raw voxels.
    pub fn check<'a>(&self, scan: impl Into<Scan<'a>>) -> Result<Vec<Warning>, SegmentError> {
        self.check_scan(&scan.into())
    }

    fn check_scan(&self, scan: &Scan<'_>) -> Result<Vec<Warning>, SegmentError> {
        let card = self.model().card();
        let mut warnings = [self.networks.warnings(), scan.warnings].concat();
        let mut spacing = scan.image.spacing;
        for step in card.input.recipe().steps {
            match step {
                Step::Read { by } => {
                    warnings.extend(by.warnings(scan));
                    spacing = by.spacing(scan);
                }
                Step::ReadAsMonai => warnings.extend(self.monai_warnings(scan)),
                _ => {}
            }
        }
        warnings.extend(card.expects.check_scan(card, scan.image, spacing));
        if !self.options.raw_voxels {
            self.networks.check_input()?;
        }
        Ok(warnings)
    }

    /// Warnings of what a bundle does with a scan that its owner may not expect.
    fn monai_warnings(&self, scan: &Scan<'_>) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if !self.keeps_grid() {
            let text = "the bundle inverts nothing and saves without resampling: the labels are written on the grid \
                        that its preprocessing makes of the scan, not on the scan's; for that, give its \
                        postprocessing an Invertd";
            warnings.push(Warning::new(WarningKind::Pipeline, text));
        }
        let seen = scan.header.monai.map_or(scan.image.axes, |placed| placed.axes);
        if seen != scan.image.axes {
            let text = format!(
                "the pixdim of the scan is not the spacing of its sform; MONAI's reader then takes the qform, by which \
                 the axes run along {seen} (D, H, W), not {}",
                scan.image.axes
            );
            warnings.push(Warning::new(WarningKind::Geometry, text));
        }
        warnings
    }

    /// Segments a scan: a [`crate::volume::file::Scan`], or voxels of one's own as a
    /// [`crate::volume::Volume`].
    ///
    /// # Errors
    /// As [`Segmenter::check`]; when the scan does not suit the model; when there is no plan within
    /// the budget; when cancelled, which leaves the segmenter usable; or when the device fails.
    pub async fn segment<'a>(&mut self, scan: impl Into<Scan<'a>>, mut how: RunOptions<'_>) -> Result<Segmentation, SegmentError> {
        let scan = scan.into();
        let previous = self.previous_stage(scan.clone(), how.reborrow()).await?;
        let scan = match &previous {
            Some(labels) => Scan { previous: Some(labels), ..scan },
            None => scan,
        };
        let prepared = self.prepare_scan(&scan)?;
        drop(previous);
        self.segment_prepared(prepared, how).await
    }

    /// [`Segmenter::segment`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Segmenter::segment`].
    pub fn segment_blocking<'a>(&mut self, scan: impl Into<Scan<'a>>, how: RunOptions<'_>) -> Result<Segmentation, SegmentError> {
        pollster::block_on(self.segment(scan, how))
    }

    /// Prepares a scan for [`Segmenter::segment_prepared`]: what [`Segmenter::segment`] does first.
    /// The voxels of the scan are not needed afterwards.
    ///
    /// # Errors
    /// As [`Segmenter::check`]; when the scan does not suit the model; or when it cannot be prepared
    /// within the bound of the host's memory.
    pub fn prepare<'a>(&self, scan: impl Into<Scan<'a>>) -> Result<PreparedScan, SegmentError> {
        self.prepare_scan(&scan.into())
    }

    fn prepare_scan(&self, scan: &Scan<'_>) -> Result<PreparedScan, SegmentError> {
        let (warnings, card) = (self.check_scan(scan)?, self.model().card());
        PreparedScan::check_bound(card, scan, self.options.host_memory)?;
        let mut prepared = in_span!("prepare", PreparedScan::new(card, scan.clone(), self.mode()))?;
        prepared.warnings = warnings;
        Ok(prepared)
    }

    /// Segments a scan that [`Segmenter::prepare`] prepared.
    ///
    /// # Errors
    /// When there is no plan within the budget or the bound of the host's memory; when cancelled,
    /// which leaves the segmenter usable; or when the device fails.
    pub async fn segment_prepared(&mut self, mut prepared: PreparedScan, mut how: RunOptions<'_>) -> Result<Segmentation, SegmentError> {
        let mut warnings = std::mem::take(&mut prepared.warnings);
        let (mode, card) = (self.mode(), self.model().card());
        let grey = prepared.volume().channels == 1 && card.in_channels() != 1 && card.takes(1);
        if grey && self.grey.is_none() {
            self.grey = Some(self.networks.first.clone().for_grey_input()?);
        }
        let first = self.grey.as_ref().filter(|_| grey).unwrap_or(&self.networks.first);
        let mut route = route::Route {
            networks: &self.networks,
            first: (usize::from(grey), first),
            runner: &mut self.runner,
            options: &self.options,
            mode,
        };
        let found = route.segment(prepared, &mut how).await;
        if self.options.close_session {
            self.runner.close();
        }
        let route::Found { labels, probabilities, attention, report } = found?;
        let card = self.networks.first.card();
        warnings.extend(card.expects.check_labels(card, &labels));
        let volumes = result::volumes(card, &labels);
        Ok(Segmentation { labels, volumes, probabilities, attention, warnings, report })
    }

    /// [`Segmenter::segment_prepared`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Segmenter::segment_prepared`].
    pub fn segment_prepared_blocking(&mut self, prepared: PreparedScan, how: RunOptions<'_>) -> Result<Segmentation, SegmentError> {
        pollster::block_on(self.segment_prepared(prepared, how))
    }
}

/// Opens whatever is a model: a model file or safetensors with a card, a PyTorch checkpoint, an
/// nnU-Net folder (of a trained model, of one of its folds, or one above that holds a single
/// model), or a MONAI bundle. No code of a file is run.
///
/// # Errors
/// When there is no model, it is damaged, or it asks for what this version does not do.
pub fn open(path: impl AsRef<std::path::Path>, options: &crate::LoadOptions) -> Result<Networks, LoadError> {
    Networks::open(path, options)
}
