//! Why a scan was not segmented.

use std::error::Error;
use std::fmt;

use crate::error::{EngineError, LoadError, PlanError, PlanErrorKind, RunError, RunErrorKind};
use crate::volume::{VolumeError, VolumeErrorKind};

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
        matches!(self, Self::Run(e) if e.kind() == RunErrorKind::Cancelled)
    }

    /// The failure in two words of snake case, for programs in other languages: the stage, and the
    /// kind of its error, such as `plan.budget` or `load.not_found`.
    #[must_use]
    pub fn name(&self) -> String {
        let (stage, kind) = match self {
            Self::Option { .. } => ("option", "Refused".into()),
            Self::Load(e) => ("load", format!("{:?}", e.kind())),
            Self::Volume(e) => ("volume", format!("{:?}", e.kind())),
            Self::Plan(e) => ("plan", format!("{:?}", e.kind())),
            Self::Engine(e) => ("engine", format!("{:?}", e.kind())),
            Self::Run(e) => ("run", format!("{:?}", e.kind())),
        };
        let mut name = format!("{stage}.");
        for (i, c) in kind.chars().enumerate() {
            if i > 0 && c.is_uppercase() {
                name.push('_');
            }
            name.push(c.to_ascii_lowercase());
        }
        name
    }

    /// The exit code of the command line for this failure: 1 internal, 2 an option, 3 the scan, 4
    /// the model, 5 does not fit, 6 the device, 130 cancelled.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Option { .. } => 2,
            Self::Load(_) => 4,
            Self::Volume(e) if e.kind() == VolumeErrorKind::TooLarge => 5,
            Self::Volume(_) => 3,
            Self::Plan(e) => match e.kind() {
                PlanErrorKind::Extent => 3,
                PlanErrorKind::Unsupported => 6,
                _ => 5,
            },
            Self::Engine(_) => 6,
            Self::Run(e) => match e.kind() {
                // of a finite input: the network's own
                RunErrorKind::NonFinite if e.node().is_some() => 4,
                RunErrorKind::InputMismatch | RunErrorKind::NonFinite => 3,
                RunErrorKind::Cancelled => 130,
                RunErrorKind::DeviceLost | RunErrorKind::OutOfMemory => 6,
                _ => 1,
            },
        }
    }

    /// The smallest budget in bytes that works, where one was too small:
    /// [`PlanError::smallest_budget`].
    #[must_use]
    pub fn smallest_budget(&self) -> Option<u64> {
        match self {
            Self::Plan(e) => e.smallest_budget(),
            _ => None,
        }
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
    use crate::error::{EngineErrorKind, LoadErrorKind};

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
        let names: Vec<String> = errors.iter().map(SegmentError::name).collect();
        assert_eq!(names, ["load.card", "volume.format", "plan.limits", "engine.shader", "run.cancelled"]);
        let codes: Vec<u8> = errors.iter().map(SegmentError::exit_code).collect();
        assert_eq!(codes, [4, 3, 5, 6, 130]);
        assert!(errors.iter().all(|e| e.smallest_budget().is_none()));
        let small: SegmentError = PlanError::host("few".into(), 7).into();
        assert_eq!((small.name().as_str(), small.smallest_budget()), ("plan.host_budget", Some(7)));
        let option = SegmentError::option("mode slices", "it is a 3D network");
        assert_eq!((option.name().as_str(), option.exit_code()), ("option.refused", 2));
        assert_eq!((option.to_string().as_str(), option.source().is_none()), ("mode slices: it is a 3D network", true));
    }
}
