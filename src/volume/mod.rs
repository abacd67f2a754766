//! Medical volumes on the host: reading, orienting, resampling, scaling, scoring and drawing them.
//!
//! A [`Volume`] is the one type that these parts share: voxel values in the layout the network wants, `[C][D][H][W]`,
//! with the spacing in millimetres and the patient direction of every axis. Nothing here knows of the device.

pub mod affine;
pub(crate) mod claim;
pub(crate) mod closest;
#[cfg(feature = "nifti")]
pub mod file;
pub mod intensity;
pub(crate) mod interpolate;
pub mod legend;
pub mod metrics;
#[cfg(feature = "nifti")]
pub mod nifti;
pub mod orient;
#[cfg(feature = "cli")]
pub mod picture;
pub mod resample;
pub mod spline;
pub mod statistics;
#[cfg(feature = "surfaces")]
pub mod surface;
#[cfg(any(feature = "nifti", feature = "cli"))]
mod whole;

use std::error::Error;
use std::fmt;

pub use affine::Affine;
pub use intensity::Intensity;
pub use legend::{Class, Legend};
pub use metrics::{LabelScore, Summary, TOLERANCE_MM, evaluate, evaluate_at};
pub use orient::{Axes, Direction, reorient};
pub use statistics::{Intensities, LabelStatistics, statistics, statistics_csv, statistics_table};
#[cfg(any(feature = "nifti", feature = "cli"))]
pub use whole::{stop_writing, write_whole};

use crate::error::clip;
use crate::shape::Extent;

/// Voxel values with their grid: `channels` times `extent`, in the layout `[C][D][H][W]`.
///
/// Build one with [`Volume::new`], which checks it. The fields are public to read; code that changes them keeps
/// `data.len() == channels * D * H * W`, which every function of this module relies on.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume<T> {
    /// The number of channels `C`, at least 1.
    pub channels: u32,
    /// The voxels along D, H and W, each at least 1.
    pub extent: Extent,
    /// The distance between voxel centres along D, H and W, in millimetres.
    pub spacing: [f64; 3],
    /// The patient directions in which D, H and W increase.
    pub axes: Axes,
    /// The values in `[C][D][H][W]` order, W fastest.
    pub data: Vec<T>,
    /// Where the voxels lie in the patient.
    affine: Affine,
}

