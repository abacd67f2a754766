//! The attention family as nodes of graphs, run on the host and on a device, and compared with PyTorch.
#![allow(clippy::cast_possible_truncation, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::graph::{Attention, Conv, Deformable, NodeId, RelativeBias};
use crate::kernels::{TokenChannels, WindowShape};
use crate::{DeviceCaps, Engine, Extent, Input, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};

/// A case of `tests/vectors/make_attention.py`.
struct Case<'a> {
    name: &'a str,
    given: &'a Value,
    shapes: &'a BTreeMap<String, Vec<usize>>,
    graph: Graph,
    channels: u32,
}

impl Case<'_> {
    fn number(&self, key: &str) -> u32 {
        self.given[key].as_u64().unwrap_or_else(|| panic!("{}: {key} is a number", self.name)) as u32
    }

    fn along(value: &Value) -> [u32; 3] {
        [0, 1, 2].map(|axis| value[axis].as_u64().expect("three numbers") as u32)
    }

    fn scale(&self) -> f32 {
        ((self.channels / self.number("heads")) as f32).powf(-0.5)
    }

    /// A linear layer with the parameters of the case.
    fn linear(&mut self, name: &str, node: &str, x: NodeId) -> NodeId {
        let module = format!("{}.{name}", self.name);
        let shape = self.shapes[&format!("{module}.weight")].clone();
        let conv = Conv { module, in_channels: shape[1] as u32, out_channels: shape[0] as u32, weight_shape: shape, ..Conv::default() };
        self.graph.add(node, Op::Conv(conv), &[x])
    }

    fn pool(&mut self, kernel: &Value, x: NodeId) -> NodeId {
        let name = format!("pool{}", self.graph.nodes().len());
        self.graph.add(name, Op::max_pool(Self::along(kernel)), &[x])
    }

    fn windows(&self, q_window: &Value, k_window: &Value) -> WindowAttention {
        let (table, index) = (format!("{}.table", self.name), format!("{}.table_index", self.name));
        let c = self.channels;
        let shape = WindowShape {
            heads: self.number("heads"),
            qk_channels: c,
            v_channels: c,
            first: [0, c, 2 * c],
            scale: self.scale(),
            q_window: Self::along(q_window),
            k_window: Self::along(k_window),
            shift: [0; 3],
            tokens: 0,
            token_queries: false,
            bias_rows: self.shapes[&table][0] as u32,
        };
        WindowAttention { shape, bias: Some(RelativeBias { table, index }), padding: None, clipped: false }
    }

    fn build(&mut self, x: NodeId) {
        let (given, c) = (self.given, self.channels);
        let fused = TokenChannels { qk: c, v: c, first: [0, c, 2 * c] };
        match given["kind"].as_str() {
            Some("windows") => {
                let mut op = self.windows(&given["window"], &given["window"]);
                op.padding = Some(format!("{}.qkv.bias", self.name));
                op.shape.shift = Self::along(&given["shift"]);
                op.shape.tokens = self.number("tokens");
                op.shape.token_queries = given["token_queries"] == true;
                let map = self.linear("qkv", "qkv", x);
                let mut inputs = vec![map, map];
                if op.shape.tokens > 0 {
                    let tokens = self.pool(&given["pool"], x);
                    inputs.push(self.linear("qkv", "tokens.qkv", tokens));
                }
                if op.shape.token_queries {
                    inputs[0] = inputs[2];
                    (op.shape.bias_rows, op.bias) = (0, None);
                }
                self.graph.add("attention", Op::WindowAttention(op), &inputs);
            }
            Some("unprojected") => {
                let mut op = self.windows(&given["window"], &given["window"]);
                (op.shape.first, op.padding) = ([0, 0, c], Some(format!("{}.kv.bias", self.name)));
                let kv = self.linear("kv", "kv", x);
                self.graph.add("attention", Op::WindowAttention(op), &[x, kv]);
            }
            Some("upsampling") => {
                let mut op = self.windows(&given["q_window"], &given["k_window"]);
                (op.shape.first, op.padding) = ([0, 0, c], Some(format!("{}.kv.bias", self.name)));
                let low = self.pool(&given["pool"], x);
                let (q, kv) = (self.linear("q", "q", x), self.linear("kv", "kv", low));
                self.graph.add("attention", Op::WindowAttention(op), &[q, kv]);
            }
            Some("tokens") => {
                let pools = given["pools"].as_array().expect("a list").clone();
                let maps: Vec<NodeId> = (0..)
                    .zip(&pools)
                    .map(|(i, kernel)| {
                        let map = self.pool(kernel, x);
                        self.linear("qkv", &format!("qkv{i}"), map)
                    })
                    .collect();
                let mask = given["visited"].as_array().map(|visited| KeyMask {
                    counts: format!("{}.counts", self.name),
                    shape: self.shapes[&format!("{}.counts", self.name)].clone(),
                    visited: visited.iter().map(|v| v.as_u64().expect("a key") as u32).collect(),
                    hidden: -1000.0,
                });
                let op = Attention { heads: self.number("heads"), scale: self.scale(), channels: Some(fused), mask, per_plane: false };
                let mut inputs = vec![maps[0]];
                maps.iter().rev().for_each(|&map| inputs.extend([map, map]));
                self.graph.add("attention", Op::Attention(op), &inputs);
            }
            Some("deformable") => {
                let low = self.pool(&given["pool"], x);
                let own = if self.number("level") == 0 { x } else { low };
                let (offsets, weights) = (self.linear("offsets", "offsets", own), self.linear("weights", "weights", own));
                let values = [self.linear("value0", "value0", x), self.linear("value1", "value1", low)];
                let op = Deformable { heads: self.number("heads"), points: self.number("points") };
                self.graph.add("sampling", Op::Deformable(op), &[offsets, weights, values[0], values[1]]);
            }
            other => panic!("{}: unknown kind {other:?}", self.name),
        }
    }
}

