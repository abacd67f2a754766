// The sum of weighted predictions divided by the sum of weights; zero where no tile lies.
// One invocation computes 4 channels of one voxel: x walks the channel blocks of a row, y the rows, z the planes.
// Limits: each source's planes lie in one slab.

override WORKGROUP: u32 = 64u;

struct Params {
    width: u32,               // voxels of a row
    rows: u32,                // of a plane
    blocks: u32,              // of 4 channels
    first: u32,
    weights_first: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;         // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read> weights: array<f32>;            // [D, H, W]
@group(0) @binding(3) var<storage, read_write> dst: array<Elem4>;        // [D, H, W, C/4]

@compute @workgroup_size(WORKGROUP, 1, 1)
fn tile_normalise(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = params.width * params.blocks;
    if id.x >= row {
        return;
    }
    let z = params.out_begin + id.z;
    let weight = weights[((z - params.weights_first) * params.rows + id.y) * params.width + id.x / params.blocks];
    let sum = sums[((z - params.first) * params.rows + id.y) * row + id.x];
    let out = ((z - params.out_first) * params.rows + id.y) * row + id.x;
    dst[out] = narrow(select(sum / weight, vec4<f32>(0.0), weight == 0.0));
}
