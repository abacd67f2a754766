//! Adds a sinusoidal positional encoding, given as one table an axis; each channel depends on one axis only.
//!
//! Source: see [`Angles`].

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// Which channels encode which axis, and how fast they turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Angles {
    /// U-Transformer in 2D (`positional_encoding` of the reference definition): the first half of the channels encodes the last
    /// axis, the second the one before it; sines and cosines alternate.
    Planar,
    /// U-Transformer in 3D: a block of channels for each axis in the order D, H, W; sines before cosines.
    Volume,
    /// `PositionEmbeddingSine` of CoTr's `position_encoding.py`: a third of the channels for each axis in the order D, H, W, on
    /// coordinates from 0 to 2 pi. Sines and cosines alternate, but three neighbours share an exponent, not two: what was two
    /// axes' number in the code it comes from.
    Thirds,
}

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

/// The table of a map, computed in f64.
#[must_use]
pub fn table(map: Map, angles: Angles) -> Vec<f32> {
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
    let axes = [(0, d), (d, h), (d + h, w)];
    #[expect(clippy::cast_precision_loss, reason = "positions and channel counts are small")]
    match angles {
        Angles::Planar => {
            let half = channels / 2;
            for (first, (begin, n)) in [(0, axes[2]), (half, axes[1])] {
                for p in 0..n {
                    for i in (0..half).step_by(2) {
                        let angle = p as f64 * (i as f64 * -(10_000f64.ln() / half as f64)).exp();
                        put(begin + p, first + i, angle, true);
                        put(begin + p, first + i + 1, angle, false);
                    }
                }
            }
        }
        Angles::Volume => {
            let block = channels.div_ceil(3).next_multiple_of(2);
            for (axis, (begin, n)) in axes.into_iter().enumerate() {
                for p in 0..n {
                    for i in 0..block / 2 {
                        let angle = p as f64 * 10_000f64.powf(-2.0 * i as f64 / block as f64);
                        put(begin + p, axis * block + i, angle, true);
                        put(begin + p, axis * block + block / 2 + i, angle, false);
                    }
                }
            }
        }
        Angles::Thirds => {
            let third = channels / 3;
            for (axis, (begin, n)) in axes.into_iter().enumerate() {
                for p in 0..n {
                    let at = (p as f64 + 0.5) / (n as f64 + 1e-6) * std::f64::consts::TAU;
                    for i in 0..third {
                        let angle = at / 10_000f64.powf((i / 3 * 3) as f64 / third as f64);
                        put(begin + p, axis * third + i, angle, i % 2 == 0);
                    }
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
