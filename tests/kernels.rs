//! Every case of every kernel on the device, against its scalar twin.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

mod support;

use half::f16;
use organum::harness::{KernelOutput, KernelRun, source_sizes, twin};
use organum::kernels::{self, Call};
use organum::{DeviceCaps, Elem};
use support::{Random, engine};

/// Fresh inputs, rounded to the storage type so that device and twin read the same numbers.
fn inputs(call: &Call, seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random::new(seed);
    let elem = call.variant(&DeviceCaps::default()).elem;
    source_sizes(call)
        .iter()
        .map(|&n| {
            let mut values = random.values(n as usize);
            if elem == Elem::F16 {
                values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
            }
            values
        })
        .collect()
}

/// Bound on |device - twin| of one element: rounding of the store, and of the f32 sums behind it.
fn tolerance(call: &Call, magnitude: f32) -> f32 {
    let per_output = call.cost().flops as f32 / call.sizes().last().copied().unwrap_or(1) as f32;
    let sums = f32::EPSILON * 4.0 * per_output.max(1.0).sqrt();
    let store = match call.variant(&DeviceCaps::default()).elem {
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
    let Some(engine) = engine() else { return };
    let mut failures = Vec::new();
    for (seed, (label, call)) in (1u64..).zip(kernels::cases()) {
        if call.variant(engine.caps()).elem == Elem::F16 && !engine.caps().f16 {
            println!("{label}: skipped, the device has no f16");
            continue;
        }
        let inputs = inputs(&call, seed);
        let output = pollster::block_on(async {
            let mut run = KernelRun::new(engine, &call, &inputs).await.expect("the kernel is accepted");
            run.run(1).await.expect("the kernel runs");
            run.read().await.expect("the result comes back")
        });
        match check(&label, &call, &output, &twin(&call, &inputs)) {
            Ok(share) => println!("{label}: {share:.2} of the bound"),
            Err(e) => failures.push(e),
        }
    }
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
