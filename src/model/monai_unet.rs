//! The architecture `monai_unet`: MONAI's U-Net, whose levels may be residual units.
//!
//! Source: Kerfoot et al., "Left-Ventricle Quantification Using Residual U-Net" (STACOM 2018), as `UNet` of MONAI 1.6.1 computes it;
//! node names are that module's paths.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::layers::{Layers, MOST_CHANNELS, check_channels, check_dims};
use super::monai_parts::{MonaiActivation, SLOPE};
use super::plain_conv_unet::{MOST, PlainConvNorm, along, multiple, yes};
use crate::graph::{ConvTranspose, NodeId};
use crate::scan::is_default;

/// Which of norm and activation is first; MONAI's dropout between them has no effect here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum AdnOrdering {
    /// The norm.
    #[default]
    #[serde(rename = "NDA", alias = "NA", alias = "NAD", alias = "DNA")]
    NormFirst,
    /// The activation.
    #[serde(rename = "ADN", alias = "AN", alias = "AND", alias = "DAN")]
    ActivationFirst,
}

/// Arguments of MONAI's U-Net, as in the card. Extents are multiples of all strides together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonaiUnetConfig {
    /// 2 (each plane is an image with statistics of its own) or 3.
    pub dims: u32,
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of each level, of which there are at least two.
    pub channels: Vec<u32>,
    /// Stride of each level but the last along \[D,\] H, W; the first level has one as well.
    pub strides: Vec<Vec<u32>>,
    /// Voxels of a kernel along every axis, odd.
    #[serde(default = "three")]
    pub kernel: u32,
    /// Those of the transposed convolutions.
    #[serde(default = "three")]
    pub up_kernel: u32,
    /// Convolutions of the residual units on the way down; 0: a convolution without residual, on the way up as well.
    #[serde(default)]
    pub residual_units: u32,
    /// What normalises.
    #[serde(default = "without_parameters", deserialize_with = "PlainConvNorm::or_none")]
    pub norm: PlainConvNorm,
    /// What follows.
    #[serde(default, deserialize_with = "MonaiActivation::or_none")]
    pub activation: MonaiActivation,
    /// Which of both is first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub adn_ordering: AdnOrdering,
    /// Whether convolutions have a bias.
    #[serde(default = "yes")]
    pub bias: bool,
}

fn three() -> u32 {
    3
}

fn without_parameters() -> PlainConvNorm {
    PlainConvNorm::InstancePlain
}

impl Architecture for MonaiUnetConfig {
    const NAME: &'static str = "monai_unet";

    fn build(&self) -> Result<Built, String> {
        self.check()?;
        let mut b = Builder { l: Layers::new(self.dims, self.in_channels), config: self };
        let (levels, mut x, mut width) = (self.strides.len(), b.l.input, self.in_channels);
        let module = |level: usize| format!("model{}", ".1.submodule".repeat(level));
        let mut skips = Vec::new();
        for level in 0..levels {
            x = b.down(&format!("{}.0", module(level)), x, [width, self.channels[level]], along(&self.strides[level]));
            width = self.channels[level];
            skips.push(x);
        }
        x = b.down(&module(levels), x, [width, self.channels[levels]], [1; 3]);
        width = self.channels[levels];
        for level in (0..levels).rev() {
            x = b.l.concat(format!("{}.1", module(level)), skips[level], x);
            let c = [self.channels[level] + width, if level == 0 { self.classes } else { self.channels[level - 1] }];
            x = b.up(&format!("{}.2", module(level)), x, c, along(&self.strides[level]), level == 0);
            width = c[1];
        }
        Ok(Built { dims: self.dims, ..Built::new(b.l.graph, multiple(&self.strides)) })
    }
}

