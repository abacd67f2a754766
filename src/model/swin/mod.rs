//! What Swin-Unet and GLAM-Swin-Unet share: patch embedding, merging, expanding, skips and the tail, in two dimensions.
//!
//! Source: Cao et al., "Swin-Unet: Unet-like Pure Transformer for Medical Image Segmentation" (arXiv 2105.05537), as
//! `swin_transformer_unet_skip_expand_decoder_sys.py` of HuCaoFighting/Swin-Unet computes it; node names are that module's
//! paths. Each plane of the input is an image of its own. Numbers along three axes are D, H, W.

use serde::{Deserialize, Serialize};

use super::architecture::Built;
use super::blocks::{Builder, Stage};
use super::weights::{Tolerance, Weights};
use crate::error::{LoadError, LoadErrorKind};
use crate::graph::{Conv, Graph, NodeId, Op, PatchExpand, PatchMerge, Resize, Size};
use crate::kernels::{Interpolation, Shift, WindowShape};
use crate::shape::Extent;

mod glam;
#[cfg(test)]
mod tests;
mod unet;

pub use glam::GlamSwinUnetConfig;
pub use unet::SwinUnetConfig;

/// Most blocks of a stage, and tokens of a window along an axis.
const MOST: u32 = 32;

/// The only patch: the last expansion has no other factor (`FinalPatchExpand_X4`).
const PATCH: u32 = 4;

/// Voxels along H and W of each plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Image {
    /// So many along both.
    Square(u32),
    /// `[h, w]`.
    Sides([u32; 2]),
}

impl Image {
    /// Voxels along H, W.
    #[must_use]
    pub fn sides(self) -> [u32; 2] {
        match self {
            Self::Square(n) => [n; 2],
            Self::Sides(sides) => sides,
        }
    }
}

/// The arguments that both have.
struct Shape {
    /// Before the name of every module.
    prefix: &'static str,
    /// Along H, W.
    image: [u32; 2],
    patch: u32,
    in_channels: u32,
    classes: u32,
    embed_dim: u32,
    depths: Vec<u32>,
    heads: Vec<u32>,
    window: u32,
}

impl Shape {
    fn check(&self) -> Result<(), String> {
        let stages = self.depths.len();
        let count = |n: &u32| (1..=MOST).contains(n);
        let width = |n: &u32| (1..=65_536).contains(n);
        if self.patch != PATCH {
            return Err(format!("patch is {}, must be {PATCH}: the last expansion has no other factor", self.patch));
        }
        if !(2..=8).contains(&stages) || !self.depths.iter().all(count) {
            return Err(format!("depths is {:?}, must be 2 to 8 numbers of 1 to {MOST}", self.depths));
        }
        if !(2..=MOST).contains(&self.window) {
            return Err(format!("window is {}, must be 2 to {MOST}", self.window));
        }
        if ![&self.in_channels, &self.classes, &self.embed_dim].into_iter().all(width) {
            return Err("in_channels, classes and embed_dim must be 1 to 65536".into());
        }
        let divides = |(i, &heads): (usize, &u32)| heads > 0 && (self.embed_dim << i).is_multiple_of(heads);
        if self.heads.len() != stages || !self.heads.iter().enumerate().all(divides) {
            return Err(format!("heads is {:?}, must be a divisor of {} x 2^i for each stage i of {stages}", self.heads, self.embed_dim));
        }
        let least = PATCH << (stages - 1);
        if self.image.iter().any(|n| !(least..=8192).contains(n)) {
            return Err(format!("image is {}, must be {least} to 8192", self.named()));
        }
        Ok(())
    }

    fn named(&self) -> String {
        let [h, w] = self.image;
        if h == w { h.to_string() } else { format!("{h}x{w}") }
    }

    fn stages(&self) -> usize {
        self.depths.len()
    }

    /// Tokens along H, W of the map of stage `i`: embedding and merging pad to whole patches.
    fn grid(&self, i: usize) -> [u32; 2] {
        self.image.map(|n| (0..i).fold(n.div_ceil(PATCH), |n, _| n.div_ceil(2)))
    }

