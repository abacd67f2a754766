//! Patches of voxels as the channels of one voxel, as the patch merging of Swin does; zeros at the end of odd sizes.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Taps, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// Most voxels of a patch that are merged.
pub const MOST_PATCH_PARTS: usize = 8;

/// One dispatch of merging patches.
#[derive(Clone, Debug)]
pub struct PatchMerge {
    /// Extent of the source.
    pub input: Extent,
    /// Channels of the source.
    pub channels: u32,
    /// Voxels of a patch along D, H, W.
    pub patch: [u32; 3],
    /// Offsets along D, H, W of the voxels of a patch, below 256, in the order of their channels; at most [`MOST_PATCH_PARTS`].
    pub order: Vec<[u32; 3]>,
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
    in_extent: [u32; 3],
    channels: u32,
    out_extent: [u32; 3],
    parts: u32,
    patch: [u32; 3],
    first: u32,
    split: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
    order: [u32; MOST_PATCH_PARTS],
}

impl PatchMerge {
    fn parts(&self) -> u32 {
        u32::try_from(self.order.len()).unwrap_or(u32::MAX)
    }

    fn map(&self) -> Map {
        let n = self.input.axes();
        Map::new([0, 1, 2].map(|axis| n[axis].div_ceil(self.patch[axis])).into(), self.channels * self.parts())
    }
}

impl Kernel for PatchMerge {
    const NAME: &'static str = "patch_merge";
    const SHADER: &'static str = include_str!("../shaders/patch_merge.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps)).set("WHOLE", u8::from(self.channels.is_multiple_of(4)))
    }

    fn params(&self) -> Params {
        let mut order = [0; MOST_PATCH_PARTS];
        for (packed, [d, h, w]) in order.iter_mut().zip(&self.order) {
            *packed = d << 16 | h << 8 | w;
        }
        Params {
            in_extent: self.input.axes(),
            channels: self.channels,
            out_extent: self.map().extent.axes(),
            parts: self.parts(),
            patch: self.patch,
            first: self.windows[0].first,
            split: self.windows[0].split,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: 0,
            order,
        }
    }

    fn grid(&self) -> [u64; 3] {
        let map = self.map();
        [u64::from(map.extent.w) * u64::from(map.blocks()), map.extent.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let map = self.map();
        Cost { flops: 0, bytes: 2 * elements(map.extent, map.channels, self.target.count) * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        let (n, map) = (elements(self.input, self.channels, self.input.d), self.map());
        vec![n, n, elements(map.extent, map.channels, map.extent.d)]
    }

    fn sources(&self) -> Vec<Source> {
        let reach = Reach::Taps(Taps { kernel: self.patch[0], stride: self.patch[0], padding: 0 });
        vec![Source { planes: self.input.d, reach }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [lo, hi] = inputs else { return };
        let (map, n) = (self.map(), self.input.axes().map(|n| n as usize));
        let (channels, stored) = (self.channels as usize, self.channels.next_multiple_of(4) as usize);
        let (width, w) = (map.blocks() as usize * 4, map.extent.w as usize);
        self.target.planes(output.floats(), map.extent.plane() as usize * width).for_each(|(z, plane)| {
            for (at, voxel) in plane.chunks_exact_mut(width).enumerate() {
                voxel.fill(0.0);
                let corner = [z, at / w, at % w];
                for (part, offset) in voxel.chunks_mut(channels).zip(&self.order) {
                    let from = [0, 1, 2].map(|axis| corner[axis] * self.patch[axis] as usize + offset[axis] as usize);
                    if from.iter().zip(n).all(|(&from, n)| from < n) {
                        let source = self.windows[0].plane(lo, hi, from[0], n[1] * n[2] * stored);
                        part.copy_from_slice(&source[(from[1] * n[2] + from[2]) * stored..][..channels]);
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
        let swin = vec![[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]];
        let cube: Vec<[u32; 3]> = (0..8).map(|i| [i >> 2, i >> 1 & 1, i & 1]).collect();
        let list = [
            ("swin", [1, 2, 2], swin.clone(), 8, Elem::F32),
            ("swin_unpadded", [1, 2, 2], swin.clone(), 3, Elem::F32),
            ("cubes", [2; 3], cube.clone(), 4, Elem::F32),
            ("cubes_unpadded", [2; 3], cube.clone(), 5, Elem::F32),
            ("some_of_large_patches", [3, 4, 1], vec![[2, 3, 0], [0, 0, 0], [1, 3, 0]], 2, Elem::F32),
            ("swin_f16", [1, 2, 2], swin, 6, Elem::F16),
            ("cubes_f16", [2; 3], cube, 4, Elem::F16),
        ];
        let case = |(label, patch, order, channels, elem): (&str, _, _, _, _)| {
            let (input, windows) = (Extent::new(5, 7, 9), [Window::whole(0)]);
            let mut k = Self { input, channels, patch, order, elem, windows, target: Target::whole(0) };
            k.target = Target::whole(k.map().extent.d);
            (label.to_owned(), k)
        };
        list.into_iter().map(case).collect()
    }
}
