//! `plans.pkl` and `model_final_checkpoint.model.pkl` of nnU-Net v1 to a card.
//!
//! Source: nnunet 1.7.1, `nnUNetTrainer.process_plans`, `restore_model`, `predict_cases` and the trainers of `network_training`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::pipeline::{Pipeline, Resampling, Scaling};
use super::reader::Reader;
use crate::error::{LoadError, LoadErrorKind};
use crate::model::{self, Card};

/// What is read of the pickles.
const KEYS: &[&str] = &[
    "init",
    "name",
    "plans",
    "plans_per_stage",
    "patch_size",
    "current_spacing",
    "pool_op_kernel_sizes",
    "num_modalities",
    "modalities",
    "num_classes",
    "normalization_schemes",
    "use_mask_for_norm",
    "dataset_properties",
    "intensityproperties",
    "mean",
    "sd",
    "percentile_00_5",
    "percentile_99_5",
    "transpose_forward",
    "preprocessor_name",
    "segmentation_export_params",
    "force_separate_z",
    "interpolation_order",
    "interpolation_order_z",
];

/// Parts of the names of trainers whose models are others, and what these are.
const OTHERS: [(&str, &str); 9] = [
    ("Cascade", "a cascade, which takes the labels of a coarser stage as input"),
    ("Regions", "a model of regions that overlap"),
    ("Resenc", "a network of residual blocks"),
    ("GeLU", "a network with GELU"),
    ("Mish", "a network with Mish"),
    ("ReLU", "a network with another activation than leaky ReLU of slope 0.01 after the norm"),
    ("_FRN", "a network with filter response normalisation"),
    ("_GN", "a network with group norm"),
    ("NoNormalization", "a network without norms"),
];

/// The one with `ReLU` in its name that is `nnUNetTrainerV2`'s network, with a bias in its head.
const BIASED: &str = "nnUNetTrainerV2_lReLU_biasInSegOutput";

/// Parts of the names, in lower case, of trainers that allow no mirror images; `nnUNetTrainerNoDA` ends in the last.
const UNMIRRORED: [&str; 2] = ["nomirror", "nodataaugmentation"];
const UNMIRRORED_END: &str = "noda";

/// The trainers of nnunet 1.7.1 whose models run, without the `nnUNetTrainer` that they begin with.
const KNOWN: &str = " CE NoDA V2 V2_2epochs V2_2epochs_dummyLoad V2_3ConvPerStage V2_3ConvPerStageSameFilters V2_5epochs V2_5epochs_CEnoDS \
    V2_5epochs_dummyLoad V2_5epochs_dummyLoadCEnoDS V2_5epochs_noDS V2_Adam V2_Adam_ReduceOnPlateau V2_Adam_nnUNetTrainerlr V2_BN V2_DA2 V2_DA3 \
    V2_DA3_BN V2_DA5 V2_DDP V2_DDP_5epochs V2_DDP_5epochs_dummyLoad V2_DP V2_ForceBD V2_ForceSD V2_Loss_CE V2_Loss_CEGDL V2_Loss_Dice \
    V2_Loss_DiceCE_noSmooth V2_Loss_DiceTopK10 V2_Loss_Dice_LR1en3 V2_Loss_Dice_squared V2_Loss_DicewithBG V2_Loss_DicewithBG_LR1en3 V2_Loss_MCC \
    V2_Loss_MCCnoBG V2_Loss_TopK10 V2_MMS V2_Ranger_lr1en2 V2_Ranger_lr3en3 V2_Ranger_lr3en4 V2_SGD_ReduceOnPlateau V2_SGD_fixedSchedule \
    V2_SGD_fixedSchedule2 V2_SGD_lr1en1 V2_SGD_lr1en3 V2_SegLoss_Focal V2_allConv3x3 V2_copy1 V2_copy2 V2_copy3 V2_copy4 V2_cycleAtEnd V2_cycleAtEnd2 \
    V2_fp16 V2_fp32 V2_fullEvals V2_graduallyTransitionFromCEToDice V2_independentScalePerAxis V2_insaneDA V2_lReLU_biasInSegOutput V2_momentum09 \
    V2_momentum095 V2_momentum098 V2_momentum09in2D V2_noDataAugmentation V2_noDeepSupervision V2_noMirroring V2_reduceMomentumDuringTraining \
    V2_resample33 V2_softDeepSupervision V2_warmup ";

#[derive(Deserialize)]
struct Plans {
    plans_per_stage: BTreeMap<String, Stage>,
    num_modalities: usize,
    modalities: BTreeMap<String, String>,
    num_classes: usize,
    normalization_schemes: BTreeMap<String, String>,
    use_mask_for_norm: BTreeMap<String, bool>,
    dataset_properties: Properties,
    transpose_forward: Option<[usize; 3]>,
    preprocessor_name: Option<String>,
    segmentation_export_params: Option<Export>,
}

#[derive(Deserialize)]
struct Stage {
    patch_size: Vec<u32>,
    current_spacing: Vec<f64>,
    pool_op_kernel_sizes: Option<Value>,
}

