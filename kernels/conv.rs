//! What the convolution kernels share: their shape and the order of packed weights.

use std::borrow::Cow;

use super::load::{LOAD_A, LOAD_B};
use super::resize::Sample;
use super::{Activation, Binding, Interpolation, Load, Reach, Source, Taps, Target, Variant, Window, elements};
use crate::shape::{Elem, Extent, Map};

/// Output channels that one invocation computes, and the block width of packed weights.
pub(super) const OUT_BLOCK: u32 = 8;

/// Weights between a block of four input channels and one of eight output channels.
const TAP: usize = 4 * OUT_BLOCK as usize;

/// How a source is stored that a convolution reads through resampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Through {
    /// Its extent.
    pub stored: Extent,
    /// How it is resampled.
    pub mode: Interpolation,
}

/// One convolution of one map, or of the channel concatenation of two maps that is never stored, or of one map with a second
/// one added to the sums.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvShape {
    /// Extent at which the sources are read.
    pub input: Extent,
    /// Channels of the sources; `[c, 0]` when there is one.
    pub in_channels: [u32; 2],
    /// Whether the second map, of the shape of the output, is added to the sums before the activation; nothing is concatenated then.
    pub residual: bool,
    /// Output channels.
    pub out_channels: u32,
    /// Kernel size along D, H, W.
    pub kernel: [u32; 3],
    /// Stride along D, H, W.
    pub stride: [u32; 3],
    /// Zero padding on both sides along D, H, W.
    pub padding: [u32; 3],
    /// Done to the voxels of each source as they are read; padding stays zero. Nothing to a source read through resampling.
    pub loads: [Load; 2],
    /// Each source that is stored at another extent and read through resampling to `input`, its values rounded to the storage
    /// type; only [`super::conv3d_direct`] reads so, and both sources through the same.
    pub upsampled: [Option<Through>; 2],
    /// Applied to the sum.
    pub activation: Activation,
    /// Storage type.
    pub elem: Elem,
    /// Where the sources' planes lie: the maps, then scale and shift of those that are normalised.
    pub windows: [Window; 4],
    /// What is written.
    pub target: Target,
}

