//! Functions that compilers turn into vector instructions: no branches, no calls.

use super::isa::{Isa, fma};
use crate::kernels::Activation;

/// e^x; 0 below -87.3, the largest power of two that is stored above 88. Within 2e-7 of it, relatively.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2 (Cody & Waite, "Software Manual for the Elementary Functions", 1980), e^r by its Taylor
/// polynomial of degree 7.
#[inline(always)]
pub(super) fn exp<I: Isa>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = x.clamp(-87.3, 88.0);
    let shifted = fma::<I>(clamped, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = fma::<I>(n, -0.693_359_4, clamped);
    let r = fma::<I>(n, 2.121_944_4e-4, r);
    let mut p = 1.984_127e-4;
    for c in [1.388_889e-3, 8.333_333e-3, 4.166_666_8e-2, 0.166_666_67, 0.5, 1.0, 1.0] {
        p = fma::<I>(p, r, c);
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.3 { 0.0 } else { p * power }
}

/// x (1 + erf(x / sqrt 2)) / 2 as the shader computes it: Abramowitz & Stegun 7.1.26, |error| <= 1.5e-7.
#[inline(always)]
fn gelu<I: Isa>(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / fma::<I>(0.327_591_1, z, 1.0);
    let mut p = fma::<I>(1.061_405_4, t, -1.453_152);
    p = fma::<I>(p, t, 1.421_413_7);
    p = fma::<I>(p, t, -0.284_496_73);
    p = fma::<I>(p, t, 0.254_829_6);
    x.max(0.0) - 0.5 * x.abs() * (p * t * exp::<I>(-z * z))
}

/// Applies an activation to every value.
///
/// Loops, not closures: what a closure does is compiled without the instructions of [`Isa`] where it is not
/// inlined, and calls the C library for every multiply-add.
#[inline(always)]
pub(super) fn activate<I: Isa>(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::None => {}
        Activation::Relu => {
            for v in values {
                // as PyTorch's, NaN stays NaN
                *v = if *v < 0.0 { 0.0 } else { *v };
            }
        }
        Activation::Sigmoid => {
            for v in values {
                *v = 1.0 / (1.0 + exp::<I>(-*v));
            }
        }
        Activation::LeakyRelu { slope } => {
            for v in values {
                *v = if *v < 0.0 { slope * *v } else { *v };
            }
        }
        Activation::Elu { alpha } => {
            for v in values {
                let negative = alpha * (exp::<I>(v.min(0.0)) - 1.0);
                *v = if *v < 0.0 { negative } else { *v };
            }
        }
        Activation::Gelu => {
            for v in values {
                *v = gelu::<I>(*v);
            }
        }
    }
}
