//! The network of a configuration of nnU-Net v2's plans: its class and arguments to an
//! architecture's name and config.
//!
//! Source: `ConfigurationManager` and `get_network_from_plans` of nnunetv2 2.8.1.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{LoadError, LoadErrorKind};

/// A network's class and its arguments.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Network {
    network_class_name: String,
    arch_kwargs: Map<String, Value>,
}

/// The numbers by which plans of nnU-Net 2.0 to 2.3 describe a network.
#[derive(Deserialize)]
struct Old {
    #[serde(rename = "UNet_class_name")]
    class: String,
    #[serde(rename = "UNet_base_num_features")]
    base: u64,
    #[serde(rename = "unet_max_num_features")]
    most: u64,
    n_conv_per_stage_encoder: Vec<Value>,
    n_conv_per_stage_decoder: Value,
    pool_op_kernel_sizes: Value,
    conv_kernel_sizes: Value,
}

fn bad(message: impl Into<String>) -> LoadError {
    LoadError::new(LoadErrorKind::Card, message)
}

fn unknown(class: &str) -> LoadError {
    let text = format!("the network class {class:?} is not supported; PlainConvUNet and ResidualEncoderUNet are");
    LoadError::new(LoadErrorKind::UnknownArchitecture, text)
}

impl Network {
    /// The network of a configuration whose patch has so many dimensions: that under
    /// `architecture`, that under `network_arch_class_name` and `network_arch_init_kwargs`, or what
    /// the numbers of older plans describe.
    ///
    /// # Errors
    /// When the configuration has none of these, or a key is missing.
    pub(super) fn of(configuration: &Map<String, Value>, dims: usize) -> Result<Self, LoadError> {
        let wrong = |e: serde_json::Error| {
            let text = "the plans' network is not what nnU-Net v2 writes";
            LoadError::new(LoadErrorKind::Format, text).caused_by(e)
        };
        let told = |key: &str| configuration.get(key).filter(|value| !value.is_null()).cloned();
        if let Some(network) = told("architecture") {
            return serde_json::from_value(network).map_err(wrong);
        }
        if let (Some(class), Some(kwargs)) = (told("network_arch_class_name"), told("network_arch_init_kwargs")) {
            return serde_json::from_value(json!({"network_class_name": class, "arch_kwargs": kwargs})).map_err(wrong);
        }
        if told("UNet_class_name").is_none() {
            let text = "the plans name no network: the configuration has neither architecture nor UNet_class_name";
            return Err(bad(text));
        }
        let old: Old = serde_json::from_value(configuration.clone().into()).map_err(wrong)?;
        let convs = match old.class.as_str() {
            "PlainConvUNet" => "n_conv_per_stage",
            "ResidualEncoderUNet" => "n_blocks_per_stage",
            other => return Err(unknown(other)),
        };
        let stages = old.n_conv_per_stage_encoder.len();
        let doubled = |stage: usize| {
            let factor = u32::try_from(stage).ok().and_then(|stage| 1u64.checked_shl(stage));
            old.base.saturating_mul(factor.unwrap_or(u64::MAX)).min(old.most)
        };
        let features: Vec<u64> = (0..stages).map(doubled).collect();
        let kwargs = json!({
            "n_stages": stages, "features_per_stage": features,
            "conv_op": format!("torch.nn.modules.conv.Conv{dims}d"),
            "kernel_sizes": old.conv_kernel_sizes, "strides": old.pool_op_kernel_sizes,
            convs: old.n_conv_per_stage_encoder, "n_conv_per_stage_decoder": old.n_conv_per_stage_decoder,
            "conv_bias": true,
            "norm_op": format!("torch.nn.modules.instancenorm.InstanceNorm{dims}d"),
            "norm_op_kwargs": {"eps": 1e-5, "affine": true},
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": true},
        });
        serde_json::from_value(json!({"network_class_name": old.class, "arch_kwargs": kwargs})).map_err(wrong)
    }

    /// Whether it normalises by instance norm.
    pub(super) fn has_instance_norm(&self) -> bool {
        let norm = self.arch_kwargs.get("norm_op").and_then(Value::as_str);
        norm.is_some_and(|norm| norm.contains("InstanceNorm"))
    }

    /// Puts batch norm in place of its norm, as `nnUNetTrainerBN` does.
    pub(super) fn take_batch_norm(&mut self, dims: usize) {
        let norm = format!("torch.nn.modules.batchnorm.BatchNorm{dims}d");
        self.arch_kwargs.insert("norm_op".into(), norm.into());
        self.arch_kwargs.insert("norm_op_kwargs".into(), json!({"eps": 1e-5, "affine": true}));
    }

    /// Name and config of the architecture that it is, for so many input channels and classes.
    ///
    /// # Errors
    /// When its class or one of its arguments is not supported; the message names it.
    pub(super) fn config(&self, dims: usize, channels: usize, classes: usize) -> Result<(&'static str, Value), LoadError> {
        let class = self.network_class_name.as_str();
        let (name, count, convs) = match class.rsplit('.').next() {
            Some("PlainConvUNet") => ("plain_conv_unet", "n_conv_per_stage", "convs_per_stage"),
            Some("ResidualEncoderUNet") => ("residual_encoder_unet", "n_blocks_per_stage", "blocks_per_stage"),
            _ => return Err(unknown(class)),
        };
        let mut args = self.arch_kwargs.clone();
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
        // what is absent or null is None, as the classes' own defaults are: no norm, no activation,
        // no bias
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
        // PyTorch's batch norm has parameters unless it is told otherwise, its instance norm has
        // none
        let affine = told("norm_op_kwargs").get("affine").map_or(batch, |told| *told == json!(true));
        let norm = match (told("norm_op").is_null(), batch, affine) {
            (true, ..) => "none",
            (false, true, true) => "batch",
            (false, true, false) => return Err(wrong("norm_op_kwargs")),
            (false, false, true) => "instance",
            (false, false, false) => "instance_plain",
        };
        config["norm"] = norm.into();
        let biases: &[&str] = if name == "plain_conv_unet" { &["conv_bias", "transpose_bias"] } else { &["conv_bias"] };
        for key in biases {
            config[*key] = (!off("conv_bias")).into();
        }
        Ok((name, config))
    }
}