    /// The same if nothing were padded and halves were floored: by this the references fix windows.
    fn resolution(&self, i: usize) -> [u32; 2] {
        self.image.map(|n| (n / PATCH) >> i)
    }

    fn channels(&self, i: usize) -> u32 {
        self.embed_dim << i
    }

    /// The encoder's stage `i`, or the decoder's at the same grid under another module.
    fn stage(&self, i: usize, module: String) -> Stage {
        let [h, w] = self.resolution(i);
        let resolution = h.min(w);
        let window = self.window.min(resolution);
        // one window: nothing is shifted
        let shift = if resolution <= self.window { 0 } else { window / 2 };
        Stage {
            module,
            level: i,
            per_plane: true,
            grid: [1, self.grid(i)[0], self.grid(i)[1]],
            depth: self.depths[i],
            channels: self.channels(i),
            heads: self.heads[i],
            window: [1, window, window],
            shift: [0, shift, shift],
        }
    }

    /// The network of planes of the image's extent: positions in windows and grids are baked into the references.
    fn built(&self, mut b: Builder, grey: bool) -> Built {
        let masked: Vec<String> = b.graph.nodes().iter().filter_map(|node| masked(&node.op, &node.name)).collect();
        b.dead.extend(masked);
        let crop = [1, self.image[0], self.image[1]];
        let tolerance = Tolerance { dead: b.dead, relative_index: Some(index), ..Tolerance::default() };
        Built { crop: Some(crop), dims: 2, grey, tolerance, ..Built::new(b.graph, crop) }
    }

    /// Patches and their norm.
    fn embed(&self, b: &mut Builder) -> NodeId {
        let mut x = b.graph.add("input", Op::Input { channels: self.in_channels }, &[]);
        let module = format!("{}patch_embed", self.prefix);
        if let Some(padded) = self.padded() {
            let [h, w] = [0, 1].map(|axis| Shift::Pad { before: 0, after: (padded[axis] - self.image[axis]).cast_signed() });
            x = b.graph.add(format!("{module}.padded"), Op::Shift([Shift::NONE, h, w]), &[x]);
        }
        let kernel = [1, PATCH, PATCH];
        let conv = Conv {
            module: format!("{module}.proj"),
            in_channels: self.in_channels,
            out_channels: self.embed_dim,
            kernel,
            stride: kernel,
            weight_shape: [self.embed_dim, self.in_channels, PATCH, PATCH].map(|n| n as usize).to_vec(),
            ..Conv::default()
        };
        let x = b.graph.add(conv.module.clone(), Op::Conv(conv), &[x]);
        b.norm(&format!("{module}.norm"), x, self.embed_dim)
    }

    /// The encoder: what its stages begin with, and the normed result of the last. `blocks` computes those of one.
    fn encode(&self, b: &mut Builder, mut blocks: impl FnMut(&mut Builder, &Stage, NodeId) -> NodeId) -> (Vec<NodeId>, NodeId) {
        let mut x = self.embed(b);
        let mut skips = Vec::new();
        for i in 0..self.stages() {
            let this = self.stage(i, format!("{}layers.{i}", self.prefix));
            skips.push(x);
            x = blocks(b, &this, x);
            if i + 1 < self.stages() {
                x = merge(b, &format!("{}.downsample", this.module), x, this.channels);
            }
        }
        let last = self.channels(self.stages() - 1);
        (skips, b.norm(&format!("{}norm", self.prefix), x, last))
    }

    /// The decoder of patch expansions, deepest stage first; its first module is an expansion alone.
    fn decode(
        &self,
        b: &mut Builder,
        skips: &[NodeId],
        x: NodeId,
        mut blocks: impl FnMut(&mut Builder, &Stage, NodeId) -> NodeId,
    ) -> NodeId {
        let deepest = self.stages() - 1;
        let mut x = self.expand(b, &format!("{}layers_up.0", self.prefix), x, deepest);
        for (k, i) in (1..).zip((0..deepest).rev()) {
            let this = self.stage(i, format!("{}layers_up.{k}", self.prefix));
            x = self.join(b, k, [x, skips[i]], i);
            x = blocks(b, &this, x);
            if i > 0 {
                x = self.expand(b, &format!("{}.upsample", this.module), x, i);
            }
        }
        x
    }

