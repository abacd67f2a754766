//! The network as data: named nodes in topological order, each producing one map.

use std::fmt;

use crate::kernels::{Activation, Load, Scope, channel_stats};
use crate::shape::{Extent, Map};

mod attention;
mod norm;
pub mod pass;

pub use attention::{Attention, Deformable, KeyMask, RelativeBias, WindowAttention};
pub use norm::Norm;

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

/// A convolution over one map or over the channel concatenation of two. Inputs: the maps, then scale and shift of those
/// that are normalised as they are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// Prefix of `weight` and, if any, `bias`.
    pub module: String,
    /// Input channels, all sources together.
    pub in_channels: u32,
    /// Output channels.
    pub out_channels: u32,
    /// Kernel size along D, H, W.
    pub kernel: [u32; 3],
    /// Stride along D, H, W.
    pub stride: [u32; 3],
    /// Zero padding along D, H, W.
    pub padding: [u32; 3],
    /// Factors of the linear upsampling, corners aligned, through which each source is read; see [`pass::read_through`].
    pub through: [Option<[u32; 3]>; 2],
    /// Whether the module has a bias.
    pub bias: bool,
    /// A batch norm folded into the weights at load.
    pub norm: Option<BatchNorm>,
    /// Done to each map as it is read.
    pub loads: [Load; 2],
    /// Applied to the result.
    pub activation: Activation,
    /// Shape of the weight tensor in the file.
    pub weight_shape: Vec<usize>,
}

impl Default for Conv {
    /// A pointwise convolution with a bias, of no width yet.
    fn default() -> Self {
        Self {
            module: String::new(),
            in_channels: 0,
            out_channels: 0,
            kernel: [1; 3],
            stride: [1; 3],
            padding: [0; 3],
            through: [None; 2],
            bias: true,
            norm: None,
            loads: [Load::default(); 2],
            activation: Activation::None,
            weight_shape: Vec::new(),
        }
    }
}

impl Conv {
    /// Whether each voxel of the result is computed from its own stored voxel alone: a linear layer over tokens.
    #[must_use]
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1; 3] && self.stride == [1; 3] && self.padding == [0; 3] && self.through == [None; 2]
    }

    /// Extent at which a source of `extent` is read.
    fn read_extent(&self, slot: usize, extent: Extent) -> Result<Extent, String> {
        match self.through.get(slot).copied().flatten() {
            Some(factor) => upsampled(extent, factor),
            None => Ok(extent),
        }
    }
}

/// A transposed convolution, as `torch.nn.ConvTranspose3d`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvTranspose {
    /// Prefix of `weight` and, if any, `bias`.
    pub module: String,
    /// Input channels.
    pub in_channels: u32,
    /// Output channels.
    pub out_channels: u32,
    /// Kernel size along D, H, W.
    pub kernel: [u32; 3],
    /// Output voxels from one input voxel to the next along D, H, W.
    pub stride: [u32; 3],
    /// Output voxels cut off on both sides along D, H, W.
    pub padding: [u32; 3],
    /// Output voxels added at the far side along D, H, W; below the stride.
    pub output_padding: [u32; 3],
    /// Whether the module has a bias.
    pub bias: bool,
    /// A batch norm folded into the weights at load.
    pub norm: Option<BatchNorm>,
    /// Done to the map as it is read; scale and shift, if it is normalised, are the second input.
    pub load: Load,
    /// Applied to the result.
    pub activation: Activation,
    /// Shape of the weight tensor in the file, inputs before outputs.
    pub weight_shape: Vec<usize>,
}

impl Default for ConvTranspose {
    /// Blocks of 2x2x2 with a bias, of no width yet.
    fn default() -> Self {
        Self {
            module: String::new(),
            in_channels: 0,
            out_channels: 0,
            kernel: [2; 3],
            stride: [2; 3],
            padding: [0; 3],
            output_padding: [0; 3],
            bias: true,
            norm: None,
            load: Load::default(),
            activation: Activation::None,
            weight_shape: Vec::new(),
        }
    }
}

