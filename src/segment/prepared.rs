//! A scan that went through a recipe, and the way of scores back to it.

use std::fs::File;

use crate::back::{DirectCase, InverseCase, InverseExport, SplineCase, SplineExport, SplineExportOptions};
use crate::error::{PlanError, RunError};
use crate::export::{ExportBytes, Exported, PlaneSink, Probabilities, ScorePlane, hand_over, mismatch};
use crate::model::{Card, Mode};
use crate::scan::{Forward, Invert, Scan, WayBack};
use crate::segment::SegmentError;
use crate::shape::format_bytes;
use crate::transfer::Input;
use crate::volume::{Volume, VolumeError, VolumeErrorKind};
use crate::warning::Warning;

/// A scan as a network takes it, and what brings the network's results back to the scan's grid: the
/// recipe of a card, forwards and back.
#[derive(Clone, Debug)]
pub struct PreparedScan {
    back: Back,
    /// Whether results lie on the scan's grid.
    keeps_grid: bool,
    classes: u32,
    /// The scan's grid, without voxels.
    grid: Volume<f32>,
    /// Host bytes of the scan's voxels, while they are kept.
    scan_bytes: u64,
    /// The most host bytes while the scan was prepared, itself included.
    preparing_bytes: u64,
    /// What is said of the scan and the model.
    pub(super) warnings: Vec<Warning>,
}

/// The ways back that there are.
#[derive(Clone, Debug)]
enum Back {
    Direct(DirectCase),
    Spline(SplineCase),
    Inverse(InverseCase),
}

/// What a network says of a prepared scan.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Scores {
    /// Labels `[D][H][W]`, and probabilities `[C][D][H][W]` if there are some.
    Labels(Vec<u16>, Option<Vec<f32>>),
    /// Logits `[C][D][H][W]`; the probabilities that windows of nnU-Net v1 give.
    Logits(Vec<f32>),
}

/// Labels, and probabilities if they were asked for.
pub(super) type Restored = (Volume<u16>, Option<Probabilities>);

/// What takes the class scores of a prepared scan plane by plane, and makes labels of them.
#[derive(Debug)]
pub(super) enum Export {
    Spline(Box<SplineExport>),
    Inverse(Box<InverseExport>),
}

impl Export {
    /// What it takes of the host's memory.
    pub(super) fn bytes(&self) -> ExportBytes {
        match self {
            Self::Spline(export) => export.bytes(),
            Self::Inverse(export) => export.bytes(),
        }
    }

    /// Keeps scores that have to wait in a file.
    pub(super) fn spill_to(&mut self, file: File) {
        match self {
            Self::Spline(export) => export.spill_to(file),
            Self::Inverse(export) => export.spill_to(file),
        }
    }

    /// Ends a fold; bundles have only one.
    pub(super) fn next_fold(&mut self) {
        if let Self::Spline(export) = self {
            export.next_fold();
        }
    }

    fn finish(self) -> Result<Exported, VolumeError> {
        match self {
            Self::Spline(export) => export.finish(),
            Self::Inverse(export) => export.finish(),
        }
    }
}

impl PlaneSink for Export {
    fn plane(&mut self, z: usize, plane: ScorePlane) -> Result<(), RunError> {
        match self {
            Self::Spline(export) => export.plane(z, plane),
            Self::Inverse(export) => export.plane(z, plane),
        }
    }
}

