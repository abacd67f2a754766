//! Graphs with weights, run on the host and compared with PyTorch.
#![allow(clippy::cast_possible_truncation, reason = "tests")]

use serde_json::Value;

use super::*;
use crate::graph::Op;
use crate::kernels::Activation;
use crate::{DeviceCaps, Extent, Input, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};

/// Tensors as `tests/vectors/make.py` wrote them, and the attributes of its cases.
fn vectors() -> (Vec<u8>, Value) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/conv_transpose.safetensors");
    let bytes = std::fs::read(path).expect("the vectors are there");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("they are safetensors");
    let cases = header.metadata().as_ref().and_then(|m| m.get("cases")).expect("they have attributes");
    let cases = serde_json::from_str(cases).expect("the attributes are JSON");
    (bytes, cases)
}

#[test]
fn transposed_convolutions_equal_torch() {
    let (bytes, cases) = vectors();
    for (name, case) in cases.as_object().expect("cases by name") {
        let weights = Weights::from_bytes(bytes.clone().into()).expect("they are safetensors");
        let shapes: std::collections::BTreeMap<_, _> = weights.list().into_iter().collect();
        let dims = |tensor: &str| shapes[&format!("{name}.{tensor}")].iter().map(|&n| n as u32).collect::<Vec<_>>();
        let along = |key: &str| [0, 1, 2].map(|axis| case[key][axis].as_u64().expect("three numbers") as u32);
        let (x, y) = (dims("input"), dims("output"));
        let conv = ConvTranspose {
            module: format!("{name}.conv"),
            in_channels: x[0],
            out_channels: y[0],
            kernel: along("kernel"),
            stride: along("stride"),
            padding: along("padding"),
            output_padding: along("output_padding"),
            bias: case["bias"] == true,
            weight_shape: shapes[&format!("{name}.conv.weight")].clone(),
            ..ConvTranspose::default()
        };
        let mut graph = Graph::default();
        let input = graph.add("input", Op::Input { channels: x[0] }, &[]);
        let up = graph.add("conv", Op::ConvTranspose(conv), &[input]);
        if case["norm"] == true {
            let norm = BatchNorm { module: format!("{name}.norm"), channels: y[0], eps: 1e-5 };
            let norm = graph.add("norm", Op::BatchNorm(norm), &[up]);
            graph.add("relu", Op::Activation(Activation::Relu), &[norm]);
        }
        let (graph, applied) = pass::optimise(&graph, &[]);
        for (parameter, shape) in graph.parameters() {
            assert_eq!(shapes.get(&parameter), Some(&shape), "{parameter}");
        }

        let extent = Extent::new(x[1], x[2], x[3]);
        let expected = weights.floats(&format!("{name}.output")).expect("it is there");
        let data: Vec<f32> = weights.floats(&format!("{name}.input")).expect("it is there").iter().map(|&v| v as f32).collect();
        let card = Card::parse(r#"{"architecture": "none", "config": {}}"#).expect("it is a card");
        let model = Model { card, graph, applied, weights };
        for depth in [1, 16] {
            let options = PlanOptions::default().with_output(OutputMode::Logits).with_slab_depth(depth);
            let plan = Plan::of_graph(&model.graph, extent, &DeviceCaps::host(), &options).expect("there is a plan");
            let mut session = Session::on_host(&model, plan).expect("the weights are those of the plan");
            let outputs = session.run_blocking(Input { channels: x[0], extent, data: &data }, RunOptions::default()).expect("it runs");
            assert_eq!(outputs[0].map.extent, Extent::new(y[1], y[2], y[3]), "{name}");
            let OutputData::Map(values) = &outputs[0].data else { panic!("asked for a map") };
            let worst = values.iter().zip(&expected).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
            assert!(worst < 2e-6, "{name}: differs by {worst:e}");
        }
    }
}
