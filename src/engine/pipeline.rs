//! Compute pipelines: WGSL and variant to a wgpu pipeline with the kernel's declared bindings.

use crate::error::{EngineError, EngineErrorKind};
use crate::kernels::{Binding, Call, Variant, shader_source};

/// A compiled kernel variant.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) compute: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

impl Pipeline {
    pub(super) async fn new(device: &wgpu::Device, call: &Call, variant: &Variant) -> Result<Self, EngineError> {
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
            cache: None,
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
