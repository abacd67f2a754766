//! Where the time of a session's runs goes, by kernel and by node.

use serde::Serialize;

use crate::kernels::Cost;
use crate::plan::Plan;
use crate::record::Command;

/// How the kernels of a profiled run are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Clock {
    /// By the device's own timestamps around each dispatch ([`wgpu::Features::TIMESTAMP_QUERY`]).
    Timestamps,
    /// By the host, which submits each dispatch alone and waits: a submission's own time, some tens of microseconds, is
    /// counted with each.
    Submissions,
    /// By the host, which runs the kernels itself.
    Host,
}

/// Seconds and number of runs of every dispatch of a recording.
#[derive(Debug)]
pub(crate) struct Times {
    clock: Clock,
    of: Vec<(f64, u64)>,
}

impl Times {
    pub(crate) fn new(clock: Clock, dispatches: usize) -> Self {
        Self { clock, of: vec![(0.0, 0); dispatches] }
    }

    /// Counts one run of a dispatch.
    pub(crate) fn add(&mut self, dispatch: usize, seconds: f64) {
        if let Some((sum, count)) = self.of.get_mut(dispatch) {
            *sum += seconds;
            *count += 1;
        }
    }
}

/// The dispatches of one kernel for one node, or of a kernel for all nodes, over all profiled runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Timed {
    /// The kernel's name, that of its shader.
    pub kernel: String,
    /// The node that is computed, as [`Plan::graph`] names it; empty where all nodes are meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Dispatches.
    pub count: u64,
    /// Their time in seconds.
    pub seconds: f64,
    /// Their floating-point operations, a multiply-add counted as two.
    pub flops: u64,
    /// Bytes that they read and write, each operand once.
    pub bytes: u64,
}

impl Timed {
    /// FLOPs a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn flops_per_second(&self) -> f64 {
        self.flops as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Bytes a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.seconds += other.seconds;
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

/// What [`crate::Session::take_profile`] gives: the time of each kernel for each node, transfers not counted.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Profile {
    /// How it was timed.
    pub clock: Clock,
    /// Kernels and nodes, in the order in which they first ran.
    pub nodes: Vec<Timed>,
}

impl Profile {
    pub(crate) fn new(plan: &Plan, times: &Times) -> Self {
        let mut profile = Self { clock: times.clock, nodes: Vec::new() };
        let dispatches = plan.recording().commands.iter().filter_map(|command| match command {
            Command::Dispatch { call, node, .. } => Some((call, node)),
            _ => None,
        });
        for ((call, node), &(seconds, count)) in dispatches.zip(&times.of).filter(|(_, (_, count))| *count > 0) {
            let Cost { flops, bytes } = call.cost();
            let node = plan.graph().node(*node).name.clone();
            let (flops, bytes) = (flops * count, bytes * count);
            profile.push(Timed { kernel: call.name().into(), node, count, seconds, flops, bytes });
        }
        profile
    }

    fn push(&mut self, timed: Timed) {
        match self.nodes.iter_mut().find(|known| known.kernel == timed.kernel && known.node == timed.node) {
            Some(known) => known.add(&timed),
            None => self.nodes.push(timed),
        }
    }

    /// Adds the runs of another session, timed alike.
    pub fn add(&mut self, other: &Self) {
        other.nodes.iter().for_each(|timed| self.push(timed.clone()));
    }

    /// Every kernel for all nodes, the one that takes longest first.
    #[must_use]
    pub fn kernels(&self) -> Vec<Timed> {
        let mut all = Self { clock: self.clock, nodes: Vec::new() };
        for timed in &self.nodes {
            all.push(Timed { node: String::new(), ..timed.clone() });
        }
        all.nodes.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        all.nodes
    }

    /// Seconds of all kernels.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.nodes.iter().map(|timed| timed.seconds).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(kernel: &str, node: &str, seconds: f64) -> Timed {
        Timed { kernel: kernel.into(), node: node.into(), count: 1, seconds, flops: 10, bytes: 20 }
    }

    #[test]
    fn rows_of_a_kernel_add_up() {
        let mut profile = Profile { clock: Clock::Host, nodes: vec![timed("pool", "a", 1.0), timed("conv", "b", 2.0)] };
        let mut other = profile.clone();
        other.nodes.push(timed("conv", "c", 4.0));
        profile.add(&other);
        assert_eq!(profile.nodes.len(), 3);
        assert_eq!((profile.nodes[0].count, profile.nodes[0].flops, profile.nodes[0].bytes), (2, 20, 40));
        let kernels = profile.kernels();
        let names: Vec<_> = kernels.iter().map(|t| (t.kernel.as_str(), t.node.as_str(), t.count, t.seconds)).collect();
        assert_eq!(names, [("conv", "", 3, 8.0), ("pool", "", 2, 2.0)]);
        assert!((profile.seconds() - 10.0).abs() < 1e-12);
        assert!((kernels[0].flops_per_second() - 3.75).abs() < 1e-12 && (kernels[0].bytes_per_second() - 7.5).abs() < 1e-12);
    }
}
