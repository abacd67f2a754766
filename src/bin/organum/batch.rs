//! Many scans through one model: reading ahead, a bad one told and passed over, a line for each in
//! a manifest.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use organum::volume::VolumeError;
use organum::volume::file;
use organum::volume::file::cases::{Case, cases, sha256};
use serde_json::{Value, json};

use crate::args;
use crate::fail::Failure;
use crate::interrupt;
use crate::models;
use crate::output::{need_different, note, say, say_json};
use crate::outputs::{Outputs, make};
use crate::segment::{Opening, reading};

/// Some scans failed.
const PARTIAL: u8 = 7;

/// The pattern of the names of label maps, if `--output` is for many scans.
pub(crate) fn pattern(output: &Path) -> Option<PathBuf> {
    let text = output.to_string_lossy();
    if text.contains("{case}") {
        return Some(output.to_path_buf());
    }
    (output.is_dir() || text.ends_with(['/', '\\'])).then(|| output.join("{case}.nii.gz"))
}

/// An error of a single scan, with what may have been meant.
pub(crate) fn explain(e: VolumeError, a: &args::Segment) -> Failure {
    let many = a.inputs().iter().any(|path| path.is_dir() || path.to_string_lossy().contains(['*', '@']));
    let mut failure = Failure::from(e);
    if many {
        failure.message.push_str("; for many scans --output is a folder, or has {case} in its name");
    }
    failure
}

/// The file that tells of every scan.
struct Manifest(Option<File>);

impl Manifest {
    fn open(a: &args::Segment, pattern: &Path) -> Result<Self, Failure> {
        let folder = pattern.parent().filter(|folder| !folder.to_string_lossy().contains("{case}"));
        let Some(path) = a.manifest.clone().or_else(|| Some(folder?.join("manifest.jsonl"))) else { return Ok(Self(None)) };
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(|e| Failure::usage(format!("--manifest: cannot write {}: {e}", path.display())))?;
        Ok(Self(Some(file)))
    }

    fn add(&mut self, line: &Value) -> Result<(), Failure> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        writeln!(file, "{line}").map_err(|e| Failure::internal(format!("the manifest cannot be written: {e}")))
    }
}

/// The hashes of files, as far as they can be read.
fn hashes(paths: &[PathBuf]) -> Vec<Value> {
    paths.iter().map(|path| json!({"path": path, "sha256": sha256(path).ok()})).collect()
}

/// `organum segment` for many scans.
pub(crate) fn run(a: &args::Segment, pattern: &Path) -> Result<(), Failure> {
    let of_case = |option: &str, path: &Option<PathBuf>| match path {
        Some(path) if !path.to_string_lossy().contains("{case}") => {
            Err(Failure::usage(format!("{option} {}: with many scans it must have {{case}} in it", path.display())))
        }
        _ => Ok(()),
    };
    for (option, path) in [
        ("--overlay", &a.overlay),
        ("--probabilities", &a.probabilities),
        ("--attention", &a.attention),
        ("--masks", &a.masks),
        ("--surfaces", &a.surfaces),
        ("--report", &a.report),
        ("--label-table", &a.label_table),
        ("--statistics", &a.statistics),
        ("--previous", &a.previous),
    ] {
        of_case(option, path)?;
    }
    let networks = models::open(&a.model[0], &super::segment::loading(a)?)?;
    let mut all = cases(a.inputs(), networks.first.card().scan_channels())?;
    if let Some([i, n]) = a.shard {
        all = all.into_iter().skip(i - 1).step_by(n).collect();
    }
    let total = all.len();
    let with_outputs = |case: Case| {
        let mut outputs = Outputs::of(a, pattern, Some(&case.name));
        outputs.inputs.clone_from(&case.files);
        (case, outputs)
    };
    let mut written: Vec<(Case, Outputs)> = all.into_iter().map(with_outputs).collect();
    if a.resume {
        written.retain(|(_, outputs)| !outputs.labels.as_ref().is_some_and(|path| path.exists()));
    }
    let skipped = total - written.len();
    for (case, outputs) in &written {
        for (_, path) in outputs.named() {
            make(path.parent().unwrap_or(Path::new(".")))?;
        }
        outputs.check()?;
        let read: Vec<&Path> = case.files.iter().chain(&a.model).chain(&outputs.previous).map(PathBuf::as_path).collect();
        need_different(&outputs.named(), &read)?;
    }
    if let Some(folder) = pattern.parent().filter(|folder| !folder.to_string_lossy().contains("{case}")) {
        make(folder)?;
    }
    let mut manifest = Manifest::open(a, pattern)?;
    let mut model = json!(hashes(&a.model));
    if a.model.len() == 1 {
        model = model[0].take();
    }
    let mut opening = Opening::new(a, networks, pattern, true)?;
    let device = json!({"name": opening.device.device.name(), "backend": opening.device.device.backend()});
    let mut failed = Vec::new();
    let mut lines = Vec::new();
    // with a bound of the host's memory a scan is read once the one before is done
    let ahead = usize::from(a.host.host_memory.is_none());
    std::thread::scope(|scope| -> Result<(), Failure> {
        let (send, receive) = sync_channel(0);
        let (ask, asked) = sync_channel::<()>(2);
        let cases = &written;
        scope.spawn(move || {
            for (case, _) in cases {
                if asked.recv().is_err() {
                    return;
                }
                let started = Instant::now();
                let scan = file::read_all(&case.files, &reading(a));
                if send.send((started, scan, hashes(&case.files))).is_err() {
                    return;
                }
            }
        });
        for _ in 0..ahead {
            let _ = ask.send(());
        }
        for (n, (case, outputs)) in cases.iter().enumerate() {
            let _ = ask.send(());
            let Ok((started, scan, inputs)) = receive.recv() else { break };
            let done = scan.map_err(Failure::from).and_then(|scan| opening.one(scan, outputs, started));
            let mut line = json!({
                "case": case.name, "inputs": inputs, "model": model, "version": env!("CARGO_PKG_VERSION"),
                "device": device, "output": outputs.labels,
            });
            match done {
                Ok(done) => {
                    line["status"] = "done".into();
                    line["report"] = done.json();
                    if !a.run.json && !a.run.quiet {
                        say(&format!("{}/{} {}: {:.1} s", n + 1, cases.len(), case.name, started.elapsed().as_secs_f64()));
                    }
                }
                Err(failure) if interrupt::handle().is_raised() => return Err(failure),
                Err(failure) => {
                    note(&format!("organum: {}/{} {}: {}", n + 1, cases.len(), case.name, failure.message));
                    line["status"] = "failed".into();
                    line["error"] = json!({"code": failure.code, "message": failure.message});
                    failed.push(case.name.clone());
                }
            }
            manifest.add(&line)?;
            lines.push(line);
        }
        Ok(())
    })?;
    let done = written.len() - failed.len();
    if a.run.json {
        say_json(&json!({"cases": lines, "done": done, "failed": failed, "skipped": skipped}));
    } else {
        say(&format!("{done} of {total} scans segmented, {} failed, {skipped} were there", failed.len()));
    }
    if failed.is_empty() {
        return Ok(());
    }
    let shown = failed.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if failed.len() > 5 { ", .." } else { "" };
    Err(Failure { code: PARTIAL, message: format!("{} of {} scans failed: {shown}{more}", failed.len(), written.len()) })
}
