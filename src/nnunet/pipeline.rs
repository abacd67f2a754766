//! The card's key `input.nnunet`.

use serde::{Deserialize, Serialize};

use super::reader::Reader;
use crate::volume::spline::{self, Order};

/// Slices that are thicker than wide by more than this are resampled each by itself.
const THICK: f64 = 3.0;

/// The least that values are divided by.
const LEAST: f32 = 1e-8;

/// What nnU-Net does with a scan before the network sees it, and with its logits. In this order: the axes are transposed, the
/// scan is cropped to what is not 0, its values are scaled, and it is resampled; and back. Version 1 resamples before it scales, and
/// has probabilities where version 2 has logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Of nnU-Net: 1 or 2.
    #[serde(default = "two", skip_serializing_if = "is_two")]
    pub version: u32,
    /// The file's axis (0, 1, 2: slowest to fastest) that becomes D, H, W of the network.
    pub transpose: [usize; 3],
    /// Voxel size of the network along \[D,\] H, W; two numbers leave D as it is.
    pub spacing_mm: Vec<f64>,
    /// How each channel is scaled.
    pub channels: Vec<Scaling>,
    /// How the scan is resampled.
    pub resample: Resampling,
    /// How the logits are, or the probabilities.
    pub resample_logits: Resampling,
    /// What scans are read with.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reader: Reader,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn two() -> u32 {
    2
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_two(version: &u32) -> bool {
    *version == 2
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(b: &bool) -> bool {
    !*b
}

/// How the values of a channel are scaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "scheme", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scaling {
    /// Clipped, and brought to mean 0 and deviation 1 of the foreground of all training scans.
    Ct {
        /// Least value.
        low: f32,
        /// Greatest value.
        high: f32,
        /// What becomes 0.
        mean: f32,
        /// What becomes 1, less the mean.
        std: f32,
        /// Whether what is not of the body becomes 0.
        #[serde(default, skip_serializing_if = "is_false")]
        masked: bool,
    },
    /// Clipped, and brought to mean 0 and deviation 1 of those of the scan's values that lie between.
    Ct2 {
        /// Least value.
        low: f32,
        /// Greatest value.
        high: f32,
        /// Whether what is not of the body becomes 0.
        #[serde(default, skip_serializing_if = "is_false")]
        masked: bool,
    },
    /// To mean 0 and deviation 1 of the scan.
    Zscore {
        /// Of its body alone; the rest stays 0, or with version 1 becomes 0.
        masked: bool,
    },
    /// As they are.
    None,
    /// The least to 0, the greatest to 1.
    Range,
    /// 0 to 255 become 0 to 1.
    Rgb,
}

/// Degrees of the splines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resampling {
    /// 0, 1 or 3.
    pub order: u32,
    /// That along the axis of thick slices, where it is resampled by itself.
    pub order_along: u32,
    /// Whether it is; absent: as the spacings have it.
    #[serde(default)]
    pub separate: Option<bool>,
}

impl Pipeline {
    /// What is wrong with it, for a network of so many dimensions and input channels.
    pub(crate) fn check(&self, dims: u32, channels: u32) -> Result<(), String> {
        if !(1..=2).contains(&self.version) {
            return Err(format!("version {} is not supported; nnU-Net's 1 and 2 are", self.version));
        }
        let mut axes = self.transpose;
        axes.sort_unstable();
        if axes != [0, 1, 2] {
            return Err(format!("transpose {:?} is no order of the axes 0, 1, 2", self.transpose));
        }
        if self.spacing_mm.len() != dims as usize || self.spacing_mm.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
            return Err(format!("spacing_mm {:?} is not {dims} positive numbers", self.spacing_mm));
        }
        if self.channels.len() != channels as usize {
            return Err(format!("{} channels are scaled, the network takes {channels}", self.channels.len()));
        }
        for r in [&self.resample, &self.resample_logits] {
            if let Some(order) = [r.order, r.order_along].into_iter().find(|&o| Order::of_degree(o).is_none()) {
                return Err(format!("resampling of order {order} is not supported; orders 0, 1 and 3 are"));
            }
        }
        Ok(())
    }

    /// Whether it is that of nnU-Net v1.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.version == 1
    }

    /// The axis that is resampled by itself on the way back to the scan's grid, of the network's axes; spacings too.
    pub(crate) fn axis_back(&self, scan: [f64; 3], network: [f64; 3]) -> Option<usize> {
        let resample = &self.resample_logits;
        if !self.is_first() {
            return resample.axis(network, scan);
        }
        if resample.separate.is_none() && !thick(scan) {
            // v1 takes the number of the network's axis for that of the file's
            let axis = resample.axis(network, network)?;
            return self.transpose.iter().position(|&file| file == axis);
        }
        resample.axis(scan, scan)
    }
}

