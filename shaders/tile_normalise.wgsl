// The mean over all tiles: the sum of weighted predictions divided by the sum of weights; zero where no tile lies.
// One invocation computes 4 channels of one voxel: x walks the channel blocks of a row, y the rows, z the planes.
// Limits: each source's planes lie in one slab.

override WORKGROUP: u32 = 64u;
override ROUNDED: bool = false;   // the mean is rounded to 16-bit floats
override PACK: bool = false;      // and stored as such, two to a word

struct Params {
    width: u32,               // voxels of a row
    rows: u32,                // of a plane
    blocks: u32,              // of 4 channels
    first: u32,
    weights_first: u32,
    out_first: u32,
    out_begin: u32,
    zero: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;         // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read> weights: array<f32>;            // [D, H, W]
@group(0) @binding(3) var<storage, read_write> dst: array<u32>;          // [D, H, W, C], two values to a word or one

// A number that no compiler can see through: what is made of it is neither fused nor regrouped.
fn opaque(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) | vec4<u32>(params.zero));
}

// The upper 12 bits of significands: products of two such numbers, or of what is left of them, are exact.
fn upper(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) & vec4<u32>(0xfffff000u));
}

// The quotient rounded once, which devices may miss by some of its last bits: corrected by what is left of the sum.
fn divided(sum: vec4<f32>, weight: vec4<f32>) -> vec4<f32> {
    let near = opaque(sum / weight);
    let q = upper(near);
    let w = upper(weight);
    let q_low = near - q;
    let w_low = weight - w;
    let rest = ((sum - opaque(q * w)) - opaque(q * w_low)) - opaque(q_low * w) - opaque(q_low * w_low);
    let finite = (bitcast<vec4<u32>>(near) & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u);
    return select(near, near + rest / weight, finite & (rest != vec4<f32>(0.0)));
}

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
    var mean = select(divided(sum, vec4<f32>(weight)), vec4<f32>(0.0), weight == 0.0);
    if ROUNDED {
        mean = half_of(mean);
    }
    if PACK {
        let words = half_bits(mean);
        dst[out * 2u] = words.x;
        dst[out * 2u + 1u] = words.y;
    } else {
        let words = bitcast<vec4<u32>>(mean);
        for (var i = 0u; i < 4u; i++) {
            dst[out * 4u + i] = words[i];
        }
    }
}
