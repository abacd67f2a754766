//! NIfTI-1 files: scans and labels in; labels and maps out, on exactly the grid of the scan.
//!
//! A file's voxels (i fastest) become `[k][j][i]`, so the extent is `(nk, nj, ni)` and the axes are those of the header
//! in k, j, i order. Decoding is our own: the `nifti` crate reads headers and writes files, but its voxel reader
//! panics where `bitpix` and `datatype` disagree and ignores `vox_offset` where no extension is announced.

mod affine;
mod extended;
mod file;
mod write;

use std::io;
use std::path::Path;

pub use ::nifti::NiftiHeader;
use rayon::prelude::*;

use self::affine::Geometry;
use self::file::Stored;
use self::write::store;
use super::{Affine, Axes, Volume, VolumeError, VolumeErrorKind};
use crate::export::Probabilities;
use crate::scan::{FileGeometry, Placed};
use crate::shape::Extent;
use crate::warning::Warning;

/// `NIFTI_INTENT_LABEL`: voxels are indices into a list of names.
const INTENT_LABEL: i16 = 1002;

/// A scan as read: its header, kept for writing results on the same grid, and its voxels.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The file's header as stored.
    pub header: NiftiHeader,
    /// The voxels with slope and intercept applied, `[C][k][j][i]`; C is the 4th dimension, or 1.
    pub image: Volume<f32>,
    /// Where the header contradicts itself or leaves its geometry open, and how it was read.
    pub warnings: Vec<Warning>,
}

impl<'a> From<&'a Scan> for crate::Scan<'a> {
    fn from(scan: &'a Scan) -> Self {
        let header = &scan.header;
        let pixdim = [3, 2, 1].map(|axis| match f64::from(header.pixdim[axis]).abs() {
            0.0 => 1.0,
            size => size,
        });
        let placed = |g: Geometry| {
            let Geometry { directions: [i, j, k], spacing: [x, y, z], affine } = g;
            let axes = Axes::new([k, j, i]).ok()?;
            Some(Placed { spacing: [z, y, x], axes, affine: affine.reoriented([2, 1, 0], [None; 3]) })
        };
        let header = FileGeometry {
            pixdim,
            unit_mm: millimetres(header),
            planar: header.dim[0] == 2,
            qform: header.qform_code > 0,
            monai: affine::rectified(header).and_then(placed),
        };
        Self { image: &scan.image, warnings: &scan.warnings, header }
    }
}

/// Reads a scan from `.nii`, `.nii.gz`, or a `.hdr`/`.img` pair (either compressed or not; the content decides).
///
/// 2D and 3D images have one channel; the 4th dimension (or the 5th, if the 4th is 1) is the channels. Every integer
/// and real datatype up to 64 bits is read; `scl_slope` and `scl_inter` are applied in f64 before rounding to f32.
///
/// # Errors
/// [`VolumeErrorKind::NotFound`], [`VolumeErrorKind::Io`], [`VolumeErrorKind::Format`] (not NIfTI-1, cut short, a
/// contradictory header, a degenerate affine), [`VolumeErrorKind::NonFinite`] (with the count and the first place), or
/// [`VolumeErrorKind::Unsupported`] (NIfTI-2, complex, colour and 128-bit data, more dimensions).
pub fn read(path: impl AsRef<Path>) -> Result<Scan, VolumeError> {
    let stored = Stored::open(path.as_ref())?;
    let data = stored.decode(narrow)?;
    let bad = data.par_iter().filter(|x| !x.is_finite()).count();
    if bad > 0 {
        let first = data.iter().position(|x| !x.is_finite()).unwrap_or(0);
        return Err(VolumeError::new(
            VolumeErrorKind::NonFinite,
            format!(
                "{bad} voxels of {} are not finite numbers in f32, the first at {}; replace them (for example by the \
                 background value) and try again",
                stored.path.display(),
                stored.place(first)
            ),
        ));
    }
    let warnings = warnings(&stored.header, &stored.path);
    let Grid { channels, extent, spacing, axes, affine } = stored.grid;
    let image = Volume::new(channels, extent, spacing, axes, data)?.with_affine(affine);
    Ok(Scan { header: stored.header, image, warnings })
}

