//! Multi-head attention within shifted windows of a map, 2D or 3D, with a learned bias by relative position and with
//! window tokens, streamed over the keys with a running maximum and sum.
//!
//! Source: Swin Transformer (arXiv 2103.14030) sections 3.1 and 3.2; window tokens of GLAM and FINE (spec, seed systems,
//! sections 1.b and 3.b); queries of a finer map in larger windows are GLAM's non-local upsampling (section 3.c).

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostHalf, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// What attention in windows computes, whatever the maps' extents. Triples are along D, H, W.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowShape {
    /// Heads; head h owns the channels `h * C / heads ..` of its part of a map.
    pub heads: u32,
    /// Channels of queries and keys, all heads.
    pub qk_channels: u32,
    /// Channels of values and of the output, all heads.
    pub v_channels: u32,
    /// First channels of the queries in their map, of the keys and of the values in theirs: a fused projection is not split.
    pub first: [u32; 3],
    /// Factor of the scores.
    pub scale: f32,
    /// Voxels of a window of the map of queries; as `k_window`, except in non-local upsampling.
    pub q_window: [u32; 3],
    /// Voxels of a window of the map of keys. Maps are padded at their end up to whole windows.
    pub k_window: [u32; 3],
    /// The maps are rolled by so many voxels towards their begin before they are cut, and rolled back after; pairs of voxels
    /// that did not touch before get -100.
    pub shift: [u32; 3],
    /// Window tokens, which are keys before the voxels of their window and get neither bias nor mask.
    pub tokens: u32,
    /// The window tokens are the queries, not the voxels.
    pub token_queries: bool,
    /// Rows of the table of biases by relative position; 0: there is no bias.
    pub bias_rows: u32,
}

impl WindowShape {
    /// Windows along D, H, W of a map of keys.
    #[must_use]
    pub fn grid(&self, keys: Extent) -> [u32; 3] {
        let n = keys.axes();
        [0, 1, 2].map(|axis| n[axis].div_ceil(self.k_window[axis]))
    }

    /// Extent of the map that holds the window tokens: those of a window lie side by side along W.
    #[must_use]
    pub fn token_extent(&self, keys: Extent) -> Extent {
        let [d, h, w] = self.grid(keys);
        Extent::new(d, h, w.saturating_mul(self.tokens))
    }

    fn voxels(window: [u32; 3]) -> u64 {
        window.iter().map(|&n| u64::from(n)).product()
    }

    /// Entries of the index: a row of the table of biases for every pair of voxels.
    #[must_use]
    pub fn index_len(&self) -> u64 {
        if self.bias_rows > 0 { Self::voxels(self.q_window) * Self::voxels(self.k_window) } else { 0 }
    }

    /// Elements of the constant, all f32; see [`pack_window_constant`].
    #[must_use]
    pub fn constant_len(&self) -> u64 {
        let biases = u64::from(self.heads) * u64::from(self.bias_rows) + self.index_len();
        (biases + u64::from(self.qk_channels) + u64::from(self.v_channels)).next_multiple_of(4)
    }

    pub(super) fn queries_of_window(&self) -> u64 {
        if self.token_queries { self.tokens.into() } else { Self::voxels(self.q_window) }
    }

    fn keys_of_window(&self) -> u64 {
        u64::from(self.tokens) + Self::voxels(self.k_window)
    }

    pub(super) fn q_dim(&self) -> u32 {
        self.qk_channels / self.heads
    }

    pub(super) fn v_dim(&self) -> u32 {
        self.v_channels / self.heads
    }

    /// Blocks of four value channels that one invocation computes, and how often that is done for a head.
    fn value_blocks(&self) -> (u32, u32) {
        let blocks = self.v_dim().div_ceil(4);
        (blocks.min(MOST_V), blocks.div_ceil(MOST_V))
    }

    pub(super) fn shifted(&self) -> bool {
        self.shift != [0; 3]
    }
}

