//! Attention of a few queries to all their keys, a block of keys at a time with a running maximum and
//! sum.
//!
//! Queries lie in the lanes of vectors: the scores of a key are one row, so that maxima, exponentials and
//! sums need no step across lanes, and keys and values are read as they come, without packing.

use super::isa::{self, Isa, Tile, Work, fma};
use super::math::exp;
use super::product::{Product, Rows, Run, WIDEST, width};

/// Keys of a block. Blocks are counted from the first key on, so that bits do not depend on which queries
/// are computed together.
pub(super) const KEYS: usize = 240;

/// Numbers added to scores before their exponentials are taken: masks, biases by relative position.
pub(super) trait Bias {
    /// Adds to the scores `[keys of the block][width]` of the queries from `first` on.
    fn add(&self, first: usize, width: usize, scores: &mut [f32]);
}

/// The f32 numbers of scratch that attention needs for so many queries and channels of a head.
pub(super) struct Room<'r> {
    /// Blocks of [`width`] queries, each `[qk][width]`.
    queries: &'r mut [f32],
    /// Scores of a block of queries, `[KEYS][width]`.
    scores: &'r mut [f32],
    /// Sums of values of the blocks of queries, each `[v][width]`.
    sums: &'r mut [f32],
    /// Running maximum and sum of each query.
    high: &'r mut [f32],
    total: &'r mut [f32],
    /// A block of keys `[KEYS][qk]`, and of values `[KEYS][v]`.
    keys: &'r mut [f32],
    values: &'r mut [f32],
    /// A query, a key or a value, widened.
    pub wide: &'r mut [f32],
    dims: [usize; 2],
}

/// Numbers of [`Room`].
pub(super) fn room(queries: usize, [qk, v]: [usize; 2]) -> usize {
    queries.next_multiple_of(8) * (qk + v + 2) + KEYS * (WIDEST + qk + v) + qk.max(v)
}

impl<'r> Room<'r> {
    /// Cuts the room, for queries none of which has seen a key.
    pub(super) fn new(room: &'r mut [f32], queries: usize, dims: [usize; 2]) -> Self {
        let [qk, v] = dims;
        let padded = queries.next_multiple_of(8);
        let mut rest = room;
        let mut cut = |n: usize| {
            let (own, other) = std::mem::take(&mut rest).split_at_mut(n);
            rest = other;
            own
        };
        let [queries_room, scores, sums] = [padded * qk, KEYS * WIDEST, padded * v].map(&mut cut);
        let [high, total] = [padded; 2].map(&mut cut);
        let [keys, values, wide] = [KEYS * qk, KEYS * v, qk.max(v)].map(&mut cut);
        // lanes beside the last query are computed, too
        let lanes = queries / WIDEST * WIDEST;
        queries_room[lanes * qk..].fill(0.0);
        sums.fill(0.0);
        high.fill(f32::MIN);
        total.fill(0.0);
        Self { queries: queries_room, scores, sums, high, total, keys, values, wide, dims }
    }

    /// The block that a query lies in: its first query and its width.
    fn block(&self, query: usize) -> [usize; 2] {
        let mut first = query / WIDEST * WIDEST;
        let mut wide = width(self.high.len() - first);
        while first + wide <= query {
            first += wide;
            wide = width(self.high.len() - first);
        }
        [first, wide]
    }

    /// Takes a query, times `scale`.
    #[inline(always)]
    pub(super) fn query(&mut self, query: usize, values: &[f32], scale: f32) {
        let [first, wide] = self.block(query);
        let block = &mut self.queries[first * self.dims[0]..][..wide * self.dims[0]];
        for (row, &x) in block.chunks_exact_mut(wide).zip(values) {
            row[query - first] = x * scale;
        }
    }

    /// Takes key `j` of a block.
    #[inline(always)]
    pub(super) fn key(&mut self, j: usize, key: &[f32]) {
        copy(&mut self.keys[j * self.dims[0]..][..self.dims[0]], key);
    }

    /// Takes the value of key `j` of a block.
    #[inline(always)]
    pub(super) fn value(&mut self, j: usize, value: &[f32]) {
        copy(&mut self.values[j * self.dims[1]..][..self.dims[1]], value);
    }

