//! Statistics of each channel over parts of a plane: the first of the three steps from a map to the scale and shift of its
//! norm, taken while the slab is at hand.
//!
//! Source: the running update of Welford (Technometrics 4, 1962) and the pairwise combination of Chan, Golub & LeVeque
//! (The American Statistician 37, 1983).

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostHalf, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// Rows of a part.
pub(super) const ROWS: u32 = 8;

/// One dispatch of the statistics: `[D][parts][2][C padded]`, means and sums of squared deviations, always f32.
#[derive(Clone, Debug)]
pub struct ChannelStats {
    /// Shape of the source.
    pub map: Map,
    /// Storage type of the source.
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
    rows: u32,
    width: u32,
    blocks: u32,
    parts: u32,
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

/// Parts of a plane of `rows` rows.
#[must_use]
pub const fn parts(rows: u32) -> u32 {
    rows.div_ceil(ROWS)
}

/// Elements of the statistics of a plane of `map`.
pub(super) fn plane_len(map: Map) -> u64 {
    u64::from(parts(map.extent.h)) * u64::from(map.blocks()) * 8
}

impl Kernel for ChannelStats {
    const NAME: &'static str = "channel_stats";
    const SHADER: &'static str = include_str!("../shaders/channel_stats.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::WriteF32];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps)).set("ROWS", ROWS)
    }

    fn params(&self) -> Params {
        Params {
            rows: self.map.extent.h,
            width: self.map.extent.w,
            blocks: self.map.blocks(),
            parts: parts(self.map.extent.h),
            first: self.windows[0].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [1, parts(self.map.extent.h).into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let n = elements(self.map.extent, self.map.channels, self.target.count);
        Cost { flops: 7 * n, bytes: n * self.elem.bytes() + plane_len(self.map) * u64::from(self.target.count) * 4 }
    }

    fn sizes(&self) -> BindingSizes {
        let d = self.map.extent.d;
        vec![elements(self.map.extent, self.map.channels, d), plane_len(self.map) * u64::from(d)]
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
        let row = self.map.extent.w as usize * channels;
        let n = self.map.extent.h as usize * row;
        self.target.planes(output.floats(), plane_len(self.map) as usize).for_each(|(z, plane)| {
            let source = &src[(z - self.windows[0].first as usize) * n..][..n];
            for (part, out) in source.chunks(ROWS as usize * row).zip(plane.chunks_exact_mut(2 * channels)) {
                let voxels = (part.len() / channels) as f64;
                for c in 0..channels {
                    let values = || part[c..].iter().step_by(channels).map(|&v| f64::from(v));
                    let mean = values().sum::<f64>() / voxels;
                    #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                    {
                        out[c] = mean as f32;
                        out[channels + c] = values().map(|v| (v - mean).powi(2)).sum::<f64>() as f32;
                    }
                }
            }
        });
    }

    fn host(&self) -> Option<&dyn HostHalf> {
        Some(self)
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let case = |label: &str, extent: Extent, channels: u32, elem: Elem| {
            let map = Map::new(extent, channels);
            (label.to_owned(), Self { map, elem, windows: [Window::whole(0)], target: Target::whole(extent.d) })
        };
        vec![
            case("odd", Extent::new(3, 19, 7), 6, Elem::F32),
            case("one_voxel", Extent::new(1, 1, 1), 1, Elem::F32),
            case("many_channels", Extent::new(2, 9, 3), 270, Elem::F32),
            case("three_blocks", Extent::new(2, 8, 5), 12, Elem::F32),
            case("one_channel", Extent::new(1, 33, 70), 1, Elem::F32),
            case("odd_f16", Extent::new(3, 19, 7), 6, Elem::F16),
        ]
    }
}
