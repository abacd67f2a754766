//! Linear upsampling with aligned corners, as `torch.nn.functional.interpolate(mode="trilinear", align_corners=True)`.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// One dispatch of linear upsampling.
#[derive(Clone, Debug)]
pub struct UpsampleLinear {
    /// Extent of the source.
    pub input: Extent,
    /// Extent of the output.
    pub output: Extent,
    /// Channels.
    pub channels: u32,
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

/// The two source indices of output index `o` along an axis, and the weight of the second.
#[must_use]
pub fn tap(o: u32, n_in: u32, n_out: u32) -> (u32, u32, f64) {
    let den = n_out.saturating_sub(1).max(1);
    let num = o * (n_in - 1);
    let low = num / den;
    (low, (low + 1).min(n_in - 1), f64::from(num % den) / f64::from(den))
}

/// What an upsampled voxel is mixed from: the planes below and above it, and the taps along D, H, W.
pub(super) struct Sample<'a> {
    pub planes: [&'a [f32]; 2],
    pub taps: [(u32, u32, f64); 3],
    /// Voxels of a row of the source.
    pub row: usize,
    /// Padded channels.
    pub channels: usize,
}

impl Sample<'_> {
    /// Channel `c`, summed in f64.
    pub(super) fn channel(&self, c: usize) -> f64 {
        let [(_, _, wz), (y0, y1, wy), (x0, x1, wx)] = self.taps;
        let mut acc = 0.0;
        for (source, a) in [(self.planes[0], 1.0 - wz), (self.planes[1], wz)] {
            for (y, b) in [(y0, 1.0 - wy), (y1, wy)] {
                for (x, w) in [(x0, 1.0 - wx), (x1, wx)] {
                    acc += a * b * w * f64::from(source[(y as usize * self.row + x as usize) * self.channels + c]);
                }
            }
        }
        acc
    }
}

impl Kernel for UpsampleLinear {
    const NAME: &'static str = "upsample_linear";
    const SHADER: &'static str = concat!(include_str!("../shaders/shared/linear.wgsl"), include_str!("../shaders/upsample_linear.wgsl"));
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps))
    }

    fn params(&self) -> Params {
        Params {
            in_extent: self.input.axes(),
            blocks: self.channels.div_ceil(4),
            out_extent: self.output.axes(),
            first: self.windows[0].first,
            split: self.windows[0].split,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.output.w) * u64::from(self.channels.div_ceil(4)), self.output.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let out = elements(self.output, self.channels, self.target.count);
        let read = out * self.input.voxels() / self.output.voxels().max(1);
        Cost { flops: out * 21, bytes: (out + read) * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        let n = elements(self.input, self.channels, self.input.d);
        vec![n, n, elements(self.output, self.channels, self.output.d)]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.input.d, reach: Reach::Linear }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [lo, hi] = inputs else { return };
        let channels = self.channels.div_ceil(4) as usize * 4;
        let plane_in = self.input.plane() as usize * channels;
        self.target.planes(output.floats(), self.output.plane() as usize * channels).for_each(|(z, plane)| {
            #[expect(clippy::cast_possible_truncation, reason = "plane numbers are u32")]
            let tz @ (z0, z1, wz) = tap(z as u32, self.input.d, self.output.d);
            let low = self.windows[0].plane(lo, hi, z0 as usize, plane_in);
            let high = if wz > 0.0 { self.windows[0].plane(lo, hi, z1 as usize, plane_in) } else { low };
            for (y, row) in (0..self.output.h).zip(plane.chunks_exact_mut(self.output.w as usize * channels)) {
                let ty = tap(y, self.input.h, self.output.h);
                for (x, voxel) in (0..self.output.w).zip(row.chunks_exact_mut(channels)) {
                    let tx = tap(x, self.input.w, self.output.w);
                    let sample = Sample { planes: [low, high], taps: [tz, ty, tx], row: self.input.w as usize, channels };
                    for (c, value) in voxel.iter_mut().enumerate() {
                        #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                        {
                            *value = sample.channel(c) as f32;
                        }
                    }
                }
            }
        });
    }

    fn cases() -> Vec<(String, Self)> {
        let case = |label: &str, input: Extent, output: Extent, elem| {
            let k = Self {
                input,
                output,
                channels: 6,
                elem,
                windows: [Window::whole(0)],
                target: Target { first: 0, begin: 0, count: output.d },
            };
            (label.to_owned(), k)
        };
        vec![
            case("twice", Extent::new(3, 4, 5), Extent::new(6, 8, 10), Elem::F32),
            case("bilinear", Extent::new(3, 4, 5), Extent::new(3, 8, 10), Elem::F32),
            case("from_one_voxel", Extent::new(1, 1, 1), Extent::new(2, 2, 2), Elem::F32),
            case("odd_sizes", Extent::new(3, 4, 5), Extent::new(7, 9, 5), Elem::F32),
            case("twice_f16", Extent::new(3, 4, 5), Extent::new(6, 8, 10), Elem::F16),
        ]
    }
}
