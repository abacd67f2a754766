//! Post-processing of nnU-Net against nnunetv2 2.8.1 and nnunet 1.7.1:
//! `tests/vectors/nnunet_postprocessing`, made by `tests/make_nnunet_postprocessing.py`.
#![allow(clippy::print_stdout, reason = "tests, which tell what they measure")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use organum::nnunet::postprocessing;
use organum::scan::Filter;
use organum::volume::nifti;
use organum::{LoadOptions, open};
use serde_json::Value;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn organum(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_organum")).args(args).output().expect("organum starts")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        let there = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            copy(&path, &there);
        } else {
            fs::copy(&path, there).expect("copied");
        }
    }
}

/// A copy of the folder of a model, its scan, and the labels that nnU-Net finds without
/// post-processing.
fn model(name: &str, to: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let first = name == "nnunet_v1";
    let folder = vectors().join(name);
    let copied = to.join("model");
    copy(&if first { folder.join("model") } else { folder.clone() }, &copied);
    let scan = if first { folder.join("case_0000.nii.gz") } else { vectors().join("nnunet/case_0000.nii.gz") };
    (copied, scan, folder.join("expected.nii.gz"))
}

/// The voxels in which the labels of `organum segment` differ from a file's.
fn differing(scan: &Path, model: &Path, more: &[&str], expected: &Path) -> usize {
    let out = tempfile::tempdir().expect("a folder");
    let labels = out.path().join("labels.nii.gz");
    let args = ["segment", text(scan), "--model", text(model), "--output", text(&labels), "--device", "cpu"];
    let run = organum(&[&args[..], more].concat());
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && told.is_empty(), "{told}");
    let [got, expected] = [&labels, expected].map(|path| nifti::read_labels(path).expect("labels are read").1);
    assert_eq!(got.extent, expected.extent);
    got.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count()
}

fn file(case: &Path) -> PathBuf {
    let names = ["postprocessing.pkl", "postprocessing.json"];
    names.into_iter().map(|name| case.join(name)).find(|file| file.exists()).expect("a file of post-processing")
}

#[test]
fn labels_are_those_of_nnunet() {
    let mut cases = 0;
    for case in fs::read_dir(vectors().join("nnunet_postprocessing")).expect("it can be listed") {
        let case = case.expect("it can be listed").path();
        let told: Value = serde_json::from_slice(&fs::read(case.join("case.json")).expect("read")).expect("JSON");
        let out = tempfile::tempdir().expect("a folder");
        let (folder, scan, before) = model(told["model"].as_str().expect("text"), out.path());
        let (file, expected) = (file(&case), case.join("expected.nii.gz"));
        let by_option = differing(&scan, &folder, &["--postprocessing", text(&file)], &expected);
        fs::copy(&file, folder.join(file.file_name().expect("a name"))).expect("copied");
        let beside = differing(&scan, &folder, &[], &expected);
        let without = differing(&scan, &folder, &["--no-postprocessing"], &before);
        println!("{}: {by_option}, {beside} and {without} voxels differ", case.display());
        assert_eq!([by_option, beside, without], [0; 3], "{}", case.display());
        cases += 1;
    }
    assert_eq!(cases, 8);
}

#[test]
fn a_converted_model_keeps_it() {
    let out = tempfile::tempdir().expect("a folder");
    let (folder, scan, before) = model("nnunet_kinds/ignore", out.path());
    let case = vectors().join("nnunet_postprocessing/each");
    fs::copy(file(&case), folder.join("postprocessing.json")).expect("copied");
    let one = out.path().join("one.safetensors");
    let run = organum(&["convert", text(&folder), "--output", text(&one)]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(differing(&scan, &one, &[], &case.join("expected.nii.gz")), 0);
    assert_eq!(differing(&scan, &one, &["--disable_postprocessing"], &before), 0);
    let other = vectors().join("nnunet_postprocessing/foreground");
    assert_eq!(differing(&scan, &one, &["--postprocessing", text(&file(&other))], &other.join("expected.nii.gz")), 0);
}

#[test]
fn that_of_a_cross_validation_is_named_and_not_applied() {
    let out = tempfile::tempdir().expect("a folder");
    let (folder, ..) = model("nnunet_kinds/ignore", out.path());
    let validation = folder.join("crossval_results_folds_0_1");
    fs::create_dir(&validation).expect("a folder");
    let names = |case: &str, options: &LoadOptions| {
        fs::copy(file(&vectors().join("nnunet_postprocessing").join(case)), validation.join("postprocessing.pkl")).expect("copied");
        let networks = open(&folder, options).expect("it is opened");
        networks.warnings().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let told = names("foreground", &LoadOptions::default());
    assert!(told.len() == 1 && told[0].contains("postprocessing.pkl is not applied, as nnUNetv2_predict does not"), "{told:?}");
    assert_eq!(names("nothing", &LoadOptions::default()), [""; 0]);
    let given = LoadOptions::default().with_postprocessing(Vec::new());
    assert_eq!(names("foreground", &given), [""; 0], "what is asked for is no surprise");
}

#[test]
fn what_is_no_post_processing_is_refused() {
    let out = tempfile::tempdir().expect("a folder");
    let (folder, scan, _) = model("nnunet_kinds/ignore", out.path());
    let labels = out.path().join("labels.nii.gz");
    let refused = |model: &Path, more: &[&str], code: i32, words: &str| {
        let args = ["segment", text(&scan), "--model", text(model), "--output", text(&labels), "--device", "cpu"];
        let run = organum(&[&args[..], more].concat());
        let told = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(code), "{told}");
        assert!(told.contains(words) && !labels.exists(), "{words:?} is not in {told}");
    };
    let missing = out.path().join("postprocessing.pkl");
    refused(&folder, &["--postprocessing", text(&missing)], 4, "cannot read");
    fs::write(&missing, "").expect("written");
    refused(&folder, &["--postprocessing", text(&missing)], 4, "is no pickle that is read");
    refused(&folder, &["--postprocessing", text(&missing), "--no-postprocessing"], 2, "cannot be used with");
    fs::copy(&missing, folder.join("postprocessing.pkl")).expect("copied");
    refused(&folder, &[], 4, "is no pickle that is read");
    let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/hippocampus_unet.safetensors");
    refused(&whole, &["--no-postprocessing"], 4, "goes with a model of its pipeline");
    // filters are data, of Python's names too
    let filters = postprocessing(file(&vectors().join("nnunet_postprocessing/numpy"))).expect("it is read");
    let want = Filter::LargestComponents { labels: vec![2], connectivity: 3, background: 1, keep_mm3: None };
    assert_eq!(filters, [want]);
}
