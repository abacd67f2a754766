//! Devices that are not here: limits of many adapters through planning and, on the host's twins, through execution; and devices that
//! go away at each batch.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

mod support;

use organum::wgpu;
use organum::{
    DeviceCaps, Elem, Engine, EngineErrorKind, Extent, Input, Model, OutputData, OutputMode, Plan, PlanErrorKind, PlanOptions, Progress,
    RunErrorKind, RunOptions, Session, model,
};
use support::{Random, engine, relative_error, shared};

/// Limits of adapters, by the names that WebGPU has for them: what the WebGPU defaults guarantee, and what adapters of these kinds
/// report (gpuinfo's database, 2026; Direct3D 12's resource binding tier 2).
const PRESETS: [(&str, &str); 8] = [
    ("WebGPU's defaults", "{}"),
    ("WebGPU's defaults without f16", r#"{"f16": false}"#),
    (
        "llvmpipe",
        r#"{"max_buffer": 2147483648, "max_binding": 134217728, "alignment": 16, "max_invocations": 1024,
        "max_storage_buffers": 32, "cpu": true}"#,
    ),
    (
        "Apple M2",
        r#"{"max_buffer": 9534832640, "max_binding": 4294967292, "alignment": 32, "max_invocations": 1024,
        "max_storage_buffers": 31}"#,
    ),
    (
        "Adreno 740",
        r#"{"max_buffer": 4294967296, "max_binding": 134217728, "alignment": 64, "max_invocations": 1024,
        "max_storage_buffers": 24}"#,
    ),
    (
        "Intel Arc",
        r#"{"max_buffer": 4294967296, "max_binding": 1073741820, "alignment": 64, "max_invocations": 1024,
        "max_storage_buffers": 64}"#,
    ),
    (
        "Direct3D 12",
        r#"{"max_buffer": 2147483648, "max_binding": 2147483644, "alignment": 256, "max_invocations": 1024,
        "max_storage_buffers": 64}"#,
    ),
    (
        "a phone without f16",
        r#"{"max_buffer": 268435456, "max_binding": 134217728, "alignment": 256, "max_invocations": 128,
        "max_storage_buffers": 8, "f16": false}"#,
    ),
];

fn presets() -> Vec<(&'static str, DeviceCaps)> {
    PRESETS.iter().map(|(name, json)| (*name, serde_json::from_str(json).unwrap_or_else(|e| panic!("{name}: {e}")))).collect()
}

/// Asserts that a plan keeps the limits.
fn within(name: &str, plan: &Plan, caps: &DeviceCaps) {
    let recording = plan.recording();
    assert!(recording.chunks.iter().all(|&size| size <= caps.max_buffer), "{name}: a chunk beyond {}", caps.max_buffer);
    for (call, regions) in recording.dispatches() {
        assert!(regions.len() <= caps.max_storage_buffers as usize, "{name}: {} binds {} buffers", call.name(), regions.len());
        for region in regions {
            assert!(region.size <= caps.max_binding, "{name}: {} binds {} bytes", call.name(), region.size);
            assert_eq!(region.offset % caps.alignment, 0, "{name}: {} binds at {}", call.name(), region.offset);
        }
        let grid = call.workgroups(caps).unwrap_or_else(|e| panic!("{name}: {}: {e:?}", call.name()));
        assert!(grid.iter().all(|n| (1..=caps.max_workgroups).contains(n)), "{name}: {} dispatches {grid:?}", call.name());
    }
}

