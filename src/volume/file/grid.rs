//! The grid of a file.

use std::path::Path;

use ::nifti::NiftiHeader;

use crate::scan::FileGeometry;
use crate::shape::Extent;
use crate::volume::closest::{self, cross};
use crate::volume::{Affine, Axes, Volume, VolumeError, VolumeErrorKind};
use crate::warning::{Warning, WarningKind};

/// Axes are told as sheared from this deviation from a right angle in degrees.
const SHEAR: f64 = 0.5;

/// The grid that a header describes: channels, and the axes k, j, i.
#[derive(Clone, Copy, Debug)]
pub(in crate::volume) struct Grid {
    pub(in crate::volume) channels: u32,
    pub(in crate::volume) extent: Extent,
    pub(in crate::volume) spacing: [f64; 3],
    pub(in crate::volume) axes: Axes,
    pub(in crate::volume) affine: Affine,
}

impl Grid {
    /// The grid of `size` voxels along i, j, k, whose steps and origin are vectors to the right,
    /// the front and the head in mm; `None` if the steps do not span space. A step along k that is
    /// 0 is replaced by the normal of a single slice.
    pub(in crate::volume) fn new(channels: u32, size: [u32; 3], mut steps: [[f64; 3]; 3], origin: [f64; 3]) -> Option<Self> {
        let length = |step: [f64; 3]| step.iter().map(|x| x * x).sum::<f64>().sqrt();
        if size[2] == 1 && length(steps[2]) == 0.0 {
            let normal = cross(steps[0], steps[1]);
            steps[2] = normal.map(|x| x / length(normal));
        }
        let spacing = steps.map(length);
        if spacing.iter().any(|s| !(s.is_finite() && *s > 0.0)) || origin.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let matrix = [0, 1, 2].map(|row| steps.map(|step| step[row]));
        let [i, j, k] = closest::directions(matrix)?;
        Some(Self {
            channels,
            extent: Extent::new(size[2], size[1], size[0]),
            spacing: [spacing[2], spacing[1], spacing[0]],
            axes: Axes::new([k, j, i]).ok()?,
            affine: Affine { steps: [steps[2], steps[1], steps[0]], origin },
        })
    }

    /// The values of all channels, unless they are beyond 64 bits.
    pub(in crate::volume) fn values(&self) -> Option<u64> {
        let [d, h, w] = self.extent.axes().map(u64::from);
        d.checked_mul(h)?.checked_mul(w)?.checked_mul(u64::from(self.channels))
    }

    /// The values of all channels and their bytes, `size` each.
    pub(in crate::volume) fn claims(&self, path: &Path, size: usize) -> Result<[u64; 2], VolumeError> {
        let both = self.values().and_then(|values| Some([values, values.checked_mul(size as u64)?]));
        both.ok_or_else(|| self.too_large(path))
    }

    pub(in crate::volume) fn too_large(&self, path: &Path) -> VolumeError {
        let text = format!("{}: {} channels of {} voxels are too many for any machine", path.display(), self.channels, self.extent);
        VolumeError::new(VolumeErrorKind::TooLarge, text)
    }

    /// Values on the grid.
    pub(in crate::volume) fn volume<T>(&self, data: Vec<T>) -> Result<Volume<T>, VolumeError> {
        Ok(Volume::new(self.channels, self.extent, self.spacing, self.axes, data)?.with_affine(self.affine))
    }

    /// A warning if the axes are not at right angles, as networks take them to be.
    pub(in crate::volume) fn shear(&self, path: &Path) -> Option<Warning> {
        let shear = self.affine.shear_degrees();
        (shear > SHEAR).then(|| {
            let text = format!(
                "{} is sheared: its axes are {shear:.1} degrees off a right angle; networks see its voxels as if they were \
                 at right angles",
                path.display()
            );
            Warning::new(WarningKind::Geometry, text)
        })
    }

    /// The geometry that nnU-Net's and MONAI's readers take from other files than NIfTI: the grid
    /// itself.
    pub(in crate::volume) fn geometry(&self, planar: bool) -> FileGeometry {
        FileGeometry { pixdim: self.spacing, unit_mm: 1.0, planar, qform: true, monai: None }
    }

    /// A NIfTI-1 header of the grid, to write results by.
    pub(in crate::volume) fn header(&self, planar: bool) -> NiftiHeader {
        let mut header = NiftiHeader { xyzt_units: 2, ..NiftiHeader::default() };
        header.set_grid(self.extent, &self.affine);
        if planar {
            header.dim[0] = 2;
        }
        header
    }
}

/// Writing a grid into a NIfTI-1 header.
pub(in crate::volume) trait SetGrid {
    /// Sets dimensions, pixdim and sform (in mm), and no qform.
    fn set_grid(&mut self, extent: Extent, affine: &Affine);
}

impl SetGrid for NiftiHeader {
    #[expect(clippy::cast_possible_truncation, reason = "headers hold f32")]
    fn set_grid(&mut self, extent: Extent, affine: &Affine) {
        // what is too many for a header is refused as it is written
        let [d, h, w] = extent.axes().map(|n| u16::try_from(n).unwrap_or(u16::MAX));
        self.dim = [3, w, h, d, 1, 1, 1, 1];
        let [z, y, x] = affine.spacing().map(|s| s as f32);
        self.pixdim[..4].copy_from_slice(&[1.0, x, y, z]);
        let row = |row: usize| {
            let [k, j, i] = affine.steps.map(|step| step[row] as f32);
            [i, j, k, affine.origin[row] as f32]
        };
        (self.sform_code, self.qform_code) = (1, 0);
        (self.srow_x, self.srow_y, self.srow_z) = (row(0), row(1), row(2));
    }
}

/// Steps and origin along patient axes to the left, the back and the head, as ITK has them, turned
/// to the right, the front and the head.
pub(in crate::volume) fn from_lps(steps: [[f64; 3]; 3], origin: [f64; 3]) -> ([[f64; 3]; 3], [f64; 3]) {
    let turn = |[x, y, z]: [f64; 3]| [0.0 - x, 0.0 - y, z];
    (steps.map(turn), turn(origin))
}
