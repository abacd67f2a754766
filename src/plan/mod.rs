//! Plans: order, slabs, lifetimes, placement and cost of a run, made without a device.
//!
//! The unit is the slab, consecutive planes of one value. A value is one slab (resident) or many; a task computes one slab
//! from ranges of its inputs' slabs. Lifetimes and places belong to slabs, so the resident plan is the case of one slab
//! a value and there is no second code path. Slab depths never change a result: a voxel is computed by the same operations
//! in the same order wherever its plane lies.

use crate::caps::DeviceCaps;
use crate::error::{PlanError, PlanErrorKind};
use crate::graph::{Graph, NodeId, Op};
use crate::model::Model;
use crate::record::{Constant, Recording, Region};
use crate::shape::{Elem, Extent, Map};

mod lower;
mod place;
mod report;
mod schedule;
mod slab;

pub use report::Report;

use schedule::Schedule;

/// What leaves the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OutputMode {
    /// The label of the highest logit of each voxel.
    #[default]
    Labels,
    /// The logits of all classes.
    Logits,
}

/// How to plan.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PlanOptions {
    /// Most device bytes of a run; `None` for no bound but the device's own limits.
    pub budget: Option<u64>,
    /// Storage type of activations and weights.
    pub precision: Elem,
    /// What leaves the device.
    pub output: OutputMode,
    /// Further nodes whose values leave the device, by name.
    pub taps: Vec<String>,
    /// Planes of the input that a slab holds at most; `None` lets the budget decide. Tests and experiments set it.
    pub slab_depth: Option<u32>,
}

impl PlanOptions {
    /// Bounds every device byte of a run.
    #[must_use]
    pub fn with_budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Sets the storage type.
    #[must_use]
    pub fn with_precision(mut self, precision: Elem) -> Self {
        self.precision = precision;
        self
    }

    /// Chooses labels or logits.
    #[must_use]
    pub fn with_output(mut self, output: OutputMode) -> Self {
        self.output = output;
        self
    }

    /// Also brings back the value of the node `name`.
    #[must_use]
    pub fn with_tap(mut self, name: impl Into<String>) -> Self {
        self.taps.push(name.into());
        self
    }

    /// Fixes the slab depth.
    #[must_use]
    pub fn with_slab_depth(mut self, planes: u32) -> Self {
        self.slab_depth = Some(planes);
        self
    }
}

/// A run that fits: a recording and the figures about it.
#[derive(Clone, Debug)]
pub struct Plan {
    extent: Extent,
    graph: Graph,
    recording: Recording,
    report: Report,
}

/// Largest extent along an axis, the number of workgroups WebGPU dispatches along one.
const MAX_AXIS: u32 = 65_535;

/// Staging buffers: at least one plane's worth in small steps, at most this much.
const MAX_STAGING: u64 = 8 << 20;
const TIGHT_STAGING: u64 = 128 << 10;

impl Plan {
    /// Plans a run of `model` on an input of `extent`, whose axes must be multiples of [`Model::stride`].
    ///
    /// # Errors
    /// When the extent does not suit, when the budget is below the smallest that works (named in the error), or when the
    /// device's limits rule the network out.
    pub fn new(model: &Model, extent: Extent, caps: &DeviceCaps, options: &PlanOptions) -> Result<Self, PlanError> {
        check_stride(extent, model.stride())?;
        Self::of_graph(model.graph(), extent, caps, options)
    }

    /// Plans a graph without weights: what `organum plan` and tests need.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn of_graph(graph: &Graph, extent: Extent, caps: &DeviceCaps, options: &PlanOptions) -> Result<Self, PlanError> {
        if extent.axes().iter().any(|&n| n == 0 || n > MAX_AXIS) {
            return Err(PlanError::new(PlanErrorKind::Extent, format!("an extent of {extent} is not possible: each axis must be 1 to {MAX_AXIS}")));
        }
        if options.precision == Elem::F16 && !caps.f16 {
            return Err(PlanError::new(PlanErrorKind::Unsupported, "the device has no 16-bit floats (shader-f16); use f32"));
        }
        let mut graph = graph.clone();
        let mut outputs = Vec::new();
        for tap in &options.taps {
            let node = graph.find(tap).ok_or_else(|| PlanError::new(PlanErrorKind::Unsupported, format!("the network has no node {tap:?} to bring back")))?;
            outputs.push(node);
        }
        let logits = graph.output();
        outputs.insert(0, if options.output == OutputMode::Labels { graph.add("labels", Op::Argmax, &[logits]) } else { logits });
        let maps = graph.infer(extent).map_err(|e| PlanError::new(PlanErrorKind::Extent, format!("{} on an input of {extent}", e.message)).at(e.node))?;
        check_indices(&graph, &maps)?;

        let limits = slab::depth_limits(&graph, &maps, options.precision, caps)?;
        let depths = options.slab_depth.map_or_else(|| slab::candidates(extent.d), |d| vec![d.clamp(1, extent.d)]);
        let mut smallest = u64::MAX;
        let mut chosen = None;
        let mut seen = Vec::new();
        for finest in depths {
            let depths = slab::depths(&maps, &limits, finest);
            if seen.contains(&depths) {
                continue;
            }
            seen.push(depths.clone());
            let schedule = Schedule::new(&graph, &maps, options.precision, depths);
            for staging in [MAX_STAGING, TIGHT_STAGING] {
                let (recording, mut report) = assemble(&schedule, caps, &outputs, staging)?;
                smallest = smallest.min(report.peak_bytes);
                if chosen.is_none() && options.budget.is_none_or(|b| report.peak_bytes <= b) {
                    report.budget = options.budget;
                    chosen = Some((recording, report));
                }
            }
        }
        let Some((recording, mut report)) = chosen else {
            return Err(PlanError::budget(options.budget.unwrap_or(0), smallest));
        };
        report.smallest_budget = smallest;
        Ok(Self { extent, graph, recording, report })
    }

    /// Extent of the input.
    #[must_use]
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The graph that was planned: the model's, with the arg-max of the labels if there is one.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The run as data.
    #[must_use]
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// The figures.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.report.fmt(f)
    }
}

