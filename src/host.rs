//! The host: its memory, and its files read within bounds.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
#[cfg(any(feature = "cli", feature = "dicom"))]
use std::path::PathBuf;

/// The memory in bytes that programs can take without swapping: `MemAvailable` of Linux; `None`
/// where the system does not tell.
#[must_use]
pub fn available_memory() -> Option<u64> {
    // fuzzing looks for what passes the bounds of any machine
    if cfg!(fuzzing) {
        return Some(64 << 20);
    }
    parse_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Opens a regular file. Pipes and devices, which may block or never end, are refused.
///
/// # Errors
/// Those of opening it, and [`io::ErrorKind::InvalidInput`] for what is no regular file.
pub fn open_file(path: &Path) -> io::Result<File> {
    // asked before it is opened: a pipe without a writer blocks there
    if std::fs::metadata(path)?.is_file() {
        return File::open(path);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
}

/// Reads a regular file of at most `most` bytes.
///
/// # Errors
/// Those of opening and reading it, [`io::ErrorKind::InvalidInput`] for what is no regular file, and
/// [`io::ErrorKind::InvalidData`] for a larger file.
pub fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_file(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let text = format!("it is larger than {}", crate::shape::format_bytes(most));
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(bytes)
}

/// The same for text in UTF-8.
///
/// # Errors
/// Those of [`read_file`], and [`io::ErrorKind::InvalidData`] for what is no text.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let text = String::from_utf8(read_file(path, most)?);
    text.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text in UTF-8"))
}

/// The files and folders in a folder, in the order of their names.
///
/// # Errors
/// Those of reading it.
#[cfg(any(feature = "cli", feature = "dicom"))]
pub(crate) fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut paths = entries.collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_within_bounds() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("a.json");
        std::fs::write(&file, "12345")?;
        assert_eq!(read_text(&file, 5)?, "12345");
        let kind = |r: io::Result<Vec<u8>>| r.err().map(|e| e.kind());
        assert_eq!(kind(read_file(&file, 4)), Some(io::ErrorKind::InvalidData));
        assert_eq!(kind(read_file(folder.path(), 9)), Some(io::ErrorKind::InvalidInput));
        assert_eq!(kind(read_file(&folder.path().join("b"), 9)), Some(io::ErrorKind::NotFound));
        std::fs::write(&file, [0xff])?;
        assert!(read_text(&file, 5).is_err());
        #[cfg(unix)]
        assert_eq!(kind(read_file(Path::new("/dev/zero"), 9)), Some(io::ErrorKind::InvalidInput));
        Ok(())
    }

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal: 10 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(parse_available(text), Some(2 << 20));
        assert_eq!(parse_available("MemTotal: 10 kB\n"), None);
    }
}
