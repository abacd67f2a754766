//! How the program fails: exit code, cause, and nothing left behind. Only the bundled files are needed.
#![allow(clippy::cast_possible_truncation, reason = "crops and labels of known size")]
#![allow(clippy::print_stdout, reason = "figures and skips belong to a test's output")]

#[path = "support/desk.rs"]
mod desk;

use std::path::PathBuf;
use std::process::Command;

use organum::Extent;
use organum::volume::{nifti, resample};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use desk::*;

// ---- what must fail, and how ----

#[test]
fn bad_scans_are_refused() {
    let desk = Desk::new();
    let missing = desk.path("in", "missing.nii.gz");
    desk.segment_fails(3, &["missing.nii.gz"], &missing);
    desk.segment_fails(3, &["in"], &desk.path("in", ""));

    let packed = std::fs::read(SCAN).expect("the bundled scan is there");
    for keep in [0, 1, 12, 200, packed.len() / 2, packed.len() - 4] {
        let words: &[&str] = if keep > 12 { &["cut.nii.gz", "cut short"] } else { &["cut.nii.gz"] };
        desk.segment_fails(3, words, &desk.file("cut.nii.gz", &packed[..keep]));
    }
    let mut flipped = packed.clone();
    flipped[packed.len() / 2] ^= 0x40;
    desk.segment_fails(3, &["flipped.nii.gz"], &desk.file("flipped.nii.gz", &flipped));

    let plain = std::fs::read(desk.crop("plain.nii")).expect("the crop is there");
    desk.segment_fails(3, &["short.nii", "cut short"], &desk.file("short.nii", &plain[..plain.len() - 1]));
    desk.segment_fails(3, &["header.nii"], &desk.file("header.nii", &plain[..100]));
    let mut magic = plain.clone();
    magic[344..348].copy_from_slice(b"no!\0");
    desk.segment_fails(3, &["magic.nii", "NIfTI"], &desk.file("magic.nii", &magic));
    desk.segment_fails(3, &["NIfTI"], &desk.file("text.nii", &b"patient: none\n".repeat(100)));
    desk.segment_fails(3, &["NIfTI"], MODEL);

    let mut values = wave(512);
    values[123] = f32::NAN;
    values[321] = f32::INFINITY;
    desk.segment_fails(3, &["2 voxels", "nan.nii", "voxel (3, 7, 1)"], &desk.maps("nan.nii", 1, values));
    desk.segment_fails(3, &["2 channels", "needs 1"], &desk.maps("two.nii", 2, wave(1024)));
}

#[test]
fn an_absurd_spacing_is_refused_before_it_fills_the_memory() {
    let desk = Desk::new();
    let plain = std::fs::read(desk.crop("plain.nii")).expect("the crop is there");
    // units of metres: voxels of a thousand millimetres
    let mut metres = plain.clone();
    metres[123] = 1;
    desk.segment_fails(3, &["spacing", "bytes"], &desk.file("metres.nii", &metres));
    // micrometres: the whole scan is less than a voxel of the model
    let mut micrometres = plain;
    micrometres[123] = 3;
    desk.segment_fails(3, &["spacing", "nothing"], &desk.file("micrometres.nii", &micrometres));
}

