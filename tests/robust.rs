//! What an embedding program relies on: cancelling, errors instead of panics, freed memory, threads, its own device.
#![allow(clippy::cast_possible_truncation, reason = "small figures")]
#![allow(clippy::print_stdout, reason = "figures and skips belong to a test's output")]

mod support;

use organum::harness::KernelRun;
use organum::kernels::channel_stats::ChannelStats;
use organum::kernels::{Call, Target, Window};
use organum::volume::VolumeError;
use organum::wgpu;
use organum::{
    Cancel, DeviceCaps, Elem, Engine, EngineError, EngineErrorKind, Extent, FitError, Input, LoadError, Map, Model, OutputData, OutputMode,
    OutputVolume, Plan, PlanError, PlanErrorKind, PlanOptions, Planner, Progress, RunError, RunErrorKind, RunOptions, Runner, SegmentError,
    Session, smaller_budget,
};
use support::{Random, engine};

const MODEL: &[u8] = include_bytes!("../weights/hippocampus_u_transformer.safetensors");
const SMALL: Extent = Extent::new(16, 24, 16);

fn model() -> Model {
    Model::from_bytes(MODEL).expect("the bundled model loads")
}

fn values(extent: Extent) -> Vec<f32> {
    Random::new(extent.voxels()).values(extent.voxels() as usize)
}

fn input(extent: Extent, data: &[f32]) -> Input<'_> {
    Input { channels: 1, extent, data }
}

/// A session on the engine, or on the host.
fn open(model: &Model, engine: Option<&Engine>, extent: Extent, options: &PlanOptions) -> Session {
    let caps = engine.map_or_else(DeviceCaps::host, |e| e.caps().clone());
    let plan = Plan::new(model, extent, &caps, options).expect("there is a plan");
    match engine {
        Some(engine) => pollster::block_on(Session::new(engine, model, plan)),
        None => Session::on_host(model, plan),
    }
    .expect("the session is made")
}

/// The host, and the device where there is one.
fn executors() -> Vec<Option<&'static Engine>> {
    let mut all = vec![None];
    all.extend(engine().map(Some));
    all
}

fn run(session: &mut Session, data: &[f32]) -> Vec<OutputVolume> {
    session.run_blocking(input(session.plan().extent(), data), RunOptions::default()).expect("it runs")
}

fn logits() -> PlanOptions {
    PlanOptions::default().with_output(OutputMode::Logits)
}

#[test]
fn progress_rises_to_its_total() {
    let model = model();
    let data = values(SMALL);
    for engine in executors() {
        for options in [logits(), logits().with_slab_depth(2)] {
            let mut session = open(&model, engine, SMALL, &options);
            let mut seen: Vec<Progress> = Vec::new();
            let mut see = |p: Progress| seen.push(p);
            session.run_blocking(input(SMALL, &data), RunOptions::default().with_progress(&mut see)).expect("it runs");
            let total = session.plan().report().flops;
            assert!(!seen.is_empty());
            assert!(seen.windows(2).all(|w| w[0].done <= w[1].done), "progress falls");
            assert!(seen.iter().all(|p| p.total == total));
            assert_eq!(seen.last().map(|p| p.done), Some(total));
        }
    }
}

