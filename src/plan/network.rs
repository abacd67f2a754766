//! A graph for one input extent: shapes, and the kernel that computes each node.

use std::ops::Range;

use crate::caps::DeviceCaps;
use crate::error::{PlanError, PlanErrorKind};
use crate::graph::{self, Conv, ConvTranspose, Graph, GraphError, Node, NodeId, Op};
use crate::kernels::{
    Activation, Call, ConvShape, ConvTransposeShape, Load, Reach, Target, Through, Window, argmax, attention, channel_stats, combine,
    concat, conv_transpose3d, conv_transpose3d_general, conv3d_direct, conv3d_general, conv3d_pointwise, conv3d_tiled, deformable_sampling,
    head_argmax, layer_norm, norm_scale, normalise, packed_len, plane_stats, position_add, softmax, tile, token_rows, window_attention,
};
use crate::record::ConstantSource;
use crate::shape::{Elem, Extent, Map};

/// The error of a graph whose shapes do not agree on an input of `extent`.
pub(super) fn misfit(e: GraphError, extent: Extent) -> PlanError {
    PlanError::new(PlanErrorKind::Extent, format!("{} on an input of {extent}", e.message)).at(e.node)
}

/// A graph with its shapes and kernels.
#[derive(Debug)]
pub(super) struct Network {
    pub graph: Graph,
    pub maps: Vec<Map>,
    pub elem: Elem,
    caps: DeviceCaps,
    /// The kernel of each node over whole maps; `None` for the input.
    calls: Vec<Option<Call>>,
    /// How the kernel of each node reads its inputs.
    reaches: Vec<Vec<Reach>>,
    /// Bytes of a plane of each value.
    plane_bytes: Vec<u64>,
}

impl Network {
    /// Infers the shapes and chooses the kernels.
    pub(super) fn new(graph: Graph, extent: Extent, elem: Elem, caps: &DeviceCaps) -> Result<Self, PlanError> {
        let maps = graph.infer(extent).map_err(|e| misfit(e, extent))?;
        check_indices(&graph, &maps)?;
        let mut net = Self { elem, caps: caps.clone(), calls: Vec::new(), reaches: Vec::new(), plane_bytes: Vec::new(), graph, maps };
        for id in net.graph.ids() {
            let map = net.maps[id.index()];
            let call = net.kernel(id)?;
            net.plane_bytes.push(match &call {
                None => map.plane_elements() * elem.bytes(),
                Some(call) => {
                    let elements = call.sizes().last().copied().unwrap_or(0) / u64::from(map.extent.d);
                    elements * call.bindings().last().map_or(0, |b| b.bytes(elem))
                }
            });
            net.reaches.push(call.iter().flat_map(Call::sources).map(|s| s.reach).collect());
            net.calls.push(call);
        }
        Ok(net)
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        self.graph.node(id)
    }

    pub(super) fn map(&self, id: NodeId) -> Map {
        self.maps[id.index()]
    }

    /// Planes of a node's value.
    pub(super) fn planes(&self, id: NodeId) -> u32 {
        self.maps[id.index()].extent.d
    }

    /// The kernel of a node over whole maps; `None` for the input.
    pub(super) fn call(&self, id: NodeId) -> Option<&Call> {
        self.calls[id.index()].as_ref()
    }

    /// Whether the node uploads.
    pub(super) fn is_input(&self, id: NodeId) -> bool {
        self.calls[id.index()].is_none()
    }

    /// How each input of a node is read.
    pub(super) fn reaches(&self, id: NodeId) -> &[Reach] {
        &self.reaches[id.index()]
    }

    /// Planes of input `slot` that planes `z` of a node read.
    pub(super) fn reach(&self, id: NodeId, slot: usize, z: &Range<u32>) -> Range<u32> {
        let input = self.node(id).inputs[slot];
        self.reaches[id.index()][slot].planes(self.planes(input), self.planes(id), z)
    }

