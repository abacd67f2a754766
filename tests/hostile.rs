//! Hostile input as an attacker makes it, row by row: what the program says of it, and that it takes
//! little memory and time to say so.
#![cfg(target_os = "linux")]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout, reason = "small files; messages belong to a test's output")]

#[path = "support/desk.rs"]
mod desk;
#[path = "support/torch.rs"]
mod torch;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use safetensors::Dtype;
use serde_json::{Value, json};

use desk::*;
use torch::{Pickler, archive};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");
/// The most characters of a message.
const LONGEST: usize = 400;
/// Bounds of a run: its own memory in KiB, and seconds of the processor.
const MEMORY: u64 = 1 << 20;
const SECONDS: u64 = 20;

/// Runs the program within the bounds; it must end with `code`, and unless that is 0, say all of
/// `words` on one line and write nothing.
fn row(desk: &Desk, name: &str, code: i32, words: &[&str], args: &[&str]) {
    let bounds = format!("ulimit -d {MEMORY} && ulimit -t {SECONDS} && exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &bounds, env!("CARGO_BIN_EXE_organum")]).args(args).env("ORGANUM_NO_PIPELINE_CACHE", "1");
    let output = command.stdin(std::process::Stdio::null()).output().expect("the program starts");
    let err = text(&output.stderr);
    let shown: String = err.chars().take(3 * LONGEST).collect();
    println!("{name}: {}", shown.trim_end());
    assert!(!err.contains("panicked"), "{name}: {shown}");
    assert_eq!(output.status.code(), Some(code), "{name}: {shown}");
    if code == 0 {
        return;
    }
    assert_eq!(err.lines().count(), 1, "{name}: {shown}");
    assert!(err.trim_end().chars().count() <= LONGEST, "{name}: {} characters: {shown}", err.chars().count());
    assert!(err.starts_with("organum: ") && !err.contains('\u{1b}'), "{name}: {shown}");
    for word in words {
        assert!(err.contains(word), "{name}: {word:?} is not in {shown}");
    }
    assert!(output.stdout.is_empty(), "{name} prints data");
    assert_eq!(desk.written(), [""; 0], "{name} leaves files");
}

fn segment(desk: &Desk, name: &str, code: i32, words: &[&str], scan: &str, model: &str, more: &[&str]) {
    let output = desk.out("labels.nii.gz");
    let args = ["segment", scan, "--model", model, "--output", &output, "--device", "cpu"];
    row(desk, name, code, words, &[&args, more].concat());
    std::fs::remove_file(output).ok();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder is made");
    for entry in std::fs::read_dir(from).expect("the vectors are there") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)
        } else {
            std::fs::copy(entry.path(), target).expect("it is copied");
        }
    }
}

/// A scan of 12x14x16 voxels of 1 mm, of values above 0.
fn scan(dims: [u16; 3], datatype: i16, voxels: &[u8]) -> Vec<u8> {
    let mut header = vec![0u8; 352];
    header[..4].copy_from_slice(&348i32.to_le_bytes());
    header[40..42].copy_from_slice(&3i16.to_le_bytes());
    for (axis, n) in dims.iter().chain(&[1; 4]).enumerate() {
        header[42 + 2 * axis..][..2].copy_from_slice(&n.to_le_bytes());
    }
    let bits: i16 = match datatype {
        2 => 8,
        16 => 32,
        _ => 64,
    };
    header[70..72].copy_from_slice(&datatype.to_le_bytes());
    header[72..74].copy_from_slice(&bits.to_le_bytes());
    for axis in 0..8 {
        header[76 + 4 * axis..][..4].copy_from_slice(&1f32.to_le_bytes());
    }
    header[108..112].copy_from_slice(&352f32.to_le_bytes());
    header[112..116].copy_from_slice(&1f32.to_le_bytes());
    header[123] = 2;
    header[254..256].copy_from_slice(&1i16.to_le_bytes());
    for axis in 0..3 {
        header[280 + 20 * axis..][..4].copy_from_slice(&1f32.to_le_bytes());
    }
    header[344..348].copy_from_slice(b"n+1\0");
    header.extend_from_slice(voxels);
    header
}

