// Multi-head attention softmax(Q K^T * scale + mask) V, streamed over the keys of one or two
// sources: no score is ever stored. A workgroup computes the values of a head, at most 4 V_HELD
// channels of it, for WORKGROUP queries, one an invocation, which holds the query and its values in
// registers; KEYS keys and their values at a time are staged in workgroup memory as f32, once for
// all of them.
// x walks the queries of a plane of Q, y the heads times blocks of value channels, z the planes of
// Q. Keys are those of plane z (PER_PLANE) or of the whole map.
// Limits: the planes of each source that are read lie in one slab, the keys and the values of a
// single source in two (SPLIT): the upper one is bound in the place of the second source. Heads
// divide the channels. Of
// heads of Q and K beyond 64 channels the others are read again for every key.

override WORKGROUP: u32 = 64u;
override PER_PLANE: bool = false;
override SOURCES: u32 = 1u;
override MASKED: bool = false;
override SPLIT: bool = false;    // keys or values lie in two slabs
override HEADS: u32 = 1u;        // of an invocation: 2 where only two together fill whole words
override Q_DIM: u32 = 32u;       // channels of a head of Q and K
override V_DIM: u32 = 32u;       // channels of a head of V
override Q_HELD: u32 = 8u;       // blocks of four channels of a query and a staged key
override V_HELD: u32 = 8u;       // the same of values
override Q_ROWS: u32 = 2u;       // Q_HELD in fours
override V_ROWS: u32 = 2u;
override Q_LANES: u32 = 8u;      // lanes that stage a key: the power of two above Q_HELD
override V_LANES: u32 = 8u;
override KEYS: u32 = 16u;        // staged at a time
override ALIGNED: bool = false;  // heads are whole blocks of four channels

override SCORES: u32 = 8u;       // keys whose scores are rescaled together; divides KEYS

const MOST_SCORES: u32 = 8u;
const MOST_HELD: u32 = 16u;
const LOWEST: f32 = -1e37;
const PADDING: f32 = -1e38;       // so far below that its power of two is zero
const LOG2_E: f32 = 1.44269504;

