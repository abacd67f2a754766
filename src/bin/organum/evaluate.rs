//! `organum evaluate`: two label maps, or two folders of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use organum::volume::{LabelScore, Summary, Volume, evaluate_at, file, write_whole};
use organum::{Warning, WarningKind};
use serde_json::{Map, Value, json};

use crate::args;
use crate::fail::Failure;
use crate::output::{Warnings, need_different, need_folder, say, say_json};

/// A compared pair.
struct Case {
    name: String,
    scores: Vec<LabelScore>,
}

/// `organum evaluate`.
pub(crate) fn run(a: &args::Evaluate) -> Result<(), Failure> {
    if !(a.tolerance.is_finite() && a.tolerance >= 0.0) {
        return Err(Failure::usage(format!("--tolerance {} is no distance in mm", a.tolerance)));
    }
    if let Some(csv) = &a.csv {
        need_folder(csv)?;
        need_different(&[("--csv", csv)], &[&a.prediction, &a.reference])?;
    }
    let mut warnings = Warnings::new(a.strict);
    let folders = a.prediction.is_dir() || a.reference.is_dir();
    let pairs = if folders {
        pairs(&a.prediction, &a.reference, &mut warnings)?
    } else {
        vec![(file_name(&a.prediction), a.prediction.clone(), a.reference.clone())]
    };
    let mut cases = Vec::new();
    for (name, prediction, reference) in pairs {
        let mut read = |path: &Path| -> Result<Volume<u16>, Failure> {
            let read = file::read_labels(path)?;
            warnings.add(&read.warnings)?;
            Ok(read.labels)
        };
        let base = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let both = format!("{} and {}", base(&prediction), base(&reference));
        let (prediction, reference) = (read(&prediction)?, read(&reference)?);
        let scores = evaluate_at(&prediction, &reference, a.tolerance).map_err(|e| {
            let e = Failure::from(e);
            let which = if folders { &name } else { &both };
            Failure { message: format!("{which}: {}", e.message), ..e }
        })?;
        cases.push(Case { name, scores });
    }
    if let Some(path) = &a.csv {
        let text = csv(&cases, a.tolerance);
        write_whole(path, "scores.csv", |temporary| std::fs::write(temporary, text)).map_err(|e| Failure::writing(&e))?;
    }
    match (&cases[..], folders) {
        ([case], false) if a.json => {
            let (labels, mean) = of_case(case);
            say_json(&json!({"labels": labels, "mean": mean, "tolerance_mm": a.tolerance, "warnings": warnings.json()}));
        }
        ([case], false) => table(case, a.tolerance),
        _ if a.json => {
            let each = |case: &Case| {
                let (labels, mean) = of_case(case);
                (case.name.clone(), json!({"labels": labels, "mean": mean}))
            };
            let all: Map<String, Value> = cases.iter().map(each).collect();
            let (labels, mean) = over_cases(&cases);
            let labels: Map<String, Value> = labels.into_iter().map(|(label, mean)| (label.to_string(), mean.json())).collect();
            say_json(&json!({"cases": all, "labels": labels, "mean": mean, "tolerance_mm": a.tolerance, "warnings": warnings.json()}));
        }
        _ => tables(&cases, a.tolerance),
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Endings of label maps, of which the longest counts.
const ENDINGS: [&str; 9] = [".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh"];

/// The label maps of a folder by their names without endings.
fn listed(folder: &Path) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let unreadable = |e: std::io::Error| Failure::input(format!("the folder {} cannot be read: {e}", folder.display()));
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = file_name(&path);
        let lower = name.to_lowercase();
        let Some(ending) = ENDINGS.into_iter().find(|ending| lower.ends_with(ending)) else { continue };
        let stem = name[..name.len() - ending.len()].to_owned();
        if !path.is_file() || name.starts_with('.') {
            continue;
        }
        if let Some(other) = files.insert(stem, path) {
            let (other, folder) = (file_name(&other), folder.display());
            return Err(Failure::input(format!("{folder} holds both {other} and {name}, which are one case; remove one")));
        }
    }
    Ok(files)
}

