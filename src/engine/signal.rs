//! Waiting for the device without a runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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

    pub(super) fn pause(&mut self) {
        std::thread::sleep(self.0);
        self.0 = (self.0 * 5 / 4).min(Self::LONGEST);
    }
}
