//! Every case of every kernel on the device, against its scalar twin.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

mod support;

use half::f16;
use organum::harness::{KernelOutput, KernelRun, host_half, source_sizes, twin, updates};
use organum::kernels::{
    self, Activation, Call, Interpolation, Load, Scope, Target, Window, argmax, channel_stats, conv3d_direct, conv3d_pointwise,
    conv3d_tiled, layer_norm, norm_scale, normalise, plane_stats, resize, tile_accumulate,
};
use organum::{DeviceCaps, Elem, Engine, Extent, Map};
use support::{Random, engine, engine_without_f16};

/// A case on a device: the device, a seed, its label with the storage, the call.
type Run = (&'static Engine, u64, String, Call);

/// Every case with a seed of its own, f32 on one device and f16 on the other, so that both compile at once. What packs is of a
/// few lines that all shaders share: every third case is run packed, too. Of those whose labels begin with `ORGANUM_KERNELS`, if it is
/// set: `ORGANUM_KERNELS=attention/ cargo test --test kernels`.
fn runs() -> Vec<Run> {
    let mut all: Vec<Run> = Vec::new();
    let wanted = std::env::var("ORGANUM_KERNELS").unwrap_or_default();
    let (Some(first), packing) = (engine(), engine_without_f16()) else { return all };
    for (seed, (label, call)) in (1u64..).zip(kernels::cases()).filter(|(_, (label, _))| label.starts_with(&wanted)) {
        let of = |engine: &'static Engine| {
            let storage = call.variant(engine.caps()).storage;
            (engine, seed, format!("{label} [{}]", storage.name()), call.clone())
        };
        if call.variant(first.caps()).elem() == Elem::F32 {
            all.push(of(packing.unwrap_or(first)));
            continue;
        }
        if first.caps().f16 {
            all.push(of(first));
        }
        all.extend(packing.filter(|_| call.packs() && (seed % 3 == 0 || !first.caps().f16)).map(of));
    }
    all
}

/// Calls `f` for each run, those of each device in a thread; what it returned that is an error.
fn on_each(runs: Vec<Run>, f: impl Fn(&Run) -> Result<(), String> + Sync) -> Vec<String> {
    let Some(&(first, ..)) = runs.first() else { return Vec::new() };
    let (one, other): (Vec<Run>, Vec<Run>) = runs.into_iter().partition(|run| std::ptr::eq(run.0, first));
    let failed = |runs: Vec<Run>| runs.iter().filter_map(|run| f(run).err()).collect::<Vec<_>>();
    std::thread::scope(|s| {
        let second = s.spawn(|| failed(other));
        let mut all = failed(one);
        all.extend(second.join().expect("the other half ends"));
        all
    })
}

/// Fresh inputs, rounded to the storage type so that device and twin read the same numbers.
fn inputs(call: &Call, seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random::new(seed);
    let elem = call.variant(&DeviceCaps::default()).elem();
    let mut inputs: Vec<Vec<f32>> = source_sizes(call)
        .iter()
        .map(|&n| {
            let mut values = random.values(n as usize);
            if elem == Elem::F16 {
                values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
            }
            values
        })
        .collect();
    if let Call::GatherTokens(k) = call {
        inputs[1].fill_with(|| random.below(k.input.extent.voxels()) as f32);
    }
    inputs
}

/// Bound on |device - twin| of one element: rounding of the store, and of the f32 sums behind it.
fn tolerance(call: &Call, magnitude: f32) -> f32 {
    let per_output = call.cost().flops as f32 / call.sizes().last().copied().unwrap_or(1) as f32;
    let sums = f32::EPSILON * 4.0 * per_output.max(1.0).sqrt();
    let store = match call.variant(&DeviceCaps::default()).elem() {
        Elem::F32 => f32::EPSILON,
        Elem::F16 => 2.0f32.powi(-10),
    };
    (sums + store) * magnitude.max(1.0)
}

