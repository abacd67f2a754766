//! From a scan to the network's input and back for cards with steps of their own: padding or
//! zooming of slices, and the inverses.

use crate::model::{Card, Mode, Model};
use crate::scan::{Forward, Recipe, Scan, Undo, WayBack};
use crate::shape::Extent;
use crate::transfer::Input;
use crate::volume::orient::reorient;
use crate::volume::spline::{self, Order};
use crate::volume::{Affine, Volume, VolumeError, VolumeErrorKind, resample};

/// A scan as the network wants it, and what is needed to bring results back to the scan's grid.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The network's input: the card's axes, spacing and intensity, zero-padded to the network's
    /// stride and least extent where it runs at once, or of zoomed slices.
    pub volume: Volume<f32>,
    zoomed: bool,
    offset: Extent,
    /// Without padding or zooming.
    inner: Extent,
    spacing: [f64; 3],
    /// What happened to the scan's space before, in order.
    undo: Vec<Undo>,
    /// Of the scan.
    affine: Affine,
}

impl Prepared {
    /// Prepares a scan for a model that runs on the whole volume.
    ///
    /// # Errors
    /// When the scan does not have the model's number of channels, or its spacing is absurdly far
    /// from the model's.
    pub fn new(model: &Model, scan: &Volume<f32>) -> Result<Self, VolumeError> {
        Self::of_card(model.card(), &scan.into(), Mode::Whole)
    }

    /// The same for [`crate::Windows`]: they pad what they need.
    ///
    /// # Errors
    /// As [`Prepared::new`].
    pub fn for_windows(model: &Model, scan: &Volume<f32>) -> Result<Self, VolumeError> {
        Self::of_card(model.card(), &scan.into(), Mode::Window)
    }

    /// Prepares a scan for a mode: padded, as it is, or, for 2D networks, with its slices, the
    /// planes along D, zoomed to H and W of [`Card::slice`] by cubic splines; see
    /// [`spline::zoom_slices`]. Slices that have this extent stay as they are.
    pub(crate) fn of_card(card: &Card, scan: &Scan<'_>, mode: Mode) -> Result<Self, VolumeError> {
        let unsupported = |text: String| VolumeError::new(VolumeErrorKind::Unsupported, text);
        let recipe = card.input.recipe();
        if recipe.way_back() != Ok(WayBack::Direct) {
            return Err(unsupported("the model has a pipeline of nnU-Net's or MONAI's; PreparedScan takes its scans".into()));
        }
        let prepared = Self::unpadded(card, &recipe, scan)?;
        match mode {
            Mode::Window => Ok(prepared),
            Mode::Whole => {
                let (n, least, stride) = (prepared.inner.axes(), card.least(), card.stride());
                let padded = [0, 1, 2].map(|axis| resample::up(n[axis].max(least[axis]), stride[axis]));
                let (volume, offset) = resample::pad_to(&prepared.volume, padded.into(), 0.0);
                Ok(Self { volume, offset, ..prepared })
            }
            Mode::Slices => {
                let slice = card.slice().map_err(|e| unsupported(e.to_string()))?;
                prepared.zoom(slice, bytes_of(scan.image.channels, card))
            }
        }
    }

    fn unpadded(card: &Card, recipe: &Recipe, scan: &Scan<'_>) -> Result<Self, VolumeError> {
        let forward = Forward::new(recipe, scan, card.needs(scores_bytes(card), 0.0))?;
        let (undo, (_, affine)) = (forward.undo.clone(), forward.seen);
        let volume = forward.into_volume();
        let (inner, spacing) = (volume.extent, volume.spacing);
        Ok(Self { volume, zoomed: false, offset: Extent::new(0, 0, 0), inner, spacing, undo, affine })
    }

