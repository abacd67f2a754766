//! Operations that move voxels: resampling, pooling, shifting, patches to channels and back, picked tokens.

use std::fmt;

use crate::kernels::{Interpolation, MOST_PATCH_PARTS, Shift};
use crate::shape::{Extent, Map};

/// To which extent a map is resampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many times its own along D, H, W.
    Times([u32; 3]),
    /// This one, larger or smaller.
    Extent(Extent),
    /// Its own along D, so many voxels along H, W.
    Plane([u32; 2]),
}

/// Resampling, as `torch.nn.functional.interpolate` with that scale factor or size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// The extent of the result.
    pub size: Size,
    /// How values between voxels are made.
    pub mode: Interpolation,
}

impl Resize {
    /// Linear upsampling by integer factors along D, H, W, corners aligned.
    #[must_use]
    pub const fn aligned(factor: [u32; 3]) -> Self {
        Self { size: Size::Times(factor), mode: Interpolation::Aligned }
    }

    /// Extent of the result.
    pub(crate) fn output(&self, extent: Extent) -> Result<Extent, String> {
        let beyond = || "the map is beyond 32-bit extents".to_owned();
        let n = extent.axes();
        let out = match self.size {
            Size::Extent(to) => to.axes(),
            Size::Plane([h, w]) => [n[0], h, w],
            Size::Times(factor) => {
                let mut out = [0; 3];
                for axis in 0..3 {
                    out[axis] = n[axis].checked_mul(factor[axis]).ok_or_else(beyond)?;
                }
                out
            }
        };
        if out.contains(&0) {
            return Err("is resampled to nothing".into());
        }
        // coordinates are fractions of 32-bit integers
        let exact = |(n, out): (u32, u32)| n.checked_mul(out).is_some_and(|product| product <= u32::MAX / 2);
        if !n.into_iter().zip(out).all(exact) {
            return Err(beyond());
        }
        Ok(out.into())
    }
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.size {
            Size::Times([d, h, w]) => write!(f, "resize by {d}x{h}x{w}")?,
            Size::Extent(to) => write!(f, "resize to {to}")?,
            Size::Plane([h, w]) => write!(f, "resize planes to {h}x{w}")?,
        }
        f.write_str(match self.mode {
            Interpolation::Nearest => " nearest",
            Interpolation::Aligned => " linear aligned",
            Interpolation::HalfPixel => " linear",
        })
    }
}

/// Extent after windows of `kernel` every `stride` voxels, half a window at most beyond the map on either side; floored.
pub(super) fn pooled(extent: Extent, kernel: [u32; 3], stride: [u32; 3], padding: [u32; 3]) -> Result<Extent, String> {
    if kernel.contains(&0) || stride.contains(&0) {
        return Err("has a window or stride of zero".into());
    }
    let n = extent.axes();
    let mut out = [0; 3];
    for axis in 0..3 {
        if padding[axis] > kernel[axis] / 2 {
            return Err(format!("is padded by {}, more than half of a window of {}", padding[axis], kernel[axis]));
        }
        let padded = n[axis].checked_add(2 * padding[axis]).ok_or("the map is beyond 32-bit extents")?;
        let span = padded.checked_sub(kernel[axis]).ok_or_else(|| format!("pooling an extent of {extent} leaves nothing"))?;
        out[axis] = span / stride[axis] + 1;
    }
    Ok(out.into())
}

/// Patches of voxels as the channels of one, after Swin's patch merging: zero-padded at the end to whole patches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchMerge {
    /// Voxels of a patch along D, H, W.
    pub patch: [u32; 3],
    /// The voxels of a patch, as offsets along D, H, W, in the order in which their channels follow each other.
    pub order: Vec<[u32; 3]>,
}

impl PatchMerge {
    /// Swin's order in two dimensions: rows fastest.
    #[must_use]
    pub fn swin() -> Self {
        Self { patch: [1, 2, 2], order: vec![[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]] }
    }