impl ConvShape {
    /// Bindings of a kernel whose maps lie in two slabs each; see [`ConvShape::bind`].
    pub(super) const BINDINGS_IN_TWO: &'static [Binding] = &[
        Binding::Params,
        Binding::Read,
        Binding::Read,
        Binding::Read,
        Binding::Read,
        Binding::ReadF32,
        Binding::ReadF32,
        Binding::ReadF32,
        Binding::Write,
    ];

    /// Extent of the output: `(n + 2p - k) / s + 1` along each axis, as in PyTorch.
    #[must_use]
    pub fn output(&self) -> Extent {
        let n = self.input.axes();
        let mut out = [0; 3];
        for axis in 0..3 {
            out[axis] = (n[axis] + 2 * self.padding[axis]).saturating_sub(self.kernel[axis]) / self.stride[axis] + 1;
        }
        out.into()
    }

    /// The same pointwise convolution of maps whose planes are one row, as which it is cut into tiles without edges.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the planner refuses planes above u32")]
    pub fn flattened(self) -> Self {
        Self { input: Extent::new(self.input.d, 1, self.input.plane() as u32), ..self }
    }

    /// The output map.
    #[must_use]
    pub fn map(&self) -> Map {
        Map::new(self.output(), self.out_channels)
    }

    /// What is read: the maps, then scale and shift of those that are normalised.
    pub(super) fn sources(&self, reach: Reach) -> Vec<Source> {
        let map = |slot: usize| match (reach, self.upsampled[slot]) {
            _ if slot == 1 && self.residual => Source { planes: self.second().extent.d, reach: Reach::Same },
            (Reach::Taps(taps), Some(Through { stored, mode })) => {
                Source { planes: stored.d, reach: Reach::TapsOfResized { taps, planes: self.input.d, mode } }
            }
            _ => Source { planes: self.input.d, reach },
        };
        let planes = [self.input.d, self.second().extent.d];
        let norms = (0..2).filter_map(|slot| self.loads[slot].norm.map(|scope| scope.source(scope.planes(planes[slot]))));
        (0..self.map_count()).map(map).chain(norms).collect()
    }

    /// What sources are read through that are resampled.
    pub(super) fn through(&self) -> Option<Through> {
        self.upsampled.into_iter().flatten().next()
    }

    /// The second map as it is read: what is concatenated or added.
    fn second(&self) -> Map {
        if self.residual { self.map() } else { Map::new(self.input, self.in_channels[1]) }
    }

    /// Extent of a source as it is stored.
    fn stored(&self, slot: usize) -> Extent {
        self.upsampled[slot].map_or(self.input, |through| through.stored)
    }

    /// The channels of voxel (z, y, x) of a source bound as `lo` and `hi`, resampled where it is read through that.
    fn voxel<'a>(&self, slot: usize, [lo, hi]: [&'a [f32]; 2], [z, y, x]: [usize; 3]) -> Cow<'a, [f32]> {
        let stored = self.stored(slot);
        let channels = self.blocks()[slot] as usize * 4;
        let plane = |z: usize| self.window(slot).plane(lo, hi, z, stored.plane() as usize * channels);
        let Some(Through { mode, .. }) = self.upsampled[slot] else {
            return Cow::Borrowed(&plane(z)[(y * stored.w as usize + x) * channels..][..channels]);
        };
        #[expect(clippy::cast_possible_truncation, reason = "indices along an axis are u32")]
        let taps = [
            mode.tap(z as u32, stored.d, self.input.d),
            mode.tap(y as u32, stored.h, self.input.h),
            mode.tap(x as u32, stored.w, self.input.w),
        ];
        let (below, above, weight) = taps[0];
        let below = plane(below as usize);
        let above = if weight > 0.0 { plane(above as usize) } else { below };
        let sample = Sample { planes: [below, above], taps, row: stored.w as usize, channels };
        (0..channels).map(|c| self.elem.round(sample.channel(c))).collect()
    }

    fn map_count(&self) -> usize {
        if self.in_channels[1] > 0 || self.residual { 2 } else { 1 }
    }

    /// Which of the sources is the scale and shift of a map.
    fn norm_slot(&self, map: usize) -> Option<usize> {
        self.loads[map].norm?;
        Some(self.map_count() + usize::from(map == 1 && self.loads[0].norm.is_some()))
    }

    /// Where the planes of a map lie; the first where there is no second.
    pub(super) fn window(&self, map: usize) -> Window {
        self.windows[map.min(self.map_count() - 1)]
    }

    /// Where the planes of the scale and shift of a map lie.
    pub(super) fn norm_window(&self, map: usize) -> Window {
        self.norm_slot(map).map_or(Window::whole(0), |slot| self.windows[slot])
    }

    /// The shader constants that depend on how many sources there are and what is done to them.
    pub(super) fn source_constants(&self, variant: Variant) -> Variant {
        let variant = variant.set("CONCAT", u8::from(self.in_channels[1] > 0));
        let variant = if self.residual { variant.set("RESIDUAL", 1u8) } else { variant };
        variant.load(LOAD_A, self.loads[0]).load(LOAD_B, self.loads[1])
    }

    /// The shader constants of the window, and of how the sources are read.
    pub(super) fn window_constants(&self, variant: Variant) -> Variant {
        let mut variant = variant.window(self.kernel, self.stride, self.padding);
        for (name, upsampled) in ["UPSAMPLED_A", "UPSAMPLED_B"].into_iter().zip(self.upsampled) {
            variant = variant.set(name, u8::from(upsampled.is_some()));
        }
        match self.through() {
            Some(Through { mode, .. }) => variant.set("RESIZE", mode.code()),
            None => variant,
        }
    }

    /// The window along D.
    pub(super) fn taps(&self) -> Taps {
        Taps { kernel: self.kernel[0], stride: self.stride[0], padding: self.padding[0] }
    }

    pub(super) fn operands(&mut self) -> (&mut [Window], &mut Target) {
        let n = self.map_count() + self.loads.iter().filter(|load| load.norm.is_some()).count();
        (&mut self.windows[..n], &mut self.target)
    }

    /// Bindings of both maps, `slabs` each, of their scale and shift, and the weights; a shader binds its second map and
    /// its scales even where there are none.
    pub(super) fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T], slabs: usize) -> Vec<T> {
        let second = &sources[self.map_count() - 1];
        let none = constants.first().copied().unwrap_or(sources[0][0]);
        let norms = [0, 1].map(|map| self.norm_slot(map).map_or(none, |slot| sources[slot][0]));
        [&sources[0][..slabs], &second[..slabs], &norms, constants].concat()
    }

    /// Blocks of four input channels of each source.
    pub(super) fn blocks(&self) -> [u32; 2] {
        self.in_channels.map(|c| c.div_ceil(4))
    }

    /// Blocks of eight output channels.
    pub(super) fn out_blocks(&self) -> u32 {
        self.out_channels.div_ceil(OUT_BLOCK)
    }

    /// Of a kernel that makes values between voxels anew for every tap and block of output channels.
    pub(super) fn cost(&self) -> super::Cost {
        let taps: u64 = self.kernel.iter().map(|&k| u64::from(k)).product();
        self.cost_of(taps * u64::from(self.out_blocks()) * self.output().plane() * u64::from(self.target.count))
    }

    /// Of a kernel that makes `mixes` voxels of a source that it reads through resampling.
    pub(super) fn cost_of(&self, mixes: u64) -> super::Cost {
        let taps: u64 = self.kernel.iter().map(|&k| u64::from(k)).product();
        let cin: u64 = self.in_channels.iter().map(|&c| u64::from(c)).sum();
        let voxels = self.output().plane() * u64::from(self.target.count);
        let share = |slot: usize| {
            let planes = self.target.count * self.stride[0];
            elements(self.input, self.in_channels[slot], planes) * self.stored(slot).voxels() / self.input.voxels().max(1)
        };
        let added = if self.residual { elements(self.output(), self.out_channels, self.target.count) } else { 0 };
        let read = share(0) + share(1) + added;
        let mixed: u64 = (0..2).filter_map(|s| Some(self.upsampled[s]?.mode.flops() * u64::from(self.in_channels[s]))).sum();
        let written = elements(self.output(), self.out_channels, self.target.count);
        super::Cost {
            flops: 2 * taps * cin * u64::from(self.out_channels) * voxels + mixes * mixed + added,
            bytes: (read + written) * self.elem.bytes() + packed_len(self.in_channels, self.out_channels, self.kernel) * 4,
        }
    }

    pub(super) fn sizes(&self) -> Vec<u64> {
        let second = self.second();
        let stored = if self.residual { second.extent } else { self.stored(1) };
        let source = |extent: Extent, c: u32| elements(extent, c, extent.d).max(4);
        let (a, b) = (source(self.stored(0), self.in_channels[0]), source(stored, second.channels));
        vec![
            a,
            a,
            b,
            b,
            self.loads[0].table_len(self.input.d, self.blocks()[0]),
            self.loads[1].table_len(second.extent.d, second.blocks()),
            packed_len(self.in_channels, self.out_channels, self.kernel),
            elements(self.output(), self.out_channels, self.output().d),
        ]
    }

    /// The obvious loops over packed weights, f64 accumulation.
    pub(super) fn reference(&self, inputs: &[&[f32]], output: &mut [f32]) {
        use rayon::prelude::*;
        let [a_lo, a_hi, b_lo, b_hi, a_norm, b_norm, weight] = inputs else { return };
        let out = self.output();
        let [ba, bb] = self.blocks().map(|b| b as usize);
        let out_blocks = self.map().blocks() as usize;
        let cin = (ba + bb) * 4;
        let [kd, kh, kw] = self.kernel.map(|k| k as usize);
        let [n_d, n_h, n_w] = self.input.axes().map(|n| n as usize);
        let bias_at = self.out_blocks() as usize * kd * kh * kw * cin * OUT_BLOCK as usize;
        let row = out.w as usize * out_blocks * 4;
        self.target.planes(output, out.h as usize * row).for_each(|(z, plane)| {
            let (added, added_table): (&[f32], &[f32]) = if self.residual {
                let table = self.loads[1].table(b_norm, self.norm_window(1), z, out_blocks * 4);
                (self.window(1).plane(b_lo, b_hi, z, out.h as usize * row), table)
            } else {
                (&[], &[])
            };
            plane.par_chunks_mut(row).enumerate().for_each(|(y, line)| {
                let mut acc = vec![0.0f64; self.out_blocks() as usize * OUT_BLOCK as usize];
                let mut voxel = Vec::with_capacity(cin);
                for x in 0..out.w as usize {
                    acc.iter_mut().enumerate().for_each(|(o, s)| *s = f64::from(weight[bias_at + o]));
                    for i in 0..kd {
                        let Some(sz) = tap(z, i, self.stride[0], self.padding[0], n_d) else { continue };
                        let tables = [(a_norm, ba), (b_norm, bb)];
                        let table = |m: usize| self.loads[m].table(tables[m].0, self.norm_window(m), sz, tables[m].1 * 4);
                        for j in 0..kh {
                            let Some(sy) = tap(y, j, self.stride[1], self.padding[1], n_h) else { continue };
                            for k in 0..kw {
                                let Some(sx) = tap(x, k, self.stride[2], self.padding[2], n_w) else { continue };
                                voxel.clear();
                                self.loads[0].apply(&self.voxel(0, [a_lo, a_hi], [sz, sy, sx]), table(0), &mut voxel);
                                if bb > 0 {
                                    self.loads[1].apply(&self.voxel(1, [b_lo, b_hi], [sz, sy, sx]), table(1), &mut voxel);
                                }
                                for (c, &v) in voxel.iter().enumerate() {
                                    for (block, sums) in acc.chunks_exact_mut(OUT_BLOCK as usize).enumerate() {
                                        let w = ((((block * kd + i) * kh + j) * kw + k) * cin + c) * OUT_BLOCK as usize;
                                        for (s, &w) in sums.iter_mut().zip(&weight[w..w + OUT_BLOCK as usize]) {
                                            *s += v * f64::from(w);
                                        }
                                    }
                                }
                            }
                        }
                    }
                    if self.residual {
                        voxel.clear();
                        self.loads[1].apply(&added[y * row + x * out_blocks * 4..][..out_blocks * 4], added_table, &mut voxel);
                        acc.iter_mut().zip(&voxel).for_each(|(s, v)| *s += v);
                    }
                    for (o, y) in line[x * out_blocks * 4..(x + 1) * out_blocks * 4].iter_mut().enumerate() {
                        #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                        {
                            *y = self.activation.apply(acc[o]) as f32;
                        }
                    }
                }
            });
        });
    }
}

