//! Scans in every format that is read, against SimpleITK, nibabel and pydicom (`make_formats.py`).

use std::path::PathBuf;

use organum::volume::file::{self, ReadOptions};
use organum::volume::{Legend, Volume};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    main: String,
    files: std::collections::BTreeMap<String, String>,
    expected: Option<Expected>,
    error: Option<String>,
    warning: Option<String>,
}

#[derive(Deserialize)]
struct Expected {
    values: Vec<f64>,
    /// Along k, j, i.
    steps: [[f64; 3]; 3],
    origin: [f64; 3],
    spacing: [f64; 3],
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("vectors/formats.json")).expect("the vectors are JSON")
}

/// Writes the files of a case, and returns what to read.
fn write(case: &Case, folder: &std::path::Path) -> PathBuf {
    for (name, hex) in &case.files {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(digit).collect();
        std::fs::write(folder.join(name), bytes).expect("the file is written");
    }
    if case.main.is_empty() { folder.to_path_buf() } else { folder.join(&case.main) }
}

fn near(a: f64, b: f64, most: f64) -> bool {
    (a - b).abs() <= most * (1.0 + b.abs())
}

#[test]
fn scans_are_what_the_references_read() {
    let mut read = 0;
    for case in cases().iter().filter(|case| case.error.is_none()) {
        let folder = tempfile::tempdir().expect("a folder");
        let name = &case.name;
        let scan = file::read(write(case, folder.path())).unwrap_or_else(|e| panic!("{name}: {e}"));
        let told: Vec<String> = scan.warnings.iter().map(|w| w.message.clone()).collect();
        match &case.warning {
            Some(warning) => assert!(told.iter().any(|w| w.contains(warning)), "{name}: {told:?}"),
            None => assert!(told.iter().all(|w| w.contains("says nothing of its orientation")), "{name}: {told:?}"),
        }
        let Some(expected) = &case.expected else { continue };
        assert_eq!(scan.image.data.len(), expected.values.len(), "{name}");
        for (got, want) in scan.image.data.iter().zip(&expected.values) {
            assert!(near(f64::from(*got), *want, 1e-7), "{name}: {got}, not {want}");
        }
        let affine = scan.image.affine();
        let got = affine.steps.iter().flatten().chain(&affine.origin).chain(&scan.image.spacing);
        let want = expected.steps.iter().flatten().chain(&expected.origin).chain(&expected.spacing);
        // nibabel multiplies the f32 of MGH headers in f32
        let most = if name.starts_with("mgh") { 1e-6 } else { 1e-9 };
        for (got, want) in got.zip(want) {
            assert!(near(*got, *want, most), "{name}: {affine:?}, not {:?} {:?}", expected.steps, expected.origin);
        }
        read += 1;
    }
    assert!(read > 100, "{read} scans were compared");
}

#[test]
fn damaged_and_other_files_are_refused() {
    let mut refused = 0;
    for case in cases() {
        let Some(error) = &case.error else { continue };
        let folder = tempfile::tempdir().expect("a folder");
        let said = match file::read(write(&case, folder.path())) {
            Ok(_) => panic!("{} was read", case.name),
            Err(e) => e.to_string(),
        };
        assert!(said.contains(error), "{}: {said}", case.name);
        refused += 1;
    }
    assert!(refused > 50, "{refused} files were refused");
}

#[test]
fn a_series_is_picked_by_its_uid() {
    let all = cases();
    let folder = tempfile::tempdir().expect("a folder");
    let two = all.iter().find(|case| case.name == "dicom two series").expect("the case");
    let path = write(two, folder.path());
    let picked = file::read_with(&path, &ReadOptions::default().with_series("1.2.6")).expect("one of them");
    assert_eq!(picked.image.extent.d, 2);
    let gone = file::read_with(&path, &ReadOptions::default().with_series("1.2.7")).expect_err("there is no such series");
    assert!(gone.to_string().contains("there is no series 1.2.7; there are 1.2.5 (CT a series, 2 images of 6x8); 1.2.6"), "{gone}");
    // the files of a series, one by one
    let one = all.iter().find(|case| case.name == "dicom explicit").expect("the case");
    let folder = tempfile::tempdir().expect("a folder");
    let whole = file::read(write(one, folder.path())).expect("a series");
    let files: Vec<PathBuf> = one.files.keys().map(|name| folder.path().join(name)).collect();
    let listed = file::read_all(&files, &ReadOptions::default()).expect("a list of files");
    assert_eq!(listed.image, whole.image);
    let scan = all.iter().find(|case| case.name == "nrrd RAS").expect("the case");
    let nrrd = write(scan, folder.path());
    assert!(file::read_with(&nrrd, &ReadOptions::default().with_series("1")).is_err_and(|e| e.to_string().contains("no DICOM series")));
    assert!(file::read_labels(folder.path()).is_err_and(|e| e.to_string().contains("no label map")));
}

#[test]
fn labels_and_channels_are_read_from_every_format() {
    let all = cases();
    let mut labels = 0;
    for case in all.iter().filter(|case| case.error.is_none() && !case.name.starts_with("dicom")) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = write(case, folder.path());
        let scan = file::read(&path).expect("it is read above");
        let whole = scan.image.channels == 1 && scan.image.data.iter().all(|x| *x >= 0.0 && x.fract() == 0.0);
        match file::read_labels(&path) {
            Ok(read) => {
                assert!(whole, "{}", case.name);
                assert!(read.labels.data.iter().zip(&scan.image.data).all(|(a, b)| f32::from(*a) == *b), "{}", case.name);
                assert_eq!(read.labels.affine(), scan.image.affine());
                labels += 1;
            }
            Err(e) => assert!(!whole, "{}: {e}", case.name),
        }
        if scan.image.channels == 1 {
            let twice = file::read_all(&[&path, &path], &ReadOptions::default()).expect("two channels");
            assert_eq!(twice.image.data, [scan.image.data.clone(), scan.image.data].concat());
        }
    }
    assert!(labels > 20, "{labels} label maps");
}

