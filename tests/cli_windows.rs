//! Sliding windows and traces as users of the program meet them.

#[path = "support/desk.rs"]
mod desk;

use std::path::Path;

use organum::back::DirectCase;
use organum::model::{Layout, random_weights};
use organum::volume::nifti;
use organum::{DeviceCaps, Model, OutputMode, Plan, PlanOptions, RunOptions, Session, Windows};
use serde_json::{Value, json};

use desk::*;

/// FINE in small, on crops of 16x16x16: the scan's crop takes several windows.
const FINE: &str = r#"{"architecture":"fine","config":{"crop":[16,16,16],"classes":3,"embed_dim":8,"heads":[1,2],"depths":[2,2],
    "patch":[2,4,4],"window":[2,2],"volume_grid":[3,3,3],"max_extent":[48,48,48]},"input":{"intensity":{"scheme":"zscore"}}}"#;

fn has_png(folder: &str) -> bool {
    let bytes = std::fs::read(Path::new(folder).join("attention.png")).expect("the picture is there");
    png::Decoder::new(std::io::Cursor::new(bytes)).read_info().is_ok_and(|r| r.info().width > 50)
}

#[test]
fn a_scan_is_segmented_in_windows_that_know_their_place() {
    let desk = Desk::new();
    let scan = desk.crop("scan.nii.gz");
    let model_file = desk.file("fine.safetensors", &random_weights(FINE, 3).expect("it is one"));
    let model = Model::load(&model_file).expect("it loads");
    let input = nifti::read(&scan).expect("the scan is read");
    let prepared = DirectCase::for_windows(&model, &input.image).expect("it suits");
    let windows = Windows::new(model.card(), prepared.volume.extent).expect("there are windows");
    let plan = Plan::new(&model, windows.tile(), &DeviceCaps::host(), &PlanOptions::default().with_output(OutputMode::Logits));
    let mut session = Session::on_host(&model, plan.expect("there is a plan")).expect("it is opened");
    let blended = pollster::block_on(windows.run(&mut session, &model, prepared.input(), true, RunOptions::default())).expect("it runs");
    let expected = prepared.restore_labels(blended.labels).expect("they are of the scan");

    let (labels, probabilities, maps) = (desk.out("labels.nii.gz"), desk.out("p.nii"), desk.out("maps"));
    let args = ["segment", &scan, "--model", &model_file, "--output", &labels, "--device", "cpu"];
    // windows need not be asked for: the network takes its crop alone
    let report = done_json(&[args.as_slice(), &["--attention", &maps, "--probabilities", &probabilities]].concat());
    has_run_keys(&report);
    assert_eq!(report["windows"], json!({"count": windows.count(), "passes": windows.passes(), "extent": [16, 16, 16]}));
    assert!(windows.count() > 4, "{} windows", windows.count());
    assert_eq!(report["plan"]["extent"], json!([16, 16, 16]));
    let seen = &report["volume_tokens"];
    let stages = seen["stages"].as_array().expect("a list of stages");
    assert_eq!((seen["tokens"].as_array().map(Vec::len), stages.len()), (Some(4), 3), "{seen}");
    for stage in stages {
        let share: f64 = stage["weights"].as_array().expect("four").iter().filter_map(Value::as_f64).sum();
        assert!(share > 0.0 && share < 1.0, "{stage}");
    }
    assert!(has_png(&maps));
    let (_, written) = nifti::read_labels(&labels).expect("the labels are read");
    assert_eq!((written.data, written.extent, written.axes), (expected.data, expected.extent, expected.axes));
    assert_eq!(desk.written(), ["labels.nii.gz", "maps", "p.nii"]);
}

