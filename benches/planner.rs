//! Time to plan 3D U-Nets 32/64/128/256/320/320, with batch and with instance norm, on a large volume, resident and streamed.
//! No device needed.
#![allow(clippy::print_stdout, reason = "a program")]

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use organum::graph::Graph;
use organum::{DeviceCaps, Extent, Plan, PlanOptions, format_bytes};

const CARDS: [(&str, &str); 2] = [("u_net", include_str!("cards/u_net_32.json")), ("nnu_net", include_str!("cards/nnu_net_32.json"))];

fn planner(c: &mut Criterion) {
    for (name, card) in CARDS {
        match organum::model::architecture(card) {
            Ok((_, graph)) => plans(c, name, &graph),
            Err(e) => println!("{name}: {e}"),
        }
    }
}

fn plans(c: &mut Criterion, name: &str, graph: &Graph) {
    let extent = Extent::new(256, 512, 512);
    let mut group = c.benchmark_group(format!("planner/{name}_256x512x512"));
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for (device, caps) in
        [("2GiB_bindings", DeviceCaps::default().with_max_binding((2 << 30) - 4)), ("webgpu_defaults", DeviceCaps::default())]
    {
        let resident = match Plan::of_graph(graph, extent, &caps, &PlanOptions::default()) {
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
            if let Ok(plan) = Plan::of_graph(graph, extent, &caps, &options) {
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
                b.iter(|| Plan::of_graph(graph, extent, &caps, &options).map(|p| p.report().peak_bytes))
            });
        }
        println!("{device}: {} to {}", format_bytes(smallest), format_bytes(largest));
    }
    group.finish();
}

criterion_group!(benches, planner);
criterion_main!(benches);
