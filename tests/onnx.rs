//! ONNX files: what onnxruntime makes of them, weights beside them, cards, and what is refused by
//! its name.
//!
//! The files and onnxruntime's outputs are made by `tests/make_onnx.py`; broken ones are written
//! here field by field.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

use std::path::{Path, PathBuf};

use organum::model::{Checkpoint, CheckpointFormat};
use organum::{DeviceCaps, Extent, Input, LoadErrorKind, LoadOptions, Model, Networks, OutputData, OutputMode, Plan};
use organum::{PlanErrorKind, PlanOptions, RunOptions, Session};
use safetensors::SafeTensors;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The files, and the stride that is found of each along D, H, W.
const CASES: [(&str, [u32; 3]); 11] = [
    ("milesial", [1; 3]),
    ("milesial_dynamo", [1; 3]),
    ("milesial_bilinear", [1; 3]),
    ("monai_unet", [4; 3]),
    ("attention_unet", [4; 3]),
    ("seg_res_net", [2; 3]),
    ("plain_conv", [1, 2, 2]),
    ("resenc", [1, 2, 2]),
    ("operations", [2; 3]),
    ("tokens", [1; 3]),
    ("tokens_dynamo", [1; 3]),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/onnx")
}

fn extent_of(shape: &[usize]) -> Extent {
    let n: Vec<u32> = shape[2..].iter().map(|&n| n as u32).collect();
    if let [h, w] = n[..] { Extent::new(1, h, w) } else { Extent::new(n[0], n[1], n[2]) }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn run(model: &Model, extent: Extent, data: &[f32], options: &PlanOptions) -> Outcome<Vec<f32>> {
    let options = options.clone().with_output(OutputMode::Logits);
    let plan = Plan::new(model, extent, &DeviceCaps::host(), &options)?;
    let mut session = Session::on_host(model, plan)?;
    let input = Input { channels: model.card().in_channels(), extent, data };
    match session.run_blocking(input, RunOptions::default())?.swap_remove(0).data {
        OutputData::Map(values) => Ok(values),
        OutputData::Labels(_) => Err("asked for logits".into()),
    }
}

/// The greatest difference over the greatest value.
fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let most = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
    ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / most
}

fn compare(model: &Model, name: &str) -> Outcome {
    let bytes = std::fs::read(folder().join(format!("{name}.safetensors")))?;
    let file = SafeTensors::deserialize(&bytes)?;
    for i in 0..file.len() / 2 {
        let (x, y) = (file.tensor(&format!("x{i}"))?, file.tensor(&format!("y{i}"))?);
        let (extent, input) = (extent_of(x.shape()), floats(x.data()));
        let ours = run(model, extent, &input, &PlanOptions::default())?;
        let off = difference(&ours, &floats(y.data()));
        println!("{name} on {extent}: {off:.1e}");
        assert!(off <= 1e-5, "{name} on {extent}: {off:e}");
        assert_eq!(model.card().classes() as usize, y.shape()[1]);
        // the same bits in slabs of a plane
        let slabs = run(model, extent, &input, &PlanOptions::default().with_slab_depth(1))?;
        assert!(slabs == ours, "{name} on {extent}: other bits in slabs");
    }
    Ok(())
}

#[test]
fn outputs_are_those_of_onnxruntime() -> Outcome {
    for (name, stride) in CASES {
        let model = Model::load(folder().join(format!("{name}.onnx"))).map_err(|e| format!("{name}: {e}"))?;
        let free = model.card().crop().is_none();
        assert_eq!((model.card().architecture.as_str(), model.stride()), ("onnx", if free { stride } else { [1; 3] }), "{name}");
        compare(&model, name)?;
    }
    Ok(())
}

#[test]
fn convolutions_take_norms_activations_and_concatenations_in() -> Outcome {
    let applied = Model::load(folder().join("milesial.onnx"))?.applied();
    assert_eq!((applied.activations_fused, applied.concats_fused), (10, 2));
    let applied = Model::load(folder().join("resenc.onnx"))?.applied();
    assert!(applied.norms_absorbed > 0 && applied.concats_fused == 1, "{applied:?}");
    Ok(())
}

