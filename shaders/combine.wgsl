// activation(a + b) or activation(a b) of two maps, their norms and activations applied as they are loaded: the sum of a residual
// block, the gate of a skip connection.
// One invocation computes 4 channels of one voxel: x walks the channel blocks of the voxels of a row, y the rows, z the planes.
// Limits: each source's planes lie in one slab.

override WORKGROUP: u32 = 64u;
override MULTIPLY: bool = false;
override SPREAD: u32 = 0u;    // what b is spread over: 0 nothing, 1 all channels, 2 all voxels

struct Params {
    row: u32,                 // blocks of 4 elements of a row
    rows: u32,                // of a plane
    blocks: u32,              // of 4 channels
    a_first: u32,
    b_first: u32,
    a_norm_first: u32,
    b_norm_first: u32,
    out_first: u32,
    out_begin: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Elem4>;            // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read> b: array<Elem4>;            // [D, H, W, C/4], [D, H, W, 1] or [1, 1, 1, C/4]
@group(0) @binding(3) var<storage, read> a_norm: array<vec4<f32>>;   // [1 or D, 2, C/4]: scale, shift
@group(0) @binding(4) var<storage, read> b_norm: array<vec4<f32>>;   // the same of b
@group(0) @binding(5) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, C/4]

fn load_first(z: u32, at: u32, c: u32) -> vec4<f32> {
    var norm = mat2x4<f32>(vec4<f32>(1.0), vec4<f32>(0.0));
    if A_NORM > 0u {
        let n = select(0u, z - params.a_norm_first, A_NORM == 2u) * 2u * params.blocks + c;
        norm = mat2x4<f32>(a_norm[n], a_norm[n + params.blocks]);
    }
    return load_a(wide(a[(z - params.a_first) * params.rows * params.row + at]), norm);
}

// Block `c` of the channels of a voxel of b, of which block `at` of the result's plane is made.
fn load_second(z: u32, at: u32, c: u32) -> vec4<f32> {
    let plane = select(z, 0u, SPREAD == 2u);
    let blocks = select(params.blocks, 1u, SPREAD == 1u);
    let block = select(c, 0u, SPREAD == 1u);
    var norm = mat2x4<f32>(vec4<f32>(1.0), vec4<f32>(0.0));
    if B_NORM > 0u {
        let n = select(0u, plane - params.b_norm_first, B_NORM == 2u) * 2u * blocks + block;
        norm = mat2x4<f32>(b_norm[n], b_norm[n + blocks]);
    }
    if SPREAD == 2u {
        return load_b(wide(b[c]), norm);
    }
    if SPREAD == 1u {
        let voxels = params.rows * (params.row / params.blocks);
        return vec4<f32>(load_b(wide(b[(z - params.b_first) * voxels + at / params.blocks]), norm).x);
    }
    return load_b(wide(b[(z - params.b_first) * params.rows * params.row + at]), norm);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn combine(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.row {
        return;
    }
    let z = params.out_begin + id.z;
    let at = id.y * params.row + id.x;
    let c = id.x % params.blocks;
    let x = load_first(z, at, c);
    let y = load_second(z, at, c);
    var acc = x + y;
    if MULTIPLY {
        acc = x * y;
    }
    dst[(z - params.out_first) * params.rows * params.row + at] = narrow(activate(acc));
}
