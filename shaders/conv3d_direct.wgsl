// Direct 3D convolution of one map or of two concatenated maps, their norms, bias and activation fused; zero padding. Or of one
// map, and a second one is added to the sums before the activation.
// One invocation computes 8 output channels of VOXELS neighbouring voxels of a row: x walks the row groups of a plane,
// y the blocks of output channels, z the planes.
// A source may be read through resampling to `in_extent`, which is never stored; values are rounded as if it were.
// Includes shared/resize.wgsl.
// Limits: no dilation, no groups (conv3d_general has them); a source spans at most two slabs; sources read through resampling have one extent.

override WORKGROUP: u32 = 64u;
override KD: u32 = 3u;
override KH: u32 = 3u;
override KW: u32 = 3u;
override SD: u32 = 1u;
override SH: u32 = 1u;
override SW: u32 = 1u;
override PD: u32 = 1u;
override PH: u32 = 1u;
override PW: u32 = 1u;
override CONCAT: bool = false;
override RESIDUAL: bool = false; // b is added to the sums, nothing is concatenated
override UPSAMPLED_A: bool = false;
override UPSAMPLED_B: bool = false;

const VOXELS: u32 = 4u;

struct Params {
    in_extent: vec3<u32>,     // D, H, W
    a_blocks: u32,
    out_extent: vec3<u32>,
    b_blocks: u32,
    a_first: u32,
    a_split: u32,
    b_first: u32,
    b_split: u32,
    out_first: u32,
    out_begin: u32,
    out_blocks: u32,          // of 4 channels
    row_groups: u32,          // of VOXELS voxels
    coarse: vec3<u32>,        // D, H, W of a source that is read through resampling
    a_norm_first: u32,
    b_norm_first: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a_lo: array<Elem4>;         // [D, H, W, A/4]
@group(0) @binding(2) var<storage, read> a_hi: array<Elem4>;         // [D, H, W, A/4]
@group(0) @binding(3) var<storage, read> b_lo: array<Elem4>;         // [D, H, W, B/4], or what is added [D, H, W, O/4]
@group(0) @binding(4) var<storage, read> b_hi: array<Elem4>;         // [D, H, W, B/4]
@group(0) @binding(5) var<storage, read> a_norm: array<vec4<f32>>;   // [1 or D, 2, A/4]: scale, shift
@group(0) @binding(6) var<storage, read> b_norm: array<vec4<f32>>;   // [1 or D, 2, B/4 or O/4]
@group(0) @binding(7) var<storage, read> weight: array<Elem4>;       // [O/8, KD, KH, KW, A+B, 2] then bias [O/8, 2]
@group(0) @binding(8) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, O/4]

// Scale and shift of 4 channels on plane z.
fn norm_of(z: u32, c: u32) -> mat2x4<f32> {
    if CONCAT && c >= params.a_blocks {
        if B_NORM > 0u {
            let at = select(0u, z - params.b_norm_first, B_NORM == 2u) * 2u * params.b_blocks + c - params.a_blocks;
            return mat2x4<f32>(b_norm[at], b_norm[at + params.b_blocks]);
        }
    } else if A_NORM > 0u {
        let at = select(0u, z - params.a_norm_first, A_NORM == 2u) * 2u * params.a_blocks + c;
        return mat2x4<f32>(a_norm[at], a_norm[at + params.a_blocks]);
    }
    return mat2x4<f32>(vec4<f32>(1.0), vec4<f32>(0.0));
}

// Block `c` of the channels of a stored voxel of a map of `plane` voxels a plane.
fn load_voxel(z: u32, plane: u32, voxel: u32, c: u32) -> vec4<f32> {
    if CONCAT && c >= params.a_blocks {
        let at = voxel * params.b_blocks + c - params.a_blocks;
        if z < params.b_split {
            return wide(b_lo[(z - params.b_first) * plane * params.b_blocks + at]);
        }
        return wide(b_hi[(z - params.b_split) * plane * params.b_blocks + at]);
    }
    let at = voxel * params.a_blocks + c;
    if z < params.a_split {
        return wide(a_lo[(z - params.a_first) * plane * params.a_blocks + at]);
    }
    return wide(a_hi[(z - params.a_split) * plane * params.a_blocks + at]);
}

fn load_source(z: u32, y: u32, x: u32, c: u32, norm: mat2x4<f32>) -> vec4<f32> {
    let s = load_voxel(z, params.in_extent.y * params.in_extent.z, y * params.in_extent.z + x, c);
    if CONCAT && c >= params.a_blocks {
        return load_b(s, norm);
    }
    return load_a(s, norm);
}

