// Transposed 3D convolution of any kernel size, stride and padding, gathered: an output voxel sums the taps that a source
// voxel stands behind. Norm, bias and activation fused.
// One invocation computes 8 output channels of VOXELS voxels of a row that lie SW apart, and so have the same taps: x walks
// these groups by place modulo SW and then by row of a plane, y the blocks of output channels, z the planes.
// Limits: no dilation, no groups; the source spans at most two slabs.

override WORKGROUP: u32 = 64u;

const VOXELS: u32 = 4u;

struct Params {
    in_extent: vec3<u32>,     // D, H, W
    in_blocks: u32,           // of 4 channels
    out_extent: vec3<u32>,
    first: u32,
    split: u32,
    out_first: u32,
    out_begin: u32,
    out_blocks: u32,          // of 4 channels
    phase_groups: u32,        // groups of VOXELS voxels of a row at one place modulo SW
    norm_first: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> lo: array<Elem4>;           // [D, H, W, I/4]
@group(0) @binding(2) var<storage, read> hi: array<Elem4>;           // [D, H, W, I/4]
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>;     // [1 or D, 2, I/4]: scale, shift
@group(0) @binding(4) var<storage, read> weight: array<Tap8>;        // [O/8, KD, KH, KW, I/4] then bias [O/32]
@group(0) @binding(5) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, O/4]

// Scale and shift of 4 channels on source plane z.
fn norm_of(z: u32, c: u32) -> mat2x4<f32> {
    if A_NORM > 0u {
        let at = select(0u, z - params.norm_first, A_NORM == 2u) * 2u * params.in_blocks + c;
        return mat2x4<f32>(norm[at], norm[at + params.in_blocks]);
    }
    return mat2x4<f32>(vec4<f32>(1.0), vec4<f32>(0.0));
}

// Where the channels of a source voxel begin in its slab.
fn voxel_at(z: u32, y: u32, x: u32) -> u32 {
    let plane = z - select(params.split, params.first, z < params.split);
    return ((plane * params.in_extent.y + y) * params.in_extent.z + x) * params.in_blocks;
}

fn load_block(z: u32, at: u32) -> vec4<f32> {
    if z < params.split {
        return wide(lo[at]);
    }
    return wide(hi[at]);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn conv_transpose3d_general(@builtin(global_invocation_id) id: vec3<u32>) {
    let out = params.out_extent;
    let row_groups = params.phase_groups * SW;
    let oy = id.x / row_groups;
    let phase = id.x % row_groups / params.phase_groups;
    let step = id.x % params.phase_groups * VOXELS;
    let ox = step * SW + phase;
    let oz = params.out_begin + id.z;
    if oy >= out.y || ox >= out.z {
        return;
    }
    let blocks = params.in_blocks;
    let bias = bias_of((params.out_blocks + 1u) / 2u * KD * KH * KW * blocks, id.y);
    var acc: array<array<vec4<f32>, 2>, VOXELS>;
    for (var v = 0u; v < VOXELS; v++) {
        acc[v][0] = bias[0];
        acc[v][1] = bias[1];
    }

    // source index below zero wraps above the extent
    var z = (oz + PD) / SD;
    for (var i = (oz + PD) % SD; i < KD; i += SD) {
        if z < params.in_extent.x {
            var y = (oy + PH) / SH;
            for (var j = (oy + PH) % SH; j < KH; j += SH) {
                if y < params.in_extent.y {
                    var x = step + (phase + PW) / SW;
                    for (var k = (phase + PW) % SW; k < KW; k += SW) {
                        var w = (((id.y * KD + i) * KH + j) * KW + k) * blocks;
                        var at: array<u32, VOXELS>;
                        for (var v = 0u; v < VOXELS; v++) {
                            at[v] = voxel_at(z, y, min(x + v, params.in_extent.z - 1u));
                        }
                        for (var c = 0u; c < blocks; c++) {
                            let tap = weight[w];
                            w += 1u;
                            let scale = norm_of(z, c);
                            for (var v = 0u; v < VOXELS; v++) {
                                if x + v < params.in_extent.z {
                                    let s = load_a(load_block(z, at[v] + c), scale);
                                    acc[v][0] = add_low(acc[v][0], s, tap);
                                    acc[v][1] = add_high(acc[v][1], s, tap);
                                }
                            }
                        }
                        x -= 1u;
                    }
                }
                y -= 1u;
            }
        }
        z -= 1u;
    }

    let row = ((oz - params.out_first) * out.y + oy) * out.z;
    for (var v = 0u; v < VOXELS; v++) {
        if ox + v * SW < out.z {
            let at = (row + ox + v * SW) * params.out_blocks + id.y * 2u;
            dst[at] = narrow(activate(acc[v][0]));
            if id.y * 2u + 1u < params.out_blocks {
                dst[at + 1u] = narrow(activate(acc[v][1]));
            }
        }
    }
}
