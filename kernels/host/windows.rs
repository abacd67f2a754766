//! The host half of attention in windows.

use super::attend::{Bias, KEYS, Room, room};
use super::isa::{self, Isa, Work};
use super::{HostHalf, Scratch, Slab, SlabMut, each};
use crate::kernels::Kernel;
use crate::kernels::window_attention::{Key, WindowAttention, axis, region};

impl WindowAttention {
    fn dims(&self) -> [usize; 2] {
        [self.shape.q_dim() as usize, self.shape.v_dim() as usize]
    }

    /// Voxels of a window of queries.
    fn asking(&self) -> usize {
        self.shape.q_window.iter().map(|&n| n as usize).product()
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

/// A window of a row of windows: its queries that are computed, and its keys.
#[derive(Default)]
struct Column {
    /// The row of the task that each query lies in, and its column there.
    queries: Vec<[usize; 2]>,
    /// The number of each query in the window, and the part of the rolled map that it lies in.
    numbers: Vec<usize>,
    own: Vec<u32>,
    keys: Vec<Key>,
    /// The part of the rolled map of each key that is a voxel.
    other: Vec<u32>,
    /// True if it has voxels that did not touch before the map was rolled.
    mixed: bool,
}

/// The bias of a block of keys: a number by relative position, and -100 for pairs of voxels that did not
/// touch before the map was rolled. Window tokens get neither.
struct Relative<'a> {
    column: &'a Column,
    /// For each voxel of a window of keys, `line` biases, by the numbers of the queries; or none.
    biases: &'a [f32],
    line: usize,
    tokens: usize,
    /// Number of the block's first key.
    begin: usize,
}

impl Bias for Relative<'_> {
    #[inline(always)]
    fn add(&self, first: usize, width: usize, scores: &mut [f32]) {
        let of = |list: usize| first.min(list)..(first + width).min(list);
        let numbers = &self.column.numbers[of(self.column.numbers.len())];
        let own = &self.column.own[of(self.column.own.len())];
        let Some(&begin) = numbers.first() else { return };
        let neighbours = numbers.iter().zip(begin..).all(|(&number, next)| number == next);
        for (j, row) in scores.chunks_exact_mut(width).enumerate() {
            let Some(voxel) = (self.begin + j).checked_sub(self.tokens) else { continue };
            if !self.biases.is_empty() {
                let biases = &self.biases[voxel * self.line..][..self.line];
                if neighbours {
                    for (s, &b) in row.iter_mut().zip(&biases[begin..][..numbers.len()]) {
                        *s += b;
                    }
                } else {
                    for (s, &number) in row.iter_mut().zip(numbers) {
                        *s += biases[number];
                    }
                }
            }
            if self.column.mixed {
                let other = self.column.other[voxel];
                for (s, &own) in row.iter_mut().zip(own) {
                    *s -= if own == other { 0.0 } else { 100.0 };
                }
            }
        }
    }
}

/// The bias in a row of the table, given as a number.
#[inline(always)]
fn of_table(table: &[f32], row: f32) -> f32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index, clamped")]
    let row = row as usize;
    table[row.min(table.len() - 1)]
}

struct WindowTask<'a, 'g> {
    kernel: &'g WindowAttention,
    inputs: &'g [Slab<'a>; 5],
    window: [usize; 2],
    rows: Vec<Row<'g>>,
    room: &'g mut [f32],
}