    /// Bytes of one plane of a node's value.
    pub(super) fn plane_bytes(&self, id: NodeId) -> u64 {
        self.plane_bytes[id.index()]
    }

    /// The constant that a node's kernel binds, with its bytes.
    pub(super) fn constant(&self, id: NodeId) -> Option<(ConstantSource, u64)> {
        match &self.node(id).op {
            Op::Conv(c) | Op::HeadArgmax(c) => {
                let in_channels = self.source_channels(id, c);
                let plain = || packed_len(in_channels, c.out_channels, c.kernel);
                let elements = if c.is_plain() { plain() } else { c.grouping().packed_len(c.kernel) };
                Some((ConstantSource::Conv { node: id, in_channels }, elements * 4))
            }
            Op::ConvTranspose(c) => {
                let in_channels = [c.in_channels, 0];
                let elements = packed_len(in_channels, c.out_channels, c.kernel);
                Some((ConstantSource::Conv { node: id, in_channels }, elements * 4))
            }
            Op::PositionalEncoding(_) => {
                let map = self.map(id);
                Some((ConstantSource::PositionTable { node: id, map }, position_add::table_len(map) * self.elem.bytes()))
            }
            Op::WindowAttention(a) => Some((ConstantSource::Attention { node: id, keys: 0 }, a.shape.constant_len() * 4)),
            Op::Attention(graph::Attention { mask: Some(_), .. }) => {
                let keys: u64 = self.node(id).inputs.iter().skip(1).step_by(2).map(|&k| self.map(k).extent.voxels()).sum();
                let keys = u32::try_from(keys).unwrap_or(u32::MAX);
                Some((ConstantSource::Attention { node: id, keys }, u64::from(keys).next_multiple_of(4) * 4))
            }
            Op::Parameter(p) => {
                let bytes = token_rows::table_len(self.map(id), p.count()) * self.elem.bytes();
                Some((ConstantSource::Parameter { node: id }, bytes))
            }
            Op::Gather(tokens) => Some((ConstantSource::Tokens { node: id }, tokens.len() as u64 * 4)),
            // what is bound where a map is not normalised, as a region of the map may be smaller than a scale
            Op::Add(c) | Op::Multiply(c) if c.loads.iter().any(|load| load.norm.is_none()) => Some(self.scale_shift(id, 1)),
            Op::BatchNorm(_) | Op::Activation(_) => Some(self.scale_shift(id, self.map(id).channels)),
            Op::NormScale(norm) => Some(self.scale_shift(id, norm.channels)),
            Op::LayerNorm { channels, .. } => Some(self.scale_shift(id, *channels)),
            Op::PRelu { .. } => {
                let (source, bytes) = self.scale_shift(id, self.map(id).channels);
                Some((source, bytes / 2 * 3))
            }
            _ => None,
        }
    }

    /// Scale and shift, or gamma and beta, of so many channels; a PReLU's slopes come after them.
    fn scale_shift(&self, node: NodeId, channels: u32) -> (ConstantSource, u64) {
        (ConstantSource::ScaleShift { node, channels }, u64::from(channels.div_ceil(4)) * 8 * 4)
    }

    /// Channels of the maps that a convolution sums over.
    fn source_channels(&self, id: NodeId, c: &Conv) -> [u32; 2] {
        let inputs = &self.node(id).inputs;
        let maps = &inputs[..if c.residual { 1 } else { c.maps(inputs.len()) }];
        [0, 1].map(|slot| maps.get(slot).map_or(0, |&i| self.map(i).channels))
    }

