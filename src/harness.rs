//! One kernel call alone on a device: what tests compare with the twin and benches time.

use std::time::{Duration, Instant};

use half::f16;

use crate::caps::DeviceCaps;
use crate::engine::{Engine, GpuMemory, Job};
use crate::error::{EngineError, EngineErrorKind, RunError};
use crate::kernels::host::{Scratch, Slab, SlabMut};
use crate::kernels::{Binding, Call, HostSlice};
use crate::record::{Command, Recording, Region};
use crate::shape::Elem;
use crate::transfer::{decode, encode};

/// A kernel call with its buffers on a device.
#[derive(Debug)]
pub struct KernelRun {
    call: Call,
    elem: Elem,
    memory: GpuMemory,
    bindings: Vec<Region>,
}

/// Result of a kernel call.
#[derive(Clone, Debug, PartialEq)]
pub enum KernelOutput {
    /// Float elements.
    Floats(Vec<f32>),
    /// Words.
    Words(Vec<u32>),
}

/// The type of a binding's elements where the storage type is `elem`.
fn stored(binding: Binding, elem: Elem) -> Elem {
    if binding == Binding::Read || binding == Binding::Write { elem } else { Elem::F32 }
}

/// Value that fills the destination before a run: an element that is not written shows.
const POISON: f32 = 1234.0;

impl KernelRun {
    /// Creates one buffer a binding, fills the sources and poisons the destination. One that is updated is filled with the
    /// last of the inputs.
    ///
    /// # Errors
    /// When the device refuses the kernel or a buffer.
    pub async fn new(engine: &Engine, call: &Call, inputs: &[Vec<f32>]) -> Result<Self, EngineError> {
        let elem = call.variant(engine.caps()).elem();
        let storage = &call.bindings()[1..];
        let bindings: Vec<Region> = (0u32..)
            .zip(call.sizes().iter().zip(storage))
            .map(|(chunk, (n, b))| Region { chunk, offset: 0, size: (n * b.bytes(elem)).next_multiple_of(4) })
            .collect();
        let recording = Recording {
            elem,
            chunks: bindings.iter().map(|r| r.size).collect(),
            commands: vec![Command::Dispatch { call: Box::new(call.clone()), bindings: bindings.clone(), node: crate::graph::NodeId(0) }],
            upload_staging: 1 << 20,
            download_staging: 1 << 20,
            ..Recording::default()
        };
        let jobs = Job::all(engine, &[call]).await?;
        let mut memory = GpuMemory::new(engine, &recording).await?;
        memory.prepare(jobs, std::iter::once(bindings.as_slice()));
        let failed = |e: RunError| EngineError::new(EngineErrorKind::NoDevice, "the inputs could not be uploaded").caused_by(e);
        memory.write_uniforms(&[call.params()]).await.map_err(failed)?;
        for ((region, binding), values) in bindings.iter().zip(storage).zip(inputs) {
            memory.write(*region, 0, &encode(values, stored(*binding, elem))).await.map_err(failed)?;
        }
        if let (Some(dst), Some(&binding)) = (bindings.last(), storage.last())
            && binding != Binding::Update
        {
            let poison = vec![POISON; (dst.size / binding.bytes(elem)) as usize];
            let poison = encode(&poison, stored(binding, elem));
            memory.write(*dst, 0, &poison[..dst.size as usize]).await.map_err(failed)?;
        }
        memory.flush().await.map_err(failed)?;
        Ok(Self { call: call.clone(), elem, memory, bindings })
    }

    /// Dispatches the kernel `times` times and waits.
    ///
    /// # Errors
    /// When the device fails.
    pub async fn run(&mut self, times: u32) -> Result<(), RunError> {
        for _ in 0..times {
            self.memory.dispatch(0).await?;
        }
        self.memory.flush().await
    }

    /// The destination.
    ///
    /// # Errors
    /// When the device fails.
    pub async fn read(&mut self) -> Result<KernelOutput, RunError> {
        let Some(&dst) = self.bindings.last() else { return Ok(KernelOutput::Words(Vec::new())) };
        let bytes = self.memory.read(dst).await?;
        Ok(match self.call.bindings().last() {
            Some(Binding::WriteWords) => KernelOutput::Words(bytes.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect()),
            Some(&binding) => KernelOutput::Floats(decode(&bytes, stored(binding, self.elem))),
            None => KernelOutput::Words(Vec::new()),
        })
    }
}

