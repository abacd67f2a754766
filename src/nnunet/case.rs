//! A scan on its way to the network, and logits on their way back.

use std::borrow::Cow;

use super::crop::{body, bounds, cut};
use super::export::{Export, ExportOptions};
use super::pipeline::{Pipeline, Resampling, Scaling};
use crate::export::{Exported, Layout, hand_over, mismatch};
use crate::model::Card;
use crate::shape::Extent;
use crate::transfer::Input;
use crate::volume::orient::View;
use crate::volume::resample::plausible;
use crate::volume::spline::{self, Order};
use crate::volume::{Affine, Axes, Volume, VolumeError, VolumeErrorKind, reorient, sizes};

/// A scan as nnU-Net gives it to the network, and what brings logits back to the scan's grid.
#[derive(Clone, Debug)]
pub struct Case {
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
}

impl Case {
    /// Prepares a scan for the model of a card whose `input.nnunet` is `pipeline`. It is resampled
    /// by its `spacing`, which is to be what the pipeline's [`super::Reader`] says.
    ///
    /// # Errors
    /// When the scan does not have the model's number of channels, its values are not what the model's scaling is for, or its
    /// spacing is absurdly far from the model's.
    pub fn new(card: &Card, pipeline: &Pipeline, scan: &Volume<f32>) -> Result<Self, VolumeError> {
        if scan.channels as usize != pipeline.channels.len() {
            let (has, needs, names) = (scan.channels, pipeline.channels.len(), card.input.channels.join(", "));
            let text = format!("the scan has {has} channels, the model needs {needs} ({names})");
            return Err(VolumeError::new(VolumeErrorKind::GridMismatch, text));
        }
        let turned = turned(card, pipeline, scan)?;
        let spacing = turned.spacing;

        let mask = body(&turned);
        let (first, size) = bounds(&mask, turned.extent);
        let n = sizes(turned.extent);
        let mask = cut(&mask, n, first, size);
        let mut values = cut(&turned.data, n, first, size);
        let (whole, axes) = (turned.extent, turned.axes);
        drop(turned);

        let mut target = spacing;
        target[3 - pipeline.spacing_mm.len()..].copy_from_slice(&pipeline.spacing_mm);
        let exact = [0, 1, 2].map(|a| (spacing[a] / target[a] * size[a] as f64).round_ties_even());
        // the cropped scan, the network's input, and labels
        let channels = f64::from(scan.channels);
        let cropped = size.iter().product::<usize>() as f64;
        let bytes = |n: f64| 4.0 * channels * (n + cropped) + 2.0 * cropped;
        let shape = plausible(exact, spacing, target, bytes)?;
        let to = sizes(shape);

        let voxels = mask.len().max(1);
        let mut data = Vec::with_capacity(to.iter().product::<usize>() * pipeline.channels.len());
        let axis = pipeline.resample.axis(spacing, target);
        let bad = |e: String| VolumeError::new(VolumeErrorKind::Unsupported, e);
        if pipeline.is_first() {
            let masked = pipeline.channels.iter().any(Scaling::masked);
            let mask = if masked { resized(&mask, [size, to], axis) } else { Vec::new() };
            for (channel, scaling) in values.chunks_exact(voxels).zip(&pipeline.channels) {
                let mut channel = pipeline.resample.apply(channel, [size, to], axis);
                scaling.apply(&mut channel, &mask, pipeline.version).map_err(bad)?;
                data.extend(channel);
            }
        } else {
            for (channel, scaling) in values.chunks_exact_mut(voxels).zip(&pipeline.channels) {
                scaling.apply(channel, &mask, pipeline.version).map_err(bad)?;
                data.extend(pipeline.resample.apply(channel, [size, to], axis));
            }
        }
        let volume = Volume::new(scan.channels, shape, target, axes, data)?;
        let back = (pipeline.resample_logits, pipeline.axis_back(spacing, target));
        Ok(Self { volume, whole, spacing, first, size, axes: scan.axes, affine: *scan.affine(), back, probable: pipeline.is_first() })
    }