/// The cases of two folders by name. Every reference needs a prediction: means over those that are
/// there would flatter.
fn pairs(prediction: &Path, reference: &Path, warnings: &mut Warnings) -> Result<Vec<(String, PathBuf, PathBuf)>, Failure> {
    for (path, other) in [(prediction, reference), (reference, prediction)] {
        if !path.is_dir() {
            let (path, other) = (path.display(), other.display());
            return Err(Failure::usage(format!("{other} is a folder and {path} is none; give two files or two folders")));
        }
    }
    let (mut predictions, references) = (listed(prediction)?, listed(reference)?);
    if references.is_empty() {
        return Err(Failure::input(format!("the folder {} has no label maps ({})", reference.display(), ENDINGS.join(", "))));
    }
    let some = |names: Vec<&String>| {
        let first: Vec<&str> = names.iter().take(5).map(|name| name.as_str()).collect();
        format!("{}{}", first.join(", "), if names.len() > 5 { ", .." } else { "" })
    };
    let missing: Vec<&String> = references.keys().filter(|name| !predictions.contains_key(*name)).collect();
    if !missing.is_empty() {
        let (n, of, folder) = (missing.len(), references.len(), prediction.display());
        return Err(Failure::input(format!("{n} of {of} references have no prediction in {folder}: {}", some(missing))));
    }
    let beside: Vec<&String> = predictions.keys().filter(|name| !references.contains_key(*name)).collect();
    if !beside.is_empty() {
        let text = format!("{} predictions have no reference and are left out: {}", beside.len(), some(beside));
        warnings.add(&[Warning::new(WarningKind::Result, text)])?;
    }
    let pair = |(name, reference): (String, PathBuf)| predictions.remove(&name).map(|prediction| (name, prediction, reference));
    Ok(references.into_iter().filter_map(pair).collect())
}

/// The scores of a case by label, and its means.
fn of_case(case: &Case) -> (Map<String, Value>, Summary) {
    let one = |s: &LabelScore| {
        let score = json!({
            "dice": s.dice,
            "hd95_mm": s.hd95_mm,
            "nsd": s.nsd,
            "voxels_prediction": s.voxels_prediction,
            "voxels_reference": s.voxels_reference,
            "ml_prediction": s.ml_prediction,
            "ml_reference": s.ml_reference,
            "difference_ml": s.difference_ml(),
            "difference": s.difference(),
        });
        (s.label.to_string(), score)
    };
    (case.scores.iter().map(one).collect(), Summary::of(&case.scores))
}

/// The means of a label over the cases, each over those that have a figure.
#[derive(Default)]
struct LabelMean<'a> {
    dice: Vec<f64>,
    hd95_mm: Vec<f64>,
    nsd: Vec<f64>,
    difference_ml: Vec<f64>,
    missed: Vec<&'a str>,
    false_cases: Vec<&'a str>,
}

fn mean(values: &[f64]) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "cases are few")]
    let n = values.len() as f64;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / n)
}

impl LabelMean<'_> {
    fn json(&self) -> Value {
        json!({
            "dice": mean(&self.dice),
            "dice_cases": self.dice.len(),
            "hd95_mm": mean(&self.hd95_mm),
            "hd95_cases": self.hd95_mm.len(),
            "nsd": mean(&self.nsd),
            "difference_ml": mean(&self.difference_ml),
            "missed": self.missed,
            "false_cases": self.false_cases,
        })
    }
}

/// The means of each label over the cases, and the means over the labels of these.
fn over_cases(cases: &[Case]) -> (BTreeMap<u16, LabelMean<'_>>, Value) {
    let mut labels: BTreeMap<u16, LabelMean<'_>> = BTreeMap::new();
    for case in cases {
        for s in &case.scores {
            let label = labels.entry(s.label).or_default();
            label.dice.extend(s.dice);
            label.hd95_mm.extend(s.hd95_mm);
            label.nsd.extend(s.nsd);
            label.difference_ml.push(s.difference_ml());
            if s.voxels_prediction == 0 {
                label.missed.push(&case.name);
            }
            if s.voxels_reference == 0 {
                label.false_cases.push(&case.name);
            }
        }
    }
    let dice: Vec<f64> = labels.values().filter_map(|l| mean(&l.dice)).collect();
    let hd95: Vec<f64> = labels.values().filter_map(|l| mean(&l.hd95_mm)).collect();
    let nsd: Vec<f64> = labels.values().filter_map(|l| mean(&l.nsd)).collect();
    let missed: usize = labels.values().map(|l| l.missed.len()).sum();
    let false_labels: usize = labels.values().map(|l| l.false_cases.len()).sum();
    let mean = json!({
        "dice": mean(&dice),
        "dice_labels": dice.len(),
        "hd95_mm": mean(&hd95),
        "hd95_labels": hd95.len(),
        "nsd": mean(&nsd),
        "cases": cases.len(),
        "missed": missed,
        "false_labels": false_labels,
    });
    (labels, mean)
}