/// The constant of a dispatch: the table of biases `[rows][heads]` as `[heads][rows]`, the index `[queries][keys]` into it
/// as `[keys][queries]`, and the key and the value of voxels of padding: what the projection makes of zeros, its bias.
/// Indices are stored as f32, which holds those below 2^24.
#[must_use]
pub fn pack_window_constant(table: &[f64], index: &[f64], heads: u32, keys: usize, padding: [&[f64]; 2]) -> Vec<f32> {
    fn turned(rows: &[f64], columns: usize) -> impl Iterator<Item = f64> {
        (0..columns).flat_map(move |c| rows.iter().skip(c).step_by(columns.max(1)).copied())
    }
    let all = turned(table, heads as usize).chain(turned(index, keys)).chain(padding.into_iter().flatten().copied());
    #[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
    let mut packed: Vec<f32> = all.map(|v| v as f32).collect();
    packed.resize(packed.len().next_multiple_of(4), 0.0);
    packed
}

/// One dispatch of attention in windows.
#[derive(Clone, Debug)]
pub struct WindowAttention {
    /// What is computed.
    pub shape: WindowShape,
    /// Extent of the map of queries and of the output.
    pub queries: Extent,
    /// Channels of the map of queries.
    pub q_channels: u32,
    /// Extent of the map of keys and values.
    pub keys: Extent,
    /// Channels of the map of keys and values, and of that of the window tokens, where they lie alike.
    pub kv_channels: u32,
    /// Storage type.
    pub elem: Elem,
    /// Where the sources' planes lie: queries, keys and values, window tokens.
    pub windows: [Window; 3],
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    queries: [u32; 3],
    q_stride: u32,
    keys: [u32; 3],
    kv_stride: u32,
    q_window: [u32; 3],
    q_channel: u32,
    k_window: [u32; 3],
    k_channel: u32,
    shift: [u32; 3],
    v_channel: u32,
    grid: [u32; 3],
    tokens: u32,
    q_dim: u32,
    v_dim: u32,
    heads: u32,
    v_groups: u32,
    bias_rows: u32,
    q_first: u32,
    kv_first: u32,
    kv_split: u32,
    token_first: u32,
    out_first: u32,
    out_begin: u32,
    out_count: u32,
    out_stride: u32,
    row: u32,
    scale: f32,
    pad: u32,
}

/// Channels of a head of queries and keys that the shader holds.
pub const MOST_HEAD_CHANNELS: u32 = 128;
const MOST_V: u32 = 8;

fn padded(channels: u32) -> u32 {
    channels.div_ceil(4) * 4
}

impl WindowAttention {
    /// First row of windows along D that the target's planes lie in, and how many from there on, around the end.
    fn rows(&self) -> (u32, u32) {
        let (s, t) = (&self.shape, &self.target);
        if s.token_queries {
            return (t.begin, t.count);
        }
        let (window, rows) = (s.q_window[0], s.grid(self.keys)[0]);
        let rolled = (t.begin + window * rows - s.shift[0]) % (window * rows);
        (rolled / window, ((rolled % window + t.count - 1) / window + 1).min(rows))
    }

    fn workgroup(&self) -> u32 {
        u32::try_from(self.shape.queries_of_window()).map_or(64, |n| n.clamp(16, 64).next_multiple_of(16))
    }

    fn source_count(&self) -> usize {
        if self.shape.tokens > 0 { 3 } else { 2 }
    }
}

/// A key of a window: a window token by its number, a voxel, or padding.
pub(super) enum Key {
    Token(usize),
    Voxel([usize; 3]),
    Padding,
}

/// One axis of a window: `i` of window `n` in the rolled map, and where that was before; beyond the map where it is padding.
pub(super) fn axis(shape: &WindowShape, grid: [u32; 3], window: [u32; 3], axis: usize, n: usize, i: usize) -> (usize, usize) {
    let rolled = n * window[axis] as usize + i;
    (rolled, (rolled + shape.shift[axis] as usize) % (grid[axis] * window[axis]) as usize)
}

/// The parts of an axis of the rolled map that did not touch before: the end of the last window came from the begin.
pub(super) fn region(shape: &WindowShape, grid: [u32; 3], window: [u32; 3], rolled: [usize; 3]) -> [u32; 3] {
    [0, 1, 2].map(|a| {
        let n = (grid[a] * window[a]) as usize;
        u32::from(rolled[a] >= n - window[a] as usize) + u32::from(rolled[a] >= n - shape.shift[a] as usize)
    })
}

