//! NIfTI files, version 1 and 2: scans and labels in; labels and maps out, on exactly the grid of
//! the scan.
//!
//! A file's voxels (i fastest) become `[k][j][i]`, so the extent is `(nk, nj, ni)` and the axes are those of the header
//! in k, j, i order. Decoding is our own: the `nifti` crate reads headers and writes files, but its voxel reader
//! panics where `bitpix` and `datatype` disagree and ignores `vox_offset` where no extension is announced.

mod affine;
mod extended;
mod file;
mod names;
mod second;
mod write;

use std::io;
use std::path::Path;

pub use ::nifti::NiftiHeader;
use rayon::prelude::*;

use self::affine::{Fields, Geometry};
pub(super) use self::file::stored;
use self::write::store;
pub use super::file::Scan;
use super::file::{Grid, SetGrid};
use super::{Axes, Legend, Volume, VolumeError, VolumeErrorKind};
use crate::export::Probabilities;
use crate::scan::{FileGeometry, Placed};
use crate::shape::Extent;
use crate::warning::Warning;

/// `NIFTI_INTENT_LABEL`: voxels are indices into a list of names.
const INTENT_LABEL: i16 = 1002;

/// The geometry that nnU-Net's and MONAI's readers take from a header.
pub(super) fn file_geometry(header: &NiftiHeader) -> FileGeometry {
    file_geometry_of(&header.into())
}

fn file_geometry_of(header: &Fields) -> FileGeometry {
    let pixdim = [3, 2, 1].map(|axis| match header.pixdim[axis].abs() {
        0.0 => 1.0,
        size => size,
    });
    let placed = |g: Geometry| {
        let Geometry { directions: [i, j, k], spacing: [x, y, z], affine } = g;
        let axes = Axes::new([k, j, i]).ok()?;
        Some(Placed { spacing: [z, y, x], axes, affine: affine.reoriented([2, 1, 0], [None; 3]) })
    };
    FileGeometry {
        pixdim,
        unit_mm: affine::unit(header),
        planar: header.rank() == 2,
        qform: header.qform_code > 0,
        monai: affine::rectified(header).and_then(placed),
    }
}

/// Reads a scan from `.nii`, `.nii.gz`, or a `.hdr`/`.img` pair (either compressed or not; the content decides).
///
/// 2D and 3D images have one channel; the 4th dimension (or the 5th, if the 4th is 1) is the channels. Every integer
/// and real datatype up to 64 bits is read; `scl_slope` and `scl_inter` are applied in f64 before rounding to f32.
///
/// # Errors
/// [`VolumeErrorKind::NotFound`], [`VolumeErrorKind::Io`], [`VolumeErrorKind::Format`] (not NIfTI,
/// cut short, a contradictory header, a degenerate affine), [`VolumeErrorKind::NonFinite`] (with
/// the count and the first place), or [`VolumeErrorKind::Unsupported`] (complex, colour and 128-bit
/// data, more dimensions).
pub fn read(path: impl AsRef<Path>) -> Result<Scan, VolumeError> {
    super::file::scan_of(&stored(path.as_ref())?)
}

/// A scan of voxels in memory and the 348 bytes of a NIfTI-1 header, read as their file would be:
/// `data` holds the voxels `[C][k][j][i]` after slope and intercept.
///
/// # Errors
/// [`VolumeErrorKind::Format`] (not such a header, a contradictory one, a degenerate affine),
/// [`VolumeErrorKind::GridMismatch`] if there are not as many voxels as it says,
/// [`VolumeErrorKind::NonFinite`], or [`VolumeErrorKind::Unsupported`] (more dimensions).
pub fn scan(header: &[u8], data: Vec<f32>) -> Result<Scan, VolumeError> {
    let path = Path::new("the image");
    let header = file::header(header, path)?;
    let grid = grid(&(&header).into(), path)?;
    let [h, w] = [grid.extent.h as usize, grid.extent.w as usize];
    let place = |at: usize| format!("voxel ({}, {}, {})", at % w, at / w % h, at / w / h % grid.extent.d as usize);
    let image = grid.volume(super::file::finite(data, path, place)?)?;
    let warnings = warnings(&header, path);
    let mut scan = Scan::new(header, image);
    scan.warnings = warnings;
    Ok(scan)
}

/// Where the header of a file contradicts itself (pixdim, sform, qform) or says nothing of its
/// orientation, and how it is read; the file's name is for the messages.
#[must_use]
pub fn warnings(header: &NiftiHeader, file: &Path) -> Vec<Warning> {
    warnings_of(&header.into(), file)
}

fn warnings_of(header: &Fields, file: &Path) -> Vec<Warning> {
    let name = file.display().to_string();
    affine::geometry(*header).map_or_else(Vec::new, |g| affine::contradictions(header, &g, &name))
}

/// Reads a scan whose channels lie in files of their own: [`super::file::read_all`].
///
/// # Errors
/// Those of [`super::file::read_all`].
pub fn read_channels(paths: &[impl AsRef<Path>]) -> Result<Scan, VolumeError> {
    super::file::read_all(paths, &super::file::ReadOptions::default())
}

/// Reads a label volume: as [`read`], but the voxels must be whole numbers from 0 to 65535 in one channel.
///
/// # Errors
/// Those of [`read`], and [`VolumeErrorKind::Format`] for values that are no labels.
pub fn read_labels(path: impl AsRef<Path>) -> Result<(NiftiHeader, Volume<u16>), VolumeError> {
    let read = super::file::labels_of(stored(path.as_ref())?)?;
    Ok((read.header, read.labels))
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
    write_named_labels(path, header, labels, &Legend::default())
}

