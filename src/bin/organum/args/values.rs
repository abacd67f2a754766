//! Values of options.

use clap::ValueEnum;
use organum::{Elem, Extent};

/// `f32` or `f16`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Precision {
    F32,
    F16,
}

impl From<Precision> for Elem {
    fn from(p: Precision) -> Self {
        match p {
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
        }
    }
}

/// `64MiB` to bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let unit: u64 = match suffix.trim().to_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        other => return Err(format!("unknown suffix {other:?}; use KiB MiB GiB (or K M G) or kB MB GB")),
    };
    if let Ok(n) = number.parse::<u64>() {
        return n.checked_mul(unit).ok_or_else(|| "too large".into());
    }
    let bytes = number.parse::<f64>().ok().map(|n| n * unit as f64).filter(|n| n.is_finite());
    let bytes = bytes.ok_or("not a size: a number, or with a suffix KiB MiB GiB or kB MB GB")?;
    // 2^64
    if bytes >= 18_446_744_073_709_551_616.0 {
        return Err("too large".into());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a size like 1.5 GiB, below 2^64; digits and a point make no negative number"
    )]
    Ok(bytes as u64)
}

/// `GFLOPS,GBS` to two numbers.
pub(super) fn ceilings(text: &str) -> Result<[f64; 2], String> {
    let number = |part: &str| part.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    let both = text.split_once(',').and_then(|(flops, bytes)| Some([number(flops)?, number(bytes)?]));
    both.ok_or_else(|| "not two numbers above 0 like 8000,300".into())
}

/// `LOW,HIGH` to two values.
pub(super) fn range(text: &str) -> Result<[f32; 2], String> {
    let number = |part: &str| part.trim().parse::<f32>().ok().filter(|n| n.is_finite());
    let both = text.split_once(',').and_then(|(low, high)| Some([number(low)?, number(high)?]));
    both.filter(|[low, high]| low < high).ok_or_else(|| "not two values like -160,240, the lesser first".into())
}

/// `i/n` to two numbers from 1 on.
pub(super) fn shard(text: &str) -> Result<[usize; 2], String> {
    let both = text.split_once('/').and_then(|(i, n)| Some([i.parse().ok()?, n.parse().ok()?]));
    both.filter(|[i, n]| (1..=*n).contains(i)).ok_or_else(|| "not a shard: two whole numbers like 2/8".into())
}

/// `DxHxW` to an extent.
pub(super) fn extent(text: &str) -> Result<Extent, String> {
    let parts: Result<Vec<u32>, _> = text.split('x').map(str::parse).collect();
    match parts.as_deref() {
        Ok([d, h, w]) => Ok(Extent::new(*d, *h, *w)),
        Ok([h, w]) => Ok(Extent::new(1, *h, *w)),
        _ => Err("not an extent: three whole numbers like 128x256x256".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("1048576"), Ok(1 << 20));
        assert_eq!(size("24MiB"), Ok(24 << 20));
        assert_eq!(size("1.5GB"), Ok(1_500_000_000));
        for same in ["64M", "64m", "64Mi", "64mib", "64 MiB"] {
            assert_eq!(size(same), Ok(64 << 20), "{same}");
        }
        assert!(size("12 parsecs").is_err());
        assert!(size("").is_err());
        assert!(size("99999999999GiB").is_err());
        assert!(size("1000000000000000000000000000000GiB").is_err());
        assert!(size("1.5e30").is_err());
    }

    #[test]
    fn two_ceilings() {
        assert_eq!(ceilings("8e3, 300.5"), Ok([8000.0, 300.5]));
        for wrong in ["", "1", "1,", "1,0", "-1,2", "1,2,3", "nan,1", "inf,1"] {
            assert!(ceilings(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shards() {
        assert_eq!(shard("2/8"), Ok([2, 8]));
        for wrong in ["0/2", "3/2", "1", "1/", "a/b", "-1/2"] {
            assert!(shard(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn extents() {
        assert_eq!(extent("2x3x4"), Ok(Extent::new(2, 3, 4)));
        assert!(extent("2x3xq").is_err());
    }
}
