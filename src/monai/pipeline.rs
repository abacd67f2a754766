//! The card's key `input.monai`.

use serde::{Deserialize, Serialize};

pub use crate::scan::{Filter, Invert, Largest};

use crate::scan::{Recipe, Resample, Restore, ResultStep, Step, Values, is_default};
use crate::volume::Axes;

/// What MONAI does with a scan before the network sees it, and with what the network says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// One after another, on the scan with its axes in the order of the file: the fastest first.
    pub transforms: Vec<Transform>,
    /// What goes the way back.
    pub invert: Invert,
    /// Whether it is read at the nearest voxel there; else linearly. Labels always are.
    #[serde(default)]
    pub nearest: bool,
    /// The largest connected parts alone are kept of labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest: Option<Largest>,
    /// Further transforms of labels, in order, after `largest`, before they go the way back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Filter>,
    /// Those on the scan's grid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Filter>,
    /// Labels may overlap: a voxel has every label whose score is at least this, in place of the
    /// most probable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// Whether these scores are sigmoids of logits.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sigmoid: bool,
}

/// A transform, after MONAI's of about the same name. Axes are D, H, W of the network, in MONAI the first, second and third.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "transform", rename_all = "snake_case", deny_unknown_fields)]
pub enum Transform {
    /// `Orientation`.
    Orientation {
        /// Patient directions in which the axes increase.
        axes: Axes,
    },
    /// `Spacing`, read linearly.
    Spacing {
        /// Voxel size; 0 leaves an axis as it is.
        mm: [f64; 3],
        /// Read at the nearest voxel.
        #[serde(default, skip_serializing_if = "is_default")]
        nearest: bool,
        /// How `grid_sample` counts; of no effect but in the last bit.
        #[serde(default, skip_serializing_if = "is_default")]
        align_corners: bool,
    },
    /// `CropForeground`: the box of what is above 0 in any of the channels.
    CropForeground {
        /// Voxels more on either side.
        #[serde(default, skip_serializing_if = "is_default")]
        margin: [u32; 3],
        /// Whether the margin ends where the scan does; else zeros are put around.
        #[serde(default, skip_serializing_if = "is_default")]
        allow_smaller: bool,
        /// The box becomes as large as a multiple of this; 0 counts as 1.
        #[serde(default, skip_serializing_if = "is_default")]
        k_divisible: [u32; 3],
    },
    /// The axis whose slices a network of two dimensions sees comes first: `SliceInferer`.
    Slices {
        /// The axis, 0 to 2.
        axis: usize,
    },
    /// `SpatialPad`, `DivisiblePad`, and what sliding windows put around a scan that is smaller.
    Pad {
        /// The least extent; 0 leaves an axis as it is.
        #[serde(default, skip_serializing_if = "is_default")]
        least: [u32; 3],
        /// The extent becomes a multiple of this; 0 counts as 1.
        #[serde(default, skip_serializing_if = "is_default")]
        multiple: [u32; 3],
        /// Whether all of it lies behind the last voxel, instead of half of it before the first.
        #[serde(default, skip_serializing_if = "is_default")]
        end: bool,
        /// Whether the outermost voxels are repeated, instead of zeros.
        #[serde(default, skip_serializing_if = "is_default")]
        replicate: bool,
    },
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
        /// Percentile below which values become it; absent: they stay.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        low: Option<f64>,
        /// Percentile above which they do.
        #[serde(default, skip_serializing_if = "Option::is_none")]
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

impl Pipeline {
    /// What is wrong with it, for a network of so many dimensions and input channels.
    pub(crate) fn check(&self, dims: u32, channels: u32) -> Result<(), String> {
        if self.threshold.is_some() && (self.largest.is_some() || !self.before.is_empty() || !self.after.is_empty()) {
            return Err("parts of labels that may overlap are not kept apart".into());
        }
        if self.sigmoid && self.threshold.is_none() {
            return Err("sigmoid goes with a threshold".into());
        }
        let soft = matches!(self.invert, Invert::Logits | Invert::Probabilities);
        if let Some(largest) = self.largest.as_ref().filter(|l| l.first && soft) {
            return Err(format!("{largest:?} is no way to keep parts of labels"));
        }
        self.recipe().check(dims, channels)
    }

