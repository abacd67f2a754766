//! A bundle's config: JSON or YAML whose values refer to each other.

use std::path::Path;

use serde_json::{Map, Value};

use super::bad;
use super::expression::{evaluate, is_id};
use crate::error::{LoadError, LoadErrorKind};
use crate::host::read_text;

/// Longest chain of references within references.
const DEEPEST: u32 = 64;

/// The largest file in bytes.
const LARGEST: u64 = 16 << 20;

/// The most bytes that a value is resolved to: one a value, and those of its texts and keys.
const MOST: usize = 16 << 20;

/// A config whose references are resolved as values are asked for.
#[derive(Clone, Debug)]
pub(super) struct Config(Map<String, Value>);

impl Config {
    /// Reads a file, by its ending YAML or JSON.
    ///
    /// # Errors
    /// When it is missing, damaged or no object.
    pub(super) fn read(file: &Path) -> Result<Self, LoadError> {
        let text = read_text(file, LARGEST).map_err(|e| LoadError::io(format!("cannot read {}", file.display()), e))?;
        let is_yaml = file.extension().is_some_and(|e| e == "yaml" || e == "yml");
        Self::parse(&text, is_yaml).map_err(|what| LoadError::new(LoadErrorKind::Format, format!("{} {what}", file.display())))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// Says what it is not.
    pub(super) fn parse(text: &str, is_yaml: bool) -> Result<Self, String> {
        let value = if is_yaml {
            yaml(text).map_err(|e| format!("is no YAML: {e}"))?
        } else {
            serde_json::from_str(text).map_err(|e| format!("is no JSON: {e}"))?
        };
        match value {
            Value::Object(object) => Ok(Self(object)),
            _ => Err("is no object".into()),
        }
    }

    /// Sets a value.
    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.into(), value.into());
    }

    /// What is under an id such as `network_def::channels::0`, with its references resolved; what needs more Python than literals
    /// stays as its text. `None` where nothing is.
    ///
    /// # Errors
    /// When references go round in a circle.
    pub(super) fn get(&self, id: &str) -> Result<Option<Value>, LoadError> {
        self.0.get(id).or_else(|| self.find(id)).map(|value| self.resolve(value)).transpose()
    }

    fn resolve(&self, value: &Value) -> Result<Value, LoadError> {
        let mut left = MOST;
        self.resolved(value, 0, &mut left)
            .ok_or_else(|| bad(format!("the config's values refer to each other without end, or make more than {MOST} bytes")))
    }

    fn find(&self, id: &str) -> Option<&Value> {
        let id = id.replace('#', "::");
        let mut parts = id.split("::");
        parts.try_fold(None, |at: Option<&Value>, part| {
            Some(Some(match at {
                None => self.0.get(part)?,
                Some(Value::Array(list)) => list.get(part.parse::<usize>().ok()?)?,
                Some(Value::Object(object)) => object.get(part)?,
                Some(_) => return None,
            }))
        })?
    }

    /// `None` where there is no end to it.
    fn resolved(&self, value: &Value, depth: u32, left: &mut usize) -> Option<Value> {
        *left = left.checked_sub(1)?;
        if depth > DEEPEST {
            return None;
        }
        let text = |text: &str, left: &mut usize| {
            *left = left.checked_sub(text.len())?;
            Some(())
        };
        Some(match value {
            Value::Array(list) => list.iter().map(|v| self.resolved(v, depth + 1, left)).collect::<Option<_>>()?,
            Value::Object(object) => {
                let entry = |(key, v): (&String, &Value)| {
                    text(key, left)?;
                    Some((key.clone(), self.resolved(v, depth + 1, left)?))
                };
                object.iter().map(entry).collect::<Option<Map<_, _>>>()?.into()
            }
            Value::String(string) => {
                text(string, left)?;
                let whole = string.strip_prefix(['@', '%']).filter(|id| !id.is_empty() && id.chars().all(is_id));
                if let Some(id) = whole {
                    return match self.find(id) {
                        Some(found) => self.resolved(found, depth + 1, left),
                        None => Some(value.clone()),
                    };
                }
                let Some(python) = string.strip_prefix('$') else { return Some(value.clone()) };
                // the constants of MONAI that templates name dictionaries' keys by
                if let Some((_, key)) = python.rsplit_once("CommonKeys.").filter(|(_, key)| ["IMAGE", "LABEL", "PRED"].contains(key)) {
                    return Some(key.to_lowercase().into());
                }
                let mut endless = false;
                let found = evaluate(python, &mut |id| {
                    let found = self.resolved(self.find(id)?, depth + 1, left);
                    endless |= found.is_none();
                    found
                });
                if endless {
                    return None;
                }
                *left = left.checked_sub(found.as_ref().map_or(0, bytes))?;
                found.unwrap_or_else(|| value.clone())
            }
            other => other.clone(),
        })
    }
}

