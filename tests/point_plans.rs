//! Plans of graphs with layer norm, PReLU and softmax: every plane that is read is where it is read, whatever the slabs and the
//! budget.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

#[path = "support/checker.rs"]
mod checker;

use organum::Extent;
use organum::graph::{Conv, Graph, NodeId, Norm, Op, pass};
use organum::kernels::Activation;

const C: u32 = 6;
const EXTENT: Extent = Extent::new(10, 4, 6);

fn conv(graph: &mut Graph, name: &str, x: NodeId, [cin, cout]: [u32; 2]) -> NodeId {
    let conv = Conv {
        module: name.into(),
        in_channels: cin,
        out_channels: cout,
        kernel: [3; 3],
        padding: [1; 3],
        weight_shape: [cout, cin, 3, 3, 3].map(|n| n as usize).to_vec(),
        ..Conv::default()
    };
    graph.add(name, Op::Conv(conv), &[x])
}

/// Two convolutions with operations between them, then softmax.
fn between(ops: &[Op]) -> Graph {
    let mut graph = Graph::default();
    let x = graph.add("input", Op::Input { channels: 1 }, &[]);
    let mut x = conv(&mut graph, "first", x, [1, C]);
    for (i, op) in ops.iter().enumerate() {
        x = graph.add(format!("between{i}"), op.clone(), &[x]);
    }
    let x = conv(&mut graph, "last", x, [C, 3]);
    graph.add("softmax", Op::Softmax, &[x]);
    graph
}

#[test]
fn plans_of_point_operations_read_what_is_there() {
    let norm = |per_plane| Op::Norm(Norm { module: Some("norm".into()), channels: C, groups: C, eps: 1e-5, per_plane });
    let prelu = |channels| Op::PRelu { module: "slopes".into(), channels };
    let (before, after) = (Activation::None, Activation::None);
    let layer_norm = Op::LayerNorm { module: Some("norm".into()), channels: C, eps: 1e-5, before, after };
    let gelu = Op::Activation(Activation::Gelu);
    let graphs = [
        ("layer norm", between(std::slice::from_ref(&layer_norm))),
        ("activations around a layer norm", between(&[prelu(1), gelu.clone(), layer_norm, gelu])),
        ("one slope", between(&[prelu(1)])),
        ("slopes after a norm", between(&[norm(false), prelu(C)])),
        ("slopes after a norm of planes", between(&[norm(true), prelu(C)])),
    ];
    for (name, graph) in &graphs {
        let (graph, _) = pass::optimise(graph, &[]);
        checker::check_every_way(name, &graph, EXTENT);
    }
}
