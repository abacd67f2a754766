//! The reference cases of ../shared/golden that this version's architectures cover.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

mod support;

use std::sync::OnceLock;

use organum::{
    DeviceCaps, Elem, Engine, Extent, Input, Model, OutputData, OutputMode, Plan, PlanOptions, Planner, Report, RunOptions, Session,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use support::{engine, engine_without_f16, relative_error, shared};

const CASES: &[&str] = &[
    "u_transformer_2d",
    "u_transformer_3d",
    "u_transformer_themyr2021",
    "u_net_3d",
    "mhsa_only_3d",
    "mhca_only_2d",
    "nnunet_3d_fullres",
    "nnformer",
    "glam_nnformer_a",
    "glam_nnformer_d",
    "fine",
    "fine_depth3",
    "unetr",
    "cotr",
    "swin_unet",
    "glam_swin_unet",
    "glam_swin_unet_nlu",
    "transunet",
    "unet2d",
    "unet2d_bilinear",
    "attention_unet2d",
    "attention_unet_3d",
    "vnet_monai",
    "vnet_mattmacy",
    "nnunet_resenc",
];

struct Golden {
    model: Model,
    extent: Extent,
    channels: u32,
    input: Vec<f32>,
    output: Vec<f64>,
    stride: usize,
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let t = tensors.tensor(name).expect("the tensor is in the file");
    let data = t.data();
    match t.dtype() {
        Dtype::F16 => data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        Dtype::F32 => data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes"))).collect(),
        other => panic!("{name} is {other:?}"),
    }
}

/// Part of the name of the only cases to run: `ORGANUM_GOLDEN=nnformer cargo test --test golden`.
fn load(name: &str) -> Option<Golden> {
    if std::env::var("ORGANUM_GOLDEN").is_ok_and(|part| !name.contains(&part)) {
        return None;
    }
    let folder = shared(&format!("golden/{name}"))?;
    let bytes = std::fs::read(folder.join("io.safetensors")).expect("io.safetensors is there");
    let io = SafeTensors::deserialize(&bytes).expect("io.safetensors is one");
    let case: Value =
        serde_json::from_slice(&std::fs::read(folder.join("case.json")).expect("case.json is there")).expect("case.json is JSON");
    let shape: Vec<u32> = case["input"].as_array().expect("a shape").iter().map(|n| n.as_u64().expect("an extent") as u32).collect();
    let extent = if shape.len() == 4 { Extent::new(1, shape[2], shape[3]) } else { Extent::new(shape[2], shape[3], shape[4]) };
    let mut model = Model::load(folder.join("model.safetensors")).expect("the model loads");
    if let Ok(position) = serde_json::from_value(case["inference"]["position"].clone()) {
        model = model.with_position(position).expect("it has volume tokens");
    }
    Some(Golden {
        model,
        extent,
        channels: shape[1],
        input: floats(&io, "input").iter().map(|&v| v as f32).collect(),
        output: floats(&io, "output"),
        stride: case["output_stride"].as_u64().expect("a stride") as usize,
    })
}

fn strided(values: &[f32], channels: usize, extent: Extent, stride: usize) -> Vec<f32> {
    let [d, h, w] = extent.axes().map(|n| n as usize);
    let mut out = Vec::new();
    for c in 0..channels {
        for z in (0..d).step_by(stride) {
            for y in (0..h).step_by(stride) {
                out.extend((0..w).step_by(stride).map(|x| values[((c * d + z) * h + y) * w + x]));
            }
        }
    }
    out
}

fn logits(golden: &Golden, session: &mut Session) -> Vec<f32> {
    let input = Input { channels: golden.channels, extent: golden.extent, data: &golden.input };
    let mut outputs = session.run_blocking(input, RunOptions::default()).expect("the network runs");
    match outputs.swap_remove(0).data {
        OutputData::Map(values) => values,
        OutputData::Labels(_) => panic!("asked for logits"),
    }
}

fn error(golden: &Golden, values: &[f32]) -> f64 {
    relative_error(&strided(values, golden.model.card().classes() as usize, golden.extent, golden.stride), &golden.output)
}

fn plan(golden: &Golden, caps: &DeviceCaps, options: &PlanOptions) -> Plan {
    Plan::new(&golden.model, golden.extent, caps, &options.clone().with_output(OutputMode::Logits)).expect("there is a plan")
}

/// Logits of a run on the device, and the report of its plan.
fn on_device(golden: &Golden, engine: &Engine, options: &PlanOptions) -> (Vec<f32>, Report) {
    run_planned(golden, engine, plan(golden, engine.caps(), options))
}

fn run_planned(golden: &Golden, engine: &Engine, plan: Plan) -> (Vec<f32>, Report) {
    let report = plan.report().clone();
    let mut session = pollster::block_on(Session::new(engine, &golden.model, plan)).expect("the session is made");
    assert_eq!(session.allocated_bytes(), report.peak_bytes, "{}: bytes allocated and planned", golden.model.card().architecture);
    (logits(golden, &mut session), report)
}

/// A case with what it gives in f32 without a budget, which two tests compare with something: it is run once.
struct Resident {
    golden: Golden,
    logits: Vec<f32>,
    report: Report,
}

fn resident(case: usize, engine: &Engine) -> Option<&'static Resident> {
    static ALL: [OnceLock<Option<Resident>>; CASES.len()] = [const { OnceLock::new() }; CASES.len()];
    let run = || {
        let golden = load(CASES[case])?;
        let (logits, report) = on_device(&golden, engine, &PlanOptions::default());
        Some(Resident { golden, logits, report })
    };
    ALL[case].get_or_init(run).as_ref()
}

