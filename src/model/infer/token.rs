//! Networks of tokens: tables of relative positions tell heads and windows; extents are told where positions are learned.

use serde_json::json;

use super::{Guess, Shapes, root};

/// Tokens along a window's axes, from the rows of a table of relative positions.
fn window(s: &Shapes<'_>, table: &str, axes: u32) -> Option<u32> {
    let along = root(s.dim(table, 0)?, axes)?;
    (along % 2 == 1).then_some(along.div_ceil(2))
}

/// What the nnFormer family tells alike.
fn former(s: &Shapes<'_>, name: &'static str, decoder: &str) -> Option<Guess> {
    let block = |i: usize, k: usize| format!("model_down.layers.{i}.blocks.{k}.attn.qkv.weight");
    let table = |i: usize| format!("model_down.layers.{i}.blocks.0.attn.relative_position_bias_table");
    let stages = s.count(|i| block(i, 0));
    let window = s.each(stages, |i| window(s, &table(i), 3))?;
    let heads = s.each(stages, |i| s.dim(&table(i), 1))?;
    let mut guess = Guess::new(
        name,
        json!({"in_channels": s.dim("model_down.patch_embed.proj1.conv1.weight", 1)?, "classes": s.dim("final.0.up.weight", 1)?,
            "embed_dim": s.dim("model_down.patch_embed.norm.weight", 0)?, "depths": s.counts(stages, block), "heads": heads,
            "patch": s.kernel("final.0.up.weight")?, "window": window}),
    );
    if decoder == "encoder" {
        let below = stages.checked_sub(1)?;
        let depths = s.counts(below, |i, k| format!("encoder.layers.{}.blocks.{k}.attn.qkv.weight", below - 1 - i));
        guess.config.insert("decoder_depths".into(), json!(depths));
        guess.config.insert("window_tokens".into(), s.dim("model_down.layers.0.global_token", 0)?.into());
    }
    Some(guess.asks_crop())
}

pub(super) fn nnformer(s: &Shapes<'_>) -> Option<Guess> {
    s.has("decoder.layers.0.blocks.0.attn.kv.weight").then(|| former(s, "nnformer", "decoder"))?
}

pub(super) fn glam_nnformer(s: &Shapes<'_>) -> Option<Guess> {
    if s.has("vt_check") || !s.has("encoder.layers.0.blocks.0.gt_attn.qkv.weight") {
        return None;
    }
    let guess = former(s, "glam_nnformer", "encoder")?;
    let tokens = s.dim("model_down.layers.0.global_token", 0)?;
    // positions of a grid of 16x8x8 windows in one variant, 8x8x8 in the other
    let windows = tokens.checked_pow(3).and_then(|n| s.dim("model_down.layers.0.pe", 0)?.checked_div(n));
    let variant = match windows {
        Some(1024) => "a",
        Some(512) => "d",
        _ => return Some(guess.asks("variant", "\"a\" or \"d\"")),
    };
    let mut guess = guess;
    guess.config.insert("variant".into(), variant.into());
    Some(guess)
}

pub(super) fn fine(s: &Shapes<'_>) -> Option<Guess> {
    let tokens = s.dim("vt_check", 0)?;
    let guess = former(s, "fine", "encoder")?;
    Some(
        guess
            .asks("volume_grid", format!("cells of the volume along D, H, W, of which H x W are the {tokens} volume tokens, as [d, h, w]"))
            .asks("max_extent", "voxels of the largest volume along D, H, W, over which the grid lies, as [d, h, w]"),
    )
}

pub(super) fn unetr(s: &Shapes<'_>) -> Option<Guess> {
    let positions = "vit.patch_embedding.position_embeddings";
    let (patches, hidden) = (s.dim(positions, 1)?, s.dim(positions, 2)?);
    let first = "encoder1.layer.conv1.conv.weight";
    let perceptron = s.has("vit.patch_embedding.patch_embeddings.1.weight");
    let dims = s.kernel(first)?.len();
    let config = json!({"dims": dims, "in_channels": s.dim(first, 1)?, "classes": s.dim("out.conv.conv.weight", 0)?,
        "feature_size": s.dim(first, 0)?, "hidden": hidden, "mlp": s.dim("vit.blocks.0.mlp.linear1.weight", 0)?, "projection": if perceptron { "perceptron" } else { "conv" },
        "conv_block": s.has("encoder2.blocks.0.1.conv1.conv.weight"), "res_block": s.has("decoder2.conv_block.conv3.conv.weight")});
    let image = match dims {
        2 => format!("the extent of the planes that it was trained on, {patches} patches of 16x16, as [1, h, w]"),
        _ => format!("the extent D, H, W that it was trained on, {patches} patches of 16x16x16, as [d, h, w]"),
    };
    // a norm with parameters or statistics has tensors, which this network lacks
    let norm = "\"instance\", MONAI's default, without parameters; no other norm is supported";
    Some(Guess::new("unetr", config).asks("image", image).asks_heads(hidden).asks("norm", norm))
}

