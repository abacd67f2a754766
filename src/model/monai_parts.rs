//! Norms and activations of MONAI's networks, and the blocks of its UNETR family.

use serde::{Deserialize, Deserializer, Serialize};

use super::layers::Layers;
use crate::graph::{Conv, ConvTranspose, NodeId, Op};
use crate::kernels::Activation;

/// A norm of MONAI's networks; eps is 1e-5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MonaiNorm {
    /// Instance norm with affine parameters.
    Instance,
    /// Instance norm without parameters.
    InstancePlain,
    /// Batch norm with the statistics of training.
    Batch,
    /// Nothing.
    None,
    /// Group norm with affine parameters, of so many groups.
    Group(u32),
}

impl MonaiNorm {
    /// Checks it for maps of these channels; the error says what is wrong.
    pub(super) fn check(self, channels: &[u32]) -> Result<(), String> {
        match self {
            Self::Group(groups) => match channels.iter().find(|c| groups == 0 || !c.is_multiple_of(groups)) {
                Some(c) => Err(format!("norm is of {groups} groups, which do not divide {c} channels")),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// A norm of this kind, with the parameters of `module` if it has any.
    pub(super) fn add(self, l: &mut Layers, module: &str, x: NodeId, channels: u32) -> NodeId {
        match self {
            Self::Instance => l.instance_norm(module, Some(module), x, channels),
            Self::InstancePlain => l.instance_norm(module, None, x, channels),
            Self::Batch => l.batch_norm(module, x, channels),
            Self::None => x,
            Self::Group(groups) => l.group_norm(module, x, channels, groups),
        }
    }
}

/// An activation of MONAI's networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MonaiActivation {
    /// Leaky with one learned slope.
    #[default]
    Prelu,
    /// ReLU.
    Relu,
    /// Leaky ReLU, of slope 0.01 unless the config has a key `slope`.
    LeakyRelu,
    /// Nothing: null in a config, as Python's `None`.
    None,
}

impl MonaiActivation {
    /// An activation of a config, where null is none at all.
    pub(super) fn or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(Self::None))
    }

    /// The activation as a node, with the slope of `slopes` if it is learned, else that of a leaky
    /// one.
    pub(super) fn add(self, l: &mut Layers, name: &str, slopes: String, x: NodeId, slope: f32) -> NodeId {
        match self {
            Self::Prelu => l.graph.add(name, Op::PRelu { module: slopes, channels: 1 }, &[x]),
            Self::Relu => l.activation(name, x, Activation::Relu),
            Self::LeakyRelu => l.activation(name, x, Activation::LeakyRelu { slope }),
            Self::None => x,
        }
    }
}

/// PyTorch's slope of leaky ReLU.
pub(super) const SLOPE: f32 = 0.01;

/// Convolutional blocks of UNETR and Swin UNETR (`UnetrBasicBlock`, `UnetrUpBlock`).
pub(super) struct UnetrBlocks {
    pub l: Layers,
    pub norm: MonaiNorm,
    /// Whether pairs of convolutions have a residual.
    pub residual: bool,
}

impl UnetrBlocks {
    /// A convolution that keeps the extent; its module holds another one.
    pub(super) fn conv(&mut self, name: &str, x: NodeId, [cin, cout]: [u32; 2], kernel: u32, bias: bool) -> NodeId {
        let kernel = self.l.cube(kernel);
        let conv = Conv {
            module: format!("{name}.conv"),
            in_channels: cin,
            out_channels: cout,
            kernel,
            padding: kernel.map(|k| (k - 1) / 2),
            bias,
            weight_shape: self.l.weight_shape([cout, cin], kernel),
            ..Conv::default()
        };
        self.l.graph.add(name, Op::Conv(conv), &[x])
    }

    /// The transposed convolution that doubles the extent.
    pub(super) fn double(&mut self, name: &str, x: NodeId, [cin, cout]: [u32; 2]) -> NodeId {
        let kernel = self.l.cube(2);
        let conv = ConvTranspose {
            module: format!("{name}.conv"),
            in_channels: cin,
            out_channels: cout,
            kernel,
            stride: kernel,
            bias: false,
            weight_shape: self.l.weight_shape([cin, cout], kernel),
            ..ConvTranspose::default()
        };
        self.l.graph.add(name, Op::ConvTranspose(conv), &[x])
    }

    fn leaky(&mut self, name: String, x: NodeId) -> NodeId {
        self.l.activation(name, x, Activation::LeakyRelu { slope: SLOPE })
    }

    /// Two convolutions, as a residual block or not. The residual is projected where the width
    /// changes.
    pub(super) fn pair(&mut self, module: &str, x: NodeId, c: [u32; 2]) -> NodeId {
        let y = self.conv(&format!("{module}.conv1"), x, c, 3, false);
        let y = self.norm.add(&mut self.l, &format!("{module}.norm1"), y, c[1]);
        let y = self.leaky(format!("{module}.lrelu1"), y);
        let y = self.conv(&format!("{module}.conv2"), y, [c[1]; 2], 3, false);
        let mut y = self.norm.add(&mut self.l, &format!("{module}.norm2"), y, c[1]);
        if self.residual {
            let mut residual = x;
            if c[0] != c[1] {
                residual = self.conv(&format!("{module}.conv3"), x, c, 1, false);
                residual = self.norm.add(&mut self.l, &format!("{module}.norm3"), residual, c[1]);
            }
            y = self.l.add(format!("{module}.sum"), y, residual);
        }
        self.leaky(module.to_owned(), y)
    }

    /// A map doubled to the extent of a skip, and both convolved.
    pub(super) fn up(&mut self, module: &str, x: NodeId, skip: NodeId, [cin, cout]: [u32; 2]) -> NodeId {
        let y = self.double(&format!("{module}.transp_conv"), x, [cin, cout]);
        let y = self.l.concat(format!("{module}.concat"), y, skip);
        self.pair(&format!("{module}.conv_block"), y, [2 * cout, cout])
    }
}
