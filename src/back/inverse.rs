//! A scan on its way to the network, and what the network says on its way back.

pub(crate) mod export;
mod overlapping;

use self::export::InverseExport;
use crate::export::{Exported, hand_over, mismatch};
use crate::model::Card;
use crate::monai::Pipeline;
use crate::scan::{Filtered, Forward, Grid, Invert, Overlapping, Reading, Recipe, Undo, WayBack, cut, resampled, turned};
use crate::shape::Extent;
use crate::transfer::Input;
use crate::volume::resample::{multiple, pad_to, padded};
use crate::volume::{Affine, Axes, Volume, VolumeError, VolumeErrorKind};

/// A scan as MONAI gives it to the network, and what brings results back to the scan's grid.
#[derive(Clone, Debug)]
pub struct InverseCase {
    /// The network's input, zero-padded to the network's stride where it runs at once.
    pub volume: Volume<f32>,
    /// The input without that padding, and its first voxel in it.
    pub(super) prepared: Grid,
    pub(super) offset: Extent,
    /// What happened to the scan's space, in order.
    steps: Vec<Undo>,
    /// Of the scan, its axes in the order of the file, the fastest first.
    pub(super) scan: Grid,
    /// Of the scan as it was given.
    pub(super) axes: Axes,
    pub(super) affine: Affine,
    pub(super) invert: Invert,
    nearest: bool,
    /// Transforms of labels, before they go the way back and after.
    pub(super) filters: Vec<Filtered>,
    /// The threshold of labels that may overlap.
    pub(super) overlapping: Option<Overlapping>,
}

impl InverseCase {
    /// Prepares a scan for the model of a card whose `input.monai` is `pipeline`; for windows, or for the whole at once if the
    /// extent must be a multiple of something.
    ///
    /// # Errors
    /// When the scan does not have the model's number of channels, nothing of it is foreground, or its spacing is absurdly far from
    /// the model's.
    pub fn new(card: &Card, pipeline: &Pipeline, scan: &Volume<f32>, multiple: Option<[u32; 3]>) -> Result<Self, VolumeError> {
        let recipe = pipeline.recipe();
        let forward = Forward::new(&recipe, &scan.into(), card.needs(4.0 * f64::from(card.classes()), 0.0))?;
        Self::of(forward, &recipe, multiple)
    }

    /// The scan that went through the steps of a recipe, and what undoes them.
    pub(crate) fn of(forward: Forward<'_>, recipe: &Recipe, whole: Option<[u32; 3]>) -> Result<Self, VolumeError> {
        let unsupported = |text: String| VolumeError::new(VolumeErrorKind::Unsupported, text);
        let back = recipe.way_back().map_err(unsupported)?;
        let WayBack::Inverse { invert, nearest, filters, overlapping } = back else {
            return Err(unsupported("the recipe's results are not those of a MONAI bundle".into()));
        };
        let (steps, (axes, affine), file) = (forward.undo.clone(), forward.seen, forward.file);
        let volume = forward.into_volume();
        let prepared = Grid::of(&volume);
        let (volume, offset) = match whole {
            Some(stride) => {
                let channels = f64::from(volume.channels);
                let size = [0, 1, 2].map(|axis| multiple(volume.extent.axes()[axis], stride[axis]));
                let extent = padded("padding to the network's stride", size, |n| 4.0 * channels * n)?;
                pad_to(&volume, extent, 0.0)
            }
            None => (volume, Extent::new(0, 0, 0)),
        };
        Ok(Self { volume, prepared, offset, steps, scan: file.unwrap_or(prepared), axes, affine, invert, nearest, filters, overlapping })
    }

