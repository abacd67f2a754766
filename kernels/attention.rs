//! Multi-head attention between the tokens of maps, streamed over the keys with a running maximum and sum.
//!
//! Source: "Attention is all you need" (arXiv 1706.03762) eq. 1; online softmax after Milakov & Gimelshein (arXiv
//! 1805.02867). U-Transformer uses it as MHSA (queries, keys and values of the bottleneck) and MHCA (queries and keys of
//! the deeper map, values of the skip), vision transformers over their tokens, GLAM over all window tokens, FINE over these
//! and the current volume tokens (two sources of keys), and over the volume tokens, masking those never visited.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostHalf, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// Which channels of their maps are queries, keys and values: a fused projection is not split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenChannels {
    /// Channels of queries and keys, all heads.
    pub qk: u32,
    /// Channels of values and of the output, all heads; head h owns the channels `h * C / heads ..`.
    pub v: u32,
    /// First channels of the queries, of the keys and of the values, each in their map.
    pub first: [u32; 3],
}

/// One dispatch of attention.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Extent of Q and of the output.
    pub queries: Extent,
    /// Extent of K and V.
    pub keys: Extent,
    /// Extent of a second source of keys and values, which come after the first; its maps have the same channels.
    pub more_keys: Option<Extent>,
    /// The channels that take part.
    pub channels: TokenChannels,
    /// Channels of the maps of Q, K and V.
    pub stored: [u32; 3],
    /// Heads.
    pub heads: u32,
    /// Factor of the scores.
    pub scale: f32,
    /// Tokens attend within their plane only (2D networks over the slices of a volume).
    pub per_plane: bool,
    /// A constant of one f32 a key is added to the scores.
    pub masked: bool,
    /// Storage type.
    pub elem: Elem,
    /// Where the sources' planes lie: Q, K, V, and the second K and V.
    pub windows: [Window; 5],
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    q_plane: u32,
    q_stride: u32,
    q_first: u32,
    v_blocks: u32,
    k_tokens: u32,
    k_stride: u32,
    k_first: u32,
    v_stride: u32,
    v_first: u32,
    heads: u32,
    out_first: u32,
    out_begin: u32,
    out_stride: u32,
    scale: f32,
    q_channel: u32,
    k_channel: u32,
    v_channel: u32,
    more_tokens: u32,
    more_k_first: u32,
    more_v_first: u32,
    k_split: u32,
    v_split: u32,
    pad: [u32; 2],
}

/// Most blocks of four channels of a vector that an invocation holds.
const MOST_HELD: u32 = 16;
/// Most channels of a head of which an invocation computes two, where one would write half a word.
const MOST_PAIRED: u32 = 16;
/// Bytes of keys and values in workgroup memory at a time.
const STAGED: u32 = 8 << 10;

/// What an invocation holds of a head and a workgroup stages of the keys: the shader's constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Blocks of four channels of a query, and of its values.
    pub blocks: [u32; 2],
    /// Keys in workgroup memory at a time.
    pub keys: u32,
    /// Keys whose scores are rescaled together.
    pub scores: u32,
}

impl Held {
    /// Staged blocks of a key and of its values, in rows of four.
    #[must_use]
    pub fn rows(self) -> [u32; 2] {
        self.blocks.map(|blocks| blocks.div_ceil(4))
    }

    /// Lanes that stage a key, and its values.
    #[must_use]
    pub fn lanes(self) -> [u32; 2] {
        self.blocks.map(u32::next_power_of_two)
    }
}

impl Attention {
    fn padded(channels: u32) -> u32 {
        channels.div_ceil(4) * 4
    }

    /// Keys of a source that a query attends to.
    pub(super) fn tokens(&self, keys: Extent) -> u64 {
        if self.per_plane { keys.plane() } else { keys.voxels() }
    }

    /// Keys of both sources that a query attends to.
    fn key_tokens(&self) -> u64 {
        self.tokens(self.keys) + self.more_keys.map_or(0, |keys| self.tokens(keys))
    }

    /// Invocations along y of a head.
    fn value_blocks(&self) -> u32 {
        (self.channels.v / self.heads).div_ceil(4 * MOST_HELD)
    }

