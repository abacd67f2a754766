//! The architectures `attention_unet2d` and `attention_unet`: U-Nets whose skips pass additive attention gates.
//!
//! Source: Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas" (arXiv 1804.03999), as `AttU_Net` of
//! LeeJunHyun/Image_Segmentation (commit 5e9da93) and `AttentionUnet` of MONAI 1.6.1 compute it, both with the gating signal at the
//! skip's own resolution; node names are those modules' paths.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::layers::{Layers, MOST_CHANNELS, check_channels, check_dims};
use crate::graph::{Combine, NodeId, Op, Resize, Size};
use crate::kernels::{Activation, Interpolation, Spread};

/// Levels of `attention_unet2d`.
const LEVELS: u32 = 5;

/// Most levels of `attention_unet`, and the largest stride.
const MOST: u32 = 32;

/// Arguments of the 2D attention U-Net, as in the card. Every plane of a volume is an image, of extents that 16 divides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttentionUnet2dConfig {
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of the first level; each of the four below has twice as many, up to 65536. Even: gates are half as wide.
    pub base: u32,
}

impl Default for AttentionUnet2dConfig {
    fn default() -> Self {
        Self { in_channels: 1, classes: 9, base: 64 }
    }
}

impl Architecture for AttentionUnet2dConfig {
    const NAME: &'static str = "attention_unet2d";

    fn build(&self) -> Result<Built, String> {
        check_channels("in_channels", self.in_channels, MOST_CHANNELS)?;
        check_channels("classes", self.classes, MOST_CHANNELS)?;
        check_channels("base", self.base, MOST_CHANNELS >> (LEVELS - 1))?;
        if !self.base.is_multiple_of(2) {
            return Err(format!("base is {}, must be even", self.base));
        }
        let mut l = Layers::new(2, self.in_channels);
        let (mut x, mut width) = (l.input, self.in_channels);
        let mut levels = Vec::new();
        for level in 0..LEVELS {
            if level > 0 {
                x = l.max_pool(format!("Maxpool.{level}"), x);
            }
            x = unit(&mut l, &format!("Conv{}.conv", level + 1), 0, x, [width, self.base << level]);
            x = unit(&mut l, &format!("Conv{}.conv", level + 1), 3, x, [self.base << level; 2]);
            width = self.base << level;
            levels.push(x);
        }
        for level in (0..LEVELS - 1).rev() {
            let (n, c) = (level + 2, self.base << level);
            let nearest = Resize { size: Size::Times([1, 2, 2]), mode: Interpolation::Nearest };
            x = l.graph.add(format!("Up{n}.up.0"), Op::Resize(nearest), &[x]);
            let up = unit(&mut l, &format!("Up{n}.up"), 1, x, [2 * c, c]);
            let skip = gate(&mut l, &format!("Att{n}"), "", [up, levels[level as usize]], c);
            x = l.concat(format!("Up_conv{n}.concat"), skip, up);
            x = unit(&mut l, &format!("Up_conv{n}.conv"), 0, x, [2 * c, c]);
            x = unit(&mut l, &format!("Up_conv{n}.conv"), 3, x, [c; 2]);
        }
        l.conv("Conv_1x1", x, [self.base, self.classes], 1, 1, true);
        let stride = 1 << (LEVELS - 1);
        Ok(Built { dims: 2, ..Built::new(l.graph, [1, stride, stride]) })
    }
}

/// Convolution, batch norm and ReLU as entries `i` and following of a sequence.
fn unit(l: &mut Layers, sequence: &str, i: u32, x: NodeId, c: [u32; 2]) -> NodeId {
    let y = l.conv(&format!("{sequence}.{i}"), x, c, 3, 1, true);
    let y = l.batch_norm(&format!("{sequence}.{}", i + 1), y, c[1]);
    l.activation(format!("{sequence}.{}", i + 2), y, Activation::Relu)
}

