//! Where the tiles of a volume lie and what their voxels weigh: sliding windows as nnU-Net and MONAI run them.
//!
//! Sources: `compute_steps_for_sliding_window` and `compute_gaussian` of nnU-Net (v1 has them in `neural_network.py`), and
//! `dense_patch_slices` and `compute_importance_map` of MONAI.

use crate::kernels::tile_accumulate::{self, TileRounding};
use crate::shape::Extent;

/// How tiles that overlap are blended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blend {
    /// All voxels weigh 1.
    Constant,
    /// nnU-Net's Gaussian: the centre is voxel n / 2, rounded down, where it is 1; sigma is n / 8.
    NnUnet,
    /// The same as nnU-Net v2 has it: times 10, in 16-bit floats, and what vanishes there weighs as the least that does not.
    NnUnetHalf,
    /// MONAI's Gaussian: the centre is (n - 1) / 2, sigma is n / 8, and no voxel weighs less than 0.001.
    Monai,
}

/// Weights of the voxels of a tile: products of weights along its axes, rounded and bounded.
#[derive(Clone, Debug, PartialEq)]
pub struct TileWeights {
    /// Along D, H and W.
    pub along: [Vec<f32>; 3],
    /// Products are rounded to 16-bit floats.
    pub half: bool,
    /// Least weight of a voxel.
    pub least: f32,
}

impl TileWeights {
    /// Those of a tile.
    #[must_use]
    pub fn new(blend: Blend, tile: Extent) -> Self {
        let along = |centre: fn(f64) -> f64| tile.axes().map(|n| gaussian(n, centre(n.into())));
        let mut weights = match blend {
            Blend::Constant => Self { along: tile.axes().map(|n| vec![1.0; n as usize]), half: false, least: 0.0 },
            Blend::NnUnet => Self { along: along(|n| (n / 2.0).floor()), half: false, least: 0.0 },
            Blend::NnUnetHalf => Self { along: along(|n| (n / 2.0).floor()), half: true, least: 0.0 },
            Blend::Monai => Self { along: along(|n| (n - 1.0) / 2.0), half: false, least: 1e-3 },
        };
        if blend == Blend::NnUnetHalf {
            weights.along[0].iter_mut().for_each(|w| *w *= 10.0);
            weights.least = weights.least_positive();
        }
        weights
    }

    /// The weight of a voxel of the tile.
    #[must_use]
    pub fn at(&self, z: usize, y: usize, x: usize) -> f32 {
        tile_accumulate::weight([self.along[0][z], self.along[1][y], self.along[2][x]], self.rounding())
    }

    /// The least weight above 0. Both halves of an axis have the same weights but for one voxel, so
    /// that most products come eight times.
    fn least_positive(&self) -> f32 {
        let [deep, high, wide] = self.along.clone().map(|mut weights| {
            weights.sort_unstable_by(f32::total_cmp);
            weights.dedup();
            weights
        });
        let unbounded = TileRounding { half: self.half, least: 0.0 };
        let rows = deep.iter().flat_map(|&z| high.iter().map(move |&y| (z, y)));
        // products of what is sorted are sorted: the first of a row that is above 0 is its least
        let least = rows.filter_map(|(z, y)| {
            let at = wide.partition_point(|&x| tile_accumulate::weight([z, y, x], unbounded) <= 0.0);
            wide.get(at).map(|&x| tile_accumulate::weight([z, y, x], unbounded))
        });
        least.fold(f32::INFINITY, f32::min)
    }

    /// All voxels, row by row.
    #[cfg(test)]
    fn products(&self) -> impl Iterator<Item = f32> {
        let [d, h, w] = [0, 1, 2].map(|axis| self.along[axis].len());
        (0..d * h * w).map(move |i| self.at(i / (h * w), i / w % h, i % w))
    }

    /// Rounding and bound of products of weights along the axes.
    #[must_use]
    pub const fn rounding(&self) -> TileRounding {
        TileRounding { half: self.half, least: self.least }
    }

    /// The constant of the kernel `tile_accumulate`: the tables one after the other.
    #[must_use]
    pub fn packed(&self) -> Vec<f32> {
        self.along.concat()
    }

