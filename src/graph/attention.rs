//! The attention family: tokens of whole maps, windows of a map, and sampling at learned places. What a node is given, and
//! the shape it makes of its inputs.

use super::Tokens;
use crate::kernels::{TokenChannels, WindowShape};
use crate::shape::{Extent, Map};

/// softmax(Q K^T * scale + mask) V between the tokens of maps. Inputs: the maps of Q, K and V, and, where there are further
/// keys, the maps of their K and V; these have the channels of the first.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Attention {
    /// Heads.
    pub heads: u32,
    /// Factor of the scores.
    pub scale: f32,
    /// Tokens attend within their plane only.
    pub per_plane: bool,
    /// Which channels are queries, keys and values; `None`: all channels of their maps.
    pub channels: Option<TokenChannels>,
    /// Keys that are hidden, in the order of the keys.
    pub mask: Option<KeyMask>,
}

impl Attention {
    /// The channels of queries, keys and values in maps of so many.
    #[must_use]
    pub fn channels(&self, q: Map, v: Map) -> TokenChannels {
        self.channels.unwrap_or(TokenChannels { qk: q.channels, v: v.channels, first: [0; 3] })
    }

    pub(super) fn infer(&self, inputs: &[Map]) -> Result<Map, String> {
        let [q, k, v] = [inputs[0], inputs[1], inputs[2]];
        let c = self.channels(q, v);
        let heads = self.heads;
        let same_channels = self.channels.is_some() || q.channels == k.channels;
        if !same_channels || k.extent != v.extent || !c.qk.is_multiple_of(heads) || !c.v.is_multiple_of(heads) {
            return Err(format!(
                "attention of {heads} heads given {} / {} / {} channels of {} / {} / {}",
                q.channels, k.channels, v.channels, q.extent, k.extent, v.extent
            ));
        }
        check_parts(&[(q, c.first[0], c.qk), (k, c.first[1], c.qk), (v, c.first[2], c.v)])?;
        if self.per_plane && inputs.iter().any(|m| m.extent.d != q.extent.d) {
            return Err("attends within planes of maps that differ in their number".into());
        }
        if let [k2, v2] = inputs[3..]
            && (k2.extent != v2.extent || k2.channels != k.channels || v2.channels != v.channels)
        {
            return Err(format!(
                "further keys and values of {} / {} channels over {} / {}, the first have {} / {}",
                k2.channels, v2.channels, k2.extent, v2.extent, k.channels, v.channels
            ));
        }
        if let Some(mask) = &self.mask {
            let keys = k.extent.voxels() + inputs.get(3).map_or(0, |m| m.extent.voxels());
            let hidden = mask.shape.iter().map(|&n| n as u64).product::<u64>();
            if self.per_plane || hidden != keys || mask.visited.iter().any(|&key| u64::from(key) >= keys) {
                return Err(format!("a mask of {hidden} keys given {keys}, those of all planes"));
            }
        }
        Ok(Map::new(q.extent, c.v))
    }
}

/// Keys are hidden unless they were visited: FINE's volume tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyMask {
    /// Tensor that counts the visits of each key; from one visit on a key counts as visited.
    pub counts: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Keys that are visited now, whatever the counts.
    pub visited: Tokens,
    /// Added to the scores of keys that are not visited: -1000 in FINE.
    pub hidden: f32,
}

/// Attention within shifted windows. Inputs: the map of queries, that of keys and values (which may be the same), and, if
/// there are window tokens, their map: of [`WindowShape::token_extent`], with keys and values at the same channels.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowAttention {
    /// What is computed.
    pub shape: WindowShape,
    /// The bias by relative position, with `shape.bias_rows` rows.
    pub bias: Option<RelativeBias>,
    /// The bias tensor of the projection that made keys and values: what padding becomes, as maps are padded with zeros
    /// before it. `None`: padding has keys and values of zeros.
    pub padding: Option<String>,
    /// Along an axis of no more voxels than a window has, there is one window of the map's extent,
    /// which is not shifted; of the index by relative position the first rows and columns are
    /// taken, as many as the window has voxels (`get_window_size` of MONAI).
    /// [`super::pass::settle`] makes it so.
    pub clipped: bool,
}

/// Tensors of a bias by relative position.
#[derive(Clone, Debug, PartialEq)]
pub struct RelativeBias {
    /// The table, `[rows][heads]`.
    pub table: String,
    /// A row of it for each query and key of a window, `[queries][keys]`, as the checkpoint holds it.
    pub index: String,
}