/// A skip of `c` channels times what one channel of it and of the gating signal says of each voxel; `conv` is what the path of a
/// convolution ends with.
fn gate(l: &mut Layers, module: &str, conv: &str, [signal, skip]: [NodeId; 2], c: u32) -> NodeId {
    let normed = |l: &mut Layers, part: &str, x, c: [u32; 2]| {
        let y = l.conv(&format!("{module}.{part}.0{conv}"), x, c, 1, 1, true);
        l.batch_norm(&format!("{module}.{part}.1"), y, c[1])
    };
    let g = normed(l, "W_g", signal, [c, c / 2]);
    let x = normed(l, "W_x", skip, [c, c / 2]);
    let y = l.graph.add(format!("{module}.add"), Op::Add(Combine::default()), &[g, x]);
    let y = l.activation(format!("{module}.relu"), y, Activation::Relu);
    let y = normed(l, "psi", y, [c / 2, 1]);
    let y = l.activation(format!("{module}.psi"), y, Activation::Sigmoid);
    l.graph.add(module, Op::Multiply(Combine { spread: Spread::Channels, ..Combine::default() }), &[skip, y])
}

/// Arguments of MONAI's attention U-Net, as in the card; the defaults are a published size in three dimensions. Extents are
/// multiples of all strides together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttentionUnetConfig {
    /// 2 (each plane is an image with statistics of its own) or 3.
    pub dims: u32,
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of each level, of which there are at least two; 2 to 65536, as gates are half as wide.
    pub channels: Vec<u32>,
    /// Stride of each level below the first, along every axis.
    pub strides: Vec<u32>,
}

impl Default for AttentionUnetConfig {
    fn default() -> Self {
        Self { dims: 3, in_channels: 1, classes: 14, channels: vec![16, 32, 64, 128, 256], strides: vec![2; 4] }
    }
}

impl Architecture for AttentionUnetConfig {
    const NAME: &'static str = "attention_unet";

    fn build(&self) -> Result<Built, String> {
        self.check()?;
        let mut l = Layers::new(self.dims, self.in_channels);
        let input = l.input;
        let mut x = block(&mut l, "model.0", input, [self.in_channels, self.channels[0]], 1);
        let last = self.strides.len() - 1;
        let modules: Vec<String> = (0..=last).map(|level| format!("model.1{}", ".submodule.1".repeat(level))).collect();
        let mut skips = Vec::new();
        for (level, module) in modules.iter().enumerate() {
            skips.push(x);
            // the deepest level holds its block alone, the others a sequence of it and the level below
            let module = format!("{module}.submodule{}", if level == last { "" } else { ".0" });
            x = block(&mut l, &module, x, [self.channels[level], self.channels[level + 1]], self.strides[level]);
        }
        for (level, module) in modules.iter().enumerate().rev() {
            let c = self.channels[level];
            let up = format!("{module}.upconv.up");
            // MONAI's same padding with an output padding of stride - 1: the extent times the stride
            let y = l.overlapping(&format!("{up}.conv"), x, [self.channels[level + 1], c], 3, self.strides[level]);
            let y = l.batch_norm(&format!("{up}.adn.N"), y, c);
            let up = l.activation(up, y, Activation::Relu);
            let skip = gate(&mut l, &format!("{module}.attention"), ".conv", [up, skips[level]], c);
            let y = l.concat(format!("{module}.concat"), skip, up);
            // MONAI gives this convolution no arguments: its defaults are instance norm without parameters and PReLU of one slope
            let merge = format!("{module}.merge");
            let y = l.conv(&format!("{merge}.conv"), y, [2 * c, c], 3, 1, true);
            let y = l.instance_norm(format!("{merge}.adn.N"), None, y, c);
            x = l.graph.add(merge.clone(), Op::PRelu { module: format!("{merge}.adn.A"), channels: 1 }, &[y]);
        }
        l.conv("model.2.conv", x, [self.channels[0], self.classes], 1, 1, true);
        let stride = l.cube(self.strides.iter().fold(1u32, |all, &n| all.saturating_mul(n)));
        Ok(Built { dims: self.dims, ..Built::new(l.graph, stride) })
    }
}

