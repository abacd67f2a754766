//! The architecture `cotr`: convolutions, and a transformer with deformable attention between two of their levels.
//!
//! Source: Xie et al., "CoTr: Efficiently Bridging CNN and Transformer for 3D Medical Image Segmentation" (MICCAI 2021), as
//! `ResTranUnet` of YtongXie/CoTr computes it; node names are that module's paths.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::blocks;
use super::layers::Layers;
use super::plain_conv_unet::{UnetActivation, UnetNorm};
use super::weights::Tolerance;
use crate::graph::{ConvTranspose, Deformable, LevelEmbedding, NodeId, Op, PositionalEncoding, Resize, Size};
use crate::kernels::{Activation, Angles, Interpolation};

/// Levels of the convolutions that the transformer sees: the two deepest.
const LEVELS: u32 = 2;

/// Single-convolution residual units of each level after the first.
const UNITS: [u32; 3] = [3, 3, 2];

/// Arguments of CoTr, as in the card; the defaults are those of the BCV model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CotrConfig {
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of the first level, the second, and the two that the transformer sees.
    pub channels: [u32; 3],
    /// Attention heads.
    pub heads: u32,
    /// Layers of the transformer.
    pub layers: u32,
    /// Places that a query of a head samples in each level.
    pub points: u32,
    /// Levels that the transformer sees: 2.
    pub levels: u32,
    /// Channels within the feed-forward part of a layer.
    pub feedforward: u32,
    /// What normalises convolutions.
    pub norm: UnetNorm,
    /// What follows.
    pub activation: UnetActivation,
}

impl Default for CotrConfig {
    fn default() -> Self {
        Self {
            in_channels: 1,
            classes: 14,
            channels: [64, 192, 384],
            heads: 6,
            layers: 6,
            points: 4,
            levels: LEVELS,
            feedforward: 1536,
            norm: UnetNorm::Instance,
            activation: UnetActivation::LeakyRelu,
        }
    }
}

impl Architecture for CotrConfig {
    const NAME: &'static str = "cotr";

    fn build(&self) -> Result<Built, String> {
        self.check()?;
        let mut b = Builder { l: Layers::new(3, self.in_channels), config: self };
        b.network();
        let heads = (0..3).map(|i| format!("{ROOT}.ds{i}_cls_conv."));
        let tolerance = Tolerance { dead: heads.collect(), ..Tolerance::default() };
        Ok(Built { tolerance, ..Built::new(b.l.graph, [8, 16, 16]) })
    }
}

impl CotrConfig {
    fn check(&self) -> Result<(), String> {
        let width = |n: u32| (1..=65_536).contains(&n);
        if ![self.in_channels, self.classes, self.feedforward].into_iter().chain(self.channels).all(width) {
            return Err("in_channels, classes, channels and feedforward must be 1 to 65536".into());
        }
        let c = self.channels[2];
        if self.heads == 0 || !c.is_multiple_of(self.heads) || !c.is_multiple_of(6) {
            return Err(format!("{c} channels of the transformer must be a multiple of 6 and of {} heads", self.heads));
        }
        if self.levels != LEVELS || !(1..=64).contains(&self.layers) || !(1..=64).contains(&self.points) {
            return Err(format!("levels must be {LEVELS}, layers and points 1 to 64"));
        }
        Ok(())
    }
}

const ROOT: &str = "U_ResTran3D";

struct Builder<'a> {
    l: Layers,
    config: &'a CotrConfig,
}

