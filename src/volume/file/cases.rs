//! Many scans: what folders, patterns and lists name, case by case.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::raw::{plain, trouble};
use crate::host::{entries, open_file, read_text};
use crate::volume::{VolumeError, VolumeErrorKind};

/// Endings of files that are scans, the longest first.
const ENDINGS: [&str; 11] = [".nii.gz", ".mgh.gz", ".hdr.gz", ".nii", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh"];
/// Deeper folders are not looked into.
const DEEPEST: usize = 16;
/// The largest list that is read, in bytes.
const LARGEST_LIST: u64 = 64 << 20;

/// A scan among many.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Case {
    /// Its name, which no other case has: that of the file without its ending (and nnU-Net's
    /// `_0000`), or of the DICOM folder. Names that come twice are the paths, with `_` between the
    /// folders.
    pub name: String,
    /// Its file, its channels in files of their own, or its DICOM folder or archive.
    pub files: Vec<PathBuf>,
}

/// The cases that these paths name, in the order of their names: files; folders, in which scans and
/// DICOM series lie at any depth; patterns with `*`, `?` and `[..]`; and `@FILE`, a list of such
/// paths, one a line. `channels` files that differ in nnU-Net's `_0000`, `_0001`, .. alone are one
/// case.
///
/// Hidden files and folders, and the folders `derivatives` and `sourcedata` of BIDS, are passed
/// over.
///
/// # Errors
/// When a path is not there, a pattern fits nothing, or there are no scans.
pub fn cases(paths: &[PathBuf], channels: u32) -> Result<Vec<Case>, VolumeError> {
    let mut found = Vec::new();
    for path in paths {
        add(path, channels, &mut found)?;
    }
    // the place of a case, and its files
    let mut places: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    let mut named: BTreeMap<PathBuf, Vec<Found>> = BTreeMap::new();
    for one in found {
        let alike = named.entry(one.place.clone()).or_default();
        if alike.iter().all(|other| other.file != one.file) {
            alike.push(one);
        }
    }
    for (place, alike) in named {
        if alike.len() == 1 || alike.iter().all(|one| one.numbered) {
            places.insert(place, alike.into_iter().map(|one| one.file).collect());
        } else {
            // scans that differ in their endings alone have them in their names
            places.extend(alike.into_iter().map(|one| (one.file.clone(), vec![one.file])));
        }
    }
    let short = |place: &Path| place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    places.keys().for_each(|place| *count.entry(short(place)).or_default() += 1);
    let mut cases: Vec<Case> = places
        .into_iter()
        .map(|(place, mut files)| {
            files.sort();
            let long = || place.to_string_lossy().trim_matches(['/', '\\', '.']).replace(['/', '\\'], "_");
            let name = if count[&short(&place)] == 1 { short(&place) } else { long() };
            Case { name, files }
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = cases.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(other(&pair[1].files[0], format!("two scans have the name {}", pair[0].name)));
    }
    if cases.is_empty() {
        let shown: Vec<String> = paths.iter().take(3).map(|path| path.display().to_string()).collect();
        return Err(VolumeError::new(VolumeErrorKind::NotFound, format!("there are no scans in {}", shown.join(", "))));
    }
    Ok(cases)
}

/// A file or a DICOM folder, and the name of its case with its folder.
struct Found {
    place: PathBuf,
    file: PathBuf,
    /// Whether it has the number of a channel.
    numbered: bool,
}

fn other(path: &Path, text: String) -> VolumeError {
    VolumeError::new(VolumeErrorKind::Unsupported, format!("{}: {text}", path.display()))
}

fn add(path: &Path, channels: u32, found: &mut Vec<Found>) -> Result<(), VolumeError> {
    let text = path.to_string_lossy();
    if let Some(list) = text.strip_prefix('@') {
        let list = Path::new(list);
        let lines = read_text(list, LARGEST_LIST).map_err(|e| trouble(list, "read", e))?;
        let names = lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', '@']));
        return names.into_iter().try_for_each(|name| add(Path::new(name), channels, found));
    }
    if !path.exists() && text.contains(['*', '?', '[']) {
        let before = found.len();
        for path in glob::glob(&text).map_err(|e| other(path, format!("is no pattern: {e}")))? {
            let path = path.map_err(|e| other(Path::new(&*text), e.to_string()))?;
            add(&path, channels, found)?;
        }
        if found.len() == before {
            return Err(VolumeError::new(VolumeErrorKind::NotFound, format!("no scan fits the pattern {text}")));
        }
        return Ok(());
    }
    if path.is_dir() {
        return walk(path, channels, 0, found);
    }
    if !path.exists() {
        return Err(trouble(path, "opened", io::ErrorKind::NotFound.into()));
    }
    found.push(of_file(path, channels));
    Ok(())
}

/// A file by its name.
fn of_file(path: &Path, channels: u32) -> Found {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let lower = name.to_lowercase();
    let ending = ENDINGS.iter().chain(&[".zip", ".dcm"]).find(|ending| lower.ends_with(**ending));
    let stem = &name[..name.len() - ending.map_or(0, |ending| ending.len())];
    let number = stem.rsplit_once('_').filter(|(_, n)| n.len() == 4 && n.bytes().all(|b| b.is_ascii_digit()));
    let (stem, numbered) = match number {
        Some((stem, n)) if channels > 1 || n == "0000" => (stem, true),
        _ => (stem, false),
    };
    Found { place: path.with_file_name(stem), file: path.to_path_buf(), numbered }
}

fn walk(folder: &Path, channels: u32, depth: usize, found: &mut Vec<Found>) -> Result<(), VolumeError> {
    let failed = |e| trouble(folder, "read", e);
    let paths = entries(folder).map_err(failed)?;
    let (mut scans, mut first) = (Vec::new(), None);
    for path in &paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if name.starts_with('.') || path.is_dir() {
            if !name.starts_with('.') && depth < DEEPEST && !matches!(&*name, "derivatives" | "sourcedata") {
                walk(path, channels, depth + 1, found)?;
            }
            continue;
        }
        if ENDINGS.iter().any(|ending| name.ends_with(ending)) || name.ends_with(".zip") {
            scans.push(of_file(path, channels));
        } else if first.is_none() && path.is_file() && name != "dicomdir" && is_dicom(path) {
            first = Some(path);
        }
    }
    if first.is_some() {
        // canonical, so that `.` has a name
        let place = folder.canonicalize().map_err(failed)?;
        let place = place.file_name().map_or_else(|| folder.to_path_buf(), |name| folder.join("..").join(name));
        scans.push(Found { place, file: folder.to_path_buf(), numbered: false });
    }
    found.extend(scans);
    Ok(())
}

