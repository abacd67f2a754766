//! Time to plan the 3D U-Net 32/64/128/256/320/320 on a large volume, resident and streamed. No device needed.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use organum::graph::{BatchNorm, Conv, Graph, NodeId, Op, pass};
use organum::kernels::Activation;
use organum::{DeviceCaps, Extent, Plan, PlanOptions, format_bytes};

struct Builder(Graph);

impl Builder {
    fn conv(&mut self, name: &str, x: NodeId, [cin, cout]: [u32; 2], k: u32) -> NodeId {
        let conv = Conv {
            module: name.to_owned(),
            in_channels: cin,
            out_channels: cout,
            kernel: [k; 3],
            stride: [1; 3],
            padding: [k / 2; 3],
            bias: true,
            norm: None,
            activation: Activation::None,
            weight_shape: [cout, cin, k, k, k].map(|n| n as usize).to_vec(),
        };
        self.0.add(name, Op::Conv(conv), &[x])
    }

    fn conv_norm(&mut self, name: &str, x: NodeId, [cin, cout]: [u32; 2], k: u32) -> NodeId {
        let y = self.conv(&format!("{name}.conv"), x, [cin, cout], k);
        let y = self.0.add(format!("{name}.norm"), Op::BatchNorm(BatchNorm { module: format!("{name}.norm"), channels: cout, eps: 1e-5 }), &[y]);
        self.0.add(name, Op::Activation(Activation::Relu), &[y])
    }

    fn double(&mut self, name: &str, x: NodeId, [cin, cout]: [u32; 2]) -> NodeId {
        let y = self.conv_norm(&format!("{name}.a"), x, [cin, cout], 3);
        self.conv_norm(&format!("{name}.b"), y, [cout, cout], 3)
    }
}

/// The architecture `u_transformer` with `mhsa: false, mhca_levels: 0`, built without weights.
fn unet(channels: &[u32], classes: u32) -> Graph {
    let mut b = Builder(Graph::default());
    let mut x = b.0.add("input", Op::Input { channels: 1 }, &[]);
    let mut cin = 1;
    let mut skips = Vec::new();
    for (i, &c) in channels.iter().enumerate() {
        if i > 0 {
            x = b.0.add(format!("pool.{}", i - 1), Op::MaxPool { kernel: [2; 3] }, &[x]);
        }
        x = b.double(&format!("enc.{i}"), x, [cin, c]);
        skips.push(x);
        cin = c;
    }
    for i in (0..channels.len() - 1).rev() {
        let (cy, cs, name) = (channels[i + 1], channels[i], format!("dec.{i}"));
        let y = b.0.add(format!("{name}.upsample"), Op::Upsample { factor: [2; 3] }, &[x]);
        let y = b.conv(&format!("{name}.conv"), y, [cy, cy], 3);
        let y = b.conv_norm(&format!("{name}.reduce"), y, [cy, cs], 1);
        let y = b.0.add(format!("{name}.concat"), Op::Concat, &[skips[i], y]);
        x = b.double(&format!("{name}.block"), y, [2 * cs, cs]);
    }
    b.conv("head", x, [channels[0], classes], 1);
    pass::optimise(&b.0, &[]).0
}

fn planner(c: &mut Criterion) {
    let graph = unet(&[32, 64, 128, 256, 320, 320], 14);
    let extent = Extent::new(256, 512, 512);
    let mut group = c.benchmark_group("planner/unet_256x512x512");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for (device, caps) in [("2GiB_bindings", DeviceCaps::default().with_max_binding((2 << 30) - 4)), ("webgpu_defaults", DeviceCaps::default())] {
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
                println!("{device} {kind}: {}, {} slabs, {} dispatches, activations {ratio:.3}x the most alive", format_bytes(r.peak_bytes), r.slabs, r.dispatches);
            }
            group.bench_function(format!("{device}/{kind}"), |b| b.iter(|| Plan::of_graph(&graph, extent, &caps, &options).map(|p| p.report().peak_bytes)));
        }
        println!("{device}: {} to {}", format_bytes(smallest), format_bytes(largest));
    }
    group.finish();
}

criterion_group!(benches, planner);
criterion_main!(benches);
