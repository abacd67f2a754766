//! Plans, checked by brute force: every byte a command reads is the byte it means. The last test runs them.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use organum::graph::{BatchNorm, Conv, Graph, NodeId, Op, pass};
use organum::kernels::{Activation, Call, Target, Window, argmax};
use organum::record::{Command, Recording, Region};
use organum::{DeviceCaps, Elem, Extent, Input, Map, Model, OutputData, OutputMode, Plan, PlanError, PlanErrorKind, PlanOptions, RunOptions, Session};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use support::{Random, engine};

// ---- the checker ----

/// What lies in a range of bytes: a plane of a node's value, or a node's constant.
type Content = (NodeId, Option<u32>);

/// Chunks as ranges: offset to end and content. Ranges never overlap.
struct Bytes(Vec<BTreeMap<u64, (u64, Content)>>);

impl Bytes {
    fn write(&mut self, chunk: u32, range: Range<u64>, content: Content) {
        let map = &mut self.0[chunk as usize];
        let hit: Vec<(u64, u64, Content)> = map.range(..range.end).filter(|(_, (end, _))| *end > range.start).map(|(&at, &(end, c))| (at, end, c)).collect();
        for (at, _, _) in hit {
            map.remove(&at); // a range overwritten in part is no longer whole
        }
        map.insert(range.start, (range.end, content));
    }

    fn holds(&self, chunk: u32, range: &Range<u64>, content: Content) -> bool {
        self.0[chunk as usize].get(&range.start) == Some(&(range.end, content))
    }
}

struct Checker<'a> {
    plan: &'a Plan,
    caps: &'a DeviceCaps,
    maps: Vec<Map>,
    bytes: Bytes,
    /// How often each plane of each node was computed.
    computed: Vec<Vec<u32>>,
}

/// Windows and first planes of the sources of a call, and what it writes: read from the kernel's own parameters.
fn operands(call: &Call) -> (Vec<(Window, usize, usize)>, Target) {
    let one = |first: u32, slot: usize| (Window::whole(first), slot, slot);
    match call {
        Call::Conv3dDirect(k) => {
            let sources = if k.0.in_channels[1] > 0 { 2 } else { 1 };
            ((0..sources).map(|s| (k.0.windows[s], 2 * s, 2 * s + 1)).collect(), k.0.target)
        }
        Call::Conv3dPointwise(k) => {
            let sources = if k.0.in_channels[1] > 0 { 2 } else { 1 };
            ((0..sources).map(|s| (Window { split: u32::MAX, ..k.0.windows[s] }, s, s)).collect(), k.0.target)
        }
        Call::MaxPool3d(k) => (vec![(k.window, 0, 1)], k.target),
        Call::UpsampleLinear(k) => (vec![(k.window, 0, 1)], k.target),
        Call::PositionAdd(k) => (vec![one(k.first, 0)], k.target),
        Call::Attention(k) => ((0..3).map(|s| one(k.first[s], s)).collect(), k.target),
        Call::Multiply(k) => (vec![one(k.first[0], 0), one(k.first[1], 1)], k.target),
        Call::Argmax(k) => (vec![one(k.first, 0)], k.target),
    }
}

/// Binding of the constant of a call, if it has one.
fn constant_slot(call: &Call) -> Option<usize> {
    match call {
        Call::Conv3dDirect(_) => Some(4),
        Call::Conv3dPointwise(_) => Some(2),
        Call::PositionAdd(_) => Some(1),
        _ => None,
    }
}

/// Planes of input `slot` that plane `z` of the result is computed from, by the definition of the operation.
fn needs(op: &Op, slot: usize, n: u32, out: u32, z: u32) -> Vec<u32> {
    match op {
        Op::Conv(c) => (0..c.kernel[0]).filter_map(|k| (z * c.stride[0] + k).checked_sub(c.padding[0])).filter(|&s| s < n).collect(),
        Op::MaxPool { kernel } => (z * kernel[0]..(z + 1) * kernel[0]).collect(),
        Op::Upsample { .. } => {
            let (num, den) = (u64::from(z) * u64::from(n - 1), u64::from((out - 1).max(1)));
            let low = (num / den) as u32;
            if num % den == 0 { vec![low] } else { vec![low, low + 1] }
        }
        Op::Attention { per_plane: false, .. } if slot > 0 => (0..n).collect(),
        _ => vec![z],
    }
}

impl<'a> Checker<'a> {
    fn new(plan: &'a Plan, caps: &'a DeviceCaps) -> Self {
        let maps = plan.graph().infer(plan.extent()).expect("a planned graph has shapes");
        let computed = maps.iter().map(|m| vec![0; m.extent.d as usize]).collect();
        Self { plan, caps, maps, bytes: Bytes(vec![BTreeMap::new(); plan.recording().chunks.len()]), computed }
    }

