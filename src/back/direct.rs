//! From a scan to the network's input and back for cards with steps of their own: padding or
//! zooming of slices, and the inverses.

use std::ops::Range;

use crate::export::{Activation, ClassMaps, ExportBytes, Layout, Probabilities};
use crate::model::{Card, Mode, Model};
use crate::scan::{Forward, Recipe, Scan, Undo, WayBack};
use crate::shape::Extent;
use crate::transfer::Input;
use crate::volume::orient::{View, reorient};
use crate::volume::spline::{self, Order};
use crate::volume::{Affine, Axes, Volume, VolumeError, VolumeErrorKind, resample, sizes};

/// A scan as the network wants it, and what is needed to bring results back to the scan's grid.
#[derive(Clone, Debug)]
pub struct DirectCase {
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

impl DirectCase {
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
    /// As [`DirectCase::new`].
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
                let padded = [0, 1, 2].map(|axis| resample::multiple(n[axis].max(least[axis]), stride[axis]));
                let channels = f64::from(prepared.volume.channels);
                let extent = resample::padded("padding to the network's stride", padded, |n| 4.0 * channels * n)?;
                let (volume, offset) = resample::pad_to(&prepared.volume, extent, 0.0);
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

    /// The host bytes of the input, and about the most of what it was made of: the scan along the model's
    /// axes, and the input before and after padding.
    #[must_use]
    pub fn host_bytes(&self) -> [u64; 2] {
        let channels = 4 * u64::from(self.volume.channels);
        let [made, inner, scan] = [self.volume.extent, self.inner, self.scan_grid().0].map(|e| channels * e.voxels());
        [made, (scan + inner).max(inner + made) + made]
    }

    /// The host bytes of labels on their way to the scan, and of probabilities of so many classes.
    #[must_use]
    pub fn export_bytes(&self, classes: u32, probabilities: bool) -> ExportBytes {
        let [made, scan] = [self.volume.extent, self.scan_grid().0].map(|e| e.voxels());
        let maps = if probabilities { 4 * u64::from(classes) * made } else { 0 };
        // labels in up to three copies, and a class on each of its grids
        let class = if probabilities { 4 * (3 * made + 3 * scan) } else { 0 };
        ExportBytes { running: 2 * made + maps, waiting: 0, finishing: 2 * (made + 2 * scan) + class }
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

    /// Probabilities of the padded or zoomed input (`channels` of its extent), which go the way of
    /// [`DirectCase::restore_maps`] class by class as they are asked for.
    ///
    /// # Errors
    /// When the probabilities are not those of this input.
    pub fn probabilities(&self, channels: u32, values: Vec<f32>) -> Result<Probabilities, VolumeError> {
        let v = &self.volume;
        let values = Volume::new(channels, v.extent, v.spacing, v.axes, values)?;
        let (extent, spacing, axes) = self.scan_grid();
        let layout = Layout::new((extent, spacing, axes), ([0; 3], sizes(extent)), (axes, self.affine));
        let volume = v.regrid(v.extent, v.spacing, Vec::new());
        let prepared = Self { volume, undo: self.undo.clone(), ..*self };
        Ok(Probabilities::new(Box::new(Restored { prepared, values }), Activation::None, layout, 0.0))
    }

    /// Extent, spacing and axes of the scan, as the steps took it for.
    fn scan_grid(&self) -> (Extent, [f64; 3], Axes) {
        let (mut extent, mut spacing, mut axes) = (self.inner, self.spacing, self.volume.axes);
        for undo in self.undo.iter().rev() {
            match undo {
                Undo::Turned { before } => {
                    let view = View::of(extent, spacing, axes, *before);
                    extent = Extent::from(view.sizes.map(|n| u32::try_from(n).unwrap_or(u32::MAX)));
                    (spacing, axes) = (view.spacing, *before);
                }
                Undo::Resampled { before, spacing: of_scan, .. } => (extent, spacing) = (before.extent, *of_scan),
                Undo::Cut { .. } => {}
            }
        }
        (extent, spacing, axes)
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

/// Probabilities of the network's input on their way to the scan.
#[derive(Debug)]
struct Restored {
    /// Without voxels.
    prepared: DirectCase,
    values: Volume<f32>,
}

impl ClassMaps for Restored {
    fn classes(&self) -> usize {
        self.values.channels as usize
    }

    fn at_once(&self) -> usize {
        1
    }

    fn maps(&self, classes: Range<usize>) -> Result<Vec<f32>, VolumeError> {
        let voxels = self.values.data.len() / self.classes().max(1);
        let mut maps = Vec::new();
        for values in self.values.data.chunks_exact(voxels.max(1)).skip(classes.start).take(classes.len()) {
            let map = self.prepared.restore_maps(1, values.to_vec())?.data;
            if maps.is_empty() { maps = map } else { maps.extend(map) }
        }
        Ok(maps)
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
