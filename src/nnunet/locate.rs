//! The folder of a trained model, found from a folder above it or from that of a fold.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{LoadError, LoadErrorKind};

/// Folders above a trained model's: `results/Dataset/TRAINER__PLANS__CONFIGURATION` of v2,
/// `results/nnUNet/3d_fullres/Task/TRAINER__PLANS` of v1.
const DEEPEST: u32 = 4;
/// The most folders that are looked into.
const MOST: usize = 2000;

/// Whether plans of nnU-Net lie in a folder.
pub(super) fn has_plans(folder: &Path) -> bool {
    folder.join("plans.pkl").is_file() || folder.join("plans.json").is_file()
}

/// The folder of the only trained model in a folder or in those within it; `None` where there is
/// none.
///
/// # Errors
/// When there are several; the message names them.
pub(super) fn below(folder: &Path) -> Result<Option<PathBuf>, LoadError> {
    let (mut found, mut left) = (Vec::new(), MOST);
    look(folder, DEEPEST, &mut left, &mut found);
    found.sort();
    match &found[..] {
        [] => Ok(None),
        [only] => Ok(Some(only.clone())),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            let text = format!("{} holds {} trained models: {}; name one of them", folder.display(), several.len(), names.join(", "));
            Err(LoadError::new(LoadErrorKind::NotFound, text))
        }
    }
}

fn look(folder: &Path, depth: u32, left: &mut usize, found: &mut Vec<PathBuf>) {
    // folders that cannot be read hold nothing to open
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if *left == 0 || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        *left -= 1;
        let path = entry.path();
        if has_plans(&path) {
            found.push(path);
        } else if depth > 1 {
            look(&path, depth - 1, left, found);
        }
    }
}
