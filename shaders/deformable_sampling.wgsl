// Multi-head deformable sampling of one to four maps: trilinear, zeros outside, weights softmaxed over levels and points.
// One invocation computes VALUES channels of one head of one query: x walks the queries of a plane, y the heads times blocks of
// channels, z the planes.
// Limits: the planes of each source that are read lie in one slab; heads divide the channels.

override WORKGROUP: u32 = 64u;
override LEVELS: u32 = 2u;
override POINTS: u32 = 4u;

const VALUES: u32 = 16u;

struct Params {
    queries: vec3<u32>,                // D, H, W
    offset_stride: u32,                // elements from query to query
    levels: array<vec4<u32>, 4>,       // D, H, W of the maps
    weight_stride: u32,
    value_stride: u32,                 // also of the output
    heads: u32,
    dim: u32,                          // channels of a head
    blocks: u32,                       // blocks of VALUES channels of a head
    offset_first: u32,
    weight_first: u32,
    out_first: u32,
    out_begin: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> offsets: array<Elem>;       // [D, H, W, heads, LEVELS, POINTS, 3]
@group(0) @binding(2) var<storage, read> weights: array<Elem>;       // [D, H, W, heads, LEVELS, POINTS]
@group(0) @binding(3) var<storage, read> level0: array<Elem>;        // [D, H, W, heads, dim] of the level
@group(0) @binding(4) var<storage, read> level1: array<Elem>;
@group(0) @binding(5) var<storage, read> level2: array<Elem>;
@group(0) @binding(6) var<storage, read> level3: array<Elem>;
@group(0) @binding(7) var<storage, read_write> dst: array<Elem4>;    // [D, H, W, heads, dim]

fn offset_of(i: u32) -> f32 {
    return pick(offsets[slot(i)], i);
}

fn weight_of(i: u32) -> f32 {
    return pick(weights[slot(i)], i);
}

fn value(level: u32, i: u32) -> f32 {
    switch level {
        case 0u: { return pick(level0[slot(i)], i); }
        case 1u: { return pick(level1[slot(i)], i); }
        case 2u: { return pick(level2[slot(i)], i); }
        default: { return pick(level3[slot(i)], i); }
    }
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn deformable_sampling(@builtin(global_invocation_id) id: vec3<u32>) {
    let plane = params.queries.y * params.queries.z;
    if id.x >= plane {
        return;
    }
    let head = id.y / params.blocks;
    let channel = (id.y % params.blocks) * VALUES;
    let values = min(VALUES, params.dim - channel);
    let z = params.out_begin + id.z;
    let offset_at = ((z - params.offset_first) * plane + id.x) * params.offset_stride + head * LEVELS * POINTS * 3u;
    let weight_at = ((z - params.weight_first) * plane + id.x) * params.weight_stride + head * LEVELS * POINTS;

    // the published order: the plane's place is taken along W, the column's along H, the row's along D
    let own = vec3<f32>(vec3<u32>(z, id.x % params.queries.z, id.x / params.queries.z)) + 0.5;
    let place = own / vec3<f32>(params.queries.xzy);

    var high = weight_of(weight_at);
    for (var i = 1u; i < LEVELS * POINTS; i++) {
        high = max(high, weight_of(weight_at + i));
    }
    var acc: array<f32, VALUES>;
    var total = 0.0;
    for (var level = 0u; level < LEVELS; level++) {
        let n = params.levels[level].xyz;
        let size = vec3<f32>(n.zyx);   // along W, H, D, as the three components are taken
        let unit = size / vec3<f32>(n.xzy);
        for (var p = 0u; p < POINTS; p++) {
            let i = level * POINTS + p;
            let share = exp(weight_of(weight_at + i) - high);
            total += share;
            let o = offset_at + i * 3u;
            let shift = vec3<f32>(offset_of(o), offset_of(o + 1u), offset_of(o + 2u));
            // beyond one voxel outside there are only zeros
            let at = clamp(fma(place, size, fma(shift, unit, vec3<f32>(-0.5))), vec3<f32>(-2.0), size + 1.0);
            let low = floor(at);
            let part = at - low;
            for (var corner = 0u; corner < 8u; corner++) {
                let side = vec3<u32>(corner & 1u, (corner >> 1u) & 1u, corner >> 2u);
                let voxel = vec3<i32>(low) + vec3<i32>(side);
                if all(voxel >= vec3<i32>(0)) && all(voxel < vec3<i32>(n.zyx)) {
                    let w = select(1.0 - part, part, side == vec3<u32>(1u));
                    let share_here = share * w.x * w.y * w.z;
                    let v = vec3<u32>(voxel);
                    let from_channel = ((v.z * n.y + v.y) * n.z + v.x) * params.value_stride + head * params.dim + channel;
                    for (var c = 0u; c < values; c++) {
                        acc[c] = fma(share_here, value(level, from_channel + c), acc[c]);
                    }
                }
            }
        }
    }

    let out = ((z - params.out_first) * plane + id.x) * params.value_stride + head * params.dim + channel;
    for (var c = 0u; c < values; c += PACKED) {
        dst[(out + c) / 4u][(out + c) % 4u / PACKED] = packed(acc[c] / total, acc[min(c + 1u, VALUES - 1u)] / total);
    }
    // the padding of the last block of channels is written by the last head
    let channels = params.heads * params.dim;
    if head + 1u == params.heads && channel + values == params.dim {
        for (var c = channels; c < params.value_stride; c++) {
            let at = out + values + c - channels;
            if at % PACKED == 0u {
                dst[at / 4u][at % 4u / PACKED] = packed(0.0, 0.0);
            }
        }
    }
}
