//! NaN and infinite weights, and results that become so: refused with the name of the tensor or the node, unless they are allowed.
#![allow(dead_code, reason = "a part of what tests share is used")]
#![allow(clippy::cast_possible_truncation, reason = "small figures")]

#[path = "support/desk.rs"]
mod desk;
mod support;
#[path = "support/torch.rs"]
mod torch;

use std::collections::BTreeMap;

use half::{bf16, f16};
use organum::graph::{Conv, Graph, NodeId, Op};
use organum::kernels::Activation;
use organum::model::Checkpoint;
use organum::{
    DeviceCaps, Elem, Extent, Input, LoadErrorKind, Model, OutputData, OutputMode, Plan, PlanOptions, RunError, RunErrorKind, RunOptions,
    Session, Windows,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use desk::*;

/// Values of a float as a file stores them.
fn stored(dtype: Dtype, value: f64) -> Vec<u8> {
    match dtype {
        Dtype::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::F32 => (value as f32).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

/// The bundled model with the last value of a tensor set, all tensors stored as one type.
fn broken(name: &str, dtype: Dtype, value: f64) -> Vec<u8> {
    remodel(|tensors, _| {
        for t in tensors.values_mut() {
            let halves = t.bytes.as_chunks::<2>().0;
            t.bytes = halves.iter().flat_map(|&b| stored(dtype, f16::from_le_bytes(b).to_f64())).collect();
            t.dtype = dtype;
        }
        let t = tensors.get_mut(name).unwrap_or_else(|| panic!("there is no {name}"));
        let size = dtype.bitsize() / 8;
        let at = t.bytes.len() - size;
        t.bytes[at..].copy_from_slice(&stored(dtype, value));
    })
}

#[test]
fn weights_that_are_not_finite_are_refused_by_the_name_of_their_tensor() {
    let names = ["head.weight", "enc.0.a.conv.bias", "enc.0.a.norm.running_mean", "enc.1.b.norm.running_var", "enc.0.b.norm.weight"];
    for (name, dtype, value) in [
        (names[0], Dtype::F16, f64::NAN),
        (names[1], Dtype::F16, f64::INFINITY),
        (names[2], Dtype::F32, f64::NAN),
        (names[3], Dtype::F32, f64::NEG_INFINITY),
        (names[4], Dtype::BF16, f64::NAN),
        (names[0], Dtype::F64, f64::NAN),
        // finite, but not as the f32 that it is computed in
        (names[1], Dtype::F64, 1e300),
    ] {
        let bytes = broken(name, dtype, value);
        let e = Model::from_bytes(bytes.clone()).expect_err("it is refused");
        assert_eq!(e.kind(), LoadErrorKind::NonFinite, "{name}: {e}");
        assert!(e.to_string().contains(&format!("the tensor {name} are NaN or infinite")) && e.to_string().starts_with("1 of the "), "{e}");
        let allowed = Checkpoint::from_bytes(bytes).and_then(|c| c.allow_non_finite(true).into_model(None));
        assert!(allowed.is_ok(), "{name} {dtype:?}");
    }
    assert!(Model::from_bytes(broken(names[0], Dtype::F32, 3.0e38)).is_ok(), "that is finite");
}

#[test]
fn what_no_output_depends_on_may_be_anything() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/nnunet/checkpoint_final.safetensors");
    let bytes = std::fs::read(path).expect("the vectors are there");
    let file = SafeTensors::deserialize(&bytes).expect("it is one");
    let load = |name: &str| {
        let nan = f32::NAN.to_le_bytes().repeat(3);
        let views = file.tensors().into_iter().map(|(own, view)| {
            let view = if own == name { TensorView::new(Dtype::F32, vec![3], &nan).expect("it fits") } else { view };
            (own, view)
        });
        Checkpoint::from_bytes(safetensors::serialize(views, None).expect("a file")).and_then(|c| c.into_model(None)).map(|_| ())
    };
    load("decoder.seg_layers.0.bias").expect("that head is of training");
    let e = load("decoder.seg_layers.1.bias").expect_err("that one is read");
    assert!(e.kind() == LoadErrorKind::NonFinite && e.to_string().contains("decoder.seg_layers.1.bias"), "{e}");
    assert!(e.to_string().starts_with("3 of the 3 values"), "{e}");
}

/// Every command and every format; what is allowed is written and read again.
#[test]
fn the_program_refuses_them_unless_they_are_allowed() {
    let desk = Desk::new();
    let (scan, input) = (desk.crop("scan.nii"), desk.file("x.npy", &npy(&[1, 1, 8, 8, 8], &wave(512))));
    let all = remodel(|tensors, _| tensors.values_mut().for_each(|t| t.bytes = f16::NAN.to_le_bytes().repeat(t.bytes.len() / 2)));
    let file = SafeTensors::deserialize(&all).expect("it is one");
    let tensors: Vec<torch::Tensor<'_>> =
        file.iter().map(|(name, t)| (name.to_owned(), "HalfStorage", t.shape().to_vec(), t.data())).collect();
    let config = desk.file("config.json", br#"{"config": {"heads": 4}, "input": {"axes": "SAR"}}"#);
    let safe = desk.file("nan.safetensors", &all);
    let pickled = desk.file("nan.pth", &torch::save(&tensors, &[], &["state_dict"], ""));
    let (labels, converted, array) = (desk.out("labels.nii"), desk.out("model.safetensors"), desk.out("y.npy"));
    let words = ["NaN or infinite", "the tensor ", "--allow-non-finite"];
    let infer = ["infer", "--model", &safe, "--input", &input, "--output", &array, "--device", "cpu"];
    let segment = ["segment", &scan, "--model", &safe, "--output", &labels, "--device", "cpu"];
    let convert = ["convert", &safe, "--output", &converted];
    let torch = ["convert", &pickled, "--output", &converted, "--card", &config];
    let plan = ["plan", "--model", &safe, "--extent", "8x8x8"];
    for args in [&infer[..], &segment, &convert, &torch, &plan, &["inspect", &safe]] {
        desk.fails(4, &words, args);
    }
    let allowed = |args: &[&str]| done(&[args, &["--allow-non-finite"]].concat());
    allowed(&infer);
    assert!(read_npy(&array).1.iter().all(|v| v.is_nan()));
    for args in [&segment[..], &plan, &["inspect", &safe], &torch, &convert] {
        allowed(args);
    }
    let copy = desk.file("copy.safetensors", &std::fs::read(&converted).expect("it was written"));
    for name in desk.written() {
        std::fs::remove_file(desk.out(&name)).expect("it was written");
    }
    desk.fails(4, &words, &["inspect", &copy]);
}

// ---- what becomes so in the network ----

/// A network of layers over one channel, and its weights.
#[derive(Default)]
struct Chain {
    graph: Graph,
    weights: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Chain {
    fn new(channels: u32) -> (Self, NodeId) {
        let mut chain = Self::default();
        let input = chain.graph.add("input", Op::Input { channels }, &[]);
        (chain, input)
    }

    /// A pointwise convolution with these weights for each output.
    fn conv(&mut self, name: &str, x: NodeId, rows: &[&[f32]]) -> NodeId {
        let shape = vec![rows.len(), rows[0].len(), 1, 1, 1];
        let conv = Conv {
            module: name.into(),
            in_channels: shape[1] as u32,
            out_channels: shape[0] as u32,
            bias: false,
            weight_shape: shape.clone(),
            ..Conv::default()
        };
        self.weights.insert(format!("{name}.weight"), (shape, rows.concat()));
        self.graph.add(name, Op::Conv(conv), &[x])
    }

    fn model(self) -> Model {
        let data: BTreeMap<&String, (&Vec<usize>, Vec<u8>)> =
            self.weights.iter().map(|(name, (shape, v))| (name, (shape, v.iter().flat_map(|v| v.to_le_bytes()).collect()))).collect();
        let views = data.iter().map(|(name, (shape, bytes))| {
            (name.as_str(), TensorView::new(Dtype::F32, (*shape).clone(), bytes).expect("the values fill the shape"))
        });
        Model::from_graph(self.graph, safetensors::serialize(views, None).expect("a file")).expect("it is one")
    }
}

/// Runs a model on a volume of one value, on the host and on the device, for labels and for logits.
fn everywhere(model: &Model, value: f32, elem: Elem, allowed: bool, mut see: impl FnMut(&str, Result<OutputData, RunError>)) {
    let extent = Extent::new(2, 4, 6);
    let data = vec![value; 48];
    for mode in [OutputMode::Labels, OutputMode::Logits] {
        let options = PlanOptions::default().with_output(mode).with_precision(elem);
        let mut run = |what: &str, mut session: Session| {
            let how = if allowed { RunOptions::default().with_non_finite() } else { RunOptions::default() };
            let input = Input { channels: 1, extent, data: &data };
            see(&format!("{what}, {mode:?}"), session.run_blocking(input, how).map(|mut outputs| outputs.swap_remove(0).data));
        };
        let plan = |caps: &DeviceCaps| Plan::new(model, extent, caps, &options).expect("there is a plan");
        run("host", Session::on_host(model, plan(&DeviceCaps::host())).expect("a session"));
        for (what, engine) in [("device", support::engine()), ("device without f16", support::engine_without_f16())] {
            let Some(engine) = engine else { continue };
            run(what, pollster::block_on(Session::new(engine, model, plan(engine.caps()))).expect("a session"));
        }
    }
}

fn refused(name: &str, model: &Model, value: f32, elem: Elem) {
    everywhere(model, value, elem, false, |place, result| {
        let e = result.map(|_| ()).expect_err(&format!("{name} on the {place} is not finite"));
        assert_eq!(e.kind(), RunErrorKind::NonFinite, "{name} on the {place}: {e}");
        assert!(e.node().is_some_and(|node| node.starts_with("first")), "{name} on the {place}: {e}");
        assert!(e.to_string().contains("of a finite input"), "{name} on the {place}: {e}");
    });
    everywhere(model, value, elem, true, |place, result| match result.unwrap_or_else(|e| panic!("{name} on the {place}: {e}")) {
        OutputData::Labels(labels) => assert!(labels.iter().all(|&l| l < 2), "{name} on the {place}: {labels:?}"),
        OutputData::Map(values) => assert!(values.iter().any(|v| !v.is_finite()), "{name} on the {place}"),
    });
}

fn taken(name: &str, model: &Model, value: f32, elem: Elem, label: u16) {
    everywhere(model, value, elem, false, |place, result| match result.unwrap_or_else(|e| panic!("{name} on the {place}: {e}")) {
        OutputData::Labels(labels) => assert_eq!(labels, vec![label; 48], "{name} on the {place}"),
        OutputData::Map(values) => assert!(values.iter().all(|v| v.is_finite()), "{name} on the {place}"),
    });
}

/// What is not finite anywhere stays so up to the output: no activation, pooling or norm makes a number of it.
#[test]
fn values_that_become_infinite_or_nan_are_an_error() {
    let big = 3.0e38;
    let head: &[&[f32]] = &[&[1.0], &[2.0]];
    let plain = |value: f32| {
        let (mut c, x) = Chain::new(1);
        let y = c.conv("first", x, &[&[value]]);
        c.conv("head", y, head);
        c.model()
    };
    refused("infinity", &plain(big), 10.0, Elem::F32);
    refused("minus infinity", &plain(-big), 10.0, Elem::F32);
    taken("what f32 holds", &plain(3.0e35), 10.0, Elem::F32, 1);
    // what f16 does not hold where f32 does
    let (mut c, x) = Chain::new(1);
    let y = c.conv("first", x, &[&[300.0]]);
    let y = c.graph.add("first.act", Op::Activation(Activation::LeakyRelu { slope: 0.5 }), &[y]);
    c.conv("head", y, &[&[1.0e-3], &[2.0e-3]]);
    let half = c.model();
    taken("90,000 in f32", &half, 300.0, Elem::F32, 1);
    refused("90,000 in f16", &half, 300.0, Elem::F16);
    taken("90 in f16", &half, 0.3, Elem::F16, 1);
    // infinity less infinity is NaN, whatever follows
    type Then = (&'static str, fn(&mut Graph, NodeId) -> NodeId);
    let then: [Then; 7] = [
        ("nothing", |_, x| x),
        ("relu", |g, x| g.add("act", Op::Activation(Activation::Relu), &[x])),
        ("leaky relu", |g, x| g.add("act", Op::Activation(Activation::LeakyRelu { slope: 0.01 }), &[x])),
        ("elu", |g, x| g.add("act", Op::Activation(Activation::Elu { alpha: 1.0 }), &[x])),
        ("gelu", |g, x| g.add("act", Op::Activation(Activation::Gelu), &[x])),
        ("sigmoid", |g, x| g.add("act", Op::Activation(Activation::Sigmoid), &[x])),
        ("max pooling", |g, x| {
            let y = g.add("pool", Op::max_pool([1, 2, 2]), &[x]);
            g.add("up", Op::upsample([1, 2, 2]), &[y])
        }),
    ];
    for (name, then) in then {
        let (mut c, x) = Chain::new(1);
        let y = c.conv("first", x, &[&[big], &[-big]]);
        let y = c.conv("second", y, &[&[1.0, 1.0]]);
        let y = then(&mut c.graph, y);
        c.conv("head", y, head);
        refused(name, &c.model(), 10.0, Elem::F32);
    }
}

/// nnU-Net v2 sums windows in 16-bit floats, which hold no more than 65504, and refuses what is infinite then.
#[test]
fn sums_of_windows_are_finite_or_refused() {
    let card = support::nnunet_card(3, 1, 2, &[4, 6]).replacen('{', r#"{"inference":{"mode":"window","patch":[4,8,8]},"#, 1);
    let bytes = organum::model::random_weights(&card, 1).expect("it is one");
    let file = SafeTensors::deserialize(&bytes).expect("it is one");
    for (bias, fits) in [(100.0f32, true), (1.0e5, false)] {
        let data = [bias, -bias].map(f32::to_le_bytes).concat();
        let views = file.tensors().into_iter().map(|(name, view)| {
            let head = name == "decoder.seg_layers.0.bias";
            (name, if head { TensorView::new(Dtype::F32, vec![2], &data).expect("it fits") } else { view })
        });
        let said = std::collections::HashMap::from([("organum".to_owned(), card.clone())]);
        let model = Model::from_bytes(safetensors::serialize(views, Some(said)).expect("a file")).expect("it is one");
        let extent = Extent::new(4, 8, 12);
        let windows = Windows::new(model.card(), extent).expect("there are windows");
        let plan = Plan::new(&model, windows.tile(), &DeviceCaps::host(), &PlanOptions::default().with_output(OutputMode::Logits));
        let mut session = Session::on_host(&model, plan.expect("there is a plan")).expect("a session");
        let data = wave(extent.voxels() as usize);
        let input = Input { channels: 1, extent, data: &data };
        let result = pollster::block_on(windows.logits(&mut session, &model, input, RunOptions::default()));
        match result {
            Ok(logits) => assert!(fits && logits.iter().all(|v| v.is_finite())),
            Err(e) => assert!(!fits && e.kind() == RunErrorKind::NonFinite && e.to_string().contains("65504"), "{e}"),
        }
        let how = RunOptions::default().with_non_finite();
        assert!(pollster::block_on(windows.logits(&mut session, &model, input, how)).is_ok());
    }
}
