//! How a convolution is cut into tiles for GPUs. A workgroup of one wave computes a tile of voxels of some output channels; what
//! these read, a brick with its halo, lies in workgroup memory. Everything here is a pure function of the problem.

use std::fmt;

use super::{ConvShape, Load, Scope};
use crate::caps::DeviceCaps;
use crate::shape::Extent;

/// Invocations of a workgroup.
pub const THREADS: u32 = 64;
/// Most elements of the bricks: 12 KiB of `vec4<f32>`, so that five workgroups share the 64 KiB of a compute unit.
const MOST_ELEMENTS: u32 = 12 * THREADS;
/// Most inputs of a row that an invocation holds.
const MOST_INPUTS: u32 = 6;
/// Waves with which a large GPU is filled: a dispatch of fewer takes as long.
const FILLED: u64 = 1024;

/// A workgroup's share of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Voxels of a row that an invocation computes.
    pub voxels: u32,
    /// Blocks of eight output channels that an invocation computes.
    pub outs: u32,
    /// Output voxels along D, H, W.
    pub extent: [u32; 3],
    /// Blocks of four input channels in workgroup memory at a time.
    pub staged: u32,
    /// Elements of a brick along D, H, W, its halo included.
    pub brick: [u32; 3],
}

/// Voxels, output blocks and extents to choose from. At most 32 sums an invocation: 64 of them spill on some GPUs.
const SHAPES: [(u32, u32, [u32; 3]); 14] = [
    (4, 1, [4, 8, 8]),
    (4, 1, [2, 8, 16]),
    (4, 1, [1, 16, 16]),
    (2, 2, [4, 4, 8]),
    (2, 2, [2, 8, 8]),
    (2, 2, [1, 8, 16]),
    (1, 4, [4, 4, 4]),
    (1, 4, [2, 4, 8]),
    (1, 4, [1, 8, 8]),
    (1, 1, [4, 4, 4]),
    (1, 1, [1, 8, 8]),
    // of linear layers, whose planes are rows
    (2, 2, [1, 1, 128]),
    (1, 4, [1, 1, 64]),
    (1, 1, [1, 1, 64]),
];

impl Default for Tile {
    fn default() -> Self {
        Self { voxels: 1, outs: 4, extent: [4; 3], staged: 1, brick: [6; 3] }
    }
}

impl Tile {
    /// The tile of a shape; `None` where its brick is too large.
    fn of((voxels, outs, extent): (u32, u32, [u32; 3]), shape: &ConvShape) -> Option<Self> {
        let axis = |axis: usize| (extent[axis] - 1) * shape.stride[axis] + shape.kernel[axis];
        let mut tile = Self { voxels, outs, extent, staged: 1, brick: [axis(0), axis(1), axis(2)] };
        if tile.elements() > MOST_ELEMENTS || (voxels - 1) * shape.stride[2] + shape.kernel[2] > MOST_INPUTS {
            return None;
        }
        while tile.staged < 8 && 2 * tile.elements() * tile.staged <= MOST_ELEMENTS {
            tile.staged *= 2;
        }
        Some(tile)
    }

    /// Elements from row to row of a brick: odd, so that the rows of neighbouring lanes begin in different banks.
    #[must_use]
    pub const fn row(&self) -> u32 {
        self.brick[2] | 1
    }

    /// Elements of a brick that hold voxels, and those between its rows.
    const fn elements(&self) -> u32 {
        self.brick[0] * self.brick[1] * self.row()
    }

