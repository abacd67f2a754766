//! What is computed voxel by voxel as nodes of graphs, run on the host and on a device, and compared with PyTorch; weights of
//! tiles, compared with SciPy.
#![allow(clippy::cast_possible_truncation, clippy::print_stdout, reason = "tests")]

use serde_json::Value;

use super::tests::vectors;
use super::*;
use crate::kernels::Activation;
use crate::tiling::{Blend, TileWeights};
use crate::{DeviceCaps, Engine, Extent, Input, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};

fn activation(value: &Value) -> Activation {
    match value.as_str().expect("a name") {
        "none" => Activation::None,
        "relu" => Activation::Relu,
        "gelu" => Activation::Gelu,
        other => panic!("{other}"),
    }
}

/// The operations of a case, each in a node of its own.
fn graph(name: &str, case: &Value, channels: u32) -> Graph {
    let mut graph = Graph::default();
    let mut y = graph.add("input", Op::Input { channels }, &[]);
    match case["kind"].as_str().expect("a name") {
        "layer_norm" => {
            let norm = Op::LayerNorm {
                module: (case["affine"] == true).then(|| format!("{name}.norm")),
                channels,
                eps: case["eps"].as_f64().expect("a number"),
                before: Activation::None,
                after: Activation::None,
            };
            y = graph.add("before", Op::Activation(activation(&case["before"])), &[y]);
            y = graph.add("norm", norm, &[y]);
            graph.add("after", Op::Activation(activation(&case["after"])), &[y]);
        }
        "prelu" => {
            if case["norm"] == true {
                let module = Some(format!("{name}.norm"));
                let per_plane = case["per_plane"] == true;
                y = graph.add("norm", Op::Norm(Norm { module, channels, groups: channels, eps: 1e-5, per_plane }), &[y]);
            }
            let slopes = case["slopes"].as_u64().expect("a number") as u32;
            graph.add("prelu", Op::PRelu { module: format!("{name}.prelu"), channels: slopes }, &[y]);
        }
        "softmax" => {
            graph.add("softmax", Op::Softmax, &[y]);
        }
        other => panic!("{other}"),
    }
    graph
}

#[test]
fn layer_norms_prelus_and_softmax_equal_torch() {
    let (bytes, cases) = vectors("point");
    let engine = pollster::block_on(Engine::request(None)).ok();
    for (name, case) in cases.as_object().expect("cases by name") {
        let weights = Weights::from_bytes(bytes.clone().into()).expect("they are safetensors");
        let shapes: std::collections::BTreeMap<_, _> = weights.list().into_iter().collect();
        let x: Vec<u32> = shapes[&format!("{name}.input")].iter().map(|&n| n as u32).collect();
        let extent = Extent::new(x[1], x[2], x[3]);
        let raw = graph(name, case, x[0]);
        for (parameter, shape) in raw.parameters() {
            assert_eq!(shapes.get(&parameter), Some(&shape), "{parameter}");
        }
        let floats = |part: &str| weights.floats(&format!("{name}.{part}")).expect("it is there");
        let data: Vec<f32> = floats("input").iter().map(|&v| v as f32).collect();
        let expected = floats("output");
        // fused and not
        for (graph, applied) in [pass::optimise(&raw, &[]), pass::optimise(&raw, &raw.ids().collect::<Vec<_>>())] {
            let card = Card::parse(r#"{"architecture": "none", "config": {}}"#).expect("it is a card");
            let weights = Weights::from_bytes(bytes.clone().into()).expect("they are safetensors");
            let nodes = graph.nodes().len();
            let model =
                Model { card, raw: raw.clone(), graph, applied, weights: weights.into(), tolerance: Tolerance::default(), onnx: None };
            for (depth, device) in [(1, None), (16, None), (1, engine.as_ref()), (16, engine.as_ref())] {
                let caps = device.map_or_else(DeviceCaps::host, |engine| engine.caps().clone());
                let options = PlanOptions::default().with_output(OutputMode::Logits).with_slab_depth(depth);
                let plan = Plan::of_graph(&model.graph, extent, &caps, &options).expect("there is a plan");
                let mut session = match device {
                    None => Session::on_host(&model, plan).expect("the weights are those of the plan"),
                    Some(engine) => pollster::block_on(Session::new(engine, &model, plan)).expect("the device takes it"),
                };
                let outputs = session.run_blocking(Input { channels: x[0], extent, data: &data }, RunOptions::default()).expect("it runs");
                let OutputData::Map(values) = &outputs[0].data else { panic!("asked for a map") };
                assert_eq!(values.len(), expected.len(), "{name}");
                let worst = values.iter().zip(&expected).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
                let place = if device.is_some() { "device" } else { "host" };
                println!("{name} in {nodes} nodes on the {place}, slabs of {depth}: differs by {worst:.1e}");
                assert!(worst < 3e-6, "{name} on the {place}: differs by {worst:e}");
            }
        }
    }
}

#[test]
fn weights_of_tiles_equal_scipy() {
    let weights = Weights::from_bytes(vectors("point").0.into()).expect("they are safetensors");
    let shapes: std::collections::BTreeMap<_, _> = weights.list().into_iter().collect();
    for (kind, blend, relative) in [("nnunet", Blend::NnUnet, 2e-7), ("nnunet_half", Blend::NnUnetHalf, 0.0), ("monai", Blend::Monai, 2e-7)]
    {
        let shape = &shapes[&format!("weights.{kind}")];
        let expected = weights.floats(&format!("weights.{kind}")).expect("it is there");
        let own = TileWeights::new(blend, Extent::new(shape[0] as u32, shape[1] as u32, shape[2] as u32));
        let at = |i: usize| f64::from(own.at(i / (shape[1] * shape[2]), i / shape[2] % shape[1], i % shape[2]));
        let worst = expected.iter().enumerate().map(|(i, &w)| (at(i) / w - 1.0).abs()).fold(0.0, f64::max);
        println!("{kind}: differs by {worst:.1e} of a weight");
        assert!(worst <= relative, "{kind}: differs by {worst:e}");
    }
}

#[test]
fn what_does_not_suit_its_map_is_named() {
    let extent = Extent::new(2, 3, 4);
    let norm = |channels, eps| Op::LayerNorm { module: None, channels, eps, before: Activation::None, after: Activation::None };
    let prelu = |channels| Op::PRelu { module: "slopes".into(), channels };
    let refused = |op: Op, inputs: usize| {
        let mut graph = Graph::default();
        let x = graph.add("input", Op::Input { channels: 3 }, &[]);
        graph.add("bad", op, &vec![x; inputs]);
        graph.infer(extent).is_err_and(|e| e.node == "bad")
    };
    assert!(!refused(norm(3, 1e-5), 1) && !refused(prelu(1), 1) && !refused(prelu(3), 1) && !refused(Op::Softmax, 1));
    assert!(refused(norm(4, 1e-5), 1) && refused(norm(3, f64::NAN), 1) && refused(norm(3, -1.0), 1) && refused(norm(3, 1e-5), 2));
    assert!(refused(prelu(2), 1) && refused(prelu(3), 2) && refused(prelu(0), 1) && refused(Op::Softmax, 2));
}
