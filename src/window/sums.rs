//! Weighted sums of the planes that windows still reach, in memory or in a file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use half::f16;
use rayon::prelude::*;

use super::Windows;
use super::totals::{Along, Totals, inside};
use crate::error::{RunError, RunErrorKind};
use crate::export::{PlaneSink, Score, ScorePlane, narrowed};
use crate::kernels::host::{Isa, Work, run};

/// A number that sums are stored as: nnU-Net v2 keeps them in 16-bit floats.
pub(super) trait Sum: Score + Pod {
    /// The nearest to an f32.
    fn of(x: f32) -> Self;
    /// Scores of a plane, `[C][H][W]`.
    fn plane(scores: Vec<Self>) -> ScorePlane;
}

impl Sum for f16 {
    #[inline(always)]
    fn of(x: f32) -> Self {
        narrowed(x)
    }

    fn plane(scores: Vec<Self>) -> ScorePlane {
        ScorePlane::Half(scores)
    }
}

impl Sum for f32 {
    #[inline(always)]
    fn of(x: f32) -> Self {
        x
    }

    fn plane(scores: Vec<Self>) -> ScorePlane {
        ScorePlane::Single(scores)
    }
}

/// Sums of the planes that windows still reach. A row of all classes lies together, `[H][C][W]`, so
/// that the rows of a window are one piece of a plane.
pub(super) struct Sums<'a, S> {
    windows: &'a Windows,
    classes: usize,
    /// The sums of weights of the planes that are not settled.
    weights: Totals,
    /// Planes of the ring.
    ring: usize,
    place: Place<S>,
    allows_non_finite: bool,
}

/// Planes lie in the order of a ring, as long as a window is deep.
enum Place<S> {
    Memory(Vec<S>),
    File(Band<S>),
}

/// Rows of some planes that are at hand; all planes lie in a file.
struct Band<S> {
    file: Arc<File>,
    /// Planes of the ring.
    ring: usize,
    /// Elements of a row of all classes, and rows of a plane.
    row: usize,
    rows: usize,
    /// What is at hand: planes, rows, and the values of each plane.
    planes: Range<usize>,
    at: Range<usize>,
    values: Vec<Vec<S>>,
}

impl<S: Sum> Band<S> {
    fn seek(&self, z: usize, row: usize) -> io::Result<()> {
        let element = ((z % self.ring * self.rows + row) * self.row) as u64;
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(element * size_of::<S>() as u64)).map(drop)
    }

    /// Lets a plane begin with zeros.
    fn begin(&self, z: usize) -> io::Result<()> {
        self.seek(z, 0)?;
        let zeros = vec![S::zeroed(); self.row];
        let mut file = &*self.file;
        (0..self.rows).try_for_each(|_| file.write_all(bytemuck::cast_slice(&zeros)))
    }

    /// Writes back what is at hand.
    fn leave(&mut self) -> io::Result<()> {
        let mut file = &*self.file;
        for (z, values) in self.planes.clone().zip(&self.values) {
            self.seek(z, self.at.start)?;
            file.write_all(bytemuck::cast_slice(values))?;
        }
        (self.planes, self.at) = (0..0, 0..0);
        Ok(())
    }

    /// Takes rows of planes to hand.
    fn visit(&mut self, planes: &Range<usize>, at: &Range<usize>) -> io::Result<()> {
        if (&self.planes, &self.at) == (planes, at) {
            return Ok(());
        }
        self.leave()?;
        self.values.resize_with(planes.len(), Vec::new);
        let mut file = &*self.file;
        let mut all = std::mem::take(&mut self.values);
        for (z, values) in planes.clone().zip(&mut all) {
            values.resize(at.len() * self.row, S::zeroed());
            self.seek(z, at.start)?;
            file.read_exact(bytemuck::cast_slice_mut(values))?;
        }
        (self.planes, self.at, self.values) = (planes.clone(), at.clone(), all);
        Ok(())
    }

    fn plane(&mut self, z: usize) -> io::Result<Vec<S>> {
        self.leave()?;
        // the band's memory is lent to the plane
        self.values = Vec::new();
        let mut sums = vec![S::zeroed(); self.rows * self.row];
        self.seek(z, 0)?;
        let mut file = &*self.file;
        file.read_exact(bytemuck::cast_slice_mut(&mut sums))?;
        Ok(sums)
    }
}

fn failed(e: io::Error) -> RunError {
    RunError::new(RunErrorKind::Io, format!("sums of windows that lie in a file: {e}"))
}

impl<'a, S: Sum> Sums<'a, S> {
    /// No sums yet; they lie in `file` if there is one.
    pub(super) fn new(windows: &'a Windows, classes: usize, allows_non_finite: bool, file: Option<Arc<File>>) -> Self {
        let (image, tile) = (windows.image, windows.tile);
        let ring = tile.d.min(image.d).max(1) as usize;
        let (row, rows) = (image.w as usize * classes, image.h as usize);
        let place = match file {
            None => Place::Memory(vec![S::zeroed(); ring * rows * row]),
            Some(file) => Place::File(Band { file, ring, row, rows, planes: 0..0, at: 0..0, values: Vec::new() }),
        };
        Self { windows, classes, weights: Totals::new(windows.rounds()), ring, place, allows_non_finite }
    }

