//! Models as `--model`, `--fold` and `--checkpoint` name them.

use std::path::Path;

use organum::model::Checkpoint;
use organum::monai::Bundle;
use organum::{LoadOptions, Model, Networks, Unpacked};

use crate::args::Which;
use crate::fail::Failure;

/// The networks that `--model` and its options name.
pub(crate) fn open(path: &Path, options: &LoadOptions) -> Result<Networks, Failure> {
    let zipped = Unpacked::leads_to(path);
    if !zipped && (!path.is_dir() || Bundle::locate(path)?.is_some()) {
        let told = [("--fold", !options.folds.is_empty(), "folds"), ("--checkpoint", options.checkpoint.is_some(), "checkpoints")];
        if let Some((option, _, what)) = told.into_iter().find(|(_, told, _)| *told) {
            let text = format!("{option}: a model file or a MONAI bundle has no {what}; folders of nnU-Net models have");
            return Err(Failure::usage(text));
        }
    }
    if options.weights.is_some() && path.is_dir() {
        return Err(Failure::usage("--weights: the checkpoints of a folder hold one network each"));
    }
    Ok(organum::open(path, options)?)
}

/// Options to open a model: its folds, their checkpoint, and whether weights may be NaN or
/// infinite.
pub(crate) fn options(folds: &[String], checkpoint: Option<&str>, allow_non_finite: bool) -> LoadOptions {
    let mut options = LoadOptions::default();
    (options.folds, options.checkpoint) = (folds.to_vec(), checkpoint.map(str::to_owned));
    options.allow_non_finite = allow_non_finite;
    options
}

/// The network alone: of an nnU-Net folder that of the fold that is asked for, or the first; of a
/// file what its card or its tensors tell.
pub(crate) fn network(path: &Path, which: &Which, allow_non_finite: bool) -> Result<Model, Failure> {
    let asked = which.fold.is_some() || which.checkpoint.is_some();
    if asked || path.is_dir() || Unpacked::leads_to(path) || Bundle::locate(path)?.is_some() {
        let folds: Vec<String> = which.fold.iter().cloned().collect();
        return Ok(open(path, &options(&folds, which.checkpoint.as_deref(), allow_non_finite))?.first);
    }
    Ok(Checkpoint::open(path)?.allow_non_finite(allow_non_finite).into_model(None)?)
}
