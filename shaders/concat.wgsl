// The channels of one map, then those of another.
// One invocation gathers 4 channels of one voxel: x walks the channel blocks of the voxels of a row, y the rows, z the planes.
// Limits: each source's planes lie in one slab.

override WORKGROUP: u32 = 64u;
override WHOLE: bool = false;      // channels of both sources are multiples of 4

struct Params {
    rows: u32,                     // of a plane
    width: u32,                    // voxels of a row
    blocks: u32,                   // of 4 channels of the result
    out_first: u32,
    channels: vec2<u32>,           // of a and b
    first: vec2<u32>,
    out_begin: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Elem4>;            // [D, H, W, A/4]
@group(0) @binding(2) var<storage, read> b: array<Elem4>;            // [D, H, W, B/4]
@group(0) @binding(3) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, (A + B)/4]

// Block `block` of the channels of a voxel of a plane of a, and of b.
fn load_first(z: u32, voxel: u32, block: u32) -> vec4<f32> {
    let at = (z - params.first.x) * params.rows * params.width + voxel;
    return wide(a[at * ((params.channels.x + 3u) / 4u) + block]);
}

fn load_second(z: u32, voxel: u32, block: u32) -> vec4<f32> {
    let at = (z - params.first.y) * params.rows * params.width + voxel;
    return wide(b[at * ((params.channels.y + 3u) / 4u) + block]);
}

// Channel c of the result.
fn load_channel(z: u32, voxel: u32, c: u32) -> f32 {
    if c < params.channels.x {
        return load_first(z, voxel, c / 4u)[c % 4u];
    }
    let k = c - params.channels.x;
    if k < params.channels.y {
        return load_second(z, voxel, k / 4u)[k % 4u];
    }
    return 0.0;
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn concat(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = params.width * params.blocks;
    if id.x >= row {
        return;
    }
    let z = params.out_begin + id.z;
    let voxel = id.y * params.width + id.x / params.blocks;
    let block = id.x % params.blocks;
    var acc: vec4<f32>;
    if WHOLE {
        let own = params.channels.x / 4u;
        if block < own {
            acc = load_first(z, voxel, block);
        } else {
            acc = load_second(z, voxel, block - own);
        }
    } else {
        acc = vec4<f32>(
            load_channel(z, voxel, 4u * block),
            load_channel(z, voxel, 4u * block + 1u),
            load_channel(z, voxel, 4u * block + 2u),
            load_channel(z, voxel, 4u * block + 3u),
        );
    }
    dst[((z - params.out_first) * params.rows + id.y) * row + id.x] = narrow(acc);
}
