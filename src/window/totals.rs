//! Sums of the weights of windows, and where a window lies in its volume.

use std::collections::VecDeque;
use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::Windows;
use crate::export::{narrowed, widened};

/// Along an axis: the first voxel of a window that lies in the volume, and where these voxels lie there.
pub(super) type Along = (usize, Range<usize>);

/// The part of the window at `place` that lies in the volume, along D, H, W.
pub(super) fn inside(windows: &Windows, place: [i32; 3]) -> [Along; 3] {
    [0, 1, 2].map(|axis| {
        let [n, image] = [windows.tile, windows.image].map(|e| e.axes()[axis] as usize);
        let begin = place[axis] as isize;
        let [skipped, at] = [begin.min(0).unsigned_abs(), begin.max(0).unsigned_abs()];
        (skipped, at..at + n.saturating_sub(skipped).min(image.saturating_sub(at)))
    })
}

/// Sums of weights, `[H][W]` of each plane that windows still reach.
#[derive(Debug)]
pub(super) struct Totals {
    /// The first plane.
    pub(super) first: usize,
    planes: VecDeque<Vec<f32>>,
    /// They are rounded to 16-bit floats.
    rounded: bool,
}

impl Totals {
    /// No sums yet.
    pub(super) fn new(rounded: bool) -> Self {
        Self { first: 0, planes: VecDeque::new(), rounded }
    }

    /// The plane after the last that windows have reached.
    pub(super) fn end(&self) -> usize {
        self.first + self.planes.len()
    }

    /// Adds the weights of the window at `place`.
    pub(super) fn add(&mut self, windows: &Windows, place: [i32; 3]) {
        let [(skipped, planes), (skip_y, rows), (skip_x, columns)] = inside(windows, place);
        let plane = windows.image.plane() as usize;
        while self.end() < planes.end {
            self.planes.push_back(vec![0.0; plane]);
        }
        let begin = planes.start - self.first;
        let (rounded, width) = (self.rounded, windows.image.w as usize);
        self.planes.par_iter_mut().skip(begin).take(planes.len()).enumerate().for_each(|(z, sums)| {
            let sums = sums.chunks_exact_mut(width).skip(rows.start).take(rows.len());
            for (y, sums) in sums.enumerate() {
                for (x, sum) in sums[columns.clone()].iter_mut().enumerate() {
                    let new = *sum + windows.weights.at(skipped + z, skip_y + y, skip_x + x);
                    *sum = if rounded { widened(narrowed(new)) } else { new };
                }
            }
        });
    }

    /// The sums of the first plane, if that lies before plane `begin`.
    pub(super) fn pop(&mut self, begin: usize) -> Option<(usize, Vec<f32>)> {
        let z = self.first;
        let sums = if z < begin { self.planes.pop_front() } else { None }?;
        self.first += 1;
        Some((z, sums))
    }
}

/// Scores as 16-bit floats, of f32 that are such.
pub(super) fn halves(scores: Vec<f32>) -> Vec<f16> {
    scores.into_iter().map(narrowed).collect()
}
