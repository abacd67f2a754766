//! Rows of a source as its readers want them: widened, resampled, normalised, activated.

use std::ops::Range;

use super::Slab;
use super::isa::{Isa, fma};
use super::math::activate;
use crate::kernels::{Interpolation, Load, Through, Window};
use crate::shape::{Elem, Extent};

/// A map that is read.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// The lower and the upper slab.
    pub slabs: [Slab<'a>; 2],
    /// Where its planes lie.
    pub window: Window,
    /// Extent at which it is read.
    pub extent: Extent,
    /// How it is stored if it is read through resampling.
    pub through: Option<Through>,
    /// Channels that are read, and those of a stored voxel.
    pub channels: usize,
    pub stride: usize,
    /// Done to what is read.
    pub load: Load,
    /// Scale and shift, and where their planes lie.
    pub norm: &'a [f32],
    pub norm_window: Window,
    /// Storage type, to which resampled values are rounded.
    pub elem: Elem,
}

impl Source<'_> {
    fn stored(&self) -> Extent {
        self.through.map_or(self.extent, |through| through.stored)
    }

    /// Numbers that reading a row takes.
    pub(super) fn scratch(stored: Extent, stride: usize, through: bool, elem: Elem) -> usize {
        let row = stored.w as usize * stride;
        (if through { 2 * row } else { 0 }) + (if elem == Elem::F16 { row } else { 0 })
    }

    /// Whether a row is what is stored.
    pub(super) fn is_plain(&self) -> bool {
        self.through.is_none() && self.load == Load::default() && matches!(self.slabs[0], Slab::F32(_))
    }

    /// The elements of the stored plane `z`, and where it begins in its slab.
    fn plane(&self, z: usize) -> (Slab<'_>, usize) {
        let elements = self.stored().plane() as usize * self.stride;
        if z < self.window.split as usize {
            (self.slabs[0], (z - self.window.first as usize) * elements)
        } else {
            (self.slabs[1], (z - self.window.split as usize) * elements)
        }
    }

    /// Columns `xs` of row `y` of plane `z`, into the channels from `lane` on of the voxels of `out`, which have `step` each.
    #[inline(always)]
    pub(super) fn row<I: Isa>(&self, [z, y]: [usize; 2], xs: Range<usize>, room: &mut [f32], out: &mut [f32], step: usize, lane: usize) {
        if self.through.is_some() {
            self.resampled::<I>([z, y], xs, room, out, step, lane);
            return;
        }
        let (slab, begin) = self.plane(z);
        let begin = begin + (y * self.extent.w as usize + xs.start) * self.stride;
        let source = slab.view(begin, xs.len() * self.stride, room);
        let channels = self.channels;
        let table = self.load.table(self.norm, self.norm_window, z, self.stride);
        if table.is_empty() && step == self.stride && channels == step {
            out[..source.len()].copy_from_slice(source);
        } else if table.is_empty() {
            for (to, from) in out.chunks_mut(step).zip(source.chunks_exact(self.stride)) {
                to[lane..lane + channels].copy_from_slice(&from[..channels]);
            }
        } else {
            let norm = [table, &table[self.stride..]];
            let mut first = 0;
            while first < channels {
                first += match channels - first {
                    32.. => self.scaled::<I, 32>(norm, first, source, out, step, lane),
                    16.. => self.scaled::<I, 16>(norm, first, source, out, step, lane),
                    4.. => self.scaled::<I, 4>(norm, first, source, out, step, lane),
                    _ => self.scaled::<I, 1>(norm, first, source, out, step, lane),
                };
            }
            return;
        }
        let voxels = xs.len();
        if step == channels {
            activate::<I>(self.load.activation, &mut out[..voxels * step]);
        } else if self.load.activation != crate::kernels::Activation::None {
            for to in out.chunks_mut(step).take(voxels) {
                activate::<I>(self.load.activation, &mut to[lane..lane + channels]);
            }
        }
    }

    /// Normalises and activates `N` channels from `first` on of every voxel; tells of how many.
    #[allow(clippy::needless_range_loop, reason = "indices below constants are what compilers unroll")]
    #[inline(always)]
    fn scaled<I: Isa, const N: usize>(
        &self,
        [scale, shift]: [&[f32]; 2],
        first: usize,
        source: &[f32],
        out: &mut [f32],
        step: usize,
        lane: usize,
    ) -> usize {
        let (scale, shift) = (scale[first..].first_chunk::<N>(), shift[first..].first_chunk::<N>());
        let (Some(&scale), Some(&shift)) = (scale, shift) else { return N };
        for (to, from) in out.chunks_mut(step).zip(source.chunks_exact(self.stride)) {
            let to = to[lane + first..].first_chunk_mut::<N>();
            let (Some(to), Some(from)) = (to, from[first..].first_chunk::<N>()) else { break };
            let mut values = [0.0; N];
            for i in 0..N {
                values[i] = fma::<I>(from[i], scale[i], shift[i]);
            }
            activate::<I>(self.load.activation, &mut values);
            *to = values;
        }
        N
    }

    /// The same of a map that is resampled: rows and planes are mixed first, then columns, as [`super::resample`] does it.
    #[inline(always)]
    fn resampled<I: Isa>(&self, [z, y]: [usize; 2], xs: Range<usize>, room: &mut [f32], out: &mut [f32], step: usize, lane: usize) {
        let Some(Through { stored, mode }) = self.through else { return };
        let (full, stride) = (self.extent, self.stride);
        let tap = |o: usize, n_in: u32, n_out: u32| {
            #[expect(clippy::cast_possible_truncation, reason = "indices along an axis are u32; weights are stored in f32")]
            let (low, high, weight) = mode.tap(o as u32, n_in, n_out);
            (low as usize, high as usize, weight as f32)
        };
        let ((z0, z1, wz), (y0, y1, wy)) = (tap(z, stored.d, full.d), tap(y, stored.h, full.h));
        let columns = tap(xs.start, stored.w, full.w).0..tap(xs.end - 1, stored.w, full.w).1 + 1;
        let len = columns.len() * stride;
        let (first, rest) = room.split_at_mut(len);
        let (second, wide) = rest.split_at_mut(len);
        let stored_row = |z: usize, y: usize| {
            let (slab, begin) = self.plane(z);
            (slab, begin + (y * stored.w as usize + columns.start) * stride)
        };
        for (z, to, used) in [(z0, &mut *first, true), (z1, &mut *second, wz > 0.0)] {
            if !used {
                continue;
            }
            let (slab, begin) = stored_row(z, y0);
            to.copy_from_slice(slab.view(begin, len, wide));
            if wy > 0.0 {
                let (slab, begin) = stored_row(z, y1);
                mix::<I>(to, slab.view(begin, len, wide), wy);
            }
        }
        if wz > 0.0 {
            mix::<I>(first, second, wz);
        }
        let channels = self.channels;
        for (x, to) in xs.zip(out.chunks_mut(step)) {
            let (x0, x1, wx) = tap(x, stored.w, full.w);
            let [a, b] = [x0, x1].map(|x| &first[(x - columns.start) * stride..][..channels]);
            let to = &mut to[lane..lane + channels];
            to.copy_from_slice(a);
            if wx > 0.0 && mode != Interpolation::Nearest {
                mix::<I>(to, b, wx);
            }
            if self.elem == Elem::F16 {
                to.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
            }
        }
    }
}

/// `a + weight (b - a)`.
#[inline(always)]
fn mix<I: Isa>(a: &mut [f32], b: &[f32], weight: f32) {
    for (a, &b) in a.iter_mut().zip(b) {
        *a = fma::<I>(weight, b - *a, *a);
    }
}
