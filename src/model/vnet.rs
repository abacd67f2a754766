//! The architecture `vnet`: residual stages of convolutions of 5x5x5.
//!
//! Source: Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation" (3DV 2016), as
//! `VNet` of MONAI 1.6.1 and mattmacy/vnet.pytorch (commit a00c8ea) compute it; node names are those modules' paths.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Built};
use super::layers::{Layers, MOST_CHANNELS, check_channels, check_dims};
use super::weights::Tolerance;
use crate::graph::{Combine, NodeId, Op, PatchMerge};
use crate::kernels::{Activation, MOST_PATCH_PARTS, Spread};

/// Levels below the first.
const DEPTH: u32 = 4;

/// Convolutions of the stages on the way down and, deepest first, on the way up.
const CONVS: [[u32; DEPTH as usize]; 2] = [[1, 2, 3, 2], [2, 2, 1, 1]];

/// Whose module paths and biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VnetFlavour {
    /// MONAI: convolutions without biases.
    #[default]
    Monai,
    /// mattmacy/vnet.pytorch: convolutions with biases, one input channel, three dimensions.
    Mattmacy,
}

/// What follows norms and sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VnetActivation {
    /// ELU of alpha 1.
    #[default]
    Elu,
    /// Leaky with a learned slope for each channel, as in the paper.
    Prelu,
}

/// What batch norms normalise by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormStatistics {
    /// Those of training, from the file.
    Running,
    /// Those of the input itself; what the file has of training is ignored.
    Input,
}

/// Arguments of V-Net, as in the card. Extents are multiples of 16.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VnetConfig {
    /// 2 (each plane is an image) or 3.
    pub dims: u32,
    /// Whose module paths and biases.
    pub flavour: VnetFlavour,
    /// Input channels, a divisor of `base`.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Channels of the first level; each of the four below has twice as many, up to 65536.
    pub base: u32,
    /// What follows norms and sums.
    pub activation: VnetActivation,
    /// What norms normalise by; absent: what the flavour's own does when it does not train.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_statistics: Option<NormStatistics>,
}

impl Default for VnetConfig {
    fn default() -> Self {
        Self {
            dims: 3,
            flavour: VnetFlavour::Monai,
            in_channels: 1,
            classes: 14,
            base: 16,
            activation: VnetActivation::Elu,
            norm_statistics: None,
        }
    }
}

impl Architecture for VnetConfig {
    const NAME: &'static str = "vnet";

    fn build(&self) -> Result<Built, String> {
        self.check()?;
        let mut b = Builder { l: Layers::new(self.dims, self.in_channels), dead: Vec::new(), config: self };
        let mut x = b.input();
        let mut skips = Vec::new();
        for (level, convs) in (1..=DEPTH).zip(CONVS[0]) {
            skips.push(x);
            x = b.down(level, x, convs);
        }
        // the deepest stage of the way up is as wide as what it gets, the others half
        let mut width = self.base << DEPTH;
        for (level, convs) in (1..=DEPTH).rev().zip(CONVS[1]) {
            let out = self.base << level;
            x = b.up(level, [x, skips[level as usize - 1]], [width, out], convs);
            width = out;
        }
        b.output(x, width);
        let stride = b.l.cube(1 << DEPTH);
        let tolerance = Tolerance { dead: b.dead, ..Tolerance::default() };
        Ok(Built { dims: self.dims, tolerance, ..Built::new(b.l.graph, stride) })
    }
}

impl VnetConfig {
    /// How often the input is repeated.
    fn repeats(&self) -> usize {
        self.base as usize / self.in_channels as usize
    }

    fn check(&self) -> Result<(), String> {
        check_dims(self.dims)?;
        check_channels("classes", self.classes, MOST_CHANNELS)?;
        check_channels("base", self.base, MOST_CHANNELS >> DEPTH)?;
        if self.in_channels == 0 || !self.base.is_multiple_of(self.in_channels) {
            return Err(format!("in_channels is {}, must divide the base of {}", self.in_channels, self.base));
        }
        if self.flavour == VnetFlavour::Mattmacy && (self.dims, self.in_channels) != (3, 1) {
            return Err(format!("the mattmacy flavour has dims 3 and in_channels 1, not {} and {}", self.dims, self.in_channels));
        }
        if self.in_channels > 1 && repeats(self.repeats()).is_none() {
            let text = "base / in_channels must be a product of 2, 3, 5 and 7 where in_channels is not 1";
            return Err(format!("base is {} and in_channels {}: {text}", self.base, self.in_channels));
        }
        Ok(())
    }
}

/// Numbers of parts that a patch can have whose product is `n`, if there are any.
fn repeats(mut n: usize) -> Option<Vec<usize>> {
    let mut list = Vec::new();
    while n > 1 {
        let part = (2..=MOST_PATCH_PARTS).rev().find(|&part| n.is_multiple_of(part))?;
        list.push(part);
        n /= part;
    }
    Some(list)
}

