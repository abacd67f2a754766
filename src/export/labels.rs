//! Labels from planes of class scores as they come, on another grid.

use std::collections::VecDeque;
use std::ops::Range;

use rayon::prelude::*;

use super::ScorePlane;
use super::bounds::PlaneBounds;
use super::half::rounded;
use super::layout::Layout;
use super::resize::{Resize, Score, Scratch, TILE, stored};
use crate::kernels::host::{Isa, Work, run};
use crate::volume::{Volume, VolumeError};

/// Most planes of labels that are made at once.
const PLANES: usize = 8;

/// How the scores of a voxel become its label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The class with the highest score; the first of equals.
    ArgMax,
    /// nnU-Net's regions, which may lie within each other: each channel whose sigmoid is above 1/2
    /// sets its label, in this order.
    Regions(Vec<u16>),
}

/// Makes labels of planes of scores that come in order, keeping no more planes than are read again.
#[derive(Debug)]
pub(crate) struct LabelStream {
    resize: Resize,
    classes: usize,
    /// Whether interpolated scores are rounded to 16 bits.
    half: bool,
    reduction: Reduction,
    /// Planes that later planes of labels are read from, the first of which is `first`.
    planes: VecDeque<(ScorePlane, PlaneBounds)>,
    first: usize,
    /// The next plane of labels.
    next: usize,
    layout: Layout,
    labels: Vec<u16>,
}

impl LabelStream {
    /// Labels by `reduction` of so many classes, brought to another grid and to their places; with
    /// `half` of scores that are rounded to 16 bits after they were interpolated.
    pub(crate) fn new(resize: Resize, classes: usize, half: bool, reduction: Reduction, layout: Layout) -> Self {
        let labels = vec![0; layout.voxels()];
        Self { resize, classes, half, reduction, planes: VecDeque::new(), first: 0, next: 0, layout, labels }
    }

    /// The bytes that it takes beside the labels: two planes of scores, what is known of them, and
    /// planes of labels.
    pub(crate) fn bytes(resize: &Resize, classes: usize, half: bool) -> u64 {
        let [_, height, width] = resize.from;
        let score = if half { 2 } else { 4 };
        let bounds = PlaneBounds::bytes(classes, [height, width]);
        let plane = resize.to[1] * resize.to[2];
        2 * ((classes * height * width * score) as u64 + bounds) + (PLANES * plane * 2) as u64
    }

    /// Takes the next plane of scores, `[C][H][W]`.
    pub(crate) fn push(&mut self, plane: ScorePlane) {
        let size = [self.resize.from[1], self.resize.from[2]];
        let bounds = match &plane {
            ScorePlane::Half(scores) => PlaneBounds::new(scores, size),
            ScorePlane::Single(scores) => PlaneBounds::new(scores, size),
        };
        self.planes.push_back((plane, bounds));
        let end = self.first + self.planes.len();
        let taps = &self.resize.taps[0];
        let ready = taps[self.next..].iter().take_while(|tap| tap.voxels[1] < end).count();
        let mut left = self.next..self.next + ready;
        while !left.is_empty() {
            let part = left.start..left.end.min(left.start + PLANES);
            left.start = part.end;
            self.make(part);
        }
        self.next += ready;
        let needed = self.resize.taps[0].get(self.next).map_or(end, |tap| tap.voxels[0]);
        while self.first < needed.min(end) {
            self.planes.pop_front();
            self.first += 1;
        }
    }

    /// Makes planes of labels from what is there.
    fn make(&mut self, planes: Range<usize>) {
        let [_, height, width] = self.resize.to;
        let taps = &self.resize.taps[0];
        // planes that are read at the same place are made once
        let mut made: Vec<usize> = planes.clone().collect();
        made.dedup_by_key(|&mut z| taps[z]);
        let mut labels = vec![0u16; made.len() * height * width];
        let this = &*self;
        let rows = labels.par_chunks_exact_mut(height * width).zip(&made).flat_map(|(plane, &z)| {
            let parts = plane.par_chunks_mut(TILE[0] * width).enumerate();
            parts.map(move |(i, part)| (z, i * TILE[0], part))
        });
        rows.for_each_init(Scratch::default, |scratch, (z, y, labels)| {
            let rows = y..y + labels.len() / width;
            run(Rows { stream: this, z, rows, labels, scratch });
        });
        let mut at = 0;
        for z in planes {
            while made.get(at + 1).is_some_and(|&next| next <= z) {
                at += 1;
            }
            self.layout.put(z, &labels[at * height * width..][..height * width], &mut self.labels);
        }
    }

    /// The labels on the scan's grid; 0 outside the box.
    pub(crate) fn finish(self) -> Result<Volume<u16>, VolumeError> {
        self.layout.volume(1, self.labels)
    }
}

