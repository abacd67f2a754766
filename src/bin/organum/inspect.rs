//! `organum inspect`: what a model file, a checkpoint or a folder holds.

use organum::model::{Checkpoint, CheckpointFormat, Weights};
use organum::monai::Bundle;
use organum::{Model, Unpacked, format_bytes};
use serde_json::{Map, Value, json};

use crate::args;
use crate::fail::Failure;
use crate::models;
use crate::output::{say, say_json};

/// What was found around the tensors of a file.
fn found(checkpoint: &Checkpoint) -> Value {
    let format = match checkpoint.format() {
        CheckpointFormat::Safetensors => "safetensors",
        CheckpointFormat::Torch => "torch",
        CheckpointFormat::TorchScript => "torchscript",
        CheckpointFormat::Onnx => "onnx",
        _ => "other",
    };
    json!({
        "format": format,
        "wrapper": checkpoint.wrapper(),
        "prefix": checkpoint.prefix(),
        "tensors": checkpoint.weights().list().len(),
        "card": checkpoint.card().is_some(),
    })
}

fn shapes(weights: &Weights) -> Map<String, Value> {
    weights.list().into_iter().map(|(name, shape)| (name, json!(shape))).collect()
}

/// A line about a file that is no model file of ours.
fn say_found(found: &Value) {
    if found["card"] == true {
        return;
    }
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    let wrapper: Vec<&str> = found["wrapper"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let under = if wrapper.is_empty() { String::new() } else { format!(", under {}", wrapper.join(".")) };
    let prefix = if text("prefix").is_empty() { String::new() } else { format!(", names without {:?}", text("prefix")) };
    say(&format!("file          {}, {} tensors{under}{prefix}, no card", text("format"), found["tensors"]));
}

/// What there is to say of tensors without a network.
fn unrecognised(checkpoint: &Checkpoint, found: Value, why: &str, json: bool) -> Result<(), Failure> {
    let weights = checkpoint.weights();
    if json {
        say_json(&json!({
            "checkpoint": found,
            "card": null,
            "why": why,
            "parameters": weights.parameters(),
            "weights_bytes": weights.bytes(),
            "tensors": shapes(weights),
        }));
        return Ok(());
    }
    say_found(&found);
    say(&format!("architecture  not told: {why}"));
    say(&format!("parameters    {} in {}\n", weights.parameters(), format_bytes(weights.bytes())));
    weights.list().iter().for_each(|(name, shape)| say(&format!("{name} {shape:?}")));
    Ok(())
}

/// `organum inspect`.
pub(crate) fn run(a: &args::Inspect) -> Result<(), Failure> {
    let asked = a.which.fold.is_some() || a.which.checkpoint.is_some();
    if asked || a.model.is_dir() || Unpacked::leads_to(&a.model) || Bundle::locate(&a.model)?.is_some() {
        let model = models::network(&a.model, &a.which, a.allow_non_finite)?;
        let tensors = model.weights().list().len();
        let found = json!({"format": "folder", "wrapper": [], "prefix": "", "tensors": tensors, "card": true});
        return recognised(&model, found, a.json);
    }
    let checkpoint = Checkpoint::open(&a.model)?.allow_non_finite(a.allow_non_finite);
    let found = found(&checkpoint);
    let model = match checkpoint.card() {
        Some(_) => checkpoint.into_model(None)?,
        None => match checkpoint.infer() {
            Ok(card) => checkpoint.into_model(Some(&card))?,
            Err(e) => {
                let why = e.to_string();
                return unrecognised(&checkpoint, found, &why, a.json);
            }
        },
    };
    recognised(&model, found, a.json)
}

/// What there is to say of a network.
fn recognised(model: &Model, found: Value, json: bool) -> Result<(), Failure> {
    let card = model.card();
    let weights = model.weights();
    if json {
        say_json(&json!({
            "checkpoint": found,
            "card": card,
            "parameters": weights.parameters(),
            "weights_bytes": weights.bytes(),
            "stride": model.stride(),
            "nodes": model.graph().nodes().len(),
            "tensors": shapes(weights),
        }));
        return Ok(());
    }
    let applied = model.applied();
    say_found(&found);
    say(&format!("architecture  {}", card.architecture));
    say(&format!("config        {}", card.config));
    let input = &card.input;
    let pipeline = match (&input.nnunet, &input.monai, &input.recipe) {
        (.., Some(recipe)) => serde_json::to_string(recipe).map(|r| format!("the recipe {r}")),
        (Some(pipeline), ..) => serde_json::to_string(pipeline).map(|p| format!("nnU-Net's {p}")),
        (None, Some(pipeline), _) => serde_json::to_string(pipeline).map(|p| format!("MONAI's {p}")),
        (None, None, None) => Ok(format!(
            "axes {}, spacing {}, intensity {}",
            card.input.axes.map_or_else(|| "as stored".into(), |x| x.to_string()),
            card.input.spacing_mm.map_or_else(|| "as stored".into(), |s| format!("{s:?} mm")),
            card.input.intensity.as_ref().map_or_else(|| "as stored".into(), |i| serde_json::to_string(i).unwrap_or_default())
        )),
    };
    say(&format!("input         {} channel(s), {}", card.in_channels(), pipeline.map_err(|e| Failure::internal(e.to_string()))?));
    say(&format!(
        "labels        {}",
        card.label_values().into_iter().map(|c| format!("{c} {}", card.label_name(c))).collect::<Vec<_>>().join(", ")
    ));
    say(&format!("parameters    {} in {}", weights.parameters(), format_bytes(weights.bytes())));
    say(&format!("stride        {:?}", model.stride()));
    say(&format!(
        "passes        {} norms folded, {} activations, {} concatenations and {} sums fused, {} nodes removed",
        applied.norms_folded, applied.activations_fused, applied.concats_fused, applied.adds_fused, applied.nodes_removed
    ));
    if !card.provenance.is_empty() {
        say(&format!("provenance    {}", card.provenance));
    }
    say(&format!("\n{}", model.graph().to_string().trim_end()));
    Ok(())
}
