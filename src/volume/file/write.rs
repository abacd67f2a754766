//! Label maps written in the format that their name asks for.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ::nifti::NiftiHeader;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

use crate::volume::{Affine, Legend, Volume, VolumeError, VolumeErrorKind, nifti, statistics, write_whole};

/// Axes are sheared for MetaImage, which holds none, from this deviation from a right angle in
/// degrees.
const SHEAR: f64 = 0.01;

/// A format of label maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LabelFormat {
    /// `.nii`, `.nii.gz`: names and colours in an extension of the header.
    Nifti,
    /// `.seg.nrrd`: a segmentation of 3D Slicer, with names, colours and extents of its segments.
    Segmentation,
    /// `.nrrd`.
    Nrrd,
    /// `.mha`.
    MetaImage,
    /// `.dcm`: a DICOM segmentation, of scans that are DICOM series.
    Dicom,
}

impl LabelFormat {
    /// The endings of names, of which the longest counts.
    pub const ENDINGS: [(&'static str, Self); 6] = [
        (".nii.gz", Self::Nifti),
        (".nii", Self::Nifti),
        (".seg.nrrd", Self::Segmentation),
        (".nrrd", Self::Nrrd),
        (".mha", Self::MetaImage),
        (".dcm", Self::Dicom),
    ];

    /// The format of a file by its name, whatever its case.
    ///
    /// # Errors
    /// [`VolumeErrorKind::Unsupported`] for other endings, with those that there are.
    pub fn of(path: &Path) -> Result<Self, VolumeError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let found = Self::ENDINGS.iter().find(|(ending, _)| name.ends_with(ending));
        found.map(|(_, format)| *format).ok_or_else(|| {
            let endings = Self::ENDINGS.map(|(ending, _)| ending).join(", ");
            let text = format!("cannot write {}: give it a name that ends in one of {endings}", path.display());
            VolumeError::new(VolumeErrorKind::Unsupported, text)
        })
    }
}

/// Writes labels with the names and colours of a legend, in the format of the name, compressed but
/// for `.nii`. The file appears whole or not at all.
///
/// `header` is that of the scan, whose units and forms a NIfTI file keeps.
///
/// # Errors
/// [`VolumeErrorKind::Unsupported`] for names of other endings, for `.dcm` (see
/// [`super::write_segmentation`]), and for sheared grids in MetaImage;
/// [`VolumeErrorKind::GridMismatch`]; [`VolumeErrorKind::NotFound`] (no such folder) or
/// [`VolumeErrorKind::Io`].
pub fn write_labels(path: impl AsRef<Path>, header: &NiftiHeader, labels: &Volume<u16>, legend: &Legend) -> Result<(), VolumeError> {
    let path = path.as_ref();
    let format = LabelFormat::of(path)?;
    if labels.channels != 1 {
        if format == LabelFormat::Nifti {
            return nifti::write_labels(path, header, labels);
        }
        let text = format!("{} labels a voxel cannot be written to {}; .nii and .nii.gz can", labels.channels, path.display());
        return Err(VolumeError::new(VolumeErrorKind::GridMismatch, text));
    }
    match format {
        LabelFormat::Nifti => nifti::write_named_labels(path, header, labels, legend),
        LabelFormat::Segmentation => write_nrrd(path, labels, &segments(labels, legend)?),
        LabelFormat::Nrrd => write_nrrd(path, labels, ""),
        LabelFormat::MetaImage => write_meta(path, labels),
        LabelFormat::Dicom => Err(not_of_dicom(path)),
    }
}

/// A DICOM segmentation refers to images.
pub(super) fn not_of_dicom(path: &Path) -> VolumeError {
    let text = format!("cannot write {}: a DICOM segmentation is of a DICOM series, and the scan is none", path.display());
    VolumeError::new(VolumeErrorKind::Unsupported, text)
}

/// Writes the mask of each class of a legend, 0 and 1, into a folder: `NAME.nii.gz`, or with
/// another ending of [`LabelFormat::ENDINGS`]. Returns the files.
///
/// Names are those of the classes, with all but letters, digits, `-`, `_` and `.` replaced by `_`;
/// names that come twice get the number of their class.
///
/// # Errors
/// Those of [`write_labels`].
pub fn write_masks(
    folder: impl AsRef<Path>,
    ending: &str,
    header: &NiftiHeader,
    labels: &Volume<u16>,
    legend: &Legend,
) -> Result<Vec<PathBuf>, VolumeError> {
    let mut written: Vec<PathBuf> = Vec::new();
    let mut mask = labels.clone();
    for class in legend.classes() {
        let path = class_path(folder.as_ref(), ending, class.label, &class.name, &written);
        mask.data.clear();
        mask.data.extend(labels.data.iter().map(|label| u16::from(*label == class.label)));
        let one = Legend::new([(1, class.name.clone())]);
        write_labels(&path, header, &mask, &one)?;
        written.push(path);
    }
    Ok(written)
}

/// A file in a folder that is named by a class, other than those `written` before.
pub(crate) fn class_path(folder: &Path, ending: &str, label: u16, name: &str, written: &[PathBuf]) -> PathBuf {
    let safe = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let name: String = name.chars().take(100).map(safe).collect();
    let name = name.trim_start_matches('.');
    let path = folder.join(format!("{name}{ending}"));
    let same = |other: &PathBuf| other.to_string_lossy().to_lowercase() == path.to_string_lossy().to_lowercase();
    if name.is_empty() || written.iter().any(same) { folder.join(format!("{name}_{label}{ending}")) } else { path }
}

