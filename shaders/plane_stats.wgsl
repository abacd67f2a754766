// Mean and biased variance of each channel over a plane, from those of its parts of ROWS rows.
// One invocation computes 4 channels of one plane: x walks the channel blocks, z the planes.
// Limits: the source's planes lie in one slab.

override WORKGROUP: u32 = 64u;
override ROWS: u32 = 8u;

struct Params {
    rows: u32,                // of a plane of the map that was measured
    blocks: u32,              // of 4 channels
    parts: u32,               // of a plane
    first: u32,
    out_first: u32,
    out_begin: u32,
    voxels: f32,              // of a plane
    width: f32,               // voxels of a row
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<f32>>;          // [D, parts, 2, C/4]: means, sums of squares
@group(0) @binding(2) var<storage, read_write> dst: array<vec4<f32>>;    // [D, 2, C/4]: means, variances

@compute @workgroup_size(WORKGROUP, 1, 1)
fn plane_stats(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.blocks {
        return;
    }
    let z = params.out_begin + id.z;
    let source = (z - params.first) * params.parts * 2u * params.blocks + id.x;
    let pivot = src[source];
    var mean = vec4<f32>(0.0);
    for (var p = 0u; p < params.parts; p++) {
        let share = f32(min(ROWS, params.rows - p * ROWS)) * params.width / params.voxels;
        mean = fma(src[source + p * 2u * params.blocks] - pivot, vec4<f32>(share), mean);
    }
    var variance = vec4<f32>(0.0);
    for (var p = 0u; p < params.parts; p++) {
        let share = f32(min(ROWS, params.rows - p * ROWS)) * params.width / params.voxels;
        let at = source + p * 2u * params.blocks;
        let delta = src[at] - pivot - mean;
        variance += fma(delta * delta, vec4<f32>(share), src[at + params.blocks] / params.voxels);
    }
    let out = (z - params.out_first) * 2u * params.blocks + id.x;
    dst[out] = pivot + mean;
    dst[out + params.blocks] = variance;
}
