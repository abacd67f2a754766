//! `plans.json` and `dataset.json` to a card.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::pipeline::{Pipeline, Resampling, Scaling};
use super::reader::Reader;
use crate::error::{LoadError, LoadErrorKind};
use crate::model::Card;

/// Slices are thick from this ratio on; nnU-Net's constant.
const THRESHOLD: f64 = 3.0;

/// The trainer of nnunetv2 2.8.1 that puts batch norm in place of the plans' norm.
const BATCH_NORM: &str = "nnUNetTrainerBN";

/// The trainers of nnunetv2 2.8.1 that build the plans' network, without the `nnUNetTrainer` that
/// they begin with; how a scan is mirrored is in their checkpoints.
const KNOWN: &str = " Adam Adam1en3 Adam3en4 Adan Adan1en1 Adan1en3 Adan3en4 AdanCosAnneal BN \
    Benchmark_5epochs Benchmark_5epochs_noDataLoading CELoss CELoss_5epochs CosAnneal DA5 \
    DA5Segord0 DA5_10epochs DA5ord0 DiceCELoss_noSmooth DiceLoss DiceTopK10Loss NoDA \
    NoDeepSupervision NoMirroring Topk10Loss Topk10LossLS01 VanillaAdam VanillaAdam1en3 \
    VanillaAdam3en4 _100epochs _10epochs _1epoch _2000epochs _2000epochs_NoMirroring \
    _20epochs _250epochs _250epochs_NoMirroring _4000epochs _4000epochs_NoMirroring \
    _500epochs _50epochs _5epochs _750epochs _8000epochs _8000epochs_NoMirroring _DASegOrd0 \
    _DASegOrd0_NoMirroring _noDummy2DDA _onlyMirror01 _onlyMirror01_1500ep _onlyMirror01_DA5 \
    _onlyMirror01_DASegOrd0 _probabilisticOversampling _probabilisticOversampling_010 \
    _probabilisticOversampling_033 _warmup ";

/// What is assumed of a trainer that nnunetv2 2.8.1 does not have.
pub(super) fn note(trainer: &str) -> Option<String> {
    let known = |rest: &str| KNOWN.split(' ').any(|known| known == rest);
    let known = trainer == "nnUNet_Trainer_BS8" || trainer.strip_prefix("nnUNetTrainer").is_some_and(known);
    (!known).then(|| format!("{trainer} is no trainer of nnunetv2 2.8.1: taken to be nnUNetTrainer, whose network is that of the plans"))
}

/// Most configurations that inherit from one another.
const GENERATIONS: usize = 8;

#[derive(Deserialize)]
struct Plans {
    #[serde(default)]
    dataset_name: String,
    #[serde(default)]
    plans_name: String,
    image_reader_writer: String,
    transpose_forward: [usize; 3],
    label_manager: Option<String>,
    configurations: BTreeMap<String, Map<String, Value>>,
    foreground_intensity_properties_per_channel: BTreeMap<String, Foreground>,
}

#[derive(Deserialize)]
struct Foreground {
    mean: f32,
    std: f32,
    percentile_00_5: f32,
    percentile_99_5: f32,
}

#[derive(Deserialize)]
struct Configuration {
    preprocessor_name: String,
    patch_size: Vec<u32>,
    spacing: Vec<f64>,
    normalization_schemes: Vec<String>,
    use_mask_for_norm: Vec<bool>,
    resampling_fn_data: String,
    resampling_fn_data_kwargs: Kwargs,
    resampling_fn_probabilities: String,
    resampling_fn_probabilities_kwargs: Kwargs,
    architecture: Option<Architecture>,
    previous_stage: Option<String>,
}

#[derive(Deserialize)]
struct Kwargs {
    order: u32,
    order_z: u32,
    force_separate_z: Option<bool>,
    separate_z_anisotropy_threshold: Option<f64>,
}

#[derive(Deserialize)]
struct Architecture {
    network_class_name: String,
    arch_kwargs: Map<String, Value>,
}

