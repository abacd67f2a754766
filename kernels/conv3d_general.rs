//! 3D convolution with dilation and groups, any kernel size, stride and zero padding; norm of the source, bias and activation
//! fused. What has neither dilation nor groups is done by [`super::conv3d_direct`].
//!
//! Source: cross-correlation as `torch.nn.Conv3d` defines it. A block of eight output channels reads a band of neighbouring input
//! channels, those of its groups: weights are packed as a dense convolution of the band, zero where the groups differ, or, where
//! every channel is a group, one weight a channel and tap. See [`pack_grouped`].

use bytemuck::{Pod, Zeroable};

use super::conv::OUT_BLOCK;
use super::load::LOAD_A;
use super::{
    Activation, Binding, BindingSizes, Cost, HostHalf, HostSlice, Kernel, Load, Reach, Scope, Source, Taps, Target, Variant, Window,
    elements, workgroup_size,
};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// Channels and groups of a convolution: group g of the output reads group g of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// Input channels.
    pub inputs: u32,
    /// Output channels.
    pub outputs: u32,
    /// Groups of neighbouring channels; they divide both.
    pub groups: u32,
}

impl Grouping {
    /// Input and output channels of a group.
    const fn widths(self) -> [u32; 2] {
        [self.inputs / self.groups, self.outputs / self.groups]
    }

    /// Whether every channel is a group of its own.
    const fn depthwise(self) -> bool {
        self.groups > 1 && self.inputs == self.groups && self.outputs == self.groups
    }

    const fn out_blocks(self) -> u32 {
        self.outputs.div_ceil(OUT_BLOCK)
    }

    /// First input block of four channels that a block of output channels reads.
    const fn band_begin(self, out_block: u32) -> u32 {
        let [i, o] = self.widths();
        out_block * OUT_BLOCK / o * i / 4
    }

    /// Most input blocks that a block of output channels reads.
    fn band(self) -> u32 {
        let [i, o] = self.widths();
        let last = |block: u32| ((block + 1) * OUT_BLOCK).min(self.outputs) - 1;
        let blocks = |block: u32| ((last(block) / o + 1) * i).div_ceil(4) - self.band_begin(block);
        (0..self.out_blocks()).map(blocks).max().unwrap_or(1)
    }

    /// Packed weights of a tap and a block of output channels.
    fn tap_len(self) -> usize {
        (if self.depthwise() { OUT_BLOCK } else { self.band() * 4 * OUT_BLOCK }) as usize
    }

    /// Where the weight between output channel `o` and input channel `i` of its group lies among those of a tap.
    fn at(self, o: u32, i: u32) -> usize {
        let [i_width, o_width] = self.widths();
        let lane = o % OUT_BLOCK;
        let channel = o / o_width * i_width + i - self.band_begin(o / OUT_BLOCK) * 4;
        (if self.depthwise() { lane } else { channel * OUT_BLOCK + lane }) as usize
    }

    /// Elements of the packed weights and bias.
    #[must_use]
    pub fn packed_len(self, kernel: [u32; 3]) -> u64 {
        let taps: u64 = kernel.iter().map(|&k| u64::from(k)).product();
        u64::from(self.out_blocks()) * (taps * self.tap_len() as u64 + u64::from(OUT_BLOCK))
    }
}

