//! The device of a run: an adapter or the host's reference executor.

use std::time::{Duration, Instant};

use organum::{Cancel, DeviceCaps, Engine, Input, Model, OutputVolume, Plan, PlanOptions, RunOptions, Session};
use serde_json::{Value, json};

use crate::args::Run;
use crate::fail::Failure;
use crate::output::{progress_bar, seconds};

/// Where to run.
pub(crate) enum Device {
    Gpu(Engine),
    Host,
}

impl Device {
    pub(crate) fn open(pattern: Option<&str>) -> Result<Self, Failure> {
        if pattern == Some("cpu") {
            return Ok(Self::Host);
        }
        Ok(Self::Gpu(pollster::block_on(Engine::request(pattern))?))
    }

    pub(crate) fn caps(&self) -> DeviceCaps {
        match self {
            Self::Gpu(engine) => engine.caps().clone(),
            Self::Host => DeviceCaps::host(),
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Gpu(engine) => engine.summary().name.clone(),
            Self::Host => "cpu".into(),
        }
    }

    /// Device bytes of a run for which no budget is given: half of the memory available where the device computes in the
    /// host's memory and the system tells how much that is; no bound elsewhere, since wgpu does not tell a GPU's memory.
    fn default_budget(&self) -> Option<u64> {
        if !self.caps().cpu {
            return None;
        }
        available_memory().map(|bytes| bytes / 2)
    }

    pub(crate) fn backend(&self) -> String {
        match self {
            Self::Gpu(engine) => engine.summary().backend.clone(),
            Self::Host => "reference".into(),
        }
    }
}

/// `MemAvailable` of Linux in bytes.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    parse_available(&text)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Outputs of a run and what it took.
pub(crate) struct Ran {
    pub(crate) outputs: Vec<OutputVolume>,
    pub(crate) plan: organum::Report,
    pub(crate) allocated: u64,
    pub(crate) seconds: [Duration; 3],
}

impl Ran {
    /// The JSON keys that `infer` and `segment` share.
    pub(crate) fn json(&self, device: &Device, load: Duration, total: Duration) -> Value {
        let [plan, compile, run] = self.seconds.map(seconds);
        json!({
            "plan": self.plan,
            "device": device.name(),
            "backend": device.backend(),
            "allocated_bytes": self.allocated,
            "seconds": {"load": seconds(load), "plan": plan, "compile": compile, "run": run, "total": seconds(total)},
        })
    }
}

/// Plans, compiles and runs, with a progress bar; Ctrl-C cancels.
pub(crate) fn run(device: &Device, model: &Model, input: Input<'_>, args: &Run, options: PlanOptions) -> Result<Ran, Failure> {
    let started = Instant::now();
    let options = match args.memory.or_else(|| device.default_budget()) {
        Some(bytes) => options.with_budget(bytes),
        None => options,
    };
    let plan = Plan::new(model, input.extent, &device.caps(), &options.with_precision(args.precision.into()))?;
    let report = plan.report().clone();
    let planned = started.elapsed();

    let started = Instant::now();
    let mut session = match device {
        Device::Gpu(engine) => pollster::block_on(Session::new(engine, model, plan))?,
        Device::Host => Session::on_host(model, plan)?,
    };
    let compiled = started.elapsed();

    let started = Instant::now();
    let cancel = Cancel::new();
    let raise = cancel.clone();
    // a second handler is refused, as in the demo's second scan: the first one's flag was never raised then
    let _ = ctrlc::set_handler(move || raise.raise());
    let bar = progress_bar();
    let mut show = |p: organum::Progress| {
        bar.set_length(p.total);
        bar.set_position(p.done);
    };
    let outputs = session.run_blocking(input, RunOptions::default().with_progress(&mut show).with_cancel(cancel));
    bar.finish_and_clear();
    Ok(Ran { outputs: outputs?, plan: report, allocated: session.allocated_bytes(), seconds: [planned, compiled, started.elapsed()] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        assert_eq!(parse_available("MemTotal: 10 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_available("MemTotal: 10 kB\n"), None);
    }
}
