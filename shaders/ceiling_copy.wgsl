// A plain copy of f32 values: the traffic that a device reaches at best.
// One invocation copies 4 values: x walks the blocks of a row, y the rows, z the planes.
// Limits: the source's planes lie in one slab.

override WORKGROUP: u32 = 64u;

struct Params {
    row: u32,                 // blocks of 4 values of a row
    rows: u32,                // of a plane
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<f32>>;          // [D, rows, row]
@group(0) @binding(2) var<storage, read_write> dst: array<vec4<f32>>;    // [D, rows, row]

@compute @workgroup_size(WORKGROUP, 1, 1)
fn ceiling_copy(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.row {
        return;
    }
    let z = params.out_begin + id.z;
    let value = src[((z - params.first) * params.rows + id.y) * params.row + id.x];
    dst[((z - params.out_first) * params.rows + id.y) * params.row + id.x] = value;
}
