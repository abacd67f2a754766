//! Rewrites that leave the result as it is: fold, fuse, prune. Each returns how often it applied.

use super::{Combine, Conv, Fit, Graph, GraphError, Node, NodeId, Op, Resize, Size, norm};
use crate::kernels::{Activation, Interpolation, Load, Shift, Spread};
use crate::shape::Extent;

/// What [`optimise`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Batch norms folded into convolutions.
    pub norms_folded: usize,
    /// Activations fused into convolutions, sums, products and layer norms.
    pub activations_fused: usize,
    /// Concatenations read by their convolution directly.
    pub concats_fused: usize,
    /// Sums with a second map fused into the convolution that makes the first.
    pub adds_fused: usize,
    /// Instance and group norms taken apart into statistics, scale, and application.
    pub norms_split: usize,
    /// Of those, the ones whose readers apply them as they load: the normalised value is never stored.
    pub norms_absorbed: usize,
    /// Nodes that could not reach an output.
    pub nodes_removed: usize,
}

/// Applies all passes; `keep` are nodes besides the output that must survive.
#[must_use]
pub fn optimise(graph: &Graph, keep: &[NodeId]) -> (Graph, Applied) {
    let mut work = Work { nodes: graph.nodes().to_vec(), replaced: graph.ids().collect(), keep: keep.to_vec() };
    let mut applied = Applied::default();
    for id in graph.ids() {
        for slot in 0..work.nodes[id.index()].inputs.len() {
            let input = work.resolve(work.nodes[id.index()].inputs[slot]);
            work.nodes[id.index()].inputs[slot] = input;
        }
        match work.nodes[id.index()].op.clone() {
            Op::BatchNorm(norm) => {
                if let Some(conv) = work.sole(id, 0, graph)
                    && let Some(folded) = work.nodes[conv.index()].op.foldable()
                {
                    *folded = Some(norm);
                    work.nodes[conv.index()].name = work.nodes[id.index()].name.clone();
                    work.replaced[id.index()] = conv;
                    applied.norms_folded += 1;
                }
            }
            Op::Activation(activation) => {
                if let Some(before) = work.sole(id, 0, graph)
                    && let Some(fused) = work.nodes[before.index()].op.fusable()
                {
                    *fused = activation;
                    // the fused node answers to the name of what it now produces
                    work.nodes[before.index()].name = work.nodes[id.index()].name.clone();
                    work.replaced[id.index()] = before;
                    applied.activations_fused += 1;
                }
            }
            Op::LayerNorm { before: Activation::None, .. } => {
                if let Some(input) = work.sole(id, 0, graph)
                    && let Node { op: Op::Activation(activation), inputs, .. } = work.nodes[input.index()].clone()
                {
                    if let Op::LayerNorm { before, .. } = &mut work.nodes[id.index()].op {
                        *before = activation;
                    }
                    work.nodes[id.index()].inputs = inputs;
                    work.replaced[input.index()] = id;
                    applied.activations_fused += 1;
                }
            }
            Op::Conv(conv) if conv.is_plain() => {
                if let [input] = work.nodes[id.index()].inputs[..]
                    && work.nodes[input.index()].op == Op::Concat
                    && !work.keep.contains(&input)
                    && work.read_in_place(input, graph)
                {
                    work.nodes[id.index()].inputs = work.nodes[input.index()].inputs.clone();
                    applied.concats_fused += 1;
                }
            }
            Op::Add(Combine { spread: Spread::Nothing, .. }) => applied.adds_fused += usize::from(work.fuse_add(id, graph)),
            _ => {}
        }
    }
    let output = work.resolve(graph.output());
    let keep: Vec<NodeId> = work.keep.iter().map(|&k| work.resolve(k)).collect();
    let (pruned, moved, removed) = prune(&work.nodes, output, &keep);
    applied.nodes_removed =
        removed.iter().filter(|id| work.replaced[id.index()] == **id && work.nodes[id.index()].op != Op::Concat).count();
    let kept: Vec<NodeId> = keep.iter().map(|k| moved[k.index()]).collect();
    let (graph, split) = norm::split(&pruned, &kept);
    (applied.norms_split, applied.norms_absorbed) = (split.norms, split.absorbed);
    (graph, applied)
}

