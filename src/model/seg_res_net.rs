//! The architectures `seg_res_net` and `seg_res_net_ds`: MONAI's networks of residual blocks whose
//! norms come first, in 2D and 3D.
//!
//! Source: Myronenko, "3D MRI brain tumor segmentation using autoencoder regularization" (arXiv
//! 1810.11654), as `SegResNet` and `SegResNetDS` of MONAI 1.6.1 compute it; node names are those
//! modules' paths. Of the second only the finest head is computed.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::layers::{Layers, MOST_CHANNELS, check_channels, check_dims};
use super::monai_parts::{MonaiActivation, MonaiNorm, SLOPE};
use super::plain_conv_unet::{MOST, along, multiple};
use super::weights::Tolerance;
use crate::graph::{ConvTranspose, NodeId, Op, Resize, Size};
use crate::kernels::Interpolation;
use crate::scan::is_default;

/// The upsampling to twice the extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegResNetUpsampling {
    /// Linearly, after a pointwise convolution: MONAI's `nontrainable`.
    Linear,
    /// By a transposed convolution: MONAI's `deconv`.
    Deconv,
}

/// Arguments of MONAI's `SegResNet`, as in the card. Extents are multiples of 2 to the number of
/// levels less one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegResNetConfig {
    /// 2 (each plane is an image with statistics of its own) or 3.
    pub dims: u32,
    /// Input channels.
    pub in_channels: u32,
    /// Classes, or labels that may overlap.
    pub classes: u32,
    /// Channels of the first level; each further one has twice as many.
    pub init_filters: u32,
    /// Residual blocks of each level on the way down.
    pub blocks_down: Vec<u32>,
    /// Those on the way up, the deepest first; one number less.
    pub blocks_up: Vec<u32>,
    /// The norm.
    pub norm: MonaiNorm,
    /// The activation after it; no PReLU.
    #[serde(default = "relu")]
    pub activation: MonaiActivation,
    /// The slope of a leaky ReLU.
    #[serde(default = "slope", skip_serializing_if = "is_slope")]
    pub slope: f32,
    /// The upsampling to twice the extent.
    pub upsampling: SegResNetUpsampling,
}

/// Arguments of MONAI's `SegResNetDS`, as in the card. Extents are multiples of all strides
/// together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegResNetDsConfig {
    /// 2 (each plane is an image with statistics of its own) or 3.
    pub dims: u32,
    /// Input channels.
    pub in_channels: u32,
    /// Classes, or labels that may overlap.
    pub classes: u32,
    /// Channels of the first level; each further one has twice as many.
    pub init_filters: u32,
    /// Residual blocks of each level on the way down.
    pub blocks_down: Vec<u32>,
    /// Those on the way up, the deepest first; one number less.
    pub blocks_up: Vec<u32>,
    /// The norm.
    pub norm: MonaiNorm,
    /// The activation after it; no PReLU.
    #[serde(default = "relu")]
    pub activation: MonaiActivation,
    /// The slope of a leaky ReLU.
    #[serde(default = "slope", skip_serializing_if = "is_slope")]
    pub slope: f32,
    /// The upsampling to the extent of the level above.
    pub upsampling: SegResNetUpsampling,
    /// Voxel size along \[D,\] H, W, by which fine axes are halved before coarse ones; none: all
    /// axes alike.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resolution: Vec<f64>,
}

fn relu() -> MonaiActivation {
    MonaiActivation::Relu
}

