//! Ensembles of nnU-Net v2 models against `nnUNetv2_ensemble` of nnunetv2 2.8.1:
//! `tests/vectors/nnunet_ensemble`, made by `tests/make_nnunet_ensemble.py`.
#![allow(clippy::print_stdout, reason = "tests, which tell what they measure")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use organum::volume::nifti;
use organum::{Device, LoadOptions, RunOptions, SegmentOptions, Segmenter, open};
use serde_json::Value;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn scan() -> PathBuf {
    vectors().join("nnunet/case_0000.nii.gz")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// `organum segment` with these models.
fn segmented(models: &[PathBuf], labels: &Path, more: &[&str]) -> Output {
    let (scan, mut command) = (scan(), Command::new(env!("CARGO_BIN_EXE_organum")));
    command.args(["segment", text(&scan), "--output", text(labels), "--device", "cpu"]);
    for model in models {
        command.args(["--model", text(model)]);
    }
    command.args(more).output().expect("organum starts")
}

fn cases() -> Vec<(PathBuf, Vec<PathBuf>)> {
    let case = |entry: fs::DirEntry| {
        let told: Value = serde_json::from_slice(&fs::read(entry.path().join("case.json")).expect("read")).expect("JSON");
        let names = told["models"].as_array().expect("a list").iter().map(|name| name.as_str().expect("text"));
        (entry.path(), names.map(|name| vectors().join("nnunet_kinds").join(name)).collect())
    };
    let entries = fs::read_dir(vectors().join("nnunet_ensemble")).expect("it can be listed");
    entries.map(|entry| case(entry.expect("it can be listed"))).collect()
}

#[test]
fn labels_are_those_of_nnunetv2() {
    let out = tempfile::tempdir().expect("a folder");
    let labels = out.path().join("labels.nii.gz");
    let cases = cases();
    assert_eq!(cases.len(), 3);
    for (case, models) in cases {
        let run = segmented(&models, &labels, &[]);
        let told = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && told.is_empty(), "{told}");
        let [got, expected] = [&labels, &case.join("expected.nii.gz")].map(|path| nifti::read_labels(path).expect("labels are read").1);
        let differing = got.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
        println!("{}: {differing} of {} voxels differ", case.display(), got.data.len());
        assert_eq!(differing, 0, "{}", case.display());
    }
}

#[test]
fn probabilities_are_means() {
    let models = ["old_plain", "flat"].map(|name| vectors().join("nnunet_kinds").join(name));
    let scan = nifti::read(scan()).expect("the scan is read");
    let options = || SegmentOptions::default().with_probabilities();
    let segmenter = |model: &PathBuf| {
        let networks = open(model, &LoadOptions::default()).expect("it is opened");
        Segmenter::new(networks, Device::Host, options()).expect("the options fit")
    };
    let [mut first, mut second] = [&models[0], &models[1]].map(segmenter);
    let whole = |result: &organum::Segmentation| {
        let probabilities = result.probabilities.as_ref().expect("they were asked for");
        probabilities.to_volume().expect("they are computed")
    };
    let own = [&mut first, &mut second].map(|s| whole(&s.segment_blocking(&scan, RunOptions::default()).expect("it is segmented")));
    let result = first.segment_with_blocking(std::slice::from_mut(&mut second), &scan, RunOptions::default()).expect("it is segmented");
    let mean = whole(&result);
    assert_eq!((mean.channels, mean.extent), (3, scan.image.extent));
    assert!(mean.data.iter().zip(&own[0].data).zip(&own[1].data).all(|((m, a), b)| *m == (a + b) / 2.0));
    let voxels = result.labels.data.len();
    for (at, &label) in result.labels.data.iter().enumerate() {
        let highest = (0..3).map(|class| mean.data[class * voxels + at]).fold(0.0, f32::max);
        assert_eq!(mean.data[usize::from(label) * voxels + at], highest);
    }
    let of_first = result.volumes.iter().map(|v| v.voxels).sum::<u64>();
    assert_eq!(of_first, result.labels.data.iter().filter(|l| **l > 0).count() as u64);
}

#[test]
fn post_processing_that_is_given_applies_to_the_merged_labels() {
    let out = tempfile::tempdir().expect("a folder");
    let labels = out.path().join("labels.nii.gz");
    let models = ["old_plain", "flat"].map(|name| vectors().join("nnunet_kinds").join(name));
    let file = vectors().join("nnunet_postprocessing/foreground/postprocessing.pkl");
    let run = segmented(&models, &labels, &["--postprocessing", text(&file), "--json"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let found = nifti::read_labels(&labels).expect("labels are read").1;
    // one component of all labels is left
    let (n, inside): (_, Vec<bool>) = (found.extent.axes().map(|n| n as usize), found.data.iter().map(|l| *l > 0).collect());
    let first = inside.iter().position(|inside| *inside).expect("something is left");
    let (mut reached, mut stack) = (vec![false; inside.len()], vec![first]);
    reached[first] = true;
    while let Some(at) = stack.pop() {
        let place = [at / (n[1] * n[2]), at / n[2] % n[1], at % n[2]];
        for step in 0..27 {
            let step = [step / 9, step / 3 % 3, step % 3];
            let there = [0, 1, 2].map(|a| (place[a] + step[a]).checked_sub(1).filter(|i| *i < n[a]));
            let [Some(z), Some(y), Some(x)] = there else { continue };
            let next = (z * n[1] + y) * n[2] + x;
            if inside[next] && !reached[next] {
                reached[next] = true;
                stack.push(next);
            }
        }
    }
    assert_eq!(reached, inside);
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let out = tempfile::tempdir().expect("a folder");
    let labels = out.path().join("labels.nii.gz");
    let kind = |name: &str| vectors().join("nnunet_kinds").join(name);
    let refused = |models: [PathBuf; 2], more: &[&str], words: &str| {
        let run = segmented(&models, &labels, more);
        let told = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{told}");
        assert!(told.contains(words) && !labels.exists(), "{words:?} is not in {told}");
    };
    refused([kind("regions"), kind("flat")], &[], "or other regions");
    refused([kind("flat"), kind("flat")], &["--attention", text(out.path())], "they go with one model");
    refused([kind("flat"), kind("flat")], &["--previous", text(&scan())], "they go with one model");
    let other = out.path().join("other");
    fs::create_dir_all(other.join("fold_0")).expect("a folder");
    for name in ["plans.json", "fold_0/checkpoint_final.safetensors"] {
        fs::copy(kind("flat").join(name), other.join(name)).expect("copied");
    }
    let dataset = fs::read_to_string(kind("flat").join("dataset.json")).expect("read").replace("lesion", "vessel");
    fs::write(other.join("dataset.json"), dataset).expect("written");
    refused([kind("flat"), other], &[], "label 2 is \"lesion\" in one model and \"vessel\" in another");
}
