//! `organum report`, and what a report tells of a segmentation.

use std::path::{Path, PathBuf};

use organum::volume::file::{self, cases::sha256};
use organum::volume::picture::{self, ReportText};
use organum::{Segmentation, Segmenter, Warning, format_bytes};

use crate::args;
use crate::fail::Failure;
use crate::output::{Warnings, need_different, need_folder};
use crate::outputs::{Outputs, legend_of, write_text};

/// The name of a case by its label map.
fn title(labels: &Path) -> String {
    let name = labels.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let ending = file::LabelFormat::ENDINGS.into_iter().find(|(ending, _)| name.to_lowercase().ends_with(ending));
    ending.map_or(name.clone(), |(ending, _)| name[..name.len() - ending.len()].to_owned())
}

/// Files with their hashes, as far as they are files.
fn hashed(name: &str, paths: &[PathBuf]) -> Vec<(String, String)> {
    let one = |path: &PathBuf| match sha256(path) {
        Ok(hash) => format!("{} (SHA-256 {hash})", path.display()),
        Err(_) => path.display().to_string(),
    };
    paths.iter().map(|path| (name.to_owned(), one(path))).collect()
}

fn told(warnings: &[Warning]) -> Vec<String> {
    warnings.iter().map(ToString::to_string).collect()
}

/// Facts and warnings of a segmentation for a report.
pub(crate) fn text(outputs: &Outputs, result: &Segmentation, segmenter: &Segmenter) -> ReportText {
    let run = &result.report.run;
    let mut facts = hashed("input", &outputs.inputs);
    facts.extend(hashed("model", outputs.model.as_slice()));
    facts.push(("network".into(), segmenter.model().card().architecture.clone()));
    if let Some(windows) = result.report.windows {
        facts.push(("windows".into(), format!("{} of {} voxels, {} passes", windows.count, windows.extent, windows.passes)));
    }
    if let Some(folds) = &result.report.folds {
        facts.push(("folds".into(), folds.join(", ")));
    }
    facts.push(("device memory".into(), format_bytes(run.plan.peak_bytes)));
    facts.push(("network's time".into(), format!("{:.2} s", run.running.as_secs_f64())));
    let title = outputs.labels.as_deref().map_or_else(String::new, title);
    ReportText { title, warnings: told(&result.warnings), facts }
}

/// `organum report`.
pub(crate) fn run(a: &args::Report) -> Result<(), Failure> {
    need_folder(&a.output)?;
    need_different(&[("--output", a.output.as_path())], &[&a.scan, &a.labels])?;
    let mut warnings = Warnings::new(false);
    let scan = file::read(&a.scan)?;
    let labels = file::read_labels(&a.labels)?;
    warnings.add(&scan.warnings)?;
    warnings.add(&labels.warnings)?;
    let legend = legend_of(a.model.as_deref(), labels.legend)?;
    let facts = [hashed("scan", std::slice::from_ref(&a.scan)), hashed("labels", std::slice::from_ref(&a.labels))].concat();
    let told = told(&[scan.warnings, labels.warnings].concat());
    let text = ReportText { title: title(&a.labels), warnings: told, facts };
    write_text(&a.output, &picture::report(&scan.image, &labels.labels, &legend, a.grey, &text)?)
}
