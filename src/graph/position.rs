//! Positional encodings that are computed rather than learned.

use crate::kernels::Angles;

/// A sinusoidal positional encoding that is added to a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionalEncoding {
    /// Which channels encode which axis, and how fast they turn.
    pub angles: Angles,
    /// A learned vector that is added to every voxel besides.
    pub level: Option<LevelEmbedding>,
}

/// A row of a tensor of the file: what tells a level of tokens from the others in CoTr.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelEmbedding {
    /// The tensor.
    pub tensor: String,
    /// Its rows and their channels.
    pub shape: [u32; 2],
    /// The row.
    pub row: u32,
}

impl PositionalEncoding {
    pub(super) fn check(&self, channels: u32) -> Result<(), String> {
        match &self.level {
            Some(level) if level.row >= level.shape[0] || level.shape[1] != channels => {
                Err(format!("row {} of {:?} given {channels} channels", level.row, level.shape))
            }
            _ => Ok(()),
        }
    }
}
