//! organum on a machine with a GPU, one step a call; `../device.sh` calls the steps, bounds their
//! time and gathers what they print: a line of JSON for each case as soon as it is known, or one.
//!
//! device about | goldens FOLDER | layers FILE | kernels | net CARD DxHxW | table FILE
//! with [--device D] [--small] [--precision f32|f16] [--memory BYTES]

use std::time::Instant;

use organum::harness::measure;
use organum::kernels::{Call, bench};
use organum::{
    Elem, Engine, Extent, Input, Model, OutputData, OutputMode, Plan, PlanError, PlanOptions,
    RunOptions, Session,
};
use peers::case::Layer;
use peers::ours::{Alone, graph};
use peers::{Failure, table};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// Samples of a layer and of a kernel; medians are told.
const SAMPLES: usize = 7;

/// A layer that takes longer has fewer samples.
const ENOUGH_SECONDS: f64 = 5.0;

/// Golden cases where the adapter is a CPU: those with the smallest inputs.
const SMALL_GOLDENS: usize = 6;

struct Args {
    positional: Vec<String>,
    device: Option<String>,
    small: bool,
    elem: Elem,
    memory: Option<u64>,
}

impl Args {
    fn parse() -> Result<Self, Failure> {
        let mut args = std::env::args().skip(1);
        let mut parsed = Self {
            positional: Vec::new(),
            device: None,
            small: false,
            elem: Elem::F32,
            memory: None,
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--device" => parsed.device = Some(value()?),
                "--small" => parsed.small = true,
                "--precision" => {
                    parsed.elem = match value()?.as_str() {
                        "f32" => Elem::F32,
                        "f16" => Elem::F16,
                        other => return Err(format!("--precision {other}: f32 or f16").into()),
                    };
                }
                "--memory" => parsed.memory = Some(value()?.parse()?),
                _ => parsed.positional.push(arg),
            }
        }
        Ok(parsed)
    }

    fn at(&self, index: usize) -> Result<&str, Failure> {
        let arg = self.positional.get(index).ok_or("an argument is missing; see the source")?;
        Ok(arg)
    }

    /// The adapter: the preferred one where none is named.
    fn engine(&self) -> Result<Engine, Failure> {
        Ok(pollster::block_on(Engine::request(self.device.as_deref()))?)
    }
}

fn main() -> Result<(), Failure> {
    let args = Args::parse()?;
    match args.at(0)? {
        "about" => println!("{}", about(&args)?),
        "goldens" => goldens(&args)?,
        "layers" => layers(&args)?,
        "kernels" => kernels(&args)?,
        "net" => println!("{}", net(&args)?),
        "table" => print!("{}", table::of(&serde_json::from_slice(&std::fs::read(args.at(1)?)?)?)),
        step => return Err(format!("no step is called {step}").into()),
    }
    Ok(())
}

fn about(args: &Args) -> Result<Value, Failure> {
    let all = pollster::block_on(Engine::adapters());
    let all: Vec<String> =
        all.iter().map(|a| format!("{} ({}, {})", a.name, a.backend, a.driver)).collect();
    let engine = args.engine()?;
    let summary = engine.summary();
    let caps = serde_json::to_value(engine.caps())?;
    let (name, driver) = (&summary.name, &summary.driver);
    Ok(json!({ "device": name, "driver": driver, "caps": caps, "adapters": all }))
}

/// The reference cases of a folder in both precisions, within the bounds of the contract.
///
/// # Errors
/// When one is not, after all have run.
fn goldens(args: &Args) -> Result<(), Failure> {
    let engine = args.engine()?;
    let mut cases: Vec<_> = std::fs::read_dir(args.at(1)?)?.collect::<Result<_, _>>()?;
    cases.sort_by_key(std::fs::DirEntry::file_name);
    cases.retain(|case| case.path().join("case.json").exists());
    if args.small {
        cases.sort_by_cached_key(|case| voxels(&case.path()));
        cases.truncate(SMALL_GOLDENS);
    }
    let mut failed = 0;
    for case in &cases {
        let mut row = json!({ "case": case.file_name().to_string_lossy() });
        for (elem, bound) in [(Elem::F32, 1e-5), (Elem::F16, 5e-3)] {
            match golden(&engine, &case.path(), elem) {
                Ok(error) if error <= bound => row[elem.name()] = error.into(),
                Ok(error) => {
                    failed += 1;
                    row[elem.name()] = error.into();
                    row["wrong"] = true.into();
                }
                Err(e) => {
                    failed += 1;
                    row["error"] = e.to_string().into();
                }
            }
        }
        println!("{row}");
    }
    if failed > 0 {
        return Err(format!("{failed} results are not those of the reference").into());
    }
    Ok(())
}