#[test]
fn a_cancelled_session_runs_again_with_the_same_bits() {
    let model = model();
    let extent = Extent::new(32, 40, 40); // enough work for more than one batch
    let data = values(extent);
    let other: Vec<f32> = data.iter().map(|v| v * 2.0).collect();
    for engine in executors() {
        // batches as for a CPU, which are small, whatever the device
        let mut caps = engine.map_or_else(DeviceCaps::host, |e| e.caps().clone());
        caps.cpu = true;
        let plan = Plan::new(&model, extent, &caps, &logits().with_slab_depth(8)).expect("there is a plan");
        let mut session = match engine {
            Some(engine) => pollster::block_on(Session::new(engine, &model, plan)),
            None => Session::on_host(&model, plan),
        }
        .expect("the session is made");
        let mut batches = 0u32;
        let mut count = |_: Progress| batches += 1;
        let expected = session.run_blocking(input(extent, &data), RunOptions::default().with_progress(&mut count)).expect("it runs");
        assert!(batches >= 2, "there is nothing to cancel in between");
        for after in 1..batches.min(3) {
            let cancel = Cancel::new();
            let raise = cancel.clone();
            let mut seen = 0;
            let mut watch = |_: Progress| {
                seen += 1;
                if seen == after {
                    raise.raise();
                }
            };
            let options = RunOptions::default().with_progress(&mut watch).with_cancel(cancel.clone());
            let error = session.run_blocking(input(extent, &other), options).expect_err("it was cancelled");
            assert_eq!(error.kind(), RunErrorKind::Cancelled);
            assert!(cancel.is_raised());
            assert_eq!(seen, after, "it went on after it was cancelled");
            assert!(run(&mut session, &data) == expected, "other bits after cancelling in batch {after}");
        }
        // raised before the start: nothing is computed, and the next run is right
        let cancel = Cancel::new();
        cancel.raise();
        let error = session.run_blocking(input(extent, &other), RunOptions::default().with_cancel(cancel)).expect_err("it was cancelled");
        assert_eq!(error.kind(), RunErrorKind::Cancelled);
        assert!(run(&mut session, &data) == expected);
    }
}

/// Dropping the future of a run is a way to cancel it, too.
#[test]
fn a_dropped_run_does_no_harm() {
    let model = model();
    let data = values(SMALL);
    for engine in executors() {
        // as few bytes as possible: slabs wait on the host
        let smallest = open(&model, engine, SMALL, &logits()).plan().report().smallest_budget;
        let mut session = open(&model, engine, SMALL, &logits().with_budget(smallest));
        // the host has nowhere to spill to
        assert_eq!(session.plan().report().spilled_bytes > 0, engine.is_some());
        let expected = run(&mut session, &data);
        assert!(run(&mut open(&model, engine, SMALL, &logits()), &data) == expected, "other bits within the smallest budget");
        for polls in [0, 1, 2, 3, 4, 5, 8, 13, 21, 34, 55, 89] {
            let mut future = Box::pin(session.run(input(SMALL, &data), RunOptions::default()));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            for _ in 0..polls {
                if future.as_mut().poll(&mut context).is_ready() {
                    break;
                }
            }
            drop(future);
            match session.run_blocking(input(SMALL, &data), RunOptions::default()) {
                Ok(outputs) => assert!(outputs == expected, "other bits after a run dropped at poll {polls}"),
                Err(e) => panic!("after a run dropped at poll {polls}: {e}"),
            }
        }
    }
}

#[test]
fn inputs_of_the_wrong_shape_or_with_nan_are_refused() {
    let model = model();
    let data = values(SMALL);
    for engine in executors() {
        let mut session = open(&model, engine, SMALL, &logits());
        let expected = run(&mut session, &data);
        let mut two = data.clone();
        two.extend(&data);
        let wrong = [
            Input { channels: 1, extent: Extent::new(24, 16, 16), data: &data },
            Input { channels: 2, extent: SMALL, data: &two },
            Input { channels: 1, extent: SMALL, data: &two },
            Input { channels: 1, extent: SMALL, data: &data[1..] },
            Input { channels: 0, extent: SMALL, data: &[] },
            Input { channels: 1, extent: Extent::new(0, 0, 0), data: &[] },
            Input { channels: u32::MAX, extent: Extent::new(u32::MAX, u32::MAX, 1), data: &data },
        ];
        for bad in wrong {
            let error = session.run_blocking(bad, RunOptions::default()).expect_err("the shape is wrong");
            assert_eq!(error.kind(), RunErrorKind::InputMismatch, "{error}");
            assert!(error.to_string().contains("16x24x16"), "{error}");
        }
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bad = data.clone();
            bad[4321] = odd;
            let error = session.run_blocking(input(SMALL, &bad), RunOptions::default()).expect_err("it is not finite");
            assert_eq!(error.kind(), RunErrorKind::NonFinite);
            assert!(error.to_string().contains("4321"), "{error}");
        }
        assert!(run(&mut session, &data) == expected, "a refusal changes the next run");
    }
}