#[test]
fn bad_arrays_are_refused() {
    let desk = Desk::new();
    let infer = |code: i32, words: &[&str], input: &str| {
        desk.fails(code, words, &["infer", "--model", MODEL, "--input", input, "--output", &desk.out("y.npy"), "--device", "cpu"])
    };
    infer(3, &["missing.npy"], &desk.path("in", "missing.npy"));
    infer(3, &["text.npy"], &desk.file("text.npy", b"0.1 0.2 0.3"));
    let good = npy(&[1, 1, 8, 8, 8], &wave(512));
    infer(3, &["short.npy"], &desk.file("short.npy", &good[..good.len() - 1]));
    infer(3, &["huge.npy"], &desk.file("huge.npy", &npy(&[1, 1, 1_000_000, 1_000_000, 1_000_000], &[])));
    infer(3, &["2 channels", "wants 1"], &desk.file("two.npy", &npy(&[1, 2, 8, 8, 8], &wave(1024))));
    infer(3, &["[1, 1, 8, 8]", "(1, C, D, H, W)"], &desk.file("flat.npy", &npy(&[1, 1, 8, 8], &wave(64))));
    infer(3, &["[2, 1, 8, 8, 8]"], &desk.file("batch.npy", &npy(&[2, 1, 8, 8, 8], &wave(1024))));
    infer(3, &["12x8x9", "8x8x8", "pad it to 16x8x16"], &desk.file("odd.npy", &npy(&[1, 1, 12, 8, 9], &wave(12 * 8 * 9))));
    infer(3, &["0x8x8"], &desk.file("zero.npy", &npy(&[1, 1, 0, 8, 8], &[])));
    let mut nan = wave(512);
    nan[7] = f32::NAN;
    infer(3, &["NaN", "7"], &desk.file("nan.npy", &npy(&[1, 1, 8, 8, 8], &nan)));
    let bytes = vec![0u8; 512 * 8];
    let pack = |name, dtype, n| {
        safetensors::serialize(
            [(name, TensorView::new(dtype, vec![1, 1, 8, 8, 8], &bytes[..n]).expect("the shape is that of the bytes"))],
            None,
        )
        .expect("it is serialised")
    };
    infer(3, &["no tensor `input`"], &desk.file("other.safetensors", &pack("x", Dtype::F32, 2048)));
    infer(3, &["`input`", "I64"], &desk.file("ints.safetensors", &pack("input", Dtype::I64, 4096)));
    infer(3, &["empty.safetensors"], &desk.file("empty.safetensors", b""));
    // segment brings an odd extent to the stride and back instead; see above
}

#[test]
#[cfg(unix)]
fn devices_and_pipes_are_no_files() {
    let desk = Desk::new();
    let pipe = desk.path("in", "pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is there");
    assert!(made.success());
    let y = desk.out("y.npy");
    for file in [pipe.as_str(), "/dev/zero"] {
        let words = [file, "regular file"];
        desk.fails(4, &words, &["inspect", file]);
        desk.fails(4, &words, &["segment", SCAN, "--model", file, "--output", &desk.out("l.nii")]);
        desk.fails(3, &words, &["infer", "--model", MODEL, "--input", file, "--output", &y]);
        desk.segment_fails(3, &words, file);
    }
}

#[test]
fn bad_models_are_refused() {
    let desk = Desk::new();
    let missing = desk.path("in", "missing.safetensors");
    desk.fails(
        4,
        &["missing.safetensors"],
        &["segment", SCAN, "--model", &missing, "--output", &desk.out("labels.nii.gz"), "--device", "cpu"],
    );
    desk.fails(4, &["missing.safetensors"], &["plan", "--model", &missing, "--extent", "8x8x8"]);
    desk.fails(4, &["in"], &["inspect", &desk.path("in", "")]);
    let good = std::fs::read(MODEL).expect("the bundled model is there");
    desk.model_fails(&["model.safetensors", "safetensors"], b"");
    desk.model_fails(&["model.safetensors", "safetensors"], b"not a model at all, just a sentence of some length");
    desk.model_fails(&["model.safetensors", "safetensors"], &std::fs::read(SCAN).expect("the bundled scan is there"));
    for keep in [4, 100, good.len() / 2, good.len() - 1] {
        desk.model_fails(&["model.safetensors"], &good[..keep]);
    }

    let bare = desk.file("bare.safetensors", &remodel(|_, card| *card = None));
    let labels = desk.out("labels.nii.gz");
    desk.fails(4, &["no card", "organum", "heads"], &["segment", SCAN, "--model", &bare, "--output", &labels, "--device", "cpu"]);
    desk.model_fails(&["card"], &remodel(|_, card| *card = Some("{\"architecture\": ".into())));
    desk.model_fails(&["card"], &remodel(|_, card| *card = Some("[]".into())));
    desk.model_fails(&["card"], &remodel(|_, card| *card = Some(String::new())));
    desk.model_fails(&["vista3d", "u_transformer"], &recard(|c| c["architecture"] = json!("vista3d")));
    desk.model_fails(&["config"], &recard(|c| c["config"] = json!(null)));
    desk.model_fails(&["config", "widths"], &recard(|c| c["config"]["widths"] = json!([1, 2])));
    desk.model_fails(&["dims is 4"], &recard(|c| c["config"]["dims"] = json!(4)));
    desk.model_fails(&["channels"], &recard(|c| c["config"]["channels"] = json!([])));
    desk.model_fails(&["channels"], &recard(|c| c["config"]["channels"] = json!([12, 0, 48, 64])));
    desk.model_fails(&["5 heads", "64"], &recard(|c| c["config"]["heads"] = json!(5)));
    desk.model_fails(&["positive"], &recard(|c| c["config"]["heads"] = json!(0)));
    desk.model_fails(&["positive"], &recard(|c| c["config"]["in_channels"] = json!(0)));
    desk.model_fails(&["spacing_mm"], &recard(|c| c["input"]["spacing_mm"] = json!([1.0, 0.0, 1.0])));
    desk.model_fails(&["SAS"], &recard(|c| c["input"]["axes"] = json!("SAS")));
    desk.model_fails(&["cubic"], &recard(|c| c["input"]["resample"] = json!("cubic")));
    desk.model_fails(&["tensors do not fit"], &recard(|c| c["config"]["channels"] = json!([4_000_000_000u32, 24, 48, 64])));

    desk.model_fails(
        &[
            "missing enc.1.b.conv.bias",
            "extra enc.9.surprise",
            "mis-shaped head.weight",
            "[3, 12, 1, 1, 1]",
            "unsupported type I64 of head.bias",
        ],
        &remodel(|tensors, _| {
            tensors.remove("enc.1.b.conv.bias");
            tensors.insert("enc.9.surprise".into(), Tensor { dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4] });
            let head = tensors.get_mut("head.weight").expect("there is a head");
            head.shape = vec![3, 12];
            let bias = tensors.get_mut("head.bias").expect("there is a head");
            (bias.dtype, bias.bytes) = (Dtype::I64, vec![0; bias.shape[0] * 8]);
        }),
    );
}

