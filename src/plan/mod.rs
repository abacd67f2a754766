//! Plans: order, slabs, lifetimes, placement and cost of a run, made without a device.
//!
//! The unit is the slab, consecutive planes of one value. A value is one slab (resident) or many; a task computes one slab
//! from ranges of its inputs' slabs. Lifetimes and places belong to slabs, so the resident plan is the case of one slab
//! a value and there is no second code path. Slab depths never change a result: a voxel is computed by the same operations
//! in the same order wherever its plane lies.
#![doc = include_str!("../docs/plan.md")]

use std::sync::{Arc, OnceLock};

use crate::caps::DeviceCaps;
use crate::error::{PlanError, PlanErrorKind};
use crate::graph::{Graph, NodeId, pass};
use crate::model::{Card, Model};
use crate::record::Recording;
use crate::shape::{Elem, Extent};
use network::Network;

mod candidate;
mod lifetime;
mod lower;
mod network;
mod occupancy;
mod place;
mod recompute;
mod report;
mod resample;
mod schedule;
mod slab;
mod windows;

pub use occupancy::Occupancy;
pub use report::Report;
pub(crate) use windows::WindowProblem;

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
    /// No slab waits on the host.
    pub without_spill: bool,
    /// Nothing is computed twice.
    pub without_recompute: bool,
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

    /// Keeps every slab on the device: for devices that share the host's memory, or none to spare there.
    #[must_use]
    pub fn without_spill(mut self) -> Self {
        self.without_spill = true;
        self
    }

    /// Computes nothing twice.
    #[must_use]
    pub fn without_recompute(mut self) -> Self {
        self.without_recompute = true;
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
    occupancy: Occupancy,
}

/// Largest extent along an axis, the number of workgroups WebGPU dispatches along one.
const MAX_AXIS: u32 = 65_535;

impl Plan {
    /// Plans a run of `model` on an input of `extent`, whose axes must be multiples of [`Model::stride`].
    ///
    /// # Errors
    /// When the extent does not suit, when the budget is below the smallest that works (named in the error), or when the
    /// device's limits rule the network out.
    pub fn new(model: &Model, extent: Extent, caps: &DeviceCaps, options: &PlanOptions) -> Result<Self, PlanError> {
        check_extent(extent, model.card())?;
        let graph = model.graph_for(extent, &options.taps)?;
        Self::of_graph(&graph, extent, caps, options)
    }

    /// Plans a graph without weights: what `organum plan` and tests need.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn of_graph(graph: &Graph, extent: Extent, caps: &DeviceCaps, options: &PlanOptions) -> Result<Self, PlanError> {
        Planner::of_graph(graph, extent, caps, options)?.plan(options.budget)
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

    /// Bytes alive over the tasks; its `Display` draws them.
    #[must_use]
    pub fn occupancy(&self) -> &Occupancy {
        &self.occupancy
    }

    /// The figures.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }
}

/// Plans of one network on one extent within one budget after another: what does not depend on the budget is done once.
pub struct Planner {
    extent: Extent,
    caps: DeviceCaps,
    candidates: Vec<candidate::Candidate>,
    smallest: OnceLock<u64>,
}

impl std::fmt::Debug for Planner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Planner").field("extent", &self.extent).field("candidates", &self.candidates.len()).finish_non_exhaustive()
    }
}

impl Planner {
    /// As [`Plan::new`], whatever the options' budget.
    ///
    /// # Errors
    /// As [`Plan::new`], but for the budget.
    pub fn new(model: &Model, extent: Extent, caps: &DeviceCaps, options: &PlanOptions) -> Result<Self, PlanError> {
        check_extent(extent, model.card())?;
        let graph = model.graph_for(extent, &options.taps)?;
        Self::of_graph(&graph, extent, caps, options)
    }

