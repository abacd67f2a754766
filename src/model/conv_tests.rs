//! Convolutions with dilation, groups and residual sums, and sums and products of maps, as nodes of graphs: run on the host and on
//! a device, and compared with PyTorch.
#![allow(clippy::cast_possible_truncation, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;

use serde_json::Value;

use super::tests::{compare, vectors};
use super::*;
use crate::graph::{Combine, Conv, NodeId};
use crate::kernels::{Activation, Load, Spread};
use crate::{DeviceCaps, Engine, Extent, Plan, PlanErrorKind, PlanOptions};

/// A case of `tests/vectors/make_conv.py`.
struct Case<'a> {
    name: &'a str,
    given: &'a Value,
    shapes: &'a BTreeMap<String, Vec<usize>>,
    graph: Graph,
}

impl Case<'_> {
    fn along(&self, key: &str) -> [u32; 3] {
        [0, 1, 2].map(|axis| self.given[key][axis].as_u64().expect("three numbers") as u32)
    }

    /// The convolution with these parameters; the case gives its attributes, or it keeps the extent.
    fn conv(&mut self, part: &str, x: NodeId, groups: u32) -> NodeId {
        let module = format!("{}.{part}", self.name);
        let weight_shape = self.shapes[&format!("{module}.weight")].clone();
        let kernel = [2, 3, 4].map(|axis| weight_shape[axis] as u32);
        let block = self.given["block"] == true;
        let conv = Conv {
            in_channels: weight_shape[1] as u32 * groups,
            out_channels: weight_shape[0] as u32,
            kernel,
            stride: if block { [1; 3] } else { self.along("stride") },
            padding: if block { kernel.map(|k| k / 2) } else { self.along("padding") },
            dilation: if block { [1; 3] } else { self.along("dilation") },
            groups,
            bias: self.shapes.contains_key(&format!("{module}.bias")),
            weight_shape,
            module,
            ..Conv::default()
        };
        self.graph.add(part, Op::Conv(conv), &[x])
    }

    fn batch_norm(&mut self, x: NodeId) -> NodeId {
        let module = format!("{}.norm", self.name);
        let channels = self.shapes[&format!("{module}.weight")][0] as u32;
        self.graph.add("norm", Op::BatchNorm(BatchNorm { module, channels, eps: 1e-5 }), &[x])
    }

    fn instance_norm(&mut self, part: &str, x: NodeId) -> NodeId {
        let module = format!("{}.{part}", self.name);
        let channels = self.shapes[&format!("{module}.weight")][0] as u32;
        self.graph.add(part, Op::Norm(Norm { module: Some(module), channels, groups: channels, eps: 1e-5, per_plane: false }), &[x])
    }

    fn layers(&mut self, x: NodeId) {
        let groups = self.given["groups"].as_u64().expect("a number") as u32;
        let mut y = self.conv("conv", x, groups);
        if self.given["norm"] == true {
            y = self.batch_norm(y);
        }
        if self.given["relu"] == true {
            self.graph.add("relu", Op::Activation(Activation::Relu), &[y]);
        }
    }

    /// Two branches and their sum or product.
    fn block(&mut self, x: NodeId, extent: [u32; 3]) {
        let has = |part: &str| self.shapes.contains_key(&format!("{}.{part}.weight", self.name));
        let (norm, running) = (has("norm"), self.shapes.contains_key(&format!("{}.norm.running_var", self.name)));
        let (other, other_norm) = (has("other"), has("other_norm"));
        let mut y = self.conv("conv", x, 1);
        if norm {
            y = if running { self.batch_norm(y) } else { self.instance_norm("norm", y) };
        }
        let spread = match self.name {
            name if name.ends_with("over_channels") => Spread::Channels,
            name if name.ends_with("over_voxels") => Spread::Voxels,
            _ => Spread::Nothing,
        };
        let mut second = match spread {
            Spread::Voxels => self.graph.add("peak", Op::max_pool(extent), &[x]),
            _ if other => self.conv("other", x, 1),
            _ => x,
        };
        if other_norm {
            second = self.instance_norm("other_norm", second);
        }
        let combine = Combine { spread, ..Combine::default() };
        if self.name.starts_with("multiply") {
            let gate = self.graph.add("gate", Op::Activation(Activation::Sigmoid), &[second]);
            self.graph.add("product", Op::Multiply(combine), &[y, gate]);
        } else {
            let sum = self.graph.add("sum", Op::Add(combine), &[y, second]);
            self.graph.add("activation", Op::Activation(Activation::LeakyRelu { slope: 0.1 }), &[sum]);
        }
    }
}