/// Where the header of a file contradicts itself (pixdim, sform, qform) or says nothing of its
/// orientation, and how it is read; the file's name is for the messages.
#[must_use]
pub fn warnings(header: &NiftiHeader, file: &Path) -> Vec<Warning> {
    let name = file.display().to_string();
    affine::geometry(header).map_or_else(Vec::new, |g| affine::contradictions(header, &g, &name))
}

/// Reads a scan whose channels lie in files of their own, in this order, on one grid. The header is that of the first.
///
/// # Errors
/// Those of [`read`], and [`VolumeErrorKind::GridMismatch`] for files on different grids, or that hold several channels each.
pub fn read_channels(paths: &[impl AsRef<Path>]) -> Result<Scan, VolumeError> {
    let [first, others @ ..] = paths else {
        return Err(VolumeError::new(VolumeErrorKind::NotFound, "no file was named"));
    };
    let mut scan = read(first)?;
    for path in others {
        let Scan { image: more, warnings, .. } = read(path)?;
        scan.warnings.extend(warnings);
        let [a, b] = [first.as_ref(), path.as_ref()].map(|p| p.display().to_string());
        super::same_grid(&scan.image, &a, &more, &b)?;
        if more.channels != 1 {
            return Err(VolumeError::new(VolumeErrorKind::GridMismatch, format!("{b} holds {} channels, must hold one", more.channels)));
        }
        scan.image.data.extend(more.data);
        scan.image.channels += 1;
    }
    Ok(scan)
}

