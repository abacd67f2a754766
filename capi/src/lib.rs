//! organum for C and C++: `include/organum.h`, made of this file, and `include/organum.hpp`.
//!
//! Every function that can fail gives an [`organum_status`] and, where `error` is not null, an
//! [`organum_error`] that the caller frees. A panic is such a failure, too: nothing unwinds into C.
#![allow(non_camel_case_types, reason = "C's names")]

mod error;
mod labels;
mod model;

use std::ffi::{CStr, c_char};

use crate_organum::SegmentError;

pub use error::*;
pub use labels::*;
pub use model::*;

/// The version of organum.
#[unsafe(no_mangle)]
pub extern "C" fn organum_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

/// A text of the caller's, or `None` for null.
///
/// # Safety
/// `text` is null or ends with a 0 and lives as long as what is made of it.
unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>, SegmentError> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller vouches for it
    let text = unsafe { CStr::from_ptr(text) }.to_str();
    text.map(Some).map_err(|_| refused(what, "it is not UTF-8"))
}

/// An argument that cannot be used.
fn refused(what: &str, why: &str) -> SegmentError {
    SegmentError::Option { option: what.into(), message: why.into() }
}
