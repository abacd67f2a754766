//! Dispatches, made ready once a session, and the commands that go to the device.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::memory::{Destination, GpuMemory};
use super::timing::Timer;
use super::{Engine, Pipeline};
use crate::error::{EngineError, EngineErrorKind, RunError, RunErrorKind, internal};
use crate::kernels::{Call, Cost};
use crate::profile::Times;
use crate::record::{Region, UNIFORM_STRIDE};

/// What a dispatch runs: all that does not depend on a session's buffers.
#[derive(Debug)]
pub(crate) struct Job {
    pipeline: Arc<Pipeline>,
    workgroups: [u32; 3],
    cost: Cost,
}

impl Job {
    /// The jobs of kernel calls, their pipelines compiled.
    ///
    /// # Errors
    /// When a call does not suit the device, or the device refuses a kernel.
    pub(crate) async fn all(engine: &Engine, calls: &[&Call]) -> Result<Vec<Self>, EngineError> {
        let unfit = |e: crate::kernels::GeometryError| {
            EngineError::new(EngineErrorKind::Unsupported, format!("the plan was made for another device: {}", e.0))
        };
        let grids: Vec<[u32; 3]> = calls.iter().map(|call| call.workgroups(engine.caps()).map_err(unfit)).collect::<Result<_, _>>()?;
        let pipelines = engine.pipelines(calls).await?;
        let jobs = pipelines.into_iter().zip(grids).zip(calls);
        Ok(jobs.map(|((pipeline, workgroups), call)| Self { pipeline, workgroups, cost: call.cost() }).collect())
    }
}

/// A job with the buffers that it binds.
#[derive(Debug)]
pub(super) struct Work {
    job: Job,
    group: wgpu::BindGroup,
    /// Its seconds as the session's pace estimates them.
    estimate: f64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Pending {
    Stage { piece: usize, from: u64, to: Destination, at: u64, size: u64 },
    Clear { chunk: u32, at: u64, size: u64 },
    Dispatch(u32),
    Fetch { from: Region, at: u64, piece: usize, to: u64, size: u64 },
}

impl GpuMemory {
    /// Makes a recording's dispatches ready, in their order: each is run by its number, which is that of its uniform block.
    pub(crate) fn prepare<'a>(&mut self, jobs: Vec<Job>, bindings: impl Iterator<Item = &'a [Region]>) {
        // slabs roll through few places, and several readers bind the same
        let mut groups: HashMap<(usize, &[Region]), wgpu::BindGroup> = HashMap::new();
        for (job, regions) in jobs.into_iter().zip(bindings) {
            let key = (Arc::as_ptr(&job.pipeline).addr(), regions);
            let group = groups.entry(key).or_insert_with(|| self.bind(&job.pipeline, regions)).clone();
            self.work.push(Work { estimate: self.pace.estimate(job.cost), job, group });
        }
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

    /// Queues a dispatch by its number; gives its FLOPs.
    ///
    /// # Errors
    /// When it is timed by being submitted alone, and the device fails.
    pub(crate) async fn dispatch(&mut self, number: u32) -> Result<u64, RunError> {
        let work = &self.work[number as usize];
        let flops = work.job.cost.flops;
        self.pace.add(work.estimate);
        if self.timer.as_ref().is_some_and(Timer::is_alone) {
            self.submit().await?;
            self.idle().await?;
            self.pending.push(Pending::Dispatch(number));
            let begin = Instant::now();
            self.submit().await?;
            self.idle().await?;
            let seconds = begin.elapsed().as_secs_f64();
            if let Some(timer) = &mut self.timer {
                timer.times.add(number as usize, seconds);
            }
        } else {
            self.pending.push(Pending::Dispatch(number));
        }
        Ok(flops)
    }

    /// Whether anything was queued since the last batch ended.
    pub(crate) fn has_work(&self) -> bool {
        !self.pending.is_empty() || !self.pace.is_empty()
    }

    /// Whether a batch should end here.
    pub(crate) fn is_full(&self) -> bool {
        self.pace.is_full()
    }

    /// Times every dispatch from here on.
    pub(crate) fn start_timer(&mut self) {
        self.timer = Some(Timer::new(self.engine.device(), self.engine.queue(), self.work.len()));
    }

    /// The times since [`GpuMemory::start_timer`], which end.
    pub(crate) fn take_times(&mut self) -> Option<Times> {
        self.timer.take().map(|timer| timer.times)
    }

    /// Waits until the device has nothing to do.
    async fn idle(&mut self) -> Result<(), RunError> {
        let done = self.all_done();
        self.wait(|_| done.is_raised()).await
    }

    /// Gives what is pending to the device.
    pub(super) async fn submit(&mut self) -> Result<(), RunError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let device = self.engine.device();
        let out_of_memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let invalid = device.push_error_scope(wgpu::ErrorFilter::Validation);
        self.upload.release();
        let begin = Instant::now();
        let commands = self.encode();
        self.recording += begin.elapsed();
        self.engine.queue().submit([commands]);
        // before the first await: a future dropped there must leave the rings in order
        self.upload.reclaim();
        self.download.reclaim();
        self.pending.clear();
        let timed = self.timer.as_mut().is_some_and(Timer::ask);
        let (invalid, out_of_memory) = (invalid.pop(), out_of_memory.pop());
        if let Some(e) = out_of_memory.await {
            return Err(RunError::new(RunErrorKind::OutOfMemory, "the device ran out of memory; give a smaller budget").caused_by(e));
        }
        if let Some(e) = invalid.await {
            return Err(internal("the device refused a batch").caused_by(e));
        }
        if timed {
            self.wait(|m| m.timer.as_mut().map_or(Ok(true), Timer::collect)).await?;
        }
        Ok(())
    }

