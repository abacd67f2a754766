//! A run of a recording: on a device, where the host keeps ahead of it, or on the host.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

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
    input: Input<'a>,
    options: RunOptions<'o>,
    total: u64,
    outputs: Vec<OutputVolume>,
    slots: HostSlots,
    /// Bytes of the constants that are fetched.
    kept: &'a [Vec<u8>],
    /// The graph, where the first node of values that are not finite is looked for.
    traced: Option<&'a Graph>,
}

impl<'a, 'o> Run<'a, 'o> {
    /// `kept` holds the bytes of the constants that are fetched, by their index.
    pub(crate) fn new(plan: &'a Plan, kept: &'a [Vec<u8>], input: Input<'a>, options: RunOptions<'o>) -> Self {
        let recording = plan.recording();
        Self {
            recording,
            input,
            options,
            total: plan.report().flops,
            outputs: recording.outputs.iter().map(OutputVolume::empty).collect(),
            slots: HostSlots::new(recording.host_slots.len()),
            kept,
            traced: None,
        }
    }

    /// The same run, which ends with [`RunErrorKind::NonFinite`] at the first node whose values are
    /// not finite: what each dispatch writes is looked through.
    pub(crate) fn traced(mut self, plan: &'a Plan) -> Self {
        self.traced = Some(plan.graph());
        self
    }

