//! The product of rows of values with packed weights, which convolutions, linear layers and attention have in common.
//!
//! Every sum is one accumulator, to which the products are added in the order of the weights' rows: its bits depend neither on
//! the voxels beside it nor on how work is cut. The tile's sums stay in registers; each weight that is loaded is used for all
//! of its voxels, each value for all of its channels (Goto & van de Geijn, "Anatomy of high-performance matrix multiplication",
//! ACM TOMS 34(3), 2008, without packing the values: rows of a panel are read where they lie).

use super::isa::{self, Isa, Tile, Work, fma};

/// Output channels of a block of packed weights; the last blocks may have 16 or 8.
pub(super) const WIDEST: usize = 32;

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
    /// Sums of output channels from `first` on of voxel `at`, by its number among those of the product.
    fn store<I: Isa>(&mut self, at: usize, first: usize, sums: &[f32]);
}

/// Values of voxels, and which of them are summed.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub panel: &'a [f32],
    /// Where each voxel begins in the panel.
    pub begins: &'a [usize],
    pub runs: &'a [Run],
}

/// Voxels whose sums are held before they are stored: 12 KiB with 32 channels.
const HELD: usize = 96;

/// Sums the products of every voxel with every column, beginning with `bias` where there is one.
#[inline(always)]
pub(super) fn multiply<I: Isa>(rows: Rows<'_>, weights: Weights<'_>, bias: &[f32], sink: &mut impl Sink) {
    let mut held = [0.0; HELD * WIDEST];
    let mut first = 0;
    while first < weights.columns {
        let width = width(weights.columns - first);
        let block = &weights.values[first * weights.rows..][..width * weights.rows];
        let bias = bias.get(first..first + width).unwrap_or(&[0.0; WIDEST]);
        for (i, begins) in rows.begins.chunks(HELD).enumerate() {
            let sums = &mut held[..begins.len() * width];
            // not inlined: the tiles are compiled once, not for every kernel
            isa::run(Product { rows: Rows { begins, ..rows }, block, width, bias, sums });
            for (v, sums) in sums.chunks_exact(width).enumerate() {
                sink.store::<I>(i * HELD + v, first, sums);
            }
        }
        first += width;
    }
}

/// The product with one block of weights.
pub(super) struct Product<'a, 's> {
    pub rows: Rows<'a>,
    /// `[rows][width]`.
    pub block: &'a [f32],
    pub width: usize,
    pub bias: &'a [f32],
    /// `[voxels][width]`.
    pub sums: &'s mut [f32],
}

impl Work for Product<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        match (self.width, I::TILE) {
            (32, Tile::Wide) => self.voxels::<I, 12, 32, 32>(0),
            (16, Tile::Wide) => self.voxels::<I, 12, 16, 16>(0),
            (32, Tile::Middle) => {
                for part in [0, 16] {
                    self.voxels::<I, 6, 16, 32>(part);
                }
            }
            (16, Tile::Middle) => self.voxels::<I, 6, 16, 16>(0),
            (32, Tile::Narrow) => {
                for part in [0, 8, 16, 24] {
                    self.voxels::<I, 4, 8, 32>(part);
                }
            }
            (16, Tile::Narrow) => {
                for part in [0, 8] {
                    self.voxels::<I, 4, 8, 16>(part);
                }
            }
            (_, Tile::Narrow) => self.voxels::<I, 4, 8, 8>(0),
            (_, Tile::Wide) => self.voxels::<I, 12, 8, 8>(0),
            (_, Tile::Middle) => self.voxels::<I, 6, 8, 8>(0),
        }
    }
}

impl Product<'_, '_> {
    /// The product of all voxels with `N` columns of a block of `B`, from column `part` of the block on.
    #[inline(always)]
    fn voxels<I: Isa, const M: usize, const N: usize, const B: usize>(&mut self, part: usize) {
        let mut at = 0;
        while at < self.rows.begins.len() {
            let left = self.rows.begins.len() - at;
            at += if M == 12 && left <= 4 {
                self.tile::<I, 4, N, B>(at, part)
            } else if M == 12 && left <= 8 {
                self.tile::<I, 8, N, B>(at, part)
            } else {
                self.tile::<I, M, N, B>(at, part)
            };
        }
    }

    /// The product of up to `M` voxels from `at` on with `N` columns; where there are fewer, the last is computed again. Tells
    /// of how many.
    #[inline(always)]
    fn tile<I: Isa, const M: usize, const N: usize, const B: usize>(&mut self, at: usize, part: usize) -> usize {
        let begins = &self.rows.begins[at..];
        let count = begins.len().min(M);
        let begins: [usize; M] = std::array::from_fn(|m| begins[m.min(count - 1)]);
        let mut sums = [array(&self.bias[part..]); M];
        sum::<I, M, N, B>(self.rows, &begins, self.block, part, &mut sums);
        for (sums, stored) in sums.iter().zip(self.sums[at * B..].chunks_exact_mut(B)) {
            stored[part..part + N].copy_from_slice(sums);
        }
        count
    }
}

/// The first values of a slice; zeros where it has fewer.
#[inline(always)]
fn array<const N: usize>(values: &[f32]) -> [f32; N] {
    values.first_chunk().copied().unwrap_or([0.0; N])
}

/// Adds the products of `M` voxels with `N` columns. Compilers keep the sums in registers because they are a copy, and rows of
/// the weights arrays.
#[allow(clippy::needless_range_loop, reason = "indices below constants are what compilers unroll")]
#[inline(always)]
fn sum<I: Isa, const M: usize, const N: usize, const B: usize>(
    Rows { panel, runs, .. }: Rows<'_>,
    begins: &[usize; M],
    block: &[f32],
    part: usize,
    sums: &mut [[f32; N]; M],
) {
    let mut held = *sums;
    for run in runs {
        let values: [&[f32]; M] = std::array::from_fn(|m| &panel[begins[m] + run.at..][..run.len]);
        let weights = &block[run.row * B..][..run.len * B];
        for (i, row) in weights.chunks_exact(B).enumerate().take(run.len) {
            let Some(row) = row[part..].first_chunk::<N>() else { continue };
            for m in 0..M {
                let value = values[m][i];
                for n in 0..N {
                    held[m][n] = fma::<I>(value, row[n], held[m][n]);
                }
            }
        }
    }
    *sums = held;
}