    /// What comes from below and the skip of stage `i`, in this order, as one map.
    fn join(&self, b: &mut Builder, k: u32, maps: [NodeId; 2], i: usize) -> NodeId {
        let module = format!("{}concat_back_dim.{k}", self.prefix);
        let both = b.graph.add(format!("{module}.concat"), Op::Concat, &maps);
        b.linear(&module, both, [2 * self.channels(i), self.channels(i)])
    }

    /// Patch expanding from the grid of stage `i` to that of the stage before it, normed.
    fn expand(&self, b: &mut Builder, module: &str, x: NodeId, i: usize) -> NodeId {
        let c = self.channels(i);
        let mut y = b.linear_unbiased(&format!("{module}.expand"), x, [c, 2 * c]);
        y = b.graph.add(format!("{module}.patches"), Op::PatchExpand(PatchExpand { patch: [1, 2, 2], crop: None }), &[y]);
        let padded = [0, 1].map(|axis| 2 * self.grid(i)[axis] - self.grid(i - 1)[axis]);
        if padded != [0; 2] {
            // what merging had added
            let [h, w] = padded.map(|n| Shift::Pad { before: 0, after: -n.cast_signed() });
            y = b.graph.add(format!("{module}.cropped"), Op::Shift([Shift::NONE, h, w]), &[y]);
        }
        b.norm(&format!("{module}.norm"), y, c / 2)
    }

    /// Norm, expansion to voxels and the classes.
    fn tail(&self, b: &mut Builder, x: NodeId) {
        let (c, prefix) = (self.embed_dim, self.prefix);
        let x = b.norm(&format!("{prefix}norm_up"), x, c);
        let x = b.linear_unbiased(&format!("{prefix}up.expand"), x, [c, PATCH * PATCH * c]);
        let patches = PatchExpand { patch: [1, PATCH, PATCH], crop: None };
        let x = b.graph.add(format!("{prefix}up.patches"), Op::PatchExpand(patches), &[x]);
        let x = b.norm(&format!("{prefix}up.norm"), x, c);
        let conv = Conv {
            module: format!("{prefix}output"),
            in_channels: c,
            out_channels: self.classes,
            bias: false,
            weight_shape: [self.classes, c, 1, 1].map(|n| n as usize).to_vec(),
            ..Conv::default()
        };
        let x = b.graph.add(conv.module.clone(), Op::Conv(conv), &[x]);
        if self.padded().is_some() {
            // the reference resizes what it padded, it does not crop
            let resize = Resize { size: Size::Plane(self.image), mode: Interpolation::HalfPixel };
            b.graph.add(format!("{prefix}resized"), Op::Resize(resize), &[x]);
        }
    }

    /// Voxels of whole patches along H, W, where the image is none.
    fn padded(&self) -> Option<[u32; 2]> {
        let whole = self.image.map(|n| n.next_multiple_of(PATCH));
        (whole != self.image).then_some(whole)
    }
}

/// Patch merging: parities column by column, norm, and a linear layer to twice the channels.
fn merge(b: &mut Builder, module: &str, x: NodeId, c: u32) -> NodeId {
    let x = b.graph.add(format!("{module}.patches"), Op::PatchMerge(PatchMerge::swin()), &[x]);
    let x = b.norm(&format!("{module}.norm"), x, 4 * c);
    b.linear_unbiased(&format!("{module}.reduction"), x, [4 * c, 2 * c])
}

