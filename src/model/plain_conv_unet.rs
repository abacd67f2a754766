//! The architecture `plain_conv_unet`: nnU-Net's U-Net of strided convolutions, instance norm and leaky ReLU, in 2D and 3D.
//!
//! Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation" (Nature
//! Methods 18, 2021), as `PlainConvUNet` of MIC-DKFZ dynamic-network-architectures 0.4 builds it; node names are that module's
//! paths. `Generic_UNet` of nnU-Net v1 and `DynUNet` of MONAI differ in what the last keys of the config say.

use serde::{Deserialize, Deserializer, Serialize};

use super::architecture::{Architecture, Built};
use super::layers::{Layers, MOST_CHANNELS, check_channels, check_dims};
use super::weights::Tolerance;
use crate::error::{LoadError, LoadErrorKind};
use crate::graph::{ConvTranspose, Graph, NodeId};
use crate::kernels::Activation;
use crate::scan::is_default;

/// What normalises after each convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnetNorm {
    /// Instance norm with affine parameters, eps 1e-5.
    #[default]
    Instance,
}

/// What normalises after each convolution of `plain_conv_unet`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlainConvNorm {
    /// Instance norm with affine parameters, eps 1e-5.
    #[default]
    Instance,
    /// Instance norm without parameters, eps 1e-5.
    InstancePlain,
    /// Batch norm with the statistics of training, eps 1e-5.
    Batch,
    /// Nothing: null in a config, as Python's `None`.
    None,
}

impl PlainConvNorm {
    /// A norm of this kind, with the parameters of `module` if it has any.
    pub(super) fn add(self, l: &mut Layers, module: &str, x: NodeId, channels: u32) -> NodeId {
        match self {
            Self::Instance => l.instance_norm(module, Some(module), x, channels),
            Self::InstancePlain => l.instance_norm(module, None, x, channels),
            Self::Batch => l.batch_norm(module, x, channels),
            Self::None => x,
        }
    }

    /// A norm of a config, where null is none at all.
    pub(super) fn or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(Self::None))
    }
}

/// Whose kernel the convolutions of a decoder's stage have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecoderKernels {
    /// That of the encoder's stage whose skip they take.
    #[default]
    Skip,
    /// That of the stage below it, as in nnU-Net v1 and MONAI's `DynUNet`.
    Below,
}

/// What follows each norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnetActivation {
    /// Leaky ReLU of slope 0.01.
    #[default]
    LeakyRelu,
}

/// Convolutions of each stage: one number for all stages, or one each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerStage {
    /// As many in every stage.
    All(u32),
    /// For each stage.
    Each(Vec<u32>),
}

impl PerStage {
    pub(super) fn of(&self, stage: usize) -> u32 {
        match self {
            Self::All(n) => *n,
            Self::Each(list) => list.get(stage).copied().unwrap_or(0),
        }
    }

    pub(super) fn check(&self, stages: usize) -> bool {
        (1..=MOST).contains(&self.of(0))
            && match self {
                Self::All(_) => true,
                Self::Each(list) => list.len() == stages && list.iter().all(|n| (1..=MOST).contains(n)),
            }
    }
}

/// Most of anything counted here but channels: stages, convolutions of a stage, voxels of a kernel or a stride along an axis.
pub(super) const MOST: u32 = 32;

/// Arguments of the network, as in the card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlainConvUnetConfig {
    /// 2 (each plane is an image with statistics of its own) or 3.
    pub dims: u32,
    /// Input channels.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of each stage; the last is the bottleneck.
    pub features: Vec<u32>,
    /// Kernel of each stage along \[D,\] H, W.
    pub kernels: Vec<Vec<u32>>,
    /// Stride of the first convolution of each stage along \[D,\] H, W.
    pub strides: Vec<Vec<u32>>,
    /// Convolutions of the encoder's stages.
    pub convs_per_stage: PerStage,
    /// Convolutions of the decoder's stages, deepest first; absent: as `convs_per_stage`, whose number must then be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder_convs_per_stage: Option<PerStage>,
    /// What normalises.
    #[serde(default, deserialize_with = "PlainConvNorm::or_none")]
    pub norm: PlainConvNorm,
    /// What follows.
    #[serde(default)]
    pub activation: UnetActivation,
    /// Whether convolutions before norms have a bias.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub conv_bias: bool,
    /// Whether transposed convolutions have one.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub transpose_bias: bool,
    /// Whether the head has one.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub head_bias: bool,
    /// Whose kernel the decoder's convolutions have.
    #[serde(default, skip_serializing_if = "is_default")]
    pub decoder_kernels: DecoderKernels,
    /// Whether the encoder's stages have a residual, which then have two convolutions each: the stage's input, convolved without
    /// a kernel and normalised where its shape differs, is added before the last activation (`res_block` of `DynUNet`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub residual: bool,
}

