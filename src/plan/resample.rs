//! The kernels of operations that move voxels.

use super::network::Network;
use crate::graph::{NodeId, Op};
use crate::kernels::{Call, Target, Window, gather_tokens, patch_expand, patch_merge, pool3d, resize, shift};

impl Network {
    /// The kernel of resampling, pooling, shifting, patches and picked tokens; `None` for anything else.
    pub(super) fn resample(&self, id: NodeId) -> Option<Call> {
        let (node, elem, map) = (self.node(id), self.elem, self.map(id));
        let source = self.map(*node.inputs.first()?);
        let (input, windows, target) = (source.extent, [Window::whole(0)], Target::whole(map.extent.d));
        let (output, channels) = (map.extent, source.channels);
        Some(match &node.op {
            &Op::MaxPool { kernel, stride, padding } => {
                Call::Pool3d(pool3d::Pool3d { input, channels, average: false, kernel, stride, padding, elem, windows, target })
            }
            &Op::AvgPool { kernel } => {
                let (stride, padding) = (kernel, [0; 3]);
                Call::Pool3d(pool3d::Pool3d { input, channels, average: true, kernel, stride, padding, elem, windows, target })
            }
            Op::Resize(r) => Call::Resize(resize::Resize { input, output, channels, mode: r.mode, elem, windows, target }),
            &Op::Shift(shift) => Call::Shift(shift::ShiftMap { input, channels, shift, elem, windows, target }),
            Op::PatchMerge(m) => {
                let order = m.order.clone();
                Call::PatchMerge(patch_merge::PatchMerge { input, channels, patch: m.patch, order, elem, windows, target })
            }
            Op::PatchExpand(e) => {
                let (patch, channels) = (e.patch, map.channels);
                Call::PatchExpand(patch_expand::PatchExpand { input, output, channels, patch, elem, windows, target })
            }
            Op::Gather(_) => Call::GatherTokens(gather_tokens::GatherTokens { input: source, count: output.w, elem, windows, target }),
            _ => return None,
        })
    }
}
