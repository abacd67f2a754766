//! Tiled inference by its kernels, against loops over voxels in f64.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

mod support;

use organum::harness::{KernelOutput, KernelRun, twin};
use organum::kernels::{Call, Target, Window, tile_accumulate, tile_crop, tile_normalise};
use organum::tiling::{Blend, TileWeights, monai_starts, nnunet_starts};
use organum::{Elem, Engine, Extent, Map};
use support::{Random, engine};

const CLASSES: u32 = 3;

type Starts = [Vec<i32>; 3];

/// What a network that knows up from down says of a voxel of its tile.
fn predict(value: f32, [z, y, x]: [usize; 3], class: usize) -> f32 {
    (value * (class as f32 + 0.5) + z as f32 * 0.31 - y as f32 * 0.17 + x as f32 * 0.07).sin()
}

/// Voxel `place` of the tile at `start`; padding is zero.
fn voxel(volume: &[f32], whole: Extent, start: [i32; 3], place: [usize; 3]) -> f32 {
    let at = [0, 1, 2].map(|axis| start[axis] + place[axis] as i32);
    let n = whole.axes();
    if (0..3).any(|axis| at[axis] < 0 || at[axis] >= n[axis] as i32) {
        return 0.0;
    }
    volume[((at[0] as u32 * whole.h + at[1] as u32) * whole.w + at[2] as u32) as usize]
}

fn places(extent: Extent) -> impl Iterator<Item = [usize; 3]> {
    let [d, h, w] = extent.axes().map(|n| n as usize);
    (0..d * h * w).map(move |i| [i / (h * w), i / w % h, i % w])
}

fn flipped(place: [usize; 3], tile: Extent, flip: [bool; 3]) -> [usize; 3] {
    [0, 1, 2].map(|axis| if flip[axis] { tile.axes()[axis] as usize - 1 - place[axis] } else { place[axis] })
}

fn mirrors() -> impl Iterator<Item = [bool; 3]> {
    (0..8).map(|m| [m & 1 > 0, m & 2 > 0, m & 4 > 0])
}

fn starts(starts: &Starts) -> impl Iterator<Item = [i32; 3]> {
    starts[0].iter().flat_map(move |&z| starts[1].iter().flat_map(move |&y| starts[2].iter().map(move |&x| [z, y, x])))
}

/// The mean over all tiles and mirror images, voxel by voxel.
fn direct(volume: &[f32], whole: Extent, tile: Extent, all: &Starts, weights: &TileWeights) -> Vec<f64> {
    let mut mean = Vec::new();
    for at in places(whole) {
        let (mut sum, mut total) = ([0.0; CLASSES as usize], 0.0);
        for start in starts(all) {
            let place = [0, 1, 2].map(|axis| at[axis] as i32 - start[axis]);
            if (0..3).any(|axis| place[axis] < 0 || place[axis] >= tile.axes()[axis] as i32) {
                continue;
            }
            let place = place.map(|i| i as usize);
            let weight = f64::from(weights.at(place[0], place[1], place[2]));
            total += weight;
            for flip in mirrors() {
                // the network sees the voxel where the flip brings it
                let value = voxel(volume, whole, start, place);
                for (class, sum) in sum.iter_mut().enumerate() {
                    *sum += weight * f64::from(predict(value, flipped(place, tile, flip), class)) / 8.0;
                }
            }
        }
        mean.extend(sum.map(|sum| sum / total));
    }
    mean
}

