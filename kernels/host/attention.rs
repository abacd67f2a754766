//! Host halves of attention: between all tokens, and in windows.

use super::attend::{KEYS, Room, room};
use super::isa::{self, Isa, Work};
use super::{HostHalf, Scratch, Slab, SlabMut, each};
use crate::kernels::Kernel;
use crate::kernels::attention::Attention;
use crate::kernels::window_attention::{Key, WindowAttention, axis, region};
use crate::shape::Extent;

/// Queries of a task: keys are packed again for every task.
const QUERIES: usize = 192;

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
            for (t, to) in room.queries.chunks_exact_mut(q_dim.max(1)).enumerate() {
                let from = q.view((first + t) * q_stride + q_channel + head * q_dim, q_dim, room.wide);
                to.iter_mut().zip(from).for_each(|(y, &x)| *y = x * k.scale);
            }
            let (mut done, mut source, mut token) = (0, 0, 0);
            while done < all {
                let count = KEYS.min(all - done);
                for j in 0..count {
                    while token == sources[source].count {
                        (source, token) = (source + 1, 0);
                    }
                    let s = &sources[source];
                    let wide = std::mem::take(&mut room.wide);
                    room.key(j, count, s.keys.view((s.begin[0] + token) * k_stride + k_channel + head * q_dim, q_dim, wide));
                    room.value(j, s.values.view((s.begin[1] + token) * v_stride + v_channel + head * v_dim, v_dim, wide));
                    room.wide = wide;
                    token += 1;
                }
                let mask = &mask[done.min(mask.len())..];
                room.attend::<I>(queries, count, &mut begins, |_, scores| {
                    scores.iter_mut().zip(mask).for_each(|(s, &m)| *s += m);
                });
                done += count;
            }
            for t in 0..queries {
                self.out.store(t * stride + head * v_dim, room.finish(t));
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
        let at_once = tokens.div_ceil(rayon::current_num_threads()).clamp(1, QUERIES);
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

impl WindowAttention {
    fn dims(&self) -> [usize; 2] {
        [self.shape.q_dim() as usize, self.shape.v_dim() as usize]
    }

    /// The row of windows that row `y` of plane `z` of the result lies in, along D and H.
    fn window_row(&self, z: usize, y: usize) -> [usize; 2] {
        let s = &self.shape;
        if s.token_queries {
            return [z, y];
        }
        let grid = s.grid(self.keys);
        [(0, z), (1, y)].map(|(a, at)| {
            let (window, n) = (s.q_window[a] as usize, (grid[a] * s.q_window[a]) as usize);
            (at + n - s.shift[a] as usize) % n / window
        })
    }
}

/// A row of the result.
type Row<'g> = ([usize; 2], SlabMut<'g>);

/// A query: the row of the task that it lies in, its column, its number in the window, its region.
type Query = (usize, usize, usize, Option<[u32; 3]>);

struct WindowTask<'a, 'g> {
    kernel: &'g WindowAttention,
    inputs: &'g [Slab<'a>; 5],
    window: [usize; 2],
    rows: Vec<Row<'g>>,
    room: &'g mut [f32],
}

