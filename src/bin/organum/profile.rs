//! What `--profile` tells: the time of kernels and nodes, beside what the device can do.

use std::sync::OnceLock;
use std::time::Duration;

use organum::harness::measure;
use organum::kernels::bench;
use organum::{Clock, Engine, EngineError, Profile, Timed};
use serde_json::{Value, json};

use crate::output::{note, seconds};

/// Samples of a ceiling; the fastest is taken.
const SAMPLES: usize = 5;

/// FLOPs and bytes a second that a device can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ceilings {
    pub(crate) flops: f64,
    pub(crate) bytes: f64,
}

impl Ceilings {
    /// Those given in GFLOP/s and GB/s.
    pub(crate) fn given([flops, bytes]: [f64; 2]) -> Self {
        Self { flops: flops * 1e9, bytes: bytes * 1e9 }
    }

    /// Those of an adapter, measured now; `small` halves the extents.
    #[expect(clippy::cast_precision_loss, reason = "rates for people")]
    pub(crate) fn measure(engine: &Engine, small: bool) -> Result<Self, EngineError> {
        let [copy, fma] = bench::ceilings(small);
        let fastest = |call| pollster::block_on(measure(engine, call, SAMPLES)).map(|list| list[0]);
        Ok(Self { bytes: copy.cost().bytes as f64 / fastest(&copy)?, flops: fma.cost().flops as f64 / fastest(&fma)? })
    }

    /// Those of an adapter, measured once in a process; `None` where it refuses.
    pub(crate) fn measured(engine: &Engine) -> Option<Self> {
        static MEASURED: OnceLock<Option<Ceilings>> = OnceLock::new();
        let told = |e| note(&format!("--profile: the device's ceilings could not be measured: {e}"));
        *MEASURED.get_or_init(|| Self::measure(engine, engine.caps().cpu).map_err(told).ok())
    }
}

/// The profile of a command's runs.
pub(crate) struct Told {
    pub(crate) profile: Profile,
    pub(crate) ceilings: Option<Ceilings>,
    /// Time in which the host recorded the commands of the last run.
    pub(crate) recording: Duration,
}

impl Told {
    fn shares(&self, timed: &Timed) -> Option<[f64; 2]> {
        self.ceilings.map(|c| [timed.flops_per_second() / c.flops, timed.bytes_per_second() / c.bytes])
    }

    /// The JSON under `profile`.
    pub(crate) fn json(&self) -> Value {
        let total = self.profile.seconds();
        let row = |timed: &Timed| {
            let mut row = json!(timed);
            row["share"] = json!(timed.seconds / total.max(f64::MIN_POSITIVE));
            row["gflops"] = json!(timed.flops_per_second() / 1e9);
            row["gbytes"] = json!(timed.bytes_per_second() / 1e9);
            let shares = self.shares(timed);
            row["share_of_flops"] = json!(shares.map(|s| s[0]));
            row["share_of_bytes"] = json!(shares.map(|s| s[1]));
            row
        };
        let kernels: Vec<Value> = self.profile.kernels().iter().map(row).collect();
        let nodes: Vec<Value> = self.profile.nodes.iter().map(row).collect();
        json!({
            "clock": self.profile.clock,
            "seconds": total,
            "recording_seconds": seconds(self.recording),
            "ceilings": self.ceilings.map(|c| json!({"gflops": c.flops / 1e9, "gbytes": c.bytes / 1e9})),
            "kernels": kernels,
            "nodes": nodes,
        })
    }

    /// Two tables: kernels, the slowest first, and nodes in their order.
    pub(crate) fn table(&self) -> String {
        let total = self.profile.seconds();
        let clock = match self.profile.clock {
            Clock::Timestamps => "by the device's timestamps",
            Clock::Submissions => "each dispatch submitted alone",
            _ => "on the host",
        };
        let mut lines = vec![match self.ceilings {
            Some(c) => {
                format!("profile: {total:.3} s in kernels, {clock}; ceilings {:.2} GFLOP/s, {:.2} GB/s", c.flops / 1e9, c.bytes / 1e9)
            }
            None => format!("profile: {total:.3} s in kernels, {clock}; --ceilings gives what shares are of"),
        }];
        let kernels = self.profile.kernels();
        for (title, list) in [("kernel", &kernels), ("node", &self.profile.nodes)] {
            let names: Vec<String> = list.iter().map(name).collect();
            let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
            lines.push(format!(
                "{title:<width$} {:>7} {:>10} {:>6} {:>10} {:>6} {:>9} {:>6}",
                "count", "ms", "%", "GFLOP/s", "%", "GB/s", "%"
            ));
            for (timed, name) in list.iter().zip(&names) {
                let share = |at: usize| self.shares(timed).map_or_else(|| "-".into(), |s| format!("{:.1}", 100.0 * s[at]));
                lines.push(format!(
                    "{name:<width$} {:>7} {:>10.3} {:>6.1} {:>10.2} {:>6} {:>9.2} {:>6}",
                    timed.count,
                    timed.seconds * 1e3,
                    100.0 * timed.seconds / total.max(f64::MIN_POSITIVE),
                    timed.flops_per_second() / 1e9,
                    share(0),
                    timed.bytes_per_second() / 1e9,
                    share(1)
                ));
            }
        }
        lines.join("\n")
    }
}

fn name(timed: &Timed) -> String {
    if timed.node.is_empty() { timed.kernel.clone() } else { format!("{} {}", timed.node, timed.kernel) }
}
