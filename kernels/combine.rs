//! Element-wise sum or product of two maps, normalised and activated as they are loaded; the second may be spread over all
//! channels or all voxels of the first.

use bytemuck::{Pod, Zeroable};

use super::load::{LOAD_A, LOAD_B};
use super::{
    Activation, Binding, BindingSizes, Cost, HostHalf, HostSlice, Kernel, Load, Reach, Scope, Source, Target, Variant, Window, elements,
    workgroup_size,
};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// What the second map is spread over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Spread {
    /// Nothing: it has the shape of the first.
    #[default]
    Nothing,
    /// It has one channel, which meets all channels of its voxel.
    Channels,
    /// It has one voxel, which meets all voxels.
    Voxels,
}

impl Spread {
    /// The shape of the second map where the first is `map`.
    #[must_use]
    pub const fn second(self, map: Map) -> Map {
        match self {
            Self::Nothing => map,
            Self::Channels => Map::new(map.extent, 1),
            Self::Voxels => Map::new(Extent::new(1, 1, 1), map.channels),
        }
    }

    /// The value of the shader constant `SPREAD`.
    const fn code(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Channels => 1,
            Self::Voxels => 2,
        }
    }
}

/// One dispatch of the sum or product.
#[derive(Clone, Debug)]
pub struct Combine {
    /// Shape of the first source and of the output.
    pub map: Map,
    /// What the second source is spread over.
    pub spread: Spread,
    /// The product, else the sum.
    pub multiply: bool,
    /// Done to each source as it is loaded.
    pub loads: [Load; 2],
    /// Applied to the result.
    pub activation: Activation,
    /// Storage type.
    pub elem: Elem,
    /// Where the planes lie: the maps', then those of scale and shift of the maps that are normalised.
    pub windows: [Window; 4],
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    row: u32,
    rows: u32,
    blocks: u32,
    a_first: u32,
    b_first: u32,
    a_norm_first: u32,
    b_norm_first: u32,
    out_first: u32,
    out_begin: u32,
    pad: [u32; 3],
}

impl Combine {
    pub(super) fn second(&self) -> Map {
        self.spread.second(self.map)
    }

    /// Which of the sources is the scale and shift of a map.
    fn norm_slot(&self, map: usize) -> Option<usize> {
        self.loads[map].norm?;
        Some(2 + usize::from(map == 1 && self.loads[0].norm.is_some()))
    }

    pub(super) fn norm_window(&self, map: usize) -> Window {
        self.norm_slot(map).map_or(Window::whole(0), |slot| self.windows[slot])
    }
}

impl Kernel for Combine {
    const NAME: &'static str = "combine";
    const SHADER: &'static str = include_str!("../shaders/combine.wgsl");
    const BINDINGS: &'static [Binding] =
        &[Binding::Params, Binding::Read, Binding::Read, Binding::ReadF32, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let variant = Variant::new(self.elem, workgroup_size(caps)).set("MULTIPLY", u8::from(self.multiply));
        let variant = variant.set("SPREAD", self.spread.code()).load(LOAD_A, self.loads[0]).load(LOAD_B, self.loads[1]);
        variant.activation(self.activation)
    }