    /// Sums of the weights of all tiles, `[D][H][W]`, given where tiles begin along each axis.
    #[must_use]
    pub fn sums(&self, whole: Extent, starts: &[Vec<i32>; 3]) -> Vec<f32> {
        use rayon::prelude::*;
        let [h, w] = [whole.h as usize, whole.w as usize];
        // places of the accumulator, with those of the tile, along an axis
        let places = |axis: usize, start: i32, room: u32| {
            let n = self.along[axis].len();
            (0..n)
                .filter_map(move |i| Some((usize::try_from(i64::from(start) + i as i64).ok()?, i)))
                .filter(move |&(at, _)| at < room as usize)
        };
        let mut sums = vec![0.0; whole.voxels() as usize];
        sums.par_chunks_mut((h * w).max(1)).enumerate().for_each(|(plane, out)| {
            let mut total = vec![0.0f64; h * w];
            let here = starts[0].iter().filter_map(|&start| places(0, start, whole.d).find(|&(at, _)| at == plane));
            for (_, z) in here {
                for (&sy, &sx) in starts[1].iter().flat_map(|sy| starts[2].iter().map(move |sx| (sy, sx))) {
                    for (oy, y) in places(1, sy, whole.h) {
                        for (ox, x) in places(2, sx, whole.w) {
                            total[oy * w + ox] += f64::from(self.at(z, y, x));
                        }
                    }
                }
            }
            out.iter_mut().zip(total).for_each(|(sum, total)| *sum = total as f32);
        });
        sums
    }
}

/// exp(-((i - centre) / sigma)^2 / 2) with sigma n / 8.
fn gaussian(n: u32, centre: f64) -> Vec<f32> {
    let sigma = f64::from(n) / 8.0;
    (0..n).map(|i| (-0.5 * ((f64::from(i) - centre) / sigma).powi(2)).exp() as f32).collect()
}

/// The one tile of an axis that is no longer than a tile: what is missing is padded, half of it before the first voxel.
fn single(image: u32, tile: u32) -> Option<Vec<i32>> {
    (image <= tile).then(|| vec![-((tile - image) as i32 / 2)])
}

/// Where tiles begin along an axis of `image` voxels, as nnU-Net has it: the least number of tiles at most `step` tiles (0 to 1)
/// apart, evenly spread, ties to even.
#[must_use]
pub fn nnunet_starts(image: u32, tile: u32, step: f64) -> Vec<i32> {
    single(image, tile).unwrap_or_else(|| {
        let room = f64::from(image - tile);
        let gaps = (room / (f64::from(tile) * step)).ceil().max(1.0);
        let actual = room / gaps;
        (0..=gaps as u32).map(|i| (actual * f64::from(i)).round_ties_even() as i32).collect()
    })
}

