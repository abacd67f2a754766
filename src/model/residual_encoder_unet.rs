//! The architecture `residual_encoder_unet`: nnU-Net's U-Net with an encoder of residual blocks, in 2D and 3D.
//!
//! Source: Isensee et al., "nnU-Net Revisited" (MICCAI 2024), as `ResidualEncoderUNet` of MIC-DKFZ
//! dynamic-network-architectures 0.4.4 builds it of `BasicBlockD`; node names are that module's paths.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::plain_conv_unet::{Biases, Builder, DecoderKernels, MOST, PerStage, PlainConvNorm, Stages, UnetActivation, along, is_true, yes};
use crate::graph::{NodeId, Op};

/// Arguments of the network, as in the card. Extents are multiples of all strides together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidualEncoderUnetConfig {
    /// 2 (each plane is an image with statistics of its own) or 3.
    pub dims: u32,
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of each stage; the last is the bottleneck. The stem is as wide as the first.
    pub features: Vec<u32>,
    /// Residual blocks of the encoder's stages, of two convolutions each.
    pub blocks_per_stage: PerStage,
    /// Kernel of each stage along \[D,\] H, W; the stem's is the first stage's.
    pub kernels: Vec<Vec<u32>>,
    /// Stride of the first block of each stage along \[D,\] H, W.
    pub strides: Vec<Vec<u32>>,
    /// Convolutions of the decoder's stages, deepest first.
    pub decoder_convs_per_stage: PerStage,
    /// What normalises.
    #[serde(default, deserialize_with = "PlainConvNorm::or_none")]
    pub norm: PlainConvNorm,
    /// What follows.
    #[serde(default)]
    pub activation: UnetActivation,
    /// Whether convolutions before norms, and transposed ones, have a bias.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub conv_bias: bool,
}

impl Architecture for ResidualEncoderUnetConfig {
    const NAME: &'static str = "residual_encoder_unet";

    fn build(&self) -> Result<Built, String> {
        let stages = self.stages();
        stages.check()?;
        let count = stages.count();
        for (name, numbers, of) in [("blocks", &self.blocks_per_stage, count), ("decoder_convs", &self.decoder_convs_per_stage, count - 1)]
        {
            if !numbers.check(of) {
                return Err(format!("{name}_per_stage is {numbers:?}, must be a number of 1 to {MOST} or one for each of {of} stages"));
            }
        }
        let mut b = Builder::new(stages);
        let mut width = self.features[0];
        let (kernel, input) = (b.kernel(0), b.l.input);
        let mut x = b.unit("encoder.stem.convs.0", input, [self.in_channels, width], kernel, [1; 3]);
        let mut skips = Vec::new();
        for (stage, &features) in self.features.iter().enumerate() {
            for i in 0..self.blocks_per_stage.of(stage) {
                let stride = if i == 0 { along(&self.strides[stage]) } else { [1; 3] };
                x = block(&mut b, &format!("encoder.stages.{stage}.blocks.{i}"), x, [width, features], stage, stride);
                width = features;
            }
            skips.push(x);
        }
        Ok(b.decode(&skips, &self.decoder_convs_per_stage))
    }
}

impl ResidualEncoderUnetConfig {
    fn stages(&self) -> Stages<'_> {
        Stages {
            dims: self.dims,
            in_channels: self.in_channels,
            classes: self.classes,
            features: &self.features,
            kernels: &self.kernels,
            strides: &self.strides,
            norm: self.norm,
            activation: self.activation,
            biases: Biases { conv: self.conv_bias, transpose: self.conv_bias, head: true },
            decoder_kernels: DecoderKernels::Skip,
        }
    }
}

