//! A U-Net on a 64x128x128 volume for real: the same bits between 24 MiB and no bound, equal to PyTorch.
//! `benches/fullres.sh` runs the same network on 256x512x512.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

mod support;

use organum::{Extent, Input, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};
use safetensors::SafeTensors;
use support::{engine, relative_error};

const CARD: &str = r#"{"architecture":"u_transformer","config":{"dims":3,"in_channels":1,"classes":14,
    "channels":[8,16,32,64,128],"mhsa":false,"mhca_levels":0}}"#;
const EXTENT: Extent = Extent::new(64, 128, 128);
const CLASSES: usize = 14;
/// Step of the voxels that tests/vectors/make_fullres.py stores.
const STEP: usize = 8;

#[test]
fn a_u_net_gives_the_same_bits_in_24_mebibytes_and_equals_pytorch() {
    let Some(engine) = engine() else { return };
    let model = Model::random(CARD, 1).expect("the card is one");
    let data: Vec<f32> = (0..EXTENT.voxels()).map(|i| ((i.wrapping_mul(0x9E37_79B9) >> 7) % 2001) as f32 / 1000.0 - 1.0).collect();
    let run = |budget: Option<u64>, output: OutputMode| {
        let mut options = PlanOptions::default().with_output(output);
        options.budget = budget;
        let plan = Plan::new(&model, EXTENT, engine.caps(), &options).expect("it fits");
        let (planned, spilled, recomputed) = (plan.report().peak_bytes, plan.report().spilled_bytes, plan.report().recomputed_flops);
        let mut session = pollster::block_on(Session::new(engine, &model, plan)).expect("the device has the bytes");
        assert_eq!(session.allocated_bytes(), planned);
        let started = std::time::Instant::now();
        let outputs = session.run_blocking(Input { channels: 1, extent: EXTENT, data: &data }, RunOptions::default()).expect("it runs");
        println!("{budget:?}: {planned} bytes, {spilled} spilled, {recomputed} FLOPs recomputed, {:?}", started.elapsed());
        outputs.into_iter().next().expect("an output").data
    };
    let tight = Some(24 << 20);
    let OutputData::Labels(labels) = run(tight, OutputMode::Labels) else { panic!("asked for labels") };
    let OutputData::Map(logits) = run(None, OutputMode::Logits) else { panic!("asked for logits") };
    let voxels = EXTENT.voxels() as usize;
    for (at, &label) in labels.iter().enumerate() {
        let best = (0..CLASSES).fold(0, |best, c| if logits[c * voxels + at] > logits[best * voxels + at] { c } else { best });
        assert_eq!(usize::from(label), best, "voxel {at}");
    }

    let stored = include_bytes!("vectors/fullres_64x128x128.safetensors");
    let file = SafeTensors::deserialize(stored).expect("the stored logits are whole");
    let expected: Vec<f64> = file
        .tensor("logits")
        .expect("they are in the file")
        .data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&b| f64::from(f32::from_le_bytes(b)))
        .collect();
    let [d, h, w] = EXTENT.axes().map(|n| n as usize);
    let every = |n: usize| (0..n).step_by(STEP);
    let mut found = Vec::with_capacity(expected.len());
    for c in 0..CLASSES {
        for z in every(d) {
            for y in every(h) {
                found.extend(every(w).map(|x| logits[((c * d + z) * h + y) * w + x]));
            }
        }
    }
    let error = relative_error(&found, &expected);
    println!("relative error {error:e}");
    assert!(error <= 1e-5, "{error:e}");
}
