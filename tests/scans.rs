//! Real scans: their grids come back exactly, their orientation and spacing do not matter, their labels are good.
#![allow(clippy::cast_possible_truncation, reason = "extents of scans that exist")]
#![allow(clippy::print_stdout, reason = "figures and skips belong to a test's output")]

mod support;

use std::collections::HashMap;
use std::path::Path;

use ::nifti::NiftiHeader;
use organum::back::DirectCase;
use organum::volume::{Axes, LabelScore, Volume, evaluate, nifti};
use organum::{DeviceCaps, Engine, Extent, Model, OutputData, Plan, PlanOptions, RunOptions, Session};
use safetensors::SafeTensors;
use serde_json::Value;
use support::{engine, shared};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/hippocampus_u_transformer.safetensors");

fn model() -> Model {
    Model::load(MODEL).expect("the bundled model loads")
}

/// The bundled model with other input axes and without a spacing of its own.
fn model_in(axes: &str) -> Model {
    let bytes = std::fs::read(MODEL).expect("the bundled model is there");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("it is a safetensors file");
    let card = metadata.metadata().as_ref().and_then(|m| m.get("organum")).expect("it has a card");
    let mut card: Value = serde_json::from_str(card).expect("the card is JSON");
    card["input"]["spacing_mm"] = Value::Null;
    card["input"]["axes"] = Value::from(axes);
    let metadata = HashMap::from([("organum".to_owned(), card.to_string())]);
    let tensors = SafeTensors::deserialize(&bytes).expect("it is a safetensors file").tensors();
    Model::from_bytes(safetensors::serialize(tensors, Some(metadata)).expect("it is serialised")).expect("the model loads")
}

/// Segments on the engine, or on the host without one.
fn segment(model: &Model, scan: &Volume<f32>, engine: Option<&Engine>) -> Volume<u16> {
    let prepared = DirectCase::new(model, scan).expect("the scan suits the model");
    let caps = engine.map_or_else(DeviceCaps::host, |e| e.caps().clone());
    let plan = Plan::new(model, prepared.volume.extent, &caps, &PlanOptions::default()).expect("there is a plan");
    let session = match engine {
        Some(engine) => pollster::block_on(Session::new(engine, model, plan)),
        None => Session::on_host(model, plan),
    };
    let mut outputs = session.expect("the session is made").run_blocking(prepared.input(), RunOptions::default()).expect("it runs");
    match outputs.swap_remove(0).data {
        OutputData::Labels(labels) => prepared.restore_labels(labels).expect("the labels are those of the input"),
        OutputData::Map(_) => panic!("asked for labels"),
    }
}

fn dice(scores: &[LabelScore]) -> Vec<f64> {
    scores.iter().map(|s| s.dice.unwrap_or(0.0)).collect()
}

// ---- grids ----

/// Labels on the grid of the scan: written next to it, the file's header says the same place, in its very bytes.
fn same_place(scan: &nifti::Scan, labels: &Volume<u16>) {
    assert_eq!((labels.extent, labels.axes), (scan.image.extent, scan.image.axes));
    assert_eq!(labels.spacing, scan.image.spacing);
    let folder = tempfile::tempdir().expect("there is room for temporary files");
    let path = folder.path().join("labels.nii");
    nifti::write_labels(&path, &scan.header, labels).expect("the labels are written");
    let bytes = std::fs::read(&path).expect("the labels are there");
    let short = |at: usize| i16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let float = |at: usize| f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let h = &scan.header;
    for axis in 0..4 {
        assert_eq!(short(40 + 2 * axis), if axis == 0 { 3 } else { i16::try_from(h.dim[axis]).expect("a size") });
        assert_eq!(float(76 + 4 * axis).to_bits(), h.pixdim[axis].to_bits(), "pixdim[{axis}]");
        assert_eq!(float(280 + 4 * axis).to_bits(), h.srow_x[axis].to_bits());
        assert_eq!(float(296 + 4 * axis).to_bits(), h.srow_y[axis].to_bits());
        assert_eq!(float(312 + 4 * axis).to_bits(), h.srow_z[axis].to_bits());
    }
    assert_eq!(bytes[123], h.xyzt_units);
    assert_eq!((short(252), short(254)), (h.qform_code, h.sform_code));
    let quaternion = [h.quatern_b, h.quatern_c, h.quatern_d, h.quatern_x, h.quatern_y, h.quatern_z];
    for (i, q) in quaternion.iter().enumerate() {
        assert_eq!(float(256 + 4 * i).to_bits(), q.to_bits());
    }
    let (_, again) = nifti::read_labels(&path).expect("the labels are read");
    assert!(again == *labels, "other labels come back");
}

