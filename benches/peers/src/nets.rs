//! Networks in burn's modules, read from the tensors of their PyTorch counterparts.

use burn::module::Param;
use burn::nn::{InstanceNorm, InstanceNormConfig};
use burn::tensor::Tensor;
use burn::tensor::activation::{leaky_relu, relu};
use burn::tensor::module::{batch_norm, conv_transpose3d, conv3d, interpolate};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions, InterpolateMode, InterpolateOptions};

use crate::Failure;
use crate::case::Net;
use crate::theirs::Weights;

const EPS: f64 = 1e-5;

type Forward = Box<dyn Fn(Tensor<5>) -> Tensor<5>>;

pub(crate) fn forward(weights: &Weights<'_>, net: &Net) -> Result<Forward, Failure> {
    match *net {
        Net::UNet { levels } => {
            let net = UNet::read(weights, levels)?;
            Ok(Box::new(move |x| net.forward(x)))
        }
        Net::PlainConvUnet { stages } => {
            let net = PlainConvUnet::read(weights, stages)?;
            Ok(Box::new(move |x| net.forward(x)))
        }
    }
}

struct Conv {
    weight: Tensor<5>,
    bias: Tensor<1>,
    stride: usize,
}

impl Conv {
    fn read(weights: &Weights<'_>, module: &str, stride: usize) -> Result<Self, Failure> {
        let weight = weights.tensor(&format!("{module}.weight"))?;
        Ok(Self { weight, bias: weights.tensor(&format!("{module}.bias"))?, stride })
    }

    fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let kernel = self.weight.dims()[2];
        let options = ConvOptions::new([self.stride; 3], [kernel / 2; 3], [1; 3], 1);
        conv3d(x, self.weight.clone(), Some(self.bias.clone()), options)
    }
}

/// Convolution, batch norm with running statistics, ReLU.
struct ConvBnRelu {
    conv: Conv,
    norm: [Tensor<1>; 4],
}

impl ConvBnRelu {
    fn read(weights: &Weights<'_>, module: &str) -> Result<Self, Failure> {
        let part = |name: &str| weights.tensor::<1>(&format!("{module}.norm.{name}"));
        let norm = [part("weight")?, part("bias")?, part("running_mean")?, part("running_var")?];
        Ok(Self { conv: Conv::read(weights, &format!("{module}.conv"), 1)?, norm })
    }

    fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let [gamma, beta, mean, variance] = self.norm.clone();
        relu(batch_norm(self.conv.forward(x), gamma, beta, mean, variance, EPS))
    }
}

fn double(weights: &Weights<'_>, module: &str) -> Result<[ConvBnRelu; 2], Failure> {
    let conv = |part: &str| ConvBnRelu::read(weights, &format!("{module}.{part}"));
    Ok([conv("a")?, conv("b")?])
}

fn both(convs: &[ConvBnRelu; 2], x: Tensor<5>) -> Tensor<5> {
    convs[1].forward(convs[0].forward(x))
}

struct Up {
    conv: Conv,
    reduce: ConvBnRelu,
    block: [ConvBnRelu; 2],
}

/// The U-Net of shared/reference/u_transformer.py without attention.
struct UNet {
    enc: Vec<[ConvBnRelu; 2]>,
    dec: Vec<Up>,
    head: Conv,
}

impl UNet {
    fn read(weights: &Weights<'_>, levels: usize) -> Result<Self, Failure> {
        let enc = (0..levels).map(|i| double(weights, &format!("enc.{i}")));
        let dec = (0..levels - 1).map(|i| {
            Ok::<_, Failure>(Up {
                conv: Conv::read(weights, &format!("dec.{i}.conv"), 1)?,
                reduce: ConvBnRelu::read(weights, &format!("dec.{i}.reduce"))?,
                block: double(weights, &format!("dec.{i}.block"))?,
            })
        });
        Ok(Self {
            enc: enc.collect::<Result<_, _>>()?,
            dec: dec.collect::<Result<_, _>>()?,
            head: Conv::read(weights, "head", 1)?,
        })
    }

    fn forward(&self, mut x: Tensor<5>) -> Tensor<5> {
        let mut skips = Vec::new();
        for (i, block) in self.enc.iter().enumerate() {
            x = both(block, if i == 0 { x } else { max_pool(x) });
            skips.push(x.clone());
        }
        skips.pop();
        for (up, skip) in self.dec.iter().zip(skips.into_iter().rev()) {
            let y = up.reduce.forward(up.conv.forward(upsample(x)));
            x = both(&up.block, Tensor::cat(vec![skip, y], 1));
        }
        self.head.forward(x)
    }
}

