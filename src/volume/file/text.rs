//! Headers that are lines of text before the voxels.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Grid;
use super::raw::{Scalar, Source, plain, trouble};
use crate::volume::{VolumeError, VolumeErrorKind};

/// The most bytes of a header.
const LONGEST_HEADER: u64 = 4 << 20;

/// The most bytes that are passed over in a compressed file.
const LONGEST_SKIP: u64 = 1 << 30;

/// The lines of a header, one by one.
pub(super) struct Lines<'a> {
    pub(super) path: &'a Path,
    pub(super) file: BufReader<File>,
    left: u64,
}

impl<'a> Lines<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self, VolumeError> {
        Ok(Self { path, file: plain(path)?, left: LONGEST_HEADER })
    }

    /// The next line without its end; `None` at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<String>, VolumeError> {
        let mut line = Vec::new();
        let read = self.file.by_ref().take(self.left).read_until(b'\n', &mut line);
        let read = read.map_err(|e| trouble(self.path, "read", e))?;
        self.left -= read as u64;
        if read == 0 {
            return if self.left == 0 { Err(self.bad("its header does not end")) } else { Ok(None) };
        }
        Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned()))
    }

    pub(super) fn bad(&self, what: impl AsRef<str>) -> VolumeError {
        bad(self.path, VolumeErrorKind::Format, what)
    }

    pub(super) fn unsupported(&self, what: impl AsRef<str>) -> VolumeError {
        bad(self.path, VolumeErrorKind::Unsupported, what)
    }

    /// The numbers of a field.
    pub(super) fn numbers<T: FromStr>(&self, field: &str, text: &str) -> Result<Vec<T>, VolumeError> {
        let list: Result<Vec<T>, _> = text.split_whitespace().map(str::parse).collect();
        list.map_err(|_| self.bad(format!("its {field} {:?} are no numbers", cut(text))))
    }

    /// The names of the files of voxels: those of a list, or of a pattern such as `z%03d.raw 1 20
    /// 1`, or the only one.
    pub(super) fn named(&self, text: &str, list: &[String]) -> Result<Vec<String>, VolumeError> {
        if !list.is_empty() {
            return Ok(list.to_vec());
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let [name, from, to, step, ..] = words[..] else { return Ok(vec![text.to_owned()]) };
        if !name.contains('%') {
            return Ok(vec![text.to_owned()]);
        }
        let names = match [from, to, step].map(str::parse::<i64>) {
            [Ok(from), Ok(to), Ok(step)] if step != 0 => pattern(name, from, to, step),
            _ => None,
        };
        names.ok_or_else(|| self.bad(format!("{:?} is no pattern of names of files", cut(text))))
    }
}

pub(super) fn bad(path: &Path, kind: VolumeErrorKind, what: impl AsRef<str>) -> VolumeError {
    VolumeError::new(kind, format!("{}: {}", path.display(), what.as_ref()))
}

/// The first characters of text from a file.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(60).collect()
}

/// The encoding of voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Raw,
    Gzip,
    Zlib,
    Text,
}

/// Files of voxels beside their header.
pub(super) struct Files {
    pub(super) paths: Vec<PathBuf>,
    pub(super) encoding: Encoding,
    /// Lines that are passed over first.
    pub(super) lines: u64,
    /// Bytes that are passed over next; `None`: all but the last that are needed.
    pub(super) skip: Option<u64>,
}

impl Files {
    /// The voxels of a grid, one file after the other, each of the same size.
    pub(super) fn read(&self, grid: &Grid, scalar: Scalar) -> Result<Vec<u8>, VolumeError> {
        let first = self.paths.first().map_or(Path::new(""), PathBuf::as_path);
        let size = if self.encoding == Encoding::Text { size_of::<f64>() } else { scalar.size() };
        let [values, all] = grid.claims(first, size)?;
        let parts = self.paths.len() as u64;
        if parts == 0 || values % parts != 0 {
            return Err(bad(first, VolumeErrorKind::Format, format!("{values} voxels do not lie in {parts} files of one size")));
        }
        let expected = all / parts;
        if let ([path], Encoding::Text) = (&self.paths[..], self.encoding) {
            return Source::Plain(self.at_start(path, plain(path)?)?).text(path, self.skip.unwrap_or(0), grid);
        }
        if self.encoding == Encoding::Text {
            return Err(bad(first, VolumeErrorKind::Unsupported, "text in several files is not read"));
        }
        let mut bytes = Vec::new();
        for path in &self.paths {
            let file = self.at_start(path, plain(path)?)?;
            self.append(path, file, expected, &mut bytes, values)?;
        }
        Ok(bytes)
    }

