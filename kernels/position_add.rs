//! Adds a sinusoidal positional encoding, given as one table an axis; each channel depends on one axis only.
//!
//! Source: `positional_encoding` of the U-Transformer reference definition (2D: first half of the channels encodes the
//! last axis, sin and cos interleaved; 3D: one block an axis in the order D, H, W, sines before cosines).

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch of the addition.
#[derive(Clone, Debug)]
pub struct PositionAdd {
    /// Shape of source and output.
    pub map: Map,
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
    extent: [u32; 3],
    blocks: u32,
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

/// Elements of the table of a map: `[D + H + W][C padded]`.
#[must_use]
pub fn table_len(map: Map) -> u64 {
    map.extent.axes().iter().map(|&n| u64::from(n)).sum::<u64>() * u64::from(map.blocks()) * 4
}

/// The table of a map for networks of `dims` dimensions (2 or 3), computed in f64.
#[must_use]
pub fn table(map: Map, dims: u32) -> Vec<f32> {
    let channels = map.channels as usize;
    let padded = map.blocks() as usize * 4;
    let [d, h, w] = map.extent.axes().map(|n| n as usize);
    let mut out = vec![0.0f32; (d + h + w) * padded];
    let mut put = |row: usize, channel: usize, angle: f64, sine: bool| {
        if channel < channels {
            #[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
            {
                out[row * padded + channel] = (if sine { angle.sin() } else { angle.cos() }) as f32;
            }
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "positions and channel counts are small")]
    if dims == 2 {
        let half = channels / 2;
        for (begin, first, n) in [(d + h, 0, w), (d, half, h)] {
            for p in 0..n {
                for i in (0..half).step_by(2) {
                    let angle = p as f64 * (i as f64 * -(10_000f64.ln() / half as f64)).exp();
                    put(begin + p, first + i, angle, true);
                    put(begin + p, first + i + 1, angle, false);
                }
            }
        }
    } else {
        let block = channels.div_ceil(3).next_multiple_of(2);
        for (axis, (begin, n)) in [(0, d), (d, h), (d + h, w)].into_iter().enumerate() {
            for p in 0..n {
                for i in 0..block / 2 {
                    let angle = p as f64 * 10_000f64.powf(-2.0 * i as f64 / block as f64);
                    put(begin + p, axis * block + i, angle, true);
                    put(begin + p, axis * block + block / 2 + i, angle, false);
                }
            }
        }
    }
    out
}

impl Kernel for PositionAdd {
    const NAME: &'static str = "position_add";
    const SHADER: &'static str = include_str!("../shaders/position_add.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps))
    }

    fn params(&self) -> Params {
        Params {
            extent: self.map.extent.axes(),
            blocks: self.map.blocks(),
            first: self.windows[0].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.map.extent.w) * u64::from(self.map.blocks()), self.map.extent.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let n = elements(self.map.extent, self.map.channels, self.target.count);
        Cost { flops: 3 * n, bytes: (2 * n + table_len(self.map)) * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        let n = elements(self.map.extent, self.map.channels, self.map.extent.d);
        vec![n, table_len(self.map), n]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.map.extent.d, reach: Reach::Same }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [src, table] = inputs else { return };
        let channels = self.map.blocks() as usize * 4;
        let [d, h, w] = self.map.extent.axes().map(|n| n as usize);
        self.target.planes(output.floats(), h * w * channels).for_each(|(z, plane)| {
            let source = &src[(z - self.windows[0].first as usize) * h * w * channels..];
            for (at, y) in plane.iter_mut().enumerate() {
                let (c, voxel) = (at % channels, at / channels);
                let row = |r: usize| table[r * channels + c];
                *y = source[at] + (row(z) + row(d + voxel / w) + row(d + h + voxel % w));
            }
        });
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let base = Self {
            map: Map::new(Extent::new(3, 5, 7), 10),
            elem: Elem::F32,
            windows: [Window::whole(0)],
            target: Target { first: 0, begin: 0, count: 3 },
        };
        vec![("plain".to_owned(), base.clone()), ("plain_f16".to_owned(), Self { elem: Elem::F16, ..base })]
    }
}
