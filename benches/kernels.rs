//! Every kernel on the device at the shapes of real networks (`kernels::bench`, as `organum bench`). After each group a table: the median
//! as GFLOP/s and GB/s, and its shares of the two ceilings that are measured first.
//!
//! `ORGANUM_BENCH_SMALL=1` halves the extents for software adapters.
#![allow(clippy::print_stdout, reason = "a program")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use organum::harness::{KernelRun, measure, source_sizes, values};
use organum::kernels::{Call, bench};
use organum::{Elem, Engine};

fn kernels(c: &mut Criterion) {
    let Ok(engine) = pollster::block_on(Engine::request(None)) else {
        println!("no GPU adapter on this machine");
        return;
    };
    println!("{} ({}, {})", engine.summary().name, engine.summary().backend, engine.summary().driver);
    let small = std::env::var_os("ORGANUM_BENCH_SMALL").is_some_and(|v| v == "1");
    let [traffic, arithmetic] = bench::ceilings(small).map(|call| {
        let seconds = pollster::block_on(measure(&engine, &call, 7)).expect("the kernel is accepted");
        call.cost().flops.max(call.cost().bytes) as f64 / seconds[seconds.len() / 2] / 1e9
    });
    println!("ceilings: {traffic:.2} GB/s copied, {arithmetic:.2} GFLOP/s in registers");
    for elem in [Elem::F32, Elem::F16] {
        for (label, call) in bench::cases(elem, small) {
            let Some((kernel, case)) = label.split_once('/') else { continue };
            let mut group = c.benchmark_group(format!("{kernel}/{}", elem.name()));
            group
                .sample_size(10)
                .warm_up_time(Duration::from_millis(200))
                .measurement_time(Duration::from_secs(1))
                .sampling_mode(SamplingMode::Flat)
                .throughput(Throughput::Elements(call.cost().flops));
            let mut times = Vec::new();
            group.bench_function(BenchmarkId::from_parameter(case), |b| time(&engine, &call, b, &mut times));
            group.finish();
            times.sort_by(f64::total_cmp);
            if let Some(median) = times.get(times.len() / 2) {
                let [gflops, gbytes] = [call.cost().flops, call.cost().bytes].map(|n| n as f64 / median / 1e9);
                println!(
                    "{label:<44} {:<4} {:>9.3} ms {gflops:>9.2} GFLOP/s {:>3.0} % {gbytes:>8.2} GB/s {:>3.0} %",
                    elem.name(),
                    median * 1e3,
                    100.0 * gflops / arithmetic,
                    100.0 * gbytes / traffic
                );
            }
        }
    }
}

fn time(engine: &Engine, call: &Call, b: &mut criterion::Bencher<'_>, times: &mut Vec<f64>) {
    let inputs: Vec<Vec<f32>> = source_sizes(call).into_iter().map(values).collect();
    let mut run = pollster::block_on(KernelRun::new(engine, call, &inputs)).expect("the kernel is accepted");
    // the first run compiles
    pollster::block_on(run.run(1)).expect("the kernel runs");
    b.iter_custom(|iterations| {
        let begin = Instant::now();
        pollster::block_on(run.run(u32::try_from(iterations).unwrap_or(u32::MAX))).expect("the kernel runs");
        let elapsed = begin.elapsed();
        times.push(elapsed.as_secs_f64() / iterations as f64);
        elapsed
    });
}

criterion_group!(benches, kernels);
criterion_main!(benches);