fn good_scan() -> Vec<u8> {
    let values: Vec<u8> = wave(12 * 14 * 16).iter().flat_map(|v| (100.0 + 50.0 * v).to_le_bytes()).collect();
    scan([16, 14, 12], 16, &values)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("it is compressed")
}

/// A MONAI bundle with a changed config.
fn bundle(desk: &Desk, name: &str, change: impl FnOnce(&mut Value)) -> String {
    let folder = desk.at(name);
    copy(&Path::new(VECTORS).join("monai/unet/bundle"), Path::new(&folder));
    let file = Path::new(&folder).join("configs/inference.json");
    let mut config = serde_json::from_slice(&std::fs::read(&file).expect("a config")).expect("JSON");
    change(&mut config);
    std::fs::write(&file, config.to_string()).expect("it is written");
    folder
}

/// The same with a transform before the others that make the network's input.
fn with_transform(desk: &Desk, name: &str, transform: Value) -> String {
    bundle(desk, name, |config| {
        config["preprocessing"]["transforms"].as_array_mut().expect("a list").push(transform);
    })
}

#[test]
fn geometry_of_bundles_is_checked_before_it_is_made() {
    let desk = Desk::new();
    let input = desk.file("scan.nii", &good_scan());
    let crop = |extra: Value| {
        let mut call = json!({"_target_": "CropForegroundd", "keys": "image", "source_key": "image"});
        call.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        call
    };
    let calls = [
        ("a margin of 2^31", crop(json!({"margin": 1u64 << 31})), "CropForeground"),
        ("a margin of 2^32 - 1 along an axis", crop(json!({"margin": [0, 0, u32::MAX]})), "CropForeground"),
        ("a margin of 4096", crop(json!({"margin": 4096})), "CropForeground"),
        ("k_divisible of 4096", crop(json!({"k_divisible": 4096})), "CropForeground"),
        ("k_divisible of 2^32 - 1", crop(json!({"k_divisible": u32::MAX})), "CropForeground"),
        ("a least extent of 2^31", json!({"_target_": "SpatialPadd", "keys": "image", "spatial_size": 1u64 << 31}), "padding"),
        (
            "a least extent of 2^32 - 1",
            json!({"_target_": "SpatialPadd", "keys": "image", "spatial_size": u32::MAX, "method": "end"}),
            "padding",
        ),
        ("a multiple of 2^32 - 1", json!({"_target_": "DivisiblePadd", "keys": "image", "k": u32::MAX, "mode": "edge"}), "padding"),
        ("a spacing of a nanometre", json!({"_target_": "Spacingd", "keys": "image", "pixdim": 1e-9}), "voxels"),
        ("a spacing of 1e-100", json!({"_target_": "Spacingd", "keys": "image", "pixdim": 1e-100}), "voxels"),
    ];
    for (name, call, word) in calls {
        segment(&desk, name, 5, &[word], &input, &with_transform(&desk, name, call), &[]);
    }
    let model = with_transform(&desk, "least", json!({"_target_": "Spacingd", "keys": "image", "pixdim": 5e-324}));
    segment(&desk, "a spacing of 5e-324", 3, &["degenerate"], &input, &model, &[]);
    let model = with_transform(&desk, "far", json!({"_target_": "Spacingd", "keys": "image", "pixdim": 1e300}));
    segment(&desk, "a spacing of 1e300", 3, &["degenerate"], &input, &model, &[]);
    for (name, margin) in [("margin that ends with the scan", 1u64 << 31), ("margin of nothing", 0)] {
        let call = crop(json!({"margin": margin, "allow_smaller": true}));
        segment(&desk, name, 0, &[], &input, &with_transform(&desk, name, call), &[]);
    }
    let windows = [("windows of 2^20", 2, 1u64 << 20, "65535"), ("windows of 2^31 - 16", 2, (1 << 31) - 16, "65535")];
    for (name, code, n, word) in
        windows.into_iter().chain([("windows of 65,532", 5, 65_532, "bytes"), ("windows of 1296", 5, 1296, "bytes")])
    {
        let model = bundle(&desk, name, |config| config["inferer"]["roi_size"] = json!([n, n, n]));
        segment(&desk, name, code, &[word], &input, &model, &[]);
    }
    for (name, code, overlap) in [("overlap of 1", 4, 1.0), ("overlap of 1 - 1e-16", 4, 1.0 - 1e-17), ("negative overlap", 4, -0.5)] {
        let model = bundle(&desk, name, |config| config["inferer"]["overlap"] = json!(overlap));
        segment(&desk, name, code, &["overlap"], &input, &model, &[]);
    }
}

