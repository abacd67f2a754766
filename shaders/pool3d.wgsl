// Max or average pooling; padding counts as lower than anything or as zeros, trailing voxels that fill no window are dropped (floor).
// One invocation computes 4 channels of one voxel: x walks the channel blocks of the voxels of a row, y the rows, z the planes.
// Limits: every window holds a voxel; the source spans at most two slabs.

override WORKGROUP: u32 = 64u;
override AVERAGE: bool = false;

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

@compute @workgroup_size(WORKGROUP, 1, 1)
fn pool3d(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = params.out_extent.z * params.blocks;
    if id.x >= row {
        return;
    }
    let c = id.x % params.blocks;
    let ox = id.x / params.blocks;
    let oz = params.out_begin + id.z;
    var acc = vec4<f32>(select(-3.4e38, 0.0, AVERAGE));
    var bits = vec4<u32>(0u);                 // the greatest of the magnitudes: NaN's are above infinity's
    for (var i = 0u; i < KD; i++) {
        let z = oz * SD + i - PD;             // below zero wraps above the extent
        if z >= params.in_extent.x {
            continue;
        }
        for (var j = 0u; j < KH; j++) {
            let y = id.y * SH + j - PH;
            if y >= params.in_extent.y {
                continue;
            }
            for (var k = 0u; k < KW; k++) {
                let x = ox * SW + k - PW;
                if x >= params.in_extent.z {
                    continue;
                }
                let tap = load_source(z, (y * params.in_extent.z + x) * params.blocks + c);
                acc = select(max(acc, tap), acc + tap, AVERAGE);
                bits = max(bits, bitcast<vec4<u32>>(tap) & vec4<u32>(0x7fffffffu));
            }
        }
    }
    if AVERAGE {
        acc /= f32(KD * KH * KW);
    } else {
        // max may drop a NaN, which is above all
        acc = select(acc, bitcast<vec4<f32>>(bits), bits > vec4<u32>(0x7f800000u));
    }
    dst[((oz - params.out_first) * params.out_extent.y + id.y) * row + id.x] = narrow(acc);
}
