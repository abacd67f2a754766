// 3D convolution of small kernels in tiles, for GPUs: what conv3d_direct computes, each input voxel
// loaded once a tile instead of once a tap. A workgroup computes TZ x TY x TX voxels of 8 OUTS
// output channels. It stages what they read of STAGED blocks of four input channels, a brick with
// its halo, in workgroup memory as f32: slabs, zero padding, norm, activation, resampling and
// concatenation are done there, once. One invocation holds VOXELS voxels of a row times 8 OUTS
// channels in registers: x walks the tiles of a plane, y the blocks of output channels, z the tiles
// along D. A voxel's sum runs over input channels, then taps, whatever the tile: its bits do not
// depend on it.
// Includes shared/window.wgsl, shared/resize.wgsl and shared/weights.wgsl.
// Limits: kernels of at most 3; no dilation, no groups; a source spans at most two slabs; sources
// read through resampling have one extent; norms of planes only where KD is one and TZ, too.

override WORKGROUP: u32 = 64u;     // TX / VOXELS * TY * TZ
override CONCAT: bool = false;
override RESIDUAL: bool = false;   // b is added to the sums, nothing is concatenated
override UPSAMPLED_A: bool = false;
override UPSAMPLED_B: bool = false;
override SPLIT_A: bool = false;    // the source lies in two slabs
override SPLIT_B: bool = false;
override VOXELS: u32 = 4u;
override OUTS: u32 = 1u;
override TZ: u32 = 4u;
override TY: u32 = 8u;
override TX: u32 = 8u;
override STAGED: u32 = 1u;
override BZ: u32 = 6u;             // the brick: (TZ - 1) SD + KD planes
override BY: u32 = 10u;
override BX: u32 = 10u;
override ROW: u32 = 11u;  // from row to row of the brick; odd: lanes along y read other banks
override SLOTS: u32 = 11u;         // elements of the bricks that an invocation fills, at least all
override BRICK: u32 = 704u;        // elements of a brick: WORKGROUP SLOTS / STAGED
override TABLE: u32 = 1u;          // BZ + BY + BX where a source is resampled

const MOST_SLOTS: u32 = 12u;
const MOST_SUMS: u32 = 8u;         // 2 VOXELS OUTS
const MOST_INPUTS: u32 = 6u;       // (VOXELS - 1) SW + KW
const NONE: u32 = 0xffffffffu;     // a slot of padding
const UPPER: u32 = 0x80000000u;    // a slot whose voxel lies in the upper slab

struct Params {
    in_extent: vec3<u32>,          // D, H, W
    a_blocks: u32,
    out_extent: vec3<u32>,
    b_blocks: u32,
    a_first: u32,
    a_split: u32,
    b_first: u32,
    b_split: u32,
    out_first: u32,
    out_begin: u32,
    out_end: u32,
    out_blocks: u32,               // of 4 channels
    coarse: vec3<u32>,             // D, H, W of a source that is read through resampling
    row_tiles: u32,
    a_norm_first: u32,
    b_norm_first: u32,
    in_end: u32,                   // behind the last plane that is read
    depth_taps: u32,               // KD, KH, SLOTS; as overrides, loops over them were unrolled
    row_taps: u32,
    slots: u32,
    pad0: u32,
    pad1: u32,
}

