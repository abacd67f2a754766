//! A run of a recording: on a device, where the host keeps ahead of it, or on the host.

mod flight;
mod slots;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub(crate) use self::flight::{Flight, Pass, plane_tag};
use crate::engine::GpuMemory;
use crate::error::{RunError, RunErrorKind, internal};
use crate::graph::{Graph, NodeId};
use crate::kernels::{Binding, Call};
use crate::plan::Plan;
use crate::profile::Times;
use crate::record::{Command, Recording, Region};
use crate::reference::HostMemory;
use crate::shape::{Elem, Map};
use crate::transfer::{Input, OutputVolume, pack_planes};

/// How far a run is, by floating-point operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Operations finished.
    pub done: u64,
    /// Operations of the whole run.
    pub total: u64,
}

/// Stops a run: at once where it waits for the device, which finishes what was submitted, some tenths of a second of work;
/// on the host at the end of a kernel. The session can run again.
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

/// Called with the progress after every batch that is finished.
type Observer<'a> = &'a mut (dyn FnMut(Progress) + Send);

/// What a run may report to and be stopped by.
#[derive(Default)]
#[non_exhaustive]
pub struct RunOptions<'a> {
    progress: Option<Observer<'a>>,
    cancel: Option<Cancel>,
    allow_non_finite: bool,
    spill: Option<Arc<File>>,
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

    /// The same options for one run of several.
    pub(crate) fn reborrow(&mut self) -> RunOptions<'_> {
        let progress: Option<Observer<'_>> = match &mut self.progress {
            Some(observer) => Some(&mut **observer),
            None => None,
        };
        RunOptions { progress, cancel: self.cancel.clone(), allow_non_finite: self.allow_non_finite, spill: self.spill.clone() }
    }

    /// The handle that stops it.
    pub(crate) fn cancel(&self) -> Cancel {
        self.cancel.clone().unwrap_or_default()
    }

    /// Takes results that are NaN or infinite as they are; the label of a voxel with such a logit is 0.
    #[must_use]
    pub fn with_non_finite(mut self) -> Self {
        self.allow_non_finite = true;
        self
    }

    /// Keeps the sums of [`crate::Windows`] in a file; only what a row of windows reaches is in memory.
    #[must_use]
    pub fn with_spill(mut self, file: Arc<File>) -> Self {
        self.spill = Some(file);
        self
    }

    /// The file that sums are to lie in.
    pub(crate) fn spill(&self) -> Option<Arc<File>> {
        self.spill.clone()
    }

    /// Whether results may be NaN or infinite.
    pub(crate) fn allows_non_finite(&self) -> bool {
        self.allow_non_finite
    }

    /// Tells the progress.
    pub(crate) fn report(&mut self, progress: Progress) {
        if let Some(observer) = &mut self.progress {
            observer(progress);
        }
    }

    /// Stops when `cancel` is raised.
    #[must_use]
    pub fn with_cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = Some(cancel);
        self
    }
}

/// Batches that may be submitted and unfinished: one that the device works on and one that follows it without a gap.
const MOST_BATCHES: usize = 2;

/// Channels of a recording's input.
fn channels(recording: &Recording) -> u32 {
    recording.input.map_or(0, |map| map.channels)
}

/// A run under way.
pub(crate) struct Run<'a, 'o> {
    recording: &'a Recording,
    graph: &'a Graph,
    /// The network's input, unless the device crops it.
    input: Option<Input<'a>>,
    pass: Option<Pass>,
    /// Operations of one pass.
    each: u64,
    outputs: Vec<OutputVolume>,
    /// Bytes of the constants that are fetched.
    kept: &'a [Vec<u8>],
    flight: &'a mut Flight<'o>,
}

impl<'a, 'o> Run<'a, 'o> {
    /// `kept` holds the bytes of the constants that are fetched, by their index.
    pub(crate) fn new(plan: &'a Plan, kept: &'a [Vec<u8>], input: Input<'a>, flight: &'a mut Flight<'o>) -> Self {
        let recording = plan.recording();
        flight.slots.begin(recording.host_slots.len());
        let outputs = recording.outputs.iter().map(OutputVolume::empty).collect();
        Self { recording, graph: plan.graph(), input: Some(input), pass: None, each: plan.report().flops, outputs, kept, flight }
    }

    /// A pass over a window of a plan that has windows on the device.
    pub(crate) fn of_window(plan: &'a Plan, kept: &'a [Vec<u8>], pass: Pass, flight: &'a mut Flight<'o>) -> Self {
        let recording = plan.recording();
        flight.slots.begin(recording.host_slots.len());
        Self { recording, graph: plan.graph(), input: None, pass: Some(pass), each: plan.report().flops, outputs: Vec::new(), kept, flight }
    }

    /// The handle that stops it.
    pub(crate) fn cancel(&self) -> Option<Cancel> {
        self.flight.cancel()
    }

