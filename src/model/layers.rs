//! The layers that convolutional networks are made of, under the paths of their modules, in two or three dimensions.

use crate::graph::{BatchNorm, Combine, Conv, ConvTranspose, Graph, NodeId, Norm, Op};
use crate::kernels::Activation;

/// Most channels of a map that a config may ask for.
pub(super) const MOST_CHANNELS: u32 = 65_536;

/// What is wrong with a number of channels, if anything is.
pub(super) fn check_channels(name: &str, channels: u32, most: u32) -> Result<(), String> {
    if (1..=most).contains(&channels) { Ok(()) } else { Err(format!("{name} is {channels}, must be 1 to {most}")) }
}

/// What is wrong with a number of spatial dimensions, if anything is.
pub(super) fn check_dims(dims: u32) -> Result<(), String> {
    if (2..=3).contains(&dims) { Ok(()) } else { Err(format!("dims is {dims}, must be 2 or 3")) }
}

/// A graph under construction; a node is called like the module that it is of.
pub(super) struct Layers {
    pub graph: Graph,
    /// The network's input.
    pub input: NodeId,
    dims: u32,
}

impl Layers {
    /// A network of so many spatial dimensions: with 2, each plane is an image.
    pub(super) fn new(dims: u32, in_channels: u32) -> Self {
        let mut graph = Graph::default();
        let input = graph.add("input", Op::Input { channels: in_channels }, &[]);
        Self { graph, input, dims }
    }

    /// The same number along every axis that the network has, along D, H, W.
    pub(super) fn cube(&self, n: u32) -> [u32; 3] {
        if self.dims == 2 { [1, n, n] } else { [n; 3] }
    }

    /// Shape of a weight in the file: channels, then the kernel along the axes that the network has.
    pub(super) fn weight_shape(&self, channels: [u32; 2], kernel: [u32; 3]) -> Vec<usize> {
        channels.iter().chain(&kernel[3 - self.dims as usize..]).map(|&n| n as usize).collect()
    }

    /// A convolution, with the padding that keeps the extent where its kernel is odd and its stride 1.
    pub(super) fn conv(&mut self, module: &str, x: NodeId, c: [u32; 2], kernel: u32, stride: u32, bias: bool) -> NodeId {
        self.conv_along(module, x, c, [self.cube(kernel), self.cube(stride)], bias)
    }

    /// The same with a kernel and a stride along D, H, W.
    pub(super) fn conv_along(&mut self, module: &str, x: NodeId, c: [u32; 2], [kernel, stride]: [[u32; 3]; 2], bias: bool) -> NodeId {
        let conv = Conv {
            module: module.to_owned(),
            in_channels: c[0],
            out_channels: c[1],
            kernel,
            stride,
            padding: kernel.map(|k| (k - 1) / 2),
            bias,
            weight_shape: self.weight_shape([c[1], c[0]], kernel),
            ..Conv::default()
        };
        self.graph.add(module, Op::Conv(conv), &[x])
    }

    /// A transposed convolution with a bias whose blocks of so many voxels along every axis do not overlap.
    pub(super) fn expand(&mut self, module: &str, x: NodeId, c: [u32; 2], stride: u32) -> NodeId {
        self.expand_along(module, x, c, self.cube(stride))
    }

    /// The same with blocks of so many voxels along D, H, W.
    pub(super) fn expand_along(&mut self, module: &str, x: NodeId, c: [u32; 2], stride: [u32; 3]) -> NodeId {
        self.transposed(module, x, c, ConvTranspose { kernel: stride, stride, ..ConvTranspose::default() })
    }

    /// A transposed convolution with a bias and an odd kernel, whose blocks may overlap, to `stride` times the extent.
    pub(super) fn overlapping(&mut self, module: &str, x: NodeId, c: [u32; 2], kernel: u32, stride: u32) -> NodeId {
        let (kernel, stride) = (self.cube(kernel), self.cube(stride));
        let (padding, output_padding) = (kernel.map(|k| (k - 1) / 2), stride.map(|s| s - 1));
        self.transposed(module, x, c, ConvTranspose { kernel, stride, padding, output_padding, ..ConvTranspose::default() })
    }

    /// A transposed convolution of a kernel, stride, padding and bias that are told.
    pub(super) fn transposed(&mut self, module: &str, x: NodeId, c: [u32; 2], shape: ConvTranspose) -> NodeId {
        let weight_shape = self.weight_shape(c, shape.kernel);
        let conv = ConvTranspose { module: module.to_owned(), in_channels: c[0], out_channels: c[1], weight_shape, ..shape };
        self.graph.add(module, Op::ConvTranspose(conv), &[x])
    }

    /// A batch norm with running statistics, eps 1e-5.
    pub(super) fn batch_norm(&mut self, module: &str, x: NodeId, channels: u32) -> NodeId {
        self.graph.add(module, Op::BatchNorm(BatchNorm { module: module.to_owned(), channels, eps: 1e-5 }), &[x])
    }

    /// The sum of two maps of one shape.
    pub(super) fn add(&mut self, name: impl Into<String>, first: NodeId, second: NodeId) -> NodeId {
        self.graph.add(name, Op::Add(Combine::default()), &[first, second])
    }

    /// Instance norm, eps 1e-5, with the parameters of a module or without any: the statistics of images are those of each plane.
    pub(super) fn instance_norm(&mut self, name: impl Into<String>, module: Option<&str>, x: NodeId, channels: u32) -> NodeId {
        let (module, per_plane) = (module.map(str::to_owned), self.dims == 2);
        self.graph.add(name, Op::Norm(Norm { module, channels, groups: channels, eps: 1e-5, per_plane }), &[x])
    }

    /// Group norm with affine parameters, eps 1e-5.
    pub(super) fn group_norm(&mut self, module: &str, x: NodeId, channels: u32, groups: u32) -> NodeId {
        let norm = Norm { module: Some(module.to_owned()), channels, groups, eps: 1e-5, per_plane: self.dims == 2 };
        self.graph.add(module, Op::Norm(norm), &[x])
    }

    pub(super) fn activation(&mut self, name: impl Into<String>, x: NodeId, activation: Activation) -> NodeId {
        self.graph.add(name, Op::Activation(activation), &[x])
    }

    /// Channels of one map, then those of another.
    pub(super) fn concat(&mut self, name: impl Into<String>, first: NodeId, second: NodeId) -> NodeId {
        self.graph.add(name, Op::Concat, &[first, second])
    }

    /// Max pooling in windows of 2 voxels along every axis; an odd voxel at the far side is dropped.
    pub(super) fn max_pool(&mut self, name: impl Into<String>, x: NodeId) -> NodeId {
        let kernel = self.cube(2);
        self.graph.add(name, Op::max_pool(kernel), &[x])
    }
}
