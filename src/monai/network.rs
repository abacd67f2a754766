//! `network_def` of a bundle's config as architecture and config of a card. What the tensors tell as well is left to them.

use serde_json::{Map, Value, json};

use super::bad;
use super::transforms::Call;
use crate::error::{LoadError, LoadErrorKind};
use crate::model::AdnOrdering;

mod later;

/// MONAI's networks that this version builds.
const KNOWN: &str = "AttentionUnet, BasicUNet, DynUNet, SegResNet, SegResNetDS, SwinUNETR, UNet, UNETR and VNet";

/// Arguments that matter to training alone.
const TRAINING: [&str; 8] =
    ["dropout", "dropout_rate", "dropout_prob", "dropout_prob_down", "dropout_prob_up", "dropout_dim", "deep_supervision", "deep_supr_num"];

/// Arguments that MONAI takes None for with the effect of a number or flag that is not told, or of false, for each of
/// the networks; None is refused for others, as MONAI fails with it. Those of norms and activations are read.
const NULLABLE: [(&str, &[&str]); 9] = [
    ("UNETR", &["conv_block", "res_block", "qkv_bias", "save_attn"]),
    ("AttentionUnet", &["dropout"]),
    ("VNet", &["bias", "dropout_prob_down"]),
    ("UNet", &["dropout", "bias", "act", "norm"]),
    ("DynUNet", &["dropout", "filters", "deep_supervision", "res_block", "trans_bias"]),
    ("BasicUNet", &["act", "norm", "bias", "dropout"]),
    ("SegResNet", &["dropout_prob", "norm_name"]),
    ("SegResNetDS", &["blocks_up", "preprocess", "resolution"]),
    ("SwinUNETR", &["hyena_stages", "use_checkpoint", "use_hyena", "img_size"]),
];

