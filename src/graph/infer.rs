//! Shape inference: the map that each operation makes of its inputs.

use super::resample::{gathered, pooled, shifted};
use super::{Attention, Deformable, Op, norm};
use crate::kernels::{Load, Scope, channel_stats};
use crate::shape::{Extent, Map};

/// The map that an operation makes of its inputs; `extent` is that of the network's input.
pub(crate) fn infer_node(op: &Op, inputs: &[Map], extent: Extent) -> Result<Map, String> {
    let arity = match op {
        Op::Input { .. } | Op::InputAgain { .. } | Op::Parameter(_) => 0..=0,
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
        Op::PRelu { .. } => 1..=2,
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
        Op::Input { channels } | Op::InputAgain { channels } => Ok(Map::new(extent, *channels)),
        Op::Parameter(p) => p.infer(extent.d),
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
        Op::PRelu { channels, .. } if ![1, inputs[0].channels].contains(channels) => {
            Err(format!("{channels} slopes given {} channels", inputs[0].channels))
        }
        Op::PRelu { .. } => inputs.get(1).map_or(Ok(()), |scale| check_scale(inputs[0], *scale, scale_scope(*scale))).map(|()| inputs[0]),
        Op::LayerNorm { channels, eps, .. } => norm::check(*channels, inputs[0].channels, *eps).map(|()| inputs[0]),
        Op::BatchNorm(_) | Op::Activation(_) | Op::Softmax => Ok(inputs[0]),
        Op::PositionalEncoding(p) => p.check(inputs[0].channels).map(|()| inputs[0]),
        Op::Concat if same_extent => {
            let channels = inputs[0].channels.checked_add(inputs[1].channels).ok_or("has more channels than 32 bits count")?;
            Ok(Map::new(inputs[0].extent, channels))
        }
        Op::Add(c) | Op::Multiply(c) => c.infer(inputs),
        Op::Concat => Err(format!(
            "inputs differ: {} channels of {}, {} channels of {}",
            inputs[0].channels, inputs[0].extent, inputs[1].channels, inputs[1].extent
        )),
        Op::MaxPool { kernel, stride, padding } => Ok(Map::new(pooled(inputs[0].extent, *kernel, *stride, *padding)?, inputs[0].channels)),
        Op::AvgPool { kernel } => Ok(Map::new(pooled(inputs[0].extent, *kernel, *kernel, [0; 3])?, inputs[0].channels)),
        Op::Resize(resize) => Ok(Map::new(resize.output(inputs[0].extent)?, inputs[0].channels)),
        Op::Shift(shift) => Ok(Map::new(shifted(inputs[0].extent, shift)?, inputs[0].channels)),
        Op::Fit(fit) => Ok(Map::new(fit.output(extent)?, inputs[0].channels)),
        Op::PatchMerge(merge) => merge.infer(inputs[0]),
        Op::PatchExpand(expand) => expand.infer(inputs[0]),
        Op::Gather(tokens) => gathered(inputs[0], tokens),
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

/// What the scale and shift of a map are for: a map of one plane is its own volume.
pub(crate) fn scale_scope(scale: Map) -> Scope {
    if scale.extent.d == 1 { Scope::Volume } else { Scope::Plane }
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