#[test]
fn configs_are_bounded() {
    let desk = Desk::new();
    let input = desk.file("scan.nii", &good_scan());
    let refused = |name: &str, words: &[&str], change: &dyn Fn(&mut Value)| {
        let model = bundle(&desk, name, change);
        segment(&desk, name, 4, words, &input, &model, &[]);
        row(&desk, name, 4, words, &["inspect", &model]);
    };
    refused("deep minus signs", &["channels"], &|c| c["network_def"]["channels"] = json!(format!("${}1", "-".repeat(29_000))));
    refused("deep brackets", &["channels"], &|c| c["network_def"]["channels"] = json!(format!("${}", "[".repeat(1_000_000))));
    refused("deep calls", &["channels"], &|c| c["network_def"]["channels"] = json!(format!("${}", "len(".repeat(100_000))));
    refused("one text 20,000 times", &["more than"], &|c| {
        c["text"] = "x".repeat(5_000).into();
        c["network_def"]["channels"] = vec![json!("@text"); 20_000].into();
    });
    refused("a text that doubles", &["more than"], &|c| {
        c["x0"] = "xxxxxxxxxxxxxxxx".into();
        for i in 1..60 {
            c[format!("x{i}")] = format!("$@x{} + @x{}", i - 1, i - 1).into();
        }
        c["network_def"]["channels"] = "@x59".into();
    });
    refused("references in a circle", &["without end"], &|c| c["network_def"]["channels"] = "@network_def::channels".into());
    refused("a class with a newline", &["\\n", "\\u{1b}"], &|c| c["network_def"]["_target_"] = "a\n\u{1b}[31mb".into());
    refused("a class of a megabyte", &["network"], &|c| c["network_def"]["_target_"] = "y".repeat(1 << 20).into());
    refused("an argument of a megabyte", &["dilation"], &|c| c["network_def"]["dilation"] = "y".repeat(1 << 20).into());
    refused("channels of 10^9", &["channels"], &|c| c["network_def"]["channels"] = json!([1_000_000_000, 6, 8]));
    refused("channels of 2^63", &["expected u32"], &|c| c["network_def"]["channels"] = json!([1u64 << 63, 6, 8]));

    let yaml = |name: &str, text: &str| {
        let model = bundle(&desk, name, |_| {});
        let configs = Path::new(&model).join("configs");
        std::fs::remove_file(configs.join("inference.json")).expect("it was there");
        std::fs::write(configs.join("inference.yaml"), text).expect("it is written");
        row(&desk, name, 4, &["inference.yaml"], &["inspect", &model]);
    };
    yaml("keys within keys", &"? ".repeat(219));
    yaml("lists within lists", &"- ".repeat(17_500));
    yaml("keys within keys, many", &"? ".repeat(100_000));
    yaml("braces", &"{a: ".repeat(90_000));
    yaml("brackets", &"[".repeat(1_000_000));
    yaml(
        "an alias of aliases",
        &format!("a0: &a0 [x, x]\n{}", (1..40).map(|i| format!("a{i}: &a{i} [*a{}, *a{}]\n", i - 1, i - 1)).collect::<String>()),
    );
    yaml("a tag", "a: !!python/object/apply:os.system [\"true\"]");
    yaml("17 MiB", &format!("a: {}", "x".repeat(17 << 20)));
}

