//! Kernels that reduce over the channels of each voxel: how many invocations share a voxel, and how voxels fill the grid.

use super::{Variant, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Map};

/// Invocations along x before they go on along y: with the smallest workgroups, of 16, these are 32,768.
const FOLD: u32 = 1 << 19;

/// Invocations that share a voxel of so many blocks of channels: a power of two that leaves each 2 to 4 blocks, at most 64.
/// Narrow rows are then read by one invocation each, wide ones by a whole workgroup.
const fn lanes(blocks: u32) -> u32 {
    let lanes = blocks.div_ceil(4).next_power_of_two();
    if lanes > 64 { 64 } else { lanes }
}

/// A variant whose workgroups are whole rows.
pub(super) fn variant(elem: Elem, map: Map, caps: &DeviceCaps) -> Variant {
    let lanes = lanes(map.blocks());
    Variant::new(elem, workgroup_size(caps).max(lanes)).set("LANES", lanes).set("FOLD", FOLD)
}

/// Invocations of so many planes.
pub(super) fn grid(map: Map, planes: u32) -> [u64; 3] {
    let n = map.extent.plane() * u64::from(lanes(map.blocks()));
    [n.min(FOLD.into()), n.div_ceil(FOLD.into()), planes.into()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::workgroups;
    use crate::shape::Extent;

    #[test]
    fn lanes_grow_with_the_row() {
        assert_eq!([1, 4, 5, 8, 24, 48, 192, 193, 768].map(lanes), [1, 1, 2, 2, 8, 16, 64, 64, 64]);
    }

    #[test]
    fn wide_planes_are_folded() {
        let caps = DeviceCaps::default();
        let map = |h, w, channels| Map::new(Extent::new(1, h, w), channels);
        assert_eq!(workgroups("k", grid(map(5, 7, 3), 2), 64, &caps), Ok([1, 1, 2]));
        // one group a voxel
        assert_eq!(workgroups("k", grid(map(512, 512, 768), 1), 64, &caps), Ok([8192, 32, 1]));
        assert_eq!(workgroups("k", grid(map(2048, 2048, 4), 1), 16, &caps), Ok([32_768, 8, 1]));
        assert!(workgroups("k", grid(map(1, 1, 4), 65_536), 64, &caps).is_err());
    }
}
