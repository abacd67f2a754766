//! How kernels see values cut into slabs along D: which planes of a source they read, where these lie, what they write.

use std::ops::Range;

use super::Interpolation;

/// Planes of a source that planes of a result are computed from: what a kernel declares so that the planner can stream,
/// recompute or spill around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Plane z reads plane z.
    Same,
    /// A sliding window, as of a convolution or a pooling.
    Taps(Taps),
    /// A sliding window over the planes that resampling makes of the source.
    TapsOfResized {
        /// The window.
        taps: Taps,
        /// Planes of the resampled source.
        planes: u32,
        /// How it is resampled.
        mode: Interpolation,
    },
    /// The planes behind the taps of a transposed convolution: plane s of the source is spread over `kernel` planes of the
    /// result from s * `stride` - `padding` on.
    TapsTransposed(Taps),
    /// The one or two planes that resampling mixes.
    Resized(Interpolation),
    /// Plane z reads plane z - `before`, where there is one: a map that is padded or cropped.
    Shifted {
        /// Planes of padding before the first; of cropping, if negative.
        before: i32,
    },
    /// Blocks of planes that do not overlap, as of attention in windows: a plane of the result reads the block of the source
    /// that has the number of its own block.
    Blocks {
        /// Planes of a block of the source; the last may have fewer.
        source: u32,
        /// Planes of a block of the result; the last may have fewer.
        result: u32,
    },
    /// Every plane of a result reads all planes: a barrier.
    Whole,
    /// The same of a source that may lie in two slabs.
    WholeInTwo,
}

/// A source of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its planes.
    pub planes: u32,
    /// Which of them a plane of the result reads.
    pub reach: Reach,
}

/// A sliding window along D; a plane of the result reads `kernel` planes of the source, `stride` after those of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taps {
    /// Planes of a window, from its first tap to its last: with a dilation, those between the taps, too.
    pub kernel: u32,
    /// Planes from window to window.
    pub stride: u32,
    /// Planes of padding before the first.
    pub padding: u32,
}

impl Taps {
    /// Planes of a source of `n` that result planes `z` read; at least one, as even a window of padding binds something.
    fn planes(self, n: u32, z: &Range<u32>) -> Range<u32> {
        let begin = (z.start * self.stride).saturating_sub(self.padding).min(n - 1);
        let end = ((z.end - 1) * self.stride + self.kernel).saturating_sub(self.padding);
        begin..end.clamp(begin + 1, n)
    }

    /// Planes of a source of `n` that are spread over result planes `z`; at least one, though it may not reach them.
    fn transposed(self, n: u32, z: &Range<u32>) -> Range<u32> {
        let begin = (z.start + self.padding + 1).saturating_sub(self.kernel).div_ceil(self.stride).min(n - 1);
        let end = (z.end - 1 + self.padding) / self.stride + 1;
        begin..end.clamp(begin + 1, n)
    }
}

/// Planes of a source of `n_in` that planes `z` of its resampling to `n_out` planes read.
fn resized(mode: Interpolation, n_in: u32, n_out: u32, z: &Range<u32>) -> Range<u32> {
    let (low, ..) = mode.tap(z.start, n_in, n_out);
    let (last, high, weight) = mode.tap(z.end - 1, n_in, n_out);
    low..(if weight > 0.0 { high } else { last }) + 1
}

impl Reach {
    /// Planes of a source of `n_in` planes that planes `z` of a result of `n_out` are computed from.
    #[must_use]
    pub fn planes(self, n_in: u32, n_out: u32, z: &Range<u32>) -> Range<u32> {
        match self {
            Self::Same => z.clone(),
            Self::Taps(taps) => taps.planes(n_in, z),
            Self::TapsTransposed(taps) => taps.transposed(n_in, z),
            Self::TapsOfResized { taps, planes, mode } => resized(mode, n_in, planes, &taps.planes(planes, z)),
            Self::Resized(mode) => resized(mode, n_in, n_out, z),
            Self::Shifted { before } => {
                let source = |z: u32| u32::try_from((i64::from(z) - i64::from(before)).max(0)).unwrap_or(u32::MAX);
                let begin = source(z.start).min(n_in - 1);
                begin..source(z.end).clamp(begin + 1, n_in)
            }
            Self::Blocks { source, result } => {
                let begin = (z.start / result * source).min(n_in - 1);
                begin..((z.end - 1) / result + 1).saturating_mul(source).clamp(begin + 1, n_in)
            }
            Self::Whole | Self::WholeInTwo => 0..n_in,
        }
    }