impl ConvTranspose {
    /// Extent of the result: `(n - 1) s - 2p + k + output_padding` along each axis.
    fn output(&self, extent: Extent) -> Result<Extent, String> {
        let mut out = [0; 3];
        for (axis, n) in extent.axes().into_iter().enumerate() {
            let [k, s, p, extra] = [self.kernel, self.stride, self.padding, self.output_padding].map(|a| u64::from(a[axis]));
            if extra >= s {
                return Err(format!("an output padding of {extra} is not below the stride of {s}"));
            }
            // as far as the kernel reaches before anything is cut off, so that no later sum overflows
            let full = u64::from(n).saturating_sub(1) * s + k + extra;
            let left = full.checked_sub(2 * p).filter(|&left| left > 0).ok_or("the padding leaves nothing")?;
            u32::try_from(full).map_err(|_| "the map is beyond 32-bit extents".to_owned())?;
            out[axis] = u32::try_from(left).unwrap_or(u32::MAX);
        }
        Ok(out.into())
    }
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
    /// Channel concatenation of two maps of one extent.
    Concat,
    /// Max pooling with stride = window, floored.
    MaxPool {
        /// Window along D, H, W.
        kernel: [u32; 3],
    },
    /// Linear upsampling by integer factors, corners aligned.
    Upsample {
        /// Factor along D, H, W.
        factor: [u32; 3],
    },
    /// Adds the sinusoidal positional encoding of the U-Transformer reference.
    PositionalEncoding {
        /// 2: each plane is an image; 3: the volume.
        dims: u32,
    },
    /// Attention between the tokens of maps.
    Attention(Attention),
    /// Attention within shifted windows of a map.
    WindowAttention(WindowAttention),
    /// Sampling at computed places.
    Deformable(Deformable),
    /// Element-wise product.
    Multiply,
    /// Label of the highest channel.
    Argmax,
    /// Label of the highest channel of a pointwise convolution whose result is never stored.
    HeadArgmax(Conv),
}

impl Op {
    /// The batch norm and the activation that a convolution of either kind has taken in.
    pub(crate) fn fused(&self) -> Option<(&Option<BatchNorm>, Activation)> {
        match self {
            Self::Conv(c) => Some((&c.norm, c.activation)),
            Self::ConvTranspose(c) => Some((&c.norm, c.activation)),
            _ => None,
        }
    }

