//! Networks of convolutions: kernels, widths and, where upsampling is a transposed convolution, strides are shapes.

use serde_json::{Value, json};

use super::{Dialect, Guess, Shapes};

/// One number where all are alike.
fn per_stage(counts: &[usize]) -> Value {
    match counts {
        [first, rest @ ..] if rest.iter().all(|n| n == first) => json!(first),
        _ => json!(counts),
    }
}

pub(super) fn u_transformer(s: &Shapes<'_>) -> Option<Guess> {
    let first = "enc.0.a.conv.weight";
    let levels = s.count(|i| format!("enc.{i}.a.conv.weight"));
    let (in_channels, dims) = (s.dim(first, 1)?, s.kernel(first)?.len());
    let classes = s.dim("head.weight", 0)?;
    let channels = s.each(levels, |i| s.dim(&format!("enc.{i}.a.conv.weight"), 0))?;
    let mhsa = s.has("mhsa.attn.wq.weight");
    let gates = s.count(|k| format!("dec.{k}.mhca.gate_conv.weight"));
    let themyr = s.has("dec.0.mhca.reduce_s.weight") || (mhsa && !s.has("mhsa.attn.wo.weight"));
    let guess = Guess::new(
        "u_transformer",
        json!({"dims": dims, "in_channels": in_channels, "classes": classes, "channels": channels, "mhsa": mhsa, "mhca_levels": gates,
            "profile": if themyr { "themyr2021" } else { "paper2021" }}),
    );
    let width = if mhsa { channels.last() } else { channels.get(levels.checked_sub(2)?) };
    Some(if mhsa || gates > 0 { guess.asks_heads(*width?) } else { guess })
}

/// What nnU-Net's networks tell alike: their first convolution, the first of each stage, and the decoder.
fn nnunet(s: &Shapes<'_>, name: &'static str, first: &str, stage: impl Fn(usize) -> String) -> Option<Guess> {
    let stages = s.count(&stage);
    let below = stages.checked_sub(1)?;
    let dims = s.kernel(first)?.len();
    let kernels: Option<Vec<_>> = (0..stages).map(|i| s.kernel(&stage(i))).collect();
    // the decoder begins with the deepest stage; nnU-Net never strides in the first
    let strided = (1..stages).map(|i| s.kernel(&format!("decoder.transpconvs.{}.weight", below - i)));
    let strides: Option<Vec<_>> = std::iter::once(Some(vec![1; dims])).chain(strided).collect();
    Some(Guess::new(
        name,
        json!({"dims": dims, "in_channels": s.dim(first, 1)?, "classes": s.dim(&format!("decoder.seg_layers.{}.weight", below.checked_sub(1)?), 0)?,
            "features": s.each(stages, |i| s.dim(&stage(i), 0))?, "kernels": kernels?, "strides": strides?,
            "activation": "leaky_relu"}),
    ))
}

/// What nnU-Net v1 and MONAI's DynUNet do otherwise than nnU-Net v2.
fn variants(s: &Shapes<'_>, mut guess: Guess, stages: usize) -> Guess {
    let first = "encoder.stages.0.0.convs.0";
    let (running, parameters) = (s.has(&format!("{first}.norm.running_mean")), s.has(&format!("{first}.norm.weight")));
    // nnU-Net's norms have parameters, and leaky ReLU follows them; DynUNet's arguments say what they are
    let (fixed, default) = match s.dialect {
        Dialect::DynUnet => (false, "MONAI's default is \"instance\""),
        _ => (true, "nnU-Net's own is \"instance\""),
    };
    if running {
        guess.config.insert("norm".into(), "batch".into());
    } else if !(fixed && parameters) {
        guess = guess.asks_norm(parameters, default);
    }
    if !fixed {
        guess = guess.asks("activation", "\"leaky_relu\", MONAI's default, of slope 0.01; no other activation is supported");
    }
    let mut tell = |key: &str, value: Value| drop(guess.config.insert(key.into(), value));
    let last = stages.saturating_sub(2);
    let biased = [
        ("conv_bias", first.to_owned()),
        ("transpose_bias", "decoder.transpconvs.0".into()),
        ("head_bias", format!("decoder.seg_layers.{last}")),
    ];
    for (key, module) in biased {
        let conv = if key == "conv_bias" { ".conv" } else { "" };
        if !s.has(&format!("{module}{conv}.bias")) {
            tell(key, false.into());
        }
    }
    let encoder = |stage: usize| s.kernel(&format!("encoder.stages.{stage}.0.convs.0.conv.weight"));
    let decoder = |k: usize| s.kernel(&format!("decoder.stages.{k}.convs.0.conv.weight"));
    let below = stages - 1;
    if (0..below).any(|k| decoder(k) != encoder(below - 1 - k)) && (0..below).all(|k| decoder(k) == encoder(below - k)) {
        tell("decoder_kernels", "below".into());
    }
    if s.has("encoder.stages.1.0.skip.conv.weight") {
        tell("residual", true.into());
    }
    guess
}

