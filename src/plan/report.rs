//! The figures of a plan, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::lifetime::Lifetimes;
use super::schedule::Schedule;
use crate::record::{OutputKind, Recording};
use crate::shape::{Extent, format_bytes};

/// What a plan needs and does. Field names are those of the command line's JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Extent of the input.
    #[serde(serialize_with = "axes")]
    pub extent: Extent,
    /// The budget asked for.
    pub budget: Option<u64>,
    /// Every device byte of a run: weights, activations, uniforms, staging.
    pub peak_bytes: u64,
    /// Weights and tables.
    pub weights_bytes: u64,
    /// Most bytes of activations alive at once: the bound of every placement.
    pub max_live_bytes: u64,
    /// Buffers of activations.
    pub activation_bytes: u64,
    /// Device bytes of windows that are cropped, summed and finished on the device; 0 where the host does that.
    pub windows_bytes: u64,
    /// Host bytes of input, outputs and spilled slabs as the session holds them.
    pub host_bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Operations done more than once.
    pub recomputed_flops: u64,
    /// Bytes that kernels read and write.
    pub traffic_bytes: u64,
    /// Bytes that leave for the host to save device memory; as many come back, or more where some come back twice.
    pub spilled_bytes: u64,
    /// Bytes of weights that come from the host between their uses, to save device memory.
    pub fetched_bytes: u64,
    /// Kernel dispatches.
    pub dispatches: u64,
    /// Slabs of all values.
    pub slabs: u64,
    /// Planes of the input in a slab.
    pub slab_depth: u32,
    /// Planes in a slab of each value, by the name of its node.
    pub slab_depths: BTreeMap<String, u32>,
    /// The smallest budget with which a plan exists.
    pub smallest_budget: u64,
}

fn axes<S: serde::Serializer>(extent: &Extent, serializer: S) -> Result<S::Ok, S::Error> {
    extent.axes().serialize(serializer)
}

impl Report {
    pub(super) fn new(s: &Schedule, recording: &Recording, weights_bytes: u64, max_live_bytes: u64, lifetimes: &Lifetimes) -> Self {
        let (mut flops, mut traffic, mut dispatches) = (0, 0, 0);
        for (call, _) in recording.dispatches() {
            let cost = call.cost();
            flops = u64::saturating_add(flops, cost.flops);
            traffic = u64::saturating_add(traffic, cost.bytes);
            dispatches += 1;
        }
        let input = s.net.maps[0];
        let outputs: u64 = recording
            .outputs
            .iter()
            .map(|o| match o.kind {
                OutputKind::Labels => o.map.extent.voxels() * 2,
                OutputKind::Map | OutputKind::MapF32 => o.map.extent.voxels() * u64::from(o.map.channels) * 4,
            })
            .sum();
        Self {
            extent: input.extent,
            budget: None,
            peak_bytes: recording.device_bytes(),
            weights_bytes,
            max_live_bytes,
            activation_bytes: recording.chunks.iter().sum::<u64>() - weights_bytes,
            windows_bytes: 0,
            host_bytes: input.extent.voxels() * u64::from(input.channels) * 4
                + outputs
                + lifetimes.host_peak()
                + lifetimes.weights_bytes[0],
            flops,
            recomputed_flops: 0,
            traffic_bytes: traffic,
            spilled_bytes: lifetimes.spilled_bytes(),
            fetched_bytes: lifetimes.weights_bytes[1],
            dispatches,
            slabs: s.slab_count() as u64,
            slab_depth: s.depths[0],
            slab_depths: s.net.graph.nodes().iter().map(|n| n.name.clone()).zip(s.depths.iter().copied()).collect(),
            smallest_budget: recording.device_bytes(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let (tera, ratio) = (self.flops as f64 / 1e12, self.activation_bytes as f64 / self.max_live_bytes.max(1) as f64);
        writeln!(f, "extent              {}", self.extent)?;
        writeln!(f, "budget              {}", self.budget.map_or_else(|| "none".into(), format_bytes))?;
        writeln!(f, "device bytes, peak  {} ({} bytes)", format_bytes(self.peak_bytes), self.peak_bytes)?;
        writeln!(f, "  weights           {}", format_bytes(self.weights_bytes))?;
        writeln!(
            f,
            "  activations       {} ({ratio:.3}x of the {} alive at once)",
            format_bytes(self.activation_bytes),
            format_bytes(self.max_live_bytes)
        )?;
        let named = self.weights_bytes + self.activation_bytes + self.windows_bytes;
        if self.windows_bytes > 0 {
            writeln!(f, "  sums of windows   {}", format_bytes(self.windows_bytes))?;
        }
        writeln!(f, "  uniforms, staging {}", format_bytes(self.peak_bytes.saturating_sub(named)))?;
        writeln!(f, "host bytes          {}", format_bytes(self.host_bytes))?;
        writeln!(
            f,
            "work                {tera:.3} TFLOP, {} recomputed, {} of traffic, {} spilled, {} of weights fetched",
            self.recomputed_flops,
            format_bytes(self.traffic_bytes),
            format_bytes(self.spilled_bytes),
            format_bytes(self.fetched_bytes)
        )?;
        let depths = || self.slab_depths.values();
        let (least, most) = (depths().min().unwrap_or(&0), depths().max().unwrap_or(&0));
        writeln!(
            f,
            "dispatches          {} over {} slabs of {least} to {most} planes, {} of the input",
            self.dispatches, self.slabs, self.slab_depth
        )?;
        write!(f, "smallest budget     {} ({} bytes)", format_bytes(self.smallest_budget), self.smallest_budget)
    }
}
