//! Resident memory of a run on the host: what the plan counts, what it tells of the host, and a constant.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "figures belong to a test's output")]
#![allow(clippy::cast_possible_truncation, reason = "extents of a test")]

mod support;

use organum::model::random_weights;
use organum::{DeviceCaps, Extent, Input, Model, Plan, PlanOptions, RunOptions, Session};
use support::resident;

/// Bytes beside those that are told: lists of tasks, stacks and heaps of threads, the plan itself.
const BESIDES: u64 = 48 << 20;

#[test]
fn a_run_is_resident_as_planned() {
    let card = support::nnunet_card(3, 1, 3, &[16, 32, 64]);
    let model = Model::from_bytes(random_weights(&card, 1).expect("it is a card")).expect("it loads");
    let extent = Extent::new(96, 96, 96);
    let input = vec![0.5f32; extent.voxels() as usize];
    for budget in [None, Some(96 << 20)] {
        let mut options = PlanOptions::default();
        options.budget = budget;
        let plan = Plan::new(&model, extent, &DeviceCaps::host(), &options).expect("there is a plan");
        let (planned, host) = (plan.report().peak_bytes, plan.report().host_bytes);
        assert!(budget.is_none_or(|bytes| planned <= bytes));
        // sets the most back to what there is; the input is there already
        std::fs::write("/proc/self/clear_refs", "5").expect("Linux has it");
        let [before, _] = resident();
        let mut session = Session::on_host(&model, plan).expect("it is opened");
        assert_eq!(session.allocated_bytes(), planned);
        session.run_blocking(Input { channels: 1, extent, data: &input }, RunOptions::default()).expect("it runs");
        let [_, most] = resident();
        let used = most - before;
        println!("{used} bytes resident, {planned} planned, {host} of the host");
        assert!(used <= planned + host + BESIDES, "{used} bytes resident, {planned} planned, {host} of the host");
        // the plan is no excuse: most of it is used
        assert!(used * 2 >= planned, "{used} bytes resident, {planned} planned");
    }
}
