//! Costs of the executor: seconds until a session is open, of its first run and of later ones, and the host's work for 200
//! dispatches: the CPU time of the thread that runs the session (Linux) and the part of it in which commands are recorded.
//! A process each, as drivers keep what they compiled:
//!
//! `cargo bench --bench executor -- demo|nnformer|small [--device D] [--runs N] [--keep FILE]`
//! With `--keep` compiled pipelines are taken from the file, if it is there, and written to it.
//! `--device cpu` is the host, which has neither.
#![allow(clippy::print_stdout, reason = "a program")]

use std::time::Instant;

use organum::{DeviceCaps, Engine, Extent, Input, Model, Plan, PlanOptions, RunOptions, Session};

/// Seconds that this thread has computed, where the system tells.
fn computed() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(f64::NAN) * 1e-9
}

/// A model, its extent, and the depth of slabs where the plan is cut to have many dispatches.
fn case(name: &str) -> Result<(Model, Extent, Option<u32>), Box<dyn std::error::Error>> {
    let bundled = || Model::load(concat!(env!("CARGO_MANIFEST_DIR"), "/weights/hippocampus_u_transformer.safetensors"));
    Ok(match name {
        "demo" => (bundled()?, Extent::new(40, 56, 40), None),
        "nnformer" => (Model::random(r#"{"architecture":"nnformer","config":{}}"#, 1)?, Extent::new(64, 128, 128), None),
        // kernels take next to no time
        "small" => (bundled()?, Extent::new(64, 8, 8), Some(1)),
        other => return Err(format!("no case {other:?}: demo, nnformer or small").into()),
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let name = args.first().filter(|a| !a.starts_with("--")).map_or("small", String::as_str);
    let (model, extent, depth) = case(name)?;
    let since = |begin: Instant| begin.elapsed().as_secs_f64();

    let begin = Instant::now();
    let asked = value("--device");
    let engine = match asked.as_deref() {
        Some("cpu") => None,
        device => Some(pollster::block_on(Engine::request(device))?),
    };
    let kept = value("--keep");
    let bytes = kept.as_ref().and_then(|file| std::fs::read(file).ok());
    let reused = engine.as_ref().zip(bytes).is_some_and(|(engine, bytes)| engine.reuse_compiled(&bytes));
    let device = since(begin);
    let mut options = PlanOptions::default();
    if let Some(depth) = depth {
        options = options.with_slab_depth(depth);
    }
    let caps = engine.as_ref().map_or_else(DeviceCaps::host, |engine| engine.caps().clone());
    let plan = Plan::new(&model, extent, &caps, &options)?;
    let dispatches = plan.report().dispatches;
    let begin = Instant::now();
    let mut session = match &engine {
        Some(engine) => pollster::block_on(Session::new(engine, &model, plan))?,
        None => Session::on_host(&model, plan)?,
    };
    let open = since(begin);
    if let (Some(file), Some(bytes)) = (&kept, engine.as_ref().and_then(Engine::compiled)) {
        std::fs::write(file, bytes)?;
    }
    let channels = model.card().in_channels();
    let data: Vec<f32> = (0..extent.voxels() * u64::from(channels)).map(|i| (i % 2001) as f32 / 1000.0 - 1.0).collect();
    let count: usize = value("--runs").map_or(Ok(5), |n| n.parse())?;
    let (mut runs, mut work, mut recording, mut batches) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..=count.max(1) {
        let (begin, before) = (Instant::now(), computed());
        batches = 0;
        let mut tell = |_| batches += 1;
        let how = RunOptions::default().with_progress(&mut tell);
        session.run_blocking(Input { channels, extent, data: &data }, how)?;
        runs.push(since(begin));
        let of_200 = |seconds: f64| seconds * 1e3 / dispatches as f64 * 200.0;
        work.push(of_200(computed() - before));
        recording.push(of_200(session.recording_time().as_secs_f64()));
    }
    let first = runs.remove(0);
    for list in [&mut runs, &mut work, &mut recording] {
        list.sort_by(f64::total_cmp);
    }
    let (middle, last) = (runs.len() / 2, runs.len() - 1);
    println!(
        "{} {name} {extent}: device {device:.3} s, pipelines {}, open {open:.3} s, first run {:.3} s, then {:.3} s ({:.3} to {:.3}); \
         {dispatches} dispatches in {batches} batches; for 200: host {:.3} ms ({:.3} to {:.3}), of them recording {:.3} ms",
        engine.as_ref().map_or("cpu", |engine| &engine.summary().name),
        if reused { "kept" } else { "compiled" },
        first,
        runs[middle],
        runs[0],
        runs[last],
        work[work.len() / 2],
        work[0],
        work[work.len() - 1],
        recording[recording.len() / 2]
    );
    Ok(())
}
