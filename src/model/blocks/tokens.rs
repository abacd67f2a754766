//! Window tokens: a few learned tokens ride in every window, see its voxels there, and each other across windows.

use super::{Builder, Stage};
use crate::graph::{NodeId, Op, Parameter, WindowAttention};
use crate::shape::Extent;

impl Stage {
    /// Windows along each axis.
    fn windows_along(&self) -> [u32; 3] {
        [0, 1, 2].map(|axis| self.grid[axis].div_ceil(self.window[axis]))
    }

    /// Tokens of all windows, of a plane where each is an image.
    pub(in crate::model) fn tokens(&self, per_window: u32) -> u32 {
        self.windows_along().iter().product::<u32>() * per_window
    }

    /// Where the tokens of all windows lie; row by row they follow each other as the reference lines them up.
    fn token_extent(&self, per_window: u32) -> Extent {
        let [d, h, w] = self.windows_along();
        Extent::new(d, h, w * per_window)
    }
}

impl Builder {
    /// The tokens that every window of a stage begins with.
    pub(in crate::model) fn window_tokens(&mut self, stage: &Stage, per_window: u32) -> NodeId {
        let tensor = format!("{}.global_token", stage.module);
        let parameter = Parameter {
            tensor: tensor.clone(),
            shape: [per_window, stage.channels],
            batched: false,
            rows: 0..per_window,
            extent: stage.token_extent(per_window),
            per_plane: stage.per_plane,
        };
        self.graph.add(tensor, Op::Parameter(parameter), &[])
    }

    /// Tokens plus their positions: the middle of a table of `rows`, from m // 2 - n // 2 on (`ClassicAttention`: `strt`).
    pub(in crate::model) fn positioned(&mut self, stage: &Stage, block: &str, tokens: NodeId, per_window: u32, rows: u32) -> NodeId {
        let n = stage.tokens(per_window);
        let start = rows / 2 - n / 2;
        let parameter = Parameter {
            tensor: format!("{}.pe", stage.module),
            shape: [rows, stage.channels],
            batched: false,
            rows: start..start + n,
            extent: stage.token_extent(per_window),
            per_plane: stage.per_plane,
        };
        let pe = self.graph.add(format!("{block}.pe"), Op::Parameter(parameter), &[]);
        self.add(format!("{block}.gt_attn.positioned"), tokens, pe)
    }

    /// A block of voxels with window tokens: its result, and what the tokens saw. They are keys like the voxels, but
    /// not normed before, and without bias or mask.
    pub(in crate::model) fn token_block(
        &mut self,
        stage: &Stage,
        block: &str,
        [x, tokens]: [NodeId; 2],
        per_window: u32,
        shifted: bool,
    ) -> (NodeId, NodeId) {
        let c = stage.channels;
        let (attn, qkv) = (format!("{block}.attn"), format!("{block}.attn.qkv"));
        let y = self.norm(&format!("{block}.norm1"), x, c);
        let y = self.linear(&qkv, y, [c, 3 * c]);
        let t = self.linear_as(format!("{qkv}.tokens"), &qkv, tokens, [c, 3 * c]);
        let mut windows = stage.windows(&attn, &qkv, [0, c, 2 * c], shifted);
        windows.shape.tokens = per_window;
        let attended = self.graph.add(attn.clone(), Op::WindowAttention(windows.clone()), &[y, y, t]);
        let windows = WindowAttention { bias: None, ..windows };
        let mut shape = windows.shape.clone();
        (shape.token_queries, shape.bias_rows) = (true, 0);
        let seen = self.graph.add(format!("{attn}.tokens"), Op::WindowAttention(WindowAttention { shape, ..windows }), &[t, y, t]);
        let proj = format!("{attn}.proj");
        let seen = self.linear_as(format!("{proj}.tokens"), &proj, seen, [c, c]);
        (self.finish(block, x, attended, c), seen)
    }

    /// The blocks of a stage with window tokens, which are lost after it; every second is shifted. The tokens become what they saw,
    /// or, where they are `residual`, that is added to them, followed by the MLP of the voxels; then they attend to each other.
    pub(in crate::model) fn token_blocks(&mut self, stage: &Stage, mut x: NodeId, per_window: u32, rows: u32, residual: bool) -> NodeId {
        let mut tokens = self.window_tokens(stage, per_window);
        for i in 0..stage.depth {
            let block = format!("{}.blocks.{i}", stage.module);
            // tokens do not leave their stage: the last block's lead nowhere, and are pruned with their weights
            let mut seen;
            (x, seen) = self.token_block(stage, &block, [x, tokens], per_window, i % 2 == 1);
            if residual {
                seen = self.add(format!("{block}.attended.tokens"), tokens, seen);
                seen = self.mlp(&block, ".tokens", seen, stage.channels);
            }
            let seen = self.positioned(stage, &block, seen, per_window, rows);
            tokens = self.among(stage, &format!("{block}.gt_attn"), seen);
        }
        x
    }

    /// Attention of all tokens of a map, or of each of its planes, to each other: neither norm nor residual.
    pub(in crate::model) fn among(&mut self, stage: &Stage, module: &str, tokens: NodeId) -> NodeId {
        let c = stage.channels;
        let qkv = self.linear(&format!("{module}.qkv"), tokens, [c, 3 * c]);
        let y = self.graph.add(module, Op::Attention(stage.fused()), &[qkv, qkv, qkv]);
        self.linear(&format!("{module}.proj"), y, [c, c])
    }
}
