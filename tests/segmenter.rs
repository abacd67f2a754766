//! `Segmenter` as a program that embeds organum meets it, on the host.
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use organum::model::{Card, Mode, random_weights};
use organum::segment::{PreparedScan, Scores};
use organum::volume::{Volume, nifti};
use organum::{
    Cancel, Device, Extent, HostPlace, LoadErrorKind, LoadOptions, Model, PlanErrorKind, RunOptions, Scan, SegmentError, SegmentOptions,
    Segmentation, Segmenter, open,
};
use serde_json::{Value, json};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/hippocampus_u_transformer.safetensors");
const SCAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/mni152_hippocampus_right.nii.gz");
const LABELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/mni152_hippocampus_right_labels.nii.gz");

fn segmenter(options: SegmentOptions) -> Segmenter {
    let model = open(MODEL, &LoadOptions::default()).expect("the bundled model opens");
    Segmenter::new(model, Device::Host, options).expect("the options suit the model")
}

fn scan() -> nifti::Scan {
    nifti::read(SCAN).expect("the bundled scan is read")
}

/// A model of random weights.
fn random(card: &str) -> Model {
    Model::from_bytes(random_weights(card, 1).expect("the card is one")).expect("the model is one")
}

fn is_send<T: Send>(value: T) -> T {
    value
}

#[test]
fn labels_are_those_of_pytorch_and_the_session_is_kept() {
    let scan = scan();
    let (_, expected) = nifti::read_labels(LABELS).expect("the bundled labels are read");
    let mut segmenter = segmenter(SegmentOptions::default());
    let run = is_send(segmenter.segment(&scan, RunOptions::default()));
    let first = pollster::block_on(run).expect("the scan is segmented");
    assert!(first.labels.data == expected.data && first.labels.axes == scan.image.axes);
    assert!(first.probabilities.is_none() && first.attention.is_none());
    let report = &first.report;
    assert!(report.run.planning.as_nanos() > 0 && report.run.plan.peak_bytes > 0);
    assert!(report.windows.is_none() && report.slices.is_none() && report.folds.is_none());
    let names: Vec<&str> = first.volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["anterior hippocampus", "posterior hippocampus"]);
    let counted = expected.data.iter().filter(|&&l| l == 1).count() as u64;
    assert_eq!((first.volumes[0].class, first.volumes[0].voxels), (1, counted));

    // voxels of one's own, and neither plan nor session anew
    let second = segmenter.segment_blocking(&scan.image, RunOptions::default()).expect("it is segmented again");
    assert!(second.labels == first.labels && second.report.run.planning.is_zero());
    segmenter.close();
    let third = segmenter.segment_blocking(&scan, RunOptions::default()).expect("it is segmented again");
    assert!(third.labels == first.labels && !third.report.run.planning.is_zero());
}

#[test]
fn probabilities_and_attention_are_returned_when_asked_for() {
    let scan = scan();
    let options = SegmentOptions::default().with_probabilities().with_attention().with_profile();
    let result = segmenter(options).segment_blocking(&scan, RunOptions::default()).expect("it is segmented");
    let maps = result.probabilities.expect("probabilities were asked for").to_volume().expect("they are computed");
    assert_eq!((maps.channels, maps.extent), (3, scan.image.extent));
    assert_eq!(organum::scores::argmax(&maps.data, 3), result.labels.data);
    let attention = result.attention.expect("attention was asked for");
    assert!(!attention.maps.is_empty() && attention.tokens.is_none());
    assert!((0..3).all(|a| attention.at[a] < attention.image.extent.axes()[a]));
    assert!(result.report.run.profile.is_some_and(|profile| profile.seconds() > 0.0));
}

