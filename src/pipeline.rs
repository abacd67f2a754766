//! From a scan to the network's input and back: axes, spacing, intensity, padding or zooming of slices, and their inverses.

use std::ops::Range;

use crate::export::{Activation, ClassMaps, ExportBytes, Layout, Probabilities};
use crate::graph::Op;
use crate::model::{Mode, Model};
use crate::shape::Extent;
use crate::transfer::Input;
use crate::volume::orient::{Axes, reorient};
use crate::volume::spline::{self, Order};
use crate::volume::{Affine, Volume, VolumeError, VolumeErrorKind, resample, sizes};

/// Spacings that differ by less than this share are taken as equal.
const SPACING_TOLERANCE: f64 = 1e-3;

/// A scan as the network wants it, and what is needed to bring results back to the scan's grid.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The network's input: the card's axes, spacing and intensity, zero-padded to the network's stride and least extent where it runs
    /// at once, or of zoomed slices.
    pub volume: Volume<f32>,
    zoomed: bool,
    offset: Extent,
    inner: Extent,
    oriented: Extent,
    oriented_spacing: [f64; 3],
    axes: Axes,
    /// Of the scan.
    affine: Affine,
}

impl Prepared {
    /// Prepares a scan for a model that runs on the whole volume.
    ///
    /// # Errors
    /// When the scan does not have the model's number of channels, or its spacing is absurdly far from the model's.
    pub fn new(model: &Model, scan: &Volume<f32>) -> Result<Self, VolumeError> {
        let prepared = Self::unpadded(model, scan)?;
        let (n, least, stride) = (prepared.inner.axes(), model.card().least(), model.stride());
        let padded = [0, 1, 2].map(|axis| resample::up(n[axis].max(least[axis]), stride[axis]));
        let (volume, offset) = resample::pad_to(&prepared.volume, padded.into(), 0.0);
        Ok(Self { volume, offset, ..prepared })
    }

    /// The same for [`crate::Windows`]: they pad what they need.
    ///
    /// # Errors
    /// As [`Prepared::new`].
    pub fn for_windows(model: &Model, scan: &Volume<f32>) -> Result<Self, VolumeError> {
        Self::unpadded(model, scan)
    }

    /// The same for a 2D network with its slices, the planes along D, zoomed to H and W of `slice` ([`crate::Card::slice`]) by cubic
    /// splines; see [`spline::zoom_slices`]. Those that have this extent stay as they are.
    ///
    /// # Errors
    /// As [`Prepared::new`], or when there would be absurdly many voxels.
    pub fn for_slices(model: &Model, scan: &Volume<f32>, slice: Extent) -> Result<Self, VolumeError> {
        let prepared = Self::unpadded(model, scan)?;
        let (v, extent) = (&prepared.volume, Extent { d: prepared.inner.d, ..slice });
        let share = |axis: usize| f64::from(v.extent.axes()[axis]) / f64::from(extent.axes()[axis].max(1));
        let spacing = [0, 1, 2].map(|axis| v.spacing[axis] * share(axis));
        let bytes = bytes_of(v.channels, model);
        let extent = resample::plausible(extent.axes().map(f64::from), v.spacing, spacing, bytes)?;
        let data = spline::zoom_slices(&v.data, plane(v.extent), plane(extent), Order::Cubic);
        let volume = Volume::new(v.channels, extent, spacing, v.axes, data)?;
        Ok(Self { volume, zoomed: true, ..prepared })
    }

    fn unpadded(model: &Model, scan: &Volume<f32>) -> Result<Self, VolumeError> {
        let card = model.card();
        if card.input.nnunet.is_some() {
            let text = "a model with nnU-Net's pipeline is given its scans by nnunet::Case";
            return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
        }
        if card.input.monai.is_some() {
            let text = "a model with MONAI's pipeline is given its scans by monai::Case";
            return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
        }
        if !card.takes(scan.channels) {
            let names = if card.input.channels.is_empty() { String::new() } else { format!(" ({})", card.input.channels.join(", ")) };
            let text = format!("the scan has {} channels, the model needs {}{names}", scan.channels, card.in_channels());
            return Err(VolumeError::new(VolumeErrorKind::GridMismatch, text));
        }
        let mut volume = match card.input.axes {
            Some(axes) => reorient(scan, axes),
            None => scan.clone(),
        };
        let (oriented, oriented_spacing) = (volume.extent, volume.spacing);
        if let Some(spacing) = card.input.spacing_mm
            && spacing.iter().zip(volume.spacing).any(|(a, b)| (a / b - 1.0).abs() > SPACING_TOLERANCE)
        {
            let extent = resample::extent_for_spacing(&volume, spacing);
            // a thin axis keeps a voxel, but a scan that is a voxel as a whole is none
            let shrunk = |a: usize| f64::from(volume.extent.axes()[a]) * volume.spacing[a] < 0.5 * spacing[a];
            let gone = (0..3).all(shrunk);
            let n = if gone { [0.0; 3] } else { extent.axes().map(f64::from) };
            let bytes = bytes_of(scan.channels, model);
            let extent = resample::plausible(n, volume.spacing, spacing, bytes)?;
            volume = resample::resample_linear(&volume, extent);
        }
        if let Some(intensity) = &card.input.intensity {
            intensity.apply(&mut volume);
        }
        let inner = volume.extent;
        Ok(Self {
            volume,
            zoomed: false,
            offset: Extent::new(0, 0, 0),
            inner,
            oriented,
            oriented_spacing,
            axes: scan.axes,
            affine: *scan.affine(),
        })
    }

