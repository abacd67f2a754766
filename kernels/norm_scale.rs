//! From statistics to what a norm multiplies and adds: instance norm, or group norm, over the volume or over each plane.
//!
//! Source: `torch.nn.InstanceNorm3d` and `torch.nn.GroupNorm`; the variance is biased.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Scope, Source, Target, Variant, Window, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::Elem;

/// One dispatch: `[1 or D][2][C padded]`, scale and shift of each channel, always f32. The constant is gamma, then beta.
#[derive(Clone, Debug)]
pub struct NormScale {
    /// Planes of the statistics.
    pub planes: u32,
    /// Channels of the map that was measured.
    pub channels: u32,
    /// Channels that are taken together: 1 for instance norm.
    pub group: u32,
    /// Added to the variance.
    pub eps: f32,
    /// What the statistics are taken over.
    pub scope: Scope,
    /// Where the source's planes lie.
    pub windows: [Window; 1],
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    planes: u32,
    blocks: u32,
    channels: u32,
    group: u32,
    first: u32,
    out_first: u32,
    out_begin: u32,
    eps: f32,
}

impl NormScale {
    fn blocks(&self) -> u32 {
        self.channels.div_ceil(4)
    }

    /// Planes that are taken together.
    fn together(&self) -> u32 {
        if self.scope == Scope::Plane { 1 } else { self.planes }
    }
}

impl Kernel for NormScale {
    const NAME: &'static str = "norm_scale";
    const SHADER: &'static str = include_str!("../shaders/norm_scale.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::ReadF32, Binding::ReadF32, Binding::WriteF32];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(Elem::F32, workgroup_size(caps)).set("PER_PLANE", u8::from(self.scope == Scope::Plane))
    }

    fn params(&self) -> Params {
        Params {
            planes: self.together(),
            blocks: self.blocks(),
            channels: self.channels,
            group: self.group,
            first: self.windows[0].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            eps: self.eps,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [1, self.blocks().into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let read = u64::from(self.together()) * u64::from(self.target.count) * u64::from(self.blocks()) * 8;
        Cost { flops: 4 * read * u64::from(self.group), bytes: (read + u64::from(self.blocks()) * 16) * 4 }
    }

    fn sizes(&self) -> BindingSizes {
        let plane = u64::from(self.blocks()) * 8;
        vec![u64::from(self.planes) * plane, plane, u64::from(self.scope.planes(self.planes)) * plane]
    }

    fn sources(&self) -> Vec<Source> {
        vec![self.scope.source(self.planes)]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [src, affine] = inputs else { return };
        let channels = self.blocks() as usize * 4;
        let group = self.group as usize;
        self.target.planes(output.floats(), 2 * channels).for_each(|(z, plane)| {
            let first = if self.scope == Scope::Plane { z - self.windows[0].first as usize } else { 0 };
            let planes = || src.chunks_exact(2 * channels).skip(first).take(self.together() as usize);
            for c in 0..channels {
                let begin = c.min(self.channels as usize - 1) / group * group;
                let all = || planes().flat_map(|p| (begin..begin + group).map(move |k| (f64::from(p[k]), f64::from(p[channels + k]))));
                let n = (self.together() as usize * group) as f64;
                let mean = all().map(|(m, _)| m).sum::<f64>() / n;
                let variance = (all().map(|(m, v)| v + (m - mean).powi(2)).sum::<f64>() / n).max(0.0);
                let scale = f64::from(affine[c]) / (variance + f64::from(self.eps)).sqrt();
                #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                {
                    plane[c] = scale as f32;
                    plane[channels + c] = (f64::from(affine[channels + c]) - mean * scale) as f32;
                }
            }
        });
    }

    fn cases() -> Vec<(String, Self)> {
        // random sums of squares may be negative, which only a large eps keeps from amplifying rounding
        let base = Self {
            planes: 5,
            channels: 6,
            group: 1,
            eps: 0.5,
            scope: Scope::Volume,
            windows: [Window::whole(0)],
            target: Target::whole(1),
        };
        let planes = |k: Self| Self { scope: Scope::Plane, target: Target::whole(k.planes), ..k };
        vec![
            ("volume".to_owned(), base.clone()),
            ("planes".to_owned(), planes(base.clone())),
            ("many_planes".to_owned(), Self { planes: 150, channels: 3, ..base.clone() }),
            ("one_plane_one_channel".to_owned(), Self { planes: 1, channels: 1, ..base.clone() }),
            ("groups_of_3".to_owned(), Self { channels: 18, group: 3, ..base.clone() }),
            ("one_group_by_plane".to_owned(), planes(Self { channels: 7, group: 7, ..base })),
        ]
    }
}
