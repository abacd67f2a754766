//! The labels of nnU-Net v2's `dataset.json`: classes that exclude each other, or regions.
//!
//! Source: `LabelManager` of nnunetv2 2.8.1.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{LoadError, LoadErrorKind};

/// The channels of a network's output and their labels.
#[derive(Debug)]
pub(super) struct Heads {
    /// Channels of the network's output.
    pub(super) count: usize,
    /// Names by label.
    pub(super) names: BTreeMap<String, String>,
    /// The label that each channel writes, of regions.
    pub(super) regions: Option<Vec<u16>>,
    /// The numbers of all labels but the background, in order.
    pub(super) foreground: Vec<u16>,
}

fn bad(message: impl Into<String>) -> LoadError {
    LoadError::new(LoadErrorKind::Card, message)
}

/// The numbers of a label: one, or those of a region.
fn numbers(name: &str, label: &Value) -> Result<Vec<u32>, LoadError> {
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let found = match label {
        Value::Array(list) => list.iter().map(number).collect(),
        other => number(other).map(|n| vec![n]),
    };
    let found: Option<Vec<u32>> = found.filter(|list: &Vec<u32>| !list.is_empty());
    found.ok_or_else(|| {
        let text = format!("dataset.json is not what nnU-Net v2 writes: the label {name:?} is {label}, neither a number nor some");
        LoadError::new(LoadErrorKind::Format, text)
    })
}

impl Heads {
    /// Those of the labels in the order of the file; `order` is `regions_class_order`.
    ///
    /// # Errors
    /// When the labels are not those of a network.
    pub(super) fn of(labels: &Map<String, Value>, order: Option<Vec<u16>>) -> Result<Self, LoadError> {
        let mut all = Vec::new();
        let mut ignored = None;
        for (name, label) in labels {
            let numbers = numbers(name, label)?;
            // what annotators left out is no class
            if name == "ignore" {
                ignored = Some(numbers);
            } else {
                all.push((name, numbers));
            }
        }
        let highest = all.iter().flat_map(|(_, numbers)| numbers).copied().max().unwrap_or(0);
        if let Some(ignored) = ignored
            && ignored != [highest.saturating_add(1)]
        {
            return Err(bad(format!("the label \"ignore\" is {ignored:?}, not {}, the one after the highest", highest.saturating_add(1))));
        }
        let mut foreground: Vec<u16> =
            all.iter().flat_map(|(_, numbers)| numbers).filter_map(|&n| u16::try_from(n).ok()).filter(|&n| n > 0).collect();
        foreground.sort_unstable();
        foreground.dedup();
        if all.iter().any(|(_, numbers)| numbers.len() > 1) {
            return Ok(Self { foreground, ..Self::regions(&all, order)? });
        }
        let names: BTreeMap<u32, &String> = all.iter().map(|(name, numbers)| (numbers[0], *name)).collect();
        let count = names.len();
        if !names.keys().copied().eq(0..u32::try_from(count).unwrap_or(u32::MAX)) || count < 2 {
            return Err(bad(format!("the labels {:?} are not 0, 1 and so on", names.keys().collect::<Vec<_>>())));
        }
        let names = names.into_iter().map(|(number, name)| (number.to_string(), name.clone())).collect();
        Ok(Self { count, names, regions: None, foreground })
    }

    fn regions(all: &[(&String, Vec<u32>)], order: Option<Vec<u16>>) -> Result<Self, LoadError> {
        let regions: Vec<&String> = all.iter().filter(|(_, numbers)| numbers.iter().any(|&n| n != 0)).map(|(name, _)| *name).collect();
        let Some(order) = order else {
            return Err(bad("the labels are regions, and dataset.json has no regions_class_order"));
        };
        if order.len() != regions.len() {
            let text = format!("regions_class_order {order:?} is not one label for each of the {} regions", regions.len());
            return Err(bad(text));
        }
        let mut names = BTreeMap::from([("0".to_owned(), "background".to_owned())]);
        for (label, name) in order.iter().zip(&regions) {
            names.insert(label.to_string(), (*name).clone());
        }
        Ok(Self { count: regions.len(), names, regions: Some(order), foreground: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(json: &str, order: Option<Vec<u16>>) -> Result<Heads, String> {
        let labels: Map<String, Value> = serde_json::from_str(json).map_err(|e| e.to_string())?;
        Heads::of(&labels, order).map_err(|e| e.to_string())
    }

    #[test]
    fn regions_keep_the_order_of_the_file() -> Result<(), String> {
        let whole = r#"{"background": 0, "whole": [1, 2, 3], "enhancing": 3, "core": [2, 3], "ignore": 4}"#;
        let found = heads(whole, Some(vec![1, 3, 2]))?;
        assert_eq!((found.count, found.regions.as_deref()), (3, Some(&[1, 3, 2][..])));
        assert_eq!(found.foreground, [1, 2, 3]);
        let names: Vec<&str> = ["0", "1", "2", "3"].iter().filter_map(|n| found.names.get(*n)).map(String::as_str).collect();
        assert_eq!(names, ["background", "whole", "core", "enhancing"]);
        Ok(())
    }

    #[test]
    fn classes_follow_their_numbers() -> Result<(), String> {
        let found = heads(r#"{"lesion": 2, "background": 0, "organ": [1], "ignore": 3}"#, None)?;
        assert_eq!((found.count, found.regions), (3, None));
        assert_eq!(found.names.get("2").map(String::as_str), Some("lesion"));
        Ok(())
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (json, order, words) in [
            (r#"{"background": 0, "a": 2}"#, None, "are not 0, 1 and so on"),
            (r#"{"background": 0}"#, None, "are not 0, 1 and so on"),
            (r#"{"background": 0, "a": [1, 2]}"#, None, "has no regions_class_order"),
            (r#"{"background": 0, "a": [1, 2]}"#, Some(vec![1, 2]), "is not one label for each of the 1 regions"),
            (r#"{"background": 0, "a": 1, "ignore": 3}"#, None, "not 2, the one after the highest"),
            (r#"{"background": 0, "a": "1"}"#, None, "neither a number nor some"),
            (r#"{"background": 0, "a": []}"#, None, "neither a number nor some"),
        ] {
            assert!(heads(json, order).is_err_and(|e| e.contains(words)), "{words}");
        }
    }
}
