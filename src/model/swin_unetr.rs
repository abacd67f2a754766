//! The architecture `swin_unetr`: a Swin transformer over patches of the volume, and a
//! convolutional decoder of its stages, in 2D and 3D.
//!
//! Source: Hatamizadeh et al., "Swin UNETR" (arXiv 2201.01266), and He et al., "SwinUNETR-V2"
//! (MICCAI 2023), as `SwinUNETR` of MONAI 1.6.1 computes it; node names are that module's paths.
//! Windows are no larger than the map: the network takes every extent that is a multiple of 32, as
//! the reference does.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::blocks::{self, Stage};
use super::layers::{Layers, MOST_CHANNELS, check_channels, check_dims};
use super::monai_parts::{MonaiNorm, UnetrBlocks};
use super::plain_conv_unet::{along, yes};
use crate::graph::{Conv, NodeId, Op, PatchMerge, WindowAttention};
use crate::kernels::Activation;
use crate::scan::is_default;

/// Voxels of a patch along each axis: the decoder's last step has no other factor.
const PATCH: u32 = 2;

/// Stages.
const STAGES: usize = 4;

/// In which order the voxels of a patch of eight are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwinMerging {
    /// `merging` of MONAI 1.5 and later: by the number of odd coordinates.
    #[default]
    Merging,
    /// `mergingv2`: row by row.
    MergingV2,
    /// `merging` of MONAI before 1.5, which took two of the voxels twice and left out two.
    Merging09,
}

impl SwinMerging {
    fn patches(self, dims: u32) -> PatchMerge {
        if dims == 2 {
            return PatchMerge::swin();
        }
        let order = match self {
            Self::Merging => [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]],
            Self::MergingV2 => [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]],
            Self::Merging09 => [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1]],
        };
        PatchMerge { patch: [2; 3], order: order.to_vec() }
    }
}

/// Arguments of MONAI's `SwinUNETR`, as in the card. Extents are multiples of 32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwinUnetrConfig {
    /// 2 (each plane is an image) or 3.
    pub dims: u32,
    /// Input channels.
    pub in_channels: u32,
    /// Classes, or labels that may overlap.
    pub classes: u32,
    /// Channels of a token of the first stage, and at full resolution; each further stage has twice
    /// as many.
    pub feature_size: u32,
    /// Blocks of each stage.
    #[serde(default = "depths")]
    pub depths: [u32; STAGES],
    /// Attention heads of each stage.
    #[serde(default = "heads")]
    pub heads: [u32; STAGES],
    /// Tokens of a window along \[D,\] H, W.
    pub window: Vec<u32>,
    /// Channels within an MLP over those of its tokens.
    #[serde(default = "four")]
    pub mlp_ratio: f64,
    /// Whether the projection to queries, keys and values has a bias.
    #[serde(default = "yes")]
    pub qkv_bias: bool,
    /// The norm of the decoder's convolutions.
    pub norm: MonaiNorm,
    /// Whether the decoder sees normed stages.
    #[serde(default = "yes")]
    pub normalize: bool,
    /// Whether patches are normed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub patch_norm: bool,
    /// The order in which patches are merged.
    #[serde(default)]
    pub merging: SwinMerging,
    /// Whether a residual block of convolutions begins each stage: the second version.
    #[serde(default)]
    pub v2: bool,
}

fn depths() -> [u32; STAGES] {
    [2; STAGES]
}

fn heads() -> [u32; STAGES] {
    [3, 6, 12, 24]
}

fn four() -> f64 {
    4.0
}

impl Architecture for SwinUnetrConfig {
    const NAME: &'static str = "swin_unetr";

    fn build(&self) -> Result<Built, String> {
        self.check()?;
        let l = Layers::new(self.dims, self.in_channels);
        let mut b = Builder { b: UnetrBlocks { l, norm: self.norm, residual: true }, config: self };
        b.network();
        let stride = b.b.l.cube(PATCH << STAGES);
        Ok(Built { dims: self.dims, ..Built::new(b.b.l.graph, stride) })
    }
}

impl SwinUnetrConfig {
    fn check(&self) -> Result<(), String> {
        check_dims(self.dims)?;
        check_channels("in_channels", self.in_channels, MOST_CHANNELS)?;
        check_channels("classes", self.classes, MOST_CHANNELS)?;
        check_channels("feature_size", self.feature_size, MOST_CHANNELS >> STAGES)?;
        if !self.depths.iter().all(|n| (1..=64).contains(n)) {
            return Err(format!("depths is {:?}, must be numbers of 1 to 64", self.depths));
        }
        if (0..STAGES).any(|i| self.heads[i] == 0 || !self.channels(i).is_multiple_of(self.heads[i])) {
            return Err(format!("heads is {:?}, must divide {} x 2^i for each stage i", self.heads, self.feature_size));
        }
        if self.window.len() != self.dims as usize || !self.window.iter().all(|n| (1..=32).contains(n)) {
            return Err(format!("window is {:?}, must be {} numbers of 1 to 32", self.window, self.dims));
        }
        if self.hidden(0) == 0 || self.hidden(STAGES - 1) > MOST_CHANNELS {
            return Err(format!("mlp_ratio is {}, which makes no MLP", self.mlp_ratio));
        }
        self.norm.check(&[self.feature_size])
    }