#[derive(Deserialize)]
struct Dataset {
    #[serde(alias = "modality")]
    channel_names: BTreeMap<String, String>,
    labels: BTreeMap<String, Label>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Label {
    One(u32),
    Region(Vec<u32>),
}

fn bad(message: impl Into<String>) -> LoadError {
    LoadError::new(LoadErrorKind::Card, message)
}

fn parse<T: DeserializeOwned>(value: Value, what: &str) -> Result<T, LoadError> {
    serde_json::from_value(value)
        .map_err(|e| LoadError::new(LoadErrorKind::Format, format!("{what} is not what nnU-Net v2 writes")).caused_by(e))
}

/// The card of a configuration (`2d`, `3d_fullres`, ..) of nnU-Net's plans, given their JSON and that of the dataset. `mirror` are the
/// axes of the patch that the trainer allows to be mirrored.
///
/// # Errors
/// When the plans are no plans, have no such configuration, or ask for what this version does not do: another network, regions,
/// a cascade, another reader, preprocessor or resampling. The message names it.
pub fn card(plans: &Value, dataset: &Value, configuration: &str, mirror: &[u32]) -> Result<Card, LoadError> {
    of_trainer([plans, dataset], configuration, mirror, None)
}

/// The same of what a trainer makes of the plans.
pub(super) fn of_trainer(
    [plans, dataset]: [&Value; 2],
    configuration: &str,
    mirror: &[u32],
    trainer: Option<&str>,
) -> Result<Card, LoadError> {
    let plans: Plans = parse(plans.clone(), "plans.json")?;
    let dataset: Dataset = parse(dataset.clone(), "dataset.json")?;
    let conf: Configuration = parse(Value::Object(inherited(&plans, configuration)?), &format!("plans.json: {configuration}"))?;
    if let Some(previous) = conf.previous_stage {
        return Err(bad(format!("{configuration} is a cascade, which takes the labels of {previous} as input; this version does not")));
    }
    if conf.preprocessor_name != "DefaultPreprocessor" {
        return Err(bad(format!("the preprocessor {:?} is not supported; DefaultPreprocessor is", conf.preprocessor_name)));
    }
    if let Some(other) = plans.label_manager.as_deref().filter(|name| *name != "LabelManager") {
        return Err(bad(format!("the label manager {other:?} is not supported; LabelManager is")));
    }
    if let Some(name) = trainer.filter(|name| name.contains("Primus")) {
        return Err(bad(format!("the trainer {name} is not supported: its network is Primus, a transformer")));
    }
    let reader: Reader = serde_json::from_value(json!(plans.image_reader_writer)).map_err(|_| {
        let other = &plans.image_reader_writer;
        bad(format!("the reader {other:?} is not supported; SimpleITKIO, NibabelIO and NibabelIOWithReorient are"))
    })?;
    let axes = (reader == Reader::NibabelReorient).then_some("SAR");
    let dims = conf.patch_size.len();
    let channels = dataset.channel_names.len();
    let (classes, labels) = classes(dataset.labels)?;
    let architecture = conf.architecture.ok_or_else(|| {
        bad("the plans name no architecture: they are of nnU-Net before 2.4; let a newer nnU-Net write them once (nnUNetv2_plan_experiment)")
    })?;
    let mut architecture = architecture;
    if trainer == Some(BATCH_NORM) {
        let kwargs = &mut architecture.arch_kwargs;
        kwargs.insert("norm_op".into(), format!("torch.nn.modules.batchnorm.BatchNorm{dims}d").into());
        kwargs.insert("norm_op_kwargs".into(), json!({"eps": 1e-5, "affine": true}));
    }
    let (name, config) = network(&architecture, dims, channels, classes)?;
    let pipeline = Pipeline {
        version: 2,
        transpose: plans.transpose_forward,
        spacing_mm: conf.spacing,
        channels: scalings(
            &conf.normalization_schemes,
            &conf.use_mask_for_norm,
            &plans.foreground_intensity_properties_per_channel,
            channels,
        )?,
        resample: resampling(&conf.resampling_fn_data, &conf.resampling_fn_data_kwargs)?,
        resample_logits: resampling(&conf.resampling_fn_probabilities, &conf.resampling_fn_probabilities_kwargs)?,
        reader,
    };
    if !(2..=3).contains(&dims) || mirror.iter().any(|&axis| axis as usize >= dims) {
        return Err(bad(format!("patches of {dims} dimensions, mirrored along {mirror:?}, are not supported")));
    }
    let mirror: Vec<usize> = mirror.iter().map(|&axis| axis as usize + 3 - dims).collect();
    let mut names: Vec<_> = dataset.channel_names.into_iter().collect();
    names.sort_by_key(|(number, _)| number.parse::<u32>().unwrap_or(u32::MAX));
    let card = json!({
        "architecture": name,
        "config": config,
        "input": {"channels": names.into_iter().map(|(_, name)| name).collect::<Vec<_>>(), "axes": axes, "nnunet": pipeline},
        "inference": {"mode": "window", "patch": conf.patch_size, "overlap": 0.5, "mirror": mirror, "scheme": "nnunet_v2"},
        "labels": labels,
        "provenance": format!("nnU-Net v2: {}, {}, {configuration}", plans.dataset_name, plans.plans_name),
    });
    Card::checked(&card.to_string())
}

/// A configuration with what it inherits.
fn inherited(plans: &Plans, configuration: &str) -> Result<Map<String, Value>, LoadError> {
    let mut whole = Map::new();
    let mut name = configuration.to_owned();
    for _ in 0..GENERATIONS {
        let Some(own) = plans.configurations.get(&name) else {
            let known = plans.configurations.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(bad(format!("the plans have no configuration {name:?}; they have {known}")));
        };
        for (key, value) in own {
            whole.entry(key.clone()).or_insert_with(|| value.clone());
        }
        match own.get("inherits_from").and_then(Value::as_str) {
            Some(parent) => parent.clone_into(&mut name),
            None => return Ok(whole),
        }
    }
    Err(bad(format!("the configuration {configuration:?} inherits without end")))
}

/// The number of classes, and their names by number.
fn classes(labels: BTreeMap<String, Label>) -> Result<(usize, BTreeMap<String, String>), LoadError> {
    let mut names = BTreeMap::new();
    for (name, label) in labels {
        let number = match label {
            Label::One(number) => number,
            Label::Region(numbers) => match numbers[..] {
                [number] => number,
                _ => {
                    return Err(bad(format!(
                        "the label {name:?} is a region, {numbers:?}: region-based models are not supported, only models of labels that exclude each other"
                    )));
                }
            },
        };
        // what annotators left out is no class
        if name != "ignore" {
            names.insert(number, name);
        }
    }
    let count = names.len();
    if !names.keys().copied().eq(0..u32::try_from(count).unwrap_or(u32::MAX)) || count < 2 {
        return Err(bad(format!("the labels {:?} are not 0, 1 and so on", names.keys().collect::<Vec<_>>())));
    }
    Ok((count, names.into_iter().map(|(number, name)| (number.to_string(), name)).collect()))
}

fn scalings(
    schemes: &[String],
    masked: &[bool],
    foreground: &BTreeMap<String, Foreground>,
    channels: usize,
) -> Result<Vec<Scaling>, LoadError> {
    if schemes.len() != channels || masked.len() != channels {
        return Err(bad(format!("the plans normalise {} channels, the dataset has {channels}", schemes.len())));
    }
    let scaling = |(number, (scheme, &masked)): (usize, (&String, &bool))| match scheme.as_str() {
        "CTNormalization" => {
            let f = foreground.get(&number.to_string()).ok_or_else(|| bad(format!("the plans lack intensities of channel {number}")))?;
            Ok(Scaling::Ct { low: f.percentile_00_5, high: f.percentile_99_5, mean: f.mean, std: f.std, masked: false })
        }
        "ZScoreNormalization" => Ok(Scaling::Zscore { masked }),
        "NoNormalization" => Ok(Scaling::None),
        "RescaleTo01Normalization" => Ok(Scaling::Range),
        "RGBTo01Normalization" => Ok(Scaling::Rgb),
        other => Err(bad(format!("the normalisation {other:?} is not supported"))),
    };
    schemes.iter().zip(masked).enumerate().map(scaling).collect()
}

fn resampling(function: &str, kwargs: &Kwargs) -> Result<Resampling, LoadError> {
    if function != "resample_data_or_seg_to_shape" {
        return Err(bad(format!("resampling by {function:?} is not supported; resample_data_or_seg_to_shape is")));
    }
    match kwargs.separate_z_anisotropy_threshold {
        Some(other) if other != THRESHOLD => Err(bad(format!("separate_z_anisotropy_threshold {other} is not supported; {THRESHOLD} is"))),
        _ => Ok(Resampling { order: kwargs.order, order_along: kwargs.order_z, separate: kwargs.force_separate_z }),
    }
}

/// Name and config of the architecture.
fn network(architecture: &Architecture, dims: usize, channels: usize, classes: usize) -> Result<(&'static str, Value), LoadError> {
    let class = architecture.network_class_name.as_str();
    let (name, count, convs) = match class.rsplit('.').next() {
        Some("PlainConvUNet") => ("plain_conv_unet", "n_conv_per_stage", "convs_per_stage"),
        Some("ResidualEncoderUNet") => ("residual_encoder_unet", "n_blocks_per_stage", "blocks_per_stage"),
        _ => {
            let text = format!("the network class {class:?} is not supported; PlainConvUNet and ResidualEncoderUNet are");
            return Err(LoadError::new(LoadErrorKind::UnknownArchitecture, text));
        }
    };
    let mut args = architecture.arch_kwargs.clone();
    let mut take = |key: &str| args.remove(key).filter(|v| !v.is_null());
    let stages = take("n_stages").and_then(|v| v.as_u64()).unwrap_or(0);
    let mut need = |key: &str| take(key).ok_or_else(|| bad(format!("the plans' arch_kwargs lack {key}")));
    let along = |list: Value| -> Value {
        let each = |v: Value| if v.is_number() { json!(vec![v; dims]) } else { v };
        match list {
            Value::Array(list) => list.into_iter().map(each).collect(),
            other => other,
        }
    };
    let features = need("features_per_stage")?;
    if features.as_array().map(|list| list.len() as u64) != Some(stages) {
        return Err(bad(format!("features_per_stage {features} are not those of {stages} stages")));
    }
    let mut config = json!({
        "dims": dims, "in_channels": channels, "classes": classes, "features": features,
        "kernels": along(need("kernel_sizes")?), "strides": along(need("strides")?),
        convs: need(count)?, "decoder_convs_per_stage": need("n_conv_per_stage_decoder")?,
    });
    // what is absent or null is None, as the classes' own defaults are: no norm, no activation, no bias
    let told = |key: &str| args.get(key).cloned().unwrap_or_default();
    let wrong = |key: &str| bad(format!("the network's argument {key} = {} is not supported", told(key)));
    let known = [
        "conv_op",
        "norm_op",
        "norm_op_kwargs",
        "nonlin",
        "nonlin_kwargs",
        "conv_bias",
        "nonlin_first",
        "dropout_op",
        "dropout_op_kwargs",
        "deep_supervision",
    ];
    if let Some(other) = args.iter().find(|(key, value)| !known.contains(&key.as_str()) && !value.is_null()) {
        return Err(wrong(other.0));
    }
    let ends = |key: &str, wanted: &str| told(key).as_str().is_some_and(|s| s.ends_with(wanted));
    let batch = ends("norm_op", &format!(".BatchNorm{dims}d"));
    let number = |v: Option<&Value>, wanted: f64| v.is_none_or(|v| v.as_f64() == Some(wanted));
    let off = |key: &str| matches!(told(key), Value::Null | Value::Bool(false));
    let fits = [
        ("conv_op", ends("conv_op", &format!(".Conv{dims}d"))),
        ("nonlin", ends("nonlin", ".LeakyReLU")),
        ("nonlin_kwargs", number(told("nonlin_kwargs").get("negative_slope"), 0.01)),
        ("norm_op", told("norm_op").is_null() || batch || ends("norm_op", &format!(".InstanceNorm{dims}d"))),
        ("norm_op_kwargs", number(told("norm_op_kwargs").get("eps"), 1e-5)),
        ("conv_bias", off("conv_bias") || told("conv_bias") == json!(true)),
        ("nonlin_first", off("nonlin_first")),
        // dropout has no effect here, whatever it is
    ];
    if let Some((key, _)) = fits.iter().find(|(_, fits)| !fits) {
        return Err(wrong(key));
    }
    // PyTorch's batch norm has parameters unless it is told otherwise, its instance norm has none
    let affine = told("norm_op_kwargs").get("affine").map_or(batch, |told| *told == json!(true));
    let norm = match (told("norm_op").is_null(), batch, affine) {
        (true, ..) => "none",
        (false, true, true) => "batch",
        (false, true, false) => return Err(wrong("norm_op_kwargs")),
        (false, false, true) => "instance",
        (false, false, false) => "instance_plain",
    };
    if name == "plain_conv_unet" {
        config["norm"] = norm.into();
        for key in ["conv_bias", "transpose_bias"] {
            config[key] = (!off("conv_bias")).into();
        }
    } else if norm != "instance" {
        return Err(wrong(if affine { "norm_op" } else { "norm_op_kwargs" }));
    } else if off("conv_bias") {
        return Err(wrong("conv_bias"));
    }
    Ok((name, config))
}
