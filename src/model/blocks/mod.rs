//! What transformers are built of: linear layers, layer norms, MLPs, attention in windows, window tokens.
//!
//! Names of nodes are the modules' paths in the reference implementations. Numbers along three axes are D, H, W.

use crate::graph::{Combine, Conv, Graph, NodeId, Op};
use crate::kernels::Activation;

mod tokens;
mod windows;

pub(super) use windows::{Stage, head_scale};

/// Of every layer norm of the Swin family.
pub(super) const EPS: f64 = 1e-5;

/// The graph under construction, and the modules that are left out of it.
#[derive(Default)]
pub(super) struct Builder {
    pub graph: Graph,
    /// Prefixes of tensors that a checkpoint holds and no output depends on.
    pub dead: Vec<String>,
}

/// A linear layer over the channels of each token.
pub(super) fn linear(graph: &mut Graph, name: impl Into<String>, module: &str, x: NodeId, [cin, cout]: [u32; 2], bias: bool) -> NodeId {
    let weight_shape = vec![cout as usize, cin as usize];
    let conv = Conv { module: module.to_owned(), in_channels: cin, out_channels: cout, bias, weight_shape, ..Conv::default() };
    graph.add(name, Op::Conv(conv), &[x])
}

/// A layer norm over the channels of each token.
pub(super) fn layer_norm(graph: &mut Graph, name: impl Into<String>, module: &str, x: NodeId, channels: u32, eps: f64) -> NodeId {
    let (before, after) = (Activation::None, Activation::None);
    graph.add(name, Op::LayerNorm { module: Some(module.to_owned()), channels, eps, before, after }, &[x])
}

impl Builder {
    /// A linear layer over the channels of each token, under another node name than its module's where that is applied twice.
    pub(in crate::model) fn linear_as(&mut self, name: String, module: &str, x: NodeId, c: [u32; 2]) -> NodeId {
        linear(&mut self.graph, name, module, x, c, true)
    }

    pub(in crate::model) fn linear(&mut self, module: &str, x: NodeId, c: [u32; 2]) -> NodeId {
        self.linear_as(module.to_owned(), module, x, c)
    }

    /// A linear layer without a bias.
    pub(in crate::model) fn linear_unbiased(&mut self, module: &str, x: NodeId, c: [u32; 2]) -> NodeId {
        linear(&mut self.graph, module, module, x, c, false)
    }

    /// A linear layer whose result is multiplied by `gain`.
    pub(in crate::model) fn linear_scaled(&mut self, name: String, module: &str, x: NodeId, [cin, cout]: [u32; 2], gain: f64) -> NodeId {
        let weight_shape = vec![cout as usize, cin as usize];
        let conv = Conv { module: module.to_owned(), in_channels: cin, out_channels: cout, gain, weight_shape, ..Conv::default() };
        self.graph.add(name, Op::Conv(conv), &[x])
    }

    pub(in crate::model) fn norm_eps(&mut self, name: String, module: &str, x: NodeId, channels: u32, eps: f64) -> NodeId {
        layer_norm(&mut self.graph, name, module, x, channels, eps)
    }

    pub(in crate::model) fn norm_as(&mut self, name: String, module: &str, x: NodeId, channels: u32) -> NodeId {
        self.norm_eps(name, module, x, channels, EPS)
    }

    pub(in crate::model) fn norm(&mut self, module: &str, x: NodeId, channels: u32) -> NodeId {
        self.norm_as(module.to_owned(), module, x, channels)
    }

    pub(in crate::model) fn gelu(&mut self, name: String, x: NodeId) -> NodeId {
        self.graph.add(name, Op::Activation(Activation::Gelu), &[x])
    }

    pub(in crate::model) fn add(&mut self, name: String, x: NodeId, y: NodeId) -> NodeId {
        self.graph.add(name, Op::Add(Combine::default()), &[x, y])
    }

    /// x + MLP(norm2(x)); `of` tells tokens from voxels, which share the weights.
    pub(in crate::model) fn mlp(&mut self, block: &str, of: &str, x: NodeId, c: u32) -> NodeId {
        self.mlp_scaled(block, of, x, c, 1.0)
    }

    /// x + `gain` MLP(norm2(x)).
    pub(in crate::model) fn mlp_scaled(&mut self, block: &str, of: &str, x: NodeId, c: u32, gain: f64) -> NodeId {
        let y = self.norm_as(format!("{block}.norm2{of}"), &format!("{block}.norm2"), x, c);
        let y = self.linear_as(format!("{block}.mlp.fc1{of}"), &format!("{block}.mlp.fc1"), y, [c, 4 * c]);
        let y = self.gelu(format!("{block}.mlp.act{of}"), y);
        let y = self.linear_scaled(format!("{block}.mlp.fc2{of}"), &format!("{block}.mlp.fc2"), y, [4 * c, c], gain);
        self.add(format!("{block}{of}"), x, y)
    }

    /// What follows attention in windows: the projection, the residual, and the MLP with its own.
    pub(in crate::model) fn finish(&mut self, block: &str, x: NodeId, attended: NodeId, c: u32) -> NodeId {
        let y = self.linear(&format!("{block}.attn.proj"), attended, [c, c]);
        let y = self.add(format!("{block}.attended"), x, y);
        self.mlp(block, "", y, c)
    }

    /// The blocks of a stage from `first` on, without window tokens.
    pub(in crate::model) fn blocks(&mut self, stage: &Stage, mut x: NodeId, first: u32, shifted: impl Fn(u32) -> bool) -> NodeId {
        let c = stage.channels;
        for i in first..stage.depth {
            let block = format!("{}.blocks.{i}", stage.module);
            let (attn, qkv) = (format!("{block}.attn"), format!("{block}.attn.qkv"));
            let y = self.norm(&format!("{block}.norm1"), x, c);
            let y = self.linear(&qkv, y, [c, 3 * c]);
            let windows = stage.windows(&attn, &qkv, [0, c, 2 * c], shifted(i));
            let y = self.graph.add(attn, Op::WindowAttention(windows), &[y, y]);
            x = self.finish(&block, x, y, c);
        }
        x
    }
}
