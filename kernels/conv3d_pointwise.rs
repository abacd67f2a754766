//! 1x1x1 convolution, which is also a linear layer over the tokens of a map; bias, activation, and concatenation or the sum with
//! a second map fused.

use bytemuck::{Pod, Zeroable};

use super::{
    Activation, Binding, BindingSizes, ConvShape, Cost, HostHalf, HostSlice, Kernel, Load, Reach, Scope, Source, Target, Variant, Window,
    workgroup_size,
};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// One dispatch of the pointwise convolution; kernel and stride of the shape are one.
#[derive(Clone, Debug)]
pub struct Conv3dPointwise(pub ConvShape);

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    plane: u32,
    groups: u32,
    a_blocks: u32,
    b_blocks: u32,
    a_first: u32,
    b_first: u32,
    out_first: u32,
    out_begin: u32,
    out_blocks: u32,
    a_norm_first: u32,
    b_norm_first: u32,
    pad: u32,
}

const VOXELS: u32 = 8;

impl Conv3dPointwise {
    #[expect(clippy::cast_possible_truncation, reason = "the planner refuses planes above u32")]
    fn plane(&self) -> u32 {
        self.0.input.plane() as u32
    }
}

impl Kernel for Conv3dPointwise {
    const NAME: &'static str = "conv3d_pointwise";
    const SHADER: &'static str = concat!(include_str!("../shaders/shared/weights.wgsl"), include_str!("../shaders/conv3d_pointwise.wgsl"));
    const BINDINGS: &'static [Binding] =
        &[Binding::Params, Binding::Read, Binding::Read, Binding::ReadF32, Binding::ReadF32, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        self.0.source_constants(Variant::new(self.0.elem, workgroup_size(caps))).activation(self.0.activation)
    }

    fn params(&self) -> Params {
        let s = &self.0;
        let [a_blocks, b_blocks] = s.blocks();
        Params {
            plane: self.plane(),
            groups: self.plane().div_ceil(VOXELS),
            a_blocks,
            b_blocks,
            a_first: s.window(0).first,
            b_first: s.window(1).first,
            out_first: s.target.first,
            out_begin: s.target.begin,
            out_blocks: s.map().blocks(),
            a_norm_first: s.norm_window(0).first,
            b_norm_first: s.norm_window(1).first,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [self.plane().div_ceil(VOXELS).into(), self.0.out_blocks().into(), self.0.target.count.into()]
    }

    fn cost(&self) -> Cost {
        self.0.cost()
    }

    fn sizes(&self) -> BindingSizes {
        let s = self.0.sizes();
        vec![s[0], s[2], s[4], s[5], s[6], s[7]]
    }

    fn sources(&self) -> Vec<Source> {
        self.0.sources(Reach::Same)
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        self.0.operands()
    }

    fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
        self.0.bind(sources, constants, 1)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        if let [a, b, a_norm, b_norm, weight] = inputs {
            self.0.reference(&[a, a, b, b, a_norm, b_norm, weight], output.floats());
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
        let base = ConvShape {
            input: Extent::new(3, 5, 7),
            in_channels: [6, 0],
            residual: false,
            out_channels: 10,
            kernel: [1; 3],
            stride: [1; 3],
            padding: [0; 3],
            loads: [Load::default(); 2],
            upsampled: [None; 2],
            activation: Activation::None,
            elem: Elem::F32,
            windows: [Window::whole(0); 4],
            target: Target { first: 0, begin: 0, count: 3 },
        };
        let norm = Load { norm: Some(Scope::Volume), activation: Activation::LeakyRelu { slope: 0.01 } };
        let planes = Load { norm: Some(Scope::Plane), activation: Activation::Elu { alpha: 1.0 } };
        let list = [
            ("plain", base.clone()),
            ("norm", ConvShape { loads: [norm, Load::default()], ..base.clone() }),
            ("concat_norms", ConvShape { in_channels: [5, 9], loads: [norm, planes], ..base.clone() }),
            (
                "concat_norm_of_second_f16",
                ConvShape { in_channels: [5, 9], loads: [Load::default(), planes], elem: Elem::F16, ..base.clone() },
            ),
            ("concat_relu", ConvShape { in_channels: [5, 9], activation: Activation::Relu, ..base.clone() }),
            ("residual", ConvShape { residual: true, ..base.clone() }),
            ("residual_norms", ConvShape { residual: true, loads: [norm, planes], activation: Activation::Relu, ..base.clone() }),
            ("residual_f16", ConvShape { residual: true, out_channels: 5, elem: Elem::F16, ..base.clone() }),
            ("one_channel_sigmoid", ConvShape { in_channels: [1, 0], out_channels: 1, activation: Activation::Sigmoid, ..base.clone() }),
            ("wide", ConvShape { input: Extent::new(3, 16, 16), in_channels: [64, 0], out_channels: 64, ..base.clone() }),
            ("concat_f16", ConvShape { elem: Elem::F16, in_channels: [8, 4], ..base }),
        ];
        list.into_iter().map(|(label, s)| (label.to_owned(), Self(s))).collect()
    }
}
