//! A trained model's folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::postprocessing::{self, postprocessing};
use super::{locate, v1, v2};
use crate::error::{LoadError, LoadErrorKind};
use crate::host::read_file;
use crate::model::{self, Card, Model};
use crate::warning::{Warning, WarningKind};

/// The checkpoints of a fold, the one that is taken first: nnU-Net v2's own or its weights as safetensors, and v1's.
const V2_FILES: [&str; 2] = ["checkpoint_final.pth", "checkpoint_final.safetensors"];
const V1_FILES: [&str; 2] = ["model_final_checkpoint.model", "model_best.model"];

/// The largest JSON file and the largest pickle in bytes.
const LARGEST_JSON: u64 = 16 << 20;
const LARGEST_PICKLE: u64 = 64 << 20;

/// Most checkpoints that a message names.
const MOST_NAMED: usize = 8;

/// The folder that nnU-Net trains a configuration into: `TRAINER__PLANS__CONFIGURATION` of v2, or `TRAINER__PLANS` of v1.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    version: Version,
    /// The only fold that there is, and its checkpoint: the folder was told by a file.
    only: Option<(String, PathBuf)>,
    /// The checkpoint that is asked for.
    asked: Option<String>,
}

#[derive(Clone, Debug)]
enum Version {
    V1,
    V2 { plans: Value, dataset: Value },
}

/// What a fold's checkpoint of v2 is, and says beside its tensors.
#[derive(Clone, Debug)]
pub struct FoldCheckpoint {
    /// The file.
    pub file: PathBuf,
    /// The configuration that was trained, if it says so.
    pub configuration: Option<String>,
    /// Axes of the patch along which the trainer allows mirror images.
    pub mirror: Vec<u32>,
    /// The name of the trainer's class, if it says so.
    pub trainer: Option<String>,
    /// Whether it holds the statistics of batch norms.
    batch_norm: bool,
    /// Plans and description of the dataset that it was trained with, if it carries them.
    own: Option<[Value; 2]>,
    /// The fold that was trained, if it says so.
    fold: Option<String>,
}

