// Adds a separable positional encoding: row z of the D table, row y of the H table and row x of the W table.
// One invocation computes 4 channels of one voxel: x walks the channel blocks of the voxels of a row, y the rows, z the planes.
// Limits: the source's planes lie in one slab.

override WORKGROUP: u32 = 64u;

struct Params {
    extent: vec3<u32>,        // D, H, W
    blocks: u32,              // of 4 channels
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<Elem4>;          // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read> table: array<Elem4>;        // [D + H + W, C/4]
@group(0) @binding(3) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, C/4]

@compute @workgroup_size(WORKGROUP, 1, 1)
fn position_add(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = params.extent.z * params.blocks;
    if id.x >= row {
        return;
    }
    let c = id.x % params.blocks;
    let z = params.out_begin + id.z;
    let y = params.extent.x + id.y;
    let x = params.extent.x + params.extent.y + id.x / params.blocks;
    let position = wide(table[z * params.blocks + c]) + wide(table[y * params.blocks + c]) + wide(table[x * params.blocks + c]);
    let source = ((z - params.first) * params.extent.y + id.y) * row + id.x;
    dst[((z - params.out_first) * params.extent.y + id.y) * row + id.x] = narrow(wide(src[source]) + position);
}