#[test]
fn dropped_sessions_give_their_memory_back() {
    // a device of its own, whose buffers are those of this test alone
    let Some((device, queue)) = own_device(wgpu::Limits::default()) else { return };
    let engine = Engine::new(&device, &queue);
    let model = model();
    let extent = Extent::new(96, 96, 96);
    let data = values(SMALL);
    // bytes that the driver's allocator has given out, where wgpu tells them (Vulkan, DX12)
    let held = || {
        device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is there");
        device.generate_allocator_report().map(|report| report.total_allocated_bytes)
    };
    let planned = |extent| Plan::new(&model, extent, engine.caps(), &logits()).expect("there is a plan");
    let [large, small] = [extent, SMALL].map(planned);
    let session = |plan: &Plan| pollster::block_on(Session::new(&engine, &model, plan.clone())).expect("the session is made");
    let small = || run(&mut session(&small), &data);
    let expected = small();
    let before = held();
    for turn in 0..20 {
        let session = session(&large);
        let bytes = session.allocated_bytes();
        assert_eq!(bytes, session.plan().report().peak_bytes);
        assert_eq!(engine.allocated_bytes(), bytes);
        let now = held();
        assert!(now.is_none_or(|now| now >= bytes), "{bytes} bytes of buffers, {now:?} given out");
        drop(session);
        assert_eq!((engine.allocated_bytes(), held()), (0, before), "session {turn} holds memory");
        assert!(small() == expected, "other bits in session {turn}");
        assert_eq!((engine.allocated_bytes(), held()), (0, before), "session {turn} holds memory after a run");
    }
}

const fn shared_by_threads<T: Send + Sync + 'static>() {}
const _: () = {
    shared_by_threads::<Engine>();
    shared_by_threads::<Model>();
    shared_by_threads::<Plan>();
    shared_by_threads::<Planner>();
    shared_by_threads::<Session>();
    shared_by_threads::<Cancel>();
    shared_by_threads::<PlanOptions>();
    shared_by_threads::<DeviceCaps>();
    shared_by_threads::<OutputVolume>();
    shared_by_threads::<EngineError>();
    shared_by_threads::<LoadError>();
    shared_by_threads::<PlanError>();
    shared_by_threads::<RunError>();
    shared_by_threads::<VolumeError>();
};

/// Futures can be given to an executor of several threads.
#[expect(dead_code, reason = "it is compiled, not run")]
fn futures_are_send(engine: &Engine, model: &Model, plan: Plan, session: &mut Session, input: Input<'_>) {
    fn send<T: Send>(_: T) {}
    send(Session::new(engine, model, plan));
    let options = PlanOptions::default();
    send(Session::fitting(engine, model, SMALL, &options));
    send(session.run(input, RunOptions::default()));
    send(Engine::request(None));
}

/// A device as a host program might have made it: its own limits, no features.
fn own_device(limits: wgpu::Limits) -> Option<(wgpu::Device, wgpu::Queue)> {
    engine()?;
    let device = async {
        let descriptor =
            wgpu::InstanceDescriptor { backends: wgpu::Backends::PRIMARY, ..wgpu::InstanceDescriptor::new_without_display_handle() };
        let adapters = wgpu::Instance::new(descriptor).enumerate_adapters(wgpu::Backends::PRIMARY).await;
        let adapter = adapters.into_iter().next().expect("there is an adapter");
        let features = wgpu::Features::empty();
        let descriptor = wgpu::DeviceDescriptor { required_features: features, required_limits: limits, ..Default::default() };
        adapter.request_device(&descriptor).await
    };
    Some(pollster::block_on(device).expect("any adapter gives a device of at most the default limits"))
}

