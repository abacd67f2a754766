//! A model and a plan on a device, ready to run again and again.

mod windows;

use std::collections::HashMap;
use std::time::Duration;

use rayon::prelude::*;

use crate::caps::DeviceCaps;
use crate::engine::{Engine, GpuMemory, Job};
use crate::error::{EngineError, EngineErrorKind, LoadError, RunError, RunErrorKind};
use crate::graph::{Attention, KeyMask, NodeId, Op, RunInputs};
use crate::kernels::Call;
use crate::model::Model;
use crate::plan::Plan;
use crate::profile::{Clock, Profile, Times};
use crate::record::{ConstantSource, Recording, Region};
use crate::reference::HostMemory;
use crate::run::{Flight, Run, RunOptions};
use crate::shape::Elem;
use crate::transfer::{Input, OutputData, OutputVolume, encode};

/// A model and a plan on a device.
#[derive(Debug)]
pub struct Session {
    plan: Plan,
    memory: Memory,
    /// Bytes of the constants that are fetched at each run, by their index; those of the others are
    /// empty.
    kept: Vec<Vec<u8>>,
    /// An input of one channel is repeated to all channels of the network.
    grey: bool,
}

#[derive(Debug)]
enum Memory {
    Gpu(Box<GpuMemory>),
    /// With the times of its dispatches while a profile is made.
    Host(HostMemory, Option<Times>),
}

impl Session {
    /// Creates the plan's buffers on the engine's device, compiles its kernels and uploads the
    /// weights.
    ///
    /// # Errors
    /// When the device refuses a buffer or a kernel, or the model's weights are not those of the
    /// plan.
    pub async fn new(engine: &Engine, model: &Model, plan: Plan) -> Result<Self, EngineError> {
        let recording = plan.recording();
        check_caps(&plan, engine.caps())?;
        let calls: Vec<&Call> = recording.dispatches().map(|(call, _)| call).collect();
        let jobs = Job::all(engine, &calls).await?;
        let mut memory = Box::new(GpuMemory::new(engine, recording).await?);
        memory.prepare(jobs, recording.dispatches().map(|(_, regions)| regions));
        let uniforms: Vec<Vec<u8>> = calls.iter().map(|call| call.params()).collect();
        let failed = |e: RunError| EngineError::new(EngineErrorKind::NoDevice, "the weights could not be uploaded").caused_by(e);
        memory.write_uniforms(&uniforms).await.map_err(failed)?;
        let mut kept = vec![Vec::new(); recording.constants.len()];
        for (constant, kept) in recording.constants.iter().zip(&mut kept) {
            let values = constant_values(model, &plan, &constant.source)?;
            let bytes = encode(&values, constant.source.elem(recording.elem));
            if constant.fetched {
                *kept = bytes.into_owned();
            } else {
                memory.write(constant.dst, 0, &bytes).await.map_err(failed)?;
            }
        }
        if let Some(windows) = &recording.windows {
            memory.write(windows.weights, 0, bytemuck::cast_slice(&windows.along)).await.map_err(failed)?;
        }
        memory.flush().await.map_err(failed)?;
        Ok(Self { memory: Memory::Gpu(memory), plan, kept, grey: model.card().takes(1) })
    }

