//! `--host-memory`: what the process holds against what it tells, the same labels in files and in
//! memory, and what is refused.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "figures belong to a test's output")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use organum::Extent;
use organum::model::random_weights;
use organum::volume::{Volume, nifti};
use serde_json::{Value, json};

/// Bytes beside those that are told: the program, stacks and heaps of threads, buffers of files.
const BESIDES: u64 = 64 << 20;

/// A model with nnU-Net v2's pipeline, and a scan of 1 mm.
struct Desk {
    folder: tempfile::TempDir,
    model: PathBuf,
    scan: PathBuf,
}

impl Desk {
    fn new(classes: u32, extent: Extent, patch: [u32; 3], overlap: f64, spacing: f64, mirror: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut card: Value = serde_json::from_str(&support::nnunet_card(3, 1, classes, &[4, 4])).expect("JSON");
        card["input"] = json!({"nnunet": {
            "transpose": [0, 1, 2], "spacing_mm": [spacing, spacing, spacing], "channels": [{"scheme": "zscore", "masked": false}],
            "resample": {"order": 1, "order_along": 0}, "resample_logits": {"order": 1, "order_along": 0},
        }});
        card["inference"] = json!({"mode": "window", "patch": patch, "overlap": overlap, "scheme": "nnunet_v2", "mirror": mirror});
        let (model, scan) = (folder.path().join("model.safetensors"), folder.path().join("scan.nii"));
        fs::write(&model, random_weights(&card.to_string(), 1).expect("it is a card")).expect("written");
        let mut random = support::Random::new(7);
        let voxels = usize::try_from(extent.voxels()).expect("small");
        let data = random.values(voxels).into_iter().map(|v| v + 2.0).collect();
        let axes = "SAR".parse().expect("axes");
        let volume = Volume::new(1, extent, [1.0; 3], axes, data).expect("a volume");
        let header = nifti::NiftiHeader { dim: [3, 1, 1, 1, 1, 1, 1, 1], ..Default::default() };
        let header = nifti::header_on(&header, &volume);
        nifti::write_maps(&scan, &header, &volume).expect("written");
        Self { folder, model, scan }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, output: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_organum"));
        command.arg("segment").arg(&self.scan).arg("--model").arg(&self.model).arg("--output").arg(output);
        command.args(["--device", "cpu", "--json"]).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What it tells, and the most bytes that it held.
    fn segment(&self, output: &Path, more: &[&str]) -> (Value, u64) {
        let child = self.command(output, more).spawn().expect("organum starts");
        let (output, most) = watched(child);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (serde_json::from_slice(&output.stdout).expect("JSON"), most)
    }

    fn refused(&self, more: &[&str]) -> String {
        let labels = self.path("refused.nii.gz");
        let run = self.command(&labels, more).output().expect("organum starts");
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(5), "{text}");
        assert!(!labels.exists());
        text
    }

    /// Only what the test made is there: no file is left over.
    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path()).expect("listed").map(|f| f.expect("an entry").file_name());
        let mut names: Vec<_> = names.map(|n| n.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Waits for a process, and the most bytes that were resident of it.
fn watched(child: Child) -> (std::process::Output, u64) {
    let status = format!("/proc/{}/status", child.id());
    let (done, told) = std::sync::mpsc::channel::<()>();
    let watcher = std::thread::spawn(move || {
        let mut most = 0;
        while told.recv_timeout(Duration::from_millis(5)).is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout) {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
            let bytes = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
            most = most.max(bytes.unwrap_or(0) * 1024);
        }
        most
    });
    let output = child.wait_with_output().expect("it ends");
    drop(done);
    (output, watcher.join().expect("the watcher ends"))
}

/// The number behind `word` in a message.
fn number_after(text: &str, word: &str) -> u64 {
    let rest = text.split(word).nth(1).unwrap_or_else(|| panic!("{word:?} in {text}"));
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("a number after {word:?} in {text}"))
}

