//! The program under test, a desk of temporary files, and models made from the bundled one.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

use std::collections::{BTreeMap, HashMap};
use std::process::{Command, Output};

use organum::Extent;
use organum::volume::{Volume, nifti, resample};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

pub(crate) const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/hippocampus_u_transformer.safetensors");
pub(crate) const SCAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/mni152_hippocampus_right.nii.gz");
pub(crate) const LABELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/mni152_hippocampus_right_labels.nii.gz");
pub(crate) const LEFT_LABELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/mni152_hippocampus_left_labels.nii.gz");

pub(crate) const PLAN_KEYS: [&str; 13] = [
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

pub(crate) fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_organum"));
    // what a test compiles is not the user's
    program.env("ORGANUM_NO_PIPELINE_CACHE", "1");
    program
}

/// Runs the program; whatever happens it must not panic.
pub(crate) fn run(args: &[&str]) -> Output {
    let output = program().args(args).output().expect("the program starts");
    let err = text(&output.stderr);
    assert!(!err.contains("panicked") && output.status.code() != Some(101), "{args:?} panicked: {err}");
    output
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the program speaks UTF-8")
}

/// Standard output of a run that must succeed and have nothing to say on stderr but that the small
/// crops are not what the bundled models are for.
pub(crate) fn done(args: &[&str]) -> String {
    let output = run(args);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {err}");
    let expected = ["is not what the model is for", "is not plausible: the model's card expects"];
    let small = |line: &&str| line.starts_with("organum: warning: ") && expected.iter().any(|part| line.contains(part));
    let more: Vec<&str> = err.lines().filter(|line| !small(line)).collect();
    assert_eq!(more, [""; 0], "{args:?} notes something");
    text(&output.stdout)
}

/// The same, with `--json`: standard output is one JSON object and nothing else.
pub(crate) fn done_json(args: &[&str]) -> Value {
    let out = done(&[args, &["--json"]].concat());
    let value: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?} prints no JSON: {e}\n{out}"));
    assert!(value.is_object());
    value
}

pub(crate) fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "no key {key:?} in {value}");
    }
}

pub(crate) fn has_run_keys(value: &Value) {
    has_keys(value, &["plan", "device", "backend", "allocated_bytes", "seconds"]);
    has_keys(&value["plan"], &PLAN_KEYS);
    has_keys(&value["seconds"], &["load", "plan", "compile", "run", "total"]);
}

/// Whether this machine has an adapter.
pub(crate) fn has_adapter() -> bool {
    let devices = done_json(&["devices"]);
    let any = !devices["devices"].as_array().expect("a list of devices").is_empty();
    if !any {
        println!("skipped: no GPU adapter on this machine");
    }
    any
}

/// The devices to test on: the host, its twins, and the first adapter where there is one.
pub(crate) fn devices() -> Vec<Vec<&'static str>> {
    let mut all = vec![vec!["--device", "cpu"], vec!["--device", "reference"]];
    if has_adapter() {
        all.push(vec!["--device", "0"]);
    }
    all
}

// ---- files ----

/// A folder of inputs and a folder for outputs.
pub(crate) struct Desk(tempfile::TempDir);

impl Desk {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("there is room for temporary files");
        for part in ["in", "out"] {
            std::fs::create_dir(folder.path().join(part)).expect("a folder is made");
        }
        Self(folder)
    }

    pub(crate) fn path(&self, part: &str, name: &str) -> String {
        self.0.path().join(part).join(name).to_str().expect("temporary paths are UTF-8").to_owned()
    }

    /// Path of an output.
    pub(crate) fn out(&self, name: &str) -> String {
        self.path("out", name)
    }

    /// Path of an input that is not there yet; of all inputs without a name.
    pub(crate) fn at(&self, name: &str) -> String {
        self.path("in", name)
    }

    /// Path of an input that holds `bytes`.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path("in", name);
        std::fs::write(&path, bytes).expect("the input is written");
        path
    }

    /// Names in the output folder.
    pub(crate) fn written(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.0.path().join("out"))
            .expect("the output folder is there")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// The run must end with `code`, say all of `words` on stderr, print no data and leave nothing behind.
    pub(crate) fn fails(&self, code: i32, words: &[&str], args: &[&str]) -> String {
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
    pub(crate) fn segment_fails(&self, code: i32, words: &[&str], input: &str) -> String {
        self.fails(code, words, &["segment", input, "--model", MODEL, "--output", &self.out("labels.nii.gz"), "--device", "cpu"])
    }

    /// `segment` of the bundled scan with another model must fail with 4, as must `inspect`.
    pub(crate) fn model_fails(&self, words: &[&str], model: &[u8]) {
        let path = self.file("model.safetensors", model);
        self.fails(4, words, &["segment", SCAN, "--model", &path, "--output", &self.out("labels.nii.gz"), "--device", "cpu"]);
        self.fails(4, words, &["inspect", &path]);
    }

    /// A crop of the bundled scan with an affine of its own, 18x20x22 voxels: small, and not a multiple of the stride.
    pub(crate) fn crop(&self, name: &str) -> String {
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
    pub(crate) fn maps(&self, name: &str, channels: u32, values: Vec<f32>) -> String {
        let mut header = nifti::read(SCAN).expect("the bundled scan is read").header;
        header.dim = [3, 8, 8, 8, 1, 1, 1, 1];
        let axes = nifti::read(SCAN).expect("the bundled scan is read").image.axes;
        let maps = Volume::new(channels, Extent::new(8, 8, 8), [1.0; 3], axes, values).expect("the values fill the grid");
        let path = self.path("in", name);
        nifti::write_maps(&path, &header, &maps).expect("the maps are written");
        path
    }
}

pub(crate) fn npy(shape: &[usize], values: &[f32]) -> Vec<u8> {
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

pub(crate) fn read_npy(path: &str) -> (Vec<u64>, Vec<f32>) {
    let bytes = std::fs::read(path).expect("the array is there");
    let file = npyz::NpyFile::new(bytes.as_slice()).expect("it is an array");
    (file.shape().to_vec(), file.into_vec().expect("it holds f32"))
}

/// Values as a scan might have after z-scoring, from a fixed formula.
pub(crate) fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as f32) * 0.37).sin() + ((i / 16) as f32 * 0.11).cos()).collect()
}

// ---- models ----

pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// The bundled model with changed tensors and card (`None`: no card).
pub(crate) fn remodel(change: impl FnOnce(&mut BTreeMap<String, Tensor>, &mut Option<String>)) -> Vec<u8> {
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
pub(crate) fn recard(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    remodel(|_, card| {
        let mut value: Value = serde_json::from_str(card.as_deref().expect("the bundled model has a card")).expect("it is JSON");
        change(&mut value);
        *card = Some(value.to_string());
    })
}

/// The bundled model without its attention: a U-Net.
pub(crate) fn plain_u_net() -> Vec<u8> {
    remodel(|tensors, card| {
        tensors.retain(|name, _| !name.contains("mhsa") && !name.contains("mhca"));
        let mut value: Value = serde_json::from_str(card.as_deref().expect("the bundled model has a card")).expect("it is JSON");
        value["config"]["mhsa"] = json!(false);
        value["config"]["mhca_levels"] = json!(0);
        *card = Some(value.to_string());
    })
}
