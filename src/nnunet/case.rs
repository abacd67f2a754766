//! A scan on its way to the network, and logits on their way back.

use half::f16;
use rayon::prelude::*;

use super::crop::paste;
use super::pipeline::{Pipeline, Resampling};
use crate::model::Card;
use crate::scan::{Forward, Recipe, Scan, Undo, WayBack};
use crate::scores::{argmax, softmax};
use crate::shape::Extent;
use crate::transfer::Input;
use crate::volume::{Affine, Axes, Volume, VolumeError, VolumeErrorKind, reorient, sizes};

/// A scan as nnU-Net gives it to the network, and what brings logits back to the scan's grid.
#[derive(Clone, Debug)]
pub struct Case {
    /// The network's input: transposed, cropped to what is not 0, scaled, resampled. [`crate::Windows`] pad what they need.
    pub volume: Volume<f32>,
    /// Of the transposed scan.
    whole: Extent,
    spacing: [f64; 3],
    /// First voxel and extent of what was cropped to.
    first: [usize; 3],
    size: [usize; 3],
    /// Of the scan.
    axes: Axes,
    affine: Affine,
    /// How results are resampled, and the axis by itself.
    back: (Resampling, Option<usize>),
    /// Whether the network's results come as probabilities.
    probable: bool,
}

impl Case {
    /// Prepares a scan for the model of a card whose `input.nnunet` is `pipeline`. It is resampled
    /// by the spacing that the pipeline's [`super::Reader`] says.
    ///
    /// # Errors
    /// When the scan does not have the model's number of channels, its values are not what the model's scaling is for, or its
    /// spacing is absurdly far from the model's.
    pub fn new<'a>(card: &'a Card, pipeline: &Pipeline, scan: impl Into<Scan<'a>>) -> Result<Self, VolumeError> {
        let recipe = pipeline.recipe(card.input.axes);
        let scores = 4.0 * f64::from(card.classes());
        let mut needs = card.needs(scores, scores);
        (needs.channels, needs.grey) = (u32::try_from(pipeline.channels.len()).unwrap_or(u32::MAX), false);
        Self::of(Forward::new(&recipe, &scan.into(), needs)?, &recipe)
    }

    /// The scan that went through the steps of a recipe, and what brings scores back.
    pub(crate) fn of(forward: Forward<'_>, recipe: &Recipe) -> Result<Self, VolumeError> {
        let unsupported = |text: String| VolumeError::new(VolumeErrorKind::Unsupported, text);
        let back = recipe.way_back().map_err(unsupported)?;
        let undo = forward.undo.as_slice();
        let (WayBack::Spline { orders, half }, [.., Undo::Cut { before, start }, Undo::Resampled { before: cropped, spacing, .. }]) =
            (back, undo)
        else {
            return Err(unsupported("the recipe's results are not those of nnU-Net".into()));
        };
        let (whole, spacing, size) = (*before, *spacing, sizes(cropped.extent));
        let first = start.map(|i| usize::try_from(i).unwrap_or(0));
        let (axes, affine) = forward.seen;
        let volume = forward.into_volume();
        let axis = orders.axis_back(recipe.transpose().filter(|_| !half), spacing, volume.spacing);
        Ok(Self { volume, whole, spacing, first, size, axes, affine, back: (orders, axis), probable: !half })
    }

    /// The network's input.
    #[must_use]
    pub fn input(&self) -> Input<'_> {
        Input { channels: self.volume.channels, extent: self.volume.extent, data: &self.volume.data }
    }

    /// Labels on the scan's grid of logits `[C][D][H][W]` over the input, with the pipeline of nnU-Net v1 of probabilities; probabilities
    /// too, if they are wanted.
    ///
    /// # Errors
    /// When the logits are not those of this input.
    pub fn export(&self, logits: &[f32], classes: u32, probabilities: bool) -> Result<(Volume<u16>, Option<Volume<f32>>), VolumeError> {
        let from = sizes(self.volume.extent);
        let voxels: usize = from.iter().product();
        if logits.len() != voxels * classes as usize {
            let text = format!("{} logits are not those of {classes} classes over {}", logits.len(), self.volume.extent);
            return Err(VolumeError::new(VolumeErrorKind::GridMismatch, text));
        }
        let (resample, axis) = self.back;
        let resampled = logits.chunks_exact(voxels).flat_map(|map| resample.apply(map, [from, self.size], axis));
        // v2 keeps logits as 16-bit floats
        let mut maps: Vec<f32> = if self.probable { resampled.collect() } else { resampled.map(rounded).collect() };
        let whole = sizes(self.whole);
        let labels = paste(&argmax(&maps, classes), whole, self.first, self.size, 0);
        let labels = reorient(&Volume::new(1, self.whole, self.spacing, self.volume.axes, labels)?, self.axes).with_affine(self.affine);
        if !probabilities {
            return Ok((labels, None));
        }
        if !self.probable {
            softmax(&mut maps, classes);
        }
        let cropped: usize = self.size.iter().product();
        let outside = |class: usize| if class == 0 { 1.0 } else { 0.0 };
        let pasted = maps.chunks_exact(cropped).enumerate().flat_map(|(c, map)| paste(map, whole, self.first, self.size, outside(c)));
        let maps = Volume::new(classes, self.whole, self.spacing, self.volume.axes, pasted.collect())?;
        Ok((labels, Some(reorient(&maps, self.axes).with_affine(self.affine))))
    }
}

/// The mean of several folds' logits: their sum, fold by fold, and at last the division. In 16-bit floats as nnU-Net v2 takes it, or
/// in f32 as v1 does with probabilities.
#[derive(Clone, Debug)]
pub struct Average {
    sum: Vec<f32>,
    folds: u16,
    half: bool,
}

