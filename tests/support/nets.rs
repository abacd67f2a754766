//! Random networks, small enough to plan in a millisecond, with extents, limits and options.

#![allow(dead_code, reason = "each test binary uses a part")]

use organum::graph::{Attention, BatchNorm, Combine, Conv, ConvTranspose, Graph, NodeId, Norm, Op, PositionalEncoding, pass};
use organum::kernels::{Activation, Angles};
use organum::{DeviceCaps, Elem, Extent, OutputMode, PlanOptions};
use proptest::prelude::*;

/// A U-Net-like network to be built, small enough to plan in a millisecond.
#[derive(Clone, Debug)]
pub(crate) struct Net {
    pub(crate) planar: bool,
    pub(crate) levels: Vec<u32>,
    pub(crate) in_channels: u32,
    pub(crate) classes: u32,
    /// Depth of the level-0 kernels along D: 1, 3 or 5.
    pub(crate) kernel: u32,
    pub(crate) attention: bool,
    pub(crate) gate: bool,
    /// The bottleneck is reached by a strided convolution, not by pooling.
    pub(crate) strided: bool,
    pub(crate) up: Up,
    pub(crate) norm: NormKind,
    /// Convolutions read through the upsampling.
    pub(crate) through: bool,
    /// Residual blocks in the encoder, every other one of a depthwise and a pointwise convolution.
    pub(crate) residual: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum NormKind {
    Batch,
    Instance,
    /// One group of all channels.
    Layer,
}

/// How the decoder's extents double.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Up {
    Linear,
    Blocks,
    Overlapping,
}

struct Builder {
    graph: Graph,
    planar: bool,
    norm: NormKind,
}

impl Builder {
    fn along(&self, n: u32) -> [u32; 3] {
        if self.planar { [1, n, n] } else { [n; 3] }
    }

    fn conv(&mut self, name: &str, x: &[NodeId], cin: u32, cout: u32, kernel: [u32; 3], stride: [u32; 3]) -> NodeId {
        let strided = stride != [1; 3];
        let conv = Conv {
            module: name.to_owned(),
            in_channels: cin,
            out_channels: cout,
            kernel,
            stride,
            padding: if strided { [0; 3] } else { kernel.map(|k| k / 2) },
            weight_shape: [cout, cin].into_iter().chain(kernel).map(|n| n as usize).collect(),
            ..Conv::default()
        };
        self.graph.add(name, Op::Conv(conv), x)
    }

    fn up(&mut self, name: &str, x: NodeId, channels: u32, up: Up) -> NodeId {
        let stride = self.along(2);
        let transposed = |kernel: [u32; 3], extra: [u32; 3]| {
            Op::ConvTranspose(ConvTranspose {
                module: name.to_owned(),
                in_channels: channels,
                out_channels: channels,
                kernel,
                stride,
                padding: extra,
                output_padding: extra,
                weight_shape: [channels, channels].into_iter().chain(kernel).map(|n| n as usize).collect(),
                ..ConvTranspose::default()
            })
        };
        let op = match up {
            Up::Linear => Op::upsample(stride),
            Up::Blocks => transposed(stride, [0; 3]),
            Up::Overlapping => transposed(stride.map(|s| 2 * s - 1), stride.map(|s| s - 1)),
        };
        self.graph.add(name, op, &[x])
    }

    fn block(&mut self, name: &str, x: NodeId, cin: u32, cout: u32, k: u32) -> NodeId {
        let kernel = if self.planar { [1, 3, 3] } else { [k, 3, 3] };
        let y = self.conv(&format!("{name}.conv"), &[x], cin, cout, kernel, [1; 3]);
        let y = self.norm(name, y, cout);
        self.graph.add(name, Op::Activation(Activation::Relu), &[y])
    }