impl Folder {
    /// Opens the folder of a trained model, that of one of its folds, or one above it that holds a
    /// single trained model. Reads v2's plans and description of the dataset; v1's plans lie beside
    /// each checkpoint.
    ///
    /// # Errors
    /// When it is no such folder, when it holds several trained models, or one of the files is no JSON.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, LoadError> {
        Self::open_checkpoint(path, None)
    }

    /// The same, with another checkpoint of each fold than that of the whole training: `best`,
    /// `latest`, or a file's name.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub fn open_checkpoint(path: impl Into<PathBuf>, name: Option<&str>) -> Result<Self, LoadError> {
        let (path, asked) = (path.into(), name.map(str::to_owned));
        if !path.join("plans.json").is_file() {
            let folder = Self { path, version: Version::V1, only: None, asked };
            if folder.path.join("plans.pkl").is_file() || folder.folds().is_ok() {
                return Ok(folder);
            }
            if let Some(folder) = folder.of_fold()? {
                return Ok(folder);
            }
            if let Some(below) = locate::below(&folder.path)? {
                return Self::open_checkpoint(below, name);
            }
            let text = format!("{} is no folder of an nnU-Net model: it has neither plans.json nor plans.pkl", folder.path.display());
            return Err(LoadError::new(LoadErrorKind::NotFound, text));
        }
        let json = |name: &str| {
            let file = path.join(name);
            let bytes = read(&file, LARGEST_JSON).map_err(|e| {
                let text = format!("{} is no folder of an nnU-Net v2 model", path.display());
                LoadError::new(e.kind(), text).caused_by(e)
            })?;
            serde_json::from_slice(&bytes)
                .map_err(|e| LoadError::new(LoadErrorKind::Format, format!("{} is no JSON", file.display())).caused_by(e))
        };
        let (plans, dataset) = (json("plans.json")?, json("dataset.json")?);
        Ok(Self { path, version: Version::V2 { plans, dataset }, only: None, asked })
    }

    /// The model that the folder is a fold of, with that fold alone.
    fn of_fold(&self) -> Result<Option<Self>, LoadError> {
        let Ok(path) = self.path.canonicalize() else { return Ok(None) };
        let Some(parent) = path.parent().filter(|parent| locate::has_plans(parent)) else { return Ok(None) };
        let asked = self.asked.as_deref();
        let names = [v2_files(asked), v1_files(asked)].concat();
        if let Some(file) = names.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
            return Self::of_checkpoint(&file);
        }
        // says what there is instead
        let fold = path.file_name().unwrap_or_default().to_string_lossy();
        let fold = fold.strip_prefix("fold_").unwrap_or(&fold);
        Self::open_checkpoint(parent, asked)?.checkpoint(fold).map(|_| None)
    }

    /// The folder that a checkpoint lies in, with that checkpoint as its only fold; of one that lies
    /// elsewhere, what it carries in place of a folder: v2's plans and description of the dataset, or
    /// v1's `.model.pkl` beside it. None of a file that has neither.
    ///
    /// # Errors
    /// When the file is damaged, or a file of the folder is.
    pub fn of_checkpoint(file: &Path) -> Result<Option<Self>, LoadError> {
        let absolute = std::path::absolute(file).map_err(|e| io(file, e))?;
        // the folder is the one that the file was told in, before that which a link leads to
        let places = [Some(absolute.clone()), file.canonicalize().ok()];
        for file in places.into_iter().flatten() {
            let parent = file.parent().unwrap_or(Path::new(""));
            let name = parent.file_name().unwrap_or_default().to_string_lossy();
            let fold = name.strip_prefix("fold_").unwrap_or(&name);
            let fold = Some(fold).filter(|fold| *fold == "all" || fold.parse::<u32>().is_ok());
            let above = parent.parent().unwrap_or(Path::new(""));
            let first = file.extension().is_some_and(|ending| ending == "model");
            if first && (beside(&file).is_file() || fold.is_some() && above.join("plans.pkl").is_file()) {
                let path = if fold.is_some() { above } else { parent };
                let only = Some((fold.unwrap_or("unknown").to_owned(), file.clone()));
                return Ok(Some(Self { path: path.to_owned(), version: Version::V1, only, asked: None }));
            }
            let planned = ["plans.json", "dataset.json"].iter().all(|part| above.join(part).is_file());
            if let Some(fold) = fold.filter(|_| !first && planned) {
                let only = Some((fold.to_owned(), file.clone()));
                return Ok(Some(Self { only, ..Self::open(above)? }));
            }
        }
        let FoldCheckpoint { own, fold, .. } = FoldCheckpoint::read(&absolute)?;
        Ok(own.map(|[plans, dataset]| Self {
            path: absolute.parent().unwrap_or(Path::new("")).to_owned(),
            version: Version::V2 { plans, dataset },
            only: Some((fold.unwrap_or_else(|| "unknown".into()), absolute.clone())),
            asked: None,
        }))
    }

    /// The folds that have a checkpoint, by number; `all` alone where there is no other, as nnU-Net chooses. Of v1 those that are
    /// trained to the end, or all of them where none is.
    ///
    /// # Errors
    /// When there is none.
    pub fn folds(&self) -> Result<Vec<String>, LoadError> {
        if let Some((fold, _)) = &self.only {
            return Ok(vec![fold.clone()]);
        }
        let mut found = Vec::new();
        let entries = fs::read_dir(&self.path).map_err(|e| io(&self.path, e))?;
        for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
            let fold = name.strip_prefix("fold_").unwrap_or(&name);
            let number = fold.parse::<u32>().ok();
            if let Some(file) = self.checkpoint_of(fold).filter(|_| number.is_some() || fold == "all") {
                found.push((number, file));
            }
        }
        if self.asked.is_none() && found.iter().any(|(_, file)| !file.ends_with(V1_FILES[1])) {
            found.retain(|(_, file)| !file.ends_with(V1_FILES[1]));
        }
        let mut numbers: Vec<u32> = found.iter().filter_map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        match (numbers.is_empty(), found.is_empty()) {
            (false, _) => Ok(numbers.iter().map(u32::to_string).collect()),
            (true, false) => Ok(vec!["all".into()]),
            (true, true) => {
                let there = self.there(&self.subfolders());
                let text = format!("{} has no fold with a {}{there}", self.path.display(), self.names().join(" or "));
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
            Version::V1 => self.sidecar(&file)?.card(&model::Checkpoint::open(&file)?)?,
            Version::V2 { plans, dataset } => self.v2_card([plans, dataset], &FoldCheckpoint::read(&file)?)?,
        };
        card.provenance.push_str(&format!(", fold {fold}"));
        if let (Some(pipeline), Some(file)) = (&mut card.input.nnunet, postprocessing::beside(&self.path)) {
            pipeline.postprocessing = postprocessing(file)?;
        }
        Ok(card)
    }

    /// The card of a checkpoint of v2 with these plans and this description of the dataset.
    fn v2_card(&self, [plans, dataset]: [&Value; 2], checkpoint: &FoldCheckpoint) -> Result<Card, LoadError> {
        let named = || {
            let name = self.path.canonicalize().ok()?;
            name.file_name()?.to_str()?.rsplit("__").next().map(str::to_owned)
        };
        let configuration = checkpoint.configuration.clone().or_else(named).unwrap_or_default();
        let name = self.trainer(checkpoint);
        let trainer = v2::Trainer { name: name.as_deref(), batch_norm: checkpoint.batch_norm };
        v2::of_trainer([plans, dataset], &configuration, &checkpoint.mirror, trainer)
    }

    /// The trainer of a checkpoint of v2, or else that of the folder's name.
    fn trainer(&self, checkpoint: &FoldCheckpoint) -> Option<String> {
        let named = || {
            let path = self.path.canonicalize().ok()?;
            let parts: Vec<&str> = path.file_name()?.to_str()?.split("__").collect();
            (parts.len() == 3).then(|| parts[0].to_owned())
        };
        checkpoint.trainer.clone().or_else(named)
    }

    /// A fold's model.
    ///
    /// # Errors
    /// As [`Folder::card`], or when the weights do not fit the network of the plans.
    pub fn model(&self, fold: &str) -> Result<Model, LoadError> {
        self.model_with(fold, false)
    }

    /// The same, with NaN and infinite weights if they are allowed.
    pub(crate) fn model_with(&self, fold: &str, allow_non_finite: bool) -> Result<Model, LoadError> {
        let card = serde_json::to_string(&self.card(fold)?)
            .map_err(|e| LoadError::new(LoadErrorKind::Card, "the card could not be written").caused_by(e))?;
        model::Checkpoint::open(self.checkpoint(fold)?)?.allow_non_finite(allow_non_finite).into_model(Some(&card))
    }

    /// What nnU-Net would do with a fold's results and is not done here, and what is assumed of its trainer.
    ///
    /// # Errors
    /// When the fold has no checkpoint, or its plans are damaged.
    pub fn warnings(&self, fold: &str) -> Result<Vec<Warning>, LoadError> {
        let mut notes: Vec<String> = Vec::new();
        let checkpoint = self.checkpoint(fold)?;
        match &self.version {
            Version::V1 => {
                notes.extend(self.sidecar(&checkpoint)?.note());
            }
            Version::V2 { plans, dataset } => {
                let checkpoint = FoldCheckpoint::read(&checkpoint)?;
                notes.extend(self.trainer(&checkpoint).and_then(|name| v2::note(&name)));
                notes.extend(self.contradiction([plans, dataset], &checkpoint)?);
            }
        }
        Ok(notes.into_iter().map(|text| Warning::new(WarningKind::Pipeline, text)).collect())
    }

    /// The folder of another configuration beside this one's: of the same trainer and plans, or else
    /// of the same plans.
    ///
    /// # Errors
    /// When there are several; the message names them.
    pub(crate) fn sibling(&self, configuration: &str) -> Result<Option<PathBuf>, LoadError> {
        let path = self.path.canonicalize().map_err(|e| io(&self.path, e))?;
        locate::sibling(&path, configuration)
    }

    /// A note that the post-processing that a cross-validation of the model found is not applied.
    pub(crate) fn unapplied(&self) -> Option<Warning> {
        let none = postprocessing::beside(&self.path).is_none();
        let file = Some(&self.path).filter(|_| none).and_then(|path| postprocessing::of_validation(path))?;
        let file = file.display();
        let text = format!("{file} is not applied, as nnUNetv2_predict does not; --postprocessing {file} does");
        Some(Warning::new(WarningKind::Pipeline, text))
    }

    /// What a checkpoint carries of its own that reads otherwise than the folder's plans, which
    /// count as they do in nnU-Net.
    fn contradiction(&self, told: [&Value; 2], checkpoint: &FoldCheckpoint) -> Result<Option<String>, LoadError> {
        let Some([plans, dataset]) = checkpoint.own.as_ref().filter(|[plans, dataset]| [plans, dataset] != told) else { return Ok(None) };
        let json = |card: &Card| serde_json::to_value(card).unwrap_or_default();
        let folders = json(&self.v2_card(told, checkpoint)?);
        let what = match self.v2_card([plans, dataset], checkpoint) {
            Ok(own) => differences(&json(&own), &folders, "", 3),
            Err(e) => vec![e.to_string()],
        };
        let file = checkpoint.file.display();
        Ok((!what.is_empty()).then(|| {
            let what = what.join(", ");
            format!("{file} carries other plans than {} has ({what}); the folder's are taken, as nnU-Net does", self.path.display())
        }))
    }

    /// What v1 tells beside a checkpoint, or of the model.
    fn sidecar(&self, file: &Path) -> Result<v1::Sidecar, LoadError> {
        let beside = beside(file);
        let told = if beside.is_file() { beside } else { self.path.join("plans.pkl") };
        v1::Sidecar::read(&told, &read(&told, LARGEST_PICKLE)?, &self.path.canonicalize().map_err(|e| io(&self.path, e))?)
    }

    /// The names of checkpoints, the one that is taken first.
    fn names(&self) -> Vec<String> {
        match self.version {
            Version::V1 => v1_files(self.asked.as_deref()),
            Version::V2 { .. } => v2_files(self.asked.as_deref()),
        }
    }

    /// The folders of folds that there are.
    fn subfolders(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten().map(|entry| entry.path());
        let fold = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            path.is_dir() && (name.starts_with("fold_") || name == "all")
        };
        let mut folders: Vec<PathBuf> = entries.filter(fold).collect();
        folders.sort();
        folders
    }

    /// The words that name the checkpoints that lie in some folders instead of those that are
    /// looked for.
    fn there(&self, folders: &[PathBuf]) -> String {
        let (ending, prefix) = match self.version {
            Version::V1 => (".model", "model_"),
            Version::V2 { .. } => (".pth", "checkpoint_"),
        };
        let mut names: Vec<String> = Vec::new();
        for entry in folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(prefix) && (name.ends_with(ending) || name.ends_with(".safetensors")) {
                names.push(name);
            }
        }
        names.sort();
        names.dedup();
        names.truncate(MOST_NAMED);
        let Some(first) = names.first() else { return String::new() };
        format!("; there are {}: take one by its name (--checkpoint {first})", names.join(", "))
    }

    /// The file of a fold's checkpoint.
    fn checkpoint(&self, fold: &str) -> Result<PathBuf, LoadError> {
        self.checkpoint_of(fold).ok_or_else(|| {
            let folder = self.path.join(format!("fold_{fold}"));
            let there = self.there(std::slice::from_ref(&folder));
            let text = format!("{} has no {}{there}", folder.display(), self.names().join(" or "));
            LoadError::new(LoadErrorKind::NotFound, text)
        })
    }

    /// The same, if there is one. v1 calls the folder of `all` so.
    fn checkpoint_of(&self, fold: &str) -> Option<PathBuf> {
        if let Some((only, file)) = &self.only {
            return Some(file.clone()).filter(|_| only == fold);
        }
        let all = (fold == "all" && matches!(self.version, Version::V1)).then(|| "all".to_owned());
        let folders = all.into_iter().chain([format!("fold_{fold}")]);
        let names = self.names();
        let mut files = folders.flat_map(|folder| names.iter().map(move |name| self.path.join(&folder).join(name)));
        files.find(|file| file.is_file())
    }
}