impl Average {
    /// Of no fold yet; `half` says whether the sum is kept in 16-bit floats.
    #[must_use]
    pub fn new(half: bool) -> Self {
        Self { sum: Vec::new(), folds: 0, half }
    }

    /// Adds the logits of a fold.
    pub fn add(&mut self, logits: Vec<f32>) {
        self.folds += 1;
        if self.sum.is_empty() {
            self.sum = logits;
        } else {
            let half = self.half;
            self.sum.par_iter_mut().zip(logits).for_each(|(sum, v)| *sum = if half { rounded(*sum + v) } else { *sum + v });
        }
    }

    /// The mean.
    #[must_use]
    pub fn finish(mut self) -> Vec<f32> {
        if self.folds > 1 {
            let (folds, half) = (f32::from(self.folds), self.half);
            self.sum.par_iter_mut().for_each(|sum| *sum = if half { rounded(*sum / folds) } else { *sum / folds });
        }
        self.sum
    }
}

fn rounded(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nnunet::{Reader, Scaling};

    fn card(transpose: [usize; 3], spacing: &[f64]) -> Result<(Card, Pipeline), Box<dyn std::error::Error>> {
        let resample = Resampling { order: 3, order_along: 0, separate: None };
        let pipeline = Pipeline {
            version: 2,
            transpose,
            spacing_mm: spacing.to_vec(),
            channels: vec![Scaling::None],
            resample,
            resample_logits: Resampling { order: 1, ..resample },
            reader: Reader::SimpleItk,
        };
        Ok((serde_json::from_str(r#"{"architecture":"x","config":{}}"#)?, pipeline))
    }

    #[test]
    fn labels_come_back_to_their_voxels() -> Result<(), Box<dyn std::error::Error>> {
        let mut data = vec![0.0; 6 * 7 * 8];
        let at = |z: usize, y: usize, x: usize| (z * 7 + y) * 8 + x;
        for (z, y, x) in (1..5).flat_map(|z| (2..6).flat_map(move |y| (3..8).map(move |x| (z, y, x)))) {
            data[at(z, y, x)] = if z > 2 && x > 4 { 9.0 } else { 1.0 };
        }
        let scan = Volume::new(1, Extent::new(6, 7, 8), [2.0, 1.0, 1.5], "SAR".parse()?, data)?;
        let (card, mut pipeline) = card([2, 0, 1], &[1.5, 2.0, 1.0])?;
        let case = Case::new(&card, &pipeline, &scan)?;
        assert_eq!((case.volume.extent, case.volume.axes.to_string().as_str()), (Extent::new(5, 4, 4), "RSA"));
        let logits: Vec<f32> = case.volume.data.iter().map(|v| 5.0 - v).chain(case.volume.data.iter().map(|v| v - 5.0)).collect();
        let (labels, maps) = case.export(&logits, 2, true)?;
        let want: Vec<u16> = scan.data.iter().map(|v| u16::from(*v > 5.0)).collect();
        assert_eq!((labels.data, labels.extent, labels.spacing), (want, scan.extent, scan.spacing));
        let maps = maps.ok_or("probabilities were asked for")?;
        assert_eq!((maps.data[0], maps.data[336]), (1.0, 0.0));
        assert!(maps.data[336 + at(4, 2, 7)] > 0.99);
        assert!(case.export(&logits[1..], 2, false).is_err());
        // an axis of a 2d configuration stays
        pipeline.spacing_mm = vec![1.0, 1.0];
        assert_eq!(Case::new(&card, &pipeline, &scan)?.volume.extent, Extent::new(5, 8, 4));
        // what cannot be
        pipeline.spacing_mm = vec![1e-6; 3];
        let kind = Case::new(&card, &pipeline, &scan).err().map(|e| e.kind());
        assert_eq!(kind, Some(VolumeErrorKind::TooLarge));
        pipeline.spacing_mm = vec![1e6; 3];
        assert_eq!(Case::new(&card, &pipeline, &scan).err().map(|e| e.kind()), Some(VolumeErrorKind::Unsupported));
        pipeline.channels = vec![];
        assert_eq!(Case::new(&card, &pipeline, &scan).err().map(|e| e.kind()), Some(VolumeErrorKind::GridMismatch));
        Ok(())
    }

    #[test]
    fn folds_are_averaged_in_the_versions_precision() -> Result<(), Box<dyn std::error::Error>> {
        let (_, mut pipeline) = card([0, 1, 2], &[1.0; 3])?;
        for (version, want) in [(2, 1024.0), (1, 1024.5)] {
            pipeline.version = version;
            let mut mean = Average::new(!pipeline.is_first());
            mean.add(vec![2048.0, 1.0]);
            assert_eq!(mean.clone().finish(), [2048.0, 1.0]);
            mean.add(vec![1.0, 2.0]);
            assert_eq!(mean.finish(), [want, 1.5]);
        }
        Ok(())
    }

    #[test]
    fn the_first_version_exports_probabilities() -> Result<(), Box<dyn std::error::Error>> {
        let scan = Volume::new(1, Extent::new(2, 2, 2), [1.0; 3], "SAR".parse()?, vec![1.0; 8])?;
        let (card, mut pipeline) = card([0, 1, 2], &[1.0; 3])?;
        pipeline.version = 1;
        let probabilities: Vec<f32> = (0..16).map(|i| if i < 8 { 0.4 } else { 0.6 }).collect();
        let (labels, maps) = Case::new(&card, &pipeline, &scan)?.export(&probabilities, 2, true)?;
        assert!(labels.data.iter().all(|&l| l == 1));
        assert_eq!(maps.ok_or("probabilities were asked for")?.data, probabilities);
        Ok(())
    }
}
