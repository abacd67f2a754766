//! nnU-Net v2 models of every kind against the labels of nnunetv2 2.8.1:
//! `tests/vectors/nnunet_kinds`, made by `tests/make_nnunet_kinds.py`. And which folds, checkpoints
//! and windows are asked for.
#![allow(clippy::print_stdout, reason = "tests, which tell what they measure")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use organum::nnunet::Folder;
use organum::volume::nifti;
use organum::{Device, LoadOptions, RunOptions, SegmentOptions, Segmenter, open};
use serde_json::Value;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/nnunet_kinds")
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

/// A copy of a case's folder.
fn copied(case: &str, to: &Path) -> PathBuf {
    let model = to.join(case);
    for fold in fs::read_dir(vectors().join(case)).expect("it can be listed") {
        let from = fold.expect("it can be listed").path();
        let name = from.file_name().expect("it has a name");
        fs::create_dir_all(&model).expect("a folder");
        if from.is_dir() {
            fs::create_dir_all(model.join(name)).expect("a folder");
            for file in fs::read_dir(&from).expect("it can be listed") {
                let file = file.expect("it can be listed").path();
                fs::copy(&file, model.join(name).join(file.file_name().expect("a name"))).expect("copied");
            }
        } else {
            fs::copy(&from, model.join(name)).expect("copied");
        }
    }
    model
}

#[test]
fn labels_are_those_of_nnunetv2() {
    let out = tempfile::tempdir().expect("a folder");
    let (labels, scan) = (out.path().join("labels.nii.gz"), scan());
    let mut cases = 0;
    for case in fs::read_dir(vectors()).expect("it can be listed") {
        let case = case.expect("it can be listed").path();
        let told: Value = serde_json::from_slice(&fs::read(case.join("case.json")).expect("read")).expect("JSON");
        let more = told["args"].as_array().expect("a list").iter().map(|arg| arg.as_str().expect("text"));
        let args = ["segment", text(&scan), "--model", text(&case), "--output", text(&labels), "--device", "cpu"];
        let run = organum(&args.into_iter().chain(more).collect::<Vec<_>>());
        let name = case.file_name().unwrap_or_default().to_string_lossy();
        let told = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && told.is_empty(), "{name}: {told}");
        let [got, expected] = [&labels, &case.join("expected.nii.gz")].map(|path| nifti::read_labels(path).expect("labels are read").1);
        assert_eq!(got.extent, expected.extent);
        let differing = got.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
        println!("{name}: {differing} of {} voxels differ", got.data.len());
        // of `all`, a voxel's two highest 16-bit logits are neighbours
        assert!(differing <= usize::from(name == "all"), "{name}: {differing} voxels differ");
        cases += 1;
    }
    assert!(cases >= 21, "{cases}");
}

#[test]
fn regions_have_names_and_sizes() {
    let out = tempfile::tempdir().expect("a folder");
    let (labels, scan, model) = (out.path().join("labels.nii.gz"), scan(), vectors().join("regions"));
    let maps = out.path().join("maps.nii.gz");
    let args = ["segment", text(&scan), "--model", text(&model), "--output", text(&labels), "--device", "cpu", "--json"];
    let run = organum(&[&args[..], &["--probabilities", text(&maps)]].concat());
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let told: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    let voxels = |name: &str| told["labels"][name]["voxels"].as_u64();
    let counted = |label: u16| {
        let (_, found) = nifti::read_labels(vectors().join("regions/expected.nii.gz")).expect("labels are read");
        Some(found.data.iter().filter(|l| **l == label).count() as u64)
    };
    // the order of the file: whole, enhancing, core write 1, 3, 2
    assert_eq!([voxels("whole"), voxels("core"), voxels("enhancing")], [1, 2, 3].map(counted));
    let maps = nifti::read(&maps).expect("probabilities are read").image;
    assert_eq!(maps.channels, 3, "one for each region");
    let run = organum(&["inspect", text(&model)]);
    let told = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(told.contains("1 whole, 2 core, 3 enhancing"), "{told}");
}