#[derive(Deserialize)]
struct Properties {
    intensityproperties: Option<BTreeMap<String, Foreground>>,
}

#[derive(Deserialize)]
struct Foreground {
    mean: f32,
    sd: f32,
    percentile_00_5: f32,
    percentile_99_5: f32,
}

#[derive(Deserialize)]
struct Export {
    force_separate_z: Option<bool>,
    interpolation_order: u32,
    interpolation_order_z: u32,
}

/// What a folder tells of a fold.
pub(super) struct Sidecar {
    plans: Plans,
    trainer: String,
    /// The stage that the trainer was made for.
    stage: Option<i64>,
    /// What the plans were read of, for messages.
    source: String,
}

fn bad(message: impl Into<String>) -> LoadError {
    LoadError::new(LoadErrorKind::Card, message)
}

impl Sidecar {
    /// Reads a `.model.pkl`, or else the plans alone; `folder` is that of the model, `TRAINER__PLANS`.
    pub(super) fn read(file: &Path, bytes: &[u8], folder: &Path) -> Result<Self, LoadError> {
        let source = file.display().to_string();
        let damaged = |text: &str| LoadError::new(LoadErrorKind::Format, format!("{source} {text}"));
        let mut told = model::plain(bytes, KEYS).map_err(|e| damaged("is no pickle that is read").caused_by(bad(e)))?;
        let beside = told.get("plans").is_some();
        let init = told.get_mut("init").map(Value::take).unwrap_or_default();
        let name = told.get("name").and_then(Value::as_str).map(str::to_owned);
        let plans = if beside { told["plans"].take() } else { told };
        let plans = serde_json::from_value(plans).map_err(|e| damaged("holds no plans of nnU-Net v1").caused_by(e))?;
        let parts: Vec<&str> = folder.iter().filter_map(|part| part.to_str()).collect();
        let trainer = name.or_else(|| Some(parts.last()?.split_once("__")?.0.to_owned())).unwrap_or_else(|| "nnUNetTrainerV2".into());
        // the distributed trainer takes its rank before its folder
        let stage = init.get(if trainer.contains("_DDP") { 6 } else { 5 }).and_then(Value::as_i64);
        let mut told = Self { plans, trainer, stage, source };
        if told.stage.is_none() && !beside {
            told.stage = told.named(&parts);
        }
        Ok(told)
    }

    /// The stage that the folder `3d_lowres` or `3d_fullres` stands for.
    fn named(&self, parts: &[&str]) -> Option<i64> {
        let stages = self.plans.plans_per_stage.keys().filter_map(|stage| stage.parse().ok());
        match *parts.iter().rev().find(|part| part.starts_with("3d_"))? {
            "3d_lowres" => stages.min(),
            "3d_fullres" => stages.max(),
            _ => None,
        }
    }

    /// What is assumed of a trainer that nnunet 1.7.1 does not have.
    pub(super) fn note(&self) -> Option<String> {
        let name = &self.trainer;
        let known = name.strip_prefix("nnUNetTrainer").is_some_and(|rest| KNOWN.split(' ').any(|known| known == rest));
        let mirrored = if self.mirrored() { "with" } else { "without" };
        (!known).then(|| format!("{name} is no trainer of nnunet 1.7.1: taken to be nnUNetTrainerV2, {mirrored} mirror images"))
    }

    fn mirrored(&self) -> bool {
        let name = self.trainer.to_lowercase();
        !(name.ends_with(UNMIRRORED_END) || UNMIRRORED.iter().any(|part| name.contains(part)))
    }

