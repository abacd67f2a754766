//! The least and the greatest score of each class in the tiles of a plane. What is interpolated
//! between them lies between them too, so that whole tiles are decided without a sum.

use std::ops::Range;

use rayon::prelude::*;

use super::resize::Score;

/// Rows and columns of a tile.
const TILE: [usize; 2] = [8, 16];

/// The least and the greatest number of a set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bounds {
    pub(super) low: f32,
    pub(super) high: f32,
}

impl Bounds {
    const NONE: Self = Self { low: f32::INFINITY, high: f32::NEG_INFINITY };
    /// Of a set that holds NaN or infinity: nothing is known of what is interpolated there.
    const ANY: Self = Self { low: f32::NEG_INFINITY, high: f32::INFINITY };

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }
}

/// The bounds of all classes in all tiles of a plane.
#[derive(Debug)]
pub(super) struct PlaneBounds {
    /// Tiles along H and W.
    tiles: [usize; 2],
    /// `[C][H][W]`.
    bounds: Vec<Bounds>,
}

impl PlaneBounds {
    /// Those of a plane of scores `[C][H][W]`.
    pub(super) fn new<S: Score>(scores: &[S], [height, width]: [usize; 2]) -> Self {
        let tiles = [height.div_ceil(TILE[0]), width.div_ceil(TILE[1])];
        let of = |class: &[S]| {
            let mut bounds = vec![Bounds::NONE; tiles[0] * tiles[1]];
            for (y, line) in class.chunks_exact(width).enumerate() {
                let row = &mut bounds[y / TILE[0] * tiles[1]..][..tiles[1]];
                for (bounds, part) in row.iter_mut().zip(line.chunks(TILE[1])) {
                    let here = part.iter().fold(Bounds::NONE, |b, v| {
                        let v = v.wide();
                        Bounds { low: if v < b.low { v } else { b.low }, high: if v > b.high { v } else { b.high } }
                    });
                    let finite = part.iter().fold(0.0, |sum, v| sum + v.wide() * 0.0) == 0.0;
                    *bounds = bounds.and(if finite { here } else { Bounds::ANY });
                }
            }
            bounds
        };
        let bounds = scores.par_chunks_exact((height * width).max(1)).flat_map_iter(of).collect();
        Self { tiles, bounds }
    }

    /// The bytes that those of a plane of such an extent take.
    pub(super) fn bytes(classes: usize, [height, width]: [usize; 2]) -> u64 {
        (classes * height.div_ceil(TILE[0]) * width.div_ceil(TILE[1]) * size_of::<Bounds>()) as u64
    }

    /// The bounds of a class over `rows` and `columns`.
    #[inline(always)]
    pub(super) fn of(&self, class: usize, rows: &Range<usize>, columns: &Range<usize>) -> Bounds {
        let [high, wide] = self.tiles;
        let tiles = &self.bounds[class * high * wide..][..high * wide];
        let columns = columns.start / TILE[1]..(columns.end - 1) / TILE[1] + 1;
        let mut all = Bounds::NONE;
        for y in rows.start / TILE[0]..(rows.end - 1) / TILE[0] + 1 {
            for &bounds in &tiles[y * wide..][columns.clone()] {
                all = all.and(bounds);
            }
        }
        all
    }
}