/// Counters of a training framework are no reason to refuse, and other float types are read.
#[test]
fn harmless_differences_between_models_are_accepted() {
    let desk = Desk::new();
    let model = desk.file(
        "model.safetensors",
        &remodel(|tensors, _| {
            tensors.insert("enc.0.a.norm.num_batches_tracked".into(), Tensor { dtype: Dtype::I64, shape: vec![], bytes: vec![0; 8] });
            for t in tensors.values_mut().filter(|t| t.dtype == Dtype::F16) {
                t.bytes = t.bytes.chunks_exact(2).flat_map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64().to_le_bytes()).collect();
                t.dtype = Dtype::F64;
            }
        }),
    );
    let input = desk.file("x.npy", &npy(&[1, 1, 8, 8, 8], &wave(512)));
    let [a, b] = ["a.npy", "b.npy"].map(|name| desk.out(name));
    done(&["infer", "--model", MODEL, "--input", &input, "--output", &a, "--device", "cpu"]);
    done(&["infer", "--model", &model, "--input", &input, "--output", &b, "--device", "cpu"]);
    assert_eq!(read_npy(&a), read_npy(&b));
}

#[test]
fn a_budget_that_is_too_small_names_the_smallest_that_works() {
    let desk = Desk::new();
    let scan = desk.crop("scan.nii.gz");
    for device in devices() {
        let labels = desk.out("labels.nii.gz");
        let segment = ["segment", &scan, "--model", MODEL, "--output", &labels];
        desk.fails(5, &["--memory"], &[&segment, device.as_slice(), &["--memory", "0"]].concat());
        let message = desk.fails(5, &["1.00 MiB"], &[&segment, device.as_slice(), &["--memory", "1MiB"]].concat());
        let smallest: u64 = message
            .trim()
            .rsplit(' ')
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no number at the end of {message}"));
        desk.fails(5, &[&smallest.to_string()], &[&segment, device.as_slice(), &["--memory", &(smallest - 1).to_string()]].concat());

        let report = done_json(&[&segment, device.as_slice(), &["--memory", &smallest.to_string()]].concat());
        assert_eq!(report["plan"]["peak_bytes"], json!(smallest));
        assert_eq!(report["plan"]["smallest_budget"], json!(smallest));
        assert_eq!(report["plan"]["budget"], json!(smallest));
        let (_, tight) = nifti::read_labels(&labels).expect("the labels are read");
        done(&[&segment, device.as_slice()].concat());
        let (_, whole) = nifti::read_labels(&labels).expect("the labels are read");
        assert!(tight == whole, "the budget changes the labels");
        std::fs::remove_file(&labels).expect("the output is removed");
    }
}

