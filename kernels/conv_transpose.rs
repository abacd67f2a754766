//! What the transposed convolution kernels share: their shape and their twin.

use super::load::LOAD_A;
use super::{Activation, BindingSizes, Cost, Load, Reach, Source, Taps, Target, Variant, Window, elements, packed_len};
use crate::shape::{Elem, Extent, Map};

/// One transposed convolution of one map.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvTransposeShape {
    /// Extent of the source.
    pub input: Extent,
    /// Channels of the source.
    pub in_channels: u32,
    /// Output channels.
    pub out_channels: u32,
    /// Kernel size along D, H, W.
    pub kernel: [u32; 3],
    /// Output voxels from one source voxel to the next along D, H, W.
    pub stride: [u32; 3],
    /// Output voxels cut off on both sides along D, H, W.
    pub padding: [u32; 3],
    /// Output voxels added at the far side along D, H, W.
    pub output_padding: [u32; 3],
    /// Done to the source's voxels as they are read.
    pub load: Load,
    /// Applied to the sum.
    pub activation: Activation,
    /// Storage type.
    pub elem: Elem,
    /// Where the planes of the source, and of its scale and shift, lie.
    pub windows: [Window; 2],
    /// What is written.
    pub target: Target,
}

impl ConvTransposeShape {
    /// Extent of the output: `(n - 1) s - 2p + k + output_padding` along each axis, as in PyTorch.
    #[must_use]
    pub fn output(&self) -> Extent {
        let n = self.input.axes();
        let mut out = [0; 3];
        for axis in 0..3 {
            let full = (n[axis] - 1) * self.stride[axis] + self.kernel[axis] + self.output_padding[axis];
            out[axis] = full.saturating_sub(2 * self.padding[axis]);
        }
        out.into()
    }

    /// The output map.
    #[must_use]
    pub fn map(&self) -> Map {
        Map::new(self.output(), self.out_channels)
    }

    /// Whether every output voxel has one tap: the kernel tiles the output.
    #[must_use]
    pub fn tiles(&self) -> bool {
        self.kernel == self.stride && self.padding == [0; 3] && self.output_padding == [0; 3]
    }

    pub(super) fn sources(&self) -> Vec<Source> {
        let taps = Taps { kernel: self.kernel[0], stride: self.stride[0], padding: self.padding[0] };
        let map = Source { planes: self.input.d, reach: Reach::TapsTransposed(taps) };
        std::iter::once(map).chain(self.load.norm.map(|scope| scope.source(scope.planes(self.input.d)))).collect()
    }

    pub(super) fn operands(&mut self) -> (&mut [Window], &mut Target) {
        let n = 1 + usize::from(self.load.norm.is_some());
        (&mut self.windows[..n], &mut self.target)
    }

