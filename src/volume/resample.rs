//! Changing the number of voxels: resampling, padding and cropping.
//!
//! Source and result always cover the same physical field (except for padding and cropping): voxel centres are
//! aligned as `source = (target + 0.5) * n_source / n_target - 0.5`, clamped to the outer voxel centres. This is what
//! PyTorch calls `align_corners=False`.

use rayon::prelude::*;

use super::claim::{Claim, Refused, shown};
use super::{Volume, VolumeError, VolumeErrorKind, sizes};
use crate::host::available_memory;
use crate::shape::Extent;

/// The two source voxels of a target voxel along one axis, and the weight of the second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tap {
    pub(crate) first: usize,
    pub(crate) second: usize,
    pub(crate) weight: f32,
}

impl Tap {
    /// The taps around a continuous position, in voxels of an axis of `n`.
    #[expect(clippy::cast_possible_truncation, reason = "the position is clamped to 0..n, and a weight is rounded to f32 on purpose")]
    pub(crate) fn at(position: f64, n: usize) -> Self {
        let last = n.saturating_sub(1);
        let position = position.clamp(0.0, last as f64);
        let first = (position.floor() as usize).min(last);
        Self { first, second: (first + 1).min(last), weight: (position - first as f64) as f32 }
    }
}

/// The continuous source position of target voxel `i`.
pub(crate) fn source_position(i: usize, source: usize, target: usize) -> f64 {
    (i as f64 + 0.5) * source as f64 / target as f64 - 0.5
}

fn taps(source: usize, target: usize) -> Vec<Tap> {
    (0..target).map(|i| Tap::at(source_position(i, source, target), source)).collect()
}

fn lerp(a: f32, b: f32, weight: f32) -> f32 {
    a + (b - a) * weight
}

/// Resamples every channel trilinearly to `extent` voxels over the same physical field.
///
/// The result's spacing is the source's times `n_source / n_target`.
#[must_use]
pub fn resample_linear(volume: &Volume<f32>, extent: Extent) -> Volume<f32> {
    if extent == volume.extent {
        return volume.clone();
    }
    let (from, to) = (sizes(volume.extent), sizes(extent));
    let [deep, high, wide] = [0, 1, 2].map(|axis| taps(from[axis], to[axis]));
    let plane = from[1] * from[2];
    let mut data = vec![0.0; volume.channels as usize * to[0] * to[1] * to[2]];
    data.par_chunks_exact_mut((to[1] * to[2]).max(1)).enumerate().for_each(|(i, out)| {
        let d = deep[i % to[0]];
        let channel = (i / to[0]) * from[0] * plane;
        for (row, h) in out.chunks_exact_mut(to[2]).zip(&high) {
            let line = |d: usize, h: usize| &volume.data[channel + d * plane + h * from[2]..][..from[2]];
            let (a, b) = (line(d.first, h.first), line(d.first, h.second));
            let (c, e) = (line(d.second, h.first), line(d.second, h.second));
            for (value, w) in row.iter_mut().zip(&wide) {
                let along = |line: &[f32]| lerp(line[w.first], line[w.second], w.weight);
                let near = lerp(along(a), along(b), h.weight);
                let far = lerp(along(c), along(e), h.weight);
                *value = lerp(near, far, d.weight);
            }
        }
    });
    volume.regrid(extent, scaled_spacing(volume, extent), data)
}

/// Resamples every channel to `extent` voxels over the same physical field, each taking the nearest source voxel
/// (the later one when two are equally near). For labels.
#[must_use]
pub fn resample_nearest<T: Copy + Send + Sync>(volume: &Volume<T>, extent: Extent) -> Volume<T> {
    if extent == volume.extent {
        return volume.clone();
    }
    let (from, to) = (sizes(volume.extent), sizes(extent));
    // floor(source position + 0.5) in whole numbers, so that ties never depend on rounding.
    let [deep, high, wide] = [0, 1, 2].map(|axis| {
        let (source, target) = (from[axis], to[axis]);
        (0..target).map(|i| ((2 * i + 1) * source / (2 * target)).min(source - 1)).collect::<Vec<_>>()
    });
    let planes = volume.channels as usize * to[0];
    let data = (0..planes)
        .into_par_iter()
        .flat_map_iter(|i| {
            let start = ((i / to[0]) * from[0] + deep[i % to[0]]) * from[1] * from[2];
            let wide = &wide;
            high.iter().flat_map(move |h| wide.iter().map(move |w| volume.data[start + h * from[2] + w]))
        })
        .collect();
    volume.regrid(extent, scaled_spacing(volume, extent), data)
}

