//! A model and a plan on a device, ready to run again and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::caps::DeviceCaps;
use crate::engine::{Engine, GpuMemory, Pipeline};
use crate::error::{EngineError, EngineErrorKind, RunError, RunErrorKind};
use crate::graph::Op;
use crate::kernels::position_add;
use crate::model::Model;
use crate::plan::Plan;
use crate::record::{Command, ConstantSource, OutputKind};
use crate::reference::HostMemory;
use crate::shape::Elem;
use crate::transfer::{Input, OutputVolume, encode, pack_plane};

/// How far a run is, by floating-point operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Operations finished.
    pub done: u64,
    /// Operations of the whole run.
    pub total: u64,
}

/// Stops a run at the end of its current batch; the session can run again.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A handle that is not raised.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the run to stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether stopping was asked for.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Called with the progress after every batch.
type Observer<'a> = &'a mut (dyn FnMut(Progress) + Send);

/// What a run may report to and be stopped by.
#[derive(Default)]
#[non_exhaustive]
pub struct RunOptions<'a> {
    progress: Option<Observer<'a>>,
    cancel: Option<Cancel>,
}

impl std::fmt::Debug for RunOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunOptions").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

impl<'a> RunOptions<'a> {
    /// Calls `f` with the progress.
    #[must_use]
    pub fn with_progress(mut self, f: &'a mut (dyn FnMut(Progress) + Send)) -> Self {
        self.progress = Some(f);
        self
    }

    /// Stops when `cancel` is raised.
    #[must_use]
    pub fn with_cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = Some(cancel);
        self
    }
}

/// A model and a plan on a device.
#[derive(Debug)]
pub struct Session {
    plan: Plan,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Gpu { memory: Box<GpuMemory>, pipelines: Vec<(Arc<Pipeline>, [u32; 3])> },
    Host(HostMemory),
}

impl Session {
    /// Creates the plan's buffers on the engine's device, compiles its kernels and uploads the weights.
    ///
    /// # Errors
    /// When the device refuses a buffer or a kernel, or the model's weights are not those of the plan.
    pub async fn new(engine: &Engine, model: &Model, plan: Plan) -> Result<Self, EngineError> {
        let recording = plan.recording();
        check_caps(&plan, engine.caps())?;
        let mut pipelines = Vec::new();
        let mut uniforms = Vec::new();
        for (call, _) in recording.dispatches() {
            let workgroups = call
                .workgroups(engine.caps())
                .map_err(|e| EngineError::new(EngineErrorKind::Unsupported, format!("the plan was made for another device: {}", e.0)))?;
            pipelines.push((engine.pipeline(call).await?, workgroups));
            uniforms.push(call.params());
        }
        let mut memory = Box::new(GpuMemory::new(engine, recording).await?);
        let failed = |e: RunError| EngineError::new(EngineErrorKind::NoDevice, "the weights could not be uploaded").caused_by(e);
        memory.write_uniforms(&uniforms).await.map_err(failed)?;
        for constant in &recording.constants {
            let bytes = encode(&constant_values(model, &plan, &constant.source)?, constant.source.elem(recording.elem));
            memory.write(constant.dst, 0, &bytes).await.map_err(failed)?;
        }
        memory.flush().await.map_err(failed)?;
        Ok(Self { memory: Memory::Gpu { memory, pipelines }, plan })
    }

