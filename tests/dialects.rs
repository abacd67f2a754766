//! Checkpoints of other implementations than the one that a network's names are those of: told by their tensors, and equal to what
//! they compute there (`tests/vectors/make_dialects.py`).
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

mod support;

use organum::model::Checkpoint;
use organum::{DeviceCaps, Elem, Extent, Input, LoadErrorKind, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};
use safetensors::SafeTensors;
use support::{engine, relative_error};

/// And what is given of their config.
const CASES: [(&str, &str); 15] = [
    ("dynunet", r#""norm":"instance","activation":"leaky_relu""#),
    ("dynunet_residual", r#""norm":"instance_plain","activation":"leaky_relu""#),
    ("dynunet_2d", r#""activation":"leaky_relu""#),
    ("unet", r#""strides":[[2,2],[1,2]],"norm":"instance","activation":"leaky_relu""#),
    ("unet_residual", r#""strides":[[1,2,2],[1,1,1],[2,2,2]]"#),
    ("unet_one_unit", r#""strides":[[2,2,2]],"norm":"instance_plain""#),
    ("unet_adn", r#""strides":[[2,2]]"#),
    ("unet_bare", r#""strides":[[2,2]],"norm":null,"activation":null"#),
    ("basic_unet", r#""norm":{"group":2},"activation":"leaky_relu","slope":0.1"#),
    ("basic_unet_2d", r#""activation":"relu","slope":0.1"#),
    ("seg_res_net", r#""norm":{"group":2},"activation":"relu""#),
    ("seg_res_net_2d", r#""activation":"leaky_relu","slope":0.2"#),
    ("seg_res_net_ds", r#""norm":"instance","activation":"relu""#),
    ("seg_res_net_ds_2d", r#""activation":"relu""#),
    ("unetr_2d", r#""image":[1,32,48],"heads":2,"norm":"instance""#),
];

struct Case {
    model: Model,
    channels: u32,
    extent: Extent,
    input: Vec<f32>,
    output: Vec<f64>,
}

/// Numbers of -1 to 1, from a hash of the name and the place: those of
/// `tests/vectors/make_swin_unetr.py`.
fn formula(name: &str, n: usize) -> impl Iterator<Item = f64> {
    let hash = name.bytes().fold(2_166_136_261_u32, |h, byte| (h ^ u32::from(byte)).wrapping_mul(16_777_619));
    (0..n as u32).map(move |i| {
        let mut x = hash.wrapping_add(i.wrapping_mul(0x9E37_79B9));
        x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
        x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
        f64::from(x ^ (x >> 16)) / 2_147_483_648.0 - 1.0
    })
}

/// MONAI's row of the table of biases for each query and key of a window.
fn relative_index(window: [i64; 3]) -> Vec<f64> {
    let [d, h, w] = window;
    let places: Vec<[i64; 3]> = (0..d * h * w).map(|i| [i / (h * w), i / w % h, i % w]).collect();
    let row = |q: &[i64; 3], k: &[i64; 3]| ((q[0] - k[0] + d - 1) * (2 * h - 1) + q[1] - k[1] + h - 1) * (2 * w - 1) + q[2] - k[2] + w - 1;
    places.iter().flat_map(|q| places.iter().map(move |k| row(q, k) as f64)).collect()
}

/// A network of the formula's weights, told by its tensors and what is given besides.
fn of_formula(config: &str, window: [i64; 3], given: &str) -> Model {
    let card = format!(r#"{{"architecture":"swin_unetr","config":{config}}}"#);
    let (_, graph) = organum::model::architecture(&card).expect("it is one");
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = graph
        .parameters()
        .into_iter()
        .map(|(name, shape)| {
            let n = shape.iter().product();
            let scaled = |v: f64| match shape[..] {
                [_] if name.ends_with("weight") => 1.0 + 0.3 * v,
                [_] => 0.2 * v,
                _ if name.ends_with("bias_table") => v,
                _ => v * (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt(),
            };
            let values = if name.ends_with("position_index") { relative_index(window) } else { formula(&name, n).map(scaled).collect() };
            (name, shape, values.into_iter().flat_map(|v| (v as f32).to_le_bytes()).collect())
        })
        .collect();
    let view = |shape: &[usize], bytes| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes);
    let views = tensors.iter().map(|(name, shape, bytes)| (name.as_str(), view(shape, bytes).expect("it is one")));
    let bytes = safetensors::serialize(views, None).expect("it can be written");
    let given = format!(r#"{{"config":{{{given}}}}}"#);
    Checkpoint::from_bytes(bytes).and_then(|c| c.into_model(Some(&given))).unwrap_or_else(|e| panic!("{config}: {e}"))
}

#[test]
fn swin_unetr_computes_the_same() {
    let file = format!("{}/tests/vectors/swin_unetr.safetensors", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(file).expect("it is there");
    let expected = SafeTensors::deserialize(&bytes).expect("it is one");
    let small = r#""feature_size":4,"heads":[1,2,2,4]"#;
    for (name, config, window, given, channels, extent) in [
        (
            "first",
            r#""dims":3,"in_channels":1,"classes":2,"depths":[2,1,1,2],"window":[7,7,7],"norm":"instance_plain""#,
            [7; 3],
            r#""norm":"instance_plain","merging":"merging","normalize":true"#,
            1,
            Extent::new(32, 64, 32),
        ),
        (
            "second",
            r#""dims":3,"in_channels":2,"classes":3,"depths":[1,2,1,1],"window":[5,3,4],"norm":"instance","v2":true,
                "merging":"mergingv2","qkv_bias":false,"normalize":false,"mlp_ratio":2.5"#,
            [5, 3, 4],
            r#""norm":"instance","merging":"mergingv2","normalize":false,"window":[5,3,4]"#,
            2,
            Extent::new(32, 32, 64),
        ),
        (
            "planes",
            r#""dims":2,"in_channels":1,"classes":2,"depths":[2,2,1,1],"window":[4,4],"norm":"instance_plain","patch_norm":true"#,
            [1, 4, 4],
            r#""norm":"instance_plain","normalize":true"#,
            1,
            Extent::new(1, 64, 96),
        ),
        (
            "before_1_5",
            r#""dims":3,"in_channels":1,"classes":2,"depths":[1,1,1,1],"window":[3,3,3],"norm":"instance_plain","merging":"merging09""#,
            [3; 3],
            r#""norm":"instance_plain","merging":"merging09","normalize":true"#,
            1,
            Extent::new(32, 32, 64),
        ),
    ] {
        let model = of_formula(&format!("{{{config},{small}}}"), window, given);
        let input: Vec<f32> = formula("input", (extent.voxels() * u64::from(channels)) as usize).map(|v| v as f32).collect();
        let data = expected.tensor(name).expect("it is in the file").data();
        let output: Vec<f64> = data.as_chunks::<4>().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect();
        let run = |session: &mut Session| {
            let mut outputs = session.run_blocking(Input { channels, extent, data: &input }, RunOptions::default()).expect("it runs");
            let OutputData::Map(values) = outputs.swap_remove(0).data else { panic!("asked for logits") };
            relative_error(&values.into_iter().step_by(7).collect::<Vec<_>>(), &output)
        };
        let options = PlanOptions::default().with_output(OutputMode::Logits);
        let plan = |caps: &DeviceCaps, options: &PlanOptions| Plan::new(&model, extent, caps, options).expect("there is a plan");
        let host = run(&mut Session::on_host(&model, plan(&DeviceCaps::host(), &options)).expect("the session is made"));
        println!("{name}: relative error {host:.2e} on the host");
        assert!(host <= 1e-5, "{name} on the host: relative error {host:e}");
        let Some(engine) = engine() else { continue };
        let whole = plan(engine.caps(), &options);
        let smallest = options.clone().with_budget(whole.report().smallest_budget);
        let on = |plan| run(&mut pollster::block_on(Session::new(engine, &model, plan)).expect("the session is made"));
        let (device, small) = (on(whole), on(plan(engine.caps(), &smallest)));
        println!("{name}: relative error {device:.2e}");
        assert!(device <= 1e-5 && small == device, "{name}: relative error {device:e}, {small:e} in the smallest budget");
    }
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
        ("basic_unet", &["norm", "activation", "slope"], "0.1 is MONAI's default"),
        ("basic_unet_2d", &["activation", "slope"], "\"leaky_relu\", MONAI's default"),
        ("seg_res_net", &["norm", "activation"], "MONAI's default is {\"group\": 8}"),
        ("seg_res_net_2d", &["activation"], "\"relu\", MONAI's default"),
        ("seg_res_net_ds", &["norm", "activation"], "{\"group\": n} of n groups, or \"instance\" with parameters"),
        ("seg_res_net_ds_2d", &["activation"], "\"relu\", MONAI's default"),
        ("unetr_2d", &["image", "heads", "norm"], "6 patches of 16x16, as [1, h, w]"),
    ] {
        let file = format!("{}/tests/vectors/dialects/{name}.pth", env!("CARGO_MANIFEST_DIR"));
        let e = Checkpoint::open(&file).and_then(|c| c.infer()).expect_err("it is not told");
        let list: Vec<String> = keys.iter().map(|key| format!("\"{key}\": ..")).collect();
        assert_eq!(e.kind(), LoadErrorKind::Undetermined, "{name}: {e}");
        let told = e.to_string();
        // questions that do not fit a line are cut in the middle; the keys stand at the end
        let answers = told.contains(default) || told.contains(" .. ");
        assert!(told.ends_with(&format!("{{{}}}", list.join(", "))) && answers, "{name}: {told}");
        // answers that no kernel is there for are refused by name, not taken for others
        for (key, value) in [("norm", "layer"), ("activation", "swish")] {
            let told = CASES.iter().find(|(case, _)| *case == name).expect("it is one").1;
            let mut given: serde_json::Value = serde_json::from_str(&format!("{{{told}}}")).expect("it is JSON");
            given[key] = value.into();
            if name == "unetr_2d" && key == "activation" {
                continue; // it has no such key
            }
            let given = serde_json::json!({ "config": given }).to_string();
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