impl PreparedScan {
    /// Takes a scan through the recipe of a card, and pads or zooms it for a mode.
    ///
    /// # Errors
    /// When the scan does not have the network's number of channels, nothing of it is left, its
    /// values are not what the scaling is for, it would have absurdly many voxels, or the recipe
    /// has no such mode.
    pub fn new<'a>(card: &'a Card, scan: impl Into<Scan<'a>>, mode: Mode) -> Result<Self, VolumeError> {
        Self::of(card, &scan.into(), mode)
    }

    fn of(card: &Card, scan: &Scan<'_>, mode: Mode) -> Result<Self, VolumeError> {
        let recipe = card.input.recipe();
        let scores = 4.0 * f64::from(card.classes());
        let whole = (mode == Mode::Whole).then(|| card.stride());
        if mode == Mode::Slices && card.way_back() != WayBack::Direct {
            let text = "a model with a pipeline of nnU-Net's or MONAI's does not run in slices";
            return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
        }
        let (mut keeps_grid, mut preparing) = (true, 0);
        let back = match card.way_back() {
            WayBack::Direct => Back::Direct(DirectCase::of_card(card, scan, mode)?),
            WayBack::Spline { .. } => {
                let needs = card.needs(0.0, SplineCase::voxel_bytes(card.in_channels()));
                let forward = Forward::new(&recipe, scan, needs)?;
                preparing = SplineCase::host_bytes(&recipe, scan)[2];
                Back::Spline(SplineCase::of(forward, &recipe)?)
            }
            WayBack::Inverse { invert, .. } => {
                keeps_grid = invert != Invert::Nothing;
                let forward = Forward::new(&recipe, scan, card.needs(scores, 0.0))?;
                Back::Inverse(InverseCase::of(forward, &recipe, whole)?)
            }
        };
        let image = scan.image;
        let scan_bytes = 4 * u64::from(image.channels) * image.extent.voxels();
        let preparing_bytes = match &back {
            Back::Direct(prepared) => scan_bytes + prepared.host_bytes()[1],
            Back::Spline(_) => preparing,
            Back::Inverse(case) => case.host_bytes()[1],
        };
        let grid = image.regrid(image.extent, image.spacing, Vec::new()).with_affine(*image.affine());
        let (classes, warnings) = (card.classes(), Vec::new());
        Ok(Self { back, keeps_grid, classes, grid, scan_bytes, preparing_bytes, warnings })
    }

    /// Refuses a bound of the host's memory within which a scan cannot even be prepared, before it
    /// is.
    pub(super) fn check_bound(card: &Card, scan: &Scan<'_>, bound: Option<u64>) -> Result<(), SegmentError> {
        let (Some(bound), WayBack::Spline { .. }) = (bound, card.way_back()) else { return Ok(()) };
        let bytes = SplineCase::host_bytes(&card.input.recipe(), scan)[2];
        if bound >= bytes {
            return Ok(());
        }
        let text = format!(
            "{} ({bound} bytes) of host memory are too few: to prepare the scan takes {}, in bytes {bytes}",
            format_bytes(bound),
            format_bytes(bytes)
        );
        Err(PlanError::host(text, bytes).into())
    }

    /// Says that the voxels of the scan are freed before the network runs: they do not count as host
    /// memory then.
    #[must_use]
    pub fn without_scan(mut self) -> Self {
        self.scan_bytes = 0;
        self
    }

    /// Frees the network's input, once it has run.
    pub(super) fn free_input(&mut self) {
        let volume = match &mut self.back {
            Back::Direct(prepared) => &mut prepared.volume,
            Back::Spline(case) => &mut case.volume,
            Back::Inverse(case) => &mut case.volume,
        };
        volume.data = Vec::new();
    }

    /// The host bytes of the scan as it was read, while it is kept, and as it was prepared; and the
    /// most while that was done.
    pub(super) fn host_bytes(&self) -> [u64; 3] {
        let volume = self.volume();
        [self.scan_bytes, 4 * u64::from(volume.channels) * volume.extent.voxels(), self.preparing_bytes]
    }

    /// The host bytes of results on their way to the scan, where labels go there.
    pub(super) fn export_bytes(&self, probabilities: bool) -> ExportBytes {
        match &self.back {
            Back::Direct(prepared) => prepared.export_bytes(self.classes, probabilities),
            Back::Spline(_) | Back::Inverse(_) => ExportBytes::default(),
        }
    }

    /// What takes the scores of so many folds, and probabilities too if they are asked for; `None`
    /// where the way back begins with labels.
    pub(super) fn export(&self, folds: u16, probabilities: bool) -> Option<Export> {
        match &self.back {
            Back::Direct(_) => None,
            Back::Spline(case) => {
                let options = SplineExportOptions { folds, ..case.export_options(probabilities) };
                Some(Export::Spline(Box::new(SplineExport::new(case, self.classes, options))))
            }
            Back::Inverse(case) => Some(Export::Inverse(Box::new(InverseExport::new(case, self.classes, probabilities)))),
        }
    }

    /// The voxels that the network takes.
    #[must_use]
    pub fn volume(&self) -> &Volume<f32> {
        match &self.back {
            Back::Direct(prepared) => &prepared.volume,
            Back::Spline(case) => &case.volume,
            Back::Inverse(case) => &case.volume,
        }
    }

    /// The network's input.
    #[must_use]
    pub fn input(&self) -> Input<'_> {
        let volume = self.volume();
        Input { channels: volume.channels, extent: volume.extent, data: &volume.data }
    }

    /// Whether the way back begins with labels: it then needs no scores but for probabilities.
    #[must_use]
    pub fn takes_labels(&self) -> bool {
        matches!(self.back, Back::Direct(_))
    }

    /// Labels on the grid of the scan that was prepared, or where the recipe leaves them;
    /// probabilities too if they are asked for.
    ///
    /// # Errors
    /// When the scores are not those of this scan, or labels where the way back needs logits.
    pub fn restore(&self, scores: Scores, probabilities: bool) -> Result<(Volume<u16>, Option<Probabilities>), VolumeError> {
        if let Some(mut export) = self.export(1, probabilities) {
            let Scores::Logits(logits) = scores else {
                let text = "the recipe brings scores back to the scan's grid, not labels";
                return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
            };
            hand_over(&logits, self.classes, self.volume().extent, &mut export).map_err(|e| mismatch(&e))?;
            return self.finish(export);
        }
        let (labels, maps) = match scores {
            Scores::Labels(labels, maps) => (labels, maps.filter(|_| probabilities)),
            Scores::Logits(mut logits) => {
                let labels = crate::scores::argmax(&logits, self.classes);
                if probabilities {
                    crate::scores::softmax(&mut logits, self.classes);
                }
                (labels, Some(logits).filter(|_| probabilities))
            }
        };
        self.labels_back(labels, maps)
    }

    /// Labels of the network's input, and probabilities if there are some, on the grid of the scan.
    fn labels_back(&self, labels: Vec<u16>, maps: Option<Vec<f32>>) -> Result<Restored, VolumeError> {
        let Back::Direct(prepared) = &self.back else {
            let text = "the recipe brings scores back to the scan's grid, not labels";
            return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
        };
        let maps = maps.map(|maps| prepared.probabilities(self.classes, maps)).transpose()?;
        self.placed(prepared.restore_labels(labels)?, maps)
    }

    /// Labels of the scores that an export took, and probabilities if it makes some.
    pub(super) fn finish(&self, export: Export) -> Result<Restored, VolumeError> {
        let Exported { labels, probabilities } = export.finish()?;
        self.placed(labels, probabilities)
    }

    fn placed(&self, labels: Volume<u16>, maps: Option<Probabilities>) -> Result<Restored, VolumeError> {
        if !self.keeps_grid {
            return Ok((labels, maps));
        }
        Ok((on(&self.grid, labels)?, maps.map(|maps| maps.on(&self.grid)).transpose()?))
    }
}

/// Voxels that came back to those of the scan, where the scan itself says that they lie.
fn on<T>(scan: &Volume<f32>, volume: Volume<T>) -> Result<Volume<T>, VolumeError> {
    let data = volume.data;
    Ok(Volume::new(volume.channels, scan.extent, scan.spacing, scan.axes, data)?.with_affine(*scan.affine()))
}
