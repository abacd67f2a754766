//! Files that a clinic hands in and takes out: formats, statistics, many scans, as the program's
//! users meet them.
#![allow(clippy::cast_possible_truncation, reason = "labels of known size")]

#[path = "support/desk.rs"]
mod desk;

use std::io::Read;
use std::path::Path;

use organum::volume::file::{self, LabelFormat, Scan};
use organum::volume::{Affine, Legend, Volume, nifti};
use organum::{Extent, volume::Axes};
use serde_json::{Value, json};

use desk::*;

const CPU: [&str; 2] = ["--device", "cpu"];

/// The bundled scan as an NRRD file in the middle of a folder of its own.
fn nrrd(desk: &Desk) -> String {
    let scan = nifti::read(SCAN).expect("the bundled scan");
    let (extent, affine) = (scan.image.extent, scan.image.affine());
    let [d, h, w] = extent.axes();
    let [k, j, i] = affine.steps;
    let vector = |v: [f64; 3]| format!("({},{},{})", v[0], v[1], v[2]);
    let header = format!(
        "NRRD0004\ntype: float\ndimension: 3\nspace: right-anterior-superior\nsizes: {w} {h} {d}\nendian: little\n\
         space directions: {} {} {}\nspace origin: {}\nencoding: raw\n\n",
        vector(i),
        vector(j),
        vector(k),
        vector(affine.origin)
    );
    let voxels: Vec<u8> = scan.image.data.iter().flat_map(|x| x.to_le_bytes()).collect();
    let path = desk.at("scan.nrrd");
    std::fs::write(&path, [header.as_bytes(), &voxels].concat()).expect("the scan is written");
    path
}

