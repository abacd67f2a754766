//! 3D convolution of small kernels in tiles, for GPUs: what [`super::conv3d_direct`] computes, its inputs staged in workgroup memory.
//!
//! Source: cross-correlation as `torch.nn.Conv3d` defines it; tiles as of an implicit matrix product (Chetlur et al., cuDNN, arXiv
//! 1410.0759). Weights are packed by [`super::pack_weights`]. [`super::tile`] says which convolutions are cut, and how.

use bytemuck::{Pod, Zeroable};

use super::tile::{THREADS, Tile};
use super::{
    Binding, BindingSizes, ConvShape, Cost, HostSlice, Kernel, Load, Reach, Source, Target, Through, Variant, Window, conv3d_direct,
};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// One dispatch of the convolution in tiles.
#[derive(Clone, Debug)]
pub struct Conv3dTiled(pub ConvShape);

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    in_extent: [u32; 3],
    a_blocks: u32,
    out_extent: [u32; 3],
    b_blocks: u32,
    a_first: u32,
    a_split: u32,
    b_first: u32,
    b_split: u32,
    out_first: u32,
    out_begin: u32,
    out_end: u32,
    out_blocks: u32,
    coarse: [u32; 3],
    row_tiles: u32,
    a_norm_first: u32,
    b_norm_first: u32,
    in_end: u32,
    depth_taps: u32,
    row_taps: u32,
    slots: u32,
    pad: [u32; 2],
}

impl Conv3dTiled {
    /// How the dispatch is cut; every shape that [`super::tile::tiles`] admits has a tile.
    #[must_use]
    pub fn tile(&self) -> Tile {
        Tile::choose(&self.0).unwrap_or_default()
    }

    /// Tiles along D, H, W.
    fn tiles(&self) -> [u32; 3] {
        let (out, [d, h, w]) = (self.0.output(), self.tile().extent);
        [self.0.target.count.div_ceil(d), out.h.div_ceil(h), out.w.div_ceil(w)]
    }

    fn is_split(&self, map: usize) -> bool {
        self.0.window(map).split != u32::MAX
    }
}

