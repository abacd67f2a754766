//! The device side of a session: chunks, staging and uniform buffers, and the batches that run on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use super::{Engine, Pipeline};
use crate::error::{EngineError, EngineErrorKind, RunError, RunErrorKind};
use crate::record::{Recording, Region, UNIFORM_STRIDE};

/// All device buffers of a session. Dropping it gives every byte back.
#[derive(Debug)]
pub(crate) struct GpuMemory {
    engine: Engine,
    chunks: Vec<wgpu::Buffer>,
    uniforms: wgpu::Buffer,
    upload: wgpu::Buffer,
    download: wgpu::Buffer,
    upload_state: MapState,
    download_state: MapState,
    /// Bytes written to the mapped upload buffer.
    filled: u64,
    pending: Vec<Pending>,
    allocated: u64,
}

/// Whether a staging buffer belongs to the host. A dropped future can leave a mapping behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MapState {
    Device,
    Asked,
    Host,
}

#[derive(Debug)]
enum Pending {
    Copy { from: u64, to: Region, at: u64, size: u64 },
    Uniforms { size: u64 },
    Dispatch { pipeline: Arc<Pipeline>, bindings: Vec<Region>, params: u32, workgroups: [u32; 3] },
    Fetch { from: Region, at: u64, size: u64 },
}

