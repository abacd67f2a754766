//! `organum plan`, `inspect`, `devices` and `evaluate`.

use std::path::Path;

use organum::export::ExportBytes;
use organum::host::read_text;
use organum::model::{Checkpoint, CheckpointFormat, Mode, Weights};
use organum::volume::{LabelScore, Summary, Volume, evaluate as score, nifti};
use organum::{DeviceCaps, Engine, HostNeeds, HostPlan, Model, OutputMode, Windows, format_bytes};
use serde_json::{Map, Value, json};

use crate::args;
use crate::fail::Failure;
use crate::nnunet;
use crate::output::{LARGEST_JSON, Warnings, say, say_json};

/// `organum plan`.
pub(crate) fn plan(a: &args::Plan) -> Result<(), Failure> {
    let (card, graph) = if a.model.extension().is_some_and(|e| e == "json") {
        let text = read_text(&a.model, LARGEST_JSON)
            .map_err(|e| Failure { code: 4, message: format!("cannot read {}: {e}", a.model.display()) })?;
        organum::model::architecture(&text)?
    } else {
        let model = nnunet::network(&a.model, a.allow_non_finite)?;
        (model.card().clone(), model.graph().clone())
    };
    let caps = match a.caps.as_str() {
        "default" => DeviceCaps::default(),
        "desktop" => DeviceCaps::desktop(),
        "host" => DeviceCaps::host(),
        file => {
            let text = read_text(Path::new(file), LARGEST_JSON).map_err(|e| Failure::input(format!("cannot read {file}: {e}")))?;
            serde_json::from_str(&text).map_err(|e| Failure::input(format!("{file} is not a list of limits: {e}")))?
        }
    };
    let mut options = organum::PlanOptions::default().with_precision(a.precision.into());
    if a.no_spill {
        options = options.without_spill();
    }
    if a.no_recompute {
        options = options.without_recompute();
    }
    if let Some(bytes) = a.memory {
        options = options.with_budget(bytes);
    }
    organum::plan::check_extent(a.extent, &card)?;
    if a.table {
        return table(&graph, a.extent, &caps, &options);
    }
    let plan = organum::Plan::of_graph(&graph, a.extent, &caps, &options)?;
    if let Some(path) = &a.plot {
        crate::plot::occupancy(plan.occupancy(), path)?;
    }
    let host = host_plan(a, &card, &graph, &caps, &options)?;
    if a.json {
        let mut told = serde_json::to_value(plan.report()).map_err(|e| Failure::internal(e.to_string()))?;
        told["host_memory"] = json!(host);
        say_json(&told);
    } else {
        let bytes = format_bytes(host.peak_bytes);
        say(&format!("{plan}\nhost memory, peak   {bytes} ({} bytes) of a whole segmentation", host.peak_bytes));
        say(&format!("\n{}", plan.occupancy()));
    }
    Ok(())
}

/// The host's memory of a segmentation whose scan has the extent and the grid of the network's input; in windows where the card says
/// so.
fn host_plan(
    a: &args::Plan,
    card: &organum::Card,
    graph: &organum::graph::Graph,
    caps: &DeviceCaps,
    options: &organum::PlanOptions,
) -> Result<HostPlan, Failure> {
    let (classes, scan) = (card.classes(), 4 * u64::from(card.in_channels()) * a.extent.voxels());
    let bytes = [scan, scan, 3 * scan];
    let in_windows = card.mode() == Mode::Window;
    let (needs, extent, options) = if in_windows {
        let windows = Windows::new(card, a.extent)?;
        let export = windows.export_bytes(classes);
        (windows.host_needs(classes, bytes, export), windows.tile(), options.clone().with_output(OutputMode::Logits))
    } else {
        (HostNeeds::at_once(bytes, ExportBytes::of_labels(a.extent)), a.extent, options.clone())
    };
    let session = |memory: Option<u64>| {
        let mut options = options.clone();
        options.budget = memory;
        Ok(organum::Plan::of_graph(graph, extent, caps, &options)?.report().clone())
    };
    let on_host = a.caps == "host";
    Ok(match a.host.host_memory {
        Some(budget) => HostPlan::within(&needs, budget, a.host.host_spill, on_host, a.memory, session)?,
        None => HostPlan::unbounded(&needs, &session(a.memory)?, on_host),
    })
}