    /// Whether a plane of a result waits for all planes.
    #[must_use]
    pub const fn is_barrier(self) -> bool {
        matches!(self, Self::Whole | Self::WholeInTwo)
    }

    /// Neighbouring slabs of the source that a dispatch binds.
    #[must_use]
    pub const fn bindings(self) -> usize {
        match self {
            Self::Same | Self::Shifted { .. } | Self::Whole => 1,
            // blocks that do not overlap: a plane of the result has one plane behind it
            Self::TapsTransposed(taps) if taps.kernel == taps.stride && taps.padding == 0 => 1,
            Self::Blocks { source: 1, .. } => 1,
            Self::TapsTransposed(_)
            | Self::Taps(_)
            | Self::TapsOfResized { .. }
            | Self::Resized(_)
            | Self::Blocks { .. }
            | Self::WholeInTwo => 2,
        }
    }

    /// Most planes of the source that one plane of the result reads.
    #[must_use]
    pub fn widest(self, n_in: u32, n_out: u32) -> u32 {
        (0..n_out).map(|z| self.planes(n_in, n_out, &(z..z + 1))).map(|r| r.end - r.start).max().unwrap_or(1)
    }
}

/// Where the planes of a source lie. A source is bound as two neighbouring slabs: planes from `first` in the lower
/// one, planes from `split` on in the upper one. With one slab, `split` is beyond its last plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Plane at the beginning of the lower binding.
    pub first: u32,
    /// First plane that lies in the upper binding.
    pub split: u32,
}

impl Window {
    /// All planes in one slab that begins at plane `first`.
    #[must_use]
    pub const fn whole(first: u32) -> Self {
        Self { first, split: u32::MAX }
    }

    /// The plane `z` of a source bound as (`lo`, `hi`), `plane` elements each.
    pub(super) fn plane<'a>(&self, lo: &'a [f32], hi: &'a [f32], z: usize, plane: usize) -> &'a [f32] {
        let (slab, at) = if z < self.split as usize { (lo, z - self.first as usize) } else { (hi, z - self.split as usize) };
        &slab[at * plane..(at + 1) * plane]
    }
}

/// Which planes a dispatch writes, and where the bound slab begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Plane at the beginning of the destination slab.
    pub first: u32,
    /// First plane to write.
    pub begin: u32,
    /// Planes to write.
    pub count: u32,
}

impl Target {
    /// All of `planes` planes.
    #[must_use]
    pub const fn whole(planes: u32) -> Self {
        Self { first: 0, begin: 0, count: planes }
    }