#[test]
fn a_scan_in_another_format_has_the_same_labels_in_every_format() {
    let desk = Desk::new();
    let (scan, plain) = (nrrd(&desk), desk.out("plain.nii.gz"));
    done(&[&["segment", SCAN, "-m", MODEL, "-o", &plain], &CPU[..]].concat());
    let expected = file::read_labels(&plain).expect("labels").labels;
    for (ending, _) in LabelFormat::ENDINGS.iter().filter(|(_, format)| *format != LabelFormat::Dicom) {
        let out = desk.out(&format!("labels{ending}"));
        let (masks, snap, colours) = (desk.out("masks"), desk.out("snap.txt"), desk.out("colours.ctbl"));
        let csv = desk.out("s.csv");
        let args = ["segment", "-i", &scan, "-m", MODEL, "-o", &out, "--masks", &masks, "--label-table", &snap, "--statistics", &csv];
        let told = done(&[&args[..], &CPU].concat());
        assert!(told.starts_with("    1  anterior hippocampus") && told.contains("\n    2  posterior hippocampus"), "{told}");
        let read = file::read_labels(&out).expect("labels");
        assert_eq!(read.labels.data, expected.data, "{ending}");
        let near = |a: &Affine, b: &Affine| a.steps.iter().flatten().zip(b.steps.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(near(read.labels.affine(), expected.affine()), "{ending}");
        let mask = file::read_labels(Path::new(&masks).join("posterior_hippocampus.nii.gz")).expect("a mask").labels;
        assert!(mask.data.iter().zip(&expected.data).all(|(mask, label)| (*mask == 1) == (*label == 2)));
        done(&[&["segment", &scan, "-m", MODEL, "-o", &out, "--label-table", &colours, "-q"], &CPU[..]].concat());
        let text = |path: &str| std::fs::read_to_string(path).expect("text");
        assert!(text(&snap).contains("    2  64 190 255    1   1   1 \"posterior hippocampus\""));
        assert!(text(&colours).contains("2 posterior_hippocampus 64 190 255 255"));
        assert_eq!(text(&csv).lines().count(), 3);
    }
    // what Slicer knows segments by, and what names the labels of statistics
    let segmentation = desk.out("labels.seg.nrrd");
    let bytes = std::fs::read(&segmentation).expect("the file");
    let header = String::from_utf8_lossy(&bytes);
    for line in ["Segment0_Name:=anterior hippocampus", "Segment1_LabelValue:=2", "Segment1_Color:=0.250980 0.745098 1.000000"] {
        assert!(header.contains(line), "{line}");
    }
    let measured = done_json(&["stats", &segmentation, &scan]);
    let labels = measured["labels"].as_array().expect("a list");
    assert_eq!((labels.len(), &labels[1]["name"]), (2, &json!("posterior hippocampus")));
    assert_eq!(labels[0]["voxels"], json!(expected.data.iter().filter(|l| **l == 1).count()));
    assert!(labels.iter().all(|l| l["intensity"]["mean"].as_f64().is_some_and(|m| m > 100.0) && l["touches_border"] == json!(false)));
    let table = done(&["stats", &plain, "-m", MODEL, "-o", &desk.out("t.json")]);
    assert!(table.contains("    1  anterior hippocampus"), "{table}");
    let written: Value = serde_json::from_str(&std::fs::read_to_string(desk.out("t.json")).expect("written")).expect("JSON");
    assert_eq!(written["labels"][1]["name"], json!("posterior hippocampus"));
    let scores = done_json(&["evaluate", &segmentation, LABELS]);
    assert!(scores["labels"]["1"]["dice"].as_f64().is_some_and(|d| d > 0.99), "{scores}");
}

#[test]
fn nifti_files_name_their_labels() {
    let desk = Desk::new();
    let out = desk.out("l.nii.gz");
    let read = file::read_labels(LABELS).expect("labels");
    let legend = Legend::new([(1, "one & <two>".into()), (2, "three".into())]);
    file::write_labels(&out, &read.header, &read.labels, &legend).expect("written");
    let mut bytes = Vec::new();
    let gzip = std::fs::File::open(&out).expect("the file");
    flate2::read::GzDecoder::new(gzip).read_to_end(&mut bytes).expect("gzip");
    assert_eq!(bytes[348..352], [1, 0, 0, 0]);
    let size = i32::from_le_bytes(bytes[352..356].try_into().expect("4 bytes"));
    let (code, offset) = (
        i32::from_le_bytes(bytes[356..360].try_into().expect("4 bytes")),
        f32::from_le_bytes(bytes[108..112].try_into().expect("4 bytes")),
    );
    assert_eq!((size % 16, code), (0, 0));
    assert!((offset - (352 + size) as f32).abs() < 0.5);
    let text = String::from_utf8_lossy(&bytes[360..352 + size as usize]);
    assert!(text.contains("<Label Key=\"1\" Red=\"1.000000\"") && text.contains("<![CDATA[one & <two>]]></Label>"), "{text}");
    let again = file::read_labels(&out).expect("labels");
    assert_eq!((again.labels, again.legend), (read.labels, legend));
}

#[test]
fn folders_of_any_format_are_compared() {
    let desk = Desk::new();
    let read = file::read_labels(LABELS).expect("labels");
    for (folder, ending) in [("ours", ".seg.nrrd"), ("theirs", ".mha")] {
        std::fs::create_dir_all(desk.at(folder)).expect("a folder");
        let path = desk.at(&format!("{folder}/x{ending}"));
        file::write_labels(path, &read.header, &read.labels, &Legend::default()).expect("written");
    }
    let scores = done_json(&["evaluate", &desk.at("ours"), &desk.at("theirs")]);
    assert_eq!(scores["cases"]["x"]["labels"]["2"]["dice"], json!(1.0), "{scores}");
}

#[test]
fn sheared_grids_and_odd_names() {
    let desk = Desk::new();
    let axes: Axes = "SAR".parse().expect("axes");
    let labels =
        Volume::new(1, Extent::new(2, 2, 3), [2.0, 1.0, 1.0], axes, vec![0u16, 1, 2, 300, 0, 0, 0, 1, 2, 2, 2, 2]).expect("labels");
    let sheared =
        labels.clone().with_affine(Affine { steps: [[0.0, 0.5, 2.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], origin: [1.0, 2.0, 3.0] });
    let header = Scan::new(Default::default(), Volume::new(1, Extent::new(1, 1, 1), [1.0; 3], axes, vec![0.0]).expect("a voxel")).header;
    let refused = file::write_labels(desk.out("l.mha"), &header, &sheared, &Legend::default()).expect_err("MetaImage holds no shear");
    assert!(refused.to_string().contains("sheared by 14.04 degrees"), "{refused}");
    file::write_labels(desk.out("l.nrrd"), &header, &sheared, &Legend::default()).expect("NRRD does");
    let read = file::read_labels(desk.out("l.nrrd")).expect("labels").labels;
    assert_eq!((&read.data, read.affine()), (&sheared.data, sheared.affine()));
    file::write_labels(desk.out("l.mha"), &header, &labels, &Legend::default()).expect("at right angles");
    assert_eq!(file::read_labels(desk.out("l.mha")).expect("labels").labels.data, labels.data);
    let legend = Legend::new([(1, "../a/b".into()), (2, ".._A_b".into()), (300, String::new())]);
    let masks = file::write_masks(desk.out(""), ".nrrd", &header, &labels, &legend).expect("masks");
    let names: Vec<String> = masks.iter().map(|path| path.file_name().expect("a name").to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["_a_b.nrrd", "_A_b_2.nrrd", "_300.nrrd"]);
    for wrong in ["l.txt", "l", "l.nhdr", "l.dcm"] {
        assert!(file::write_labels(desk.out(wrong), &header, &labels, &Legend::default()).is_err(), "{wrong}");
    }
    assert!(file::write_labels(desk.out("no/l.nrrd"), &header, &labels, &Legend::default()).is_err());
}

/// A folder of two scans and a broken one.
fn cohort(desk: &Desk) -> String {
    let folder = desk.at("cohort");
    std::fs::create_dir_all(format!("{folder}/deep")).expect("folders");
    std::fs::copy(SCAN, format!("{folder}/b.nii.gz")).expect("a scan");
    std::fs::copy(SCAN, format!("{folder}/deep/c_0000.nii.gz")).expect("a scan");
    std::fs::write(format!("{folder}/a.nii"), "broken").expect("a file");
    folder
}

fn lines(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the manifest");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn many_scans_go_through_one_model() {
    let desk = Desk::new();
    let (folder, out) = (cohort(&desk), desk.out("labels/"));
    let args = ["segment", &folder, "-m", MODEL, "-o", &out, "--device", "cpu"];
    let first = run(&args);
    let err = text(&first.stderr);
    assert_eq!(first.status.code(), Some(7), "{err}");
    assert!(err.contains("1/3 a: ") && err.contains("1 of 3 scans failed: a"), "{err}");
    assert!(text(&first.stdout).contains("2 of 3 scans segmented, 1 failed, 0 were there"));
    let single = desk.out("single.nii.gz");
    done(&[&["segment", SCAN, "-m", MODEL, "-o", &single], &CPU[..]].concat());
    let expected = file::read_labels(&single).expect("labels").labels;
    for case in ["b", "c"] {
        assert_eq!(file::read_labels(format!("{out}{case}.nii.gz")).expect("labels").labels, expected);
    }
    let manifest = format!("{out}manifest.jsonl");
    let all = lines(&manifest);
    let status: Vec<_> = all.iter().map(|line| (line["case"].as_str(), line["status"].as_str())).collect();
    assert_eq!(status, [(Some("a"), Some("failed")), (Some("b"), Some("done")), (Some("c"), Some("done"))]);
    assert_eq!((&all[0]["error"]["code"], all[1]["model"]["sha256"].as_str().map(str::len)), (&json!(3), Some(64)));
    has_run_keys(&all[1]["report"]);
    // the same again: what is there stays
    let again = run(&[&args[..], &["--resume", "--json"]].concat());
    let report: Value = serde_json::from_slice(&again.stdout).expect("JSON");
    assert_eq!((again.status.code(), &report["done"], &report["skipped"]), (Some(7), &json!(0), &json!(2)));
    assert_eq!(lines(&manifest).len(), 4);
    // shards have every case once, and the good ones end well
    let pattern = desk.out("shards/{case}/labels.seg.nrrd");
    let mut seen = Vec::new();
    for shard in ["1/2", "2/2"] {
        let list = desk.out(&format!("{}.jsonl", &shard[..1]));
        let sharded = run(&[
            "segment",
            &folder,
            "-m",
            MODEL,
            "-o",
            &pattern,
            "--shard",
            shard,
            "--manifest",
            &list,
            "--device",
            "cpu",
            "--host-memory",
            "1G",
        ]);
        assert_eq!(sharded.status.code(), Some(if shard == "1/2" { 7 } else { 0 }), "{}", text(&sharded.stderr));
        seen.extend(lines(&list).iter().map(|line| line["case"].as_str().unwrap_or("").to_owned()));
    }
    assert_eq!(seen, ["a", "c", "b"]);
    assert_eq!(file::read_labels(desk.out("shards/c/labels.seg.nrrd")).expect("labels").labels.data, expected.data);
}

#[test]
fn what_many_scans_do_not_go_with_is_refused() {
    let desk = Desk::new();
    let (folder, out) = (cohort(&desk), desk.out("l.nii.gz"));
    let fails = |code: i32, part: &str, args: &[&str]| {
        let output = run(args);
        let err = text(&output.stderr);
        assert!(output.status.code() == Some(code) && err.contains(part), "{args:?}: {:?} {err}", output.status.code());
    };
    fails(3, "for many scans --output is a folder", &["segment", &folder, "-m", MODEL, "-o", &out, "--device", "cpu"]);
    fails(2, "--resume, --shard and --manifest are for many", &["segment", SCAN, "-m", MODEL, "-o", &out, "--resume"]);
    let many = desk.out("{case}.nii.gz");
    fails(2, "must have {case} in it", &["segment", &folder, "-m", MODEL, "-o", &many, "--overlay", "a.png"]);
    fails(3, "there are no scans in", &["segment", &desk.out(""), "-m", MODEL, "-o", &many]);
    fails(2, "not a shard", &["segment", &folder, "-m", MODEL, "-o", &many, "--shard", "3/2"]);
    fails(2, "would overwrite the input", &["segment", &folder, "-m", MODEL, "-o", &format!("{folder}/{{case}}.nii.gz")]);
    fails(2, "must end in .json or .csv", &["segment", SCAN, "-m", MODEL, "-o", &out, "--statistics", &desk.out("s.txt")]);
    fails(2, "ends in one of .nii.gz", &["segment", SCAN, "-m", MODEL, "-o", &desk.out("l.png")]);
    let fractions = desk.maps("f.nii", 1, vec![0.5; 512]);
    fails(3, "labels are whole numbers", &["stats", &fractions]);
    fails(3, "lie on different grids", &["stats", LEFT_LABELS, SCAN]);
    fails(6, "no hardware adapter", &["segment", SCAN, "-m", MODEL, "-o", &out, "--device", "gpu"]);
    assert_eq!(desk.written(), [""; 0]);
}

#[test]
fn the_program_tells_of_itself_and_of_the_machine() {
    let desk = Desk::new();
    let told = done_json(&["doctor"]);
    has_keys(&told, &["version", "system", "threads", "instructions", "devices", "default", "advice"]);
    let text = done(&["doctor"]);
    assert!(text.starts_with("organum  ") && text.contains("\ndefault  "), "{text}");
    for (shell, part) in [("bash", "_organum()"), ("zsh", "#compdef organum"), ("fish", "complete -c organum")] {
        assert!(done(&["completions", shell]).contains(part), "{shell}");
    }
    done(&["man", &desk.out("man")]);
    let page = std::fs::read_to_string(desk.out("man/organum-segment.1")).expect("a page");
    assert!(page.contains("organum\\-segment") || page.contains("organum-segment"), "{page}");
    assert!(page.contains("statistics"));
    let picture = desk.out("p.png");
    done(&["picture", SCAN, LABELS, "-o", &picture]);
    let reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&picture).expect("a picture")));
    assert!(reader.read_info().expect("a PNG").info().width > 100);
    let output = run(&["picture", SCAN, LEFT_LABELS, "-o", &picture]);
    assert_eq!(output.status.code(), Some(3), "another grid");
}