/// `{"architecture": .., "config": {..}}`.
pub(super) fn card(definition: Option<&Value>) -> Result<Map<String, Value>, LoadError> {
    let call = definition.and_then(Call::of).ok_or_else(|| bad("the bundle's config has no network_def that can be read"))?;
    type Read = fn(&Call<'_>) -> Result<Map<String, Value>, LoadError>;
    let (name, architecture, read): (_, _, Read) = match call.class {
        "UNETR" => ("UNETR", "unetr", unetr),
        "AttentionUnet" => ("AttentionUnet", "attention_unet", attention_unet),
        "VNet" => ("VNet", "vnet", vnet),
        "UNet" | "Unet" => ("UNet", "monai_unet", unet),
        "DynUNet" | "DynUnet" | "Dynunet" => ("DynUNet", "plain_conv_unet", dyn_unet),
        "BasicUNet" | "BasicUnet" | "Basicunet" | "basicunet" => ("BasicUNet", "basic_unet", later::basic_unet),
        "SegResNet" => ("SegResNet", "seg_res_net", later::seg_res_net),
        "SegResNetDS" => ("SegResNetDS", "seg_res_net_ds", later::seg_res_net_ds),
        "SwinUNETR" => ("SwinUNETR", "swin_unetr", later::swin_unetr),
        other => {
            let text = format!("the bundle's network {other} is not supported; of MONAI's this version builds {KNOWN}");
            return Err(LoadError::new(LoadErrorKind::UnknownArchitecture, text));
        }
    };
    let nullable = NULLABLE.iter().find(|(network, _)| *network == name).map_or(&[][..], |(_, keys)| keys);
    call.no_nulls(nullable)?;
    let mut config = read(&call)?;
    for (from, to) in [("in_channels", "in_channels"), ("out_channels", "classes")] {
        if let Some(value) = call.get(from) {
            config.insert(to.into(), whole(&call, from, value)?);
        }
    }
    let Value::Object(card) = json!({"architecture": architecture, "config": config}) else { return Err(bad("an object is one")) };
    Ok(card)
}

fn wrong(call: &Call<'_>, key: &str) -> LoadError {
    let value = call.get(key).unwrap_or(&Value::Null);
    bad(format!("the argument {key} = {value} of the bundle's {} is not supported", call.class))
}

fn whole(call: &Call<'_>, key: &str, value: &Value) -> Result<Value, LoadError> {
    value.as_u64().map(Value::from).ok_or_else(|| wrong(call, key))
}

/// A name, or a list of a name and arguments: the name in small letters, and the arguments.
fn named(value: &Value) -> Option<(String, Map<String, Value>)> {
    match value {
        Value::String(name) => Some((name.to_lowercase(), Map::new())),
        Value::Array(list) => match &list[..] {
            [Value::String(name)] => Some((name.to_lowercase(), Map::new())),
            [Value::String(name), Value::Object(arguments)] => Some((name.to_lowercase(), arguments.clone())),
            _ => None,
        },
        _ => None,
    }
}

/// Refuses an activation or a norm that is told unless it is one of these, with these arguments alone.
fn only(call: &Call<'_>, key: &str, names: &[&str], arguments: &[(&str, Value)]) -> Result<(), LoadError> {
    let Some(value) = call.get(key) else { return Ok(()) };
    let fits = named(value).is_some_and(|(name, told)| {
        names.contains(&name.as_str())
            && told.iter().all(|(key, value)| {
                key == "inplace" || arguments.iter().any(|(known, wanted)| known == key && (wanted.is_null() || wanted == value))
            })
    });
    if fits { Ok(()) } else { Err(wrong(call, key)) }
}

/// The norm of a config, of what `only` let pass: MONAI's `absent` where nothing is told, none where None or an empty name is.
fn norm(call: &Call<'_>, key: &str, absent: &'static str) -> Value {
    let affine = |told: &Map<String, Value>| told.get("affine").is_some_and(|v| *v == json!(true));
    match call.get(key).map(named) {
        None if call.is_null(key) => "none".into(),
        None => absent.into(),
        Some(Some((name, _))) if name.is_empty() => "none".into(),
        Some(Some((name, _))) if name == "batch" => "batch".into(),
        Some(Some((_, told))) if affine(&told) => "instance".into(),
        Some(_) => "instance_plain".into(),
    }
}

/// As many numbers as the network has dimensions, from one or from a list.
fn each(value: &Value, dims: usize) -> Option<Value> {
    match value {
        Value::Number(_) => Some(json!(vec![value; dims])),
        Value::Array(list) if list.len() == dims && list.iter().all(Value::is_u64) => Some(value.clone()),
        _ => None,
    }
}

fn dims(call: &Call<'_>) -> Result<usize, LoadError> {
    match call.get("spatial_dims").map_or(Some(3), Value::as_u64) {
        Some(2) => Ok(2),
        Some(3) => Ok(3),
        _ => Err(wrong(call, "spatial_dims")),
    }
}

fn unetr(call: &Call<'_>) -> Result<Map<String, Value>, LoadError> {
    let read = ["in_channels", "out_channels", "img_size", "feature_size", "hidden_size", "mlp_dim", "num_heads", "proj_type", "pos_embed"];
    let more = ["norm_name", "conv_block", "res_block", "save_attn", "spatial_dims"];
    call.only(&[&read[..], &more[..]].concat(), &TRAINING, &[("qkv_bias", json!(false))])?;
    only(call, "norm_name", &["instance"], &[("affine", json!(false))])?;
    let mut config = Map::new();
    let dims = dims(call)?;
    let image = call.get("img_size").and_then(|v| each(v, dims)).ok_or_else(|| wrong(call, "img_size"))?;
    if dims == 2 {
        let sides = image.as_array().into_iter().flatten().cloned();
        config.insert("dims".into(), 2.into());
        config.insert("image".into(), std::iter::once(json!(1)).chain(sides).collect());
    } else {
        config.insert("image".into(), image);
    }
    config.insert("heads".into(), call.get("num_heads").cloned().unwrap_or_else(|| json!(12)));
    for (from, to) in [("feature_size", "feature_size"), ("hidden_size", "hidden"), ("mlp_dim", "mlp")] {
        if let Some(value) = call.get(from) {
            config.insert(to.into(), whole(call, from, value)?);
        }
    }
    for key in ["conv_block", "res_block"] {
        if let Some(value) = call.get(key) {
            config.insert(key.into(), value.clone());
        } else if call.is_null(key) {
            config.insert(key.into(), false.into());
        }
    }
    config.insert("norm".into(), "instance".into());
    // called pos_embed before MONAI 1.4
    if let Some(kind) = call.get("proj_type").or_else(|| call.get("pos_embed")) {
        match kind.as_str() {
            Some("conv" | "perceptron") => config.insert("projection".into(), kind.clone()),
            _ => return Err(wrong(call, "proj_type")),
        };
    }
    Ok(config)
}

fn attention_unet(call: &Call<'_>) -> Result<Map<String, Value>, LoadError> {
    let fixed = [("kernel_size", json!(3)), ("up_kernel_size", json!(3))];
    call.only(&["spatial_dims", "in_channels", "out_channels", "channels", "strides"], &TRAINING, &fixed)?;
    let list = |key: &str| {
        let list = call.get(key).and_then(Value::as_array).filter(|list| list.iter().all(Value::is_u64));
        list.ok_or_else(|| wrong(call, key))
    };
    let (channels, strides) = (list("channels")?, list("strides")?);
    let below = channels.len().saturating_sub(1);
    let strides = strides.get(..below).ok_or_else(|| wrong(call, "strides"))?;
    let Value::Object(config) = json!({"dims": dims(call)?, "channels": channels, "strides": strides}) else {
        return Err(wrong(call, "strides"));
    };
    Ok(config)
}

fn vnet(call: &Call<'_>) -> Result<Map<String, Value>, LoadError> {
    call.only(&["spatial_dims", "in_channels", "out_channels", "act"], &TRAINING, &[("bias", json!(false))])?;
    only(call, "act", &["elu", "prelu"], &[("alpha", json!(1.0)), ("init", Value::Null), ("num_parameters", Value::Null)])?;
    let mut config = Map::new();
    config.insert("dims".into(), dims(call)?.into());
    config.insert("flavour".into(), "monai".into());
    let activation = call.get("act").and_then(named).map_or_else(|| "elu".to_owned(), |(name, _)| name);
    config.insert("activation".into(), activation.into());
    Ok(config)
}

fn unet(call: &Call<'_>) -> Result<Map<String, Value>, LoadError> {
    let read = ["spatial_dims", "dimensions", "in_channels", "out_channels", "channels", "strides", "kernel_size", "up_kernel_size"];
    let more = ["num_res_units", "act", "norm", "bias", "adn_ordering"];
    call.only(&[&read[..], &more[..]].concat(), &TRAINING, &[])?;
    only(call, "norm", &["instance", "batch", ""], &[("affine", Value::Null), ("eps", json!(1e-5)), ("momentum", Value::Null)])?;
    only(call, "act", &["prelu", "relu", "leakyrelu", ""], &[("negative_slope", json!(0.01)), ("init", Value::Null)])?;
    let ordering = call.get("adn_ordering").map_or("NDA".into(), |v| v.as_str().unwrap_or_default().to_uppercase());
    let ordering: AdnOrdering = serde_json::from_value(ordering.into()).map_err(|_| wrong(call, "adn_ordering"))?;
    // called dimensions before MONAI 0.9
    let dims = if call.get("spatial_dims").is_none() && call.get("dimensions") == Some(&json!(2)) { 2 } else { dims(call)? };
    let channels = call.get("channels").and_then(Value::as_array).ok_or_else(|| wrong(call, "channels"))?;
    let strides = call.get("strides").and_then(Value::as_array).and_then(|list| list.get(..channels.len().checked_sub(1)?));
    let strides = strides.and_then(|list| list.iter().map(|v| each(v, dims)).collect::<Option<Vec<_>>>());
    let mut config = Map::new();
    config.insert("dims".into(), dims.into());
    config.insert("channels".into(), channels.clone().into());
    config.insert("strides".into(), strides.ok_or_else(|| wrong(call, "strides"))?.into());
    for (from, to) in [("kernel_size", "kernel"), ("up_kernel_size", "up_kernel"), ("num_res_units", "residual_units")] {
        if let Some(value) = call.get(from) {
            let one = match value {
                Value::Array(list) if list.windows(2).all(|pair| pair[0] == pair[1]) => list.first().unwrap_or(value),
                other => other,
            };
            config.insert(to.into(), whole(call, from, one)?);
        }
    }
    config.insert("norm".into(), norm(call, "norm", "instance_plain"));
    let activation = match call.get("act").and_then(named) {
        None if call.is_null("act") => "none".to_owned(),
        None => "prelu".to_owned(),
        Some((name, _)) if name.is_empty() => "none".to_owned(),
        Some((name, _)) if name == "leakyrelu" => "leaky_relu".to_owned(),
        Some((name, _)) => name,
    };
    config.insert("activation".into(), activation.into());
    config.insert("adn_ordering".into(), json!(ordering));
    if call.is_null("bias") || call.get("bias") == Some(&json!(false)) {
        config.insert("bias".into(), false.into());
    }
    Ok(config)
}

fn dyn_unet(call: &Call<'_>) -> Result<Map<String, Value>, LoadError> {
    let read = ["spatial_dims", "in_channels", "out_channels", "kernel_size", "strides", "upsample_kernel_size", "filters"];
    let more = ["norm_name", "act_name", "res_block", "trans_bias"];
    call.only(&[&read[..], &more[..]].concat(), &TRAINING, &[])?;
    only(call, "norm_name", &["instance", "instance_nvfuser", "batch", ""], &[("affine", Value::Null), ("eps", json!(1e-5))])?;
    only(call, "act_name", &["leakyrelu"], &[("negative_slope", json!(0.01))])?;
    // without an argument PyTorch's leaky ReLU has the slope of 0.01 too
    let dims = dims(call)?;
    let all = |key: &str| {
        let list = call.get(key).and_then(Value::as_array).ok_or_else(|| wrong(call, key))?;
        list.iter().map(|v| each(v, dims)).collect::<Option<Vec<Value>>>().ok_or_else(|| wrong(call, key))
    };
    let (kernels, strides, up) = (all("kernel_size")?, all("strides")?, all("upsample_kernel_size")?);
    if strides.first() != Some(&json!(vec![1; dims])) {
        return Err(wrong(call, "strides"));
    }
    if strides.get(1..) != Some(&up[..]) || kernels.len() != strides.len() {
        return Err(wrong(call, "upsample_kernel_size"));
    }
    let mut config = Map::new();
    config.insert("dims".into(), dims.into());
    config.insert("kernels".into(), kernels.into());
    config.insert("strides".into(), strides.into());
    config.insert("decoder_kernels".into(), "below".into());
    config.insert("norm".into(), norm(call, "norm_name", "instance"));
    config.insert("activation".into(), "leaky_relu".into());
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read() -> Result<(), LoadError> {
        let unetr = json!({"_target_": "monai.networks.nets.UNETR", "in_channels": 1, "out_channels": 14, "img_size": 96, "hidden_size": 768,
            "pos_embed": "perceptron", "norm_name": ["instance", {"affine": false}], "res_block": true, "dropout_rate": 0.0});
        let expected = json!({"architecture": "unetr", "config": {"image": [96, 96, 96], "heads": 12, "hidden": 768,
            "projection": "perceptron", "res_block": true, "norm": "instance", "in_channels": 1, "classes": 14}});
        assert_eq!(Value::from(card(Some(&unetr))?), expected);
        let attention = json!({"_target_": "AttentionUnet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 16],
            "strides": [2, 2, 2]});
        let expected = json!({"architecture": "attention_unet", "config": {"dims": 3, "channels": [4, 8, 16], "strides": [2, 2],
            "in_channels": 1, "classes": 2}});
        assert_eq!(Value::from(card(Some(&attention))?), expected);
        let vnet = json!({"_target_": "VNet", "act": ["elu", {"inplace": true}], "dropout_prob_up": [0.5, 0.5]});
        assert_eq!(
            Value::from(card(Some(&vnet))?),
            json!({"architecture": "vnet", "config": {"dims": 3, "flavour": "monai", "activation": "elu"}})
        );
        let unet = json!({"_target_": "UNet", "dimensions": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 6, 8], "strides": [2, [2, 1], 2],
            "kernel_size": [3, 3], "num_res_units": 2, "norm": ["batch", {"momentum": 0.9}], "act": "RELU"});
        let expected = json!({"architecture": "monai_unet", "config": {"dims": 2, "channels": [4, 6, 8], "strides": [[2, 2], [2, 1]],
            "kernel": 3, "residual_units": 2, "norm": "batch", "activation": "relu", "adn_ordering": "NDA", "in_channels": 1, "classes": 2}});
        assert_eq!(Value::from(card(Some(&unet))?), expected);
        let dynunet = json!({"_target_": "DynUNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "kernel_size": [3, [1, 3], 3],
            "strides": [1, [2, 1], 2], "upsample_kernel_size": [[2, 1], 2]});
        let expected = json!({"architecture": "plain_conv_unet", "config": {"dims": 2, "kernels": [[3, 3], [1, 3], [3, 3]],
            "strides": [[1, 1], [2, 1], [2, 2]], "decoder_kernels": "below", "norm": "instance", "activation": "leaky_relu",
            "in_channels": 1, "classes": 2}});
        assert_eq!(Value::from(card(Some(&dynunet))?), expected);
        Ok(())
    }

    /// A definition of each network with further arguments.
    fn definition(class: &str, more: &Value) -> Value {
        let mut call = match class {
            "UNETR" => json!({"img_size": 96}),
            "AttentionUnet" | "UNet" => json!({"spatial_dims": 3, "channels": [4, 8], "strides": [2]}),
            "DynUNet" => json!({"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}),
            _ => json!({}),
        };
        call["_target_"] = class.into();
        let into = call.as_object_mut().zip(more.as_object());
        into.into_iter().for_each(|(call, more)| call.extend(more.clone()));
        call
    }

    #[test]
    fn null_is_none_where_monai_takes_it_and_refused_elsewhere() {
        for (class, more, key, value) in [
            ("UNet", json!({"norm": null}), "norm", json!("none")),
            ("UNet", json!({"norm": ""}), "norm", json!("none")),
            ("UNet", json!({}), "norm", json!("instance_plain")),
            ("UNet", json!({"norm": "INSTANCE"}), "norm", json!("instance_plain")),
            ("UNet", json!({"norm": ["instance", {"affine": true}]}), "norm", json!("instance")),
            ("UNet", json!({"norm": ["instance", {"affine": null}]}), "norm", json!("instance_plain")),
            ("UNet", json!({"act": null}), "activation", json!("none")),
            ("UNet", json!({"act": ""}), "activation", json!("none")),
            ("UNet", json!({}), "activation", json!("prelu")),
            ("UNet", json!({"adn_ordering": "and"}), "adn_ordering", json!("ADN")),
            ("UNet", json!({"bias": null, "dropout": null}), "bias", json!(false)),
            ("DynUNet", json!({}), "norm", json!("instance")),
            ("DynUNet", json!({"norm_name": "instance"}), "norm", json!("instance_plain")),
            ("DynUNet", json!({"norm_name": "", "filters": null, "dropout": null}), "norm", json!("none")),
            ("UNETR", json!({"conv_block": null, "qkv_bias": null}), "conv_block", json!(false)),
            ("VNet", json!({"bias": null, "dropout_prob_down": null}), "activation", json!("elu")),
            ("VNet", json!({"act": "prelu"}), "activation", json!("prelu")),
        ] {
            let card = card(Some(&definition(class, &more))).unwrap_or_else(|e| panic!("{class} {more}: {e}"));
            assert_eq!(card["config"][key], value, "{class} {more}");
        }
        for (class, keys) in [
            (
                "UNet",
                &["spatial_dims", "in_channels", "channels", "strides", "kernel_size", "up_kernel_size", "num_res_units", "adn_ordering"][..],
            ),
            ("DynUNet", &["norm_name", "act_name", "strides", "deep_supr_num"]),
            ("UNETR", &["norm_name", "img_size", "num_heads", "hidden_size", "proj_type", "dropout_rate", "spatial_dims"]),
            ("VNet", &["act", "spatial_dims", "dropout_prob_up", "dropout_dim"]),
            ("AttentionUnet", &["kernel_size", "up_kernel_size", "strides"]),
        ] {
            for key in keys {
                let mut call = definition(class, &json!({}));
                call[*key] = Value::Null;
                let e = card(Some(&call)).map(|_| ()).expect_err("MONAI fails with it").to_string();
                assert!(e.contains(&format!("{key} = null")), "{class} {key}: {e}");
            }
        }
    }

    #[test]
    fn what_is_not_built_is_named() {
        let dynunet = |key: &str, value: Value| {
            let mut call = json!({"_target_": "DynUNet", "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]});
            call[key] = value;
            call
        };
        for (definition, word) in [
            (json!({"_target_": "DiNTS"}), "DiNTS"),
            (json!({"_target_": "UNETR", "img_size": 96, "qkv_bias": true}), "qkv_bias"),
            (json!({"_target_": "UNETR", "img_size": 96, "norm_name": "batch"}), "norm_name"),
            (json!({"_target_": "UNETR", "img_size": [96, 96]}), "img_size"),
            (json!({"_target_": "UNETR", "img_size": 96, "proj_type": "other"}), "proj_type"),
            (json!({"_target_": "AttentionUnet", "channels": [4, 8, 16], "strides": [2]}), "strides"),
            (json!({"_target_": "AttentionUnet", "channels": [4, 8], "strides": [2], "kernel_size": 5}), "kernel_size"),
            (json!({"_target_": "VNet", "act": "relu"}), "act"),
            (json!({"_target_": "VNet", "bias": true}), "bias"),
            (json!({"_target_": "VNet", "spatial_dims": 1}), "spatial_dims"),
            (json!({"_target_": "VNet", "out_channels": "$count()"}), "out_channels"),
            (json!({"_target_": "VNet", "depth": 3}), "depth"),
            (dynunet("strides", json!([2, 2, 2])), "strides"),
            (dynunet("upsample_kernel_size", json!([2, 1])), "upsample_kernel_size"),
            (dynunet("act_name", json!("relu")), "act_name"),
            (dynunet("norm_name", json!(["group", {"num_groups": 4}])), "norm_name"),
            (json!({"_target_": "UNet", "channels": [4, 8], "strides": [2], "kernel_size": [3, 3, 1]}), "kernel_size"),
            (json!({"_target_": "UNet", "channels": [4, 8], "strides": []}), "strides"),
            (json!({"_target_": "UNet", "channels": [4, 8], "strides": [2], "adn_ordering": "N"}), "adn_ordering"),
            (json!({"_target_": "UNet", "channels": [4, 8], "strides": [2], "norm": "group"}), "norm"),
            (json!("$network()"), "network_def"),
        ] {
            let e = card(Some(&definition)).map(|_| ()).expect_err("it is not built").to_string();
            assert!(e.contains(word), "{e} does not name {word}");
        }
        assert!(card(None).is_err());
    }
}