/// Checks an extent against a network's stride.
///
/// # Errors
/// When it is not divisible; the message says what to pad to.
pub fn check_stride(extent: Extent, stride: [u32; 3]) -> Result<(), PlanError> {
    if extent.axes().iter().zip(stride).any(|(n, s)| n % s != 0) {
        let needed: Vec<String> = extent.axes().iter().zip(stride).map(|(n, s)| n.next_multiple_of(s).to_string()).collect();
        let text = format!("an extent of {extent} is not divisible by the network's stride of {}x{}x{}; pad it to {}", stride[0], stride[1], stride[2], needed.join("x"));
        return Err(PlanError::new(PlanErrorKind::Extent, text));
    }
    Ok(())
}

/// Shaders index elements of a binding with a u32, and count voxels of a plane and tokens of a map with one.
fn check_indices(graph: &Graph, maps: &[Map]) -> Result<(), PlanError> {
    for id in graph.ids() {
        let (node, map) = (graph.node(id), maps[id.index()]);
        let tokens = if matches!(node.op, Op::Attention { .. }) { map.extent.voxels() * u64::from(map.blocks()) * 4 } else { 0 };
        if map.plane_elements() > u64::from(u32::MAX) || tokens > u64::from(u32::MAX) {
            return Err(PlanError::new(PlanErrorKind::Extent, format!("a map of {} channels over {} is beyond 32-bit indices", map.channels, map.extent)).at(node.name.clone()));
        }
    }
    Ok(())
}

/// Lifetimes, placement, lowering and figures of a schedule.
fn assemble(s: &Schedule<'_>, caps: &DeviceCaps, outputs: &[NodeId], staging: u64) -> Result<(Recording, Report), PlanError> {
    let slabs = lifetimes(s, caps);
    let placement = place::place(&slabs, caps.max_buffer);
    let mut chunks = placement.chunks.clone();
    let activation_bytes = chunks.iter().sum::<u64>();

    let mut constants = Vec::new();
    let mut by_node = vec![None; s.maps.len()];
    let mut open: Option<usize> = None;
    for (node, source, bytes) in lower::constants(s) {
        if bytes > caps.max_binding.min(caps.max_buffer) {
            let text = format!("weights of {bytes} bytes must lie in one storage binding, the device binds at most {}", caps.max_binding.min(caps.max_buffer));
            return Err(PlanError::new(PlanErrorKind::Limits, text).at(s.graph.node(node).name.clone()));
        }
        let size = caps.align(bytes);
        let chunk = match open.filter(|&c| chunks[c] + size <= caps.max_buffer) {
            Some(c) => c,
            None => {
                chunks.push(0);
                chunks.len() - 1
            }
        };
        open = Some(chunk);
        let dst = Region { chunk: u32::try_from(chunk).unwrap_or(u32::MAX), offset: chunks[chunk], size: bytes.next_multiple_of(4) };
        chunks[chunk] += size;
        by_node[node.index()] = Some(dst);
        constants.push(Constant { dst, source });
    }
    let weights_bytes = chunks.iter().sum::<u64>() - activation_bytes;

    let largest = |ids: &mut dyn Iterator<Item = usize>| ids.map(|i| slabs[i].size).max().unwrap_or(256);
    let uploads = largest(&mut s.tasks.iter().filter(|t| s.is_input(t.node)).map(|t| s.slab_id(t.node, t.slab)));
    let constants_max = constants.iter().map(|c| caps.align(c.dst.size)).max().unwrap_or(0);
    let downloads = largest(&mut s.tasks.iter().filter(|t| outputs.contains(&t.node)).map(|t| s.slab_id(t.node, t.slab)));
    let base = Recording {
        chunks,
        upload_staging: uploads.max(constants_max).min(staging),
        download_staging: downloads.min(staging),
        ..Recording::default()
    };
    let lowering = lower::Lowering { schedule: s, placement: &placement, constants: by_node, outputs: outputs.to_vec(), caps };
    let recording = lowering.record(base, constants)?;
    let report = Report::new(s, &recording, weights_bytes, place::max_live(&slabs));
    Ok((recording, report))
}

/// Lifetime of every slab in tasks, and which slabs must lie in different chunks.
fn lifetimes(s: &Schedule<'_>, caps: &DeviceCaps) -> Vec<place::Slab> {
    let mut slabs: Vec<place::Slab> = vec![place::Slab { size: 0, begin: 0, end: 0, apart: Vec::new() }; s.slab_count()];
    for (step, task) in s.tasks.iter().enumerate() {
        let step = u32::try_from(step).unwrap_or(u32::MAX);
        let own = s.slab_id(task.node, task.slab);
        slabs[own].size = caps.align(s.slab_bytes(task.node, task.slab));
        slabs[own].begin = step;
        slabs[own].end = step;
        for (input, k) in s.reads(task.node, task.slab) {
            let read = s.slab_id(input, k);
            slabs[read].end = step;
            slabs[read].apart.push(u32::try_from(own).unwrap_or(u32::MAX));
            slabs[own].apart.push(u32::try_from(read).unwrap_or(u32::MAX));
        }
    }
    slabs
}
