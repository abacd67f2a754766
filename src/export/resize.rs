//! Resampling of class scores to another grid by interpolation of order 0 or 1, a tile of one plane
//! at a time.
//!
//! The sums are those of [`spline::resize`] and [`spline::resize_slices`]: along one axis after the
//! other, in f64, in the same order; or those of [`interpolate::resize`], in f32. A voxel thus has
//! the same bits as in a whole array.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::half::{rounded, widened};
use crate::kernels::host::{Isa, Work, run};
use crate::volume::interpolate;
use crate::volume::spline::{self, Order};

/// Rows and columns of a tile: its values stay in the first cache.
pub(super) const TILE: [usize; 2] = [16, 64];

/// A number that class scores are stored as.
pub(crate) trait Score: Copy + Send + Sync + 'static {
    /// The number as f32, exactly.
    fn wide(self) -> f32;
}

impl Score for f16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        widened(self)
    }
}

impl Score for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

/// An interpolated score as it is stored: rounded to 16 bits, or to f32.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "scores are stored as f32")]
pub(super) fn stored<const HALF: bool>(x: f64) -> f32 {
    if HALF { rounded(x) } else { x as f32 }
}

/// The two source voxels of a target voxel along an axis, and what they weigh. Where the second
/// weighs nothing, the two are the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tap {
    pub(crate) voxels: [usize; 2],
    weights: [f64; 2],
}

impl Tap {
    /// Whether the target voxel has the value of the first source voxel.
    #[inline(always)]
    fn single(&self) -> bool {
        self.weights[1] == 0.0
    }

    /// The sum of two source values, in f32 as PyTorch computes it or in f64.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "in f32 values and weights are of that type")]
    fn between<const SINGLE: bool>(&self, a: f64, b: f64) -> f64 {
        if SINGLE {
            let [values, weights] = [[a, b], self.weights].map(|pair| pair.map(|x| x as f32));
            interpolate::between(values, weights).into()
        } else {
            a * self.weights[0] + b * self.weights[1]
        }
    }
}

/// The way from one grid to another.
#[derive(Clone, Debug)]
pub(crate) struct Resize {
    pub(crate) from: [usize; 3],
    pub(crate) to: [usize; 3],
    /// Of each target voxel along D, H, W.
    pub(crate) taps: [Vec<Tap>; 3],
    /// The axes in the order in which they are interpolated.
    sequence: [usize; 3],
    /// Whether sums are in f32, as PyTorch's.
    pub(super) single: bool,
}

/// Buffers of a tile.
#[derive(Default)]
pub(crate) struct Scratch {
    buffers: [Vec<f64>; 2],
}

impl Resize {
    /// By `order`, and along the `axis` that is resampled by itself, after the others, by an order of
    /// its own; `None` where a spline of a higher order is needed.
    pub(crate) fn new(from: [usize; 3], to: [usize; 3], order: Order, axis: Option<(usize, Order)>) -> Option<Self> {
        let mut orders = [order; 3];
        let mut sequence = [0, 1, 2];
        if let Some((axis, along)) = axis {
            orders[axis] = along;
            sequence[axis..].rotate_left(1);
        }
        let taps = |a: usize| -> Option<Vec<Tap>> {
            if from[a] == to[a] {
                return Some((0..to[a]).map(|i| Tap { voxels: [i; 2], weights: [1.0, 0.0] }).collect());
            }
            let tap = |(first, weights): (usize, [f64; 2])| {
                let second = if weights[1] == 0.0 { first } else { first + 1 };
                Tap { voxels: [first, second], weights }
            };
            Some(spline::linear_taps(from[a], to[a], orders[a])?.into_iter().map(tap).collect())
        };
        Some(Self { from, to, taps: [taps(0)?, taps(1)?, taps(2)?], sequence, single: false })
    }

    /// As PyTorch interpolates by `order`, and after that along the `axis` that is resampled by
    /// itself by an order of its own.
    pub(crate) fn torch(from: [usize; 3], to: [usize; 3], order: Order, axis: Option<(usize, Order)>) -> Self {
        let mut orders = [order; 3];
        let mut sequence = [2, 1, 0];
        if let Some((axis, along)) = axis {
            orders[axis] = along;
            sequence[2 - axis..].rotate_left(1);
        }
        let taps = [0, 1, 2].map(|a| {
            let tap = |(voxels, weights): interpolate::Tap| {
                let weights = weights.map(f64::from);
                Tap { voxels: if weights[1] == 0.0 { [voxels[0]; 2] } else { voxels }, weights }
            };
            interpolate::taps(from[a], to[a], orders[a]).into_iter().map(tap).collect()
        });
        Self { from, to, taps, sequence, single: true }
    }

    /// The source voxels that `targets` along an axis are computed from: the first, and the one after
    /// the last.
    #[inline(always)]
    pub(super) fn span(&self, axis: usize, targets: &Range<usize>) -> Range<usize> {
        let taps = &self.taps[axis];
        taps[targets.start].voxels[0]..taps[targets.end - 1].voxels[1] + 1
    }

