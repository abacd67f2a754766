//! Checkpoints of other implementations than the one that a network's names are those of: told by their tensors, and equal to what
//! they compute there (`tests/vectors/make_dialects.py`).
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

mod support;

use organum::model::Checkpoint;
use organum::{DeviceCaps, Elem, Extent, Input, LoadErrorKind, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};
use safetensors::SafeTensors;
use support::{engine, relative_error};

/// And what is given of their config.
const CASES: [(&str, &str); 8] = [
    ("dynunet", r#""norm":"instance","activation":"leaky_relu""#),
    ("dynunet_residual", r#""norm":"instance_plain","activation":"leaky_relu""#),
    ("dynunet_2d", r#""activation":"leaky_relu""#),
    ("unet", r#""strides":[[2,2],[1,2]],"norm":"instance","activation":"leaky_relu""#),
    ("unet_residual", r#""strides":[[1,2,2],[1,1,1],[2,2,2]]"#),
    ("unet_one_unit", r#""strides":[[2,2,2]],"norm":"instance_plain""#),
    ("unet_adn", r#""strides":[[2,2]]"#),
    ("unet_bare", r#""strides":[[2,2]],"norm":null,"activation":null"#),
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

/// What names, shapes and the order of the tensors leave open is asked for, with what MONAI takes unless it is told.
#[test]
fn what_tensors_do_not_tell_is_asked_for() {
    for (name, keys, default) in [
        // with group norm its tensors are called and shaped alike, and with any activation
        ("dynunet", &["norm", "activation"][..], "MONAI's default is \"instance\""),
        // so it is without norm, and with local response norm
        ("dynunet_residual", &["norm", "activation"], "\"instance_plain\", where it is instance norm without parameters, or \"none\""),
        ("dynunet_2d", &["activation"], "\"leaky_relu\", MONAI's default"),
        ("unet", &["strides", "norm", "activation"], "MONAI's default is \"instance_plain\""),
        ("unet_residual", &["strides"], ""),
        ("unet_one_unit", &["strides", "norm"], "MONAI's default is \"instance_plain\""),
        ("unet_adn", &["strides"], ""),
        ("unet_bare", &["strides", "norm", "activation"], "\"relu\", \"leaky_relu\" of slope 0.01 or \"none\""),
    ] {
        let file = format!("{}/tests/vectors/dialects/{name}.pth", env!("CARGO_MANIFEST_DIR"));
        let e = Checkpoint::open(&file).and_then(|c| c.infer()).expect_err("it is not told");
        let list: Vec<String> = keys.iter().map(|key| format!("\"{key}\": ..")).collect();
        assert_eq!(e.kind(), LoadErrorKind::Undetermined, "{name}: {e}");
        assert!(e.to_string().ends_with(&format!("{{{}}}", list.join(", "))) && e.to_string().contains(default), "{name}: {e}");
        // answers that no kernel is there for are refused by name, not taken for others
        for (key, value) in [("norm", "group"), ("activation", "swish")] {
            let given = format!(r#"{{"config":{{"strides":[[2,2,2]],"norm":"instance","activation":"leaky_relu","{key}":"{value}"}}}}"#);
            let refused = Checkpoint::open(&file).and_then(|c| c.into_model(Some(&given))).expect_err("it is not built");
            let told = format!("{refused} {}", std::error::Error::source(&refused).map(ToString::to_string).unwrap_or_default());
            assert!(told.contains(value), "{name}: {told}");
        }
    }
}

/// The order of norm and activation is that of their tensors in the file, where it keeps one.
#[test]
fn what_is_sorted_by_name_has_lost_the_order_of_its_modules() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, order) in [("unet_adn", "ADN"), ("unet_residual", "NDA")] {
        let case = load(name, CASES.iter().find(|(case, _)| *case == name).expect("it is one").1);
        assert_eq!(case.model.card().config.get("adn_ordering").and_then(|o| o.as_str()).unwrap_or("NDA"), order);
        let path = folder.path().join("bare.safetensors");
        case.model.save(&path).expect("it is written");
        let bytes = std::fs::read(&path).expect("it is read");
        let tensors = SafeTensors::deserialize(&bytes).expect("it is one");
        let bare = safetensors::serialize(tensors.tensors(), None).expect("it can be written");
        let e = Checkpoint::from_bytes(bare).and_then(|c| c.infer()).expect_err("it is not told");
        assert!(e.to_string().ends_with("{\"strides\": .., \"adn_ordering\": ..}"), "{e}");
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
