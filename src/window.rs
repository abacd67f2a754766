//! Sliding windows: a network on tiles of a volume, mirrored or not, whose results are blended.
//!
//! Sources: `predict_3D` of nnU-Net v1 (`neural_network.py`), `predict_sliding_window_return_logits` of nnU-Net v2, and
//! `sliding_window_inference` of MONAI. Results are summed on the device where [`Windows::plan`] finds
//! room for that, else on the host: with the same bits. Planes that no later window reaches are handed on at once.

mod device;
mod sums;
mod totals;

use half::f16;
use rayon::prelude::*;

use self::device::Planes;
use self::sums::{Sum, Sums};
use crate::caps::DeviceCaps;
use crate::error::{PlanError, PlanErrorKind, RunError, RunErrorKind, internal};
use crate::export::{ExportBytes, PlaneSink, ScorePlane};
use crate::graph::Graph;
use crate::host_budget::HostNeeds;
use crate::model::{Card, Model, Scheme};
use crate::plan::{OutputMode, Plan, PlanOptions, Planner, WindowProblem, check_extent};
use crate::run::{Progress, RunOptions};
use crate::scores::{argmax, softmax};
use crate::session::Session;
use crate::shape::Extent;
use crate::tiling::{Blend, TileWeights, monai_starts, nnunet_starts};
use crate::transfer::{Input, OutputData};
use crate::volume::claim::{Claim, Refused};

/// Share of a tile that neighbours have in common where a card names none.
const OVERLAP: f64 = 0.5;

/// The least distance of windows in voxels.
const LEAST_STEP: f64 = 0.5;

/// Refuses windows of which the machine has no room for one: its input and its scores.
fn check_room(card: &Card, tile: Extent) -> Result<(), PlanError> {
    let values = f64::from(card.in_channels()) + f64::from(card.classes());
    match Claim::of(tile.axes().map(i64::from), |n| 4.0 * values * n).extent() {
        Ok(_) => Ok(()),
        Err(Refused::Nothing) => Err(PlanError::new(PlanErrorKind::Extent, "windows without voxels")),
        Err(Refused::TooLarge(takes)) => {
            let text = format!("the card's windows are of {tile} voxels{takes}; give the card a smaller patch (inference.patch)");
            Err(PlanError::new(PlanErrorKind::Limits, text))
        }
    }
}

/// Where the windows of a volume lie, and how their results are blended.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    image: Extent,
    tile: Extent,
    starts: [Vec<i32>; 3],
    weights: TileWeights,
    scheme: Scheme,
    mirrors: Vec<[bool; 3]>,
    remembers: bool,
}

/// What windows bring back.
#[derive(Clone, Debug, PartialEq)]
pub struct Blended {
    /// The label of the highest class of each voxel, `[D][H][W]`.
    pub labels: Vec<u16>,
    /// Probabilities of all classes, `[C][D][H][W]`, if they were asked for.
    pub probabilities: Option<Vec<f32>>,
}

impl Windows {
    /// Those of a card on a volume. A 2D network takes all planes of a window at once.
    ///
    /// # Errors
    /// When the card names no patch and the network takes more than one extent, or a patch that the network does not take.
    pub fn new(card: &Card, image: Extent) -> Result<Self, PlanError> {
        Self::stepping(card, image, None)
    }

