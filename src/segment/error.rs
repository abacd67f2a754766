//! Why a scan was not segmented.

use std::error::Error;
use std::fmt;

use crate::error::{EngineError, LoadError, PlanError, RunError};
use crate::volume::VolumeError;

/// Why a scan was not segmented.
#[derive(Debug)]
#[non_exhaustive]
pub enum SegmentError {
    /// The model does not do what an option asks for.
    Option {
        /// The option, with its value where that matters: `mode slices`.
        option: String,
        /// Why the model does not.
        message: String,
    },
    /// The model cannot be loaded, or does not say how scans are prepared.
    Load(LoadError),
    /// The scan does not suit the model, or a result does not fit the machine.
    Volume(VolumeError),
    /// There is no plan within the budget and the device's limits.
    Plan(PlanError),
    /// The device refused the plan.
    Engine(EngineError),
    /// The run did not finish.
    Run(RunError),
}

impl SegmentError {
    pub(crate) fn option(option: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::Option { option: option.into(), message: message.to_string() }
    }

    /// Whether the run was stopped by [`crate::Cancel`]. The segmenter can be used again.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Run(e) if e.kind() == crate::RunErrorKind::Cancelled)
    }

    fn inner(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Option { .. } => None,
            Self::Load(e) => Some(e),
            Self::Volume(e) => Some(e),
            Self::Plan(e) => Some(e),
            Self::Engine(e) => Some(e),
            Self::Run(e) => Some(e),
        }
    }
}

impl fmt::Display for SegmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option { option, message } => write!(f, "{option}: {message}"),
            Self::Load(e) => e.fmt(f),
            Self::Volume(e) => e.fmt(f),
            Self::Plan(e) => e.fmt(f),
            Self::Engine(e) => e.fmt(f),
            Self::Run(e) => e.fmt(f),
        }
    }
}

impl Error for SegmentError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner().and_then(Error::source)
    }
}

macro_rules! from {
    ($($kind:ident($error:ty)),+) => {
        $(impl From<$error> for SegmentError {
            fn from(e: $error) -> Self {
                Self::$kind(e)
            }
        })+
    };
}

from!(Load(LoadError), Volume(VolumeError), Plan(PlanError), Engine(EngineError), Run(RunError));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{EngineErrorKind, LoadErrorKind, PlanErrorKind, RunErrorKind};
    use crate::volume::VolumeErrorKind;

    #[test]
    fn errors_tell_what_failed() {
        let errors: [SegmentError; 5] = [
            LoadError::new(LoadErrorKind::Card, "load").into(),
            VolumeError::new(VolumeErrorKind::Format, "volume").into(),
            PlanError::new(PlanErrorKind::Limits, "plan").into(),
            EngineError::new(EngineErrorKind::Shader, "engine").caused_by(fmt::Error).into(),
            RunError::new(RunErrorKind::Cancelled, "run").into(),
        ];
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(told[..3] == ["load", "volume", "plan"] && told[3].starts_with("engine") && told[4] == "run");
        let sources: Vec<bool> = errors.iter().map(|e| e.source().is_some()).collect();
        assert_eq!(sources, [false, false, false, true, false]);
        assert!(errors[4].is_cancelled() && !errors[0].is_cancelled());
        let option = SegmentError::option("mode slices", "it is a 3D network");
        assert_eq!((option.to_string().as_str(), option.source().is_none()), ("mode slices: it is a 3D network", true));
    }
}