impl AttentionUnetConfig {
    fn check(&self) -> Result<(), String> {
        check_dims(self.dims)?;
        check_channels("in_channels", self.in_channels, MOST_CHANNELS)?;
        check_channels("classes", self.classes, MOST_CHANNELS)?;
        let levels = self.channels.len();
        if !(2..=MOST as usize).contains(&levels) || !self.channels.iter().all(|c| (2..=MOST_CHANNELS).contains(c)) {
            return Err(format!("channels is {:?}, must be 2 to {MOST} numbers of 2 to {MOST_CHANNELS}", self.channels));
        }
        if self.strides.len() != levels - 1 || !self.strides.iter().all(|s| (1..=MOST).contains(s)) {
            return Err(format!("strides is {:?}, must be {} numbers of 1 to {MOST}, one fewer than channels", self.strides, levels - 1));
        }
        Ok(())
    }
}

/// Twice convolution, batch norm and ReLU; the first with the stride.
fn block(l: &mut Layers, module: &str, mut x: NodeId, [cin, cout]: [u32; 2], stride: u32) -> NodeId {
    for (i, c, stride) in [(0, [cin, cout], stride), (1, [cout; 2], 1)] {
        let unit = format!("{module}.conv.{i}");
        x = l.conv(&format!("{unit}.conv"), x, c, 3, stride, true);
        x = l.batch_norm(&format!("{unit}.adn.N"), x, cout);
        x = l.activation(unit, x, Activation::Relu);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::super::testing::{published, refused};
    use super::*;
    use crate::graph::Norm;
    use crate::{DeviceCaps, Extent, Model, Plan, PlanOptions};

    #[test]
    fn the_published_configurations() {
        published("attention_unet2d", "", Extent::new(1, 224, 224), 34.88, 101.7, [197_000_000, 103_000_000]);
        published("attention_unet", "", Extent::new(96, 96, 96), 5.91, 83.1, [246_000_000, 126_000_000]);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (config, word) in [
            (r#""in_channels":0"#, "in_channels"),
            (r#""classes":0"#, "classes"),
            (r#""base":7"#, "even"),
            (r#""base":8192"#, "base"),
            (r#""bilinear":true"#, "bilinear"),
        ] {
            refused("attention_unet2d", config, word);
        }
        for (config, word) in [
            (r#""dims":1"#, "dims"),
            (r#""in_channels":0"#, "in_channels"),
            (r#""classes":70000"#, "classes"),
            (r#""channels":[8],"strides":[]"#, "channels"),
            (r#""channels":[8,1],"strides":[2]"#, "channels"),
            (r#""channels":[8,16],"strides":[2,2]"#, "strides"),
            (r#""channels":[8,16],"strides":[0]"#, "strides"),
            (r#""channels":[8,16],"strides":[33]"#, "strides"),
            (r#""kernel_size":5"#, "kernel_size"),
        ] {
            refused("attention_unet", config, word);
        }
    }

    #[test]
    fn extents_are_multiples_of_all_strides() {
        let card = |config: &str| format!(r#"{{"architecture":"attention_unet","config":{config}}}"#);
        let model = Model::random(&card(r#"{"dims":2,"channels":[4,6,8],"strides":[3,2]}"#), 1).expect("it is one");
        assert_eq!((model.stride(), model.card().dims()), ([1, 6, 6], 2));
        let plan = |extent| Plan::new(&model, extent, &DeviceCaps::host(), &PlanOptions::default());
        assert!(plan(Extent::new(5, 12, 18)).is_ok());
        assert!(plan(Extent::new(5, 12, 16)).expect_err("6 does not divide 16").to_string().contains("5x12x18"));
        // statistics of a plane are its own
        let planes = |n: &&crate::graph::Node| matches!(&n.op, Op::NormScale(Norm { per_plane: true, module: None, .. }));
        assert_eq!(model.graph().nodes().iter().filter(planes).count(), 2);
        let model = Model::random(r#"{"architecture":"attention_unet2d","config":{"base":2}}"#, 1).expect("it is one");
        assert_eq!((model.stride(), model.card().dims()), ([1, 16, 16], 2));
    }
}
