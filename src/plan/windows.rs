//! Windows of a volume on the device: the scan's planes, the sums of their results, and what finishes planes, beside the
//! plan of one pass.

use super::{Plan, Report};
use crate::caps::DeviceCaps;
use crate::graph::NodeId;
use crate::kernels::argmax::{self, Argmax};
use crate::kernels::tile_accumulate::TileAccumulate;
use crate::kernels::tile_crop::{TileCrop, TilePlace};
use crate::kernels::tile_normalise::TileNormalise;
use crate::kernels::{Call, Target, Window};
use crate::record::{Command, Output, OutputKind, Recording, Region, WindowSums};
use crate::shape::{Elem, Extent, Map};
use crate::tiling::TileWeights;

/// Windows whose results are summed on the device.
#[derive(Clone, Debug)]
pub(crate) struct WindowProblem {
    /// Extent of the volume.
    pub image: Extent,
    /// Channels of the scan: the network's, or one.
    pub channels: u32,
    /// Passes of a window that are averaged.
    pub mirrors: u32,
    /// Sums are rounded to 16-bit floats.
    pub rounded: bool,
    /// Weights of a window's voxels.
    pub weights: TileWeights,
    /// Labels leave the device, instead of scores.
    pub labels: bool,
}

/// Sizes of the buffers in bytes.
struct Sizes {
    scan: u64,
    sums: u64,
    /// The sum over mirror images.
    mean: u64,
    weights: u64,
    totals: u64,
    scores: u64,
    labels: u64,
}

impl Sizes {
    fn all(&self) -> [u64; 7] {
        [self.scan, self.sums, self.mean, self.weights, self.totals, self.scores, self.labels]
    }
}

impl WindowProblem {
    /// Planes that a window in the volume reaches.
    fn ring(&self, tile: Extent) -> u32 {
        tile.d.min(self.image.d)
    }

    /// Type in which scores leave the device.
    fn out(&self) -> Elem {
        if self.rounded && !self.labels { Elem::F16 } else { Elem::F32 }
    }

    fn sizes(&self, tile: Extent, classes: u32) -> Sizes {
        let (plane, ring) = (self.image.plane(), u64::from(self.ring(tile)));
        let padded = u64::from(classes.next_multiple_of(4));
        Sizes {
            scan: plane * ring * u64::from(self.channels) * 4,
            sums: plane * ring * padded * 4,
            mean: if self.mirrors > 1 { tile.voxels() * padded * 4 } else { 0 },
            weights: tile.axes().iter().map(|&n| u64::from(n) * 4).sum(),
            totals: plane * 4,
            scores: plane * padded * self.out().bytes(),
            labels: if self.labels { argmax::plane_words(self.image, classes) * 4 } else { 0 },
        }
    }

    /// Device bytes beside a pass; `None` where a part is larger than the device binds, or is indexed beyond 32 bits.
    pub(crate) fn bytes(&self, tile: Extent, classes: u32, caps: &DeviceCaps) -> Option<u64> {
        let sizes = self.sizes(tile, classes).all();
        let most = caps.max_binding.min(caps.max_buffer).min(4 * u64::from(u32::MAX));
        let rows = u64::from(caps.max_workgroups);
        let fits = self.image.axes().iter().chain(&tile.axes()).all(|&n| u64::from(n) <= rows);
        (fits && sizes.iter().all(|&n| n <= most)).then(|| sizes.iter().map(|&n| caps.align(n)).sum())
    }
}