impl<T> Volume<T> {
    /// Joins values and their grid, after checking that they fit.
    ///
    /// `spacing` is in millimetres, in D, H, W order; `data` is `[C][D][H][W]`.
    ///
    /// # Errors
    /// [`VolumeErrorKind::GridMismatch`] if `data` does not hold `channels * D * H * W` values or holds none;
    /// [`VolumeErrorKind::Format`] if a spacing is not a finite, positive number.
    pub fn new(channels: u32, extent: Extent, spacing: [f64; 3], axes: Axes, data: Vec<T>) -> Result<Self, VolumeError> {
        let needed = [extent.d, extent.h, extent.w].iter().fold(u128::from(channels), |n, &s| n * u128::from(s));
        if needed == 0 || data.len() as u128 != needed {
            return Err(VolumeError::new(
                VolumeErrorKind::GridMismatch,
                format!("{channels} channels of {extent} voxels need {needed} values (at least one), but there are {}", data.len()),
            ));
        }
        if spacing.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
            return Err(VolumeError::new(
                VolumeErrorKind::Format,
                format!("the spacing {spacing:?} mm is not three finite, positive numbers"),
            ));
        }
        Ok(Self { channels, extent, spacing, axes, data, affine: Affine::orthogonal(spacing, axes) })
    }

    /// Joins values `[C][D][H][W]` and an affine, which says all of the grid: the spacings are the
    /// lengths of its steps, the axes the patient directions that these are closest to.
    ///
    /// # Errors
    /// As [`Volume::new`]; [`VolumeErrorKind::Format`] if the steps do not span space or a number
    /// is not finite.
    pub fn on_affine(channels: u32, extent: Extent, affine: Affine, data: Vec<T>) -> Result<Self, VolumeError> {
        let columns = [0, 1, 2].map(|row| [2, 1, 0].map(|axis| affine.steps[axis][row]));
        let finite = affine.origin.iter().all(|x| x.is_finite());
        let Some([i, j, k]) = closest::directions(columns).filter(|_| finite) else {
            let text = format!(
                "the affine with steps {:?} and origin {:?} is degenerate: its steps must span space and its numbers be finite",
                affine.steps, affine.origin
            );
            return Err(VolumeError::new(VolumeErrorKind::Format, text));
        };
        Ok(Self::new(channels, extent, affine.spacing(), Axes::new([k, j, i])?, data)?.with_affine(affine))
    }

    /// The same volume where `affine` says that it lies. Without it the grid is orthogonal and its
    /// first voxel lies at the origin.
    ///
    /// `spacing` and `axes` stay as they are: they are what a network is given, and a header may say
    /// something else there than its affine.
    #[must_use]
    pub fn with_affine(self, affine: Affine) -> Self {
        Self { affine, ..self }
    }

    /// Extent, spacing, axes and origin, for messages.
    fn place(&self) -> String {
        let [[d, h, w], [x, y, z]] = [self.spacing, self.affine.origin].map(|v| v.map(|x| format!("{x:.4}")));
        format!("{} voxels of {d}x{h}x{w} mm along {} from ({x}, {y}, {z})", self.extent, self.axes)
    }

    /// The map from voxel indices to patient coordinates.
    #[must_use]
    pub fn affine(&self) -> &Affine {
        &self.affine
    }

    /// The values of one channel in `[D][H][W]` order, or `None` if there is no such channel.
    #[must_use]
    pub fn channel(&self, channel: u32) -> Option<&[T]> {
        let voxels = self.data.len() / self.channels.max(1) as usize;
        self.data.chunks_exact(voxels.max(1)).nth(channel as usize)
    }

    /// The volume of one voxel in millilitres: the determinant of its affine.
    #[must_use]
    pub fn voxel_ml(&self) -> f64 {
        self.affine.voxel_volume() / 1000.0
    }

    /// Other values over the same field, resampled to `extent`; the caller vouches for the length.
    pub(crate) fn regrid<U>(&self, extent: Extent, spacing: [f64; 3], data: Vec<U>) -> Volume<U> {
        let (from, to) = (sizes(self.extent), sizes(extent));
        let scale = [0, 1, 2].map(|axis| from[axis] as f64 / to[axis].max(1) as f64);
        let affine = self.affine.scaled(scale);
        Volume { channels: self.channels, extent, spacing, axes: self.axes, data, affine }
    }

    /// A box of the voxels, or one around them, whose first voxel has the indices `first`; the caller
    /// vouches for the length.
    pub(crate) fn boxed<U>(&self, extent: Extent, first: [i64; 3], data: Vec<U>) -> Volume<U> {
        let affine = self.affine.shifted(first.map(|i| i as f64));
        Volume { channels: self.channels, extent, spacing: self.spacing, axes: self.axes, data, affine }
    }
}

/// Checks that two volumes lie on the same grid in the patient: the same extent and axes, spacings
/// to one part in a thousand, and every corner voxel in the same place but for rounding, which is
/// one thousandth of the smallest spacing and what f32 loses of the coordinates.
pub(crate) fn same_grid<T, U>(a: &Volume<T>, a_name: &str, b: &Volume<U>, b_name: &str) -> Result<(), VolumeError> {
    let close = a.spacing.iter().zip(&b.spacing).all(|(x, y)| (x - y).abs() <= 1e-3 * x.abs().max(y.abs()));
    let apart = a.affine.distance(&b.affine, a.extent.axes());
    let least = a.affine.spacing().into_iter().fold(f64::INFINITY, f64::min);
    let far = a.affine.origin.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    if a.extent == b.extent && a.axes == b.axes && close && apart <= 1e-3 * least + 1e-6 * far {
        return Ok(());
    }
    let why = if a.extent == b.extent && a.axes == b.axes {
        format!("the same voxel lies up to {apart:.3} mm apart")
    } else {
        "their extents or axes differ".into()
    };
    Err(VolumeError::new(
        VolumeErrorKind::GridMismatch,
        format!(
            "the {a_name} and the {b_name} lie on different grids ({why}): {} and {}; \
             resample one onto the grid of the other first",
            a.place(),
            b.place()
        ),
    ))
}

