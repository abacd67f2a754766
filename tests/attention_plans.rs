//! Plans of graphs with attention in windows, between tokens, and with deformable sampling: every plane that is read is
//! where it is read, whatever the slabs and the budget.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

#[path = "support/checker.rs"]
mod checker;

use organum::Extent;
use organum::graph::{Attention, Conv, Deformable, Graph, KeyMask, NodeId, Op, RelativeBias, WindowAttention};
use organum::kernels::{TokenChannels, WindowShape};

const C: u32 = 4;
const EXTENT: Extent = Extent::new(10, 4, 6);

fn conv(graph: &mut Graph, name: &str, x: NodeId, [cin, cout]: [u32; 2], k: u32) -> NodeId {
    let conv = Conv {
        module: name.into(),
        in_channels: cin,
        out_channels: cout,
        kernel: [k; 3],
        padding: [k / 2; 3],
        weight_shape: [cout, cin, k, k, k].map(|n| n as usize).to_vec(),
        ..Conv::default()
    };
    graph.add(name, Op::Conv(conv), &[x])
}

/// The input after a convolution over planes.
fn begin() -> (Graph, NodeId) {
    let mut graph = Graph::default();
    let x = graph.add("input", Op::Input { channels: 1 }, &[]);
    let x = conv(&mut graph, "first", x, [1, C], 3);
    (graph, x)
}

fn end(mut graph: Graph, x: NodeId) -> Graph {
    conv(&mut graph, "last", x, [C, 2], 3);
    graph
}

fn pool(graph: &mut Graph, name: &str, x: NodeId, kernel: [u32; 3]) -> NodeId {
    graph.add(name, Op::max_pool(kernel), &[x])
}

fn op(window: [u32; 3], shift: [u32; 3], tokens: u32) -> WindowAttention {
    let shape = WindowShape {
        heads: 2,
        qk_channels: C,
        v_channels: C,
        first: [0, C, 2 * C],
        scale: 0.5,
        q_window: window,
        k_window: window,
        shift,
        tokens,
        token_queries: false,
        bias_rows: 7,
    };
    let bias = RelativeBias { table: "table".into(), index: "table_index".into() };
    WindowAttention { shape, bias: Some(bias), padding: Some("qkv.bias".into()), clipped: false }
}

/// Windows of a fused projection, with window tokens as further keys or without.
fn windows(window: [u32; 3], shift: [u32; 3], tokens: Option<[u32; 3]>) -> Graph {
    let (mut g, x) = begin();
    let map = conv(&mut g, "qkv", x, [C, 3 * C], 1);
    let mut inputs = vec![map, map];
    if let Some(kernel) = tokens {
        let tokens = pool(&mut g, "pool", x, kernel);
        inputs.push(conv(&mut g, "tokens.qkv", tokens, [C, 3 * C], 1));
    }
    let y = g.add("windows", Op::WindowAttention(op(window, shift, u32::from(tokens.is_some()))), &inputs);
    end(g, y)
}

fn token_queries(window: [u32; 3], shift: [u32; 3]) -> Graph {
    let (mut g, x) = begin();
    let map = conv(&mut g, "qkv", x, [C, 3 * C], 1);
    let tokens = pool(&mut g, "pool", x, window);
    let tokens = conv(&mut g, "tokens.qkv", tokens, [C, 3 * C], 1);
    let mut op = op(window, shift, 1);
    (op.shape.token_queries, op.shape.bias_rows, op.bias) = (true, 0, None);
    let y = g.add("windows", Op::WindowAttention(op), &[tokens, map, tokens]);
    end(g, y)
}

fn upsampling() -> Graph {
    let (mut g, x) = begin();
    let low = pool(&mut g, "pool", x, [2, 2, 2]);
    let kv = conv(&mut g, "kv", low, [C, 2 * C], 1);
    let mut op = op([2, 2, 3], [0; 3], 0);
    (op.shape.q_window, op.shape.first) = ([4, 4, 6], [0, 0, C]);
    let y = g.add("windows", Op::WindowAttention(op), &[x, kv]);
    end(g, y)
}

fn tokens(masked: bool) -> Graph {
    let (mut g, x) = begin();
    let qkv = conv(&mut g, "qkv", x, [C, 3 * C], 1);
    let low = pool(&mut g, "pool", x, [2, 4, 3]);
    let low = conv(&mut g, "low.qkv", low, [C, 3 * C], 1);
    let keys = EXTENT.voxels() as usize + 10;
    let mask = masked.then(|| KeyMask { counts: "counts".into(), shape: vec![keys], visited: [1].into(), hidden: -1000.0 });
    let channels = Some(TokenChannels { qk: C, v: C, first: [0, C, 2 * C] });
    let op = Attention { heads: 2, scale: 0.5, channels, mask, ..Attention::default() };
    let y = g.add("tokens", Op::Attention(op), &[qkv, low, low, qkv, qkv]);
    end(g, y)
}

fn sampling() -> Graph {
    let (mut g, x) = begin();
    let low = pool(&mut g, "pool", x, [2, 2, 2]);
    let places = 2 * 3 * 2;
    let offsets = conv(&mut g, "offsets", x, [C, 3 * places], 1);
    let weights = conv(&mut g, "weights", x, [C, places], 1);
    let y = g.add("sampling", Op::Deformable(Deformable { heads: 2, points: 3 }), &[offsets, weights, x, low]);
    end(g, y)
}

#[test]
fn plans_of_attention_read_what_is_there() {
    let graphs = [
        ("flat windows", windows([1, 4, 4], [0, 2, 2], None)),
        ("deep windows", windows([4, 3, 3], [0, 1, 0], None)),
        ("deep windows, shifted", windows([4, 3, 3], [2, 1, 0], None)),
        ("windows with tokens", windows([5, 2, 3], [0; 3], Some([5, 2, 3]))),
        ("windows with tokens, shifted", windows([5, 2, 3], [2, 0, 1], Some([5, 2, 3]))),
        ("tokens ask", token_queries([5, 2, 3], [0, 1, 0])),
        ("tokens ask, shifted", token_queries([2, 2, 3], [1, 1, 0])),
        ("non-local upsampling", upsampling()),
        ("two sources", tokens(false)),
        ("masked", tokens(true)),
        ("sampling", sampling()),
    ];
    for (name, graph) in &graphs {
        checker::check_every_way(name, graph, EXTENT);
    }
}
