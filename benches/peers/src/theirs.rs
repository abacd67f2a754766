//! burn's side: the layer or the network in burn's own modules, on its wgpu backend with fusion and
//! autotuning. burn evaluates lazily, so a run ends when a value of the result (of a network all of
//! it) is back on the host.

use std::ops::Range;
use std::time::Instant;

use burn::module::Param;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::module::{attention, conv_transpose3d, conv3d};
use burn::tensor::ops::{AttentionModuleOptions, ConvOptions, ConvTransposeOptions};
use burn::tensor::{Device, DeviceKind, Tensor, TensorData};
use serde_json::{Value, json};

use crate::case::{Case, Layer};
use crate::nets;
use crate::{Failure, Side};

/// From a map `[1][C][D][H][W]`, or its tokens `[1][D][H][W][C]`, to the result in the same order.
type Forward = Box<dyn Fn(Tensor<5>) -> Tensor<5>>;

struct Burn {
    forward: Forward,
    input: Tensor<5>,
    /// The input is tokens, and so is the result.
    tokens: bool,
    /// All of the result is read back, and the input is given from the host.
    whole: Option<TensorData>,
}

/// A case on burn's default wgpu adapter.
///
/// # Errors
/// When the tensors are not those of the case, or the device fails.
pub fn open(case: &Case) -> Result<Box<dyn Side>, Failure> {
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let weights = Weights { case, device: &device };
    let [d, h, w] = case.extent.axes().map(|n| n as usize);
    let shape = [1, case.channels as usize, d, h, w];
    let data = TensorData::new(case.input.clone(), shape);
    let input = Tensor::<5>::from_data(data.clone(), &device);
    let tokens = matches!(
        case.layer,
        Layer::Linear { .. } | Layer::Attention { .. } | Layer::Windows { .. }
    );
    let input = if tokens { settled(input.permute([0, 2, 3, 4, 1]))? } else { input };
    let whole = matches!(case.layer, Layer::Network { .. }).then_some(data);
    let forward = weights.forward(&case.layer, shape)?;
    Ok(Box::new(Burn { forward, input, tokens, whole }))
}

/// The same tensor, computed and contiguous.
fn settled(x: Tensor<5>) -> Result<Tensor<5>, Failure> {
    let device = x.device();
    let data = x.try_into_data().map_err(|e| format!("{e:?}"))?;
    Ok(Tensor::from_data(data, &device))
}

impl Side for Burn {
    fn output(&mut self) -> Result<Vec<f32>, Failure> {
        let y = (self.forward)(self.input.clone());
        let y = if self.tokens { y.permute([0, 4, 1, 2, 3]) } else { y };
        let data = y.try_into_data().map_err(|e| format!("{e:?}"))?;
        // the run before tuned, this one is as the others will be
        self.seconds()?;
        data.try_into_vec::<f32>().map_err(|e| format!("{e:?}").into())
    }

    fn seconds(&mut self) -> Result<f64, Failure> {
        let begin = Instant::now();
        let read = match &self.whole {
            Some(data) => {
                let x = Tensor::<5>::from_data(data.clone(), &self.input.device());
                (self.forward)(x).try_into_data()
            }
            None => {
                let one: [Range<usize>; 5] = std::array::from_fn(|_| 0..1);
                let y = (self.forward)(self.input.clone());
                // the whole result is alive until its value is here, so that all of it is computed
                let read = y.clone().slice(one).try_into_data();
                y.device().sync().map_err(|e| format!("{e:?}"))?;
                read
            }
        };
        read.map_err(|e| format!("{e:?}"))?;
        Ok(begin.elapsed().as_secs_f64())
    }

    fn about(&self) -> Value {
        json!({ "device": "burn's default wgpu adapter" })
    }
}

/// The tensors of a case on a device.
pub(crate) struct Weights<'a> {
    pub(crate) case: &'a Case,
    pub(crate) device: &'a Device,
}