    /// Attends to a block of `count` keys.
    #[inline(always)]
    pub(super) fn attend<I: Isa>(&mut self, count: usize, begins: &mut Vec<usize>, bias: &impl Bias) {
        let [qk, v] = self.dims;
        begins.clear();
        begins.extend((0..count).map(|j| j * qk));
        let runs = [Run { at: 0, row: 0, len: qk }];
        let mut first = 0;
        while first < self.high.len() {
            let width = width(self.high.len() - first);
            let scores = &mut self.scores[..count * width];
            let rows = Rows { panel: self.keys, begins, runs: &runs };
            let block = &self.queries[first * qk..][..width * qk];
            isa::run(Product { rows, block, width, bias: &[0.0; WIDEST], sums: scores });
            bias.add(first, width, scores);
            let sums = &mut self.sums[first * v..][..width * v];
            let (high, total) = (&mut self.high[first..], &mut self.total[first..]);
            match width {
                32 => soften::<I, 32>(scores, sums, high, total),
                16 => soften::<I, 16>(scores, sums, high, total),
                _ => soften::<I, 8>(scores, sums, high, total),
            }
            isa::run(Outer { values: &self.values[..count * v], scores, sums, width });
            first += width;
        }
    }

    /// Divides the sums by their totals: what [`Room::result`] reads.
    #[inline(always)]
    pub(super) fn finish(&mut self) {
        let (v, mut first) = (self.dims[1], 0);
        while first < self.high.len() {
            let width = width(self.high.len() - first);
            for row in self.sums[first * v..][..width * v].chunks_exact_mut(width) {
                for (s, &total) in row.iter_mut().zip(&self.total[first..][..width]) {
                    *s /= total;
                }
            }
            first += width;
        }
    }

    /// The result of a query.
    #[inline(always)]
    pub(super) fn result(&mut self, query: usize) -> &[f32] {
        let ([first, wide], v) = (self.block(query), self.dims[1]);
        let block = &self.sums[first * v..][..wide * v];
        for (to, row) in self.wide.iter_mut().zip(block.chunks_exact(wide)) {
            *to = row[query - first];
        }
        &self.wide[..v]
    }
}

/// Copies a few numbers without a call of the C library, which takes longer than they do.
#[inline(always)]
fn copy(to: &mut [f32], from: &[f32]) {
    let ((to, to_rest), (from, from_rest)) = (to.as_chunks_mut::<16>(), from.as_chunks::<16>());
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    for (to, &from) in to_rest.iter_mut().zip(from_rest) {
        *to = from;
    }
}

/// Turns scores into e^(score - maximum), with a running maximum and sum of each query; what was summed
/// before shrinks as the maximum grows.
#[allow(clippy::needless_range_loop, reason = "indices below constants are what compilers unroll")]
#[inline(always)]
fn soften<I: Isa, const B: usize>(scores: &mut [f32], sums: &mut [f32], high: &mut [f32], total: &mut [f32]) {
    let (Some(high), Some(total)) = (high.first_chunk_mut::<B>(), total.first_chunk_mut::<B>()) else {
        return;
    };
    let (rows, _) = scores.as_chunks_mut::<B>();
    let mut most = *high;
    for row in rows.iter() {
        for i in 0..B {
            most[i] = if row[i] > most[i] { row[i] } else { most[i] };
        }
    }
    let mut shrink = [0.0; B];
    for i in 0..B {
        shrink[i] = exp::<I>(high[i] - most[i]);
    }
    *high = most;
    let mut sum = [0.0; B];
    for row in rows {
        for i in 0..B {
            row[i] = exp::<I>(row[i] - most[i]);
            sum[i] += row[i];
        }
    }
    for i in 0..B {
        total[i] = fma::<I>(total[i], shrink[i], sum[i]);
    }
    for row in sums.as_chunks_mut::<B>().0 {
        for i in 0..B {
            row[i] *= shrink[i];
        }
    }
}