/// Packs the rows of a weight in PyTorch's order, `[I/groups][KD][KH][KW]` for each output with its bias, into the order the
/// shader reads: `[O/8][KD][KH][KW][band][8]`, depthwise `[O/8][KD][KH][KW][8]`, then the bias `[O padded]`. Padding is zero.
#[must_use]
pub fn pack_grouped(rows: impl IntoIterator<Item = (Vec<f64>, f64)>, grouping: Grouping, kernel: [u32; 3]) -> Vec<f32> {
    let taps = kernel.iter().map(|&k| k as usize).product::<usize>();
    let (step, width) = (grouping.tap_len(), grouping.widths()[0]);
    let blocks = grouping.out_blocks() as usize;
    let mut packed = vec![0.0f32; blocks * (taps * step + OUT_BLOCK as usize)];
    let (weights, biases) = packed.split_at_mut(blocks * taps * step);
    for ((o, (row, bias)), packed) in (0..grouping.outputs).zip(rows).zip(biases) {
        for (i, of_input) in (0..width).zip(row.chunks_exact(taps)) {
            for (t, &w) in of_input.iter().enumerate() {
                #[expect(clippy::cast_possible_truncation, reason = "f64 only for folding")]
                {
                    weights[((o / OUT_BLOCK) as usize * taps + t) * step + grouping.at(o, i)] = w as f32;
                }
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "f64 only for folding")]
        {
            *packed = bias as f32;
        }
    }
    packed
}

/// One dispatch of the convolution.
#[derive(Clone, Debug)]
pub struct Conv3dGeneral {
    /// Extent of the source.
    pub input: Extent,
    /// Channels and groups.
    pub grouping: Grouping,
    /// Kernel size along D, H, W.
    pub kernel: [u32; 3],
    /// Stride along D, H, W.
    pub stride: [u32; 3],
    /// Zero padding on both sides along D, H, W.
    pub padding: [u32; 3],
    /// Voxels from tap to tap along D, H, W.
    pub dilation: [u32; 3],
    /// Done to the voxels of the source as they are read; padding stays zero.
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

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    in_extent: [u32; 3],
    in_blocks: u32,
    out_extent: [u32; 3],
    out_blocks: u32,
    first: u32,
    split: u32,
    norm_first: u32,
    band: u32,
    out_first: u32,
    out_begin: u32,
    row_groups: u32,
    pad: u32,
}

const VOXELS: u32 = 4;

impl Conv3dGeneral {
    /// Extent of the output: `(n + 2p - d (k - 1) - 1) / s + 1` along each axis, as in PyTorch.
    #[must_use]
    pub fn output(&self) -> Extent {
        let n = self.input.axes();
        let mut out = [0; 3];
        for axis in 0..3 {
            let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            out[axis] = (n[axis] + 2 * self.padding[axis]).saturating_sub(reach) / self.stride[axis] + 1;
        }
        out.into()
    }

    fn map(&self) -> Map {
        Map::new(self.output(), self.grouping.outputs)
    }

    fn in_blocks(&self) -> u32 {
        self.grouping.inputs.div_ceil(4)
    }
}

impl Kernel for Conv3dGeneral {
    const NAME: &'static str = "conv3d_general";
    const SHADER: &'static str = concat!(include_str!("../shaders/shared/window.wgsl"), include_str!("../shaders/conv3d_general.wgsl"));
    const BINDINGS: &'static [Binding] =
        &[Binding::Params, Binding::Read, Binding::Read, Binding::ReadF32, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let mut variant = Variant::new(self.elem, workgroup_size(caps)).window(self.kernel, self.stride, self.padding);
        for (name, value) in ["DD", "DH", "DW"].into_iter().zip(self.dilation) {
            variant = variant.set(name, value);
        }
        let [group_in, group_out] = self.grouping.widths();
        let variant = variant.set("GROUP_IN", group_in).set("GROUP_OUT", group_out);
        variant.set("DEPTHWISE", u8::from(self.grouping.depthwise())).load(LOAD_A, self.load).activation(self.activation)
    }