impl Weights<'_> {
    pub(crate) fn tensor<const D: usize>(&self, name: &str) -> Result<Tensor<D>, Failure> {
        let (shape, values) = self.case.tensor(name)?;
        let shape: [usize; D] =
            shape.try_into().map_err(|s| format!("{name} has the shape {s:?}, not {D} axes"))?;
        Ok(Tensor::from_data(TensorData::new(values, shape), self.device))
    }

    /// burn's linear layer holds the transposed of PyTorch's matrix.
    fn linear(&self, module: &str) -> Result<Linear, Failure> {
        let weight = self.tensor::<2>(&format!("{module}.weight"))?.transpose();
        let [inputs, outputs] = weight.dims();
        let data = weight.try_into_data().map_err(|e| format!("{e:?}"))?;
        let mut linear = LinearConfig::new(inputs, outputs).init(self.device);
        linear.weight = Param::from_tensor(Tensor::from_data(data, self.device));
        linear.bias = Some(Param::from_tensor(self.tensor::<1>(&format!("{module}.bias"))?));
        Ok(linear)
    }

    fn forward(&self, layer: &Layer, shape: [usize; 5]) -> Result<Forward, Failure> {
        let [_, c, d, h, w] = shape;
        Ok(match layer {
            Layer::Conv { kernel, .. } => {
                let (weight, bias) = (self.tensor::<5>("m.weight")?, self.tensor::<1>("m.bias")?);
                let padding = [*kernel as usize / 2; 3];
                Box::new(move |x| {
                    let options = ConvOptions::new([1; 3], padding, [1; 3], 1);
                    conv3d(x, weight.clone(), Some(bias.clone()), options)
                })
            }
            Layer::Transposed { .. } => {
                let (weight, bias) = (self.tensor::<5>("m.weight")?, self.tensor::<1>("m.bias")?);
                Box::new(move |x| {
                    let options = ConvTransposeOptions::new([2; 3], [0; 3], [0; 3], [1; 3], 1);
                    conv_transpose3d(x, weight.clone(), Some(bias.clone()), options)
                })
            }
            Layer::Linear { outputs } => {
                let (linear, outputs) = (self.linear("m")?, *outputs as usize);
                Box::new(move |x| {
                    let y = linear.forward(x.reshape([1, d * h * w, c]));
                    y.reshape([1, d, h, w, outputs])
                })
            }
            Layer::Attention { heads } => {
                let (qkv, proj, heads) =
                    (self.linear("qkv")?, self.linear("proj")?, *heads as usize);
                Box::new(move |x| {
                    let n = d * h * w;
                    let [q, k, v] = split(qkv.forward(x.reshape([1, n, c])), heads);
                    let y = attention(q, k, v, None, None, AttentionModuleOptions::default());
                    let y = proj.forward(y.swap_dims(1, 2).reshape([1, n, c]));
                    y.reshape([1, d, h, w, c])
                })
            }
            Layer::Windows { heads, window, shift } => {
                self.windows(shape, *heads as usize, *window, *shift)?
            }
            Layer::Network { burn: Some(net), .. } => nets::forward(self, net)?,
            Layer::ResBlocks { .. } | Layer::Network { burn: None, .. } => {
                return Err("it is not written with burn's modules".into());
            }
        })
    }

    /// A Swin layer: rolled, cut into windows, biases by relative position, -100 where voxels did
    /// not touch before. The biases are gathered beforehand.
    fn windows(
        &self,
        shape: [usize; 5],
        heads: usize,
        window: [u32; 3],
        shift: [u32; 3],
    ) -> Result<Forward, Failure> {
        let [_, c, d, h, w] = shape;
        let window = window.map(|n| n as usize);
        let shift = shift.map(|n| n as i64);
        let grid = [d / window[0], h / window[1], w / window[2]];
        let (tokens, count) = (window.iter().product(), grid.iter().product());
        let (qkv, proj) = (self.linear("qkv")?, self.linear("proj")?);
        // made by the driver: [1][heads][tokens][tokens], and [windows][1][tokens][tokens]
        let bias = self.tensor::<4>("gathered_bias")?;
        let mask = if shift == [0; 3] { None } else { Some(self.tensor::<4>("mask")?) };
        let scale = 1.0 / ((c / heads) as f32).sqrt();
        let [gd, gh, gw] = grid;
        let [wd, wh, ww] = window;
        Ok(Box::new(move |x: Tensor<5>| {
            let rolled = shift != [0; 3];
            let x = if rolled { x.roll(&shift.map(|s| -s), &[1, 2, 3]) } else { x };
            let x = x.reshape([gd, wd, gh, wh, gw, ww, c]).permute([0, 2, 4, 1, 3, 5, 6]);
            let [q, k, v] = split(qkv.forward(x.reshape([count, tokens, c])), heads);
            let mut scores = q.mul_scalar(scale).matmul(k.swap_dims(2, 3)) + bias.clone();
            if let Some(mask) = &mask {
                scores = scores + mask.clone();
            }
            let y = softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([count, tokens, c]);
            let y = proj.forward(y).reshape([gd, gh, gw, wd, wh, ww, c]);
            let y = y.permute([0, 3, 1, 4, 2, 5, 6]).reshape([1, d, h, w, c]);
            if rolled { y.roll(&shift, &[1, 2, 3]) } else { y }
        }))
    }
}

/// Queries, keys and values `[batch][heads][tokens][C / heads]` of a fused projection.
fn split(qkv: Tensor<3>, heads: usize) -> [Tensor<4>; 3] {
    let [batch, tokens, channels] = qkv.dims();
    let c = channels / 3;
    [0, 1, 2].map(|part| {
        let one = qkv.clone().slice([0..batch, 0..tokens, part * c..(part + 1) * c]);
        one.reshape([batch, tokens, heads, c / heads]).swap_dims(1, 2)
    })
}
