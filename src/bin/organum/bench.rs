//! `organum bench`: the kernels at the shapes of real networks, against two ceilings of the device.

use organum::harness::measure;
use organum::kernels::{Call, bench};
use organum::{Elem, Engine};
use serde_json::{Value, json};

use crate::args;
use crate::fail::Failure;
use crate::output::{note, say, say_json};
use crate::profile::Ceilings;

/// Samples of a case; their median is told.
const SAMPLES: usize = 7;

/// `organum bench`.
pub(crate) fn run(a: &args::Bench) -> Result<(), Failure> {
    if matches!(a.device.as_deref(), Some("cpu" | "reference")) {
        return Err(Failure::usage("shaders are benched on an adapter; time the host by `organum infer --device cpu`"));
    }
    let engine = pollster::block_on(Engine::request(a.device.as_deref()))?;
    let small = a.small || engine.caps().cpu;
    let filter = a.filter.as_deref().unwrap_or("");
    let seconds = |call: &Call| -> Result<f64, Failure> { Ok(pollster::block_on(measure(&engine, call, SAMPLES))?[SAMPLES / 2]) };
    let chosen: Vec<(Elem, String, Call)> = [Elem::F32, Elem::F16]
        .into_iter()
        .flat_map(|elem| bench::cases(elem, small).into_iter().map(move |(label, call)| (elem, label, call)))
        .filter(|(elem, label, _)| format!("{label} {}", elem.name()).contains(filter))
        .collect();
    if chosen.is_empty() {
        return Err(Failure::usage(format!("no case has {filter:?} in its name; organum bench lists them all")));
    }
    let Ceilings { bytes: traffic, flops: arithmetic } = Ceilings::measure(&engine, small)?;
    let summary = engine.summary();
    let mut rows: Vec<Value> = Vec::new();
    let width = chosen.iter().map(|(_, label, _)| label.len()).max().unwrap_or(0);
    if !a.json {
        say(&format!("{} ({}, {})", summary.name, summary.backend, summary.driver));
        say(&format!("ceilings: {:.2} GB/s copied, {:.2} GFLOP/s in registers", traffic / 1e9, arithmetic / 1e9));
        say(&format!("{:<width$} {:<10} {:>10} {:>10} {:>5} {:>9} {:>5}", "case", "storage", "ms", "GFLOP/s", "%", "GB/s", "%"));
    }
    for (_, label, call) in &chosen {
        let storage = call.variant(engine.caps()).storage;
        if storage == organum::kernels::Storage::PackedF16 && !call.packs() {
            note(&format!("{label}: not with 16-bit floats on this device"));
            continue;
        }
        let seconds = seconds(call)?;
        let (flops, bytes) = (call.cost().flops as f64 / seconds, call.cost().bytes as f64 / seconds);
        let [of_flops, of_bytes] = [flops / arithmetic, bytes / traffic];
        if a.json {
            rows.push(json!({
                "case": label, "storage": storage.name(), "seconds": seconds, "gflops": flops / 1e9, "gbytes": bytes / 1e9,
                "share_of_flops": of_flops, "share_of_bytes": of_bytes,
            }));
        } else {
            say(&format!(
                "{label:<width$} {:<10} {:>10.3} {:>10.2} {:>5.1} {:>9.2} {:>5.1}",
                storage.name(),
                seconds * 1e3,
                flops / 1e9,
                100.0 * of_flops,
                bytes / 1e9,
                100.0 * of_bytes
            ));
        }
    }
    if a.json {
        say_json(&json!({
            "device": summary.name, "driver": summary.driver, "ceilings": { "gbytes": traffic / 1e9, "gflops": arithmetic / 1e9 }, "cases": rows,
        }));
    }
    Ok(())
}