/// The same by the kernels, on the device or by their twins.
fn by_kernels(engine: Option<&Engine>, volume: &[f32], whole: Extent, tile: Extent, all: &Starts, weights: &TileWeights) -> Vec<f32> {
    let run = |call: Call, inputs: &[Vec<f32>]| {
        let output = match engine {
            None => twin(&call, inputs),
            Some(engine) => pollster::block_on(async {
                let mut run = KernelRun::new(engine, &call, inputs).await.expect("the kernel is accepted");
                run.run(1).await.expect("the kernel runs");
                run.read().await.expect("the result comes back")
            }),
        };
        match output {
            KernelOutput::Floats(values) => values,
            KernelOutput::Words(words) => words.into_iter().map(f32::from_bits).collect(),
        }
    };
    let mut sums = vec![0.0; whole.voxels() as usize * 4];
    for start in starts(all) {
        for flip in mirrors() {
            let place = tile_crop::TilePlace { tile, whole, ring: whole.d, origin: start, flip };
            let crop = tile_crop::TileCrop {
                place,
                channels: 1,
                map: Map::new(tile, 1),
                elem: Elem::F32,
                windows: [Window::whole(0)],
                target: Target::whole(tile.d),
            };
            let seen = run(Call::TileCrop(crop), &[volume.to_vec()]);
            let mut predicted = Vec::new();
            for (place, value) in places(tile).zip(seen.chunks_exact(4)) {
                predicted.extend([0, 1, 2].map(|class| predict(value[0], place, class)));
                predicted.push(0.0);
            }
            let call = tile_accumulate::TileAccumulate {
                place,
                channels: CLASSES,
                weights: Some(weights.rounding()),
                // an eighth: the mean of the mirror images
                share: 0.125,
                rounded: false,
                fresh: false,
                elem: Elem::F32,
                planes: 0..tile.d,
                windows: [Window::whole(0)],
                target: Target::whole(whole.d),
            };
            sums = run(Call::TileAccumulate(call), &[predicted, weights.packed(), sums]);
        }
    }
    let call = tile_normalise::TileNormalise {
        map: Map::new(whole, CLASSES),
        rounded: false,
        out: Elem::F32,
        windows: [Window::whole(0); 2],
        target: Target::whole(whole.d),
    };
    let mean = run(Call::TileNormalise(call), &[sums, weights.sums(whole, all)]);
    mean.chunks_exact(4).flat_map(|c| c[..3].to_vec()).collect()
}

#[test]
fn tiles_and_mirror_images_make_the_mean_of_the_direct_sums() {
    let nnunet = |image: u32, tile: u32| nnunet_starts(image, tile, 0.5);
    let monai = |image: u32, tile: u32| monai_starts(image, tile, 0.5);
    type Axis<'a> = &'a dyn Fn(u32, u32) -> Vec<i32>;
    // the second volume is smaller than a tile along H
    let cases: [(&str, Blend, Axis<'_>, Extent); 5] = [
        ("nnU-Net", Blend::NnUnet, &nnunet, Extent::new(7, 9, 8)),
        ("nnU-Net, padded", Blend::NnUnet, &nnunet, Extent::new(7, 3, 9)),
        ("nnU-Net v2", Blend::NnUnetHalf, &nnunet, Extent::new(5, 9, 6)),
        ("MONAI", Blend::Monai, &monai, Extent::new(6, 9, 7)),
        ("MONAI, constant", Blend::Constant, &monai, Extent::new(6, 4, 9)),
    ];
    for (label, blend, axis, whole) in cases {
        let tile = Extent::new(4, 6, 5);
        let all = [axis(whole.d, tile.d), axis(whole.h, tile.h), axis(whole.w, tile.w)];
        let volume = Random::new(17).values(whole.voxels() as usize);
        let weights = TileWeights::new(blend, tile);
        let expected = direct(&volume, whole, tile, &all, &weights);
        for (name, engine) in [("host", None)].into_iter().chain(engine().map(|e| ("device", Some(e)))) {
            let mean = by_kernels(engine, &volume, whole, tile, &all, &weights);
            let worst = mean.iter().zip(&expected).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
            println!("{label} on the {name}, {} tiles: differs by {worst:.1e}", starts(&all).count());
            assert!(worst < 1e-6, "{label} on the {name}: differs by {worst:e}");
        }
    }
}
