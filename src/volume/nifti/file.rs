//! The bytes of a NIfTI file: opening it, checking its header, fetching and decoding its voxels.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use ::nifti::header::MAGIC_CODE_NIP1;
use ::nifti::object::GzDecodedFile;
use ::nifti::{Endianness, NiftiHeader, NiftiType};
use rayon::prelude::*;

use super::Grid;
use crate::host::{available_memory, open_file};
use crate::shape::format_bytes;
use crate::volume::{VolumeError, VolumeErrorKind};

/// The length of a NIfTI-1 header.
pub(super) const HEADER_BYTES: u64 = 348;
/// The length of the flag after it that announces extensions.
pub(super) const EXTENDER_BYTES: u64 = 4;
/// What `sizeof_hdr` says in NIfTI-2.
const NIFTI_2_HEADER_BYTES: i32 = 540;
/// Memory reserved on the word of a header alone; beyond it the voxels must prove to be there.
const RESERVE_AT_MOST: u64 = 1 << 30;

/// A file's header, grid and voxel bytes.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) path: PathBuf,
    pub(super) header: NiftiHeader,
    pub(super) grid: Grid,
    kind: NiftiType,
    bytes: Vec<u8>,
}

impl Stored {
    pub(super) fn open(path: &Path) -> Result<Self, VolumeError> {
        let path = header_path(path);
        let mut source = Source::open(&path)?;
        let header = read_header(&mut source, &path)?;
        let grid = Grid::of(&header, &path)?;
        let kind = voxel_type(&header, &path)?;
        let single = header.magic == *MAGIC_CODE_NIP1;
        let start = HEADER_BYTES + EXTENDER_BYTES;
        let skip = match (whole(header.vox_offset), single) {
            (Some(0), true) => start - HEADER_BYTES,
            (Some(offset), true) if offset >= start => offset - HEADER_BYTES,
            (Some(offset), false) => offset,
            _ => {
                return Err(VolumeError::new(
                    VolumeErrorKind::Format,
                    format!("{}: voxels cannot begin at byte {}", path.display(), header.vox_offset),
                ));
            }
        };
        let data_path = if single { path.clone() } else { image_path(&path)? };
        if !single {
            source = Source::open(&data_path)?;
        }
        let bytes = read_voxels(source, &data_path, skip, &grid, kind)?;
        Ok(Self { path, header, grid, kind, bytes })
    }

    /// The voxels in storage order, slope and intercept applied.
    pub(super) fn decode<T: Send>(&self, map: impl Fn(f64) -> T + Sync) -> Result<Vec<T>, VolumeError> {
        let (slope, inter) = (f64::from(self.header.scl_slope), f64::from(self.header.scl_inter));
        let scaled = slope != 0.0 && slope.is_finite();
        if scaled && !inter.is_finite() {
            return Err(VolumeError::new(
                VolumeErrorKind::Format,
                format!("{}: the intercept {inter} to scale voxels by is not a number", self.path.display()),
            ));
        }
        let value = |x: f64| map(if scaled { x * slope + inter } else { x });
        macro_rules! values {
            ($t:ty) => {{
                let one = |chunk: &[u8]| {
                    let mut bytes = [0; size_of::<$t>()];
                    bytes.copy_from_slice(chunk);
                    let x = match self.header.endianness {
                        Endianness::Little => <$t>::from_le_bytes(bytes),
                        Endianness::Big => <$t>::from_be_bytes(bytes),
                    };
                    value(x as f64)
                };
                self.bytes.par_chunks_exact(size_of::<$t>()).with_min_len(1 << 14).map(one).collect()
            }};
        }
        Ok(match self.kind {
            NiftiType::Uint8 => values!(u8),
            NiftiType::Int8 => values!(i8),
            NiftiType::Uint16 => values!(u16),
            NiftiType::Int16 => values!(i16),
            NiftiType::Uint32 => values!(u32),
            NiftiType::Int32 => values!(i32),
            NiftiType::Uint64 => values!(u64),
            NiftiType::Int64 => values!(i64),
            NiftiType::Float32 => values!(f32),
            NiftiType::Float64 => values!(f64),
            other => return Err(unsupported(other, &self.path)),
        })
    }

