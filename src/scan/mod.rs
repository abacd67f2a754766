//! Scans on their way to a network and back.

mod components;
pub(crate) mod crop;
mod filters;
mod forward;
mod grid_sample;
pub(crate) mod largest;
mod linear;
mod previous;
pub(crate) mod reader;
mod recipe;
mod scaling;
mod spacing;
mod splines;
mod values;

use std::borrow::Cow;

use crate::volume::{Affine, Axes, Volume, VolumeError};
use crate::warning::Warning;

pub(crate) use components::bytes as components_bytes;
pub use filters::Filter;
pub(crate) use filters::{Filtered, apply as filter};
pub(crate) use forward::{Forward, Grid, Needs, Undo, cut, resampled, turned};
pub(crate) use grid_sample::Reading;
pub use largest::Largest;
pub use previous::PreviousStage;
pub use reader::Reader;
pub use recipe::{Invert, Recipe, Resample, Restore, ResultStep, Step};
pub(crate) use recipe::{Overlapping, WayBack, is_default};
pub use scaling::Scaling;
pub use splines::{Interpolation, Resampling};
pub use values::Values;

/// A scan to segment: its voxels, and what its file says of where they lie.
///
/// Made of a [`Volume`] or of a [`crate::volume::file::Scan`] by `From`, without copying a voxel.
#[derive(Clone, Debug)]
pub struct Scan<'a> {
    /// The voxels `[C][D][H][W]`, with their grid.
    pub image: &'a Volume<f32>,
    /// Where the file contradicts itself, and how it was read.
    pub warnings: &'a [Warning],
    /// The labels of a cascade's previous stage, on the grid of the voxels.
    pub previous: Option<&'a Volume<u16>>,
    pub(crate) header: FileGeometry,
}

/// What the readers of other frameworks take from a file's header.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FileGeometry {
    /// Voxel sizes along D, H, W, in the file's unit.
    pub(crate) pixdim: [f64; 3],
    /// The file's unit of length in mm.
    pub(crate) unit_mm: f64,
    /// Whether the file holds a 2D image.
    pub(crate) planar: bool,
    /// Whether the header has a qform.
    pub(crate) qform: bool,
    /// The place that MONAI's reader gives the voxels, where it is another.
    pub(crate) monai: Option<Placed>,
}

/// A place of voxels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Placed {
    pub(crate) spacing: [f64; 3],
    pub(crate) axes: Axes,
    pub(crate) affine: Affine,
}

impl<'a> From<&'a Volume<f32>> for Scan<'a> {
    fn from(image: &'a Volume<f32>) -> Self {
        let header = FileGeometry { pixdim: image.spacing, unit_mm: 1.0, planar: false, qform: true, monai: None };
        Self { image, warnings: &[], previous: None, header }
    }
}

impl<'a> Scan<'a> {
    /// The scan with the labels of a cascade's previous stage, on the grid of the voxels.
    #[must_use]
    pub fn with_previous(mut self, labels: &'a Volume<u16>) -> Self {
        self.previous = Some(labels);
        self
    }

    /// The image where MONAI's `NibabelReader` sees it: where `image` lies, unless the spacing of
    /// the sform is not the pixdim, to one part in 100,000. MONAI then takes the qform, with the
    /// pixdim, even if its code is 0.
    ///
    /// # Errors
    /// Those of [`Volume::new`], which a scan from a file does not meet.
    pub fn as_monai_reads(&self) -> Result<Cow<'a, Volume<f32>>, VolumeError> {
        let Some(Placed { spacing, axes, affine }) = self.header.monai else {
            return Ok(Cow::Borrowed(self.image));
        };
        let Volume { channels, extent, ref data, .. } = *self.image;
        let image = Volume::new(channels, extent, spacing, axes, data.clone())?;
        Ok(Cow::Owned(image.with_affine(affine)))
    }
}
