// A loop of multiply-adds in registers: the arithmetic that a device reaches at best.
// One invocation makes 8 independent chains of LOOPS multiply-adds of 4 lanes from 4 values: x walks the blocks of a
// row, y the rows, z the planes. With a = x / 2 and b = x the chain s -> a s + b stays bounded for |x| < 1.
// Limits: the source's planes lie in one slab.

override WORKGROUP: u32 = 64u;
override LOOPS: u32 = 256u;

struct Params {
    row: u32,                 // blocks of 4 values of a row
    rows: u32,                // of a plane
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<f32>>;          // [D, rows, row]
@group(0) @binding(2) var<storage, read_write> dst: array<vec4<f32>>;    // [D, rows, row]

@compute @workgroup_size(WORKGROUP, 1, 1)
fn ceiling_fma(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.row {
        return;
    }
    let z = params.out_begin + id.z;
    let b = src[((z - params.first) * params.rows + id.y) * params.row + id.x];
    let a = b * 0.5;
    // named, as an array of sums may not be kept in registers
    var s0 = b;
    var s1 = b.yzwx;
    var s2 = b.zwxy;
    var s3 = b.wxyz;
    var s4 = -b;
    var s5 = -b.yzwx;
    var s6 = -b.zwxy;
    var s7 = -b.wxyz;
    for (var i = 0u; i < LOOPS; i++) {
        s0 = fma(a, s0, b);
        s1 = fma(a, s1, b);
        s2 = fma(a, s2, b);
        s3 = fma(a, s3, b);
        s4 = fma(a, s4, b);
        s5 = fma(a, s5, b);
        s6 = fma(a, s6, b);
        s7 = fma(a, s7, b);
    }
    let sum = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7));
    dst[((z - params.out_first) * params.rows + id.y) * params.row + id.x] = sum;
}
