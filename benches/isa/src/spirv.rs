//! WGSL to SPIR-V with the options that wgpu-hal 30.0.1 gives naga on Vulkan.

use naga::back::{PipelineConstants, pipeline_constants::process_overrides, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ValidationFlags, Validator};

use crate::jobs::Job;

/// The words of a job's module. `robust`: the device checks the bounds of buffers itself, so that
/// the shader need not.
pub fn words(job: &Job, version: (u8, u8), robust: bool) -> Result<Vec<u32>, String> {
    let failed = |what: String| format!("{}: {what}", job.label);
    let module = naga::front::wgsl::parse_str(&job.source)
        .map_err(|e| failed(e.emit_to_string(&job.source)))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|e| failed(e.emit_to_string(&job.source)))?;
    let constants: PipelineConstants = job.constants.iter().cloned().collect();
    let point = Some((naga::ShaderStage::Compute, job.entry.as_str()));
    let (module, info) =
        process_overrides(&module, &info, point, &constants).map_err(|e| failed(e.to_string()))?;
    let unchecked = BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: version,
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        capabilities: None,
        bounds_check_policies: BoundsCheckPolicies {
            index: BoundsCheckPolicy::Restrict,
            buffer: if robust { unchecked } else { BoundsCheckPolicy::Restrict },
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: true,
        ..spv::Options::default()
    };
    let pipeline = spv::PipelineOptions {
        entry_point: job.entry.clone(),
        shader_stage: naga::ShaderStage::Compute,
    };
    spv::write_vec(&module, &info, &options, Some(&pipeline)).map_err(|e| failed(e.to_string()))
}
