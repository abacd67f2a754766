//! Every shader variant: parsed, validated with core WebGPU (and f16) alone, reflected against its Rust half, and
//! translated for every backend. No device needed.
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, reason = "tests")]

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use naga::back::{glsl, hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::proc::BoundsCheckPolicies;
use naga::valid::{Capabilities, GlobalUse, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage, StorageAccess};
use organum::DeviceCaps;
use organum::kernels::{self, Binding, Call, Storage, Variant, shader_source};

/// A translation and how it is done: the writer's text or words, or why it refuses.
struct Backend {
    name: &'static str,
    write: fn(&Module, &ModuleInfo, &str, Storage) -> Result<(), String>,
}

const BACKENDS: [Backend; 5] = [
    Backend { name: "SPIR-V 1.3", write: to_spirv },
    Backend { name: "MSL 2.0", write: to_msl },
    Backend { name: "HLSL 5.1/6.2", write: to_hlsl },
    Backend { name: "GLSL 430", write: |m, i, name, _| to_glsl(m, i, name, glsl::Version::Desktop(430)) },
    Backend { name: "GLSL ES 310", write: |m, i, name, _| to_glsl(m, i, name, glsl::Version::new_gles(310)) },
];

/// What may fail, and why: (backend, storage, reason).
const EXCEPTIONS: [(&str, Storage, &str); 2] = [
    ("GLSL 430", Storage::F16, "naga's GLSL writer has no 16-bit floats; packed ones take their place"),
    ("GLSL ES 310", Storage::F16, "naga's GLSL writer has no 16-bit floats; packed ones take their place"),
];

/// Storage buffers that every WebGPU device binds in a stage.
const STORAGE_BUFFERS: usize = 8;
/// Workgroup memory that every WebGPU device has.
const WORKGROUP_BYTES: u32 = 16 << 10;

fn to_spirv(module: &Module, info: &ModuleInfo, name: &str, _: Storage) -> Result<(), String> {
    let options = spv::Options { lang_version: (1, 3), force_loop_bounding: false, ..spv::Options::default() };
    let pipeline = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: name.to_owned() };
    let words = spv::write_vec(module, info, &options, Some(&pipeline)).map_err(|e| e.to_string())?;
    assert_eq!(words[0], 0x0723_0203);
    // for spirv-val: .ci/spirv
    if let Some(folder) = std::env::var_os("ORGANUM_SPIRV") {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut hash = DefaultHasher::new();
        bytes.hash(&mut hash);
        let file = std::path::Path::new(&folder).join(format!("{name}-{:016x}.spv", hash.finish()));
        std::fs::write(file, bytes).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn to_msl(module: &Module, info: &ModuleInfo, name: &str, _: Storage) -> Result<(), String> {
    let options = msl::Options { lang_version: (2, 0), force_loop_bounding: false, ..msl::Options::default() };
    let pipeline = msl::PipelineOptions { entry_point: Some((ShaderStage::Compute, name.to_owned())), ..msl::PipelineOptions::default() };
    let (text, translated) = msl::write_string(module, info, &options, &pipeline).map_err(|e| e.to_string())?;
    for point in translated.entry_point_names {
        assert!(text.contains(&point.map_err(|e| e.to_string())?), "the entry point is in the text");
    }
    Ok(())
}

fn to_hlsl(module: &Module, info: &ModuleInfo, name: &str, storage: Storage) -> Result<(), String> {
    // naga does not check that 16-bit types need shader model 6.2
    let shader_model = if storage == Storage::F16 { hlsl::ShaderModel::V6_2 } else { hlsl::ShaderModel::V5_1 };
    let options = hlsl::Options { shader_model, force_loop_bounding: false, ..hlsl::Options::default() };
    let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, name.to_owned())) };
    let mut text = String::new();
    hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None).map_err(|e| e.to_string())?;
    assert!(text.contains("numthreads"), "the entry point is in the text");
    Ok(())
}

fn to_glsl(module: &Module, info: &ModuleInfo, name: &str, version: glsl::Version) -> Result<(), String> {
    let bindings = module.global_variables.iter().filter_map(|(_, v)| v.binding).map(|b| (b, b.binding as u8));
    let options = glsl::Options { version, binding_map: bindings.collect(), ..glsl::Options::default() };
    let pipeline = glsl::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: name.to_owned(), multiview: None };
    let mut text = String::new();
    let mut writer =
        glsl::Writer::new(&mut text, module, info, &options, &pipeline, BoundsCheckPolicies::default()).map_err(|e| e.to_string())?;
    writer.write().map_err(|e| e.to_string())?;
    assert!(text.contains("void main()"), "the entry point is in the text");
    Ok(())
}

/// Parses and validates; nothing but core WebGPU and, with its prelude, f16 is allowed.
fn parse(name: &str, shader: &str, storage: Storage) -> (Module, ModuleInfo) {
    let source = shader_source(shader, storage);
    let module =
        naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{name} {}: {}", storage.name(), e.emit_to_string(&source)));
    // pack2x16float and its inverse, which every WebGPU device has
    let core = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let capabilities = if storage == Storage::F16 { core | Capabilities::SHADER_FLOAT16 } else { core };
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{name} {}: {}", storage.name(), e.emit_to_string(&source)));
    (module, info)
}

