//! Models in zip archives: what `nnUNetv2_export_model_to_zip` writes, zipped folders of nnU-Net's,
//! and zipped MONAI bundles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use zip::ZipArchive;

use crate::error::{LoadError, LoadErrorKind};
use crate::host::open_file;
use crate::shape::format_bytes;

/// Most entries of an archive.
const MOST_ENTRIES: usize = 1 << 17;

/// The bound of a model unpacked: a multiple of the archive, and so many bytes more. Weights hardly
/// shrink when they are compressed.
const MOST_TIMES: u64 = 8;
const MOST_MORE: u64 = 64 << 20;

/// The most models that a message names.
const MOST_NAMED: usize = 20;

/// Names of the config that makes a folder a bundle.
const CONFIGS: [&str; 3] = ["inference.json", "inference.yaml", "inference.yml"];

/// A model of a zip archive, unpacked into a folder that goes with the last of its clones.
#[derive(Clone, Debug)]
pub struct Unpacked {
    folder: Arc<TempDir>,
    /// The folder of the model.
    path: PathBuf,
    /// The archive.
    archive: PathBuf,
}

/// The archive that a path leads to or into, and the way within it.
fn within(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let zipped = |path: &Path| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("zip")) && path.is_file();
    let archive = path.ancestors().find(|path| zipped(path))?;
    let inner = path.strip_prefix(archive).ok()?;
    Some((archive.to_owned(), inner.components().filter(|part| matches!(part, Component::Normal(_))).collect()))
}

/// A name of an archive as a path that stays below where it is unpacked.
fn below(name: &str) -> Option<PathBuf> {
    let path = Path::new(name);
    let stays = !name.contains(['\\', '\0']) && path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    stays.then(|| path.components().filter(|part| matches!(part, Component::Normal(_))).collect())
}

