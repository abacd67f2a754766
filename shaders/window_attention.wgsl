// Multi-head attention softmax(Q K^T * scale + bias + mask) V within windows of a map; no score, mask or window is stored.
// One invocation computes up to 32 value channels of one head of one query, one workgroup WORKGROUP queries of one window: x walks
// the windows of a row of windows along D (and their blocks of queries), y the heads and blocks of value channels, z those rows.
// Keys are staged tile by tile in workgroup memory. Windows are cut from the map rolled by -shift and padded up to whole windows.
// Limits: heads divide the channels, 128 channels of a head of Q; a window's planes of K and V lie in two slabs.

override WORKGROUP: u32 = 64u;
override Q_BLOCKS: u32 = 8u;            // of four channels of a head of Q and K
override V_BLOCKS: u32 = 8u;            // of four value channels of an invocation
override TOKEN_QUERIES: bool = false;   // the window tokens ask, otherwise the voxels
override SHIFTED: bool = false;

const TILE: u32 = 512u;                 // blocks of four channels of a tile of keys and values
const TILE_KEYS: u32 = 256u;
const KEYS: u32 = 8u;                   // keys whose scores are rescaled together
const MOST_Q: u32 = 32u;
const MOST_V: u32 = 8u;
const TOKEN: u32 = 27u;                 // instead of a region: 0 to 26
const LO: u32 = 0u;
const HI: u32 = 1u;
const TOKENS: u32 = 2u;
const PADDING: u32 = 3u;