    fn residual(&mut self, name: &str, x: NodeId, c: u32, depthwise: bool) -> NodeId {
        let (kernel, dilation) = (self.along(3), self.along(2));
        let mut y = x;
        if depthwise {
            let (module, weight_shape) = (format!("{name}.depthwise"), [c, 1].into_iter().chain(kernel).map(|n| n as usize).collect());
            let padding = if self.planar { [0, 2, 2] } else { [2; 3] };
            let conv =
                Conv { in_channels: c, out_channels: c, kernel, padding, dilation, groups: c, weight_shape, module, ..Conv::default() };
            y = self.graph.add(format!("{name}.depthwise"), Op::Conv(conv), &[y]);
        }
        let y = self.conv(&format!("{name}.conv"), &[y], c, c, if depthwise { [1; 3] } else { kernel }, [1; 3]);
        let y = self.norm(name, y, c);
        let y = self.graph.add(format!("{name}.sum"), Op::Add(Combine::default()), &[y, x]);
        self.graph.add(name, Op::Activation(Activation::Relu), &[y])
    }

    fn norm(&mut self, name: &str, y: NodeId, cout: u32) -> NodeId {
        let module = format!("{name}.norm");
        let groups = if matches!(self.norm, NormKind::Layer) { 1 } else { cout };
        let op = match self.norm {
            NormKind::Batch => Op::BatchNorm(BatchNorm { module: module.clone(), channels: cout, eps: 1e-5 }),
            _ => Op::Norm(Norm { module: Some(module.clone()), channels: cout, groups, eps: 1e-5, per_plane: self.planar }),
        };
        self.graph.add(module, op, &[y])
    }

    fn attention(&mut self, name: &str, x: NodeId, v: NodeId, c: u32, cv: u32) -> NodeId {
        let q = self.conv(&format!("{name}.q"), &[x], c, c, [1; 3], [1; 3]);
        let k = self.conv(&format!("{name}.k"), &[x], c, c, [1; 3], [1; 3]);
        let v = self.conv(&format!("{name}.v"), &[v], cv, cv, [1; 3], [1; 3]);
        self.graph.add(name, Op::Attention(Attention { heads: 1, scale: 0.5, per_plane: self.planar, ..Attention::default() }), &[q, k, v])
    }
}

impl Net {
    pub(crate) fn stride(&self) -> u32 {
        1 << (self.levels.len() - 1)
    }

    pub(crate) fn graph(&self) -> Graph {
        let mut b = Builder { graph: Graph::default(), planar: self.planar, norm: self.norm };
        let two = b.along(2);
        let last = self.levels.len() - 1;
        let mut x = b.graph.add("input", Op::Input { channels: self.in_channels }, &[]);
        let mut cin = self.in_channels;
        let mut skips = Vec::new();
        for (i, &c) in self.levels.iter().enumerate() {
            if i > 0 {
                skips.push((x, cin));
                x = if self.strided && i == last {
                    b.conv(&format!("down.{i}"), &[x], cin, cin, two, two)
                } else {
                    b.graph.add(format!("pool.{i}"), Op::max_pool(two), &[x])
                };
            }
            x = b.block(&format!("enc.{i}"), x, cin, c, if i == 0 { self.kernel } else { 3 });
            cin = c;
            if self.residual {
                x = b.residual(&format!("res.{i}"), x, c, i % 2 == 1);
            }
        }
        if self.attention {
            let angles = if self.planar { Angles::Planar } else { Angles::Volume };
            let t = b.graph.add("pe", Op::PositionalEncoding(PositionalEncoding { angles, level: None }), &[x]);
            x = b.attention("mhsa", t, t, cin, cin);
        }
        for (i, (mut skip, c)) in skips.into_iter().enumerate().rev() {
            if self.gate && i + 1 == last {
                let v = b.graph.add(format!("gate.{i}.pool"), Op::max_pool(two), &[skip]);
                let z = b.attention(&format!("gate.{i}.attn"), x, v, cin, c);
                let g = b.conv(&format!("gate.{i}.conv"), &[z], c, c, [1; 3], [1; 3]);
                let g = b.graph.add(format!("gate.{i}"), Op::Activation(Activation::Sigmoid), &[g]);
                let g = b.graph.add(format!("gate.{i}.up"), Op::upsample(two), &[g]);
                skip = b.graph.add(format!("gate.{i}.mul"), Op::Multiply(Combine::default()), &[g, skip]);
            }
            let up = b.up(&format!("up.{i}"), x, cin, self.up);
            let cat = b.graph.add(format!("cat.{i}"), Op::Concat, &[skip, up]);
            x = b.block(&format!("dec.{i}"), cat, c + cin, c, 3);
            cin = c;
        }
        b.conv("head", &[x], cin, self.classes, [1; 3], [1; 3]);
        let graph = pass::optimise(&b.graph, &[]).0;
        if self.through { pass::read_through(&graph, &[]) } else { graph }
    }
}