    fn params(&self) -> Params {
        let out = self.output();
        Params {
            in_extent: self.input.axes(),
            in_blocks: self.in_blocks(),
            out_extent: out.axes(),
            out_blocks: self.map().blocks(),
            first: self.windows[0].first,
            split: self.windows[0].split,
            norm_first: self.windows[1].first,
            band: self.grouping.band(),
            out_first: self.target.first,
            out_begin: self.target.begin,
            row_groups: out.w.div_ceil(VOXELS),
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        let out = self.output();
        [u64::from(out.w.div_ceil(VOXELS)) * u64::from(out.h), self.grouping.out_blocks().into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let taps: u64 = self.kernel.iter().map(|&k| u64::from(k)).product();
        let out = self.output();
        let sums = out.plane() * u64::from(self.target.count) * u64::from(self.grouping.outputs);
        let read = elements(self.input, self.grouping.inputs, self.target.count.saturating_mul(self.stride[0]).min(self.input.d));
        let written = elements(out, self.grouping.outputs, self.target.count);
        Cost {
            flops: 2 * taps * u64::from(self.grouping.widths()[0]) * sums,
            bytes: (read + written) * self.elem.bytes() + self.grouping.packed_len(self.kernel) * 4,
        }
    }

    fn sizes(&self) -> BindingSizes {
        let source = elements(self.input, self.grouping.inputs, self.input.d);
        let out = self.output();
        vec![
            source,
            source,
            self.load.table_len(self.input.d, self.in_blocks()),
            self.grouping.packed_len(self.kernel),
            elements(out, self.grouping.outputs, out.d),
        ]
    }

    fn sources(&self) -> Vec<Source> {
        // the planes between the taps lie in the slabs, too
        let kernel = self.dilation[0] * (self.kernel[0] - 1) + 1;
        let reach = Reach::Taps(Taps { kernel, stride: self.stride[0], padding: self.padding[0] });
        let norm = self.load.norm.map(|scope| scope.source(scope.planes(self.input.d)));
        std::iter::once(Source { planes: self.input.d, reach }).chain(norm).collect()
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        let n = 1 + usize::from(self.load.norm.is_some());
        (&mut self.windows[..n], &mut self.target)
    }

    fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
        let none = constants.first().copied().unwrap_or(sources[0][0]);
        let norm = sources.get(1).map_or(none, |pair| pair[0]);
        [&sources[0][..], &[norm], constants].concat()
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [lo, hi, norm, weight] = inputs else { return };
        let (out, grouping) = (self.output(), self.grouping);
        let [channels, width] = [self.in_blocks(), self.map().blocks()].map(|blocks| blocks as usize * 4);
        let [kd, kh, kw] = self.kernel.map(|k| k as usize);
        let bands: Vec<usize> = (0..grouping.out_blocks()).map(|block| grouping.band_begin(block) as usize * 4).collect();
        let (step, plane_in, row) = (grouping.tap_len(), self.input.plane() as usize * channels, out.w as usize * width);
        let bias = &weight[grouping.out_blocks() as usize * kd * kh * kw * step..];
        let tap = |axis: usize, o: usize, k: usize| {
            let [stride, padding, dilation] = [self.stride, self.padding, self.dilation].map(|a| a[axis] as usize);
            (o * stride + k * dilation).checked_sub(padding).filter(|&s| s < self.input.axes()[axis] as usize)
        };
        self.target.planes(output.floats(), out.h as usize * row).for_each(|(z, plane)| {
            plane.par_chunks_mut(row).enumerate().for_each(|(y, line)| {
                let mut acc = vec![0.0f64; width];
                let mut voxel = Vec::with_capacity(channels);
                for (x, stored) in line.chunks_exact_mut(width).enumerate() {
                    acc.iter_mut().zip(bias).for_each(|(s, &b)| *s = f64::from(b));
                    for (i, j, k) in (0..kd).flat_map(|i| (0..kh).flat_map(move |j| (0..kw).map(move |k| (i, j, k)))) {
                        let (Some(sz), Some(sy), Some(sx)) = (tap(0, z, i), tap(1, y, j), tap(2, x, k)) else { continue };
                        let source =
                            &self.windows[0].plane(lo, hi, sz, plane_in)[(sy * self.input.w as usize + sx) * channels..][..channels];
                        voxel.clear();
                        self.load.apply(source, self.load.table(norm, self.windows[1], sz, channels), &mut voxel);
                        // as they are packed: also what is zero where the groups differ
                        for (o, s) in acc.iter_mut().enumerate() {
                            let (block, lane) = (o / OUT_BLOCK as usize, o % OUT_BLOCK as usize);
                            let weights = &weight[(((block * kd + i) * kh + j) * kw + k) * step..][..step];
                            if grouping.depthwise() {
                                *s += voxel[o] * f64::from(weights[lane]);
                                continue;
                            }
                            let band = &voxel[bands[block]..];
                            *s += band
                                .iter()
                                .zip(weights[lane..].iter().step_by(OUT_BLOCK as usize))
                                .map(|(v, &w)| v * f64::from(w))
                                .sum::<f64>();
                        }
                    }
                    #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                    stored.iter_mut().zip(&acc).for_each(|(y, &s)| *y = self.activation.apply(s) as f32);
                }
            });
        });
    }

    fn host(&self) -> Option<&dyn HostHalf> {
        (self.grouping.groups == 1).then_some(self)
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let base = Self {
            input: Extent::new(5, 7, 9),
            grouping: Grouping { inputs: 6, outputs: 10, groups: 2 },
            kernel: [3; 3],
            stride: [1; 3],
            padding: [1; 3],
            dilation: [1; 3],
            load: Load::default(),
            activation: Activation::Relu,
            elem: Elem::F32,
            windows: [Window::whole(0); 2],
            target: Target::whole(0),
        };
        let grouped = |inputs, outputs, groups| Self { grouping: Grouping { inputs, outputs, groups }, ..base.clone() };
        let dilated = |padding, dilation| Self { padding, dilation, ..grouped(6, 10, 1) };
        let norm = Load { norm: Some(Scope::Volume), activation: Activation::LeakyRelu { slope: 0.01 } };
        let planes = Load { norm: Some(Scope::Plane), activation: Activation::Relu };
        let flat = Self { kernel: [1, 3, 3], padding: [0, 1, 1], ..base.clone() };
        let list = [
            ("k3_groups", base.clone()),
            ("k3_groups_of_blocks", grouped(16, 16, 4)),
            ("k3_groups_across_blocks", grouped(21, 15, 3)),
            ("k3_many_groups", grouped(22, 33, 11)),
            ("k3_depthwise", grouped(10, 10, 10)),
            ("k3_depthwise_multiplied", grouped(5, 15, 5)),
            ("k3_pairs_to_one", grouped(18, 9, 9)),
            ("k3_dilated", dilated([2; 3], [2; 3])),
            ("k3_dilated_unpadded", dilated([0; 3], [1, 3, 4])),
            ("k3_dilated_beyond", dilated([6; 3], [6; 3])),
            ("k2_dilated_stride2", Self { kernel: [2; 3], stride: [2; 3], ..dilated([1; 3], [3; 3]) }),
            ("k7_depthwise_stride122", Self { kernel: [7; 3], padding: [3; 3], stride: [1, 2, 2], ..grouped(7, 7, 7) }),
            ("k3_depthwise_dilated_norm", Self { load: norm, dilation: [2; 3], padding: [2; 3], ..grouped(12, 12, 12) }),
            ("k3_groups_dilated_norm", Self { load: norm, dilation: [2, 1, 3], padding: [2, 1, 3], ..grouped(12, 20, 4) }),
            ("k1x3x3_groups_planes_norm", Self { load: planes, activation: Activation::None, ..flat }),
            ("k1_groups", Self { kernel: [1; 3], padding: [0; 3], activation: Activation::Sigmoid, ..base.clone() }),
            ("one_voxel", Self { input: Extent::new(1, 1, 1), ..grouped(3, 3, 3) }),
            ("k3_groups_f16", Self { elem: Elem::F16, ..base.clone() }),
            ("k3_depthwise_norm_f16", Self { elem: Elem::F16, load: norm, ..grouped(9, 9, 9) }),
            ("k3_dilated_f16", Self { elem: Elem::F16, ..dilated([2; 3], [2; 3]) }),
        ];
        let whole = |k: Self| Self { target: Target::whole(k.output().d), ..k };
        list.into_iter().map(|(label, k)| (label.to_owned(), whole(k))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::pack_weights;
    use super::*;

    #[test]
    fn bands_cover_the_groups_of_their_outputs() {
        for (inputs, outputs, groups) in
            [(6, 10, 2), (21, 15, 3), (22, 33, 11), (5, 15, 5), (18, 9, 9), (16, 16, 4), (7, 9, 1), (64, 64, 64)]
        {
            let g = Grouping { inputs, outputs, groups };
            let [i_width, o_width] = g.widths();
            for o in 0..outputs {
                let begin = g.band_begin(o / OUT_BLOCK) * 4;
                let (first, last) = (o / o_width * i_width, (o / o_width + 1) * i_width - 1);
                assert!(begin <= first && last < begin + g.band() * 4, "{g:?}: channel {o}");
            }
        }
    }

    #[test]
    fn dilated_windows_reach_what_torch_reads() {
        let (_, base) = Conv3dGeneral::cases().swap_remove(0);
        let k = Conv3dGeneral { input: Extent::new(12, 9, 9), dilation: [3, 1, 2], padding: [2, 0, 1], stride: [2, 1, 2], ..base };
        assert_eq!(k.output(), Extent::new(5, 7, 4));
        let Source { planes, reach } = k.sources()[0];
        for z in 0..5u32 {
            let read: Vec<u32> = (0..3u32).filter_map(|i| (z * 2 + i * 3).checked_sub(2)).filter(|&s| s < 12).collect();
            assert_eq!(reach.planes(planes, 5, &(z..z + 1)), (z * 2).saturating_sub(2)..(z * 2 + 5).min(12));
            assert!(read.iter().all(|s| reach.planes(planes, 5, &(z..z + 1)).contains(s)));
        }
    }

    #[test]
    fn one_group_is_packed_as_a_plain_convolution() {
        let (kernel, g) = ([1, 2, 3], Grouping { inputs: 5, outputs: 9, groups: 1 });
        let weight: Vec<f64> = (0..5 * 9 * 6).map(f64::from).collect();
        let bias: Vec<f64> = (0..9).map(|o| f64::from(o) - 0.5).collect();
        let rows = || weight.chunks(5 * 6).map(<[f64]>::to_vec).zip(bias.iter().copied());
        let packed = pack_grouped(rows(), g, kernel);
        // which ends in whole blocks
        let plain = pack_weights(rows(), [5, 0], 9, kernel);
        assert_eq!(packed, plain[..packed.len()]);
        assert!(plain[packed.len()..].iter().all(|&w| w == 0.0));
        assert_eq!(packed.len() as u64, g.packed_len(kernel));
    }

    #[test]
    fn every_weight_has_a_place_of_its_own() {
        for (inputs, outputs, groups) in [(6, 10, 2), (21, 15, 3), (10, 10, 10), (5, 15, 5)] {
            let (kernel, g) = ([2, 1, 1], Grouping { inputs, outputs, groups });
            let n = outputs * inputs / groups * 2;
            let weight: Vec<f64> = (1..=n).map(f64::from).collect();
            let each = (inputs / groups * 2) as usize;
            let packed = pack_grouped(weight.chunks(each).map(|row| (row.to_vec(), 0.0)), g, kernel);
            let mut found: Vec<f32> = packed.into_iter().filter(|&w| w != 0.0).collect();
            found.sort_by(f32::total_cmp);
            assert!(found.iter().zip(&weight).all(|(&a, &b)| f64::from(a) == b) && found.len() == n as usize, "{g:?}");
        }
    }
}
