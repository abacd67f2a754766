//! Slabs along D: what a plane of a result reads, and how deep the slabs of each value are.

use std::ops::Range;

use crate::caps::DeviceCaps;
use crate::error::{PlanError, PlanErrorKind};
use crate::graph::{Graph, NodeId, Op};
use crate::kernels::argmax;
use crate::kernels::upsample_linear::tap;
use crate::shape::{Elem, Map};

/// How many neighbouring slabs of an input one dispatch can bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binds {
    One,
    Two,
    /// All planes at once, in one slab: a barrier.
    Whole,
}

/// Planes of input `slot` that the output planes `z` of `op` are computed from.
pub(super) fn reach(op: &Op, slot: usize, input: Map, output: Map, z: &Range<u32>) -> Range<u32> {
    let n = input.extent.d;
    match op {
        Op::Conv(c) => {
            let begin = (z.start * c.stride[0]).saturating_sub(c.padding[0]);
            let end = ((z.end - 1) * c.stride[0] + c.kernel[0]).saturating_sub(c.padding[0]);
            // a tap row that lies in the padding altogether still needs a plane to bind
            begin.min(n - 1)..end.clamp(begin.min(n - 1) + 1, n)
        }
        Op::MaxPool { kernel } => z.start * kernel[0]..z.end * kernel[0],
        Op::Upsample { .. } => {
            let (low, ..) = tap(z.start, n, output.extent.d);
            let (last, high, weight) = tap(z.end - 1, n, output.extent.d);
            low..(if weight > 0.0 { high } else { last }) + 1
        }
        Op::Attention { per_plane: false, .. } if slot > 0 => 0..n,
        _ => z.clone(),
    }
}

/// How input `slot` of `op` is bound.
pub(super) fn binds(op: &Op, slot: usize) -> Binds {
    match op {
        Op::Conv(c) if is_pointwise(c) => Binds::One,
        Op::Conv(_) | Op::MaxPool { .. } | Op::Upsample { .. } => Binds::Two,
        Op::Attention { per_plane: false, .. } if slot > 0 => Binds::Whole,
        _ => Binds::One,
    }
}

/// Whether the pointwise kernel computes this convolution.
pub(super) fn is_pointwise(c: &crate::graph::Conv) -> bool {
    c.kernel == [1; 3] && c.stride == [1; 3] && c.padding == [0; 3]
}

/// Bytes of one plane of a node's value.
pub(super) fn plane_bytes(op: &Op, map: Map, elem: Elem) -> u64 {
    match op {
        Op::Argmax => argmax::plane_words(map.extent, map.channels) * 4,
        _ => map.plane_elements() * elem.bytes(),
    }
}

/// Slab depth limits of a value whatever the budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct DepthLimits {
    /// Shallower slabs would put a dispatch's window over too many slabs.
    pub min: u32,
    /// Deeper slabs would not fit a binding.
    pub max: u32,
}

/// The limits of every value.
pub(super) fn depth_limits(graph: &Graph, maps: &[Map], elem: Elem, caps: &DeviceCaps) -> Result<Vec<DepthLimits>, PlanError> {
    let mut limits = Vec::with_capacity(maps.len());
    for id in graph.ids() {
        let node = graph.node(id);
        let map = maps[id.index()];
        let bytes = plane_bytes(&node.op, map, elem);
        let fits = caps.max_binding.min(caps.max_buffer) / 4 * 4 / bytes.max(1);
        let max = u32::try_from(fits).unwrap_or(u32::MAX).min(map.extent.d);
        limits.push((DepthLimits { min: 1, max }, bytes));
    }
    for id in graph.ids() {
        let node = graph.node(id);
        for (slot, &input) in node.inputs.iter().enumerate() {
            let n = maps[input.index()].extent.d;
            let limit = &mut limits[input.index()].0;
            let need = match binds(&node.op, slot) {
                Binds::One => 1,
                Binds::Whole => n,
                // a window of w planes lies within two slabs if they are at least w - 1 deep
                Binds::Two => widest(&node.op, slot, maps, input, id).saturating_sub(1).clamp(1, n),
            };
            limit.min = limit.min.max(need);
        }
    }
    graph
        .ids()
        .map(|id| {
            let (limit, bytes) = limits[id.index()];
            if limit.min > limit.max {
                let text = format!(
                    "{} plane{} of {bytes} bytes must lie in one storage binding, the device binds at most {} bytes",
                    limit.min,
                    if limit.min == 1 { "" } else { "s" },
                    caps.max_binding.min(caps.max_buffer)
                );
                return Err(PlanError::new(PlanErrorKind::Limits, text).at(graph.node(id).name.clone()));
            }
            Ok(limit)
        })
        .collect()
}

/// Most planes of an input that one output plane reads.
fn widest(op: &Op, slot: usize, maps: &[Map], input: NodeId, output: NodeId) -> u32 {
    let (from, to) = (maps[input.index()], maps[output.index()]);
    (0..to.extent.d).map(|z| reach(op, slot, from, to, &(z..z + 1)).len()).max().map_or(1, |n| u32::try_from(n).unwrap_or(u32::MAX))
}

/// Parts into which logits are cut when labels leave the device: no volume of all classes is ever stored.
const LOGIT_PARTS: u32 = 16;

/// Slab depth of every value when `finest` planes of the input are to be in flight.
pub(super) fn depths(graph: &Graph, maps: &[Map], limits: &[DepthLimits], finest: u32) -> Vec<u32> {
    let full = maps.first().map_or(1, |m| m.extent.d);
    let mut depths: Vec<u32> = maps
        .iter()
        .zip(limits)
        .map(|(map, limit)| {
            let share = (u64::from(finest) * u64::from(map.extent.d)).div_ceil(u64::from(full));
            u32::try_from(share).unwrap_or(u32::MAX).clamp(limit.min, limit.max)
        })
        .collect();
    for id in graph.ids().filter(|&id| graph.node(id).op == Op::Argmax) {
        for value in [id, graph.node(id).inputs[0]] {
            let part = maps[value.index()].extent.d.div_ceil(LOGIT_PARTS);
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
    use crate::shape::Extent;

    #[test]
    fn reach_of_upsampling_covers_its_taps() {
        let (from, to) = (Map::new(Extent::new(5, 1, 1), 1), Map::new(Extent::new(10, 1, 1), 1));
        let op = Op::Upsample { factor: [2; 3] };
        assert_eq!(reach(&op, 0, from, to, &(0..1)), 0..1);
        assert_eq!(reach(&op, 0, from, to, &(1..2)), 0..2);
        assert_eq!(reach(&op, 0, from, to, &(9..10)), 4..5);
        assert_eq!(reach(&op, 0, from, to, &(0..10)), 0..5);
    }

    #[test]
    fn candidates_end_at_one_plane() {
        assert_eq!(candidates(10), [10, 5, 3, 2, 1]);
        assert_eq!(candidates(1), [1]);
    }
}
