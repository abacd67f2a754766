//! Host memory while a large model is loaded and brought to a device: the file is mapped, not copied.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "figures belong to a test's output")]

mod support;

use organum::model::random_weights;
use organum::{DeviceCaps, Extent, Model, Plan, PlanOptions, Session};
use support::resident;

/// FINE with half its published width: 56 million parameters, of which the largest tensor has a seventh.
#[test]
fn weights_are_mapped_and_packed_one_tensor_at_a_time() {
    let card = r#"{"architecture":"fine","config":{"embed_dim":96,"heads":[3,6,12,24]}}"#;
    let folder = tempfile::tempdir().expect("there is room for temporary files");
    let path = folder.path().join("fine.safetensors");
    std::fs::write(&path, random_weights(card, 1).expect("it is one")).expect("it can be written");
    let file = std::fs::metadata(&path).expect("it is there").len();

    // sets the most back to what there is
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux has it");
    let [before, _] = resident();
    let model = Model::load(&path).expect("it loads");
    let plan = Plan::new(&model, Extent::new(64, 128, 128), &DeviceCaps::host(), &PlanOptions::default()).expect("there is a plan");
    let weights = plan.report().weights_bytes;
    let session = Session::on_host(&model, plan).expect("it is opened");
    let [_, most] = resident();
    // the host's executor holds the weights as a device would
    let host = most - before - weights;
    println!("a file of {file} bytes: {host} resident besides {weights} of the device");
    assert!(session.allocated_bytes() >= weights);
    assert!(host * 10 <= file * 13, "{host} resident bytes for a file of {file}");
}
