// Multi-head attention softmax(Q K^T * scale + mask) V, streamed over the keys of one or two sources: no score is ever stored.
// One invocation computes VALUES value channels of HEADS heads of one query: x walks the queries of a plane of Q,
// y the heads times blocks of value channels, z the planes of Q. Keys are those of plane z (PER_PLANE) or of the whole map.
// Limits: the planes of each source that are read lie in one slab; heads divide the channels; two heads of at most VALUES channels.

override WORKGROUP: u32 = 64u;
override PER_PLANE: bool = false;
override SOURCES: u32 = 1u;
override MASKED: bool = false;
override HEADS: u32 = 1u;     // of an invocation: 2 where only two together fill whole words

const VALUES: u32 = 16u;      // value channels of an invocation
const KEYS: u32 = 8u;         // keys whose scores are rescaled together
const QUERY: u32 = 64u;       // query channels held in registers

struct Params {
    q_plane: u32,             // tokens of a plane of Q
    q_stride: u32,            // elements from token to token
    q_first: u32,
    q_dim: u32,               // channels of a head of Q and K
    k_tokens: u32,            // keys of a query
    k_stride: u32,
    k_first: u32,
    v_stride: u32,
    v_first: u32,
    v_dim: u32,               // channels of a head of V
    v_blocks: u32,            // blocks of VALUES channels of a head
    heads: u32,
    out_first: u32,
    out_begin: u32,
    out_stride: u32,
    scale: f32,
    q_channel: u32,           // first channel of Q, K and V in their maps
    k_channel: u32,
    v_channel: u32,
    more_tokens: u32,         // keys of the second source
    more_k_first: u32,
    more_v_first: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Elem>;             // [tokens of Q, heads, q_dim], rows of q_stride
@group(0) @binding(2) var<storage, read> k: array<Elem>;             // [tokens of K, heads, q_dim], rows of k_stride
@group(0) @binding(3) var<storage, read> v: array<Elem>;             // [tokens of K, heads, v_dim], rows of v_stride
@group(0) @binding(4) var<storage, read> more_k: array<Elem>;        // as K, of the second source
@group(0) @binding(5) var<storage, read> more_v: array<Elem>;
@group(0) @binding(6) var<storage, read> mask: array<f32>;           // [tokens of K, then of the second K], added to the scores
@group(0) @binding(7) var<storage, read_write> dst: array<Elem4>;    // [tokens of Q, heads, v_dim], rows of out_stride

fn key(source: u32, i: u32) -> f32 {
    if SOURCES > 1u && source == 1u {
        return pick(more_k[slot(i)], i);
    }
    return pick(k[slot(i)], i);
}

fn value(source: u32, i: u32) -> f32 {
    if SOURCES > 1u && source == 1u {
        return pick(more_v[slot(i)], i);
    }
    return pick(v[slot(i)], i);
}

// The values of channels `channel` to VALUES more of a head of query `token` of plane z.
fn attend(z: u32, token: u32, head: u32, channel: u32) -> array<f32, VALUES> {
    let values = min(VALUES, params.v_dim - channel);
    let q_at = ((z - params.q_first) * params.q_plane + token) * params.q_stride + params.q_channel + head * params.q_dim;
    var query: array<f32, QUERY>;
    let held = min(params.q_dim, QUERY);
    for (var d = 0u; d < held; d++) {
        query[d] = pick(q[slot(q_at + d)], q_at + d);
    }

    var acc: array<f32, VALUES>;
    var high = -3.4e38;
    var total = 0.0;
    var score: array<f32, KEYS>;
    for (var source = 0u; source < SOURCES; source++) {
        let tokens = select(params.k_tokens, params.more_tokens, source == 1u);
        var k_at = params.k_channel + head * params.q_dim;
        var v_at = params.v_channel + head * params.v_dim + channel;
        if PER_PLANE {
            k_at += (z - select(params.k_first, params.more_k_first, source == 1u)) * tokens * params.k_stride;
            v_at += (z - select(params.v_first, params.more_v_first, source == 1u)) * tokens * params.v_stride;
        }
        for (var first = 0u; first < tokens; first += KEYS) {
            let count = min(KEYS, tokens - first);
            var next = high;
            for (var i = 0u; i < count; i++) {
                let row = k_at + (first + i) * params.k_stride;
                var s = 0.0;
                for (var d = 0u; d < held; d++) {
                    s = fma(query[d], key(source, row + d), s);
                }
                for (var d = held; d < params.q_dim; d++) {
                    s = fma(pick(q[slot(q_at + d)], q_at + d), key(source, row + d), s);
                }
                score[i] = s * params.scale;
                if MASKED {
                    score[i] += mask[source * params.k_tokens + first + i];
                }
                next = max(next, score[i]);
            }
            let rescale = exp(high - next);
            var part = 0.0;
            for (var i = 0u; i < count; i++) {
                score[i] = exp(score[i] - next);
                part += score[i];
            }
            total = fma(total, rescale, part);
            for (var c = 0u; c < values; c++) {
                var sum = 0.0;
                for (var i = 0u; i < count; i++) {
                    sum = fma(score[i], value(source, v_at + (first + i) * params.v_stride + c), sum);
                }
                acc[c] = fma(acc[c], rescale, sum);
            }
            high = next;
        }
    }
    for (var c = 0u; c < VALUES; c++) {
        acc[c] = acc[c] / total;
    }
    return acc;
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn attention(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.q_plane {
        return;
    }
    let head = id.y / params.v_blocks * HEADS;
    let channel = (id.y % params.v_blocks) * VALUES;
    let z = params.out_begin + id.z;
    let row = ((z - params.out_first) * params.q_plane + id.x) * params.out_stride;
    let at = row + head * params.v_dim + channel;
    let one = attend(z, id.x, head, channel);
    var values = min(VALUES, params.v_dim - channel);
    if HEADS == 2u && head + 1u < params.heads {
        let two = attend(z, id.x, head + 1u, 0u);
        for (var c = 0u; c < 2u * values; c += PACKED) {
            let second = c + 1u < values;
            let x = select(two[c - min(c, values)], one[min(c, VALUES - 1u)], c < values);
            let y = select(two[(c + 1u) - min(c + 1u, values)], one[min(c + 1u, VALUES - 1u)], second);
            dst[(at + c) / 4u][(at + c) % 4u / PACKED] = packed(x, y);
        }
        values = 2u * values;
    } else {
        for (var c = 0u; c < values; c += PACKED) {
            dst[(at + c) / 4u][(at + c) % 4u / PACKED] = packed(one[c], one[min(c + 1u, VALUES - 1u)]);
        }
    }
    // the padding of the last block of channels is written by the last head
    let end = at + values;
    if end == row + params.heads * params.v_dim {
        for (var c = end; c < row + params.out_stride; c++) {
            if c % PACKED == 0u {
                dst[c / 4u][c % 4u / PACKED] = packed(0.0, 0.0);
            }
        }
    }
}
