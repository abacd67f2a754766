//! Networks of MONAI whose names are those of no other implementation.

use serde_json::json;

use super::{Guess, Shapes, root};

impl Guess {
    /// The norm of a module, which running statistics tell; what it is asked for otherwise begins
    /// with MONAI's default.
    fn monai_norm(mut self, s: &Shapes<'_>, module: &str, with: &str, without: &str) -> Self {
        if s.has(&format!("{module}.running_mean")) {
            self.config.insert("norm".into(), "batch".into());
            return self;
        }
        let what = if s.has(&format!("{module}.weight")) { with } else { without };
        self.asks("norm", what)
    }
}

const WITH: &str = "{\"group\": n} of n groups, or \"instance\" with parameters";
const WITHOUT: &str = "\"instance_plain\", where it is instance norm without parameters, or \"none\"";

pub(super) fn basic_unet(s: &Shapes<'_>) -> Option<Guess> {
    let first = "conv_0.conv_0";
    let weight = format!("{first}.conv.weight");
    let mut features = vec![s.dim(&weight, 0)?];
    features.extend(s.each(4, |i| s.dim(&format!("down_{}.convs.conv_0.conv.weight", i + 1), 0))?);
    features.push(s.dim("upcat_1.convs.conv_1.conv.weight", 0)?);
    let upsampling = if s.has("upcat_4.upsample.deconv.weight") { "deconv" } else { "linear" };
    let config = json!({"dims": s.kernel(&weight)?.len(), "in_channels": s.dim(&weight, 1)?, "classes": s.dim("final_conv.weight", 0)?,
        "features": features, "bias": s.has(&format!("{first}.conv.bias")), "upsampling": upsampling});
    let with = "\"instance\", MONAI's default, or {\"group\": n} of n groups";
    let mut guess = Guess::new("basic_unet", config).monai_norm(s, &format!("{first}.adn.N"), with, WITHOUT);
    if s.has(&format!("{first}.adn.A.weight")) {
        guess.config.insert("activation".into(), "prelu".into());
    } else {
        let what = "\"leaky_relu\", MONAI's default, \"relu\" or \"none\"";
        guess = guess.asks("activation", what).asks("slope", "the slope of a leaky ReLU: 0.1 is MONAI's default");
    }
    Some(guess)
}

const ACTIVATION: &str = "\"relu\", MONAI's default, \"leaky_relu\" (of \"slope\" 0.01) or \"none\"";

pub(super) fn seg_res_net(s: &Shapes<'_>) -> Option<Guess> {
    let first = "convInit.conv.weight";
    let (dims, filters, in_channels) = (s.kernel(first)?.len(), s.dim(first, 0)?, s.dim(first, 1)?);
    let down = |i: usize, k: usize| format!("down_layers.{i}.{}.conv1.conv.weight", k + 1);
    let up = |i: usize, k: usize| format!("up_layers.{i}.{k}.conv1.conv.weight");
    let levels = s.count(|i| down(i, 0));
    let upsampling = if s.has("up_samples.0.1.deconv.weight") { "deconv" } else { "linear" };
    let config = json!({"dims": dims, "in_channels": in_channels, "classes": s.dim("conv_final.2.conv.weight", 0)?,
        "init_filters": filters, "blocks_down": s.counts(levels, down), "blocks_up": s.counts(levels.checked_sub(1)?, up),
        "upsampling": upsampling});
    let with = format!("{WITH}; MONAI's default is {{\"group\": 8}}");
    let guess = Guess::new("seg_res_net", config).monai_norm(s, "conv_final.0", &with, WITHOUT);
    Some(guess.asks("activation", ACTIVATION))
}

