//! Class scores on their way back to the scan, plane by plane.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::InverseCase;
use super::overlapping;
use crate::error::{RunError, RunErrorKind};
use crate::export::{
    Activation, ClassMaps, ExportBytes, Exported, Layout, PlaneSink, Probabilities, Reduction, ScorePlane, Scores, labels, unreadable,
};
use crate::scan::{Grid, Invert, filter};
use crate::scores::{argmax, softmax};
use crate::shape::Extent;
use crate::volume::{Affine, Axes, Volume, VolumeError, VolumeErrorKind, reorient, sizes};

/// The most bytes of classes that are brought back together, unless one class takes more.
pub(super) const AT_ONCE: usize = 64 << 20;

/// Takes the planes of class scores of a case. Where labels go the way back, they are made of each
/// plane as it comes; where the scores do, or probabilities are wanted, they wait until all are there.
#[derive(Debug)]
pub struct InverseExport {
    case: InverseCase,
    classes: u32,
    probabilities: bool,
    /// The next plane of the network's input.
    next: usize,
    /// Labels of the input without its padding.
    labels: Vec<u16>,
    scores: Option<Scores>,
}

impl InverseExport {
    /// The way back of a case for scores of so many classes; probabilities too, if they are wanted.
    #[must_use]
    pub fn new(case: &InverseCase, classes: u32, probabilities: bool) -> Self {
        let case = case.without_voxels();
        let [depth, height, width] = sizes(case.prepared.extent);
        let waits = probabilities || case.inverts_scores() || case.overlapping.is_some();
        let scores = waits.then(|| Scores::new(depth, classes as usize, height * width, false, None));
        Self { case, classes, probabilities, next: 0, labels: Vec::new(), scores }
    }

    /// What it takes of the host's memory.
    #[must_use]
    pub fn bytes(&self) -> ExportBytes {
        let [scan, input] = [self.case.scan.extent, self.case.prepared.extent].map(|e| e.voxels());
        let waiting = self.scores.as_ref().map_or(0, Scores::bytes);
        // classes that go back together in up to three copies; label, highest score and sum of a voxel
        let most = self.case.most_voxels().max(scan).max(input);
        let group = (AT_ONCE as u64).max(4 * most).min(4 * most * u64::from(self.classes));
        if self.case.overlapping.is_some() {
            return ExportBytes { running: 0, waiting, finishing: overlapping::bytes(self.classes, most, scan.max(input)) };
        }
        let finishing = if self.case.inverts_scores() || self.probabilities { 3 * group + 14 * scan } else { 3 * 4 * most };
        let labels = if self.case.inverts_scores() { 0 } else { 2 * input };
        ExportBytes { running: labels + 2 * scan, waiting, finishing }
    }

    /// Keeps scores that have to wait in a file. No plane may have been taken yet.
    pub fn spill_to(&mut self, file: File) {
        if let Some(scores) = &mut self.scores {
            scores.keep_in(file);
        }
    }

    /// Labels, and the probabilities where they are wanted. They lie on the scan's grid, or, with
    /// [`Invert::Nothing`], on that of the input without its padding. Where the scan was cropped away,
    /// labels are 0, and so are MONAI's probabilities of all classes; with [`Invert::Saving`] there are
    /// those of the nearest voxel. Labels that may overlap are masks, a channel each.
    ///
    /// # Errors
    /// When planes are missing, or scores that were spilled cannot be read.
    pub fn finish(self) -> Result<Exported, VolumeError> {
        let depth = self.case.volume.extent.d as usize;
        if self.next < depth {
            let text = format!("{} planes of class scores are there, {depth} are needed", self.next);
            return Err(VolumeError::new(VolumeErrorKind::GridMismatch, text));
        }
        if let Some(how) = self.case.overlapping {
            let scores = self.scores.ok_or_else(|| unreadable(&io::ErrorKind::NotFound.into()))?;
            return overlapping::masks(self.case, self.classes, scores, how, self.probabilities);
        }
        if self.case.inverts_scores() { self.scores_back() } else { self.labels_back() }
    }

    fn scores_back(self) -> Result<Exported, VolumeError> {
        let Self { case, classes, probabilities, scores, .. } = self;
        let scores = scores.ok_or_else(|| unreadable(&io::ErrorKind::NotFound.into()))?;
        let grid = case.scan;
        let (layout, invert) = (layout(&grid, case.axes, case.affine), case.invert);
        let filters = case.filters.clone();
        let maps = BackMaps { case, classes, scores };
        let voxels = sizes(grid.extent).iter().product();
        let (mut labelled, highest) = labels(&maps, voxels, &Reduction::ArgMax)?;
        let mm3 = grid.affine.spacing().iter().product();
        filter(&filters, false, &mut labelled, sizes(grid.extent), mm3);
        let labels = placed(&layout, labelled)?;
        let probabilities = if !probabilities {
            None
        } else {
            let softmax = invert == Invert::Logits;
            let activation = if softmax { Activation::softmax(&maps, highest)? } else { Activation::None };
            Some(Probabilities::new(Box::new(maps), activation, layout, 0.0))
        };
        Ok(Exported { labels, probabilities })
    }

