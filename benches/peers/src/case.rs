//! A case as the driver writes it: what is computed, of which input, with which weights.

use std::path::{Path, PathBuf};

use organum::Extent;
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::Failure;

/// What is computed.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Layer {
    /// A convolution of stride 1 with a cubic kernel, tensors `m.weight` and `m.bias`.
    Conv { outputs: u32, kernel: u32 },
    /// A transposed convolution with kernel and stride 2.
    Transposed { outputs: u32 },
    /// A linear layer over the channels of each voxel.
    Linear { outputs: u32 },
    /// Self-attention of all voxels: `qkv`, heads, `proj`.
    Attention { heads: u32 },
    /// The same within windows, with biases by relative position, as a Swin block has it.
    Windows { heads: u32, window: [u32; 3], shift: [u32; 3] },
    /// Residual blocks as SegResNet has them: twice norm, ReLU, convolution, then the sum.
    ResBlocks { blocks: u32, groups: u32 },
    /// A network: a model file, and what burn is to build if it is to run it.
    Network { model: PathBuf, burn: Option<Net> },
}

/// A network that is written with burn's modules, too.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(not(feature = "burn"), allow(dead_code))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Net {
    /// The U-Net of shared/reference/u_transformer.py without attention.
    UNet { levels: usize },
    /// nnU-Net's `PlainConvUNet` with two convolutions a stage and strides of 1, then 2.
    PlainConvUnet { stages: usize },
}

/// A case with its input and its weights.
#[derive(Debug)]
pub struct Case {
    pub layer: Layer,
    pub channels: u32,
    pub extent: Extent,
    /// `[C][D][H][W]`.
    pub input: Vec<f32>,
    /// A safetensors file.
    pub weights: Vec<u8>,
    /// Another, of what burn is to find ready: biases that are gathered, masks.
    #[cfg_attr(not(feature = "burn"), allow(dead_code))]
    extras: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct File {
    layer: Layer,
    channels: u32,
    extent: [u32; 3],
    input: PathBuf,
    weights: PathBuf,
    extras: Option<PathBuf>,
}

impl Case {
    /// Reads the case and its files.
    ///
    /// # Errors
    /// When one is missing, or the input has not the size that the case says.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let file: File = serde_json::from_slice(&std::fs::read(path)?)?;
        let input = floats(&std::fs::read(&file.input)?);
        let extent = Extent::from(file.extent);
        if input.len() as u64 != extent.voxels() * u64::from(file.channels) {
            let (n, c) = (input.len(), file.channels);
            return Err(format!("the input has {n} values, not {c} channels of {extent}").into());
        }
        let weights = std::fs::read(&file.weights)?;
        let extras = file.extras.map(std::fs::read).transpose()?;
        Ok(Self { layer: file.layer, channels: file.channels, extent, input, weights, extras })
    }

    /// Shape and values of a tensor of f32.
    #[cfg_attr(not(feature = "burn"), allow(dead_code))]
    pub fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Failure> {
        let all = SafeTensors::deserialize(&self.weights)?;
        let more = self.extras.as_deref().map(SafeTensors::deserialize).transpose()?;
        let extra = more.as_ref().and_then(|more| more.tensor(name).ok());
        let tensor = match extra {
            Some(tensor) => tensor,
            None => all.tensor(name).map_err(|e| format!("{name}: {e}"))?,
        };
        if tensor.dtype() != safetensors::Dtype::F32 {
            return Err(format!("{name} is {:?}, not F32", tensor.dtype()).into());
        }
        Ok((tensor.shape().to_vec(), floats(tensor.data())))
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}