    /// The bytes that they take of memory and of a file.
    pub(super) fn bytes(windows: &Windows, classes: u32, in_file: bool) -> [u64; 2] {
        let (image, tile) = (windows.image, windows.tile);
        let row = u64::from(image.w) * u64::from(classes) * size_of::<S>() as u64;
        let [reach, high] = [tile.d.min(image.d), tile.h.min(image.h)].map(u64::from);
        let (plane, weights) = (row * u64::from(image.h), reach * image.plane() * 4);
        let all = reach * plane;
        // and the plane that is handed on
        if in_file { [(reach * high * row).max(plane) + plane + weights, all] } else { [all + plane + weights, 0] }
    }

    /// No window reaches planes before `begin` any more.
    pub(super) fn settle(&mut self, begin: i32, sink: &mut dyn PlaneSink) -> Result<(), RunError> {
        while let Some((first, weights)) = self.weights.pop(usize::try_from(begin).unwrap_or(0)) {
            let size = self.classes * self.windows.image.plane() as usize;
            let read;
            let sums = match &mut self.place {
                Place::Memory(planes) => &planes[first % self.ring * size..][..size],
                Place::File(band) => {
                    read = band.plane(first).map_err(failed)?;
                    read.as_slice()
                }
            };
            let width = self.windows.image.w as usize;
            let mut scores = vec![S::zeroed(); sums.len()];
            let classes = scores.par_chunks_exact_mut(weights.len().max(1)).enumerate();
            let divided = |(class, scores): (usize, &mut [S])| {
                let mut nothing = 0.0;
                let rows = scores.chunks_exact_mut(width).zip(weights.chunks_exact(width)).enumerate();
                for (y, (scores, weights)) in rows {
                    let sums = &sums[(y * self.classes + class) * width..][..width];
                    for ((score, sum), weight) in scores.iter_mut().zip(sums).zip(weights) {
                        *score = S::of(sum.wide() / weight);
                        nothing += score.wide() * 0.0;
                    }
                }
                nothing == 0.0
            };
            let finite = classes.map(divided).reduce(|| true, |a, b| a & b);
            if !finite && !self.allows_non_finite {
                let text = "the results of windows are finite, but their sum is not: 16-bit floats, which nnU-Net sums in, hold no \
                            more than 65504; --allow-non-finite takes it";
                return Err(RunError::new(RunErrorKind::NonFinite, text).at("windows"));
            }
            sink.plane(first, S::plane(scores))?;
        }
        Ok(())
    }

    /// Adds the result of a window, `[C][D][H][W]`.
    pub(super) fn add(&mut self, place: [i32; 3], values: &[f32]) -> Result<(), RunError> {
        let w = self.windows;
        let (plane, classes) = (w.image.plane() as usize, self.classes);
        let along = inside(w, place);
        let [(skipped, planes), (_, rows), _] = &along;
        let known = self.weights.end();
        self.weights.add(w, place);
        for z in known..self.weights.end() {
            match &mut self.place {
                Place::Memory(planes) => planes[z % self.ring * classes * plane..][..classes * plane].fill(S::zeroed()),
                Place::File(band) => {
                    if band.planes.contains(&z) {
                        band.leave().map_err(failed)?;
                    }
                    band.begin(z).map_err(failed)?;
                }
            }
        }
        let row = classes * w.image.w as usize;
        let part = rows.start * row..rows.end * row;
        let add = |(i, sums): (usize, &mut [S])| {
            run(Addition { windows: w, along: [&along[1], &along[2]], z: skipped + i, classes, values, sums });
        };
        match &mut self.place {
            Place::Memory(all) => {
                // the ring from its first plane on
                let (end, start) = all.split_at_mut(planes.start % self.ring * classes * plane);
                let sums = start.par_chunks_exact_mut(classes * plane).chain(end.par_chunks_exact_mut(classes * plane));
                sums.take(planes.len()).enumerate().for_each(|(i, sums)| add((i, &mut sums[part.clone()])));
            }
            Place::File(band) => {
                band.visit(planes, rows).map_err(failed)?;
                band.values.par_iter_mut().enumerate().for_each(|(i, sums)| add((i, sums)));
            }
        }
        Ok(())
    }
}

/// A plane of a window to be added to rows of a plane of sums.
struct Addition<'a, S> {
    windows: &'a Windows,
    /// Along H and W: the first voxel of the window that counts, and where it lies in the volume.
    along: [&'a Along; 2],
    /// The plane of the window.
    z: usize,
    classes: usize,
    values: &'a [f32],
    /// `[H][C][W]` of the rows.
    sums: &'a mut [S],
}

impl<S: Sum> Work for Addition<'_, S> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let w = self.windows;
        let [d, h, tile_w] = w.tile.axes().map(|n| n as usize);
        let width = w.image.w as usize;
        let [(skip_y, _), (skip_x, columns)] = self.along;
        let mut shares = vec![0.0f32; columns.len()];
        for (y, sums) in self.sums.chunks_exact_mut((self.classes * width).max(1)).enumerate() {
            shares.iter_mut().enumerate().for_each(|(x, share)| *share = w.weights.at(self.z, skip_y + y, skip_x + x));
            for (class, sums) in sums.chunks_exact_mut(width).enumerate() {
                let values = &self.values[((class * d + self.z) * h + skip_y + y) * tile_w + skip_x..][..columns.len()];
                for ((sum, value), share) in sums[columns.clone()].iter_mut().zip(values).zip(&shares) {
                    *sum = S::of(sum.wide() + value * share);
                }
            }
        }
    }
}
