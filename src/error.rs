//! Opaque errors with a kind, the name of the node they concern, and a message that says what to do.

use std::fmt;

macro_rules! error_type {
    ($(#[$doc:meta])* $name:ident, $(#[$kind_doc:meta])* $kind:ident { $($(#[$variant_doc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$kind_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $kind { $($(#[$variant_doc])* $variant),+ }

        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(Box<Detail<$kind>>);

        impl $name {
            pub(crate) fn new(kind: $kind, message: impl Into<String>) -> Self {
                let message = clip(&message.into());
                Self(Box::new(Detail { kind, node: None, bytes: None, message, source: None }))
            }

            #[allow(dead_code, reason = "not every error kind names a node")]
            pub(crate) fn at(mut self, node: impl Into<String>) -> Self {
                self.0.node = Some(node.into());
                self
            }

            #[allow(dead_code, reason = "not every error kind wraps another")]
            pub(crate) fn caused_by(mut self, source: impl Cause) -> Self {
                self.0.source = Some(boxed(source));
                self
            }

            /// What went wrong, for a program to branch on.
            #[must_use]
            pub fn kind(&self) -> $kind {
                self.0.kind
            }

            /// The graph node (the reference implementation's module path) the error concerns.
            #[must_use]
            pub fn node(&self) -> Option<&str> {
                self.0.node.as_deref()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&clip(&self.0.to_string()))
            }
        }

        impl std::error::Error for $name {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                self.0.source.as_deref().map(|e| e as _)
            }
        }
    };
}

/// An error that another one names as its source.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) trait Cause: std::error::Error + Send + Sync + 'static {}
#[cfg(not(target_arch = "wasm32"))]
impl<T: std::error::Error + Send + Sync + 'static> Cause for T {}

/// The same in a browser, where errors of wgpu hold objects of JavaScript's, which stay on their thread.
#[cfg(target_arch = "wasm32")]
pub(crate) trait Cause: std::error::Error + 'static {}
#[cfg(target_arch = "wasm32")]
impl<T: std::error::Error + 'static> Cause for T {}

#[cfg(not(target_arch = "wasm32"))]
fn boxed(source: impl Cause) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(source)
}

/// Its text, which may go from thread to thread.
#[cfg(target_arch = "wasm32")]
fn boxed(source: impl Cause) -> Box<dyn std::error::Error + Send + Sync> {
    source.to_string().into()
}

/// The most characters of a message; what comes from a file may be of any length.
const LONGEST: usize = 390;

/// The characters at the end of a message that are kept where it is cut: what to do stands there.
const END: usize = 150;

/// The text of a message on one line of at most 390 characters, control characters escaped. One
/// that is longer is cut in its middle. All messages of this crate's errors and warnings are so.
#[must_use]
pub fn one_line(message: &str) -> String {
    clip(message)
}

pub(crate) fn clip(message: &str) -> String {
    const GAP: &str = " .. ";
    // a character is escaped by ten at most, so that no more of them are looked at
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let begin: Vec<char> = message.chars().take(LONGEST + 1).flat_map(|c| escape(c).chars().collect::<Vec<_>>()).collect();
    if begin.len() <= LONGEST {
        return begin.into_iter().collect();
    }
    let end: Vec<char> = message.chars().rev().take(END).flat_map(|c| escape(c).chars().rev().collect::<Vec<_>>()).collect();
    let begin = begin.into_iter().take(LONGEST - GAP.len() - END);
    begin.chain(GAP.chars()).chain(end.into_iter().take(END).rev()).collect()
}