impl Builder<'_> {
    fn network(&mut self) {
        let c = self.config;
        let [c0, c1, c2] = c.channels;
        let stem = format!("{ROOT}.backbone.conv1");
        let x = self.conv(&stem, self.l.input, [c.in_channels, c0], 7, [1, 2, 2]);
        let x = self.norm(&format!("{ROOT}.backbone.norm1"), x, c0);
        let mut maps = vec![self.activation(format!("{ROOT}.backbone.relu"), x)];
        for (i, [cin, cout]) in [[c0, c1], [c1, c2], [c2, c2]].into_iter().enumerate() {
            let mut x = maps[i];
            for unit in 0..UNITS[i] {
                let first = unit == 0;
                x = self.unit(&format!("{ROOT}.backbone.layer{}.{unit}", i + 1), x, [if first { cin } else { cout }, cout], first);
            }
            maps.push(x);
        }
        let mut levels = [maps[2], maps[3]];
        for i in 0..c.layers {
            levels = self.layer(&format!("{ROOT}.encoder_Detrans.encoder.layers.{i}"), levels);
        }
        let (mut x, mut width) = (levels[1], c2);
        for (stage, (skip, features)) in [(2, (levels[0], c2)), (1, (maps[1], c1)), (0, (maps[0], c0))] {
            let up = format!("{ROOT}.transposeconv_stage{stage}");
            x = self.l.transposed(&up, x, [width, features], ConvTranspose { bias: false, ..ConvTranspose::default() });
            x = self.l.add(format!("{up}.sum"), x, skip);
            x = self.residual(&format!("{ROOT}.stage{stage}_de"), x, features);
            width = features;
        }
        // the reference resamples before: both are linear, and classes are fewer than channels
        let x = self.l.conv(&format!("{ROOT}.cls_conv"), x, [c0, c.classes], 1, 1, true);
        let resize = Resize { size: Size::Times([1, 2, 2]), mode: Interpolation::HalfPixel };
        self.l.graph.add(format!("{ROOT}.upsamplex2"), Op::Resize(resize), &[x]);
    }

    /// A convolution without bias.
    fn conv(&mut self, module: &str, x: NodeId, c: [u32; 2], kernel: u32, stride: [u32; 3]) -> NodeId {
        self.l.conv_along(module, x, c, [[kernel; 3], stride], false)
    }

    fn norm(&mut self, module: &str, x: NodeId, channels: u32) -> NodeId {
        let UnetNorm::Instance = self.config.norm;
        self.l.instance_norm(module, Some(module), x, channels)
    }

    fn activation(&mut self, name: String, x: NodeId) -> NodeId {
        let UnetActivation::LeakyRelu = self.config.activation;
        self.l.activation(name, x, Activation::LeakyRelu { slope: 0.01 })
    }

    /// A residual unit of one convolution; the first of a level halves the extent.
    fn unit(&mut self, module: &str, x: NodeId, c: [u32; 2], first: bool) -> NodeId {
        let stride = if first { [2; 3] } else { [1; 3] };
        let y = self.conv(&format!("{module}.conv1"), x, c, 3, stride);
        let y = self.norm(&format!("{module}.norm1"), y, c[1]);
        let mut shortcut = x;
        if first {
            shortcut = self.conv(&format!("{module}.downsample.0"), x, c, 1, stride);
            shortcut = self.norm(&format!("{module}.downsample.1"), shortcut, c[1]);
        }
        let y = self.l.add(format!("{module}.sum"), y, shortcut);
        self.activation(module.to_owned(), y)
    }

    /// Two convolutions and their input; nothing is activated after the sum.
    fn residual(&mut self, module: &str, x: NodeId, channels: u32) -> NodeId {
        let mut y = x;
        for i in 1..=2 {
            let conv = format!("{module}.resconv{i}");
            y = self.conv(&format!("{conv}.conv"), y, [channels; 2], 3, [1; 3]);
            y = self.norm(&format!("{conv}.norm"), y, channels);
            y = self.activation(conv, y);
        }
        self.l.add(module.to_owned(), y, x)
    }

    /// A linear layer over the tokens of a level.
    fn linear(&mut self, module: &str, level: usize, x: NodeId, c: [u32; 2]) -> NodeId {
        blocks::linear(&mut self.l.graph, format!("{module}.level{level}"), module, x, c, true)
    }

    fn layer_norm(&mut self, module: &str, level: usize, x: NodeId) -> NodeId {
        blocks::layer_norm(&mut self.l.graph, format!("{module}.level{level}"), module, x, self.config.channels[2], blocks::EPS)
    }

    /// One layer of the transformer; norms come last. Queries have positions, in every layer anew, values have none.
    fn layer(&mut self, layer: &str, levels: [NodeId; 2]) -> [NodeId; 2] {
        let config = self.config;
        let c = config.channels[2];
        let attn = format!("{layer}.self_attn");
        let value = |b: &mut Self, l: usize| b.linear(&format!("{attn}.value_proj"), l, levels[l], [c, c]);
        let values = [value(self, 0), value(self, 1)];
        let places = config.heads * config.levels * config.points;
        let mut out = levels;
        for (l, row) in [(0, 0), (1, 1)] {
            let tensor = format!("{ROOT}.encoder_Detrans.level_embed");
            let level = Some(LevelEmbedding { tensor, shape: [LEVELS, c], row });
            let positions = PositionalEncoding { angles: Angles::Thirds, level };
            let q = self.l.graph.add(format!("{layer}.query.level{l}"), Op::PositionalEncoding(positions), &[levels[l]]);
            let offsets = self.linear(&format!("{attn}.sampling_offsets"), l, q, [c, 3 * places]);
            let weights = self.linear(&format!("{attn}.attention_weights"), l, q, [c, places]);
            let deformable = Op::Deformable(Deformable { heads: config.heads, points: config.points });
            let y = self.l.graph.add(format!("{attn}.level{l}"), deformable, &[offsets, weights, values[0], values[1]]);
            let y = self.linear(&format!("{attn}.output_proj"), l, y, [c, c]);
            let y = self.l.add(format!("{attn}.sum.level{l}"), levels[l], y);
            let x = self.layer_norm(&format!("{layer}.norm1"), l, y);
            let y = self.linear(&format!("{layer}.linear1"), l, x, [c, config.feedforward]);
            let y = self.l.activation(format!("{layer}.activation.level{l}"), y, Activation::Gelu);
            let y = self.linear(&format!("{layer}.linear2"), l, y, [config.feedforward, c]);
            let y = self.l.add(format!("{layer}.sum.level{l}"), x, y);
            out[l] = self.layer_norm(&format!("{layer}.norm2"), l, y);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::kernels::{Angles, position_add};
    use crate::{DeviceCaps, Elem, Extent, LoadErrorKind, Map, Model, Plan, PlanErrorKind, PlanOptions};

    const SMALL: &str = r#"{"architecture":"cotr","config":{"classes":2,"channels":[4,6,12],"heads":2,"layers":1,"feedforward":24}}"#;

    #[test]
    fn the_published_network_is_the_default_and_can_be_planned() {
        let (card, graph) = crate::model::architecture(r#"{"architecture":"cotr","config":{}}"#).expect("the defaults are one");
        assert_eq!((card.classes(), card.in_channels(), card.crop(), card.stride()), (14, 1, None, [8, 16, 16]));
        let elements: usize = graph.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        // 41.87 million are published, with heads of 14 classes on 64, 192 and 384 channels that no output depends on
        let heads = 14 * (64 + 192 + 384 + 3);
        assert!((elements + heads).abs_diff(41_870_000) < 10_000, "{elements} and {heads}");
        let extent = Extent::new(48, 192, 192);
        for (elem, most) in [(Elem::F32, 900_000_000), (Elem::F16, 450_000_000)] {
            let plan = Plan::of_graph(&graph, extent, &DeviceCaps::desktop(), &PlanOptions::default().with_precision(elem));
            let report = plan.expect("it can be planned").report().clone();
            assert!(report.peak_bytes < most, "{} bytes", report.peak_bytes);
            // 1126.0 and about 2 for sampling are published
            assert!((1100..1145).contains(&(report.flops / 1_000_000_000)), "{} FLOP", report.flops);
        }
    }

    #[test]
    fn any_multiple_of_the_stride_is_taken() {
        let model = Model::random(SMALL, 1).expect("it is one");
        let plan = |extent| Plan::new(&model, extent, &DeviceCaps::host(), &PlanOptions::default());
        for extent in [Extent::new(8, 16, 16), Extent::new(24, 16, 48)] {
            plan(extent).expect("it can be planned");
        }
        assert_eq!(plan(Extent::new(8, 16, 24)).expect_err("an odd level").kind(), PlanErrorKind::Extent);
    }

    /// The formula of the specification; the golden case holds the numbers of the reference.
    #[test]
    fn neighbours_share_exponents_and_alternate() {
        let map = Map::new(Extent::new(2, 3, 4), 12);
        let table = position_add::table(map, Angles::Thirds);
        let of = |row: usize, channel: usize| f64::from(table[row * 12 + channel]);
        // voxel 1 along D of 2: 1.5 / 2 of a turn; features 0 to 2 turn alike, feature 3 by 10000^(3/4) slower
        let angle = 1.5 / (2.0 + 1e-6) * std::f64::consts::TAU;
        let slow = angle / 10_000f64.powf(0.75);
        for (channel, expected) in [angle.sin(), angle.cos(), angle.sin(), slow.cos()].into_iter().enumerate() {
            assert!((of(1, channel) - expected).abs() < 1e-6, "channel {channel}: {} instead of {expected}", of(1, channel));
        }
        // each third is of its axis alone
        assert!((4..12).all(|channel| of(1, channel) == 0.0) && (4..8).all(|channel| of(2, channel) != 0.0));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (key, value) in [
            ("channels", json!([4, 6, 10])),
            ("channels", json!([0, 6, 12])),
            ("heads", json!(5)),
            ("levels", json!(3)),
            ("layers", json!(0)),
            ("points", json!(1000)),
        ] {
            let mut card: serde_json::Value = serde_json::from_str(SMALL).expect("JSON");
            card["config"][key] = value;
            let error = Model::random(&card.to_string(), 1).expect_err("it is none");
            assert!(error.kind() == LoadErrorKind::Card && error.to_string().contains(key), "{key}: {error}");
        }
    }

    #[test]
    fn heads_of_deep_supervision_may_be_there() {
        let (_, graph) = crate::model::architecture(SMALL).expect("it is one");
        for (name, known) in [("U_ResTran3D.ds1_cls_conv.bias", true), ("U_ResTran3D.ds3_cls_conv.bias", false)] {
            let mut tensors = graph.parameters();
            tensors.push((name.to_owned(), vec![2]));
            let model = Model::from_bytes(crate::model::weights::random(SMALL, &tensors, 1).expect("it can be stored"));
            assert_eq!(model.is_ok(), known, "{name}");
        }
    }
}