    fn recording(&self) -> &'a Recording {
        self.plan.recording()
    }

    fn name(&self, node: NodeId) -> &str {
        &self.plan.graph().node(node).name
    }

    fn plane_bytes(&self, node: NodeId) -> u64 {
        let map = self.maps[node.index()];
        match self.plan.graph().node(node).op {
            Op::Argmax => argmax::plane_words(map.extent, map.channels) * 4,
            _ => map.plane_elements() * self.recording().elem.bytes(),
        }
    }

    /// A region that lies in its chunk and may be bound.
    fn region(&self, r: Region) {
        let chunk = self.recording().chunks[r.chunk as usize];
        assert!(r.size > 0 && r.offset + r.size <= chunk, "{r:?} leaves its chunk of {chunk} bytes");
        assert!(r.size <= self.caps.max_binding, "{r:?} exceeds the binding limit of {}", self.caps.max_binding);
        assert_eq!(r.offset % self.caps.alignment, 0, "{r:?} is not aligned");
        assert_eq!(r.size % 4, 0, "{r:?} is no number of words");
    }

    /// Plane `z` of `node` in a region that begins with plane `first`.
    fn plane(&self, r: Region, node: NodeId, first: u32, z: u32) -> Range<u64> {
        let bytes = self.plane_bytes(node);
        assert!(z >= first, "plane {z} of {} lies before {r:?}, which begins with plane {first}", self.name(node));
        let begin = r.offset + u64::from(z - first) * bytes;
        assert!(begin + bytes <= r.offset + r.size, "plane {z} of {} lies after {r:?}, which begins with plane {first}", self.name(node));
        begin..begin + bytes
    }

    fn write_plane(&mut self, r: Region, node: NodeId, first: u32, z: u32) {
        let range = self.plane(r, node, first, z);
        self.bytes.write(r.chunk, range, (node, Some(z)));
        self.computed[node.index()][z as usize] += 1;
    }

    fn read_plane(&self, r: Region, node: NodeId, first: u32, z: u32, reader: &str) {
        let range = self.plane(r, node, first, z);
        assert!(self.bytes.holds(r.chunk, &range, (node, Some(z))), "{reader} reads plane {z} of {}, which is not in chunk {} at {range:?}", self.name(node), r.chunk);
    }

    fn constants(&mut self) {
        let mut nodes = HashMap::new();
        for constant in &self.recording().constants {
            self.region(constant.dst);
            let node = match constant.source {
                organum::record::ConstantSource::Conv { node, .. } => node,
                organum::record::ConstantSource::PositionTable { .. } => {
                    let of = |id: &NodeId| matches!(self.plan.graph().node(*id).op, Op::PositionalEncoding { .. });
                    let tables: Vec<NodeId> = self.plan.graph().ids().filter(of).collect();
                    let count = nodes.entry("tables").or_insert(0usize);
                    *count += 1;
                    tables[*count - 1]
                }
            };
            let range = constant.dst.offset..constant.dst.offset + constant.dst.size;
            let before = self.bytes.0[constant.dst.chunk as usize].len();
            self.bytes.write(constant.dst.chunk, range, (node, None));
            assert_eq!(self.bytes.0[constant.dst.chunk as usize].len(), before + 1, "constants overlap");
        }
    }

    fn dispatch(&mut self, call: &Call, bindings: &[Region], node: NodeId) {
        let plan = self.plan;
        let (&dst, sources) = bindings.split_last().expect("a kernel writes");
        assert_eq!(bindings.len(), call.bindings().len() - 1, "{}", call.name());
        bindings.iter().for_each(|&r| self.region(r));
        assert!(sources.iter().all(|r| r.chunk != dst.chunk), "{} binds chunk {} read and read_write", self.name(node), dst.chunk);
        let groups = call.workgroups(self.caps).expect("the grid fits");
        assert!(groups.iter().all(|&n| (1..=self.caps.max_workgroups).contains(&n)));
        assert!(call.bindings().len() - 1 <= self.caps.max_storage_buffers as usize);
        if let Some(slot) = constant_slot(call) {
            let r = bindings[slot];
            assert!(self.bytes.holds(r.chunk, &(r.offset..r.offset + r.size), (node, None)), "the constant of {} is gone", self.name(node));
        }

        let (windows, target) = operands(call);
        let graph_node = plan.graph().node(node);
        assert_eq!(windows.len(), graph_node.inputs.len(), "{}", graph_node.name);
        for (slot, (&input, &(window, lo, hi))) in graph_node.inputs.iter().zip(&windows).enumerate() {
            let (n, out) = (self.maps[input.index()].extent.d, self.maps[node.index()].extent.d);
            for z in target.begin..target.begin + target.count {
                for source in needs(&graph_node.op, slot, n, out, z) {
                    if source < window.split {
                        self.read_plane(sources[lo], input, window.first, source, &graph_node.name);
                    } else {
                        self.read_plane(sources[hi], input, window.split, source, &graph_node.name);
                    }
                }
            }
        }
        // a kernel over the whole map finds its keys one after the other from the first on
        if let Call::Attention(k) = call
            && !k.per_plane
        {
            assert_eq!(k.first[1..], [0, 0], "{}", graph_node.name);
        }
        for z in target.begin..target.begin + target.count {
            self.write_plane(dst, node, target.first, z);
        }
    }

    /// Walks the whole recording.
    fn check(mut self) {
        let recording = self.recording();
        let plan = self.plan;
        let report = plan.report();
        assert!(recording.chunks.iter().all(|&c| c <= self.caps.max_buffer), "a chunk exceeds the buffer limit");
        assert_eq!(recording.device_bytes(), report.peak_bytes);
        assert!(report.budget.is_none_or(|b| report.peak_bytes <= b));
        assert!(report.smallest_budget <= report.peak_bytes);
        assert!(report.activation_bytes >= report.max_live_bytes);
        self.constants();
        let input = plan.graph().ids().next().expect("a graph has an input");
        let mut delivered: Vec<Vec<u32>> = recording.outputs.iter().map(|o| vec![0; o.map.extent.d as usize]).collect();
        let mut flops = 0;
        for command in &recording.commands {
            match command {
                Command::Upload { dst, planes } => {
                    self.region(*dst);
                    planes.clone().for_each(|z| self.write_plane(*dst, input, planes.start, z));
                }
                Command::Dispatch { call, bindings, node } => {
                    flops += call.cost().flops;
                    self.dispatch(call, bindings, *node);
                }
                Command::Download { src, output, planes } => {
                    self.region(*src);
                    let node = plan.graph().find(&recording.outputs[*output as usize].name).expect("an output is a node");
                    assert_eq!(src.size, planes.len() as u64 * self.plane_bytes(node), "a download is whole planes");
                    for z in planes.clone() {
                        self.read_plane(*src, node, planes.start, z, "a download");
                        delivered[*output as usize][z as usize] += 1;
                    }
                }
                Command::Split => {}
            }
        }
        assert!(matches!(recording.commands.last(), Some(Command::Split)), "a recording ends with a split");
        assert_eq!(flops, report.flops);
        for (output, planes) in recording.outputs.iter().zip(&delivered) {
            assert!(planes.iter().all(|&n| n == 1), "planes of {} are delivered {planes:?} times", output.name);
        }
        for id in plan.graph().ids() {
            let times = &self.computed[id.index()];
            assert!(times.iter().all(|&n| n >= 1), "{} is not computed whole", self.name(id));
            assert!(report.recomputed_flops > 0 || times.iter().all(|&n| n == 1), "{} is computed again, the report says nothing is", self.name(id));
        }
    }
}

