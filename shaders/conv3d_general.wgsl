// 3D convolution with dilation and groups, norm of the source, bias and activation fused; zero padding.
// One invocation computes 8 output channels of VOXELS neighbouring voxels of a row: x walks the row groups of a plane,
// y the blocks of output channels, z the planes. It reads the band of input channels that its groups have.
// Limits: one source, of at most two slabs.

override WORKGROUP: u32 = 64u;
override DD: u32 = 1u;
override DH: u32 = 1u;
override DW: u32 = 1u;
override GROUP_IN: u32 = 1u;        // channels of a group
override GROUP_OUT: u32 = 1u;
override DEPTHWISE: bool = false;   // every channel is a group

const VOXELS: u32 = 4u;

struct Params {
    in_extent: vec3<u32>,     // D, H, W
    in_blocks: u32,           // of 4 channels
    out_extent: vec3<u32>,
    out_blocks: u32,
    first: u32,
    split: u32,
    norm_first: u32,
    band: u32,                // input blocks that have weights for a block of output channels
    out_first: u32,
    out_begin: u32,
    row_groups: u32,          // of VOXELS voxels
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> lo: array<Elem4>;           // [D, H, W, I/4]
@group(0) @binding(2) var<storage, read> hi: array<Elem4>;           // [D, H, W, I/4]
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>;     // [1 or D, 2, I/4]: scale, shift
@group(0) @binding(4) var<storage, read> weight: array<vec4<f32>>;     // [O/8, KD, KH, KW, band, 8] or [.., 2], then bias [O/8, 2]
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
fn conv3d_general(@builtin(global_invocation_id) id: vec3<u32>) {
    let out = params.out_extent;
    let oy = id.x / params.row_groups;
    let ox = (id.x % params.row_groups) * VOXELS;
    let oz = params.out_begin + id.z;
    if oy >= out.y {
        return;
    }
    let step = select(params.band * 8u, 2u, DEPTHWISE);      // weights of a tap
    let begin = id.y * 8u / GROUP_OUT * GROUP_IN / 4u;
    let end = min(begin + params.band, params.in_blocks);
    let bias = (params.out_blocks + 1u) / 2u * KD * KH * KW * step + id.y * 2u;
    var acc: array<array<vec4<f32>, 2>, VOXELS>;
    for (var v = 0u; v < VOXELS; v++) {
        acc[v][0] = weight[bias];
        acc[v][1] = weight[bias + 1u];
    }

    for (var i = 0u; i < KD; i++) {
        let z = oz * SD + i * DD - PD;        // below zero wraps above the extent
        if z >= params.in_extent.x {
            continue;
        }
        for (var j = 0u; j < KH; j++) {
            let y = oy * SH + j * DH - PH;
            if y >= params.in_extent.y {
                continue;
            }
            for (var k = 0u; k < KW; k++) {
                let x = ox * SW + k * DW - PW;
                var w = (((id.y * KD + i) * KH + j) * KW + k) * step;
                if DEPTHWISE {
                    // the outputs' own channels
                    for (var h = 0u; h < 2u && id.y * 2u + h < params.in_blocks; h++) {
                        let c = id.y * 2u + h;
                        let own = weight[w + h];
                        let scale = norm_of(z, c);
                        for (var v = 0u; v < VOXELS; v++) {
                            let sx = x + v * SW;
                            if sx < params.in_extent.z {
                                acc[v][h] = fma(load_source(z, y, sx, c, scale), own, acc[v][h]);
                            }
                        }
                    }
                    continue;
                }
                for (var c = begin; c < end; c++) {
                    let w0 = weight[w];
                    let w1 = weight[w + 1u];
                    let w2 = weight[w + 2u];
                    let w3 = weight[w + 3u];
                    let w4 = weight[w + 4u];
                    let w5 = weight[w + 5u];
                    let w6 = weight[w + 6u];
                    let w7 = weight[w + 7u];
                    w += 8u;
                    let scale = norm_of(z, c);
                    for (var v = 0u; v < VOXELS; v++) {
                        let sx = x + v * SW;
                        if sx < params.in_extent.z {
                            let s = load_source(z, y, sx, c, scale);
                            acc[v][0] = fma(vec4<f32>(s.w), w6, fma(vec4<f32>(s.z), w4, fma(vec4<f32>(s.y), w2, fma(vec4<f32>(s.x), w0, acc[v][0]))));
                            acc[v][1] = fma(vec4<f32>(s.w), w7, fma(vec4<f32>(s.z), w5, fma(vec4<f32>(s.y), w3, fma(vec4<f32>(s.x), w1, acc[v][1]))));
                        }
                    }
                }
            }
        }
    }

    let row = ((oz - params.out_first) * out.y + oy) * out.z;
    for (var v = 0u; v < VOXELS; v++) {
        if ox + v < out.z {
            let at = (row + ox + v) * params.out_blocks + id.y * 2u;
            dst[at] = narrow(activate(acc[v][0]));
            if id.y * 2u + 1u < params.out_blocks {
                dst[at + 1u] = narrow(activate(acc[v][1]));
            }
        }
    }
}