    /// The recipe that it stands for.
    #[must_use]
    pub fn recipe(&self) -> Recipe {
        let steps = self.transforms.iter().map(Transform::step);
        let steps = std::iter::once(Step::ReadAsMonai).chain(steps).collect();
        let inverse = || ResultStep::Restore(Restore::Inverse { nearest: self.nearest });
        if let Some(at) = self.threshold {
            return Recipe::new(steps, self.overlapping(at));
        }
        let mut results = match self.invert {
            Invert::Logits => vec![inverse(), ResultStep::ArgMax],
            Invert::Probabilities => vec![ResultStep::Softmax, inverse(), ResultStep::ArgMax],
            Invert::Labels => vec![ResultStep::ArgMax, inverse()],
            Invert::Saving => vec![ResultStep::ArgMax, ResultStep::Restore(Restore::Save)],
            Invert::Nothing => vec![ResultStep::ArgMax],
        };
        if let Some(Largest { labels, union, connectivity, first }) = self.largest.clone() {
            let keep = ResultStep::KeepLargest { labels, union, connectivity };
            // MONAI filters labels before or after they go the way back
            let at = if first { 1.min(results.len()) } else { results.len() };
            if first || self.invert != Invert::Nothing {
                results.insert(at, keep);
            }
        }
        self.filter(&mut results);
        Recipe::new(steps, results)
    }
}

impl Pipeline {
    /// Puts the further transforms of labels where they belong.
    fn filter(&self, results: &mut Vec<ResultStep>) {
        let restored = |result: &ResultStep| matches!(result, ResultStep::Restore(_));
        let argmax = results.iter().position(|result| *result == ResultStep::ArgMax).unwrap_or_default();
        let back = results.iter().skip(argmax).position(restored).map(|at| at + argmax);
        let at = back.unwrap_or(results.len());
        let steps = self.before.iter().cloned().map(ResultStep::Filter);
        results.splice(at..at, steps);
        results.extend(self.after.iter().cloned().map(ResultStep::Filter));
    }

    /// The results of labels that may overlap.
    fn overlapping(&self, at: f32) -> Vec<ResultStep> {
        let sigmoid = || self.sigmoid.then_some(ResultStep::Sigmoid);
        let (at, inverse) = (ResultStep::Threshold { at }, ResultStep::Restore(Restore::Inverse { nearest: self.nearest }));
        let steps = match self.invert {
            Invert::Logits => [Some(inverse), sigmoid(), Some(at)],
            Invert::Probabilities => [sigmoid(), Some(inverse), Some(at)],
            Invert::Labels => [sigmoid(), Some(at), Some(inverse)],
            Invert::Saving => [sigmoid(), Some(at), Some(ResultStep::Restore(Restore::Save))],
            Invert::Nothing => [sigmoid(), Some(at), None],
        };
        steps.into_iter().flatten().collect()
    }
}

impl Transform {
    /// The step that it stands for.
    fn step(&self) -> Step {
        let values = match self.clone() {
            Self::Orientation { axes } => return Step::Orient { axes },
            Self::Spacing { mm, nearest, align_corners } => {
                return Step::Resample(Resample::Grid { mm, nearest, align_corners });
            }
            Self::CropForeground { margin, allow_smaller, k_divisible } => {
                return Step::CropForeground { margin, allow_smaller, k_divisible };
            }
            Self::Slices { axis } => {
                let mut order = [0, 1, 2];
                order[..3.min(axis + 1)].rotate_right(1);
                return Step::Transpose { order };
            }
            Self::Pad { least, multiple, end, replicate } => return Step::Pad { least, multiple, end, replicate },
            Self::ClipPercentiles { low, high, channel_wise } => Values::ClipPercentiles { low, high, channel_wise },
            Self::ScaleRange { from, to, clip } => Values::ScaleRange { from, to, clip },
            Self::ScalePercentiles { from, to, clip, relative, channel_wise } => {
                Values::ScalePercentiles { from, to, clip, relative, channel_wise }
            }
            Self::ScaleMinMax { to, channel_wise } => Values::ScaleMinMax { to, channel_wise },
            Self::Normalize { nonzero, channel_wise, subtrahend, divisor } => {
                Values::Normalize { nonzero, channel_wise, subtrahend, divisor }
            }
        };
        Step::ScaleValues(values)
    }
}
