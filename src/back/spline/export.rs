//! Class scores on their way back to the scan, plane by plane and fold by fold.

use std::fs::File;
use std::io;
use std::ops::Range;

use rayon::prelude::*;

use super::SplineCase;
use crate::error::{RunError, RunErrorKind};
use crate::export::{
    Activation, ClassMaps, ExportBytes, Exported, LabelStream, Layout, PlaneSink, Probabilities, Reduction, Resize, ScorePlane, Scores,
    labels, narrowed, rounded, unreadable, whole, widened,
};
use crate::scan::{Filtered, Interpolation, Resampling, components_bytes, filter};
use crate::volume::spline::{self, Order};
use crate::volume::{Volume, VolumeError, VolumeErrorKind, sizes};

/// What is exported of a case, and how.
#[derive(Debug)]
#[non_exhaustive]
pub struct SplineExportOptions {
    /// Folds whose scores are averaged.
    pub folds: u16,
    /// How scores become labels.
    pub reduction: Reduction,
    /// Whether probabilities are wanted too.
    pub probabilities: bool,
}

impl Default for SplineExportOptions {
    fn default() -> Self {
        Self { folds: 1, reduction: Reduction::ArgMax, probabilities: false }
    }
}

/// Takes the planes of class scores of a case, fold after fold, and makes labels of them on the scan's
/// grid: at once where they are interpolated by order 0 or 1. What waits until all planes are there,
/// because several folds are averaged, splines are cubic or probabilities are wanted, waits as it is
/// stored, in 16 bits for nnU-Net v2.
#[derive(Debug)]
pub struct SplineExport {
    back: Back,
    classes: usize,
    layout: Layout,
    reduction: Reduction,
    probabilities: bool,
    /// Whether scores are probabilities.
    probable: bool,
    folds: u16,
    fold: u16,
    /// The next plane.
    next: usize,
    stream: Option<LabelStream>,
    waiting: Option<Scores>,
    /// Filters of the labels, and the volume of a voxel in mm³.
    filters: (Vec<Filtered>, f64),
}

impl SplineExport {
    /// The way back of a case for scores of so many classes.
    #[must_use]
    pub fn new(case: &SplineCase, classes: u32, options: SplineExportOptions) -> Self {
        let from = sizes(case.volume.extent);
        let (classes, half) = (classes as usize, !case.probable);
        let (resampling, axis) = case.back;
        let back = Back { from, to: case.size, resampling, axis, half };
        let SplineExportOptions { folds, reduction, probabilities } = options;
        let layout = case.layout();
        let resize = back.resize().filter(|_| !probabilities);
        let waits = resize.is_none() || folds > 1;
        let waiting = waits.then(|| Scores::new(from[0], classes, from[1] * from[2], half, None));
        let rounds = back.rounds();
        let stream = resize.map(|resize| LabelStream::new(resize, classes, rounds, reduction.clone(), layout.clone()));
        let (fold, next, probable, filters) = (0, 0, case.probable, case.filters.clone());
        Self { back, classes, layout, reduction, probabilities, probable, folds, fold, next, stream, waiting, filters }
    }

    /// What it takes of the host's memory.
    #[must_use]
    pub fn bytes(&self) -> ExportBytes {
        let Back { from, to, .. } = self.back;
        let [source, target] = [from, to].map(|n| n.iter().product::<usize>() as u64);
        let scan = self.layout.voxels() as u64;
        let waiting = self.waiting.as_ref().map_or(0, Scores::bytes);
        let filtering = if self.filters.0.is_empty() { 0 } else { components_bytes(scan) };
        if let Some(resize) = self.back.resize().filter(|_| self.stream.is_some()) {
            let running = 2 * scan + LabelStream::bytes(&resize, self.classes, self.back.half);
            return ExportBytes { running, waiting, finishing: filtering };
        }
        // a class here and there, and of each voxel its label, highest score and sum
        let resizing = match self.back.resize() {
            Some(_) => 4 * target,
            None => 4 * target + spline::resized_bytes(from, to, self.back.orders().1),
        };
        let sums = if self.probabilities { 4 * target + 4 * scan } else { 0 };
        let finishing = (4 * source + resizing + 6 * target + sums).max(filtering);
        ExportBytes { running: 2 * scan, waiting, finishing }
    }

    /// Keeps scores that have to wait in a file. No plane may have been taken yet.
    pub fn spill_to(&mut self, file: File) {
        if let Some(waiting) = &mut self.waiting {
            waiting.keep_in(file);
        }
    }

    /// Ends a fold; the planes of the next follow.
    pub fn next_fold(&mut self) {
        self.fold += 1;
        self.next = 0;
    }

    /// The labels, and the probabilities where they are wanted.
    ///
    /// # Errors
    /// When planes are missing, or scores that were spilled cannot be read.
    pub fn finish(self) -> Result<Exported, VolumeError> {
        if self.next < self.back.from[0] || self.fold + 1 < self.folds {
            let (depth, folds) = (self.back.from[0], self.folds);
            let text = format!("{} planes of fold {} of {folds} are there, {depth} are needed", self.next, self.fold + 1);
            return Err(VolumeError::new(VolumeErrorKind::GridMismatch, text));
        }
        if let Some(stream) = self.stream {
            let labels = filtered(&self.filters, stream.finish()?);
            return Ok(Exported { labels, probabilities: None });
        }
        let scores = self.waiting.ok_or_else(|| unreadable(&io::ErrorKind::NotFound.into()))?;
        let resize = self.back.resize();
        let maps = BackMaps { back: self.back, scores, resize, classes: self.classes };
        let size = self.layout.size;
        let (labelled, highest) = labels(&maps, size.iter().product(), &self.reduction)?;
        let mut scan = vec![0; self.layout.voxels()];
        for (z, plane) in labelled.chunks_exact((size[1] * size[2]).max(1)).enumerate() {
            self.layout.put(z, plane, &mut scan);
        }
        drop(labelled);
        let labels = filtered(&self.filters, self.layout.volume(1, scan)?);
        if !self.probabilities {
            return Ok(Exported { labels, probabilities: None });
        }
        let (activation, outside) = match self.reduction {
            Reduction::Regions(_) => (Activation::Sigmoid, 0.0),
            Reduction::ArgMax if self.probable => (Activation::None, 1.0),
            Reduction::ArgMax => (Activation::softmax(&maps, highest)?, 1.0),
        };
        let probabilities = Probabilities::new(Box::new(maps), activation, self.layout, outside);
        Ok(Exported { labels, probabilities: Some(probabilities) })
    }
}

