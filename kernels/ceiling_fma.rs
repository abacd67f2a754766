//! A loop of multiply-adds in registers: the arithmetic that a device reaches at best.

use super::ceiling::{Blocks, Params};
use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Source, Target, Variant, Window, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::Elem;

/// One dispatch of the loop.
#[derive(Clone, Debug)]
pub struct CeilingFma {
    /// The values that chains begin with.
    pub blocks: Blocks,
    /// Multiply-adds of a chain.
    pub loops: u32,
}

/// Chains that an invocation makes of a block.
const CHAINS: u64 = 8;

impl Kernel for CeilingFma {
    const NAME: &'static str = "ceiling_fma";
    const SHADER: &'static str = include_str!("../shaders/ceiling_fma.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::ReadF32, Binding::WriteF32];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(Elem::F32, workgroup_size(caps)).set("LOOPS", self.loops)
    }

    fn params(&self) -> Params {
        self.blocks.params()
    }

    fn grid(&self) -> [u64; 3] {
        self.blocks.grid()
    }

    fn cost(&self) -> Cost {
        let values = self.blocks.values();
        Cost { flops: 2 * CHAINS * u64::from(self.loops) * values, bytes: 2 * 4 * values }
    }

    fn sizes(&self) -> BindingSizes {
        self.blocks.sizes()
    }

    fn sources(&self) -> Vec<Source> {
        self.blocks.sources()
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.blocks.windows, &mut self.blocks.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        self.blocks.map(inputs[0], output.floats(), |x| {
            let mut sums = [0.0f32; 4];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let b = f64::from(x[lane]);
                let mut total = 0.0;
                for sign in [1.0, -1.0] {
                    for turn in 0..4 {
                        let begin = sign * f64::from(x[(lane + turn) % 4]);
                        total += (0..self.loops).fold(begin, |s, _| 0.5 * b * s + b);
                    }
                }
                *sum = total as f32;
            }
            sums
        });
    }

    fn cases() -> Vec<(String, Self)> {
        vec![("odd".into(), Self { blocks: Blocks::whole([2, 3, 5]), loops: 12 })]
    }
}