fn check(label: &str, call: &Call, device: &KernelOutput, host: &KernelOutput) -> Result<f32, String> {
    match (device, host) {
        (KernelOutput::Words(a), KernelOutput::Words(b)) if a == b => Ok(0.0),
        (KernelOutput::Floats(a), KernelOutput::Floats(b)) => {
            let magnitude = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let bound = tolerance(call, magnitude);
            let worst = a[..b.len()]
                .iter()
                .zip(b)
                .map(|(x, y)| (x - y).abs())
                .fold(0.0f32, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) });
            if worst <= bound { Ok(worst / bound) } else { Err(format!("{label}: differs by {worst:e}, bound {bound:e}")) }
        }
        _ => Err(format!("{label}: words differ")),
    }
}

#[test]
fn every_case_equals_its_twin() {
    let failures = on_each(runs(), |(engine, seed, label, call)| {
        let inputs = inputs(call, *seed);
        let share = check(label, call, &on_device(engine, call, &inputs), &twin(call, &inputs))?;
        println!("{label}: {share:.2} of the bound");
        Ok(())
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn twins_write_every_element() {
    for (label, call) in kernels::cases() {
        let a = twin(&call, &inputs(&call, 7));
        if let KernelOutput::Floats(values) = a {
            assert!(values.iter().all(|&v| v != 1234.0), "{label} leaves elements unwritten");
        }
    }
}

/// Zeros where weights meet channels that pad a source: host halves leave these out.
fn without_padding(call: &Call, inputs: &mut [Vec<f32>]) {
    let taps = |kernel: [u32; 3]| kernel.iter().map(|&k| k as usize).product::<usize>();
    let (channels, taps) = match call {
        Call::Conv3dDirect(k) => (k.0.in_channels, taps(k.0.kernel)),
        Call::Conv3dPointwise(k) => (k.0.in_channels, 1),
        Call::HeadArgmax(k) => (k.0.in_channels, 1),
        Call::Conv3dGeneral(k) => ([k.grouping.inputs, 0], taps(k.kernel)),
        Call::ConvTranspose3d(k) => ([k.0.in_channels, 0], taps(k.0.kernel)),
        Call::ConvTranspose3dGeneral(k) => ([k.0.in_channels, 0], taps(k.0.kernel)),
        _ => return,
    };
    let [a, b] = channels.map(|c| c as usize);
    let (padded_a, width) = (a.next_multiple_of(4), a.next_multiple_of(4) + b.next_multiple_of(4));
    let Some(weights) = inputs.last_mut() else { return };
    let blocks = weights.len() / (8 * (taps * width + 1));
    for (row, lanes) in weights[..blocks * taps * width * 8].chunks_exact_mut(8).enumerate() {
        let c = row % width;
        if (a..padded_a).contains(&c) || c >= padded_a + b {
            lanes.fill(0.0);
        }
    }
}

#[test]
fn host_halves_equal_their_twins() {
    let (mut failures, mut halves) = (Vec::new(), 0);
    for (seed, (label, call)) in (1u64..).zip(kernels::cases()) {
        let mut inputs = inputs(&call, seed);
        if call.host().is_none() {
            continue;
        }
        without_padding(&call, &mut inputs);
        let Some(half) = host_half(&call, &inputs) else { panic!("{label} has a half") };
        halves += 1;
        match check(&label, &call, &half, &twin(&call, &inputs)) {
            Ok(share) => println!("{label}: {share:.2} of the bound"),
            Err(e) => failures.push(e),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(halves > 100, "{halves} cases have a host half");
}

fn on_device(engine: &Engine, call: &Call, inputs: &[Vec<f32>]) -> KernelOutput {
    pollster::block_on(async {
        let mut run = KernelRun::new(engine, call, inputs).await.expect("the kernel is accepted");
        run.run(1).await.expect("the kernel runs");
        run.read().await.expect("the result comes back")
    })
}

/// Without logits in between, labels are the same: in f32 all of them, in f16 but for ties of rounded logits.
#[test]
fn head_argmax_is_pointwise_then_argmax() {
    let mut ties = 0;
    for (engine, seed, label, call) in runs() {
        let Call::HeadArgmax(head) = &call else { continue };
        let shape = head.0.clone();
        let inputs = inputs(&call, seed);
        let convolution = Call::Conv3dPointwise(conv3d_pointwise::Conv3dPointwise(shape.clone()));
        let KernelOutput::Floats(logits) = on_device(engine, &convolution, &inputs) else { panic!("{label}: no logits") };
        let (map, elem, target) = (shape.map(), shape.elem, shape.target);
        let second = Call::Argmax(argmax::Argmax { map, elem, windows: [Window::whole(0)], target });
        let KernelOutput::Words(apart) = on_device(engine, &second, std::slice::from_ref(&logits)) else { panic!("{label}: no labels") };
        let KernelOutput::Words(at_once) = on_device(engine, &call, &inputs) else { panic!("{label}: no labels") };
        if elem == Elem::F32 {
            assert_eq!(at_once, apart, "{label}");
            continue;
        }
        let lanes = argmax::labels_per_word(map.channels) as usize;
        let words = argmax::plane_words(map.extent, map.channels) as usize;
        let (plane, width) = (map.extent.plane() as usize, map.blocks() as usize * 4);
        for (z, voxel) in (0..map.extent.d as usize).flat_map(|z| (0..plane).map(move |v| (z, v))) {
            let of = |packed: &[u32]| (packed[z * words + voxel / lanes] >> (voxel % lanes * 32 / lanes)) as usize % (1 << (32 / lanes));
            let x = &logits[(z * plane + voxel) * width..];
            assert_eq!(x[of(&at_once)], x[of(&apart)], "{label}: plane {z}, voxel {voxel}");
            ties += usize::from(of(&at_once) != of(&apart));
        }
    }
    println!("{ties} labels differ by ties of f16 logits");
}

/// Next to a mean of 1000 times the deviation, and over millions of voxels, scale and shift are those of f64 but for the
/// rounding of the mean itself.
#[test]
fn statistics_survive_a_large_mean_and_millions_of_voxels() {
    let Some(engine) = engine() else { return };
    let (windows, eps) = ([Window::whole(0)], 1e-5f32);
    let (small, large) = (Extent::new(9, 70, 60), Extent::new(96, 128, 256));
    for (mean, deviation, extent) in
        [(0.0, 1.0, small), (1000.0, 1.0, small), (-30_000.0, 100.0, small), (5.0, 1e-3, small), (5.0, 1.0, large)]
    {
        let map = Map::new(extent, 6);
        let n = map.extent.voxels() as usize;
        let mut random = Random::new(3);
        // the sum of four uniform numbers: nearly normal, of variance 4/3
        let mut value = || mean + deviation * (0..4).map(|_| random.unit()).sum::<f32>();
        let x: Vec<f32> = (0..n * 8).map(|at| if at % 8 < 6 { value() } else { 0.0 }).collect();
        let floats = |call: Call, inputs: &[Vec<f32>]| match on_device(engine, &call, inputs) {
            KernelOutput::Floats(values) => values,
            KernelOutput::Words(_) => panic!("no floats"),
        };
        let target = Target::whole(map.extent.d);
        let parts =
            floats(Call::ChannelStats(channel_stats::ChannelStats { map, elem: Elem::F32, windows, target }), std::slice::from_ref(&x));
        let planes = floats(Call::PlaneStats(plane_stats::PlaneStats { map, windows, target }), &[parts]);
        let scale =
            norm_scale::NormScale { planes: extent.d, channels: 6, group: 1, eps, scope: Scope::Volume, windows, target: Target::whole(1) };
        let affine: Vec<f32> = (0..16).map(|c| f32::from(u8::from(c < 6))).collect();
        let scale = floats(Call::NormScale(scale), &[planes, affine]);
        let (mut worst_scale, mut worst) = (0.0f64, 0.0f64);
        for c in 0..6 {
            let values = || x[c..].iter().step_by(8).map(|&v| f64::from(v));
            let mean = values().sum::<f64>() / n as f64;
            let variance = values().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            let expected = (variance + f64::from(eps)).sqrt().recip();
            worst_scale = worst_scale.max((f64::from(scale[c]) / expected - 1.0).abs());
            let normalised = |v: f64| (v as f32).mul_add(scale[c], scale[8 + c]);
            worst = values().map(|v| (f64::from(normalised(v)) - (v - mean) * expected).abs()).fold(worst, f64::max);
        }
        println!(
            "mean {mean}, deviation {deviation} over {n} voxels: scale differs by {worst_scale:.1e}, normalised values by {worst:.1e}"
        );
        assert!(worst_scale < 5e-7, "{worst_scale:e}");
        // half an ulp of the mean and of the shift
        let rounding = f64::from(mean.abs() / deviation * f32::EPSILON) + 2e-6;
        assert!(worst < rounding, "{worst:e}, more than {rounding:e}");
    }
}

#[test]
fn activations_are_within_a_millionth() {
    let Some(engine) = engine() else { return };
    let map = Map::new(Extent::new(1, 64, 256), 4);
    let mut x: Vec<f32> = (0..65_536u32).map(|i| i as f32 / 4096.0 - 8.0).collect();
    x[..10].copy_from_slice(&[-1e30, -1e4, -100.0, -90.0, -30.0, 30.0, 90.0, 100.0, 1e4, 1e30]);
    let inputs = [x.clone(), vec![1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], vec![0.0; 4]];
    let (leaky, elu) = (Activation::LeakyRelu { slope: 0.01 }, Activation::Elu { alpha: 1.0 });
    for activation in [Activation::Relu, leaky, elu, Activation::Gelu, Activation::Sigmoid] {
        let call = Call::Normalise(normalise::Normalise {
            map,
            load: Load { norm: None, activation },
            prelu: false,
            elem: Elem::F32,
            windows: [Window::whole(0); 2],
            target: Target::whole(1),
        });
        let KernelOutput::Floats(y) = on_device(engine, &call, &inputs) else { panic!("no floats") };
        // beyond 1, of the value itself
        let error = |(&y, &x): (&f32, &f32)| {
            let expected = activation.apply(x.into());
            (f64::from(y) - expected).abs() / expected.abs().max(1.0)
        };
        let worst = y.iter().zip(&x).map(error).fold(0.0, |m: f64, e| if e.is_nan() { f64::INFINITY } else { m.max(e) });
        println!("{activation} differs by {worst:.1e}");
        assert!(worst <= 1e-6, "{activation}: {worst:e}");
    }
}

/// Next to a mean of 1000 times the deviation, normalised values are those of f64.
#[test]
fn layer_norm_survives_a_large_mean() {
    let Some(engine) = engine() else { return };
    for channels in [3, 14, 96, 770, 3072] {
        let map = Map::new(Extent::new(2, 5, 7), channels);
        let padded = map.blocks() as usize * 4;
        let layer = layer_norm::LayerNorm {
            map,
            eps: 1e-5,
            before: Activation::None,
            after: Activation::None,
            elem: Elem::F32,
            windows: [Window::whole(0)],
            target: Target::whole(2),
        };
        for (mean, deviation) in [(1000.0, 1.0), (-30_000.0, 100.0), (5.0, 0.1)] {
            let mut random = Random::new(5);
            let x: Vec<f32> = (0..70 * padded).map(|_| mean + deviation * random.unit()).collect();
            let affine: Vec<f32> = (0..2 * padded).map(|c| f32::from(u8::from(c < channels as usize))).collect();
            let call = Call::LayerNorm(layer.clone());
            let inputs = [x, affine];
            let KernelOutput::Floats(device) = on_device(engine, &call, &inputs) else { panic!("no floats") };
            let KernelOutput::Floats(host) = twin(&call, &inputs) else { panic!("no floats") };
            let worst = device.iter().zip(&host).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{channels} channels, mean {mean}, deviation {deviation}: differs by {worst:.1e}");
            assert!(worst < 4e-6, "{channels} channels, mean {mean}, deviation {deviation}: {worst:e}");
        }
    }
}

/// The resampled map in between or not: the same bits.
#[test]
fn convolution_through_resampling_is_resampling_then_convolution() {
    let mut tried = Vec::new();
    for (engine, seed, label, call) in runs() {
        let (Call::Conv3dDirect(conv3d_direct::Conv3dDirect(shape)) | Call::Conv3dTiled(conv3d_tiled::Conv3dTiled(shape))) = &call else {
            continue;
        };
        if shape.upsampled == [None; 2] {
            continue;
        }
        let inputs = whole_sources(&call, inputs(&call, seed));
        let mut stored = inputs.clone();
        for (slot, channels) in shape.in_channels.into_iter().enumerate() {
            let Some(through) = shape.upsampled[slot] else { continue };
            tried.push(through.mode);
            let resample = Call::Resize(resize::Resize {
                input: through.stored,
                output: shape.input,
                channels,
                mode: through.mode,
                elem: shape.elem,
                windows: [Window::whole(0)],
                target: Target::whole(shape.input.d),
            });
            let source = vec![inputs[2 * slot].clone(); 2];
            let KernelOutput::Floats(fine) = on_device(engine, &resample, &source) else { panic!("{label}: no map") };
            stored[2 * slot..2 * slot + 2].fill(fine);
        }
        let mut plain = shape.clone();
        plain.upsampled = [None; 2];
        let plain = match call {
            Call::Conv3dTiled(_) => Call::Conv3dTiled(conv3d_tiled::Conv3dTiled(plain)),
            _ => Call::Conv3dDirect(conv3d_direct::Conv3dDirect(plain)),
        };
        let apart = on_device(engine, &plain, &stored);
        assert!(on_device(engine, &call, &inputs) == apart, "{label}");
    }
    for mode in [Interpolation::Aligned, Interpolation::HalfPixel, Interpolation::Nearest] {
        assert!(engine().is_none() || tried.iter().filter(|&&m| m == mode).count() >= 3, "{mode:?}");
    }
}

fn below(random: &mut Random, n: u32) -> u32 {
    random.below(u64::from(n)) as u32
}

/// Slabs of the sources of planes `z`: each source cut at a random plane where the kernel binds two slabs, NaN beyond them.
fn cut(call: &mut Call, inputs: &[Vec<f32>], z: &std::ops::Range<u32>, planes_out: u32, random: &mut Random) -> Vec<Vec<f32>> {
    let sources = call.sources();
    let tags: Vec<[usize; 2]> = (0..sources.len()).map(|s| [2 * s, 2 * s + 1]).collect();
    let bound = call.bind(&tags, &[usize::MAX]);
    let windows: Vec<Window> = sources
        .iter()
        .map(|s| {
            let read = s.reach.planes(s.planes, planes_out, z);
            let first = below(random, read.start + 1);
            let split = read.start + 1 + below(random, read.end - read.start);
            if s.reach.bindings() == 2 { Window { first, split } } else { Window::whole(first) }
        })
        .collect();
    let (lie, write) = call.operands();
    let whole = |s: usize| sources[s].reach == kernels::Reach::Whole;
    for (s, (own, given)) in lie.iter_mut().zip(&windows).enumerate() {
        *own = if whole(s) { Window::whole(0) } else { *given };
    }
    *write = Target { first: z.start.saturating_sub(1), begin: z.start, count: z.end - z.start };
    bound
        .iter()
        .zip(inputs)
        .map(|(&tag, values)| {
            let Some(source) = sources.get(tag / 2).filter(|_| !whole(tag / 2)) else { return values.clone() };
            let plane = values.len() / source.planes as usize;
            let window = windows[tag / 2];
            let begin = if tag % 2 == 0 { window.first } else { window.split.min(source.planes) } as usize * plane;
            let end = if tag % 2 == 0 { window.split.min(source.planes) as usize * plane } else { values.len() };
            let mut slab = values[begin..end].to_vec();
            slab.resize(values.len(), f32::NAN);
            slab
        })
        .collect()
}

#[test]
fn slabs_equal_the_whole_bit_for_bit() {
    let run = |engine: &Engine, call: &Call, inputs: &[Vec<f32>]| {
        pollster::block_on(async {
            let mut run = KernelRun::new(engine, call, inputs).await.expect("the kernel is accepted");
            run.run(1).await.expect("the kernel runs");
            match run.read().await.expect("the result comes back") {
                KernelOutput::Floats(v) => v.into_iter().map(f32::to_bits).collect::<Vec<u32>>(),
                KernelOutput::Words(v) => v,
            }
        })
    };
    // where a plane lies is found before its elements are read: f32 shows it, and every third case of f16 that it is so
    let cases = runs().into_iter().filter(|(_, seed, _, call)| call.variant(&DeviceCaps::default()).elem() == Elem::F32 || seed % 3 == 1);
    // what is added to is no slab: the ring of sums is whole
    let cases = cases.filter(|(_, _, _, call)| !updates(call));
    let failures = on_each(cases.collect(), |(engine, seed, label, call)| {
        let mut random = Random::new(99 + seed);
        let inputs = whole_sources(call, inputs(call, *seed));
        let whole = run(engine, call, &inputs);
        let planes = call.clone().operands().1.count;
        let elements = call.sizes().last().copied().expect("a destination") as usize / planes as usize;
        for _ in 0..3 {
            let begin = below(&mut random, planes);
            let z = begin..begin + 1 + below(&mut random, planes - begin);
            let mut part = call.clone();
            let slabs = cut(&mut part, &inputs, &z, planes, &mut random);
            let got = run(engine, &part, &slabs);
            let skip = (z.start - z.start.saturating_sub(1)) as usize * elements;
            let expected = &whole[z.start as usize * elements..z.end as usize * elements];
            if &got[skip..skip + expected.len()] != expected {
                return Err(format!("{label}: planes {z:?}"));
            }
        }
        Ok(())
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Both slabs of a source hold the same map when it is whole.
fn whole_sources(call: &Call, mut inputs: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let tags: Vec<[usize; 2]> = (0..call.sources().len()).map(|s| [s, s]).collect();
    let bound = call.bind(&tags, &[usize::MAX]);
    for i in 0..bound.len() {
        if let Some(first) = (0..i).find(|&j| bound[j] == bound[i] && bound[i] != usize::MAX && inputs[j].len() == inputs[i].len()) {
            inputs[i] = inputs[first].clone();
        }
    }
    inputs
}

#[test]
fn slabs_of_a_tile_add_up_to_the_whole_bit_for_bit() {
    let cases: Vec<_> =
        runs().into_iter().filter(|(_, _, _, call)| matches!(call, Call::TileAccumulate(add) if add.planes.len() > 1)).collect();
    assert!(engine().is_none() || cases.len() > 10, "{} cases", cases.len());
    let failures = on_each(cases, |(engine, seed, label, call)| {
        let Call::TileAccumulate(add) = call else { return Err(label.clone()) };
        let inputs = inputs(call, *seed);
        let floats = |call: &Call, inputs: &[Vec<f32>]| match on_device(engine, call, inputs) {
            KernelOutput::Floats(values) => values,
            KernelOutput::Words(_) => panic!("no floats"),
        };
        let whole = floats(call, &inputs);
        let middle = add.planes.start + 1;
        let mut sums = inputs[2].clone();
        for planes in [add.planes.start..middle, middle..add.planes.end] {
            let first = planes.start;
            let plane = inputs[0].len() / add.place.tile.d as usize;
            let mut slab = inputs[0][first as usize * plane..planes.end as usize * plane].to_vec();
            slab.resize(inputs[0].len(), f32::NAN);
            let part = tile_accumulate::TileAccumulate { planes, windows: [Window::whole(first)], ..add.clone() };
            sums = floats(&Call::TileAccumulate(part), &[slab, inputs[1].clone(), sums]);
        }
        if sums.iter().zip(&whole).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err(label.clone());
        }
        Ok(())
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
