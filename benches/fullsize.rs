//! Every architecture in its published size, with random weights: what a forward takes, as a table.
//!
//! `cargo bench --bench fullsize -- [PART OF A NAME] [--memory BYTES] [--precision f32|f16]
//! [--device D|cpu] [--runs N] [--profile]`. The time is the median of the runs; `--profile` adds one
//! more run and what each kernel and node took in it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::time::Instant;

use organum::{DeviceCaps, Elem, Engine, Extent, Input, Model, OutputData, Plan, PlanOptions, Profile, RunOptions, Session, Timed};

/// Architecture, what its config says beyond its defaults, and the extent (D, H, W).
const NETWORKS: &[(&str, &str, [u32; 3])] = &[
    ("nnformer", "", [64, 128, 128]),
    ("glam_nnformer", r#""variant":"a""#, [64, 128, 128]),
    ("fine", "", [64, 128, 128]),
    ("unetr", "", [96, 96, 96]),
    ("cotr", "", [48, 192, 192]),
    (
        "plain_conv_unet",
        r#""dims":3,"in_channels":1,"classes":14,"features":[32,64,128,256,320,320],
        "kernels":[[1,3,3],[1,3,3],[3,3,3],[3,3,3],[3,3,3],[3,3,3]],
        "strides":[[1,1,1],[1,2,2],[1,2,2],[2,2,2],[2,2,2],[2,2,2]],"convs_per_stage":2"#,
        [48, 192, 192],
    ),
    (
        "residual_encoder_unet",
        r#""dims":3,"in_channels":1,"classes":14,"features":[32,64,128,256,320,320],"blocks_per_stage":[1,3,4,6,6,6],
        "decoder_convs_per_stage":1,"kernels":[[3,3,3],[3,3,3],[3,3,3],[3,3,3],[3,3,3],[3,3,3]],
        "strides":[[1,1,1],[2,2,2],[2,2,2],[2,2,2],[2,2,2],[2,2,2]]"#,
        [128, 128, 128],
    ),
    (
        "monai_unet",
        r#""dims":3,"in_channels":1,"classes":2,"channels":[16,32,64,128,256],"strides":[[2,2,2],[2,2,2],[2,2,2],[2,2,2]],
        "residual_units":2,"norm":"batch""#,
        [96, 96, 96],
    ),
    (
        "basic_unet",
        r#""dims":3,"in_channels":1,"classes":2,"features":[32,32,64,128,256,32],"norm":"instance","activation":"leaky_relu",
        "slope":0.1"#,
        [96, 96, 96],
    ),
    (
        "seg_res_net",
        r#""dims":3,"in_channels":1,"classes":105,"init_filters":32,"blocks_down":[1,2,2,4],"blocks_up":[1,1,1],
        "norm":{"group":8},"upsampling":"linear""#,
        [96, 96, 96],
    ),
    (
        "seg_res_net_ds",
        r#""dims":3,"in_channels":1,"classes":14,"init_filters":32,"blocks_down":[1,2,2,4,4],"blocks_up":[1,1,1,1],
        "norm":"instance","upsampling":"deconv""#,
        [96, 96, 96],
    ),
    ("swin_unetr", r#""dims":3,"in_channels":1,"classes":14,"feature_size":48,"window":[7,7,7],"norm":"instance_plain""#, [96, 96, 96]),
    (
        "swin_unetr",
        r#""dims":3,"in_channels":1,"classes":14,"feature_size":48,"window":[7,7,7],"norm":"instance_plain","v2":true"#,
        [96, 96, 96],
    ),
    ("unet2d", "", [1, 224, 224]),
    ("attention_unet2d", "", [1, 224, 224]),
    ("attention_unet", "", [96, 96, 96]),
    ("vnet", "", [96, 96, 96]),
    ("swin_unet", "", [1, 224, 224]),
    ("glam_swin_unet", "", [1, 512, 512]),
    ("transunet", "", [1, 224, 224]),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let part = args.first().filter(|a| !a.starts_with("--")).cloned().unwrap_or_default();
    let elem = if value("--precision").as_deref() == Some("f16") { Elem::F16 } else { Elem::F32 };
    let mut options = PlanOptions::default().with_precision(elem);
    options.budget = value("--memory").map(|bytes| bytes.parse()).transpose()?;
    let runs: usize = value("--runs").map_or(Ok(1), |n| n.parse())?;
    let profiled = args.iter().any(|a| a == "--profile");
    let device = value("--device");
    let host = device.as_deref() == Some("cpu");
    let engine = if host { None } else { Some(pollster::block_on(Engine::request(device.as_deref()))?) };
    let caps = engine.as_ref().map_or_else(DeviceCaps::host, |engine| engine.caps().clone());
    match &engine {
        Some(engine) => println!("{} [{}], {}", engine.summary().name, engine.summary().driver, elem.name()),
        None => println!("cpu [{} threads, {}], {}", caps.threads, organum::kernels::host::instructions(), elem.name()),
    }
    println!(
        "| network | extent | parameters | GFLOP | planned bytes | of them weights | smallest budget | open s | run s | GFLOP/s | labels |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (name, config, axes) in NETWORKS.iter().filter(|(name, ..)| name.contains(&part)) {
        let model = Model::random(&format!(r#"{{"architecture":"{name}","config":{{{config}}}}}"#), 1)?;
        let extent = Extent::from(*axes);
        let plan = Plan::new(&model, extent, &caps, &options)?;
        let report = plan.report().clone();
        let started = Instant::now();
        let mut session = match &engine {
            Some(engine) => pollster::block_on(Session::new(engine, &model, plan))?,
            None => Session::on_host(&model, plan)?,
        };
        let opened = started.elapsed().as_secs_f64();
        assert_eq!(session.allocated_bytes(), report.peak_bytes, "{name}");
        let channels = model.card().in_channels();
        let values = extent.voxels() * u64::from(channels);
        let data: Vec<f32> = (0..values).map(|i| ((i.wrapping_mul(0x9E37_79B9) >> 7) % 2001) as f32 / 1000.0 - 1.0).collect();
        let input = Input { channels, extent, data: &data };
        let started = Instant::now();
        let outputs = session.run_blocking(input, RunOptions::default())?;
        let mut times = vec![started.elapsed().as_secs_f64()];
        for _ in 1..runs {
            let started = Instant::now();
            session.run_blocking(input, RunOptions::default())?;
            times.push(started.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2];
        let OutputData::Labels(labels) = &outputs[0].data else { return Err("no labels came back".into()) };
        let mut kinds = labels.clone();
        kinds.sort_unstable();
        kinds.dedup();
        println!(
            "| {name} | {extent} | {:.2} M | {:.1} | {} | {} | {} | {opened:.2} | {seconds:.2} | {:.1} | {} of {} |",
            model.weights().parameters() as f64 / 1e6,
            report.flops as f64 / 1e9,
            report.peak_bytes,
            report.weights_bytes,
            report.smallest_budget,
            report.flops as f64 / seconds / 1e9,
            kinds.len(),
            model.card().classes(),
        );
        if profiled {
            session.start_profile();
            session.run_blocking(input, RunOptions::default())?;
            if let Some(profile) = session.take_profile() {
                tell(&profile);
            }
        }
    }
    Ok(())
}

/// Prints what the kernels took, the longest first, and the nodes that took 0.5 % or more.
fn tell(profile: &Profile) {
    let total = profile.seconds();
    let line = |timed: &Timed| {
        println!(
            "{:5.1} % {:9.2} ms {:7.1} GFLOP/s {:6.1} GB/s {:5} x {} {}",
            100.0 * timed.seconds / total,
            timed.seconds * 1e3,
            timed.flops_per_second() / 1e9,
            timed.bytes_per_second() / 1e9,
            timed.count,
            timed.kernel,
            timed.node
        );
    };
    profile.kernels().iter().for_each(line);
    profile.nodes.iter().filter(|timed| timed.seconds >= 0.005 * total).for_each(line);
}
