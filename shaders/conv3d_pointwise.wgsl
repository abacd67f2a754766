// 1x1x1 convolution (a linear layer over tokens) of one map or of two concatenated maps, their norms, bias and
// activation fused. Or of one map, and a second one is added to the sums before the activation.
// One invocation computes 8 output channels of VOXELS neighbouring voxels: x walks the voxel groups of a plane,
// y the blocks of output channels, z the planes.
// Includes shared/weights.wgsl.
// Limits: stride 1; each source's planes lie in one slab.

override WORKGROUP: u32 = 64u;
override CONCAT: bool = false;
override RESIDUAL: bool = false; // b is added to the sums, nothing is concatenated

const VOXELS: u32 = 8u;

struct Params {
    plane: u32,               // voxels of a plane
    groups: u32,              // groups of VOXELS voxels of a plane
    a_blocks: u32,
    b_blocks: u32,
    a_first: u32,
    b_first: u32,
    out_first: u32,
    out_begin: u32,
    out_blocks: u32,          // of 4 channels
    a_norm_first: u32,
    b_norm_first: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Elem4>;            // [D, H, W, A/4]
@group(0) @binding(2) var<storage, read> b: array<Elem4>;            // [D, H, W, B/4], or what is added [D, H, W, O/4]
@group(0) @binding(3) var<storage, read> a_norm: array<vec4<f32>>;   // [1 or D, 2, A/4]: scale, shift
@group(0) @binding(4) var<storage, read> b_norm: array<vec4<f32>>;   // [1 or D, 2, B/4 or O/4]
@group(0) @binding(5) var<storage, read> weight: array<Tap8>;        // [O/8, (A+B)/4] then bias [O/32]
@group(0) @binding(6) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, O/4]

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

// Block `o` of the channels of voxel `at` of plane z of what is added.
fn load_added(z: u32, at: u32, o: u32) -> vec4<f32> {
    var norm = mat2x4<f32>(vec4<f32>(1.0), vec4<f32>(0.0));
    if B_NORM > 0u {
        let n = select(0u, z - params.b_norm_first, B_NORM == 2u) * 2u * params.out_blocks + o;
        norm = mat2x4<f32>(b_norm[n], b_norm[n + params.out_blocks]);
    }
    return load_b(wide(b[((z - params.b_first) * params.plane + at) * params.out_blocks + o]), norm);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn conv3d_pointwise(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.groups {
        return;
    }
    let z = params.out_begin + id.z;
    let voxel = id.x * VOXELS;
    let inside = min(VOXELS, params.plane - voxel);
    let blocks = params.a_blocks + params.b_blocks;
    let bias = bias_of((params.out_blocks + 1u) / 2u * blocks, id.y);
    var acc: array<array<vec4<f32>, 2>, VOXELS>;
    for (var v = 0u; v < VOXELS; v++) {
        acc[v][0] = bias[0];
        acc[v][1] = bias[1];
    }

    var at: array<u32, VOXELS>;
    for (var v = 0u; v < VOXELS; v++) {
        at[v] = ((z - params.a_first) * params.plane + voxel + min(v, inside - 1u)) * params.a_blocks;
    }
    var w = id.y * blocks;
    for (var c = 0u; c < params.a_blocks; c++) {
        let tap = weight[w];
        w += 1u;
        let norm = norm_of_a(z, c);
        for (var v = 0u; v < VOXELS; v++) {
            let s = load_a(wide(a[at[v] + c]), norm);
            acc[v][0] = add_low(acc[v][0], s, tap);
            acc[v][1] = add_high(acc[v][1], s, tap);
        }
    }
    if CONCAT {
        for (var v = 0u; v < VOXELS; v++) {
            at[v] = ((z - params.b_first) * params.plane + voxel + min(v, inside - 1u)) * params.b_blocks;
        }
        for (var c = 0u; c < params.b_blocks; c++) {
            let tap = weight[w];
            w += 1u;
            let norm = norm_of_b(z, c);
            for (var v = 0u; v < VOXELS; v++) {
                let s = load_b(wide(b[at[v] + c]), norm);
                acc[v][0] = add_low(acc[v][0], s, tap);
                acc[v][1] = add_high(acc[v][1], s, tap);
            }
        }
    }

    let row = (z - params.out_first) * params.plane + voxel;
    for (var v = 0u; v < inside; v++) {
        let at = (row + v) * params.out_blocks + id.y * 2u;
        if RESIDUAL {
            acc[v][0] += load_added(z, voxel + v, id.y * 2u);
        }
        dst[at] = narrow(activate(acc[v][0]));
        if id.y * 2u + 1u < params.out_blocks {
            if RESIDUAL {
                acc[v][1] += load_added(z, voxel + v, id.y * 2u + 1u);
            }
            dst[at + 1u] = narrow(activate(acc[v][1]));
        }
    }
}
