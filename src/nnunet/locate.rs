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

/// True if a folder holds plans and the folder of a fold, as those of cross-validated ensembles do
/// not.
fn is_trained(folder: &Path) -> bool {
    let fold = |name: &str| name == "all" || name.starts_with("fold_");
    let entries = || fs::read_dir(folder).into_iter().flatten().flatten();
    has_plans(folder) && entries().any(|entry| entry.file_name().to_str().is_some_and(fold))
}

/// The folder of the model that a file of plans or of the dataset lies in.
pub(crate) fn of_part(file: &Path) -> Option<&Path> {
    let name = file.file_name()?.to_str()?;
    let part = ["plans.json", "plans.pkl", "dataset.json", "dataset_fingerprint.json"].contains(&name);
    file.parent().filter(|folder| part && file.is_file() && has_plans(folder))
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

/// The folder of a configuration beside that of another, whose name ends in the same plans: that of
/// the same trainer, or else the only one.
///
/// # Errors
/// When there are several; the message names them.
pub(super) fn sibling(folder: &Path, configuration: &str) -> Result<Option<PathBuf>, LoadError> {
    let Some(parent) = folder.parent() else { return Ok(None) };
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let parts: Vec<&str> = name.split("__").collect();
    if let [trainer, plans, _] = parts[..] {
        let same = parent.join(format!("{trainer}__{plans}__{configuration}"));
        if has_plans(&same) {
            return Ok(Some(same));
        }
    }
    let ends = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let other: Vec<&str> = name.split("__").collect();
        let planned = parts.len() != 3 || other.len() != 3 || parts[1] == other[1];
        planned && other.last() == Some(&configuration) && has_plans(path)
    };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries.filter(ends).collect();
    found.sort();
    match &found[..] {
        [] => Ok(None),
        [only] => Ok(Some(only.clone())),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            let text = format!(
                "{} is the second stage of a cascade, and several models of {configuration} lie beside it: {}; give labels \
                 of one of them by --previous LABELS",
                folder.display(),
                names.join(", ")
            );
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
        if is_trained(&path) {
            found.push(path);
        } else if depth > 1 {
            look(&path, depth - 1, left, found);
        }
    }
}
