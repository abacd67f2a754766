//! `organum segment`, and what of it the demo shares.

use std::path::{Path, PathBuf};
use std::time::Instant;

use organum::model::Mode;
use organum::segment::LabelVolume;
use organum::volume::{VolumeError, nifti, picture};
use organum::{Segmentation, Segmenter};
use serde_json::{Map, Value, json};

use crate::args;
use crate::device::Opened;
use crate::fail::Failure;
use crate::models;
use crate::output::{Warnings, need_different, need_folder, say, say_json};

/// The files of a result.
#[derive(Default)]
pub(crate) struct Outputs<'a> {
    pub(crate) labels: Option<&'a Path>,
    pub(crate) overlay: Option<&'a Path>,
    pub(crate) probabilities: Option<&'a Path>,
    pub(crate) attention: Option<&'a Path>,
}

impl Outputs<'_> {
    /// Writes a result. Its grid is the scan's, or one of its own.
    pub(crate) fn write(&self, scan: &nifti::Scan, result: &Segmentation, own_grid: bool) -> Result<(), Failure> {
        let failed = |e: VolumeError| Failure::writing(&e);
        let own = own_grid.then(|| nifti::header_on(&scan.header, &result.labels));
        let header = own.as_ref().unwrap_or(&scan.header);
        if let Some(path) = self.labels {
            nifti::write_labels(path, header, &result.labels).map_err(failed)?;
        }
        if let (Some(path), Some(maps)) = (self.probabilities, &result.probabilities) {
            nifti::write_probabilities(path, header, maps).map_err(failed)?;
        }
        if let Some(path) = self.overlay {
            picture::overlay(&scan.image, &result.labels)?.save(path).map_err(failed)?;
        }
        if let (Some(path), Some(a)) = (self.attention, &result.attention) {
            picture::attention(&a.image, &a.maps, a.at)?.save(path).map_err(failed)?;
        }
        Ok(())
    }
}

/// `{name: {"voxels", "ml"}}` of every class but the background.
pub(crate) fn volumes(result: &Segmentation) -> Map<String, Value> {
    let volume = |v: &LabelVolume| (v.name.clone(), json!({"voxels": v.voxels, "ml": v.ml}));
    result.volumes.iter().map(volume).collect()
}

