// Element-wise product of two maps of one shape: the gate of a skip connection.
// One invocation computes 4 channels of one voxel: x walks the channel blocks of a row, y the rows, z the planes.
// Limits: each source's planes lie in one slab.

override WORKGROUP: u32 = 64u;

struct Params {
    row: u32,                 // blocks of 4 elements of a row
    rows: u32,                // of a plane
    a_first: u32,
    b_first: u32,
    out_first: u32,
    out_begin: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Elem4>;            // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read> b: array<Elem4>;            // [D, H, W, C/4]
@group(0) @binding(3) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, C/4]

@compute @workgroup_size(WORKGROUP, 1, 1)
fn multiply(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.row {
        return;
    }
    let z = params.out_begin + id.z;
    let x = wide(a[((z - params.a_first) * params.rows + id.y) * params.row + id.x]);
    let y = wide(b[((z - params.b_first) * params.rows + id.y) * params.row + id.x]);
    dst[((z - params.out_first) * params.rows + id.y) * params.row + id.x] = narrow(x * y);
}
