//! A trained network: its card, its graph, and its weights as they lie in the file.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::{LoadError, LoadErrorKind, PlanError, PlanErrorKind};
use crate::graph::pass::{self, Applied};
use crate::graph::{BatchNorm, Graph, GraphError, KeyMask, NodeId, Norm, Op, Parameter, PositionalEncoding, RunInputs, WindowAttention};
use crate::kernels::{pack_window_constant, position_add};
use crate::scan::Filter;
use crate::shape::{Extent, Map};

mod architecture;
mod attention_unet;
mod basic_unet;
mod blocks;
mod card;
mod checkpoint;
mod cotr;
mod expects;
mod former;
mod grey;
mod infer;
mod layers;
#[expect(clippy::cast_possible_truncation, reason = "values that exist on this host")]
mod layout;
mod monai_parts;
mod monai_unet;
mod onnx;
mod pack;
mod plain_conv_unet;
mod residual_encoder_unet;
mod seg_res_net;
mod swin;
mod swin_unetr;
mod transunet;
mod u_transformer;
mod unet2d;
mod unetr;
mod vnet;
mod weights;

#[cfg(test)]
mod attention_tests;
#[cfg(test)]
mod conv_tests;
#[cfg(test)]
mod point_tests;
#[cfg(test)]
mod resample_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use architecture::{Architecture, Built};
pub use attention_unet::{AttentionUnet2dConfig, AttentionUnetConfig};
pub use basic_unet::{BasicUnetConfig, BasicUpsampling};
pub use card::{Card, Facts, Inference, InputSpec, Mirror, Mode, Scheme};
pub use checkpoint::{Checkpoint, CheckpointFormat};
pub(crate) use checkpoint::{pickled, plain};
pub use cotr::CotrConfig;
pub use expects::Expects;
pub use former::{FineConfig, GlamNnFormerConfig, GlamVariant, NnFormerConfig};
pub use layout::Layout;
pub use monai_parts::{MonaiActivation, MonaiNorm};
pub use monai_unet::{AdnOrdering, MonaiUnetConfig};
pub use plain_conv_unet::{DecoderKernels, PerStage, PlainConvNorm, PlainConvUnetConfig, UnetActivation, UnetNorm};
pub use residual_encoder_unet::ResidualEncoderUnetConfig;
pub use seg_res_net::{SegResNetConfig, SegResNetDsConfig, SegResNetUpsampling};
pub use swin::{GlamSwinUnetConfig, Image, SwinUnetConfig};
pub use swin_unetr::{SwinMerging, SwinUnetrConfig};
pub use transunet::TransUnetConfig;
pub use u_transformer::{Profile, UTransformerConfig};
pub use unet2d::Unet2dConfig;
pub use unetr::{UnetrConfig, UnetrProjection};
pub use vnet::{NormStatistics, VnetActivation, VnetConfig, VnetFlavour};
use weights::Tolerance;
pub use weights::Weights;

/// The card of a network that was built node by node.
const GRAPH_CARD: &str = r#"{"architecture":"graph","config":{}}"#;

/// A network ready to be planned. Holds no device memory; outlives any device. Its clones share the weights.
#[derive(Clone, Debug)]
pub struct Model {
    card: Card,
    /// Before any pass: what taps may name.
    raw: Graph,
    graph: Graph,
    applied: Applied,
    weights: Arc<Weights>,
    tolerance: Tolerance,
    /// The ONNX file that the graph was made of, and is made of anew for other extents.
    onnx: Option<Arc<onnx::Source>>,
}

