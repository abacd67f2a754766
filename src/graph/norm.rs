//! Norms with the statistics of the value itself become a barrier: statistics, scale and shift, and their application, by
//! the readers as they load where all of them can.

use super::{Conv, ConvTranspose, Graph, Node, NodeId, Op};
use crate::kernels::{Activation, Load, Scope};

/// Group norm with the statistics of the value itself; instance norm is the case of as many groups as channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Prefix of `weight` and `bias`; `None` for a norm without affine parameters.
    pub module: Option<String>,
    /// Channels.
    pub channels: u32,
    /// Groups of neighbouring channels that are normalised together.
    pub groups: u32,
    /// Added to the biased variance.
    pub eps: f64,
    /// Each plane is normalised by itself: 2D networks over the slices of a volume.
    pub per_plane: bool,
}

impl Norm {
    /// What the statistics are taken over.
    #[must_use]
    pub const fn scope(&self) -> Scope {
        if self.per_plane { Scope::Plane } else { Scope::Volume }
    }

    pub(super) fn check(&self, channels: u32) -> Result<(), String> {
        check(self.channels, channels, self.eps)?;
        if self.groups == 0 || !self.channels.is_multiple_of(self.groups) {
            return Err(format!("{} groups do not divide {} channels", self.groups, self.channels));
        }
        Ok(())
    }
}

/// Whether a norm of so many channels suits a map.
pub(super) fn check(channels: u32, given: u32, eps: f64) -> Result<(), String> {
    if channels != given {
        return Err(format!("norm of {channels} channels given {given}"));
    }
    if !(eps.is_finite() && eps >= 0.0) {
        return Err(format!("an eps of {eps} is not possible"));
    }
    Ok(())
}

impl Conv {
    /// Maps among so many inputs; scale and shift of those that are normalised as they are read come after them.
    #[must_use]
    pub fn maps(&self, inputs: usize) -> usize {
        inputs.saturating_sub(self.loads.iter().filter(|load| load.norm.is_some()).count())
    }

    /// Whether plane z of the result is computed from plane z alone of a map that it reads.
    pub(super) fn keeps_planes(&self, slot: usize) -> bool {
        (self.residual && slot == 1) || (self.kernel[0], self.stride[0], self.padding[0]) == (1, 1, 0)
    }
}

impl ConvTranspose {
    /// Whether plane z of the result is computed from plane z alone.
    pub(super) fn keeps_planes(&self) -> bool {
        (self.kernel[0], self.stride[0], self.padding[0], self.output_padding[0]) == (1, 1, 0, 0)
    }
}

/// Whether the node can apply a norm to the value wherever it loads it. A scale for each plane must be that of the plane that is
/// computed, or a window of scales would have to be bound.
fn absorbs(node: &Node, value: NodeId, scope: Scope) -> bool {
    let slots = || (0..node.inputs.len()).filter(|&slot| node.inputs[slot] == value);
    match &node.op {
        Op::Conv(c) => scope == Scope::Volume || slots().all(|slot| c.keeps_planes(slot)),
        Op::ConvTranspose(c) => scope == Scope::Volume || c.keeps_planes(),
        Op::Add(_) | Op::Multiply(_) => true,
        _ => false,
    }
}

/// Gives an operation that [`absorbs`] what it does to each of its maps.
fn attach(op: &mut Op, loads: [Load; 2]) {
    match op {
        Op::Conv(c) => c.loads = loads,
        Op::ConvTranspose(c) => c.load = loads[0],
        Op::Add(c) | Op::Multiply(c) => c.loads = loads,
        _ => {}
    }
}

/// Where the value of a node of the old graph is found in the new one.
#[derive(Clone, Copy)]
enum Value {
    /// It is stored.
    Stored(NodeId),
    /// Its readers make it from a stored value and its scale and shift.
    OnLoad { raw: NodeId, scale: NodeId, load: Load },
}

/// What [`split`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub norms: usize,
    pub absorbed: usize,
}

