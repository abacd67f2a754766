//! Label of the highest logit of each voxel, packed to 8 or 16 bits; the first of equal logits wins, as `torch.argmax` on CPU. Where
//! a logit is NaN or infinite all bits of the label are set, which is the number of no class: of 65,536 there is none left to tell it by.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch of arg-max.
#[derive(Clone, Debug)]
pub struct Argmax {
    /// Shape of the logits.
    pub map: Map,
    /// Storage type of the logits.
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
    plane: u32,
    words: u32,
    blocks: u32,
    classes: u32,
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

/// Labels of `classes` classes in a u32 word.
#[must_use]
pub const fn labels_per_word(classes: u32) -> u32 {
    // the last number is that of what is not finite
    if classes <= 255 { 4 } else { 2 }
}

/// The label of the highest of a voxel's logits, or all ones where one of them is NaN or infinite.
pub(super) fn label_of(logits: &[f32], lanes: u32) -> u32 {
    if logits.iter().any(|x| !x.is_finite()) {
        return if lanes == 4 { 0xFF } else { 0xFFFF };
    }
    (0u32..).zip(logits).fold((0, f32::NEG_INFINITY), |best, (c, &x)| if x > best.1 { (c, x) } else { best }).0
}

/// u32 words of one plane of labels; the last word is padded.
#[must_use]
pub fn plane_words(extent: Extent, classes: u32) -> u64 {
    extent.plane().div_ceil(u64::from(labels_per_word(classes)))
}

impl Argmax {
    fn words(&self) -> u64 {
        plane_words(self.map.extent, self.map.channels)
    }
}

impl Kernel for Argmax {
    const NAME: &'static str = "argmax";
    const SHADER: &'static str = include_str!("../shaders/argmax.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::WriteWords];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps)).set("LABELS", labels_per_word(self.map.channels))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the planner refuses planes above u32")]
    fn params(&self) -> Params {
        Params {
            plane: self.map.extent.plane() as u32,
            words: self.words() as u32,
            blocks: self.map.blocks(),
            classes: self.map.channels,
            first: self.windows[0].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [self.words(), 1, self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let n = elements(self.map.extent, self.map.channels, self.target.count);
        Cost { flops: n, bytes: n * self.elem.bytes() + self.words() * 4 * u64::from(self.target.count) }
    }

    fn sizes(&self) -> BindingSizes {
        vec![elements(self.map.extent, self.map.channels, self.map.extent.d), self.words() * u64::from(self.map.extent.d)]
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
        let voxels = self.map.extent.plane() as usize;
        let lanes = labels_per_word(self.map.channels);
        self.target.planes(output.words(), self.words() as usize).for_each(|(z, plane)| {
            plane.fill(0);
            let logits = &src[(z - self.windows[0].first as usize) * voxels * channels..];
            for (at, x) in logits.chunks_exact(channels).take(voxels).enumerate() {
                let label = label_of(&x[..self.map.channels as usize], lanes);
                #[expect(clippy::cast_possible_truncation, reason = "voxels of a plane fit 32 bits")]
                {
                    plane[at / lanes as usize] |= label << (at as u32 % lanes * (32 / lanes));
                }
            }
        });
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let case = |label: &str, extent: Extent, classes: u32, elem| {
            (
                label.to_owned(),
                Self {
                    map: Map::new(extent, classes),
                    elem,
                    windows: [Window::whole(0)],
                    target: Target { first: 0, begin: 0, count: extent.d },
                },
            )
        };
        vec![
            case("odd_plane", Extent::new(3, 5, 7), 3, Elem::F32),
            case("many_classes", Extent::new(2, 3, 5), 300, Elem::F32),
            case("most_of_8_bits", Extent::new(1, 3, 5), 255, Elem::F32),
            case("least_of_16_bits", Extent::new(1, 3, 5), 256, Elem::F32),
            case("one_voxel", Extent::new(1, 1, 1), 14, Elem::F32),
            case("odd_plane_f16", Extent::new(3, 5, 7), 14, Elem::F16),
        ]
    }
}
