// after(gamma (before(x) - mean) / sqrt(variance + eps) + beta), mean and variance over the channels of each voxel.
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
    eps: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<Elem4>;              // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read> affine: array<vec4<f32>>;       // [2, C/4]: gamma, beta
@group(0) @binding(3) var<storage, read_write> dst: array<Elem4>;        // [D, H, W, C/4]

var<workgroup> partial: array<f32, WORKGROUP>;

// The sum over all channels of a voxel.
fn sum(x: vec4<f32>, local: u32) -> f32 {
    let own = (x.x + x.y) + (x.z + x.w);
    if LANES == 1u {
        return own;
    }
    partial[local] = own;
    for (var step = 1u; step < LANES; step *= 2u) {
        workgroupBarrier();
        if local % (2u * step) == 0u {
            partial[local] += partial[local + step];
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

fn activated(at: u32) -> vec4<f32> {
    return activate_as(wide(src[at]), A_ACTIVATION, A_SLOPE);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn layer_norm(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_id) at: vec3<u32>) {
    let lane = at.x % LANES;
    let voxel = (id.y * FOLD + id.x) / LANES;
    let z = params.out_begin + id.z;
    // who has no voxel reads the last one, as all have to come to the barriers
    let source = ((z - params.first) * params.plane + min(voxel, params.plane - 1u)) * params.blocks;

    // deviations from the first channel: next to a large mean, rounding would drown the differences
    let pivot = vec4<f32>(activated(source).x);
    var acc = vec4<f32>(0.0);
    for (var b = lane; b < params.blocks; b += LANES) {
        acc += select(vec4<f32>(0.0), activated(source + b) - pivot, exists(b));
    }
    let mean = vec4<f32>(sum(acc, at.x) / f32(params.channels));
    acc = vec4<f32>(0.0);
    for (var b = lane; b < params.blocks; b += LANES) {
        let delta = select(vec4<f32>(0.0), activated(source + b) - pivot - mean, exists(b));
        acc = fma(delta, delta, acc);
    }
    let scale = 1.0 / sqrt(sum(acc, at.x) / f32(params.channels) + params.eps);
    if voxel >= params.plane {
        return;
    }
    let out = ((z - params.out_first) * params.plane + voxel) * params.blocks;
    for (var b = lane; b < params.blocks; b += LANES) {
        let y = fma((activated(source + b) - pivot - mean) * scale, affine[b], affine[params.blocks + b]);
        dst[out + b] = narrow(select(vec4<f32>(0.0), activate(y), exists(b)));
    }
}