#[test]
fn devices_that_are_not_there_are_named() {
    let desk = Desk::new();
    let labels = desk.out("labels.nii.gz");
    let segment = ["segment", SCAN, "--model", MODEL, "--output", &labels];
    if has_adapter() {
        desk.fails(6, &["nosuchthing", "there are"], &[segment.as_slice(), &["--device", "nosuchthing"]].concat());
        desk.fails(6, &["99"], &[segment.as_slice(), &["--device", "99"]].concat());
    } else {
        desk.fails(6, &["no GPU adapter"], &[segment.as_slice(), &["--device", "0"]].concat());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn without_any_driver_the_message_says_what_to_type() {
    let desk = Desk::new();
    let labels = desk.out("labels.nii.gz");
    let args = ["segment", SCAN, "--model", MODEL, "--output", &labels, "--overlay", &desk.out("o.png")];
    let output = program()
        .args([&args[..], &["--device", "llvmpipe"]].concat())
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .output()
        .expect("the program starts");
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{err}");
    assert!(err.contains("apt-get install mesa-vulkan-drivers") && err.contains("--device cpu"), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert!(output.stdout.is_empty() && desk.written().is_empty());
    let list = program()
        .args(["devices", "--json"])
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .output()
        .expect("the program starts");
    assert_eq!(list.status.code(), Some(0));
    assert_eq!(serde_json::from_slice::<Value>(&list.stdout).expect("it is JSON"), json!({"devices": [], "default": "cpu"}));
    // the host needs none
    let output = program().args(args).env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent").output();
    let output = output.expect("the program starts");
    assert!(output.status.success() && text(&output.stdout).contains("cpu"), "{}", text(&output.stderr));
}

#[test]
fn limits_that_no_device_has_are_no_reason_to_panic() {
    let desk = Desk::new();
    for (limits, cause) in [
        (r#"{"max_binding": 0}"#, "binds at most 0 bytes"),
        (r#"{"max_buffer": 1}"#, "binds at most 1 bytes"),
        (r#"{"max_workgroups": 0}"#, "dispatches 1 to 0"),
        (r#"{"max_storage_buffers": 4}"#, "binds 8 storage buffers"),
    ] {
        let caps = desk.file("caps.json", limits.as_bytes());
        desk.fails(5, &[cause], &["plan", "--model", MODEL, "--extent", "16x16x16", "--caps", &caps]);
    }
    let odd = desk.file("odd.json", br#"{"max_invocations": 0, "alignment": 3}"#);
    done_json(&["plan", "--model", MODEL, "--extent", "16x16x16", "--caps", &odd]);
}

#[test]
fn usage_errors_are_told_apart_from_bad_files() {
    let desk = Desk::new();
    let labels = desk.out("labels.nii.gz");
    desk.fails(2, &["Usage"], &[]);
    desk.fails(2, &["conquer"], &["conquer"]);
    desk.fails(2, &["--output"], &["segment", SCAN, "--model", MODEL]);
    desk.fails(2, &["parsecs", "KiB"], &["segment", SCAN, "--model", MODEL, "--output", &labels, "--memory", "12parsecs"]);
    desk.fails(2, &["f64", "f32"], &["segment", SCAN, "--model", MODEL, "--output", &labels, "--precision", "f64"]);
    desk.fails(2, &["window"], &["segment", SCAN, "--model", MODEL, "--output", &labels, "--mode", "window", "--device", "cpu"]);
    desk.fails(2, &["labels.png", ".nii"], &["segment", SCAN, "--model", MODEL, "--output", &desk.out("labels.png"), "--device", "cpu"]);
    desk.fails(
        2,
        &["p.png", ".nii"],
        &["segment", SCAN, "--model", MODEL, "--output", &labels, "--probabilities", &desk.out("p.png"), "--device", "cpu"],
    );
    for option in ["--output", "--overlay", "--probabilities"] {
        let elsewhere = desk.path("nowhere", if option == "--overlay" { "x.png" } else { "x.nii.gz" });
        let mut args = vec!["segment", SCAN, "--model", MODEL, "--device", "cpu", option, &elsewhere];
        if option != "--output" {
            args.extend(["--output", &labels]);
        }
        desk.fails(2, &["nowhere"], &args);
    }
    let input = desk.file("x.npy", &npy(&[1, 1, 8, 8, 8], &wave(512)));
    let infer = ["infer", "--model", MODEL, "--input", &input, "--device", "cpu", "--output"];
    desk.fails(2, &["y.txt", ".npy"], &[infer.as_slice(), &[&desk.out("y.txt")]].concat());
    desk.fails(2, &["nowhere"], &[infer.as_slice(), &[&desk.path("nowhere", "y.npy")]].concat());
    for option in ["--position", "--visited"] {
        desk.fails(2, &[option, "u_transformer"], &[infer.as_slice(), &[&desk.out("y.npy"), option, "0,0,0"]].concat());
    }
    let occupied = desk.file("occupied", b"");
    desk.fails(2, &["occupied"], &["demo", "--device", "cpu", "--out", &occupied]);
}

#[test]
fn attention_needs_gates() {
    let desk = Desk::new();
    let scan = desk.crop("scan.nii");
    let (labels, maps) = (desk.out("labels.nii"), desk.out("maps"));
    let mut models = vec![desk.file("u_net.safetensors", &plain_u_net())];
    let bundled = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("weights/hippocampus_unet.safetensors");
    models.extend(bundled.exists().then(|| bundled.to_string_lossy().into_owned()));
    for model in models {
        let segment = ["segment", &scan, "--model", &model, "--output", &labels, "--device", "cpu"];
        desk.fails(2, &["--attention", "gates"], &[segment.as_slice(), &["--attention", &maps]].concat());
        done(&segment);
        std::fs::remove_file(&labels).expect("the output is removed");
    }
}

/// A label map that could not be written leaves an older one as it was.
#[test]
fn a_failure_leaves_older_outputs_alone() {
    let desk = Desk::new();
    let labels = desk.out("labels.nii.gz");
    std::fs::write(&labels, b"precious").expect("a file is written");
    for (code, extra) in [(5, ["--memory", "1kB"]), (6, ["--device", "nosuchthing"])] {
        let output = run(&[&["segment", SCAN, "--model", MODEL, "--output", &labels], extra.as_slice()].concat());
        assert!([5, 6].contains(&output.status.code().expect("a code")), "{code}");
        assert_eq!(std::fs::read(&labels).expect("the file is there"), b"precious");
        assert_eq!(desk.written(), ["labels.nii.gz"]);
    }
    // one that can is replaced
    let scan = desk.crop("scan.nii");
    done(&["segment", &scan, "--model", MODEL, "--output", &labels, "--device", "cpu"]);
    nifti::read_labels(&labels).expect("the labels are read");
}

/// Whether a process catches SIGINT; `None` when it is gone.
#[cfg(target_os = "linux")]
fn catches_interrupts(pid: u32) -> Option<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"))?;
    let mask = u64::from_str_radix(caught.trim(), 16).ok()?;
    Some(mask & (1 << 1) != 0)
}

/// Ctrl-C ends a run with 130 and leaves nothing.
#[cfg(target_os = "linux")]
#[test]
fn interrupting_a_run_leaves_nothing() {
    use std::process::Stdio;
    let desk = Desk::new();
    let scan = nifti::read(SCAN).expect("the bundled scan is read");
    let large = resample::resample_linear(&scan.image, Extent::new(96, 128, 128));
    let mut header = scan.header;
    header.dim = [3, 128, 128, 96, 1, 1, 1, 1];
    let input = desk.path("in", "large.nii");
    nifti::write_maps(&input, &header, &large).expect("the scan is written");
    let outputs = ["--output", &desk.out("labels.nii.gz"), "--overlay", &desk.out("overlay.png"), "--probabilities", &desk.out("p.nii.gz")];
    let child = program()
        .args(["segment", &input, "--model", MODEL, "--device", "cpu"])
        .args(outputs)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // the handler is there before the run begins, which then takes seconds
    while !catches_interrupts(child.id()).expect("the program is there") {
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there").success());
    let output = child.wait_with_output().expect("the program ends");
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("cancelled"), "{err}");
    assert!(output.stdout.is_empty());
    assert_eq!(desk.written(), [""; 0]);
}
