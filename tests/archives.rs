//! Models in zip archives, as `nnUNetv2_export_model_to_zip` writes them, and one of several models.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flate2::{Compression, Crc, write::DeflateEncoder};
use organum::volume::nifti;
use organum::{LoadErrorKind, LoadOptions, Unpacked, open};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn organum(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_organum")).args(args).output().expect("organum starts")
}

/// A zip archive of deflated entries.
fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let mut crc = Crc::new();
        crc.update(data);
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
        deflate.write_all(data).expect("deflated");
        let packed = deflate.finish().expect("deflated");
        let short = |n: usize| u32::try_from(n).expect("a small file").to_le_bytes();
        let mut shared = vec![20, 0, 0, 0, 8, 0, 0, 0, 0x21, 0];
        shared.extend(crc.sum().to_le_bytes());
        shared.extend([short(packed.len()), short(data.len())].concat());
        shared.extend(u16::try_from(name.len()).expect("a short name").to_le_bytes());
        shared.extend([0, 0]);
        let at = short(bytes.len());
        bytes.extend([&b"PK\x03\x04"[..], &shared, name.as_bytes(), &packed].concat());
        directory.extend([&b"PK\x01\x02\x14\x00"[..], &shared, &[0; 10], &at, name.as_bytes()].concat());
    }
    let [count, length, at] = [entries.len(), directory.len(), bytes.len()].map(|n| u32::try_from(n).expect("small").to_le_bytes());
    bytes.extend(directory);
    bytes.extend([&b"PK\x05\x06\x00\x00\x00\x00"[..], &count[..2], &count[..2], &length, &at, &[0; 2]].concat());
    bytes
}

/// The files of a folder as entries below a name.
fn files(folder: &Path, below: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        let name = format!("{below}{}", path.file_name().expect("a name").to_string_lossy());
        if path.is_dir() {
            found.push((format!("{name}/"), Vec::new()));
            found.extend(files(&path, &format!("{name}/")));
        } else {
            found.push((name, fs::read(&path).expect("read")));
        }
    }
    found.sort();
    found
}

fn written(folder: &Path, entries: &[(String, Vec<u8>)]) -> PathBuf {
    let file = folder.join("export.zip");
    fs::write(&file, archive(entries)).expect("written");
    file
}

/// The voxels in which the labels of `organum segment` differ from a file's.
fn differing(model: &Path, scan: &Path, expected: &Path) -> usize {
    let out = tempfile::tempdir().expect("a folder");
    let labels = out.path().join("labels.nii.gz");
    let run = organum(&["segment", text(scan), "--model", text(model), "--output", text(&labels), "--device", "cpu"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let [got, expected] = [&labels, expected].map(|path| nifti::read_labels(path).expect("labels are read").1);
    assert_eq!(got.extent, expected.extent);
    got.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count()
}

const MODEL: &str = "Dataset811_Made/nnUNetTrainer__nnUNetPlans__3d_fullres";

#[test]
fn exported_models_are_read() {
    let out = tempfile::tempdir().expect("a folder");
    let (scan, case) = (vectors().join("nnunet/case_0000.nii.gz"), vectors().join("nnunet_kinds/folds"));
    let mut entries = files(&case, &format!("{MODEL}/"));
    // what goes with an export, and is of no use here; the plans of an ensemble are no model
    entries.push((format!("{MODEL}/fold_0/validation/summary.json"), b"{}".to_vec()));
    entries.push((format!("{MODEL}/fold_0/progress.png"), vec![1; 99]));
    entries.push(("Dataset811_Made/ensembles/ensemble___A___B___0_1/plans.json".into(), b"{}".to_vec()));
    let file = written(out.path(), &entries);
    assert_eq!(open(&file, &LoadOptions::default()).expect("it is opened").folds(), ["0", "1", "2"]);
    let run = |args: &[&str]| {
        let run = organum(args);
        (run.status.code(), format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr)))
    };
    let labels = out.path().join("labels.nii.gz");
    let (code, told) = run(&["segment", text(&scan), "-m", text(&file), "-o", text(&labels), "--fold", "0,2", "--device", "cpu"]);
    assert_eq!(code, Some(0), "{told}");
    let [got, expected] = [&labels, &case.join("expected.nii.gz")].map(|path| nifti::read_labels(path).expect("labels are read").1);
    assert_eq!(got.data, expected.data);
    // the way into the archive, and the other commands
    let within = file.join(MODEL);
    let one = out.path().join("one.safetensors");
    for (args, words) in [
        (&["inspect", text(&within)][..], "fold 0"),
        (&["inspect", text(&file), "--fold", "2"], "fold 2"),
        (&["plan", "--model", text(&file), "--fold", "1", "--extent", "16x32x32"], "host memory"),
        (&["convert", text(&file), "--output", text(&one), "--fold", "1"], "architecture"),
    ] {
        let (code, told) = run(args);
        assert!(code == Some(0) && told.contains(words), "{args:?}: {told}");
    }
    let (code, told) = run(&["convert", text(&file), "--output", text(&one)]);
    assert!(code == Some(2) && told.contains("has the folds 0, 1, 2"), "{told}");
    // messages name the archive, not where it was unpacked
    let (code, told) = run(&["inspect", text(&file), "--fold", "7"]);
    assert!(code == Some(4) && told.contains(&format!("export.zip/{MODEL}/fold_7 has no checkpoint_final.pth")), "{told}");
}

