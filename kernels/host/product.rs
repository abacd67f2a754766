//! The product of rows of values with packed weights, which convolutions, linear layers and attention have in common.
//!
//! Every sum is one accumulator, to which the products are added in the order of the weights' rows: its bits depend neither on
//! the voxels beside it nor on how work is cut. The tile's sums stay in registers; each weight that is loaded is used for all
//! of its voxels, each value for all of its channels (Goto & van de Geijn, "Anatomy of high-performance matrix multiplication",
//! ACM TOMS 34(3), 2008, without packing the values: rows of a panel are read where they lie).

use super::isa::{Isa, Tile, fma};

/// Output channels of a block of packed weights; the last blocks may have 16 or 8.
const WIDEST: usize = 32;

/// Width of the block that begins where so many channels, a multiple of 8, are left.
pub(super) const fn width(left: usize) -> usize {
    if left >= WIDEST {
        WIDEST
    } else if left >= 16 {
        16
    } else {
        8
    }
}

/// Packed weights: blocks of [`width`] output channels, each `[rows][width]`.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub values: &'a [f32],
    /// Rows: values that are summed over, all runs.
    pub rows: usize,
    /// Output channels, a multiple of 8.
    pub columns: usize,
}

/// A stretch of neighbouring values of the panel, the same for every voxel but for where the voxel begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Where it begins after the begin of the voxel.
    pub at: usize,
    /// The row of the weights that its first value meets.
    pub row: usize,
    /// Its values.
    pub len: usize,
}

/// Takes the sums of a voxel.
pub(super) trait Sink {
    /// Sums of output channels `first..first + N` of voxel `at`, by its number among those of the product.
    fn store<I: Isa, const N: usize>(&mut self, at: usize, first: usize, sums: &[f32; N]);
}

/// Values of voxels, and which of them are summed.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub panel: &'a [f32],
    /// Where each voxel begins in the panel.
    pub begins: &'a [usize],
    pub runs: &'a [Run],
}

/// Sums the products of every voxel with every column, beginning with `bias` where there is one.
#[inline(always)]
pub(super) fn multiply<I: Isa, S: Sink>(rows: Rows<'_>, weights: Weights<'_>, bias: &[f32], sink: &mut S) {
    let mut first = 0;
    while first < weights.columns {
        let width = width(weights.columns - first);
        let block = &weights.values[first * weights.rows..][..width * weights.rows];
        let bias = bias.get(first..first + width).unwrap_or(&[0.0; WIDEST]);
        match (width, I::TILE) {
            (32, Tile::Wide) => voxels::<I, S, 12, 32, 32>(rows, block, bias, [first, 0], sink),
            (16, Tile::Wide) => voxels::<I, S, 12, 16, 16>(rows, block, bias, [first, 0], sink),
            (32, Tile::Middle) => {
                voxels::<I, S, 6, 16, 32>(rows, block, bias, [first, 0], sink);
                voxels::<I, S, 6, 16, 32>(rows, block, bias, [first, 16], sink);
            }
            (16, Tile::Middle) => voxels::<I, S, 6, 16, 16>(rows, block, bias, [first, 0], sink),
            (32, Tile::Narrow) => {
                for part in [0, 8, 16, 24] {
                    voxels::<I, S, 4, 8, 32>(rows, block, bias, [first, part], sink);
                }
            }
            (16, Tile::Narrow) => {
                voxels::<I, S, 4, 8, 16>(rows, block, bias, [first, 0], sink);
                voxels::<I, S, 4, 8, 16>(rows, block, bias, [first, 8], sink);
            }
            (_, Tile::Narrow) => voxels::<I, S, 4, 8, 8>(rows, block, bias, [first, 0], sink),
            _ => voxels::<I, S, 12, 8, 8>(rows, block, bias, [first, 0], sink),
        }
        first += width;
    }
}

/// The product of all voxels with `N` columns of a block of `B`, from column `part` of the block on.
#[inline(always)]
fn voxels<I: Isa, S: Sink, const M: usize, const N: usize, const B: usize>(
    rows: Rows<'_>,
    block: &[f32],
    bias: &[f32],
    [first, part]: [usize; 2],
    sink: &mut S,
) {
    let bias: [f32; N] = std::array::from_fn(|n| bias[part + n]);
    let mut at = 0;
    while at < rows.begins.len() {
        let left = rows.begins.len() - at;
        let at_once = if M == 12 && left <= 4 {
            tile::<I, S, 4, N, B>(rows, at, block, &bias, [first, part], sink)
        } else if M == 12 && left <= 8 {
            tile::<I, S, 8, N, B>(rows, at, block, &bias, [first, part], sink)
        } else {
            tile::<I, S, M, N, B>(rows, at, block, &bias, [first, part], sink)
        };
        at += at_once;
    }
}

/// The product of up to `M` voxels from `at` on with `N` columns; where there are fewer, the last is computed again. Tells of
/// how many.
#[inline(always)]
fn tile<I: Isa, S: Sink, const M: usize, const N: usize, const B: usize>(
    rows: Rows<'_>,
    at: usize,
    block: &[f32],
    bias: &[f32; N],
    [first, part]: [usize; 2],
    sink: &mut S,
) -> usize {
    let begins = &rows.begins[at..];
    let count = begins.len().min(M);
    let begins: [usize; M] = std::array::from_fn(|m| begins[m.min(count - 1)]);
    let mut sums = [*bias; M];
    for run in rows.runs {
        let values: [&[f32]; M] = std::array::from_fn(|m| &rows.panel[begins[m] + run.at..][..run.len]);
        let weights = block[run.row * B..][..run.len * B].as_chunks::<B>().0;
        for (i, row) in weights.iter().enumerate().take(run.len) {
            for m in 0..M {
                let value = values[m][i];
                for n in 0..N {
                    sums[m][n] = fma::<I>(value, row[part + n], sums[m][n]);
                }
            }
        }
    }
    for (m, sums) in sums.iter().enumerate().take(count) {
        sink.store::<I, N>(at + m, first + part, sums);
    }
    count
}
