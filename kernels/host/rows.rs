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
            let (scale, shift) = (&table[..channels], &table[self.stride..][..channels]);
            for (to, from) in out.chunks_mut(step).zip(source.chunks_exact(self.stride)) {
                let to = &mut to[lane..lane + channels];
                for (((y, &x), &a), &b) in to.iter_mut().zip(&from[..channels]).zip(scale).zip(shift) {
                    *y = fma::<I>(x, a, b);
                }
            }
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
        let fetch = |z: usize, y: usize, wide: &mut [f32], to: &mut [f32], weight: f32| {
            let (slab, begin) = self.plane(z);
            let row = slab.view(begin + (y * stored.w as usize + columns.start) * stride, len, wide);
            if weight < 0.0 {
                to.copy_from_slice(row);
            } else {
                to.iter_mut().zip(row).for_each(|(a, &b)| *a = fma::<I>(weight, b - *a, *a));
            }
        };
        fetch(z0, y0, wide, first, -1.0);
        if wy > 0.0 {
            fetch(z0, y1, wide, first, wy);
        }
        if wz > 0.0 {
            fetch(z1, y0, wide, second, -1.0);
            if wy > 0.0 {
                fetch(z1, y1, wide, second, wy);
            }
            first.iter_mut().zip(&*second).for_each(|(a, &b)| *a = fma::<I>(wz, b - *a, *a));
        }
        let channels = self.channels;
        for (x, to) in xs.zip(out.chunks_mut(step)) {
            let (x0, x1, wx) = tap(x, stored.w, full.w);
            let [a, b] = [x0, x1].map(|x| &first[(x - columns.start) * stride..][..channels]);
            let to = &mut to[lane..lane + channels];
            to.copy_from_slice(a);
            if wx > 0.0 && mode != Interpolation::Nearest {
                to.iter_mut().zip(b).for_each(|(a, &b)| *a = fma::<I>(wx, b - *a, *a));
            }
            if self.elem == Elem::F16 {
                to.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
            }
        }
    }
}
