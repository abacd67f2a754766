//! Several models on a scan, whose probabilities are averaged.
//!
//! Source: `nnunetv2.ensembling.ensemble` of nnunetv2 2.8.1.

use std::ops::Range;

use rayon::prelude::*;

use super::{SegmentError, Segmentation, Segmenter, result};
use crate::export::{Activation, ClassMaps, Layout, Probabilities};
use crate::run::RunOptions;
use crate::scan::{Filtered, Scan, WayBack, filter};
use crate::volume::{Volume, VolumeError, sizes};

/// The mean probabilities of several models on a scan's grid.
#[derive(Debug)]
struct Mean(Vec<Probabilities>);

impl ClassMaps for Mean {
    fn classes(&self) -> usize {
        self.0.first().map_or(0, |first| first.classes() as usize)
    }

    fn at_once(&self) -> usize {
        1
    }

    #[expect(clippy::cast_precision_loss, reason = "a number of models")]
    fn maps(&self, classes: Range<usize>) -> Result<Vec<f32>, VolumeError> {
        let mut all = Vec::new();
        for class in classes {
            let mut sum: Vec<f32> = Vec::new();
            for member in &self.0 {
                let map = member.class(class)?;
                if sum.is_empty() {
                    sum = map;
                } else {
                    sum.par_iter_mut().zip(map).with_min_len(1 << 14).for_each(|(sum, v)| *sum += v);
                }
            }
            let count = self.0.len() as f32;
            sum.par_iter_mut().with_min_len(1 << 14).for_each(|v| *v /= count);
            all.append(&mut sum);
        }
        Ok(all)
    }
}

/// The labels of mean probabilities: the class with the highest, or regions above a half.
#[expect(clippy::cast_possible_truncation, reason = "labels have 16 bits, and so have classes")]
fn labels(mean: &Mean, regions: Option<&[u16]>) -> Result<Vec<u16>, VolumeError> {
    let (mut labels, mut highest): (Vec<u16>, Vec<f32>) = (Vec::new(), Vec::new());
    for class in 0..mean.classes() {
        let map = mean.maps(class..class + 1)?;
        labels.resize(map.len(), 0);
        match regions {
            Some(regions) => {
                let label = regions.get(class).copied().unwrap_or(0);
                labels.iter_mut().zip(&map).filter(|(_, v)| **v > 0.5).for_each(|(out, _)| *out = label);
            }
            None if class == 0 => highest = map,
            None => labels.iter_mut().zip(&mut highest).zip(map).filter(|((_, best), v)| *v > **best).for_each(|((out, best), v)| {
                (*out, *best) = (class as u16, v);
            }),
        }
    }
    Ok(labels)
}

impl Segmenter {
    /// Segments a scan with this model and others, whose probabilities are averaged as
    /// `nnUNetv2_ensemble` does: the mean of softmaxes, or of the sigmoids of regions. Each model has
    /// its own preparation of the scan, windows and folds; a fold counts within its model. Names of
    /// labels are this model's, and post-processing that a model has beside it is left out, but for
    /// what [`crate::LoadOptions::postprocessing`] gave to this one.
    ///
    /// # Errors
    /// As [`Segmenter::segment`], and [`SegmentError::Option`] when the models do not have the same
    /// labels, or not one for each voxel of the scan.
    pub async fn segment_with<'a>(
        &mut self,
        others: &mut [Self],
        scan: impl Into<Scan<'a>>,
        mut how: RunOptions<'_>,
    ) -> Result<Segmentation, SegmentError> {
        self.check_ensemble(others)?;
        let scan = scan.into();
        let mut found = self.one_of_several(&scan, how.reborrow()).await?;
        let mut members: Vec<Probabilities> = found.probabilities.take().into_iter().collect();
        for other in others {
            let Segmentation { probabilities, warnings, report, .. } = other.one_of_several(&scan, how.reborrow()).await?;
            members.extend(probabilities);
            let new: Vec<_> = warnings.into_iter().filter(|warning| !found.warnings.contains(warning)).collect();
            found.warnings.extend(new);
            found.report.run = found.report.run.then(report.run);
        }
        let mean = Mean(members);
        let card = self.model().card();
        let regions = regions(card);
        let mut data = labels(&mean, regions.as_deref())?;
        let labels = &found.labels;
        let filters: Vec<Filtered> =
            self.networks.postprocessing().iter().map(|filter| Filtered { filter: filter.clone(), first: false }).collect();
        filter(&filters, false, &mut data, sizes(labels.extent), 1000.0 * labels.voxel_ml());
        let grid = (labels.extent, labels.spacing, labels.axes);
        let layout = Layout::new(grid, ([0; 3], sizes(labels.extent)), (labels.axes, *labels.affine()));
        found.labels = Volume::new(1, labels.extent, labels.spacing, labels.axes, data)?.with_affine(*labels.affine());
        found.warnings.extend(card.expects.check_labels(card, &found.labels));
        found.volumes = result::volumes(card, &found.labels);
        found.probabilities = self.options.probabilities.then(|| Probabilities::new(Box::new(mean), Activation::None, layout, 0.0));
        Ok(found)
    }

    /// [`Segmenter::segment_with`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Segmenter::segment_with`].
    pub fn segment_with_blocking<'a>(
        &mut self,
        others: &mut [Self],
        scan: impl Into<Scan<'a>>,
        how: RunOptions<'_>,
    ) -> Result<Segmentation, SegmentError> {
        pollster::block_on(self.segment_with(others, scan, how))
    }

    /// The result of this model with its probabilities, whose device memory is given back.
    async fn one_of_several(&mut self, scan: &Scan<'_>, how: RunOptions<'_>) -> Result<Segmentation, SegmentError> {
        let wanted = std::mem::replace(&mut self.options.probabilities, true);
        let found = self.segment(scan.clone(), how).await;
        self.options.probabilities = wanted;
        self.close();
        found
    }

    /// Refuses models that do not have the same labels.
    ///
    /// # Errors
    /// [`SegmentError::Option`].
    pub fn check_ensemble(&self, others: &[Self]) -> Result<(), SegmentError> {
        if others.is_empty() {
            return Ok(());
        }
        let refused = |text: String| Err(SegmentError::option("ensemble", text));
        let card = self.model().card();
        for member in std::iter::once(self).chain(others) {
            let other = member.model().card();
            if member.options.attention {
                return refused("pictures of attention are those of one model".into());
            }
            if other.labels_overlap() || !member.keeps_grid() {
                let text = "a model's labels overlap, or do not lie on the scan's grid: its probabilities are not averaged";
                return refused(text.into());
            }
            if other.classes() != card.classes() || regions(other) != regions(card) {
                let text = format!("the models have {} and {} classes, or other regions", card.classes(), other.classes());
                return refused(text);
            }
            let differs = |(label, name): &(&String, &String)| card.labels.get(*label).is_some_and(|own| own != *name);
            if let Some((label, name)) = other.labels.iter().find(differs) {
                return refused(format!("label {label} is {:?} in one model and {name:?} in another", card.labels[label]));
            }
        }
        Ok(())
    }
}

/// The labels that regions write.
fn regions(card: &crate::Card) -> Option<Vec<u16>> {
    match card.way_back() {
        WayBack::Spline { regions, .. } => regions,
        _ => None,
    }
}