#[test]
fn cancelling_leaves_the_segmenter_usable_and_progress_ends_at_the_total() {
    let scan = scan();
    let mut segmenter = segmenter(SegmentOptions::default());
    let cancel = Cancel::new();
    cancel.raise();
    let how = RunOptions::default().with_cancel(cancel);
    let stopped = segmenter.segment_blocking(&scan, how).expect_err("it is cancelled");
    assert!(stopped.is_cancelled(), "{stopped}");
    let mut seen = Vec::new();
    let mut show = |p: organum::Progress| seen.push((p.done, p.total));
    let how = RunOptions::default().with_progress(&mut show);
    segmenter.segment_blocking(&scan, how).expect("it is segmented");
    assert!(seen.windows(2).all(|w| w[0].0 <= w[1].0), "{seen:?}");
    assert!(seen.last().is_some_and(|&(done, total)| done == total && total > 0), "{seen:?}");
}

#[test]
fn what_does_not_suit_is_refused() {
    let scan = scan();
    let of = |card: &str, options: SegmentOptions| Segmenter::new(random(card), Device::Host, options);
    let option = |card: &str, options: SegmentOptions, words: [&str; 2]| {
        let e = of(card, options).map(|_| ()).expect_err("it is refused");
        let SegmentError::Option { option, message } = &e else { panic!("{e}") };
        assert!(option == words[0] && message.contains(words[1]), "{e}");
    };
    let unet = r#"{"architecture":"unet2d","config":{"base":2,"classes":2},"input":{"axes":"SAR"}}"#;
    let with = SegmentOptions::default;
    option(unet, with().with_attention(), ["attention", "no attention gates"]);
    option(unet, with().with_mode(Mode::Slices), ["mode slices", "inference.patch"]);
    option(unet, with().with_attention().with_mode(Mode::Window), ["attention", "volume tokens"]);

    let mut windows = of(unet, with().with_mode(Mode::Window)).expect("windows are asked for");
    let e = windows.segment_blocking(&scan, RunOptions::default()).expect_err("the card names no patch");
    assert!(matches!(&e, SegmentError::Option { option, .. } if option == "mode window"), "{e}");

    // a scan of two channels, and a budget that is too small
    let two = Volume::new(2, Extent::new(1, 16, 16), [1.0; 3], scan.image.axes, vec![0.0; 512]).expect("voxels");
    let e = segmenter(with()).segment_blocking(&two, RunOptions::default()).expect_err("one channel");
    assert!(matches!(&e, SegmentError::Volume(_)) && e.to_string().contains("2 channels"), "{e}");
    let mut tight = segmenter(with().with_budget(1 << 20));
    let e = tight.segment_blocking(&scan, RunOptions::default()).expect_err("it does not fit");
    assert!(matches!(&e, SegmentError::Plan(e) if e.kind() == PlanErrorKind::Budget), "{e}");

    // a model that says nothing of the scan, unless voxels go in as they are
    let silent = r#"{"architecture":"unet2d","config":{"base":2,"classes":2}}"#;
    let refused = of(silent, with()).expect("it is one").check(&scan).expect_err("it says nothing");
    assert!(matches!(&refused, SegmentError::Load(e) if e.kind() == LoadErrorKind::Undetermined), "{refused}");
    let mut raw = of(silent, with().with_raw_voxels()).expect("it is one");
    raw.segment_blocking(&scan, RunOptions::default()).expect("voxels as they are");
}

#[test]
fn grey_scans_go_to_networks_of_three_channels() {
    let card = r#"{"architecture":"swin_unet","config":{"image":32,"embed_dim":8,"depths":[2,2],"heads":[1,2],
        "window":4,"classes":3},"input":{"axes":"SAR"}}"#;
    let mut segmenter = Segmenter::new(random(card), Device::Host, SegmentOptions::default()).expect("it is one");
    let axes = "SAR".parse().expect("axes");
    let wave = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
    let voxels = |channels: u32, data| Volume::new(channels, Extent::new(2, 40, 40), [1.0; 3], axes, data);
    let grey = voxels(1, wave(3200)).expect("voxels");
    let three = voxels(3, wave(3200).repeat(3)).expect("voxels");
    let mut labels = |volume: &Volume<f32>| segmenter.segment_blocking(Scan::from(volume), RunOptions::default()).expect("it is segmented");
    let [a, b, c] = [labels(&grey), labels(&three), labels(&grey)];
    assert!(a.labels == c.labels);
    let differing = a.labels.data.iter().zip(&b.labels.data).filter(|(a, b)| a != b).count();
    assert!(differing * 100 <= a.labels.data.len(), "{differing} voxels differ");
    assert_eq!(a.report.slices, Some((2, [32, 32])));
}

