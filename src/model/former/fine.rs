//! The architecture `fine`: window tokens, and tokens of a grid over the whole volume, of which a
//! crop sees the nearest.
//!
//! Source: Themyr et al., "Memory transformers for full context and high-resolution 3D Medical
//! Segmentation" (MLMI 2022), as `fine.py` of themyrl/fine computes it.

use serde::{Deserialize, Serialize};

use super::{Builder, Shape, Stage};
use crate::graph::{Attention, Combine, KeyMask, NodeId, Op, Parameter, RunInputs, Slot, Tokens};
use crate::kernels::Shift;
use crate::model::architecture::{Architecture, Built};
use crate::shape::Extent;

/// Volume tokens that a crop sees.
const CURRENT: u32 = 4;

/// What of the graph depends on the crop's position: the volume tokens that the crop sees, for each
/// volume token its place among them, and the tokens that count as visited.
const CURRENT_TOKENS: Slot = Slot(0);
const PLACES: Slot = Slot(1);
const SEEN: Slot = Slot(2);

/// Arguments of FINE, as in the card; the defaults are those of the BCV model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FineConfig {
    /// The only extent that the network takes.
    pub crop: [u32; 3],
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of the first stage; each further one has twice as many.
    pub embed_dim: u32,
    /// Blocks of each stage of the encoder.
    pub depths: Vec<u32>,
    /// Blocks of each stage of the decoder, deepest first; empty: two each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decoder_depths: Vec<u32>,
    /// Attention heads of each stage.
    pub heads: Vec<u32>,
    /// Voxels of a token.
    pub patch: [u32; 3],
    /// Tokens of a window along each axis, for each stage.
    pub window: Vec<u32>,
    /// Learned tokens of each window.
    pub window_tokens: u32,
    /// Volume tokens along each axis; there is one layer of them, the first number is for the
    /// places alone.
    pub volume_grid: [u32; 3],
    /// The largest volume, over which the grid lies.
    pub max_extent: [u32; 3],
    /// The crop's centre less the volume's, in voxels.
    pub position: [i64; 3],
    /// Where the volume ends before the crop does, the crop sees the last cells of the grid instead
    /// of the first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub clamp: bool,
    /// Volume tokens that were visited besides those that the file counts and those at the
    /// position.
    pub visited: Vec<u32>,
}

impl Default for FineConfig {
    fn default() -> Self {
        Self {
            crop: [64, 128, 128],
            in_channels: 1,
            classes: 14,
            embed_dim: 192,
            depths: vec![2; 4],
            decoder_depths: Vec::new(),
            heads: vec![6, 12, 24, 48],
            patch: [2, 4, 4],
            window: vec![4; 4],
            window_tokens: 1,
            volume_grid: [3, 5, 5],
            max_extent: [218, 660, 660],
            position: [0; 3],
            clamp: false,
            visited: Vec::new(),
        }
    }
}

impl Architecture for FineConfig {
    const NAME: &'static str = "fine";

    fn build(&self) -> Result<Built, String> {
        let shape = self.shape();
        self.check(&shape)?;
        let mut b = Builder::default();
        let skips = b.encode(&shape, |b, stage, x| self.blocks(b, stage, x, false));
        b.decode(&shape, &skips, |b, stage, [up, skip]| {
            let x = b.add(format!("{}.sum", stage.module), up, skip);
            self.blocks(b, stage, x, true)
        });
        Ok(b.built(self.crop))
    }
}

impl FineConfig {
    fn shape(&self) -> Shape {
        let two_each = vec![2; self.depths.len().saturating_sub(1)];
        Shape {
            crop: self.crop,
            in_channels: self.in_channels,
            classes: self.classes,
            embed_dim: self.embed_dim,
            depths: self.depths.clone(),
            decoder_depths: if self.decoder_depths.is_empty() { two_each } else { self.decoder_depths.clone() },
            heads: self.heads.clone(),
            patch: self.patch,
            window: self.window.clone(),
            merging: [2, 0],
            decoder: "encoder",
        }
    }

    /// Volume tokens: the grid has one layer (`vt_check` has `vt_map[1] * vt_map[2]` rows).
    fn volume_tokens(&self) -> u32 {
        self.volume_grid[1] * self.volume_grid[2]
    }

