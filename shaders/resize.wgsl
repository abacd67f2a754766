// Resampling to a larger or smaller extent: nearest, or linear along each axis (bilinear when the depth is unchanged).
// One invocation computes 4 channels of one voxel: x walks the channel blocks of the voxels of a row,
// y the rows, z the planes.
// Includes shared/resize.wgsl.
// Limits: the source spans at most two slabs; 2 * out * in of an axis fits a u32.

override WORKGROUP: u32 = 64u;

struct Params {
    in_extent: vec3<u32>,     // D, H, W
    blocks: u32,              // of 4 channels
    out_extent: vec3<u32>,
    first: u32,
    split: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> lo: array<Elem4>;           // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read> hi: array<Elem4>;           // [D, H, W, C/4]
@group(0) @binding(3) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, C/4]

fn load_source(z: u32, at: u32) -> vec4<f32> {
    let plane = params.in_extent.y * params.in_extent.z * params.blocks;
    if z < params.split {
        return wide(lo[(z - params.first) * plane + at]);
    }
    return wide(hi[(z - params.split) * plane + at]);
}

fn bilinear(z: u32, y: Tap, x: Tap, c: u32) -> vec4<f32> {
    let row_low = y.low * params.in_extent.z;
    let row_high = y.high * params.in_extent.z;
    let top = linear_mix(load_source(z, (row_low + x.low) * params.blocks + c), load_source(z, (row_low + x.high) * params.blocks + c), x.weight);
    let bottom = linear_mix(load_source(z, (row_high + x.low) * params.blocks + c), load_source(z, (row_high + x.high) * params.blocks + c), x.weight);
    return linear_mix(top, bottom, y.weight);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn resize(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = params.out_extent.z * params.blocks;
    if id.x >= row {
        return;
    }
    let c = id.x % params.blocks;
    let y = resize_tap(id.y, params.in_extent.y, params.out_extent.y);
    let x = resize_tap(id.x / params.blocks, params.in_extent.z, params.out_extent.z);
    let oz = params.out_begin + id.z;
    let z = resize_tap(oz, params.in_extent.x, params.out_extent.x);
    var acc: vec4<f32>;
    if RESIZE == 2u {
        acc = load_source(z.low, (y.low * params.in_extent.z + x.low) * params.blocks + c);
    } else {
        acc = bilinear(z.low, y, x, c);
        if z.weight > 0.0 {
            acc = linear_mix(acc, bilinear(z.high, y, x, c), z.weight);
        }
    }
    dst[((oz - params.out_first) * params.out_extent.y + id.y) * row + id.x] = narrow(rounded(acc));
}