impl Work for WindowTask<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let k = self.kernel;
        let (s, grid, [q_dim, v_dim]) = (&k.shape, k.shape.grid(k.keys), k.dims());
        let [q_stride, kv_stride, stride] = [k.q_channels, k.kv_channels, s.v_channels].map(|c| c.next_multiple_of(4) as usize);
        let (n_h, n_w) = (k.queries.h as usize, k.queries.w as usize);
        let fixed = self.inputs[4].floats();
        let (table, rest) = fixed.split_at((s.heads * s.bias_rows) as usize);
        let (index, rest) = rest.split_at(s.index_len() as usize);
        let (pad_key, pad_value) = rest.split_at(s.qk_channels as usize);
        let [q_window, k_window] = [s.q_window, s.k_window].map(|w| w.map(|n| n as usize));
        let (asking, rows) = (q_window.iter().product::<usize>(), s.bias_rows as usize);
        for (_, row) in &mut self.rows {
            for x in 0..n_w {
                let count = stride - s.v_channels as usize;
                row.store(x * stride + s.v_channels as usize, &[0.0; 3][..count]);
            }
        }
        let (mut begins, mut queries, mut keys) = (Vec::new(), Vec::<Query>::new(), Vec::new());
        for column in 0..grid[2] as usize {
            let window = [self.window[0], self.window[1], column];
            queries.clear();
            for (i, ([z, y], _)) in self.rows.iter().enumerate() {
                if s.token_queries {
                    queries.extend((0..s.tokens as usize).map(|t| (i, column * s.tokens as usize + t, 0, None)));
                    continue;
                }
                for inside in 0..q_window[2] {
                    let n = [0, 1, 2].map(|a| grid[a] as usize * q_window[a]);
                    let x = (column * q_window[2] + inside + s.shift[2] as usize) % n[2];
                    if x < n_w {
                        let rolled = [(0, *z), (1, *y), (2, x)].map(|(a, at)| (at + n[a] - s.shift[a] as usize) % n[a]);
                        let inside = [0, 1, 2].map(|a| rolled[a] % q_window[a]);
                        let number = (inside[0] * q_window[1] + inside[1]) * q_window[2] + inside[2];
                        queries.push((i, x, number, Some(region(s, grid, s.q_window, rolled))));
                    }
                }
            }
            keys.clear();
            keys.extend((0..s.tokens as usize).map(|t| (Key::Token(t), None)));
            for at in 0..k_window.iter().product() {
                let inside = [at / (k_window[1] * k_window[2]), at / k_window[2] % k_window[1], at % k_window[2]];
                let along = [0, 1, 2].map(|a| axis(s, grid, s.k_window, a, window[a], inside[a]));
                let source = along.map(|(_, source)| source);
                let padding = source.iter().zip(k.keys.axes()).any(|(&x, n)| x >= n as usize);
                let key = if padding { Key::Padding } else { Key::Voxel(source) };
                keys.push((key, Some(region(s, grid, s.k_window, along.map(|(rolled, _)| rolled)))));
            }
            if queries.is_empty() {
                continue;
            }
            for head in 0..s.heads as usize {
                let mut room = Room::new(self.room, queries.len(), [q_dim, v_dim]);
                for (to, &(i, x, ..)) in room.queries.chunks_exact_mut(q_dim).zip(&queries) {
                    let [z, y] = self.rows[i].0;
                    let token = ((z - k.windows[0].first as usize) * n_h + y) * n_w + x;
                    let from = self.inputs[0].view(token * q_stride + s.first[0] as usize + head * q_dim, q_dim, room.wide);
                    to.iter_mut().zip(from).for_each(|(y, &x)| *y = x * s.scale);
                }
                for (block, keys) in keys.chunks(KEYS).enumerate() {
                    for (j, (key, _)) in keys.iter().enumerate() {
                        let wide = std::mem::take(&mut room.wide);
                        if let Key::Padding = key {
                            room.key(j, keys.len(), &pad_key[head * q_dim..][..q_dim]);
                            room.value(j, &pad_value[head * v_dim..][..v_dim]);
                        } else {
                            let (slab, begin) = k.voxel(self.inputs, key, window, grid, kv_stride);
                            let of = |slot: usize, dim: usize| begin + s.first[slot] as usize + head * dim;
                            room.key(j, keys.len(), slab.view(of(1, q_dim), q_dim, wide));
                            room.value(j, slab.view(of(2, v_dim), v_dim, wide));
                        }
                        room.wide = wide;
                    }
                    room.attend::<I>(queries.len(), keys.len(), &mut begins, |q, scores| {
                        let (_, _, number, Some(own)) = queries[q] else { return };
                        for (j, (score, (_, other))) in scores.iter_mut().zip(keys).enumerate() {
                            let Some(other) = other else { continue };
                            if rows > 0 {
                                let at = (block * KEYS + j - s.tokens as usize) * asking + number;
                                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index, clamped")]
                                let which = index[at] as usize;
                                *score += table[head * rows + which.min(rows - 1)];
                            }
                            if s.shifted() && own != *other {
                                *score -= 100.0;
                            }
                        }
                    });
                }
                for (q, &(i, x, ..)) in queries.iter().enumerate() {
                    self.rows[i].1.store(x * stride + head * v_dim, room.finish(q));
                }
            }
        }
    }
}

impl WindowAttention {
    /// The slab that a key of a window lies in, and the first element of its voxel.
    fn voxel<'a>(&self, inputs: &[Slab<'a>; 5], key: &Key, window: [usize; 3], grid: [u32; 3], stride: usize) -> (Slab<'a>, usize) {
        let tokens = self.shape.tokens as usize;
        match *key {
            Key::Token(t) => {
                let row = grid[2] as usize * tokens;
                let plane = (window[0] - self.windows[2].first as usize) * grid[1] as usize;
                (inputs[3], ((plane + window[1]) * row + window[2] * tokens + t) * stride)
            }
            Key::Voxel([z, y, x]) => {
                let w = self.windows[1];
                let (slab, first) = if z < w.split as usize { (inputs[1], w.first) } else { (inputs[2], w.split) };
                (slab, (((z - first as usize) * self.keys.h as usize + y) * self.keys.w as usize + x) * stride)
            }
            Key::Padding => (inputs[1], 0),
        }
    }
}

impl HostHalf for WindowAttention {
    fn scratch(&self) -> u64 {
        room(self.shape.queries_of_window() as usize, self.dims()) as u64
    }

    fn run(&self, inputs: &[Slab<'_>], output: SlabMut<'_>, scratch: &Scratch) {
        let Some(inputs) = inputs.first_chunk() else { return };
        let (h, row) = (self.queries.h as usize, self.queries.w as usize * self.shape.v_channels.next_multiple_of(4) as usize);
        let mut tasks = std::collections::BTreeMap::<[usize; 2], Vec<Row<'_>>>::new();
        for (i, out) in output.planes_of(&self.target, h * row).parts(row).into_iter().enumerate() {
            let (z, y) = (self.target.begin as usize + i / h, i % h);
            tasks.entry(self.window_row(z, y)).or_default().push(([z, y], out));
        }
        let tasks = tasks.into_iter().collect();
        each(tasks, self.cost().flops, scratch, |(window, rows), room| {
            isa::run(WindowTask { kernel: self, inputs, window, rows, room });
        });
    }
}
