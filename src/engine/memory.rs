//! The device side of a session: chunks, uniforms and staging, and the batches that run on them without the host waiting.
//!
//! The queue runs submissions in order, so a slab that is copied to staging may be overwritten by what is submitted after
//! it, and the host only waits for pieces of staging, for the bytes of a slab it needs back, and for old batches.

use std::collections::VecDeque;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::pace::Pace;
use super::signal::{Pauses, Signal};
use super::staging::{Direction, Ring, Room};
use super::submit::{Pending, Work};
use super::timing::Timer;
use super::{Engine, Reserved};
use crate::error::{EngineError, EngineErrorKind, RunError, RunErrorKind, internal};
use crate::record::{Recording, Region, UNIFORM_STRIDE};
use crate::run::Cancel;

/// All device buffers of a session. Dropping it gives every byte back once the device has finished what is submitted.
#[derive(Debug)]
pub(crate) struct GpuMemory {
    pub(super) engine: Engine,
    pub(super) chunks: Vec<wgpu::Buffer>,
    pub(super) uniforms: wgpu::Buffer,
    pub(super) upload: Ring,
    pub(super) download: Ring,
    /// What dispatches run.
    pub(super) work: Vec<Work>,
    /// Recorded and not submitted.
    pub(super) pending: Vec<Pending>,
    pub(super) pace: Pace,
    /// Time in which commands were recorded.
    pub(super) recording: Duration,
    /// Bytes that were asked for since the run began.
    downloaded: u64,
    /// Times dispatches while a profile is made.
    pub(super) timer: Option<Timer>,
    /// Ends every wait once it is raised.
    cancel: Option<Cancel>,
    /// Batches submitted, oldest first.
    batches: VecDeque<Batch>,
    /// Batches finished and not told.
    finished: VecDeque<u64>,
    /// Reads whose bytes are not all here, in order.
    incoming: VecDeque<Read>,
    /// Reads complete and not fetched.
    arrived: VecDeque<Read>,
    allocated: u64,
    /// Given back with the buffers, after them.
    _reserved: Reserved,
}

/// Where staged bytes go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Destination {
    Chunk(u32),
    Uniforms,
}

#[derive(Debug)]
struct Batch {
    done: Signal,
    mark: u64,
    /// Its time as [`Pace`] estimated it, and when it was submitted.
    estimate: f64,
    submitted: Instant,
}

/// A region on its way to the host.
#[derive(Debug)]
struct Read {
    tag: u32,
    size: usize,
    bytes: Vec<u8>,
}