    /// The voxels that follow a header in its own file.
    pub(super) fn read_here(&self, lines: Lines<'_>, grid: &Grid, scalar: Scalar) -> Result<Vec<u8>, VolumeError> {
        let (path, file) = (lines.path, lines.file);
        let file = self.at_start(path, file)?;
        if self.encoding == Encoding::Text {
            return Source::Plain(file).text(path, self.skip.unwrap_or(0), grid);
        }
        let [values, expected] = grid.claims(path, scalar.size())?;
        let mut bytes = Vec::new();
        self.append(path, file, expected, &mut bytes, values)?;
        Ok(bytes)
    }

    /// A file after the lines that are passed over.
    fn at_start(&self, path: &Path, mut file: BufReader<File>) -> Result<BufReader<File>, VolumeError> {
        let mut left = LONGEST_HEADER;
        for _ in 0..self.lines {
            let mut line = Vec::new();
            let read = file.by_ref().take(left).read_until(b'\n', &mut line).map_err(|e| trouble(path, "read", e))?;
            left -= read as u64;
            if read == 0 {
                return Err(bad(path, VolumeErrorKind::Format, "it has fewer lines than its header passes over"));
            }
        }
        Ok(file)
    }

    fn append(&self, path: &Path, mut file: BufReader<File>, expected: u64, bytes: &mut Vec<u8>, values: u64) -> Result<(), VolumeError> {
        let mut skip = self.skip.unwrap_or(0);
        if self.skip.is_none() {
            let length = file.get_ref().metadata().map_err(|e| trouble(path, "read", e))?.len();
            std::io::Seek::rewind(&mut file).map_err(|e| trouble(path, "read", e))?;
            // too few are told below
            skip = length.saturating_sub(expected);
        }
        let mut source = match self.encoding {
            Encoding::Gzip => Source::gzip(file),
            Encoding::Zlib => Source::zlib(file),
            Encoding::Raw | Encoding::Text => Source::Plain(file),
        };
        // bytes of a stream are passed over by unpacking them
        if skip > LONGEST_SKIP && self.encoding != Encoding::Raw {
            return Err(bad(path, VolumeErrorKind::Format, format!("its header passes over {skip} bytes, {LONGEST_SKIP} at most are")));
        }
        source.append(path, skip, expected, bytes, values)
    }
}

/// A file that a header names, from the folder of the header.
pub(super) fn beside(header: &Path, name: &str) -> PathBuf {
    header.parent().unwrap_or(Path::new("")).join(name)
}

/// The names of a pattern such as `slice%03d.raw` for the numbers from `from` to `to`.
fn pattern(text: &str, from: i64, to: i64, step: i64) -> Option<Vec<String>> {
    /// No series has more slices.
    const MOST: usize = 1 << 16;
    let at = text.find('%')?;
    let length = text[at + 1..].find('d')?;
    let width = &text[at + 1..][..length];
    let (zeros, width) = match width.strip_prefix('0') {
        Some(width) => (true, width),
        None => (false, width),
    };
    let width: usize = if width.is_empty() { 0 } else { width.parse().ok().filter(|w| *w < 20)? };
    let (before, after) = (&text[..at], &text[at + length + 2..]);
    let mut names = Vec::new();
    let mut n = from;
    while (step > 0 && n <= to) || (step < 0 && n >= to) {
        if names.len() == MOST {
            return None;
        }
        names.push(if zeros { format!("{before}{n:0width$}{after}") } else { format!("{before}{n:width$}{after}") });
        n = n.checked_add(step)?;
    }
    Some(names)
}
