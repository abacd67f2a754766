//! MONAI bundles on scans of every sort of grid, against what MONAI 1.6.1 makes of them:
//! `tests/vectors/monai_grids`, or with `ORGANUM_GRIDS=FOLDER` those of `tests/make_grids.py FOLDER
//! COUNT`.
#![allow(clippy::print_stdout, reason = "a test, which tells what it measures")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use organum::volume::nifti;
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// Greatest difference of a probability: 1e-5, and half a step of the 16 bits in which the
/// reference is kept.
const PROBABILITIES: f32 = 1e-5 + 0.5 / 65535.0;

fn folder() -> PathBuf {
    let vectors = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/monai_grids");
    std::env::var_os("ORGANUM_GRIDS").map_or_else(vectors, PathBuf::from)
}

/// The bundle with the transforms of a case.
fn bundle(out: &Path, case: &Value) -> PathBuf {
    let (from, to) = (folder().join("bundle"), out.join("bundle"));
    fs::create_dir_all(to.join("configs")).expect("a folder");
    fs::create_dir_all(to.join("models")).expect("a folder");
    fs::copy(from.join("models/model.pt"), to.join("models/model.pt")).expect("copied");
    let config = fs::read(from.join("configs/inference.json")).expect("read");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    let mut before = vec![json!({"_target_": "LoadImaged", "keys": "image"}), json!({"_target_": "EnsureChannelFirstd", "keys": "image"})];
    before.extend(case["preprocessing"].as_array().expect("a list").iter().cloned());
    config["preprocessing"] = json!({"_target_": "Compose", "transforms": before});
    config["postprocessing"] = json!({"_target_": "Compose", "transforms": case["postprocessing"]});
    fs::write(to.join("configs/inference.json"), config.to_string()).expect("written");
    to
}

fn affine(path: &Path) -> Vec<f64> {
    let (_, labels) = nifti::read_labels(path).expect("labels are read");
    let [k, j, i] = labels.affine().steps;
    let row = |r: usize| [i[r], j[r], k[r], labels.affine().origin[r]];
    [row(0), row(1), row(2)].concat()
}

#[test]
fn labels_on_another_grid_are_told() {
    let cases: Value = serde_json::from_slice(&fs::read(folder().join("cases.json")).expect("read")).expect("JSON");
    let nothing = |case: &&Value| case["postprocessing"].as_array().is_some_and(|list| list.last().is_some_and(|c| c["resample"] == false));
    let case = cases.as_array().and_then(|cases| cases.iter().find(nothing)).expect("one saves what was prepared");
    let bytes = fs::read(folder().join("grids.safetensors")).expect("read");
    let arrays = SafeTensors::deserialize(&bytes).expect("tensors");
    let header = arrays.tensor(&format!("{}.header", case["name"].as_str().expect("a name"))).expect("a header");
    let voxels = arrays.tensor(&format!("voxels{}", case["voxels"])).expect("voxels");
    let out = tempfile::tempdir().expect("a folder");
    let [scan, labels, picture] = ["scan.nii", "labels.nii", "picture.png"].map(|name| out.path().join(name));
    fs::write(&scan, [header.data(), &[0; 4], voxels.data()].concat()).expect("written");
    let bundle = bundle(out.path(), case);
    let run = |more: &[&Path]| {
        let run = Command::new(env!("CARGO_BIN_EXE_organum"))
            .env("ORGANUM_NO_PIPELINE_CACHE", "1")
            .args(["segment", "--device", "cpu", "--model"])
            .args([&bundle, Path::new("--output"), &labels, &scan])
            .args(more)
            .output()
            .expect("organum starts");
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let (code, told) = run(&[Path::new("--overlay"), &picture]);
    assert!(code == Some(2) && told.contains("on another grid") && !labels.exists(), "{told}");
    let (code, told) = run(&[Path::new("--strict")]);
    assert!(code == Some(3) && !labels.exists(), "{told}");
    let (code, told) = run(&[]);
    assert!(code == Some(0) && told.contains("the bundle inverts nothing") && labels.exists(), "{told}");
}

#[test]
fn every_grid_is_resampled_as_monai_does() {
    let cases: Value = serde_json::from_slice(&fs::read(folder().join("cases.json")).expect("read")).expect("JSON");
    let bytes = fs::read(folder().join("grids.safetensors")).expect("read");
    let arrays = SafeTensors::deserialize(&bytes).expect("tensors");
    let out = tempfile::tempdir().expect("a folder");
    let [scan, labels, maps] = ["scan.nii", "labels.nii", "maps.nii"].map(|name| out.path().join(name));
    let mut failed = Vec::new();
    let cases = cases.as_array().expect("a list");
    assert!(cases.len() >= 20);
    for case in cases {
        let name = case["name"].as_str().expect("a name");
        let array = |what: &str| arrays.tensor(&format!("{name}.{what}")).ok();
        let voxels = arrays.tensor(&format!("voxels{}", case["voxels"])).expect("voxels");
        let header = array("header").expect("a header");
        fs::write(&scan, [header.data(), &[0; 4], voxels.data()].concat()).expect("written");
        let bundle = bundle(out.path(), case);
        let run = Command::new(env!("CARGO_BIN_EXE_organum"))
            .env("ORGANUM_NO_PIPELINE_CACHE", "1")
            .args(["segment", "--device", "cpu", "--model"])
            .args([&bundle, Path::new("--output"), &labels, Path::new("--probabilities"), &maps, &scan])
            .output()
            .expect("organum starts");
        assert!(run.status.success(), "{name}: {}", String::from_utf8_lossy(&run.stderr));

        let expected = array("labels").expect("labels");
        let (_, got) = nifti::read_labels(&labels).expect("labels are read");
        let shape: Vec<usize> = got.extent.axes().iter().map(|&n| n as usize).collect();
        if shape != expected.shape() {
            failed.push(format!("{name}: {shape:?} voxels, not {:?}", expected.shape()));
            continue;
        }
        let differing = got.data.iter().zip(expected.data()).filter(|(a, b)| **a != u16::from(**b)).count();
        let mut worst = 0.0f32;
        if let Some(expected) = array("probability") {
            let got = nifti::read_channels(&[&maps]).expect("maps are read").image;
            let last = got.channel(got.channels - 1).expect("a class");
            let values = expected.data().as_chunks::<2>().0.iter().map(|b| f32::from(u16::from_le_bytes(*b)) / 65535.0);
            worst = last.iter().zip(values).fold(0.0, |m, (a, b)| m.max((a - b).abs()));
        }
        let mut apart = 0.0f64;
        if let Some(expected) = array("affine") {
            let values = expected.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b));
            apart = affine(&labels).iter().zip(values).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
        }
        println!("{name}: {differing} of {} voxels differ, probabilities within {worst:.1e}, affine {apart:.1e}", got.data.len());
        if differing > 0 || worst > PROBABILITIES || apart > 1e-5 {
            failed.push(format!("{name}: {differing} voxels, {worst:e}, affine {apart:e}"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