#[test]
fn a_host_programs_device_of_default_limits_runs_the_demo() {
    let Some((device, queue)) = own_device(wgpu::Limits::default()) else { return };
    let engine = Engine::new(&device, &queue);
    let caps = engine.caps();
    let default = DeviceCaps::default();
    assert_eq!(
        (caps.max_buffer, caps.max_binding, caps.max_storage_buffers),
        (default.max_buffer, default.max_binding, default.max_storage_buffers)
    );
    assert!(!caps.f16);
    let model = model();

    let folder = tempfile::tempdir().expect("there is room for temporary files");
    let [scan, labels] = [
        include_bytes!("../weights/demo/mni152_hippocampus_left.nii.gz").as_slice(),
        include_bytes!("../weights/demo/mni152_hippocampus_left_labels.nii.gz").as_slice(),
    ]
    .map(|bytes| {
        let path = folder.path().join(format!("{}.nii.gz", bytes.len()));
        std::fs::write(&path, bytes).expect("it is unpacked");
        path
    });
    let scan = organum::volume::nifti::read(scan).expect("the bundled scan is read");
    let (_, expected) = organum::volume::nifti::read_labels(labels).expect("the bundled labels are read");
    let prepared = organum::back::DirectCase::new(&model, &scan.image).expect("the scan suits the model");
    let mut session = open(&model, Some(&engine), prepared.volume.extent, &PlanOptions::default());
    let mut outputs = session.run_blocking(prepared.input(), RunOptions::default()).expect("it runs");
    let OutputData::Labels(labels) = outputs.swap_remove(0).data else { panic!("asked for labels") };
    let labels = prepared.restore_labels(labels).expect("the labels are those of the input");
    let different = labels.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
    assert!(different <= 4, "{different} voxels differ");

    // 16-bit floats are packed, as the device was not given the feature
    let half = PlanOptions::default().with_precision(Elem::F16);
    let mut session = open(&model, Some(&engine), prepared.volume.extent, &half);
    let mut outputs = session.run_blocking(prepared.input(), RunOptions::default()).expect("it runs");
    let OutputData::Labels(labels) = outputs.swap_remove(0).data else { panic!("asked for labels") };
    let labels = prepared.restore_labels(labels).expect("the labels are those of the input");
    let different = labels.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
    println!("{different} voxels differ with packed 16-bit floats");
    assert!(different <= 40, "{different} voxels differ");
    // the host program's device is still its own
    assert!(device.poll(wgpu::PollType::Poll).is_ok());
}

/// Bindings of at most 1 MiB and buffers of at most 4 MiB: slabs, and the same bits as in one piece on the same device.
#[test]
fn a_device_of_small_limits_runs_in_slabs_and_refuses_the_plans_of_others() {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, max_buffer_size: 4 << 20, ..Default::default() };
    let Some((device, queue)) = own_device(limits) else { return };
    let engine = Engine::new(&device, &queue);
    let model = model();
    let extent = Extent::new(32, 40, 40); // 2.3 MiB a map on the finest level
    let data = values(extent);
    let mut session = open(&model, Some(&engine), extent, &logits());
    let in_one_piece = Plan::new(&model, extent, &DeviceCaps::default(), &logits()).expect("there is a plan");
    assert!(session.plan().report().slabs > in_one_piece.report().slabs);
    assert!(session.plan().recording().chunks.iter().all(|&bytes| bytes <= 4 << 20));
    let ours = run(&mut session, &data);

    // chunks beyond the largest buffer
    for caps in [DeviceCaps::reference(), DeviceCaps::default()] {
        let plan = Plan::new(&model, extent, &caps, &logits()).expect("the better device can");
        println!("chunks {:?}", plan.recording().chunks);
        let error = pollster::block_on(Session::new(&engine, &model, plan)).expect_err("this device cannot");
        println!("{:?}: {error}", error.kind());
        assert_eq!(error.kind(), EngineErrorKind::Unsupported, "{error}");
    }
    // chunks that fit, but a binding beyond the largest: an error at the latest when it runs
    let mut larger = DeviceCaps::default();
    (larger.max_binding, larger.max_buffer) = (4 << 20, 4 << 20);
    let plan = Plan::new(&model, extent, &larger, &logits()).expect("the better device can");
    let error = pollster::block_on(Session::new(&engine, &model, plan)).expect_err("this device cannot");
    assert_eq!(error.kind(), EngineErrorKind::Unsupported, "{error}");

    // the engine is as good as before, and equals another of the same device
    assert!(run(&mut session, &data) == ours, "other bits after refusals");
    assert!(run(&mut open(&model, support::engine(), extent, &logits()), &data) == ours, "other bits in slabs");
}

#[test]
fn two_sessions_share_an_engine_in_two_threads() {
    let Some(engine) = engine() else { return };
    let model = model();
    let extents = [SMALL, Extent::new(24, 16, 32)];
    let expected = extents.map(|extent| run(&mut open(&model, Some(engine), extent, &logits()), &values(extent)));
    std::thread::scope(|scope| {
        for (extent, expected) in extents.into_iter().zip(&expected) {
            let model = &model;
            scope.spawn(move || {
                for round in 0..4 {
                    let options = if round % 2 == 0 { logits() } else { logits().with_slab_depth(4) };
                    let mut session = open(model, Some(engine), extent, &options);
                    for _ in 0..3 {
                        assert!(run(&mut session, &values(extent)) == *expected, "other bits beside another thread");
                    }
                }
            });
        }
    });
}

