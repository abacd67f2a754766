//! Every kernel on the device at the shapes of real networks. After each group a table: the median as GFLOP/s and GB/s.
//!
//! `ORGANUM_BENCH_SMALL=1` shrinks the extents for software adapters.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use organum::harness::{KernelRun, source_sizes};
use organum::kernels::{
    Activation, Call, ConvShape, ConvTransposeShape, Grouping, Load, Spread, Target, TokenChannels, Window, WindowShape, argmax, attention,
    combine, conv_transpose3d, conv_transpose3d_general, conv3d_direct, conv3d_general, conv3d_pointwise, head_argmax, max_pool3d,
    position_add, upsample_linear, window_attention,
};
use organum::{Elem, Engine, Extent, Map};

fn small() -> bool {
    std::env::var_os("ORGANUM_BENCH_SMALL").is_some_and(|v| v == "1")
}

/// A cube of `n` voxels a side, half of it when small.
fn cube(n: u32) -> Extent {
    let n = if small() { n / 2 } else { n };
    Extent::new(n, n, n)
}

fn whole(extent: Extent) -> Target {
    Target { first: 0, begin: 0, count: extent.d }
}

fn conv(input: Extent, in_channels: [u32; 2], out_channels: u32, k: u32, elem: Elem) -> ConvShape {
    ConvShape {
        input,
        in_channels,
        residual: false,
        out_channels,
        kernel: [k; 3],
        stride: [1; 3],
        padding: [k / 2; 3],
        loads: [Load::default(); 2],
        upsampled: [None; 2],
        activation: Activation::Relu,
        elem,
        windows: [Window::whole(0); 4],
        target: whole(input),
    }
}

