//! The labels of a cascade's previous stage as further channels of a network's input, as nnU-Net v2
//! makes them.
//!
//! Source: `DefaultPreprocessor.run_case` and `resampling` of nnunetv2 2.8.1, and
//! `resize_segmentation` of batchgenerators 0.25.5.

use half::f16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::is_default;
use super::splines::{Interpolation, Resampling};
use crate::volume::interpolate;
use crate::volume::spline::{self, Order};

/// The label of voxels around the body, which are 0 in the scan and in the labels.
pub(super) const OUTSIDE: i32 = -1;

/// The labels of a cascade's previous stage, which become a channel of zeros and ones each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviousStage {
    /// The configuration whose labels they are, as `3d_lowres`.
    pub stage: String,
    /// The labels that become channels, in order.
    pub labels: Vec<u16>,
    /// How the label map is resampled: the mask of each label by itself, of which the greatest
    /// counts.
    pub resample: Resampling,
    /// Whether the last mask above a half counts instead: PyTorch's way to save memory in
    /// `resample_torch_fornnunet`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub halves: bool,
}

impl PreviousStage {
    /// Number of channels that they become.
    pub(super) fn added(&self) -> u32 {
        u32::try_from(self.labels.len()).unwrap_or(u32::MAX)
    }

    /// Host bytes that label maps of so many voxels, and what becomes of them, take meanwhile.
    pub(crate) fn bytes(&self, from: u64, to: u64) -> u64 {
        // labels before and after they are cropped; a mask, its scores, and the best of them
        8 * from + 4 * from + 8 * from.max(to) + 28 * to
    }

    /// The channels of labels `[D][H][W]` of shape `from` at shape `to`; `axis` is resampled by
    /// itself.
    pub(super) fn channels(&self, labels: &[i32], [from, to]: [[usize; 3]; 2], axis: Option<usize>) -> Vec<f32> {
        let labels = self.resized(labels, from, to, axis);
        let channel = |&label: &u16| labels.iter().map(move |&l| f32::from(u8::from(l == i32::from(label))));
        self.labels.iter().flat_map(channel).collect()
    }

    fn resized(&self, labels: &[i32], from: [usize; 3], to: [usize; 3], axis: Option<usize>) -> Vec<i32> {
        if from == to {
            return labels.to_vec();
        }
        let (order, along) = self.resample.orders(axis);
        let mut between = to;
        if let Some(axis) = axis {
            between[axis] = from[axis];
        }
        match self.resample.by {
            Interpolation::None => labels.to_vec(),
            Interpolation::Torch => {
                let across = self.by_torch(labels, from, between, order);
                along.map_or_else(|| across.clone(), |(_, order)| self.by_torch(&across, between, to, order))
            }
            Interpolation::Spline => {
                let across = by_score(labels, from, between, order, axis);
                match along {
                    None => across,
                    Some((axis, Order::Nearest)) => integers(&nearest(&across, between, to, Some(axis))),
                    Some((axis, order)) => by_halves(&across, to, |mask| spline::resized(mask, between, to, order, Some((axis, order)))),
                }
            }
        }
    }

    /// `resample_torch_simple` of label maps.
    fn by_torch(&self, labels: &[i32], from: [usize; 3], to: [usize; 3], order: Order) -> Vec<i32> {
        if from == to {
            return labels.to_vec();
        }
        if self.halves {
            let masks = |mask: &[f32]| interpolate::resize(mask, from, to, order, None).into_iter().map(f64::from).collect();
            return by_halves(labels, to, masks);
        }
        // scores are thousandths in 16 bits
        let mut best = vec![(f16::NEG_INFINITY, 0); to.iter().product()];
        for label in unique(labels) {
            let mask: Vec<f32> = labels.iter().map(|&l| if l == label { 1000.0 } else { 0.0 }).collect();
            let scores = interpolate::resize(&mask, from, to, order, None);
            best.par_iter_mut().zip(scores).for_each(|(best, score)| {
                let score = f16::from_f32(score);
                if score > best.0 {
                    *best = (score, label);
                }
            });
        }
        best.into_iter().map(|(_, label)| label).collect()
    }
}

/// The labels that there are, in order.
fn unique(labels: &[i32]) -> Vec<i32> {
    let mut found: Vec<i32> = labels.to_vec();
    found.par_sort_unstable();
    found.dedup();
    found
}

fn mask(labels: &[i32], label: i32) -> Vec<f32> {
    labels.par_iter().map(|&l| f32::from(u8::from(l == label))).collect()
}

