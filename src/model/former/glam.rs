//! The architecture `glam_nnformer`: nnFormer's backbone with window tokens that attend to each other across windows.
//!
//! Source: Themyr et al., "Full Contextual Attention for Multi-resolution Transformers in Semantic Segmentation" (WACV 2023);
//! the authors' files in three dimensions differ, see [`GlamVariant`].

use serde::{Deserialize, Serialize};

use super::{Builder, Shape, Stage};
use crate::graph::NodeId;
use crate::model::architecture::{Architecture, Built};

/// Which of the authors' files is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum GlamVariant {
    /// `nnformergt_good.py` of Myyyr/UTransformer: tokens have a residual and the MLP of the voxels.
    #[default]
    #[serde(rename = "a")]
    A,
    /// `nnformer_gt_v2.py` of Myyyr/medTransgt: tokens become what they saw, as in the published code in two dimensions.
    #[serde(rename = "d")]
    D,
}

/// Arguments of GLAM-nnFormer, as in the card; the defaults are those of the BCV model with one token in a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GlamNnFormerConfig {
    /// Which of the authors' files is followed.
    pub variant: GlamVariant,
    /// The only extent that the network takes.
    pub crop: [u32; 3],
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of the first stage; each further one has twice as many.
    pub embed_dim: u32,
    /// Blocks of each stage of the encoder.
    pub depths: Vec<u32>,
    /// Blocks of each stage of the decoder, deepest first; empty: two each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decoder_depths: Vec<u32>,
    /// Attention heads of each stage.
    pub heads: Vec<u32>,
    /// Voxels of a token.
    pub patch: [u32; 3],
    /// Tokens of a window along each axis, for each stage.
    pub window: Vec<u32>,
    /// Learned tokens of each window.
    pub window_tokens: u32,
}

impl Default for GlamNnFormerConfig {
    fn default() -> Self {
        Self {
            variant: GlamVariant::A,
            crop: [64, 128, 128],
            in_channels: 1,
            classes: 14,
            embed_dim: 192,
            depths: vec![2; 4],
            decoder_depths: Vec::new(),
            heads: vec![6, 12, 24, 48],
            patch: [2, 4, 4],
            window: vec![4; 4],
            window_tokens: 1,
        }
    }
}

impl Architecture for GlamNnFormerConfig {
    const NAME: &'static str = "glam_nnformer";

    fn build(&self) -> Result<Built, String> {
        let shape = self.shape();
        shape.check()?;
        if self.patch != [2, 4, 4] {
            return Err(format!("patch is {:?}, must be [2, 4, 4]: the embedding has no other strides", self.patch));
        }
        if !(1..=32).contains(&self.window_tokens) {
            return Err(format!("window_tokens is {}, must be 1 to 32", self.window_tokens));
        }
        for i in 0..shape.stages() {
            let (tokens, rows) = (shape.stage(i, false).tokens(self.window_tokens), self.rows(i));
            if tokens > rows {
                return Err(format!("stage {i} has {tokens} window tokens in its crop, but positions of {rows} alone"));
            }
        }
        let mut b = Builder::default();
        let skips = b.encode(&shape, |b, stage, x| self.blocks(b, stage, x));
        b.decode(&shape, &skips, |b, stage, [up, skip]| {
            let x = b.add(format!("{}.sum", stage.module), up, skip);
            self.blocks(b, stage, x)
        });
        Ok(b.built(self.crop))
    }
}

impl GlamNnFormerConfig {
    fn shape(&self) -> Shape {
        let two_each = vec![2; self.depths.len().saturating_sub(1)];
        Shape {
            crop: self.crop,
            in_channels: self.in_channels,
            classes: self.classes,
            embed_dim: self.embed_dim,
            depths: self.depths.clone(),
            decoder_depths: if self.decoder_depths.is_empty() { two_each } else { self.decoder_depths.clone() },
            heads: self.heads.clone(),
            patch: self.patch,
            window: self.window.clone(),
            merging: [2, 0],
            decoder: "encoder",
        }
    }

    /// Rows of the table of positions of stage `i`: of a crop of 64x128x128 with windows of 4, whatever the crop (`ws_pe`).
    fn rows(&self, i: usize) -> u32 {
        let along = |n: u32| (n * self.window_tokens) >> i;
        let first = if self.variant == GlamVariant::A { 16 } else { 8 };
        along(first) * along(8) * along(8)
    }

    fn blocks(&self, b: &mut Builder, stage: &Stage, x: NodeId) -> NodeId {
        b.token_blocks(stage, x, self.window_tokens, self.rows(stage.level), self.variant == GlamVariant::A)
    }
}
