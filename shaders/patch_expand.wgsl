// Channels of a voxel as the voxels of a patch, row by row; what lies beyond the extent of the result is cropped.
// One invocation gathers 4 channels of one voxel: x walks the channel blocks of the voxels of a row, y the rows, z the planes.
// Limits: the source is one slab.

override WORKGROUP: u32 = 64u;
override WHOLE: bool = false;      // channels of the result are a multiple of 4

struct Params {
    in_extent: vec3<u32>,          // D, H, W
    channels: u32,                 // of the result
    out_extent: vec3<u32>,
    in_blocks: u32,                // of 4 channels
    patch_extent: vec3<u32>,       // D, H, W
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<Elem4>;       // [D, H, W, parts C/4]
@group(0) @binding(2) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, C/4]

// Channel c of the part of the voxel whose channels begin at block `voxel`.
fn load_channel(voxel: u32, part: u32, c: u32) -> f32 {
    if c >= params.channels {
        return 0.0;
    }
    let k = part * params.channels + c;
    return wide(source[voxel + k / 4u])[k % 4u];
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn patch_expand(@builtin(global_invocation_id) id: vec3<u32>) {
    let blocks = (params.channels + 3u) / 4u;
    let row = params.out_extent.z * blocks;
    if id.x >= row {
        return;
    }
    let patch_n = params.patch_extent;
    let oz = params.out_begin + id.z;
    let at = vec3<u32>(oz, id.y, id.x / blocks);
    let origin = at / patch_n;
    let inside = at % patch_n;
    let part = (inside.x * patch_n.y + inside.y) * patch_n.z + inside.z;
    let voxel = (((origin.x - params.first) * params.in_extent.y + origin.y) * params.in_extent.z + origin.z) * params.in_blocks;
    let b = id.x % blocks;
    var acc: vec4<f32>;
    if WHOLE {
        acc = wide(source[voxel + part * blocks + b]);
    } else {
        acc = vec4<f32>(
            load_channel(voxel, part, 4u * b),
            load_channel(voxel, part, 4u * b + 1u),
            load_channel(voxel, part, 4u * b + 2u),
            load_channel(voxel, part, 4u * b + 3u),
        );
    }
    dst[((oz - params.out_first) * params.out_extent.y + id.y) * row + id.x] = narrow(acc);
}