impl Scaling {
    /// Whether it asks where the body is.
    pub(crate) fn masked(&self) -> bool {
        matches!(self, Self::Ct { masked: true, .. } | Self::Ct2 { masked: true, .. } | Self::Zscore { masked: true })
    }

    /// Scales a channel in place as a version of nnU-Net does; `body` is the part of it that is not empty.
    ///
    /// # Errors
    /// When the values are not of the kind that the scheme is for.
    pub(crate) fn apply(&self, values: &mut [f32], body: &[bool], version: u32) -> Result<(), String> {
        match *self {
            Self::Ct { low, high, mean, std, .. } => {
                let std = std.max(LEAST);
                values.iter_mut().for_each(|v| *v = (v.max(low).min(high) - mean) / std);
            }
            Self::Ct2 { low, high, .. } => {
                let between: Vec<bool> = values.iter().map(|&v| low < v && v < high).collect();
                let (mean, std) = statistics(values, |i| between[i]).filter(|&(_, std)| std > 0.0).ok_or_else(|| {
                    format!("the model scales by the values between {low} and {high}; of these the scan has none, or but one")
                })?;
                values.iter_mut().for_each(|v| *v = narrow((f64::from(v.max(low).min(high)) - mean) / std));
            }
            Self::Zscore { masked } => {
                let counts = |i: usize| !masked || body[i];
                let (mean, std) = statistics(values, counts).unwrap_or((0.0, 0.0));
                let std = if version == 1 { std + f64::from(LEAST) } else { std.max(f64::from(LEAST)) };
                for (_, v) in values.iter_mut().enumerate().filter(|(i, _)| counts(*i)) {
                    *v = narrow((f64::from(*v) - mean) / std);
                }
            }
            Self::None => {}
            Self::Range => {
                let low = values.iter().copied().fold(f32::INFINITY, f32::min);
                values.iter_mut().for_each(|v| *v -= low);
                let high = values.iter().copied().fold(0.0, f32::max).max(LEAST);
                values.iter_mut().for_each(|v| *v /= high);
            }
            Self::Rgb => {
                if let Some(bad) = values.iter().find(|v| !(0.0..=255.0).contains(*v)) {
                    return Err(format!("the model is for colour images with values from 0 to 255; the scan holds {bad}"));
                }
                values.iter_mut().for_each(|v| *v /= 255.0);
            }
        }
        if self.masked() && version == 1 {
            values.iter_mut().zip(body).filter(|(_, inside)| !**inside).for_each(|(v, _)| *v = 0.0);
        }
        Ok(())
    }
}

/// Mean and deviation of the values that count; of none, nothing.
fn statistics(values: &[f32], counts: impl Fn(usize) -> bool) -> Option<(f64, f64)> {
    let sum = |term: &dyn Fn(f64) -> f64| -> f64 {
        values.iter().enumerate().filter(|(i, _)| counts(*i)).map(|(_, v)| term(f64::from(*v))).sum()
    };
    let n = sum(&|_| 1.0);
    let mean = sum(&|v| v) / n;
    (n > 0.0).then(|| (mean, (sum(&|v| (v - mean) * (v - mean)) / n).sqrt()))
}

#[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
fn narrow(x: f64) -> f32 {
    x as f32
}

fn greatest(spacing: [f64; 3]) -> f64 {
    spacing.into_iter().fold(0.0, f64::max)
}

fn thick(spacing: [f64; 3]) -> bool {
    greatest(spacing) / spacing.into_iter().fold(f64::INFINITY, f64::min) > THICK
}