/// Appends `labels`, the label of the highest logit, to a graph whose last node gives logits. Where that node is a pointwise
/// convolution that nobody else wants (`keep`), labels take its place: the logits are then never stored.
pub fn label(graph: &mut Graph, keep: &[NodeId]) -> NodeId {
    let logits = graph.output();
    match graph.nodes.last_mut() {
        Some(Node { name, op, .. }) if !keep.contains(&logits) => {
            if let Op::Conv(conv) = op
                && conv.is_pointwise()
                && !conv.residual
            {
                *op = Op::HeadArgmax(conv.clone());
                *name = "labels".into();
                return logits;
            }
        }
        _ => {}
    }
    graph.add("labels", Op::Argmax, &[logits])
}

/// The graph in which convolutions read through resampling instead of reading its stored result: the bits are the same, the
/// resampled map is nowhere, and its values are made anew for every tap. A resampling goes where all its readers are
/// convolutions that can (they read through one alone, from one extent) and nobody else wants it (`keep`). Ids change, names stay.
#[must_use]
pub fn read_through(graph: &Graph, keep: &[NodeId]) -> Graph {
    let mut nodes = graph.nodes().to_vec();
    let consumers = graph.consumers();
    for id in graph.ids() {
        let Op::Resize(resize) = graph.node(id).op else { continue };
        let can = |reader: &NodeId| match &nodes[reader.index()].op {
            Op::Conv(c) if !c.is_plain() || (c.residual && nodes[reader.index()].inputs.get(1) == Some(&id)) => false,
            Op::Conv(c) => {
                let loads = nodes[reader.index()].inputs.iter().zip(&c.loads).filter(|(input, _)| **input == id);
                c.through.iter().flatten().all(|&other| other == resize) && loads.into_iter().all(|(_, load)| *load == Load::default())
            }
            _ => false,
        };
        let readers = &consumers[id.index()];
        if readers.is_empty() || keep.contains(&id) || !readers.iter().all(can) {
            continue;
        }
        for reader in readers {
            let Node { op: Op::Conv(conv), inputs, .. } = &mut nodes[reader.index()] else { continue };
            for (through, input) in conv.through.iter_mut().zip(inputs).filter(|(_, input)| **input == id) {
                (*through, *input) = (Some(resize), graph.node(id).inputs[0]);
            }
        }
    }
    prune(&nodes, graph.output(), keep).0
}

/// The graph for inputs of one extent: what is fitted to it is shifted, and nothing is done where it fits already. `keep` are nodes
/// besides the output that must survive. Ids change, names stay.
///
/// # Errors
/// When shapes do not agree: the node is named.
pub fn settle(graph: &Graph, extent: Extent, keep: &[NodeId]) -> Result<Graph, GraphError> {
    let maps = graph.infer(extent)?;
    let mut settled = Graph::default();
    let mut moved: Vec<NodeId> = Vec::new();
    for id in graph.ids() {
        let mut node = graph.node(id).clone();
        for input in &mut node.inputs {
            *input = moved[input.index()];
        }
        let extent = |id: NodeId| maps[id.index()].extent;
        if let (&Op::Fit(fit), &[source]) = (&graph.node(id).op, &graph.node(id).inputs[..]) {
            let shift = Fit::shift(extent(source), extent(id));
            if shift == [Shift::NONE; 3] && id != graph.output() && !keep.contains(&id) {
                moved.push(node.inputs[0]);
                continue;
            }
            node.op = Op::Shift(shift);
            if fit.repeats && shift != [Shift::NONE; 3] {
                let [from, to] = [source, id].map(|id| extent(id).axes());
                if (0..3).any(|axis| !(from[axis]..=from[axis] + 1).contains(&to[axis])) {
                    let message = format!("lacks more than a voxel of {} along an axis of {}", extent(id), extent(source));
                    return Err(GraphError { node: node.name, message });
                }
                // resampling to one voxel more, the nearest at or below, repeats the first
                let flip = [0, 1, 2].map(|axis| if to[axis] > from[axis] { Shift::Flip } else { Shift::NONE });
                let longer = Resize { size: Size::Extent(extent(id)), mode: Interpolation::Nearest };
                let x = settled.add(format!("{}.flipped", node.name), Op::Shift(flip), &node.inputs);
                node.inputs = vec![settled.add(format!("{}.repeated", node.name), Op::Resize(longer), &[x])];
                node.op = Op::Shift(flip);
            }
        }
        if let (Op::WindowAttention(attention), &[_, keys, ..]) = (&mut node.op, &graph.node(id).inputs[..]) {
            attention.clip(extent(keys));
        }
        moved.push(settled.add(node.name, node.op, &node.inputs));
    }
    let keep: Vec<NodeId> = keep.iter().map(|id| moved[id.index()]).collect();
    Ok(prune(&settled.nodes, moved[graph.output().index()], &keep).0)
}