    /// As [`Plan::of_graph`], whatever the options' budget.
    ///
    /// # Errors
    /// As [`Planner::new`].
    pub fn of_graph(graph: &Graph, extent: Extent, caps: &DeviceCaps, options: &PlanOptions) -> Result<Self, PlanError> {
        check_axes(extent)?;
        let find = |graph: &Graph, tap: &String| {
            let missing = || PlanError::new(PlanErrorKind::Unsupported, format!("the network has no node {tap:?} to bring back"));
            graph.find(tap).ok_or_else(missing)
        };
        let taps = |graph: &Graph| options.taps.iter().map(|tap| find(graph, tap)).collect::<Result<Vec<NodeId>, _>>();
        let mut graph = pass::settle(graph, extent, &taps(graph)?).map_err(|e| network::misfit(e, extent))?;
        let mut outputs = taps(&graph)?;
        let logits = graph.output();
        outputs.insert(0, if options.output == OutputMode::Labels { pass::label(&mut graph, &outputs) } else { logits });
        let net = Arc::new(Network::new(graph, extent, options.precision, caps)?);
        let finest = options.slab_depth.map_or_else(|| slab::candidates(extent.d), |d| vec![d.clamp(1, extent.d)]);
        let request = candidate::Request { net, extent, outputs, caps, finest, options };
        Ok(Self { extent, caps: caps.clone(), candidates: candidate::enumerate(&request)?, smallest: OnceLock::new() })
    }

    /// The plan within a budget in bytes, or without a bound.
    ///
    /// # Errors
    /// When the budget is below the smallest that works, which the error names, or when the device's limits rule a cut out.
    pub fn plan(&self, budget: Option<u64>) -> Result<Plan, PlanError> {
        let candidate::Chosen { graph, recording, report, occupancy } =
            candidate::choose(&self.candidates, &self.caps, budget, &self.smallest)?;
        Ok(Plan { extent: self.extent, graph, recording, report, occupancy })
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.report.fmt(f)
    }
}

fn check_axes(extent: Extent) -> Result<(), PlanError> {
    if extent.axes().iter().any(|&n| n == 0 || n > MAX_AXIS) {
        let text = format!("an extent of {extent} is not possible: each axis must be 1 to {MAX_AXIS}");
        return Err(PlanError::new(PlanErrorKind::Extent, text));
    }
    Ok(())
}

/// Checks an extent against what the network of a card takes.
///
/// # Errors
/// When no network can be built of the card, it takes one other extent alone, or as [`check_stride`].
pub fn check_extent(extent: Extent, card: &Card) -> Result<(), PlanError> {
    let unbuilt = |e| PlanError::new(PlanErrorKind::Unsupported, "the card describes no network").caused_by(e);
    let facts = card.facts().map_err(unbuilt)?;
    match facts.crop {
        Some(crop) if facts.dims == 2 && [crop.h, crop.w] != [extent.h, extent.w] => Err(PlanError::new(
            PlanErrorKind::Extent,
            format!("an extent of {extent} is not possible: {} runs on planes of {}x{} alone", card.architecture, crop.h, crop.w),
        )),
        Some(crop) if facts.dims != 2 && crop != extent => {
            let text = format!("an extent of {extent} is not possible: {} runs on its configured crop of {crop} alone", card.architecture);
            Err(PlanError::new(PlanErrorKind::Extent, text))
        }
        _ => check_stride(extent, facts.stride),
    }
}

/// Checks an extent against a network's stride.
///
/// # Errors
/// When it is not divisible; the message says what to pad to.
pub fn check_stride(extent: Extent, stride: [u32; 3]) -> Result<(), PlanError> {
    check_axes(extent)?;
    if extent.axes().iter().zip(stride).any(|(n, s)| n % s != 0) {
        let needed: Vec<String> = extent.axes().iter().zip(stride).map(|(n, s)| n.next_multiple_of(s).to_string()).collect();
        let text = format!(
            "an extent of {extent} is not divisible by the network's stride of {}x{}x{}; pad it to {}",
            stride[0],
            stride[1],
            stride[2],
            needed.join("x")
        );
        return Err(PlanError::new(PlanErrorKind::Extent, text));
    }
    Ok(())
}