    /// The same to be set.
    pub(crate) fn fused_mut(&mut self) -> Option<(&mut Option<BatchNorm>, &mut Activation)> {
        match self {
            Self::Conv(c) => Some((&mut c.norm, &mut c.activation)),
            Self::ConvTranspose(c) => Some((&mut c.norm, &mut c.activation)),
            _ => None,
        }
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

fn upsampled(extent: Extent, factor: [u32; 3]) -> Result<Extent, String> {
    let n = extent.axes();
    let mut out = [0; 3];
    for axis in 0..3 {
        out[axis] = n[axis].checked_mul(factor[axis]).ok_or("the map is beyond 32-bit extents")?;
    }
    Ok(out.into())
}

fn infer_node(op: &Op, inputs: &[Map], extent: Extent) -> Result<Map, String> {
    let arity = match op {
        Op::Input { .. } | Op::InputAgain { .. } => 0..=0,
        Op::Conv(c) | Op::HeadArgmax(c) => {
            let norms = c.loads.iter().filter(|load| load.norm.is_some()).count();
            1 + norms..=2 + norms
        }
        Op::ConvTranspose(c) => {
            let norms = usize::from(c.load.norm.is_some());
            1 + norms..=1 + norms
        }
        Op::Concat | Op::Multiply | Op::Normalise(_) => 2..=2,
        Op::Attention(_) if inputs.len() == 4 => return Err("has keys without values".into()),
        Op::Attention(_) => 3..=5,
        Op::WindowAttention(_) => 2..=3,
        Op::Deformable(_) => 3..=2 + Deformable::LEVELS,
        _ => 1..=1,
    };
    if !arity.contains(&inputs.len()) {
        return Err(format!("takes {arity:?} inputs, has {}", inputs.len()));
    }
    let same_extent = inputs.windows(2).all(|w| w[0].extent == w[1].extent);
    let beyond = || "the map is beyond 32-bit extents".to_owned();
    match op {
        Op::Input { channels: 0 } | Op::InputAgain { channels: 0 } | Op::Attention(Attention { heads: 0, .. }) => {
            Err("has no channels or heads".into())
        }
        Op::Conv(c) if c.through.iter().flatten().any(|factor| factor.contains(&0)) => Err("is read through a factor of zero".into()),
        Op::HeadArgmax(c) if !c.is_pointwise() => Err("is no pointwise convolution".into()),
        Op::Conv(c) | Op::HeadArgmax(c) if c.out_channels == 0 || c.kernel.contains(&0) || c.stride.contains(&0) => {
            Err("has a kernel, stride or width of zero".into())
        }
        Op::ConvTranspose(c) if c.out_channels == 0 || c.kernel.contains(&0) || c.stride.contains(&0) => {
            Err("has a kernel, stride or width of zero".into())
        }
        Op::ConvTranspose(c) if c.in_channels != inputs[0].channels => {
            Err(format!("transposed convolution of {} channels given {inputs:?}", c.in_channels))
        }
        Op::ConvTranspose(c) => {
            if let Some(scope) = c.load.norm {
                if scope == Scope::Plane && !c.keeps_planes() {
                    return Err("its windows reach over planes that are normalised each by itself".into());
                }
                check_scale(inputs[0], inputs[1], scope)?;
            }
            Ok(Map::new(c.output(inputs[0].extent)?, c.out_channels))
        }
        Op::MaxPool { kernel: k } | Op::Upsample { factor: k } if k.contains(&0) => Err("has a window or factor of zero".into()),
        Op::Input { channels } | Op::InputAgain { channels } => Ok(Map::new(extent, *channels)),
        Op::Conv(c) | Op::HeadArgmax(c) => {
            let (inputs, mut scales) = inputs.split_at(c.maps(inputs.len()));
            let have: u64 = inputs.iter().map(|m| u64::from(m.channels)).sum();
            let read = inputs.iter().enumerate().map(|(slot, m)| c.read_extent(slot, m.extent)).collect::<Result<Vec<_>, _>>()?;
            if have != u64::from(c.in_channels) || read.iter().any(|&extent| extent != read[0]) {
                return Err(format!("convolution of {} channels given {inputs:?}", c.in_channels));
            }
            if inputs.len() < 2 && c.loads[1] != Load::default() {
                return Err("does something to a second map that it does not read".into());
            }
            if c.through.iter().zip(&c.loads).any(|(through, load)| through.is_some() && *load != Load::default()) {
                return Err("normalises or activates what it reads through upsampling".into());
            }
            for (map, load) in inputs.iter().zip(&c.loads) {
                let Some(scope) = load.norm else { continue };
                if scope == Scope::Plane && !c.keeps_planes() {
                    return Err("its windows reach over planes that are normalised each by itself".into());
                }
                let (scale, rest) = scales.split_first().ok_or("lacks a scale")?;
                check_scale(*map, *scale, scope)?;
                scales = rest;
            }
            let n = read[0].axes();
            let mut out = [0; 3];
            for axis in 0..3 {
                let padded = c.padding[axis].checked_mul(2).and_then(|p| p.checked_add(n[axis])).ok_or_else(beyond)?;
                let span = padded.checked_sub(c.kernel[axis]).ok_or("the kernel is larger than the padded map")?;
                out[axis] = span / c.stride[axis] + 1;
            }
            Ok(Map::new(out.into(), c.out_channels))
        }
        Op::BatchNorm(n) if n.channels != inputs[0].channels => {
            Err(format!("norm of {} channels given {}", n.channels, inputs[0].channels))
        }
        Op::Norm(n) => n.check(inputs[0].channels).map(|()| inputs[0]),
        Op::ChannelStats => {
            let Extent { d, h, .. } = inputs[0].extent;
            Ok(Map::new(Extent::new(d, channel_stats::parts(h), 1), pair_channels(inputs[0].channels)?))
        }
        Op::PlaneStats => Ok(Map::new(Extent::new(inputs[0].extent.d, 1, 1), inputs[0].channels)),
        Op::NormScale(n) => {
            n.check(n.channels)?;
            let planes = inputs[0].extent.d;
            if *inputs != [Map::new(Extent::new(planes, 1, 1), pair_channels(n.channels)?)] {
                return Err(format!(
                    "norm of {} channels given statistics of {} over {}",
                    n.channels, inputs[0].channels, inputs[0].extent
                ));
            }
            Ok(Map::new(Extent::new(n.scope().planes(planes), 1, 1), inputs[0].channels))
        }
        Op::Normalise(Load { norm: None, .. }) => Err("has a scale but no norm".into()),
        Op::Normalise(Load { norm: Some(scope), .. }) => check_scale(inputs[0], inputs[1], *scope).map(|()| inputs[0]),
        Op::BatchNorm(_) | Op::Activation(_) | Op::PositionalEncoding { .. } => Ok(inputs[0]),
        Op::Concat if same_extent => {
            let channels = inputs[0].channels.checked_add(inputs[1].channels).ok_or("has more channels than 32 bits count")?;
            Ok(Map::new(inputs[0].extent, channels))
        }
        Op::Multiply if inputs[0] == inputs[1] => Ok(inputs[0]),
        Op::Concat | Op::Multiply => Err(format!(
            "inputs differ: {} channels of {}, {} channels of {}",
            inputs[0].channels, inputs[0].extent, inputs[1].channels, inputs[1].extent
        )),
        Op::MaxPool { kernel } => {
            let n = inputs[0].extent.axes();
            let out = [n[0] / kernel[0], n[1] / kernel[1], n[2] / kernel[2]];
            if out.contains(&0) {
                return Err(format!("pooling an extent of {} leaves nothing", inputs[0].extent));
            }
            Ok(Map::new(out.into(), inputs[0].channels))
        }
        Op::Upsample { factor } => Ok(Map::new(upsampled(inputs[0].extent, *factor)?, inputs[0].channels)),
        Op::Attention(a) => a.infer(inputs),
        Op::WindowAttention(a) => a.infer(inputs),
        Op::Deformable(d) => d.infer(inputs),
        Op::Argmax => Ok(Map::new(inputs[0].extent, inputs[0].channels)),
    }
}

/// Channels of a map of pairs (mean and variance, scale and shift) of padded `channels`.
fn pair_channels(channels: u32) -> Result<u32, String> {
    channels.div_ceil(4).checked_mul(8).ok_or_else(|| "has more channels than 32 bits count".into())
}

/// Whether `scale` holds scale and shift of `map`.
fn check_scale(map: Map, scale: Map, scope: Scope) -> Result<(), String> {
    let expected = Map::new(Extent::new(scope.planes(map.extent.d), 1, 1), pair_channels(map.channels)?);
    if scale == expected {
        return Ok(());
    }
    Err(format!(
        "a map of {} channels of {} is scaled by {} values of {}, not {} of {}",
        map.channels, map.extent, scale.channels, scale.extent, expected.channels, expected.extent
    ))
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            let inputs: Vec<&str> = node.inputs.iter().map(|&i| self.node(i).name.as_str()).collect();
            writeln!(f, "{:<28} {:<40} {}", node.name, node.op.to_string(), inputs.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let x = |k: &[u32; 3]| format!("{}x{}x{}", k[0], k[1], k[2]);
        match self {
            Self::Input { channels } => write!(f, "input {channels}"),
            Self::InputAgain { channels } => write!(f, "input {channels} again"),
            Self::Conv(c) => {
                write!(f, "conv {} {}->{}", x(&c.kernel), c.in_channels, c.out_channels)?;
                if c.stride != [1; 3] {
                    write!(f, " stride {}", x(&c.stride))?;
                }
                if let Some(factor) = c.through.iter().flatten().next() {
                    write!(f, " through upsample {}", x(factor))?;
                }
                if c.norm.is_some() {
                    f.write_str(" norm")?;
                }
                if c.loads.iter().any(|load| load.norm.is_some()) {
                    f.write_str(" of normalised")?;
                }
                match c.activation {
                    Activation::None => Ok(()),
                    a => write!(f, " {a}"),
                }
            }
            Self::ConvTranspose(c) => {
                write!(f, "conv transpose {} {}->{}", x(&c.kernel), c.in_channels, c.out_channels)?;
                if c.stride != c.kernel {
                    write!(f, " stride {}", x(&c.stride))?;
                }
                if c.norm.is_some() {
                    f.write_str(" norm")?;
                }
                match c.activation {
                    Activation::None => Ok(()),
                    a => write!(f, " {a}"),
                }
            }
            Self::BatchNorm(n) => write!(f, "batch norm {}", n.channels),
            Self::Norm(n) => write!(f, "norm {} in {} groups{}", n.channels, n.groups, if n.per_plane { " per plane" } else { "" }),
            Self::ChannelStats => f.write_str("channel statistics"),
            Self::PlaneStats => f.write_str("plane statistics"),
            Self::NormScale(n) => write!(f, "norm scale {} in {} groups", n.channels, n.groups),
            Self::Normalise(load) => write!(f, "normalise {}", load.activation),
            Self::Activation(a) => write!(f, "{a}"),
            Self::Concat => f.write_str("concat"),
            Self::MaxPool { kernel } => write!(f, "max pool {}", x(kernel)),
            Self::Upsample { factor } => write!(f, "upsample {}", x(factor)),
            Self::PositionalEncoding { dims } => write!(f, "positional encoding {dims}D"),
            Self::Attention(a) => write!(f, "attention {} heads{}", a.heads, if a.per_plane { " per plane" } else { "" }),
            Self::WindowAttention(a) => {
                write!(f, "attention {} heads in windows {}", a.shape.heads, x(&a.shape.k_window))?;
                match a.shape.shift {
                    [0, 0, 0] => Ok(()),
                    shift => write!(f, " shifted {}", x(&shift)),
                }
            }
            Self::Deformable(d) => write!(f, "deformable sampling {} heads {} points", d.heads, d.points),
            Self::Multiply => f.write_str("multiply"),
            Self::Argmax => f.write_str("argmax"),
            Self::HeadArgmax(c) => write!(f, "argmax of conv {}->{}", c.in_channels, c.out_channels),
        }
    }
}
