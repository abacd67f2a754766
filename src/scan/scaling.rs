//! Scaling of values as nnU-Net does it.

use serde::{Deserialize, Serialize};

/// The least that values are divided by.
const LEAST: f32 = 1e-8;

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
        /// Mean of the foreground of all training scans, which becomes 0.
        mean: f32,
        /// Standard deviation of the foreground of all training scans, which becomes 1.
        std: f32,
        /// Whether voxels outside the body become 0.
        #[serde(default, skip_serializing_if = "is_false")]
        masked: bool,
    },
    /// Clipped, and brought to mean 0 and deviation 1 of those of the scan's values that lie
    /// between.
    Ct2 {
        /// Least value.
        low: f32,
        /// Greatest value.
        high: f32,
        /// Whether voxels outside the body become 0.
        #[serde(default, skip_serializing_if = "is_false")]
        masked: bool,
    },
    /// Brought to mean 0 and deviation 1 of the scan.
    Zscore {
        /// Whether the body alone counts; the rest stays 0, or with version 1 becomes 0.
        masked: bool,
    },
    /// Values as they are.
    None,
    /// The least to 0, the greatest to 1.
    Range,
    /// 0 to 255 become 0 to 1.
    Rgb,
}

impl Scaling {
    /// Whether it asks where the body is.
    pub(crate) fn masked(&self) -> bool {
        matches!(self, Self::Ct { masked: true, .. } | Self::Ct2 { masked: true, .. } | Self::Zscore { masked: true })
    }

    /// Scales a channel in place as a version of nnU-Net does; `body` is the part of it that is not
    /// empty.
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
}