#[test]
fn weights_lie_beside_the_file() -> Outcome {
    let path = folder().join("external/resenc.onnx");
    compare(&Model::load(&path)?, "resenc")?;
    let text = |e: organum::LoadError| (e.kind(), e.to_string());
    // not of bytes in memory, and not out of the folder
    let bytes = std::fs::read(&path)?;
    let (kind, told) = Model::from_bytes(bytes.clone()).err().map(text).ok_or("it loads")?;
    assert!(kind == LoadErrorKind::Format && told.contains("open the file"), "{told}");
    let lost = tempfile::tempdir()?;
    std::fs::write(lost.path().join("net.onnx"), &bytes)?;
    let (_, told) = Model::load(lost.path().join("net.onnx")).err().map(text).ok_or("it loads")?;
    assert!(told.contains("weights.data"), "{told}");
    for outside in ["../weights.d", "/etc/hostname"] {
        let tensor =
            [tag(1, 0, &[2]), tag(2, 0, &[1]), text_field(8, "w"), part(13, &[text_field(1, "location"), text_field(2, outside)].concat())];
        std::fs::write(lost.path().join("out.onnx"), file(&[relu()], &[tensor.concat()], &DIMS))?;
        let (_, told) = Model::load(lost.path().join("out.onnx")).err().map(text).ok_or("it loads")?;
        assert!(told.contains("outside of the model's folder"), "{told}");
    }
    #[cfg(unix)]
    {
        let elsewhere = tempfile::tempdir()?;
        std::fs::copy(folder().join("external/weights.data"), elsewhere.path().join("w"))?;
        std::os::unix::fs::symlink(elsewhere.path().join("w"), lost.path().join("weights.data"))?;
        let (_, told) = Model::load(lost.path().join("net.onnx")).err().map(text).ok_or("it loads")?;
        assert!(told.contains("outside of the model's folder"), "{told}");
        std::fs::remove_file(lost.path().join("weights.data"))?;
    }
    // cut short
    let data = std::fs::read(folder().join("external/weights.data"))?;
    std::fs::write(lost.path().join("weights.data"), &data[..data.len() / 2])?;
    let (kind, told) = Model::load(lost.path().join("net.onnx")).err().map(text).ok_or("it loads")?;
    assert!(kind == LoadErrorKind::Format && told.contains("beyond the end"), "{told}");
    Ok(())
}

