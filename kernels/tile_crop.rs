//! A tile of the scan as the network is given it: cropped, mirrored, zero beyond the scan.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// A tile of a volume, of which a ring of planes is at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TilePlace {
    /// Extent of the tile.
    pub tile: Extent,
    /// Extent of the volume.
    pub whole: Extent,
    /// Planes of the volume that are at hand: plane z lies at z % ring.
    pub ring: u32,
    /// The tile's first voxel along D, H, W, which may be outside of the volume.
    pub origin: [i32; 3],
    /// The tile is mirrored along these axes.
    pub flip: [bool; 3],
}

impl TilePlace {
    /// The flips as bits: 1 along D, 2 along H, 4 along W.
    pub(super) fn flips(&self) -> u32 {
        (0..3).map(|axis| u32::from(self.flip[axis]) << axis).sum()
    }

    /// Index `i` along an axis of the tile, turned back if it is mirrored there.
    pub(super) fn turned(&self, axis: usize, i: u32) -> u32 {
        if self.flip[axis] { self.tile.axes()[axis] - 1 - i } else { i }
    }

    /// The voxel of the volume at a place of the tile, as it lies in the ring; `None` outside.
    pub(super) fn voxel(&self, place: [u32; 3]) -> Option<[usize; 3]> {
        let mut at = [0; 3];
        for axis in 0..3 {
            let i = i64::from(self.origin[axis]) + i64::from(self.turned(axis, place[axis]));
            at[axis] = usize::try_from(i).ok().filter(|&i| i < self.whole.axes()[axis] as usize)?;
        }
        at[0] %= self.ring as usize;
        Some(at)
    }
}

/// One dispatch. The source is the ring of the scan's planes, `[C][ring][H][W]`, always f32.
#[derive(Clone, Debug)]
pub struct TileCrop {
    /// The tile.
    pub place: TilePlace,
    /// Channels of the scan; one is repeated to all channels of the network.
    pub channels: u32,
    /// Shape of what the network is given.
    pub map: Map,
    /// Its storage type.
    pub elem: Elem,
    /// Place of the scan's planes.
    pub windows: [Window; 1],
    /// Planes of the tile.
    pub target: Target,
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
    channels: u32,
    step: u32,
    out_first: u32,
    out_begin: u32,
}

impl TileCrop {
    /// Values from a channel of the ring to the next.
    fn step(&self) -> u64 {
        if self.channels == 1 { 0 } else { self.place.whole.plane() * u64::from(self.place.ring) }
    }
}

impl Kernel for TileCrop {
    const NAME: &'static str = "tile_crop";
    const SHADER: &'static str = concat!(include_str!("../shaders/shared/half.wgsl"), include_str!("../shaders/tile_crop.wgsl"));
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps)).set("HALF", u8::from(self.elem == Elem::F16))
    }

    #[expect(clippy::cast_possible_truncation, reason = "windows are planned within bindings of u32 indices")]
    fn params(&self) -> Params {
        Params {
            tile: self.place.tile.axes(),
            blocks: self.map.blocks(),
            whole: self.place.whole.axes(),
            ring: self.place.ring,
            origin: self.place.origin,
            flips: self.place.flips(),
            channels: self.map.channels,
            step: self.step() as u32,
            out_first: self.target.first,
            out_begin: self.target.begin,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.map.extent.w) * u64::from(self.map.blocks()), self.map.extent.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let n = elements(self.map.extent, self.map.channels, self.target.count);
        Cost { flops: 0, bytes: n * (4 + self.elem.bytes()) }
    }

    fn sizes(&self) -> BindingSizes {
        let ring = self.place.whole.plane() * u64::from(self.place.ring) * u64::from(self.channels);
        vec![ring, elements(self.map.extent, self.map.channels, self.map.extent.d)]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.place.ring, reach: Reach::Whole }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [scan] = inputs else { return };
        let (channels, step) = (self.map.blocks() as usize * 4, self.step() as usize);
        let Extent { h, w, .. } = self.map.extent;
        let [rows, row] = [self.place.whole.h, self.place.whole.w].map(|n| n as usize);
        self.target.planes(output.floats(), (h * w) as usize * channels).for_each(|(z, plane)| {
            let voxels = (0..h).flat_map(|y| (0..w).map(move |x| [z as u32, y, x]));
            for (out, place) in plane.chunks_exact_mut(channels).zip(voxels) {
                out.fill(0.0);
                let Some([z, y, x]) = self.place.voxel(place) else { continue };
                let from = (z * rows + y) * row + x;
                let values = out.iter_mut().take(self.map.channels as usize).enumerate();
                values.for_each(|(channel, value)| *value = scan[channel * step + from]);
            }
        });
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
            map: Map::new(place.tile, 6),
            elem: Elem::F32,
            windows: [Window::whole(0)],
            target: Target::whole(3),
        };
        let at = |origin: [i32; 3], flip: [bool; 3]| TilePlace { origin, flip, ..place };
        let large = Extent::new(8, 9, 12);
        let list = [
            ("inside", base.clone()),
            ("flipped", Self { place: at([1, 2, 3], [true; 3]), ..base.clone() }),
            ("grey_over_the_end", Self { place: at([3, 4, 6], [false, true, false]), channels: 1, ..base.clone() }),
            ("before_the_begin", Self { place: at([-1, -2, -3], [true, false, true]), ..base.clone() }),
            ("of_a_ring", Self { place: TilePlace { ring: 3, ..at([2, 1, 2], [true, false, false]) }, ..base.clone() }),
            (
                "larger_than_the_whole",
                Self {
                    place: TilePlace { tile: large, ..at([-1, -1, -2], [false; 3]) },
                    map: Map::new(large, 6),
                    target: Target::whole(8),
                    ..base
                },
            ),
        ];
        list.into_iter().map(|(label, k)| (label.to_owned(), k)).collect()
    }
}
