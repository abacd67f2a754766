//! Sliding windows against loops that follow nnU-Net's and MONAI's, and windows of FINE against networks made for their places.
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_possible_wrap, reason = "tests")]

mod support;

use std::sync::Arc;

use organum::tiling::{Blend, TileWeights};
use organum::{
    Blended, Cancel, DeviceCaps, Elem, Engine, Extent, Input, Model, OutputData, OutputMode, Plan, PlanOptions, RunErrorKind, RunOptions,
    Session, Windows,
};
use support::engine;

/// nnU-Net's plain network in small, on windows of 4x8x8.
fn card(inference: &str) -> String {
    format!(
        r#"{{"architecture":"plain_conv_unet","config":{{"dims":3,"in_channels":2,"classes":3,"features":[4,6],
        "kernels":[[3,3,3],[3,3,3]],"strides":[[1,1,1],[2,2,2]],"convs_per_stage":1}},"inference":{inference}}}"#
    )
}

fn fine(more: &str) -> String {
    format!(
        r#"{{"architecture":"fine","config":{{"crop":[16,32,32],"classes":2,"embed_dim":8,"heads":[1,2],"depths":[3,3],"window":[4,4],
        "volume_grid":[3,3,3],"max_extent":[48,96,96]}},"inference":{{"mirror":[2]{more}}}}}"#
    )
}

fn values(extent: Extent, channels: u32) -> Vec<f32> {
    let n = extent.voxels() as usize * channels as usize;
    (0..n).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 300.0).collect()
}

fn session(engine: Option<&Engine>, model: &Model, tile: Extent, budget: Option<u64>) -> Session {
    let mut options = PlanOptions::default().with_output(OutputMode::Logits);
    options.budget = budget;
    let caps = engine.map_or_else(DeviceCaps::host, |e| e.caps().clone());
    let plan = Plan::new(model, tile, &caps, &options).expect("there is a plan");
    match engine {
        Some(engine) => pollster::block_on(Session::new(engine, model, plan)).expect("it is opened"),
        None => Session::on_host(model, plan).expect("it is opened"),
    }
}

fn logits(session: &mut Session, input: Input<'_>) -> Vec<f32> {
    match session.run_blocking(input, RunOptions::default()).expect("it runs").swap_remove(0).data {
        OutputData::Map(values) => values,
        OutputData::Labels(_) => panic!("asked for logits"),
    }
}

fn blended(windows: &Windows, session: &mut Session, model: &Model, input: Input<'_>) -> Blended {
    pollster::block_on(windows.run(session, model, input, true, RunOptions::default())).expect("windows run")
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = x.iter().map(|v| (v - most).exp()).sum();
    x.iter().map(|v| (v - most).exp() / total).collect()
}

/// Begins of tiles along an axis, and the axes that are mirrored.
struct Expected<'a> {
    starts: [&'a [i64]; 3],
    mirror: &'a [usize],
    blend: Blend,
    /// Probabilities are averaged, not logits.
    probabilities: bool,
}