struct Params {
    queries: vec3<u32>,       // extent of Q and of the output
    q_stride: u32,            // elements from voxel to voxel
    keys: vec3<u32>,          // extent of K and V
    kv_stride: u32,
    q_window: vec3<u32>,
    q_channel: u32,           // first channel of Q
    k_window: vec3<u32>,
    k_channel: u32,
    shift: vec3<u32>,
    v_channel: u32,
    grid: vec3<u32>,          // windows along D, H, W
    tokens: u32,              // of a window
    q_dim: u32,               // channels of a head
    v_dim: u32,
    heads: u32,
    v_groups: u32,            // blocks of value channels of a head
    bias_rows: u32,           // rows of the table of biases; 0: no bias
    q_first: u32,
    kv_first: u32,
    kv_split: u32,
    token_first: u32,
    out_first: u32,
    out_begin: u32,
    out_count: u32,
    out_stride: u32,
    row: u32,                 // first row of windows
    scale: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Elem>;             // [D, H, W, channels] or the map of the window tokens
@group(0) @binding(2) var<storage, read> kv_lo: array<Elem>;         // [D, H, W, channels]
@group(0) @binding(3) var<storage, read> kv_hi: array<Elem>;
@group(0) @binding(4) var<storage, read> tokens: array<Elem>;        // [windows along D, along H, along W * tokens, channels]
@group(0) @binding(5) var<storage, read> fixed: array<f32>;          // table [heads, rows], index [keys, queries], key and value of padding
@group(0) @binding(6) var<storage, read_write> dst: array<Elem4>;    // as Q, [heads, v_dim], rows of out_stride

var<workgroup> tile: array<vec4<f32>, TILE>;                         // [keys, Q_BLOCKS + V_BLOCKS]
var<workgroup> places: array<u32, TILE_KEYS>;                        // row of a key in its source
var<workgroup> kinds: array<u32, TILE_KEYS>;                         // 4 * region + source of a key

// One of 27 regions of the rolled map that did not touch before they were rolled.
fn region(at: vec3<u32>, window: vec3<u32>) -> u32 {
    let n = params.grid * window;
    let id = select(vec3<u32>(0u), vec3<u32>(1u), at >= n - window) + select(vec3<u32>(0u), vec3<u32>(1u), at >= n - params.shift);
    return (id.x * 3u + id.y) * 3u + id.z;
}

// Where a voxel of the rolled map was before.
fn unroll(at: vec3<u32>, window: vec3<u32>) -> vec3<u32> {
    let n = params.grid * window;
    let back = at + params.shift;
    return select(back, back - n, back >= n);
}

fn inside_window(i: u32, window: vec3<u32>) -> vec3<u32> {
    return vec3<u32>(i / (window.y * window.z), i / window.z % window.y, i % window.z);
}

fn load(kind: u32, at: u32, i: u32) -> f32 {
    switch kind {
        case LO: { return pick(kv_lo[slot(at + i)], at + i); }
        case HI: { return pick(kv_hi[slot(at + i)], at + i); }
        case TOKENS: { return pick(tokens[slot(at + i)], at + i); }
        default: { return fixed[at + i]; }
    }
}

// Four channels of key `key` of the tile: blocks of Q_BLOCKS of its key, then V_BLOCKS of its value; zeros beyond the head.
fn fetch(key: u32, block: u32, head: u32, value: u32, padding: u32) -> vec4<f32> {
    let is_key = block < Q_BLOCKS;
    let kind = kinds[key] % 4u;
    let dim = select(params.v_dim, params.q_dim, is_key);
    let first = select(value + (block - Q_BLOCKS) * 4u, block * 4u, is_key);
    var at = places[key] * params.kv_stride + select(params.v_channel, params.k_channel, is_key);
    if kind == PADDING {
        at = padding + select(params.heads * params.q_dim, 0u, is_key);
    }
    at += head * dim + first;
    var four: vec4<f32>;
    for (var i = 0u; i < min(4u, dim - min(first, dim)); i++) {
        four[i] = load(kind, at, i);
    }
    return four;
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn window_attention(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let voxels = params.q_window.x * params.q_window.y * params.q_window.z;
    let asking = select(voxels, params.tokens, TOKEN_QUERIES);
    let blocks = (asking + WORKGROUP - 1u) / WORKGROUP;
    let flat = group.x / blocks;
    let window = vec3<u32>((params.row + group.z) % params.grid.x, flat / params.grid.z, flat % params.grid.z);
    let head = group.y / params.v_groups;
    let value = (group.y % params.v_groups) * V_BLOCKS * 4u;

    let asker = group.x % blocks * WORKGROUP + lane;
    var at: vec3<u32>;
    var own = TOKEN;
    if TOKEN_QUERIES {
        at = vec3<u32>(window.x, window.y, window.z * params.tokens + asker);
    } else {
        let rolled = window * params.q_window + inside_window(asker, params.q_window);
        own = region(rolled, params.q_window);
        at = unroll(rolled, params.q_window);
    }
    let asks = asker < asking && all(at < params.queries) && at.x >= params.out_begin && at.x - params.out_begin < params.out_count;

    var query: array<vec4<f32>, MOST_Q>;
    if asks {
        let row = ((at.x - params.q_first) * params.queries.y + at.y) * params.queries.z + at.z;
        let channel = row * params.q_stride + params.q_channel + head * params.q_dim;
        for (var b = 0u; b < Q_BLOCKS; b++) {
            for (var i = 0u; i < min(4u, params.q_dim - b * 4u); i++) {
                query[b][i] = pick(q[slot(channel + b * 4u + i)], channel + b * 4u + i);
            }
        }
    }

    let voxel_keys = params.k_window.x * params.k_window.y * params.k_window.z;
    let all_keys = params.tokens + voxel_keys;
    let index = params.heads * params.bias_rows;
    let padding = index + select(0u, voxels * voxel_keys, params.bias_rows > 0u);
    let room = min(TILE_KEYS, TILE / (Q_BLOCKS + V_BLOCKS));

    var acc: array<vec4<f32>, MOST_V>;
    var high = -3.4e38;
    var total = 0.0;
    var score: array<f32, KEYS>;
    for (var begin = 0u; begin < all_keys; begin += room) {
        let count = min(room, all_keys - begin);
        workgroupBarrier();
        for (var i = lane; i < count; i += WORKGROUP) {
            let key = begin + i;
            if key < params.tokens {
                places[i] = ((window.x - params.token_first) * params.grid.y + window.y) * params.grid.z * params.tokens
                    + window.z * params.tokens + key;
                kinds[i] = TOKEN * 4u + TOKENS;
            } else {
                let rolled = window * params.k_window + inside_window(key - params.tokens, params.k_window);
                let voxel = unroll(rolled, params.k_window);
                var kind = PADDING;
                if all(voxel < params.keys) {
                    kind = select(LO, HI, voxel.x >= params.kv_split);
                }
                let z = voxel.x - select(params.kv_first, params.kv_split, kind == HI);
                places[i] = (z * params.keys.y + voxel.y) * params.keys.z + voxel.z;
                kinds[i] = region(rolled, params.k_window) * 4u + kind;
            }
        }
        workgroupBarrier();
        for (var i = lane; i < count * (Q_BLOCKS + V_BLOCKS); i += WORKGROUP) {
            tile[i] = fetch(i / (Q_BLOCKS + V_BLOCKS), i % (Q_BLOCKS + V_BLOCKS), head, value, padding);
        }
        workgroupBarrier();

        for (var first = 0u; first < count; first += KEYS) {
            let some = min(KEYS, count - first);
            var next = high;
            for (var i = 0u; i < some; i++) {
                let key = (first + i) * (Q_BLOCKS + V_BLOCKS);
                var sums = vec4<f32>(0.0);
                for (var b = 0u; b < Q_BLOCKS; b++) {
                    sums = fma(query[b], tile[key + b], sums);
                }
                var s = (sums.x + sums.y + sums.z + sums.w) * params.scale;
                let other = kinds[first + i] / 4u;
                if other != TOKEN && own != TOKEN {
                    if params.bias_rows > 0u && asks {
                        let which = u32(fixed[index + (begin + first + i - params.tokens) * voxels + asker]);
                        s += fixed[head * params.bias_rows + min(which, params.bias_rows - 1u)];
                    }
                    if SHIFTED && other != own {
                        s -= 100.0;
                    }
                }
                score[i] = s;
                next = max(next, s);
            }
            let rescale = exp(high - next);
            var part = 0.0;
            for (var i = 0u; i < some; i++) {
                score[i] = exp(score[i] - next);
                part += score[i];
            }
            total = fma(total, rescale, part);
            for (var b = 0u; b < V_BLOCKS; b++) {
                var sum = vec4<f32>(0.0);
                for (var i = 0u; i < some; i++) {
                    sum = fma(vec4<f32>(score[i]), tile[(first + i) * (Q_BLOCKS + V_BLOCKS) + Q_BLOCKS + b], sum);
                }
                acc[b] = fma(acc[b], vec4<f32>(rescale), sum);
            }
            high = next;
        }
    }

    if asks {
        let channel = head * params.v_dim + value;
        let held = min(V_BLOCKS * 4u, params.v_dim - value);
        let to = (((at.x - params.out_first) * params.queries.y + at.y) * params.queries.z + at.z) * params.out_stride;
        for (var c = 0u; c < held; c += PACKED) {
            let four = acc[c / 4u] / total;
            dst[(to + channel + c) / 4u][(to + channel + c) % 4u / PACKED] = packed(four[c % 4u], four[min(c % 4u + 1u, 3u)]);
        }
        // the padding of the last block of channels is written by the last head
        if channel + held == params.heads * params.v_dim {
            for (var c = channel + held; c < params.out_stride; c++) {
                if c % PACKED == 0u {
                    dst[(to + c) / 4u][(to + c) % 4u / PACKED] = packed(0.0, 0.0);
                }
            }
        }
    }
}
