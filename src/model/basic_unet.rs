//! The architecture `basic_unet`: MONAI's U-Net of four poolings, in 2D and 3D.
//!
//! Source: Falk et al., "U-Net: Deep Learning for Cell Counting, Detection, and Morphometry"
//! (Nature Methods 16, 2019), as `BasicUNet` of MONAI 1.6.1 computes it; node names are that
//! module's paths.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::layers::{Layers, MOST_CHANNELS, check_channels, check_dims};
use super::monai_parts::{MonaiActivation, MonaiNorm};
use super::plain_conv_unet::yes;
use super::seg_res_net::{is_slope, slope};
use crate::graph::{Fit, NodeId, Op, Resize};

/// Poolings.
const POOLINGS: usize = 4;

/// The upsampling to twice the extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BasicUpsampling {
    /// By a transposed convolution: MONAI's `deconv`.
    #[default]
    Deconv,
    /// Linearly with aligned corners, after a pointwise convolution: MONAI's `nontrainable`.
    Linear,
}

/// Arguments of MONAI's `BasicUNet`, as in the card. It takes any extent from 16 voxels on: where a
/// pooling drops an odd voxel, the last is repeated on the way up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasicUnetConfig {
    /// 2 (each plane is an image with statistics of its own) or 3.
    pub dims: u32,
    /// Input channels.
    pub in_channels: u32,
    /// Classes, or labels that may overlap.
    pub classes: u32,
    /// Channels of the five levels, and those of the last convolutions on the way up.
    pub features: [u32; 6],
    /// The norm.
    pub norm: MonaiNorm,
    /// The activation after it.
    #[serde(deserialize_with = "MonaiActivation::or_none")]
    pub activation: MonaiActivation,
    /// The slope of a leaky ReLU.
    #[serde(default = "slope", skip_serializing_if = "is_slope")]
    pub slope: f32,
    /// Whether convolutions before norms have a bias.
    #[serde(default = "yes")]
    pub bias: bool,
    /// The upsampling to twice the extent.
    #[serde(default)]
    pub upsampling: BasicUpsampling,
}

impl Architecture for BasicUnetConfig {
    const NAME: &'static str = "basic_unet";

    fn build(&self) -> Result<Built, String> {
        self.check()?;
        let f = &self.features;
        let mut b = Builder { l: Layers::new(self.dims, self.in_channels), config: self };
        let input = b.l.input;
        let mut x = b.two("conv_0", input, [self.in_channels, f[0]]);
        let mut skips = vec![x];
        for level in 1..=POOLINGS {
            let module = format!("down_{level}");
            x = b.l.max_pool(format!("{module}.max_pooling"), x);
            x = b.two(&format!("{module}.convs"), x, [f[level - 1], f[level]]);
            skips.push(x);
        }
        let mut width = f[POOLINGS];
        for level in (1..=POOLINGS).rev() {
            let module = format!("upcat_{level}");
            let (up, skip) = (if level == 1 { width } else { width / 2 }, f[level - 1]);
            let out = if level == 1 { f[5] } else { skip };
            x = b.doubled(&format!("{module}.upsample"), x, [width, up]);
            // MONAI repeats the last voxel of an axis that was odd
            let fit = Fit { over: b.l.cube(1 << (level - 1)), repeats: true };
            x = b.l.graph.add(format!("{module}.padded"), Op::Fit(fit), &[x]);
            x = b.l.concat(format!("{module}.concat"), skips[level - 1], x);
            x = b.two(&format!("{module}.convs"), x, [skip + up, out]);
            width = out;
        }
        b.l.conv("final_conv", x, [width, self.classes], 1, 1, true);
        let least = b.l.cube(1 << POOLINGS);
        Ok(Built { dims: self.dims, least, ..Built::new(b.l.graph, [1; 3]) })
    }
}

impl BasicUnetConfig {
    fn check(&self) -> Result<(), String> {
        check_dims(self.dims)?;
        check_channels("in_channels", self.in_channels, MOST_CHANNELS)?;
        check_channels("classes", self.classes, MOST_CHANNELS)?;
        for &channels in &self.features {
            check_channels("features", channels, MOST_CHANNELS)?;
        }
        if self.features[2..=POOLINGS].iter().any(|&c| c < 2) {
            return Err(format!("features is {:?}; the third to the fifth must be 2 at least, as they are halved", self.features));
        }
        if !self.slope.is_finite() {
            return Err("slope must be finite".into());
        }
        self.norm.check(&self.features)
    }
}

struct Builder<'a> {
    l: Layers,
    config: &'a BasicUnetConfig,
}

impl Builder<'_> {
    /// Two convolutions, each with norm and activation.
    fn two(&mut self, module: &str, x: NodeId, c: [u32; 2]) -> NodeId {
        let y = self.unit(&format!("{module}.conv_0"), x, c);
        self.unit(&format!("{module}.conv_1"), y, [c[1]; 2])
    }

    fn unit(&mut self, module: &str, x: NodeId, c: [u32; 2]) -> NodeId {
        let config = self.config;
        let y = self.l.conv(&format!("{module}.conv"), x, c, 3, 1, config.bias);
        let y = config.norm.add(&mut self.l, &format!("{module}.adn.N"), y, c[1]);
        config.activation.add(&mut self.l, module, format!("{module}.adn.A"), y, config.slope)
    }

    fn doubled(&mut self, module: &str, x: NodeId, c: [u32; 2]) -> NodeId {
        match self.config.upsampling {
            BasicUpsampling::Deconv => self.l.expand(&format!("{module}.deconv"), x, c, 2),
            BasicUpsampling::Linear => {
                // without a change of width there is no convolution
                let y = if c[0] == c[1] { x } else { self.l.conv(&format!("{module}.preconv"), x, c, 1, 1, true) };
                let resize = Resize::aligned(self.l.cube(2));
                self.l.graph.add(module, Op::Resize(resize), &[y])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{published, refused};
    use crate::Extent;

    const CONFIG: &str = r#""dims":3,"in_channels":1,"classes":2,"features":[32,32,64,128,256,32],"norm":"instance",
        "activation":"leaky_relu","slope":0.1"#;

    #[test]
    fn the_published_network() {
        // measured on the reference: 5,749,410 parameters
        published("basic_unet", CONFIG, Extent::new(96, 96, 96), 5.75, 252.3, [650_000_000, 330_000_000]);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (from, to, word) in [
            (r#""dims":3"#, r#""dims":4"#, "dims"),
            (r#""in_channels":1"#, r#""in_channels":0"#, "in_channels"),
            (r#""classes":2"#, r#""classes":0"#, "classes"),
            ("[32,32,64,128,256,32]", "[32,32,64,128,256]", "config is not one"),
            ("[32,32,64,128,256,32]", "[0,32,64,128,256,32]", "features"),
            ("[32,32,64,128,256,32]", "[32,32,64,128,1,32]", "halved"),
            (r#""instance""#, r#"{"group":5}"#, "5 groups"),
            (r#""leaky_relu""#, r#""swish""#, "swish"),
            (r#""dims":3"#, r#""dims":3,"upsampling":"pixelshuffle""#, "pixelshuffle"),
        ] {
            refused("basic_unet", &CONFIG.replacen(from, to, 1), word);
        }
    }
}