/// Voxels of a case's input; none where it does not say so.
fn voxels(folder: &std::path::Path) -> Option<u64> {
    let case: Value =
        serde_json::from_slice(&std::fs::read(folder.join("case.json")).ok()?).ok()?;
    case["input"].as_array()?.iter().map(Value::as_u64).product()
}

/// How far a case is from its reference, relative to the norm of the reference.
fn golden(engine: &Engine, folder: &std::path::Path, elem: Elem) -> Result<f64, Failure> {
    let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
    let bytes = std::fs::read(folder.join("io.safetensors"))?;
    let io = SafeTensors::deserialize(&bytes)?;
    let mut model = Model::load(folder.join("model.safetensors"))?;
    if let Ok(position) = serde_json::from_value(case["inference"]["position"].clone()) {
        model = model.with_position(position)?;
    }
    let shape: Vec<u32> = serde_json::from_value(case["input"].clone())?;
    let (channels, extent) = match shape[..] {
        [_, c, h, w] => (c, Extent::new(1, h, w)),
        [_, c, d, h, w] => (c, Extent::new(d, h, w)),
        _ => return Err(format!("an input of {} axes", shape.len()).into()),
    };
    let input: Vec<f32> = floats(&io, "input")?.into_iter().map(|v| v as f32).collect();
    let expected = floats(&io, "output")?;
    let options = PlanOptions::default().with_output(OutputMode::Logits).with_precision(elem);
    let plan = Plan::new(&model, extent, engine.caps(), &options)?;
    let mut session = pollster::block_on(Session::new(engine, &model, plan))?;
    let input = Input { channels, extent, data: &input };
    let outputs = session.run_blocking(input, RunOptions::default())?;
    let OutputData::Map(logits) = &outputs[0].data else { return Err("no logits".into()) };
    let stride = case["output_stride"].as_u64().unwrap_or(1) as usize;
    let map = outputs[0].map;
    let [d, h, w] = map.extent.axes().map(|n| n as usize);
    // every so many voxels of each axis that the reference has
    let along_d = if shape.len() == 4 { 1 } else { stride };
    let (mut apart, mut norm, mut at) = (0.0, 0.0, 0);
    for c in 0..map.channels as usize {
        for z in (0..d).step_by(along_d) {
            for y in (0..h).step_by(stride) {
                for x in (0..w).step_by(stride) {
                    let right = *expected.get(at).ok_or("the reference is smaller")?;
                    let mine = f64::from(logits[((c * d + z) * h + y) * w + x]);
                    apart += (mine - right) * (mine - right);
                    norm += right * right;
                    at += 1;
                }
            }
        }
    }
    if at != expected.len() {
        return Err(format!("{at} values were computed of {}", expected.len()).into());
    }
    Ok((apart / norm).sqrt())
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<f64>, Failure> {
    let tensor = tensors.tensor(name)?;
    let data = tensor.data();
    let halves = |b: &[u8; 2]| f64::from(half(u16::from_le_bytes(*b)));
    match tensor.dtype() {
        safetensors::Dtype::F16 => Ok(data.as_chunks::<2>().0.iter().map(halves).collect()),
        safetensors::Dtype::F32 => {
            let of = |b: &[u8; 4]| f64::from(f32::from_le_bytes(*b));
            Ok(data.as_chunks::<4>().0.iter().map(of).collect())
        }
        safetensors::Dtype::F64 => {
            Ok(data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
        }
        other => Err(format!("{name} is {other:?}").into()),
    }
}

/// The value of a 16-bit float.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    match exponent {
        0 => sign * mantissa * 2f32.powi(-24),
        31 if mantissa == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + mantissa / 1024.0) * 2f32.powi(exponent - 15),
    }
}

/// A layer of the list that PyTorch is timed on, too.
#[derive(serde::Deserialize)]
struct Listed {
    name: String,
    layer: Layer,
    channels: u32,
    extent: [u32; 3],
    /// Where the adapter is a CPU.
    small: [u32; 3],
}

/// Layers as networks of their own: the calls of their plans.
fn layers(args: &Args) -> Result<(), Failure> {
    let engine = args.engine()?;
    let list: Vec<Listed> = serde_json::from_slice(&std::fs::read(args.at(1)?)?)?;
    for listed in &list {
        for elem in [Elem::F32, Elem::F16] {
            let mut row = json!({ "case": listed.name, "precision": elem.name() });
            match layer(&engine, listed, elem, args.small) {
                Ok((seconds, flops, kernels)) => {
                    row["seconds"] = seconds.into();
                    row["gflops"] = (flops as f64 / seconds / 1e9).into();
                    row["kernels"] = kernels.into();
                }
                Err(e) => row["error"] = e.to_string().into(),
            }
            println!("{row}");
        }
    }
    Ok(())
}

