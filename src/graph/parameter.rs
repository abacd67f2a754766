//! Tensors of the file as maps: learned tokens and their positions.

use std::ops::Range;

use crate::shape::{Extent, Map};

/// Rows of a tensor as the voxels of a map, counted row by row; where there are fewer rows than voxels, over and over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The tensor.
    pub tensor: String,
    /// Its shape; the last axis is that of the channels, all others together are the rows.
    pub shape: Vec<u32>,
    /// The rows that are taken.
    pub rows: Range<u32>,
    /// Extent of the map.
    pub extent: Extent,
}

impl Parameter {
    /// Rows that are taken.
    pub(crate) fn count(&self) -> u32 {
        self.rows.end.saturating_sub(self.rows.start)
    }

    pub(super) fn infer(&self) -> Result<Map, String> {
        let rows = u64::from(self.count());
        let (&channels, outer) = self.shape.split_last().ok_or("takes rows of a single number")?;
        let all = outer.iter().try_fold(1u32, |all, &n| all.checked_mul(n)).ok_or("has more rows than 32 bits count")?;
        if rows == 0 || self.rows.end > all || channels == 0 || !self.extent.voxels().is_multiple_of(rows) {
            return Err(format!("rows {:?} of {:?} do not fill {}", self.rows, self.shape, self.extent));
        }
        if self.extent.voxels() > u64::from(u32::MAX) {
            return Err("the map is beyond 32-bit indices".into());
        }
        Ok(Map::new(self.extent, channels))
    }
}
