//! The bytes of files of volumes: opening and decompressing them, fetching voxels within bounds,
//! and decoding them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use ::nifti::NiftiHeader;
use flate2::bufread::{GzDecoder, ZlibDecoder};
use rayon::prelude::*;

use super::Grid;
use crate::host::{available_memory, open_file};
use crate::scan::FileGeometry;
use crate::shape::format_bytes;
use crate::volume::{VolumeError, VolumeErrorKind};
use crate::warning::Warning;

/// Memory reserved on the word of a header alone; beyond it the voxels must prove to be there.
const RESERVE_AT_MOST: u64 = 1 << 30;
/// The most bytes of a number as text, blanks included.
const LONGEST_NUMBER: u64 = 64;

/// A file as read: its grid and its voxel bytes.
#[derive(Debug)]
pub(in crate::volume) struct Stored {
    pub(in crate::volume) path: PathBuf,
    /// A header to write results by.
    pub(in crate::volume) header: NiftiHeader,
    pub(in crate::volume) grid: Grid,
    /// The file's geometry, if it says more than `header` does.
    pub(in crate::volume) own: Option<FileGeometry>,
    pub(in crate::volume) warnings: Vec<Warning>,
    /// Names of labels.
    pub(in crate::volume) names: Vec<(u16, String)>,
    pub(in crate::volume) voxels: Voxels,
}

/// Voxels as stored.
#[derive(Debug)]
pub(in crate::volume) struct Voxels {
    pub(in crate::volume) scalar: Scalar,
    pub(in crate::volume) big_endian: bool,
    /// Slope and intercept.
    pub(in crate::volume) scale: Option<[f64; 2]>,
    /// Whether the channels of a voxel lie side by side.
    pub(in crate::volume) interleaved: bool,
    pub(in crate::volume) bytes: Vec<u8>,
}

/// A type of numbers in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::volume) enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Scalar {
    pub(in crate::volume) fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

impl Stored {
    /// The voxels in `[C][k][j][i]` order, slope and intercept applied.
    pub(in crate::volume) fn decode<T: Send + Sync + Copy>(&self, map: impl Fn(f64) -> T + Sync) -> Vec<T> {
        let Voxels { big_endian, scale, interleaved, ref bytes, .. } = self.voxels;
        let value = |x: f64| map(scale.map_or(x, |[slope, inter]| x * slope + inter));
        macro_rules! values {
            ($t:ty) => {{
                let one = |chunk: &[u8]| {
                    let mut bytes = [0; size_of::<$t>()];
                    bytes.copy_from_slice(chunk);
                    let x = if big_endian { <$t>::from_be_bytes(bytes) } else { <$t>::from_le_bytes(bytes) };
                    value(x as f64)
                };
                bytes.par_chunks_exact(size_of::<$t>()).with_min_len(1 << 14).map(one).collect()
            }};
        }
        let stored: Vec<T> = match self.voxels.scalar {
            Scalar::U8 => values!(u8),
            Scalar::I8 => values!(i8),
            Scalar::U16 => values!(u16),
            Scalar::I16 => values!(i16),
            Scalar::U32 => values!(u32),
            Scalar::I32 => values!(i32),
            Scalar::U64 => values!(u64),
            Scalar::I64 => values!(i64),
            Scalar::F32 => values!(f32),
            Scalar::F64 => values!(f64),
        };
        let channels = self.grid.channels as usize;
        if !interleaved || channels == 1 {
            return stored;
        }
        (0..channels).flat_map(|c| stored.iter().skip(c).step_by(channels).copied()).collect()
    }

    /// The place of a decoded value, for messages.
    pub(in crate::volume) fn place(&self, index: usize) -> String {
        let (w, h) = (self.grid.extent.w as usize, self.grid.extent.h as usize);
        let (i, j, rest) = (index % w, index / w % h, index / w / h);
        let d = self.grid.extent.d as usize;
        match self.grid.channels {
            1 => format!("voxel ({i}, {j}, {rest})"),
            _ => format!("voxel ({i}, {j}, {}) of channel {}", rest % d, rest / d),
        }
    }
}

/// A file or what follows in it, decompressed.
#[derive(Debug)]
pub(in crate::volume) enum Source {
    Plain(BufReader<File>),
    /// `None` after the last member.
    Gzip(Option<GzDecoder<BufReader<File>>>),
    Zlib(ZlibDecoder<BufReader<File>>),
}

impl Source {
    /// A file, decompressed if its content is gzip, whatever its name.
    pub(in crate::volume) fn open(path: &Path) -> Result<Self, VolumeError> {
        let mut file = plain(path)?;
        let gzip = file.fill_buf().map_err(|e| trouble(path, "read", e))?.starts_with(&[0x1f, 0x8b]);
        Ok(if gzip { Self::gzip(file) } else { Self::Plain(file) })
    }

    /// The rest of a file, as gzip.
    pub(in crate::volume) fn gzip(file: BufReader<File>) -> Self {
        Self::Gzip(Some(GzDecoder::new(file)))
    }

    /// The rest of a file, as a zlib stream.
    pub(in crate::volume) fn zlib(file: BufReader<File>) -> Self {
        Self::Zlib(ZlibDecoder::new(file))
    }

    /// The bytes that follow, where the file tells.
    fn left(&mut self) -> io::Result<Option<u64>> {
        let Self::Plain(file) = self else { return Ok(None) };
        let at = file.stream_position()?;
        Ok(Some(file.get_ref().metadata()?.len().saturating_sub(at)))
    }

