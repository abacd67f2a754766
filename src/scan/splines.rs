//! Resampling as nnU-Net does it.

use serde::{Deserialize, Serialize};

use super::is_default;
use crate::volume::interpolate;
use crate::volume::spline::{self, Order};

/// Slices that are thicker than wide by more than this are resampled each by itself, unless told
/// otherwise.
const THICK: f64 = 3.0;

/// The function that resamples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// The splines of scipy, in f64: nnU-Net's `resample_data_or_seg_to_shape`.
    #[default]
    Spline,
    /// PyTorch's `interpolate` in f32, of order 0 (`nearest-exact`) or 1: nnU-Net's
    /// `resample_torch_fornnunet`.
    Torch,
    /// Nothing, whatever the spacing: nnU-Net's `no_resampling_hack`.
    None,
}

/// A resampling of scans or class scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resampling {
    /// The function that resamples.
    #[serde(default, skip_serializing_if = "is_default")]
    pub by: Interpolation,
    /// The degree: 0, 1 or, of splines, 3.
    pub order: u32,
    /// The degree along the axis of thick slices, where that axis is resampled by itself.
    pub order_along: u32,
    /// Whether that axis is resampled by itself; `None` where slices are thicker than wide by more
    /// than `threshold`.
    #[serde(default)]
    pub separate: Option<bool>,
    /// The thickness of slices, as a multiple of their width, from which on they are thick.
    #[serde(default = "three", skip_serializing_if = "is_three")]
    pub threshold: f64,
}

fn three() -> f64 {
    THICK
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_three(threshold: &f64) -> bool {
    *threshold == THICK
}

impl Default for Resampling {
    /// Linear splines, thick slices by the nearest.
    fn default() -> Self {
        Self { by: Interpolation::Spline, order: 1, order_along: 0, separate: None, threshold: THICK }
    }
}

fn greatest(spacing: [f64; 3]) -> f64 {
    spacing.into_iter().fold(0.0, f64::max)
}

impl Resampling {
    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        let orders: &[u32] = if self.by == Interpolation::Spline { &[0, 1, 3] } else { &[0, 1] };
        if let Some(order) = [self.order, self.order_along].into_iter().find(|order| !orders.contains(order)) {
            let orders: Vec<String> = orders.iter().map(u32::to_string).collect();
            return Err(format!("resampling of order {order} is not supported; orders {} are", orders.join(", ")));
        }
        if !self.threshold.is_finite() {
            return Err(format!("the threshold {} of thick slices is no number", self.threshold));
        }
        Ok(())
    }

    fn thick(&self, spacing: [f64; 3]) -> bool {
        greatest(spacing) / spacing.into_iter().fold(f64::INFINITY, f64::min) > self.threshold
    }

    /// The degree of the splines, and that along the axis that is resampled by itself.
    pub(crate) fn orders(&self, axis: Option<usize>) -> (Order, Option<(usize, Order)>) {
        let order = |degree| Order::of_degree(degree).unwrap_or(Order::Linear);
        (order(self.order), axis.map(|axis| (axis, order(self.order_along))))
    }

    /// The shape that a scan of this spacing and size gets at another spacing, rounded.
    #[expect(clippy::cast_precision_loss, reason = "extents")]
    pub(crate) fn shape(&self, spacing: [f64; 3], target: [f64; 3], size: [usize; 3]) -> [f64; 3] {
        [0, 1, 2].map(|a| match self.by {
            Interpolation::None => size[a] as f64,
            _ => (spacing[a] / target[a] * size[a] as f64).round_ties_even(),
        })
    }

    /// The shape that a scan gets, and the bytes that resampling a channel to it takes meanwhile.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate of a count")]
    pub(crate) fn takes(&self, spacing: [f64; 3], target: [f64; 3], size: [usize; 3]) -> ([usize; 3], u64) {
        // no axis of a scan that is not refused is longer
        let to = self.shape(spacing, target, size).map(|n| n.min(131_072.0) as usize);
        let axis = self.axis(spacing, target).map(|axis| (axis, Order::Linear));
        (to, if to == size { 0 } else { spline::resized_bytes(size, to, axis) })
    }

    /// Resamples one channel to shape `to`, `axis` by itself.
    pub(crate) fn apply(&self, values: &[f32], [from, to]: [[usize; 3]; 2], axis: Option<usize>) -> Vec<f32> {
        if from == to {
            return values.to_vec();
        }
        let (order, along) = self.orders(axis);
        match (self.by, along) {
            (Interpolation::None, _) => values.to_vec(),
            (Interpolation::Torch, along) => interpolate::resize(values, from, to, order, along),
            (Interpolation::Spline, Some((axis, along))) => spline::resize_slices(values, from, to, order, axis, along),
            (Interpolation::Spline, None) => spline::resize(values, from, to, order),
        }
    }

    /// The axis that is resampled by itself from one spacing to another.
    pub(crate) fn axis(&self, old: [f64; 3], new: [f64; 3]) -> Option<usize> {
        let spacing = match self.separate {
            Some(true) => old,
            Some(false) => return None,
            None => [old, new].into_iter().find(|&s| self.thick(s))?,
        };
        let mut axes = (0..3).filter(|&a| greatest(spacing) / spacing[a] == 1.0);
        // of two that are equally thick, neither
        axes.next().filter(|_| axes.next().is_none())
    }

    /// The axis that is resampled by itself on the way back to the scan's grid, of the network's
    /// axes; spacings too. `first` is the order in which nnU-Net v1 transposed the scan's axes; v2
    /// has none.
    pub(crate) fn axis_back(&self, first: Option<[usize; 3]>, scan: [f64; 3], network: [f64; 3]) -> Option<usize> {
        let Some(transpose) = first else { return self.axis(network, scan) };
        if self.separate.is_none() && !self.thick(scan) {
            // v1 takes the number of the network's axis for that of the file's
            let axis = self.axis(network, network)?;
            return transpose.iter().position(|&file| file == axis);
        }
        self.axis(scan, scan)
    }
}

