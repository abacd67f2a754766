//! Lifetimes of slabs and weights. A slab that waits long between two uses may spend the wait on the host: it then has several
//! lives on the device, with a spill after the first and a restore before each other one. Weights may stay on the host between
//! their uses, too: they are fetched at the beginning of each of their lives.

use std::collections::BTreeMap;

use super::place;
use super::schedule::Schedule;
use crate::caps::DeviceCaps;
use crate::graph::NodeId;

/// A wait of fewer tasks than this is not worth two transfers.
const SHORTEST_WAIT: u32 = 4;

/// A wait this many times shorter than the longest one of its slab is spent on the device.
const SHORT_SHARE: u32 = 8;

/// A slab that leaves for the host or comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub node: NodeId,
    pub slab: u32,
    /// Where it waits on the host.
    pub slot: u32,
    /// The host keeps it, as it comes back once more.
    pub keep: bool,
}

/// Weights that may stay on the host between their uses.
#[derive(Clone, Debug)]
pub(super) struct Weights {
    /// Which of the constants they are.
    pub constant: u32,
    pub bytes: u64,
    /// Steps of the tasks that bind them, ascending.
    pub steps: Vec<u32>,
}

/// The lives of all slabs.
#[derive(Debug, Default)]
pub(super) struct Lifetimes {
    /// One a life, in the form that placement takes.
    pub lives: Vec<place::Slab>,
    /// First life of each slab; its others follow it.
    first: Vec<u32>,
    /// Lives of the weights that are fetched: the constant, and the first and the last of them.
    fetched: Vec<(u32, std::ops::Range<u32>)>,
    /// Spills after each task.
    pub spills: BTreeMap<u32, Vec<Move>>,
    /// Restores before each task.
    pub restores: BTreeMap<u32, Vec<Move>>,
    /// Constants fetched before each task.
    pub fetches: BTreeMap<u32, Vec<u32>>,
    /// Bytes of the weights that stay on the host, and those that are fetched of them in all.
    pub weights_bytes: [u64; 2],
    /// Bytes of the slabs that wait on the host, by slot.
    pub slots: Vec<u64>,
}

/// When a slab is made and read.
#[derive(Clone, Debug, Default)]
pub(super) struct Uses {
    /// Step of the first task that makes it.
    begin: u32,
    /// Step of the last task that makes it, then of those that read it, ascending.
    steps: Vec<u32>,
}

/// The uses of each slab.
pub(super) fn uses(s: &Schedule) -> Vec<Uses> {
    let mut uses = vec![Uses::default(); s.slab_count()];
    for (step, task) in (0u32..).zip(&s.tasks) {
        let own = &mut uses[s.slab_id(task.node, task.slab)];
        match own.steps.first_mut() {
            Some(last) => *last = step,
            None => *own = Uses { begin: step, steps: vec![step] },
        }
        for &read in s.reads(step) {
            let list = &mut uses[read as usize].steps;
            if list.last() != Some(&step) {
                list.push(step);
            }
        }
    }
    uses
}

/// The longest wait of a slab in tasks.
fn longest_wait(uses: &[u32]) -> Option<u32> {
    uses.windows(2).map(|w| w[1] - w[0]).filter(|&wait| wait >= SHORTEST_WAIT).max()
}

/// Where the uses of a slab fall apart into lives: the positions of the first use of each but the first.
fn lives_of(uses: &[u32], shortest: u32) -> Vec<usize> {
    (1..uses.len()).filter(|&i| uses[i] - uses[i - 1] >= shortest).collect()
}

/// Nodes whose values wait, those first that would free most bytes for longest.
pub(super) fn waiting(s: &Schedule, uses: &[Uses]) -> Vec<NodeId> {
    let mut ranked: Vec<(u128, NodeId)> = s
        .net
        .graph
        .ids()
        .filter_map(|node| {
            let freed: u128 = (0..s.slabs(node))
                .filter_map(|slab| {
                    longest_wait(&uses[s.slab_id(node, slab)].steps).map(|wait| u128::from(wait) * u128::from(s.slab_bytes(node, slab)))
                })
                .sum();
            (freed > 0).then_some((freed, node))
        })
        .collect();
    ranked.sort_by_key(|&(freed, node)| (std::cmp::Reverse(freed), node));
    ranked.into_iter().map(|(_, node)| node).collect()
}

