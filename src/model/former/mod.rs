//! What nnFormer, GLAM-nnFormer and FINE share: patch embedding, Swin blocks in three dimensions, merging, expanding, head.
//!
//! Source: Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer" (IEEE TIP 2023), as
//! `nnFormer_synapse.py` of 282857341/nnFormer computes it; node names are that module's paths. Numbers along three axes are
//! D, H, W.

use super::architecture::Built;
use super::weights::Tolerance;
use crate::graph::{Combine, Conv, ConvTranspose, Graph, NodeId, Op, RelativeBias, WindowAttention};
use crate::kernels::{Activation, WindowShape};

mod fine;
mod glam;
mod nnformer;
#[cfg(test)]
mod tests;
mod tokens;

pub use fine::FineConfig;
pub use glam::{GlamNnFormerConfig, GlamVariant};
pub use nnformer::NnFormerConfig;

/// Most stages, blocks of a stage, and voxels of a window along an axis.
const MOST: u32 = 32;

/// Of every layer norm.
const EPS: f64 = 1e-5;

/// The arguments that all of them have.
struct Shape {
    crop: [u32; 3],
    in_channels: u32,
    classes: u32,
    embed_dim: u32,
    depths: Vec<u32>,
    decoder_depths: Vec<u32>,
    heads: Vec<u32>,
    patch: [u32; 3],
    window: Vec<u32>,
    /// Kernel and padding of the convolution that merges patches with stride 2.
    merging: [u32; 2],
    /// Module of the decoder.
    decoder: &'static str,
}

impl Shape {
    fn check(&self) -> Result<(), String> {
        let stages = self.depths.len();
        let count = |n: &u32| (1..=MOST).contains(n);
        let width = |n: &u32| (1..=65_536).contains(n);
        if !(2..=8).contains(&stages) || !self.depths.iter().all(count) {
            return Err(format!("depths is {:?}, must be 2 to 8 numbers of 1 to {MOST}", self.depths));
        }
        if self.decoder_depths.len() != stages - 1 || !self.decoder_depths.iter().all(count) {
            return Err(format!("decoder_depths is {:?}, must be {} numbers of 1 to {MOST}", self.decoder_depths, stages - 1));
        }
        if self.window.len() != stages || !self.window.iter().all(count) {
            return Err(format!("window is {:?}, must be a number of 1 to {MOST} for each of {stages} stages", self.window));
        }
        if ![&self.in_channels, &self.classes, &self.embed_dim].into_iter().all(width) || !self.embed_dim.is_multiple_of(2) {
            return Err("in_channels, classes and embed_dim must be 1 to 65536, embed_dim even".into());
        }
        let divides = |(i, &heads): (usize, &u32)| heads > 0 && (self.embed_dim << i).is_multiple_of(heads);
        if self.heads.len() != stages || !self.heads.iter().enumerate().all(divides) {
            return Err(format!("heads is {:?}, must be a divisor of {} x 2^i for each stage i of {stages}", self.heads, self.embed_dim));
        }
        // the strides of the embedding are fixed in the reference, the patch is that of the head
        if !matches!(self.patch, [2 | 4, 4, 4]) {
            return Err(format!("patch is {:?}, must be [2, 4, 4] or [4, 4, 4]", self.patch));
        }
        let multiple = self.patch.map(|n| n << (stages - 1));
        if self.crop.iter().zip(multiple).any(|(&n, of)| n == 0 || n > 4096 || !n.is_multiple_of(of)) {
            return Err(format!("crop is {:?}, must be positive multiples of {multiple:?}, at most 4096", self.crop));
        }
        Ok(())
    }

    fn stages(&self) -> usize {
        self.depths.len()
    }

    /// Stage `i` of the encoder, or the decoder's at the same grid.
    fn stage(&self, i: usize, decoder: bool) -> Stage {
        let grid = [0, 1, 2].map(|axis| (self.crop[axis] / self.patch[axis]) >> i);
        let least = grid.into_iter().min().unwrap_or(1);
        let window = self.window[i].min(least);
        Stage {
            module: format!("{}.layers.{i}", if decoder { self.decoder } else { "model_down" }),
            level: i,
            grid,
            // the decoder's list begins with the deepest stage, which its modules are stored after
            depth: if decoder { self.decoder_depths[self.stages() - 2 - i] } else { self.depths[i] },
            channels: self.embed_dim << i,
            heads: self.heads[i],
            window: [window; 3],
            // one window along an axis: nothing is shifted
            shift: if least <= self.window[i] { [0; 3] } else { [window / 2; 3] },
        }
    }
}

/// One stage.
struct Stage {
    module: String,
    /// Its number, 0 for the finest.
    level: usize,
    /// Tokens along each axis.
    grid: [u32; 3],
    depth: u32,
    channels: u32,
    heads: u32,
    window: [u32; 3],
    /// Of shifted blocks.
    shift: [u32; 3],
}

