//! Order of tasks: a task computes one slab of one value. Slabs are demanded depth-first from the last node's slabs, so a
//! chain of local operations rolls through the volume, and an operation that reads a whole map waits for all of it.

use std::ops::Range;
use std::sync::Arc;

use super::network::Network;
use crate::graph::NodeId;

/// Planes of one slab of one value to compute. A slab is computed in as many tasks as its windows need to lie in few slabs of
/// the sources, so that these come late and go early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub node: NodeId,
    /// Which slab of the node's value.
    pub slab: u32,
    /// Its first plane, of the value.
    pub begin: u32,
    /// The plane behind its last.
    pub end: u32,
}

impl Task {
    /// The planes, of the value.
    pub(super) fn planes(&self) -> Range<u32> {
        self.begin..self.end
    }
}

/// Values cut into slabs, and the order in which the slabs are computed.
#[derive(Debug)]
pub(super) struct Schedule {
    pub net: Arc<Network>,
    /// Slab depth of each value.
    pub depths: Vec<u32>,
    pub tasks: Vec<Task>,
    /// Numbers of the slabs that each task reads.
    reads: Vec<Vec<u32>>,
    /// First slab number of each value in the list of all slabs.
    starts: Vec<u32>,
    /// Operations between the input and each value, along the longest way.
    heights: Vec<u32>,
    /// Last task of those that compute each slab.
    made_by: Vec<Option<u32>>,
}

impl Schedule {
    pub(super) fn new(net: Arc<Network>, depths: Vec<u32>) -> Self {
        let mut starts = Vec::with_capacity(depths.len());
        let mut total = 0;
        for (map, depth) in net.maps.iter().zip(&depths) {
            starts.push(total);
            total += map.extent.d.div_ceil(*depth);
        }
        let (output, ids) = (net.graph.output(), net.graph.ids());
        let mut heights: Vec<u32> = Vec::with_capacity(depths.len());
        for node in net.graph.nodes() {
            heights.push(node.inputs.iter().map(|i| heights[i.index()] + 1).max().unwrap_or(0));
        }
        let mut s = Self { net, depths, tasks: Vec::new(), reads: Vec::new(), starts, heights, made_by: vec![None; total as usize] };
        for slab in 0..s.slabs(output) {
            s.demand(output, slab);
        }
        // what is kept but leads nowhere
        for id in ids {
            for slab in 0..s.slabs(id) {
                s.demand(id, slab);
            }
        }
        s
    }

    /// Slabs of a node's value.
    pub(super) fn slabs(&self, node: NodeId) -> u32 {
        self.net.planes(node).div_ceil(self.depths[node.index()])
    }

    /// Slabs of all values.
    pub(super) fn slab_count(&self) -> usize {
        self.made_by.len()
    }

    /// Number of a slab among all slabs.
    pub(super) fn slab_id(&self, node: NodeId, slab: u32) -> usize {
        (self.starts[node.index()] + slab) as usize
    }

    /// Planes of a slab.
    pub(super) fn planes(&self, node: NodeId, slab: u32) -> Range<u32> {
        let depth = self.depths[node.index()];
        let begin = slab * depth;
        begin..(begin + depth).min(self.net.planes(node))
    }

    /// Bytes of a slab.
    pub(super) fn slab_bytes(&self, node: NodeId, slab: u32) -> u64 {
        let planes = self.planes(node, slab).len() as u64;
        planes * self.net.plane_bytes(node)
    }

    /// Slabs of `input` that hold `planes`.
    pub(super) fn covering(&self, input: NodeId, planes: &Range<u32>) -> Range<u32> {
        let depth = self.depths[input.index()];
        planes.start / depth..(planes.end - 1) / depth + 1
    }

    /// Numbers, among all slabs, of those that the task of a step reads.
    pub(super) fn reads(&self, step: u32) -> &[u32] {
        &self.reads[step as usize]
    }

    /// Slabs (input, slab) that planes `z` of `node` are computed from.
    fn reads_of(&self, node: NodeId, z: &Range<u32>) -> Vec<(NodeId, u32)> {
        let mut list = Vec::new();
        for (slot, &input) in self.net.node(node).inputs.iter().enumerate() {
            list.extend(self.covering(input, &self.net.reach(node, slot, z)).map(|k| (input, k)));
        }
        list
    }

    /// The first task of `reader` that reads a slab of `node`.
    pub(super) fn first_read(&self, reader: NodeId, node: NodeId, slab: u32) -> Option<u32> {
        let reads = |k| self.reads_of(reader, &self.planes(reader, k));
        let readers = (0..self.slabs(reader)).filter(|&k| reads(k).contains(&(node, slab)));
        readers.filter_map(|k| self.made_by[self.slab_id(reader, k)]).min()
    }

    fn demand(&mut self, node: NodeId, slab: u32) {
        let id = self.slab_id(node, slab);
        if self.made_by[id].is_some() {
            return;
        }
        let planes = self.planes(node, slab);
        let mut begin = planes.start;
        while begin < planes.end {
            let mut end = begin + 1;
            while end < planes.end && self.fits(node, &(begin..end + 1)) {
                end += 1;
            }
            let mut reads = self.reads_of(node, &(begin..end));
            // what takes longest to make comes first: the rest would wait for it
            reads.sort_by_key(|&(input, k)| (std::cmp::Reverse(self.heights[input.index()]), input, k));
            for &(input, k) in &reads {
                self.demand(input, k);
            }
            self.reads.push(reads.iter().map(|&(input, k)| self.starts[input.index()] + k).collect());
            self.made_by[id] = u32::try_from(self.tasks.len()).ok();
            self.tasks.push(Task { node, slab, begin, end });
            begin = end;
        }
    }

    /// Whether a task is the last one of its slab.
    pub(super) fn completes(&self, task: &Task) -> bool {
        task.end == self.planes(task.node, task.slab).end
    }

    /// Cuts the planes of a task into dispatches whose work stays below `max_flops`, given the work of one plane.
    pub(super) fn dispatches(&self, task: &Task, plane_flops: u64, max_flops: u64) -> impl Iterator<Item = Range<u32>> {
        let most = u32::try_from((max_flops / plane_flops.max(1)).max(1)).unwrap_or(u32::MAX);
        let planes = task.planes();
        planes.clone().step_by(most as usize).map(move |begin| begin..begin.saturating_add(most).min(planes.end))
    }

    /// Whether the windows of output planes `z` lie in as many slabs as the kernel binds.
    pub(super) fn fits(&self, node: NodeId, z: &Range<u32>) -> bool {
        let inputs = self.net.node(node).inputs.iter().enumerate();
        inputs
            .zip(self.net.reaches(node))
            .all(|((slot, &input), reach)| self.covering(input, &self.net.reach(node, slot, z)).len() <= reach.bindings())
    }
}
