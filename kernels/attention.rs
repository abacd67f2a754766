//! Multi-head attention between the tokens of maps, streamed over the keys with a running maximum and sum.
//!
//! Source: "Attention is all you need" (arXiv 1706.03762) eq. 1; online softmax after Milakov & Gimelshein (arXiv
//! 1805.02867). U-Transformer uses it as MHSA (queries, keys and values of the bottleneck) and MHCA (queries and keys of
//! the deeper map, values of the skip).

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// One dispatch of attention.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Extent of Q and of the output.
    pub queries: Extent,
    /// Extent of K and V.
    pub keys: Extent,
    /// Channels of Q and K, all heads.
    pub qk_channels: u32,
    /// Channels of V and of the output, all heads.
    pub v_channels: u32,
    /// Heads; head h owns the channels `h * C / heads ..`.
    pub heads: u32,
    /// Factor of the scores.
    pub scale: f32,
    /// Tokens attend within their plane only (2D networks over the slices of a volume).
    pub per_plane: bool,
    /// Storage type.
    pub elem: Elem,
    /// Where the sources' planes lie.
    pub windows: [Window; 3],
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
    q_dim: u32,
    k_tokens: u32,
    k_stride: u32,
    k_first: u32,
    v_stride: u32,
    v_first: u32,
    v_dim: u32,
    v_blocks: u32,
    heads: u32,
    out_first: u32,
    out_begin: u32,
    out_stride: u32,
    scale: f32,
}

const VALUES: u32 = 16;

impl Attention {
    fn padded(channels: u32) -> u32 {
        channels.div_ceil(4) * 4
    }

    /// Keys that a query attends to.
    fn key_tokens(&self) -> u64 {
        if self.per_plane { self.keys.plane() } else { self.keys.voxels() }
    }

    fn value_blocks(&self) -> u32 {
        (self.v_channels / self.heads).div_ceil(VALUES)
    }
}

impl Kernel for Attention {
    const NAME: &'static str = "attention";
    const SHADER: &'static str = include_str!("../shaders/attention.wgsl");
    const BINDINGS: &'static [Binding] = &[Binding::Params, Binding::Read, Binding::Read, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps)).set("PER_PLANE", u8::from(self.per_plane))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the planner refuses maps above u32 tokens")]
    fn params(&self) -> Params {
        Params {
            q_plane: self.queries.plane() as u32,
            q_stride: Self::padded(self.qk_channels),
            q_first: self.windows[0].first,
            q_dim: self.qk_channels / self.heads,
            k_tokens: self.key_tokens() as u32,
            k_stride: Self::padded(self.qk_channels),
            k_first: self.windows[1].first,
            v_stride: Self::padded(self.v_channels),
            v_first: self.windows[2].first,
            v_dim: self.v_channels / self.heads,
            v_blocks: self.value_blocks(),
            heads: self.heads,
            out_first: self.target.first,
            out_begin: self.target.begin,
            out_stride: Self::padded(self.v_channels),
            scale: self.scale,
        }
    }

    fn grid(&self) -> [u64; 3] {
        [self.queries.plane(), u64::from(self.heads) * u64::from(self.value_blocks()), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let queries = self.queries.plane() * u64::from(self.target.count);
        let pairs = queries * self.key_tokens();
        let keys = self.key_tokens() * if self.per_plane { u64::from(self.target.count) } else { 1 };
        Cost {
            flops: 2 * pairs * u64::from(self.qk_channels + self.v_channels),
            bytes: (queries + keys) * u64::from(self.qk_channels + self.v_channels) * self.elem.bytes(),
        }
    }

    fn sizes(&self) -> BindingSizes {
        vec![
            elements(self.queries, self.qk_channels, self.queries.d),
            elements(self.keys, self.qk_channels, self.keys.d),
            elements(self.keys, self.v_channels, self.keys.d),
            elements(self.queries, self.v_channels, self.queries.d),
        ]
    }

    fn sources(&self) -> Vec<Source> {
        let reach = if self.per_plane { Reach::Same } else { Reach::Whole };
        let keys = Source { planes: self.keys.d, reach };
        vec![Source { planes: self.queries.d, reach: Reach::Same }, keys, keys]
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows, &mut self.target)
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [q, k, v] = inputs else { return };
        let (qk, vs) = (Self::padded(self.qk_channels) as usize, Self::padded(self.v_channels) as usize);
        let (q_dim, v_dim) = ((self.qk_channels / self.heads) as usize, (self.v_channels / self.heads) as usize);
        let tokens = self.queries.plane() as usize;
        let keys = self.key_tokens() as usize;
        self.target.planes(output.floats(), tokens * vs).for_each(|(z, plane)| {
            let queries = &q[(z - self.windows[0].first as usize) * tokens * qk..];
            let (k, v) = if self.per_plane {
                (&k[(z - self.windows[1].first as usize) * keys * qk..], &v[(z - self.windows[2].first as usize) * keys * vs..])
            } else {
                (*k, *v)
            };
            plane.par_chunks_exact_mut(vs).enumerate().for_each(|(t, out)| {
                out.fill(0.0);
                let mut scores = vec![0.0f64; keys];
                for head in 0..self.heads as usize {
                    let query = &queries[t * qk + head * q_dim..][..q_dim];
                    for (j, s) in scores.iter_mut().enumerate() {
                        let key = &k[j * qk + head * q_dim..][..q_dim];
                        *s = f64::from(self.scale) * query.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
                    }
                    let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let mut total = 0.0;
                    let mut acc = vec![0.0f64; v_dim];
                    for (j, s) in scores.iter().enumerate() {
                        let p = (s - high).exp();
                        total += p;
                        for (a, &x) in acc.iter_mut().zip(&v[j * vs + head * v_dim..]) {
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

    fn cases() -> Vec<(String, Self)> {
        let case = |label: &str, extent: Extent, qk: u32, v: u32, heads: u32, per_plane: bool, elem| {
            let k = Self {
                queries: extent,
                keys: extent,
                qk_channels: qk,
                v_channels: v,
                heads,
                scale: 0.5,
                per_plane,
                elem,
                windows: [Window::whole(0); 3],
                target: Target { first: 0, begin: 0, count: extent.d },
            };
            (label.to_owned(), k)
        };
        vec![
            case("self_dim1", Extent::new(2, 3, 5), 8, 8, 8, false, Elem::F32),
            case("odd_dims", Extent::new(3, 5, 7), 6, 15, 3, false, Elem::F32),
            case("per_plane", Extent::new(3, 4, 5), 16, 8, 2, true, Elem::F32),
            case("wide_heads", Extent::new(1, 3, 3), 160, 80, 2, false, Elem::F32),
            case("one_token", Extent::new(1, 1, 1), 4, 4, 1, false, Elem::F32),
            case("many_tokens", Extent::new(4, 16, 16), 32, 32, 4, false, Elem::F32),
            case("odd_dims_f16", Extent::new(3, 5, 7), 6, 15, 3, false, Elem::F16),
        ]
    }
}