    /// The volume tokens that the crop sees: the cell that it begins in and its neighbours towards
    /// the end, or, in the last row or column, towards the begin. Beyond the grid's end the cell is
    /// the first, not the last (`pos2vtpos`, sic), unless [`Self::clamp`] says otherwise.
    pub(in crate::model) fn current(&self) -> [u32; 4] {
        let cell = |axis: usize| {
            let [n, cells, most] = [self.crop, self.volume_grid, self.max_extent].map(|a| i64::from(a[axis]));
            let margin = (most - n * cells + 1).div_euclid(2);
            let at = self.position[axis].saturating_add(most / 2 - margin);
            let cell = at.saturating_sub(n / 2).div_euclid(n);
            let cell = if self.clamp {
                cell.min(cells - 1)
            } else if at >= n * cells {
                0
            } else {
                cell
            };
            u32::try_from(cell.max(0)).unwrap_or(0)
        };
        let beside = |at: u32, axis: usize| if at + 1 == self.volume_grid[axis] { at - 1 } else { at + 1 };
        let [y, x] = [cell(1), cell(2)];
        let (below, right) = (beside(y, 1), beside(x, 2));
        [(y, x), (below, x), (y, right), (below, right)].map(|(y, x)| y * self.volume_grid[2] + x)
    }

    /// For each volume token its place among the current ones; those that are not among them have
    /// the place after the last.
    fn places(&self) -> Vec<u32> {
        let current = self.current();
        let place = |token: u32| (0..).zip(current).find(|&(_, at)| at == token).map_or(CURRENT, |(i, _)| i);
        (0..self.volume_tokens()).map(place).collect()
    }

    /// The volume tokens that count as visited: the current ones, and those before.
    fn seen(&self) -> Vec<u32> {
        self.current().iter().chain(&self.visited).copied().collect()
    }

    /// What the graph's slots hold for the crop's position and the tokens that were visited.
    ///
    /// # Errors
    /// The reason why the config is none, as a token that is not there.
    pub(in crate::model) fn run_inputs(&self) -> Result<RunInputs, String> {
        self.check(&self.shape())?;
        let mut slots = vec![Vec::new(); 3];
        slots[CURRENT_TOKENS.0] = self.current().to_vec();
        slots[PLACES.0] = self.places();
        slots[SEEN.0] = self.seen();
        Ok(RunInputs(slots))
    }

    /// Rows of the table of positions of stage `i`: the decoder's are those of a grid of 32 tokens,
    /// whatever the crop (`ws_pe`).
    fn rows(&self, i: usize, decoder: bool) -> u32 {
        let (window, tokens) = (self.window[i], self.window_tokens);
        if decoder {
            return ((32 / window * tokens) >> i).pow(3);
        }
        [0, 1, 2].map(|axis| ((self.crop[axis] / self.patch[axis]) >> i) / window * tokens).iter().product()
    }

    fn check(&self, shape: &Shape) -> Result<(), String> {
        shape.check()?;
        if !(1..=8).contains(&self.window_tokens) {
            return Err(format!("window_tokens is {}, must be 1 to 8", self.window_tokens));
        }
        if self.volume_grid.iter().any(|&n| n > 64) || self.volume_grid[1..].iter().any(|&n| n < 2) {
            return Err(format!("volume_grid is {:?}, must be at most 64, and at least 2 along H and W", self.volume_grid));
        }
        if let Some(token) = self.visited.iter().find(|&&token| token >= self.volume_tokens()) {
            return Err(format!("visited has volume token {token} of {}", self.volume_tokens()));
        }
        let stages = (0..shape.stages()).flat_map(|i| [(i, false), (i, true)]);
        for (i, decoder) in stages.filter(|&(i, decoder)| !decoder || i + 1 < shape.stages()) {
            let (tokens, rows) = (shape.stage(i, decoder).tokens(self.window_tokens), self.rows(i, decoder));
            if tokens > rows {
                return Err(format!("stage {i} has {tokens} window tokens in its crop, but positions of {rows} alone"));
            }
        }
        Ok(())
    }

    fn blocks(&self, b: &mut Builder, stage: &Stage, mut x: NodeId, decoder: bool) -> NodeId {
        let (g, rows) = (self.window_tokens, self.rows(stage.level, decoder));
        let mut tokens = b.window_tokens(stage, g);
        let mut volume = self.learned(b, stage);
        for i in 0..stage.depth {
            // tokens do not leave their stage: the last block's, and what the block before it makes
            // of the volume's, lead nowhere, and are pruned with their weights
            let block = format!("{}.blocks.{i}", stage.module);
            let seen;
            (x, seen) = b.token_block(stage, &block, [x, tokens], g, i % 2 == 1);
            let seen = b.add(format!("{block}.attended.tokens"), tokens, seen);
            let seen = b.mlp(&block, ".tokens", seen, stage.channels);
            let seen = b.positioned(stage, &block, seen, g, rows);
            let current =
                b.graph.add(format!("{block}.current"), Op::Gather(Tokens::from(self.current()).in_slot(CURRENT_TOKENS)), &[volume]);
            let crossed;
            (tokens, crossed) = across(b, stage, &format!("{block}.gt_attn"), [seen, current]);
            volume = self.remember(b, stage, &block, volume, crossed);
        }
        x
    }

