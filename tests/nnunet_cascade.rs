//! Cascades of nnU-Net v2 against the labels of nnunetv2 2.8.1: `tests/vectors/nnunet_cascade`, made
//! by `tests/make_nnunet_cascade.py`.
#![allow(clippy::print_stdout, reason = "tests, which tell what they measure")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use organum::volume::nifti;
use organum::{Device, LoadOptions, RunOptions, SegmentOptions, Segmenter, open};

const LOW: &str = "nnUNetTrainer__nnUNetPlans__3d_lowres";
const CASCADE: &str = "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres";

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/nnunet_cascade")
}

fn scan() -> PathBuf {
    vectors().with_file_name("nnunet").join("case_0000.nii.gz")
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

/// The voxels in which the labels of `organum segment` differ from a file's.
fn differing(model: &Path, more: &[&str], expected: &Path) -> usize {
    let out = tempfile::tempdir().expect("a folder");
    let (labels, scan) = (out.path().join("labels.nii.gz"), scan());
    let args = ["segment", text(&scan), "--model", text(model), "--output", text(&labels), "--device", "cpu"];
    let run = organum(&[&args[..], more].concat());
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && told.is_empty(), "{told}");
    let [got, expected] = [&labels, expected].map(|path| nifti::read_labels(path).expect("labels are read").1);
    assert_eq!(got.extent, expected.extent);
    got.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count()
}

/// `organum segment` ends with this code and these words, and writes nothing.
fn refused(model: &Path, more: &[&str], code: i32, words: &str) {
    let out = tempfile::tempdir().expect("a folder");
    let (labels, scan) = (out.path().join("labels.nii.gz"), scan());
    let run = organum(&[&["segment", text(&scan), "--model", text(model), "--output", text(&labels), "--device", "cpu"], more].concat());
    let told = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(code), "{told}");
    assert!(told.contains(words), "{words:?} is not in {told}");
    assert!(!labels.exists());
}

#[test]
fn labels_of_both_stages_are_those_of_nnunetv2() {
    let mut cases = 0;
    for case in fs::read_dir(vectors()).expect("it can be listed") {
        let case = case.expect("it can be listed").path();
        let (previous, expected) = (case.join("previous.nii.gz"), case.join("expected.nii.gz"));
        let low = differing(&case.join(LOW), &[], &previous);
        let both = differing(&case.join(CASCADE), &[], &expected);
        let given = differing(&case.join(CASCADE), &["--previous", text(&previous)], &expected);
        println!("{}: {low}, {both} and {given} voxels differ", case.display());
        assert_eq!([low, both, given], [0; 3], "{}", case.display());
        cases += 1;
    }
    assert_eq!(cases, 8);
}

#[test]
fn a_segmenter_runs_both_stages() {
    let case = vectors().join("usual");
    let scan = nifti::read(scan()).expect("the scan is read");
    let model = open(case.join(CASCADE), &LoadOptions::default()).expect("it is opened");
    assert_eq!((model.first.card().in_channels(), model.first.card().scan_channels()), (3, 1));
    let mut segmenter = Segmenter::new(model, Device::Host, SegmentOptions::default()).expect("the options fit");
    let previous = segmenter.previous_stage_blocking(&scan, RunOptions::default()).expect("it runs").expect("it is a cascade");
    let expected = nifti::read_labels(case.join("previous.nii.gz")).expect("labels are read").1;
    assert_eq!(previous.data, expected.data);
    let expected = nifti::read_labels(case.join("expected.nii.gz")).expect("labels are read").1;
    let result = segmenter.segment_blocking(&scan, RunOptions::default()).expect("it is segmented");
    assert_eq!(result.labels.data, expected.data);
    let seen = organum::Scan::from(&scan).with_previous(&previous);
    assert_eq!(segmenter.previous_stage_blocking(seen.clone(), RunOptions::default()).expect("nothing to do"), None);
    let result = segmenter.segment_blocking(seen, RunOptions::default()).expect("it is segmented");
    assert_eq!(result.labels.data, expected.data);
    // without them the scan is not prepared
    let missing = segmenter.prepare(&scan).expect_err("the labels are missing").to_string();
    assert!(missing.contains("takes the labels of 3d_lowres with the scan"), "{missing}");
}

