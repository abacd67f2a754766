//! Compiles every bench case as wgpu hands it to the driver, by Mesa's RADV for GPUs that are not
//! there, and says what the machine code allows. Nothing runs, nothing is timed.
//!
//! `isa` prints the table; `isa --check TABLE` compares with it and fails on spills, scratch, or a
//! lower share; `isa --bless TABLE` writes it. `--jobs FILE` compiles what a file lists (see
//! `jobs::of_file`), `--keep DIR` keeps assembly and SPIR-V, `--only TEXT` takes labels that hold a
//! text.

mod driver;
mod jobs;
mod lines;
mod listing;
mod spirv;
mod table;

use std::process::{Command, ExitCode};

use listing::Counts;

/// The version whose assembly this tool reads.
const MESA: &str = "25.0.7";

/// What is known of a kernel on a device.
#[derive(Clone, Debug)]
pub struct Row {
    /// Kernel, case and element type.
    pub label: String,
    /// Vector registers.
    pub registers: u64,
    /// Waves of a SIMD that fit.
    pub waves: u64,
    /// Per cent of the peak of multiply-adds that the hot loop allows.
    pub share: u32,
    /// Spilled registers and bytes of scratch.
    pub vmem: u64,
    /// Bytes of workgroup memory.
    pub shared: u64,
    /// Lines that loads touch for a multiply-add.
    pub lines: Option<f64>,
    /// One run of the hot loop.
    pub hot: Counts,
}

#[derive(Default)]
struct Options {
    check: Option<String>,
    bless: Option<String>,
    jobs: Option<String>,
    keep: Option<String>,
    only: Option<String>,
    on: Option<String>,
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        let place = match name.as_str() {
            "--check" => &mut options.check,
            "--bless" => &mut options.bless,
            "--jobs" => &mut options.jobs,
            "--keep" => &mut options.keep,
            "--only" => &mut options.only,
            "--on" => &mut options.on,
            _ => return Err(format!("unknown option {name}")),
        };
        *place = Some(value);
    }
    Ok(options)
}

/// Compiles all jobs on the device that the environment chose and prints a line for each.
fn compile(options: &Options, generation: listing::Generation) -> Result<(), String> {
    let driver = driver::Driver::new()?;
    println!("{}", driver.info);
    let jobs = match &options.jobs {
        Some(file) => jobs::of_file(file)?,
        None => jobs::cases(driver.f16),
    };
    let only = options.only.as_deref().unwrap_or("");
    for job in jobs.iter().filter(|job| job.label.contains(only)) {
        let compiled = driver.compile(job)?;
        if let (Some(folder), Some(device)) = (&options.keep, &options.on) {
            std::fs::create_dir_all(folder).map_err(|e| format!("{folder}: {e}"))?;
            let path = format!("{folder}/{}.{device}.s", job.label.replace(['/', ' '], "_"));
            std::fs::write(&path, &compiled.assembly).map_err(|e| format!("{path}: {e}"))?;
        }
        let number =
            |names: &[&str]| names.iter().filter_map(|n| compiled.statistics.get(*n)).sum::<u64>();
        let waves = number(&["Subgroups per SIMD"]);
        let wide = generation == listing::Generation::Gcn;
        let hot = listing::hot_loop(&compiled.assembly, job.trips.as_ref());
        let n = [
            hot.fma,
            hot.useful,
            hot.other,
            hot.quarter,
            hot.dual,
            hot.scalar,
            hot.buffer,
            hot.shared,
            hot.waits,
        ];
        let cells = [
            job.label.clone(),
            number(&["VGPRs"]).to_string(),
            (if wide { waves } else { waves / u64::from(compiled.subgroup / 32) }).to_string(),
            format!("{:.0}", 100.0 * hot.share(generation)),
            number(&["Spilled SGPRs", "Spilled VGPRs", "Scratch size"]).to_string(),
            number(&["LDS size"]).to_string(),
            job.lines.map_or("-".to_owned(), |l| l.to_string()),
            n.map(|n| n.to_string()).join(" "),
        ];
        println!("{}", cells.join("\t"));
    }
    Ok(())
}

fn row(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.split('\t').collect();
    let [label, registers, waves, share, vmem, shared, lines, hot] = cells.as_slice() else {
        return None;
    };
    let n: Vec<u32> = hot.split(' ').filter_map(|n| n.parse().ok()).collect();
    let &[fma, useful, other, quarter, dual, scalar, buffer, shared_uses, waits] = n.as_slice()
    else {
        return None;
    };
    Some(Row {
        label: (*label).to_owned(),
        registers: registers.parse().ok()?,
        waves: waves.parse().ok()?,
        share: share.parse().ok()?,
        vmem: vmem.parse().ok()?,
        shared: shared.parse().ok()?,
        lines: lines.parse().ok(),
        hot: Counts {
            fma,
            useful,
            other,
            quarter,
            dual,
            scalar,
            buffer,
            shared: shared_uses,
            waits,
        },
    })
}

/// Runs this program for each device: the driver takes the device from the environment of its
/// process.
fn every_device() -> Result<(String, Vec<Vec<Row>>), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut driver = String::new();
    let mut all = Vec::new();
    for (device, _) in table::DEVICES {
        let output = Command::new(&program)
            .args(std::env::args().skip(1))
            .args(["--on", device])
            .env("RADV_FORCE_FAMILY", device)
            .env("MESA_SHADER_CACHE_DISABLE", "true")
            .output()
            .map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(format!("on {device}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let mut lines = text.lines();
        driver = lines.next().unwrap_or("").to_owned();
        all.push(lines.filter_map(row).collect());
    }
    Ok((driver, all))
}

fn run() -> Result<bool, String> {
    let options = options()?;
    if let Some(device) = &options.on {
        let known = table::DEVICES.into_iter().find(|(name, _)| name == device);
        compile(&options, known.ok_or(format!("unknown device {device}"))?.1)?;
        return Ok(true);
    }
    let (driver, rows) = every_device()?;
    let same = driver.contains(MESA);
    if !same {
        eprintln!(
            "this tool reads the assembly of Mesa {MESA}; here is {driver}: shares are not compared"
        );
    }
    let text = table::markdown(&driver, &rows);
    if let Some(path) = &options.bless {
        std::fs::write(path, &text).map_err(|e| format!("{path}: {e}"))?;
        return Ok(true);
    }
    let Some(path) = &options.check else {
        println!("{text}");
        return Ok(true);
    };
    let committed = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    let mut faults = table::faults(&committed, &rows, same);
    if faults.is_empty() && same && committed != text {
        faults.push(format!(
            "{path} is not what the kernels give today; benches/isa/check --bless writes it"
        ));
    }
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    Ok(faults.is_empty())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("isa: {e}");
            ExitCode::FAILURE
        }
    }
}
