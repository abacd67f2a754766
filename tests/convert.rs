//! `organum convert` and `inspect` of checkpoints: what they write and say, and how they fail.

#[path = "support/desk.rs"]
mod desk;
#[path = "support/torch.rs"]
mod torch;

use safetensors::SafeTensors;
use serde_json::json;

use desk::*;

fn fixture(name: &str) -> String {
    format!("{}/tests/vectors/checkpoints/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The bundled model as a checkpoint of PyTorch: no card.
fn bundled() -> Vec<u8> {
    let bytes = std::fs::read(MODEL).expect("the bundled model is there");
    let file = SafeTensors::deserialize(&bytes).expect("it is one");
    let class = |dtype| match dtype {
        safetensors::Dtype::F16 => "HalfStorage",
        safetensors::Dtype::F32 => "FloatStorage",
        other => panic!("it holds {other:?}"),
    };
    let tensors: Vec<torch::Tensor<'_>> =
        file.iter().map(|(name, t)| (name.to_owned(), class(t.dtype()), t.shape().to_vec(), t.data())).collect();
    torch::save(&tensors, &[], &["model_state_dict"], "module.")
}

#[test]
fn a_checkpoint_runs_as_the_model_that_it_holds() {
    let desk = Desk::new();
    let input = desk.file("x.npy", &npy(&[1, 1, 8, 12, 6], &wave(576)));
    let infer = |model: &str, output: &str| {
        done(&["infer", "--model", model, "--input", &input, "--output", &desk.out(output), "--device", "cpu"]);
        read_npy(&desk.out(output))
    };
    let direct = infer(&fixture("wrapped.pth"), "direct.npy");
    assert_eq!(direct.0, [1, 2, 8, 12, 6]);
    assert_eq!(infer(&fixture("network.safetensors"), "same.npy"), direct);
    let converted = desk.out("model.safetensors");
    let value = done_json(&["convert", &fixture("nested.pth"), "--output", &converted]);
    assert_eq!((&value["card"]["architecture"], &value["tensors"]), (&json!("u_transformer"), &json!(53)));
    assert_eq!(infer(&converted, "converted.npy"), direct);
    let value = done_json(&["plan", "--model", &fixture("module.pth"), "--extent", "8x12x6"]);
    has_keys(&value, &PLAN_KEYS);
}

#[test]
fn one_of_several_networks_is_asked_for() {
    let desk = Desk::new();
    let output = desk.path("in", "model.safetensors");
    let convert = |source: &str, more: &[&str]| {
        let ended = run(&[&["convert", source, "--output", &output], more].concat());
        let told = text(&ended.stderr);
        assert!(ended.status.success(), "{told}");
        let bytes = std::fs::read(&output).expect("it is written");
        let head = SafeTensors::deserialize(&bytes).expect("it is one").tensor("head.weight").expect("it is there").data().to_vec();
        (f32::from_le_bytes([head[0], head[1], head[2], head[3]]), told)
    };
    let (whole, told) = convert(&fixture("network.safetensors"), &[]);
    assert!(!told.contains("left aside"), "{told}");
    let averaged = fixture("averaged.pth");
    desk.fails(
        4,
        &["networks under model and under ema", "--weights model"],
        &["convert", &averaged, "--output", &desk.out("no.safetensors")],
    );
    assert_eq!(convert(&averaged, &["--weights", "model"]).0, whole);
    assert_eq!(convert(&averaged, &["--weights", "ema"]).0, whole / 2.0);
    // beside each other in one dict, as a student and a teacher
    let bytes = std::fs::read(fixture("network.safetensors")).expect("it is there");
    let file = SafeTensors::deserialize(&bytes).expect("it is one");
    let float = |t: &safetensors::tensor::TensorView<'_>| t.dtype() == safetensors::Dtype::F32;
    let class = |t: &safetensors::tensor::TensorView<'_>| if float(t) { "FloatStorage" } else { "LongStorage" };
    let both = ["student", "teacher"]
        .into_iter()
        .flat_map(|part| file.iter().map(move |(name, t)| (format!("{part}.{name}"), class(&t), t.shape().to_vec(), t.data())));
    let both = desk.file("both.ckpt", &torch::save(&both.collect::<Vec<_>>(), &[], &["state_dict"], ""));
    desk.fails(
        4,
        &["student (u_transformer)", "teacher (u_transformer)", "--weights student"],
        &["convert", &both, "--output", &desk.out("no.safetensors")],
    );
    assert_eq!(convert(&both, &["--weights", "teacher"]).0, whole);
    desk.fails(
        4,
        &["no tensors under ema", "student, teacher"],
        &["convert", &both, "--weights", "ema", "--output", &desk.out("no.safetensors")],
    );
    // a loss and a metric
    let (head, told) = convert(&fixture("lightning.pth"), &[]);
    assert_eq!(head, whole);
    assert!(told.contains("2 tensors beside the network are left aside: loss.class_weight, metric.confusion"), "{told}");
}

#[test]
fn checkpoints_of_before_pytorch_1_6_are_converted() {
    let desk = Desk::new();
    let [old, new] = ["old.safetensors", "new.safetensors"].map(|name| desk.out(name));
    for (source, output) in [("legacy.pth", &old), ("network.safetensors", &new)] {
        assert!(run(&["convert", &fixture(source), "--output", output]).status.success(), "{source}");
    }
    let [old, new] = [old, new].map(|path| std::fs::read(path).expect("it is written"));
    let [old, new] = [&old, &new].map(|bytes| SafeTensors::deserialize(bytes).expect("it is one"));
    for (name, tensor) in new.iter() {
        assert_eq!(old.tensor(name).expect("it is there").data(), tensor.data(), "{name}");
    }
}

#[test]
fn what_shapes_do_not_tell_is_asked_for_and_given() {
    let desk = Desk::new();
    let checkpoint = desk.file("bundled.pth", &bundled());
    let output = desk.out("model.safetensors");
    desk.fails(4, &["heads", "--config", "u_transformer"], &["convert", &checkpoint, "--output", &output]);
    desk.fails(4, &["heads"], &["plan", "--model", &checkpoint, "--extent", "8x8x8"]);
    let table = done(&["inspect", &checkpoint]);
    for word in ["torch", "under model_state_dict", "\"module.\"", "not told", "heads", "enc.0.a.conv.weight"] {
        assert!(table.contains(word), "{word}: {table}");
    }

    let card = done_json(&["inspect", MODEL])["card"].clone();
    let mut rest = card.clone();
    rest.as_object_mut().expect("an object").retain(|key, _| !["architecture", "config"].contains(&key.as_str()));
    let config = desk.file("config.json", json!({"heads": card["config"]["heads"]}).to_string().as_bytes());
    let rest = desk.file("card.json", rest.to_string().as_bytes());
    let value = done_json(&["convert", &checkpoint, "--output", &output, "--config", &config, "--card", &rest]);
    assert_eq!(value["card"], card);
    let [own, bundled] = [&output, MODEL].map(|path| std::fs::read(path).expect("it is there"));
    let [own, bundled] = [&own, &bundled].map(|bytes| SafeTensors::deserialize(bytes).expect("it is one"));
    assert_eq!(own.len(), bundled.len());
    for (name, tensor) in bundled.iter() {
        let found = own.tensor(name).expect("it is there");
        assert!((found.dtype(), found.shape(), found.data()) == (tensor.dtype(), tensor.shape(), tensor.data()), "{name}");
    }
    assert_eq!(done_json(&["inspect", &output])["checkpoint"]["card"], true);
}

#[test]
fn a_model_file_gets_another_card() {
    let desk = Desk::new();
    let card = desk.file("card.json", br#"{"labels": {"1": "first"}, "provenance": "renamed"}"#);
    let output = desk.out("model.safetensors");
    let value = done_json(&["convert", MODEL, "--output", &output, "--card", &card]);
    assert_eq!((&value["card"]["labels"]["1"], &value["card"]["provenance"]), (&json!("first"), &json!("renamed")));
    let own = done_json(&["inspect", MODEL]);
    assert_eq!(value["card"]["input"], own["card"]["input"]);
    // volumes are expected of labels by name; the rest stays
    let expects = &value["card"]["expects"];
    assert_eq!(expects["values"], own["card"]["expects"]["values"]);
    assert!(expects.get("volumes_ml").is_none() && own["card"]["expects"].get("volumes_ml").is_some());
    // onto itself, too
    done_json(&["convert", &output, "--output", &output]);
    assert_eq!(done_json(&["inspect", &output])["card"], value["card"]);
}

#[test]
fn inspect_tells_what_a_file_holds_without_a_network() {
    let value = done_json(&["inspect", &fixture("script.pt")]);
    assert_eq!((&value["checkpoint"]["format"], &value["card"]), (&json!("torchscript"), &json!(null)));
    assert_eq!(value["tensors"]["conv.weight"], json!([2, 1, 3, 3]));
    assert!(value["why"].as_str().expect("a reason").contains("--architecture"));
    let value = done_json(&["inspect", &fixture("wrapped.pth")]);
    let found = json!({"format": "torch", "wrapper": ["network_weights"], "prefix": "module._orig_mod.", "tensors": 53, "card": false});
    assert_eq!((&value["checkpoint"], &value["card"]["architecture"]), (&found, &json!("u_transformer")));
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let desk = Desk::new();
    let good = fixture("wrapped.pth");
    let output = desk.out("model.safetensors");
    let fails = |code, words: &[&str], source: &str, more: &[&str]| {
        desk.fails(code, words, &[&["convert", source, "--output", &output], more].concat());
    };
    fails(4, &["missing.pth"], &desk.path("in", "missing.pth"), &[]);
    fails(4, &["no folder of an nnU-Net model"], &desk.path("in", ""), &[]);
    let bytes = std::fs::read(&good).expect("the fixture is there");
    for keep in [0, 3, 100, bytes.len() / 2, bytes.len() - 1] {
        fails(4, &["cut.pth"], &desk.file("cut.pth", &bytes[..keep]), &[]);
    }
    fails(4, &["--architecture", "conv.bias"], &fixture("script.pt"), &[]);
    fails(2, &["--architecture", "unet9d"], &good, &["--architecture", "unet9d"]);
    fails(4, &["missing inc.double_conv"], &good, &["--architecture", "unet2d"]);
    let file = |name: &str, text: &str| desk.file(name, text.as_bytes());
    fails(4, &["classes"], &good, &["--config", &file("misfit.json", r#"{"classes": 0}"#)]);
    fails(4, &["widths"], &good, &["--config", &file("unknown.json", r#"{"widths": 3}"#)]);
    fails(3, &["--config", "list.json"], &good, &["--config", &file("list.json", "[1]")]);
    fails(3, &["--config", "torn.json"], &good, &["--config", &file("torn.json", "{\"a\"")]);
    fails(3, &["--card", "none.json"], &good, &["--card", &desk.path("in", "none.json")]);
    fails(4, &["overlap"], &good, &["--card", &file("card.json", r#"{"inference": {"overlap": 7}}"#)]);
    desk.fails(2, &[".safetensors"], &["convert", &good, "--output", &desk.out("model.pth")]);
    desk.fails(2, &["folder"], &["convert", &good, "--output", &desk.out("no/model.safetensors")]);
    // what is there stays until the new one is whole
    let kept = desk.file("kept.safetensors", b"kept");
    desk.fails(4, &["conv.bias"], &["convert", &fixture("script.pt"), "--output", &kept]);
    assert_eq!(std::fs::read(&kept).expect("it is there"), b"kept");
}
