// Rows of a table as the voxels of a map, counted row by row, over and over.
// One invocation copies 4 channels of one voxel: x walks the channel blocks of the voxels of a row, y the rows, z the planes.

override WORKGROUP: u32 = 64u;

struct Params {
    extent: vec3<u32>,        // D, H, W
    blocks: u32,              // of 4 channels
    rows: u32,                // of the table
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<Elem4>;        // [rows, C/4]
@group(0) @binding(2) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, C/4]

@compute @workgroup_size(WORKGROUP, 1, 1)
fn token_rows(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = params.extent.z * params.blocks;
    if id.x >= row {
        return;
    }
    let z = params.out_begin + id.z;
    let voxel = (z * params.extent.y + id.y) * params.extent.z + id.x / params.blocks;
    let source = (voxel % params.rows) * params.blocks + id.x % params.blocks;
    dst[((z - params.out_first) * params.extent.y + id.y) * row + id.x] = table[source];
}