impl PlaneSink for SplineExport {
    fn plane(&mut self, z: usize, plane: ScorePlane) -> Result<(), RunError> {
        if z < self.next {
            // of an attempt that ran out of device memory; its bits were the same
            return Ok(());
        }
        self.next = z + 1;
        let failed = |e: io::Error| RunError::new(RunErrorKind::Io, format!("class scores that wait: {e}"));
        let mut plane = plane;
        if let Some(waiting) = self.waiting.as_mut().filter(|_| self.fold > 0) {
            plane = sum(waiting.take(z).map_err(failed)?, &plane, self.back.half);
        }
        let last = self.fold + 1 == self.folds;
        if last && self.folds > 1 {
            divide(&mut plane, self.folds.into(), self.back.half);
        }
        match (&mut self.stream, &mut self.waiting) {
            (Some(stream), _) if last => stream.push(plane),
            (_, Some(waiting)) => waiting.put(z, plane).map_err(failed)?,
            _ => {}
        }
        Ok(())
    }
}

/// Labels after what is done to them in the end.
fn filtered((filters, voxel_mm3): &(Vec<Filtered>, f64), mut labels: Volume<u16>) -> Volume<u16> {
    filter(filters, false, &mut labels.data, sizes(labels.extent), *voxel_mm3);
    labels
}

/// The sum of the scores of folds: in 16-bit floats as nnU-Net v2 takes it, or in f32 as v1 does with
/// probabilities.
fn sum(mut sum: ScorePlane, plane: &ScorePlane, half: bool) -> ScorePlane {
    match (&mut sum, plane) {
        (ScorePlane::Half(sums), ScorePlane::Half(scores)) => {
            let pairs = sums.par_iter_mut().zip(scores).with_min_len(1 << 14);
            pairs.for_each(|(sum, &v)| *sum = narrowed(widened(*sum) + widened(v)));
        }
        (ScorePlane::Single(sums), ScorePlane::Single(scores)) => {
            let pairs = sums.par_iter_mut().zip(scores).with_min_len(1 << 14);
            pairs.for_each(|(sum, v)| *sum = stored(*sum + v, half));
        }
        _ => unreachable!("all folds are stored alike"),
    }
    sum
}

/// Sums to means.
fn divide(plane: &mut ScorePlane, folds: f32, half: bool) {
    match plane {
        ScorePlane::Half(scores) => scores.par_iter_mut().with_min_len(1 << 14).for_each(|v| *v = narrowed(widened(*v) / folds)),
        ScorePlane::Single(scores) => scores.par_iter_mut().with_min_len(1 << 14).for_each(|v| *v = stored(*v / folds, half)),
    }
}

fn stored(x: f32, half: bool) -> f32 {
    if half { widened(narrowed(x)) } else { x }
}

/// How scores are resampled to the cropped scan.
#[derive(Clone, Copy, Debug)]
struct Back {
    from: [usize; 3],
    to: [usize; 3],
    resampling: Resampling,
    axis: Option<usize>,
    /// Whether they are kept in 16 bits.
    half: bool,
}

impl Back {
    fn orders(&self) -> (Order, Option<(usize, Order)>) {
        self.resampling.orders(self.axis)
    }

    /// Whether they are rounded to 16 bits after they were resampled; PyTorch's are f32.
    fn rounds(&self) -> bool {
        self.half && self.resampling.by != Interpolation::Torch
    }

    fn resize(&self) -> Option<Resize> {
        let (order, along) = self.orders();
        match self.resampling.by {
            Interpolation::Torch => Some(Resize::torch(self.from, self.to, order, along)),
            Interpolation::Spline | Interpolation::None => Resize::new(self.from, self.to, order, along),
        }
    }
}

/// Scores that wait, on their way to the cropped scan.
#[derive(Debug)]
struct BackMaps {
    back: Back,
    scores: Scores,
    resize: Option<Resize>,
    classes: usize,
}

impl ClassMaps for BackMaps {
    fn classes(&self) -> usize {
        self.classes
    }

    fn at_once(&self) -> usize {
        1
    }

    fn maps(&self, classes: Range<usize>) -> Result<Vec<f32>, VolumeError> {
        let (Back { from, to, .. }, half, mut maps) = (self.back, self.back.rounds(), Vec::new());
        for class in classes {
            let scores = self.scores.class(class).map_err(|e| unreadable(&e))?;
            let map = match &self.resize {
                Some(resize) => whole(resize, &scores, half),
                None => {
                    let (order, along) = self.back.orders();
                    let values = spline::resized(&scores, from, to, order, along);
                    values.into_par_iter().map(|v| rounded(v, half)).collect()
                }
            };
            if maps.is_empty() { maps = map } else { maps.extend(map) }
        }
        Ok(maps)
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "numbers of tests")]
#[path = "export_tests.rs"]
mod tests;
