//! The card: JSON under the metadata key `organum` of a model file.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::architecture::{self, Built};
use super::expects::Expects;
use crate::error::{LoadError, LoadErrorKind, PlanError, PlanErrorKind};
use crate::monai;
use crate::nnunet::Pipeline;
use crate::plan::check_extent;
use crate::scan::{Needs, Recipe, Resample, Restore, ResultStep, Step, WayBack};
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
    /// Which scans the model understands, and which results are plausible.
    #[serde(default, skip_serializing_if = "Expects::is_empty")]
    pub expects: Expects,
    /// Where the weights come from.
    #[serde(default)]
    pub provenance: String,
    #[serde(skip)]
    known: Known,
}

/// What a network takes, whatever its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// Spatial dimensions: 2 (each plane of the input is an image) or 3.
    pub dims: u32,
    /// Channels of the input.
    pub in_channels: u32,
    /// Classes, background included.
    pub classes: u32,
    /// Every spatial extent must be a multiple of this along D, H, W.
    pub stride: [u32; 3],
    /// The least extent along D, H, W: the stride, or more.
    pub least: [u32; 3],
    /// The only extent that the network takes, if there is just one; of a 2D network that of a
    /// plane.
    pub crop: Option<Extent>,
    /// Whether an input of one channel is repeated to all channels of the network.
    pub grey: bool,
}

impl Facts {
    fn of(built: &Built, config: &Value) -> Self {
        let Built { dims, stride, least, crop, grey, .. } = *built;
        Self { dims, stride, least, crop: crop.map(Extent::from), grey, ..Self::anything(config) }
    }

    /// Those of a network of which nothing is known but a config.
    fn anything(config: &Value) -> Self {
        let (in_channels, classes) = (channels(config, "in_channels"), channels(config, "classes"));
        Self { dims: 3, in_channels, classes, stride: [1; 3], least: [1; 3], crop: None, grey: false }
    }
}

/// A number of channels in a config; 1 where it says none.
fn channels(config: &Value, key: &str) -> u32 {
    config.get(key).and_then(Value::as_u64).and_then(|d| u32::try_from(d).ok()).unwrap_or(1)
}

/// What is known of a card since its network was built; of no account where cards are compared.
#[derive(Clone, Debug, Default)]
struct Known(Option<Arc<Knowledge>>);

#[derive(Debug)]
struct Knowledge {
    architecture: String,
    config: Value,
    facts: Facts,
}

impl PartialEq for Known {
    fn eq(&self, _: &Self) -> bool {
        true
    }
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
    /// All of nnU-Net's pipeline, in place of the keys above but the channels' names and the axes;
    /// see [`crate::nnunet`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nnunet: Option<Pipeline>,
    /// All that a MONAI bundle does with a scan, likewise in place of the keys above; see
    /// [`crate::monai`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monai: Option<monai::Pipeline>,
    /// Steps of the scan to the network, and of its scores to labels, in place of all keys above
    /// but the channels' names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
}

impl InputSpec {
    /// The steps of a scan to the network and back: the key `recipe`, or what the other keys stand
    /// for.
    #[must_use]
    pub fn recipe(&self) -> Recipe {
        if let Some(recipe) = &self.recipe {
            return recipe.clone();
        }
        if let Some(pipeline) = &self.nnunet {
            return pipeline.recipe(self.axes);
        }
        if let Some(pipeline) = &self.monai {
            return pipeline.recipe();
        }
        let axes = self.axes.map(|axes| Step::Orient { axes });
        let resample = self.spacing_mm.map(|mm| Step::Resample(Resample::HalfPixel { mm }));
        let scale = self.intensity.map(Step::Scale);
        let steps = [axes, resample, scale].into_iter().flatten().collect();
        Recipe::new(steps, vec![ResultStep::ArgMax, ResultStep::Restore(Restore::HalfPixel)])
    }
}

