//! Sums and products of two maps as nodes.

use super::infer::check_scale;
use crate::kernels::{Activation, Load, Spread};
use crate::shape::Map;

/// What a sum or a product does besides. Inputs: two maps, then scale and shift of those that are normalised as they are read.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Combine {
    /// What the second map is spread over.
    pub spread: Spread,
    /// Done to each map as it is read.
    pub loads: [Load; 2],
    /// Applied to the result.
    pub activation: Activation,
}

impl Combine {
    /// Scales and shifts among the inputs.
    pub(super) fn norms(&self) -> usize {
        self.loads.iter().filter(|load| load.norm.is_some()).count()
    }

    pub(super) fn infer(&self, inputs: &[Map]) -> Result<Map, String> {
        let (maps, mut scales) = inputs.split_at(2);
        let second = self.spread.second(maps[0]);
        if maps[1] != second {
            return Err(format!(
                "inputs differ: {} channels of {} given {} channels of {}, not {} of {}",
                maps[0].channels, maps[0].extent, maps[1].channels, maps[1].extent, second.channels, second.extent
            ));
        }
        for (map, load) in maps.iter().zip(&self.loads) {
            let Some(scope) = load.norm else { continue };
            let (scale, rest) = scales.split_first().ok_or("lacks a scale")?;
            check_scale(*map, *scale, scope)?;
            scales = rest;
        }
        Ok(maps[0])
    }
}
