//! The bytes of DICOM files: where they come from, and whether the lengths they claim are there,
//! before anything is made of them.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dicom_dictionary_std::uids;
use zip::ZipArchive;

use crate::host::{self, available_memory};
use crate::volume::file::raw::{plain, trouble};
use crate::volume::{VolumeError, VolumeErrorKind};

type Archive = Arc<Mutex<ZipArchive<BufReader<File>>>>;

/// Deeper folders and sequences are none of a scanner's.
const DEEPEST: usize = 32;
/// The most files of a folder or an archive.
const MOST_FILES: usize = 1 << 17;
/// Explicit VR Big Endian, which is retired, but lives on in archives.
const EXPLICIT_BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";
/// The bytes by which an image is told from other files.
const BEGIN: u64 = 133;
/// A length that is not told.
const UNDEFINED: u32 = u32::MAX;

/// The place of an image's bytes.
#[derive(Clone)]
pub(super) enum Place {
    File(PathBuf),
    /// An entry of a zip archive: its number, and its name.
    Entry(Archive, usize, PathBuf),
}

impl Place {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Entry(_, _, path) => path,
        }
    }

    /// The last part of the name, for messages.
    pub(super) fn name(&self) -> String {
        self.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// All bytes: of an entry no more than half of the memory holds, whatever it claims.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, VolumeError> {
        let most = available_memory().unwrap_or(u64::MAX) / 2;
        match self {
            Self::File(path) => image(plain(path)?, most),
            Self::Entry(archive, index, _) => {
                let mut archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
                let entry = archive.by_index(*index).map_err(std::io::Error::other);
                entry.and_then(|entry| image(entry, most))
            }
        }
        .map_err(|e| trouble(self.path(), "read", e))
        .and_then(|bytes| self.within(bytes, most))
    }

    fn within(&self, bytes: Vec<u8>, most: u64) -> Result<Vec<u8>, VolumeError> {
        if bytes.len() as u64 == most {
            return Err(VolumeError::new(
                VolumeErrorKind::TooLarge,
                format!("{} takes more than half of the memory", self.path().display()),
            ));
        }
        Ok(bytes)
    }
}

/// The bytes of what may be an image: of anything else, which may unpack to any size, the begin
/// alone.
fn image(mut from: impl Read, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.by_ref().take(BEGIN).read_to_end(&mut bytes)?;
    if begin(&bytes).is_some() {
        from.take(most.saturating_sub(BEGIN)).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// The begin of an image.
enum Begin {
    /// Meta elements from this byte on.
    Meta(usize),
    /// A data set alone, as older programs wrote it: its first group is 0008.
    Bare,
}

/// The begin of an image's bytes; `None` if they are no image's.
fn begin(bytes: &[u8]) -> Option<Begin> {
    match bytes.get(128..132) {
        Some(b"DICM") => Some(Begin::Meta(132)),
        _ if bytes.starts_with(&[2, 0, 0, 0]) => Some(Begin::Meta(0)),
        _ if bytes.starts_with(&[8, 0]) && bytes.get(3) == Some(&0) && bytes.len() as u64 >= BEGIN => Some(Begin::Bare),
        _ => None,
    }
}

/// The files that paths name: those of a folder and of the folders in it, the entries of a zip
/// archive, or itself.
pub(super) fn places(paths: &[PathBuf]) -> Result<Vec<Place>, VolumeError> {
    let mut found = Vec::new();
    for path in paths {
        let mut start = [0; 4];
        if path.is_dir() {
            walk_folder(path, 0, &mut found)?;
        } else if plain(path)?.read(&mut start).map_err(|e| trouble(path, "read", e))? == 4 && start == *b"PK\x03\x04" {
            entries(path, &mut found)?;
        } else {
            found.push(Place::File(path.clone()));
        }
    }
    Ok(found)
}

fn walk_folder(folder: &Path, depth: usize, found: &mut Vec<Place>) -> Result<(), VolumeError> {
    let failed = |e| trouble(folder, "read", e);
    for path in host::entries(folder).map_err(failed)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "DICOMDIR" {
            continue;
        }
        if path.is_dir() && depth < DEEPEST {
            walk_folder(&path, depth + 1, found)?;
        } else if path.is_file() {
            if found.len() == MOST_FILES {
                let text = format!("{} holds more than {MOST_FILES} files", folder.display());
                return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
            }
            found.push(Place::File(path));
        }
    }
    Ok(())
}

fn entries(path: &Path, found: &mut Vec<Place>) -> Result<(), VolumeError> {
    let bad = |e: zip::result::ZipError| {
        let text = format!("{} is a damaged zip archive ({e}); copy or download it again", path.display());
        VolumeError::new(VolumeErrorKind::Format, text).caused(e)
    };
    let mut archive = ZipArchive::new(plain(path)?).map_err(bad)?;
    if archive.len() > MOST_FILES {
        let text = format!("{} holds more than {MOST_FILES} files", path.display());
        return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
    }
    let mut names = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(bad)?;
        names.push(path.join(entry.name().map_err(bad)?.as_ref()));
    }
    let archive = Arc::new(Mutex::new(archive));
    for (index, name) in names.into_iter().enumerate() {
        let text = name.to_string_lossy();
        if !text.ends_with('/') && name.file_name().is_some_and(|n| n != "DICOMDIR") {
            found.push(Place::Entry(Arc::clone(&archive), index, name));
        }
    }
    Ok(())
}

