//! ONNX files: graphs of operations with their weights, as PyTorch's exporters write them.
//!
//! The graph is translated anew for every extent ([`translate`]): shapes are numbers then, so that
//! what a file computes of them is computed here ([`fold`]), and reshaping and transposing are
//! views ([`view`]). What is no operation of ours, and can be written as none, is refused by its
//! name. The file is a stranger's: messages are read where they lie ([`wire`]), and fields,
//! constants and extents are bounded.

mod attention;
mod conv;
mod fold;
mod layout;
mod node;
mod norm;
mod pointwise;
mod pool;
mod proto;
mod tensor;
mod translate;
mod view;
mod wire;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;

use super::architecture::Built;
use super::weights::{Bytes, Place, Stored, Weights};
use crate::error::{LoadError, LoadErrorKind};
use crate::graph::{Graph, GraphError};
use crate::host::read_text;
use crate::shape::Extent;
use node::Node;
use proto::{GraphProto, ModelProto, ValueInfo};
use tensor::{Data, Files, Tensor};
use translate::{Needed, Translated, Translator};

/// The architecture of the card of a network that an ONNX file holds.
pub(super) const ARCHITECTURE: &str = "onnx";

/// The key of the file's metadata that may hold a card, as in model files.
const CARD_KEY: &str = "organum";

/// Most bytes of a card beside a file.
const MOST_CARD: u64 = 16 << 20;

/// Operator sets that are read.
const OPSETS: std::ops::RangeInclusive<i64> = 9..=24;

/// Extents that are tried along free axes, one after another, to see what a graph takes.
const TRIED: [u32; 8] = [64, 32, 96, 128, 48, 160, 112, 224];

/// Most channels of an input.
const MOST_CHANNELS: i64 = 65_536;

/// The graph of an ONNX file.
#[derive(Debug)]
pub(super) struct Source {
    /// The file, and those beside it.
    files: Arc<[Bytes]>,
    nodes: Vec<Node>,
    constants: HashMap<String, Arc<Tensor>>,
    uses: HashMap<String, usize>,
    input: String,
    output: String,
    /// Outputs besides the first.
    others: Vec<String>,
    channels: u32,
    /// True for a network of images.
    flat: bool,
    /// The extents along D, H, W that the file fixes.
    fixed: [Option<u32>; 3],
    /// The JSON of the card in the file's metadata, or of the one beside it.
    card: Option<String>,
}

/// Input and output of an ONNX file.
#[derive(Clone, Copy, Debug)]
struct Extents {
    /// One that it takes.
    one: [u32; 3],
    stride: [u32; 3],
    least: [u32; 3],
}

fn format(text: impl Into<String>) -> LoadError {
    LoadError::new(LoadErrorKind::Format, text)
}

fn unsupported(e: GraphError) -> LoadError {
    LoadError::new(LoadErrorKind::Unsupported, e.message).at(e.node)
}

/// True if bytes are those of an ONNX file: the version comes first, and no other format that is
/// read begins so.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    bytes.first() == Some(&proto::FIRST_BYTE)
        && bytes.get(1).is_some_and(|&version| (1..=64).contains(&version))
        && bytes.get(8) != Some(&b'{')
}

