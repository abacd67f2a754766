//! The steps of `device.sh` as Markdown.

use std::fmt::Write;

use serde_json::Value;

/// One line a step, and the figures of those that have some.
pub fn of(steps: &Value) -> String {
    let mut text = String::from("| step | ended | s | what it says |\n|---|---|---|---|\n");
    let steps: Vec<&Value> = steps["steps"].as_array().into_iter().flatten().collect();
    for step in &steps {
        let ended = match step["rc"].as_i64() {
            Some(0) => "well".to_owned(),
            Some(124 | 137) => "at its time limit".to_owned(),
            Some(rc) => format!("with {rc}"),
            None => "not run".to_owned(),
        };
        let name = step["step"].as_str().unwrap_or("?");
        let said = summary(step);
        let _ = writeln!(text, "| {name} | {ended} | {} | {said} |", number(&step["seconds"], 1));
    }
    let organum = cases(&steps, "layers");
    if !organum.is_empty() {
        text += &layers(&organum, &cases(&steps, "torch layers"));
    }
    let kernels = cases(&steps, "kernels");
    if !kernels.is_empty() {
        text += "\n| kernel | storage | ms | GFLOP/s | share | GB/s | share |\n";
        text += "|---|---|---|---|---|---|---|\n";
    }
    for case in kernels {
        if let Some(ceilings) = case.get("ceilings") {
            let [flops, bytes] = ["gflops", "gbytes"].map(|key| number(&ceilings[key], 1));
            let _ = writeln!(text, "| ceilings | | | {flops} | | {bytes} | |");
            continue;
        }
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} % | {} | {} % |",
            case["case"].as_str().unwrap_or("?"),
            case["precision"].as_str().unwrap_or("?"),
            scaled(&case["seconds"], 1e3, 3),
            number(&case["gflops"], 1),
            scaled(&case["share_of_flops"], 100.0, 0),
            number(&case["gbytes"], 1),
            scaled(&case["share_of_bytes"], 100.0, 0),
        );
    }
    text
}

fn cases<'a>(steps: &[&'a Value], name: &str) -> Vec<&'a Value> {
    let found = steps.iter().filter(|step| step["step"] == name);
    found.flat_map(|step| step["result"]["cases"].as_array().into_iter().flatten()).collect()
}

/// Layers of organum beside those of PyTorch, best memory layout, in ms.
fn layers(organum: &[&Value], torch: &[&Value]) -> String {
    let modes = ["f32", "tf32", "f16"];
    let mut text = String::from(
        "\n| layer | f32 ms | TFLOP/s | f16 ms | PyTorch f32 ms | TF32 | f16 | f32/f32 | f16/f16 |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    let of = |list: &[&Value], name: &str, precision: &str| {
        let same = list.iter().filter(|c| c["case"] == name && c["precision"] == precision);
        same.filter_map(|c| c["seconds"].as_f64()).min_by(f64::total_cmp)
    };
    let mut names: Vec<&str> = organum.iter().filter_map(|c| c["case"].as_str()).collect();
    names.dedup();
    for name in names {
        let [ours, half] = ["f32", "f16"].map(|precision| of(organum, name, precision));
        let theirs = modes.map(|mode| of(torch, name, mode));
        let rate = organum.iter().find(|c| c["case"] == name && c["precision"] == "f32");
        let rate = rate.map_or(Value::Null, |c| c["gflops"].clone());
        let ms = |s: Option<f64>| s.map_or_else(|| "-".to_owned(), |s| format!("{:.3}", s * 1e3));
        let ratio = |theirs: Option<f64>, ours: Option<f64>| match (theirs, ours) {
            (Some(theirs), Some(ours)) => format!("{:.2}", theirs / ours),
            _ => "-".to_owned(),
        };
        let cells = [
            name.to_owned(),
            ms(ours),
            scaled(&rate, 1e-3, 2),
            ms(half),
            ms(theirs[0]),
            ms(theirs[1]),
            ms(theirs[2]),
            ratio(theirs[0], ours),
            ratio(theirs[2], half),
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// What a step found, in a few words.
fn summary(step: &Value) -> String {
    let result = &step["result"];
    if let Some(refused) = result["refused"].as_str() {
        return format!("refused: {refused}");
    }
    if let Some(runs) = result["run_seconds"].as_array() {
        let runs: Vec<String> = runs.iter().map(|s| number(s, 2)).collect();
        let gigabytes = |key: &str| scaled(&result["plan"][key], 1e-9, 3);
        let peak = if result["peak_bytes"].is_null() {
            gigabytes("peak_bytes")
        } else {
            scaled(&result["peak_bytes"], 1e-9, 3)
        };
        let mut text = format!("runs of {} s, {peak} GB", runs.join(" and "));
        if result["plan"]["spilled_bytes"].as_u64().unwrap_or(0) > 0 {
            let _ = write!(text, ", {} GB spilled", gigabytes("spilled_bytes"));
        }
        if !result["gflops"].is_null() {
            let _ = write!(text, ", {} GFLOP/s", number(&result["gflops"], 0));
        }
        if let Some(hash) = result["labels_fnv1a"].as_str() {
            let _ = write!(text, ", labels {hash}");
        }
        return text;
    }
    if let Some(device) = result["device"].as_str() {
        return format!("{device}, {}", result["driver"].as_str().unwrap_or(""));
    }
    if let Some(cases) = result["cases"].as_array() {
        let bad = cases.iter().filter(|c| !c["error"].is_null() || !c["wrong"].is_null()).count();
        return format!("{} cases, {bad} failed", cases.len());
    }
    let last = step["stderr"].as_str().unwrap_or("").lines().last().unwrap_or("");
    last.replace('|', "/").chars().take(200).collect()
}

fn number(value: &Value, digits: usize) -> String {
    scaled(value, 1.0, digits)
}

fn scaled(value: &Value, by: f64, digits: usize) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |v| format!("{:.digits$}", v * by))
}
