//! Candidate plans, from resident to streamed with spilled or recomputed values, and the choice of the fastest that fits.

use std::sync::{Arc, OnceLock};

use super::PlanOptions;
use super::lifetime::{Lifetimes, Weights, uses, waiting};
use super::lower::{self, Bound};
use super::network::Network;
use super::occupancy::Occupancy;
use super::place::{self, Placement};
use super::recompute::recompute;
use super::report::Report;
use super::schedule::Schedule;
use super::slab;
use crate::caps::DeviceCaps;
use crate::error::{PlanError, PlanErrorKind};
use crate::graph::{Graph, NodeId, Op, pass};
use crate::kernels::HostHalf;
use crate::record::{Constant, ConstantSource, Recording, Region, UNIFORM_STRIDE};
use crate::shape::Extent;

/// Staging buffers hold the largest transfer, but at most this; under a tight budget the second figure.
const STAGING: [u64; 2] = [8 << 20, 128 << 10];

/// Numbers of values that wait on the host, most profitable first.
const SPILLED: [usize; 11] = [0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24];

/// Numbers of values that are computed again for late readers, most profitable first.
const RECOMPUTED: [usize; 4] = [1, 2, 3, 4];

/// Slabs beyond which a finer cut is not tried.
const MOST_SLABS: usize = 12_000;

/// Weights that are a smaller share of all constants stay on the device.
const LEAST_FETCHED: u64 = 256;

/// Weights are fetched only where that saves at least this share of a plan's bytes.
const WORTH_FETCHING: u64 = 32;

/// Factor by which a run that keeps its values on the device may take longer than one that does not.
const WAITING: f64 = 1.05;

/// A network to schedule: the graph itself, or one that recomputes values.
#[derive(Debug)]
struct Form {
    net: Arc<Network>,
    constants: Vec<Needed>,
    /// Bytes of all constants where they lie.
    constant_bytes: u64,
    /// Nodes whose values leave the device.
    outputs: Vec<NodeId>,
    /// FLOPs of one run.
    flops: u64,
    /// Those of a run that computes, and interpolates, nothing twice.
    once: u64,
    /// Bytes that kernels read and write.
    traffic: u64,
    /// f32 numbers that a thread of the host needs for its kernels.
    scratch: u64,
}

impl Form {
    fn new(net: Arc<Network>, outputs: Vec<NodeId>, caps: &DeviceCaps) -> Result<Self, PlanError> {
        let constants = constants(&net, caps)?;
        let constant_bytes = constants.iter().map(|c| caps.align(c.bytes)).sum();
        let mut form = Self { constants, constant_bytes, outputs, flops: 0, once: 0, traffic: 0, scratch: 0, net };
        for id in form.net.graph.ids() {
            let Some(call) = form.net.call(id) else { continue };
            let cost = call.cost();
            form.scratch = form.scratch.max(call.host().map_or(0, HostHalf::scratch));
            form.flops = form.flops.saturating_add(cost.flops);
            form.traffic = form.traffic.saturating_add(cost.bytes);
        }
        form.once = form.flops;
        Ok(form)
    }

    /// Whether a constant may stay on the host between its uses.
    fn may_wait(&self, constant: &Needed) -> bool {
        constant.source.is_weights() && constant.bytes >= self.constant_bytes / LEAST_FETCHED
    }

    /// What the threads of the host need for their kernels.
    fn scratch_bytes(&self, caps: &DeviceCaps) -> u64 {
        u64::from(caps.threads) * self.scratch * 4
    }
}

/// A schedule with a choice of spilled values.
pub(super) struct Candidate {
    form: Arc<Form>,
    schedule: Arc<Schedule>,
    lifetimes: Lifetimes,
    /// Weights stay on the host between their uses.
    fetches: bool,
    max_live: u64,
    /// Bytes that no plan of this candidate can do without.
    least: u64,
    seconds: f64,
    placement: OnceLock<Placement>,
}

