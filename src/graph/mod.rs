//! The network as data: named nodes in topological order, each producing one map.

use std::fmt;

use crate::kernels::{Activation, Load, Shift};
use crate::shape::{Extent, Map};

mod attention;
mod combine;
mod conv;
mod display;
mod infer;
mod norm;
mod parameter;
pub mod pass;
mod position;
mod resample;
mod tokens;

pub(crate) use infer::{infer_node, scale_scope};

pub use attention::{Attention, Deformable, KeyMask, RelativeBias, WindowAttention};
pub use combine::Combine;
pub use conv::{Conv, ConvTranspose};
pub use norm::Norm;
pub use parameter::Parameter;
pub use position::{LevelEmbedding, PositionalEncoding};
pub use resample::{Fit, PatchExpand, PatchMerge, Resize, Size};
pub use tokens::{RunInputs, Slot, Tokens};

/// Index of a node; a node produces exactly one value, which has the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The index as a `usize`.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Running statistics and affine parameters of a batch norm, by the name of the module that holds them.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNorm {
    /// Prefix of `weight`, `bias`, `running_mean`, `running_var`.
    pub module: String,
    /// Channels.
    pub channels: u32,
    /// Added to the variance.
    pub eps: f64,
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// The network's input with so many channels.
    Input {
        /// Channels.
        channels: u32,
    },
    /// The network's input once more, for what is computed again.
    InputAgain {
        /// Channels, those of the input.
        channels: u32,
    },
    /// Rows of a tensor of the file as a map; without inputs.
    Parameter(Parameter),
    /// Convolution; a linear layer over tokens is a convolution with kernel 1.
    Conv(Conv),
    /// Transposed convolution.
    ConvTranspose(ConvTranspose),
    /// Batch norm with running statistics.
    BatchNorm(BatchNorm),
    /// Instance or group norm; [`pass::optimise`] takes it apart into the next four.
    Norm(Norm),
    /// Statistics of each channel over parts of the planes of a map, always f32.
    ChannelStats,
    /// Those of each plane, always f32.
    PlaneStats,
    /// Scale and shift of each channel, made of the statistics of planes, always f32.
    NormScale(Norm),
    /// Scale, shift and activation; inputs: the map, and scale and shift.
    Normalise(Load),
    /// Element-wise activation.
    Activation(Activation),
    /// x, or a learned slope times x where x is negative; inputs: the map, and, where a norm went into it, scale and shift.
    PRelu {
        /// Prefix of `weight`, the slopes.
        module: String,
        /// Slopes: one, or one for each channel of the map.
        channels: u32,
    },
    /// Layer norm over the channels of each voxel.
    LayerNorm {
        /// Prefix of `weight` and `bias`; `None` for a norm without affine parameters.
        module: Option<String>,
        /// Channels.
        channels: u32,
        /// Added to the biased variance.
        eps: f64,
        /// Applied to what is normalised.
        before: Activation,
        /// Applied last.
        after: Activation,
    },
    /// Softmax over the channels of each voxel.
    Softmax,
    /// Channel concatenation of two maps of one extent.
    Concat,
    /// Max pooling, floored, as `torch.nn.MaxPool3d`.
    MaxPool {
        /// Window along D, H, W.
        kernel: [u32; 3],
        /// Voxels from window to window along D, H, W.
        stride: [u32; 3],
        /// Padding on both sides along D, H, W, at most half a window.
        padding: [u32; 3],
    },
    /// Means of windows that do not overlap, floored, as `torch.nn.AvgPool3d(kernel)`.
    AvgPool {
        /// Window along D, H, W.
        kernel: [u32; 3],
    },
    /// Resampling to another extent.
    Resize(Resize),
    /// Rolled, padded, cropped or mirrored along D, H, W.
    Shift([Shift; 3]),
    /// Padded or cropped to a share of the network's input; [`pass::settle`] makes it a shift.
    Fit(Fit),
    /// Patches of voxels as the channels of one.
    PatchMerge(PatchMerge),
    /// Channels as the voxels of a patch.
    PatchExpand(PatchExpand),
    /// Tokens of a map picked by their numbers, counted row by row: one row of so many.
    Gather(Tokens),
    /// Adds a sinusoidal positional encoding.
    PositionalEncoding(PositionalEncoding),
    /// Attention between the tokens of maps.
    Attention(Attention),
    /// Attention within shifted windows of a map.
    WindowAttention(WindowAttention),
    /// Sampling at computed places.
    Deformable(Deformable),
    /// Element-wise sum.
    Add(Combine),
    /// Element-wise product.
    Multiply(Combine),
    /// Label of the highest channel.
    Argmax,
    /// Label of the highest channel of a pointwise convolution whose result is never stored.
    HeadArgmax(Conv),
}