#[test]
fn device_equals_pytorch() {
    let Some(engine) = engine() else { return };
    for (case, name) in CASES.iter().enumerate() {
        let Some(Resident { golden, logits, .. }) = resident(case, engine) else { continue };
        let half = PlanOptions::default().with_precision(Elem::F16);
        let in_half = |engine: &Engine| on_device(golden, engine, &half).0;
        let packed = engine_without_f16();
        for (engine, precision, values, bound) in [
            (engine, Elem::F32, Some(logits.clone()), 1e-5),
            (engine, Elem::F16, Some(in_half(engine)), 5e-3),
            (packed.unwrap_or(engine), Elem::F16, packed.map(in_half), 5e-3),
        ] {
            let Some(values) = values else { continue };
            let e = error(golden, &values);
            println!("{name} {} (16-bit floats: {}): relative error {e:.2e}", precision.name(), engine.caps().f16);
            assert!(e <= bound, "{name} {}: relative error {e:e}", precision.name());
        }
    }
}

#[test]
fn host_equals_pytorch() {
    for &name in CASES {
        let Some(golden) = load(name) else { continue };
        let mut session =
            Session::on_host(&golden.model, plan(&golden, &DeviceCaps::host(), &PlanOptions::default())).expect("the session is made");
        let e = error(&golden, &logits(&golden, &mut session));
        println!("{name} host: relative error {e:.2e}");
        assert!(e <= 1e-5, "{name}: relative error {e:e}");
    }
}

#[test]
fn every_budget_gives_the_same_bits() {
    let Some(engine) = engine() else { return };
    for (case, name) in CASES.iter().enumerate() {
        let Some(Resident { golden, logits: expected, report: whole }) = resident(case, engine) else { continue };
        let (largest, smallest) = (whole.peak_bytes, whole.smallest_budget);
        let options = PlanOptions::default().with_output(OutputMode::Logits);
        let planner = Planner::new(&golden.model, golden.extent, engine.caps(), &options).expect("there was a plan");
        for share in 0..4 {
            let budget = smallest + (largest - smallest) * share / 4;
            let (logits, report) = run_planned(golden, engine, planner.plan(Some(budget)).expect("it is not too small"));
            assert!(report.peak_bytes <= budget);
            assert!(logits == *expected, "{name}: other bits in {budget} bytes");
        }
    }
}

