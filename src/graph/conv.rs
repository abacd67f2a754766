//! Convolutions and transposed convolutions as nodes.

use super::{BatchNorm, Resize};
use crate::kernels::{Activation, Load};
use crate::shape::Extent;

/// A convolution over one map or over the channel concatenation of two. Inputs: the maps, then scale and shift of those
/// that are normalised as they are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// Prefix of `weight` and, if any, `bias`.
    pub module: String,
    /// Input channels, all sources together.
    pub in_channels: u32,
    /// Output channels.
    pub out_channels: u32,
    /// Kernel size along D, H, W.
    pub kernel: [u32; 3],
    /// Stride along D, H, W.
    pub stride: [u32; 3],
    /// Zero padding along D, H, W.
    pub padding: [u32; 3],
    /// The resampling through which each source is read; see [`super::pass::read_through`].
    pub through: [Option<Resize>; 2],
    /// Whether the module has a bias.
    pub bias: bool,
    /// A batch norm folded into the weights at load.
    pub norm: Option<BatchNorm>,
    /// Done to each map as it is read.
    pub loads: [Load; 2],
    /// Applied to the result.
    pub activation: Activation,
    /// Shape of the weight tensor in the file.
    pub weight_shape: Vec<usize>,
}

impl Default for Conv {
    /// A pointwise convolution with a bias, of no width yet.
    fn default() -> Self {
        Self {
            module: String::new(),
            in_channels: 0,
            out_channels: 0,
            kernel: [1; 3],
            stride: [1; 3],
            padding: [0; 3],
            through: [None; 2],
            bias: true,
            norm: None,
            loads: [Load::default(); 2],
            activation: Activation::None,
            weight_shape: Vec::new(),
        }
    }
}

impl Conv {
    /// Whether each voxel of the result is computed from its own stored voxel alone: a linear layer over tokens.
    #[must_use]
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1; 3] && self.stride == [1; 3] && self.padding == [0; 3] && self.through == [None; 2]
    }

    /// Extent at which a source of `extent` is read.
    pub(crate) fn read_extent(&self, slot: usize, extent: Extent) -> Result<Extent, String> {
        match self.through.get(slot).copied().flatten() {
            Some(resize) => resize.output(extent),
            None => Ok(extent),
        }
    }
}

/// A transposed convolution, as `torch.nn.ConvTranspose3d`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvTranspose {
    /// Prefix of `weight` and, if any, `bias`.
    pub module: String,
    /// Input channels.
    pub in_channels: u32,
    /// Output channels.
    pub out_channels: u32,
    /// Kernel size along D, H, W.
    pub kernel: [u32; 3],
    /// Output voxels from one input voxel to the next along D, H, W.
    pub stride: [u32; 3],
    /// Output voxels cut off on both sides along D, H, W.
    pub padding: [u32; 3],
    /// Output voxels added at the far side along D, H, W; below the stride.
    pub output_padding: [u32; 3],
    /// Whether the module has a bias.
    pub bias: bool,
    /// A batch norm folded into the weights at load.
    pub norm: Option<BatchNorm>,
    /// Done to the map as it is read; scale and shift, if it is normalised, are the second input.
    pub load: Load,
    /// Applied to the result.
    pub activation: Activation,
    /// Shape of the weight tensor in the file, inputs before outputs.
    pub weight_shape: Vec<usize>,
}

impl Default for ConvTranspose {
    /// Blocks of 2x2x2 with a bias, of no width yet.
    fn default() -> Self {
        Self {
            module: String::new(),
            in_channels: 0,
            out_channels: 0,
            kernel: [2; 3],
            stride: [2; 3],
            padding: [0; 3],
            output_padding: [0; 3],
            bias: true,
            norm: None,
            load: Load::default(),
            activation: Activation::None,
            weight_shape: Vec::new(),
        }
    }
}

impl ConvTranspose {
    /// Extent of the result: `(n - 1) s - 2p + k + output_padding` along each axis.
    pub(super) fn output(&self, extent: Extent) -> Result<Extent, String> {
        let mut out = [0; 3];
        for (axis, n) in extent.axes().into_iter().enumerate() {
            let [k, s, p, extra] = [self.kernel, self.stride, self.padding, self.output_padding].map(|a| u64::from(a[axis]));
            if extra >= s {
                return Err(format!("an output padding of {extra} is not below the stride of {s}"));
            }
            // as far as the kernel reaches before anything is cut off, so that no later sum overflows
            let full = u64::from(n).saturating_sub(1) * s + k + extra;
            let left = full.checked_sub(2 * p).filter(|&left| left > 0).ok_or("the padding leaves nothing")?;
            u32::try_from(full).map_err(|_| "the map is beyond 32-bit extents".to_owned())?;
            out[axis] = u32::try_from(left).unwrap_or(u32::MAX);
        }
        Ok(out.into())
    }
}
