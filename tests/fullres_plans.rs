//! Plans at the sizes the project exists for. No device needed.
#![allow(clippy::print_stdout, reason = "figures belong to a test's output")]

use organum::graph::{Attention, Combine, Conv, Graph, NodeId, Op};
use organum::kernels::Activation;
use organum::model::architecture;
use organum::{DeviceCaps, Elem, Extent, Plan, PlanOptions};

fn unet() -> Graph {
    let card = r#"{"architecture":"u_transformer","config":{"dims":3,"in_channels":1,"classes":14,
        "channels":[32,64,128,256,320,320],"mhsa":false,"mhca_levels":0}}"#;
    architecture(card).expect("the card is one").1
}

const VOLUME: Extent = Extent::new(256, 512, 512);

/// Plans within a budget and so much work.
fn plan(graph: &Graph, elem: Elem, budget: u64, most_work: f64, options: PlanOptions) -> Plan {
    let started = std::time::Instant::now();
    let plan = Plan::of_graph(graph, VOLUME, &DeviceCaps::desktop(), &options.with_precision(elem).with_budget(budget)).expect("it fits");
    let r = plan.report();
    let work = r.flops as f64 / (r.flops - r.recomputed_flops) as f64;
    println!("{} {budget}: {} bytes, {} spilled, {work:.2}x FLOPs, {:?}", elem.name(), r.peak_bytes, r.spilled_bytes, started.elapsed());
    assert!(r.peak_bytes <= budget && work <= most_work);
    plan
}

#[test]
fn a_u_net_on_a_whole_ct_fits_two_gigabytes_and_one() {
    let graph = unet();
    for (elem, budgets) in [(Elem::F16, [2_000_000_000, 1_000_000_000]), (Elem::F32, [4_000_000_000, 2_000_000_000])] {
        plan(&graph, elem, budgets[0], 1.2, PlanOptions::default());
        plan(&graph, elem, budgets[0], 1.2, PlanOptions::default().without_spill());
        plan(&graph, elem, budgets[1], 2.2, PlanOptions::default());
    }
}

#[test]
fn an_nnu_net_with_instance_norm_on_a_whole_ct_fits_six_gigabytes_without_the_host_and_two_with_it() {
    let card = r#"{"architecture":"plain_conv_unet","config":{"dims":3,"in_channels":1,"classes":14,"features":[32,64,128,256,320,320],
        "kernels":[[3,3,3],[3,3,3],[3,3,3],[3,3,3],[3,3,3],[3,3,3]],"strides":[[1,1,1],[2,2,2],[2,2,2],[2,2,2],[2,2,2],[2,2,2]],
        "convs_per_stage":2}}"#;
    let graph = architecture(card).expect("the card is one").1;
    let six = plan(&graph, Elem::F16, 6_000_000_000, 1.0, PlanOptions::default().without_spill().without_recompute());
    assert_eq!((six.report().spilled_bytes, six.report().recomputed_flops), (0, 0));
    plan(&graph, Elem::F16, 2_000_000_000, 2.2, PlanOptions::default());
    let small = plan(&graph, Elem::F16, 1_000_000_000, 1.3, PlanOptions::default());
    assert!(small.report().smallest_budget <= 250_000_000, "{}", small.report().smallest_budget);
    let small = plan(&graph, Elem::F32, 2_000_000_000, 1.3, PlanOptions::default());
    assert!(small.report().smallest_budget <= 500_000_000, "{}", small.report().smallest_budget);
}

#[test]
fn a_u_net_on_a_whole_ct_fits_six_gigabytes_without_the_host_and_half_of_one_with_it() {
    let graph = unet();
    let six = plan(&graph, Elem::F16, 6_000_000_000, 1.1, PlanOptions::default());
    assert_eq!((six.report().spilled_bytes, six.report().fetched_bytes), (0, 0));
    let half = plan(&graph, Elem::F16, 500_000_000, 1.2, PlanOptions::default());
    assert!(half.report().smallest_budget <= 300_000_000, "{}", half.report().smallest_budget);
}

