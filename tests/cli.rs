//! The program as its users meet it: what it prints and what it writes. Only the bundled files are needed.
#![allow(clippy::cast_possible_truncation, reason = "crops and labels of known size")]
#![allow(clippy::print_stdout, reason = "figures and skips belong to a test's output")]

#[path = "support/desk.rs"]
mod desk;

use std::path::Path;

use organum::back::DirectCase;
use organum::scores::argmax;
use organum::volume::{Volume, evaluate, nifti};
use organum::{DeviceCaps, Extent, Input, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use desk::*;

// ---- what works ----

#[test]
fn the_demo_gives_the_labels_of_pytorch() {
    for device in devices() {
        let desk = Desk::new();
        let report = done_json(&[&["demo", "--out", &desk.out("")], device.as_slice()].concat());
        let scans = report["scans"].as_array().expect("a list of scans");
        assert_eq!(scans.len(), 2);
        for scan in scans {
            has_run_keys(scan);
            let different = scan["voxels_different"].as_u64().expect("a count");
            assert!(different <= 4, "{different} voxels differ");
            assert_eq!(scan["equal"], json!(different == 0));
            for (name, label) in scan["labels"].as_object().expect("labels by name") {
                assert!(label["dice"].as_f64().is_some_and(|d| d > 0.999), "{name}: {label}");
                assert!(label["ml"].as_f64().is_some_and(|v| v > 1.0 && v < 4.0), "{name}: {label}");
                has_keys(label, &["voxels", "hd95_mm"]);
            }
        }
        let files = ["attention.png", "labels.nii.gz", "left_attention.png", "left_labels.nii.gz", "left_overlay.png", "overlay.png"];
        assert_eq!(desk.written(), files);
        for (file, bundled) in [("labels.nii.gz", LABELS), ("left_labels.nii.gz", LEFT_LABELS)] {
            let (_, ours) = nifti::read_labels(desk.out(file)).expect("the demo's labels are read");
            let (_, theirs) = nifti::read_labels(bundled).expect("the bundled labels are read");
            assert!(evaluate(&ours, &theirs).expect("one grid").iter().all(|s| s.dice.is_some_and(|d| d > 0.999)));
        }
        for picture in files.iter().filter(|f| f.ends_with(".png")) {
            let bytes = std::fs::read(desk.out(picture)).expect("the picture is there");
            let reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().expect("it is a PNG");
            assert!(reader.info().width > 100 && reader.info().height > 50, "{picture}");
        }
    }
}

#[test]
fn segment_writes_labels_probabilities_and_pictures_on_the_grid_of_the_scan() {
    let desk = Desk::new();
    let scan = desk.crop("scan.nii.gz");
    let model = Model::load(MODEL).expect("the bundled model loads");
    let mut first: Option<Volume<u16>> = None;
    for device in devices() {
        let (labels, overlay, probabilities, attention) =
            (desk.out("labels.nii.gz"), desk.out("overlay.png"), desk.out("p.nii"), desk.out("maps"));
        let wanted = ["--output", &labels, "--overlay", &overlay, "--probabilities", &probabilities, "--attention", &attention];
        let report = done_json(&[&["segment", &scan, "--model", MODEL], wanted.as_slice(), &device].concat());
        has_run_keys(&report);
        assert_eq!(report["plan"]["extent"], json!([24, 24, 24]), "padded to the stride, in the axes of the card");
        if !device.contains(&"reference") {
            assert_eq!(report["allocated_bytes"], report["plan"]["peak_bytes"]);
        }
        assert_eq!(desk.written(), ["labels.nii.gz", "maps", "overlay.png", "p.nii"]);
        assert!(Path::new(&attention).join("attention.png").is_file());

        let input = nifti::read(&scan).expect("the scan is read");
        let (header, written) = nifti::read_labels(&labels).expect("the labels are read");
        assert_eq!((written.extent, written.axes, written.spacing), (input.image.extent, input.image.axes, input.image.spacing));
        assert_eq!(header.dim, input.header.dim);
        assert_eq!(header.pixdim, input.header.pixdim);
        assert_eq!(header.xyzt_units, input.header.xyzt_units);
        assert_eq!((header.sform_code, header.qform_code), (4, 1));
        assert_eq!((header.srow_x, header.srow_y, header.srow_z), (input.header.srow_x, input.header.srow_y, input.header.srow_z));
        let quaternion = |h: &::nifti::NiftiHeader| [h.quatern_b, h.quatern_c, h.quatern_d, h.quatern_x, h.quatern_y, h.quatern_z];
        assert_eq!(quaternion(&header), quaternion(&input.header));

        let maps = nifti::read(&probabilities).expect("the probabilities are read").image;
        assert_eq!((maps.channels, maps.extent), (3, written.extent));
        let n = written.data.len();
        for v in 0..n {
            let p: Vec<f32> = (0..3).map(|c| maps.data[c * n + v]).collect();
            assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5 && p.iter().all(|x| (0.0..=1.0).contains(x)), "{p:?}");
        }
        assert_eq!(argmax(&maps.data, 3), written.data);

        for (name, label) in report["labels"].as_object().expect("labels by name") {
            let class = (1..3).find(|&c| model.card().label_name(c) == *name).expect("a name of the card");
            let voxels = written.data.iter().filter(|&&l| u32::from(l) == class).count();
            assert_eq!(label["voxels"], json!(voxels));
            let ml = label["ml"].as_f64().expect("a volume");
            assert!((ml - voxels as f64 * written.voxel_ml()).abs() < 1e-9);
        }
        assert!(written.data.iter().any(|&l| l > 0), "the crop holds a part of the hippocampus");

        // Labels alone: the arg-max is taken on the device.
        let again = desk.out("again.nii");
        let table = done(&[&["segment", &scan, "--model", MODEL, "--output", &again, "--mode", "whole"], device.as_slice()].concat());
        assert!(table.contains("anterior hippocampus") && table.contains(" ml "), "{table}");
        let (_, again_labels) = nifti::read_labels(&again).expect("the labels are read");
        assert_eq!(again_labels, written);

        if let Some(first) = &first {
            let different = first.data.iter().zip(&written.data).filter(|(a, b)| a != b).count();
            assert!(different <= 2, "{different} voxels differ between the host and the device");
        }
        first = Some(written);
        for file in [&labels, &overlay, &probabilities, &again] {
            std::fs::remove_file(file).expect("the output is removed");
        }
        std::fs::remove_dir_all(&attention).expect("the folder is removed");
    }
}