pub(super) fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(super) fn is_true(b: &bool) -> bool {
    *b
}

impl Architecture for PlainConvUnetConfig {
    const NAME: &'static str = "plain_conv_unet";

    fn build(&self) -> Result<Built, String> {
        let stages = self.stages();
        stages.check()?;
        let decoder = self
            .decoder_convs_per_stage
            .as_ref()
            .map_or_else(|| matches!(self.convs_per_stage, PerStage::All(_)), |convs| convs.check(stages.count() - 1));
        if !self.convs_per_stage.check(stages.count()) || !decoder {
            return Err(format!(
                "convs_per_stage must be a number of 1 to {MOST} or one for each of {} stages, decoder_convs_per_stage a number or {}",
                stages.count(),
                stages.count() - 1
            ));
        }
        if self.residual && (0..stages.count()).any(|stage| self.convs_per_stage.of(stage) != 2) {
            return Err("residual stages have two convolutions each, convs_per_stage must be 2".into());
        }
        let mut b = Builder::new(stages);
        let mut x = b.l.input;
        let mut width = self.in_channels;
        let mut skips = Vec::new();
        for (stage, &features) in self.features.iter().enumerate() {
            let (module, c, stride) = (format!("encoder.stages.{stage}.0"), [width, features], along(&self.strides[stage]));
            x = if self.residual {
                b.residual(&module, x, c, stage, stride)
            } else {
                b.stage(&module, x, c, b.kernel(stage), stride, self.convs_per_stage.of(stage))
            };
            skips.push(x);
            width = features;
        }
        Ok(b.decode(&skips, self.decoder_convs_per_stage.as_ref().unwrap_or(&self.convs_per_stage)))
    }
}

impl PlainConvUnetConfig {
    /// The unoptimised graph: the heads of deep supervision are in it, but lead nowhere.
    ///
    /// # Errors
    /// When the configuration is not one of a network; the message names the field.
    pub fn graph(&self) -> Result<Graph, LoadError> {
        self.build().map(|built| built.graph).map_err(|message| LoadError::new(LoadErrorKind::Card, message))
    }

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
            biases: Biases { conv: self.conv_bias, transpose: self.transpose_bias, head: self.head_bias },
            decoder_kernels: self.decoder_kernels,
        }
    }
}

/// Which convolutions have a bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Biases {
    pub conv: bool,
    pub transpose: bool,
    pub head: bool,
}

/// What nnU-Net's networks are told alike.
pub(super) struct Stages<'a> {
    pub dims: u32,
    pub in_channels: u32,
    pub classes: u32,
    pub features: &'a [u32],
    pub kernels: &'a [Vec<u32>],
    pub strides: &'a [Vec<u32>],
    pub norm: PlainConvNorm,
    pub activation: UnetActivation,
    pub biases: Biases,
    pub decoder_kernels: DecoderKernels,
}

impl Stages<'_> {
    pub(super) fn count(&self) -> usize {
        self.features.len()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        check_dims(self.dims)?;
        let stages = self.count();
        let width = |c: &u32| (1..=MOST_CHANNELS).contains(c);
        if !(2..=MOST as usize).contains(&stages) || !self.features.iter().all(width) {
            return Err(format!("features is {:?}, must be 2 to {MOST} numbers of 1 to {MOST_CHANNELS}", self.features));
        }
        check_channels("in_channels", self.in_channels, MOST_CHANNELS)?;
        check_channels("classes", self.classes, MOST_CHANNELS)?;
        for (name, list) in [("kernels", self.kernels), ("strides", self.strides)] {
            let fits = |k: &Vec<u32>| k.len() == self.dims as usize && k.iter().all(|n| (1..=MOST).contains(n));
            if list.len() != stages || !list.iter().all(fits) {
                return Err(format!("{name} is {list:?}, must be {} numbers of 1 to {MOST} for each of {stages} stages", self.dims));
            }
        }
        Ok(())
    }
}

