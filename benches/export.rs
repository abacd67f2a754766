//! How long class scores take back to the scan: `cargo bench --bench export -- SCORES C DxHxW LABELS`,
//! as `benches/export.py` calls it.
//!
//! SCORES holds 16-bit floats `[C][d][h][w]` over the scan of `DxHxW` voxels of 1 mm at 1.5 mm, and
//! LABELS is written: a byte a voxel. Prints the seconds from the first plane to the last label.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::error::Error;
use std::io::Read;
use std::time::Instant;

use organum::Extent;
use organum::back::{SplineCase, SplineExport, SplineExportOptions};
use organum::export::{PlaneSink, ScorePlane};
use organum::nnunet::Pipeline;
use organum::volume::Volume;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [scores, classes, extent, labels] = arguments.as_slice() else {
        println!("nothing to time: give SCORES C DxHxW LABELS, or run benches/export.py");
        return Ok(());
    };
    let classes: u32 = classes.parse()?;
    let axes = extent.split('x').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    let [d, h, w] = axes[..] else { return Err("the extent is not DxHxW".into()) };
    let extent = Extent::new(d, h, w);
    let scan = Volume::new(1, extent, [1.0; 3], "SAR".parse()?, vec![1.0; extent.voxels().try_into()?])?;
    let order = |order| json!({"order": order, "order_along": 0});
    let pipeline: Pipeline = serde_json::from_value(json!({
        "transpose": [0, 1, 2], "spacing_mm": [1.5, 1.5, 1.5], "channels": [{"scheme": "none"}],
        "resample": order(1), "resample_logits": order(1),
    }))?;
    let card = serde_json::from_value(json!({"architecture": "plain_conv_unet", "config": {}}))?;
    let case = SplineCase::new(&card, &pipeline, &scan)?;
    let inner = case.volume.extent;
    let [depth, plane] = [inner.d as usize, inner.h as usize * inner.w as usize];
    let mut planes = vec![Vec::with_capacity(plane * classes as usize); depth];
    let mut file = std::fs::File::open(scores)?;
    let mut class = vec![half::f16::ZERO; plane];
    for _ in 0..classes {
        for plane in &mut planes {
            file.read_exact(bytemuck::cast_slice_mut(&mut class))?;
            plane.extend_from_slice(&class);
        }
    }
    let started = Instant::now();
    let mut export = SplineExport::new(&case, classes, SplineExportOptions::default());
    for (z, plane) in planes.into_iter().enumerate() {
        export.plane(z, ScorePlane::Half(plane))?;
    }
    let exported = export.finish()?;
    println!("{}", started.elapsed().as_secs_f64());
    let bytes = exported.labels.data.iter().map(|&label| u8::try_from(label)).collect::<Result<Vec<_>, _>>()?;
    std::fs::write(labels, bytes)?;
    Ok(())
}
