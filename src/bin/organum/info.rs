//! `organum devices` and `evaluate`.

use std::path::Path;

use organum::volume::{LabelScore, Summary, Volume, evaluate as score, file};
use organum::{DeviceCaps, Engine, format_bytes};
use serde_json::{Map, Value, json};

use crate::args;
use crate::fail::Failure;
use crate::output::{Warnings, say, say_json};

/// `organum devices`.
pub(crate) fn devices(a: &args::Devices) -> Result<(), Failure> {
    let adapters = pollster::block_on(Engine::adapters());
    let default = Engine::preferred(&adapters).map_or("cpu", |i| &adapters[i].name);
    if a.json {
        let list: Vec<Value> = adapters
            .iter()
            .enumerate()
            .map(|(i, d)| json!({"index": i, "name": d.name, "backend": d.backend, "kind": d.kind, "driver": d.driver, "caps": d.caps}))
            .collect();
        say_json(&json!({ "devices": list, "default": default }));
        return Ok(());
    }
    for (i, d) in adapters.iter().enumerate() {
        say(&format!(
            "{i}    {}  [{}, {}, {}]  binding {}, buffer {}{}",
            d.name,
            d.backend,
            d.kind,
            d.driver,
            format_bytes(d.caps.max_binding),
            format_bytes(d.caps.max_buffer),
            if d.caps.f16 { ", f16" } else { "" }
        ));
    }
    let threads = DeviceCaps::host().threads;
    say(&format!("cpu  this host, {threads} threads, {}; no driver needed", organum::kernels::host::instructions()));
    say("reference  the kernels' scalar twins on this host, which sum in f64: slow");
    say(&format!("without --device: {default}"));
    Ok(())
}

/// `organum evaluate`.
pub(crate) fn evaluate(a: &args::Evaluate) -> Result<(), Failure> {
    let mut warnings = Warnings::new(a.strict);
    let mut read = |path: &Path| -> Result<Volume<u16>, Failure> {
        let read = file::read_labels(path)?;
        warnings.add(&read.warnings)?;
        Ok(read.labels)
    };
    let (prediction, reference) = (read(&a.prediction)?, read(&a.reference)?);
    let scores = score(&prediction, &reference)?;
    let summary = Summary::of(&scores);
    if a.json {
        let one = |s: &LabelScore| {
            let score = json!({
                "dice": s.dice,
                "hd95_mm": s.hd95_mm,
                "voxels_prediction": s.voxels_prediction,
                "voxels_reference": s.voxels_reference,
            });
            (s.label.to_string(), score)
        };
        let labels: Map<String, Value> = scores.iter().map(one).collect();
        say_json(&json!({"labels": labels, "mean": summary, "warnings": warnings.json()}));
        return Ok(());
    }
    let show = |x: Option<f64>| x.map_or_else(|| "-".into(), |v| format!("{v:.4}"));
    let side = |s: &LabelScore| match (s.voxels_prediction, s.voxels_reference) {
        (0, _) => "   missed: in the reference alone",
        (_, 0) => "   false: in the prediction alone",
        _ => "",
    };
    say("label      Dice   HD95 mm");
    for s in &scores {
        say(&format!("{:<6} {:>8} {:>9}{}", s.label, show(s.dice), show(s.hd95_mm), side(s)));
    }
    let (dice, hd95) = (show(summary.dice), show(summary.hd95_mm));
    say(&format!(
        "{:<6} {dice:>8} {hd95:>9}   Dice of {} labels, HD95 of the {} that both have; {} missed, {} false",
        "mean",
        summary.dice_labels,
        summary.hd95_labels,
        summary.missed.len(),
        summary.false_labels.len()
    ));
    Ok(())
}
