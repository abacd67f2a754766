//! A plain copy of f32 values: the traffic that a device reaches at best.

use super::ceiling::{Blocks, Params};
use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Source, Target, Variant, Window, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::Elem;

/// One dispatch of the copy.
#[derive(Clone, Debug)]
pub struct CeilingCopy(pub Blocks);

impl Kernel for CeilingCopy {
    const NAME: &'static str = "ceiling_copy";
    const SHADER: &'static str = include_str!("../shaders/ceiling_copy.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::ReadF32, Binding::WriteF32];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(Elem::F32, workgroup_size(caps))
    }

    fn params(&self) -> Params {
        self.0.params()
    }

    fn grid(&self) -> [u64; 3] {
        self.0.grid()
    }

    fn cost(&self) -> Cost {
        Cost { flops: 0, bytes: 2 * 4 * self.0.values() }
    }

    fn sizes(&self) -> BindingSizes {
        self.0.sizes()
    }

    fn sources(&self) -> Vec<Source> {
        self.0.sources()
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.0.windows, &mut self.0.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        self.0.map(inputs[0], output.floats(), |x| x);
    }

    fn cases() -> Vec<(String, Self)> {
        vec![("odd".into(), Self(Blocks::whole([3, 5, 7])))]
    }
}