    fn encode(&mut self) -> wgpu::CommandBuffer {
        let device = self.engine.device();
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("organum") });
        let mut pending = self.pending.iter().peekable();
        while let Some(next) = pending.next() {
            match *next {
                Pending::Stage { piece, from, to, at, size } => {
                    let to = match to {
                        Destination::Chunk(chunk) => &self.chunks[chunk as usize],
                        Destination::Uniforms => &self.uniforms,
                    };
                    encoder.copy_buffer_to_buffer(self.upload.buffer(piece), from, to, at, Some(size));
                }
                Pending::Fetch { from, at, piece, to, size } => {
                    let source = &self.chunks[from.chunk as usize];
                    encoder.copy_buffer_to_buffer(source, from.offset + at, self.download.buffer(piece), to, Some(size));
                }
                Pending::Clear { chunk, at, size } => encoder.clear_buffer(&self.chunks[chunk as usize], at, Some(size)),
                Pending::Dispatch(number) => {
                    let timestamp_writes = self.timer.as_mut().and_then(|timer| timer.writes(number));
                    let alone = timestamp_writes.is_some();
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
                    let mut last = run(&mut pass, &self.work[number as usize], number, None);
                    while let Some(&&Pending::Dispatch(number)) = pending.peek().filter(|_| !alone) {
                        last = run(&mut pass, &self.work[number as usize], number, Some(last));
                        pending.next();
                    }
                }
            }
        }
        if let Some(timer) = &self.timer {
            timer.resolve(&mut encoder);
        }
        encoder.finish()
    }
}

/// Records a dispatch after one of the pipeline `last`; gives its own.
fn run<'a>(pass: &mut wgpu::ComputePass<'_>, work: &'a Work, number: u32, last: Option<&Arc<Pipeline>>) -> &'a Arc<Pipeline> {
    let Work { job, group, .. } = work;
    if last.is_none_or(|last| !Arc::ptr_eq(last, &job.pipeline)) {
        pass.set_pipeline(&job.pipeline.compute);
    }
    pass.set_bind_group(0, group, &[number * UNIFORM_STRIDE as u32]);
    let [x, y, z] = job.workgroups;
    pass.dispatch_workgroups(x, y, z);
    &job.pipeline
}