impl MonaiUnetConfig {
    fn check(&self) -> Result<(), String> {
        check_dims(self.dims)?;
        check_channels("in_channels", self.in_channels, MOST_CHANNELS)?;
        check_channels("classes", self.classes, MOST_CHANNELS)?;
        let levels = self.channels.len();
        if !(2..=MOST as usize).contains(&levels) || !self.channels.iter().all(|c| (1..=MOST_CHANNELS).contains(c)) {
            return Err(format!("channels is {:?}, must be 2 to {MOST} numbers of 1 to {MOST_CHANNELS}", self.channels));
        }
        let fits = |s: &Vec<u32>| s.len() == self.dims as usize && s.iter().all(|n| (1..=MOST).contains(n));
        if self.strides.len() != levels - 1 || !self.strides.iter().all(fits) {
            let text = "must be as many numbers of 1 to 32 as dims for each level but the last";
            return Err(format!("strides is {:?}, {text}", self.strides));
        }
        for (name, kernel) in [("kernel", self.kernel), ("up_kernel", self.up_kernel)] {
            if kernel > MOST || kernel.is_multiple_of(2) {
                return Err(format!("{name} is {kernel}, must be odd and at most {MOST}"));
            }
        }
        if self.residual_units > MOST {
            return Err(format!("residual_units is {}, must be at most {MOST}", self.residual_units));
        }
        Ok(())
    }
}

struct Builder<'a> {
    l: Layers,
    config: &'a MonaiUnetConfig,
}