/// Takes norms apart. The values of `keep`, and of the last node, are stored.
pub(super) fn split(graph: &Graph, keep: &[NodeId]) -> (Graph, Split) {
    let readers = graph.consumers();
    let needed = |id: NodeId| keep.contains(&id) || id == graph.output();
    let mut done = Split::default();
    let mut new = Graph::default();
    let mut values: Vec<Option<Value>> = vec![None; graph.nodes().len()];
    for id in graph.ids() {
        if values[id.index()].is_some() {
            continue; // an activation or a PReLU that went with its norm
        }
        let node = graph.node(id);
        let inputs: Vec<Value> = node.inputs.iter().filter_map(|i| values[i.index()]).collect();
        let raw = |value: &Value| match *value {
            Value::Stored(id) | Value::OnLoad { raw: id, .. } => id,
        };
        let mut raws: Vec<NodeId> = inputs.iter().map(raw).collect();
        let Op::Norm(norm) = &node.op else {
            let mut op = node.op.clone();
            let mut loads = [Load::default(); 2];
            for (slot, value) in inputs.iter().enumerate() {
                if let Value::OnLoad { scale, load, .. } = *value {
                    loads[slot] = load;
                    raws.push(scale);
                }
            }
            if loads != [Load::default(); 2] {
                attach(&mut op, loads);
            }
            values[id.index()] = Some(Value::Stored(new.add(node.name.clone(), op, &raws)));
            continue;
        };
        let reader = match readers[id.index()][..] {
            [reader] if !needed(id) => Some((reader, graph.node(reader))),
            _ => None,
        };
        let (last, activation, prelu) = match reader {
            Some((last, Node { op: Op::Activation(activation), .. })) => (last, *activation, None),
            Some((last, Node { op: op @ Op::PRelu { .. }, inputs, .. })) if inputs.len() == 1 => (last, Activation::None, Some(op)),
            _ => (id, Activation::None, None),
        };
        let stats = new.add(format!("{}.statistics", node.name), Op::ChannelStats, &raws);
        let planes = new.add(format!("{}.plane_statistics", node.name), Op::PlaneStats, &[stats]);
        let scale = new.add(format!("{}.scale", node.name), Op::NormScale(norm.clone()), &[planes]);
        let load = Load { norm: Some(norm.scope()), activation };
        let all_absorb = readers[last.index()].iter().all(|r| absorbs(graph.node(*r), last, norm.scope()));
        let value = if all_absorb && prelu.is_none() && !needed(last) {
            done.absorbed += 1;
            Value::OnLoad { raw: raws[0], scale, load }
        } else {
            let op = prelu.cloned().unwrap_or(Op::Normalise(load));
            Value::Stored(new.add(graph.node(last).name.clone(), op, &[raws[0], scale]))
        };
        values[id.index()] = Some(value);
        values[last.index()] = Some(value);
        done.norms += 1;
    }
    (new, done)
}

#[cfg(test)]
mod tests {
    use super::super::Combine;
    use super::super::pass::optimise;
    use super::*;
    use crate::shape::Extent;

    fn conv(cin: u32, cout: u32, kernel: [u32; 3]) -> Op {
        Op::Conv(Conv {
            module: "conv".into(),
            in_channels: cin,
            out_channels: cout,
            kernel,
            padding: kernel.map(|k| k / 2),
            weight_shape: [cout, cin].into_iter().chain(kernel).map(|n| n as usize).collect(),
            ..Conv::default()
        })
    }

    fn norm(per_plane: bool) -> Op {
        Op::Norm(Norm { module: Some("norm".into()), channels: 4, groups: 4, eps: 1e-5, per_plane })
    }

    /// conv, norm, activation, then a convolution of that kernel depth.
    fn sample(depth: u32, per_plane: bool) -> Graph {
        let mut g = Graph::default();
        let x = g.add("input", Op::Input { channels: 1 }, &[]);
        let y = g.add("a.conv", conv(1, 4, [3; 3]), &[x]);
        let y = g.add("a.norm", norm(per_plane), &[y]);
        let y = g.add("a", Op::Activation(Activation::LeakyRelu { slope: 0.01 }), &[y]);
        g.add("b", conv(4, 2, [depth, 3, 3]), &[y]);
        g
    }

    fn names(g: &Graph) -> Vec<&str> {
        g.nodes().iter().map(|n| n.name.as_str()).collect()
    }

    #[test]
    fn a_convolution_applies_the_norm_as_it_loads() {
        let (g, applied) = optimise(&sample(3, false), &[]);
        assert_eq!(names(&g), ["input", "a.conv", "a.norm.statistics", "a.norm.plane_statistics", "a.norm.scale", "b"]);
        assert_eq!((applied.norms_split, applied.norms_absorbed), (1, 1));
        let last = g.node(g.output());
        assert_eq!(last.inputs, [NodeId(1), NodeId(4)]);
        let load = Load { norm: Some(Scope::Volume), activation: Activation::LeakyRelu { slope: 0.01 } };
        assert!(matches!(&last.op, Op::Conv(c) if c.loads == [load, Load::default()]));
        let maps = g.infer(Extent::new(5, 20, 7)).expect("shapes agree");
        assert_eq!([maps[2].extent, maps[3].extent, maps[4].extent].map(|e| e.axes()), [[5, 3, 1], [5, 1, 1], [1, 1, 1]]);
        assert_eq!(g.parameters().iter().filter(|(name, _)| name.starts_with("norm.")).count(), 2);
    }

