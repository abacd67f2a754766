//! Compiled pipelines as bytes that a host program keeps from one process to the next.
//!
//! The bytes begin with a head of our own: what they were made by (adapter, driver, organum's version) and a hash of all that
//! follows. What does not fit is not handed to the driver.

use std::sync::{Mutex, PoisonError};

use crate::engine::Engine;

const MAGIC: &[u8; 8] = b"organumP";

/// More bytes than a cache has; a file that claims them is not one of ours.
const MOST_BYTES: usize = 256 << 20;

/// The driver's cache of one device, made at first use.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Option<wgpu::PipelineCache>>);

impl Cache {
    fn set(&self, cache: wgpu::PipelineCache) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cache);
    }

    /// The cache to compile with, on devices that have one.
    pub(super) fn get(&self, device: &wgpu::Device) -> Option<wgpu::PipelineCache> {
        let has_one = device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        has_one.then(|| cache.get_or_insert_with(|| create(device, None)).clone())
    }
}

/// The driver's cache, of bytes that [`unwrap`] took out of what [`wrap`] made, or empty.
#[expect(unsafe_code, reason = "wgpu cannot tell whether bytes come from the driver; the hash beside them does")]
fn create(device: &wgpu::Device, data: Option<&[u8]>) -> wgpu::PipelineCache {
    let descriptor = wgpu::PipelineCacheDescriptor { label: Some("organum"), data, fallback: true };
    // SAFETY: `data` must be what `PipelineCache::get_data` returned. It was wrapped by `Engine::compiled`, the only caller of
    // `wrap`, together with a hash of 128 bits and the adapter, driver and version: `unwrap` gives no bytes that were cut,
    // changed by accident, or made elsewhere. wgpu then compares its own header (adapter, driver's identifier, length), and
    // falls back to an empty cache. Against files that are forged on purpose nothing here helps; they lie in the user's folder.
    unsafe { device.create_pipeline_cache(&descriptor) }
}

/// FNV-1a of 128 bits: it tells damage, not malice.
fn hash(parts: &[&[u8]]) -> u128 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, &byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

/// Bytes of the driver with what made them and the hash.
fn wrap(key: &str, data: &[u8]) -> Vec<u8> {
    let hash = hash(&[key.as_bytes(), b"\0", data]);
    let mut bytes = Vec::with_capacity(MAGIC.len() + 16 + data.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&hash.to_le_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// The driver's bytes of what [`wrap`] made with this key; none of anything else.
fn unwrap<'a>(key: &str, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (stored, data) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<16>()?;
    let fits = data.len() <= MOST_BYTES && u128::from_le_bytes(*stored) == hash(&[key.as_bytes(), b"\0", data]);
    fits.then_some(data)
}

impl Engine {
    /// A name for the file of [`Engine::compiled`]: another one for every adapter, driver and version of organum, of letters,
    /// digits, `.` and `-`. `None` where the device keeps no pipelines ([`wgpu::Features::PIPELINE_CACHE`]).
    #[must_use]
    pub fn compiled_name(&self) -> Option<String> {
        let key = self.compiled_key()?;
        Some(format!("pipelines-{}-{:032x}.bin", env!("CARGO_PKG_VERSION"), hash(&[key.as_bytes()])))
    }

    /// Adapter, driver and version that compiled pipelines are of.
    fn compiled_key(&self) -> Option<String> {
        if !self.device().features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let info = self.device().adapter_info();
        Some(format!(
            "{} {} {:x} {:x} {:?} {} {}",
            env!("CARGO_PKG_VERSION"),
            info.name,
            info.vendor,
            info.device,
            info.backend,
            info.driver,
            info.driver_info
        ))
    }

    /// The pipelines compiled so far, for [`Engine::reuse_compiled`] in another process. `None` where the device keeps none.
    #[must_use]
    pub fn compiled(&self) -> Option<Vec<u8>> {
        let data = self.cache().get(self.device())?.get_data()?;
        Some(wrap(&self.compiled_key()?, &data))
    }

    /// Compiles with what [`Engine::compiled`] gave in an earlier process; sessions made from here on profit. False, and
    /// without any effect, where these bytes do not fit: of another adapter, driver or version, damaged, cut, or of a device
    /// that keeps no pipelines. The bytes must not come from anyone who is not trusted: a hash tells damage, not malice.
    #[must_use = "bytes that do not fit are not used"]
    pub fn reuse_compiled(&self, bytes: &[u8]) -> bool {
        let key = self.compiled_key();
        let data = key.and_then(|key| unwrap(&key, bytes));
        if let Some(data) = data {
            self.cache().set(create(self.device(), Some(data)));
        }
        data.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_damaged_cut_or_of_another_device_do_not_fit() {
        let bytes = wrap("a driver", b"its pipelines");
        assert_eq!(unwrap("a driver", &bytes), Some(&b"its pipelines"[..]));
        assert_eq!(unwrap("another driver", &bytes), None);
        assert_eq!(unwrap("a driver", b""), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(unwrap("a driver", &damaged), None, "byte {at}");
            assert_eq!(unwrap("a driver", &bytes[..at]), None, "cut at {at}");
        }
        assert_eq!(unwrap("a driver", &[&bytes[..], b"0"].concat()), None);
        // the border between key and data is hashed
        assert_eq!(unwrap("a driveri", &wrap("a driver", b"i")), None);
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(&[]), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(hash(&[b"a"]), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(hash(&[b"foo", b"bar"]), hash(&[b"foobar"]));
    }

    #[test]
    fn a_device_takes_back_what_it_compiled_and_nothing_else() {
        let Ok(engine) = pollster::block_on(Engine::request(None)) else { return };
        let Some(name) = engine.compiled_name() else {
            assert!(engine.compiled().is_none() && !engine.reuse_compiled(b"anything"));
            return;
        };
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.'), "{name}");
        let bytes = engine.compiled().expect("it keeps pipelines");
        assert!(engine.reuse_compiled(&bytes));
        assert!(!engine.reuse_compiled(&bytes[..bytes.len() - 1]) && !engine.reuse_compiled(b""));
    }
}