impl Builder<'_> {
    /// Norm and activation.
    fn normed(&mut self, module: &str, x: NodeId, channels: u32) -> NodeId {
        let (norm, act) = (format!("{module}.adn.N"), format!("{module}.adn.A"));
        match self.config.adn_ordering {
            AdnOrdering::NormFirst => {
                let y = self.config.norm.add(&mut self.l, &norm, x, channels);
                self.activated(module, act, y)
            }
            AdnOrdering::ActivationFirst => {
                let y = self.activated(&act, act.clone(), x);
                self.config.norm.add(&mut self.l, &norm, y, channels)
            }
        }
    }

    /// The activation under a node's name, with the slope of `slopes` if it has one.
    fn activated(&mut self, name: &str, slopes: String, x: NodeId) -> NodeId {
        self.config.activation.add(&mut self.l, name, slopes, x, SLOPE)
    }

    fn conv(&mut self, module: &str, x: NodeId, c: [u32; 2], kernel: u32, stride: [u32; 3]) -> NodeId {
        let kernel = self.l.cube(kernel);
        self.l.conv_along(module, x, c, [kernel, stride], self.config.bias)
    }

    fn down(&mut self, module: &str, x: NodeId, c: [u32; 2], stride: [u32; 3]) -> NodeId {
        match self.config.residual_units {
            0 => {
                let y = self.conv(&format!("{module}.conv"), x, c, self.config.kernel, stride);
                self.normed(module, y, c[1])
            }
            units => self.unit(module, x, c, stride, units, false),
        }
    }

    /// A residual unit of so many convolutions; the last may lack norm and activation. Nothing follows the sum.
    fn unit(&mut self, module: &str, x: NodeId, c: [u32; 2], stride: [u32; 3], convs: u32, bare: bool) -> NodeId {
        let (mut y, mut width, mut step) = (x, c[0], stride);
        for i in 0..convs {
            let unit = format!("{module}.conv.unit{i}");
            y = self.conv(&format!("{unit}.conv"), y, [width, c[1]], self.config.kernel, step);
            if !(bare && i + 1 == convs) {
                y = self.normed(&unit, y, c[1]);
            }
            (width, step) = (c[1], [1; 3]);
        }
        let past = if stride != [1; 3] {
            self.conv(&format!("{module}.residual"), x, c, self.config.kernel, stride)
        } else if c[0] != c[1] {
            self.conv(&format!("{module}.residual"), x, c, 1, stride)
        } else {
            x
        };
        self.l.add(module, y, past)
    }

    fn up(&mut self, module: &str, x: NodeId, c: [u32; 2], stride: [u32; 3], top: bool) -> NodeId {
        let kernel = self.l.cube(self.config.up_kernel);
        let shape = ConvTranspose {
            kernel,
            stride,
            padding: kernel.map(|k| (k - 1) / 2),
            output_padding: stride.map(|s| s - 1),
            bias: self.config.bias,
            ..ConvTranspose::default()
        };
        let plain = self.config.residual_units == 0;
        let conv = if plain { module.to_owned() } else { format!("{module}.0") };
        let y = self.l.transposed(&format!("{conv}.conv"), x, c, shape);
        if plain && top {
            return y;
        }
        let y = self.normed(&conv, y, c[1]);
        if plain { y } else { self.unit(&format!("{module}.1"), y, [c[1]; 2], [1; 3], 1, top) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::refused;
    use crate::{DeviceCaps, Extent, Model, Plan, PlanOptions};

    #[test]
    fn what_is_no_network_is_refused() {
        let config = r#""dims":3,"in_channels":1,"classes":2,"channels":[4,6,8],"strides":[[2,2,2],[1,2,2]]"#;
        for (from, to, word) in [
            (r#""dims":3"#, r#""dims":4"#, "dims"),
            (r#""in_channels":1"#, r#""in_channels":0"#, "in_channels"),
            (r#""classes":2"#, r#""classes":70000"#, "classes"),
            ("[4,6,8]", "[4]", "channels"),
            ("[4,6,8]", "[4,0,8]", "channels"),
            ("[1,2,2]]", "[1,2]]", "strides"),
            (",[1,2,2]", "", "strides"),
            ("[1,2,2]", "[0,2,2]", "strides"),
            (r#""dims":3"#, r#""dims":3,"kernel":2"#, "kernel"),
            (r#""dims":3"#, r#""dims":3,"up_kernel":33"#, "up_kernel"),
            (r#""dims":3"#, r#""dims":3,"residual_units":33"#, "residual_units"),
            (r#""dims":3"#, r#""dims":3,"norm":"group""#, "group"),
            (r#""dims":3"#, r#""dims":3,"adn_ordering":"N""#, "unknown variant `N`"),
        ] {
            refused("monai_unet", &config.replacen(from, to, 1), word);
        }
    }

    #[test]
    fn null_is_none() {
        let network = |more: &str| {
            let card = format!(
                r#"{{"architecture":"monai_unet","config":{{"dims":3,"in_channels":1,"classes":2,"channels":[4,6],"strides":[[2,2,2]]{more}}}}}"#
            );
            let model = Model::random(&card, 1).unwrap_or_else(|e| panic!("{more}: {e}"));
            (model.whole_graph().nodes().len(), model.card().config["norm"].clone(), model.card().config["activation"].clone())
        };
        let (whole, ..) = network("");
        for (more, norm, activation, fewer) in [
            (r#","norm":null"#, "none", "prelu", 2),
            (r#","activation":null"#, "instance_plain", "none", 2),
            (r#","norm":null,"activation":null"#, "none", "none", 4),
            (r#","norm":"none""#, "none", "prelu", 2),
        ] {
            let (nodes, told, act) = network(more);
            assert_eq!((nodes, told, act), (whole - fewer, norm.into(), activation.into()), "{more}");
        }
    }

    #[test]
    fn the_activation_may_be_before_the_norm() {
        let card = r#"{"architecture":"monai_unet","config":{"dims":3,"in_channels":1,"classes":2,"channels":[4,6],
            "strides":[[2,2,2]],"norm":"batch","activation":"relu","adn_ordering":"AND"}}"#;
        let model = Model::random(card, 1).expect("it is one");
        let names: Vec<&str> = model.whole_graph().nodes().iter().map(|node| node.name.as_str()).collect();
        let at = |name: &str| names.iter().position(|n| *n == name);
        assert!(at("model.0.adn.A") < at("model.0.adn.N") && at("model.0.adn.A").is_some(), "{names:?}");
        assert_eq!(model.card().config["adn_ordering"], "ADN");
    }

    #[test]
    fn the_spleen_bundle_of_the_zoo() {
        // measured on the reference: 4,808,917 parameters
        let card = r#"{"architecture":"monai_unet","config":{"dims":3,"in_channels":1,"classes":2,"channels":[16,32,64,128,256],
            "strides":[[2,2,2],[2,2,2],[2,2,2],[2,2,2]],"residual_units":2,"norm":"batch"}}"#;
        let model = Model::random(card, 1).expect("it is one");
        assert_eq!((model.weights().parameters(), model.stride()), (4_808_917, [16; 3]));
        assert!(Plan::new(&model, Extent::new(96, 96, 96), &DeviceCaps::host(), &PlanOptions::default()).is_ok());
    }
}
