//! The device of a run: an adapter with its file of compiled kernels, the host, or the kernels'
//! twins; progress and Ctrl-C; and what a run took.

use std::time::Duration;

use organum::segment::RunReport;
use organum::{Device, Progress, RunOptions, Runner, SegmentOptions, format_bytes};
use serde_json::{Value, json};

use crate::args::Run;
use crate::compiled::Kept;
use crate::fail::Failure;
use crate::interrupt;
use crate::output::{be_quiet, note, progress_bar, say_waiting, seconds};
use crate::profile::{Ceilings, Told};
use crate::slicer;
use crate::tune::Tuning;

/// The device of a command.
pub(crate) struct Opened {
    pub(crate) device: Device,
    /// The file of the adapter's compiled kernels.
    kept: Option<Kept>,
}

impl Opened {
    pub(crate) fn new(args: &Run) -> Result<Self, Failure> {
        let tuning = args.tuning.as_deref().map(Tuning::read).transpose()?;
        match pollster::block_on(Device::request(args.device.as_deref()))? {
            Device::Gpu(engine) => {
                let kept = if args.no_pipeline_cache { None } else { Kept::open(&engine) };
                let engine = match &tuning {
                    Some(tuning) => tuning.apply(engine)?,
                    None => engine,
                };
                Ok(Self { device: engine.into(), kept })
            }
            device => match &tuning {
                Some(tuning) => Err(tuning.of_another("the host")),
                None => Ok(Self { device, kept: None }),
            },
        }
    }

    /// What runs a network alone.
    pub(crate) fn runner(&self, args: &Run) -> Runner {
        let mut runner = Runner::new(self.device.clone()).with_precision(args.precision.into());
        if let Some(bytes) = args.memory {
            runner = runner.with_budget(bytes);
        }
        if args.profile { runner.with_profile() } else { runner }
    }

    /// How a scan is segmented.
    pub(crate) fn options(args: &Run) -> SegmentOptions {
        let mut options = SegmentOptions::default().with_precision(args.precision.into()).with_closed_sessions();
        (options.budget, options.profile) = (args.memory, args.profile);
        options
    }

    /// Does some work with a progress bar; Ctrl-C cancels it. Keeps what was compiled for it.
    pub(crate) fn watch<T>(&self, args: &Run, work: impl FnOnce(RunOptions<'_>) -> T) -> T {
        if args.quiet {
            be_quiet();
        }
        let bar = progress_bar();
        let (lines, mut tenth) = (args.verbose && bar.is_hidden(), 0);
        let mut show = |p: Progress| {
            say_waiting();
            slicer::progress(p.done, p.total);
            let now = 10 * p.done / p.total.max(1);
            if lines && now > tenth {
                tenth = now;
                note(&format!("organum: {} % of the run", 10 * now));
            }
            bar.set_length(p.total);
            bar.set_position(p.done);
        };
        let done = interrupt::watch(|cancel| {
            let mut how = RunOptions::default().with_progress(&mut show).with_cancel(cancel);
            if args.allow_non_finite {
                how = how.with_non_finite();
            }
            work(how)
        });
        bar.finish_and_clear();
        if let (Device::Gpu(engine), Some(kept)) = (&self.device, &self.kept) {
            kept.update(engine);
        }
        done
    }

    /// What a run took: the plan's figures, seconds, and with `--profile` the time of its kernels.
    pub(crate) fn took(&self, args: &Run, run: RunReport, load: Duration) -> Took {
        if let Some(bytes) = run.reduced_budget {
            let shown = format_bytes(bytes);
            note(&format!("the device ran out of memory: ran within {bytes} bytes ({shown})"));
        }
        // ceilings are measured once the session's memory is free
        let profile = run.profile.clone().map(|profile| Told { profile, ceilings: self.ceilings(args), recording: run.recording });
        Took { run, load, profile, name: self.device.name(), backend: self.device.backend() }
    }

    /// What shares of a profile are of, where that is given or can be measured.
    fn ceilings(&self, args: &Run) -> Option<Ceilings> {
        match (args.ceilings, &self.device) {
            (Some(given), _) => Some(Ceilings::given(given)),
            (None, Device::Gpu(engine)) => Ceilings::measured(engine),
            _ => None,
        }
    }
}

/// What a run took.
pub(crate) struct Took {
    run: RunReport,
    load: Duration,
    profile: Option<Told>,
    name: String,
    backend: String,
}

impl Took {
    /// The JSON keys that `infer` and `segment` share.
    pub(crate) fn json(&self, total: Duration) -> Value {
        let run = &self.run;
        let mut told = json!({
            "plan": run.plan,
            "device": self.name,
            "backend": self.backend,
            "allocated_bytes": run.allocated_bytes,
            "seconds": {
                "load": seconds(self.load),
                "plan": seconds(run.planning),
                "compile": seconds(run.opening),
                "run": seconds(run.running),
                "total": seconds(total),
            },
        });
        if let Some(profile) = &self.profile {
            told["profile"] = profile.json();
        }
        told
    }

    /// One line on where, in how many bytes and how fast, and the profile where one was made.
    pub(crate) fn summary(&self, total: Duration) -> String {
        let line = format!(
            "{} ({}): planned {} bytes, allocated {} bytes; compile {:.2} s, run {:.2} s, total {:.2} s",
            self.name,
            self.backend,
            self.run.plan.peak_bytes,
            self.run.allocated_bytes,
            self.run.opening.as_secs_f64(),
            self.run.running.as_secs_f64(),
            total.as_secs_f64()
        );
        match &self.profile {
            Some(profile) => format!("{line}\n{}", profile.table()),
            None => line,
        }
    }
}