/// The layout of a DICOM file's bytes.
pub(super) struct Layout {
    pub(super) bytes: Vec<u8>,
    pub(super) syntax: String,
    /// The byte at which the data set begins.
    pub(super) start: usize,
    /// The byte at which the element of the pixel data begins, and its value where the length is
    /// told.
    pub(super) pixels: Option<(usize, Option<Range<usize>>)>,
}

impl Layout {
    pub(super) fn big_endian(&self) -> bool {
        self.syntax == EXPLICIT_BIG_ENDIAN
    }

    /// The layout of a file; `None` if it is no DICOM file.
    pub(super) fn of(mut bytes: Vec<u8>) -> Option<Result<Self, String>> {
        let meta = match begin(&bytes)? {
            Begin::Meta(at) => at,
            Begin::Bare => {
                let explicit = bytes[4..6].iter().all(u8::is_ascii_uppercase);
                let syntax = if explicit { uids::EXPLICIT_VR_LITTLE_ENDIAN } else { uids::IMPLICIT_VR_LITTLE_ENDIAN };
                let pixels = walk(&bytes, 0, !explicit, false).ok()?;
                return Some(Ok(Self { bytes, syntax: syntax.into(), start: 0, pixels }));
            }
        };
        let (mut syntax, mut start) = match meta_group(&bytes, meta) {
            Ok(found) => found,
            Err(e) => return Some(Err(e)),
        };
        if syntax == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN {
            let most = available_memory().unwrap_or(u64::MAX) / 4;
            let mut inflated = Vec::new();
            let decoder = flate2::read::DeflateDecoder::new(Cursor::new(&bytes[start..]));
            match decoder.take(most).read_to_end(&mut inflated) {
                Ok(n) if (n as u64) < most => {}
                _ => return Some(Err("its deflated data set is damaged".into())),
            }
            (bytes, start, syntax) = (inflated, 0, uids::EXPLICIT_VR_LITTLE_ENDIAN.into());
        }
        let implicit = syntax == uids::IMPLICIT_VR_LITTLE_ENDIAN;
        let big_endian = syntax == EXPLICIT_BIG_ENDIAN;
        Some(walk(&bytes, start, implicit, big_endian).map(|pixels| Self { bytes, syntax, start, pixels }))
    }
}

/// The transfer syntax that the group of meta elements names, and where that ends.
fn meta_group(bytes: &[u8], mut at: usize) -> Result<(String, usize), String> {
    let mut syntax = None;
    while bytes.get(at..at + 2) == Some(&[2, 0]) {
        let element = Element::read(bytes, at, false, false)?;
        let value =
            bytes.get(element.value..element.end().ok_or("its meta group is damaged")?).ok_or("it is cut short in its meta group")?;
        if element.tag == (2, 0x10) {
            syntax = Some(String::from_utf8_lossy(value).trim_end_matches(['\0', ' ']).to_owned());
        }
        at = element.value + value.len();
    }
    Ok((syntax.ok_or("it names no transfer syntax")?, at))
}

/// An element's tag, and where its value begins.
struct Element {
    tag: (u16, u16),
    sequence: bool,
    value: usize,
    length: u32,
}

