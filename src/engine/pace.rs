//! How much work is submitted at once: about 50 ms of the device's time, by an estimate that follows what was measured.

use std::time::{Duration, Instant};

use crate::caps::{DeviceCaps, Rates};
use crate::kernels::Cost;

/// Device seconds of a batch. A device that also draws comes to that between batches, and cancelling is seen.
const BATCH_SECONDS: f64 = 0.05;

/// Most dispatches of a batch.
pub(super) const MOST_DISPATCHES: u32 = 1024;

/// A measurement changes the estimate by at most this factor: the first batches also compile, and the host may be late.
const LARGEST_STEP: f64 = 2.0;

/// The estimate is corrected by at most this factor.
const LARGEST_SCALE: f64 = 256.0;

/// Estimates the device's time and says when a batch is full.
#[derive(Debug)]
pub(super) struct Pace {
    rates: Rates,
    /// Measured seconds by estimated seconds, so far.
    scale: f64,
    /// Estimate of the batch that is being recorded, unscaled, and its dispatches.
    seconds: f64,
    dispatches: u32,
    /// When the last batch was finished.
    last: Option<Instant>,
}

impl Pace {
    pub(super) fn new(caps: &DeviceCaps) -> Self {
        Self { rates: caps.rates(), scale: 1.0, seconds: 0.0, dispatches: 0, last: None }
    }

    /// Seconds of a dispatch before any correction.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn estimate(&self, cost: Cost) -> f64 {
        (cost.flops as f64 / self.rates.flops).max(cost.bytes as f64 / self.rates.bytes) + self.rates.dispatch_seconds
    }

    /// Counts a dispatch of so many estimated seconds.
    pub(super) fn add(&mut self, estimate: f64) {
        self.seconds += estimate;
        self.dispatches += 1;
    }

    /// Whether the batch has no dispatches.
    pub(super) fn is_empty(&self) -> bool {
        self.dispatches == 0
    }

    /// Whether the batch should be submitted.
    pub(super) fn is_full(&self) -> bool {
        self.seconds * self.scale >= BATCH_SECONDS || self.dispatches >= MOST_DISPATCHES
    }

    /// Ends the batch; its estimate goes back to [`Pace::learn`] when the device is done with it.
    pub(super) fn take(&mut self) -> f64 {
        self.dispatches = 0;
        std::mem::take(&mut self.seconds)
    }

    /// Batches of so many estimated seconds together, the first submitted at `submitted`, were found to be finished at `now`.
    pub(super) fn finished(&mut self, estimate: f64, submitted: Instant, now: Instant) {
        let begin = self.last.map_or(submitted, |last| last.max(submitted));
        self.last = Some(now);
        self.learn(estimate, now.saturating_duration_since(begin));
    }

    fn learn(&mut self, estimate: f64, measured: Duration) {
        if estimate <= 0.0 || measured.is_zero() {
            return;
        }
        let step = measured.as_secs_f64() / (estimate * self.scale);
        let step = step.sqrt().clamp(LARGEST_STEP.recip(), LARGEST_STEP);
        self.scale = (self.scale * step).clamp(LARGEST_SCALE.recip(), LARGEST_SCALE);
    }

    /// Forgets the batch that is being recorded, not what was learnt.
    pub(super) fn forget(&mut self) {
        self.take();
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds of the batches of a device that runs `slower` times as long as estimated.
    fn batches(pace: &mut Pace, slower: f64, count: usize) -> Vec<f64> {
        let cost = Cost { flops: 10_000_000, bytes: 0 };
        let mut list = Vec::new();
        for _ in 0..count {
            while !pace.is_full() {
                pace.add(pace.estimate(cost));
            }
            let estimate = pace.take();
            pace.learn(estimate, Duration::from_secs_f64(estimate * slower));
            list.push(estimate * slower);
        }
        list
    }

    #[test]
    fn batches_come_to_take_fifty_milliseconds() {
        let caps = DeviceCaps { cpu: true, ..DeviceCaps::default() };
        for slower in [0.1, 1.0, 3.0, 20.0] {
            let mut pace = Pace::new(&caps);
            let list = batches(&mut pace, slower, 12);
            let end = list[11];
            assert!((0.04..0.08).contains(&end), "{slower} times as long: {list:?}");
            // one stray measurement does not stop the device
            pace.learn(1e-3, Duration::from_secs(10));
            let list = batches(&mut pace, slower, 4);
            assert!(list[0] > 0.01 && (0.035..0.08).contains(&list[3]), "{list:?}");
        }
    }

    #[test]
    fn batches_have_a_bounded_number_of_dispatches_and_waiting_is_not_counted() {
        let mut pace = Pace::new(&DeviceCaps::default());
        let mut count = 0;
        while !pace.is_full() {
            pace.add(0.0);
            count += 1;
        }
        assert_eq!(count, MOST_DISPATCHES);
        assert!(pace.take() == 0.0 && !pace.is_full());
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        pace.finished(0.010, at(0), at(10));
        pace.finished(0.010, at(1000), at(1010)); // the device had nothing to do in between
        pace.finished(0.010, at(1005), at(1020)); // waited for the one before
        assert!((pace.scale - 1.0).abs() < 1e-6, "{}", pace.scale);
    }
}
