// A map moved along its axes: rolled, padded with zeros, cropped or mirrored.
// One invocation copies 4 channels of one voxel: x walks the channel blocks of the voxels of a row, y the rows, z the planes.
// Limits: the source is one slab.

override WORKGROUP: u32 = 64u;
override SHIFT_D: u32 = 0u;   // 0 padded or cropped, 1 rolled, 2 mirrored
override SHIFT_H: u32 = 0u;
override SHIFT_W: u32 = 0u;

struct Params {
    in_extent: vec3<u32>,     // D, H, W
    blocks: u32,              // of 4 channels
    out_extent: vec3<u32>,
    first: u32,
    begin: vec3<u32>,         // voxel of the source of the first voxel along D, H, W; before the source it wraps
    out_first: u32,
    out_begin: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<Elem4>;       // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, C/4]

// Voxel of the source along an axis; in padding it is beyond the source.
fn shifted(o: u32, begin: u32, n: u32, kind: u32) -> u32 {
    if kind == 2u {
        return begin - o;
    }
    let at = begin + o;
    return select(at, at - n, kind == 1u && at >= n);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn shift(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = params.out_extent.z * params.blocks;
    if id.x >= row {
        return;
    }
    let n = params.in_extent;
    let oz = params.out_begin + id.z;
    let z = shifted(oz, params.begin.x, n.x, SHIFT_D);
    let y = shifted(id.y, params.begin.y, n.y, SHIFT_H);
    let x = shifted(id.x / params.blocks, params.begin.z, n.z, SHIFT_W);
    let at = ((oz - params.out_first) * params.out_extent.y + id.y) * row + id.x;
    if z < n.x && y < n.y && x < n.z {
        dst[at] = source[(((z - params.first) * n.y + y) * n.z + x) * params.blocks + id.x % params.blocks];
    } else {
        dst[at] = narrow(vec4<f32>(0.0));
    }
}
