// Transposed 3D convolution whose kernel equals its stride, so that each source voxel makes a block of KD x KH x KW output
// voxels and no two overlap: one matrix product whose rows are scattered. Norm, bias and activation fused.
// One invocation computes 8 output channels at one place of the blocks of VOXELS neighbouring source voxels: x walks the
// voxel groups of a source plane, y the places within a plane of the block and the blocks of output channels, z the output planes.
// Includes shared/weights.wgsl.
// Limits: no padding; no groups; the source's planes lie in one slab.

override WORKGROUP: u32 = 64u;
override KD: u32 = 2u;
override KH: u32 = 2u;
override KW: u32 = 2u;

const VOXELS: u32 = 8u;

struct Params {
    in_plane: u32,            // voxels of a plane
    in_row: u32,              // voxels of a row
    groups: u32,              // groups of VOXELS voxels of a source plane
    in_blocks: u32,           // of 4 channels
    first: u32,
    out_plane: u32,
    out_row: u32,
    out_first: u32,
    out_begin: u32,
    out_blocks: u32,          // of 4 channels
    norm_first: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<Elem4>;          // [D, H, W, I/4]
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>;     // [1 or D, 2, I/4]: scale, shift
@group(0) @binding(3) var<storage, read> weight: array<Tap8>;        // [O/8, KD, KH, KW, I/4] then bias [O/32]
@group(0) @binding(4) var<storage, read_write> dst: array<Elem4>;    // [D KD, H KH, W KW, O/4]

// Scale and shift of 4 channels on source plane z.
fn norm_of(z: u32, c: u32) -> mat2x4<f32> {
    if A_NORM > 0u {
        let at = select(0u, z - params.norm_first, A_NORM == 2u) * 2u * params.in_blocks + c;
        return mat2x4<f32>(norm[at], norm[at + params.in_blocks]);
    }
    return mat2x4<f32>(vec4<f32>(1.0), vec4<f32>(0.0));
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn conv_transpose3d(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.groups {
        return;
    }
    let out_eights = (params.out_blocks + 1u) / 2u;
    let place = id.y / out_eights;            // j * KW + k
    let o = id.y % out_eights;
    let oz = params.out_begin + id.z;
    let first_voxel = id.x * VOXELS;
    let inside = min(VOXELS, params.in_plane - first_voxel);
    let bias = bias_of(out_eights * KD * KH * KW * params.in_blocks, o);
    var acc: array<array<vec4<f32>, 2>, VOXELS>;
    for (var v = 0u; v < VOXELS; v++) {
        acc[v][0] = bias[0];
        acc[v][1] = bias[1];
    }

    var at: array<u32, VOXELS>;
    for (var v = 0u; v < VOXELS; v++) {
        at[v] = ((oz / KD - params.first) * params.in_plane + first_voxel + min(v, inside - 1u)) * params.in_blocks;
    }
    var w = ((o * KD + oz % KD) * KH * KW + place) * params.in_blocks;
    for (var c = 0u; c < params.in_blocks; c++) {
        let tap = weight[w];
        w += 1u;
        let scale = norm_of(oz / KD, c);
        for (var v = 0u; v < VOXELS; v++) {
            let s = load_a(wide(src[at[v] + c]), scale);
            acc[v][0] = add_low(acc[v][0], s, tap);
            acc[v][1] = add_high(acc[v][1], s, tap);
        }
    }

    let plane = (oz - params.out_first) * params.out_plane;
    for (var v = 0u; v < inside; v++) {
        let y = (first_voxel + v) / params.in_row * KH + place / KW;
        let x = (first_voxel + v) % params.in_row * KW + place % KW;
        let at = (plane + y * params.out_row + x) * params.out_blocks + o * 2u;
        dst[at] = narrow(activate(acc[v][0]));
        if o * 2u + 1u < params.out_blocks {
            dst[at + 1u] = narrow(activate(acc[v][1]));
        }
    }
}