    /// The volume tokens that a stage begins with.
    fn learned(&self, b: &mut Builder, stage: &Stage) -> NodeId {
        let (tensor, n) = (format!("{}.volume_token", stage.module), self.volume_tokens());
        let extent = Extent::new(1, 1, n);
        let parameter =
            Parameter { tensor: tensor.clone(), shape: [n, stage.channels], batched: false, rows: 0..n, extent, per_plane: false };
        b.graph.add(tensor, Op::Parameter(parameter), &[])
    }

    /// Volume attention: what the current tokens saw is added to them, and then all that were ever
    /// visited are attended to. The current ones count as visited, as `forward` counts them before
    /// it looks.
    fn remember(&self, b: &mut Builder, stage: &Stage, block: &str, volume: NodeId, crossed: NodeId) -> NodeId {
        let (c, n) = (stage.channels, self.volume_tokens());
        let module = format!("{block}.vt_attn");
        // a token of zeros after the current ones is what the others get
        let one_more = [Shift::NONE, Shift::NONE, Shift::Pad { before: 0, after: 1 }];
        let padded = b.graph.add(format!("{module}.padded"), Op::Shift(one_more), &[crossed]);
        let places = self.places().into_iter().collect::<Tokens>().in_slot(PLACES);
        let scattered = b.graph.add(format!("{module}.scattered"), Op::Gather(places), &[padded]);
        let volume = b.graph.add(format!("{module}.sum"), Op::Add(Combine::default()), &[volume, scattered]);
        let mask = KeyMask {
            counts: "vt_check".into(),
            shape: vec![n as usize, 1],
            visited: self.seen().into_iter().collect::<Tokens>().in_slot(SEEN),
            hidden: -1000.0,
        };
        let qkv = b.linear(&format!("{module}.qkv"), volume, [c, 3 * c]);
        let y = b.graph.add(module.clone(), Op::Attention(Attention { mask: Some(mask), ..stage.fused() }), &[qkv, qkv, qkv]);
        b.linear(&format!("{module}.proj"), y, [c, c])
    }
}

/// Cross-window attention: window tokens with positions, and the current volume tokens, which have
/// none, attend to all of them; neither norm nor residual. What both saw.
fn across(b: &mut Builder, stage: &Stage, module: &str, [tokens, current]: [NodeId; 2]) -> (NodeId, NodeId) {
    let c = stage.channels;
    let (qkv, proj) = (format!("{module}.qkv"), format!("{module}.proj"));
    let t = b.linear(&qkv, tokens, [c, 3 * c]);
    let v = b.linear_as(format!("{qkv}.volume"), &qkv, current, [c, 3 * c]);
    let seen = b.graph.add(module, Op::Attention(stage.fused()), &[t, v, v, t, t]);
    let crossed = b.graph.add(format!("{module}.volume"), Op::Attention(stage.fused()), &[v, v, v, t, t]);
    let crossed = b.linear_as(format!("{proj}.volume"), &proj, crossed, [c, c]);
    (b.linear(&proj, seen, [c, c]), crossed)
}

#[cfg(test)]
mod tests {
    use super::FineConfig;

    /// Measured on `fine.py`.
    #[test]
    fn positions_see_the_tokens_that_the_reference_sees() {
        for (position, current) in [
            ([-32, -64, 0], [7, 12, 8, 13]),
            ([0, 0, 0], [12, 17, 13, 18]),
            ([-77, -192, -192], [0, 5, 1, 6]),
            ([77, 192, 192], [18, 23, 19, 24]),
            ([40, 128, -128], [16, 21, 17, 22]),
            ([77, 266, 266], [24, 19, 23, 18]),
            ([0, 400, i64::MIN], [0, 5, 1, 6]),
        ] {
            assert_eq!(FineConfig { position, ..FineConfig::default() }.current(), current, "{position:?}");
        }
    }

    #[test]
    fn beyond_the_grid_the_last_cells_can_be_seen_instead_of_the_first() {
        let current = |position, clamp| FineConfig { position, clamp, ..FineConfig::default() }.current();
        // the grid of 5 x 128 voxels ends 320 from the middle of 660
        assert_eq!(current([0, 330, 0], false), [2, 7, 3, 8]);
        assert_eq!(current([0, 330, 0], true), [22, 17, 23, 18]);
        for position in [[0, 0, 0], [77, 266, 266], [-77, -300, 100]] {
            assert_eq!(current(position, true), current(position, false), "{position:?}");
        }
        assert_eq!(current([0, i64::MAX, i64::MIN], true), [20, 15, 21, 16]);
    }
}
