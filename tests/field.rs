//! Cases that people in this trade met, one test a row of `shared/field/README.md`, each on small
//! input that is made here; those of MONAI on the bundles that lie there.
#![allow(dead_code, clippy::print_stdout, reason = "a part of the desk is used; skips belong to a test's output")]

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::DeflateDecoder;
use organum::back::SplineCase;
use organum::volume::nifti;
use organum::{LoadOptions, open};
use serde_json::{Value, json};

use desk::*;

const PIXDIM: usize = 80;
const SROW_X: usize = 280;

fn vectors(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

fn text_of(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).expect("a folder");
        for entry in fs::read_dir(from).expect("it can be listed") {
            let path = entry.expect("it can be listed").path();
            copy(&path, &to.join(path.file_name().expect("a name")));
        }
    } else {
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::copy(from, to).expect("copied");
    }
}

/// The scan of the small nnU-Net models.
fn scan() -> String {
    text_of(&vectors("nnunet/case_0000.nii.gz"))
}

/// The labels of `segment`, what it says on stderr, and its JSON.
fn segmented(desk: &Desk, model: &Path, scan: &str, more: &[&str]) -> (Vec<u16>, String, Value) {
    let (labels, model) = (desk.out("labels.nii.gz"), text_of(model));
    let args = ["segment", scan, "--model", &model, "--output", &labels, "--device", "cpu", "--json"];
    let output = run(&[&args[..], more].concat());
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let found = nifti::read_labels(&labels).expect("labels are read").1.data;
    fs::remove_file(&labels).expect("it was written");
    (found, told, serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// `segment` must fail with a code and words.
fn refused(desk: &Desk, model: &Path, scan: &str, more: &[&str], code: i32, words: &[&str]) {
    let (labels, model) = (desk.out("labels.nii.gz"), text_of(model));
    let args = ["segment", scan, "--model", &model, "--output", &labels, "--device", "cpu"];
    desk.fails(code, words, &[&args[..], more].concat());
}

/// A model of tests/vectors/nnunet_kinds has the labels of nnunetv2.
fn equal(desk: &Desk, kind: &str, more: &[&str]) {
    let model = vectors("nnunet_kinds").join(kind);
    let expected = nifti::read_labels(model.join("expected.nii.gz")).expect("labels are read").1.data;
    let (labels, told, _) = segmented(desk, &model, &scan(), more);
    assert!(labels == expected && told.is_empty(), "{kind}: {told}");
}

/// The bytes of a NIfTI file with its sform alone, floats of its header changed.
fn changed(path: &str, changes: &[(usize, &[f32])]) -> Vec<u8> {
    let mut bytes = fs::read(path).expect("read");
    bytes[252..256].copy_from_slice(&[0, 0, 1, 0]);
    for (at, values) in changes {
        for (i, value) in values.iter().enumerate() {
            bytes[at + 4 * i..at + 4 * i + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

fn float(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[test]
fn row_29_a_bare_checkpoint() {
    let desk = Desk::new();
    let first = vectors("nnunet_v1");
    let weights = first.join("model/fold_0/model_final_checkpoint.model");
    let expected = nifti::read_labels(first.join("expected.nii.gz")).expect("labels are read").1.data;
    assert!(segmented(&desk, &weights, &text_of(&first.join("case_0000.nii.gz")), &[]).0 == expected);
    let kind = vectors("nnunet_kinds/ignore");
    let expected = nifti::read_labels(kind.join("expected.nii.gz")).expect("labels are read").1.data;
    assert!(segmented(&desk, &kind.join("fold_0/checkpoint_final.safetensors"), &scan(), &[]).0 == expected);
    // without the folder, which the message asks for
    let alone = PathBuf::from(desk.at("alone.model"));
    copy(&weights, &alone);
    let words = ["does not say how scans are prepared", "alone.model.pkl", "give the model's folder"];
    refused(&desk, &alone, &text_of(&first.join("case_0000.nii.gz")), &[], 4, &words);
}

#[test]
fn row_18_channels_and_references_elsewhere() {
    let desk = Desk::new();
    let (header, labels) = nifti::read_labels(LABELS).expect("the bundled labels are read");
    let plain = desk.at("plain.nii");
    nifti::write_labels(&plain, &header, &labels).expect("written");
    let bytes = fs::read(&plain).expect("read");
    let moved = |name: &str, mm: f32| desk.file(name, &changed(&plain, &[(SROW_X + 12, &[float(&bytes, SROW_X + 12) + mm])]));
    let (here, rounded, away) = (moved("here.nii", 0.0), moved("rounded.nii", 1e-4), moved("away.nii", 30.0));
    assert_eq!(done_json(&["evaluate", &here, &rounded])["mean"]["dice"], json!(1.0));
    desk.fails(3, &["lie on different grids", "30.000 mm apart", "away.nii", "here.nii"], &["evaluate", &here, &away]);
    let bundle = vectors("monai/dynunet");
    let [one, two] = ["scan_0000.nii.gz", "scan_0001.nii.gz"].map(|name| nifti::read(bundle.join(name)).expect("read"));
    let mut header = two.header.clone();
    (header.sform_code, header.qform_code) = (1, 0);
    header.srow_x[3] += 30.0;
    let second = desk.at("second.nii");
    nifti::write_maps(&second, &header, &two.image).expect("written");
    let first = text_of(&bundle.join("scan_0000.nii.gz"));
    assert_eq!(one.image.extent, two.image.extent);
    refused(&desk, &bundle.join("bundle"), &first, &[&second], 3, &["lie on different grids", "second.nii"]);
}

#[test]
fn row_12_pixdim_against_sform() {
    let desk = Desk::new();
    let plain = desk.crop("plain.nii");
    let input = desk.file("pixdim.nii", &changed(&plain, &[(PIXDIM, &[2.0, 1.0, 1.0])]));
    let (_, told, report) = segmented(&desk, Path::new(MODEL), &input, &[]);
    for word in ["pixdim", "sform", "2.0000x1.0000x1.0000 mm", "1.0000x1.0000x1.0000 mm", "pixdim.nii"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert!(report["warnings"].as_array().is_some_and(|list| list.iter().any(|w| w["kind"] == "geometry")));
    // nnU-Net's readers take the pixdim
    let networks = open(vectors("nnunet_kinds/ignore"), &LoadOptions::default()).expect("it is opened");
    let card = networks.first.card();
    let extent = |path: &str, mm: f64| {
        let mut pipeline = card.input.nnunet.clone().expect("nnU-Net's");
        pipeline.spacing_mm = vec![1.0, 1.0, mm];
        let scan = nifti::read(path).expect("read");
        SplineCase::new(card, &pipeline, &scan).expect("it is prepared").volume.extent
    };
    assert_eq!(extent(&input, 2.0), extent(&plain, 1.0));
}

#[test]
fn row_17_a_spacing_tens_of_times_too_large() {
    let desk = Desk::new();
    let plain = desk.crop("plain.nii");
    let bytes = fs::read(&plain).expect("read");
    let rows: Vec<f32> = (0..12).map(|i| 90.0 * float(&bytes, SROW_X + 4 * i)).collect();
    let input = desk.file("huge.nii", &changed(&plain, &[(SROW_X, &rows), (PIXDIM, &[90.0; 3])]));
    desk.segment_fails(5, &["90", "voxels", "bytes", "GiB"], &input);
}

#[test]
fn row_20_tensors_beside_a_network() {
    let desk = Desk::new();
    let fixture = |name: &str| text_of(&vectors("checkpoints").join(name));
    let output = desk.out("model.safetensors");
    desk.fails(4, &["networks under model and under ema", "--weights model"], &["convert", &fixture("averaged.pth"), "--output", &output]);
    let ended = run(&["convert", &fixture("lightning.pth"), "--output", &output]);
    let told = text(&ended.stderr);
    assert!(ended.status.success() && told.contains("are left aside: loss.class_weight, metric.confusion"), "{told}");
}

#[test]
fn row_02_plans_without_architecture() {
    let desk = Desk::new();
    equal(&desk, "old_plain", &[]);
    equal(&desk, "old_residual", &[]);
}

#[test]
fn row_32_resampling_of_other_planners() {
    let desk = Desk::new();
    equal(&desk, "torch", &[]);
    let model = PathBuf::from(desk.at("model_v3 (final)"));
    copy(&vectors("nnunet_kinds/torch"), &model);
    let plans = fs::read_to_string(model.join("plans.json")).expect("read");
    fs::write(model.join("plans.json"), plans.replace("resample_torch_fornnunet", "resample_own")).expect("written");
    refused(&desk, &model, &scan(), &[], 4, &["resampling by \"resample_own\" is not supported"]);
}

#[test]
fn row_25_a_picture_of_two_dimensions() {
    let desk = Desk::new();
    let networks = open(vectors("nnunet_kinds/flat"), &LoadOptions::default()).expect("it is opened");
    let card = networks.first.card();
    let mut pipeline = card.input.nnunet.clone().expect("nnU-Net's");
    // a tenth of the missing axis, which counts as 999 times the largest spacing
    pipeline.spacing_mm = vec![99.9 * 1.5, 0.5, 1.5];
    let plain = desk.crop("plain.nii");
    let mut bytes = changed(&plain, &[(PIXDIM, &[1.5, 0.5, 1.0]), (SROW_X, &[1.5, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0])]);
    // dim: two dimensions of 18x20 voxels
    bytes[40..48].copy_from_slice(&[2, 0, 18, 0, 20, 0, 1, 0]);
    let planar = desk.file("planar.nii", &bytes[..352 + (bytes.len() - 352) / 22]);
    let scan = nifti::read(&planar).expect("read");
    assert_eq!(scan.image.extent.axes(), [1, 20, 18]);
    let case = SplineCase::new(card, &pipeline, &scan).expect("it is prepared");
    assert_eq!(case.volume.extent.axes()[0], 10);
}

#[test]
fn row_26_labels_of_one_side() {
    let desk = Desk::new();
    let (header, mut labels) = nifti::read_labels(LABELS).expect("the bundled labels are read");
    labels.data.iter_mut().filter(|l| **l == 2).for_each(|l| *l = 7);
    let prediction = desk.at("p.nii");
    nifti::write_labels(&prediction, &header, &labels).expect("written");
    let mean = done_json(&["evaluate", &prediction, LABELS])["mean"].clone();
    assert_eq!([&mean["dice_labels"], &mean["hd95_labels"]], [&json!(3), &json!(1)]);
    assert_eq!([&mean["missed"], &mean["false_labels"]], [&json!([2]), &json!([7])]);
}

#[test]
fn row_04_and_23_a_folder_too_high_or_too_low() {
    let desk = Desk::new();
    let (kind, bundle) = (vectors("nnunet_kinds/ignore"), vectors("monai/unet"));
    let top = PathBuf::from(desk.at("Dataset801_ct"));
    let model = top.join("nnUNetTrainer__nnUNetPlans__3d_fullres");
    copy(&kind, &model);
    let expected = nifti::read_labels(kind.join("expected.nii.gz")).expect("labels are read").1.data;
    for place in [top.clone(), model.join("fold_0"), model.join("fold_0/checkpoint_final.safetensors")] {
        assert!(segmented(&desk, &place, &scan(), &[]).0 == expected, "{}", place.display());
    }
    copy(&kind, &top.join("nnUNetTrainer__nnUNetPlans__3d_lowres"));
    refused(&desk, &top, &scan(), &[], 4, &["holds 2 trained models", "__3d_fullres", "__3d_lowres", "name one of them"]);
    refused(
        &desk,
        &model.join("plans.json"),
        &scan(),
        &[],
        4,
        &["plans.json is a part of the nnU-Net model in", "__3d_fullres; give that folder"],
    );
    refused(&desk, &top.join("nothing"), &scan(), &[], 4, &["nothing"]);
    fs::remove_file(model.join("dataset.json")).expect("removed");
    refused(&desk, &model, &scan(), &[], 4, &["dataset.json"]);
    // a bundle's parent, its configs and the config
    let parent = PathBuf::from(desk.at("parent"));
    copy(&bundle.join("bundle"), &parent.join("bundle"));
    let image = text_of(&bundle.join("scan_0000.nii.gz"));
    let own = segmented(&desk, &bundle.join("bundle"), &image, &[]).0;
    for place in ["", "bundle/configs", "bundle/configs/inference.json"] {
        assert!(segmented(&desk, &parent.join(place), &image, &[]).0 == own, "{place}");
    }
}

#[test]
fn row_11_sheared_voxels() {
    let desk = Desk::new();
    let plain = desk.crop("plain.nii");
    let tilt = 20f32.to_radians().tan();
    let rows = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, tilt, 0.0, 0.0, 0.0, 1.0, 0.0];
    let input = desk.file("sheared.nii", &changed(&plain, &[(SROW_X, &rows), (PIXDIM, &[1.0, 1.0, 1.0 / 20f32.to_radians().cos()])]));
    assert!((nifti::read(&input).expect("read").image.voxel_ml() - 0.001).abs() < 1e-9, "the determinant");
    let (_, told, report) = segmented(&desk, Path::new(MODEL), &input, &[]);
    assert!(told.contains("off a right angle"), "{told}");
    for label in report["labels"].as_object().expect("labels").values() {
        let voxels = label["voxels"].as_f64().expect("a count");
        assert!((label["ml"].as_f64().expect("a volume") - voxels * 0.001).abs() < 1e-6, "{label}");
    }
}

#[test]
fn row_07_without_mirror_images() {
    let desk = Desk::new();
    equal(&desk, "overlap", &["--step-size", "0.75", "--disable_tta"]);
    equal(&desk, "steps", &["--step-size", "0.3"]);
    let windows = |more: &[&str]| segmented(&desk, &vectors("nnunet_kinds/flat"), &scan(), more).2["windows"].clone();
    let (mirrored, plain) = (windows(&[]), windows(&["--no-mirror"]));
    assert_eq!(mirrored["passes"].as_u64(), plain["passes"].as_u64().map(|passes| 8 * passes));
}

#[test]
fn row_03_other_checkpoints() {
    let desk = Desk::new();
    let model = vectors("nnunet_kinds/best");
    refused(&desk, &model, &scan(), &[], 4, &["there are checkpoint_best.safetensors", "--checkpoint"]);
    equal(&desk, "best", &["--checkpoint", "best"]);
}

#[test]
fn row_05_regions() {
    equal(&Desk::new(), "regions", &[]);
}

#[test]
fn row_27_whole_map_attention_at_512() {
    let plan = done_json(&["plan", "--model", MODEL, "--extent", "512x512x512", "--caps", "default"]);
    assert!(plan["peak_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
}

/// The array of one file in an `.npz` of `np.savez_compressed`: its shape, and its bytes in C order.
fn npz(path: &Path) -> (Vec<usize>, Vec<u8>) {
    let bytes = fs::read(path).expect("read");
    let short = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let mut array = Vec::new();
    let begin = 30 + short(26) + short(28);
    DeflateDecoder::new(&bytes[begin..]).read_to_end(&mut array).expect("deflated");
    let head = 10 + usize::from(u16::from_le_bytes([array[8], array[9]]));
    let told = String::from_utf8_lossy(&array[10..head]).into_owned();
    assert!(told.contains("'|u1'") && told.contains("'fortran_order': False"), "{told}");
    let (_, shape) = told.split_once("'shape': (").expect("a shape");
    let (shape, _) = shape.split_once(')').expect("a shape");
    let shape = shape.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    (shape, array.split_off(head))
}

#[test]
fn bundles_have_the_labels_of_monai() {
    let desk = Desk::new();
    for name in ["obl_none", "obl_small", "obl_sp", "unet_normnull"] {
        let Some(folder) = support::shared(&format!("field/monai/{name}")) else { continue };
        let (shape, expected) = npz(&folder.join("expected.npz"));
        let [x, y, z] = shape[..] else { panic!("{name}: {shape:?}") };
        let (labels, _, _) = segmented(&desk, &folder.join("bundle"), &text_of(&folder.join("scan_0000.nii.gz")), &[]);
        assert_eq!(labels.len(), expected.len());
        // axes as in the file, the slowest first here
        let there = |at: usize| expected[(at % x * y + at / x % y) * z + at / (x * y)];
        let differing = labels.iter().enumerate().filter(|(at, label)| u16::from(there(*at)) != **label).count();
        println!("{name}: {differing} of {} voxels differ", labels.len());
        assert_eq!(differing, 0, "{name}");
    }
}
