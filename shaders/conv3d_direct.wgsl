// Direct 3D convolution of one map or of two concatenated maps, their norms, bias and activation fused; zero padding. Or of one
// map, and a second one is added to the sums before the activation.
// One invocation computes 8 output channels of VOXELS neighbouring voxels of a row: x walks the row groups of a plane,
// y the blocks of output channels, z the planes.
// A source may be read through resampling to `in_extent`, which is never stored; values are rounded as if it were.
// Includes shared/window.wgsl, shared/resize.wgsl and shared/weights.wgsl.
// Limits: no dilation, no groups (conv3d_general has them); a source spans at most two slabs; sources read through resampling have one extent.

override WORKGROUP: u32 = 64u;
override CONCAT: bool = false;
override RESIDUAL: bool = false; // b is added to the sums, nothing is concatenated
override UPSAMPLED_A: bool = false;
override UPSAMPLED_B: bool = false;

const VOXELS: u32 = 8u;

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
@group(0) @binding(7) var<storage, read> weight: array<Tap8>;        // [O/8, KD, KH, KW, (A+B)/4] then bias [O/32]
@group(0) @binding(8) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, O/4]

// Scale and shift of a block of 4 channels of each source on plane z.
fn norm_of_a(z: u32, c: u32) -> mat2x4<f32> {
    if A_NORM > 0u {
        let at = select(0u, z - params.a_norm_first, A_NORM == 2u) * 2u * params.a_blocks + c;
        return mat2x4<f32>(a_norm[at], a_norm[at + params.a_blocks]);
    }
    return mat2x4<f32>(vec4<f32>(1.0), vec4<f32>(0.0));
}

fn norm_of_b(z: u32, c: u32) -> mat2x4<f32> {
    if B_NORM > 0u {
        let at = select(0u, z - params.b_norm_first, B_NORM == 2u) * 2u * params.b_blocks + c;
        return mat2x4<f32>(b_norm[at], b_norm[at + params.b_blocks]);
    }
    return mat2x4<f32>(vec4<f32>(1.0), vec4<f32>(0.0));
}

// Where plane z of a source begins in its slab, in elements; `plane` elements each.
fn plane_at(z: u32, first: u32, split: u32, plane: u32) -> u32 {
    return (z - select(split, first, z < split)) * plane;
}

// Block `at` of the slab of a source that plane z lies in.
fn load_block(second: bool, z: u32, at: u32) -> vec4<f32> {
    if second {
        if z < params.b_split {
            return wide(b_lo[at]);
        }
        return wide(b_hi[at]);
    }
    if z < params.a_split {
        return wide(a_lo[at]);
    }
    return wide(a_hi[at]);
}

fn bilinear(second: bool, z: u32, y: Tap, x: Tap, c: u32) -> vec4<f32> {
    let blocks = select(params.a_blocks, params.b_blocks, second);
    let first = select(params.a_first, params.b_first, second);
    let split = select(params.a_split, params.b_split, second);
    let plane = plane_at(z, first, split, params.coarse.y * params.coarse.z * blocks) + c;
    let low = plane + y.low * params.coarse.z * blocks;
    let high = plane + y.high * params.coarse.z * blocks;
    let top = linear_mix(load_block(second, z, low + x.low * blocks), load_block(second, z, low + x.high * blocks), x.weight);
    let bottom = linear_mix(load_block(second, z, high + x.low * blocks), load_block(second, z, high + x.high * blocks), x.weight);
    return linear_mix(top, bottom, y.weight);
}

fn load_upsampled(second: bool, z: Tap, y: Tap, x: Tap, c: u32) -> vec4<f32> {
    if RESIZE == 2u {
        let blocks = select(params.a_blocks, params.b_blocks, second);
        let first = select(params.a_first, params.b_first, second);
        let split = select(params.a_split, params.b_split, second);
        let plane = plane_at(z.low, first, split, params.coarse.y * params.coarse.z * blocks);
        return rounded(load_block(second, z.low, plane + (y.low * params.coarse.z + x.low) * blocks + c));
    }
    var acc = bilinear(second, z.low, y, x, c);
    if z.weight > 0.0 {
        acc = linear_mix(acc, bilinear(second, z.high, y, x, c), z.weight);
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
    let bias = bias_of((params.out_blocks + 1u) / 2u * KD * KH * KW * blocks, id.y);
    var acc: array<array<vec4<f32>, 2>, VOXELS>;
    for (var v = 0u; v < VOXELS; v++) {
        acc[v][0] = bias[0];
        acc[v][1] = bias[1];
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
                var w = (((id.y * KD + i) * KH + j) * KW + k) * blocks;
                var at: array<u32, VOXELS>;
                for (var v = 0u; v < VOXELS; v++) {
                    at[v] = plane_at(z, params.a_first, params.a_split, params.in_extent.y * params.in_extent.z * params.a_blocks)
                        + (y * params.in_extent.z + x + v * SW) * params.a_blocks;
                }
                for (var c = 0u; c < params.a_blocks; c++) {
                    let tap = weight[w];
                    w += 1u;
                    let norm = norm_of_a(z, c);
                    for (var v = 0u; v < VOXELS; v++) {
                        if x + v * SW < params.in_extent.z {
                            var s: vec4<f32>;
                            if UPSAMPLED_A {
                                s = load_upsampled(false, tz, ty, tx[v], c);
                            } else {
                                s = load_a(load_block(false, z, at[v] + c), norm);
                            }
                            acc[v][0] = add_low(acc[v][0], s, tap);
                            acc[v][1] = add_high(acc[v][1], s, tap);
                        }
                    }
                }
                if CONCAT {
                    for (var v = 0u; v < VOXELS; v++) {
                        at[v] = plane_at(z, params.b_first, params.b_split, params.in_extent.y * params.in_extent.z * params.b_blocks)
                            + (y * params.in_extent.z + x + v * SW) * params.b_blocks;
                    }
                    for (var c = 0u; c < params.b_blocks; c++) {
                        let tap = weight[w];
                        w += 1u;
                        let norm = norm_of_b(z, c);
                        for (var v = 0u; v < VOXELS; v++) {
                            if x + v * SW < params.in_extent.z {
                                var s: vec4<f32>;
                                if UPSAMPLED_B {
                                    s = load_upsampled(true, tz, ty, tx[v], c);
                                } else {
                                    s = load_b(load_block(true, z, at[v] + c), norm);
                                }
                                acc[v][0] = add_low(acc[v][0], s, tap);
                                acc[v][1] = add_high(acc[v][1], s, tap);
                            }
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
