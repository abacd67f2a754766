//! What `--model` and `--fold` name.

use std::path::Path;

use organum::model::Checkpoint;
use organum::monai::Bundle;
use organum::{LoadOptions, Model, Networks};

use crate::fail::Failure;

/// The networks that `--model` and `--fold` name.
pub(crate) fn open(path: &Path, fold: Option<&str>, allow_non_finite: bool) -> Result<Networks, Failure> {
    if fold.is_some() && (!path.is_dir() || Bundle::locate(path)?.is_some()) {
        let text = "--fold: a model file or a MONAI bundle has no folds; folders of nnU-Net models have";
        return Err(Failure::usage(text));
    }
    let mut options = LoadOptions::default();
    (options.fold, options.allow_non_finite) = (fold.map(str::to_owned), allow_non_finite);
    Ok(organum::open(path, &options)?)
}

/// The network alone: of an nnU-Net folder that of the first fold, of a file what its card or its
/// tensors tell.
pub(crate) fn network(path: &Path, allow_non_finite: bool) -> Result<Model, Failure> {
    if path.is_dir() || Bundle::locate(path)?.is_some() {
        return Ok(open(path, None, allow_non_finite)?.first);
    }
    Ok(Checkpoint::open(path)?.allow_non_finite(allow_non_finite).into_model(None)?)
}