#[test]
fn convolutions_and_sums_equal_torch() {
    let (bytes, cases) = vectors("conv");
    let engine = pollster::block_on(Engine::request(None)).ok();
    for (name, given) in cases.as_object().expect("cases by name") {
        let weights = Weights::from_bytes(bytes.clone().into()).expect("they are safetensors");
        let shapes: BTreeMap<_, _> = weights.list().into_iter().collect();
        let x: Vec<u32> = shapes[&format!("{name}.input")].iter().map(|&n| n as u32).collect();
        let mut case = Case { name, given, shapes: &shapes, graph: Graph::default() };
        let input = case.graph.add("input", Op::Input { channels: x[0] }, &[]);
        if given["block"] == true {
            case.block(input, [x[1], x[2], x[3]]);
        } else {
            case.layers(input);
        }
        let (graph, applied) = pass::optimise(&case.graph, &[]);
        for (parameter, shape) in graph.parameters() {
            assert_eq!(shapes.get(&parameter), Some(&shape), "{parameter}");
        }
        // a sum of norms stays, but reads them as it loads
        assert_eq!(applied.adds_fused, usize::from(name.starts_with("residual")), "{name}");
        if name.starts_with("add_norm") {
            let op = &graph.node(graph.output()).op;
            assert!(matches!(op, Op::Add(c) if c.loads[0] != Load::default() && c.activation != Activation::None), "{name}: {op}");
        }
        let kernels = if engine.is_some() { "host and device" } else { "host" };
        println!("{name} on {kernels}: {:.1e}", compare(name, weights, graph, applied, engine.as_ref()));
    }
}

#[test]
fn what_no_kernel_does_is_named() {
    let conv = Conv { in_channels: 4, out_channels: 4, groups: 2, weight_shape: vec![4, 2, 1, 1, 1], ..Conv::default() };
    let residual = Conv { residual: true, ..conv.clone() };
    let concat = Conv { in_channels: 8, ..conv.clone() };
    let through = Conv { through: [Some(crate::graph::Resize::aligned([1; 3])), None], ..conv };
    for (conv, inputs) in [(residual, 2), (concat, 2), (through, 1)] {
        let mut graph = Graph::default();
        let x = graph.add("input", Op::Input { channels: 4 }, &[]);
        graph.add("bad", Op::Conv(conv), &vec![x; inputs]);
        let e = Plan::of_graph(&graph, Extent::new(2, 3, 4), &DeviceCaps::host(), &PlanOptions::default()).expect_err("no kernel does it");
        assert_eq!((e.kind(), e.node()), (PlanErrorKind::Unsupported, Some("bad")), "{e}");
    }
}

#[test]
fn shapes_that_do_not_meet_are_named() {
    let plain = Conv { in_channels: 4, out_channels: 4, kernel: [3; 3], padding: [1; 3], ..Conv::default() };
    let conv = |c: Conv| Op::Conv(c);
    let spread = |spread| Op::Add(Combine { spread, ..Combine::default() });
    let cases = [
        (conv(Conv { groups: 0, ..plain.clone() }), vec![0]),
        (conv(Conv { groups: 3, ..plain.clone() }), vec![0]),
        (conv(Conv { dilation: [0, 1, 1], ..plain.clone() }), vec![0]),
        (conv(Conv { dilation: [1, 1, 9], ..plain.clone() }), vec![0]),
        (conv(Conv { dilation: [u32::MAX; 3], ..plain.clone() }), vec![0]),
        (conv(Conv { residual: true, ..plain.clone() }), vec![0]),
        (conv(Conv { residual: true, ..plain.clone() }), vec![0, 1]),
        (conv(Conv { residual: true, stride: [2; 3], ..plain }), vec![0, 0]),
        (spread(Spread::Nothing), vec![0, 1]),
        (spread(Spread::Channels), vec![0, 0]),
        (spread(Spread::Voxels), vec![0, 1]),
        (spread(Spread::Nothing), vec![0, 0, 0]),
        (Op::Multiply(Combine { spread: Spread::Voxels, ..Combine::default() }), vec![0, 0]),
    ];
    for (op, inputs) in cases {
        let mut graph = Graph::default();
        let x = graph.add("input", Op::Input { channels: 4 }, &[]);
        let one = graph.add("one", Op::Conv(Conv { in_channels: 4, out_channels: 1, ..Conv::default() }), &[x]);
        let text = op.to_string();
        graph.add("bad", op, &inputs.iter().map(|&i| [x, one][i]).collect::<Vec<_>>());
        let e = graph.infer(Extent::new(4, 5, 6)).expect_err(&text);
        assert_eq!(e.node, "bad", "{text}: {e}");
    }
}
