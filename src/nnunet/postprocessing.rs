//! nnU-Net's post-processing of labels, read of `postprocessing.pkl` or `postprocessing.json`.
//!
//! Source: `nnunetv2.postprocessing.remove_connected_components` of nnunetv2 2.8.1 and
//! `nnunet.postprocessing.connected_components` of nnunet 1.7.1.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{LoadError, LoadErrorKind};
use crate::host::read_file;
use crate::model;
use crate::scan::Filter;

/// The files of nnU-Net, that which nnU-Net v2 itself reads first.
const FILES: [&str; 2] = ["postprocessing.pkl", "postprocessing.json"];

/// The only function that nnU-Net v2 writes.
const FUNCTION: &str = "remove_all_but_largest_component_from_segmentation";

/// Most bytes of such a file; its JSON holds scores of each training case, too.
const LARGEST: u64 = 64 << 20;

/// Voxels that touch at a corner are neighbours in v2, in v1 those that share a face.
const CORNERS: u32 = 3;
const FACES: u32 = 1;

fn bad(text: impl Into<String>) -> LoadError {
    LoadError::new(LoadErrorKind::Card, text)
}

/// The file of nnU-Net's post-processing in a folder.
pub(super) fn beside(folder: &Path) -> Option<PathBuf> {
    FILES.iter().map(|name| folder.join(name)).find(|file| file.is_file())
}

/// Reads a `postprocessing.pkl` of nnU-Net v2, of which nothing is run, or the
/// `postprocessing.json` of v2 or v1: what is to be done to labels, in order.
///
/// # Errors
/// When the file is missing or damaged, or holds what no nnU-Net writes.
pub fn postprocessing(file: impl AsRef<Path>) -> Result<Vec<Filter>, LoadError> {
    let file = file.as_ref();
    let name = file.display();
    let bytes = read_file(file, LARGEST).map_err(|e| LoadError::io(format!("cannot read {name}"), e))?;
    let of = |e: String| bad(format!("{name}: {e}"));
    if file.extension().is_some_and(|ending| ending == "json") {
        let text = String::from_utf8(bytes).map_err(|_| LoadError::new(LoadErrorKind::Format, format!("{name} is no text in UTF-8")))?;
        let told: Value = serde_json::from_str(&without_nan(&text))
            .map_err(|e| LoadError::new(LoadErrorKind::Format, format!("{name} is no JSON")).caused_by(e))?;
        return match (told.get("postprocessing_fns"), told.get("for_which_classes")) {
            (Some(functions), _) => second(functions, &told["postprocessing_kwargs"]).map_err(of),
            (None, Some(classes)) => first(classes, &told["min_valid_object_sizes"]).map_err(of),
            (None, None) => Err(of("it has neither postprocessing_fns of nnU-Net v2 nor for_which_classes of v1".into())),
        };
    }
    let told = model::pickled(&bytes)
        .map_err(|e| LoadError::new(LoadErrorKind::Format, format!("{name} is no pickle that is read")).caused_by(bad(e)))?;
    match told.as_array().map(Vec::as_slice) {
        Some([functions, kwargs]) => second(functions, kwargs).map_err(of),
        _ => Err(of("it is no pair of functions and their arguments, as nnU-Net v2 writes".into())),
    }
}

/// That of v2: names of functions, and the arguments of each.
fn second(functions: &Value, kwargs: &Value) -> Result<Vec<Filter>, String> {
    let (Some(functions), Some(kwargs)) = (functions.as_array(), kwargs.as_array()) else {
        return Err("its functions and arguments are no lists".into());
    };
    if functions.len() != kwargs.len() {
        return Err(format!("it has {} functions and {} lists of arguments", functions.len(), kwargs.len()));
    }
    let filter = |(function, kwargs): (&Value, &Value)| {
        let name = function.as_str().unwrap_or_default();
        if name.rsplit('.').next() != Some(FUNCTION) {
            return Err(format!("the function {function} is not supported; {FUNCTION} is"));
        }
        let Some(kwargs) = kwargs.as_object() else { return Err(format!("the arguments {kwargs} are no dict")) };
        if let Some(other) = kwargs.keys().find(|key| !["labels_or_regions", "background_label"].contains(&key.as_str())) {
            return Err(format!("the argument {other:?} is not supported"));
        }
        let mut labels = Vec::new();
        numbers(kwargs.get("labels_or_regions").unwrap_or(&Value::Null), &mut labels)?;
        let background = kwargs.get("background_label").map_or(Ok(0), label)?;
        // no labels mean each of them elsewhere, here nothing
        let filter = Filter::LargestComponents { labels: labels.clone(), connectivity: CORNERS, background, keep_mm3: None };
        Ok((!labels.is_empty()).then_some(filter))
    };
    functions.iter().zip(kwargs).map(filter).filter_map(Result::transpose).collect()
}

