//! Scans, channels and outputs that could give wrong labels without a word: refused, or warned of.
#![allow(clippy::print_stdout, reason = "figures and skips belong to a test's output")]

#[path = "support/desk.rs"]
mod desk;

use organum::volume::nifti;
use organum::{Model, WarningKind};
use serde_json::{Value, json};

use desk::*;

/// Two channels of one scan, a bundle that takes them, and MONAI's labels.
const TWO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/monai/dynunet");

/// Bytes of a plain NIfTI-1 file that a test changes.
struct Header(Vec<u8>);

impl Header {
    /// The crop of the bundled scan, whose pixdim, sform and qform agree.
    fn crop(desk: &Desk) -> Self {
        Self(std::fs::read(desk.crop("plain.nii")).expect("the crop is there"))
    }

    fn float(&self, at: usize) -> f32 {
        f32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn set(mut self, at: usize, values: &[f32]) -> Self {
        for (i, v) in values.iter().enumerate() {
            self.0[at + 4 * i..at + 4 * i + 4].copy_from_slice(&v.to_le_bytes());
        }
        self
    }

    fn codes(mut self, qform: i16, sform: i16) -> Self {
        self.0[252..254].copy_from_slice(&qform.to_le_bytes());
        self.0[254..256].copy_from_slice(&sform.to_le_bytes());
        self
    }
}

const PIXDIM: usize = 80;
const QUATERN_B: usize = 256;
const SROW_X: usize = 280;

/// `segment` on the host, into the desk's labels.nii.
fn segmented(desk: &Desk, input: &str, more: &[&str]) -> (Value, String) {
    let labels = desk.out("labels.nii");
    let mut args = vec!["segment", input, "--model", MODEL, "--output", &labels, "--device", "cpu", "--json"];
    args.extend(more);
    let output = run(&args);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {err}");
    (serde_json::from_slice(&output.stdout).expect("one JSON object"), err)
}

fn kinds(report: &Value) -> Vec<&str> {
    let list = report["warnings"].as_array().expect("a list of warnings");
    list.iter().map(|w| w["kind"].as_str().expect("a kind")).collect()
}

#[test]
fn headers_that_contradict_themselves_are_told() {
    let desk = Desk::new();
    let cases: [(&str, Header, &[&str]); 4] = [
        (
            "pixdim.nii",
            Header::crop(&desk).codes(0, 1).set(PIXDIM, &[2.0, 1.0, 1.0]),
            &["1.0000x1.0000x1.0000 mm", "2.0000x1.0000x1.0000 mm", "sform", "pixdim"],
        ),
        (
            "qform.nii",
            Header::crop(&desk).set(QUATERN_B + 12, &[42.25]),
            &["30.000 mm", "(12.25, -34.50, 7.12)", "(42.25, -34.50, 7.12)", "the sform is taken"],
        ),
        ("turned.nii", Header::crop(&desk).set(QUATERN_B + 8, &[0.0]), &["sform", "qform"]),
        ("neither.nii", Header::crop(&desk).codes(0, 0), &["sform_code", "run to L, A, S"]),
    ];
    for (name, header, words) in cases {
        let input = desk.file(name, &header.0);
        let scan = nifti::read(&input).expect("it is read");
        assert_eq!(scan.warnings.len(), 1, "{name}: {:?}", scan.warnings);
        assert_eq!(scan.warnings[0].kind, WarningKind::Geometry);
        for word in words {
            let told = &scan.warnings[0].message;
            assert!(told.contains(word) && told.contains(name), "{name}: no {word:?} in {told}");
        }
        let strict = ["segment", &input, "--model", MODEL, "--output", &desk.out("x.nii"), "--strict"];
        desk.fails(3, &["--strict", words[0], name], &strict);
        desk.fails(3, &["--strict", name], &["evaluate", &input, &input, "--strict"]);
    }
    let agreeing = desk.file("agreeing.nii", &Header::crop(&desk).0);
    assert_eq!(nifti::read(&agreeing).expect("it is read").warnings, []);
    let neither = desk.path("in", "neither.nii");
    let (report, err) = segmented(&desk, &neither, &[]);
    assert!(kinds(&report).contains(&"geometry"), "{report}");
    assert!(err.contains("organum: warning: ") && err.contains("neither.nii"), "{err}");
    let output = run(&["evaluate", &neither, &neither, "--json"]);
    let scores: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(kinds(&scores), ["geometry", "geometry"]);
    assert_eq!(text(&output.stderr).lines().count(), 2);
}

#[test]
fn sheared_voxels_have_their_true_volume() {
    let desk = Desk::new();
    let tilt = 20f32.to_radians().tan();
    let straight = Header::crop(&desk).codes(0, 1);
    let k = [0.0, tilt, 1.0];
    let rows = [0, 1, 2].map(|row| [straight.float(SROW_X + 16 * row), straight.float(SROW_X + 16 * row + 4), k[row], 0.0]);
    let straight = desk.file("straight.nii", &straight.0);
    let sheared = Header::crop(&desk).codes(0, 1).set(SROW_X, &rows.concat());
    let sheared = desk.file("sheared.nii", &sheared.0);
    let ml = |input: &str| {
        let image = nifti::read(input).expect("it is read").image;
        (image.voxel_ml(), image.spacing[0])
    };
    assert!((ml(&straight).0 - 0.001).abs() < 1e-9);
    let (volume, spacing) = ml(&sheared);
    assert!((volume - 0.001).abs() < 1e-9, "{volume}: the determinant, not the product of the spacings");
    assert!((spacing - f64::from(1.0 / 20f32.to_radians().cos())).abs() < 1e-6, "{spacing}");
    let (report, err) = segmented(&desk, &sheared, &[]);
    assert!(err.contains("15.9 degrees off a right angle"), "{err}");
    for label in report["labels"].as_object().expect("labels").values() {
        let voxels = label["voxels"].as_f64().expect("a count");
        assert!((label["ml"].as_f64().expect("a volume") - voxels * 0.001).abs() < 1e-6, "{label}");
    }
}

#[test]
fn channels_and_references_of_other_grids_are_refused() {
    let desk = Desk::new();
    let channel = |name: &str| format!("{TWO}/scan_000{name}.nii.gz");
    let scan = nifti::read(channel("1")).expect("the channel is read");
    let labels = nifti::read_labels(format!("{TWO}/expected.nii.gz")).expect("the labels are read");
    // a copy of the second channel, and of the labels, with another affine
    let copy = |name: &str, change: &dyn Fn(&mut [[f64; 4]; 3])| {
        let mut header = scan.header.clone();
        let rows = [header.srow_x, header.srow_y, header.srow_z];
        let mut matrix = rows.map(|row| row.map(f64::from));
        change(&mut matrix);
        #[expect(clippy::cast_possible_truncation, reason = "a header holds f32")]
        let rows = matrix.map(|row| row.map(|x| x as f32));
        [header.srow_x, header.srow_y, header.srow_z] = rows;
        (header.sform_code, header.qform_code) = (1, 0);
        for (axis, pixdim) in header.pixdim[1..4].iter_mut().enumerate() {
            *pixdim = rows.iter().map(|row| row[axis].powi(2)).sum::<f32>().sqrt();
        }
        let channel = desk.path("in", &format!("{name}.nii"));
        nifti::write_maps(&channel, &header, &scan.image).expect("the channel is written");
        let reference = desk.path("in", &format!("{name}_labels.nii"));
        nifti::write_labels(&reference, &header, &labels.1).expect("the labels are written");
        (channel, reference)
    };
    let turn = |degrees: f64| {
        move |m: &mut [[f64; 4]; 3]| {
            let (s, c) = degrees.to_radians().sin_cos();
            let [first, second, _] = m;
            for (x, y) in first[..3].iter_mut().zip(&mut second[..3]) {
                (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
            }
        }
    };
    let step = |m: &[[f64; 4]; 3]| (0..3).map(|r| m[r][0] * m[r][0]).sum::<f64>().sqrt();
    type Change<'a> = (&'a str, &'a dyn Fn(&mut [[f64; 4]; 3]));
    let refused: [Change<'_>; 6] = [
        ("away", &|m| m[0][3] += 30.0),
        ("half_a_voxel", &|m| m[2][3] += 0.5 * step(m)),
        ("turned", &turn(15.0)),
        ("slightly_turned", &turn(1.0)),
        ("sheared", &|m| m[1][2] += 0.2 * step(m)),
        ("larger", &|m| m.iter_mut().for_each(|row| row[..3].iter_mut().for_each(|x| *x *= 1.02))),
    ];
    let first = channel("0");
    let expected = format!("{TWO}/expected.nii.gz");
    for (name, change) in refused {
        let (second, reference) = copy(name, change);
        let file = format!("{name}.nii");
        let words = ["lie on different grids", "scan_0000.nii.gz", &file, "mm along"];
        let model = format!("{TWO}/bundle");
        let out = desk.out("x.nii");
        desk.fails(3, &words, &["segment", &first, &second, "--model", &model, "--output", &out]);
        let words = ["lie on different grids", "prediction", "reference", "mm along"];
        desk.fails(3, &words, &["evaluate", &expected, &reference]);
    }
    // rounding of the affine alone is none
    let (second, reference) = copy("rounded", &|m| {
        for (i, row) in m.iter_mut().enumerate() {
            row.iter_mut().enumerate().for_each(|(j, x)| *x += 2e-6 * (i as f64 - 0.3 * j as f64));
        }
    });
    assert_eq!(nifti::read_channels(&[&first, &second]).expect("one grid").image.channels, 2);
    assert_eq!(done_json(&["evaluate", &expected, &reference])["mean"]["dice"], json!(1.0));
}

#[test]
fn scans_and_results_that_the_model_is_not_for_are_told() {
    let desk = Desk::new();
    // the bundled crop is what the model is for
    let (report, err) = segmented(&desk, SCAN, &["--strict"]);
    assert_eq!((report["warnings"].clone(), err.as_str()), (json!([]), ""));
    std::fs::remove_file(desk.out("labels.nii")).expect("the labels are there");
    let strict = |words: &[&str], input: &str| {
        let out = desk.out("x.nii");
        let args = ["segment", input, "--model", MODEL, "--output", &out, "--device", "cpu", "--strict"];
        desk.fails(3, words, &args);
    };
    // a whole head is refused before the run, which would take minutes
    let head = volume(&desk, "head.nii", [197, 233, 189], |i| f32::from(u8::try_from(i % 251).expect("below 251")));
    strict(&["field of view of 189 x 233 x 197 mm (along SAR)", "20 to 60", "hippocampus"], &head);
    // a crop of a CT
    let ct = volume(&desk, "ct.nii", [36, 50, 45], |i| f32::from(u8::try_from(i % 211).expect("below 211")) - 1000.0);
    strict(&["values from -1000", "T1"], &ct);
    // noise on the right grid: its labels have no plausible volume
    let noise = volume(&desk, "noise.nii", [36, 50, 45], |i| f32::from(u8::try_from(i * i % 211).expect("below 211")));
    strict(&["hippocampus of ", "not plausible", "0.7 to 3.5 ml"], &noise);
    let (report, err) = segmented(&desk, &noise, &[]);
    assert!(!kinds(&report).is_empty() && kinds(&report).iter().all(|k| *k == "result"), "{report}");
    assert!(err.contains("organum: warning: anterior hippocampus of "), "{err}");
    for name in ["unet", "mhca", "mhsa", "u_transformer"] {
        let path = format!("{}/weights/hippocampus_{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let model = Model::load(path).expect("a bundled model");
        assert_eq!(model.card().expects.volumes_ml.len(), 2, "{name}");
    }
}

/// A scan of so many voxels along i, j, k, of 1 mm, i to the right.
fn volume(desk: &Desk, name: &str, n: [u32; 3], value: impl Fn(u32) -> f32) -> String {
    let mut header = nifti::read(SCAN).expect("the bundled scan is read").header;
    let short = n.map(|n| u16::try_from(n).expect("a size"));
    header.dim = [3, short[0], short[1], short[2], 1, 1, 1, 1];
    let axes = nifti::read(SCAN).expect("the bundled scan is read").image.axes;
    let extent = organum::Extent::new(n[2], n[1], n[0]);
    let values = (0..n.iter().product()).map(value).collect();
    let v = organum::volume::Volume::new(1, extent, [1.0; 3], axes, values).expect("the values fill it");
    let path = desk.path("in", name);
    nifti::write_maps(&path, &header, &v).expect("the scan is written");
    path
}

#[test]
fn a_spacing_far_too_large_is_refused_with_its_bytes() {
    let desk = Desk::new();
    for (factor, code) in [(90f32, 5), (4000.0, 3)] {
        let header = Header::crop(&desk).codes(0, 1);
        let rows: Vec<f32> = (0..12).map(|i| header.float(SROW_X + 4 * i) * factor).collect();
        let header = header.set(SROW_X, &rows).set(PIXDIM, &[factor; 3]);
        let input = desk.file("huge.nii", &header.0);
        let spacing = format!("{factor:.0}");
        desk.segment_fails(code, &[&spacing, "voxels", "bytes", "GiB", "header"], &input);
    }
}

#[test]
fn outputs_are_different_files() {
    let desk = Desk::new();
    let crop = desk.crop("plain.nii");
    let (x, y) = (desk.out("x.nii"), desk.out("./x.nii"));
    let segment = |output: &str, more: &[&str]| {
        let mut args = vec!["segment", &crop, "--model", MODEL, "--output", output, "--device", "cpu"];
        args.extend(more);
        desk.fails(2, &["--output", "same file"], &args);
    };
    segment(&x, &["--probabilities", &x]);
    segment(&x, &["--probabilities", &y]);
    segment(&x, &["--overlay", &x]);
    let at = ["segment", &crop, "--model", MODEL, "--device", "cpu", "--output", &crop];
    desk.fails(2, &["overwrite the input", "plain.nii"], &at);
    let model = desk.file("m.nii", &std::fs::read(MODEL).expect("the model is there"));
    let at = ["segment", &crop, "--model", &model, "--device", "cpu", "--output", &model];
    desk.fails(2, &["overwrite the input", "m.nii"], &at);
    #[cfg(unix)]
    {
        let link = desk.path("in", "link.nii");
        std::os::unix::fs::symlink(&crop, &link).expect("a link");
        let at = ["segment", &crop, "--model", MODEL, "--device", "cpu", "--output", &link];
        desk.fails(2, &["overwrite the input"], &at);
    }
    let input = desk.file("x.npy", &npy(&[1, 1, 8, 8, 8], &wave(512)));
    desk.fails(2, &["overwrite the input"], &["infer", "--model", MODEL, "--input", &input, "--output", &input]);
}

#[test]
fn the_mean_says_of_how_many_labels_it_is() {
    let desk = Desk::new();
    let (header, labels) = nifti::read_labels(LABELS).expect("the bundled labels are read");
    let changed = |name: &str, map: &dyn Fn(u16) -> u16| {
        let mut labels = labels.clone();
        labels.data.iter_mut().for_each(|l| *l = map(*l));
        let path = desk.path("in", name);
        nifti::write_labels(&path, &header, &labels).expect("the labels are written");
        path
    };
    // the prediction has 1 and 7, the reference 1 and 2
    let prediction = changed("p.nii", &|l| if l == 2 { 7 } else { l });
    let scores = done_json(&["evaluate", &prediction, LABELS]);
    let mean = json!({"dice": 1.0 / 3.0, "hd95_mm": 0.0, "nsd": 1.0 / 3.0, "dice_labels": 3, "hd95_labels": 1, "missed": [2], "false_labels": [7]});
    assert_eq!(scores["mean"], mean);
    assert_eq!(scores["labels"]["7"]["voxels_reference"], json!(0));
    let table = done(&["evaluate", &prediction, LABELS]);
    for words in [
        "missed: in the reference alone",
        "false: in the prediction alone",
        "Dice of 3 labels, HD95 of the 1 that both have; 1 missed, 1 false",
    ] {
        assert!(table.contains(words), "{table}");
    }
    let nothing = changed("z.nii", &|_| 0);
    let empty = done_json(&["evaluate", &nothing, &nothing]);
    assert_eq!((&empty["mean"]["dice"], &empty["mean"]["dice_labels"]), (&Value::Null, &json!(0)));
}