/// A unit, a convolution with its norm, and what the input becomes on its way past both.
fn block(b: &mut Builder<'_>, module: &str, x: NodeId, c: [u32; 2], level: usize, stride: [u32; 3]) -> NodeId {
    let kernel = b.kernel(level);
    let y = b.unit(&format!("{module}.conv1"), x, c, kernel, stride);
    let y = b.normed(&format!("{module}.conv2"), y, [c[1]; 2], kernel, [1; 3]);
    // a ResNet-D: means where the block has a stride, then a convolution where the widths differ; a sequence of what there is
    let (mut past, mut entry) = (x, 0);
    if stride != [1; 3] {
        past = b.l.graph.add(format!("{module}.skip.{entry}"), Op::AvgPool { kernel: stride }, &[past]);
        entry += 1;
    }
    if c[0] != c[1] {
        let skip = format!("{module}.skip.{entry}");
        past = b.l.conv(&format!("{skip}.conv"), past, c, 1, 1, false);
        past = b.norm(&format!("{skip}.norm"), past, c[1]);
    }
    let y = b.l.add(format!("{module}.add"), y, past);
    b.activation(module, y)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{published, refused};
    use super::*;
    use crate::{DeviceCaps, Extent, Model, Plan, PlanOptions};

    /// `nnUNetPlannerResEncL` of 14 classes: its widths and blocks.
    const LARGE: &str = r#""dims":3,"in_channels":1,"classes":14,"features":[32,64,128,256,320,320],
        "blocks_per_stage":[1,3,4,6,6,6],"decoder_convs_per_stage":1"#;

    const SMALL: &str = r#""dims":2,"in_channels":2,"classes":3,"features":[4,4,6],"blocks_per_stage":[1,2,1],
        "kernels":[[3,3],[3,3],[5,1]],"strides":[[1,1],[2,3],[1,1]],"decoder_convs_per_stage":[1,2]"#;

    #[test]
    fn the_published_configurations() {
        // measured on the reference: 102,359,430 and 101,867,334 parameters
        let cubes = r#","kernels":[[3,3,3],[3,3,3],[3,3,3],[3,3,3],[3,3,3],[3,3,3]],
            "strides":[[1,1,1],[2,2,2],[2,2,2],[2,2,2],[2,2,2],[2,2,2]]"#;
        let flat = r#","kernels":[[1,3,3],[3,3,3],[3,3,3],[3,3,3],[3,3,3],[3,3,3]],
            "strides":[[1,1,1],[1,2,2],[2,2,2],[2,2,2],[2,2,2],[1,2,2]]"#;
        let name = "residual_encoder_unet";
        published(name, &format!("{LARGE}{cubes}"), Extent::new(128, 128, 128), 102.36, 1436.4, [1_293_000_000, 652_000_000]);
        published(name, &format!("{LARGE}{flat}"), Extent::new(48, 192, 192), 101.87, 1764.9, [1_212_000_000, 612_000_000]);
    }

    #[test]
    fn skips_are_sequences_of_what_there_is() {
        let model = Model::random(&format!(r#"{{"architecture":"residual_encoder_unet","config":{{{SMALL}}}}}"#), 1).expect("it is one");
        assert_eq!((model.stride(), model.card().dims()), ([1, 2, 3], 2));
        let names: Vec<String> = model.graph().parameters().into_iter().map(|(name, _)| name).filter(|n| n.contains(".skip.")).collect();
        let expected = ["conv.weight", "norm.weight", "norm.bias"].map(|part| format!("encoder.stages.2.blocks.0.skip.0.{part}"));
        assert_eq!(names, expected, "the second stage pools alone, the third convolves alone");
        let pools: Vec<&Op> = model.graph().nodes().iter().map(|n| &n.op).filter(|op| matches!(op, Op::AvgPool { .. })).collect();
        assert_eq!(pools, [&Op::AvgPool { kernel: [1, 2, 3] }]);
        assert!(Plan::new(&model, Extent::new(3, 4, 9), &DeviceCaps::host(), &PlanOptions::default()).is_ok());
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (from, to, word) in [
            (r#""dims":2"#, r#""dims":5"#, "dims"),
            ("[4,4,6]", "[4]", "features"),
            ("[4,4,6]", "[4,0,6]", "features"),
            (r#""classes":3"#, r#""classes":0"#, "classes"),
            (r#""in_channels":2"#, r#""in_channels":0"#, "in_channels"),
            ("[5,1]", "[5,1,1]", "kernels"),
            ("[2,3]", "[2,0]", "strides"),
            ("[1,2,1]", "[1,2]", "blocks_per_stage"),
            ("[1,2,1]", "33", "blocks_per_stage"),
            ("[1,2]}", "[1,2,1]}", "decoder_convs_per_stage"),
            (r#""dims":2"#, r#""dims":2,"norm":"group""#, "group"),
            (r#""dims":2"#, r#""dims":2,"squeeze_excitation":true"#, "squeeze_excitation"),
        ] {
            let config = format!("{SMALL}}}").replacen(from, to, 1);
            refused("residual_encoder_unet", config.trim_end_matches('}'), word);
        }
    }
}