/// A copy of a folder of vectors.
fn copied(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder is made");
    for entry in fs::read_dir(from).expect("it is a folder") {
        let path = entry.expect("it can be listed").path();
        let target = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() { copied(&path, &target) } else { fs::copy(&path, &target).map(|_| ()).expect("copied") }
    }
}

#[test]
fn models_of_nnunet_are_opened_at_any_level() {
    let vectors = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    let folds = |path: &Path| open(path, &LoadOptions::default()).map(|n| n.folds().to_vec());
    for (name, levels, checkpoint) in [
        ("nnunet", "results/Dataset001_Organ/nnUNetTrainer__nnUNetPlans__3d_fullres", "checkpoint_final.pth"),
        ("nnunet_v1", "results/nnUNet/3d_fullres/Task001/nnUNetTrainerV2__nnUNetPlansv2.1", "model_final_checkpoint.model"),
    ] {
        let out = tempfile::tempdir().expect("a folder");
        let model = out.path().join(levels);
        copied(&vectors(name).join("model"), &model);
        let all = folds(&model).expect("the model opens");
        let mut above: PathBuf = model.clone();
        while above != out.path() {
            assert_eq!(folds(&above).expect("the model is found"), all, "{}", above.display());
            above.pop();
        }
        let fold = model.join(format!("fold_{}", all[0]));
        assert_eq!(folds(&fold).expect("a fold is opened"), [all[0].clone()]);
        assert_eq!(folds(&fold.join(checkpoint)).expect("a checkpoint is opened"), [all[0].clone()]);

        let other = model.with_file_name(format!("other__{name}__3d_fullres"));
        copied(&model, &other);
        let e = folds(&out.path().join("results")).expect_err("there are two").to_string();
        assert!(e.contains("holds 2 trained models") && e.contains("other__") && e.contains("name one"), "{e}");
    }
    let empty = tempfile::tempdir().expect("a folder");
    let e = folds(empty.path()).expect_err("there is none");
    assert_eq!(e.kind(), LoadErrorKind::NotFound);
}

/// Scans of the vectors of nnU-Net, v1 and v2, and of MONAI's bundles, with their cards.
fn cards_of_others() -> Vec<(Card, nifti::Scan)> {
    let vectors = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    let files = |case: &Path, name: &str| -> Vec<PathBuf> {
        (0..4).map(|c| case.join(format!("{name}_{c:04}.nii.gz"))).filter(|file| file.exists()).collect()
    };
    let card = |path: &Path| open(path, &LoadOptions::default()).expect("the model opens").first.card().clone();
    let read = |files: Vec<PathBuf>| nifti::read_channels(&files).expect("the scan is read");
    let mut cases: Vec<(Card, nifti::Scan)> =
        ["nnunet", "nnunet_v1"].map(|name| (card(&vectors(name).join("model")), read(files(&vectors(name), "case")))).into();
    for case in fs::read_dir(vectors("monai")).expect("a folder") {
        let case = case.expect("it can be listed").path();
        cases.push((card(&case.join("bundle")), read(files(&case, "scan"))));
    }
    cases.push((Model::load(MODEL).expect("the bundled model loads").card().clone(), scan()));
    cases
}

#[test]
fn a_recipe_in_the_card_does_what_the_older_keys_do() {
    for (card, scan) in cards_of_others() {
        let mut json = serde_json::to_value(&card).expect("JSON");
        let recipe = serde_json::to_value(card.input.recipe()).expect("JSON");
        json["input"] = json!({"channels": card.input.channels, "recipe": recipe});
        let same: Card = serde_json::from_value(json.clone()).expect("it is a card");
        organum::model::architecture(&json.to_string()).expect("the card is checked");
        assert_eq!(same.input.recipe(), card.input.recipe());
        assert!(same.input.is_told());
        let [a, b] = [&card, &same].map(|card| PreparedScan::new(card, &scan, Mode::Window).expect("it is prepared"));
        assert!(a.volume() == b.volume(), "{}", card.provenance);
        let voxels = a.volume().extent.voxels() as usize * card.classes() as usize;
        let logits: Vec<f32> = (0..voxels).map(|i| (i as f32 * 0.71).sin()).collect();
        let back = |p: &PreparedScan| {
            let (labels, maps) = p.restore(Scores::Logits(logits.clone()), true).expect("it comes back");
            (labels, maps.expect("probabilities were asked for").to_volume().expect("they are computed"))
        };
        assert!(back(&a) == back(&b), "{}", card.provenance);
    }
}