/// Adds the values of a block of keys, each times its weight for each query.
struct Outer<'s> {
    /// `[keys][v]`.
    values: &'s [f32],
    /// `[keys][width]`.
    scores: &'s [f32],
    /// `[v][width]`.
    sums: &'s mut [f32],
    width: usize,
}

impl Work for Outer<'_> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        match (self.width, I::TILE) {
            (32, Tile::Wide) => self.channels::<I, 12, 32, 32>(0),
            (16, Tile::Wide) => self.channels::<I, 12, 16, 16>(0),
            (8, Tile::Wide) => self.channels::<I, 12, 8, 8>(0),
            (32, Tile::Middle) => {
                for part in [0, 16] {
                    self.channels::<I, 6, 16, 32>(part);
                }
            }
            (16, Tile::Middle) => self.channels::<I, 6, 16, 16>(0),
            (_, Tile::Wide | Tile::Middle) => self.channels::<I, 6, 8, 8>(0),
            (32, Tile::Narrow) => {
                for part in [0, 8, 16, 24] {
                    self.channels::<I, 4, 8, 32>(part);
                }
            }
            (16, Tile::Narrow) => {
                for part in [0, 8] {
                    self.channels::<I, 4, 8, 16>(part);
                }
            }
            (_, Tile::Narrow) => self.channels::<I, 4, 8, 8>(0),
        }
    }
}

impl Outer<'_> {
    /// All channels, for `N` queries from `part` on of a block of `B`.
    #[inline(always)]
    fn channels<I: Isa, const M: usize, const N: usize, const B: usize>(&mut self, part: usize) {
        let v = self.sums.len() / B;
        let mut at = 0;
        while at < v {
            at += match v - at {
                left if left >= M => self.tile::<I, M, N, B>(v, at, part),
                8.. => self.tile::<I, 8, N, B>(v, at, part),
                4.. => self.tile::<I, 4, N, B>(v, at, part),
                _ => self.tile::<I, 1, N, B>(v, at, part),
            };
        }
    }

    /// `M` channels from `at` on of `v`; tells of how many.
    #[inline(always)]
    fn tile<I: Isa, const M: usize, const N: usize, const B: usize>(&mut self, v: usize, at: usize, part: usize) -> usize {
        let (values, scores) = (&self.values[at..], self.scores);
        let mut sums = [[0.0; N]; M];
        for (sums, stored) in sums.iter_mut().zip(self.sums[at * B..].chunks_exact(B)) {
            sums.copy_from_slice(&stored[part..part + N]);
        }
        weigh::<I, M, N, B>(values, v, scores, part, &mut sums);
        for (sums, stored) in sums.iter().zip(self.sums[at * B..].chunks_exact_mut(B)) {
            stored[part..part + N].copy_from_slice(sums);
        }
        M
    }
}

/// Adds `M` channels of the values of every key, `v` apart, times the scores of `N` queries. Compilers keep
/// the sums in registers because they are a copy.
#[inline(always)]
fn weigh<I: Isa, const M: usize, const N: usize, const B: usize>(
    values: &[f32],
    v: usize,
    scores: &[f32],
    part: usize,
    sums: &mut [[f32; N]; M],
) {
    let mut held = *sums;
    for (value, row) in values.chunks(v).zip(scores.chunks_exact(B)) {
        let (Some(value), Some(row)) = (value.first_chunk::<M>(), row[part..].first_chunk::<N>()) else {
            break;
        };
        // no loop: compilers would take the channels, not the queries, for the lanes of vectors
        macro_rules! channels {
            ($($m:literal)*) => {
                $(if $m < M { lanes::<I, N>(&mut held[$m], value[$m], row); })*
            };
        }
        channels!(0 1 2 3 4 5 6 7 8 9 10 11);
    }
    *sums = held;
}

#[allow(clippy::needless_range_loop, reason = "indices below constants are what compilers unroll")]
#[inline(always)]
fn lanes<I: Isa, const N: usize>(sums: &mut [f32; N], value: f32, row: &[f32; N]) {
    for n in 0..N {
        sums[n] = fma::<I>(value, row[n], sums[n]);
    }
}