/// Every reference case, with each of the limits; with WebGPU's defaults in both types, and in the smallest budget.
#[test]
fn every_golden_is_planned_within_the_limits_of_every_device() {
    let Some(folder) = shared("golden") else { return };
    let mut plans = 0;
    for entry in std::fs::read_dir(folder).expect("it is a folder") {
        let folder = entry.expect("an entry").path();
        let Ok(text) = std::fs::read(folder.join("case.json")) else { continue };
        let case: serde_json::Value = serde_json::from_slice(&text).expect("case.json is JSON");
        let shape: Vec<u32> = serde_json::from_value(case["input"].clone()).expect("a shape");
        let extent = if shape.len() == 4 { Extent::new(1, shape[2], shape[3]) } else { Extent::new(shape[2], shape[3], shape[4]) };
        let (_, graph) = model::architecture(&case["card"].to_string()).expect("a network");
        for (name, caps) in presets() {
            // half of the time would go into another type on devices that differ in numbers alone
            let first = caps == DeviceCaps::default();
            for elem in [Elem::F32, Elem::F16].into_iter().take(if first { 2 } else { 1 }) {
                let name = format!("{} on {name} in {}", folder.display(), elem.name());
                let options = PlanOptions::default().with_precision(elem);
                let plan = match Plan::of_graph(&graph, extent, &caps, &options) {
                    Ok(plan) => plan,
                    // what no device of these limits does is told as that
                    Err(e) => {
                        assert!(
                            matches!(e.kind(), PlanErrorKind::Limits | PlanErrorKind::Unsupported) && e.node().is_some(),
                            "{name}: {e}"
                        );
                        println!("{name}: {e}");
                        continue;
                    }
                };
                within(&name, &plan, &caps);
                plans += 1;
                if elem == Elem::F16 || !first {
                    continue;
                }
                let smallest = plan.report().smallest_budget;
                let small = Plan::of_graph(&graph, extent, &caps, &options.with_budget(smallest)).expect("the smallest is one");
                assert!(small.report().peak_bytes <= smallest, "{name}");
                within(&name, &small, &caps);
                plans += 1;
            }
        }
    }
    println!("{plans} plans");
    assert!(plans > 0);
}

fn networks() -> Vec<(&'static str, String, Extent)> {
    let net = |features: &[u32]| support::nnunet_card(3, 1, 2, features);
    vec![("three stages", net(&[4, 6, 8]), Extent::new(8, 16, 8)), ("two stages", net(&[8, 8]), Extent::new(6, 8, 10))]
}

/// Plans for other devices, run by the kernels' twins: the same results, bit by bit whatever the limits.
#[test]
fn plans_for_every_device_give_the_same_results() {
    for (name, card, extent) in networks() {
        let model = Model::random(&card, 7).unwrap_or_else(|e| panic!("{name}: {e}"));
        let data = Random::new(3).values(extent.voxels() as usize);
        let run = |caps: &DeviceCaps, options: PlanOptions| {
            let plan = Plan::new(&model, extent, caps, &options.with_output(OutputMode::Logits)).unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut session = Session::on_host(&model, plan).expect("a session");
            let outputs = session.run_blocking(Input { channels: 1, extent, data: &data }, RunOptions::default()).expect("it runs");
            match &outputs[0].data {
                OutputData::Map(values) => values.clone(),
                OutputData::Labels(_) => panic!("logits were asked for"),
            }
        };
        let reference: Vec<f64> = run(&DeviceCaps::reference(), PlanOptions::default()).into_iter().map(f64::from).collect();
        for (device, caps) in presets() {
            // and with bindings so small that every map is cut
            for caps in [caps.clone(), caps.with_max_binding(64 << 10)] {
                for elem in [Elem::F32, Elem::F16].into_iter().take(if caps.max_binding == 64 << 10 { 1 } else { 2 }) {
                    let options = PlanOptions::default().with_precision(elem);
                    let Ok(plan) = Plan::new(&model, extent, &caps, &options.clone().with_output(OutputMode::Logits)) else {
                        assert!(caps.max_binding == 64 << 10, "{name} cannot be planned for {device}");
                        continue;
                    };
                    let whole = run(&caps, options.clone());
                    let small = run(&caps, options.with_budget(plan.report().smallest_budget));
                    assert!(whole == small, "{name}: other bits in the smallest budget of {device}");
                    let error = relative_error(&whole, &reference);
                    assert!(error <= if elem == Elem::F32 { 1e-5 } else { 5e-3 }, "{name} on {device} in {}: {error:e}", elem.name());
                }
            }
        }
    }
}

/// A device of this test alone.
fn own_device() -> Option<(wgpu::Device, wgpu::Queue)> {
    engine()?;
    pollster::block_on(async {
        let descriptor =
            wgpu::InstanceDescriptor { backends: wgpu::Backends::PRIMARY, ..wgpu::InstanceDescriptor::new_without_display_handle() };
        let adapters = wgpu::Instance::new(descriptor).enumerate_adapters(wgpu::Backends::PRIMARY).await;
        let adapter = adapters.into_iter().next().expect("there is an adapter");
        Some(adapter.request_device(&wgpu::DeviceDescriptor::default()).await.expect("it gives a device"))
    })
}

