//! The program as its users meet it: what it prints, what it writes, how it fails. Only the bundled files are needed.
#![allow(clippy::cast_possible_truncation, reason = "crops and labels of known size")]
#![allow(clippy::print_stdout, reason = "figures and skips belong to a test's output")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use organum::pipeline::{Prepared, argmax};
use organum::volume::{Volume, evaluate, nifti, resample};
use organum::{DeviceCaps, Extent, Input, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/hippocampus_u_transformer.safetensors");
const SCAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/mni152_hippocampus_right.nii.gz");
const LABELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/mni152_hippocampus_right_labels.nii.gz");
const LEFT_LABELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/mni152_hippocampus_left_labels.nii.gz");

const PLAN_KEYS: [&str; 13] = [
    "extent",
    "budget",
    "peak_bytes",
    "weights_bytes",
    "max_live_bytes",
    "host_bytes",
    "flops",
    "recomputed_flops",
    "traffic_bytes",
    "spilled_bytes",
    "dispatches",
    "slabs",
    "smallest_budget",
];

// ---- the program ----

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_organum"))
}

/// Runs the program; whatever happens it must not panic.
fn run(args: &[&str]) -> Output {
    let output = program().args(args).output().expect("the program starts");
    let err = text(&output.stderr);
    assert!(!err.contains("panicked") && output.status.code() != Some(101), "{args:?} panicked: {err}");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the program speaks UTF-8")
}

/// Standard output of a run that must succeed and have nothing to say on stderr.
fn done(args: &[&str]) -> String {
    let output = run(args);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {err}");
    assert_eq!(err, "", "{args:?} notes something");
    text(&output.stdout)
}

/// The same, with `--json`: standard output is one JSON object and nothing else.
fn done_json(args: &[&str]) -> Value {
    let out = done(&[args, &["--json"]].concat());
    let value: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?} prints no JSON: {e}\n{out}"));
    assert!(value.is_object());
    value
}

fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "no key {key:?} in {value}");
    }
}

fn has_run_keys(value: &Value) {
    has_keys(value, &["plan", "device", "backend", "allocated_bytes", "seconds"]);
    has_keys(&value["plan"], &PLAN_KEYS);
    has_keys(&value["seconds"], &["load", "plan", "compile", "run", "total"]);
}

/// Whether this machine has an adapter.
fn has_adapter() -> bool {
    let devices = done_json(&["devices"]);
    let any = !devices["devices"].as_array().expect("a list of devices").is_empty();
    if !any {
        println!("skipped: no GPU adapter on this machine");
    }
    any
}

/// The devices to test on: the host, and the default adapter where there is one.
fn devices() -> Vec<Vec<&'static str>> {
    let mut all = vec![vec!["--device", "cpu"]];
    if has_adapter() {
        all.push(vec![]);
    }
    all
}

// ---- files ----