    /// What is held and staged: heads of up to 64 channels wholly, of longer queries the first 64.
    #[must_use]
    pub fn held(&self, caps: &DeviceCaps) -> Held {
        let [q_dim, v_dim] = [self.channels.qk / self.heads, self.channels.v / self.heads];
        let blocks = [q_dim.div_ceil(4).min(MOST_HELD), v_dim.div_ceil(self.value_blocks()).div_ceil(4)];
        let [q_rows, v_rows] = blocks.map(|blocks| blocks.div_ceil(4));
        // as many in a row as compilers still unroll; a CPU driver takes seconds for more
        let most = if caps.cpu { 32 } else { 128 };
        let scores: u32 = 1 << (most / (blocks[0] + blocks[1])).clamp(1, 8).ilog2();
        Held { blocks, keys: (STAGED / (64 * (q_rows + v_rows))).next_multiple_of(8).min(32), scores }
    }

    /// Whether heads are whole blocks of four channels.
    fn is_aligned(&self) -> bool {
        let TokenChannels { qk, v, first } = self.channels;
        [qk / self.heads, v / self.heads].into_iter().chain(first).all(|c| c % 4 == 0)
    }

    /// Heads of an invocation: two where one would write half a word of 16-bit floats.
    fn heads_at_once(&self) -> u32 {
        let dim = self.channels.v / self.heads;
        if self.elem == Elem::F16 && self.heads > 1 && dim % 2 == 1 && dim <= MOST_PAIRED { 2 } else { 1 }
    }

    /// Tokens of keys (slot 1) or values (slot 2) in the lower of two slabs; `None` where one slab holds them all.
    pub(super) fn split(&self, slot: usize) -> Option<u64> {
        let split = self.windows[slot].split;
        (self.in_two() && split < self.keys.d).then(|| u64::from(split) * self.keys.plane())
    }

    /// Whether keys and values may lie in two slabs: where no second source is bound in the upper one's place.
    fn in_two(&self) -> bool {
        self.more_keys.is_none() && !self.per_plane
    }

    fn source_count(&self) -> usize {
        if self.more_keys.is_some() { 5 } else { 3 }
    }
}

impl Kernel for Attention {
    const NAME: &'static str = "attention";
    const SHADER: &'static str = include_str!("../shaders/attention.wgsl");
    const BINDINGS: &'static [Binding] =
        &[Binding::Params, Binding::Read, Binding::Read, Binding::Read, Binding::Read, Binding::Read, Binding::ReadF32, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        let held = self.held(caps);
        let ([q_held, v_held], [q_rows, v_rows], [q_lanes, v_lanes]) = (held.blocks, held.rows(), held.lanes());
        Variant::new(self.elem, workgroup_size(caps))
            .set("Q_DIM", self.channels.qk / self.heads)
            .set("V_DIM", self.channels.v / self.heads)
            .set("Q_HELD", q_held)
            .set("V_HELD", v_held)
            .set("Q_ROWS", q_rows)
            .set("V_ROWS", v_rows)
            .set("Q_LANES", q_lanes)
            .set("V_LANES", v_lanes)
            .set("KEYS", held.keys)
            .set("SCORES", held.scores)
            .set("ALIGNED", u8::from(self.is_aligned()))
            .set("PER_PLANE", u8::from(self.per_plane))
            .set("SOURCES", if self.more_keys.is_some() { 2u8 } else { 1 })
            .set("MASKED", u8::from(self.masked))
            .set("HEADS", self.heads_at_once())
            .set("SPLIT", u8::from(self.split(1).is_some() || self.split(2).is_some()))
    }

    fn packs(&self) -> bool {
        let dim = self.channels.v / self.heads;
        self.heads == 1 || dim.is_multiple_of(2) || dim <= MOST_PAIRED
    }

    #[expect(clippy::cast_possible_truncation, reason = "the planner refuses maps above u32 tokens")]
    fn params(&self) -> Params {
        Params {
            q_plane: self.queries.plane() as u32,
            q_stride: Self::padded(self.stored[0]),
            q_first: self.windows[0].first,
            v_blocks: self.value_blocks(),
            k_tokens: self.tokens(self.keys) as u32,
            k_stride: Self::padded(self.stored[1]),
            k_first: self.windows[1].first,
            v_stride: Self::padded(self.stored[2]),
            v_first: self.windows[2].first,
            heads: self.heads,
            out_first: self.target.first,
            out_begin: self.target.begin,
            out_stride: Self::padded(self.channels.v),
            scale: self.scale,
            q_channel: self.channels.first[0],
            k_channel: self.channels.first[1],
            v_channel: self.channels.first[2],
            more_tokens: self.more_keys.map_or(0, |keys| self.tokens(keys)) as u32,
            more_k_first: self.windows[3].first,
            more_v_first: self.windows[4].first,
            k_split: self.split(1).map_or(u32::MAX, |n| n as u32),
            v_split: self.split(2).map_or(u32::MAX, |n| n as u32),
            pad: [0; 2],
        }
    }