/// The label of the nearest voxel, as f64; with an axis, across it or along it alone.
#[expect(clippy::cast_precision_loss, reason = "labels are 16-bit numbers")]
fn nearest(labels: &[i32], from: [usize; 3], to: [usize; 3], axis: Option<usize>) -> Vec<f64> {
    let values: Vec<f32> = labels.iter().map(|&l| l as f32).collect();
    spline::resized(&values, from, to, Order::Nearest, axis.map(|axis| (axis, Order::Nearest)))
}

#[expect(clippy::cast_possible_truncation, reason = "labels are whole numbers")]
fn integers(values: &[f64]) -> Vec<i32> {
    values.iter().map(|&v| v as i32).collect()
}

/// `resize_segmentation`: the label whose mask has the greatest score; of several the nearest
/// voxel's, if it is one of them, else the least.
fn by_score(labels: &[i32], from: [usize; 3], to: [usize; 3], order: Order, axis: Option<usize>) -> Vec<i32> {
    let nearest = integers(&nearest(labels, from, to, axis));
    if order == Order::Nearest || from == to {
        return nearest;
    }
    // the highest score, its label, and whether the nearest voxel's label has it too
    let mut best = vec![(0.0, 0, false); nearest.len()];
    for (number, label) in unique(labels).into_iter().enumerate() {
        let scores = spline::resized(&mask(labels, label), from, to, order, axis.map(|axis| (axis, Order::Nearest)));
        best.par_iter_mut().zip(scores).zip(&nearest).for_each(|((best, score), &nearest)| {
            let is_nearest = nearest == label;
            if number == 0 || score > best.0 {
                *best = (score, label, is_nearest && (number > 0 || score > 0.0));
            } else {
                best.2 |= is_nearest && score > 0.0 && score == best.0;
            }
        });
    }
    best.into_iter().zip(nearest).map(|((_, label, tied), nearest)| if tied { nearest } else { label }).collect()
}

/// The last label whose mask is above a half, or 0.
fn by_halves(labels: &[i32], to: [usize; 3], resize: impl Fn(&[f32]) -> Vec<f64>) -> Vec<i32> {
    let mut out = vec![0; to.iter().product()];
    for label in unique(labels) {
        let scores = resize(&mask(labels, label));
        out.par_iter_mut().zip(scores).filter(|(_, score)| *score > 0.5).for_each(|(out, _)| *out = label);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(resample: Resampling, halves: bool) -> PreviousStage {
        PreviousStage { stage: "3d_lowres".into(), labels: vec![1, 2], resample, halves }
    }

    #[test]
    fn labels_become_channels() {
        let of = |labels: &[i32], to| stage(Resampling::default(), false).channels(labels, [[1, 1, labels.len()], [1, 1, to]], None);
        assert_eq!(of(&[0, 1, 2, -1], 4), [0., 1., 0., 0., 0., 0., 1., 0.]);
        // of two labels that share the score, the nearest voxel's, the later one
        assert_eq!(of(&[1, 1, 2, 2], 2), [1., 0., 0., 1.]);
        assert_eq!(of(&[1, 2], 1), [0., 1.]);
        assert_eq!(of(&[2, 1], 1), [1., 0.]);
    }

    #[test]
    fn pytorch_takes_the_first_of_equal_scores() {
        let torch = Resampling { by: Interpolation::Torch, separate: Some(false), ..Resampling::default() };
        let of = |halves| stage(torch, halves).resized(&[2, 1, 1, 2], [1, 1, 4], [1, 1, 2], None);
        assert_eq!(of(false), [1, 1]);
        assert_eq!(of(true), [0, 0], "none is above a half");
        let apart = Resampling { separate: None, ..torch };
        let labels = [1, 1, 2, 2, 2, 2, 1, 1];
        assert_eq!(stage(apart, false).resized(&labels, [2, 1, 4], [4, 1, 2], Some(0)), [1, 2, 1, 2, 2, 1, 2, 1]);
    }

    #[test]
    fn slices_are_resampled_by_themselves() {
        let apart = |order_along| stage(Resampling { order_along, ..Resampling::default() }, false);
        let labels = [1, 1, 2, 2, 2, 2, 1, 1];
        assert_eq!(apart(0).resized(&labels, [2, 1, 4], [4, 1, 2], Some(0)), [1, 2, 1, 2, 2, 1, 2, 1]);
        assert_eq!(apart(1).resized(&labels, [2, 1, 4], [1, 1, 2], Some(0)), [0, 0], "halves are no label along the axis");
        assert_eq!(apart(1).resized(&labels, [2, 1, 4], [3, 1, 4], Some(0))[..4], [1, 1, 2, 2]);
    }
}
