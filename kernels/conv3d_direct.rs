//! Direct 3D convolution: any kernel size, stride and zero padding; bias, activation, and channel concatenation or the sum with a
//! second map fused. What a CPU computes, and a GPU where [`super::conv3d_tiled`] does not.
//!
//! Source: cross-correlation as `torch.nn.Conv3d` defines it. Weights are packed by [`super::pack_weights`].

use bytemuck::{Pod, Zeroable};

use super::{
    Activation, Binding, BindingSizes, ConvShape, Cost, HostHalf, HostSlice, Interpolation, Kernel, Load, Reach, Scope, Source, Target,
    Through, Variant, Window, workgroup_size,
};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// One dispatch of the direct convolution.
#[derive(Clone, Debug)]
pub struct Conv3dDirect(pub ConvShape);

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    in_extent: [u32; 3],
    a_blocks: u32,
    out_extent: [u32; 3],
    b_blocks: u32,
    a_first: u32,
    a_split: u32,
    b_first: u32,
    b_split: u32,
    out_first: u32,
    out_begin: u32,
    out_blocks: u32,
    row_groups: u32,
    coarse: [u32; 3],
    a_norm_first: u32,
    b_norm_first: u32,
    pad: [u32; 3],
}

const VOXELS: u32 = 8;

impl Kernel for Conv3dDirect {
    const NAME: &'static str = "conv3d_direct";
    const SHADER: &'static str = concat!(
        include_str!("../shaders/shared/window.wgsl"),
        include_str!("../shaders/shared/resize.wgsl"),
        include_str!("../shaders/shared/weights.wgsl"),
        include_str!("../shaders/conv3d_direct.wgsl")
    );
    const BINDINGS: &'static [Binding] = ConvShape::BINDINGS_IN_TWO;
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let s = &self.0;
        let variant = s.window_constants(Variant::new(s.elem, workgroup_size(caps)));
        s.source_constants(variant).activation(s.activation)
    }

    fn params(&self) -> Params {
        let s = &self.0;
        let [a_blocks, b_blocks] = s.blocks();
        Params {
            in_extent: s.input.axes(),
            a_blocks,
            out_extent: s.output().axes(),
            b_blocks,
            a_first: s.window(0).first,
            a_split: s.window(0).split,
            b_first: s.window(1).first,
            b_split: s.window(1).split,
            out_first: s.target.first,
            out_begin: s.target.begin,
            out_blocks: s.map().blocks(),
            row_groups: s.output().w.div_ceil(VOXELS),
            coarse: s.through().map_or(s.input, |through| through.stored).axes(),
            a_norm_first: s.norm_window(0).first,
            b_norm_first: s.norm_window(1).first,
            pad: [0; 3],
        }
    }

    fn grid(&self) -> [u64; 3] {
        let out = self.0.output();
        [u64::from(out.w.div_ceil(VOXELS)) * u64::from(out.h), self.0.out_blocks().into(), self.0.target.count.into()]
    }

    fn cost(&self) -> Cost {
        self.0.cost()
    }

    fn sizes(&self) -> BindingSizes {
        self.0.sizes()
    }

    fn sources(&self) -> Vec<Source> {
        self.0.sources(Reach::Taps(self.0.taps()))
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        self.0.operands()
    }

    fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
        self.0.bind(sources, constants, 2)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        self.0.reference(inputs, output.floats());
    }

    fn host(&self) -> Option<&dyn HostHalf> {
        Some(self)
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.0.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let base = ConvShape {
            input: Extent::new(5, 7, 9),
            in_channels: [6, 0],
            residual: false,
            out_channels: 10,
            kernel: [3; 3],
            stride: [1; 3],
            padding: [1; 3],
            loads: [Load::default(); 2],
            upsampled: [None; 2],
            activation: Activation::Relu,
            elem: Elem::F32,
            windows: [Window::whole(0); 4],
            target: Target { first: 0, begin: 0, count: 0 },
        };
        let plain = Load::default();
        let norm = Load { norm: Some(Scope::Volume), activation: Activation::LeakyRelu { slope: 0.01 } };
        let planes = Load { norm: Some(Scope::Plane), activation: Activation::Relu };
        let concat = ConvShape { in_channels: [5, 9], ..base.clone() };
        let from = |mode, d, h, w| Some(Through { stored: Extent::new(d, h, w), mode });
        let aligned = |d, h, w| from(Interpolation::Aligned, d, h, w);
        let list = [
            ("k3", base.clone()),
            ("k3_concat", ConvShape { in_channels: [5, 3], out_channels: 4, ..base.clone() }),
            (
                "k1x3x3_one_plane",
                ConvShape {
                    input: Extent::new(1, 13, 11),
                    kernel: [1, 3, 3],
                    padding: [0, 1, 1],
                    activation: Activation::None,
                    ..base.clone()
                },
            ),
            ("k2_stride2", ConvShape { kernel: [2; 3], stride: [2; 3], padding: [0; 3], input: Extent::new(6, 8, 10), ..base.clone() }),
            ("k5_stride122", ConvShape { kernel: [5; 3], stride: [1, 2, 2], padding: [2; 3], in_channels: [3, 0], ..base.clone() }),
            (
                "one_voxel",
                ConvShape {
                    input: Extent::new(1, 1, 1),
                    in_channels: [1, 0],
                    out_channels: 1,
                    activation: Activation::Sigmoid,
                    ..base.clone()
                },
            ),
            ("k3_wide", ConvShape { input: Extent::new(4, 17, 33), in_channels: [16, 16], out_channels: 16, ..base.clone() }),
            ("k3_norm", ConvShape { loads: [norm, plain], ..base.clone() }),
            ("k3_concat_norms", ConvShape { loads: [norm, Load { activation: Activation::None, ..norm }], ..concat.clone() }),
            ("k3_stride2_norm_of_second", ConvShape { loads: [plain, norm], stride: [2; 3], ..concat.clone() }),
            ("k1x3x3_planes_norms", ConvShape { loads: [planes; 2], kernel: [1, 3, 3], padding: [0, 1, 1], ..concat.clone() }),
            ("k3_activation_on_load", ConvShape { loads: [Load { norm: None, activation: Activation::Gelu }, plain], ..base.clone() }),
            ("k3_concat_norms_f16", ConvShape { loads: [norm; 2], elem: Elem::F16, ..concat.clone() }),
            ("k3_upsampled", ConvShape { upsampled: [aligned(2, 4, 3), None], ..base.clone() }),
            (
                "k3_concat_upsampled",
                ConvShape { input: Extent::new(6, 8, 10), in_channels: [5, 6], upsampled: [None, aligned(3, 4, 5)], ..base.clone() },
            ),
            (
                "k3_stride2_both_upsampled",
                ConvShape {
                    input: Extent::new(6, 8, 10),
                    in_channels: [5, 6],
                    upsampled: [aligned(3, 4, 5); 2],
                    stride: [2; 3],
                    ..base.clone()
                },
            ),
            (
                "k1_upsampled_planar",
                ConvShape {
                    input: Extent::new(3, 8, 10),
                    upsampled: [aligned(3, 4, 5), None],
                    kernel: [1; 3],
                    padding: [0; 3],
                    ..base.clone()
                },
            ),
            ("k3_upsampled_from_one_voxel", ConvShape { upsampled: [aligned(1, 1, 1), None], ..base.clone() }),
            (
                "k3_concat_upsampled_f16",
                ConvShape {
                    elem: Elem::F16,
                    input: Extent::new(6, 8, 10),
                    in_channels: [4, 8],
                    upsampled: [None, aligned(3, 4, 5)],
                    ..base.clone()
                },
            ),
            (
                "k3_half_pixel_concat",
                ConvShape {
                    input: Extent::new(6, 8, 10),
                    in_channels: [5, 6],
                    upsampled: [None, from(Interpolation::HalfPixel, 3, 4, 5)],
                    ..base.clone()
                },
            ),
            ("k3_half_pixel_odd", ConvShape { upsampled: [from(Interpolation::HalfPixel, 2, 4, 3), None], ..base.clone() }),
            ("k3_half_pixel_smaller", ConvShape { upsampled: [from(Interpolation::HalfPixel, 9, 8, 19), None], ..base.clone() }),
            ("k3_nearest", ConvShape { upsampled: [from(Interpolation::Nearest, 3, 2, 9), None], ..base.clone() }),
            (
                "k3_stride2_both_nearest",
                ConvShape {
                    input: Extent::new(6, 8, 10),
                    in_channels: [5, 6],
                    upsampled: [from(Interpolation::Nearest, 3, 4, 5); 2],
                    stride: [2; 3],
                    ..base.clone()
                },
            ),
            (
                "k3_half_pixel_f16",
                ConvShape { elem: Elem::F16, upsampled: [from(Interpolation::HalfPixel, 2, 4, 3), None], ..base.clone() },
            ),
            ("k3_nearest_f16", ConvShape { elem: Elem::F16, upsampled: [from(Interpolation::Nearest, 2, 4, 3), None], ..base.clone() }),
            ("k7_stride122", ConvShape { kernel: [7; 3], stride: [1, 2, 2], padding: [3; 3], in_channels: [2, 0], ..base.clone() }),
            ("k5", ConvShape { kernel: [5; 3], padding: [2; 3], in_channels: [3, 0], out_channels: 4, ..base.clone() }),
            ("k4_stride4", ConvShape { kernel: [4; 3], stride: [4; 3], padding: [0; 3], input: Extent::new(9, 8, 13), ..base.clone() }),
            (
                "k16_stride16",
                ConvShape {
                    input: Extent::new(32, 16, 33),
                    in_channels: [1, 0],
                    out_channels: 3,
                    kernel: [16; 3],
                    stride: [16; 3],
                    padding: [0; 3],
                    activation: Activation::None,
                    ..base.clone()
                },
            ),
            ("k2_padded", ConvShape { kernel: [2; 3], ..base.clone() }),
            ("k4x2x4_padded", ConvShape { kernel: [4, 2, 4], stride: [1, 2, 1], padding: [2, 1, 1], ..base.clone() }),
            ("k3_unpadded", ConvShape { padding: [0; 3], ..base.clone() }),
            ("k1_stride2", ConvShape { kernel: [1; 3], stride: [2; 3], padding: [0; 3], ..base.clone() }),
            ("k3_residual", ConvShape { residual: true, ..base.clone() }),
            (
                "k3_stride2_norms_residual",
                ConvShape { residual: true, stride: [2; 3], out_channels: 6, loads: [plain, norm], ..base.clone() },
            ),
            (
                "k3_residual_of_planes_norm",
                ConvShape { residual: true, loads: [norm, planes], activation: Activation::LeakyRelu { slope: 0.01 }, ..base.clone() },
            ),
            (
                "k3_upsampled_residual",
                ConvShape { residual: true, upsampled: [from(Interpolation::Aligned, 2, 4, 3), None], ..base.clone() },
            ),
            ("k3_residual_f16", ConvShape { residual: true, loads: [plain, norm], elem: Elem::F16, out_channels: 12, ..base.clone() }),
            ("k3_f16", ConvShape { elem: Elem::F16, ..base.clone() }),
            ("k3_concat_f16", ConvShape { elem: Elem::F16, in_channels: [4, 8], ..base }),
        ];
        let whole = |s: ConvShape| ConvShape { target: Target { first: 0, begin: 0, count: s.output().d }, ..s };
        list.into_iter().map(|(label, s)| (label.to_owned(), Self(whole(s)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::workgroups;
    use super::*;

    fn groups(input: Extent, caps: &DeviceCaps) -> Result<[u32; 3], super::super::GeometryError> {
        let (_, Conv3dDirect(base)) = Conv3dDirect::cases().swap_remove(0);
        let mut call = Conv3dDirect(ConvShape { input, ..base });
        call.0.target = Target::whole(call.0.output().d);
        workgroups(Conv3dDirect::NAME, call.grid(), call.variant(caps).workgroup(), caps)
    }

    #[test]
    fn rows_are_folded_and_planes_are_not() {
        let caps = DeviceCaps::default();
        // 2 groups of 8 voxels a row, 64 groups a workgroup
        assert_eq!(groups(Extent::new(2, 70_000, 9), &caps), Ok([(70_000u32 * 2).div_ceil(64), 2, 2]));
        assert_eq!(groups(Extent::new(65_535, 1, 9), &caps), Ok([1, 2, 65_535]));
        assert!(groups(Extent::new(65_536, 1, 9), &caps).is_err());
        let edge = 65_535 * 64;
        assert_eq!(groups(Extent::new(1, edge, 4), &caps), Ok([65_535, 2, 1]));
        assert!(groups(Extent::new(1, edge + 1, 4), &caps).is_err());
    }

    #[test]
    fn extents_are_those_of_torch() {
        let (_, Conv3dDirect(base)) = Conv3dDirect::cases().swap_remove(0);
        let along =
            |kernel, stride, padding| ConvShape { input: Extent::new(33, 34, 48), kernel, stride, padding, ..base.clone() }.output();
        assert_eq!(along([7; 3], [1, 2, 2], [3; 3]), Extent::new(33, 17, 24));
        assert_eq!(along([16; 3], [16; 3], [0; 3]), Extent::new(2, 2, 3));
        assert_eq!(along([4; 3], [4; 3], [0; 3]), Extent::new(8, 8, 12));
        assert_eq!(along([2; 3], [1; 3], [1; 3]), Extent::new(34, 35, 49));
    }
}
