//! An ONNX graph on an input of one extent as a graph of ours: every shape is a number, so that
//! arithmetic of shapes is computed and reshaping and transposing are views.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::Source;
use super::attention::Scores;
use super::fold;
use super::node::Node;
use super::norm::Statistic;
use super::pointwise::ErrorFunction;
use super::tensor::Tensor;
use super::view::{C, View, sizes};
use crate::graph::NodeId;
use crate::graph::{BatchNorm, Conv, Graph, GraphError, Norm, Op, PatchMerge, infer_node};
use crate::kernels::Shift;
use crate::model::weights::Bytes;
use crate::shape::{Extent, Map};

/// Most elements of all constants that are computed.
const MOST_ELEMENTS: usize = 1 << 28;

/// The value that a name of the ONNX graph stands for.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Constant(Arc<Tensor>),
    Map(View),
    /// A part of a norm that is written out.
    Statistic(Statistic),
    /// A part of a GELU that is written out.
    ErrorFunction(ErrorFunction),
    /// Scores of attention, which are never stored.
    Scores(Box<Scores>),
}

/// The values of a tensor that a graph needs.
pub(super) enum Needed {
    /// Those of the file, in the shape that the graph knows.
    Tensor(Arc<Tensor>),
    Floats(Vec<f32>),
    /// Those of the file, rearranged.
    Made(Arc<Tensor>, Box<dyn Fn(Vec<f32>) -> Vec<f32>>),
}

/// A graph and the tensors that it needs, by their names.
pub(super) struct Translated {
    pub graph: Graph,
    pub tensors: BTreeMap<String, (Vec<usize>, Needed)>,
}

/// Factor and summand of each channel.
#[derive(Clone, Debug)]
pub(super) struct Affine {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

/// A graph under construction.
pub(super) struct Translator<'a> {
    source: &'a Source,
    graph: Graph,
    maps: Vec<Map>,
    extent: Extent,
    /// True for a network of images, each plane one of its own.
    pub flat: bool,
    values: HashMap<&'a str, Value>,
    /// Of norms and of scalings.
    affines: BTreeMap<NodeId, Affine>,
    tensors: BTreeMap<String, (Vec<usize>, Needed)>,
    names: HashSet<String>,
    computed: usize,
}

/// Channels and the like as the graph counts them.
pub(super) fn narrow(n: usize) -> Result<u32, String> {
    u32::try_from(n).map_err(|_| format!("has an extent of {n}, more than 32 bits count"))
}

impl<'a> Translator<'a> {
    /// The graph of a file on an input of one extent.
    ///
    /// # Errors
    /// When the graph does not take the extent, or has an operation that is not read: the node is
    /// named.
    pub(super) fn run(source: &'a Source, extent: Extent) -> Result<Translated, GraphError> {
        let flat = source.flat;
        let values = source.constants.iter().map(|(name, tensor)| (name.as_str(), Value::Constant(tensor.clone()))).collect();
        let mut all = Self {
            source,
            graph: Graph::default(),
            maps: Vec::new(),
            extent,
            flat,
            values,
            affines: BTreeMap::new(),
            tensors: BTreeMap::new(),
            names: HashSet::new(),
            computed: 0,
        };
        let at = |name: &str| {
            let name = name.to_owned();
            move |message: String| GraphError { node: name, message }
        };
        let input = all.emit("input", Op::Input { channels: source.channels }, &[]).map_err(at(&source.input))?;
        let view = View { alone: source.uses(&source.input) == 1, ..View::image(input, all.map(input), flat) };
        all.values.insert(&source.input, Value::Map(view));
        for node in &source.nodes {
            let fail = |message: String| GraphError { node: node.name.clone(), message: format!("the {:.40} {message}", node.op()) };
            all.node(node).map_err(fail)?;
        }
        all.finish().map_err(at(&source.output))
    }

