//! The networks that segment a scan, from whatever a model lies in.

use std::path::{Path, PathBuf};

#[cfg(feature = "archives")]
use crate::archive::Unpacked;
use crate::error::{LoadError, LoadErrorKind};
use crate::model::{Checkpoint, CheckpointFormat, InputSpec, Model};
use crate::monai::Bundle;
use crate::nnunet::{self, Folder};
use crate::scan::Filter;
use crate::warning::{Warning, WarningKind};

/// The networks that segment a scan: that of a model file, a checkpoint or a MONAI bundle, or those
/// of the folds of an nnU-Net model. Clones share the weights.
#[derive(Clone, Debug)]
pub struct Networks {
    /// The only network, or that of the first fold.
    pub first: Model,
    folder: Option<Folder>,
    folds: Vec<String>,
    warnings: Vec<Warning>,
    /// The file, if the model is one.
    file: Option<PathBuf>,
    allow_non_finite: bool,
    /// Filters of labels in place of those of the model's cards.
    postprocessing: Option<Vec<Filter>>,
    /// The options that they were opened with.
    options: LoadOptions,
    /// The archive's model, as long as files of it are read.
    #[cfg(feature = "archives")]
    unpacked: Option<Unpacked>,
}

/// How [`Networks`] are opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The folds to take of an nnU-Net folder, averaged: numbers, or `all`. None for those that
    /// there are.
    pub folds: Vec<String>,
    /// The checkpoint to take of each fold: `final`, `best`, `latest`, or a file's name. `None` for
    /// that of the whole training; of v1 the best one where there is no such.
    pub checkpoint: Option<String>,
    /// The key of a checkpoint's outermost dict, or the begin of its tensors' names, under which
    /// the network is: where a checkpoint holds several, as `ema` or `teacher`.
    pub weights: Option<String>,
    /// Whether weights may be NaN or infinite.
    pub allow_non_finite: bool,
    /// Filters of an nnU-Net model's labels in the end, as
    /// [`nnunet::postprocessing`] reads it; none of it where the list is empty. `None` for what a
    /// file beside the model says.
    pub postprocessing: Option<Vec<Filter>>,
}

impl LoadOptions {
    /// With this fold of an nnU-Net folder, and others that are told so, but none else.
    #[must_use]
    pub fn with_fold(mut self, fold: impl Into<String>) -> Self {
        self.folds.push(fold.into());
        self
    }

    /// With this checkpoint of each fold of an nnU-Net folder: `final`, `best`, `latest`, or a
    /// file's name.
    #[must_use]
    pub fn with_checkpoint(mut self, name: impl Into<String>) -> Self {
        self.checkpoint = Some(name.into());
        self
    }

    /// With the network under this key of a checkpoint, or under this begin of its tensors' names.
    #[must_use]
    pub fn with_weights(mut self, key: impl Into<String>) -> Self {
        self.weights = Some(key.into());
        self
    }

    /// With this done to the labels of an nnU-Net model in the end, in place of what a file beside it
    /// says.
    #[must_use]
    pub fn with_postprocessing(mut self, filters: Vec<Filter>) -> Self {
        self.postprocessing = Some(filters);
        self
    }

    /// With NaN and infinite weights taken as they are.
    #[must_use]
    pub fn with_non_finite(mut self) -> Self {
        self.allow_non_finite = true;
        self
    }
}

/// A warning that names the tensors beside a network, or the outputs besides the first of an ONNX file.
#[must_use]
pub fn aside(checkpoint: &Checkpoint) -> Option<Warning> {
    const MOST: usize = 6;
    let onnx = checkpoint.format() == CheckpointFormat::Onnx;
    if checkpoint.card().is_some() && !onnx {
        return None;
    }
    let names = checkpoint.left_aside();
    let what = if onnx { "outputs besides the first" } else { "tensors beside the network" };
    let more = if names.len() > MOST { ", .." } else { "" };
    let text = format!("{} {what} are left aside: {}{more}", names.len(), names[..names.len().min(MOST)].join(", "));
    (!names.is_empty()).then(|| Warning::new(WarningKind::Pipeline, text))
}

/// The pipeline of a checkpoint without a card of organum's.
#[derive(Clone, Debug)]
pub struct Carried {
    /// The JSON of the card that it makes.
    pub card: String,
    /// What is to be warned of.
    pub warnings: Vec<Warning>,
    /// The fold of an nnU-Net model that the checkpoint is.
    pub fold: Option<String>,
}