    /// The network's input.
    #[must_use]
    pub fn input(&self) -> Input<'_> {
        Input { channels: self.volume.channels, extent: self.volume.extent, data: &self.volume.data }
    }

    /// Labels of logits `[C][D][H][W]` over the input; probabilities too, if they are wanted, where
    /// [`InverseExport`] brings them, which takes the logits plane by plane.
    ///
    /// # Errors
    /// When the logits are not those of this input.
    pub fn export(&self, logits: &[f32], classes: u32, probabilities: bool) -> Result<(Volume<u16>, Option<Volume<f32>>), VolumeError> {
        let mut export = InverseExport::new(self, classes, probabilities);
        hand_over(logits, classes, self.volume.extent, &mut export).map_err(|e| mismatch(&e))?;
        let Exported { labels, probabilities } = export.finish()?;
        Ok((labels, probabilities.map(|p| p.to_volume()).transpose()?))
    }

    /// Whether class scores go the way back, and labels are made there.
    pub(super) fn inverts_scores(&self) -> bool {
        matches!(self.invert, Invert::Logits | Invert::Probabilities)
    }

    /// The voxels of the largest grid on the way.
    pub(super) fn most_voxels(&self) -> u64 {
        let before = |step: &Undo| match step {
            Undo::Turned { .. } => 0,
            Undo::Resampled { before, .. } => before.extent.voxels(),
            Undo::Cut { before, .. } => before.voxels(),
        };
        self.steps.iter().map(before).max().unwrap_or(0).max(self.volume.extent.voxels())
    }

    /// The host bytes of the input, and about the most while it was prepared: the scan and three copies
    /// of the largest grid on the way.
    #[must_use]
    pub fn host_bytes(&self) -> [u64; 2] {
        let channels = u64::from(self.volume.channels) * 4;
        let scan = channels * self.scan.extent.voxels();
        [channels * self.volume.extent.voxels(), scan + 3 * channels * self.most_voxels().max(self.scan.extent.voxels())]
    }

    /// The case without the voxels of the network's input.
    pub(super) fn without_voxels(&self) -> Self {
        let v = &self.volume;
        Self { volume: v.regrid(v.extent, v.spacing, Vec::new()), steps: self.steps.clone(), filters: self.filters.clone(), ..*self }
    }

    /// Labels that go as numbers, from the grid of the input to that of the scan.
    pub(super) fn labels_back(&self, labels: Volume<f32>) -> Result<Volume<f32>, VolumeError> {
        if self.invert == Invert::Saving { self.saved(labels) } else { self.back(labels, true) }
    }

    /// Scores or probabilities, from the grid of the input to that of the scan, where they go there.
    pub(super) fn scores_back(&self, scores: Volume<f32>) -> Result<Volume<f32>, VolumeError> {
        match self.invert {
            Invert::Nothing => Ok(scores),
            Invert::Saving => self.saved(scores),
            _ => self.back(scores, self.nearest),
        }
    }

    /// The volume on the scan's grid as `SaveImage` brings it there: at once, each voxel read at
    /// the nearest.
    fn saved(&self, volume: Volume<f32>) -> Result<Volume<f32>, VolumeError> {
        let there = resampled(&volume, &self.scan.affine, self.scan.extent, Reading::Nearest, false)?;
        self.scan.volume(volume.channels, there.unwrap_or(volume).data)
    }

    /// Undoes all steps; the axes are those of the file then.
    fn back(&self, mut volume: Volume<f32>, nearest: bool) -> Result<Volume<f32>, VolumeError> {
        for step in self.steps.iter().rev() {
            volume = match step {
                Undo::Turned { before } => turned(&volume, *before),
                Undo::Cut { before, start } => cut(&volume, start.map(|n| -n), before.axes().map(i64::from))?,
                Undo::Resampled { before, nearest: nearest_there, align, .. } => {
                    let reading = if nearest || *nearest_there { Reading::Nearest } else { Reading::Linear };
                    // as MONAI changes the mode it forgets how corners are aligned
                    let align = *align && !nearest;
                    let back = resampled(&volume, &before.affine, before.extent, reading, align)?.unwrap_or(volume);
                    let place = Grid { affine: *back.affine(), ..*before };
                    place.volume(back.channels, back.data)?
                }
            };
        }
        Ok(volume)
    }
}
