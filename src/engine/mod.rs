//! The GPU: a device and queue (the host's own or requested here), its limits, and its pipelines.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::caps::{DeviceCaps, Measured};
use crate::error::{EngineError, EngineErrorKind};
use crate::kernels::Call;

mod cache;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
#[forbid(unsafe_code)]
mod memory;
#[forbid(unsafe_code)]
mod pace;
mod pipeline;
#[forbid(unsafe_code)]
mod signal;
#[forbid(unsafe_code)]
mod staging;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
#[forbid(unsafe_code)]
mod submit;
#[forbid(unsafe_code)]
mod timing;

use cache::Cache;
pub(crate) use memory::GpuMemory;
pub(crate) use pipeline::Pipeline;
use pipeline::Pipelines;
use signal::Alarm;
pub(crate) use submit::Job;

/// Name and properties of an adapter, as [`Engine::adapters`] lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdapterSummary {
    /// The adapter's name.
    pub name: String,
    /// Vulkan, Metal or DX12.
    pub backend: String,
    /// Discrete, integrated, virtual, CPU or other.
    pub kind: String,
    /// Driver and its version.
    pub driver: String,
    /// Its limits.
    pub caps: DeviceCaps,
}

/// A device to run on. Cheap to clone; pipelines are shared by the clones.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>, Arc<DeviceCaps>);

#[derive(Debug)]
struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    summary: AdapterSummary,
    pipelines: Pipelines,
    cache: Cache,
    alarm: Alarm,
    /// Bytes of the buffers that exist, and the most that may.
    allocated: AtomicU64,
    most: u64,
    /// Number of buffers until one is refused; 0 refuses none.
    refuse: AtomicU64,
}