/// The same with names and colours of the labels, in an extension of the header as TotalSegmentator
/// writes and reads it: the XML of Connectome Workbench under code 0. A legend without classes
/// leaves none.
///
/// # Errors
/// Those of [`write_labels`].
pub fn write_named_labels(path: impl AsRef<Path>, header: &NiftiHeader, labels: &Volume<u16>, legend: &Legend) -> Result<(), VolumeError> {
    let path = path.as_ref();
    let extension = if legend.classes().is_empty() { String::new() } else { legend.caret() };
    let grid = grid(&header.into(), path)?;
    check(&grid, labels.extent, labels.axes, path)?;
    if labels.channels != 1 {
        let (header, shape) = of_maps(header, labels.extent, labels.channels);
        return store_labels(path, &NiftiHeader { intent_code: INTENT_LABEL, ..header }, &shape, &extension, &labels.data);
    }
    let mut shape: Vec<usize> = header.dim[1..].iter().map(|n| usize::from(*n)).collect();
    shape.truncate(usize::from(if grid.channels == 1 { header.dim[0] } else { 3 }).min(7));
    let header = NiftiHeader { intent_code: INTENT_LABEL, ..plain(header) };
    store_labels(path, &header, &shape, &extension, &labels.data)
}

/// Labels in a byte each, or in two where one is above 255.
fn store_labels(path: &Path, header: &NiftiHeader, shape: &[usize], extension: &str, labels: &[u16]) -> Result<(), VolumeError> {
    if labels.par_iter().all(|&label| label <= 255) {
        #[expect(clippy::cast_possible_truncation, reason = "they are at most 255")]
        return store::<u8>(path, header, shape, extension, |voxels| voxels.write(labels.iter().map(|&label| label as u8)));
    }
    store::<u16>(path, header, shape, extension, |voxels| voxels.write(labels.iter().copied()))
}

/// Writes f32 maps (probabilities, attention) on the grid of `header` as a 4D file `(x, y, z, channel)`, otherwise as
/// [`write_labels`].
///
/// # Errors
/// Those of [`write_labels`].
pub fn write_maps(path: impl AsRef<Path>, header: &NiftiHeader, maps: &Volume<f32>) -> Result<(), VolumeError> {
    let path = path.as_ref();
    check(&grid(&header.into(), path)?, maps.extent, maps.axes, path)?;
    let (header, shape) = of_maps(header, maps.extent, maps.channels);
    store::<f32>(path, &header, &shape, "", |voxels| voxels.write(maps.data.iter().copied()))
}

/// The same for probabilities, of which no more than a class is held at a time.
///
/// # Errors
/// Those of [`write_labels`], and [`VolumeErrorKind::Io`] where scores that wait in a file cannot be
/// read.
pub fn write_probabilities(path: impl AsRef<Path>, header: &NiftiHeader, maps: &Probabilities) -> Result<(), VolumeError> {
    let path = path.as_ref();
    let (extent, axes) = maps.grid();
    check(&grid(&header.into(), path)?, extent, axes, path)?;
    let (header, shape) = of_maps(header, extent, maps.classes());
    store::<f32>(path, &header, &shape, "", |voxels| {
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
    affine::unit(&header.into())
}

/// A header for results on the grid of `volume` in place of the scan's: with its dimensions,
/// spacing and, as sform, affine (in mm, the scan's unit); all else is the scan's.
#[must_use]
pub fn header_on<T>(scan: &NiftiHeader, volume: &Volume<T>) -> NiftiHeader {
    let mut header = scan.clone();
    header.set_grid(volume.extent, volume.affine());
    if header.xyzt_units & 7 != 0 {
        header.xyzt_units = header.xyzt_units & !7 | 2;
    }
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
fn grid(header: &Fields, path: &Path) -> Result<Grid, VolumeError> {
    let name = path.display();
    let bad = |kind, what: String| Err(VolumeError::new(kind, format!("{name}: {what}")));
    let rank = header.rank();
    let used = header.dim.get(1..=rank).unwrap_or_default();
    if used.is_empty() || used.iter().any(|n| !(1..=0x7fff).contains(n)) {
        let text = format!("the header's dimensions {:?} are not all from 1 to 32767", header.dim);
        return bad(VolumeErrorKind::Format, text);
    }
    let n = |axis: usize| used.get(axis).map_or(1, |n| u32::try_from(*n).unwrap_or(1));
    let more: Vec<u32> = (3..rank).map(n).filter(|n| *n > 1).collect();
    if rank < 2 || more.len() > 1 {
        let text = format!("dimensions {used:?} are not a 2D or 3D image with at most one axis of channels");
        return bad(VolumeErrorKind::Unsupported, text);
    }
    let Some(Geometry { directions: [i, j, k], spacing: [x, y, z], affine }) = affine::geometry(*header) else {
        let text = "the affine is degenerate (its voxel axes do not span space); repair the sform or qform";
        return bad(VolumeErrorKind::Format, text.into());
    };
    Ok(Grid {
        channels: more.first().copied().unwrap_or(1),
        extent: Extent::new(n(2), n(1), n(0)),
        spacing: [z, y, x],
        axes: Axes::new([k, j, i])?,
        affine: affine.reoriented([2, 1, 0], [None; 3]),
    })
}

/// Refuses to write a volume by the header of another grid.
fn check(grid: &Grid, extent: Extent, axes: Axes, path: &Path) -> Result<(), VolumeError> {
    if grid.extent == extent && grid.axes == axes {
        return Ok(());
    }
    Err(VolumeError::new(
        VolumeErrorKind::GridMismatch,
        format!(
            "cannot write {}: the volume has {extent} voxels along {axes}, but the header {} along {}; reorient or resample it",
            path.display(),
            grid.extent,
            grid.axes
        ),
    ))
}

#[cfg(test)]
mod tests;