    /// The network's input.
    #[must_use]
    pub fn input(&self) -> Input<'_> {
        Input { channels: self.volume.channels, extent: self.volume.extent, data: &self.volume.data }
    }

    /// The host bytes of the input, and about the most of what it was made of: the scan along the model's
    /// axes, and the input before and after padding.
    #[must_use]
    pub fn host_bytes(&self) -> [u64; 2] {
        let channels = 4 * u64::from(self.volume.channels);
        let [made, inner, oriented] = [self.volume.extent, self.inner, self.oriented].map(|e| channels * e.voxels());
        [made, (oriented + inner).max(inner + made) + made]
    }

    /// The host bytes of labels on their way to the scan, and of probabilities of so many classes.
    #[must_use]
    pub fn export_bytes(&self, classes: u32, probabilities: bool) -> ExportBytes {
        let [made, scan] = [self.volume.extent, self.oriented].map(|e| e.voxels());
        let maps = if probabilities { 4 * u64::from(classes) * made } else { 0 };
        // labels in up to three copies, and a class on each of its grids
        let class = if probabilities { 4 * (3 * made + 3 * scan) } else { 0 };
        ExportBytes { running: 2 * made + maps, waiting: 0, finishing: 2 * (made + 2 * scan) + class }
    }

    /// Labels of the padded or zoomed input, brought to the scan's grid (nearest voxel where spacings differ; see
    /// [`spline::zoom_labels`] for slices).
    ///
    /// # Errors
    /// When the labels are not those of this input.
    pub fn restore_labels(&self, labels: Vec<u16>) -> Result<Volume<u16>, VolumeError> {
        let v = Volume::new(1, self.volume.extent, self.volume.spacing, self.volume.axes, labels)?;
        let mut v = if self.zoomed {
            let labels = spline::zoom_labels(&v.data, plane(v.extent), plane(self.inner));
            v.regrid(self.inner, v.spacing, labels)
        } else {
            resample::crop(&v, self.offset, self.inner)?
        };
        if self.inner != self.oriented {
            v = resample::resample_nearest(&v, self.oriented);
        }
        v.spacing = self.oriented_spacing;
        Ok(reorient(&v, self.axes).with_affine(self.affine))
    }

    /// Maps of the padded or zoomed input (`channels` of its extent), brought to the scan's grid by linear interpolation, that of slices
    /// with corners aligned.
    ///
    /// # Errors
    /// When the maps are not those of this input.
    pub fn restore_maps(&self, channels: u32, values: Vec<f32>) -> Result<Volume<f32>, VolumeError> {
        let v = self.oriented_maps(channels, values)?;
        Ok(reorient(&v, self.axes).with_affine(self.affine))
    }

    /// The same along the model's axes.
    fn oriented_maps(&self, channels: u32, values: Vec<f32>) -> Result<Volume<f32>, VolumeError> {
        let v = Volume::new(channels, self.volume.extent, self.volume.spacing, self.volume.axes, values)?;
        let mut v = if self.zoomed {
            let values = spline::zoom_slices(&v.data, plane(v.extent), plane(self.inner), Order::Linear);
            v.regrid(self.inner, v.spacing, values)
        } else {
            resample::crop(&v, self.offset, self.inner)?
        };
        if self.inner != self.oriented {
            v = resample::resample_linear(&v, self.oriented);
        }
        v.spacing = self.oriented_spacing;
        Ok(v)
    }

    /// Probabilities of the padded or zoomed input (`channels` of its extent), which go the way of
    /// [`Prepared::restore_maps`] class by class as they are asked for.
    ///
    /// # Errors
    /// When the probabilities are not those of this input.
    pub fn probabilities(&self, channels: u32, values: Vec<f32>) -> Result<Probabilities, VolumeError> {
        let v = &self.volume;
        let values = Volume::new(channels, v.extent, v.spacing, v.axes, values)?;
        let oriented = (self.oriented, self.oriented_spacing, v.axes);
        let layout = Layout::new(oriented, ([0; 3], sizes(self.oriented)), (self.axes, self.affine));
        let prepared = Self { volume: v.regrid(v.extent, v.spacing, Vec::new()), ..*self };
        Ok(Probabilities::new(Box::new(Restored { prepared, values }), Activation::None, layout, 0.0))
    }

    /// A map over the padded input's field at a lower resolution, as a volume.
    ///
    /// # Errors
    /// When lengths do not agree.
    pub fn field(&self, extent: Extent, channels: u32, values: Vec<f32>) -> Result<Volume<f32>, VolumeError> {
        let (fine, coarse) = (self.volume.extent.axes(), extent.axes());
        let mut spacing = self.volume.spacing;
        for axis in 0..3 {
            spacing[axis] *= f64::from(fine[axis]) / f64::from(coarse[axis].max(1));
        }
        Volume::new(channels, extent, spacing, self.volume.axes, values)
    }
}

