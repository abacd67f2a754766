//! The residual network before the transformer, and its maps as skips.
//!
//! Source: "Big Transfer" (arXiv 1912.11370), as `ResNetV2` of TransUNet's `vit_seg_modeling_resnet_skip.py` computes it: standardised
//! weights and group norm; despite the name of its units, `PreActBottleneck`, the norm comes after the convolution.

use super::{STRIDE, TransUnetConfig, conv, three};
use crate::graph::{Combine, Conv, NodeId, Norm, Op};
use crate::kernels::{Activation, Shift};
use crate::model::blocks::Builder;

const MODULE: &str = "transformer.embeddings.hybrid_model";

/// Groups of all norms but those of projections.
const GROUPS: u32 = 32;

/// Added to the variance by all norms but those of projections.
const EPS: f64 = 1e-6;

/// Added to the variance of the weights of an output channel (`StdConv2d`).
const STD_EPS: f64 = 1e-5;

/// Channels of the last map.
pub(super) fn last(config: &TransUnetConfig) -> u32 {
    16 * config.width()
}

/// The last map, and the skips, deepest first.
pub(super) fn encode(b: &mut Builder, config: &TransUnetConfig) -> (NodeId, [NodeId; 3]) {
    let width = config.width();
    let x = b.graph.add("input", Op::Input { channels: config.in_channels }, &[]);
    let root = Conv { kernel: [1, 7, 7], stride: [1, 2, 2], padding: [0, 3, 3], ..Conv::default() };
    let x = conv(b, &format!("{MODULE}.root.conv"), x, [config.in_channels, width], &standardised(root));
    let x = norm(b, &format!("{MODULE}.root.gn"), x, width, GROUPS, EPS);
    let root = relu(b, format!("{MODULE}.root"), x);
    // without padding, so that 112 become 55
    let pool = Op::MaxPool { kernel: [1, 3, 3], stride: [1, 2, 2], padding: [0; 3] };
    let mut x = b.graph.add(format!("{MODULE}.pool"), pool, &[root]);
    let (mut maps, mut cin) = (vec![root], width);
    for (i, &units) in config.resnet_layers.iter().enumerate() {
        let block = format!("{MODULE}.body.block{}", i + 1);
        let (mid, cout) = (width << i, 4 * (width << i));
        for n in 1..=units {
            let stride = if n == 1 && i > 0 { 2 } else { 1 };
            x = unit(b, &format!("{block}.unit{n}"), x, [cin, mid, cout], stride);
            cin = cout;
        }
        maps.push(x);
    }
    // the skip alone is padded, after its last voxel, to what the decoder has there
    let short = config.image / (STRIDE / 4) - pooled(config.image / 2);
    let after = Shift::Pad { before: 0, after: short.cast_signed() };
    let padded = b.graph.add(format!("{MODULE}.padded"), Op::Shift([Shift::NONE, after, after]), &[maps[1]]);
    (x, [maps[2], padded, root])
}

/// Voxels along an axis after the pooling of so many.
fn pooled(n: u32) -> u32 {
    (n - 3) / 2 + 1
}

/// relu(shortcut(x) + f(x)), with a projection as shortcut where the shape changes.
fn unit(b: &mut Builder, unit: &str, x: NodeId, [cin, mid, cout]: [u32; 3], stride: u32) -> NodeId {
    let strided = |like: Conv| standardised(Conv { stride: [1, stride, stride], ..like });
    let y = conv(b, &format!("{unit}.conv1"), x, [cin, mid], &standardised(Conv::default()));
    let y = norm(b, &format!("{unit}.gn1"), y, mid, GROUPS, EPS);
    let y = relu(b, format!("{unit}.relu1"), y);
    let y = conv(b, &format!("{unit}.conv2"), y, [mid, mid], &strided(three()));
    let y = norm(b, &format!("{unit}.gn2"), y, mid, GROUPS, EPS);
    let y = relu(b, format!("{unit}.relu2"), y);
    let y = conv(b, &format!("{unit}.conv3"), y, [mid, cout], &standardised(Conv::default()));
    let y = norm(b, &format!("{unit}.gn3"), y, cout, GROUPS, EPS);
    let shortcut = if stride != 1 || cin != cout {
        let x = conv(b, &format!("{unit}.downsample"), x, [cin, cout], &strided(Conv::default()));
        // `nn.GroupNorm(cout, cout)`: a group for each channel, and the default eps
        norm(b, &format!("{unit}.gn_proj"), x, cout, cout, 1e-5)
    } else {
        x
    };
    let y = b.graph.add(format!("{unit}.sum"), Op::Add(Combine::default()), &[shortcut, y]);
    relu(b, unit.to_owned(), y)
}

/// A convolution of standardised weights, without a bias.
fn standardised(conv: Conv) -> Conv {
    Conv { bias: false, standardised: Some(STD_EPS), ..conv }
}

fn norm(b: &mut Builder, module: &str, x: NodeId, channels: u32, groups: u32, eps: f64) -> NodeId {
    let norm = Norm { module: Some(module.to_owned()), channels, groups, eps, per_plane: true };
    b.graph.add(module, Op::Norm(norm), &[x])
}

fn relu(b: &mut Builder, name: String, x: NodeId) -> NodeId {
    b.graph.add(name, Op::Activation(Activation::Relu), &[x])
}