impl Lifetimes {
    /// Lives of all slabs when the values of `spilled` nodes wait on the host, and of `fetched` weights.
    pub(super) fn new(s: &Schedule, uses: &[Uses], spilled: &[NodeId], fetched: &[Weights], caps: &DeviceCaps) -> Self {
        let mut l = Self { first: vec![0; s.slab_count()], ..Self::default() };
        for node in s.net.graph.ids() {
            for slab in 0..s.slabs(node) {
                let id = s.slab_id(node, slab);
                let Uses { begin, steps } = &uses[id];
                let (begin, Some(&end)) = (*begin, steps.last()) else { continue };
                let size = caps.align(s.slab_bytes(node, slab));
                l.first[id] = count(&l.lives);
                let life = |begin, end| place::Slab { size, begin, end, apart: Vec::new() };
                let wait = longest_wait(steps).filter(|_| spilled.contains(&node));
                let Some(longest) = wait else {
                    l.lives.push(life(begin, end));
                    continue;
                };
                let slot = count(&l.slots);
                l.slots.push(s.slab_bytes(node, slab));
                let parts = lives_of(steps, SHORTEST_WAIT.max(longest / SHORT_SHARE));
                l.spills.entry(steps[parts[0] - 1]).or_default().push(Move { node, slab, slot, keep: false });
                l.lives.push(life(begin, steps[parts[0] - 1]));
                for (i, &part) in parts.iter().enumerate() {
                    let next = parts.get(i + 1);
                    let restore = Move { node, slab, slot, keep: next.is_some() };
                    l.restores.entry(steps[part]).or_default().push(restore);
                    l.lives.push(life(steps[part], next.map_or(end, |&next| steps[next - 1])));
                }
            }
        }
        for (step, task) in (0u32..).zip(&s.tasks) {
            let own = l.life(s.slab_id(task.node, task.slab), step);
            for &read in s.reads(step) {
                let read = l.life(read as usize, step);
                l.keep_apart(own, read);
            }
        }
        fetched.iter().for_each(|weights| l.fetch(s, weights, caps));
        l
    }

    fn keep_apart(&mut self, a: usize, b: usize) {
        self.lives[a].apart.push(count_of(b));
        self.lives[b].apart.push(count_of(a));
    }

    /// Adds the lives of weights that stay on the host between their uses.
    fn fetch(&mut self, s: &Schedule, weights: &Weights, caps: &DeviceCaps) {
        let steps = &weights.steps;
        let parts = lives_of(steps, SHORTEST_WAIT);
        let begins = std::iter::once(0).chain(parts.iter().copied());
        let ends = parts.iter().copied().chain([steps.len()]);
        let first = count(&self.lives);
        for (begin, end) in begins.zip(ends).filter(|(begin, end)| begin < end) {
            let life = place::Slab { size: caps.align(weights.bytes), begin: steps[begin], end: steps[end - 1], apart: Vec::new() };
            self.lives.push(life);
            self.fetches.entry(steps[begin]).or_default().push(weights.constant);
            self.weights_bytes[1] += weights.bytes;
            let own = self.lives.len() - 1;
            for &step in &steps[begin..end] {
                let task = s.tasks[step as usize];
                self.keep_apart(own, self.life(s.slab_id(task.node, task.slab), step));
            }
        }
        self.weights_bytes[0] += weights.bytes;
        self.fetched.push((weights.constant, first..count(&self.lives)));
    }

    /// The life of a slab at a step.
    pub(super) fn life(&self, slab: usize, step: u32) -> usize {
        let mut life = self.first[slab] as usize;
        while step > self.lives[life].end {
            life += 1;
        }
        life
    }

    /// The life of fetched weights at a step; `None` of constants that are not fetched.
    pub(super) fn life_of_weights(&self, constant: u32, step: u32) -> Option<usize> {
        let (_, lives) = self.fetched.iter().find(|(c, _)| *c == constant)?;
        lives.clone().map(|life| life as usize).find(|&life| step <= self.lives[life].end)
    }

    /// Bytes of slabs that leave for the host.
    pub(super) fn spilled_bytes(&self) -> u64 {
        self.slots.iter().sum()
    }

    /// Bytes of slabs that come back, some of them more than once.
    pub(super) fn restored_bytes(&self) -> u64 {
        self.restores.values().flatten().map(|m| self.slots[m.slot as usize]).sum()
    }

    /// Most bytes of slabs that wait on the host at once.
    pub(super) fn host_peak(&self) -> u64 {
        let (mut live, mut most) = (0u64, 0u64);
        let steps: std::collections::BTreeSet<u32> = self.spills.keys().chain(self.restores.keys()).copied().collect();
        let moved =
            |moves: Option<&Vec<Move>>| moves.into_iter().flatten().filter(|m| !m.keep).map(|m| self.slots[m.slot as usize]).sum::<u64>();
        for step in steps {
            live -= moved(self.restores.get(&step)).min(live);
            live += moved(self.spills.get(&step));
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
    fn long_waits_part_lives() {
        assert_eq!(longest_wait(&[3, 4, 20, 30]), Some(16));
        assert_eq!(longest_wait(&[3, 4, 6]), None);
        assert_eq!(longest_wait(&[3]), None);
        assert_eq!(lives_of(&[3, 4, 20, 30], 5), [2, 3]);
        assert_eq!(lives_of(&[3, 4, 20, 30], 12), [2]);
        assert_eq!(lives_of(&[3], 1), [0; 0]);
    }
}
