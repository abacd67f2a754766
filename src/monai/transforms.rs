//! `preprocessing`, `postprocessing` and `inferer` of a bundle's config as what the card says.

use serde_json::{Map, Value, json};

use super::bad;
use super::pipeline::{Filter, Invert, Largest, Pipeline, Transform};
use crate::error::LoadError;

/// Transforms that change no voxel, and no value as long as they are floats.
const NEUTRAL: [&str; 11] = [
    "AddChannel",
    "AsChannelFirst",
    "CastToType",
    "DeleteItems",
    "EnsureChannelFirst",
    "EnsureType",
    "Identity",
    "LoadImage",
    "SelectItems",
    "ToDevice",
    "ToTensor",
];

/// Those that follow the network.
const NEUTRAL_AFTER: [&str; 4] = ["CopyItems", "FromMetaTensor", "SqueezeDim", "ToNumpy"];

/// Arguments of `SaveImage` that say where and in what form a file is written, which the command
/// line does here.
const SAVE_NEUTRAL: [&str; 19] = [
    "allow_missing_keys",
    "channel_dim",
    "data_root_dir",
    "dtype",
    "folder_layout",
    "keys",
    "meta_key_postfix",
    "meta_keys",
    "output_dir",
    "output_dtype",
    "output_ext",
    "output_format",
    "output_name_formatter",
    "output_postfix",
    "print_log",
    "savepath_in_metadict",
    "separate_folder",
    "squeeze_end_dims",
    "writer",
];

/// An object of the config that names a class, with its arguments.
pub(super) struct Call<'a> {
    /// The class without its module, and without the `d` of those that work on dictionaries.
    pub(super) class: &'a str,
    arguments: &'a Map<String, Value>,
}

impl<'a> Call<'a> {
    /// `None` where nothing is called, or what is called is disabled.
    pub(super) fn of(value: &'a Value) -> Option<Self> {
        let arguments = value.as_object()?;
        let class = arguments.get("_target_")?.as_str()?.rsplit('.').next()?;
        let disabled = arguments.get("_disabled_").is_some_and(|v| *v == json!(true) || *v == json!("true"));
        (!disabled).then_some(Self { class, arguments })
    }

