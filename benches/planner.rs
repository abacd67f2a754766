//! Time to plan the 3D U-Net 32/64/128/256/320/320 on a large volume, resident and streamed. No device needed.
#![allow(clippy::print_stdout, reason = "a program")]

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use organum::{DeviceCaps, Extent, Plan, PlanOptions, format_bytes};

/// The architecture with neither kind of attention: a plain 3D U-Net.
const CARD: &str = r#"{"architecture":"u_transformer","config":{"dims":3,"in_channels":1,"classes":14,
    "channels":[32,64,128,256,320,320],"mhsa":false,"mhca_levels":0}}"#;

fn planner(c: &mut Criterion) {
    let Ok((_, graph)) = organum::model::architecture(CARD) else { return };
    let extent = Extent::new(256, 512, 512);
    let mut group = c.benchmark_group("planner/unet_256x512x512");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for (device, caps) in
        [("2GiB_bindings", DeviceCaps::default().with_max_binding((2 << 30) - 4)), ("webgpu_defaults", DeviceCaps::default())]
    {
        let resident = match Plan::of_graph(&graph, extent, &caps, &PlanOptions::default()) {
            Ok(plan) => plan,
            Err(e) => {
                println!("{device}: {e}");
                continue;
            }
        };
        let report = resident.report();
        let (largest, smallest) = (report.peak_bytes, report.smallest_budget);
        for (kind, options) in [
            ("resident", PlanOptions::default()),
            ("streamed", PlanOptions::default().with_budget(smallest)),
            ("refused", PlanOptions::default().with_budget(smallest - 1)),
            ("one_plane_slabs", PlanOptions::default().with_slab_depth(1)),
        ] {
            if let Ok(plan) = Plan::of_graph(&graph, extent, &caps, &options) {
                let r = plan.report();
                let ratio = r.activation_bytes as f64 / r.max_live_bytes as f64;
                println!(
                    "{device} {kind}: {}, {} slabs, {} dispatches, activations {ratio:.3}x the most alive",
                    format_bytes(r.peak_bytes),
                    r.slabs,
                    r.dispatches
                );
            }
            group.bench_function(format!("{device}/{kind}"), |b| {
                b.iter(|| Plan::of_graph(&graph, extent, &caps, &options).map(|p| p.report().peak_bytes))
            });
        }
        println!("{device}: {} to {}", format_bytes(smallest), format_bytes(largest));
    }
    group.finish();
}

criterion_group!(benches, planner);
criterion_main!(benches);
