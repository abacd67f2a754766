//! Entries of the fuzz targets (`fuzz/`), compiled with `--cfg fuzzing` alone: each takes bytes that may be anything, and must come
//! back without a panic.

use std::path::Path;

use serde_json::Value;

use crate::caps::DeviceCaps;
use crate::model::{Card, Checkpoint, Mode, architecture, plain};
use crate::plan::{Plan, PlanOptions};
use crate::segment::PreparedScan;
use crate::shape::{Elem, Extent};
use crate::volume::{Volume, file};
use crate::{Windows, monai, nnunet};

/// The most voxels along an axis that cards are planned for, and the most nodes: planning takes its time.
const WIDEST: u32 = 32;
const MOST_NODES: usize = 48;

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// A scan or a label map from a file.
pub fn volume(path: &Path) {
    drop(file::read(path));
    drop(file::read_labels(path));
}

/// A safetensors file or a checkpoint of PyTorch, to the network.
pub fn checkpoint(data: &[u8]) {
    let Ok(found) = Checkpoint::from_bytes(data.to_vec()) else { return };
    drop(found.infer());
    drop(found.left_aside());
    drop(found.into_model(None));
}

/// A card, to a plan of its network.
pub fn card(data: &[u8]) {
    let Some(json) = text(data) else { return };
    let Ok((card, graph)) = architecture(json) else { return };
    let Ok(facts) = card.facts() else { return };
    let axes = facts.crop.map_or(facts.least, |crop| crop.axes()).map(|n| n.max(1));
    let axes = [0, 1, 2].map(|axis| axes[axis].next_multiple_of(facts.stride[axis].max(1)));
    let bytes = graph
        .parameters()
        .iter()
        .map(|(_, shape)| shape.iter().fold(4u64, |all, &n| all.saturating_mul(n as u64)))
        .fold(0, u64::saturating_add);
    if axes.iter().any(|n| *n > WIDEST) || bytes > 1 << 30 || graph.nodes().len() > MOST_NODES {
        return;
    }
    for (caps, elem) in [(DeviceCaps::host(), Elem::F32), (DeviceCaps::default(), Elem::F16)] {
        let options = PlanOptions::default().with_precision(elem);
        if let Ok(plan) = Plan::of_graph(&graph, axes.into(), &caps, &options) {
            let budget = plan.report().peak_bytes / 2;
            drop(Plan::of_graph(&graph, axes.into(), &caps, &options.with_budget(budget)));
        }
    }
}

/// The recipe and the windows of a card, to a scan that is prepared, and labels that go back. The first byte picks the scan.
pub fn recipe(data: &[u8]) {
    let Some((&pick, data)) = data.split_first() else { return };
    let Some(json) = text(data) else { return };
    let Ok(card) = Card::of_json(json) else { return };
    let extents = [Extent::new(7, 9, 8), Extent::new(1, 1, 1), Extent::new(1, 12, 5), Extent::new(16, 16, 16)];
    let extent = extents[usize::from(pick) % extents.len()];
    let channels = card.in_channels();
    if channels > 4 || card.classes() > 8 {
        return;
    }
    let spacing = [[1.0; 3], [3.0, 0.5, 0.5], [0.01, 200.0, 1.0]][usize::from(pick / 4) % 3];
    let values =
        (0..extent.voxels() * u64::from(channels)).map(|i| ((i * 7919 % 101) as f32 - 30.0) * [1.0, 0.0, 3e36][usize::from(pick / 16) % 3]);
    let Ok(scan) = "RAS".parse().and_then(|axes| Volume::new(channels, extent, spacing, axes, values.collect())) else { return };
    for mode in [Mode::Whole, Mode::Window, Mode::Slices] {
        let Ok(prepared) = PreparedScan::new(&card, &scan, mode) else { continue };
        let extent = prepared.volume().extent;
        if mode == Mode::Window {
            drop(Windows::new(&card, extent));
        }
        if prepared.takes_labels() {
            let labels = vec![1; extent.voxels() as usize];
            drop(prepared.restore(crate::segment::Scores::Labels(labels, None), false));
        } else {
            let logits = vec![0.5; extent.voxels() as usize * card.classes() as usize];
            drop(prepared.restore(crate::segment::Scores::Logits(logits), true));
        }
    }
}

/// A pickle of plain values and numpy's.
pub fn pickle(data: &[u8]) {
    drop(plain(data, &["a", "b", "c", "plans", "init", "name"]));
}

/// `plans.json` and `dataset.json` of nnU-Net v2, a zero byte between them.
pub fn plans_json(data: &[u8]) {
    let mut parts = data.split(|b| *b == 0).map(|part| serde_json::from_slice::<Value>(part).unwrap_or_default());
    let (plans, dataset) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    for configuration in ["2d", "3d_fullres"] {
        drop(nnunet::card(&plans, &dataset, configuration, &[0, 1]));
    }
}

/// `plans.pkl` of nnU-Net v1, for a checkpoint.
pub fn plans_pickle(data: &[u8], checkpoint: &Checkpoint) {
    nnunet::fuzz_sidecar(data, checkpoint);
}

/// A bundle's config, JSON or YAML.
pub fn config(data: &[u8], yaml: bool) {
    if let Some(text) = text(data) {
        monai::fuzz_config(text, yaml);
    }
}

/// An expression in a bundle's config.
pub fn expression(data: &[u8]) {
    if let Some(text) = text(data) {
        monai::fuzz_expression(text);
    }
}