#[test]
fn a_card_lies_beside_the_file_or_in_it() -> Outcome {
    let lost = tempfile::tempdir()?;
    let path = lost.path().join("net.onnx");
    std::fs::copy(folder().join("monai_unet.onnx"), &path)?;
    let networks = Networks::open(&path, &LoadOptions::default())?;
    assert!(networks.check_input().is_err_and(|e| e.kind() == LoadErrorKind::Undetermined), "nothing says how scans are prepared");
    assert_eq!(Checkpoint::open(&path)?.format(), CheckpointFormat::Onnx);
    let card = r#"{"input": {"axes": "RAS", "spacing_mm": [1, 1, 1]}, "labels": {"1": "liver"}, "inference": {"mode": "window", "patch": [8, 8, 8]}}"#;
    std::fs::write(lost.path().join("net.json"), card)?;
    let networks = Networks::open(&path, &LoadOptions::default())?;
    networks.check_input()?;
    assert_eq!((networks.first.card().label_name(1), networks.first.card().classes()), ("liver".into(), 3));
    std::fs::write(lost.path().join("net.card.json"), card.replace("liver", "spleen"))?;
    assert_eq!(Model::load(&path)?.card().label_name(1), "spleen", "the longer name goes before");
    std::fs::write(lost.path().join("net.card.json"), "[]")?;
    assert!(Model::load(&path).is_err_and(|e| e.kind() == LoadErrorKind::Card));
    // in the metadata
    let mut bytes = file(&[relu()], &[], &DIMS);
    bytes.extend(part(14, &[text_field(1, "organum"), text_field(2, r#"{"labels": {"1": "heart"}}"#)].concat()));
    assert_eq!(Model::from_bytes(bytes)?.card().label_name(1), "heart");
    // the graph is in no model file
    let told = Model::load(folder().join("monai_unet.onnx"))?.save(lost.path().join("m.safetensors")).err().ok_or("it is saved")?;
    assert!(told.to_string().contains("put a card beside it"), "{told}");
    let told = Checkpoint::open_under(folder().join("monai_unet.onnx"), Some("ema")).err().ok_or("it is there")?;
    assert_eq!(told.kind(), LoadErrorKind::NotFound);
    Ok(())
}

#[cfg(feature = "cli")]
#[test]
fn commands_take_the_file() -> Outcome {
    let organum = |args: &[&str]| std::process::Command::new(env!("CARGO_BIN_EXE_organum")).args(args).output();
    let lost = tempfile::tempdir()?;
    let (net, made) = (folder().join("resenc.onnx"), lost.path().join("m.safetensors"));
    let (net, made) = (net.to_str().ok_or("a name")?, made.to_str().ok_or("a name")?);
    let told = organum(&["convert", net, "--output", made])?;
    assert_eq!(told.status.code(), Some(4), "{told:?}");
    assert!(String::from_utf8_lossy(&told.stderr).contains("put a card beside it"), "{told:?}");
    assert!(!Path::new(made).exists());
    let told = organum(&["inspect", net, "--json"])?;
    let told: serde_json::Value = serde_json::from_slice(&told.stdout)?;
    assert_eq!((&told["checkpoint"]["format"], &told["stride"]), (&"onnx".into(), &serde_json::json!([1, 2, 2])));
    assert_eq!(organum(&["plan", "--model", net, "--extent", "7x8x10"])?.status.code(), Some(0));
    assert_eq!(organum(&["plan", "--model", net, "--extent", "7x8x9"])?.status.code(), Some(3));
    Ok(())
}

#[test]
fn extents_that_the_graph_does_not_take_are_refused() -> Outcome {
    let options = PlanOptions::default();
    let plan = |model: &Model, extent| Plan::new(model, extent, &DeviceCaps::host(), &options).map(|_| ());
    let model = Model::load(folder().join("monai_unet.onnx"))?;
    assert!(plan(&model, Extent::new(8, 8, 6)).is_err_and(|e| e.kind() == PlanErrorKind::Extent));
    assert!(plan(&model, Extent::new(8, 16, 4)).is_ok());
    let fixed = Model::load(folder().join("tokens.onnx"))?;
    assert_eq!(fixed.card().crop(), Some(Extent::new(8, 8, 8)));
    assert!(plan(&fixed, Extent::new(8, 8, 16)).is_err_and(|e| e.kind() == PlanErrorKind::Extent));
    Ok(())
}

// An ONNX file, written field by field.

/// Free axes of three dimensions.
const DIMS: [Option<u64>; 5] = [Some(1), Some(1), None, None, None];

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n > 127 {
        bytes.push((n & 127) as u8 | 128);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn tag(number: u64, kind: u64, value: &[u8]) -> Vec<u8> {
    [varint(number << 3 | kind), value.to_vec()].concat()
}

fn part(number: u64, bytes: &[u8]) -> Vec<u8> {
    tag(number, 2, &[varint(bytes.len() as u64), bytes.to_vec()].concat())
}

fn text_field(number: u64, text: &str) -> Vec<u8> {
    part(number, text.as_bytes())
}

fn int_attribute(name: &str, value: u64) -> Vec<u8> {
    part(5, &[text_field(1, name), tag(3, 0, &varint(value))].concat())
}

fn ints_attribute(name: &str, values: &[u64]) -> Vec<u8> {
    let list = values.iter().flat_map(|&v| tag(8, 0, &varint(v)));
    part(5, &text_field(1, name).into_iter().chain(list).collect::<Vec<_>>())
}

fn text_attribute(name: &str, value: &str) -> Vec<u8> {
    part(5, &[text_field(1, name), text_field(4, value)].concat())
}

fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[Vec<u8>]) -> Vec<u8> {
    let inputs = inputs.iter().flat_map(|name| text_field(1, name));
    let outputs = outputs.iter().flat_map(|name| text_field(2, name));
    let rest = [text_field(3, &format!("the_{op}")), text_field(4, op), attributes.concat()].concat();
    inputs.chain(outputs).chain(rest).collect()
}

fn relu() -> Vec<u8> {
    node("Relu", &["x"], &["y"], &[])
}

/// A tensor of floats.
fn tensor(name: &str, shape: &[u64], values: &[f32]) -> Vec<u8> {
    let dims = shape.iter().flat_map(|&n| tag(1, 0, &varint(n))).collect::<Vec<_>>();
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    [dims, tag(2, 0, &[1]), text_field(8, name), part(9, &data)].concat()
}

/// A tensor of integers.
fn int_tensor(name: &str, values: &[i64]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    [tag(1, 0, &varint(values.len() as u64)), tag(2, 0, &[7]), text_field(8, name), part(9, &data)].concat()
}

/// A graph from `x` of these axes to `y`.
fn file(nodes: &[Vec<u8>], tensors: &[Vec<u8>], dims: &[Option<u64>]) -> Vec<u8> {
    file_of(nodes, tensors, &[("x", dims)], 20)
}

fn file_of(nodes: &[Vec<u8>], tensors: &[Vec<u8>], inputs: &[(&str, &[Option<u64>])], opset: u64) -> Vec<u8> {
    let info = |(name, dims): &(&str, &[Option<u64>])| {
        let dim = |n: &Option<u64>| part(1, &n.map_or_else(|| text_field(2, "n"), |n| tag(1, 0, &varint(n))));
        let shape: Vec<u8> = dims.iter().flat_map(dim).collect();
        let kind = part(1, &[tag(1, 0, &[1]), part(2, &shape)].concat());
        [text_field(1, name), part(2, &kind)].concat()
    };
    let graph = [
        nodes.iter().flat_map(|n| part(1, n)).collect::<Vec<_>>(),
        tensors.iter().flat_map(|t| part(5, t)).collect(),
        inputs.iter().flat_map(|i| part(11, &info(i))).collect(),
        part(12, &text_field(1, "y")),
    ];
    [tag(1, 0, &[9]), part(8, &tag(2, 0, &varint(opset))), part(7, &graph.concat())].concat()
}

/// The refusal of a file: the kind, the node, the message.
fn refusal(bytes: Vec<u8>) -> (LoadErrorKind, String, String) {
    let e = Model::from_bytes(bytes).expect_err("it is refused");
    (e.kind(), e.node().unwrap_or_default().to_owned(), e.to_string())
}

/// A node, the weights beside it, and what the refusal says.
type Refused<'a> = (Vec<u8>, Vec<Vec<u8>>, &'a str);

#[test]
fn what_is_not_read_is_refused_by_the_name_of_the_node() {
    let kernel = || tensor("w", &[1, 1, 3, 3, 3], &[0.5; 27]);
    let pool = |attributes: &[Vec<u8>]| node("MaxPool", &["x"], &["y"], attributes);
    let threes = ints_attribute("kernel_shape", &[3, 3, 3]);
    let minus = u64::MAX;
    let cases: Vec<Refused<'_>> = vec![
        (node("GridSample", &["x", "x"], &["y"], &[]), vec![], "does not read"),
        (node("Relu", &["z"], &["y"], &[]), vec![], "no node before it makes"),
        (node("Relu", &[], &["y"], &[]), vec![], "does not read"),
        (node("Exp", &["x"], &["y"], &[]), vec![], "does not read"),
        (node("Conv", &["x", "x"], &["y"], &[]), vec![], "depends on the scan"),
        (node("Conv", &["x", "w"], &["y"], &[]), vec![tensor("w", &[1, 1, 3, 3], &[0.5; 9])], "has weights of shape"),
        (node("Conv", &["x", "w"], &["y"], &[int_attribute("group", 3)]), vec![kernel()], "channels"),
        (node("Conv", &["x", "w"], &["y"], &[ints_attribute("strides", &[0, 1, 1])]), vec![kernel()], "of zero"),
        (node("Conv", &["x", "w"], &["y"], &[ints_attribute("pads", &[1, 1])]), vec![kernel()], "too few pads"),
        (node("Conv", &["x", "w"], &["y"], &[ints_attribute("pads", &[minus; 6])]), vec![kernel()], "along 3 axes"),
        (node("Conv", &["x", "w"], &["y"], &[text_attribute("auto_pad", "SOME")]), vec![kernel()], "auto_pad"),
        (node("Conv", &["x", "w", "b"], &["y"], &[]), vec![kernel(), tensor("b", &[2], &[0.0; 2])], "a bias of shape"),
        (node("ConvTranspose", &["x", "w"], &["y"], &[ints_attribute("output_shape", &[9; 3])]), vec![kernel()], "output_shape"),
        (node("ConvTranspose", &["x", "w"], &["y"], &[int_attribute("group", 2)]), vec![kernel()], "do not divide"),
        (pool(&[threes.clone(), ints_attribute("dilations", &[2, 2, 2])]), vec![], "dilations"),
        (pool(&[threes.clone(), ints_attribute("pads", &[0, 0, 0, 1, 1, 1])]), vec![], "differ"),
        (pool(&[]), vec![], "kernel_shape"),
        (pool(&[threes.clone(), ints_attribute("strides", &[7, 7, 7]), int_attribute("ceil_mode", 1)]), vec![], "ceil_mode"),
        (node("AveragePool", &["x"], &["y"], &[threes, ints_attribute("pads", &[1; 6])]), vec![], "count_include_pad"),
        (
            node("Resize", &["x", "", "s"], &["y"], &[text_attribute("mode", "cubic")]),
            vec![tensor("s", &[5], &[1.0, 1.0, 2.0, 2.0, 2.0])],
            "cubic",
        ),
        (node("Resize", &["x", "", "s"], &["y"], &[]), vec![tensor("s", &[5], &[1.0, 1.0, 1.37, 1.0, 1.0])], "no whole number"),
        (node("Resize", &["x", "", "s"], &["y"], &[]), vec![tensor("s", &[5], &[1.0, 2.0, 1.0, 1.0, 1.0])], "resamples"),
        (node("Resize", &["x"], &["y"], &[]), vec![], "lacks scales"),
        (
            node("Pad", &["x", "p"], &["y"], &[text_attribute("mode", "reflect")]),
            vec![int_tensor("p", &[0, 0, 1, 1, 1, 0, 0, 1, 1, 1])],
            "reflect",
        ),
        (node("Pad", &["x", "p"], &["y"], &[]), vec![int_tensor("p", &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0])], "pads channels"),
        (node("Pad", &["x", "p"], &["y"], &[]), vec![int_tensor("p", &[1, 1])], "2 pads for 5 axes"),
        (
            node("Pad", &["x", "p", "v"], &["y"], &[]),
            vec![int_tensor("p", &[0, 0, 1, 1, 1, 0, 0, 1, 1, 1]), tensor("v", &[], &[2.0])],
            "only zeros",
        ),
        (node("Gelu", &["x"], &["y"], &[text_attribute("approximate", "tanh")]), vec![], "approximate"),
        (node("Softmax", &["x"], &["y"], &[int_attribute("axis", 2)]), vec![], "not that of channels"),
        (node("Cast", &["x"], &["y"], &[int_attribute("to", 7)]), vec![], "scores of the classes"),
        (node("Div", &["c", "x"], &["y"], &[]), vec![tensor("c", &[], &[1.0])], "divides by a map"),
        (node("Add", &["x", "c"], &["y"], &[]), vec![tensor("c", &[7, 1, 1, 1, 1], &[1.0; 7])], "spreads"),
        (node("MatMul", &["x", "m"], &["y"], &[]), vec![tensor("m", &[2, 2], &[1.0; 4])], "whose last axis"),
        (node("Reshape", &["x", "s"], &["y"], &[]), vec![int_tensor("s", &[7, -1])], "reshapes"),
        (node("Transpose", &["x"], &["y"], &[ints_attribute("perm", &[0, 1, 4, 3, 2])]), vec![], "axes are not"),
        (node("Concat", &["x", "x"], &["y"], &[int_attribute("axis", 2)]), vec![], "another axis"),
        (node("InstanceNormalization", &["x", "x", "x"], &["y"], &[]), vec![], "depends on the scan"),
        (node("BatchNormalization", &["x", "c", "c", "c", "c"], &["y"], &[]), vec![tensor("c", &[2], &[1.0; 2])], "each of 1 channels"),
        (node("Sqrt", &["x"], &["y"], &[]), vec![], "part of norms"),
        (node("Erf", &["x"], &["y"], &[]), vec![], "part of a GELU"),
        (node("Split", &["x"], &["y", "z"], &[int_attribute("axis", 1), ints_attribute("split", &[1, 2])]), vec![], "splits"),
        (node("ConstantOfShape", &["s"], &["y"], &[]), vec![int_tensor("s", &[1 << 40])], "at most"),
        (node("Gather", &["x", "i"], &["y"], &[int_attribute("axis", 2)]), vec![int_tensor("i", &[3, 1])], "no neighbours"),
    ];
    for (node, tensors, why) in cases {
        let shown = String::from_utf8_lossy(&node).into_owned();
        let (kind, at, told) = refusal(file(&[node], &tensors, &DIMS));
        assert!(kind == LoadErrorKind::Unsupported && told.contains(why), "{shown:?}: {kind:?} {told}");
        assert!(at.starts_with("the_") || at == "y", "{shown:?} at {at}: {told}");
        assert!(!told.contains('\n'), "{told}");
    }
}

#[test]
fn graphs_that_are_none_of_a_scan_are_refused() {
    let of = |dims: &[Option<u64>]| refusal(file(&[relu()], &[], dims)).2;
    assert!(of(&[Some(1), None, None, None, None]).contains("how many channels"));
    assert!(of(&[Some(2), Some(1), None, None, None]).contains("a batch of several"));
    assert!(of(&[Some(1), Some(1), None]).contains("not [1, channels"));
    assert!(of(&[Some(1), Some(1), Some(1 << 40), None, None]).contains("no scan has"));
    let two = file_of(&[relu()], &[], &[("x", &DIMS), ("z", &DIMS)], 20);
    assert!(refusal(two).2.contains("several"));
    assert!(refusal(file_of(&[relu()], &[], &[("x", &DIMS)], 5)).2.contains("opset 5"));
    let labels = node("Shape", &["x"], &["y"], &[]);
    assert!(refusal(file(&[labels], &[], &DIMS)).2.contains("no map of scores"));
    let nan = tensor("c", &[1], &[f32::NAN]);
    let bytes = file(&[node("Conv", &["x", "w"], &["y"], &[])], &[tensor("w", &[1, 1, 1, 1, 1], &[f32::NAN]), nan], &DIMS);
    assert_eq!(refusal(bytes).0, LoadErrorKind::NonFinite);
}

#[test]
fn damaged_files_are_refused() -> Outcome {
    let whole = std::fs::read(folder().join("monai_unet.onnx"))?;
    for cut in (2..whole.len()).step_by(whole.len() / 97) {
        assert!(Model::from_bytes(whole[..cut].to_vec()).is_err(), "cut at {cut}");
    }
    // claims of more than there is
    for tensor in [
        [tag(1, 0, &varint(1 << 62)), tag(2, 0, &[1]), text_field(8, "w")].concat(),
        [tag(1, 0, &varint(u64::MAX)), tag(2, 0, &[1]), text_field(8, "w")].concat(),
        [tag(1, 0, &varint(1 << 40)), tag(2, 0, &[1]), text_field(8, "w"), part(9, &[0; 8])].concat(),
        [tag(1, 0, &[2]), tag(2, 0, &[8]), text_field(8, "w")].concat(),
        [tag(1, 0, &[2]), tag(2, 0, &[1]), text_field(8, "w"), part(4, &[0; 4])].concat(),
    ] {
        let (kind, _, told) = refusal(file(&[relu()], &[tensor], &DIMS));
        assert!(kind == LoadErrorKind::Format && told.contains("the tensor w"), "{told}");
    }
    // bytes turned over one after another are read or refused, and nothing else
    for at in (0..whole.len()).step_by(whole.len() / 211) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        drop(Model::from_bytes(bytes));
    }
    Ok(())
}
