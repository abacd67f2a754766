//! Attention of a few queries to all their keys, a block of keys at a time with a running maximum and sum, as two products.

use super::isa::{Isa, fma};
use super::math::exp;
use super::product::{Rows, Run, Sink, Weights, multiply, width};

/// Keys of a block: they are counted from the first key on, so that bits do not depend on which queries are computed together.
pub(super) const KEYS: usize = 256;

/// The f32 numbers of scratch that attention needs for so many queries and channels of a head.
pub(super) struct Room<'r> {
    /// `[queries][qk]`.
    pub queries: &'r mut [f32],
    /// `[queries][KEYS]`.
    scores: &'r mut [f32],
    /// `[queries][v padded]`.
    pub sums: &'r mut [f32],
    /// Running maximum and sum of each query.
    high: &'r mut [f32],
    total: &'r mut [f32],
    /// Blocks of keys `[qk][width]`, and of values `[KEYS][width]`.
    keys: &'r mut [f32],
    values: &'r mut [f32],
    /// A key or a value, widened.
    pub wide: &'r mut [f32],
    dims: [usize; 2],
}

/// Numbers of [`Room`].
pub(super) fn room(queries: usize, [qk, v]: [usize; 2]) -> usize {
    let padded = v.next_multiple_of(8);
    queries * (qk + KEYS + padded + 2) + KEYS * (qk + padded) + qk.max(v)
}

impl<'r> Room<'r> {
    /// Cuts the room, for queries none of which has seen a key.
    pub(super) fn new(room: &'r mut [f32], queries: usize, dims: [usize; 2]) -> Self {
        let [qk, v] = dims;
        let padded = v.next_multiple_of(8);
        let mut rest = room;
        let mut cut = |n: usize| {
            let (own, other) = std::mem::take(&mut rest).split_at_mut(n);
            rest = other;
            own
        };
        let [queries_room, scores, sums] = [queries * qk, queries * KEYS, queries * padded].map(&mut cut);
        let [high, total] = [queries; 2].map(&mut cut);
        let [keys, values, wide] = [KEYS * qk, KEYS * padded, qk.max(v)].map(&mut cut);
        sums.fill(0.0);
        high.fill(f32::MIN);
        total.fill(0.0);
        Self { queries: queries_room, scores, sums, high, total, keys, values, wide, dims }
    }

    /// Padded channels of the values of a query.
    pub(super) fn stride(&self) -> usize {
        self.dims[1].next_multiple_of(8)
    }

    /// Takes key and value `j` of a block.
    #[inline(always)]
    pub(super) fn key(&mut self, j: usize, count: usize, key: &[f32]) {
        pack_column(self.keys, [count.next_multiple_of(8), j], self.dims[0], key);
    }

    /// Takes the value of key `j` of a block.
    #[inline(always)]
    pub(super) fn value(&mut self, j: usize, value: &[f32]) {
        let (padded, mut first) = (self.stride(), 0);
        while first < padded {
            let width = width(padded - first);
            let row = &mut self.values[first * KEYS..][j * width..][..width];
            let own = &value[first.min(value.len())..(first + width).min(value.len())];
            row[..own.len()].copy_from_slice(own);
            row[own.len()..].fill(0.0);
            first += width;
        }
    }

    /// Attends to a block of `count` keys; `bias` is added to the scores of a query.
    #[inline(always)]
    pub(super) fn attend<I: Isa>(&mut self, queries: usize, count: usize, begins: &mut Vec<usize>, bias: impl Fn(usize, &mut [f32])) {
        let [qk, _] = self.dims;
        let padded = count.next_multiple_of(8);
        for j in count..padded {
            pack_column(self.keys, [padded, j], qk, &[]);
        }
        begins.clear();
        begins.extend((0..queries).map(|q| q * qk));
        let weights = Weights { values: self.keys, rows: qk, columns: padded };
        let runs = [Run { at: 0, row: 0, len: qk }];
        let rows = Rows { panel: self.queries, begins, runs: &runs };
        multiply::<I>(rows, weights, &[], &mut Scores(self.scores));
        let stride = self.stride();
        for q in 0..queries {
            let scores = &mut self.scores[q * KEYS..][..count];
            bias(q, scores);
            let high = highest(scores).max(self.high[q]);
            let shrink = exp::<I>(self.high[q] - high);
            let mut parts = [0.0f32; 16];
            let (chunks, rest) = scores.as_chunks_mut::<16>();
            for chunk in chunks {
                for (s, part) in chunk.iter_mut().zip(&mut parts) {
                    *s = exp::<I>(*s - high);
                    *part += *s;
                }
            }
            for (s, part) in rest.iter_mut().zip(&mut parts) {
                *s = exp::<I>(*s - high);
                *part += *s;
            }
            self.total[q] = fma::<I>(self.total[q], shrink, parts.iter().sum());
            self.high[q] = high;
            self.sums[q * stride..][..stride].iter_mut().for_each(|s| *s *= shrink);
        }
        begins.clear();
        begins.extend((0..queries).map(|q| q * KEYS));
        let weights = Weights { values: self.values, rows: KEYS, columns: stride };
        let runs = [Run { at: 0, row: 0, len: count }];
        let rows = Rows { panel: self.scores, begins, runs: &runs };
        multiply::<I>(rows, weights, &[], &mut Add { sums: self.sums, stride });
    }

    /// The result of a query.
    #[inline(always)]
    pub(super) fn finish(&mut self, query: usize) -> &[f32] {
        let (stride, total) = (self.stride(), self.total[query]);
        let sums = &mut self.sums[query * stride..][..self.dims[1]];
        sums.iter_mut().for_each(|s| *s /= total);
        sums
    }
}

/// Writes column `j` of `columns` in blocks of packed weights of `rows` rows; what `values` lacks is zero.
#[inline(always)]
fn pack_column(packed: &mut [f32], [columns, j]: [usize; 2], rows: usize, values: &[f32]) {
    let mut first = 0;
    while j >= first + width(columns - first) {
        first += width(columns - first);
    }
    let width = width(columns - first);
    let block = &mut packed[first * rows..][..width * rows];
    for (i, row) in block.chunks_exact_mut(width).enumerate() {
        row[j - first] = values.get(i).copied().unwrap_or(0.0);
    }
}

#[inline(always)]
fn highest(values: &[f32]) -> f32 {
    let mut parts = [f32::MIN; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks.iter().map(|c| &c[..]).chain([rest]) {
        for (part, &v) in parts.iter_mut().zip(chunk) {
            *part = if v > *part { v } else { *part };
        }
    }
    parts.into_iter().fold(f32::MIN, f32::max)
}

struct Scores<'a>(&'a mut [f32]);

impl Sink for Scores<'_> {
    #[inline(always)]
    fn store<I: Isa>(&mut self, at: usize, first: usize, sums: &[f32]) {
        self.0[at * KEYS + first..][..sums.len()].copy_from_slice(sums);
    }
}

struct Add<'a> {
    sums: &'a mut [f32],
    stride: usize,
}

impl Sink for Add<'_> {
    #[inline(always)]
    fn store<I: Isa>(&mut self, at: usize, first: usize, sums: &[f32]) {
        self.sums[at * self.stride + first..][..sums.len()].iter_mut().zip(sums).for_each(|(s, v)| *s += v);
    }
}