fn layer(
    engine: &Engine,
    listed: &Listed,
    elem: Elem,
    small: bool,
) -> Result<(f64, u64, Vec<&'static str>), Failure> {
    let graph = graph(&listed.layer, listed.channels)?;
    let extent = Extent::from(if small { listed.small } else { listed.extent });
    let options = PlanOptions::default().with_output(OutputMode::Logits).with_precision(elem);
    let plan = Plan::of_graph(&graph, extent, engine.caps(), &options)?;
    let calls: Vec<Call> = plan.recording().dispatches().map(|(call, _)| call.clone()).collect();
    let mut runs = Vec::new();
    for call in &calls {
        runs.push(Alone::new(call, Some(engine), engine.caps())?);
    }
    let mut samples = Vec::new();
    for _ in 0..=SAMPLES {
        let begin = Instant::now();
        runs.iter_mut().try_for_each(Alone::run)?;
        samples.push(begin.elapsed().as_secs_f64());
        if samples.len() > 1 && samples.iter().sum::<f64>() > ENOUGH_SECONDS {
            break;
        }
    }
    // the first compiles
    samples.remove(0);
    samples.sort_by(f64::total_cmp);
    let names = calls.iter().map(Call::name).collect();
    Ok((samples[samples.len() / 2], plan.report().flops, names))
}

/// Every kernel at the shapes of real networks, against two ceilings of the device.
fn kernels(args: &Args) -> Result<(), Failure> {
    let engine = args.engine()?;
    let seconds = |call: &Call| -> Result<f64, Failure> {
        Ok(pollster::block_on(measure(&engine, call, SAMPLES))?[SAMPLES / 2])
    };
    let [copy, fma] = bench::ceilings(args.small);
    let traffic = copy.cost().bytes as f64 / seconds(&copy)?;
    let arithmetic = fma.cost().flops as f64 / seconds(&fma)?;
    let ceilings = json!({ "gbytes": traffic / 1e9, "gflops": arithmetic / 1e9 });
    println!("{}", json!({ "case": "ceilings", "precision": "f32", "ceilings": ceilings }));
    for elem in [Elem::F32, Elem::F16] {
        for (label, call) in bench::cases(elem, args.small) {
            let mut row = json!({ "case": label, "precision": elem.name() });
            match seconds(&call) {
                Ok(seconds) => {
                    let [flops, bytes] =
                        [call.cost().flops, call.cost().bytes].map(|n| n as f64 / seconds);
                    row["seconds"] = seconds.into();
                    row["gflops"] = (flops / 1e9).into();
                    row["gbytes"] = (bytes / 1e9).into();
                    row["share_of_flops"] = (flops / arithmetic).into();
                    row["share_of_bytes"] = (bytes / traffic).into();
                }
                Err(e) => row["error"] = e.to_string().into(),
            }
            println!("{row}");
        }
    }
    Ok(())
}

/// A network of a card with made-up weights, to labels, within a budget: twice.
fn net(args: &Args) -> Result<Value, Failure> {
    let engine = args.engine()?;
    let model = Model::random(&std::fs::read_to_string(args.at(1)?)?, 1)?;
    let axes: Vec<u32> = args.at(2)?.split('x').map(str::parse).collect::<Result<_, _>>()?;
    let axes: [u32; 3] = axes.try_into().map_err(|_| "an extent is DxHxW")?;
    let extent = Extent::from(axes);
    let mut options = PlanOptions::default().with_precision(args.elem);
    options.budget = args.memory;
    let begin = Instant::now();
    let plan = match Plan::new(&model, extent, engine.caps(), &options) {
        Ok(plan) => plan,
        Err(e) => return Ok(refused(&e)),
    };
    let planned = begin.elapsed().as_secs_f64();
    let report = plan.report().clone();
    let begin = Instant::now();
    let mut session = pollster::block_on(Session::new(&engine, &model, plan))?;
    let opened = begin.elapsed().as_secs_f64();
    let channels = model.card().in_channels();
    let data = organum::harness::values(extent.voxels() * u64::from(channels));
    let mut runs = Vec::new();
    let mut hash = 0;
    for _ in 0..2 {
        let begin = Instant::now();
        let input = Input { channels, extent, data: &data };
        let outputs = session.run_blocking(input, RunOptions::default())?;
        runs.push(begin.elapsed().as_secs_f64());
        let OutputData::Labels(labels) = &outputs[0].data else { return Err("no labels".into()) };
        // FNV-1a: equal for every budget on one device
        hash = labels.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &l| {
            (h ^ u64::from(l)).wrapping_mul(0x100_0000_01b3)
        });
    }
    Ok(json!({
        "plan": report, "allocated_bytes": session.allocated_bytes(), "plan_seconds": planned,
        "open_seconds": opened, "run_seconds": runs, "gflops": report.flops as f64 / runs[1] / 1e9,
        "labels_fnv1a": format!("{hash:016x}"),
    }))
}

/// A budget that is too small is an answer, not a failure.
fn refused(error: &PlanError) -> Value {
    json!({ "refused": error.to_string() })
}
