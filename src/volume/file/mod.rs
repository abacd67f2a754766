//! Files of volumes: scans and label maps, in every format that is read.
//!
//! | format | names | geometry |
//! |---|---|---|
//! | NIfTI-1 and 2 | `.nii`, `.nii.gz`, `.hdr` with `.img` | sform, qform, as nibabel reads them |
//! | NRRD | `.nrrd`, `.nhdr` | space directions and origin, as ITK reads them |
//! | MetaImage | `.mha`, `.mhd` | ElementSpacing, TransformMatrix, Offset |
//! | MGH | `.mgh`, `.mgz` | direction cosines and centre |
//! | DICOM (feature `dicom`) | a folder, a list of files, a zip archive | positions of the images |
//!
//! The content decides, and the name where it does not. A file's voxels (i fastest) become
//! `[k][j][i]`.

#[cfg(feature = "cli")]
pub mod cases;
#[cfg(feature = "dicom")]
mod dicom;
mod grid;
mod metaimage;
mod mgh;
mod nrrd;
pub(super) mod raw;
mod text;
mod write;

use std::io::Read;
use std::path::{Path, PathBuf};

use ::nifti::NiftiHeader;
use rayon::prelude::*;

pub(super) use grid::{Grid, SetGrid};
use raw::{Stored, plain, trouble};
#[cfg(feature = "surfaces")]
pub(crate) use write::class_path;
pub use write::{LabelFormat, write_labels, write_masks};

use super::{Legend, Volume, VolumeError, VolumeErrorKind, nifti, same_grid, sizes};
use crate::scan::FileGeometry;
use crate::warning::Warning;

/// A scan as read: its voxels, and a header to write results on the same grid by.
#[derive(Clone, Debug)]
pub struct Scan {
    /// A NIfTI-1 header of the grid: that of the file as stored, or one made of its geometry.
    pub header: NiftiHeader,
    /// The voxels with slope and intercept applied, `[C][k][j][i]`.
    pub image: Volume<f32>,
    /// Contradictions of the file and gaps in its geometry, and how it was read.
    pub warnings: Vec<Warning>,
    /// The file's geometry, if it says more than `header` does.
    own: Option<FileGeometry>,
    /// The DICOM series that it was read from.
    #[cfg(feature = "dicom")]
    origin: Option<std::sync::Arc<dicom::segmentation::Origin>>,
}

impl Scan {
    /// A scan with the header of a NIfTI-1 file.
    #[must_use]
    pub fn new(header: NiftiHeader, image: Volume<f32>) -> Self {
        Self {
            header,
            image,
            warnings: Vec::new(),
            own: None,
            #[cfg(feature = "dicom")]
            origin: None,
        }
    }
}

impl Scan {
    /// A scan of voxels that lie in no file, with a header of their grid to write results by. A
    /// planar one is a 2D image with one plane along D, as readers of other frameworks tell it from
    /// a volume of one plane.
    ///
    /// # Errors
    /// [`VolumeErrorKind::NonFinite`], as for files.
    pub fn of_volume(mut image: Volume<f32>, planar: bool) -> Result<Self, VolumeError> {
        let Volume { channels, extent, spacing, axes, .. } = image;
        let grid = Grid { channels, extent, spacing, axes, affine: *image.affine() };
        let [d, h, w] = sizes(extent);
        let place = |at: usize| format!("channel {}, plane {}, row {}, column {}", at / (d * h * w), at / w / h % d, at / w % h, at % w);
        image.data = finite(image.data, Path::new("the array"), place)?;
        Ok(Self { own: Some(grid.geometry(planar)), ..Self::new(grid.header(planar), image) })
    }
}

impl<'a> From<&'a Scan> for crate::Scan<'a> {
    fn from(scan: &'a Scan) -> Self {
        let header = scan.own.clone().unwrap_or_else(|| nifti::file_geometry(&scan.header));
        Self { image: &scan.image, warnings: &scan.warnings, previous: None, header }
    }
}

/// A label map as read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Labels {
    /// A NIfTI-1 header of the grid: that of the file as stored, or one made of its geometry.
    pub header: NiftiHeader,
    /// The labels, one channel.
    pub labels: Volume<u16>,
    /// The names of the labels that a `.seg.nrrd` holds.
    pub legend: Legend,
    /// Contradictions of the file and gaps in its geometry, and how it was read.
    pub warnings: Vec<Warning>,
}

/// Options to read scans.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ReadOptions {
    /// The UID of the DICOM series to read, where there are several.
    pub series: Option<String>,
}