    /// The graph, where the first node of values that are not finite is looked for.
    fn traced(&self) -> Option<&'a Graph> {
        self.flight.traced.then_some(self.graph)
    }

    /// The regions that dispatches write, where they are looked through: what lay there before is
    /// none of theirs, and dispatches may write a part of a region each.
    fn looked_through(&self) -> impl Iterator<Item = Region> + use<'a, 'o> {
        let added = |call: &Call| call.bindings().last() == Some(&Binding::Update);
        let dispatches = self.recording.dispatches().filter(|(call, _)| !added(call));
        let regions = dispatches.filter_map(|(_, regions)| regions.last().copied());
        let regions: std::collections::HashSet<Region> = regions.filter(|_| self.flight.traced).collect();
        regions.into_iter()
    }

    /// Looks through what a dispatch of a node wrote.
    fn look(&self, node: NodeId, call: &Call, bytes: &[u8]) -> Result<(), RunError> {
        let broken = match call.bindings().last() {
            Some(Binding::WriteWords) => false,
            Some(Binding::Write) if self.recording.elem == Elem::F16 => {
                bytes.as_chunks().0.iter().any(|b| u16::from_le_bytes(*b) & 0x7C00 == 0x7C00)
            }
            _ => bytes.as_chunks().0.iter().any(|b| !f32::from_le_bytes(*b).is_finite()),
        };
        match self.traced() {
            Some(graph) if broken => {
                Err(RunError::new(RunErrorKind::NonFinite, "its values are not finite").at(graph.node(node).name.clone()))
            }
            _ => Ok(()),
        }
    }

    fn input(&self) -> Result<Input<'a>, RunError> {
        self.input.ok_or_else(|| internal("a window is to be uploaded that the device crops"))
    }

    /// Runs on a device, and waits for all of it.
    pub(crate) async fn on_device(mut self, memory: &mut GpuMemory) -> Result<Vec<OutputVolume>, RunError> {
        self.submit(memory).await?;
        self.wait(memory).await?;
        Ok(self.outputs)
    }

    /// Runs a window's pass, and leaves what was submitted to the device.
    pub(crate) async fn pass(mut self, memory: &mut GpuMemory) -> Result<(), RunError> {
        self.submit(memory).await?;
        self.flight.before += self.each;
        Ok(())
    }

    /// Waits for all that was submitted.
    pub(crate) async fn wait(&mut self, memory: &mut GpuMemory) -> Result<(), RunError> {
        while memory.settle().await? {
            self.take_in(memory)?;
        }
        Ok(())
    }

    /// Submits all commands. The tag of a read is the index of its command.
    async fn submit(&mut self, memory: &mut GpuMemory) -> Result<(), RunError> {
        let recording = self.recording;
        let (mut flops, mut dispatch) = (self.flight.before, 0);
        let mut plane = Vec::new();
        for region in self.looked_through() {
            memory.write(region, 0, &vec![0; region.size as usize]).await?;
        }
        for (index, command) in (0u32..).zip(&recording.commands) {
            match command {
                Command::Upload { dst, planes, .. } => {
                    let mut at = 0;
                    let input = self.input()?;
                    let map = Map::new(input.extent, channels(recording));
                    plane.resize((map.plane_elements() * recording.elem.bytes() / 4) as usize, 0);
                    for z in planes.clone() {
                        pack_planes(&input, map.channels, z..z + 1, recording.elem, &mut plane);
                        memory.write(*dst, at, bytemuck::cast_slice(&plane)).await?;
                        at += plane.len() as u64 * 4;
                    }
                }
                Command::Dispatch { call, bindings, node } => {
                    if let Some(params) = self.pass.and_then(|pass| pass.params(call)) {
                        memory.write_params(dispatch, &params).await?;
                    }
                    flops += memory.dispatch(dispatch).await?;
                    dispatch += 1;
                    if let (Some(_), Some(region)) = (self.traced(), bindings.last()) {
                        self.take_in(memory)?;
                        while memory.settle().await? {
                            self.take_in(memory)?;
                        }
                        let bytes = memory.read(*region).await?;
                        self.look(*node, call, &bytes)?;
                    }
                    if memory.is_full() {
                        self.end_batch(memory, flops).await?;
                    }
                }
                Command::Download { src, .. } | Command::Spill { src, .. } => {
                    let room = self.flight.slots.room(src.size);
                    memory.fetch(*src, index, room).await?;
                }
                Command::Restore { dst, slot, keep } => {
                    let bytes = loop {
                        if let Some(bytes) = self.flight.slots.take(*slot) {
                            break bytes;
                        }
                        if !memory.settle().await? {
                            return Err(internal("a slab is to come back that did not leave"));
                        }
                        self.take_in(memory)?;
                    };
                    memory.write(*dst, 0, &bytes).await?;
                    self.flight.slots.came_back(*slot, bytes, *keep);
                }
                Command::Fetch { dst, constant } => memory.write(*dst, 0, self.weights(*constant)?).await?,
                Command::Split if memory.has_work() => self.end_batch(memory, flops).await?,
                Command::Split => self.check_cancel()?,
            }
            self.take_in(memory)?;
        }
        Ok(())
    }

    /// Submits what was recorded, of so many FLOPs with what came before, and waits where the device has enough to do.
    async fn end_batch(&mut self, memory: &mut GpuMemory, flops: u64) -> Result<(), RunError> {
        self.check_cancel()?;
        memory.end_batch(flops).await?;
        self.take_in(memory)?;
        while memory.batches() > MOST_BATCHES && memory.settle().await? {
            self.take_in(memory)?;
        }
        Ok(())
    }

    /// Runs on the host, and times its kernels.
    pub(crate) fn on_host(mut self, memory: &mut HostMemory, mut times: Option<&mut Times>) -> Result<Vec<OutputVolume>, RunError> {
        let recording = self.recording;
        let (mut flops, mut dispatch) = (0, 0);
        for region in self.looked_through() {
            memory.words_mut(region).fill(0);
        }
        for command in &recording.commands {
            match command {
                Command::Upload { dst, planes, .. } => {
                    let input = self.input()?;
                    let words = memory.words_mut(*dst);
                    let map = Map::new(input.extent, channels(recording));
                    let length = map.plane_elements() * recording.elem.bytes() / 4 * planes.len() as u64;
                    let words = &mut words[..length as usize];
                    pack_planes(&input, map.channels, planes.clone(), recording.elem, words);
                }
                Command::Dispatch { call, bindings, node } => {
                    flops += call.cost().flops;
                    let begin = times.as_ref().map(|_| Instant::now());
                    memory.dispatch(call, bindings);
                    if let (Some(times), Some(begin)) = (&mut times, begin) {
                        times.add(dispatch, begin.elapsed().as_secs_f64());
                    }
                    if let (Some(_), Some(region)) = (self.traced(), bindings.last()) {
                        self.look(*node, call, memory.bytes(*region))?;
                    }
                    self.check_cancel()?;
                    dispatch += 1;
                }
                Command::Download { src, output, planes } => {
                    self.outputs[*output as usize].unpack(
                        memory.bytes(*src),
                        planes.clone(),
                        recording.outputs[*output as usize].elem(recording.elem),
                    );
                }
                Command::Spill { src, slot } => {
                    let mut bytes = self.flight.slots.room(src.size);
                    bytes.extend_from_slice(memory.bytes(*src));
                    self.flight.slots.put(*slot, bytes);
                }
                Command::Restore { dst, slot, keep } => {
                    let bytes = self.flight.slots.take(*slot).ok_or_else(|| internal("a slab is to come back that did not leave"))?;
                    memory.write(*dst, 0, &bytes);
                    self.flight.slots.came_back(*slot, bytes, *keep);
                }
                Command::Fetch { dst, constant } => memory.write(*dst, 0, self.weights(*constant)?),
                Command::Split => {
                    self.check_cancel()?;
                    self.tell(flops);
                }
            }
        }
        Ok(self.outputs)
    }

    /// The bytes of a constant that stays on the host.
    fn weights(&self, constant: u32) -> Result<&'a [u8], RunError> {
        let kept = self.kept.get(constant as usize).filter(|bytes| !bytes.is_empty());
        kept.map(Vec::as_slice).ok_or_else(|| internal("weights are to be fetched that the session does not keep"))
    }

    /// Takes what has arrived from the device and tells of what is finished.
    fn take_in(&mut self, memory: &mut GpuMemory) -> Result<(), RunError> {
        while let Some((command, bytes)) = memory.arrived() {
            self.deliver(command, bytes);
        }
        while let Some(done) = memory.finished() {
            self.check_cancel()?;
            self.tell(done);
        }
        Ok(())
    }

    fn deliver(&mut self, command: u32, bytes: Vec<u8>) {
        if let Some(plane) = command.checked_sub(plane_tag(self.recording, 0)) {
            self.flight.planes.push_back((plane, bytes));
            return;
        }
        match &self.recording.commands[command as usize] {
            Command::Spill { slot, .. } => self.flight.slots.put(*slot, bytes),
            Command::Download { output, planes, .. } => {
                self.outputs[*output as usize].unpack(
                    &bytes,
                    planes.clone(),
                    self.recording.outputs[*output as usize].elem(self.recording.elem),
                );
                self.flight.slots.give_back(bytes);
            }
            _ => {}
        }
    }

    fn check_cancel(&self) -> Result<(), RunError> {
        if self.flight.options.cancel.as_ref().is_some_and(Cancel::is_raised) {
            return Err(RunError::new(RunErrorKind::Cancelled, "cancelled"));
        }
        Ok(())
    }

    fn tell(&mut self, done: u64) {
        if let Some(f) = &mut self.flight.options.progress {
            f(Progress { done, total: self.each * self.flight.passes });
        }
    }
}