#[test]
fn one_of_several_models_is_named() {
    let out = tempfile::tempdir().expect("a folder");
    let case = vectors().join("nnunet_cascade/usual");
    let entries = files(&case, "Dataset811_Made/");
    let file = written(out.path(), &entries);
    let kind = |path: &Path, words: &str| {
        let e = open(path, &LoadOptions::default()).expect_err("it is not one model");
        assert!(e.to_string().contains(words), "{words:?} is not in {e}");
        e.kind()
    };
    let low = "Dataset811_Made/nnUNetTrainer__nnUNetPlans__3d_lowres";
    assert_eq!(kind(&file, &format!("name one of them: {}", file.display())), LoadErrorKind::NotFound);
    assert_eq!(kind(&file, &format!("export.zip/{low}")), LoadErrorKind::NotFound);
    assert_eq!(kind(&file.join("Dataset811_Made"), "holds several models"), LoadErrorKind::NotFound);
    assert_eq!(kind(&file.join("Dataset812"), "is no model; "), LoadErrorKind::NotFound);
    let scan = vectors().join("nnunet/case_0000.nii.gz");
    assert_eq!(differing(&file.join(low), &scan, &case.join("previous.nii.gz")), 0);
    // the previous stage lies beside the second in the archive, too
    let cascade = file.join("Dataset811_Made/nnUNetTrainer__nnUNetPlans__3d_cascade_fullres");
    assert_eq!(differing(&cascade, &scan, &case.join("expected.nii.gz")), 0);
}

#[test]
fn a_zipped_bundle_is_read() {
    let out = tempfile::tempdir().expect("a folder");
    let case = vectors().join("monai/unet");
    let scan = fs::read_dir(&case).expect("it can be listed").map(|entry| entry.expect("listed").path());
    let scan = scan.filter(|path| text(path).ends_with("_0000.nii.gz")).min().expect("a scan");
    for below in ["", "unet_v0.1.0/"] {
        let file = written(out.path(), &files(&case.join("bundle"), below));
        let networks = open(&file, &LoadOptions::default()).expect("it is opened");
        let own = open(case.join("bundle"), &LoadOptions::default()).expect("it is opened");
        assert_eq!(networks.first.card().config, own.first.card().config);
        let [zipped, unzipped] = [&file, &case.join("bundle")].map(|model| {
            let labels = out.path().join("labels.nii.gz");
            let run = organum(&["segment", text(&scan), "--model", text(model), "--output", text(&labels), "--device", "cpu"]);
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            nifti::read_labels(&labels).expect("labels are read").1.data
        });
        assert_eq!(zipped, unzipped);
    }
}

#[test]
fn what_is_no_models_archive_is_refused() {
    let out = tempfile::tempdir().expect("a folder");
    let refused = |entries: &[(String, Vec<u8>)], words: &str| {
        let e = Unpacked::of(written(out.path(), entries)).expect_err("it is refused");
        assert!(e.to_string().contains(words), "{words:?} is not in {e}");
    };
    let model = files(&vectors().join("nnunet_kinds/ignore"), "M/");
    let with = |name: &str, data: Vec<u8>| [model.clone(), vec![(name.to_owned(), data)]].concat();
    for name in ["../plans.json", "/plans.json", "M/../../x", "M\\..\\x", "M/fold_0/\0"] {
        refused(&with(name, Vec::new()), "leads out of it");
    }
    refused(&with("M/./plans.json", Vec::new()), "is there twice");
    refused(&[("notes.txt".to_owned(), Vec::new())], "neither a trained model of nnU-Net's nor a MONAI bundle");
    refused(&[("M/plans.json".to_owned(), Vec::new())], "neither a trained model");
    // zeros unpack to a thousand times their size
    refused(&with("M/fold_0/checkpoint_best.pth", vec![0; 80 << 20]), "unpacks to more than 8 times its size");
    let file = written(out.path(), &model);
    let whole = fs::read(&file).expect("read");
    fs::write(&file, &whole[..whole.len() - 30]).expect("written");
    assert!(Unpacked::of(&file).is_err_and(|e| e.to_string().contains("is no zip archive that is read")));
    // an entry that is damaged
    let mut damaged = whole.clone();
    let at = whole.windows(9).position(|name| name == b"plans.json".split_at(9).0).expect("it is there");
    damaged[at + 40..at + 60].fill(0xFF);
    fs::write(&file, &damaged).expect("written");
    assert!(Unpacked::of(&file).is_err_and(|e| e.to_string().contains("cannot be unpacked")));
    // a checkpoint of PyTorch's under that name, and paths that lead to none
    let checkpoint = out.path().join("checkpoint.zip");
    fs::copy(vectors().join("monai/unet/bundle/models/model.pt"), &checkpoint).expect("copied");
    assert!(Unpacked::of(&checkpoint).expect("it is read").is_none());
    assert!(Unpacked::of(vectors()).expect("no archive").is_none());
}

#[test]
fn nothing_stays_behind() {
    let out = tempfile::tempdir().expect("a folder");
    let file = written(out.path(), &files(&vectors().join("nnunet_kinds/ignore"), "M/"));
    let unpacked = Unpacked::of(&file).expect("it is read").expect("it is a model's archive");
    let path = unpacked.path().to_owned();
    assert!(path.join("plans.json").is_file() && !path.join("expected.nii.gz").exists());
    drop(unpacked);
    assert!(!path.exists());
}