/// What every extent must be a multiple of for strides along \[D,\] H, W.
pub(super) fn multiple(strides: &[Vec<u32>]) -> [u32; 3] {
    strides.iter().fold([1; 3], |all, stride| {
        let stride = along(stride);
        [0, 1, 2].map(|axis| stride[axis].saturating_mul(all[axis]))
    })
}

/// Numbers along \[D,\] H, W as three.
pub(super) fn along(n: &[u32]) -> [u32; 3] {
    let mut all = [1; 3];
    all[3 - n.len()..].copy_from_slice(n);
    all
}

/// Units, stages and the decoder of checked arguments.
pub(super) struct Builder<'a> {
    pub l: Layers,
    stages: Stages<'a>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(stages: Stages<'a>) -> Self {
        Self { l: Layers::new(stages.dims, stages.in_channels), stages }
    }

    /// The kernel of a stage.
    pub(super) fn kernel(&self, level: usize) -> [u32; 3] {
        along(&self.stages.kernels[level])
    }

    /// The norm of a unit.
    pub(super) fn norm(&mut self, module: &str, x: NodeId, channels: u32) -> NodeId {
        self.stages.norm.add(&mut self.l, module, x, channels)
    }

    pub(super) fn activation(&mut self, name: &str, x: NodeId) -> NodeId {
        let UnetActivation::LeakyRelu = self.stages.activation;
        self.l.activation(name, x, Activation::LeakyRelu { slope: 0.01 })
    }

    /// Convolution and norm.
    pub(super) fn normed(&mut self, module: &str, x: NodeId, c: [u32; 2], kernel: [u32; 3], stride: [u32; 3]) -> NodeId {
        let y = self.l.conv_along(&format!("{module}.conv"), x, c, [kernel, stride], self.stages.biases.conv);
        self.norm(&format!("{module}.norm"), y, c[1])
    }

    /// Convolution, norm and activation.
    pub(super) fn unit(&mut self, module: &str, x: NodeId, c: [u32; 2], kernel: [u32; 3], stride: [u32; 3]) -> NodeId {
        let y = self.normed(module, x, c, kernel, stride);
        self.activation(module, y)
    }

    /// A stage of two convolutions with a residual.
    fn residual(&mut self, module: &str, x: NodeId, c: [u32; 2], level: usize, stride: [u32; 3]) -> NodeId {
        let kernel = self.kernel(level);
        let y = self.unit(&format!("{module}.convs.0"), x, c, kernel, stride);
        let y = self.normed(&format!("{module}.convs.1"), y, [c[1]; 2], kernel, [1; 3]);
        let past = if c[0] == c[1] && stride == [1; 3] { x } else { self.normed(&format!("{module}.skip"), x, c, [1; 3], stride) };
        let y = self.l.add(format!("{module}.add"), y, past);
        self.activation(module, y)
    }

    fn stage(&mut self, module: &str, mut x: NodeId, [cin, cout]: [u32; 2], kernel: [u32; 3], stride: [u32; 3], convs: u32) -> NodeId {
        for i in 0..convs {
            let (width, stride) = if i == 0 { (cin, stride) } else { (cout, [1; 3]) };
            x = self.unit(&format!("{module}.convs.{i}"), x, [width, cout], kernel, stride);
        }
        x
    }

    /// The decoder of what the encoder's stages gave, and the heads: but for the last, those of deep supervision lead nowhere.
    pub(super) fn decode(mut self, skips: &[NodeId], convs: &PerStage) -> Built {
        let last = skips.len() - 1;
        let mut x = skips[last];
        for s in 0..last {
            let level = last - 1 - s;
            let (width, features) = (self.stages.features[level + 1], self.stages.features[level]);
            // undoes the stride of the encoder's stage below
            let stride = along(&self.stages.strides[level + 1]);
            let shape = ConvTranspose { kernel: stride, stride, bias: self.stages.biases.transpose, ..ConvTranspose::default() };
            let up = self.l.transposed(&format!("decoder.transpconvs.{s}"), x, [width, features], shape);
            let both = self.l.concat(format!("decoder.concat.{s}"), up, skips[level]);
            let kernel = self.kernel(match self.stages.decoder_kernels {
                DecoderKernels::Skip => level,
                DecoderKernels::Below => level + 1,
            });
            x = self.stage(&format!("decoder.stages.{s}"), both, [2 * features, features], kernel, [1; 3], convs.of(s));
            self.l.conv(&format!("decoder.seg_layers.{s}"), x, [features, self.stages.classes], 1, 1, self.stages.biases.head);
        }
        let tolerance = Tolerance { canonical, ..Tolerance::default() };
        Built { dims: self.stages.dims, tolerance, ..Built::new(self.l.graph, multiple(self.stages.strides)) }
    }
}

