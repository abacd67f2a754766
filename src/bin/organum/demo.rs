//! `organum demo`: the bundled model on the bundled scans, compared with the labels that PyTorch made.

use std::path::Path;
use std::time::Instant;

use organum::segment::LabelVolume;
use organum::volume::{evaluate, nifti};
use organum::{Model, Segmenter};
use serde_json::{Value, json};

use crate::args;
use crate::device::Opened;
use crate::fail::Failure;
use crate::output::{say, say_json};
use crate::outputs::{Outputs, volumes};

const MODEL: &[u8] = include_bytes!("../../../weights/hippocampus_u_transformer.safetensors");

/// A bundled scan and PyTorch's labels for it.
struct Bundled {
    side: &'static str,
    /// Prefix of the files it writes; the first scan's have none.
    prefix: &'static str,
    scan: &'static [u8],
    labels: &'static [u8],
}

const SCANS: [Bundled; 2] = [
    Bundled {
        side: "right",
        prefix: "",
        scan: include_bytes!("../../../weights/demo/mni152_hippocampus_right.nii.gz"),
        labels: include_bytes!("../../../weights/demo/mni152_hippocampus_right_labels.nii.gz"),
    },
    Bundled {
        side: "left",
        prefix: "left_",
        scan: include_bytes!("../../../weights/demo/mni152_hippocampus_left.nii.gz"),
        labels: include_bytes!("../../../weights/demo/mni152_hippocampus_left_labels.nii.gz"),
    },
];

/// `organum demo`.
pub(crate) fn run(a: &args::Demo) -> Result<(), Failure> {
    let device = Opened::new(&a.run)?;
    let mut options = Opened::options(&a.run);
    (options.attention, options.close_session) = (true, a.run.profile);
    a.host.bound(&mut options, &a.out.join("labels.nii.gz"));
    let mut segmenter = Segmenter::new(Model::from_bytes(MODEL)?, device.device.clone(), options)?;
    std::fs::create_dir_all(&a.out).map_err(|e| Failure::usage(format!("cannot create {}: {e}", a.out.display())))?;
    let mut report = Vec::new();
    for bundled in &SCANS {
        report.push(one(a, &device, &mut segmenter, bundled)?);
    }
    if a.run.json {
        say_json(&json!({"device": device.device.name(), "backend": device.device.backend(), "scans": report}));
    } else {
        say(&format!("wrote label maps and pictures to {}", a.out.display()));
    }
    Ok(())
}

fn one(a: &args::Demo, device: &Opened, segmenter: &mut Segmenter, bundled: &Bundled) -> Result<Value, Failure> {
    let started = Instant::now();
    let folder = tempfile::tempdir().map_err(|e| Failure::internal(format!("no temporary folder: {e}")))?;
    let unpack = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).map_err(|e| Failure::internal(format!("cannot write {}: {e}", path.display())))?;
        Ok::<_, Failure>(path)
    };
    let scan = nifti::read(unpack("scan.nii.gz", bundled.scan)?)?;
    let (_, expected) = nifti::read_labels(unpack("labels.nii.gz", bundled.labels)?)?;
    let load = started.elapsed();
    let file = |name: &str| a.out.join(format!("{}{name}", bundled.prefix));
    let (labels, overlay, attention) = (file("labels.nii.gz"), file("overlay.png"), file("attention.png"));
    let outputs =
        Outputs { labels: Some(labels.clone()), overlay: Some(overlay.clone()), attention: Some(attention.clone()), ..Outputs::default() };
    let result = device.watch(&a.run, |how| segmenter.segment_blocking(&scan, how))?;
    outputs.write(&scan, &result, segmenter)?;
    let took = device.took(&a.run, result.report.run.clone(), load);
    let total = started.elapsed();

    let scores = evaluate(&result.labels, &expected)?;
    let different = result.labels.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
    let mut volumes = volumes(&result);
    for LabelVolume { class, name, .. } in &result.volumes {
        let s = scores.iter().find(|s| u32::from(s.label) == *class);
        if let Some(entry) = volumes.get_mut(name) {
            entry["dice"] = json!(s.and_then(|s| s.dice));
            entry["hd95_mm"] = json!(s.and_then(|s| s.hd95_mm));
        }
    }
    if !a.run.json {
        say(&format!(
            "MNI152 template, {} hippocampus, {} voxels; against PyTorch with the same weights:",
            bundled.side, scan.image.extent
        ));
        say(&format!("  {:<22} {:>8} {:>8} {:>8}", "label", "ml", "Dice", "HD95 mm"));
        for (name, v) in &volumes {
            let show = |key: &str, digits: usize| v[key].as_f64().map_or_else(|| "-".into(), |x| format!("{x:.digits$}"));
            say(&format!("  {name:<22} {:>8} {:>8} {:>8}", show("ml", 3), show("dice", 4), show("hd95_mm", 3)));
        }
        let verdict =
            if different == 0 { "every voxel equal".into() } else { format!("{different} of {} voxels differ", expected.data.len()) };
        say(&format!("  {verdict}"));
        say(&format!("  {}\n", took.summary(total)));
    }
    let mut json = took.json(total);
    json["host_memory"] = json!(result.report.host_memory);
    json["side"] = json!(bundled.side);
    json["labels"] = Value::Object(volumes);
    json["voxels_different"] = json!(different);
    json["equal"] = json!(different == 0);
    json["files"] = json!([&labels, &overlay, &attention].map(|p: &std::path::PathBuf| relative(p)));
    Ok(json)
}

fn relative(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
