//! Host halves of layer norm and of the statistics that instance, batch and group norms take.

use super::Slab;
use super::by_rows::{ByRows, Rows, row_len, whole, wide};
use super::isa::{Isa, fma};
use super::math::activate;
use crate::kernels::Load;
use crate::kernels::channel_stats::{self, ChannelStats, parts};
use crate::kernels::layer_norm::LayerNorm;
use crate::shape::Elem;

/// A sum in sixteen parts, which are added in pairs.
#[derive(Clone, Copy)]
struct Sum([f32; 16]);

impl Sum {
    #[inline(always)]
    fn total(self) -> f32 {
        let Self(mut parts) = self;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                parts[i] += parts[i + half];
            }
        }
        parts[0]
    }
}

/// The sums of `x - from` and of its squares.
#[allow(clippy::needless_range_loop, reason = "indices below constants are what compilers unroll")]
#[inline(always)]
fn deviations<I: Isa>(x: &[f32], from: f32) -> [f32; 2] {
    let (mut first, mut squares) = (Sum([0.0; 16]), Sum([0.0; 16]));
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            let d = chunk[i] - from;
            first.0[i] += d;
            squares.0[i] = fma::<I>(d, d, squares.0[i]);
        }
    }
    for (i, x) in rest.iter().enumerate() {
        let d = x - from;
        first.0[i] += d;
        squares.0[i] = fma::<I>(d, d, squares.0[i]);
    }
    [first, squares].map(Sum::total)
}

impl ByRows for LayerNorm {
    fn result(&self) -> Rows {
        Rows::of(self.map, self.target, self.elem)
    }

    fn room(&self) -> usize {
        wide(self.map, self.elem)
    }

    #[inline(always)]
    fn row<I: Isa>(&self, inputs: &[Slab<'_>], at: [usize; 2], out: &mut [f32], room: &mut [f32]) {
        let &[src, affine] = inputs else { return };
        let (padded, channels) = (self.map.blocks() as usize * 4, self.map.channels as usize);
        let load = Load { norm: None, activation: self.before };
        let source = whole(src, self.map, (load, affine), [self.windows[0]; 2], self.elem);
        source.row::<I>(at, 0..self.map.extent.w as usize, room, out, padded, 0);
        let (gamma, beta) = affine.floats().split_at(padded);
        #[expect(clippy::cast_precision_loss, reason = "channels are few")]
        let share = 1.0 / channels as f32;
        for voxel in out.chunks_exact_mut(padded) {
            let (x, padding) = voxel.split_at_mut(channels);
            let first = deviations::<I>(x, 0.0)[0] * share;
            // what the rounding of the mean leaves is taken off, too
            let [rest, squares] = deviations::<I>(x, first).map(|sum| sum * share);
            let scale = 1.0 / ((squares - rest * rest).max(0.0) + self.eps).sqrt();
            for ((v, &gamma), &beta) in x.iter_mut().zip(gamma).zip(beta) {
                *v = fma::<I>(((*v - first) - rest) * scale, gamma, beta);
            }
            activate::<I>(self.after, x);
            padding.fill(0.0);
        }
    }
}

impl ByRows for ChannelStats {
    fn result(&self) -> Rows {
        let (count, len) = (parts(self.map.extent.h) as usize, self.map.blocks() as usize * 8);
        Rows { target: self.target, elem: Elem::F32, count, len }
    }

    fn room(&self) -> usize {
        wide(self.map, self.elem) + self.map.blocks() as usize * 4
    }