    /// Voxels of a grid after `skip` bytes: the bytes that are there are looked at before those
    /// that the grid announces are reserved.
    pub(in crate::volume) fn voxels(mut self, path: &Path, skip: u64, grid: &Grid, size: usize) -> Result<Vec<u8>, VolumeError> {
        let [values, expected] = grid.claims(path, size)?;
        let mut bytes = Vec::new();
        self.append(path, skip, expected, &mut bytes, values)?;
        Ok(bytes)
    }

    /// Appends `expected` bytes after `skip` others; `values` values are made of all of them.
    pub(in crate::volume) fn append(
        &mut self,
        path: &Path,
        skip: u64,
        expected: u64,
        bytes: &mut Vec<u8>,
        values: u64,
    ) -> Result<(), VolumeError> {
        let short = |e| trouble(path, "read", e);
        if let Some(left) = self.left().map_err(short)? {
            let there = left.saturating_sub(skip);
            if there < expected {
                return Err(cut(path, expected, there));
            }
        }
        // the bytes as stored, and as f32
        room(path, expected.saturating_add(values.saturating_mul(4)))?;
        let too_large = || VolumeError::new(VolumeErrorKind::TooLarge, format!("{}: {expected} bytes are too many", path.display()));
        let reserve = usize::try_from(expected.min(RESERVE_AT_MOST)).map_err(|_| too_large())?;
        bytes.try_reserve_exact(reserve).map_err(|e| too_large().caused(e))?;
        io::copy(&mut self.by_ref().take(skip), &mut io::sink()).map_err(short)?;
        let before = bytes.len();
        self.by_ref().take(expected).read_to_end(bytes).map_err(short)?;
        let read = (bytes.len() - before) as u64;
        if read != expected {
            return Err(cut(path, expected, read));
        }
        // A checksum is compared only when the end is reached.
        if !matches!(self, Self::Plain(_)) {
            io::copy(&mut self.take(1 << 16), &mut io::sink()).map_err(short)?;
        }
        Ok(())
    }

    /// Voxels of a grid written as text, as the bytes of little-endian f64.
    pub(in crate::volume) fn text(mut self, path: &Path, skip: u64, grid: &Grid) -> Result<Vec<u8>, VolumeError> {
        let short = |e| trouble(path, "read", e);
        let values = grid.values().ok_or_else(|| grid.too_large(path))?;
        // a digit each, and a blank between two
        let least = values.saturating_mul(2).saturating_sub(1);
        if let Some(left) = self.left().map_err(short)? {
            let there = left.saturating_sub(skip);
            if there < least {
                return Err(cut(path, least, there));
            }
        }
        room(path, values.saturating_mul(12))?;
        io::copy(&mut self.by_ref().take(skip), &mut io::sink()).map_err(short)?;
        let mut text = Vec::new();
        self.take(values.saturating_mul(LONGEST_NUMBER)).read_to_end(&mut text).map_err(short)?;
        let mut bytes = Vec::new();
        let words = text.split(|b| b.is_ascii_whitespace() || *b == b',').filter(|word| !word.is_empty());
        for word in words.take(usize::try_from(values).unwrap_or(usize::MAX)) {
            let word = String::from_utf8_lossy(word);
            let number: f64 = word.parse().map_err(|_| {
                let shown: String = word.chars().take(40).collect();
                let text = format!("{}: {shown:?} among the voxels is no number", path.display());
                VolumeError::new(VolumeErrorKind::Format, text)
            })?;
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let read = bytes.len() as u64 / 8;
        if read != values {
            let text = format!(
                "{} is cut short: its header announces {values} voxels, but there are {read}; copy or download it again",
                path.display()
            );
            return Err(VolumeError::new(VolumeErrorKind::Format, text));
        }
        Ok(bytes)
    }
}

/// A regular file, to be read through a buffer.
pub(in crate::volume) fn plain(path: &Path) -> Result<BufReader<File>, VolumeError> {
    let file = open_file(path).map_err(|e| trouble(path, "opened", e))?;
    Ok(BufReader::with_capacity(1 << 16, file))
}

/// Refuses what the machine has no memory for.
pub(in crate::volume) fn room(path: &Path, needed: u64) -> Result<(), VolumeError> {
    let Some(there) = available_memory().filter(|there| needed > *there) else { return Ok(()) };
    let text = format!(
        "{}: its voxels take {needed} bytes ({}), but the machine has {} available",
        path.display(),
        format_bytes(needed),
        format_bytes(there)
    );
    Err(VolumeError::new(VolumeErrorKind::TooLarge, text))
}

fn cut(path: &Path, expected: u64, there: u64) -> VolumeError {
    let text = format!(
        "{} is cut short: its header announces {expected} bytes of voxels, but there are {there}; \
         copy or download it again",
        path.display()
    );
    VolumeError::new(VolumeErrorKind::Format, text)
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Zlib(decoder) => decoder.read(buffer),
            // Block-parallel compressors write several members one after the other.
            Self::Gzip(slot) => loop {
                let Some(decoder) = slot.as_mut() else {
                    return Ok(0);
                };
                let n = decoder.read(buffer)?;
                if n > 0 || buffer.is_empty() {
                    return Ok(n);
                }
                if let Some(mut rest) = slot.take().map(GzDecoder::into_inner)
                    && rest.fill_buf()?.first() == Some(&0x1f)
                {
                    *slot = Some(GzDecoder::new(rest));
                }
            },
        }
    }
}

/// The error for what the system says of a file.
pub(in crate::volume) fn trouble(path: &Path, what: &str, e: io::Error) -> VolumeError {
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