impl Kernel for WindowAttention {
    const NAME: &'static str = "window_attention";
    const SHADER: &'static str = include_str!("../shaders/window_attention.wgsl");
    const BINDINGS: &'static [Binding] =
        &[Binding::Params, Binding::Read, Binding::Read, Binding::Read, Binding::Read, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, _: &DeviceCaps) -> Variant {
        let s = &self.shape;
        Variant::new(self.elem, self.workgroup())
            .set("Q_BLOCKS", s.q_dim().div_ceil(4))
            .set("V_BLOCKS", s.value_blocks().0)
            .set("TOKEN_QUERIES", u8::from(s.token_queries))
            .set("SHIFTED", u8::from(s.shifted()))
    }

    fn packs(&self) -> bool {
        self.shape.heads == 1 || (self.shape.v_channels / self.shape.heads).is_multiple_of(2)
    }

    fn params(&self) -> Params {
        let s = &self.shape;
        Params {
            queries: self.queries.axes(),
            q_stride: padded(self.q_channels),
            keys: self.keys.axes(),
            kv_stride: padded(self.kv_channels),
            q_window: s.q_window,
            q_channel: s.first[0],
            k_window: s.k_window,
            k_channel: s.first[1],
            shift: s.shift,
            v_channel: s.first[2],
            grid: s.grid(self.keys),
            tokens: s.tokens,
            q_dim: s.q_dim(),
            v_dim: s.v_dim(),
            heads: s.heads,
            v_groups: s.value_blocks().1,
            bias_rows: s.bias_rows,
            q_first: self.windows[0].first,
            kv_first: self.windows[1].first,
            kv_split: self.windows[1].split,
            token_first: self.windows[2].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            out_count: self.target.count,
            out_stride: padded(s.v_channels),
            row: self.rows().0,
            scale: s.scale,
            pad: 0,
        }
    }

    fn grid(&self) -> [u64; 3] {
        let s = &self.shape;
        let [_, h, w] = s.grid(self.keys);
        let group = u64::from(self.workgroup());
        let x = u64::from(h) * u64::from(w) * s.queries_of_window().div_ceil(group) * group;
        [x, u64::from(s.heads) * u64::from(s.value_blocks().1), self.rows().1.into()]
    }

    fn cost(&self) -> Cost {
        let s = &self.shape;
        let queries = self.queries.plane() * u64::from(self.target.count);
        let keys = self.keys.plane() * u64::from(self.target.count) * u64::from(self.keys.d) / u64::from(self.queries.d).max(1);
        Cost {
            flops: 2 * queries * s.keys_of_window() * u64::from(s.qk_channels + s.v_channels),
            bytes: (queries + keys) * u64::from(s.qk_channels + s.v_channels) * self.elem.bytes() + 4 * s.constant_len(),
        }
    }

    fn sizes(&self) -> BindingSizes {
        let kv = elements(self.keys, self.kv_channels, self.keys.d);
        let tokens = self.shape.token_extent(self.keys);
        let tokens = if self.shape.tokens > 0 { elements(tokens, self.kv_channels, tokens.d) } else { kv };
        vec![
            elements(self.queries, self.q_channels, self.queries.d),
            kv,
            kv,
            tokens,
            self.shape.constant_len(),
            elements(self.queries, self.shape.v_channels, self.queries.d),
        ]
    }

    fn sources(&self) -> Vec<Source> {
        let s = &self.shape;
        let result = if s.token_queries { 1 } else { s.q_window[0] };
        let block = |source: u32| if s.shift[0] > 0 { Reach::Whole } else { Reach::Blocks { source, result } };
        let mut sources = vec![
            Source { planes: self.queries.d, reach: Reach::Same },
            Source { planes: self.keys.d, reach: block(s.k_window[0]) },
            Source { planes: s.grid(self.keys)[0], reach: block(1) },
        ];
        sources.truncate(self.source_count());
        sources
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        let n = self.source_count();
        (&mut self.windows[..n], &mut self.target)
    }

    fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
        let upper = if self.sources()[1].reach.bindings() == 2 { sources[1][1] } else { sources[1][0] };
        // the shader binds window tokens even where there are none
        let tokens = sources.get(2).map_or(sources[1][0], |pair| pair[0]);
        [&[sources[0][0], sources[1][0], upper, tokens], constants].concat()
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [q, kv_lo, kv_hi, tokens, fixed] = inputs else { return };
        let s = &self.shape;
        let grid = s.grid(self.keys);
        let [q_stride, kv_stride, out_stride] = [self.q_channels, self.kv_channels, s.v_channels].map(|c| padded(c) as usize);
        let (q_dim, v_dim) = (s.q_dim() as usize, s.v_dim() as usize);
        let [n_h, n_w] = [self.queries.h as usize, self.queries.w as usize];
        let kv_plane = self.keys.plane() as usize * kv_stride;
        let row = grid[2] as usize * s.tokens as usize;
        let windows = self.windows.map(|w| w.first as usize);
        let rows = s.bias_rows as usize;
        let (table, rest) = fixed.split_at(s.heads as usize * rows);
        let (index, rest) = rest.split_at(s.index_len() as usize);
        let (pad_key, pad_value) = rest.split_at(s.qk_channels as usize);
        let [q_window, k_window] = [s.q_window, s.k_window].map(|w| w.map(|n| n as usize));
        let asking = q_window[0] * q_window[1] * q_window[2];