/// A device that runs out of memory and does not tell how much it has: the budget shrinks until the session fits, and the
/// next finds the memory that a dropped one held.
#[test]
fn a_session_is_fitted_to_a_device_that_runs_out_of_memory() {
    let Some((device, queue)) = own_device(wgpu::Limits::default()) else { return };
    let model = model();
    let extent = Extent::new(32, 40, 40);
    let data = values(extent);
    let unbounded = Engine::new(&device, &queue);
    let planned = |budget: Option<u64>| {
        let mut options = logits();
        options.budget = budget;
        Plan::new(&model, extent, unbounded.caps(), &options).expect("there is a plan").report().clone()
    };
    let fit = |engine: &Engine| pollster::block_on(Session::fitting(engine, &model, extent, &logits()));
    let no_memory = |result: Result<Session, FitError>| match result {
        Err(FitError::Engine(e)) => {
            assert_eq!(e.kind(), EngineErrorKind::OutOfMemory, "{e}");
            e.to_string()
        }
        Err(e) => panic!("{e}"),
        Ok(session) => panic!("{} bytes fit", session.allocated_bytes()),
    };
    let whole = planned(None);
    let (most, least) = (whole.peak_bytes, whole.smallest_budget);
    let expected = run(&mut open(&model, Some(&unbounded), extent, &logits()), &data);
    let mut refusals = Vec::new();
    for memory in [most, most - 1, least + (most - least) / 2, least] {
        let engine = Engine::within(&device, &queue, memory);
        let (mut refused, mut plan) = (0, whole.clone());
        while plan.peak_bytes > memory {
            let smaller = smaller_budget(plan.peak_bytes, plan.smallest_budget).expect("the smallest plan fits");
            assert!(smaller < plan.peak_bytes && smaller >= least);
            (refused, plan) = (refused + 1, planned(Some(smaller)));
        }
        for turn in 0..2 {
            let mut session = fit(&engine).expect("the smallest plan fits");
            let report = session.plan().report().clone();
            assert_eq!((report.budget, report.peak_bytes), (plan.budget, plan.peak_bytes), "within {memory} bytes");
            assert_eq!(report.budget.is_none(), memory >= most);
            assert_eq!([session.allocated_bytes(), engine.allocated_bytes()], [report.peak_bytes; 2]);
            assert!(turn == 0 || run(&mut session, &data) == expected, "other bits within {memory} bytes");
            // a second session has what the first leaves
            if memory - report.peak_bytes < least {
                let text = no_memory(fit(&engine));
                assert!(text.contains(&least.to_string()), "the smallest plan was not tried: {text}");
            } else {
                let second = fit(&engine).expect("there is room for both");
                assert_eq!(engine.allocated_bytes(), report.peak_bytes + second.allocated_bytes());
            }
            assert_eq!(engine.allocated_bytes(), report.peak_bytes);
            drop(session);
            assert_eq!(engine.allocated_bytes(), 0);
        }
        refusals.push(refused);
    }
    assert!(refusals[0] == 0 && refusals[1] >= 1 && refusals.is_sorted() && refusals[3] > refusals[1], "{refusals:?}");

    let engine = Engine::within(&device, &queue, least - 1);
    let text = no_memory(fit(&engine));
    assert!(text.contains(&least.to_string()), "the smallest plan was not tried: {text}");
    assert_eq!(engine.allocated_bytes(), 0);
}