fn named(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn is_fold(folder: &Path) -> bool {
    named(folder).starts_with("fold_") || named(folder) == "all"
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

impl Unpacked {
    /// Unpacks a model's archive, or the model in it that a path such as
    /// `export.zip/Dataset004/nnUNetTrainer__nnUNetPlans__3d_fullres` leads to: plans, configs and
    /// weights alone, into a folder for temporary files. `None` where the path leads to no archive
    /// whose name ends in `.zip`, or to a checkpoint of PyTorch's.
    ///
    /// # Errors
    /// When the archive is damaged, holds no model or several (the message names them), a name in it
    /// leads out of it, or it unpacks to many times its size.
    pub fn of(path: impl AsRef<Path>) -> Result<Option<Self>, LoadError> {
        let Some((archive, inner)) = within(path.as_ref()) else { return Ok(None) };
        let name = archive.display();
        let damaged =
            |e: &dyn std::fmt::Display| LoadError::new(LoadErrorKind::Format, format!("{name} is no zip archive that is read: {e}"));
        let file = open_file(&archive).map_err(|e| LoadError::io(format!("cannot read {name}"), e))?;
        let size = file.metadata().map_err(|e| LoadError::io(format!("cannot read {name}"), e))?.len();
        let mut zip = ZipArchive::new(file).map_err(|e| damaged(&e))?;
        if zip.len() > MOST_ENTRIES {
            return Err(damaged(&format!("it has {} entries, at most {MOST_ENTRIES} are read", zip.len())));
        }
        let mut entries = BTreeMap::new();
        for number in 0..zip.len() {
            let entry = zip.by_index_raw(number).map_err(|e| damaged(&e))?;
            let name = entry.name().map_err(|e| damaged(&e))?;
            let Some(path) = below(&name) else {
                return Err(damaged(&format!("the name {name:?} leads out of it")));
            };
            if !name.ends_with('/') && entries.insert(path, number).is_some() {
                return Err(damaged(&format!("the name {name:?} is there twice")));
            }
        }
        let models = models(&entries);
        let checkpoint = entries.keys().any(|path| matches!(named(path), "data.pkl" | "constants.pkl"));
        if models.is_empty() && checkpoint {
            return Ok(None);
        }
        let candidates: Vec<&PathBuf> = models.iter().filter(|model| model.starts_with(&inner) || inner.starts_with(model)).collect();
        let model = match candidates[..] {
            [only] => only.clone(),
            [] => {
                let there = listed(&archive, models.iter().collect());
                let text = if models.is_empty() {
                    format!("{name} holds neither a trained model of nnU-Net's nor a MONAI bundle")
                } else {
                    format!("{} is no model; {name} holds {there}", path.as_ref().display())
                };
                return Err(LoadError::new(LoadErrorKind::NotFound, text));
            }
            _ => {
                let there = listed(&archive, candidates);
                let text = format!("{} holds several models; name one of them: {there}", path.as_ref().display());
                return Err(LoadError::new(LoadErrorKind::NotFound, text));
            }
        };
        let folder = tempfile::Builder::new().prefix("organum-model-").tempdir();
        let folder = folder.map_err(|e| LoadError::io("cannot make a folder for temporary files", e))?;
        let within = if inner.starts_with(&model) { &inner } else { &model };
        let unpacked = Self { path: folder.path().join(within), folder: Arc::new(folder), archive };
        let most = size.saturating_mul(MOST_TIMES).saturating_add(MOST_MORE);
        unpacked.unpack(&mut zip, &entries, &model, most)?;
        Ok(Some(unpacked))
    }

    /// True if a path leads to or into a file whose name ends in `.zip`.
    #[must_use]
    pub fn leads_to(path: impl AsRef<Path>) -> bool {
        within(path.as_ref()).is_some()
    }

    /// The folder of the model.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error of what was unpacked, told of the archive.
    #[must_use]
    pub fn explain(&self, e: LoadError) -> LoadError {
        let folder = self.folder.path().display().to_string();
        let text = e.to_string();
        if !text.contains(&folder) {
            return e;
        }
        LoadError::new(e.kind(), text.replace(&folder, &self.archive.display().to_string()))
    }

    /// Unpacks a model, and those beside it of the configurations that its plans name as previous
    /// stages; `most` bytes in all.
    fn unpack(&self, zip: &mut ZipArchive<File>, entries: &BTreeMap<PathBuf, usize>, model: &Path, mut most: u64) -> Result<(), LoadError> {
        let mut take = |of: &dyn Fn(&Path) -> bool| -> Result<(), LoadError> {
            for (path, number) in entries.iter().filter(|(path, _)| of(path)) {
                self.write(zip, path, *number, &mut most)?;
            }
            Ok(())
        };
        take(&|path| path.strip_prefix(model).is_ok_and(belongs))?;
        let stages = self.stages(model);
        let beside = |path: &Path| {
            let other = parent(model);
            let folder = path.strip_prefix(other).ok().and_then(|rest| rest.components().next());
            folder.is_some_and(|folder| {
                let folder = other.join(folder);
                let stage = named(&folder).rsplit("__").next().is_some_and(|stage| stages.contains(stage));
                stage && folder != model && path.strip_prefix(&folder).is_ok_and(belongs)
            })
        };
        if stages.is_empty() { Ok(()) } else { take(&beside) }
    }

    /// The configurations that are previous stages in a model's plans.
    fn stages(&self, model: &Path) -> BTreeSet<String> {
        let text = fs::read(self.folder.path().join(model).join("plans.json")).unwrap_or_default();
        let plans: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let configurations = plans.get("configurations").and_then(serde_json::Value::as_object);
        let stage = |conf: &serde_json::Value| Some(conf.get("previous_stage")?.as_str()?.to_owned());
        configurations.into_iter().flat_map(serde_json::Map::values).filter_map(stage).collect()
    }

    fn write(&self, zip: &mut ZipArchive<File>, path: &Path, number: usize, most: &mut u64) -> Result<(), LoadError> {
        let name = self.archive.display();
        let failed = |e: io::Error| LoadError::io(format!("{name}: {} cannot be unpacked", path.display()), e);
        let entry = zip.by_index(number).map_err(|e| failed(e.into()))?;
        let to = self.folder.path().join(path);
        fs::create_dir_all(parent(&to)).map_err(failed)?;
        let mut file = File::create_new(&to).map_err(failed)?;
        let written = io::copy(&mut entry.take(most.saturating_add(1)), &mut file).map_err(failed)?;
        file.flush().map_err(failed)?;
        let Some(left) = most.checked_sub(written) else {
            let text = format!("{name} unpacks to more than {MOST_TIMES} times its size and {}", format_bytes(MOST_MORE));
            return Err(LoadError::new(LoadErrorKind::Format, text));
        };
        *most = left;
        Ok(())
    }
}

/// The folders of models among the entries of an archive.
fn models(entries: &BTreeMap<PathBuf, usize>) -> BTreeSet<PathBuf> {
    let mut planned = BTreeSet::new();
    let mut trained = BTreeSet::new();
    let mut bundles = BTreeSet::new();
    for path in entries.keys() {
        let folder = parent(path);
        match named(path) {
            "plans.json" | "plans.pkl" => drop(planned.insert(folder.to_owned())),
            name if CONFIGS.contains(&name) && named(folder) == "configs" => drop(bundles.insert(parent(folder).to_owned())),
            _ if is_fold(folder) => drop(trained.insert(parent(folder).to_owned())),
            _ => {}
        }
    }
    planned.intersection(&trained).cloned().chain(bundles).collect()
}

/// True if a path within a model's folder is of use.
fn belongs(path: &Path) -> bool {
    let folder = parent(path);
    let ends = |endings: &[&str]| endings.iter().any(|ending| named(path).ends_with(ending));
    let post = ["postprocessing.pkl", "postprocessing.json"].contains(&named(path));
    match (folder.components().count(), named(folder)) {
        (0, _) => post || ["plans.json", "plans.pkl", "dataset.json"].contains(&named(path)),
        (1, "configs") => ends(&[".json", ".yaml", ".yml"]),
        (1, "models") => ends(&[".pt", ".ts", ".pth", ".safetensors"]),
        (1, name) if name.starts_with("crossval_results_folds_") => post,
        (1, _) => is_fold(folder) && ends(&[".pth", ".safetensors", ".model", ".model.pkl"]),
        _ => false,
    }
}

/// The models of an archive as they are named on the command line.
fn listed(archive: &Path, models: Vec<&PathBuf>) -> String {
    let more = if models.len() > MOST_NAMED { ", .." } else { "" };
    let names: Vec<String> = models.iter().take(MOST_NAMED).map(|model| archive.join(model).display().to_string()).collect();
    format!("{}{more}", names.join(", "))
}
