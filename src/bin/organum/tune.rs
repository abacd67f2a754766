//! `organum tune`: what the device can do, measured and kept in a file that runs are given with `--tuning`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use organum::harness::{KernelRun, source_sizes, values};
use organum::kernels::bench;
use organum::volume::write_whole;
use organum::{Engine, Measured};
use serde::{Deserialize, Serialize};

use crate::args;
use crate::fail::Failure;
use crate::output::say;
use crate::profile::Ceilings;

/// Bytes of a tuning file at most.
const MOST_BYTES: u64 = 1 << 16;

/// Transfers that are timed; the fastest is taken.
const TRANSFERS: usize = 5;

/// A tuning file: the device, and what was measured on it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    adapter: String,
    driver: String,
    organum: String,
    measured: Measured,
}

/// A tuning file that was read.
#[derive(Debug)]
pub(crate) struct Tuning {
    path: PathBuf,
    contents: Contents,
}

impl Tuning {
    /// Reads a file that `organum tune` wrote.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let told = |what: String| Failure::input(format!("--tuning {}: {what}", path.display()));
        let text = organum::host::read_text(path, MOST_BYTES).map_err(|e| told(e.to_string()))?;
        let contents = serde_json::from_str(&text).map_err(|e| told(format!("not a file of organum tune: {e}")))?;
        Ok(Self { path: path.to_owned(), contents })
    }

    /// An adapter with what was measured on it; an error where the file is that of another adapter, driver or version.
    pub(crate) fn apply(&self, engine: Engine) -> Result<Engine, Failure> {
        let adapter = engine.summary();
        let own = (adapter.name.as_str(), adapter.driver.as_str(), env!("CARGO_PKG_VERSION"));
        let c = &self.contents;
        if (c.adapter.as_str(), c.driver.as_str(), c.organum.as_str()) == own {
            return Ok(engine.with_measured(c.measured));
        }
        Err(self.of_another(&format!("{} ({}, organum {})", own.0, own.1, own.2)))
    }

    /// The error that the file was not measured on this device.
    pub(crate) fn of_another(&self, device: &str) -> Failure {
        let c = &self.contents;
        Failure::usage(format!(
            "--tuning {}: measured on {} ({}, organum {}), the run is on {device}; measure it by organum tune",
            self.path.display(),
            c.adapter,
            c.driver,
            c.organum
        ))
    }
}

/// Bytes a second from the device to the host.
#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn host_bytes(engine: &Engine) -> Result<f64, Failure> {
    let [copy, _] = bench::ceilings(true);
    let inputs: Vec<Vec<f32>> = source_sizes(&copy).into_iter().map(values).collect();
    let bytes = copy.sizes().last().copied().unwrap_or(0) * 4;
    let mut run = pollster::block_on(KernelRun::new(engine, &copy, &inputs))?;
    let mut least = f64::INFINITY;
    for _ in 0..TRANSFERS {
        let begin = Instant::now();
        pollster::block_on(run.read())?;
        least = least.min(begin.elapsed().as_secs_f64());
    }
    Ok(bytes as f64 / least)
}

/// `organum tune`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive rates")]
pub(crate) fn run(a: &args::Tune) -> Result<(), Failure> {
    if matches!(a.device.as_deref(), Some("cpu" | "reference")) {
        return Err(Failure::usage("adapters are measured, the host is not: it has no transfers to weigh"));
    }
    let engine = pollster::block_on(Engine::request(a.device.as_deref()))?;
    let ceilings = Ceilings::measure(&engine, engine.caps().cpu)?;
    let host_bytes = host_bytes(&engine)? as u64;
    let measured = Measured { flops: ceilings.flops as u64, bytes: ceilings.bytes as u64, host_bytes };
    let summary = engine.summary();
    let (adapter, driver) = (summary.name.clone(), summary.driver.clone());
    let contents = Contents { adapter, driver, organum: env!("CARGO_PKG_VERSION").into(), measured };
    let text = serde_json::to_string_pretty(&contents).map_err(|e| Failure::internal(e.to_string()))?;
    write_whole(&a.output, "tuning.json", |temporary| std::fs::write(temporary, text)).map_err(|e| Failure::writing(&e))?;
    say(&format!(
        "{}: {:.1} GFLOP/s in registers, {:.1} GB/s copied, {:.1} GB/s to the host",
        contents.adapter,
        ceilings.flops / 1e9,
        ceilings.bytes / 1e9,
        host_bytes as f64 / 1e9
    ));
    Ok(())
}
