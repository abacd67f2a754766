//! `plans.json` and `dataset.json` to a card.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::architecture::Network;
use super::labels::Heads;
use super::pipeline::{Pipeline, Scaling};
use super::reader::Reader;
use super::resampling;
use crate::error::{LoadError, LoadErrorKind};
use crate::model::Card;
use crate::scan::PreviousStage;

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
    #[serde(alias = "foreground_intensity_properties_by_modality")]
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
    resampling_fn_data_kwargs: Map<String, Value>,
    resampling_fn_probabilities: String,
    resampling_fn_probabilities_kwargs: Map<String, Value>,
    #[serde(default)]
    resampling_fn_seg: String,
    #[serde(default)]
    resampling_fn_seg_kwargs: Map<String, Value>,
    previous_stage: Option<String>,
}

#[derive(Deserialize)]
struct Dataset {
    #[serde(alias = "modality")]
    channel_names: BTreeMap<String, String>,
    /// In the order of the file, which regions follow.
    labels: Map<String, Value>,
    regions_class_order: Option<Vec<u16>>,
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
/// When the plans are no plans, have no such configuration, or ask for what this version does not
/// do: another network, another reader, preprocessor or resampling. The message names
/// it.
pub fn card(plans: &Value, dataset: &Value, configuration: &str, mirror: &[u32]) -> Result<Card, LoadError> {
    of_trainer([plans, dataset], configuration, mirror, Trainer::default())
}

/// A trainer, as far as its checkpoint tells.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trainer<'a> {
    /// The name of its class.
    pub(super) name: Option<&'a str>,
    /// Whether its checkpoint holds the statistics of batch norms.
    pub(super) batch_norm: bool,
}

/// The same of what a trainer makes of the plans.
pub(super) fn of_trainer(
    [plans, dataset]: [&Value; 2],
    configuration: &str,
    mirror: &[u32],
    trainer: Trainer<'_>,
) -> Result<Card, LoadError> {
    let plans: Plans = parse(plans.clone(), "plans.json")?;
    let dataset: Dataset = parse(dataset.clone(), "dataset.json")?;
    let whole = inherited(&plans, configuration)?;
    let conf: Configuration = parse(Value::Object(whole.clone()), &format!("plans.json: {configuration}"))?;
    if conf.preprocessor_name != "DefaultPreprocessor" {
        return Err(bad(format!("the preprocessor {:?} is not supported; DefaultPreprocessor is", conf.preprocessor_name)));
    }
    if let Some(other) = plans.label_manager.as_deref().filter(|name| *name != "LabelManager") {
        return Err(bad(format!("the label manager {other:?} is not supported; LabelManager is")));
    }
    if let Some(name) = trainer.name.filter(|name| name.contains("Primus")) {
        return Err(bad(format!("the trainer {name} is not supported: its network is Primus, a transformer")));
    }
    let reader: Reader = serde_json::from_value(json!(plans.image_reader_writer)).map_err(|_| {
        let other = &plans.image_reader_writer;
        bad(format!("the reader {other:?} is not supported; SimpleITKIO, NibabelIO and NibabelIOWithReorient are"))
    })?;
    let axes = (reader == Reader::NibabelReorient).then_some("SAR");
    let dims = conf.patch_size.len();
    if !(2..=3).contains(&dims) || mirror.iter().any(|&axis| axis as usize >= dims) {
        return Err(bad(format!("patches of {dims} dimensions, mirrored along {mirror:?}, are not supported")));
    }
    let channels = dataset.channel_names.len();
    let Heads { count: classes, names: labels, regions, foreground } = Heads::of(&dataset.labels, dataset.regions_class_order)?;
    let mut network = Network::of(&whole, dims)?;
    if trainer.name == Some(BATCH_NORM) || trainer.batch_norm && network.has_instance_norm() {
        network.take_batch_norm(dims);
    }
    let previous = conf.previous_stage.map(|stage| {
        let (resample, halves) = resampling::of_labels(&conf.resampling_fn_seg, &conf.resampling_fn_seg_kwargs)?;
        Ok::<_, LoadError>(PreviousStage { stage, labels: foreground, resample, halves })
    });
    let previous = previous.transpose()?;
    let added = previous.as_ref().map_or(0, |stage| stage.labels.len());
    let (name, config) = network.config(dims, channels + added, classes)?;
    let [data, logits] = [
        (&conf.resampling_fn_data, &conf.resampling_fn_data_kwargs),
        (&conf.resampling_fn_probabilities, &conf.resampling_fn_probabilities_kwargs),
    ]
    .map(|(function, kwargs)| resampling::of(function, kwargs));
    let (resample, resample_logits) = (data?, logits?);
    resampling::check(resample, resample_logits)?;
    if let Some(stage) = &previous {
        resampling::check_labels(resample, stage.resample)?;
    }
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
        resample,
        resample_logits,
        regions,
        postprocessing: Vec::new(),
        previous,
        reader,
    };
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
