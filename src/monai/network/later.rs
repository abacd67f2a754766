//! `BasicUNet`, `SegResNet`, `SegResNetDS` and `SwinUNETR`.

use serde_json::{Map, Value, json};

use super::{Call, LoadError, TRAINING, dims, each, named, only, whole, wrong};

/// The norm of a config in the words of a card: `absent` where nothing is told; instance norm
/// without parameters unless `affine`.
fn norm(call: &Call<'_>, key: &str, absent: Value, affine: bool) -> Result<Value, LoadError> {
    let arguments = [("affine", Value::Null), ("eps", json!(1e-5)), ("momentum", Value::Null), ("num_groups", Value::Null)];
    only(call, key, &["instance", "instance_nvfuser", "batch", "group", ""], &arguments)?;
    let Some((name, told)) = call.get(key).and_then(named) else {
        return Ok(if call.is_null(key) { "none".into() } else { absent });
    };
    let told_affine = told.get("affine").filter(|v| !v.is_null()).map(|v| *v == json!(true));
    Ok(match name.as_str() {
        "" => "none".into(),
        "batch" | "group" if told_affine == Some(false) => return Err(wrong(call, key)),
        "batch" => "batch".into(),
        "group" => match told.get("num_groups").and_then(Value::as_u64) {
            Some(groups) => json!({"group": groups}),
            None => return Err(wrong(call, key)),
        },
        _ if told_affine.unwrap_or(affine) => "instance".into(),
        _ => "instance_plain".into(),
    })
}

/// The activation of a config in the words of a card, with its slope where it is leaky; `absent`
/// where nothing is told.
fn activation(call: &Call<'_>, names: &[&str], absent: (&str, Value), into: &mut Map<String, Value>) -> Result<(), LoadError> {
    only(call, "act", names, &[("negative_slope", Value::Null), ("init", Value::Null), ("num_parameters", json!(1))])?;
    let (name, slope) = match call.get("act").and_then(named) {
        None if call.is_null("act") => ("none".to_owned(), Value::Null),
        None => (absent.0.to_owned(), absent.1),
        Some((name, _)) if name.is_empty() => ("none".to_owned(), Value::Null),
        Some((name, told)) if name == "leakyrelu" => {
            let slope = told.get("negative_slope").cloned().unwrap_or_else(|| json!(0.01));
            ("leaky_relu".to_owned(), if slope.is_number() { slope } else { return Err(wrong(call, "act")) })
        }
        Some((name, _)) => (name, Value::Null),
    };
    into.insert("activation".into(), name.into());
    if !slope.is_null() {
        into.insert("slope".into(), slope);
    }
    Ok(())
}

/// Numbers in a list, as they are.
fn list(call: &Call<'_>, key: &str) -> Result<Option<Value>, LoadError> {
    let whole = |v: &&Value| v.as_array().is_some_and(|list| list.iter().all(Value::is_u64));
    call.get(key).map(|v| Some(v).filter(whole).cloned().ok_or_else(|| wrong(call, key))).transpose()
}

fn flag(call: &Call<'_>, key: &str) -> Result<Option<bool>, LoadError> {
    call.get(key).map(|v| v.as_bool().ok_or_else(|| wrong(call, key))).transpose()
}

/// MONAI's name of a way to upsample in the words of a card.
fn upsampling(call: &Call<'_>, key: &str, absent: &'static str) -> Result<Value, LoadError> {
    Ok(match call.get(key).map(|v| v.as_str()) {
        None => absent.into(),
        Some(Some("deconv")) => "deconv".into(),
        Some(Some("nontrainable")) => "linear".into(),
        Some(_) => return Err(wrong(call, key)),
    })
}

pub(super) fn basic_unet(call: &Call<'_>) -> Result<Map<String, Value>, LoadError> {
    let read = ["spatial_dims", "dimensions", "in_channels", "out_channels", "features", "act", "norm", "bias", "upsample"];
    call.only(&read, &TRAINING, &[])?;
    let mut config = Map::new();
    let dims = if call.get("spatial_dims").is_none() && call.get("dimensions") == Some(&json!(2)) { 2 } else { dims(call)? };
    config.insert("dims".into(), dims.into());
    let features = match list(call, "features")? {
        None => json!([32, 32, 64, 128, 256, 32]),
        Some(list) if list.as_array().is_some_and(|list| list.len() == 6) => list,
        Some(_) => return Err(wrong(call, "features")),
    };
    config.insert("features".into(), features);
    config.insert("norm".into(), norm(call, "norm", "instance".into(), false)?);
    activation(call, &["prelu", "relu", "leakyrelu", ""], ("leaky_relu", json!(0.1)), &mut config)?;
    config.insert("bias".into(), flag(call, "bias")?.unwrap_or(!call.is_null("bias")).into());
    config.insert("upsampling".into(), upsampling(call, "upsample", "deconv")?);
    Ok(config)
}