/// A folder of inputs and a folder for outputs.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("there is room for temporary files");
        for part in ["in", "out"] {
            std::fs::create_dir(folder.path().join(part)).expect("a folder is made");
        }
        Self(folder)
    }

    fn path(&self, part: &str, name: &str) -> String {
        self.0.path().join(part).join(name).to_str().expect("temporary paths are UTF-8").to_owned()
    }

    /// Path of an output.
    fn out(&self, name: &str) -> String {
        self.path("out", name)
    }

    /// Path of an input that holds `bytes`.
    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path("in", name);
        std::fs::write(&path, bytes).expect("the input is written");
        path
    }

    /// Names in the output folder.
    fn written(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.0.path().join("out"))
            .expect("the output folder is there")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// The run must end with `code`, say all of `words` on stderr, print no data and leave nothing behind.
    fn fails(&self, code: i32, words: &[&str], args: &[&str]) -> String {
        let output = run(args);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
        for word in words {
            assert!(err.contains(word), "{args:?}: {word:?} is not in the message: {err}");
        }
        assert_eq!(text(&output.stdout), "", "{args:?} prints data");
        assert_eq!(self.written(), [""; 0], "{args:?} leaves files");
        err
    }

    /// `segment INPUT` with the bundled model on the host must fail.
    fn segment_fails(&self, code: i32, words: &[&str], input: &str) -> String {
        self.fails(code, words, &["segment", input, "--model", MODEL, "--output", &self.out("labels.nii.gz"), "--device", "cpu"])
    }

    /// `segment` of the bundled scan with another model must fail with 4, as must `inspect`.
    fn model_fails(&self, words: &[&str], model: &[u8]) {
        let path = self.file("model.safetensors", model);
        self.fails(4, words, &["segment", SCAN, "--model", &path, "--output", &self.out("labels.nii.gz"), "--device", "cpu"]);
        self.fails(4, words, &["inspect", &path]);
    }

    /// A crop of the bundled scan with an affine of its own, 18x20x22 voxels: small, and not a multiple of the stride.
    fn crop(&self, name: &str) -> String {
        let scan = nifti::read(SCAN).expect("the bundled scan is read");
        let extent = Extent::new(22, 20, 18);
        let part = resample::crop(&scan.image, Extent::new(8, 16, 10), extent).expect("the crop lies inside");
        let mut header = scan.header;
        header.dim = [3, 18, 20, 22, 1, 1, 1, 1];
        (header.srow_x, header.srow_y, header.srow_z) = ([0.8, -0.6, 0.0, 12.25], [0.6, 0.8, 0.0, -34.5], [0.0, 0.0, 1.0, 7.125]);
        (header.sform_code, header.qform_code) = (4, 1);
        (header.quatern_x, header.quatern_y, header.quatern_z) = (12.25, -34.5, 7.125);
        (header.quatern_b, header.quatern_c, header.quatern_d) = (0.0, 0.0, 0.316_227_76);
        let whole: Vec<u16> = part.data.iter().map(|&v| v as u16).collect();
        assert!(whole.iter().zip(&part.data).all(|(&a, &b)| f32::from(a) == b), "the bundled scan holds whole numbers");
        let labels = Volume::new(1, extent, part.spacing, part.axes, whole).expect("the values fill the grid");
        let path = self.path("in", name);
        nifti::write_labels(&path, &header, &labels).expect("the crop is written");
        path
    }

    /// Maps of `channels` channels on 8x8x8 voxels of 1 mm.
    fn maps(&self, name: &str, channels: u32, values: Vec<f32>) -> String {
        let mut header = nifti::read(SCAN).expect("the bundled scan is read").header;
        header.dim = [3, 8, 8, 8, 1, 1, 1, 1];
        let axes = nifti::read(SCAN).expect("the bundled scan is read").image.axes;
        let maps = Volume::new(channels, Extent::new(8, 8, 8), [1.0; 3], axes, values).expect("the values fill the grid");
        let path = self.path("in", name);
        nifti::write_maps(&path, &header, &maps).expect("the maps are written");
        path
    }
}

fn npy(shape: &[usize], values: &[f32]) -> Vec<u8> {
    let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.join(", "));
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).expect("a short header").to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    bytes
}

fn read_npy(path: &str) -> (Vec<u64>, Vec<f32>) {
    let bytes = std::fs::read(path).expect("the array is there");
    let file = npyz::NpyFile::new(bytes.as_slice()).expect("it is an array");
    (file.shape().to_vec(), file.into_vec().expect("it holds f32"))
}

/// Values as a scan might have after z-scoring, from a fixed formula.
fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as f32) * 0.37).sin() + ((i / 16) as f32 * 0.11).cos()).collect()
}

// ---- models ----

struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// The bundled model with changed tensors and card (`None`: no card).
fn remodel(change: impl FnOnce(&mut BTreeMap<String, Tensor>, &mut Option<String>)) -> Vec<u8> {
    let bytes = std::fs::read(MODEL).expect("the bundled model is there");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("it is a safetensors file");
    let mut card = metadata.metadata().as_ref().and_then(|m| m.get("organum").cloned());
    let mut tensors: BTreeMap<String, Tensor> = SafeTensors::deserialize(&bytes)
        .expect("it is a safetensors file")
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() }))
        .collect();
    change(&mut tensors, &mut card);
    let views = tensors
        .iter()
        .map(|(name, t)| (name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).expect("the shape is that of the bytes")));
    let metadata = card.map(|card| HashMap::from([("organum".to_owned(), card)]));
    safetensors::serialize(views, metadata).expect("the model is serialised")
}

/// The bundled model with a changed card.
fn recard(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    remodel(|_, card| {
        let mut value: Value = serde_json::from_str(card.as_deref().expect("the bundled model has a card")).expect("it is JSON");
        change(&mut value);
        *card = Some(value.to_string());
    })
}

