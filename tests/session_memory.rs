//! Address space of a process that opens and drops one session after another; alone, as the figure is the process's.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "figures belong to a test's output")]

mod support;

use organum::{Extent, Input, Model, OutputMode, Plan, PlanOptions, RunOptions, Session};
use support::{Random, engine};

/// Bytes of address space of this process.
fn address_space() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages = text.split(' ').next().and_then(|pages| pages.parse::<u64>().ok()).expect("a number");
    pages * 4096
}

#[test]
fn address_space_does_not_grow_from_session_to_session() {
    let Some(engine) = engine() else { return };
    let bundled = include_bytes!("../weights/hippocampus_u_transformer.safetensors");
    let model = Model::from_bytes(bundled).expect("the bundled model loads");
    let options = PlanOptions::default().with_output(OutputMode::Logits);
    let plan = |extent| Plan::new(&model, extent, engine.caps(), &options).expect("there is a plan");
    let open = |plan: &Plan| pollster::block_on(Session::new(engine, &model, plan.clone())).expect("the session is made");
    let small = Extent::new(16, 24, 16);
    let plans = [Extent::new(96, 96, 96), small].map(plan);
    let data = Random::new(1).values(16 * 24 * 16);
    let input = || Input { channels: 1, extent: small, data: &data };
    let (mut first, mut bytes) = (0, 0);
    for turn in 0..20 {
        bytes = open(&plans[0]).allocated_bytes();
        open(&plans[1]).run_blocking(input(), RunOptions::default()).expect("it runs");
        if turn == 2 {
            first = address_space();
        }
    }
    let grown = address_space().saturating_sub(first);
    println!("17 sessions of {bytes} bytes: {grown} more bytes of address space");
    assert!(grown < 6 * bytes, "{grown} bytes more after 17 sessions of {bytes}");
}