pub(super) fn seg_res_net_ds(s: &Shapes<'_>) -> Option<Guess> {
    let first = "encoder.conv_init.weight";
    let (dims, filters, in_channels) = (s.kernel(first)?.len(), s.dim(first, 0)?, s.dim(first, 1)?);
    let down = |i: usize, k: usize| format!("encoder.layers.{i}.blocks.{k}.conv1.weight");
    let up = |i: usize, k: usize| format!("up_layers.{i}.blocks.{k}.conv1.weight");
    let levels = s.count(|i| down(i, 0));
    let below = levels.checked_sub(1)?;
    let upsampling = if below == 0 || s.has("up_layers.0.upsample.deconv.weight") { "deconv" } else { "linear" };
    let classes = s.dim(&format!("up_layers.{}.head.weight", below.saturating_sub(1)), 0)?;
    let mut config = json!({"dims": dims, "in_channels": in_channels, "classes": classes, "init_filters": filters,
        "blocks_down": s.counts(levels, down), "blocks_up": s.counts(below, up), "upsampling": upsampling});
    // axes without a kernel wait for those that are finer, each level for half as fine
    let kernels: Vec<Vec<u32>> = (0..levels).map(|i| s.kernel(&down(i, 0))).collect::<Option<_>>()?;
    if kernels.iter().flatten().any(|&n| n == 1) {
        let even = kernels.iter().rposition(|kernel| kernel.contains(&1))? + 1;
        let halved = |axis: usize| kernels[..even].iter().filter(|kernel| kernel.get(axis).is_some_and(|&n| n > 1)).count();
        let fine = |axis: usize| i32::try_from(halved(axis)).ok().map(|n| 0.5f64.powi(n));
        config["resolution"] = json!((0..dims).map(fine).collect::<Option<Vec<f64>>>()?);
    }
    let guess = Guess::new("seg_res_net_ds", config).monai_norm(s, "encoder.layers.0.blocks.0.norm1", WITH, WITHOUT);
    Some(guess.asks("activation", ACTIVATION))
}

pub(super) fn swin_unetr(s: &Shapes<'_>) -> Option<Guess> {
    let first = "swinViT.patch_embed.proj.weight";
    let (dims, feature, in_channels) = (s.kernel(first)?.len(), s.dim(first, 0)?, s.dim(first, 1)?);
    let block = |i: usize, k: usize| format!("swinViT.layers{}.0.blocks.{k}", i + 1);
    let attn = |i: usize, tensor: &str| format!("{}.attn.{tensor}", block(i, 0));
    let table = |i: usize| attn(i, "relative_position_bias_table");
    let hidden = s.dim(&format!("{}.mlp.linear1.weight", block(0, 0)), 0)?;
    let mut config = json!({"dims": dims, "in_channels": in_channels, "classes": s.dim("out.conv.conv.weight", 0)?,
        "feature_size": feature, "depths": s.counts(4, |i, k| format!("{}.norm1.weight", block(i, k))),
        "heads": s.each(4, |i| s.dim(&table(i), 1))?, "mlp_ratio": f64::from(hidden) / f64::from(feature),
        "qkv_bias": s.has(&attn(0, "qkv.bias")), "patch_norm": s.has("swinViT.patch_embed.norm.weight"),
        "v2": s.has("swinViT.layers1c.0.layer.conv1.conv.weight")});
    let axes = u32::try_from(dims).ok()?;
    let along = root(s.dim(&table(0), 0)?, axes).map(|n| n.div_ceil(2));
    let square = along.filter(|n| n.checked_pow(axes) == s.dim(&attn(0, "relative_position_index"), 0));
    if let Some(n) = square {
        config["window"] = json!(vec![n; dims]);
    }
    let with = "\"instance\" with parameters, or {\"group\": n} of n groups";
    let without = "\"instance_plain\", MONAI's default, or \"none\"";
    let mut guess = Guess::new("swin_unetr", config).monai_norm(s, "encoder1.layer.norm1", with, without);
    if square.is_none() {
        guess = guess.asks("window", "tokens of a window along [D,] H, W");
    }
    if dims == 3 {
        let what = "\"merging\", MONAI's default since 1.5, \"merging09\", what that was before, or \"mergingv2\"";
        guess = guess.asks("merging", what);
    }
    Some(guess.asks("normalize", "whether the decoder sees normed stages: true, MONAI's default, or false"))
}
