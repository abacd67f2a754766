//! A scan on its way to the network, and what the network says on its way back.

use super::pipeline::{Invert, Largest, Pipeline, Transform};
use super::resample::{Reading, resample};
use super::spacing::{self, Change};
use super::{Export, intensity};
use crate::export::{Exported, hand_over, mismatch};
use crate::model::Card;
use crate::shape::Extent;
use crate::transfer::Input;
use crate::volume::resample::{crop, pad_to_multiple, place, plausible};
use crate::volume::{Affine, Axes, Direction, Volume, VolumeError, VolumeErrorKind, closest, reorient, sizes};

/// A scan as MONAI gives it to the network, and what brings results back to the scan's grid.
#[derive(Clone, Debug)]
pub struct Case {
    /// The network's input, zero-padded to the network's stride where it runs at once.
    pub volume: Volume<f32>,
    /// The input without that padding, and its first voxel in it.
    pub(super) prepared: Grid,
    pub(super) offset: Extent,
    /// What happened to the scan's space, in order.
    steps: Vec<Step>,
    /// Of the scan, its axes in the order of the file, the fastest first.
    pub(super) scan: Grid,
    /// Of the scan as it was given.
    pub(super) axes: Axes,
    pub(super) affine: Affine,
    pub(super) invert: Invert,
    nearest: bool,
    pub(super) largest: Option<Largest>,
    /// The bytes that a voxel of the network's input takes on the host, there and back.
    bytes: f64,
}

/// Where voxels lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) extent: Extent,
    pub(super) axes: Axes,
    pub(super) affine: Affine,
}

impl Grid {
    fn of(volume: &Volume<f32>) -> Self {
        Self { extent: volume.extent, axes: volume.axes, affine: *volume.affine() }
    }

    pub(super) fn volume<T>(&self, channels: u32, data: Vec<T>) -> Result<Volume<T>, VolumeError> {
        Ok(Volume::new(channels, self.extent, self.affine.spacing(), self.axes, data)?.with_affine(self.affine))
    }
}

