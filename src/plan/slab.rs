//! Slab depths: how many planes of each value lie together.

use super::network::Network;
use crate::caps::DeviceCaps;
use crate::error::{PlanError, PlanErrorKind};
use crate::graph::Op;
use crate::kernels::Reach;

/// Slab depth limits of a value whatever the budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct DepthLimits {
    /// Shallower slabs would put a dispatch's window over too many slabs.
    pub min: u32,
    /// Deeper slabs would not fit a binding.
    pub max: u32,
}

/// The limits of every value.
pub(super) fn depth_limits(net: &Network, caps: &DeviceCaps) -> Result<Vec<DepthLimits>, PlanError> {
    let most = caps.max_binding.min(caps.max_buffer);
    let mut limits: Vec<DepthLimits> = net
        .graph
        .ids()
        .map(|id| {
            let fits = most / 4 * 4 / net.plane_bytes(id).max(1);
            DepthLimits { min: 1, max: u32::try_from(fits).unwrap_or(u32::MAX).min(net.planes(id)) }
        })
        .collect();
    for id in net.graph.ids() {
        for (&input, reach) in net.node(id).inputs.iter().zip(net.reaches(id)) {
            let n = net.planes(input);
            let need = match reach {
                Reach::Same => 1,
                Reach::Whole => n,
                Reach::WholeInTwo => n.div_ceil(2),
                // a window of w planes lies within two slabs if they are at least w - 1 deep
                _ => reach.widest(n, net.planes(id)).saturating_sub(1).clamp(1, n),
            };
            let min = &mut limits[input.index()].min;
            *min = need.max(*min);
        }
    }
    for (id, limit) in net.graph.ids().zip(&limits) {
        if limit.min > limit.max {
            let text = format!(
                "{} plane{} of {} bytes must lie in one storage binding, the device binds at most {most} bytes",
                limit.min,
                if limit.min == 1 { "" } else { "s" },
                net.plane_bytes(id),
            );
            return Err(PlanError::new(PlanErrorKind::Limits, text).at(net.node(id).name.clone()));
        }
    }
    Ok(limits)
}

/// Parts into which logits are cut when labels leave the device: no volume of all classes is ever stored.
const LOGIT_PARTS: u32 = 16;

/// Slab depth of every value when `finest` planes of the input are to be in flight.
pub(super) fn depths(net: &Network, limits: &[DepthLimits], finest: u32) -> Vec<u32> {
    let full = net.maps.first().map_or(1, |m| m.extent.d);
    let mut depths: Vec<u32> = net
        .maps
        .iter()
        .zip(limits)
        .map(|(map, limit)| {
            let share = (u64::from(finest) * u64::from(map.extent.d)).div_ceil(u64::from(full));
            u32::try_from(share).unwrap_or(u32::MAX).clamp(limit.min, limit.max)
        })
        .collect();
    for id in net.graph.ids().filter(|&id| net.node(id).op == Op::Argmax) {
        for value in [id, net.node(id).inputs[0]] {
            let part = net.planes(value).div_ceil(LOGIT_PARTS);
            depths[value.index()] = depths[value.index()].min(part.max(limits[value.index()].min));
        }
    }
    depths
}

/// The slab depths worth trying, deepest first: the whole volume, then halves.
pub(super) fn candidates(depth: u32) -> Vec<u32> {
    let mut list = vec![depth];
    let mut last = depth;
    while last > 1 {
        last = last.div_ceil(2);
        list.push(last);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_end_at_one_plane() {
        assert_eq!(candidates(10), [10, 5, 3, 2, 1]);
        assert_eq!(candidates(1), [1]);
    }
}
