//! Extents, maps and element types: the vocabulary shared by planner, kernels and executors.

use std::fmt;

/// Spatial extent in voxels: depth (planes), height (rows), width (columns). A 2D image has `d == 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Extent {
    /// Planes, the axis along which volumes are cut into slabs.
    pub d: u32,
    /// Rows of a plane.
    pub h: u32,
    /// Columns of a row, the fastest spatial axis.
    pub w: u32,
}

impl Extent {
    /// An extent of `d` planes of `h` rows of `w` voxels.
    #[must_use]
    pub const fn new(d: u32, h: u32, w: u32) -> Self {
        Self { d, h, w }
    }

    /// Number of voxels.
    #[must_use]
    pub fn voxels(&self) -> u64 {
        u64::from(self.d) * self.plane()
    }

    /// Voxels of one plane.
    #[must_use]
    pub fn plane(&self) -> u64 {
        u64::from(self.h) * u64::from(self.w)
    }

    /// The three axes in the order D, H, W.
    #[must_use]
    pub const fn axes(&self) -> [u32; 3] {
        [self.d, self.h, self.w]
    }
}

impl From<[u32; 3]> for Extent {
    fn from([d, h, w]: [u32; 3]) -> Self {
        Self { d, h, w }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.d, self.h, self.w)
    }
}

/// Storage type of activations and weights on the device. Arithmetic is f32 for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Elem {
    /// 32-bit floats: relative error about 1e-6 against a float64 reference.
    #[default]
    F32,
    /// 16-bit floats, accumulated in f32: half the memory, relative error about 1e-3.
    F16,
}

impl Elem {
    /// A value as it comes back from storage.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "storage has no more digits")]
    pub fn round(self, value: f64) -> f32 {
        match self {
            Self::F32 => value as f32,
            Self::F16 => half::f16::from_f32(value as f32).to_f32(),
        }
    }

    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// The name used on the command line: `f32` or `f16`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }
}

/// A channels-last feature map `[D][H][W][C]`, C padded to a multiple of four. Batch is always one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Map {
    /// Spatial extent.
    pub extent: Extent,
    /// Channels, before padding.
    pub channels: u32,
}

impl Map {
    /// A map of `channels` channels over `extent`.
    #[must_use]
    pub const fn new(extent: Extent, channels: u32) -> Self {
        Self { extent, channels }
    }

    /// Blocks of four channels a voxel.
    #[must_use]
    pub const fn blocks(&self) -> u32 {
        self.channels.div_ceil(4)
    }

    /// Elements of one plane, padding included.
    #[must_use]
    pub fn plane_elements(&self) -> u64 {
        self.extent.plane() * u64::from(self.blocks()) * 4
    }
}

/// `100` as `100 B`, `2048` as `2.00 KiB`: for messages and tables.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

/// The bytes that a text stands for: a number, or one with a suffix KiB, MiB, GiB (or K, M, G) or kB,
/// MB, GB, in any case; `64MiB`, `1.5 GB`.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
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
    #[expect(clippy::cast_precision_loss, reason = "a unit is at most 2^30")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse_bytes("1048576"), Ok(1 << 20));
        assert_eq!(parse_bytes("24MiB"), Ok(24 << 20));
        assert_eq!(parse_bytes("1.5GB"), Ok(1_500_000_000));
        for same in ["64M", "64m", "64Mi", "64mib", "64 MiB"] {
            assert_eq!(parse_bytes(same), Ok(64 << 20), "{same}");
        }
        for wrong in ["12 parsecs", "", "99999999999GiB", "1000000000000000000000000000000GiB", "1.5e30"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn padded_map_sizes() {
        let map = Map::new(Extent::new(2, 3, 5), 6);
        assert_eq!(map.blocks(), 2);
        assert_eq!(map.plane_elements(), 3 * 5 * 8);
        assert_eq!(map.extent.to_string(), "2x3x5");
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!(format_bytes(100), "100 B");
        assert_eq!(format_bytes(3 << 29), "1.50 GiB");
    }
}