fn scaled_spacing<T>(volume: &Volume<T>, extent: Extent) -> [f64; 3] {
    let (from, to) = (sizes(volume.extent), sizes(extent));
    [0, 1, 2].map(|axis| volume.spacing[axis] * from[axis] as f64 / to[axis].max(1) as f64)
}

/// The extent whose spacing is nearest to `target_spacing` (millimetres; D, H, W) over the volume's physical field:
/// rounded, and at least 1 along every axis. A target that is not finite and positive keeps the axis as it is.
#[must_use]
pub fn extent_for_spacing<T>(volume: &Volume<T>, target_spacing: [f64; 3]) -> Extent {
    let stored = [volume.extent.d, volume.extent.h, volume.extent.w];
    let [d, h, w] = [0, 1, 2].map(|axis| {
        let target = target_spacing[axis];
        if target.is_finite() && target > 0.0 { whole(f64::from(stored[axis]) * volume.spacing[axis] / target) } else { stored[axis] }
    });
    Extent::new(d, h, w)
}

#[expect(clippy::cast_possible_truncation, reason = "clamped to the range of u32")]
fn whole(x: f64) -> u32 {
    x.round().clamp(1.0, f64::from(u32::MAX)) as u32
}

/// A spacing in mm that no scan has along all axes.
const NO_SPACING: f64 = 100.0;

/// The extent that resampling from one spacing (mm) to another makes, checked before anything of it
/// is allocated.
///
/// `voxels` are whole numbers along D, H and W; `bytes` says what so many voxels take on the host on
/// the way to the network and back.
///
/// # Errors
/// [`VolumeErrorKind::Unsupported`] if an axis has no voxel left; [`VolumeErrorKind::TooLarge`] if
/// there are absurdly many voxels, or they take more bytes than the machine has available, and
/// [`VolumeErrorKind::Format`] if that is so because the scan's spacing is none.
pub(crate) fn plausible(voxels: [f64; 3], from: [f64; 3], to: [f64; 3], bytes: impl Fn(f64) -> f64) -> Result<Extent, VolumeError> {
    plausible_within(voxels, from, to, bytes, available_memory())
}

fn plausible_within(
    voxels: [f64; 3],
    from: [f64; 3],
    to: [f64; 3],
    bytes: impl Fn(f64) -> f64,
    available: Option<u64>,
) -> Result<Extent, VolumeError> {
    let [d, h, w] = voxels.map(shown);
    let refused = |kind, what: String| {
        let text = format!(
            "resampling the scan from {from:?} mm to the model's {to:?} mm makes {d}x{h}x{w} voxels{what}; \
             are the spacing and units in its header right?"
        );
        Err(VolumeError::new(kind, text))
    };
    // a scan whose voxels are this large does not exist: its header is wrong, whatever would fit
    let header = from.iter().all(|&s| s >= NO_SPACING);
    let kind = if header { VolumeErrorKind::Format } else { VolumeErrorKind::TooLarge };
    match Claim::new(voxels, bytes).within(available) {
        Ok(extent) => Ok(extent),
        Err(Refused::Nothing) => refused(VolumeErrorKind::Unsupported, ", which is nothing".into()),
        Err(Refused::TooLarge(takes)) => refused(kind, takes),
    }
}

/// The extent that a step of a recipe makes of a scan by putting voxels around, checked before any
/// of them is allocated.
///
/// # Errors
/// [`VolumeErrorKind::Unsupported`] or [`VolumeErrorKind::TooLarge`].
pub(crate) fn padded(step: &str, size: [i64; 3], bytes: impl Fn(f64) -> f64) -> Result<Extent, VolumeError> {
    let [d, h, w] = size;
    Claim::of(size, bytes).extent().map_err(|refused| {
        let (kind, what) = match refused {
            Refused::Nothing => (VolumeErrorKind::Unsupported, ", which is nothing".to_owned()),
            Refused::TooLarge(takes) => (VolumeErrorKind::TooLarge, takes),
        };
        VolumeError::new(kind, format!("{step} makes {d}x{h}x{w} voxels of the scan{what}; are the model's numbers right?"))
    })
}