    fn grid(&self) -> [u64; 3] {
        [
            self.queries.plane(),
            u64::from(self.heads.div_ceil(self.heads_at_once())) * u64::from(self.value_blocks()),
            self.target.count.into(),
        ]
    }

    fn cost(&self) -> Cost {
        let queries = self.queries.plane() * u64::from(self.target.count);
        let pairs = queries * self.key_tokens();
        let keys = self.key_tokens() * if self.per_plane { u64::from(self.target.count) } else { 1 };
        Cost {
            flops: 2 * pairs * u64::from(self.channels.qk + self.channels.v),
            bytes: (queries + keys) * u64::from(self.channels.qk + self.channels.v) * self.elem.bytes(),
        }
    }

    fn sizes(&self) -> BindingSizes {
        let of = |keys: Extent, channels: u32| elements(keys, channels, keys.d);
        let keys = |extent: Extent| [of(extent, self.stored[1]), of(extent, self.stored[2])];
        let mask = if self.masked { self.key_tokens().next_multiple_of(4) } else { 4 };
        let mut sizes = vec![of(self.queries, self.stored[0])];
        sizes.extend(keys(self.keys));
        sizes.extend(keys(self.more_keys.unwrap_or(self.keys)));
        sizes.extend([mask, of(self.queries, self.channels.v)]);
        sizes
    }

    fn sources(&self) -> Vec<Source> {
        let reach = match self.per_plane {
            true => Reach::Same,
            false if self.in_two() => Reach::WholeInTwo,
            false => Reach::Whole,
        };
        let keys = |extent: Extent| [Source { planes: extent.d, reach }; 2];
        let more = self.more_keys.into_iter().flat_map(keys);
        [Source { planes: self.queries.d, reach: Reach::Same }].into_iter().chain(keys(self.keys)).chain(more).collect()
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        let n = self.source_count();
        (&mut self.windows[..n], &mut self.target)
    }

    fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
        // the shader binds a second source and a mask even where there are none; an upper slab takes the second source's place
        let of = |slot: usize| if slot < sources.len() { sources[slot][0] } else { sources[slot - 2][1] };
        let mask = constants.first().filter(|_| self.masked).copied();
        vec![of(0), of(1), of(2), of(3), of(4), mask.unwrap_or(of(1))]
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [q, k, v, more_k, more_v, mask] = inputs else { return };
        let [q_stride, k_stride, v_stride] = self.stored.map(|c| Self::padded(c) as usize);
        let out_stride = Self::padded(self.channels.v) as usize;
        let (q_dim, v_dim) = ((self.channels.qk / self.heads) as usize, (self.channels.v / self.heads) as usize);
        let [q_channel, k_channel, v_channel] = self.channels.first.map(|c| c as usize);
        let tokens = self.queries.plane() as usize;
        self.target.planes(output.floats(), tokens * out_stride).for_each(|(z, plane)| {
            let queries = &q[(z - self.windows[0].first as usize) * tokens * q_stride..];
            // the keys and the values of every token, one after the other
            let (mut all_keys, mut all_values) = (Vec::new(), Vec::new());
            let sources = [(*k, *v, Some(self.keys), 1), (*more_k, *more_v, self.more_keys, 3)];
            for (k, v, extent, slot) in sources {
                let Some(extent) = extent else { continue };
                let n = self.tokens(extent) as usize;
                let begin = |slot: usize| if self.per_plane { (z - self.windows[slot].first as usize) * n } else { 0 };
                let lower = |slot: usize| self.split(slot).map_or(n, |split| split as usize);
                all_keys.extend(k[begin(slot) * k_stride..].chunks_exact(k_stride).take(lower(slot)));
                all_keys.extend(more_k.chunks_exact(k_stride).take(n - lower(slot)));
                all_values.extend(v[begin(slot + 1) * v_stride..].chunks_exact(v_stride).take(lower(slot + 1)));
                all_values.extend(more_v.chunks_exact(v_stride).take(n - lower(slot + 1)));
            }
            plane.par_chunks_exact_mut(out_stride).enumerate().for_each(|(t, out)| {
                out.fill(0.0);
                let mut scores = vec![0.0f64; all_keys.len()];
                for head in 0..self.heads as usize {
                    let query = &queries[t * q_stride + q_channel + head * q_dim..][..q_dim];
                    for (j, (s, key)) in scores.iter_mut().zip(&all_keys).enumerate() {
                        let key = &key[k_channel + head * q_dim..][..q_dim];
                        *s = f64::from(self.scale) * query.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
                        if self.masked {
                            *s += f64::from(mask[j]);
                        }
                    }
                    let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let mut total = 0.0;
                    let mut acc = vec![0.0f64; v_dim];
                    for (s, value) in scores.iter().zip(&all_values) {
                        let p = (s - high).exp();
                        total += p;
                        for (a, &x) in acc.iter_mut().zip(&value[v_channel + head * v_dim..]) {
                            *a += p * f64::from(x);
                        }
                    }
                    for (y, a) in out[head * v_dim..].iter_mut().zip(&acc) {
                        #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                        {
                            *y = (a / total) as f32;
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
        let case = |label: &str, extent: Extent, qk: u32, v: u32, heads: u32, per_plane: bool, elem| {
            let k = Self {
                queries: extent,
                keys: extent,
                more_keys: None,
                channels: TokenChannels { qk, v, first: [0; 3] },
                stored: [qk, qk, v],
                heads,
                scale: 0.5,
                per_plane,
                masked: false,
                elem,
                windows: [Window::whole(0); 5],
                target: Target { first: 0, begin: 0, count: extent.d },
            };
            (label.to_owned(), k)
        };
        // a fused projection of 6, 6 and 9 channels from the third on
        let fused = |label: &str, queries: Extent, keys: Extent, more_keys: Option<Extent>, elem| {
            let (_, k) = case("", queries, 6, 9, 3, false, elem);
            let channels = TokenChannels { first: [2, 8, 14], ..k.channels };
            (label.to_owned(), Self { keys, more_keys, channels, stored: [26; 3], masked: more_keys.is_some(), ..k })
        };
        let (windows, volume) = (Extent::new(3, 2, 6), Extent::new(1, 1, 5));
        let planes = {
            let (_, k) = fused("", windows, windows, Some(Extent::new(3, 1, 5)), Elem::F32);
            ("two_sources_per_plane".to_owned(), Self { per_plane: true, masked: false, ..k })
        };
        vec![
            fused("fused", Extent::new(3, 5, 7), Extent::new(3, 5, 7), None, Elem::F32),
            fused("two_sources_masked", windows, volume, Some(windows), Elem::F32),
            fused("masked_f16", volume, volume, Some(windows), Elem::F16),
            planes,
            case("self_dim1", Extent::new(2, 3, 5), 8, 8, 8, false, Elem::F32),
            case("self_dim1_f16", Extent::new(2, 3, 5), 8, 8, 8, false, Elem::F16),
            case("odd_heads_f16", Extent::new(1, 3, 5), 6, 15, 3, false, Elem::F16),
            case("odd_dims", Extent::new(3, 5, 7), 6, 15, 3, false, Elem::F32),
            case("per_plane", Extent::new(3, 4, 5), 16, 8, 2, true, Elem::F32),
            case("aligned_heads", Extent::new(2, 5, 7), 96, 64, 2, false, Elem::F32),
            case("aligned_wide_heads", Extent::new(1, 5, 7), 144, 144, 1, true, Elem::F32),
            case("wide_heads", Extent::new(1, 3, 3), 160, 80, 2, false, Elem::F32),
            case("one_token", Extent::new(1, 1, 1), 4, 4, 1, false, Elem::F32),
            case("many_tokens", Extent::new(4, 16, 16), 32, 32, 4, false, Elem::F32),
            case("odd_dims_f16", Extent::new(3, 5, 7), 6, 15, 3, false, Elem::F16),
        ]
    }
}
