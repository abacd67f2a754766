//! The host as a device: the same bits for every budget, slab depth and number of threads; bytes as planned; near the twins.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

mod support;

use organum::{DeviceCaps, Elem, Extent, Input, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};
use support::{Random, nnunet_card, relative_error, shared};

struct Case {
    name: String,
    model: Model,
    extent: Extent,
    input: Vec<f32>,
}

impl Case {
    fn new(name: &str, model: Model, extent: Extent) -> Self {
        let channels = model.card().in_channels() as usize;
        let input = Random::new(7).values(channels * extent.voxels() as usize);
        Self { name: name.into(), model, extent, input }
    }

    fn plan(&self, caps: &DeviceCaps, options: &PlanOptions) -> Plan {
        Plan::new(&self.model, self.extent, caps, &options.clone().with_output(OutputMode::Logits)).expect("there is a plan")
    }

    fn run(&self, plan: Plan) -> Vec<f32> {
        let planned = plan.report().peak_bytes;
        let mut session = Session::on_host(&self.model, plan).expect("the session is made");
        if session.plan().recording().threads > 0 {
            assert_eq!(session.allocated_bytes(), planned, "{}: bytes allocated and planned", self.name);
        }
        let channels = self.model.card().in_channels();
        let input = Input { channels, extent: self.extent, data: &self.input };
        match session.run_blocking(input, RunOptions::default()).expect("the network runs").swap_remove(0).data {
            OutputData::Map(values) => values,
            OutputData::Labels(_) => panic!("asked for logits"),
        }
    }
}

/// A U-Net with norms, the bundled U-Transformer, and the networks of ../shared/golden that attend in windows, to volume tokens
/// and at sampled places.
fn cases() -> Vec<Case> {
    let random = |card: &str| {
        let bytes = organum::model::random_weights(card, 3).expect("it is a card");
        Model::from_bytes(bytes).expect("it loads")
    };
    let bundled = Model::load("weights/hippocampus_u_transformer.safetensors").expect("it loads");
    let mut cases = vec![
        Case::new("unet", random(&nnunet_card(3, 1, 3, &[8, 20, 36])), Extent::new(20, 24, 28)),
        Case::new("u_transformer", bundled, Extent::new(24, 16, 32)),
    ];
    for name in ["nnformer", "fine", "cotr", "unetr", "nnunet_resenc", "transunet"] {
        let Some(folder) = shared(&format!("golden/{name}")) else { continue };
        let text = std::fs::read_to_string(folder.join("case.json")).expect("case.json is there");
        let case: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        let shape: Vec<u32> = case["input"].as_array().expect("a shape").iter().map(|n| n.as_u64().expect("an extent") as u32).collect();
        let extent = if shape.len() == 4 { Extent::new(1, shape[2], shape[3]) } else { Extent::new(shape[2], shape[3], shape[4]) };
        cases.push(Case::new(name, Model::load(folder.join("model.safetensors")).expect("it loads"), extent));
    }
    cases
}

fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("there are threads").install(work)
}

#[test]
fn bits_depend_on_neither_budget_nor_slabs_nor_threads() {
    for case in cases() {
        let whole = case.plan(&DeviceCaps::host(), &PlanOptions::default());
        let smallest = PlanOptions::default().with_budget(whole.report().smallest_budget);
        let expected = case.run(whole);
        let options = [PlanOptions::default().with_slab_depth(1), PlanOptions::default().with_slab_depth(3), smallest];
        for options in options {
            assert!(case.run(case.plan(&DeviceCaps::host(), &options)) == expected, "{}: other bits with {options:?}", case.name);
        }
        for threads in [1, 3] {
            let other = on_threads(threads, || {
                assert_eq!(DeviceCaps::host().threads as usize, threads);
                case.run(case.plan(&DeviceCaps::host(), &PlanOptions::default()))
            });
            assert!(other == expected, "{}: other bits on {threads} threads", case.name);
        }
    }
}

#[test]
fn halves_are_near_the_twins() {
    for case in cases() {
        let twins = case.run(case.plan(&DeviceCaps::reference(), &PlanOptions::default()));
        let twins: Vec<f64> = twins.iter().map(|&v| v.into()).collect();
        for (precision, bound) in [(Elem::F32, 1e-5), (Elem::F16, 2e-2)] {
            let options = PlanOptions::default().with_precision(precision);
            let error = relative_error(&case.run(case.plan(&DeviceCaps::host(), &options)), &twins);
            println!("{} {}: {error:.1e}", case.name, precision.name());
            assert!(error <= bound, "{} {}: {error:e}", case.name, precision.name());
        }
    }
}

#[test]
fn nothing_is_spilled_where_host_and_device_are_one() {
    for case in cases() {
        let smallest = case.plan(&DeviceCaps::host(), &PlanOptions::default()).report().smallest_budget;
        let plan = case.plan(&DeviceCaps::host(), &PlanOptions::default().with_budget(smallest));
        assert!(plan.report().spilled_bytes == 0 && plan.recording().host_slots.is_empty(), "{}", case.name);
    }
}
