//! Errors to exit codes: 1 internal, 2 usage, 3 bad input file, 4 bad model, 5 does not fit, 6
//! device, 7 some of many scans failed, 130 cancelled.

use organum::volume::{VolumeError, VolumeErrorKind};
use organum::{EngineError, LoadError, PlanError, PlanErrorKind, RunError, SegmentError};

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

impl From<SegmentError> for Failure {
    fn from(e: SegmentError) -> Self {
        let option = match &e {
            SegmentError::Option { .. } => "--",
            SegmentError::Plan(e) if e.kind() == PlanErrorKind::Budget => "--memory: ",
            SegmentError::Plan(e) if e.kind() == PlanErrorKind::HostBudget => "--host-memory: ",
            _ => "",
        };
        Self { code: e.exit_code(), message: format!("{option}{e}") }
    }
}

macro_rules! from {
    ($($error:ty),+) => {
        $(impl From<$error> for Failure {
            fn from(e: $error) -> Self {
                SegmentError::from(e).into()
            }
        })+
    };
}

from!(VolumeError, LoadError, PlanError, EngineError, RunError);