/// A call of every variant of every kernel, on a GPU and on a CPU, once.
fn variants() -> Vec<(Call, Variant)> {
    let mut all = BTreeMap::new();
    let packed = DeviceCaps::default().without_f16();
    for caps in [DeviceCaps::default(), DeviceCaps::host(), packed] {
        for (_, call) in kernels::cases().into_iter().filter(|(_, call)| caps.f16 || call.packs()) {
            // once more with sources in two slabs
            let mut split = call.clone();
            split.operands().0.iter_mut().for_each(|window| window.split = 1);
            for call in [call, split] {
                let variant = call.variant(&caps);
                all.entry(format!("{} {}", call.name(), variant.key())).or_insert((call, variant));
            }
        }
    }
    all.into_values().collect()
}

fn translate(call: &Call, variant: &Variant, backend: &Backend) -> Result<(), String> {
    let (module, info) = parse(call.name(), call.shader(), variant.storage);
    let constants: HashMap<String, f64> = variant.constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    let point = (ShaderStage::Compute, call.name());
    let (module, info) =
        process_overrides(&module, &info, Some(point), &constants.into_iter().collect()).map_err(|e| format!("overrides: {e}"))?;
    catch_unwind(AssertUnwindSafe(|| (backend.write)(&module, &info, call.name(), variant.storage)))
        .unwrap_or_else(|e| Err(e.downcast_ref::<String>().cloned().unwrap_or_else(|| "the writer panicked".into())))
}