fn is_upsampled(c: u32) -> bool {
    return (UPSAMPLED_B && c >= params.a_blocks) || (UPSAMPLED_A && c < params.a_blocks);
}

fn bilinear(z: u32, y: Tap, x: Tap, c: u32) -> vec4<f32> {
    let plane = params.coarse.y * params.coarse.z;
    let row_low = y.low * params.coarse.z;
    let row_high = y.high * params.coarse.z;
    let top = linear_mix(load_voxel(z, plane, row_low + x.low, c), load_voxel(z, plane, row_low + x.high, c), x.weight);
    let bottom = linear_mix(load_voxel(z, plane, row_high + x.low, c), load_voxel(z, plane, row_high + x.high, c), x.weight);
    return linear_mix(top, bottom, y.weight);
}

fn load_upsampled(z: Tap, y: Tap, x: Tap, c: u32) -> vec4<f32> {
    if RESIZE == 2u {
        return rounded(load_voxel(z.low, params.coarse.y * params.coarse.z, y.low * params.coarse.z + x.low, c));
    }
    var acc = bilinear(z.low, y, x, c);
    if z.weight > 0.0 {
        acc = linear_mix(acc, bilinear(z.high, y, x, c), z.weight);
    }
    return rounded(acc);
}

// Block `o` of the channels of voxel `at` of plane z of what is added.
fn load_added(z: u32, at: u32, o: u32) -> vec4<f32> {
    var norm = mat2x4<f32>(vec4<f32>(1.0), vec4<f32>(0.0));
    if B_NORM > 0u {
        let n = select(0u, z - params.b_norm_first, B_NORM == 2u) * 2u * params.out_blocks + o;
        norm = mat2x4<f32>(b_norm[n], b_norm[n + params.out_blocks]);
    }
    let plane = params.out_extent.y * params.out_extent.z;
    return load_b(wide(b_lo[((z - params.b_first) * plane + at) * params.out_blocks + o]), norm);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn conv3d_direct(@builtin(global_invocation_id) id: vec3<u32>) {
    let out = params.out_extent;
    let oy = id.x / params.row_groups;
    let ox = (id.x % params.row_groups) * VOXELS;
    let oz = params.out_begin + id.z;
    if oy >= out.y {
        return;
    }
    let blocks = params.a_blocks + params.b_blocks;
    let bias = (params.out_blocks + 1u) / 2u * KD * KH * KW * blocks * 8u + id.y * 2u;
    var acc: array<array<vec4<f32>, 2>, VOXELS>;
    for (var v = 0u; v < VOXELS; v++) {
        acc[v][0] = wide(weight[bias]);
        acc[v][1] = wide(weight[bias + 1u]);
    }

    for (var i = 0u; i < KD; i++) {
        let z = oz * SD + i - PD;             // below zero wraps above the extent
        if z >= params.in_extent.x {
            continue;
        }
        let tz = resize_tap(z, params.coarse.x, params.in_extent.x);
        for (var j = 0u; j < KH; j++) {
            let y = oy * SH + j - PH;
            if y >= params.in_extent.y {
                continue;
            }
            let ty = resize_tap(y, params.coarse.y, params.in_extent.y);
            for (var k = 0u; k < KW; k++) {
                let x = ox * SW + k - PW;
                var tx: array<Tap, VOXELS>;
                if UPSAMPLED_A || UPSAMPLED_B {
                    for (var v = 0u; v < VOXELS; v++) {
                        tx[v] = resize_tap(x + v * SW, params.coarse.z, params.in_extent.z);
                    }
                }
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
                    let norm = norm_of(z, c);
                    for (var v = 0u; v < VOXELS; v++) {
                        let sx = x + v * SW;
                        if sx < params.in_extent.z {
                            var s: vec4<f32>;
                            if is_upsampled(c) {
                                s = load_upsampled(tz, ty, tx[v], c);
                            } else {
                                s = load_source(z, y, sx, c, norm);
                            }
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
            let voxel = oy * out.z + ox + v;
            if RESIDUAL {
                acc[v][0] += load_added(oz, voxel, id.y * 2u);
            }
            dst[at] = narrow(activate(acc[v][0]));
            if id.y * 2u + 1u < params.out_blocks {
                if RESIDUAL {
                    acc[v][1] += load_added(oz, voxel, id.y * 2u + 1u);
                }
                dst[at + 1u] = narrow(activate(acc[v][1]));
            }
        }
    }
}
