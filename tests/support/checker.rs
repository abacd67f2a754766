//! A brute-force checker of recordings: simulates every byte and asserts that each plane a command reads is where it reads.

use std::collections::BTreeMap;
use std::ops::Range;

use organum::graph::{Graph, NodeId, Op, Size};
use organum::kernels::{Call, Interpolation, Shift, Spread, Target, Window, argmax};
use organum::record::{Command, ConstantSource, Recording, Region};
use organum::{DeviceCaps, Elem, Extent, Map, Plan, PlanOptions};

/// What lies in a range of bytes: a plane of a node's value, or a node's constant.
type Content = (NodeId, Option<u32>);

/// Chunks as ranges: offset to end and content. Ranges never overlap.
struct Bytes(Vec<BTreeMap<u64, (u64, Content)>>);

/// Contents with their ranges.
type Waiting = Vec<(Range<u64>, Content)>;

impl Bytes {
    /// Whole contents within a range, at offsets from its begin.
    fn within(&self, chunk: u32, range: &Range<u64>) -> Waiting {
        let map = &self.0[chunk as usize];
        map.range(range.clone())
            .filter(|(_, (end, _))| *end <= range.end)
            .map(|(&at, &(end, c))| (at - range.start..end - range.start, c))
            .collect()
    }

    fn write(&mut self, chunk: u32, range: Range<u64>, content: Content) {
        let map = &mut self.0[chunk as usize];
        let hit: Vec<(u64, u64, Content)> =
            map.range(..range.end).filter(|(_, (end, _))| *end > range.start).map(|(&at, &(end, c))| (at, end, c)).collect();
        for (at, _, _) in hit {
            map.remove(&at); // a range overwritten in part is no longer whole
        }
        map.insert(range.start, (range.end, content));
    }

    fn holds(&self, chunk: u32, range: &Range<u64>, content: Content) -> bool {
        self.0[chunk as usize].get(&range.start) == Some(&(range.end, content))
    }
}

/// A walk over a recording that may or may not do what the plan says.
pub(crate) struct Checker<'a> {
    plan: &'a Plan,
    recording: &'a Recording,
    caps: &'a DeviceCaps,
    maps: Vec<Map>,
    bytes: Bytes,
    /// What waits on the host, by slot: bytes, and contents at offsets from the region's begin.
    host: Vec<Option<(u64, Waiting)>>,
    /// Bytes spilled, counted once for there and back.
    moved: u64,
    /// Bytes of weights fetched.
    fetched: u64,
    /// How often each plane of each node was computed.
    computed: Vec<Vec<u32>>,
}

/// Where a call finds a source: its window, and the bindings of the lower and the upper slab.
struct Operand {
    window: Window,
    lo: usize,
    hi: usize,
}

/// Sources, destination and bindings of constants of a call.
fn operands(call: &Call) -> (Vec<Operand>, Target, Vec<usize>) {
    let mut call = call.clone();
    let (windows, target) = call.operands();
    let (windows, target) = (windows.to_vec(), *target);
    let tags: Vec<[usize; 2]> = (0..windows.len()).map(|s| [2 * s, 2 * s + 1]).collect();
    let constant = usize::MAX;
    let bound = call.bind(&tags, &[constant]);
    let at = |tag: usize| bound.iter().position(|&t| t == tag);
    let sources = (0..).zip(&windows).map(|(s, &window)| {
        let lo = at(2 * s).expect("every source is bound");
        let hi = at(2 * s + 1);
        Operand { window: if hi.is_some() { window } else { Window::whole(window.first) }, lo, hi: hi.unwrap_or(lo) }
    });
    let constants = (0..call.bindings().len() - 2).filter(|&i| bound.get(i) == Some(&constant)).collect();
    (sources.collect(), target, constants)
}

