//! Labels and probabilities of scores that go the way back to the scan a few classes at a time: the
//! classes pass once for the highest of each voxel, once for the sum of a soft-max and once to be
//! written.

use std::fmt::Debug;
use std::ops::Range;

use rayon::prelude::*;

use super::labels::{Reduction, inside};
use super::layout::Layout;
use crate::volume::{Volume, VolumeError};

/// Scores that can be brought to the box of the scan that they are for.
pub(crate) trait ClassMaps: Debug + Send + Sync {
    /// How many classes there are.
    fn classes(&self) -> usize;
    /// How many of them are brought there together.
    fn at_once(&self) -> usize;
    /// The scores of some classes in the box, `[C][D][H][W]`.
    fn maps(&self, classes: Range<usize>) -> Result<Vec<f32>, VolumeError>;
}

/// Calls `take` with the scores of each class in the box.
fn each(maps: &dyn ClassMaps, voxels: usize, mut take: impl FnMut(usize, &[f32])) -> Result<(), VolumeError> {
    for first in (0..maps.classes()).step_by(maps.at_once().max(1)) {
        let classes = first..maps.classes().min(first + maps.at_once().max(1));
        let values = maps.maps(classes.clone())?;
        classes.zip(values.chunks_exact(voxels.max(1))).for_each(|(class, values)| take(class, values));
    }
    Ok(())
}

/// Labels of the voxels of a box, and the highest score of each.
#[expect(clippy::cast_possible_truncation, reason = "labels have 16 bits, and so have classes")]
pub(crate) fn labels(maps: &dyn ClassMaps, voxels: usize, reduction: &Reduction) -> Result<(Vec<u16>, Vec<f32>), VolumeError> {
    let mut labels = vec![0u16; voxels];
    let mut highest = Vec::new();
    each(maps, voxels, |class, scores| {
        if class == 0 {
            highest = scores.to_vec();
        } else if *reduction == Reduction::ArgMax {
            let voxels = labels.par_iter_mut().zip(&mut highest).zip(scores).with_min_len(1 << 14);
            voxels.filter(|((_, best), score)| *score > *best).for_each(|((label, best), score)| {
                (*label, *best) = (class as u16, *score);
            });
        }
        if let Reduction::Regions(regions) = reduction
            && let Some(&region) = regions.get(class)
        {
            let voxels = labels.par_iter_mut().zip(scores).with_min_len(1 << 14);
            voxels.filter(|(_, score)| inside(**score)).for_each(|(label, _)| *label = region);
        }
    })?;
    Ok((labels, highest))
}

/// What makes probabilities of scores.
#[derive(Debug)]
pub(crate) enum Activation {
    /// They are probabilities.
    None,
    /// Each by itself.
    Sigmoid,
    /// Over all classes, of which this is the highest score and the sum of a voxel.
    Softmax(Vec<f32>, Vec<f32>),
}

impl Activation {
    /// The soft-max of scores whose highest are these.
    pub(crate) fn softmax(maps: &dyn ClassMaps, highest: Vec<f32>) -> Result<Self, VolumeError> {
        let mut sums = vec![0.0f32; highest.len()];
        each(maps, highest.len(), |_, scores| {
            let voxels = sums.par_iter_mut().zip(&highest).zip(scores).with_min_len(1 << 14);
            voxels.for_each(|((sum, high), score)| *sum += (score - high).exp());
        })?;
        Ok(Self::Softmax(highest, sums))
    }

    pub(crate) fn apply(&self, scores: &mut [f32]) {
        let scores = scores.par_iter_mut().with_min_len(1 << 14);
        match self {
            Self::None => {}
            Self::Sigmoid => scores.for_each(|v| *v = 1.0 / (1.0 + (-*v).exp())),
            Self::Softmax(highest, sums) => {
                scores.zip(highest).zip(sums).for_each(|((v, high), sum)| *v = (*v - high).exp() / sum);
            }
        }
    }
}

/// Probabilities of all classes on the scan's grid, which are computed class by class as they are
/// asked for.
#[derive(Debug)]
pub struct Probabilities {
    maps: Box<dyn ClassMaps>,
    activation: Activation,
    layout: Layout,
    /// The probability of the first class where the scan was cropped away; that of the others is 0.
    outside: f32,
}

impl Probabilities {
    pub(crate) fn new(maps: Box<dyn ClassMaps>, activation: Activation, layout: Layout, outside: f32) -> Self {
        Self { maps, activation, layout, outside }
    }

    /// Classes.
    #[must_use]
    pub fn classes(&self) -> u32 {
        u32::try_from(self.maps.classes()).unwrap_or(u32::MAX)
    }

    /// The same voxels where another header says that they lie.
    ///
    /// # Errors
    /// [`crate::volume::VolumeErrorKind::GridMismatch`] if it has another number of voxels.
    pub fn on<T>(self, grid: &Volume<T>) -> Result<Self, VolumeError> {
        Ok(Self { layout: self.layout.on(grid)?, ..self })
    }

    /// The extent of the scan, and its axes.
    #[cfg(feature = "nifti")]
    pub(crate) fn grid(&self) -> (crate::Extent, crate::volume::Axes) {
        self.layout.grid()
    }

    /// The probabilities of a class, `[D][H][W]` over the scan.
    pub(crate) fn class(&self, class: usize) -> Result<Vec<f32>, VolumeError> {
        let mut values = self.maps.maps(class..class + 1)?;
        Ok(self.placed(class, &mut values))
    }

    /// Probabilities of a class over the scan, of its scores in the box.
    fn placed(&self, class: usize, values: &mut [f32]) -> Vec<f32> {
        self.activation.apply(values);
        let plane = self.layout.size[1] * self.layout.size[2];
        let mut scan = vec![if class == 0 { self.outside } else { 0.0 }; self.layout.voxels()];
        for (z, plane) in values.chunks_exact(plane.max(1)).enumerate() {
            self.layout.put(z, plane, &mut scan);
        }
        scan
    }

    /// Calls `take` with the probabilities of each class in turn, `[D][H][W]` over the scan.
    ///
    /// # Errors
    /// When scores that were spilled cannot be read, and those of `take`.
    pub fn each<E: From<VolumeError>>(&self, mut take: impl FnMut(&Volume<f32>) -> Result<(), E>) -> Result<(), E> {
        let voxels: usize = self.layout.size.iter().product();
        let group = self.maps.at_once().max(1);
        for first in (0..self.maps.classes()).step_by(group) {
            let classes = first..self.maps.classes().min(first + group);
            let mut values = self.maps.maps(classes.clone())?;
            for (class, values) in classes.zip(values.chunks_exact_mut(voxels.max(1))) {
                take(&self.layout.volume(1, self.placed(class, values))?)?;
            }
        }
        Ok(())
    }

    /// All of them as a volume, which takes four bytes a voxel and class.
    ///
    /// # Errors
    /// When scores that were spilled cannot be read.
    pub fn to_volume(&self) -> Result<Volume<f32>, VolumeError> {
        let mut all = Vec::with_capacity(self.layout.voxels() * self.maps.classes());
        self.each(|class| {
            all.extend_from_slice(&class.data);
            Ok::<_, VolumeError>(())
        })?;
        self.layout.volume(self.classes(), all)
    }
}
