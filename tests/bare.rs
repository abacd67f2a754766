//! Checkpoints that are handed to `segment` and `convert` without their folder: they run the pipeline that they carry or lie in, or
//! are refused.
#![allow(dead_code, reason = "a part of the desk is used")]

#[path = "support/desk.rs"]
mod desk;

use std::fs;
use std::path::{Path, PathBuf};

use organum::volume::nifti;
use serde_json::{Value, json};

use desk::*;

fn vectors(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

fn text_of(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// Copies a file, making its folders.
fn copy(from: &Path, to: &Path) -> String {
    fs::create_dir_all(to.parent().expect("it has one")).expect("a folder");
    fs::copy(from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    text_of(to)
}

/// The labels of `segment` with what it says on stderr and its JSON.
fn segmented(desk: &Desk, model: &str, scans: &[String], more: &[&str]) -> (Vec<u16>, String, Value) {
    let labels = desk.out("labels.nii.gz");
    let mut args = vec!["segment", "--model", model, "--output", &labels, "--json"];
    args.extend(scans.iter().map(String::as_str));
    args.extend(more);
    let output = run(&args);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {told}");
    let labels = nifti::read_labels(&labels).expect("labels are read").1.data;
    fs::remove_file(desk.out("labels.nii.gz")).expect("it was written");
    (labels, told, serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn expected(path: &Path) -> Vec<u16> {
    nifti::read_labels(path).expect("labels are read").1.data
}

/// `segment` of a model refuses with code 4, as does what it is converted to, and `--raw` takes it.
fn refused_but_for_raw(desk: &Desk, model: &str, words: &[&str]) {
    let labels = desk.out("labels.nii");
    let args = ["segment", SCAN, "--model", model, "--output", &labels, "--device", "cpu"];
    desk.fails(4, &[&["--card", "--raw"], words].concat(), &args);
    done(&[&args[..], &["--raw"]].concat());
    fs::remove_file(&labels).expect("it was written");
    // what is not about scans needs no pipeline
    done(&["inspect", model]);
    done(&["plan", "--model", model, "--extent", "48x64x48"]);
}

#[test]
fn checkpoints_run_the_pipeline_that_they_carry_or_lie_in() {
    let desk = Desk::new();
    let (second, first, bundle) = (vectors("nnunet"), vectors("nnunet_v1"), vectors("monai/dynunet"));
    let checkpoint = second.join("model/fold_0/checkpoint_final.pth");
    let v1 = first.join("model/fold_0/model_final_checkpoint.model");
    let weights = bundle.join("bundle/models/model.pt");
    let at = |name: &str| PathBuf::from(desk.path("in", name));
    let alone = copy(&checkpoint, &at("alone/anything.pt"));
    let moved = copy(&v1, &at("moved/trained.model"));
    copy(&v1.with_extension("model.pkl"), &at("moved/trained.model.pkl"));
    // the weights without what nnU-Net wrote beside them, in a folder that says it
    let plain = copy(&second.join("checkpoint_final.safetensors"), &at("folder/fold_3/checkpoint_best.safetensors"));
    for name in ["plans.json", "dataset.json"] {
        copy(&second.join("model").join(name), &at("folder").join(name));
    }
    fs::rename(at("folder"), at("nnUNetTrainer__nnUNetPlans__3d_fullres")).expect("renamed");
    let plain = plain.replace("/folder/", "/nnUNetTrainer__nnUNetPlans__3d_fullres/");
    copy(&first.join("model/plans.pkl"), &at("nnUNetTrainerV2__nnUNetPlansv2.1/plans.pkl"));
    let unaccompanied = copy(&v1, &at("nnUNetTrainerV2__nnUNetPlansv2.1/fold_2/model_best.model"));
    let other = copy(&weights, &at("bundle/models/model_best.pt"));
    for name in ["inference.yaml", "metadata.json"] {
        copy(&bundle.join("bundle/configs").join(name), &at("bundle/configs").join(name));
    }
    // and whether it segments here, or makes the card alone of which what segments is sure to do the same
    for (model, case, folds, segments) in [
        (text_of(&checkpoint), &second, json!(["0"]), false),
        (alone, &second, json!(["0"]), true),
        (plain, &second, json!(["3"]), false),
        (text_of(&v1), &first, json!(["0"]), false),
        (moved, &first, json!(["unknown"]), true),
        (unaccompanied, &first, json!(["2"]), false),
        (text_of(&weights), &bundle, Value::Null, true),
        (other, &bundle, Value::Null, false),
    ] {
        // the model file that is made of it says what that of the folder says
        let folder = text_of(&case.join(if *case == bundle { "bundle" } else { "model" }));
        let file = desk.out("model.safetensors");
        let [own, whole] = [&model, &folder].map(|source| done_json(&["convert", source, "--output", &file])["card"].take());
        for key in ["architecture", "config", "input", "inference", "labels"] {
            assert_eq!(own[key], whole[key], "{model}: {key}");
        }
        if !segments {
            continue;
        }
        let names = ["case_0000.nii.gz", "scan_0000.nii.gz", "scan_0001.nii.gz"];
        let scans: Vec<String> = names.iter().map(|name| case.join(name)).filter(|file| file.exists()).map(|f| text_of(&f)).collect();
        let reference = expected(&case.join("expected.nii.gz"));
        let (labels, told, report) = segmented(&desk, &model, &scans, &[]);
        assert!(labels == reference, "{model}");
        // a bundle has no folds
        assert_eq!((told.as_str(), &report["folds"], &report["warnings"]), ("", &folds, &json!([])), "{model}");
    }
}

#[test]
fn a_folder_counts_before_what_its_checkpoint_carries() {
    let desk = Desk::new();
    let case = vectors("nnunet");
    let scan = text_of(&case.join("case_0000.nii.gz"));
    let folder = PathBuf::from(desk.path("in", "model"));
    let file = copy(&case.join("model/fold_0/checkpoint_final.pth"), &folder.join("fold_0/checkpoint_final.pth"));
    copy(&case.join("model/dataset.json"), &folder.join("dataset.json"));
    let mut plans: Value = serde_json::from_slice(&fs::read(case.join("model/plans.json")).expect("read")).expect("JSON");
    plans["configurations"]["3d_fullres"]["spacing"] = json!([5.0, 1.0, 1.0]);
    fs::write(folder.join("plans.json"), plans.to_string()).expect("written");
    let (labels, told, report) = segmented(&desk, &file, std::slice::from_ref(&scan), &[]);
    assert!(labels != expected(&case.join("expected.nii.gz")), "another spacing gives other labels");
    for word in ["warning", "carries other plans", "spacing_mm", "[5.0,1.0,1.0]", "the folder's are taken"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert_eq!(report["warnings"][0]["kind"], "pipeline");
    // and so in the folder itself
    let (whole, told, _) = segmented(&desk, &text_of(&folder), std::slice::from_ref(&scan), &[]);
    assert!(whole == labels && told.contains("carries other plans"), "{told}");
    let labels = desk.out("labels.nii");
    let strict = ["segment", &scan, "--model", &file, "--output", &labels, "--strict"];
    desk.fails(3, &["--strict", "carries other plans"], &strict);
    // what differs without a consequence is not worth a word
    plans["configurations"]["3d_fullres"]["spacing"] = json!([5.0, 0.800000011920929, 0.800000011920929]);
    plans["configurations"]["3d_fullres"]["batch_size"] = json!(7);
    fs::write(folder.join("plans.json"), plans.to_string()).expect("written");
    assert_eq!(segmented(&desk, &file, std::slice::from_ref(&scan), &[]).1, "");
    // plans of regions without their order are refused, wherever they are read of
    let mut dataset: Value = serde_json::from_slice(&fs::read(case.join("model/dataset.json")).expect("read")).expect("JSON");
    dataset["labels"]["organ"] = json!([1, 2]);
    fs::write(folder.join("dataset.json"), dataset.to_string()).expect("written");
    let args = ["segment", &scan, "--model", &file, "--output", &labels];
    desk.fails(4, &["labels are regions", "regions_class_order"], &args);
    desk.fails(4, &["labels are regions", "regions_class_order"], &[&args[..], &["--raw"]].concat());
    // unless a card says how scans are prepared
    let card = desk.file("card.json", br#"{"input": {"intensity": {"scheme": "zscore"}}}"#);
    let model = desk.out("model.safetensors");
    done(&["convert", &file, "--output", &model, "--card", &card]);
}

#[test]
fn what_says_nothing_of_the_input_is_refused_unless_it_is_taken_raw() {
    let desk = Desk::new();
    let at = |name: &str| PathBuf::from(desk.path("in", name));
    refused_but_for_raw(
        &desk,
        &text_of(&vectors("checkpoints/network.safetensors")),
        &["network.safetensors", "axes, spacing_mm, intensity"],
    );
    for name in ["wrapped.pth", "nested.pth", "module.pth"] {
        refused_but_for_raw(&desk, &text_of(&vectors("checkpoints").join(name)), &[name]);
        let renamed = copy(&vectors("checkpoints").join(name), &at("renamed.ckpt"));
        refused_but_for_raw(&desk, &renamed, &["renamed.ckpt"]);
    }
    // of v1, what tells the pipeline is missing
    let v1 = copy(&vectors("nnunet_v1/model/fold_0/model_final_checkpoint.model"), &at("lost.model"));
    let labels = desk.out("labels.nii");
    desk.fails(4, &["lost.model.pkl", "missing", "--raw"], &["segment", SCAN, "--model", &v1, "--output", &labels]);
    // cards that say something, and cards that do not
    let bare = text_of(&vectors("checkpoints/wrapped.pth"));
    let model = desk.path("in", "model.safetensors");
    for (input, told) in [
        (json!({"channels": ["T1"]}), false),
        (json!({"channels": ["T1"], "resample": "linear", "axes": null, "spacing_mm": null, "intensity": null}), false),
        (json!({"axes": "SPR"}), true),
        (json!({"spacing_mm": [2.0, 1.0, 1.0]}), true),
        (json!({"intensity": {"scheme": "none"}}), true),
    ] {
        let card = desk.file("card.json", json!({ "input": input }).to_string().as_bytes());
        let converted = run(&["convert", &bare, "--output", &model, "--card", &card]);
        let note = text(&converted.stderr);
        assert_eq!(converted.status.code(), Some(0), "{note}");
        assert_eq!(note.contains("says nothing of the input"), !told, "{input}: {note}");
        if told {
            done(&["segment", SCAN, "--model", &model, "--output", &labels, "--device", "cpu"]);
            fs::remove_file(&labels).expect("it was written");
        } else {
            refused_but_for_raw(&desk, &model, &["model.safetensors"]);
        }
    }
}