/// A network, an extent, limits and options.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) net: Net,
    pub(crate) extent: Extent,
    pub(crate) binding: u64,
    pub(crate) elem: Elem,
    pub(crate) output: OutputMode,
    pub(crate) tap: bool,
    pub(crate) slab_depth: Option<u32>,
    /// Whether slabs may wait on the host, and whether values may be computed again.
    pub(crate) spill: bool,
    pub(crate) recompute: bool,
    /// Thousandths of the way from the smallest budget to the largest.
    pub(crate) share: u64,
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    let net =
        (
            any::<bool>(),
            prop::collection::vec(1u32..20, 1..4),
            1u32..4,
            1u32..6,
            prop::sample::select(vec![1u32, 3, 5]),
            any::<bool>(),
            any::<bool>(),
            (
                any::<bool>(),
                prop::sample::select(vec![Up::Linear, Up::Linear, Up::Blocks, Up::Overlapping]),
                prop::sample::select(vec![NormKind::Batch, NormKind::Instance, NormKind::Layer]),
                any::<bool>(),
                any::<bool>(),
            ),
        )
            .prop_map(|(planar, levels, in_channels, classes, kernel, attention, gate, (strided, up, norm, through, residual))| {
                Net { planar, levels, in_channels, classes, kernel, attention, gate, strided, up, norm, through, residual }
            });
    let options =
        (12u32..22, any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of(1u32..9), 0u64..1000, [any::<bool>(), any::<bool>()]);
    (net, [1u32..9, 1u32..5, 1u32..5], options).prop_map(
        |(net, [d, h, w], (binding, half, logits, tap, slab_depth, share, [spill, recompute]))| {
            let s = net.stride();
            let extent = Extent::new(if net.planar { d * 3 } else { d * s }, h * s, w * s);
            Case {
                extent,
                // an odd limit: 2^12 to 2^22 and a half more
                binding: (3u64 << binding) / 2 + 4,
                elem: if half { Elem::F16 } else { Elem::F32 },
                output: if logits { OutputMode::Logits } else { OutputMode::Labels },
                tap,
                slab_depth,
                share,
                spill,
                recompute,
                net,
            }
        },
    )
}

impl Case {
    /// The limits of the case.
    pub(crate) fn caps(&self, device: &DeviceCaps) -> DeviceCaps {
        device.clone().with_max_binding(self.binding.min(device.max_binding))
    }

    /// What is to leave the device, without any wish for the way there.
    pub(crate) fn outputs(&self) -> PlanOptions {
        let mut options = PlanOptions::default().with_precision(self.elem).with_output(self.output);
        if self.tap {
            let graph = self.net.graph();
            // stored, or what its readers normalise as they load, with the scale that is always f32
            for tap in ["enc.0", "enc.0.conv", "enc.0.norm.scale"].into_iter().filter(|tap| graph.find(tap).is_some()) {
                options = options.with_tap(tap);
            }
        }
        options
    }

    /// The options of the case, without a budget or a slab depth.
    pub(crate) fn options(&self) -> PlanOptions {
        let mut options = self.outputs();
        if !self.spill {
            options = options.without_spill();
        }
        if !self.recompute {
            options = options.without_recompute();
        }
        options
    }
}

/// A network of everything once.
pub(crate) fn small() -> Net {
    Net {
        planar: false,
        levels: vec![4, 6, 8],
        in_channels: 1,
        classes: 3,
        kernel: 3,
        attention: true,
        gate: true,
        strided: false,
        up: Up::Linear,
        norm: NormKind::Batch,
        through: false,
        residual: false,
    }
}
