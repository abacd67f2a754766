//! The bytes of a NIfTI file: opening it, checking its header, fetching its voxels.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ::nifti::{NiftiHeader, NiftiType};

use super::affine::Fields;
use super::{file_geometry_of, grid, names, second, warnings_of};
use crate::volume::file::raw::{Scalar, Source, Stored, Voxels, trouble};
use crate::volume::{VolumeError, VolumeErrorKind};

/// The length of a NIfTI-1 header.
pub(super) const HEADER_BYTES: u64 = 348;
/// The length of the flag after it that announces extensions.
pub(super) const EXTENDER_BYTES: u64 = 4;

/// A header as read.
pub(super) struct Header {
    /// That of NIfTI-1, or what it holds of one of NIfTI-2.
    pub(super) header: NiftiHeader,
    pub(super) fields: Fields,
    /// The length of the header in bytes.
    pub(super) length: u64,
    /// Whether the voxels lie in the same file.
    pub(super) single: bool,
    /// The byte at which they begin.
    pub(super) offset: f64,
    pub(super) scale: [f64; 2],
    pub(super) big_endian: bool,
}

/// Opens a file or a pair of files.
pub(in crate::volume) fn stored(path: &Path) -> Result<Stored, VolumeError> {
    let path = header_path(path);
    let mut source = Source::open(&path)?;
    let read = read_header(&mut source, &path)?;
    let Header { header, fields, length, single, offset, scale: [slope, inter], big_endian } = read;
    let grid = grid(&fields, &path)?;
    let scalar = voxel_type(&header, &path)?;
    let start = length + EXTENDER_BYTES;
    let mut skip = match (whole(offset), single) {
        (Some(0), true) => start - length,
        (Some(offset), true) if offset >= start => offset - length,
        (Some(offset), false) => offset,
        _ => {
            return Err(VolumeError::new(VolumeErrorKind::Format, format!("{}: voxels cannot begin at byte {offset}", path.display())));
        }
    };
    let scaled = slope != 0.0 && slope.is_finite();
    if scaled && !inter.is_finite() {
        return Err(VolumeError::new(
            VolumeErrorKind::Format,
            format!("{}: the intercept {inter} to scale voxels by is not a number", path.display()),
        ));
    }
    let data_path = if single { path.clone() } else { image_path(&path)? };
    if !single {
        source = Source::open(&data_path)?;
    }
    let mut extensions = Vec::new();
    if single {
        source.by_ref().take(skip.min(names::MOST)).read_to_end(&mut extensions).map_err(|e| trouble(&path, "read", e))?;
        skip -= extensions.len() as u64;
    }
    let bytes = source.voxels(&data_path, skip, &grid, scalar.size())?;
    let own = (length != HEADER_BYTES).then(|| file_geometry_of(&fields));
    let warnings = warnings_of(&fields, &path);
    let scale = scaled.then_some([slope, inter]);
    let voxels = Voxels { scalar, big_endian, scale, interleaved: false, bytes };
    Ok(Stored { path, header, grid, own, warnings, names: names::names(&extensions, big_endian), voxels })
}

/// A header file's path: that itself, or the `.hdr` of an `.img`.
fn header_path(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    for (image, header) in [(".img", ".hdr"), (".img.gz", ".hdr")] {
        if let Some(stem) = text.strip_suffix(image) {
            let header = PathBuf::from(format!("{stem}{header}"));
            return if header.exists() { header } else { PathBuf::from(format!("{stem}.hdr.gz")) };
        }
    }
    path.to_path_buf()
}

/// The file that holds the voxels of a header of its own.
fn image_path(header: &Path) -> Result<PathBuf, VolumeError> {
    let text = header.to_string_lossy();
    let stem = text.strip_suffix(".hdr.gz").or_else(|| text.strip_suffix(".hdr")).unwrap_or(&text);
    let candidates = [".img", ".img.gz"].map(|end| PathBuf::from(format!("{stem}{end}")));
    candidates.into_iter().find(|p| p.exists()).ok_or_else(|| {
        VolumeError::new(
            VolumeErrorKind::NotFound,
            format!("{} is a header without voxels, and neither {stem}.img nor {stem}.img.gz is there", header.display()),
        )
    })
}