impl Source {
    /// Reads a file in a folder, or bytes in memory.
    ///
    /// # Errors
    /// When it is damaged, or its graph is not one of one scan to scores.
    pub(super) fn read(bytes: Bytes, folder: Option<&Path>) -> Result<Self, LoadError> {
        let ModelProto { graph, mut metadata, opset } = proto::model(bytes.get()).map_err(|e| format(format!("the ONNX file {e}")))?;
        let mut files = Files::new(bytes, folder);
        if !OPSETS.contains(&opset) {
            let (first, last) = (OPSETS.start(), OPSETS.end());
            let text = format!("the ONNX file is of opset {opset}; this version reads {first} to {last}: export it with opset_version=20");
            return Err(LoadError::new(LoadErrorKind::Unsupported, text));
        }
        let GraphProto { nodes, initializers, inputs, outputs } = graph;
        let mut constants = HashMap::new();
        for proto in initializers {
            let name = proto.name.clone();
            let tensor = Tensor::read(proto, &mut files).map_err(|e| format(format!("the ONNX file is damaged: {e}")))?;
            constants.insert(name, Arc::new(tensor));
        }
        let mut read = Vec::with_capacity(nodes.len());
        for proto in nodes {
            let node = Node::read(proto, &mut files).map_err(|e| format(format!("the ONNX file is damaged: {e}")))?;
            // weights may be constants in place of initialisers
            if node.op() == "Constant"
                && let Some(tensor) = node.constant().map_err(|e| format(e).at(node.name.clone()))?
            {
                constants.insert(node.output().to_owned(), Arc::new(tensor));
                continue;
            }
            read.push(node);
        }
        let mut uses: HashMap<String, usize> = HashMap::new();
        let names = read.iter().flat_map(|node| &node.inputs).chain(outputs.iter().map(|output| &output.name));
        names.for_each(|name| *uses.entry(name.clone()).or_default() += 1);
        // old files name their weights among the inputs
        let inputs: Vec<ValueInfo> = inputs.into_iter().filter(|input| !constants.contains_key(&input.name)).collect();
        let Ok([input]) = <[ValueInfo; 1]>::try_from(inputs) else {
            let text = "the ONNX graph has not one input, the scan, but none or several";
            return Err(LoadError::new(LoadErrorKind::Unsupported, text));
        };
        let mut outputs = outputs.into_iter().map(|output| output.name);
        let output = outputs.next().ok_or_else(|| format("the ONNX graph has no output"))?;
        let (channels, flat, fixed) = input_shape(&input).map_err(|e| unsupported(GraphError { node: input.name.clone(), message: e }))?;
        let (input, others) = (input.name, outputs.collect());
        let files = files.all.into();
        let card = metadata.remove(CARD_KEY);
        Ok(Self { files, nodes: read, constants, uses, input, output, others, channels, flat, fixed, card })
    }

    /// Number of times that a value is read, the graph's outputs included.
    fn uses(&self, name: &str) -> usize {
        self.uses.get(name).copied().unwrap_or(0)
    }

    /// Reads a file, and the card beside it: `net.card.json` or `net.json` of `net.onnx`, which go
    /// before one in its metadata.
    ///
    /// # Errors
    /// As [`Source::read`], and when a card cannot be read.
    pub(super) fn open(bytes: Bytes, path: &Path) -> Result<Self, LoadError> {
        let mut source = Self::read(bytes, Some(folder_of(path)))?;
        for ending in ["card.json", "json"] {
            let card = path.with_extension(ending);
            if card.is_file() {
                let told = read_text(&card, MOST_CARD).map_err(|e| LoadError::io(format!("cannot read the card {}", card.display()), e))?;
                source.card = Some(told);
                break;
            }
        }
        Ok(source)
    }

    /// The JSON of the card in the file's metadata or beside it, if there is one.
    pub(super) fn card(&self) -> Option<&str> {
        self.card.as_deref()
    }

    /// The weights as they lie in the file.
    pub(super) fn weights(&self) -> Weights {
        let stored = self.constants.iter().filter_map(|(name, tensor)| match &tensor.data {
            Data::Stored(dtype, data) => Some((name.clone(), Stored { dtype: *dtype, shape: tensor.shape.clone(), data: data.clone() })),
            _ => None,
        });
        Weights::of_tensors(self.files.clone(), stored.collect())
    }

    /// The outputs besides the first, which alone is computed.
    pub(super) fn left_aside(&self) -> &[String] {
        &self.others
    }

    /// The graph on an input of this extent, before any pass; of images the planes are of no
    /// account.
    ///
    /// # Errors
    /// When the file does not take the extent: the node is named.
    pub(super) fn graph(&self, extent: Extent) -> Result<Graph, GraphError> {
        let extent = if self.flat { Extent { d: 1, ..extent } } else { extent };
        let axes = extent.axes();
        if let Some(axis) = (0..3).find(|&axis| self.fixed[axis].is_some_and(|n| n != axes[axis])) {
            let n = self.fixed[axis].unwrap_or(0);
            let text =
                format!("the file fixes {n} voxels along {}, not {}; export it with dynamic axes", ["D", "H", "W"][axis], axes[axis]);
            return Err(GraphError { node: self.input.clone(), message: text });
        }
        Ok(Translator::run(self, extent)?.graph)
    }

    /// The network, its weights and its classes.
    ///
    /// # Errors
    /// When the graph has what is not read, or takes no extent that was tried.
    pub(super) fn network(&self) -> Result<(Built, Weights, u32), LoadError> {
        let extents = self.extents().map_err(unsupported)?;
        let Translated { graph, tensors } = Translator::run(self, extents.one.into()).map_err(unsupported)?;
        let stored = tensors.into_iter().map(|(name, (shape, needed))| (name, self.stored(shape, needed)));
        let weights = Weights::of_tensors(self.files.clone(), stored.collect());
        let maps = graph.infer(extents.one.into()).map_err(unsupported)?;
        let classes = maps.last().map_or(1, |map| map.channels);
        let mut built = Built::new(graph, extents.stride);
        built.least = extents.least;
        built.dims = if self.flat { 2 } else { 3 };
        let free = if self.flat { &self.fixed[1..] } else { &self.fixed[..] };
        if free.iter().all(Option::is_some) {
            (built.crop, built.stride, built.least) = (Some(extents.one), [1; 3], extents.one);
        }
        Ok((built, weights, classes))
    }

