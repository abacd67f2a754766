//! `--profile`, and the file of compiled kernels in the user's cache folder.
#![allow(clippy::print_stdout, reason = "figures and skips belong to a test's output")]
#![allow(dead_code, reason = "the tests of the program share a desk")]

#[path = "support/desk.rs"]
mod desk;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use desk::*;

/// Arguments of `infer` on a small input.
fn infer(desk: &Desk, output: &str) -> Vec<String> {
    let values: Vec<f32> = (0..16 * 24 * 16u16).map(|i| f32::from(i % 251) / 125.0 - 1.0).collect();
    let input = desk.file("x.npy", &npy(&[1, 1, 16, 24, 16], &values));
    ["infer", "--model", MODEL, "--input", &input, "--output", &desk.out(output)].map(str::to_owned).to_vec()
}

fn with<'a>(args: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    args.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

#[test]
fn infer_tells_kernels_and_nodes_and_writes_the_same_bits() {
    let desk = Desk::new();
    for device in devices() {
        let plain = done_json(&with(&infer(&desk, "plain.npy"), &device));
        assert!(plain.get("profile").is_none());
        let args = [device.as_slice(), &["--profile", "--ceilings", "100,10"]].concat();
        let report = done_json(&with(&infer(&desk, "profiled.npy"), &args));
        let read = |name: &str| std::fs::read(desk.out(name)).expect("it was written");
        assert!(read("plain.npy") == read("profiled.npy"), "{device:?}: other bits");
        let profile = &report["profile"];
        has_keys(profile, &["clock", "seconds", "recording_seconds", "ceilings", "kernels", "nodes"]);
        assert_eq!(profile["ceilings"], json!({"gflops": 100.0, "gbytes": 10.0}));
        let seconds = profile["seconds"].as_f64().expect("a number");
        assert!(seconds > 0.0 && seconds <= report["seconds"]["run"].as_f64().expect("a number"));
        for list in ["kernels", "nodes"] {
            let rows = profile[list].as_array().expect("a list");
            let sum = |key: &str| rows.iter().map(|row| row[key].as_f64().expect("a number")).sum::<f64>();
            assert!((sum("seconds") - seconds).abs() < 1e-6 && (sum("share") - 1.0).abs() < 1e-6);
            assert_eq!(json!(sum("flops")), json!(report["plan"]["flops"].as_f64()));
            assert_eq!(json!(sum("count")), json!(report["plan"]["dispatches"].as_f64()));
            for row in rows {
                has_keys(row, &["kernel", "gflops", "gbytes", "share_of_flops", "share_of_bytes"]);
                assert_eq!(row.get("node").is_some(), list == "nodes");
                let (gflops, share) = (row["gflops"].as_f64().expect("a number"), row["share_of_flops"].as_f64().expect("a number"));
                assert!((gflops / 100.0 - share).abs() <= 1e-9 * gflops);
            }
        }
    }
}

#[test]
fn tables_name_what_shares_are_of() {
    let desk = Desk::new();
    let out = done(&with(&infer(&desk, "y.npy"), &["--device", "cpu", "--profile"]));
    assert!(out.contains("s in kernels, on the host; --ceilings") && out.contains("GFLOP/s"), "{out}");
    if has_adapter() {
        let out = done(&with(&infer(&desk, "y.npy"), &["--device", "0", "--profile"]));
        assert!(out.contains("; ceilings "), "{out}");
        assert!(out.lines().any(|line| line.starts_with("kernel ")) && out.lines().any(|line| line.starts_with("node ")), "{out}");
    }
    for (wrong, why) in [(&["--profile", "--ceilings", "1"][..], "not two numbers"), (&["--ceilings", "1,2"], "--profile")] {
        let output = run(&with(&infer(&desk, "z.npy"), wrong));
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(why));
    }
}

#[test]
fn segment_tells_a_profile_of_all_windows() {
    let desk = Desk::new();
    let scan = desk.crop("scan.nii.gz");
    let args = ["segment", &scan, "--model", MODEL, "--output", &desk.out("y.nii.gz"), "--device", "cpu", "--profile"];
    let report = done_json(&args);
    assert!(report["profile"]["seconds"].as_f64().is_some_and(|s| s > 0.0));
    assert_eq!((&report["profile"]["clock"], &report["profile"]["ceilings"]), (&json!("host"), &Value::Null));
}

