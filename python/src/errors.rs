//! Errors as exceptions of `organum._errors`.

use organum::SegmentError;
use pyo3::prelude::*;

/// The exception for an error, made by the Python half.
pub(crate) fn exception(py: Python<'_>, error: &SegmentError) -> PyErr {
    let facts = (error.name(), error.to_string(), error.exit_code(), error.smallest_budget());
    let made =
        py.import("organum._errors").and_then(|module| module.getattr("exception")?.call1(facts));
    made.map_or_else(|e| e, PyErr::from_value)
}

/// A result with its error as an exception.
pub(crate) trait OrRaise<T> {
    /// The value, or the exception.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T, E: Into<SegmentError>> OrRaise<T> for Result<T, E> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|e| exception(py, &e.into()))
    }
}