        self.target.planes(output.floats(), n_h * n_w * out_stride).for_each(|(z, plane)| {
            plane.par_chunks_exact_mut(out_stride).enumerate().for_each(|(at, out)| {
                out.fill(0.0);
                let voxel = [z, at / n_w, at % n_w];
                // the query's window, its number in it, and its region
                let (window, number, own) = if s.token_queries {
                    ([z, voxel[1], voxel[2] / s.tokens as usize], 0, None)
                } else {
                    let rolled = [0, 1, 2].map(|a| {
                        let n = grid[a] as usize * q_window[a];
                        (voxel[a] + n - s.shift[a] as usize) % n
                    });
                    let inside = [0, 1, 2].map(|a| rolled[a] % q_window[a]);
                    let number = (inside[0] * q_window[1] + inside[1]) * q_window[2] + inside[2];
                    ([0, 1, 2].map(|a| rolled[a] / q_window[a]), number, Some(region(s, grid, s.q_window, rolled)))
                };
                let mut keys: Vec<(Key, Option<[u32; 3]>)> = (0..s.tokens as usize).map(|t| (Key::Token(t), None)).collect();
                for i in 0..k_window[0] {
                    for j in 0..k_window[1] {
                        for k in 0..k_window[2] {
                            let along = [(0, i), (1, j), (2, k)].map(|(a, i)| axis(s, grid, s.k_window, a, window[a], i));
                            let source = along.map(|(_, source)| source);
                            let padding = source.iter().zip(self.keys.axes()).any(|(&x, n)| x >= n as usize);
                            let key = if padding { Key::Padding } else { Key::Voxel(source) };
                            keys.push((key, Some(region(s, grid, s.k_window, along.map(|(rolled, _)| rolled)))));
                        }
                    }
                }
                for head in 0..s.heads as usize {
                    let query = &q[((z - windows[0]) * n_h * n_w + at) * q_stride + s.first[0] as usize + head * q_dim..][..q_dim];
                    let of = |key: &Key, channel: u32, pad: &'_ [f32], dim: usize| -> Vec<f32> {
                        let channel = channel as usize + head * dim;
                        let values = match *key {
                            Key::Token(t) => {
                                let token =
                                    ((window[0] - windows[2]) * grid[1] as usize + window[1]) * row + window[2] * s.tokens as usize + t;
                                &tokens[token * kv_stride + channel..]
                            }
                            Key::Voxel([z, y, x]) => {
                                let plane = self.windows[1].plane(kv_lo, kv_hi, z, kv_plane);
                                &plane[(y * self.keys.w as usize + x) * kv_stride + channel..]
                            }
                            Key::Padding => &pad[head * dim..],
                        };
                        values[..dim].to_vec()
                    };
                    let scores: Vec<f64> = (0..)
                        .zip(&keys)
                        .map(|(j, (key, other))| {
                            let key = of(key, s.first[1], pad_key, q_dim);
                            let dot: f64 = query.iter().zip(&key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                            let mut score = f64::from(s.scale) * dot;
                            if let (Some(own), Some(other)) = (own, other) {
                                if rows > 0 {
                                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index, clamped")]
                                    let which = index[(j - s.tokens as usize) * asking + number] as usize;
                                    score += f64::from(table[head * rows + which.min(rows - 1)]);
                                }
                                if s.shifted() && own != *other {
                                    score -= 100.0;
                                }
                            }
                            score
                        })
                        .collect();
                    let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|score| (score - high).exp()).sum();
                    let mut acc = vec![0.0f64; v_dim];
                    for (score, (key, _)) in scores.iter().zip(&keys) {
                        for (a, x) in acc.iter_mut().zip(of(key, s.first[2], pad_value, v_dim)) {
                            *a += (score - high).exp() / total * f64::from(x);
                        }
                    }
                    for (y, a) in out[head * v_dim..].iter_mut().zip(&acc) {
                        #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                        {
                            *y = *a as f32;
                        }
                    }
                }
            });
        });
    }

    fn host(&self) -> Option<&dyn HostHalf> {
        Some(self)
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let shape = |heads: u32, dims: [u32; 2], window: [u32; 3], shift: [u32; 3], tokens: u32, bias_rows: u32| WindowShape {
            heads,
            qk_channels: heads * dims[0],
            v_channels: heads * dims[1],
            first: [0, heads * dims[0], 2 * heads * dims[0]],
            scale: 0.5,
            q_window: window,
            k_window: window,
            shift,
            tokens,
            token_queries: false,
            bias_rows,
        };
        let case = |label: &str, keys: Extent, shape: WindowShape, elem| {
            let channels = 2 * shape.qk_channels + shape.v_channels;
            let queries = if shape.token_queries { shape.token_extent(keys) } else { keys };
            let whole = Window::whole(0);
            let target = Target::whole(queries.d);
            let k = Self { shape, queries, q_channels: channels, keys, kv_channels: channels, elem, windows: [whole; 3], target };
            (label.to_owned(), k)
        };
        let plain = |window, shift, tokens| shape(2, [8, 8], window, shift, tokens, 5);
        let token_queries = |shift, tokens| WindowShape { token_queries: true, bias_rows: 0, ..plain([2, 3, 2], shift, tokens) };
        let upsampling = |label: &str, value_dim: u32| {
            let window = WindowShape { q_window: [1, 6, 4], first: [0, 1, 13], ..shape(3, [4, value_dim], [1, 3, 2], [0; 3], 0, 9) };
            let (_, k) = case("", Extent::new(2, 4, 5), window, Elem::F32);
            (label.to_owned(), Self { queries: Extent::new(2, 7, 10), q_channels: 13, kv_channels: 15 + 3 * value_dim, ..k })
        };
        let (f32, f16) = (Elem::F32, Elem::F16);
        vec![
            case("windows_2d", Extent::new(3, 8, 12), plain([1, 4, 4], [0; 3], 0), f32),
            case("shifted_2d_padded", Extent::new(2, 9, 10), plain([1, 7, 7], [0, 3, 3], 0), f32),
            case("windows_3d", Extent::new(7, 6, 5), plain([4, 4, 4], [0; 3], 0), f32),
            case("shifted_3d", Extent::new(8, 4, 6), plain([4, 2, 3], [2, 1, 1], 0), f32),
            case("shifted_d_padded", Extent::new(5, 3, 4), plain([3, 2, 3], [1, 0, 0], 2), f32),
            case("shifted_w_tokens", Extent::new(5, 3, 7), plain([2, 3, 4], [0, 0, 2], 3), f32),
            case("one_voxel_axes", Extent::new(1, 1, 5), plain([2, 2, 2], [0, 1, 1], 1), f32),
            case("window_over_the_map", Extent::new(2, 3, 2), plain([4, 4, 4], [0; 3], 0), f32),
            case("odd_heads", Extent::new(2, 5, 5), shape(3, [5, 7], [2, 2, 3], [0, 1, 0], 1, 4), f32),
            case("wide_heads", Extent::new(1, 4, 4), shape(1, [40, 70], [1, 4, 4], [0; 3], 0, 4), f32),
            case("many_keys", Extent::new(8, 8, 8), shape(2, [3, 2], [8, 8, 8], [0; 3], 1, 8), f32),
            case("no_bias", Extent::new(4, 4, 4), shape(2, [4, 4], [2, 2, 2], [1; 3], 0, 0), f32),
            case("token_queries", Extent::new(5, 6, 5), token_queries([0; 3], 3), f32),
            case("token_queries_shifted", Extent::new(5, 6, 5), token_queries([1, 1, 0], 2), f32),
            upsampling("finer_queries", 5),
            upsampling("finer_queries_even", 6),
            case("shifted_f16", Extent::new(5, 6, 7), plain([4, 4, 4], [2, 2, 2], 1), f16),
            case("token_queries_f16", Extent::new(5, 6, 5), token_queries([0; 3], 3), f16),
        ]
    }
}
