//! A whole volume through a 3D U-Net of five levels with random weights, within a budget: the promise, run for real.
//!
//! `cargo bench --bench fullres -- [--extent DxHxW] [--base C] [--memory BYTES] [--precision f32|f16] [--device D|cpu]`; see fullres.sh.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use organum::{DeviceCaps, Elem, Engine, Extent, Input, Model, OutputData, Plan, PlanOptions, RunOptions, Session};

/// Progress is counted in so many FLOPs.
const MEGA: u64 = 1_000_000;

/// Host bytes beyond those of the plan: code, drivers, weights, buffers that the allocator keeps.
const HOST_SLACK: u64 = 768 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str, default: &str| {
        args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned().unwrap_or_else(|| default.to_owned())
    };
    let axes: Vec<u32> = value("--extent", "256x512x512").split('x').map(str::parse).collect::<Result<_, _>>()?;
    let [d, h, w] = axes[..] else { return Err("--extent DxHxW".into()) };
    let extent = Extent::new(d, h, w);
    let base: u32 = value("--base", "8").parse()?;
    let budget: u64 = value("--memory", "536870912").parse()?;
    let elem = if value("--precision", "f32") == "f16" { Elem::F16 } else { Elem::F32 };
    let channels = [1, 2, 4, 8, 16].map(|k| k * base);
    let card = format!(
        r#"{{"architecture":"u_transformer","config":{{"dims":3,"in_channels":1,"classes":14,"channels":{channels:?},"mhsa":false,"mhca_levels":0}}}}"#
    );
    let model = Model::random(&card, 1)?;
    let device = value("--device", "");
    let host = device == "cpu";
    let engine = if host { None } else { Some(pollster::block_on(Engine::request(Some(device.as_str()).filter(|d| !d.is_empty())))?) };
    let caps = engine.as_ref().map_or_else(DeviceCaps::host, |engine| engine.caps().clone());
    let (name, driver) = engine.as_ref().map_or_else(
        || ("cpu".to_owned(), format!("{} threads, {}", caps.threads, organum::kernels::host::instructions())),
        |engine| (engine.summary().name.clone(), engine.summary().driver.clone()),
    );
    let plan = Plan::new(&model, extent, &caps, &PlanOptions::default().with_budget(budget).with_precision(elem))?;
    eprintln!("{name} [{driver}]\n{plan}");
    let report = plan.report().clone();
    let mut session = match &engine {
        Some(engine) => pollster::block_on(Session::new(engine, &model, plan))?,
        None => Session::on_host(&model, plan)?,
    };
    assert_eq!(session.allocated_bytes(), report.peak_bytes);
    let data: Vec<f32> = (0..extent.voxels()).map(|i| ((i.wrapping_mul(0x9E37_79B9) >> 7) % 2001) as f32 / 1000.0 - 1.0).collect();
    let started = Instant::now();
    let mut last = Instant::now();
    // hidden where stderr is no terminal: lines take its place
    let bar = ProgressBar::new(report.flops / MEGA);
    bar.set_style(ProgressStyle::with_template("{bar:50} {percent:>3} %  {elapsed_precise}, {eta_precise} to go")?);
    let mut show = |p: organum::Progress| {
        bar.set_position(p.done / MEGA);
        if bar.is_hidden() && last.elapsed().as_secs() >= 5 {
            last = Instant::now();
            let share = p.done as f64 / p.total as f64;
            let elapsed = started.elapsed().as_secs_f64();
            eprintln!("{:5.1} %  {elapsed:.0} s, {:.0} s to go", share * 100.0, elapsed / share.max(1e-9) * (1.0 - share));
        }
    };
    let outputs = session.run_blocking(Input { channels: 1, extent, data: &data }, RunOptions::default().with_progress(&mut show))?;
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    // what a CPU driver allocates as device memory is resident too
    let device = if caps.cpu { report.peak_bytes } else { 0 };
    let bound = report.host_bytes + device + HOST_SLACK;
    let resident = peak_rss().unwrap_or(0);
    assert!(resident <= bound, "{resident} resident bytes, of which {bound} are accounted for");
    let OutputData::Labels(labels) = &outputs[0].data else { return Err("no labels came back".into()) };
    // FNV-1a: equal for every budget on one device
    let hash = labels.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &l| (h ^ u64::from(l)).wrapping_mul(0x100_0000_01b3));
    println!(
        "{}",
        serde_json::json!({
            "plan": report, "device": name, "driver": driver, "allocated_bytes": session.allocated_bytes(),
            "seconds": seconds, "gflops": report.flops as f64 / seconds / 1e9, "labels_fnv1a": format!("{hash:016x}"), "peak_rss_bytes": peak_rss(), "host_bytes_bound": bound,
        })
    );
    Ok(())
}

/// Peak resident bytes of this process, where the system tells.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib: u64 = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}