/// The buffer that holds the mask of a shifted block in checkpoints; the mask is computed.
fn masked(op: &Op, name: &str) -> Option<String> {
    let Op::WindowAttention(attention) = op else { return None };
    let block = name.strip_suffix(".attn")?;
    (attention.shape.shift != [0; 3]).then(|| format!("{block}.attn_mask"))
}

/// What is added to the score of each query and key of each window of a shifted block, `[windows][N][N]`: -100 between voxels that
/// the shift brought together from two sides of the map, else 0.
fn mask(shape: &WindowShape, map: Extent) -> Vec<f64> {
    let [[_, h, w], [_, shift_h, shift_w]] = [shape.k_window, shape.shift];
    let whole = [map.h.next_multiple_of(h), map.w.next_multiple_of(w)];
    let region = |at: u32, n: u32, window: u32, shift: u32| u32::from(at >= n - window) + u32::from(at >= n - shift);
    let windows = (0..whole[0] / h).flat_map(|y| (0..whole[1] / w).map(move |x| [y * h, x * w]));
    let mut values = Vec::new();
    for [y, x] in windows {
        let voxels = (0..h).flat_map(|dy| (0..w).map(move |dx| [y + dy, x + dx]));
        let regions: Vec<_> = voxels.map(|[y, x]| [region(y, whole[0], h, shift_h), region(x, whole[1], w, shift_w)]).collect();
        let between = |a: &[u32; 2]| regions.iter().map(|b| if a == b { 0.0 } else { -100.0 }).collect::<Vec<_>>();
        values.extend(regions.iter().flat_map(between));
    }
    values
}

/// Refuses buffers of masks that say otherwise than what is computed.
pub(super) fn check_masks(graph: &Graph, extent: Extent, weights: &Weights) -> Result<(), LoadError> {
    let buffers: Vec<_> = graph.nodes().iter().filter_map(|node| Some((node, masked(&node.op, &node.name)?))).collect();
    if !buffers.iter().any(|(_, name)| weights.has(name)) {
        return Ok(());
    }
    let other = |what: String| Err(LoadError::new(LoadErrorKind::Tensors, what));
    let Ok(maps) = graph.infer(extent) else { return Ok(()) };
    for (node, name) in buffers.into_iter().filter(|(_, name)| weights.has(name)) {
        let (Op::WindowAttention(attention), Some(input)) = (&node.op, node.inputs.first()) else { continue };
        let computed = mask(&attention.shape, maps[input.index()].extent);
        let told = weights.floats(&name)?;
        if told.len() != computed.len() {
            let shape = weights.shape(&name).unwrap_or_default();
            return other(format!("the mask {name} has the shape {shape:?}, which is not that of windows of a map of {extent}"));
        }
        // hidden is what exp makes nothing of
        let differ = |(a, b): &(&f64, &f64)| (*a - *b).abs() > 1e-3 * b.abs().max(1.0) || a.is_nan();
        let count = told.iter().zip(&computed).filter(differ).count();
        if count > 0 {
            return other(format!(
                "the mask {name} differs in {count} of {} values from that of windows shifted by {:?}, which is what is computed",
                told.len(),
                attention.shape.shift
            ));
        }
    }
    Ok(())
}

/// What an index of a checkpoint without it is.
fn index(shape: &WindowShape) -> Vec<f64> {
    if shape.q_window == shape.k_window { relative_index(shape) } else { glam::relative_index(shape) }
}

/// The row of the table for each query and key of a window: their offset along H, from -(w - 1) on, times 2w - 1, plus that
/// along W (Swin's `relative_position_index`).
fn relative_index(shape: &WindowShape) -> Vec<f64> {
    let [_, h, w] = shape.k_window;
    let voxels: Vec<[u32; 2]> = (0..h).flat_map(|y| (0..w).map(move |x| [y, x])).collect();
    let row = |q: &[u32; 2], k: &[u32; 2]| (q[0] + h - 1 - k[0]) * (2 * w - 1) + (q[1] + w - 1 - k[1]);
    voxels.iter().flat_map(|q| voxels.iter().map(move |k| f64::from(row(q, k)))).collect()
}