/// Windows of 2x2x2: burn pools maps of two axes alone.
fn max_pool(x: Tensor<5>) -> Tensor<5> {
    let [n, c, d, h, w] = x.dims();
    let x = x.reshape([n * c, d / 2, 2, h / 2, 2, w / 2, 2]);
    x.max_dim(2).max_dim(4).max_dim(6).reshape([n, c, d / 2, h / 2, w / 2])
}

/// Trilinear by 2 with aligned corners: burn resamples maps of two axes alone, so H and W, then D.
fn upsample(x: Tensor<5>) -> Tensor<5> {
    let [n, c, d, h, w] = x.dims();
    let to = |size: [usize; 2]| {
        InterpolateOptions::new(InterpolateMode::Bilinear).with_output_size(size)
    };
    let x = interpolate(x.reshape([n, c * d, h, w]), to([2 * h, 2 * w]));
    let x = interpolate(x.reshape([n, c, d, 4 * h * w]), to([2 * d, 4 * h * w]));
    x.reshape([n, c, 2 * d, 2 * h, 2 * w])
}

/// Convolution, instance norm, leaky ReLU.
struct ConvNormAct {
    conv: Conv,
    norm: InstanceNorm,
}

impl ConvNormAct {
    fn read(weights: &Weights<'_>, module: &str, stride: usize) -> Result<Self, Failure> {
        let gamma = weights.tensor::<1>(&format!("{module}.norm.weight"))?;
        let mut norm = InstanceNormConfig::new(gamma.dims()[0]).init(weights.device);
        norm.beta = Some(Param::from_tensor(weights.tensor(&format!("{module}.norm.bias"))?));
        norm.gamma = Some(Param::from_tensor(gamma));
        norm.epsilon = EPS;
        Ok(Self { conv: Conv::read(weights, &format!("{module}.conv"), stride)?, norm })
    }

    fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        leaky_relu(self.norm.forward(self.conv.forward(x)), 0.01)
    }
}

struct Stage {
    /// Weight and bias of the transposed convolution.
    up: (Tensor<5>, Tensor<1>),
    convs: [ConvNormAct; 2],
}

/// nnU-Net's `PlainConvUNet` with cubic kernels of 3 and strides of 2.
struct PlainConvUnet {
    encoder: Vec<[ConvNormAct; 2]>,
    decoder: Vec<Stage>,
    head: Conv,
}

impl PlainConvUnet {
    fn read(weights: &Weights<'_>, stages: usize) -> Result<Self, Failure> {
        let pair = |module: &str, stride: usize| {
            let conv = |i: usize, stride: usize| {
                ConvNormAct::read(weights, &format!("{module}.convs.{i}"), stride)
            };
            Ok::<_, Failure>([conv(0, stride)?, conv(1, 1)?])
        };
        let encoder =
            (0..stages).map(|i| pair(&format!("encoder.stages.{i}.0"), if i == 0 { 1 } else { 2 }));
        let decoder = (0..stages - 1).map(|i| {
            let up = format!("decoder.transpconvs.{i}");
            let up =
                (weights.tensor(&format!("{up}.weight"))?, weights.tensor(&format!("{up}.bias"))?);
            Ok::<_, Failure>(Stage { up, convs: pair(&format!("decoder.stages.{i}"), 1)? })
        });
        Ok(Self {
            encoder: encoder.collect::<Result<_, _>>()?,
            decoder: decoder.collect::<Result<_, _>>()?,
            head: Conv::read(weights, &format!("decoder.seg_layers.{}", stages - 2), 1)?,
        })
    }

    fn forward(&self, mut x: Tensor<5>) -> Tensor<5> {
        let mut skips = Vec::new();
        for convs in &self.encoder {
            x = convs[1].forward(convs[0].forward(x));
            skips.push(x.clone());
        }
        skips.pop();
        for (stage, skip) in self.decoder.iter().zip(skips.into_iter().rev()) {
            let options = ConvTransposeOptions::new([2; 3], [0; 3], [0; 3], [1; 3], 1);
            let (weight, bias) = stage.up.clone();
            let up = conv_transpose3d(x, weight, Some(bias), options);
            x = Tensor::cat(vec![up, skip], 1);
            x = stage.convs[1].forward(stage.convs[0].forward(x));
        }
        self.head.forward(x)
    }
}
