//! MONAI's transforms of values. MONAI computes them in f32, and so are they here, but for sums.

use serde::{Deserialize, Serialize};

use super::recipe::is_default;
use crate::volume::statistics::quantile;

/// A transform of values, after MONAI's of about the same name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "transform", rename_all = "snake_case", deny_unknown_fields)]
pub enum Values {
    /// `ScaleIntensityRange`: from one range to another.
    ScaleRange {
        /// Least and greatest value of the scan.
        from: [f64; 2],
        /// What they become; absent: 0 and 1.
        #[serde(default, skip_serializing_if = "is_default")]
        to: Option<[f64; 2]>,
        /// Whether what is outside is held within.
        #[serde(default, skip_serializing_if = "is_default")]
        clip: bool,
    },
    /// `ScaleIntensityRangePercentiles`: the same, from percentiles on.
    ScalePercentiles {
        /// Percentiles, 0 to 100.
        from: [f64; 2],
        /// What they become; absent: 0 and 1.
        #[serde(default, skip_serializing_if = "is_default")]
        to: Option<[f64; 2]>,
        /// Whether what is outside is held within.
        #[serde(default, skip_serializing_if = "is_default")]
        clip: bool,
        /// Whether the range is cut by the percentiles as well.
        #[serde(default, skip_serializing_if = "is_default")]
        relative: bool,
        /// Whether each channel has percentiles of its own.
        #[serde(default, skip_serializing_if = "is_default")]
        channel_wise: bool,
    },
    /// `ClipIntensityPercentiles`: what is outside is held within.
    ClipPercentiles {
        /// Percentile below which values become it; `None` leaves them.
        low: Option<f64>,
        /// Percentile above which they do.
        high: Option<f64>,
        /// Whether each channel has percentiles of its own.
        #[serde(default, skip_serializing_if = "is_default")]
        channel_wise: bool,
    },
    /// `ScaleIntensity`: the least and the greatest value of all become these.
    ScaleMinMax {
        /// What they become.
        to: [f64; 2],
        /// Whether each channel has a range of its own.
        #[serde(default, skip_serializing_if = "is_default")]
        channel_wise: bool,
    },
    /// `NormalizeIntensity`: less the mean, by the deviation.
    Normalize {
        /// Only voxels that are not 0.
        #[serde(default, skip_serializing_if = "is_default")]
        nonzero: bool,
        /// Whether each channel has statistics of its own.
        #[serde(default, skip_serializing_if = "is_default")]
        channel_wise: bool,
        /// In place of the mean; one, or one for each channel.
        #[serde(default, skip_serializing_if = "is_default")]
        subtrahend: Vec<f64>,
        /// In place of the deviation.
        #[serde(default, skip_serializing_if = "is_default")]
        divisor: Vec<f64>,
    },
}

impl Values {
    /// Whether it is a transform of a scan of so many channels.
    pub(crate) fn fits(&self, channels: u32) -> bool {
        let finite = |values: &[f64]| values.iter().all(|v| v.is_finite());
        match self {
            Self::ScaleRange { from, to, .. } => finite(from) && finite(&to.unwrap_or_default()),
            Self::ScalePercentiles { from, to, relative, .. } => {
                let percentiles = from.iter().all(|p| (0.0..=100.0).contains(p));
                percentiles && finite(&to.unwrap_or_default()) && (to.is_some() || !relative)
            }
            Self::ClipPercentiles { low, high, .. } => {
                let (low, high) = (low.unwrap_or(0.0), high.unwrap_or(100.0));
                (0.0..=100.0).contains(&low) && (low..=100.0).contains(&high)
            }
            Self::ScaleMinMax { to, .. } => finite(to),
            Self::Normalize { channel_wise, subtrahend, divisor, .. } => {
                let count = if *channel_wise { channels as usize } else { 1 };
                let fits = |list: &Vec<f64>| finite(list) && (list.is_empty() || list.len() == count);
                fits(subtrahend) && fits(divisor)
            }
        }
    }
}

/// Applies a transform of values to channels `[C][..]` of so many voxels each.
pub(super) fn apply(transform: &Values, data: &mut [f32], voxels: usize) {
    let all = data.len();
    let part = |channel_wise: bool| (if channel_wise { voxels } else { all }).max(1);
    match transform {
        Values::ScaleRange { from, to, clip } => range(data, *from, *to, *clip),
        Values::ScalePercentiles { from, to, clip, relative, channel_wise } => {
            for part in data.chunks_mut(part(*channel_wise)) {
                let mut sorted: Vec<f32> = part.to_vec();
                sorted.sort_unstable_by(f32::total_cmp);
                let cut = |[low, high]: [f64; 2]| from.map(|p| (high - low) * (p / 100.0) + low);
                let to = if *relative { to.map(cut) } else { *to };
                range(part, from.map(|p| quantile(&sorted, p / 100.0)), to, *clip);
            }
        }
        Values::ClipPercentiles { low, high, channel_wise } => {
            for part in data.chunks_mut(part(*channel_wise)) {
                let mut sorted: Vec<f32> = part.to_vec();
                sorted.sort_unstable_by(f32::total_cmp);
                let [low, high] = [low.unwrap_or(0.0), high.unwrap_or(100.0)].map(|p| narrow(quantile(&sorted, p / 100.0)));
                part.iter_mut().for_each(|v| *v = v.max(low).min(high));
            }
        }
        Values::ScaleMinMax { to, channel_wise } => {
            for part in data.chunks_mut(part(*channel_wise)) {
                let (low, high) = part.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
                let least = narrow(to[0]);
                if low == high {
                    part.iter_mut().for_each(|v| *v *= least);
                } else {
                    part.iter_mut().for_each(|v| *v = (*v - low) / (high - low) * narrow(to[1] - to[0]) + least);
                }
            }
        }
        Values::Normalize { nonzero, channel_wise, subtrahend, divisor } => {
            for (i, part) in data.chunks_mut(part(*channel_wise)).enumerate() {
                let [mean, std] = [subtrahend, divisor].map(|list| list.get(i).copied());
                normalise(part, *nonzero, mean, std);
            }
        }
    }
}

