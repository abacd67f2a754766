//! The architecture `unet2d`: the U-Net of two dimensions, with padded convolutions and batch norm.
//!
//! Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation" (MICCAI 2015), as milesial/Pytorch-UNet
//! (commit 21d7850) computes it; node names are that module's paths.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::layers::{Layers, MOST_CHANNELS, check_channels};
use crate::graph::{Fit, NodeId, Op};
use crate::kernels::Activation;

/// Levels below the first.
const DEPTH: u32 = 4;

/// Arguments of the 2D U-Net, as in the card. Every plane of a volume is an image; it may have any extent from 16x16 on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Unet2dConfig {
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of the first level; each of the four below has twice as many, up to 65536.
    pub base: u32,
    /// Upsampling is bilinear with corners aligned, and the deepest level half as wide, in place of transposed convolutions.
    pub bilinear: bool,
}

impl Default for Unet2dConfig {
    fn default() -> Self {
        Self { in_channels: 1, classes: 9, base: 64, bilinear: false }
    }
}

impl Architecture for Unet2dConfig {
    const NAME: &'static str = "unet2d";

    fn build(&self) -> Result<Built, String> {
        check_channels("in_channels", self.in_channels, MOST_CHANNELS)?;
        check_channels("classes", self.classes, MOST_CHANNELS)?;
        check_channels("base", self.base, MOST_CHANNELS >> DEPTH)?;
        let mut l = Layers::new(2, self.in_channels);
        let input = l.input;
        let mut x = double_conv(&mut l, "inc", input, [self.in_channels, self.base, self.base]);
        let mut width = self.base;
        let mut skips = Vec::new();
        for level in 1..=DEPTH {
            skips.push(x);
            let module = format!("down{level}.maxpool_conv");
            x = l.max_pool(format!("{module}.0"), x);
            let out = (self.base << level) >> u32::from(self.bilinear && level == DEPTH);
            x = double_conv(&mut l, &format!("{module}.1"), x, [width, out, out]);
            width = out;
        }
        for (level, &skip) in (0..DEPTH).zip(&skips).rev() {
            let module = format!("up{}", DEPTH - level);
            let features = self.base << level;
            let up = format!("{module}.up");
            let y = if self.bilinear { l.graph.add(up, Op::upsample([1, 2, 2]), &[x]) } else { l.expand(&up, x, [width, features], 2) };
            // pooling floors: an odd row or column of the skip has zeros, not the bias, as its counterpart
            let y = l.graph.add(format!("{module}.pad"), Op::Fit(Fit { over: l.cube(1 << level), repeats: false }), &[y]);
            let y = l.concat(format!("{module}.concat"), skip, y);
            // the bilinear variant is as wide as what comes next
            let [middle, out] = if self.bilinear { [features, features >> u32::from(level > 0)] } else { [features; 2] };
            x = double_conv(&mut l, &format!("{module}.conv"), y, [2 * features, middle, out]);
            width = out;
        }
        l.conv("outc.conv", x, [width, self.classes], 1, 1, true);
        // what is left of it after the poolings is one voxel
        let least = [1, 1 << DEPTH, 1 << DEPTH];
        Ok(Built { dims: 2, least, ..Built::new(l.graph, [1; 3]) })
    }
}

/// Twice convolution, batch norm and ReLU.
fn double_conv(l: &mut Layers, module: &str, mut x: NodeId, [cin, middle, cout]: [u32; 3]) -> NodeId {
    for (i, c) in [(0, [cin, middle]), (3, [middle, cout])] {
        x = l.conv(&format!("{module}.double_conv.{i}"), x, c, 3, 1, false);
        x = l.batch_norm(&format!("{module}.double_conv.{}", i + 1), x, c[1]);
        x = l.activation(format!("{module}.double_conv.{}", i + 2), x, Activation::Relu);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::super::testing::{published, refused};
    use super::*;
    use crate::{DeviceCaps, Extent, Model, Plan, PlanOptions};

    #[test]
    fn the_published_configurations() {
        published("unet2d", "", Extent::new(1, 224, 224), 31.04, 73.7, [172_000_000, 90_000_000]);
        published("unet2d", r#""bilinear":true"#, Extent::new(1, 224, 224), 17.26, 61.2, [117_000_000, 63_000_000]);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (config, word) in [
            (r#""in_channels":0"#, "in_channels"),
            (r#""classes":65537"#, "classes"),
            (r#""base":0"#, "base"),
            (r#""base":4097"#, "base"),
            (r#""base":4294967295"#, "base"),
            (r#""dims":3"#, "dims"),
            (r#""bilinear":1"#, "bool"),
        ] {
            refused("unet2d", config, word);
        }
    }

    #[test]
    fn any_extent_that_survives_four_poolings() {
        for bilinear in [false, true] {
            let card = format!(r#"{{"architecture":"unet2d","config":{{"base":2,"bilinear":{bilinear}}}}}"#);
            let model = Model::random(&card, 1).expect("it is one");
            assert_eq!((model.stride(), model.card().least(), model.card().dims()), ([1; 3], [1, 16, 16], 2));
            let plan = |h, w| Plan::new(&model, Extent::new(3, h, w), &DeviceCaps::host(), &PlanOptions::default());
            let pads = |h, w| {
                let plan = plan(h, w).expect("there is a plan");
                plan.graph().nodes().iter().filter(|n| matches!(n.op, Op::Shift(_))).map(|n| n.name.clone()).collect::<Vec<_>>()
            };
            assert!(pads(32, 48).is_empty(), "what fits is not moved");
            assert_eq!(pads(16, 17), ["up4.pad"]);
            assert_eq!(pads(31, 31), ["up1.pad", "up2.pad", "up3.pad", "up4.pad"]);
            let e = plan(32, 15).expect_err("nothing is left of 15 columns");
            assert!(e.to_string().contains("32x15"), "{e}");
        }
    }
}
