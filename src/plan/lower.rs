//! From tasks and places to a recording: every dispatch with its kernel, parameters and bindings.

use std::ops::Range;

use super::lifetime::Lifetimes;
use super::place::Placement;
use super::schedule::{Schedule, Task};
use super::slab;
use crate::caps::DeviceCaps;
use crate::error::{PlanError, PlanErrorKind};
use crate::graph::{Conv, NodeId, Op};
use crate::kernels::{
    Binding, Call, ConvShape, Target, Window, argmax, attention, conv3d_direct, conv3d_pointwise, max_pool3d, multiply, packed_len,
    position_add, upsample_linear,
};
use crate::record::{Command, Constant, ConstantSource, Output, OutputKind, Recording, Region};
use crate::shape::Map;

/// Work after which a batch is submitted: a fraction of a second on the device meant.
fn batch_flops(caps: &DeviceCaps) -> u64 {
    if caps.cpu { 4_000_000_000 } else { 50_000_000_000 }
}

/// Most work of one dispatch: a slow GPU must finish it before its driver's watchdog (2 s on Windows) bites.
const DISPATCH_FLOPS: u64 = 100_000_000_000;

/// Constants of a graph, with their sizes in bytes.
pub(super) fn constants(s: &Schedule<'_>) -> Vec<(NodeId, ConstantSource, u64)> {
    let mut list = Vec::new();
    for id in s.graph.ids() {
        let node = s.graph.node(id);
        let (source, elements) = match &node.op {
            Op::Conv(c) => {
                let in_channels = source_channels(s, id);
                (ConstantSource::Conv { node: id, in_channels }, packed_len(in_channels, c.out_channels, c.kernel))
            }
            Op::PositionalEncoding { dims } => {
                let map = s.maps[id.index()];
                (ConstantSource::PositionTable { map, dims: *dims }, position_add::table_len(map))
            }
            _ => continue,
        };
        list.push((id, source, elements * s.elem.bytes()));
    }
    list
}

fn source_channels(s: &Schedule<'_>, id: NodeId) -> [u32; 2] {
    let channels = |slot: usize| s.graph.node(id).inputs.get(slot).map_or(0, |i| s.maps[i.index()].channels);
    [channels(0), channels(1)]
}

/// What is known of placement when lowering.
pub(super) struct Lowering<'a> {
    pub schedule: &'a Schedule<'a>,
    pub lifetimes: &'a Lifetimes,
    pub placement: &'a Placement,
    /// Regions of constants by node.
    pub constants: Vec<Option<Region>>,
    /// Nodes whose values leave the device.
    pub outputs: Vec<NodeId>,
    pub caps: &'a DeviceCaps,
}