    /// The same on the host: the kernels' scalar twins, no driver needed. Plan with [`crate::DeviceCaps::host`].
    ///
    /// # Errors
    /// When the model's weights are not those of the plan.
    pub fn on_host(model: &Model, plan: Plan) -> Result<Self, EngineError> {
        let mut memory = HostMemory::new(plan.recording());
        for constant in &plan.recording().constants {
            let bytes = encode(&constant_values(model, &plan, &constant.source)?, constant.source.elem(plan.recording().elem));
            memory.write(constant.dst, 0, &bytes);
        }
        Ok(Self { memory: Memory::Host(memory), plan })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes of all buffers really created: equal to the plan's `peak_bytes` on a device.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        match &self.memory {
            Memory::Gpu { memory, .. } => memory.allocated(),
            Memory::Host(memory) => memory.allocated(),
        }
    }

    /// Runs the network; outputs come in the order: labels or logits, then the taps.
    ///
    /// # Errors
    /// When the input does not have the planned shape or is not finite, when cancelled, or when the device fails.
    pub async fn run(&mut self, input: Input<'_>, mut options: RunOptions<'_>) -> Result<Vec<OutputVolume>, RunError> {
        check_input(&self.plan, &input)?;
        if let Memory::Gpu { memory, .. } = &mut self.memory {
            memory.recover().await?;
        }
        let recording = self.plan.recording();
        let mut outputs: Vec<OutputVolume> = recording.outputs.iter().map(OutputVolume::empty).collect();
        let total = self.plan.report().flops;
        let mut waiting: Vec<Vec<u8>> = vec![Vec::new(); recording.host_slots.len()];
        let mut done = 0;
        let mut dispatch = 0u32;
        for command in &recording.commands {
            match (command, &mut self.memory) {
                (Command::Upload { dst, planes, .. }, memory) => {
                    let mut at = 0;
                    for z in planes.clone() {
                        let bytes = pack_plane(&input, z, recording.elem);
                        match memory {
                            Memory::Gpu { memory, .. } => memory.write(*dst, at, &bytes).await?,
                            Memory::Host(memory) => memory.write(*dst, at, &bytes),
                        }
                        at += bytes.len() as u64;
                    }
                }
                (Command::Dispatch { call, bindings, .. }, memory) => {
                    done += call.cost().flops;
                    match memory {
                        Memory::Gpu { memory, pipelines } => {
                            let (pipeline, workgroups) = &pipelines[dispatch as usize];
                            memory.dispatch(Arc::clone(pipeline), bindings, dispatch, *workgroups);
                        }
                        Memory::Host(memory) => memory.dispatch(call, bindings),
                    }
                    dispatch += 1;
                }
                (Command::Download { src, output, planes }, memory) => {
                    let held;
                    let bytes = match memory {
                        Memory::Gpu { memory, .. } => {
                            held = memory.read(*src).await?;
                            held.as_slice()
                        }
                        Memory::Host(memory) => memory.bytes(*src),
                    };
                    let elem = if recording.outputs[*output as usize].kind == OutputKind::MapF32 { Elem::F32 } else { recording.elem };
                    outputs[*output as usize].unpack(bytes, planes.clone(), elem);
                }
                (Command::Spill { src, slot }, memory) => {
                    waiting[*slot as usize] = match memory {
                        Memory::Gpu { memory, .. } => memory.read(*src).await?,
                        Memory::Host(memory) => memory.bytes(*src).to_vec(),
                    };
                }
                (Command::Restore { dst, slot }, memory) => {
                    let bytes = std::mem::take(&mut waiting[*slot as usize]);
                    match memory {
                        Memory::Gpu { memory, .. } => memory.write(*dst, 0, &bytes).await?,
                        Memory::Host(memory) => memory.write(*dst, 0, &bytes),
                    }
                }
                (Command::Split, memory) => {
                    if options.cancel.as_ref().is_some_and(Cancel::is_raised) {
                        if let Memory::Gpu { memory, .. } = memory {
                            memory.discard();
                        }
                        return Err(RunError::new(RunErrorKind::Cancelled, "cancelled"));
                    }
                    if let Memory::Gpu { memory, .. } = memory {
                        memory.flush().await?;
                    }
                    if let Some(f) = &mut options.progress {
                        f(Progress { done, total });
                    }
                }
            }
        }
        Ok(outputs)
    }

    /// [`Session::run`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_blocking(&mut self, input: Input<'_>, options: RunOptions<'_>) -> Result<Vec<OutputVolume>, RunError> {
        pollster::block_on(self.run(input, options))
    }
}

/// A plan made for another device may ask for what this one does not have.
fn check_caps(plan: &Plan, caps: &DeviceCaps) -> Result<(), EngineError> {
    let recording = plan.recording();
    let unfit = |what: String| Err(EngineError::new(EngineErrorKind::Unsupported, format!("the plan was made for another device: {what}")));
    if recording.elem == Elem::F16 && !caps.f16 {
        return unfit("this one has no 16-bit floats".into());
    }
    if let Some(size) = recording.chunks.iter().find(|&&size| size > caps.max_buffer) {
        return unfit(format!("a buffer of {size} bytes, this one allows {}", caps.max_buffer));
    }
    let bindings = || recording.dispatches().flat_map(|(_, regions)| regions);
    if let Some(region) = bindings().find(|r| r.size > caps.max_binding || r.offset % caps.alignment != 0) {
        return unfit(format!(
            "a binding of {} bytes at {}, this one binds {} at multiples of {}",
            region.size, region.offset, caps.max_binding, caps.alignment
        ));
    }
    Ok(())
}

fn check_input(plan: &Plan, input: &Input<'_>) -> Result<(), RunError> {
    let expected = plan.recording().input.map_or(0, |m| m.channels);
    let length = input.extent.voxels() * u64::from(input.channels);
    if input.extent != plan.extent() || input.channels != expected || input.data.len() as u64 != length {
        let text = format!(
            "the input has {} channels of {} in {} values, the plan is for {expected} channels of {}",
            input.channels,
            input.extent,
            input.data.len(),
            plan.extent()
        );
        return Err(RunError::new(RunErrorKind::InputMismatch, text));
    }
    if let Some(at) = input.data.iter().position(|v| !v.is_finite()) {
        return Err(RunError::new(RunErrorKind::NonFinite, format!("the input is {} at element {at}", input.data[at])));
    }
    Ok(())
}

fn constant_values(model: &Model, plan: &Plan, source: &ConstantSource) -> Result<Vec<f32>, EngineError> {
    let other = |e| EngineError::new(EngineErrorKind::Unsupported, "the plan is of another model").caused_by(e);
    match source {
        ConstantSource::PositionTable { map, dims } => Ok(position_add::table(*map, *dims)),
        ConstantSource::ScaleShift { node, channels } => model.scale_shift(&plan.graph().node(*node).op, *channels).map_err(other),
        ConstantSource::Conv { node, in_channels } => match &plan.graph().node(*node).op {
            Op::Conv(conv) | Op::HeadArgmax(conv) => model.pack(conv, *in_channels),
            Op::ConvTranspose(conv) => model.pack_transposed(conv),
            op => return Err(EngineError::new(EngineErrorKind::Unsupported, format!("the plan holds weights for {op}"))),
        }
        .map_err(other),
    }
}
