//! Graphs with weights, run on the host and compared with PyTorch.
#![allow(clippy::cast_possible_truncation, reason = "tests")]

use serde_json::Value;

use super::*;
use crate::graph::{ConvTranspose, Norm, Op};
use crate::kernels::Activation;
use crate::{DeviceCaps, Elem, Engine, Extent, Input, OutputData, OutputMode, Plan, PlanErrorKind, PlanOptions, RunOptions, Session};

/// Tensors as the scripts in `tests/vectors` wrote them, and the attributes of their cases.
pub(super) fn vectors(file: &str) -> (Vec<u8>, Value) {
    let path = format!("{}/tests/vectors/{file}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).expect("the vectors are there");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("they are safetensors");
    let cases = header.metadata().as_ref().and_then(|m| m.get("cases")).expect("they have attributes");
    let cases = serde_json::from_str(cases).expect("the attributes are JSON");
    (bytes, cases)
}

#[test]
fn transposed_convolutions_equal_torch() {
    let (bytes, cases) = vectors("conv_transpose");
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

        compare(name, weights, graph, applied, None);
    }
}

#[test]
fn norms_and_activations_equal_torch() {
    let (bytes, cases) = vectors("norm");
    for (name, case) in cases.as_object().expect("cases by name") {
        let weights = Weights::from_bytes(bytes.clone().into()).expect("they are safetensors");
        let channels = weights.list().iter().find(|(n, _)| *n == format!("{name}.input")).expect("it is there").1[0] as u32;
        let (module, eps) = (format!("{name}.norm"), case["eps"].as_f64().expect("a number"));
        let op = if case["norm"] == "batch" {
            Op::BatchNorm(BatchNorm { module, channels, eps })
        } else {
            let groups = case["groups"].as_u64().expect("a number") as u32;
            Op::Norm(Norm {
                module: (case["affine"] == true).then_some(module),
                channels,
                groups,
                eps,
                per_plane: case["per_plane"] == true,
            })
        };
        let slope = case["slope"].as_f64().expect("a number") as f32;
        let activation = match case["activation"].as_str().expect("a name") {
            "none" => Activation::None,
            "relu" => Activation::Relu,
            "leaky_relu" => Activation::LeakyRelu { slope },
            "elu" => Activation::Elu { alpha: slope },
            "gelu" => Activation::Gelu,
            "sigmoid" => Activation::Sigmoid,
            other => panic!("{other}"),
        };
        let mut graph = Graph::default();
        let input = graph.add("input", Op::Input { channels }, &[]);
        let y = graph.add("norm", op, &[input]);
        graph.add("activation", Op::Activation(activation), &[y]);
        let (graph, applied) = pass::optimise(&graph, &[]);
        compare(name, weights, graph, applied, None);
    }
}

