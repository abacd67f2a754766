// Labels of the highest logit, packed LABELS to a u32 word (4 labels of 8 bits or 2 of 16); the first of equals wins. All bits of a
// label are set where a logit is NaN or infinite: told by its bits, as shaders may take floats to be finite.
// One invocation computes one word: x walks the words of a plane, whose last word is padded with zeros; z the planes.
// Limits: the source's planes lie in one slab; at most 65,536 classes.

override WORKGROUP: u32 = 64u;
override LABELS: u32 = 4u;

struct Params {
    plane: u32,               // voxels of a plane
    words: u32,               // words of a plane
    blocks: u32,              // of 4 channels
    classes: u32,
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<Elem4>;          // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read_write> dst: array<u32>;      // [D, words]

fn label_of(at: u32) -> u32 {
    var best = wide(src[at]).x;
    var label = 0u;
    var exponent = 0u;
    for (var b = 0u; b < params.blocks; b++) {
        let x = wide(src[at + b]);
        let exponents = bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u);
        for (var i = 0u; i < 4u; i++) {
            if b * 4u + i < params.classes {
                exponent = max(exponent, exponents[i]);
                if x[i] > best {
                    best = x[i];
                    label = b * 4u + i;
                }
            }
        }
    }
    return select(label, (1u << (32u / LABELS)) - 1u, exponent == 0x7f800000u);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn argmax(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.words {
        return;
    }
    let z = params.out_begin + id.z;
    var word = 0u;
    for (var i = 0u; i < LABELS; i++) {
        let voxel = id.x * LABELS + i;
        if voxel < params.plane {
            word |= label_of(((z - params.first) * params.plane + voxel) * params.blocks) << (i * (32u / LABELS));
        }
    }
    dst[(z - params.out_first) * params.words + id.x] = word;
}