#[derive(Debug)]
struct Detail<K> {
    kind: K,
    node: Option<String>,
    /// A number of bytes for a program to use.
    bytes: Option<u64>,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl<K> fmt::Display for Detail<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = &self.node {
            write!(f, "{node}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

error_type! {
    /// A model file could not be turned into a network.
    LoadError,
    /// Why a model was refused.
    LoadErrorKind {
        /// The file is not there.
        NotFound,
        /// The file could not be read.
        Io,
        /// Neither a safetensors file nor a PyTorch checkpoint that is read, or a damaged one.
        Format,
        /// No card, or a card that is not what this version understands.
        Card,
        /// The card names an architecture that this version does not build.
        UnknownArchitecture,
        /// There is no card, and the tensors do not tell all of the config; the message says what is to be given.
        Undetermined,
        /// Tensors are missing, extra, mis-shaped or of an unsupported type; the message lists them.
        Tensors,
        /// A tensor that the network uses holds NaN or infinite values; the message names it.
        NonFinite,
        /// An ONNX graph has an operation or an attribute that is not read; [`LoadError::node`] is the
        /// node, and the message says what to do.
        Unsupported,
    }
}

error_type! {
    /// A volume cannot be planned under the given limits.
    PlanError,
    /// Why there is no plan.
    PlanErrorKind {
        /// The extent is zero, overflows, or is not divisible by the network's stride.
        Extent,
        /// The budget is below the smallest that works; the message and [`PlanError::smallest_budget`] name it.
        Budget,
        /// The host's memory is bounded below the smallest that works; the message and
        /// [`PlanError::smallest_budget`] name it.
        HostBudget,
        /// Not possible within the device's limits whatever the budget.
        Limits,
        /// An operation or attribute that no kernel covers.
        Unsupported,
    }
}

impl LoadError {
    /// What went wrong with a file: it is missing, or cannot be read.
    pub(crate) fn io(message: impl Into<String>, e: std::io::Error) -> Self {
        let missing = e.kind() == std::io::ErrorKind::NotFound;
        Self::new(if missing { LoadErrorKind::NotFound } else { LoadErrorKind::Io }, message).caused_by(e)
    }
}

impl PlanError {
    pub(crate) fn budget(budget: u64, smallest: u64) -> Self {
        let text = format!(
            "a budget of {} ({budget} bytes) is too small: the smallest that works is {}, in bytes {smallest}",
            crate::shape::format_bytes(budget),
            crate::shape::format_bytes(smallest)
        );
        let mut error = Self::new(PlanErrorKind::Budget, text);
        error.0.bytes = Some(smallest);
        error
    }

    pub(crate) fn host(text: String, smallest: u64) -> Self {
        let mut error = Self::new(PlanErrorKind::HostBudget, text);
        error.0.bytes = Some(smallest);
        error
    }

    /// The smallest budget in bytes with which a plan exists, for errors of kind [`PlanErrorKind::Budget`], or of host
    /// memory, for [`PlanErrorKind::HostBudget`].
    #[must_use]
    pub fn smallest_budget(&self) -> Option<u64> {
        self.0.bytes
    }
}

error_type! {
    /// No usable device, or the device refused a resource.
    EngineError,
    /// What the device could not do.
    EngineErrorKind {
        /// No adapter matches.
        NoAdapter,
        /// The adapter gave no device.
        NoDevice,
        /// The device lacks a feature the plan was made for.
        Unsupported,
        /// A buffer could not be created.
        OutOfMemory,
        /// A shader was refused.
        Shader,
    }
}

error_type! {
    /// A run did not finish.
    RunError,
    /// Why a run stopped.
    RunErrorKind {
        /// The input does not have the planned shape.
        InputMismatch,
        /// The input holds a value that is not finite, or the network makes one of a finite input; then
        /// [`RunError::node`] is the first node whose values are not finite.
        NonFinite,
        /// [`crate::Cancel`] was raised; the session can run again.
        Cancelled,
        /// The device was lost or did not answer.
        DeviceLost,
        /// The device ran out of memory.
        OutOfMemory,
        /// A file in which values wait on the host could not be written or read.
        Io,
        /// A device error that should not happen.
        Internal,
    }
}

/// A [`RunError`] of kind [`RunErrorKind::Internal`].
pub(crate) fn internal(message: &str) -> RunError {
    RunError::new(RunErrorKind::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_of_bounded_length() {
        let error = PlanError::new(PlanErrorKind::Limits, "a\n\u{1b}[31mb\u{e9}");
        assert_eq!(error.to_string(), "a\\n\\u{1b}[31mb\u{e9}");
        let long = format!("a{}z", "x".repeat(1 << 20));
        let cut = clip(&long);
        assert_eq!(cut.len(), LONGEST);
        assert!(cut.starts_with("axx") && cut.contains("x .. x") && cut.ends_with("xz"), "{cut}");
        assert_eq!(clip(&cut), cut);
        let (short, long) = ("x".repeat(LONGEST), "\u{1}".repeat(LONGEST));
        assert_eq!(clip(&short), short);
        assert!(clip(&long).len() == LONGEST && clip(&long).ends_with("\\u{1}"), "{}", clip(&long));
        // of all parts together
        let inner = PlanError::new(PlanErrorKind::Limits, "y".repeat(1000));
        let outer = LoadError::new(LoadErrorKind::Card, "x".repeat(1000)).at("n\n".repeat(1000)).caused_by(inner);
        let text = outer.to_string();
        assert!(text.chars().count() == LONGEST && text.starts_with("n\\nn") && text.ends_with("yyy"), "{text}");
    }

    #[test]
    fn a_small_budget_is_told_once() {
        let error = PlanError::budget(100, 4096);
        assert_eq!(error.smallest_budget(), Some(4096));
        assert_eq!(error.to_string(), "a budget of 100 B (100 bytes) is too small: the smallest that works is 4.00 KiB, in bytes 4096");
        assert!(std::error::Error::source(&error).is_none());
        assert_eq!(PlanError::new(PlanErrorKind::Limits, "").smallest_budget(), None);
    }
}
