//! Profiles: the kernels and nodes of a plan with their counts and operations, and outputs of the same bits, on the adapter by
//! timestamps and by submissions, and on the host.
#![allow(clippy::print_stdout, reason = "figures and skips belong to a test's output")]

mod support;

use std::collections::BTreeMap;
use std::time::Instant;

use organum::record::Command;
use organum::{
    Clock, DeviceCaps, Engine, Extent, Input, Model, OutputData, OutputMode, Plan, PlanOptions, Profile, RunOptions, Session, wgpu,
};
use support::{Random, engine, engine_without_f16, nnunet_card};

const EXTENT: Extent = Extent { d: 16, h: 24, w: 20 };

fn model() -> Model {
    Model::random(&nnunet_card(3, 1, 3, &[8, 12, 16]), 5).expect("the card is one")
}

/// Dispatches, FLOPs and bytes of a plan by kernel and node.
fn planned(plan: &Plan) -> BTreeMap<(String, String), [u64; 3]> {
    let mut all: BTreeMap<_, [u64; 3]> = BTreeMap::new();
    for command in &plan.recording().commands {
        let Command::Dispatch { call, node, .. } = command else { continue };
        let sums = all.entry((call.name().to_owned(), plan.graph().node(*node).name.clone())).or_default();
        *sums = [sums[0] + 1, sums[1] + call.cost().flops, sums[2] + call.cost().bytes];
    }
    all
}

fn run(session: &mut Session, data: &[f32]) -> Vec<f32> {
    let input = Input { channels: 1, extent: EXTENT, data };
    let mut outputs = session.run_blocking(input, RunOptions::default()).expect("the network runs");
    match outputs.swap_remove(0).data {
        OutputData::Map(values) => values,
        OutputData::Labels(_) => panic!("asked for logits"),
    }
}

/// Runs a session without a profile, twice with one, and without one again.
fn profiled(mut session: Session, clock: Clock) -> Profile {
    let data = Random::new(3).values(usize::try_from(EXTENT.voxels()).expect("it is small"));
    let expected = run(&mut session, &data);
    assert!(session.take_profile().is_none(), "nobody asked for one");
    let allocated = session.allocated_bytes();
    session.start_profile();
    let started = Instant::now();
    for turn in 0..2 {
        assert!(run(&mut session, &data) == expected, "other bits with a profile, run {turn}");
    }
    let wall = started.elapsed().as_secs_f64();
    let profile = session.take_profile().expect("it was asked for");
    assert!(session.take_profile().is_none() && session.allocated_bytes() == allocated);
    assert!(run(&mut session, &data) == expected, "other bits after a profile");

    assert_eq!(profile.clock, clock);
    let found = profile.nodes.iter().map(|t| ((t.kernel.clone(), t.node.clone()), [t.count, t.flops, t.bytes])).collect();
    let twice: BTreeMap<_, _> = planned(session.plan()).into_iter().map(|(key, sums)| (key, sums.map(|n| 2 * n))).collect();
    assert_eq!(twice, found);
    let flops: u64 = profile.kernels().iter().map(|t| t.flops).sum();
    assert_eq!(flops, 2 * session.plan().report().flops);
    println!("{clock:?}: {:.4} s in kernels of {wall:.4} s", profile.seconds());
    assert!(profile.nodes.iter().all(|t| t.seconds >= 0.0 && t.seconds.is_finite()));
    assert!(profile.seconds() > 0.0 && profile.seconds() <= wall, "{} s of kernels in {wall} s", profile.seconds());
    profile
}

/// Plans that are resident, streamed, and spill.
fn plans(caps: &DeviceCaps) -> Vec<Plan> {
    let options = PlanOptions::default().with_output(OutputMode::Logits);
    let plan = |options: &PlanOptions| Plan::new(&model(), EXTENT, caps, options).expect("there is a plan");
    let resident = plan(&options);
    let smallest = resident.report().smallest_budget;
    vec![plan(&options.clone().with_budget(smallest)), plan(&options.with_slab_depth(3)), resident]
}

fn on_adapter(engine: &Engine, clock: Clock) {
    for plan in plans(engine.caps()) {
        profiled(pollster::block_on(Session::new(engine, &model(), plan)).expect("the session is made"), clock);
    }
}

#[test]
fn by_timestamps_of_the_device() {
    let Some(engine) = engine() else { return };
    on_adapter(engine, if timestamps() { Clock::Timestamps } else { Clock::Submissions });
}

/// Whether the adapter under test has timestamps.
fn timestamps() -> bool {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let name = engine().map(|e| e.summary().name.clone());
    adapters.iter().any(|a| Some(a.get_info().name) == name && a.features().contains(wgpu::Features::TIMESTAMP_QUERY))
}

/// A device that was made without timestamps, and without a cache of pipelines.
#[test]
fn by_submissions_where_there_are_no_timestamps() {
    let Some(engine) = engine_without_f16() else { return };
    on_adapter(engine, Clock::Submissions);
    assert!(engine.compiled_name().is_none() && engine.compiled().is_none() && !engine.reuse_compiled(b"anything"));
}

#[test]
fn on_the_host_with_its_own_kernels_and_the_twins() {
    for caps in [DeviceCaps::host(), DeviceCaps::reference()] {
        for plan in plans(&caps) {
            profiled(Session::on_host(&model(), plan).expect("the session is made"), Clock::Host);
        }
    }
}

/// What an engine compiled makes another engine give the same bits.
#[test]
fn pipelines_that_were_kept_give_the_same_bits() {
    let Some(first) = engine() else { return };
    let data = Random::new(4).values(usize::try_from(EXTENT.voxels()).expect("it is small"));
    let plan = plans(first.caps()).swap_remove(2);
    let mut session = pollster::block_on(Session::new(first, &model(), plan.clone())).expect("the session is made");
    let expected = run(&mut session, &data);
    let Some(bytes) = first.compiled() else { return };
    let second = pollster::block_on(Engine::request(None)).expect("it was there");
    assert_eq!(second.compiled_name(), first.compiled_name());
    assert!(second.reuse_compiled(&bytes));
    let mut session = pollster::block_on(Session::new(&second, &model(), plan)).expect("the session is made");
    assert!(run(&mut session, &data) == expected, "other bits of pipelines that were kept");
}