#[test]
fn a_hundred_classes_fit_what_is_told() {
    let desk = Desk::new(118, Extent::new(160, 256, 256), [64; 3], 0.25, 1.0, false);
    let labels = desk.path("labels.nii");
    let started = std::time::Instant::now();
    let (told, most) = desk.segment(&labels, &["--host-memory", "1.25GiB"]);
    let peak = told["host_memory"]["peak_bytes"].as_u64().expect("a number");
    println!("{most} bytes resident, {peak} told, {:.1} s; {}", started.elapsed().as_secs_f64(), told["host_memory"]);
    assert_eq!(told["host_memory"]["place"], "memory");
    assert!(peak <= 1280 << 20, "{peak}");
    assert!(most <= peak + BESIDES, "{most} bytes resident, {peak} told");
    // what is told is no excuse: most of it is used
    assert!(most * 10 >= peak * 9, "{most} bytes resident, {peak} told");
}

#[test]
fn labels_are_the_same_in_memory_and_in_files() {
    for (mirror, spacing) in [(false, 1.0), (true, 1.5)] {
        let desk = Desk::new(20, Extent::new(60, 70, 80), [16, 24, 32], 0.5, spacing, mirror);
        let (free, probabilities) = (desk.path("free.nii"), desk.path("free_p.nii"));
        let arguments = ["--probabilities", probabilities.to_str().expect("UTF-8")];
        let (told, _) = desk.segment(&free, &arguments);
        let unbounded = told["host_memory"]["peak_bytes"].as_u64().expect("a number");
        let text = desk.refused(&[&arguments[..], &["--host-memory", "1MB"]].concat());
        assert!(text.contains("to prepare the scan"), "{text}");
        let preparing = number_after(&text, "in bytes").to_string();
        let text = desk.refused(&[&arguments[..], &["--host-memory", &preparing]].concat());
        let (smallest, with_files) = (number_after(&text, "in bytes"), number_after(&text, "--host-spill it is"));
        assert!(smallest <= unbounded && with_files < smallest, "{text} ({unbounded} unbounded)");
        let least = text.rsplit("in bytes").next().expect("the last");
        let least: u64 = least.trim().trim_end_matches(['.', '\n']).parse().expect("a number");
        for (budget, spill) in [(smallest, false), (least, true)] {
            let (got, some) = (desk.path("got.nii"), desk.path("got_p.nii"));
            let budget = budget.to_string();
            let mut more = vec!["--probabilities", some.to_str().expect("UTF-8"), "--host-memory", &budget];
            if spill {
                more.push("--host-spill");
            }
            let (told, most) = desk.segment(&got, &more);
            let told = &told["host_memory"];
            println!("{most} bytes resident; {told}");
            assert_eq!(told["place"] != "memory", spill, "{told}");
            assert!(most <= told["peak_bytes"].as_u64().expect("a number") + BESIDES, "{most} bytes resident; {told}");
            assert_eq!(told["file_bytes"].as_u64().is_some_and(|n| n > 0), spill, "{told}");
            assert!(fs::read(&got).expect("it is there") == fs::read(&free).expect("it is there"), "{told}");
            assert!(fs::read(&some).expect("it is there") == fs::read(&probabilities).expect("it is there"), "{told}");
            // one byte less, and it is refused
            let less = (told["peak_bytes"].as_u64().expect("a number") - 1).to_string();
            let at = more.iter().position(|a| *a == budget).expect("it is there");
            more[at] = &less;
            desk.refused(&more);
        }
        assert_eq!(desk.files().len(), 6, "{:?}", desk.files());
    }
}

