//! The channels of one map, then those of another, stored: where not all readers can read both where they lie.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch of the concatenation.
#[derive(Clone, Debug)]
pub struct Concat {
    /// Extent of both sources and of the result.
    pub extent: Extent,
    /// Channels of the sources.
    pub channels: [u32; 2],
    /// Storage type.
    pub elem: Elem,
    /// Where the sources' planes lie.
    pub windows: [Window; 2],
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    rows: u32,
    width: u32,
    blocks: u32,
    out_first: u32,
    channels: [u32; 2],
    first: [u32; 2],
    out_begin: u32,
    pad: [u32; 3],
}

impl Concat {
    fn map(&self) -> Map {
        Map::new(self.extent, self.channels[0].saturating_add(self.channels[1]))
    }
}

impl Kernel for Concat {
    const NAME: &'static str = "concat";
    const SHADER: &'static str = include_str!("../shaders/concat.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let whole = self.channels.iter().all(|c| c.is_multiple_of(4));
        Variant::new(self.elem, workgroup_size(caps)).set("WHOLE", u8::from(whole))
    }

    fn params(&self) -> Params {
        Params {
            rows: self.extent.h,
            width: self.extent.w,
            blocks: self.map().blocks(),
            out_first: self.target.first,
            channels: self.channels,
            first: self.windows.map(|window| window.first),
            out_begin: self.target.begin,
            pad: [0; 3],
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.extent.w) * u64::from(self.map().blocks()), self.extent.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        Cost { flops: 0, bytes: 2 * elements(self.extent, self.map().channels, self.target.count) * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        let [a, b] = self.channels;
        [a, b, self.map().channels].map(|channels| elements(self.extent, channels, self.extent.d)).to_vec()
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.extent.d, reach: Reach::Same }; 2]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [a, b] = inputs else { return };
        let stored = self.channels.map(|c| c.next_multiple_of(4) as usize);
        let [first, second] = self.channels.map(|c| c as usize);
        let (width, voxels) = (self.map().blocks() as usize * 4, self.extent.plane() as usize);
        self.target.planes(output.floats(), voxels * width).for_each(|(z, plane)| {
            let [a, b] = [(a, 0), (b, 1)].map(|(map, slot)| &map[(z - self.windows[slot].first as usize) * voxels * stored[slot]..]);
            for (voxel, out) in plane.chunks_exact_mut(width).enumerate() {
                out[..first].copy_from_slice(&a[voxel * stored[0]..][..first]);
                out[first..first + second].copy_from_slice(&b[voxel * stored[1]..][..second]);
                out[first + second..].fill(0.0);
            }
        });
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let base = Self {
            extent: Extent::new(3, 5, 7),
            channels: [4, 8],
            elem: Elem::F32,
            windows: [Window::whole(0); 2],
            target: Target::whole(3),
        };
        let list = [
            ("whole", base.clone()),
            ("first_odd", Self { channels: [6, 8], ..base.clone() }),
            ("both_odd", Self { channels: [3, 7], ..base.clone() }),
            ("second_odd", Self { channels: [4, 1], ..base.clone() }),
            ("in_one_block", Self { channels: [1, 2], ..base.clone() }),
            ("one_voxel", Self { extent: Extent::new(1, 1, 1), channels: [2, 5], target: Target::whole(1), ..base.clone() }),
            ("whole_f16", Self { elem: Elem::F16, ..base.clone() }),
            ("both_odd_f16", Self { channels: [3, 7], elem: Elem::F16, ..base }),
        ];
        list.into_iter().map(|(label, k)| (label.to_owned(), k)).collect()
    }
}
