//! The card: JSON under the metadata key `organum` of a model file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::u_transformer::UTransformerConfig;
use crate::error::{LoadError, LoadErrorKind};
use crate::shape::Extent;
use crate::volume::intensity::Intensity;
use crate::volume::orient::Axes;

/// What a model file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Name of the architecture, e.g. `u_transformer`.
    pub architecture: String,
    /// The architecture's own arguments.
    pub config: Value,
    /// What the network's input must be.
    #[serde(default)]
    pub input: InputSpec,
    /// How a scan is segmented.
    #[serde(default)]
    pub inference: Inference,
    /// Names of the classes by their number; 0 is background.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where the weights come from.
    #[serde(default)]
    pub provenance: String,
}

/// What the network's input must be.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InputSpec {
    /// Names of the input channels; empty when unnamed.
    pub channels: Vec<String>,
    /// Patient directions in which the tensor axes D, H, W increase; absent: the file's own order.
    pub axes: Option<Axes>,
    /// Voxel size along D, H, W in mm; absent: the scan's own.
    pub spacing_mm: Option<[f64; 3]>,
    /// Interpolation used to reach the spacing.
    pub resample: Option<String>,
    /// Scaling of the voxel values; absent: as they are.
    pub intensity: Option<Intensity>,
}

/// How a scan is segmented.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inference {
    /// `whole` (default): the whole volume at once.
    pub mode: Option<String>,
    /// Further keys, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Card {
    /// Parses and checks a card.
    pub(super) fn parse(json: &str) -> Result<Self, LoadError> {
        let bad = |message: String| LoadError::new(LoadErrorKind::Card, message);
        let mut card: Self = serde_json::from_str(json).map_err(|e| bad("the card is not what it should be".into()).caused_by(e))?;
        match card.input.resample.as_deref() {
            None | Some("linear") => {}
            Some(other) => return Err(bad(format!("the card asks for {other:?} resampling; this version has: linear"))),
        }
        if let Some(bad_spacing) = card.input.spacing_mm.filter(|s| s.iter().any(|&v| !(v.is_finite() && v > 0.0))) {
            return Err(bad(format!("the card's spacing_mm {bad_spacing:?} is not positive")));
        }
        super::former::fill(&mut card);
        Ok(card)
    }

    /// The configuration as that of an architecture, unchecked.
    pub(super) fn config<T: serde::de::DeserializeOwned>(&self) -> Result<T, LoadError> {
        let text = format!("the card's config is not one of a {}", self.architecture);
        serde_json::from_value(self.config.clone()).map_err(|e| LoadError::new(LoadErrorKind::Card, text).caused_by(e))
    }

    /// The configuration of a `u_transformer`, checked.
    pub(super) fn u_transformer(&self) -> Result<UTransformerConfig, LoadError> {
        let config: UTransformerConfig = self.config()?;
        config.check().map_err(|message| LoadError::new(LoadErrorKind::Card, message))?;
        Ok(config)
    }

    /// Spatial dimensions of the network: 2 or 3.
    #[must_use]
    pub fn dims(&self) -> u32 {
        self.config.get("dims").and_then(Value::as_u64).and_then(|d| u32::try_from(d).ok()).unwrap_or(3)
    }

    /// Input channels of the network.
    #[must_use]
    pub fn in_channels(&self) -> u32 {
        self.config.get("in_channels").and_then(Value::as_u64).and_then(|d| u32::try_from(d).ok()).unwrap_or(1)
    }

    /// Classes, background included.
    #[must_use]
    pub fn classes(&self) -> u32 {
        self.config.get("classes").and_then(Value::as_u64).and_then(|d| u32::try_from(d).ok()).unwrap_or(1)
    }

    /// The only extent that the network takes, if there is just one.
    #[must_use]
    pub fn crop(&self) -> Option<Extent> {
        let crop = self.config.get("crop").filter(|_| super::former::is(&self.architecture))?;
        serde_json::from_value::<[u32; 3]>(crop.clone()).ok().map(Extent::from)
    }

    /// Every spatial extent must be a multiple of this along D, H, W.
    #[must_use]
    pub fn stride(&self) -> [u32; 3] {
        if let Some(crop) = self.crop() {
            return crop.axes();
        }
        if let Some(strides) = self.config.get("strides").and_then(Value::as_array) {
            let mut product = [1u32; 3];
            for stage in strides.iter().filter_map(Value::as_array) {
                // along [D,] H, W
                for (n, s) in product.iter_mut().rev().zip(stage.iter().rev()) {
                    *n = n.saturating_mul(s.as_u64().and_then(|s| u32::try_from(s).ok()).unwrap_or(1).max(1));
                }
            }
            return product;
        }
        let levels = self.config.get("channels").and_then(Value::as_array).map_or(1, Vec::len);
        #[expect(clippy::cast_possible_truncation, reason = "checked to be at most 12 levels")]
        let s = 1u32 << levels.saturating_sub(1).min(12) as u32;
        if self.dims() == 2 { [1, s, s] } else { [s; 3] }
    }

    /// The name of a class; `label N` when the card has none.
    #[must_use]
    pub fn label_name(&self, class: u32) -> String {
        match self.labels.get(&class.to_string()) {
            Some(name) => name.clone(),
            None if class == 0 => "background".into(),
            None => format!("label {class}"),
        }
    }
}