struct Builder<'a> {
    l: Layers,
    /// Prefixes of statistics that are ignored.
    dead: Vec<String>,
    config: &'a VnetConfig,
}

impl Builder<'_> {
    /// The path of the `n`th activation of a module, or of its only one if that is 0.
    fn activation_path(&self, module: &str, n: u32) -> String {
        match (self.config.flavour, n) {
            (VnetFlavour::Monai, 0) => format!("{module}.act_function"),
            (VnetFlavour::Monai, _) => format!("{module}.act_function{n}"),
            (VnetFlavour::Mattmacy, _) => format!("{module}.relu{}", n.max(1)),
        }
    }

    fn activation(&mut self, path: &str, x: NodeId, channels: u32) -> NodeId {
        match self.config.activation {
            VnetActivation::Elu => self.l.activation(path, x, Activation::Elu { alpha: 1.0 }),
            VnetActivation::Prelu => self.l.graph.add(path, Op::PRelu { module: path.to_owned(), channels }, &[x]),
        }
    }

    fn norm(&mut self, module: &str, x: NodeId, channels: u32) -> NodeId {
        let own = match self.config.flavour {
            VnetFlavour::Monai => NormStatistics::Running,
            // its ContBatchNorm3d is never out of training: statistics of a batch of one are those of the input
            VnetFlavour::Mattmacy => NormStatistics::Input,
        };
        match self.config.norm_statistics.unwrap_or(own) {
            NormStatistics::Running => self.l.batch_norm(module, x, channels),
            NormStatistics::Input => {
                self.dead.push(format!("{module}.running_"));
                self.l.instance_norm(module, Some(module), x, channels)
            }
        }
    }

    /// A convolution of 5 voxels along every axis, and its norm.
    fn normed(&mut self, module: &str, x: NodeId, c: [u32; 2]) -> NodeId {
        let (conv, norm, bias) = match self.config.flavour {
            VnetFlavour::Monai => ("conv_block.conv", "conv_block.adn.N", false),
            VnetFlavour::Mattmacy => ("conv1", "bn1", true),
        };
        let y = self.l.conv(&format!("{module}.{conv}"), x, c, 5, 1, bias);
        self.norm(&format!("{module}.{norm}"), y, c[1])
    }

    /// The sum of a residual and what was made of it, activated.
    fn sum(&mut self, module: &str, [x, y]: [NodeId; 2], spread: Spread, path: &str, channels: u32) -> NodeId {
        let y = self.l.graph.add(format!("{module}.add"), Op::Add(Combine { spread, ..Combine::default() }), &[y, x]);
        self.activation(path, y, channels)
    }

    /// The input's own channels, over and over, are the residual of the first convolution.
    fn input(&mut self) -> NodeId {
        let (c, base) = (self.config.in_channels, self.config.base);
        let mut x = self.l.input;
        let y = self.normed("in_tr", x, [c, base]);
        let path = self.activation_path("in_tr", 0);
        if c == 1 {
            return self.sum("in_tr", [x, y], Spread::Channels, &path, base);
        }
        // MONAI's `repeat`: channel k is channel k mod c of the input
        for (i, parts) in repeats(self.config.repeats()).unwrap_or_default().into_iter().enumerate() {
            let merge = PatchMerge { patch: [1; 3], order: vec![[0; 3]; parts] };
            x = self.l.graph.add(format!("in_tr.repeat.{i}"), Op::PatchMerge(merge), &[x]);
        }
        self.sum("in_tr", [x, y], Spread::Nothing, &path, base)
    }

    /// Convolutions of 5 voxels of a stage, whose input is their residual.
    fn stage(&mut self, module: &str, x: NodeId, channels: u32, convs: u32) -> NodeId {
        let mut y = x;
        for i in 0..convs {
            let unit = format!("{module}.ops.{i}");
            y = self.normed(&unit, y, [channels; 2]);
            let path = self.activation_path(&unit, 0);
            y = self.activation(&path, y, channels);
        }
        let path = self.activation_path(module, 2);
        self.sum(module, [x, y], Spread::Nothing, &path, channels)
    }

    /// Modules are called by the channels of a base of 16, whatever the base is.
    fn down(&mut self, level: u32, x: NodeId, convs: u32) -> NodeId {
        let (module, c) = (format!("down_tr{}", 16 << level), self.config.base << level);
        let bias = self.config.flavour == VnetFlavour::Mattmacy;
        let y = self.l.conv(&format!("{module}.down_conv"), x, [c / 2, c], 2, 2, bias);
        let y = self.norm(&format!("{module}.bn1"), y, c);
        let path = self.activation_path(&module, 1);
        let y = self.activation(&path, y, c);
        self.stage(&module, y, c, convs)
    }

    fn up(&mut self, level: u32, [x, skip]: [NodeId; 2], [cin, cout]: [u32; 2], convs: u32) -> NodeId {
        let module = format!("up_tr{}", 16 << level);
        // this one has a bias in both flavours
        let y = self.l.expand(&format!("{module}.up_conv"), x, [cin, cout / 2], 2);
        let y = self.norm(&format!("{module}.bn1"), y, cout / 2);
        let path = self.activation_path(&module, 1);
        let y = self.activation(&path, y, cout / 2);
        let y = self.l.concat(format!("{module}.concat"), y, skip);
        self.stage(&module, y, cout, convs)
    }

    fn output(&mut self, x: NodeId, width: u32) {
        let classes = self.config.classes;
        let y = self.normed("out_tr", x, [width, classes]);
        let path = self.activation_path("out_tr", 1);
        let y = self.activation(&path, y, classes);
        self.l.conv("out_tr.conv2", y, [classes; 2], 1, 1, true);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{published, refused};
    use super::*;
    use crate::model::weights;
    use crate::{Card, DeviceCaps, Extent, Input, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};

    #[test]
    fn the_published_configurations() {
        let extent = Extent::new(96, 96, 96);
        for config in ["", r#""activation":"prelu""#, r#""flavour":"mattmacy","activation":"prelu""#] {
            published("vnet", config, extent, 45.65, 702.5, [532_000_000, 271_000_000]);
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (config, word) in [
            (r#""dims":4"#, "dims"),
            (r#""classes":0"#, "classes"),
            (r#""base":0"#, "base"),
            (r#""base":4097"#, "base"),
            (r#""in_channels":0"#, "in_channels"),
            (r#""in_channels":3"#, "must divide"),
            (r#""in_channels":2,"base":22"#, "product"),
            (r#""flavour":"mattmacy","in_channels":2"#, "mattmacy"),
            (r#""flavour":"mattmacy","dims":2"#, "mattmacy"),
            (r#""flavour":"caffe""#, "caffe"),
            (r#""norm_statistics":"batch""#, "batch"),
            (r#""activation":"relu""#, "relu"),
            (r#""bias":true"#, "bias"),
        ] {
            refused("vnet", config, word);
        }
    }

    #[test]
    fn statistics_of_training_are_read_or_ignored() {
        for (flavour, statistics, needed) in [
            ("monai", "", true),
            ("mattmacy", "", false),
            ("monai", r#","norm_statistics":"input""#, false),
            ("mattmacy", r#","norm_statistics":"running""#, true),
        ] {
            let card = format!(r#"{{"architecture":"vnet","config":{{"flavour":"{flavour}","base":2,"classes":2{statistics}}}}}"#);
            let parameters = Card::parse(&card).and_then(|mut card| card.build()).expect("it is one").graph.parameters();
            let has = |suffix: &str| parameters.iter().filter(|(name, _)| name.ends_with(suffix)).count();
            let norms = has("running_var");
            assert_eq!(norms, if needed { 24 } else { 0 }, "{flavour} {statistics}");
            // a checkpoint has them in any case
            let mut tensors = parameters.clone();
            let norm = if flavour == "monai" { "in_tr.conv_block.adn.N" } else { "in_tr.bn1" };
            tensors.retain(|(name, _)| !name.starts_with(&format!("{norm}.running_")));
            tensors.extend(["mean", "var"].map(|part| (format!("{norm}.running_{part}"), vec![2])));
            let load = |tensors: &[_]| Model::from_bytes(weights::random(&card, tensors, 1).expect("it is a file"));
            assert!(load(&tensors).is_ok());
            tensors.push(("in_tr.running_mean".into(), vec![2]));
            assert!(load(&tensors).expect_err("nobody knows it").to_string().contains("in_tr.running_mean"));
        }
    }

    #[test]
    fn the_input_is_repeated_channel_by_channel() {
        assert_eq!([1, 2, 8, 12, 21, 64].map(repeats), [vec![], vec![2], vec![8], vec![6, 2], vec![7, 3], vec![8, 8]].map(Some));
        assert_eq!([11, 26].map(repeats), [None, None]);
        let card = r#"{"architecture":"vnet","config":{"dims":2,"in_channels":3,"base":36,"classes":2}}"#;
        let model = Model::random(card, 1).expect("it is one");
        assert_eq!((model.stride(), model.card().dims()), ([1, 16, 16], 2));
        let extent = Extent::new(2, 16, 16);
        let options = PlanOptions::default().with_output(OutputMode::Logits).with_tap("in_tr.repeat.1");
        let plan = Plan::new(&model, extent, &DeviceCaps::host(), &options).expect("there is a plan");
        let mut session = Session::on_host(&model, plan).expect("the weights are those of the plan");
        let data: Vec<f32> = (0..3 * 512u16).map(f32::from).collect();
        let outputs = session.run_blocking(Input { channels: 3, extent, data: &data }, RunOptions::default()).expect("it runs");
        let OutputData::Map(values) = &outputs[1].data else { panic!("asked for a map") };
        assert_eq!(values.len(), 36 * 512);
        for (k, channel) in values.chunks_exact(512).enumerate() {
            assert_eq!(channel, &data[k % 3 * 512..][..512], "channel {k}");
        }
    }
}