impl GpuMemory {
    /// Creates exactly the buffers the recording names.
    pub(crate) async fn new(engine: &Engine, recording: &Recording) -> Result<Self, EngineError> {
        let device = engine.device();
        let out_of_memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let invalid = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let mut allocated = 0;
        let mut buffer = |label: &str, size: u64, usage| {
            allocated += size;
            device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: label == "upload" })
        };
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let chunks = recording.chunks.iter().map(|&size| buffer("chunk", size, storage)).collect();
        let uniforms = buffer("uniforms", recording.uniform_bytes(), wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
        let upload = buffer("upload", recording.upload_staging, wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC);
        let download = buffer("download", recording.download_staging, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let (invalid, out_of_memory) = (invalid.pop(), out_of_memory.pop());
        let (invalid, out_of_memory) = (invalid.await, out_of_memory.await);
        if let Some(error) = out_of_memory.or(invalid) {
            let text = format!(
                "the device could not allocate {} bytes in {} buffers; give a smaller --memory",
                recording.device_bytes(),
                recording.chunks.len() + 3
            );
            return Err(EngineError::new(EngineErrorKind::OutOfMemory, text).caused_by(error));
        }
        Ok(Self {
            engine: engine.clone(),
            chunks,
            uniforms,
            upload,
            download,
            upload_state: MapState::Host,
            download_state: MapState::Device,
            filled: 0,
            pending: Vec::new(),
            allocated,
        })
    }

    /// Bytes of all buffers created.
    pub(crate) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Fills the uniform buffer.
    pub(crate) async fn write_uniforms(&mut self, blocks: &[Vec<u8>]) -> Result<(), RunError> {
        let room = (self.upload.size() / UNIFORM_STRIDE).max(1) as usize;
        for (index, group) in blocks.chunks(room).enumerate() {
            let mut bytes = vec![0u8; group.len() * UNIFORM_STRIDE as usize];
            for (slot, block) in bytes.chunks_exact_mut(UNIFORM_STRIDE as usize).zip(group) {
                slot[..block.len()].copy_from_slice(block);
            }
            self.stage(&bytes)?;
            self.pending.push(Pending::Uniforms { size: bytes.len() as u64 });
            self.flush_at(index as u64 * room as u64 * UNIFORM_STRIDE).await?;
        }
        Ok(())
    }

    /// Copies bytes to `at` within a region, submitting when the staging buffer is full.
    pub(crate) async fn write(&mut self, region: Region, at: u64, bytes: &[u8]) -> Result<(), RunError> {
        let mut done = 0;
        while done < bytes.len() {
            if self.filled == self.upload.size() {
                self.flush().await?;
            }
            let size = (bytes.len() - done).min((self.upload.size() - self.filled) as usize);
            let from = self.filled;
            self.stage(&bytes[done..done + size])?;
            self.pending.push(Pending::Copy { from, to: region, at: at + done as u64, size: size as u64 });
            done += size;
        }
        Ok(())
    }

    fn stage(&mut self, bytes: &[u8]) -> Result<(), RunError> {
        let end = self.filled + bytes.len() as u64;
        let mut view =
            self.upload.get_mapped_range_mut(self.filled..end).map_err(|e| internal("the upload buffer is not mapped").caused_by(e))?;
        view.copy_from_slice(bytes);
        self.filled = end;
        Ok(())
    }

    /// Queues a kernel; `params` is the index of its uniform block.
    pub(crate) fn dispatch(&mut self, pipeline: Arc<Pipeline>, bindings: &[Region], params: u32, workgroups: [u32; 3]) {
        self.pending.push(Pending::Dispatch { pipeline, bindings: bindings.to_vec(), params, workgroups });
    }

    /// Brings a region to the host, in pieces of the staging buffer.
    pub(crate) async fn read(&mut self, region: Region) -> Result<Vec<u8>, RunError> {
        let mut bytes = Vec::with_capacity(region.size as usize);
        while (bytes.len() as u64) < region.size {
            let at = bytes.len() as u64;
            let size = (region.size - at).min(self.download.size());
            self.pending.push(Pending::Fetch { from: region, at, size });
            self.flush().await?;
            let mapped = map(&self.download, wgpu::MapMode::Read, size);
            self.download_state = MapState::Asked;
            self.wait(&mapped).await?;
            self.download_state = MapState::Host;
            bytes.extend_from_slice(
                &self.download.get_mapped_range(0..size).map_err(|e| internal("the download buffer is not mapped").caused_by(e))?,
            );
            self.download.unmap();
            self.download_state = MapState::Device;
        }
        Ok(bytes)
    }

    /// Submits what is pending and waits for it.
    pub(crate) async fn flush(&mut self) -> Result<(), RunError> {
        self.flush_at(0).await
    }

    /// Drops what is pending without running it.
    pub(crate) fn discard(&mut self) {
        self.pending.clear();
        self.filled = 0;
    }

    async fn flush_at(&mut self, uniform_offset: u64) -> Result<(), RunError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let remap = self.filled > 0;
        if remap {
            self.upload.unmap();
            self.upload_state = MapState::Device;
        }
        let device = self.engine.device();
        let out_of_memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let invalid = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let commands = self.encode(uniform_offset);
        self.engine.queue().submit([commands]);
        let (invalid, out_of_memory) = (invalid.pop(), out_of_memory.pop());
        self.pending.clear();
        self.filled = 0;
        if let Some(e) = out_of_memory.await {
            return Err(RunError::new(RunErrorKind::OutOfMemory, "the device ran out of memory; give a smaller --memory").caused_by(e));
        }
        if let Some(e) = invalid.await {
            return Err(internal("the device refused a batch").caused_by(e));
        }
        let done = Arc::new(Signal::default());
        let set = Arc::clone(&done);
        self.engine.queue().on_submitted_work_done(move || set.raise(true));
        self.wait(&done).await?;
        if remap {
            self.map_upload().await?;
        }
        Ok(())
    }

    async fn map_upload(&mut self) -> Result<(), RunError> {
        let mapped = map(&self.upload, wgpu::MapMode::Write, self.upload.size());
        self.upload_state = MapState::Asked;
        self.wait(&mapped).await?;
        self.upload_state = MapState::Host;
        Ok(())
    }

    /// Makes the staging buffers ready for a run, whatever became of the last one: it may have failed, or its future may
    /// have been dropped at any await.
    pub(crate) async fn recover(&mut self) -> Result<(), RunError> {
        self.discard();
        if self.download_state != MapState::Device {
            self.download.unmap();
            self.download_state = MapState::Device;
        }
        if self.upload_state == MapState::Asked {
            self.upload.unmap();
            self.upload_state = MapState::Device;
        }
        if self.upload_state == MapState::Device {
            self.map_upload().await?;
        }
        Ok(())
    }

    fn encode(&self, uniform_offset: u64) -> wgpu::CommandBuffer {
        let device = self.engine.device();
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("organum") });
        let mut next = 0;
        while next < self.pending.len() {
            match &self.pending[next] {
                Pending::Copy { from, to, at, size } => {
                    encoder.copy_buffer_to_buffer(&self.upload, *from, &self.chunks[to.chunk as usize], to.offset + at, Some(*size));
                }
                Pending::Uniforms { size } => encoder.copy_buffer_to_buffer(&self.upload, 0, &self.uniforms, uniform_offset, Some(*size)),
                Pending::Fetch { from, at, size } => {
                    encoder.copy_buffer_to_buffer(&self.chunks[from.chunk as usize], from.offset + at, &self.download, 0, Some(*size));
                }
                Pending::Dispatch { .. } => {
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                    while let Some(Pending::Dispatch { pipeline, bindings, params, workgroups }) = self.pending.get(next) {
                        let group = self.bind(pipeline, bindings);
                        pass.set_pipeline(&pipeline.compute);
                        pass.set_bind_group(0, &group, &[params * UNIFORM_STRIDE as u32]);
                        let [x, y, z] = *workgroups;
                        pass.dispatch_workgroups(x, y, z);
                        next += 1;
                    }
                    continue;
                }
            }
            next += 1;
        }
        encoder.finish()
    }

    fn bind(&self, pipeline: &Pipeline, bindings: &[Region]) -> wgpu::BindGroup {
        let params = wgpu::BufferBinding { buffer: &self.uniforms, offset: 0, size: wgpu::BufferSize::new(UNIFORM_STRIDE) };
        let regions = bindings.iter().map(|r| wgpu::BufferBinding {
            buffer: &self.chunks[r.chunk as usize],
            offset: r.offset,
            size: wgpu::BufferSize::new(r.size),
        });
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0u32..)
            .zip(std::iter::once(params).chain(regions))
            .map(|(binding, b)| wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(b) })
            .collect();
        self.engine.device().create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &pipeline.layout, entries: &entries })
    }

    /// Polls the device until the signal is raised, sleeping at most a millisecond between polls. `PollType::Wait` with a
    /// timeout is not used: in wgpu 30 it panics when another thread polls the same device meanwhile (an assertion on the
    /// queue being empty), and the device may be the host's.
    async fn wait(&self, signal: &Signal) -> Result<(), RunError> {
        let mut pause = Duration::from_micros(20);
        std::future::poll_fn(|context| {
            if let Err(e) = self.engine.device().poll(wgpu::PollType::Poll) {
                return Poll::Ready(Err(RunError::new(RunErrorKind::DeviceLost, "the device was lost").caused_by(e)));
            }
            if signal.raised.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await?;
        if signal.failed.load(Ordering::Acquire) {
            return Err(RunError::new(RunErrorKind::DeviceLost, "the device was lost: a buffer could not be mapped"));
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Signal {
    raised: AtomicBool,
    failed: AtomicBool,
}

impl Signal {
    fn raise(&self, ok: bool) {
        self.failed.store(!ok, Ordering::Release);
        self.raised.store(true, Ordering::Release);
    }
}

fn map(buffer: &wgpu::Buffer, mode: wgpu::MapMode, size: u64) -> Arc<Signal> {
    let signal = Arc::new(Signal::default());
    let set = Arc::clone(&signal);
    buffer.map_async(mode, 0..size, move |r| set.raise(r.is_ok()));
    signal
}

fn internal(message: &str) -> RunError {
    RunError::new(RunErrorKind::Internal, message)
}