impl FoldCheckpoint {
    /// Reads a checkpoint: nnU-Net's own, or a safetensors file of its `network_weights`, whose metadata may hold `configuration` and
    /// `inference_allowed_mirroring_axes` (JSON; absent or null: none).
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn read(file: &Path) -> Result<Self, LoadError> {
        let no_axes = |e| {
            let text = format!("{}: inference_allowed_mirroring_axes is no list of axes", file.display());
            LoadError::new(LoadErrorKind::Format, text).caused_by(e)
        };
        let checkpoint = model::Checkpoint::open(file)?;
        let told = |key: &str| checkpoint.told(key).cloned().unwrap_or_default();
        let (mut init, axes) = (told("init_args"), told("inference_allowed_mirroring_axes"));
        let mirror: Option<Vec<u32>> = serde_json::from_value(axes).map_err(no_axes)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let own = ["plans", "dataset_json"].map(|key| init.get_mut(key).map(Value::take).filter(Value::is_object));
        Ok(Self {
            file: file.to_owned(),
            configuration: init.get("configuration").and_then(text),
            mirror: mirror.unwrap_or_default(),
            trainer: text(&told("trainer_name")),
            batch_norm: checkpoint.weights().names().any(|name| name.ends_with(".running_mean")),
            own: if let [Some(plans), Some(dataset)] = own { Some([plans, dataset]) } else { None },
            fold: init.get("fold").and_then(|fold| text(fold).or_else(|| fold.as_u64().map(|k| k.to_string()))),
        })
    }
}