/// Some rows of a plane of labels.
struct Rows<'a> {
    stream: &'a LabelStream,
    z: usize,
    rows: Range<usize>,
    labels: &'a mut [u16],
    scratch: &'a mut Scratch,
}

impl Work for Rows<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let stream = self.stream;
        let voxels = stream.resize.taps[0][self.z].voxels;
        let [a, b] = voxels.map(|z| &stream.planes[z - stream.first]);
        let bounds = [&a.1, &b.1];
        match (&a.0, &b.0) {
            (ScorePlane::Half(a), ScorePlane::Half(b)) if stream.half => self.label::<_, true>([a, b], bounds),
            (ScorePlane::Half(a), ScorePlane::Half(b)) => self.label::<_, false>([a, b], bounds),
            (ScorePlane::Single(a), ScorePlane::Single(b)) if stream.half => self.label::<_, true>([a, b], bounds),
            (ScorePlane::Single(a), ScorePlane::Single(b)) => self.label::<_, false>([a, b], bounds),
            _ => unreachable!("all planes of a stream are stored alike"),
        }
    }
}

impl Rows<'_> {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "labels have 16 bits, and so have classes")]
    fn label<S: Score, const HALF: bool>(self, planes: [&[S]; 2], bounds: [&PlaneBounds; 2]) {
        let LabelStream { resize, classes, reduction, .. } = self.stream;
        let (rows, width) = (self.rows, resize.to[2]);
        let plane = resize.from[1] * resize.from[2];
        let ys = resize.span(1, &rows);
        // a score between two bounds is rounded to one between the rounded bounds; its own rounding in
        // f64 is far below a step of f32
        let [down, up] = [f32::next_down, f32::next_up].map(|step| move |x: f32| if HALF { rounded(step(x).into()) } else { x });
        // sums in f32 may lie beyond the bounds by their rounding, six times half a step and that
        // of weights
        let beyond = |x: f32| if resize.single { x.abs() * 1e-6 } else { 0.0 };
        let mut highs = Vec::with_capacity(*classes);
        let mut best = [0.0f32; TILE[0] * TILE[1]];
        for x in (0..width).step_by(TILE[1]) {
            let columns = x..width.min(x + TILE[1]);
            let xs = resize.span(2, &columns);
            highs.clear();
            let mut least = f32::NEG_INFINITY;
            for class in 0..*classes {
                let [a, b] = bounds.map(|plane| plane.of(class, &ys, &xs));
                let (high, low) = (a.high.max(b.high), a.low.min(b.low));
                let room = beyond(high).max(beyond(low));
                highs.push(up(high) + room);
                least = least.max(down(low) - room);
            }
            match reduction {
                Reduction::ArgMax => {
                    // a class below `least` everywhere is nowhere the highest
                    let mut candidates = (0..*classes).filter(|&class| highs[class] >= least).peekable();
                    let first = candidates.next().unwrap_or(0);
                    if candidates.peek().is_none() {
                        for line in self.labels.chunks_exact_mut(width) {
                            line[columns.clone()].fill(first as u16);
                        }
                        continue;
                    }
                    best.fill(f32::NEG_INFINITY);
                    for class in std::iter::once(first).chain(candidates) {
                        let of = planes.map(|scores| &scores[class * plane..][..plane]);
                        let scores = resize.tile(of, self.z, &rows, &columns, self.scratch);
                        let lines = self.labels.chunks_exact_mut(width).zip(best.chunks_exact_mut(columns.len()));
                        for ((labels, best), scores) in lines.zip(scores.chunks_exact(columns.len())) {
                            let labels = &mut labels[columns.clone()];
                            for ((label, best), &score) in labels.iter_mut().zip(best).zip(scores) {
                                let score = stored::<HALF>(score);
                                // one that is not a number stays if it is the first class, and never wins
                                if score > *best || class == 0 {
                                    *best = score;
                                    *label = class as u16;
                                }
                            }
                        }
                    }
                }
                Reduction::Regions(regions) => {
                    let any = |channel: &usize| highs[*channel] > 0.0;
                    for (channel, &region) in (0..*classes).zip(regions).filter(|(channel, _)| any(channel)) {
                        let of = planes.map(|scores| &scores[channel * plane..][..plane]);
                        let scores = resize.tile(of, self.z, &rows, &columns, self.scratch);
                        for (line, scores) in self.labels.chunks_exact_mut(width).zip(scores.chunks_exact(columns.len())) {
                            for (label, &score) in line[columns.clone()].iter_mut().zip(scores) {
                                if inside(stored::<HALF>(score)) {
                                    *label = region;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Whether the sigmoid of a score is above 1/2.
#[inline(always)]
pub(super) fn inside(score: f32) -> bool {
    1.0 / (1.0 + (-score).exp()) > 0.5
}
