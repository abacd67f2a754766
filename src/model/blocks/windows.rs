//! A stage of window attention: its grid, its windows, and the attention in them.

use crate::graph::{Attention, RelativeBias, WindowAttention};
use crate::kernels::{TokenChannels, WindowShape};

/// One stage.
pub(in crate::model) struct Stage {
    pub module: String,
    /// Its number, 0 for the finest.
    pub level: usize,
    /// Each plane is an image by itself: the grid is that of a plane.
    pub per_plane: bool,
    /// Tokens along each axis.
    pub grid: [u32; 3],
    pub depth: u32,
    pub channels: u32,
    pub heads: u32,
    pub window: [u32; 3],
    /// Of shifted blocks.
    pub shift: [u32; 3],
}

impl Stage {
    /// Attention in windows without tokens, whose queries, keys and values begin at these channels of their maps; `module` made
    /// keys and values. Maps are padded with zeros after the norm, before `module`: keys and values of padding are its bias.
    pub(in crate::model) fn windows(&self, attn: &str, module: &str, first: [u32; 3], shifted: bool) -> WindowAttention {
        let name = |tensor: &str| format!("{attn}.relative_position_{tensor}");
        let shape = WindowShape {
            heads: self.heads,
            qk_channels: self.channels,
            v_channels: self.channels,
            first,
            scale: self.scale(),
            q_window: self.window,
            k_window: self.window,
            shift: if shifted { self.shift } else { [0; 3] },
            tokens: 0,
            token_queries: false,
            bias_rows: self.window.map(|n| 2 * n - 1).iter().product(),
        };
        let bias = RelativeBias { table: name("bias_table"), index: name("index") };
        WindowAttention { shape, bias: Some(bias), padding: Some(format!("{module}.bias")), clipped: false }
    }

    /// Attention between whole maps of a fused projection.
    pub(in crate::model) fn fused(&self) -> Attention {
        let c = self.channels;
        let channels = Some(TokenChannels { qk: c, v: c, first: [0, c, 2 * c] });
        Attention { heads: self.heads, scale: self.scale(), per_plane: self.per_plane, channels, ..Attention::default() }
    }

    fn scale(&self) -> f32 {
        head_scale(self.channels / self.heads)
    }
}

/// The factor of the scores of heads of so many channels.
#[expect(clippy::cast_possible_truncation, reason = "shaders compute in f32")]
pub(in crate::model) fn head_scale(channels: u32) -> f32 {
    f64::from(channels).powf(-0.5) as f32
}
