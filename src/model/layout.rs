//! How the reference implementations lay out what a node computes.

use super::Model;
use crate::graph::{Graph, Op};
use crate::transfer::{OutputData, OutputVolume};

/// The layout of a value in the reference implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `(1, C, D, H, W)`, or `(N, C, H, W)` with the planes of a volume as N for a 2D network.
    Map,
    /// `(1, D H W, C)`, or `(N, H W, C)`: what transformers compute.
    Tokens,
}

/// The layout of each node: linear layers, layer norms and attention work on tokens; what works element by element keeps the
/// layout of what it is given.
fn layouts(graph: &Graph) -> Vec<Layout> {
    let mut all: Vec<Layout> = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        let layout = match &node.op {
            Op::Conv(conv) if conv.weight_shape.len() == 2 => Layout::Tokens,
            Op::Parameter(_) | Op::LayerNorm { .. } | Op::Attention(_) | Op::WindowAttention(_) | Op::Deformable(_) => Layout::Tokens,
            Op::Gather(_) | Op::PatchMerge(_) | Op::PatchExpand(_) => Layout::Tokens,
            Op::Add(_) | Op::Multiply(_) | Op::Activation(_) | Op::PositionalEncoding(_) | Op::Shift(_) => {
                node.inputs.first().map_or(Layout::Map, |input| all[input.index()])
            }
            _ => Layout::Map,
        };
        all.push(layout);
    }
    all
}

impl Model {
    /// How the reference implementation lays out the value of a node of [`Model::whole_graph`].
    #[must_use]
    pub fn layout(&self, node: &str) -> Option<Layout> {
        let id = self.raw.find(node)?;
        layouts(&self.raw).get(id.index()).copied()
    }
}

impl OutputVolume {
    /// Shape and values in the layout of a reference implementation for networks of `dims` dimensions; labels as `(1, D, H, W)`
    /// or `(N, H, W)`.
    #[must_use]
    pub fn in_layout(&self, layout: Layout, dims: u32) -> (Vec<u64>, Vec<f32>) {
        let [d, h, w] = self.map.extent.axes().map(u64::from);
        let (planar, c) = (dims == 2, u64::from(self.map.channels));
        let values = match &self.data {
            OutputData::Labels(labels) => {
                let shape = if planar { vec![d, h, w] } else { vec![1, d, h, w] };
                return (shape, labels.iter().map(|&l| f32::from(l)).collect());
            }
            OutputData::Map(values) => values,
        };
        // as [parts][C][rows], where a part is the volume, or one plane of it
        let (parts, rows) = if planar { (d, h * w) } else { (1, d * h * w) };
        let at = |part: u64, channel: u64, row: u64| values[((channel * parts + part) * rows + row) as usize];
        let mut out = Vec::with_capacity(values.len());
        for part in 0..parts {
            match layout {
                Layout::Map => (0..c).for_each(|channel| out.extend((0..rows).map(|row| at(part, channel, row)))),
                Layout::Tokens => (0..rows).for_each(|row| out.extend((0..c).map(|channel| at(part, channel, row)))),
            }
        }
        let shape = match layout {
            Layout::Tokens => vec![parts, rows, c],
            Layout::Map if planar => vec![parts, c, h, w],
            Layout::Map => vec![1, c, d, h, w],
        };
        (shape, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::{Extent, Map};

    #[test]
    fn values_are_turned_into_the_layout_of_the_reference() {
        let map = Map::new(Extent::new(2, 1, 3), 2);
        let volume = OutputVolume { name: "x".into(), map, data: OutputData::Map((0..12).map(|v: u16| f32::from(v)).collect()) };
        let (shape, values) = volume.in_layout(Layout::Map, 3);
        assert_eq!((shape, values[..3].to_vec()), (vec![1, 2, 2, 1, 3], vec![0.0, 1.0, 2.0]));
        let (shape, values) = volume.in_layout(Layout::Tokens, 3);
        assert_eq!((shape, values[..4].to_vec()), (vec![1, 6, 2], vec![0.0, 6.0, 1.0, 7.0]));
        let (shape, values) = volume.in_layout(Layout::Map, 2);
        assert_eq!((shape, values[3..9].to_vec()), (vec![2, 2, 1, 3], vec![6.0, 7.0, 8.0, 3.0, 4.0, 5.0]));
        let (shape, values) = volume.in_layout(Layout::Tokens, 2);
        assert_eq!((shape, values[6..10].to_vec()), (vec![2, 3, 2], vec![3.0, 9.0, 4.0, 10.0]));
        let labels = OutputVolume { data: OutputData::Labels(vec![1, 0, 2, 3, 0, 1]), ..volume };
        assert_eq!(labels.in_layout(Layout::Map, 2), (vec![2, 1, 3], vec![1.0, 0.0, 2.0, 3.0, 0.0, 1.0]));
    }

    #[test]
    fn tokens_are_told_from_maps() {
        let card = r#"{"architecture":"unetr","config":{"image":[16,16,16],"feature_size":2,"hidden":8,"mlp":8,"heads":2,"classes":2}}"#;
        let model = Model::random(card, 1).expect("it is one");
        for (node, layout) in [
            ("vit.patch_embedding", Layout::Tokens),
            ("vit.blocks.3.mlp.fn", Layout::Tokens),
            ("vit.norm", Layout::Tokens),
            ("encoder2.transp_conv_init", Layout::Map),
            ("decoder2.concat", Layout::Map),
            ("encoder1.layer", Layout::Map),
        ] {
            assert_eq!(model.layout(node), Some(layout), "{node}");
        }
        assert_eq!(model.layout("nowhere"), None);
    }
}
