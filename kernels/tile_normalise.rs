//! The mean over all tiles: the sum of weighted predictions divided by the sum of weights.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch. Sources: the accumulator, and the weights `[D][H][W]`, both always f32. Where nothing was added, zero.
/// The result is f32 or 16-bit floats whatever the storage type, channels last.
#[derive(Clone, Debug)]
pub struct TileNormalise {
    /// Shape of accumulator and output.
    pub map: Map,
    /// The mean is rounded to 16-bit floats.
    pub rounded: bool,
    /// Type that is written; 16-bit floats are rounded ones.
    pub out: Elem,
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
    zero: u32,
}

impl TileNormalise {
    /// Words of a voxel.
    fn words(&self) -> usize {
        self.map.blocks() as usize * if self.out == Elem::F16 { 2 } else { 4 }
    }
}

impl Kernel for TileNormalise {
    const NAME: &'static str = "tile_normalise";
    const SHADER: &'static str = concat!(include_str!("../shaders/shared/half.wgsl"), include_str!("../shaders/tile_normalise.wgsl"));
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::ReadF32, Binding::ReadF32, Binding::WriteWords];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let pack = self.out == Elem::F16;
        Variant::new(Elem::F32, workgroup_size(caps)).set("ROUNDED", u8::from(self.rounded || pack)).set("PACK", u8::from(pack))
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
            zero: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.map.extent.w) * u64::from(self.map.blocks()), self.map.extent.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let n = elements(self.map.extent, self.map.channels, self.target.count);
        Cost { flops: n, bytes: n * (4 + self.out.bytes()) + self.map.extent.plane() * u64::from(self.target.count) * 4 }
    }

    fn sizes(&self) -> BindingSizes {
        let n = elements(self.map.extent, self.map.channels, self.map.extent.d);
        vec![n, self.map.extent.voxels(), self.map.extent.voxels() * self.words() as u64]
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
        let half = half::f16::from_f32;
        self.target.planes(output.words(), voxels * self.words()).for_each(|(z, plane)| {
            let sums = &sums[(z - self.windows[0].first as usize) * voxels * channels..];
            let weights = &weights[(z - self.windows[1].first as usize) * voxels..];
            for ((out, sums), &weight) in plane.chunks_exact_mut(self.words()).zip(sums.chunks_exact(channels)).zip(weights) {
                let mean = |sum: f32| if weight == 0.0 { 0.0 } else { sum / weight };
                if self.out == Elem::F16 {
                    let bits = |sum: f32| u32::from(half(mean(sum)).to_bits());
                    out.iter_mut().zip(sums.as_chunks::<2>().0).for_each(|(word, &[a, b])| *word = bits(a) | bits(b) << 16);
                } else {
                    let value = |sum: f32| if self.rounded { half(mean(sum)).to_f32() } else { mean(sum) };
                    out.iter_mut().zip(sums).for_each(|(word, &sum)| *word = value(sum).to_bits());
                }
            }
        });
    }

    fn cases() -> Vec<(String, Self)> {
        let base = Self {
            map: Map::new(Extent::new(3, 5, 7), 6),
            rounded: false,
            out: Elem::F32,
            windows: [Window::whole(0); 2],
            target: Target::whole(3),
        };
        let one = Map::new(Extent::new(1, 1, 1), 1);
        vec![
            ("plain".to_owned(), base.clone()),
            ("one_voxel".to_owned(), Self { map: one, target: Target::whole(1), ..base.clone() }),
            ("14_classes".to_owned(), Self { map: Map::new(Extent::new(3, 2, 9), 14), ..base.clone() }),
            ("rounded".to_owned(), Self { rounded: true, ..base.clone() }),
            ("packed".to_owned(), Self { out: Elem::F16, ..base }),
        ]
    }
}
