//! The card's key `input.monai`.

use serde::{Deserialize, Serialize};

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
}

/// `KeepLargestConnectedComponent` on labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Largest {
    /// Of these; none: of all but 0.
    #[serde(default)]
    pub labels: Vec<u32>,
    /// Of all of them together; else of each by itself.
    #[serde(default)]
    pub union: bool,
    /// Along how many axes neighbours may differ by one voxel: 1 to 3.
    pub connectivity: u32,
    /// Whether it is done before labels go the way back.
    pub first: bool,
}

/// What is brought back to the scan's grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Invert {
    /// What the network says, before softmax.
    Logits,
    /// Its softmax.
    Probabilities,
    /// The most probable classes.
    Labels,
    /// Nothing, but as it saves the most probable classes, `SaveImage` resamples them to the scan's
    /// grid: in one step, each voxel read at the nearest, the outermost beyond the edges.
    Saving,
    /// Nothing: labels lie on the grid of the network's input.
    Nothing,
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

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Pipeline {
    /// What is wrong with it, for a network of so many dimensions and input channels.
    pub(crate) fn check(&self, dims: u32, channels: u32) -> Result<(), String> {
        if dims != 3 {
            return Err(format!("the network has {dims} dimensions; bundles of three run"));
        }
        if let Some(largest) = self.largest.as_ref().filter(|l| {
            let soft = matches!(self.invert, Invert::Logits | Invert::Probabilities);
            !(1..=3).contains(&l.connectivity) || (l.first && soft)
        }) {
            return Err(format!("{largest:?} is no way to keep parts of labels"));
        }
        let finite = |values: &[f64]| values.iter().all(|v| v.is_finite());
        for transform in &self.transforms {
            let fits = match transform {
                Transform::Orientation { .. } | Transform::CropForeground { .. } => true,
                Transform::Spacing { mm, .. } => finite(mm) && mm.iter().all(|v| *v >= 0.0),
                Transform::ScaleRange { from, to, .. } => finite(from) && finite(&to.unwrap_or_default()),
                Transform::ScalePercentiles { from, to, relative, .. } => {
                    from.iter().all(|p| (0.0..=100.0).contains(p)) && finite(&to.unwrap_or_default()) && (to.is_some() || !relative)
                }
                Transform::ScaleMinMax { to, .. } => finite(to),
                Transform::Normalize { channel_wise, subtrahend, divisor, .. } => [subtrahend, divisor].into_iter().all(|list| {
                    let count = if *channel_wise { channels as usize } else { 1 };
                    finite(list) && (list.is_empty() || list.len() == count)
                }),
            };
            if !fits {
                return Err(format!("{transform:?} is no transform of a scan of {channels} channels"));
            }
        }
        Ok(())
    }
}