impl Op {
    /// Max pooling in windows that do not overlap.
    #[must_use]
    pub const fn max_pool(kernel: [u32; 3]) -> Self {
        Self::MaxPool { kernel, stride: kernel, padding: [0; 3] }
    }

    /// Linear upsampling by integer factors along D, H, W, corners aligned.
    #[must_use]
    pub const fn upsample(factor: [u32; 3]) -> Self {
        Self::Resize(Resize::aligned(factor))
    }

    /// Where a batch norm that follows can be folded in: it scales the sums of the convolution alone.
    pub(crate) fn foldable(&mut self) -> Option<&mut Option<BatchNorm>> {
        match self {
            Self::Conv(Conv { norm, activation: Activation::None, residual: false, .. })
            | Self::ConvTranspose(ConvTranspose { norm, activation: Activation::None, .. }) => norm.is_none().then_some(norm),
            _ => None,
        }
    }

    /// Where an activation that follows can be fused.
    pub(crate) fn fusable(&mut self) -> Option<&mut Activation> {
        let activation = match self {
            Self::Conv(c) => &mut c.activation,
            Self::ConvTranspose(c) => &mut c.activation,
            Self::Add(c) | Self::Multiply(c) => &mut c.activation,
            Self::LayerNorm { after, .. } => after,
            _ => return None,
        };
        (*activation == Activation::None).then_some(activation)
    }
}

/// One operation with a name (the reference implementation's module path) and its inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name for messages, taps and traces.
    pub name: String,
    /// The operation.
    pub op: Op,
    /// Producing nodes of the inputs, in the operation's order.
    pub inputs: Vec<NodeId>,
}

/// A network: nodes in topological order, the first is the input, the last the logits.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Graph {
    nodes: Vec<Node>,
}

/// A graph that cannot be, found while it is built or while its shapes are inferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphError {
    /// The node concerned.
    pub node: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.message)
    }
}

impl std::error::Error for GraphError {}

