//! `organum doctor`, `completions`, `man`, `picture` and `surfaces`.

use std::path::Path;

use clap::CommandFactory;
use organum::host::available_memory;
use organum::volume::surface::{SurfaceFormat, write_surfaces};
use organum::volume::{VolumeError, file, picture as draw};
use organum::{DeviceCaps, Engine, format_bytes};
use serde_json::{Value, json};

use crate::args::{self, Cli};
use crate::fail::Failure;
use crate::output::{Warnings, need_different, need_folder, say, say_json};
use crate::outputs::{legend_of, make};

/// Advice on what to install where there is no adapter.
fn advice() -> &'static str {
    if cfg!(target_os = "linux") {
        "no Vulkan driver was found: install mesa-vulkan-drivers (AMD, Intel) or the driver of NVIDIA, and look \
         whether this user may open /dev/dri/renderD128 (group render)"
    } else if cfg!(target_os = "macos") {
        "no Metal device was found"
    } else {
        "no DX12 or Vulkan device was found: install the driver of the graphics card's maker"
    }
}

/// `organum doctor`.
pub(crate) fn doctor(a: &args::Doctor) -> Result<(), Failure> {
    let adapters = pollster::block_on(Engine::adapters());
    let preferred = Engine::preferred(&adapters).map(|i| adapters[i].name.clone());
    let hardware = adapters.iter().any(|d| !d.caps.cpu);
    let host = DeviceCaps::host();
    let instructions = organum::kernels::host::instructions();
    let memory = available_memory();
    let mut advices = Vec::new();
    if adapters.is_empty() {
        advices.push(advice().to_owned());
    } else if !hardware {
        let text = "only software adapters are there, and `cpu` is faster than they are";
        advices.push(format!("{text}; {}", advice()));
    }
    if memory.is_some_and(|bytes| bytes < 2 << 30) {
        advices.push("less than 2 GiB of memory are free: bound runs by --memory and --host-memory".into());
    }
    let list: Vec<Value> = adapters
        .iter()
        .map(|d| json!({"name": d.name, "backend": d.backend, "kind": d.kind, "driver": d.driver, "caps": d.caps}))
        .collect();
    let (version, system) = (env!("CARGO_PKG_VERSION"), format!("{} {}", std::env::consts::OS, std::env::consts::ARCH));
    if a.json {
        say_json(&json!({
            "version": version, "system": system, "threads": host.threads, "instructions": instructions,
            "available_memory": memory, "devices": list, "default": preferred.as_deref().unwrap_or("cpu"), "advice": advices,
        }));
        return Ok(());
    }
    say(&format!("organum  {version} on {system}"));
    let free = memory.map_or_else(|| "not told".into(), format_bytes);
    say(&format!("host     {} threads, {instructions}, {free} of memory free", host.threads));
    for d in &adapters {
        say(&format!("adapter  {} [{}, {}, {}]", d.name, d.backend, d.kind, d.driver));
        let f16 = if d.caps.f16 { "16-bit floats" } else { "no 16-bit floats: they are packed in pairs" };
        say(&format!("         bindings of {}, buffers of {}, {f16}", format_bytes(d.caps.max_binding), format_bytes(d.caps.max_buffer)));
    }
    say(&format!("default  {}", preferred.as_deref().unwrap_or("cpu")));
    advices.iter().for_each(|text| say(&format!("advice   {text}")));
    Ok(())
}

/// `organum completions`.
pub(crate) fn completions(a: &args::Completions) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(a.shell, &mut Cli::command(), "organum", &mut text);
    say(String::from_utf8_lossy(&text).trim_end());
    Ok(())
}

/// `organum man`.
pub(crate) fn man(a: &args::Man) -> Result<(), Failure> {
    make(&a.folder)?;
    let failed = |e| Failure::usage(format!("cannot write the pages to {}: {e}", a.folder.display()));
    clap_mangen::generate_to(Cli::command(), &a.folder).map_err(failed)
}

/// `organum picture`.
pub(crate) fn picture(a: &args::Picture) -> Result<(), Failure> {
    need_folder(&a.output)?;
    let read = [a.scan.as_path(), &a.labels];
    need_different(&[("--output", a.output.as_path())], &read)?;
    let mut warnings = Warnings::new(false);
    let scan = file::read(Path::new(&a.scan))?;
    let labels = file::read_labels(&a.labels)?;
    warnings.add(&scan.warnings)?;
    warnings.add(&labels.warnings)?;
    let legend = legend_of(a.model.as_deref(), labels.legend)?;
    draw::overlay(&scan.image, &labels.labels, &legend, a.grey)?.save(&a.output).map_err(|e| Failure::writing(&e))
}

/// `organum surfaces`.
pub(crate) fn surfaces(a: &args::Surfaces) -> Result<(), Failure> {
    let usage = |e: VolumeError| Failure::usage(e.to_string());
    if SurfaceFormat::of(&a.output).map_err(usage)? != SurfaceFormat::Stl {
        need_folder(&a.output)?;
    }
    need_different(&[("--output", a.output.as_path())], &[&a.labels])?;
    let mut warnings = Warnings::new(false);
    let read = file::read_labels(&a.labels)?;
    warnings.add(&read.warnings)?;
    let legend = legend_of(a.model.as_deref(), read.legend)?;
    let written = write_surfaces(&a.output, &read.labels, &legend).map_err(|e| Failure::writing(&e))?;
    if a.json {
        say_json(&json!({"files": written, "warnings": warnings.json()}));
    } else {
        written.iter().for_each(|path| say(&path.to_string_lossy()));
    }
    Ok(())
}
