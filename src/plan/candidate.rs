//! Candidate plans, from resident to streamed with spilled slabs, and the choice of the fastest that fits the budget.

use std::rc::Rc;

use super::lifetime::{Lifetimes, uses, waiting};
use super::lower;
use super::network::Network;
use super::occupancy::Occupancy;
use super::place::{self, Placement};
use super::report::Report;
use super::schedule::Schedule;
use super::slab::{self, DepthLimits};
use crate::caps::DeviceCaps;
use crate::error::{PlanError, PlanErrorKind};
use crate::graph::NodeId;
use crate::record::{Constant, Recording, Region};

/// Staging buffers hold the largest transfer, but at most this; under a tight budget the second figure.
const STAGING: [u64; 2] = [8 << 20, 128 << 10];

/// Values that may wait on the host, most profitable first.
const MOST_SPILLED: usize = 12;

/// Slabs beyond which a finer cut is not tried: planning time grows with their square.
const MOST_SLABS: usize = 12_000;

/// Rates that rank candidates against each other; only their ratios matter. Host transfers of a discrete GPU, dispatch
/// overhead of wgpu.
const HOST_BYTES_PER_SECOND: f64 = 12e9;
const SECONDS_PER_DISPATCH: f64 = 20e-6;

/// A schedule with a choice of spilled values.
pub(super) struct Candidate {
    schedule: Rc<Schedule>,
    lifetimes: Lifetimes,
    max_live: u64,
    seconds: f64,
}

/// All candidates of the given slab depths, each with no, one, two, ... values spilled.
pub(super) fn enumerate(net: &Rc<Network>, caps: &DeviceCaps, limits: &[DepthLimits], finest: &[u32]) -> Vec<Candidate> {
    let mut seen: Vec<Vec<u32>> = Vec::new();
    let mut list: Vec<Candidate> = Vec::new();
    for &planes in finest {
        let depths = slab::depths(net, limits, planes);
        if seen.contains(&depths) {
            continue;
        }
        let slabs: usize = net.maps.iter().zip(&depths).map(|(m, &d)| m.extent.d.div_ceil(d) as usize).sum();
        if slabs > MOST_SLABS && !list.is_empty() {
            break;
        }
        seen.push(depths.clone());
        let schedule = Rc::new(Schedule::new(Rc::clone(net), depths));
        let uses = uses(&schedule);
        let order = waiting(&schedule, &uses);
        let mut lowest = u64::MAX;
        for spilled in 0..=order.len().min(MOST_SPILLED) {
            let lifetimes = Lifetimes::new(&schedule, &uses, &order[..spilled], caps);
            let max_live = place::max_live(&lifetimes.lives);
            if max_live >= lowest {
                continue; // a transfer that frees nothing
            }
            lowest = max_live;
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let seconds =
                2.0 * lifetimes.spilled_bytes() as f64 / HOST_BYTES_PER_SECOND + schedule.tasks.len() as f64 * SECONDS_PER_DISPATCH;
            list.push(Candidate { schedule: Rc::clone(&schedule), lifetimes, max_live, seconds });
        }
    }
    list
}

/// The fastest candidate whose every device byte fits the budget.
pub(super) fn choose(
    candidates: &[Candidate],
    caps: &DeviceCaps,
    outputs: &[NodeId],
    budget: Option<u64>,
) -> Result<(Recording, Report, Occupancy), PlanError> {
    let mut order: Vec<&Candidate> = candidates.iter().collect();
    order.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let mut chosen = None;
    'candidates: for candidate in order.iter().filter(|c| budget.is_none_or(|b| c.max_live <= b)) {
        let placement = place::place(&candidate.lifetimes.lives, caps.max_buffer);
        for staging in STAGING {
            let (recording, report) = assemble(candidate, &placement, caps, outputs, staging)?;
            if budget.is_none_or(|b| report.peak_bytes <= b) {
                chosen = Some((recording, report, Occupancy::new(&candidate.lifetimes.lives, placement.chunks.iter().sum())));
                break 'candidates;
            }
        }
    }
    let mut smallest = chosen.as_ref().map_or(u64::MAX, |(_, report, _)| report.peak_bytes);
    // a candidate's chunks hold at least what is alive at once, so most need not be placed to know the smallest budget
    order.sort_by_key(|c| c.max_live);
    for candidate in order {
        if candidate.max_live >= smallest {
            break;
        }
        let placement = place::place(&candidate.lifetimes.lives, caps.max_buffer);
        let (_, report) = assemble(candidate, &placement, caps, outputs, STAGING[1])?;
        smallest = smallest.min(report.peak_bytes);
    }
    let Some((recording, mut report, occupancy)) = chosen else {
        return Err(PlanError::budget(budget.unwrap_or(0), smallest));
    };
    report.budget = budget;
    report.smallest_budget = smallest;
    Ok((recording, report, occupancy))
}

/// Recording and figures of a placed candidate.
fn assemble(
    c: &Candidate,
    placement: &Placement,
    caps: &DeviceCaps,
    outputs: &[NodeId],
    staging: u64,
) -> Result<(Recording, Report), PlanError> {
    let s = &*c.schedule;
    let mut chunks = placement.chunks.clone();
    let activation_bytes = chunks.iter().sum::<u64>();

    let mut constants = Vec::new();
    let mut by_node = vec![None; s.net.maps.len()];
    let mut open: Option<usize> = None;
    for node in s.net.graph.ids() {
        let Some((source, elements)) = s.net.constant(node) else { continue };
        let bytes = elements * s.net.elem.bytes();
        let most = caps.max_binding.min(caps.max_buffer);
        if bytes > most {
            let text = format!("weights of {bytes} bytes must lie in one storage binding, the device binds at most {most}");
            return Err(PlanError::new(PlanErrorKind::Limits, text).at(s.net.node(node).name.clone()));
        }
        let size = caps.align(bytes);
        let chunk = open.filter(|&c| chunks[c] + size <= caps.max_buffer).unwrap_or_else(|| {
            chunks.push(0);
            chunks.len() - 1
        });
        open = Some(chunk);
        let dst = Region { chunk: u32::try_from(chunk).unwrap_or(u32::MAX), offset: chunks[chunk], size: bytes.next_multiple_of(4) };
        chunks[chunk] += size;
        by_node[node.index()] = Some(dst);
        constants.push(Constant { dst, source });
    }
    let weights_bytes = chunks.iter().sum::<u64>() - activation_bytes;

    let largest = |wanted: &dyn Fn(NodeId) -> bool| {
        let sizes = s.tasks.iter().filter(|t| wanted(t.node)).map(|t| caps.align(s.slab_bytes(t.node, t.slab)));
        sizes.max().unwrap_or(256)
    };
    let spilled = c.lifetimes.slots.iter().map(|&n| caps.align(n)).max().unwrap_or(0);
    let constant = constants.iter().map(|c| caps.align(c.dst.size)).max().unwrap_or(0);
    let base = Recording {
        chunks,
        upload_staging: largest(&|n| s.net.is_input(n)).max(constant).max(spilled).min(staging),
        download_staging: largest(&|n| outputs.contains(&n)).max(spilled).min(staging),
        ..Recording::default()
    };
    let lowering = lower::Lowering { schedule: s, lifetimes: &c.lifetimes, placement, constants: by_node, outputs: outputs.to_vec(), caps };
    let recording = lowering.record(base, constants)?;
    let report = Report::new(s, &recording, weights_bytes, c.max_live, &c.lifetimes);
    Ok((recording, report))
}
