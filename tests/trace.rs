//! Spans of a segmentation, as a subscriber of the crate `tracing` sees them.
#![cfg(feature = "tracing")]
#![allow(clippy::cast_possible_truncation, reason = "tests")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use organum::volume::Volume;
use organum::{Device, Extent, Model, RunOptions, SegmentOptions, Segmenter};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Keeps the names of the spans that are entered.
#[derive(Clone, Default)]
struct Names {
    all: Arc<Mutex<Vec<&'static str>>>,
    entered: Arc<Mutex<Vec<&'static str>>>,
    last: Arc<AtomicU64>,
}

impl Subscriber for Names {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("organum")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.all.lock().expect("no panic").push(span.metadata().name());
        Id::from_u64(self.last.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn enter(&self, span: &Id) {
        let name = self.all.lock().expect("no panic")[span.into_u64() as usize - 1];
        let mut entered = self.entered.lock().expect("no panic");
        if entered.last() != Some(&name) {
            entered.push(name);
        }
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn every_stage_of_a_segmentation_is_a_span() {
    let card = r#"{"architecture":"plain_conv_unet","config":{"dims":3,"in_channels":1,"classes":2,"features":[4,6],
        "kernels":[[3,3,3],[3,3,3]],"strides":[[1,1,1],[2,2,2]],"convs_per_stage":1},"inference":{"patch":[4,8,8]}}"#;
    let model = Model::random(card, 1).expect("it is one");
    let options = SegmentOptions::default().with_raw_voxels();
    let mut segmenter = Segmenter::new(model, Device::Host, options).expect("the options suit");
    let extent = Extent::new(6, 8, 9);
    let axes = "SAR".parse().expect("axes");
    let values = vec![1.0; extent.voxels() as usize];
    let volume = Volume::new(1, extent, [1.0; 3], axes, values).expect("it is a volume");
    let names = Names::default();
    tracing::subscriber::with_default(names.clone(), || {
        for _ in 0..2 {
            segmenter.segment_blocking(&volume, RunOptions::default()).expect("it runs");
        }
    });
    let entered = names.entered.lock().expect("no panic").clone();
    // the second scan finds the session open
    assert_eq!(entered, ["prepare", "plan", "open", "run", "export", "prepare", "run", "export"]);
}
