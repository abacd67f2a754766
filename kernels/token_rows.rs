//! Rows of a table as the voxels of a map, over and over: learned tokens, the same for every window.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch; the table is its constant.
#[derive(Clone, Debug)]
pub struct TokenRows {
    /// The map that is made.
    pub map: Map,
    /// Rows of the table.
    pub rows: u32,
    /// Storage type.
    pub elem: Elem,
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    extent: [u32; 3],
    blocks: u32,
    rows: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

/// Elements of a table of so many rows: `[rows][C padded]`.
#[must_use]
pub fn table_len(map: Map, rows: u32) -> u64 {
    u64::from(rows) * u64::from(map.blocks()) * 4
}

impl Kernel for TokenRows {
    const NAME: &'static str = "token_rows";
    const SHADER: &'static str = include_str!("../shaders/token_rows.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps))
    }

    fn params(&self) -> Params {
        Params {
            extent: self.map.extent.axes(),
            blocks: self.map.blocks(),
            rows: self.rows,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.map.extent.w) * u64::from(self.map.blocks()), self.map.extent.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let written = elements(self.map.extent, self.map.channels, self.target.count);
        Cost { flops: 0, bytes: (written + table_len(self.map, self.rows)) * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        vec![table_len(self.map, self.rows), elements(self.map.extent, self.map.channels, self.map.extent.d)]
    }

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut [], &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [table] = inputs else { return };
        let width = self.map.blocks() as usize * 4;
        #[expect(clippy::cast_possible_truncation, reason = "a plane that is in memory")]
        let plane = self.map.extent.plane() as usize;
        self.target.planes(output.floats(), plane * width).for_each(|(z, values)| {
            for (at, voxel) in values.chunks_exact_mut(width).enumerate() {
                voxel.copy_from_slice(&table[(z * plane + at) % self.rows as usize * width..][..width]);
            }
        });
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let list = [
            ("once", Extent::new(2, 3, 5), 6, 30, Elem::F32),
            ("over_and_over", Extent::new(3, 2, 7), 9, 4, Elem::F32),
            ("one_row", Extent::new(1, 1, 1), 3, 1, Elem::F32),
            ("over_and_over_f16", Extent::new(3, 2, 7), 9, 4, Elem::F16),
        ];
        let case = |(label, extent, channels, rows, elem): (&str, Extent, _, _, _)| {
            (label.to_owned(), Self { map: Map::new(extent, channels), rows, elem, target: Target::whole(extent.d) })
        };
        list.into_iter().map(case).collect()
    }
}