/// The brightest voxels, found in the network's input, are on the way back those that are the brightest of the scan.
fn thresholds_agree(model: &Model, scan: &nifti::Scan) {
    let prepared = DirectCase::new(model, &scan.image).expect("the scan suits the model");
    let n = scan.image.data.len();
    // the padding has the value of the mean: a threshold well above it
    let mut values = scan.image.data.clone();
    let (_, &mut threshold, _) = values.select_nth_unstable_by(n - n / 20, f32::total_cmp);
    let bright = values.iter().filter(|&&v| v >= threshold).count();
    assert!(bright >= n / 20 && bright < n / 4);
    let mut scaled = prepared.volume.data.clone();
    let at = scaled.len() - bright;
    let (_, &mut scaled_threshold, _) = scaled.select_nth_unstable_by(at, f32::total_cmp);
    assert!(scaled_threshold > 0.0);
    let labels = prepared.volume.data.iter().map(|&v| u16::from(v >= scaled_threshold)).collect();
    let labels = prepared.restore_labels(labels).expect("the labels are those of the input");
    same_place(scan, &labels);
    assert!(labels.data.iter().zip(&scan.image.data).all(|(&l, &v)| (l == 1) == (v >= threshold)), "voxels have moved");
    let maps = prepared.restore_maps(1, prepared.volume.data.clone()).expect("the map is that of the input");
    assert_eq!((maps.extent, maps.axes, maps.spacing), (scan.image.extent, scan.image.axes, scan.image.spacing));
    assert!(maps.data.iter().zip(&scan.image.data).all(|(&m, &v)| (m >= scaled_threshold) == (v >= threshold)), "values have moved");
}

#[test]
fn grids_of_all_orientations_come_back() {
    let model = model();
    let files = [
        ("hippocampus/images/hippocampus_048.nii.gz", "SAR"),
        ("mri_t1/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz", "SAR"),
        ("mri_t1/niivue_norm_t1.nii.gz", "AIL"),
    ];
    for (file, axes) in files {
        let Some(path) = shared(&format!("data/{file}")) else { continue };
        let scan = nifti::read(path).expect("the scan is read");
        assert_eq!(scan.image.axes.to_string(), axes, "{file}");
        thresholds_agree(&model, &scan);
    }
}

/// 1.75 mm voxels: exact for a model that takes the scan's own spacing, the same grid and field for one that wants 1 mm.
#[test]
fn a_scan_of_another_spacing_comes_back() {
    let Some(path) = shared("data/mri_t1/hippodeep_example_brain_t1.nii.gz") else { return };
    let scan = nifti::read(path).expect("the scan is read");
    assert_eq!(scan.image.axes.to_string(), "SAL");
    for axes in ["SAR", "SAL", "RIP"] {
        thresholds_agree(&model_in(axes), &scan);
    }

    let prepared = DirectCase::new(&model(), &scan.image).expect("the scan suits the model");
    for axis in 0..3 {
        let field = f64::from(scan.image.extent.axes()[axis]) * scan.image.spacing[axis];
        let padded = f64::from(prepared.volume.extent.axes()[axis]);
        assert!((prepared.volume.spacing[axis] - 1.0).abs() < 0.01);
        assert!(padded >= field - 1.0 && padded < field + 9.0, "{field} mm in {padded} voxels");
    }
    let labels = prepared.volume.data.iter().map(|&v| u16::from(v > 1.0)).collect();
    let labels = prepared.restore_labels(labels).expect("the labels are those of the input");
    same_place(&scan, &labels);
    // resampled there and back, the bright voxels are nearly those of the scan
    let mut own = scan.image.clone();
    organum::volume::Intensity::Zscore.apply(&mut own);
    let own = Volume::new(1, own.extent, own.spacing, own.axes, own.data.iter().map(|&v| u16::from(v > 1.0)).collect()).expect("one grid");
    let own = own.with_affine(*scan.image.affine());
    let overlap = dice(&evaluate(&labels, &own).expect("one grid"))[0];
    println!("thresholds through 1 mm and back: Dice {overlap:.4}");
    assert!(overlap > 0.9, "{overlap}");
}

