//! The architecture `u_transformer`: U-Net, MHSA in the bottleneck, MHCA gates on the skips, in 2D and 3D.
//!
//! Source: Petit et al., "U-Net Transformer: self and cross attention for medical image segmentation" (arXiv 2103.06104)
//! as the project's reference definition `reference/u_transformer.py` fixes it; node names are that module's paths.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::blocks::head_scale;
use super::layers::check_dims;
use crate::graph::{Attention, BatchNorm, Combine, Conv, Graph, NodeId, Op, PositionalEncoding};
use crate::kernels::{Activation, Angles};

/// Which of the two published conventions the attention follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Profile {
    /// The paper: heads scaled by their own width, an output projection, max pooling before the values.
    #[default]
    #[serde(rename = "paper2021")]
    Paper2021,
    /// The co-author's modules: scaled by the full width, no output projection, a strided convolution as value projection.
    #[serde(rename = "themyr2021")]
    Themyr2021,
}

/// Arguments of the network, as in the card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UTransformerConfig {
    /// 2 or 3.
    pub dims: u32,
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of each level; the last is the bottleneck.
    pub channels: Vec<u32>,
    /// Attention heads.
    #[serde(default = "default_heads")]
    pub heads: u32,
    /// Self-attention in the bottleneck.
    #[serde(default = "default_mhsa")]
    pub mhsa: bool,
    /// The deepest so many skips are gated.
    #[serde(default = "default_mhca_levels")]
    pub mhca_levels: u32,
    /// Convention of the attention modules.
    #[serde(default)]
    pub profile: Profile,
}

fn default_heads() -> u32 {
    8
}

fn default_mhsa() -> bool {
    true
}

fn default_mhca_levels() -> u32 {
    3
}

impl Architecture for UTransformerConfig {
    const NAME: &'static str = "u_transformer";

    fn build(&self) -> Result<Built, String> {
        self.check()?;
        let stride = 1 << (self.channels.len() - 1);
        let stride = if self.dims == 2 { [1, stride, stride] } else { [stride; 3] };
        Ok(Built { dims: self.dims, ..Built::new(graph(self), stride) })
    }
}

impl UTransformerConfig {
    fn check(&self) -> Result<(), String> {
        check_dims(self.dims)?;
        if self.channels.is_empty() || self.channels.len() > 12 || self.channels.contains(&0) {
            return Err(format!("channels is {:?}, must be 1 to 12 positive numbers", self.channels));
        }
        if self.in_channels == 0 || self.classes == 0 || self.classes > 65_536 || self.heads == 0 {
            return Err("in_channels, classes (at most 65536) and heads must be positive".into());
        }
        let n = self.channels.len() - 1;
        let mut attended: Vec<u32> = Vec::new();
        if self.mhsa {
            attended.push(self.channels[n]);
        }
        for i in (0..n).filter(|&i| self.gated(i)) {
            attended.push(self.channels[i]);
            if self.profile == Profile::Themyr2021 {
                attended.push(self.channels[i + 1]);
            }
        }
        match attended.iter().find(|&c| c % self.heads != 0) {
            Some(c) => Err(format!("{} heads do not divide a level of {c} channels", self.heads)),
            None => Ok(()),
        }
    }

    /// Whether the skip of level `i` is gated.
    fn gated(&self, i: usize) -> bool {
        self.channels.len() - 2 - i < self.mhca_levels as usize
    }
}

struct Builder<'a> {
    graph: Graph,
    config: &'a UTransformerConfig,
}

