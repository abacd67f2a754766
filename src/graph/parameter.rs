//! Tensors of the file as maps: learned tokens and their positions.

use std::ops::Range;

use crate::shape::{Extent, Map};

/// Rows of a tensor as the voxels of a map, counted row by row; where there are fewer rows than voxels, over and over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The tensor.
    pub tensor: String,
    /// Its rows and their channels.
    pub shape: [u32; 2],
    /// The tensor has an axis of one before its rows.
    pub batched: bool,
    /// The rows that are taken.
    pub rows: Range<u32>,
    /// Extent of the map.
    pub extent: Extent,
    /// The extent is that of one plane, and each plane of the network's input has one: 2D networks over the slices of a volume.
    pub per_plane: bool,
}

impl Parameter {
    /// Shape of the tensor in the file.
    pub(super) fn tensor_shape(&self) -> Vec<usize> {
        let batch = if self.batched { &[1][..] } else { &[] };
        batch.iter().chain(&self.shape).map(|&n| n as usize).collect()
    }

    /// Rows that are taken.
    pub(crate) fn count(&self) -> u32 {
        self.rows.end.saturating_sub(self.rows.start)
    }

    /// The map, where the network's input has so many planes.
    pub(super) fn infer(&self, planes: u32) -> Result<Map, String> {
        let rows = u64::from(self.count());
        if self.per_plane && self.extent.d != 1 {
            return Err(format!("{} is no extent of one plane", self.extent));
        }
        if rows == 0 || self.rows.end > self.shape[0] || self.shape[1] == 0 || !self.extent.voxels().is_multiple_of(rows) {
            return Err(format!("rows {:?} of {:?} do not fill {}", self.rows, self.shape, self.extent));
        }
        let extent = if self.per_plane { Extent { d: planes, ..self.extent } } else { self.extent };
        if extent.voxels() > u64::from(u32::MAX) {
            return Err("the map is beyond 32-bit indices".into());
        }
        Ok(Map::new(extent, self.shape[1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_of_the_input_have_the_rows_each() {
        let extent = Extent::new(1, 2, 3);
        let parameter = Parameter { tensor: "t".into(), shape: [9, 5], batched: false, rows: 1..7, extent, per_plane: true };
        assert_eq!(parameter.infer(4), Ok(Map::new(Extent::new(4, 2, 3), 5)));
        let volume = Parameter { per_plane: false, ..parameter.clone() };
        assert_eq!(volume.infer(4), Ok(Map::new(extent, 5)));
        let planes = Parameter { extent: Extent::new(2, 1, 3), ..parameter.clone() };
        assert!(planes.infer(4).is_err_and(|e| e.contains("one plane")));
        let beyond = Parameter { rows: 4..10, ..parameter.clone() };
        assert!(beyond.infer(4).is_err_and(|e| e.contains("4..10")));
        assert!(parameter.infer(u32::MAX).is_err_and(|e| e.contains("32-bit")));
        assert_eq!((parameter.tensor_shape(), Parameter { batched: true, ..parameter }.tensor_shape()), (vec![9, 5], vec![1, 9, 5]));
    }
}
