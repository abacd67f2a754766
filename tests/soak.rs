//! Long runs, ignored unless asked for: `cargo test --release --locked --test soak -- --ignored --nocapture`; `ORGANUM_SOAK=N` sets
//! how many scans and triples there are (500 and 1,000).
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests, which tell what they measure")]

mod support;

use std::sync::Mutex;

use organum::volume::Volume;
use organum::{Device, DeviceCaps, Elem, Engine, Extent, Input, Model, OutputMode, OutputVolume, Plan, PlanOptions, RunOptions};
use organum::{SegmentOptions, Segmenter, Session};
use support::{Random, engine, resident};

const MODEL: &[u8] = include_bytes!("../weights/hippocampus_u_transformer.safetensors");

/// Held by a test while it runs: what another one holds would count.
static ALONE: Mutex<()> = Mutex::new(());

fn asked(usual: usize) -> usize {
    std::env::var("ORGANUM_SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Scans of different extents through one segmenter: what is resident, and what the device holds, do not grow.
#[test]
#[ignore = "it takes minutes"]
fn five_hundred_scans_in_one_process_take_no_more_memory() {
    let _alone = ALONE.lock();
    let scans = asked(500);
    let mut devices: Vec<(Device, usize)> = vec![(Device::Host, scans)];
    devices.extend(engine().map(|engine| (engine.clone().into(), (scans / 10).max(16))));
    for (device, scans) in devices {
        let name = device.name();
        let mut segmenter =
            Segmenter::new(Model::from_bytes(MODEL).expect("it loads"), device, SegmentOptions::default()).expect("it suits");
        let extents = [[16, 24, 16], [18, 20, 22], [8, 40, 24], [24, 24, 24]];
        let mut labels: Vec<Option<Vec<u16>>> = vec![None; extents.len()];
        let (warm, mut before) = (scans / 2, 0);
        for turn in 0..scans {
            let which = turn % extents.len();
            let extent = Extent::from(extents[which]);
            let values = Random::new(which as u64 + 1).values(extent.voxels() as usize);
            let scan = Volume::new(1, extent, [1.0; 3], "RAS".parse().expect("axes"), values).expect("a scan");
            let found = segmenter.segment_blocking(&scan, RunOptions::default()).expect("it runs").labels.data;
            let first = labels[which].get_or_insert_with(|| found.clone());
            assert!(*first == found, "{name}: other labels at scan {turn}");
            if turn + 1 == warm {
                before = resident()[0];
            }
        }
        let after = resident()[0];
        println!("{name}: {scans} scans, {before} bytes resident after {warm}, {after} at the end");
        assert!(after * 100 <= before * 101, "{name}: {before} bytes resident, then {after}");
        segmenter.close();
        assert!(engine().is_none_or(|engine| engine.allocated_bytes() == 0), "{name} holds device memory");
    }
}

/// Random networks, extents, budgets and devices: each device has one result, whatever the budget and however often.
#[test]
#[ignore = "it takes minutes"]
fn random_budgets_and_extents_have_the_same_bits() {
    let _alone = ALONE.lock();
    let count = asked(1000);
    let mut random = Random::new(2026);
    let cards = [
        (support::nnunet_card(3, 1, 2, &[4, 6, 8]), [4, 4, 4]),
        (support::nnunet_card(3, 1, 3, &[8, 8]), [2, 2, 2]),
        (support::nnunet_card(3, 2, 4, &[4, 4, 8, 8]), [8, 8, 8]),
    ];
    let models: Vec<Model> = cards.iter().map(|(card, _)| Model::random(card, 5).expect("a model")).collect();
    let (mut cut, mut on_device) = (0, 0);
    for turn in 0..count {
        let which = random.below(cards.len() as u64) as usize;
        let (model, least) = (&models[which], cards[which].1);
        let extent = Extent::from(least.map(|n| n * (1 + random.below(if n > 8 { 2 } else { 5 }) as u32)));
        let engine: Option<&Engine> = engine().filter(|_| turn % 20 == 0);
        on_device += usize::from(engine.is_some());
        let caps = engine.map_or_else(DeviceCaps::host, |engine| engine.caps().clone());
        let elem = if random.below(4) == 0 { Elem::F16 } else { Elem::F32 };
        let options = PlanOptions::default().with_output(OutputMode::Logits).with_precision(elem);
        let data = random.values((extent.voxels() * u64::from(model.card().in_channels())) as usize);
        let run = |plan: Plan| -> Vec<OutputVolume> {
            let mut session = match engine {
                Some(engine) => pollster::block_on(Session::new(engine, model, plan)),
                None => Session::on_host(model, plan),
            }
            .expect("a session");
            let input = Input { channels: model.card().in_channels(), extent, data: &data };
            let first = session.run_blocking(input, RunOptions::default()).expect("it runs");
            assert!(first == session.run_blocking(input, RunOptions::default()).expect("it runs"), "other bits in the second run");
            first
        };
        let whole = Plan::new(model, extent, &caps, &options).expect("there is a plan");
        let report = whole.report();
        let (smallest, peak) = (report.smallest_budget, report.peak_bytes);
        let budget = smallest + (peak.saturating_sub(smallest) as f32 * (0.5 + 0.5 * random.unit())) as u64;
        let small = Plan::new(model, extent, &caps, &options.with_budget(budget)).expect("it fits");
        assert!(small.report().peak_bytes <= budget);
        cut += usize::from(small.report().slabs != report.slabs);
        assert!(run(whole) == run(small), "turn {turn}: {} over {extent} within {budget} bytes", model.card().architecture);
    }
    println!("{count} triples, {cut} of them planned otherwise within their budget, {on_device} on the adapter");
}
