//! Plans, checked by brute force: every byte a command reads is the byte it means. The last test runs them.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

#[path = "support/checker.rs"]
mod checker;
mod support;

use checker::{Checker, check};
use organum::graph::{Attention, BatchNorm, Combine, Conv, ConvTranspose, Graph, NodeId, Norm, Op, pass};
use organum::kernels::{Activation, Load, Scope};
use organum::record::Command;
use organum::{
    DeviceCaps, Elem, Extent, Input, Model, OutputData, OutputMode, Plan, PlanError, PlanErrorKind, PlanOptions, RunOptions, Session,
};
use proptest::prelude::*;
use support::{Random, engine, nnunet_card};

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
    up: Up,
    norm: NormKind,
    /// Convolutions read through the upsampling.
    through: bool,
    /// Residual blocks in the encoder, every other one of a depthwise and a pointwise convolution.
    residual: bool,
}

#[derive(Clone, Copy, Debug)]
enum NormKind {
    Batch,
    Instance,
    /// One group of all channels.
    Layer,
}

/// How the decoder's extents double.
#[derive(Clone, Copy, Debug)]
enum Up {
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
            Up::Linear => Op::Upsample { factor: stride },
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
    fn stride(&self) -> u32 {
        1 << (self.levels.len() - 1)
    }

    fn graph(&self) -> Graph {
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
                    b.graph.add(format!("pool.{i}"), Op::MaxPool { kernel: two }, &[x])
                };
            }
            x = b.block(&format!("enc.{i}"), x, cin, c, if i == 0 { self.kernel } else { 3 });
            cin = c;
            if self.residual {
                x = b.residual(&format!("res.{i}"), x, c, i % 2 == 1);
            }
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
struct Case {
    net: Net,
    extent: Extent,
    binding: u64,
    elem: Elem,
    output: OutputMode,
    tap: bool,
    slab_depth: Option<u32>,
    /// Whether slabs may wait on the host, and whether values may be computed again.
    spill: bool,
    recompute: bool,
    /// Thousandths of the way from the smallest budget to the largest.
    share: u64,
}