    /// The place of a stored value, for messages.
    pub(super) fn place(&self, index: usize) -> String {
        let (w, h) = (self.grid.extent.w as usize, self.grid.extent.h as usize);
        let (i, j, rest) = (index % w, index / w % h, index / w / h);
        let d = self.grid.extent.d as usize;
        match self.grid.channels {
            1 => format!("voxel ({i}, {j}, {rest})"),
            _ => format!("voxel ({i}, {j}, {}) of channel {}", rest % d, rest / d),
        }
    }
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

/// A file, decompressed if its content is gzip, whatever its name.
enum Source {
    Plain(BufReader<File>),
    /// `None` after the last member.
    Gzip(Option<GzDecodedFile>),
}

impl Source {
    fn open(path: &Path) -> Result<Self, VolumeError> {
        let file = open_file(path).map_err(|e| trouble(path, "opened", e))?;
        let mut file = BufReader::with_capacity(1 << 16, file);
        let gzip = file.fill_buf().map_err(|e| trouble(path, "read", e))?.starts_with(&[0x1f, 0x8b]);
        Ok(if gzip { Self::Gzip(Some(GzDecodedFile::new(file))) } else { Self::Plain(file) })
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            // Block-parallel compressors write several members one after the other.
            Self::Gzip(slot) => loop {
                let Some(decoder) = slot.as_mut() else {
                    return Ok(0);
                };
                let n = decoder.read(buffer)?;
                if n > 0 || buffer.is_empty() {
                    return Ok(n);
                }
                if let Some(mut rest) = slot.take().map(GzDecodedFile::into_inner)
                    && rest.fill_buf()?.first() == Some(&0x1f)
                {
                    *slot = Some(GzDecodedFile::new(rest));
                }
            },
        }
    }
}

fn trouble(path: &Path, what: &str, e: io::Error) -> VolumeError {
    let name = path.display();
    let (kind, text) = match e.kind() {
        io::ErrorKind::NotFound => (VolumeErrorKind::NotFound, format!("there is no file {name}; check the path")),
        io::ErrorKind::UnexpectedEof => (VolumeErrorKind::Format, format!("{name} is cut short; copy or download it again")),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            (VolumeErrorKind::Format, format!("{name} is damaged ({e}); copy or download it again"))
        }
        _ => (VolumeErrorKind::Io, format!("{name} cannot be {what}: {e}")),
    };
    VolumeError::new(kind, text).caused(e)
}

fn read_header(source: &mut Source, path: &Path) -> Result<NiftiHeader, VolumeError> {
    let name = path.display();
    let mut bytes = Vec::new();
    source.take(HEADER_BYTES).read_to_end(&mut bytes).map_err(|e| trouble(path, "read", e))?;
    let foreign = || {
        VolumeError::new(
            VolumeErrorKind::Format,
            format!("{name} is not a NIfTI-1 file; convert it to .nii.gz first (for DICOM: dcm2niix)"),
        )
    };
    let size = bytes.first_chunk().map(|b| i32::from_le_bytes(*b)).ok_or_else(foreign)?;
    let sizes = [size, size.swap_bytes()];
    if sizes.contains(&NIFTI_2_HEADER_BYTES) {
        return Err(VolumeError::new(VolumeErrorKind::Unsupported, format!("{name} is a NIfTI-2 file; convert it to NIfTI-1")));
    }
    if !sizes.iter().any(|s| i64::from(*s) == HEADER_BYTES.cast_signed()) {
        return Err(foreign());
    }
    if (bytes.len() as u64) < HEADER_BYTES {
        return Err(trouble(path, "read", io::ErrorKind::UnexpectedEof.into()));
    }
    NiftiHeader::from_reader(bytes.as_slice()).map_err(|e| foreign().caused(e))
}