pub(super) fn cotr(s: &Shapes<'_>) -> Option<Guess> {
    let transformer = "U_ResTran3D.encoder_Detrans";
    let layer = |i: usize| format!("{transformer}.encoder.layers.{i}");
    let (first, second) = ("U_ResTran3D.backbone.conv1.weight", "U_ResTran3D.backbone.layer1.0.conv1.weight");
    let levels = format!("{transformer}.level_embed");
    let (count, width) = (s.dim(&levels, 0)?, s.dim(&levels, 1)?);
    let samples = s.dim(&format!("{}.self_attn.attention_weights.weight", layer(0)), 0)?.checked_div(count)?;
    let config = json!({"in_channels": s.dim(first, 1)?, "classes": s.dim("U_ResTran3D.cls_conv.weight", 0)?,
        "channels": [s.dim(first, 0)?, s.dim(second, 0)?, width], "layers": s.count(|i| format!("{}.linear1.weight", layer(i))),
        "levels": count, "feedforward": s.dim(&format!("{}.linear1.weight", layer(0)), 0)?, "norm": "instance",
        "activation": "leaky_relu"});
    let points = format!("places that a query of a head samples in each level, {samples} over heads");
    Some(Guess::new("cotr", config).asks_heads(width).asks("points", points))
}

/// What the Swin-Unet family tells alike; names begin with `root`.
fn swin(s: &Shapes<'_>, name: &'static str, root_module: &str) -> Option<Guess> {
    let first = format!("{root_module}patch_embed.proj.weight");
    let block = |i: usize, k: usize| format!("{root_module}layers.{i}.blocks.{k}.attn.qkv.weight");
    let table = |i: usize| format!("{root_module}layers.{i}.blocks.0.attn.relative_position_bias_table");
    let stages = s.count(|i| block(i, 0));
    let (patch, window) = (s.dim(&first, 2)?, window(s, &table(0), 2)?);
    // the mask of the shifted blocks has a layer for each window of the square image
    let windows = s.dim(&format!("{root_module}layers.0.blocks.1.attn_mask"), 0).and_then(|n| root(n, 2));
    let image = windows.and_then(|n| n.checked_mul(window)?.checked_mul(patch));
    let config = json!({"patch": patch, "in_channels": s.dim(&first, 1)?, "embed_dim": s.dim(&first, 0)?,
        "depths": s.counts(stages, block), "heads": s.each(stages, |i| s.dim(&table(i), 1))?, "window": window,
        "classes": s.dim(&format!("{root_module}output.weight"), 0)?});
    Some(Guess::new(name, config).or_asks("image", image, "voxels along H and along W of the images that it was trained on"))
}

pub(super) fn swin_unet(s: &Shapes<'_>) -> Option<Guess> {
    swin(s, "swin_unet", "swin_unet.")
}

pub(super) fn glam_swin_unet(s: &Shapes<'_>) -> Option<Guess> {
    let tokens = s.dim("layers.0.global_token", 0)?;
    let mut guess = swin(s, "glam_swin_unet", "")?;
    guess.config.insert("window_tokens".into(), tokens.into());
    let non_local = s.has("layers_cross_attention_up.0.blocks.0.attn.proj_q.weight");
    guess.config.insert("non_local_upsampling".into(), non_local.into());
    if non_local {
        guess = guess
            .asks("cross_attention_weight", "the weight of what it adds, 1.0 unless training said otherwise")
            .asks("residual_patch_expand", "whether the shortcut past it is a patch expanding, true unless training said otherwise");
    }
    Some(guess)
}

pub(super) fn transunet(s: &Shapes<'_>) -> Option<Guess> {
    let embeddings = "transformer.embeddings";
    let positions = format!("{embeddings}.position_embeddings");
    let first = format!("{embeddings}.hybrid_model.root.conv.weight");
    let layer = |i: usize, part: &str| format!("transformer.encoder.layer.{i}.{part}.weight");
    let (hidden, width) = (s.dim(&positions, 2)?, s.dim(&first, 0)?);
    let units = s.counts(3, |b, u| format!("{embeddings}.hybrid_model.body.block{}.unit{}.conv1.weight", b + 1, u + 1));
    let conv = |i: usize| format!("decoder.blocks.{i}.conv1.0.weight");
    let decoder = s.each(4, |i| s.dim(&conv(i), 0))?;
    // what a block reads besides the one before it
    let mut before = s.dim("decoder.conv_more.0.weight", 0)?;
    let mut skips = Vec::new();
    for (i, &channels) in decoder.iter().enumerate() {
        skips.push(s.dim(&conv(i), 1)?.checked_sub(before)?);
        before = channels;
    }
    let taken = skips.iter().take_while(|&&n| n > 0).count();
    let image = s.dim(&positions, 1).and_then(|n| root(n, 2)).and_then(|n| n.checked_mul(16));
    let config = json!({"in_channels": s.dim(&first, 1)?, "hidden": hidden, "mlp": s.dim(&layer(0, "ffn.fc1"), 0)?,
        "layers": s.count(|i| layer(i, "ffn.fc1")), "resnet_layers": units, "width_factor": f64::from(width) / 64.0,
        "decoder_channels": decoder, "skip_channels": skips, "skips": taken, "classes": s.dim("segmentation_head.0.weight", 0)?});
    let what = "voxels along H and along W of the images that it was trained on";
    Some(Guess::new("transunet", config).or_asks("image", image, what).asks_heads(hidden))
}