impl Engine {
    /// Uses the host's own device and queue. No callback is installed on them.
    ///
    /// Ask for [`Engine::required_features`] and [`Engine::required_limits`] when creating the device.
    #[must_use]
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        Self::within(device, queue, u64::MAX)
    }

    /// The same, with at most `bytes` of buffers at once, those of all its sessions together: one that needs more fails with
    /// [`EngineErrorKind::OutOfMemory`], as it does on a device that has no more.
    #[must_use]
    pub fn within(device: &wgpu::Device, queue: &wgpu::Queue, bytes: u64) -> Self {
        let info = device.adapter_info();
        let caps = caps_of(&device.limits(), device.features(), &info);
        let inner = Inner {
            device: device.clone(),
            queue: queue.clone(),
            summary: summary_of(&info, &caps),
            pipelines: Pipelines::default(),
            cache: Cache::default(),
            alarm: Alarm::default(),
            allocated: AtomicU64::new(0),
            most: bytes,
            refuse: AtomicU64::new(0),
        };
        Self(Arc::new(inner), Arc::new(caps))
    }

    /// The same device with what was measured on it, by which its plans are ranked and its batches sized.
    #[must_use]
    pub fn with_measured(mut self, measured: Measured) -> Self {
        Arc::make_mut(&mut self.1).measured = Some(measured);
        self
    }

    /// Requests the first adapter whose name contains `pattern` (case ignored), or the one with that index in
    /// [`Engine::adapters`]; without a pattern a real GPU before a software one. Where the driver tells how much memory is to
    /// be had (Vulkan, DX12), a GPU refuses buffers beyond 95 % of it: [`crate::Session::fitting`] makes use of that.
    ///
    /// # Errors
    /// When no adapter matches or it gives no device.
    pub async fn request(pattern: Option<&str>) -> Result<Self, EngineError> {
        let mut adapters = enumerate(None).await;
        let listed = || adapters_text(&adapters);
        let index = match pattern {
            None => (0..adapters.len()).min_by_key(|&i| rank(&kind_of(&adapters[i].get_info()))),
            Some(p) => match p.parse::<usize>() {
                Ok(i) => Some(i).filter(|&i| i < adapters.len()),
                Err(_) => adapters.iter().position(|a| a.get_info().name.to_lowercase().contains(&p.to_lowercase())),
            },
        };
        let Some(index) = index else {
            let text = match pattern {
                Some(p) if !adapters.is_empty() => format!("no adapter matches {p:?}; there are: {}", listed()),
                _ => "no GPU adapter found; install a Vulkan driver (on Debian and Ubuntu: apt-get install mesa-vulkan-drivers) or use --device cpu".into(),
            };
            return Err(EngineError::new(EngineErrorKind::NoAdapter, text));
        };
        Self::open(adapters.swap_remove(index), index).await
    }

    /// The hardware adapter that [`Engine::request`] takes without a pattern; `None` where every
    /// adapter is software, or there is none.
    ///
    /// # Errors
    /// When the adapter gives no device.
    pub async fn request_hardware() -> Result<Option<Self>, EngineError> {
        let mut adapters = enumerate(None).await;
        match preferred(adapters.iter().map(|a| kind_of(&a.get_info()))) {
            Some(index) => Self::open(adapters.swap_remove(index), index).await.map(Some),
            None => Ok(None),
        }
    }

    /// Which of [`Engine::adapters`] is that of [`Engine::request_hardware`].
    #[must_use]
    pub fn preferred(adapters: &[AdapterSummary]) -> Option<usize> {
        preferred(adapters.iter().map(|a| a.kind.clone()))
    }

    /// The adapter's device; `index` is its place among all of them.
    async fn open(adapter: wgpu::Adapter, index: usize) -> Result<Self, EngineError> {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("organum"),
            required_features: Self::required_features(&adapter),
            required_limits: Self::required_limits(&adapter),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let info = adapter.get_info();
        if info.device_type != wgpu::DeviceType::Cpu
            && let Some(bounded) = enumerate(Some(MEMORY_SHARE)).await.into_iter().nth(index).filter(|a| a.get_info() == info)
            && let Ok((device, queue)) = bounded.request_device(&descriptor).await
        {
            return Ok(Self::new(&device, &queue));
        }
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| EngineError::new(EngineErrorKind::NoDevice, format!("the adapter {} gave no device", info.name)).caused_by(e))?;
        Ok(Self::new(&device, &queue))
    }

    /// Optional features that organum makes use of, as far as the adapter has them.
    #[must_use]
    pub fn required_features(adapter: &wgpu::Adapter) -> wgpu::Features {
        let wanted = wgpu::Features::SHADER_F16 | wgpu::Features::PIPELINE_CACHE | wgpu::Features::TIMESTAMP_QUERY;
        adapter.features() & wanted
    }

    /// The adapter's own limits: large bindings mean few slabs.
    #[must_use]
    pub fn required_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
        adapter.limits()
    }

    /// All adapters, in the order that indices refer to.
    pub async fn adapters() -> Vec<AdapterSummary> {
        enumerate(None)
            .await
            .iter()
            .map(|a| {
                let info = a.get_info();
                summary_of(&info, &caps_of(&a.limits(), a.features(), &info))
            })
            .collect()
    }

    /// What the planner needs to know of the device.
    #[must_use]
    pub fn caps(&self) -> &DeviceCaps {
        &self.1
    }

    /// Name, backend and driver.
    #[must_use]
    pub fn summary(&self) -> &AdapterSummary {
        &self.0.summary
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.0.device
    }

    pub(crate) fn queue(&self) -> &wgpu::Queue {
        &self.0.queue
    }

    /// Bytes of the buffers of all its sessions.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.0.allocated.load(Ordering::Acquire)
    }

    /// Counts `bytes` as allocated until what is returned is dropped, or `None` if that is more than may be.
    fn reserve(&self, bytes: u64) -> Option<Reserved> {
        let add = |now: u64| now.checked_add(bytes).filter(|&sum| sum <= self.0.most);
        self.0.allocated.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).ok()?;
        Some(Reserved { engine: self.clone(), bytes })
    }

    fn alarm(&self) -> &Alarm {
        &self.0.alarm
    }

    /// Refuses the buffer of this number, counted from 1 on from now: for tests of what becomes of
    /// a session then.
    #[doc(hidden)]
    pub fn refuse_buffer(&self, number: u64) {
        self.0.refuse.store(number, Ordering::Release);
    }

    fn buffer(&self, descriptor: &wgpu::BufferDescriptor<'_>) -> wgpu::Buffer {
        let count = |left: u64| left.checked_sub(1);
        if self.0.refuse.fetch_update(Ordering::AcqRel, Ordering::Acquire, count) == Ok(1) {
            // beyond the limits of any device: wgpu refuses it as it refuses others
            return self.0.device.create_buffer(&wgpu::BufferDescriptor { size: 1 << 60, mapped_at_creation: false, ..descriptor.clone() });
        }
        self.0.device.create_buffer(descriptor)
    }

    fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// The pipelines of kernel calls, in their order. Those that are not there yet are compiled at once on all threads.
    pub(crate) async fn pipelines(&self, calls: &[&Call]) -> Result<Vec<Arc<Pipeline>>, EngineError> {
        let Inner { device, cache, pipelines, alarm, .. } = &*self.0;
        pipelines.all((device, cache.get(device).as_ref()), alarm, self.caps(), calls).await
    }
}