impl Carried {
    /// The pipeline that a checkpoint carries, or that of the nnU-Net folder or MONAI bundle that it
    /// lies in; see [`Folder::of_checkpoint`] and [`Bundle::of_weights`]. None of a file that has none.
    ///
    /// # Errors
    /// When the plans or configs are damaged, or ask for what this version does not do.
    pub fn of(file: &Path) -> Result<Option<Self>, LoadError> {
        Self::of_part(file, None)
    }

    /// The same of the network under a key of a checkpoint, which is none of nnU-Net's.
    ///
    /// # Errors
    /// As [`Carried::of`].
    pub fn of_part(file: &Path, key: Option<&str>) -> Result<Option<Self>, LoadError> {
        let folder = if key.is_none() { Folder::of_checkpoint(file)? } else { None };
        if let Some(folder) = folder {
            let fold = folder.folds()?.swap_remove(0);
            let card = serde_json::to_string(&folder.card(&fold)?)
                .map_err(|e| LoadError::new(LoadErrorKind::Card, "the card could not be written").caused_by(e))?;
            return Ok(Some(Self { card, warnings: folder.warnings(&fold)?, fold: Some(fold) }));
        }
        let bundle = Bundle::of_weights(file)?;
        bundle.map(|bundle| Ok(Self { card: bundle.card()?, warnings: bundle.warnings()?, fold: None })).transpose()
    }
}

impl From<Model> for Networks {
    fn from(first: Model) -> Self {
        let (folds, warnings) = (Vec::new(), Vec::new());
        Self {
            first,
            folder: None,
            folds,
            warnings,
            file: None,
            allow_non_finite: true,
            postprocessing: None,
            options: LoadOptions::default(),
            #[cfg(feature = "archives")]
            unpacked: None,
        }
    }
}