fn check(plan: &Plan, caps: &DeviceCaps) {
    Checker::new(plan, caps).check();
}

// ---- random networks ----

/// A U-Net-like network to be built, small enough to plan in a millisecond.
#[derive(Clone, Debug)]
struct Net {
    planar: bool,
    levels: Vec<u32>,
    in_channels: u32,
    classes: u32,
    /// Depth of the level-0 kernels along D: 1, 3 or 5.
    kernel: u32,
    attention: bool,
    gate: bool,
    /// The bottleneck is reached by a strided convolution, not by pooling.
    strided: bool,
}

struct Builder {
    graph: Graph,
    planar: bool,
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
            bias: true,
            norm: None,
            activation: Activation::None,
            weight_shape: [cout, cin].into_iter().chain(kernel).map(|n| n as usize).collect(),
        };
        self.graph.add(name, Op::Conv(conv), x)
    }

    fn block(&mut self, name: &str, x: NodeId, cin: u32, cout: u32, k: u32) -> NodeId {
        let kernel = if self.planar { [1, 3, 3] } else { [k, 3, 3] };
        let y = self.conv(&format!("{name}.conv"), &[x], cin, cout, kernel, [1; 3]);
        let y = self.graph.add(format!("{name}.norm"), Op::BatchNorm(BatchNorm { module: format!("{name}.norm"), channels: cout, eps: 1e-5 }), &[y]);
        self.graph.add(name, Op::Activation(Activation::Relu), &[y])
    }

    fn attention(&mut self, name: &str, x: NodeId, v: NodeId, c: u32, cv: u32) -> NodeId {
        let q = self.conv(&format!("{name}.q"), &[x], c, c, [1; 3], [1; 3]);
        let k = self.conv(&format!("{name}.k"), &[x], c, c, [1; 3], [1; 3]);
        let v = self.conv(&format!("{name}.v"), &[v], cv, cv, [1; 3], [1; 3]);
        self.graph.add(name, Op::Attention { heads: 1, scale: 0.5, per_plane: self.planar }, &[q, k, v])
    }
}

