//! Files that appear whole or not at all.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::{VolumeError, VolumeErrorKind};

/// The begin of the names of folders in which files are written.
const PREFIX: &str = ".organum-";
/// The file in such a folder that is locked as long as its process lives.
const LOCK: &str = "lock";
/// The environment variable of a delay in milliseconds after each part of a file, for tests that
/// end the process meanwhile.
const DELAY: &str = "ORGANUM_TEST_WRITE_DELAY_MS";

/// The files that this process writes.
#[derive(Default)]
struct Writing {
    /// Folders of files that are not whole yet.
    folders: BTreeSet<PathBuf>,
    /// Folders that were looked through for what ended processes left.
    swept: BTreeSet<PathBuf>,
    /// True once no file may appear any more.
    stopped: bool,
}

fn writing() -> MutexGuard<'static, Writing> {
    static WRITING: OnceLock<Mutex<Writing>> = OnceLock::new();
    WRITING.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets `write` make a file called `temporary` in a folder of its own beside `path`, then moves it
/// to `path`: the file appears whole or not at all. A link is followed, if it leads to a file.
/// `write` returns I/O errors as they are; they are told here. What processes that were killed left
/// beside `path` is removed.
///
/// # Errors
/// When the folder is missing or the file cannot be written, or after [`stop_writing`].
pub fn write_whole(path: &Path, temporary: &str, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), VolumeError> {
    let followed = if path.is_symlink() { path.canonicalize().ok() } else { None };
    let path = followed.as_deref().unwrap_or(path);
    let parent = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let written = Folder::beside(parent).and_then(|folder| {
        let temporary = folder.held.path().join(temporary);
        write(&temporary)?;
        delay();
        let writing = writing();
        if writing.stopped {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // under the lock, so that nothing appears once writing was stopped
        std::fs::rename(&temporary, path)
    });
    written.map_err(|e| {
        let (path, folder) = (path.display(), parent.display());
        let (kind, text) = match e.kind() {
            io::ErrorKind::NotFound => {
                (VolumeErrorKind::NotFound, format!("cannot write {path}: there is no folder {folder}; create it first"))
            }
            _ => (VolumeErrorKind::Io, format!("cannot write {path}: {e}")),
        };
        VolumeError::new(kind, text).caused(e)
    })
}

/// Removes the files that this process has not finished, and lets no further file appear: for
/// programs that are about to end.
pub fn stop_writing() {
    let mut writing = writing();
    writing.stopped = true;
    // what cannot be removed is removed by the next process that writes there
    for folder in std::mem::take(&mut writing.folders) {
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// Waits where a test asks for it.
pub(crate) fn delay() {
    static ASKED: OnceLock<Option<Duration>> = OnceLock::new();
    let asked = ASKED.get_or_init(|| Some(Duration::from_millis(std::env::var(DELAY).ok()?.parse().ok()?)));
    if let Some(delay) = asked {
        std::thread::sleep(*delay);
    }
}

/// A folder in which a file is written, removed when it is dropped.
struct Folder {
    /// Released before the folder is removed.
    _lock: Option<File>,
    held: tempfile::TempDir,
}

impl Folder {
    fn beside(parent: &Path) -> io::Result<Self> {
        sweep(parent);
        // another process may take an empty folder for one that was left
        const TRIES: usize = 8;
        let mut failed = io::ErrorKind::NotFound.into();
        for _ in 0..TRIES {
            let held = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            match File::create_new(held.path().join(LOCK)) {
                Ok(file) => {
                    // where there are no locks, nobody can tell that it was left either
                    let locked = file.try_lock().is_ok();
                    writing().folders.insert(held.path().to_path_buf());
                    return Ok(Self { _lock: Some(file).filter(|_| locked), held });
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => failed = e,
                Err(e) => return Err(e),
            }
        }
        Err(failed)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        writing().folders.remove(self.held.path());
    }
}

/// Removes what processes that are no more left in a folder, once in this process.
fn sweep(parent: &Path) {
    let place = parent.canonicalize().unwrap_or_else(|_| parent.to_path_buf());
    if !writing().swept.insert(place) {
        return;
    }
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if ours && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_left(&entry.path());
        }
    }
}

/// Removes a folder if the process that made it is no more.
fn remove_left(folder: &Path) {
    match File::open(folder.join(LOCK)) {
        Ok(lock) if lock.try_lock().is_ok() => drop(std::fs::remove_dir_all(folder)),
        Ok(_) => {}
        // ended between two steps, or about to lock it; then it makes another
        Err(_) => drop(std::fs::remove_dir(folder)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    #[test]
    fn files_appear_whole() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("file");
        write_whole(&file, "new", |path| std::fs::write(path, "one"))?;
        let failed = write_whole(&file, "new", |path| {
            std::fs::write(path, "tw")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.map_err(|e| e.kind()), Err(VolumeErrorKind::Io));
        assert_eq!((std::fs::read_to_string(&file)?.as_str(), names(folder.path())?), ("one", vec!["file".to_owned()]));
        let missing = write_whole(&folder.path().join("no/file"), "new", |path| std::fs::write(path, "one"));
        assert_eq!(missing.map_err(|e| e.kind()), Err(VolumeErrorKind::NotFound));
        Ok(())
    }

    #[test]
    fn what_killed_processes_left_is_removed() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        // of a process that is no more: nobody holds its lock
        std::fs::create_dir(at(".organum-dead"))?;
        std::fs::write(at(".organum-dead/lock"), "")?;
        std::fs::write(at(".organum-dead/volume"), "half")?;
        // of one that ended before it locked
        std::fs::create_dir(at(".organum-young"))?;
        // of one that lives
        std::fs::create_dir(at(".organum-alive"))?;
        let lock = File::create(at(".organum-alive/lock"))?;
        lock.try_lock()?;
        // none of ours
        std::fs::create_dir(at(".organum-kept"))?;
        std::fs::write(at(".organum-kept/notes"), "")?;
        std::fs::write(at(".organum-file"), "")?;
        write_whole(&at("file"), "new", |path| std::fs::write(path, "one"))?;
        assert_eq!(names(folder.path())?, [".organum-alive", ".organum-file", ".organum-kept", "file"]);
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "old")?;
        std::os::unix::fs::symlink("file", &link)?;
        write_whole(&link, "new", |path| std::fs::write(path, "new"))?;
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&file)?, "new");
        Ok(())
    }
}
