//! Segments a file with whatever model there is and writes the labels beside it:
//! `cargo run --release --example segment_file -- MODEL SCAN LABELS.nii.gz`.
//!
//! MODEL is a model file, a PyTorch checkpoint, an nnU-Net folder or a MONAI bundle; SCAN a NIfTI,
//! NRRD, MetaImage or MGH file, or with the feature `dicom` a DICOM folder.
#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::error::Error;

use organum::volume::file;
use organum::{Device, LoadOptions, RunOptions, SegmentOptions, Segmenter, open};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, scan, labels] = &args[..] else { return Err("give a model, a scan and a file for the labels".into()) };
    // a GPU if there is one, else the host
    let device = pollster::block_on(Device::request(None))?;
    segment(model, scan, labels, device)
}

/// Segments `scan` on a device and writes `labels`.
pub(crate) fn segment(model: &str, scan: &str, labels: &str, device: Device) -> Result<(), Box<dyn Error>> {
    let model = open(model, &LoadOptions::default())?;
    let mut segmenter = Segmenter::new(model, device, SegmentOptions::default())?;
    let scan = file::read(scan)?;
    let result = segmenter.segment_blocking(&scan, RunOptions::default())?;
    for warning in &result.warnings {
        println!("warning: {warning}");
    }
    for volume in &result.volumes {
        println!("{}: {:.2} ml", volume.name, volume.ml);
    }
    // the labels lie on the scan's grid, whatever the model wanted
    file::write_labels(labels, &scan.header, &result.labels, &result.legend())?;
    Ok(())
}