impl Kernel for Conv3dTiled {
    const NAME: &'static str = "conv3d_tiled";
    const SHADER: &'static str = concat!(
        include_str!("../shaders/shared/window.wgsl"),
        include_str!("../shaders/shared/resize.wgsl"),
        include_str!("../shaders/shared/weights.wgsl"),
        include_str!("../shaders/conv3d_tiled.wgsl")
    );
    const BINDINGS: &'static [Binding] = ConvShape::BINDINGS_IN_TWO;
    type Params = Params;

    fn variant(&self, _: &DeviceCaps) -> Variant {
        let (s, tile) = (&self.0, self.tile());
        let mut variant = s.window_constants(Variant::new(s.elem, THREADS));
        let table = if s.through().is_some() { tile.brick.iter().sum() } else { 1 };
        for (names, values) in [(["TZ", "TY", "TX"], tile.extent), (["BZ", "BY", "BX"], tile.brick)] {
            for (name, value) in names.into_iter().zip(values) {
                variant = variant.set(name, value);
            }
        }
        for (name, value) in [
            ("VOXELS", tile.voxels),
            ("OUTS", tile.outs),
            ("STAGED", tile.staged),
            ("ROW", tile.row()),
            ("BRICK", tile.pitch()),
            ("SLOTS", tile.slots()),
            ("TABLE", table),
            ("SPLIT_A", self.is_split(0).into()),
            ("SPLIT_B", (!s.residual && self.is_split(1)).into()),
        ] {
            variant = variant.set(name, value);
        }
        s.source_constants(variant).activation(s.activation)
    }

    fn params(&self) -> Params {
        let (s, tile) = (&self.0, self.tile());
        let [a_blocks, b_blocks] = s.blocks();
        let out_end = s.target.begin + s.target.count;
        Params {
            in_extent: s.input.axes(),
            a_blocks,
            out_extent: s.output().axes(),
            b_blocks,
            a_first: s.window(0).first,
            a_split: s.window(0).split,
            b_first: s.window(1).first,
            b_split: s.window(1).split,
            out_first: s.target.first,
            out_begin: s.target.begin,
            out_end,
            out_blocks: s.map().blocks(),
            coarse: s.through().map_or(s.input, |through| through.stored).axes(),
            row_tiles: self.tiles()[2],
            a_norm_first: s.norm_window(0).first,
            b_norm_first: s.norm_window(1).first,
            in_end: Reach::Taps(s.taps()).planes(s.input.d, s.output().d, &(s.target.begin..out_end)).end,
            depth_taps: s.kernel[0],
            row_taps: s.kernel[1],
            slots: tile.slots(),
            pad: [0; 2],
        }
    }

    fn grid(&self) -> [u64; 3] {
        let [d, h, w] = self.tiles();
        let groups = u64::from(self.0.out_blocks().div_ceil(self.tile().outs));
        [u64::from(h) * u64::from(w) * u64::from(THREADS), groups, d.into()]
    }

    fn cost(&self) -> Cost {
        let tile = self.tile();
        let bricks: u64 = self.tiles().into_iter().map(u64::from).product();
        let voxels: u64 = tile.brick.into_iter().map(u64::from).product();
        self.0.cost_of(bricks * voxels * u64::from(self.0.out_blocks().div_ceil(tile.outs)))
    }

    fn sizes(&self) -> BindingSizes {
        self.0.sizes()
    }

    fn sources(&self) -> Vec<Source> {
        let s = &self.0;
        let alone = s.kernel[0] == 1 && s.stride[0] == 1 && s.padding[0] == 0 && s.through().is_none();
        s.sources(if alone { Reach::Same } else { Reach::Taps(s.taps()) })
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        self.0.operands()
    }

    fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
        self.0.bind(sources, constants, 2)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        self.0.reference(inputs, output.floats());
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.0.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        // what tiles do that rows do not, in each way of cutting them
        let labels = [
            "k2_stride2",
            "one_voxel",
            "k3_norm",
            "k3_concat_norms",
            "k3_stride2_norm_of_second",
            "k1x3x3_planes_norms",
            "k3_concat_upsampled",
            "k3_half_pixel_odd",
            "k3_nearest",
            "k3_residual_of_planes_norm",
        ];
        let all = conv3d_direct::Conv3dDirect::cases().into_iter();
        let of_direct: Vec<_> = all.filter(|(label, _)| labels.contains(&label.as_str())).map(|(label, call)| (label, call.0)).collect();
        let base = conv3d_direct::Conv3dDirect::cases().swap_remove(0).1.0;
        let norm = Load { norm: Some(super::Scope::Volume), activation: super::Activation::LeakyRelu { slope: 0.01 } };
        let through = |d, h, w| Some(Through { stored: Extent::new(d, h, w), mode: super::Interpolation::Aligned });
        let large = ConvShape { input: Extent::new(9, 35, 37), in_channels: [9, 0], out_channels: 40, ..base };
        let more = [
            ("k3_tiles", large.clone()),
            ("k3_tiles_stride2", ConvShape { stride: [2; 3], ..large.clone() }),
            ("k1x3x3_tiles", ConvShape { kernel: [1, 3, 3], padding: [0, 1, 1], ..large.clone() }),
            (
                "k1_rows_residual",
                ConvShape { kernel: [1; 3], padding: [0; 3], residual: true, loads: [norm; 2], ..large.clone() }.flattened(),
            ),
            ("k1_rows_concat", ConvShape { kernel: [1; 3], padding: [0; 3], in_channels: [9, 6], ..large.clone() }.flattened()),
            ("k3_tiles_upsampled", ConvShape { upsampled: [through(5, 18, 19), None], ..large }),
        ];
        let whole = |s: ConvShape| ConvShape { target: Target::whole(s.output().d), ..s };
        let more = more.into_iter().map(|(label, s)| (label.to_owned(), whole(s)));
        of_direct.into_iter().chain(more).map(|(label, s)| (label, Self(s))).collect()
    }
}