impl GpuMemory {
    /// Creates exactly the buffers the recording names; those of staging in pieces.
    pub(crate) async fn new(engine: &Engine, recording: &Recording) -> Result<Self, EngineError> {
        let device = engine.device();
        let Some(reserved) = engine.reserve(recording.device_bytes()) else {
            let text = format!(
                "{} bytes are more than the engine may allocate beside {}; give a smaller budget",
                recording.device_bytes(),
                engine.allocated_bytes()
            );
            return Err(EngineError::new(EngineErrorKind::OutOfMemory, text));
        };
        let out_of_memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let invalid = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let buffer = |label: &str, size: u64, usage| {
            engine.buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
        };
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let chunks: Vec<wgpu::Buffer> = recording.chunks.iter().map(|&size| buffer("chunk", size, storage)).collect();
        let uniforms = buffer("uniforms", recording.uniform_bytes(), wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
        let upload = Ring::new(engine, Direction::Upload, recording.upload_staging);
        let download = Ring::new(engine, Direction::Download, recording.download_staging);
        let (invalid, out_of_memory) = (invalid.pop(), out_of_memory.pop());
        let (invalid, out_of_memory) = (invalid.await, out_of_memory.await);
        if let Some(error) = out_of_memory.or(invalid) {
            let text = format!(
                "the device could not allocate {} bytes in {} buffers; give a smaller budget",
                recording.device_bytes(),
                chunks.len() + 1 + upload.pieces() + download.pieces()
            );
            return Err(EngineError::new(EngineErrorKind::OutOfMemory, text).caused_by(error));
        }
        let allocated = chunks.iter().map(wgpu::Buffer::size).sum::<u64>() + uniforms.size() + upload.bytes() + download.bytes();
        Ok(Self {
            engine: engine.clone(),
            chunks,
            uniforms,
            upload,
            download,
            work: Vec::new(),
            pending: Vec::new(),
            pace: Pace::new(engine.caps()),
            recording: Duration::ZERO,
            downloaded: 0,
            timer: None,
            cancel: None,
            batches: VecDeque::new(),
            finished: VecDeque::new(),
            incoming: VecDeque::new(),
            arrived: VecDeque::new(),
            allocated,
            _reserved: reserved,
        })
    }

    /// Time in which commands were recorded since [`GpuMemory::begin`].
    pub(crate) fn recording_time(&self) -> Duration {
        self.recording
    }

    /// Bytes that left the device since [`GpuMemory::begin`].
    pub(crate) fn downloaded(&self) -> u64 {
        self.downloaded
    }

    /// Bytes of all buffers created.
    pub(crate) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Fills the uniform buffer.
    pub(crate) async fn write_uniforms(&mut self, blocks: &[Vec<u8>]) -> Result<(), RunError> {
        let mut bytes = vec![0u8; blocks.len() * UNIFORM_STRIDE as usize];
        for (slot, block) in bytes.chunks_exact_mut(UNIFORM_STRIDE as usize).zip(blocks) {
            slot[..block.len()].copy_from_slice(block);
        }
        self.stage(Destination::Uniforms, 0, &bytes).await
    }

    /// Changes the uniform block of a dispatch, in order with the dispatches.
    pub(crate) async fn write_params(&mut self, number: u32, block: &[u8]) -> Result<(), RunError> {
        self.stage(Destination::Uniforms, u64::from(number) * UNIFORM_STRIDE, block).await
    }

    /// Sets `size` bytes at `at` within a region to zero, in order with the dispatches.
    pub(crate) fn clear(&mut self, region: Region, at: u64, size: u64) {
        self.pending.push(Pending::Clear { chunk: region.chunk, at: region.offset + at, size });
    }

    /// Copies bytes to `at` within a region, in order with the dispatches.
    pub(crate) async fn write(&mut self, region: Region, at: u64, bytes: &[u8]) -> Result<(), RunError> {
        self.stage(Destination::Chunk(region.chunk), region.offset + at, bytes).await
    }

    async fn stage(&mut self, to: Destination, at: u64, bytes: &[u8]) -> Result<(), RunError> {
        let mut done = 0;
        while done < bytes.len() {
            let (piece, from, room) = self.room(Direction::Upload).await?;
            let size = (bytes.len() - done).min(room as usize);
            self.upload.stage(&bytes[done..done + size])?;
            self.pending.push(Pending::Stage { piece, from, to, at: at + done as u64, size: size as u64 });
            done += size;
        }
        Ok(())
    }

    /// Asks for the bytes of a region as they are at this point of the run; [`GpuMemory::arrived`] hands them out with the
    /// tag, appended to `bytes`, reads in the order in which they were asked for.
    pub(crate) async fn fetch(&mut self, region: Region, tag: u32, bytes: Vec<u8>) -> Result<(), RunError> {
        self.downloaded += region.size;
        self.incoming.push_back(Read { tag, size: region.size as usize, bytes });
        let mut done = 0;
        while done < region.size {
            let (piece, to, room) = self.room(Direction::Download).await?;
            let size = (region.size - done).min(room);
            self.download.fill(size);
            self.pending.push(Pending::Fetch { from: region, at: done, piece, to, size });
            done += size;
        }
        Ok(())
    }

    /// A read that is complete, with its tag.
    pub(crate) fn arrived(&mut self) -> Option<(u32, Vec<u8>)> {
        self.arrived.pop_front().map(|r| (r.tag, r.bytes))
    }

    /// Brings a region to the host and waits for it.
    pub(crate) async fn read(&mut self, region: Region) -> Result<Vec<u8>, RunError> {
        self.fetch(region, 0, Vec::with_capacity(region.size as usize)).await?;
        self.flush().await?;
        self.arrived().map(|(_, bytes)| bytes).ok_or_else(|| internal("a region did not arrive"))
    }

    /// Submits what is pending as a batch; [`GpuMemory::finished`] tells its mark when the device is done with it.
    pub(crate) async fn end_batch(&mut self, mark: u64) -> Result<(), RunError> {
        let submitted = Instant::now();
        self.submit().await?;
        let done = self.all_done();
        self.batches.push_back(Batch { done, mark, estimate: self.pace.take(), submitted });
        self.poll().map(drop)
    }

    /// Raised when the device is done with all that was submitted.
    pub(super) fn all_done(&self) -> Signal {
        let done = Signal::default();
        let set = done.clone();
        self.engine.queue().on_submitted_work_done(move || set.raise(true));
        done
    }

    /// Begins a run that ends, with [`RunErrorKind::Cancelled`], at the next wait after `cancel` is raised.
    pub(crate) fn begin(&mut self, cancel: Option<Cancel>) {
        self.forget();
        self.recording = Duration::ZERO;
        self.downloaded = 0;
        self.cancel = cancel;
    }

    /// Ends a run; what failed is forgotten.
    pub(crate) fn end(&mut self, failed: bool) {
        self.cancel = None;
        if failed {
            self.forget();
        }
    }

    /// Batches that the device is not done with, as far as known.
    pub(crate) fn batches(&self) -> usize {
        self.batches.len()
    }

    /// The mark of a finished batch, oldest first.
    pub(crate) fn finished(&mut self) -> Option<u64> {
        self.finished.pop_front()
    }

    /// Waits until a read has arrived or a batch is finished that was not handed out yet; false when none is under way.
    pub(crate) async fn settle(&mut self) -> Result<bool, RunError> {
        if !self.incoming.is_empty() {
            self.submit().await?;
        }
        self.wait(|m| Ok(!m.arrived.is_empty() || !m.finished.is_empty() || (m.incoming.is_empty() && m.batches.is_empty()))).await?;
        Ok(!self.arrived.is_empty() || !self.finished.is_empty())
    }

    /// Submits what is pending and waits for all of it.
    pub(crate) async fn flush(&mut self) -> Result<(), RunError> {
        self.end_batch(0).await?;
        self.wait(|m| Ok(m.incoming.is_empty() && m.batches.is_empty())).await?;
        self.finished.clear();
        Ok(())
    }

    /// Forgets what is pending or under way, whatever became of the last run: it may have failed, or its future may have been
    /// dropped at any await. The device finishes what is submitted before anything submitted from here on.
    fn forget(&mut self) {
        self.pending.clear();
        self.pace.forget();
        self.batches.clear();
        self.finished.clear();
        self.incoming.clear();
        self.arrived.clear();
        let _quiet = self.quiet();
        self.upload.forget();
        self.download.forget();
        if let Some(timer) = &mut self.timer {
            timer.forget();
        }
    }

    /// Piece, offset and size of room in a ring, submitting and waiting for it where need be.
    async fn room(&mut self, direction: Direction) -> Result<(usize, u64, u64), RunError> {
        loop {
            match self.find_room(direction)? {
                Room::Open { piece, offset, size } => return Ok((piece, offset, size)),
                Room::Submit => self.submit().await?,
                Room::Wait => {
                    self.poll()?;
                    if matches!(self.find_room(direction)?, Room::Wait) {
                        self.submit().await?;
                        self.wait(|m| Ok(!matches!(m.find_room(direction)?, Room::Wait))).await?;
                    }
                }
            }
        }
    }

    fn find_room(&mut self, direction: Direction) -> Result<Room, RunError> {
        let _quiet = self.quiet();
        match direction {
            Direction::Upload => self.upload.room(),
            Direction::Download => self.download.room(),
        }
    }

    /// Until it is dropped, a lost device's complaints about mapping are left to the [`Signal`]s: unheard they are panics.
    pub(super) fn quiet(&self) -> wgpu::ErrorScopeGuard {
        self.engine.device().push_error_scope(wgpu::ErrorFilter::Validation)
    }

    /// Polls the device until `ready`, with pauses of at most a millisecond in which no thread sleeps. `PollType::Wait` with a timeout is not
    /// used: in wgpu 30 it panics when another thread polls the same device meanwhile (an assertion on the queue being
    /// empty), and the device may be the host's.
    pub(super) async fn wait(&mut self, mut ready: impl FnMut(&mut Self) -> Result<bool, RunError>) -> Result<(), RunError> {
        let mut pauses = Pauses::new();
        std::future::poll_fn(move |context| {
            let moved = match self.poll() {
                Ok(moved) => moved,
                Err(e) => return Poll::Ready(Err(e)),
            };
            match ready(self) {
                Ok(false) if self.cancel.as_ref().is_some_and(Cancel::is_raised) => {
                    return Poll::Ready(Err(RunError::new(RunErrorKind::Cancelled, "cancelled")));
                }
                Ok(false) => {}
                Ok(true) => return Poll::Ready(Ok(())),
                Err(e) => return Poll::Ready(Err(e)),
            }
            if moved {
                context.waker().wake_by_ref();
            } else {
                pauses.pause(self.engine.alarm(), context);
            }
            Poll::Pending
        })
        .await
    }

    /// Takes in what the device has finished, without waiting; true when bytes arrived.
    fn poll(&mut self) -> Result<bool, RunError> {
        let lost = |e| RunError::new(RunErrorKind::DeviceLost, "the device was lost").caused_by(e);
        self.engine.device().poll(wgpu::PollType::Poll).map_err(lost)?;
        let (mut estimate, mut submitted) = (0.0, None);
        while let Some(batch) = self.batches.front() {
            if !batch.done.is_raised()? {
                break;
            }
            estimate += batch.estimate;
            submitted.get_or_insert(batch.submitted);
            self.finished.extend(self.batches.pop_front().map(|b| b.mark));
        }
        if let Some(submitted) = submitted {
            self.pace.finished(estimate, submitted, Instant::now());
        }
        let _quiet = self.quiet();
        let (incoming, arrived) = (&mut self.incoming, &mut self.arrived);
        self.download.collect(|mut bytes| {
            while let Some(mut read) = incoming.pop_front() {
                let (now, later) = bytes.split_at(bytes.len().min(read.size - read.bytes.len()));
                read.bytes.extend_from_slice(now);
                bytes = later;
                if read.bytes.len() < read.size {
                    incoming.push_front(read);
                    return;
                }
                arrived.push_back(read);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(staging: u64, bytes: u64) -> Option<GpuMemory> {
        let engine = pollster::block_on(Engine::request(None)).ok()?; // no adapter: nothing to test
        let recording = Recording { chunks: vec![bytes], upload_staging: staging, download_staging: staging, ..Recording::default() };
        let memory = pollster::block_on(GpuMemory::new(&engine, &recording)).expect("there is room");
        assert_eq!(memory.allocated(), recording.device_bytes());
        Some(memory)
    }

    fn pattern(seed: u64, size: u64) -> Vec<u8> {
        (0..size).map(|i| ((i + seed).wrapping_mul(0x9E37_79B9) >> 16) as u8).collect()
    }

    /// Bytes that are written, fetched and overwritten many times without waiting come back as they were at each fetch.
    #[test]
    fn bytes_survive_rings_of_every_size() {
        for staging in [4, 12, 256, 512, 4096, 200 << 10] {
            let sizes = if staging < 256 { [4, 8, 24] } else { [4, 1020, 70_000] };
            let Some(mut m) = memory(staging, 1 << 20) else { return };
            pollster::block_on(async {
                let mut expected = Vec::new();
                for round in 0..6u32 {
                    for (tag, size) in (round * 3..).zip(sizes) {
                        let region = Region { chunk: 0, offset: 256, size };
                        let bytes = pattern(u64::from(tag), size);
                        m.write(region, 0, &bytes).await?;
                        m.fetch(region, tag, Vec::new()).await?;
                        expected.push((tag, bytes));
                    }
                    m.end_batch(u64::from(round)).await?;
                }
                let (mut arrived, mut finished) = (Vec::new(), Vec::new());
                while m.settle().await? {
                    arrived.extend(std::iter::from_fn(|| m.arrived()));
                    finished.extend(std::iter::from_fn(|| m.finished()));
                }
                assert!(arrived == expected, "other bytes through {staging} bytes of staging");
                assert_eq!(finished, [0, 1, 2, 3, 4, 5]);
                assert!(!m.settle().await?, "nothing is under way");
                Ok::<_, RunError>(())
            })
            .expect("the device works");
        }
    }

    /// What a failed or dropped run leaves in the rings does not reach the next one.
    #[test]
    fn what_was_under_way_is_forgotten() {
        let Some(mut m) = memory(1024, 1 << 16) else { return };
        let region = Region { chunk: 0, offset: 0, size: 5000 };
        for submitted in [false, true, true] {
            pollster::block_on(async {
                m.write(region, 0, &pattern(1, 5000)).await?;
                m.fetch(region, 1, Vec::new()).await?;
                if submitted {
                    m.end_batch(1).await?;
                }
                m.forget();
                assert!(m.arrived().is_none() && m.finished().is_none() && m.batches() == 0);
                m.write(region, 0, &pattern(2, 5000)).await?;
                assert!(m.read(region).await? == pattern(2, 5000), "bytes of an earlier run");
                Ok::<_, RunError>(())
            })
            .expect("the device works");
        }
    }
}
