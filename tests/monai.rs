//! MONAI bundles against what MONAI 1.6.1 makes of them: `tests/vectors/monai`, and with `ORGANUM_MONAI=FOLDER` all cases of
//! `tests/make_monai.py FOLDER`. And bundles that are refused.
#![allow(clippy::print_stdout, reason = "tests, which tell what they measure")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use organum::model::Mode;
use organum::monai::Bundle;
use organum::volume::nifti;
use serde_json::{Value, json};

/// Greatest difference of a probability.
const PROBABILITIES: f32 = 1e-5;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/monai")
}

fn cases() -> Vec<PathBuf> {
    let made = std::env::var_os("ORGANUM_MONAI").map(PathBuf::from);
    let mut folders = Vec::new();
    for folder in std::iter::once(vectors()).chain(made) {
        folders.extend(fs::read_dir(folder).expect("it is a folder").map(|case| case.expect("it can be listed").path()));
    }
    folders.sort();
    assert!(folders.len() >= 3);
    folders
}

fn organum(args: &[&str]) -> Output {
    let output =
        Command::new(env!("CARGO_BIN_EXE_organum")).env("ORGANUM_NO_PIPELINE_CACHE", "1").args(args).output().expect("organum starts");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    output
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn succeed(args: &[&str]) {
    let run = organum(args);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

fn maps(path: &Path) -> Vec<f32> {
    nifti::read_channels(&[path.to_owned()]).expect("maps are read").image.data
}

#[test]
fn labels_and_probabilities_are_those_of_monai() {
    let out = tempfile::tempdir().expect("a folder");
    let [labels, probabilities, again, model] =
        ["labels.nii.gz", "probabilities.nii.gz", "again.nii.gz", "model.safetensors"].map(|name| out.path().join(name));
    for case in cases() {
        let bundle = case.join("bundle");
        let scans: Vec<PathBuf> = (0..4).map(|c| case.join(format!("scan_{c:04}.nii.gz"))).filter(|f| f.exists()).collect();
        let mut args: Vec<&str> =
            vec!["segment", "--model", text(&bundle), "--output", text(&labels), "--probabilities", text(&probabilities)];
        args.extend(scans.iter().map(|scan| text(scan)));
        succeed(&args);
        // labels that overlap lie in a file of four dimensions, which is read as maps
        let read = |path: &Path| nifti::read_channels(&[path.to_owned()]).expect("labels are read").image;
        let (got, expected) = (read(&labels), read(&case.join("expected.nii.gz")));
        assert_eq!((got.extent, got.axes, got.channels), (expected.extent, expected.axes, expected.channels));
        let differing = got.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
        let (got, reference) = (maps(&probabilities), maps(&case.join("probabilities.nii.gz")));
        assert_eq!(got.len(), reference.len());
        let worst = got.iter().zip(&reference).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        println!("{}: {differing} of {} voxels differ, probabilities within {worst:.1e}", case.display(), expected.data.len());
        assert!(worst <= PROBABILITIES, "{}: {worst:e}", case.display());
        assert!(differing * 5000 <= expected.data.len(), "{}: {differing} voxels differ", case.display());

        // the model file that is made of a bundle does what the bundle does
        succeed(&["convert", text(&bundle), "--output", text(&model)]);
        let mut args = vec!["segment", "--model", text(&model), "--output", text(&again)];
        args.extend(scans.iter().map(|scan| text(scan)));
        succeed(&args);
        assert!(fs::read(&labels).expect("written") == fs::read(&again).expect("written"));
    }
}

#[test]
fn a_bundle_tells_its_names_and_windows() {
    let model = Bundle::open(vectors().join("unetr/bundle")).and_then(|b| b.model()).expect("it is read");
    let card = model.card();
    assert_eq!((card.mode(), card.inference.patch.as_deref(), card.inference.overlap), (Mode::Window, Some(&[32, 32, 32][..]), Some(0.5)));
    assert_eq!((card.label_name(1).as_str(), card.input.channels.as_slice()), ("liver", &["channel 0".to_owned()][..]));
    assert!(card.provenance.contains("unetr of random weights"), "{}", card.provenance);
}

#[test]
fn a_bundle_is_found_from_above_and_from_within() {
    let out = tempfile::tempdir().expect("a folder");
    let bundle = changed(out.path(), "attention_unet", |_| {});
    let inside = |name: &str| bundle.join(name);
    for path in [bundle.clone(), out.path().to_owned(), inside("configs"), inside("models"), inside("configs/inference.json")] {
        let told = organum(&["inspect", text(&path), "--json"]);
        let told: Value = serde_json::from_slice(&told.stdout).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(told["card"]["architecture"], json!("attention_unet"), "{}", path.display());
    }
    assert_eq!(Bundle::locate(&inside("models/model.pt")).expect("no error"), None);
    fs::create_dir_all(out.path().join("other/configs")).expect("a folder");
    fs::copy(inside("configs/inference.json"), out.path().join("other/configs/inference.json")).expect("copied");
    let several = organum(&["inspect", text(out.path())]);
    let told = String::from_utf8_lossy(&several.stderr);
    assert!(several.status.code() == Some(4) && told.contains("holds 2 MONAI bundles") && told.contains("name one"), "{told}");
}

/// Weights of Swin UNETR were trained with the order of patches of their time.
#[test]
fn an_old_bundle_merges_patches_as_it_did() {
    let out = tempfile::tempdir().expect("a folder");
    let bundle = changed(out.path(), "attention_unet", |c| {
        c["network_def"] =
            json!({"_target_": "SwinUNETR", "in_channels": 1, "out_channels": 3, "feature_size": 12, "img_size": [96, 96, 96]});
    });
    for (version, merging, warnings) in [("1.4.0", "merging09", 1), ("0.9.1", "merging09", 1), ("1.5.0", "merging", 0), ("", "merging", 0)]
    {
        let metadata = json!({"monai_version": version}).to_string();
        fs::write(bundle.join("configs/metadata.json"), metadata).expect("written");
        let bundle = Bundle::open(&bundle).expect("it is one");
        let card: Value = serde_json::from_str(&bundle.card().expect("it is read")).expect("JSON");
        assert_eq!((&card["config"]["merging"], bundle.warnings().expect("read").len()), (&json!(merging), warnings), "{version}");
    }
}

#[test]
fn bundles_are_planned_inspected_and_inferred_as_they_are() {
    let out = tempfile::tempdir().expect("a folder");
    let bundle = vectors().join("unetr/bundle");
    let told = |args: &[&str]| -> Value {
        let run = organum(&[args, &["--json"]].concat());
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        serde_json::from_slice(&run.stdout).expect("JSON")
    };
    let inspected = told(&["inspect", text(&bundle)]);
    assert_eq!((&inspected["checkpoint"]["format"], &inspected["card"]["architecture"]), (&json!("folder"), &json!("unetr")));
    let run = organum(&["inspect", text(&bundle)]);
    assert!(String::from_utf8_lossy(&run.stdout).contains("MONAI's {\"transforms\""));
    assert!(told(&["plan", "--model", text(&bundle), "--extent", "32x32x32"])["peak_bytes"].as_u64() > Some(0));
    let [input, output] = ["x.npy", "y.npy"].map(|name| out.path().join(name));
    let mut npy = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    npy.extend(format!("{:<117}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 32, 32, 32), }").into_bytes());
    npy.resize(npy.len() + 4 * 32 * 32 * 32, 0);
    fs::write(&input, npy).expect("written");
    assert!(told(&["infer", "--model", text(&bundle), "--input", text(&input), "--output", text(&output)])["device"].is_string());
    assert!(output.exists());
    for command in [&["plan", "--extent", "32x32x32", "--model"][..], &["inspect"][..]] {
        let run = organum(&[command, &[text(out.path())]].concat());
        assert_eq!(run.status.code(), Some(4), "{}", String::from_utf8_lossy(&run.stderr));
    }
}

/// A copy of the bundle of a case, changed.
fn changed(out: &Path, case: &str, change: impl Fn(&mut Value)) -> PathBuf {
    let (from, to) = (vectors().join(case).join("bundle"), out.join("bundle"));
    fs::create_dir_all(to.join("configs")).expect("a folder");
    fs::create_dir_all(to.join("models")).expect("a folder");
    fs::copy(from.join("models/model.pt"), to.join("models/model.pt")).expect("copied");
    let mut config = serde_json::from_slice(&fs::read(from.join("configs/inference.json")).expect("read")).expect("JSON");
    change(&mut config);
    fs::write(to.join("configs/inference.json"), config.to_string()).expect("written");
    to
}

fn refused(bundle: &Path, more: &[&str], code: i32, words: &str) {
    let output = bundle.with_file_name("never.safetensors");
    let run = organum(&[&["convert", text(bundle), "--output", text(&output)], more].concat());
    let told = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(code), "{told}");
    assert!(told.contains(words), "{words:?} is not in {told}");
    assert!(!output.exists());
}

#[test]
fn bundles_that_cannot_run_are_refused() {
    let out = tempfile::tempdir().expect("a folder");
    let told = |words: &str, change: &dyn Fn(&mut Value)| refused(&changed(out.path(), "attention_unet", change), &[], 4, words);
    told("network DiNTS is not supported", &|c| c["network_def"] = json!({"_target_": "monai.networks.nets.DiNTS"}));
    told("kernel_size", &|c| c["network_def"]["kernel_size"] = json!(5));
    told("no network_def", &|c| c["network_def"] = json!("$build()"));
    told("Resized", &|c| c["preprocessing"]["transforms"][3] = json!({"_target_": "Resized", "keys": "image"}));
    told("needs Python", &|c| c["preprocessing"] = json!("$make_transforms()"));
    let sigmoid = json!({"_target_": "Activationsd", "keys": "pred", "sigmoid": true});
    told("no AsDiscreted with a threshold", &|c| c["postprocessing"]["transforms"] = json!([sigmoid]));
    told("padding_mode of the bundle's inferer", &|c| {
        c["inferer"] = json!({"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "padding_mode": "replicate"});
        c["postprocessing"]["transforms"] = json!([]);
    });
    told("SliceInferer goes with a network of 2", &|c| c["inferer"] = json!({"_target_": "SliceInferer", "roi_size": [16, 16]}));
    told("with a SliceInferer", &|c| c["network_def"]["spatial_dims"] = json!(2));
    told("spatial_dim of the bundle's SliceInferer", &|c| {
        c["network_def"]["spatial_dims"] = json!(2);
        c["inferer"] = json!({"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 1});
        c["postprocessing"]["transforms"] = json!([]);
    });
    told("PatchInferer", &|c| c["inferer"] = json!({"_target_": "PatchInferer"}));
    told("without end", &|c| c["network_def"] = json!("@network_def"));
    told("tensors do not fit", &|c| c["network_def"]["channels"] = json!([4, 6, 10]));
    told("is no transform of a scan of 1 channels", &|c| {
        c["preprocessing"]["transforms"][3] =
            json!({"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": true, "subtrahend": [1, 2]});
    });
    let bundle = changed(out.path(), "attention_unet", |_| {});
    refused(&bundle, &["--fold", "0"], 2, "no folds");
    refused(&bundle, &["--architecture", "vnet"], 2, "--architecture");
    fs::write(bundle.join("configs/metadata.json"), "{").expect("written");
    refused(&bundle, &[], 4, "metadata.json is no JSON");
    fs::remove_file(bundle.join("configs/metadata.json")).expect("removed");
    fs::remove_file(bundle.join("models/model.pt")).expect("removed");
    refused(&bundle, &[], 4, "has no models/model.pt");
    fs::write(bundle.join("models/model.pt"), "weights").expect("written");
    refused(&bundle, &[], 4, "model.pt is not a model file");
    fs::write(bundle.join("configs/inference.json"), "[]").expect("written");
    refused(&bundle, &[], 4, "is no object");
    fs::remove_file(bundle.join("configs/inference.json")).expect("removed");
    refused(&bundle, &[], 4, "is no MONAI bundle: it has no configs/inference.json or .yaml");
    fs::write(bundle.join("configs/inference.yaml"), "a: [").expect("written");
    refused(&bundle, &[], 4, "is no YAML");
}

#[test]
fn scans_and_options_must_fit() {
    let out = tempfile::tempdir().expect("a folder");
    let labels = out.path().join("labels.nii.gz");
    let run = |bundle: &Path, more: &[&str]| {
        let run = organum(&[&["segment", "--model", text(bundle), "--output", text(&labels), "--device", "cpu"], more].concat());
        assert!(!labels.exists());
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let unetr = vectors().join("unetr");
    let (bundle, scan) = (unetr.join("bundle"), unetr.join("scan_0000.nii.gz"));
    let (code, told) = run(&bundle, &[text(&scan), text(&scan)]);
    assert!(code == Some(3) && told.contains("the scan has 2 channels, the model needs 1"), "{told}");
    for option in [["--fold", "0"], ["--attention", text(out.path())], ["--mode", "slices"]] {
        let (code, told) = run(&bundle, &[&[text(&scan)][..], &option].concat());
        assert!(code == Some(2) && told.contains(option[0]), "{told}");
    }
    let attention_unet = vectors().join("attention_unet");
    let scan = attention_unet.join("scan_0000.nii.gz");
    let (code, told) = run(&attention_unet.join("bundle"), &[text(&scan), "--mode", "window"]);
    assert!(code == Some(2) && told.contains("--mode window"), "{told}");
    let cropped = changed(out.path(), "attention_unet", |c| {
        c["preprocessing"]["transforms"][3] = json!({"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 5000, "a_max": 6000});
        c["preprocessing"]["transforms"][4] = json!({"_target_": "CropForegroundd", "keys": "image", "source_key": "image"});
    });
    let (code, told) = run(&cropped, &[text(&scan)]);
    assert!(code == Some(3) && told.contains("no foreground"), "{told}");
    let tiny = changed(out.path(), "attention_unet", |c| {
        c["preprocessing"]["transforms"][3] = json!({"_target_": "Spacingd", "keys": "image", "pixdim": [1e-4, 1e-4, 1e-4]});
    });
    let (code, told) = run(&tiny, &[text(&scan)]);
    assert!(code == Some(5) && told.contains("spacing and units"), "{told}");
}

#[test]
fn cards_are_checked() {
    let card = |input: Value| {
        json!({"architecture": "vnet", "config": {"classes": 2}, "input": input, "inference": {"mode": "whole"}}).to_string()
    };
    let read = |input: Value| organum::model::architecture(&card(input));
    let pipeline = json!({"transforms": [{"transform": "orientation", "axes": "RAS"}], "invert": "labels"});
    assert!(read(json!({"monai": pipeline})).is_ok());
    for (input, word) in [
        (json!({"monai": pipeline, "axes": "RAS"}), "goes without axes"),
        (json!({"monai": {"transforms": [{"transform": "spacing", "mm": [1.0, 1.0, -1.0]}], "invert": "labels"}}), "is no transform"),
        (json!({"monai": {"transforms": [{"transform": "blur"}], "invert": "labels"}}), "blur"),
        (json!({"monai": {"transforms": [], "invert": "labels", "largest": {"connectivity": 4, "first": true}}}), "no way to keep parts"),
    ] {
        let e = read(input).expect_err("it is refused");
        let told = format!("{e} {}", std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default());
        assert!(told.contains(word), "{told}");
    }
}
