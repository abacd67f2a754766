//! The native half of the Python module `organum`: models, scans and segmentations. The half in
//! Python gives them the shapes that users have; see `organum/__init__.py`.

mod errors;
mod model;
mod scan;
mod segmentation;
mod watch;

use organum::{DeviceCaps, Engine};
use pyo3::prelude::*;
use serde_json::{Value, json};

/// Adapters of the machine and the host as JSON.
#[pyfunction]
fn devices(py: Python<'_>) -> String {
    py.detach(|| {
        let adapters = pollster::block_on(Engine::adapters());
        let told = |name: &str, backend: &str, kind: &str, driver: &str, caps: &DeviceCaps| {
            json!({"name": name, "backend": backend, "kind": kind, "driver": driver, "caps": caps})
        };
        let adapters = adapters.iter().map(|d| told(&d.name, &d.backend, &d.kind, &d.driver, &d.caps));
        let host = told("cpu", "host", "host", "", &DeviceCaps::host());
        let list: Vec<Value> = adapters.chain([host]).collect();
        Value::from(list).to_string()
    })
}

/// The bytes that a text like `2GiB` stands for.
#[pyfunction]
fn parse_bytes(text: &str) -> PyResult<u64> {
    organum::parse_bytes(text)
        .map_err(|e| pyo3::exceptions::PyValueError::new_err(format!("{text:?}: {e}")))
}

/// The native half of organum.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::devices;
    #[pymodule_export]
    use super::model::Model;
    #[pymodule_export]
    use super::parse_bytes;
    #[pymodule_export]
    use super::scan::Scan;
    #[pymodule_export]
    use super::segmentation::Segmentation;
}
