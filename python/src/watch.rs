//! Work on a thread of its own while the calling thread, which holds the interpreter now and then,
//! looks for signals and tells the progress.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use organum::{Cancel, Progress, RunOptions, SegmentError};
use pyo3::prelude::*;

use crate::errors::OrRaise;

/// Time between two looks for signals.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// The last progress that was told, and whether more may come.
fn latest(told: &mut Receiver<Progress>) -> (Option<Progress>, bool) {
    let mut last = match told.recv_timeout(LOOK) {
        Ok(progress) => Some(progress),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => return (None, false),
    };
    while let Ok(progress) = told.try_recv() {
        last = Some(progress);
    }
    (last, true)
}

/// Does `work` without the interpreter. `progress` is called with the operations done and those of
/// the whole run. What it raises, or a signal handler, cancels the work and is raised.
pub(crate) fn watched<T: Send>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(RunOptions<'_>) -> Result<T, SegmentError> + Send,
) -> PyResult<T> {
    let cancel = Cancel::new();
    let (tell, mut told) = channel();
    std::thread::scope(|scope| {
        let stop = cancel.clone();
        let worker = scope.spawn(move || {
            let mut show = |p: Progress| {
                // nobody listens any more once an exception was raised
                let _ = tell.send(p);
            };
            work(RunOptions::default().with_progress(&mut show).with_cancel(stop))
        });
        let mut raised = None;
        loop {
            let (last, more) = py.detach(|| latest(&mut told));
            if raised.is_none() {
                let call =
                    |p: Progress| progress.map_or(Ok(()), |f| f.call1((p.done, p.total)).map(drop));
                raised = py.check_signals().and_then(|()| last.map_or(Ok(()), call)).err();
                if raised.is_some() {
                    cancel.raise();
                }
            }
            if !more {
                break;
            }
        }
        let done = py.detach(|| worker.join());
        match (raised, done) {
            (_, Err(panic)) => std::panic::resume_unwind(panic),
            (Some(e), _) => Err(e),
            (None, Ok(result)) => result.or_raise(py),
        }
    })
}