    fn zoom(self, slice: Extent, bytes: impl Fn(f64) -> f64) -> Result<Self, VolumeError> {
        let (v, extent) = (&self.volume, Extent { d: self.inner.d, ..slice });
        let share = |axis: usize| f64::from(v.extent.axes()[axis]) / f64::from(extent.axes()[axis].max(1));
        let spacing = [0, 1, 2].map(|axis| v.spacing[axis] * share(axis));
        let extent = resample::plausible(extent.axes().map(f64::from), v.spacing, spacing, bytes)?;
        let data = spline::zoom_slices(&v.data, plane(v.extent), plane(extent), Order::Cubic);
        let volume = Volume::new(v.channels, extent, spacing, v.axes, data)?;
        Ok(Self { volume, zoomed: true, ..self })
    }

    /// The network's input.
    #[must_use]
    pub fn input(&self) -> Input<'_> {
        Input { channels: self.volume.channels, extent: self.volume.extent, data: &self.volume.data }
    }

    /// Labels of the padded or zoomed input, brought to the scan's grid (nearest voxel where
    /// spacings differ; see [`spline::zoom_labels`] for slices).
    ///
    /// # Errors
    /// When the labels are not those of this input.
    pub fn restore_labels(&self, labels: Vec<u16>) -> Result<Volume<u16>, VolumeError> {
        let v = Volume::new(1, self.volume.extent, self.volume.spacing, self.volume.axes, labels)?;
        let mut v = if self.zoomed {
            let labels = spline::zoom_labels(&v.data, plane(v.extent), plane(self.inner));
            v.regrid(self.inner, v.spacing, labels)
        } else {
            resample::crop(&v, self.offset, self.inner)?
        };
        v.spacing = self.spacing;
        Ok(self.back(v, resample::resample_nearest).with_affine(self.affine))
    }

    /// Maps of the padded or zoomed input (`channels` of its extent), brought to the scan's grid by
    /// linear interpolation, that of slices with corners aligned.
    ///
    /// # Errors
    /// When the maps are not those of this input.
    pub fn restore_maps(&self, channels: u32, values: Vec<f32>) -> Result<Volume<f32>, VolumeError> {
        let v = Volume::new(channels, self.volume.extent, self.volume.spacing, self.volume.axes, values)?;
        let mut v = if self.zoomed {
            let values = spline::zoom_slices(&v.data, plane(v.extent), plane(self.inner), Order::Linear);
            v.regrid(self.inner, v.spacing, values)
        } else {
            resample::crop(&v, self.offset, self.inner)?
        };
        v.spacing = self.spacing;
        Ok(self.back(v, resample::resample_linear).with_affine(self.affine))
    }

    /// Undoes what happened to the scan's space.
    fn back<T: Copy + Send + Sync>(&self, mut volume: Volume<T>, resampled: impl Fn(&Volume<T>, Extent) -> Volume<T>) -> Volume<T> {
        for undo in self.undo.iter().rev() {
            match undo {
                Undo::Turned { before } => volume = reorient(&volume, *before),
                Undo::Resampled { before, spacing, .. } => {
                    if volume.extent != before.extent {
                        volume = resampled(&volume, before.extent);
                    }
                    volume.spacing = *spacing;
                }
                // recipes that crop have another way back
                Undo::Cut { .. } => {}
            }
        }
        volume
    }
}

/// Bytes that a voxel of the network's input takes on the host beside its channels: labels of 16
/// bits, and in windows the sums of scores.
fn scores_bytes(card: &Card) -> f64 {
    2.0 + if card.mode() == Mode::Window { 4.0 * f64::from(card.classes()) } else { 0.0 }
}

/// The bytes that so many voxels of a prepared scan take on the host.
fn bytes_of(channels: u32, card: &Card) -> impl Fn(f64) -> f64 + use<> {
    let scores = scores_bytes(card);
    move |voxels| voxels * (4.0 * f64::from(channels) + scores)
}

fn plane(extent: Extent) -> [usize; 2] {
    [extent.h as usize, extent.w as usize]
}