/// The bundled model without its attention: a U-Net.
fn plain_u_net() -> Vec<u8> {
    remodel(|tensors, card| {
        tensors.retain(|name, _| !name.contains("mhsa") && !name.contains("mhca"));
        let mut value: Value = serde_json::from_str(card.as_deref().expect("the bundled model has a card")).expect("it is JSON");
        value["config"]["mhsa"] = json!(false);
        value["config"]["mhca_levels"] = json!(0);
        *card = Some(value.to_string());
    })
}

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
        if device.is_empty() {
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
    let plan =
        Plan::new(&model, extent, &DeviceCaps::host(), &PlanOptions::default().with_output(OutputMode::Logits)).expect("there is a plan");
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
            if device.is_empty() {
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

#[test]
fn evaluate_scores_labels() {
    let same = done_json(&["evaluate", LABELS, LABELS]);
    for label in ["1", "2"] {
        assert_eq!(same["labels"][label], json!({"dice": 1.0, "hd95_mm": 0.0}));
    }
    assert_eq!(same["mean"], json!({"dice": 1.0, "hd95_mm": 0.0}));
    let table = done(&["evaluate", LABELS, LABELS]);
    assert!(table.contains("1.0000") && table.contains("mean"), "{table}");

    let desk = Desk::new();
    let (header, mut labels) = nifti::read_labels(LABELS).expect("the bundled labels are read");
    labels.data.iter_mut().filter(|l| **l == 2).for_each(|l| *l = 0);
    let part = desk.path("in", "part.nii");
    nifti::write_labels(&part, &header, &labels).expect("the labels are written");
    let scores = done_json(&["evaluate", &part, LABELS]);
    assert_eq!(scores["labels"]["1"]["dice"], json!(1.0));
    assert_eq!(scores["labels"]["2"], json!({"dice": 0.0, "hd95_mm": null}));
    assert_eq!(scores["mean"], json!({"dice": 0.5, "hd95_mm": 0.0}));

    desk.fails(3, &["grid"], &["evaluate", &desk.crop("crop.nii"), LABELS]);
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

// ---- what must fail, and how ----

#[test]
fn bad_scans_are_refused() {
    let desk = Desk::new();
    let missing = desk.path("in", "missing.nii.gz");
    desk.segment_fails(3, &["missing.nii.gz"], &missing);
    desk.segment_fails(3, &["in"], &desk.path("in", ""));

    let packed = std::fs::read(SCAN).expect("the bundled scan is there");
    for keep in [0, 1, 12, 200, packed.len() / 2, packed.len() - 4] {
        let words: &[&str] = if keep > 12 { &["cut.nii.gz", "cut short"] } else { &["cut.nii.gz"] };
        desk.segment_fails(3, words, &desk.file("cut.nii.gz", &packed[..keep]));
    }
    let mut flipped = packed.clone();
    flipped[packed.len() / 2] ^= 0x40;
    desk.segment_fails(3, &["flipped.nii.gz"], &desk.file("flipped.nii.gz", &flipped));

    let plain = std::fs::read(desk.crop("plain.nii")).expect("the crop is there");
    desk.segment_fails(3, &["short.nii", "cut short"], &desk.file("short.nii", &plain[..plain.len() - 1]));
    desk.segment_fails(3, &["header.nii"], &desk.file("header.nii", &plain[..100]));
    let mut magic = plain.clone();
    magic[344..348].copy_from_slice(b"no!\0");
    desk.segment_fails(3, &["magic.nii", "NIfTI"], &desk.file("magic.nii", &magic));
    desk.segment_fails(3, &["NIfTI"], &desk.file("text.nii", &b"patient: none\n".repeat(100)));
    desk.segment_fails(3, &["NIfTI"], MODEL);

    let mut values = wave(512);
    values[123] = f32::NAN;
    values[321] = f32::INFINITY;
    desk.segment_fails(3, &["2 voxels", "nan.nii", "voxel (3, 7, 1)"], &desk.maps("nan.nii", 1, values));
    desk.segment_fails(3, &["2 channels", "needs 1"], &desk.maps("two.nii", 2, wave(1024)));
}

#[test]
fn an_absurd_spacing_is_refused_before_it_fills_the_memory() {
    let desk = Desk::new();
    let plain = std::fs::read(desk.crop("plain.nii")).expect("the crop is there");
    // units of metres: voxels of a thousand millimetres
    let mut metres = plain.clone();
    metres[123] = 1;
    desk.segment_fails(3, &["spacing"], &desk.file("metres.nii", &metres));
    // micrometres: the whole scan shrinks to a voxel, which is silly but fits
    let mut micrometres = plain;
    micrometres[123] = 3;
    done(&[
        "segment",
        &desk.file("micrometres.nii", &micrometres),
        "--model",
        MODEL,
        "--output",
        &desk.out("labels.nii"),
        "--device",
        "cpu",
    ]);
}

#[test]
fn bad_arrays_are_refused() {
    let desk = Desk::new();
    let infer = |code: i32, words: &[&str], input: &str| {
        desk.fails(code, words, &["infer", "--model", MODEL, "--input", input, "--output", &desk.out("y.npy"), "--device", "cpu"])
    };
    infer(3, &["missing.npy"], &desk.path("in", "missing.npy"));
    infer(3, &["text.npy"], &desk.file("text.npy", b"0.1 0.2 0.3"));
    let good = npy(&[1, 1, 8, 8, 8], &wave(512));
    infer(3, &["short.npy"], &desk.file("short.npy", &good[..good.len() - 1]));
    infer(3, &["huge.npy"], &desk.file("huge.npy", &npy(&[1, 1, 1_000_000, 1_000_000, 1_000_000], &[])));
    infer(3, &["2 channels", "wants 1"], &desk.file("two.npy", &npy(&[1, 2, 8, 8, 8], &wave(1024))));
    infer(3, &["[1, 1, 8, 8]", "(1, C, D, H, W)"], &desk.file("flat.npy", &npy(&[1, 1, 8, 8], &wave(64))));
    infer(3, &["[2, 1, 8, 8, 8]"], &desk.file("batch.npy", &npy(&[2, 1, 8, 8, 8], &wave(1024))));
    infer(3, &["12x8x9", "8x8x8", "pad it to 16x8x16"], &desk.file("odd.npy", &npy(&[1, 1, 12, 8, 9], &wave(12 * 8 * 9))));
    infer(3, &["0x8x8"], &desk.file("zero.npy", &npy(&[1, 1, 0, 8, 8], &[])));
    let mut nan = wave(512);
    nan[7] = f32::NAN;
    infer(3, &["NaN", "7"], &desk.file("nan.npy", &npy(&[1, 1, 8, 8, 8], &nan)));
    let bytes = vec![0u8; 512 * 8];
    let pack = |name, dtype, n| {
        safetensors::serialize(
            [(name, TensorView::new(dtype, vec![1, 1, 8, 8, 8], &bytes[..n]).expect("the shape is that of the bytes"))],
            None,
        )
        .expect("it is serialised")
    };
    infer(3, &["no tensor `input`"], &desk.file("other.safetensors", &pack("x", Dtype::F32, 2048)));
    infer(3, &["`input`", "I64"], &desk.file("ints.safetensors", &pack("input", Dtype::I64, 4096)));
    infer(3, &["empty.safetensors"], &desk.file("empty.safetensors", b""));
    // segment brings an odd extent to the stride and back instead; see above
}

#[test]
fn bad_models_are_refused() {
    let desk = Desk::new();
    let missing = desk.path("in", "missing.safetensors");
    desk.fails(
        4,
        &["missing.safetensors"],
        &["segment", SCAN, "--model", &missing, "--output", &desk.out("labels.nii.gz"), "--device", "cpu"],
    );
    desk.fails(4, &["missing.safetensors"], &["plan", "--model", &missing, "--extent", "8x8x8"]);
    desk.fails(4, &["in"], &["inspect", &desk.path("in", "")]);
    let good = std::fs::read(MODEL).expect("the bundled model is there");
    desk.model_fails(&["model.safetensors", "safetensors"], b"");
    desk.model_fails(&["model.safetensors", "safetensors"], b"not a model at all, just a sentence of some length");
    desk.model_fails(&["model.safetensors", "safetensors"], &std::fs::read(SCAN).expect("the bundled scan is there"));
    for keep in [4, 100, good.len() / 2, good.len() - 1] {
        desk.model_fails(&["model.safetensors"], &good[..keep]);
    }

    desk.model_fails(&["no card", "organum"], &remodel(|_, card| *card = None));
    desk.model_fails(&["card"], &remodel(|_, card| *card = Some("{\"architecture\": ".into())));
    desk.model_fails(&["card"], &remodel(|_, card| *card = Some("[]".into())));
    desk.model_fails(&["card"], &remodel(|_, card| *card = Some(String::new())));
    desk.model_fails(&["swin_unetr", "u_transformer"], &recard(|c| c["architecture"] = json!("swin_unetr")));
    desk.model_fails(&["config"], &recard(|c| c["config"] = json!(null)));
    desk.model_fails(&["config", "widths"], &recard(|c| c["config"]["widths"] = json!([1, 2])));
    desk.model_fails(&["dims is 4"], &recard(|c| c["config"]["dims"] = json!(4)));
    desk.model_fails(&["channels"], &recard(|c| c["config"]["channels"] = json!([])));
    desk.model_fails(&["channels"], &recard(|c| c["config"]["channels"] = json!([12, 0, 48, 64])));
    desk.model_fails(&["5 heads", "64"], &recard(|c| c["config"]["heads"] = json!(5)));
    desk.model_fails(&["positive"], &recard(|c| c["config"]["heads"] = json!(0)));
    desk.model_fails(&["positive"], &recard(|c| c["config"]["in_channels"] = json!(0)));
    desk.model_fails(&["spacing_mm"], &recard(|c| c["input"]["spacing_mm"] = json!([1.0, 0.0, 1.0])));
    desk.model_fails(&["SAS"], &recard(|c| c["input"]["axes"] = json!("SAS")));
    desk.model_fails(&["cubic"], &recard(|c| c["input"]["resample"] = json!("cubic")));
    desk.model_fails(&["tensors do not fit"], &recard(|c| c["config"]["channels"] = json!([4_000_000_000u32, 24, 48, 64])));

    desk.model_fails(
        &[
            "missing enc.1.b.conv.bias",
            "extra enc.9.surprise",
            "mis-shaped head.weight",
            "[3, 12, 1, 1, 1]",
            "unsupported type I64 of head.bias",
        ],
        &remodel(|tensors, _| {
            tensors.remove("enc.1.b.conv.bias");
            tensors.insert("enc.9.surprise".into(), Tensor { dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4] });
            let head = tensors.get_mut("head.weight").expect("there is a head");
            head.shape = vec![3, 12];
            let bias = tensors.get_mut("head.bias").expect("there is a head");
            (bias.dtype, bias.bytes) = (Dtype::I64, vec![0; bias.shape[0] * 8]);
        }),
    );
}

/// Counters of a training framework are no reason to refuse, and other float types are read.
#[test]
fn harmless_differences_between_models_are_accepted() {
    let desk = Desk::new();
    let model = desk.file(
        "model.safetensors",
        &remodel(|tensors, _| {
            tensors.insert("enc.0.a.norm.num_batches_tracked".into(), Tensor { dtype: Dtype::I64, shape: vec![], bytes: vec![0; 8] });
            for t in tensors.values_mut().filter(|t| t.dtype == Dtype::F16) {
                t.bytes = t.bytes.chunks_exact(2).flat_map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64().to_le_bytes()).collect();
                t.dtype = Dtype::F64;
            }
        }),
    );
    let input = desk.file("x.npy", &npy(&[1, 1, 8, 8, 8], &wave(512)));
    let [a, b] = ["a.npy", "b.npy"].map(|name| desk.out(name));
    done(&["infer", "--model", MODEL, "--input", &input, "--output", &a, "--device", "cpu"]);
    done(&["infer", "--model", &model, "--input", &input, "--output", &b, "--device", "cpu"]);
    assert_eq!(read_npy(&a), read_npy(&b));
}

#[test]
fn a_budget_that_is_too_small_names_the_smallest_that_works() {
    let desk = Desk::new();
    let scan = desk.crop("scan.nii.gz");
    for device in devices() {
        let labels = desk.out("labels.nii.gz");
        let segment = ["segment", &scan, "--model", MODEL, "--output", &labels];
        desk.fails(5, &["--memory"], &[&segment, device.as_slice(), &["--memory", "0"]].concat());
        let message = desk.fails(5, &["1.00 MiB"], &[&segment, device.as_slice(), &["--memory", "1MiB"]].concat());
        let smallest: u64 = message
            .trim()
            .rsplit(' ')
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no number at the end of {message}"));
        desk.fails(5, &[&smallest.to_string()], &[&segment, device.as_slice(), &["--memory", &(smallest - 1).to_string()]].concat());

        let report = done_json(&[&segment, device.as_slice(), &["--memory", &smallest.to_string()]].concat());
        assert_eq!(report["plan"]["peak_bytes"], json!(smallest));
        assert_eq!(report["plan"]["smallest_budget"], json!(smallest));
        assert_eq!(report["plan"]["budget"], json!(smallest));
        let (_, tight) = nifti::read_labels(&labels).expect("the labels are read");
        done(&[&segment, device.as_slice()].concat());
        let (_, whole) = nifti::read_labels(&labels).expect("the labels are read");
        assert!(tight == whole, "the budget changes the labels");
        std::fs::remove_file(&labels).expect("the output is removed");
    }
}

#[test]
fn devices_that_are_not_there_are_named() {
    let desk = Desk::new();
    let labels = desk.out("labels.nii.gz");
    let segment = ["segment", SCAN, "--model", MODEL, "--output", &labels];
    if has_adapter() {
        desk.fails(6, &["nosuchthing", "there are"], &[segment.as_slice(), &["--device", "nosuchthing"]].concat());
        desk.fails(6, &["99"], &[segment.as_slice(), &["--device", "99"]].concat());
    } else {
        desk.fails(6, &["no GPU adapter"], &segment);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn without_any_driver_the_message_says_what_to_type() {
    let desk = Desk::new();
    let labels = desk.out("labels.nii.gz");
    let output = program()
        .args(["segment", SCAN, "--model", MODEL, "--output", &labels, "--overlay", &desk.out("o.png")])
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .output()
        .expect("the program starts");
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{err}");
    assert!(err.contains("apt-get install mesa-vulkan-drivers") && err.contains("--device cpu"), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert!(output.stdout.is_empty() && desk.written().is_empty());
    let list = program()
        .args(["devices", "--json"])
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .output()
        .expect("the program starts");
    assert_eq!(list.status.code(), Some(0));
    assert_eq!(serde_json::from_slice::<Value>(&list.stdout).expect("it is JSON"), json!({"devices": []}));
}

#[test]
fn usage_errors_are_told_apart_from_bad_files() {
    let desk = Desk::new();
    let labels = desk.out("labels.nii.gz");
    desk.fails(2, &["Usage"], &[]);
    desk.fails(2, &["conquer"], &["conquer"]);
    desk.fails(2, &["--output"], &["segment", SCAN, "--model", MODEL]);
    desk.fails(2, &["parsecs", "KiB"], &["segment", SCAN, "--model", MODEL, "--output", &labels, "--memory", "12parsecs"]);
    desk.fails(2, &["f64", "f32"], &["segment", SCAN, "--model", MODEL, "--output", &labels, "--precision", "f64"]);
    desk.fails(2, &["window"], &["segment", SCAN, "--model", MODEL, "--output", &labels, "--mode", "window", "--device", "cpu"]);
    desk.fails(2, &["labels.mha", ".nii"], &["segment", SCAN, "--model", MODEL, "--output", &desk.out("labels.mha"), "--device", "cpu"]);
    desk.fails(
        2,
        &["p.png", ".nii"],
        &["segment", SCAN, "--model", MODEL, "--output", &labels, "--probabilities", &desk.out("p.png"), "--device", "cpu"],
    );
    for option in ["--output", "--overlay", "--probabilities"] {
        let elsewhere = desk.path("nowhere", if option == "--overlay" { "x.png" } else { "x.nii.gz" });
        let mut args = vec!["segment", SCAN, "--model", MODEL, "--device", "cpu", option, &elsewhere];
        if option != "--output" {
            args.extend(["--output", &labels]);
        }
        desk.fails(2, &["nowhere"], &args);
    }
    let input = desk.file("x.npy", &npy(&[1, 1, 8, 8, 8], &wave(512)));
    let infer = ["infer", "--model", MODEL, "--input", &input, "--device", "cpu", "--output"];
    desk.fails(2, &["y.txt", ".npy"], &[infer.as_slice(), &[&desk.out("y.txt")]].concat());
    desk.fails(2, &["nowhere"], &[infer.as_slice(), &[&desk.path("nowhere", "y.npy")]].concat());
    for option in ["--position", "--visited"] {
        desk.fails(2, &[option, "u_transformer"], &[infer.as_slice(), &[&desk.out("y.npy"), option, "0,0,0"]].concat());
    }
    let occupied = desk.file("occupied", b"");
    desk.fails(2, &["occupied"], &["demo", "--device", "cpu", "--out", &occupied]);
}

#[test]
fn attention_needs_gates() {
    let desk = Desk::new();
    let scan = desk.crop("scan.nii");
    let (labels, maps) = (desk.out("labels.nii"), desk.out("maps"));
    let mut models = vec![desk.file("u_net.safetensors", &plain_u_net())];
    let bundled = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("weights/hippocampus_unet.safetensors");
    models.extend(bundled.exists().then(|| bundled.to_string_lossy().into_owned()));
    for model in models {
        let segment = ["segment", &scan, "--model", &model, "--output", &labels, "--device", "cpu"];
        desk.fails(2, &["--attention", "gates"], &[segment.as_slice(), &["--attention", &maps]].concat());
        done(&segment);
        std::fs::remove_file(&labels).expect("the output is removed");
    }
}

/// A label map that could not be written leaves an older one as it was.
#[test]
fn a_failure_leaves_older_outputs_alone() {
    let desk = Desk::new();
    let labels = desk.out("labels.nii.gz");
    std::fs::write(&labels, b"precious").expect("a file is written");
    for (code, extra) in [(5, ["--memory", "1kB"]), (6, ["--device", "nosuchthing"])] {
        let output = run(&[&["segment", SCAN, "--model", MODEL, "--output", &labels], extra.as_slice()].concat());
        assert!([5, 6].contains(&output.status.code().expect("a code")), "{code}");
        assert_eq!(std::fs::read(&labels).expect("the file is there"), b"precious");
        assert_eq!(desk.written(), ["labels.nii.gz"]);
    }
    // one that can is replaced
    let scan = desk.crop("scan.nii");
    done(&["segment", &scan, "--model", MODEL, "--output", &labels, "--device", "cpu"]);
    nifti::read_labels(&labels).expect("the labels are read");
}

/// Ctrl-C ends a run with 130 and leaves nothing.
#[cfg(unix)]
#[test]
fn interrupting_a_run_leaves_nothing() {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;
    use std::time::Duration;
    let desk = Desk::new();
    // 96x96x64 voxels: half a minute on the host
    let scan = nifti::read(SCAN).expect("the bundled scan is read");
    let large = resample::resample_linear(&scan.image, Extent::new(64, 96, 96));
    let mut header = scan.header;
    header.dim = [3, 96, 96, 64, 1, 1, 1, 1];
    let input = desk.path("in", "large.nii");
    nifti::write_maps(&input, &header, &large).expect("the scan is written");
    let outputs = ["--output", &desk.out("labels.nii.gz"), "--overlay", &desk.out("overlay.png"), "--probabilities", &desk.out("p.nii.gz")];
    let mut wait = Duration::from_millis(1500);
    for _ in 0..5 {
        let child = program()
            .args(["segment", &input, "--model", MODEL, "--device", "cpu"])
            .args(outputs)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        std::thread::sleep(wait);
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there").success());
        let output = child.wait_with_output().expect("the program ends");
        assert_eq!(desk.written(), [""; 0]);
        if output.status.signal().is_some() {
            wait *= 2; // too early: the machine is busy and the run had not begun
            continue;
        }
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{err}");
        assert!(err.contains("cancelled"), "{err}");
        assert!(output.stdout.is_empty());
        return;
    }
    panic!("the run never began");
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
    let prepared = Prepared::new(&model, &scan.image).expect("the scan suits the model");
    let plan = Plan::new(&model, prepared.volume.extent, &DeviceCaps::host(), &PlanOptions::default()).expect("there is a plan");
    let mut session = Session::on_host(&model, plan).expect("the session is made");
    let mut outputs = session.run_blocking(prepared.input(), RunOptions::default()).expect("it runs");
    let OutputData::Labels(raw) = outputs.swap_remove(0).data else { panic!("asked for labels") };
    let ours = prepared.restore_labels(raw).expect("the labels are those of the input");
    let (_, theirs) = nifti::read_labels(&labels).expect("the labels are read");
    assert!(ours == theirs);
}