fn decoder_convs(s: &Shapes<'_>) -> Vec<usize> {
    let stages = s.count(|k| format!("decoder.transpconvs.{k}.weight"));
    s.counts(stages, |k, i| format!("decoder.stages.{k}.convs.{i}.conv.weight"))
}

pub(super) fn plain_conv_unet(s: &Shapes<'_>) -> Option<Guess> {
    let conv = |stage: usize, i: usize| format!("encoder.stages.{stage}.0.convs.{i}.conv.weight");
    let mut guess = nnunet(s, "plain_conv_unet", &conv(0, 0), |stage| conv(stage, 0))?;
    let stages = s.count(|stage| conv(stage, 0));
    let (encoder, decoder) = (per_stage(&s.counts(stages, conv)), per_stage(&decoder_convs(s)));
    if encoder != decoder || !encoder.is_number() {
        guess.config.insert("decoder_convs_per_stage".into(), decoder);
    }
    guess.config.insert("convs_per_stage".into(), encoder);
    Some(variants(s, guess, stages))
}

pub(super) fn residual_encoder_unet(s: &Shapes<'_>) -> Option<Guess> {
    let conv = |stage: usize, i: usize| format!("encoder.stages.{stage}.blocks.{i}.conv1.conv.weight");
    let mut guess = nnunet(s, "residual_encoder_unet", "encoder.stem.convs.0.conv.weight", |stage| conv(stage, 0))?;
    let stages = s.count(|stage| conv(stage, 0));
    guess.config.insert("blocks_per_stage".into(), json!(s.counts(stages, conv)));
    let stem = "encoder.stem.convs.0";
    if s.has(&format!("{stem}.norm.running_mean")) {
        guess.config.insert("norm".into(), "batch".into());
    }
    if !s.has(&format!("{stem}.conv.bias")) {
        guess.config.insert("conv_bias".into(), false.into());
    }
    guess.config.insert("decoder_convs_per_stage".into(), per_stage(&decoder_convs(s)));
    Some(guess)
}

pub(super) fn unet2d(s: &Shapes<'_>) -> Option<Guess> {
    let first = "inc.double_conv.0.weight";
    let (base, in_channels, classes) = (s.dim(first, 0)?, s.dim(first, 1)?, s.dim("outc.conv.weight", 0)?);
    let bilinear = !s.has("up1.up.weight");
    Some(Guess::new("unet2d", json!({"in_channels": in_channels, "classes": classes, "base": base, "bilinear": bilinear})))
}

pub(super) fn attention_unet2d(s: &Shapes<'_>) -> Option<Guess> {
    let first = "Conv1.conv.0.weight";
    let (base, in_channels, classes) = (s.dim(first, 0)?, s.dim(first, 1)?, s.dim("Conv_1x1.weight", 0)?);
    s.has("Att5.W_g.0.weight")
        .then(|| Guess::new("attention_unet2d", json!({"in_channels": in_channels, "classes": classes, "base": base})))
}

pub(super) fn attention_unet(s: &Shapes<'_>) -> Option<Guess> {
    let first = "model.0.conv.0.conv.weight";
    let (dims, in_channels, classes) = (s.kernel(first)?.len(), s.dim(first, 1)?, s.dim("model.2.conv.weight", 0)?);
    let gate = |level: usize| format!("model.1{}", ".submodule.1".repeat(level));
    let levels = s.count(|level| format!("{}.attention.psi.0.conv.weight", gate(level)));
    let width = |level: usize| {
        let part = if level + 1 == levels { "" } else { ".0" };
        s.dim(&format!("{}.submodule{part}.conv.0.conv.weight", gate(level)), 0)
    };
    let channels: Option<Vec<u32>> = std::iter::once(s.dim(first, 0)).chain((0..levels).map(width)).collect();
    let config = json!({"dims": dims, "in_channels": in_channels, "classes": classes, "channels": channels?});
    let what = format!("the strides of the {levels} levels below the first, e.g. {:?}", vec![2; levels]);
    (levels > 0).then(|| Guess::new("attention_unet", config).asks("strides", what))
}