#[test]
fn checkpoints_are_taken_by_name_and_named_where_there_are_others() {
    let out = tempfile::tempdir().expect("a folder");
    let model = copied("best", out.path());
    let missing =
        "has no fold with a checkpoint_final.pth or checkpoint_final.safetensors; there are checkpoint_best.safetensors: take one";
    refused(&model, &[], 4, missing);
    refused(&model, &["--fold", "0"], 4, "fold_0 has no checkpoint_final.pth or checkpoint_final.safetensors; there are checkpoint_best");
    refused(&model, &["--checkpoint", "latest"], 4, "checkpoint_latest.pth or checkpoint_latest.safetensors; there are checkpoint_best");
    refused(&model.join("fold_0"), &[], 4, "has no checkpoint_final.pth or checkpoint_final.safetensors; there are checkpoint_best");
    refused(&model.join("fold_0/checkpoint_best.safetensors"), &["--checkpoint", "best"], 2, "has no checkpoints");
    for name in ["best", "checkpoint_best", "checkpoint_best.safetensors"] {
        for place in [model.clone(), model.join("fold_0"), out.path().to_owned()] {
            let networks = open(&place, &LoadOptions::default().with_checkpoint(name)).expect("it is opened");
            assert_eq!(networks.folds(), ["0"]);
        }
    }
    // the one of the whole training, where there are both
    let fold = model.join("fold_0");
    fs::copy(fold.join("checkpoint_best.safetensors"), fold.join("checkpoint_final.safetensors")).expect("copied");
    assert!(open(&model, &LoadOptions::default()).is_ok());
    let file = out.path().join("model.safetensors");
    let run = organum(&["convert", text(&model), "--checkpoint", "best", "--output", text(&file)]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let run = organum(&["convert", text(&file), "--checkpoint", "best", "--output", text(&out.path().join("other.safetensors"))]);
    assert_eq!(run.status.code(), Some(2));
}

#[test]
fn checkpoints_of_the_first_version_are_taken_by_name() {
    let out = tempfile::tempdir().expect("a folder");
    let from = vectors().with_file_name("nnunet_v1").join("model/fold_0");
    let fold = out.path().join("fold_0");
    fs::create_dir(&fold).expect("a folder");
    for ending in ["", ".pkl"] {
        let name = format!("model_final_checkpoint.model{ending}");
        fs::copy(from.join(name), fold.join(format!("model_latest.model{ending}"))).expect("copied");
    }
    let plans = vectors().with_file_name("nnunet_v1").join("model/plans.pkl");
    if plans.exists() {
        fs::copy(plans, out.path().join("plans.pkl")).expect("copied");
    } else {
        fs::write(out.path().join("plans.pkl"), "").expect("written");
    }
    let words = "has no fold with a model_final_checkpoint.model or model_best.model; there are model_latest.model: take one";
    refused(out.path(), &[], 4, words);
    let folder = Folder::open_checkpoint(out.path(), Some("latest")).expect("it is opened");
    assert_eq!(folder.folds().expect("there is one"), ["0"]);
    assert!(folder.card("0").is_ok());
    let folder = Folder::open_checkpoint(out.path(), Some("model_latest.model")).expect("it is opened");
    assert!(folder.card("0").is_ok());
}

#[test]
fn folds_are_chosen_and_averaged() {
    let model = vectors().join("folds");
    let folds = |options: LoadOptions| open(&model, &options).map(|networks| networks.folds().to_vec());
    assert_eq!(folds(LoadOptions::default()).expect("folds"), ["0", "1", "2"]);
    assert_eq!(folds(LoadOptions::default().with_fold("2").with_fold("0")).expect("folds"), ["2", "0"]);
    refused(&model, &["--fold", "3"], 4, "fold_3 has no checkpoint_final.pth");
    // the first fold is opened at once, the others as they are needed
    refused(&model, &["--fold", "0,7"], 4, "fold_7 has no checkpoint_final.pth");
    refused(&vectors().join("regions/fold_0/checkpoint_final.safetensors"), &["--fold", "0"], 2, "has no folds");
}

#[test]
fn windows_are_what_the_options_say() {
    let scan = nifti::read(scan()).expect("the scan is read");
    let passes = |options: SegmentOptions| {
        let model = open(vectors().join("flat"), &LoadOptions::default()).expect("it is opened");
        let mut segmenter = Segmenter::new(model, Device::Host, options).expect("the options fit");
        let result = segmenter.segment_blocking(&scan, RunOptions::default()).expect("it is segmented");
        let windows = result.report.windows.expect("it runs in windows");
        (windows.count, windows.passes)
    };
    let (count, mirrored) = passes(SegmentOptions::default());
    assert_eq!(mirrored, 8 * count);
    assert_eq!(passes(SegmentOptions::default().without_mirroring()), (count, count));
    assert_eq!(passes(SegmentOptions::default().with_step(0.5)), (count, mirrored));
    let wide = passes(SegmentOptions::default().with_step(1.0).without_mirroring());
    assert!(wide.0 < count);
    assert_eq!(passes(SegmentOptions::default().with_overlap(0.0).without_mirroring()), wide);
}

#[test]
fn windows_that_cannot_be_are_refused() {
    let model = vectors().join("flat");
    refused(&model, &["--overlap", "1"], 2, "1 is not in 0 to below 1");
    refused(&model, &["--step-size", "0"], 2, "0 is not above 0 to 1");
    refused(&model, &["--step-size", "1.5"], 2, "1.5 is not above 0 to 1");
    refused(&model, &["--step-size", "nan"], 2, "NaN is not above 0 to 1");
    refused(&model, &["--step-size", "0.5", "--overlap", "0.5"], 2, "cannot be used with");
    let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/hippocampus_unet.safetensors");
    for more in [&["--no-mirror"][..], &["--overlap", "0.25"], &["--step-size", "0.25"]] {
        refused(&whole, &[more, &["--mode", "whole"]].concat(), 2, "not in windows");
    }
}

#[test]
fn torch_resampling_keeps_its_bits() {
    // torch.nn.functional.interpolate of torch 2.15 on a CPU, made by make_nnunet_kinds.py's cases
    // `torch*`: prepared scans differ from scipy's splines, so that a case resampled by them has
    // other labels
    let out = tempfile::tempdir().expect("a folder");
    let model = copied("torch_regions", out.path());
    let file = model.join("plans.json");
    let plans = fs::read_to_string(&file).expect("read").replace("resample_torch_fornnunet", "resample_data_or_seg_to_shape");
    let plans = plans.replace("\"memefficient_seg_resampling\": false, ", "").replace(", \"memefficient_seg_resampling\": false", "");
    fs::write(&file, plans).expect("written");
    let (labels, scan) = (out.path().join("labels.nii.gz"), scan());
    let run = organum(&["segment", text(&scan), "--model", text(&model), "--output", text(&labels), "--device", "cpu"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let [got, expected] = [&labels, &model.join("expected.nii.gz")].map(|path| nifti::read_labels(path).expect("labels are read").1);
    assert!(got.data != expected.data);
}