// What resampling mixes along an axis of the brick, as element offsets; outside the map the weight
// is -1.
struct Mixed {
    low: u32,
    high: u32,
    weight: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a_lo: array<Elem4>; // [D, H, W, A/4]
@group(0) @binding(2) var<storage, read> a_hi: array<Elem4>; // [D, H, W, A/4]
@group(0) @binding(3) var<storage, read> b_lo: array<Elem4>; // [D, H, W, B/4], or what is added
@group(0) @binding(4) var<storage, read> b_hi: array<Elem4>; // [D, H, W, B/4]
@group(0) @binding(5) var<storage, read> a_norm: array<vec4<f32>>; // [1 or D, 2, A/4]
@group(0) @binding(6) var<storage, read> b_norm: array<vec4<f32>>; // scale and shift of b
@group(0) @binding(7) var<storage, read> weight: array<Tap8>; // [O/8, KD, KH, KW, (A+B)/4], bias
@group(0) @binding(8) var<storage, read_write> dst: array<Elem4>; // [D, H, W, O/4]

var<workgroup> brick: array<vec4<f32>, STAGED * BRICK>;
var<workgroup> mixed: array<Mixed, TABLE>;

// Block `at` of a source, in whichever slab it lies.
fn load_a_slab(at: u32, c: u32) -> Elem4 {
    if SPLIT_A && (at & UPPER) != 0u {
        return a_hi[(at & ~UPPER) + c];
    }
    return a_lo[at + c];
}

fn load_b_slab(at: u32, c: u32) -> Elem4 {
    if SPLIT_B && (at & UPPER) != 0u {
        return b_hi[(at & ~UPPER) + c];
    }
    return b_lo[at + c];
}

// Where plane z of a source begins, in elements.
fn plane_at(z: u32, first: u32, split: u32, is_split: bool, plane: u32) -> u32 {
    if is_split && z >= split {
        return ((z - split) * plane) | UPPER;
    }
    return (z - first) * plane;
}

// Scale and shift of block `c` of source a or b on plane z.
fn norm_of(second: bool, z: u32, c: u32) -> mat2x4<f32> {
    if second {
        if B_NORM > 0u {
            let at = select(0u, z - params.b_norm_first, B_NORM == 2u) * 2u * params.b_blocks + c;
            return mat2x4<f32>(b_norm[at], b_norm[at + params.b_blocks]);
        }
    } else if A_NORM > 0u {
        let at = select(0u, z - params.a_norm_first, A_NORM == 2u) * 2u * params.a_blocks + c;
        return mat2x4<f32>(a_norm[at], a_norm[at + params.a_blocks]);
    }
    return mat2x4<f32>(vec4<f32>(1.0), vec4<f32>(0.0));
}

// A block of a voxel of the map that is resampled.
fn load_coarse(second: bool, at: u32, c: u32) -> vec4<f32> {
    if second {
        return wide(load_b_slab(at, c));
    }
    return wide(load_a_slab(at, c));
}

fn bilinear(second: bool, plane: u32, y: Mixed, x: Mixed, c: u32) -> vec4<f32> {
    let low = plane + y.low;
    let high = plane + y.high;
    let top_left = load_coarse(second, low + x.low, c);
    let top_right = load_coarse(second, low + x.high, c);
    let bottom_left = load_coarse(second, high + x.low, c);
    let bottom_right = load_coarse(second, high + x.high, c);
    let top = linear_mix(top_left, top_right, x.weight);
    return linear_mix(top, linear_mix(bottom_left, bottom_right, x.weight), y.weight);
}

fn resampled(second: bool, z: Mixed, y: Mixed, x: Mixed, c: u32) -> vec4<f32> {
    if RESIZE == 2u {
        return rounded(load_coarse(second, z.low + y.low + x.low, c));
    }
    let below = bilinear(second, z.low, y, x, c);
    return rounded(linear_mix(below, bilinear(second, z.high, y, x, c), z.weight));
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
fn conv3d_tiled(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let extent = params.in_extent;
    let out = params.out_extent;
    let ty = t % TY;
    let tz = t / TY % TZ;
    let tx = t / (TY * TZ) * VOXELS;
    let first_x = group.x % params.row_tiles * TX;
    let first_y = group.x / params.row_tiles * TY;
    let first_z = params.out_begin + group.z * TZ;
    // of the brick; below zero wraps above the extent
    let x0 = first_x * SW - PW;
    let y0 = first_y * SH - PH;
    let z0 = first_z * SD - PD;
    let blocks = params.a_blocks + params.b_blocks;
    let eights = (params.out_blocks + 1u) / 2u;
    let out_step = KD * KH * KW * blocks;
    let first_eight = group.y * OUTS;

    var acc: array<vec4<f32>, MOST_SUMS>;
    for (var o = 0u; o < OUTS; o++) {
        let bias = bias_of(eights * out_step, first_eight + o);
        for (var v = 0u; v < VOXELS; v++) {
            acc[(v * OUTS + o) * 2u] = bias[0];
            acc[(v * OUTS + o) * 2u + 1u] = bias[1];
        }
    }

    // the element of slot u: slots go block by block, then along x, y, z
    let own_block = t % STAGED;
    let own_slot = own_block * BRICK + t / STAGED;
    var place: array<u32, MOST_SLOTS>;
    for (var c = 0u; c < blocks; ) {
        let second = CONCAT && c >= params.a_blocks;
        let begin = select(0u, params.a_blocks, second);
        let own = select(params.a_blocks, params.b_blocks, second);
        let block = c - begin;
        let is_resampled = (UPSAMPLED_A && !second) || (UPSAMPLED_B && second);
        if block == 0u {
            let first = select(params.a_first, params.b_first, second);
            let split = select(params.a_split, params.b_split, second);
            let is_split = select(SPLIT_A, SPLIT_B, second);
            if is_resampled {
                workgroupBarrier();
                let n = params.coarse;
                for (var e = t; e < TABLE; e += WORKGROUP) {
                    var m = Mixed(0u, 0u, -1.0);
                    if e < BX {
                        let tap = resize_tap(x0 + e, n.z, extent.z);
                        if x0 + e < extent.z {
                            m = Mixed(tap.low * own, tap.high * own, tap.weight);
                        }
                    } else if e < BX + BY {
                        let y = y0 + e - BX;
                        let tap = resize_tap(y, n.y, extent.y);
                        if y < extent.y {
                            m = Mixed(tap.low * n.z * own, tap.high * n.z * own, tap.weight);
                        }
                    } else {
                        let z = z0 + e - BX - BY;
                        let tap = resize_tap(z, n.x, extent.x);
                        if z < params.in_end {
                            // a plane of no weight may be in no slab
                            let high = select(tap.low, tap.high, tap.weight > 0.0);
                            let plane = n.y * n.z * own;
                            m.low = plane_at(tap.low, first, split, is_split, plane);
                            m.high = plane_at(high, first, split, is_split, plane);
                            m.weight = tap.weight;
                        }
                    }
                    mixed[e] = m;
                }
            } else {
                var at = t / STAGED;
                var x = at % ROW;
                var y = at / ROW % BY;
                var z = at / (ROW * BY);
                for (var u = 0u; u < SLOTS; u++) {
                    let sx = x0 + x;
                    let sy = y0 + y;
                    let sz = z0 + z;
                    place[u] = NONE;
                    if x < BX && z < BZ && sx < extent.z && sy < extent.y && sz < params.in_end {
                        let plane = plane_at(sz, first, split, is_split, extent.y * extent.z * own);
                        place[u] = plane + (sy * extent.z + sx) * own + own_block;
                    }
                    x += WORKGROUP / STAGED % ROW;
                    y += WORKGROUP / STAGED / ROW % BY + select(0u, 1u, x >= ROW);
                    x -= select(0u, ROW, x >= ROW);
                    z += WORKGROUP / STAGED / (ROW * BY) + select(0u, 1u, y >= BY);
                    y -= select(0u, BY, y >= BY);
                }
            }
        }
        let norm = norm_of(second, z0, min(block + own_block, own - 1u));

        if is_resampled {
            workgroupBarrier();
            var at = t / STAGED;
            var x = at % ROW;
            var y = at / ROW % BY;
            var z = at / (ROW * BY);
            for (var u = 0u; u < params.slots; u++) {
                let mx = mixed[min(x, BX - 1u)];
                let my = mixed[BX + y];
                let mz = mixed[BX + BY + min(z, BZ - 1u)];
                let inside = min(mx.weight, min(my.weight, mz.weight)) >= 0.0;
                let s = resampled(second, mz, my, mx, block + own_block);
                brick[own_slot + u * (WORKGROUP / STAGED)] = select(vec4<f32>(0.0), s, inside);
                x += WORKGROUP / STAGED % ROW;
                y += WORKGROUP / STAGED / ROW % BY + select(0u, 1u, x >= ROW);
                x -= select(0u, ROW, x >= ROW);
                z += WORKGROUP / STAGED / (ROW * BY) + select(0u, 1u, y >= BY);
                y -= select(0u, BY, y >= BY);
            }
        } else {
            var loaded: array<Elem4, MOST_SLOTS>;
            for (var u = 0u; u < SLOTS; u++) {
                if second {
                    loaded[u] = load_b_slab(place[u], block);
                } else {
                    loaded[u] = load_a_slab(place[u], block);
                }
            }
            workgroupBarrier();
            for (var u = 0u; u < SLOTS; u++) {
                var s: vec4<f32>;
                if second {
                    s = load_b(wide(loaded[u]), norm);
                } else {
                    s = load_a(wide(loaded[u]), norm);
                }
                // padding is zero; without a branch, so that all loads are under way at once. Where
                // nothing is padded, what lies outside is read for no voxel that is stored.
                let kept = PD + PH + PW == 0u || place[u] != NONE;
                brick[own_slot + u * (WORKGROUP / STAGED)] = select(vec4<f32>(0.0), s, kept);
            }
        }
        workgroupBarrier();

        let staged = select(min(STAGED, own - block), 1u, STAGED == 1u);
        for (var s = 0u; s < staged; s++) {
            var at = s * BRICK + (tz * SD * BY + ty * SH) * ROW + tx * SW;
            var w = first_eight * out_step + c + s;
            for (var i = 0u; i < params.depth_taps; i++) {
                var row = at;
                for (var j = 0u; j < params.row_taps; j++) {
                    var inputs: array<vec4<f32>, MOST_INPUTS>;
                    for (var u = 0u; u < (VOXELS - 1u) * SW + KW; u++) {
                        inputs[u] = brick[row + u];
                    }
                    for (var k = 0u; k < KW; k++) {
                        for (var o = 0u; o < OUTS; o++) {
                            let tap = weight[w + o * out_step];
                            for (var v = 0u; v < VOXELS; v++) {
                                let q = inputs[v * SW + k];
                                let n = (v * OUTS + o) * 2u;
                                acc[n] = add_low(acc[n], q, tap);
                                acc[n + 1u] = add_high(acc[n + 1u], q, tap);
                            }
                        }
                        w += blocks;
                    }
                    row += ROW;
                }
                at += BY * ROW;
            }
        }
        c += staged;
    }

    let oy = first_y + ty;
    let oz = first_z + tz;
    if oy >= out.y || oz >= params.out_end {
        return;
    }
    let row = ((oz - params.out_first) * out.y + oy) * out.z;
    for (var v = 0u; v < VOXELS; v++) {
        let ox = first_x + tx + v;
        if ox < out.z {
            for (var h = 0u; h < 2u * OUTS; h++) {
                let o = first_eight * 2u + h;
                if o < params.out_blocks {
                    var sum = acc[v * OUTS * 2u + h];
                    if RESIDUAL {
                        sum += load_added(oz, oy * out.z + ox, o);
                    }
                    dst[(row + ox) * params.out_blocks + o] = narrow(activate(sum));
                }
            }
        }
    }
}