/// The files of a checkpoint of v2 that is asked for by its file's name or by the part of it that
/// tells it apart; else of the usual one.
fn v2_files(asked: Option<&str>) -> Vec<String> {
    match asked {
        None => V2_FILES.map(str::to_owned).to_vec(),
        Some(name) if name.ends_with(".pth") || name.ends_with(".safetensors") => vec![name.to_owned()],
        Some(name) => {
            let name = name.strip_prefix("checkpoint_").unwrap_or(name);
            ["pth", "safetensors"].map(|ending| format!("checkpoint_{name}.{ending}")).to_vec()
        }
    }
}

/// The same of v1.
fn v1_files(asked: Option<&str>) -> Vec<String> {
    match asked {
        None => V1_FILES.map(str::to_owned).to_vec(),
        Some("final") => vec![V1_FILES[0].to_owned()],
        Some(name) if name.ends_with(".model") => vec![name.to_owned()],
        Some(name) => vec![format!("model_{}.model", name.strip_prefix("model_").unwrap_or(name))],
    }
}

/// The name of what nnU-Net v1 writes beside a checkpoint.
pub(crate) fn beside(file: &Path) -> PathBuf {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".pkl");
    PathBuf::from(beside)
}

/// The keys within so many levels of objects whose values differ, with both values where these are short.
fn differences(own: &Value, other: &Value, path: &str, levels: usize) -> Vec<String> {
    if own == other {
        return Vec::new();
    }
    match (own, other) {
        (Value::Object(a), Value::Object(b)) if levels > 0 => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).collect();
            keys.sort_unstable();
            let within = |key: &String| {
                let name = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let value = |object: &Map<String, Value>| object.get(key).cloned().unwrap_or_default();
                differences(&value(a), &value(b), &name, levels - 1)
            };
            keys.into_iter().flat_map(within).collect()
        }
        _ => {
            let [a, b] = [own, other].map(Value::to_string);
            vec![if a.len() + b.len() > 100 { path.to_owned() } else { format!("{path}: {a} against {b}") }]
        }
    }
}

fn read(file: &Path, most: u64) -> Result<Vec<u8>, LoadError> {
    read_file(file, most).map_err(|e| io(file, e))
}

fn io(file: &Path, e: std::io::Error) -> LoadError {
    LoadError::io(format!("cannot read {}", file.display()), e)
}
