//! A trained model's folder.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

use super::plans;
use crate::error::{LoadError, LoadErrorKind};
use crate::model::{self, Card, Model};

/// A checkpoint's name without its ending.
const CHECKPOINT: &str = "checkpoint_final";

/// The folder that nnU-Net trains a configuration into, `TRAINER__PLANS__CONFIGURATION`.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    plans: Value,
    dataset: Value,
}

/// What a fold's checkpoint is, and says beside its tensors.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The file.
    pub file: PathBuf,
    /// The configuration that was trained, if it says so.
    pub configuration: Option<String>,
    /// Axes of the patch along which the trainer allows mirror images.
    pub mirror: Vec<u32>,
}

impl Folder {
    /// Reads the plans and the dataset's description.
    ///
    /// # Errors
    /// When one of them is missing or no JSON.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, LoadError> {
        let path = path.into();
        let json = |name: &str| {
            let file = path.join(name);
            let bytes = read(&file).map_err(|e| {
                let text = format!("{} is no folder of an nnU-Net v2 model", path.display());
                LoadError::new(e.kind(), text).caused_by(e)
            })?;
            serde_json::from_slice(&bytes)
                .map_err(|e| LoadError::new(LoadErrorKind::Format, format!("{} is no JSON", file.display())).caused_by(e))
        };
        let (plans, dataset) = (json("plans.json")?, json("dataset.json")?);
        Ok(Self { path, plans, dataset })
    }

    /// The folds that have a checkpoint, by number; `all` alone where there is no other, as nnU-Net chooses.
    ///
    /// # Errors
    /// When there is none.
    pub fn folds(&self) -> Result<Vec<String>, LoadError> {
        let mut numbers = Vec::new();
        let mut all = false;
        let entries = fs::read_dir(&self.path).map_err(|e| io(&self.path, e))?;
        for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
            let Some(fold) = name.strip_prefix("fold_").filter(|_| checkpoint_of(&self.path.join(&name)).is_some()) else { continue };
            all |= fold == "all";
            numbers.extend(fold.parse::<u32>());
        }
        numbers.sort_unstable();
        match (numbers.is_empty(), all) {
            (false, _) => Ok(numbers.iter().map(u32::to_string).collect()),
            (true, true) => Ok(vec!["all".into()]),
            (true, false) => {
                let text = format!("{} has no fold with a {CHECKPOINT}.pth or .safetensors", self.path.display());
                Err(LoadError::new(LoadErrorKind::NotFound, text))
            }
        }
    }

    /// The card of a fold's model.
    ///
    /// # Errors
    /// When the fold has no checkpoint, it is damaged, or the plans ask for what this version does not do.
    pub fn card(&self, fold: &str) -> Result<Card, LoadError> {
        self.card_of(&self.checkpoint(fold)?, fold)
    }

    /// A fold's model; the file is mapped.
    ///
    /// # Errors
    /// As [`Folder::card`], or when the weights do not fit the network of the plans.
    pub fn model(&self, fold: &str) -> Result<Model, LoadError> {
        let checkpoint = self.checkpoint(fold)?;
        let card = serde_json::to_string(&self.card_of(&checkpoint, fold)?)
            .map_err(|e| LoadError::new(LoadErrorKind::Card, "the card could not be written").caused_by(e))?;
        model::Checkpoint::open(&checkpoint.file)?.into_model(Some(&card))
    }

    fn card_of(&self, checkpoint: &Checkpoint, fold: &str) -> Result<Card, LoadError> {
        let named = || {
            let name = self.path.canonicalize().ok()?;
            name.file_name()?.to_str()?.rsplit("__").next().map(str::to_owned)
        };
        let configuration = checkpoint.configuration.clone().or_else(named).unwrap_or_default();
        let mut card = plans::card(&self.plans, &self.dataset, &configuration, &checkpoint.mirror)?;
        card.provenance.push_str(&format!(", fold {fold}"));
        Ok(card)
    }

    fn checkpoint(&self, fold: &str) -> Result<Checkpoint, LoadError> {
        let folder = self.path.join(format!("fold_{fold}"));
        let file = checkpoint_of(&folder).ok_or_else(|| {
            let text = format!("{} has no {CHECKPOINT}.pth or .safetensors", folder.display());
            LoadError::new(LoadErrorKind::NotFound, text)
        })?;
        Checkpoint::read(&file)
    }
}

/// The file of a fold's checkpoint: nnU-Net's own, or its weights as safetensors.
fn checkpoint_of(folder: &Path) -> Option<PathBuf> {
    ["pth", "safetensors"].map(|ending| folder.join(format!("{CHECKPOINT}.{ending}"))).into_iter().find(|file| file.is_file())
}

impl Checkpoint {
    /// Reads a checkpoint: nnU-Net's own, or a safetensors file of its `network_weights`, whose metadata may hold `configuration` and
    /// `inference_allowed_mirroring_axes` (JSON; absent or null: none).
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn read(file: &Path) -> Result<Self, LoadError> {
        let damaged = |what: &str| LoadError::new(LoadErrorKind::Format, format!("{}: {what}", file.display()));
        let no_axes = |e| damaged("inference_allowed_mirroring_axes is no list of axes").caused_by(e);
        let (configuration, axes) = if file.extension().is_some_and(|ending| ending == "pth") {
            let checkpoint = model::Checkpoint::open(file)?;
            let configuration = checkpoint.told("init_args").and_then(|told| told.get("configuration")?.as_str().map(str::to_owned));
            (configuration, checkpoint.told("inference_allowed_mirroring_axes").cloned().unwrap_or_default())
        } else {
            let bytes = read(file)?;
            let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged("not a safetensors file").caused_by(e))?;
            let told = |key: &str| header.metadata().as_ref().and_then(|m| m.get(key));
            let axes = told("inference_allowed_mirroring_axes").map_or("null", String::as_str);
            (told("configuration").cloned(), serde_json::from_str(axes).map_err(no_axes)?)
        };
        let mirror: Option<Vec<u32>> = serde_json::from_value(axes).map_err(no_axes)?;
        Ok(Self { file: file.to_owned(), configuration, mirror: mirror.unwrap_or_default() })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(file).map_err(|e| io(file, e))
}

fn io(file: &Path, e: std::io::Error) -> LoadError {
    let kind = if e.kind() == ErrorKind::NotFound { LoadErrorKind::NotFound } else { LoadErrorKind::Io };
    LoadError::new(kind, format!("cannot read {}", file.display())).caused_by(e)
}
