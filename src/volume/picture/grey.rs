//! The values of a scan that are black and white.

use crate::volume::Volume;

/// Voxels that the range is taken from, at most.
const SAMPLES: usize = 1 << 20;
/// The window of soft tissue in Hounsfield units.
pub const SOFT_TISSUE: [f32; 2] = [-160.0, 240.0];
/// The value below which a hundredth of all voxels of a CT with air around the body lie.
const AIR: f32 = -700.0;

/// The values that are black and white where none are given: those of soft tissue where the values
/// look like Hounsfield units with air, else from the 1st percentile to the value that half a
/// hundredth of the voxels which are not background exceed.
pub(super) fn range(image: &Volume<f32>) -> [f32; 2] {
    let channel = image.channel(0).unwrap_or_default();
    let step = channel.len().div_ceil(SAMPLES).max(1);
    let mut values: Vec<f32> = channel.iter().copied().step_by(step).filter(|x| x.is_finite()).collect();
    values.sort_unstable_by(f32::total_cmp);
    let last = values.len().saturating_sub(1);
    let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
    let (least, low, greatest) = (at(0), at(last / 100), at(last));
    if low <= AIR && least >= -5000.0 && greatest > SOFT_TISSUE[1] {
        return SOFT_TISSUE;
    }
    // much of a scan may be background: its darkest part says nothing of how bright tissue is
    let dark = low + 0.02 * (greatest - low);
    let first = values.partition_point(|x| *x <= dark);
    let high = at(last.saturating_sub((last + 1).saturating_sub(first) / 200));
    // a mostly empty scan has no spread between the percentiles; its extremes have
    if high > low { [low, high] } else { [least, greatest] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Extent;
    use crate::volume::VolumeError;

    fn of(values: Vec<f32>) -> Result<[f32; 2], VolumeError> {
        let n = u32::try_from(values.len()).unwrap_or(0);
        Ok(range(&Volume::new(1, Extent::new(1, 1, n), [1.0; 3], "SAR".parse()?, values)?))
    }

    #[test]
    fn the_range_follows_the_modality() -> Result<(), VolumeError> {
        // a CT with air, a CT of tissue alone, an MR whose background is half of it, a few bright voxels
        let wave = |n: u16, low: f32, high: f32| (0..n).map(move |i| low + (high - low) * f32::from(i) / f32::from(n - 1));
        assert_eq!(of(wave(200, -1000.0, -950.0).chain(wave(800, -100.0, 1200.0)).collect())?, SOFT_TISSUE);
        let [low, high] = of(wave(1001, -100.0, 300.0).collect())?;
        assert!((-97.0..-95.0).contains(&low) && (297.0..=300.0).contains(&high), "{low} {high}");
        let [low, high] = of(wave(900, 0.0, 0.0).chain(wave(1000, 200.0, 800.0)).chain([9000.0; 3]).collect())?;
        assert!(low == 0.0 && (790.0..=800.0).contains(&high), "{low} {high}");
        assert_eq!(of([vec![0.0; 999], vec![5.0]].concat())?, [0.0, 5.0]);
        assert_eq!(of(vec![f32::NAN; 3])?, [0.0, 0.0]);
        Ok(())
    }
}