/// Planes of input `slot` that plane `z` of the result is computed from, by the definition of the operation.
fn needs(op: &Op, slot: usize, inputs: usize, n: u32, out: u32, z: u32) -> Vec<u32> {
    match op {
        // scale and shift come after the maps
        Op::Conv(c) | Op::HeadArgmax(c) if slot >= c.maps(inputs) => vec![if n == 1 { 0 } else { z }],
        Op::Add(_) | Op::Multiply(_) if slot >= 2 => vec![if n == 1 { 0 } else { z }],
        Op::Add(c) | Op::Multiply(c) if slot == 1 && c.spread == Spread::Voxels => vec![0],
        Op::Conv(c) if slot == 1 && c.residual => vec![z],
        Op::Normalise(_) | Op::ConvTranspose(_) | Op::PRelu { .. } if slot == 1 => vec![if n == 1 { 0 } else { z }],
        Op::NormScale(norm) if !norm.per_plane => (0..n).collect(),
        Op::Conv(c) if c.through[slot].is_some() => {
            let resize = c.through[slot].expect("just seen");
            let fine = match resize.size {
                Size::Times(factor) => n * factor[0],
                Size::Extent(to) => to.d,
                Size::Plane(_) => n,
            };
            let plain = Op::Conv(organum::graph::Conv { through: [None; 2], ..c.clone() });
            let resize = Op::Resize(resize);
            needs(&plain, slot, inputs, fine, out, z).into_iter().flat_map(|s| needs(&resize, 0, 1, n, fine, s)).collect()
        }
        Op::Conv(c) => {
            (0..c.kernel[0]).filter_map(|k| (z * c.stride[0] + k * c.dilation[0]).checked_sub(c.padding[0])).filter(|&s| s < n).collect()
        }
        Op::ConvTranspose(c) => {
            let reaches = |s: &u32| (0..c.kernel[0]).any(|k| s * c.stride[0] + k == z + c.padding[0]);
            (0..n).filter(reaches).collect()
        }
        Op::MaxPool { kernel, stride, padding } => {
            (0..kernel[0]).filter_map(|k| (z * stride[0] + k).checked_sub(padding[0])).filter(|&s| s < n).collect()
        }
        Op::AvgPool { kernel } => (0..kernel[0]).map(|k| z * kernel[0] + k).collect(),
        Op::Resize(resize) => {
            let [z, n, out] = [z, n, out].map(i64::from);
            let (num, den) = match resize.mode {
                Interpolation::Nearest => (z * n / out, 1),
                Interpolation::Aligned => (z * (n - 1), (out - 1).max(1)),
                Interpolation::HalfPixel => (((2 * z + 1) * n - out).max(0), 2 * out),
            };
            let low = num / den;
            let high = if num % den == 0 { low } else { (low + 1).min(n - 1) };
            (low..=high).map(|s| s as u32).collect()
        }
        Op::Shift(shift) => {
            let [z, n] = [z, n].map(i64::from);
            let source = match shift[0] {
                Shift::Roll(offset) => (z + i64::from(offset)).rem_euclid(n),
                Shift::Pad { before, .. } => z - i64::from(before),
                Shift::Flip => n - 1 - z,
            };
            (0..n).filter(|&s| s == source).map(|s| s as u32).collect()
        }
        Op::PatchMerge(m) => m.order.iter().map(|at| z * m.patch[0] + at[0]).filter(|&s| s < n).collect(),
        Op::PatchExpand(e) => vec![z / e.patch[0]],
        Op::Gather(_) => (0..n).collect(),
        Op::Attention(a) if slot > 0 && !a.per_plane => (0..n).collect(),
        Op::WindowAttention(a) if slot > 0 => {
            let s = &a.shape;
            let (window, shift) = (s.k_window[0], s.shift[0]);
            let rolled = if slot == 1 { n.next_multiple_of(window) } else { n * window };
            let own = if s.token_queries { z } else { (z + rolled * s.q_window[0] - shift) / s.q_window[0] % (rolled / window) };
            if slot == 2 { vec![own] } else { (0..window).map(|i| (own * window + i + shift) % rolled).filter(|&p| p < n).collect() }
        }
        Op::Deformable(_) if slot > 1 => (0..n).collect(),
        _ => vec![z],
    }
}

impl<'a> Checker<'a> {
    pub(crate) fn new(plan: &'a Plan, recording: &'a Recording, caps: &'a DeviceCaps) -> Self {
        let maps = plan.graph().infer(plan.extent()).expect("a planned graph has shapes");
        let computed = maps.iter().map(|m| vec![0; m.extent.d as usize]).collect();
        Self {
            plan,
            recording,
            caps,
            maps,
            bytes: Bytes(vec![BTreeMap::new(); recording.chunks.len()]),
            host: vec![None; recording.host_slots.len()],
            moved: 0,
            fetched: 0,
            computed,
        }
    }