    /// An argument that is told, and not told to be None.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.arguments.get(key).filter(|v| !v.is_null())
    }

    /// Refuses arguments that are told to be None, but for these.
    pub(super) fn no_nulls(&self, but: &[&str]) -> Result<(), LoadError> {
        let null = |(key, value): &(&String, &Value)| value.is_null() && !key.starts_with('_') && !but.contains(&key.as_str());
        self.arguments.iter().find(null).map_or(Ok(()), |(key, _)| Err(self.wrong(key)))
    }

    /// Whether an argument is told to be None.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.arguments.get(key).is_some_and(Value::is_null)
    }

    /// The first of what may be a list for several keys.
    fn first(&self, key: &str) -> Option<&'a Value> {
        self.get(key).and_then(|v| if let Value::Array(list) = v { list.first() } else { Some(v) })
    }

    /// The argument for `pred` of what may be a list with an entry for each of the keys.
    fn along_keys(&self, key: &str) -> Option<&'a Value> {
        let Some(Value::Array(list)) = self.get(key) else { return self.get(key) };
        let at = self.get("keys").and_then(Value::as_array).and_then(|keys| keys.iter().position(|k| *k == json!("pred")));
        list.get(at.unwrap_or(0)).or(list.first())
    }

    fn wrong(&self, key: &str) -> LoadError {
        let value = self.arguments.get(key).unwrap_or(&Value::Null);
        bad(format!("the argument {key} = {value} of the bundle's {} is not supported", self.class))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.get(key).map(|v| v.as_f64().ok_or_else(|| self.wrong(key))).transpose()
    }

    fn needed(&self, key: &str) -> Result<f64, LoadError> {
        self.number(key)?.ok_or_else(|| bad(format!("the bundle's {} lacks the argument {key}", self.class)))
    }

    fn flag(&self, key: &str) -> Result<bool, LoadError> {
        self.get(key).map_or(Ok(false), |v| v.as_bool().ok_or_else(|| self.wrong(key)))
    }

    /// One number for all axes, or three.
    fn along<T: Copy>(&self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<[T; 3]>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let all = match value {
            Value::Array(list) => list.iter().map(&read).collect::<Option<Vec<T>>>().and_then(|list| <[T; 3]>::try_from(list).ok()),
            one => read(one).map(|n| [n; 3]),
        };
        all.map(Some).ok_or_else(|| self.wrong(key))
    }

    /// Refuses what is disabled or not by Python that is not run.
    fn decided(&self) -> Result<(), LoadError> {
        match self.arguments.get("_disabled_") {
            None | Some(Value::Bool(_)) => Ok(()),
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(()),
            Some(_) => Err(self.wrong("_disabled_")),
        }
    }

    /// Refuses every argument that is not one of those that are read, of those without an effect, or of those with just one value
    /// that is supported.
    pub(super) fn only(&self, read: &[&str], neutral: &[&str], fixed: &[(&str, Value)]) -> Result<(), LoadError> {
        for (key, value) in self.arguments {
            let one = || fixed.iter().find(|(name, _)| name == key).is_some_and(|(_, wanted)| wanted == value || value.is_null());
            if !key.starts_with('_') && !read.contains(&key.as_str()) && !neutral.contains(&key.as_str()) && !one() {
                return Err(self.wrong(key));
            }
        }
        Ok(())
    }

    /// Whether it works on a key of the dictionary, or may: where keys are told by Python, it is not known.
    fn on(&self, key: &str) -> bool {
        let may = |told: &Value| told.as_str().is_some_and(|told| told == key || told.starts_with(['$', '@']));
        match self.get("keys") {
            Some(Value::Array(list)) => list.iter().any(may),
            Some(one) => may(one),
            None => true,
        }
    }
}

/// The transforms of a `Compose`, or of a list; `None` if it is neither.
fn composed(value: &Value) -> Result<Option<Vec<Call<'_>>>, LoadError> {
    let list = match Call::of(value) {
        Some(call) if call.class == "Compose" => {
            call.only(&["transforms"], &["map_items", "unpack_items", "log_stats", "overrides"], &[("lazy", json!(false))])?;
            call.get("transforms")
        }
        Some(_) => return Ok(None),
        None => Some(value),
    };
    let Some(list) = list.and_then(Value::as_array) else { return Ok(None) };
    let mut calls = Vec::new();
    for item in list {
        match Call::of(item) {
            Some(call) if call.class == "Compose" => match composed(item)? {
                Some(inner) => calls.extend(inner),
                None => return Ok(None),
            },
            Some(call) => calls.push(call),
            // what is disabled is left out; what is no call at all cannot be read
            None if item.get("_target_").is_some() => {}
            None => return Ok(None),
        }
    }
    Ok(Some(calls))
}

fn calls<'a>(key: &str, value: Option<&'a Value>) -> Result<Vec<Call<'a>>, LoadError> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let opaque = || bad(format!("the bundle's {key} is no list of transforms that can be read: it needs Python"));
    composed(value)?.ok_or_else(opaque)
}

/// The pipeline of both lists of transforms.
pub(super) fn pipeline(before: Option<&Value>, after: Option<&Value>) -> Result<Pipeline, LoadError> {
    let (first, last) = (calls("preprocessing", before)?, calls("postprocessing", after)?);
    let image = first.iter().find(|call| plain(call.class) == "LoadImage").and_then(|call| call.first("keys")?.as_str()).unwrap_or("image");
    let mut transforms = Vec::new();
    for call in first.iter().filter(|call| call.on(image)) {
        transforms.extend(transform(call, image)?);
    }
    inversion(&last, image, before, transforms)
}

