//! A Vulkan device that compiles and never runs: statistics and assembly of pipelines.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};

use ash::vk;

use crate::jobs::Job;

/// The driver and the device that it pretends to have.
pub struct Driver {
    device: ash::Device,
    executables: ash::khr::pipeline_executable_properties::Device,
    version: (u8, u8),
    robust: bool,
    /// Support for 16-bit floats in shaders.
    pub f16: bool,
    /// Driver and version.
    pub info: String,
    // the functions of the device lie in the library that the entry holds
    _entry: ash::Entry,
}

/// A pipeline's statistics and listing, as the driver gives them.
#[derive(Debug)]
pub struct Compiled {
    /// Lanes of a wave.
    pub subgroup: u32,
    /// Statistics by name.
    pub statistics: HashMap<String, u64>,
    /// Assembly.
    pub assembly: String,
}

fn text(raw: &[c_char]) -> String {
    // SAFETY: Vulkan ends its fixed arrays of characters with a zero
    unsafe { CStr::from_ptr(raw.as_ptr()) }.to_string_lossy().into_owned()
}

impl Driver {
    /// The first device of the loader; its driver is chosen by the environment.
    #[expect(unsafe_code, reason = "Vulkan")]
    pub fn new() -> Result<Self, String> {
        let failed = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
        // SAFETY: every handle below is used while its parent lives, and every structure outlives
        // the call that reads it
        unsafe {
            let entry = ash::Entry::load().map_err(|e| failed("no Vulkan loader", &e))?;
            let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let info = vk::InstanceCreateInfo::default().application_info(&app);
            let instance =
                entry.create_instance(&info, None).map_err(|e| failed("no instance", &e))?;
            let physical =
                instance.enumerate_physical_devices().map_err(|e| failed("no device", &e))?;
            let &physical = physical.first().ok_or("the driver has no device")?;
            let mut driver = vk::PhysicalDeviceDriverProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
            instance.get_physical_device_properties2(physical, &mut properties);
            let api = properties.properties.api_version;
            let info = format!("{}, {}", text(&driver.driver_name), text(&driver.driver_info));
            let extensions = instance
                .enumerate_device_extension_properties(physical)
                .map_err(|e| failed("no list of extensions", &e))?;
            let has = |name: &CStr| {
                extensions.iter().any(|e| text(&e.extension_name).as_bytes() == name.to_bytes())
            };
            let mut robustness = vk::PhysicalDeviceRobustness2FeaturesEXT::default();
            let mut twelve = vk::PhysicalDeviceVulkan12Features::default();
            let mut eleven = vk::PhysicalDeviceVulkan11Features::default();
            let mut features = vk::PhysicalDeviceFeatures2::default()
                .push_next(&mut eleven)
                .push_next(&mut twelve);
            if has(ash::ext::robustness2::NAME) {
                features = features.push_next(&mut robustness);
            }
            instance.get_physical_device_features2(physical, &mut features);
            let robust = robustness.robust_buffer_access2 != 0;
            let f16 = twelve.shader_float16 != 0;
            let mut names = vec![ash::khr::pipeline_executable_properties::NAME];
            if robust {
                names.push(ash::ext::robustness2::NAME);
            }
            let names: Vec<*const c_char> = names.iter().map(|n| n.as_ptr()).collect();
            let mut executable =
                vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
                    .pipeline_executable_info(true);
            let mut robustness =
                vk::PhysicalDeviceRobustness2FeaturesEXT::default().robust_buffer_access2(true);
            let sixteen = eleven.storage_buffer16_bit_access != 0;
            let mut eleven =
                vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(sixteen);
            let mut twelve = vk::PhysicalDeviceVulkan12Features::default().shader_float16(f16);
            let core = vk::PhysicalDeviceFeatures::default().robust_buffer_access(true);
            let queues = [vk::DeviceQueueCreateInfo::default()
                .queue_family_index(0)
                .queue_priorities(&[1.0])];
            let mut create = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&names)
                .enabled_features(&core)
                .push_next(&mut executable)
                .push_next(&mut eleven)
                .push_next(&mut twelve);
            if robust {
                create = create.push_next(&mut robustness);
            }
            let device = instance
                .create_device(physical, &create, None)
                .map_err(|e| failed("no device", &e))?;
            let executables =
                ash::khr::pipeline_executable_properties::Device::new(&instance, &device);
            let version = if api >= vk::API_VERSION_1_3 { (1, 6) } else { (1, 5) };
            Ok(Self { device, executables, version, robust, f16, info, _entry: entry })
        }
    }

    /// Compiles a job.
    pub fn compile(&self, job: &Job) -> Result<Compiled, String> {
        let words = crate::spirv::words(job, self.version, self.robust)?;
        self.pipeline(job, &words).map_err(|e| format!("{}: {e}", job.label))
    }

    #[expect(unsafe_code, reason = "Vulkan")]
    fn pipeline(&self, job: &Job, words: &[u32]) -> Result<Compiled, String> {
        let device = &self.device;
        let failed = |e: vk::Result| e.to_string();
        // SAFETY: the handles are this device's, destroyed once and last; every structure outlives
        // the call that reads it
        unsafe {
            let bindings: Vec<_> = (0u32..)
                .zip(&job.uniform)
                .map(|(binding, uniform)| {
                    let kind = if *uniform {
                        vk::DescriptorType::UNIFORM_BUFFER_DYNAMIC
                    } else {
                        vk::DescriptorType::STORAGE_BUFFER
                    };
                    vk::DescriptorSetLayoutBinding::default()
                        .binding(binding)
                        .descriptor_type(kind)
                        .descriptor_count(1)
                        .stage_flags(vk::ShaderStageFlags::COMPUTE)
                })
                .collect();
            let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [device.create_descriptor_set_layout(&info, None).map_err(failed)?];
            let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
            let layout = device.create_pipeline_layout(&info, None).map_err(failed)?;
            let info = vk::ShaderModuleCreateInfo::default().code(words);
            let module = device.create_shader_module(&info, None).map_err(failed)?;
            let name = CString::new(job.entry.as_str()).map_err(|e| e.to_string())?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&name);
            let flags = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            let info =
                [vk::ComputePipelineCreateInfo::default().flags(flags).stage(stage).layout(layout)];
            let pipeline = device
                .create_compute_pipelines(vk::PipelineCache::null(), &info, None)
                .map_err(|(_, e)| failed(e))?[0];
            let compiled = self.describe(pipeline).map_err(failed);
            device.destroy_pipeline(pipeline, None);
            device.destroy_shader_module(module, None);
            device.destroy_pipeline_layout(layout, None);
            device.destroy_descriptor_set_layout(sets[0], None);
            compiled
        }
    }

    #[expect(unsafe_code, reason = "Vulkan")]
    unsafe fn describe(&self, pipeline: vk::Pipeline) -> Result<Compiled, vk::Result> {
        let info = vk::PipelineInfoKHR::default().pipeline(pipeline);
        let of = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(0);
        // SAFETY: the caller's pipeline was made with both capture flags; the second call fills
        // what the first one counted
        unsafe {
            let subgroup =
                self.executables.get_pipeline_executable_properties(&info)?[0].subgroup_size;
            let mut statistics = HashMap::new();
            for s in self.executables.get_pipeline_executable_statistics(&of)? {
                if s.format != vk::PipelineExecutableStatisticFormatKHR::FLOAT64 {
                    statistics.insert(text(&s.name), s.value.u64);
                }
            }
            let get = self.executables.fp().get_pipeline_executable_internal_representations_khr;
            let mut n = 0;
            get(self.device.handle(), &of, &mut n, std::ptr::null_mut()).result()?;
            let mut found =
                vec![vk::PipelineExecutableInternalRepresentationKHR::default(); n as usize];
            get(self.device.handle(), &of, &mut n, found.as_mut_ptr()).result()?;
            let mut data: Vec<Vec<u8>> = found.iter().map(|r| vec![0u8; r.data_size]).collect();
            for (r, bytes) in found.iter_mut().zip(&mut data) {
                r.p_data = bytes.as_mut_ptr().cast();
            }
            get(self.device.handle(), &of, &mut n, found.as_mut_ptr()).result()?;
            let mut assembly = String::new();
            for (r, bytes) in found.iter().zip(&data).filter(|(r, _)| text(&r.name) == "Assembly") {
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(r.data_size);
                assembly = String::from_utf8_lossy(&bytes[..end]).into_owned();
            }
            Ok(Compiled { subgroup, statistics, assembly })
        }
    }
}
