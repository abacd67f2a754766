//! Checkpoints of other implementations than the one that a network's names are those of: told by their tensors, and equal to what
//! they compute there (`tests/vectors/make_dialects.py`).
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

mod support;

use organum::model::Checkpoint;
use organum::{DeviceCaps, Elem, Extent, Input, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};
use safetensors::SafeTensors;
use support::{engine, relative_error};

/// And what is given of their config.
const CASES: [(&str, &str); 6] = [
    ("dynunet", ""),
    ("dynunet_residual", ""),
    ("dynunet_2d", ""),
    ("unet", r#""strides":[[2,2],[1,2]],"activation":"leaky_relu""#),
    ("unet_residual", r#""strides":[[1,2,2],[1,1,1],[2,2,2]]"#),
    ("unet_one_unit", r#""strides":[[2,2,2]]"#),
];

struct Case {
    model: Model,
    channels: u32,
    extent: Extent,
    input: Vec<f32>,
    output: Vec<f64>,
}

fn load(name: &str, given: &str) -> Case {
    let file = |ending: &str| format!("{}/tests/vectors/dialects/{name}.{ending}", env!("CARGO_MANIFEST_DIR"));
    let checkpoint = Checkpoint::open(file("pth")).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(checkpoint.infer().is_ok(), given.is_empty(), "{name}");
    let config = format!(r#"{{"config":{{{given}}}}}"#);
    let model = checkpoint.into_model((!given.is_empty()).then_some(config.as_str())).unwrap_or_else(|e| panic!("{name}: {e}"));
    let bytes = std::fs::read(file("safetensors")).expect("it is there");
    let io = SafeTensors::deserialize(&bytes).expect("it is one");
    let floats = |name: &str| -> Vec<f32> {
        let data = io.tensor(name).expect("it is in the file").data();
        data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    };
    let shape: Vec<u32> = io.tensor("input").expect("it is there").shape().iter().map(|&n| n as u32).collect();
    let extent = if shape.len() == 4 { Extent::new(1, shape[2], shape[3]) } else { Extent::new(shape[2], shape[3], shape[4]) };
    let output = floats("output").into_iter().map(f64::from).collect();
    Case { model, channels: shape[1], extent, input: floats("input"), output }
}

fn error(case: &Case, session: &mut Session) -> f64 {
    let input = Input { channels: case.channels, extent: case.extent, data: &case.input };
    let mut outputs = session.run_blocking(input, RunOptions::default()).expect("the network runs");
    match outputs.swap_remove(0).data {
        OutputData::Map(values) => relative_error(&values, &case.output),
        OutputData::Labels(_) => panic!("asked for logits"),
    }
}

#[test]
fn they_compute_the_same() {
    let options = PlanOptions::default().with_output(OutputMode::Logits);
    for (name, given) in CASES {
        let case = load(name, given);
        let plan = |caps: &DeviceCaps, options: &PlanOptions| Plan::new(&case.model, case.extent, caps, options).expect("there is a plan");
        let mut session = Session::on_host(&case.model, plan(&DeviceCaps::host(), &options)).expect("the session is made");
        let host = error(&case, &mut session);
        assert!(host <= 1e-5, "{name} on the host: relative error {host:e}");
        let Some(engine) = engine() else { continue };
        let whole = plan(engine.caps(), &options);
        let smallest = whole.report().smallest_budget;
        let small = plan(engine.caps(), &options.clone().with_budget(smallest));
        let run = |plan| {
            let mut session = pollster::block_on(Session::new(engine, &case.model, plan)).expect("the session is made");
            error(&case, &mut session)
        };
        let device = run(whole);
        let half = run(plan(engine.caps(), &options.clone().with_precision(Elem::F16)));
        println!("{name}: relative error {device:.2e}, {half:.2e} with f16 storage, on the host {host:.2e}");
        assert!(half <= 5e-3, "{name} with f16 storage: relative error {half:e}");
        assert!(device <= 1e-5, "{name}: relative error {device:e}");
        assert!(run(small) == device, "{name}: other values in {smallest} bytes");
    }
}

#[test]
fn what_is_converted_runs_without_its_dialect() {
    for (name, given) in CASES {
        let case = load(name, given);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        case.model.save(&path).expect("it is written");
        let again = Model::load(&path).expect("it is read");
        assert_eq!(again.card(), case.model.card(), "{name}");
        assert_eq!(again.graph().to_string(), case.model.graph().to_string(), "{name}");
    }
}
