//! A bundle's folder.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::config::Config;
use super::pipeline::{Invert, Transform};
use super::{bad, network, transforms};
use crate::error::{LoadError, LoadErrorKind};
use crate::model::{Checkpoint, Model};
use crate::warning::{Warning, WarningKind};

/// Configs in which the network and the way a scan goes are looked for, the first that there is.
const CONFIGS: [&str; 3] = ["inference.json", "inference.yaml", "inference.yml"];

/// Names of weights in `models`, the first that there is.
const WEIGHTS: [&str; 4] = ["model.pt", "model.pth", "model.safetensors", "model.ts"];

/// The most entries of a folder that are looked at for bundles.
const MOST_FOLDERS: usize = 2000;

/// A MONAI bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    path: PathBuf,
    config: Config,
    metadata: Option<Config>,
}

impl Bundle {
    /// Whether a folder looks like a bundle: it has a folder `configs`.
    #[must_use]
    pub fn is_one(path: &Path) -> bool {
        path.join("configs").is_dir()
    }

    /// The bundle that a path means: a bundle, its folder `configs` or `models`, its inference
    /// config, or a folder that holds a single bundle. `None` where it is none of these.
    ///
    /// # Errors
    /// When a folder holds several bundles; the message names them.
    pub fn locate(path: &Path) -> Result<Option<PathBuf>, LoadError> {
        if Self::is_one(path) {
            return Ok(Some(path.to_owned()));
        }
        let whole = |path: &Path| CONFIGS.iter().any(|name| path.join("configs").join(name).is_file());
        let absolute = std::path::absolute(path).map_err(|e| LoadError::io(format!("cannot read {}", path.display()), e))?;
        let name = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let above = absolute.parent();
        let within = match above {
            Some(above) if path.is_dir() && (name == "configs" || name == "models") => Some(above),
            Some(above) if above.ends_with("configs") && CONFIGS.contains(&name.as_str()) => above.parent(),
            _ => None,
        };
        if let Some(bundle) = within.filter(|bundle| whole(bundle)) {
            return Ok(Some(bundle.to_owned()));
        }
        if !path.is_dir() {
            return Ok(None);
        }
        // folders that cannot be read hold nothing to open
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten().take(MOST_FOLDERS).map(|entry| entry.path());
        let mut bundles: Vec<PathBuf> = entries.filter(|entry| whole(entry)).collect();
        bundles.sort();
        match &bundles[..] {
            [] => Ok(None),
            [only] => Ok(Some(only.clone())),
            several => {
                let names: Vec<String> = several.iter().take(10).map(|bundle| bundle.display().to_string()).collect();
                let text = format!("{} holds {} MONAI bundles: {}; name one of them", path.display(), several.len(), names.join(", "));
                Err(LoadError::new(LoadErrorKind::NotFound, text))
            }
        }
    }