    /// The same on the host, no driver needed. A plan for [`crate::DeviceCaps::host`] runs the
    /// kernels' host halves, any other, as of [`crate::DeviceCaps::reference`], their scalar twins.
    ///
    /// # Errors
    /// When the model's weights are not those of the plan.
    pub fn on_host(model: &Model, plan: Plan) -> Result<Self, EngineError> {
        let recording = plan.recording();
        let mut memory = HostMemory::new(recording);
        let readers = host_readers(recording);
        let mut kept = vec![Vec::new(); recording.constants.len()];
        for (constant, kept) in recording.constants.iter().zip(&mut kept) {
            let mut values = constant_values(model, &plan, &constant.source)?;
            let half = readers.get(&constant.dst).and_then(|call| call.host()).filter(|_| constant.source.is_weights());
            if let Some(arranged) = half.and_then(|half| half.arrange(&values)) {
                values = arranged;
            }
            let bytes = encode(&values, constant.source.elem(recording.elem));
            if constant.fetched {
                *kept = bytes.into_owned();
            } else {
                memory.write(constant.dst, 0, &bytes);
            }
        }
        Ok(Self { memory: Memory::Host(memory, None), plan, kept, grey: model.card().takes(1) })
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
            Memory::Gpu(memory) => memory.allocated(),
            Memory::Host(memory, _) => memory.allocated(),
        }
    }

    /// Time in which the host recorded the commands of the last run; zero on the host. Handing them
    /// over is not counted, as a driver may do the work in it (llvmpipe waits for what was
    /// submitted before).
    #[must_use]
    pub fn recording_time(&self) -> Duration {
        match &self.memory {
            Memory::Gpu(memory) => memory.recording_time(),
            Memory::Host(..) => Duration::ZERO,
        }
    }

    /// Bytes that left the device in the last run, or in the last windows over a volume: outputs, and slabs that waited on
    /// the host; zero on the host.
    #[must_use]
    pub fn downloaded_bytes(&self) -> u64 {
        match &self.memory {
            Memory::Gpu(memory) => memory.downloaded(),
            Memory::Host(..) => 0,
        }
    }

    /// Times every kernel of the runs from here on, until [`Session::take_profile`]. Runs are
    /// slower meanwhile, as the device waits between batches; the bits of the outputs stay. The
    /// times need 64 KiB of the device beside [`Session::allocated_bytes`].
    pub fn start_profile(&mut self) {
        let dispatches = self.plan.recording().dispatches().count();
        match &mut self.memory {
            Memory::Gpu(memory) => memory.start_timer(),
            Memory::Host(_, times) => *times = Some(Times::new(Clock::Host, dispatches)),
        }
    }

    /// Where the time of the runs since [`Session::start_profile`] went; `None` without it.
    pub fn take_profile(&mut self) -> Option<Profile> {
        let times = match &mut self.memory {
            Memory::Gpu(memory) => memory.take_times(),
            Memory::Host(_, times) => times.take(),
        };
        times.map(|times| Profile::new(&self.plan, &times))
    }

    /// Runs the network; outputs come in the order: labels or logits, then the taps.
    ///
    /// On a device, transfers overlap with compute: at most two batches wait or run there while the
    /// host prepares the next. After an error, or when the future was dropped, the device finishes
    /// what was submitted and the session can run again.
    ///
    /// # Errors
    /// When the input does not have the planned shape or is not finite, when the network's labels
    /// or logits come of values that are not (unless [`RunOptions::with_non_finite`]), when
    /// cancelled, or when the device fails.
    pub async fn run(&mut self, input: Input<'_>, options: RunOptions<'_>) -> Result<Vec<OutputVolume>, RunError> {
        check_input(&self.plan, &input, self.grey)?;
        if self.plan.recording().windows.is_some() {
            let text = "the session was planned for windows of a volume: run it by Windows, or plan it with Plan::new";
            return Err(RunError::new(RunErrorKind::InputMismatch, text));
        }
        let (allowed, cancel) = (options.allows_non_finite(), options.cancel());
        let mut flight = Flight::new(options);
        let run = Run::new(&self.plan, &self.kept, input, &mut flight);
        let mut outputs = perform(&mut self.memory, run, true).await?;
        if let Some(output) = outputs.first_mut() {
            let broken = output.count_non_finite();
            if broken > 0 && !allowed {
                let mut flight = Flight::new(RunOptions::default().with_cancel(cancel)).tracing();
                let again = Run::new(&self.plan, &self.kept, input, &mut flight);
                let first = match perform(&mut self.memory, again, false).await {
                    Err(e) if e.kind() == RunErrorKind::Cancelled => return Err(e),
                    Err(e) => e.node().map(str::to_owned),
                    Ok(_) => None,
                };
                return Err(not_finite(output, first, broken, self.plan.recording().elem));
            }
        }
        Ok(outputs)
    }

    /// Moves the network to a crop elsewhere: the centre of the crop less that of the volume in
    /// voxels along D, H, W, and the volume tokens that were visited. Uploads the few numbers that
    /// depend on them; without volume tokens there are none.
    ///
    /// # Errors
    /// When the model is not that of the session or does not know these tokens, or when the device
    /// fails.
    pub async fn place(&mut self, model: &Model, position: [i64; 3], visited: &[u32]) -> Result<(), RunError> {
        let other = |e: LoadError| RunError::new(RunErrorKind::InputMismatch, "the volume tokens do not suit the session").caused_by(e);
        let inputs = model.run_inputs(position, visited).map_err(other)?;
        let recording = self.plan.recording();
        for (constant, kept) in recording.constants.iter().zip(&mut self.kept) {
            let Some(values) = given_values(model, &self.plan, &constant.source, &inputs).map_err(other)? else { continue };
            let bytes = encode(&values, constant.source.elem(recording.elem));
            match &mut self.memory {
                _ if constant.fetched => *kept = bytes.into_owned(),
                Memory::Gpu(memory) => memory.write(constant.dst, 0, &bytes).await?,
                Memory::Host(memory, _) => memory.write(constant.dst, 0, &bytes),
            }
        }
        match &mut self.memory {
            Memory::Gpu(memory) => memory.flush().await,
            Memory::Host(..) => Ok(()),
        }
    }

    /// [`Session::run`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_blocking(&mut self, input: Input<'_>, options: RunOptions<'_>) -> Result<Vec<OutputVolume>, RunError> {
        pollster::block_on(self.run(input, options))
    }
}

