//! The device of a run: an adapter, the host, or the host with the kernels' twins.

use std::time::{Duration, Instant};

use organum::{
    Cancel, DeviceCaps, Engine, EngineErrorKind, Extent, Input, Model, OutputVolume, Plan, PlanOptions, RunError, RunErrorKind, RunOptions,
    Session, format_bytes, host::available_memory, smaller_budget,
};
use serde_json::{Value, json};

use crate::args::Run;
use crate::compiled::Kept;
use crate::fail::Failure;
use crate::output::{note, progress_bar, say_waiting, seconds};
use crate::profile::{Ceilings, Told};
use crate::tune::Tuning;

/// Where to run.
pub(crate) enum Device {
    /// An adapter, with the file of its compiled kernels.
    Gpu(Engine, Option<Kept>),
    Host,
    /// The kernels' scalar twins on the host.
    Reference,
}

impl Device {
    pub(crate) fn open(args: &Run) -> Result<Self, Failure> {
        let tuning = args.tuning.as_deref().map(Tuning::read).transpose()?;
        let adapter = |engine: Engine| {
            let kept = if args.no_pipeline_cache { None } else { Kept::open(&engine) };
            let engine = match &tuning {
                Some(tuning) => tuning.apply(engine)?,
                None => engine,
            };
            Ok(Self::Gpu(engine, kept))
        };
        let host = |device| match &tuning {
            Some(tuning) => Err(tuning.of_another("the host")),
            None => Ok(device),
        };
        match args.device.as_deref() {
            Some("cpu") => host(Self::Host),
            Some("reference") => host(Self::Reference),
            // the host is faster than a software adapter
            None => pollster::block_on(Engine::request_hardware())?.map_or_else(|| host(Self::Host), adapter),
            pattern => adapter(pollster::block_on(Engine::request(pattern))?),
        }
    }

    /// What shares of a profile are of, where that is told or can be measured.
    fn ceilings(&self, args: &Run) -> Option<Ceilings> {
        match (args.ceilings, self) {
            (Some(given), _) => Some(Ceilings::given(given)),
            (None, Self::Gpu(engine, ..)) => Ceilings::measured(engine),
            (None, Self::Host | Self::Reference) => None,
        }
    }

    pub(crate) fn caps(&self) -> DeviceCaps {
        match self {
            Self::Gpu(engine, _) => engine.caps().clone(),
            Self::Host => DeviceCaps::host(),
            Self::Reference => DeviceCaps::reference(),
        }
    }

    /// Whether the device's memory is the host's, as the plan counts it.
    pub(crate) fn is_host(&self) -> bool {
        matches!(self, Self::Host | Self::Reference)
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Gpu(engine, ..) => engine.summary().name.clone(),
            Self::Host => "cpu".into(),
            Self::Reference => "reference".into(),
        }
    }

    /// Device bytes of a run for which no budget is given: half of the memory available where the device computes in the
    /// host's memory and the system tells how much that is; no bound elsewhere, since wgpu does not tell a GPU's memory.
    fn default_budget(&self) -> Option<u64> {
        let kind = match self {
            Self::Gpu(engine, ..) => engine.summary().kind.as_str(),
            Self::Host | Self::Reference => "cpu",
        };
        if !in_host_memory(kind) {
            return None;
        }
        available_memory().map(|bytes| bytes / 2)
    }

    pub(crate) fn backend(&self) -> String {
        match self {
            Self::Gpu(engine, ..) => engine.summary().backend.clone(),
            Self::Host => format!("host, {}", organum::kernels::host::instructions()),
            Self::Reference => "host, f64".into(),
        }
    }
}

/// Whether an adapter of this kind has no memory of its own.
fn in_host_memory(kind: &str) -> bool {
    matches!(kind, "cpu" | "integratedgpu")
}

/// What a run brought back and what it took.
pub(crate) struct Ran<T = Vec<OutputVolume>> {
    pub(crate) outputs: T,
    pub(crate) plan: organum::Report,
    pub(crate) allocated: u64,
    pub(crate) seconds: [Duration; 3],
    /// Where the time went, with `--profile`.
    pub(crate) profile: Option<Told>,
}

impl<T> Ran<T> {
    /// What came back, apart from what it took.
    pub(crate) fn take(self) -> (T, Ran<()>) {
        let Self { outputs, plan, allocated, seconds, profile } = self;
        (outputs, Ran { outputs: (), plan, allocated, seconds, profile })
    }

    /// The JSON keys that `infer` and `segment` share.
    pub(crate) fn json(&self, device: &Device, load: Duration, total: Duration) -> Value {
        let [plan, compile, run] = self.seconds.map(seconds);
        let mut told = json!({
            "plan": self.plan,
            "device": device.name(),
            "backend": device.backend(),
            "allocated_bytes": self.allocated,
            "seconds": {"load": seconds(load), "plan": plan, "compile": compile, "run": run, "total": seconds(total)},
        });
        if let Some(profile) = &self.profile {
            told["profile"] = profile.json();
        }
        told
    }
}

impl Ran<()> {
    /// This and what ran after it, with another model.
    pub(crate) fn then(self, next: Self) -> Self {
        let profile = match (self.profile, next.profile) {
            (Some(mut before), Some(after)) => {
                before.add(&after);
                Some(before)
            }
            (before, after) => before.or(after),
        };
        Self {
            allocated: self.allocated.max(next.allocated),
            seconds: [0, 1, 2].map(|i| self.seconds[i] + next.seconds[i]),
            profile,
            ..next
        }
    }
}