    pub(super) fn infer(&self, input: Map) -> Result<Map, String> {
        if self.order.is_empty() || self.order.len() > MOST_PATCH_PARTS {
            return Err(format!("merges {} voxels, not 1 to {MOST_PATCH_PARTS}", self.order.len()));
        }
        if self.patch.iter().any(|&n| n > 256) || self.order.iter().any(|at| at.iter().zip(self.patch).any(|(&at, n)| at >= n)) {
            return Err("merges voxels outside their patch".into());
        }
        let n = input.extent.axes();
        let out = [0, 1, 2].map(|axis| n[axis].div_ceil(self.patch[axis]));
        let parts = u32::try_from(self.order.len()).unwrap_or(u32::MAX);
        let channels = input.channels.checked_mul(parts).ok_or("has more channels than 32 bits count")?;
        Ok(Map::new(out.into(), channels))
    }
}

/// Channels as voxels of a patch, after Swin's patch expanding: channel (p C + c) of a voxel is channel c of voxel p of its patch,
/// patches row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchExpand {
    /// Voxels of a patch along D, H, W.
    pub patch: [u32; 3],
    /// The extent that is kept, from the first voxel on; all of it if none.
    pub crop: Option<Extent>,
}

impl PatchExpand {
    pub(super) fn infer(&self, input: Map) -> Result<Map, String> {
        let parts = self.patch.iter().try_fold(1, |n: u32, &p| n.checked_mul(p)).filter(|&n| n > 0);
        let parts = parts.filter(|n| input.channels.is_multiple_of(*n));
        let parts = parts.ok_or_else(|| format!("expands {} channels to patches of {:?}", input.channels, self.patch))?;
        let full = Resize { size: Size::Times(self.patch), mode: Interpolation::Nearest }.output(input.extent)?;
        let out = self.crop.unwrap_or(full);
        if out.axes().contains(&0) || out.axes().iter().zip(full.axes()).any(|(&out, full)| out > full) {
            return Err(format!("is cropped to {out} from {full}"));
        }
        Ok(Map::new(out, input.channels / parts))
    }
}

/// Zero-padded, or cropped, to the extent of the network's input divided, and floored, by so much along D, H, W: for a map that
/// meets one pooled so often. The difference d of an axis goes to both sides, as `torch.nn.functional.pad` by `[d // 2, d - d // 2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// What the network's input is divided by along D, H, W.
    pub over: [u32; 3],
    /// Whether the one voxel that an axis may lack is the last of the map again, instead of a zero.
    pub repeats: bool,
}

impl Fit {
    /// Extent of the result in a network whose input has this extent.
    pub(super) fn output(self, network: Extent) -> Result<Extent, String> {
        let n = network.axes();
        let mut out = [0; 3];
        for axis in 0..3 {
            let quotient = n[axis].checked_div(self.over[axis]).filter(|&n| n > 0);
            out[axis] = quotient.ok_or_else(|| format!("{network} over {:?} leaves nothing", self.over))?;
        }
        Ok(out.into())
    }

    /// How a map of one extent becomes one of another.
    pub(super) fn shift(from: Extent, to: Extent) -> [Shift; 3] {
        [0, 1, 2].map(|axis| {
            // extents are below 2^31, or none of this can be planned
            let difference = to.axes()[axis].cast_signed().wrapping_sub(from.axes()[axis].cast_signed());
            let before = difference.div_euclid(2);
            Shift::Pad { before, after: difference - before }
        })
    }
}

/// Extent after a shift along each axis.
pub(super) fn shifted(extent: Extent, shift: &[Shift; 3]) -> Result<Extent, String> {
    let n = extent.axes();
    let mut out = [0; 3];
    for axis in 0..3 {
        out[axis] = shift[axis].output(n[axis]).ok_or_else(|| format!("{} of {} voxels leaves nothing", shift[axis], n[axis]))?;
    }
    Ok(out.into())
}

/// Whether the tokens exist; as they are bound as f32, so must their numbers.
pub(super) fn gathered(input: Map, tokens: &[u32]) -> Result<Map, String> {
    let count = u32::try_from(tokens.len()).map_err(|_| "gathers more tokens than 32 bits count")?;
    let most = input.extent.voxels().min(1 << f32::MANTISSA_DIGITS);
    if let Some(token) = tokens.iter().find(|&&token| u64::from(token) >= most) {
        return Err(format!("gathers token {token} of {} over {}, of which it can have {most}", input.extent.voxels(), input.extent));
    }
    if count == 0 {
        return Err("gathers nothing".into());
    }
    Ok(Map::new(Extent::new(1, 1, count), input.channels))
}
