//! A scan on its way to the network, and what the network says on its way back.

use super::pipeline::{Invert, Largest, Pipeline, Transform};
use super::resample::{Reading, resample};
use super::{intensity, largest};
use crate::model::Card;
use crate::pipeline::{argmax, softmax};
use crate::shape::Extent;
use crate::transfer::Input;
use crate::volume::resample::{crop, pad_to_multiple, place, plausible};
use crate::volume::{Affine, Axes, Volume, VolumeError, VolumeErrorKind, reorient, sizes};

/// Spacings that differ by less than this, in mm or as a share, are taken as equal (MONAI's `AFFINE_TOL`).
const TOLERANCE: f64 = 1e-3;

/// A scan as MONAI gives it to the network, and what brings results back to the scan's grid.
#[derive(Clone, Debug)]
pub struct Case {
    /// The network's input, zero-padded to the network's stride where it runs at once.
    pub volume: Volume<f32>,
    /// What happened to the scan's space, in order.
    steps: Vec<Step>,
    /// Of the scan.
    axes: Axes,
    affine: Affine,
    invert: Invert,
    nearest: bool,
    largest: Option<Largest>,
    /// What a voxel of the network's input takes on the host there and back.
    bytes: f64,
}

/// A change of space that can be undone.
#[derive(Clone, Debug)]
enum Step {
    Turned { before: Axes },
    Resampled { before: Extent, spacing: [f64; 3], step: [f64; 3], nearest: bool },
    Cut { before: Extent, start: [i64; 3] },
}

impl Case {
    /// Prepares a scan for the model of a card whose `input.monai` is `pipeline`; for windows, or for the whole at once if the
    /// extent must be a multiple of something.
    ///
    /// # Errors
    /// When the scan does not have the model's number of channels, nothing of it is foreground, or its spacing is absurdly far from
    /// the model's.
    pub fn new(card: &Card, pipeline: &Pipeline, scan: &Volume<f32>, multiple: Option<[u32; 3]>) -> Result<Self, VolumeError> {
        if !card.takes(scan.channels) {
            let text = format!("the scan has {} channels, the model needs {}", scan.channels, card.in_channels());
            return Err(VolumeError::new(VolumeErrorKind::GridMismatch, text));
        }
        let [d, h, w] = scan.axes.directions();
        let mut case = Self {
            volume: reorient(scan, Axes::new([w, h, d])?),
            steps: Vec::new(),
            axes: scan.axes,
            affine: *scan.affine(),
            invert: pipeline.invert,
            nearest: pipeline.nearest,
            largest: pipeline.largest.clone(),
            bytes: 4.0 * f64::from(scan.channels + card.classes()),
        };
        for transform in &pipeline.transforms {
            match transform {
                Transform::Orientation { axes } => {
                    case.steps.push(Step::Turned { before: case.volume.axes });
                    case.volume = reorient(&case.volume, *axes);
                }
                Transform::Spacing { mm, nearest } => case.space(*mm, *nearest)?,
                Transform::CropForeground { margin, allow_smaller, k_divisible } => {
                    case.crop_foreground(*margin, *allow_smaller, *k_divisible)?;
                }
                values => {
                    let voxels = sizes(case.volume.extent).iter().product();
                    intensity::apply(values, &mut case.volume.data, voxels);
                }
            }
        }
        if let Some(multiple) = multiple {
            let (padded, offset) = pad_to_multiple(&case.volume, multiple.into(), 0.0);
            let start = offset.axes().map(|n| -i64::from(n));
            case.steps.push(Step::Cut { before: case.volume.extent, start });
            case.volume = padded;
        }
        Ok(case)
    }

    fn space(&mut self, mm: [f64; 3], nearest: bool) -> Result<(), VolumeError> {
        let (before, spacing) = (self.volume.extent, self.volume.spacing);
        let target = [0, 1, 2].map(|axis| if mm[axis] > 0.0 { mm[axis] } else { spacing[axis] });
        let n = sizes(before);
        let exact = [0, 1, 2].map(|axis| ((n[axis] as f64 - 1.0) * spacing[axis] / target[axis] + 1.0).round_ties_even());
        let to = plausible(exact, spacing, target, |n| n * self.bytes)?;
        let step = [0, 1, 2].map(|axis| target[axis] / spacing[axis]);
        let near = |a: f64, b: f64| (a - b).abs() <= TOLERANCE + 1e-5 * b.abs();
        let equal = (0..3).all(|a| near(spacing[a], target[a])) || (0..3).all(|a| near(step[a], 1.0));
        if equal && before == to {
            return Ok(());
        }
        let reading = if nearest { Reading::Nearest } else { Reading::Linear };
        let shape = [n, sizes(to)];
        let data = self.channels().flat_map(|channel| resample(channel, shape, step, reading)).collect();
        self.volume = Volume::new(self.volume.channels, to, target, self.volume.axes, data)?;
        self.steps.push(Step::Resampled { before, spacing, step, nearest });
        Ok(())
    }

    fn channels(&self) -> impl Iterator<Item = &[f32]> {
        self.volume.data.chunks_exact(sizes(self.volume.extent).iter().product::<usize>().max(1))
    }