/// That of v1: labels or regions, and the volumes from which on their components stay.
fn first(classes: &Value, sizes: &Value) -> Result<Vec<Filter>, String> {
    let sizes = match sizes {
        Value::Null => None,
        Value::String(text) => Some(volumes(text).ok_or_else(|| format!("min_valid_object_sizes {text:?} are no volumes"))?),
        other => return Err(format!("min_valid_object_sizes {other} are no text of a dict")),
    };
    let filter = |labels: Vec<u16>| {
        if labels.contains(&0) {
            return Err("for_which_classes has 0, and the background cannot be removed".to_owned());
        }
        let keep_mm3 = match &sizes {
            Some(sizes) => {
                let size = sizes.iter().rev().find(|(of, _)| *of == labels).map(|(_, size)| *size);
                Some(size.ok_or_else(|| format!("min_valid_object_sizes has no volume for {labels:?}"))?)
            }
            None => None,
        };
        Ok(Filter::LargestComponents { labels, connectivity: FACES, background: 0, keep_mm3 })
    };
    match classes {
        Value::Null => match &sizes {
            // every label that there is
            None => Ok(vec![Filter::LargestComponents { labels: Vec::new(), connectivity: FACES, background: 0, keep_mm3: None }]),
            Some(sizes) => sizes.iter().map(|(labels, _)| filter(labels.clone())).collect(),
        },
        Value::Array(classes) => {
            let one = |class: &Value| {
                let mut labels = Vec::new();
                numbers(class, &mut labels)?;
                if labels.is_empty() {
                    return Err("for_which_classes has an empty region".into());
                }
                filter(labels)
            };
            classes.iter().map(one).collect()
        }
        other => Err(format!("for_which_classes {other} is no list of labels")),
    }
}

fn label(value: &Value) -> Result<u16, String> {
    let number = value.as_u64().and_then(|n| u16::try_from(n).ok());
    number.ok_or_else(|| format!("{value} is no label"))
}

/// The labels of a label, a region, or a list of both.
fn numbers(value: &Value, found: &mut Vec<u16>) -> Result<(), String> {
    match value {
        Value::Array(list) => list.iter().try_for_each(|value| numbers(value, found)),
        other => {
            found.push(label(other)?);
            Ok(())
        }
    }
}

/// The volumes of labels and regions, of Python's text of a dict: `{1: 20.5, (1, 2): 3.0}`.
fn volumes(text: &str) -> Option<Vec<(Vec<u16>, f64)>> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (key, after) = match rest.strip_prefix('(') {
            Some(region) => {
                let (labels, after) = region.split_once(')')?;
                (labels, after.trim_start().strip_prefix(':')?)
            }
            None => rest.split_once(':')?,
        };
        let labels: Option<Vec<u16>> =
            key.split(',').map(str::trim).filter(|label| !label.is_empty()).map(|label| label.parse().ok()).collect();
        let (size, next) = after.split_once(',').unwrap_or((after, ""));
        let size = size.trim().parse().ok().filter(|size: &f64| size.is_finite())?;
        found.push((labels.filter(|labels| !labels.is_empty())?, size));
        rest = next.trim();
    }
    Some(found)
}

/// JSON with null for the numbers that Python writes and JSON does not have.
fn without_nan(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut quoted) = (text, false);
    while let Some(next) = rest.chars().next() {
        let not_finite = ["NaN", "-Infinity", "Infinity"].into_iter().find(|word| !quoted && rest.starts_with(word));
        let taken = match not_finite {
            Some(word) => {
                out.push_str("null");
                word.len()
            }
            None => {
                let escaped = if quoted && next == '\\' { rest[1..].chars().next().map_or(0, char::len_utf8) } else { 0 };
                quoted ^= next == '"';
                let taken = next.len_utf8() + escaped;
                out.push_str(&rest[..taken]);
                taken
            }
        };
        rest = &rest[taken..];
    }
    out
}

