//! The way of a scan to the network: the steps of a recipe, and what undoes them.

use std::borrow::Cow;

use super::grid_sample::{Reading, resample};
use super::previous::{OUTSIDE, PreviousStage};
use super::recipe::{Recipe, Resample, Step};
use super::scaling::Scaling;
use super::spacing::{self, Change};
use super::splines::{Resampling, resized};
use super::{Scan, crop, values};
use crate::shape::Extent;
use crate::volume::orient::turned_spacing;
use crate::volume::resample::{self as linear, padded, place, plausible};
use crate::volume::{Affine, Axes, Direction, Volume, VolumeError, VolumeErrorKind, closest, reorient, same_grid, sizes};

/// Spacings that differ by less than this share are taken as equal.
const SPACING_TOLERANCE: f64 = 1e-3;

/// What a network takes, and what its results take on the host.
#[derive(Clone, Debug)]
pub(crate) struct Needs<'a> {
    /// Channels of the network's input.
    pub(crate) channels: u32,
    /// Whether it takes one channel in place of them.
    pub(crate) grey: bool,
    /// The channels' names, if they have some.
    pub(crate) names: &'a [String],
    /// Bytes that a voxel of the network's input takes on the host beside its channels.
    pub(crate) scores: f64,
    /// Bytes that a voxel of the cropped scan takes on the host, where scores come back to it.
    pub(crate) restored: f64,
}

/// Where voxels lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) extent: Extent,
    pub(crate) axes: Axes,
    pub(crate) affine: Affine,
}

impl Grid {
    pub(crate) fn of(volume: &Volume<f32>) -> Self {
        Self { extent: volume.extent, axes: volume.axes, affine: *volume.affine() }
    }

    pub(crate) fn volume<T>(&self, channels: u32, data: Vec<T>) -> Result<Volume<T>, VolumeError> {
        Ok(Volume::new(channels, self.extent, self.affine.spacing(), self.axes, data)?.with_affine(self.affine))
    }
}

/// A change of space that can be undone.
#[derive(Clone, Debug)]
pub(crate) enum Undo {
    /// The axes were others.
    Turned { before: Axes },
    /// The grid was another, its spacing what the steps took it for.
    Resampled { before: Grid, spacing: [f64; 3], nearest: bool, align: bool },
    /// The volume was larger; `start` is the first voxel of the box in it.
    Cut { before: Extent, start: [i64; 3] },
}

/// A scan that went through the steps of a recipe.
#[derive(Debug)]
pub(crate) struct Forward<'a> {
    volume: Cow<'a, Volume<f32>>,
    /// The spacing that the steps go by, which may be another than that of `volume`.
    spacing: [f64; 3],
    /// The body, while a later step asks for it.
    body: Option<Vec<bool>>,
    /// The labels of a cascade's previous stage, until the scan is resampled.
    previous: Option<Volume<i32>>,
    /// What happened to the scan's space, in order.
    pub(crate) undo: Vec<Undo>,
    /// The axes and the place of the scan as it was seen.
    pub(crate) seen: (Axes, Affine),
    /// Its grid with the axes in the order of the file, the fastest first, where it was read so.
    pub(crate) file: Option<Grid>,
    needs: Needs<'a>,
}

impl<'a> Forward<'a> {
    /// Takes a scan through the steps of a recipe.
    ///
    /// # Errors
    /// When the scan does not have the network's number of channels, nothing of it is left, its
    /// values are not what the scaling is for, or it would have absurdly many voxels.
    pub(crate) fn new(recipe: &Recipe, scan: &Scan<'a>, needs: Needs<'a>) -> Result<Self, VolumeError> {
        let Needs { channels, grey, names, .. } = needs;
        let previous = recipe.previous().map(|stage| previous_labels(stage, scan)).transpose()?;
        let channels = channels.saturating_sub(recipe.added());
        if scan.image.channels != channels && !(grey && scan.image.channels == 1) {
            let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
            let text = format!("the scan has {} channels, the model needs {channels}{names}", scan.image.channels);
            return Err(VolumeError::new(VolumeErrorKind::GridMismatch, text));
        }
        let image = scan.image;
        let mut forward = Self {
            volume: Cow::Borrowed(image),
            spacing: image.spacing,
            body: None,
            previous,
            undo: Vec::new(),
            seen: (image.axes, *image.affine()),
            file: None,
            needs,
        };
        for (i, step) in recipe.steps.iter().enumerate() {
            let asked = recipe.steps[i..].iter().any(Step::asks_for_body);
            forward.step(step, scan, asked)?;
            if !recipe.steps[i + 1..].iter().any(Step::asks_for_body) {
                forward.body = None;
            }
        }
        Ok(forward)
    }