pub(super) fn slope() -> f32 {
    SLOPE
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
pub(super) fn is_slope(slope: &f32) -> bool {
    *slope == SLOPE
}

/// Layers of both networks.
struct Builder {
    l: Layers,
    norm: MonaiNorm,
    activation: MonaiActivation,
    slope: f32,
    /// The path of a convolution's tensors within its module.
    inner: &'static str,
}

impl Builder {
    fn activated(&mut self, name: &str, x: NodeId) -> NodeId {
        self.activation.add(&mut self.l, name, name.to_owned(), x, self.slope)
    }

    fn conv(&mut self, module: &str, x: NodeId, c: [u32; 2], shape: [[u32; 3]; 2]) -> NodeId {
        self.l.conv_along(&format!("{module}{}", self.inner), x, c, shape, false)
    }

    /// Norm, activation and convolution twice, and the residual.
    fn block(&mut self, module: &str, x: NodeId, channels: u32, kernel: [u32; 3]) -> NodeId {
        let mut y = x;
        for i in 1..=2 {
            y = self.norm.add(&mut self.l, &format!("{module}.norm{i}"), y, channels);
            y = self.activated(&format!("{module}.act{i}"), y);
            y = self.conv(&format!("{module}.conv{i}"), y, [channels; 2], [kernel, [1; 3]]);
        }
        self.l.add(module, y, x)
    }

    fn resized(&mut self, name: String, x: NodeId, factor: [u32; 3]) -> NodeId {
        let resize = Resize { size: Size::Times(factor), mode: Interpolation::HalfPixel };
        self.l.graph.add(name, Op::Resize(resize), &[x])
    }
}

/// Checks the numbers of a config; the error says what is wrong.
fn check(
    dims: u32,
    [inputs, classes, filters]: [u32; 3],
    [down, up]: [&[u32]; 2],
    norm: MonaiNorm,
    (activation, slope): (MonaiActivation, f32),
) -> Result<(), String> {
    check_dims(dims)?;
    check_channels("in_channels", inputs, MOST_CHANNELS)?;
    check_channels("classes", classes, MOST_CHANNELS)?;
    let count = |list: &[u32]| list.iter().all(|n| (1..=MOST).contains(n));
    if !(1..=8).contains(&down.len()) || !count(down) {
        return Err(format!("blocks_down is {down:?}, must be 1 to 8 numbers of 1 to {MOST}"));
    }
    if up.len() + 1 != down.len() || !count(up) {
        return Err(format!("blocks_up is {up:?}, must be {} numbers of 1 to {MOST}", down.len() - 1));
    }
    check_channels("init_filters", filters, MOST_CHANNELS >> (down.len() - 1))?;
    norm.check(&[filters])?;
    if activation == MonaiActivation::Prelu || !slope.is_finite() {
        return Err("activation must be relu, leaky_relu of a finite slope, or none".into());
    }
    Ok(())
}

impl Architecture for SegResNetConfig {
    const NAME: &'static str = "seg_res_net";

    fn build(&self) -> Result<Built, String> {
        let channels = [self.in_channels, self.classes, self.init_filters];
        let blocks = [&self.blocks_down[..], &self.blocks_up];
        check(self.dims, channels, blocks, self.norm, (self.activation, self.slope))?;
        let l = Layers::new(self.dims, self.in_channels);
        let mut b = Builder { l, norm: self.norm, activation: self.activation, slope: self.slope, inner: ".conv" };
        let width = |level: usize| self.init_filters << level;
        let (cube, halved) = (b.l.cube(3), b.l.cube(2));
        let input = b.l.input;
        let mut x = b.conv("convInit", input, [self.in_channels, width(0)], [cube, [1; 3]]);
        let mut skips = Vec::new();
        for (level, &blocks) in self.blocks_down.iter().enumerate() {
            let module = format!("down_layers.{level}");
            if level > 0 {
                x = b.conv(&format!("{module}.0"), x, [width(level - 1), width(level)], [cube, halved]);
            }
            for i in 0..blocks {
                x = b.block(&format!("{module}.{}", i + 1), x, width(level), cube);
            }
            skips.push(x);
        }
        for (i, level) in (0..self.blocks_up.len()).rev().enumerate() {
            let (module, c) = (format!("up_samples.{i}"), width(level));
            x = b.conv(&format!("{module}.0"), x, [width(level + 1), c], [[1; 3]; 2]);
            x = match self.upsampling {
                SegResNetUpsampling::Linear => b.resized(format!("{module}.1"), x, halved),
                SegResNetUpsampling::Deconv => b.l.expand(&format!("{module}.1.deconv"), x, [c; 2], 2),
            };
            x = b.l.add(module, x, skips[level]);
            for k in 0..self.blocks_up[i] {
                x = b.block(&format!("up_layers.{i}.{k}"), x, c, cube);
            }
        }
        x = b.norm.add(&mut b.l, "conv_final.0", x, width(0));
        x = b.activated("conv_final.1", x);
        b.l.conv("conv_final.2.conv", x, [width(0), self.classes], 1, 1, true);
        let stride = b.l.cube(1 << self.blocks_up.len());
        // the activation of the last layer is listed there, too, and holds nothing
        Ok(Built { dims: self.dims, ..Built::new(b.l.graph, stride) })
    }
}

impl SegResNetDsConfig {
    /// By how much each level is finer than the next along \[D,\] H, W (`scales_for_resolution`).
    fn scales(&self) -> Result<Vec<Vec<u32>>, String> {
        let (dims, levels) = (self.dims as usize, self.blocks_down.len());
        if self.resolution.is_empty() {
            return Ok(vec![vec![2; dims]; levels]);
        }
        let positive = |mm: &f64| mm.is_finite() && *mm > 0.0;
        if self.resolution.len() != dims || !self.resolution.iter().all(positive) {
            return Err(format!("resolution is {:?}, must be {dims} positive numbers", self.resolution));
        }
        let coarsest = self.resolution.iter().copied().fold(0.0, f64::max);
        let halvings: Vec<f64> = self.resolution.iter().map(|mm| (coarsest / mm).log2().floor()).collect();
        let most = halvings.iter().copied().fold(0.0, f64::max);
        let scale = |level: usize| {
            let level = f64::from(u32::try_from(level).unwrap_or(u32::MAX));
            let even = level >= most;
            halvings.iter().map(|&n| if even || level < n { 2 } else { 1 }).collect()
        };
        Ok((0..levels).map(scale).collect())
    }
}

impl Architecture for SegResNetDsConfig {
    const NAME: &'static str = "seg_res_net_ds";

    fn build(&self) -> Result<Built, String> {
        let channels = [self.in_channels, self.classes, self.init_filters];
        let blocks = [&self.blocks_down[..], &self.blocks_up];
        check(self.dims, channels, blocks, self.norm, (self.activation, self.slope))?;
        let scales = self.scales()?;
        let scale = |level: usize| along(&scales[level]);
        // an axis that is not halved has no kernel; of a plane's network D never has
        let kernel = |level: usize| scale(level).map(|s| if s > 1 { 3 } else { 1 });
        let l = Layers::new(self.dims, self.in_channels);
        let mut b = Builder { l, norm: self.norm, activation: self.activation, slope: self.slope, inner: "" };
        let width = |level: usize| self.init_filters << level;
        let input = b.l.input;
        let mut x = b.conv("encoder.conv_init", input, [self.in_channels, width(0)], [kernel(0), [1; 3]]);
        let (mut skips, last) = (Vec::new(), self.blocks_up.len());
        for (level, &blocks) in self.blocks_down.iter().enumerate() {
            let module = format!("encoder.layers.{level}");
            for i in 0..blocks {
                x = b.block(&format!("{module}.blocks.{i}"), x, width(level), kernel(level));
            }
            skips.push(x);
            if level < last {
                let c = [width(level), width(level + 1)];
                x = b.conv(&format!("{module}.downsample"), x, c, [kernel(level), scale(level)]);
            }
        }
        for (i, level) in (0..last).rev().enumerate() {
            let (module, c) = (format!("up_layers.{i}"), [width(level + 1), width(level)]);
            let (kernel, stride) = (kernel(level), scale(level));
            x = match self.upsampling {
                SegResNetUpsampling::Linear => {
                    x = b.conv(&format!("{module}.upsample.preconv"), x, c, [[1; 3]; 2]);
                    b.resized(format!("{module}.upsample"), x, stride)
                }
                SegResNetUpsampling::Deconv => {
                    let (padding, output_padding) = (kernel.map(|k| k / 2), stride.map(|s| s - 1));
                    let shape = ConvTranspose { kernel, stride, padding, output_padding, bias: false, ..ConvTranspose::default() };
                    b.l.transposed(&format!("{module}.upsample.deconv"), x, c, shape)
                }
            };
            x = b.l.add(module.clone(), x, skips[level]);
            for k in 0..self.blocks_up[i] {
                x = b.block(&format!("{module}.blocks.{k}"), x, c[1], kernel);
            }
        }
        let head = |i: usize| format!("up_layers.{i}.head");
        let finest = last.saturating_sub(1);
        b.l.conv(&head(finest), x, [width(0), self.classes], 1, 1, true);
        let dead = (0..finest).map(|i| format!("{}.", head(i))).collect();
        let tolerance = Tolerance { dead, ..Tolerance::default() };
        Ok(Built { dims: self.dims, tolerance, ..Built::new(b.l.graph, multiple(&scales[..last])) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{published, refused};
    use crate::{Extent, Model};

    const SMALL: &str = r#""dims":3,"in_channels":1,"classes":2,"init_filters":4,"blocks_down":[1,1],"blocks_up":[1],
        "norm":{"group":2},"upsampling":"linear""#;

    #[test]
    fn the_published_configurations() {
        // measured on the reference: 4,702,227, 18,799,401 and, without heads of training,
        // 87,163,694 parameters
        let zoo = r#""dims":3,"blocks_down":[1,2,2,4],"blocks_up":[1,1,1],"norm":{"group":8},"upsampling":"linear""#;
        let brats = format!(r#"{zoo},"in_channels":4,"classes":3,"init_filters":16"#);
        published("seg_res_net", &brats, Extent::new(240, 240, 160), 4.70, 1300.9, [2_600_000_000, 1_300_000_000]);
        let body = format!(r#"{zoo},"in_channels":1,"classes":105,"init_filters":32"#);
        published("seg_res_net", &body, Extent::new(96, 96, 96), 18.80, 494.4, [900_000_000, 450_000_000]);
        let auto = r#""dims":3,"in_channels":1,"classes":14,"init_filters":32,"blocks_down":[1,2,2,4,4],"blocks_up":[1,1,1,1],
            "norm":"instance","upsampling":"deconv""#;
        published("seg_res_net_ds", auto, Extent::new(224, 224, 144), 87.16, 4490.9, [6_000_000_000, 3_000_000_000]);
    }

    #[test]
    fn coarse_axes_wait_for_fine_ones() {
        let stride = |resolution: &str| {
            let config = SMALL.replace("[1,1]", "[1,1,1,1]").replace("[1],", "[1,1,1],");
            let card = format!(r#"{{"architecture":"seg_res_net_ds","config":{{{config},"resolution":{resolution}}}}}"#);
            Model::random(&card, 1).unwrap_or_else(|e| panic!("{resolution}: {e}")).stride()
        };
        assert_eq!([stride("[]"), stride("[1,1,1]"), stride("[5,1,1]"), stride("[1,2.1,9]")], [[8; 3], [8; 3], [2, 8, 8], [8, 4, 1]]);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (from, to, word) in [
            (r#""dims":3"#, r#""dims":1"#, "dims"),
            (r#""in_channels":1"#, r#""in_channels":0"#, "in_channels"),
            (r#""classes":2"#, r#""classes":0"#, "classes"),
            (r#""init_filters":4"#, r#""init_filters":65536"#, "init_filters"),
            ("[1,1]", "[]", "blocks_down"),
            ("[1,1]", "[1,0]", "blocks_down"),
            ("[1],", "[1,1],", "blocks_up"),
            (r#"{"group":2}"#, r#"{"group":3}"#, "3 groups"),
            (r#"{"group":2}"#, r#"{"group":0}"#, "0 groups"),
            (r#"{"group":2}"#, r#""layer""#, "layer"),
            (r#""linear""#, r#""pixelshuffle""#, "pixelshuffle"),
            (r#""dims":3"#, r#""dims":3,"activation":"prelu""#, "activation"),
        ] {
            refused("seg_res_net", &SMALL.replacen(from, to, 1), word);
            refused("seg_res_net_ds", &SMALL.replacen(from, to, 1), word);
        }
        refused("seg_res_net_ds", &format!(r#"{SMALL},"resolution":[1,1]"#), "resolution");
        refused("seg_res_net_ds", &format!(r#"{SMALL},"resolution":[1,1,0]"#), "resolution");
    }
}
