// Voxels of a tile of the scan, mirrored along axes, zero beyond the scan: what the network is given.
// One invocation stores 4 channels of one voxel: x walks the channel blocks of a row, y the rows, z the planes.
// Limits: the planes of the scan that are here are a ring in one binding.

override WORKGROUP: u32 = 64u;
override HALF: bool = false;      // values are rounded to 16-bit floats

struct Params {
    depth: u32,               // of the tile
    height: u32,
    width: u32,
    blocks: u32,              // of 4 channels
    planes: u32,              // of the scan
    rows: u32,
    row: u32,
    ring: u32,                // planes of it that are here: plane z lies at z % ring
    origin_z: i32,            // where the tile begins in it
    origin_y: i32,
    origin_x: i32,
    flips: u32,               // 1 along D, 2 along H, 4 along W
    channels: u32,            // of the tile
    step: u32,                // from a channel of the scan to the next, 0 where one is repeated
    out_first: u32,
    out_begin: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<f32>;                // [C, ring, H, W]
@group(0) @binding(2) var<storage, read_write> dst: array<Elem4>;        // [d, h, w, C/4]

fn place(i: u32, size: u32, axis: u32, origin: i32) -> i32 {
    return i32(select(i, size - 1u - i, (params.flips & axis) != 0u)) + origin;
}

// A channel of a voxel; those that fill a block up are zero.
fn value_of(channel: u32, voxel: u32) -> f32 {
    if channel >= params.channels {
        return 0.0;
    }
    return src[channel * params.step + voxel];
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn tile_crop(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.width * params.blocks {
        return;
    }
    let block = id.x % params.blocks;
    let x = id.x / params.blocks;
    let z = params.out_begin + id.z;
    let at = vec3<i32>(
        place(z, params.depth, 1u, params.origin_z),
        place(id.y, params.height, 2u, params.origin_y),
        place(x, params.width, 4u, params.origin_x),
    );
    let whole = vec3<i32>(vec3<u32>(params.planes, params.rows, params.row));
    var value = vec4<f32>(0.0);
    if all(at >= vec3<i32>(0)) && all(at < whole) {
        let here = vec3<u32>(at);
        let voxel = ((here.x % params.ring) * params.rows + here.y) * params.row + here.z;
        let first = block * 4u;
        value = vec4<f32>(value_of(first, voxel), value_of(first + 1u, voxel), value_of(first + 2u, voxel), value_of(first + 3u, voxel));
        if HALF {
            value = half_of(value);
        }
    }
    dst[(((z - params.out_first) * params.height + id.y) * params.width + x) * params.blocks + block] = narrow(value);
}
