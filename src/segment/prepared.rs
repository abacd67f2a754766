//! A scan that went through a recipe, and the way of scores back to it.

use crate::model::{Card, Mode};
use crate::scan::{Forward, Invert, Scan, WayBack};
use crate::transfer::Input;
use crate::volume::{Volume, VolumeError, VolumeErrorKind};
use crate::{monai, nnunet, pipeline};

/// A scan as a network takes it, and what brings the network's results back to the scan's grid: the
/// recipe of a card, forwards and back.
#[derive(Clone, Debug)]
pub struct PreparedScan {
    back: Back,
    /// Whether results lie on the scan's grid.
    keeps_grid: bool,
    classes: u32,
}

/// The ways back that there are.
#[derive(Clone, Debug)]
enum Back {
    Direct(pipeline::Prepared),
    Spline(nnunet::Case),
    Inverse(monai::Case),
}

/// What a network says of a prepared scan.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Scores {
    /// Labels `[D][H][W]`, and probabilities `[C][D][H][W]` if there are some.
    Labels(Vec<u16>, Option<Vec<f32>>),
    /// Logits `[C][D][H][W]`; the probabilities that windows of nnU-Net v1 give.
    Logits(Vec<f32>),
}

/// Labels, and probabilities if they were asked for.
pub(super) type Restored = (Volume<u16>, Option<Volume<f32>>);

impl PreparedScan {
    /// Takes a scan through the recipe of a card, and pads or zooms it for a mode.
    ///
    /// # Errors
    /// When the scan does not have the network's number of channels, nothing of it is left, its
    /// values are not what the scaling is for, it would have absurdly many voxels, or the recipe
    /// has no such mode.
    pub fn new<'a>(card: &'a Card, scan: impl Into<Scan<'a>>, mode: Mode) -> Result<Self, VolumeError> {
        Self::of(card, &scan.into(), mode)
    }

    fn of(card: &Card, scan: &Scan<'_>, mode: Mode) -> Result<Self, VolumeError> {
        let recipe = card.input.recipe();
        let scores = 4.0 * f64::from(card.classes());
        let whole = (mode == Mode::Whole).then(|| card.stride());
        if mode == Mode::Slices && card.way_back() != WayBack::Direct {
            let text = "a model with a pipeline of nnU-Net's or MONAI's does not run in slices";
            return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
        }
        let mut keeps_grid = true;
        let back = match card.way_back() {
            WayBack::Direct => Back::Direct(pipeline::Prepared::of_card(card, scan, mode)?),
            WayBack::Spline { .. } => {
                let forward = Forward::new(&recipe, scan, card.needs(scores, scores))?;
                Back::Spline(nnunet::Case::of(forward, &recipe)?)
            }
            WayBack::Inverse { invert, .. } => {
                keeps_grid = invert != Invert::Nothing;
                let forward = Forward::new(&recipe, scan, card.needs(scores, 0.0))?;
                Back::Inverse(monai::Case::of(forward, &recipe, whole)?)
            }
        };
        Ok(Self { back, keeps_grid, classes: card.classes() })
    }

    /// The voxels that the network takes.
    #[must_use]
    pub fn volume(&self) -> &Volume<f32> {
        match &self.back {
            Back::Direct(prepared) => &prepared.volume,
            Back::Spline(case) => &case.volume,
            Back::Inverse(case) => &case.volume,
        }
    }

    /// The network's input.
    #[must_use]
    pub fn input(&self) -> Input<'_> {
        let volume = self.volume();
        Input { channels: volume.channels, extent: volume.extent, data: &volume.data }
    }

    /// Whether the way back begins with labels: it then needs no scores but for probabilities.
    #[must_use]
    pub fn takes_labels(&self) -> bool {
        matches!(self.back, Back::Direct(_))
    }

    /// Labels on the grid of `scan`, the one that was prepared, or where the recipe leaves them;
    /// probabilities too if they are asked for.
    ///
    /// # Errors
    /// When the scores are not those of this scan, or labels where the way back needs logits.
    pub fn restore<'a>(
        &self,
        scan: impl Into<Scan<'a>>,
        scores: Scores,
        probabilities: bool,
    ) -> Result<(Volume<u16>, Option<Volume<f32>>), VolumeError> {
        let scan = scan.into();
        let (labels, maps) = self.back(scores, probabilities)?;
        if !self.keeps_grid {
            return Ok((labels, maps));
        }
        Ok((on(scan.image, labels)?, maps.map(|maps| on(scan.image, maps)).transpose()?))
    }

    fn back(&self, scores: Scores, probabilities: bool) -> Result<Restored, VolumeError> {
        match (&self.back, scores) {
            (Back::Direct(prepared), Scores::Labels(labels, maps)) => {
                let maps = maps.filter(|_| probabilities);
                let maps = maps.map(|maps| prepared.restore_maps(self.classes, maps)).transpose()?;
                Ok((prepared.restore_labels(labels)?, maps))
            }
            (Back::Direct(prepared), Scores::Logits(mut logits)) => {
                let labels = crate::scores::argmax(&logits, self.classes);
                let maps = if probabilities {
                    crate::scores::softmax(&mut logits, self.classes);
                    Some(prepared.restore_maps(self.classes, logits)?)
                } else {
                    None
                };
                Ok((prepared.restore_labels(labels)?, maps))
            }
            (Back::Spline(case), Scores::Logits(logits)) => case.export(&logits, self.classes, probabilities),
            (Back::Inverse(case), Scores::Logits(logits)) => case.export(logits, self.classes, probabilities),
            (Back::Spline(_) | Back::Inverse(_), Scores::Labels(..)) => {
                let text = "the recipe brings scores back to the scan's grid, not labels";
                Err(VolumeError::new(VolumeErrorKind::Unsupported, text))
            }
        }
    }
}

/// Voxels that came back to those of the scan, where the scan itself says that they lie.
fn on<T>(scan: &Volume<f32>, volume: Volume<T>) -> Result<Volume<T>, VolumeError> {
    let data = volume.data;
    Ok(Volume::new(volume.channels, scan.extent, scan.spacing, scan.axes, data)?.with_affine(*scan.affine()))
}
