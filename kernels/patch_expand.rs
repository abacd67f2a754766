//! Channels of a voxel as the voxels of a patch, as the patch expanding of Swin-UNet does: channel (p C + c) is channel c of voxel p.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch of expanding patches.
#[derive(Clone, Debug)]
pub struct PatchExpand {
    /// Extent of the source.
    pub input: Extent,
    /// Extent of the result: patches, cropped at the end.
    pub output: Extent,
    /// Channels of the result; the source has so many for every voxel of a patch.
    pub channels: u32,
    /// Voxels of a patch along D, H, W.
    pub patch: [u32; 3],
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
    channels: u32,
    out_extent: [u32; 3],
    in_blocks: u32,
    patch: [u32; 3],
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad: [u32; 2],
}

impl PatchExpand {
    /// Channels of the source.
    fn in_channels(&self) -> u32 {
        self.channels * self.patch.iter().product::<u32>()
    }

    fn map(&self) -> Map {
        Map::new(self.output, self.channels)
    }
}

impl Kernel for PatchExpand {
    const NAME: &'static str = "patch_expand";
    const SHADER: &'static str = include_str!("../shaders/patch_expand.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps)).set("WHOLE", u8::from(self.channels.is_multiple_of(4)))
    }

    fn params(&self) -> Params {
        Params {
            in_extent: self.input.axes(),
            channels: self.channels,
            out_extent: self.output.axes(),
            in_blocks: self.in_channels().div_ceil(4),
            patch: self.patch,
            first: self.windows[0].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: [0; 2],
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.output.w) * u64::from(self.map().blocks()), self.output.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        Cost { flops: 0, bytes: 2 * elements(self.output, self.channels, self.target.count) * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        vec![elements(self.input, self.in_channels(), self.input.d), elements(self.output, self.channels, self.output.d)]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.input.d, reach: Reach::Blocks { source: 1, result: self.patch[0] } }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [source] = inputs else { return };
        let stored = self.in_channels().next_multiple_of(4) as usize;
        let (channels, width) = (self.channels as usize, self.map().blocks() as usize * 4);
        let ([_, h, w], [pd, ph, pw]) = (self.input.axes().map(|n| n as usize), self.patch.map(|n| n as usize));
        self.target.planes(output.floats(), self.output.plane() as usize * width).for_each(|(z, plane)| {
            let from = self.windows[0].plane(source, source, z / pd, h * w * stored);
            for (at, voxel) in plane.chunks_exact_mut(width).enumerate() {
                let (y, x) = (at / self.output.w as usize, at % self.output.w as usize);
                let part = (z % pd * ph + y % ph) * pw + x % pw;
                voxel.fill(0.0);
                voxel[..channels].copy_from_slice(&from[(y / ph * w + x / pw) * stored + part * channels..][..channels]);
            }
        });
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let list = [
            ("swin", [1, 2, 2], [3, 8, 10], 8, Elem::F32),
            ("swin_cropped_unpadded", [1, 2, 2], [3, 7, 9], 3, Elem::F32),
            ("by_four", [1, 4, 4], [3, 16, 20], 4, Elem::F32),
            ("cubes_cropped", [2; 3], [5, 8, 9], 4, Elem::F32),
            ("cubes_cropped_unpadded", [2; 3], [5, 7, 9], 5, Elem::F32),
            ("odd_factors", [3, 1, 2], [8, 4, 10], 1, Elem::F32),
            ("swin_f16", [1, 2, 2], [3, 7, 9], 6, Elem::F16),
            ("cubes_f16", [2; 3], [6, 8, 10], 4, Elem::F16),
        ];
        let case = |(label, patch, output, channels, elem): (&str, _, [u32; 3], _, _)| {
            let (input, windows, target) = (Extent::new(3, 4, 5), [Window::whole(0)], Target::whole(output[0]));
            (label.to_owned(), Self { input, output: output.into(), channels, patch, elem, windows, target })
        };
        list.into_iter().map(case).collect()
    }
}
