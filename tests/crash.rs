//! Processes that are ended while they write, and files that change while they are used.
#![cfg(target_os = "linux")]

#[path = "support/desk.rs"]
mod desk;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use organum::volume::nifti;
use organum::{DeviceCaps, Extent, Input, Model, Plan, PlanOptions, RunOptions, Session};

use desk::*;

/// The variable by which each part of a file that is written takes so many milliseconds more.
const DELAY: &str = "ORGANUM_TEST_WRITE_DELAY_MS";

fn start(delay: u32, args: &[&str]) -> Child {
    let mut command = program();
    command.args(args).env(DELAY, delay.to_string()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

/// Waits until a file is being written, or the process has ended.
fn until_it_writes(desk: &Desk, child: &mut Child) {
    while child.try_wait().expect("it is a child").is_none() && !desk.written().iter().any(|name| name.starts_with(".organum-")) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn interrupting_what_writes_leaves_nothing() {
    let desk = Desk::new();
    let scan = desk.crop("scan.nii");
    let [labels, maps, model, scores] = ["l.nii.gz", "p.nii.gz", "m.safetensors", "s.csv"].map(|name| desk.out(name));
    let commands: [&[&str]; 4] = [
        &["segment", &scan, "--model", MODEL, "--output", &labels, "--device", "cpu"],
        &["segment", &scan, "--model", MODEL, "--output", &labels, "--probabilities", &maps, "--device", "cpu"],
        &["convert", MODEL, "--output", &model],
        &["evaluate", LABELS, LABELS, "--csv", &scores],
    ];
    for args in commands {
        let mut child = start(3000, args);
        until_it_writes(&desk, &mut child);
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there").success());
        let output = child.wait_with_output().expect("the program ends");
        let err = text(&output.stderr);
        assert_eq!((output.status.code(), err.lines().last()), (Some(130), Some("organum: cancelled")), "{args:?}: {err}");
        assert!(output.stdout.is_empty());
        assert_eq!(desk.written(), [""; 0], "{args:?}");
    }
}

#[test]
fn killed_processes_leave_whole_files_or_none() {
    let desk = Desk::new();
    let scan = desk.crop("scan.nii");
    let labels = desk.out("labels.nii");
    let args = ["segment", &scan, "--model", MODEL, "--output", &labels, "--device", "cpu"];
    done(&args);
    let expected = std::fs::read(&labels).expect("it was written");
    nifti::read_labels(&labels).expect("they are labels");
    let mut left = 0;
    for turn in 0..60u64 {
        // a file that is there is kept or replaced as a whole
        if turn % 2 == 0 {
            std::fs::remove_file(&labels).ok();
        }
        let mut child = start(5, &args);
        if turn % 3 > 0 {
            until_it_writes(&desk, &mut child);
            std::thread::sleep(Duration::from_micros(turn * 337 % 12_000));
        } else {
            std::thread::sleep(Duration::from_millis(turn * 13 % 120));
        }
        child.kill().expect("it is a child");
        child.wait().expect("it has ended");
        if let Ok(found) = std::fs::read(&labels) {
            assert!(found == expected, "a part of a file after turn {turn}");
        }
        let folders = desk.written().into_iter().filter(|name| name.starts_with(".organum-")).count();
        left += folders;
        assert!(folders <= 1, "what an earlier process left is still there");
    }
    assert!(left > 0, "no process was killed while it wrote");
    done(&args);
    assert_eq!(desk.written(), ["labels.nii"]);
    assert!(std::fs::read(&labels).expect("it was written") == expected);
}

#[test]
fn a_model_that_is_cut_short_under_a_run_changes_nothing() {
    let desk = Desk::new();
    let bytes = std::fs::read(MODEL).expect("the bundled model is there");
    let path = desk.file("model.safetensors", &bytes);
    let run = |model: &Model| {
        let plan = Plan::new(model, Extent::new(8, 16, 8), &DeviceCaps::host(), &PlanOptions::default()).expect("there is a plan");
        let mut session = Session::on_host(model, plan).expect("a session");
        let data = wave(1024);
        let input = Input { channels: 1, extent: Extent::new(8, 16, 8), data: &data };
        session.run_blocking(input, RunOptions::default()).expect("it runs")
    };
    let model = Model::load(&path).expect("it loads");
    std::fs::File::options().write(true).open(&path).expect("it is there").set_len(100).expect("it is cut");
    let cut = run(&model);
    assert!(cut == run(&Model::from_bytes(bytes).expect("it loads")));
    desk.fails(4, &["model.safetensors"], &["inspect", &path]);
}
