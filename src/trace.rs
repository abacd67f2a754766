//! Spans of the stages of a segmentation, for the crate `tracing`; without the feature of that name nothing.

/// Awaits a future within a span.
#[cfg(feature = "tracing")]
macro_rules! awaited_in {
    ($name:literal, $future:expr) => {
        tracing::Instrument::instrument($future, tracing::info_span!($name)).await
    };
}

#[cfg(not(feature = "tracing"))]
macro_rules! awaited_in {
    ($name:literal, $future:expr) => {
        $future.await
    };
}

/// Evaluates an expression within a span; what it returns is its value, so no `?` and no `return` in it.
#[cfg(feature = "tracing")]
macro_rules! in_span {
    ($name:literal, $value:expr) => {
        tracing::info_span!($name).in_scope(|| $value)
    };
}

#[cfg(not(feature = "tracing"))]
macro_rules! in_span {
    ($name:literal, $value:expr) => {
        $value
    };
}