impl WindowTask<'_, '_> {
    /// The windows of the row.
    fn columns(&self) -> Vec<Column> {
        let k = self.kernel;
        let (s, grid, n_w) = (&k.shape, k.shape.grid(k.keys), k.queries.w as usize);
        let [q_window, k_window] = [s.q_window, s.k_window].map(|w| w.map(|n| n as usize));
        let part = |window: [u32; 3], rolled: [usize; 3]| region(s, grid, window, rolled).into_iter().fold(0, |id, part| 3 * id + part);
        let of = |column: usize| {
            let mut c = Column::default();
            for (i, ([z, y], _)) in self.rows.iter().enumerate() {
                if s.token_queries {
                    let tokens = s.tokens as usize;
                    c.queries.extend((0..tokens).map(|t| [i, column * tokens + t]));
                    continue;
                }
                for inside in 0..q_window[2] {
                    let n = [0, 1, 2].map(|a| grid[a] as usize * q_window[a]);
                    let x = (column * q_window[2] + inside + s.shift[2] as usize) % n[2];
                    if x < n_w {
                        let at = [*z, *y, x];
                        let rolled = [0, 1, 2].map(|a| (at[a] + n[a] - s.shift[a] as usize) % n[a]);
                        let inside = [0, 1, 2].map(|a| rolled[a] % q_window[a]);
                        let number = (inside[0] * q_window[1] + inside[1]) * q_window[2] + inside[2];
                        c.queries.push([i, x]);
                        c.numbers.push(number);
                        c.own.push(part(s.q_window, rolled));
                    }
                }
            }
            c.keys.extend((0..s.tokens as usize).map(Key::Token));
            let window = [self.window[0], self.window[1], column];
            for at in 0..k_window.iter().product() {
                let row = at / k_window[2];
                let inside = [row / k_window[1], row % k_window[1], at % k_window[2]];
                let along = [0, 1, 2].map(|a| axis(s, grid, s.k_window, a, window[a], inside[a]));
                let source = along.map(|(_, source)| source);
                let padding = source.iter().zip(k.keys.axes()).any(|(&x, n)| x >= n as usize);
                c.keys.push(if padding { Key::Padding } else { Key::Voxel(source) });
                c.other.push(part(s.k_window, along.map(|(rolled, _)| rolled)));
            }
            c.mixed = s.shifted() && c.own.iter().chain(&c.other).any(|&id| id != c.other[0]);
            c
        };
        (0..grid[2] as usize).map(of).collect()
    }
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
        for (_, row) in &mut self.rows {
            for x in 0..n_w {
                let count = stride - s.v_channels as usize;
                row.store(x * stride + s.v_channels as usize, &[0.0; 3][..count]);
            }
        }
        let mut columns = self.columns();
        let (biases, room) = self.room.split_at_mut(index.len());
        let asking = k.asking();
        // one window alone needs the biases of its own queries, not those of all that other windows ask
        let mut alone = None;
        if let [column] = &mut columns[..] {
            let own = 0..column.numbers.len();
            alone = Some(std::mem::replace(&mut column.numbers, own.collect()));
        }
        let line = alone.as_ref().map_or(asking, Vec::len);
        let mut begins = Vec::new();
        for head in 0..s.heads as usize {
            let table = &table[head * s.bias_rows as usize..][..s.bias_rows as usize];
            match &alone {
                Some(numbers) if !index.is_empty() => {
                    let lines = biases.chunks_exact_mut(line.max(1)).zip(index.chunks_exact(asking));
                    for (biases, index) in lines {
                        for (bias, &number) in biases.iter_mut().zip(numbers) {
                            *bias = of_table(table, index[number]);
                        }
                    }
                }
                _ => {
                    for (bias, &row) in biases.iter_mut().zip(index) {
                        *bias = of_table(table, row);
                    }
                }
            }
            for (at, column) in columns.iter().enumerate().filter(|(_, column)| !column.queries.is_empty()) {
                let window = [self.window[0], self.window[1], at];
                let mut room = Room::new(room, column.queries.len(), [q_dim, v_dim]);
                let wide = std::mem::take(&mut room.wide);
                for (q, &[i, x]) in column.queries.iter().enumerate() {
                    let [z, y] = self.rows[i].0;
                    let token = ((z - k.windows[0].first as usize) * n_h + y) * n_w + x;
                    let at = token * q_stride + s.first[0] as usize + head * q_dim;
                    room.query(q, self.inputs[0].view(at, q_dim, wide), s.scale);
                }
                for (block, keys) in column.keys.chunks(KEYS).enumerate() {
                    for (j, key) in keys.iter().enumerate() {
                        if let Key::Padding = key {
                            room.key(j, &pad_key[head * q_dim..][..q_dim]);
                            room.value(j, &pad_value[head * v_dim..][..v_dim]);
                        } else {
                            let (slab, begin) = k.voxel(self.inputs, key, window, grid, kv_stride);
                            let of = |slot: usize, dim: usize| begin + s.first[slot] as usize + head * dim;
                            room.key(j, slab.view(of(1, q_dim), q_dim, wide));
                            room.value(j, slab.view(of(2, v_dim), v_dim, wide));
                        }
                    }
                    let (begin, tokens) = (block * KEYS, s.tokens as usize);
                    let bias = Relative { column, biases, line, tokens, begin };
                    room.attend::<I>(keys.len(), &mut begins, &bias);
                }
                room.wide = wide;
                room.finish();
                for (q, &[i, x]) in column.queries.iter().enumerate() {
                    self.rows[i].1.store(x * stride + head * v_dim, room.result(q));
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
        let biases = self.shape.index_len() as usize;
        (biases + room(self.shape.queries_of_window() as usize, self.dims())) as u64
    }

    fn run(&self, inputs: &[Slab<'_>], output: SlabMut<'_>, scratch: &Scratch) {
        let Some(inputs) = inputs.first_chunk() else { return };
        let (h, row) = (self.queries.h as usize, self.queries.w as usize * self.shape.v_channels.next_multiple_of(4) as usize);
        let mut tasks = std::collections::BTreeMap::<[usize; 2], Vec<Row<'_>>>::new();
        for (i, out) in output.planes_of(&self.target, h * row).parts(row).into_iter().enumerate() {
            let (z, y) = (self.target.begin as usize + i / h, i % h);
            tasks.entry(self.window_row(z, y)).or_default().push(([z, y], out));
        }
        // windows are few in deep levels: the rows of one are shared out
        let parts = (2 * rayon::current_num_threads()).div_ceil(tasks.len().max(1));
        let mut shared = Vec::new();
        for (window, mut rows) in tasks {
            let most = rows.len().div_ceil(parts).max(1);
            while rows.len() > most {
                let rest = rows.split_off(most);
                shared.push((window, std::mem::replace(&mut rows, rest)));
            }
            shared.push((window, rows));
        }
        let tasks = shared;
        each(tasks, self.cost().flops, scratch, |(window, rows), room| {
            isa::run(WindowTask { kernel: self, inputs, window, rows, room });
        });
    }
}