/// Probabilities of the network's input on their way to the scan.
#[derive(Debug)]
struct Restored {
    /// Without voxels.
    prepared: Prepared,
    values: Volume<f32>,
}

impl ClassMaps for Restored {
    fn classes(&self) -> usize {
        self.values.channels as usize
    }

    fn at_once(&self) -> usize {
        1
    }

    fn maps(&self, classes: Range<usize>) -> Result<Vec<f32>, VolumeError> {
        let voxels = self.values.data.len() / self.classes().max(1);
        let mut maps = Vec::new();
        for values in self.values.data.chunks_exact(voxels.max(1)).skip(classes.start).take(classes.len()) {
            maps.extend(self.prepared.oriented_maps(1, values.to_vec())?.data);
        }
        Ok(maps)
    }
}

/// The bytes that so many voxels of a prepared scan take on the host: values, and labels of 16 bits.
fn bytes_of(channels: u32, model: &Model) -> impl Fn(f64) -> f64 {
    let windows = model.card().mode() == Mode::Window;
    let sums = if windows { 4.0 * f64::from(model.card().classes()) } else { 0.0 };
    move |voxels| voxels * (4.0 * f64::from(channels) + 2.0 + sums)
}

fn plane(extent: Extent) -> [usize; 2] {
    [extent.h as usize, extent.w as usize]
}

/// Softmax over the channels of logits `[C][...]`, in place: probabilities.
pub fn softmax(logits: &mut [f32], channels: u32) {
    use rayon::prelude::*;
    let n = logits.len() / channels.max(1) as usize;
    let high: Vec<f32> =
        (0..n).into_par_iter().map(|v| (0..channels as usize).map(|c| logits[c * n + v]).fold(f32::NEG_INFINITY, f32::max)).collect();
    let mut total = vec![0.0f32; n];
    for plane in logits.chunks_exact_mut(n.max(1)) {
        plane.par_iter_mut().zip(&high).zip(&mut total).for_each(|((x, h), t)| {
            *x = (*x - h).exp();
            *t += *x;
        });
    }
    for plane in logits.chunks_exact_mut(n.max(1)) {
        plane.par_iter_mut().zip(&total).for_each(|(x, t)| *x /= t);
    }
}

/// Label of the highest of the channels `[C][...]`; the first of equals wins.
#[must_use]
pub fn argmax(values: &[f32], channels: u32) -> Vec<u16> {
    use rayon::prelude::*;
    let n = values.len() / channels.max(1) as usize;
    (0..n)
        .into_par_iter()
        .map(|v| {
            let best = (0..channels as usize).fold(0, |best, c| if values[c * n + v] > values[best * n + v] { c } else { best });
            u16::try_from(best).unwrap_or(u16::MAX)
        })
        .collect()
}

/// Names of the nodes that gate the skips of a model, coarsest first; empty when it has none.
#[must_use]
pub fn gates(model: &Model) -> Vec<String> {
    let graph = model.graph();
    let is_gate = |name: &str| name.ends_with(".mhca.gate");
    graph.nodes().iter().filter(|n| matches!(n.op, Op::Conv(_)) && is_gate(&n.name)).map(|n| n.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sums_to_one_and_keeps_the_argmax() {
        let mut x = vec![1.0, -100.0, 3.0, 200.0, 2.0, 50.0];
        let before = argmax(&x, 3);
        softmax(&mut x, 3);
        assert_eq!(argmax(&x, 3), before);
        for v in 0..2 {
            let sum: f32 = (0..3).map(|c| x[c * 2 + v]).sum();
            assert!((sum - 1.0).abs() < 1e-6);
        }
        assert_eq!(argmax(&[1.0, 1.0], 2), [0]);
    }
}