/// Runs on the first adapter with a cache folder; what is in it afterwards.
fn cached(desk: &Desk, caches: &Path, more: &[&str], set: Option<&str>) -> Vec<PathBuf> {
    let mut program = program();
    program.env_remove("ORGANUM_NO_PIPELINE_CACHE").env("XDG_CACHE_HOME", caches);
    if let Some(value) = set {
        program.env("ORGANUM_NO_PIPELINE_CACHE", value);
    }
    let output = program.args(with(&infer(desk, "y.npy"), &["--device", "0"])).args(more).output().expect("the program starts");
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
    let list = std::fs::read_dir(caches.join("organum")).map(|list| list.map(|e| e.expect("an entry").path()).collect());
    list.unwrap_or_default()
}

#[test]
fn compiled_kernels_are_kept_in_one_file_and_nothing_about_it_fails() {
    if !has_adapter() {
        return;
    }
    let desk = Desk::new();
    let caches = PathBuf::from(desk.out("caches"));
    std::fs::create_dir(&caches).expect("a folder is made");
    assert!(cached(&desk, &caches, &["--no-pipeline-cache"], None).is_empty(), "it was switched off");
    assert!(cached(&desk, &caches, &[], Some("1")).is_empty(), "it was switched off");
    let files = cached(&desk, &caches, &[], None);
    if files.is_empty() {
        println!("skipped: the adapter keeps no pipelines");
        return;
    }
    let [file] = files.as_slice() else { panic!("one file, not {files:?}") };
    let read = || std::fs::read(file).expect("it is there");
    let whole = read();
    assert!(whole.starts_with(b"organumP"));
    let time = || std::fs::metadata(file).and_then(|m| m.modified()).expect("it has a time");
    let before = time();
    assert_eq!(cached(&desk, &caches, &[], None), files);
    if read() == whole {
        assert_eq!(time(), before, "the same bytes were written again");
    }
    // cut, damaged, another version's, empty: ignored and written anew
    let mut damaged = whole.clone();
    damaged[30] ^= 1;
    for wrong in [&whole[..whole.len() - 1], &damaged, b"organumP", b""] {
        std::fs::write(file, wrong).expect("it is written");
        assert_eq!(cached(&desk, &caches, &[], None), files);
        assert!(read() != wrong && read().starts_with(b"organumP"));
    }
    // the folder cannot be made
    std::fs::remove_dir_all(caches.join("organum")).expect("it is there");
    std::fs::write(caches.join("organum"), b"no folder").expect("it is written");
    assert!(cached(&desk, &caches, &[], None).is_empty());
}

#[test]
fn a_tuned_device_ranks_plans_by_what_was_measured() {
    let desk = Desk::new();
    let refused = |code: i32, words: &[&str], args: &[&str]| {
        let output = run(args);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
        assert!(words.iter().all(|word| err.contains(word)), "{args:?}: {err}");
        assert!(!desk.written().iter().any(|name| name.starts_with("refused")), "{args:?} leaves a file");
    };
    refused(2, &["host"], &["tune", &desk.out("refused.json"), "--device", "cpu"]);
    if !has_adapter() {
        return;
    }
    let path = desk.out("tuning.json");
    assert!(done(&["tune", &path, "--device", "0"]).contains("GFLOP/s in registers"));
    let read = || serde_json::from_slice::<Value>(&std::fs::read(&path).expect("it was written")).expect("it is JSON");
    let tuning = read();
    has_keys(&tuning, &["adapter", "driver", "organum", "measured"]);
    for rate in ["flops", "bytes", "host_bytes"] {
        assert!(tuning["measured"][rate].as_u64().is_some_and(|n| n > 1_000_000), "{tuning}");
    }
    let plain = infer(&desk, "plain.npy");
    let tuned = infer(&desk, "tuned.npy");
    done(&with(&plain, &["--device", "0"]));
    done(&with(&tuned, &["--device", "0", "--tuning", &path]));
    let bits = |name: &str| std::fs::read(desk.out(name)).expect("it was written");
    assert!(bits("plain.npy") == bits("tuned.npy"), "a plan never changes bits");
    // another device, another version, no tuning
    refused(2, &["--tuning", "the host"], &with(&infer(&desk, "refused.npy"), &["--device", "cpu", "--tuning", &path]));
    let mut other = tuning.clone();
    other["driver"] = json!("another");
    let other = desk.file("other.json", other.to_string().as_bytes());
    refused(2, &["--tuning", "another"], &with(&infer(&desk, "refused.npy"), &["--device", "0", "--tuning", &other]));
    let wrong = desk.file("wrong.json", b"{}");
    refused(3, &["--tuning", "organum tune"], &with(&infer(&desk, "refused.npy"), &["--device", "0", "--tuning", &wrong]));
    let missing = desk.out("missing.json");
    refused(3, &["--tuning", "missing.json"], &with(&infer(&desk, "refused.npy"), &["--device", "0", "--tuning", &missing]));
}