impl Graph {
    /// Appends a node; its inputs must exist.
    ///
    /// # Panics
    /// Never: an unknown input is caught by [`Graph::infer`].
    pub fn add(&mut self, name: impl Into<String>, op: Op, inputs: &[NodeId]) -> NodeId {
        #[expect(clippy::cast_possible_truncation, reason = "graphs have thousands of nodes")]
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node { name: name.into(), op, inputs: inputs.to_vec() });
        id
    }

    /// All nodes in topological order.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of an id of this graph.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The node of an id of this graph, to be changed in place.
    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// Ids of all nodes in topological order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        #[expect(clippy::cast_possible_truncation, reason = "graphs have thousands of nodes")]
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// The node with this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.ids().find(|&id| self.node(id).name == name)
    }

    /// The last node: the logits.
    #[must_use]
    pub fn output(&self) -> NodeId {
        #[expect(clippy::cast_possible_truncation, reason = "graphs have thousands of nodes")]
        NodeId(self.nodes.len().saturating_sub(1) as u32)
    }

    /// Nodes that read each node.
    #[must_use]
    pub fn consumers(&self) -> Vec<Vec<NodeId>> {
        let mut all = vec![Vec::new(); self.nodes.len()];
        for id in self.ids() {
            for input in &self.node(id).inputs {
                all[input.index()].push(id);
            }
        }
        all
    }

    /// Shapes of all values for an input of `extent`.
    ///
    /// # Errors
    /// When shapes do not agree: the node is named.
    pub fn infer(&self, extent: Extent) -> Result<Vec<Map>, GraphError> {
        if !matches!(self.nodes.first(), Some(Node { op: Op::Input { .. }, .. })) {
            return Err(GraphError {
                node: self.nodes.first().map_or_else(String::new, |n| n.name.clone()),
                message: "a graph begins with its input".into(),
            });
        }
        let mut maps: Vec<Map> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let fail = |message: String| GraphError { node: node.name.clone(), message };
            if matches!(node.op, Op::Input { .. }) && !maps.is_empty() {
                return Err(fail("a graph has one input".into()));
            }
            if let Op::InputAgain { channels } = node.op
                && maps[0].channels != channels
            {
                return Err(fail(format!("the input again has {channels} channels, the input {}", maps[0].channels)));
            }
            let mut inputs = Vec::with_capacity(3);
            for id in &node.inputs {
                inputs.push(*maps.get(id.index()).ok_or_else(|| fail("reads a node that comes after it".into()))?);
            }
            maps.push(infer_node(&node.op, &inputs, extent).map_err(fail)?);
        }
        Ok(maps)
    }

    /// Names and shapes of the tensors the graph needs, in the order of use.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = Vec::new();
        let vectors = |list: &mut Vec<_>, module: &str, parts: &[&str], channels: u32| {
            list.extend(parts.iter().map(|part| (format!("{module}.{part}"), vec![channels as usize])));
        };
        let norm = |list: &mut Vec<_>, n: &BatchNorm| {
            vectors(list, &n.module, &["weight", "bias", "running_mean", "running_var"], n.channels);
        };
        let conv = |list: &mut Vec<_>, module: &str, shape: &[usize], bias: Option<u32>, n: &Option<BatchNorm>| {
            list.push((format!("{module}.weight"), shape.to_vec()));
            list.extend(bias.map(|channels| (format!("{module}.bias"), vec![channels as usize])));
            if let Some(n) = n {
                norm(list, n);
            }
        };
        for node in &self.nodes {
            match &node.op {
                Op::Conv(c) | Op::HeadArgmax(c) => conv(&mut list, &c.module, &c.weight_shape, c.bias.then_some(c.out_channels), &c.norm),
                Op::ConvTranspose(c) => conv(&mut list, &c.module, &c.weight_shape, c.bias.then_some(c.out_channels), &c.norm),
                Op::BatchNorm(n) => norm(&mut list, n),
                Op::Norm(Norm { module: Some(module), channels, .. }) | Op::NormScale(Norm { module: Some(module), channels, .. }) => {
                    vectors(&mut list, module, &["weight", "bias"], *channels);
                }
                Op::LayerNorm { module: Some(module), channels, .. } => vectors(&mut list, module, &["weight", "bias"], *channels),
                Op::Parameter(p) => list.push((p.tensor.clone(), p.tensor_shape())),
                Op::PositionalEncoding(PositionalEncoding { level: Some(level), .. }) => {
                    list.push((level.tensor.clone(), level.shape.map(|n| n as usize).to_vec()));
                }
                Op::PRelu { module, channels } => vectors(&mut list, module, &["weight"], *channels),
                Op::WindowAttention(WindowAttention { shape: s, bias: Some(bias), .. }) => {
                    let voxels = |window: [u32; 3]| window.iter().map(|&n| n as usize).product();
                    list.push((bias.table.clone(), vec![s.bias_rows as usize, s.heads as usize]));
                    list.push((bias.index.clone(), vec![voxels(s.q_window), voxels(s.k_window)]));
                }
                Op::Attention(Attention { mask: Some(mask), .. }) => list.push((mask.counts.clone(), mask.shape.clone())),
                _ => {}
            }
        }
        // nodes may share a module
        let mut seen = std::collections::HashSet::new();
        list.retain(|(name, _)| seen.insert(name.clone()));
        list
    }
}
