//! `organum infer`: the network alone.

use std::path::Path;
use std::time::Instant;

use half::f16;
use organum::graph::{Node, Op};
use organum::host::{available_memory, read_file};
use organum::model::Layout;
use organum::{Extent, Input, Model, OutputData, OutputMode, OutputVolume, PlanOptions};
use safetensors::{Dtype, SafeTensors};

use crate::args;
use crate::device::Opened;
use crate::fail::Failure;
use crate::models;
use crate::npy::{self, Array};
use crate::output::{need_different, need_folder, say, say_json, write_npy};

fn read(path: &Path) -> Result<Array, Failure> {
    let bad = |e: &dyn std::fmt::Display| Failure::input(format!("cannot read {}: {e}", path.display()));
    if path.extension().is_some_and(|e| e == "safetensors") {
        let bytes = read_file(path, available_memory().unwrap_or(u64::MAX) / 2).map_err(|e| bad(&e))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| bad(&e))?;
        let t = tensors.tensor("input").map_err(|_| bad(&"it holds no tensor `input`"))?;
        let data = t.data();
        let values = match t.dtype() {
            Dtype::F32 => data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => data.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            other => return Err(bad(&format!("`input` is {other:?}, must be f32 or f16"))),
        };
        return Ok(Array { shape: t.shape().iter().map(|&n| n as u64).collect(), values });
    }
    npy::read(path).map_err(|e| bad(&e))
}

/// Channels and extent of a (1,C,[D,]H,W) array.
fn interpret(shape: &[u64], dims: u32) -> Result<(u32, Extent), Failure> {
    let short: Option<Vec<u32>> = shape.iter().map(|&n| u32::try_from(n).ok()).collect();
    match (dims, short.as_deref()) {
        (2, Some(&[1, c, h, w])) => Ok((c, Extent::new(1, h, w))),
        (3, Some(&[1, c, d, h, w])) => Ok((c, Extent::new(d, h, w))),
        _ => Err(Failure::input(format!(
            "the input has the shape {shape:?}, the network wants {}",
            if dims == 2 { "(1, C, H, W)" } else { "(1, C, D, H, W)" }
        ))),
    }
}

/// Whole numbers between commas.
fn numbers<T: std::str::FromStr>(option: &str, text: &str) -> Result<Vec<T>, Failure> {
    let number = |part: &str| part.trim().parse().map_err(|_| Failure::usage(format!("{option}: {part:?} in {text:?} is no such number")));
    text.split(',').map(number).collect()
}

/// The network for a crop at `--position` of a volume of which `--visited` was seen.
fn placed(mut model: Model, a: &args::Infer) -> Result<Model, Failure> {
    let refused = |option: &str, e: &organum::LoadError| Failure::usage(format!("{option}: {e}"));
    if let Some(text) = &a.position {
        let position = <[i64; 3]>::try_from(numbers::<i64>("--position", text)?)
            .map_err(|_| Failure::usage(format!("--position: {text:?} is not three numbers z,y,x")))?;
        model = model.with_position(position).map_err(|e| refused("--position", &e))?;
    }
    if let Some(text) = &a.visited {
        let visited = if text.is_empty() { Vec::new() } else { numbers("--visited", text)? };
        model = model.with_visited(&visited).map_err(|e| refused("--visited", &e))?;
    }
    Ok(model)
}

/// The nodes whose values are to be written: all but the input, or those with a part of `--trace-nodes` in their names. What
/// leads nowhere is computed too.
fn traced(model: &Model, a: &args::Infer) -> Result<Vec<String>, Failure> {
    if a.trace.is_none() {
        return Ok(Vec::new());
    }
    let parts = &a.trace_nodes;
    let names = model.whole_graph().nodes().iter().skip(1).map(|node| &node.name);
    let wanted = |name: &&String| parts.is_empty() || parts.iter().any(|part| name.contains(part.as_str()));
    let list: Vec<String> = names.filter(wanted).cloned().collect();
    if list.is_empty() {
        let some: Vec<&str> = model.whole_graph().nodes().iter().skip(1).take(3).map(|node| node.name.as_str()).collect();
        return Err(Failure::usage(format!(
            "--trace-nodes: no node is called anything like {}; there are {}, ..",
            parts.join(", "),
            some.join(", ")
        )));
    }
    Ok(list)
}