/// Pads every axis to the next multiple of `multiple` (0 counts as 1), the smaller half in front, with `value`.
///
/// Returns the padded volume and the offset of the original's first voxel in it; [`crop`] with that offset and the
/// original's extent undoes it.
#[must_use]
pub fn pad_to_multiple(volume: &Volume<f32>, multiple: Extent, value: f32) -> (Volume<f32>, Extent) {
    let n = volume.extent;
    pad_to(volume, Extent::new(up(n.d, multiple.d), up(n.h, multiple.h), up(n.w, multiple.w)), value)
}

/// The next multiple of `of`, 0 counting as 1.
pub(crate) fn multiple(n: u32, of: u32) -> i64 {
    i64::try_from(u64::from(n).next_multiple_of(of.max(1).into())).unwrap_or(i64::MAX)
}

/// The next multiple of `multiple`, 0 counting as 1; `n` where that is beyond 32 bits.
pub(crate) fn up(n: u32, multiple: u32) -> u32 {
    n.checked_next_multiple_of(multiple.max(1)).unwrap_or(n)
}

/// Pads every axis to that of `extent` where it is longer, the smaller half in front, with `value`. Returns as [`pad_to_multiple`].
#[must_use]
pub fn pad_to(volume: &Volume<f32>, extent: Extent, value: f32) -> (Volume<f32>, Extent) {
    let from = volume.extent;
    let to = Extent::new(from.d.max(extent.d), from.h.max(extent.h), from.w.max(extent.w));
    let offset = Extent::new((to.d - from.d) / 2, (to.h - from.h) / 2, (to.w - from.w) / 2);
    if to == from {
        return (volume.clone(), offset);
    }
    (place(volume, to, offset, value), offset)
}

/// The volume within one of `extent` that is `value` elsewhere, its first voxel at `offset`, where it fits.
pub(crate) fn place(volume: &Volume<f32>, extent: Extent, offset: Extent, value: f32) -> Volume<f32> {
    let (n, to, at) = (sizes(volume.extent), sizes(extent), sizes(offset));
    let mut data = vec![value; volume.channels as usize * to[0] * to[1] * to[2]];
    for (line, row) in volume.data.chunks_exact(n[2]).enumerate() {
        let (c, d, h) = (line / (n[0] * n[1]), line / n[1] % n[0], line % n[1]);
        let start = ((c * to[0] + d + at[0]) * to[1] + h + at[1]) * to[2] + at[2];
        data[start..start + n[2]].copy_from_slice(row);
    }
    volume.boxed(extent, at.map(|i| -i64::try_from(i).unwrap_or(i64::MAX)), data)
}

