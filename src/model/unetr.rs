//! The architecture `unetr`: a vision transformer over patches of the volume, and a convolutional decoder of its states.
//!
//! Source: Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation" (WACV 2022), as `UNETR` of MONAI 1.6
//! computes it with the settings of research-contributions' BTCV recipe; node names are that module's paths.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::blocks;
use super::layers::{Layers, check_dims};
use super::monai_parts::{MonaiNorm, UnetrBlocks};
use super::plain_conv_unet::UnetNorm;
use super::weights::Tolerance;
use crate::graph::{Attention, Conv, NodeId, Op, Parameter};
use crate::kernels::{Activation, TokenChannels};
use crate::shape::Extent;

/// Blocks of the transformer.
const BLOCKS: u32 = 12;

/// Voxels of a patch along each axis.
const PATCH: u32 = 16;

/// Blocks whose states the decoder sees: the outputs of blocks 3, 6 and 9, counted from 0, so after four, seven and ten blocks,
/// where the paper has three, six and nine (`hidden_states_out[3]`, `[6]`, `[9]` of MONAI).
const SEEN: [u32; 3] = [3, 6, 9];

/// How patches are embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnetrProjection {
    /// A linear layer over the voxels of a patch, each with its channels.
    #[default]
    Perceptron,
    /// A convolution whose kernel and stride are the patch.
    Conv,
}

/// Arguments of UNETR, as in the card; the defaults are those of the BTCV recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnetrConfig {
    /// 2 (each plane is an image) or 3.
    pub dims: u32,
    /// The only extent that the network takes along D, H, W: positions are learned. Of two
    /// dimensions D is 1.
    pub image: [u32; 3],
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels at full resolution; half of them, a quarter, an eighth as fine: twice, four, eight times as many.
    pub feature_size: u32,
    /// Channels of a token.
    pub hidden: u32,
    /// Channels within the MLP of a block.
    pub mlp: u32,
    /// Attention heads.
    pub heads: u32,
    /// How patches are embedded.
    pub projection: UnetrProjection,
    /// Whether convolutions follow the transposed ones on the way from the states to the decoder.
    pub conv_block: bool,
    /// Whether pairs of convolutions have a residual.
    pub res_block: bool,
    /// What normalises convolutions; instance norm has no affine parameters here.
    pub norm: UnetNorm,
}

impl Default for UnetrConfig {
    fn default() -> Self {
        Self {
            dims: 3,
            image: [96; 3],
            in_channels: 1,
            classes: 14,
            feature_size: 16,
            hidden: 768,
            mlp: 3072,
            heads: 12,
            projection: UnetrProjection::Perceptron,
            conv_block: true,
            res_block: true,
            norm: UnetNorm::Instance,
        }
    }
}

impl Architecture for UnetrConfig {
    const NAME: &'static str = "unetr";

    fn build(&self) -> Result<Built, String> {
        self.check()?;
        let l = Layers::new(self.dims, self.in_channels);
        let UnetNorm::Instance = self.norm;
        let b = UnetrBlocks { l, norm: MonaiNorm::InstancePlain, residual: self.res_block };
        let mut b = Builder { b, config: self };
        b.network();
        // an unused norm of recent versions, a class token of old ones
        let unused = (0..BLOCKS).map(|i| format!("vit.blocks.{i}.norm_cross_attn.")).chain(["vit.patch_embedding.cls_token".into()]);
        let tolerance = Tolerance { dead: unused.collect(), ..Tolerance::default() };
        Ok(Built { dims: self.dims, crop: Some(self.image), tolerance, ..Built::new(b.b.l.graph, self.image) })
    }
}

impl UnetrConfig {
    fn check(&self) -> Result<(), String> {
        check_dims(self.dims)?;
        let axes = &self.image[3 - self.dims as usize..];
        if axes.iter().any(|&n| n == 0 || n > 4096 || !n.is_multiple_of(PATCH)) || (self.dims == 2 && self.image[0] != 1) {
            let flat = if self.dims == 2 { ", after 1 along D" } else { "" };
            return Err(format!("image is {:?}, must be positive multiples of {PATCH}, at most 4096{flat}", self.image));
        }
        let width = |n: u32| (1..=65_536).contains(&n);
        if ![self.in_channels, self.classes, self.hidden, self.mlp].into_iter().all(width) || !(1..=4096).contains(&self.feature_size) {
            return Err("in_channels, classes, hidden and mlp must be 1 to 65536, feature_size 1 to 4096".into());
        }
        if self.heads == 0 || !self.hidden.is_multiple_of(self.heads) {
            return Err(format!("{} heads do not divide {} hidden channels", self.heads, self.hidden));
        }
        Ok(())
    }
}