    fn params(&self) -> Params {
        Params {
            row: self.map.extent.w * self.map.blocks(),
            rows: self.map.extent.h,
            blocks: self.map.blocks(),
            a_first: self.windows[0].first,
            b_first: self.windows[1].first,
            a_norm_first: self.norm_window(0).first,
            b_norm_first: self.norm_window(1).first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: [0; 3],
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.map.extent.w) * u64::from(self.map.blocks()), self.map.extent.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let n = elements(self.map.extent, self.map.channels, self.target.count);
        let second = self.second();
        let b = elements(second.extent, second.channels, self.target.count.min(second.extent.d));
        let normalised = self.loads.iter().filter(|load| load.norm.is_some()).count() as u64;
        Cost { flops: n * (1 + 2 * normalised), bytes: (2 * n + b) * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        let (a, b) = (self.map, self.second());
        let n = |map: Map| elements(map.extent, map.channels, map.extent.d);
        let table = |slot: usize, map: Map| self.loads[slot].table_len(map.extent.d, map.blocks());
        vec![n(a), n(b), table(0, a), table(1, b), n(a)]
    }

    fn sources(&self) -> Vec<Source> {
        let maps = [self.map, self.second()].map(|map| map.extent.d);
        // the one plane of what is spread over all voxels is read by every plane
        let source = |slot: usize, planes: u32, reach: Reach| Source {
            planes,
            reach: if slot == 1 && self.spread == Spread::Voxels { Reach::Whole } else { reach },
        };
        let norms = (0..2).filter_map(|slot| {
            let scale = self.loads[slot].norm.map(|scope| scope.source(scope.planes(maps[slot])))?;
            Some(source(slot, scale.planes, scale.reach))
        });
        (0..2).map(|slot| source(slot, maps[slot], Reach::Same)).chain(norms).collect()
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        let n = 2 + self.loads.iter().filter(|load| load.norm.is_some()).count();
        (&mut self.windows[..n], &mut self.target)
    }

    fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
        let none = constants.first().copied().unwrap_or(sources[0][0]);
        let norms = [0, 1].map(|map| self.norm_slot(map).map_or(none, |slot| sources[slot][0]));
        vec![sources[0][0], sources[1][0], norms[0], norms[1]]
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [a, b, a_norm, b_norm] = inputs else { return };
        let second = self.second();
        let [width, b_width] = [self.map, second].map(|map| map.blocks() as usize * 4);
        let [n, b_n] = [self.map, second].map(|map| elements(map.extent, map.channels, 1) as usize);
        self.target.planes(output.floats(), n).for_each(|(z, plane)| {
            let b_z = if self.spread == Spread::Voxels { 0 } else { z };
            let a = &a[(z - self.windows[0].first as usize) * n..];
            let b = &b[(b_z - self.windows[1].first as usize) * b_n..];
            let tables = [
                self.loads[0].table(a_norm, self.norm_window(0), z, width),
                self.loads[1].table(b_norm, self.norm_window(1), b_z, b_width),
            ];
            let (mut first, mut other) = (Vec::with_capacity(width), Vec::with_capacity(b_width));
            for (voxel, (out, x)) in plane.chunks_exact_mut(width).zip(a.chunks_exact(width)).enumerate() {
                first.clear();
                other.clear();
                self.loads[0].apply(x, tables[0], &mut first);
                let at = if self.spread == Spread::Voxels { 0 } else { voxel };
                self.loads[1].apply(&b[at * b_width..][..b_width], tables[1], &mut other);
                for (c, (y, &x)) in out.iter_mut().zip(&first).enumerate() {
                    let second = other[if self.spread == Spread::Channels { 0 } else { c }];
                    let value = if self.multiply { x * second } else { x + second };
                    #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                    {
                        *y = self.activation.apply(value) as f32;
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
        let add = Self {
            map: Map::new(Extent::new(3, 5, 7), 6),
            spread: Spread::Nothing,
            multiply: false,
            loads: [Load::default(); 2],
            activation: Activation::None,
            elem: Elem::F32,
            windows: [Window::whole(0); 4],
            target: Target::whole(3),
        };
        let times = Self { multiply: true, ..add.clone() };
        let plain = Load::default();
        let norm = Load { norm: Some(Scope::Volume), activation: Activation::LeakyRelu { slope: 0.01 } };
        let planes = Load { norm: Some(Scope::Plane), activation: Activation::Elu { alpha: 1.0 } };
        let sigmoid = Load { norm: None, activation: Activation::Sigmoid };
        let [channels, voxels] = [Spread::Channels, Spread::Voxels];
        let one = Self { map: Map::new(Extent::new(1, 1, 1), 1), target: Target::whole(1), ..add.clone() };
        let list = [
            ("add", add.clone()),
            ("add_norm_leaky", Self { loads: [norm, plain], activation: Activation::LeakyRelu { slope: 0.01 }, ..add.clone() }),
            ("add_norm_of_second", Self { loads: [plain, planes], activation: Activation::Relu, ..add.clone() }),
            ("add_norms_elu", Self { loads: [planes, norm], activation: Activation::Elu { alpha: 1.0 }, ..add.clone() }),
            ("add_over_channels", Self { spread: channels, ..add.clone() }),
            ("add_over_voxels", Self { spread: voxels, activation: Activation::Gelu, ..add.clone() }),
            ("add_norms_over_voxels", Self { spread: voxels, loads: [norm, planes], ..add.clone() }),
            ("add_one_voxel", one.clone()),
            ("add_norm_leaky_f16", Self { loads: [norm, plain], elem: Elem::F16, ..add.clone() }),
            ("add_norms_over_channels_f16", Self { spread: channels, loads: [planes; 2], elem: Elem::F16, ..add }),
            ("multiply", times.clone()),
            ("multiply_sigmoid_over_channels", Self { spread: channels, loads: [plain, sigmoid], ..times.clone() }),
            ("multiply_norm_over_channels", Self { spread: channels, loads: [plain, norm], ..times.clone() }),
            ("multiply_over_voxels", Self { spread: voxels, loads: [norm, sigmoid], ..times.clone() }),
            ("multiply_over_voxels_f16", Self { spread: voxels, elem: Elem::F16, ..times.clone() }),
            ("multiply_f16", Self { elem: Elem::F16, ..times }),
        ];
        list.into_iter().map(|(label, k)| (label.to_owned(), k)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::workgroups;
    use super::*;

    #[test]
    fn rows_beyond_the_grid_are_refused() {
        let caps = DeviceCaps::default();
        let (_, base) = Combine::cases().swap_remove(0);
        let groups = |h| {
            let call = Combine { map: Map::new(Extent::new(1, h, 40), 6), target: Target::whole(1), ..base.clone() };
            workgroups(Combine::NAME, call.grid(), call.variant(&caps).workgroup(), &caps)
        };
        assert_eq!(groups(65_535), Ok([2, 65_535, 1]));
        assert!(groups(65_536).is_err());
    }
}