/// Why an attempt to run failed, and the budget with which another may succeed.
struct Stopped {
    failure: Failure,
    smaller: Option<u64>,
}

impl<E: Into<Failure>> From<E> for Stopped {
    fn from(e: E) -> Self {
        Self { failure: e.into(), smaller: None }
    }
}

/// Attempts with the first budget, then with smaller ones as long as there are any.
fn fitted<T>(first: Option<u64>, mut attempt: impl FnMut(Option<u64>) -> Result<T, Stopped>) -> Result<T, Failure> {
    let mut budget = first;
    loop {
        match attempt(budget) {
            Err(Stopped { smaller: Some(bytes), .. }) => budget = Some(bytes),
            Err(Stopped { failure, .. }) => return Err(failure),
            Ok(done) => return Ok(done),
        }
    }
}

/// Plans, compiles and runs once.
pub(crate) fn run(device: &Device, model: &Model, input: Input<'_>, args: &Run, options: &PlanOptions) -> Result<Ran, Failure> {
    run_with(device, model, input.extent, args, options, |session, how| session.run_blocking(input, how))
}

/// Plans, compiles and does with the session what is to be done, with a progress bar; Ctrl-C cancels. Without `--memory` a device
/// that runs out of memory is tried again with smaller budgets. A budget of `options` comes before `--memory`.
pub(crate) fn run_with<T>(
    device: &Device,
    model: &Model,
    extent: Extent,
    args: &Run,
    options: &PlanOptions,
    mut work: impl FnMut(&mut Session, RunOptions<'_>) -> Result<T, RunError>,
) -> Result<Ran<T>, Failure> {
    let cancel = Cancel::new();
    let raise = cancel.clone();
    // a second handler is refused, as in the demo's second scan: the first one's flag was never raised then
    let _ = ctrlc::set_handler(move || raise.raise());
    let first = options.budget.or(args.memory).or_else(|| device.default_budget());
    let mut ran = fitted(first, |budget| {
        let mut options = options.clone().with_precision(args.precision.into());
        options.budget = budget;
        let started = Instant::now();
        let plan = Plan::new(model, extent, &device.caps(), &options)?;
        let report = plan.report().clone();
        let planned = started.elapsed();
        let smaller = if args.memory.is_none() { smaller_budget(report.peak_bytes, report.smallest_budget) } else { None };

        let started = Instant::now();
        let mut session = match device {
            Device::Gpu(engine, ..) => pollster::block_on(Session::new(engine, model, plan)).map_err(|e| {
                let smaller = smaller.filter(|_| e.kind() == EngineErrorKind::OutOfMemory);
                Stopped { failure: e.into(), smaller }
            })?,
            Device::Host | Device::Reference => Session::on_host(model, plan)?,
        };
        let compiled = started.elapsed();
        if let Device::Gpu(engine, Some(kept)) = device {
            kept.update(engine);
        }
        if let Some(bytes) = budget.filter(|_| budget != first) {
            note(&format!("the device ran out of memory: running within {bytes} bytes ({})", format_bytes(bytes)));
        }

        say_waiting();
        if args.profile {
            session.start_profile();
        }
        let started = Instant::now();
        let bar = progress_bar();
        let mut show = |p: organum::Progress| {
            bar.set_length(p.total);
            bar.set_position(p.done);
        };
        let mut how = RunOptions::default().with_progress(&mut show);
        if args.allow_non_finite {
            how = how.with_non_finite();
        }
        let outputs = work(&mut session, how.with_cancel(cancel.clone()));
        bar.finish_and_clear();
        let outputs = outputs.map_err(|e| {
            let smaller = smaller.filter(|_| e.kind() == RunErrorKind::OutOfMemory);
            Stopped { failure: e.into(), smaller }
        })?;
        let seconds = [planned, compiled, started.elapsed()];
        let recording = session.recording_time();
        let profile = session.take_profile().map(|profile| Told { profile, ceilings: None, recording });
        Ok(Ran { outputs, plan: report, allocated: session.allocated_bytes(), seconds, profile })
    })?;
    // once the session's memory is free
    if let Some(told) = &mut ran.profile {
        told.ceilings = device.ceilings(args);
    }
    Ok(ran)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integrated_gpus_share_the_hosts_memory() {
        assert!(["cpu", "integratedgpu"].into_iter().all(in_host_memory));
        assert!(!["discretegpu", "virtualgpu", "other"].into_iter().any(in_host_memory));
    }

    #[test]
    fn attempts_stop_when_one_fits_or_nothing_smaller_is_left() {
        let device = |memory: u64| {
            let mut tried = Vec::new();
            let result = fitted(None, |budget| {
                tried.push(budget);
                let (peak, smallest) = (budget.unwrap_or(1000), 300);
                if peak <= memory {
                    return Ok(peak);
                }
                Err(Stopped { failure: Failure::internal("out of memory"), smaller: smaller_budget(peak, smallest) })
            });
            (result.ok(), tried)
        };
        assert_eq!(device(1000), (Some(1000), vec![None]));
        assert_eq!(device(500), (Some(490), vec![None, Some(700), Some(490)]));
        assert_eq!(device(299), (None, vec![None, Some(700), Some(490), Some(343), Some(300)]));
        let other = fitted(Some(7), |_| Err::<(), _>(Failure::usage("something else").into()));
        assert_eq!(other.expect_err("it failed").code, 2);
    }
}