/// The kernels that GPUs get, on the adapter that is here: exact, and of the same bits in slabs of one plane, whose tiles are others.
#[test]
fn kernels_of_gpus_equal_pytorch() {
    let Some(engine) = engine() else { return };
    let mut caps = engine.caps().clone();
    caps.cpu = false;
    for name in ["u_transformer_3d", "nnunet_3d_fullres", "vnet_monai", "unet2d_bilinear", "swin_unet"] {
        let Some(golden) = load(name) else { continue };
        for (precision, bound) in [(Elem::F32, 1e-5), (Elem::F16, 5e-3)] {
            let options = PlanOptions::default().with_precision(precision);
            let [whole, slabs] = [options.clone(), options.with_slab_depth(1)].map(|options| {
                let plan = plan(&golden, &caps, &options);
                let tiled = plan.recording().dispatches().filter(|(call, _)| call.name() == "conv3d_tiled").count();
                assert!(tiled > 0, "{name}: nothing is tiled");
                let mut session = pollster::block_on(Session::new(engine, &golden.model, plan)).expect("the session is made");
                logits(&golden, &mut session)
            });
            let e = error(&golden, &whole);
            println!("{name} {} in tiles: relative error {e:.2e}", precision.name());
            assert!(e <= bound, "{name} {}: relative error {e:e}", precision.name());
            assert!(whole == slabs, "{name} {}: other bits in slabs", precision.name());
        }
    }
}

/// Every module of a reference whose value a case holds, and that is a node here, has that value: what `infer --trace` writes.
#[test]
fn intermediate_values_are_those_of_the_references() {
    for name in CASES {
        let Some(golden) = load(name) else { continue };
        let bytes = std::fs::read(shared(&format!("golden/{name}/io.safetensors")).expect("it was there")).expect("it can be read");
        let io = SafeTensors::deserialize(&bytes).expect("io.safetensors is one");
        let acts: Vec<&str> = io.names().into_iter().filter_map(|n| n.strip_prefix("act.")).collect();
        // a module without a node of its name gives what the last node within it gives
        let graph = golden.model.whole_graph();
        let of = |act: &str| {
            let inside = |n: &&organum::graph::Node| n.name.strip_prefix(act).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
            graph.find(act).map(|id| graph.node(id)).or_else(|| graph.nodes().iter().rfind(inside)).map(|n| n.name.clone())
        };
        let (known, others): (Vec<&str>, Vec<&str>) = acts.into_iter().partition(|act| of(act).is_some());
        let nodes: Vec<String> = known.iter().filter_map(|act| of(act)).collect();
        let mut options = PlanOptions::default();
        options.taps.clone_from(&nodes);
        let (engine, caps) = (engine(), engine().map_or_else(DeviceCaps::host, |e| e.caps().clone()));
        let plan = plan(&golden, &caps, &options);
        let mut session = match engine {
            Some(engine) => pollster::block_on(Session::new(engine, &golden.model, plan)).expect("the session is made"),
            None => Session::on_host(&golden.model, plan).expect("the session is made"),
        };
        let input = Input { channels: golden.channels, extent: golden.extent, data: &golden.input };
        let outputs = session.run_blocking(input, RunOptions::default()).expect("the network runs");
        let (mut worst, mut compared, mut others): (f64, _, Vec<&str>) = (0.0, 0, others);
        for (&act, output) in known.iter().zip(&outputs[1..]) {
            let layout = golden.model.layout(&output.name).expect("it is a node");
            let (shape, values) = output.in_layout(layout, golden.model.card().dims());
            let expected = io.tensor(&format!("act.{act}")).expect("it is there");
            if shape.iter().map(|&n| n as usize).collect::<Vec<_>>() != expected.shape() {
                others.push(act);
                continue;
            }
            let e = relative_error(&values, &floats(&io, &format!("act.{act}")));
            println!("{name} {act}: {e:.1e}");
            assert!(e <= 3e-5, "{name} {act}: relative error {e:e}");
            (worst, compared) = (worst.max(e), compared + 1);
        }
        println!("{name}: {compared} values, worst relative error {worst:.1e}; not compared: {others:?}");
        assert!(compared > 0 || known.is_empty() && others.is_empty(), "{name} has no node of its reference's names");
    }
}
