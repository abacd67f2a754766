//! Arithmetic in the x87's 80-bit format, which numpy calls `longdouble` on x86: 64 bits of
//! mantissa, rounded to nearest, ties to even.
//!
//! nibabel computes the matrix of a quaternion in it. Whether a MONAI pipeline resamples a scan to
//! 32 or to 33 voxels may hang on the last bit of that matrix.

/// A finite number, `mantissa * 2^exponent`; the top bit of the mantissa is set unless the number
/// is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extended {
    negative: bool,
    mantissa: u64,
    exponent: i32,
}

impl Extended {
    pub(super) const ZERO: Self = Self { negative: false, mantissa: 0, exponent: 0 };

    /// The number itself; `x` must be finite.
    pub(super) fn new(x: f64) -> Self {
        let bits = x.to_bits();
        let fraction = bits & ((1 << 52) - 1);
        let (mantissa, exponent) = match (bits >> 52) & 0x7ff {
            0 => (fraction, 1),
            n => (fraction | 1 << 52, n),
        };
        let exponent = i32::try_from(exponent).unwrap_or(0) - 1075;
        Self::rounded(x.is_sign_negative(), u128::from(mantissa), exponent, false)
    }

    /// The nearest number to `wide * 2^exponent`, or to something above it by less than its last
    /// bit if `more`, in which case `wide` has at least 66 bits.
    #[expect(clippy::cast_possible_truncation, reason = "shifted to 64 bits")]
    fn rounded(negative: bool, wide: u128, exponent: i32, more: bool) -> Self {
        if wide == 0 {
            return Self::ZERO;
        }
        let bits = 128 - wide.leading_zeros();
        if bits <= 64 {
            let shift = 64 - bits;
            return Self { negative, mantissa: (wide as u64) << shift, exponent: exponent - shift.cast_signed() };
        }
        let shift = bits - 64;
        let (kept, rest, half) = ((wide >> shift) as u64, wide & ((1 << shift) - 1), 1 << (shift - 1));
        let up = rest > half || (rest == half && (more || kept & 1 == 1));
        let exponent = exponent + shift.cast_signed();
        match kept.checked_add(u64::from(up)) {
            Some(mantissa) => Self { negative, mantissa, exponent },
            None => Self { negative, mantissa: 1 << 63, exponent: exponent + 1 },
        }
    }

    pub(super) fn square_root(self) -> Self {
        if self.mantissa == 0 {
            return Self::ZERO;
        }
        let shift = if self.exponent % 2 == 0 { 64 } else { 63 };
        let wide = u128::from(self.mantissa) << shift;
        let root = wide.isqrt();
        let up = wide - root * root > root;
        Self::rounded(false, root + u128::from(up), (self.exponent - shift) / 2, false)
    }

    pub(super) fn is_negative(self) -> bool {
        self.negative && self.mantissa != 0
    }

    /// The nearest f64; for numbers of ordinary size.
    pub(super) fn to_f64(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "rounding is the point")]
        let size = self.mantissa as f64 * 2f64.powi(self.exponent);
        if self.negative { -size } else { size }
    }
}

impl std::ops::Neg for Extended {
    type Output = Self;

    fn neg(self) -> Self {
        Self { negative: !self.negative, ..self }
    }
}

impl std::ops::Add for Extended {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        if self.mantissa == 0 || other.mantissa == 0 {
            return if self.mantissa == 0 { other } else { self };
        }
        let size = |x: Self| (x.exponent, x.mantissa);
        let (large, small) = if size(self) >= size(other) { (self, other) } else { (other, self) };
        let (a, b) = (u128::from(large.mantissa) << 63, u128::from(small.mantissa) << 63);
        let apart = (large.exponent - small.exponent).unsigned_abs();
        let shifted = b.checked_shr(apart).unwrap_or(0);
        let lost = apart > 127 || shifted << apart != b;
        let wide = match (large.negative == small.negative, lost) {
            (true, _) => a + shifted,
            (false, false) => a - shifted,
            (false, true) => a - shifted - 1,
        };
        Self::rounded(large.negative, wide, large.exponent - 63, lost)
    }
}

impl std::ops::Sub for Extended {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl std::ops::Mul for Extended {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        let wide = u128::from(self.mantissa) * u128::from(other.mantissa);
        Self::rounded(self.negative != other.negative, wide, self.exponent + other.exponent, false)
    }
}

impl std::ops::Div for Extended {
    type Output = Self;

