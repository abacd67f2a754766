//! Max pooling with stride = window and no padding, as `torch.nn.MaxPool3d(k)`; extents are floored.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Taps, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch of max pooling.
#[derive(Clone, Debug)]
pub struct MaxPool3d {
    /// Extent of the source.
    pub input: Extent,
    /// Channels.
    pub channels: u32,
    /// Window and stride along D, H, W.
    pub kernel: [u32; 3],
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
    blocks: u32,
    out_extent: [u32; 3],
    first: u32,
    split: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

impl MaxPool3d {
    /// Extent of the output.
    #[must_use]
    pub fn output(&self) -> Extent {
        let [d, h, w] = self.input.axes();
        Extent::new(d / self.kernel[0], h / self.kernel[1], w / self.kernel[2])
    }

    fn map(&self) -> Map {
        Map::new(self.output(), self.channels)
    }
}

impl Kernel for MaxPool3d {
    const NAME: &'static str = "max_pool3d";
    const SHADER: &'static str = include_str!("../shaders/max_pool3d.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let [d, h, w] = self.kernel;
        Variant::new(self.elem, workgroup_size(caps)).set("KD", d).set("KH", h).set("KW", w)
    }

    fn params(&self) -> Params {
        Params {
            in_extent: self.input.axes(),
            blocks: self.map().blocks(),
            out_extent: self.output().axes(),
            first: self.windows[0].first,
            split: self.windows[0].split,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.output().w) * u64::from(self.map().blocks()), self.output().h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let out = elements(self.output(), self.channels, self.target.count);
        let taps = self.kernel.iter().map(|&k| u64::from(k)).product::<u64>();
        Cost { flops: out * taps, bytes: out * (taps + 1) * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        let n = elements(self.input, self.channels, self.input.d);
        vec![n, n, elements(self.output(), self.channels, self.output().d)]
    }

    fn sources(&self) -> Vec<Source> {
        let reach = Reach::Taps(Taps { kernel: self.kernel[0], stride: self.kernel[0], padding: 0 });
        vec![Source { planes: self.input.d, reach }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [lo, hi] = inputs else { return };
        let channels = self.map().blocks() as usize * 4;
        let (n_w, plane_in) = (self.input.w as usize, self.input.plane() as usize * channels);
        let out = self.output();
        let [kd, kh, kw] = self.kernel.map(|k| k as usize);
        self.target.planes(output.floats(), out.plane() as usize * channels).for_each(|(z, plane)| {
            for (at, value) in plane.iter_mut().enumerate() {
                let (c, voxel) = (at % channels, at / channels);
                let (y, x) = (voxel / out.w as usize * kh, voxel % out.w as usize * kw);
                *value = f32::NEG_INFINITY;
                for i in 0..kd {
                    let source = self.windows[0].plane(lo, hi, z * kd + i, plane_in);
                    for j in 0..kh {
                        for k in 0..kw {
                            *value = value.max(source[((y + j) * n_w + x + k) * channels + c]);
                        }
                    }
                }
            }
        });
    }

    fn cases() -> Vec<(String, Self)> {
        let base = Self {
            input: Extent::new(5, 7, 9),
            channels: 6,
            kernel: [2; 3],
            elem: Elem::F32,
            windows: [Window::whole(0)],
            target: Target { first: 0, begin: 0, count: 2 },
        };
        vec![
            ("odd".to_owned(), base.clone()),
            ("planes".to_owned(), Self { kernel: [1, 2, 2], target: Target { first: 0, begin: 0, count: 5 }, ..base.clone() }),
            ("odd_f16".to_owned(), Self { elem: Elem::F16, ..base }),
        ]
    }
}