/// Values of CT that are drawn black and white, at most so far apart; a wider range shows no tissue.
#[cfg(feature = "cli")]
const WIDEST_GREY: f64 = 800.0;

/// The whole volume at once, windows of it, or its slices zoomed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The whole volume at once.
    Whole,
    /// Windows that overlap, blended.
    Window,
    /// For 2D networks: every plane along D zoomed to one extent by cubic splines, and its labels
    /// zoomed back; as the pipelines of TransUNet and Swin-Unet do it. The planes run at once.
    Slices,
}

impl Mode {
    /// That of the pipeline which an architecture was published with, if it is not told by what
    /// extents the network takes.
    fn of(architecture: &str) -> Option<Self> {
        matches!(architecture, "swin_unet" | "glam_swin_unet" | "transunet").then_some(Self::Slices)
    }
}

/// Whose sliding windows: where they lie, how much their voxels weigh, and what is averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// nnU-Net v1: evenly spread, a Gaussian where there are several, probabilities.
    NnunetV1,
    /// nnU-Net v2: evenly spread, a Gaussian and sums in 16-bit floats, logits.
    NnunetV2,
    /// MONAI's default: at fixed steps, all alike, logits.
    Monai,
    /// MONAI with its Gaussian.
    MonaiGaussian,
}

impl Scheme {
    /// That of the pipeline which an architecture was published with.
    pub(crate) fn of(architecture: &str) -> Self {
        match architecture {
            "unetr" => Self::Monai,
            "plain_conv_unet" | "residual_encoder_unet" => Self::NnunetV2,
            _ => Self::NnunetV1,
        }
    }
}

/// Along which axes a volume is mirrored, in all combinations, and the results averaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Mirror {
    /// All or none of them.
    All(bool),
    /// Some of 0, 1, 2: D, H, W.
    Axes(Vec<u32>),
}

impl Default for Mirror {
    fn default() -> Self {
        Self::All(false)
    }
}

impl Mirror {
    /// The axes.
    #[must_use]
    pub fn axes(&self) -> &[u32] {
        match self {
            Self::All(true) => &[0, 1, 2],
            Self::All(false) => &[],
            Self::Axes(axes) => axes,
        }
    }
}

