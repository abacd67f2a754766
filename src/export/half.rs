//! 16-bit floats without a branch, so that loops over them become vector instructions.

use half::f16;

/// 2^112, the ratio of the exponents' offsets of f32 and f16.
const OFFSETS: f32 = 5_192_296_858_534_827_628_530_496_329_220_096.0;

/// The least exponent at which a 16-bit float is normal, as bits of an f32: 2^-14.
const NORMAL: u32 = 0x3880_0000;

/// 2^16 as bits of an f32: what is this large is infinite in 16 bits.
const INFINITE: u32 = 0x4780_0000;

/// A 16-bit float as f32.
#[inline(always)]
pub(crate) fn widened(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    let magnitude = (f32::from_bits((bits & 0x7fff) << 13) * OFFSETS).to_bits();
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude | special | (bits & 0x8000) << 16)
}

/// The 16-bit float nearest to `x`, of two the even one.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "16 bits are left after the shift")]
pub(crate) fn narrowed(x: f32) -> f16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let even = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_add(0xfff + even).wrapping_sub(112 << 23) >> 13;
    // 0.5 has the step of the 16-bit floats that are not normal
    let tiny = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let finite = if magnitude < NORMAL { tiny } else { normal };
    let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    let half = if magnitude < INFINITE { finite } else { special };
    f16::from_bits((half | bits >> 16 & 0x8000) as u16)
}

/// The 16-bit float nearest to `x`, of two the even one, as f32. It is rounded once, as numpy
/// rounds f64 to 16 bits; a zero has no sign.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "what is left has 11 significant bits")]
pub(crate) fn rounded(x: f64) -> f32 {
    // 1.5 * 2^28 has the step of the 16-bit floats that are not normal
    const TINY: f64 = 402_653_184.0;
    const BELOW: u64 = (1 << 42) - 1;
    let bits = x.to_bits();
    let normal = f64::from_bits(bits.wrapping_add((BELOW >> 1) + (bits >> 42 & 1)) & !BELOW);
    let finite = if x.abs() < 6.103_515_625e-5 { (x + TINY) - TINY } else { normal };
    if finite.abs() < 65536.0 { finite as f32 } else { (x * f64::INFINITY) as f32 }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "numbers of tests")]
mod tests {
    use super::*;

    /// Rounds by way of whole numbers of the last bit, which is exact.
    fn exact(x: f64) -> f64 {
        let exponent = x.abs().log2().floor().max(-14.0);
        let step = (exponent - 10.0).exp2();
        let y = (x / step).round_ties_even() * step;
        if y.abs() > 65504.0 { f64::INFINITY.copysign(x) } else { y }
    }

    #[test]
    fn every_half_is_itself() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            let wide = widened(half);
            assert!(wide.to_bits() == half.to_f32().to_bits() || half.is_nan() && wide.is_nan());
            let back = narrowed(wide);
            assert!(back == half || half.is_nan() && back.is_nan(), "{bits:x}");
            let once = rounded(f64::from(wide));
            assert!(once == wide || wide.is_nan() && once.is_nan(), "{bits:x}: {once}");
        }
    }

    #[test]
    fn numbers_between_are_rounded_to_even() {
        let halves: Vec<f64> = (0..0x7c00).map(|b| f16::from_bits(b).to_f64()).collect();
        for pair in halves.windows(2) {
            let middle = f64::midpoint(pair[0], pair[1]);
            for at in [middle, middle.next_up(), middle.next_down(), pair[0] + (pair[1] - pair[0]) * 0.3] {
                for x in [at, -at] {
                    assert_eq!(f64::from(rounded(x)), exact(x), "{x:e}");
                    let single = x as f32;
                    assert_eq!(narrowed(single).to_f64(), exact(f64::from(single)), "{x:e}");
                }
            }
        }
        for (x, want) in [(65519.0, 65504.0), (65520.0, f32::INFINITY), (1e30, f32::INFINITY), (-1e30, f32::NEG_INFINITY)] {
            assert_eq!((rounded(x), narrowed(x as f32).to_f32()), (want, want), "{x}");
        }
        assert_eq!(rounded(f64::NEG_INFINITY), f32::NEG_INFINITY);
        assert!(rounded(f64::NAN).is_nan() && narrowed(f32::NAN).is_nan());
        assert_eq!((rounded(1e-30), narrowed(1e-30)), (0.0, f16::ZERO));
    }
}