impl Resampling {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_scaled() -> Result<(), String> {
        let scaled = |scaling: Scaling, values: &[f32]| {
            let mut values = values.to_vec();
            let body: Vec<bool> = values.iter().map(|v| *v != 0.0).collect();
            scaling.apply(&mut values, &body, 2).map(|()| values)
        };
        let ct = Scaling::Ct { low: -10.0, high: 30.0, mean: 10.0, std: 10.0, masked: false };
        assert_eq!(scaled(ct, &[-500.0, 0.0, 20.0, 99.0])?, [-2.0, -1.0, 1.0, 2.0]);
        assert_eq!(scaled(Scaling::Zscore { masked: true }, &[0.0, 10.0, 0.0, 20.0])?, [0.0, -1.0, 0.0, 1.0]);
        assert_eq!(scaled(Scaling::Zscore { masked: false }, &[0.0, 0.0, 2.0, 2.0])?, [-1.0, -1.0, 1.0, 1.0]);
        assert_eq!(scaled(Scaling::Zscore { masked: false }, &[5.0, 5.0])?, [0.0, 0.0]);
        assert_eq!(scaled(Scaling::None, &[5.0, -5.0])?, [5.0, -5.0]);
        assert_eq!(scaled(Scaling::Range, &[5.0, 7.0, 9.0])?, [0.0, 0.5, 1.0]);
        assert_eq!(scaled(Scaling::Range, &[5.0, 5.0])?, [0.0, 0.0]);
        assert_eq!(scaled(Scaling::Rgb, &[0.0, 255.0])?, [0.0, 1.0]);
        assert!(scaled(Scaling::Rgb, &[0.0, 256.0]).is_err_and(|e| e.contains("256")));
        Ok(())
    }

    #[test]
    fn the_first_version_scales_otherwise() -> Result<(), String> {
        let scaled = |scaling: Scaling, values: &[f32]| {
            let mut values = values.to_vec();
            scaling.apply(&mut values, &[true, true, false, true], 1).map(|()| values)
        };
        let ct = Scaling::Ct { low: -10.0, high: 30.0, mean: 10.0, std: 10.0, masked: true };
        assert_eq!(scaled(ct, &[-500.0, 0.0, 20.0, 99.0])?, [-2.0, -1.0, 0.0, 2.0]);
        assert_eq!(scaled(Scaling::Zscore { masked: true }, &[10.0, 15.0, 3.0, 20.0])?[2], 0.0);
        assert_eq!(scaled(Scaling::Zscore { masked: false }, &[2.0; 4])?, [0.0; 4]);
        let ct2 = |masked| Scaling::Ct2 { low: 0.0, high: 10.0, masked };
        assert_eq!(scaled(ct2(false), &[4.0, 6.0, 10.0, -7.0])?, [-1.0, 1.0, 5.0, -5.0]);
        assert_eq!(scaled(ct2(true), &[4.0, 6.0, 10.0, -7.0])?, [-1.0, 1.0, 0.0, -5.0]);
        assert!(scaled(ct2(false), &[10.0; 4]).is_err_and(|e| e.contains("between 0 and 10")));
        Ok(())
    }

    #[test]
    fn the_way_back_has_an_axis_of_its_own() {
        let resample = Resampling { order: 1, order_along: 0, separate: None };
        let by = |version, separate| Pipeline {
            version,
            transpose: [2, 0, 1],
            spacing_mm: vec![1.0; 3],
            channels: vec![],
            resample,
            resample_logits: Resampling { separate, ..resample },
            reader: Reader::SimpleItk,
        };
        let (thick, other, thin) = ([5.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.2, 1.1]);
        assert_eq!(by(2, None).axis_back(other, thick), Some(0));
        assert_eq!(by(1, None).axis_back(other, thick), Some(1));
        assert_eq!(by(2, None).axis_back(thin, thick), Some(0));
        // axis 0 of the file is axis 1 of the network
        assert_eq!(by(1, None).axis_back(thin, thick), Some(1));
        assert_eq!(by(1, Some(true)).axis_back(thin, thick), Some(1));
        assert_eq!(by(1, Some(false)).axis_back(thick, thick), None);
        assert_eq!(by(1, None).axis_back(thin, thin), None);
    }

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
    fn what_cannot_be_is_told() {
        let resample = Resampling { order: 3, order_along: 0, separate: None };
        let good = Pipeline {
            version: 2,
            transpose: [2, 0, 1],
            spacing_mm: vec![1.0; 3],
            channels: vec![Scaling::None],
            resample,
            resample_logits: resample,
            reader: Reader::SimpleItk,
        };
        assert_eq!(good.check(3, 1), Ok(()));
        let bad = |p: Pipeline, word: &str| assert!(p.check(3, 1).is_err_and(|e| e.contains(word)), "{word}");
        bad(Pipeline { transpose: [0, 0, 1], ..good.clone() }, "transpose");
        bad(Pipeline { version: 3, ..good.clone() }, "version 3");
        bad(Pipeline { spacing_mm: vec![1.0; 2], ..good.clone() }, "spacing_mm");
        bad(Pipeline { spacing_mm: vec![1.0, 0.0, 1.0], ..good.clone() }, "spacing_mm");
        bad(Pipeline { channels: vec![], ..good.clone() }, "channels");
        bad(Pipeline { resample_logits: Resampling { order: 2, ..resample }, ..good }, "order 2");
    }
}
