//! From tasks and places to a recording: every dispatch with its kernel, parameters and bindings.

use std::ops::Range;

use super::lifetime::Lifetimes;
use super::place::Placement;
use super::schedule::{Schedule, Task};
use crate::caps::DeviceCaps;
use crate::error::{PlanError, PlanErrorKind};
use crate::graph::NodeId;
use crate::kernels::{Binding, Call, Target, Window};
use crate::record::{Command, Constant, Output, OutputKind, Recording, Region};
use crate::shape::Elem;

/// Work after which a batch is submitted: a fraction of a second on the device meant.
fn batch_flops(caps: &DeviceCaps) -> u64 {
    if caps.cpu { 4_000_000_000 } else { 50_000_000_000 }
}

/// Most work of one dispatch, but for that of one plane: a slow GPU must finish it before its driver's watchdog (2 s on Windows)
/// bites, and a CPU driver within some tenths of a second, as what was submitted cannot be cancelled.
fn dispatch_flops(caps: &DeviceCaps) -> u64 {
    if caps.cpu && !caps.is_host() { 1_000_000_000 } else { 100_000_000_000 }
}

/// Where the constant that a node binds lies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// In one place from the beginning.
    At(Region),
    /// Wherever it was fetched to last; the number of the constant.
    Fetched(u32),
}

/// What is known of placement when lowering.
pub(super) struct Lowering<'a> {
    pub schedule: &'a Schedule,
    pub lifetimes: &'a Lifetimes,
    pub placement: &'a Placement,
    /// Constants by node.
    pub constants: Vec<Option<Bound>>,
    /// Nodes whose values leave the device.
    pub outputs: Vec<NodeId>,
    pub caps: &'a DeviceCaps,
}

impl Lowering<'_> {
    /// Where the constants of a node lie at a step.
    fn constants(&self, node: NodeId, step: u32, recording: &Recording) -> Option<Region> {
        match self.constants[node.index()]? {
            Bound::At(region) => Some(region),
            Bound::Fetched(constant) => self.fetched_region(constant, step, recording),
        }
    }

    fn fetched_region(&self, constant: u32, step: u32, recording: &Recording) -> Option<Region> {
        let place = self.placement.places[self.lifetimes.life_of_weights(constant, step)?];
        let size = recording.constants[constant as usize].dst.size;
        Some(Region { chunk: place.chunk, offset: place.offset, size })
    }

    fn region(&self, node: NodeId, slab: u32, step: u32) -> Region {
        let place = self.placement.places[self.lifetimes.life(self.schedule.slab_id(node, slab), step)];
        Region { chunk: place.chunk, offset: place.offset, size: self.schedule.slab_bytes(node, slab) }
    }

    /// The slab or the two slabs that hold what `z` reads of input `slot`.
    fn window(&self, node: NodeId, slot: usize, z: &Range<u32>, step: u32) -> (Window, Region, Region) {
        let s = self.schedule;
        let input = s.net.node(node).inputs[slot];
        let slabs = s.covering(input, &s.net.reach(node, slot, z));
        let lo = self.region(input, slabs.start, step);
        let first = s.planes(input, slabs.start).start;
        if slabs.len() > 1 {
            let split = s.planes(input, slabs.start + 1).start;
            (Window { first, split }, lo, self.region(input, slabs.start + 1, step))
        } else {
            (Window::whole(first), lo, lo)
        }
    }

    /// The kernel and the source bindings that compute planes `z` of a node.
    fn call(&self, call: &Call, id: NodeId, target: Target, z: &Range<u32>, step: u32, constants: Option<Region>) -> (Call, Vec<Region>) {
        let windows = (0..self.schedule.net.node(id).inputs.len()).map(|slot| self.window(id, slot, z, step));
        let (windows, slabs): (Vec<Window>, Vec<[Region; 2]>) = windows.map(|(window, lo, hi)| (window, [lo, hi])).unzip();
        let mut call = call.clone();
        let (lie, write) = call.operands();
        lie.copy_from_slice(&windows);
        *write = target;
        let bindings = call.bind(&slabs, constants.as_slice());
        (call, bindings)
    }

    fn task(&self, task: &Task, step: u32, recording: &mut Recording, since_split: &mut u64) -> Result<(), PlanError> {
        let s = self.schedule;
        let planes = s.planes(task.node, task.slab);
        let dst = self.region(task.node, task.slab, step);
        for m in self.lifetimes.restores.get(&step).into_iter().flatten() {
            recording.commands.push(Command::Restore { dst: self.region(m.node, m.slab, step), slot: m.slot, keep: m.keep });
        }
        for &constant in self.lifetimes.fetches.get(&step).into_iter().flatten() {
            if let Some(dst) = self.fetched_region(constant, step, recording) {
                recording.commands.push(Command::Fetch { dst, constant });
            }
        }
        let constants = self.constants(task.node, step, recording);
        if let Some(whole) = s.net.call(task.node) {
            let target = |z: &Range<u32>| Target { first: planes.start, begin: z.start, count: z.end - z.start };
            let one = task.begin..task.begin + 1;
            let plane_flops = self.call(whole, task.node, target(&one), &one, step, constants).0.cost().flops;
            for z in s.dispatches(task, plane_flops, dispatch_flops(self.caps)) {
                let (call, mut bindings) = self.call(whole, task.node, target(&z), &z, step, constants);
                let storage = call.bindings().iter().filter(|b| **b != Binding::Params).count();
                if storage > self.caps.max_storage_buffers as usize {
                    let text = format!("{} binds {storage} storage buffers, the device {}", call.name(), self.caps.max_storage_buffers);
                    return Err(PlanError::new(PlanErrorKind::Limits, text).at(s.net.node(task.node).name.clone()));
                }
                if s.net.elem == Elem::F16 && !self.caps.f16 && !call.packs() {
                    let text = "heads of an odd number of channels need a device with 16-bit floats (shader-f16), or f32";
                    return Err(PlanError::new(PlanErrorKind::Unsupported, text).at(s.net.node(task.node).name.clone()));
                }
                call.workgroups(self.caps)
                    .map_err(|e| PlanError::new(PlanErrorKind::Limits, e.0).at(s.net.node(task.node).name.clone()))?;
                bindings.push(dst);
                *since_split += call.cost().flops;
                recording.commands.push(Command::Dispatch { call: Box::new(call), bindings, node: task.node });
                if *since_split >= batch_flops(self.caps) {
                    recording.commands.push(Command::Split);
                    *since_split = 0;
                }
            }
        } else {
            recording.commands.push(Command::Upload { dst, planes: planes.clone(), node: task.node });
        }
        let completed = s.completes(task);
        for (output, _) in (0u32..).zip(&self.outputs).filter(|&(_, &o)| completed && o == task.node) {
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
        recording.elem = s.net.elem;
        recording.constants = constants;
        recording.input = s.net.maps.first().copied();
        recording.outputs = self
            .outputs
            .iter()
            .map(|&id| {
                let node = s.net.node(id);
                let kind = match s.net.call(id).and_then(|call| call.bindings().last()) {
                    Some(Binding::WriteWords) => OutputKind::Labels,
                    Some(Binding::WriteF32 | Binding::Update) => OutputKind::MapF32,
                    _ => OutputKind::Map,
                };
                Output { name: node.name.clone(), map: s.net.map(id), kind }
            })
            .collect();
        let mut since_split = 0;
        recording.host_slots.clone_from(&self.lifetimes.slots);
        for (step, task) in (0u32..).zip(&s.tasks) {
            self.task(task, step, &mut recording, &mut since_split)?;
        }
        recording.commands.push(Command::Split);
        Ok(recording)
    }
}
