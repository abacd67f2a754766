//! Host halves of the kernels whose result is computed a row at a time: norms, sums of maps, pooling, resampling.

use super::conv::one_source;
use super::isa::{self, Isa, Work, fma};
use super::math::{activate, exp};
use super::rows::Source;
use super::{HostHalf, Scratch, Slab, SlabMut, each};
use crate::kernels::channel_stats::{self, ChannelStats, parts};
use crate::kernels::combine::Combine;
use crate::kernels::deformable_sampling::DeformableSampling;
use crate::kernels::layer_norm::LayerNorm;
use crate::kernels::normalise::Normalise;
use crate::kernels::pool3d::Pool3d;
use crate::kernels::resize::Resize;
use crate::kernels::{Kernel, Load, Spread, Target, Through, Window};
use crate::shape::{Elem, Map};

/// A result as rows.
struct Rows {
    /// The planes that are written.
    target: Target,
    /// The type in which elements are stored.
    elem: Elem,
    /// Rows of a plane.
    count: usize,
    /// Elements of a row.
    len: usize,
}

impl Rows {
    /// The rows of a map, channels last.
    fn of(map: Map, target: Target, elem: Elem) -> Self {
        Self { target, elem, count: map.extent.h as usize, len: row_len(map) }
    }
}

/// A kernel that computes one row of its result from its sources.
trait ByRows: Kernel + Sync {
    /// The layout of the result.
    fn result(&self) -> Rows;
    /// The f32 numbers of scratch that a row needs.
    fn room(&self) -> usize;
    /// Computes row `y` of plane `z`, all of whose elements are written.
    fn row<I: Isa>(&self, inputs: &[Slab<'_>], at: [usize; 2], out: &mut [f32], room: &mut [f32]);
}

struct RowTask<'a, 'g, K> {
    kernel: &'g K,
    inputs: &'g [Slab<'a>],
    /// Number of the first row among those of the target.
    at: usize,
    out: SlabMut<'g>,
    room: &'g mut [f32],
}

impl<K: ByRows> Work for RowTask<'_, '_, K> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let Rows { target, count: rows, len, .. } = self.kernel.result();
        let begin = target.begin as usize;
        let (narrowed, room) = self.room.split_at_mut(if matches!(self.out, SlabMut::F16(_)) { len } else { 0 });
        for i in 0..self.out.len() / len {
            let at = [begin + (self.at + i) / rows, (self.at + i) % rows];
            self.out.fill(i * len, len, narrowed, |out| self.kernel.row::<I>(self.inputs, at, out, room));
        }
    }
}

/// Elements of a task: enough to be worth a thread's while.
const TASK: usize = 1 << 15;

impl<K: ByRows> HostHalf for K {
    fn scratch(&self) -> u64 {
        let Rows { elem, len, .. } = self.result();
        let narrowed = if elem == Elem::F16 { len } else { 0 };
        (self.room() + narrowed) as u64
    }