#[test]
fn infer_reads_arrays_of_both_kinds_and_writes_the_logits() {
    let desk = Desk::new();
    let extent = Extent::new(8, 16, 24);
    let values = wave(8 * 16 * 24);
    let array = desk.file("x.npy", &npy(&[1, 1, 8, 16, 24], &values));
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![1, 1, 8, 16, 24], &bytes).expect("the shape is that of the bytes");
    let tensors = desk.file("x.safetensors", &safetensors::serialize([("input", view)], None).expect("it is serialised"));

    let model = Model::load(MODEL).expect("the bundled model loads");
    let plan = Plan::new(&model, extent, &DeviceCaps::reference(), &PlanOptions::default().with_output(OutputMode::Logits))
        .expect("there is a plan");
    let mut session = Session::on_host(&model, plan).expect("the session is made");
    let outputs = session.run_blocking(Input { channels: 1, extent, data: &values }, RunOptions::default()).expect("it runs");
    let OutputData::Map(expected) = &outputs[0].data else { panic!("asked for logits") };

    for device in devices() {
        for input in [&array, &tensors] {
            let y = desk.out("y.npy");
            let report = done_json(&[&["infer", "--model", MODEL, "--input", input, "--output", &y], device.as_slice()].concat());
            has_run_keys(&report);
            let (shape, logits) = read_npy(&y);
            assert_eq!(shape, [1, 3, 8, 16, 24]);
            if !device.contains(&"reference") {
                assert!(distance(&logits, expected) < 1e-5);
                assert_eq!(report["allocated_bytes"], report["plan"]["peak_bytes"]);
            } else {
                assert_eq!(&logits, expected);
            }
        }
    }
    let y = desk.out("half.npy");
    let summary = done(&["infer", "--model", MODEL, "--input", &array, "--output", &y, "--device", "cpu", "--precision", "f16"]);
    assert!(summary.contains("cpu"), "{summary}");
    let error = distance(&read_npy(&y).1, expected);
    assert!(error > 0.0 && error < 5e-3, "{error}");
    assert_eq!(desk.written(), ["half.npy", "y.npy"]);
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    (a.iter().zip(b).map(|(x, y)| square(x - y)).sum::<f64>() / b.iter().map(|&y| square(y)).sum::<f64>()).sqrt()
}