    fn name(&self, node: NodeId) -> &str {
        &self.plan.graph().node(node).name
    }

    fn plane_bytes(&self, node: NodeId) -> u64 {
        let map = self.maps[node.index()];
        match self.plan.graph().node(node).op {
            Op::Argmax | Op::HeadArgmax(_) => argmax::plane_words(map.extent, map.channels) * 4,
            Op::ChannelStats | Op::PlaneStats | Op::NormScale(_) => map.plane_elements() * 4,
            _ => map.plane_elements() * self.recording.elem.bytes(),
        }
    }

    /// A region that lies in its chunk and may be bound.
    fn region(&self, r: Region) {
        let chunk = self.recording.chunks[r.chunk as usize];
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
        assert!(
            self.bytes.holds(r.chunk, &range, (node, Some(z))),
            "{reader} reads plane {z} of {}, which is not in chunk {} at {range:?}",
            self.name(node),
            r.chunk
        );
    }

    fn constants(&mut self) {
        for index in 0..self.recording.constants.len() {
            let constant = &self.recording.constants[index];
            if constant.fetched {
                continue;
            }
            let before = self.bytes.0[constant.dst.chunk as usize].len();
            self.write_constant(index, constant.dst);
            assert_eq!(self.bytes.0[constant.dst.chunk as usize].len(), before + 1, "constants overlap");
        }
    }

    fn write_constant(&mut self, index: usize, dst: Region) {
        self.region(dst);
        let constant = &self.recording.constants[index];
        assert_eq!(constant.dst.size, dst.size, "constant {index} comes to {dst:?}");
        let node = match constant.source {
            ConstantSource::Conv { node, .. }
            | ConstantSource::ScaleShift { node, .. }
            | ConstantSource::Attention { node, .. }
            | ConstantSource::Tokens { node }
            | ConstantSource::Parameter { node } => node,
            ConstantSource::PositionTable { node, .. } => node,
        };
        self.bytes.write(dst.chunk, dst.offset..dst.offset + dst.size, (node, None));
    }