/// The first file in the folders of a model's cross-validations that has something to do. nnU-Net v2
/// does it where `nnUNetv2_apply_postprocessing` is told to.
pub(super) fn of_validation(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let validation = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("crossval_results_folds_"));
    let mut folders: Vec<PathBuf> = entries.filter(validation).collect();
    folders.sort();
    let does = |file: &PathBuf| postprocessing(file).is_ok_and(|filters| !filters.is_empty());
    folders.iter().filter_map(|folder| beside(folder)).find(does)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(labels: &[u16], connectivity: u32, keep_mm3: Option<f64>) -> Filter {
        Filter::LargestComponents { labels: labels.to_vec(), connectivity, background: 0, keep_mm3 }
    }

    fn read(name: &str, bytes: &[u8]) -> Result<Vec<Filter>, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).map_err(|e| e.to_string())?;
        postprocessing(&file).map_err(|e| e.to_string())
    }

    fn json(value: &Value) -> Result<Vec<Filter>, String> {
        read("postprocessing.json", value.to_string().as_bytes())
    }

    #[test]
    fn what_nnunetv2_writes_is_read() {
        let name = "remove_all_but_largest_component_from_segmentation";
        let kwargs =
            json!([{"labels_or_regions": [1, [2, 3]]}, {"labels_or_regions": 3, "background_label": 7}, {"labels_or_regions": []}]);
        let told = json!({"postprocessing_fns": [name, name, name], "postprocessing_kwargs": kwargs});
        let last = Filter::LargestComponents { labels: vec![3], connectivity: 3, background: 7, keep_mm3: None };
        assert_eq!(json(&told), Ok(vec![of(&[1, 2, 3], 3, None), last]));
        // Python's JSON, in which a score may be no number
        let scores = format!(r#"{{"input_folder": {{"a \"NaN": NaN, "b": [-Infinity, Infinity]}}, {}"#, &told.to_string()[1..]);
        assert_eq!(read("p.json", scores.as_bytes()), json(&told));
    }

    #[test]
    fn what_nnunet_writes_is_read() {
        let sizes = "{1: 20.5, (1, 2): 3}";
        let told = json!({"for_which_classes": [1, [1, 2]], "min_valid_object_sizes": sizes, "num_samples": 4});
        assert_eq!(json(&told), Ok(vec![of(&[1], 1, Some(20.5)), of(&[1, 2], 1, Some(3.0))]));
        assert_eq!(json(&json!({"for_which_classes": [2]})), Ok(vec![of(&[2], 1, None)]));
        assert_eq!(json(&json!({"for_which_classes": null})), Ok(vec![of(&[], 1, None)]));
        assert_eq!(json(&json!({"for_which_classes": []})), Ok(Vec::new()));
        let all = json!({"for_which_classes": null, "min_valid_object_sizes": "{2: 1.0}"});
        assert_eq!(json(&all), Ok(vec![of(&[2], 1, Some(1.0))]));
    }

    #[test]
    fn what_no_nnunet_writes_is_refused() {
        let name = "remove_all_but_largest_component_from_segmentation";
        let second = |functions: Value, kwargs: Value| json!({"postprocessing_fns": functions, "postprocessing_kwargs": kwargs});
        let first = |classes: Value, sizes: Value| json!({"for_which_classes": classes, "min_valid_object_sizes": sizes});
        for (told, words) in [
            (second(json!(["fill_holes"]), json!([{}])), "the function \"fill_holes\" is not supported"),
            (second(json!([name]), json!([{"labels_or_regions": 1, "size": 2}])), "the argument \"size\" is not supported"),
            (second(json!([name]), json!([])), "1 functions and 0 lists of arguments"),
            (second(json!(1), json!([])), "are no lists"),
            (second(json!([name]), json!([3])), "the arguments 3 are no dict"),
            (second(json!([name]), json!([{}])), "null is no label"),
            (second(json!([name]), json!([{"labels_or_regions": 70000}])), "70000 is no label"),
            (first(json!([0]), json!(null)), "the background cannot be removed"),
            (first(json!([[]]), json!(null)), "an empty region"),
            (first(json!("all"), json!(null)), "is no list of labels"),
            (first(json!([1]), json!("{2: 1.0}")), "has no volume for [1]"),
            (first(json!([1]), json!("{1: x}")), "are no volumes"),
            (first(json!([1]), json!([1])), "no text of a dict"),
            (json!({}), "neither postprocessing_fns of nnU-Net v2 nor for_which_classes of v1"),
        ] {
            assert!(json(&told).is_err_and(|e| e.contains(words)), "{words}: {:?}", json(&told));
        }
        assert!(read("p.json", b"{").is_err_and(|e| e.contains("is no JSON")));
        assert!(read("p.json", b"\xff").is_err_and(|e| e.contains("no text in UTF-8")));
        assert!(read("p.pkl", b"\x80\x02K").is_err_and(|e| e.contains("is no pickle that is read")));
        assert!(read("p.pkl", b"\x80\x02N.").is_err_and(|e| e.contains("no pair of functions")));
        assert!(postprocessing("/nowhere/p.pkl").is_err_and(|e| e.to_string().contains("cannot read")));
    }
}