    fn channels(&self, stage: usize) -> u32 {
        self.feature_size << stage
    }

    /// Channels within the MLPs of a stage.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked; truncated as the reference does")]
    fn hidden(&self, stage: usize) -> u32 {
        (f64::from(self.channels(stage)) * self.mlp_ratio) as u32
    }
}

struct Builder<'a> {
    b: UnetrBlocks,
    config: &'a SwinUnetrConfig,
}

impl Builder<'_> {
    fn network(&mut self) {
        let (c, f) = (self.config, self.config.feature_size);
        let input = self.b.l.input;
        let states = self.transformer();
        let first = self.b.pair("encoder1.layer", input, [c.in_channels, f]);
        let mut skips = vec![first];
        for (i, &state) in states[..3].iter().enumerate() {
            skips.push(self.b.pair(&format!("encoder{}.layer", i + 2), state, [f << i; 2]));
        }
        skips.push(states[3]);
        let mut x = self.b.pair("encoder10.layer", states[4], [f << 4; 2]);
        for level in (1..=5).rev() {
            // the last doubles the extent and not the width
            let width = [f << (level - 1), if level == 1 { f } else { f << (level - 2) }];
            x = self.b.up(&format!("decoder{level}"), x, skips[level - 1], width);
        }
        self.b.conv("out.conv", x, [f, c.classes], 1, true);
    }

    /// The maps of the transformer that the decoder reads: the patches, and the result of each
    /// stage.
    fn transformer(&mut self) -> [NodeId; 5] {
        let c = self.config;
        let (module, kernel) = ("swinViT.patch_embed", self.b.l.cube(PATCH));
        let conv = Conv {
            module: format!("{module}.proj"),
            in_channels: c.in_channels,
            out_channels: c.feature_size,
            kernel,
            stride: kernel,
            weight_shape: self.b.l.weight_shape([c.feature_size, c.in_channels], kernel),
            ..Conv::default()
        };
        let input = self.b.l.input;
        let mut x = self.b.l.graph.add(conv.module.clone(), Op::Conv(conv), &[input]);
        if c.patch_norm {
            x = self.norm(&format!("{module}.norm"), x, c.feature_size);
        }
        let mut states = [x; 5];
        states[0] = self.seen("swinViT.x0", x, c.feature_size);
        for stage in 0..STAGES {
            let (n, width) = (stage + 1, c.channels(stage));
            if c.v2 {
                // its norm is the reference's default, whatever that of the decoder is
                let norm = std::mem::replace(&mut self.b.norm, MonaiNorm::InstancePlain);
                x = self.b.pair(&format!("swinViT.layers{n}c.0.layer"), x, [width; 2]);
                self.b.norm = norm;
            }
            x = self.stage(&format!("swinViT.layers{n}.0"), x, stage);
            states[n] = self.seen(&format!("swinViT.x{n}"), x, 2 * width);
        }
        states
    }

    /// A result as the decoder sees it.
    fn seen(&mut self, name: &str, x: NodeId, channels: u32) -> NodeId {
        if !self.config.normalize {
            return x;
        }
        let (before, after) = (Activation::None, Activation::None);
        let norm = Op::LayerNorm { module: None, channels, eps: blocks::EPS, before, after };
        self.b.l.graph.add(format!("{name}.normed"), norm, &[x])
    }

    fn norm(&mut self, module: &str, x: NodeId, channels: u32) -> NodeId {
        blocks::layer_norm(&mut self.b.l.graph, module, module, x, channels, blocks::EPS)
    }

    fn linear(&mut self, module: &str, x: NodeId, c: [u32; 2], bias: bool) -> NodeId {
        blocks::linear(&mut self.b.l.graph, module, module, x, c, bias)
    }

    /// The blocks of a stage, every second shifted by half a window, and the merging of patches
    /// after them.
    fn stage(&mut self, module: &str, mut x: NodeId, stage: usize) -> NodeId {
        let (c, width, hidden) = (self.config, self.config.channels(stage), self.config.hidden(stage));
        let window = along(&c.window);
        let windows = Stage {
            module: module.to_owned(),
            level: stage,
            per_plane: c.dims == 2,
            // that of the input decides it
            grid: [0; 3],
            depth: c.depths[stage],
            channels: width,
            heads: c.heads[stage],
            window,
            shift: window.map(|n| n / 2),
        };
        for i in 0..windows.depth {
            let block = format!("{module}.blocks.{i}");
            let (attn, qkv) = (format!("{block}.attn"), format!("{block}.attn.qkv"));
            let y = self.norm(&format!("{block}.norm1"), x, width);
            let y = self.linear(&qkv, y, [width, 3 * width], c.qkv_bias);
            let told = windows.windows(&attn, &qkv, [0, width, 2 * width], i % 2 == 1);
            let padding = told.padding.filter(|_| c.qkv_bias);
            let y = self.b.l.graph.add(attn.clone(), Op::WindowAttention(WindowAttention { clipped: true, padding, ..told }), &[y, y]);
            let y = self.linear(&format!("{attn}.proj"), y, [width; 2], true);
            x = self.b.l.add(format!("{block}.attended"), x, y);
            let y = self.norm(&format!("{block}.norm2"), x, width);
            let y = self.linear(&format!("{block}.mlp.linear1"), y, [width, hidden], true);
            let y = self.b.l.activation(format!("{block}.mlp.fn"), y, Activation::Gelu);
            let y = self.linear(&format!("{block}.mlp.linear2"), y, [hidden, width], true);
            x = self.b.l.add(block, x, y);
        }
        let (module, parts) = (format!("{module}.downsample"), c.merging.patches(c.dims));
        let wide = width << c.dims;
        let y = self.b.l.graph.add(format!("{module}.patches"), Op::PatchMerge(parts), &[x]);
        let y = self.norm(&format!("{module}.norm"), y, wide);
        self.linear(&format!("{module}.reduction"), y, [wide, 2 * width], false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::refused;
    use crate::graph::{Op, pass};
    use crate::{DeviceCaps, Elem, Extent, Plan, PlanOptions};

    const BTCV: &str = r#""dims":3,"in_channels":1,"classes":14,"feature_size":48,"window":[7,7,7],"norm":"instance_plain""#;

    #[test]
    fn the_published_networks() {
        // measured on the reference: 62,187,296 parameters, and 72,762,656 of the second version
        for (more, parameters) in [("", 62_187_296), (r#","v2":true"#, 72_762_656)] {
            let card = format!(r#"{{"architecture":"swin_unetr","config":{{{BTCV}{more}}}}}"#);
            let (card, graph) = crate::model::architecture(&card).expect("it is one");
            assert_eq!((card.classes(), card.crop()), (14, None));
            let parts = graph.parameters();
            let counted = parts.iter().filter(|(name, _)| !name.ends_with("position_index"));
            assert_eq!(counted.map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>(), parameters);
            for (elem, most) in [(Elem::F32, 1_400_000_000), (Elem::F16, 700_000_000)] {
                let options = PlanOptions::default().with_precision(elem).with_budget(most);
                let plan = Plan::of_graph(&graph, Extent::new(96, 96, 96), &DeviceCaps::desktop(), &options);
                let report = plan.unwrap_or_else(|e| panic!("{more}: {e}")).report().clone();
                assert!(report.peak_bytes <= most, "{} bytes", report.peak_bytes);
            }
        }
    }

    #[test]
    fn windows_are_no_larger_than_the_map() {
        let card = format!(r#"{{"architecture":"swin_unetr","config":{{{BTCV}}}}}"#);
        let (_, graph) = crate::model::architecture(&card).expect("it is one");
        let windows = |extent| -> Vec<[[u32; 3]; 2]> {
            let settled = pass::settle(&graph, extent, &[]).expect("the shapes agree");
            let shapes = settled.nodes().iter().filter_map(|node| match &node.op {
                Op::WindowAttention(a) => Some([a.shape.k_window, a.shape.shift]),
                _ => None,
            });
            shapes.skip(1).step_by(2).collect()
        };
        let whole = [[7; 3], [3; 3]];
        let expected = [whole, whole, [[4, 7, 7], [0, 3, 3]], [[2, 4, 7], [0, 0, 3]]];
        assert_eq!(windows(Extent::new(32, 64, 128)), expected);
        assert_eq!(windows(Extent::new(224, 224, 224)), [whole; 4]);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (from, to, word) in [
            (r#""dims":3"#, r#""dims":1"#, "dims"),
            (r#""in_channels":1"#, r#""in_channels":0"#, "in_channels"),
            (r#""classes":14"#, r#""classes":0"#, "classes"),
            (r#""feature_size":48"#, r#""feature_size":0"#, "feature_size"),
            (r#""feature_size":48"#, r#""feature_size":40"#, "heads"),
            ("[7,7,7]", "[7,7]", "window"),
            ("[7,7,7]", "[7,7,33]", "window"),
            (r#""dims":3"#, r#""dims":3,"depths":[2,2,2,0]"#, "depths"),
            (r#""dims":3"#, r#""dims":3,"mlp_ratio":0.01"#, "mlp_ratio"),
            (r#""dims":3"#, r#""dims":3,"merging":"mean""#, "mean"),
            (r#""instance_plain""#, r#"{"group":7}"#, "7 groups"),
        ] {
            refused("swin_unetr", &BTCV.replacen(from, to, 1), word);
        }
    }
}
