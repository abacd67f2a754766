//! Grey images for networks of three channels whose references repeat them: the weights of identical channels are summed once.

use super::{Model, pass};
use crate::error::{LoadError, LoadErrorKind};
use crate::graph::{Graph, Op};

impl Model {
    /// The network for an input of one channel, where its reference repeats a grey image to all channels: the first
    /// convolution's weights of those channels are summed in f64 (after they are standardised, where they are), so that the input
    /// is stored once. A network of one channel stays as it is.
    ///
    /// # Errors
    /// When the network does not take a grey image; see [`crate::Card::takes`].
    pub fn for_grey_input(mut self) -> Result<Self, LoadError> {
        if self.card.in_channels() == 1 {
            return Ok(self);
        }
        let taken = self.card.takes(1) && repeat_nothing(&mut self.raw);
        if !taken {
            let text = format!("this {} takes no image of one channel in place of {}", self.card.architecture, self.card.in_channels());
            return Err(LoadError::new(LoadErrorKind::Card, text));
        }
        (self.graph, self.applied) = pass::optimise(&self.raw, &[]);
        Ok(self)
    }
}

/// Makes the input one of one channel, and sums the weights of the convolutions that read it; false where something else does.
fn repeat_nothing(graph: &mut Graph) -> bool {
    let mut grey = Vec::new();
    for id in graph.ids() {
        let node = graph.node_mut(id);
        let reads = node.inputs.iter().any(|input| grey.contains(input));
        match &mut node.op {
            Op::Input { channels } => {
                *channels = 1;
                grey.push(id);
            }
            Op::Conv(conv) if reads && conv.is_plain() && node.inputs.len() == 1 => {
                (conv.copies, conv.in_channels) = (conv.in_channels, 1);
            }
            Op::Shift(_) if reads => grey.push(id),
            _ if reads => return false,
            _ => {}
        }
    }
    true
}
