// Scale and shift of each channel from the means and variances of planes: gamma / sqrt(variance + eps), and beta - mean scale.
// One workgroup computes 4 channels: its invocations share out the planes and the channels of a group; y walks the channel
// blocks, z the planes that are normalised each by itself.
// Limits: the statistics lie in one slab.

override WORKGROUP: u32 = 64u;
override PER_PLANE: bool = false;

struct Params {
    planes: u32,              // that are taken together
    blocks: u32,              // of 4 channels
    channels: u32,
    group: u32,               // channels that are taken together
    first: u32,
    out_first: u32,
    out_begin: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<f32>;                // [D, 2, C]: means, variances; C padded
@group(0) @binding(2) var<storage, read> affine: array<vec4<f32>>;       // [2, C/4]: gamma, beta
@group(0) @binding(3) var<storage, read_write> dst: array<vec4<f32>>;    // [1 or D, 2, C/4]: scale, shift

var<workgroup> partial: array<vec4<f32>, WORKGROUP>;

fn sum(x: vec4<f32>, lane: u32) -> vec4<f32> {
    partial[lane] = x;
    for (var step = 1u; step < WORKGROUP; step *= 2u) {
        workgroupBarrier();
        if lane % (2u * step) == 0u && lane + step < WORKGROUP {
            partial[lane] += partial[lane + step];
        }
    }
    workgroupBarrier();
    let total = partial[0];
    workgroupBarrier();
    return total;
}

fn gather(at: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(src[at.x], src[at.y], src[at.z], src[at.w]);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn norm_scale(@builtin(local_invocation_id) local: vec3<u32>, @builtin(workgroup_id) groups: vec3<u32>) {
    let lane = local.x;
    let z = params.out_begin + groups.z;
    let block = groups.y;
    let variances = params.blocks * 4u;
    let plane = select(0u, z - params.first, PER_PLANE);
    let width = max(params.group, 1u);
    let channel = min(vec4<u32>(block * 4u) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.channels - 1u));
    let begin = channel / width * width + plane * 2u * variances;
    let items = params.planes * width;

    let pivot = gather(begin);
    var part = vec4<f32>(0.0);
    for (var i = lane; i < items; i += WORKGROUP) {
        part += gather(begin + i / width * 2u * variances + i % width) - pivot;
    }
    let mean = sum(part, lane) / f32(items);
    part = vec4<f32>(0.0);
    for (var i = lane; i < items; i += WORKGROUP) {
        let at = begin + i / width * 2u * variances + i % width;
        let delta = gather(at) - pivot - mean;
        part += fma(delta, delta, gather(at + variances));
    }
    let variance = max(sum(part, lane) / f32(items), vec4<f32>(0.0));
    if lane == 0u {
        let scale = affine[block] / sqrt(variance + params.eps);
        let out = (z - params.out_first) * 2u * params.blocks + block;
        dst[out] = scale;
        dst[out + params.blocks] = fma(-(pivot + mean), scale, affine[params.blocks + block]);
    }
}
