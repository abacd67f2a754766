//! Slices zoomed to a 2D network's extent and their labels zoomed back, as users of the program meet them, against loops in f64.
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "tests")]

#[path = "support/desk.rs"]
mod desk;

use organum::model::random_weights;
use organum::volume::{nifti, resample};
use serde_json::{Value, json};

use desk::*;

/// Networks, their further keys of the card, voxels of their planes, and a seed with which they find something.
fn networks() -> [(Value, Value, [usize; 2], u64); 4] {
    let swin = json!({"image": 32, "embed_dim": 8, "depths": [2, 2], "heads": [1, 2], "window": 4, "classes": 3});
    let glam = json!({"image": 32, "embed_dim": 8, "depths": [2, 2], "heads": [1, 2], "window": 4, "classes": 3, "in_channels": 1});
    let trans = json!({"image": 16, "hidden": 24, "mlp": 40, "heads": 3, "layers": 1, "resnet_layers": [1, 1, 1], "width_factor": 0.5,
        "decoder_channels": [12, 8, 8, 4], "skip_channels": [256, 128, 32, 0], "classes": 3});
    let unet = json!({"base": 4, "classes": 3});
    let card = |architecture: &str, config: Value| json!({"architecture": architecture, "config": config});
    [
        (card("swin_unet", swin), json!({}), [32, 32], 3),
        (card("glam_swin_unet", glam), json!({}), [32, 32], 3),
        (card("transunet", trans), json!({"overlap": 0.5}), [16, 16], 3),
        // one that takes any extent, asked for slices by its card
        (card("unet2d", unet), json!({"mode": "slices", "patch": [17, 26]}), [17, 26], 3),
    ]
}

/// The value at `at` of the cubic spline through a line that is mirrored at its ends; its coefficients by repeated substitution.
fn spline(line: &[f64]) -> impl Fn(f64) -> f64 {
    let n = line.len() as i64;
    let mirrored = move |k: i64| {
        let k = k.rem_euclid((2 * n - 2).max(1));
        k.min(2 * n - 2 - k).max(0) as usize
    };
    let mut c = line.to_vec();
    for _ in 0..100 {
        for k in 0..n {
            c[k as usize] = (6.0 * line[k as usize] - c[mirrored(k - 1)] - c[mirrored(k + 1)]) / 4.0;
        }
    }
    let basis = |x: f64| match x.abs() {
        x if x < 1.0 => 2.0 / 3.0 - x * x + x * x * x / 2.0,
        x if x < 2.0 => (2.0 - x).powi(3) / 6.0,
        _ => 0.0,
    };
    move |at| (at as i64 - 2..at as i64 + 4).map(|k| c[mirrored(k)] * basis(at - k as f64)).sum()
}

/// Where target voxel `i` lies on the source line; none where a rounding puts it beyond the end.
fn place(i: usize, source: usize, target: usize) -> Option<f64> {
    let at = i as f64 * ((source - 1) as f64 / (target - 1) as f64);
    (at <= (source - 1) as f64).then_some(at)
}

/// A plane [H][W], row by row and then column by column.
fn zoomed(plane: &[f64], [h, w]: [usize; 2], [to_h, to_w]: [usize; 2]) -> Vec<f64> {
    let along = |line: &[f64], n: usize| -> Vec<f64> {
        let curve = spline(line);
        (0..n).map(|i| place(i, line.len(), n).map_or(0.0, &curve)).collect()
    };
    let rows: Vec<Vec<f64>> = plane.chunks_exact(w).map(|row| along(row, to_w)).collect();
    let columns: Vec<Vec<f64>> = (0..to_w).map(|x| along(&(0..h).map(|y| rows[y][x]).collect::<Vec<_>>(), to_h)).collect();
    (0..to_h).flat_map(|y| columns.iter().map(move |column| column[y])).collect()
}

/// Probabilities of a class at a place between voxels.
fn between(plane: &[f64], w: usize, [y, x]: [f64; 2]) -> f64 {
    let at = |y: f64, x: f64| plane[y as usize * w + x as usize];
    let along = |y: f64| at(y, x.floor()) * (1.0 - x.fract()) + at(y, x.ceil()) * x.fract();
    along(y.floor()) * (1.0 - y.fract()) + along(y.ceil()) * y.fract()
}

