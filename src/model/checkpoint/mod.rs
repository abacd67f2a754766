//! Checkpoints as training leaves them: what is in the file, where the state dict is, and under which names.
//!
//! PyTorch's are a zip archive of a pickle and raw storages, or pickles and storages one after the
//! other ([`legacy`]). The pickle is read as data ([`pickle`]): nothing in the file is run. The
//! tensors stay where they lie ([`tensor`]), so that a checkpoint is converted on demand like
//! a model file.

mod legacy;
mod pickle;
mod plain;
mod state;
mod tensor;
mod zip;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::infer::{self, Guess, Shapes};
use super::onnx::{self, Source};
use super::weights::{Bytes, Place, Stored, Weights};
use super::{Card, Model};
use crate::error::{LoadError, LoadErrorKind};
use pickle::Pickle;
pub(crate) use plain::{pickled, plain};

/// Axes of the least convolution: a tensor of so many beside a network is a part of one that is not
/// known.
const CONVOLUTION: usize = 3;

/// Most parts that are taken from the begin of all names to make them fit.
const MOST_PARTS: usize = 8;

/// What kind of file a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckpointFormat {
    /// A safetensors file.
    Safetensors,
    /// What torch.save writes: a zip archive.
    Torch,
    /// What torch.jit.save writes; its tensors are read, its code is not.
    TorchScript,
    /// An ONNX file: the graph with its weights.
    Onnx,
}

/// A file of tensors that may lack a card.
#[derive(Debug)]
pub struct Checkpoint {
    weights: Weights,
    format: CheckpointFormat,
    wrapper: Vec<String>,
    prefix: String,
    /// Whether weights may be NaN or infinite.
    non_finite: bool,
    /// The names of the tensors in the order of the file, if it keeps one.
    order: Vec<String>,
    /// What nnU-Net says beside the tensors.
    told: Map<String, Value>,
    /// The graph of an ONNX file.
    onnx: Option<Source>,
}

/// Keys beside the tensors that are read: nnU-Net's. Of a safetensors file they are keys of its
/// metadata, and `configuration` is one of them instead of a part of the first.
const TOLD: [&str; 3] = ["init_args", "inference_allowed_mirroring_axes", "trainer_name"];

fn format_error(message: impl Into<String>) -> LoadError {
    LoadError::new(LoadErrorKind::Format, message)
}

/// The network that names and shapes tell.
struct Told {
    guess: Guess,
    /// The names by which the network knows the tensors.
    names: BTreeMap<String, String>,
    /// The common prefix of the names of its tensors.
    under: String,
}

/// The contents of a pickle of PyTorch.
struct Found {
    stored: BTreeMap<String, Stored>,
    order: Vec<String>,
    wrapper: Vec<String>,
    prefix: String,
    told: Map<String, Value>,
}

impl Found {
    /// The tensors of a pickle whose storages lie in an archive of these bytes, and the key if it
    /// is none of the outermost dict; `hint` ends the message where there are none.
    fn of<'a>(
        pickle: &Pickle<'_>,
        archive: &tensor::Archive<'_>,
        bytes: &[u8],
        key: Option<&'a str>,
        hint: &str,
    ) -> Result<(Self, Option<&'a str>), LoadError> {
        let root = key.and_then(|key| Some((key, pickle.get(pickle.root, key)?)));
        let found = state::find(pickle, archive, root).map_err(|e| format_error(format!("{e}{hint}")))?;
        let beside = |key: &str| Some((key.to_owned(), plain::value(pickle, pickle.get(pickle.root, key)?).unwrap_or_default()));
        let told = TOLD.into_iter().filter_map(beside).collect();
        let (mut names, tensors): (Vec<String>, Vec<tensor::Found>) = found.tensors.into_iter().unzip();
        let prefix = state::plain(&mut names);
        // what is not in row-major order is copied: no honest file needs more than its own size for
        // it
        let mut room = bytes.len().saturating_mul(4);
        let order = names.clone();
        let mut stored = BTreeMap::new();
        for (name, tensor) in names.into_iter().zip(tensors) {
            let data = match tensor.range() {
                Some(range) => Place::File(range),
                None => {
                    let length = tensor.len() * (tensor.dtype.bitsize() / 8);
                    room = room.checked_sub(length).ok_or_else(|| {
                        format_error(format!(
                            "the tensor {name:.120} of shape {:?} is larger than the file: it repeats what is there",
                            tensor.shape
                        ))
                    })?;
                    Place::Held(tensor.laid_out(bytes))
                }
            };
            stored.insert(name, Stored { dtype: tensor.dtype, shape: tensor.shape, data });
        }
        Ok((Self { stored, order, wrapper: found.wrapper, prefix, told }, key.filter(|_| root.is_none())))
    }

    /// The checkpoint whose bytes these are.
    fn checkpoint(self, bytes: Bytes, format: CheckpointFormat) -> Checkpoint {
        let Self { stored, order, wrapper, prefix, told } = self;
        Checkpoint { weights: Weights::of_tensors([bytes], stored), format, wrapper, prefix, non_finite: false, order, told, onnx: None }
    }
}

