//! Cache lines that the loads of a wave touch, by the index arithmetic of each heavy kernel.

use std::collections::HashSet;

use organum::Elem;
use organum::kernels::tile::Tile;
use organum::kernels::{Call, ConvShape};

/// Lanes of a wave.
const WAVE: u64 = 64;
/// Bytes of a line.
const LINE: u64 = 128;
/// Bytes of the weights of four input and eight output channels.
const TAP: u64 = 128;

/// Lines of loads of `bytes` at these addresses.
fn lines(addresses: impl Iterator<Item = u64>, bytes: u64) -> u64 {
    let touched: HashSet<u64> =
        addresses.flat_map(|at| at / LINE..=(at + bytes - 1) / LINE).collect();
    touched.len() as u64
}

fn blocks(channels: u32) -> u64 {
    u64::from(channels.div_ceil(4))
}

/// One block of four channels of `voxels` neighbouring voxels for each lane, `step` voxels from
/// lane to lane: the lines of one load after the other. Lines are counted for each load, as nothing
/// says that they are still there for the next.
fn rows(voxels: u64, step: u64, blocks: u64, elem: Elem) -> u64 {
    let bytes = 4 * elem.bytes();
    let of = |v: u64| lines((0..WAVE).map(|lane| (lane * step + v) * blocks * bytes), bytes);
    (0..voxels).map(of).sum()
}

/// Lines of the loads of a block of input channels, for the multiply-adds of `voxels` voxels and
/// eight output channels.
fn of_rows(shape: &ConvShape, voxels: u64) -> f64 {
    let step = voxels * u64::from(shape.stride[2]);
    let weights = (TAP * shape.elem.bytes() / 4).div_ceil(LINE);
    (rows(voxels, step, blocks(shape.in_channels[0]), shape.elem) + weights) as f64
        / (32 * voxels) as f64
}

/// Lines of the fills of a tile inside of a map, and of its weights, for all its multiply-adds.
fn of_tile(shape: &ConvShape, tile: &Tile) -> f64 {
    let taps: u64 = shape.kernel.iter().map(|&k| u64::from(k)).product();
    let [_, by, bx] = tile.brick;
    let origin = [0, 1, 2].map(|axis| tile.extent[axis] * shape.stride[axis] - shape.padding[axis]);
    let (mut touched, mut sums) = (0, 0);
    for (source, &channels) in shape.in_channels.iter().enumerate() {
        let (blocks, bytes) = (blocks(channels), 4 * shape.elem.bytes());
        let stored = shape.upsampled[source].map_or(shape.input, |through| through.stored);
        // the two voxels along an axis that a voxel is mixed from
        let along = |axis: usize, at: u32| {
            let (n, stored) = (shape.input.axes()[axis], stored.axes()[axis]);
            let mixed = shape.upsampled[source].map(|through| through.mode.tap(at, stored, n));
            mixed.map_or([at; 2], |(low, high, _)| [low, high])
        };
        let corners = if shape.upsampled[source].is_some() { 8 } else { 1 };
        let mut fill = 0;
        for (slot, corner) in
            (0..tile.slots()).flat_map(|slot| (0..corners).map(move |corner| (slot, corner)))
        {
            let address = |lane: u32| {
                let element = (lane + slot * WAVE as u32) / tile.staged;
                let [x, y, z] =
                    [element % tile.row(), element / tile.row() % by, element / (tile.row() * by)];
                let inside = x < bx && z < tile.brick[0];
                let z = along(0, origin[0] + z)[corner >> 2 & 1];
                let y = along(1, origin[1] + y)[corner >> 1 & 1];
                let x = along(2, origin[2] + x)[corner & 1];
                let voxel = (u64::from(z) * u64::from(stored.h) + u64::from(y))
                    * u64::from(stored.w)
                    + u64::from(x);
                inside.then_some((voxel * blocks + u64::from(lane % tile.staged)) * bytes)
            };
            fill += lines((0..WAVE as u32).filter_map(address), bytes);
        }
        touched +=
            fill * blocks.div_ceil(tile.staged.into()) + blocks * taps * u64::from(tile.outs);
        sums += blocks * taps * 32 * u64::from(tile.voxels * tile.outs);
    }
    touched as f64 / sums as f64
}

/// Lines that the loads of a wave of 64 touch for each of its multiply-adds; only of the kernels
/// that products dominate.
pub fn per_multiply_add(call: &Call) -> Option<f64> {
    match call {
        Call::Conv3dDirect(k) if k.0.upsampled == [None; 2] => Some(of_rows(&k.0, 4)),
        Call::Conv3dTiled(k) => Some(of_tile(&k.0, &k.tile())),
        Call::Conv3dPointwise(k) => Some(of_rows(&k.0, 8)),
        Call::HeadArgmax(k) => Some(of_rows(&k.0, 4)),
        Call::ConvTranspose3d(k) => {
            let weights = (TAP * k.0.elem.bytes() / 4).div_ceil(LINE);
            Some((rows(8, 8, blocks(k.0.in_channels), k.0.elem) + weights) as f64 / 256.0)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_apart_touch_a_line_each() {
        // 16 channels of f32: 64 bytes a voxel, four voxels from lane to lane
        assert_eq!(rows(4, 4, 4, Elem::F32), 4 * 64);
        // 4 channels, neighbouring voxels: 16 bytes a lane
        assert_eq!(rows(1, 1, 1, Elem::F32), 8);
        assert_eq!(rows(1, 1, 1, Elem::F16), 4);
    }

    #[test]
    fn loads_across_lines_touch_both() {
        assert_eq!(lines([120].into_iter(), 16), 2);
        assert_eq!(lines([0, 64, 128].into_iter(), 16), 2);
    }
}