/// Runs a graph, whole and in slabs, on the host and on a device if there is one, on `{name}.input`, and compares with
/// `{name}.output`; the largest difference.
pub(super) fn compare(name: &str, weights: Weights, graph: Graph, applied: Applied, engine: Option<&Engine>) -> f64 {
    let shapes: std::collections::BTreeMap<_, _> = weights.list().into_iter().collect();
    let dims = |tensor: &str| shapes[&format!("{name}.{tensor}")].iter().map(|&n| n as u32).collect::<Vec<_>>();
    let (x, y) = (dims("input"), dims("output"));
    let extent = Extent::new(x[1], x[2], x[3]);
    let expected = weights.floats(&format!("{name}.output")).expect("it is there");
    let data: Vec<f32> = weights.floats(&format!("{name}.input")).expect("it is there").iter().map(|&v| v as f32).collect();
    let card = Card::parse(r#"{"architecture": "none", "config": {}}"#).expect("it is a card");
    let model = Model { card, raw: graph.clone(), graph, applied, weights: weights.into(), tolerance: Tolerance::default(), onnx: None };
    let (mut most, mut whole): (f64, Vec<f32>) = (0.0, Vec::new());
    let runs = [None, engine].into_iter().take(1 + usize::from(engine.is_some())).flat_map(|on| [(16, on), (1, on)]);
    for (depth, device) in runs {
        let options = PlanOptions::default().with_output(OutputMode::Logits).with_slab_depth(depth);
        let caps = device.map_or_else(DeviceCaps::host, |engine| engine.caps().clone());
        let plan = Plan::of_graph(&model.graph, extent, &caps, &options).expect("there is a plan");
        let mut session = match device {
            None => Session::on_host(&model, plan),
            Some(engine) => pollster::block_on(Session::new(engine, &model, plan)),
        }
        .expect("the weights are those of the plan");
        let outputs = session.run_blocking(Input { channels: x[0], extent, data: &data }, RunOptions::default()).expect("it runs");
        assert_eq!(outputs[0].map.extent, Extent::new(y[1], y[2], y[3]), "{name}");
        let OutputData::Map(values) = &outputs[0].data else { panic!("asked for a map") };
        let worst = values.iter().zip(&expected).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
        assert!(worst < if device.is_some() { 4e-6 } else { 2e-6 }, "{name}: differs by {worst:e}");
        assert!(depth > 1 || *values == whole, "{name}: other bits in slabs");
        whole.clone_from(values);
        most = most.max(worst);
    }
    most
}

#[test]
fn statistics_leave_the_device_in_f32() {
    let mut graph = Graph::default();
    let input = graph.add("input", Op::Input { channels: 3 }, &[]);
    graph.add("norm", Op::Norm(Norm { module: None, channels: 3, groups: 3, eps: 0.0, per_plane: false }), &[input]);
    let (graph, applied) = pass::optimise(&graph, &[]);
    let bytes = weights::random(r#"{"architecture": "none", "config": {}}"#, &[], 1).expect("it is a file");
    let weights = Weights::from_bytes(bytes.into()).expect("it is one");
    let card = Card::parse(r#"{"architecture": "none", "config": {}}"#).expect("it is a card");
    let model = Model { card, raw: graph.clone(), graph, applied, weights: weights.into(), tolerance: Tolerance::default(), onnx: None };
    let extent = Extent::new(2, 10, 5);
    // 100 voxels a channel, 1 to 100 beyond what f16 tells from its neighbours
    let data: Vec<f32> = (0..300u16).map(|i| f32::from(i % 100 + 1)).collect();
    for (precision, tap) in [(Elem::F32, "norm.scale"), (Elem::F16, "norm.scale"), (Elem::F16, "norm.plane_statistics")] {
        let options = PlanOptions::default().with_precision(precision).with_tap(tap);
        let plan =
            Plan::of_graph(&model.graph, extent, &DeviceCaps { f16: true, ..DeviceCaps::host() }, &options).expect("there is a plan");
        let mut session = Session::on_host(&model, plan).expect("there are no weights");
        let outputs = session.run_blocking(Input { channels: 3, extent, data: &data }, RunOptions::default()).expect("it runs");
        let OutputData::Map(values) = &outputs[1].data else { panic!("asked for a map") };
        assert_eq!(outputs[1].map.channels, 8);
        if tap == "norm.scale" {
            let scale = (9999.0f64 / 12.0).sqrt().recip();
            assert!((f64::from(values[0]) - scale).abs() < 1e-8 && (f64::from(values[4]) + 50.5 * scale).abs() < 1e-6, "{values:?}");
        } else {
            assert_eq!([values[0], values[1], values[8], values[9]], [25.5, 75.5, 208.25, 208.25]);
        }
    }
}

/// A value that its readers normalise as they load is stored where it is tapped.
#[test]
fn a_tap_stores_what_a_pass_took_away() {
    let card = r#"{"architecture": "plain_conv_unet", "config": {"dims": 3, "in_channels": 1, "classes": 3, "features": [5, 6],
        "kernels": [[3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [2, 2, 2]], "convs_per_stage": 1}}"#;
    let model = Model::random(card, 9).expect("the card is one");
    let extent = Extent::new(6, 8, 10);
    let voxels = extent.voxels() as usize;
    let data: Vec<f32> = (0..voxels).map(|i| (i as f32 * 0.7).sin()).collect();
    let run = |options: &PlanOptions| {
        let plan = Plan::new(&model, extent, &DeviceCaps::host(), options).expect("there is a plan");
        let mut session = Session::on_host(&model, plan).expect("the weights are those of the plan");
        let outputs = session.run_blocking(Input { channels: 1, extent, data: &data }, RunOptions::default()).expect("it runs");
        let values = outputs.into_iter().map(|o| match o.data {
            OutputData::Map(values) => values,
            OutputData::Labels(_) => panic!("asked for logits"),
        });
        values.collect::<Vec<_>>()
    };
    let tap = "encoder.stages.0.0.convs.0";
    assert_eq!(model.graph().find(tap), None);
    let options = PlanOptions::default().with_output(OutputMode::Logits);
    let (expected, tapped) = (run(&options), run(&options.clone().with_tap(tap)));
    let worst = expected[0].iter().zip(&tapped[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-5, "the logits differ by {worst:e}");
    // instance norm, then a leaky ReLU of slope 0.01: undone, the mean of each channel is its beta
    let beta = model.weights().floats(&format!("{tap}.norm.bias")).expect("it is there");
    for (values, beta) in tapped[1].chunks_exact(voxels).zip(beta) {
        let mean = values.iter().map(|&v| f64::from(if v < 0.0 { v / 0.01 } else { v })).sum::<f64>() / voxels as f64;
        assert!((mean - beta).abs() < 1e-5, "{mean} for {beta}");
    }
    let missing = Plan::new(&model, extent, &DeviceCaps::host(), &options.with_tap("nobody")).expect_err("there is no such node");
    assert_eq!(missing.kind(), PlanErrorKind::Unsupported);
}

#[test]
fn a_norm_of_other_channels_is_named_also_when_taken_apart() {
    let mut graph = Graph::default();
    let input = graph.add("input", Op::Input { channels: 3 }, &[]);
    // padded to as many as the map's
    graph.add("norm", Op::Norm(Norm { module: None, channels: 4, groups: 4, eps: 0.0, per_plane: false }), &[input]);
    let graph = pass::optimise(&graph, &[]).0;
    let e = Plan::of_graph(&graph, Extent::new(2, 10, 5), &DeviceCaps::host(), &PlanOptions::default()).expect_err("it cannot be");
    assert_eq!((e.kind(), e.node()), (PlanErrorKind::Extent, Some("norm.scale")));
}

#[test]
fn a_model_knows_what_its_network_takes() {
    let card = r#"{"architecture":"unet2d","config":{"base":2,"classes":3}}"#;
    let model = Model::random(card, 1).expect("it is one");
    let facts = model.facts();
    assert_eq!((facts.dims, facts.in_channels, facts.classes, facts.least), (2, model.card().in_channels(), 3, model.card().least()));
    assert_eq!(model.card().facts().expect("it was built"), facts);
    // of a card that is changed the network is built again
    let mut card = model.card().clone();
    card.config["classes"] = 5.into();
    assert_eq!(card.facts().expect("it is one").classes, 5);
    card.architecture = "unknown".into();
    let e = card.facts().expect_err("there is none");
    assert_eq!(e.kind(), LoadErrorKind::UnknownArchitecture);
    let e = crate::plan::check_extent(Extent::new(1, 16, 16), &card).expect_err("there is none");
    assert!(e.to_string().contains("describes no network") && e.to_string().contains("unknown"), "{e}");
}
