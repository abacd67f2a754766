//! Plans of graphs with resampling, pooling, shifts, patches and picked tokens: every plane that is read is where it is read,
//! whatever the slabs and the budget.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

#[path = "support/checker.rs"]
mod checker;

use organum::Extent;
use organum::graph::{Combine, Conv, Graph, NodeId, Op, PatchExpand, PatchMerge, Resize, Size, pass};
use organum::kernels::{Activation, Interpolation, Shift};

const EXTENT: Extent = Extent::new(10, 5, 6);

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

/// Operations one after the other between two convolutions over planes; the last reads so many channels.
fn chain(ops: &[Op], channels: u32) -> Graph {
    let mut graph = Graph::default();
    let x = graph.add("input", Op::Input { channels: 1 }, &[]);
    let mut x = conv(&mut graph, "first", x, [1, 4], 3);
    for (i, op) in ops.iter().enumerate() {
        x = graph.add(format!("op.{i}"), op.clone(), &[x]);
    }
    conv(&mut graph, "last", x, [channels, 2], 3);
    graph
}

/// A stage of a V-Net: what is concatenated is convolved, and added to the result.
fn joined() -> Graph {
    let mut graph = Graph::default();
    let x = graph.add("input", Op::Input { channels: 1 }, &[]);
    let first = conv(&mut graph, "first", x, [1, 3], 3);
    let second = conv(&mut graph, "second", first, [3, 2], 1);
    let both = graph.add("concat", Op::Concat, &[first, second]);
    let y = conv(&mut graph, "stage", both, [5, 5], 5);
    let y = graph.add("act", Op::Activation(Activation::Elu { alpha: 1.0 }), &[y]);
    let y = graph.add("sum", Op::Add(Combine::default()), &[y, both]);
    conv(&mut graph, "last", y, [5, 2], 3);
    graph
}

#[test]
fn plans_of_moved_voxels_read_what_is_there() {
    let pool = |kernel, stride, padding| Op::MaxPool { kernel, stride, padding };
    let along_d = |shift| Op::Shift([shift, Shift::Roll(2), Shift::Flip]);
    let pad = |before, after| along_d(Shift::Pad { before, after });
    let cubes = (0..8).map(|i| [i >> 2, i >> 1 & 1, i & 1]).collect();
    let mut graphs = vec![
        ("pool 3 by 2", chain(&[pool([3; 3], [2; 3], [0; 3])], 4)),
        ("pool 3 by 2, padded", chain(&[pool([3; 3], [2; 3], [1; 3])], 4)),
        ("pool 3 by 1", chain(&[pool([3; 3], [1; 3], [1; 3])], 4)),
        ("pool of planes", chain(&[Op::max_pool([1, 2, 2])], 4)),
        ("averages of 3", chain(&[Op::AvgPool { kernel: [3, 2, 2] }], 4)),
        ("padded", chain(&[pad(3, 2)], 4)),
        ("cropped", chain(&[pad(-3, -2)], 4)),
        ("padded and cropped", chain(&[pad(4, -5)], 4)),
        ("cropped away and padded", chain(&[pad(-9, 12)], 4)),
        ("rolled along planes", chain(&[along_d(Shift::NONE)], 4)),
        ("rolled", chain(&[along_d(Shift::Roll(-3))], 4)),
        ("mirrored", chain(&[along_d(Shift::Flip)], 4)),
        ("merged", chain(&[Op::PatchMerge(PatchMerge::swin())], 16)),
        ("merged to cubes and back", {
            let expand = PatchExpand { patch: [2; 3], crop: Some(Extent::new(9, 5, 6)) };
            chain(&[Op::PatchMerge(PatchMerge { patch: [2; 3], order: cubes }), Op::PatchExpand(expand)], 4)
        }),
        ("expanded", chain(&[Op::PatchExpand(PatchExpand { patch: [4, 1, 1], crop: None })], 1)),
        ("concatenated", joined()),
        ("tokens", chain(&[Op::Gather([299, 0, 17, 17].into())], 4)),
    ];
    for mode in [Interpolation::Nearest, Interpolation::Aligned, Interpolation::HalfPixel] {
        for (name, size) in [
            ("times two", Size::Times([2; 3])),
            ("larger", Size::Extent(Extent::new(17, 7, 6))),
            ("smaller", Size::Extent(Extent::new(4, 3, 3))),
            ("one plane", Size::Extent(Extent::new(1, 5, 6))),
            ("planes", Size::Plane([5, 9])),
        ] {
            let stored = chain(&[Op::Resize(Resize { size, mode })], 4);
            let through = pass::read_through(&stored, &[]);
            assert_eq!(through.nodes().len(), 3);
            graphs.extend([(name, stored), (name, through)]);
        }
    }
    for (name, graph) in &graphs {
        checker::check_every_way(name, graph, EXTENT);
    }
}
