//! Layer norm over the channels of each voxel, with an activation before it and one after.
//!
//! Source: `torch.nn.LayerNorm` of the last axis; the variance is biased. nnFormer and FINE activate before they normalise.

use bytemuck::{Pod, Zeroable};

use super::load::LOAD_A;
use super::{
    Activation, Binding, BindingSizes, Cost, HostHalf, HostSlice, Kernel, Load, Reach, Source, Target, Variant, Window, elements, rows,
};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch. The constant is gamma, then beta.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Shape of source and output.
    pub map: Map,
    /// Added to the variance.
    pub eps: f32,
    /// Applied to what is normalised.
    pub before: Activation,
    /// Applied last.
    pub after: Activation,
    /// Storage type.
    pub elem: Elem,
    /// Where the source's planes lie.
    pub windows: [Window; 1],
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    plane: u32,
    blocks: u32,
    channels: u32,
    first: u32,
    out_first: u32,
    out_begin: u32,
    eps: f32,
    pad: u32,
}

impl Kernel for LayerNorm {
    const NAME: &'static str = "layer_norm";
    const SHADER: &'static str = include_str!("../shaders/layer_norm.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        rows::variant(self.elem, self.map, caps).load(LOAD_A, Load { norm: None, activation: self.before }).activation(self.after)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the planner refuses planes above u32")]
    fn params(&self) -> Params {
        Params {
            plane: self.map.extent.plane() as u32,
            blocks: self.map.blocks(),
            channels: self.map.channels,
            first: self.windows[0].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            eps: self.eps,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        rows::grid(self.map, self.target.count)
    }

    fn cost(&self) -> Cost {
        let n = elements(self.map.extent, self.map.channels, self.target.count);
        Cost { flops: 9 * n, bytes: 2 * n * self.elem.bytes() + u64::from(self.map.blocks()) * 32 }
    }

    fn sizes(&self) -> BindingSizes {
        let n = elements(self.map.extent, self.map.channels, self.map.extent.d);
        vec![n, u64::from(self.map.blocks()) * 8, n]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.map.extent.d, reach: Reach::Same }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [src, affine] = inputs else { return };
        let padded = self.map.blocks() as usize * 4;
        let channels = self.map.channels as usize;
        let (gamma, beta) = affine.split_at(padded);
        let n = elements(self.map.extent, self.map.channels, 1) as usize;
        self.target.planes(output.floats(), n).for_each(|(z, plane)| {
            let source = &src[(z - self.windows[0].first as usize) * n..];
            for (out, x) in plane.chunks_exact_mut(padded).zip(source.chunks_exact(padded)) {
                let x: Vec<f64> = x[..channels].iter().map(|&v| self.before.apply(v.into())).collect();
                let mean = x.iter().sum::<f64>() / channels as f64;
                let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / channels as f64;
                let scale = (variance + f64::from(self.eps)).sqrt().recip();
                out.fill(0.0);
                for (((y, v), &gamma), &beta) in out.iter_mut().zip(x).zip(gamma).zip(beta) {
                    #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                    {
                        *y = self.after.apply((v - mean) * scale * f64::from(gamma) + f64::from(beta)) as f32;
                    }
                }
            }
        });
    }

    fn host(&self) -> Option<&dyn HostHalf> {
        Some(self)
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        // a large eps keeps the few and equal values of narrow rows from amplifying rounding
        let case = |label: &str, extent: Extent, channels: u32| {
            let base = Self {
                map: Map::new(extent, channels),
                eps: if channels < 8 { 0.5 } else { 1e-5 },
                before: Activation::None,
                after: Activation::None,
                elem: Elem::F32,
                windows: [Window::whole(0)],
                target: Target::whole(extent.d),
            };
            (label.to_owned(), base)
        };
        let changed = |(label, k): (String, Self), f: fn(&mut Self)| {
            let mut k = k;
            f(&mut k);
            (label, k)
        };
        vec![
            case("narrow", Extent::new(3, 5, 7), 3),
            case("one_voxel_one_channel", Extent::new(1, 1, 1), 1),
            case("one_lane", Extent::new(2, 3, 11), 14),
            case("two_lanes", Extent::new(2, 5, 9), 18),
            case("many_lanes", Extent::new(3, 2, 7), 97),
            case("wide", Extent::new(2, 1, 3), 770),
            case("widest", Extent::new(1, 2, 2), 3072),
            case("folded", Extent::new(1, 725, 724), 2),
            changed(case("gelu_before", Extent::new(2, 3, 5), 96), |k| k.before = Activation::Gelu),
            changed(case("gelu_before_leaky_after", Extent::new(2, 3, 5), 46), |k| {
                (k.before, k.after) = (Activation::Gelu, Activation::LeakyRelu { slope: 0.1 });
            }),
            changed(case("elu_before_sigmoid_after", Extent::new(2, 3, 5), 31), |k| {
                (k.before, k.after) = (Activation::Elu { alpha: 1.5 }, Activation::Sigmoid);
            }),
            changed(case("wide_f16", Extent::new(2, 3, 3), 385), |k| k.elem = Elem::F16),
            changed(case("narrow_f16", Extent::new(3, 5, 7), 6), |k| k.elem = Elem::F16),
        ]
    }
}