    /// The host bytes that a scan of `channels` takes as it was read, at most as it is prepared, and at most
    /// meanwhile, itself included: as if nothing could be cropped away.
    #[must_use]
    pub fn host_bytes(card: &Card, pipeline: &Pipeline, scan: &Volume<f32>) -> [u64; 3] {
        let axes = card.input.axes.unwrap_or(scan.axes).directions();
        let Ok(axes) = Axes::new(pipeline.transpose.map(|axis| axes[axis])) else { return [0; 3] };
        let view = View::new(scan, axes);
        let mut target = view.spacing;
        target[3 - pipeline.spacing_mm.len()..].copy_from_slice(&pipeline.spacing_mm);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate of a count; what is absurd is refused elsewhere"
        )]
        let to = [0, 1, 2].map(|a| (view.spacing[a] / target[a] * view.sizes[a] as f64).round_ties_even() as usize);
        let (channels, voxels) = (u64::from(scan.channels), scan.extent.voxels());
        let axis = pipeline.resample.axis(view.spacing, target).map(|axis| (axis, Order::Linear));
        let read = 4 * channels * voxels;
        let prepared = 4 * channels * to.iter().map(|&n| n as u64).product::<u64>();
        let turning = if axes == scan.axes { 0 } else { read };
        let same = to == view.sizes;
        let resampling = if same { 0 } else { spline::resized_bytes(view.sizes, to, axis) };
        // the turned scan and a mask, or the cropped scan and what becomes of it
        let most = (turning + read + 10 * voxels).max(read + 2 * voxels + resampling + prepared + prepared / channels.max(1));
        [read, prepared, read + most]
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

    /// Labels on the scan's grid of logits `[C][D][H][W]` over the input, with the pipeline of nnU-Net v1 of probabilities; probabilities
    /// too, if they are wanted. [`super::Export`] takes them plane by plane.
    ///
    /// # Errors
    /// When the logits are not those of this input.
    pub fn export(&self, logits: &[f32], classes: u32, probabilities: bool) -> Result<(Volume<u16>, Option<Volume<f32>>), VolumeError> {
        let mut export = Export::new(self, classes, ExportOptions { probabilities, ..ExportOptions::default() });
        hand_over(logits, classes, self.volume.extent, &mut export).map_err(|e| mismatch(&e))?;
        let Exported { labels, probabilities } = export.finish()?;
        Ok((labels, probabilities.map(|p| p.to_volume()).transpose()?))
    }
}

/// The scan along the network's axes.
fn turned<'a>(card: &Card, pipeline: &Pipeline, scan: &'a Volume<f32>) -> Result<Cow<'a, Volume<f32>>, VolumeError> {
    let along = |scan: Cow<'a, Volume<f32>>, axes| if scan.axes == axes { scan } else { Cow::Owned(reorient(&scan, axes)) };
    let oriented = along(Cow::Borrowed(scan), card.input.axes.unwrap_or(scan.axes));
    let directions = oriented.axes.directions();
    let axes = Axes::new(pipeline.transpose.map(|axis| directions[axis]))?;
    Ok(along(oriented, axes))
}

/// A mask on another grid as nnU-Net v1 resamples it: inside and outside each linearly, one of half or more is it, inside before
/// outside; along `axis` the nearest.
fn resized(mask: &[bool], shapes: [[usize; 3]; 2], axis: Option<usize>) -> Vec<bool> {
    let linear = Resampling { order: 1, order_along: 0, separate: None };
    let inside: Vec<f32> = mask.iter().map(|&inside| f32::from(u8::from(inside))).collect();
    linear.apply(&inside, shapes, axis).into_iter().map(|share| share >= 0.5).collect()
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

    #[test]
    fn masks_are_resampled_by_halves() {
        let mask = [true, true, false, false];
        assert_eq!(resized(&mask, [[1, 1, 4], [1, 1, 2]], None), [true, false]);
        // between inside and outside lies a half, which is inside
        assert_eq!(resized(&mask, [[1, 1, 4], [1, 1, 3]], None), [true, true, false]);
        assert_eq!(resized(&mask, [[1, 1, 4], [1, 1, 8]], Some(2)), [true, true, true, true, false, false, false, false]);
    }
}