#[test]
fn slices_are_zoomed_and_their_labels_zoomed_back() {
    for (mut card, inference, to, seed) in networks() {
        let desk = Desk::new();
        let scan = desk.crop("scan.nii.gz");
        let image = nifti::read(&scan).expect("the scan is read").image;
        let (least, most) = image.data.iter().fold((f32::MAX, f32::MIN), |(a, b), &v| (a.min(v), b.max(v)));
        let (low, high) = (least + (most - least) * 0.3, least + (most - least) * 0.8);
        card["input"] = json!({"intensity": {"scheme": "window", "low": low, "high": high}});
        card["inference"] = inference;
        let model = desk.file("model.safetensors", &random_weights(&card.to_string(), seed).expect("it is one"));
        let (labels, probabilities) = (desk.out("labels.nii.gz"), desk.out("p.nii"));
        let args = ["segment", &scan, "--model", &model, "--device", "cpu", "--output", &labels];
        let report = done_json(&[args.as_slice(), &["--probabilities", &probabilities]].concat());
        has_run_keys(&report);
        let [d, h, w] = image.extent.axes().map(|n| n as usize);
        assert_eq!(report["slices"], json!({"count": d, "extent": to}));
        assert_eq!(report["plan"]["extent"], json!([d, to[0], to[1]]));
        let written = nifti::read_labels(&labels).expect("the labels are read").1;
        assert_eq!((written.extent, written.axes, written.spacing), (image.extent, image.axes, image.spacing));
        let maps = nifti::read(&probabilities).expect("the probabilities are read").image;
        assert_eq!((maps.channels, maps.extent), (3, image.extent));

        let scaled = |&v: &f32| f64::from(((f64::from(v) - f64::from(low)) / f64::from(high - low)).clamp(0.0, 1.0) as f32);
        let (mut found, mut overshoots) = ([0; 3], false);
        for z in 0..d {
            let plane: Vec<f64> = image.data[z * h * w..][..h * w].iter().map(scaled).collect();
            let plane: Vec<f32> = zoomed(&plane, [h, w], to).into_iter().map(|v| v as f32).collect();
            overshoots |= plane.iter().any(|v| !(0.0..=1.0).contains(v));
            let channels = if card["architecture"] == "unet2d" || card["architecture"] == "glam_swin_unet" { 1 } else { 3 };
            let input = desk.file("x.npy", &npy(&[1, channels, to[0], to[1]], &plane.repeat(channels)));
            let output = desk.path("in", "y.npy");
            done(&["infer", "--model", &model, "--input", &input, "--output", &output, "--device", "cpu"]);
            let logits = read_npy(&output).1;
            let n = to[0] * to[1];
            let of = |class: usize, at: usize| f64::from(logits[class * n + at]);
            let total: Vec<f64> = (0..n).map(|at| (0..3).map(|c| of(c, at).exp()).sum()).collect();
            let shares: Vec<Vec<f64>> = (0..3).map(|c| (0..n).map(|at| of(c, at).exp() / total[at]).collect()).collect();
            for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                let label = usize::from(written.data[(z * h + y) * w + x]);
                found[label] += 1;
                let (at_y, at_x) = (place(y, to[0], h), place(x, to[1], w));
                match at_y.zip(at_x) {
                    None => assert_eq!(label, 0, "beyond the end"),
                    Some((at_y, at_x)) => {
                        let at = (at_y + 0.5).floor() as usize * to[1] + (at_x + 0.5).floor() as usize;
                        let best = (0..3).map(|c| of(c, at)).fold(f64::MIN, f64::max);
                        assert!(of(label, at) >= best - 1e-4 * (1.0 + best.abs()), "{card} at {z}, {y}, {x}: {label}");
                    }
                }
                let end = |at: Option<f64>, n: usize| at.unwrap_or((n - 1) as f64);
                for (class, shares) in shares.iter().enumerate() {
                    let want = between(shares, to[1], [end(at_y, to[0]), end(at_x, to[1])]);
                    let got = f64::from(maps.data[((class * d + z) * h + y) * w + x]);
                    assert!((got - want).abs() < 1e-4, "{card} at {z}, {y}, {x}: {got} for {want} of class {class}");
                }
            }
        }
        assert!(overshoots, "splines overshoot, and nothing is clipped");
        assert!(found.iter().filter(|&&n| n > 50).count() > 1, "{card} finds {found:?}");

        // the same within the smallest budget, and on the device
        let budget = report["plan"]["smallest_budget"].to_string();
        let tight = done_json(&[args.as_slice(), &["--probabilities", &probabilities, "--memory", &budget, "--mode", "slices"]].concat());
        assert!(tight["allocated_bytes"].as_u64() <= budget.parse().ok(), "{tight}");
        assert!(nifti::read_labels(&labels).expect("the labels are read").1 == written, "{card}: other labels in {budget} bytes");
        if has_adapter() {
            let report = done_json(&["segment", &scan, "--model", &model, "--output", &labels]);
            assert_eq!(report["allocated_bytes"], report["plan"]["peak_bytes"]);
            let on_device = nifti::read_labels(&labels).expect("the labels are read").1;
            let different = on_device.data.iter().zip(&written.data).filter(|(a, b)| a != b).count();
            assert!(different <= 4, "{card}: {different} voxels differ between the host and the device");
        }
    }
}