    /// Bindings of `slabs` of the source, of its scale and shift, and the weights; a scale is bound even where there is none.
    pub(super) fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T], slabs: usize) -> Vec<T> {
        let none = constants.first().copied().unwrap_or(sources[0][0]);
        let norm = sources.get(1).map_or(none, |pair| pair[0]);
        [&sources[0][..slabs], &[norm], constants].concat()
    }

    /// The shader constants of what is done on load and on store.
    pub(super) fn activations(&self, variant: Variant) -> Variant {
        variant.load(LOAD_A, self.load).activation(self.activation)
    }

    /// Blocks of four input channels.
    pub(super) fn in_blocks(&self) -> u32 {
        self.in_channels.div_ceil(4)
    }

    /// Blocks of eight output channels.
    pub(super) fn out_blocks(&self) -> u32 {
        self.out_channels.div_ceil(super::conv::OUT_BLOCK)
    }

    pub(super) fn cost(&self) -> Cost {
        let product = |k: [u32; 3]| k.iter().map(|&k| u64::from(k)).product::<u64>();
        let out = self.output();
        let planes = u64::from(self.target.count);
        // a source voxel meets every tap; far edges are counted as if they did, too
        let taps = out.plane() * planes * product(self.kernel) / product(self.stride);
        let read = elements(self.input, self.in_channels, 1) * planes.div_ceil(u64::from(self.stride[0]));
        let written = elements(out, self.out_channels, self.target.count);
        Cost {
            flops: 2 * taps * u64::from(self.in_channels) * u64::from(self.out_channels),
            bytes: (read + written) * self.elem.bytes() + packed_len([self.in_channels, 0], self.out_channels, self.kernel) * 4,
        }
    }

    /// Elements of `slabs` bindings of the source, of its scale and shift, the weights and the destination.
    pub(super) fn sizes(&self, slabs: usize) -> BindingSizes {
        let mut sizes = vec![elements(self.input, self.in_channels, self.input.d); slabs];
        sizes.push(self.load.table_len(self.input.d, self.in_blocks()));
        sizes.push(packed_len([self.in_channels, 0], self.out_channels, self.kernel));
        sizes.push(elements(self.output(), self.out_channels, self.output().d));
        sizes
    }

    /// The obvious loops over packed weights, f64 accumulation: of all taps of an output voxel, those that a source voxel
    /// stands behind.
    pub(super) fn reference(&self, [lo, hi, norm, weight]: [&[f32]; 4], output: &mut [f32]) {
        use rayon::prelude::*;
        let out = self.output();
        let [n_d, n_h, n_w] = self.input.axes();
        let [kd, kh, kw] = self.kernel;
        let cin = self.in_blocks() as usize * 4;
        let block = super::conv::OUT_BLOCK as usize;
        let width = self.map().blocks() as usize * 4;
        let bias_at = self.out_blocks() as usize * (kd * kh * kw) as usize * cin * block;
        let plane_in = (n_h * n_w) as usize * cin;
        let row = out.w as usize * width;
        self.target.planes(output, out.h as usize * row).for_each(|(z, plane)| {
            let mut acc = vec![0.0f64; self.out_blocks() as usize * block];
            let mut loaded = Vec::with_capacity(cin);
            for (y, line) in (0..out.h).zip(plane.chunks_exact_mut(row)) {
                for (x, voxel) in (0..out.w).zip(line.chunks_exact_mut(width)) {
                    acc.iter_mut().enumerate().for_each(|(o, s)| *s = f64::from(weight[bias_at + o]));
                    for tap in 0..kd * kh * kw {
                        let (i, j, k) = (tap / (kh * kw), tap / kw % kh, tap % kw);
                        #[expect(clippy::cast_possible_truncation, reason = "plane numbers are u32")]
                        let at = [
                            source(z as u32, i, self.stride[0], self.padding[0], n_d),
                            source(y, j, self.stride[1], self.padding[1], n_h),
                            source(x, k, self.stride[2], self.padding[2], n_w),
                        ];
                        let [Some(sz), Some(sy), Some(sx)] = at else { continue };
                        let plane = self.windows[0].plane(lo, hi, sz as usize, plane_in);
                        loaded.clear();
                        let table = self.load.table(norm, self.windows[1], sz as usize, cin);
                        self.load.apply(&plane[(sy * n_w + sx) as usize * cin..][..cin], table, &mut loaded);
                        for (c, &v) in loaded.iter().enumerate() {
                            for (o, s) in acc.iter_mut().enumerate() {
                                let w = ((o / block * (kd * kh * kw) as usize + tap as usize) * cin + c) * block + o % block;
                                *s += v * f64::from(weight[w]);
                            }
                        }
                    }
                    for (y, &s) in voxel.iter_mut().zip(&acc) {
                        #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                        {
                            *y = self.activation.apply(s) as f32;
                        }
                    }
                }
            }
        });
    }
}

/// Source index that reaches output index `o` through tap `k`, if there is one in `0..n`.
fn source(o: u32, k: u32, stride: u32, padding: u32, n: u32) -> Option<u32> {
    let shifted = (o + padding).checked_sub(k)?;
    (shifted % stride == 0 && shifted / stride < n).then_some(shifted / stride)
}
