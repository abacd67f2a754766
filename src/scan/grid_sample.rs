//! Resampling from one grid to any other: PyTorch's `affine_grid` and `grid_sample` with
//! `padding_mode="border"` on f64, in their floating-point steps.

use rayon::prelude::*;

/// What is read of a position between voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Linear,
    /// The nearest voxel, the even one of two.
    Nearest,
}

/// The normalised coordinates of `n` voxels along an axis (`affine_grid`, by way of `linspace`).
fn coordinates(n: usize, align: bool) -> Vec<f64> {
    if n <= 1 {
        return vec![0.0; n];
    }
    let last = n as f64 - 1.0;
    let step = 2.0 / last;
    let even = |i: usize| if i < n / 2 { step.mul_add(i as f64, -1.0) } else { (-step).mul_add((n - 1 - i) as f64, 1.0) };
    (0..n).map(|i| if align { even(i) } else { even(i) * last / n as f64 }).collect()
}

/// The position, in voxels of an axis of `n`, of a normalised coordinate; held within the axis.
fn position(coordinate: f64, n: usize, align: bool) -> f64 {
    let last = n as f64 - 1.0;
    let position = if align { (coordinate + 1.0) / 2.0 * last } else { ((coordinate + 1.0) * n as f64 - 1.0) / 2.0 };
    position.max(0.0).min(last)
}

/// The voxels around a position: the first, the way to the others along W, H, D, and what each
/// weighs.
#[derive(Clone, Copy)]
struct Tap {
    first: usize,
    next: [usize; 3],
    weights: [f64; 8],
}

