//! Softmax over the channels of each voxel. Source: `torch.softmax` of the channel axis.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, rows};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch; channels that pad are zero.
#[derive(Clone, Debug)]
pub struct Softmax {
    /// Shape of source and output.
    pub map: Map,
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
    pad: [u32; 2],
}

impl Kernel for Softmax {
    const NAME: &'static str = "softmax";
    const SHADER: &'static str = include_str!("../shaders/softmax.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        rows::variant(self.elem, self.map, caps)
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
            pad: [0; 2],
        }
    }

    fn grid(&self) -> [u64; 3] {
        rows::grid(self.map, self.target.count)
    }

    fn cost(&self) -> Cost {
        let n = elements(self.map.extent, self.map.channels, self.target.count);
        Cost { flops: 7 * n, bytes: 2 * n * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        vec![elements(self.map.extent, self.map.channels, self.map.extent.d); 2]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.map.extent.d, reach: Reach::Same }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [src] = inputs else { return };
        let padded = self.map.blocks() as usize * 4;
        let channels = self.map.channels as usize;
        let n = elements(self.map.extent, self.map.channels, 1) as usize;
        self.target.planes(output.floats(), n).for_each(|(z, plane)| {
            let source = &src[(z - self.windows[0].first as usize) * n..];
            for (out, x) in plane.chunks_exact_mut(padded).zip(source.chunks_exact(padded)) {
                let highest = x[..channels].iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let powers: Vec<f64> = x[..channels].iter().map(|&v| (f64::from(v) - f64::from(highest)).exp()).collect();
                let total: f64 = powers.iter().sum();
                out.fill(0.0);
                #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                out.iter_mut().zip(powers).for_each(|(y, p)| *y = (p / total) as f32);
            }
        });
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let case = |label: &str, extent: Extent, channels: u32, elem: Elem| {
            let map = Map::new(extent, channels);
            (label.to_owned(), Self { map, elem, windows: [Window::whole(0)], target: Target::whole(extent.d) })
        };
        vec![
            case("14_classes", Extent::new(3, 5, 7), 14, Elem::F32),
            case("2_classes", Extent::new(2, 9, 8), 2, Elem::F32),
            case("one_voxel_one_class", Extent::new(1, 1, 1), 1, Elem::F32),
            case("21_classes", Extent::new(2, 3, 13), 21, Elem::F32),
            case("many_classes", Extent::new(2, 3, 5), 305, Elem::F32),
            case("14_classes_f16", Extent::new(3, 5, 7), 14, Elem::F16),
        ]
    }
}