impl Stage {
    /// Attention in windows without tokens, whose queries, keys and values begin at these channels of their maps; `module` made
    /// keys and values. Maps are padded with zeros after the norm, before `module`: keys and values of padding are its bias.
    fn windows(&self, attn: &str, module: &str, first: [u32; 3], shifted: bool) -> WindowAttention {
        let name = |tensor: &str| format!("{attn}.relative_position_{tensor}");
        let shape = WindowShape {
            heads: self.heads,
            qk_channels: self.channels,
            v_channels: self.channels,
            first,
            scale: self.scale(),
            q_window: self.window,
            k_window: self.window,
            shift: if shifted { self.shift } else { [0; 3] },
            tokens: 0,
            token_queries: false,
            bias_rows: self.window.map(|n| 2 * n - 1).iter().product(),
        };
        let bias = RelativeBias { table: name("bias_table"), index: name("index") };
        WindowAttention { shape, bias: Some(bias), padding: Some(format!("{module}.bias")) }
    }

    #[expect(clippy::cast_possible_truncation, reason = "shaders compute in f32")]
    fn scale(&self) -> f32 {
        f64::from(self.channels / self.heads).powf(-0.5) as f32
    }
}

/// The row of the table for each query and key of a window: (3w - 1, 2w - 1, 1) times their offsets from -(w - 1) on. A stride
/// of 3w - 1 where (2w - 1)^2 would tell all offsets apart: they collide, and trained tables rely on it (nnFormer_synapse.py,
/// `relative_coords[:, :, 0] *= 3 * self.window_size[1] - 1`; fine.py and nnformergt_good.py copy it).
fn relative_index(shape: &WindowShape) -> Vec<f64> {
    let window = shape.k_window;
    let [d, h, w] = window;
    let voxels: Vec<[u32; 3]> = (0..d).flat_map(|i| (0..h).flat_map(move |j| (0..w).map(move |k| [i, j, k]))).collect();
    let along = |q: &[u32; 3], k: &[u32; 3], axis: usize| q[axis] + window[axis] - 1 - k[axis];
    let row = |q: &[u32; 3], k: &[u32; 3]| along(q, k, 0) * (3 * h - 1) + along(q, k, 1) * (2 * h - 1) + along(q, k, 2);
    voxels.iter().flat_map(|q| voxels.iter().map(move |k| f64::from(row(q, k)))).collect()
}

/// The graph under construction, and the modules that are left out of it.
#[derive(Default)]
struct Builder {
    graph: Graph,
    /// Prefixes of tensors that a checkpoint holds and no output depends on.
    dead: Vec<String>,
}

impl Builder {
    /// The network of a crop: positions in windows and grids are baked into the references.
    fn built(self, crop: [u32; 3]) -> Built {
        let tolerance = Tolerance { dead: self.dead, relative_index: Some(relative_index), ..Tolerance::default() };
        Built { crop: Some(crop), tolerance, ..Built::new(self.graph, crop) }
    }

    /// A linear layer over the channels of each token, under another node name than its module's where that is applied twice.
    fn linear_as(&mut self, name: String, module: &str, x: NodeId, [cin, cout]: [u32; 2]) -> NodeId {
        let shape = vec![cout as usize, cin as usize];
        let conv = Conv { module: module.to_owned(), in_channels: cin, out_channels: cout, weight_shape: shape, ..Conv::default() };
        self.graph.add(name, Op::Conv(conv), &[x])
    }

    fn linear(&mut self, module: &str, x: NodeId, c: [u32; 2]) -> NodeId {
        self.linear_as(module.to_owned(), module, x, c)
    }

    fn conv(&mut self, module: &str, x: NodeId, [cin, cout]: [u32; 2], kernel: u32, stride: [u32; 3], padding: u32) -> NodeId {
        let conv = Conv {
            module: module.to_owned(),
            in_channels: cin,
            out_channels: cout,
            kernel: [kernel; 3],
            stride,
            padding: [padding; 3],
            weight_shape: [cout, cin, kernel, kernel, kernel].map(|n| n as usize).to_vec(),
            ..Conv::default()
        };
        self.graph.add(module, Op::Conv(conv), &[x])
    }

    /// A transposed convolution whose blocks do not overlap.
    fn expand(&mut self, module: &str, x: NodeId, [cin, cout]: [u32; 2], kernel: [u32; 3]) -> NodeId {
        let conv = ConvTranspose {
            module: module.to_owned(),
            in_channels: cin,
            out_channels: cout,
            kernel,
            stride: kernel,
            weight_shape: [cin, cout].iter().chain(&kernel).map(|&n| n as usize).collect(),
            ..ConvTranspose::default()
        };
        self.graph.add(module, Op::ConvTranspose(conv), &[x])
    }

