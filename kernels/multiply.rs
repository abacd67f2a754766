//! Element-wise product of two maps of one shape.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent, Map};

/// One dispatch of the product.
#[derive(Clone, Debug)]
pub struct Multiply {
    /// Shape of sources and output.
    pub map: Map,
    /// Storage type.
    pub elem: Elem,
    /// Where the sources' planes lie.
    pub windows: [Window; 2],
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    row: u32,
    rows: u32,
    a_first: u32,
    b_first: u32,
    out_first: u32,
    out_begin: u32,
    pad: [u32; 2],
}

impl Kernel for Multiply {
    const NAME: &'static str = "multiply";
    const SHADER: &'static str = include_str!("../shaders/multiply.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps))
    }

    fn params(&self) -> Params {
        Params {
            row: self.map.extent.w * self.map.blocks(),
            rows: self.map.extent.h,
            a_first: self.windows[0].first,
            b_first: self.windows[1].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: [0; 2],
        }
    }

    fn grid(&self) -> [u64; 3] {
        [u64::from(self.map.extent.w) * u64::from(self.map.blocks()), self.map.extent.h.into(), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let n = elements(self.map.extent, self.map.channels, self.target.count);
        Cost { flops: n, bytes: 3 * n * self.elem.bytes() }
    }

    fn sizes(&self) -> BindingSizes {
        vec![elements(self.map.extent, self.map.channels, self.map.extent.d); 3]
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { planes: self.map.extent.d, reach: Reach::Same }; 2]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [a, b] = inputs else { return };
        let n = elements(self.map.extent, self.map.channels, 1) as usize;
        self.target.planes(output.floats(), n).for_each(|(z, plane)| {
            let a = &a[(z - self.windows[0].first as usize) * n..];
            let b = &b[(z - self.windows[1].first as usize) * n..];
            for ((y, a), b) in plane.iter_mut().zip(a).zip(b) {
                *y = a * b;
            }
        });
    }

    fn cases() -> Vec<(String, Self)> {
        let base = Self {
            map: Map::new(Extent::new(3, 5, 7), 6),
            elem: Elem::F32,
            windows: [Window::whole(0); 2],
            target: Target { first: 0, begin: 0, count: 3 },
        };
        vec![("plain".to_owned(), base.clone()), ("plain_f16".to_owned(), Self { elem: Elem::F16, ..base })]
    }
}