    fn conv_shape(&self, id: NodeId, c: &Conv) -> ConvShape {
        let stored = |slot: usize| self.node(id).inputs.get(slot).map_or(Extent::new(1, 1, 1), |&i| self.map(i).extent);
        let mut upsampled = [None; 2];
        let mut input = stored(0);
        for (slot, resize) in c.through.iter().enumerate() {
            if let Some(resize) = resize {
                upsampled[slot] = Some(Through { stored: stored(slot), mode: resize.mode });
                // the shapes agree: they are inferred
                input = c.read_extent(slot, stored(slot)).unwrap_or(input);
            }
        }
        ConvShape {
            input,
            in_channels: self.source_channels(id, c),
            residual: c.residual,
            out_channels: c.out_channels,
            kernel: c.kernel,
            stride: c.stride,
            padding: c.padding,
            loads: c.loads,
            upsampled,
            activation: c.activation,
            elem: self.elem,
            windows: [Window::whole(0); 4],
            target: Target::whole(self.planes(id)),
        }
    }

    fn conv(&self, id: NodeId, c: &Conv) -> Result<Call, PlanError> {
        if !c.is_plain() {
            return self.conv_general(id, c);
        }
        let shape = self.conv_shape(id, c);
        let tiled = |shape: ConvShape| Call::Conv3dTiled(conv3d_tiled::Conv3dTiled(shape));
        if !c.is_pointwise() {
            let in_tiles = tile::tiles(&shape, &self.caps);
            return Ok(if in_tiles { tiled(shape) } else { Call::Conv3dDirect(conv3d_direct::Conv3dDirect(shape)) });
        }
        let flat = shape.clone().flattened();
        let in_tiles = tile::tiles(&flat, &self.caps);
        Ok(if in_tiles { tiled(flat) } else { Call::Conv3dPointwise(conv3d_pointwise::Conv3dPointwise(shape)) })
    }

    fn conv_general(&self, id: NodeId, c: &Conv) -> Result<Call, PlanError> {
        let node = self.node(id);
        if c.maps(node.inputs.len()) > 1 || c.through != [None; 2] {
            let text = "a dilated or grouped convolution reads one map, and no upsampled one";
            return Err(PlanError::new(PlanErrorKind::Unsupported, text).at(node.name.clone()));
        }
        Ok(Call::Conv3dGeneral(conv3d_general::Conv3dGeneral {
            input: self.map(node.inputs[0]).extent,
            grouping: c.grouping(),
            kernel: c.kernel,
            stride: c.stride,
            padding: c.padding,
            dilation: c.dilation,
            load: c.loads[0],
            activation: c.activation,
            elem: self.elem,
            windows: [Window::whole(0); 2],
            target: Target::whole(self.planes(id)),
        }))
    }

    fn combine(&self, id: NodeId, c: &graph::Combine, multiply: bool) -> Call {
        let map = self.map(id);
        Call::Combine(combine::Combine {
            map,
            spread: c.spread,
            multiply,
            loads: c.loads,
            activation: c.activation,
            elem: self.elem,
            windows: [Window::whole(0); 4],
            target: Target::whole(map.extent.d),
        })
    }

    fn conv_transpose(&self, id: NodeId, c: &ConvTranspose) -> Call {
        let shape = ConvTransposeShape {
            input: self.map(self.node(id).inputs[0]).extent,
            in_channels: c.in_channels,
            out_channels: c.out_channels,
            kernel: c.kernel,
            stride: c.stride,
            padding: c.padding,
            output_padding: c.output_padding,
            load: c.load,
            activation: c.activation,
            elem: self.elem,
            windows: [Window::whole(0); 2],
            target: Target::whole(self.planes(id)),
        };
        if shape.tiles() {
            Call::ConvTranspose3d(conv_transpose3d::ConvTranspose3d(shape))
        } else {
            Call::ConvTranspose3dGeneral(conv_transpose3d_general::ConvTranspose3dGeneral(shape))
        }
    }

