// activation(scale x + shift), with a scale and a shift for each channel: a norm that nothing applies on load; or a PReLU.
// One invocation computes 4 channels of one voxel: x walks the channel blocks of the voxels of a row, y the rows, z the planes.
// Limits: the source's planes lie in one slab.

override WORKGROUP: u32 = 64u;
override PRELU: bool = false;

struct Params {
    row: u32,                 // blocks of 4 elements of a row
    rows: u32,                // of a plane
    blocks: u32,              // of 4 channels
    first: u32,
    norm_first: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<Elem4>;              // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>;         // [1 or D, 2, C/4]: scale, shift
@group(0) @binding(3) var<storage, read> constant: array<vec4<f32>>;     // [3, C/4]: scale, shift, slopes
@group(0) @binding(4) var<storage, read_write> dst: array<Elem4>;        // [D, H, W, C/4]

@compute @workgroup_size(WORKGROUP, 1, 1)
fn normalise(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.row {
        return;
    }
    let z = params.out_begin + id.z;
    let block = id.x % params.blocks;
    let at = select(0u, z - params.norm_first, A_NORM == 2u) * 2u * params.blocks + block;
    let x = wide(src[((z - params.first) * params.rows + id.y) * params.row + id.x]);
    var y = load_a(x, mat2x4<f32>(norm[at], norm[at + params.blocks]));
    if PRELU {
        y = select(constant[2u * params.blocks + block] * y, y, y >= vec4<f32>(0.0));
    }
    dst[((z - params.out_first) * params.rows + id.y) * params.row + id.x] = narrow(y);
}