// ---- orientation and spacing, with helpers that share nothing with the library's own ----

/// A scan stored another way: new voxel axis `a` runs along old axis `from[a].0`, backwards if `from[a].1`.
struct Turn([(usize, bool); 3]);

impl Turn {
    /// New sizes (i, j, k).
    fn sizes(&self, old: [usize; 3]) -> [usize; 3] {
        self.0.map(|(axis, _)| old[axis])
    }

    /// The old voxel at a new one.
    fn source(&self, at: [usize; 3], old: [usize; 3]) -> [usize; 3] {
        let mut source = [0; 3];
        for (i, (axis, backwards)) in at.into_iter().zip(self.0) {
            source[axis] = if backwards { old[axis] - 1 - i } else { i };
        }
        source
    }

    /// Values (i fastest) in the new order.
    fn apply<T: Copy>(&self, values: &[T], old: [usize; 3]) -> Vec<T> {
        let new = self.sizes(old);
        let mut out = Vec::with_capacity(values.len());
        for k in 0..new[2] {
            for j in 0..new[1] {
                for i in 0..new[0] {
                    let [x, y, z] = self.source([i, j, k], old);
                    out.push(values[(z * old[1] + y) * old[0] + x]);
                }
            }
        }
        out
    }

    /// The header of the turned scan: the same place in the world.
    fn header(&self, h: &NiftiHeader) -> NiftiHeader {
        let old = [1, 2, 3].map(|a| usize::from(h.dim[a]));
        let new = self.sizes(old);
        let mut turned = h.clone();
        turned.qform_code = 0;
        turned.sform_code = 1;
        let origin = self.source([0; 3], old);
        for (row, to) in [h.srow_x, h.srow_y, h.srow_z].iter().zip([&mut turned.srow_x, &mut turned.srow_y, &mut turned.srow_z]) {
            for (a, (axis, backwards)) in self.0.into_iter().enumerate() {
                to[a] = if backwards { -row[axis] } else { row[axis] };
            }
            to[3] = row[3] + (0..3).map(|axis| row[axis] * origin[axis] as f32).sum::<f32>();
        }
        for (a, (axis, _)) in self.0.into_iter().enumerate() {
            turned.dim[a + 1] = new[a] as u16;
            turned.pixdim[a + 1] = h.pixdim[axis + 1];
        }
        turned
    }
}

/// Writes values (i fastest) and reads the scan back.
fn stored(folder: &Path, header: &NiftiHeader, axes: &str, spacing: [f64; 3], values: Vec<f32>) -> nifti::Scan {
    let extent = Extent::new(header.dim[3].into(), header.dim[2].into(), header.dim[1].into());
    let axes: Axes = axes.parse().expect("axes");
    let volume = Volume::new(1, extent, spacing, axes, values).expect("the values fill the grid");
    let path = folder.join("scan.nii");
    nifti::write_maps(&path, header, &volume).expect("the scan is written: its header has these axes");
    let scan = nifti::read(&path).expect("the scan is read");
    assert_eq!(scan.image.data, volume.data);
    scan
}

