//! `organum devices`.

use organum::{DeviceCaps, Engine, format_bytes};
use serde_json::{Value, json};

use crate::args;
use crate::fail::Failure;
use crate::output::{say, say_json};

/// `organum devices`.
pub(crate) fn devices(a: &args::Devices) -> Result<(), Failure> {
    let adapters = pollster::block_on(Engine::adapters());
    let default = Engine::preferred(&adapters).map_or("cpu", |i| &adapters[i].name);
    if a.json {
        let list: Vec<Value> = adapters
            .iter()
            .enumerate()
            .map(|(i, d)| json!({"index": i, "name": d.name, "backend": d.backend, "kind": d.kind, "driver": d.driver, "caps": d.caps}))
            .collect();
        say_json(&json!({ "devices": list, "default": default }));
        return Ok(());
    }
    for (i, d) in adapters.iter().enumerate() {
        say(&format!(
            "{i}    {}  [{}, {}, {}]  binding {}, buffer {}{}",
            d.name,
            d.backend,
            d.kind,
            d.driver,
            format_bytes(d.caps.max_binding),
            format_bytes(d.caps.max_buffer),
            if d.caps.f16 { ", f16" } else { "" }
        ));
    }
    let threads = DeviceCaps::host().threads;
    say(&format!("cpu  this host, {threads} threads, {}; no driver needed", organum::kernels::host::instructions()));
    say("reference  the kernels' scalar twins on this host, which sum in f64: slow");
    say(&format!("without --device: {default}"));
    Ok(())
}