/// The bytes that a value counts: one, and those of its texts and keys.
fn bytes(value: &Value) -> usize {
    1 + match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(bytes).sum(),
        Value::Object(object) => object.iter().map(|(key, v)| key.len() + bytes(v)).sum(),
        _ => 0,
    }
}

/// The first document of a YAML text. Events of the parser are put together here, so that depth is
/// bounded before anything is nested: the crate's own tree recurses as it is built, hashed and freed.
#[cfg(feature = "yaml")]
fn yaml(text: &str) -> Result<Value, String> {
    use saphyr::Scalar;
    use saphyr_parser::{Event, Parser};

    /// A list or object that is not closed yet, with the key that waits for its value.
    enum Open {
        List(Vec<Value>),
        Object(Map<String, Value>, Option<String>),
    }

    /// Puts a value where it belongs.
    fn put(open: &mut [Open], done: &mut Option<Value>, value: Value) -> Result<(), String> {
        match open.last_mut() {
            None => *done = Some(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Object(object, key)) => match (key.take(), value) {
                (Some(key), value) => {
                    object.insert(key, value);
                }
                (None, Value::String(text)) => *key = Some(text),
                (None, Value::Array(_) | Value::Object(_)) => {
                    return Err("a list or an object is the key of another".into());
                }
                (None, other) => *key = Some(other.to_string()),
            },
        }
        Ok(())
    }

    let (mut open, mut done) = (Vec::new(), None);
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|e| e.to_string())?;
        let foreign = || Err("an alias or a tag, which configs do not have".to_owned());
        match event {
            Event::Alias(_) => return foreign(),
            Event::Scalar(_, _, _, Some(_)) => return foreign(),
            Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => return foreign(),
            Event::Scalar(text, style, _, None) => {
                let scalar = Scalar::parse_from_cow_and_metadata(text, style, None);
                let value = match scalar.ok_or("a value that cannot be read")? {
                    Scalar::Null => Value::Null,
                    Scalar::Boolean(b) => b.into(),
                    Scalar::Integer(n) => n.into(),
                    Scalar::FloatingPoint(x) => x.into_inner().into(),
                    Scalar::String(s) => s.as_ref().into(),
                };
                put(&mut open, &mut done, value)?;
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= DEEPEST as usize => {
                return Err(format!("values are nested more than {DEEPEST} deep"));
            }
            Event::SequenceStart(..) => open.push(Open::List(Vec::new())),
            Event::MappingStart(..) => open.push(Open::Object(Map::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => {
                let value = match open.pop() {
                    Some(Open::List(list)) => Value::Array(list),
                    Some(Open::Object(object, _)) => Value::Object(object),
                    None => return Err("an end without a beginning".into()),
                };
                put(&mut open, &mut done, value)?;
            }
            Event::DocumentEnd => return Ok(done.unwrap_or_default()),
            _ => {}
        }
    }
    Ok(done.unwrap_or_default())
}

#[cfg(not(feature = "yaml"))]
fn yaml(_: &str) -> Result<Value, String> {
    Err("this build does not read YAML (feature `yaml`)".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(value: Value) -> Config {
        match value {
            Value::Object(object) => Config(object),
            _ => unreachable!("an object"),
        }
    }

    #[test]
    fn references_are_resolved() -> Result<(), LoadError> {
        let c = config(json!({
            "dims": 3, "names": {"a": 1, "b": 2}, "base": [4, 8],
            "net": {"_target_": "VNet", "spatial_dims": "@dims", "out": "$len(@names) + 1", "first": "@base::0", "old": "@base#1",
                "all": "$@base + [@dims]", "device": "$torch.device('cpu')", "unknown": "@nothing"},
            "again": "%net", "image": "$monai.utils.CommonKeys.IMAGE"
        }));
        assert_eq!(c.get("image")?, Some(json!("image")));
        let expected = json!({"_target_": "VNet", "spatial_dims": 3, "out": 3, "first": 4, "old": 8, "all": [4, 8, 3],
            "device": "$torch.device('cpu')", "unknown": "@nothing"});
        assert_eq!(c.get("net")?, Some(expected.clone()));
        assert_eq!(c.get("again")?, Some(expected));
        assert_eq!(c.get("net::first")?, Some(json!(4)));
        assert_eq!(c.get("net::nothing")?, None);
        Ok(())
    }

    #[test]
    fn circles_and_floods_end() {
        let c = config(json!({"a": "@b", "b": ["@a"], "c": "$@c + 1"}));
        assert!(c.get("a").is_err());
        assert!(c.get("c").is_err());
        let mut flood = Map::new();
        flood.insert("x0".into(), json!("x"));
        for i in 1..40 {
            flood.insert(format!("x{i}"), json!([format!("@x{}", i - 1), format!("@x{}", i - 1)]));
        }
        assert!(Config(flood).get("x39").is_err());
        // one long text, many times, by references and by sums
        let mut long = Map::new();
        long.insert("text".into(), "x".repeat(1 << 20).into());
        long.insert("list".into(), vec![json!("@text"); 1000].into());
        long.insert("x0".into(), json!("$@text + @text"));
        for i in 1..40 {
            long.insert(format!("x{i}"), format!("$@x{} + @x{0}", i - 1).into());
        }
        let long = Config(long);
        assert!(long.get("text").is_ok());
        assert!(long.get("list").is_err());
        assert!(long.get("x39").is_err());
    }

    #[cfg(feature = "yaml")]
    #[test]
    fn yaml_is_read() -> Result<(), Box<dyn std::error::Error>> {
        let text = "dims: 3\nnetwork_def:\n  _target_: VNet\n  spatial_dims: '@dims'\n  act: [elu, {alpha: 1.5}]\n  x: $@dims + 1\nok: true\n1: ~\n";
        let expected = json!({"dims": 3, "network_def": {"_target_": "VNet", "spatial_dims": "@dims", "act": ["elu", {"alpha": 1.5}],
            "x": "$@dims + 1"}, "ok": true, "1": null});
        assert_eq!(yaml(text)?, expected);
        for (text, expected) in [
            ("", json!(null)),
            ("- 1\n- [a, {b: 'c'}]\n---\n2", json!([1, ["a", {"b": "c"}]])),
            ("a: true\nb: 'true'\nc: 1.5\nd: |\n  x\n  y\n", json!({"a": true, "b": "true", "c": 1.5, "d": "x\ny\n"})),
        ] {
            assert_eq!(yaml(text)?, expected, "{text}");
        }
        let keys = "? ".repeat(60) + "1";
        for text in ["- ".repeat(17_500), "? ".repeat(100_000), "[".repeat(100_000), "{a: ".repeat(90_000), keys] {
            assert!(yaml(&text).is_err(), "{text:.20}");
        }
        assert!(yaml("a: [1").is_err());
        assert!(yaml("a: &x 1\nb: !!python/object:os.system 2").is_err());
        Ok(())
    }
}