fn validation_case(name: &str) -> Option<(nifti::Scan, Volume<u16>)> {
    let path = |part: &str| shared(&format!("data/hippocampus/{part}/{name}.nii.gz"));
    let scan = nifti::read(path("images")?).expect("the scan is read");
    let (_, labels) = nifti::read_labels(path("labels")?).expect("the labels are read");
    Some((scan, labels))
}

#[test]
fn the_way_a_scan_is_stored_does_not_matter() {
    let Some((scan, _)) = validation_case("hippocampus_141") else { return };
    assert_eq!(scan.image.axes.to_string(), "SAR", "i runs right, j anterior, k superior");
    assert_eq!(scan.image.spacing, [1.0; 3]);
    let model = model();
    let labels = segment(&model, &scan.image, None);
    assert!(labels.data.contains(&2));
    let size = [1, 2, 3].map(|a| usize::from(scan.header.dim[a]));
    let folder = tempfile::tempdir().expect("there is room for temporary files");
    // as nibabel names them (i, j, k): LIA and LAS; our axes are k, j, i
    let turns = [("AIL", Turn([(0, true), (2, true), (1, false)])), ("SAL", Turn([(0, true), (1, false), (2, false)]))];
    for (axes, turn) in turns {
        let turned = stored(folder.path(), &turn.header(&scan.header), axes, [1.0; 3], turn.apply(&scan.image.data, size));
        let turned_labels = segment(&model, &turned.image, None);
        assert_eq!(turned_labels.extent, turned.image.extent);
        assert!(turned_labels.data == turn.apply(&labels.data, size), "{axes}: other labels");
    }
}

#[test]
fn thick_slices_are_resampled() {
    let Some((scan, _)) = validation_case("hippocampus_141") else { return };
    let model = model();
    let engine = engine();
    let fine = segment(&model, &scan.image, engine);
    let [w, h, d] = [1, 2, 3].map(|a| usize::from(scan.header.dim[a]));
    // pairs of planes along j become one plane of 2 mm
    let thick = h / 2;
    let mut header = scan.header.clone();
    header.qform_code = 0;
    header.sform_code = 1;
    header.dim[2] = thick as u16;
    header.pixdim[2] = 2.0;
    for row in [&mut header.srow_x, &mut header.srow_y, &mut header.srow_z] {
        row[3] += row[1] / 2.0;
        row[1] *= 2.0;
    }
    let mut values = Vec::new();
    let mut expected = Vec::new();
    for z in 0..d {
        for y in 0..thick {
            for x in 0..w {
                let at = (z * h + 2 * y) * w + x;
                values.push(f32::midpoint(scan.image.data[at], scan.image.data[at + w]));
                expected.push(fine.data[at + w]);
            }
        }
    }
    let folder = tempfile::tempdir().expect("there is room for temporary files");
    let coarse = stored(folder.path(), &header, "SAR", [1.0, 2.0, 1.0], values);
    let labels = segment(&model, &coarse.image, engine);
    assert_eq!((labels.extent, labels.axes, labels.spacing), (coarse.image.extent, coarse.image.axes, coarse.image.spacing));
    let expected = Volume::new(1, labels.extent, labels.spacing, labels.axes, expected).expect("the values fill the grid");
    let expected = expected.with_affine(*labels.affine());
    let scores = dice(&evaluate(&labels, &expected).expect("one grid"));
    println!("2 mm planes against 1 mm planes: Dice {scores:.3?}");
    assert!(scores.len() == 2 && scores.iter().all(|&d| d > 0.8), "{scores:?}");
}

// ---- quality ----

#[test]
fn labels_agree_with_the_experts() {
    let model = model();
    for name in ["hippocampus_048", "hippocampus_215", "hippocampus_352"] {
        let Some((scan, expert)) = validation_case(name) else { continue };
        let labels = segment(&model, &scan.image, engine());
        same_place(&scan, &labels);
        let scores = dice(&evaluate(&labels, &expert).expect("one grid"));
        println!("{name}: Dice {scores:.3?}");
        assert!(scores.len() == 2 && scores.iter().all(|&d| d >= 0.8), "{name}: {scores:?}");
    }
}
