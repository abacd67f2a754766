//! Lifetimes of slabs. A slab that waits long between two uses may spend the wait on the host: it then has two lives on the
//! device, with a spill after the first and a restore before the second.

use std::collections::BTreeMap;

use super::place;
use super::schedule::Schedule;
use crate::caps::DeviceCaps;
use crate::graph::NodeId;

/// A wait of fewer tasks than this is not worth two transfers.
const SHORTEST_WAIT: u32 = 4;

/// A slab that leaves for the host or comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub node: NodeId,
    pub slab: u32,
    /// Where it waits on the host.
    pub slot: u32,
}

/// The lives of all slabs.
#[derive(Debug, Default)]
pub(super) struct Lifetimes {
    /// One a life, in the form that placement takes.
    pub lives: Vec<place::Slab>,
    /// First life of each slab; a second one follows it.
    first: Vec<u32>,
    /// Spills after each task.
    pub spills: BTreeMap<u32, Vec<Move>>,
    /// Restores before each task.
    pub restores: BTreeMap<u32, Vec<Move>>,
    /// Bytes of the slabs that wait on the host, by slot.
    pub slots: Vec<u64>,
}

/// The steps at which each slab is made and read, ascending.
pub(super) fn uses(s: &Schedule) -> Vec<Vec<u32>> {
    let mut uses = vec![Vec::new(); s.slab_count()];
    for (step, task) in (0u32..).zip(&s.tasks) {
        uses[s.slab_id(task.node, task.slab)].push(step);
        for (input, slab) in s.reads(task.node, task.slab) {
            let list = &mut uses[s.slab_id(input, slab)];
            if list.last() != Some(&step) {
                list.push(step);
            }
        }
    }
    uses
}

/// The longest wait of a slab: position of the use before it, and its length in tasks.
fn longest_wait(uses: &[u32]) -> Option<(usize, u32)> {
    uses.windows(2)
        .enumerate()
        .map(|(i, w)| (i, w[1] - w[0]))
        .filter(|&(_, wait)| wait >= SHORTEST_WAIT)
        .max_by_key(|&(i, wait)| (wait, std::cmp::Reverse(i)))
}

/// Nodes whose values wait, those first that would free most bytes for longest.
pub(super) fn waiting(s: &Schedule, uses: &[Vec<u32>]) -> Vec<NodeId> {
    let mut ranked: Vec<(u128, NodeId)> = s
        .net
        .graph
        .ids()
        .filter_map(|node| {
            let freed: u128 = (0..s.slabs(node))
                .filter_map(|slab| {
                    longest_wait(&uses[s.slab_id(node, slab)]).map(|(_, wait)| u128::from(wait) * u128::from(s.slab_bytes(node, slab)))
                })
                .sum();
            (freed > 0).then_some((freed, node))
        })
        .collect();
    ranked.sort_by_key(|&(freed, node)| (std::cmp::Reverse(freed), node));
    ranked.into_iter().map(|(_, node)| node).collect()
}

impl Lifetimes {
    /// Lives of all slabs when the values of `spilled` nodes wait on the host.
    pub(super) fn new(s: &Schedule, uses: &[Vec<u32>], spilled: &[NodeId], caps: &DeviceCaps) -> Self {
        let mut l = Self { first: vec![0; s.slab_count()], ..Self::default() };
        for node in s.net.graph.ids() {
            for slab in 0..s.slabs(node) {
                let id = s.slab_id(node, slab);
                let steps = &uses[id];
                let (Some(&begin), Some(&end)) = (steps.first(), steps.last()) else { continue };
                let size = caps.align(s.slab_bytes(node, slab));
                l.first[id] = count(&l.lives);
                let life = |begin, end| place::Slab { size, begin, end, apart: Vec::new() };
                match longest_wait(steps).filter(|_| spilled.contains(&node)) {
                    Some((i, _)) => {
                        let step = Move { node, slab, slot: count(&l.slots) };
                        l.slots.push(s.slab_bytes(node, slab));
                        l.spills.entry(steps[i]).or_default().push(step);
                        l.restores.entry(steps[i + 1]).or_default().push(step);
                        l.lives.push(life(begin, steps[i]));
                        l.lives.push(life(steps[i + 1], end));
                    }
                    None => l.lives.push(life(begin, end)),
                }
            }
        }
        for (step, task) in (0u32..).zip(&s.tasks) {
            let own = l.life(s.slab_id(task.node, task.slab), step);
            for (input, slab) in s.reads(task.node, task.slab) {
                let read = l.life(s.slab_id(input, slab), step);
                l.lives[read].apart.push(count_of(own));
                l.lives[own].apart.push(count_of(read));
            }
        }
        l
    }

    /// The life of a slab at a step.
    pub(super) fn life(&self, slab: usize, step: u32) -> usize {
        let first = self.first[slab] as usize;
        if step > self.lives[first].end { first + 1 } else { first }
    }

    /// Bytes that leave for the host; as many come back.
    pub(super) fn spilled_bytes(&self) -> u64 {
        self.slots.iter().sum()
    }

    /// Most bytes that wait on the host at once.
    pub(super) fn host_peak(&self) -> u64 {
        let (mut live, mut most) = (0u64, 0u64);
        let steps: std::collections::BTreeSet<u32> = self.spills.keys().chain(self.restores.keys()).copied().collect();
        let bytes = |moves: Option<&Vec<Move>>| moves.into_iter().flatten().map(|m| self.slots[m.slot as usize]).sum::<u64>();
        for step in steps {
            live -= bytes(self.restores.get(&step)).min(live);
            live += bytes(self.spills.get(&step));
            most = most.max(live);
        }
        most
    }
}

fn count<T>(list: &[T]) -> u32 {
    count_of(list.len())
}

fn count_of(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_is_found() {
        assert_eq!(longest_wait(&[3, 4, 20, 30]), Some((1, 16)));
        assert_eq!(longest_wait(&[3, 4, 6]), None);
        assert_eq!(longest_wait(&[3]), None);
    }
}