    fn fetch(&mut self, dst: Region, constant: u32) {
        let constant = constant as usize;
        assert!(self.recording.constants[constant].fetched, "constant {constant} is on the device already");
        self.write_constant(constant, dst);
        self.fetched += dst.size;
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
        let (windows, target, constants) = operands(call);
        for slot in constants.into_iter().filter(|&slot| slot < sources.len()) {
            let r = bindings[slot];
            // a node that is computed again binds the constant of the first
            let op = |id: &NodeId| &plan.graph().node(*id).op;
            let mut owners = plan.graph().ids().filter(|id| op(id) == op(&node));
            let held = owners.any(|id| self.bytes.holds(r.chunk, &(r.offset..r.offset + r.size), (id, None)));
            assert!(held, "the constant of {} is gone", self.name(node));
            let needed = call.sizes()[slot] * call.bindings()[slot + 1].bytes(self.recording.elem);
            assert!(r.size >= needed, "the constant of {} has {} bytes of {needed}", self.name(node), r.size);
        }

        let graph_node = plan.graph().node(node);
        assert_eq!(windows.len(), graph_node.inputs.len(), "{}", graph_node.name);
        for (slot, (&input, &Operand { window, lo, hi })) in graph_node.inputs.iter().zip(&windows).enumerate() {
            let (n, out) = (self.maps[input.index()].extent.d, self.maps[node.index()].extent.d);
            for z in target.begin..target.begin + target.count {
                for source in needs(&graph_node.op, slot, graph_node.inputs.len(), n, out, z) {
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
            assert_eq!([k.windows[1].first, k.windows[2].first], [0, 0], "{}", graph_node.name);
        }
        for z in target.begin..target.begin + target.count {
            self.write_plane(dst, node, target.first, z);
        }
    }

    fn spill(&mut self, src: Region, slot: u32) {
        self.region(src);
        let waiting = self.bytes.within(src.chunk, &(src.offset..src.offset + src.size));
        let whole: u64 = waiting.iter().map(|(r, _)| r.end - r.start).sum();
        assert_eq!(whole, src.size, "{src:?} is spilled, but holds {waiting:?}");
        assert!(src.size <= self.recording.host_slots[slot as usize], "slot {slot} is too small for {src:?}");
        let before = self.host[slot as usize].replace((src.size, waiting));
        assert!(before.is_none(), "slot {slot} holds {before:?}");
        self.moved += src.size;
    }

    fn restore(&mut self, dst: Region, slot: u32, keep: bool) {
        self.region(dst);
        let (size, waiting) = self.host[slot as usize].clone().unwrap_or_else(|| panic!("slot {slot} is empty"));
        if !keep {
            self.host[slot as usize] = None;
        }
        assert_eq!(size, dst.size, "slot {slot} comes back to {dst:?}");
        for (range, content) in waiting {
            self.bytes.write(dst.chunk, dst.offset + range.start..dst.offset + range.end, content);
        }
    }

    /// Walks the whole recording.
    pub(crate) fn check(mut self) {
        let recording = self.recording;
        let plan = self.plan;
        let report = plan.report();
        assert!(recording.chunks.iter().all(|&c| c <= self.caps.max_buffer), "a chunk exceeds the buffer limit");
        assert_eq!(recording.device_bytes(), report.peak_bytes);
        assert!(report.budget.is_none_or(|b| report.peak_bytes <= b));
        assert!(report.smallest_budget <= report.peak_bytes);
        assert!(report.activation_bytes >= report.max_live_bytes);
        self.constants();
        let mut delivered: Vec<Vec<u32>> = recording.outputs.iter().map(|o| vec![0; o.map.extent.d as usize]).collect();
        let mut flops = 0;
        for command in &recording.commands {
            match command {
                Command::Upload { dst, planes, node } => {
                    self.region(*dst);
                    planes.clone().for_each(|z| self.write_plane(*dst, *node, planes.start, z));
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
                Command::Spill { src, slot } => self.spill(*src, *slot),
                Command::Restore { dst, slot, keep } => self.restore(*dst, *slot, *keep),
                Command::Fetch { dst, constant } => self.fetch(*dst, *constant),
                Command::Split => {}
            }
        }
        assert!(self.host.iter().all(Option::is_none), "a slab is left on the host");
        assert_eq!(self.moved, report.spilled_bytes);
        assert_eq!(self.fetched, report.fetched_bytes);
        assert!(matches!(recording.commands.last(), Some(Command::Split)), "a recording ends with a split");
        assert_eq!(flops, report.flops);
        for (output, planes) in recording.outputs.iter().zip(&delivered) {
            assert!(planes.iter().all(|&n| n == 1), "planes of {} are delivered {planes:?} times", output.name);
        }
        for id in plan.graph().ids() {
            let times = &self.computed[id.index()];
            assert!(times.iter().all(|&n| n >= 1), "{} is not computed whole", self.name(id));
            assert!(
                report.recomputed_flops > 0 || times.iter().all(|&n| n == 1),
                "{} is computed again, the report says nothing is",
                self.name(id)
            );
        }
    }
}

/// Checks the plan's own recording.
pub(crate) fn check(plan: &Plan, caps: &DeviceCaps) {
    Checker::new(plan, plan.recording(), caps).check();
}

/// Plans of a graph in both storage types, in several cuts and in the smallest budget: every plane that is read is where it
/// is read.
#[allow(dead_code, reason = "each test binary uses a part")]
pub(crate) fn check_every_way(name: &str, graph: &Graph, extent: Extent) {
    let caps = DeviceCaps::default();
    for elem in [Elem::F32, Elem::F16] {
        let options = PlanOptions::default().with_precision(elem);
        let planned = |options: PlanOptions| {
            let plan = Plan::of_graph(graph, extent, &caps, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
            check(&plan, &caps);
            plan
        };
        for depth in [1, 2, 3, 4, 7, 10] {
            planned(options.clone().with_slab_depth(depth));
        }
        let whole = planned(options.clone());
        let least = whole.report().smallest_budget;
        let small = planned(options.clone().with_budget(least));
        println!("{name} {}: {} bytes, at least {}", elem.name(), whole.report().peak_bytes, small.report().peak_bytes);
    }
}
