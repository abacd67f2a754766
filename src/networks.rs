//! The networks that segment a scan, from whatever a model lies in.

use std::path::{Path, PathBuf};

use crate::error::{LoadError, LoadErrorKind};
use crate::model::{Checkpoint, InputSpec, Model};
use crate::monai::Bundle;
use crate::nnunet::{self, Folder};
use crate::warning::Warning;

/// The networks that segment a scan: that of a model file, a checkpoint or a MONAI bundle, or those
/// of the folds of an nnU-Net model.
#[derive(Debug)]
pub struct Networks {
    /// The only network, or that of the first fold.
    pub first: Model,
    folder: Option<Folder>,
    folds: Vec<String>,
    warnings: Vec<Warning>,
    /// The file, if the model is one.
    file: Option<PathBuf>,
    allow_non_finite: bool,
}

/// How [`Networks`] are opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The only fold to take of an nnU-Net folder: a number, or `all`.
    pub fold: Option<String>,
    /// Whether weights may be NaN or infinite.
    pub allow_non_finite: bool,
}

impl LoadOptions {
    /// With this fold of an nnU-Net folder alone.
    #[must_use]
    pub fn with_fold(mut self, fold: impl Into<String>) -> Self {
        self.fold = Some(fold.into());
        self
    }

    /// With NaN and infinite weights taken as they are.
    #[must_use]
    pub fn with_non_finite(mut self) -> Self {
        self.allow_non_finite = true;
        self
    }
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
        if let Some(folder) = Folder::of_checkpoint(file)? {
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
        Self { first, folder: None, folds, warnings, file: None, allow_non_finite: true }
    }
}

impl Networks {
    /// Opens a model file, a PyTorch checkpoint, a MONAI bundle ([`Bundle::locate`]), or an nnU-Net folder: all its folds,
    /// or the one told. A checkpoint without a card has the pipeline that it carries or lies in
    /// ([`Carried`]).
    ///
    /// # Errors
    /// When the model cannot be loaded, or `fold` is told of what has no folds.
    pub fn open(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, LoadError> {
        let located = Bundle::locate(path.as_ref())?;
        let path = located.as_deref().unwrap_or(path.as_ref());
        let (fold, allowed) = (options.fold.as_deref(), options.allow_non_finite);
        if path.is_dir() && !Bundle::is_one(path) {
            let folder = Folder::open(path)?;
            let folds = fold.map_or_else(|| folder.folds(), |fold| Ok(vec![fold.to_owned()]))?;
            let first = folder.model_with(&folds[0], allowed)?;
            let warnings = folder.warnings(&folds[0])?;
            return Ok(Self { first, folder: Some(folder), folds, warnings, file: None, allow_non_finite: allowed });
        }
        if fold.is_some() {
            let text = format!("{} has no folds; folders of nnU-Net models have", path.display());
            return Err(LoadError::new(LoadErrorKind::NotFound, text));
        }
        let one = |first, folds, warnings, file: Option<&Path>| {
            let file = file.map(Path::to_owned);
            Self { first, folder: None, folds, warnings, file, allow_non_finite: allowed }
        };
        if path.is_dir() {
            let bundle = Bundle::open(path)?;
            return Ok(one(bundle.model_with(allowed)?, Vec::new(), bundle.warnings()?, None));
        }
        let checkpoint = Checkpoint::open(path)?.allow_non_finite(allowed);
        if checkpoint.card().is_none()
            && let Some(carried) = Carried::of(path)?
        {
            let first = checkpoint.into_model(Some(&carried.card))?;
            return Ok(one(first, carried.fold.into_iter().collect(), carried.warnings, Some(path)));
        }
        Ok(one(checkpoint.into_model(None)?, Vec::new(), Vec::new(), Some(path)))
    }

    /// The folds of an nnU-Net model, the first network's first; none of other models.
    #[must_use]
    pub fn folds(&self) -> &[String] {
        &self.folds
    }

    /// The networks of the folds behind the first, each loaded as it is asked for, with its fold.
    pub fn others(&self) -> impl Iterator<Item = (&str, Result<Model, LoadError>)> {
        let others = self.folder.iter().flat_map(|folder| self.folds.iter().skip(1).map(move |fold| (folder, fold)));
        others.map(|(folder, fold)| (fold.as_str(), folder.model_with(fold, self.allow_non_finite)))
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