    /// Elements of the bricks that an invocation fills.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        (self.elements() * self.staged).div_ceil(THREADS)
    }

    /// Elements from brick to brick.
    #[must_use]
    pub const fn pitch(&self) -> u32 {
        self.slots() * THREADS / self.staged
    }

    /// Tiles that cover `planes` planes of an output.
    fn count(&self, out: Extent, planes: u32) -> u64 {
        let [d, h, w] = self.extent;
        [planes.div_ceil(d), out.h.div_ceil(h), out.w.div_ceil(w)].into_iter().map(u64::from).product()
    }

    /// Instructions that a wave issues for a dispatch, about, times the waves.
    fn work(&self, shape: &ConvShape) -> u64 {
        let [kd, kh, kw] = shape.kernel.map(u64::from);
        let (voxels, outs) = (u64::from(self.voxels), u64::from(self.outs));
        let sums = 32 * voxels * outs * kd * kh * kw;
        // an address, a bounds test and a read each; two scalar lines of weights, dear where they are no scalars
        let reads = 3 * kd * kh * ((voxels - 1) * u64::from(shape.stride[2]) + kw) + 8 * outs * kd * kh * kw;
        let fill = |source: usize| {
            let blocks = u64::from(shape.blocks()[source]);
            let each = if shape.upsampled[source].is_some() { 110 } else { 16 + 16 * u64::from(shape.loads[source] != Load::default()) };
            let fills = blocks.div_ceil(self.staged.into());
            blocks * (sums + reads) + fills * u64::from(self.slots()) * each
        };
        let waves = self.count(shape.output(), shape.target.count) * u64::from(shape.out_blocks().div_ceil(self.outs));
        (fill(0) + fill(1)) * waves.max(FILLED)
    }

    /// The tile of a dispatch: of those that fit the one of least work. Voxels have the same bits whatever it is.
    #[must_use]
    pub fn choose(shape: &ConvShape) -> Option<Self> {
        let planar = |slot: usize| shape.loads[slot].norm == Some(Scope::Plane) && !(slot == 1 && shape.residual);
        // a norm of planes is read once a brick
        let flat = planar(0) || planar(1);
        let fits = |t: &Self| !flat || t.brick[0] == 1;
        SHAPES.into_iter().filter_map(|s| Self::of(s, shape)).filter(fits).min_by_key(|t| t.work(shape))
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [d, h, w] = self.extent;
        write!(f, "tiles of {d}x{h}x{w} voxels, {}x{} sums an invocation, {} staged", self.voxels, 8 * self.outs, self.staged)
    }
}

/// Whether a device computes a convolution in tiles: a GPU does if the kernel is small; a CPU has no workgroup memory of its own.
#[must_use]
pub fn tiles(shape: &ConvShape, caps: &DeviceCaps) -> bool {
    let small = |n: [u32; 3], most: u32| n.into_iter().all(|n| n <= most);
    let fits = caps.max_invocations >= THREADS && small(shape.kernel, 3) && small(shape.stride, 2);
    let tiles_of_plane = shape.output().plane().div_ceil(THREADS.into());
    !caps.cpu && fits && tiles_of_plane <= caps.max_workgroups.into() && Tile::choose(shape).is_some()
}

#[cfg(test)]
mod tests {
    use super::super::{Interpolation, Through, Window, conv3d_direct};
    use super::super::{Kernel, Target};
    use super::*;

    fn shape(n: u32, channels: [u32; 2], out_channels: u32) -> ConvShape {
        let (_, conv3d_direct::Conv3dDirect(base)) = conv3d_direct::Conv3dDirect::cases().swap_remove(0);
        let input = Extent::new(n, n, n);
        ConvShape { input, in_channels: channels, out_channels, windows: [Window::whole(0); 4], target: Target::whole(n), ..base }
    }