/// Volumes as lines.
fn table(volumes: &[LabelVolume]) -> String {
    let line = |v: &LabelVolume| format!("{:<28} {:>9.3} ml {:>10} voxels", v.name, v.ml, v.voxels);
    volumes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Further keys of the JSON: windows or slices, folds, and which volume tokens a window saw.
fn further(result: &Segmentation) -> Map<String, Value> {
    let mut keys = Map::new();
    keys.insert("host_memory".into(), json!(result.report.host_memory));
    if let Some(w) = result.report.windows {
        let windows = json!({"count": w.count, "passes": w.passes, "extent": w.extent.axes()});
        keys.insert("windows".into(), windows);
    }
    if let Some((count, extent)) = result.report.slices {
        keys.insert("slices".into(), json!({"count": count, "extent": extent}));
    }
    if let Some(folds) = &result.report.folds {
        keys.insert("folds".into(), json!(folds));
    }
    if let Some(seen) = result.attention.as_ref().and_then(|a| a.tokens.as_ref()) {
        let stages = seen.stages.iter().map(|s| json!({"module": s.module, "weights": s.weights}));
        let stages: Vec<Value> = stages.collect();
        let tokens = seen.stages.first().map(|s| s.tokens);
        let (window, position) = (seen.window, seen.position);
        let seen = json!({"window": window, "position": position, "tokens": tokens, "stages": stages});
        keys.insert("volume_tokens".into(), seen);
    }
    keys
}

/// `organum segment`.
pub(crate) fn run(a: &args::Segment) -> Result<(), Failure> {
    let started = Instant::now();
    for path in [Some(&a.output), a.probabilities.as_ref()].into_iter().flatten() {
        let name = path.to_string_lossy();
        if !(name.ends_with(".nii") || name.ends_with(".nii.gz")) {
            return Err(Failure::usage(format!("{name} must end in .nii or .nii.gz")));
        }
    }
    let attention = a.attention.as_ref().map(|folder| folder.join("attention.png"));
    let outputs = Outputs {
        labels: Some(&a.output),
        overlay: a.overlay.as_deref(),
        probabilities: a.probabilities.as_deref(),
        attention: attention.as_deref(),
    };
    let named: Vec<(&str, &Path)> = [
        ("--output", outputs.labels),
        ("--probabilities", outputs.probabilities),
        ("--overlay", outputs.overlay),
        ("--attention", outputs.attention),
    ]
    .into_iter()
    .filter_map(|(option, path)| Some((option, path?)))
    .collect();
    // the folder of --attention is made
    named.iter().filter(|o| o.0 != "--attention").try_for_each(|(_, path)| need_folder(path))?;
    let networks = models::open(&a.model, a.fold.as_deref(), a.run.allow_non_finite)?;
    let inputs = channel_files(&a.input, networks.first.card().in_channels());
    let read: Vec<&Path> = inputs.iter().chain([&a.model]).map(PathBuf::as_path).collect();
    need_different(&named, &read)?;

    let device = Opened::new(&a.run)?;
    let mut options = Opened::options(&a.run);
    options.mode = a.mode.map(Mode::from);
    (options.probabilities, options.attention) = (a.probabilities.is_some(), a.attention.is_some());
    options.raw_voxels = a.raw;
    a.host.bound(&mut options, &a.output);
    let mut segmenter = Segmenter::new(networks, device.device.clone(), options)?;
    if a.overlay.is_some() && !segmenter.keeps_grid() {
        let text = "--overlay: the bundle inverts nothing, its labels lie on another grid than the scan";
        return Err(Failure::usage(text));
    }
    if a.overlay.is_some() && segmenter.model().card().labels_overlap() {
        let text = "--overlay: the model's labels overlap, and a picture shows one a voxel";
        return Err(Failure::usage(text));
    }
    let mut scan = nifti::read_channels(&inputs)?;
    let mut warnings = Warnings::new(a.strict);
    let before = segmenter.check(&scan)?;
    warnings.add(&before)?;
    if let Some(folder) = &a.attention {
        let failed = |e| Failure::usage(format!("cannot create {}: {e}", folder.display()));
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let load = started.elapsed();
    let mut prepared = segmenter.prepare(&scan)?;
    if a.overlay.is_none() {
        scan.image.data = Vec::new();
        prepared = prepared.without_scan();
    }
    let result = device.watch(&a.run, |how| segmenter.segment_prepared_blocking(prepared, how))?;
    warnings.add(&result.warnings[before.len()..])?;
    outputs.write(&scan, &result, !segmenter.keeps_grid())?;
    let took = device.took(&a.run, result.report.run.clone(), load);
    if a.run.json {
        let mut report = took.json(started.elapsed());
        report["labels"] = Value::Object(volumes(&result));
        report["warnings"] = warnings.json();
        for (key, value) in further(&result) {
            report[key] = value;
        }
        say_json(&report);
    } else {
        say(&table(&result.volumes));
        say(&took.summary(started.elapsed()));
    }
    Ok(())
}

/// The files of a scan: those given; where the only one ends in `_0000`, as nnU-Net names channels,
/// and the model needs several, it and those that follow.
fn channel_files(given: &[PathBuf], channels: u32) -> Vec<PathBuf> {
    let [only] = given else { return given.to_vec() };
    let name = only.file_name().unwrap_or_default().to_string_lossy();
    let endings = ["_0000.nii.gz", "_0000.nii"];
    match endings.iter().find_map(|ending| Some((name.strip_suffix(ending)?, &ending[5..]))) {
        Some((case, ending)) if channels > 1 => (0..channels).map(|c| only.with_file_name(format!("{case}_{c:04}{ending}"))).collect(),
        _ => given.to_vec(),
    }
}
