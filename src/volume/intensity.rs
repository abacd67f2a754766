//! Scaling of voxel values before the network sees them, as the model's card asks.

use serde::{Deserialize, Serialize};

use super::Volume;

/// The smallest standard deviation that values are divided by, so that a flat channel becomes zeros, not NaN.
const SMALLEST_STD: f64 = 1e-8;

/// How voxel values are scaled; in a card `{"scheme": "zscore"}`, `{"scheme": "zscore_nonzero"}`,
/// `{"scheme": "window", "low": -160, "high": 240}` or `{"scheme": "none"}`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "scheme", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Intensity {
    /// Every channel to mean 0 and (population) standard deviation 1 over all its voxels.
    Zscore,
    /// As [`Intensity::Zscore`], but over the voxels that are not 0; those that are stay 0.
    ZscoreNonzero,
    /// Values clipped to `low..=high` and mapped to `0..=1`. With `high <= low`, a step: 1 above `high`, else 0.
    Window {
        /// The value that becomes 0, in the scan's units (Hounsfield units for CT).
        low: f64,
        /// The value that becomes 1.
        high: f64,
    },
    /// Values as they are.
    None,
}

impl Intensity {
    /// Scales every channel of the volume in place. Sums are taken in f64, in storage order.
    pub fn apply(&self, volume: &mut Volume<f32>) {
        let voxels = (volume.data.len() / volume.channels.max(1) as usize).max(1);
        for channel in volume.data.chunks_exact_mut(voxels) {
            match *self {
                Self::Zscore => standardise(channel, |_| true),
                Self::ZscoreNonzero => standardise(channel, |x| x != 0.0),
                Self::Window { low, high } => {
                    for x in channel {
                        *x = narrow(window(f64::from(*x), low, high));
                    }
                }
                Self::None => {}
            }
        }
    }
}

fn standardise(values: &mut [f32], counts: impl Fn(f32) -> bool) {
    let sum = |term: &dyn Fn(f64) -> f64| -> f64 { values.iter().filter(|x| counts(**x)).map(|x| term(f64::from(*x))).sum() };
    let n = sum(&|_| 1.0).max(1.0);
    let mean = sum(&|x| x) / n;
    // Two passes: the one-pass formula loses the variance of values far from zero.
    let std = (sum(&|x| (x - mean) * (x - mean)) / n).sqrt().max(SMALLEST_STD);
    for x in values.iter_mut().filter(|x| counts(**x)) {
        *x = narrow((f64::from(*x) - mean) / std);
    }
}

fn window(x: f64, low: f64, high: f64) -> f64 {
    if high > low { ((x - low) / (high - low)).clamp(0.0, 1.0) } else { f64::from(u8::from(x > high)) }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
fn narrow(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Extent;
    use crate::volume::VolumeError;

    fn volume(channels: u32, data: &[f32]) -> Result<Volume<f32>, VolumeError> {
        let w = u32::try_from(data.len()).unwrap_or(u32::MAX) / channels;
        Volume::new(channels, Extent::new(1, 1, w), [1.0; 3], "SAR".parse()?, data.to_vec())
    }

    #[test]
    fn cards_parse() -> Result<(), serde_json::Error> {
        let parse = |s: &str| serde_json::from_str::<Intensity>(s);
        assert_eq!(parse(r#"{"scheme":"zscore"}"#)?, Intensity::Zscore);
        assert_eq!(parse(r#"{"scheme":"zscore_nonzero"}"#)?, Intensity::ZscoreNonzero);
        assert_eq!(parse(r#"{"scheme":"window","low":-160,"high":240}"#)?, Intensity::Window { low: -160.0, high: 240.0 });
        assert_eq!(parse(r#"{"scheme":"none"}"#)?, Intensity::None);
        assert!(parse(r#"{"scheme":"windows"}"#).is_err());
        assert!(parse(r#"{"scheme":"window","low":0}"#).is_err());
        Ok(())
    }

    #[test]
    fn zscore_is_per_channel_and_survives_large_offsets() -> Result<(), VolumeError> {
        let mut v = volume(2, &[1e6, 1e6 + 2.0, 1e6, 1e6 + 2.0, 7.0, 7.0, 7.0, 7.0])?;
        Intensity::Zscore.apply(&mut v);
        assert_eq!(v.data, [-1.0, 1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        Ok(())
    }

    #[test]
    fn nonzero_leaves_the_background_alone() -> Result<(), VolumeError> {
        let mut v = volume(1, &[0.0, 10.0, 0.0, 20.0])?;
        Intensity::ZscoreNonzero.apply(&mut v);
        assert_eq!(v.data, [0.0, -1.0, 0.0, 1.0]);
        let mut empty = volume(1, &[0.0; 4])?;
        Intensity::ZscoreNonzero.apply(&mut empty);
        assert_eq!(empty.data, [0.0; 4]);
        Ok(())
    }

    #[test]
    fn window_clips_and_maps() -> Result<(), VolumeError> {
        let mut v = volume(1, &[-1000.0, -160.0, 40.0, 240.0, 3000.0])?;
        Intensity::Window { low: -160.0, high: 240.0 }.apply(&mut v);
        assert_eq!(v.data, [0.0, 0.0, 0.5, 1.0, 1.0]);
        let mut step = volume(1, &[4.0, 5.0, 6.0])?;
        Intensity::Window { low: 5.0, high: 5.0 }.apply(&mut step);
        assert_eq!(step.data, [0.0, 0.0, 1.0]);
        Ok(())
    }
}