impl Tap {
    /// Around a position along W, H, D in a volume of `n` voxels along D, H, W.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positions are held within the axes")]
    fn around(at: [f64; 3], n: [usize; 3]) -> Self {
        let strides = [1, n[2], n[1] * n[2]];
        let low = at.map(f64::floor);
        let index = low.map(|x| x as usize);
        let shares = [0, 1, 2].map(|axis| [low[axis] + 1.0 - at[axis], at[axis] - low[axis]]);
        Self {
            first: (0..3).map(|axis| index[axis] * strides[axis]).sum(),
            // the last voxel has no next one, whose weight is 0
            next: [0, 1, 2].map(|axis| if index[axis] + 1 < n[2 - axis] { strides[axis] } else { 0 }),
            weights: std::array::from_fn(|k| shares[0][k & 1] * shares[1][k >> 1 & 1] * shares[2][k >> 2]),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
    fn read(&self, channel: &[f32]) -> f32 {
        let [x, y, z] = self.next;
        let at = |k: usize| self.first + x * (k & 1) + y * (k >> 1 & 1) + z * (k >> 2);
        (0..8).fold(0.0, |sum, k| sum + f64::from(channel[at(k)]) * self.weights[k]) as f32
    }
}

/// All channels `[C][D][H][W]` of shape `from` on a grid of shape `to` that lies in theirs as
/// `theta` says (see [`super::spacing::Map`]).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positions are held within the axes")]
pub(super) fn resample(data: &[f32], [from, to]: [[usize; 3]; 2], theta: &[[f64; 4]; 3], align: bool, reading: Reading) -> Vec<f32> {
    let [before, after] = [from, to].map(|n| n.iter().product::<usize>().max(1));
    let channels: Vec<&[f32]> = data.chunks_exact(before).collect();
    let mut out = vec![0.0; channels.len() * after];
    // the planes of all channels at one place along D, whose positions are computed once
    let mut planes: Vec<Vec<&mut [f32]>> = (0..to[0]).map(|_| Vec::with_capacity(channels.len())).collect();
    for channel in out.chunks_exact_mut(after) {
        for (place, plane) in planes.iter_mut().zip(channel.chunks_exact_mut((to[1] * to[2]).max(1))) {
            place.push(plane);
        }
    }
    let [deep, high, wide] = to.map(|n| coordinates(n, align));
    let strides = [1, from[2], from[1] * from[2]];
    planes.into_par_iter().zip(deep).for_each(|(mut planes, z)| {
        for (h, &y) in high.iter().enumerate() {
            let places = wide.iter().map(|&x| {
                [0, 1, 2].map(|axis| {
                    let [a, b, c, d] = theta[axis];
                    let coordinate = z.mul_add(c, y.mul_add(b, x * a)) + d;
                    position(coordinate, from[2 - axis], align)
                })
            });
            let row = h * to[2]..(h + 1) * to[2];
            match reading {
                Reading::Linear => {
                    let taps: Vec<Tap> = places.map(|at| Tap::around(at, from)).collect();
                    for (plane, channel) in planes.iter_mut().zip(&channels) {
                        for (value, tap) in plane[row.clone()].iter_mut().zip(&taps) {
                            *value = tap.read(channel);
                        }
                    }
                }
                Reading::Nearest => {
                    let nearest = |at: [f64; 3]| (0..3).map(|axis| at[axis].round_ties_even() as usize * strides[axis]).sum();
                    let taps: Vec<usize> = places.map(nearest).collect();
                    for (plane, channel) in planes.iter_mut().zip(&channels) {
                        for (value, &tap) in plane[row.clone()].iter_mut().zip(&taps) {
                            *value = channel[tap];
                        }
                    }
                }
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::spacing::{Change, map};
    use crate::volume::Affine;

    /// The line 0, 1, 2, .. resampled to `n` voxels, `step` of its voxels apart, the first at its
    /// first.
    fn line(from: usize, n: usize, step: f64, align: bool, reading: Reading) -> Option<Vec<f32>> {
        let at = |step| Affine { steps: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, step]], origin: [0.0; 3] };
        let shapes = [[1, 1, from], [1, 1, n]];
        let values: Vec<f32> = (0u8..).take(from).map(f32::from).collect();
        match map(&at(1.0), &at(step), shapes, align)? {
            Change::Resample(map) => Some(resample(&values, shapes, &map.theta, align, reading)),
            Change::None => Some(values),
        }
    }

    #[test]
    fn what_lies_outside_is_the_edge() {
        for align in [false, true] {
            assert_eq!(line(5, 4, 2.0, align, Reading::Linear), Some(vec![0.0, 2.0, 4.0, 4.0]));
            assert_eq!(line(5, 5, 1.5, align, Reading::Linear), Some(vec![0.0, 1.5, 3.0, 4.0, 4.0]));
        }
    }

    #[test]
    fn ties_fall_as_pytorch_rounds() {
        // what MONAI makes of them: some of the ties lie a bit beside
        let got = line(10, 19, 0.5, false, Reading::Nearest);
        assert_eq!(got, Some(TIES.map(f32::from).to_vec()));
    }

    const TIES: [u8; 19] = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6, 6, 7, 8, 8, 8, 9];

    #[test]
    fn turned_grids_are_read_at_their_places() {
        // a quarter turn in the plane of H and W
        let from = Affine { steps: [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], origin: [0.0; 3] };
        let to = Affine { steps: [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], origin: [0.0, 2.0, 0.0] };
        let shapes = [[1, 3, 2], [1, 2, 3]];
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0];
        let Some(Change::Resample(map)) = map(&from, &to, shapes, false) else { panic!("it is resampled") };
        let turned = [5.0, 3.0, 1.0, 6.0, 4.0, 2.0];
        for reading in [Reading::Linear, Reading::Nearest] {
            let got = resample(&values, shapes, &map.theta, false, reading);
            for (channel, sign) in got.chunks_exact(6).zip([1.0, -1.0]) {
                assert!(channel.iter().zip(turned).all(|(a, b): (&f32, f32)| (a - sign * b).abs() < 1e-6), "{got:?}");
            }
        }
    }
}