fn read_header(source: &mut Source, path: &Path) -> Result<Header, VolumeError> {
    let name = path.display();
    let mut bytes = Vec::new();
    source.take(HEADER_BYTES).read_to_end(&mut bytes).map_err(|e| trouble(path, "read", e))?;
    let foreign = || {
        VolumeError::new(VolumeErrorKind::Format, format!("{name} is no file of a format that is read: NIfTI, NRRD, MetaImage, MGH, DICOM"))
    };
    let size = bytes.first_chunk().map(|b| i32::from_le_bytes(*b)).ok_or_else(foreign)?;
    let sizes = [size, size.swap_bytes()];
    if let Some(swapped) = sizes.iter().position(|size| *size == second::HEADER_BYTES) {
        source.take(second::MORE_BYTES).read_to_end(&mut bytes).map_err(|e| trouble(path, "read", e))?;
        return second::parse(&bytes, swapped == 1).ok_or_else(|| trouble(path, "read", io::ErrorKind::UnexpectedEof.into()));
    }
    if !sizes.iter().any(|s| i64::from(*s) == HEADER_BYTES.cast_signed()) {
        return Err(foreign());
    }
    if (bytes.len() as u64) < HEADER_BYTES {
        return Err(trouble(path, "read", io::ErrorKind::UnexpectedEof.into()));
    }
    let header = NiftiHeader::from_reader(bytes.as_slice()).map_err(|e| foreign().caused(e))?;
    Ok(Header {
        fields: (&header).into(),
        length: HEADER_BYTES,
        single: header.magic == *b"n+1\0",
        offset: header.vox_offset.into(),
        scale: [header.scl_slope.into(), header.scl_inter.into()],
        big_endian: header.endianness == ::nifti::Endianness::Big,
        header,
    })
}

/// The header in the 348 bytes of one of NIfTI-1.
pub(super) fn header(bytes: &[u8], path: &Path) -> Result<NiftiHeader, VolumeError> {
    let foreign = || {
        let text = format!("{}: {} bytes are no header of NIfTI-1, which has {HEADER_BYTES}", path.display(), bytes.len());
        VolumeError::new(VolumeErrorKind::Format, text)
    };
    let size = bytes.first_chunk().map(|b| i32::from_le_bytes(*b)).ok_or_else(foreign)?;
    let is_one = [size, size.swap_bytes()].iter().any(|s| i64::from(*s) == HEADER_BYTES.cast_signed());
    if !is_one || bytes.len() as u64 != HEADER_BYTES {
        return Err(foreign());
    }
    NiftiHeader::from_reader(bytes).map_err(|e| foreign().caused(e))
}

fn voxel_type(header: &NiftiHeader, path: &Path) -> Result<Scalar, VolumeError> {
    let Ok(kind) = header.data_type() else {
        return Err(VolumeError::new(
            VolumeErrorKind::Unsupported,
            format!("{}: datatype {} is not one of NIfTI's; convert it to float32", path.display(), header.datatype),
        ));
    };
    let scalar = match kind {
        NiftiType::Uint8 => Scalar::U8,
        NiftiType::Int8 => Scalar::I8,
        NiftiType::Uint16 => Scalar::U16,
        NiftiType::Int16 => Scalar::I16,
        NiftiType::Uint32 => Scalar::U32,
        NiftiType::Int32 => Scalar::I32,
        NiftiType::Uint64 => Scalar::U64,
        NiftiType::Int64 => Scalar::I64,
        NiftiType::Float32 => Scalar::F32,
        NiftiType::Float64 => Scalar::F64,
        other => {
            return Err(VolumeError::new(
                VolumeErrorKind::Unsupported,
                format!("{}: voxels of type {other:?} are not read; convert them to float32", path.display()),
            ));
        }
    };
    if usize::try_from(header.bitpix).ok() != Some(scalar.size() * 8) {
        return Err(VolumeError::new(
            VolumeErrorKind::Format,
            format!("{}: {} bits a voxel contradict the datatype {kind:?}", path.display(), header.bitpix),
        ));
    }
    Ok(scalar)
}

/// A whole number of bytes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
fn whole(x: f64) -> Option<u64> {
    (x.fract() == 0.0 && (0.0..=1e9).contains(&x)).then_some(x as u64)
}