impl ReadOptions {
    /// Reads this series of a DICOM folder.
    #[must_use]
    pub fn with_series(mut self, uid: impl Into<String>) -> Self {
        self.series = Some(uid.into());
        self
    }
}

/// The format of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Nifti,
    Nrrd,
    MetaImage,
    Mgh,
    /// A DICOM file, a folder, or a zip archive.
    Dicom,
}

impl Format {
    fn of(path: &Path) -> Result<Self, VolumeError> {
        if path.is_dir() {
            return Ok(Self::Dicom);
        }
        let mut start = Vec::new();
        plain(path)?.take(132).read_to_end(&mut start).map_err(|e| trouble(path, "read", e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        Ok(match start.as_slice() {
            bytes if bytes.starts_with(nrrd::MAGIC) => Self::Nrrd,
            bytes if bytes.get(128..132) == Some(b"DICM") || bytes.starts_with(b"PK\x03\x04") => Self::Dicom,
            _ if ends(&[".nrrd", ".nhdr"]) => Self::Nrrd,
            _ if ends(&[".mha", ".mhd"]) => Self::MetaImage,
            _ if ends(&[".mgh", ".mgz", ".mgh.gz"]) => Self::Mgh,
            _ if ends(&[".dcm", ".ima", ".dicom", ".zip"]) => Self::Dicom,
            _ => Self::Nifti,
        })
    }
}

fn stored(path: &Path) -> Result<Stored, VolumeError> {
    match Format::of(path)? {
        Format::Nifti => nifti::stored(path),
        Format::Nrrd => nrrd::open(path),
        Format::MetaImage => metaimage::open(path),
        Format::Mgh => mgh::open(path),
        Format::Dicom => {
            let text = format!("{} is of DICOM images, which are no label map; convert it to .nii.gz", path.display());
            Err(VolumeError::new(VolumeErrorKind::Unsupported, text))
        }
    }
}

/// Reads a scan from a file, or from a DICOM folder, file or zip archive.
///
/// # Errors
/// [`VolumeErrorKind::NotFound`], [`VolumeErrorKind::Io`], [`VolumeErrorKind::Format`] (of no
/// format that is read, cut short, a contradictory header, images of a series that are missing or
/// lie twice in a place), [`VolumeErrorKind::NonFinite`] (with the count and the first place),
/// [`VolumeErrorKind::Unsupported`] (types of voxels, dimensions and encodings that are not read;
/// several series, which are listed), or [`VolumeErrorKind::TooLarge`].
pub fn read(path: impl AsRef<Path>) -> Result<Scan, VolumeError> {
    read_with(path, &ReadOptions::default())
}

/// [`read`] with options.
///
/// # Errors
/// Those of [`read`].
pub fn read_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Scan, VolumeError> {
    let path = path.as_ref();
    if Format::of(path)? == Format::Dicom {
        return read_dicom(&[path.to_path_buf()], options);
    }
    if options.series.is_some() {
        let text = format!("{} is no DICOM series, of which one could be picked", path.display());
        return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
    }
    scan_of(&stored(path)?)
}

#[cfg(feature = "dicom")]
fn read_dicom(paths: &[PathBuf], options: &ReadOptions) -> Result<Scan, VolumeError> {
    dicom::read(paths, options.series.as_deref())
}

#[cfg(not(feature = "dicom"))]
fn read_dicom(paths: &[PathBuf], _: &ReadOptions) -> Result<Scan, VolumeError> {
    let name = paths.first().map_or(Path::new(""), PathBuf::as_path).display();
    let text = format!("{name}: this organum is built without DICOM (the feature dicom); convert it to .nii.gz");
    Err(VolumeError::new(VolumeErrorKind::Unsupported, text))
}

/// Reads one scan of several paths: the files of a DICOM series, or the channels of a scan in files
/// of their own, in this order and on one grid. The header is that of the first.
///
/// # Errors
/// Those of [`read`], and [`VolumeErrorKind::GridMismatch`] for files on different grids, or that
/// hold several channels each.
pub fn read_all(paths: &[impl AsRef<Path>], options: &ReadOptions) -> Result<Scan, VolumeError> {
    let [first, others @ ..] = paths else {
        return Err(VolumeError::new(VolumeErrorKind::NotFound, "no file was named"));
    };
    let paths: Vec<PathBuf> = paths.iter().map(|path| path.as_ref().to_path_buf()).collect();
    let image = |path: &PathBuf| Ok::<_, VolumeError>(!path.is_dir() && Format::of(path)? == Format::Dicom);
    if !others.is_empty() && paths.iter().map(image).collect::<Result<Vec<_>, _>>()?.iter().all(|image| *image) {
        return read_dicom(&paths, options);
    }
    let mut scan = read_with(first, options)?;
    for path in others {
        let Scan { image: more, warnings, .. } = read_with(path, options)?;
        scan.warnings.extend(warnings);
        let [a, b] = [first.as_ref(), path.as_ref()].map(|p| p.display().to_string());
        same_grid(&scan.image, &a, &more, &b)?;
        if more.channels != 1 {
            let text = format!("{b} holds {} channels, must hold one", more.channels);
            return Err(VolumeError::new(VolumeErrorKind::GridMismatch, text));
        }
        scan.image.data.extend(more.data);
        scan.image.channels += 1;
    }
    Ok(scan)
}

/// Reads a label map of any format but DICOM: as [`read`], but the voxels must be whole numbers
/// from 0 to 65535 in one channel.
///
/// # Errors
/// Those of [`read`], and [`VolumeErrorKind::Format`] for values that are no labels.
pub fn read_labels(path: impl AsRef<Path>) -> Result<Labels, VolumeError> {
    labels_of(stored(path.as_ref())?)
}

/// Writes labels as a DICOM segmentation object (`.dcm`) of the series that the scan was read from:
/// a binary segment for each label that occurs, which refers to the images of the series. Of
/// patient and study it has what the standard wants in each object of a study, and no more. The
/// same labels give the same file.
///
/// # Errors
/// [`VolumeErrorKind::Unsupported`] if the scan is not of a DICOM series;
/// [`VolumeErrorKind::GridMismatch`] if the labels do not lie on its grid; those of writing.
#[cfg(feature = "dicom")]
pub fn write_segmentation(path: impl AsRef<Path>, scan: &Scan, labels: &Volume<u16>, legend: &Legend) -> Result<(), VolumeError> {
    let path = path.as_ref();
    match &scan.origin {
        Some(origin) => dicom::segmentation::write(path, origin, labels, legend),
        None => Err(write::not_of_dicom(path)),
    }
}

/// The voxels of a file, as f32.
pub(super) fn scan_of(stored: &Stored) -> Result<Scan, VolumeError> {
    let data = stored.decode(narrow);
    let place = |index| stored.place(index);
    let image = stored.grid.volume(finite(data, &stored.path, place)?)?;
    let Stored { header, own, warnings, .. } = stored;
    let scan = Scan::new(header.clone(), image);
    Ok(Scan { warnings: warnings.clone(), own: own.clone(), ..scan })
}

/// Refuses values that are not finite.
pub(super) fn finite(data: Vec<f32>, path: &Path, place: impl Fn(usize) -> String) -> Result<Vec<f32>, VolumeError> {
    let bad = data.par_iter().filter(|x| !x.is_finite()).count();
    if bad == 0 {
        return Ok(data);
    }
    let first = data.iter().position(|x| !x.is_finite()).unwrap_or(0);
    let text = format!(
        "{bad} voxels of {} are not finite numbers in f32, the first at {}; replace them (for example by the \
         background value) and try again",
        path.display(),
        place(first)
    );
    Err(VolumeError::new(VolumeErrorKind::NonFinite, text))
}

/// The voxels of a file, as labels.
pub(super) fn labels_of(stored: Stored) -> Result<Labels, VolumeError> {
    let (channels, name) = (stored.grid.channels, stored.path.display());
    if channels != 1 {
        let text = format!("{name} has {channels} channels, but a label volume has one");
        return Err(VolumeError::new(VolumeErrorKind::Format, text));
    }
    let read = stored.decode(|x| (x, label(x)));
    if let Some(first) = read.iter().position(|(_, label)| label.is_none()) {
        let text = format!(
            "{name} holds {} at {}, but labels are whole numbers from 0 to 65535; is it a scan or a probability map?",
            read[first].0,
            stored.place(first)
        );
        return Err(VolumeError::new(VolumeErrorKind::Format, text));
    }
    let data = read.into_iter().map(|(_, label)| label.unwrap_or(0)).collect();
    let labels = stored.grid.volume(data)?;
    Ok(Labels { header: stored.header, labels, legend: Legend::new(stored.names), warnings: stored.warnings })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is checked to be a whole number in range")]
fn label(x: f64) -> Option<u16> {
    (x.fract() == 0.0 && (0.0..=65535.0).contains(&x)).then_some(x as u16)
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point; overflow is reported")]
fn narrow(x: f64) -> f32 {
    x as f32
}
