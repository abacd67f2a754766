//! Where a network runs: a wgpu device, the host, or the kernels' scalar twins on the host.

use crate::caps::DeviceCaps;
use crate::engine::Engine;
use crate::error::{EngineError, EngineErrorKind};
use crate::host::available_memory;

/// Where a network runs. Cheap to clone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// A wgpu device.
    Gpu(Engine),
    /// The host, with vector instructions on all cores. It needs no driver.
    Host,
    /// The kernels' scalar twins on the host, which sum in f64. Slow; for comparing.
    Reference,
}

impl From<Engine> for Device {
    fn from(engine: Engine) -> Self {
        Self::Gpu(engine)
    }
}

impl From<&Engine> for Device {
    fn from(engine: &Engine) -> Self {
        Self::Gpu(engine.clone())
    }
}

impl Device {
    /// Opens a device by name: `cpu` is the host, `reference` the twins, `gpu` a hardware adapter,
    /// anything else an adapter as [`Engine::request`] finds it. Without a name it is a hardware
    /// adapter if there is one, else the host, which is faster than a software adapter.
    ///
    /// # Errors
    /// When no adapter matches, or it gives no device.
    pub async fn request(name: Option<&str>) -> Result<Self, EngineError> {
        match name {
            Some("cpu") => Ok(Self::Host),
            Some("reference") => Ok(Self::Reference),
            Some("gpu") => Engine::request_hardware().await?.map(Self::Gpu).ok_or_else(|| {
                let text = "there is no hardware adapter; `cpu` is this host, and software adapters have names";
                EngineError::new(EngineErrorKind::NoAdapter, text)
            }),
            None => Ok(Engine::request_hardware().await?.map_or(Self::Host, Self::Gpu)),
            pattern => Engine::request(pattern).await.map(Self::Gpu),
        }
    }

    /// What the planner needs to know of the device.
    #[must_use]
    pub fn caps(&self) -> DeviceCaps {
        match self {
            Self::Gpu(engine) => engine.caps().clone(),
            Self::Host => DeviceCaps::host(),
            Self::Reference => DeviceCaps::reference(),
        }
    }

    /// The name of the adapter, `cpu` or `reference`.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Gpu(engine) => engine.summary().name.clone(),
            Self::Host => "cpu".into(),
            Self::Reference => "reference".into(),
        }
    }

    /// The adapter's backend, or the host's instructions.
    #[must_use]
    pub fn backend(&self) -> String {
        match self {
            Self::Gpu(engine) => engine.summary().backend.clone(),
            Self::Host => format!("host, {}", crate::kernels::host::instructions()),
            Self::Reference => "host, f64".into(),
        }
    }

    /// The device bytes of a run for which no budget is given: half of the available memory where
    /// the device computes in the host's memory and the system tells how much that is. There is no
    /// bound elsewhere, since wgpu does not tell a GPU's memory.
    #[must_use]
    pub fn default_budget(&self) -> Option<u64> {
        let kind = match self {
            Self::Gpu(engine) => engine.summary().kind.as_str(),
            Self::Host | Self::Reference => "cpu",
        };
        if in_host_memory(kind) { available_memory().map(|bytes| bytes / 2) } else { None }
    }
}

/// Whether an adapter of this kind has no memory of its own.
fn in_host_memory(kind: &str) -> bool {
    matches!(kind, "cpu" | "integratedgpu")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integrated_gpus_share_the_hosts_memory() {
        assert!(["cpu", "integratedgpu"].into_iter().all(in_host_memory));
        assert!(!["discretegpu", "virtualgpu", "other"].into_iter().any(in_host_memory));
    }

    #[test]
    fn the_host_needs_no_driver() {
        for (name, shown) in [("cpu", "cpu"), ("reference", "reference")] {
            let device = pollster::block_on(Device::request(Some(name))).expect("the host is there");
            assert_eq!((device.name().as_str(), device.backend().starts_with("host, ")), (shown, true));
        }
        assert!(pollster::block_on(Device::request(Some("no such adapter"))).is_err());
    }
}