#[test]
fn what_windows_cannot_show_or_do_is_refused() {
    let desk = Desk::new();
    let scan = desk.crop("scan.nii.gz");
    let labels = desk.out("labels.nii.gz");
    let windows = recard(|card| card["inference"] = json!({"mode": "window", "patch": [16, 16, 16], "mirror": [2], "scheme": "monai"}));
    let model = desk.file("windows.safetensors", &windows);
    let args = ["segment", &scan, "--model", &model, "--output", &labels, "--device", "cpu"];
    desk.fails(2, &["--attention", "volume tokens"], &[args.as_slice(), &["--attention", &desk.out("maps")]].concat());
    let report = done_json(&args);
    assert_eq!(report["windows"]["extent"], json!([16, 16, 16]));
    assert_eq!(report["windows"]["passes"], json!(2 * report["windows"]["count"].as_u64().expect("a count")));
    // a card that asks for windows is not run whole, unless its user says so
    let report = done_json(&[args.as_slice(), &["--mode", "whole"]].concat());
    assert_eq!(report.get("windows"), None);
    for (inference, word) in [
        (json!({"patch": [16, 16]}), "patch"),
        (json!({"patch": [16, 15, 16]}), "divisible"),
        (json!({"patch": [16, 16, 16], "overlap": 1.5}), "overlap"),
        (json!({"patch": [16, 16, 16], "mirror": [4]}), "mirror"),
    ] {
        let model = desk.file("bad.safetensors", &recard(|card| card["inference"] = inference.clone()));
        let output = run(&["segment", &scan, "--model", &model, "--output", &desk.out("no.nii"), "--mode", "window", "--device", "cpu"]);
        let message = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(2 | 4)) && message.contains(word), "{inference}: {message}");
    }
    assert_eq!(desk.written(), ["labels.nii.gz"]);

    let desk = Desk::new();
    let (scan, fine) = (desk.crop("scan.nii.gz"), desk.file("fine.safetensors", &random_weights(FINE, 3).expect("it is one")));
    let whole = ["segment", &scan, "--model", &fine, "--output", &desk.out("no.nii"), "--mode", "whole", "--device", "cpu"];
    desk.fails(3, &["crop of 16x16x16"], &whole);
}

#[test]
fn traces_are_what_the_nodes_compute_in_the_layout_of_the_reference() {
    let desk = Desk::new();
    let model_file = desk.file("fine.safetensors", &random_weights(FINE, 3).expect("it is one"));
    let input = desk.file("x.npy", &npy(&[1, 1, 16, 16, 16], &wave(4096)));
    let (output, folder) = (desk.out("y.npy"), desk.out("trace"));
    let args = ["infer", "--model", &model_file, "--input", &input, "--output", &output, "--device", "cpu"];
    done(&args);
    let plain = read_npy(&output);
    done(&[args.as_slice(), &["--trace", &folder]].concat());
    // what is looked at is not fused with what follows: other roundings
    let looked = read_npy(&output);
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
    assert!(looked.0 == plain.0 && looked.1.iter().zip(&plain.1).all(close), "looking changes the result");
    let model = Model::load(&model_file).expect("it loads");
    for node in model.whole_graph().nodes().iter().skip(1) {
        let (shape, values) = read_npy(&format!("{folder}/{}.npy", node.name));
        let rank = if model.layout(&node.name) == Some(Layout::Tokens) { 3 } else { 5 };
        assert!(shape.len() == rank && values.iter().all(|v| v.is_finite()), "{}: {shape:?}", node.name);
    }
    // the last one is the output, and what leads nowhere is there too
    assert_eq!(read_npy(&format!("{folder}/final.0.up.npy")), looked);
    assert!(Path::new(&format!("{folder}/encoder.layers.0.blocks.1.vt_attn.proj.npy")).is_file());

    let some = desk.out("some");
    done(&[args.as_slice(), &["--trace", &some, "--trace-nodes", "norm0,blocks.0.attn.proj"]].concat());
    let mut names: Vec<String> =
        std::fs::read_dir(&some).expect("it is there").map(|f| f.expect("a file").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert!(
        names.contains(&"model_down.norm0.npy".to_owned()) && names.iter().all(|n| n.contains("norm0") || n.contains("blocks.0.attn.proj"))
    );

    let desk = Desk::new();
    let (model, input) = (
        desk.file("fine.safetensors", &random_weights(FINE, 3).expect("it is one")),
        desk.file("x.npy", &npy(&[1, 1, 16, 16, 16], &wave(4096))),
    );
    let (output, some) = (desk.out("y.npy"), desk.out("some"));
    let args = ["infer", "--model", &model, "--input", &input, "--output", &output, "--device", "cpu"];
    desk.fails(2, &["--trace-nodes", "nowhere"], &[args.as_slice(), &["--trace", &some, "--trace-nodes", "nowhere"]].concat());
    desk.fails(2, &["--trace"], &[args.as_slice(), &["--trace-nodes", "norm0"]].concat());
}