/// The pickles that flood a reader, without their end.
fn floods() -> Vec<(&'static str, Vec<u8>)> {
    let mut long = Pickler(vec![0x80, 2]);
    long.text(&"x".repeat(1 << 20)).op("q\0").op("0](").op("h\0".repeat(20_000)).op("e");
    let mut doubled = Pickler(vec![0x80, 2]);
    doubled.op("](K\x01K\x01eq\0");
    for level in 1..=40u8 {
        // a list of the last list, twice
        doubled.op("0]q").op([level]).op("(").op([b'h', level - 1, b'h', level - 1]).op("e");
    }
    let array = |shape: &dyn Fn(&mut Pickler)| {
        let mut p = Pickler(vec![0x80, 2]);
        p.op("cnumpy.core.numeric\n_frombuffer\n(C\0cnumpy\ndtype\n").text("f8").op([0x85]).op("R");
        shape(&mut p);
        p.text("C").op("tR");
        p.0
    };
    vec![
        ("60 MB of MEMOIZE", [b"\x80\x04N".to_vec(), vec![0x94; 60_000_000]].concat()),
        ("60 MB of marks", [b"\x80\x02".to_vec(), vec![b'('; 60_000_000]].concat()),
        ("60 MB of DUP", [b"\x80\x02N".to_vec(), vec![b'2'; 60_000_000]].concat()),
        ("60 MB of empty dicts", [b"\x80\x02".to_vec(), vec![b'}'; 60_000_000]].concat()),
        ("a text of 1 MB 20,000 times", long.0),
        ("a list of itself", b"\x80\x02]q\0h\0a".to_vec()),
        ("2^40 lists", doubled.0),
        (
            "an array of shape (2^40, 0)",
            array(&|p| {
                p.ints(&[1 << 40, 0]);
            }),
        ),
        (
            "an array of shape (10^8, 0)",
            array(&|p| {
                p.ints(&[100_000_000, 0]);
            }),
        ),
        (
            "an array of shape (0, 2^63)",
            array(&|p| {
                p.ints(&[0, 1 << 63]);
            }),
        ),
        (
            "an array of shape (2^32, 2^32)",
            array(&|p| {
                p.ints(&[1 << 32, 1 << 32]);
            }),
        ),
        ("a text that claims 2^32 - 1 bytes", b"\x80\x02X\xff\xff\xff\xffa".to_vec()),
        ("bytes that claim 2^63", b"\x80\x04\x8e\0\0\0\0\0\0\0\x80a".to_vec()),
        ("a frame of 2^64 - 1", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN".to_vec()),
    ]
}

#[test]
fn pickles_are_bounded_in_what_they_make() {
    let desk = Desk::new();
    for (name, flood) in floods() {
        let ended = [flood.as_slice(), b"."].concat();
        let model = desk.file("model.pth", &archive(&ended, &[]));
        row(&desk, name, 4, &["model.pth"], &["inspect", &model]);
        // beside the tensors, under a key that is read of nnU-Net's checkpoints
        let mut beside = Pickler(vec![0x80, 2]);
        beside.op("}(").text("init_args").op(&flood[2..]).op("u.");
        let model = desk.file("model.pth", &archive(&beside.0, &[]));
        row(&desk, name, 4, &["model.pth"], &["inspect", &model]);
        // plans of nnU-Net v1
        let folder = desk.at(name);
        copy(&Path::new(VECTORS).join("nnunet_v1/model"), Path::new(&folder));
        let fold = Path::new(&folder).join("fold_0/model_final_checkpoint.model.pkl");
        let mut plans = Pickler(vec![0x80, 2]);
        plans.op("}(").text("plans").op(&flood[2..]).op("u.");
        for pickle in [&ended, &plans.0] {
            std::fs::write(&fold, pickle).expect("it is written");
            row(&desk, name, 4, &[], &["inspect", &folder]);
        }
    }
}

/// A folder of nnU-Net v2 with changed plans.
fn planned(desk: &Desk, name: &str, change: impl FnOnce(&mut Value)) -> String {
    let folder = desk.at(name);
    copy(&Path::new(VECTORS).join("nnunet/model"), Path::new(&folder));
    let file = Path::new(&folder).join("plans.json");
    let mut plans: Value = serde_json::from_slice(&std::fs::read(&file).expect("plans")).expect("JSON");
    change(&mut plans["configurations"]["3d_fullres"]);
    std::fs::write(&file, plans.to_string()).expect("it is written");
    folder
}

#[test]
fn plans_of_nnunet_are_bounded() {
    let desk = Desk::new();
    let input = format!("{VECTORS}/nnunet/case_0000.nii.gz");
    for (name, n) in [("a patch of 2048^3", 2048u32), ("a patch of 1296^3", 1296), ("a patch of 65,532^3", 65_532)] {
        let model = planned(&desk, name, |c| c["patch_size"] = json!([n, n, n]));
        segment(&desk, name, 5, &["windows", "bytes", "patch"], &input, &model, &[]);
    }
    let model = planned(&desk, "2^32 - 4", |c| c["patch_size"] = json!([u32::MAX - 3, u32::MAX - 3, u32::MAX - 3]));
    segment(&desk, "a patch of 2^32 - 4", 3, &["65535"], &input, &model, &[]);
    let model = planned(&desk, "a million axes", |c| c["patch_size"] = vec![json!(8); 1_000_000].into());
    segment(&desk, "a patch of a million axes", 4, &["1000000 dimensions"], &input, &model, &[]);
    let model = planned(&desk, "zero", |c| c["patch_size"] = json!([0, 28, 24]));
    segment(&desk, "a patch of no voxels", 4, &["patch"], &input, &model, &[]);
    let model = planned(&desk, "fine", |c| c["spacing"] = json!([5.0, 1e-9, 1e-9]));
    segment(&desk, "a spacing of 1e-9", 5, &["voxels"], &input, &model, &[]);
    let model = planned(&desk, "as it is", |_| {});
    segment(&desk, "windows that move by nothing", 5, &["voxels apart"], &input, &model, &["--step-size", "1e-9"]);
    segment(&desk, "windows that overlap wholly", 5, &["voxels apart"], &input, &model, &["--overlap", "0.9999999999"]);
    // files of the folder that never end
    for (name, file) in [("plans", "plans.json"), ("the dataset", "dataset.json"), ("weights", "fold_0/checkpoint_final.pth")] {
        let model = planned(&desk, name, |_| {});
        let file = Path::new(&model).join(file);
        std::fs::remove_file(&file).expect("it was there");
        std::os::unix::fs::symlink("/dev/zero", &file).expect("a link is made");
        row(&desk, name, 4, &[], &["inspect", &model]);
    }
    let model = planned(&desk, "large", |_| {});
    let spaces = " ".repeat(17 << 20);
    std::fs::write(Path::new(&model).join("dataset.json"), spaces).expect("it is written");
    row(&desk, "a dataset.json of 17 MiB", 4, &["larger than"], &["inspect", &model]);
}

#[test]
fn scans_take_no_more_than_they_announce() {
    let desk = Desk::new();
    let refused = |name: &str, code: i32, words: &[&str], file: &str, bytes: &[u8]| {
        segment(&desk, name, code, words, &desk.file(file, bytes), MODEL, &[]);
    };
    let largest = [0x7fff; 3];
    refused("281 TB announced", 3, &["cut short"], "s.nii", &scan(largest, 64, &[0; 64]));
    refused("281 TB announced, packed", 5, &["bytes"], "s.nii.gz", &gzip(&scan(largest, 64, &[0; 64])));
    // 256 MiB of zeros, of which the header announces none, or less than are there
    let zeros = vec![0; 256 << 20];
    refused("zeros where a header should be", 3, &["no file of a format"], "s.nii.gz", &gzip(&zeros));
    let bomb = [gzip(&good_scan()), gzip(&zeros), gzip(&zeros)].concat();
    segment(&desk, "zeros after the voxels", 0, &[], &desk.file("s.nii.gz", &bomb), MODEL, &[]);
    let mut far = good_scan();
    far[108..112].copy_from_slice(&1e9f32.to_le_bytes());
    refused("voxels at byte 10^9", 3, &["cut short"], "s.nii.gz", &gzip(&[far.clone(), zeros].concat()));
    far[108..112].copy_from_slice(&1e38f32.to_le_bytes());
    refused("voxels at byte 10^38", 3, &["cannot begin"], "s.nii", &far);

    let nrrd =
        |more: &str| format!("NRRD0004\ntype: uchar\ndimension: 3\nspace: LPS\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n{more}\n\n");
    let packed = |more: &str, voxels: &[u8]| [nrrd(more).into_bytes(), gzip(voxels)].concat();
    refused("NRRD of 2^96 voxels", 5, &["many"], "s.nrrd", &packed("sizes: 4294967295 4294967295 4294967295\nencoding: gzip", &[0]));
    refused("NRRD of 2^62 voxels", 5, &["bytes"], "s.nrrd", &packed("sizes: 2147483647 2147483647 1\nencoding: gzip", &[0]));
    refused(
        "NRRD that passes over 2^62 bytes",
        3,
        &["passes over"],
        "s.nrrd",
        &packed("sizes: 2 2 2\nencoding: gzip\nbyteskip: 4611686018427387904", &[0; 8]),
    );
    refused("NRRD of 2^64 sizes", 3, &["no numbers"], "s.nrrd", &packed("sizes: 18446744073709551616 1 1\nencoding: gzip", &[0]));
    refused("NRRD of no voxels", 3, &["dimension"], "s.nrrd", &packed("sizes: 0 4294967295 4294967295\nencoding: gzip", &[0]));
    refused("NRRD in a device", 3, &["no regular file"], "s.nhdr", nrrd("sizes: 2 2 2\nencoding: raw\ndata file: /dev/zero").as_bytes());
    refused(
        "NRRD in 10^9 files",
        3,
        &["pattern"],
        "s.nhdr",
        nrrd("sizes: 2 2 2\nencoding: raw\ndata file: z%d.raw 1 1000000000 1").as_bytes(),
    );
    refused("NRRD without an end", 3, &["does not end"], "s.nrrd", &[b"NRRD0004\n".to_vec(), b"# comment\n".repeat(500_000)].concat());
    refused("NRRD of one line", 3, &[], "s.nrrd", &[b"NRRD0004\n".to_vec(), vec![b'x'; 5 << 20]].concat());

    let meta = |more: &str| format!("ObjectType = Image\nNDims = 3\nElementType = MET_UCHAR\n{more}");
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(&[0; 64]).expect("it is compressed");
    let zlib = zlib.finish().expect("it is compressed");
    let local = |more: &str| [meta(more).into_bytes(), b"ElementDataFile = LOCAL\n".to_vec(), zlib.clone()].concat();
    refused(
        "MetaImage of 2^93 voxels",
        5,
        &["many"],
        "s.mha",
        &local("DimSize = 2147483647 2147483647 2147483647\nCompressedData = True\n"),
    );
    refused("MetaImage in a device", 3, &["no regular file"], "s.mhd", meta("DimSize = 2 2 2\nElementDataFile = /dev/zero\n").as_bytes());

    let mut mgh = vec![0; 284];
    for (at, n) in [(0, 1u32), (4, 0x7fff_ffff), (8, 0x7fff_ffff), (12, 0x7fff_ffff), (16, 0x7fff_ffff), (20, 3)] {
        mgh[at..at + 4].copy_from_slice(&n.to_be_bytes());
    }
    refused("MGH of 2^124 voxels", 5, &["many"], "s.mgz", &gzip(&mgh));
    mgh[16..20].copy_from_slice(&1u32.to_be_bytes());
    refused("MGH of 2^93 voxels", 5, &["many"], "s.mgh", &mgh);

    // entries of an archive that are no images are not unpacked
    let entry = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    refused(
        "a zip of what is no image",
        3,
        &["no DICOM images"],
        "s.zip",
        &torch::zip(&[entry("a", &vec![0; 64 << 20]), entry("b", b"x")]),
    );
    let mut image = vec![0; 128];
    image.extend(b"DICM\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0");
    image.extend(b"\xe0\x7f\x10\0OW\0\0\xff\xff\xff\x7f");
    refused("DICOM that claims 2 GiB", 3, &["claims"], "s.dcm", &image);
    let nested =
        [&image[..image.len() - 12], &b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff".repeat(10_000)].concat();
    refused("DICOM of 10,000 sequences", 3, &["deeper"], "s.dcm", &nested);
}

#[test]
fn values_near_the_limit_are_no_panic() {
    type Voxel = fn(usize) -> f32;
    let desk = Desk::new();
    let voxels = |value: Voxel| (0..12 * 14 * 16).flat_map(|i| value(i).to_le_bytes()).collect::<Vec<u8>>();
    let nnunet = format!("{VECTORS}/nnunet/model");
    let all: [(&str, Voxel); 3] = [
        ("the greatest floats", |i| if i % 2 == 0 { f32::MAX } else { -f32::MAX }),
        ("the least floats", |i| f32::from_bits(1 + (i % 7) as u32)),
        ("all alike", |_| 5.0),
    ];
    for (name, value) in all {
        let file = desk.file("s.nii", &scan([16, 14, 12], 16, &voxels(value)));
        segment(&desk, name, 0, &[], &file, &nnunet, &[]);
    }
    let nan = desk.file("s.nii", &scan([16, 14, 12], 16, &voxels(|i| if i == 77 { f32::NAN } else { 1.0 })));
    segment(&desk, "a NaN", 3, &["not finite", "voxel (13, 4, 0)"], &nan, &nnunet, &[]);
}

#[test]
fn models_are_bounded() {
    let desk = Desk::new();
    let good = std::fs::read(MODEL).expect("the bundled model is there");
    let refused = |name: &str, words: &[&str], bytes: &[u8]| {
        let model = desk.file("model.safetensors", bytes);
        row(&desk, name, 4, words, &["inspect", &model]);
        row(&desk, name, 4, words, &["plan", "--model", &model, "--extent", "16x16x16"]);
        segment(&desk, name, 4, words, SCAN, &model, &[]);
    };
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    refused("a header of 2^40 bytes", &["header"], &huge);
    let header = format!("{{\"__metadata__\":{{\"organum\":\"{}\"}}}}", " ".repeat(17 << 20));
    refused("a header of 17 MiB", &["header"], &[&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat());
    refused("a card of 100,000 brackets", &["card"], &remodel(|_, card| *card = Some("[".repeat(100_000))));
    refused("a config of 100,000 brackets", &["card"], &remodel(|_, card| *card = Some(format!("{{\"config\":{}", "[".repeat(100_000)))));
    refused("a name of a megabyte", &["architecture"], &recard(|c| c["architecture"] = "z".repeat(1 << 20).into()));
    refused("a name with a newline", &["a\\nb"], &recard(|c| c["architecture"] = "a\nb\u{1b}[2J".into()));
    refused("channels of 2^32 - 1", &["channels"], &recard(|c| c["config"]["channels"] = json!([u32::MAX, u32::MAX, u32::MAX, u32::MAX])));
    refused("a hundred thousand levels", &[], &recard(|c| c["config"]["channels"] = vec![json!(12); 100_000].into()));
    refused("heads of 2^32 - 1", &["heads"], &recard(|c| c["config"]["heads"] = json!(u32::MAX)));
    for (name, value) in [("NaN", f32::NAN), ("infinite", f32::NEG_INFINITY)] {
        let broken = remodel(|tensors, _| {
            let bias = tensors.get_mut("head.bias").expect("there is a head");
            (bias.dtype, bias.bytes) = (Dtype::F32, vec![value; bias.shape[0]].iter().flat_map(|v| v.to_le_bytes()).collect());
        });
        let model = desk.file("model.safetensors", &broken);
        segment(&desk, name, 4, &["head.bias", "NaN or infinite"], SCAN, &model, &[]);
    }
    // windows and extents that no machine holds
    for (n, code, word) in [(4_294_967_280u32, 2, "65535"), (65_536, 2, "65535"), (65_528, 5, "bytes"), (2048, 5, "bytes")] {
        let model = desk.file("model.safetensors", &recard(|c| c["inference"] = json!({"mode": "window", "patch": [n, n, n]})));
        segment(&desk, "a patch", code, &[word], SCAN, &model, &[]);
    }
}

#[test]
fn arrays_are_bounded() {
    let desk = Desk::new();
    let refused = |name: &str, words: &[&str], bytes: &[u8]| {
        let input = desk.file("x.npy", bytes);
        row(&desk, name, 3, words, &["infer", "--model", MODEL, "--input", &input, "--output", &desk.out("y.npy"), "--device", "cpu"]);
    };
    let of = |header: &str| [b"\x93NUMPY\x02\0".to_vec(), (header.len() as u32).to_le_bytes().to_vec(), header.into()].concat();
    let shape = |shape: &str| of(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n"));
    refused("a header of 2^32 - 1 bytes", &["header"], b"\x93NUMPY\x02\0\xff\xff\xff\xff{");
    refused("30,000 brackets", &["nested"], &of(&"(".repeat(30_000)));
    refused("a shape of 2^93", &["64 bits"], &shape("(1, 1, 2147483648, 2147483648, 2147483648)"));
    refused("a shape that wraps to 4096", &["64 bits"], &shape("(1, 1, 4294967296, 4294967296, 4096)"));
    refused("a shape of 10^12", &["cut short"], &shape("(1, 1, 10000, 10000, 10000)"));
    refused("no values", &[], &shape("(1, 1, 0, 16, 16)"));
    refused("30,000 axes", &[], &shape(&format!("({})", "1,".repeat(30_000))));
    refused("NaN", &["NaN"], &npy(&[1, 1, 8, 8, 8], &[f32::NAN; 512]));
    refused("magic alone", &["npy"], b"\x93NUMPY");
    let header = "{\"input\":{\"dtype\":\"F32\",\"shape\":[1,1,4294967296,4294967296,4096],\"data_offsets\":[0,0]}}";
    let tensors = desk.file("x.safetensors", &[&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat());
    row(
        &desk,
        "tensors that wrap",
        3,
        &["x.safetensors"],
        &["infer", "--model", MODEL, "--input", &tensors, "--output", &desk.out("y.npy")],
    );
}

#[test]
fn names_and_numbers_of_the_command_line_are_checked() {
    let desk = Desk::new();
    segment(&desk, "a name with an escape", 3, &["a\\n\\u{1b}[31mb.nii"], &desk.at("a\n\u{1b}[31mb.nii"), MODEL, &[]);
    let long = desk.at(&"x/".repeat(3000));
    segment(&desk, "a long name", 3, &[], &long, MODEL, &[]);
    for size in ["10^30GiB", "-1", "NaN", "inf", "", "1e9", "0x10", "1000000000000000000000000000000GiB", "\u{bd}MiB"] {
        let option = format!("--memory={size}");
        let args = ["segment", SCAN, "--model", MODEL, "--output", &desk.out("l.nii"), "--device", "cpu", &option];
        desk.fails(2, &["memory"], &args);
    }
    for extent in ["4294967280x16x16", "65536x65536x65536", "2147483648x2147483648x2147483648"] {
        row(&desk, extent, 3, &["65535"], &["plan", "--model", MODEL, "--extent", extent]);
    }
    for file in ["/dev/zero", "/dev/urandom"] {
        let out = desk.out("m.safetensors");
        row(&desk, "a card that never ends", 3, &["no regular file"], &["convert", MODEL, "--card", file, "--output", &out]);
        row(&desk, "a config that never ends", 3, &["no regular file"], &["convert", MODEL, "--config", file, "--output", &out]);
        row(&desk, "labels that never end", 3, &["no regular file"], &["evaluate", file, LABELS]);
        row(&desk, "labels that never end", 3, &["no regular file"], &["stats", file]);
    }
}