/// Whether a file begins as DICOM files do.
fn is_dicom(path: &Path) -> bool {
    let mut start = [0; 132];
    plain(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok()) && start[128..] == *b"DICM"
}

/// The SHA-256 of a file, in hexadecimal; of a folder that of the lines `HASH  NAME` of all files
/// in it, in the order of their names.
///
/// # Errors
/// Those of reading them.
pub fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    if path.is_dir() {
        for name in entries(path)? {
            let line = format!("{}  {}\n", sha256(&name)?, name.file_name().unwrap_or_default().to_string_lossy());
            hasher.update(line.as_bytes());
        }
    } else {
        let mut file = open_file(path)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
    }
    let mut text = String::new();
    for byte in hasher.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    fn names(cases: &[Case]) -> Vec<(&str, usize)> {
        cases.iter().map(|case| (case.name.as_str(), case.files.len())).collect()
    }

    #[test]
    fn cases_are_found() -> Outcome {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        for name in ["sub-1/anat", "sub-2/anat", "derivatives", ".hidden", "series"] {
            std::fs::create_dir_all(at(name))?;
        }
        for name in
            ["sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.NII", "derivatives/x.nii", ".hidden/y.nii", "notes.txt", "sub-1/z.img"]
        {
            std::fs::write(at(name), "")?;
        }
        std::fs::write(at("series/IM1"), [&[0; 128][..], b"DICM"].concat())?;
        let all = cases(&[folder.path().to_path_buf()], 1)?;
        assert_eq!(names(&all), [("series", 1), ("sub-1_T1w", 1), ("sub-2_T1w", 1)]);
        assert_eq!(all[0].files, [at("series")]);
        let some = cases(&[at("sub-*/anat/*T1w*")], 1)?;
        assert_eq!(names(&some), [("sub-1_T1w", 1), ("sub-2_T1w", 1)]);
        std::fs::write(at("list"), format!("# two\n{}\n\n{}\n", at("sub-2").display(), at("series").display()))?;
        let listed = cases(&[PathBuf::from(format!("@{}", at("list").display()))], 1)?;
        assert_eq!(names(&listed), [("series", 1), ("sub-2_T1w", 1)]);
        let kind = |path: PathBuf| cases(&[path], 1).err().map(|e| e.kind());
        for gone in ["gone.nii", "gone*", "derivatives/none", "[", ".hidden/none"] {
            assert!(kind(at(gone)).is_some(), "{gone}");
        }
        std::fs::create_dir(at("empty"))?;
        assert_eq!(kind(at("empty")), Some(VolumeErrorKind::NotFound));
        Ok(())
    }

    #[test]
    fn channels_are_one_case_and_names_are_unique() -> Outcome {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        for name in ["a", "b"] {
            std::fs::create_dir(at(name))?;
        }
        for name in ["a/x_0000.nii", "a/x_0001.nii", "b/y_0000.mha", "a/z.nrrd", "b/z.nrrd"] {
            std::fs::write(at(name), "")?;
        }
        let two = cases(&[at("a/x_0001.nii"), at("a/x_0000.nii")], 2)?;
        assert_eq!((names(&two), &two[0].files[0]), (vec![("x", 2)], &at("a/x_0000.nii")));
        assert_eq!(names(&cases(&[at("a")], 1)?), [("x", 1), ("x_0001", 1), ("z", 1)]);
        assert_eq!(names(&cases(&[at("b/y_0000.mha")], 1)?), [("y", 1)]);
        std::fs::write(at("a/z.mha"), "")?;
        assert_eq!(names(&cases(&[at("a")], 1)?), [("x", 1), ("x_0001", 1), ("z.mha", 1), ("z.nrrd", 1)]);
        std::fs::remove_file(at("a/z.mha"))?;
        let all = cases(&[folder.path().to_path_buf()], 1)?;
        assert!(all.iter().any(|case| case.name.ends_with("_a_z")) && all.iter().any(|case| case.name.ends_with("_b_z")), "{all:?}");
        Ok(())
    }

    #[test]
    fn hashes_are_those_of_sha256sum() -> Outcome {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("a"), "abc")?;
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&folder.path().join("a"))?, abc);
        std::fs::create_dir(folder.path().join("b"))?;
        assert_eq!(sha256(folder.path())?.len(), 64);
        assert!(sha256(&folder.path().join("c")).is_err());
        Ok(())
    }
}
