//! A scan on its way to the network, and logits on their way back.

pub(crate) mod export;

use self::export::{SplineExport, SplineExportOptions};
use crate::export::{Exported, Layout, Reduction, hand_over, mismatch};
use crate::model::Card;
use crate::nnunet::Pipeline;
use crate::scan::{Filtered, Forward, Recipe, Resample, Resampling, Scan, Step, Undo, WayBack};
use crate::shape::Extent;
use crate::transfer::Input;
use crate::volume::orient::View;
use crate::volume::{Affine, Axes, Volume, VolumeError, VolumeErrorKind, sizes};

/// A scan as nnU-Net gives it to the network, and what brings logits back to the scan's grid.
#[derive(Clone, Debug)]
pub struct SplineCase {
    /// The network's input: transposed, cropped to what is not 0, scaled, resampled. [`crate::Windows`] pad what they need.
    pub volume: Volume<f32>,
    /// Of the transposed scan.
    pub(super) whole: Extent,
    pub(super) spacing: [f64; 3],
    /// First voxel and extent of what was cropped to.
    pub(super) first: [usize; 3],
    pub(super) size: [usize; 3],
    /// Of the scan.
    pub(super) axes: Axes,
    pub(super) affine: Affine,
    /// How results are resampled, and the axis by itself.
    pub(super) back: (Resampling, Option<usize>),
    /// Whether the network's results come as probabilities.
    pub(super) probable: bool,
    /// The reduction that makes labels of them.
    pub(super) reduction: Reduction,
    /// Filters of the labels, and the volume of a voxel in mm³.
    pub(super) filters: (Vec<Filtered>, f64),
}

