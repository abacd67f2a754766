//! Adds a weighted tile of predictions, mirrored or not, to the sum over all tiles: the volume's accumulator, always f32.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch. The constant is the weights along D, H and W of the tile, `[D + H + W]`, always f32.
#[derive(Clone, Debug)]
pub struct TileAccumulate {
    /// Shape of the tile.
    pub tile: Map,
    /// Extent of the accumulator; what lies outside of it is left out.
    pub whole: Extent,
    /// Where the tile begins in it.
    pub origin: [i32; 3],
    /// The tile was computed of input flipped along these axes: it is flipped back.
    pub flip: [bool; 3],
    /// Products of weights are rounded to 16-bit floats.
    pub half: bool,
    /// Least weight of a voxel.
    pub least: f32,
    /// Storage type of the tile.
    pub elem: Elem,
    /// Where the tile's planes lie.
    pub windows: [Window; 1],
    /// Planes of the accumulator to add to.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    tile: [u32; 3],
    blocks: u32,
    whole: [u32; 2],
    origin: [i32; 3],
    flips: u32,
    first: u32,
    out_first: u32,
    out_begin: u32,
    least: f32,
    pad: [u32; 2],
}

/// Weight of a voxel whose weights along the axes are `along`.
#[must_use]
pub fn weight(along: [f32; 3], half: bool, least: f32) -> f32 {
    let product = along[0] * along[1] * along[2];
    let product = if half { half::f16::from_f32(product).to_f32() } else { product };
    product.max(least)
}

impl Kernel for TileAccumulate {
    const NAME: &'static str = "tile_accumulate";
    const SHADER: &'static str = include_str!("../shaders/tile_accumulate.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::ReadF32, Binding::Update];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps)).set("HALF", u8::from(self.half))
    }

    fn params(&self) -> Params {
        Params {
            tile: self.tile.extent.axes(),
            blocks: self.tile.blocks(),
            whole: [self.whole.h, self.whole.w],
            origin: self.origin,
            flips: (0..3).map(|axis| u32::from(self.flip[axis]) << axis).sum(),
            first: self.windows[0].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            least: self.least,
            pad: [0; 2],
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.tile.extent.w) * u64::from(self.tile.blocks()), self.tile.extent.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let n = elements(self.tile.extent, self.tile.channels, self.target.count.min(self.tile.extent.d));
        Cost { flops: 3 * n, bytes: n * (self.elem.bytes() + 8) }
    }

    fn sizes(&self) -> BindingSizes {
        let Extent { d, h, w } = self.tile.extent;
        let whole = elements(self.whole, self.tile.channels, self.whole.d);
        vec![elements(self.tile.extent, self.tile.channels, d), u64::from(d) + u64::from(h) + u64::from(w), whole]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.tile.extent.d, reach: Reach::Whole }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [tile, weights] = inputs else { return };
        let Extent { d, h, w } = self.tile.extent;
        let channels = self.tile.blocks() as usize * 4;
        let n = elements(self.whole, self.tile.channels, 1) as usize;
        // index `i` of the tile's axis of `size` as an index of the accumulator's axis of `room`
        let place = |axis: usize, i: u32, room: u32| u32::try_from(i64::from(self.origin[axis]) + i64::from(i)).ok().filter(|&i| i < room);
        let flipped = |axis: usize, i: u32, size: u32| if self.flip[axis] { size - 1 - i } else { i } as usize;
        self.target.planes(output.floats(), n).for_each(|(at, plane)| {
            let Some(z) = (0..d).find(|&z| place(0, z, self.whole.d) == Some(at as u32)) else { return };
            for (y, oy) in (0..h).filter_map(|y| Some((y, place(1, y, self.whole.h)?))) {
                for (x, ox) in (0..w).filter_map(|x| Some((x, place(2, x, self.whole.w)?))) {
                    let along = [weights[z as usize], weights[(d + y) as usize], weights[(d + h + x) as usize]];
                    let weight = f64::from(weight(along, self.half, self.least));
                    let from = (flipped(0, z, d) - self.windows[0].first as usize) * (h * w) as usize;
                    let from = (from + flipped(1, y, h) * w as usize + flipped(2, x, w)) * channels;
                    let out = &mut plane[(oy * self.whole.w + ox) as usize * channels..][..channels];
                    for (sum, &v) in out.iter_mut().zip(&tile[from..]) {
                        #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                        {
                            *sum = (f64::from(*sum) + weight * f64::from(v)) as f32;
                        }
                    }
                }
            }
        });
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let base = Self {
            tile: Map::new(Extent::new(3, 4, 5), 6),
            whole: Extent::new(5, 6, 9),
            origin: [1, 2, 3],
            flip: [false; 3],
            half: false,
            least: 0.0,
            elem: Elem::F32,
            windows: [Window::whole(0)],
            target: Target::whole(5),
        };
        let one = Extent::new(1, 1, 1);
        let list = [
            ("inside", base.clone()),
            ("flipped", Self { flip: [true; 3], ..base.clone() }),
            ("flipped_along_h_over_the_end", Self { flip: [false, true, false], origin: [3, 4, 6], ..base.clone() }),
            ("before_the_begin", Self { origin: [-1, -2, -3], flip: [true, false, true], ..base.clone() }),
            ("larger_than_the_whole", Self { tile: Map::new(Extent::new(8, 9, 12), 3), origin: [-1, -1, -2], ..base.clone() }),
            ("half_weights", Self { half: true, least: 0.01, ..base.clone() }),
            ("one_voxel", Self { tile: Map::new(one, 1), whole: one, origin: [0; 3], target: Target::whole(1), ..base.clone() }),
            ("flipped_f16", Self { elem: Elem::F16, flip: [true, false, true], ..base }),
        ];
        list.into_iter().map(|(label, k)| (label.to_owned(), k)).collect()
    }
}
