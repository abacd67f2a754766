//! Windows summed on a device beside the same windows summed on the host, in turn: seconds, and bytes that leave the device.
//!
//! `cargo bench --bench windows -- [--device D] [--pairs N] [--tile DxHxW] [--extent DxHxW] [--classes N] [--mirror]`
//! The network is nnU-Net's in small, of random weights; labels come back, and have to be the same.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a program")]

use std::time::Instant;

use organum::{Engine, Extent, Input, Model, OutputMode, Plan, PlanOptions, RunOptions, Session, Windows};

fn extent(text: &str) -> Result<Extent, Box<dyn std::error::Error>> {
    let axes: Vec<u32> = text.split('x').map(str::parse).collect::<Result<_, _>>()?;
    let axes: [u32; 3] = axes.try_into().map_err(|_| format!("{text} is no DxHxW"))?;
    Ok(axes.into())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).map(String::as_str);
    let pairs: usize = value("--pairs").unwrap_or("5").parse()?;
    let (tile, image) = (extent(value("--tile").unwrap_or("32x32x32"))?, extent(value("--extent").unwrap_or("64x64x64"))?);
    let classes: u32 = value("--classes").unwrap_or("14").parse()?;
    let mirror = args.iter().any(|a| a == "--mirror");
    let card = format!(
        r#"{{"architecture":"plain_conv_unet","config":{{"dims":3,"in_channels":1,"classes":{classes},"features":[16,32,64],
        "kernels":[[3,3,3],[3,3,3],[3,3,3]],"strides":[[1,1,1],[2,2,2],[2,2,2]],"convs_per_stage":1}},
        "inference":{{"patch":[{},{},{}],"overlap":0.5,"scheme":"nnunet_v2","mirror":{mirror}}}}}"#,
        tile.d, tile.h, tile.w
    );
    let model = Model::random(&card, 1)?;
    let engine = pollster::block_on(Engine::request(value("--device")))?;
    let windows = Windows::new(model.card(), image)?;
    let options = PlanOptions::default().with_output(OutputMode::Logits);
    let open = |plan| pollster::block_on(Session::new(&engine, &model, plan));
    let mut host = open(Plan::new(&model, tile, engine.caps(), &options)?)?;
    let mut device = open(windows.plan(&model, 1, true, engine.caps(), &options)?)?;
    if device.plan().report().windows_bytes == 0 {
        return Err("the device has no room for the sums".into());
    }
    let data: Vec<f32> = (0..image.voxels()).map(|i| (i * 7919 % 2001) as f32 / 1000.0 - 1.0).collect();
    let input = Input { channels: 1, extent: image, data: &data };
    let mut seconds = [Vec::new(), Vec::new()];
    for _ in 0..=pairs {
        let mut labels = Vec::new();
        for (session, seconds) in [&mut host, &mut device].into_iter().zip(&mut seconds) {
            let begin = Instant::now();
            labels.push(pollster::block_on(windows.run(session, &model, input, false, RunOptions::default()))?.labels);
            seconds.push(begin.elapsed().as_secs_f64());
        }
        if labels[0] != labels[1] {
            return Err("host and device make different labels".into());
        }
    }
    // the first pair compiles
    let [host_seconds, device_seconds] = seconds.map(|all| median(all[1..].to_vec()));
    let voxels = image.voxels() as f64;
    // of the last of the passes
    let logits = windows.passes() as u64 * host.downloaded_bytes();
    let labels = device.downloaded_bytes();
    println!("{} on {image}, windows of {tile}: {} passes, {classes} classes, {pairs} pairs", engine.summary().name, windows.passes());
    println!("summed on the host:   {host_seconds:.3} s, {:.1} bytes a voxel leave the device", logits as f64 / voxels);
    println!("summed on the device: {device_seconds:.3} s, {:.1} bytes a voxel leave the device", labels as f64 / voxels);
    println!("ratio {:.2}, the same labels", host_seconds / device_seconds);
    Ok(())
}