fn show(x: Option<f64>) -> String {
    x.map_or_else(|| "-".into(), |v| format!("{v:.4}"))
}

fn head(tolerance: f64) {
    say(&format!("label      Dice   HD95 mm       NSD  difference ml   NSD at {tolerance} mm"));
}

fn table(case: &Case, tolerance: f64) {
    let side = |s: &LabelScore| match (s.voxels_prediction, s.voxels_reference) {
        (0, _) => "   missed: in the reference alone",
        (_, 0) => "   false: in the prediction alone",
        _ => "",
    };
    head(tolerance);
    for s in &case.scores {
        let (dice, hd95, nsd) = (show(s.dice), show(s.hd95_mm), show(s.nsd));
        say(&format!("{:<6} {dice:>8} {hd95:>9} {nsd:>9} {:>14.3}{}", s.label, s.difference_ml(), side(s)));
    }
    let m = Summary::of(&case.scores);
    say(&format!(
        "{:<6} {:>8} {:>9} {:>9}   Dice of {} labels, HD95 of the {} that both have; {} missed, {} false",
        "mean",
        show(m.dice),
        show(m.hd95_mm),
        show(m.nsd),
        m.dice_labels,
        m.hd95_labels,
        m.missed.len(),
        m.false_labels.len()
    ));
}

fn tables(cases: &[Case], tolerance: f64) {
    for case in cases {
        let m = Summary::of(&case.scores);
        let (dice, hd95, nsd) = (show(m.dice), show(m.hd95_mm), show(m.nsd));
        let (name, labels) = (&case.name, m.dice_labels);
        say(&format!(
            "{name}: Dice {dice}, HD95 {hd95} mm, NSD {nsd} of {labels} labels; {} missed, {} false",
            m.missed.len(),
            m.false_labels.len()
        ));
    }
    let (labels, m) = over_cases(cases);
    head(tolerance);
    for (number, l) in &labels {
        let (dice, hd95, nsd) = (show(mean(&l.dice)), show(mean(&l.hd95_mm)), show(mean(&l.nsd)));
        let difference = mean(&l.difference_ml).unwrap_or_default();
        let (n, both) = (l.dice.len(), l.hd95_mm.len());
        let sides = format!("{} missed, {} false", l.missed.len(), l.false_cases.len());
        say(&format!("{number:<6} {dice:>8} {hd95:>9} {nsd:>9} {difference:>14.3}   of {n} cases, HD95 of {both}; {sides}"));
    }
    let number = |key: &str| show(m[key].as_f64());
    let (dice, hd95, nsd) = (number("dice"), number("hd95_mm"), number("nsd"));
    let what = format!("over {} labels of {} cases, HD95 over {}", m["dice_labels"], m["cases"], m["hd95_labels"]);
    say(&format!("{:<6} {dice:>8} {hd95:>9} {nsd:>9}   {what}; {} missed, {} false", "mean", m["missed"], m["false_labels"]));
}

/// A line for each label of each case; a figure that is not defined is empty.
fn csv(cases: &[Case], tolerance: f64) -> String {
    let mut text =
        "case,label,dice,hd95_mm,nsd,tolerance_mm,voxels_prediction,voxels_reference,ml_prediction,ml_reference,difference_ml\n".to_owned();
    let number = |x: Option<f64>| x.map_or_else(String::new, |v| v.to_string());
    for case in cases {
        let quoted = case.name.contains([',', '"', '\n', '\r']);
        let name = if quoted { format!("\"{}\"", case.name.replace('"', "\"\"")) } else { case.name.clone() };
        for s in &case.scores {
            let (dice, hd95, nsd) = (number(s.dice), number(s.hd95_mm), number(s.nsd));
            let voxels = format!("{},{}", s.voxels_prediction, s.voxels_reference);
            let ml = format!("{},{},{}", s.ml_prediction, s.ml_reference, s.difference_ml());
            // a String takes all that is written
            let _ = writeln!(text, "{name},{},{dice},{hd95},{nsd},{tolerance},{voxels},{ml}", s.label);
        }
    }
    text
}