    /// Input channels.
    pub(super) fn channels(&self) -> u32 {
        self.channels
    }

    /// An extent that the graph takes, the multiples that it takes along each axis, and the least.
    fn extents(&self) -> Result<Extents, GraphError> {
        let at = |n: u32| self.fixed.map(|fixed| fixed.unwrap_or(n));
        let result = |axes: [u32; 3]| {
            let maps = Translator::run(self, axes.into()).and_then(|made| made.graph.infer(axes.into()))?;
            Ok::<_, GraphError>(maps.last().map_or(axes, |map| map.extent.axes()))
        };
        let free: Vec<usize> = (0..3).filter(|&axis| self.fixed[axis].is_none()).collect();
        let mut refused = None;
        let mut found = None;
        for n in TRIED {
            match result(at(n)) {
                Ok(axes) => {
                    found = Some((n, axes == at(n)));
                    break;
                }
                Err(e) if free.is_empty() => return Err(e),
                Err(e) => refused = refused.or(Some(e)),
            }
        }
        let Some((n, same)) = found else {
            return Err(refused.unwrap_or(GraphError { node: self.input.clone(), message: "takes no extent".into() }));
        };
        let one = at(n);
        // scores of another extent than the scan's are of no use where there are those of its own
        let takes = |axes: [u32; 3]| result(axes).is_ok_and(|made| !same || made == axes);
        let (mut stride, mut least) = (one, one);
        for axis in free {
            let with = |size: u32| std::array::from_fn(|other| if other == axis { size } else { one[other] });
            let mut divisors = (1..n).filter(|d| n.is_multiple_of(*d));
            stride[axis] = divisors.find(|&d| takes(with(n + d))).unwrap_or(n);
            let mut sizes = std::iter::successors(Some(stride[axis]), |size| Some(2 * size)).take_while(|&size| size < n);
            least[axis] = sizes.find(|&size| takes(with(size))).unwrap_or(n);
        }
        Ok(Extents { one, stride, least })
    }

    /// The tensor of a graph as it is stored.
    fn stored(&self, shape: Vec<usize>, needed: Needed) -> Stored {
        let held = |values: Vec<f32>, shape| Stored {
            dtype: Dtype::F32,
            shape,
            data: Place::Held(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        };
        match needed {
            Needed::Floats(values) => held(values, shape),
            Needed::Made(tensor, make) => held(make(tensor.floats(&self.files)), shape),
            Needed::Tensor(tensor) => match &tensor.data {
                Data::Stored(dtype, place) => Stored { dtype: *dtype, shape, data: place.clone() },
                _ => held(tensor.floats(&self.files), shape),
            },
        }
    }
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Channels, whether it is one of images, and fixed extents of an input.
fn input_shape(input: &ValueInfo) -> Result<(u32, bool, [Option<u32>; 3]), String> {
    let shown: Vec<String> = input.dims.iter().map(|dim| dim.map_or_else(|| "?".to_owned(), |n| n.to_string())).collect();
    let bad = |what: &str| format!("the input is of shape [{}], {what}", shown.join(", "));
    let (flat, [batch, channels, spatial @ ..]) = (input.dims.len() == 4, &input.dims[..]) else {
        return Err(bad("not [1, channels, D, H, W] or [1, channels, H, W]"));
    };
    if !(2..=3).contains(&spatial.len()) {
        return Err(bad("not [1, channels, D, H, W] or [1, channels, H, W]"));
    }
    if batch.is_some_and(|n| n != 1) {
        return Err(bad("a batch of several; export it with a batch of one"));
    }
    let channels = channels.filter(|n| (1..=MOST_CHANNELS).contains(n)).and_then(|n| u32::try_from(n).ok());
    let channels = channels.ok_or_else(|| bad("which does not say how many channels; export it without a dynamic axis 1"))?;
    let mut fixed = [Some(1), None, None];
    for (axis, dim) in spatial.iter().enumerate() {
        let n = dim.map(|n| u32::try_from(n).ok().filter(|n| (1..=65_535).contains(n)).ok_or_else(|| bad("which no scan has")));
        fixed[axis + 3 - spatial.len()] = n.transpose()?;
    }
    Ok((channels, flat, fixed))
}
