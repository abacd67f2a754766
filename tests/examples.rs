//! The examples, on the bundled model and scan and on the host.

use organum::{Device, Extent};

#[allow(dead_code, reason = "its main is not called")]
#[path = "../examples/cancel_and_progress.rs"]
mod cancel_and_progress;
#[allow(dead_code, reason = "its main is not called")]
#[path = "../examples/own_device.rs"]
mod own_device;
#[allow(dead_code, reason = "its main is not called")]
#[path = "../examples/own_network.rs"]
mod own_network;
#[allow(dead_code, reason = "its main is not called")]
#[path = "../examples/own_voxels.rs"]
mod own_voxels;
#[allow(dead_code, reason = "its main is not called")]
#[path = "../examples/segment_file.rs"]
mod segment_file;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/hippocampus_u_transformer.safetensors");
const SCAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/mni152_hippocampus_right.nii.gz");
const LABELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/mni152_hippocampus_right_labels.nii.gz");

#[test]
fn a_file_is_segmented() {
    let out = tempfile::tempdir().expect("a folder");
    let labels = out.path().join("labels.nii.gz");
    let name = labels.to_str().expect("a path in UTF-8");
    segment_file::segment(MODEL, SCAN, name, Device::Host).expect("it is segmented");
    let read = |path: &str| organum::volume::nifti::read_labels(path).expect("labels are read").1;
    assert!(read(name).data == read(LABELS).data);
    assert!(segment_file::segment(MODEL, "nowhere.nii", name, Device::Host).is_err());
}

#[test]
fn labels_of_the_middle_plane_are_counted() {
    let labels = organum::volume::nifti::read_labels(LABELS).expect("labels are read").1;
    let plane = labels.extent.h as usize * labels.extent.w as usize;
    let middle = &labels.data[labels.extent.d as usize / 2 * plane..][..plane];
    let labelled = middle.iter().filter(|&&label| label > 0).count();
    assert_eq!(own_device::segment(MODEL, SCAN, None).expect("it is segmented"), (labelled, 0));
}

#[test]
fn voxels_in_memory_are_segmented() {
    let found = own_voxels::segment(MODEL, Device::Host).expect("they are segmented");
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["anterior hippocampus", "posterior hippocampus"]);
}

#[test]
fn a_network_is_built_node_by_node() {
    let (plan, logits) = own_network::run(Extent::new(8, 12, 16)).expect("it runs");
    assert!(plan.contains("8x12x16"), "{plan}");
    assert!(logits.len() == 3 * 8 * 12 * 16 && logits.iter().all(|v| v.is_finite()));
}

#[test]
fn a_run_is_stopped_and_repeated() {
    let stopped = cancel_and_progress::segment(MODEL, SCAN, Device::Host).expect("it is segmented at last");
    assert!((0.5..1.0).contains(&stopped), "{stopped}");
}
