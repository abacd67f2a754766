//! From a scan to the network's input and back: axes, spacing, intensity, padding or zooming of slices, and their inverses.

use crate::model::{Mode, Model};
use crate::shape::Extent;
use crate::transfer::Input;
use crate::volume::orient::{Axes, reorient};
use crate::volume::spline::{self, Order};
use crate::volume::{Affine, Volume, VolumeError, VolumeErrorKind, resample};

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
        Ok(reorient(&v, self.axes).with_affine(self.affine))
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