impl Candidate {
    /// What candidates are ordered by: estimated seconds, and a little more where values wait on the host. That takes the
    /// host's memory and its bus, which others want, too, for less than the estimates are off by.
    fn rank(&self) -> f64 {
        if self.lifetimes.slots.is_empty() { self.seconds } else { self.seconds * WAITING }
    }

    fn placement(&self, caps: &DeviceCaps) -> &Placement {
        self.placement.get_or_init(|| place::place(&self.lifetimes.lives, caps.max_buffer))
    }

    /// [`Candidate::least`] where the slabs lie, which may be more than are alive at once.
    fn least_placed(&self, caps: &DeviceCaps) -> u64 {
        self.least - self.max_live + self.placement(caps).chunks.iter().sum::<u64>()
    }
}

/// What the candidates are made from.
pub(super) struct Request<'a> {
    pub net: Arc<Network>,
    pub extent: Extent,
    pub outputs: Vec<NodeId>,
    pub caps: &'a DeviceCaps,
    /// Slab depths to try, deepest first.
    pub finest: Vec<u32>,
    pub options: &'a PlanOptions,
}

/// All candidates.
pub(super) fn enumerate(request: &Request<'_>) -> Result<Vec<Candidate>, PlanError> {
    let base = Arc::new(Form::new(Arc::clone(&request.net), request.outputs.clone(), request.caps)?);
    let mut list = Vec::new();
    for form in std::iter::once(Arc::clone(&base)).chain(reading_through(request, &base)?) {
        let schedules = enumerate_form(request, &form, &mut list)?;
        if !request.options.without_recompute {
            for form in recomputing(request, &form, &schedules)? {
                enumerate_form(request, &form, &mut list)?;
            }
        }
    }
    Ok(list)
}

/// The form whose convolutions read through upsampling, if there is something to read through.
fn reading_through(request: &Request<'_>, base: &Form) -> Result<Option<Arc<Form>>, PlanError> {
    // a neighbour's interpolation is done again for every tap
    if request.options.without_recompute {
        return Ok(None);
    }
    let graph = pass::read_through(&base.net.graph, &base.outputs);
    if graph.nodes().len() == base.net.graph.nodes().len() {
        return Ok(None);
    }
    let name = |output: &NodeId| graph.find(&base.net.node(*output).name);
    let outputs = base.outputs.iter().filter_map(name).collect();
    let net = Network::new(graph, request.extent, base.net.elem, request.caps)?;
    let form = Form::new(Arc::new(net), outputs, request.caps)?;
    Ok(Some(Arc::new(Form { once: base.flops.min(form.flops), ..form })))
}

/// Forms of the network that recompute the values that wait longest in a streamed schedule.
fn recomputing(request: &Request<'_>, base: &Form, schedules: &[Arc<Schedule>]) -> Result<Vec<Arc<Form>>, PlanError> {
    // cut finely enough for a wait to be one, coarsely enough to be looked at quickly
    let Some(streamed) = schedules.iter().find(|s| s.depths[0] * 16 <= base.net.planes(NodeId(0))).or(schedules.last()) else {
        return Ok(Vec::new());
    };
    let order = waiting(streamed, &uses(streamed));
    let mut forms: Vec<Arc<Form>> = Vec::new();
    for (count, nearer) in RECOMPUTED.into_iter().filter(|&n| n <= order.len()).flat_map(|n| [(n, false), (n, true)]) {
        let Some(r) = recompute(streamed, &order[..count], nearer) else { continue };
        if forms.iter().any(|f| f.net.graph == r.graph) {
            continue;
        }
        let position = |output: &NodeId| r.origins.iter().position(|o| o == output).and_then(|i| r.graph.ids().nth(i));
        let outputs = base.outputs.iter().filter_map(position).collect();
        let net = Arc::new(Network::new(r.graph, request.extent, base.net.elem, request.caps)?);
        forms.push(Arc::new(Form { once: base.once, ..Form::new(net, outputs, request.caps)? }));
    }
    Ok(forms)
}