    /// The quotient; `other` must not be 0.
    fn div(self, other: Self) -> Self {
        let (a, b) = (u128::from(self.mantissa) << 64, u128::from(other.mantissa.max(1)));
        let (high, rest) = (a / b, (a % b) << 32);
        let exponent = self.exponent - other.exponent - 96;
        Self::rounded(self.negative != other.negative, (high << 32) | (rest / b), exponent, rest % b != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What numpy's longdouble says on x86, as the 64 bits of the mantissa and the f64 nearest to
    /// it.
    #[test]
    fn results_are_those_of_the_x87() {
        let x = Extended::new;
        for (what, got, mantissa, nearest) in VECTORS.iter().map(|&(op, a, b, mantissa, nearest)| {
            let (a, b) = (x(a) / x(3.0), x(b) / x(7.0));
            let got = match op {
                '+' => a + b,
                '-' => a - b,
                '*' => a * b,
                '/' => a / b,
                _ => (a * a + b * b).square_root(),
            };
            (op, got, mantissa, nearest)
        }) {
            assert_eq!((got.mantissa, got.to_f64()), (mantissa, nearest), "{what}");
        }
    }

    #[test]
    fn exact_results_are_exact() {
        let x = Extended::new;
        assert_eq!((x(3.0) - x(3.0)).to_f64(), 0.0);
        assert_eq!((x(0.25).square_root() * x(-6.0) / x(1.5) + Extended::ZERO).to_f64(), -2.0);
        assert_eq!((x(1.0) + x(2f64.powi(-70))).to_f64(), 1.0);
        assert_eq!((x(1.0) - x(2f64.powi(-200))).to_f64(), 1.0);
        assert!(x(-1.0).is_negative() && !(-Extended::ZERO).is_negative() && !x(2.0).is_negative());
    }

    const VECTORS: &[(char, f64, f64, u64, f64)] = &[
        ('+', -0.08019313961267471, -1.3243589401245117, 0xdd1b7d9861861862, -0.2159251808410599),
        ('-', 0.004204452503472567, 0.11360464990139008, 0xf2f018f9e79e79e7, -0.014827751532374393),
        ('*', -5.5264732509385794e-05, -7.847803499316797e-05, 0xe31430d2b0d24924, 2.065270291314117e-10),
        ('/', 163.47830200195312, 0.00027276878245174885, 0xaab516cc8a18c0d0, 1398434.8498727735),
        ('r', -0.0009582652128301561, 1600.01904296875, 0xe492fb6db7d0d3b2, 228.5741489957589),
        ('+', -17.321348190307617, -0.008369619026780128, 0xb8cc9f7b00000000, -5.774978389963508),
        ('-', -629.2880859375, -0.4880058169364929, 0xd1b167266db6db6e, -209.69298019579477),
        ('*', 0.0005533784860745072, -6.308597221504897e-06, 0xb6c86d39ce492492, -1.66240094270963e-10),
        ('/', 0.004096378106623888, 0.0008298553293570876, 0xb84970f3fe4de691, 11.517929986094595),
        ('r', -0.002567301271483302, -9.80747354333289e-05, 0xe05d40ed0c46f0a3, 0.0008558817746797916),
        ('+', -0.0001289418723899871, 0.020690394565463066, 0xbee481e924924925, 0.0029127900280790137),
        ('-', -0.304337739944458, -0.01047926489263773, 0xccb1fefb6db6db6e, -0.09994887547301394),
        ('*', -0.00010913288861047477, -0.0013552086893469095, 0xf1fcb8acb0d55556, 7.04275423516399e-09),
        ('/', -0.0011093498906120658, 117.02960968017578, 0xb98a733e13398b2d, -2.2118189449394497e-05),
        ('r', -0.0019978166092187166, 27.212886810302734, 0xf8cdb4cf878d488f, 3.887555315652396),
        ('+', 33.057220458984375, 4.3631993321469054e-05, 0xb04e268932400000, 11.019079719470028),
        ('-', -23.342252731323242, -2.5579003704478964e-05, 0xf8fbe1ab87b0c30c, -7.780747256297694),
        ('*', -1181.44677734375, 738.0418701171875, 0xa231c559ff79e79e, -41521.770904509794),
        ('/', -0.003312908811494708, -0.8404731750488281, 0x96b07478899e279c, 0.009197343579353654),
        ('r', 0.0005682131159119308, 24.317325592041016, 0xde5470058b4b03b2, 3.473903661169217),
        ('+', 844.9927368164062, 0.0008406828856095672, 0x8cd509ef73892492, 281.66436570302386),
        ('-', -7.002844358794391e-05, 13.503889083862305, 0xf6ee661974924925, -1.9291503547948585),
        ('*', 0.001887995284050703, -2.1223459243774414, 0xc813c63a6e618618, -0.0001908085283975638),
        ('/', -0.00036490874481387436, -15.236188888549805, 0xea649ac5d6f4a749, 5.588364282743428e-05),
        ('r', 1.030231396725867e-05, -0.8649727702140808, 0xfd10fa4ac8503fd7, 0.12356753864973069),
    ];
}
