//! Folders of nnU-Net against what nnunetv2 2.8.1 and nnunet 1.7.1 make of them: `tests/vectors/nnunet` and `nnunet_v1`, and with
//! `ORGANUM_NNUNET=FOLDER` all cases of `tests/make_nnunet.py FOLDER` or `tests/make_nnunet_v1.py FOLDER`. And folders that are refused.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "tests, which tell what they measure")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use organum::WarningKind;
use organum::back::SplineCase;
use organum::nnunet::Folder;
use organum::volume::{Volume, nifti};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// Greatest difference of a prepared scan, as a share of its greatest value.
const PREPARED: f32 = 1e-5;

fn cases() -> Vec<PathBuf> {
    let made = std::env::var_os("ORGANUM_NNUNET").map(PathBuf::from);
    let mut folders = vec![vectors(), first()];
    for folder in made.iter().flat_map(|f| fs::read_dir(f).expect("ORGANUM_NNUNET is a folder")) {
        folders.push(folder.expect("it can be listed").path());
    }
    folders.retain(|f| f.join("expected.nii.gz").exists());
    folders.sort();
    assert!(!folders.is_empty());
    folders
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/nnunet")
}

/// The same of nnU-Net v1.
fn first() -> PathBuf {
    vectors().with_file_name("nnunet_v1")
}

fn scan(case: &Path) -> nifti::Scan {
    let files: Vec<_> = (0..9).map(|c| case.join(format!("case_{c:04}.nii.gz"))).filter(|f| f.exists()).collect();
    nifti::read_channels(&files).expect("the scan is read")
}