struct Params {
    q_plane: u32,             // tokens of a plane of Q
    q_stride: u32,            // elements from token to token
    q_first: u32,
    v_blocks: u32,            // blocks of 4 V_HELD channels of a head
    k_tokens: u32,            // keys of a query
    k_stride: u32,
    k_first: u32,
    v_stride: u32,
    v_first: u32,
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
    k_split: u32,             // keys in the lower slab
    v_split: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Elem4>; // [tokens of Q, heads, Q_DIM]
@group(0) @binding(2) var<storage, read> k: array<Elem4>; // [tokens of K, heads, Q_DIM]
@group(0) @binding(3) var<storage, read> v: array<Elem4>; // [tokens of K, heads, V_DIM]
@group(0) @binding(4) var<storage, read> more_k: array<Elem4>; // as K, of the second source
@group(0) @binding(5) var<storage, read> more_v: array<Elem4>;
@group(0) @binding(6) var<storage, read> mask: array<f32>; // [tokens of both K], added to scores
@group(0) @binding(7) var<storage, read_write> dst: array<Elem4>; // [tokens of Q, heads, V_DIM]

// four blocks in a row, as they lie a known distance apart and share the test of an index
var<workgroup> keys: array<array<vec4<f32>, 4>, KEYS * Q_ROWS>;
var<workgroup> values: array<array<vec4<f32>, 4>, KEYS * V_ROWS>;

const QUERY: u32 = 0u;
const KEY: u32 = 1u;
const VALUE: u32 = 2u;

// Four neighbouring elements of a map.
fn block_of(which: u32, source: u32, at: u32) -> vec4<f32> {
    if which == QUERY {
        return wide(q[at]);
    }
    if which == KEY {
        if (SOURCES > 1u || SPLIT) && source == 1u {
            return wide(more_k[at]);
        }
        return wide(k[at]);
    }
    if (SOURCES > 1u || SPLIT) && source == 1u {
        return wide(more_v[at]);
    }
    return wide(v[at]);
}

// Four channels of a head from element `at` on; zero from element `end` on.
fn channels_of(which: u32, source: u32, at: u32, end: u32) -> vec4<f32> {
    if ALIGNED {
        return block_of(which, source, at / 4u);
    }
    var x = vec4<f32>(0.0);
    for (var i = 0u; i < 4u; i++) {
        if at + i < end {
            x[i] = block_of(which, source, (at + i) / 4u)[(at + i) % 4u];
        }
    }
    return x;
}

fn add_product(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// The source that token n lies in, given how many lie in the lower slab, and its number there.
fn lies(n: u32, source: u32, split: u32) -> vec2<u32> {
    if SPLIT && n >= split {
        return vec2<u32>(1u, n - split);
    }
    return vec2<u32>(source, n);
}

// The values of 4 V_HELD channels from `channel` on of a head, of query `token` of plane z. The
// whole workgroup calls it.
fn attend(t: u32, z: u32, token: u32, head: u32, channel: u32) -> array<vec4<f32>, MOST_HELD> {
    let q_row = ((z - params.q_first) * params.q_plane + token) * params.q_stride;
    let q_at = q_row + params.q_channel + head * Q_DIM;
    var query: array<vec4<f32>, MOST_HELD>;
    for (var c = 0u; c < Q_HELD; c++) {
        query[c] = channels_of(QUERY, 0u, q_at + 4u * c, q_at + Q_DIM);
    }
    // scores are powers of two
    let scale = params.scale * LOG2_E;
    var acc: array<vec4<f32>, MOST_HELD>;
    var high = LOWEST;
    var total = 0.0;
    for (var source = 0u; source < SOURCES; source++) {
        let tokens = select(params.k_tokens, params.more_tokens, source == 1u);
        var k_at = params.k_channel + head * Q_DIM;
        var v_at = params.v_channel + head * V_DIM;
        if PER_PLANE {
            let second = source == 1u;
            let k_first = select(params.k_first, params.more_k_first, second);
            let v_first = select(params.v_first, params.more_v_first, second);
            k_at += (z - k_first) * tokens * params.k_stride;
            v_at += (z - v_first) * tokens * params.v_stride;
        }
        for (var first = 0u; first < tokens; first += KEYS) {
            let staged = min(KEYS, tokens - first);
            workgroupBarrier();
            for (var n = t / Q_LANES; n < KEYS; n += WORKGROUP / Q_LANES) {
                let c = t % Q_LANES;
                let token = lies(min(first + n, tokens - 1u), source, params.k_split);
                let row = k_at + token.y * params.k_stride;
                if c < Q_HELD {
                    let x = channels_of(KEY, token.x, row + 4u * c, row + Q_DIM);
                    keys[n * Q_ROWS + c / 4u][c % 4u] = x;
                }
            }
            for (var n = t / V_LANES; n < KEYS; n += WORKGROUP / V_LANES) {
                let c = t % V_LANES;
                let token = lies(min(first + n, tokens - 1u), source, params.v_split);
                let row = v_at + token.y * params.v_stride;
                if c < V_HELD {
                    let x = channels_of(VALUE, token.x, row + channel + 4u * c, row + V_DIM);
                    values[n * V_ROWS + c / 4u][c % 4u] = x;
                }
            }
            workgroupBarrier();
            for (var n = 0u; n < staged; n += SCORES) {
                var score: array<f32, MOST_SCORES>;
                var next = high;
                for (var i = 0u; i < SCORES; i++) {
                    var s = 0.0;
                    for (var c = 0u; c < Q_HELD; c++) {
                        s = add_product(s, query[c], keys[(n + i) * Q_ROWS + c / 4u][c % 4u]);
                    }
                    let at = min(first + n + i, tokens - 1u);
                    for (var c = 4u * Q_HELD; c < Q_DIM; c += 4u) {
                        let token = lies(at, source, params.k_split);
                        let row = k_at + token.y * params.k_stride;
                        let key = channels_of(KEY, token.x, row + c, row + Q_DIM);
                        s = add_product(s, channels_of(QUERY, 0u, q_at + c, q_at + Q_DIM), key);
                    }
                    var added = select(PADDING, 0.0, n + i < staged);
                    if MASKED {
                        added += LOG2_E * mask[source * params.k_tokens + at];
                    }
                    score[i] = fma(s, scale, added);
                    next = max(next, score[i]);
                }
                let rescale = exp2(high - next);
                for (var c = 0u; c < V_HELD; c++) {
                    acc[c] *= rescale;
                }
                total *= rescale;
                for (var i = 0u; i < SCORES; i++) {
                    let p = exp2(score[i] - next);
                    total += p;
                    for (var c = 0u; c < V_HELD; c++) {
                        let x = values[(n + i) * V_ROWS + c / 4u][c % 4u];
                        acc[c] = fma(vec4<f32>(p), x, acc[c]);
                    }
                }
                high = next;
            }
        }
    }
    for (var c = 0u; c < V_HELD; c++) {
        acc[c] = acc[c] / total;
    }
    return acc;
}

// Channel c of a head's values, or of two heads' one after the other.
fn lane(one: array<vec4<f32>, MOST_HELD>, two: array<vec4<f32>, MOST_HELD>, c: u32) -> f32 {
    if HEADS == 2u && c >= V_DIM {
        return two[(c - V_DIM) / 4u][(c - V_DIM) % 4u];
    }
    return one[c / 4u][c % 4u];
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn attention(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let head = id.y / params.v_blocks * HEADS;
    let channel = (id.y % params.v_blocks) * 4u * V_HELD;
    let z = params.out_begin + id.z;
    let token = min(id.x, params.q_plane - 1u);
    let one = attend(t, z, token, head, channel);
    let has_two = HEADS == 2u && head + 1u < params.heads;
    var two: array<vec4<f32>, MOST_HELD>;
    if has_two {
        two = attend(t, z, token, head + 1u, 0u);
    }
    if id.x >= params.q_plane {
        return;
    }
    let row = ((z - params.out_first) * params.q_plane + id.x) * params.out_stride;
    let at = row + head * V_DIM + channel;
    if ALIGNED {
        for (var c = 0u; c < V_HELD; c++) {
            if channel + 4u * c < V_DIM {
                dst[at / 4u + c] = narrow(one[c]);
            }
        }
        return;
    }
    var count = min(4u * V_HELD, V_DIM - channel);
    if has_two {
        count = 2u * V_DIM;
    }
    for (var c = 0u; c < 4u * V_HELD * HEADS; c += PACKED) {
        if c < count {
            let x = lane(one, two, c);
            dst[(at + c) / 4u][(at + c) % 4u / PACKED] = packed(x, lane(one, two, c + 1u));
        }
    }
    // the padding of the last block of channels is written by the last head
    let end = at + count;
    if end == row + params.heads * V_DIM {
        for (var c = end; c < row + params.out_stride; c++) {
            if c % PACKED == 0u {
                dst[c / 4u][c % 4u / PACKED] = packed(0.0, 0.0);
            }
        }
    }
}