    fn crop_foreground(&mut self, margin: [u32; 3], allow_smaller: bool, k_divisible: [u32; 3]) -> Result<(), VolumeError> {
        let before = self.volume.extent;
        let n = sizes(before);
        let (mut first, mut end) = (n, [0; 3]);
        for channel in self.channels() {
            for (at, _) in channel.iter().enumerate().filter(|(_, v)| **v > 0.0) {
                for (axis, i) in [at / (n[1] * n[2]), at / n[2] % n[1], at % n[2]].into_iter().enumerate() {
                    first[axis] = first[axis].min(i);
                    end[axis] = end[axis].max(i + 1);
                }
            }
        }
        if end[0] == 0 {
            let text = "no voxel of the prepared scan is above 0, so there is no foreground to crop to";
            return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
        }
        let (mut start, mut size) = ([0; 3], [0; 3]);
        for axis in 0..3 {
            let extent = i64::from(before.axes()[axis]);
            let [mut low, mut high] = [first[axis], end[axis]].map(|i| i64::try_from(i).unwrap_or(extent));
            (low, high) = (low - i64::from(margin[axis]), high + i64::from(margin[axis]));
            if allow_smaller {
                (low, high) = (low.max(0), high.min(extent));
            }
            let width = high - low;
            let k = i64::from(k_divisible[axis].max(1));
            let wanted = (width + k - 1) / k * k;
            start[axis] = low - (wanted - width) / 2;
            size[axis] = wanted;
        }
        self.volume = cut(&self.volume, start, size)?;
        self.steps.push(Step::Cut { before, start });
        Ok(())
    }

    /// The network's input.
    #[must_use]
    pub fn input(&self) -> Input<'_> {
        Input { channels: self.volume.channels, extent: self.volume.extent, data: &self.volume.data }
    }

    /// Labels on the scan's grid of logits `[C][D][H][W]` over the input; probabilities too, if they are wanted. Where the scan was
    /// cropped away, labels are 0, and so are MONAI's probabilities of all classes.
    ///
    /// # Errors
    /// When the logits are not those of this input.
    pub fn export(
        &self,
        mut logits: Vec<f32>,
        classes: u32,
        probabilities: bool,
    ) -> Result<(Volume<u16>, Option<Volume<f32>>), VolumeError> {
        let over = |channels, data| Volume::new(channels, self.volume.extent, self.volume.spacing, self.volume.axes, data);
        let keep = |labels: &mut [u16], extent: Extent, first: bool| {
            if let Some(parts) = self.largest.as_ref().filter(|l| l.first == first) {
                largest::keep(labels, sizes(extent), parts);
            }
        };
        let (labels, maps) = if self.invert == Invert::Labels {
            let mut labels = argmax(&logits, classes);
            keep(&mut labels, self.volume.extent, true);
            let labels = self.back(over(1, labels.into_iter().map(f32::from).collect())?, true)?;
            let mut labels = whole(&labels)?;
            keep(&mut labels.data, labels.extent, false);
            let maps = probabilities.then(|| {
                softmax(&mut logits, classes);
                self.back(over(classes, logits)?, self.nearest)
            });
            (labels, maps.transpose()?)
        } else {
            if self.invert == Invert::Probabilities {
                softmax(&mut logits, classes);
            }
            let mut maps = self.back(over(classes, logits)?, self.nearest)?;
            let mut labels = argmax(&maps.data, classes);
            keep(&mut labels, maps.extent, false);
            let labels = Volume::new(1, maps.extent, maps.spacing, maps.axes, labels)?;
            if probabilities && self.invert == Invert::Logits {
                softmax(&mut maps.data, classes);
            }
            (labels, probabilities.then_some(maps))
        };
        let labels = reorient(&labels, self.axes).with_affine(self.affine);
        Ok((labels, maps.map(|maps| reorient(&maps, self.axes).with_affine(self.affine))))
    }

    /// Undoes all steps; the axes are those of the file then.
    fn back(&self, mut volume: Volume<f32>, nearest: bool) -> Result<Volume<f32>, VolumeError> {
        for step in self.steps.iter().rev() {
            volume = match step {
                Step::Turned { before } => reorient(&volume, *before),
                Step::Cut { before, start } => cut(&volume, start.map(|n| -n), before.axes().map(i64::from))?,
                Step::Resampled { before, spacing, step, nearest: nearest_there } => {
                    let shape = [sizes(volume.extent), sizes(*before)];
                    let reading = if nearest || *nearest_there { Reading::Nearest } else { Reading::Linear };
                    let channels = volume.data.chunks_exact(shape[0].iter().product::<usize>().max(1));
                    let data = channels.flat_map(|channel| resample(channel, shape, step.map(|s| 1.0 / s), reading)).collect();
                    Volume::new(volume.channels, *before, *spacing, volume.axes, data)?
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

/// A box that may begin or end outside, where there are zeros.
fn cut(volume: &Volume<f32>, start: [i64; 3], size: [i64; 3]) -> Result<Volume<f32>, VolumeError> {
    let n = volume.extent.axes().map(i64::from);
    let inside = [0, 1, 2].map(|axis| (start[axis].max(0), (start[axis] + size[axis]).min(n[axis])));
    let narrow = |values: [i64; 3]| values.map(|v| u32::try_from(v).unwrap_or(0));
    let inner = crop(volume, narrow(inside.map(|(low, _)| low)).into(), narrow(inside.map(|(low, high)| high - low)).into())?;
    if inner.extent.axes().map(i64::from) == size {
        return Ok(inner);
    }
    let offset = narrow([0, 1, 2].map(|axis| inside[axis].0 - start[axis]));
    Ok(place(&inner, narrow(size).into(), offset.into(), 0.0))
}