impl Model {
    /// Loads a safetensors file, or a PyTorch checkpoint of which no code is run. The file is read into memory. Without a
    /// card, architecture and config are what names and shapes of the tensors tell; see [`Checkpoint`] for how to say the rest.
    ///
    /// # Errors
    /// When the file is missing or damaged, names an unknown architecture, its tensors do not fit, or it has no card and its
    /// tensors do not tell the network.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        Checkpoint::open(path)?.into_model(None)
    }

    /// The same from bytes in memory.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, LoadError> {
        Checkpoint::from_bytes(bytes)?.into_model(None)
    }

    /// A model of a card's JSON with reproducible random weights: for tests, benches, and trying a size before training it.
    ///
    /// # Errors
    /// When the card is not one, or names an unknown architecture.
    pub fn random(card: &str, seed: u64) -> Result<Self, LoadError> {
        Self::from_bytes(random_weights(card, seed)?)
    }

    /// A network of one's own, built node by node, with the weights of a safetensors file in memory; the file needs no card.
    /// A value that no pass should take away is named by the taps of [`crate::PlanOptions`].
    ///
    /// # Errors
    /// When the file is damaged, or its tensors are not those of [`Graph::parameters`] or not finite.
    pub fn from_graph(graph: Graph, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, LoadError> {
        let built = Built::new(graph, [1; 3]);
        let bytes: Cow<'static, [u8]> = bytes.into();
        let weights = Weights::of_safetensors(bytes.into())?;
        Self::of(Card::parse(GRAPH_CARD)?, built, Arc::new(weights))?.finite()
    }

    /// The same with reproducible random weights.
    ///
    /// # Errors
    /// As [`Model::from_graph`].
    pub fn random_graph(graph: Graph, seed: u64) -> Result<Self, LoadError> {
        let bytes = weights::random(GRAPH_CARD, &graph.parameters(), seed)?;
        Self::from_graph(graph, bytes)
    }

    /// The network for a crop whose centre lies there, in voxels from the volume's along D, H, W: FINE's volume tokens depend on it.
    ///
    /// # Errors
    /// When the architecture has no volume tokens.
    pub fn with_position(self, position: [i64; 3]) -> Result<Self, LoadError> {
        self.with("position", position.to_vec().into())
    }

    /// The network for a volume of which these volume tokens were visited, besides those that the file counts.
    ///
    /// # Errors
    /// When the architecture has no volume tokens, or not these.
    pub fn with_visited(self, tokens: &[u32]) -> Result<Self, LoadError> {
        self.with("visited", tokens.into())
    }

    /// The volume tokens that a crop at this position sees, if the network has any.
    #[must_use]
    pub fn current_tokens(&self, position: [i64; 3]) -> Option<[u32; 4]> {
        let config = serde_json::from_value::<FineConfig>(self.card.config.clone()).ok()?;
        (self.card.architecture == FineConfig::NAME).then(|| FineConfig { position, ..config }.current())
    }

    /// The volume tokens that were visited; see [`Model::with_visited`].
    pub(crate) fn visited(&self) -> Vec<u32> {
        self.card.config.get("visited").and_then(|list| serde_json::from_value(list.clone()).ok()).unwrap_or_default()
    }

    /// What a run is given for a crop at this position of a volume of which these tokens were visited.
    ///
    /// # Errors
    /// When the architecture has no volume tokens, or not these.
    pub(crate) fn run_inputs(&self, position: [i64; 3], visited: &[u32]) -> Result<RunInputs, LoadError> {
        let bad = |text: String| LoadError::new(LoadErrorKind::Card, text);
        if self.card.architecture != FineConfig::NAME {
            return Err(bad(format!("the architecture {} has no volume tokens", self.card.architecture)));
        }
        let config = serde_json::from_value::<FineConfig>(self.card.config.clone());
        let config = config.map_err(|e| bad("the card's config is not one of a fine".into()).caused_by(e))?;
        FineConfig { position, visited: visited.to_vec(), ..config }.run_inputs().map_err(bad)
    }

    /// The model with this post-processing in place of that of its nnU-Net pipeline.
    pub(crate) fn with_postprocessing(mut self, filters: &[Filter]) -> Result<Self, LoadError> {
        let Some(pipeline) = &mut self.card.input.nnunet else {
            let text = "post-processing of nnU-Net's goes with a model of its pipeline, which this is not";
            return Err(LoadError::new(LoadErrorKind::NotFound, text));
        };
        pipeline.postprocessing = filters.to_vec();
        Ok(self)
    }

    /// The graph before any pass: what taps may name.
    #[must_use]
    pub fn whole_graph(&self) -> &Graph {
        &self.raw
    }

    fn with(self, key: &str, value: Value) -> Result<Self, LoadError> {
        let Self { mut card, weights, .. } = self;
        if card.architecture != FineConfig::NAME {
            let text = format!("the architecture {} has no volume tokens", card.architecture);
            return Err(LoadError::new(LoadErrorKind::Card, text));
        }
        card.config[key] = value;
        let built = card.build()?;
        Self::of(card, built, weights)
    }

    /// The network of a whole card.
    fn from_card(mut card: Card, mut weights: Weights) -> Result<Self, LoadError> {
        let built = card.build()?;
        weights.drop_repeated(built.tolerance.canonical);
        let crop = built.crop;
        let model = Self::of(card, built, Arc::new(weights))?;
        if let Some(crop) = crop {
            swin::check_masks(&model.raw, crop.into(), &model.weights)?;
        }
        Ok(model)
    }

    fn of(mut card: Card, built: Built, weights: Arc<Weights>) -> Result<Self, LoadError> {
        card.know(&built);
        let Built { graph: raw, tolerance, .. } = built;
        let (graph, applied) = pass::optimise(&raw, &[]);
        weights.check(&graph.parameters(), &raw.parameters(), &tolerance)?;
        Ok(Self { card, raw, graph, applied, weights, tolerance, onnx: None })
    }

    /// The model, if all values of the tensors that it uses are finite.
    fn finite(self) -> Result<Self, LoadError> {
        self.weights.check_finite(&self.graph.parameters())?;
        Ok(self)
    }

    /// Writes a model file: the tensors as they are, under the reference implementation's names, and the card.
    ///
    /// # Errors
    /// When the file cannot be written, what was written of it stays; and for the network of an
    /// ONNX file.
    pub fn save(&self, path: impl AsRef<Path>) -> std::io::Result<()> {
        if self.onnx.is_some() {
            let text = "an ONNX file is a model as it is, and its graph is kept in no other; put a card beside it";
            return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, text));
        }
        self.weights.save(&serde_json::to_string(&self.card)?, path.as_ref())
    }

    /// The card: architecture, configuration, what the input must be, names of labels.
    #[must_use]
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// The graph after folding and fusing.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The network of an ONNX file; `card` is the JSON of what it takes and gives, without
    /// architecture and config.
    fn of_onnx(source: onnx::Source, card: serde_json::Map<String, Value>) -> Result<Self, LoadError> {
        let (built, weights, classes) = source.network()?;
        let mut card = card;
        card.insert("architecture".into(), onnx::ARCHITECTURE.into());
        card.insert("config".into(), json!({ "in_channels": source.channels(), "classes": classes }));
        let card = Card::parse_built(&Value::Object(card).to_string(), &built)?;
        let model = Self::of(card, built, Arc::new(weights))?;
        Ok(Self { onnx: Some(Arc::new(source)), ..model })
    }

    /// The graph after folding and fusing for an input of one extent: that of an ONNX file may be
    /// another for each, as extents are numbers in it; all others have one graph.
    ///
    /// # Errors
    /// When an ONNX file does not take the extent.
    pub fn graph_at(&self, extent: Extent) -> Result<Cow<'_, Graph>, PlanError> {
        self.graph_for(extent, &[])
    }

    /// The same with the values of these nodes stored; see [`Model::graph_with`].
    pub(crate) fn graph_for(&self, extent: Extent, taps: &[String]) -> Result<Cow<'_, Graph>, PlanError> {
        let Some(source) = &self.onnx else { return Ok(self.graph_with(taps)) };
        let refused = |e: GraphError| PlanError::new(PlanErrorKind::Extent, format!("{} on an input of {extent}", e.message)).at(e.node);
        let raw = source.graph(extent).map_err(refused)?;
        if raw == self.raw {
            return Ok(self.graph_with(taps));
        }
        let keep: Vec<NodeId> = taps.iter().filter_map(|tap| raw.find(tap)).collect();
        let (graph, _) = pass::optimise(&raw, &keep);
        let other = graph.parameters().into_iter().find(|(name, shape)| self.weights.shape(name) != Some(shape));
        if let Some((name, shape)) = other {
            let text = format!(
                "the weights {name} are of shape {shape:?} on an input of {extent}, which the file does not have: it fits one extent"
            );
            return Err(PlanError::new(PlanErrorKind::Extent, text));
        }
        Ok(Cow::Owned(graph))
    }

    /// The graph in which the values of these nodes are stored: where a pass took one away, folding and fusing stop short of it.
    pub(crate) fn graph_with(&self, taps: &[String]) -> Cow<'_, Graph> {
        if taps.iter().all(|tap| self.graph.find(tap).is_some()) {
            return Cow::Borrowed(&self.graph);
        }
        let keep: Vec<NodeId> = taps.iter().filter_map(|tap| self.raw.find(tap)).collect();
        Cow::Owned(pass::optimise(&self.raw, &keep).0)
    }

    /// What the graph passes did.
    #[must_use]
    pub fn applied(&self) -> Applied {
        self.applied
    }

    /// The tensors.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Bytes of memory that the model's file takes.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.weights.held()
    }

    /// What the network takes.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.card.assumed()
    }

    /// Every spatial extent must be a multiple of this along D, H, W.
    #[must_use]
    pub fn stride(&self) -> [u32; 3] {
        self.card.stride()
    }

    /// Biases, index and padding of attention in windows; see [`pack_window_constant`].
    pub(crate) fn window_constant(&self, attention: &WindowAttention) -> Result<Vec<f32>, LoadError> {
        let s = &attention.shape;
        let (mut table, mut index) = (Vec::new(), Vec::new());
        if let Some(bias) = &attention.bias {
            table = self.weights.floats(&bias.table)?;
            index = match self.tolerance.relative_index {
                Some(rebuild) if !self.weights.has(&bias.index) => rebuild(s),
                _ => self.weights.floats(&bias.index)?,
            };
            if attention.clipped {
                index = corner(&index, s.k_window);
            }
            let whole = (table.len() as u64, index.len() as u64) == (u64::from(s.bias_rows) * u64::from(s.heads), s.index_len());
            let valid = |&row: &f64| row >= 0.0 && row < f64::from(s.bias_rows) && row.fract() == 0.0;
            if !whole || !index.iter().all(valid) {
                let text = format!("{} does not index the {} rows of {}", bias.index, s.bias_rows, bias.table);
                return Err(LoadError::new(LoadErrorKind::Tensors, text));
            }
        }
        let padding = attention.padding.as_ref().map(|name| self.weights.floats(name)).transpose()?;
        let part = |first: u32, channels: u32| match &padding {
            None => Ok(vec![0.0; channels as usize]),
            Some(all) => all.get(first as usize..(first + channels) as usize).map(<[f64]>::to_vec).ok_or_else(|| {
                let name = attention.padding.as_deref().unwrap_or_default();
                LoadError::new(LoadErrorKind::Tensors, format!("{name} has {} elements, keys and values need more", all.len()))
            }),
        };
        let (key, value) = (part(s.first[1], s.qk_channels)?, part(s.first[2], s.v_channels)?);
        let keys = s.k_window.iter().map(|&n| n as usize).product();
        Ok(pack_window_constant(&table, &index, s.heads, keys, [&key, &value]))
    }

    /// What is added to the scores of so many keys, a multiple of four.
    pub(crate) fn key_mask(&self, mask: Option<&KeyMask>, keys: u32) -> Result<Vec<f32>, LoadError> {
        let mut scores = vec![0.0; keys.next_multiple_of(4) as usize];
        if let Some(mask) = mask {
            for ((key, score), count) in (0u32..).zip(&mut scores).zip(self.weights.floats(&mask.counts)?) {
                *score = if count >= 1.0 || mask.visited.contains(&key) { 0.0 } else { mask.hidden };
            }
        }
        Ok(scores)
    }

    /// The rows of a parameter: `[rows][C padded]`, zero where padded.
    pub(crate) fn rows(&self, parameter: &Parameter) -> Result<Vec<f32>, LoadError> {
        let [_, channels] = parameter.shape.map(|n| n as usize);
        let values = self.weights.floats(&parameter.tensor)?;
        let taken = values.chunks_exact(channels.max(1)).skip(parameter.rows.start as usize).take(parameter.count() as usize);
        let padding = channels.next_multiple_of(4) - channels;
        #[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
        let padded = |row: &[f64]| row.iter().map(|&v| v as f32).chain(std::iter::repeat_n(0.0, padding)).collect::<Vec<_>>();
        Ok(taken.flat_map(padded).collect())
    }

    /// The table of a positional encoding; see [`position_add::table`]. The learned part lies in the rows of the first axis.
    pub(crate) fn positions(&self, encoding: &PositionalEncoding, map: Map) -> Result<Vec<f32>, LoadError> {
        let mut table = position_add::table(map, encoding.angles);
        if let Some(level) = &encoding.level {
            let (channels, padded) = (map.channels as usize, map.blocks() as usize * 4);
            let all = self.weights.floats(&level.tensor)?;
            let row = all.get(level.row as usize * channels..).unwrap_or_default();
            for depth in table.chunks_exact_mut(padded).take(map.extent.d as usize) {
                #[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
                depth.iter_mut().zip(row).take(channels).for_each(|(sum, &v)| *sum = (f64::from(*sum) + v) as f32);
            }
        }
        Ok(table)
    }

    /// Scale and shift of each channel of a batch norm.
    fn folded(&self, norm: &BatchNorm) -> Result<Vec<(f64, f64)>, LoadError> {
        let part = |p: &str| self.weights.floats(&format!("{}.{p}", norm.module));
        let (gamma, beta, mean, var) = (part("weight")?, part("bias")?, part("running_mean")?, part("running_var")?);
        let scales = gamma.iter().zip(&var).map(|(gamma, var)| gamma / (var + norm.eps).sqrt());
        Ok(scales.zip(mean.iter().zip(&beta)).map(|(scale, (mean, beta))| (scale, beta - mean * scale)).collect())
    }

    /// What the node of an operation scales and shifts its `channels` channels by, or gamma and beta of its norm:
    /// `[2][C padded]`, zero where padded; a PReLU's slopes are a third row.
    pub(crate) fn scale_shift(&self, op: &Op, channels: u32) -> Result<Vec<f32>, LoadError> {
        let pairs = match op {
            Op::BatchNorm(norm) => self.folded(norm)?,
            Op::NormScale(Norm { module: Some(module), .. }) | Op::LayerNorm { module: Some(module), .. } => {
                let part = |p: &str| self.weights.floats(&format!("{module}.{p}"));
                part("weight")?.into_iter().zip(part("bias")?).collect()
            }
            _ => vec![(1.0, 0.0); channels as usize],
        };
        let (scales, shifts) = pairs.into_iter().unzip();
        let mut rows: Vec<Vec<f64>> = vec![scales, shifts];
        if let Op::PRelu { module, .. } = op {
            let slopes = self.weights.floats(&format!("{module}.weight"))?;
            // one slope is that of every channel
            rows.push(slopes.iter().copied().cycle().take(channels as usize).collect());
        }
        let padding = (channels.next_multiple_of(4) - channels) as usize;
        #[expect(clippy::cast_possible_truncation, reason = "f64 only for folding")]
        let padded = |row: Vec<f64>| row.into_iter().map(|v| v as f32).chain(std::iter::repeat_n(0.0, padding));
        Ok(rows.into_iter().flat_map(padded).collect())
    }
}

/// The first rows and columns of a square index, as many as a window has voxels; all of it where it
/// has no more.
fn corner(index: &[f64], window: [u32; 3]) -> Vec<f64> {
    let (n, side) = (window.iter().map(|&n| n as usize).product::<usize>(), index.len().isqrt());
    if n >= side || side * side != index.len() {
        return index.to_vec();
    }
    index.chunks_exact(side).take(n).flat_map(|row| row[..n].iter().copied()).collect()
}

/// A model file of a card's JSON with reproducible random weights, those that no output depends on included.
///
/// # Errors
/// As [`Model::random`].
pub fn random_weights(card: &str, seed: u64) -> Result<Vec<u8>, LoadError> {
    weights::random(card, &Card::parse(card)?.build()?.graph.parameters(), seed)
}

/// The card and the optimised graph of a card's JSON, without weights: enough to plan.
///
/// # Errors
/// When the card is not one, or names an unknown architecture.
pub fn architecture(card: &str) -> Result<(Card, Graph), LoadError> {
    let mut card = Card::parse(card)?;
    let (graph, _) = pass::optimise(&card.build()?.graph, &[]);
    Ok((card, graph))
}