    /// The same, moved by this share of a window instead of the card's.
    pub(crate) fn stepping(card: &Card, image: Extent, step: Option<f64>) -> Result<Self, PlanError> {
        let inference = &card.inference;
        let planar = card.dims() == 2;
        let mut tile = match (&inference.patch, card.crop()) {
            (Some(patch), _) if patch.len() < 3 && !planar => {
                let text = format!("the card's inference.patch {patch:?} is not three numbers");
                return Err(PlanError::new(PlanErrorKind::Unsupported, text));
            }
            (Some(patch), _) => {
                let mut axes = [1; 3];
                axes[3 - patch.len()..].copy_from_slice(patch);
                Extent::from(axes)
            }
            (None, Some(crop)) => crop,
            (None, None) => {
                let text = format!("the card of this {} names no patch (inference.patch) for windows", card.architecture);
                return Err(PlanError::new(PlanErrorKind::Unsupported, text));
            }
        };
        if planar {
            tile.d = 1;
        }
        check_extent(tile, card)?;
        check_room(card, tile)?;
        let scheme = inference.scheme.unwrap_or_else(|| Scheme::of(&card.architecture));
        let overlap = step.map_or_else(|| inference.overlap.unwrap_or(OVERLAP), |step| 1.0 - step);
        let step = step.unwrap_or(1.0 - overlap);
        // MONAI's move by a voxel at least
        let spread = matches!(scheme, Scheme::NnunetV1 | Scheme::NnunetV2);
        if let Some(n) = tile.axes().into_iter().find(|n| spread && *n > 1 && f64::from(*n) * step < LEAST_STEP) {
            let text = format!("windows of {n} voxels that move by {step:e} of it lie less than {LEAST_STEP} voxels apart");
            return Err(PlanError::new(PlanErrorKind::Limits, text));
        }
        let starts = |axis: usize| {
            let (n, window) = (image.axes()[axis], tile.axes()[axis]);
            match scheme {
                Scheme::NnunetV1 | Scheme::NnunetV2 => nnunet_starts(n, window, step),
                Scheme::Monai | Scheme::MonaiGaussian => monai_starts(n, window, overlap),
            }
        };
        let starts = [if planar { vec![0] } else { starts(0) }, starts(1), starts(2)];
        let single = starts.iter().all(|s| s.len() == 1);
        let blend = match scheme {
            Scheme::NnunetV1 if single => Blend::Constant,
            Scheme::NnunetV1 => Blend::NnUnet,
            Scheme::NnunetV2 => Blend::NnUnetHalf,
            Scheme::Monai => Blend::Constant,
            Scheme::MonaiGaussian => Blend::Monai,
        };
        let mut weights = TileWeights::new(blend, tile);
        if planar {
            tile.d = image.d;
            weights.along[0] = vec![weights.along[0][0]; image.d as usize];
        }
        let mut mirrors = vec![[false; 3]];
        for axis in inference.mirror.axes() {
            let more: Vec<_> = mirrors.iter().map(|m| [0, 1, 2].map(|a| m[a] || a == *axis as usize)).collect();
            mirrors.extend(more);
        }
        Ok(Self { image, tile, starts, weights, scheme, mirrors, remembers: inference.accumulate_visited })
    }

    /// Extent of every window: what a session for [`Windows::run`] is planned for, with logits as its output.
    #[must_use]
    pub fn tile(&self) -> Extent {
        self.tile
    }

    /// Windows of the volume.
    #[must_use]
    pub fn count(&self) -> usize {
        self.starts.iter().map(Vec::len).product()
    }

    /// Runs of the network: windows times mirror images.
    #[must_use]
    pub fn passes(&self) -> usize {
        self.count() * self.mirrors.len()
    }

