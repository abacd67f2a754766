//! A map moved along its axes: rolled, padded, cropped, mirrored, as `torch.roll`, `torch.nn.functional.pad` and `torch.flip`.

use std::fmt;

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// What happens along one axis of n voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shift {
    /// Voxel i is voxel (i + offset) mod n: `torch.roll` by -offset.
    Roll(i32),
    /// Zeros before the first and after the last voxel; cropping where negative.
    Pad {
        /// Voxels before the first.
        before: i32,
        /// Voxels after the last.
        after: i32,
    },
    /// Voxel i is voxel n - 1 - i.
    Flip,
}

impl Shift {
    /// Nothing.
    pub const NONE: Self = Self::Pad { before: 0, after: 0 };

    /// Voxels of the result, if any are left.
    #[must_use]
    pub fn output(self, n: u32) -> Option<u32> {
        match self {
            Self::Roll(_) | Self::Flip => Some(n),
            Self::Pad { before, after } => {
                let out = i64::from(n) + i64::from(before) + i64::from(after);
                u32::try_from(out).ok().filter(|&out| out > 0)
            }
        }
    }

    /// Voxel of the source of voxel `o` of the result; a padding has none.
    fn source(self, o: u32, n: u32) -> Option<u32> {
        let at = match self {
            Self::Roll(offset) => (i64::from(o) + i64::from(offset)).rem_euclid(n.into()),
            Self::Pad { before, .. } => i64::from(o) - i64::from(before),
            Self::Flip => i64::from(n) - 1 - i64::from(o),
        };
        u32::try_from(at).ok().filter(|&at| at < n)
    }

    /// The shader's begin and whether it counts backwards: voxel o is voxel begin + o or begin - o, less n if a roll is beyond.
    fn begin(self, n: u32) -> u32 {
        match self {
            Self::Roll(offset) => u32::try_from(i64::from(offset).rem_euclid(n.into())).unwrap_or(0),
            Self::Pad { before, .. } => 0u32.wrapping_sub(before.cast_unsigned()),
            Self::Flip => n - 1,
        }
    }

    const fn code(self) -> u32 {
        match self {
            Self::Pad { .. } => 0,
            Self::Roll(_) => 1,
            Self::Flip => 2,
        }
    }

    /// Planes of the source that planes of the result read, if this happens along D.
    fn reach(self, n: u32) -> Reach {
        match self {
            Self::Roll(offset) if i64::from(offset).rem_euclid(n.into()) == 0 => Reach::Same,
            Self::Flip if n == 1 => Reach::Same,
            Self::NONE => Reach::Same,
            Self::Pad { before, .. } => Reach::Shifted { before },
            Self::Roll(_) | Self::Flip => Reach::Whole,
        }
    }
}

impl fmt::Display for Shift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Roll(offset) => write!(f, "roll {offset}"),
            Self::NONE => f.write_str("none"),
            Self::Pad { before, after } => write!(f, "pad {before} {after}"),
            Self::Flip => f.write_str("flip"),
        }
    }
}

/// One dispatch of moving a map.
#[derive(Clone, Debug)]
pub struct ShiftMap {
    /// Extent of the source.
    pub input: Extent,
    /// Channels.
    pub channels: u32,
    /// What happens along D, H, W; something is left.
    pub shift: [Shift; 3],
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
    begin: [u32; 3],
    out_first: u32,
    out_begin: u32,
    pad: [u32; 3],
}

impl ShiftMap {
    fn output(&self) -> Extent {
        let n = self.input.axes();
        [0, 1, 2].map(|axis| self.shift[axis].output(n[axis]).unwrap_or(1)).into()
    }

    fn blocks(&self) -> u32 {
        Map::new(self.input, self.channels).blocks()
    }
}

impl Kernel for ShiftMap {
    const NAME: &'static str = "shift";
    const SHADER: &'static str = include_str!("../shaders/shift.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let [d, h, w] = self.shift.map(Shift::code);
        Variant::new(self.elem, workgroup_size(caps)).set("SHIFT_D", d).set("SHIFT_H", h).set("SHIFT_W", w)
    }

    fn params(&self) -> Params {
        let n = self.input.axes();
        Params {
            in_extent: n,
            blocks: self.blocks(),
            out_extent: self.output().axes(),
            first: self.windows[0].first,
            begin: [0, 1, 2].map(|axis| self.shift[axis].begin(n[axis])),
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: [0; 3],
        }
    }

    fn grid(&self) -> [u64; 3] {
        let out = self.output();
        [u64::from(out.w) * u64::from(self.blocks()), out.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        Cost { flops: 0, bytes: 2 * elements(self.output(), self.channels, self.target.count) * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        vec![elements(self.input, self.channels, self.input.d), elements(self.output(), self.channels, self.output().d)]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.input.d, reach: self.shift[0].reach(self.input.d) }]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [source] = inputs else { return };
        let (out, channels) = (self.output(), self.blocks() as usize * 4);
        let plane_in = self.input.plane() as usize * channels;
        self.target.planes(output.floats(), out.plane() as usize * channels).for_each(|(z, plane)| {
            #[expect(clippy::cast_possible_truncation, reason = "plane numbers are u32")]
            let z = self.shift[0].source(z as u32, self.input.d);
            let from = z.map(|z| self.windows[0].plane(source, source, z as usize, plane_in));
            for (y, row) in (0..out.h).zip(plane.chunks_exact_mut(out.w as usize * channels)) {
                let y = self.shift[1].source(y, self.input.h);
                for (x, voxel) in (0..out.w).zip(row.chunks_exact_mut(channels)) {
                    match (from, y, self.shift[2].source(x, self.input.w)) {
                        (Some(from), Some(y), Some(x)) => {
                            voxel.copy_from_slice(&from[(y as usize * self.input.w as usize + x as usize) * channels..][..channels]);
                        }
                        _ => voxel.fill(0.0),
                    }
                }
            }
        });
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let pad = |before, after| Shift::Pad { before, after };
        let (roll, flip, none) = (Shift::Roll, Shift::Flip, Shift::NONE);
        let list = [
            ("roll", [roll(2), roll(-3), roll(11)], Elem::F32),
            ("roll_planar", [roll(5), roll(3), roll(-4)], Elem::F32),
            ("pad", [pad(2, 1), pad(0, 3), pad(1, 0)], Elem::F32),
            ("crop", [pad(-1, -2), pad(-3, 0), pad(0, -4)], Elem::F32),
            ("pad_and_crop", [pad(3, -4), pad(-2, 5), none], Elem::F32),
            ("pad_beyond", [pad(7, -6), pad(-8, 9), none], Elem::F32),
            ("flip", [flip; 3], Elem::F32),
            ("mixed", [pad(-1, 3), roll(1), flip], Elem::F32),
            ("mixed_f16", [flip, pad(1, 1), roll(-1)], Elem::F16),
            ("none_f16", [none, roll(0), flip], Elem::F16),
        ];
        let case = |(label, shift, elem): (&str, _, _)| {
            let input = Extent::new(5, 7, 9);
            let mut k = Self { input, channels: 6, shift, elem, windows: [Window::whole(0)], target: Target::whole(0) };
            k.target = Target::whole(k.output().d);
            (label.to_owned(), k)
        };
        list.into_iter().map(case).collect()
    }
}