    fn labels_back(self) -> Result<Exported, VolumeError> {
        let Self { case, classes, mut labels, scores, .. } = self;
        let mm3 = case.scan.affine.spacing().iter().product();
        let keep = |labels: &mut [u16], extent: Extent, first: bool| filter(&case.filters, first, labels, sizes(extent), mm3);
        keep(&mut labels, case.prepared.extent, true);
        let (labels, layout) = if case.invert == Invert::Nothing {
            // MONAI's axes are the fastest first
            let [d, h, w] = case.prepared.axes.directions();
            let labels = reorient(&case.prepared.volume(1, labels)?, Axes::new([w, h, d])?);
            let layout = layout(&case.prepared, labels.axes, *labels.affine());
            (labels, layout)
        } else {
            let labels = case.prepared.volume(1, labels.into_iter().map(f32::from).collect())?;
            let mut labels = whole(&case.labels_back(labels)?)?;
            keep(&mut labels.data, labels.extent, false);
            let labels = reorient(&labels, case.axes).with_affine(case.affine);
            (labels, layout(&case.scan, case.axes, case.affine))
        };
        let maps = scores.map(|scores| {
            let maps = BackMaps { case, classes, scores };
            Probabilities::new(Box::new(maps), Activation::None, layout, 0.0)
        });
        Ok(Exported { labels, probabilities: maps })
    }
}

/// Where the voxels of a grid lie in a scan with axes in another order.
pub(super) fn layout(grid: &Grid, axes: Axes, affine: Affine) -> Layout {
    let whole = (grid.extent, grid.affine.spacing(), grid.axes);
    Layout::new(whole, ([0; 3], sizes(grid.extent)), (axes, affine))
}

pub(super) fn placed(layout: &Layout, labels: Vec<u16>) -> Result<Volume<u16>, VolumeError> {
    let mut scan = vec![0; layout.voxels()];
    for (z, plane) in labels.chunks_exact((layout.size[1] * layout.size[2]).max(1)).enumerate() {
        layout.put(z, plane, &mut scan);
    }
    layout.volume(1, scan)
}

/// Labels that went as numbers.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "they were labels before")]
fn whole(labels: &Volume<f32>) -> Result<Volume<u16>, VolumeError> {
    Volume::new(1, labels.extent, labels.spacing, labels.axes, labels.data.iter().map(|v| *v as u16).collect())
}

impl PlaneSink for InverseExport {
    fn plane(&mut self, z: usize, plane: ScorePlane) -> Result<(), RunError> {
        if z < self.next {
            // of an attempt that ran out of device memory; its bits were the same
            return Ok(());
        }
        self.next = z + 1;
        let ([first, y, x], [depth, height, width]) = (sizes(self.case.offset), sizes(self.case.prepared.extent));
        let Some(z) = z.checked_sub(first).filter(|&z| z < depth) else { return Ok(()) };
        let (mut scores, [_, h, w]) = (plane.into_single(), sizes(self.case.volume.extent));
        if [h, w] != [height, width] {
            let rows = scores.chunks_exact(h * w).flat_map(|class| class.chunks_exact(w).skip(y).take(height));
            scores = rows.flat_map(|row| &row[x..x + width]).copied().collect();
        }
        if !self.case.inverts_scores() && self.case.overlapping.is_none() {
            self.labels.extend(argmax(&scores, self.classes));
        }
        if let Some(waiting) = &mut self.scores {
            match self.case.overlapping {
                _ if self.case.invert == Invert::Logits => {}
                None => softmax(&mut scores, self.classes),
                Some(how) if how.sigmoid => overlapping::sigmoid(&mut scores),
                Some(_) => {}
            }
            let failed = |e: io::Error| RunError::new(RunErrorKind::Io, format!("class scores that wait: {e}"));
            waiting.put(z, ScorePlane::Single(scores)).map_err(failed)?;
        }
        Ok(())
    }
}

/// Scores that wait, on their way to the scan's grid, or with [`Invert::Nothing`] where they are.
#[derive(Debug)]
pub(super) struct BackMaps {
    pub(super) case: InverseCase,
    pub(super) classes: u32,
    pub(super) scores: Scores,
}

impl ClassMaps for BackMaps {
    fn classes(&self) -> usize {
        self.classes as usize
    }

    fn at_once(&self) -> usize {
        let voxels: usize = sizes(self.case.scan.extent).iter().product();
        (AT_ONCE / 4 / voxels.max(1)).clamp(1, self.classes.max(1) as usize)
    }

    fn maps(&self, classes: Range<usize>) -> Result<Vec<f32>, VolumeError> {
        let count = u32::try_from(classes.len()).unwrap_or(u32::MAX);
        let mut scores = Vec::new();
        for class in classes {
            scores.extend(self.scores.class(class).map_err(|e| unreadable(&e))?);
        }
        Ok(self.case.scores_back(self.case.prepared.volume(count, scores)?)?.data)
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "numbers of tests")]
#[path = "export_tests.rs"]
mod tests;
