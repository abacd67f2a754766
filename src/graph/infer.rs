//! Shape inference: the map that each operation makes of its inputs.

use super::{Attention, Deformable, Op};
use crate::kernels::{Load, Scope, channel_stats};
use crate::shape::{Extent, Map};

pub(super) fn upsampled(extent: Extent, factor: [u32; 3]) -> Result<Extent, String> {
    let n = extent.axes();
    let mut out = [0; 3];
    for axis in 0..3 {
        out[axis] = n[axis].checked_mul(factor[axis]).ok_or("the map is beyond 32-bit extents")?;
    }
    Ok(out.into())
}

/// The map that an operation makes of its inputs; `extent` is that of the network's input.
pub(super) fn infer_node(op: &Op, inputs: &[Map], extent: Extent) -> Result<Map, String> {
    let arity = match op {
        Op::Input { .. } | Op::InputAgain { .. } => 0..=0,
        Op::Conv(c) | Op::HeadArgmax(c) => {
            let norms = c.loads.iter().filter(|load| load.norm.is_some()).count();
            1 + norms..=2 + norms
        }
        Op::ConvTranspose(c) => {
            let norms = usize::from(c.load.norm.is_some());
            1 + norms..=1 + norms
        }
        Op::Concat | Op::Normalise(_) => 2..=2,
        Op::Add(c) | Op::Multiply(c) => 2 + c.norms()..=2 + c.norms(),
        Op::Attention(_) if inputs.len() == 4 => return Err("has keys without values".into()),
        Op::Attention(_) => 3..=5,
        Op::WindowAttention(_) => 2..=3,
        Op::Deformable(_) => 3..=2 + Deformable::LEVELS,
        _ => 1..=1,
    };
    if !arity.contains(&inputs.len()) {
        return Err(format!("takes {arity:?} inputs, has {}", inputs.len()));
    }
    let same_extent = inputs.windows(2).all(|w| w[0].extent == w[1].extent);
    match op {
        Op::Input { channels: 0 } | Op::InputAgain { channels: 0 } | Op::Attention(Attention { heads: 0, .. }) => {
            Err("has no channels or heads".into())
        }
        Op::HeadArgmax(c) if !c.is_pointwise() || c.residual => Err("is no pointwise convolution".into()),
        Op::ConvTranspose(c) if c.out_channels == 0 || c.kernel.contains(&0) || c.stride.contains(&0) => {
            Err("has a kernel, stride or width of zero".into())
        }
        Op::ConvTranspose(c) if c.in_channels != inputs[0].channels => {
            Err(format!("transposed convolution of {} channels given {inputs:?}", c.in_channels))
        }
        Op::ConvTranspose(c) => {
            if let Some(scope) = c.load.norm {
                if scope == Scope::Plane && !c.keeps_planes() {
                    return Err("its windows reach over planes that are normalised each by itself".into());
                }
                check_scale(inputs[0], inputs[1], scope)?;
            }
            Ok(Map::new(c.output(inputs[0].extent)?, c.out_channels))
        }
        Op::MaxPool { kernel: k } | Op::Upsample { factor: k } if k.contains(&0) => Err("has a window or factor of zero".into()),
        Op::Input { channels } | Op::InputAgain { channels } => Ok(Map::new(extent, *channels)),
        Op::Conv(c) | Op::HeadArgmax(c) => c.infer(inputs),
        Op::BatchNorm(n) if n.channels != inputs[0].channels => {
            Err(format!("norm of {} channels given {}", n.channels, inputs[0].channels))
        }
        Op::Norm(n) => n.check(inputs[0].channels).map(|()| inputs[0]),
        Op::ChannelStats => {
            let Extent { d, h, .. } = inputs[0].extent;
            Ok(Map::new(Extent::new(d, channel_stats::parts(h), 1), pair_channels(inputs[0].channels)?))
        }
        Op::PlaneStats => Ok(Map::new(Extent::new(inputs[0].extent.d, 1, 1), inputs[0].channels)),
        Op::NormScale(n) => {
            n.check(n.channels)?;
            let planes = inputs[0].extent.d;
            if *inputs != [Map::new(Extent::new(planes, 1, 1), pair_channels(n.channels)?)] {
                return Err(format!(
                    "norm of {} channels given statistics of {} over {}",
                    n.channels, inputs[0].channels, inputs[0].extent
                ));
            }
            Ok(Map::new(Extent::new(n.scope().planes(planes), 1, 1), inputs[0].channels))
        }
        Op::Normalise(Load { norm: None, .. }) => Err("has a scale but no norm".into()),
        Op::Normalise(Load { norm: Some(scope), .. }) => check_scale(inputs[0], inputs[1], *scope).map(|()| inputs[0]),
        Op::BatchNorm(_) | Op::Activation(_) | Op::PositionalEncoding { .. } => Ok(inputs[0]),
        Op::Concat if same_extent => {
            let channels = inputs[0].channels.checked_add(inputs[1].channels).ok_or("has more channels than 32 bits count")?;
            Ok(Map::new(inputs[0].extent, channels))
        }
        Op::Add(c) | Op::Multiply(c) => c.infer(inputs),
        Op::Concat => Err(format!(
            "inputs differ: {} channels of {}, {} channels of {}",
            inputs[0].channels, inputs[0].extent, inputs[1].channels, inputs[1].extent
        )),
        Op::MaxPool { kernel } => {
            let n = inputs[0].extent.axes();
            let out = [n[0] / kernel[0], n[1] / kernel[1], n[2] / kernel[2]];
            if out.contains(&0) {
                return Err(format!("pooling an extent of {} leaves nothing", inputs[0].extent));
            }
            Ok(Map::new(out.into(), inputs[0].channels))
        }
        Op::Upsample { factor } => Ok(Map::new(upsampled(inputs[0].extent, *factor)?, inputs[0].channels)),
        Op::Attention(a) => a.infer(inputs),
        Op::WindowAttention(a) => a.infer(inputs),
        Op::Deformable(d) => d.infer(inputs),
        Op::Argmax => Ok(Map::new(inputs[0].extent, inputs[0].channels)),
    }
}

/// Channels of a map of pairs (mean and variance, scale and shift) of padded `channels`.
fn pair_channels(channels: u32) -> Result<u32, String> {
    channels.div_ceil(4).checked_mul(8).ok_or_else(|| "has more channels than 32 bits count".into())
}

/// Whether `scale` holds scale and shift of `map`.
pub(super) fn check_scale(map: Map, scale: Map, scope: Scope) -> Result<(), String> {
    let expected = Map::new(Extent::new(scope.planes(map.extent.d), 1, 1), pair_channels(map.channels)?);
    if scale == expected {
        return Ok(());
    }
    Err(format!(
        "a map of {} channels of {} is scaled by {} values of {}, not {} of {}",
        map.channels, map.extent, scale.channels, scale.extent, expected.channels, expected.extent
    ))
}