/// The three sizes as indices.
pub(crate) fn sizes(extent: Extent) -> [usize; 3] {
    [extent.d as usize, extent.h as usize, extent.w as usize]
}

/// What went wrong with a volume or its file; see [`VolumeError::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VolumeErrorKind {
    /// The file, or the folder to write to, does not exist.
    NotFound,
    /// The file could not be read or written.
    Io,
    /// The content is damaged, cut short, or not what its format says.
    Format,
    /// Some voxels are NaN or infinite.
    NonFinite,
    /// Two things that must share a grid do not, or values do not fill their grid.
    GridMismatch,
    /// The content is sound but of a sort that is not handled.
    Unsupported,
    /// What would be made of it does not fit into the machine.
    TooLarge,
}

/// A failure to read, write or combine volumes. The message names the file and what to try.
#[derive(Debug)]
pub struct VolumeError {
    kind: VolumeErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl VolumeError {
    pub(crate) fn new(kind: VolumeErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: clip(&message.into()), source: None }
    }

    #[cfg(any(feature = "nifti", feature = "cli"))]
    pub(crate) fn caused(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The sort of failure, for programs.
    #[must_use]
    pub fn kind(&self) -> VolumeErrorKind {
        self.kind
    }
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for VolumeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_sendable<T: Send + Sync + 'static>() {}

    #[test]
    fn constructor_checks_lengths_and_spacing() -> Result<(), VolumeError> {
        let axes: Axes = "SAR".parse()?;
        let extent = Extent::new(2, 3, 4);
        let good = Volume::new(2, extent, [1.0, 2.0, 3.0], axes, vec![0u8; 48])?;
        assert_eq!(good.channel(1).map(<[u8]>::len), Some(24));
        assert_eq!(good.channel(2), None);
        assert!((good.voxel_ml() - 0.006).abs() < 1e-15);
        let kind = |r: Result<Volume<u8>, VolumeError>| r.err().map(|e| e.kind());
        assert_eq!(kind(Volume::new(2, extent, [1.0; 3], axes, vec![0; 47])), Some(VolumeErrorKind::GridMismatch));
        assert_eq!(kind(Volume::new(1, Extent::new(0, 3, 4), [1.0; 3], axes, vec![])), Some(VolumeErrorKind::GridMismatch));
        assert_eq!(kind(Volume::new(1, extent, [1.0, 0.0, 1.0], axes, vec![0; 24])), Some(VolumeErrorKind::Format));
        Ok(())
    }

    #[test]
    fn an_affine_tells_spacing_and_axes() -> Result<(), VolumeError> {
        let affine = Affine { steps: [[0.0, 0.0, 3.0], [0.0, -2.0, 0.0], [1.5, 0.0, 0.0]], origin: [1.0, 2.0, 3.0] };
        let v = Volume::on_affine(1, Extent::new(2, 3, 4), affine, vec![0u8; 24])?;
        assert_eq!((v.spacing, v.axes, *v.affine()), ([3.0, 2.0, 1.5], "SPR".parse()?, affine));
        let flat = Affine { steps: [[0.0, 0.0, 3.0], [0.0, -2.0, 0.0], [0.0, -1.0, 0.0]], ..affine };
        let far = Affine { origin: [f64::NAN, 0.0, 0.0], ..affine };
        for wrong in [flat, far] {
            let refused = Volume::on_affine(1, Extent::new(2, 3, 4), wrong, vec![0u8; 24]);
            assert_eq!(refused.err().map(|e| e.kind()), Some(VolumeErrorKind::Format));
        }
        Ok(())
    }

    #[test]
    fn errors_cross_threads() {
        is_sendable::<VolumeError>();
        is_sendable::<Volume<f32>>();
    }
}