    fn finish(mut self) -> Result<Translated, String> {
        let Some(Value::Map(view)) = self.values.get(self.source.output.as_str()).cloned() else {
            return Err("is an output that is no map of scores".into());
        };
        let view = self.laid_out("output", &view)?;
        if !view.is_image(self.map(view.node), self.flat) {
            return Err("is an output whose axes are not batch, classes and those of space".into());
        }
        let mut view = view;
        if view.node == NodeId(0) {
            view.node = self.emit("output", Op::Shift([Shift::NONE; 3]), &[view.node])?;
        }
        for (id, affine) in std::mem::take(&mut self.affines) {
            let name = self.graph.node(id).name.clone();
            let identity = affine.scale.iter().all(|&v| v == 1.0) && affine.shift.iter().all(|&v| v == 0.0);
            let module = match &mut self.graph.node_mut(id).op {
                Op::BatchNorm(norm) => norm.module.clone(),
                Op::Norm(Norm { module, .. }) | Op::LayerNorm { module, .. } if !identity => {
                    *module = Some(name.clone());
                    name
                }
                _ => continue,
            };
            let running = matches!(self.op(id), Op::BatchNorm(_));
            let channels = affine.scale.len();
            #[expect(clippy::cast_possible_truncation, reason = "networks compute in f32")]
            let narrow = |list: &[f64]| Needed::Floats(list.iter().map(|&v| v as f32).collect());
            self.need(format!("{module}.weight"), vec![channels], narrow(&affine.scale));
            self.need(format!("{module}.bias"), vec![channels], narrow(&affine.shift));
            if running {
                self.need(format!("{module}.running_mean"), vec![channels], Needed::Floats(vec![0.0; channels]));
                self.need(format!("{module}.running_var"), vec![channels], Needed::Floats(vec![1.0; channels]));
            }
        }
        // what the output depends on, and so it comes last
        let mut alive = vec![false; self.graph.nodes().len()];
        alive[0] = true;
        let mut stack = vec![view.node];
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut alive[id.index()], true) {
                stack.extend(&self.graph.node(id).inputs);
            }
        }
        let mut graph = Graph::default();
        let mut moved = vec![NodeId(0); alive.len()];
        for id in self.graph.ids().filter(|id| alive[id.index()]) {
            let node = self.graph.node(id);
            let inputs: Vec<NodeId> = node.inputs.iter().map(|n| moved[n.index()]).collect();
            moved[id.index()] = graph.add(node.name.clone(), node.op.clone(), &inputs);
        }
        let needed: HashSet<String> = graph.parameters().into_iter().map(|(name, _)| name).collect();
        self.tensors.retain(|name, _| needed.contains(name));
        Ok(Translated { graph, tensors: self.tensors })
    }

    /// The files that constants lie in.
    pub(super) fn files(&self) -> &'a [Bytes] {
        &self.source.files
    }

    /// The map of a node.
    pub(super) fn map(&self, id: NodeId) -> Map {
        self.maps[id.index()]
    }

    /// Appends a node; where its name is taken it gets a number.
    ///
    /// # Errors
    /// When its inputs do not suit.
    pub(super) fn emit(&mut self, name: &str, op: Op, inputs: &[NodeId]) -> Result<NodeId, String> {
        let maps: Vec<Map> = inputs.iter().map(|&id| self.map(id)).collect();
        let map = infer_node(&op, &maps, self.extent)?;
        let name = self.unique(name);
        self.maps.push(map);
        Ok(self.graph.add(name, op, inputs))
    }

    /// A name that no node has.
    pub(super) fn unique(&mut self, name: &str) -> String {
        let mut free = name.to_owned();
        let mut number = 1;
        while !self.names.insert(free.clone()) {
            number += 1;
            free = format!("{name}#{number}");
        }
        free
    }

    /// The name that the next node of this name gets.
    pub(super) fn next_name(&self, name: &str) -> String {
        let numbered = (2..).map(|number| format!("{name}#{number}"));
        std::iter::once(name.to_owned()).chain(numbered).find(|name| !self.names.contains(name)).unwrap_or_default()
    }

    /// Says that the graph needs a tensor.
    pub(super) fn need(&mut self, name: String, shape: Vec<usize>, needed: Needed) {
        self.tensors.insert(name, (shape, needed));
    }

    /// The operation of a node.
    pub(super) fn op(&self, id: NodeId) -> &Op {
        &self.graph.node(id).op
    }

    /// The node that a node reads first.
    pub(super) fn input_of(&self, id: NodeId) -> Option<NodeId> {
        self.graph.node(id).inputs.first().copied()
    }

    /// Scale and shift of a norm or a scaling.
    pub(super) fn affine_of(&self, id: NodeId) -> Option<&Affine> {
        self.affines.get(&id)
    }

    /// Says what a norm or a scaling scales and adds.
    pub(super) fn set_affine(&mut self, id: NodeId, affine: Affine) {
        self.affines.insert(id, affine);
    }

    /// The value of an input of a node; `None` where it is left out.
    ///
    /// # Errors
    /// When no node made it.
    pub(super) fn value(&self, node: &Node, slot: usize) -> Result<Option<Value>, String> {
        let Some(name) = node.input(slot) else { return Ok(None) };
        self.values.get(name).cloned().map(Some).ok_or_else(|| format!("reads {name:.80}, which no node before it makes"))
    }

    /// An input that must be there.
    ///
    /// # Errors
    /// When it is left out.
    fn present(&self, node: &Node, slot: usize) -> Result<Value, String> {
        self.value(node, slot)?.ok_or_else(|| format!("lacks its input {slot}"))
    }

    /// An input that is a constant, or left out.
    ///
    /// # Errors
    /// When it depends on the network's input.
    pub(super) fn constant(&self, node: &Node, slot: usize) -> Result<Option<Arc<Tensor>>, String> {
        match self.value(node, slot)? {
            None => Ok(None),
            Some(Value::Constant(tensor)) => Ok(Some(tensor)),
            Some(_) => Err(format!("has an input {slot} that depends on the scan; only weights and shapes can stand there")),
        }
    }

    /// The integers of an input that is a constant, or left out.
    ///
    /// # Errors
    /// When they are no integers.
    pub(super) fn int_list(&self, node: &Node, slot: usize) -> Result<Option<Vec<i64>>, String> {
        let Some(tensor) = self.constant(node, slot)? else { return Ok(None) };
        tensor.as_ints().map(|list| Some(list.to_vec())).ok_or_else(|| format!("has floats as its input {slot}"))
    }

    /// An input that depends on the network's.
    ///
    /// # Errors
    /// When it does not, or is a part of something that stands nowhere else.
    pub(super) fn view(&mut self, node: &Node, slot: usize) -> Result<View, String> {
        match self.present(node, slot)? {
            Value::Map(view) => Ok(view),
            Value::Statistic(part) => self.stored_mean(&node.name, &part),
            Value::Constant(_) => Err(format!("has a constant as its input {slot}")),
            _ => Err("reads a part of a norm, a GELU or an attention that is written out otherwise than exporters do".into()),
        }
    }

    /// An input as an image.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn image(&mut self, node: &Node, slot: usize) -> Result<View, String> {
        let view = self.view(node, slot)?;
        let view = self.laid_out(&node.name, &view)?;
        if view.is_image(self.map(view.node), self.flat) {
            return Ok(view);
        }
        Err(format!("has an input of shape {:?} whose axes are not batch, channels and those of space in the map's order", view.shape()))
    }

    /// The same elements as all of a map: cropped, rolled, scaled, and without the channels that it
    /// has not.
    ///
    /// # Errors
    /// When what it has are no neighbours.
    pub(super) fn laid_out(&mut self, name: &str, view: &View) -> Result<View, String> {
        let mut view = view.clone();
        if view.roll != [0; 3] {
            let node = self.emit(&format!("{name}.roll"), Op::Shift(view.roll.map(Shift::Roll)), &[view.node])?;
            view = View { node, roll: [0; 3], alone: true, ..view };
        }
        if view.is_whole(self.map(view.node)) {
            return Ok(view);
        }
        self.thin(name, &mut view)?;
        let shift = view.crop(self.map(view.node)).ok_or("reads parts of a map that are no neighbours")?;
        if shift != [Shift::NONE; 3] {
            let node = self.emit(&format!("{name}.crop"), Op::Shift(shift), &[view.node])?;
            view = View { node, first: [view.first[C], 0, 0, 0], alone: true, ..view };
        }
        let (all, taken) = (sizes(self.map(view.node))[C], view.parts(C).map(|part| part.size).product::<usize>());
        if !view.is_dense(C) {
            return Err("reads channels that are no neighbours".into());
        }
        if taken != all {
            let first = view.first[C];
            let mut weights = vec![0.0; fold::count(&[taken, all])?];
            (0..taken).for_each(|i| weights[i * all + first + i] = 1.0);
            let node = self.selected(&format!("{name}.channels"), view.node, taken, weights)?;
            view = View { node, first: [0; 4], alone: true, ..view };
        }
        if view.gain != 1.0 {
            let gain = std::mem::replace(&mut view.gain, 1.0);
            view = self.scaled(name, &view, vec![gain; taken], vec![0.0; taken])?;
        }
        Ok(view)
    }

    /// Channels that are picked by ones in a matrix of zeros: exactly those.
    pub(super) fn selected(&mut self, name: &str, x: NodeId, outputs: usize, weights: Vec<f32>) -> Result<NodeId, String> {
        let inputs = self.map(x).channels;
        let module = self.next_name(name);
        let conv = Conv {
            module: module.clone(),
            in_channels: inputs,
            out_channels: narrow(outputs)?,
            bias: false,
            weight_shape: vec![outputs, inputs as usize, 1, 1, 1],
            ..Conv::default()
        };
        self.need(format!("{module}.weight"), conv.weight_shape.clone(), Needed::Floats(weights));
        self.emit(&module, Op::Conv(conv), &[x])
    }

    /// Leaves out the voxels between those that a view takes at a step.
    fn thin(&mut self, name: &str, view: &mut View) -> Result<(), String> {
        let mut patch = [1; 3];
        let mut first = [0; 3];
        for axis in 1..4 {
            if view.is_dense(axis) {
                continue;
            }
            let step = view.parts(axis).map(|part| part.step).min().unwrap_or(1);
            patch[axis - 1] = narrow(step)?;
            first[axis - 1] = narrow(view.first[axis] % step)?;
            view.first[axis] /= step;
            view.dims.iter_mut().flatten().filter(|part| part.axis == axis).for_each(|part| part.step /= step);
        }
        if patch != [1; 3] {
            let merge = PatchMerge { patch, order: vec![first] };
            view.node = self.emit(&format!("{name}.thinned"), Op::PatchMerge(merge), &[view.node])?;
            view.alone = true;
        }
        Ok(())
    }

    /// The map scaled and shifted channel by channel: by a norm that made it, if nothing else reads
    /// it.
    ///
    /// # Errors
    /// When the map is not whole.
    pub(super) fn scaled(&mut self, name: &str, view: &View, scale: Vec<f64>, shift: Vec<f64>) -> Result<View, String> {
        if let Some(Affine { scale: own, shift: added }) = self.affines.get_mut(&view.node).filter(|_| view.alone) {
            added.iter_mut().zip(scale.iter().zip(&shift)).for_each(|(a, (s, t))| *a = *a * s + t);
            own.iter_mut().zip(&scale).for_each(|(a, s)| *a *= s);
            return Ok(view.clone());
        }
        let channels = self.map(view.node).channels;
        let module = self.next_name(name);
        let id = self.emit(name, Op::BatchNorm(BatchNorm { module, channels, eps: 0.0 }), &[view.node])?;
        self.affines.insert(id, Affine { scale, shift });
        Ok(View { roll: view.roll, alone: true, ..view.of(id) })
    }

    /// Gives an output of a node its value.
    pub(super) fn set(&mut self, node: &'a Node, slot: usize, value: Value) {
        let Some(name) = node.outputs.get(slot).filter(|name| !name.is_empty()) else { return };
        let alone = self.source.uses(name) == 1;
        let value = match value {
            Value::Map(view) => Value::Map(View { alone: view.alone && alone, ..view }),
            other => other,
        };
        self.values.insert(name, value);
    }

    /// A new map, read by nothing yet, as an image.
    pub(super) fn made(&self, node: NodeId) -> Value {
        Value::Map(View { alone: true, ..View::image(node, self.map(node), self.flat) })
    }

    fn node(&mut self, node: &'a Node) -> Result<(), String> {
        let inputs = (0..node.inputs.len()).map(|slot| self.value(node, slot)).collect::<Result<Vec<_>, _>>()?;
        let known = inputs.iter().map(|value| match value {
            None => Some(None),
            Some(Value::Constant(tensor)) => Some(Some(&**tensor)),
            Some(_) => None,
        });
        if let Some(known) = known.collect::<Option<Vec<_>>>()
            && node.op() != "Split"
        {
            let made = fold::fold(node, &known, self.files())?.ok_or_else(|| unread("of constants"))?;
            self.computed += made.len();
            if self.computed > MOST_ELEMENTS {
                return Err(format!("is one of constants of more than {MOST_ELEMENTS} elements in all"));
            }
            self.set(node, 0, Value::Constant(Arc::new(made)));
            return Ok(());
        }
        let value = match node.op() {
            "Conv" => self.conv(node)?,
            "ConvTranspose" => self.conv_transpose(node)?,
            "MatMul" | "Gemm" | "Einsum" => self.product(node)?,
            "BatchNormalization" => self.batch_norm(node)?,
            "InstanceNormalization" | "GroupNormalization" | "LayerNormalization" => self.norm(node)?,
            "ReduceMean" => self.mean(node)?,
            "Pow" | "Sqrt" | "Reciprocal" => self.of_statistic(node)?,
            "Relu" | "LeakyRelu" | "PRelu" | "Elu" | "Sigmoid" | "Tanh" | "Gelu" | "Erf" | "HardSigmoid" | "HardSwish" | "Clip"
            | "Softmax" | "Swish" | "Neg" => self.activation(node)?,
            "Add" | "Sub" | "Mul" | "Div" => self.arithmetic(node)?,
            "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" => self.pool(node)?,
            "Resize" | "Upsample" => self.resize(node)?,
            "Pad" => self.pad(node)?,
            "Concat" => self.concat(node)?,
            "Split" => return self.split(node),
            "Tile" => self.tile(node)?,
            "Identity" | "Dropout" | "Cast" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Transpose" | "Expand" | "Slice"
            | "Gather" | "Shape" | "Size" => self.layout(node)?,
            _ => return Err(unread("")),
        };
        self.set(node, 0, value);
        Ok(())
    }
}

/// The refusal of an operation.
fn unread(what: &str) -> String {
    format!("{what} is an operation that this version does not read; export the network without it, or use its PyTorch checkpoint")
        .trim_start()
        .to_owned()
}
