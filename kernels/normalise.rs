//! A norm, or an activation, that no reader applies as it loads: scale, shift and activation stored as a map. A PReLU, whose
//! slopes are parameters, is always applied here.

use bytemuck::{Pod, Zeroable};

use super::load::LOAD_A;
use super::{
    Activation, Binding, BindingSizes, Cost, HostHalf, HostSlice, Kernel, Load, Reach, Scope, Source, Target, Variant, Window, elements,
    workgroup_size,
};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch of `activation(scale x + shift)`. The constant is scale, shift, and the slopes of a PReLU.
#[derive(Clone, Debug)]
pub struct Normalise {
    /// Shape of source and output.
    pub map: Map,
    /// Where scale and shift come from, and what follows; without a norm they are the node's constant.
    pub load: Load,
    /// A PReLU comes last; its slopes are in the node's constant.
    pub prelu: bool,
    /// Storage type.
    pub elem: Elem,
    /// Where the planes of the source, and of scale and shift, lie.
    pub windows: [Window; 2],
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    row: u32,
    rows: u32,
    blocks: u32,
    first: u32,
    norm_first: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

impl Normalise {
    /// A constant scale and shift are those of the volume.
    pub(super) fn scaled(&self) -> Load {
        Load { norm: self.load.norm.or(Some(Scope::Volume)), ..self.load }
    }
}

impl Kernel for Normalise {
    const NAME: &'static str = "normalise";
    const SHADER: &'static str = include_str!("../shaders/normalise.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::ReadF32, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps)).load(LOAD_A, self.scaled()).set("PRELU", u8::from(self.prelu))
    }

    fn params(&self) -> Params {
        Params {
            row: self.map.extent.w * self.map.blocks(),
            rows: self.map.extent.h,
            blocks: self.map.blocks(),
            first: self.windows[0].first,
            norm_first: self.windows[1].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.map.extent.w) * u64::from(self.map.blocks()), self.map.extent.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let n = elements(self.map.extent, self.map.channels, self.target.count);
        Cost { flops: 3 * n, bytes: 2 * n * self.elem.bytes() + u64::from(self.map.blocks()) * 32 }
    }

    fn sizes(&self) -> BindingSizes {
        let n = elements(self.map.extent, self.map.channels, self.map.extent.d);
        let slopes = if self.prelu { u64::from(self.map.blocks()) * 12 } else { 4 };
        vec![n, self.scaled().table_len(self.map.extent.d, self.map.blocks()), slopes, n]
    }

    fn sources(&self) -> Vec<Source> {
        let planes = self.map.extent.d;
        let norm = self.load.norm.map(|scope| scope.source(scope.planes(planes)));
        [Source { planes, reach: Reach::Same }].into_iter().chain(norm).collect()
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        let n = 1 + usize::from(self.load.norm.is_some());
        (&mut self.windows[..n], &mut self.target)
    }

    fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
        let constant = constants.first().copied().unwrap_or(sources[0][0]);
        let norm = sources.get(1).map_or(constant, |pair| pair[0]);
        // something is bound even where there are no slopes
        vec![sources[0][0], norm, if self.prelu { constant } else { norm }]
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [src, norm, constant] = inputs else { return };
        let channels = self.map.blocks() as usize * 4;
        let n = elements(self.map.extent, self.map.channels, 1) as usize;
        let load = self.scaled();
        let slopes = if self.prelu { &constant[2 * channels..][..channels] } else { &[] };
        self.target.planes(output.floats(), n).for_each(|(z, plane)| {
            let source = &src[(z - self.windows[0].first as usize) * n..];
            let table = load.table(norm, self.windows[1], z, channels);
            let mut voxel = Vec::with_capacity(channels);
            for (out, x) in plane.chunks_exact_mut(channels).zip(source.chunks_exact(channels)) {
                voxel.clear();
                load.apply(x, table, &mut voxel);
                voxel.iter_mut().zip(slopes).filter(|(v, _)| **v < 0.0).for_each(|(v, &slope)| *v *= f64::from(slope));
                #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                out.iter_mut().zip(&voxel).for_each(|(y, &v)| *y = v as f32);
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
        let base = Self {
            map: Map::new(Extent::new(3, 5, 7), 6),
            load: Load::default(),
            prelu: false,
            elem: Elem::F32,
            windows: [Window::whole(0); 2],
            target: Target::whole(3),
        };
        let with = |norm, activation| Self { load: Load { norm, activation }, ..base.clone() };
        let one = Map::new(Extent::new(1, 1, 1), 1);
        let (volume, plane) = (Some(Scope::Volume), Some(Scope::Plane));
        let list = [
            ("constant", with(None, Activation::None)),
            ("constant_gelu", with(None, Activation::Gelu)),
            ("volume_leaky", with(volume, Activation::LeakyRelu { slope: 0.01 })),
            ("planes_elu", with(plane, Activation::Elu { alpha: 1.5 })),
            ("planes_sigmoid", with(plane, Activation::Sigmoid)),
            ("one_voxel_relu", Self { map: one, target: Target::whole(1), ..with(volume, Activation::Relu) }),
            ("prelu", Self { prelu: true, ..with(None, Activation::None) }),
            ("volume_prelu", Self { prelu: true, ..with(volume, Activation::None) }),
            ("planes_prelu_f16", Self { prelu: true, elem: Elem::F16, ..with(plane, Activation::None) }),
            ("volume_f16", Self { elem: Elem::F16, ..with(volume, Activation::Gelu) }),
        ];
        list.into_iter().map(|(label, k)| (label.to_owned(), k)).collect()
    }
}
