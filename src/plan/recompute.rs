//! Recomputing values instead of keeping them: a graph in which readers that come late read a copy that is computed anew.
//!
//! A recomputed value is a further node of the graph with the same operation, so schedule, lifetimes, placement and lowering
//! know nothing of it, and its bits are those of the original.

use std::collections::{BTreeMap, BTreeSet};

use super::network::Network;
use super::schedule::Schedule;
use crate::graph::{Graph, NodeId, Op};

/// A wait of fewer tasks than this share of all does not make a reader late.
const LATE_SHARE: usize = 16;

/// A value this many times smaller than the recomputed one is kept, not computed anew: usually, and
/// where the sources of the value that waits least are to be nearer.
const SMALLER: [u64; 2] = [3, 2];

/// Readers of a node's value in the order in which they come, cut where the value waits long.
fn phases(s: &Schedule, node: NodeId, readers: &[NodeId]) -> Vec<Vec<NodeId>> {
    let middle = s.slabs(node) / 2;
    let mut order: Vec<(u32, NodeId)> = readers.iter().filter_map(|&r| s.first_read(r, node, middle).map(|step| (step, r))).collect();
    order.sort_unstable();
    let late = u32::try_from(s.tasks.len() / LATE_SHARE).unwrap_or(u32::MAX).max(2);
    let mut phases: Vec<Vec<NodeId>> = Vec::new();
    let mut last = None;
    for (step, reader) in order {
        match phases.last_mut().filter(|_| last.is_some_and(|l| step - l <= late)) {
            Some(phase) => phase.push(reader),
            None => phases.push(vec![reader]),
        }
        last = Some(step);
    }
    phases
}

/// A network whose graph recomputes values, with the nodes that leave the device.
#[derive(Debug)]
pub(super) struct Recomputing {
    pub graph: Graph,
    /// The original node of each node.
    pub origins: Vec<NodeId>,
}

/// Nodes to compute anew for a copy of `node`: it and its ancestors but those so many times
/// smaller, which are kept, and barriers.
fn cone(net: &Network, node: NodeId, smaller: u64) -> BTreeSet<NodeId> {
    let floor = bytes(net, node) / smaller;
    let mut cone = BTreeSet::new();
    let mut stack = vec![node];
    while let Some(id) = stack.pop() {
        let barrier = net.reaches(id).iter().any(|reach| reach.is_barrier());
        let small = bytes(net, id) <= floor && !net.is_input(id);
        if (id == node || !(barrier || small)) && cone.insert(id) {
            stack.extend(&net.node(id).inputs);
        }
    }
    cone
}

fn bytes(net: &Network, id: NodeId) -> u64 {
    net.plane_bytes(id) * u64::from(net.planes(id))
}

/// The graph in which late readers of `values` read copies; `None` when no reader is late. Copies
/// are made from the input or from what is much smaller; those of the last value, if it is to be
/// `nearer`, from what has half its bytes.
pub(super) fn recompute(s: &Schedule, values: &[NodeId], nearer: bool) -> Option<Recomputing> {
    let net = &*s.net;
    let consumers = net.graph.consumers();
    // for each late reader of a value, the number of the copy that it reads
    let mut copies: BTreeMap<(NodeId, NodeId), usize> = BTreeMap::new();
    let mut count = 0;
    for &value in values {
        for phase in phases(s, value, &consumers[value.index()]).iter().skip(1) {
            for &reader in phase {
                copies.insert((value, reader), count);
            }
            count += 1;
        }
    }
    if count == 0 {
        return None;
    }
    let near = values.last().copied().filter(|_| nearer);
    let mut b = Builder { net, graph: Graph::default(), origins: Vec::new(), copies: &copies, near, made: BTreeMap::new() };
    for id in net.graph.ids() {
        b.copy(id, None);
    }
    Some(Recomputing { graph: b.graph, origins: b.origins })
}

struct Builder<'a> {
    net: &'a Network,
    graph: Graph,
    origins: Vec<NodeId>,
    copies: &'a BTreeMap<(NodeId, NodeId), usize>,
    /// The value whose copies are made from what has half its bytes.
    near: Option<NodeId>,
    /// New node of each original (`None`) and of each node of a numbered copy.
    made: BTreeMap<(NodeId, Option<usize>), NodeId>,
}

impl Builder<'_> {
    /// The new node for `id`, original or of copy `number`; its inputs are made first.
    fn copy(&mut self, id: NodeId, number: Option<usize>) -> NodeId {
        if let Some(&made) = self.made.get(&(id, number)) {
            return made;
        }
        let node = self.net.node(id).clone();
        let inputs: Vec<NodeId> = node
            .inputs
            .iter()
            .map(|&input| match self.copies.get(&(input, id)) {
                // within a copy everything that is part of it is computed for it, also what has copies of its own
                Some(&other) if number.is_none() => self.copy_of(input, other),
                _ => match number {
                    Some(n) if self.made.contains_key(&(input, Some(n))) => self.copy(input, Some(n)),
                    _ => self.copy(input, None),
                },
            })
            .collect();
        let (name, op) = match number {
            None => (node.name, node.op),
            Some(n) => {
                let op = if let Op::Input { channels } = node.op { Op::InputAgain { channels } } else { node.op };
                (format!("{} (again {})", node.name, n + 1), op)
            }
        };
        let made = self.graph.add(name, op, &inputs);
        self.origins.push(id);
        self.made.insert((id, number), made);
        made
    }

    /// The copy `number` of a value, with its cone before it.
    fn copy_of(&mut self, value: NodeId, number: usize) -> NodeId {
        // originals outside of the cone come first, then the cone in topological order
        let cone = cone(self.net, value, SMALLER[usize::from(self.near == Some(value))]);
        let outside: BTreeSet<NodeId> =
            cone.iter().flat_map(|&id| self.net.node(id).inputs.clone()).filter(|i| !cone.contains(i)).collect();
        for id in outside {
            self.copy(id, None);
        }
        for &id in &cone {
            self.copy(id, Some(number));
        }
        self.made[&(value, Some(number))]
    }
}