/// The kernel that binds a region, of all regions that kernels with a host half bind; none where
/// the host is not the device.
fn host_readers(recording: &Recording) -> HashMap<Region, &Call> {
    let dispatches = recording.dispatches().filter(|(call, _)| recording.threads > 0 && call.host().is_some());
    dispatches.flat_map(|(call, regions)| regions.iter().map(move |region| (*region, call))).collect()
}

/// Runs on the memory of a session; kernels are timed if they are to be.
async fn perform(memory: &mut Memory, run: Run<'_, '_>, timed: bool) -> Result<Vec<OutputVolume>, RunError> {
    match memory {
        Memory::Gpu(memory) => {
            memory.begin(run.cancel());
            let result = run.on_device(memory).await;
            memory.end(result.is_err());
            result
        }
        Memory::Host(memory, times) => run.on_host(memory, times.as_mut().filter(|_| timed)),
    }
}

/// The error of an output of which so many values are not finite; `first` is the first node
/// that makes such values.
fn not_finite(output: &OutputVolume, first: Option<String>, broken: usize, elem: Elem) -> RunError {
    let hint = match elem {
        Elem::F16 => "16-bit storage holds no more than 65504: run it with 32 bits (--precision f32)",
        Elem::F32 => "its weights do not suit this input",
    };
    let of = match &output.data {
        OutputData::Labels(labels) => labels.len(),
        OutputData::Map(values) => values.len(),
    };
    let text = format!(
        "the network makes NaN or infinite values of a finite input, here first, in {broken} of {of} values of its output \
         {:.60}; {hint}; --allow-non-finite takes them",
        output.name
    );
    RunError::new(RunErrorKind::NonFinite, text).at(first.unwrap_or_else(|| output.name.clone()))
}

