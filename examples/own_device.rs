//! Segments within a program that has a wgpu device of its own, and paints the labels into one of
//! its textures: `cargo run --release --example own_device -- MODEL SCAN.nii.gz`.
#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::error::Error;

use organum::volume::{Volume, nifti};
use organum::{Device, Engine, LoadOptions, RunOptions, SegmentOptions, Segmenter, open, wgpu};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, scan] = &args[..] else { return Err("give a model and a scan".into()) };
    let gpu = pollster::block_on(own_device())?;
    let (voxels, bytes) = segment(model, scan, gpu.as_ref())?;
    println!("{voxels} labelled voxels in the middle plane; {bytes} bytes of the device are still in use");
    Ok(())
}

/// The device that the program draws with; organum only needs these features and limits, as far as
/// the adapter has them. `None` where there is no adapter.
async fn own_device() -> Result<Option<(wgpu::Device, wgpu::Queue)>, Box<dyn Error>> {
    let instance = wgpu::Instance::default();
    let Ok(adapter) = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await else { return Ok(None) };
    let descriptor = wgpu::DeviceDescriptor {
        required_features: Engine::required_features(&adapter),
        required_limits: Engine::required_limits(&adapter),
        ..Default::default()
    };
    Ok(Some(adapter.request_device(&descriptor).await?))
}

/// Segments a scan and, on a device, paints its middle plane; the labelled voxels of that plane,
/// and the bytes that organum still holds on the device.
pub(crate) fn segment(model: &str, scan: &str, gpu: Option<&(wgpu::Device, wgpu::Queue)>) -> Result<(usize, u64), Box<dyn Error>> {
    // no callback is installed on the device, and it stays the program's own
    let engine = gpu.map(|(device, queue)| Engine::new(device, queue));
    let device = engine.as_ref().map_or(Device::Host, Device::from);
    let model = open(model, &LoadOptions::default())?;
    let options = SegmentOptions::default().with_budget(256 << 20);
    let mut segmenter = Segmenter::new(model, device, options)?;
    let scan = nifti::read(scan)?;
    let labels = segmenter.segment_blocking(&scan, RunOptions::default())?.labels;

    let [height, width] = [labels.extent.h, labels.extent.w];
    let plane = middle_plane(&labels);
    if let Some((device, queue)) = gpu {
        paint(device, queue, [width, height], plane);
    }
    // the session waits for the next scan of this extent; this gives its memory back
    segmenter.close();
    let labelled = plane.iter().filter(|&&label| label > 0).count();
    Ok((labelled, engine.map_or(0, |engine| engine.allocated_bytes())))
}

/// The labels of the middle plane along D.
fn middle_plane(labels: &Volume<u16>) -> &[u16] {
    let voxels = labels.extent.h as usize * labels.extent.w as usize;
    &labels.data[labels.extent.d as usize / 2 * voxels..][..voxels]
}

/// A texture with the labels of a plane, for a shader of the program to colour.
fn paint(device: &wgpu::Device, queue: &wgpu::Queue, [width, height]: [u32; 2], plane: &[u16]) -> wgpu::Texture {
    let size = wgpu::Extent3d { width, height, depth_or_array_layers: 1 };
    let texture = device.create_texture(&wgpu::TextureDescriptor {
        label: Some("labels"),
        size,
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format: wgpu::TextureFormat::R16Uint,
        usage: wgpu::TextureUsages::TEXTURE_BINDING | wgpu::TextureUsages::COPY_DST,
        view_formats: &[],
    });
    let bytes: Vec<u8> = plane.iter().flat_map(|label| label.to_le_bytes()).collect();
    let layout = wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(width * 2), rows_per_image: Some(height) };
    queue.write_texture(texture.as_image_copy(), &bytes, layout, size);
    texture
}