#[test]
fn the_previous_stage_is_found_beside_or_asked_for() {
    let out = tempfile::tempdir().expect("a folder");
    let case = vectors().join("usual");
    let (previous, expected) = (case.join("previous.nii.gz"), case.join("expected.nii.gz"));
    let alone = out.path().join("alone");
    let cascade = alone.join(CASCADE);
    copy(&case.join(CASCADE), &cascade);
    refused(&cascade, &[], 4, "the folder of 3d_lowres, its first, does not lie beside it");
    // the dataset's folder holds one model; a converted model needs the labels
    assert_eq!(differing(&alone, &["--previous", text(&previous)], &expected), 0);
    let one = out.path().join("one.safetensors");
    let run = organum(&["convert", text(&cascade), "--output", text(&one)]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(differing(&one, &["--previous", text(&previous)], &expected), 0);
    refused(&one, &[], 4, "--previous LABELS");
    // of another trainer with the same plans, unless there are several
    copy(&case.join(LOW), &alone.join("nnUNetTrainer_250epochs__nnUNetPlans__3d_lowres"));
    copy(&case.join(LOW), &alone.join("nnUNetTrainer__otherPlans__3d_lowres"));
    assert_eq!(differing(&cascade, &[], &expected), 0);
    copy(&case.join(LOW), &alone.join("nnUNetTrainer_5epochs__nnUNetPlans__3d_lowres"));
    refused(&cascade, &[], 4, "several models of 3d_lowres lie beside it");
    refused(&alone, &[], 4, "holds 4 trained models");
    copy(&case.join(LOW), &alone.join(LOW));
    assert_eq!(differing(&cascade, &["--fold", "0"], &expected), 0);
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    let out = tempfile::tempdir().expect("a folder");
    let case = vectors().join("usual");
    let cascade = case.join(CASCADE);
    refused(&case.join(LOW), &["--previous", text(&case.join("previous.nii.gz"))], 2, "the model is no second stage of a cascade");
    refused(&cascade, &["--previous", text(&out.path().join("none.nii.gz"))], 3, "none.nii.gz");
    let other = vectors().with_file_name("nnunet_v1").join("expected.nii.gz");
    refused(&cascade, &["--previous", text(&other)], 3, "label map of the previous stage");
    let scan = scan();
    let many = organum(&["segment", text(&scan), "-m", text(&cascade), "-o", "x/", "--previous", text(&other)]);
    assert_eq!(many.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&many.stderr).contains("--previous"));
}

#[test]
fn many_scans_have_labels_of_their_own() {
    let out = tempfile::tempdir().expect("a folder");
    let case = vectors().join("usual");
    let (scans, labels, results) = (out.path().join("scans"), out.path().join("low"), out.path().join("out"));
    for folder in [&scans, &labels, &results] {
        fs::create_dir(folder).expect("a folder");
    }
    fs::copy(scan(), scans.join("case_0000.nii.gz")).expect("copied");
    fs::copy(case.join("previous.nii.gz"), labels.join("case.nii.gz")).expect("copied");
    let pattern = labels.join("{case}.nii.gz");
    let run = organum(&[
        "segment",
        text(&scans),
        "-m",
        text(&case.join(CASCADE)),
        "-o",
        text(&results),
        "--previous",
        text(&pattern),
        "--device",
        "cpu",
    ]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let [got, expected] =
        [results.join("case.nii.gz"), case.join("expected.nii.gz")].map(|path| nifti::read_labels(path).expect("labels are read").1);
    assert_eq!(got.data, expected.data);
}