impl Lowering<'_> {
    fn region(&self, node: NodeId, slab: u32, step: u32) -> Region {
        let place = self.placement.places[self.lifetimes.life(self.schedule.slab_id(node, slab), step)];
        Region { chunk: place.chunk, offset: place.offset, size: self.schedule.slab_bytes(node, slab) }
    }

    /// The slab or the two slabs that hold what `z` reads of input `slot`.
    fn window(&self, node: NodeId, slot: usize, z: &Range<u32>, step: u32) -> (Window, Region, Region) {
        let s = self.schedule;
        let input = s.graph.node(node).inputs[slot];
        let slabs = s.covering(input, &s.reach(node, slot, z));
        let lo = self.region(input, slabs.start, step);
        let first = s.planes(input, slabs.start).start;
        if slabs.len() > 1 {
            let split = s.planes(input, slabs.start + 1).start;
            (Window { first, split }, lo, self.region(input, slabs.start + 1, step))
        } else {
            (Window::whole(first), lo, lo)
        }
    }

    fn conv(&self, id: NodeId, c: &Conv, target: Target, z: &Range<u32>, step: u32) -> (ConvShape, [(Region, Region); 2]) {
        let s = self.schedule;
        let (wa, a_lo, a_hi) = self.window(id, 0, z, step);
        let (wb, b_lo, b_hi) = if s.graph.node(id).inputs.len() > 1 { self.window(id, 1, z, step) } else { (Window::whole(0), a_lo, a_lo) };
        let shape = ConvShape {
            input: s.maps[s.graph.node(id).inputs[0].index()].extent,
            in_channels: source_channels(s, id),
            out_channels: c.out_channels,
            kernel: c.kernel,
            stride: c.stride,
            padding: c.padding,
            activation: c.activation,
            elem: s.elem,
            windows: [wa, wb],
            target,
        };
        (shape, [(a_lo, a_hi), (b_lo, b_hi)])
    }

    /// The kernel and the source bindings that compute planes `z` of a node.
    fn call(&self, id: NodeId, target: Target, z: &Range<u32>, step: u32) -> Result<(Call, Vec<Region>), PlanError> {
        let s = self.schedule;
        let node = s.graph.node(id);
        let elem = s.elem;
        let map = s.maps[id.index()];
        let input = |slot: usize| -> Map { s.maps[node.inputs[slot].index()] };
        let missing = || PlanError::new(PlanErrorKind::Unsupported, "has no constant region").at(node.name.clone());
        let constant = || self.constants[id.index()].ok_or_else(missing);
        Ok(match &node.op {
            Op::Conv(c) => {
                let (shape, [a, b]) = self.conv(id, c, target, z, step);
                if slab::is_pointwise(c) {
                    (Call::Conv3dPointwise(conv3d_pointwise::Conv3dPointwise(shape)), vec![a.0, b.0, constant()?])
                } else {
                    (Call::Conv3dDirect(conv3d_direct::Conv3dDirect(shape)), vec![a.0, a.1, b.0, b.1, constant()?])
                }
            }
            Op::MaxPool { kernel } => {
                let (window, lo, hi) = self.window(id, 0, z, step);
                let k = max_pool3d::MaxPool3d { input: input(0).extent, channels: map.channels, kernel: *kernel, elem, window, target };
                (Call::MaxPool3d(k), vec![lo, hi])
            }
            Op::Upsample { .. } => {
                let (window, lo, hi) = self.window(id, 0, z, step);
                let k = upsample_linear::UpsampleLinear {
                    input: input(0).extent,
                    output: map.extent,
                    channels: map.channels,
                    elem,
                    window,
                    target,
                };
                (Call::UpsampleLinear(k), vec![lo, hi])
            }
            Op::PositionalEncoding { .. } => {
                let (window, lo, _) = self.window(id, 0, z, step);
                (Call::PositionAdd(position_add::PositionAdd { map, elem, first: window.first, target }), vec![lo, constant()?])
            }
            Op::Attention { heads, scale, per_plane } => {
                let (q, k, v) = (self.window(id, 0, z, step), self.window(id, 1, z, step), self.window(id, 2, z, step));
                let call = attention::Attention {
                    queries: map.extent,
                    keys: input(1).extent,
                    qk_channels: input(0).channels,
                    v_channels: map.channels,
                    heads: *heads,
                    scale: *scale,
                    per_plane: *per_plane,
                    elem,
                    first: [q.0.first, k.0.first, v.0.first],
                    target,
                };
                (Call::Attention(call), vec![q.1, k.1, v.1])
            }
            Op::Multiply => {
                let (a, b) = (self.window(id, 0, z, step), self.window(id, 1, z, step));
                (Call::Multiply(multiply::Multiply { map, elem, first: [a.0.first, b.0.first], target }), vec![a.1, b.1])
            }
            Op::Argmax => {
                let (window, lo, _) = self.window(id, 0, z, step);
                (Call::Argmax(argmax::Argmax { map, elem, first: window.first, target }), vec![lo])
            }
            Op::Input { .. } | Op::BatchNorm(_) | Op::Activation(_) | Op::Concat => {
                return Err(
                    PlanError::new(PlanErrorKind::Unsupported, format!("no kernel computes {} on its own", node.op)).at(node.name.clone())
                );
            }
        })
    }

    fn task(&self, task: Task, step: u32, recording: &mut Recording, since_split: &mut u64) -> Result<(), PlanError> {
        let s = self.schedule;
        let planes = s.planes(task.node, task.slab);
        let dst = self.region(task.node, task.slab, step);
        for m in self.lifetimes.restores.get(&step).into_iter().flatten() {
            recording.commands.push(Command::Restore { dst: self.region(m.node, m.slab, step), slot: m.slot });
        }
        if s.is_input(task.node) {
            recording.commands.push(Command::Upload { dst, planes: planes.clone() });
        } else {
            let target = |z: &Range<u32>| Target { first: planes.start, begin: z.start, count: z.end - z.start };
            let one = planes.start..planes.start + 1;
            let plane_flops = self.call(task.node, target(&one), &one, step)?.0.cost().flops;
            for z in s.dispatches(task, plane_flops, DISPATCH_FLOPS) {
                let (call, mut bindings) = self.call(task.node, target(&z), &z, step)?;
                let storage = call.bindings().iter().filter(|b| **b != Binding::Params).count();
                if storage > self.caps.max_storage_buffers as usize {
                    let text = format!("{} binds {storage} storage buffers, the device {}", call.name(), self.caps.max_storage_buffers);
                    return Err(PlanError::new(PlanErrorKind::Limits, text).at(s.graph.node(task.node).name.clone()));
                }
                call.workgroups(self.caps)
                    .map_err(|e| PlanError::new(PlanErrorKind::Limits, e.0).at(s.graph.node(task.node).name.clone()))?;
                bindings.push(dst);
                *since_split += call.cost().flops;
                recording.commands.push(Command::Dispatch { call: Box::new(call), bindings, node: task.node });
                if *since_split >= batch_flops(self.caps) {
                    recording.commands.push(Command::Split);
                    *since_split = 0;
                }
            }
        }
        for (output, _) in (0u32..).zip(&self.outputs).filter(|&(_, &o)| o == task.node) {
            recording.commands.push(Command::Download { src: dst, output, planes: planes.clone() });
        }
        for m in self.lifetimes.spills.get(&step).into_iter().flatten() {
            recording.commands.push(Command::Spill { src: self.region(m.node, m.slab, step), slot: m.slot });
        }
        Ok(())
    }

    /// The recording, with the constants' regions already assigned.
    pub(super) fn record(&self, mut recording: Recording, constants: Vec<Constant>) -> Result<Recording, PlanError> {
        let s = self.schedule;
        recording.elem = s.elem;
        recording.constants = constants;
        recording.input = s.maps.first().copied();
        recording.outputs = self
            .outputs
            .iter()
            .map(|&id| {
                let node = s.graph.node(id);
                let kind = if node.op == Op::Argmax { OutputKind::Labels } else { OutputKind::Map };
                Output { name: node.name.clone(), map: s.maps[id.index()], kind }
            })
            .collect();
        let mut since_split = 0;
        recording.host_slots.clone_from(&self.lifetimes.slots);
        for (step, &task) in (0u32..).zip(&s.tasks) {
            self.task(task, step, &mut recording, &mut since_split)?;
        }
        recording.commands.push(Command::Split);
        Ok(recording)
    }
}