/// Each of a session's buffers refused in turn: an error of its kind, every byte given back, and the next session as good as ever.
#[test]
fn any_buffer_may_be_refused() {
    let (_, card, extent) = networks().swap_remove(0);
    let model = Model::random(&card, 7).expect("a model");
    let data = Random::new(3).values(extent.voxels() as usize);
    let input = Input { channels: 1, extent, data: &data };
    let Some((device, queue)) = own_device() else { return };
    let engine = Engine::new(&device, &queue);
    let plan = Plan::new(&model, extent, engine.caps(), &PlanOptions::default().with_slab_depth(2)).expect("there is a plan");
    let open = || pollster::block_on(Session::new(&engine, &model, plan.clone()));
    let expected = open().expect("a session").run_blocking(input, RunOptions::default()).expect("it runs");
    let mut refused = 0;
    for number in 1.. {
        engine.refuse_buffer(number);
        match open() {
            Ok(_) => break,
            Err(e) => assert_eq!(e.kind(), EngineErrorKind::OutOfMemory, "buffer {number}: {e}"),
        }
        assert_eq!(engine.allocated_bytes(), 0, "bytes are held after buffer {number}");
        engine.refuse_buffer(0);
        let again = open().expect("a session").run_blocking(input, RunOptions::default()).expect("it runs");
        assert!(again == expected, "other bits after buffer {number}");
        refused += 1;
    }
    engine.refuse_buffer(0);
    // chunks, uniforms, and two pieces of staging in each direction at least
    assert!(refused >= plan.recording().chunks.len() + 3, "{refused} buffers were refused");
    println!("{refused} buffers refused in turn");
}

/// A device that is destroyed after each of its batches in turn: an error of its kind, nothing held, and a new one as good as ever.
#[test]
fn a_device_lost_at_any_batch_is_told_and_a_new_one_has_the_same_bits() {
    let (_, card, extent) = networks().swap_remove(0);
    let model = Model::random(&card, 7).expect("a model");
    let data = Random::new(3).values(extent.voxels() as usize);
    let input = Input { channels: 1, extent, data: &data };
    let open = |engine: &Engine| {
        // small batches, whatever the device
        let mut caps = engine.caps().clone();
        caps.cpu = true;
        let options = PlanOptions::default().with_output(OutputMode::Logits).with_slab_depth(1);
        let plan = Plan::new(&model, extent, &caps, &options).expect("there is a plan");
        pollster::block_on(Session::new(engine, &model, plan)).expect("a session")
    };
    let Some((device, queue)) = own_device() else { return };
    let engine = Engine::new(&device, &queue);
    let mut batches = 0u32;
    let mut count = |_: Progress| batches += 1;
    let expected = open(&engine).run_blocking(input, RunOptions::default().with_progress(&mut count)).expect("it runs");
    assert!(batches > 0);
    for last in 1..=batches {
        let Some((device, queue)) = own_device() else { return };
        let engine = Engine::new(&device, &queue);
        let mut session = open(&engine);
        let mut seen = 0;
        let mut destroy = |_: Progress| {
            seen += 1;
            if seen == last {
                device.destroy();
            }
        };
        match session.run_blocking(input, RunOptions::default().with_progress(&mut destroy)) {
            // all that was to come had come
            Ok(outputs) => assert!(outputs == expected, "other bits"),
            Err(e) => assert_eq!(e.kind(), RunErrorKind::DeviceLost, "after batch {last}: {e}"),
        }
        let error = session.run_blocking(input, RunOptions::default()).expect_err("the device is gone");
        assert_eq!(error.kind(), RunErrorKind::DeviceLost, "{error}");
        drop(session);
        assert_eq!(engine.allocated_bytes(), 0, "bytes are held after batch {last}");
    }
    let Some((device, queue)) = own_device() else { return };
    let again = open(&Engine::new(&device, &queue)).run_blocking(input, RunOptions::default()).expect("it runs");
    assert!(again == expected, "a new device has other bits");
}
