//! Shape inference: the map that each operation makes of its inputs.

use super::resample::{gathered, pooled, shifted};
use super::{Attention, Deformable, Op, norm};
use crate::kernels::{Load, Scope, channel_stats};
use crate::shape::{Extent, Map};

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
        Op::Concat | Op::Multiply | Op::Normalise(_) => 2..=2,
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
    let beyond = || "the map is beyond 32-bit extents".to_owned();
    match op {
        Op::Input { channels: 0 } | Op::InputAgain { channels: 0 } | Op::Attention(Attention { heads: 0, .. }) => {
            Err("has no channels or heads".into())
        }
        Op::HeadArgmax(c) if !c.is_pointwise() => Err("is no pointwise convolution".into()),
        Op::Conv(c) | Op::HeadArgmax(c) if c.out_channels == 0 || c.kernel.contains(&0) || c.stride.contains(&0) => {
            Err("has a kernel, stride or width of zero".into())
        }
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
        Op::Conv(c) | Op::HeadArgmax(c) => {
            let (inputs, mut scales) = inputs.split_at(c.maps(inputs.len()));
            let have: u64 = inputs.iter().map(|m| u64::from(m.channels)).sum();
            let read = inputs.iter().enumerate().map(|(slot, m)| c.read_extent(slot, m.extent)).collect::<Result<Vec<_>, _>>()?;
            if have != u64::from(c.in_channels) || read.iter().any(|&extent| extent != read[0]) {
                return Err(format!("convolution of {} channels given {inputs:?}", c.in_channels));
            }
            if inputs.len() < 2 && c.loads[1] != Load::default() {
                return Err("does something to a second map that it does not read".into());
            }
            if c.through.iter().zip(&c.loads).any(|(through, load)| through.is_some() && *load != Load::default()) {
                return Err("normalises or activates what it reads through resampling".into());
            }
            for (map, load) in inputs.iter().zip(&c.loads) {
                let Some(scope) = load.norm else { continue };
                if scope == Scope::Plane && !c.keeps_planes() {
                    return Err("its windows reach over planes that are normalised each by itself".into());
                }
                let (scale, rest) = scales.split_first().ok_or("lacks a scale")?;
                check_scale(*map, *scale, scope)?;
                scales = rest;
            }
            let n = read[0].axes();
            let mut out = [0; 3];
            for axis in 0..3 {
                let padded = c.padding[axis].checked_mul(2).and_then(|p| p.checked_add(n[axis])).ok_or_else(beyond)?;
                let span = padded.checked_sub(c.kernel[axis]).ok_or("the kernel is larger than the padded map")?;
                out[axis] = span / c.stride[axis] + 1;
            }
            Ok(Map::new(out.into(), c.out_channels))
        }
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
        Op::BatchNorm(_) | Op::Activation(_) | Op::Softmax | Op::PositionalEncoding { .. } => Ok(inputs[0]),
        Op::Concat if same_extent => {
            let channels = inputs[0].channels.checked_add(inputs[1].channels).ok_or("has more channels than 32 bits count")?;
            Ok(Map::new(inputs[0].extent, channels))
        }
        Op::Multiply if inputs[0] == inputs[1] => Ok(inputs[0]),
        Op::Concat | Op::Multiply => Err(format!(
            "inputs differ: {} channels of {}, {} channels of {}",
            inputs[0].channels, inputs[0].extent, inputs[1].channels, inputs[1].extent
        )),
        Op::MaxPool { kernel, stride, padding } => Ok(Map::new(pooled(inputs[0].extent, *kernel, *stride, *padding)?, inputs[0].channels)),
        Op::Resize(resize) => Ok(Map::new(resize.output(inputs[0].extent)?, inputs[0].channels)),
        Op::Shift(shift) => Ok(Map::new(shifted(inputs[0].extent, shift)?, inputs[0].channels)),
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
fn check_scale(map: Map, scale: Map, scope: Scope) -> Result<(), String> {
    let expected = Map::new(Extent::new(scope.planes(map.extent.d), 1, 1), pair_channels(map.channels)?);
    if scale == expected {
        return Ok(());
    }
    Err(format!(
        "a map of {} channels of {} is scaled by {} values of {}, not {} of {}",
        map.channels, map.extent, scale.channels, scale.extent, expected.channels, expected.extent
    ))
}
