//! Adds a weighted tile of predictions, mirrored or not, to the sum over all tiles: the volume's accumulator, always f32.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::tile_crop::TilePlace;
use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// One dispatch. The constant is the weights along D, H and W of the tile, `[D + H + W]`, always f32.
///
/// A sum is the host's, bit by bit: `sum + value * share * weight`, every step rounded.
#[derive(Clone, Debug)]
pub struct TileAccumulate {
    /// The tile: computed of input that was mirrored, it is turned back.
    pub place: TilePlace,
    /// Classes.
    pub channels: u32,
    /// Rounding of the voxels' weights; `None` adds the values as they are.
    pub weights: Option<TileRounding>,
    /// Factor of all values.
    pub share: f32,
    /// Sums are rounded to 16-bit floats.
    pub rounded: bool,
    /// True to replace the accumulator's values instead of adding to them.
    pub fresh: bool,
    /// Storage type of the tile.
    pub elem: Elem,
    /// Planes of the tile that are added.
    pub planes: Range<u32>,
    /// Where the tile's planes lie.
    pub windows: [Window; 1],
    /// The accumulator.
    pub target: Target,
}

/// Rounding and bound of a voxel's weight, a product of weights along the axes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TileRounding {
    /// They are rounded to 16-bit floats.
    pub half: bool,
    /// The least weight of a voxel.
    pub least: f32,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    tile: [u32; 3],
    blocks: u32,
    whole: [u32; 3],
    ring: u32,
    origin: [i32; 3],
    flips: u32,
    first: u32,
    begin: u32,
    least: f32,
    share: f32,
    fresh: u32,
    pad: [u32; 3],
}

/// Weight of a voxel whose weights along the axes are `along`.
#[must_use]
pub fn weight(along: [f32; 3], rounding: TileRounding) -> f32 {
    let product = along[0] * along[1] * along[2];
    let product = if rounding.half { half::f16::from_f32(product).to_f32() } else { product };
    product.max(rounding.least)
}

impl TileAccumulate {
    fn blocks(&self) -> u32 {
        self.channels.div_ceil(4)
    }
}

impl Kernel for TileAccumulate {
    const NAME: &'static str = "tile_accumulate";
    const SHADER: &'static str = concat!(include_str!("../shaders/shared/half.wgsl"), include_str!("../shaders/tile_accumulate.wgsl"));
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::ReadF32, Binding::Update];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps))
            .set("HALF", u8::from(self.weights.is_some_and(|w| w.half)))
            .set("ROUNDED", u8::from(self.rounded))
            .set("WEIGHTED", u8::from(self.weights.is_some()))
    }

    fn params(&self) -> Params {
        Params {
            tile: self.place.tile.axes(),
            blocks: self.blocks(),
            whole: self.place.whole.axes(),
            ring: self.place.ring,
            origin: self.place.origin,
            flips: self.place.flips(),
            first: self.windows[0].first,
            begin: self.planes.start,
            least: self.weights.map_or(0.0, |w| w.least),
            share: self.share,
            fresh: self.fresh.into(),
            pad: [0; 3],
        }
    }

    fn grid(&self) -> [u64; 3] {
        let Extent { h, w, .. } = self.place.tile;
        [u64::from(w) * u64::from(self.blocks()), h.into(), self.planes.len() as u64]
    }

    fn cost(&self) -> Cost {
        let n = elements(self.place.tile, self.channels, self.planes.end - self.planes.start);
        Cost { flops: 3 * n, bytes: n * (self.elem.bytes() + 8) }
    }

    fn sizes(&self) -> BindingSizes {
        let Extent { d, h, w } = self.place.tile;
        let ring = elements(self.place.whole, self.channels, self.place.ring);
        vec![elements(self.place.tile, self.channels, d), u64::from(d) + u64::from(h) + u64::from(w), ring]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.place.tile.d, reach: Reach::Whole }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        let [tile, weights] = inputs else { return };
        let Extent { d, h, w } = self.place.tile;
        let [rows, row] = [self.place.whole.h, self.place.whole.w].map(|n| n as usize);
        let channels = self.blocks() as usize * 4;
        let sums = output.floats();
        let voxels = self.planes.clone().flat_map(|z| (0..h).flat_map(move |y| (0..w).map(move |x| [z, y, x])));
        for place in voxels {
            let Some([z, y, x]) = self.place.voxel(place) else { continue };
            let [a, b, c] = [0, 1, 2].map(|axis| self.place.turned(axis, place[axis]));
            let along = || [weights[a as usize], weights[(d + b) as usize], weights[(d + h + c) as usize]];
            let weight = self.weights.map_or(1.0, |rounding| weight(along(), rounding));
            let from = ((place[0] - self.windows[0].first) * h + place[1]) * w + place[2];
            let out = &mut sums[((z * rows + y) * row + x) * channels..][..channels];
            for (sum, &value) in out.iter_mut().zip(&tile[from as usize * channels..]) {
                let product = value * self.share * weight;
                let new = if self.fresh { product } else { *sum + product };
                *sum = if self.rounded { half::f16::from_f32(new).to_f32() } else { new };
            }
        }
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let place = TilePlace { tile: Extent::new(3, 4, 5), whole: Extent::new(5, 6, 9), ring: 5, origin: [1, 2, 3], flip: [false; 3] };
        let base = Self {
            place,
            channels: 6,
            weights: Some(TileRounding { half: false, least: 0.0 }),
            share: 1.0,
            rounded: false,
            fresh: false,
            elem: Elem::F32,
            planes: 0..3,
            windows: [Window::whole(0)],
            target: Target::whole(5),
        };
        let at = |origin: [i32; 3], flip: [bool; 3]| TilePlace { origin, flip, ..place };
        let large = TilePlace { tile: Extent::new(8, 9, 12), ..at([-1, -1, -2], [false; 3]) };
        let one = Extent::new(1, 1, 1);
        let single = TilePlace { tile: one, whole: one, ring: 1, origin: [0; 3], flip: [false; 3] };
        let half = Some(TileRounding { half: true, least: 0.01 });
        let list = [
            ("inside", base.clone()),
            ("flipped", Self { place: at([1, 2, 3], [true; 3]), ..base.clone() }),
            ("flipped_along_h_over_the_end", Self { place: at([3, 4, 6], [false, true, false]), ..base.clone() }),
            ("before_the_begin", Self { place: at([-1, -2, -3], [true, false, true]), ..base.clone() }),
            ("larger_than_the_whole", Self { place: large, channels: 3, planes: 0..8, ..base.clone() }),
            ("half_weights", Self { weights: half, ..base.clone() }),
            ("half_sums", Self { weights: half, rounded: true, share: 0.125, ..base.clone() }),
            (
                "slab_in_a_ring",
                Self {
                    place: TilePlace { ring: 3, ..at([2, 1, 2], [true, false, false]) },
                    planes: 1..3,
                    target: Target::whole(3),
                    ..base.clone()
                },
            ),
            ("mirror_images", Self { place: at([0; 3], [false, true, true]), weights: None, fresh: true, ..base.clone() }),
            ("one_voxel", Self { place: single, channels: 1, planes: 0..1, target: Target::whole(1), ..base.clone() }),
            ("flipped_f16", Self { place: at([1, 2, 3], [true, false, true]), elem: Elem::F16, ..base }),
        ];
        list.into_iter().map(|(label, k)| (label.to_owned(), k)).collect()
    }
}