pub(super) fn monai_unet(s: &Shapes<'_>) -> Option<Guess> {
    let module = |level: usize| format!("model{}", ".1.submodule".repeat(level));
    let residual = s.has("model.0.conv.unit0.conv.weight");
    let (first, up) = if residual { (".conv.unit0", ".0") } else { ("", "") };
    let levels = s.count(|level| format!("{}.2{up}.conv.weight", module(level)));
    let conv = |level: usize| format!("{}{}{first}.conv.weight", module(level), if level < levels { ".0" } else { "" });
    let (kernel, up_kernel) = (s.kernel(&conv(0))?, s.kernel(&format!("model.2{up}.conv.weight"))?);
    let channels = s.each(levels + 1, |level| s.dim(&conv(level), 0))?;
    let norm = format!("model.0{first}.adn.N");
    let (running, parameters) = (s.has(&format!("{norm}.running_mean")), s.has(&format!("{norm}.weight")));
    let slope = format!("model.0{first}.adn.A.weight");
    let config = json!({"dims": kernel.len(), "in_channels": s.dim(&conv(0), 1)?, "classes": s.dim(&format!("model.2{up}.conv.weight"), 1)?,
        "channels": channels, "kernel": kernel.first()?, "up_kernel": up_kernel.first()?,
        "residual_units": s.count(|i| format!("model.0.conv.unit{i}.conv.weight")), "bias": s.has(&conv(0).replace("weight", "bias"))});
    let what = format!("the strides of the {levels} levels above the last, e.g. {:?}", vec![vec![2; kernel.len()]; levels]);
    let mut guess = Guess::new("monai_unet", config).asks("strides", what);
    if running {
        guess.config.insert("norm".into(), "batch".into());
    } else {
        guess = guess.asks_norm(parameters, "MONAI's default is \"instance_plain\", before the activation");
    }
    if s.has(&slope) {
        guess.config.insert("activation".into(), "prelu".into());
    } else {
        let what = "\"relu\", \"leaky_relu\" of slope 0.01 or \"none\", after the norm; MONAI's default has tensors";
        guess = guess.asks("activation", what);
    }
    // the modules lie in the file in the order in which they run
    if running && s.has(&slope) {
        match s.before(&format!("{norm}.running_mean"), &slope) {
            Some(first) => drop(guess.config.insert("adn_ordering".into(), if first { "NDA" } else { "ADN" }.into())),
            None => guess = guess.asks("adn_ordering", "\"NDA\", MONAI's default, or \"ADN\" where the activation is before the norm"),
        }
    }
    (levels > 0).then_some(guess)
}

pub(super) fn vnet(s: &Shapes<'_>) -> Option<Guess> {
    let flavours =
        [("monai", "in_tr.conv_block.conv.weight", "in_tr.act_function.weight"), ("mattmacy", "in_tr.conv1.weight", "in_tr.relu1.weight")];
    let (flavour, first, slopes) = flavours.into_iter().find(|(_, first, _)| s.has(first))?;
    let dims = s.kernel(first)?.len();
    let classes = s.dim("out_tr.conv2.weight", 0)?;
    let config = json!({"dims": dims, "flavour": flavour, "in_channels": s.dim(first, 1)?, "classes": classes, "base": s.dim(first, 0)?});
    let mut guess = Guess::new("vnet", config);
    // mattmacy's has one of these two, MONAI's any
    match (s.has(slopes), flavour) {
        (true, _) => drop(guess.config.insert("activation".into(), "prelu".into())),
        (false, "mattmacy") => drop(guess.config.insert("activation".into(), "elu".into())),
        (false, _) => guess = guess.asks("activation", "\"elu\", MONAI's default, of alpha 1; no other without tensors is supported"),
    }
    Some(guess)
}