fn vectors() -> (Vec<u8>, Value) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/attention.safetensors");
    let bytes = std::fs::read(path).expect("the vectors are there");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("they are safetensors");
    let cases = header.metadata().as_ref().and_then(|m| m.get("cases")).expect("they have attributes");
    let cases = serde_json::from_str(cases).expect("the attributes are JSON");
    (bytes, cases)
}

#[test]
fn attention_equals_torch() {
    let (bytes, cases) = vectors();
    let engine = pollster::block_on(Engine::request(None)).ok();
    for (name, given) in cases.as_object().expect("cases by name") {
        let weights = Weights::from_bytes(bytes.clone().into()).expect("they are safetensors");
        let shapes: BTreeMap<_, _> = weights.list().into_iter().collect();
        let dims = |tensor: &str| shapes[&format!("{name}.{tensor}")].iter().map(|&n| n as u32).collect::<Vec<_>>();
        let (x, y) = (dims("input"), dims("output"));
        let mut case = Case { name, given, shapes: &shapes, graph: Graph::default(), channels: x[0] };
        let input = case.graph.add("input", Op::Input { channels: x[0] }, &[]);
        case.build(input);
        let raw = case.graph;
        let (graph, applied) = pass::optimise(&raw, &[]);
        for (parameter, shape) in graph.parameters() {
            assert_eq!(shapes.get(&parameter), Some(&shape), "{parameter}");
        }

        let extent = Extent::new(x[1], x[2], x[3]);
        let expected = weights.floats(&format!("{name}.output")).expect("it is there");
        let data: Vec<f32> = weights.floats(&format!("{name}.input")).expect("it is there").iter().map(|&v| v as f32).collect();
        let card = Card::parse(r#"{"architecture": "none", "config": {}}"#).expect("it is a card");
        let model = Model { card, raw, graph, applied, weights: weights.into(), tolerance: Tolerance::default(), onnx: None };
        for (depth, device) in [(1, None), (16, None), (1, engine.as_ref()), (16, engine.as_ref())] {
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
            assert_eq!(outputs[0].map.channels, y[0], "{name}");
            let OutputData::Map(values) = &outputs[0].data else { panic!("asked for a map") };
            let worst = values.iter().zip(&expected).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
            let norm: f64 = expected.iter().map(|b| b * b).sum();
            let error = values.iter().zip(&expected).map(|(&a, &b)| (f64::from(a) - b).powi(2)).sum::<f64>() / norm;
            println!("{name}, {depth} planes, {}: {:.1e}", if device.is_some() { "device" } else { "host" }, error.sqrt());
            assert!(worst < 4e-6 && error.sqrt() < 2e-6, "{name}: differs by {worst:e}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (bytes, cases) = vectors();
    let weights = Weights::from_bytes(bytes.into()).expect("they are safetensors");
    let shapes: BTreeMap<_, _> = weights.list().into_iter().collect();
    let built = |name: &str| {
        let channels = shapes[&format!("{name}.input")][0] as u32;
        let mut case = Case { name, given: &cases[name], shapes: &shapes, graph: Graph::default(), channels };
        let input = case.graph.add("input", Op::Input { channels }, &[]);
        case.build(input);
        case.graph
    };
    /// The last node, changed.
    fn changed(graph: &Graph, change: impl Fn(&mut Op, &mut Vec<NodeId>)) -> Graph {
        let mut new = Graph::default();
        for (i, node) in graph.nodes().iter().enumerate() {
            let (mut op, mut inputs) = (node.op.clone(), node.inputs.clone());
            if i + 1 == graph.nodes().len() {
                change(&mut op, &mut inputs);
            }
            new.add(node.name.clone(), op, &inputs);
        }
        new
    }
    let window = |f: fn(&mut WindowAttention)| {
        move |op: &mut Op, _: &mut Vec<NodeId>| {
            if let Op::WindowAttention(a) = op {
                f(a);
            }
        }
    };
    let extent = Extent::new(4, 4, 6);
    let tokens = built("window_tokens");
    assert!(tokens.infer(extent).is_ok());
    let refused = |graph: Graph, extent: Extent| graph.infer(extent).expect_err("it does not fit");
    let list = [
        changed(&tokens, window(|a| a.shape.heads = 0)),
        changed(&tokens, window(|a| a.shape.heads = 2)),
        changed(&tokens, window(|a| a.shape.k_window = [0, 2, 3])),
        changed(&tokens, window(|a| a.shape.k_window = [u32::MAX; 3])),
        changed(&tokens, window(|a| a.shape.shift = [2, 0, 0])),
        changed(&tokens, window(|a| a.shape.q_window = [2, 2, 6])),
        changed(&tokens, window(|a| a.shape.first = [0, 9, 19])),
        changed(&tokens, window(|a| a.shape.first = [0, u32::MAX, 0])),
        changed(&tokens, window(|a| a.shape.tokens = 2)),
        changed(&tokens, window(|a| a.shape.tokens = 0)),
        changed(&tokens, window(|a| a.shape.token_queries = true)),
        changed(&tokens, window(|a| a.shape.bias_rows = 0)),
        changed(&tokens, |_, inputs| inputs.truncate(2)),
    ];
    for graph in list {
        assert_eq!(refused(graph, extent).node, "attention");
    }
    let masked = built("masked");
    assert!(masked.infer(Extent::new(2, 3, 14)).is_ok());
    assert!(refused(masked, Extent::new(2, 3, 16)).message.contains("mask"));
    let cross = built("cross_window");
    assert!(refused(changed(&cross, |_, inputs| inputs.truncate(4)), Extent::new(2, 4, 8)).message.contains("without values"));
    let sampling = built("fine_queries");
    assert!(refused(changed(&sampling, |_, inputs| inputs.truncate(3)), Extent::new(4, 6, 4)).message.contains("places"));

    // what shapes allow and the shader does not
    let mut wide = Graph::default();
    let x = wide.add("input", Op::Input { channels: 132 }, &[]);
    let mut op = Case { name: "unprojected", given: &cases["unprojected"], shapes: &shapes, graph: Graph::default(), channels: 10 }
        .windows(&cases["unprojected"]["window"], &cases["unprojected"]["window"]);
    (op.shape.heads, op.shape.qk_channels, op.shape.v_channels, op.shape.first) = (1, 132, 132, [0; 3]);
    wide.add("wide", Op::WindowAttention(op), &[x, x]);
    let error = Plan::of_graph(&wide, extent, &DeviceCaps::host(), &PlanOptions::default()).expect_err("too wide a head");
    assert_eq!((error.kind(), error.node()), (PlanErrorKind::Unsupported, Some("wide")));
}

#[test]
fn an_index_must_point_into_its_table() {
    let (bytes, cases) = vectors();
    let weights = Weights::from_bytes(bytes.into()).expect("they are safetensors");
    let shapes: BTreeMap<_, _> = weights.list().into_iter().collect();
    let name = "unprojected";
    let case = Case { name, given: &cases[name], shapes: &shapes, graph: Graph::default(), channels: 10 };
    let mut op = case.windows(&cases[name]["window"], &cases[name]["window"]);
    let card = Card::parse(r#"{"architecture": "none", "config": {}}"#).expect("it is a card");
    let model = Model {
        card,
        raw: Graph::default(),
        graph: Graph::default(),
        applied: Applied::default(),
        weights: weights.into(),
        tolerance: Tolerance::default(),
        onnx: None,
    };
    op.shape.first = [0, 0, 10];
    assert!(model.window_constant(&op).is_ok());
    op.shape.bias_rows = 5;
    assert!(model.window_constant(&op).is_err());
    op.shape.bias_rows = 9;
    op.padding = Some(format!("{name}.kv.bias"));
    assert!(model.window_constant(&op).is_ok());
    op.shape.first = [0, 10, 20];
    assert!(model.window_constant(&op).is_err());
}
