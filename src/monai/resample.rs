//! Resampling from voxel 0 on, as MONAI's `SpatialResample` with `padding_mode="border"`: voxel `i` is read at `i * step`, which is
//! held within the volume; computed in f64.

use rayon::prelude::*;

/// What is read of a position between voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Linear,
    /// The nearest voxel, the even one of two (PyTorch's `grid_sample`).
    Nearest,
}

/// Voxels and the weight of the second, for each of so many positions.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positions are held within the axis")]
fn taps(from: usize, to: usize, step: f64, reading: Reading) -> Vec<(usize, usize, f64)> {
    let last = from.saturating_sub(1);
    let tap = |i: usize| {
        let position = (i as f64 * step).clamp(0.0, last as f64);
        match reading {
            Reading::Linear => {
                let first = position.floor();
                (first as usize, (first as usize + 1).min(last), position - first)
            }
            Reading::Nearest => {
                let at = position.round_ties_even() as usize;
                (at, at, 0.0)
            }
        }
    };
    (0..to).map(tap).collect()
}

/// One channel `[D][H][W]` of extent `from` at `to` positions, `step` voxels from one to the next along each axis.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
pub(super) fn resample(channel: &[f32], [from, to]: [[usize; 3]; 2], step: [f64; 3], reading: Reading) -> Vec<f32> {
    let [deep, high, wide] = [0, 1, 2].map(|axis| taps(from[axis], to[axis], step[axis], reading));
    let mut out = vec![0.0; to.iter().product()];
    out.par_chunks_exact_mut((to[1] * to[2]).max(1)).zip(&deep).for_each(|(plane, d)| {
        for (row, h) in plane.chunks_exact_mut(to[2].max(1)).zip(&high) {
            let line = |d: usize, h: usize| &channel[(d * from[1] + h) * from[2]..][..from[2]];
            let lines = [line(d.0, h.0), line(d.0, h.1), line(d.1, h.0), line(d.1, h.1)];
            for (value, w) in row.iter_mut().zip(&wide) {
                let between = |a: f64, b: f64, weight: f64| a * (1.0 - weight) + b * weight;
                let [a, b, c, e] = lines.map(|line| between(f64::from(line[w.0]), f64::from(line[w.1]), w.2));
                *value = between(between(a, b, h.2), between(c, e, h.2), d.2) as f32;
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_begin_at_the_first_voxel() {
        let line = [0.0, 1.0, 2.0, 3.0];
        let of = |n, step, reading| resample(&line, [[1, 1, 4], [1, 1, n]], [1.0, 1.0, step], reading);
        assert_eq!(of(3, 1.5, Reading::Linear), [0.0, 1.5, 3.0]);
        assert_eq!(of(4, 2.0, Reading::Linear), [0.0, 2.0, 3.0, 3.0]);
        assert_eq!(of(6, 0.5, Reading::Nearest), [0.0, 0.0, 1.0, 2.0, 2.0, 2.0], "the even one of two");
    }
}
