//! Extents that files, cards and recipes ask for, checked before anything of them is allocated.

use crate::host::available_memory;
use crate::shape::{Extent, format_bytes};

/// The most voxels of a channel: 8 GiB of f32. More is a header in metres, not a scan.
const MOST_VOXELS: f64 = 2_147_483_648.0;

/// Numbers below this are told with all digits.
const READABLE: f64 = 1e15;

/// An extent that a file, a card or a recipe asks for, and what it would take of the host's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Claim {
    /// Whole numbers along D, H, W, which may be beyond any integer, NaN or infinite.
    voxels: [f64; 3],
    bytes: f64,
}

/// The reason why a claim is refused.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Refused {
    /// An axis has no voxel.
    Nothing,
    /// There are too many voxels for any machine, or for this one; the text says what they take.
    TooLarge(String),
}

impl Claim {
    /// The claim of so many voxels along D, H and W; `bytes` says what a number of voxels takes on
    /// the host on the way to the network and back.
    pub(crate) fn new(voxels: [f64; 3], bytes: impl FnOnce(f64) -> f64) -> Self {
        Self { voxels, bytes: bytes(voxels.iter().product()) }
    }

    /// The same of whole numbers.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(crate) fn of(size: [i64; 3], bytes: impl FnOnce(f64) -> f64) -> Self {
        Self::new(size.map(|n| n as f64), bytes)
    }

    /// The extent, if the machine has room for it.
    ///
    /// # Errors
    /// The reason why not.
    pub(crate) fn extent(&self) -> Result<Extent, Refused> {
        self.within(available_memory())
    }

    /// The extent, if so many bytes have room for it; `None` where nobody tells how many there are.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(crate) fn within(&self, available: Option<u64>) -> Result<Extent, Refused> {
        let all = self.voxels.iter().product::<f64>();
        if self.voxels.iter().any(|n| *n < 1.0) {
            return Err(Refused::Nothing);
        }
        let takes = format!(", which take {} bytes ({:.1} GiB)", shown(self.bytes), self.bytes / 1_073_741_824.0);
        match available {
            _ if all.is_nan() || all > MOST_VOXELS => Err(Refused::TooLarge(takes)),
            Some(there) if self.bytes.is_nan() || self.bytes > there as f64 => {
                Err(Refused::TooLarge(format!("{takes}, but the machine has {} available", format_bytes(there))))
            }
            _ => Ok(self.voxels.map(whole).into()),
        }
    }
}

/// A number for messages: whole, or where it has too many digits, the first of them.
pub(crate) fn shown(x: f64) -> String {
    if x < READABLE { format!("{x:.0}") } else { format!("{x:.2e}") }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 1 to 2^31")]
fn whole(x: f64) -> u32 {
    x.round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_holds_is_refused() {
        let within = |voxels: [f64; 3], there| Claim::new(voxels, |n| 4.0 * n).within(there);
        assert_eq!(within([2.0, 3.0, 4.0], Some(96)), Ok(Extent::new(2, 3, 4)));
        assert_eq!(within([2.0, 3.0, 4.0], None), Ok(Extent::new(2, 3, 4)));
        let text = ", which take 96 bytes (0.0 GiB), but the machine has 95 B available";
        assert_eq!(within([2.0, 3.0, 4.0], Some(95)), Err(Refused::TooLarge(text.into())));
        // none along an axis is none at all, however many the others are
        for voxels in [[0.0, f64::INFINITY, 4.0], [1e300, -1.0, 1.0], [0.0; 3]] {
            assert_eq!(within(voxels, None), Err(Refused::Nothing));
        }
        for voxels in [[f64::NAN, 1.0, 1.0], [f64::INFINITY; 3], [1e200; 3], [65536.0, 32768.0, 2.0]] {
            assert!(matches!(within(voxels, None), Err(Refused::TooLarge(_))), "{voxels:?}");
        }
        assert_eq!(within([65536.0, 32768.0, 1.0], None), Ok(Extent::new(65536, 32768, 1)));
        assert_eq!(
            Claim::of([i64::MAX, 1, 1], |n| n).within(None),
            Err(Refused::TooLarge(", which take 9.22e18 bytes (8589934592.0 GiB)".into()))
        );
    }
}