/// How a scan is segmented.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inference {
    /// Absent: slices for `swin_unet`, `glam_swin_unet` and `transunet`; windows for others that
    /// take one extent alone; else the whole volume.
    pub mode: Option<Mode>,
    /// Extent of a window or of zoomed slices along \[D,\] H, W; absent: the only one that the
    /// network takes.
    pub patch: Option<Vec<u32>>,
    /// Share of a window that its neighbour overlaps, from 0 to below 1; absent: 0.5.
    pub overlap: Option<f64>,
    /// Mirror images of windows.
    pub mirror: Mirror,
    /// Whose windows; absent: those of the pipeline that the architecture was published with.
    pub scheme: Option<Scheme>,
    /// Volume tokens that a window saw count as visited for those after it, as they do in the
    /// reference implementation of FINE.
    pub accumulate_visited: bool,
    /// Further keys, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Card {
    /// The values that are black and white in pictures of the first channel, where the card tells:
    /// those that the network sees, or soft tissue where these are wide or the channel is called
    /// `CT`.
    #[cfg(feature = "cli")]
    #[must_use]
    pub fn grey_range(&self) -> Option<[f32; 2]> {
        use crate::scan::{Scaling, Values};
        let ct = self.input.channels.first().is_some_and(|name| name.eq_ignore_ascii_case("ct"));
        let seen = self.input.recipe().steps.into_iter().find_map(|step| match step {
            Step::Scale(Intensity::Window { low, high }) => Some([low, high]),
            Step::ScaleValues(Values::ScaleRange { from, clip: true, .. }) => Some(from),
            Step::ScaleChannels { channels, .. } => match channels.first()? {
                Scaling::Ct { low, high, .. } | Scaling::Ct2 { low, high, .. } => Some([*low, *high].map(f64::from)),
                _ => None,
            },
            _ => None,
        });
        match seen {
            Some([low, high]) if high > low && high - low <= WIDEST_GREY => {
                #[expect(clippy::cast_possible_truncation, reason = "values of a scan")]
                let range = [low as f32, high as f32];
                Some(range)
            }
            Some([low, high]) => (ct || (low < -100.0 && high > 100.0)).then_some(crate::volume::picture::SOFT_TISSUE),
            None => ct.then_some(crate::volume::picture::SOFT_TISSUE),
        }
    }

    /// Parses and checks a card that was put together here, and its network.
    pub(crate) fn checked(json: &str) -> Result<Self, LoadError> {
        let mut card = Self::parse(json)?;
        card.build()?;
        Ok(card)
    }

    /// A card of JSON.
    #[cfg(fuzzing)]
    pub(crate) fn of_json(json: &str) -> Result<Self, LoadError> {
        Self::parse(json)
    }

    /// Parses and checks a card.
    pub(super) fn parse(json: &str) -> Result<Self, LoadError> {
        Self::read(json)?.validated()
    }

    /// The same of a card whose network was built otherwise than of the card.
    pub(super) fn parse_built(json: &str, built: &Built) -> Result<Self, LoadError> {
        let mut card = Self::read(json)?;
        card.know(built);
        card.expects.check(&card).map_err(|e| LoadError::new(LoadErrorKind::Card, format!("the card's expects: {e}")))?;
        card.validated()
    }

    fn read(json: &str) -> Result<Self, LoadError> {
        let not_one = |e| LoadError::new(LoadErrorKind::Card, "the card is not what it should be").caused_by(e);
        serde_json::from_str(json).map_err(not_one)
    }

    /// The card, if what it says goes together.
    fn validated(self) -> Result<Self, LoadError> {
        let (card, bad) = (self, |message: String| LoadError::new(LoadErrorKind::Card, message));
        match card.input.resample.as_deref() {
            None | Some("linear") => {}
            Some(other) => return Err(bad(format!("the card asks for {other:?} resampling; this version has: linear"))),
        }
        if let Some(bad_spacing) = card.input.spacing_mm.filter(|s| s.iter().any(|&v| !(v.is_finite() && v > 0.0))) {
            return Err(bad(format!("the card's spacing_mm {bad_spacing:?} is not positive")));
        }
        if let Some(pipeline) = &card.input.nnunet {
            if card.input.spacing_mm.is_some() || card.input.intensity.is_some() {
                return Err(bad("the card's input has nnunet, which goes without spacing_mm and intensity".into()));
            }
            pipeline.check(card.dims(), card.in_channels()).map_err(|e| bad(format!("the card's input.nnunet: {e}")))?;
            if pipeline.is_first() && card.inference.scheme.unwrap_or_else(|| Scheme::of(&card.architecture)) != Scheme::NnunetV1 {
                return Err(bad("the card's input.nnunet of version 1 goes with inference.scheme nnunet_v1".into()));
            }
        }
        if let Some(pipeline) = &card.input.monai {
            let input = &card.input;
            if input.axes.is_some() || input.spacing_mm.is_some() || input.intensity.is_some() || input.nnunet.is_some() {
                return Err(bad("the card's input has monai, which goes without axes, spacing_mm, intensity and nnunet".into()));
            }
            pipeline.check(card.dims(), card.in_channels()).map_err(|e| bad(format!("the card's input.monai: {e}")))?;
        }
        if let Some(recipe) = &card.input.recipe {
            let input = &card.input;
            let others = input.axes.is_some() || input.spacing_mm.is_some() || input.intensity.is_some();
            if others || input.nnunet.is_some() || input.monai.is_some() {
                let text = "the card's input has recipe, which goes without axes, spacing_mm, intensity, nnunet and monai";
                return Err(bad(text.into()));
            }
            recipe.check(card.dims(), card.in_channels()).map_err(|e| bad(format!("the card's input.recipe: {e}")))?;
            let scheme = card.inference.scheme.unwrap_or_else(|| Scheme::of(&card.architecture));
            let first = matches!(recipe.way_back(), Ok(WayBack::Spline { half: false, .. }));
            if first && scheme != Scheme::NnunetV1 {
                let text = "the card's input.recipe averages probabilities, which goes with inference.scheme nnunet_v1";
                return Err(bad(text.into()));
            }
        }
        if let WayBack::Spline { regions: Some(labels), .. } = card.way_back()
            && labels.len() != card.classes() as usize
        {
            let text = format!("the card's regions write {} labels, the network has {} channels", labels.len(), card.classes());
            return Err(bad(text));
        }
        let inference = &card.inference;
        if let Some(patch) = inference.patch.as_ref().filter(|p| !(2..=3).contains(&p.len()) || p.contains(&0)) {
            return Err(bad(format!("the card's inference.patch {patch:?} is not two or three positive numbers")));
        }
        if let Some(overlap) = inference.overlap.filter(|o| !(0.0..1.0).contains(o)) {
            return Err(bad(format!("the card's inference.overlap of {overlap} is not in 0 to below 1")));
        }
        let axes = inference.mirror.axes();
        if axes.iter().any(|&axis| axis > 2 || axes.iter().filter(|&&other| other == axis).count() > 1) {
            return Err(bad(format!("the card's inference.mirror {axes:?} is not some of the axes 0, 1, 2")));
        }
        if inference.mode == Some(Mode::Slices) {
            card.facts()?;
            card.slice().map_err(|e| bad(format!("the card's inference.mode is slices: {e}")))?;
        }
        Ok(card)
    }

    /// How a volume is segmented if nobody says otherwise.
    #[must_use]
    pub fn mode(&self) -> Mode {
        let by_extent = || if self.crop().is_some() { Mode::Window } else { Mode::Whole };
        self.inference.mode.or_else(|| Mode::of(&self.architecture)).unwrap_or_else(by_extent)
    }

    /// The extent that slices are zoomed to, one plane's: along H and W the card's patch, or the
    /// only one that the network takes.
    ///
    /// # Errors
    /// When the network is not one of 2D, when it takes several extents and the card names no
    /// patch, or a patch that it does not take.
    pub fn slice(&self) -> Result<Extent, PlanError> {
        let refused = |text: String| Err(PlanError::new(PlanErrorKind::Unsupported, text));
        if self.dims() != 2 {
            return refused(format!("this {} is a 3D network, and slices are for those of 2D", self.architecture));
        }
        let slice = match (self.inference.patch.as_deref(), self.crop()) {
            (Some([.., h, w]), _) => Extent::new(1, *h, *w),
            (_, Some(crop)) => crop,
            _ => return refused(format!("the card of this {} names no patch (inference.patch) to zoom slices to", self.architecture)),
        };
        check_extent(slice, self)?;
        Ok(slice)
    }

    /// The network that the card describes; writes the defaults of what its config leaves out into
    /// it.
    pub(super) fn build(&mut self) -> Result<Built, LoadError> {
        let (built, filled) = architecture::build(&self.architecture, &self.config)?;
        self.config = filled;
        self.know(&built);
        self.expects.check(self).map_err(|e| LoadError::new(LoadErrorKind::Card, format!("the card's expects: {e}")))?;
        Ok(built)
    }

    /// What the network takes, whatever its weights. A [`crate::Model`] knows it of its card; of
    /// any other card the network is built for it.
    ///
    /// # Errors
    /// When no network can be built of the card.
    pub fn facts(&self) -> Result<Facts, LoadError> {
        if let Some(known) = self.known.0.as_ref().filter(|known| known.architecture == self.architecture && known.config == self.config) {
            return Ok(known.facts);
        }
        let (built, filled) = architecture::build(&self.architecture, &self.config)?;
        Ok(Facts::of(&built, &filled))
    }

    /// Remembers what the network takes that was built of the card.
    pub(super) fn know(&mut self, built: &Built) {
        let facts = Facts::of(built, &self.config);
        self.known = Known(Some(Arc::new(Knowledge { architecture: self.architecture.clone(), config: self.config.clone(), facts })));
    }

    /// The facts of a card whose network was built, or else those of a network that takes anything:
    /// what uses them reports the error of [`Card::facts`] itself.
    pub(super) fn assumed(&self) -> Facts {
        self.facts().unwrap_or_else(|_| Facts::anything(&self.config))
    }

    /// Spatial dimensions of the network: 2 or 3.
    #[must_use]
    pub fn dims(&self) -> u32 {
        self.assumed().dims
    }

    /// Input channels of the network; [`Card::takes`] tells whether it also takes one.
    #[must_use]
    pub fn in_channels(&self) -> u32 {
        channels(&self.config, "in_channels")
    }

    /// Channels of a scan that the network takes: its own, without those that labels of a cascade's
    /// previous stage become.
    #[must_use]
    pub fn scan_channels(&self) -> u32 {
        self.in_channels().saturating_sub(self.input.recipe().added())
    }

    /// Whether the network takes an input of so many channels: its own number, or one where its
    /// reference repeats a grey image.
    #[must_use]
    pub fn takes(&self, channels: u32) -> bool {
        channels == self.in_channels() || (channels == 1 && self.assumed().grey)
    }

    /// Classes, background included.
    #[must_use]
    pub fn classes(&self) -> u32 {
        channels(&self.config, "classes")
    }

    /// The only extent that the network takes, if there is just one. That of a 2D network is one
    /// plane's; it takes any number.
    #[must_use]
    pub fn crop(&self) -> Option<Extent> {
        self.assumed().crop
    }

    /// Every spatial extent must be a multiple of this along D, H, W.
    #[must_use]
    pub fn stride(&self) -> [u32; 3] {
        self.assumed().stride
    }

    /// The least extent along D, H, W that the network takes: its stride, or more.
    #[must_use]
    pub fn least(&self) -> [u32; 3] {
        self.assumed().least
    }

    /// What the steps of a scan must know: the network's channels, and the bytes that a voxel of
    /// its input and one of the cropped scan take on the host beside them.
    pub(crate) fn needs(&self, scores: f64, restored: f64) -> Needs<'_> {
        Needs { channels: self.in_channels(), grey: self.takes(1), names: &self.input.channels, scores, restored }
    }

    /// Whether a voxel may have several labels: results are a mask of each class then, the first
    /// included.
    #[must_use]
    pub fn labels_overlap(&self) -> bool {
        matches!(self.way_back(), WayBack::Inverse { overlapping: Some(_), .. })
    }

    /// The way back of its recipe, which was checked as the card was read.
    pub(crate) fn way_back(&self) -> WayBack {
        self.input.recipe().way_back().unwrap_or(WayBack::Direct)
    }

    /// The labels that results may have but the background, in order: the classes, or those that
    /// regions write.
    #[must_use]
    pub fn label_values(&self) -> Vec<u32> {
        let WayBack::Spline { regions: Some(labels), .. } = self.way_back() else { return (1..self.classes()).collect() };
        let mut values: Vec<u32> = labels.into_iter().map(u32::from).filter(|&label| label > 0).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// The name of a class; `label N` when the card has none.
    #[must_use]
    pub fn label_name(&self, class: u32) -> String {
        match self.labels.get(&class.to_string()) {
            Some(name) => name.clone(),
            None if class == 0 && !self.labels_overlap() => "background".into(),
            None => format!("label {class}"),
        }
    }
}
