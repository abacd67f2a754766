//! Plans, checked by brute force: every byte a command reads is the byte it means. No device needed.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

#[path = "support/checker.rs"]
mod checker;
#[path = "support/nets.rs"]
mod nets;

use checker::{Checker, check};
use nets::{Case, case, small};
use organum::graph::{Attention, Combine, Conv, ConvTranspose, Graph, NodeId, Norm, Op};
use organum::kernels::{Activation, Load, Scope};
use organum::record::Command;
use organum::{DeviceCaps, Elem, Extent, Model, OutputMode, Plan, PlanError, PlanErrorKind, PlanOptions, Planner};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[derive(Default)]
struct Tally {
    plans: u32,
    refused: u32,
    worst: f64,
    sum: f64,
    cuts: u32,
    recomputed: u32,
    spilled: u32,
    fetched: u32,
}

impl Tally {
    fn and(&self, other: &Self) -> Self {
        Self {
            plans: self.plans + other.plans,
            refused: self.refused + other.refused,
            worst: self.worst.max(other.worst),
            sum: self.sum + other.sum,
            cuts: self.cuts + other.cuts,
            recomputed: self.recomputed + other.recomputed,
            spilled: self.spilled + other.spilled,
            fetched: self.fetched + other.fetched,
        }
    }
}

fn try_case(case: &Case, tally: &mut Tally) {
    let graph = case.net.graph();
    let caps = case.caps(&DeviceCaps::default());
    let options = case.options();
    let mut checked = |plan: Result<Plan, PlanError>| -> Result<Plan, PlanError> {
        let plan = plan?;
        check(&plan, &caps);
        let ratio = plan.report().activation_bytes as f64 / plan.report().max_live_bytes as f64;
        tally.plans += 1;
        tally.sum += ratio;
        tally.worst = tally.worst.max(ratio);
        tally.cuts += u32::from(plan.report().slabs > plan.graph().nodes().len() as u64);
        tally.recomputed += u32::from(plan.report().recomputed_flops > 0);
        tally.spilled += u32::from(plan.report().spilled_bytes > 0);
        tally.fetched += u32::from(plan.report().fetched_bytes > 0);
        assert!(case.spill || plan.report().spilled_bytes + plan.report().fetched_bytes == 0);
        assert!(case.recompute || plan.report().recomputed_flops == 0);
        Ok(plan)
    };
    let planner = Planner::of_graph(&graph, case.extent, &caps, &options);
    let (planner, whole) = match planner.and_then(|planner| checked(planner.plan(None)).map(|whole| (planner, whole))) {
        Ok(planned) => planned,
        Err(e) => {
            assert_eq!(e.kind(), PlanErrorKind::Limits, "{e}");
            assert!(e.node().is_some(), "{e}");
            tally.refused += 1;
            return;
        }
    };
    let (smallest, largest) = (whole.report().smallest_budget, whole.report().peak_bytes);
    let tight = checked(planner.plan(Some(smallest))).expect("the smallest budget works");
    assert_eq!((tight.report().peak_bytes, tight.report().smallest_budget), (smallest, smallest));
    assert_eq!(tight.report().budget, Some(smallest));
    let between = smallest + (largest - smallest) * case.share / 1000;
    let plan = checked(planner.plan(Some(between))).expect("more than the smallest works");
    assert!(plan.report().peak_bytes <= between);
    assert_eq!(plan.report().smallest_budget, smallest);
    // whatever was planned before, and by a planner of its own
    if case.share.is_multiple_of(8) {
        let again = Plan::of_graph(&graph, case.extent, &caps, &options.clone().with_budget(between)).expect("it was planned");
        assert_eq!(format!("{:?}", again.recording()), format!("{:?}", plan.recording()), "another plan of the same");
    }
    let few = if case.share.is_multiple_of(8) { 3 } else { 1 };
    for below in [smallest - 1, smallest / 2, 0].into_iter().take(few) {
        let e = checked(planner.plan(Some(below))).expect_err("less than the smallest does not");
        assert_eq!((e.kind(), e.smallest_budget()), (PlanErrorKind::Budget, Some(smallest)));
        assert!(e.to_string().contains(&smallest.to_string()), "the message names the smallest budget: {e}");
    }
    if let Some(depth) = case.slab_depth {
        checked(Plan::of_graph(&graph, case.extent, &caps, &options.with_slab_depth(depth)))
            .expect("a slab depth is a wish, the limits come first");
    }
}