    /// The network's input.
    pub(crate) fn into_volume(self) -> Volume<f32> {
        let mut volume = self.volume.into_owned();
        volume.spacing = self.spacing;
        volume
    }

    fn step(&mut self, step: &Step, scan: &Scan<'a>, body_asked: bool) -> Result<(), VolumeError> {
        match step {
            Step::Read { by } => self.spacing = by.spacing(scan),
            Step::ReadAsMonai => self.read_as_monai(scan)?,
            Step::Orient { axes } => self.turn(*axes),
            Step::Transpose { order } => {
                let directions = self.volume.axes.directions();
                self.turn(Axes::new(order.map(|axis| directions[axis]))?);
            }
            Step::CropNonzero => self.crop_nonzero(body_asked)?,
            Step::CropForeground { margin, allow_smaller, k_divisible } => {
                self.crop_foreground(*margin, *allow_smaller, *k_divisible)?;
            }
            Step::Pad { least, multiple, end, replicate } => self.pad(*least, *multiple, *end, *replicate)?,
            Step::Resample(Resample::HalfPixel { mm }) => self.resample_linear(*mm)?,
            Step::Resample(Resample::Spline { mm, orders }) => self.resample_splines(mm, *orders)?,
            Step::Resample(Resample::Grid { mm, nearest, align_corners }) => {
                self.resample_grid(*mm, *nearest, *align_corners)?;
            }
            Step::Scale(intensity) => intensity.apply(self.volume.to_mut()),
            Step::ScaleChannels { version, channels } => self.scale_channels(*version, channels)?,
            Step::AddPrevious(stage) => self.add_previous(stage)?,
            Step::ScaleValues(transform) => {
                let voxels = sizes(self.volume.extent).iter().product();
                values::apply(transform, &mut self.volume.to_mut().data, voxels);
            }
        }
        Ok(())
    }

    fn read_as_monai(&mut self, scan: &Scan<'a>) -> Result<(), VolumeError> {
        let seen = scan.as_monai_reads()?;
        self.seen = (seen.axes, *seen.affine());
        let [d, h, w] = seen.axes.directions();
        let volume = reorient(&seen, Axes::new([w, h, d])?);
        self.file = Some(Grid::of(&volume));
        self.set(volume);
        Ok(())
    }

    /// Takes a volume whose own spacing counts.
    fn set(&mut self, volume: Volume<f32>) {
        self.spacing = volume.spacing;
        self.volume = Cow::Owned(volume);
    }

    fn turn(&mut self, to: Axes) {
        let before = self.volume.axes;
        if before != to {
            self.spacing = turned_spacing(self.spacing, before, to);
            self.volume = Cow::Owned(turned(&self.volume, to));
            self.previous = self.previous.take().map(|labels| reorient(&labels, to));
            self.undo.push(Undo::Turned { before });
        }
    }

    fn crop_nonzero(&mut self, body_asked: bool) -> Result<(), VolumeError> {
        let volume = &*self.volume;
        let (before, n) = (volume.extent, sizes(volume.extent));
        let mask = crop::body(volume);
        let (first, size) = crop::bounds(&mask, before);
        let narrow = |values: [usize; 3]| values.map(|v| u32::try_from(v).unwrap_or(u32::MAX));
        let start = narrow(first).map(i64::from);
        let data = crop::cut(&volume.data, n, first, size);
        let mut mask = mask;
        if let Some(labels) = self.previous.take() {
            let mut cropped = crop::cut(&labels.data, n, first, size);
            let inside = crop::cut(&mask, n, first, size);
            cropped.iter_mut().zip(inside).filter(|(label, inside)| **label == 0 && !inside).for_each(|(label, _)| *label = OUTSIDE);
            // nnU-Net takes what the previous stage found for the body, too
            mask.iter_mut().zip(&labels.data).for_each(|(inside, &label)| *inside |= label > 0);
            self.previous = Some(Volume::new(1, narrow(size).into(), labels.spacing, labels.axes, cropped)?);
        }
        self.body = body_asked.then(|| crop::cut(&mask, n, first, size));
        self.volume = Cow::Owned(volume.boxed(narrow(size).into(), start, data));
        self.undo.push(Undo::Cut { before, start });
        Ok(())
    }