    #[test]
    fn a_value_that_is_kept_or_read_otherwise_is_stored() {
        let g = sample(3, false);
        let kept = g.find("a").expect("in the sample");
        let (stored, applied) = optimise(&g, &[kept]);
        assert_eq!((applied.norms_split, applied.norms_absorbed), (1, 0));
        assert!(matches!(stored.node(stored.find("a").expect("kept")).op, Op::Normalise(_)));
        // between norm and activation
        let (stored, _) = optimise(&g, &[g.find("a.norm").expect("in the sample")]);
        assert!(matches!(stored.node(stored.find("a.norm").expect("kept")).op, Op::Normalise(Load { activation: Activation::None, .. })));
        let mut pooled = g.clone();
        let pool = pooled.add("pool", Op::max_pool([1; 3]), &[kept]);
        pooled.add("sum", conv(4, 2, [1; 3]), &[pool]);
        let (stored, applied) = optimise(&pooled, &[]);
        assert_eq!(applied.norms_absorbed, 0);
        assert!(stored.infer(Extent::new(2, 3, 4)).is_ok());
    }

    #[test]
    fn a_norm_of_planes_is_absorbed_by_flat_kernels_only() {
        assert_eq!(optimise(&sample(1, true), &[]).1.norms_absorbed, 1);
        assert_eq!(optimise(&sample(3, true), &[]).1.norms_absorbed, 0);
    }

    #[test]
    fn a_prelu_takes_its_norm_in() {
        for per_plane in [false, true] {
            let mut g = sample(3, per_plane);
            g.nodes[3].op = Op::PRelu { module: "slopes".into(), channels: 4 };
            let (split, applied) = optimise(&g, &[]);
            assert_eq!((applied.norms_split, applied.norms_absorbed), (1, 0));
            let prelu = split.node(split.find("a").expect("it is stored"));
            assert_eq!((&prelu.op, &prelu.inputs[..]), (&g.nodes[3].op, &[NodeId(1), NodeId(4)][..]));
            assert!(split.infer(Extent::new(5, 20, 7)).is_ok());
            let (apart, _) = optimise(&g, &[NodeId(2)]);
            assert!(matches!(apart.node(apart.find("a.norm").expect("kept")).op, Op::Normalise(_)));
            assert_eq!(apart.node(apart.find("a").expect("in the sample")).inputs.len(), 1);
        }
    }

    #[test]
    fn a_sum_applies_norms_as_it_loads() {
        // of the residual blocks of an nnU-Net: the norm of one branch, of both, or of what a convolution adds
        for (first, second, per_plane) in [(true, false, false), (true, true, true), (false, true, true)] {
            let mut g = Graph::default();
            let x = g.add("input", Op::Input { channels: 4 }, &[]);
            let branch = |g: &mut Graph, name: &str, normed: bool| {
                let y = g.add(format!("{name}.conv"), conv(4, 4, [3; 3]), &[x]);
                if normed { g.add(name, norm(per_plane), &[y]) } else { y }
            };
            let (a, b) = (branch(&mut g, "a", first), branch(&mut g, "b", second));
            let y = g.add("sum", Op::Add(Combine::default()), &[a, b]);
            g.add("end", Op::Activation(Activation::LeakyRelu { slope: 0.01 }), &[y]);
            let (g, applied) = optimise(&g, &[]);
            let norms = usize::from(first) + usize::from(second);
            assert_eq!((applied.norms_absorbed, applied.activations_fused), (norms, 1));
            assert_eq!(applied.adds_fused, usize::from(norms == 1), "the convolution without a norm adds");
            let end = g.node(g.output());
            assert_eq!((end.name.as_str(), end.inputs.len()), ("end", 2 + norms));
            let loads = match &end.op {
                Op::Conv(c) => c.loads,
                Op::Add(c) => c.loads,
                _ => panic!("{}", end.op),
            };
            assert_eq!(loads.map(|load| load.norm.is_some()), [norms == 2, true]);
            assert!(g.infer(Extent::new(2, 3, 4)).is_ok());
        }
    }

    #[test]
    fn a_norm_at_the_end_is_stored_with_its_activation() {
        let mut g = sample(3, false);
        let y = g.output();
        let y = g.add("n", Op::Norm(Norm { module: None, channels: 2, groups: 1, eps: 0.0, per_plane: true }), &[y]);
        g.add("end", Op::Activation(Activation::Relu), &[y]);
        let (g, applied) = optimise(&g, &[]);
        assert_eq!((applied.norms_split, applied.norms_absorbed), (2, 1));
        assert_eq!(g.node(g.output()).name, "end");
        assert_eq!(g.infer(Extent::new(5, 20, 7)).expect("shapes agree").last().map(|m| m.channels), Some(2));
    }

    #[test]
    fn norms_that_cannot_be_are_named() {
        let bad = |channels, groups, eps| {
            let mut g = sample(3, false);
            let y = g.output();
            g.add("bad", Op::Norm(Norm { module: None, channels, groups, eps, per_plane: false }), &[y]);
            let e = g.infer(Extent::new(2, 3, 4)).expect_err("it cannot be");
            assert_eq!(e.node, "bad");
        };
        bad(3, 3, 1e-5);
        bad(2, 0, 1e-5);
        bad(2, 3, 1e-5);
        bad(2, 2, f64::NAN);
        bad(2, 2, -1.0);
    }
}