/// Budgets of the table in bytes.
const BUDGETS: [Option<u64>; 7] =
    [None, Some(16_000_000_000), Some(8_000_000_000), Some(4_000_000_000), Some(2_000_000_000), Some(1_000_000_000), Some(500_000_000)];

/// `organum plan --table`: Markdown, all figures planned.
fn table(graph: &organum::graph::Graph, extent: organum::Extent, caps: &DeviceCaps, options: &organum::PlanOptions) -> Result<(), Failure> {
    say("| budget | precision | device bytes, planned | to the host and back | work |");
    say("|---|---|---|---|---|");
    for precision in [organum::Elem::F16, organum::Elem::F32] {
        for budget in BUDGETS {
            let mut options = options.clone().with_precision(precision);
            options.budget = budget;
            let asked = budget.map_or_else(|| "none".to_owned(), |b| format!("{} GB", decimal(b)));
            match organum::Plan::of_graph(graph, extent, caps, &options) {
                Ok(plan) => {
                    let r = plan.report();
                    let once = (r.flops - r.recomputed_flops).max(1);
                    let (peak, spilled) = (decimal(r.peak_bytes), decimal(r.spilled_bytes));
                    let work = r.flops as f64 / once as f64;
                    say(&format!("| {asked} | {} | {peak} GB | {spilled} GB | {work:.2}x |", precision.name()));
                }
                Err(e) => match e.smallest_budget() {
                    Some(least) => {
                        say(&format!("| {asked} | {} | does not fit: the smallest is {} GB | | |", precision.name(), decimal(least)))
                    }
                    None => return Err(e.into()),
                },
            }
        }
    }
    Ok(())
}

/// Bytes in decimal gigabytes.
fn decimal(bytes: u64) -> String {
    let text = format!("{:.3}", bytes as f64 / 1e9);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What was found around the tensors of a file.
fn found(checkpoint: &Checkpoint) -> Value {
    let format = match checkpoint.format() {
        CheckpointFormat::Safetensors => "safetensors",
        CheckpointFormat::Torch => "torch",
        CheckpointFormat::TorchScript => "torchscript",
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
pub(crate) fn inspect(a: &args::Inspect) -> Result<(), Failure> {
    if a.model.is_dir() {
        let model = nnunet::network(&a.model, a.allow_non_finite)?;
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
    let pipeline = match (&card.input.nnunet, &card.input.monai) {
        (Some(pipeline), _) => serde_json::to_string(pipeline).map(|p| format!("nnU-Net's {p}")),
        (None, Some(pipeline)) => serde_json::to_string(pipeline).map(|p| format!("MONAI's {p}")),
        (None, None) => Ok(format!(
            "axes {}, spacing {}, intensity {}",
            card.input.axes.map_or_else(|| "as stored".into(), |x| x.to_string()),
            card.input.spacing_mm.map_or_else(|| "as stored".into(), |s| format!("{s:?} mm")),
            card.input.intensity.as_ref().map_or_else(|| "as stored".into(), |i| serde_json::to_string(i).unwrap_or_default())
        )),
    };
    say(&format!("input         {} channel(s), {}", card.in_channels(), pipeline.map_err(|e| Failure::internal(e.to_string()))?));
    say(&format!("labels        {}", (1..card.classes()).map(|c| format!("{c} {}", card.label_name(c))).collect::<Vec<_>>().join(", ")));
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
        let (header, labels) = nifti::read_labels(path)?;
        warnings.add(&nifti::warnings(&header, path))?;
        Ok(labels)
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
