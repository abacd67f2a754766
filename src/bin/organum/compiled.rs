//! The file of compiled kernels in the user's cache folder: one for each adapter, driver and version. It only saves time, so
//! that nothing about it is an error.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use organum::Engine;
use organum::host::read_file;
use organum::volume::write_whole;

/// A larger file is not one of ours.
const LARGEST: u64 = 256 << 20;

/// The folder, where the user has one.
fn folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || absolute("HOME").map(|home| home.join(".cache"));
    let caches = absolute("XDG_CACHE_HOME").or_else(home).or_else(|| absolute("LOCALAPPDATA"))?;
    Some(caches.join("organum"))
}

/// The file of an adapter, and what it held when it was last read or written.
pub(crate) struct Kept {
    path: PathBuf,
    held: Mutex<Vec<u8>>,
}

impl Kept {
    /// Gives what earlier processes compiled to the engine. `None` where nothing is to be kept: the device cannot, there is no
    /// folder, or `ORGANUM_NO_PIPELINE_CACHE` is set.
    pub(crate) fn open(engine: &Engine) -> Option<Self> {
        if std::env::var_os("ORGANUM_NO_PIPELINE_CACHE").is_some_and(|value| !value.is_empty()) {
            return None;
        }
        let path = folder()?.join(engine.compiled_name()?);
        let bytes = read_file(&path, LARGEST).unwrap_or_default();
        // what does not fit is written anew
        let held = if engine.reuse_compiled(&bytes) { bytes } else { Vec::new() };
        Some(Self { path, held: Mutex::new(held) })
    }

    /// Writes what the engine has compiled since.
    pub(crate) fn update(&self, engine: &Engine) {
        let Some(bytes) = engine.compiled() else { return };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == bytes {
            return;
        }
        if let Some(folder) = self.path.parent()
            && std::fs::create_dir_all(folder).is_ok()
            && write_whole(&self.path, "pipelines.bin", |temporary| std::fs::write(temporary, &bytes)).is_ok()
        {
            *held = bytes;
        }
    }
}