#[test]
fn what_has_no_slices_is_refused() {
    let desk = Desk::new();
    let scan = desk.crop("scan.nii.gz");
    let fails = |code: i32, words: &[&str], model: &str| {
        let args = ["segment", &scan, "--model", model, "--output", &desk.out("no.nii"), "--mode", "slices", "--device", "cpu", "--raw"];
        desk.fails(code, words, &args);
    };
    fails(2, &["--mode slices", "3D"], MODEL);
    desk.model_fails(&["inference.mode", "u_transformer is a 3D network"], &recard(|card| card["inference"] = json!({"mode": "slices"})));
    let model = |architecture: &str, config: Value, inference: Value| {
        let card = json!({"architecture": architecture, "config": config, "inference": inference});
        random_weights(&card.to_string(), 1)
    };
    let made = |architecture: &str, config: Value, inference: Value| {
        desk.file("model.safetensors", &model(architecture, config, inference).expect("it is one"))
    };
    fails(2, &["--mode slices", "inference.patch"], &made("unet2d", json!({"base": 2}), json!({})));
    fails(2, &["--mode slices", "divisible"], &made("attention_unet2d", json!({"base": 2}), json!({"patch": [16, 40]})));
    let swin = json!({"image": 32, "embed_dim": 8, "depths": [2, 2], "heads": [1, 2], "window": 4});
    fails(2, &["--mode slices", "32x32"], &made("swin_unet", swin.clone(), json!({"patch": [16, 32]})));
    // a patch that the planes of the network are too small for after four poolings
    fails(3, &["15x20"], &made("unet2d", json!({"base": 2}), json!({"patch": [15, 20]})));
    fails(5, &["22x60000x60000 voxels", "bytes"], &made("unet2d", json!({"base": 2}), json!({"patch": [60000, 60000]})));
    for (architecture, config, patch, word) in [
        ("unet2d", json!({"base": 2}), Value::Null, "inference.patch"),
        ("swin_unet", swin, json!([16, 32]), "32x32"),
        ("swin_unet", json!({"image": 30}), Value::Null, "image"),
    ] {
        let e = model(architecture, config, json!({"mode": "slices", "patch": patch})).expect_err("it is none").to_string();
        assert!(e.contains(word), "{e}");
    }
    // windows are still to be had
    let swin = json!({"image": 16, "embed_dim": 8, "depths": [2, 2], "heads": [1, 2], "window": 2, "classes": 2});
    let model = made("swin_unet", swin, json!({}));
    let args = ["segment", &scan, "--model", &model, "--output", &desk.out("labels.nii"), "--mode", "window", "--device", "cpu", "--raw"];
    assert!(done_json(&args)["windows"]["count"].as_u64() > Some(1));
}

/// A network of four poolings that floor: small planes are padded with zeros for it, and `infer` refuses them.
#[test]
fn planes_that_pooling_would_leave_nothing_of_are_padded() {
    let desk = Desk::new();
    let card = r#"{"architecture":"unet2d","config":{"base":4,"classes":3}}"#;
    let model = desk.file("model.safetensors", &random_weights(card, 2).expect("it is one"));
    let whole = nifti::read(desk.crop("whole.nii.gz")).expect("the scan is read");
    let extent = organum::Extent::new(5, 20, 9);
    let part = resample::crop(&whole.image, organum::Extent::new(3, 0, 4), extent).expect("it lies inside");
    let mut header = whole.header;
    header.dim = [3, 9, 20, 5, 1, 1, 1, 1];
    let scan = desk.path("in", "scan.nii.gz");
    nifti::write_maps(&scan, &header, &part).expect("it is written");
    let (labels, x, y) = (desk.out("labels.nii.gz"), desk.path("in", "x.npy"), desk.path("in", "y.npy"));
    for device in devices() {
        let args = ["segment", &scan, "--model", &model, "--output", &labels, "--raw"];
        let report = done_json(&[args.as_slice(), &device].concat());
        assert_eq!(report["plan"]["extent"], json!([5, 20, 16]));
        let written = nifti::read_labels(&labels).expect("the labels are read").1;
        assert_eq!((written.extent, written.axes), (extent, part.axes));
        for z in 0..5 {
            // three columns of zeros in front and four behind
            let padded: Vec<f32> =
                part.data[z * 180..][..180].chunks_exact(9).flat_map(|row| [&[0.0; 3], row, &[0.0; 4]].concat()).collect();
            desk.file("x.npy", &npy(&[1, 1, 20, 16], &padded));
            done(&[["infer", "--model", &model, "--input", &x, "--output", &y].as_slice(), &device].concat());
            let found = organum::scores::argmax(&read_npy(&y).1, 3);
            let inner: Vec<u16> = found.chunks_exact(16).flat_map(|row| row[3..12].to_vec()).collect();
            assert_eq!(inner, written.data[z * 180..][..180]);
        }
        std::fs::remove_file(&labels).expect("it is removed");
    }
    desk.file("x.npy", &npy(&[1, 1, 20, 9], &part.data[..180]));
    desk.fails(3, &["1x20x9"], &["infer", "--model", &model, "--input", &x, "--output", &desk.out("no.npy"), "--device", "cpu"]);
    // a scan of one voxel
    let one = organum::Extent::new(1, 1, 1);
    header.dim = [3, 1, 1, 1, 1, 1, 1, 1];
    nifti::write_maps(&scan, &header, &resample::crop(&part, one, one).expect("a voxel")).expect("it is written");
    let report = done_json(&["segment", &scan, "--model", &model, "--output", &labels, "--device", "cpu", "--raw"]);
    assert_eq!(report["plan"]["extent"], json!([1, 16, 16]));
}