struct Work {
    nodes: Vec<Node>,
    replaced: Vec<NodeId>,
    keep: Vec<NodeId>,
}

impl Work {
    fn resolve(&self, mut id: NodeId) -> NodeId {
        while self.replaced[id.index()] != id {
            id = self.replaced[id.index()];
        }
        id
    }

    /// The node that feeds this input of `id` and, in the original graph, nobody else on the way.
    fn sole(&self, id: NodeId, slot: usize, graph: &Graph) -> Option<NodeId> {
        let before = *graph.node(id).inputs.get(slot)?;
        let alone = graph.nodes().iter().flat_map(|n| &n.inputs).filter(|&&i| i == before).count() == 1;
        (alone && !self.keep.contains(&before)).then(|| self.resolve(before))
    }

    /// Whether all readers of a concatenation are convolutions that can read both of its maps where they lie. If any cannot, it is
    /// stored, and the maps are not kept besides it.
    fn read_in_place(&self, concat: NodeId, graph: &Graph) -> bool {
        concat != graph.output()
            && graph.nodes().iter().filter(|node| node.inputs.contains(&concat)).all(|node| match &node.op {
                Op::Conv(conv) => conv.is_plain() && node.inputs.len() == 1,
                _ => false,
            })
    }

    /// Fuses a sum of maps of one shape into a convolution that makes one of them. The convolution takes the place of the sum,
    /// before which both maps are there.
    fn fuse_add(&mut self, id: NodeId, graph: &Graph) -> bool {
        for slot in 0..2 {
            let Some(from) = self.sole(id, slot, graph) else { continue };
            let Node { op: Op::Conv(conv), inputs, .. } = &self.nodes[from.index()] else { continue };
            let ([source], [_, _]) = (&inputs[..], &self.nodes[id.index()].inputs[..]) else { continue };
            if conv.residual || conv.activation != Activation::None || !conv.is_plain() {
                continue;
            }
            let (conv, source) = (Conv { residual: true, ..conv.clone() }, *source);
            let added = self.nodes[id.index()].inputs[1 - slot];
            self.nodes[id.index()].op = Op::Conv(conv);
            self.nodes[id.index()].inputs = vec![source, added];
            self.replaced[from.index()] = id;
            return true;
        }
        false
    }
}

