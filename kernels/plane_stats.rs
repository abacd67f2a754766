//! Statistics of each channel over planes, from those of their parts: the second step from a map to the scale and shift of
//! its norm. What it writes is small, so that the third step finds that of all planes in one slab.

use bytemuck::{Pod, Zeroable};

use super::channel_stats::{ROWS, parts, plane_len};
use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch: `[D][2][C padded]`, means and biased variances, always f32.
#[derive(Clone, Debug)]
pub struct PlaneStats {
    /// Shape of the map that was measured.
    pub map: Map,
    /// Where the source's planes lie.
    pub windows: [Window; 1],
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    rows: u32,
    blocks: u32,
    parts: u32,
    first: u32,
    out_first: u32,
    out_begin: u32,
    voxels: f32,
    width: f32,
}

impl Kernel for PlaneStats {
    const NAME: &'static str = "plane_stats";
    const SHADER: &'static str = include_str!("../shaders/plane_stats.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::ReadF32, Binding::WriteF32];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(Elem::F32, workgroup_size(caps)).set("ROWS", ROWS)
    }

    #[expect(clippy::cast_precision_loss, reason = "a rounded count shifts a weight by less than rounding it")]
    fn params(&self) -> Params {
        Params {
            rows: self.map.extent.h,
            blocks: self.map.blocks(),
            parts: parts(self.map.extent.h),
            first: self.windows[0].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            voxels: self.map.extent.plane() as f32,
            width: self.map.extent.w as f32,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [self.map.blocks().into(), 1, self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let (read, planes) = (plane_len(self.map), u64::from(self.target.count));
        Cost { flops: 5 * read * planes, bytes: (read + u64::from(self.map.blocks()) * 8) * planes * 4 }
    }

    fn sizes(&self) -> BindingSizes {
        let d = u64::from(self.map.extent.d);
        vec![plane_len(self.map) * d, u64::from(self.map.blocks()) * 8 * d]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.map.extent.d, reach: Reach::Same }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [src] = inputs else { return };
        let channels = self.map.blocks() as usize * 4;
        let read = plane_len(self.map) as usize;
        let Extent { h, w, .. } = self.map.extent;
        let rows = |part: usize| f64::from((h as usize - part * ROWS as usize).min(ROWS as usize) as u32);
        let voxels = f64::from(h) * f64::from(w);
        self.target.planes(output.floats(), 2 * channels).for_each(|(z, plane)| {
            let source = &src[(z - self.windows[0].first as usize) * read..][..read];
            for c in 0..channels {
                let parts = || source.chunks_exact(2 * channels).enumerate().map(|(i, p)| (rows(i) * f64::from(w), p));
                let mean = parts().map(|(n, p)| n * f64::from(p[c])).sum::<f64>() / voxels;
                let squares = |(n, p): (f64, &[f32])| f64::from(p[channels + c]) + n * (f64::from(p[c]) - mean).powi(2);
                #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                {
                    plane[c] = mean as f32;
                    plane[channels + c] = (parts().map(squares).sum::<f64>() / voxels) as f32;
                }
            }
        });
    }

    fn cases() -> Vec<(String, Self)> {
        let case = |label: &str, extent: Extent, channels: u32| {
            let map = Map::new(extent, channels);
            (label.to_owned(), Self { map, windows: [Window::whole(0)], target: Target::whole(extent.d) })
        };
        vec![
            case("odd", Extent::new(3, 19, 7), 6),
            case("one_voxel", Extent::new(1, 1, 1), 1),
            case("many_channels", Extent::new(2, 8, 3), 270),
        ]
    }
}