/// The name under which the graph knows a tensor: a state_dict lists each of a unit's tensors again under the path of the
/// unit's sequence, and the encoder again under the decoder.
fn canonical(tensor: &str) -> String {
    let own = tensor.strip_prefix("decoder.encoder.").map_or_else(|| tensor.to_owned(), |rest| format!("encoder.{rest}"));
    own.replace(".all_modules.0.", ".conv.").replace(".all_modules.1.", ".norm.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::pass::optimise;
    use crate::shape::Extent;

    fn config() -> PlainConvUnetConfig {
        PlainConvUnetConfig {
            dims: 3,
            in_channels: 1,
            classes: 3,
            features: vec![4, 6, 8],
            kernels: vec![vec![1, 3, 3], vec![3; 3], vec![3; 3]],
            strides: vec![vec![1; 3], vec![1, 2, 2], vec![2; 3]],
            convs_per_stage: PerStage::All(2),
            decoder_convs_per_stage: None,
            norm: PlainConvNorm::Instance,
            activation: UnetActivation::LeakyRelu,
            conv_bias: true,
            transpose_bias: true,
            head_bias: true,
            decoder_kernels: DecoderKernels::Skip,
            residual: false,
        }
    }

    #[test]
    fn no_norm_is_stored() {
        let (g, applied) = optimise(&config().graph().expect("it is one"), &[]);
        assert_eq!((applied.norms_split, applied.norms_absorbed, applied.concats_fused, applied.nodes_removed), (10, 10, 2, 1));
        let maps = g.infer(Extent::new(6, 8, 12)).expect("shapes agree");
        assert_eq!(maps.last().map(|m| (m.extent, m.channels)), Some((Extent::new(6, 8, 12), 3)));
        assert_eq!(g.node(g.output()).name, "decoder.seg_layers.1");
    }

    #[test]
    fn planes_are_images_of_a_2d_network() {
        let flat = |n: u32| vec![vec![n; 2]; 3];
        let config = PlainConvUnetConfig { dims: 2, kernels: flat(3), strides: vec![vec![1; 2], vec![2; 2], vec![2, 1]], ..config() };
        let g = config.graph().expect("it is one");
        let shape = |name: &str| g.parameters().iter().find(|(n, _)| n == name).map(|(_, shape)| shape.clone());
        assert_eq!(shape("encoder.stages.1.0.convs.0.conv.weight"), Some(vec![6, 4, 3, 3]));
        assert_eq!(shape("decoder.transpconvs.0.weight"), Some(vec![8, 6, 2, 1]));
        assert!(optimise(&g, &[]).0.infer(Extent::new(5, 8, 12)).is_ok());
    }

    #[test]
    fn what_is_no_network_is_refused() {
        let bad: [fn(&mut PlainConvUnetConfig); 10] = [
            |c| c.dims = 4,
            |c| c.features = vec![4],
            |c| c.features[1] = 0,
            |c| c.classes = 0,
            |c| c.kernels[1] = vec![3; 2],
            |c| c.strides[2][0] = 0,
            |c| c.strides.truncate(2),
            |c| c.convs_per_stage = PerStage::Each(vec![2, 2, 2]),
            |c| c.decoder_convs_per_stage = Some(PerStage::Each(vec![2])),
            |c| (c.residual, c.convs_per_stage) = (true, PerStage::All(3)),
        ];
        for (i, change) in bad.into_iter().enumerate() {
            let mut c = config();
            change(&mut c);
            assert!(c.graph().is_err(), "change {i}");
        }
    }

    #[test]
    fn repeated_names_are_known() {
        assert_eq!(canonical("decoder.encoder.stages.1.0.convs.0.all_modules.0.weight"), "encoder.stages.1.0.convs.0.conv.weight");
        assert_eq!(canonical("decoder.stages.1.convs.0.all_modules.1.bias"), "decoder.stages.1.convs.0.norm.bias");
    }
}