impl Networks {
    /// Opens a model file, a PyTorch checkpoint, a MONAI bundle ([`Bundle::locate`]), or an nnU-Net
    /// folder: all its folds, or those told; the latter two in a zip archive, too (`Unpacked`). A
    /// checkpoint without a card has the pipeline that it carries or lies in ([`Carried`]).
    ///
    /// # Errors
    /// When the model cannot be loaded, or folds or a checkpoint are told of what has none.
    pub fn open(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, LoadError> {
        #[cfg(feature = "archives")]
        if let Some(unpacked) = Unpacked::of(&path)? {
            let mut networks = Self::open(unpacked.path(), options).map_err(|e| unpacked.explain(e))?;
            networks.unpacked = Some(unpacked);
            return Ok(networks);
        }
        let mut networks = Self::opened(path, options)?;
        if let Some(filters) = &options.postprocessing {
            networks.first = networks.first.with_postprocessing(filters)?;
            networks.postprocessing = Some(filters.clone());
        }
        networks.options = options.clone();
        Ok(networks)
    }

    fn opened(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, LoadError> {
        let located = Bundle::locate(path.as_ref())?;
        let path = located.as_deref().unwrap_or(path.as_ref());
        if options.weights.is_some() && path.is_dir() {
            let text = format!("{} is a folder, whose checkpoints hold one network each", path.display());
            return Err(LoadError::new(LoadErrorKind::NotFound, text));
        }
        let (told, allowed) = (!options.folds.is_empty(), options.allow_non_finite);
        if path.is_dir() && !Bundle::is_one(path) {
            let folder = Folder::open_checkpoint(path, options.checkpoint.as_deref())?;
            let folds = if told { options.folds.clone() } else { folder.folds()? };
            let first = folder.model_with(&folds[0], allowed)?;
            let mut warnings = folder.warnings(&folds[0])?;
            warnings.extend(folder.unapplied().filter(|_| options.postprocessing.is_none()));
            let one = Self { folder: Some(folder), folds, warnings, allow_non_finite: allowed, ..Self::from(first) };
            return Ok(one);
        }
        if told || options.checkpoint.is_some() {
            let what = if told { "folds" } else { "checkpoints to choose from" };
            let text = format!("{} has no {what}; folders of nnU-Net models have", path.display());
            return Err(LoadError::new(LoadErrorKind::NotFound, text));
        }
        let one = |first, folds, warnings, file: Option<&Path>| {
            let file = file.map(Path::to_owned);
            Self { folds, warnings, file, allow_non_finite: allowed, ..Self::from(first) }
        };
        if path.is_dir() {
            let bundle = Bundle::open(path)?;
            return Ok(one(bundle.model_with(allowed)?, Vec::new(), bundle.warnings()?, None));
        }
        if let Some(folder) = nnunet::of_part(path) {
            let text = format!("{} is a part of the nnU-Net model in {}; give that folder", path.display(), folder.display());
            return Err(LoadError::new(LoadErrorKind::NotFound, text));
        }
        let checkpoint = Checkpoint::open_under(path, options.weights.as_deref())?.allow_non_finite(allowed);
        let aside = aside(&checkpoint);
        if checkpoint.card().is_none()
            && let Some(carried) = Carried::of_part(path, options.weights.as_deref())?
        {
            let first = checkpoint.into_model(Some(&carried.card))?;
            return Ok(one(first, carried.fold.into_iter().collect(), carried.warnings, Some(path)));
        }
        Ok(one(checkpoint.into_model(None)?, Vec::new(), aside.into_iter().collect(), Some(path)))
    }

    /// The folds of an nnU-Net model, the first network's first; none of other models.
    #[must_use]
    pub fn folds(&self) -> &[String] {
        &self.folds
    }

    /// The networks of the folds behind the first, each loaded as it is asked for, with its fold.
    pub fn others(&self) -> impl Iterator<Item = (&str, Result<Model, LoadError>)> {
        let others = self.folder.iter().flat_map(|folder| self.folds.iter().skip(1).map(move |fold| (folder, fold)));
        let with = |model: Model| match &self.postprocessing {
            Some(filters) => model.with_postprocessing(filters),
            None => Ok(model),
        };
        others.map(move |(folder, fold)| (fold.as_str(), folder.model_with(fold, self.allow_non_finite).and_then(with)))
    }

    /// The post-processing that was given in place of the model's.
    pub(crate) fn postprocessing(&self) -> &[Filter] {
        self.postprocessing.as_deref().unwrap_or_default()
    }

    /// The networks of the previous stage of a cascade: of the model whose folder lies beside that of
    /// its second stage.
    ///
    /// # Errors
    /// When the model is no second stage, there is no such folder or several, or it cannot be opened.
    pub(crate) fn previous_stage(&self) -> Result<Self, LoadError> {
        let missing = |text: &str| LoadError::new(LoadErrorKind::NotFound, text);
        let recipe = self.first.card().input.recipe();
        let stage = &recipe.previous().ok_or_else(|| missing("the model is no second stage of a cascade"))?.stage;
        let found = self.folder.as_ref().map(|folder| folder.sibling(stage)).transpose()?.flatten();
        let path = found.ok_or_else(|| {
            missing(&format!(
                "the model is the second stage of a cascade: the folder of {stage}, its first, does not lie beside it; put \
                 it there, or give the labels of {stage} by --previous LABELS"
            ))
        })?;
        // what nnU-Net hands from stage to stage is not post-processed
        let options = LoadOptions { postprocessing: Some(Vec::new()), ..self.options.clone() };
        Self::open(path, &options)
    }

    /// What the results lack of the reference implementation's, and what is assumed.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Refuses a model that does not say how scans are prepared: nothing of axes, spacing and
    /// intensity, and no pipeline of nnU-Net's or MONAI's. Names of channels say nothing of it.
    ///
    /// # Errors
    /// Of kind [`LoadErrorKind::Undetermined`]; the message names what is missing and the ways out.
    pub fn check_input(&self) -> Result<(), LoadError> {
        if self.first.card().input.is_told() {
            return Ok(());
        }
        let file = self.file.as_deref().unwrap_or(Path::new("the model"));
        let name = file.display();
        let beside = nnunet::beside(file);
        let ways = if file.extension().is_some_and(|ending| ending == "model") && !beside.exists() {
            format!("of an nnU-Net v1 model, {} does, which is missing: put it back, or give the model's folder", beside.display())
        } else {
            "give the folder that it comes of (an nnU-Net model's with plans.json and dataset.json, a MONAI bundle's with configs)".into()
        };
        let text = format!(
            "{name} does not say how scans are prepared (axes, spacing_mm, intensity): {ways}; or write a card \
             (organum convert {name} --card CARD.json --output M.safetensors); or say --raw, for voxels to go in as they are"
        );
        Err(LoadError::new(LoadErrorKind::Undetermined, text))
    }
}

impl InputSpec {
    /// Whether it says anything of how scans are prepared.
    #[must_use]
    pub fn is_told(&self) -> bool {
        let Self { channels: _, axes, spacing_mm, resample: _, intensity, nnunet, monai, recipe } = self;
        let keys = axes.is_some() || spacing_mm.is_some() || intensity.is_some();
        keys || nnunet.is_some() || monai.is_some() || recipe.is_some()
    }
}
