//! The resampling functions that plans of nnU-Net v2 name, with their arguments.
//!
//! Source: `nnunetv2/preprocessing/resampling` of nnunetv2 2.8.1. `resample_torch_simple` takes no
//! spacings, so that nnunetv2 itself cannot call it from plans where the shape changes; it is taken
//! for what it does with a scan.

use serde_json::{Map, Value};

use super::pipeline::{Interpolation, Resampling};
use crate::error::{LoadError, LoadErrorKind};

fn bad(message: impl Into<String>) -> LoadError {
    LoadError::new(LoadErrorKind::Card, message)
}

/// The resampling that a function does with these keyword arguments.
///
/// # Errors
/// When the function or an argument is not supported; the message names it.
pub(super) fn of(function: &str, kwargs: &Map<String, Value>) -> Result<Resampling, LoadError> {
    let wrong = |key: &str, value: &Value| bad(format!("the argument {key} = {value} of {function} is not supported"));
    // of no effect on a scan and on scores
    let idle = ["is_seg", "num_threads", "device", "memefficient_seg_resampling"];
    let known: &[&str] = match function {
        "resample_data_or_seg_to_shape" => &["order", "order_z", "force_separate_z", "separate_z_anisotropy_threshold"],
        "resample_torch_fornnunet" => &["force_separate_z", "separate_z_anisotropy_threshold", "mode", "aniso_axis_mode"],
        "resample_torch_simple" => &["mode"],
        "no_resampling_hack" => &[],
        _ => {
            let text = format!(
                "resampling by {function:?} is not supported; resample_data_or_seg_to_shape, resample_torch_fornnunet, \
                 resample_torch_simple and no_resampling_hack are"
            );
            return Err(bad(text));
        }
    };
    if let Some((key, value)) = kwargs.iter().find(|(key, _)| !known.contains(&key.as_str()) && !idle.contains(&key.as_str())) {
        return Err(wrong(key, value));
    }
    if let Some(value) = kwargs.get("is_seg").filter(|value| **value != Value::Bool(false)) {
        return Err(wrong("is_seg", value));
    }
    let number = |key: &str, default: u32| match kwargs.get(key) {
        None => Ok(default),
        Some(value) => value.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| wrong(key, value)),
    };
    let mode = |key: &str, default: u32| match kwargs.get(key) {
        None => Ok(default),
        Some(value) => match value.as_str() {
            Some("linear") => Ok(1),
            Some("nearest-exact") => Ok(0),
            _ => Err(wrong(key, value)),
        },
    };
    let separate = |default: Option<bool>| match kwargs.get("force_separate_z") {
        None => Ok(default),
        Some(Value::Null) => Ok(None),
        Some(Value::Bool(told)) => Ok(Some(*told)),
        Some(other) => Err(wrong("force_separate_z", other)),
    };
    let usual = Resampling::default();
    let threshold = match kwargs.get("separate_z_anisotropy_threshold") {
        None => usual.threshold,
        Some(value) => value.as_f64().ok_or_else(|| wrong("separate_z_anisotropy_threshold", value))?,
    };
    Ok(match function {
        "resample_data_or_seg_to_shape" => Resampling {
            order: number("order", 3)?,
            order_along: number("order_z", 0)?,
            separate: separate(Some(false))?,
            threshold,
            ..usual
        },
        "resample_torch_fornnunet" => Resampling {
            by: Interpolation::Torch,
            order: mode("mode", 1)?,
            order_along: mode("aniso_axis_mode", 0)?,
            separate: separate(None)?,
            threshold,
        },
        "resample_torch_simple" => Resampling { by: Interpolation::Torch, order: mode("mode", 1)?, separate: Some(false), ..usual },
        _ => Resampling { by: Interpolation::None, ..usual },
    })
}

/// The resampling that a function does with label maps, and whether it takes masks above a half.
///
/// # Errors
/// As [`of`].
pub(super) fn of_labels(function: &str, kwargs: &Map<String, Value>) -> Result<(Resampling, bool), LoadError> {
    let wrong = |key: &str, value: &Value| bad(format!("the argument {key} = {value} of {function}, of label maps, is not supported"));
    let mut others = kwargs.clone();
    match others.remove("is_seg") {
        Some(Value::Bool(true)) => {}
        None if function == "no_resampling_hack" => {}
        other => return Err(wrong("is_seg", &other.unwrap_or_default())),
    }
    let halves = match kwargs.get("memefficient_seg_resampling") {
        None => false,
        Some(Value::Bool(told)) => *told && function.starts_with("resample_torch"),
        Some(other) => return Err(wrong("memefficient_seg_resampling", other)),
    };
    Ok((of(function, &others)?, halves))
}

/// Refuses labels of a previous stage that are not resampled with the scan.
///
/// # Errors
/// When only the scan is resampled.
pub(super) fn check_labels(scan: Resampling, labels: Resampling) -> Result<(), LoadError> {
    if (scan.by == Interpolation::None) != (labels.by == Interpolation::None) {
        return Err(bad("no_resampling_hack is for both the scan and the labels of the previous stage, or for neither"));
    }
    Ok(())
}

