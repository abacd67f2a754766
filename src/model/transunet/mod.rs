//! The architecture `transunet`: a residual network, a vision transformer over its last map, and a decoder with skips, in 2D.
//!
//! Source: Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation" (arXiv 2102.04306), as
//! `vit_seg_modeling.py` and `vit_seg_modeling_resnet_skip.py` of Beckschen/TransUNet compute `R50-ViT-B_16`; node names are
//! those modules' paths. Each plane of the input is an image of its own. Numbers along three axes are D, H, W.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::blocks::{Builder, head_scale};
use crate::graph::{Attention, BatchNorm, Conv, NodeId, Op, Parameter};
use crate::kernels::Activation;
use crate::shape::Extent;

mod resnet;
#[cfg(test)]
mod tests;

/// Of the layer norms.
const EPS: f64 = 1e-6;

/// Voxels of a token along H and W: the strides of the residual network.
const STRIDE: u32 = 16;

/// Channels that the decoder begins with (`DecoderCup`: `head_channels`).
const HEAD_CHANNELS: u32 = 512;

/// Arguments of TransUNet, as in the card; the defaults are those of the Synapse model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransUnetConfig {
    /// Voxels along H and along W of each plane: the only ones that the network takes.
    pub image: u32,
    /// Input channels; an input of one channel is repeated to three.
    pub in_channels: u32,
    /// Channels of a token.
    pub hidden: u32,
    /// Channels between the two layers of an MLP.
    pub mlp: u32,
    /// Attention heads.
    pub heads: u32,
    /// Layers of the transformer.
    pub layers: u32,
    /// Units of each of the three blocks of the residual network.
    pub resnet_layers: Vec<u32>,
    /// Channels of the residual network's root in units of 64; a multiple of one half.
    pub width_factor: f64,
    /// Channels of the four blocks of the decoder, deepest first.
    pub decoder_channels: Vec<u32>,
    /// Channels of the skip of each of them; those from number `skips` on count as 0.
    pub skip_channels: Vec<u32>,
    /// The deepest so many blocks have a skip, at most three.
    pub skips: u32,
    /// Classes, background included.
    pub classes: u32,
}

impl Default for TransUnetConfig {
    fn default() -> Self {
        Self {
            image: 224,
            in_channels: 3,
            hidden: 768,
            mlp: 3072,
            heads: 12,
            layers: 12,
            resnet_layers: vec![3, 4, 9],
            width_factor: 1.0,
            decoder_channels: vec![256, 128, 64, 16],
            skip_channels: vec![512, 256, 64, 16],
            skips: 3,
            classes: 9,
        }
    }
}

impl Architecture for TransUnetConfig {
    const NAME: &'static str = "transunet";

    fn build(&self) -> Result<Built, String> {
        self.check()?;
        let mut b = Builder::default();
        let (x, skips) = resnet::encode(&mut b, self);
        let x = self.transformer(&mut b, x);
        self.decode(&mut b, x, &skips);
        let crop = [1, self.image, self.image];
        // VisionTransformer.forward: `if x.size()[1] == 1: x = x.repeat(1,3,1,1)`
        Ok(Built { crop: Some(crop), dims: 2, grey: self.in_channels == 3, ..Built::new(b.graph, crop) })
    }
}

impl TransUnetConfig {
    /// Channels of the residual network's root (`int(64 * width_factor)`).
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked: 32 to 1024")]
    fn width(&self) -> u32 {
        (64.0 * self.width_factor) as u32
    }

    fn check(&self) -> Result<(), String> {
        let width = |n: &u32| (1..=65_536).contains(n);
        if !self.image.is_multiple_of(STRIDE) || !(STRIDE..=4096).contains(&self.image) {
            return Err(format!("image is {}, must be a multiple of {STRIDE} of at most 4096", self.image));
        }
        if ![&self.in_channels, &self.hidden, &self.mlp, &self.classes].into_iter().all(width) {
            return Err("in_channels, hidden, mlp and classes must be 1 to 65536".into());
        }
        if self.heads == 0 || !self.hidden.is_multiple_of(self.heads) {
            return Err(format!("heads is {}, must divide the hidden {}", self.heads, self.hidden));
        }
        if self.layers > 64 {
            return Err(format!("layers is {}, must be at most 64", self.layers));
        }
        if self.resnet_layers.len() != 3 || !self.resnet_layers.iter().all(|n| (1..=64).contains(n)) {
            return Err(format!("resnet_layers is {:?}, must be three numbers of 1 to 64", self.resnet_layers));
        }
        // groups of 32 divide every width
        let halves = 2.0 * self.width_factor;
        if !(1.0..=32.0).contains(&halves) || halves.fract() != 0.0 {
            return Err(format!("width_factor is {}, must be a multiple of 0.5 of at most 16", self.width_factor));
        }
        if self.decoder_channels.len() != 4 || !self.decoder_channels.iter().all(width) {
            return Err(format!("decoder_channels is {:?}, must be four numbers of 1 to 65536", self.decoder_channels));
        }
        if self.skips > 3 {
            return Err(format!("skips is {}, must be at most 3", self.skips));
        }
        let (taken, w) = (self.skips as usize, self.width());
        if self.skip_channels.len() != 4 || self.skip_channels[..taken] != [8 * w, 4 * w, w][..taken] {
            let text = format!("skip_channels is {:?}, must be four numbers that begin with", self.skip_channels);
            return Err(format!("{text} {:?}, those of the residual network", &[8 * w, 4 * w, w][..taken]));
        }
        Ok(())
    }