struct Builder<'a> {
    b: UnetrBlocks,
    config: &'a UnetrConfig,
}

impl Builder<'_> {
    fn network(&mut self) {
        let (c, f) = (self.config, self.config.feature_size);
        let input = self.b.l.input;
        let (bottleneck, states) = self.transformer(input);
        let enc1 = self.b.pair("encoder1.layer", input, [c.in_channels, f]);
        let enc2 = self.rise("encoder2", states[0], 2 * f, 2);
        let enc3 = self.rise("encoder3", states[1], 4 * f, 1);
        let enc4 = self.rise("encoder4", states[2], 8 * f, 0);
        let (mut x, mut width) = (bottleneck, c.hidden);
        for (level, skip, features) in [(5, enc4, 8 * f), (4, enc3, 4 * f), (3, enc2, 2 * f), (2, enc1, f)] {
            x = self.b.up(&format!("decoder{level}"), x, skip, [width, features]);
            width = features;
        }
        self.b.conv("out.conv", x, [f, c.classes], 1, true);
    }

    /// The normed result of the transformer, and the states that the decoder sees besides, without that norm.
    fn transformer(&mut self, input: NodeId) -> (NodeId, Vec<NodeId>) {
        let c = self.config;
        let patch = self.b.l.cube(PATCH);
        let (hidden, grid) = (c.hidden, Extent::from([0, 1, 2].map(|axis| c.image[axis] / patch[axis])));
        let perceptron = c.projection == UnetrProjection::Perceptron;
        let module = format!("vit.patch_embedding.patch_embeddings{}", if perceptron { ".1" } else { "" });
        let conv = Conv {
            module: module.clone(),
            in_channels: c.in_channels,
            out_channels: hidden,
            kernel: patch,
            stride: patch,
            weight_shape: if perceptron {
                vec![hidden as usize, c.in_channels as usize * patch.map(|n| n as usize).iter().product::<usize>()]
            } else {
                self.b.l.weight_shape([hidden, c.in_channels], patch)
            },
            over_patches: perceptron,
            ..Conv::default()
        };
        let x = self.b.l.graph.add(module, Op::Conv(conv), &[input]);
        let tokens = grid.d * grid.h * grid.w;
        let tensor = "vit.patch_embedding.position_embeddings".to_owned();
        let positions = Parameter {
            tensor: tensor.clone(),
            shape: [tokens, hidden],
            batched: true,
            rows: 0..tokens,
            extent: grid,
            per_plane: c.dims == 2,
        };
        let positions = self.b.l.graph.add(tensor, Op::Parameter(positions), &[]);
        let mut x = self.b.l.add("vit.patch_embedding", x, positions);
        let mut states = Vec::new();
        for i in 0..BLOCKS {
            x = self.block(&format!("vit.blocks.{i}"), x);
            if SEEN.contains(&i) {
                states.push(x);
            }
        }
        (self.layer_norm("vit.norm", x), states)
    }

    /// One block; the projection to queries, keys and values has no bias.
    fn block(&mut self, block: &str, x: NodeId) -> NodeId {
        let c = self.config;
        let y = self.layer_norm(&format!("{block}.norm1"), x);
        let qkv = self.linear(&format!("{block}.attn.qkv"), y, [c.hidden, 3 * c.hidden], false);
        let scale = blocks::head_scale(c.hidden / c.heads);
        let channels = Some(TokenChannels { qk: c.hidden, v: c.hidden, first: [0, c.hidden, 2 * c.hidden] });
        let attention = Attention { heads: c.heads, scale, channels, per_plane: c.dims == 2, ..Attention::default() };
        let y = self.b.l.graph.add(format!("{block}.attn"), Op::Attention(attention), &[qkv; 3]);
        let y = self.linear(&format!("{block}.attn.out_proj"), y, [c.hidden; 2], true);
        let x = self.b.l.add(format!("{block}.attended"), x, y);
        let y = self.layer_norm(&format!("{block}.norm2"), x);
        let y = self.linear(&format!("{block}.mlp.linear1"), y, [c.hidden, c.mlp], true);
        let y = self.b.l.activation(format!("{block}.mlp.fn"), y, Activation::Gelu);
        let y = self.linear(&format!("{block}.mlp.linear2"), y, [c.mlp, c.hidden], true);
        self.b.l.add(block, x, y)
    }

    fn layer_norm(&mut self, module: &str, x: NodeId) -> NodeId {
        blocks::layer_norm(&mut self.b.l.graph, module, module, x, self.config.hidden, blocks::EPS)
    }

    fn linear(&mut self, module: &str, x: NodeId, c: [u32; 2], bias: bool) -> NodeId {
        blocks::linear(&mut self.b.l.graph, module, module, x, c, bias)
    }

    /// A state of the transformer at a resolution of the decoder: doubled once, and `times` more, each time convolved.
    fn rise(&mut self, module: &str, x: NodeId, channels: u32, times: u32) -> NodeId {
        let mut x = self.b.double(&format!("{module}.transp_conv_init"), x, [self.config.hidden, channels]);
        for i in 0..times {
            let block = format!("{module}.blocks.{i}");
            if self.config.conv_block {
                x = self.b.double(&format!("{block}.0"), x, [channels; 2]);
                x = self.b.pair(&format!("{block}.1"), x, [channels; 2]);
            } else {
                x = self.b.double(&block, x, [channels; 2]);
            }
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{DeviceCaps, Elem, Extent, LoadErrorKind, Model, Plan, PlanErrorKind, PlanOptions};

    fn small(more: &str) -> String {
        format!(
            r#"{{"architecture":"unetr","config":{{"image":[16,32,16],"classes":2,"feature_size":2,"hidden":8,"mlp":16,"heads":2{more}}}}}"#
        )
    }

    #[test]
    fn the_published_network_is_the_default_and_can_be_planned() {
        let (card, graph) = crate::model::architecture(r#"{"architecture":"unetr","config":{}}"#).expect("the defaults are one");
        assert_eq!((card.classes(), card.in_channels(), card.crop()), (14, 1, Some(Extent::new(96, 96, 96))));
        let elements: usize = graph.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        // 92.80 million are published, of which 12 norms of 2 x 768 are never used
        assert!((elements + 12 * 2 * 768).abs_diff(92_800_000) < 5_000, "{elements}");
        for (elem, most) in [(Elem::F32, 650_000_000), (Elem::F16, 330_000_000)] {
            let plan = Plan::of_graph(
                &graph,
                Extent::new(96, 96, 96),
                &DeviceCaps::desktop(),
                &PlanOptions::default().with_precision(elem).with_budget(most),
            );
            let report = plan.expect("it can be planned").report().clone();
            assert!(report.peak_bytes < most, "{} bytes", report.peak_bytes);
            // 146.5 are published
            assert!((145..152).contains(&(report.flops / 1_000_000_000)), "{} FLOP", report.flops);
        }
    }

    #[test]
    fn it_runs_on_its_image_alone() {
        let model = Model::random(&small(""), 1).expect("it is one");
        let plan = |extent| Plan::new(&model, extent, &DeviceCaps::host(), &PlanOptions::default());
        assert!(plan(Extent::new(16, 32, 16)).is_ok());
        let error = plan(Extent::new(16, 16, 16)).expect_err("positions are learned");
        assert_eq!(error.kind(), PlanErrorKind::Extent);
    }

    #[test]
    fn every_variant_can_be_planned() {
        for more in [r#","projection":"conv","in_channels":3"#, r#","conv_block":false"#, r#","res_block":false"#, r#","in_channels":2"#] {
            let model = Model::random(&small(more), 1).expect("it is one");
            Plan::new(&model, Extent::new(16, 32, 16), &DeviceCaps::host(), &PlanOptions::default()).expect("it can be planned");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (key, value) in [
            ("image", json!([16, 24, 16])),
            ("image", json!([0, 32, 16])),
            ("heads", json!(3)),
            ("heads", json!(0)),
            ("classes", json!(0)),
            ("feature_size", json!(100_000)),
        ] {
            let mut card: serde_json::Value = serde_json::from_str(&small("")).expect("JSON");
            card["config"][key] = value;
            let card = card.to_string();
            let error = Model::random(&card, 1).expect_err("it is none");
            assert!(error.kind() == LoadErrorKind::Card && error.to_string().contains(key), "{error}");
        }
        for unknown in [r#","norm":"batch""#, r#","projection":"fourier""#, r#","colour":1"#] {
            assert_eq!(Model::random(&small(unknown), 1).expect_err("it is none").kind(), LoadErrorKind::Card);
        }
    }

    #[test]
    fn unused_tensors_may_be_there() {
        let (_, graph) = crate::model::architecture(&small("")).expect("it is one");
        let with = |name: &str| {
            let mut tensors = graph.parameters();
            tensors.push((name.to_owned(), vec![8]));
            Model::from_bytes(crate::model::weights::random(&small(""), &tensors, 1).expect("it can be stored")).map(|_| ())
        };
        for name in ["vit.blocks.11.norm_cross_attn.weight", "vit.patch_embedding.cls_token"] {
            with(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        for name in ["vit.blocks.12.norm1.weight", "vit.cls", "out.conv.conv.scale"] {
            let error = with(name).expect_err("it means something");
            assert!(error.to_string().contains(&format!("extra {name}")), "{error}");
        }
    }
}
