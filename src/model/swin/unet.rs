//! The architecture `swin_unet`.

use serde::{Deserialize, Serialize};

use super::{PATCH, Shape};
use crate::model::architecture::{Architecture, Built};
use crate::model::blocks::Builder;

/// Arguments of Swin-Unet, as in the card; the defaults are those of the Synapse model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SwinUnetConfig {
    /// Voxels along H and along W of each plane: the only ones that the network takes.
    pub image: u32,
    /// Voxels of a token along H and W: 4.
    pub patch: u32,
    /// Input channels; an input of one channel is repeated to all of them.
    pub in_channels: u32,
    /// Channels of the first stage; each further one has twice as many.
    pub embed_dim: u32,
    /// Blocks of each stage of the encoder; the decoder's stages have as many.
    pub depths: Vec<u32>,
    /// Attention heads of each stage.
    pub heads: Vec<u32>,
    /// Tokens of a window along H and W.
    pub window: u32,
    /// Classes, background included.
    pub classes: u32,
}

impl Default for SwinUnetConfig {
    fn default() -> Self {
        Self { image: 224, patch: 4, in_channels: 3, embed_dim: 96, depths: vec![2; 4], heads: vec![3, 6, 12, 24], window: 7, classes: 9 }
    }
}

impl Architecture for SwinUnetConfig {
    const NAME: &'static str = "swin_unet";

    fn build(&self) -> Result<Built, String> {
        let shape = self.shape();
        shape.check()?;
        self.check_grids(&shape)?;
        let mut b = Builder::default();
        let (skips, x) = shape.encode(&mut b, |b, stage, x| b.blocks(stage, x, 0, |i| i % 2 == 1));
        // the decoder is as deep as the encoder, whatever `decoder_depths` says in the reference's own configs
        let x = shape.decode(&mut b, &skips, x, |b, stage, x| b.blocks(stage, x, 0, |i| i % 2 == 1));
        shape.tail(&mut b, x);
        // SwinUnet.forward: `if x.size()[1] == 1: x = x.repeat(1,3,1,1)`
        Ok(shape.built(b, self.in_channels == 3))
    }
}

impl SwinUnetConfig {
    fn shape(&self) -> Shape {
        Shape {
            prefix: "swin_unet.",
            image: [self.image; 2],
            patch: self.patch,
            in_channels: self.in_channels,
            classes: self.classes,
            embed_dim: self.embed_dim,
            depths: self.depths.clone(),
            heads: self.heads.clone(),
            window: self.window,
        }
    }

    /// The reference pads nowhere: grids are even until the last, and whole windows or smaller than one.
    fn check_grids(&self, shape: &Shape) -> Result<(), String> {
        if !self.image.is_multiple_of(PATCH) {
            return Err(format!("image is {}, must be a multiple of {PATCH}", self.image));
        }
        for i in 0..shape.stages() {
            let [n, _] = shape.grid(i);
            let odd = i + 1 < shape.stages() && n % 2 == 1;
            if odd || (n > self.window && !n.is_multiple_of(self.window)) {
                let what = if odd { "no even number".to_owned() } else { format!("no multiple of the window of {}", self.window) };
                return Err(format!("image is {}: stage {i} has {n} tokens along an axis, {what}", self.image));
            }
        }
        Ok(())
    }
}