fn range(data: &mut [f32], [a, b]: [f64; 2], to: Option<[f64; 2]>, clip: bool) {
    let first = narrow(a);
    if a == b {
        let least = to.map_or(0.0, |to| narrow(to[0]));
        data.iter_mut().for_each(|v| *v = *v - first + least);
        return;
    }
    let width = narrow(b - a);
    for v in data {
        *v = (*v - first) / width;
        if let Some([low, high]) = to {
            *v = *v * narrow(high - low) + narrow(low);
            if clip {
                *v = v.max(narrow(low)).min(narrow(high));
            }
        }
    }
}

fn normalise(data: &mut [f32], nonzero: bool, mean: Option<f64>, std: Option<f64>) {
    let counts = |v: &&f32| !nonzero || **v != 0.0;
    let n = data.iter().filter(counts).count();
    if n == 0 {
        return;
    }
    let sum = |term: &dyn Fn(f64) -> f64| -> f64 { data.iter().filter(counts).map(|v| term(f64::from(*v))).sum() };
    let own = sum(&|v| v) / n as f64;
    let deviation = || (sum(&|v| (v - own) * (v - own)) / n as f64).sqrt();
    let (mean, std) = (narrow(mean.unwrap_or(own)), narrow(std.unwrap_or_else(deviation)));
    let std = if std == 0.0 { 1.0 } else { std };
    for v in data.iter_mut().filter(|v| !nonzero || **v != 0.0) {
        *v = (*v - mean) / std;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
fn narrow(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(transform: &Values, data: &[f32], channels: usize) -> Vec<f32> {
        let mut data = data.to_vec();
        let voxels = data.len() / channels;
        apply(transform, &mut data, voxels);
        data
    }

    #[test]
    fn ranges_are_mapped() {
        let range = |from, to, clip| Values::ScaleRange { from, to, clip };
        assert_eq!(of(&range([0.0, 4.0], Some([-1.0, 1.0]), true), &[-2.0, 0.0, 1.0, 9.0], 1), [-1.0, -1.0, -0.5, 1.0]);
        assert_eq!(of(&range([0.0, 4.0], None, false), &[-2.0, 8.0], 1), [-0.5, 2.0]);
        assert_eq!(of(&range([3.0, 3.0], Some([1.0, 2.0]), true), &[3.0, 5.0], 1), [1.0, 3.0]);
        let percentiles = |relative, channel_wise| Values::ScalePercentiles {
            from: [25.0, 75.0],
            to: Some([0.0, 4.0]),
            clip: false,
            relative,
            channel_wise,
        };
        assert_eq!(of(&percentiles(false, false), &[0.0, 1.0, 2.0, 3.0, 4.0], 1), [-2.0, 0.0, 2.0, 4.0, 6.0]);
        assert_eq!(of(&percentiles(true, false), &[0.0, 1.0, 2.0, 3.0, 4.0], 1), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(of(&percentiles(false, true), &[0.0, 2.0, 10.0, 10.0], 2), [-2.0, 6.0, 0.0, 0.0]);
    }

    #[test]
    fn least_and_greatest_are_mapped() {
        let t = |channel_wise| Values::ScaleMinMax { to: [1.0, 3.0], channel_wise };
        assert_eq!(of(&t(false), &[0.0, 1.0, 2.0, 4.0], 2), [1.0, 1.5, 2.0, 3.0]);
        assert_eq!(of(&t(true), &[0.0, 1.0, 2.0, 4.0], 2), [1.0, 3.0, 1.0, 3.0]);
        assert_eq!(of(&t(false), &[5.0, 5.0], 1), [5.0, 5.0]);
    }

    #[test]
    fn means_and_deviations_are_taken_away() {
        let t = |nonzero, channel_wise, subtrahend: &[f64], divisor: &[f64]| Values::Normalize {
            nonzero,
            channel_wise,
            subtrahend: subtrahend.to_vec(),
            divisor: divisor.to_vec(),
        };
        assert_eq!(of(&t(true, true, &[], &[]), &[0.0, 1.0, 3.0, 0.0, 0.0, 0.0], 2), [0.0, -1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(of(&t(false, false, &[], &[]), &[7.0, 7.0], 1), [0.0, 0.0]);
        assert_eq!(of(&t(false, true, &[1.0, 2.0], &[2.0, 0.0]), &[5.0, 5.0], 2), [2.0, 3.0]);
    }
}
