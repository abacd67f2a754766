//! Resampling, pooling, shifts, patches and picked tokens, run on the host and on a device, and compared with PyTorch.
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::print_stdout, reason = "tests")]

use serde_json::Value;

use super::*;
use crate::graph::{Conv, PatchExpand, PatchMerge, Resize, Size};
use crate::kernels::{Interpolation, Shift};
use crate::{DeviceCaps, Elem, Engine, Extent, Input, OutputData, OutputMode, Plan, PlanErrorKind, PlanOptions, RunOptions, Session};

fn three(value: &Value) -> [u32; 3] {
    [0, 1, 2].map(|axis| value[axis].as_u64().expect("three numbers") as u32)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// The operation of a case of `tests/vectors/make_resample.py`.
fn op(given: &Value) -> Op {
    match given["op"].as_str().expect("a name") {
        "resize" => Op::Resize(Resize {
            size: if given["times"].is_array() { Size::Times(three(&given["times"])) } else { Size::Extent(three(&given["size"]).into()) },
            mode: match given["mode"].as_str().expect("a name") {
                "nearest" => Interpolation::Nearest,
                "aligned" => Interpolation::Aligned,
                "half_pixel" => Interpolation::HalfPixel,
                other => panic!("{other}"),
            },
        }),
        "pool" => Op::MaxPool { kernel: three(&given["kernel"]), stride: three(&given["stride"]), padding: three(&given["padding"]) },
        "average" => Op::AvgPool { kernel: three(&given["kernel"]) },
        "shift" => Op::Shift([0, 1, 2].map(|axis| {
            let along = &given["axes"][axis];
            let number = |i: usize| along[i].as_i64().expect("a number") as i32;
            match along[0].as_str().expect("a name") {
                "roll" => Shift::Roll(-number(1)),
                "pad" => Shift::Pad { before: number(1), after: number(2) },
                "flip" => Shift::Flip,
                other => panic!("{other}"),
            }
        })),
        "merge" => Op::PatchMerge(PatchMerge { patch: three(&given["patch"]), order: list(&given["order"]).iter().map(three).collect() }),
        "expand" => {
            let crop = given["crop"].is_array().then(|| three(&given["crop"]).into());
            Op::PatchExpand(PatchExpand { patch: three(&given["patch"]), crop })
        }
        "gather" => Op::Gather(list(&given["tokens"]).iter().map(|token| token.as_u64().expect("a number") as u32).collect()),
        other => panic!("{other}"),
    }
}

/// A graph of one operation, with weights nobody needs.
fn model(op: Op, channels: u32) -> Model {
    let mut graph = Graph::default();
    let input = graph.add("input", Op::Input { channels }, &[]);
    graph.add("moved", op, &[input]);
    let bytes = weights::random(r#"{"architecture": "none", "config": {}}"#, &[], 1).expect("it is a file");
    let weights = Weights::from_bytes(bytes.into()).expect("it is one");
    let card = Card::parse(r#"{"architecture": "none", "config": {}}"#).expect("it is a card");
    let (raw, (graph, applied)) = (graph.clone(), pass::optimise(&graph, &[]));
    Model { card, raw, graph, applied, weights: weights.into(), tolerance: Tolerance::default(), onnx: None }
}

#[test]
fn moved_voxels_equal_torch() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/resample.safetensors");
    let bytes = std::fs::read(path).expect("the vectors are there");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("they are safetensors");
    let cases = header.metadata().as_ref().and_then(|m| m.get("cases")).expect("they have attributes");
    let cases: Value = serde_json::from_str(cases).expect("the attributes are JSON");
    let vectors = Weights::from_bytes(bytes.into()).expect("they are safetensors");
    let shapes: std::collections::BTreeMap<_, _> = vectors.list().into_iter().collect();
    let engine = pollster::block_on(Engine::request(None)).ok();
    for (name, given) in cases.as_object().expect("cases by name") {
        let dims = |tensor: &str| shapes[&format!("{name}.{tensor}")].iter().map(|&n| n as u32).collect::<Vec<_>>();
        let (x, y) = (dims("input"), dims("output"));
        let extent = Extent::new(x[1], x[2], x[3]);
        let floats = |tensor: &str| vectors.floats(&format!("{name}.{tensor}")).expect("it is there");
        let (data, expected): (Vec<f32>, _) = (floats("input").iter().map(|&v| v as f32).collect(), floats("output"));
        // what is only copied is the same to the last bit
        let computed = given["op"] == "average" || (given["op"] == "resize" && given["mode"] != "nearest");
        let bound = if computed { 1e-6 } else { 0.0 };
        let model = model(op(given), x[0]);
        for (depth, device, elem) in [
            (1, None, Elem::F32),
            (2, None, Elem::F32),
            (16, None, Elem::F32),
            (16, None, Elem::F16),
            (1, engine.as_ref(), Elem::F32),
            (2, engine.as_ref(), Elem::F32),
            (16, engine.as_ref(), Elem::F32),
            (2, engine.as_ref(), Elem::F16),
        ] {
            let options = PlanOptions::default().with_output(OutputMode::Logits).with_slab_depth(depth).with_precision(elem);
            let caps = device.map_or_else(DeviceCaps::host, |engine| engine.caps().clone());
            let plan = Plan::of_graph(&model.graph, extent, &caps, &options).expect("there is a plan");
            let mut session = match device {
                None => Session::on_host(&model, plan),
                Some(engine) => pollster::block_on(Session::new(engine, &model, plan)),
            }
            .expect("there are no weights");
            let outputs = session.run_blocking(Input { channels: x[0], extent, data: &data }, RunOptions::default()).expect("it runs");
            assert_eq!(outputs[0].map.extent, Extent::new(y[1], y[2], y[3]), "{name}");
            assert_eq!(outputs[0].map.channels, y[0], "{name}");
            let OutputData::Map(values) = &outputs[0].data else { panic!("asked for a map") };
            let worst = values.iter().zip(&expected).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
            let on = if device.is_some() { "device" } else { "host" };
            println!("{name}, {depth} planes, {} on the {on}: {worst:.1e}", elem.name());
            let bound = if elem == Elem::F16 { 4e-3 } else { bound };
            assert!(worst <= bound, "{name}: differs by {worst:e} on the {on}, {}", elem.name());
        }
    }
}

/// The resampled map stored or read through: the same bits, whatever the slabs.
#[test]
fn convolutions_through_resampling_have_the_bits_of_the_stored() {
    let engine = pollster::block_on(Engine::request(None)).ok();
    let extent = Extent::new(5, 6, 7);
    let data: Vec<f32> = (0..extent.voxels()).map(|i| (i as f32 * 0.7).sin()).collect();
    let conv = |module: &str, in_channels: u32, out_channels: u32| {
        let weight_shape = [out_channels, in_channels, 3, 3, 3].map(|n| n as usize).to_vec();
        let kernel = [3; 3];
        Op::Conv(Conv { module: module.into(), in_channels, out_channels, kernel, padding: [1; 3], weight_shape, ..Conv::default() })
    };
    for mode in [Interpolation::Nearest, Interpolation::Aligned, Interpolation::HalfPixel] {
        for size in [Size::Times([2, 1, 3]), Size::Extent(Extent::new(8, 4, 7)), Size::Extent(Extent::new(3, 9, 2))] {
            let mut graph = Graph::default();
            let x = graph.add("input", Op::Input { channels: 1 }, &[]);
            let x = graph.add("first", conv("first", 1, 5), &[x]);
            let x = graph.add("resized", Op::Resize(Resize { size, mode }), &[x]);
            graph.add("last", conv("last", 5, 3), &[x]);
            let through = pass::read_through(&graph, &[]);
            assert_eq!(through.find("resized"), None);
            let bytes = weights::random(r#"{"architecture": "none", "config": {}}"#, &graph.parameters(), 4).expect("it is a file");
            let run = |graph: &Graph, depth: u32, elem: Elem, engine: Option<&Engine>| {
                let weights = Weights::from_bytes(bytes.clone().into()).expect("it is one");
                let card = Card::parse(r#"{"architecture": "none", "config": {}}"#).expect("it is a card");
                let model = Model {
                    card,
                    raw: graph.clone(),
                    graph: graph.clone(),
                    applied: Applied::default(),
                    weights: weights.into(),
                    tolerance: Tolerance::default(),
                    onnx: None,
                };
                let options = PlanOptions::default().with_output(OutputMode::Logits).with_slab_depth(depth).with_precision(elem);
                let caps = engine.map_or_else(DeviceCaps::host, |engine| engine.caps().clone());
                let plan = Plan::of_graph(graph, extent, &caps, &options).expect("there is a plan");
                let mut session = match engine {
                    None => Session::on_host(&model, plan),
                    Some(engine) => pollster::block_on(Session::new(engine, &model, plan)),
                }
                .expect("the weights are those of the plan");
                let input = Input { channels: 1, extent, data: &data };
                match session.run_blocking(input, RunOptions::default()).expect("it runs").remove(0).data {
                    OutputData::Map(values) => values.into_iter().map(f32::to_bits).collect::<Vec<_>>(),
                    OutputData::Labels(_) => panic!("asked for a map"),
                }
            };
            for engine in [None, engine.as_ref()] {
                for elem in [Elem::F32, Elem::F16] {
                    let expected = run(&graph, 16, elem, engine);
                    for depth in [1, 3, 16] {
                        assert_eq!(run(&graph, depth, elem, engine), expected, "{mode:?} {size:?} stored in {depth} planes");
                        assert_eq!(run(&through, depth, elem, engine), expected, "{mode:?} {size:?} through, {depth} planes");
                    }
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_moved_is_refused_by_name() {
    let times = |factor| Resize { size: Size::Times(factor), mode: Interpolation::HalfPixel };
    let pad = |before, after| Op::Shift([Shift::NONE, Shift::Pad { before, after }, Shift::NONE]);
    let pool = |kernel, stride, padding| Op::MaxPool { kernel, stride, padding };
    let expand = |patch, crop| Op::PatchExpand(PatchExpand { patch, crop });
    let bad = [
        ("resampling to nothing", Op::Resize(Resize { size: Size::Extent(Extent::new(4, 0, 4)), mode: Interpolation::Nearest })),
        ("resampling by nothing", Op::Resize(times([1, 0, 1]))),
        ("resampling beyond counting", Op::Resize(times([u32::MAX, 1, 1]))),
        ("coordinates beyond counting", Op::Resize(times([1 << 28, 1, 1]))),
        ("means of nothing", Op::AvgPool { kernel: [1, 0, 1] }),
        ("means beyond the map", Op::AvgPool { kernel: [1, 6, 1] }),
        ("windows of nothing", pool([0; 3], [1; 3], [0; 3])),
        ("windows every nothing", pool([2; 3], [0; 3], [0; 3])),
        ("windows of padding", pool([2; 3], [2; 3], [2; 3])),
        ("windows beyond the map", pool([9, 1, 1], [1; 3], [0; 3])),
        ("padding beyond counting", pool([u32::MAX; 3], [1; 3], [i32::MAX.cast_unsigned(); 3])),
        ("cropping all", pad(-3, -2)),
        ("cropping beyond counting", pad(i32::MIN, i32::MIN)),
        ("patches of nothing", Op::PatchMerge(PatchMerge { patch: [1, 0, 1], order: vec![[0; 3]] })),
        ("patches without voxels", Op::PatchMerge(PatchMerge { patch: [1; 3], order: Vec::new() })),
        ("voxels beyond their patch", Op::PatchMerge(PatchMerge { patch: [1, 2, 2], order: vec![[0, 2, 0]] })),
        ("too many voxels of a patch", Op::PatchMerge(PatchMerge { patch: [1; 3], order: vec![[0; 3]; 9] })),
        ("channels that are no patches", expand([1, 2, 2], None)),
        ("patches of no voxels", expand([0, 1, 1], None)),
        ("patches beyond counting", expand([u32::MAX; 3], None)),
        ("cropping to more than there is", expand([1, 2, 3], Some(Extent::new(4, 11, 18)))),
        ("a token that is not there", Op::Gather([0, 120].into())),
        ("no tokens", Op::Gather([].into())),
    ];
    for (what, op) in bad {
        let model = model(op, 6);
        let e = Plan::of_graph(&model.graph, Extent::new(4, 5, 6), &DeviceCaps::host(), &PlanOptions::default());
        let e = e.err().unwrap_or_else(|| panic!("{what}: planned"));
        println!("{what}: {e}");
        assert_eq!((e.kind(), e.node()), (PlanErrorKind::Extent, Some("moved")), "{what}");
    }
}