    /// The kernel that computes a node.
    fn kernel(&self, id: NodeId) -> Result<Option<Call>, PlanError> {
        let (node, elem, map) = (self.node(id), self.elem, self.map(id));
        let input = |slot: usize| self.map(node.inputs[slot]);
        let (window, target) = (Window::whole(0), Target::whole(map.extent.d));
        Ok(Some(match &node.op {
            Op::Input { .. } | Op::InputAgain { .. } => return Ok(None),
            Op::Parameter(p) => Call::TokenRows(token_rows::TokenRows { map, rows: p.count(), elem, target }),
            Op::Conv(c) => return self.conv(id, c).map(Some),
            Op::ConvTranspose(c) => self.conv_transpose(id, c),
            Op::MaxPool { .. }
            | Op::AvgPool { .. }
            | Op::Resize(_)
            | Op::Shift(_)
            | Op::PatchMerge(_)
            | Op::PatchExpand(_)
            | Op::Gather(_) => {
                return Ok(self.resample(id));
            }
            Op::PositionalEncoding(_) => Call::PositionAdd(position_add::PositionAdd { map, elem, windows: [Window::whole(0)], target }),
            Op::Attention(a) => self.attention(id, a),
            Op::WindowAttention(a) => return self.window_attention(id, a).map(Some),
            Op::Deformable(d) => Call::DeformableSampling(deformable_sampling::DeformableSampling {
                queries: map.extent,
                levels: (2..node.inputs.len()).map(|slot| input(slot).extent).collect(),
                channels: map.channels,
                heads: d.heads,
                points: d.points,
                elem,
                windows: [window; 6],
                target,
            }),
            Op::Add(c) => self.combine(id, c, false),
            Op::Multiply(c) => self.combine(id, c, true),
            Op::HeadArgmax(c) => Call::HeadArgmax(head_argmax::HeadArgmax(self.conv_shape(id, c))),
            Op::Argmax => Call::Argmax(argmax::Argmax { map, elem, windows: [Window::whole(0)], target }),
            Op::ChannelStats => {
                Call::ChannelStats(channel_stats::ChannelStats { map: input(0), elem, windows: [Window::whole(0)], target })
            }
            Op::PlaneStats => {
                let map = self.measured(id).ok_or_else(|| self.unsupported(id))?;
                Call::PlaneStats(plane_stats::PlaneStats { map, windows: [Window::whole(0)], target })
            }
            Op::NormScale(norm) if self.measured(self.node(id).inputs[0]).is_none_or(|map| map.channels != norm.channels) => {
                let text = format!("{} of statistics that are not of {} channels", node.op, norm.channels);
                return Err(PlanError::new(PlanErrorKind::Extent, text).at(node.name.clone()));
            }
            Op::NormScale(norm) => Call::NormScale(norm_scale::NormScale {
                planes: input(0).extent.d,
                channels: norm.channels,
                group: norm.channels / norm.groups.max(1),
                #[expect(clippy::cast_possible_truncation, reason = "shaders compute in f32")]
                eps: norm.eps as f32,
                scope: norm.scope(),
                windows: [Window::whole(0)],
                target,
            }),
            Op::Normalise(load) => self.normalise(map, *load, false),
            Op::BatchNorm(_) => self.normalise(map, Load::default(), false),
            Op::Activation(activation) => self.normalise(map, Load { norm: None, activation: *activation }, false),
            Op::PRelu { .. } => {
                let norm = node.inputs.get(1).map(|&scale| graph::scale_scope(self.map(scale)));
                self.normalise(map, Load { norm, activation: Activation::None }, true)
            }
            Op::LayerNorm { eps, before, after, .. } => Call::LayerNorm(layer_norm::LayerNorm {
                map,
                #[expect(clippy::cast_possible_truncation, reason = "shaders compute in f32")]
                eps: *eps as f32,
                before: *before,
                after: *after,
                elem,
                windows: [window],
                target,
            }),
            Op::Softmax => Call::Softmax(softmax::Softmax { map, elem, windows: [window], target }),
            Op::Concat => Call::Concat(concat::Concat {
                extent: map.extent,
                channels: [0, 1].map(|slot| input(slot).channels),
                elem,
                windows: [window; 2],
                target,
            }),
            Op::Norm(_) | Op::Fit(_) => return Err(self.unsupported(id)),
        }))
    }

