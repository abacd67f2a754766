//! `organum convert`: a model file of what training left.

use std::path::Path;

use organum::host::read_text;
use organum::model::{Checkpoint, CheckpointFormat};
use organum::monai::Bundle;
use organum::nnunet::Folder;
use organum::volume::write_whole;
use organum::{Carried, LoadErrorKind, Model, Unpacked, aside, format_bytes};
use serde_json::{Map, Value, json};

use crate::args;
use crate::fail::Failure;
use crate::models;
use crate::output::{LARGEST_JSON, Warnings, need_folder, note, say, say_json};

/// A JSON object of a file that an option names.
fn object(option: &str, path: &Path) -> Result<Map<String, Value>, Failure> {
    let bad = |e: &dyn std::fmt::Display| Failure::input(format!("{option}: cannot read {}: {e}", path.display()));
    let text = read_text(path, LARGEST_JSON).map_err(|e| bad(&e))?;
    match serde_json::from_str(&text).map_err(|e| bad(&e))? {
        Value::Object(object) => Ok(object),
        _ => Err(bad(&"it is no JSON object")),
    }
}

/// What the options say of the card.
fn given(a: &args::Convert) -> Result<Map<String, Value>, Failure> {
    let mut card = a.card.as_ref().map(|path| object("--card", path)).transpose()?.unwrap_or_default();
    if let Some(architecture) = &a.architecture {
        card.insert("architecture".into(), architecture.as_str().into());
    }
    if let Some(path) = &a.config {
        let config = card.entry("config").or_insert_with(|| json!({}));
        match config.as_object_mut() {
            Some(config) => config.append(&mut object("--config", path)?),
            None => return Err(Failure::input("--card: its config is no JSON object")),
        }
    }
    Ok(card)
}

/// The network of a MONAI bundle, or of a fold of an nnU-Net folder.
fn folder(a: &args::Convert, source: &Path) -> Result<Model, Failure> {
    if a.architecture.is_some() || a.config.is_some() || a.card.is_some() {
        return Err(Failure::usage("--architecture, --config, --card: the plans or configs of a folder tell them"));
    }
    if a.weights.is_some() {
        return Err(Failure::usage("--weights: the checkpoints of a folder hold one network each"));
    }
    if Bundle::locate(source)?.is_some() {
        if a.fold.is_some() {
            return Err(Failure::usage("--fold: a MONAI bundle has no folds"));
        }
        if a.checkpoint.is_some() {
            return Err(Failure::usage("--checkpoint: a MONAI bundle has no checkpoints to choose from"));
        }
        return models::network(source, &args::Which::default(), a.allow_non_finite);
    }
    let folder = Folder::open_checkpoint(source, a.checkpoint.as_deref())?;
    let fold = match &a.fold {
        Some(fold) => fold.clone(),
        None => match &folder.folds()?[..] {
            [only] => only.clone(),
            several => {
                let text = format!("--fold: {} has the folds {}; a model file is of one", a.source.display(), several.join(", "));
                return Err(Failure::usage(text));
            }
        },
    };
    let options = models::options(&[fold], a.checkpoint.as_deref(), a.allow_non_finite);
    let networks = models::open(source, &options)?;
    Warnings::new(false).add(networks.warnings())?;
    Ok(networks.first)
}

/// The card of the pipeline that a checkpoint carries, under what the options say: key by key, and so
/// of `config`. A pipeline of another architecture than the one that is told is none.
fn over(carried: &Carried, mut given: Map<String, Value>) -> Result<Map<String, Value>, Failure> {
    let Ok(Value::Object(mut card)) = serde_json::from_str(&carried.card) else {
        return Err(Failure::internal("a card is a JSON object"));
    };
    if given.get("architecture").is_some_and(|told| card.get("architecture") != Some(told)) {
        return Ok(given);
    }
    Warnings::new(false).add(&carried.warnings)?;
    if let (Some(Value::Object(own)), Some(Value::Object(more))) = (card.get_mut("config"), given.get_mut("config")) {
        own.append(more);
        given.remove("config");
    }
    card.append(&mut given);
    Ok(card)
}

/// The network of the source.
fn read(a: &args::Convert) -> Result<Model, Failure> {
    if let Some(unpacked) = Unpacked::of(&a.source)? {
        return folder(a, unpacked.path());
    }
    if a.source.is_dir() || Bundle::locate(&a.source)?.is_some() {
        return folder(a, &a.source);
    }
    for (option, told) in [("--fold", a.fold.is_some()), ("--checkpoint", a.checkpoint.is_some())] {
        if told {
            return Err(Failure::usage(format!("{option}: the source is no folder")));
        }
    }
    let mut card = given(a)?;
    let checkpoint = Checkpoint::open_under(&a.source, a.weights.as_deref())?.allow_non_finite(a.allow_non_finite);
    if checkpoint.format() == CheckpointFormat::Onnx {
        let text = "is an ONNX file, a model as it is, whose graph is kept in no other; put a card beside it";
        return Err(Failure { code: 4, message: format!("{} {text}", a.source.display()) });
    }
    Warnings::new(false).add(aside(&checkpoint).as_slice())?;
    if checkpoint.card().is_none() {
        match Carried::of_part(&a.source, a.weights.as_deref()) {
            Ok(Some(carried)) => card = over(&carried, card)?,
            // what is given takes the place of plans that are not supported
            Err(e) if !card.contains_key("input") => return Err(e.into()),
            _ => {}
        }
    }
    let model = if card.is_empty() { checkpoint.into_model(None) } else { checkpoint.into_model(Some(&Value::Object(card).to_string())) };
    model.map_err(|e| match (&a.architecture, e.kind()) {
        (Some(_), LoadErrorKind::UnknownArchitecture) => Failure::usage(format!("--architecture: {e}")),
        _ => e.into(),
    })
}

/// `organum convert`.
pub(crate) fn run(a: &args::Convert) -> Result<(), Failure> {
    if a.output.extension().is_none_or(|e| e != "safetensors") {
        return Err(Failure::usage(format!("{} must end in .safetensors", a.output.display())));
    }
    need_folder(&a.output)?;
    let model = read(a)?;
    write_whole(&a.output, "model.safetensors", |temporary| {
        model.save(temporary)?;
        // what was written is read again before it takes its name
        let again = Checkpoint::open(temporary).and_then(|c| c.allow_non_finite(a.allow_non_finite).into_model(None));
        again.map(|_| ()).map_err(std::io::Error::other)
    })
    .map_err(|e| Failure::writing(&e))?;
    let (card, weights) = (model.card(), model.weights());
    if a.json {
        say_json(
            &json!({"card": card, "parameters": weights.parameters(), "weights_bytes": weights.bytes(), "tensors": weights.list().len()}),
        );
        return Ok(());
    }
    say(&format!("architecture  {}", card.architecture));
    say(&format!("config        {}", card.config));
    say(&format!("tensors       {} of {}, {} parameters", weights.list().len(), format_bytes(weights.bytes()), weights.parameters()));
    if !card.input.is_told() {
        note("organum: the card says nothing of the input (axes, spacing_mm, intensity); --card CARD.json says how scans are prepared");
    }
    Ok(())
}
