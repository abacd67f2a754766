//! Segments voxels that a program already has in memory, without any file of a scan:
//! `cargo run --release --example own_voxels -- MODEL`.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "an example says what it did")]

use std::error::Error;

use organum::volume::Volume;
use organum::{Device, Extent, LoadOptions, RunOptions, SegmentOptions, Segmenter, open};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model] = &args[..] else { return Err("give a model".into()) };
    for (name, ml) in segment(model, Device::Host)? {
        println!("{name}: {ml:.2} ml");
    }
    Ok(())
}

/// Segments a ball of 12 mm in noise; names and volumes of what is found.
pub(crate) fn segment(model: &str, device: Device) -> Result<Vec<(String, f64)>, Box<dyn Error>> {
    // planes, rows, columns; their distances in mm; and where each of them leads in the patient
    let (extent, spacing, axes) = (Extent::new(24, 40, 32), [1.5, 1.0, 1.0], "SAR".parse()?);
    let mut voxels = Vec::new();
    for (z, y, x) in (0..24).flat_map(|z| (0..40).flat_map(move |y| (0..32).map(move |x| (z, y, x)))) {
        let away = [(z - 12) as f32 * 1.5, (y - 20) as f32, (x - 16) as f32];
        let inside = away.iter().map(|d| d * d).sum::<f32>() < 144.0;
        let noise = ((x * 31 + y * 17 + z * 7) % 13) as f32;
        voxels.push(if inside { 90.0 + noise } else { noise });
    }
    let scan = Volume::new(1, extent, spacing, axes, voxels)?;

    let model = open(model, &LoadOptions::default())?;
    let options = SegmentOptions::default().with_probabilities();
    let mut segmenter = Segmenter::new(model, device, options)?;
    let result = segmenter.segment_blocking(&scan, RunOptions::default())?;
    // labels and probabilities have the scan's grid, voxel by voxel
    let probabilities = result.probabilities.ok_or("probabilities were asked for")?.to_volume()?;
    assert_eq!((result.labels.extent, probabilities.extent), (scan.extent, scan.extent));
    Ok(result.volumes.into_iter().map(|v| (v.name, v.ml)).collect())
}