    /// The card of a checkpoint that these plans go with.
    ///
    /// # Errors
    /// When the trainer, the plans or the network are of what this version does not do; the message names it.
    pub(super) fn card(&self, checkpoint: &model::Checkpoint) -> Result<Card, LoadError> {
        let trainer = &self.trainer;
        if let Some((_, what)) = OTHERS.iter().find(|(part, _)| trainer.contains(part) && trainer != BIASED) {
            return Err(bad(format!("the trainer {trainer} is not supported: its model is {what}")));
        }
        let plans = &self.plans;
        let (number, stage) = self.stage()?;
        let dims = stage.patch_size.len();
        if !(2..=3).contains(&dims) || stage.current_spacing.len() != 3 {
            return Err(bad(format!("patches {:?} at {:?} mm are not supported", stage.patch_size, stage.current_spacing)));
        }
        let config = self.network(checkpoint, stage)?;
        let order = match (plans.preprocessor_name.as_deref(), dims) {
            (None | Some("GenericPreprocessor"), 3) | (None | Some("PreprocessorFor2D"), 2) => 3,
            (Some("GenericPreprocessor_linearResampling"), 3) => 1,
            (other, _) => {
                let name = other.unwrap_or_default();
                return Err(bad(format!(
                    "the preprocessor {name:?} is not supported with {dims} dimensions; GenericPreprocessor, GenericPreprocessor_linearResampling (3) and PreprocessorFor2D (2) are"
                )));
            }
        };
        let export = plans.segmentation_export_params.as_ref();
        let pipeline = Pipeline {
            version: 1,
            transpose: plans.transpose_forward.unwrap_or([0, 1, 2]),
            spacing_mm: stage.current_spacing[3 - dims..].to_vec(),
            channels: self.scalings()?,
            resample: Resampling { order, ..Resampling::default() },
            resample_logits: Resampling {
                order: export.map_or(1, |e| e.interpolation_order),
                order_along: export.map_or(0, |e| e.interpolation_order_z),
                separate: export.and_then(|e| e.force_separate_z),
                ..Resampling::default()
            },
            regions: None,
            postprocessing: Vec::new(),
            previous: None,
            reader: Reader::SimpleItk,
        };
        let channels: Option<Vec<&String>> = (0..plans.num_modalities).map(|c| plans.modalities.get(&c.to_string())).collect();
        let mirror: Vec<usize> = if self.mirrored() { (3 - dims..3).collect() } else { Vec::new() };
        let card = json!({
            "architecture": "plain_conv_unet",
            "config": config,
            "input": {"channels": channels.unwrap_or_default(), "nnunet": pipeline},
            "inference": {"mode": "window", "patch": stage.patch_size, "overlap": 0.5, "mirror": mirror, "scheme": "nnunet_v1"},
            "labels": {"0": "background"},
            "provenance": format!("nnU-Net v1: {trainer}, stage {number} of {}", plans.plans_per_stage.len()),
        });
        Card::checked(&card.to_string())
    }

    /// The stage that was trained.
    fn stage(&self) -> Result<(i64, &Stage), LoadError> {
        let stages = &self.plans.plans_per_stage;
        let known = || stages.keys().cloned().collect::<Vec<_>>().join(", ");
        let number = match (self.stage, stages.keys().next()) {
            (Some(number), _) => number,
            (None, Some(only)) if stages.len() == 1 => only.parse().unwrap_or_default(),
            _ => {
                return Err(bad(format!(
                    "{} has the stages {}, and nothing tells which was trained: .model.pkl does",
                    self.source,
                    known()
                )));
            }
        };
        let stage = stages.get(&number.to_string());
        Ok((number, stage.ok_or_else(|| bad(format!("{} has no stage {number}, but {}", self.source, known())))?))
    }

    /// The config as the tensors tell it, which the plans must agree with.
    fn network(&self, checkpoint: &model::Checkpoint, stage: &Stage) -> Result<Value, LoadError> {
        let unsupported = || {
            let text = format!("the network of {} is not supported: Generic_UNet of strided and transposed convolutions is", self.trainer);
            LoadError::new(LoadErrorKind::UnknownArchitecture, text)
        };
        let mut told: Value = serde_json::from_str(&checkpoint.infer().map_err(|e| unsupported().caused_by(e))?).unwrap_or_default();
        if told["architecture"] != "plain_conv_unet" || told["config"]["residual"] == true {
            return Err(unsupported());
        }
        let config = told["config"].take();
        let strides: Vec<Value> = config["strides"].as_array().map(|list| list.iter().skip(1).cloned().collect()).unwrap_or_default();
        let agree = [
            ("dimensions", &config["dims"], stage.patch_size.len().into()),
            ("channels", &config["in_channels"], self.plans.num_modalities.into()),
            ("classes", &config["classes"], self.plans.num_classes.saturating_add(1).into()),
            ("strides", &strides.clone().into(), stage.pool_op_kernel_sizes.clone().unwrap_or_else(|| strides.into())),
        ];
        if let Some((what, own, planned)) = agree.iter().find(|(_, own, planned)| *own != planned) {
            return Err(bad(format!("the weights are not those of the plans: their {what} are {own}, not {planned}")));
        }
        Ok(config)
    }

    fn scalings(&self) -> Result<Vec<Scaling>, LoadError> {
        let plans = &self.plans;
        let scaling = |number: usize| {
            let key = number.to_string();
            let (Some(scheme), Some(&masked)) = (plans.normalization_schemes.get(&key), plans.use_mask_for_norm.get(&key)) else {
                return Err(bad(format!("the plans do not say how channel {number} is normalised")));
            };
            let foreground = || {
                let f = plans.dataset_properties.intensityproperties.as_ref().and_then(|all| all.get(&key));
                f.ok_or_else(|| bad(format!("the plans lack intensities of channel {number}")))
            };
            Ok(match scheme.as_str() {
                "CT" => {
                    let f = foreground()?;
                    Scaling::Ct { low: f.percentile_00_5, high: f.percentile_99_5, mean: f.mean, std: f.sd, masked }
                }
                "CT2" => {
                    let f = foreground()?;
                    Scaling::Ct2 { low: f.percentile_00_5, high: f.percentile_99_5, masked }
                }
                "noNorm" => Scaling::None,
                // as nnU-Net takes any other
                _ => Scaling::Zscore { masked },
            })
        };
        (0..plans.num_modalities).map(scaling).collect()
    }
}