/// The same as MONAI has it: tiles that overlap by `overlap` (0 to 1, without 1), the last one moved back to end with the image.
#[must_use]
pub fn monai_starts(image: u32, tile: u32, overlap: f64) -> Vec<i32> {
    single(image, tile).unwrap_or_else(|| {
        let interval = ((f64::from(tile) * (1.0 - overlap)) as u32).max(1);
        let last = (image - tile).div_ceil(interval);
        (0..=last).map(|i| (i * interval).min(image - tile) as i32).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nnunet_spreads_its_tiles() {
        assert_eq!(nnunet_starts(128, 128, 0.5), [0]);
        assert_eq!(nnunet_starts(129, 128, 0.5), [0, 1]);
        assert_eq!(nnunet_starts(512, 128, 0.5), [0, 64, 128, 192, 256, 320, 384]);
        assert_eq!(nnunet_starts(123, 48, 0.5), [0, 19, 38, 56, 75]); // steps of 18.75: 18.75, 37.5, 56.25
        assert_eq!(nnunet_starts(15, 10, 0.5), [0, 5]);
        assert_eq!(nnunet_starts(17, 8, 0.75), [0, 4, 9]); // 4.5 is rounded to even
        // padded by 3 before and 4 after
        assert_eq!(nnunet_starts(93, 100, 0.5), [-3]);
        for (image, tile, step) in [(200, 64, 0.5), (97, 96, 0.5), (333, 80, 0.3), (1000, 33, 1.0)] {
            let starts = nnunet_starts(image, tile, step);
            assert_eq!((starts[0], starts[starts.len() - 1]), (0, (image - tile) as i32));
            assert!(starts.windows(2).all(|w| f64::from(w[1] - w[0]) <= (f64::from(tile) * step).ceil()));
        }
    }

    #[test]
    fn monai_moves_its_last_tile_back() {
        assert_eq!(monai_starts(96, 96, 0.5), [0]);
        assert_eq!(monai_starts(97, 96, 0.5), [0, 1]);
        assert_eq!(monai_starts(250, 96, 0.5), [0, 48, 96, 144, 154]);
        assert_eq!(monai_starts(240, 96, 0.5), [0, 48, 96, 144]);
        assert_eq!(monai_starts(11, 5, 0.25), [0, 3, 6]);
        assert_eq!(monai_starts(7, 3, 0.9), [0, 1, 2, 3, 4]); // an interval of 0.3 is 1
        assert_eq!(monai_starts(90, 96, 0.5), [-3]);
    }

    #[test]
    fn gaussians_are_those_of_the_frameworks() {
        let tile = Extent::new(8, 10, 7);
        let v1 = TileWeights::new(Blend::NnUnet, tile);
        // one at the voxel n / 2, not symmetric
        assert_eq!((v1.at(4, 5, 3), v1.along[0][0]), (1.0, (-8.0f64).exp() as f32));
        assert_eq!((v1.along[0][3], v1.along[0][4], v1.along[0][5]), ((-0.5f64).exp() as f32, 1.0, (-0.5f64).exp() as f32));
        // ten times that in 16-bit floats; the corner vanishes, and weighs as the least that does not
        let v2 = TileWeights::new(Blend::NnUnetHalf, tile);
        assert_eq!(v2.at(4, 5, 3), 10.0);
        let of = |z: usize, y: usize, x: usize| 10.0 * f64::from(v1.along[0][z]) * f64::from(v1.along[1][y]) * f64::from(v1.along[2][x]);
        let exact = |i: usize| of(i / 70, i / 7 % 10, i % 7);
        let least = (0..560).map(|i| half::f16::from_f64(exact(i)).to_f32()).filter(|&w| w > 0.0).fold(f32::INFINITY, f32::min);
        assert_eq!((v2.at(0, 0, 0), v2.least), (least, least));
        assert!(exact(0) < 1e-8 && (5e-8..2e-7).contains(&least), "{least:e}");
        for (i, w) in v2.products().enumerate().filter(|(_, w)| *w > 1e-4) {
            assert!((f64::from(w) / exact(i) - 1.0).abs() < 1e-3);
        }
        // MONAI's is symmetric and bounded
        let monai = TileWeights::new(Blend::Monai, tile);
        assert_eq!((monai.along[0][3], monai.along[0][4]), ((-0.125f64).exp() as f32, (-0.125f64).exp() as f32));
        assert_eq!((monai.along[2][3], monai.at(0, 0, 0)), (1.0, 1e-3));
        assert!(TileWeights::new(Blend::Constant, tile).products().all(|w| w == 1.0));
    }

    #[test]
    fn sums_of_weights_are_products_of_sums_along_the_axes() {
        let (tile, whole) = (Extent::new(4, 6, 5), Extent::new(9, 6, 3));
        let weights = TileWeights::new(Blend::NnUnet, tile);
        let starts = [nnunet_starts(9, 4, 0.5), nnunet_starts(6, 6, 0.5), nnunet_starts(3, 5, 0.5)];
        assert_eq!(starts, [vec![0, 2, 3, 5], vec![0], vec![-1]]);
        let sums = weights.sums(whole, &starts);
        let along = |axis: usize, at: usize| {
            let places = starts[axis].iter().map(|&s| at as i32 - s);
            places.filter(|&i| (0..tile.axes()[axis] as i32).contains(&i)).map(|i| f64::from(weights.along[axis][i as usize])).sum::<f64>()
        };
        for (i, &sum) in sums.iter().enumerate() {
            let expected = along(0, i / 18) * along(1, i / 3 % 6) * along(2, i % 3);
            assert!((f64::from(sum) / expected - 1.0).abs() < 1e-6, "{i}: {sum} for {expected}");
        }
    }
}
