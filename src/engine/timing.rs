//! The device's time of every dispatch of a profiled run.

use super::pace::MOST_DISPATCHES;
use super::signal::Signal;
use crate::error::RunError;
use crate::profile::{Clock, Times};

/// Two timestamps a dispatch, 8 bytes each.
const TIMESTAMPS: u32 = 2 * MOST_DISPATCHES;
const BYTES: u64 = TIMESTAMPS as u64 * 8;

/// Times dispatches: by queries, or by a submission each, for which it holds nothing.
#[derive(Debug)]
pub(super) struct Timer {
    pub(super) times: Times,
    queries: Option<Queries>,
}

#[derive(Debug)]
struct Queries {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readable: wgpu::Buffer,
    /// Nanoseconds of a tick.
    period: f64,
    /// The dispatches of the submission, in order, each with a pass of its own.
    timed: Vec<u32>,
    /// Raised when the buffer that was asked for is mapped.
    asked: Option<Signal>,
}

impl Timer {
    /// For a session of so many dispatches.
    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue, dispatches: usize) -> Self {
        let queries = device.features().contains(wgpu::Features::TIMESTAMP_QUERY).then(|| Queries::new(device, queue));
        let clock = if queries.is_some() { Clock::Timestamps } else { Clock::Submissions };
        Self { times: Times::new(clock, dispatches), queries }
    }

    /// Whether each dispatch is to be submitted alone.
    pub(super) fn is_alone(&self) -> bool {
        self.queries.is_none()
    }

    /// Where the pass of a dispatch writes its timestamps.
    pub(super) fn writes(&mut self, dispatch: u32) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let queries = self.queries.as_mut()?;
        #[expect(clippy::cast_possible_truncation, reason = "at most `MOST_DISPATCHES`")]
        let at = 2 * queries.timed.len() as u32;
        if at + 2 > TIMESTAMPS {
            return None;
        }
        queries.timed.push(dispatch);
        Some(wgpu::ComputePassTimestampWrites {
            query_set: &queries.set,
            beginning_of_pass_write_index: Some(at),
            end_of_pass_write_index: Some(at + 1),
        })
    }

    /// Ends the commands that the passes are in.
    #[expect(clippy::cast_possible_truncation, reason = "at most `MOST_DISPATCHES`")]
    pub(super) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        let Some(queries) = self.queries.as_ref().filter(|q| !q.timed.is_empty()) else { return };
        let count = 2 * queries.timed.len() as u32;
        encoder.resolve_query_set(&queries.set, 0..count, &queries.resolved, 0);
        encoder.copy_buffer_to_buffer(&queries.resolved, 0, &queries.readable, 0, Some(u64::from(count) * 8));
    }

    /// Asks for the timestamps of what was just submitted; false where there are none.
    pub(super) fn ask(&mut self) -> bool {
        let Some(queries) = self.queries.as_mut().filter(|q| !q.timed.is_empty()) else { return false };
        let signal = Signal::default();
        let set = signal.clone();
        queries.readable.map_async(wgpu::MapMode::Read, .., move |r| set.raise(r.is_ok()));
        queries.asked = Some(signal);
        true
    }

    /// Takes the timestamps in when they are there; true when none are awaited any more.
    ///
    /// # Errors
    /// When the device was lost.
    pub(super) fn collect(&mut self) -> Result<bool, RunError> {
        let Some(queries) = &mut self.queries else { return Ok(true) };
        let Some(signal) = &queries.asked else { return Ok(true) };
        if !signal.is_raised()? {
            return Ok(false);
        }
        queries.asked = None;
        if let Ok(view) = queries.readable.get_mapped_range(..queries.timed.len() as u64 * 16) {
            for (&dispatch, ticks) in queries.timed.iter().zip(view.as_chunks::<16>().0) {
                let [begin, end] = [0, 8].map(|at| ticks[at..at + 8].try_into().map_or(0, u64::from_le_bytes));
                #[expect(clippy::cast_precision_loss, reason = "differences of times")]
                let ticks = end.saturating_sub(begin) as f64;
                self.times.add(dispatch as usize, ticks * queries.period * 1e-9);
            }
        }
        queries.readable.unmap();
        queries.timed.clear();
        Ok(true)
    }

    /// Forgets what is under way.
    pub(super) fn forget(&mut self) {
        if let Some(queries) = &mut self.queries {
            if queries.asked.take().is_some() {
                queries.readable.unmap();
            }
            queries.timed.clear();
        }
    }
}

impl Queries {
    fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor { label: Some("timestamps"), size: BYTES, usage, mapped_at_creation: false })
        };
        Self {
            set: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: TIMESTAMPS,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            readable: buffer(wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ),
            period: f64::from(queue.get_timestamp_period()),
            timed: Vec::new(),
            asked: None,
        }
    }
}