impl Builder<'_> {
    fn along(&self, n: u32) -> [u32; 3] {
        if self.config.dims == 2 { [1, n, n] } else { [n; 3] }
    }

    fn weight_shape(&self, cin: u32, cout: u32, k: u32) -> Vec<usize> {
        let mut shape = vec![cout as usize, cin as usize];
        shape.extend(std::iter::repeat_n(k as usize, self.config.dims as usize));
        shape
    }

    /// A convolution without norm; `stride` equals 1 or the kernel.
    fn conv(&mut self, module: &str, x: NodeId, [cin, cout]: [u32; 2], k: u32, stride: u32) -> NodeId {
        let p = if stride == 1 { k / 2 } else { 0 };
        let padding = if self.config.dims == 2 { [0, p, p] } else { [p; 3] };
        let op = Op::Conv(Conv {
            module: module.to_owned(),
            in_channels: cin,
            out_channels: cout,
            kernel: self.along(k),
            stride: self.along(stride),
            padding,
            weight_shape: self.weight_shape(cin, cout, k),
            ..Conv::default()
        });
        self.graph.add(module, op, &[x])
    }

    fn norm(&mut self, module: &str, x: NodeId, channels: u32) -> NodeId {
        self.graph.add(module, Op::BatchNorm(BatchNorm { module: module.to_owned(), channels, eps: 1e-5 }), &[x])
    }

    fn conv_bn_relu(&mut self, module: &str, x: NodeId, c: [u32; 2], k: u32) -> NodeId {
        let y = self.conv(&format!("{module}.conv"), x, c, k, 1);
        let y = self.norm(&format!("{module}.norm"), y, c[1]);
        self.graph.add(module, Op::Activation(Activation::Relu), &[y])
    }

    fn double_conv(&mut self, module: &str, x: NodeId, [cin, cout]: [u32; 2]) -> NodeId {
        let y = self.conv_bn_relu(&format!("{module}.a"), x, [cin, cout], 3);
        self.conv_bn_relu(&format!("{module}.b"), y, [cout, cout], 3)
    }

    fn linear(&mut self, module: &str, x: NodeId, channels: u32) -> NodeId {
        let op = Op::Conv(Conv {
            module: module.to_owned(),
            in_channels: channels,
            out_channels: channels,
            kernel: [1; 3],
            weight_shape: vec![channels as usize; 2],
            ..Conv::default()
        });
        self.graph.add(module, op, &[x])
    }

    fn with_pe(&mut self, name: &str, x: NodeId) -> NodeId {
        let angles = if self.config.dims == 2 { Angles::Planar } else { Angles::Volume };
        self.graph.add(name, Op::PositionalEncoding(PositionalEncoding { angles, level: None }), &[x])
    }

    fn upsample(&mut self, name: &str, x: NodeId) -> NodeId {
        let factor = self.along(2);
        self.graph.add(name, Op::upsample(factor), &[x])
    }

    fn attention(&mut self, module: &str, qk: NodeId, v: NodeId, dq: u32, dv: u32, project_v: bool) -> NodeId {
        let paper = self.config.profile == Profile::Paper2021;
        let heads = self.config.heads;
        let q = self.linear(&format!("{module}.wq"), qk, dq);
        let k = self.linear(&format!("{module}.wk"), qk, dq);
        let v = if project_v { self.linear(&format!("{module}.wv"), v, dv) } else { v };
        let width = if paper { dq / heads } else { dq };
        let scale = head_scale(width);
        let name = if paper { format!("{module}.scores") } else { module.to_owned() };
        let y = self.graph.add(
            name,
            Op::Attention(Attention { heads, scale, per_plane: self.config.dims == 2, ..Attention::default() }),
            &[q, k, v],
        );
        if paper { self.linear(&format!("{module}.wo"), y, dv) } else { y }
    }

    /// The gated skip of `s` (cs channels, twice the extent) by `y` (cy channels), both with positions added.
    fn mhca(&mut self, module: &str, y: NodeId, s: NodeId, cy: u32, cs: u32) -> NodeId {
        let strided = self.config.profile == Profile::Themyr2021;
        let dq = if strided { cy } else { cs };
        let q = self.conv_bn_relu(&format!("{module}.conv_y"), y, [cy, dq], 1);
        let v = if strided {
            let v = self.conv_bn_relu(&format!("{module}.conv_s"), s, [cs, cs], 1);
            self.conv(&format!("{module}.reduce_s"), v, [cs, cs], 2, 2)
        } else {
            let kernel = self.along(2);
            let v = self.graph.add(format!("{module}.reduce_s"), Op::max_pool(kernel), &[s]);
            self.conv_bn_relu(&format!("{module}.conv_s"), v, [cs, cs], 1)
        };
        let z = self.attention(&format!("{module}.attn"), q, v, dq, cs, !strided);
        let g = self.conv(&format!("{module}.gate_conv"), z, [cs, cs], 1, 1);
        let g = self.norm(&format!("{module}.gate_norm"), g, cs);
        let g = self.graph.add(format!("{module}.gate"), Op::Activation(Activation::Sigmoid), &[g]);
        let g = self.upsample(&format!("{module}.gate_up"), g);
        self.graph.add(module, Op::Multiply(Combine::default()), &[g, s])
    }

    fn up(&mut self, module: &str, mut y: NodeId, mut s: NodeId, cy: u32, cs: u32, gated: bool) -> NodeId {
        if gated {
            y = self.with_pe(&format!("{module}.y_pe"), y);
            let s_pe = self.with_pe(&format!("{module}.s_pe"), s);
            s = self.mhca(&format!("{module}.mhca"), y, s_pe, cy, cs);
        }
        let y = self.upsample(&format!("{module}.upsample"), y);
        let y = self.conv(&format!("{module}.conv"), y, [cy, cy], 3, 1);
        let y = self.conv_bn_relu(&format!("{module}.reduce"), y, [cy, cs], 1);
        let y = self.graph.add(format!("{module}.concat"), Op::Concat, &[s, y]);
        self.double_conv(&format!("{module}.block"), y, [2 * cs, cs])
    }
}

/// The unoptimised graph of a checked configuration.
fn graph(config: &UTransformerConfig) -> Graph {
    let mut b = Builder { graph: Graph::default(), config };
    let channels = &config.channels;
    let n = channels.len() - 1;
    let mut x = b.graph.add("input", Op::Input { channels: config.in_channels }, &[]);
    let mut skips = Vec::with_capacity(n + 1);
    let mut cin = config.in_channels;
    for (i, &c) in channels.iter().enumerate() {
        if i > 0 {
            let kernel = b.along(2);
            x = b.graph.add(format!("pool.{}", i - 1), Op::max_pool(kernel), &[x]);
        }
        x = b.double_conv(&format!("enc.{i}"), x, [cin, c]);
        skips.push(x);
        cin = c;
    }
    if config.mhsa {
        let t = b.with_pe("mhsa.pe", x);
        x = b.attention("mhsa.attn", t, t, channels[n], channels[n], true);
    }
    for (k, i) in (0..n).rev().enumerate() {
        x = b.up(&format!("dec.{k}"), x, skips[i], channels[i + 1], channels[i], config.gated(i));
    }
    b.conv("head", x, [channels[0], config.classes], 1, 1);
    b.graph
}
