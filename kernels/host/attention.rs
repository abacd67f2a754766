//! The host half of attention between all tokens.

use super::attend::{Bias, KEYS, Room, room};
use super::isa::{self, Isa, Work};
use super::product::WIDEST;
use super::{HostHalf, Scratch, Slab, SlabMut, each};
use crate::kernels::Kernel;
use crate::kernels::attention::Attention;
use crate::shape::Extent;

/// Queries of a task at most: keys are copied again for every task.
const QUERIES: usize = 512;

impl Attention {
    fn dims(&self) -> [usize; 2] {
        [self.channels.qk, self.channels.v].map(|c| (c / self.heads) as usize)
    }

    fn strides(&self) -> [usize; 3] {
        self.stored.map(|c| c.next_multiple_of(4) as usize)
    }
}

#[derive(Clone, Copy)]
struct Tokens<'a> {
    keys: Slab<'a>,
    values: Slab<'a>,
    /// First tokens in their slabs, and how many.
    begin: [usize; 2],
    count: usize,
}

struct AttentionTask<'a, 'g> {
    kernel: &'g Attention,
    inputs: &'g [Slab<'a>; 6],
    /// Number of the first query among the tokens of the target.
    at: usize,
    out: SlabMut<'g>,
    room: &'g mut [f32],
}

impl Work for AttentionTask<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let k = self.kernel;
        let ([q_stride, k_stride, v_stride], [q_dim, v_dim]) = (k.strides(), k.dims());
        let stride = k.channels.v.next_multiple_of(4) as usize;
        let plane = k.queries.plane() as usize;
        let queries = self.out.len() / stride;
        let z = k.target.begin as usize + self.at / plane;
        let [q, keys, values, more_keys, more_values, mask] = *self.inputs;
        let first = (k.target.begin - k.windows[0].first) as usize * plane + self.at;
        let tokens = |extent: Extent, keys, values, slot: usize| {
            let count = k.tokens(extent) as usize;
            let begin = |slot: usize| if k.per_plane { (z - k.windows[slot].first as usize) * count } else { 0 };
            Tokens { keys, values, begin: [begin(slot), begin(slot + 1)], count }
        };
        let mut sources = vec![tokens(k.keys, keys, values, 1)];
        sources.extend(k.more_keys.map(|extent| tokens(extent, more_keys, more_values, 3)));
        // keys and values in two slabs, each cut where it likes
        let mut splits: Vec<usize> = [1, 2].into_iter().filter_map(|slot| k.split(slot)).map(|n| n as usize).collect();
        splits.sort_unstable();
        for split in splits.into_iter().rev() {
            let lower = sources[0].count.min(split);
            let mut upper = sources[0];
            upper.count -= lower;
            upper.begin = upper.begin.map(|begin| begin + lower);
            sources[0].count = lower;
            sources.insert(1, upper);
        }
        for s in &mut sources {
            for (slot, slab, upper) in [(1, &mut s.keys, more_keys), (2, &mut s.values, more_values)] {
                if let Some(split) = k.split(slot).map(|n| n as usize).filter(|&n| s.begin[slot - 1] >= n) {
                    *slab = upper;
                    s.begin[slot - 1] -= split;
                }
            }
        }
        let all: usize = sources.iter().map(|s| s.count).sum();
        let mask = if k.masked { mask.floats() } else { &[] };
        let mut begins = Vec::with_capacity(queries);
        let [q_channel, k_channel, v_channel] = k.channels.first.map(|c| c as usize);
        if stride > k.channels.v as usize {
            for t in 0..queries {
                self.out.store(t * stride + k.channels.v as usize, &[0.0; 3][..stride - k.channels.v as usize]);
            }
        }
        for head in 0..k.heads as usize {
            let mut room = Room::new(self.room, queries, [q_dim, v_dim]);
            let wide = std::mem::take(&mut room.wide);
            for t in 0..queries {
                let at = (first + t) * q_stride + q_channel + head * q_dim;
                room.query(t, q.view(at, q_dim, wide), k.scale);
            }
            room.wide = wide;
            let (mut done, mut source, mut token) = (0, 0, 0);
            while done < all {
                let count = KEYS.min(all - done);
                for j in 0..count {
                    while token == sources[source].count {
                        (source, token) = (source + 1, 0);
                    }
                    let s = &sources[source];
                    let wide = std::mem::take(&mut room.wide);
                    room.key(j, s.keys.view((s.begin[0] + token) * k_stride + k_channel + head * q_dim, q_dim, wide));
                    room.value(j, s.values.view((s.begin[1] + token) * v_stride + v_channel + head * v_dim, v_dim, wide));
                    room.wide = wide;
                    token += 1;
                }
                let bias = Mask(&mask[done.min(mask.len())..]);
                room.attend::<I>(count, &mut begins, &bias);
                done += count;
            }
            room.finish();
            for t in 0..queries {
                self.out.store(t * stride + head * v_dim, room.result(t));
            }
        }
    }
}

/// A mask: one number for each key of a block, added to the scores of all queries; none where it is empty.
struct Mask<'a>(&'a [f32]);

impl Bias for Mask<'_> {
    #[inline(always)]
    fn add(&self, _: usize, width: usize, scores: &mut [f32]) {
        for (row, &m) in scores.chunks_exact_mut(width).zip(self.0) {
            for s in row {
                *s += m;
            }
        }
    }
}

impl HostHalf for Attention {
    fn scratch(&self) -> u64 {
        room(QUERIES, self.dims()) as u64
    }

    fn run(&self, inputs: &[Slab<'_>], output: SlabMut<'_>, scratch: &Scratch) {
        let Some(inputs) = inputs.first_chunk() else { return };
        let stride = self.channels.v.next_multiple_of(4) as usize;
        let plane = self.queries.plane() as usize;
        let out = output.planes_of(&self.target, plane * stride);
        let tokens = out.len() / stride;
        // as many tasks for each thread
        let rounds = tokens.div_ceil(rayon::current_num_threads() * QUERIES).max(1);
        let at_once = tokens.div_ceil(rayon::current_num_threads() * rounds);
        let at_once = at_once.next_multiple_of(WIDEST).clamp(1, QUERIES);
        let mut tasks = Vec::new();
        // queries of several planes attend together, unless their keys differ
        let together = if self.per_plane { plane } else { tokens };
        for (i, part) in out.parts(together * stride).into_iter().enumerate() {
            let parts = part.parts(at_once.min(together) * stride).into_iter().enumerate();
            tasks.extend(parts.map(|(j, out)| (i * together + j * at_once.min(together), out)));
        }
        each(tasks, self.cost().flops, scratch, |(at, out), room| isa::run(AttentionTask { kernel: self, inputs, at, out, room }));
    }
}