fn floats(file: &Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(file).expect("expected.safetensors is there");
    let tensors = SafeTensors::deserialize(&bytes).expect("it is one");
    let tensor = tensors.tensor(name).expect("it has the tensor");
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F16 => data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

fn organum(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_organum")).env("ORGANUM_NO_PIPELINE_CACHE", "1").args(args).output().expect("organum starts")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Voxels that differ, and the least Dice of a class but the background.
fn compare(a: &Volume<u16>, b: &Volume<u16>) -> (usize, f64) {
    assert_eq!((a.extent, a.axes), (b.extent, b.axes));
    let differing = a.data.iter().zip(&b.data).filter(|(a, b)| a != b).count();
    let classes = a.data.iter().chain(&b.data).copied().max().unwrap_or(0);
    let dice = |class: u16| {
        let count = |v: &Volume<u16>| v.data.iter().filter(|l| **l == class).count();
        let both = a.data.iter().zip(&b.data).filter(|(a, b)| **a == class && **b == class).count();
        let sum = count(a) + count(b);
        if sum == 0 { 1.0 } else { 2.0 * both as f64 / sum as f64 }
    };
    (differing, (1..=classes).map(dice).fold(1.0, f64::min))
}

#[test]
fn scans_are_prepared_and_logits_exported_as_nnunet_does_it() {
    for path in cases() {
        let folder = Folder::open(path.join("model")).expect("the folder is read");
        let card = folder.card(&folder.folds().expect("there is a fold")[0]).expect("it has a card");
        let pipeline = card.input.nnunet.as_ref().expect("the card has the pipeline");
        let case = SplineCase::new(&card, pipeline, &scan(&path).image).expect("the scan is prepared");
        let expected = path.join("expected.safetensors");
        let data = floats(&expected, "data");
        assert_eq!(case.volume.data.len(), data.len(), "{}: {}", path.display(), case.volume.extent);
        assert!(case.volume.data.iter().chain(&data).all(|v| v.is_finite()));
        let greatest = data.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let worst = case.volume.data.iter().zip(&data).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / greatest;

        let (_, reference) = nifti::read_labels(path.join("expected.nii.gz")).expect("labels are read");
        let results = if pipeline.is_first() { "probabilities" } else { "logits" };
        let (labels, maps) = case.export(&floats(&expected, results), card.classes(), true).expect("they are exported");
        let (differing, _) = compare(&labels, &reference);
        println!(
            "{}: {}, prepared within {worst:.1e}, {differing} voxels of nnU-Net's own {results} differ",
            path.display(),
            case.volume.extent
        );
        assert!(worst <= PREPARED, "{}: {worst:e}", path.display());
        assert_eq!(differing, 0, "{}", path.display());
        let sums = maps.expect("probabilities were asked for");
        let n = reference.data.len();
        assert!((0..n).all(|v| ((0..3).map(|c| sums.data[c * n + v]).sum::<f32>() - 1.0).abs() < 1e-5));
    }
}

#[test]
fn labels_are_those_of_nnunet() {
    let out = tempfile::tempdir().expect("a folder");
    let labels = out.path().join("labels.nii.gz");
    let is_variant = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("variant_"));
    for path in cases().into_iter().filter(|path| !is_variant(path)) {
        let (_, reference) = nifti::read_labels(path.join("expected.nii.gz")).expect("labels are read");
        let (model, input) = (path.join("model"), path.join("case_0000.nii.gz"));
        let run = organum(&["segment", text(&input), "--model", text(&model), "--output", text(&labels), "--json"]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let told: Value = serde_json::from_slice(&run.stdout).expect("JSON");
        let (_, got) = nifti::read_labels(&labels).expect("labels are read");
        let (differing, dice) = compare(&got, &reference);
        let n = reference.data.len();
        println!(
            "{}: folds {}, {} passes; {differing} of {n} voxels differ, least Dice {dice:.5}",
            path.display(),
            told["folds"],
            told["windows"]["passes"]
        );
        assert!(dice >= 0.999, "{}: {dice}", path.display());

        // a fold's model file does what the folder does with that fold
        let file = out.path().join("model.safetensors");
        let run = organum(&["convert", text(&model), "--output", text(&file), "--fold", "0"]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let [by_file, by_folder] = [(&file, None), (&model, Some("0"))].map(|(model, fold)| {
            let mut args = vec!["segment", text(&input), "--model", text(model), "--output", text(&labels)];
            args.extend(fold.iter().flat_map(|fold| ["--fold", fold]));
            let run = organum(&args);
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            nifti::read_labels(&labels).expect("labels are read").1
        });
        assert!(by_file == by_folder);
    }
    // nnU-Net's own checkpoint says what a safetensors file of its weights says in its metadata
    let plain = Folder::open(changed(out.path(), |_, _| {})).expect("a folder");
    let own = Folder::open(vectors().join("model")).expect("a folder");
    assert!(own.card("0").expect("a card") == plain.card("0").expect("a card"));
    let weights = |folder: &Folder| {
        let model = folder.model("0").expect("it loads");
        model.graph().parameters().iter().map(|(name, _)| model.weights().floats(name).expect("it is there")).collect::<Vec<_>>()
    };
    assert!(weights(&own) == weights(&plain));
}

/// A folder with the plans and the dataset of the vectors, changed.
fn changed(out: &Path, change: impl Fn(&mut Value, &mut Value)) -> PathBuf {
    let model = out.join("model");
    fs::create_dir_all(model.join("fold_0")).expect("a folder");
    let json = |name: &str| serde_json::from_slice(&fs::read(vectors().join("model").join(name)).expect("read")).expect("JSON");
    let (mut plans, mut dataset) = (json("plans.json"), json("dataset.json"));
    change(&mut plans, &mut dataset);
    fs::write(model.join("plans.json"), plans.to_string()).expect("written");
    fs::write(model.join("dataset.json"), dataset.to_string()).expect("written");
    let weights = "checkpoint_final.safetensors";
    fs::copy(vectors().join(weights), model.join("fold_0").join(weights)).expect("copied");
    model
}

/// `organum convert` ends with this code and words, and writes nothing.
fn refused(model: &Path, more: &[&str], code: i32, words: &str) {
    let output = model.with_file_name("never.safetensors");
    let args = [&["convert", text(model), "--output", text(&output)], more].concat();
    let run = organum(&args);
    let told = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(code), "{told}");
    assert!(told.contains(words), "{words:?} is not in {told}");
    assert!(!output.exists());
}

/// Scans on grids of every sort, whose headers contradict themselves too, by each of nnU-Net's
/// readers: `tests/vectors/nnunet_readers`, or with `ORGANUM_READERS=FOLDER` those of
/// `tests/make_nnunet.py .. readers`.
#[test]
fn scans_have_the_spacing_that_nnunets_readers_say() {
    let made = std::env::var_os("ORGANUM_READERS").map(PathBuf::from);
    let folder = made.unwrap_or_else(|| vectors().with_file_name("nnunet_readers"));
    let cases: Value = serde_json::from_slice(&fs::read(folder.join("cases.json")).expect("read")).expect("JSON");
    let bytes = fs::read(folder.join("scans.safetensors")).expect("read");
    let arrays = SafeTensors::deserialize(&bytes).expect("tensors");
    let out = tempfile::tempdir().expect("a folder");
    let [scan, labels] = ["scan.nii", "labels.nii"].map(|name| out.path().join(name));
    let cases = cases.as_array().expect("a list");
    assert!(cases.len() >= 20);
    let mut failed = Vec::new();
    for case in cases {
        let name = case["name"].as_str().expect("a name");
        let header = arrays.tensor(&format!("{name}.header")).expect("a header");
        let voxels = arrays.tensor(&format!("voxels{}", case["voxels"])).expect("voxels");
        fs::write(&scan, [header.data(), &[0; 4], voxels.data()].concat()).expect("written");
        let model = changed(out.path(), |plans, _| plans["image_reader_writer"] = case["reader"].clone());
        let run = organum(&["segment", text(&scan), "--model", text(&model), "--output", text(&labels)]);
        let told = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{name}: {told}");
        let (_, got) = nifti::read_labels(&labels).expect("labels are read");
        let (_, expected) = nifti::read_labels(folder.join(format!("{name}.nii.gz"))).expect("labels are read");
        assert_eq!(got.extent, expected.extent, "{name}");
        let differing = got.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
        println!("{name} {}: {differing} of {} voxels differ", case["reader"], got.data.len());
        if differing > 0 {
            failed.push(format!("{name} {}: {differing} voxels {told}", case["reader"]));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn folders_that_are_none_are_refused() {
    let out = tempfile::tempdir().expect("a folder");
    refused(&out.path().join("nowhere"), &[], 4, "cannot open the model");
    refused(out.path(), &[], 4, "is no folder of an nnU-Net model: it has neither plans.json nor plans.pkl");
    let model = changed(out.path(), |_, _| {});
    refused(&model, &["--fold", "3"], 4, "fold_3 has no checkpoint_final.pth or checkpoint_final.safetensors");
    fs::create_dir(model.join("fold_3")).expect("a folder");
    fs::write(model.join("fold_3/checkpoint_final.safetensors"), "weights").expect("written");
    refused(&model, &["--fold", "3"], 4, "checkpoint_final.safetensors is not a model file");
    refused(&model, &[], 2, "has the folds 0, 3");
    fs::rename(model.join("fold_3/checkpoint_final.safetensors"), model.join("fold_3/checkpoint_final.pth")).expect("renamed");
    refused(&model, &["--fold", "3"], 4, "checkpoint_final.pth is not a model file");
    for file in ["fold_0/checkpoint_final.safetensors", "fold_3/checkpoint_final.pth"] {
        fs::remove_file(model.join(file)).expect("removed");
    }
    refused(&model, &[], 4, "has no fold with a checkpoint_final.pth or checkpoint_final.safetensors");
    fs::write(model.join("dataset.json"), "{").expect("written");
    refused(&model, &[], 4, "dataset.json is no JSON");
    fs::write(model.join("dataset.json"), "{}").expect("written");
    fs::rename(model.join("plans.json"), model.join("plan.json")).expect("renamed");
    refused(&model, &[], 4, "plans.json");
    let run = organum(&["convert", text(&model), "--output", "model.onnx"]);
    assert_eq!(run.status.code(), Some(2));
}

#[test]
fn what_is_not_supported_is_told() {
    let out = tempfile::tempdir().expect("a folder");
    let told = |words: &str, change: &dyn Fn(&mut Value, &mut Value)| refused(&changed(out.path(), change), &[], 4, words);
    let conf = |plans: &mut Value, key: &str, value: Value| plans["configurations"]["3d_fullres"][key] = value;
    let args = |plans: &mut Value, key: &str, value: Value| {
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"][key] = value;
    };
    told("no regions_class_order", &|_, dataset| dataset["labels"]["organ"] = json!([1, 2]));
    told("not one label for each of the 2 regions", &|_, dataset| {
        dataset["labels"]["organ"] = json!([1, 2]);
        dataset["regions_class_order"] = json!([1]);
    });
    told("the label \"ignore\" is [7], not 3", &|_, dataset| dataset["labels"]["ignore"] = json!(7));
    told("are not 0, 1 and so on", &|_, dataset| dataset["labels"]["organ"] = json!(7));
    told("dataset.json is not what nnU-Net v2 writes", &|_, dataset| dataset["labels"] = json!(3));
    told("plans.json is not what nnU-Net v2 writes", &|plans, _| plans["transpose_forward"] = json!([0, 1]));
    told("transpose [0, 0, 1]", &|plans, _| plans["transpose_forward"] = json!([0, 0, 1]));
    told("the plans have no configuration", &|plans, _| plans["configurations"] = json!({"2d": {}}));
    told("inherits without end", &|plans, _| conf(plans, "inherits_from", json!("3d_fullres")));
    told("the argument is_seg = false of resample_data_or_seg_to_shape, of label maps, is not supported", &|plans, _| {
        conf(plans, "previous_stage", json!("3d_lowres"));
        conf(plans, "resampling_fn_seg_kwargs", json!({"is_seg": false}));
    });
    told("no_resampling_hack is for both", &|plans, _| {
        conf(plans, "previous_stage", json!("3d_lowres"));
        conf(plans, "resampling_fn_seg", json!("no_resampling_hack"));
        conf(plans, "resampling_fn_seg_kwargs", json!({}));
    });
    told("preprocessor", &|plans, _| conf(plans, "preprocessor_name", json!("OtherPreprocessor")));
    told("reader", &|plans, _| plans["image_reader_writer"] = json!("NaturalImage2DIO"));
    told("network class", &|plans, _| conf(plans, "architecture", json!({"network_class_name": "a.Primus", "arch_kwargs": {}})));
    told("neither architecture nor UNet_class_name", &|plans, _| conf(plans, "architecture", Value::Null));
    told("network class \"a.OwnUNet\"", &|plans, _| {
        conf(plans, "architecture", json!({"network_class_name": "a.OwnUNet", "arch_kwargs": {}}))
    });
    told("the plans' network is not what nnU-Net v2 writes", &|plans, _| {
        conf(plans, "architecture", Value::Null);
        conf(plans, "UNet_class_name", json!("PlainConvUNet"));
    });
    told("arch_kwargs lack strides", &|plans, _| args(plans, "strides", Value::Null));
    told("features_per_stage", &|plans, _| args(plans, "n_stages", json!(9)));
    told("norm_op", &|plans, _| args(plans, "norm_op", json!("torch.nn.GroupNorm")));
    // batch norm runs; these weights are of another network
    told("missing encoder.stages.0.0.convs.0.norm.running_mean", &|plans, _| args(plans, "norm_op", json!("torch.nn.BatchNorm3d")));
    told("label manager \"OwnManager\"", &|plans, _| plans["label_manager"] = json!("OwnManager"));
    for key in ["nonlin", "conv_op"] {
        told(&format!("{key} = null"), &|plans, _| args(plans, key, Value::Null));
    }
    told("norm_op_kwargs = {\"affine\":true,\"eps\":null}", &|plans, _| {
        args(plans, "norm_op_kwargs", json!({"affine": true, "eps": null}))
    });
    // None is no norm, no parameters, no bias: the weights have some
    for key in ["norm_op", "norm_op_kwargs"] {
        told("extra decoder.encoder.stages.0.0.convs.0.norm.bias", &|plans, _| args(plans, key, Value::Null));
    }
    told("extra decoder.encoder.stages.0.0.convs.0.conv.bias", &|plans, _| args(plans, "conv_bias", Value::Null));
    told("squeeze_excitation", &|plans, _| args(plans, "squeeze_excitation", json!(true)));
    told("normalisation", &|plans, _| conf(plans, "normalization_schemes", json!(["OwnNormalization"])));
    told("normalise 2 channels", &|plans, _| conf(plans, "normalization_schemes", json!(["NoNormalization", "NoNormalization"])));
    told("lack intensities", &|plans, _| plans["foreground_intensity_properties_per_channel"] = json!({}));
    told("resampling by \"resample_own\"", &|plans, _| conf(plans, "resampling_fn_data", json!("resample_own")));
    told("the argument order = 3 of resample_torch_fornnunet", &|plans, _| {
        conf(plans, "resampling_fn_data", json!("resample_torch_fornnunet"));
    });
    told("do not come back to a scan that is resampled", &|plans, _| {
        conf(plans, "resampling_fn_probabilities", json!("no_resampling_hack"));
        conf(plans, "resampling_fn_probabilities_kwargs", json!({}));
    });
    told("order 2", &|plans, _| conf(plans, "resampling_fn_data_kwargs", json!({"order": 2})));
    // a folder that is as it should be, but for weights of another network
    told("tensors do not fit", &|plans, _| args(plans, "features_per_stage", json!([8, 12, 20])));
    // and one that is
    let model = changed(out.path(), |plans, _| {
        let own = plans["configurations"]["3d_fullres"].take();
        plans["configurations"] = json!({"base": own, "3d_fullres": {"inherits_from": "base"}});
    });
    let file = out.path().join("model.safetensors");
    assert!(organum(&["convert", text(&model), "--output", text(&file)]).status.success());
    let told = organum(&["segment", "x.nii", "--model", text(&file), "--fold", "0", "--output", "y.nii"]);
    assert_eq!(told.status.code(), Some(2), "{}", String::from_utf8_lossy(&told.stderr));
}

/// A folder with the vectors' weights, of a trainer.
fn trained_by(out: &Path, trainer: Option<&str>) -> PathBuf {
    let model = changed(out, |_, _| {});
    let file = model.join("fold_0/checkpoint_final.safetensors");
    let bytes = fs::read(&file).expect("read");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("it is one");
    let mut said = header.metadata().clone().unwrap_or_default();
    said.remove("trainer_name");
    said.extend(trainer.map(|name| ("trainer_name".to_owned(), name.to_owned())));
    let tensors = SafeTensors::deserialize(&bytes).expect("it is one").tensors();
    fs::write(&file, safetensors::serialize(tensors, Some(said)).expect("a file")).expect("written");
    model
}

#[test]
fn trainers_are_known_or_told() {
    let out = tempfile::tempdir().expect("a folder");
    let file = out.path().join("model.safetensors");
    for (trainer, words) in [
        ("nnUNetTrainer", ""),
        ("nnUNetTrainer_onlyMirror01_DA5", ""),
        ("nnUNetTrainerDiceTopK10Loss", ""),
        ("nnUNet_Trainer_BS8", ""),
        ("nnUNetTrainerMine", "nnUNetTrainerMine is no trainer of nnunetv2 2.8.1: taken to be nnUNetTrainer"),
        ("nnUNetTrainer_", "nnUNetTrainer_ is no trainer of nnunetv2 2.8.1"),
        ("OwnTrainer", "OwnTrainer is no trainer of nnunetv2 2.8.1"),
    ] {
        let model = trained_by(out.path(), Some(trainer));
        let run = organum(&["convert", text(&model), "--output", text(&file)]);
        let told = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && told.contains(words) && told.is_empty() == words.is_empty(), "{trainer}: {told}");
        let warnings = Folder::open(&model).and_then(|folder| folder.warnings("0")).expect("a folder");
        assert!(warnings.iter().all(|w| w.kind == WarningKind::Pipeline) && warnings.is_empty() == words.is_empty());
    }
    // the trainer of the folder's name, where the checkpoint tells none
    let folder = trained_by(out.path(), None).with_file_name("TheirTrainer__nnUNetPlans__3d_fullres");
    fs::rename(out.path().join("model"), &folder).expect("renamed");
    let run = organum(&["convert", text(&folder), "--output", text(&file)]);
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && told.contains("TheirTrainer is no trainer"), "{told}");
    // those that build another network
    refused(
        &trained_by(out.path(), Some("nnUNet_Primus_M_Trainer")),
        &[],
        4,
        "nnUNet_Primus_M_Trainer is not supported: its network is Primus",
    );
    refused(&trained_by(out.path(), Some("nnUNetTrainerBN")), &[], 4, "missing encoder.stages.0.0.convs.0.norm.running_mean");
}

#[test]
fn channels_must_fit_and_windows_are_the_only_mode() {
    let out = tempfile::tempdir().expect("a folder");
    let labels = out.path().join("labels.nii.gz");
    let (model, input) = (vectors().join("model"), vectors().join("case_0000.nii.gz"));
    let run = |more: &[&str]| {
        let args = [&["segment", text(&input), "--model", text(&model), "--output", text(&labels), "--device", "cpu"], more].concat();
        let run = organum(&args);
        assert!(!labels.exists());
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let (code, told) = run(&[text(&input)]);
    assert!(code == Some(3) && told.contains("the scan has 2 channels, the model needs 1 (CT)"), "{told}");
    let (code, told) = run(&[text(&vectors().join("other_grid.nii.gz"))]);
    assert!(code == Some(3), "{told}");
    let (code, told) = run(&["--mode", "whole"]);
    assert!(code == Some(2) && told.contains("runs in windows"), "{told}");
}

#[test]
fn the_first_channel_brings_the_others() {
    let card = r#"{"architecture":"plain_conv_unet","config":{"dims":3,"in_channels":2,"classes":3,"features":[4,6],"kernels":[[3,3,3],[3,3,3]],
        "strides":[[1,1,1],[2,2,2]],"convs_per_stage":1},"inference":{"patch":[4,8,8],"mode":"window"},"input":{"nnunet":{"transpose":[0,1,2],
        "spacing_mm":[12.0,3.0,3.0],"channels":[{"scheme":"range"},{"scheme":"zscore","masked":true}],
        "resample":{"order":3,"order_along":0},"resample_logits":{"order":1,"order_along":0}}}}"#;
    let out = tempfile::tempdir().expect("a folder");
    let [model, first, second, labels, other] =
        ["m.safetensors", "x_0000.nii.gz", "x_0001.nii.gz", "y.nii.gz", "z.nii.gz"].map(|n| out.path().join(n));
    fs::write(&model, organum::model::random_weights(card, 7).expect("a model")).expect("written");
    fs::copy(vectors().join("case_0000.nii.gz"), &first).expect("copied");
    let run = |inputs: &[&Path], labels: &Path| {
        let mut args = vec!["segment", "--model", text(&model), "--output", text(labels), "--device", "cpu"];
        args.extend(inputs.iter().map(|path| text(path)));
        let run = organum(&args);
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let (code, told) = run(&[&first], &labels);
    assert!(code == Some(3) && told.contains("x_0001.nii.gz"), "{told}");
    fs::copy(&first, &second).expect("copied");
    let (code, told) = run(&[&first], &second);
    assert!(code == Some(2) && told.contains("would overwrite"), "{told}");
    assert_eq!(run(&[&first], &labels).0, Some(0));
    assert_eq!(run(&[&first, &second], &other).0, Some(0));
    assert_eq!(fs::read(&labels).expect("written"), fs::read(&other).expect("written"));
    // such a card goes without other scaling, and its numbers are checked
    for (from, to) in [
        ("\"nnunet\":{", "\"spacing_mm\":[1,1,1],\"nnunet\":{"),
        ("\"nnunet\":{", "\"nnunet\":{\"version\":1,"),
        ("[12.0,3.0,3.0]", "[3.0,3.0]"),
        ("\"order\":3", "\"order\":4"),
    ] {
        let told = organum::model::architecture(&card.replace(from, to)).expect_err("it is refused").to_string();
        assert!(told.contains("nnunet"), "{told}");
    }
}

/// A pickle of protocol 2; keys that are numbers are numbers.
fn pickled(value: &Value) -> Vec<u8> {
    fn put(value: &Value, out: &mut Vec<u8>) {
        let text = |text: &str, out: &mut Vec<u8>| {
            out.push(b'X');
            out.extend(u32::try_from(text.len()).expect("short").to_le_bytes());
            out.extend(text.as_bytes());
        };
        let int = |n: i64, out: &mut Vec<u8>| {
            out.push(b'J');
            out.extend(i32::try_from(n).expect("small").to_le_bytes());
        };
        match value {
            Value::Null => out.push(b'N'),
            Value::Bool(b) => out.push(if *b { 0x88 } else { 0x89 }),
            Value::Number(n) => match n.as_i64() {
                Some(n) => int(n, out),
                None => {
                    out.push(b'G');
                    out.extend(n.as_f64().expect("a number").to_be_bytes());
                }
            },
            Value::String(s) => text(s, out),
            Value::Array(items) => {
                out.extend(b"](");
                items.iter().for_each(|item| put(item, out));
                out.push(b'e');
            }
            Value::Object(items) => {
                out.extend(b"}(");
                for (key, value) in items {
                    match key.parse() {
                        Ok(n) => int(n, out),
                        Err(_) => text(key, out),
                    }
                    put(value, out);
                }
                out.push(b'u');
            }
        }
    }
    let mut out = b"\x80\x02".to_vec();
    put(value, &mut out);
    out.push(b'.');
    out
}

const WEIGHTS: &str = "fold_0/model_final_checkpoint.model";

/// A folder with the weights of v1's vectors, and what is told beside them, changed.
fn first_changed(out: &Path, change: impl Fn(&mut Value)) -> PathBuf {
    let model = out.join("TrainerOfFolder__nnUNetPlansv2.1");
    fs::create_dir_all(model.join("fold_0")).expect("a folder");
    fs::copy(first().join("model").join(WEIGHTS), model.join(WEIGHTS)).expect("copied");
    let stage = json!({"patch_size": [9, 28, 24], "current_spacing": [5.0, 0.8, 0.8], "pool_op_kernel_sizes": [[1, 2, 2], [1, 2, 2]]});
    let mut told = json!({
        "init": ["plans.pkl", 0, "results", "preprocessed", true, 0, true, true, true],
        "name": "nnUNetTrainerV2",
        "class": "anything",
        "plans": {
            "plans_per_stage": {"0": stage},
            "num_modalities": 1, "modalities": {"0": "CT"}, "num_classes": 2,
            "normalization_schemes": {"0": "noNorm"}, "use_mask_for_norm": {"0": false},
            "dataset_properties": {"all_classes": [1, 2], "intensityproperties": {"0": {"mean": 1.0, "sd": 2.0, "percentile_00_5": 0, "percentile_99_5": 3.5}}},
            "transpose_forward": [0, 1, 2], "preprocessor_name": "GenericPreprocessor", "conv_per_stage": 2,
        },
    });
    change(&mut told);
    fs::write(model.join(format!("{WEIGHTS}.pkl")), pickled(&told)).expect("written");
    model
}

#[test]
fn what_is_not_supported_of_the_first_version_is_told() {
    let out = tempfile::tempdir().expect("a folder");
    let told = |words: &str, change: &dyn Fn(&mut Value)| refused(&first_changed(out.path(), change), &[], 4, words);
    let trainers = [
        ("nnUNetTrainerV2CascadeFullRes", "a cascade"),
        ("nnUNetTrainerV2BraTSRegions_DA4_BN", "regions"),
        ("nnUNetTrainerV2_ResencUNet_DA3", "residual"),
        ("nnUNetTrainerV2_GeLU", "GELU"),
        ("nnUNetTrainerV2_Mish", "Mish"),
        ("nnUNetTrainerV2_ReLU_biasInSegOutput", "another activation"),
        ("nnUNetTrainerV2_LReLU_slope_2en1", "another activation"),
        ("nnUNetTrainerV2_lReLU_convReLUIN", "another activation"),
        ("nnUNetTrainerV2_FRN", "filter response"),
        ("nnUNetTrainerV2_GN", "group norm"),
        ("nnUNetTrainerV2_NoNormalization", "without norms"),
    ];
    for (name, words) in trainers {
        told(name, &|told| told["name"] = json!(name));
        told(words, &|told| told["name"] = json!(name));
    }
    let plans = |told: &mut Value, key: &str, value: Value| told["plans"][key] = value;
    let stage = |told: &mut Value, key: &str, value: Value| told["plans"]["plans_per_stage"]["0"][key] = value;
    told("preprocessor \"PreprocessorFor2D\"", &|told| plans(told, "preprocessor_name", json!("PreprocessorFor2D")));
    told("has no stage 1, but 0", &|told| told["init"][5] = json!(1));
    told("has the stages 0, 1, and nothing tells", &|told| {
        told["init"][5] = Value::Null;
        let stage = told["plans"]["plans_per_stage"]["0"].clone();
        told["plans"]["plans_per_stage"]["1"] = stage;
    });
    told("their channels are 1, not 2", &|told| plans(told, "num_modalities", json!(2)));
    told("their classes are 3, not 4", &|told| plans(told, "num_classes", json!(3)));
    told("their strides are", &|told| stage(told, "pool_op_kernel_sizes", json!([[2, 2, 2], [1, 2, 2]])));
    told("their dimensions are 3, not 2", &|told| stage(told, "patch_size", json!([28, 24])));
    told("patches [9]", &|told| stage(told, "patch_size", json!([9])));
    told("how channel 0 is normalised", &|told| plans(told, "use_mask_for_norm", json!({})));
    told("lack intensities of channel 0", &|told| {
        plans(told, "normalization_schemes", json!({"0": "CT2"}));
        plans(told, "dataset_properties", json!({"intensityproperties": null}));
    });
    told("order 2", &|told| {
        let export = json!({"force_separate_z": null, "interpolation_order": 2, "interpolation_order_z": 0});
        plans(told, "segmentation_export_params", export);
    });
    told("transpose [0, 1, 1]", &|told| plans(told, "transpose_forward", json!([0, 1, 1])));
    told("holds no plans of nnU-Net v1", &|told| plans(told, "num_classes", json!("many")));
    told("holds no plans of nnU-Net v1", &|told| *told = json!([1]));
    let model = first_changed(out.path(), |_| {});
    let beside = model.join(format!("{WEIGHTS}.pkl"));
    fs::write(&beside, "plans").expect("written");
    refused(&model, &[], 4, "is no pickle that is read");
    fs::remove_file(beside).expect("removed");
    refused(&model, &[], 4, "plans.pkl");

    // weights that are others, damaged, or none
    let model = first_changed(out.path(), |_| {});
    let other = organum::model::random_weights(r#"{"architecture":"unet2d","config":{"in_channels":1,"classes":3,"base":4}}"#, 1);
    fs::write(model.join(WEIGHTS), other.expect("a model")).expect("written");
    refused(&model, &[], 4, "the network of nnUNetTrainerV2 is not supported");
    fs::write(model.join(WEIGHTS), b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.").expect("written");
    refused(&model, &[], 4, "the version of the checkpoint's format is damaged");
    refused(&model, &["--fold", "1"], 4, "fold_1 has no model_final_checkpoint.model or model_best.model");
    refused(&model, &["--architecture", "unet2d"], 2, "the plans or configs of a folder tell them");
    fs::remove_file(model.join(WEIGHTS)).expect("removed");
    refused(&model, &[], 4, "neither plans.json nor plans.pkl");
    fs::write(model.join("plans.pkl"), "").expect("written");
    refused(&model, &[], 4, "has no fold with a model_final_checkpoint.model or model_best.model");
}

#[test]
fn folders_of_the_first_version_are_read_in_their_forms() {
    let out = tempfile::tempdir().expect("a folder");
    let file = out.path().join("model.safetensors");
    let convert = |model: &Path, more: &[&str]| {
        let run = organum(&[&["convert", text(model), "--output", text(&file), "--json"], more].concat());
        let told = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success(), "{told}");
        (serde_json::from_slice::<Value>(&run.stdout).expect("JSON")["card"].clone(), told)
    };
    let (card, told) = convert(&first_changed(out.path(), |_| {}), &[]);
    assert!(told.is_empty(), "{told}");
    assert_eq!(card["input"]["nnunet"]["version"], 1);
    assert_eq!(card["provenance"], "nnU-Net v1: nnUNetTrainerV2, stage 0 of 1, fold 0");
    let inference = json!({"mode": "window", "patch": [9, 28, 24], "overlap": 0.5, "mirror": [0, 1, 2], "scheme": "nnunet_v1", "accumulate_visited": false});
    assert_eq!(card["inference"], inference);
    // how the file's own card says the same
    let own = Folder::open(first().join("model")).expect("a folder").card("0").expect("a card");
    let own = serde_json::to_value(own).expect("JSON");
    for key in ["architecture", "config", "inference", "labels", "provenance"] {
        assert_eq!(own[key], card[key], "{key}");
    }
    // the plans and the trainer beside the weights count, not those of the folder
    let scheme = |scheme: &'static str, masked: bool| {
        move |told: &mut Value| {
            told["plans"]["normalization_schemes"]["0"] = json!(scheme);
            told["plans"]["use_mask_for_norm"]["0"] = json!(masked);
        }
    };
    let channel =
        |change: &dyn Fn(&mut Value)| convert(&first_changed(out.path(), change), &[]).0["input"]["nnunet"]["channels"][0].clone();
    assert_eq!(channel(&scheme("CT", false)), json!({"scheme": "ct", "low": 0.0, "high": 3.5, "mean": 1.0, "std": 2.0}));
    assert_eq!(channel(&scheme("CT2", true)), json!({"scheme": "ct2", "low": 0.0, "high": 3.5, "masked": true}));
    assert_eq!(channel(&scheme("nonCT", true)), json!({"scheme": "zscore", "masked": true}));
    assert_eq!(channel(&scheme("noNorm", true)), json!({"scheme": "none"}));
    let (card, _) = convert(
        &first_changed(out.path(), |told| {
            told["name"] = json!("nnUNetTrainerV2_DDP");
            told["init"] = json!(["plans.pkl", 0, 7, "results", "preprocessed", true, 0, true]);
            told["plans"]["preprocessor_name"] = json!("GenericPreprocessor_linearResampling");
            told["plans"]["transpose_forward"] = Value::Null;
            told["plans"]["plans_per_stage"]["7"] = told["plans"]["plans_per_stage"]["0"].clone();
        }),
        &[],
    );
    assert_eq!(card["input"]["nnunet"]["resample"]["order"], 1);
    assert_eq!(card["provenance"], "nnU-Net v1: nnUNetTrainerV2_DDP, stage 0 of 2, fold 0");

    // trainers without mirror images; those that nnunet 1.7.1 does not have, and what it does afterwards
    let (card, told) = convert(&first_changed(out.path(), |told| told["name"] = json!("nnUNetTrainerV2_noMirroring")), &[]);
    assert!(card["inference"]["mirror"] == json!([]) && told.is_empty(), "{told}");
    let model = first_changed(out.path(), |told| told["name"] = json!("nnUNetTrainerV2_ep4000_nomirror"));
    fs::write(model.join("postprocessing.json"), r#"{"for_which_classes": [1, [1, 2]]}"#).expect("written");
    let (card, told) = convert(&model, &[]);
    assert_eq!(card["inference"]["mirror"], json!([]));
    assert!(told.contains("is no trainer of nnunet 1.7.1: taken to be nnUNetTrainerV2, without mirror images"), "{told}");
    let filter = |labels: Value| json!({"filter": "largest_components", "labels": labels, "connectivity": 1});
    assert_eq!(card["input"]["nnunet"]["postprocessing"], json!([filter(json!([1])), filter(json!([1, 2]))]));
    fs::write(model.join("postprocessing.json"), r#"{"for_which_classes": []}"#).expect("written");
    assert_eq!(convert(&model, &[]).0["input"]["nnunet"]["postprocessing"], Value::Null);

    // the plans alone, whose stage the folder's place tells; the best model where none is trained to the end; all folds in one
    for (place, patch) in [("3d_lowres", [9, 28, 24]), ("3d_fullres", [9, 32, 32])] {
        let within = out.path().join(place).join("Task001");
        let model = first_changed(&within, |_| {});
        let told = first_plans(patch);
        fs::write(model.join("plans.pkl"), pickled(&told)).expect("written");
        fs::remove_file(model.join(format!("{WEIGHTS}.pkl"))).expect("removed");
        let (card, told) = convert(&model, &[]);
        assert_eq!(card["inference"]["patch"], json!(patch));
        assert!(told.contains("TrainerOfFolder is no trainer"), "{told}");
    }
    let model = first_changed(out.path(), |_| {});
    for (from, to) in [(WEIGHTS, "all/model_best.model"), (&format!("{WEIGHTS}.pkl"), "all/model_best.model.pkl")] {
        fs::create_dir_all(model.join("all")).expect("a folder");
        fs::copy(model.join(from), model.join(to)).expect("copied");
    }
    assert!(convert(&model, &[]).0["provenance"].as_str().is_some_and(|p| p.ends_with("fold 0")));
    assert!(convert(&model, &["--fold", "all"]).0["provenance"].as_str().is_some_and(|p| p.ends_with("fold all")));
    fs::remove_dir_all(model.join("fold_0")).expect("removed");
    assert!(convert(&model, &[]).0["provenance"].as_str().is_some_and(|p| p.ends_with("fold all")));
}

/// Plans of two stages, the second of this patch.
fn first_plans(patch: [u32; 3]) -> Value {
    let stage = |patch: [u32; 3]| json!({"patch_size": patch, "current_spacing": [5.0, 0.8, 0.8]});
    json!({
        "plans_per_stage": {"0": stage([9, 28, 24]), "1": stage(patch)}, "num_modalities": 1, "modalities": {"0": "CT"}, "num_classes": 2,
        "normalization_schemes": {"0": "noNorm"}, "use_mask_for_norm": {"0": false}, "dataset_properties": {},
    })
}