/// A plan made for another device may ask for what this one does not have.
fn check_caps(plan: &Plan, caps: &DeviceCaps) -> Result<(), EngineError> {
    let recording = plan.recording();
    let unfit = |what: String| Err(EngineError::new(EngineErrorKind::Unsupported, format!("the plan was made for another device: {what}")));
    if recording.threads > 0 {
        return unfit("the host; run it with Session::on_host".into());
    }
    if recording.elem == Elem::F16 && !caps.f16 && recording.dispatches().any(|(call, _)| !call.packs()) {
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

fn check_input(plan: &Plan, input: &Input<'_>, grey: bool) -> Result<(), RunError> {
    let expected = plan.recording().input.map_or(0, |m| m.channels);
    let length = input.extent.voxels() * u64::from(input.channels);
    let channels = input.channels == expected || (grey && input.channels == 1);
    if input.extent != plan.extent() || !channels || input.data.len() as u64 != length {
        let text = format!(
            "the input has {} channels of {} in {} values, the plan is for {expected} channels of {}",
            input.channels,
            input.extent,
            input.data.len(),
            plan.extent()
        );
        return Err(RunError::new(RunErrorKind::InputMismatch, text));
    }
    check_finite(input.data)
}

/// Checks that no value of an input is NaN or infinite.
pub(crate) fn check_finite(values: &[f32]) -> Result<(), RunError> {
    let Some(at) = first_non_finite(values) else { return Ok(()) };
    Err(RunError::new(RunErrorKind::NonFinite, format!("the input is {} at element {at}", values[at])))
}

/// Index of the first value that is NaN or infinite.
fn first_non_finite(values: &[f32]) -> Option<usize> {
    const PART: usize = 1 << 14;
    let broken = |part: &[f32]| part.iter().fold(false, |broken, v| broken | !v.is_finite());
    let part = values.par_chunks(PART).position_first(broken)?;
    let at = values[part * PART..].iter().position(|v| !v.is_finite())?;
    Some(part * PART + at)
}

/// What a constant holds of a run's inputs; `None` of one that does not depend on them.
fn given_values(model: &Model, plan: &Plan, source: &ConstantSource, inputs: &RunInputs) -> Result<Option<Vec<f32>>, LoadError> {
    let op = |node: &NodeId| &plan.graph().node(*node).op;
    match source {
        ConstantSource::Tokens { node } => match op(node) {
            Op::Gather(tokens) => Ok(tokens.slot().and_then(|slot| inputs.get(slot)).map(token_numbers)),
            _ => Ok(None),
        },
        ConstantSource::Attention { node, keys } => match op(node) {
            Op::Attention(Attention { mask: Some(mask), .. }) => {
                let Some(seen) = mask.visited.slot().and_then(|slot| inputs.get(slot)) else { return Ok(None) };
                let mask = KeyMask { visited: seen.iter().copied().collect(), ..mask.clone() };
                model.key_mask(Some(&mask), *keys).map(Some)
            }
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// Numbers of tokens as a kernel reads them.
#[expect(clippy::cast_precision_loss, reason = "inferring shapes refuses what f32 does not hold")]
fn token_numbers(tokens: &[u32]) -> Vec<f32> {
    tokens.iter().map(|&token| token as f32).collect()
}

fn constant_values(model: &Model, plan: &Plan, source: &ConstantSource) -> Result<Vec<f32>, EngineError> {
    let other = |e| EngineError::new(EngineErrorKind::Unsupported, "the plan is of another model").caused_by(e);
    match source {
        ConstantSource::PositionTable { node, map } => match &plan.graph().node(*node).op {
            Op::PositionalEncoding(encoding) => model.positions(encoding, *map).map_err(other),
            op => Err(EngineError::new(EngineErrorKind::Unsupported, format!("the plan holds positions for {op}"))),
        },
        ConstantSource::ScaleShift { node, channels } => model.scale_shift(&plan.graph().node(*node).op, *channels).map_err(other),
        ConstantSource::Attention { node, keys } => match &plan.graph().node(*node).op {
            Op::WindowAttention(attention) => model.window_constant(attention),
            Op::Attention(attention) => model.key_mask(attention.mask.as_ref(), *keys),
            op => return Err(EngineError::new(EngineErrorKind::Unsupported, format!("the plan holds biases for {op}"))),
        }
        .map_err(other),
        ConstantSource::Tokens { node } => match &plan.graph().node(*node).op {
            Op::Gather(tokens) => Ok(token_numbers(tokens)),
            op => Err(EngineError::new(EngineErrorKind::Unsupported, format!("the plan picks tokens for {op}"))),
        },
        ConstantSource::Parameter { node } => match &plan.graph().node(*node).op {
            Op::Parameter(parameter) => model.rows(parameter).map_err(other),
            op => Err(EngineError::new(EngineErrorKind::Unsupported, format!("the plan holds a parameter for {op}"))),
        },
        ConstantSource::Conv { node, in_channels } => match &plan.graph().node(*node).op {
            Op::Conv(conv) | Op::HeadArgmax(conv) => model.pack(conv, *in_channels),
            Op::ConvTranspose(conv) => model.pack_transposed(conv),
            op => return Err(EngineError::new(EngineErrorKind::Unsupported, format!("the plan holds weights for {op}"))),
        }
        .map_err(other),
    }
}
