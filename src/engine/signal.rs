//! Waiting for the device without a runtime.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use crate::error::{RunError, RunErrorKind};

/// Something the device will tell, raised by one of wgpu's callbacks.
#[derive(Clone, Debug, Default)]
pub(super) struct Signal(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    raised: AtomicBool,
    failed: AtomicBool,
}

impl Signal {
    pub(super) fn raise(&self, ok: bool) {
        self.0.failed.store(!ok, Ordering::Release);
        self.0.raised.store(true, Ordering::Release);
    }

    /// Whether it is raised.
    ///
    /// # Errors
    /// When the device failed at what was waited for.
    pub(super) fn is_raised(&self) -> Result<bool, RunError> {
        let raised = self.0.raised.load(Ordering::Acquire);
        if raised && self.0.failed.load(Ordering::Acquire) {
            return Err(RunError::new(RunErrorKind::DeviceLost, "the device was lost: a buffer could not be mapped"));
        }
        Ok(raised)
    }
}

/// The pauses between two polls: they grow with the time waited, so that a wait ends at most a quarter late.
#[derive(Debug)]
pub(super) struct Pauses(Duration);

impl Pauses {
    const SHORTEST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_millis(1);

    pub(super) fn new() -> Self {
        Self(Self::SHORTEST)
    }

    /// Lets the task of `context` be polled again after a pause.
    pub(super) fn pause(&mut self, alarm: &Alarm, context: &Context<'_>) {
        alarm.after(self.0, context.waker());
        self.0 = (self.0 * 5 / 4).min(Self::LONGEST);
    }
}

/// Wakes tasks that wait for a device, so that no thread of an executor sleeps.
///
/// wgpu tells nothing unless it is polled. The thread that wakes is begun by the first wait, and ends with the engine.
#[derive(Debug, Default)]
pub(super) struct Alarm(OnceLock<Option<Sender<(Instant, Waker)>>>);

impl Alarm {
    /// Wakes a task after `pause`.
    fn after(&self, pause: Duration, waker: &Waker) {
        let begin = || {
            let (set, asked) = mpsc::channel();
            let thread = std::thread::Builder::new().name("organum-alarm".into());
            thread.spawn(move || ring(&asked)).is_ok().then_some(set)
        };
        let asked = (Instant::now() + pause, waker.clone());
        match self.0.get_or_init(begin) {
            Some(set) if set.send(asked).is_ok() => {}
            // without threads, as in a browser, the executor's own turn is the pause
            _ => waker.wake_by_ref(),
        }
    }
}

/// Wakes what asks for it once its time has come, until nobody is left who could ask.
fn ring(asked: &Receiver<(Instant, Waker)>) {
    let mut waiting: Vec<(Instant, Waker)> = Vec::new();
    loop {
        let now = Instant::now();
        waiting.extract_if(.., |(due, _)| *due <= now).for_each(|(_, waker)| waker.wake());
        let next = match waiting.iter().map(|(due, _)| *due).min() {
            None => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => asked.recv_timeout(due.saturating_duration_since(now)),
        };
        match next {
            Ok(one) => waiting.push(one),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return waiting.into_iter().for_each(|(_, waker)| waker.wake()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    /// Waits end after as many pauses as they ask for, of several tasks at once.
    #[test]
    fn tasks_are_woken_while_their_threads_sleep() {
        let alarm = Alarm::default();
        let wait = |pauses: u32| {
            let (mut left, mut length, alarm) = (pauses, Pauses::new(), &alarm);
            std::future::poll_fn(move |context| {
                if left == 0 {
                    return Poll::Ready(pauses);
                }
                left -= 1;
                length.pause(alarm, context);
                Poll::Pending
            })
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || pollster::block_on(wait(n * 7)))).collect();
            let done: Vec<u32> = threads.into_iter().map(|thread| thread.join().expect("it ends")).collect();
            assert_eq!(done, [0, 7, 14, 21, 28, 35, 42, 49]);
        });
    }
}