#[test]
fn plan_needs_no_device() {
    let desk = Desk::new();
    let table = done(&["plan", "--model", MODEL, "--extent", "40x56x40"]);
    assert!(table.contains("smallest budget") && table.contains("40x56x40"), "{table}");

    let whole = done_json(&["plan", "--model", MODEL, "--extent", "40x56x40"]);
    has_keys(&whole, &PLAN_KEYS);
    assert_eq!(whole["extent"], json!([40, 56, 40]));
    assert_eq!(whole["budget"], Value::Null);
    for key in PLAN_KEYS.iter().filter(|k| !["extent", "budget"].contains(k)) {
        assert!(whole[key].is_u64(), "{key}");
    }
    let number = |v: &Value, key: &str| v[key].as_u64().unwrap_or_else(|| panic!("{key} is a number"));
    assert!(number(&whole, "smallest_budget") < number(&whole, "peak_bytes"));

    let tight = done_json(&["plan", "--model", MODEL, "--extent", "40x56x40", "--memory", "16MiB"]);
    assert_eq!(tight["budget"], json!(16 << 20));
    assert!(number(&tight, "peak_bytes") <= 16 << 20);
    assert!(number(&tight, "slabs") > number(&whole, "slabs"));
    let half = done_json(&["plan", "--model", MODEL, "--extent", "40x56x40", "--precision", "f16"]);
    assert!(number(&half, "peak_bytes") < number(&whole, "peak_bytes"));

    let caps = desk.file("caps.json", br#"{"max_buffer": 4194304, "max_binding": 1048576}"#);
    let small = done_json(&["plan", "--model", MODEL, "--extent", "40x56x40", "--caps", &caps]);
    assert!(number(&small, "slabs") > number(&whole, "slabs"));
    let named = done_json(&["plan", "--model", MODEL, "--extent", "40x56x40", "--caps", "default"]);
    assert_eq!(named, whole);
    // what `devices` prints can be planned for
    let devices = done_json(&["devices"]);
    for (i, device) in devices["devices"].as_array().expect("a list").iter().enumerate() {
        let caps = desk.file(&format!("caps{i}.json"), device["caps"].to_string().as_bytes());
        done_json(&["plan", "--model", MODEL, "--extent", "40x56x40", "--caps", &caps]);
    }

    // a card alone is enough
    let card = desk.file("card.json", done_json(&["inspect", MODEL])["card"].to_string().as_bytes());
    assert_eq!(done_json(&["plan", "--model", &card, "--extent", "40x56x40"]), whole);
    desk.fails(3, &["8x8x16"], &["plan", "--model", &card, "--extent", "8x8x12"]);
    desk.fails(4, &["card"], &["plan", "--model", &desk.file("list.json", b"[]"), "--extent", "8x8x8"]);
    desk.fails(4, &["nothere.json"], &["plan", "--model", "nothere.json", "--extent", "8x8x8"]);

    desk.fails(3, &["nothere.json"], &["plan", "--model", MODEL, "--extent", "8x8x8", "--caps", "nothere.json"]);
    let typo = desk.file("typo.json", br#"{"max_bufer": 1}"#);
    desk.fails(3, &["max_bufer"], &["plan", "--model", MODEL, "--extent", "8x8x8", "--caps", &typo]);
    desk.fails(3, &["8x8x12", "8x8x16"], &["plan", "--model", MODEL, "--extent", "8x8x12"]);
    desk.fails(3, &["0x8x8"], &["plan", "--model", MODEL, "--extent", "0x8x8"]);
    desk.fails(3, &["32-bit"], &["plan", "--model", MODEL, "--extent", "65528x65528x65528"]);
    desk.fails(2, &["8x8xq"], &["plan", "--model", MODEL, "--extent", "8x8xq"]);
}

#[test]
fn inspect_shows_the_card_the_tensors_and_the_graph() {
    let table = done(&["inspect", MODEL]);
    for word in ["u_transformer", "anterior hippocampus", "CC-BY-SA", "enc.0.a", "mhsa.attn"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let value = done_json(&["inspect", MODEL]);
    has_keys(&value, &["card", "parameters", "tensors", "stride"]);
    assert_eq!(value["card"]["architecture"], "u_transformer");
    assert_eq!(value["stride"], json!([8, 8, 8]));
    assert_eq!(value["tensors"]["enc.0.a.conv.weight"], json!([12, 1, 3, 3, 3]));
}

#[test]
fn devices_lists_adapters_and_the_host() {
    let table = done(&["devices"]);
    assert!(table.lines().any(|l| l.starts_with("cpu")), "{table}");
    let list = done_json(&["devices"]);
    for device in list["devices"].as_array().expect("a list") {
        has_keys(device, &["index", "name", "backend", "caps"]);
        let pattern = device["name"].as_str().expect("a name").chars().take(6).collect::<String>().to_uppercase();
        // part of the name in any case, and the index, choose it
        let index = device["index"].to_string();
        for choice in [&pattern, &index] {
            let desk = Desk::new();
            let input = desk.file("x.npy", &npy(&[1, 1, 8, 8, 8], &wave(512)));
            let report = done_json(&["infer", "--model", MODEL, "--input", &input, "--output", &desk.out("y.npy"), "--device", choice]);
            if *choice == index {
                assert_eq!(report["device"], device["name"]);
            }
        }
    }
}

/// Two folders of two cases, in the second of which a label is missed.
fn evaluate_folders(desk: &Desk, header: &nifti::NiftiHeader, part: &Volume<u16>) {
    let (_, labels) = nifti::read_labels(LABELS).expect("the bundled labels are read");
    let folder = |name: &str, files: &[(&str, &Volume<u16>)]| {
        let folder = desk.path("in", name);
        std::fs::create_dir(&folder).expect("a folder");
        for (file, labels) in files {
            nifti::write_labels(format!("{folder}/{file}"), header, labels).expect("the labels are written");
        }
        folder
    };
    let references = folder("references", &[("a,1.nii.gz", &labels), ("b.nii", &labels)]);
    let predictions = folder("predictions", &[("a,1.nii", &labels), ("b.nii.gz", part)]);
    let more = folder("more", &[("a,1.nii", &labels), ("b.nii", part), ("c.nii", part)]);
    let csv = desk.path("in", "scores.csv");
    let all = done_json(&["evaluate", &predictions, &references, "--csv", &csv, "--tolerance", "2"]);
    assert_eq!((&all["cases"]["a,1"]["mean"]["dice"], &all["cases"]["b"]["labels"]["2"]["nsd"]), (&json!(1.0), &json!(0.0)));
    let second = &all["labels"]["2"];
    assert_eq!((&second["dice"], &second["dice_cases"], &second["hd95_cases"]), (&json!(0.5), &json!(2), &json!(1)));
    assert_eq!((&second["missed"], &second["false_cases"]), (&json!(["b"]), &json!([])));
    let mean = &all["mean"];
    assert_eq!((&mean["dice"], &mean["cases"], &mean["missed"], &mean["nsd"]), (&json!(0.75), &json!(2), &json!(1), &json!(0.75)));
    assert_eq!(all["warnings"], json!([]));
    let text = std::fs::read_to_string(&csv).expect("it is written");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 5 && lines[0].starts_with("case,label,dice,") && lines[1].starts_with("\"a,1\",1,1,0,1,2,"), "{text}");
    assert!(lines[4].starts_with("b,2,0,,0,2,0,"), "{text}");
    let table = done(&["evaluate", &predictions, &references]);
    assert!(table.contains("over 2 labels of 2 cases") && table.contains("1 missed, 0 false"), "{table}");
    desk.fails(3, &["--strict", "1 predictions have no reference", ": c"], &["evaluate", &more, &references, "--strict"]);
    desk.fails(3, &["1 of 3 references have no prediction", "c"], &["evaluate", &references, &more]);
    desk.fails(2, &["two folders"], &["evaluate", &predictions, LABELS]);
    desk.fails(2, &["--tolerance"], &["evaluate", LABELS, LABELS, "--tolerance", "nan"]);
    desk.fails(2, &["--csv"], &["evaluate", LABELS, LABELS, "--csv", LABELS]);
    let empty = folder("empty", &[]);
    desk.fails(3, &["has no label maps"], &["evaluate", &empty, &empty]);
    let twice = folder("twice", &[("b.nii", part), ("b.nii.gz", part)]);
    desk.fails(3, &["both"], &["evaluate", &twice, &references]);
    let one = folder("one", &[("crop.nii", &labels)]);
    let other = folder("other", &[]);
    std::fs::copy(desk.crop("crop.nii"), format!("{other}/crop.nii")).expect("copied");
    desk.fails(3, &["crop: ", "grid"], &["evaluate", &other, &one]);
}

#[test]
fn evaluate_scores_labels() {
    let same = done_json(&["evaluate", LABELS, LABELS]);
    for label in ["1", "2"] {
        let score = &same["labels"][label];
        assert_eq!((&score["dice"], &score["hd95_mm"]), (&json!(1.0), &json!(0.0)));
    }
    assert_eq!((&same["mean"]["dice"], &same["mean"]["hd95_mm"]), (&json!(1.0), &json!(0.0)));
    let table = done(&["evaluate", LABELS, LABELS]);
    assert!(table.contains("1.0000") && table.contains("mean"), "{table}");

    let desk = Desk::new();
    let (header, mut labels) = nifti::read_labels(LABELS).expect("the bundled labels are read");
    labels.data.iter_mut().filter(|l| **l == 2).for_each(|l| *l = 0);
    let part = desk.path("in", "part.nii");
    nifti::write_labels(&part, &header, &labels).expect("the labels are written");
    let scores = done_json(&["evaluate", &part, LABELS]);
    assert_eq!(scores["labels"]["1"]["dice"], json!(1.0));
    let missed = &scores["labels"]["2"];
    assert_eq!((&missed["dice"], &missed["hd95_mm"]), (&json!(0.0), &Value::Null));
    let mean = &scores["mean"];
    assert_eq!((&mean["dice"], &mean["hd95_mm"], &mean["missed"]), (&json!(0.5), &json!(0.0), &json!([2])));

    desk.fails(3, &["grid"], &["evaluate", &desk.crop("crop.nii"), LABELS]);
    evaluate_folders(&desk, &header, &labels);
    desk.fails(3, &["nothere.nii"], &["evaluate", LABELS, "nothere.nii"]);
    let probabilities = desk.maps("p.nii", 1, vec![0.5; 512]);
    desk.fails(3, &["0.5"], &["evaluate", &probabilities, LABELS]);
}

#[test]
fn help_and_version_are_data() {
    for args in [["--help"], ["--version"]] {
        assert!(done(&args).contains("organum"));
    }
    assert!(done(&["segment", "--help"]).contains("--probabilities"));
}

/// The whole pipeline by hand gives what `segment` gives.
#[test]
fn the_library_and_the_program_agree() {
    let desk = Desk::new();
    let path = desk.crop("scan.nii");
    let labels = desk.out("labels.nii");
    done(&["segment", &path, "--model", MODEL, "--output", &labels, "--device", "cpu"]);
    let model = Model::load(MODEL).expect("the bundled model loads");
    let scan = nifti::read(&path).expect("the scan is read");
    let prepared = DirectCase::new(&model, &scan.image).expect("the scan suits the model");
    let plan = Plan::new(&model, prepared.volume.extent, &DeviceCaps::host(), &PlanOptions::default()).expect("there is a plan");
    let mut session = Session::on_host(&model, plan).expect("the session is made");
    let mut outputs = session.run_blocking(prepared.input(), RunOptions::default()).expect("it runs");
    let OutputData::Labels(raw) = outputs.swap_remove(0).data else { panic!("asked for labels") };
    let ours = prepared.restore_labels(raw).expect("the labels are those of the input");
    let (_, theirs) = nifti::read_labels(&labels).expect("the labels are read");
    assert!(ours == theirs);
}

#[test]
fn bench_measures_cases_against_the_ceilings() {
    let value = done_json(&["bench", "argmax/14", "--small"]);
    has_keys(&value, &["device", "driver", "ceilings", "cases"]);
    let positive = |v: &Value| v.as_f64().is_some_and(|n| n > 0.0);
    assert!(positive(&value["ceilings"]["gbytes"]) && positive(&value["ceilings"]["gflops"]));
    let cases = value["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 2, "one case in two storage types: {value}");
    assert!(cases.iter().all(|c| positive(&c["seconds"]) && positive(&c["gbytes"]) && positive(&c["share_of_bytes"])), "{value}");
    let desk = Desk::new();
    desk.fails(2, &["nobody"], &["bench", "nobody"]);
    desk.fails(2, &["adapter"], &["bench", "--device", "cpu"]);
}
