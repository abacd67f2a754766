//! Convolutions and transposed convolutions as nodes.

use super::infer::check_scale;
use super::{BatchNorm, Resize};
use crate::kernels::{Activation, Grouping, Load, Scope};
use crate::shape::{Extent, Map};

/// A convolution over one map or over the channel concatenation of two, or over one map with a second one added to the result.
/// Inputs: the maps, then scale and shift of those that are normalised as they are read.
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
    /// Voxels from one tap of the kernel to the next along D, H, W.
    pub dilation: [u32; 3],
    /// Groups of neighbouring channels, each convolved by itself; as many as channels: depthwise.
    pub groups: u32,
    /// The resampling through which each source is read; see [`super::pass::read_through`].
    pub through: [Option<Resize>; 2],
    /// Whether the module has a bias.
    pub bias: bool,
    /// The weights of each output channel are standardised at load, before a norm is folded in: less their mean, over the root
    /// of their biased variance plus this (weight standardisation, arXiv 1903.10520).
    pub standardised: Option<f64>,
    /// The weights and the bias are multiplied by this at load, before a norm is folded in.
    pub gain: f64,
    /// The tensor has the inputs so many times over, one after another, for copies of them: their weights are summed at load,
    /// after they are standardised.
    pub copies: u32,
    /// A batch norm folded into the weights at load.
    pub norm: Option<BatchNorm>,
    /// Done to each map as it is read.
    pub loads: [Load; 2],
    /// Whether the second map, of the shape of the result, is added before the activation instead of being concatenated.
    pub residual: bool,
    /// Applied to the result.
    pub activation: Activation,
    /// Shape of the weight tensor in the file.
    pub weight_shape: Vec<usize>,
    /// Whether the tensor is that of a linear layer over patches, whose inputs are the voxels of the kernel, row by row, each with
    /// its channels (`b c (h p1) (w p2) (d p3) -> b (h w d) (p1 p2 p3 c)` of MONAI's patch embedding); else channels come first.
    pub over_patches: bool,
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
            dilation: [1; 3],
            groups: 1,
            through: [None; 2],
            bias: true,
            standardised: None,
            gain: 1.0,
            copies: 1,
            norm: None,
            loads: [Load::default(); 2],
            residual: false,
            activation: Activation::None,
            weight_shape: Vec::new(),
            over_patches: false,
        }
    }
}

impl Conv {
    /// Whether the taps are neighbours and every output channel sees every input channel.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.groups == 1 && self.kernel.iter().zip(self.dilation).all(|(&kernel, dilation)| kernel == 1 || dilation == 1)
    }

    /// Its channels and groups.
    #[must_use]
    pub fn grouping(&self) -> Grouping {
        Grouping { inputs: self.in_channels, outputs: self.out_channels, groups: self.groups }
    }

    /// Whether each voxel of the result is computed from its own stored voxel alone: a linear layer over tokens.
    #[must_use]
    pub fn is_pointwise(&self) -> bool {
        self.is_plain() && self.kernel == [1; 3] && self.stride == [1; 3] && self.padding == [0; 3] && self.through == [None; 2]
    }

    /// What cannot be whatever the inputs are.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.out_channels == 0 || self.kernel.contains(&0) || self.stride.contains(&0) || self.dilation.contains(&0) {
            return Err("has a kernel, stride, dilation or width of zero".into());
        }
        if let Some(eps) = self.standardised.filter(|eps| !(eps.is_finite() && *eps > 0.0)) {
            return Err(format!("standardises its weights with an eps of {eps}"));
        }
        if self.copies == 0 || (self.copies > 1 && self.groups > 1) {
            return Err(format!("sums {} copies of its inputs in {} groups", self.copies, self.groups));
        }
        if !self.gain.is_finite() {
            return Err(format!("multiplies its weights by {}", self.gain));
        }
        if self.groups == 0 || !self.in_channels.is_multiple_of(self.groups) || !self.out_channels.is_multiple_of(self.groups) {
            return Err(format!("{} groups do not divide {} and {} channels", self.groups, self.in_channels, self.out_channels));
        }
        Ok(())
    }

    /// Extent of the result on sources read at `extent`: `(n + 2p - d (k - 1) - 1) / s + 1` along each axis.
    pub(super) fn output(&self, extent: Extent) -> Result<Extent, String> {
        let n = extent.axes();
        let mut out = [0; 3];
        for axis in 0..3 {
            let [kernel, padding, dilation] = [self.kernel, self.padding, self.dilation].map(|a| u64::from(a[axis]));
            let padded = u32::try_from(u64::from(n[axis]) + 2 * padding).map_err(|_| "the map is beyond 32-bit extents")?;
            let reach = (kernel - 1).checked_mul(dilation).and_then(|reach| u32::try_from(reach).ok());
            let span = reach.and_then(|reach| padded.checked_sub(reach)?.checked_sub(1));
            out[axis] = span.ok_or("the kernel is larger than the padded map")? / self.stride[axis] + 1;
        }
        Ok(out.into())
    }

    /// The map that the convolution makes of its inputs.
    pub(super) fn infer(&self, inputs: &[Map]) -> Result<Map, String> {
        self.check()?;
        let (maps, mut scales) = inputs.split_at(self.maps(inputs.len()));
        if self.residual && (maps.len() != 2 || self.through[1].is_some()) {
            return Err("adds a second map, which it must read as it is".into());
        }
        let sources = &maps[..if self.residual { 1 } else { maps.len() }];
        let have: u64 = sources.iter().map(|m| u64::from(m.channels)).sum();
        let read = sources.iter().enumerate().map(|(slot, m)| self.read_extent(slot, m.extent)).collect::<Result<Vec<_>, _>>()?;
        if have != u64::from(self.in_channels) || read.iter().any(|&extent| extent != read[0]) {
            return Err(format!("convolution of {} channels given {sources:?}", self.in_channels));
        }
        if maps.len() < 2 && self.loads[1] != Load::default() {
            return Err("does something to a second map that it does not read".into());
        }
        if self.through.iter().zip(&self.loads).any(|(through, load)| through.is_some() && *load != Load::default()) {
            return Err("normalises or activates what it reads through resampling".into());
        }
        for (slot, (map, load)) in maps.iter().zip(&self.loads).enumerate() {
            let Some(scope) = load.norm else { continue };
            if scope == Scope::Plane && !self.keeps_planes(slot) {
                return Err("its windows reach over planes that are normalised each by itself".into());
            }
            let (scale, rest) = scales.split_first().ok_or("lacks a scale")?;
            check_scale(*map, *scale, scope)?;
            scales = rest;
        }
        let result = Map::new(self.output(read[0])?, self.out_channels);
        if self.residual && maps[1] != result {
            return Err(format!("adds {} channels of {} to {} of {}", maps[1].channels, maps[1].extent, result.channels, result.extent));
        }
        Ok(result)
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