fn case() -> impl Strategy<Value = Case> {
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

#[derive(Default)]
struct Tally {
    plans: u32,
    refused: u32,
    worst: f64,
    sum: f64,
    cuts: u32,
    recomputed: u32,
    spilled: u32,
}

fn try_case(case: &Case, tally: &mut Tally) {
    let graph = case.net.graph();
    let caps = DeviceCaps::default().with_max_binding(case.binding);
    let mut options = PlanOptions::default().with_precision(case.elem).with_output(case.output);
    if case.tap {
        // stored, or what its readers normalise as they load, with the scale that is always f32
        for tap in ["enc.0", "enc.0.conv", "enc.0.norm.scale"].into_iter().filter(|tap| graph.find(tap).is_some()) {
            options = options.with_tap(tap);
        }
    }
    if !case.spill {
        options = options.without_spill();
    }
    if !case.recompute {
        options = options.without_recompute();
    }
    let mut plan_of = |options: &PlanOptions| -> Result<Plan, PlanError> {
        let plan = Plan::of_graph(&graph, case.extent, &caps, options)?;
        check(&plan, &caps);
        let ratio = plan.report().activation_bytes as f64 / plan.report().max_live_bytes as f64;
        tally.plans += 1;
        tally.sum += ratio;
        tally.worst = tally.worst.max(ratio);
        tally.cuts += u32::from(plan.report().slabs > plan.graph().nodes().len() as u64);
        tally.recomputed += u32::from(plan.report().recomputed_flops > 0);
        tally.spilled += u32::from(plan.report().spilled_bytes > 0);
        assert!(case.spill || plan.report().spilled_bytes == 0);
        assert!(case.recompute || plan.report().recomputed_flops == 0);
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
        "{} plans ({} cut into slabs, {} spilling, {} recomputing), {} cases beyond the limits; activation buffers to most bytes alive: worst {:.3}, mean {:.3}",
        t.plans,
        t.cuts,
        t.spilled,
        t.recomputed,
        t.refused,
        t.worst,
        t.sum / f64::from(t.plans)
    );
    assert!(t.plans > 300 && t.cuts > 100 && t.recomputed > 5 && t.spilled > 5, "the cases are too tame");
}

#[test]
fn the_checker_sees_every_misplaced_slab() {
    let caps = DeviceCaps::default();
    let plan = Plan::of_graph(&small().graph(), Extent::new(16, 16, 16), &caps, &PlanOptions::default().with_slab_depth(2))
        .expect("there is a plan");
    check(&plan, &caps);
    let mut tried = 0;
    for at in 0..plan.recording().commands.len() {
        let regions = match &plan.recording().commands[at] {
            Command::Dispatch { bindings, .. } => bindings.len(),
            Command::Upload { .. } | Command::Download { .. } | Command::Spill { .. } | Command::Restore { .. } => 1,
            Command::Split => 0,
        };
        // the first source and the destination; an upper slab is bound even where it is not read
        for which in [0, regions.max(1) - 1].into_iter().take(regions) {
            for step in [-1i64, 1] {
                let mut broken = plan.recording().clone();
                let region = match &mut broken.commands[at] {
                    Command::Dispatch { bindings, .. } => &mut bindings[which],
                    Command::Upload { dst: r, .. }
                    | Command::Download { src: r, .. }
                    | Command::Spill { src: r, .. }
                    | Command::Restore { dst: r, .. } => r,
                    Command::Split => continue,
                };
                let Some(offset) = region.offset.checked_add_signed(step * caps.alignment as i64) else { continue };
                region.offset = offset;
                tried += 1;
                let seen = std::panic::catch_unwind(|| Checker::new(&plan, &broken, &caps).check()).is_err();
                assert!(seen, "command {at}, region {which}, moved by {step}: not seen");
            }
        }
    }
    println!("{tried} misplacements seen");
    assert!(tried > 300);
}

// ---- bad inputs ----

fn small() -> Net {
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
    for [d, h, w] in [
        [0, 16, 16],
        [16, 0, 16],
        [16, 16, 0],
        [0, 0, 0],
        [1 << 31, 16, 16],
        [16, 1 << 31, 16],
        [16, 16, 1 << 31],
        [u32::MAX; 3],
        [1 << 16, 8, 8],
    ] {
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
    let with = |f: fn(&mut DeviceCaps)| {
        let mut caps = DeviceCaps::default();
        f(&mut caps);
        caps
    };
    assert_eq!(kind(plan(&with(|c| c.max_workgroups = 1), 64, &PlanOptions::default())), PlanErrorKind::Limits);
    assert_eq!(kind(plan(&with(|c| c.f16 = false), 64, &PlanOptions::default().with_precision(Elem::F16))), PlanErrorKind::Unsupported);
    assert_eq!(kind(plan(&DeviceCaps::default(), 64, &PlanOptions::default().with_tap("nobody"))), PlanErrorKind::Unsupported);
    let e = plan(&DeviceCaps::default(), 64, &PlanOptions::default().with_budget(0)).expect_err("nothing fits no bytes");
    assert_eq!(e.kind(), PlanErrorKind::Budget);
    assert!(e.smallest_budget().is_some_and(|n| n > 0));
    for depth in [0, 1, u32::MAX] {
        let plan =
            plan(&DeviceCaps::default(), 64, &PlanOptions::default().with_slab_depth(depth)).expect("any depth is brought into range");
        check(&plan, &DeviceCaps::default());
    }
}

#[test]
fn every_tap_comes_back_once() {
    let (graph, caps) = (small().graph(), DeviceCaps::default());
    for taps in [&["input", "enc.0"][..], &["head"], &["enc.0", "enc.0"]] {
        for output in [OutputMode::Labels, OutputMode::Logits] {
            let options = taps.iter().fold(PlanOptions::default().with_output(output), |o, t| o.with_tap(*t));
            let plan = Plan::of_graph(&graph, Extent::new(16, 16, 16), &caps, &options).expect("there is a plan");
            assert_eq!(plan.recording().outputs.len(), taps.len() + 1);
            check(&plan, &caps);
        }
    }
}

#[test]
fn graphs_that_cannot_be_are_refused() {
    let conv = |kernel, stride| {
        let weight_shape = [2, 1].into_iter().chain(kernel).map(|n: u32| n as usize).collect();
        Op::Conv(Conv { module: "x".into(), in_channels: 1, out_channels: 2, kernel, stride, weight_shape, ..Conv::default() })
    };
    let transposed =
        |c: ConvTranspose| Op::ConvTranspose(ConvTranspose { module: "x".into(), in_channels: c.in_channels.max(1), out_channels: 2, ..c });
    let bad: Vec<(&str, Op, usize)> = vec![
        ("kernel larger than the map", conv([9; 3], [1; 3]), 1),
        ("stride of nothing", conv([3; 3], [0; 3]), 1),
        ("kernel of nothing", conv([0; 3], [1; 3]), 1),
        (
            "padding beyond counting",
            Op::Conv(Conv {
                padding: [u32::MAX; 3],
                ..match conv([3; 3], [1; 3]) {
                    Op::Conv(c) => c,
                    _ => unreachable!(),
                }
            }),
            1,
        ),
        ("blocks of nothing", transposed(ConvTranspose { kernel: [0; 3], ..ConvTranspose::default() }), 1),
        ("a padding that leaves nothing", transposed(ConvTranspose { padding: [1, 8, 1], ..ConvTranspose::default() }), 1),
        ("an output padding of the stride", transposed(ConvTranspose { output_padding: [0, 0, 2], ..ConvTranspose::default() }), 1),
        ("transposed beyond counting", transposed(ConvTranspose { stride: [u32::MAX; 3], ..ConvTranspose::default() }), 1),
        ("transposed padding beyond counting", transposed(ConvTranspose { padding: [u32::MAX; 3], ..ConvTranspose::default() }), 1),
        ("other channels than there are", transposed(ConvTranspose { in_channels: 2, ..ConvTranspose::default() }), 1),
        ("pool of nothing", Op::MaxPool { kernel: [0; 3] }, 1),
        ("pool of more than there is", Op::MaxPool { kernel: [16; 3] }, 1),
        ("upsampling by nothing", Op::Upsample { factor: [0; 3] }, 1),
        ("upsampling beyond counting", Op::Upsample { factor: [u32::MAX; 3] }, 1),
        ("no heads", Op::Attention(Attention { heads: 0, scale: 1.0, ..Attention::default() }), 3),
        ("too many heads", Op::Attention(Attention { heads: 2, scale: 1.0, ..Attention::default() }), 3),
        ("too few inputs", Op::Multiply(Combine::default()), 1),
        ("an operation that no kernel covers", Op::Concat, 2),
        ("more groups than channels", Op::Norm(Norm { module: None, channels: 1, groups: 2, eps: 1e-5, per_plane: false }), 1),
        ("a scale of another width", Op::Normalise(Load { norm: Some(Scope::Volume), activation: Activation::None }), 2),
        ("a scale without a norm", Op::Normalise(Load::default()), 2),
        ("statistics of a map", Op::PlaneStats, 1),
        ("a second input", Op::Input { channels: 1 }, 0),
        ("no channels", Op::Input { channels: 0 }, 0),
    ];
    let mut panicked = Vec::new();
    let mut plan = |what: &str, graph: &Graph| {
        let result = std::panic::catch_unwind(|| {
            Plan::of_graph(graph, Extent::new(8, 8, 8), &DeviceCaps::default(), &PlanOptions::default().with_output(OutputMode::Logits))
        });
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
}

fn random_model(card: &Card, seed: u64) -> Model {
    Model::random(&card.json(), seed).expect("the card is one")
}

#[test]
fn reading_through_upsampling_gives_the_same_bits() {
    let Some(engine) = engine() else { return };
    let cases = [
        (Card { mhsa: false, mhca_levels: 0, ..Card::new(3, &[6, 8, 12]) }, Extent::new(12, 16, 20)),
        (Card { mhca_levels: 1, ..Card::new(2, &[6, 8]) }, Extent::new(5, 12, 14)),
    ];
    for (seed, (card, extent)) in (1u64..).zip(cases) {
        let model = random_model(&card, seed);
        let input = Random::new(seed).values(extent.voxels() as usize * Card::IN as usize);
        let run = |graph: &Graph, options: &PlanOptions| {
            let plan = Plan::of_graph(graph, extent, engine.caps(), options).expect("there is a plan");
            check(&plan, engine.caps());
            let mut session = pollster::block_on(Session::new(engine, &model, plan)).expect("the session is made");
            let input = Input { channels: Card::IN, extent, data: &input };
            let outputs = session.run_blocking(input, RunOptions::default()).expect("the network runs");
            match &outputs[0].data {
                OutputData::Map(values) => values.clone(),
                OutputData::Labels(_) => panic!("asked for logits"),
            }
        };
        let through = pass::read_through(model.graph(), &[]);
        assert!(through.nodes().len() < model.graph().nodes().len(), "something is read through");
        for elem in [Elem::F32, Elem::F16].into_iter().filter(|&e| e == Elem::F32 || engine.caps().f16) {
            let options = PlanOptions::default().with_precision(elem).with_output(OutputMode::Logits);
            let expected = run(model.graph(), &options);
            assert!(run(&through, &options) == expected, "other bits in {}", elem.name());
            assert!(run(&through, &options.with_slab_depth(2)) == expected, "other bits in slabs in {}", elem.name());
        }
    }
}

/// The channel of the highest of `[C][D][H][W]` logits of each voxel, the first of equals.
fn argmax(logits: &[f32], classes: usize) -> Vec<u16> {
    let voxels = logits.len() / classes;
    let of = |v: usize| (1..classes).fold(0, |best, c| if logits[c * voxels + v] > logits[best * voxels + v] { c } else { best });
    (0..voxels).map(|v| of(v) as u16).collect()
}

#[test]
fn labels_are_those_of_the_logits_that_are_not_stored() {
    let Some(engine) = engine() else { return };
    let extent = Extent::new(20, 12, 16);
    let model = random_model(&Card { mhsa: false, mhca_levels: 0, ..Card::new(3, &[6, 8]) }, 11);
    let input = Random::new(5).values(extent.voxels() as usize * Card::IN as usize);
    let run = |options: &PlanOptions| {
        let plan = Plan::new(&model, extent, engine.caps(), options).expect("there is a plan");
        check(&plan, engine.caps());
        let stored = plan.graph().find("head").is_some();
        let mut session = pollster::block_on(Session::new(engine, &model, plan)).expect("the session is made");
        let input = Input { channels: Card::IN, extent, data: &input };
        (session.run_blocking(input, RunOptions::default()).expect("the network runs"), stored)
    };
    let labels = |options: &PlanOptions, taps: usize| {
        let (outputs, stored) = run(options);
        assert_eq!((stored, outputs.len()), (taps > 0, 1 + taps), "logits are stored where they are tapped");
        match &outputs[0].data {
            OutputData::Labels(labels) => labels.clone(),
            OutputData::Map(_) => panic!("asked for labels"),
        }
    };
    for elem in [Elem::F32, Elem::F16].into_iter().filter(|&e| e == Elem::F32 || engine.caps().f16) {
        let options = PlanOptions::default().with_precision(elem);
        let (outputs, _) = run(&options.clone().with_output(OutputMode::Logits));
        let OutputData::Map(logits) = &outputs[0].data else { panic!("asked for logits") };
        let expected = argmax(logits, Card::CLASSES as usize);
        assert!((0..Card::CLASSES as u16).all(|l| expected.contains(&l)), "every label occurs");
        assert!(labels(&options.clone().with_tap("head"), 1) == expected);
        let direct = labels(&options, 0);
        let voxels = extent.voxels() as usize;
        let differ: Vec<usize> = (0..voxels).filter(|&v| direct[v] != expected[v]).collect();
        for &v in &differ {
            assert_eq!(logits[direct[v] as usize * voxels + v], logits[expected[v] as usize * voxels + v], "a tie of stored logits");
        }
        println!("{}: {} of {voxels} labels differ by ties of stored logits", elem.name(), differ.len());
        assert!(elem == Elem::F16 || differ.is_empty());
        assert!(labels(&options.with_slab_depth(3), 0) == direct, "other labels in slabs");
    }
}

#[test]
fn any_cut_gives_the_same_bits_in_the_bytes_planned() {
    let Some(engine) = engine() else { return };
    let nnunet = |dims, features| Model::random(&nnunet_card(dims, Card::IN, Card::CLASSES, features), 7).expect("the card is one");
    let of_cards = [
        (Card::new(3, &[6, 10, 12]), Extent::new(24, 16, 20)),
        (Card { mhsa: false, mhca_levels: 0, ..Card::new(3, &[8, 12]) }, Extent::new(22, 18, 14)),
        (Card { themyr: true, mhca_levels: 2, ..Card::new(3, &[4, 8, 8]) }, Extent::new(20, 16, 16)),
        (Card { mhca_levels: 2, ..Card::new(2, &[6, 8, 12]) }, Extent::new(17, 24, 20)),
        (Card { mhsa: false, mhca_levels: 0, ..Card::new(3, &[5]) }, Extent::new(23, 9, 11)),
    ];
    let nnunets = [(nnunet(3, &[6, 10, 9][..]), Extent::new(20, 16, 12)), (nnunet(2, &[5, 8][..]), Extent::new(11, 20, 24))];
    let cases = (1u64..).zip(of_cards).map(|(seed, (card, extent))| (random_model(&card, seed), extent)).chain(nnunets);
    for (seed, (model, extent)) in (1u64..).zip(cases) {
        let input = Random::new(seed + 100).values(extent.voxels() as usize * Card::IN as usize);
        let options = PlanOptions::default().with_output(OutputMode::Logits);
        let run = |caps: &DeviceCaps, options: &PlanOptions| -> (Vec<f32>, Plan) {
            let plan = Plan::new(&model, extent, caps, options).expect("there is a plan");
            check(&plan, caps);
            let planned = plan.report().peak_bytes;
            let mut session = pollster::block_on(Session::new(engine, &model, plan.clone())).expect("the session is made");
            assert_eq!(session.allocated_bytes(), planned, "bytes allocated and planned");
            let outputs =
                session.run_blocking(Input { channels: Card::IN, extent, data: &input }, RunOptions::default()).expect("the network runs");
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
        let recomputed = options.clone().without_spill();
        let least = |o: &PlanOptions| Plan::new(&model, extent, engine.caps(), o).expect("there is a plan").report().smallest_budget;
        let recomputed = recomputed.clone().with_budget(least(&recomputed));
        let spilled = options.clone().without_recompute();
        let spilled = spilled.clone().with_budget(least(&spilled));
        let mut again = 0;
        for (caps, options) in [
            (engine.caps(), options.clone().with_budget(smallest)),
            (engine.caps(), options.clone().with_budget((smallest + largest) / 2)),
            (engine.caps(), recomputed),
            (engine.caps(), spilled),
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
            again += plan.report().recomputed_flops;
        }
        println!("{again} FLOPs recomputed over all plans");
        println!(
            "{} {} on {extent}: {nodes} values in up to {most} slabs, bindings down to {limit} bytes, {smallest} to {largest} bytes: the same bits",
            model.card().architecture,
            model.card().config
        );
        assert!(most >= 3 * nodes, "{most} slabs of {nodes} values is no cut");
    }
}