impl Net {
    fn stride(&self) -> u32 {
        1 << (self.levels.len() - 1)
    }

    fn graph(&self) -> Graph {
        let mut b = Builder { graph: Graph::default(), planar: self.planar };
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
                    b.graph.add(format!("pool.{i}"), Op::MaxPool { kernel: two }, &[x])
                };
            }
            x = b.block(&format!("enc.{i}"), x, cin, c, if i == 0 { self.kernel } else { 3 });
            cin = c;
        }
        if self.attention {
            let t = b.graph.add("pe", Op::PositionalEncoding { dims: if self.planar { 2 } else { 3 } }, &[x]);
            x = b.attention("mhsa", t, t, cin, cin);
        }
        for (i, (mut skip, c)) in skips.into_iter().enumerate().rev() {
            if self.gate && i + 1 == last {
                let v = b.graph.add(format!("gate.{i}.pool"), Op::MaxPool { kernel: two }, &[skip]);
                let z = b.attention(&format!("gate.{i}.attn"), x, v, cin, c);
                let g = b.conv(&format!("gate.{i}.conv"), &[z], c, c, [1; 3], [1; 3]);
                let g = b.graph.add(format!("gate.{i}"), Op::Activation(Activation::Sigmoid), &[g]);
                let g = b.graph.add(format!("gate.{i}.up"), Op::Upsample { factor: two }, &[g]);
                skip = b.graph.add(format!("gate.{i}.mul"), Op::Multiply, &[g, skip]);
            }
            let up = b.graph.add(format!("up.{i}"), Op::Upsample { factor: two }, &[x]);
            let cat = b.graph.add(format!("cat.{i}"), Op::Concat, &[skip, up]);
            x = b.block(&format!("dec.{i}"), cat, c + cin, c, 3);
            cin = c;
        }
        b.conv("head", &[x], cin, self.classes, [1; 3], [1; 3]);
        pass::optimise(&b.graph, &[]).0
    }
}

/// A network, an extent, limits and options.
#[derive(Clone, Debug)]
struct Case {
    net: Net,
    extent: Extent,
    binding: u64,
    elem: Elem,
    output: OutputMode,
    tap: bool,
    slab_depth: Option<u32>,
    /// Thousandths of the way from the smallest budget to the largest.
    share: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let net = (any::<bool>(), prop::collection::vec(1u32..20, 1..4), 1u32..4, 1u32..6, prop::sample::select(vec![1u32, 3, 5]), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(planar, levels, in_channels, classes, kernel, attention, gate, strided)| Net { planar, levels, in_channels, classes, kernel, attention, gate, strided },
    );
    let options = (12u32..22, any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of(1u32..9), 0u64..1000);
    (net, [1u32..9, 1u32..5, 1u32..5], options).prop_map(|(net, [d, h, w], (binding, half, logits, tap, slab_depth, share))| {
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
            net,
        }
    })
}

#[derive(Default)]
struct Tally {
    plans: u32,
    refused: u32,
    worst: f64,
    sum: f64,
    cuts: u32,
}

