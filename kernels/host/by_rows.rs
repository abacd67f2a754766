//! Host halves of the kernels whose result is computed a row at a time: sums of maps, pooling, resampling.

use half::slice::HalfFloatSliceExt;

use super::conv::one_source;
use super::isa::{self, Isa, Work, fma};
use super::math::{activate, exp};
use super::rows::Source;
use super::{HostHalf, Scratch, Slab, SlabMut, each};
use crate::kernels::combine::Combine;
use crate::kernels::deformable_sampling::DeformableSampling;
use crate::kernels::normalise::Normalise;
use crate::kernels::pool3d::Pool3d;
use crate::kernels::resize::Resize;
use crate::kernels::{Kernel, Load, Spread, Target, Through, Window};
use crate::shape::{Elem, Map};

/// A result as rows.
pub(super) struct Rows {
    /// The planes that are written.
    pub target: Target,
    /// The type in which elements are stored.
    pub elem: Elem,
    /// Rows of a plane.
    pub count: usize,
    /// Elements of a row.
    pub len: usize,
}

impl Rows {
    /// The rows of a map, channels last.
    pub(super) fn of(map: Map, target: Target, elem: Elem) -> Self {
        Self { target, elem, count: map.extent.h as usize, len: row_len(map) }
    }
}

/// A kernel that computes one row of its result from its sources.
pub(super) trait ByRows: Kernel + Sync {
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
            // no closure: it would be compiled without the instructions of `I`
            match &mut self.out {
                SlabMut::F32(out) => {
                    self.kernel.row::<I>(self.inputs, at, &mut out[i * len..][..len], room);
                }
                SlabMut::F16(out) => {
                    self.kernel.row::<I>(self.inputs, at, narrowed, room);
                    out[i * len..][..len].convert_from_f32_slice(narrowed);
                }
                SlabMut::Words(_) => {}
            }
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

pub(super) fn row_len(map: Map) -> usize {
    map.extent.w as usize * map.blocks() as usize * 4
}

/// Numbers that widening a row of a map takes.
pub(super) fn wide(map: Map, elem: Elem) -> usize {
    if elem == Elem::F16 { row_len(map) } else { 0 }
}

/// A whole map as a source of the given loading, all of whose stored channels are read.
pub(super) fn whole<'a>(slab: Slab<'a>, map: Map, loading: (Load, Slab<'a>), windows: [Window; 2], elem: Elem) -> Source<'a> {
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
                for (v, &slope) in voxel.iter_mut().zip(slopes) {
                    *v = if *v < 0.0 { *v * slope } else { *v };
                }
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
        match self.spread {
            Spread::Nothing => self.join(out, other),
            Spread::Channels => {
                for (voxel, v) in out.chunks_exact_mut(width).zip(other.chunks_exact(b_width)) {
                    for y in voxel {
                        *y = if self.multiply { *y * v[0] } else { *y + v[0] };
                    }
                }
            }
            Spread::Voxels => {
                for voxel in out.chunks_exact_mut(width) {
                    self.join(voxel, other);
                }
            }
        }
        activate::<I>(self.activation, out);
    }
}

impl Combine {
    #[inline(always)]
    fn join(&self, a: &mut [f32], b: &[f32]) {
        if self.multiply {
            for (a, &b) in a.iter_mut().zip(b) {
                *a *= b;
            }
        } else {
            for (a, &b) in a.iter_mut().zip(b) {
                *a += b;
            }
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
                            for (v, &t) in voxel.iter_mut().zip(tap) {
                                *v += t;
                            }
                        } else {
                            for (v, &t) in voxel.iter_mut().zip(tap) {
                                *v = if t > *v || t.is_nan() { t } else { *v };
                            }
                        }
                    }
                }
            }
        }
        if self.average {
            #[expect(clippy::cast_precision_loss, reason = "taps are few")]
            let share = self.kernel.iter().product::<u32>() as f32;
            for v in out {
                *v /= share;
            }
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
                let mut total = 0.0;
                for &w in own {
                    total += exp::<I>(w - high);
                }
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
                        for (s, &v) in sums.iter_mut().zip(values) {
                            *s = fma::<I>(weight, v, *s);
                        }
                    }
                }
            }
        }
    }
}