/// A class's name without the ending of those that work on dictionaries.
fn plain(class: &str) -> &str {
    class.strip_suffix("Dict").or_else(|| class.strip_suffix(['d', 'D'])).unwrap_or(class)
}

fn transform(call: &Call<'_>, image: &str) -> Result<Option<Transform>, LoadError> {
    const NO_EFFECT: [&str; 5] = ["keys", "allow_missing_keys", "dtype", "meta_keys", "meta_key_postfix"];
    let only = |read: &[&str], fixed: &[(&str, Value)]| {
        // what is lazy is resampled at once with what follows
        let fixed = [fixed, &[("lazy", json!(false))]].concat();
        call.only(read, &NO_EFFECT, &fixed)
    };
    let name = plain(call.class);
    call.decided()?;
    Ok(Some(match name {
        "Orientation" => {
            only(&["axcodes"], &[("as_closest_canonical", json!(false)), ("labels", json!([["L", "R"], ["P", "A"], ["I", "S"]]))])?;
            let axes = call.get("axcodes").and_then(|v| v.as_str()?.parse().ok());
            Transform::Orientation { axes: axes.ok_or_else(|| call.wrong("axcodes"))? }
        }
        "Spacing" => {
            let fixed = [("diagonal", json!(false)), ("scale_extent", json!(false)), ("recompute_affine", json!(false))];
            only(&["pixdim", "mode", "padding_mode", "align_corners"], &fixed)?;
            if call.first("padding_mode").is_some_and(|v| *v != json!("border")) {
                return Err(call.wrong("padding_mode"));
            }
            let nearest = match call.first("mode").map(|v| v.as_str()) {
                None | Some(Some("bilinear")) => false,
                Some(Some("nearest")) => true,
                Some(_) => return Err(call.wrong("mode")),
            };
            // by default it is resampled in f64
            let double = |v: &Value| v.as_str().is_some_and(|text| text.ends_with("float64") || text.ends_with("double"));
            if call.first("dtype").is_some_and(|v| !double(v)) {
                return Err(call.wrong("dtype"));
            }
            let align_corners = match call.first("align_corners") {
                None | Some(Value::Null) => false,
                Some(v) => v.as_bool().ok_or_else(|| call.wrong("align_corners"))?,
            };
            let mm = call.along("pixdim", Value::as_f64)?.ok_or_else(|| call.wrong("pixdim"))?;
            Transform::Spacing { mm: mm.map(|v| v.max(0.0)), nearest, align_corners }
        }
        "CropForeground" => {
            only(&["source_key", "margin", "allow_smaller", "k_divisible", "start_coord_key", "end_coord_key", "mode"], &[])?;
            if call.get("source_key").is_some_and(|v| *v != json!(image)) {
                return Err(call.wrong("source_key"));
            }
            let whole = |v: &Value| u32::try_from(v.as_u64()?).ok();
            let margin = call.along("margin", whole)?.unwrap_or_default();
            let k_divisible = call.along("k_divisible", whole)?.filter(|k| *k != [1; 3]).unwrap_or_default();
            // what is put around matters only where something is
            let padded = margin != [0; 3] || k_divisible != [0; 3];
            if padded && call.first("mode").is_some_and(|v| *v != json!("constant")) {
                return Err(call.wrong("mode"));
            }
            Transform::CropForeground { margin, allow_smaller: call.flag("allow_smaller")?, k_divisible }
        }
        "SpatialPad" | "DivisiblePad" => {
            let key = if name == "SpatialPad" { "spatial_size" } else { "k" };
            only(&[key, "method", "mode"], &[("value", json!(0)), ("constant_values", json!(0))])?;
            let size = call.along(key, |v| u32::try_from(v.as_i64()?.max(0)).ok())?.ok_or_else(|| call.wrong(key))?;
            let end = match call.get("method").map(|v| v.as_str()) {
                None | Some(Some("symmetric")) => false,
                Some(Some("end")) => true,
                Some(_) => return Err(call.wrong("method")),
            };
            let replicate = match call.first("mode").map(|v| v.as_str()) {
                None | Some(Some("constant")) => false,
                Some(Some("edge" | "replicate")) => true,
                Some(_) => return Err(call.wrong("mode")),
            };
            let (least, multiple) = if name == "SpatialPad" { (size, [0; 3]) } else { ([0; 3], size) };
            Transform::Pad { least, multiple, end, replicate }
        }
        "ClipIntensityPercentiles" => {
            only(&["lower", "upper", "channel_wise"], &[("sharpness_factor", Value::Null), ("return_clipping_values", json!(false))])?;
            let (low, high) = (call.number("lower")?, call.number("upper")?);
            Transform::ClipPercentiles { low, high, channel_wise: call.flag("channel_wise")? }
        }
        "ScaleIntensityRange" => {
            only(&["a_min", "a_max", "b_min", "b_max", "clip"], &[])?;
            Transform::ScaleRange { from: [call.needed("a_min")?, call.needed("a_max")?], to: target(call)?, clip: call.flag("clip")? }
        }
        "ScaleIntensityRangePercentiles" => {
            only(&["lower", "upper", "b_min", "b_max", "clip", "relative", "channel_wise"], &[])?;
            Transform::ScalePercentiles {
                from: [call.needed("lower")?, call.needed("upper")?],
                to: target(call)?,
                clip: call.flag("clip")?,
                relative: call.flag("relative")?,
                channel_wise: call.flag("channel_wise")?,
            }
        }
        "ScaleIntensity" => {
            only(&["minv", "maxv", "channel_wise"], &[("factor", Value::Null)])?;
            Transform::ScaleMinMax {
                to: [call.number("minv")?.unwrap_or(0.0), call.number("maxv")?.unwrap_or(1.0)],
                channel_wise: call.flag("channel_wise")?,
            }
        }
        "NormalizeIntensity" => {
            only(&["subtrahend", "divisor", "nonzero", "channel_wise"], &[])?;
            let list = |key: &str| match call.get(key) {
                None => Ok(Vec::new()),
                Some(Value::Array(list)) => list.iter().map(|v| v.as_f64().ok_or_else(|| call.wrong(key))).collect(),
                Some(one) => one.as_f64().map(|v| vec![v]).ok_or_else(|| call.wrong(key)),
            };
            Transform::Normalize {
                nonzero: call.flag("nonzero")?,
                channel_wise: call.flag("channel_wise")?,
                subtrahend: list("subtrahend")?,
                divisor: list("divisor")?,
            }
        }
        _ if NEUTRAL.contains(&name) => {
            let float = |v: &Value| v.as_str().is_some_and(|text| text.ends_with("float32") || text.ends_with("float"));
            return if call.first("dtype").is_none_or(float) { Ok(None) } else { Err(call.wrong("dtype")) };
        }
        _ => return Err(unsupported("preprocessing", call)),
    }))
}

