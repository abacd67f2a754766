//! The architecture `nnformer`.

use serde::{Deserialize, Serialize};

use super::{Builder, Shape, Stage};
use crate::graph::{NodeId, Op};
use crate::model::architecture::{Architecture, Built};

/// Arguments of nnFormer, as in the card; the defaults are those of the Synapse model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NnFormerConfig {
    /// The only extent that the network takes: positions in windows and grids are baked into the reference.
    pub crop: [u32; 3],
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of the first stage; each further one has twice as many.
    pub embed_dim: u32,
    /// Blocks of each stage; the decoder's stages have as many.
    pub depths: Vec<u32>,
    /// Attention heads of each stage.
    pub heads: Vec<u32>,
    /// Voxels of a token.
    pub patch: [u32; 3],
    /// Tokens of a window along each axis, for each stage.
    pub window: Vec<u32>,
}

impl Default for NnFormerConfig {
    fn default() -> Self {
        Self {
            crop: [64, 128, 128],
            in_channels: 1,
            classes: 14,
            embed_dim: 192,
            depths: vec![2; 4],
            heads: vec![6, 12, 24, 48],
            patch: [2, 4, 4],
            window: vec![4, 4, 8, 4],
        }
    }
}

impl Architecture for NnFormerConfig {
    const NAME: &'static str = "nnformer";

    fn build(&self) -> Result<Built, String> {
        let shape = self.shape();
        shape.check()?;
        if self.patch != [2, 4, 4] {
            return Err(format!("patch is {:?}, must be [2, 4, 4]: the embedding has no other strides", self.patch));
        }
        let mut b = Builder::default();
        let skips = b.encode(&shape, |b, stage, x| b.blocks(stage, x, 0, |i| i % 2 == 1));
        b.decode(&shape, &skips, |b, stage, [up, skip]| {
            let x = crossed(b, stage, up, skip);
            // every further block is shifted, not every second
            b.blocks(stage, x, 1, |_| true)
        });
        Ok(b.built(self.crop))
    }
}

impl NnFormerConfig {
    fn shape(&self) -> Shape {
        Shape {
            crop: self.crop,
            in_channels: self.in_channels,
            classes: self.classes,
            embed_dim: self.embed_dim,
            depths: self.depths.clone(),
            decoder_depths: self.depths.iter().rev().skip(1).copied().collect(),
            heads: self.heads.clone(),
            patch: self.patch,
            window: self.window.clone(),
            merging: [3, 1],
            decoder: "decoder",
        }
    }
}

/// The first block of a decoder's stage: what was expanded asks the skip. Its queries are not projected, and one norm serves
/// both (`SwinTransformerBlock_kv`: `q = x_up`, `self.norm1` twice); the residual is their sum.
fn crossed(b: &mut Builder, stage: &Stage, up: NodeId, skip: NodeId) -> NodeId {
    let c = stage.channels;
    let block = format!("{}.blocks.0", stage.module);
    let (attn, kv, norm) = (format!("{block}.attn"), format!("{block}.attn.kv"), format!("{block}.norm1"));
    let x = b.add(format!("{}.sum", stage.module), up, skip);
    let q = b.norm(&norm, up, c);
    let y = b.norm_as(format!("{norm}.skip"), &norm, skip, c);
    let y = b.linear(&kv, y, [c, 2 * c]);
    let windows = stage.windows(&attn, &kv, [0, 0, c], false);
    let y = b.graph.add(attn, Op::WindowAttention(windows), &[q, y]);
    b.finish(&block, x, y, c)
}