/// Source index of tap `k` for output index `o`, if inside `0..n`.
fn tap(o: usize, k: usize, stride: u32, padding: u32, n: usize) -> Option<usize> {
    (o * stride as usize + k).checked_sub(padding as usize).filter(|&s| s < n)
}

/// Elements of the packed weights and bias of a convolution: whole blocks of four input and eight output channels.
#[must_use]
pub fn packed_len(in_channels: [u32; 2], out_channels: u32, kernel: [u32; 3]) -> u64 {
    let cin: u64 = in_channels.iter().map(|&c| u64::from(c.div_ceil(4)) * 4).sum();
    let taps: u64 = kernel.iter().map(|&k| u64::from(k)).product();
    (u64::from(out_channels.div_ceil(OUT_BLOCK)) * u64::from(OUT_BLOCK) * (taps * cin + 1)).next_multiple_of(TAP as u64)
}

/// Packs the rows of a weight in PyTorch's order, `[I][KD][KH][KW]` for each output with its bias, into the order the shaders
/// read, f32 whatever maps are stored in: `[O/8][KD][KH][KW][I padded][8]`, then the bias `[O padded]`. Padding is zero. Rows are taken one at a time: a
/// weight is never held besides its packed form.
#[must_use]
pub fn pack_weights(
    rows: impl IntoIterator<Item = (Vec<f64>, f64)>,
    in_channels: [u32; 2],
    out_channels: u32,
    kernel: [u32; 3],
) -> Vec<f32> {
    let taps = kernel.iter().map(|&k| k as usize).product::<usize>();
    let [ca, cb] = in_channels.map(|c| c as usize);
    let padded_a = ca.div_ceil(4) * 4;
    let cin = padded_a + cb.div_ceil(4) * 4;
    let block = OUT_BLOCK as usize;
    let blocks = (out_channels as usize).div_ceil(block);
    let mut packed = vec![0.0f32; (blocks * block * (taps * cin + 1)).next_multiple_of(TAP)];
    let bias_at = blocks * block * taps * cin;
    for (o, (row, bias)) in rows.into_iter().take(out_channels as usize).enumerate() {
        for (i, of_input) in row.chunks_exact(taps).take(ca + cb).enumerate() {
            let c = if i < ca { i } else { padded_a + i - ca };
            for (t, &w) in of_input.iter().enumerate() {
                #[expect(clippy::cast_possible_truncation, reason = "f64 only for folding")]
                {
                    packed[(((o / block) * taps + t) * cin + c) * block + o % block] = w as f32;
                }
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "f64 only for folding")]
        {
            packed[bias_at + o] = bias as f32;
        }
    }
    packed
}