#[test]
fn every_variant_translates_to_every_backend() {
    let mut table: BTreeMap<(&str, &str), Vec<(usize, usize)>> = BTreeMap::new();
    let mut failures = Vec::new();
    for (call, variant) in variants() {
        let row = table.entry((call.name(), variant.storage.name())).or_insert_with(|| vec![(0, 0); BACKENDS.len()]);
        for (cell, backend) in row.iter_mut().zip(&BACKENDS) {
            let result = translate(&call, &variant, backend);
            let exception = EXCEPTIONS.iter().find(|(b, storage, _)| *b == backend.name && *storage == variant.storage);
            cell.0 += usize::from(result.is_ok());
            cell.1 += 1;
            match (result, exception) {
                (Ok(()), None) => {}
                (Err(e), Some(_)) if e.contains("unsupported width") => {}
                (Err(e), _) => failures.push(format!("{} {} to {}: {e}", call.name(), variant.key(), backend.name)),
                (Ok(()), Some((.., reason))) => failures.push(format!(
                    "{} {} to {} works now, so this is no exception: {reason}",
                    call.name(),
                    variant.key(),
                    backend.name
                )),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let text = page(&table);
    println!("{text}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/docs/backends.md");
    if std::env::var_os("ORGANUM_BLESS").is_some() {
        std::fs::write(path, &text).expect("the page can be written");
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert!(stored == text, "src/docs/backends.md is not what the catalogue says; ORGANUM_BLESS=1 cargo test --test shaders writes it");
}

/// The table as a page of the documentation.
fn page(table: &BTreeMap<(&str, &str), Vec<(usize, usize)>>) -> String {
    let mut text = "# Kernels and backends\n\nWritten by `tests/shaders.rs` from the catalogue of kernels: how many variants of each shader naga parses, validates and translates to each \
        backend.\nThe same variants are run through Vulkan and compared with their scalar twins by `tests/kernels.rs`.\n\n| kernel | storage |"
        .to_owned();
    text.extend(BACKENDS.iter().map(|b| format!(" {} |", b.name)));
    text.push_str(&format!("\n|---|---|{}\n", "---|".repeat(BACKENDS.len())));
    for ((kernel, storage), row) in table {
        let cells = row.iter().zip(&BACKENDS).map(|((ok, of), backend)| match ok == of {
            true => format!(" {of} |"),
            false if EXCEPTIONS.iter().any(|(b, s, _)| *b == backend.name && s.name() == *storage) => " - |".to_owned(),
            false => format!(" {ok} of {of} |"),
        });
        text.push_str(&format!("| `{kernel}` | {storage} |{}\n", cells.collect::<String>()));
    }
    text.push_str("\nExceptions:\n");
    for (backend, storage, reason) in EXCEPTIONS {
        text.push_str(&format!("- {} on {backend}: {reason}.\n", storage.name()));
    }
    text
}

#[test]
fn every_kernel_takes_every_element_type() {
    let mut seen = Vec::new();
    for (_, call) in kernels::cases() {
        if !seen.contains(&call.name()) {
            seen.push(call.name());
            for storage in Storage::ALL {
                parse(call.name(), call.shader(), storage);
            }
        }
    }
    assert_eq!(seen, kernels::NAMES, "every kernel has a case");
}

/// What the shader declares at group 0, by binding number.
fn declared(name: &str, (module, info): &(Module, ModuleInfo), storage: Storage) -> Vec<Binding> {
    let of = |ty, wanted: naga::Scalar| {
        let naga::TypeInner::Array { base, .. } = module.types[ty].inner else { return false };
        matches!(module.types[base].inner, naga::TypeInner::Scalar(s) | naga::TypeInner::Vector { scalar: s, .. } if s == wanted)
    };
    // packed weights are blocks of vectors
    let block = |ty| {
        let naga::TypeInner::Array { base, .. } = module.types[ty].inner else { return false };
        matches!(module.types[base].inner, naga::TypeInner::Struct { .. })
    };
    let f32s = |ty| of(ty, naga::Scalar::F32) || block(ty);
    let mut found = BTreeMap::new();
    for (handle, variable) in module.global_variables.iter() {
        let is_read = info.get_entry_point(0)[handle].contains(GlobalUse::READ);
        let kind =
            match variable.space {
                AddressSpace::Uniform => Binding::Params,
                AddressSpace::Storage { access } if !access.contains(StorageAccess::STORE) => {
                    if storage == Storage::F16 && f32s(variable.ty) { Binding::ReadF32 } else { Binding::Read }
                }
                AddressSpace::Storage { .. } if of(variable.ty, naga::Scalar::U32) => Binding::WriteWords,
                AddressSpace::Storage { .. } if storage == Storage::F16 && f32s(variable.ty) => {
                    if is_read {
                        Binding::Update
                    } else {
                        Binding::WriteF32
                    }
                }
                AddressSpace::Storage { .. } => Binding::Write,
                AddressSpace::WorkGroup | AddressSpace::Private => continue,
                other => panic!("{name}: {other:?} is not for compute kernels"),
            };
        let at = variable.binding.unwrap_or_else(|| panic!("{name}: a resource without a binding"));
        assert_eq!(at.group, 0, "{name}: one bind group");
        assert!(found.insert(at.binding, kind).is_none(), "{name}: binding {} twice", at.binding);
    }
    assert!(found.keys().copied().eq(0..found.len() as u32), "{name}: bindings are numbered from 0: {found:?}");
    found.into_values().collect()
}

#[test]
fn shaders_declare_what_their_rust_halves_bind() {
    for (call, variant) in variants() {
        let name = call.name();
        let parsed = parse(name, call.shader(), variant.storage);
        let (module, info) = &parsed;
        let points: Vec<_> = module.entry_points.iter().map(|p| (p.stage, p.name.as_str())).collect();
        assert_eq!(points, [(ShaderStage::Compute, name)], "one entry point, named as the kernel");

        // only with f16 elements can what is always f32 be told apart
        let f16 = parse(name, call.shader(), Storage::F16);
        let bindings = declared(name, &f16, Storage::F16);
        assert_eq!(bindings, call.bindings(), "{name}");
        assert_eq!(bindings.len(), declared(name, &parsed, variant.storage).len(), "{name}");
        assert_eq!(bindings.iter().filter(|&&b| b == Binding::Params).count(), 1, "{name}: one uniform block");
        let storage = bindings.len() - 1;
        assert!(storage <= STORAGE_BUFFERS, "{name} binds {storage} storage buffers");
        assert_eq!(call.sizes().len(), storage, "{name}: a size for every storage binding");

        let params = module.global_variables.iter().find(|(_, v)| v.space == AddressSpace::Uniform).expect("just counted").1.ty;
        let size = module.types[params].inner.size(module.to_ctx()) as usize;
        assert_eq!(size, call.params().len(), "{name}: bytes of Params");
        assert_eq!(size % 16, 0, "{name}: a uniform block is a multiple of 16 bytes");

        let overrides: Vec<&str> = module.overrides.iter().filter_map(|(_, o)| o.name.as_deref()).collect();
        for (constant, _) in &variant.constants {
            assert!(overrides.contains(constant), "{name} has no override {constant}");
        }

        let constants = variant.constants.iter().map(|&(n, v)| (n.to_owned(), v)).collect();
        let (made, _) = process_overrides(module, info, None, &constants).expect("the overrides fit");
        let memory: u32 = made
            .global_variables
            .iter()
            .filter(|(_, v)| v.space == AddressSpace::WorkGroup)
            .map(|(_, v)| made.types[v.ty].inner.size(made.to_ctx()))
            .sum();
        assert!(memory <= WORKGROUP_BYTES, "{name} takes {memory} bytes of workgroup memory");
        assert_eq!(made.entry_points[0].workgroup_size, [variant.workgroup(), 1, 1], "{name}");
        assert!(!call.shader().contains("subgroup"), "{name}: naga rejects `enable subgroups;`, browsers demand it");
    }
}

#[test]
fn constants_are_set_once() {
    for (call, variant) in variants() {
        let names: Vec<_> = variant.constants.iter().map(|(n, _)| n).collect();
        assert!((1..names.len()).all(|i| !names[..i].contains(&names[i])), "{} sets a constant twice: {names:?}", call.name());
        assert_eq!(names[0], &"WORKGROUP");
    }
}