impl Plan {
    /// The same pass with windows on the device: the input is cropped there of the scan, and what was to leave is added
    /// to the sums. `None` where more than logits leave the device.
    pub(crate) fn summing(mut self, problem: &WindowProblem, caps: &DeviceCaps) -> Option<Self> {
        let (tile, recording) = (self.extent, &mut self.recording);
        let [output] = recording.outputs.as_slice() else { return None };
        let (logits, input) = (output.clone(), recording.input?);
        if logits.kind != OutputKind::Map || logits.map.extent != tile {
            return None;
        }
        let classes = logits.map.channels;
        let sizes = problem.sizes(tile, classes);
        let mut add = |size: u64| {
            recording.chunks.push(caps.align(size.max(4)));
            Region { chunk: u32::try_from(recording.chunks.len() - 1).unwrap_or(u32::MAX), offset: 0, size: size.max(4) }
        };
        let scan = add(sizes.scan);
        let sums = add(sizes.sums);
        let weights = add(sizes.weights);
        let totals = add(sizes.totals);
        let scores = add(sizes.scores);
        let mean = (problem.mirrors > 1).then(|| add(sizes.mean));
        let labels = problem.labels.then(|| add(sizes.labels));

        let ring = problem.ring(tile);
        let place = TilePlace { tile, whole: problem.image, ring, origin: [0; 3], flip: [false; 3] };
        let within = TilePlace { whole: tile, ring: tile.d, ..place };
        let whole = [Window::whole(0)];
        let accumulate = TileAccumulate {
            place,
            channels: classes,
            weights: Some(problem.weights.rounding()),
            share: 1.0,
            rounded: problem.rounded,
            fresh: false,
            elem: recording.elem,
            planes: 0..tile.d,
            windows: whole,
            target: Target::whole(ring),
        };
        let mut last = NodeId(0);
        for command in &mut recording.commands {
            match command {
                Command::Dispatch { node, .. } => last = *node,
                Command::Upload { dst, planes, node } => {
                    let target = Target { first: planes.start, begin: planes.start, count: planes.end - planes.start };
                    let map = Map::new(tile, input.channels);
                    let crop = TileCrop { place, channels: problem.channels, map, elem: recording.elem, windows: whole, target };
                    *command = dispatch(Call::TileCrop(crop), vec![scan, *dst], *node);
                }
                Command::Download { src, planes, .. } => {
                    let mut add = accumulate.clone();
                    (add.planes, add.windows) = (planes.clone(), [Window::whole(planes.start)]);
                    if mean.is_some() {
                        (add.place, add.weights, add.rounded) = (within, None, false);
                        add.target = Target::whole(tile.d);
                    }
                    *command = dispatch(Call::TileAccumulate(add), vec![*src, weights, mean.unwrap_or(sums)], last);
                }
                _ => {}
            }
        }

        let mut after = Vec::new();
        if let Some(mean) = mean {
            #[expect(clippy::cast_precision_loss, reason = "at most 8")]
            let share = 1.0 / problem.mirrors as f32;
            let blend = TileAccumulate { share, elem: Elem::F32, ..accumulate };
            after.push(dispatch(Call::TileAccumulate(blend), vec![mean, weights, sums], last));
        }
        let plane = Extent::new(1, problem.image.h, problem.image.w);
        let map = Map::new(plane, classes);
        let normalise = TileNormalise {
            map: Map::new(Extent::new(ring, plane.h, plane.w), classes),
            rounded: problem.rounded,
            out: problem.out(),
            windows: [Window::whole(0); 2],
            target: Target::whole(1),
        };
        after.push(dispatch(Call::TileNormalise(normalise), vec![sums, totals, scores], last));
        if let Some(labels) = labels {
            let argmax = Argmax { map, elem: Elem::F32, windows: whole, target: Target::whole(1) };
            after.push(dispatch(Call::Argmax(argmax), vec![scores, labels], last));
        }
        let kind = if problem.labels { OutputKind::Labels } else { OutputKind::Map };
        recording.outputs.clear();
        recording.windows = Some(WindowSums {
            image: problem.image,
            channels: problem.channels,
            mirrors: problem.mirrors,
            ring,
            scan,
            sums,
            totals,
            weights,
            along: problem.weights.packed(),
            after,
            plane: Output { name: logits.name, map, kind },
            elem: problem.out(),
            finished: labels.unwrap_or(scores),
        });
        let bytes = sizes.all().iter().map(|&n| caps.align(n)).sum();
        fits(recording, caps).then_some(())?;
        self.report.sum_windows(&self.recording, input, classes, bytes);
        Some(self)
    }
}

fn dispatch(call: Call, bindings: Vec<Region>, node: NodeId) -> Command {
    Command::Dispatch { call: Box::new(call), bindings, node }
}

/// True if the device can run all dispatches.
fn fits(recording: &Recording, caps: &DeviceCaps) -> bool {
    recording.dispatches().all(|(call, regions)| call.workgroups(caps).is_ok() && regions.iter().all(|r| r.size <= caps.max_binding))
}

impl Plan {
    /// The same for a budget that holds the windows, too.
    pub(crate) fn within(mut self, budget: Option<u64>, smallest: u64) -> Self {
        (self.report.budget, self.report.smallest_budget) = (budget, smallest);
        self
    }
}

impl Report {
    /// True if a run does no more work and moves no more to the host and back than another.
    pub(crate) fn is_as_fast_as(&self, other: &Self) -> bool {
        self.flops <= other.flops && self.spilled_bytes <= other.spilled_bytes && self.fetched_bytes <= other.fetched_bytes
    }

    /// Tells of windows on the device, of which neither the scan's windows nor their logits are on the host.
    fn sum_windows(&mut self, recording: &Recording, input: Map, classes: u32, bytes: u64) {
        let on_host = (u64::from(input.channels) + u64::from(classes)) * self.extent.voxels() * 4;
        self.host_bytes = self.host_bytes.saturating_sub(on_host);
        (self.flops, self.traffic_bytes, self.dispatches) = (0, 0, 0);
        for command in &recording.commands {
            let Command::Dispatch { call, .. } = command else { continue };
            let cost = call.cost();
            self.flops = self.flops.saturating_add(cost.flops);
            self.traffic_bytes = self.traffic_bytes.saturating_add(cost.bytes);
            self.dispatches += 1;
        }
        self.windows_bytes = bytes;
        self.peak_bytes = recording.device_bytes();
    }
}