impl Element {
    fn read(bytes: &[u8], at: usize, implicit: bool, big_endian: bool) -> Result<Self, String> {
        let short = || format!("it is cut short at byte {at}");
        let two = |at: usize| -> Result<u16, String> {
            let pair = bytes.get(at..at + 2).ok_or_else(short)?;
            Ok(if big_endian { u16::from_be_bytes([pair[0], pair[1]]) } else { u16::from_le_bytes([pair[0], pair[1]]) })
        };
        let four = |at: usize| -> Result<u32, String> {
            let (a, b) = (u32::from(two(at)?), u32::from(two(at + 2)?));
            Ok(if big_endian { a << 16 | b } else { b << 16 | a })
        };
        let tag = (two(at)?, two(at + 2)?);
        if implicit || tag.0 == 0xfffe {
            return Ok(Self { tag, sequence: false, value: at + 8, length: four(at + 4)? });
        }
        let kind = bytes.get(at + 4..at + 6).ok_or_else(short)?;
        match kind {
            b"OB" | b"OD" | b"OF" | b"OL" | b"OV" | b"OW" | b"SQ" | b"SV" | b"UC" | b"UN" | b"UR" | b"UT" | b"UV" => {
                Ok(Self { tag, sequence: kind == b"SQ", value: at + 12, length: four(at + 8)? })
            }
            _ if kind.iter().all(u8::is_ascii_uppercase) => Ok(Self { tag, sequence: false, value: at + 8, length: two(at + 6)?.into() }),
            _ => Err(format!("the element at byte {at} is of no type that there is")),
        }
    }

    /// The end of the value, if that is told.
    fn end(&self) -> Option<usize> {
        (self.length != UNDEFINED).then(|| self.value + self.length as usize)
    }
}

/// A sequence or an item that is open.
struct Open {
    end: Option<usize>,
    implicit: bool,
    /// Whether items are fragments of pixel data.
    fragments: bool,
}

type Pixels = Option<(usize, Option<Range<usize>>)>;

/// Follows all elements of a data set: every length that is told must be there. Returns where the
/// pixel data lies.
fn walk(bytes: &[u8], mut at: usize, implicit: bool, big_endian: bool) -> Result<Pixels, String> {
    let mut open: Vec<Open> = Vec::new();
    let mut pixels = None;
    loop {
        while let Some(end) = open.last().and_then(|o| o.end).filter(|end| at >= *end) {
            if at > end {
                return Err(format!("an element reaches beyond its sequence at byte {end}"));
            }
            open.pop();
        }
        if at >= bytes.len() {
            return Ok(pixels);
        }
        let limit = open.iter().rev().find_map(|o| o.end).unwrap_or(bytes.len());
        let within = open.last();
        let is_implicit = within.map_or(implicit, |o| o.implicit);
        let fragments = within.is_some_and(|o| o.fragments);
        let element = Element::read(bytes, at, is_implicit, big_endian)?;
        if element.end().is_some_and(|end| end > limit) {
            return Err(format!(
                "the element at byte {at} claims {} bytes, but {} are there",
                element.length,
                limit.saturating_sub(element.value)
            ));
        }
        at = match (element.tag, element.end()) {
            ((0xfffe, 0xe00d | 0xe0dd), _) => {
                open.pop();
                element.value
            }
            ((0xfffe, _), Some(end)) if fragments => end,
            ((0xfffe, _), end) => {
                open.push(Open { end, implicit: is_implicit, fragments: false });
                element.value
            }
            (tag, end) => {
                let pixel_data = tag == (0x7fe0, 0x10);
                if pixel_data && open.is_empty() {
                    pixels = Some((at, end.map(|end| element.value..end)));
                }
                let item = bytes.get(element.value..element.value + 4) == Some(&[0xfe, 0xff, 0, 0xe0]);
                match end {
                    None => {
                        // sequences of unknown type are implicit
                        let unknown = !is_implicit && bytes.get(at + 4..at + 6) == Some(b"UN");
                        let image = !element.sequence && !is_implicit && !unknown || pixel_data;
                        open.push(Open { end: None, implicit: is_implicit || unknown, fragments: image });
                        element.value
                    }
                    Some(end) if element.sequence || is_implicit && item => {
                        open.push(Open { end: Some(end), implicit: is_implicit, fragments: false });
                        element.value
                    }
                    Some(end) => end,
                }
            }
        };
        if open.len() > 2 * DEEPEST {
            return Err(format!("its sequences are nested deeper than {DEEPEST}"));
        }
    }
}