/// A mask on another grid as nnU-Net v1 resamples it: inside and outside each linearly, one of half
/// or more is it, inside before outside; along `axis` the nearest.
pub(crate) fn resized(mask: &[bool], shapes: [[usize; 3]; 2], axis: Option<usize>) -> Vec<bool> {
    let linear = Resampling::default();
    let inside: Vec<f32> = mask.iter().map(|&inside| f32::from(u8::from(inside))).collect();
    linear.apply(&inside, shapes, axis).into_iter().map(|share| share >= 0.5).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resampling_tells_what_it_takes_before_it_does() {
        let cubic = Resampling { order: 3, ..Resampling::default() };
        // a header in the wrong unit: 2 billion voxels, f64 on their way
        let (to, bytes) = cubic.takes([240.0, 28.0, 30.0], [5.0, 0.8, 0.8], [14, 51, 46]);
        assert_eq!(to, [672, 1785, 1725]);
        assert!(bytes >= 8 * 672 * 1785 * 1725 / 2, "{bytes}");
        assert_eq!(cubic.takes([1.0; 3], [1.0; 3], [14, 51, 46]), ([14, 51, 46], 0));
        assert!(cubic.takes([1e300; 3], [1.0; 3], [14, 51, 46]).1 > 1 << 50);
    }

    #[test]
    fn thick_slices_are_resampled_apart() {
        let by = |separate| Resampling { order: 3, separate, ..Resampling::default() };
        let (thick, thin) = ([5.0, 1.0, 1.0], [1.0, 1.2, 1.1]);
        assert_eq!(by(None).axis(thick, thin), Some(0));
        assert_eq!(by(None).axis(thin, [1.0, 1.0, 4.0]), Some(2));
        assert_eq!(by(None).axis(thin, [1.0, 1.0, 3.0]), None);
        assert_eq!(by(None).axis([4.0, 4.0, 1.0], thick), None);
        assert_eq!(by(Some(true)).axis(thin, thick), Some(1));
        assert_eq!(by(Some(true)).axis([1.0; 3], thick), None);
        assert_eq!(by(Some(false)).axis(thick, thick), None);
    }

    #[test]
    fn the_way_back_has_an_axis_of_its_own() {
        let by = |version, separate, scan, network| {
            let first = Some([2, 0, 1]).filter(|_| version == 1);
            Resampling { separate, ..Resampling::default() }.axis_back(first, scan, network)
        };
        let (thick, other, thin) = ([5.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.2, 1.1]);
        assert_eq!(by(2, None, other, thick), Some(0));
        assert_eq!(by(1, None, other, thick), Some(1));
        assert_eq!(by(2, None, thin, thick), Some(0));
        // axis 0 of the file is axis 1 of the network
        assert_eq!(by(1, None, thin, thick), Some(1));
        assert_eq!(by(1, Some(true), thin, thick), Some(1));
        assert_eq!(by(1, Some(false), thick, thick), None);
        assert_eq!(by(1, None, thin, thin), None);
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