/// Cases by kernel.
fn cases(elem: Elem) -> Vec<(&'static str, Vec<(String, Call)>)> {
    let direct = |n: u32, in_channels: [u32; 2], out: u32| {
        let [a, b] = in_channels;
        let source = if b > 0 { format!("{a}+{b}") } else { a.to_string() };
        let shape = conv(cube(n), in_channels, out, 3, elem);
        (format!("k3_{source}-{out}_{}", shape.input), Call::Conv3dDirect(conv3d_direct::Conv3dDirect(shape)))
    };
    // the last source through upsampling that is not stored
    let through = |n: u32, in_channels: [u32; 2], out: u32| {
        let mut shape = conv(cube(n), in_channels, out, 3, elem);
        shape.upsampled[usize::from(in_channels[1] > 0)] = Some(cube(n / 2));
        let source = in_channels.map(|c| c.to_string()).join("+");
        (format!("k3_through_{source}-{out}_{}", shape.input), Call::Conv3dDirect(conv3d_direct::Conv3dDirect(shape)))
    };
    let pointwise = |n: u32, in_channels: [u32; 2], out: u32| {
        let shape = conv(cube(n), in_channels, out, 1, elem);
        (
            format!("{}+{}-{out}_{}", in_channels[0], in_channels[1], shape.input),
            Call::Conv3dPointwise(conv3d_pointwise::Conv3dPointwise(shape)),
        )
    };
    let general = |groups: u32, dilation: u32| {
        let input = cube(64);
        let call = conv3d_general::Conv3dGeneral {
            input,
            grouping: Grouping { inputs: 32, outputs: 32, groups },
            kernel: [3; 3],
            stride: [1; 3],
            padding: [dilation; 3],
            dilation: [dilation; 3],
            load: Load::default(),
            activation: Activation::Relu,
            elem,
            windows: [Window::whole(0); 2],
            target: whole(input),
        };
        (format!("k3_groups{groups}_dilation{dilation}_32-32_{input}"), Call::Conv3dGeneral(call))
    };
    let transposed = |k: u32, general: bool| {
        let input = cube(32);
        let mut shape = ConvTransposeShape {
            input,
            in_channels: 64,
            out_channels: 32,
            kernel: [k; 3],
            stride: [2; 3],
            padding: [u32::from(general); 3],
            output_padding: [u32::from(general); 3],
            load: Load::default(),
            activation: Activation::None,
            elem,
            windows: [Window::whole(0); 2],
            target: Target::whole(0),
        };
        shape.target = Target::whole(shape.output().d);
        let label = format!("k{k}_stride2_64-32_{input}");
        if general {
            (label, Call::ConvTranspose3dGeneral(conv_transpose3d_general::ConvTranspose3dGeneral(shape)))
        } else {
            (label, Call::ConvTranspose3d(conv_transpose3d::ConvTranspose3d(shape)))
        }
    };
    let attention = |extent: Extent, channels: u32, heads: u32| {
        let call = attention::Attention {
            queries: extent,
            keys: extent,
            more_keys: None,
            channels: TokenChannels { qk: channels, v: channels, first: [0; 3] },
            stored: [channels; 3],
            heads,
            scale: 1.0 / ((channels / heads) as f32).sqrt(),
            per_plane: false,
            masked: false,
            elem,
            windows: [Window::whole(0); 5],
            target: whole(extent),
        };
        (format!("{}_tokens_{heads}x{}", extent.voxels(), channels / heads), Call::Attention(call))
    };
    let windows = |extent: Extent, channels: u32, heads: u32, window: [u32; 3], shift: [u32; 3]| {
        let shape = WindowShape {
            heads,
            qk_channels: channels,
            v_channels: channels,
            first: [0, channels, 2 * channels],
            scale: 1.0 / ((channels / heads) as f32).sqrt(),
            q_window: window,
            k_window: window,
            shift,
            tokens: 0,
            token_queries: false,
            bias_rows: 343,
        };
        let call = window_attention::WindowAttention {
            shape,
            queries: extent,
            q_channels: 3 * channels,
            keys: extent,
            kv_channels: 3 * channels,
            elem,
            windows: [Window::whole(0); 3],
            target: whole(extent),
        };
        (format!("{}_tokens_{heads}x{}", extent.voxels(), channels / heads), Call::WindowAttention(call))
    };
    let (fine, coarse) = (cube(64), cube(32));
    let map = |channels: u32| Map::new(fine, channels);
    let pooled = Extent::new(fine.d / 2, fine.h / 2, fine.w / 2);
    vec![
        (
            "conv3d_direct",
            vec![
                direct(64, [16, 0], 16),
                direct(64, [32, 0], 32),
                direct(32, [64, 0], 64),
                direct(64, [16, 16], 16),
                through(64, [32, 0], 32),
                through(64, [16, 16], 16),
            ],
        ),
        ("conv3d_general", vec![general(1, 2), general(4, 1), general(32, 1)]),
        ("conv3d_pointwise", vec![pointwise(64, [64, 0], 64), pointwise(64, [16, 16], 16)]),
        ("conv_transpose3d", vec![transposed(2, false)]),
        ("conv_transpose3d_general", vec![transposed(3, true)]),
        (
            "max_pool3d",
            vec![(
                format!("k2_32_{fine}"),
                Call::MaxPool3d(max_pool3d::MaxPool3d {
                    input: fine,
                    channels: 32,
                    kernel: [2; 3],
                    elem,
                    windows: [Window::whole(0)],
                    target: whole(pooled),
                }),
            )],
        ),
        (
            "upsample_linear",
            vec![(
                format!("x2_32_{fine}"),
                Call::UpsampleLinear(upsample_linear::UpsampleLinear {
                    input: coarse,
                    output: fine,
                    channels: 32,
                    elem,
                    windows: [Window::whole(0)],
                    target: whole(fine),
                }),
            )],
        ),
        (
            "position_add",
            vec![(
                format!("32_{fine}"),
                Call::PositionAdd(position_add::PositionAdd { map: map(32), elem, windows: [Window::whole(0)], target: whole(fine) }),
            )],
        ),
        (
            "combine",
            [("add", false), ("multiply", true)]
                .map(|(label, multiply)| {
                    let call = combine::Combine {
                        map: map(32),
                        spread: Spread::Nothing,
                        multiply,
                        loads: [Load::default(); 2],
                        activation: Activation::None,
                        elem,
                        windows: [Window::whole(0); 4],
                        target: whole(fine),
                    };
                    (format!("{label}_32_{fine}"), Call::Combine(call))
                })
                .to_vec(),
        ),
        ("head_argmax", {
            let shape = conv(fine, [32, 0], 14, 1, elem);
            vec![(format!("32-14_{fine}"), Call::HeadArgmax(head_argmax::HeadArgmax(shape)))]
        }),
        (
            "argmax",
            vec![(
                format!("14_{fine}"),
                Call::Argmax(argmax::Argmax { map: map(14), elem, windows: [Window::whole(0)], target: whole(fine) }),
            )],
        ),
        // the bottleneck of the hippocampus network, and of an abdominal one
        (
            "window_attention",
            vec![
                windows(cube(32), 192, 6, [4; 3], [2; 3]),
                windows(cube(8), 768, 24, [8; 3], [0; 3]),
                windows(Extent::new(1, 56, 56), 96, 3, [1, 7, 7], [0, 3, 3]),
            ],
        ),
        ("attention", vec![attention(Extent::new(10, 14, 10), 48, 4), attention(cube(16), 256, 8)]),
    ]
}