/// The arguments that `SegResNet` and `SegResNetDS` share.
fn residual(call: &Call<'_>, filters: u64, [norm_absent, upsample]: [&'static str; 2]) -> Result<Map<String, Value>, LoadError> {
    let mut config = Map::new();
    config.insert("dims".into(), dims(call)?.into());
    let filters = call.get("init_filters").map_or(Ok(json!(filters)), |v| whole(call, "init_filters", v))?;
    config.insert("init_filters".into(), filters);
    config.insert("blocks_down".into(), list(call, "blocks_down")?.unwrap_or_else(|| json!([1, 2, 2, 4])));
    let absent = if norm_absent == "group" { json!({"group": 8}) } else { norm_absent.into() };
    config.insert("norm".into(), norm(call, "norm", absent, norm_absent == "batch")?);
    activation(call, &["relu", "leakyrelu", ""], ("relu", Value::Null), &mut config)?;
    config.insert("upsampling".into(), upsampling(call, "upsample_mode", upsample)?);
    Ok(config)
}

pub(super) fn seg_res_net(call: &Call<'_>) -> Result<Map<String, Value>, LoadError> {
    let read = ["spatial_dims", "init_filters", "in_channels", "out_channels", "act", "norm", "blocks_down", "blocks_up", "upsample_mode"];
    call.only(&[&read[..], &["norm_name", "num_groups"]].concat(), &TRAINING, &[("use_conv_final", json!(true))])?;
    let mut config = residual(call, 8, ["group", "linear"])?;
    config.insert("blocks_up".into(), list(call, "blocks_up")?.unwrap_or_else(|| json!([1, 1, 1])));
    // as it was called before MONAI 0.5
    match call.get("norm_name").map(|v| v.as_str().unwrap_or("?").to_lowercase()).as_deref() {
        None | Some("") => {}
        Some("group") => {
            let groups = call.get("num_groups").map_or(Ok(json!(8)), |v| whole(call, "num_groups", v))?;
            config.insert("norm".into(), json!({"group": groups}));
        }
        Some(_) => return Err(wrong(call, "norm_name")),
    }
    Ok(config)
}

pub(super) fn seg_res_net_ds(call: &Call<'_>) -> Result<Map<String, Value>, LoadError> {
    let read = ["spatial_dims", "init_filters", "in_channels", "out_channels", "act", "norm", "blocks_down", "blocks_up", "upsample_mode"];
    call.only(&[&read[..], &["resolution", "dsdepth"]].concat(), &TRAINING, &[("preprocess", Value::Null)])?;
    let mut config = residual(call, 32, ["batch", "deconv"])?;
    let below = config["blocks_down"].as_array().map_or(0, Vec::len).saturating_sub(1);
    config.insert("blocks_up".into(), list(call, "blocks_up")?.unwrap_or_else(|| json!(vec![1; below])));
    if let Some(resolution) = call.get("resolution") {
        let numbers = resolution.as_array().filter(|list| list.iter().all(Value::is_number));
        config.insert("resolution".into(), numbers.ok_or_else(|| wrong(call, "resolution"))?.clone().into());
    }
    Ok(config)
}

pub(super) fn swin_unetr(call: &Call<'_>) -> Result<Map<String, Value>, LoadError> {
    let read = ["in_channels", "out_channels", "depths", "num_heads", "window_size", "qkv_bias", "mlp_ratio", "feature_size"];
    let more = ["norm_name", "normalize", "patch_norm", "spatial_dims", "downsample", "use_v2"];
    // the extent is that of the windows since MONAI 1.5
    let neutral = ["img_size", "drop_rate", "attn_drop_rate", "dropout_path_rate", "use_checkpoint", "use_flash_attention"];
    let fixed = [("patch_size", json!(2)), ("use_hyena", json!(false)), ("hyena_stages", Value::Null)];
    call.only(&[&read[..], &more[..]].concat(), &neutral, &fixed)?;
    let (mut config, dims) = (Map::new(), dims(call)?);
    config.insert("dims".into(), dims.into());
    for (from, to) in [("depths", "depths"), ("num_heads", "heads")] {
        if let Some(numbers) = list(call, from)? {
            config.insert(to.into(), numbers);
        }
    }
    let window = call.get("window_size").map_or_else(|| Some(json!(vec![7; dims])), |v| each(v, dims));
    config.insert("window".into(), window.ok_or_else(|| wrong(call, "window_size"))?);
    if let Some(ratio) = call.number("mlp_ratio")? {
        config.insert("mlp_ratio".into(), ratio.into());
    }
    let feature = call.get("feature_size").map_or(Ok(json!(24)), |v| whole(call, "feature_size", v))?;
    config.insert("feature_size".into(), feature);
    config.insert("norm".into(), norm(call, "norm_name", "instance_plain".into(), false)?);
    for (from, to) in [("qkv_bias", "qkv_bias"), ("normalize", "normalize"), ("patch_norm", "patch_norm"), ("use_v2", "v2")] {
        if let Some(value) = flag(call, from)? {
            config.insert(to.into(), value.into());
        }
    }
    config.entry("normalize").or_insert_with(|| true.into());
    match call.get("downsample").map(|v| v.as_str()) {
        None => drop(config.insert("merging".into(), "merging".into())),
        Some(Some(name @ ("merging" | "mergingv2"))) => drop(config.insert("merging".into(), name.into())),
        Some(_) => return Err(wrong(call, "downsample")),
    }
    Ok(config)
}