    #[inline(always)]
    fn row<I: Isa>(&self, inputs: &[Slab<'_>], [z, part]: [usize; 2], out: &mut [f32], room: &mut [f32]) {
        let &[src] = inputs else { return };
        let (channels, line) = (self.map.blocks() as usize * 4, row_len(self.map));
        let height = self.map.extent.h as usize;
        let begin = part * channel_stats::ROWS as usize;
        let rows = begin..(begin + channel_stats::ROWS as usize).min(height);
        let first = (z - self.windows[0].first as usize) * height;
        #[expect(clippy::cast_precision_loss, reason = "eight rows")]
        let share = 1.0 / (rows.len() * self.map.extent.w as usize) as f32;
        let (rest, room) = room.split_at_mut(channels);
        let (mean, squares) = out.split_at_mut(channels);
        mean.fill(0.0);
        rest.fill(0.0);
        squares.fill(0.0);
        let row = |y: usize| ((first + y) * line, line);
        for y in rows.clone() {
            let (at, len) = row(y);
            let row = src.view(at, len, room);
            let mut first = 0;
            while first < channels {
                first +=
                    if channels - first >= LANES { add::<LANES>(row, channels, first, mean) } else { add::<4>(row, channels, first, mean) };
            }
        }
        for m in &mut *mean {
            *m *= share;
        }
        for y in rows {
            let (at, len) = row(y);
            let row = src.view(at, len, room);
            let mut first = 0;
            while first < channels {
                first += if channels - first >= LANES {
                    spread::<I, LANES>(row, channels, first, mean, rest, squares)
                } else {
                    spread::<I, 4>(row, channels, first, mean, rest, squares)
                };
            }
        }
        // what the rounding of the mean leaves
        for ((s, r), m) in squares.iter_mut().zip(rest).zip(mean) {
            *s = (*s - *r * *r * share).max(0.0);
            *m += *r * share;
        }
    }
}

/// Channels whose statistics stay in registers.
const LANES: usize = 16;

/// Adds `N` channels from `first` on of the voxels of a row, four sums in turn, then in pairs; tells of how
/// many channels.
#[allow(clippy::needless_range_loop, reason = "indices below constants are what compilers unroll")]
#[inline(always)]
fn add<const N: usize>(row: &[f32], channels: usize, first: usize, sums: &mut [f32]) -> usize {
    let mut parts = [[0.0; N]; 4];
    for four in row.chunks(4 * channels) {
        for (part, voxel) in parts.iter_mut().zip(four.chunks_exact(channels)) {
            let Some(x) = voxel[first..].first_chunk::<N>() else { continue };
            for i in 0..N {
                part[i] += x[i];
            }
        }
    }
    for i in 0..N {
        sums[first + i] += (parts[0][i] + parts[1][i]) + (parts[2][i] + parts[3][i]);
    }
    N
}

/// Adds differences to the mean, and their squares, of `N` channels from `first` on of the voxels of a row;
/// tells of how many channels.
#[allow(clippy::needless_range_loop, reason = "indices below constants are what compilers unroll")]
#[inline(always)]
fn spread<I: Isa, const N: usize>(
    row: &[f32],
    channels: usize,
    first: usize,
    mean: &[f32],
    rest: &mut [f32],
    squares: &mut [f32],
) -> usize {
    let (rest, squares) = (rest[first..].first_chunk_mut::<N>(), squares[first..].first_chunk_mut::<N>());
    let (Some(&mean), Some(rest), Some(squares)) = (mean[first..].first_chunk::<N>(), rest, squares) else {
        return N;
    };
    let mut parts = [[[0.0; N]; 2]; 4];
    for four in row.chunks(4 * channels) {
        for ([r, s], voxel) in parts.iter_mut().zip(four.chunks_exact(channels)) {
            let Some(x) = voxel[first..].first_chunk::<N>() else { continue };
            for i in 0..N {
                let d = x[i] - mean[i];
                r[i] += d;
                s[i] = fma::<I>(d, d, s[i]);
            }
        }
    }
    for i in 0..N {
        rest[i] += (parts[0][0][i] + parts[1][0][i]) + (parts[2][0][i] + parts[3][0][i]);
        squares[i] += (parts[0][1][i] + parts[1][1][i]) + (parts[2][1][i] + parts[3][1][i]);
    }
    N
}