impl Checkpoint {
    /// Reads a safetensors file, a PyTorch checkpoint (.pth, .pt, .ckpt, .model) or an ONNX file,
    /// whatever it is called. The card of `net.onnx` may lie beside it, as `net.card.json` or
    /// `net.json`.
    ///
    /// # Errors
    /// When the file is missing, damaged, of another format, or holds no tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        Self::open_under(path, None)
    }

    /// The same of the tensors under one key of the outermost dict, or whose names begin so: one of
    /// several networks, as `ema` or `teacher`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], or when there are no tensors under that key.
    pub fn open_under(path: impl AsRef<Path>, key: Option<&str>) -> Result<Self, LoadError> {
        let path = path.as_ref();
        let bytes = Bytes::read(path)?;
        if onnx::is_one(bytes.get()) {
            let source = Source::open(bytes, path);
            let named = |e: LoadError| LoadError::new(e.kind(), format!("{} is not a model file", path.display())).caused_by(e);
            return Self::of_onnx(source.map_err(named)?, key);
        }
        Self::read(bytes, key).map_err(|e| LoadError::new(e.kind(), format!("{} is not a model file", path.display())).caused_by(e))
    }

    /// The same from bytes in memory.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, LoadError> {
        let bytes: Cow<'static, [u8]> = bytes.into();
        Self::read(bytes.into(), None)
    }

    fn of_onnx(source: Source, key: Option<&str>) -> Result<Self, LoadError> {
        if let Some(key) = key {
            let text = format!("an ONNX file holds one network, and none under {key:.80}");
            return Err(LoadError::new(LoadErrorKind::NotFound, text));
        }
        let found = Found { stored: BTreeMap::new(), order: Vec::new(), wrapper: Vec::new(), prefix: String::new(), told: Map::new() };
        let checkpoint = found.checkpoint(Cow::Borrowed(&[][..]).into(), CheckpointFormat::Onnx);
        Ok(Self { weights: source.weights(), onnx: Some(source), ..checkpoint })
    }

    fn read(bytes: Bytes, key: Option<&str>) -> Result<Self, LoadError> {
        if onnx::is_one(bytes.get()) {
            return Self::of_onnx(Source::read(bytes, None)?, key);
        }
        if legacy::is_one(bytes.get()) {
            let (pickle, entries) = legacy::read(bytes.get()).map_err(format_error)?;
            let (found, left) = Found::of(&pickle, &tensor::Archive { entries: &entries, folder: "" }, bytes.get(), key, "")?;
            return found.checkpoint(bytes, CheckpointFormat::Torch).part(left);
        }
        if zip::is_zip(bytes.get()) {
            return Self::of_archive(bytes, key);
        }
        if let [0x80, 2..=5, ..] = bytes.get() {
            return Err(format_error(
                "this is a pickle, but not one of torch.save; save the state dict with torch.save(model.state_dict(), ..)",
            ));
        }
        let weights = Weights::of_safetensors(bytes)?;
        let json = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| text.into());
        let mut told = Map::new();
        told.extend(weights.said("configuration").map(|name| (TOLD[0].to_owned(), json!({ "configuration": name }))));
        told.extend(weights.said(TOLD[1]).map(|axes| (TOLD[1].to_owned(), json(axes))));
        told.extend(weights.said(TOLD[2]).map(|name| (TOLD[2].to_owned(), name.into())));
        let found = Self {
            weights,
            format: CheckpointFormat::Safetensors,
            wrapper: Vec::new(),
            prefix: String::new(),
            non_finite: false,
            order: Vec::new(),
            told,
            onnx: None,
        };
        found.part(key)
    }

    fn of_archive(bytes: Bytes, key: Option<&str>) -> Result<Self, LoadError> {
        let entries = zip::entries(bytes.get()).map_err(format_error)?;
        // the folder is called after the file; an archive has one
        let pickles = entries.iter().filter_map(|(name, entry)| Some((name.strip_suffix("data.pkl")?, entry)));
        let Some((folder, entry)) = pickles.filter(|(folder, _)| folder.is_empty() || folder.ends_with('/')).min_by_key(|(f, _)| f.len())
        else {
            return Err(format_error("this is a zip archive, but no checkpoint of PyTorch: it has no data.pkl"));
        };
        let content = |name: &str| entries.get(name).and_then(|e| bytes.get().get(e.data.clone()));
        if content(&format!("{folder}byteorder")).is_some_and(|order| order != b"little") {
            return Err(format_error(
                "the checkpoint's numbers are big-endian, which is not read; save it anew on a little-endian machine",
            ));
        }
        if !entry.stored {
            return Err(format_error("the archive is compressed; torch.save stores it as it is, so unpack it and save it anew"));
        }
        let code = format!("{folder}code/");
        let script = entries.keys().any(|name| name.starts_with(&code));
        let archive = tensor::Archive { entries: &entries, folder };
        let pickled = bytes.get().get(entry.data.clone()).unwrap_or_default();
        let pickle = Pickle::read(pickled).map_err(|e| format_error(format!("the checkpoint's data.pkl is damaged: {e}")))?;
        let hint =
            if script { "; this is a TorchScript archive, save the state dict instead: torch.save(model.state_dict(), ..)" } else { "" };
        let (found, left) = Found::of(&pickle, &archive, bytes.get(), key, hint)?;
        let format = if script { CheckpointFormat::TorchScript } else { CheckpointFormat::Torch };
        found.checkpoint(bytes, format).part(left)
    }

    /// What nnU-Net saved beside the tensors under a key of the outermost dict: `init_args`,
    /// `inference_allowed_mirroring_axes`, `trainer_name`.
    pub(crate) fn told(&self, key: &str) -> Option<&Value> {
        self.told.get(key)
    }

    /// Takes NaN and infinite weights, which [`Checkpoint::into_model`] refuses otherwise.
    #[must_use]
    pub fn allow_non_finite(mut self, allowed: bool) -> Self {
        self.non_finite = allowed;
        self
    }

    /// What kind of file it is.
    #[must_use]
    pub fn format(&self) -> CheckpointFormat {
        self.format
    }

    /// The keys that lead from what was saved to the state dict, outermost first; none where it was saved itself.
    #[must_use]
    pub fn wrapper(&self) -> &[String] {
        &self.wrapper
    }

    /// What `DataParallel` and `torch.compile` had put before every name, and was taken away.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The tensors.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The JSON of the card in the file, if there is one.
    #[must_use]
    pub fn card(&self) -> Option<&str> {
        self.onnx.as_ref().map_or_else(|| self.weights.card(), Source::card)
    }

    /// Architecture and config as JSON (`{"architecture":"..","config":{..}}`), as far as names and shapes tell them.
    ///
    /// # Errors
    /// When the names are of no architecture that is known, or the config has what shapes do not tell; the message says what.
    pub fn infer(&self) -> Result<String, LoadError> {
        let Told { guess, .. } = self.guess(None)?.ok_or_else(|| self.unrecognised())?;
        complete(&guess, &Map::new())?;
        Ok(json!({"architecture": guess.architecture, "config": guess.config}).to_string())
    }

    /// The network. `given` is the JSON of a card or of a part of one, which goes before what the file says itself, and that before
    /// what names and shapes tell; of `config`, key by key. Given labels take the file's expected volumes away.
    ///
    /// # Errors
    /// When `given` is no card, the architecture or a part of its config remains untold, or the tensors do not fit or, but for
    /// [`Checkpoint::allow_non_finite`], hold NaN or infinite values.
    pub fn into_model(self, given: Option<&str>) -> Result<Model, LoadError> {
        let allowed = self.non_finite;
        let model = self.network(given)?;
        if allowed { Ok(model) } else { model.finite() }
    }

    fn network(mut self, given: Option<&str>) -> Result<Model, LoadError> {
        let bad = |what: &str| LoadError::new(LoadErrorKind::Card, what.to_owned());
        let object = |json: &str| match serde_json::from_str(json) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err(bad("the card is no JSON object")),
            Err(e) => Err(bad("the card is not what it should be").caused_by(e)),
        };
        if let Some(source) = self.onnx.take() {
            let mut card = source.card().map(object).transpose()?.unwrap_or_default();
            card.append(&mut given.map(object).transpose()?.unwrap_or_default());
            return Model::of_onnx(source, card);
        }
        let Some(given) = given else {
            return match self.card() {
                Some(card) => {
                    let card = Card::parse(card)?;
                    Model::from_card(card, self.weights)
                }
                None => self.completed(Map::new()),
            };
        };
        let mut card = self.card().map(object).transpose()?.unwrap_or_default();
        let mut given = object(given)?;
        let other = given.get("architecture").is_some_and(|a| card.get("architecture").is_some_and(|own| own != a));
        if other {
            card.remove("config");
            card.remove("expects");
        }
        // expected volumes are those of labels by name
        if let (Some(expects), Some(_)) = (card.get_mut("expects"), given.get("labels")) {
            expects.as_object_mut().map(|expects| expects.remove("volumes_ml"));
        }
        if let (Some(Value::Object(own)), Some(Value::Object(more))) = (card.get_mut("config"), given.get_mut("config")) {
            own.append(more);
            given.remove("config");
        }
        card.append(&mut given);
        if self.card().is_some() && !other {
            return Model::from_card(Card::parse(&Value::Object(card).to_string())?, self.weights);
        }
        self.weights.forget_card();
        self.completed(card)
    }

    /// The network of a card that may lack the architecture, the config or a part of it.
    fn completed(mut self, mut card: Map<String, Value>) -> Result<Model, LoadError> {
        let architecture = card.get("architecture").and_then(Value::as_str).map(str::to_owned);
        let config = match card.remove("config") {
            None => Map::new(),
            Some(Value::Object(config)) => config,
            Some(_) => return Err(LoadError::new(LoadErrorKind::Card, "the card's config is no JSON object")),
        };
        let (architecture, config, names) = match (self.guess(architecture.as_deref())?, architecture) {
            (Some(Told { guess, names, .. }), _) => (guess.architecture.to_owned(), complete(&guess, &config)?, Some(names)),
            (None, Some(architecture)) => (architecture, config, None),
            (None, None) => return Err(self.unrecognised()),
        };
        card.insert("architecture".into(), architecture.into());
        card.insert("config".into(), config.into());
        if let Some(names) = names {
            self.weights.rename(|old| names.get(old).cloned());
        }
        Model::from_card(Card::parse(&Value::Object(card).to_string())?, self.weights)
    }

    /// The network that names and shapes tell.
    ///
    /// # Errors
    /// When there are several networks beside each other.
    fn guess(&self, architecture: Option<&str>) -> Result<Option<Told>, LoadError> {
        let sorted: Vec<&str> = self.weights.names().collect();
        // files by name have lost the order of the modules
        let ordered = !self.order.is_empty() && !self.order.iter().is_sorted();
        let names: Vec<&str> = if ordered { self.order.iter().map(String::as_str).collect() } else { sorted };
        let mut found = Vec::new();
        self.networks(&names, 0, MOST_PARTS, (architecture, ordered), &mut found);
        if found.len() > 1 {
            let parts: Vec<String> = found.iter().map(|told| format!("{} ({})", told.under, told.guess.architecture)).collect();
            let text = format!(
                "the checkpoint holds several networks, under {}; say which, as --weights {}",
                parts.join(" and under "),
                found[0].under
            );
            return Err(LoadError::new(LoadErrorKind::Undetermined, text));
        }
        Ok(found.pop().filter(|told| self.beside(told).all(|name| self.weights.shape(name).is_some_and(|s| s.len() < CONVOLUTION))))
    }

    /// The names of the tensors beside a network.
    fn beside<'a>(&'a self, told: &Told) -> impl Iterator<Item = &'a str> + use<'a> {
        let begin = if told.under.is_empty() { String::new() } else { format!("{}.", told.under) };
        self.weights.names().filter(move |name| !name.starts_with(&begin))
    }

    /// The networks among tensors: that of all of them without the begin of their names, or else
    /// those under each of the names' next parts.
    fn networks(&self, names: &[&str], strip: usize, parts: usize, how: (Option<&str>, bool), found: &mut Vec<Told>) {
        let (architecture, ordered) = how;
        let stripped: Vec<&str> = names.iter().map(|name| name.get(strip..).unwrap_or_default()).collect();
        let (dialect, known) = infer::translate(&stripped);
        let pairs = || names.iter().zip(&known).filter_map(|(&old, new)| Some((old, new.as_deref()?)));
        let shapes = pairs().filter_map(|(old, new)| Some((new, self.weights.shape(old)?)));
        if let Some(guess) = infer::guess(&Shapes::new(shapes, dialect, ordered), architecture) {
            let names = pairs().map(|(old, new)| (old.to_owned(), new.to_owned())).collect();
            let under = pairs().next().and_then(|(old, _)| old.get(..strip)).unwrap_or_default();
            found.push(Told { guess, names, under: under.trim_end_matches('.').to_owned() });
            return;
        }
        let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in names {
            if let Some(end) = name.get(strip..).and_then(|rest| rest.find('.')) {
                groups.entry(&name[..=strip + end]).or_default().push(name);
            }
        }
        if parts > 1 {
            // a tensor alone is no network
            let groups = groups.iter().filter(|(_, names)| names.len() > 1);
            groups.for_each(|(begin, names)| self.networks(names, begin.len(), parts - 1, how, found));
        }
    }

    /// The names of the tensors that are beside the network, if one is told: of losses, metrics or
    /// averages. Of an ONNX file those of the outputs besides the first.
    #[must_use]
    pub fn left_aside(&self) -> Vec<String> {
        if let Some(source) = &self.onnx {
            return source.left_aside().to_vec();
        }
        let Ok(Some(told)) = self.guess(None) else { return Vec::new() };
        self.beside(&told).map(str::to_owned).collect()
    }

    /// The checkpoint with the tensors under a begin of their names alone, without it.
    fn part(mut self, part: Option<&str>) -> Result<Self, LoadError> {
        let Some(part) = part else { return Ok(self) };
        let begin = format!("{}.", part.trim_end_matches('.'));
        if !self.weights.names().any(|name| name.starts_with(&begin)) {
            let mut parts: Vec<&str> = self.weights.names().filter_map(|name| name.split_once('.')).map(|(part, _)| part).collect();
            parts.dedup();
            parts.truncate(8);
            let text = format!("the checkpoint has no tensors under {part:.80}; there are some under {}", parts.join(", "));
            return Err(LoadError::new(LoadErrorKind::NotFound, text));
        }
        self.weights.rename(|name| name.strip_prefix(&begin).map(str::to_owned));
        self.order = self.order.iter().filter_map(|name| name.strip_prefix(&begin)).map(str::to_owned).collect();
        Ok(self)
    }

    fn unrecognised(&self) -> LoadError {
        let names: Vec<String> = self.weights.names().take(3).map(|name| format!("{name:.40}")).collect();
        let text = format!(
            "the model has no card (safetensors metadata under the key \"organum\"), and the names of its {} tensors ({}, ..) \
             are those of no architecture that is recognised; convert it with --architecture A --config C.json, where A is a \
             name of the table of networks (docs/networks.md)",
            self.weights.names().count(),
            names.join(", ")
        );
        LoadError::new(LoadErrorKind::Card, text)
    }
}

/// The config of a guess with what is given for it.
fn complete(guess: &Guess, given: &Map<String, Value>) -> Result<Map<String, Value>, LoadError> {
    let missing: Vec<&(&str, String)> = guess.untold.iter().filter(|(key, _)| !given.contains_key(*key)).collect();
    if !missing.is_empty() {
        let what: Vec<String> = missing.iter().map(|(key, what)| format!("{key} ({what})")).collect();
        let keys: Vec<String> = missing.iter().map(|(key, _)| format!("\"{key}\": ..")).collect();
        let text = format!(
            "the model has no card, and the tensors of its {} do not tell {}; convert it with --config C.json, where C.json says: {{{}}}",
            guess.architecture,
            what.join(", "),
            keys.join(", ")
        );
        return Err(LoadError::new(LoadErrorKind::Undetermined, text));
    }
    let mut config = guess.config.clone();
    config.extend(given.iter().map(|(key, value)| (key.clone(), value.clone())));
    Ok(config)
}