/// The candidates of a form: every slab depth, each with no, one, two, ... values spilled.
fn enumerate_form(request: &Request<'_>, form: &Arc<Form>, list: &mut Vec<Candidate>) -> Result<Vec<Arc<Schedule>>, PlanError> {
    let net = &form.net;
    let limits = slab::depth_limits(net, request.caps)?;
    let waiting_bytes: u64 = form.constants.iter().filter(|c| form.may_wait(c)).map(|c| request.caps.align(c.bytes)).sum();
    let resident = [form.constant_bytes, form.constant_bytes - waiting_bytes];
    // memory of the host is what they would wait in
    let may_wait = !request.options.without_spill && !request.caps.is_host();
    let mut seen: Vec<Arc<Schedule>> = Vec::new();
    for &planes in &request.finest {
        let depths = slab::depths(net, &limits, planes);
        if seen.iter().any(|s| s.depths == depths) {
            continue;
        }
        let slabs: usize = net.maps.iter().zip(&depths).map(|(m, &d)| m.extent.d.div_ceil(d) as usize).sum();
        if slabs > MOST_SLABS && !seen.is_empty() {
            break;
        }
        let schedule = Arc::new(Schedule::new(Arc::clone(net), depths));
        let uses = uses(&schedule);
        let weights: Vec<Weights> = if may_wait {
            (0u32..).zip(&form.constants).filter(|(_, c)| form.may_wait(c)).map(|(i, c)| c.weights(i, &schedule)).collect()
        } else {
            Vec::new()
        };
        let order = waiting(&schedule, &uses);
        let computed = schedule.tasks.iter().filter(|t| !net.is_input(t.node)).count() as u64;
        let besides = if request.caps.is_host() { form.scratch_bytes(request.caps) } else { computed * UNIFORM_STRIDE };
        let most = if may_wait { order.len() } else { 0 };
        let mut lowest = u64::MAX;
        for spilled in SPILLED.into_iter().filter(|&n| n <= most) {
            let add = |fetches: bool, lowest: u64, list: &mut Vec<Candidate>| {
                let fetched: &[Weights] = if fetches { &weights } else { &[] };
                let lifetimes = Lifetimes::new(&schedule, &uses, &order[..spilled], fetched, request.caps);
                let max_live = place::max_live(&lifetimes.lives);
                let least = max_live + resident[usize::from(fetches)] + besides;
                if least >= lowest {
                    return least; // a transfer that frees nothing
                }
                let seconds = seconds(form, &lifetimes, schedule.tasks.len(), request.caps);
                let (form, schedule) = (Arc::clone(form), Arc::clone(&schedule));
                list.push(Candidate { form, schedule, lifetimes, fetches, max_live, least, seconds, placement: OnceLock::new() });
                least
            };
            let least = add(false, lowest, list);
            if least >= lowest {
                continue;
            }
            lowest = least;
            if !weights.is_empty() && waiting_bytes > least / WORTH_FETCHING {
                add(true, least - least / WORTH_FETCHING, list);
            }
        }
        seen.push(schedule);
    }
    Ok(seen)
}

/// Estimated time of a run. Transfers to the host overlap with computing.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn seconds(form: &Form, lifetimes: &Lifetimes, tasks: usize, caps: &DeviceCaps) -> f64 {
    let rates = caps.rates();
    let compute = (form.flops as f64 / rates.flops).max(form.traffic as f64 / rates.bytes) + tasks as f64 * rates.dispatch_seconds;
    let moved = lifetimes.spilled_bytes() + lifetimes.restored_bytes() + lifetimes.weights_bytes[1];
    let transfer = moved as f64 / rates.host_bytes;
    compute.max(transfer) + NOT_OVERLAPPED * compute.min(transfer)
}

/// Share of the shorter of computing and transferring that does not overlap with the longer.
const NOT_OVERLAPPED: f64 = 0.25;

