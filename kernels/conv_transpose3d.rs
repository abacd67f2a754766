//! Transposed 3D convolution whose kernel equals its stride: each source voxel makes a block of the output, no two overlap.
//! Bias and activation fused.
//!
//! Source: `torch.nn.ConvTranspose3d` with `kernel_size == stride`. Weights are brought to the order of a convolution by
//! `Model::pack_transposed` and packed by [`super::pack_weights`].

use bytemuck::{Pod, Zeroable};

use super::{
    Activation, Binding, BindingSizes, ConvTransposeShape, Cost, HostHalf, HostSlice, Kernel, Load, Scope, Source, Target, Variant, Window,
    workgroup_size,
};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// One dispatch of the transposed convolution; kernel and stride of the shape are equal, its paddings zero.
#[derive(Clone, Debug)]
pub struct ConvTranspose3d(pub ConvTransposeShape);

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    in_plane: u32,
    in_row: u32,
    groups: u32,
    in_blocks: u32,
    first: u32,
    out_plane: u32,
    out_row: u32,
    out_first: u32,
    out_begin: u32,
    out_blocks: u32,
    norm_first: u32,
    pad: u32,
}

const VOXELS: u32 = 8;

#[expect(clippy::cast_possible_truncation, reason = "the planner refuses planes above u32")]
fn plane(extent: Extent) -> u32 {
    extent.plane() as u32
}

impl Kernel for ConvTranspose3d {
    const NAME: &'static str = "conv_transpose3d";
    const SHADER: &'static str = concat!(include_str!("../shaders/shared/weights.wgsl"), include_str!("../shaders/conv_transpose3d.wgsl"));
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::ReadF32, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let [kd, kh, kw] = self.0.kernel;
        let variant = Variant::new(self.0.elem, workgroup_size(caps)).set("KD", kd).set("KH", kh).set("KW", kw);
        self.0.activations(variant)
    }

    fn params(&self) -> Params {
        let s = &self.0;
        Params {
            in_plane: plane(s.input),
            in_row: s.input.w,
            groups: plane(s.input).div_ceil(VOXELS),
            in_blocks: s.in_blocks(),
            first: s.windows[0].first,
            out_plane: plane(s.output()),
            out_row: s.output().w,
            out_first: s.target.first,
            out_begin: s.target.begin,
            out_blocks: s.map().blocks(),
            norm_first: s.windows[1].first,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        let [_, kh, kw] = self.0.kernel.map(u64::from);
        [plane(self.0.input).div_ceil(VOXELS).into(), kh * kw * u64::from(self.0.out_blocks()), self.0.target.count.into()]
    }

    fn cost(&self) -> Cost {
        self.0.cost()
    }

    fn sizes(&self) -> BindingSizes {
        self.0.sizes(1)
    }

    fn sources(&self) -> Vec<Source> {
        self.0.sources()
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        self.0.operands()
    }

    fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
        self.0.bind(sources, constants, 1)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        if let [source, norm, weight] = inputs {
            self.0.reference([source, source, norm, weight], output.floats());
        }
    }

    fn host(&self) -> Option<&dyn HostHalf> {
        Some(self)
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.0.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let base = ConvTransposeShape {
            input: Extent::new(3, 5, 7),
            in_channels: 6,
            out_channels: 10,
            kernel: [2; 3],
            stride: [2; 3],
            padding: [0; 3],
            output_padding: [0; 3],
            load: Load::default(),
            activation: Activation::None,
            elem: Elem::F32,
            windows: [Window::whole(0); 2],
            target: Target::whole(0),
        };
        let along = |k: [u32; 3], s: ConvTransposeShape| ConvTransposeShape { kernel: k, stride: k, ..s };
        let norm = Load { norm: Some(Scope::Volume), activation: Activation::LeakyRelu { slope: 0.01 } };
        let planes = Load { norm: Some(Scope::Plane), activation: Activation::Relu };
        let list = [
            ("norm", ConvTransposeShape { load: norm, ..base.clone() }),
            ("norm_f16", ConvTransposeShape { load: norm, elem: Elem::F16, ..base.clone() }),
            ("planes_norm", along([1, 2, 2], ConvTransposeShape { load: planes, ..base.clone() })),
            ("k2", base.clone()),
            ("k1x2x2_relu", along([1, 2, 2], ConvTransposeShape { activation: Activation::Relu, ..base.clone() })),
            (
                "k4_wide",
                along([4; 3], ConvTransposeShape { input: Extent::new(2, 4, 6), in_channels: 16, out_channels: 16, ..base.clone() }),
            ),
            ("k3x1x2", along([3, 1, 2], ConvTransposeShape { in_channels: 3, out_channels: 5, ..base.clone() })),
            (
                "one_voxel_sigmoid",
                ConvTransposeShape {
                    input: Extent::new(1, 1, 1),
                    in_channels: 1,
                    out_channels: 1,
                    activation: Activation::Sigmoid,
                    ..base.clone()
                },
            ),
            ("one_plane", ConvTransposeShape { input: Extent::new(1, 9, 1), in_channels: 4, out_channels: 8, ..base.clone() }),
            ("k2_f16", ConvTransposeShape { elem: Elem::F16, ..base.clone() }),
            ("k1x2x2_f16", along([1, 2, 2], ConvTransposeShape { elem: Elem::F16, in_channels: 8, out_channels: 12, ..base })),
        ];
        let whole = |s: ConvTransposeShape| ConvTransposeShape { target: Target::whole(s.output().d), ..s };
        list.into_iter().map(|(label, s)| (label.to_owned(), Self(whole(s)))).collect()
    }
}
