//! Pooling, as `torch.nn.MaxPool3d(kernel, stride, padding)` or `torch.nn.AvgPool3d` with those; extents are floored.

use bytemuck::{Pod, Zeroable};

use super::{
    Binding, BindingSizes, Cost, HostHalf, HostSlice, Kernel, Reach, Source, Taps, Target, Variant, Window, elements, workgroup_size,
};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch of pooling.
#[derive(Clone, Debug)]
pub struct Pool3d {
    /// Extent of the source.
    pub input: Extent,
    /// Channels.
    pub channels: u32,
    /// The mean of a window, padding counted in as zeros; else its maximum.
    pub average: bool,
    /// Window along D, H, W.
    pub kernel: [u32; 3],
    /// Voxels from window to window along D, H, W.
    pub stride: [u32; 3],
    /// Padding on both sides along D, H, W that is never a maximum; at most half a window, so that none is padding alone.
    pub padding: [u32; 3],
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

impl Pool3d {
    /// Extent of the output.
    #[must_use]
    pub fn output(&self) -> Extent {
        let n = self.input.axes();
        [0, 1, 2].map(|a| (n[a] + 2 * self.padding[a]).saturating_sub(self.kernel[a]) / self.stride[a] + 1).into()
    }

    pub(super) fn map(&self) -> Map {
        Map::new(self.output(), self.channels)
    }
}

impl Kernel for Pool3d {
    const NAME: &'static str = "pool3d";
    const SHADER: &'static str = concat!(include_str!("../shaders/shared/window.wgsl"), include_str!("../shaders/pool3d.wgsl"));
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let variant = Variant::new(self.elem, workgroup_size(caps)).set("AVERAGE", u8::from(self.average));
        variant.window(self.kernel, self.stride, self.padding)
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
        let reach = Reach::Taps(Taps { kernel: self.kernel[0], stride: self.stride[0], padding: self.padding[0] });
        vec![Source { planes: self.input.d, reach }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [lo, hi] = inputs else { return };
        let channels = self.map().blocks() as usize * 4;
        let [n_d, n_h, n_w] = self.input.axes().map(|n| n as usize);
        let (plane_in, out) = (n_h * n_w * channels, self.output());
        // the part of the window of output `o` that is no padding
        let taps = |axis: usize, o: usize, n: usize| {
            let [k, s, p] = [self.kernel, self.stride, self.padding].map(|a| a[axis] as usize);
            (o * s).saturating_sub(p)..(o * s + k - p).min(n)
        };
        self.target.planes(output.floats(), out.plane() as usize * channels).for_each(|(z, plane)| {
            for (at, value) in plane.iter_mut().enumerate() {
                let (c, voxel) = (at % channels, at / channels);
                let (mut highest, mut sum) = (f32::NEG_INFINITY, 0.0f64);
                for z in taps(0, z, n_d) {
                    let source = self.windows[0].plane(lo, hi, z, plane_in);
                    for y in taps(1, voxel / out.w as usize, n_h) {
                        for x in taps(2, voxel % out.w as usize, n_w) {
                            let tap = source[(y * n_w + x) * channels + c];
                            // NaN is above all
                            let above = tap > highest || tap.is_nan();
                            (highest, sum) = (if above && !highest.is_nan() { tap } else { highest }, sum + f64::from(tap));
                        }
                    }
                }
                let taps = self.kernel.iter().map(|&k| f64::from(k)).product::<f64>();
                #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                {
                    *value = if self.average { (sum / taps) as f32 } else { highest };
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
        let base = Self {
            input: Extent::new(5, 7, 9),
            channels: 6,
            average: false,
            kernel: [2; 3],
            stride: [2; 3],
            padding: [0; 3],
            elem: Elem::F32,
            windows: [Window::whole(0)],
            target: Target::whole(0),
        };
        let list = [
            ("odd", base.clone()),
            ("planes", Self { kernel: [1, 2, 2], stride: [1, 2, 2], ..base.clone() }),
            ("k3_stride2", Self { kernel: [3; 3], ..base.clone() }),
            ("k3_stride2_padded", Self { kernel: [3; 3], padding: [1; 3], ..base.clone() }),
            ("k133_stride122_padded", Self { kernel: [1, 3, 3], stride: [1, 2, 2], padding: [0, 1, 1], ..base.clone() }),
            ("k3_stride1_one_plane", Self { input: Extent::new(1, 4, 3), kernel: [3; 3], stride: [1; 3], padding: [1; 3], ..base.clone() }),
            ("k2_stride3", Self { stride: [3; 3], ..base.clone() }),
            ("average_odd", Self { average: true, ..base.clone() }),
            ("average_planes", Self { average: true, kernel: [1, 2, 2], stride: [1, 2, 2], ..base.clone() }),
            ("average_k3_stride2_padded", Self { average: true, kernel: [3; 3], padding: [1; 3], ..base.clone() }),
            ("average_odd_f16", Self { average: true, elem: Elem::F16, ..base.clone() }),
            ("odd_f16", Self { elem: Elem::F16, ..base.clone() }),
            ("k3_stride2_padded_f16", Self { elem: Elem::F16, kernel: [3; 3], padding: [1; 3], ..base }),
        ];
        list.into_iter().map(|(label, k)| (label.to_owned(), Self { target: Target::whole(k.output().d), ..k })).collect()
    }
}
