//! A scan on its way to the network, and what the network says on its way back.

use super::largest;
use super::pipeline::{Invert, Largest, Pipeline};
use crate::model::Card;
use crate::scan::{Forward, Grid, Reading, Recipe, Undo, WayBack, cut, resampled, turned};
use crate::scores::{argmax, softmax};
use crate::shape::Extent;
use crate::transfer::Input;
use crate::volume::resample::{crop, pad_to_multiple};
use crate::volume::{Affine, Axes, Volume, VolumeError, VolumeErrorKind, reorient, sizes};

/// A scan as MONAI gives it to the network, and what brings results back to the scan's grid.
#[derive(Clone, Debug)]
pub struct Case {
    /// The network's input, zero-padded to the network's stride where it runs at once.
    pub volume: Volume<f32>,
    /// The input without that padding, and its first voxel in it.
    prepared: Grid,
    offset: Extent,
    /// What happened to the scan's space, in order.
    steps: Vec<Undo>,
    /// Of the scan, its axes in the order of the file, the fastest first.
    scan: Grid,
    /// Of the scan as it was given.
    axes: Axes,
    affine: Affine,
    invert: Invert,
    nearest: bool,
    largest: Option<Largest>,
}

impl Case {
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
    pub(crate) fn of(forward: Forward<'_>, recipe: &Recipe, multiple: Option<[u32; 3]>) -> Result<Self, VolumeError> {
        let unsupported = |text: String| VolumeError::new(VolumeErrorKind::Unsupported, text);
        let back = recipe.way_back().map_err(unsupported)?;
        let WayBack::Inverse { invert, nearest, largest } = back else {
            return Err(unsupported("the recipe's results are not those of a MONAI bundle".into()));
        };
        let (steps, (axes, affine), file) = (forward.undo.clone(), forward.seen, forward.file);
        let volume = forward.into_volume();
        let prepared = Grid::of(&volume);
        let (volume, offset) = match multiple {
            Some(multiple) => pad_to_multiple(&volume, multiple.into(), 0.0),
            None => (volume, Extent::new(0, 0, 0)),
        };
        Ok(Self { volume, prepared, offset, steps, scan: file.unwrap_or(prepared), axes, affine, invert, nearest, largest })
    }

    /// The network's input.
    #[must_use]
    pub fn input(&self) -> Input<'_> {
        Input { channels: self.volume.channels, extent: self.volume.extent, data: &self.volume.data }
    }

    /// Labels of logits `[C][D][H][W]` over the input; probabilities too, if they are wanted. They
    /// lie on the scan's grid, or, with [`Invert::Nothing`], on that of the input without its
    /// padding. Where the scan was cropped away, labels are 0, and so are MONAI's probabilities of
    /// all classes; with [`Invert::Saving`] there are those of the nearest voxel.
    ///
    /// # Errors
    /// When the logits are not those of this input.
    pub fn export(&self, logits: Vec<f32>, classes: u32, probabilities: bool) -> Result<(Volume<u16>, Option<Volume<f32>>), VolumeError> {
        let padded = Volume::new(classes, self.volume.extent, self.volume.spacing, self.volume.axes, logits)?;
        let mut logits = crop(&padded, self.offset, self.prepared.extent)?.data;
        let keep = |labels: &mut [u16], extent: Extent, first: bool| {
            if let Some(parts) = self.largest.as_ref().filter(|l| l.first == first) {
                largest::keep(labels, sizes(extent), parts);
            }
        };
        let inverted = matches!(self.invert, Invert::Logits | Invert::Probabilities);
        let (labels, maps) = if inverted {
            if self.invert == Invert::Probabilities {
                softmax(&mut logits, classes);
            }
            let mut maps = self.back(self.prepared.volume(classes, logits)?, self.nearest)?;
            let mut labels = argmax(&maps.data, classes);
            keep(&mut labels, maps.extent, false);
            if probabilities && self.invert == Invert::Logits {
                softmax(&mut maps.data, classes);
            }
            (Grid::of(&maps).volume(1, labels)?, probabilities.then_some(maps))
        } else {
            let mut labels = argmax(&logits, classes);
            keep(&mut labels, self.prepared.extent, true);
            let maps = probabilities.then(|| {
                softmax(&mut logits, classes);
                self.prepared.volume(classes, logits)
            });
            let maps = maps.transpose()?;
            if self.invert == Invert::Nothing {
                // MONAI's axes are the fastest first
                let [d, h, w] = self.prepared.axes.directions();
                let axes = Axes::new([w, h, d])?;
                let labels = reorient(&self.prepared.volume(1, labels)?, axes);
                return Ok((labels, maps.map(|maps| reorient(&maps, axes))));
            }
            let labels = self.prepared.volume(1, labels.into_iter().map(f32::from).collect())?;
            let saving = self.invert == Invert::Saving;
            let back = |volume, nearest| if saving { self.saved(volume) } else { self.back(volume, nearest) };
            let mut labels = whole(&back(labels, true)?)?;
            keep(&mut labels.data, labels.extent, false);
            (labels, maps.map(|maps| back(maps, self.nearest)).transpose()?)
        };
        let labels = reorient(&labels, self.axes).with_affine(self.affine);
        Ok((labels, maps.map(|maps| reorient(&maps, self.axes).with_affine(self.affine))))
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

/// Labels that went as numbers.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "they were labels before")]
fn whole(labels: &Volume<f32>) -> Result<Volume<u16>, VolumeError> {
    Volume::new(1, labels.extent, labels.spacing, labels.axes, labels.data.iter().map(|v| *v as u16).collect())
}
