//! What every architecture tells of itself: its name, its graph from a card's config, and how its checkpoints are read.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::attention_unet::{AttentionUnet2dConfig, AttentionUnetConfig};
use super::basic_unet::BasicUnetConfig;
use super::cotr::CotrConfig;
use super::former::{FineConfig, GlamNnFormerConfig, NnFormerConfig};
use super::monai_unet::MonaiUnetConfig;
use super::plain_conv_unet::PlainConvUnetConfig;
use super::residual_encoder_unet::ResidualEncoderUnetConfig;
use super::seg_res_net::{SegResNetConfig, SegResNetDsConfig};
use super::swin::{GlamSwinUnetConfig, SwinUnetConfig};
use super::swin_unetr::SwinUnetrConfig;
use super::transunet::TransUnetConfig;
use super::u_transformer::UTransformerConfig;
use super::unet2d::Unet2dConfig;
use super::unetr::UnetrConfig;
use super::vnet::VnetConfig;
use super::weights::Tolerance;
use crate::error::{LoadError, LoadErrorKind};
use crate::graph::Graph;

/// The config of an architecture, as in the card.
pub(super) trait Architecture: Serialize + DeserializeOwned {
    /// As cards name it.
    const NAME: &'static str;

    /// The unoptimised graph, or what is wrong with the config.
    fn build(&self) -> Result<Built, String>;
}

/// A network without weights.
pub(super) struct Built {
    pub graph: Graph,
    /// Every spatial extent must be a multiple of this along D, H, W.
    pub stride: [u32; 3],
    /// The least extent that the network takes.
    pub least: [u32; 3],
    /// The only extent that the network takes, if there is just one; of a 2D network that of a plane.
    pub crop: Option<[u32; 3]>,
    /// Spatial dimensions: 2 (each plane of the input is an image) or 3.
    pub dims: u32,
    /// An input of one channel is repeated to all channels of the network.
    pub grey: bool,
    /// How the tensors of a file may differ from those of the graph.
    pub tolerance: Tolerance,
}

impl Built {
    pub(super) fn new(graph: Graph, stride: [u32; 3]) -> Self {
        Self { graph, stride, least: stride, crop: None, dims: 3, grey: false, tolerance: Tolerance::default() }
    }
}

/// The architectures that cards may name.
const ALL: &[Entry] = &[
    entry::<UTransformerConfig>(),
    entry::<PlainConvUnetConfig>(),
    entry::<NnFormerConfig>(),
    entry::<GlamNnFormerConfig>(),
    entry::<FineConfig>(),
    entry::<UnetrConfig>(),
    entry::<CotrConfig>(),
    entry::<SwinUnetConfig>(),
    entry::<GlamSwinUnetConfig>(),
    entry::<TransUnetConfig>(),
    entry::<Unet2dConfig>(),
    entry::<AttentionUnet2dConfig>(),
    entry::<AttentionUnetConfig>(),
    entry::<VnetConfig>(),
    entry::<ResidualEncoderUnetConfig>(),
    entry::<MonaiUnetConfig>(),
    entry::<BasicUnetConfig>(),
    entry::<SegResNetConfig>(),
    entry::<SegResNetDsConfig>(),
    entry::<SwinUnetrConfig>(),
];

struct Entry {
    name: &'static str,
    open: fn(&Value) -> Result<(Built, Value), LoadError>,
}

const fn entry<A: Architecture>() -> Entry {
    Entry { name: A::NAME, open: open::<A> }
}

fn open<A: Architecture>(config: &Value) -> Result<(Built, Value), LoadError> {
    let bad = |text: String| LoadError::new(LoadErrorKind::Card, text);
    let not_one = || bad(format!("the card's config is not one of a {}", A::NAME));
    let config: A = serde_json::from_value(config.clone()).map_err(|e| not_one().caused_by(e))?;
    let built = config.build().map_err(bad)?;
    let filled = serde_json::to_value(config).map_err(|e| not_one().caused_by(e))?;
    Ok((built, filled))
}

/// The architectures that cards may name.
pub(super) fn names() -> Vec<&'static str> {
    ALL.iter().map(|entry| entry.name).collect()
}

/// The network of a config, and the config with the defaults of what it leaves out.
pub(super) fn build(architecture: &str, config: &Value) -> Result<(Built, Value), LoadError> {
    let Some(entry) = ALL.iter().find(|entry| entry.name == architecture) else {
        let text = format!("the card names the architecture {architecture:.40?}; this version builds: {}", names().join(", "));
        return Err(LoadError::new(LoadErrorKind::UnknownArchitecture, text));
    };
    (entry.open)(config)
}
