//! What PyTorch 2.12.1 wrote is read as it is; what is damaged or hostile is refused. The files are of `tests/vectors/make_checkpoints.py`.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

#[path = "../../../tests/support/torch.rs"]
mod torch;

use torch::{Pickler, archive, zip as pack};

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/vectors/checkpoints/{name}", env!("CARGO_MANIFEST_DIR"))).expect("the fixture is there")
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::from_bytes(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn refusal(bytes: Vec<u8>) -> String {
    Checkpoint::from_bytes(bytes).expect_err("it is none").to_string()
}

/// Names, types, shapes and bytes are those of a safetensors file.
fn same(found: &Weights, reference: &str, prefix: &str) {
    let reference = open(reference).weights;
    assert_eq!(found.list().len(), reference.list().len());
    for (name, _) in reference.list() {
        let own = format!("{prefix}{name}");
        let tensors = [(found, &own), (&reference, &name)].map(|(w, name)| (w.tensor_type(name), w.shape(name), w.data(name)));
        assert_eq!(tensors[0], tensors[1], "{name}");
    }
}

#[test]
fn tensors_of_all_types_and_strides() {
    let found = open("types.pth");
    same(&found.weights, "types.safetensors", "");
    assert_eq!((found.format(), found.wrapper().len(), found.prefix()), (CheckpointFormat::Torch, 0, ""));
}

#[test]
fn state_dicts_are_found_where_scripts_put_them() {
    let found = open("wrapped.pth");
    same(&found.weights, "network.safetensors", "");
    assert_eq!((found.wrapper(), found.prefix()), (&["network_weights".to_owned()][..], "module._orig_mod."));
    let found = open("nested.pth");
    same(&found.weights, "network.safetensors", "backbone.unet.");
    assert_eq!(found.wrapper(), ["state_dict", "net"]);
    let found = open("module.pth");
    same(&found.weights, "network.safetensors", "");
    assert_eq!(found.wrapper(), ["model"]);
    let found = open("script.pt");
    same(&found.weights, "script.safetensors", "");
    assert_eq!(found.format(), CheckpointFormat::TorchScript);
}

#[test]
fn names_and_shapes_tell_the_network() {
    for name in ["wrapped.pth", "nested.pth", "module.pth", "network.safetensors"] {
        let card = open(name).infer().expect("there is no attention");
        assert!(card.contains("u_transformer") && card.contains("[2,3]"), "{card}");
        let model = open(name).into_model(None).unwrap_or_else(|e| panic!("{name}: {e}"));
        same(model.weights(), "network.safetensors", "");
        assert_eq!(model.card().classes(), 2);
    }
    let given = r#"{"config":{"heads":2},"labels":{"1":"one"},"provenance":"a test"}"#;
    let model = open("wrapped.pth").into_model(Some(given)).expect("it is a part of a card");
    assert_eq!((model.card().label_name(1).as_str(), &model.card().config["heads"]), ("one", &json!(2)));
    for (given, word) in [
        ("[]", "object"),
        ("{", "card"),
        (r#"{"config":7}"#, "config"),
        (r#"{"config":{"dims":2}}"#, "tensors do not fit"),
        (r#"{"architecture":"unet2d"}"#, "missing inc.double_conv.0.weight"),
        (r#"{"architecture":"unet3d"}"#, "unet3d"),
        (r#"{"inference":{"overlap":2}}"#, "overlap"),
    ] {
        let e = open("wrapped.pth").into_model(Some(given)).expect_err("it does not fit");
        assert!(e.to_string().contains(word), "{given}: {e}");
    }
    assert!(open("types.pth").infer().expect_err("no network").to_string().contains("--architecture"));
}

#[test]
fn a_card_goes_before_what_is_inferred_and_what_is_given_before_it() {
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("model.safetensors");
    let model = open("wrapped.pth").into_model(Some(r#"{"labels":{"1":"one"}}"#)).expect("it is one");
    model.save(&path).expect("it is written");
    let again = Model::load(&path).expect("it is a model file");
    assert_eq!(again.card(), model.card());
    same(again.weights(), "network.safetensors", "");
    let given = r#"{"labels":{"1":"two"},"config":{"heads":3}}"#;
    let model = Checkpoint::open(&path).and_then(|c| c.into_model(Some(given))).expect("it is one");
    assert_eq!((model.card().label_name(1).as_str(), &model.card().config["heads"]), ("two", &json!(3)));
    let e = Checkpoint::open(&path).and_then(|c| c.into_model(Some(r#"{"architecture":"vnet"}"#))).expect_err("it is none");
    assert_eq!(e.kind(), LoadErrorKind::Tensors);
}

#[test]
fn other_formats_are_told() {
    assert!(refusal(b"\x80\x04N.".to_vec()).contains("torch.save"));
    assert!(refusal(pack(&[("a/b.txt".into(), vec![1])])).contains("no data.pkl"));
    assert!(
        refusal(pack(&[("a/data.pkl".into(), b"\x80\x02}.".to_vec()), ("a/byteorder".into(), b"big".to_vec())])).contains("big-endian")
    );
    assert!(refusal(archive(b"\x80\x02}.", &[])).contains("0 keys"));
    assert!(refusal(archive(b"\x80\x02K\x01.", &[])).contains("no dict"));
    let keys = Pickler(vec![0x80, 2]).op("}(").text("epoch").op("K\x01").text("weights_of_mine").op("}u.").0.clone();
    assert!(refusal(archive(&keys, &[])).contains(r#""epoch", "weights_of_mine""#));
    let object = b"\x80\x02cmy.module\nNet\n)\x81.";
    assert!(refusal(archive(object, &[])).contains("my.module.Net"));
    // a method other than stored
    let mut packed = archive(b"\x80\x02}.", &[]);
    let directory = packed.windows(4).position(|w| w == b"PK\x01\x02").expect("there is one");
    packed[directory + 10] = 8;
    assert!(refusal(packed).contains("compressed"));
}

/// A checkpoint of one tensor of a storage of 24 bytes.
fn one(class: &str, key: &str, offset: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let mut p = Pickler(vec![0x80, 2]);
    p.op("}").text("w").tensor(class, key, offset, shape, strides).op("s.");
    archive(&p.0, &[("0", &[7; 24])])
}

#[test]
fn tensors_do_not_reach_out_of_their_storage() {
    assert!(Checkpoint::from_bytes(one("FloatStorage", "0", 0, &[2, 3], &[3, 1])).is_ok());
    assert!(Checkpoint::from_bytes(one("FloatStorage", "0", 99, &[0, 3], &[3, 1])).is_ok());
    const HUGE: usize = 1 << 60;
    for (class, key, offset, shape, strides, word) in [
        ("FloatStorage", "0", 1, &[2usize, 3][..], &[3usize, 1][..], "beyond its storage"),
        ("DoubleStorage", "0", 0, &[2, 3], &[3, 1], "beyond its storage"),
        ("FloatStorage", "0", 0, &[2, 3], &[4, 1], "beyond its storage"),
        ("FloatStorage", "0", HUGE, &[2, 3], &[3, 1], "beyond its storage"),
        ("FloatStorage", "0", 0, &[HUGE, HUGE], &[0, 0], "beyond its storage"),
        ("FloatStorage", "0", 0, &[2, 3], &[HUGE, HUGE], "beyond its storage"),
        ("FloatStorage", "0", 0, &[1 << 40], &[0], "larger than the file"),
        ("FloatStorage", "0", 0, &[2, 3], &[1], "strides"),
        ("FloatStorage", "1", 0, &[2, 3], &[3, 1], "lacks net/data/1"),
        ("ComplexFloatStorage", "0", 0, &[2, 3], &[3, 1], "ComplexFloatStorage"),
    ] {
        let text = refusal(one(class, key, offset, shape, strides));
        assert!(text.contains(word) && text.contains("tensor w"), "{class} {offset} {shape:?} {strides:?}: {text}");
    }
}

#[test]
fn hostile_pickles_end() {
    let refused = |pickle: &[u8], word: &str| {
        let text = refusal(archive(pickle, &[]));
        assert!(text.contains(word), "{pickle:?}: {text}");
    };
    for pickle in [
        &b""[..],
        b"\x80",
        b"\x80\x02",
        b"\x80\x02X\xFF\xFF\xFF\xFFa",
        b"\x80\x04\x8D\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F",
        b"\x80\x04\x96\0\0\0\0\0\0\0\x80",
        b"\x8B\xFF\xFF\xFF\x7F",
        b"ca",
        b"ca\nb",
    ] {
        refused(pickle, "cut short");
    }
    for (pickle, word) in [
        (&b"\x80\x06N."[..], "protocol"),
        (b"R.", "stack"),
        (b"N(R.", "stack"),
        (b"u.", "no mark"),
        (b"(Nd.", "no value"),
        (b"h\x01.", "remember"),
        (b"j\xFF\xFF\xFF\xFF.", "remember"),
        (b"q\x01.", "stack is empty"),
        (b"I1\n.", "protocols 0 and 1"),
        (b"\xFF.", "no opcode"),
        (b"\x82\x01.", "no opcode"),
        (b"NN\x93.", "no string"),
        (b"(o.", "no class"),
    ] {
        refused(pickle, word);
    }
    // a list in itself, and lists in lists a million deep
    refused(b"\x80\x02]q\0h\0a.", "no dict");
    refused(&[vec![b']'; 1_000_000], vec![b'a'; 999_999], vec![b'.']].concat(), "no dict");
    // more values than are held, while little is on the stack
    refused(&b"N0".repeat(5 << 20), "more than");
    // a dict under its own wrapper's key
    refused(Pickler(vec![0x80, 2]).op("}q\0").text("model").op("h\0s.").0.as_slice(), "no tensors");
    // a module that is its own submodule, twice
    let mut p = Pickler(vec![0x80, 2]);
    p.op(b"cm\nN\n)\x81q\0}").text("_modules").op("}(").text("a").op("h\0").text("b").op("h\0usb.");
    refused(&p.0, "circles");
    // a name of a megabyte for each of many entries
    let mut p = Pickler(vec![0x80, 2]);
    p.op(b"cm\nN\n)\x81q\0").text(&"n".repeat(1 << 20)).op("q\x010}(").op(b"h\x01h\0".repeat(1000)).op("ub.");
    refused(&p.0, "too long");
}

#[test]
fn values_are_python_s() {
    let read =
        Pickle::read(b"\x80\x02(J\xFE\xFF\xFF\xFFM\x01\x02\x8A\x02\xFF\xFE\x8A\x00\x8A\x09123456789G\x3F\xF8\0\0\0\0\0\0\x88NU\x01at.");
    let read = read.expect("it is one");
    let pickle::Value::Tuple(items) = read.value(read.root) else { panic!("a tuple") };
    let values: Vec<_> = items.iter().map(|&id| read.value(id).clone()).collect();
    let numbers = [-2, 513, -257, 0].map(pickle::Value::Int);
    assert_eq!(values[..4], numbers);
    assert_eq!(values[4..8], [pickle::Value::Opaque, pickle::Value::Float(1.5), pickle::Value::Bool(true), pickle::Value::None]);
    assert_eq!(read.text(items[8]), Some("a"));
    // a later key replaces an equal one
    let twice = Pickle::read(b"}(U\x01aK\x01U\x01aK\x02u.").expect("it is one");
    assert_eq!(twice.get(twice.root, "a").map(|id| twice.value(id).clone()), Some(pickle::Value::Int(2)));
}

fn survives(bytes: Vec<u8>) {
    if let Ok(checkpoint) = Checkpoint::from_bytes(bytes) {
        let _ = checkpoint.into_model(None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_never_panic(file in 0usize..5, cut in 0.0f64..1.5, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)) {
        let mut bytes = fixture(["wrapped.pth", "types.pth", "script.pt", "module.pth", "nested.pth"][file]);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a share of a small file")]
        bytes.truncate((bytes.len() as f64 * cut) as usize);
        survives(bytes);
    }

    #[test]
    fn damaged_pickles_never_panic(file in 0usize..3, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let bytes = fixture(["wrapped.pth", "types.pth", "module.pth"][file]);
        let entries = zip::entries(&bytes).expect("it is an archive");
        let (_, entry) = entries.iter().find(|(name, _)| name.ends_with("data.pkl")).expect("there is a pickle");
        let mut damaged = bytes.clone();
        for (at, value) in flips {
            damaged[entry.data.start + at.index(entry.data.len())] = value;
        }
        survives(damaged);
    }

    #[test]
    fn random_opcodes_never_panic(pickle in prop::collection::vec(prop::sample::select(&b"\x80\x02(.01KMNRQbdelostu}])X]acGJTUCBhjqr\x81\x85\x86\x87\x88\x89\x8A\x8B\x8C\x8F\x90\x91\x92\x93\x94\x95\0\x01\x02\n"[..]), 0..200)) {
        survives(archive(&pickle, &[("0", &[0; 8])]));
    }
}

/// The bytes of a network of the fixtures in a checkpoint that begins as PyTorch's before 1.6 does.
#[test]
fn checkpoints_before_pytorch_1_6_are_read() {
    same(&open("legacy.pth").weights, "network.safetensors", "");
    let bytes = fixture("legacy.pth");
    for keep in [14, 15, 20, 60, 200, bytes.len() / 2, bytes.len() - 1] {
        assert!(Checkpoint::from_bytes(bytes[..keep].to_vec()).is_err(), "{keep}");
    }
    let with = |from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|w| w == from).expect("it is there");
        let mut other = bytes.to_vec();
        other[at..at + from.len()].copy_from_slice(to);
        refusal(other)
    };
    // 1001 as two bytes
    assert!(with(b"M\xe9\x03.", b"M\xea\x03.").contains("another version than 1001"));
    // True as an opcode after the key and its memo
    let at = bytes.windows(13).position(|w| w == b"little_endian").expect("it is there");
    let truth = at + bytes[at..].iter().position(|&b| b == 0x88).expect("it is true");
    let mut other = bytes.to_vec();
    other[truth] = 0x89;
    assert!(refusal(other).contains("big-endian"));
}
