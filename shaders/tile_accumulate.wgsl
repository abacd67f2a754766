// Adds a weighted tile of predictions, flipped back along axes it was flipped along, to the sum over all tiles.
// One invocation adds 4 channels of one voxel: x walks the channel blocks of a row of the tile, y its rows, z the planes of the
// accumulator; voxels that lie outside of the tile or of the accumulator are left as they are.
// Limits: the tile is one slab.

override WORKGROUP: u32 = 64u;
override HALF: bool = false;      // products of weights are rounded to 16-bit floats

struct Params {
    depth: u32,               // of the tile
    height: u32,
    width: u32,
    blocks: u32,              // of 4 channels
    rows: u32,                // of a plane of the accumulator
    row: u32,                 // voxels of a row of it
    origin_z: i32,            // where the tile begins in it
    origin_y: i32,
    origin_x: i32,
    flips: u32,               // 1 along D, 2 along H, 4 along W
    first: u32,
    out_first: u32,
    out_begin: u32,
    least: f32,               // weight of a voxel
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tile: array<Elem4>;             // [d, h, w, C/4]
@group(0) @binding(2) var<storage, read> weights: array<f32>;            // [d + h + w]
@group(0) @binding(3) var<storage, read_write> dst: array<vec4<f32>>;    // [D, H, W, C/4]

// The nearest 16-bit float of a weight, ties to even, subnormal ones too; in integers, as elsewhere.
fn to_half(x: f32) -> f32 {
    if x < 0.00006103515625 {
        return round(x * 16777216.0) / 16777216.0;
    }
    let bits = bitcast<u32>(x);
    return bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
}

fn flipped(i: u32, size: u32, axis: u32) -> u32 {
    return select(i, size - 1u - i, (params.flips & axis) != 0u);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn tile_accumulate(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.width * params.blocks {
        return;
    }
    let block = id.x % params.blocks;
    let x = id.x / params.blocks;
    let y = id.y;
    let z = i32(params.out_begin + id.z) - params.origin_z;
    let to = vec2<i32>(i32(x) + params.origin_x, i32(y) + params.origin_y);
    if z < 0 || z >= i32(params.depth) || any(to < vec2<i32>(0)) || any(to >= vec2<i32>(vec2<u32>(params.row, params.rows))) {
        return;
    }
    var weight = weights[z] * weights[params.depth + y] * weights[params.depth + params.height + x];
    if HALF {
        weight = to_half(weight);
    }
    weight = max(weight, params.least);
    let plane = flipped(u32(z), params.depth, 1u) - params.first;
    let row = plane * params.height + flipped(y, params.height, 2u);
    let source = (row * params.width + flipped(x, params.width, 4u)) * params.blocks + block;
    let out_row = (params.out_begin + id.z - params.out_first) * params.rows + u32(to.y);
    let out = (out_row * params.row + u32(to.x)) * params.blocks + block;
    dst[out] = fma(vec4<f32>(weight), wide(tile[source]), dst[out]);
}
