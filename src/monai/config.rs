//! A bundle's config: JSON or YAML whose values refer to each other.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::bad;
use super::expression::{evaluate, is_id};
use crate::error::{LoadError, LoadErrorKind};

/// Longest chain of references within references.
const DEEPEST: u32 = 64;

/// Most values that one is resolved to.
const MOST: u32 = 1 << 20;

/// A config whose references are resolved as values are asked for.
#[derive(Clone, Debug)]
pub(super) struct Config(Map<String, Value>);

impl Config {
    /// Reads a file, by its ending YAML or JSON.
    ///
    /// # Errors
    /// When it is missing, damaged or no object.
    pub(super) fn read(file: &Path) -> Result<Self, LoadError> {
        let text = fs::read_to_string(file).map_err(|e| LoadError::io(format!("cannot read {}", file.display()), e))?;
        let format = |what: &str| LoadError::new(LoadErrorKind::Format, format!("{} {what}", file.display()));
        let value = if file.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            yaml(&text).map_err(|e| format(&format!("is no YAML: {e}")))?
        } else {
            serde_json::from_str(&text).map_err(|e| format("is no JSON").caused_by(e))?
        };
        match value {
            Value::Object(object) => Ok(Self(object)),
            _ => Err(format("is no object")),
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
        self.resolved(value, 0, &mut left).ok_or_else(|| bad("the config's values refer to each other without end"))
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
    fn resolved(&self, value: &Value, depth: u32, left: &mut u32) -> Option<Value> {
        *left = left.checked_sub(1)?;
        if depth > DEEPEST {
            return None;
        }
        Some(match value {
            Value::Array(list) => list.iter().map(|v| self.resolved(v, depth + 1, left)).collect::<Option<_>>()?,
            Value::Object(object) => {
                object.iter().map(|(key, v)| Some((key.clone(), self.resolved(v, depth + 1, left)?))).collect::<Option<Map<_, _>>>()?.into()
            }
            Value::String(text) => {
                let whole = text.strip_prefix(['@', '%']).filter(|id| !id.is_empty() && id.chars().all(is_id));
                if let Some(id) = whole {
                    return match self.find(id) {
                        Some(found) => self.resolved(found, depth + 1, left),
                        None => Some(value.clone()),
                    };
                }
                let Some(python) = text.strip_prefix('$') else { return Some(value.clone()) };
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
                found.unwrap_or_else(|| value.clone())
            }
            other => other.clone(),
        })
    }
}

#[cfg(feature = "yaml")]
fn yaml(text: &str) -> Result<Value, String> {
    use saphyr::{LoadableYamlNode as _, Scalar, Yaml};

    fn value(yaml: &Yaml<'_>) -> Result<Value, String> {
        Ok(match yaml {
            Yaml::Value(Scalar::Null) => Value::Null,
            Yaml::Value(Scalar::Boolean(b)) => (*b).into(),
            Yaml::Value(Scalar::Integer(n)) => (*n).into(),
            Yaml::Value(Scalar::FloatingPoint(x)) => x.into_inner().into(),
            Yaml::Value(Scalar::String(s)) => s.as_ref().into(),
            Yaml::Sequence(list) => list.iter().map(value).collect::<Result<_, _>>()?,
            Yaml::Mapping(map) => {
                let entry = |(key, v): (&Yaml<'_>, &Yaml<'_>)| match value(key)? {
                    Value::String(key) => Ok((key, value(v)?)),
                    other => Ok((other.to_string(), value(v)?)),
                };
                map.iter().map(entry).collect::<Result<Map<_, _>, String>>()?.into()
            }
            _ => return Err("an alias or a tag, which configs do not have".into()),
        })
    }

    let documents = Yaml::load_from_str(text).map_err(|e| e.to_string())?;
    documents.first().map_or(Ok(Value::Null), value)
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
    }

    #[cfg(feature = "yaml")]
    #[test]
    fn yaml_is_read() -> Result<(), Box<dyn std::error::Error>> {
        let text = "dims: 3\nnetwork_def:\n  _target_: VNet\n  spatial_dims: '@dims'\n  act: [elu, {alpha: 1.5}]\n  x: $@dims + 1\nok: true\n1: ~\n";
        let expected = json!({"dims": 3, "network_def": {"_target_": "VNet", "spatial_dims": "@dims", "act": ["elu", {"alpha": 1.5}],
            "x": "$@dims + 1"}, "ok": true, "1": null});
        assert_eq!(yaml(text)?, expected);
        assert!(yaml("a: [1").is_err());
        assert!(yaml("a: &x 1\nb: !!python/object:os.system 2").is_err());
        Ok(())
    }
}