/// The series of the shared data: JPEG 2000, 20 images of 512x512.
#[test]
fn a_series_of_a_scanner_is_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/ct/dicom_series");
    if !std::path::Path::new(folder).is_dir() {
        return;
    }
    let scan = file::read(folder).expect("the series is read");
    assert_eq!(scan.image.extent.axes(), [20, 512, 512]);
    assert_eq!(scan.image.axes.to_string(), "SPL");
    let sum: f64 = scan.image.data.iter().map(|x| f64::from(*x)).sum();
    let (least, most) = scan.image.data.iter().fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
    // SimpleITK 2.5.7
    assert_eq!((sum, least, most), (-3_272_217_339.0, -1024.0, 1839.0));
    let affine = scan.image.affine();
    let (side, edge) = (0.976_562_5, [249.511_718_75, 437.511_718_75, -804.5]);
    assert_eq!(affine.steps, [[0.0, 0.0, 2.0], [0.0, -side, 0.0], [-side, 0.0, 0.0]]);
    assert_eq!(affine.origin, edge);
}

#[test]
fn a_dicom_segmentation_refers_to_the_images_of_its_series() {
    use dicom_dictionary_std::tags;
    let all = cases();
    let folder = tempfile::tempdir().expect("a folder");
    // plane 1 is the fourth frame of the enhanced object
    for (name, frame_of_plane) in [("dicom explicit", "0"), ("dicom enhanced", "4")] {
        let case = all.iter().find(|case| case.name == name).expect("the case");
        let series = tempfile::tempdir().expect("a folder");
        let scan = file::read(write(case, series.path())).expect("a series");
        let mut labels = vec![0u16; scan.image.data.len()];
        // plane 1: label 2 twice; plane 3: label 7 in its last voxel
        (labels[48 + 1], labels[48 + 9], labels[4 * 48 - 1]) = (2, 2, 7);
        let labels = Volume::new(1, scan.image.extent, scan.image.spacing, scan.image.axes, labels).expect("labels");
        let legend = Legend::new([(2, "two".into()), (5, "not there".into()), (7, "seven".into())]);
        let path = folder.path().join("l.dcm");
        file::write_segmentation(&path, &scan, &labels, &legend).expect("written");
        let first = std::fs::read(&path).expect("the file");
        let object = dicom_object::open_file(&path).expect("DICOM");
        let text = |tag| object.element(tag).expect("it is there").to_str().expect("text").trim().to_owned();
        assert_eq!((text(tags::MODALITY), text(tags::NUMBER_OF_FRAMES)), ("SEG".into(), "2".into()));
        assert_eq!((text(tags::STUDY_INSTANCE_UID), text(tags::FRAME_OF_REFERENCE_UID)), ("1.2".into(), "1.9".into()));
        let segments = object.element(tags::SEGMENT_SEQUENCE).expect("segments").items().expect("items");
        let names: Vec<_> =
            segments.iter().map(|s| s.element(tags::SEGMENT_LABEL).expect("a label").to_str().expect("text").into_owned()).collect();
        assert_eq!(names, ["two", "seven"]);
        let bits = object.element(tags::PIXEL_DATA).expect("pixels").to_bytes().expect("bytes").into_owned();
        let set: Vec<usize> = (0..8 * bits.len()).filter(|bit| bits[bit / 8] >> (bit % 8) & 1 == 1).collect();
        assert_eq!(set, [1, 9, 48 + 47]);
        let groups = object.element(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).expect("frames").items().expect("items");
        let source = groups[0].element(tags::DERIVATION_IMAGE_SEQUENCE).expect("a group").items().expect("items")[0]
            .element(tags::SOURCE_IMAGE_SEQUENCE)
            .expect("a source")
            .items()
            .expect("items")[0]
            .clone();
        let frame = source
            .element_opt(tags::REFERENCED_FRAME_NUMBER)
            .expect("it can be asked")
            .map_or("0".into(), |e| e.to_str().expect("text").into_owned());
        assert_eq!(frame, frame_of_plane);
        file::write_segmentation(&path, &scan, &labels, &legend).expect("written again");
        assert_eq!(std::fs::read(&path).expect("the file"), first, "the same labels are the same file");
        // nothing found is an empty frame; another grid is refused
        let mut none = labels.clone();
        none.data.fill(0);
        file::write_segmentation(&path, &scan, &none, &legend).expect("an empty one");
        let other = Volume::new(1, organum::Extent::new(1, 6, 8), [1.0; 3], scan.image.axes, vec![0u16; 48]).expect("labels");
        let refused = file::write_segmentation(&path, &scan, &other, &legend).expect_err("another grid");
        assert!(refused.to_string().contains("labels of 1x6x8 are not those of 4 images of 6x8"), "{refused}");
    }
    let case = all.iter().find(|case| case.name == "nrrd RAS").expect("the case");
    let scan = file::read(write(case, folder.path())).expect("a scan");
    let labels = Volume::new(1, scan.image.extent, scan.image.spacing, scan.image.axes, vec![0u16; 24]).expect("labels");
    let refused = file::write_segmentation(folder.path().join("l.dcm"), &scan, &labels, &Legend::default());
    assert!(refused.is_err_and(|e| e.to_string().contains("is of a DICOM series")));
}
