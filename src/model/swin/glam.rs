//! The architecture `glam_swin_unet`: Swin-Unet with window tokens that attend to each other across windows, and, if asked for,
//! non-local upsampling.
//!
//! Source: Themyr et al., "Full Contextual Attention for Multi-resolution Transformers in Semantic Segmentation" (WACV 2023), as
//! `swin_unet_v2_utils_gtv8.py` and `swin_unet_v2_gtv8_cross_attention_utils.py` of themyrl/glam compute it.

use serde::{Deserialize, Serialize};

use super::{Image, Shape};
use crate::graph::{NodeId, Op, RelativeBias, WindowAttention};
use crate::kernels::WindowShape;
use crate::model::architecture::{Architecture, Built};
use crate::model::blocks::{Builder, Stage, head_scale};

/// Arguments of GLAM-Swin-Unet, as in the card; the defaults are those of the tiny model for ADE20K with one token in a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GlamSwinUnetConfig {
    /// Voxels of each plane, `n` or `[h, w]`: the only ones that the network takes. What is no multiple of the patch is padded with
    /// zeros at the end, and its logits are resized to the image.
    pub image: Image,
    /// Voxels of a token along H and W: 4.
    pub patch: u32,
    /// Input channels.
    pub in_channels: u32,
    /// Channels of the first stage; each further one has twice as many.
    pub embed_dim: u32,
    /// Blocks of each stage of the encoder; the decoder's stages have as many.
    pub depths: Vec<u32>,
    /// Attention heads of each stage.
    pub heads: Vec<u32>,
    /// Tokens of a window along H and W.
    pub window: u32,
    /// Learned tokens of each window.
    pub window_tokens: u32,
    /// The decoder asks its skips where to upsample to (NLU) instead of expanding patches.
    pub non_local_upsampling: bool,
    /// Factor of non-local upsampling's attention and of its MLP beside what they are added to.
    pub cross_attention_weight: f64,
    /// The shortcut of non-local upsampling is an expansion of patches; else a linear layer, upsampled linearly with corners aligned,
    /// for grids without odd sides.
    pub residual_patch_expand: bool,
    /// Classes, background included.
    pub classes: u32,
}

impl Default for GlamSwinUnetConfig {
    fn default() -> Self {
        Self {
            image: Image::Square(512),
            patch: 4,
            in_channels: 3,
            embed_dim: 96,
            depths: vec![2, 2, 6, 2],
            heads: vec![3, 6, 12, 24],
            window: 7,
            window_tokens: 1,
            non_local_upsampling: false,
            cross_attention_weight: 1.0,
            residual_patch_expand: true,
            classes: 150,
        }
    }
}

impl Architecture for GlamSwinUnetConfig {
    const NAME: &'static str = "glam_swin_unet";

    fn build(&self) -> Result<Built, String> {
        let shape = self.shape();
        shape.check()?;
        self.check_tokens(&shape)?;
        self.check_upsampling(&shape)?;
        let mut b = Builder::default();
        let (skips, x) = shape.encode(&mut b, |b, stage, x| self.blocks(b, stage, x));
        let x = if self.non_local_upsampling {
            self.decode(&mut b, &shape, &skips, x)
        } else {
            shape.decode(&mut b, &skips, x, |b, stage, x| self.blocks(b, stage, x))
        };
        shape.tail(&mut b, x);
        Ok(shape.built(b, false))
    }
}

impl GlamSwinUnetConfig {
    fn shape(&self) -> Shape {
        Shape {
            prefix: "",
            image: self.image.sides(),
            patch: self.patch,
            in_channels: self.in_channels,
            classes: self.classes,
            embed_dim: self.embed_dim,
            depths: self.depths.clone(),
            heads: self.heads.clone(),
            window: self.window,
        }
    }

    fn check_tokens(&self, shape: &Shape) -> Result<(), String> {
        if !(1..=32).contains(&self.window_tokens) {
            return Err(format!("window_tokens is {}, must be 1 to 32", self.window_tokens));
        }
        for i in 0..shape.stages() {
            let [h, w] = shape.resolution(i);
            if h != w && h.min(w) <= self.window {
                let text = format!("image is {}: stage {i} has {h}x{w} tokens", shape.named());
                return Err(format!("{text}, which for a window of {} must be as many along both axes", self.window));
            }
            let (tokens, rows) = (shape.stage(i, String::new()).tokens(self.window_tokens), self.rows(i));
            if tokens > rows {
                return Err(format!("image is {}: stage {i} has {tokens} window tokens, but positions of {rows} alone", shape.named()));
            }
        }
        Ok(())
    }

