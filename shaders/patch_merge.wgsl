// Voxels of a patch as the channels of one voxel; beyond the source they are zero.
// One invocation gathers 4 channels of one voxel: x walks the channel blocks of the voxels of a row, y the rows, z the planes.
// Limits: at most 8 voxels of a patch, at offsets below 256; the source spans at most two slabs.

override WORKGROUP: u32 = 64u;
override WHOLE: bool = false;      // channels of the source are a multiple of 4

struct Params {
    in_extent: vec3<u32>,          // D, H, W
    channels: u32,                 // of the source
    out_extent: vec3<u32>,
    parts: u32,                    // voxels of a patch that are gathered
    patch_extent: vec3<u32>,       // D, H, W
    first: u32,
    split: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
    order: array<vec4<u32>, 2>,    // offset of each part: 8 bits of D, H, W
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> lo: array<Elem4>;           // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read> hi: array<Elem4>;           // [D, H, W, C/4]
@group(0) @binding(3) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, parts C/4]

// Block b of the channels of a part of the patch that begins at `corner`.
fn load_part(corner: vec3<u32>, part: u32, b: u32) -> vec4<f32> {
    let offset = params.order[part / 4u][part % 4u];
    let at = corner + vec3<u32>(offset >> 16u, (offset >> 8u) & 255u, offset & 255u);
    let n = params.in_extent;
    if any(at >= n) {
        return vec4<f32>(0.0);
    }
    let blocks = (params.channels + 3u) / 4u;
    let voxel = (at.y * n.z + at.z) * blocks + b;
    let plane = n.y * n.z * blocks;
    if at.x < params.split {
        return wide(lo[(at.x - params.first) * plane + voxel]);
    }
    return wide(hi[(at.x - params.split) * plane + voxel]);
}

// Channel c of the result.
fn load_channel(corner: vec3<u32>, c: u32) -> f32 {
    if c >= params.parts * params.channels {
        return 0.0;
    }
    let k = c % params.channels;
    return load_part(corner, c / params.channels, k / 4u)[k % 4u];
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn patch_merge(@builtin(global_invocation_id) id: vec3<u32>) {
    let blocks = (params.parts * params.channels + 3u) / 4u;
    let row = params.out_extent.z * blocks;
    if id.x >= row {
        return;
    }
    let oz = params.out_begin + id.z;
    let corner = vec3<u32>(oz, id.y, id.x / blocks) * params.patch_extent;
    let b = id.x % blocks;
    var acc: vec4<f32>;
    if WHOLE {
        let part_blocks = params.channels / 4u;
        acc = load_part(corner, b / part_blocks, b % part_blocks);
    } else {
        acc = vec4<f32>(
            load_channel(corner, 4u * b),
            load_channel(corner, 4u * b + 1u),
            load_channel(corner, 4u * b + 2u),
            load_channel(corner, 4u * b + 3u),
        );
    }
    dst[((oz - params.out_first) * params.out_extent.y + id.y) * row + id.x] = narrow(acc);
}