fn try_case(case: &Case, tally: &mut Tally) {
    let graph = case.net.graph();
    let caps = DeviceCaps::default().with_max_binding(case.binding);
    let mut options = PlanOptions::default().with_precision(case.elem).with_output(case.output);
    if case.tap {
        options = options.with_tap("enc.0");
    }
    let mut plan_of = |options: &PlanOptions| -> Result<Plan, PlanError> {
        let plan = Plan::of_graph(&graph, case.extent, &caps, options)?;
        check(&plan, &caps);
        let ratio = plan.report().activation_bytes as f64 / plan.report().max_live_bytes as f64;
        tally.plans += 1;
        tally.sum += ratio;
        tally.worst = tally.worst.max(ratio);
        tally.cuts += u32::from(plan.report().slabs > plan.graph().nodes().len() as u64);
        Ok(plan)
    };
    let whole = match plan_of(&options) {
        Ok(plan) => plan,
        Err(e) => {
            assert_eq!(e.kind(), PlanErrorKind::Limits, "{e}");
            assert!(e.node().is_some(), "{e}");
            tally.refused += 1;
            return;
        }
    };
    let (smallest, largest) = (whole.report().smallest_budget, whole.report().peak_bytes);
    let tight = plan_of(&options.clone().with_budget(smallest)).expect("the smallest budget works");
    assert_eq!((tight.report().peak_bytes, tight.report().smallest_budget), (smallest, smallest));
    assert_eq!(tight.report().budget, Some(smallest));
    let between = smallest + (largest - smallest) * case.share / 1000;
    let plan = plan_of(&options.clone().with_budget(between)).expect("more than the smallest works");
    assert!(plan.report().peak_bytes <= between);
    assert_eq!(plan.report().smallest_budget, smallest);
    for below in [smallest - 1, smallest / 2, 0] {
        let e = plan_of(&options.clone().with_budget(below)).expect_err("less than the smallest does not");
        assert_eq!((e.kind(), e.smallest_budget()), (PlanErrorKind::Budget, Some(smallest)));
        assert!(e.to_string().contains(&smallest.to_string()), "the message names the smallest budget: {e}");
    }
    if let Some(depth) = case.slab_depth {
        plan_of(&options.with_slab_depth(depth)).expect("a slab depth is a wish, the limits come first");
    }
}

#[test]
fn random_plans_hold_what_they_promise() {
    let mut tally = std::cell::RefCell::new(Tally::default());
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(case in case())| try_case(&case, &mut tally.borrow_mut()));
    let t = tally.get_mut();
    println!(
        "{} plans ({} cut into slabs), {} cases beyond the limits; activation buffers to most bytes alive: worst {:.3}, mean {:.3}",
        t.plans,
        t.cuts,
        t.refused,
        t.worst,
        t.sum / f64::from(t.plans)
    );
    assert!(t.plans > 300 && t.cuts > 100, "the cases are too tame");
}

// ---- bad inputs ----

fn small() -> Net {
    Net { planar: false, levels: vec![4, 6, 8], in_channels: 1, classes: 3, kernel: 3, attention: true, gate: true, strided: false }
}

fn kind(result: Result<Plan, PlanError>) -> PlanErrorKind {
    match result {
        Ok(plan) => panic!("planned {}", plan.extent()),
        Err(e) => {
            assert!(!e.to_string().is_empty());
            e.kind()
        }
    }
}

#[test]
fn extents_that_cannot_be_are_refused() {
    let (graph, caps) = (small().graph(), DeviceCaps::default());
    let plan = |d, h, w| Plan::of_graph(&graph, Extent::new(d, h, w), &caps, &PlanOptions::default());
    for [d, h, w] in [[0, 16, 16], [16, 0, 16], [16, 16, 0], [0, 0, 0], [1 << 31, 16, 16], [16, 1 << 31, 16], [16, 16, 1 << 31], [u32::MAX; 3], [1 << 16, 8, 8]] {
        assert_eq!(kind(plan(d, h, w)), PlanErrorKind::Extent, "{d}x{h}x{w}");
    }
    // too small or not divisible for the skips to meet
    for [d, h, w] in [[1, 1, 1], [1, 16, 16], [16, 16, 2], [18, 16, 16], [16, 17, 16]] {
        let e = plan(d, h, w).expect_err("the skips do not meet");
        assert_eq!(e.kind(), PlanErrorKind::Extent, "{d}x{h}x{w}");
        assert!(e.node().is_some(), "{e}");
    }
    assert_eq!(kind(plan(65_532, 65_532, 65_532)), PlanErrorKind::Extent, "beyond 32-bit indices");
    assert!(plan(4, 4, 4).is_ok());
}

#[test]
fn models_name_the_extent_to_pad_to() {
    let model = random_model(&Card::new(3, &[4, 6, 8]), 1);
    let caps = DeviceCaps::default();
    for extent in [Extent::new(1, 16, 16), Extent::new(16, 15, 16), Extent::new(1, 1, 1), Extent::new(u32::MAX, 16, 16)] {
        let e = Plan::new(&model, extent, &caps, &PlanOptions::default()).expect_err("not divisible by 4");
        assert_eq!(e.kind(), PlanErrorKind::Extent, "{extent}");
    }
    let e = Plan::new(&model, Extent::new(5, 6, 9), &caps, &PlanOptions::default()).expect_err("not divisible by 4");
    assert!(e.to_string().contains("8x8x12"), "{e}");
    for extent in [Extent::new(0, 16, 16), Extent::new(1 << 31, 16, 16)] {
        assert_eq!(kind(Plan::new(&model, extent, &caps, &PlanOptions::default())), PlanErrorKind::Extent, "{extent}");
    }
}