/// A runner without a budget tries less where the device runs out of memory, and says within what it ran; with one it does not.
#[test]
fn a_runner_runs_within_what_the_device_has() {
    let Some((device, queue)) = own_device(wgpu::Limits::default()) else { return };
    let card = r#"{"architecture":"u_transformer","config":{"dims":3,"in_channels":1,"classes":3,"channels":[6,8,12],"heads":2}}"#;
    let model = Model::random(card, 1).expect("the card is one");
    let (extent, options) = (Extent::new(32, 40, 40), PlanOptions::default().with_output(OutputMode::Logits));
    let data = values(extent);
    let input = Input { channels: 1, extent, data: &data };
    let run = |runner: &mut Runner| runner.run_blocking(&model, input, &options, RunOptions::default());
    let (expected, report) = run(&mut Runner::new(Engine::new(&device, &queue))).expect("it runs");
    assert_eq!(report.reduced_budget, None);
    let (most, least) = (report.plan.peak_bytes, report.plan.smallest_budget);
    assert!(least < most);
    let tight = Engine::within(&device, &queue, most - 1);
    let (outputs, report) = run(&mut Runner::new(&tight)).expect("a smaller plan fits");
    assert!(report.reduced_budget.is_some_and(|bytes| bytes < most && report.plan.peak_bytes <= bytes));
    assert_eq!((&outputs, tight.allocated_bytes()), (&expected, 0));
    for (engine, budget) in [(Engine::within(&device, &queue, least - 1), None), (tight, Some(most))] {
        let runner = Runner::new(&engine);
        let mut runner = match budget {
            Some(bytes) => runner.with_budget(bytes),
            None => runner,
        };
        let e = run(&mut runner).expect_err("nothing fits");
        assert!(matches!(&e, SegmentError::Engine(e) if e.kind() == EngineErrorKind::OutOfMemory), "{e}");
    }
}

/// A buffer that wgpu does not create, here because it is beyond the device's limit.
#[test]
fn a_refused_buffer_is_an_error() {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, max_buffer_size: 4 << 20, ..Default::default() };
    let Some((device, queue)) = own_device(limits) else { return };
    let engine = Engine::new(&device, &queue);
    let map = Map::new(Extent::new(8, 256, 256), 4);
    let windows = [Window::whole(0)];
    let call = Call::ChannelStats(ChannelStats { map, elem: Elem::F32, windows, target: Target::whole(8) });
    assert!(call.sizes()[0] * 4 > 4 << 20);
    let error = pollster::block_on(KernelRun::new(&engine, &call, &[])).expect_err("the limit is below");
    assert_eq!(error.kind(), EngineErrorKind::OutOfMemory, "{error}");
    assert!(error.to_string().contains("could not allocate"), "{error}");
    assert_eq!(engine.allocated_bytes(), 0);
    // the engine is as good as before
    let model = model();
    let data = values(SMALL);
    let bits = run(&mut open(&model, Some(&engine), SMALL, &logits()), &data);
    assert!(bits == run(&mut open(&model, support::engine(), SMALL, &logits()), &data), "other bits after a refusal");
}

#[test]
fn fitting_reports_what_no_smaller_budget_helps() {
    let Some(engine) = engine() else { return };
    let model = model();
    let fit = |extent, options: &PlanOptions| pollster::block_on(Session::fitting(engine, &model, extent, options)).map(|_| ());
    let error = fit(SMALL, &PlanOptions::default().with_budget(1)).expect_err("the budget is too small");
    assert!(matches!(&error, FitError::Plan(e) if e.kind() == PlanErrorKind::Budget), "{error}");
    let error = fit(Extent::new(3, 5, 7), &PlanOptions::default()).expect_err("the extent does not suit");
    assert!(matches!(&error, FitError::Plan(e) if e.kind() == PlanErrorKind::Extent), "{error}");
    fit(SMALL, &PlanOptions::default()).expect("it fits");
}

/// A device that goes away: an error of its kind, at once and ever after.
#[test]
fn a_lost_device_is_told() {
    let Some((device, queue)) = own_device(wgpu::Limits::default()) else { return };
    let engine = Engine::new(&device, &queue);
    let model = model();
    let data = values(SMALL);
    let mut session = open(&model, Some(&engine), SMALL, &logits().with_slab_depth(2));
    run(&mut session, &data);
    device.destroy();
    for _ in 0..3 {
        let error = session.run_blocking(input(SMALL, &data), RunOptions::default()).expect_err("the device is gone");
        assert_eq!(error.kind(), RunErrorKind::DeviceLost, "{error}");
    }
    let plan = Plan::new(&model, SMALL, engine.caps(), &logits()).expect("there is a plan");
    let error = pollster::block_on(Session::new(&engine, &model, plan)).expect_err("the device is gone");
    println!("{:?}: {error}", error.kind());
}
