//! Compute pipelines: WGSL and variant to a wgpu pipeline with the kernel's declared bindings.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

#[cfg(not(target_arch = "wasm32"))]
use rayon::prelude::*;

use super::signal::{Alarm, Pauses};
use crate::caps::DeviceCaps;
use crate::error::{EngineError, EngineErrorKind};
use crate::kernels::{Binding, Call, Variant, shader_source};

/// A compiled kernel variant.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) compute: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// The pipelines of a device by kernel and variant, `None` while one is being compiled: whoever needs it waits, instead of
/// compiling it again.
#[derive(Debug, Default)]
pub(super) struct Pipelines(Mutex<HashMap<String, Option<Arc<Pipeline>>>>);

impl Pipelines {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Pipeline>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pipelines of kernel calls, in their order. Each that is not there yet is compiled once, all of them at the same time
    /// where there are threads.
    pub(super) async fn all(
        &self,
        at: (&wgpu::Device, Option<&wgpu::PipelineCache>),
        alarm: &Alarm,
        caps: &DeviceCaps,
        calls: &[&Call],
    ) -> Result<Vec<Arc<Pipeline>>, EngineError> {
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut distinct = Vec::new();
        let mut wanted = Vec::with_capacity(calls.len());
        for &call in calls {
            let variant = call.variant(caps);
            let key = format!("{} {}", call.name(), variant.key());
            wanted.push(*places.entry(key.clone()).or_insert_with(|| {
                distinct.push((key, call, variant));
                distinct.len() - 1
            }));
        }
        #[cfg(not(target_arch = "wasm32"))]
        let made: Vec<Arc<Pipeline>> = {
            let get = |(key, call, variant): &(String, &Call, Variant)| pollster::block_on(self.get(at, alarm, key, call, variant));
            distinct.par_iter().map(get).collect::<Result<_, _>>()?
        };
        #[cfg(target_arch = "wasm32")]
        let made: Vec<Arc<Pipeline>> = {
            let mut made = Vec::with_capacity(distinct.len());
            for (key, call, variant) in &distinct {
                made.push(self.get(at, alarm, key, call, variant).await?);
            }
            made
        };
        Ok(wanted.into_iter().map(|at| Arc::clone(&made[at])).collect())
    }

    /// The pipeline of a kernel call, compiled at first use.
    async fn get(
        &self,
        (device, cache): (&wgpu::Device, Option<&wgpu::PipelineCache>),
        alarm: &Alarm,
        key: &str,
        call: &Call,
        variant: &Variant,
    ) -> Result<Arc<Pipeline>, EngineError> {
        let mut pauses = Pauses::new();
        let found = std::future::poll_fn(|context| {
            let mut all = self.lock();
            match all.get(key) {
                Some(Some(made)) => Poll::Ready(Some(Arc::clone(made))),
                Some(None) => {
                    drop(all);
                    pauses.pause(alarm, context);
                    Poll::Pending
                }
                None => {
                    all.insert(key.to_owned(), None);
                    Poll::Ready(None)
                }
            }
        });
        if let Some(made) = found.await {
            return Ok(made);
        }
        let claim = Claim { pipelines: self, key };
        let made = Arc::new(Pipeline::new(device, cache, call, variant).await?);
        self.lock().insert(key.to_owned(), Some(Arc::clone(&made)));
        drop(claim);
        Ok(made)
    }
}

/// A pipeline that is being compiled. Unless it is there when this is dropped, the next who needs it compiles it.
struct Claim<'a> {
    pipelines: &'a Pipelines,
    key: &'a str,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut all = self.pipelines.lock();
        if all.get(self.key).is_some_and(Option::is_none) {
            all.remove(self.key);
        }
    }
}

impl Pipeline {
    async fn new(device: &wgpu::Device, cache: Option<&wgpu::PipelineCache>, call: &Call, variant: &Variant) -> Result<Self, EngineError> {
        let name = call.name();
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0u32..)
            .zip(call.bindings())
            .map(|(binding, kind)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match kind {
                        Binding::Params => wgpu::BufferBindingType::Uniform,
                        Binding::Read | Binding::ReadF32 => wgpu::BufferBindingType::Storage { read_only: true },
                        Binding::Write | Binding::WriteF32 | Binding::WriteWords | Binding::Update => {
                            wgpu::BufferBindingType::Storage { read_only: false }
                        }
                    },
                    has_dynamic_offset: *kind == Binding::Params,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(name), entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let source = wgpu::ShaderSource::Wgsl(shader_source(call.shader(), variant.storage).into());
        let module = module(device, wgpu::ShaderModuleDescriptor { label: Some(name), source });
        let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(name),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &variant.constants,
                zero_initialize_workgroup_memory: false,
            },
            cache,
        });
        match scope.pop().await {
            Some(e) => {
                Err(EngineError::new(EngineErrorKind::Shader, format!("the device refuses the kernel {name} ({})", variant.key()))
                    .caused_by(e))
            }
            None => Ok(Self { compute, layout }),
        }
    }
}

#[expect(unsafe_code, reason = "naga's loop counters halve the speed of every kernel (gfx-rs/wgpu#7698); ours are finite by construction")]
fn module(device: &wgpu::Device, descriptor: wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule {
    let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
    // SAFETY: bounds checks stay on; only the protection against endless loops is off, and every loop of our shaders runs
    // over a range of integers.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}