#[test]
fn limits_that_rule_a_network_out_name_its_node() {
    let graph = small().graph();
    let plan = |caps: &DeviceCaps, h, options: &PlanOptions| Plan::of_graph(&graph, Extent::new(16, h, h), caps, options);
    // 64 x 64 voxels of 4 channels of 4 bytes: a plane is 64 KiB
    for bytes in [0, 1, 255, 256, 4096, (64 << 10) - 4] {
        let e = plan(&DeviceCaps::default().with_max_binding(bytes), 64, &PlanOptions::default()).expect_err("a plane does not fit");
        assert_eq!(e.kind(), PlanErrorKind::Limits, "{bytes}");
        assert!(e.node().is_some() && e.to_string().contains("one storage binding"), "{e}");
    }
    let caps = DeviceCaps { max_workgroups: 1, ..DeviceCaps::default() };
    assert_eq!(kind(plan(&caps, 64, &PlanOptions::default())), PlanErrorKind::Limits);
    let caps = DeviceCaps { f16: false, ..DeviceCaps::default() };
    assert_eq!(kind(plan(&caps, 64, &PlanOptions::default().with_precision(Elem::F16))), PlanErrorKind::Unsupported);
    assert_eq!(kind(plan(&DeviceCaps::default(), 64, &PlanOptions::default().with_tap("nobody"))), PlanErrorKind::Unsupported);
    let e = plan(&DeviceCaps::default(), 64, &PlanOptions::default().with_budget(0)).expect_err("nothing fits no bytes");
    assert_eq!(e.kind(), PlanErrorKind::Budget);
    assert!(e.smallest_budget().is_some_and(|n| n > 0));
    for depth in [0, 1, u32::MAX] {
        let plan = plan(&DeviceCaps::default(), 64, &PlanOptions::default().with_slab_depth(depth)).expect("any depth is brought into range");
        check(&plan, &DeviceCaps::default());
    }
}

#[test]
fn graphs_that_cannot_be_are_refused() {
    let conv = |kernel, stride| {
        let weight_shape = [2, 1].into_iter().chain(kernel).map(|n: u32| n as usize).collect();
        Op::Conv(Conv { module: "x".into(), in_channels: 1, out_channels: 2, kernel, stride, padding: [0; 3], bias: true, norm: None, activation: Activation::None, weight_shape })
    };
    let bad: Vec<(&str, Op, usize)> = vec![
        ("kernel larger than the map", conv([9; 3], [1; 3]), 1),
        ("stride of nothing", conv([3; 3], [0; 3]), 1),
        ("kernel of nothing", conv([0; 3], [1; 3]), 1),
        ("padding beyond counting", Op::Conv(Conv { padding: [u32::MAX; 3], ..match conv([3; 3], [1; 3]) { Op::Conv(c) => c, _ => unreachable!() } }), 1),
        ("pool of nothing", Op::MaxPool { kernel: [0; 3] }, 1),
        ("pool of more than there is", Op::MaxPool { kernel: [16; 3] }, 1),
        ("upsampling by nothing", Op::Upsample { factor: [0; 3] }, 1),
        ("upsampling beyond counting", Op::Upsample { factor: [u32::MAX; 3] }, 1),
        ("no heads", Op::Attention { heads: 0, scale: 1.0, per_plane: false }, 3),
        ("too many heads", Op::Attention { heads: 2, scale: 1.0, per_plane: false }, 3),
        ("too few inputs", Op::Multiply, 1),
        ("an operation that no kernel covers", Op::Activation(Activation::Relu), 1),
        ("a second input", Op::Input { channels: 1 }, 0),
        ("no channels", Op::Input { channels: 0 }, 0),
    ];
    let mut panicked = Vec::new();
    let mut plan = |what: &str, graph: &Graph| {
        let result = std::panic::catch_unwind(|| Plan::of_graph(graph, Extent::new(8, 8, 8), &DeviceCaps::default(), &PlanOptions::default().with_output(OutputMode::Logits)));
        match result {
            Ok(Err(e)) => println!("{what}: {e}"),
            Ok(Ok(_)) => panicked.push(format!("{what}: planned")),
            Err(_) => panicked.push(format!("{what}: panicked")),
        }
    };
    for (what, op, inputs) in bad {
        let mut graph = Graph::default();
        let x = graph.add("input", Op::Input { channels: 1 }, &[]);
        graph.add("bad", op, &vec![x; inputs]);
        plan(what, &graph);
    }
    let mut ahead = Graph::default();
    ahead.add("input", Op::Input { channels: 1 }, &[]);
    ahead.add("bad", Op::Argmax, &[NodeId(7)]);
    plan("a node that reads what comes after", &ahead);
    plan("an empty graph", &Graph::default());
    assert!(panicked.is_empty(), "{}", panicked.join("\n"));
}

