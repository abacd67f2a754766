//! Resampling to another extent, as `torch.nn.functional.interpolate`: nearest, and linear with either reading of corners.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostHalf, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// How a value between voxels is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interpolation {
    /// The voxel at or below, `mode="nearest"`: floor(o in / out).
    Nearest,
    /// Linear along each axis, the centres of the outermost voxels upon each other, `align_corners=True`: o (in - 1) / (out - 1).
    Aligned,
    /// Linear along each axis, the borders of the maps upon each other, `align_corners=False`: (o + 1/2) in / out - 1/2, at least 0.
    HalfPixel,
}

impl Interpolation {
    /// The shader's constant.
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Aligned => 0,
            Self::HalfPixel => 1,
            Self::Nearest => 2,
        }
    }

    /// The two source indices of output index `o` along an axis, and the weight of the second. 2 `n_in` `n_out` fits a u32.
    #[must_use]
    pub fn tap(self, o: u32, n_in: u32, n_out: u32) -> (u32, u32, f64) {
        let (num, den) = match self {
            Self::Nearest => return (o * n_in / n_out, o * n_in / n_out, 0.0),
            Self::Aligned => (o * (n_in - 1), n_out.saturating_sub(1).max(1)),
            Self::HalfPixel => (((2 * o + 1) * n_in).saturating_sub(n_out), 2 * n_out),
        };
        let low = num / den;
        (low, (low + 1).min(n_in - 1), f64::from(num % den) / f64::from(den))
    }

    /// Operations for a value: seven mixes of three.
    pub(super) const fn flops(self) -> u64 {
        match self {
            Self::Nearest => 0,
            Self::Aligned | Self::HalfPixel => 21,
        }
    }
}

/// One dispatch of resampling.
#[derive(Clone, Debug)]
pub struct Resize {
    /// Extent of the source.
    pub input: Extent,
    /// Extent of the output.
    pub output: Extent,
    /// Channels.
    pub channels: u32,
    /// How values between voxels are made.
    pub mode: Interpolation,
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

/// What a resampled voxel is mixed from: the planes below and above it, and the taps along D, H, W.
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

impl Kernel for Resize {
    const NAME: &'static str = "resize";
    const SHADER: &'static str = concat!(include_str!("../shaders/shared/resize.wgsl"), include_str!("../shaders/resize.wgsl"));
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps)).set("RESIZE", self.mode.code())
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
        Cost { flops: out * self.mode.flops(), bytes: (out + read) * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        let n = elements(self.input, self.channels, self.input.d);
        vec![n, n, elements(self.output, self.channels, self.output.d)]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.input.d, reach: Reach::Resized(self.mode) }]
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
            let tz @ (z0, z1, wz) = self.mode.tap(z as u32, self.input.d, self.output.d);
            let low = self.windows[0].plane(lo, hi, z0 as usize, plane_in);
            let high = if wz > 0.0 { self.windows[0].plane(lo, hi, z1 as usize, plane_in) } else { low };
            for (y, row) in (0..self.output.h).zip(plane.chunks_exact_mut(self.output.w as usize * channels)) {
                let ty = self.mode.tap(y, self.input.h, self.output.h);
                for (x, voxel) in (0..self.output.w).zip(row.chunks_exact_mut(channels)) {
                    let tx = self.mode.tap(x, self.input.w, self.output.w);
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

    fn host(&self) -> Option<&dyn HostHalf> {
        Some(self)
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let (small, twice, odd) = (Extent::new(3, 4, 5), Extent::new(6, 8, 10), Extent::new(7, 9, 5));
        let extents = [
            ("twice", small, twice, Elem::F32),
            ("planar", small, Extent::new(3, 8, 10), Elem::F32),
            ("from_one_voxel", Extent::new(1, 1, 1), Extent::new(2, 2, 2), Elem::F32),
            ("odd_sizes", small, odd, Elem::F32),
            ("smaller", odd, small, Elem::F32),
            ("to_one_voxel", small, Extent::new(1, 1, 1), Elem::F32),
            ("twice_f16", small, twice, Elem::F16),
        ];
        let modes = [("aligned", Interpolation::Aligned), ("half_pixel", Interpolation::HalfPixel), ("nearest", Interpolation::Nearest)];
        let case = |(mode_name, mode), (label, input, output, elem): (&str, _, Extent, _)| {
            let (windows, target) = ([Window::whole(0)], Target::whole(output.d));
            (format!("{mode_name}_{label}"), Self { input, output, channels: 6, mode, elem, windows, target })
        };
        modes.into_iter().flat_map(|mode| extents.map(|extents| case(mode, extents))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_those_of_the_definitions() {
        for (n_in, n_out) in [(1, 1), (1, 4), (4, 1), (3, 6), (6, 3), (5, 7), (7, 5), (9, 9), (2, 64)] {
            for o in 0..n_out {
                let [i, n, at] = [n_in, n_out, o].map(f64::from);
                let aligned = if n_out == 1 { 0.0 } else { at * (i - 1.0) / (n - 1.0) };
                let half = ((at + 0.5) * i / n - 0.5).max(0.0);
                for (mode, expected) in [(Interpolation::Aligned, aligned), (Interpolation::HalfPixel, half)] {
                    let (low, high, weight) = mode.tap(o, n_in, n_out);
                    assert!((f64::from(low) + weight - expected).abs() < 1e-12, "{mode:?} {n_in} {n_out} {o}");
                    assert!(high < n_in && (high == low + 1 || low == n_in - 1));
                }
                let (low, high, weight) = Interpolation::Nearest.tap(o, n_in, n_out);
                assert_eq!((low, high, weight), (o * n_in / n_out, low, 0.0));
            }
        }
    }
}
