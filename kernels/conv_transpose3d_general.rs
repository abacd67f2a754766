//! Transposed 3D convolution of any kernel size, stride, padding and output padding: blocks may overlap. Bias and activation
//! fused.
//!
//! Source: `torch.nn.ConvTranspose3d`. Weights are brought to the order of a convolution by `Model::pack_transposed` and
//! packed by [`super::pack_weights`].

use bytemuck::{Pod, Zeroable};

use super::{
    Activation, Binding, BindingSizes, ConvTransposeShape, Cost, HostHalf, HostSlice, Kernel, Load, Scope, Source, Target, Variant, Window,
    workgroup_size,
};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// One dispatch of the transposed convolution.
#[derive(Clone, Debug)]
pub struct ConvTranspose3dGeneral(pub ConvTransposeShape);

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    in_extent: [u32; 3],
    in_blocks: u32,
    out_extent: [u32; 3],
    first: u32,
    split: u32,
    out_first: u32,
    out_begin: u32,
    out_blocks: u32,
    phase_groups: u32,
    norm_first: u32,
    pad: [u32; 2],
}

const VOXELS: u32 = 4;

impl ConvTranspose3dGeneral {
    /// Groups of `VOXELS` output voxels of a row whose positions are equal modulo the stride.
    fn phase_groups(&self) -> u32 {
        self.0.output().w.div_ceil(self.0.stride[2]).div_ceil(VOXELS)
    }
}

impl Kernel for ConvTranspose3dGeneral {
    const NAME: &'static str = "conv_transpose3d_general";
    const SHADER: &'static str = concat!(
        include_str!("../shaders/shared/window.wgsl"),
        include_str!("../shaders/shared/weights.wgsl"),
        include_str!("../shaders/conv_transpose3d_general.wgsl")
    );
    const BINDINGS: &'static [Binding] =
        &[Binding::Params, Binding::Read, Binding::Read, Binding::ReadF32, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let s = &self.0;
        s.activations(Variant::new(s.elem, workgroup_size(caps)).window(s.kernel, s.stride, s.padding))
    }

    fn params(&self) -> Params {
        let s = &self.0;
        Params {
            in_extent: s.input.axes(),
            in_blocks: s.in_blocks(),
            out_extent: s.output().axes(),
            first: s.windows[0].first,
            split: s.windows[0].split,
            out_first: s.target.first,
            out_begin: s.target.begin,
            out_blocks: s.map().blocks(),
            phase_groups: self.phase_groups(),
            norm_first: s.windows[1].first,
            pad: [0; 2],
        }
    }

    fn grid(&self) -> [u64; 3] {
        let row = u64::from(self.phase_groups()) * u64::from(self.0.stride[2]);
        [row * u64::from(self.0.output().h), self.0.out_blocks().into(), self.0.target.count.into()]
    }

    fn cost(&self) -> Cost {
        self.0.cost()
    }

    fn sizes(&self) -> BindingSizes {
        self.0.sizes(2)
    }

    fn sources(&self) -> Vec<Source> {
        self.0.sources()
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        self.0.operands()
    }

    fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
        // both slabs, even where the kernel is so short that one would do
        self.0.bind(sources, constants, 2)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        if let &[lo, hi, norm, weight] = inputs {
            self.0.reference([lo, hi, norm, weight], output.floats());
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
            input: Extent::new(4, 5, 7),
            in_channels: 6,
            out_channels: 10,
            kernel: [3; 3],
            stride: [2; 3],
            padding: [1; 3],
            output_padding: [1; 3],
            load: Load::default(),
            activation: Activation::None,
            elem: Elem::F32,
            windows: [Window::whole(0); 2],
            target: Target::whole(0),
        };
        let norm = Load { norm: Some(Scope::Volume), activation: Activation::LeakyRelu { slope: 0.01 } };
        let planes = Load { norm: Some(Scope::Plane), activation: Activation::Relu };
        let list = [
            ("norm", ConvTransposeShape { load: norm, ..base.clone() }),
            ("norm_f16", ConvTransposeShape { load: norm, elem: Elem::F16, ..base.clone() }),
            (
                "planes_norm",
                ConvTransposeShape {
                    load: planes,
                    kernel: [1, 3, 3],
                    stride: [1, 2, 2],
                    padding: [0, 1, 1],
                    output_padding: [0, 1, 1],
                    ..base.clone()
                },
            ),
            ("k3_stride2", base.clone()),
            ("k3_stride2_odd", ConvTransposeShape { output_padding: [0, 1, 0], activation: Activation::Relu, ..base.clone() }),
            (
                "k4_stride2",
                ConvTransposeShape { kernel: [4; 3], output_padding: [0; 3], in_channels: 16, out_channels: 16, ..base.clone() },
            ),
            (
                "k5_stride132",
                ConvTransposeShape { kernel: [5; 3], stride: [1, 3, 2], padding: [2, 0, 1], output_padding: [0, 2, 0], ..base.clone() },
            ),
            // voxels that no tap reaches hold the bias
            ("k1_stride2", ConvTransposeShape { kernel: [1; 3], padding: [0; 3], in_channels: 3, out_channels: 2, ..base.clone() }),
            ("k2_padded", ConvTransposeShape { kernel: [2; 3], input: Extent::new(3, 4, 20), ..base.clone() }),
            (
                "one_voxel",
                ConvTransposeShape {
                    input: Extent::new(1, 1, 1),
                    in_channels: 1,
                    out_channels: 1,
                    activation: Activation::Sigmoid,
                    ..base.clone()
                },
            ),
            ("k3_stride2_f16", ConvTransposeShape { elem: Elem::F16, in_channels: 8, out_channels: 12, ..base }),
        ];
        let whole = |s: ConvTransposeShape| ConvTransposeShape { target: Target::whole(s.output().d), ..s };
        list.into_iter().map(|(label, s)| (label.to_owned(), Self(whole(s)))).collect()
    }
}