fn voxel_type(header: &NiftiHeader, path: &Path) -> Result<NiftiType, VolumeError> {
    let Ok(kind) = header.data_type() else {
        return Err(VolumeError::new(
            VolumeErrorKind::Unsupported,
            format!("{}: datatype {} is not one of NIfTI-1's; convert it to float32", path.display(), header.datatype),
        ));
    };
    match kind {
        NiftiType::Uint8
        | NiftiType::Int8
        | NiftiType::Uint16
        | NiftiType::Int16
        | NiftiType::Uint32
        | NiftiType::Int32
        | NiftiType::Uint64
        | NiftiType::Int64
        | NiftiType::Float32
        | NiftiType::Float64 => {}
        other => return Err(unsupported(other, path)),
    }
    if usize::try_from(header.bitpix).ok() != Some(kind.size_of() * 8) {
        return Err(VolumeError::new(
            VolumeErrorKind::Format,
            format!("{}: {} bits a voxel contradict the datatype {kind:?}", path.display(), header.bitpix),
        ));
    }
    Ok(kind)
}

fn unsupported(kind: NiftiType, path: &Path) -> VolumeError {
    VolumeError::new(
        VolumeErrorKind::Unsupported,
        format!("{}: voxels of type {kind:?} are not read; convert them to float32", path.display()),
    )
}

fn read_voxels(mut source: Source, path: &Path, skip: u64, grid: &Grid, kind: NiftiType) -> Result<Vec<u8>, VolumeError> {
    let expected = grid.extent.voxels().checked_mul(u64::from(grid.channels)).and_then(|n| n.checked_mul(kind.size_of() as u64));
    let too_large = || {
        VolumeError::new(
            VolumeErrorKind::Unsupported,
            format!("{}: {} channels of {} voxels are too many for this machine", path.display(), grid.channels, grid.extent),
        )
    };
    let expected = expected.ok_or_else(too_large)?;
    let cut = |there: u64| {
        VolumeError::new(
            VolumeErrorKind::Format,
            format!(
                "{} is cut short: its header announces {expected} bytes of voxels, but there are {there}; \
                 copy or download it again",
                path.display()
            ),
        )
    };
    if let Source::Plain(file) = &mut source {
        let at = file.stream_position().map_err(|e| trouble(path, "read", e))?;
        let length = file.get_ref().metadata().map_err(|e| trouble(path, "read", e))?.len();
        let there = length.saturating_sub(at).saturating_sub(skip);
        if there < expected {
            return Err(cut(there));
        }
    }
    // the bytes as stored, and as f32
    let values = expected / kind.size_of() as u64 * 4;
    let needed = expected.saturating_add(values);
    if let Some(there) = available_memory().filter(|there| needed > *there) {
        let text = format!(
            "{}: {} channels of {} voxels take {needed} bytes ({}), but the machine has {} available",
            path.display(),
            grid.channels,
            grid.extent,
            format_bytes(needed),
            format_bytes(there)
        );
        return Err(VolumeError::new(VolumeErrorKind::TooLarge, text));
    }
    let mut bytes = Vec::new();
    let reserve = usize::try_from(expected.min(RESERVE_AT_MOST)).map_err(|_| too_large())?;
    bytes.try_reserve_exact(reserve).map_err(|e| too_large().caused(e))?;
    let short = |e| trouble(path, "read", e);
    io::copy(&mut source.by_ref().take(skip), &mut io::sink()).map_err(short)?;
    source.by_ref().take(expected).read_to_end(&mut bytes).map_err(short)?;
    if bytes.len() as u64 != expected {
        return Err(cut(bytes.len() as u64));
    }
    // A gzip checksum is compared only when the end is reached.
    if matches!(source, Source::Gzip(_)) {
        io::copy(&mut source.take(1 << 16), &mut io::sink()).map_err(short)?;
    }
    Ok(bytes)
}

/// A whole number of bytes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
fn whole(x: f32) -> Option<u64> {
    (x.fract() == 0.0 && (0.0..=1e9).contains(&x)).then_some(x as u64)
}