fn target(call: &Call<'_>) -> Result<Option<[f64; 2]>, LoadError> {
    match (call.number("b_min")?, call.number("b_max")?) {
        (Some(low), Some(high)) => Ok(Some([low, high])),
        (None, None) => Ok(None),
        (Some(_), None) => Err(call.wrong("b_max")),
        (None, Some(_)) => Err(call.wrong("b_min")),
    }
}

/// `KeepLargestConnectedComponent` of labels.
fn largest_part(call: &Call<'_>, first: bool) -> Result<Largest, LoadError> {
    let fixed = [("is_onehot", json!(false)), ("num_components", json!(1))];
    call.only(&["applied_labels", "independent", "connectivity"], &["keys", "allow_missing_keys"], &fixed)?;
    Ok(Largest {
        labels: applied(call)?,
        union: call.get("independent").is_some_and(|v| *v == json!(false)),
        connectivity: connectivity(call, 3)?,
        first,
    })
}

/// `RemoveSmallObjects` or `FillHoles` of labels.
fn label_filter(call: &Call<'_>) -> Result<Filter, LoadError> {
    const NEUTRAL: [&str; 2] = ["keys", "allow_missing_keys"];
    if plain(call.class) == "FillHoles" {
        call.only(&["applied_labels", "connectivity"], &NEUTRAL, &[])?;
        return Ok(Filter::FillHoles { labels: applied(call)?, connectivity: connectivity(call, 3)? });
    }
    let fixed = [("by_measure", json!(false)), ("pixdim", Value::Null)];
    call.only(&["min_size", "connectivity", "independent_channels"], &NEUTRAL, &fixed)?;
    let min_size = call.get("min_size").map_or(Some(64), Value::as_u64).ok_or_else(|| call.wrong("min_size"))?;
    let union = call.get("independent_channels").is_some_and(|v| *v == json!(false));
    Ok(Filter::RemoveSmall { min_size, connectivity: connectivity(call, if call.is_null("connectivity") { 3 } else { 1 })?, union })
}