/// The box of `extent` voxels that begins at voxel `offset` (D, H, W), of every channel.
///
/// # Errors
/// [`VolumeErrorKind::GridMismatch`] if the box is empty or reaches outside the volume.
pub fn crop<T: Copy>(volume: &Volume<T>, offset: Extent, extent: Extent) -> Result<Volume<T>, VolumeError> {
    let (n, at, to) = (sizes(volume.extent), sizes(offset), sizes(extent));
    if (0..3).any(|axis| to[axis] == 0 || at[axis].checked_add(to[axis]).is_none_or(|end| end > n[axis])) {
        return Err(VolumeError::new(
            VolumeErrorKind::GridMismatch,
            format!("a box of {extent} voxels at {offset} does not fit into a volume of {}", volume.extent),
        ));
    }
    let mut data = Vec::with_capacity(volume.channels as usize * to[0] * to[1] * to[2]);
    for c in 0..volume.channels as usize {
        for d in at[0]..at[0] + to[0] {
            for h in at[1]..at[1] + to[1] {
                let start = ((c * n[0] + d) * n[1] + h) * n[2] + at[2];
                data.extend_from_slice(&volume.data[start..start + to[2]]);
            }
        }
    }
    Ok(volume.boxed(extent, at.map(|i| i64::try_from(i).unwrap_or(i64::MAX)), data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(channels: u32, extent: Extent) -> Result<Volume<f32>, VolumeError> {
        let n = u16::try_from(u64::from(channels) * extent.voxels()).unwrap_or(u16::MAX);
        let data = (0..n).map(f32::from).collect();
        Volume::new(channels, extent, [2.0, 1.0, 0.5], "SAR".parse()?, data)
    }

    #[test]
    fn linear_matches_pytorch() -> Result<(), VolumeError> {
        // torch.nn.functional.interpolate(x, size, mode="trilinear", align_corners=False) for one row each.
        let v = ramp(1, Extent::new(1, 1, 4))?;
        let up = resample_linear(&v, Extent::new(1, 1, 8));
        assert_eq!(up.data, [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]);
        let down = resample_linear(&v, Extent::new(1, 1, 2));
        assert_eq!(down.data, [0.5, 2.5]);
        assert_eq!(down.spacing, [2.0, 1.0, 1.0]);
        Ok(())
    }

    #[test]
    fn linear_is_exact_on_a_ramp_away_from_the_edge() -> Result<(), VolumeError> {
        let v = ramp(2, Extent::new(4, 5, 6))?;
        let r = resample_linear(&v, Extent::new(8, 10, 12));
        let (c, d, h, w) = (1, 3, 4, 5);
        let at = |i: usize| 0.5 * (i as f32 + 0.5) - 0.5;
        let want = 120.0 + at(d) * 30.0 + at(h) * 6.0 + at(w);
        let got = r.data[((c * 8 + d) * 10 + h) * 12 + w];
        assert!((want - got).abs() < 1e-4, "{want} {got}");
        Ok(())
    }

    #[test]
    fn nearest_takes_whole_voxels() -> Result<(), VolumeError> {
        let v = ramp(1, Extent::new(1, 2, 4))?;
        let up = resample_nearest(&v, Extent::new(1, 4, 4));
        assert_eq!(up.data, [0., 1., 2., 3., 0., 1., 2., 3., 4., 5., 6., 7., 4., 5., 6., 7.]);
        let down = resample_nearest(&v, Extent::new(1, 1, 2));
        assert_eq!(down.data, [5.0, 7.0]);
        Ok(())
    }

    #[test]
    fn spacing_gives_the_extent() -> Result<(), VolumeError> {
        let v = ramp(1, Extent::new(4, 5, 6))?;
        assert_eq!(extent_for_spacing(&v, [1.0, 2.0, 1.0]), Extent::new(8, 3, 3));
        assert_eq!(extent_for_spacing(&v, [1e9, f64::NAN, 0.0]), Extent::new(1, 5, 6));
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_bytes() {
        let of = |voxels, available| {
            plausible_within(voxels, [3.0; 3], [1.0; 3], |n| 12.0 * n, available).map_err(|e| (e.kind(), e.to_string()))
        };
        assert_eq!(of([3.0, 4.0, 5.0], Some(720)), Ok(Extent::new(3, 4, 5)));
        assert_eq!(of([3.0, 4.0, 5.0], None), Ok(Extent::new(3, 4, 5)));
        let kind = |r: Result<Extent, (VolumeErrorKind, String)>| r.err().map(|e| e.0);
        assert_eq!(kind(of([0.0, 4.0, 5.0], None)), Some(VolumeErrorKind::Unsupported));
        assert_eq!(kind(of([2e3, 2e3, 2e3], None)), Some(VolumeErrorKind::TooLarge));
        assert_eq!(kind(of([f64::NAN, 4.0, 5.0], None)), Some(VolumeErrorKind::TooLarge));
        let told = of([3.0, 4.0, 5.0], Some(719)).err().map(|e| e.1).unwrap_or_default();
        for part in ["[3.0, 3.0, 3.0] mm", "[1.0, 1.0, 1.0] mm", "3x4x5 voxels", "720 bytes", "719 B"] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn padding_and_cropping_undo_each_other() -> Result<(), VolumeError> {
        let v = ramp(2, Extent::new(3, 4, 5))?;
        let (padded, offset) = pad_to_multiple(&v, Extent::new(8, 4, 4), -1.0);
        assert_eq!((padded.extent, offset), (Extent::new(8, 4, 8), Extent::new(2, 0, 1)));
        assert_eq!(padded.data.iter().filter(|x| **x < 0.0).count(), 2 * (256 - 60));
        assert_eq!(crop(&padded, offset, v.extent)?, v);
        let (padded, offset) = pad_to(&v, Extent::new(1, 7, 5), 0.0);
        assert_eq!((padded.extent, offset), (Extent::new(3, 7, 5), Extent::new(0, 1, 0)));
        assert_eq!(crop(&padded, offset, v.extent)?, v);
        let outside = crop(&v, Extent::new(1, 0, 0), v.extent);
        assert_eq!(outside.err().map(|e| e.kind()), Some(VolumeErrorKind::GridMismatch));
        Ok(())
    }
}
