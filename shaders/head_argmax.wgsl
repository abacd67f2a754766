// The last layer and its labels at once: 1x1x1 convolution of one map or of two concatenated maps, their norms, then the label of the
// highest logit, packed LABELS to a u32 word (4 labels of 8 bits or 2 of 16); the first of equals wins. Logits are never stored. All
// bits of a label are set where a logit is NaN or infinite: told by its bits, as shaders may take floats to be finite.
// One invocation computes one word: x walks the words of a plane, whose last word is padded with zeros; z the planes.
// The sums run in the order of conv3d_pointwise, so that f32 labels are those of its logits.
// Includes shared/weights.wgsl.
// Limits: each source's planes lie in one slab; at most 65,536 classes.

override WORKGROUP: u32 = 64u;
override LABELS: u32 = 4u;
override CONCAT: bool = false;

const VOXELS: u32 = 4u;       // the most LABELS

struct Params {
    plane: u32,               // voxels of a plane
    words: u32,               // words of a plane
    a_blocks: u32,            // of 4 channels
    b_blocks: u32,
    a_first: u32,
    b_first: u32,
    out_first: u32,
    out_begin: u32,
    classes: u32,
    a_norm_first: u32,
    b_norm_first: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Elem4>;            // [D, H, W, A/4]
@group(0) @binding(2) var<storage, read> b: array<Elem4>;            // [D, H, W, B/4]
@group(0) @binding(3) var<storage, read> a_norm: array<vec4<f32>>;   // [1 or D, 2, A/4]: scale, shift
@group(0) @binding(4) var<storage, read> b_norm: array<vec4<f32>>;   // [1 or D, 2, B/4]
@group(0) @binding(5) var<storage, read> weight: array<Tap8>;        // [O/8, (A+B)/4] then bias [O/32]
@group(0) @binding(6) var<storage, read_write> dst: array<u32>;      // [D, words]

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

@compute @workgroup_size(WORKGROUP, 1, 1)
fn head_argmax(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.words {
        return;
    }
    let z = params.out_begin + id.z;
    let voxel = id.x * LABELS;
    let last = params.plane - 1u;
    let blocks = params.a_blocks + params.b_blocks;
    let eights = (params.classes + 7u) / 8u;
    var a_at: array<u32, VOXELS>;
    var b_at: array<u32, VOXELS>;
    for (var v = 0u; v < LABELS; v++) {
        a_at[v] = ((z - params.a_first) * params.plane + min(voxel + v, last)) * params.a_blocks;
        b_at[v] = ((z - params.b_first) * params.plane + min(voxel + v, last)) * params.b_blocks;
    }
    var best: array<f32, VOXELS>;
    var label: array<u32, VOXELS>;
    var exponent: array<u32, VOXELS>;
    for (var o = 0u; o < eights; o++) {
        let bias = bias_of(eights * blocks, o);
        var acc: array<array<vec4<f32>, 2>, VOXELS>;
        for (var v = 0u; v < LABELS; v++) {
            acc[v][0] = bias[0];
            acc[v][1] = bias[1];
        }
        var w = o * blocks;
        for (var c = 0u; c < params.a_blocks; c++) {
            let tap = weight[w];
            w += 1u;
            let norm = norm_of_a(z, c);
            for (var v = 0u; v < LABELS; v++) {
                let s = load_a(wide(a[a_at[v] + c]), norm);
                acc[v][0] = add_low(acc[v][0], s, tap);
                acc[v][1] = add_high(acc[v][1], s, tap);
            }
        }
        if CONCAT {
            for (var c = 0u; c < params.b_blocks; c++) {
                let tap = weight[w];
                w += 1u;
                let norm = norm_of_b(z, c);
                for (var v = 0u; v < LABELS; v++) {
                    let s = load_b(wide(b[b_at[v] + c]), norm);
                    acc[v][0] = add_low(acc[v][0], s, tap);
                    acc[v][1] = add_high(acc[v][1], s, tap);
                }
            }
        }
        for (var v = 0u; v < LABELS; v++) {
            for (var h = 0u; h < 2u; h++) {
                let logits = activate(acc[v][h]);
                let exponents = bitcast<vec4<u32>>(logits) & vec4<u32>(0x7f800000u);
                for (var i = 0u; i < 4u; i++) {
                    let number = o * 8u + h * 4u + i;
                    if number < params.classes {
                        exponent[v] = max(exponent[v], exponents[i]);
                        if number == 0u || logits[i] > best[v] {
                            best[v] = logits[i];
                            label[v] = number;
                        }
                    }
                }
            }
        }
    }

    var word = 0u;
    for (var v = 0u; v < LABELS; v++) {
        if voxel + v < params.plane {
            let found = select(label[v], (1u << (32u / LABELS)) - 1u, exponent[v] == 0x7f800000u);
            word |= found << (v * (32u / LABELS));
        }
    }
    dst[(z - params.out_first) * params.words + id.x] = word;
}
