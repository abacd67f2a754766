// exp(x - highest) / sum over the channels of each voxel; channels that pad are written as zero.
// LANES invocations share a voxel and take its blocks of 4 channels in turn; x, and y where x is full, walk the voxels of a
// plane, z the planes. Sums go up a fixed tree: the order of operations depends on the number of channels alone.
// Limits: the source's planes lie in one slab; LANES is a power of two that divides WORKGROUP.

override WORKGROUP: u32 = 64u;
override LANES: u32 = 1u;
override FOLD: u32 = 524288u;     // invocations along x where there are more along y

struct Params {
    plane: u32,               // voxels of a plane
    blocks: u32,              // of 4 channels
    channels: u32,
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<Elem4>;          // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, C/4]

const LOWEST: f32 = -3.4028234e38;

var<workgroup> partial: array<f32, WORKGROUP>;

// The highest, or the sum, over all channels of a voxel.
fn reduce(x: vec4<f32>, local: u32, highest: bool) -> f32 {
    let own = select((x.x + x.y) + (x.z + x.w), max(max(x.x, x.y), max(x.z, x.w)), highest);
    if LANES == 1u {
        return own;
    }
    partial[local] = own;
    for (var step = 1u; step < LANES; step *= 2u) {
        workgroupBarrier();
        if local % (2u * step) == 0u {
            let other = partial[local + step];
            partial[local] = select(partial[local] + other, max(partial[local], other), highest);
        }
    }
    workgroupBarrier();
    let total = partial[local / LANES * LANES];
    workgroupBarrier();
    return total;
}

fn exists(block: u32) -> vec4<bool> {
    return vec4<u32>(block * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.channels);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn softmax(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_id) at: vec3<u32>) {
    let lane = at.x % LANES;
    let voxel = (id.y * FOLD + id.x) / LANES;
    let z = params.out_begin + id.z;
    // who has no voxel reads the last one, as all have to come to the barriers
    let source = ((z - params.first) * params.plane + min(voxel, params.plane - 1u)) * params.blocks;

    var acc = vec4<f32>(LOWEST);
    for (var b = lane; b < params.blocks; b += LANES) {
        acc = max(acc, select(vec4<f32>(LOWEST), wide(src[source + b]), exists(b)));
    }
    let highest = vec4<f32>(reduce(acc, at.x, true));
    acc = vec4<f32>(0.0);
    for (var b = lane; b < params.blocks; b += LANES) {
        acc += select(vec4<f32>(0.0), exp(wide(src[source + b]) - highest), exists(b));
    }
    let total = reduce(acc, at.x, false);
    if voxel >= params.plane {
        return;
    }
    let out = ((z - params.out_first) * params.plane + voxel) * params.blocks;
    for (var b = lane; b < params.blocks; b += LANES) {
        dst[out + b] = narrow(select(vec4<f32>(0.0), exp(wide(src[source + b]) - highest) / total, exists(b)));
    }
}