#[test]
fn recipes_that_cannot_be_are_refused() {
    let card = |input: Value| json!({"architecture": "unet2d", "config": {"classes": 2}, "input": input}).to_string();
    let refused = |input: Value, word: &str| {
        let e = organum::model::architecture(&card(input)).expect_err("it is refused");
        let told = format!("{e} {}", std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default());
        assert!(told.contains(word), "{told}");
    };
    let results = json!([{"result": "arg_max"}, {"result": "restore", "method": "half_pixel"}]);
    let good = json!({"version": 1, "steps": [{"step": "scale", "scheme": "zscore"}], "results": results});
    assert!(organum::model::architecture(&card(json!({"recipe": good}))).is_ok());
    refused(json!({"recipe": good, "axes": "RAS"}), "goes without axes");
    refused(json!({"recipe": {"version": 2, "steps": [], "results": results}}), "version 2");
    refused(json!({"recipe": {"version": 1, "steps": [{"step": "crop_nonzero"}], "results": results}}), "do not undo");
    refused(json!({"recipe": {"version": 1, "steps": [], "results": []}}), "no order");
    // averages of probabilities are those of nnU-Net v1's windows
    let orders = json!({"order": 1, "order_along": 0});
    let spline = json!({"version": 1,
        "steps": [{"step": "crop_nonzero"}, {"step": "resample", "method": "spline", "mm": [1.0, 1.0], "orders": orders}],
        "results": [{"result": "average", "half": false},
            {"result": "restore", "method": "spline", "orders": orders, "half": false}, {"result": "arg_max"}]});
    let json = json!({"architecture": "unet2d", "config": {"classes": 2}, "input": {"recipe": spline},
        "inference": {"scheme": "monai", "patch": [16, 16]}});
    let e = organum::model::architecture(&json.to_string()).expect_err("it is refused").to_string();
    assert!(e.contains("nnunet_v1"), "{e}");
}

#[test]
fn ways_back_take_what_they_are_for() {
    let [(nnunet, scan), ..] = &cards_of_others()[..] else { panic!("there are cases") };
    let prepared = PreparedScan::new(nnunet, scan, Mode::Window).expect("it is prepared");
    assert!(!prepared.takes_labels());
    let voxels = prepared.volume().extent.voxels() as usize;
    let e = prepared.restore(Scores::Labels(vec![0; voxels], None), false).expect_err("it takes scores");
    assert!(e.to_string().contains("brings scores back"), "{e}");
    assert!(prepared.restore(Scores::Logits(vec![0.0; 3]), false).is_err());
    let e = PreparedScan::new(nnunet, scan, Mode::Slices).expect_err("there are no slices");
    assert!(e.to_string().contains("slices"), "{e}");
}