    fn check_upsampling(&self, shape: &Shape) -> Result<(), String> {
        if !self.cross_attention_weight.is_finite() {
            return Err(format!("cross_attention_weight is {}, must be finite", self.cross_attention_weight));
        }
        let odd = (0..shape.stages() - 1).find(|&i| shape.grid(i).iter().any(|n| n % 2 == 1));
        if let Some(i) = odd.filter(|_| self.non_local_upsampling && !self.residual_patch_expand) {
            let [h, w] = shape.grid(i);
            return Err(format!(
                "image is {}: stage {i} has {h}x{w} tokens, odd ones, so that residual_patch_expand must be",
                shape.named()
            ));
        }
        Ok(())
    }

    /// Rows of the table of positions of stage `i`, whatever the image and the window (`45*gt_num//2**i`, squared).
    fn rows(&self, i: usize) -> u32 {
        ((45 * self.window_tokens) >> i).pow(2)
    }

    /// Blocks with window tokens; the tokens become what they saw.
    fn blocks(&self, b: &mut Builder, stage: &Stage, x: NodeId) -> NodeId {
        b.token_blocks(stage, x, self.window_tokens, self.rows(stage.level), false)
    }

    /// The decoder of non-local upsampling, deepest stage first.
    fn decode(&self, b: &mut Builder, shape: &Shape, skips: &[NodeId], mut x: NodeId) -> NodeId {
        for (k, i) in (0..).zip((0..shape.stages() - 1).rev()) {
            x = self.upsample(b, shape, &format!("layers_cross_attention_up.{k}.blocks.0"), [x, skips[i]], i);
            x = shape.join(b, k, [x, skips[i]], i);
            x = self.blocks(b, &shape.stage(i, format!("layers_up.{k}")), x);
            // the expansion that non-local upsampling replaces
            b.dead.push(format!("layers_patch_expand.{k}."));
        }
        x
    }

    /// From the grid of stage `i + 1` to that of stage `i`: windows of the skip, which is not normed, ask those of the normed map
    /// below; patch expanding, or linear upsampling, is the shortcut.
    fn upsample(&self, b: &mut Builder, shape: &Shape, block: &str, [x, skip]: [NodeId; 2], i: usize) -> NodeId {
        let (c, fine) = (shape.channels(i + 1), shape.channels(i));
        let (attn, heads, w) = (format!("{block}.attn"), self.heads[i], self.window);
        // the reference has both shortcuts' weights
        let [expand, linear] = ["expand", "proj_shortcut"].map(|part| format!("{block}.{part}"));
        let (shortcut, dead) = if self.residual_patch_expand {
            (shape.expand(b, &expand, x, i + 1), linear)
        } else {
            let y = b.linear(&linear, x, [c, fine]);
            (b.graph.add(format!("{linear}.up"), Op::upsample([1, 2, 2]), &[y]), expand)
        };
        b.dead.push(format!("{dead}."));
        let y = b.norm(&format!("{block}.norm1"), x, c);
        let kv = b.linear(&format!("{attn}.proj_kv"), y, [c, 2 * c]);
        let q = b.linear(&format!("{attn}.proj_q"), skip, [fine, c]);
        let windows = WindowShape {
            heads,
            qk_channels: c,
            v_channels: c,
            first: [0, 0, c],
            scale: head_scale(c / heads),
            // whatever the image: no window is as small as its map here
            q_window: [1, 2 * w, 2 * w],
            k_window: [1, w, w],
            shift: [0; 3],
            tokens: 0,
            token_queries: false,
            bias_rows: (4 * w - 1).pow(2),
        };
        let name = |tensor: &str| format!("{attn}.relative_position_{tensor}");
        let bias = Some(RelativeBias { table: name("bias_table"), index: name("index") });
        let padding = Some(format!("{attn}.proj_kv.bias"));
        let y = b.graph.add(attn.clone(), Op::WindowAttention(WindowAttention { shape: windows, bias, padding, clipped: false }), &[q, kv]);
        let (proj, weight) = (format!("{attn}.proj"), self.cross_attention_weight);
        let y = b.linear_scaled(proj.clone(), &proj, y, [c, fine], weight);
        let y = b.add(format!("{block}.attended"), y, shortcut);
        b.mlp_scaled(block, "", y, fine, weight)
    }
}

/// The row of the table for each query and key of windows in non-local upsampling. The coordinates of key k are those of every
/// fourth voxel of the finer window, halved, not those of its own raster (`WindowCrossAttention`: `coords[::4]`, sic), and rows
/// follow each other as in windows of half the size; so most of the table is never read.
pub(super) fn relative_index(shape: &WindowShape) -> Vec<f64> {
    let (w, fine) = (shape.k_window[2], shape.q_window[2]);
    let halved = |n: u32| [n / fine / 2, n % fine / 2];
    let (queries, keys) = (shape.q_window[1] * fine, shape.k_window[1] * w);
    let row = |q: [u32; 2], k: [u32; 2]| (2 * w - 1) * (q[0] + w - 1 - k[0]) + (q[1] + w - 1 - k[1]);
    (0..queries).flat_map(|q| (0..keys).map(move |k| f64::from(row(halved(q), halved(4 * k))))).collect()
}
