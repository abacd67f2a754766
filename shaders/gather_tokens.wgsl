// Voxels of a map picked by their numbers in row-major order.
// One invocation copies 4 channels of one voxel: x walks the channel blocks of a group of voxels, y the groups.
// Limits: the source is one slab; numbers are exact in f32.

override WORKGROUP: u32 = 64u;

struct Params {
    count: u32,               // voxels of the result
    group: u32,               // voxels of a group
    blocks: u32,              // of 4 channels
    voxels: u32,              // of the source
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<Elem4>;       // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read> tokens: array<f32>;         // [N]
@group(0) @binding(3) var<storage, read_write> dst: array<Elem4>;    // [1, 1, N, C/4]

@compute @workgroup_size(WORKGROUP, 1, 1)
fn gather_tokens(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y * params.group + id.x / params.blocks;
    if id.x >= params.group * params.blocks || token >= params.count {
        return;
    }
    let picked = min(u32(tokens[token]), params.voxels - 1u);
    let c = id.x % params.blocks;
    dst[token * params.blocks + c] = source[picked * params.blocks + c];
}