#[test]
fn the_hosts_memory_is_bounded_and_a_scan_can_be_freed() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/nnunet");
    let files: Vec<PathBuf> = (0..4).map(|c| vectors.join(format!("case_{c:04}.nii.gz"))).filter(|file| file.exists()).collect();
    let scan = nifti::read_channels(&files).expect("the scan is read");
    let of = |options: SegmentOptions| {
        let model = open(vectors.join("model"), &LoadOptions::default()).expect("the model opens");
        Segmenter::new(model, Device::Host, options.with_probabilities()).expect("the options suit the model")
    };
    let maps = |result: &Segmentation| {
        let maps = result.probabilities.as_ref().expect("probabilities were asked for");
        maps.to_volume().expect("they are computed")
    };
    let mut free = of(SegmentOptions::default());
    let want = free.segment_blocking(&scan, RunOptions::default()).expect("it is segmented");
    let told = want.report.host_memory;
    assert!(told.budget.is_none() && told.place == HostPlace::Memory && told.file_bytes == 0);

    let prepared = free.prepare(&scan).expect("it is prepared").without_scan();
    let freed = free.segment_prepared_blocking(prepared, RunOptions::default()).expect("it is segmented");
    assert!(freed.labels == want.labels && maps(&freed) == maps(&want));
    assert_eq!(freed.warnings.len(), want.warnings.len());
    assert_eq!(freed.report.host_memory.scan_bytes + 4 * scan.image.data.len() as u64, told.scan_bytes);

    let refused = |options: SegmentOptions| {
        let e = of(options).segment_blocking(&scan, RunOptions::default()).expect_err("it does not fit");
        let SegmentError::Plan(e) = e else { panic!("{e}") };
        assert_eq!(e.kind(), PlanErrorKind::HostBudget, "{e}");
        (e.smallest_budget().expect("the smallest is named"), e.to_string())
    };
    let with = |bytes: u64| SegmentOptions::default().with_host_memory(bytes);
    let (preparing, text) = refused(with(1000));
    assert!(text.contains("to prepare the scan"), "{text}");
    let (smallest, _) = refused(with(preparing));
    let folder = tempfile::tempdir().expect("a folder");
    let (with_files, _) = refused(with(preparing).with_host_spill(folder.path()));
    assert!(with_files < smallest && smallest <= told.peak_bytes, "{with_files} {smallest} {told:?}");
    for (options, bytes) in [(with(smallest), smallest), (with(with_files).with_host_spill(folder.path()), with_files)] {
        let mut bounded = of(options);
        for _ in 0..2 {
            let result = bounded.segment_blocking(&scan, RunOptions::default()).expect("it fits");
            let told = result.report.host_memory;
            assert!(result.labels == want.labels && maps(&result) == maps(&want), "{told:?}");
            assert!(told.peak_bytes <= bytes && (told.place == HostPlace::Memory) == (bytes == smallest), "{told:?}");
            // no session is kept
            assert!(!result.report.run.planning.is_zero());
        }
    }
    assert_eq!(fs::read_dir(folder.path()).expect("it is a folder").count(), 0);
    let nowhere = with(with_files).with_host_spill(folder.path().join("nowhere"));
    let e = of(nowhere).segment_blocking(&scan, RunOptions::default()).expect_err("there is no such folder");
    assert!(matches!(&e, SegmentError::Option { option, .. } if option == "host-spill"), "{e}");
}

#[test]
fn options_change_between_scans() {
    let scan = scan();
    let mut segmenter = segmenter(SegmentOptions::default());
    let run = |segmenter: &mut Segmenter| segmenter.segment_blocking(&scan, RunOptions::default()).expect("it is segmented");
    let first = run(&mut segmenter);
    // the session is kept where plan and precision are the same
    segmenter.set_options(SegmentOptions::default()).expect("they suit the model");
    assert!(run(&mut segmenter).report.run.planning.is_zero());
    let bounded = SegmentOptions::default().with_budget(first.report.run.plan.smallest_budget);
    segmenter.set_options(bounded.clone()).expect("they suit the model");
    let second = run(&mut segmenter);
    assert!(second.labels == first.labels && !second.report.run.planning.is_zero());
    assert!(second.report.run.plan.peak_bytes < first.report.run.plan.peak_bytes);
    segmenter.set_options(bounded.clone().with_precision(organum::Elem::F16)).expect("they suit the model");
    assert!(!run(&mut segmenter).report.run.planning.is_zero());
    // what is refused changes nothing
    segmenter.set_options(bounded).expect("they suit the model");
    let refused = segmenter.set_options(SegmentOptions::default().with_mode(Mode::Slices)).err();
    assert!(matches!(refused, Some(SegmentError::Option { .. })));
    assert_eq!(run(&mut segmenter).report.run.plan.peak_bytes, second.report.run.plan.peak_bytes);
    assert_eq!(segmenter.device().name(), "cpu");
}