// ---- on the device ----

/// A u_transformer with random weights.
struct Card {
    dims: u32,
    channels: Vec<u32>,
    heads: u32,
    mhsa: bool,
    mhca_levels: u32,
    themyr: bool,
}

impl Card {
    fn new(dims: u32, channels: &[u32]) -> Self {
        Self { dims, channels: channels.to_vec(), heads: 2, mhsa: true, mhca_levels: 1, themyr: false }
    }

    const IN: u32 = 2;
    const CLASSES: u32 = 3;

    fn json(&self) -> String {
        serde_json::json!({
            "architecture": "u_transformer",
            "config": {
                "dims": self.dims, "in_channels": Self::IN, "classes": Self::CLASSES, "channels": self.channels, "heads": self.heads,
                "mhsa": self.mhsa, "mhca_levels": self.mhca_levels, "profile": if self.themyr { "themyr2021" } else { "paper2021" },
            },
        })
        .to_string()
    }

    /// Names and shapes of the tensors, as the architecture is published.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = Vec::new();
        let n = self.channels.len() - 1;
        let mut cin = Self::IN;
        for (i, &c) in self.channels.iter().enumerate() {
            self.double_conv(&mut list, &format!("enc.{i}"), cin, c);
            cin = c;
        }
        if self.mhsa {
            self.attention(&mut list, "mhsa.attn", cin, cin, true);
        }
        for (k, i) in (0..n).rev().enumerate() {
            let (cy, cs, name) = (self.channels[i + 1], self.channels[i], format!("dec.{k}"));
            if n - 1 - i < self.mhca_levels as usize {
                let dq = if self.themyr { cy } else { cs };
                self.conv_norm(&mut list, &format!("{name}.mhca.conv_y"), cy, dq, 1);
                self.conv_norm(&mut list, &format!("{name}.mhca.conv_s"), cs, cs, 1);
                if self.themyr {
                    self.conv(&mut list, &format!("{name}.mhca.reduce_s"), cs, cs, 2);
                }
                self.attention(&mut list, &format!("{name}.mhca.attn"), dq, cs, !self.themyr);
                self.conv(&mut list, &format!("{name}.mhca.gate_conv"), cs, cs, 1);
                norm(&mut list, &format!("{name}.mhca.gate_norm"), cs);
            }
            self.conv(&mut list, &format!("{name}.conv"), cy, cy, 3);
            self.conv_norm(&mut list, &format!("{name}.reduce"), cy, cs, 1);
            self.double_conv(&mut list, &format!("{name}.block"), 2 * cs, cs);
        }
        self.conv(&mut list, "head", self.channels[0], Self::CLASSES, 1);
        list
    }

    fn conv(&self, list: &mut Vec<(String, Vec<usize>)>, name: &str, cin: u32, cout: u32, k: usize) {
        let shape = [cout as usize, cin as usize].into_iter().chain(std::iter::repeat_n(k, self.dims as usize)).collect();
        list.extend([(format!("{name}.weight"), shape), (format!("{name}.bias"), vec![cout as usize])]);
    }

    fn conv_norm(&self, list: &mut Vec<(String, Vec<usize>)>, name: &str, cin: u32, cout: u32, k: usize) {
        self.conv(list, &format!("{name}.conv"), cin, cout, k);
        norm(list, &format!("{name}.norm"), cout);
    }

    fn double_conv(&self, list: &mut Vec<(String, Vec<usize>)>, name: &str, cin: u32, cout: u32) {
        self.conv_norm(list, &format!("{name}.a"), cin, cout, 3);
        self.conv_norm(list, &format!("{name}.b"), cout, cout, 3);
    }

    fn attention(&self, list: &mut Vec<(String, Vec<usize>)>, name: &str, dq: u32, dv: u32, project_v: bool) {
        let mut linear = |part: &str, c: u32| list.extend([(format!("{name}.{part}.weight"), vec![c as usize; 2]), (format!("{name}.{part}.bias"), vec![c as usize])]);
        linear("wq", dq);
        linear("wk", dq);
        if project_v {
            linear("wv", dv);
        }
        if !self.themyr {
            linear("wo", dv);
        }
    }
}

fn norm(list: &mut Vec<(String, Vec<usize>)>, name: &str, channels: u32) {
    list.extend(["weight", "bias", "running_mean", "running_var"].map(|part| (format!("{name}.{part}"), vec![channels as usize])));
}