    fn run(&self, inputs: &[Slab<'_>], output: SlabMut<'_>, scratch: &Scratch) {
        let Rows { target, count: rows, len, .. } = self.result();
        let out = output.planes_of(&target, rows * len);
        let elements = out.len();
        let most = (elements / len).div_ceil(2 * rayon::current_num_threads());
        let at_once = TASK.div_ceil(len).clamp(1, most.max(1));
        let tasks = out.parts(at_once * len).into_iter().enumerate().collect();
        each(tasks, 8 * elements as u64, scratch, |(i, out), room| {
            isa::run(RowTask { kernel: self, inputs, at: i * at_once, out, room });
        });
    }
}

fn row_len(map: Map) -> usize {
    map.extent.w as usize * map.blocks() as usize * 4
}

/// Numbers that widening a row of a map takes.
fn wide(map: Map, elem: Elem) -> usize {
    if elem == Elem::F16 { row_len(map) } else { 0 }
}

/// A whole map as a source of the given loading, all of whose stored channels are read.
fn whole<'a>(slab: Slab<'a>, map: Map, loading: (Load, Slab<'a>), windows: [Window; 2], elem: Elem) -> Source<'a> {
    one_source([slab; 2], map.extent, map.blocks() * 4, loading, windows, elem)
}

impl ByRows for Normalise {
    fn result(&self) -> Rows {
        Rows::of(self.map, self.target, self.elem)
    }

    fn room(&self) -> usize {
        wide(self.map, self.elem)
    }

    #[inline(always)]
    fn row<I: Isa>(&self, inputs: &[Slab<'_>], at: [usize; 2], out: &mut [f32], room: &mut [f32]) {
        let &[src, norm, constant] = inputs else { return };
        let channels = self.map.blocks() as usize * 4;
        let source = whole(src, self.map, (self.scaled(), norm), self.windows, self.elem);
        source.row::<I>(at, 0..self.map.extent.w as usize, room, out, channels, 0);
        if self.prelu {
            let slopes = &constant.floats()[2 * channels..][..channels];
            for voxel in out.chunks_exact_mut(channels) {
                voxel.iter_mut().zip(slopes).for_each(|(v, &slope)| *v = if *v < 0.0 { *v * slope } else { *v });
            }
        }
    }
}

impl ByRows for Combine {
    fn result(&self) -> Rows {
        Rows::of(self.map, self.target, self.elem)
    }

    fn room(&self) -> usize {
        row_len(self.second()) + wide(self.map, self.elem)
    }

    #[inline(always)]
    fn row<I: Isa>(&self, inputs: &[Slab<'_>], [z, y]: [usize; 2], out: &mut [f32], room: &mut [f32]) {
        let &[a, b, a_norm, b_norm] = inputs else { return };
        let second = self.second();
        let [width, b_width] = [self.map, second].map(|map| map.blocks() as usize * 4);
        let windows = |map: usize| [self.windows[map], self.norm_window(map)];
        let source = whole(a, self.map, (self.loads[0], a_norm), windows(0), self.elem);
        let (other, room) = room.split_at_mut(row_len(second));
        source.row::<I>([z, y], 0..self.map.extent.w as usize, room, out, width, 0);
        let source = whole(b, second, (self.loads[1], b_norm), windows(1), self.elem);
        let at = if self.spread == Spread::Voxels { [0, 0] } else { [z, y] };
        source.row::<I>(at, 0..second.extent.w as usize, room, other, b_width, 0);
        let join = |y: &mut f32, v: f32| if self.multiply { *y *= v } else { *y += v };
        match self.spread {
            Spread::Nothing => out.iter_mut().zip(&*other).for_each(|(y, &v)| join(y, v)),
            Spread::Channels => {
                for (voxel, v) in out.chunks_exact_mut(width).zip(other.chunks_exact(b_width)) {
                    voxel.iter_mut().for_each(|y| join(y, v[0]));
                }
            }
            Spread::Voxels => {
                for voxel in out.chunks_exact_mut(width) {
                    voxel.iter_mut().zip(&*other).for_each(|(y, &v)| join(y, v));
                }
            }
        }
        activate::<I>(self.activation, out);
    }
}

/// The sum in sixteen parts, which are added in pairs.
#[allow(clippy::needless_range_loop, reason = "halves of one array")]
#[inline(always)]
fn sum(values: impl Fn(usize) -> f32, n: usize) -> f32 {
    let mut parts = [0.0f32; 16];
    let whole = n / 16 * 16;
    for at in (0..whole).step_by(16) {
        for (i, part) in parts.iter_mut().enumerate() {
            *part += values(at + i);
        }
    }
    for at in whole..n {
        parts[at - whole] += values(at);
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            parts[i] += parts[i + half];
        }
    }
    parts[0]
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
            let first = sum(|i| x[i], channels) * share;
            // what the rounding of the mean leaves is taken off, too
            let rest = sum(|i| x[i] - first, channels) * share;
            let squares = sum(|i| (x[i] - first) * (x[i] - first), channels) * share;
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
        for y in rows.clone() {
            for x in src.view((first + y) * line, line, room).chunks_exact(channels) {
                mean.iter_mut().zip(x).for_each(|(m, &x)| *m += x);
            }
        }
        mean.iter_mut().for_each(|m| *m *= share);
        rest.fill(0.0);
        squares.fill(0.0);
        for y in rows.clone() {
            for x in src.view((first + y) * line, line, room).chunks_exact(channels) {
                for (((s, r), &m), &x) in squares.iter_mut().zip(&mut *rest).zip(&*mean).zip(x) {
                    let d = x - m;
                    *r += d;
                    *s = fma::<I>(d, d, *s);
                }
            }
        }
        // what the rounding of the mean leaves
        for ((s, r), m) in squares.iter_mut().zip(rest).zip(mean) {
            *s = (*s - *r * *r * share).max(0.0);
            *m += *r * share;
        }
    }
}

impl ByRows for Pool3d {
    fn result(&self) -> Rows {
        Rows::of(Map::new(self.output(), self.channels), self.target, self.elem)
    }

    fn room(&self) -> usize {
        wide(Map::new(self.input, self.channels), self.elem)
    }

    #[inline(always)]
    fn row<I: Isa>(&self, inputs: &[Slab<'_>], [z, y]: [usize; 2], out: &mut [f32], room: &mut [f32]) {
        let &[lo, hi] = inputs else { return };
        let channels = self.channels.next_multiple_of(4) as usize;
        let n = self.input.axes().map(|n| n as usize);
        let taps = |axis: usize, o: usize| {
            let [k, s, p] = [self.kernel, self.stride, self.padding].map(|a| a[axis] as usize);
            (o * s).saturating_sub(p)..(o * s + k - p).min(n[axis])
        };
        out.fill(if self.average { 0.0 } else { f32::NEG_INFINITY });
        let (window, line) = (self.windows[0], n[2] * channels);
        for z in taps(0, z) {
            let (slab, first) = if z < window.split as usize { (lo, window.first) } else { (hi, window.split) };
            for y in taps(1, y) {
                let row = slab.view(((z - first as usize) * n[1] + y) * line, line, room);
                for (x, voxel) in out.chunks_exact_mut(channels).enumerate() {
                    for tap in taps(2, x) {
                        let tap = &row[tap * channels..][..channels];
                        if self.average {
                            voxel.iter_mut().zip(tap).for_each(|(v, &t)| *v += t);
                        } else {
                            voxel.iter_mut().zip(tap).for_each(|(v, &t)| *v = if t > *v || t.is_nan() { t } else { *v });
                        }
                    }
                }
            }
        }
        if self.average {
            #[expect(clippy::cast_precision_loss, reason = "taps are few")]
            let share = self.kernel.iter().product::<u32>() as f32;
            out.iter_mut().for_each(|v| *v /= share);
        }
    }
}

impl ByRows for Resize {
    fn result(&self) -> Rows {
        Rows::of(Map::new(self.output, self.channels), self.target, self.elem)
    }

    fn room(&self) -> usize {
        Source::scratch(self.input, self.channels.next_multiple_of(4) as usize, true, self.elem)
    }

    #[inline(always)]
    fn row<I: Isa>(&self, inputs: &[Slab<'_>], at: [usize; 2], out: &mut [f32], room: &mut [f32]) {
        let &[lo, hi] = inputs else { return };
        let channels = self.channels.next_multiple_of(4);
        let windows = [self.windows[0]; 2];
        let source = Source {
            through: Some(Through { stored: self.input, mode: self.mode }),
            ..one_source([lo, hi], self.output, channels, (Load::default(), Slab::F32(&[])), windows, self.elem)
        };
        source.row::<I>(at, 0..self.output.w as usize, room, out, channels as usize, 0);
    }
}

impl ByRows for DeformableSampling {
    fn result(&self) -> Rows {
        Rows::of(Map::new(self.queries, self.channels), self.target, self.elem)
    }

    fn room(&self) -> usize {
        let places = self.places() as usize;
        2 * 3 * places.next_multiple_of(4) + self.channels as usize
    }

    #[inline(always)]
    fn row<I: Isa>(&self, inputs: &[Slab<'_>], [z, y]: [usize; 2], out: &mut [f32], room: &mut [f32]) {
        let [offsets, weights, levels @ ..] = inputs else { return };
        let all = self.places() as usize;
        let (stride, dim) = (self.channels.next_multiple_of(4) as usize, (self.channels / self.heads) as usize);
        let places = all / self.heads as usize;
        let [n_d, n_h, n_w] = self.queries.axes().map(|n| n as usize);
        let (own_room, room) = room.split_at_mut(all.next_multiple_of(4));
        let (shift_room, room) = room.split_at_mut(3 * all);
        out.fill(0.0);
        for (x, out) in out.chunks_exact_mut(stride).enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "extents are small")]
            let place = [(z as f64 + 0.5) / n_d as f64, (x as f64 + 0.5) / n_w as f64, (y as f64 + 0.5) / n_h as f64];
            let at = |slot: usize| ((z - self.windows[slot].first as usize) * n_h + y) * n_w + x;
            let own = weights.view(at(1) * all.next_multiple_of(4), all, own_room);
            let shifts = offsets.view(at(0) * (3 * all).next_multiple_of(4), 3 * all, shift_room);
            for (head, sums) in out.chunks_exact_mut(dim).take(self.heads as usize).enumerate() {
                let own = &own[head * places..][..places];
                let high = own.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let total: f32 = own.iter().map(|&w| exp::<I>(w - high)).sum();
                for (i, (&w, shift)) in own.iter().zip(shifts[head * places * 3..].as_chunks::<3>().0).enumerate() {
                    let level = i / self.points as usize;
                    let [d, h, w_n] = self.levels[level].axes();
                    // component 0 is a fraction of D, taken along W, and so on
                    let axes = [(w_n, d), (h, w_n), (d, h)];
                    let sampled = [0, 1, 2].map(|a| (place[a] + f64::from(shift[a]) / f64::from(axes[a].1)) * f64::from(axes[a].0) - 0.5);
                    let share = f64::from(exp::<I>(w - high) / total);
                    for corner in 0..8 {
                        let side = [corner & 1, corner >> 1 & 1, corner >> 2];
                        let part = [0, 1, 2].map(|a: usize| sampled[a] - sampled[a].floor());
                        let weight = [0, 1, 2].iter().fold(share, |w, &a| w * if side[a] == 1 { part[a] } else { 1.0 - part[a] });
                        let voxel = [0, 1, 2].map(|a: usize| sampled[a].floor() + f64::from(side[a]));
                        if (0..3).any(|a| voxel[a] < 0.0 || voxel[a] >= f64::from(axes[a].0)) {
                            continue;
                        }
                        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "inside the map")]
                        let ([x, y, z], weight) = (voxel.map(|v| v as usize), weight as f32);
                        let begin = ((z * h as usize + y) * w_n as usize + x) * stride + head * dim;
                        let values = levels[level].view(begin, dim, room);
                        sums.iter_mut().zip(values).for_each(|(s, &v)| *s = fma::<I>(weight, v, *s));
                    }
                }
            }
        }
    }
}