/// A constant that one or several nodes bind.
#[derive(Debug)]
struct Needed {
    node: NodeId,
    source: ConstantSource,
    bytes: u64,
    nodes: Vec<NodeId>,
}

impl Needed {
    /// The same as what may be fetched, `constant` its index.
    fn weights(&self, constant: u32, schedule: &Schedule) -> Weights {
        let tasks = (0u32..).zip(&schedule.tasks);
        let steps = tasks.filter(|(_, task)| self.nodes.contains(&task.node)).map(|(step, _)| step).collect();
        Weights { constant, bytes: self.bytes.next_multiple_of(4), steps }
    }
}

/// Constants of a network; a node that is computed again binds those of the first.
fn constants(net: &Network, caps: &DeviceCaps) -> Result<Vec<Needed>, PlanError> {
    let most = caps.max_binding.min(caps.max_buffer);
    let mut list: Vec<Needed> = Vec::new();
    for node in net.graph.ids() {
        let Some((source, bytes)) = net.constant(node) else { continue };
        if bytes > most {
            let text = format!(
                "weights of {bytes} bytes must lie in one storage binding, \
                 the device binds at most {most} bytes"
            );
            return Err(PlanError::new(PlanErrorKind::Limits, text).at(net.node(node).name.clone()));
        }
        let same = |n: &&mut Needed| {
            let maps = |id: NodeId| net.node(id).inputs.iter().map(|&i| net.map(i)).collect::<Vec<_>>();
            let channels = |id: NodeId| maps(id).iter().map(|map| map.channels).collect::<Vec<_>>();
            // the weights of a layer are the same for any extent: window tokens go through those of their voxels
            let any_extent = matches!(net.node(node).op, Op::Conv(_) | Op::ConvTranspose(_) | Op::LayerNorm { .. });
            let alike = || if any_extent { channels(n.node) == channels(node) } else { maps(n.node) == maps(node) };
            net.node(n.node).op == net.node(node).op && alike()
        };
        match list.iter_mut().find(same) {
            Some(needed) => needed.nodes.push(node),
            None => list.push(Needed { node, source, bytes, nodes: vec![node] }),
        }
    }
    Ok(list)
}

/// The fastest candidate whose every device byte fits the budget. `smallest` is the smallest budget of the candidates once
/// that is known.
pub(super) fn choose(
    candidates: &[Candidate],
    caps: &DeviceCaps,
    budget: Option<u64>,
    smallest: &OnceLock<u64>,
) -> Result<Chosen, PlanError> {
    let mut order: Vec<&Candidate> = candidates.iter().collect();
    order.sort_by(|a, b| a.rank().total_cmp(&b.rank()));
    let mut chosen = None;
    'candidates: for candidate in order.iter().filter(|c| budget.is_none_or(|b| c.least <= b)) {
        if budget.is_some_and(|b| candidate.least_placed(caps) > b) {
            continue;
        }
        let placement = candidate.placement(caps);
        for staging in STAGING {
            let (recording, report) = assemble(candidate, placement, caps, staging)?;
            if budget.is_none_or(|b| report.peak_bytes <= b) {
                let occupancy = Occupancy::new(&candidate.lifetimes.lives, placement.chunks.iter().sum());
                chosen = Some(Chosen { graph: candidate.form.net.graph.clone(), recording, report, occupancy });
                break 'candidates;
            }
        }
    }
    let smallest = match smallest.get() {
        Some(&known) => known,
        None => {
            let least = least_peak(order, caps, chosen.as_ref().map(|c| c.report.peak_bytes))?;
            *smallest.get_or_init(|| least)
        }
    };
    let Some(mut chosen) = chosen else {
        return Err(PlanError::budget(budget.unwrap_or(0), smallest));
    };
    chosen.report.budget = budget;
    chosen.report.smallest_budget = smallest;
    Ok(chosen)
}

