//! What the integration tests share: the device under test, random values, the shared folder.
#![allow(dead_code, clippy::print_stdout, clippy::cast_possible_truncation, reason = "each test binary uses a part")]

use std::path::PathBuf;
use std::sync::OnceLock;

use organum::{Engine, wgpu};

/// The device under test, or `None` with a note when this machine has no adapter; one engine a process, so that each
/// kernel is compiled once.
pub(crate) fn engine() -> Option<&'static Engine> {
    static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| pollster::block_on(Engine::request(None)).ok()).as_ref();
    if engine.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI must have an adapter");
        println!("skipped: no GPU adapter on this machine");
    }
    engine
}

/// The same adapter without 16-bit floats: they are packed two to a word there.
pub(crate) fn engine_without_f16() -> Option<&'static Engine> {
    static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
    engine()?;
    ENGINE
        .get_or_init(|| {
            let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
            let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
            let adapter = adapters.into_iter().find(|a| Some(a.get_info().name) == engine().map(|e| e.summary().name.clone()))?;
            let descriptor = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
            let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).ok()?;
            Some(Engine::new(&device, &queue))
        })
        .as_ref()
}

/// A file of the shared folder beside the checkout, or `None` with a note.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let full = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if full.exists() {
        return Some(full);
    }
    println!("skipped: {} is absent", full.display());
    None
}

/// xorshift64*: values in -1..1.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
}

/// ||a - b|| / ||b||.
pub(crate) fn relative_error(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let diff: f64 = a.iter().zip(b).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum();
    let norm: f64 = b.iter().map(|y| y * y).sum();
    (diff / norm.max(1e-300)).sqrt()
}

/// The card of an nnU-Net that halves every axis from stage to stage.
pub(crate) fn nnunet_card(dims: usize, in_channels: u32, classes: u32, features: &[u32]) -> String {
    let strides: Vec<Vec<u32>> = (0..features.len()).map(|stage| vec![if stage > 0 { 2 } else { 1 }; dims]).collect();
    let config = serde_json::json!({
        "dims": dims, "in_channels": in_channels, "classes": classes, "features": features, "convs_per_stage": 2,
        "kernels": vec![vec![3; dims]; features.len()], "strides": strides,
    });
    serde_json::json!({ "architecture": "plain_conv_unet", "config": config }).to_string()
}

/// Resident bytes of this process, and the most since the last reset.
#[cfg(target_os = "linux")]
pub(crate) fn resident() -> [u64; 2] {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).expect("the field is there");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
    };
    [field("VmRSS:"), field("VmHWM:")]
}
