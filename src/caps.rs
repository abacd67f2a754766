//! What a device can do, as plain numbers: the planner's view of an adapter, also made up or read from a file.

use serde::{Deserialize, Serialize};

/// Limits and features that decide a plan. The default is what every WebGPU device guarantees. In JSON the limits also answer to
/// their names in wgpu and in WebGPU; an unknown name is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DeviceCaps {
    /// Largest buffer in bytes (`maxBufferSize`).
    #[serde(alias = "max_buffer_size", alias = "maxBufferSize")]
    pub max_buffer: u64,
    /// Largest storage binding in bytes (`maxStorageBufferBindingSize`).
    #[serde(alias = "max_storage_buffer_binding_size", alias = "maxStorageBufferBindingSize")]
    pub max_binding: u64,
    /// Alignment of storage binding offsets in bytes.
    #[serde(alias = "min_storage_buffer_offset_alignment", alias = "minStorageBufferOffsetAlignment")]
    pub alignment: u64,
    /// Workgroups a dispatch may have along each axis.
    #[serde(alias = "max_compute_workgroups_per_dimension", alias = "maxComputeWorkgroupsPerDimension")]
    pub max_workgroups: u32,
    /// Invocations of one workgroup.
    #[serde(alias = "max_compute_invocations_per_workgroup", alias = "maxComputeInvocationsPerWorkgroup")]
    pub max_invocations: u32,
    /// Storage buffers a shader may bind.
    #[serde(alias = "max_storage_buffers_per_shader_stage", alias = "maxStorageBuffersPerShaderStage")]
    pub max_storage_buffers: u32,
    /// `shader-f16` is available.
    pub f16: bool,
    /// The device is a CPU: small workgroups suit it.
    pub cpu: bool,
    /// Threads of the host where the host itself is the device, without a driver; else 0.
    pub threads: u32,
    /// What was measured on the device, where it was: plans are ranked by it instead of by guesses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// Rates measured on a device, in units a second. `organum tune` writes them to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Floating-point operations in registers, a multiply-add being two.
    pub flops: u64,
    /// Bytes read and written by a copy within device memory.
    pub bytes: u64,
    /// Bytes that reach the host from the device.
    pub host_bytes: u64,
}

/// Shares of the two ceilings that the kernels of a network reach on average: convolutions in tiles of multiply-adds,
/// the others of memory.
const REACHED: [f64; 2] = [0.4, 0.7];

/// Rates that rank plans against each other; only their ratios matter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    /// FLOPs a second that the kernels reach.
    pub flops: f64,
    /// Bytes a second between kernels and device memory.
    pub bytes: f64,
    /// Bytes a second between device and host.
    pub host_bytes: f64,
    /// Seconds that a dispatch costs whatever it does.
    pub dispatch_seconds: f64,
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
            threads: 0,
            measured: None,
        }
    }
}

impl DeviceCaps {
    /// The host as a device: the kernels' host halves on all threads that rayon has.
    #[must_use]
    pub fn host() -> Self {
        Self { threads: u32::try_from(rayon::current_num_threads()).unwrap_or(1).max(1), ..Self::reference() }
    }

    /// The host without the limits of a device: the kernels' scalar twins, which sum in f64.
    #[must_use]
    pub fn reference() -> Self {
        Self { max_buffer: 1 << 40, max_binding: (1 << 31) - 4, cpu: true, ..Self::default() }
    }

    /// Whether the device computes in the memory of the host and takes its data from there.
    pub(crate) fn is_host(&self) -> bool {
        self.threads > 0
    }

    /// A desktop GPU under wgpu: bindings of 2 GiB, buffers without a bound of their own.
    #[must_use]
    pub fn desktop() -> Self {
        Self { max_buffer: 1 << 40, max_binding: (1 << 31) - 4, ..Self::default() }
    }

    /// The same with the largest storage binding and buffer set to `bytes`: tests force slabs with it.
    #[must_use]
    pub fn with_max_binding(mut self, bytes: u64) -> Self {
        self.max_binding = bytes;
        self.max_buffer = self.max_buffer.min(bytes.saturating_mul(2));
        self
    }

    /// The same without 16-bit floats: those in storage are packed two to a word.
    #[must_use]
    pub fn without_f16(mut self) -> Self {
        self.f16 = false;
        self
    }

    /// The same with what was measured on the device.
    #[must_use]
    pub fn with_measured(mut self, measured: Measured) -> Self {
        self.measured = Some(measured);
        self
    }

    /// Rates of the device where they were measured, else those of a middling GPU behind PCIe 4, or of a few CPU cores.
    #[expect(clippy::cast_precision_loss, reason = "rates")]
    pub(crate) fn rates(&self) -> Rates {
        let guess = if self.is_host() {
            let threads = f64::from(self.threads);
            Rates { flops: 100e9 * threads, bytes: 8e9 * threads.min(8.0), host_bytes: 4e9, dispatch_seconds: 10e-6 }
        } else if self.cpu {
            Rates { flops: 20e9, bytes: 8e9, host_bytes: 4e9, dispatch_seconds: 50e-6 }
        } else {
            Rates { flops: 8e12, bytes: 300e9, host_bytes: 12e9, dispatch_seconds: 20e-6 }
        };
        let Some(m) = self.measured else { return guess };
        let share = |ceiling: u64, share: f64| (ceiling as f64 * share).max(1.0);
        Rates {
            flops: share(m.flops, REACHED[0]),
            bytes: share(m.bytes, REACHED[1]),
            host_bytes: share(m.host_bytes, 1.0),
            dispatch_seconds: guess.dispatch_seconds,
        }
    }

    /// `bytes` rounded up to the binding alignment; vec4 elements need 16 bytes even where the device asks for less.
    #[must_use]
    pub fn align(&self, bytes: u64) -> u64 {
        bytes.next_multiple_of(self.alignment.clamp(16, 1 << 16).next_power_of_two())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_rates_replace_guesses() {
        let caps = DeviceCaps::default();
        let slow = caps.clone().with_measured(Measured { flops: 1_000_000, bytes: 10, host_bytes: 7 });
        assert_eq!(slow.rates(), Rates { flops: 400_000.0, bytes: 7.0, host_bytes: 7.0, ..caps.rates() });
        let nothing = caps.clone().with_measured(Measured { flops: 0, bytes: 0, host_bytes: 0 });
        assert_eq!(nothing.rates().flops, 1.0, "no division by zero");
        let json = serde_json::to_string(&slow).expect("numbers");
        assert_eq!(serde_json::from_str::<DeviceCaps>(&json).expect("its own"), slow);
    }

    #[test]
    fn limits_answer_to_the_names_of_webgpu() {
        let caps: DeviceCaps =
            serde_json::from_str(r#"{"maxBufferSize": 1024, "max_storage_buffer_binding_size": 512}"#).expect("known names");
        assert_eq!((caps.max_buffer, caps.max_binding), (1024, 512));
        assert!(serde_json::from_str::<DeviceCaps>(r#"{"max_bufer": 1}"#).is_err());
    }
}