/// Values in -1..1 that cost nothing to make.
fn values(n: u64) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1u32 << 23) as f32 - 1.0).collect()
}

fn kernels(c: &mut Criterion) {
    let Ok(engine) = pollster::block_on(Engine::request(None)) else {
        println!("no GPU adapter on this machine");
        return;
    };
    println!("{} ({}, {})", engine.summary().name, engine.summary().backend, engine.summary().driver);
    let elems: &[Elem] = if engine.caps().f16 { &[Elem::F32, Elem::F16] } else { &[Elem::F32] };
    for &elem in elems {
        for (kernel, list) in cases(elem) {
            let mut group = c.benchmark_group(format!("{kernel}/{}", elem.name()));
            group
                .sample_size(10)
                .warm_up_time(Duration::from_millis(200))
                .measurement_time(Duration::from_secs(1))
                .sampling_mode(SamplingMode::Flat);
            let mut table = Vec::new();
            for (label, call) in list {
                let cost = call.cost();
                let mut times = Vec::new();
                let mut run = None;
                group.throughput(Throughput::Elements(cost.flops));
                group.bench_function(BenchmarkId::from_parameter(&label), |b| {
                    // made only when the filter chooses the case; the first run compiles
                    let run = run.get_or_insert_with(|| {
                        let inputs: Vec<Vec<f32>> = source_sizes(&call).into_iter().map(values).collect();
                        let mut run = pollster::block_on(KernelRun::new(&engine, &call, &inputs)).expect("the kernel is accepted");
                        pollster::block_on(run.run(1)).expect("the kernel runs");
                        run
                    });
                    b.iter_custom(|iterations| {
                        let begin = Instant::now();
                        pollster::block_on(run.run(u32::try_from(iterations).unwrap_or(u32::MAX))).expect("the kernel runs");
                        let elapsed = begin.elapsed();
                        times.push(elapsed.as_secs_f64() / iterations as f64);
                        elapsed
                    });
                });
                times.sort_by(f64::total_cmp);
                if let (Some(best), Some(median)) = (times.first(), times.get(times.len() / 2)) {
                    let rate = |n: u64, t: f64| n as f64 / t / 1e9;
                    table.push(format!(
                        "{kernel:<17} {:<4} {label:<24} {:>9.3} ms {:>9.2} GFLOP/s {:>8.2} GB/s   best {:>9.2} GFLOP/s",
                        elem.name(),
                        median * 1e3,
                        rate(cost.flops, *median),
                        rate(cost.bytes, *median),
                        rate(cost.flops, *best)
                    ));
                }
            }
            group.finish();
            table.iter().for_each(|row| println!("{row}"));
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
