//! What the two kernels share that measure a device's ceilings: each maps blocks of 4 f32 values to as many.

use bytemuck::{Pod, Zeroable};

use super::{BindingSizes, Reach, Source, Target, Window};

/// Blocks of 4 values in planes and rows.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// Planes, rows, and blocks of a row.
    pub extent: [u32; 3],
    /// Where the source's planes lie.
    pub windows: [Window; 1],
    /// What is written.
    pub target: Target,
}

/// The uniform block of both shaders.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    row: u32,
    rows: u32,
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad: [u32; 3],
}

impl Blocks {
    /// All of so many planes, rows, and blocks of a row.
    #[must_use]
    pub const fn whole(extent: [u32; 3]) -> Self {
        Self { extent, windows: [Window::whole(0)], target: Target::whole(extent[0]) }
    }

    /// Values that are written.
    pub(super) fn values(&self) -> u64 {
        u64::from(self.target.count) * self.plane()
    }

    fn plane(&self) -> u64 {
        u64::from(self.extent[1]) * u64::from(self.extent[2]) * 4
    }

    pub(super) fn params(&self) -> Params {
        Params {
            row: self.extent[2],
            rows: self.extent[1],
            first: self.windows[0].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: [0; 3],
        }
    }

    pub(super) fn grid(&self) -> [u64; 3] {
        [self.extent[2].into(), self.extent[1].into(), self.target.count.into()]
    }

    pub(super) fn sizes(&self) -> BindingSizes {
        vec![u64::from(self.extent[0]) * self.plane(); 2]
    }

    pub(super) fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.extent[0], reach: Reach::Same }]
    }

    /// Writes what `f` makes of the four values of a block.
    pub(super) fn map(&self, input: &[f32], output: &mut [f32], f: impl Fn([f32; 4]) -> [f32; 4] + Sync) {
        use rayon::prelude::*;
        let n = self.plane() as usize;
        self.target.planes(output, n).for_each(|(z, plane)| {
            let source = &input[(z - self.windows[0].first as usize) * n..][..n];
            for (y, x) in plane.as_chunks_mut::<4>().0.iter_mut().zip(source.as_chunks::<4>().0) {
                *y = f(*x);
            }
        });
    }
}
