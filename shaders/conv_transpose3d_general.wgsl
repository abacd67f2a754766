// Transposed 3D convolution of any kernel size, stride and padding, gathered: an output voxel sums the taps that a source
// voxel stands behind. Norm, bias and activation fused.
// One invocation computes 8 output channels of VOXELS voxels of a row that lie SW apart, and so have the same taps: x walks
// these groups by place modulo SW and then by row of a plane, y the blocks of output channels, z the planes.
// Limits: no dilation, no groups; the source spans at most two slabs.

override WORKGROUP: u32 = 64u;
override KD: u32 = 3u;
override KH: u32 = 3u;
override KW: u32 = 3u;
override SD: u32 = 2u;
override SH: u32 = 2u;
override SW: u32 = 2u;
override PD: u32 = 1u;
override PH: u32 = 1u;
override PW: u32 = 1u;

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
@group(0) @binding(4) var<storage, read> weight: array<Elem4>;       // [O/8, KD, KH, KW, I, 2] then bias [O/8, 2]
@group(0) @binding(5) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, O/4]

// Scale and shift of 4 channels on source plane z.
fn norm_of(z: u32, c: u32) -> mat2x4<f32> {
    if A_NORM > 0u {
        let at = select(0u, z - params.norm_first, A_NORM == 2u) * 2u * params.in_blocks + c;
        return mat2x4<f32>(norm[at], norm[at + params.in_blocks]);
    }
    return mat2x4<f32>(vec4<f32>(1.0), vec4<f32>(0.0));
}

// Block `c` of the channels of a source voxel.
fn load_source(z: u32, y: u32, x: u32, c: u32, scale: mat2x4<f32>) -> vec4<f32> {
    let voxel = y * params.in_extent.z + x;
    let plane = params.in_extent.y * params.in_extent.z;
    if z < params.split {
        return load_a(wide(lo[((z - params.first) * plane + voxel) * params.in_blocks + c]), scale);
    }
    return load_a(wide(hi[((z - params.split) * plane + voxel) * params.in_blocks + c]), scale);
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
    let bias = (params.out_blocks + 1u) / 2u * KD * KH * KW * blocks * 8u + id.y * 2u;
    var acc: array<array<vec4<f32>, 2>, VOXELS>;
    for (var v = 0u; v < VOXELS; v++) {
        acc[v][0] = wide(weight[bias]);
        acc[v][1] = wide(weight[bias + 1u]);
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
                        var w = (((id.y * KD + i) * KH + j) * KW + k) * blocks * 8u;
                        for (var c = 0u; c < blocks; c++) {
                            let w0 = wide(weight[w]);
                            let w1 = wide(weight[w + 1u]);
                            let w2 = wide(weight[w + 2u]);
                            let w3 = wide(weight[w + 3u]);
                            let w4 = wide(weight[w + 4u]);
                            let w5 = wide(weight[w + 5u]);
                            let w6 = wide(weight[w + 6u]);
                            let w7 = wide(weight[w + 7u]);
                            w += 8u;
                            let scale = norm_of(z, c);
                            for (var v = 0u; v < VOXELS; v++) {
                                if x + v < params.in_extent.z {
                                    let s = load_source(z, y, x + v, c, scale);
                                    acc[v][0] = fma(vec4<f32>(s.w), w6, fma(vec4<f32>(s.z), w4, fma(vec4<f32>(s.y), w2, fma(vec4<f32>(s.x), w0, acc[v][0]))));
                                    acc[v][1] = fma(vec4<f32>(s.w), w7, fma(vec4<f32>(s.z), w5, fma(vec4<f32>(s.y), w3, fma(vec4<f32>(s.x), w1, acc[v][1]))));
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