    /// The regions that dispatches write, where they are looked through: what lay there before is
    /// none of theirs, and dispatches may write a part of a region each.
    fn looked_through(&self) -> impl Iterator<Item = Region> + use<'a, 'o> {
        let regions = self.recording.dispatches().filter_map(|(_, regions)| regions.last().copied());
        let regions: std::collections::HashSet<Region> = regions.filter(|_| self.traced.is_some()).collect();
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
        match self.traced {
            Some(graph) if broken => {
                Err(RunError::new(RunErrorKind::NonFinite, "its values are not finite").at(graph.node(node).name.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The handle that stops it.
    pub(crate) fn cancel(&self) -> Option<Cancel> {
        self.options.cancel.clone()
    }

    /// Runs on a device. The tag of a read is the index of its command.
    pub(crate) async fn on_device(mut self, memory: &mut GpuMemory) -> Result<Vec<OutputVolume>, RunError> {
        let recording = self.recording;
        let (mut flops, mut dispatch) = (0, 0);
        let mut plane = Vec::new();
        for region in self.looked_through() {
            memory.write(region, 0, &vec![0; region.size as usize]).await?;
        }
        for (index, command) in (0u32..).zip(&recording.commands) {
            match command {
                Command::Upload { dst, planes, .. } => {
                    let mut at = 0;
                    let map = Map::new(self.input.extent, channels(recording));
                    plane.resize((map.plane_elements() * recording.elem.bytes() / 4) as usize, 0);
                    for z in planes.clone() {
                        pack_planes(&self.input, map.channels, z..z + 1, recording.elem, &mut plane);
                        memory.write(*dst, at, bytemuck::cast_slice(&plane)).await?;
                        at += plane.len() as u64 * 4;
                    }
                }
                Command::Dispatch { call, bindings, node } => {
                    flops += memory.dispatch(dispatch).await?;
                    dispatch += 1;
                    if let (Some(_), Some(region)) = (self.traced, bindings.last()) {
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
                    let room = self.slots.room(src.size);
                    memory.fetch(*src, index, room).await?;
                }
                Command::Restore { dst, slot, keep } => {
                    let bytes = loop {
                        if let Some(bytes) = self.slots.take(*slot) {
                            break bytes;
                        }
                        if !memory.settle().await? {
                            return Err(internal("a slab is to come back that did not leave"));
                        }
                        self.take_in(memory)?;
                    };
                    memory.write(*dst, 0, &bytes).await?;
                    self.slots.came_back(*slot, bytes, *keep);
                }
                Command::Fetch { dst, constant } => memory.write(*dst, 0, self.weights(*constant)?).await?,
                Command::Split if memory.has_work() => self.end_batch(memory, flops).await?,
                Command::Split => self.check_cancel()?,
            }
            self.take_in(memory)?;
        }
        while memory.settle().await? {
            self.take_in(memory)?;
        }
        Ok(self.outputs)
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
                    let words = memory.words_mut(*dst);
                    let map = Map::new(self.input.extent, channels(recording));
                    let length = map.plane_elements() * recording.elem.bytes() / 4 * planes.len() as u64;
                    let words = &mut words[..length as usize];
                    pack_planes(&self.input, map.channels, planes.clone(), recording.elem, words);
                }
                Command::Dispatch { call, bindings, node } => {
                    flops += call.cost().flops;
                    let begin = times.as_ref().map(|_| Instant::now());
                    memory.dispatch(call, bindings);
                    if let (Some(times), Some(begin)) = (&mut times, begin) {
                        times.add(dispatch, begin.elapsed().as_secs_f64());
                    }
                    if let (Some(_), Some(region)) = (self.traced, bindings.last()) {
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
                    let mut bytes = self.slots.room(src.size);
                    bytes.extend_from_slice(memory.bytes(*src));
                    self.slots.put(*slot, bytes);
                }
                Command::Restore { dst, slot, keep } => {
                    let bytes = self.slots.take(*slot).ok_or_else(|| internal("a slab is to come back that did not leave"))?;
                    memory.write(*dst, 0, &bytes);
                    self.slots.came_back(*slot, bytes, *keep);
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
        match &self.recording.commands[command as usize] {
            Command::Spill { slot, .. } => self.slots.put(*slot, bytes),
            Command::Download { output, planes, .. } => {
                self.outputs[*output as usize].unpack(
                    &bytes,
                    planes.clone(),
                    self.recording.outputs[*output as usize].elem(self.recording.elem),
                );
                self.slots.give_back(bytes);
            }
            _ => {}
        }
    }

    fn check_cancel(&self) -> Result<(), RunError> {
        if self.options.cancel.as_ref().is_some_and(Cancel::is_raised) {
            return Err(RunError::new(RunErrorKind::Cancelled, "cancelled"));
        }
        Ok(())
    }

    fn tell(&mut self, done: u64) {
        if let Some(f) = &mut self.options.progress {
            f(Progress { done, total: self.total });
        }
    }
}

/// Slabs that wait on the host. Buffers are used again, because the first touch of fresh memory costs as much as the copy,
/// but are let go where keeping them would hold more bytes than were ever in use at once.
struct HostSlots {
    waiting: Vec<Option<Vec<u8>>>,
    spare: Vec<Vec<u8>>,
    /// Bytes of the buffers handed out by [`HostSlots::room`], and the most of them so far.
    used: usize,
    most: usize,
    spare_bytes: usize,
}

impl HostSlots {
    fn new(slots: usize) -> Self {
        Self { waiting: vec![None; slots], spare: Vec::new(), used: 0, most: 0, spare_bytes: 0 }
    }

    /// An empty buffer for `size` bytes.
    fn room(&mut self, size: u64) -> Vec<u8> {
        let fits = self.spare.iter().rposition(|b| b.capacity() as u64 == size);
        let buffer = fits.map(|at| {
            let buffer = self.spare.swap_remove(at);
            self.spare_bytes -= buffer.capacity();
            buffer
        });
        let buffer = buffer.unwrap_or_else(|| Vec::with_capacity(size as usize));
        self.used += buffer.capacity();
        self.most = self.most.max(self.used);
        self.trim();
        buffer
    }

    fn put(&mut self, slot: u32, bytes: Vec<u8>) {
        self.waiting[slot as usize] = Some(bytes);
    }

    fn take(&mut self, slot: u32) -> Option<Vec<u8>> {
        self.waiting[slot as usize].take()
    }

    /// Ends a restore: the bytes wait on where they come back once more.
    fn came_back(&mut self, slot: u32, bytes: Vec<u8>, keep: bool) {
        if keep {
            self.put(slot, bytes);
        } else {
            self.give_back(bytes);
        }
    }

    fn give_back(&mut self, mut buffer: Vec<u8>) {
        self.used = self.used.saturating_sub(buffer.capacity());
        self.spare_bytes += buffer.capacity();
        buffer.clear();
        self.spare.push(buffer);
        self.trim();
    }

    fn trim(&mut self) {
        while self.used + self.spare_bytes > self.most && !self.spare.is_empty() {
            self.spare_bytes -= self.spare.remove(0).capacity();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_buffers_are_used_again_but_never_hold_more_than_was_in_use() {
        let mut slots = HostSlots::new(3);
        let fill = |slots: &mut HostSlots, slot, size: u64| {
            let mut bytes = slots.room(size);
            bytes.resize(size as usize, 7);
            slots.put(slot, bytes);
        };
        fill(&mut slots, 0, 1000);
        fill(&mut slots, 1, 500);
        assert!(slots.take(2).is_none());
        let bytes = slots.take(0).expect("it waits");
        let address = bytes.as_ptr();
        slots.give_back(bytes);
        assert_eq!((slots.used, slots.spare_bytes, slots.most), (500, 1000, 1500));
        fill(&mut slots, 2, 1000);
        let bytes = slots.take(2).expect("it waits");
        assert_eq!((bytes.as_ptr(), slots.spare_bytes), (address, 0));
        let bytes = slots.take(1).expect("it waits");
        slots.give_back(bytes);
        fill(&mut slots, 0, 400); // of another size: the spare one goes
        assert_eq!((slots.used, slots.spare_bytes, slots.most), (1400, 0, 1500));
    }
}
