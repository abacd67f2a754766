//! Errors, and how calls end.

use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate_organum::SegmentError;

/// The end of a call; the numbers are the exit codes of the command line.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum organum_status {
    /// Done.
    ORGANUM_OK = 0,
    /// A failure that should not happen.
    ORGANUM_INTERNAL = 1,
    /// An argument or option that cannot be used.
    ORGANUM_OPTION = 2,
    /// The volume does not suit the model.
    ORGANUM_VOLUME = 3,
    /// The model is missing, damaged, or one that organum does not run.
    ORGANUM_MODEL = 4,
    /// It does not fit the budget; the error names the smallest that works.
    ORGANUM_MEMORY = 5,
    /// There is no such device, or it failed.
    ORGANUM_DEVICE = 6,
    /// The progress callback stopped the run. The model can be used again.
    ORGANUM_CANCELLED = 130,
}

/// A failure: its text, kind and smallest budget.
pub struct organum_error {
    status: organum_status,
    message: CString,
    kind: CString,
    smallest_budget: u64,
}

/// A text for C, without the zeros that it may hold.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

impl From<SegmentError> for organum_error {
    fn from(e: SegmentError) -> Self {
        let status = match e.exit_code() {
            2 => organum_status::ORGANUM_OPTION,
            3 => organum_status::ORGANUM_VOLUME,
            4 => organum_status::ORGANUM_MODEL,
            5 => organum_status::ORGANUM_MEMORY,
            6 => organum_status::ORGANUM_DEVICE,
            130 => organum_status::ORGANUM_CANCELLED,
            _ => organum_status::ORGANUM_INTERNAL,
        };
        let (message, kind) = (c_text(&e.to_string()), c_text(&e.name()));
        Self { status, message, kind, smallest_budget: e.smallest_budget().unwrap_or(0) }
    }
}

/// Does `work`; a failure or a panic becomes an error, which goes to `error` unless that is null.
///
/// # Safety
/// `error` is null or points to room for a pointer.
pub(crate) unsafe fn guarded(
    error: *mut *mut organum_error,
    work: impl FnOnce() -> Result<(), SegmentError>,
) -> organum_status {
    // what the work leaves behind is freed or used anew by the caller's next call
    let failure = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return organum_status::ORGANUM_OK,
        Ok(Err(e)) => organum_error::from(e),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            let message = c_text(&format!(
                "organum failed in itself: {}",
                text.unwrap_or("no more is known")
            ));
            let kind = c_text("internal.panic");
            organum_error {
                status: organum_status::ORGANUM_INTERNAL,
                message,
                kind,
                smallest_budget: 0,
            }
        }
    };
    let status = failure.status;
    if !error.is_null() {
        // SAFETY: the caller vouches for the room
        unsafe { error.write(Box::into_raw(Box::new(failure))) };
    }
    status
}

/// The text of an error, UTF-8 on one line; it lives as long as the error.
///
/// # Safety
/// `error` is one that a function gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_error_message(error: *const organum_error) -> *const c_char {
    // SAFETY: the caller vouches for it
    unsafe { &*error }.message.as_ptr()
}

/// The stage and kind of an error in snake case, such as `plan.budget`; it lives as long as the
/// error.
///
/// # Safety
/// `error` is one that a function gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_error_kind(error: *const organum_error) -> *const c_char {
    // SAFETY: the caller vouches for it
    unsafe { &*error }.kind.as_ptr()
}

/// The smallest budget in bytes that works, for the kinds `plan.budget` and `plan.host_budget`,
/// else 0.
///
/// # Safety
/// `error` is one that a function gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_error_smallest_budget(error: *const organum_error) -> u64 {
    // SAFETY: the caller vouches for it
    unsafe { &*error }.smallest_budget
}

/// Frees an error; null is left alone.
///
/// # Safety
/// `error` is null or one that a function gave, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_error_free(error: *mut organum_error) {
    if !error.is_null() {
        // SAFETY: it was a box, and the caller gives it back
        drop(unsafe { Box::from_raw(error) });
    }
}