impl WindowAttention {
    /// Makes windows that are clipped no larger than a map of this extent.
    pub(super) fn clip(&mut self, extent: Extent) {
        let shape = &mut self.shape;
        for (axis, &n) in extent.axes().iter().enumerate() {
            if self.clipped && n <= shape.k_window[axis] {
                (shape.q_window[axis], shape.k_window[axis], shape.shift[axis]) = (n, n, 0);
            }
        }
    }

    pub(super) fn infer(&self, inputs: &[Map]) -> Result<Map, String> {
        let s = &self.shape;
        let [q, kv] = [inputs[0], inputs[1]];
        let c = (s.qk_channels, s.v_channels);
        if s.heads == 0 || c.0 == 0 || c.1 == 0 || !c.0.is_multiple_of(s.heads) || !c.1.is_multiple_of(s.heads) {
            return Err(format!("{} heads do not divide {} channels of queries and {} of values", s.heads, c.0, c.1));
        }
        let window = |w: [u32; 3]| w.iter().map(|&n| u64::from(n)).product::<u64>();
        if [s.q_window, s.k_window].iter().any(|&w| window(w) == 0 || w.iter().any(|&n| n > 1 << 10) || window(w) > 1 << 16) {
            return Err(format!("windows of {:?} and {:?} voxels are not possible", s.q_window, s.k_window));
        }
        check_parts(&[(q, s.first[0], c.0), (kv, s.first[1], c.0), (kv, s.first[2], c.1)])?;
        if (0..3).any(|a| s.shift[a] >= s.k_window[a]) || (s.shift != [0; 3] && s.q_window != s.k_window) {
            return Err(format!("a shift of {:?} does not suit windows of {:?} and {:?}", s.shift, s.q_window, s.k_window));
        }
        if s.bias_rows > 1 << 24 || (s.bias_rows > 0) != self.bias.is_some() || (s.token_queries && self.bias.is_some()) {
            return Err(format!("a table of {} biases does not suit", s.bias_rows));
        }
        let tokens = s.token_extent(kv.extent);
        match inputs.get(2) {
            Some(given) if s.tokens > 0 && (given.extent, given.channels) == (tokens, kv.channels) => {}
            None if s.tokens == 0 && !s.token_queries => {}
            given => {
                return Err(format!(
                    "{} tokens in each of {tokens} windows given {given:?}",
                    s.tokens,
                    tokens = Extent::from(s.grid(kv.extent))
                ));
            }
        }
        let same_grid = (0..3).all(|a| q.extent.axes()[a].div_ceil(s.q_window[a]) == s.grid(kv.extent)[a]);
        if (s.token_queries && q.extent != tokens) || (!s.token_queries && (!same_grid || (s.shift != [0; 3] && q.extent != kv.extent))) {
            return Err(format!("queries of {} do not lie in the windows of keys of {}", q.extent, kv.extent));
        }
        Ok(Map::new(q.extent, c.1))
    }
}

/// Sampling of maps at places that a layer computed for every query: CoTr's deformable attention. Inputs: the map of
/// offsets `[heads, levels, points, 3]`, that of the weights before their softmax `[heads, levels, points]`, both over the
/// queries, and the values of each level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deformable {
    /// Heads.
    pub heads: u32,
    /// Places that a query of a head samples in each level.
    pub points: u32,
}

impl Deformable {
    /// Levels that the shader binds.
    pub const LEVELS: usize = 4;

    pub(super) fn infer(&self, inputs: &[Map]) -> Result<Map, String> {
        let [offsets, weights, values @ ..] = inputs else { return Err("lacks values".into()) };
        let v = values[0].channels;
        if self.heads == 0 || self.points == 0 || !v.is_multiple_of(self.heads) || values.iter().any(|m| m.channels != v) {
            return Err(format!("{} heads of {} points sample levels of {:?}", self.heads, self.points, values));
        }
        let places = u64::from(self.heads) * u64::from(self.points) * values.len() as u64;
        let given = (u64::from(offsets.channels), u64::from(weights.channels));
        if offsets.extent != weights.extent || given != (3 * places, places) {
            return Err(format!("{places} places given {} offsets of {} and {} weights", given.0, offsets.extent, given.1));
        }
        Ok(Map::new(offsets.extent, v))
    }
}

/// Whether channels lie within their maps.
fn check_parts(parts: &[(Map, u32, u32)]) -> Result<(), String> {
    for &(map, first, count) in parts {
        if u64::from(first) + u64::from(count) > u64::from(map.channels) || count == 0 {
            return Err(format!("takes {count} channels from {first} on of a map of {}", map.channels));
        }
    }
    Ok(())
}