/// What a node is written from: itself, or what it joins, as concatenations are nowhere stored.
fn parts(model: &Model, node: &str) -> Vec<String> {
    let graph = model.whole_graph();
    match graph.find(node).map(|id| graph.node(id)) {
        Some(Node { op: Op::Concat, inputs, .. }) => inputs.iter().flat_map(|&input| parts(model, &graph.node(input).name)).collect(),
        _ => vec![node.to_owned()],
    }
}

/// The nodes that must be brought back.
fn taps(model: &Model, wanted: &[String]) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for part in wanted.iter().flat_map(|node| parts(model, node)) {
        if !list.contains(&part) {
            list.push(part);
        }
    }
    list
}

/// Writes each wanted node as .npy in the layout of the reference implementation.
fn write_trace(folder: &Path, model: &Model, wanted: &[String], values: &[OutputVolume]) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| Failure::usage(format!("cannot create {}: {e}", folder.display())))?;
    let dims = model.card().dims();
    for node in wanted {
        let found: Vec<&OutputVolume> = parts(model, node).iter().filter_map(|part| values.iter().find(|v| v.name == *part)).collect();
        let mut whole = found.first().map(|&first| first.clone()).ok_or_else(|| Failure::internal(format!("{node} did not come back")))?;
        for part in &found[1..] {
            if let (OutputData::Map(all), OutputData::Map(more)) = (&mut whole.data, &part.data) {
                all.extend(more);
                whole.map.channels += part.map.channels;
            }
        }
        let (shape, values) = whole.in_layout(model.layout(node).unwrap_or(Layout::Map), dims);
        write_npy(&folder.join(format!("{}.npy", node.replace('/', "_"))), &shape, &values)?;
    }
    Ok(())
}

/// `organum infer`.
pub(crate) fn run(a: &args::Infer) -> Result<(), Failure> {
    let started = Instant::now();
    let mut model = placed(models::network(&a.model, &a.which, a.run.allow_non_finite)?, a)?;
    if a.output.extension().is_none_or(|e| e != "npy") {
        return Err(Failure::usage(format!("{} must end in .npy", a.output.display())));
    }
    need_folder(&a.output)?;
    need_different(&[("--output", a.output.as_path())], &[&a.input, &a.model])?;
    let array = read(&a.input)?;
    let dims = model.card().dims();
    let (channels, extent) = interpret(&array.shape, dims)?;
    let load = started.elapsed();
    let input = Input { channels, extent, data: &array.values };
    if !model.card().takes(channels) {
        return Err(Failure::input(format!("the input has {channels} channels, the network wants {}", model.card().in_channels())));
    }
    if channels == 1 {
        model = model.for_grey_input()?;
    }
    let device = Opened::new(&a.run)?;
    let mut options = PlanOptions::default().with_output(OutputMode::Logits);
    let wanted = traced(&model, a)?;
    options.taps = taps(&model, &wanted);
    let mut runner = device.runner(&a.run);
    let (outputs, run) = device.watch(&a.run, |how| runner.run_blocking(&model, input, &options, how))?;
    drop(runner);
    let took = device.took(&a.run, run, load);
    let Some(OutputData::Map(logits)) = outputs.first().map(|o| &o.data) else {
        return Err(Failure::internal("the run brought no logits back"));
    };
    let mut shape = array.shape;
    shape[1] = u64::from(model.card().classes());
    write_npy(&a.output, &shape, logits)?;
    if let Some(folder) = &a.trace {
        write_trace(folder, &model, &wanted, &outputs[1..])?;
    }
    if a.run.json {
        say_json(&took.json(started.elapsed()));
    } else {
        say(&took.summary(started.elapsed()));
    }
    Ok(())
}
