//! Values of options.

use clap::ValueEnum;
pub(super) use organum::parse_bytes as size;
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
