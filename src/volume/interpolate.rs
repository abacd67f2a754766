//! Resizing as PyTorch's `torch.nn.functional.interpolate` does it on a CPU, without aligned
//! corners: `bilinear` and `trilinear` (order 1), and `nearest-exact` (order 0).
//!
//! Source: `aten/src/ATen/native/cpu/UpSampleKernel.cpp` and `UpSample.h` of PyTorch 2.15. Places,
//! weights and sums are in f32; a sum of two products is the second product and a fused
//! multiply-add of the first, along W first, then H, then D. That is what the kernel of three
//! dimensions does, to the last bit; that of two, which resamples slices by themselves, may differ
//! from it in that bit.

use rayon::prelude::*;

use super::spline::Order;

/// The two source voxels of a target voxel along an axis, and what they weigh.
pub(crate) type Tap = ([usize; 2], [f32; 2]);

/// The places of a line of `target` voxels on a line of `source`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "positions lie within the line, and PyTorch takes extents as f32"
)]
pub(crate) fn taps(source: usize, target: usize, order: Order) -> Vec<Tap> {
    let scale = source as f32 / target as f32;
    let last = source.saturating_sub(1);
    let tap = |i: usize| {
        if source == target {
            return ([i; 2], [1.0, 0.0]);
        }
        let place = scale * (i as f32 + 0.5) - 0.5;
        if order == Order::Nearest {
            let nearest = ((place + 0.5).floor().max(0.0) as usize).min(last);
            return ([nearest; 2], [1.0, 0.0]);
        }
        let place = place.max(0.0);
        let first = (place.floor() as usize).min(last);
        let second = (place - first as f32).clamp(0.0, 1.0);
        ([first, (first + 1).min(last)], [1.0 - second, second])
    };
    (0..target).map(tap).collect()
}

/// The sum of two products as PyTorch's kernels are compiled.
#[inline(always)]
pub(crate) fn between(values: [f32; 2], weights: [f32; 2]) -> f32 {
    values[0].mul_add(weights[0], values[1] * weights[1])
}

/// Resizes values `[D][H][W]` of shape `from` to shape `to`; with an axis and its order across that
/// axis first, and then along it.
///
/// # Panics
/// When there are not as many values as the shape has voxels.
#[must_use]
pub(crate) fn resize(values: &[f32], from: [usize; 3], to: [usize; 3], order: Order, along: Option<(usize, Order)>) -> Vec<f32> {
    assert_eq!(values.len(), from.iter().product::<usize>(), "values and shape must agree");
    let Some((axis, order_along)) = along else { return at_once(values, from, to, order) };
    let mut between = to;
    between[axis] = from[axis];
    at_once(&at_once(values, from, between, order), between, to, order_along)
}

fn at_once(values: &[f32], from: [usize; 3], to: [usize; 3], order: Order) -> Vec<f32> {
    if from == to {
        return values.to_vec();
    }
    let [deep, high, wide] = [0, 1, 2].map(|axis| taps(from[axis], to[axis], order));
    let [_, height, width] = from;
    let mut out = vec![0.0; to.iter().product()];
    out.par_chunks_exact_mut(to[2].max(1)).enumerate().for_each(|(row, out)| {
        let (planes, depths) = deep[row / to[1]];
        let (lines, heights) = high[row % to[1]];
        let line = |plane: usize, line: usize| &values[(plane * height + line) * width..][..width];
        let [[a, b], [c, d]] = planes.map(|plane| lines.map(|y| line(plane, y)));
        for (out, &(columns, weights)) in out.iter_mut().zip(&wide) {
            let across = |line: &[f32]| between(columns.map(|x| line[x]), weights);
            let plane = |a: &[f32], b: &[f32]| between([across(a), across(b)], heights);
            *out = between([plane(a, b), plane(c, d)], depths);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values over 2x3x4.
    #[expect(clippy::cast_possible_truncation, reason = "rounded from f64, as Python's numbers are")]
    fn wave() -> Vec<f32> {
        (0..24u32).map(|i| ((f64::from(i * 7919 % 101) - 50.0) / 7.3) as f32).collect()
    }

    #[test]
    fn bits_are_those_of_pytorch() {
        // torch 2.15: interpolate(wave, (3, 5, 3), mode="trilinear"), the first plane and the begin
        // of the second
        let want = [
            0xc0bd_3947u32,
            0x3fc9_a4d2,
            0xc01d_ceec,
            0xc058_8c45,
            0xbf01_c0e5,
            0x3d82_ec0f,
            0x3ed2_692d,
            0xc068_542b,
            0x4076_f0d1,
            0xbfaa_150f,
            0xc026_9349,
            0x3f3c_3372,
            0xc01f_44f8,
            0xbff5_7abd,
            0xbfac_6b83,
            0xbf84_f7d1,
            0x3f2f_57ac,
            0xc056_cb6a,
        ];
        let found: Vec<u32> = resize(&wave(), [2, 3, 4], [3, 5, 3], Order::Linear, None).iter().map(|v| v.to_bits()).collect();
        assert_eq!(found[..18], want);
        // mode="nearest-exact", the first two lines
        let nearest = resize(&wave(), [2, 3, 4], [3, 5, 3], Order::Nearest, None);
        let whole: Vec<f32> = nearest.iter().map(|v| (v * 7.3).round()).collect();
        assert_eq!(whole[..9], [-50.0, 32.0, -28.0, -50.0, 32.0, -28.0, 13.0, -6.0, 35.0]);
        assert_eq!(resize(&wave(), [2, 3, 4], [2, 3, 4], Order::Linear, None), wave());
    }

    #[test]
    fn slices_are_resized_by_themselves() {
        // bilinear, then nearest-exact along the first axis
        let found = resize(&wave(), [2, 3, 4], [3, 5, 3], Order::Linear, Some((0, Order::Nearest)));
        let bilinear = [0xc0bd_3947u32, 0x3fc9_a4d2, 0xc01d_ceec, 0xc058_8c45, 0xbf01_c0e5, 0x3d82_ec0b].map(f32::from_bits);
        assert!(found.iter().zip(bilinear).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        let second = [0x4075_7abdu32, 0xbe52_6930, 0xc087_e3f4].map(f32::from_bits);
        assert!(found[15..].iter().zip(second).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    }
}