/// A change of space that can be undone.
#[derive(Clone, Debug)]
enum Step {
    Turned { before: Axes },
    Resampled { before: Grid, nearest: bool, align: bool },
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
        let volume = reorient(scan, Axes::new([w, h, d])?);
        let grid = Grid::of(&volume);
        let mut case = Self {
            volume,
            prepared: grid,
            offset: Extent::new(0, 0, 0),
            steps: Vec::new(),
            scan: grid,
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
                    case.volume = turned(&case.volume, *axes);
                }
                Transform::Spacing { mm, nearest, align_corners } => case.space(*mm, *nearest, *align_corners)?,
                Transform::CropForeground { margin, allow_smaller, k_divisible } => {
                    case.crop_foreground(*margin, *allow_smaller, *k_divisible)?;
                }
                values => {
                    let voxels = sizes(case.volume.extent).iter().product();
                    intensity::apply(values, &mut case.volume.data, voxels);
                }
            }
        }
        case.prepared = Grid::of(&case.volume);
        if let Some(multiple) = multiple {
            (case.volume, case.offset) = pad_to_multiple(&case.volume, multiple.into(), 0.0);
        }
        Ok(case)
    }

    fn space(&mut self, mm: [f64; 3], nearest: bool, align: bool) -> Result<(), VolumeError> {
        let before = Grid::of(&self.volume);
        let (to, shape) = spacing::target(&before.affine, sizes(before.extent), mm).ok_or_else(singular)?;
        let extent = plausible(shape, before.affine.spacing(), to.spacing(), |n| n * self.bytes)?;
        let reading = if nearest { Reading::Nearest } else { Reading::Linear };
        if let Some(volume) = resampled(&self.volume, &to, extent, reading, align)? {
            self.volume = volume;
            self.steps.push(Step::Resampled { before, nearest, align });
        }
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

    /// Labels of logits `[C][D][H][W]` over the input; probabilities too, if they are wanted, where
    /// [`super::Export`] brings them, which takes the logits plane by plane.
    ///
    /// # Errors
    /// When the logits are not those of this input.
    pub fn export(&self, logits: &[f32], classes: u32, probabilities: bool) -> Result<(Volume<u16>, Option<Volume<f32>>), VolumeError> {
        let mut export = Export::new(self, classes, probabilities);
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
        let before = |step: &Step| match step {
            Step::Turned { .. } => 0,
            Step::Resampled { before, .. } => before.extent.voxels(),
            Step::Cut { before, .. } => before.voxels(),
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
        Self { volume: v.regrid(v.extent, v.spacing, Vec::new()), steps: self.steps.clone(), largest: self.largest.clone(), ..*self }
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
                Step::Turned { before } => turned(&volume, *before),
                Step::Cut { before, start } => cut(&volume, start.map(|n| -n), before.axes().map(i64::from))?,
                Step::Resampled { before, nearest: nearest_there, align } => {
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

fn singular() -> VolumeError {
    let text = "the affine of the scan is degenerate (its voxel axes do not span space); repair the sform or qform";
    VolumeError::new(VolumeErrorKind::Format, text)
}

/// The volume along other axes, its affine as MONAI updates it.
fn turned(volume: &Volume<f32>, to: Axes) -> Volume<f32> {
    let same = |a: &Direction| to.directions().contains(a);
    let directions = volume.axes.directions();
    let n = sizes(volume.extent);
    let first = [0, 1, 2].map(|axis| if same(&directions[axis]) { 0.0 } else { n[axis] as f64 - 1.0 });
    let origin = spacing::shifted(volume.affine(), first).origin;
    let turned = reorient(volume, to);
    let affine = Affine { origin, ..*turned.affine() };
    turned.with_affine(affine)
}

/// The volume on another grid; `None` if MONAI leaves it as it is.
fn resampled(volume: &Volume<f32>, to: &Affine, extent: Extent, reading: Reading, align: bool) -> Result<Option<Volume<f32>>, VolumeError> {
    let shapes = [sizes(volume.extent), sizes(extent)];
    let Change::Resample(map) = spacing::map(volume.affine(), to, shapes, align).ok_or_else(singular)? else {
        return Ok(None);
    };
    let rows = [0, 1, 2].map(|row| map.affine.steps.map(|step| step[row]));
    let axes = Axes::new(closest::directions(rows).ok_or_else(singular)?)?;
    let data = resample(&volume.data, shapes, &map.theta, align, reading);
    let volume = Volume::new(volume.channels, extent, map.affine.spacing(), axes, data)?;
    Ok(Some(volume.with_affine(map.affine)))
}

/// A box that may begin or end outside, where there are zeros; its affine as MONAI updates it.
fn cut(volume: &Volume<f32>, start: [i64; 3], size: [i64; 3]) -> Result<Volume<f32>, VolumeError> {
    let n = volume.extent.axes().map(i64::from);
    let inside = [0, 1, 2].map(|axis| (start[axis].max(0), (start[axis] + size[axis]).min(n[axis])));
    let narrow = |values: [i64; 3]| values.map(|v| u32::try_from(v).unwrap_or(0));
    let cropped = spacing::shifted(volume.affine(), start.map(|n| n.max(0) as f64));
    let affine = spacing::shifted(&cropped, start.map(|n| n.min(0) as f64));
    let inner = crop(volume, narrow(inside.map(|(low, _)| low)).into(), narrow(inside.map(|(low, high)| high - low)).into())?;
    if inner.extent.axes().map(i64::from) == size {
        return Ok(inner.with_affine(affine));
    }
    let offset = narrow([0, 1, 2].map(|axis| inside[axis].0 - start[axis]));
    Ok(place(&inner, narrow(size).into(), offset.into(), 0.0).with_affine(affine))
}
