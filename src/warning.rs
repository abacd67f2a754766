//! Warnings: readings of an input that are legitimate, but may not be what its owner means.

use std::fmt;

use serde::Serialize;

use crate::error::clip;

/// What a [`Warning`] is about, for a program to branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WarningKind {
    /// The header of a scan contradicts itself, or leaves its geometry open.
    Geometry,
    /// The scan does not look like those that the model was trained on.
    Scan,
    /// The labels are not what the model's card expects of them.
    Result,
    /// The reference implementation would do more, or something else, with this model.
    Pipeline,
}

/// A reading that is legitimate, but may not be what the owner of a file means.
///
/// The command line prints warnings to stderr and lists them under `warnings` in its JSON;
/// `--strict` turns them into errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Warning {
    /// What it is about.
    pub kind: WarningKind,
    /// What was seen, where, and how it was read.
    pub message: String,
}

impl Warning {
    /// A warning with this message.
    #[must_use]
    pub fn new(kind: WarningKind, message: impl Into<String>) -> Self {
        Self { kind, message: clip(&message.into()) }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