impl SplineCase {
    /// Prepares a scan for the model of a card whose `input.nnunet` is `pipeline`. It is resampled
    /// by the spacing that the pipeline's [`crate::scan::Reader`] says.
    ///
    /// # Errors
    /// When the scan does not have the model's number of channels, its values are not what the model's scaling is for, or its
    /// spacing is absurdly far from the model's.
    pub fn new<'a>(card: &'a Card, pipeline: &Pipeline, scan: impl Into<Scan<'a>>) -> Result<Self, VolumeError> {
        let recipe = pipeline.recipe(card.input.axes);
        let channels = u32::try_from(pipeline.channels.len()).unwrap_or(u32::MAX);
        let mut needs = card.needs(0.0, Self::voxel_bytes(channels));
        (needs.channels, needs.grey) = (channels.saturating_add(recipe.added()), false);
        Self::of(Forward::new(&recipe, &scan.into(), needs)?, &recipe)
    }

    /// The scan that went through the steps of a recipe, and what brings scores back.
    pub(crate) fn of(forward: Forward<'_>, recipe: &Recipe) -> Result<Self, VolumeError> {
        let unsupported = |text: String| VolumeError::new(VolumeErrorKind::Unsupported, text);
        let back = recipe.way_back().map_err(unsupported)?;
        let undo = forward.undo.as_slice();
        let (
            WayBack::Spline { orders, half, regions, filters },
            [.., Undo::Cut { before, start }, Undo::Resampled { before: cropped, spacing, .. }],
        ) = (back, undo)
        else {
            return Err(unsupported("the recipe's results are not those of nnU-Net".into()));
        };
        let (whole, spacing, size) = (*before, *spacing, sizes(cropped.extent));
        let first = start.map(|i| usize::try_from(i).unwrap_or(0));
        let (axes, affine) = forward.seen;
        let volume = forward.into_volume();
        let axis = orders.axis_back(recipe.transpose().filter(|_| !half), spacing, volume.spacing);
        let reduction = regions.map_or(Reduction::ArgMax, Reduction::Regions);
        let mut file = [0.0; 3];
        recipe.transpose().unwrap_or([0, 1, 2]).iter().zip(spacing).for_each(|(&axis, mm)| file[axis] = mm);
        let filters = (filters, file[2] * file[1] * file[0]);
        Ok(Self { volume, whole, spacing, first, size, axes, affine, back: (orders, axis), probable: !half, reduction, filters })
    }

    /// The bytes that a voxel of the cropped scan takes on the host: its channels and its label.
    pub(crate) fn voxel_bytes(channels: u32) -> f64 {
        4.0 * f64::from(channels) + 2.0
    }

    /// The host bytes that a scan takes as it was read, at most as a recipe prepares it, and at most
    /// meanwhile, itself included: as if nothing could be cropped away.
    #[must_use]
    pub(crate) fn host_bytes(recipe: &Recipe, scan: &Scan<'_>) -> [u64; 3] {
        let image = scan.image;
        let (channels, voxels) = (u64::from(image.channels), image.extent.voxels());
        let read = 4 * channels * voxels;
        let (mut axes, mut spacing, mut size) = (image.axes, image.spacing, sizes(image.extent));
        let (mut to, mut resampling) = (size, 0);
        for step in &recipe.steps {
            let turned = match step {
                Step::Read { by } => {
                    spacing = by.spacing(scan);
                    continue;
                }
                Step::Orient { axes } => Some(*axes),
                Step::Transpose { order } => {
                    let directions = axes.directions();
                    Axes::new(order.map(|axis| directions[axis])).ok()
                }
                Step::Resample(Resample::Spline { mm, orders }) => {
                    let mut target = spacing;
                    target[3 - mm.len()..].copy_from_slice(mm);
                    (to, resampling) = orders.takes(spacing, target, size);
                    continue;
                }
                _ => continue,
            };
            if let Some(turned) = turned {
                let from = Extent::from(size.map(|n| u32::try_from(n).unwrap_or(u32::MAX)));
                let view = View::of(from, spacing, axes, turned);
                (axes, spacing, size) = (turned, view.spacing, view.sizes);
                to = size;
            }
        }
        let turning = if axes == image.axes { 0 } else { read };
        let added = u64::from(recipe.added());
        let prepared = 4 * (channels + added) * to.iter().map(|&n| n as u64).product::<u64>();
        // the turned scan and a mask, or the cropped scan and what becomes of it
        let most = (turning + read + 10 * voxels).max(read + 2 * voxels + resampling + prepared + prepared / channels.max(1));
        let stage = recipe.previous().map_or(0, |stage| stage.bytes(voxels, prepared / (4 * (channels + added).max(1))));
        [read, prepared, read + most + stage]
    }

    /// The network's input.
    #[must_use]
    pub fn input(&self) -> Input<'_> {
        Input { channels: self.volume.channels, extent: self.volume.extent, data: &self.volume.data }
    }

    /// Where the cropped, transposed scan lies in the scan.
    pub(super) fn layout(&self) -> Layout {
        let turned = (self.whole, self.spacing, self.volume.axes);
        Layout::new(turned, (self.first, self.size), (self.axes, self.affine))
    }

    /// The export of one fold.
    pub(crate) fn export_options(&self, probabilities: bool) -> SplineExportOptions {
        SplineExportOptions { probabilities, reduction: self.reduction.clone(), ..SplineExportOptions::default() }
    }

    /// Labels on the scan's grid of logits `[C][D][H][W]` over the input, with the pipeline of nnU-Net v1 of
    /// probabilities; probabilities too, if they are wanted. [`SplineExport`] takes them plane by plane.
    ///
    /// # Errors
    /// When the logits are not those of this input.
    pub fn export(&self, logits: &[f32], classes: u32, probabilities: bool) -> Result<(Volume<u16>, Option<Volume<f32>>), VolumeError> {
        let mut export = SplineExport::new(self, classes, self.export_options(probabilities));
        hand_over(logits, classes, self.volume.extent, &mut export).map_err(|e| mismatch(&e))?;
        let Exported { labels, probabilities } = export.finish()?;
        Ok((labels, probabilities.map(|p| p.to_volume()).transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nnunet::{Reader, Scaling};

    fn card(transpose: [usize; 3], spacing: &[f64]) -> Result<(Card, Pipeline), Box<dyn std::error::Error>> {
        let resample = Resampling { order: 3, ..Resampling::default() };
        let pipeline = Pipeline {
            version: 2,
            transpose,
            spacing_mm: spacing.to_vec(),
            channels: vec![Scaling::None],
            resample,
            resample_logits: Resampling { order: 1, ..resample },
            regions: None,
            postprocessing: Vec::new(),
            previous: None,
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
        let case = SplineCase::new(&card, &pipeline, &scan)?;
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
        assert_eq!(SplineCase::new(&card, &pipeline, &scan)?.volume.extent, Extent::new(5, 8, 4));
        // what cannot be
        pipeline.spacing_mm = vec![1e-6; 3];
        let kind = SplineCase::new(&card, &pipeline, &scan).err().map(|e| e.kind());
        assert_eq!(kind, Some(VolumeErrorKind::TooLarge));
        pipeline.spacing_mm = vec![1e6; 3];
        assert_eq!(SplineCase::new(&card, &pipeline, &scan).err().map(|e| e.kind()), Some(VolumeErrorKind::Unsupported));
        pipeline.channels = vec![];
        assert_eq!(SplineCase::new(&card, &pipeline, &scan).err().map(|e| e.kind()), Some(VolumeErrorKind::GridMismatch));
        Ok(())
    }

    #[test]
    fn the_first_version_exports_probabilities() -> Result<(), Box<dyn std::error::Error>> {
        let scan = Volume::new(1, Extent::new(2, 2, 2), [1.0; 3], "SAR".parse()?, vec![1.0; 8])?;
        let (card, mut pipeline) = card([0, 1, 2], &[1.0; 3])?;
        pipeline.version = 1;
        let probabilities: Vec<f32> = (0..16).map(|i| if i < 8 { 0.4 } else { 0.6 }).collect();
        let (labels, maps) = SplineCase::new(&card, &pipeline, &scan)?.export(&probabilities, 2, true)?;
        assert!(labels.data.iter().all(|&l| l == 1));
        assert_eq!(maps.ok_or("probabilities were asked for")?.data, probabilities);
        Ok(())
    }
}
