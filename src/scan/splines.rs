//! Resampling by splines as nnU-Net does it.

use serde::{Deserialize, Serialize};

use crate::volume::spline::{self, Order};

/// Slices that are thicker than wide by more than this are resampled each by itself.
const THICK: f64 = 3.0;

/// Degrees of the splines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resampling {
    /// 0, 1 or 3.
    pub order: u32,
    /// The degree along the axis of thick slices, where that axis is resampled by itself.
    pub order_along: u32,
    /// Whether that axis is resampled by itself; `None` where slices are more than three times
    /// thicker than wide.
    #[serde(default)]
    pub separate: Option<bool>,
}

fn greatest(spacing: [f64; 3]) -> f64 {
    spacing.into_iter().fold(0.0, f64::max)
}

fn thick(spacing: [f64; 3]) -> bool {
    greatest(spacing) / spacing.into_iter().fold(f64::INFINITY, f64::min) > THICK
}

impl Resampling {
    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        match [self.order, self.order_along].into_iter().find(|&o| Order::of_degree(o).is_none()) {
            Some(order) => Err(format!("resampling of order {order} is not supported; orders 0, 1 and 3 are")),
            None => Ok(()),
        }
    }

    /// Resamples one channel to shape `to`, `axis` by itself.
    pub(crate) fn apply(&self, values: &[f32], [from, to]: [[usize; 3]; 2], axis: Option<usize>) -> Vec<f32> {
        if from == to {
            return values.to_vec();
        }
        let order = |degree: u32| Order::of_degree(degree).unwrap_or(Order::Linear);
        match axis {
            Some(axis) => spline::resize_slices(values, from, to, order(self.order), axis, order(self.order_along)),
            None => spline::resize(values, from, to, order(self.order)),
        }
    }

    /// The axis that is resampled by itself from one spacing to another.
    pub(crate) fn axis(&self, old: [f64; 3], new: [f64; 3]) -> Option<usize> {
        let spacing = match self.separate {
            Some(true) => old,
            Some(false) => return None,
            None => [old, new].into_iter().find(|&s| thick(s))?,
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
        if self.separate.is_none() && !thick(scan) {
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
    let linear = Resampling { order: 1, order_along: 0, separate: None };
    let inside: Vec<f32> = mask.iter().map(|&inside| f32::from(u8::from(inside))).collect();
    linear.apply(&inside, shapes, axis).into_iter().map(|share| share >= 0.5).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thick_slices_are_resampled_apart() {
        let by = |separate| Resampling { order: 3, order_along: 0, separate };
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
            Resampling { order: 1, order_along: 0, separate }.axis_back(first, scan, network)
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