    fn norm_as(&mut self, name: String, module: &str, x: NodeId, channels: u32) -> NodeId {
        let (before, after) = (Activation::None, Activation::None);
        self.graph.add(name, Op::LayerNorm { module: Some(module.to_owned()), channels, eps: EPS, before, after }, &[x])
    }

    fn norm(&mut self, module: &str, x: NodeId, channels: u32) -> NodeId {
        self.norm_as(module.to_owned(), module, x, channels)
    }

    fn gelu(&mut self, name: String, x: NodeId) -> NodeId {
        self.graph.add(name, Op::Activation(Activation::Gelu), &[x])
    }

    fn add(&mut self, name: String, x: NodeId, y: NodeId) -> NodeId {
        self.graph.add(name, Op::Add(Combine::default()), &[x, y])
    }

    /// x + MLP(norm2(x)); `of` tells tokens from voxels, which share the weights.
    fn mlp(&mut self, block: &str, of: &str, x: NodeId, c: u32) -> NodeId {
        let y = self.norm_as(format!("{block}.norm2{of}"), &format!("{block}.norm2"), x, c);
        let y = self.linear_as(format!("{block}.mlp.fc1{of}"), &format!("{block}.mlp.fc1"), y, [c, 4 * c]);
        let y = self.gelu(format!("{block}.mlp.act{of}"), y);
        let y = self.linear_as(format!("{block}.mlp.fc2{of}"), &format!("{block}.mlp.fc2"), y, [4 * c, c]);
        self.add(format!("{block}{of}"), x, y)
    }

    /// What follows attention in windows: the projection, the residual, and the MLP with its own.
    fn finish(&mut self, block: &str, x: NodeId, attended: NodeId, c: u32) -> NodeId {
        let y = self.linear(&format!("{block}.attn.proj"), attended, [c, c]);
        let y = self.add(format!("{block}.attended"), x, y);
        self.mlp(block, "", y, c)
    }

    /// Two blocks of strided convolutions; the order is convolution, GELU, norm.
    fn embed(&mut self, s: &Shape) -> NodeId {
        let c = s.embed_dim;
        let strides = [[2; 3], [s.patch[0] / 2, 2, 2]];
        let mut x = self.graph.add("input", Op::Input { channels: s.in_channels }, &[]);
        for (i, [cin, cout]) in [[s.in_channels, c / 2], [c / 2, c]].into_iter().enumerate() {
            let module = format!("model_down.patch_embed.proj{}", i + 1);
            x = self.conv(&format!("{module}.conv1"), x, [cin, cout], 3, strides[i], 1);
            x = self.gelu(format!("{module}.act1"), x);
            x = self.norm(&format!("{module}.norm1"), x, cout);
            x = self.conv(&format!("{module}.conv2"), x, [cout, cout], 3, [1; 3], 1);
            if i == 0 {
                x = self.gelu(format!("{module}.act2"), x);
                x = self.norm(&format!("{module}.norm2"), x, cout);
            }
        }
        self.norm("model_down.patch_embed.norm", x, c)
    }

    /// The encoder: the normed results of its stages, deepest last. `stage` computes the blocks of one.
    fn encode(&mut self, s: &Shape, mut stage: impl FnMut(&mut Self, &Stage, NodeId) -> NodeId) -> Vec<NodeId> {
        let mut x = self.embed(s);
        let mut skips = Vec::new();
        for i in 0..s.stages() {
            let this = s.stage(i, false);
            x = stage(self, &this, x);
            skips.push(self.norm(&format!("model_down.norm{i}"), x, this.channels));
            let merging = format!("{}.downsample", this.module);
            if i + 1 == s.stages() {
                // GLAM and FINE have one more, whose result nobody reads
                self.dead.push(format!("{merging}."));
                break;
            }
            // what goes on is not normed
            x = self.gelu(format!("{merging}.act"), x);
            x = self.norm(&format!("{merging}.norm"), x, this.channels);
            x = self.conv(&format!("{merging}.reduction"), x, [this.channels, 2 * this.channels], s.merging[0], [2; 3], s.merging[1]);
        }
        skips
    }

    /// The decoder, deepest stage first, and the head; `stage` computes the blocks of one from what was expanded and the skip.
    fn decode(&mut self, s: &Shape, skips: &[NodeId], mut stage: impl FnMut(&mut Self, &Stage, [NodeId; 2]) -> NodeId) {
        let mut x = skips[skips.len() - 1];
        for i in (0..s.stages() - 1).rev() {
            let this = s.stage(i, true);
            let up = format!("{}.Upsample", this.module);
            x = self.norm(&format!("{up}.norm"), x, 2 * this.channels);
            x = self.expand(&format!("{up}.up"), x, [2 * this.channels, this.channels], [2; 3]);
            x = stage(self, &this, [x, skips[i]]);
            if i > 0 {
                // deep supervision
                self.dead.push(format!("final.{i}."));
            }
        }
        self.expand("final.0.up", x, [s.embed_dim, s.classes], s.patch);
    }
}