/// 3D Slicer asks a module for its description, and starts it with the options that this names.
#[cfg(unix)]
#[test]
fn the_program_is_a_module_of_slicer() {
    let desk = Desk::new();
    let module = desk.at("organum-segment");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_organum"), &module).expect("a link");
    let start = |args: &[&str]| std::process::Command::new(&module).args(args).output().expect("the module starts");
    let asked = start(&["--xml"]);
    let xml = text(&asked.stdout);
    assert!(asked.status.success() && asked.stderr.is_empty());
    assert!(xml.starts_with("<?xml version=\"1.0\"") && xml.trim_end().ends_with("</executable>"), "{xml}");
    // every element is closed, and every flag is an option
    let open: Vec<&str> = xml.split('<').skip(1).filter_map(|tag| tag.split(['>', ' ']).next()).collect();
    let mut stack = Vec::new();
    for tag in open.iter().filter(|tag| !tag.starts_with(['?', '!'])) {
        match tag.strip_prefix('/') {
            Some(tag) => assert_eq!(stack.pop(), Some(tag)),
            None => stack.push(*tag),
        }
    }
    assert_eq!(stack, [""; 0]);
    let help = text(&start(&["--help"]).stdout);
    for flag in xml.split("<longflag>").skip(1).filter_map(|rest| rest.split('<').next()) {
        assert!(help.contains(&format!("--{flag} ")), "{flag}");
    }
    let out = desk.out("labels.nrrd");
    let ran = start(&["--output", &out, "--model", MODEL, "--device", "cpu", "--precision", "f32", "--memory", "1G", SCAN]);
    let told = text(&ran.stdout);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert!(told.contains("<filter-progress>1.00</filter-progress>"), "{told}");
    assert_eq!(file::read_labels(&out).expect("labels").labels.extent, nifti::read(SCAN).expect("a scan").image.extent);
}