/// Probabilities of every voxel, by loops over tiles, mirror images and voxels, in f64.
fn direct(expected: &Expected<'_>, tile: Extent, input: Input<'_>, mut network: impl FnMut([i64; 3], Vec<f32>) -> Vec<f32>) -> Vec<f64> {
    let ([n_d, n_h, n_w], [d, h, w]) = (input.extent.axes().map(i64::from), tile.axes().map(i64::from));
    let weights = TileWeights::new(expected.blend, tile);
    let mut sums: Vec<Vec<f64>> = vec![Vec::new(); (n_d * n_h * n_w) as usize];
    let mut total = vec![0.0; sums.len()];
    let voxels = |[d, h, w]: [i64; 3]| (0..d).flat_map(move |z| (0..h).flat_map(move |y| (0..w).map(move |x| [z, y, x])));
    let inside = |[z, y, x]: [i64; 3]| (0..n_d).contains(&z) && (0..n_h).contains(&y) && (0..n_w).contains(&x);
    // as sums are stored
    let rounded = |v: f64| if expected.blend == Blend::NnUnetHalf { half::f16::from_f64(v).to_f64() } else { v };
    let starts = expected.starts;
    for from in starts[0].iter().flat_map(|&z| starts[1].iter().flat_map(move |&y| starts[2].iter().map(move |&x| [z, y, x]))) {
        let place = |v: [i64; 3]| [from[0] + v[0], from[1] + v[1], from[2] + v[2]];
        let mut mean: Vec<Vec<f64>> = vec![Vec::new(); (d * h * w) as usize];
        for subset in 0..1 << expected.mirror.len() {
            let flipped = |axis: usize| expected.mirror.iter().position(|&m| m == axis).is_some_and(|i| subset >> i & 1 == 1);
            let turn = |v: [i64; 3]| [0, 1, 2].map(|a| if flipped(a) { [d, h, w][a] - 1 - v[a] } else { v[a] });
            let source = |c: i64, [z, y, x]: [i64; 3]| input.data[(((c * n_d + z) * n_h + y) * n_w + x) as usize];
            let value = |c: i64, at: [i64; 3]| if inside(at) { source(c, at) } else { 0.0 };
            let crop =
                (0..i64::from(input.channels)).flat_map(|c| voxels([d, h, w]).map(move |v| (c, v))).map(|(c, v)| value(c, place(turn(v))));
            let out = network(from, crop.collect());
            let classes = out.len() as i64 / (d * h * w);
            for (sum, v) in mean.iter_mut().zip(voxels([d, h, w])) {
                let [z, y, x] = turn(v);
                let all: Vec<f64> = (0..classes).map(|c| f64::from(out[(((c * d + z) * h + y) * w + x) as usize])).collect();
                let all = if expected.probabilities { softmax(&all) } else { all };
                sum.resize(all.len(), 0.0);
                sum.iter_mut().zip(all).for_each(|(s, v)| *s += v / f64::from(1 << expected.mirror.len()));
            }
        }
        for (mean, v) in mean.iter().zip(voxels([d, h, w])).filter(|(_, v)| inside(place(*v))) {
            let weight = f64::from(weights.at(v[0] as usize, v[1] as usize, v[2] as usize));
            let [z, y, x] = place(v);
            let voxel = ((z * n_h + y) * n_w + x) as usize;
            sums[voxel].resize(mean.len(), 0.0);
            sums[voxel].iter_mut().zip(mean).for_each(|(s, v)| *s = rounded(*s + v * weight));
            total[voxel] = rounded(total[voxel] + weight);
        }
    }
    let classes = sums[0].len();
    let means: Vec<Vec<f64>> = sums.iter().zip(total).map(|(s, t)| s.iter().map(|s| s / t).collect()).collect();
    let means: Vec<Vec<f64>> = if expected.probabilities { means } else { means.iter().map(|m| softmax(m)).collect() };
    (0..classes).flat_map(|c| means.iter().map(move |m| m[c])).collect()
}

fn compare(what: &str, got: &Blended, expected: &[f64], bound: f64) {
    let maps = got.probabilities.as_ref().expect("asked for");
    let worst = maps.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
    assert!(maps.len() == expected.len() && worst <= bound, "{what}: probabilities differ by {worst:e}");
    let n = got.labels.len();
    for (i, &label) in got.labels.iter().enumerate() {
        let highest = (0..expected.len() / n).map(|c| expected[c * n + i]).fold(0.0, f64::max);
        assert!(expected[label as usize * n + i] >= highest - 2.0 * bound, "voxel {i} is labelled {label}");
    }
}

