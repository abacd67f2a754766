//! Errors to exit codes: 1 internal, 2 usage, 3 bad input file, 4 bad model, 5 does not fit, 6
//! device, 7 some of many scans failed, 130 cancelled.

use organum::volume::{VolumeError, VolumeErrorKind};
use organum::{EngineError, LoadError, PlanError, PlanErrorKind, RunError, RunErrorKind, SegmentError};

/// Why the program ends without success.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into() }
    }

    /// A volume that could not be written: the path is wrong (usage) or the disk is (internal).
    pub(crate) fn writing(e: &VolumeError) -> Self {
        match e.kind() {
            VolumeErrorKind::NotFound | VolumeErrorKind::Unsupported => Self::usage(e.to_string()),
            _ => Self::internal(e.to_string()),
        }
    }
}

impl From<VolumeError> for Failure {
    fn from(e: VolumeError) -> Self {
        let code = if e.kind() == VolumeErrorKind::TooLarge { 5 } else { 3 };
        Self { code, message: e.to_string() }
    }
}

impl From<LoadError> for Failure {
    fn from(e: LoadError) -> Self {
        Self { code: 4, message: e.to_string() }
    }
}

impl From<PlanError> for Failure {
    fn from(e: PlanError) -> Self {
        let code = match e.kind() {
            PlanErrorKind::Extent => 3,
            PlanErrorKind::Unsupported => 6,
            _ => 5,
        };
        let option = match e.kind() {
            PlanErrorKind::Budget => "--memory: ",
            PlanErrorKind::HostBudget => "--host-memory: ",
            _ => "",
        };
        Self { code, message: format!("{option}{e}") }
    }
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Self {
        Self { code: 6, message: e.to_string() }
    }
}

impl From<SegmentError> for Failure {
    fn from(e: SegmentError) -> Self {
        match e {
            SegmentError::Option { option, message } => Self::usage(format!("--{option}: {message}")),
            SegmentError::Load(e) => e.into(),
            SegmentError::Volume(e) => e.into(),
            SegmentError::Plan(e) => e.into(),
            SegmentError::Engine(e) => e.into(),
            SegmentError::Run(e) => e.into(),
            other => Self::internal(other.to_string()),
        }
    }
}

impl From<RunError> for Failure {
    fn from(e: RunError) -> Self {
        let code = match e.kind() {
            // of a finite input: the network's own
            RunErrorKind::NonFinite if e.node().is_some() => 4,
            RunErrorKind::InputMismatch | RunErrorKind::NonFinite => 3,
            RunErrorKind::Cancelled => 130,
            RunErrorKind::DeviceLost | RunErrorKind::OutOfMemory => 6,
            _ => 1,
        };
        Self { code, message: e.to_string() }
    }
}