/// Random cases, and the plans that are to come of them: most cases make three.
const CASES: u32 = 3_600;
const PLANS: u32 = 10_000;

#[test]
fn random_plans_hold_what_they_promise() {
    let half = |seed| {
        let tally = std::cell::RefCell::new(Tally::default());
        let config = ProptestConfig { cases: CASES / 2, rng_seed: seed, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(case in case())| try_case(&case, &mut tally.borrow_mut()));
        tally.into_inner()
    };
    let (a, b) = std::thread::scope(|s| {
        let other = s.spawn(|| half(RngSeed::Fixed(1)));
        (half(RngSeed::Fixed(2)), other.join().expect("the other half holds too"))
    });
    let t = a.and(&b);
    println!(
        "{} plans ({} cut into slabs, {} spilling, {} fetching weights, {} recomputing), {} cases beyond the limits; activation buffers to most bytes alive: worst {:.3}, mean {:.3}",
        t.plans,
        t.cuts,
        t.spilled,
        t.fetched,
        t.recomputed,
        t.refused,
        t.worst,
        t.sum / f64::from(t.plans)
    );
    assert!(t.plans >= PLANS, "{} plans are too few", t.plans);
    assert!(t.cuts > 2000 && t.recomputed > 100 && t.spilled > 100 && t.fetched > 100, "the cases are too tame");
}

/// What was submitted cannot be cancelled: on CPU drivers a dispatch is of a GFLOP at most, or of one plane.
#[test]
fn dispatches_of_cpu_drivers_are_short() {
    let found = [false, true].map(|cpu| {
        let mut caps = DeviceCaps::desktop();
        caps.cpu = cpu;
        let plan = Plan::of_graph(&small().graph(), Extent::new(64, 192, 192), &caps, &PlanOptions::default()).expect("there is a plan");
        let mut longest = 0;
        for (call, _) in plan.recording().dispatches() {
            let planes = call.clone().operands().1.count;
            assert!(!cpu || planes == 1 || call.cost().flops <= 1_000_000_000, "{} of {planes} planes", call.name());
            longest = longest.max(call.cost().flops);
        }
        println!("{longest} FLOPs in the longest of {} dispatches", plan.report().dispatches);
        (plan.report().dispatches, longest)
    });
    assert!(found[0].0 < found[1].0 && found[0].1 > found[1].1, "{found:?}");
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
            Command::Upload { .. } | Command::Download { .. } | Command::Spill { .. } | Command::Restore { .. } | Command::Fetch { .. } => {
                1
            }
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
                    | Command::Restore { dst: r, .. }
                    | Command::Fetch { dst: r, .. } => r,
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
    let card = r#"{"architecture":"u_transformer","config":{"dims":3,"in_channels":1,"classes":3,"channels":[4,6,8],"heads":2}}"#;
    let model = Model::random(card, 1).expect("the card is one");
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
    assert!(plan(&with(|c| c.f16 = false), 64, &PlanOptions::default().with_precision(Elem::F16)).is_ok(), "16-bit floats are packed");
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
        ("pool of nothing", Op::max_pool([0; 3]), 1),
        ("pool of more than there is", Op::max_pool([16; 3]), 1),
        ("upsampling by nothing", Op::upsample([0; 3]), 1),
        ("upsampling beyond counting", Op::upsample([u32::MAX; 3]), 1),
        ("no heads", Op::Attention(Attention { heads: 0, scale: 1.0, ..Attention::default() }), 3),
        ("too many heads", Op::Attention(Attention { heads: 2, scale: 1.0, ..Attention::default() }), 3),
        ("too few inputs", Op::Multiply(Combine::default()), 1),
        ("an operation that no kernel covers", Op::Norm(Norm { module: None, channels: 1, groups: 1, eps: 1e-5, per_plane: false }), 1),
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