/// Keeps what reaches `output` or `keep`; also tells where each node went, and which are gone.
fn prune(nodes: &[Node], output: NodeId, keep: &[NodeId]) -> (Graph, Vec<NodeId>, Vec<NodeId>) {
    let mut alive = vec![false; nodes.len()];
    let mut stack: Vec<NodeId> = keep.iter().copied().chain([output]).collect();
    while let Some(id) = stack.pop() {
        if !std::mem::replace(&mut alive[id.index()], true) {
            stack.extend(&nodes[id.index()].inputs);
        }
    }
    let mut graph = Graph::default();
    let mut moved = vec![NodeId(0); nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        if alive[i] {
            let inputs: Vec<NodeId> = node.inputs.iter().map(|n| moved[n.index()]).collect();
            moved[i] = graph.add(node.name.clone(), node.op.clone(), &inputs);
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "graphs have thousands of nodes")]
    let removed = (0..nodes.len()).filter(|&i| !alive[i]).map(|i| NodeId(i as u32)).collect();
    (graph, moved, removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{BatchNorm, ConvTranspose, Resize};

    fn conv(name: &str, cin: u32, cout: u32) -> Op {
        Op::Conv(Conv {
            module: name.into(),
            in_channels: cin,
            out_channels: cout,
            kernel: [3; 3],
            padding: [1; 3],
            weight_shape: vec![cout as usize, cin as usize, 3, 3, 3],
            ..Conv::default()
        })
    }

    fn sample() -> Graph {
        let mut g = Graph::default();
        let x = g.add("input", Op::Input { channels: 1 }, &[]);
        let a = g.add("a.conv", conv("a.conv", 1, 4), &[x]);
        let n = g.add("a.norm", Op::BatchNorm(BatchNorm { module: "a.norm".into(), channels: 4, eps: 1e-5 }), &[a]);
        let r = g.add("a", Op::Activation(Activation::Relu), &[n]);
        g.add("dead", conv("dead", 4, 4), &[r]);
        let c = g.add("cat", Op::Concat, &[r, x]);
        g.add("head", conv("head", 5, 2), &[c]);
        g
    }

    #[test]
    fn folds_fuses_and_prunes() {
        let (g, applied) = optimise(&sample(), &[]);
        assert_eq!(applied, Applied { norms_folded: 1, activations_fused: 1, concats_fused: 1, nodes_removed: 1, ..Applied::default() });
        assert_eq!(g.nodes().len(), 3);
        assert_eq!(g.node(g.output()).inputs.len(), 2);
        assert!(matches!(&g.nodes()[1].op, Op::Conv(c) if c.norm.is_some() && c.activation == Activation::Relu));
        assert_eq!(g.nodes()[1].name, "a");
        assert!(g.infer(Extent::new(2, 3, 4)).is_ok());
    }

    #[test]
    fn transposed_convolutions_take_in_what_convolutions_do() {
        let mut g = Graph::default();
        let x = g.add("input", Op::Input { channels: 4 }, &[]);
        let up = ConvTranspose { module: "up".into(), in_channels: 4, out_channels: 2, ..ConvTranspose::default() };
        let y = g.add("up.conv", Op::ConvTranspose(up), &[x]);
        let y = g.add("up.norm", Op::BatchNorm(BatchNorm { module: "up.norm".into(), channels: 2, eps: 1e-5 }), &[y]);
        g.add("up", Op::Activation(Activation::Relu), &[y]);
        let before = g.parameters();
        let (g, applied) = optimise(&g, &[]);
        assert_eq!(applied, Applied { norms_folded: 1, activations_fused: 1, ..Applied::default() });
        assert_eq!(g.parameters(), before);
        assert_eq!(g.infer(Extent::new(2, 3, 4)).map(|maps| maps[1].extent), Ok(Extent::new(4, 6, 8)));
    }

    #[test]
    fn a_layer_norm_takes_in_the_activations_around_it() {
        let norm = || Op::LayerNorm { module: None, channels: 4, eps: 1e-5, before: Activation::None, after: Activation::None };
        let mut g = Graph::default();
        let x = g.add("input", Op::Input { channels: 4 }, &[]);
        let y = g.add("gelu", Op::Activation(Activation::Gelu), &[x]);
        let n = g.add("norm", norm(), &[y]);
        let r = g.add("relu", Op::Activation(Activation::Relu), &[n]);
        g.add("last", Op::Softmax, &[r]);
        let (fused, applied) = optimise(&g, &[]);
        assert_eq!(applied, Applied { activations_fused: 2, ..Applied::default() });
        assert_eq!(fused.nodes().iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["input", "relu", "last"]);
        assert!(matches!(fused.nodes()[1].op, Op::LayerNorm { before: Activation::Gelu, after: Activation::Relu, .. }));
        assert_eq!(fused.nodes()[1].inputs, [x]);
        // who is kept, or read by another, stays
        assert_eq!(optimise(&g, &[y, n]).1.activations_fused, 0);
        g.add("gate", Op::Multiply(Combine::default()), &[r, y]);
        let (apart, _) = optimise(&g, &[]);
        assert!(matches!(apart.nodes()[2].op, Op::LayerNorm { before: Activation::None, after: Activation::Relu, .. }));
        // what a convolution stores activated is not activated again
        let mut g = Graph::default();
        let x = g.add("input", Op::Input { channels: 1 }, &[]);
        let y = g.add("conv", conv("conv", 1, 4), &[x]);
        let y = g.add("gelu", Op::Activation(Activation::Gelu), &[y]);
        g.add("norm", norm(), &[y]);
        let (fused, _) = optimise(&g, &[]);
        assert!(matches!(&fused.nodes()[1].op, Op::Conv(c) if c.activation == Activation::Gelu));
        assert!(matches!(fused.nodes()[2].op, Op::LayerNorm { before: Activation::None, .. }));
    }

    #[test]
    fn a_second_reader_stops_fusion() {
        let mut g = sample();
        let a = g.find("a.conv").expect("in the sample");
        let r = g.find("a").expect("in the sample");
        g.add("sum", Op::Multiply(Combine::default()), &[a, r]);
        let (_, applied) = optimise(&g, &[]);
        assert_eq!(applied.norms_folded, 0);
    }

    #[test]
    fn labels_take_the_place_of_pointwise_logits_alone() {
        let mut g = Graph::default();
        let x = g.add("input", Op::Input { channels: 4 }, &[]);
        let head = Conv { in_channels: 4, out_channels: 2, weight_shape: vec![2, 4, 1, 1, 1], ..Conv::default() };
        let logits = g.add("head", Op::Conv(head.clone()), &[x]);
        let labels = |g: &Graph, keep: &[NodeId]| {
            let mut g = g.clone();
            let id = label(&mut g, keep);
            assert_eq!((g.output(), g.find("labels")), (id, Some(id)));
            (g.nodes().len(), g.node(id).op.clone())
        };
        assert_eq!(labels(&g, &[]), (2, Op::HeadArgmax(head)));
        assert_eq!(labels(&g, &[logits]), (3, Op::Argmax));
        g.add("wide", conv("wide", 2, 3), &[logits]);
        assert_eq!(labels(&g, &[]), (4, Op::Argmax));
    }

    #[test]
    fn upsampling_is_read_through_where_all_readers_can() {
        let mut g = Graph::default();
        let x = g.add("input", Op::Input { channels: 2 }, &[]);
        let up = g.add("up", Op::upsample([2; 3]), &[x]);
        let a = g.add("a", conv("a", 2, 3), &[up]);
        g.add("b", conv("b", 5, 4), &[a, up]);
        let through = read_through(&g, &[]);
        assert_eq!((through.nodes().len(), through.find("up")), (3, None));
        let extents = |g: &Graph| g.infer(Extent::new(2, 3, 4)).expect("the shapes agree").last().map(|m| m.extent);
        assert_eq!(extents(&through), extents(&g));
        assert!(matches!(&through.nodes()[2].op, Op::Conv(c) if c.through == [None, Some(Resize::aligned([2; 3]))]));
        assert_eq!(read_through(&through, &[]), through);

        assert_eq!(read_through(&g, &[up]), g, "who is kept stays");
        g.add("gate", Op::Multiply(Combine::default()), &[up, up]);
        assert!(read_through(&g, &[]).find("up").is_some(), "another reader needs it stored");
    }

    /// act(norm(conv(x)) + skip), with a reader of the result.
    fn residual(swapped: bool) -> Graph {
        let mut g = Graph::default();
        let x = g.add("input", Op::Input { channels: 4 }, &[]);
        let y = g.add("conv", conv("conv", 4, 4), &[x]);
        let y = g.add("norm", Op::BatchNorm(BatchNorm { module: "norm".into(), channels: 4, eps: 1e-5 }), &[y]);
        // made after the convolution that takes it in
        let skip = g.add("skip", Op::max_pool([1; 3]), &[x]);
        let y = g.add("sum", Op::Add(Combine::default()), &if swapped { [skip, y] } else { [y, skip] });
        let y = g.add("block", Op::Activation(Activation::Relu), &[y]);
        g.add("head", conv("head", 4, 2), &[y]);
        g
    }

    #[test]
    fn a_convolution_adds_the_residual_before_its_activation() {
        for swapped in [false, true] {
            let g = residual(swapped);
            let (fused, applied) = optimise(&g, &[]);
            assert_eq!(applied, Applied { norms_folded: 1, activations_fused: 1, adds_fused: 1, ..Applied::default() });
            let names: Vec<&str> = fused.nodes().iter().map(|n| n.name.as_str()).collect();
            assert_eq!(names, ["input", "skip", "block", "head"]);
            let block = fused.node(NodeId(2));
            assert_eq!(block.inputs, [NodeId(0), NodeId(1)]);
            assert!(matches!(&block.op, Op::Conv(c) if c.residual && c.activation == Activation::Relu && c.norm.is_some()));
            let last = |g: &Graph| g.infer(Extent::new(2, 3, 4)).expect("the shapes agree").last().copied();
            assert_eq!(last(&fused), last(&g));
            assert_eq!(fused.parameters(), g.parameters());
        }
    }

    #[test]
    fn a_residual_that_cannot_be_fused_stays() {
        let fused = |g: &Graph, keep: &[NodeId]| optimise(g, keep).1.adds_fused;
        let g = residual(false);
        let id = |name: &str| g.find(name).expect("in the sample");
        assert_eq!(fused(&g, &[id("norm")]), 0, "who is kept stays");
        assert_eq!(fused(&g, &[id("skip"), id("sum"), id("block")]), 1);
        let mut read = g.clone();
        read.add("reader", Op::Multiply(Combine::default()), &[id("norm"), id("skip")]);
        assert_eq!(fused(&read, &[]), 0, "the convolution has another reader");

        let with = |op: fn() -> Op, inputs: usize, activation: bool, spread: Spread| {
            let mut g = Graph::default();
            let x = g.add("input", Op::Input { channels: 4 }, &[]);
            let mut y = g.add("conv", op(), &vec![x; inputs]);
            if activation {
                y = g.add("act", Op::Activation(Activation::Relu), &[y]);
            }
            g.add("sum", Op::Add(Combine { spread, ..Combine::default() }), &[y, x]);
            g
        };
        assert_eq!(fused(&with(|| conv("c", 4, 4), 1, false, Spread::Nothing), &[]), 1);
        assert_eq!(fused(&with(|| conv("c", 8, 4), 2, false, Spread::Nothing), &[]), 0, "it reads a second map already");
        assert_eq!(fused(&with(|| conv("c", 4, 4), 1, true, Spread::Nothing), &[]), 0, "its activation comes before the sum");
        assert_eq!(fused(&with(|| conv("c", 4, 4), 1, false, Spread::Voxels), &[]), 0, "the shapes differ");
        let grouped = || match conv("c", 4, 4) {
            Op::Conv(c) => Op::Conv(Conv { groups: 2, ..c }),
            op => op,
        };
        assert_eq!(fused(&with(grouped, 1, false, Spread::Nothing), &[]), 0, "its kernel reads one map");
        let mut twice = Graph::default();
        let x = twice.add("input", Op::Input { channels: 4 }, &[]);
        let y = twice.add("conv", conv("conv", 4, 4), &[x]);
        twice.add("sum", Op::Add(Combine::default()), &[y, y]);
        assert_eq!(fused(&twice, &[]), 0, "a convolution cannot add itself");
    }

    #[test]
    fn a_batch_norm_of_a_sum_is_not_folded_into_the_convolution() {
        let mut g = residual(false);
        let sum = g.find("sum").expect("in the sample");
        g.nodes.truncate(sum.index() + 1);
        let y = g.add("after", Op::BatchNorm(BatchNorm { module: "after".into(), channels: 4, eps: 1e-5 }), &[sum]);
        g.add("end", Op::Activation(Activation::Relu), &[y]);
        let (fused, applied) = optimise(&g, &[]);
        assert_eq!((applied.adds_fused, applied.norms_folded, applied.activations_fused), (1, 1, 0));
        assert!(fused.find("after").is_some());
    }

    #[test]
    fn a_residual_is_not_read_through_upsampling() {
        let mut g = Graph::default();
        let x = g.add("input", Op::Input { channels: 4 }, &[]);
        let up = g.add("up", Op::upsample([2; 3]), &[x]);
        let y = g.add("conv", conv("conv", 4, 4), &[up]);
        g.add("sum", Op::Add(Combine::default()), &[y, up]);
        let g = optimise(&g, &[]).0;
        assert_eq!(read_through(&g, &[]), g);
        let mut other = Graph::default();
        let x = other.add("input", Op::Input { channels: 4 }, &[]);
        let up = other.add("up", Op::upsample([1; 3]), &[x]);
        let y = other.add("conv", conv("conv", 4, 4), &[up]);
        other.add("sum", Op::Add(Combine::default()), &[y, x]);
        let through = read_through(&optimise(&other, &[]).0, &[]);
        assert!(
            matches!(&through.node(through.output()).op, Op::Conv(c) if c.residual && c.through == [Some(Resize::aligned([1; 3])), None])
        );
        assert!(through.infer(Extent::new(2, 3, 4)).is_ok());
    }

    #[test]
    fn what_fits_already_is_not_moved() {
        // as a U-Net that floors as it pools, and pads what it upsamples
        let mut g = Graph::default();
        let x = g.add("input", Op::Input { channels: 2 }, &[]);
        let y = g.add("pool", Op::max_pool([1, 2, 2]), &[x]);
        let y = g.add("up", Op::upsample([1, 2, 2]), &[y]);
        let fit = g.add("fit", Op::Fit(Fit { over: [1; 3], repeats: false }), &[y]);
        g.add("a", conv("a", 4, 3), &[x, fit]);
        let shift = |extent, keep: &[NodeId]| {
            let settled = settle(&g, extent, keep).expect("the shapes agree");
            assert_eq!(settled.infer(extent).expect("they still do").last().map(|m| m.extent), Some(extent));
            settled.find("fit").map(|id| settled.node(id).op.clone())
        };
        assert_eq!(shift(Extent::new(3, 4, 6), &[]), None);
        assert_eq!(shift(Extent::new(3, 4, 6), &[fit]), Some(Op::Shift([Shift::NONE; 3])), "who is kept stays");
        let far = Shift::Pad { before: 0, after: 1 };
        assert_eq!(shift(Extent::new(3, 4, 7), &[]), Some(Op::Shift([Shift::NONE, Shift::NONE, far])));
        let pads = Fit::shift(Extent::new(5, 9, 2), Extent::new(8, 6, 6));
        let [d, h, w] = [(1, 2), (-2, -1), (2, 2)].map(|(before, after)| Shift::Pad { before, after });
        assert_eq!(pads, [d, h, w], "as F.pad by d // 2 and d - d // 2");
        assert!(settle(&g, Extent::new(1, 1, 6), &[]).is_err(), "pooling leaves nothing");
        assert!(
            Fit { over: [2, 1, 1], repeats: false }.output(Extent::new(1, 1, 1)).is_err()
                && Fit { over: [0; 3], repeats: false }.output(Extent::new(1, 1, 1)).is_err()
        );
    }

    #[test]
    fn a_concatenation_that_something_else_reads_is_stored() {
        // the residual stages of a V-Net
        let mut g = Graph::default();
        let x = g.add("input", Op::Input { channels: 2 }, &[]);
        let y = g.add("a", conv("a", 2, 2), &[x]);
        let cat = g.add("cat", Op::Concat, &[y, x]);
        let y = g.add("b", conv("b", 4, 4), &[cat]);
        let y = g.add("b.act", Op::Activation(Activation::Relu), &[y]);
        assert_eq!(optimise(&g, &[]).1.concats_fused, 1);
        assert!(optimise(&g, &[cat]).0.find("cat").is_some(), "who is kept stays");
        let y = g.add("sum", Op::Add(Combine::default()), &[y, cat]);
        let (stored, applied) = optimise(&g, &[]);
        assert_eq!((applied.concats_fused, stored.find("b.act").map(|id| stored.node(id).inputs.len())), (0, Some(1)));
        assert!(stored.infer(Extent::new(2, 3, 4)).is_ok());
        // the last convolution adds it
        g.add("c", conv("c", 4, 4), &[y]);
        let c = g.output();
        g.add("end", Op::Add(Combine::default()), &[c, cat]);
        let (stored, applied) = optimise(&g, &[]);
        assert_eq!((applied.concats_fused, applied.adds_fused), (0, 1));
        assert!(stored.infer(Extent::new(2, 3, 4)).is_ok());
        let mut last = sample();
        let [a, x] = ["a", "input"].map(|name| last.find(name).expect("in the sample"));
        last.add("end", Op::Concat, &[a, x]);
        assert!(optimise(&last, &[]).0.find("end").is_some(), "the result is stored");
    }

    #[test]
    fn kept_nodes_survive() {
        let g = sample();
        let dead = g.find("dead").expect("in the sample");
        let (kept, applied) = optimise(&g, &[dead]);
        assert!(kept.find("dead").is_some());
        assert_eq!(applied.nodes_removed, 0);
    }
}
