//! `organum segment`: one scan; `batch.rs` has many.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use organum::model::Mode;
use organum::volume::Volume;
use organum::volume::file::{self, ReadOptions, Scan};
use organum::{Segmentation, Segmenter};
use serde_json::{Map, Value, json};

use crate::args;
use crate::batch;
use crate::device::{Opened, Took};
use crate::fail::Failure;
use crate::models;
use crate::output::{Warnings, need_different, say, say_json};
use crate::outputs::{Outputs, table, volumes};

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

/// The model and the device, opened once for all scans.
pub(crate) struct Opening<'a> {
    a: &'a args::Segment,
    pub(crate) device: Opened,
    pub(crate) segmenter: Segmenter,
    /// The further models of an ensemble.
    others: Vec<Segmenter>,
}

/// A scan that was segmented and written.
pub(crate) struct Done {
    result: Segmentation,
    took: Took,
    warnings: Warnings,
    started: Instant,
}

impl<'a> Opening<'a> {
    /// Opens model and device. `keep` keeps the session for the next scan of the same extent.
    pub(crate) fn new(a: &'a args::Segment, networks: organum::Networks, output: &Path, keep: bool) -> Result<Self, Failure> {
        if a.model.len() > 1 && (a.previous.is_some() || a.attention.is_some()) {
            return Err(Failure::usage("--previous, --attention: they go with one model, not with an ensemble"));
        }
        let device = Opened::new(&a.run)?;
        let mut options = Opened::options(&a.run);
        options.mode = a.mode.map(Mode::from);
        (options.probabilities, options.attention) = (a.probabilities.is_some(), a.attention.is_some());
        options.raw_voxels = a.raw;
        (options.overlap, options.step, options.unmirrored) = (a.overlap, a.step_size, a.no_mirror);
        options.close_session &= !keep;
        a.host.bound(&mut options, output);
        let load = loading(a)?;
        let other = |path: &PathBuf| Ok(Segmenter::new(models::open(path, &load)?, device.device.clone(), options.clone())?);
        let others = a.model[1..].iter().map(other).collect::<Result<Vec<_>, Failure>>()?;
        let segmenter = Segmenter::new(networks, device.device.clone(), options)?;
        segmenter.check_ensemble(&others)?;
        let drawn = [("--overlay", &a.overlay), ("--report", &a.report)].into_iter().find(|(_, path)| path.is_some());
        if let Some((option, _)) = drawn.filter(|_| !segmenter.keeps_grid()) {
            let text = "the bundle inverts nothing, its labels lie on another grid than the scan";
            return Err(Failure::usage(format!("{option}: {text}")));
        }
        let card = segmenter.model().card();
        if a.previous.is_some() && card.scan_channels() == card.in_channels() {
            return Err(Failure::usage("--previous: the model is no second stage of a cascade, which takes labels of a previous one"));
        }
        let format = file::LabelFormat::of(output).ok();
        if segmenter.model().card().labels_overlap() {
            let one_a_voxel = [
                ("--overlay", &a.overlay),
                ("--statistics", &a.statistics),
                ("--masks", &a.masks),
                ("--surfaces", &a.surfaces),
                ("--report", &a.report),
            ];
            let other = format.is_some_and(|format| format != file::LabelFormat::Nifti);
            let named = one_a_voxel.into_iter().find(|(_, path)| path.is_some()).map(|(option, _)| option);
            if let Some(option) = named.or(other.then_some("--output")) {
                let text = "the model's labels overlap; a mask of each comes in one file of four dimensions, .nii or .nii.gz";
                return Err(Failure::usage(format!("{option}: {text}")));
            }
        }
        let dicom = format == Some(file::LabelFormat::Dicom);
        if dicom && !segmenter.keeps_grid() {
            let text = "--output: the bundle inverts nothing, its labels do not lie on the images of a DICOM series";
            return Err(Failure::usage(text));
        }
        Ok(Self { a, device, segmenter, others })
    }

    /// Segments a scan that was read from `started` on, and writes the result.
    pub(crate) fn one(&mut self, mut scan: Scan, outputs: &Outputs, started: Instant) -> Result<Done, Failure> {
        let mut warnings = Warnings::new(self.a.strict);
        let before = self.segmenter.check(&scan)?;
        warnings.add(&before)?;
        let load: Duration = started.elapsed();
        if !self.others.is_empty() {
            let (segmenter, others) = (&mut self.segmenter, &mut self.others);
            let result = self.device.watch(&self.a.run, |how| segmenter.segment_with_blocking(others, &scan, how))?;
            return self.written((scan, result), warnings, before.len(), outputs, (load, started));
        }
        let previous = self.previous(&scan, outputs)?;
        let mut seen = organum::scan::Scan::from(&scan);
        seen.previous = previous.as_ref();
        let mut prepared = self.segmenter.prepare(seen)?;
        drop(previous);
        if !outputs.need_scan() {
            scan.image.data = Vec::new();
            prepared = prepared.without_scan();
        }
        let segmenter = &mut self.segmenter;
        let result = self.device.watch(&self.a.run, |how| segmenter.segment_prepared_blocking(prepared, how))?;
        self.written((scan, result), warnings, before.len(), outputs, (load, started))
    }