#[test]
fn resident_plans_waste_little() {
    let card = |config: &str| architecture(&format!(r#"{{"architecture":"u_transformer","config":{config}}}"#)).expect("the card is one").1;
    let nets = [
        ("u_net", unet(), VOLUME),
        ("u_transformer", card(r#"{"dims":3,"in_channels":1,"classes":14,"channels":[16,32,64,128,256]}"#), Extent::new(64, 96, 96)),
        (
            "u_transformer 2D",
            card(r#"{"dims":2,"in_channels":1,"classes":9,"channels":[64,128,256,512],"profile":"themyr2021"}"#),
            Extent::new(1, 512, 512),
        ),
        (
            "mhca",
            card(r#"{"dims":3,"in_channels":1,"classes":3,"channels":[12,24,48,64],"heads":4,"mhsa":false,"mhca_levels":2}"#),
            Extent::new(96, 96, 96),
        ),
    ];
    for (name, graph, extent) in nets {
        for elem in [Elem::F32, Elem::F16] {
            let plan = Plan::of_graph(&graph, extent, &DeviceCaps::desktop(), &PlanOptions::default().with_precision(elem))
                .expect("there is a plan");
            let ratio = plan.report().activation_bytes as f64 / plan.report().max_live_bytes as f64;
            println!("{name} {}: {ratio:.3}x of the bytes alive", elem.name());
            assert!(ratio <= 1.05, "{name} {}: {ratio}", elem.name());
        }
    }
}

fn pointwise(graph: &mut Graph, name: &str, x: NodeId, [cin, cout]: [u32; 2]) -> NodeId {
    let conv = Conv {
        module: name.into(),
        in_channels: cin,
        out_channels: cout,
        kernel: [1; 3],
        weight_shape: vec![cout as usize, cin as usize],
        ..Conv::default()
    };
    graph.add(name, Op::Conv(conv), &[x])
}

fn attention(graph: &mut Graph, [q, k, v]: [NodeId; 3], channels: u16) -> NodeId {
    let scale = (f32::from(channels) / 8.0).powf(-0.5);
    graph.add("attention", Op::Attention(Attention { heads: 8, scale, ..Attention::default() }), &[q, k, v])
}

/// Self-attention in the bottleneck over 131,072 tokens: stride 8 of 256x512x512, 256 channels, 8 heads.
fn self_attention() -> (Graph, Extent) {
    let mut graph = Graph::default();
    let x = graph.add("input", Op::Input { channels: 256 }, &[]);
    let qkv = ["wq", "wk", "wv"].map(|name| pointwise(&mut graph, name, x, [256; 2]));
    let y = attention(&mut graph, qkv, 256);
    pointwise(&mut graph, "wo", y, [256; 2]);
    (graph, Extent::new(32, 64, 64))
}

/// The gate of a skip of 64 channels at stride 4 by as many tokens at stride 8: values from the skip, queries and keys from
/// the deeper map.
fn cross_attention() -> (Graph, Extent) {
    let mut graph = Graph::default();
    let skip = graph.add("input", Op::Input { channels: 64 }, &[]);
    let pooled = graph.add("pool", Op::max_pool([2; 3]), &[skip]);
    let deep = pointwise(&mut graph, "deep", pooled, [64, 128]);
    let y = pointwise(&mut graph, "conv_y", deep, [128, 64]);
    let s = pointwise(&mut graph, "conv_s", pooled, [64; 2]);
    let qkv = [("wq", y), ("wk", y), ("wv", s)].map(|(name, x)| pointwise(&mut graph, name, x, [64; 2]));
    let z = attention(&mut graph, qkv, 64);
    let z = pointwise(&mut graph, "wo", z, [64; 2]);
    let gate = graph.add("gate", Op::Activation(Activation::Sigmoid), &[z]);
    let gate = graph.add("up", Op::upsample([2; 3]), &[gate]);
    graph.add("gated", Op::Multiply(Combine::default()), &[gate, skip]);
    (graph, Extent::new(64, 128, 128))
}

#[test]
fn full_attention_over_a_whole_map_is_planned_within_half_a_gigabyte() {
    for (name, (graph, extent)) in [("self", self_attention()), ("cross", cross_attention())] {
        let options = PlanOptions::default().with_budget(500_000_000).with_output(organum::OutputMode::Logits);
        let plan = Plan::of_graph(&graph, extent, &DeviceCaps::default(), &options).expect("it fits");
        let r = plan.report();
        println!("{name}-attention, f32: {} bytes, {} spilled, smallest {}", r.peak_bytes, r.spilled_bytes, r.smallest_budget);
        assert!(r.peak_bytes <= 500_000_000);
    }
}

/// 160 MiB of keys, as many of values, and bindings of 128 MiB, which is what WebGPU guarantees.
#[test]
fn keys_that_no_binding_holds_are_planned_in_two_slabs() {
    let (graph, _) = self_attention();
    let plan = Plan::of_graph(&graph, Extent::new(40, 64, 64), &DeviceCaps::default(), &PlanOptions::default()).expect("it fits");
    let depth = plan.report().slab_depths["wk"];
    assert!((20..=32).contains(&depth), "{depth} planes of 4 MiB");
}

#[test]
fn a_whole_u_transformer_at_full_resolution_is_planned_within_four_gigabytes() {
    let card = r#"{"architecture":"u_transformer","config":{"dims":3,"in_channels":1,"classes":14,"channels":[32,64,128,256],
        "mhsa":true,"mhca_levels":1}}"#;
    let graph = architecture(card).expect("the card is one").1;
    plan(&graph, Elem::F16, 4_000_000_000, 1.2, PlanOptions::default());
}
