//! Ctrl-C: what runs is cancelled, nothing more is written, and the program ends within a second.

use std::process::exit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use organum::Cancel;
use organum::volume::stop_writing;

use crate::output::note;

/// The exit code of a command that was cancelled.
pub(crate) const CODE: u8 = 130;
/// The time that a run has to end by itself: it looks at its handle between pieces of work.
const PATIENCE: Duration = Duration::from_millis(400);
/// The time from the end of a run to that of the program.
const CLOSING: Duration = Duration::from_millis(100);

/// True while something runs that looks at the handle.
static RUNNING: AtomicBool = AtomicBool::new(false);
/// True once the command was said to be cancelled.
static SAID: AtomicBool = AtomicBool::new(false);

/// The handle that Ctrl-C raises. A process has one handler: all its runs share a handle.
pub(crate) fn handle() -> Cancel {
    static CANCEL: OnceLock<Cancel> = OnceLock::new();
    let cancel = CANCEL.get_or_init(|| {
        let cancel = Cancel::new();
        let raise = cancel.clone();
        // without a handler Ctrl-C ends the process
        let _ = ctrlc::set_handler(move || {
            raise.raise();
            stop_writing();
            end();
        });
        cancel
    });
    cancel.clone()
}

/// Does some work that looks at the handle.
pub(crate) fn watch<T>(work: impl FnOnce(Cancel) -> T) -> T {
    let cancel = handle();
    RUNNING.store(true, Ordering::Release);
    let done = work(cancel);
    RUNNING.store(false, Ordering::Release);
    done
}

/// Ends the program, after what runs had time to end.
fn end() {
    const STEP: Duration = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    while RUNNING.load(Ordering::Acquire) && waited < PATIENCE {
        std::thread::sleep(STEP);
        waited += STEP;
    }
    if waited > Duration::ZERO {
        std::thread::sleep(CLOSING);
    }
    say();
    exit(CODE.into());
}

/// Says that the command was cancelled, once.
pub(crate) fn say() {
    if !SAID.swap(true, Ordering::AcqRel) {
        note("organum: cancelled");
    }
}
