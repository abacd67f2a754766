//! `organum infer`: the network alone.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Instant;

use half::f16;
use organum::{Extent, Input, Model, OutputData, OutputMode, PlanOptions};
use safetensors::{Dtype, SafeTensors};

use crate::args;
use crate::device::{self, Device};
use crate::fail::Failure;
use crate::output::{need_folder, say, say_json, write_npy};
use crate::segment::summary;

/// An array of f32 in C order.
struct Array {
    shape: Vec<u64>,
    values: Vec<f32>,
}

fn read(path: &Path) -> Result<Array, Failure> {
    let bad = |e: &dyn std::fmt::Display| Failure::input(format!("cannot read {}: {e}", path.display()));
    if path.extension().is_some_and(|e| e == "safetensors") {
        let bytes = std::fs::read(path).map_err(|e| bad(&e))?;
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
    let file = File::open(path).map_err(|e| bad(&e))?;
    let npy = npyz::NpyFile::new(BufReader::new(file)).map_err(|e| bad(&e))?;
    if npy.order() != npyz::Order::C {
        return Err(bad(&"the array is in Fortran order; save it with numpy.ascontiguousarray"));
    }
    let shape = npy.shape().to_vec();
    let values = npy.into_vec::<f32>().map_err(|e| bad(&e))?;
    Ok(Array { shape, values })
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

/// `organum infer`.
pub(crate) fn run(a: &args::Infer) -> Result<(), Failure> {
    let started = Instant::now();
    let model = placed(Model::load(&a.model)?, a)?;
    if a.output.extension().is_none_or(|e| e != "npy") {
        return Err(Failure::usage(format!("{} must end in .npy", a.output.display())));
    }
    need_folder(&a.output)?;
    let array = read(&a.input)?;
    let dims = model.card().dims();
    let (channels, extent) = interpret(&array.shape, dims)?;
    let load = started.elapsed();
    let input = Input { channels, extent, data: &array.values };
    if !model.card().takes(channels) {
        return Err(Failure::input(format!("the input has {channels} channels, the network wants {}", model.card().in_channels())));
    }
    let device = Device::open(a.run.device.as_deref())?;
    let ran = device::run(&device, &model, input, &a.run, PlanOptions::default().with_output(OutputMode::Logits))?;
    let Some(OutputData::Map(logits)) = ran.outputs.first().map(|o| &o.data) else {
        return Err(Failure::internal("the run brought no logits back"));
    };
    let mut shape = array.shape;
    shape[1] = u64::from(model.card().classes());
    write_npy(&a.output, &shape, logits)?;
    if a.run.json {
        say_json(&ran.json(&device, load, started.elapsed()));
    } else {
        say(&summary(&ran, &device, started.elapsed()));
    }
    Ok(())
}
