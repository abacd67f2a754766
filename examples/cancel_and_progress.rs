//! Shows how far a run is, stops it halfway, and runs again:
//! `cargo run --release --example cancel_and_progress -- MODEL SCAN.nii.gz`.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "an example says what it did")]

use std::error::Error;

use organum::volume::nifti;
use organum::{Cancel, Device, LoadOptions, Progress, RunOptions, SegmentOptions, Segmenter, open};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, scan] = &args[..] else { return Err("give a model and a scan".into()) };
    let stopped = segment(model, scan, Device::Host)?;
    println!("stopped at {:.0} %, then segmented", stopped * 100.0);
    Ok(())
}

/// Stops a run at half of its operations and runs it again to the end; the share at which it
/// stopped.
pub(crate) fn segment(model: &str, scan: &str, device: Device) -> Result<f64, Box<dyn Error>> {
    let model = open(model, &LoadOptions::default())?;
    let mut segmenter = Segmenter::new(model, device, SegmentOptions::default())?;
    let scan = nifti::read(scan)?;

    // a handle that any thread may raise: a button, a signal, a deadline
    let cancel = Cancel::new();
    let stop = cancel.clone();
    let mut reached = 0.0;
    let mut show = |p: Progress| {
        reached = p.done as f64 / p.total as f64;
        if reached >= 0.5 {
            stop.raise();
        }
    };
    let how = RunOptions::default().with_progress(&mut show).with_cancel(cancel);
    match segmenter.segment_blocking(&scan, how) {
        Err(e) if e.is_cancelled() => {}
        Err(e) => return Err(e.into()),
        Ok(_) => return Err("the run was over before it could be stopped".into()),
    }
    // a cancelled segmenter is as good as new
    segmenter.segment_blocking(&scan, RunOptions::default())?;
    Ok(reached)
}