    /// Reads the configs of a bundle.
    ///
    /// # Errors
    /// When there is no `configs/inference.json` (or `.yaml`), or a config is damaged.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, LoadError> {
        let path = path.into();
        let configs = path.join("configs");
        let Some(file) = CONFIGS.iter().map(|name| configs.join(name)).find(|file| file.is_file()) else {
            let text = format!("{} is no MONAI bundle: it has no configs/inference.json or .yaml", path.display());
            return Err(LoadError::new(LoadErrorKind::NotFound, text));
        };
        let mut config = Config::read(&file)?;
        config.set("bundle_root", path.to_string_lossy().into_owned());
        let metadata = configs.join("metadata.json");
        let metadata = if metadata.is_file() { Some(Config::read(&metadata)?) } else { None };
        Ok(Self { path, config, metadata })
    }

    /// A bundle of a config alone.
    #[cfg(fuzzing)]
    pub(super) fn of_config(config: Config) -> Self {
        Self { path: PathBuf::new(), metadata: Some(config.clone()), config }
    }

    /// The bundle whose `models` folder a file of weights lies in, if there is one.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn of_weights(file: &Path) -> Result<Option<Self>, LoadError> {
        let absolute = std::path::absolute(file).map_err(|e| LoadError::io(format!("cannot read {}", file.display()), e))?;
        // the folder is the one that the file was told in, before that which a link leads to
        let places = [Some(absolute), file.canonicalize().ok()];
        let bundle = |file: PathBuf| {
            let models = file.parent().filter(|folder| folder.ends_with("models"))?;
            let path = models.parent()?;
            CONFIGS.iter().any(|name| path.join("configs").join(name).is_file()).then(|| path.to_owned())
        };
        places.into_iter().flatten().find_map(bundle).map(Self::open).transpose()
    }

    /// What its configs say as the JSON of a card; config keys that the tensors tell may be left out.
    ///
    /// # Errors
    /// When the configs ask for what this version does not do; the message names it.
    pub fn card(&self) -> Result<String, LoadError> {
        let mut card = self.network()?;
        if self.merged_otherwise(&card)? {
            card["config"]["merging"] = "merging09".into();
        }
        let get = |key: &str| self.config.get(key);
        let mut pipeline = transforms::pipeline(get("preprocessing")?.as_ref(), get("postprocessing")?.as_ref())?;
        let inferer = get("inferer")?;
        let inference = transforms::inference(inferer.as_ref())?;
        let planar = card["config"]["dims"] == 2;
        match transforms::slices(inferer.as_ref())? {
            None if planar => {
                return Err(bad("the bundle's network has 2 dimensions; such a one runs over the slices of a volume, with a SliceInferer"));
            }
            Some(_) if !planar => return Err(bad("the bundle's inferer SliceInferer goes with a network of 2 dimensions")),
            Some(axis) if axis > 0 && pipeline.invert == Invert::Nothing => {
                return Err(bad("the argument spatial_dim of the bundle's SliceInferer goes with Invertd, or with SaveImaged of resample"));
            }
            Some(axis) if axis > 0 => pipeline.transforms.push(Transform::Slices { axis }),
            _ => {}
        }
        if let Some(padding) = transforms::window_padding(inferer.as_ref())? {
            if pipeline.invert == Invert::Nothing {
                // labels would lie on a grid that neither the scan nor the preprocessing has
                return Err(bad("the argument padding_mode of the bundle's inferer goes with Invertd, or with SaveImaged of resample"));
            }
            pipeline.transforms.push(padding);
        }
        let channels = self.names("inputs", "image")?.into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        let labels: Map<String, Value> =
            self.names("outputs", "pred")?.into_iter().map(|(number, name)| (number.to_string(), name.into())).collect();
        card.insert("input".into(), json!({"channels": channels, "monai": pipeline}));
        card.insert("inference".into(), inference);
        card.insert("labels".into(), labels.into());
        card.insert("provenance".into(), self.provenance()?.into());
        Ok(Value::Object(card).to_string())
    }

    /// Readings of the configs that may not be meant.
    ///
    /// # Errors
    /// As [`Bundle::card`].
    pub fn warnings(&self) -> Result<Vec<Warning>, LoadError> {
        let text = "the bundle says that it was made for a MONAI before 1.5, whose SwinUNETR merged patches in another order than \
                    later ones: it runs as it did there; MONAI 1.5 and later give other labels";
        let warning = || Warning::new(WarningKind::Pipeline, text);
        Ok(self.merged_otherwise(&self.network()?)?.then(warning).into_iter().collect())
    }

    /// Architecture and config of a card.
    fn network(&self) -> Result<Map<String, Value>, LoadError> {
        let definition = match self.config.get("network_def")? {
            Some(definition) => Some(definition),
            None => self.config.get("network")?,
        };
        network::card(definition.as_ref())
    }

    /// True if the network merges patches in the order that MONAI had before 1.5, when weights were
    /// trained with it.
    fn merged_otherwise(&self, card: &Map<String, Value>) -> Result<bool, LoadError> {
        let config = &card["config"];
        let changed = card["architecture"] == "swin_unetr" && config["merging"] == "merging" && config["dims"] == 3;
        Ok(changed && self.is_of_before(1, 5)?)
    }

    /// The network with its weights.
    ///
    /// # Errors
    /// As [`Bundle::card`], or when there are no weights or they do not fit the network.
    pub fn model(&self) -> Result<Model, LoadError> {
        self.model_with(false)
    }

    /// The same, with NaN and infinite weights if they are allowed.
    pub(crate) fn model_with(&self, allow_non_finite: bool) -> Result<Model, LoadError> {
        // what cannot run is told before the weights are missed
        let card = self.card()?;
        Checkpoint::open(self.weights()?)?.allow_non_finite(allow_non_finite).into_model(Some(&card))
    }

    /// The file of the weights: the one that the config loads, else one of the usual names.
    fn weights(&self) -> Result<PathBuf, LoadError> {
        let told = self.config.get("checkpointloader::load_path")?;
        let told = told.and_then(|v| v.as_str().map(PathBuf::from)).filter(|file| file.is_file());
        let usual = || WEIGHTS.iter().map(|name| self.path.join("models").join(name)).find(|file| file.is_file());
        told.or_else(usual).ok_or_else(|| {
            let text = format!("the bundle {} has no models/{}", self.path.display(), WEIGHTS.join(" or "));
            LoadError::new(LoadErrorKind::NotFound, text)
        })
    }

    /// Whether the bundle was made for a version of MONAI before this one.
    fn is_of_before(&self, major: u32, minor: u32) -> Result<bool, LoadError> {
        let Some(metadata) = &self.metadata else { return Ok(false) };
        let told = metadata.get("monai_version")?;
        let mut parts = told.as_ref().and_then(Value::as_str).unwrap_or_default().split('.').map(|part| part.parse::<u32>().ok());
        let version = parts.next().flatten().zip(parts.next().flatten());
        Ok(version.is_some_and(|version| version < (major, minor)))
    }

    /// Names of channels by their number.
    fn names(&self, side: &str, key: &str) -> Result<Vec<(u64, String)>, LoadError> {
        let Some(metadata) = &self.metadata else { return Ok(Vec::new()) };
        let Some(Value::Object(names)) = metadata.get(&format!("network_data_format::{side}::{key}::channel_def"))? else {
            return Ok(Vec::new());
        };
        let mut list = Vec::new();
        for (number, name) in names {
            let number = number.parse().map_err(|_| bad(format!("channel_def of the bundle's metadata numbers a channel {number:?}")))?;
            list.push((number, name.as_str().unwrap_or_default().to_owned()));
        }
        list.sort_unstable();
        Ok(list)
    }

    fn provenance(&self) -> Result<String, LoadError> {
        let mut parts = vec!["MONAI bundle".to_owned()];
        if let Some(metadata) = &self.metadata {
            for key in ["name", "version", "task", "copyright"] {
                parts.extend(metadata.get(key)?.and_then(|v| v.as_str().map(str::to_owned)));
            }
        }
        Ok(parts.join(", "))
    }
}
