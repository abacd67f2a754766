//! The last layer and its labels at once: 1x1x1 convolution of one map or of two concatenated maps, then the label of the
//! highest logit, packed to 8 or 16 bits. Logits live in registers and are compared in f32 whatever the storage type, so that
//! with f16 a label may differ from the arg-max of stored logits where rounding makes these equal. Logits that are not finite are
//! told as in [`super::argmax`].

use bytemuck::{Pod, Zeroable};

use super::argmax::{label_of, labels_per_word, plane_words};
use super::{
    Activation, Binding, BindingSizes, ConvShape, Cost, HostHalf, HostSlice, Kernel, Load, Reach, Scope, Source, Target, Variant, Window,
    workgroup_size,
};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// One dispatch; kernel and stride of the shape are one, its output channels are the classes.
#[derive(Clone, Debug)]
pub struct HeadArgmax(pub ConvShape);

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    plane: u32,
    words: u32,
    a_blocks: u32,
    b_blocks: u32,
    a_first: u32,
    b_first: u32,
    out_first: u32,
    out_begin: u32,
    classes: u32,
    a_norm_first: u32,
    b_norm_first: u32,
    pad: u32,
}

impl HeadArgmax {
    fn words(&self) -> u64 {
        plane_words(self.0.input, self.0.out_channels)
    }
}

impl Kernel for HeadArgmax {
    const NAME: &'static str = "head_argmax";
    const SHADER: &'static str = concat!(include_str!("../shaders/shared/weights.wgsl"), include_str!("../shaders/head_argmax.wgsl"));
    const BINDINGS: &'static [Binding] =
        &[Binding::Params, Binding::Read, Binding::Read, Binding::ReadF32, Binding::ReadF32, Binding::ReadF32, Binding::WriteWords];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let variant = Variant::new(self.0.elem, workgroup_size(caps)).set("LABELS", labels_per_word(self.0.out_channels));
        self.0.source_constants(variant).activation(self.0.activation)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the planner refuses planes above u32")]
    fn params(&self) -> Params {
        let s = &self.0;
        let [a_blocks, b_blocks] = s.blocks();
        Params {
            plane: s.input.plane() as u32,
            words: self.words() as u32,
            a_blocks,
            b_blocks,
            a_first: s.window(0).first,
            b_first: s.window(1).first,
            out_first: s.target.first,
            out_begin: s.target.begin,
            classes: s.out_channels,
            a_norm_first: s.norm_window(0).first,
            b_norm_first: s.norm_window(1).first,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [self.words(), 1, self.0.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let s = &self.0;
        let logits = super::elements(s.input, s.out_channels, s.target.count) * s.elem.bytes();
        let Cost { flops, bytes } = s.cost();
        Cost { flops, bytes: bytes - logits + self.words() * 4 * u64::from(s.target.count) }
    }

    fn sizes(&self) -> BindingSizes {
        let s = self.0.sizes();
        vec![s[0], s[2], s[4], s[5], s[6], self.words() * u64::from(self.0.input.d)]
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
        use rayon::prelude::*;
        let [a, b, a_norm, b_norm, weight] = inputs else { return };
        let channels = self.0.map().blocks() as usize * 4;
        let lanes = labels_per_word(self.0.out_channels);
        self.0.target.planes(output.words(), plane_words(self.0.input, self.0.out_channels) as usize).for_each(|(z, plane)| {
            let mut logits = vec![0.0; self.0.input.plane() as usize * channels];
            let mut one = self.0.clone();
            #[expect(clippy::cast_possible_truncation, reason = "plane numbers are u32")]
            {
                one.target = Target { first: z as u32, begin: z as u32, count: 1 };
            }
            one.reference(&[a, a, b, b, a_norm, b_norm, weight], &mut logits);
            plane.fill(0);
            for (at, x) in (0u32..).zip(logits.chunks_exact(channels)) {
                let label = label_of(&x[..self.0.out_channels as usize], lanes);
                plane[(at / lanes) as usize] |= label << (at % lanes * (32 / lanes));
            }
        });
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
            out_channels: 3,
            kernel: [1; 3],
            stride: [1; 3],
            padding: [0; 3],
            loads: [Load::default(); 2],
            upsampled: [None; 2],
            activation: Activation::None,
            elem: Elem::F32,
            windows: [Window::whole(0); 4],
            target: Target::whole(0),
        };
        let norm = Load { norm: Some(Scope::Volume), activation: Activation::LeakyRelu { slope: 0.01 } };
        let planes = Load { norm: Some(Scope::Plane), activation: Activation::Relu };
        let list = [
            ("odd_plane", base.clone()),
            ("norm", ConvShape { loads: [norm, Load::default()], ..base.clone() }),
            ("concat_norms_f16", ConvShape { loads: [planes, norm], in_channels: [5, 9], elem: Elem::F16, ..base.clone() }),
            ("concat_14_classes", ConvShape { in_channels: [5, 9], out_channels: 14, ..base.clone() }),
            // an activation may make logits equal: the first wins
            ("sigmoid", ConvShape { out_channels: 9, activation: Activation::Sigmoid, ..base.clone() }),
            ("many_classes", ConvShape { input: Extent::new(2, 3, 5), out_channels: 300, ..base.clone() }),
            ("one_class", ConvShape { out_channels: 1, ..base.clone() }),
            ("one_voxel", ConvShape { input: Extent::new(1, 1, 1), in_channels: [1, 0], out_channels: 14, ..base.clone() }),
            ("concat_f16", ConvShape { elem: Elem::F16, in_channels: [8, 4], out_channels: 12, ..base }),
        ];
        let whole = |s: ConvShape| ConvShape { target: Target::whole(s.input.d), ..s };
        list.into_iter().map(|(label, s)| (label.to_owned(), Self(whole(s)))).collect()
    }
}