/// The fewest device bytes of all candidates; `known` are those of one of them.
fn least_peak(mut order: Vec<&Candidate>, caps: &DeviceCaps, known: Option<u64>) -> Result<u64, PlanError> {
    let mut smallest = known.unwrap_or(u64::MAX);
    // most candidates need not be placed to know the smallest budget
    order.sort_by_key(|c| c.least);
    for candidate in order {
        if candidate.least >= smallest {
            break;
        }
        if candidate.least_placed(caps) >= smallest {
            continue;
        }
        let (_, report) = assemble(candidate, candidate.placement(caps), caps, STAGING[1])?;
        smallest = smallest.min(report.peak_bytes);
    }
    Ok(smallest)
}

/// What was chosen.
pub(super) struct Chosen {
    pub graph: Graph,
    pub recording: Recording,
    pub report: Report,
    pub occupancy: Occupancy,
}

/// Recording and figures of a placed candidate.
fn assemble(c: &Candidate, placement: &Placement, caps: &DeviceCaps, staging: u64) -> Result<(Recording, Report), PlanError> {
    let s = &*c.schedule;
    let outputs = &c.form.outputs;
    let mut chunks = placement.chunks.clone();
    let activation_bytes = chunks.iter().sum::<u64>();

    let mut regions = Vec::new();
    let mut bound = vec![None; s.net.maps.len()];
    let mut open: Option<usize> = None;
    for (index, needed) in (0u32..).zip(&c.form.constants) {
        let size = caps.align(needed.bytes);
        if c.fetches && c.form.may_wait(needed) {
            needed.nodes.iter().for_each(|node| bound[node.index()] = Some(Bound::Fetched(index)));
            let dst = Region { chunk: 0, offset: 0, size: needed.bytes.next_multiple_of(4) };
            regions.push(Constant { dst, source: needed.source.clone(), fetched: true });
            continue;
        }
        let chunk = open.filter(|&c| chunks[c] + size <= caps.max_buffer).unwrap_or_else(|| {
            chunks.push(0);
            chunks.len() - 1
        });
        open = Some(chunk);
        let size_bound = needed.bytes.next_multiple_of(4);
        let dst = Region { chunk: u32::try_from(chunk).unwrap_or(u32::MAX), offset: chunks[chunk], size: size_bound };
        chunks[chunk] += size;
        needed.nodes.iter().for_each(|node| bound[node.index()] = Some(Bound::At(dst)));
        regions.push(Constant { dst, source: needed.source.clone(), fetched: false });
    }
    let weights_bytes = chunks.iter().sum::<u64>() - activation_bytes;

    let largest = |wanted: &dyn Fn(NodeId) -> bool| {
        let sizes = s.tasks.iter().filter(|t| wanted(t.node)).map(|t| caps.align(s.slab_bytes(t.node, t.slab)));
        sizes.max().unwrap_or(256)
    };
    let spilled = c.lifetimes.slots.iter().map(|&n| caps.align(n)).max().unwrap_or(0);
    let constant = regions.iter().map(|c| caps.align(c.dst.size)).max().unwrap_or(0);
    let base = Recording {
        chunks,
        upload_staging: largest(&|n| s.net.is_input(n)).max(constant).max(spilled).min(staging),
        download_staging: largest(&|n| outputs.contains(&n)).max(spilled).min(staging),
        threads: caps.threads,
        scratch: c.form.scratch,
        ..Recording::default()
    };
    let base = if caps.is_host() { Recording { upload_staging: 0, download_staging: 0, ..base } } else { base };
    let lowering = lower::Lowering { schedule: s, lifetimes: &c.lifetimes, placement, constants: bound, outputs: outputs.clone(), caps };
    let recording = lowering.record(base, regions)?;
    let mut report = Report::new(s, &recording, weights_bytes, c.max_live, &c.lifetimes);
    report.recomputed_flops = c.form.flops - c.form.once;
    Ok((recording, report))
}