    /// The values of a class at `rows` and `columns` of target plane `z`, row by row; `planes` are
    /// those of the class at the two voxels of the plane's tap.
    #[inline(always)]
    pub(super) fn tile<'a, S: Score>(
        &self,
        planes: [&[S]; 2],
        z: usize,
        rows: &Range<usize>,
        columns: &Range<usize>,
        scratch: &'a mut Scratch,
    ) -> &'a [f64] {
        if self.single {
            self.tile_in::<S, true>(planes, z, rows, columns, scratch)
        } else {
            self.tile_in::<S, false>(planes, z, rows, columns, scratch)
        }
    }

    #[inline(always)]
    fn tile_in<'a, S: Score, const SINGLE: bool>(
        &self,
        planes: [&[S]; 2],
        z: usize,
        rows: &Range<usize>,
        columns: &Range<usize>,
        scratch: &'a mut Scratch,
    ) -> &'a [f64] {
        let (ys, xs) = (self.span(1, rows), self.span(2, columns));
        let deep = self.taps[0][z];
        let width = self.from[2];
        let [mut now, mut next] = scratch.buffers.each_mut();
        now.clear();
        let at_once = deep.single() || self.sequence[0] == 0;
        let mut depth = if at_once { 1 } else { 2 };
        if deep.single() || !at_once {
            for plane in &planes[..depth] {
                for y in ys.clone() {
                    let line = &plane[y * width..][xs.clone()];
                    now.extend(line.iter().map(|v| f64::from(v.wide())));
                }
            }
        } else {
            for y in ys.clone() {
                let [a, b] = planes.map(|plane| &plane[y * width..][xs.clone()]);
                now.extend(a.iter().zip(b).map(|(a, b)| deep.between::<SINGLE>(a.wide().into(), b.wide().into())));
            }
        }
        let (mut height, mut wide) = (ys.len(), xs.len());
        for axis in self.sequence {
            next.clear();
            match axis {
                0 if depth == 2 => {
                    let (a, b) = now.split_at(height * wide);
                    next.extend(a.iter().zip(b).map(|(&a, &b)| deep.between::<SINGLE>(a, b)));
                    depth = 1;
                }
                0 => continue,
                1 => {
                    for plane in now.chunks_exact(height * wide) {
                        for tap in &self.taps[1][rows.clone()] {
                            let [a, b] = tap.voxels.map(|y| &plane[(y - ys.start) * wide..][..wide]);
                            if tap.single() {
                                next.extend_from_slice(a);
                            } else {
                                next.extend(a.iter().zip(b).map(|(&a, &b)| tap.between::<SINGLE>(a, b)));
                            }
                        }
                    }
                    height = rows.len();
                }
                _ => {
                    for line in now.chunks_exact(wide) {
                        let value = |tap: &Tap| {
                            let [a, b] = tap.voxels.map(|x| line[x - xs.start]);
                            if tap.single() { a } else { tap.between::<SINGLE>(a, b) }
                        };
                        next.extend(self.taps[2][columns.clone()].iter().map(value));
                    }
                    wide = columns.len();
                }
            }
            std::mem::swap(&mut now, &mut next);
        }
        now
    }
}

/// A class on the target grid, `[D][H][W]`, from its scores on the source grid.
pub(crate) fn whole(resize: &Resize, scores: &[f32], half: bool) -> Vec<f32> {
    let [_, high, wide] = resize.from;
    let [depth, height, width] = resize.to;
    let mut out = vec![0.0; depth * height * width];
    let planes = out.par_chunks_exact_mut((height * width).max(1)).enumerate();
    let rows = planes.flat_map(|(z, plane)| plane.par_chunks_mut(TILE[0] * width).enumerate().map(move |(i, part)| (z, i * TILE[0], part)));
    rows.for_each_init(Scratch::default, |scratch, (z, y, out)| {
        let planes = resize.taps[0][z].voxels.map(|z| &scores[z * high * wide..][..high * wide]);
        let rows = y..y + out.len() / width;
        run(Part { resize, planes, z, rows, out, half, scratch });
    });
    out
}

/// Some rows of a class.
struct Part<'a> {
    resize: &'a Resize,
    planes: [&'a [f32]; 2],
    z: usize,
    rows: Range<usize>,
    out: &'a mut [f32],
    half: bool,
    scratch: &'a mut Scratch,
}

impl Work for Part<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let width = self.resize.to[2];
        for x in (0..width).step_by(TILE[1]) {
            let columns = x..width.min(x + TILE[1]);
            let values = self.resize.tile(self.planes, self.z, &self.rows, &columns, self.scratch);
            for (line, values) in self.out.chunks_exact_mut(width).zip(values.chunks_exact(columns.len())) {
                for (out, &value) in line[columns.clone()].iter_mut().zip(values) {
                    *out = if self.half { stored::<true>(value) } else { stored::<false>(value) };
                }
            }
        }
    }
}