#[test]
fn bundles_are_bounded_too() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/monai/unet");
    let folder = tempfile::tempdir().expect("a folder");
    let segment = |name: &str, mode: &str, more: &[&str]| {
        let (labels, maps) = (folder.path().join(format!("{name}.nii")), folder.path().join(format!("{name}_p.nii")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_organum"));
        command.arg("segment").arg(case.join("scan_0000.nii.gz")).arg("--model").arg(case.join("bundle"));
        command.arg("--output").arg(&labels).arg("--probabilities").arg(&maps);
        let run = command.args(["--device", "cpu", "--json", "--mode", mode]).args(more).output().expect("organum starts");
        (run, labels, maps)
    };
    for mode in ["window", "whole"] {
        let (run, labels, maps) = segment("free", mode, &[]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let (run, ..) = segment("refused", mode, &["--host-memory", "100kB"]);
        assert_eq!(run.status.code(), Some(5));
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        let with_files = text.rsplit("in bytes").next().expect("the last").trim().trim_end_matches('.').to_owned();
        let (run, got, some) = segment("spilled", mode, &["--host-memory", &with_files, "--host-spill"]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let told: Value = serde_json::from_slice(&run.stdout).expect("JSON");
        assert_ne!(told["host_memory"]["place"], "memory", "{told}");
        assert_eq!(fs::read(got).expect("it is there"), fs::read(labels).expect("it is there"));
        assert_eq!(fs::read(some).expect("it is there"), fs::read(maps).expect("it is there"));
    }
}

#[test]
fn models_of_our_own_and_plans_tell_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_organum")).args(args).output().expect("organum starts");
    let out = folder.path().to_str().expect("UTF-8");
    let demo = run(&["demo", "--out", out, "--device", "cpu", "--json", "--host-memory", "1GiB"]);
    assert!(demo.status.success(), "{}", String::from_utf8_lossy(&demo.stderr));
    let told: Value = serde_json::from_slice(&demo.stdout).expect("JSON");
    let host = &told["scans"][0]["host_memory"];
    assert!(host["peak_bytes"].as_u64().is_some_and(|n| n > 1 << 20 && n <= 1 << 30), "{host}");
    assert_eq!(told["scans"][0]["equal"], true);
    let demo = run(&["demo", "--out", out, "--device", "cpu", "--host-memory", "1MiB"]);
    assert_eq!(demo.status.code(), Some(5));

    let desk = Desk::new(9, Extent::new(8, 8, 8), [16, 16, 16], 0.5, 1.0, false);
    let model = desk.model.to_str().expect("UTF-8");
    let plan = |more: &[&str]| run(&[&["plan", "--model", model, "--extent", "40x48x32", "--caps", "host"], more].concat());
    let told: Value = serde_json::from_slice(&plan(&["--json"]).stdout).expect("JSON");
    let peak = told["host_memory"]["peak_bytes"].as_u64().expect("a number");
    // planes of a window's depth in 16 bits, and the one that is handed on
    assert_eq!(told["host_memory"]["sums_bytes"], 17 * 48 * 32 * 9 * 2 + 16 * 48 * 32 * 4);
    let text = String::from_utf8_lossy(&plan(&[]).stdout).into_owned();
    assert!(text.contains(&format!("({peak} bytes) of a whole segmentation")), "{text}");
    let refused = plan(&["--host-memory", "1000"]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--host-memory: "));
    let told: Value = serde_json::from_slice(&plan(&["--json", "--host-memory", "64MiB"]).stdout).expect("JSON");
    assert_eq!((&told["host_memory"]["place"], &told["host_memory"]["budget"]), (&json!("memory"), &json!(64 << 20)));
}

#[test]
fn a_folder_that_takes_no_file_is_told() {
    let desk = Desk::new(60, Extent::new(40, 40, 40), [8, 8, 8], 0.5, 1.0, false);
    let text = desk.refused(&["--host-memory", "10kB"]);
    let preparing = number_after(&text, "in bytes").to_string();
    let text = desk.refused(&["--host-memory", &preparing]);
    let with_files = text.rsplit("in bytes").next().expect("the last").trim().to_owned();
    let run =
        desk.command(Path::new("/proc/labels.nii"), &["--host-memory", &with_files, "--host-spill"]).output().expect("organum starts");
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(2), "{text}");
    assert!(text.contains("--host-spill: no file can be made in /proc"), "{text}");
}

#[test]
fn a_spill_needs_a_budget() {
    let desk = Desk::new(2, Extent::new(8, 8, 8), [8; 3], 0.5, 1.0, false);
    let run = desk.command(&desk.path("labels.nii"), &["--host-spill"]).output().expect("organum starts");
    assert_eq!(run.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&run.stderr).contains("--host-memory"));
}