    /// Where each window begins, in the order in which they run; negative where the volume is padded.
    pub fn places(&self) -> impl Iterator<Item = [i32; 3]> + '_ {
        let [d, h, w] = &self.starts;
        d.iter().flat_map(move |&z| h.iter().flat_map(move |&y| w.iter().map(move |&x| [z, y, x])))
    }

    /// The centre of a window less that of the volume, in voxels along D, H, W: FINE's position of a crop. A volume that is
    /// shorter than its window is padded first.
    #[must_use]
    pub fn position(&self, place: [i32; 3]) -> [i64; 3] {
        [0, 1, 2].map(|axis| {
            let [tile, image] = [self.tile, self.image].map(|e| i64::from(e.axes()[axis]));
            i64::from(place[axis].max(0)) + tile / 2 - image.max(tile) / 2
        })
    }

    /// Values of the window at `place`, zero beyond the volume, mirrored along the axes told.
    #[must_use]
    pub fn crop(&self, input: &Input<'_>, place: [i32; 3], mirrored: [bool; 3]) -> Vec<f32> {
        let [d, h, w] = self.tile.axes().map(|n| n as usize);
        let [image_d, image_h, image_w] = self.image.axes().map(|n| n as usize);
        let source = |axis: usize, i: usize, tile: usize, image: usize| {
            let i = if mirrored[axis] { tile - 1 - i } else { i };
            usize::try_from(i64::from(place[axis]) + i as i64).ok().filter(|&at| at < image)
        };
        let mut values = vec![0.0; input.channels as usize * d * h * w];
        values.par_chunks_exact_mut((h * w).max(1)).enumerate().for_each(|(row, plane)| {
            let (channel, z) = (row / d, row % d);
            let Some(z) = source(0, z, d, image_d) else { return };
            for (y, line) in plane.chunks_exact_mut(w).enumerate() {
                let Some(y) = source(1, y, h, image_h) else { continue };
                let from = ((channel * image_d + z) * image_h + y) * image_w;
                for (x, value) in line.iter_mut().enumerate() {
                    if let Some(x) = source(2, x, w, image_w) {
                        *value = input.data[from + x];
                    }
                }
            }
        });
        values
    }

    /// The plan of a session that runs these windows over a scan of so many channels, on a GPU with windows cropped, summed
    /// and finished on the device where there is room for that: scan and results then cross the bus once, instead of the
    /// logits of every pass. `labels` alone leave the device, or else scores, which the probabilities are made of.
    ///
    /// The device sums wherever that leaves the network a plan with no more work and no more transfers than it has within the
    /// whole budget. It never does with the scheme of nnU-Net v1, whose passes end with a softmax. Labels and scores are the
    /// same bits either way.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn plan(&self, model: &Model, channels: u32, labels: bool, caps: &DeviceCaps, options: &PlanOptions) -> Result<Plan, PlanError> {
        check_extent(self.tile, model.card())?;
        let graph = model.graph_for(self.tile, &options.taps)?;
        self.plan_graph(&graph, model.card().classes(), (channels, labels), caps, options)
    }

    /// The same of a graph without weights, that makes scores of so many classes: channels of the scan, and whether labels
    /// alone leave the device.
    ///
    /// # Errors
    /// As [`Windows::plan`].
    pub fn plan_graph(
        &self,
        graph: &Graph,
        classes: u32,
        (channels, labels): (u32, bool),
        caps: &DeviceCaps,
        options: &PlanOptions,
    ) -> Result<Plan, PlanError> {
        let options = options.clone().with_output(OutputMode::Logits);
        let planner = Planner::of_graph(graph, self.tile, caps, &options)?;
        let on_host = planner.plan(options.budget)?;
        let (image, weights) = (self.image, self.weights.clone());
        let problem = WindowProblem { image, channels, mirrors: self.mirrors.len() as u32, rounded: self.rounds(), weights, labels };
        let bytes = problem.bytes(self.tile, classes, caps);
        let Some(bytes) = bytes.filter(|_| !caps.is_host() && self.scheme != Scheme::NnunetV1 && options.taps.is_empty()) else {
            return Ok(on_host);
        };
        let Some(budget) = options.budget else { return Ok(on_host.clone().summing(&problem, caps).unwrap_or(on_host)) };
        // the blocks of parameters of the further dispatches are counted once they are known
        let mut left = budget.saturating_sub(bytes);
        for _ in 0..2 {
            let Ok(plan) = planner.plan(Some(left)) else { break };
            if !plan.report().is_as_fast_as(on_host.report()) {
                break;
            }
            let Some(plan) = plan.summing(&problem, caps) else { break };
            let excess = plan.report().peak_bytes.saturating_sub(budget);
            if excess == 0 {
                return Ok(plan.within(Some(budget), on_host.report().smallest_budget));
            }
            left = left.saturating_sub(excess);
        }
        Ok(on_host)
    }

    /// Runs a session of [`Windows::tile`] over a volume. Progress counts the operations of all passes. Where the network has
    /// volume tokens, the session is moved to each window's position, and stays there.
    ///
    /// # Errors
    /// When the input is not of the extent that the windows are of, when cancelled, or when the device fails.
    pub async fn run(
        &self,
        session: &mut Session,
        model: &Model,
        input: Input<'_>,
        probabilities: bool,
        options: RunOptions<'_>,
    ) -> Result<Blended, RunError> {
        if session.sums_labels() && !probabilities {
            let mut labels = Vec::with_capacity(self.image.voxels() as usize);
            self.on_device(session, model, input, Planes::Labels(&mut labels), options).await?;
            return Ok(Blended { labels, probabilities: None });
        }
        let softmax = self.scheme != Scheme::NnunetV1;
        let mut sink = Gathered::new(self.image, model.card().classes(), true, probabilities, softmax);
        self.planes(session, model, input, &mut sink, options).await?;
        Ok(Blended { labels: sink.labels, probabilities: sink.maps })
    }

    /// The same, but what comes back is what was blended, `[C][D][H][W]`: logits, with nnU-Net v2's scheme rounded to 16-bit floats as
    /// it stores them; with that of v1 probabilities.
    ///
    /// # Errors
    /// As [`Windows::run`].
    pub async fn logits(
        &self,
        session: &mut Session,
        model: &Model,
        input: Input<'_>,
        options: RunOptions<'_>,
    ) -> Result<Vec<f32>, RunError> {
        let mut sink = Gathered::new(self.image, model.card().classes(), false, true, false);
        self.planes(session, model, input, &mut sink, options).await?;
        sink.maps.ok_or_else(|| internal("windows brought no logits back"))
    }

    /// The same, but each plane of the volume is handed to `sink` once no window reaches it any more:
    /// only the planes that windows still reach are kept, those of nnU-Net v2 in 16 bits, in which it
    /// sums.
    ///
    /// # Errors
    /// As [`Windows::run`], and those of the sink.
    pub async fn planes(
        &self,
        session: &mut Session,
        model: &Model,
        input: Input<'_>,
        sink: &mut dyn PlaneSink,
        options: RunOptions<'_>,
    ) -> Result<(), RunError> {
        if session.plan().recording().windows.is_some() {
            self.on_device(session, model, input, Planes::Scores(sink), options).await
        } else if self.rounds() {
            self.summed::<f16>(session, model, input, sink, options).await
        } else {
            self.summed::<f32>(session, model, input, sink, options).await
        }
    }

    /// The host bytes of labels alone on the volume's grid, and of the two planes of scores that they are
    /// made of.
    #[must_use]
    pub fn export_bytes(&self, classes: u32) -> ExportBytes {
        let score = if self.rounds() { 2 } else { 4 };
        let labels = ExportBytes::of_labels(self.image);
        ExportBytes { running: labels.running + 2 * self.image.plane() * u64::from(classes) * score, ..labels }
    }

    /// What a segmentation in these windows takes of the host's memory, of a scan that takes `scan`
    /// bytes as it was read and `prepared` as the network is given it, `preparing` while that is done.
    #[must_use]
    pub fn host_needs(&self, classes: u32, [scan, prepared, preparing]: [u64; 3], export: ExportBytes) -> HostNeeds {
        let sums = |in_file| match self.scheme {
            Scheme::NnunetV2 => Sums::<f16>::bytes(self, classes, in_file),
            _ => Sums::<f32>::bytes(self, classes, in_file),
        };
        let window = self.tile.voxels() * u64::from(classes) * 4;
        let ([sums, _], [sums_in_file, file]) = (sums(false), sums(true));
        let reach = u64::from(self.tile.d.min(self.image.d));
        HostNeeds {
            model: 0,
            scan,
            totals: reach * self.image.plane() * 4,
            prepared,
            preparing,
            sums,
            sums_in_file,
            file,
            mirrors: if self.mirrors.len() > 1 { window } else { 0 },
            export: export.running,
            waiting: export.waiting,
            finishing: export.finishing,
        }
    }

    async fn summed<S: Sum>(
        &self,
        session: &mut Session,
        model: &Model,
        input: Input<'_>,
        sink: &mut dyn PlaneSink,
        mut options: RunOptions<'_>,
    ) -> Result<(), RunError> {
        self.check_extent(&input)?;
        let (classes, allowed) = (model.card().classes(), options.allows_non_finite());
        let each = session.plan().report().flops;
        let total = each * self.passes() as u64;
        let spill = options.spill();
        let mut sums = Sums::<S>::new(self, classes as usize, allowed, spill);
        let mut visited: Vec<u32> = model.visited();
        for (number, place) in (0u64..).zip(self.places()) {
            sums.settle(place[0], sink)?;
            if let Some(current) = model.current_tokens(self.position(place)) {
                session.place(model, self.position(place), &visited).await?;
                visited.extend(if self.remembers { current.as_slice() } else { &[] });
                visited.sort_unstable();
                visited.dedup();
            }
            let mut mean = Vec::new();
            for (turn, &mirrored) in (0u64..).zip(&self.mirrors) {
                let before = (number * self.mirrors.len() as u64 + turn) * each;
                let data = self.crop(&input, place, mirrored);
                let window = Input { channels: input.channels, extent: self.tile, data: &data };
                let cancel = options.cancel();
                let mut report = |p: Progress| options.report(Progress { done: before + p.done.min(each), total });
                let mut pass = RunOptions::default().with_progress(&mut report).with_cancel(cancel);
                if allowed {
                    pass = pass.with_non_finite();
                }
                let output = session.run(window, pass).await?.into_iter().next().map(|o| o.data);
                let Some(OutputData::Map(mut values)) = output else { return Err(internal("windows need a session with logits")) };
                if self.scheme == Scheme::NnunetV1 {
                    softmax(&mut values, classes);
                }
                if mean.is_empty() && mirrored == [false; 3] {
                    mean = values;
                } else {
                    self.add_mirrored(&mut mean, &values, mirrored);
                }
            }
            if self.mirrors.len() > 1 {
                let share = 1.0 / self.mirrors.len() as f32;
                mean.par_iter_mut().with_min_len(1 << 14).for_each(|v| *v *= share);
            }
            sums.add(place, &mean)?;
        }
        sums.settle(self.image.d as i32, sink)
    }

    /// True if sums are rounded to 16-bit floats.
    fn rounds(&self) -> bool {
        self.scheme == Scheme::NnunetV2
    }

    fn check_extent(&self, input: &Input<'_>) -> Result<(), RunError> {
        let voxels = input.extent.voxels() as usize;
        if input.extent == self.image && input.data.len() == voxels * input.channels as usize {
            return Ok(());
        }
        let text = format!("windows over {} were given {} values over {}", self.image, input.data.len(), input.extent);
        Err(RunError::new(RunErrorKind::InputMismatch, text))
    }

    /// Adds the result of a pass to the sum over mirror images, turned back.
    fn add_mirrored(&self, sum: &mut Vec<f32>, values: &[f32], mirrored: [bool; 3]) {
        let [d, h, w] = self.tile.axes().map(|n| n as usize);
        sum.resize(values.len(), 0.0);
        let back = |axis: usize, i: usize, n: usize| if mirrored[axis] { n - 1 - i } else { i };
        sum.par_chunks_exact_mut((h * w).max(1)).enumerate().for_each(|(row, plane)| {
            let from = (row / d * d + back(0, row % d, d)) * h * w;
            for (y, line) in plane.chunks_exact_mut(w).enumerate() {
                let source = &values[from + back(1, y, h) * w..][..w];
                line.iter_mut().enumerate().for_each(|(x, v)| *v += source[back(2, x, w)]);
            }
        });
    }
}

/// Labels and maps of all planes.
struct Gathered {
    image: Extent,
    classes: u32,
    softmax: bool,
    labelled: bool,
    labels: Vec<u16>,
    /// `[C][D][H][W]`.
    maps: Option<Vec<f32>>,
}

impl Gathered {
    fn new(image: Extent, classes: u32, labelled: bool, maps: bool, softmax: bool) -> Self {
        let maps = maps.then(|| vec![0.0; image.voxels() as usize * classes as usize]);
        Self { image, classes, softmax, labelled, labels: Vec::new(), maps }
    }
}

impl PlaneSink for Gathered {
    fn plane(&mut self, z: usize, plane: ScorePlane) -> Result<(), RunError> {
        let mut values = plane.into_single();
        let size = self.image.plane() as usize;
        if self.labelled {
            self.labels.truncate(z * size);
            self.labels.extend(argmax(&values, self.classes));
        }
        if let Some(maps) = &mut self.maps {
            if self.softmax {
                softmax(&mut values, self.classes);
            }
            let voxels = self.image.voxels() as usize;
            for (class, values) in values.chunks_exact(size).enumerate() {
                maps[class * voxels + z * size..][..size].copy_from_slice(values);
            }
        }
        Ok(())
    }
}