    #[test]
    fn large_maps_small_maps_and_strides_have_tiles_of_their_own() {
        let of = |shape: &ConvShape| Tile::choose(shape).expect("it fits").to_string();
        assert_eq!(of(&shape(64, [32, 0], 32)), "tiles of 4x8x8 voxels, 4x8 sums an invocation, 1 staged");
        assert_eq!(of(&shape(8, [320, 0], 320)), "tiles of 4x4x4 voxels, 1x8 sums an invocation, 2 staged");
        let stride = ConvShape { stride: [2; 3], target: Target::whole(32), ..shape(64, [32, 0], 64) };
        assert_eq!(of(&stride), "tiles of 4x4x4 voxels, 1x32 sums an invocation, 1 staged");
        let plane = ConvShape { kernel: [1, 3, 3], padding: [0, 1, 1], ..shape(64, [32, 0], 32) };
        assert_eq!(of(&plane), "tiles of 1x16x16 voxels, 4x8 sums an invocation, 2 staged");
        let through = Some(Through { stored: Extent::new(32, 32, 32), mode: Interpolation::Aligned });
        let through = ConvShape { upsampled: [through, None], ..shape(64, [32, 0], 32) };
        assert_eq!(of(&through), "tiles of 4x4x8 voxels, 2x16 sums an invocation, 1 staged");
        let one = ConvShape { target: Target { first: 0, begin: 3, count: 1 }, ..shape(512, [32, 0], 32) };
        assert_eq!(of(&one), "tiles of 1x8x16 voxels, 2x16 sums an invocation, 1 staged");
    }

    #[test]
    fn linear_layers_are_tiles_of_rows() {
        let of = |n: u32, channels: u32| {
            let shape = ConvShape { kernel: [1; 3], padding: [0; 3], ..shape(n, [channels, 0], channels) }.flattened();
            assert_eq!(shape.output(), Extent::new(n, 1, n * n));
            Tile::choose(&shape).expect("it fits").to_string()
        };
        assert_eq!(of(64, 64), "tiles of 1x1x64 voxels, 1x32 sums an invocation, 8 staged");
        assert_eq!(of(8, 768), "tiles of 1x1x64 voxels, 1x8 sums an invocation, 8 staged");
    }

    #[test]
    fn every_small_kernel_has_a_tile_that_is_a_wave_and_fits() {
        for (kernel, stride) in (0..27).flat_map(|k| (0..8).map(move |s| (k, s))) {
            let kernel = [kernel / 9 + 1, kernel / 3 % 3 + 1, kernel % 3 + 1];
            let stride = [stride / 4 + 1, stride / 2 % 2 + 1, stride % 2 + 1];
            for count in [1, 2, 3, 9] {
                let shape = ConvShape { kernel, stride, target: Target { first: 0, begin: 0, count }, ..shape(9, [5, 9], 10) };
                let tile = Tile::choose(&shape).expect("it fits");
                assert_eq!(tile.extent.iter().product::<u32>() / tile.voxels, THREADS);
                assert!(tile.voxels * tile.outs <= 4 && tile.extent[2].is_multiple_of(tile.voxels));
                assert!(tile.row() % 2 == 1 && tile.slots() <= 12 && THREADS.is_multiple_of(tile.staged));
                assert!(tile.pitch() >= tile.elements() && tile.pitch() * tile.staged <= MOST_ELEMENTS);
            }
        }
    }

    #[test]
    fn gpus_tile_small_kernels_and_cpus_nothing() {
        let (gpu, base) = (DeviceCaps::default(), shape(9, [5, 0], 10));
        assert!(tiles(&base, &gpu));
        assert!(!tiles(&base, &DeviceCaps::host()));
        assert!(!tiles(&ConvShape { kernel: [5; 3], ..base.clone() }, &gpu));
        assert!(!tiles(&ConvShape { stride: [1, 1, 3], ..base.clone() }, &gpu));
        let mut few = gpu.clone();
        few.max_invocations = 32;
        assert!(!tiles(&base, &few));
        // norms of planes are read once a brick
        let planes = Load { norm: Some(Scope::Plane), ..Load::default() };
        assert!(!tiles(&ConvShape { loads: [planes, Load::default()], ..base.clone() }, &gpu));
        assert!(tiles(&ConvShape { loads: [planes, Load::default()], kernel: [1, 3, 3], ..base }, &gpu));
    }
}
