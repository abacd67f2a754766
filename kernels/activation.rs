//! Element-wise activations, fused into what stores or loads a map.

use std::fmt;

/// An element-wise activation.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// max(x, 0).
    Relu,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
    /// x, or `slope` x where x is negative.
    LeakyRelu {
        /// Factor of negative values.
        slope: f32,
    },
    /// x, or `alpha` (exp(x) - 1) where x is negative.
    Elu {
        /// Minus the limit for large negative values.
        alpha: f32,
    },
    /// x (1 + erf(x / sqrt 2)) / 2: the exact form. The shader is within 1e-6 of it.
    Gelu,
}

impl Activation {
    /// The value of the shader constant `ACTIVATION`.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Relu => 1,
            Self::Sigmoid => 2,
            Self::LeakyRelu { .. } => 3,
            Self::Elu { .. } => 4,
            Self::Gelu => 5,
        }
    }

    /// The value of the shader constant `SLOPE`, where there is one.
    #[must_use]
    pub const fn slope(self) -> Option<f32> {
        match self {
            Self::LeakyRelu { slope } | Self::Elu { alpha: slope } => Some(slope),
            _ => None,
        }
    }

    /// The function itself, for the twins.
    #[must_use]
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Self::None => x,
            // as PyTorch's, NaN stays NaN
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::LeakyRelu { slope } => x * if x < 0.0 { f64::from(slope) } else { 1.0 },
            Self::Elu { alpha } => {
                if x < 0.0 {
                    f64::from(alpha) * x.exp_m1()
                } else {
                    x
                }
            }
            Self::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Relu => f.write_str("relu"),
            Self::Sigmoid => f.write_str("sigmoid"),
            Self::LeakyRelu { slope } => write!(f, "leaky relu {slope}"),
            Self::Elu { alpha } => write!(f, "elu {alpha}"),
            Self::Gelu => f.write_str("gelu"),
        }
    }
}

/// The error function. Source: its series of positive terms, DLMF 7.6.2.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    let mut n = 1.0;
    while term.abs() > 1e-17 * sum.abs() {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_take_their_known_values() {
        // erf: Abramowitz & Stegun, table 7.1
        for (x, y) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0), (-1.0, -0.842_700_792_9)] {
            assert!((erf(x) - y).abs() < 1e-10, "{x}");
        }
        assert!((erf(5.9) - 1.0).abs() < 1e-15);
        assert_eq!(Activation::LeakyRelu { slope: 0.5 }.apply(-3.0), -1.5);
        assert_eq!(Activation::Elu { alpha: 2.0 }.apply(-1e3), -2.0);
        assert!((Activation::Gelu.apply(1.0) - 0.841_344_746_1).abs() < 1e-9);
    }
}