/// Refuses scores that are not brought back to a scan that was resampled.
///
/// # Errors
/// When only the scan is resampled.
pub(super) fn check(scan: Resampling, scores: Resampling) -> Result<(), LoadError> {
    if scores.by == Interpolation::None && scan.by != Interpolation::None {
        let text = "scores that no_resampling_hack leaves as they are do not come back to a scan that is resampled";
        return Err(bad(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(function: &str, kwargs: &str) -> Result<Resampling, String> {
        let kwargs: Map<String, Value> = serde_json::from_str(kwargs).map_err(|e| e.to_string())?;
        of(function, &kwargs).map_err(|e| e.to_string())
    }

    #[test]
    fn functions_have_their_defaults() -> Result<(), String> {
        let usual = Resampling::default();
        let splines = Resampling { order: 3, separate: Some(false), ..usual };
        assert_eq!(read("resample_data_or_seg_to_shape", "{}")?, splines);
        let told = r#"{"is_seg": false, "order": 1, "order_z": 3, "force_separate_z": null, "separate_z_anisotropy_threshold": 5}"#;
        let want = Resampling { order: 1, order_along: 3, threshold: 5.0, ..usual };
        assert_eq!(read("resample_data_or_seg_to_shape", told)?, want);
        let torch = Resampling { by: Interpolation::Torch, ..usual };
        assert_eq!(read("resample_torch_fornnunet", "{}")?, torch);
        let told = r#"{"force_separate_z": true, "mode": "nearest-exact", "aniso_axis_mode": "linear", "device": "cpu"}"#;
        let want = Resampling { order: 0, order_along: 1, separate: Some(true), ..torch };
        assert_eq!(read("resample_torch_fornnunet", told)?, want);
        assert_eq!(read("resample_torch_simple", "{}")?, Resampling { separate: Some(false), ..torch });
        assert_eq!(read("no_resampling_hack", "{}")?, Resampling { by: Interpolation::None, ..usual });
        Ok(())
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (function, kwargs, words) in [
            ("own_resampling", "{}", "resampling by \"own_resampling\" is not supported"),
            ("resample_data_or_seg_to_shape", r#"{"order": "3"}"#, "order = \"3\""),
            ("resample_data_or_seg_to_shape", r#"{"is_seg": true}"#, "is_seg = true"),
            ("resample_data_or_seg_to_shape", r#"{"mode": "linear"}"#, "mode = \"linear\""),
            ("resample_torch_fornnunet", r#"{"mode": "bicubic"}"#, "mode = \"bicubic\""),
            ("resample_torch_fornnunet", r#"{"aniso_axis_mode": "nearest"}"#, "aniso_axis_mode"),
            ("resample_torch_fornnunet", r#"{"force_separate_z": 1}"#, "force_separate_z = 1"),
            ("resample_torch_fornnunet", r#"{"separate_z_anisotropy_threshold": null}"#, "separate_z_anisotropy_threshold"),
            ("no_resampling_hack", r#"{"order": 1}"#, "order = 1"),
        ] {
            assert!(read(function, kwargs).is_err_and(|e| e.contains(words)), "{words}");
        }
        let labels = |function: &str, told: Value| {
            let kwargs = told.as_object().cloned().unwrap_or_default();
            of_labels(function, &kwargs).map_err(|e| e.to_string())
        };
        let order = Resampling { order: 1, separate: Some(false), ..Resampling::default() };
        assert_eq!(labels("resample_data_or_seg_to_shape", serde_json::json!({"is_seg": true, "order": 1})), Ok((order, false)));
        let torch = serde_json::json!({"is_seg": true, "memefficient_seg_resampling": true});
        assert!(labels("resample_torch_fornnunet", torch).is_ok_and(|(_, halves)| halves));
        assert!(labels("no_resampling_hack", Value::Null).is_ok());
        for told in [serde_json::json!({"order": 1}), serde_json::json!({"is_seg": false})] {
            assert!(labels("resample_data_or_seg_to_shape", told).is_err_and(|e| e.contains("of label maps, is not supported")));
        }
        let memory = serde_json::json!({"is_seg": true, "memefficient_seg_resampling": 1});
        assert!(labels("resample_torch_fornnunet", memory).is_err_and(|e| e.contains("memefficient_seg_resampling = 1")));
        let (usual, none) = (Resampling::default(), Resampling { by: Interpolation::None, ..Resampling::default() });
        assert!(check_labels(none, none).is_ok() && check_labels(usual, usual).is_ok());
        assert!(check_labels(usual, none).is_err_and(|e| e.to_string().contains("or for neither")));
        assert!(check(none, usual).is_ok() && check(none, none).is_ok());
        assert!(check(usual, none).is_err_and(|e| e.to_string().contains("do not come back")));
    }
}
