//! A trained model's folder.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

use super::{first, plans};
use crate::error::{LoadError, LoadErrorKind};
use crate::model::{self, Card, Model};
use crate::warning::{Warning, WarningKind};

/// The checkpoints of a fold, the one that is taken first: nnU-Net v2's own or its weights as safetensors, and v1's.
const SECOND: [&str; 2] = ["checkpoint_final.pth", "checkpoint_final.safetensors"];
const FIRST: [&str; 2] = ["model_final_checkpoint.model", "model_best.model"];

/// The folder that nnU-Net trains a configuration into: `TRAINER__PLANS__CONFIGURATION` of v2, or `TRAINER__PLANS` of v1.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    version: Version,
}

#[derive(Clone, Debug)]
enum Version {
    First,
    Second { plans: Value, dataset: Value },
}

/// What a fold's checkpoint of v2 is, and says beside its tensors.
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
    /// Reads v2's plans and description of the dataset; v1's plans lie beside each checkpoint.
    ///
    /// # Errors
    /// When it is no such folder, or one of the files is no JSON.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, LoadError> {
        let path = path.into();
        if !path.join("plans.json").is_file() {
            let folder = Self { path, version: Version::First };
            if folder.path.join("plans.pkl").is_file() || folder.folds().is_ok() {
                return Ok(folder);
            }
            let text = format!("{} is no folder of an nnU-Net model: it has neither plans.json nor plans.pkl", folder.path.display());
            return Err(LoadError::new(LoadErrorKind::NotFound, text));
        }
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
        Ok(Self { path, version: Version::Second { plans, dataset } })
    }

    /// The folds that have a checkpoint, by number; `all` alone where there is no other, as nnU-Net chooses. Of v1 those that are
    /// trained to the end, or all of them where none is.
    ///
    /// # Errors
    /// When there is none.
    pub fn folds(&self) -> Result<Vec<String>, LoadError> {
        let mut found = Vec::new();
        let entries = fs::read_dir(&self.path).map_err(|e| io(&self.path, e))?;
        for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
            let fold = name.strip_prefix("fold_").unwrap_or(&name);
            let number = fold.parse::<u32>().ok();
            if let Some(file) = self.checkpoint_of(fold).filter(|_| number.is_some() || fold == "all") {
                found.push((number, file));
            }
        }
        if found.iter().any(|(_, file)| !file.ends_with(FIRST[1])) {
            found.retain(|(_, file)| !file.ends_with(FIRST[1]));
        }
        let mut numbers: Vec<u32> = found.iter().filter_map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        match (numbers.is_empty(), found.is_empty()) {
            (false, _) => Ok(numbers.iter().map(u32::to_string).collect()),
            (true, false) => Ok(vec!["all".into()]),
            (true, true) => {
                let text = format!("{} has no fold with a {}", self.path.display(), self.names().join(" or "));
                Err(LoadError::new(LoadErrorKind::NotFound, text))
            }
        }
    }

    /// The card of a fold's model.
    ///
    /// # Errors
    /// When the fold has no checkpoint, it is damaged, or the plans ask for what this version does not do.
    pub fn card(&self, fold: &str) -> Result<Card, LoadError> {
        let file = self.checkpoint(fold)?;
        let mut card = match &self.version {
            Version::First => self.told(&file)?.card(&model::Checkpoint::open(&file)?)?,
            Version::Second { plans, dataset } => {
                let checkpoint = Checkpoint::read(&file)?;
                let named = || {
                    let name = self.path.canonicalize().ok()?;
                    name.file_name()?.to_str()?.rsplit("__").next().map(str::to_owned)
                };
                let configuration = checkpoint.configuration.clone().or_else(named).unwrap_or_default();
                plans::card(plans, dataset, &configuration, &checkpoint.mirror)?
            }
        };
        card.provenance.push_str(&format!(", fold {fold}"));
        Ok(card)
    }

    /// A fold's model; the file is mapped.
    ///
    /// # Errors
    /// As [`Folder::card`], or when the weights do not fit the network of the plans.
    pub fn model(&self, fold: &str) -> Result<Model, LoadError> {
        let card = serde_json::to_string(&self.card(fold)?)
            .map_err(|e| LoadError::new(LoadErrorKind::Card, "the card could not be written").caused_by(e))?;
        model::Checkpoint::open(self.checkpoint(fold)?)?.into_model(Some(&card))
    }

    /// What nnU-Net would do with a fold's results and is not done here, and what is assumed of its trainer.
    ///
    /// # Errors
    /// When the fold has no checkpoint, or its plans are damaged.
    pub fn warnings(&self, fold: &str) -> Result<Vec<Warning>, LoadError> {
        let mut notes: Vec<String> = Vec::new();
        if let Version::First = self.version {
            notes.extend(self.told(&self.checkpoint(fold)?)?.note());
            let file = self.path.join("postprocessing.json");
            let asked = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            let asked =
                asked.and_then(|asked| Some(asked.get("for_which_classes")?.to_string())).filter(|list| list != "[]" && list != "null");
            notes.extend(asked.map(|classes| {
                format!("{} keeps the largest part alone of the classes {classes} in nnU-Net; this is not done here", file.display())
            }));
        }
        Ok(notes.into_iter().map(|text| Warning::new(WarningKind::Pipeline, text)).collect())
    }

    /// What v1 tells beside a checkpoint, or of the model.
    fn told(&self, file: &Path) -> Result<first::Told, LoadError> {
        let mut beside = file.as_os_str().to_owned();
        beside.push(".pkl");
        let beside = PathBuf::from(beside);
        let told = if beside.is_file() { beside } else { self.path.join("plans.pkl") };
        first::Told::read(&told, &read(&told)?, &self.path.canonicalize().map_err(|e| io(&self.path, e))?)
    }

    fn names(&self) -> [&str; 2] {
        match self.version {
            Version::First => FIRST,
            Version::Second { .. } => SECOND,
        }
    }

    /// The file of a fold's checkpoint.
    fn checkpoint(&self, fold: &str) -> Result<PathBuf, LoadError> {
        self.checkpoint_of(fold).ok_or_else(|| {
            let text = format!("{} has no {}", self.path.join(format!("fold_{fold}")).display(), self.names().join(" or "));
            LoadError::new(LoadErrorKind::NotFound, text)
        })
    }

    /// The same, if there is one. v1 calls the folder of `all` so.
    fn checkpoint_of(&self, fold: &str) -> Option<PathBuf> {
        let all = (fold == "all" && matches!(self.version, Version::First)).then(|| "all".to_owned());
        let folders = all.into_iter().chain([format!("fold_{fold}")]);
        let mut files = folders.flat_map(|folder| self.names().map(|name| self.path.join(&folder).join(name)));
        files.find(|file| file.is_file())
    }
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
    LoadError::io(format!("cannot read {}", file.display()), e)
}