/// Reads a label volume: as [`read`], but the voxels must be whole numbers from 0 to 65535 in one channel.
///
/// # Errors
/// Those of [`read`], and [`VolumeErrorKind::Format`] for values that are no labels.
pub fn read_labels(path: impl AsRef<Path>) -> Result<(NiftiHeader, Volume<u16>), VolumeError> {
    let stored = Stored::open(path.as_ref())?;
    let Grid { channels, extent, spacing, axes, affine } = stored.grid;
    let name = stored.path.display();
    if channels != 1 {
        return Err(VolumeError::new(VolumeErrorKind::Format, format!("{name} has {channels} channels, but a label volume has one")));
    }
    let read = stored.decode(|x| (x, label(x)))?;
    if let Some(first) = read.iter().position(|(_, label)| label.is_none()) {
        return Err(VolumeError::new(
            VolumeErrorKind::Format,
            format!(
                "{name} holds {} at {}, but labels are whole numbers from 0 to 65535; is it a scan or a probability map?",
                read[first].0,
                stored.place(first)
            ),
        ));
    }
    let data = read.into_iter().map(|(_, label)| label.unwrap_or(0)).collect();
    let labels = Volume::new(channels, extent, spacing, axes, data)?.with_affine(affine);
    Ok((stored.header, labels))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is checked to be a whole number in range")]
fn label(x: f64) -> Option<u16> {
    (x.fract() == 0.0 && (0.0..=65535.0).contains(&x)).then_some(x as u16)
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point; overflow is reported")]
fn narrow(x: f64) -> f32 {
    x as f32
}

/// Writes labels on the grid of `header` (a scan's, from [`read`]): its dimensions (without further channels), spacing,
/// qform, sform and units, as u8, or as u16 if a label is above 255.
///
/// The labels must be in the file's own axes, as read. The file appears whole or not at all: it is written in a
/// temporary folder beside `path` and moved into place. An existing file is replaced.
///
/// # Errors
/// [`VolumeErrorKind::Unsupported`] if `path` ends in neither `.nii` nor `.nii.gz`; [`VolumeErrorKind::GridMismatch`];
/// [`VolumeErrorKind::NotFound`] (no such folder) or [`VolumeErrorKind::Io`].
pub fn write_labels(path: impl AsRef<Path>, header: &NiftiHeader, labels: &Volume<u16>) -> Result<(), VolumeError> {
    let path = path.as_ref();
    let grid = Grid::of(header, path)?;
    grid.check(labels.extent, labels.axes, path)?;
    if labels.channels != 1 {
        let (header, shape) = of_maps(header, labels.extent, labels.channels);
        return store_labels(path, &NiftiHeader { intent_code: INTENT_LABEL, ..header }, &shape, &labels.data);
    }
    let mut shape: Vec<usize> = header.dim[1..].iter().map(|n| usize::from(*n)).collect();
    shape.truncate(usize::from(if grid.channels == 1 { header.dim[0] } else { 3 }).min(7));
    let header = NiftiHeader { intent_code: INTENT_LABEL, ..plain(header) };
    store_labels(path, &header, &shape, &labels.data)
}

/// Labels in a byte each, or in two where one is above 255.
fn store_labels(path: &Path, header: &NiftiHeader, shape: &[usize], labels: &[u16]) -> Result<(), VolumeError> {
    if labels.par_iter().all(|&label| label <= 255) {
        #[expect(clippy::cast_possible_truncation, reason = "they are at most 255")]
        return store::<u8>(path, header, shape, |voxels| voxels.write(labels.iter().map(|&label| label as u8)));
    }
    store::<u16>(path, header, shape, |voxels| voxels.write(labels.iter().copied()))
}

/// Writes f32 maps (probabilities, attention) on the grid of `header` as a 4D file `(x, y, z, channel)`, otherwise as
/// [`write_labels`].
///
/// # Errors
/// Those of [`write_labels`].
pub fn write_maps(path: impl AsRef<Path>, header: &NiftiHeader, maps: &Volume<f32>) -> Result<(), VolumeError> {
    let path = path.as_ref();
    Grid::of(header, path)?.check(maps.extent, maps.axes, path)?;
    let (header, shape) = of_maps(header, maps.extent, maps.channels);
    store::<f32>(path, &header, &shape, |voxels| voxels.write(maps.data.iter().copied()))
}

/// The same for probabilities, of which no more than a class is held at a time.
///
/// # Errors
/// Those of [`write_labels`], and [`VolumeErrorKind::Io`] where scores that wait in a file cannot be
/// read.
pub fn write_probabilities(path: impl AsRef<Path>, header: &NiftiHeader, maps: &Probabilities) -> Result<(), VolumeError> {
    let path = path.as_ref();
    let (extent, axes) = maps.grid();
    Grid::of(header, path)?.check(extent, axes, path)?;
    let (header, shape) = of_maps(header, extent, maps.classes());
    store::<f32>(path, &header, &shape, |voxels| {
        let mut write = |class: &Volume<f32>| voxels.write(class.data.iter().copied()).map_err(Stopped::Writing);
        maps.each(&mut write).map_err(|stopped| match stopped {
            Stopped::Writing(e) => e,
            Stopped::Reading(e) => io::Error::other(e),
        })
    })
}

/// Why not all probabilities were written.
enum Stopped {
    Writing(io::Error),
    Reading(VolumeError),
}

impl From<VolumeError> for Stopped {
    fn from(e: VolumeError) -> Self {
        Self::Reading(e)
    }
}

/// The header of maps, and their shape.
fn of_maps(header: &NiftiHeader, extent: Extent, channels: u32) -> (NiftiHeader, [usize; 4]) {
    let mut header = plain(header);
    if !(header.pixdim[4].is_finite() && header.pixdim[4] > 0.0) {
        header.pixdim[4] = 1.0;
    }
    (header, [extent.w, extent.h, extent.d, channels].map(|n| n as usize))
}

/// The unit of length of a header in millimetres; none stands for millimetres.
#[must_use]
pub fn millimetres(header: &NiftiHeader) -> f64 {
    affine::unit(header)
}

/// A header for results on the grid of `volume` in place of the scan's: with its dimensions,
/// spacing and, as sform, affine (in mm, the scan's unit); all else is the scan's.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "headers hold f32, and extents of files u16")]
pub fn header_on<T>(scan: &NiftiHeader, volume: &Volume<T>) -> NiftiHeader {
    let mut header = scan.clone();
    let [d, h, w] = volume.extent.axes().map(|n| n as u16);
    header.dim = [3, w, h, d, 1, 1, 1, 1];
    let [z, y, x] = volume.affine().spacing().map(|s| s as f32);
    header.pixdim[..4].copy_from_slice(&[1.0, x, y, z]);
    if header.xyzt_units & 7 != 0 {
        header.xyzt_units = header.xyzt_units & !7 | 2;
    }
    let affine = volume.affine();
    let row = |row: usize| {
        let [k, j, i] = affine.steps.map(|step| step[row] as f32);
        [i, j, k, affine.origin[row] as f32]
    };
    (header.sform_code, header.qform_code) = (1, 0);
    (header.srow_x, header.srow_y, header.srow_z) = (row(0), row(1), row(2));
    header
}

/// The header with everything that describes the scan's values, not its grid, cleared.
fn plain(header: &NiftiHeader) -> NiftiHeader {
    NiftiHeader {
        intent_code: 0,
        intent_p1: 0.0,
        intent_p2: 0.0,
        intent_p3: 0.0,
        intent_name: [0; 16],
        scl_slope: 1.0,
        scl_inter: 0.0,
        cal_min: 0.0,
        cal_max: 0.0,
        glmin: 0,
        glmax: 0,
        ..header.clone()
    }
}

/// The grid that a header describes.
#[derive(Clone, Copy, Debug)]
struct Grid {
    channels: u32,
    extent: Extent,
    spacing: [f64; 3],
    axes: Axes,
    affine: Affine,
}

impl Grid {
    fn of(header: &NiftiHeader, path: &Path) -> Result<Self, VolumeError> {
        let name = path.display();
        let bad = |kind, what: String| Err(VolumeError::new(kind, format!("{name}: {what}")));
        let rank = usize::from(header.dim[0]);
        let used = header.dim.get(1..=rank).unwrap_or_default();
        if used.is_empty() || used.iter().any(|n| *n == 0 || *n > 0x7fff) {
            let text = format!("the header's dimensions {:?} are not all from 1 to 32767", header.dim);
            return bad(VolumeErrorKind::Format, text);
        }
        let n = |axis: usize| used.get(axis).map_or(1, |n| u32::from(*n));
        let more: Vec<u32> = (3..rank).map(n).filter(|n| *n > 1).collect();
        if rank < 2 || more.len() > 1 {
            let text = format!("dimensions {used:?} are not a 2D or 3D image with at most one axis of channels");
            return bad(VolumeErrorKind::Unsupported, text);
        }
        let Some(Geometry { directions: [i, j, k], spacing: [x, y, z], affine }) = affine::geometry(header) else {
            let text = "the affine is degenerate (its voxel axes do not span space); repair the sform or qform";
            return bad(VolumeErrorKind::Format, text.into());
        };
        Ok(Self {
            channels: more.first().copied().unwrap_or(1),
            extent: Extent::new(n(2), n(1), n(0)),
            spacing: [z, y, x],
            axes: Axes::new([k, j, i])?,
            affine: affine.reoriented([2, 1, 0], [None; 3]),
        })
    }

    fn check(&self, extent: Extent, axes: Axes, path: &Path) -> Result<(), VolumeError> {
        if self.extent == extent && self.axes == axes {
            return Ok(());
        }
        Err(VolumeError::new(
            VolumeErrorKind::GridMismatch,
            format!(
                "cannot write {}: the volume has {extent} voxels along {axes}, but the header {} along {}; reorient or resample it",
                path.display(),
                self.extent,
                self.axes
            ),
        ))
    }
}

#[cfg(test)]
mod tests;