/// Seconds of a call, ascending: at least `samples` of them, each over as many runs as make it long enough to be timed.
///
/// # Errors
/// When the device refuses the kernel or fails.
pub async fn measure(engine: &Engine, call: &Call, samples: usize) -> Result<Vec<f64>, EngineError> {
    let inputs: Vec<Vec<f32>> = source_sizes(call).into_iter().map(values).collect();
    let mut run = KernelRun::new(engine, call, &inputs).await?;
    let failed = |e: RunError| EngineError::new(EngineErrorKind::NoDevice, "the kernel could not be timed").caused_by(e);
    let mut times = 1;
    let mut seconds = Vec::with_capacity(samples);
    // the first run compiles
    run.run(1).await.map_err(failed)?;
    while seconds.len() < samples {
        let begin = Instant::now();
        run.run(times).await.map_err(failed)?;
        let elapsed = begin.elapsed();
        if elapsed < SHORTEST_SAMPLE && times < MOST_RUNS {
            times *= 2;
        } else {
            seconds.push(elapsed.as_secs_f64() / f64::from(times));
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

/// A sample that is shorter says more about the queue than about the kernel.
const SHORTEST_SAMPLE: Duration = Duration::from_millis(20);
const MOST_RUNS: u32 = 1 << 12;

/// Values in -1..1 that cost nothing to make.
#[must_use]
pub fn values(n: u64) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1u32 << 23) as f32 - 1.0).collect()
}

/// Whether the destination is added to.
#[must_use]
pub fn updates(call: &Call) -> bool {
    call.bindings().last() == Some(&Binding::Update)
}

/// Sizes of the sources of a call in elements, and of a destination that is added to.
#[must_use]
pub fn source_sizes(call: &Call) -> Vec<u64> {
    let mut sizes = call.sizes();
    if !updates(call) {
        sizes.pop();
    }
    sizes
}

/// The result of the kernel's host half for the same inputs, those of the shader; none where it has none. The destination is
/// poisoned or filled as the twin's is.
#[must_use]
pub fn host_half(call: &Call, inputs: &[Vec<f32>]) -> Option<KernelOutput> {
    let half = call.host()?;
    let elem = call.variant(&DeviceCaps::default()).elem();
    let mut inputs = inputs.to_vec();
    let filled = if updates(call) { inputs.pop() } else { None };
    let arranged = inputs.last().and_then(|weights| half.arrange(weights));
    let narrow: Vec<Vec<f16>> = inputs.iter().map(|values| values.iter().map(|&v| f16::from_f32(v)).collect()).collect();
    let (storage, count) = (&call.bindings()[1..], inputs.len());
    let slab = |i: usize| match &arranged {
        Some(weights) if i + 1 == count => Slab::F32(weights),
        _ if stored(storage[i], elem) == Elem::F16 => Slab::F16(&narrow[i]),
        _ => Slab::F32(&inputs[i]),
    };
    let slabs: Vec<Slab<'_>> = (0..count).map(slab).collect();
    let scratch = Scratch::new(half.scratch(), 1);
    let n = call.sizes().last().copied().unwrap_or(0) as usize;
    Some(match storage.last() {
        Some(Binding::WriteWords) => {
            let mut out = vec![POISON.to_bits(); n];
            half.run(&slabs, SlabMut::Words(&mut out), &scratch);
            KernelOutput::Words(out)
        }
        Some(Binding::Write) if elem == Elem::F16 => {
            let mut out = vec![f16::from_f32(POISON); n];
            half.run(&slabs, SlabMut::F16(&mut out), &scratch);
            KernelOutput::Floats(out.iter().map(|v| v.to_f32()).collect())
        }
        _ => {
            let mut out = filled.unwrap_or_else(|| vec![POISON; n]);
            half.run(&slabs, SlabMut::F32(&mut out), &scratch);
            KernelOutput::Floats(out)
        }
    })
}

/// The twin's result for the same inputs; the destination is poisoned or filled alike.
#[must_use]
pub fn twin(call: &Call, inputs: &[Vec<f32>]) -> KernelOutput {
    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
    let n = call.sizes().last().copied().unwrap_or(0) as usize;
    if call.bindings().last() == Some(&Binding::WriteWords) {
        let mut out = vec![POISON.to_bits(); n];
        call.reference(&inputs, HostSlice::Words(&mut out));
        KernelOutput::Words(out)
    } else {
        let (mut out, inputs) = match inputs.split_last() {
            Some((filled, sources)) if updates(call) => (filled.to_vec(), sources.to_vec()),
            _ => (vec![POISON; n], inputs),
        };
        call.reference(&inputs, HostSlice::Floats(&mut out));
        KernelOutput::Floats(out)
    }
}