/// The labels that a transform is applied to; none for all.
fn applied(call: &Call<'_>) -> Result<Vec<u32>, LoadError> {
    let labels = match call.get("applied_labels") {
        None => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|v| u32::try_from(v.as_u64()?).ok()).collect(),
        Some(one) => one.as_u64().and_then(|v| u32::try_from(v).ok()).map(|v| vec![v]),
    };
    labels.ok_or_else(|| call.wrong("applied_labels"))
}

fn connectivity(call: &Call<'_>, absent: u32) -> Result<u32, LoadError> {
    let told = call.get("connectivity").map_or(Some(absent), |v| u32::try_from(v.as_u64()?).ok());
    told.filter(|c| (1..=3).contains(c)).ok_or_else(|| call.wrong("connectivity"))
}

/// The padding that an inferer's sliding windows put around a smaller scan, if it is not zeros.
pub(super) fn window_padding(inferer: Option<&Value>) -> Result<Option<Transform>, LoadError> {
    let Some(call) = inferer.and_then(Call::of).filter(|call| call.class.starts_with("SlidingWindowInferer")) else { return Ok(None) };
    match call.get("padding_mode").map(|v| v.as_str().unwrap_or_default().rsplit('.').next().unwrap_or_default().to_lowercase()).as_deref()
    {
        None | Some("constant") => Ok(None),
        Some("replicate") => {
            let least = call.along("roi_size", |v| u32::try_from(v.as_i64()?.max(0)).ok())?.ok_or_else(|| call.wrong("roi_size"))?;
            Ok(Some(Transform::Pad { least, multiple: [0; 3], end: false, replicate: true }))
        }
        Some(_) => Err(call.wrong("padding_mode")),
    }
}

fn unsupported(key: &str, call: &Call<'_>) -> LoadError {
    bad(format!("the transform {} of the bundle's {key} is not supported", call.class))
}