/// Whether labels need 16 bits.
fn wide(labels: &Volume<u16>) -> bool {
    labels.data.iter().any(|label| *label > 255)
}

/// The labels in little-endian order.
fn voxels(labels: &Volume<u16>, wide: bool, to: &mut dyn Write) -> io::Result<()> {
    for chunk in labels.data.chunks(1 << 15) {
        let bytes: Vec<u8> = if wide {
            chunk.iter().flat_map(|label| label.to_le_bytes()).collect()
        } else {
            #[expect(clippy::cast_possible_truncation, reason = "they are at most 255")]
            chunk.iter().map(|label| *label as u8).collect()
        };
        to.write_all(&bytes)?;
    }
    Ok(())
}

/// Steps along i, j, k and origin, to the left, the back and the head.
fn lps(affine: &Affine) -> ([[f64; 3]; 3], [f64; 3]) {
    let [k, j, i] = affine.steps;
    super::grid::from_lps([i, j, k], affine.origin)
}

fn write_nrrd(path: &Path, labels: &Volume<u16>, more: &str) -> Result<(), VolumeError> {
    let [d, h, w] = labels.extent.axes();
    let (steps, origin) = lps(labels.affine());
    let vector = |v: [f64; 3]| format!("({},{},{})", v[0], v[1], v[2]);
    let wide = wide(labels);
    let kind = if wide { "unsigned short\nendian: little" } else { "unsigned char" };
    let header = format!(
        "NRRD0005\ntype: {kind}\ndimension: 3\nspace: left-posterior-superior\nsizes: {w} {h} {d}\n\
         space directions: {}\nkinds: domain domain domain\nspace units: \"mm\" \"mm\" \"mm\"\nencoding: gzip\n\
         space origin: {}\n{more}\n",
        steps.map(vector).join(" "),
        vector(origin)
    );
    write_whole(path, "labels", |file| {
        let mut file = BufWriter::new(File::create(file)?);
        file.write_all(header.as_bytes())?;
        let mut encoder = GzEncoder::new(file, Compression::fast());
        voxels(labels, wide, &mut encoder)?;
        encoder.finish()?.flush()
    })
}

/// The pairs of a header that 3D Slicer knows the segments of a `.seg.nrrd` by.
fn segments(labels: &Volume<u16>, legend: &Legend) -> Result<String, VolumeError> {
    let measured = statistics(labels, legend, None)?;
    let mut text = String::from(
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|\nSegmentation_MasterRepresentation:=Binary labelmap\n\
         Segmentation_ReferenceImageExtentOffset:=0 0 0\n",
    );
    for (n, one) in measured.iter().enumerate() {
        let colour = super::super::legend::colour(one.label).map(|c| format!("{:.6}", f64::from(c) / 255.0)).join(" ");
        let sides = match one.box_voxels {
            Some(sides) => sides.iter().flatten().map(u32::to_string).collect::<Vec<_>>().join(" "),
            None => "0 -1 0 -1 0 -1".into(),
        };
        let name = one.name.replace('\\', "\\\\");
        for (key, value) in [
            ("ID", format!("Segment_{}", one.label)),
            ("Name", name),
            ("NameAutoGenerated", "0".into()),
            ("Color", colour),
            ("ColorAutoGenerated", "0".into()),
            ("Extent", sides),
            ("LabelValue", one.label.to_string()),
            ("Layer", "0".into()),
            ("Tags", "|".into()),
        ] {
            text.push_str(&format!("Segment{n}_{key}:={value}\n"));
        }
    }
    Ok(text)
}

fn write_meta(path: &Path, labels: &Volume<u16>) -> Result<(), VolumeError> {
    let shear = labels.affine().shear_degrees();
    if shear > SHEAR {
        let text = format!(
            "cannot write {}: the grid is sheared by {shear:.2} degrees, which MetaImage does not hold; write .nii.gz or .nrrd",
            path.display()
        );
        return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
    }
    let [d, h, w] = labels.extent.axes();
    let (steps, origin) = lps(labels.affine());
    let lengths = steps.map(|step| step.iter().map(|x| x * x).sum::<f64>().sqrt());
    let list = |numbers: &[f64]| numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(" ");
    let matrix: Vec<f64> = steps.iter().zip(lengths).flat_map(|(step, length)| step.map(|x| x / length)).collect();
    let wide = wide(labels);
    write_whole(path, "labels", |file| {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        voxels(labels, wide, &mut encoder)?;
        let data = encoder.finish()?;
        let header = format!(
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = True\n\
             CompressedDataSize = {}\nTransformMatrix = {}\nOffset = {}\nCenterOfRotation = 0 0 0\nElementSpacing = {}\n\
             DimSize = {w} {h} {d}\nElementType = {}\nElementDataFile = LOCAL\n",
            data.len(),
            list(&matrix),
            list(&origin),
            list(&lengths),
            if wide { "MET_USHORT" } else { "MET_UCHAR" }
        );
        let mut file = BufWriter::new(File::create(file)?);
        file.write_all(header.as_bytes())?;
        file.write_all(&data)?;
        file.flush()
    })
}