    fn crop_foreground(&mut self, margin: [u32; 3], allow_smaller: bool, k_divisible: [u32; 3]) -> Result<(), VolumeError> {
        let before = self.volume.extent;
        let n = sizes(before);
        let (mut first, mut end) = (n, [0; 3]);
        for channel in self.volume.data.chunks_exact(n.iter().product::<usize>().max(1)) {
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
        if (0..3).any(|axis| size[axis] > i64::from(before.axes()[axis])) {
            padded("CropForeground with its margin and k_divisible", size, self.bytes())?;
        }
        self.set(cut(&self.volume, start, size)?);
        self.undo.push(Undo::Cut { before, start });
        Ok(())
    }

    fn pad(&mut self, least: [u32; 3], multiple: [u32; 3], end: bool, replicate: bool) -> Result<(), VolumeError> {
        let before = self.volume.extent;
        let n = before.axes();
        let [mut start, mut size] = [[0; 3]; 2];
        for axis in 0..3 {
            let whole = u64::from(n[axis].max(least[axis])).next_multiple_of(multiple[axis].max(1).into());
            let more = i64::try_from(whole).unwrap_or(i64::MAX) - i64::from(n[axis]);
            start[axis] = if end { 0 } else { -(more / 2) };
            size[axis] = i64::from(n[axis]) + more;
        }
        if size == n.map(i64::from) {
            return Ok(());
        }
        padded("padding", size, self.bytes())?;
        let mut volume = cut(&self.volume, start, size)?;
        if replicate {
            repeat_edges(&mut volume, start.map(|n| -n), before);
        }
        self.set(volume);
        self.undo.push(Undo::Cut { before, start });
        Ok(())
    }

    /// Bytes that so many voxels of the network's input take on the host, there and back.
    fn bytes(&self) -> impl Fn(f64) -> f64 + use<> {
        let channels = f64::from(self.volume.channels.max(self.needs.channels));
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let voxels = self.volume.extent.voxels() as f64;
        let (scores, restored) = (self.needs.scores, self.needs.restored * voxels);
        move |n| n * (4.0 * channels + scores) + restored
    }

    fn resample_linear(&mut self, mm: [f64; 3]) -> Result<(), VolumeError> {
        let spacing = self.spacing;
        if mm.iter().zip(spacing).all(|(a, b)| (a / b - 1.0).abs() <= SPACING_TOLERANCE) {
            return Ok(());
        }
        if self.volume.spacing != spacing {
            self.volume.to_mut().spacing = spacing;
        }
        let before = Grid::of(&self.volume);
        let extent = linear::extent_for_spacing(&*self.volume, mm);
        // a thin axis keeps a voxel, but a scan that is a voxel as a whole is none
        let shrunk = |a: usize| f64::from(before.extent.axes()[a]) * spacing[a] < 0.5 * mm[a];
        let n = if (0..3).all(shrunk) { [0.0; 3] } else { extent.axes().map(f64::from) };
        let extent = plausible(n, spacing, mm, self.bytes())?;
        self.set(linear::resample_linear(&self.volume, extent));
        self.undo.push(Undo::Resampled { before, spacing, nearest: false, align: false });
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn resample_splines(&mut self, mm: &[f64], orders: Resampling) -> Result<(), VolumeError> {
        let (before, spacing, size) = (Grid::of(&self.volume), self.spacing, sizes(self.volume.extent));
        let mut target = spacing;
        target[3 - mm.len()..].copy_from_slice(mm);
        // the input, and one channel on its way to it
        let (kept, meanwhile) = (self.bytes(), orders.takes(spacing, target, size).1 as f64);
        let shape = plausible(orders.shape(spacing, target, size), spacing, target, |n| kept(n) + meanwhile)?;
        let shapes = [size, sizes(shape)];
        let axis = orders.axis(spacing, target);
        let voxels = size.iter().product::<usize>().max(1);
        let channels = self.volume.data.chunks_exact(voxels);
        let mut data = Vec::with_capacity(shapes[1].iter().product::<usize>() * channels.len());
        channels.for_each(|channel| data.extend(orders.apply(channel, shapes, axis)));
        self.body = self.body.take().map(|body| resized(&body, shapes, axis));
        self.set(Volume::new(self.volume.channels, shape, target, before.axes, data)?);
        self.undo.push(Undo::Resampled { before, spacing, nearest: false, align: false });
        Ok(())
    }

    /// Adds the channels of the previous stage's labels, on the grid that the scan was resampled to.
    fn add_previous(&mut self, stage: &PreviousStage) -> Result<(), VolumeError> {
        let (Some(labels), Some(Undo::Resampled { before, spacing, .. })) = (self.previous.take(), self.undo.last()) else {
            let text = "the labels of a previous stage are added to what was resampled by splines";
            return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
        };
        let shapes = [sizes(before.extent), sizes(self.volume.extent)];
        let axis = stage.resample.axis(*spacing, self.spacing);
        let channels = stage.channels(&labels.data, shapes, axis);
        let volume = self.volume.to_mut();
        volume.data.extend(channels);
        volume.channels += stage.added();
        Ok(())
    }

    fn resample_grid(&mut self, mm: [f64; 3], nearest: bool, align: bool) -> Result<(), VolumeError> {
        let (before, spacing) = (Grid::of(&self.volume), self.spacing);
        let (to, shape) = spacing::target(&before.affine, sizes(before.extent), mm).ok_or_else(singular)?;
        let extent = plausible(shape, before.affine.spacing(), to.spacing(), self.bytes())?;
        let reading = if nearest { Reading::Nearest } else { Reading::Linear };
        if let Some(volume) = resampled(&self.volume, &to, extent, reading, align)? {
            self.set(volume);
            self.undo.push(Undo::Resampled { before, spacing, nearest, align });
        }
        Ok(())
    }

    fn scale_channels(&mut self, version: u32, channels: &[Scaling]) -> Result<(), VolumeError> {
        let body = self.body.take().unwrap_or_default();
        let volume = self.volume.to_mut();
        let voxels = sizes(volume.extent).iter().product::<usize>().max(1);
        for (channel, scaling) in volume.data.chunks_exact_mut(voxels).zip(channels) {
            let scaled = scaling.apply(channel, &body, version);
            scaled.map_err(|e| VolumeError::new(VolumeErrorKind::Unsupported, e))?;
        }
        self.body = Some(body);
        Ok(())
    }
}

impl Step {
    /// Whether it asks where the body is.
    pub(super) fn asks_for_body(&self) -> bool {
        matches!(self, Self::ScaleChannels { channels, .. } if channels.iter().any(Scaling::masked))
    }
}

/// Gives voxels around a box, which begins at `first`, the value of the nearest in it.
fn repeat_edges(volume: &mut Volume<f32>, first: [i64; 3], inner: Extent) {
    let ([_, height, width], inner) = (sizes(volume.extent), sizes(inner));
    let first = first.map(|n| usize::try_from(n).unwrap_or(0));
    let nearest = |axis: usize, i: usize| i.clamp(first[axis], first[axis] + inner[axis] - 1);
    let voxels = sizes(volume.extent).iter().product::<usize>().max(1);
    for channel in volume.data.chunks_exact_mut(voxels) {
        for at in 0..voxels {
            let [z, y, x] = [at / (height * width), at / width % height, at % width];
            let from = (nearest(0, z) * height + nearest(1, y)) * width + nearest(2, x);
            channel[at] = channel[from];
        }
    }
}

/// The labels of a cascade's previous stage, which lie on the scan's grid.
fn previous_labels(stage: &PreviousStage, scan: &Scan<'_>) -> Result<Volume<i32>, VolumeError> {
    let Some(labels) = scan.previous else {
        let text = format!(
            "the model is the second stage of a cascade, which takes the labels of {0} with the scan: put the folder of \
             the model of {0} beside its own, or give labels by --previous LABELS",
            stage.stage
        );
        return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
    };
    same_grid(scan.image, "scan", labels, "label map of the previous stage")?;
    let data = labels.data.iter().map(|&label| i32::from(label)).collect();
    Volume::new(1, labels.extent, scan.image.spacing, scan.image.axes, data)
}

fn singular() -> VolumeError {
    let text = "the affine of the scan is degenerate (its voxel axes do not span space); repair the sform or qform";
    VolumeError::new(VolumeErrorKind::Format, text)
}

/// The volume along other axes, its affine as MONAI updates it.
pub(crate) fn turned(volume: &Volume<f32>, to: Axes) -> Volume<f32> {
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
pub(crate) fn resampled(
    volume: &Volume<f32>,
    to: &Affine,
    extent: Extent,
    reading: Reading,
    align: bool,
) -> Result<Option<Volume<f32>>, VolumeError> {
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
pub(crate) fn cut(volume: &Volume<f32>, start: [i64; 3], size: [i64; 3]) -> Result<Volume<f32>, VolumeError> {
    let n = volume.extent.axes().map(i64::from);
    let inside = [0, 1, 2].map(|axis| (start[axis].max(0), (start[axis] + size[axis]).min(n[axis])));
    let narrow = |values: [i64; 3]| values.map(|v| u32::try_from(v).unwrap_or(0));
    let cropped = spacing::shifted(volume.affine(), start.map(|n| n.max(0) as f64));
    let affine = spacing::shifted(&cropped, start.map(|n| n.min(0) as f64));
    let inner = linear::crop(volume, narrow(inside.map(|(low, _)| low)).into(), narrow(inside.map(|(low, high)| high - low)).into())?;
    if inner.extent.axes().map(i64::from) == size {
        return Ok(inner.with_affine(affine));
    }
    let offset = narrow([0, 1, 2].map(|axis| inside[axis].0 - start[axis]));
    Ok(place(&inner, narrow(size).into(), offset.into(), 0.0).with_affine(affine))
}
