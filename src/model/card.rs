//! The card: JSON under the metadata key `organum` of a model file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::architecture::{self, Built};
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
        let card: Self = serde_json::from_str(json).map_err(|e| bad("the card is not what it should be".into()).caused_by(e))?;
        match card.input.resample.as_deref() {
            None | Some("linear") => {}
            Some(other) => return Err(bad(format!("the card asks for {other:?} resampling; this version has: linear"))),
        }
        if let Some(bad_spacing) = card.input.spacing_mm.filter(|s| s.iter().any(|&v| !(v.is_finite() && v > 0.0))) {
            return Err(bad(format!("the card's spacing_mm {bad_spacing:?} is not positive")));
        }
        Ok(card)
    }

    /// The network that the card describes; writes the defaults of what its config leaves out into it.
    pub(super) fn build(&mut self) -> Result<Built, LoadError> {
        let (built, filled) = architecture::build(&self.architecture, &self.config)?;
        self.config = filled;
        Ok(built)
    }

    /// Spatial dimensions of the network: 2 or 3.
    #[must_use]
    pub fn dims(&self) -> u32 {
        self.clone().build().map_or(3, |built| built.dims)
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
        self.clone().build().ok()?.crop.map(Extent::from)
    }

    /// Every spatial extent must be a multiple of this along D, H, W.
    #[must_use]
    pub fn stride(&self) -> [u32; 3] {
        self.clone().build().map_or([1; 3], |built| built.stride)
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
