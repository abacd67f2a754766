//! Writes what the C and C++ programs of tests/ are given and must find:
//! `cargo run --release --example vectors -- FOLDER` makes voxels.raw (the demo scan, 45x50x36
//! floats) and labels.raw (those that PyTorch made of it, 16-bit numbers).

use std::error::Error;
use std::path::PathBuf;

use crate_organum::volume::nifti;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("give a folder")?);
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/demo/mni152_hippocampus_right");
    let scan = nifti::read(format!("{demo}.nii.gz"))?.image;
    let (_, labels) = nifti::read_labels(format!("{demo}_labels.nii.gz"))?;
    let voxels: Vec<u8> = scan.data.iter().flat_map(|v| v.to_ne_bytes()).collect();
    std::fs::write(folder.join("voxels.raw"), voxels)?;
    let labels: Vec<u8> = labels.data.iter().flat_map(|v| v.to_ne_bytes()).collect();
    std::fs::write(folder.join("labels.raw"), labels)?;
    Ok(())
}