    fn attention(&self, id: NodeId, a: &graph::Attention) -> Call {
        let input = |slot: usize| self.node(id).inputs.get(slot).map(|&i| self.map(i));
        let (q, k, v) = (input(0), input(1), input(2));
        let (q, k, v) = (q.unwrap_or(self.map(id)), k.unwrap_or(self.map(id)), v.unwrap_or(self.map(id)));
        Call::Attention(attention::Attention {
            queries: q.extent,
            keys: k.extent,
            more_keys: input(3).map(|map| map.extent),
            channels: a.channels(q, v),
            stored: [q.channels, k.channels, v.channels],
            heads: a.heads,
            scale: a.scale,
            per_plane: a.per_plane,
            masked: a.mask.is_some(),
            elem: self.elem,
            windows: [Window::whole(0); 5],
            target: Target::whole(self.planes(id)),
        })
    }

    fn window_attention(&self, id: NodeId, a: &graph::WindowAttention) -> Result<Call, PlanError> {
        let node = self.node(id);
        let (q, kv) = (self.map(node.inputs[0]), self.map(node.inputs[1]));
        let most = window_attention::MOST_HEAD_CHANNELS;
        if a.shape.qk_channels / a.shape.heads > most {
            let text = format!("heads of more than {most} channels are not supported in windows");
            return Err(PlanError::new(PlanErrorKind::Unsupported, text).at(node.name.clone()));
        }
        Ok(Call::WindowAttention(window_attention::WindowAttention {
            shape: a.shape.clone(),
            queries: q.extent,
            q_channels: q.channels,
            keys: kv.extent,
            kv_channels: kv.channels,
            elem: self.elem,
            windows: [Window::whole(0); 3],
            target: Target::whole(self.planes(id)),
        }))
    }

    fn unsupported(&self, id: NodeId) -> PlanError {
        let node = self.node(id);
        PlanError::new(PlanErrorKind::Unsupported, format!("no kernel computes {} on its own", node.op)).at(node.name.clone())
    }

    fn normalise(&self, map: Map, load: Load, prelu: bool) -> Call {
        let target = Target::whole(map.extent.d);
        Call::Normalise(normalise::Normalise { map, load, prelu, elem: self.elem, windows: [Window::whole(0); 2], target })
    }

    /// The map that `planes`, the statistics of its planes, were taken of.
    fn measured(&self, planes: NodeId) -> Option<Map> {
        let stats = self.node(*self.node(planes).inputs.first()?);
        (self.node(planes).op == Op::PlaneStats && stats.op == Op::ChannelStats).then(|| self.map(stats.inputs[0]))
    }
}

/// Shaders index elements of a binding with a u32, and count voxels of a plane and tokens of a map with one.
fn check_indices(graph: &Graph, maps: &[Map]) -> Result<(), PlanError> {
    for id in graph.ids() {
        let (node, map) = (graph.node(id), maps[id.index()]);
        let elements = |map: &Map| map.extent.voxels().saturating_mul(u64::from(map.blocks()) * 4);
        let gathers = matches!(node.op, Op::Attention(_) | Op::WindowAttention(_) | Op::Deformable(_) | Op::Gather(_));
        let sources = node.inputs.iter().map(|i| &maps[i.index()]).chain([&map]);
        let tokens = if gathers { sources.map(elements).max().unwrap_or(0) } else { 0 };
        if map.plane_elements() > u64::from(u32::MAX) || tokens > u64::from(u32::MAX) {
            return Err(PlanError::new(
                PlanErrorKind::Extent,
                format!("a map of {} channels over {} is beyond 32-bit indices", map.channels, map.extent),
            )
            .at(node.name.clone()));
        }
    }
    Ok(())
}