/// Bytes counted in [`Engine::allocated_bytes`].
#[derive(Debug)]
struct Reserved {
    engine: Engine,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.engine.0.allocated.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Share of the memory that the driver says is to be had, in percent, beyond which a GPU refuses buffers (Vulkan, DX12):
/// running out of memory is then an error instead of swapping. Not asked of software adapters, which count all that the
/// system uses as theirs.
const MEMORY_SHARE: u8 = 95;

/// All adapters; `share` bounds the memory of their devices, in percent.
async fn enumerate(share: Option<u8>) -> Vec<wgpu::Adapter> {
    let descriptor = wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        memory_budget_thresholds: wgpu::MemoryBudgetThresholds { for_resource_creation: share, for_device_loss: None },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    wgpu::Instance::new(descriptor).enumerate_adapters(wgpu::Backends::PRIMARY).await
}

fn adapters_text(adapters: &[wgpu::Adapter]) -> String {
    adapters.iter().enumerate().map(|(i, a)| format!("{i} {}", a.get_info().name)).collect::<Vec<_>>().join(", ")
}

/// Kinds of adapters, the one that is preferred first; the last is software.
const KINDS: [&str; 5] = ["discretegpu", "integratedgpu", "virtualgpu", "other", "cpu"];

fn kind_of(info: &wgpu::AdapterInfo) -> String {
    format!("{:?}", info.device_type).to_lowercase()
}

fn rank(kind: &str) -> usize {
    KINDS.iter().position(|known| *known == kind).unwrap_or(KINDS.len())
}

/// The place of the hardware kind that is preferred.
fn preferred(kinds: impl Iterator<Item = String>) -> Option<usize> {
    let hardware = kinds.map(|kind| rank(&kind)).enumerate().filter(|&(_, rank)| rank + 1 != KINDS.len());
    hardware.min_by_key(|&(_, rank)| rank).map(|(index, _)| index)
}

fn summary_of(info: &wgpu::AdapterInfo, caps: &DeviceCaps) -> AdapterSummary {
    AdapterSummary {
        name: info.name.clone(),
        backend: format!("{:?}", info.backend).to_lowercase(),
        kind: kind_of(info),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        caps: caps.clone(),
    }
}

/// Bindings above this silently miscompute on Metal in wgpu 30 (gfx-rs/wgpu#10305).
const BINDING_CEILING: u64 = (4 << 30) - 4;

fn caps_of(limits: &wgpu::Limits, features: wgpu::Features, info: &wgpu::AdapterInfo) -> DeviceCaps {
    DeviceCaps {
        max_buffer: limits.max_buffer_size / 256 * 256,
        max_binding: limits.max_storage_buffer_binding_size.min(BINDING_CEILING) / 4 * 4,
        alignment: u64::from(limits.min_storage_buffer_offset_alignment).max(256),
        max_workgroups: limits.max_compute_workgroups_per_dimension,
        max_invocations: limits.max_compute_invocations_per_workgroup,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        f16: features.contains(wgpu::Features::SHADER_F16),
        cpu: info.device_type == wgpu::DeviceType::Cpu,
        threads: 0,
        measured: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_adapters_are_not_preferred() {
        let of = |kinds: &[&str]| preferred(kinds.iter().map(|&kind| kind.to_owned()));
        for kind in &KINDS[..4] {
            assert_eq!(of(&["cpu", kind]), Some(1), "{kind}");
        }
        assert_eq!(of(&["cpu"]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["other", "integratedgpu", "discretegpu", "discretegpu", "cpu"]), Some(2));
    }
}
