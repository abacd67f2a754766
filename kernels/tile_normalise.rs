//! The mean over all tiles: the sum of weighted predictions divided by the sum of weights, as elements of the storage type.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch. Sources: the accumulator, and the weights `[D][H][W]`, both always f32. Where nothing was added, zero.
#[derive(Clone, Debug)]
pub struct TileNormalise {
    /// Shape of accumulator and output.
    pub map: Map,
    /// Storage type of the output.
    pub elem: Elem,
    /// Where the planes of the accumulator, and of the weights, lie.
    pub windows: [Window; 2],
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    width: u32,
    rows: u32,
    blocks: u32,
    first: u32,
    weights_first: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

impl Kernel for TileNormalise {
    const NAME: &'static str = "tile_normalise";
    const SHADER: &'static str = include_str!("../shaders/tile_normalise.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::ReadF32, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps))
    }

    fn params(&self) -> Params {
        Params {
            width: self.map.extent.w,
            rows: self.map.extent.h,
            blocks: self.map.blocks(),
            first: self.windows[0].first,
            weights_first: self.windows[1].first,
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
        Cost { flops: n, bytes: n * (4 + self.elem.bytes()) + self.map.extent.plane() * u64::from(self.target.count) * 4 }
    }

    fn sizes(&self) -> BindingSizes {
        let n = elements(self.map.extent, self.map.channels, self.map.extent.d);
        vec![n, self.map.extent.voxels(), n]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.map.extent.d, reach: Reach::Same }; 2]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [sums, weights] = inputs else { return };
        let channels = self.map.blocks() as usize * 4;
        let voxels = self.map.extent.plane() as usize;
        self.target.planes(output.floats(), voxels * channels).for_each(|(z, plane)| {
            let sums = &sums[(z - self.windows[0].first as usize) * voxels * channels..];
            let weights = &weights[(z - self.windows[1].first as usize) * voxels..];
            for ((out, sum), &weight) in plane.chunks_exact_mut(channels).zip(sums.chunks_exact(channels)).zip(weights) {
                for (y, sum) in out.iter_mut().zip(sum) {
                    *y = if weight == 0.0 { 0.0 } else { sum / weight };
                }
            }
        });
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let base =
            Self { map: Map::new(Extent::new(3, 5, 7), 6), elem: Elem::F32, windows: [Window::whole(0); 2], target: Target::whole(3) };
        let one = Map::new(Extent::new(1, 1, 1), 1);
        vec![
            ("plain".to_owned(), base.clone()),
            ("one_voxel".to_owned(), Self { map: one, target: Target::whole(1), ..base.clone() }),
            ("14_classes".to_owned(), Self { map: Map::new(Extent::new(3, 2, 9), 14), ..base.clone() }),
            ("plain_f16".to_owned(), Self { elem: Elem::F16, ..base }),
        ]
    }
}