    /// Tokens with learned positions through all layers, normed.
    fn transformer(&self, b: &mut Builder, x: NodeId) -> NodeId {
        let (c, n) = (self.hidden, self.image / STRIDE);
        let x = conv(b, "transformer.embeddings.patch_embeddings", x, [resnet::last(self), c], &Conv::default());
        let tensor = "transformer.embeddings.position_embeddings".to_owned();
        let parameter = Parameter {
            tensor: tensor.clone(),
            shape: [n * n, c],
            batched: true,
            rows: 0..n * n,
            extent: Extent::new(1, n, n),
            per_plane: true,
        };
        let positions = b.graph.add(tensor, Op::Parameter(parameter), &[]);
        let mut x = b.add("transformer.embeddings".into(), x, positions);
        for i in 0..self.layers {
            x = self.layer(b, &format!("transformer.encoder.layer.{i}"), x);
        }
        let norm = "transformer.encoder.encoder_norm";
        b.norm_eps(norm.into(), norm, x, c, EPS)
    }

    fn layer(&self, b: &mut Builder, layer: &str, x: NodeId) -> NodeId {
        let c = self.hidden;
        let attn = format!("{layer}.attn");
        let norm = format!("{layer}.attention_norm");
        let y = b.norm_eps(norm.clone(), &norm, x, c, EPS);
        let qkv = ["query", "key", "value"].map(|part| b.linear(&format!("{attn}.{part}"), y, [c, c]));
        let attention = Attention { heads: self.heads, scale: head_scale(c / self.heads), per_plane: true, ..Attention::default() };
        let y = b.graph.add(attn.clone(), Op::Attention(attention), &qkv);
        let y = b.linear(&format!("{attn}.out"), y, [c, c]);
        let x = b.add(format!("{layer}.attended"), x, y);
        let norm = format!("{layer}.ffn_norm");
        let y = b.norm_eps(norm.clone(), &norm, x, c, EPS);
        let y = b.linear(&format!("{layer}.ffn.fc1"), y, [c, self.mlp]);
        let y = b.gelu(format!("{layer}.ffn.act"), y);
        let y = b.linear(&format!("{layer}.ffn.fc2"), y, [self.mlp, c]);
        b.add(layer.to_owned(), x, y)
    }

    /// Upsampling, the skip where there is one, and two convolutions, four times; then the classes.
    fn decode(&self, b: &mut Builder, x: NodeId, skips: &[NodeId; 3]) {
        let mut x = conv_norm(b, "decoder.conv_more", x, [self.hidden, HEAD_CHANNELS]);
        let mut width = HEAD_CHANNELS;
        for (i, &c) in self.decoder_channels.iter().enumerate() {
            let block = format!("decoder.blocks.{i}");
            x = b.graph.add(format!("{block}.up"), Op::upsample([1, 2, 2]), &[x]);
            if i < self.skips as usize {
                x = b.graph.add(format!("{block}.concat"), Op::Concat, &[x, skips[i]]);
                width += self.skip_channels[i];
            }
            x = conv_norm(b, &format!("{block}.conv1"), x, [width, c]);
            x = conv_norm(b, &format!("{block}.conv2"), x, [c, c]);
            width = c;
        }
        conv(b, "segmentation_head.0", x, [width, self.classes], &three());
    }
}

/// A kernel of 3x3 that keeps the extent of planes.
fn three() -> Conv {
    Conv { kernel: [1, 3, 3], padding: [0, 1, 1], ..Conv::default() }
}

/// A convolution of each plane; everything but its module and widths is that of `like`.
fn conv(b: &mut Builder, module: &str, x: NodeId, [cin, cout]: [u32; 2], like: &Conv) -> NodeId {
    let [_, h, w] = like.kernel;
    let conv = Conv {
        module: module.to_owned(),
        in_channels: cin,
        out_channels: cout,
        weight_shape: [cout, cin, h, w].map(|n| n as usize).to_vec(),
        ..like.clone()
    };
    b.graph.add(module, Op::Conv(conv), &[x])
}

/// Convolution, batch norm and ReLU.
fn conv_norm(b: &mut Builder, module: &str, x: NodeId, c: [u32; 2]) -> NodeId {
    let x = conv(b, &format!("{module}.0"), x, c, &Conv { bias: false, ..three() });
    let norm = BatchNorm { module: format!("{module}.1"), channels: c[1], eps: 1e-5 };
    let x = b.graph.add(norm.module.clone(), Op::BatchNorm(norm), &[x]);
    b.graph.add(module, Op::Activation(Activation::Relu), &[x])
}
