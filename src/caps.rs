//! What a device can do, as plain numbers: the planner's view of an adapter, also made up or read from a file.

use serde::{Deserialize, Serialize};

/// Limits and features that decide a plan. The default is what every WebGPU device guarantees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DeviceCaps {
    /// Largest buffer in bytes (`maxBufferSize`).
    pub max_buffer: u64,
    /// Largest storage binding in bytes (`maxStorageBufferBindingSize`).
    pub max_binding: u64,
    /// Alignment of storage binding offsets in bytes.
    pub alignment: u64,
    /// Workgroups a dispatch may have along each axis.
    pub max_workgroups: u32,
    /// Invocations of one workgroup.
    pub max_invocations: u32,
    /// Storage buffers a shader may bind.
    pub max_storage_buffers: u32,
    /// `shader-f16` is available.
    pub f16: bool,
    /// The device is a CPU: small workgroups suit it.
    pub cpu: bool,
}

impl Default for DeviceCaps {
    fn default() -> Self {
        Self {
            max_buffer: 256 << 20,
            max_binding: 128 << 20,
            alignment: 256,
            max_workgroups: 65_535,
            max_invocations: 256,
            max_storage_buffers: 8,
            f16: true,
            cpu: false,
        }
    }
}

impl DeviceCaps {
    /// Without a device and without its limits: the reference executor on the host.
    #[must_use]
    pub fn host() -> Self {
        Self { max_buffer: 1 << 40, max_binding: (1 << 31) - 4, cpu: true, ..Self::default() }
    }

    /// The same with the largest storage binding and buffer set to `bytes`: tests force slabs with it.
    #[must_use]
    pub fn with_max_binding(mut self, bytes: u64) -> Self {
        self.max_binding = bytes;
        self.max_buffer = self.max_buffer.min(bytes.saturating_mul(2));
        self
    }

    /// `bytes` rounded up to the binding alignment.
    #[must_use]
    pub fn align(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.alignment.max(4)) * self.alignment.max(4)
    }
}