#[test]
fn every_scheme_is_the_loops_it_stands_for() {
    let image = Extent::new(7, 12, 5);
    let data = values(image, 2);
    let input = Input { channels: 2, extent: image, data: &data };
    let tile = Extent::new(4, 8, 8);
    // 7 by 4: gaps of 1.5, ties to even; 12 by 8: one gap of 4; 5 is padded by 1 before and 2 after
    let (evenly, fixed): ([&[i64]; 3], [&[i64]; 3]) = ([&[0, 2, 3], &[0, 4], &[-1]], [&[0, 2, 3], &[0, 4], &[-1]]);
    for (scheme, mirror, expected, bound) in [
        ("nnunet_v1", "true", Expected { starts: evenly, mirror: &[0, 1, 2], blend: Blend::NnUnet, probabilities: true }, 1e-5),
        // sums in 16-bit floats
        ("nnunet_v2", "[1]", Expected { starts: evenly, mirror: &[1], blend: Blend::NnUnetHalf, probabilities: false }, 5e-3),
        ("monai", "false", Expected { starts: fixed, mirror: &[], blend: Blend::Constant, probabilities: false }, 1e-5),
        ("monai_gaussian", "[0,2]", Expected { starts: fixed, mirror: &[0, 2], blend: Blend::Monai, probabilities: false }, 1e-5),
    ] {
        let card = card(&format!(r#"{{"mode":"window","patch":[4,8,8],"scheme":"{scheme}","mirror":{mirror}}}"#));
        let model = Model::random(&card, 11).expect("it is one");
        let windows = Windows::new(model.card(), image).expect("there are windows");
        assert_eq!((windows.tile(), windows.count(), windows.passes()), (tile, 6, 6 << expected.mirror.len()), "{scheme}");
        let mut one = session(None, &model, tile, None);
        let expected = direct(&expected, tile, input, |_, crop| logits(&mut one, Input { channels: 2, extent: tile, data: &crop }));
        let host = blended(&windows, &mut session(None, &model, tile, None), &model, input);
        compare(scheme, &host, &expected, bound);
        let Some(engine) = engine() else { continue };
        let device = blended(&windows, &mut session(Some(engine), &model, tile, None), &model, input);
        compare(scheme, &device, &expected, bound.max(2e-5));
        let smallest = Plan::new(&model, tile, engine.caps(), &PlanOptions::default().with_output(OutputMode::Logits)).expect("a plan");
        let budget = Some(smallest.report().smallest_budget);
        assert_eq!(blended(&windows, &mut session(Some(engine), &model, tile, budget), &model, input), device, "{scheme}: other bits");
    }
}

/// Every window of FINE is the network that was made for its position, mirrored or not, and volume tokens that were seen stay
/// visited where the card asks for it.
#[test]
fn windows_know_their_place_in_the_volume() {
    let image = Extent::new(16, 80, 64);
    let tile = Extent::new(16, 32, 32);
    let data = values(image, 1);
    let input = Input { channels: 1, extent: image, data: &data };
    let mut maps = Vec::new();
    for more in ["", r#","accumulate_visited":true"#] {
        let model = || Model::random(&fine(more), 4).expect("it is one");
        let windows = Windows::new(model().card(), image).expect("there are windows");
        let places: Vec<_> = windows.places().collect();
        assert_eq!((places.len(), places[0], places[11]), (12, [0, 0, 0], [0, 48, 32]));
        assert_eq!((windows.position(places[0]), windows.position(places[11])), ([0, -24, -16], [0, 24, 16]));
        let centre = |from: [i64; 3]| [from[0], from[1] + 16 - 40, from[2] + 16 - 32];
        let mut visited: Vec<u32> = Vec::new();
        let mut last = None;
        let expected = Expected { starts: [&[0], &[0, 16, 32, 48], &[0, 16, 32]], mirror: &[2], blend: Blend::NnUnet, probabilities: true };
        let expected = direct(&expected, tile, input, |from, crop| {
            let position = centre(from);
            let here = model().with_position(position).and_then(|m| m.with_visited(&visited)).expect("it has volume tokens");
            let out = logits(&mut session(None, &here, tile, None), Input { channels: 1, extent: tile, data: &crop });
            // the second mirror image of a window is its last
            if !more.is_empty() && last.replace(from) == Some(from) {
                visited.extend(here.current_tokens(position).expect("it has volume tokens"));
            }
            out
        });
        let model = model();
        let host = blended(&windows, &mut session(None, &model, tile, None), &model, input);
        compare(more, &host, &expected, 1e-5);
        if let Some(engine) = engine() {
            let mut moving = session(Some(engine), &model, tile, None);
            // with norms over few channels and weights that were not trained, rounding grows
            compare(more, &blended(&windows, &mut moving, &model, input), &expected, 2e-3);
            // a session that was moved is one that was made there
            pollster::block_on(moving.place(&model, [0, 10, -5], &[8])).expect("it is moved");
            let crop = windows.crop(&input, [0, 3, 7], [false; 3]);
            let input = Input { channels: 1, extent: tile, data: &crop };
            let there = Model::random(&fine(more), 4).and_then(|m| m.with_position([0, 10, -5])).and_then(|m| m.with_visited(&[8]));
            let mut made = session(Some(engine), &there.expect("it has volume tokens"), tile, None);
            assert!(logits(&mut moving, input) == logits(&mut made, input), "other bits after a move");
            let error = pollster::block_on(moving.place(&model, [0; 3], &[99])).expect_err("there are nine tokens");
            assert_eq!(error.kind(), RunErrorKind::InputMismatch);
        }
        maps.push(host.probabilities.expect("asked for"));
    }
    assert!(maps[0] != maps[1], "what was visited before does not matter");
}

/// Each plane of a volume is an image of its own for a 2D network, in windows too.
#[test]
fn planar_networks_take_all_planes_of_a_window() {
    let card = card(r#"{"patch":[8,8],"scheme":"monai","mode":"window"}"#)
        .replace(r#""dims":3"#, r#""dims":2"#)
        .replace("[3,3,3]", "[3,3]")
        .replace("[1,1,1]", "[1,1]")
        .replace("[2,2,2]", "[2,2]");
    let model = Model::random(&card, 2).expect("it is one");
    let image = Extent::new(3, 12, 8);
    let data = values(image, 2);
    let windows = Windows::new(model.card(), image).expect("there are windows");
    assert_eq!((windows.tile(), windows.count()), (Extent::new(3, 8, 8), 2));
    let whole =
        blended(&windows, &mut session(None, &model, windows.tile(), None), &model, Input { channels: 2, extent: image, data: &data });
    for z in 0..3 {
        let plane: Vec<f32> = (0..2).flat_map(|c| data[(c * 3 + z) * 96..][..96].to_vec()).collect();
        let extent = Extent::new(1, 12, 8);
        let windows = Windows::new(model.card(), extent).expect("there are windows");
        let input = Input { channels: 2, extent, data: &plane };
        let one = blended(&windows, &mut session(None, &model, windows.tile(), None), &model, input);
        assert_eq!(one.labels, whole.labels[z * 96..][..96]);
    }
}

#[test]
fn progress_rises_and_windows_can_be_cancelled() {
    let model = Model::random(&card(r#"{"patch":[4,8,8],"mirror":true}"#), 1).expect("it is one");
    let image = Extent::new(6, 12, 8);
    let data = values(image, 2);
    let input = Input { channels: 2, extent: image, data: &data };
    let windows = Windows::new(model.card(), image).expect("there are windows");
    let mut session = session(None, &model, windows.tile(), None);
    let mut seen = Vec::new();
    let mut show = |p: organum::Progress| seen.push((p.done, p.total));
    pollster::block_on(windows.run(&mut session, &model, input, false, RunOptions::default().with_progress(&mut show))).expect("it runs");
    assert!(seen.windows(2).all(|w| w[0].0 <= w[1].0) && seen.last().is_some_and(|p| p.0 == p.1), "{seen:?}");
    let cancel = Cancel::new();
    let raise = cancel.clone();
    let mut stop = |p: organum::Progress| {
        if p.done * 2 > p.total {
            raise.raise();
        }
    };
    let options = RunOptions::default().with_progress(&mut stop).with_cancel(cancel);
    let error = pollster::block_on(windows.run(&mut session, &model, input, false, options)).expect_err("it was cancelled");
    assert_eq!(error.kind(), RunErrorKind::Cancelled);
}

#[test]
fn windows_that_cannot_be_are_refused() {
    let image = Extent::new(7, 12, 5);
    let windows = |inference: &str| Windows::new(Model::random(&card(inference), 1).expect("it is one").card(), image);
    for (inference, word) in [("{}", "inference.patch"), (r#"{"patch":[4,8,7]}"#, "divisible"), (r#"{"patch":[4,70000,8]}"#, "65535")] {
        let error = windows(inference).expect_err("it cannot be").to_string();
        assert!(error.contains(word), "{error}");
    }
    for inference in [
        r#"{"patch":[4]}"#,
        r#"{"patch":[0,8,8]}"#,
        r#"{"overlap":1.0}"#,
        r#"{"overlap":-0.1}"#,
        r#"{"mirror":[3]}"#,
        r#"{"mirror":[1,1]}"#,
        r#"{"mode":"slices"}"#,
        r#"{"scheme":"other"}"#,
    ] {
        assert!(Model::random(&card(inference), 1).is_err(), "{inference}");
    }
    let model = Model::random(&fine(""), 1).expect("it is one");
    let windows = Windows::new(model.card(), Extent::new(16, 40, 32)).expect("there are windows");
    let data = values(Extent::new(16, 32, 32), 1);
    let input = Input { channels: 1, extent: Extent::new(16, 32, 32), data: &data };
    let mut session = session(None, &model, windows.tile(), None);
    let error = pollster::block_on(windows.run(&mut session, &model, input, false, RunOptions::default())).expect_err("another volume");
    assert_eq!(error.kind(), RunErrorKind::InputMismatch);
}

#[test]
fn sums_are_the_same_in_a_file() {
    let image = Extent::new(11, 13, 20);
    for scheme in ["nnunet_v1", "nnunet_v2", "monai", "monai_gaussian"] {
        for patch in ["[4,8,8]", "[16,8,12]", "[4,16,24]"] {
            let inference = format!(r#"{{"patch":{patch},"scheme":"{scheme}","mirror":[1]}}"#);
            let model = Model::random(&card(&inference), 3).expect("it is one");
            let data = values(image, 2);
            let input = Input { channels: 2, extent: image, data: &data };
            let windows = Windows::new(model.card(), image).expect("there are windows");
            let mut session = session(None, &model, windows.tile(), None);
            let mut run = |options| pollster::block_on(windows.logits(&mut session, &model, input, options)).expect("it runs");
            let want = run(RunOptions::default());
            let file = Arc::new(tempfile::tempfile().expect("a file"));
            for _ in 0..2 {
                // what the file holds from before does not matter
                let got = run(RunOptions::default().with_spill(Arc::clone(&file)));
                assert!(got == want, "{scheme} {patch}");
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn sums_that_do_not_fit_a_disk_end_the_run() {
    let image = Extent::new(6, 12, 8);
    let model = Model::random(&card(r#"{"patch":[4,8,8]}"#), 1).expect("it is one");
    let data = values(image, 2);
    let input = Input { channels: 2, extent: image, data: &data };
    let windows = Windows::new(model.card(), image).expect("there are windows");
    let mut session = session(None, &model, windows.tile(), None);
    let full = std::fs::File::options().read(true).write(true).open("/dev/full").expect("Linux has it");
    let options = RunOptions::default().with_spill(Arc::new(full));
    let error = pollster::block_on(windows.logits(&mut session, &model, input, options)).expect_err("it is full");
    assert_eq!(error.kind(), RunErrorKind::Io);
}

/// A session that sums windows where [`Windows::plan`] says, in so many bytes.
fn planned(engine: &Engine, windows: &Windows, model: &Model, labels: bool, options: &PlanOptions) -> Session {
    let plan = windows.plan(model, 2, labels, engine.caps(), options).expect("there is a plan");
    let (budget, peak) = (options.budget.unwrap_or(u64::MAX), plan.report().peak_bytes);
    assert!(peak <= budget, "{peak} bytes of {budget}");
    let session = pollster::block_on(Session::new(engine, model, plan)).expect("it is opened");
    assert_eq!(session.allocated_bytes(), peak);
    session
}

#[test]
fn the_device_sums_windows_with_the_bits_of_the_host() {
    let Some(engine) = engine() else { return };
    for (scheme, mirror, precision, image) in [
        ("nnunet_v2", "[0,2]", Elem::F32, Extent::new(7, 12, 5)),
        ("nnunet_v2", "false", Elem::F16, Extent::new(9, 20, 18)),
        ("monai", "[1]", Elem::F16, Extent::new(11, 12, 13)),
        ("monai_gaussian", "false", Elem::F32, Extent::new(7, 12, 5)),
    ] {
        let inference = format!(r#"{{"patch":[4,8,8],"overlap":0.5,"scheme":"{scheme}","mirror":{mirror}}}"#);
        let model = Model::random(&card(&inference), 5).expect("it is one");
        let windows = Windows::new(model.card(), image).expect("there are windows");
        let data = values(image, 2);
        let input = Input { channels: 2, extent: image, data: &data };
        let logits =
            |session: &mut Session| pollster::block_on(windows.logits(session, &model, input, RunOptions::default())).expect("windows run");
        let plain = PlanOptions::default().with_precision(precision).with_output(OutputMode::Logits);
        let plan = Plan::new(&model, windows.tile(), engine.caps(), &plain).expect("there is a plan");
        let mut host = pollster::block_on(Session::new(engine, &model, plan)).expect("it is opened");
        let mut device = planned(engine, &windows, &model, false, &plain);
        assert!(device.plan().report().windows_bytes > 0, "{scheme}: the host sums");
        let [ours, theirs] = [logits(&mut device), logits(&mut host)];
        let same = ours.iter().zip(&theirs).filter(|(a, b)| a.to_bits() == b.to_bits() || **a == 0.0 && **b == 0.0).count();
        assert_eq!(same, theirs.len(), "{scheme}: bits of scores");
        let labels = |session: &mut Session| {
            pollster::block_on(windows.run(session, &model, input, false, RunOptions::default())).expect("windows run").labels
        };
        let mut of_labels = planned(engine, &windows, &model, true, &plain);
        let expected = labels(&mut host);
        assert_eq!(labels(&mut of_labels), expected, "{scheme}: labels");
        let voxels = image.voxels();
        let downloaded = of_labels.downloaded_bytes();
        assert!(downloaded * 10 <= voxels * 11, "{scheme}: {downloaded} bytes of {voxels} voxels left the device");
        assert_eq!(labels(&mut of_labels), expected, "{scheme}: labels of a second run");
        assert_eq!(labels(&mut device), expected, "{scheme}: labels of scores");
    }
}

#[test]
fn the_device_sums_windows_where_there_is_room_for_it() {
    let Some(engine) = engine() else { return };
    let model = Model::random(&card(r#"{"patch":[4,8,8],"overlap":0.5,"scheme":"nnunet_v2"}"#), 5).expect("it is one");
    let image = Extent::new(9, 20, 18);
    let windows = Windows::new(model.card(), image).expect("there are windows");
    let data = values(image, 2);
    let input = Input { channels: 2, extent: image, data: &data };
    let mut seen = Vec::new();
    let mut labels = Vec::new();
    let wide = windows.plan(&model, 2, true, engine.caps(), &PlanOptions::default()).expect("there is a plan").report().clone();
    let least = wide.smallest_budget;
    for budget in [least, least + wide.windows_bytes / 2, wide.peak_bytes, wide.peak_bytes + (1 << 20)] {
        let mut session = planned(engine, &windows, &model, true, &PlanOptions::default().with_budget(budget));
        seen.push(session.plan().report().windows_bytes > 0);
        let run = windows.run(&mut session, &model, input, false, RunOptions::default());
        labels.push(pollster::block_on(run).expect("windows run").labels);
    }
    assert!(!seen[0] && seen[3], "{seen:?}");
    assert!(labels.iter().all(|l| *l == labels[0]), "labels depend on the budget");
}

#[test]
fn sessions_of_windows_tell_what_they_were_planned_for() {
    let Some(engine) = engine() else { return };
    let model = Model::random(&card(r#"{"patch":[4,8,8],"scheme":"monai"}"#), 5).expect("it is one");
    let image = Extent::new(8, 8, 8);
    let data = values(image, 2);
    let input = Input { channels: 2, extent: image, data: &data };
    let windows = Windows::new(model.card(), image).expect("there are windows");
    let mut session = planned(engine, &windows, &model, true, &PlanOptions::default());
    let refused = |e: organum::RunError, words: &str| {
        assert!(e.kind() == RunErrorKind::InputMismatch && e.to_string().contains(words), "{e}");
    };
    let scores = pollster::block_on(windows.logits(&mut session, &model, input, RunOptions::default()));
    refused(scores.expect_err("labels alone come back"), "not for scores");
    let tile = values(windows.tile(), 2);
    let once = session.run_blocking(Input { channels: 2, extent: windows.tile(), data: &tile }, RunOptions::default());
    refused(once.expect_err("it is no pass"), "planned for windows");
    let other = Windows::new(model.card(), Extent::new(8, 8, 9)).expect("there are windows");
    let data = values(Extent::new(8, 8, 9), 2);
    let of_other = Input { channels: 2, extent: Extent::new(8, 8, 9), data: &data };
    let run = other.run(&mut session, &model, of_other, false, RunOptions::default());
    refused(pollster::block_on(run).expect_err("another volume"), "was planned for windows over 2 channels of 8x8x8");
    // and again as it was meant
    pollster::block_on(windows.run(&mut session, &model, input, false, RunOptions::default())).expect("windows run");
    let mut broken = values(image, 2);
    broken[7] = f32::NAN;
    let input = Input { channels: 2, extent: image, data: &broken };
    let e = pollster::block_on(windows.run(&mut session, &model, input, false, RunOptions::default())).expect_err("NaN");
    assert_eq!(e.kind(), RunErrorKind::NonFinite);
}