/// What goes the way back, whether it is read at the nearest voxel there, and what is kept of labels.
fn inversion(after: &[Call<'_>], image: &str, before: Option<&Value>, transforms: Vec<Transform>) -> Result<Pipeline, LoadError> {
    let mut found = None;
    let mut resampled = false;
    let (mut softmax, mut argmax) = (false, false);
    let (mut sigmoid, mut threshold) = (false, None);
    let (mut largest, mut early, mut late) = (None, Vec::new(), Vec::new());
    for call in after.iter().filter(|call| call.on("pred")) {
        call.decided()?;
        match plain(call.class) {
            "Activations" => {
                call.only(&["softmax", "sigmoid"], &["keys", "allow_missing_keys", "dim"], &[("other", Value::Null)])?;
                softmax |= call.along_keys("softmax") == Some(&json!(true));
                if call.along_keys("sigmoid") == Some(&json!(true)) {
                    // of what is compared already, or is a probability, it makes no sense
                    if softmax || sigmoid || argmax || threshold.is_some() {
                        return Err(call.wrong("sigmoid"));
                    }
                    sigmoid = true;
                }
            }
            "AsDiscrete" => {
                let neutral = ["keys", "allow_missing_keys", "n_classes", "num_classes", "dim", "keepdim", "dtype"];
                call.only(&["argmax", "threshold", "threshold_values", "logit_thresh"], &neutral, &[("to_onehot", Value::Null)])?;
                argmax |= call.along_keys("argmax") == Some(&json!(true));
                // a flag and a number before MONAI 0.7
                let at = match (call.along_keys("threshold").filter(|v| !v.is_null()), call.along_keys("threshold_values")) {
                    (Some(at), _) => Some(at.as_f64().ok_or_else(|| call.wrong("threshold"))?),
                    (None, Some(Value::Bool(true))) => Some(call.number("logit_thresh")?.unwrap_or(0.5)),
                    (None, _) => None,
                };
                if at.is_some() && (argmax || softmax || threshold.is_some()) {
                    return Err(call.wrong("threshold"));
                }
                threshold = threshold.or(at);
                if argmax && sigmoid {
                    return Err(call.wrong("argmax"));
                }
            }
            "Invert" => {
                let neutral = ["keys", "allow_missing_keys", "meta_keys", "orig_meta_keys", "meta_key_postfix", "to_tensor", "device"];
                call.only(&["transform", "orig_keys", "nearest_interp"], &neutral, &[("post_func", Value::Null)])?;
                // another list of transforms than the preprocessing would bring results elsewhere
                if call.get("transform").is_some_and(|v| v.is_object() && Some(v) != before) {
                    return Err(call.wrong("transform"));
                }
                let told = |v: &Value| v.as_str().is_some_and(|key| key == image || key.starts_with(['$', '@']));
                if !call.along_keys("orig_keys").is_some_and(told) {
                    // MONAI then finds nothing to invert
                    continue;
                }
                let nearest = call.along_keys("nearest_interp").is_none_or(|v| *v != json!(false));
                if threshold.is_some() && !nearest {
                    return Err(call.wrong("nearest_interp"));
                }
                let what = match (argmax || threshold.is_some(), softmax || sigmoid) {
                    (true, _) => Invert::Labels,
                    (false, true) => Invert::Probabilities,
                    (false, false) => Invert::Logits,
                };
                found = Some((what, nearest && what != Invert::Labels));
            }
            "RemoveSmallObjects" | "FillHoles" if argmax => {
                // labels that go the way back later are those of the network's grid
                let filters = if found.is_none() { &mut early } else { &mut late };
                filters.push(label_filter(call)?);
            }
            "KeepLargestConnectedComponent" if argmax => {
                let part = largest_part(call, found.is_none())?;
                let filters = if found.is_none() { &mut early } else { &mut late };
                if largest.is_none() && filters.is_empty() {
                    largest = Some(part);
                } else {
                    filters.push(Filter::KeepLargest(part));
                }
            }
            "SaveImage" => {
                call.only(&["resample", "mode", "padding_mode"], &SAVE_NEUTRAL, &[("scale", Value::Null)])?;
                if call.flag("resample")? && found.is_none() {
                    let one_of = |key: &str, value: &str| call.first(key).is_none_or(|v| *v == json!(value));
                    if let Some(key) = [("mode", "nearest"), ("padding_mode", "border")].into_iter().find(|(k, v)| !one_of(k, v)) {
                        return Err(call.wrong(key.0));
                    }
                    resampled = true;
                }
            }
            name if NEUTRAL.contains(&name) || NEUTRAL_AFTER.contains(&name) => {}
            _ => return Err(unsupported("postprocessing", call)),
        }
    }
    let (invert, nearest) = found.unwrap_or((if resampled { Invert::Saving } else { Invert::Nothing }, false));
    if sigmoid && threshold.is_none() {
        return Err(bad("the bundle's postprocessing has a sigmoid but no AsDiscreted with a threshold, so that it makes no labels"));
    }
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    let threshold = threshold.map(|at| at as f32);
    Ok(Pipeline { transforms, invert, nearest, largest, before: early, after: late, threshold, sigmoid })
}

/// Arguments of sliding windows that change no result.
const WINDOWS_NEUTRAL: [&str; 8] =
    ["sw_batch_size", "sw_device", "device", "progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps", "buffer_dim"];

fn windows_fixed() -> [(&'static str, Value); 3] {
    [("sigma_scale", json!(0.125)), ("cval", json!(0.0)), ("with_coord", json!(false))]
}

/// The card's `inference` of windows of this extent; none positive: the whole at once.
fn windows(call: &Call<'_>, roi: &[i64]) -> Result<Value, LoadError> {
    if roi.iter().all(|&n| n <= 0) {
        return Ok(json!({"mode": "whole"}));
    }
    if roi.iter().any(|&n| n <= 0) {
        return Err(call.wrong("roi_size"));
    }
    let overlap = match call.get("overlap") {
        None => 0.25,
        Some(Value::Array(list)) => match &list[..] {
            [first, rest @ ..] if list.len() == roi.len() && rest.iter().all(|v| v == first) => {
                first.as_f64().ok_or_else(|| call.wrong("overlap"))?
            }
            _ => return Err(call.wrong("overlap")),
        },
        Some(one) => one.as_f64().ok_or_else(|| call.wrong("overlap"))?,
    };
    let scheme = match call.get("mode").map(|v| v.as_str().unwrap_or_default().to_lowercase()).as_deref() {
        None | Some("constant" | "blendmode.constant") => "monai",
        Some("gaussian" | "blendmode.gaussian") => "monai_gaussian",
        Some(_) => return Err(call.wrong("mode")),
    };
    Ok(json!({"mode": "window", "patch": roi, "overlap": overlap, "scheme": scheme}))
}

/// The axis whose slices the inferer gives to a network of two dimensions; `None` if it gives
/// volumes.
pub(super) fn slices(inferer: Option<&Value>) -> Result<Option<usize>, LoadError> {
    let Some(call) = inferer.and_then(Call::of).filter(|call| call.class == "SliceInferer") else { return Ok(None) };
    let axis = call.get("spatial_dim").map_or(Some(0), Value::as_u64).filter(|axis| *axis < 3);
    axis.and_then(|axis| usize::try_from(axis).ok()).map(Some).ok_or_else(|| call.wrong("spatial_dim"))
}

/// The card's `inference`.
pub(super) fn inference(inferer: Option<&Value>) -> Result<Value, LoadError> {
    let call = inferer.and_then(Call::of).ok_or_else(|| bad("the bundle's config has no inferer that can be read"))?;
    match call.class {
        "SimpleInferer" => {
            call.only(&[], &[], &[])?;
            Ok(json!({"mode": "whole"}))
        }
        "SlidingWindowInferer" | "SlidingWindowInfererAdapt" => {
            call.only(&["roi_size", "overlap", "mode", "padding_mode"], &WINDOWS_NEUTRAL, &windows_fixed())?;
            let roi = call.along("roi_size", Value::as_i64)?.ok_or_else(|| call.wrong("roi_size"))?;
            windows(&call, &roi)
        }
        "SliceInferer" => {
            let fixed = [&windows_fixed()[..], &[("padding_mode", json!("constant"))]].concat();
            call.only(&["roi_size", "overlap", "mode", "spatial_dim"], &WINDOWS_NEUTRAL, &fixed)?;
            slices(inferer)?;
            let roi = call.get("roi_size").and_then(Value::as_array).filter(|list| list.len() == 2);
            let roi: Option<Vec<i64>> = roi.and_then(|list| list.iter().map(Value::as_i64).collect());
            windows(&call, &roi.ok_or_else(|| call.wrong("roi_size"))?)
        }
        other => {
            Err(bad(format!("the bundle's inferer {other} is not supported; SlidingWindowInferer, SliceInferer and SimpleInferer are")))
        }
    }
}

#[cfg(test)]
#[path = "transforms_tests.rs"]
mod tests;