    /// The planes of `slab` that are to be written, each `plane` elements, with their plane numbers.
    pub(super) fn planes<'a, T: Send>(
        &self,
        slab: &'a mut [T],
        plane: usize,
    ) -> impl rayon::iter::IndexedParallelIterator<Item = (usize, &'a mut [T])> {
        use rayon::prelude::*;
        let skip = (self.begin - self.first) as usize * plane;
        let begin = self.begin as usize;
        slab[skip..skip + self.count as usize * plane].par_chunks_mut(plane).enumerate().map(move |(i, p)| (begin + i, p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_reads_across_two_slabs() {
        let (lo, hi) = ([0.0, 1.0], [2.0, 3.0]);
        let w = Window { first: 4, split: 6 };
        assert_eq!(w.plane(&lo, &hi, 5, 1), [1.0]);
        assert_eq!(w.plane(&lo, &hi, 6, 1), [2.0]);
    }

    #[test]
    fn reach_of_resampling_covers_its_taps() {
        let aligned = Reach::Resized(Interpolation::Aligned);
        assert_eq!(aligned.planes(5, 10, &(0..1)), 0..1);
        assert_eq!(aligned.planes(5, 10, &(1..2)), 0..2);
        assert_eq!(aligned.planes(5, 10, &(9..10)), 4..5);
        assert_eq!(aligned.planes(5, 10, &(0..10)), 0..5);
        let half_pixel = Reach::Resized(Interpolation::HalfPixel);
        assert_eq!(half_pixel.planes(5, 10, &(0..1)), 0..1);
        assert_eq!(half_pixel.planes(5, 10, &(2..3)), 0..2);
        assert_eq!(half_pixel.planes(5, 10, &(9..10)), 4..5);
        assert_eq!(half_pixel.planes(10, 5, &(4..5)), 8..10);
        let nearest = Reach::Resized(Interpolation::Nearest);
        assert_eq!(nearest.planes(5, 10, &(3..5)), 1..3);
        assert_eq!(nearest.planes(10, 5, &(4..5)), 8..9);
        assert_eq!((nearest.widest(5, 10), half_pixel.widest(5, 10)), (1, 2));
    }

    #[test]
    fn reach_of_padding_and_cropping_stays_inside() {
        let padded = Reach::Shifted { before: 2 };
        assert_eq!(padded.planes(4, 8, &(0..2)), 0..1);
        assert_eq!(padded.planes(4, 8, &(1..4)), 0..2);
        assert_eq!(padded.planes(4, 8, &(6..8)), 3..4);
        assert_eq!(padded.planes(4, 8, &(0..8)), 0..4);
        assert_eq!(Reach::Shifted { before: -3 }.planes(8, 4, &(0..2)), 3..5);
        assert_eq!(Reach::Shifted { before: i32::MIN }.planes(8, 4, &(0..2)), 7..8);
        assert_eq!(padded.widest(4, 8), 1);
    }

    #[test]
    fn reach_of_blocks_is_whole_blocks() {
        let same = Reach::Blocks { source: 4, result: 4 };
        assert_eq!(same.planes(10, 10, &(0..1)), 0..4);
        assert_eq!(same.planes(10, 10, &(3..5)), 0..8);
        assert_eq!(same.planes(10, 10, &(9..10)), 8..10);
        assert_eq!(same.widest(10, 10), 4);
        assert_eq!(Reach::Blocks { source: 7, result: 14 }.planes(9, 17, &(13..15)), 0..9);
        assert_eq!(Reach::Blocks { source: 1, result: 4 }.planes(3, 10, &(4..9)), 1..3);
        assert_eq!(Reach::Blocks { source: u32::MAX, result: 1 }.planes(3, 1, &(0..1)), 0..3);
    }

    #[test]
    fn reach_of_windows_stays_inside() {
        let k3 = Taps { kernel: 3, stride: 1, padding: 1 };
        assert_eq!(Reach::Taps(k3).planes(4, 4, &(0..1)), 0..2);
        assert_eq!(Reach::Taps(k3).planes(4, 4, &(3..4)), 2..4);
        assert_eq!(Reach::Taps(k3).widest(4, 4), 3);
        assert_eq!(Reach::Taps(Taps { kernel: 1, stride: 1, padding: 2 }).planes(1, 5, &(0..1)), 0..1);
        assert_eq!(Reach::TapsOfResized { taps: k3, planes: 8, mode: Interpolation::Aligned }.planes(4, 8, &(2..3)), 0..3);
    }

    #[test]
    fn reach_of_transposed_windows_is_what_the_taps_say() {
        for (kernel, stride, padding) in [(2, 2, 0), (3, 2, 1), (4, 2, 1), (5, 3, 2), (1, 2, 0), (3, 1, 1), (2, 2, 1)] {
            let (taps, n) = (Taps { kernel, stride, padding }, 5);
            let out = (n - 1) * stride + kernel - 2 * padding;
            for begin in 0..out {
                for end in begin + 1..=out {
                    let behind: Vec<u32> = (0..n)
                        .filter(|s| (s * stride..s * stride + kernel).any(|o| (begin + padding..end + padding).contains(&o)))
                        .collect();
                    let reach = Reach::TapsTransposed(taps).planes(n, out, &(begin..end));
                    assert!(reach.start < reach.end && reach.end <= n);
                    assert!(behind.iter().all(|s| reach.contains(s)), "{taps:?} {begin}..{end}: {behind:?} in {reach:?}");
                    assert!(behind.is_empty() || reach.len() == behind.len(), "{taps:?} {begin}..{end}: {behind:?} in {reach:?}");
                }
            }
        }
        assert_eq!(Reach::TapsTransposed(Taps { kernel: 2, stride: 2, padding: 0 }).widest(5, 10), 1);
        assert_eq!(Reach::TapsTransposed(Taps { kernel: 3, stride: 2, padding: 1 }).widest(5, 10), 2);
    }
}