    /// Writes a result; `told` of its warnings were shown before.
    fn written(
        &self,
        (scan, result): (Scan, Segmentation),
        mut warnings: Warnings,
        told: usize,
        outputs: &Outputs,
        (load, started): (Duration, Instant),
    ) -> Result<Done, Failure> {
        warnings.add(&result.warnings[told..])?;
        outputs.write(&scan, &result, &self.segmenter)?;
        let took = self.device.took(&self.a.run, result.report.run.clone(), load);
        Ok(Done { result, took, warnings, started })
    }
}

impl Opening<'_> {
    /// The labels of a cascade's previous stage: those of `--previous`, or what its model finds.
    fn previous(&mut self, scan: &Scan, outputs: &Outputs) -> Result<Option<Volume<u16>>, Failure> {
        if let Some(path) = &outputs.previous {
            return Ok(Some(file::read_labels(path)?.labels));
        }
        let segmenter = &mut self.segmenter;
        Ok(self.device.watch(&self.a.run, |how| segmenter.previous_stage_blocking(scan, how))?)
    }
}

impl Done {
    /// The JSON of a scan.
    pub(crate) fn json(&self) -> Value {
        let mut report = self.took.json(self.started.elapsed());
        report["labels"] = Value::Object(volumes(&self.result));
        report["warnings"] = self.warnings.json();
        for (key, value) in further(&self.result) {
            report[key] = value;
        }
        report
    }
}

/// Options to load the model.
pub(crate) fn loading(a: &args::Segment) -> Result<organum::LoadOptions, Failure> {
    let mut load = models::options(&a.fold, a.checkpoint.as_deref(), a.run.allow_non_finite);
    load.weights.clone_from(&a.weights);
    if let Some(file) = &a.postprocessing {
        load.postprocessing = Some(organum::nnunet::postprocessing(file)?);
    } else if a.no_postprocessing {
        load.postprocessing = Some(Vec::new());
    }
    Ok(load)
}

/// Options to read scans.
pub(crate) fn reading(a: &args::Segment) -> ReadOptions {
    let mut reading = ReadOptions::default();
    reading.series.clone_from(&a.series);
    reading
}

/// `organum segment`.
pub(crate) fn run(a: &args::Segment) -> Result<(), Failure> {
    let started = Instant::now();
    if let Some(pattern) = batch::pattern(&a.output) {
        return batch::run(a, &pattern);
    }
    if a.resume || a.shard.is_some() || a.manifest.is_some() {
        let text = "--resume, --shard and --manifest are for many scans: --output must be a folder, or have {case} in its name";
        return Err(Failure::usage(text));
    }
    let mut outputs = Outputs::of(a, &a.output, None);
    outputs.check()?;
    let networks = models::open(&a.model[0], &loading(a)?)?;
    let inputs = channel_files(a.inputs(), networks.first.card().scan_channels());
    let read: Vec<&Path> = inputs.iter().chain(&a.model).chain(&a.previous).map(PathBuf::as_path).collect();
    need_different(&outputs.named(), &read)?;
    outputs.inputs.clone_from(&inputs);
    let mut opening = Opening::new(a, networks, &a.output, false)?;
    let scan = file::read_all(&inputs, &reading(a)).map_err(|e| batch::explain(e, a))?;
    let done = opening.one(scan, &outputs, started)?;
    if a.run.json {
        say_json(&done.json());
    } else {
        say(&table(&done.result.volumes));
        say(&done.took.summary(started.elapsed()));
    }
    Ok(())
}

/// The files of a scan: those given; where the only one ends in `_0000`, as nnU-Net names channels,
/// and the model needs several, it and those that follow.
pub(crate) fn channel_files(given: &[PathBuf], channels: u32) -> Vec<PathBuf> {
    let [only] = given else { return given.to_vec() };
    let name = only.file_name().unwrap_or_default().to_string_lossy();
    match name.rsplit_once("_0000.") {
        Some((case, ending)) if channels > 1 => (0..channels).map(|c| only.with_file_name(format!("{case}_{c:04}.{ending}"))).collect(),
        _ => given.to_vec(),
    }
}
