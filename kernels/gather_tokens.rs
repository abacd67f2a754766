//! Voxels of a map picked by their numbers, as indexing the rows of a token list.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// Voxels that a row of the grid copies: few rows, and no row beyond the device's grid.
const GROUP: u32 = 256;

/// One dispatch of picking tokens; their numbers, exact in f32, are its constant.
#[derive(Clone, Debug)]
pub struct GatherTokens {
    /// The source, its voxels counted row by row.
    pub input: Map,
    /// Tokens that are picked.
    pub count: u32,
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
    count: u32,
    group: u32,
    blocks: u32,
    voxels: u32,
}

impl GatherTokens {
    fn group(&self) -> u32 {
        self.count.min(GROUP)
    }

    fn voxels(&self) -> u32 {
        u32::try_from(self.input.extent.voxels()).unwrap_or(u32::MAX)
    }
}

impl Kernel for GatherTokens {
    const NAME: &'static str = "gather_tokens";
    const SHADER: &'static str = include_str!("../shaders/gather_tokens.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps))
    }

    fn params(&self) -> Params {
        Params { count: self.count, group: self.group(), blocks: self.input.blocks(), voxels: self.voxels() }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.group()) * u64::from(self.input.blocks()), self.count.div_ceil(self.group()).into(), 1]
    }

    fn cost(&self) -> Cost {
        let copied = elements(Extent::new(1, 1, self.count), self.input.channels, 1);
        Cost { flops: 0, bytes: 2 * copied * self.elem.bytes() + u64::from(self.count) * 4 }
    }

    fn sizes(&self) -> BindingSizes {
        let all = elements(self.input.extent, self.input.channels, self.input.extent.d);
        vec![all, self.count.into(), elements(Extent::new(1, 1, self.count), self.input.channels, 1)]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.input.extent.d, reach: Reach::Whole }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        let [source, tokens] = inputs else { return };
        let width = self.input.blocks() as usize * 4;
        for (voxel, &token) in output.floats().chunks_exact_mut(width).zip(*tokens) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole numbers, clamped as the shader does")]
            let token = (token as u32).min(self.voxels() - 1) as usize;
            voxel.copy_from_slice(&source[token * width..][..width]);
        }
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let list = [
            ("some", Extent::new(3, 4, 5), 6, 17, Elem::F32),
            ("one", Extent::new(1, 1, 1), 3, 1, Elem::F32),
            ("more_than_a_group", Extent::new(2, 9, 20), 8, 600, Elem::F32),
            ("some_f16", Extent::new(3, 4, 5), 6, 300, Elem::F16),
        ];
        let case = |(label, extent, channels, count, elem): (&str, _, _, _, _)| {
            let (input, windows, target) = (Map::new(extent, channels), [Window::whole(0)], Target::whole(1));
            (label.to_owned(), Self { input, count, elem, windows, target })
        };
        list.into_iter().map(case).collect()
    }
}