fn random_model(card: &Card, seed: u64) -> Model {
    let mut random = Random::new(seed);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = card
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let fan_in: usize = shape[1..].iter().product();
            let scale = 2.0 / (fan_in as f32).sqrt();
            let positive = name.ends_with("running_var") || name.contains("norm.weight");
            let values = random.values(shape.iter().product()).into_iter().map(|v| if positive { 1.0 + v / 2.0 } else if shape.len() > 1 { v * scale } else { v / 4.0 });
            (name, shape, values.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("the shape is that of the bytes")));
    let metadata = HashMap::from([("organum".to_owned(), card.json())]);
    Model::from_bytes(safetensors::serialize(views, Some(metadata)).expect("the tensors are serialised")).expect("the names are those of the architecture")
}

#[test]
fn any_cut_gives_the_same_bits_in_the_bytes_planned() {
    let Some(engine) = engine() else { return };
    let cases = [
        (Card::new(3, &[6, 10, 12]), Extent::new(24, 16, 20)),
        (Card { mhsa: false, mhca_levels: 0, ..Card::new(3, &[8, 12]) }, Extent::new(22, 18, 14)),
        (Card { themyr: true, mhca_levels: 2, ..Card::new(3, &[4, 8, 8]) }, Extent::new(20, 16, 16)),
        (Card { mhca_levels: 2, ..Card::new(2, &[6, 8, 12]) }, Extent::new(17, 24, 20)),
        (Card { mhsa: false, mhca_levels: 0, ..Card::new(3, &[5]) }, Extent::new(23, 9, 11)),
    ];
    for (seed, (card, extent)) in (1u64..).zip(cases) {
        let model = random_model(&card, seed);
        let input = Random::new(seed + 100).values(extent.voxels() as usize * Card::IN as usize);
        let options = PlanOptions::default().with_output(OutputMode::Logits);
        let run = |caps: &DeviceCaps, options: &PlanOptions| -> (Vec<f32>, Plan) {
            let plan = Plan::new(&model, extent, caps, options).expect("there is a plan");
            check(&plan, caps);
            let planned = plan.report().peak_bytes;
            let mut session = pollster::block_on(Session::new(engine, &model, plan.clone())).expect("the session is made");
            assert_eq!(session.allocated_bytes(), planned, "bytes allocated and planned");
            let outputs = session.run_blocking(Input { channels: Card::IN, extent, data: &input }, RunOptions::default()).expect("the network runs");
            match &outputs[0].data {
                OutputData::Map(values) => (values.clone(), plan),
                OutputData::Labels(_) => panic!("asked for logits"),
            }
        };
        let (expected, whole) = run(engine.caps(), &options);
        assert!(expected.iter().all(|v| v.is_finite()) && expected.iter().any(|v| *v != expected[0]), "the logits say something");

        // the smallest limits that the network can live with: found by halving
        let fits = |bytes: u64| Plan::new(&model, extent, &engine.caps().clone().with_max_binding(bytes), &options).is_ok();
        let mut limit = whole.recording().chunks.iter().max().expect("there are chunks").next_power_of_two();
        while fits(limit / 2) {
            limit /= 2;
        }
        let caps = engine.caps().clone().with_max_binding(limit);
        let (bits, cut) = run(&caps, &options);
        let nodes = cut.graph().nodes().len() as u64;
        assert!(bits == expected, "other bits with bindings of {limit} bytes");
        let (largest, smallest) = (whole.report().peak_bytes, whole.report().smallest_budget);
        let mut most = cut.report().slabs;
        for (caps, options) in [
            (engine.caps(), options.clone().with_budget(smallest)),
            (engine.caps(), options.clone().with_budget((smallest + largest) / 2)),
            (engine.caps(), options.clone().with_slab_depth(1)),
            (engine.caps(), options.clone().with_slab_depth(3)),
            (engine.caps(), options.clone().with_slab_depth(7)),
            (&caps, options.clone().with_slab_depth(1)),
            (&caps, options.clone().with_slab_depth(2)),
            (&caps, options.clone().with_slab_depth(5)),
        ] {
            let (bits, plan) = run(caps, &options);
            assert!(bits == expected, "other bits with {options:?} and bindings of {} bytes", caps.max_binding);
            most = most.max(plan.report().slabs);
        }
        println!("{:?} {}D on {extent}: {nodes} values in up to {most} slabs, bindings down to {limit} bytes, {smallest} to {largest} bytes: the same bits", card.channels, card.dims);
        assert!(most >= 3 * nodes, "{most} slabs of {nodes} values is no cut");
    }
}
