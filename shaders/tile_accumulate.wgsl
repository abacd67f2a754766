// Adds planes of a tile of predictions, weighted and turned back along axes it was mirrored along, to the sum over all tiles.
// One invocation adds 4 channels of one voxel: x walks the channel blocks of a row of the tile, y its rows, z its planes;
// what lies outside of the volume is left out.
// Limits: the planes of the tile lie in one slab, those of the sums that are here are a ring in one binding.

override WORKGROUP: u32 = 64u;
override HALF: bool = false;      // products of weights are rounded to 16-bit floats
override ROUNDED: bool = false;   // and so is every sum
override WEIGHTED: bool = true;   // else all voxels weigh 1

struct Params {
    depth: u32,               // of the tile
    height: u32,
    width: u32,
    blocks: u32,              // of 4 channels
    planes: u32,              // of the volume
    rows: u32,
    row: u32,
    ring: u32,                // planes of the sums that are here: plane z lies at z % ring
    origin_z: i32,            // where the tile begins in the volume
    origin_y: i32,
    origin_x: i32,
    flips: u32,               // 1 along D, 2 along H, 4 along W
    first: u32,               // plane of the tile at the begin of the slab
    begin: u32,               // and the first that is added
    least: f32,               // weight of a voxel
    share: f32,               // factor of all values
    fresh: u32,               // 1: what was there is replaced
    zero: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tile: array<Elem4>;             // [d, h, w, C/4]
@group(0) @binding(2) var<storage, read> weights: array<f32>;            // [d + h + w]
@group(0) @binding(3) var<storage, read_write> dst: array<vec4<f32>>;    // [ring, H, W, C/4]

fn turned(i: u32, size: u32, axis: u32) -> u32 {
    return select(i, size - 1u - i, (params.flips & axis) != 0u);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn tile_accumulate(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.width * params.blocks {
        return;
    }
    let block = id.x % params.blocks;
    let x = id.x / params.blocks;
    let plane = params.begin + id.z;
    let z = turned(plane, params.depth, 1u);
    let back = vec3<u32>(z, turned(id.y, params.height, 2u), turned(x, params.width, 4u));
    let to = vec3<i32>(back) + vec3<i32>(params.origin_z, params.origin_y, params.origin_x);
    if any(to < vec3<i32>(0)) || any(to >= vec3<i32>(vec3<u32>(params.planes, params.rows, params.row))) {
        return;
    }
    var weight = 1.0;
    if WEIGHTED {
        weight = weights[back.x] * weights[params.depth + back.y] * weights[params.depth + params.height + back.z];
        if HALF {
            weight = half_of(vec4<f32>(weight)).x;
        }
        weight = max(weight, params.least);
    }
    let source = (((plane - params.first) * params.height + id.y) * params.width + x) * params.blocks + block;
    let at = vec3<u32>(to);
    let out = (((at.x % params.ring) * params.rows + at.y) * params.row + at.z) * params.blocks + block;
    let product = wide(tile[source]) * params.share * weight;
    // a sum of a product that was rounded, as the host's: no compiler can fuse what it cannot see through
    var sum = bitcast<vec4<f32>>(bitcast<vec4<u32>>(product) | vec4<u32>(params.zero));
    if params.fresh == 0u {
        sum = dst[out] + sum;
    }
    if ROUNDED {
        sum = half_of(sum);
    }
    dst[out] = sum;
}
