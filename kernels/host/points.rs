//! Host halves of pointwise convolutions and of the head: voxels are rows of the product.

use super::conv::{PANEL, Store, arrange};
use super::isa::{self, Isa, Work};
use super::math::activate;
use super::product::{Rows, Run, Sink, Weights, multiply};
use super::rows::Source;
use super::{HostHalf, Scratch, Slab, SlabMut, each, tasks_wanted};
use crate::kernels::argmax::{label_of, labels_per_word, plane_words};
use crate::kernels::conv::OUT_BLOCK;
use crate::kernels::conv3d_pointwise::Conv3dPointwise;
use crate::kernels::head_argmax::HeadArgmax;
use crate::kernels::{Activation, ConvShape};
use crate::shape::{Elem, Extent};

/// Voxels of a task of a pointwise convolution of so many voxels and channels: a multiple of the
/// tile's.
fn chunk(voxels: usize, channels: usize) -> usize {
    let most = (PANEL / channels.max(1) / 12).max(1) * 12;
    voxels.div_ceil(tasks_wanted(voxels)).next_multiple_of(12).min(most)
}

/// A pointwise convolution over the voxels of all planes, one after the other.
struct Points<'a> {
    sources: [Option<Source<'a>>; 2],
    plane: usize,
    channels: usize,
    weights: Weights<'a>,
    bias: &'a [f32],
}

impl<'a> Points<'a> {
    fn new(shape: &ConvShape, inputs: &[Slab<'a>; 5]) -> (Self, Option<Source<'a>>) {
        let [a, b, a_norm, b_norm, weight] = *inputs;
        let g = shape.geometry(&[a, a, b, b, a_norm, b_norm, weight]);
        // a plane is one row
        let flat = |source: Source<'a>| Source { extent: Extent::new(source.extent.d, 1, shape.plane_voxels()), ..source };
        let points = Self {
            sources: g.sources.map(|source| source.map(flat)),
            plane: shape.input.plane() as usize,
            channels: g.channels,
            weights: g.weights,
            bias: g.bias,
        };
        (points, g.added)
    }

    /// Sums of `count` voxels from voxel `at` of plane `z` on.
    #[inline(always)]
    fn sums<I: Isa, S: Sink>(&self, z: usize, at: usize, count: usize, room: &mut [f32], sink: &mut S) {
        let run = [Run { at: 0, row: 0, len: self.channels }];
        if let [Some(source), None] = &self.sources
            && source.is_plain()
        {
            let begin = ((z - source.window.first as usize) * self.plane + at) * source.stride;
            let begins: Vec<usize> = (0..count).map(|v| v * source.stride).collect();
            let panel = &source.slabs[0].floats()[begin..];
            multiply::<I>(Rows { panel, begins: &begins, runs: &run }, self.weights, self.bias, sink);
            return;
        }
        let (panel, room) = room.split_at_mut(count * self.channels);
        let mut done = 0;
        while done < count {
            let (z, x) = (z + (at + done) / self.plane, (at + done) % self.plane);
            let end = (x + count - done).min(self.plane);
            let own = &mut panel[done * self.channels..][..(end - x) * self.channels];
            let mut lane = 0;
            for source in self.sources.iter().flatten() {
                source.row::<I>([z, 0], x..end, room, own, self.channels, lane);
                lane += source.channels;
            }
            done += end - x;
        }
        let begins: Vec<usize> = (0..count).map(|v| v * self.channels).collect();
        multiply::<I>(Rows { panel, begins: &begins, runs: &run }, self.weights, self.bias, sink);
    }
}

impl ConvShape {
    #[expect(clippy::cast_possible_truncation, reason = "the planner refuses planes above u32")]
    fn plane_voxels(&self) -> u32 {
        self.input.plane() as u32
    }

    /// Numbers of scratch of a pointwise convolution by chunks of so many voxels.
    fn points_scratch(&self, chunk: usize) -> usize {
        let wide =
            if self.elem == Elem::F16 { chunk * self.in_channels[0].max(self.in_channels[1]).next_multiple_of(4) as usize } else { 0 };
        chunk * self.host_channels() + wide
    }

    fn most_points(&self) -> usize {
        let most = (PANEL / self.host_channels().max(1) / 12).max(1) * 12;
        most.min((self.input.voxels() as usize).next_multiple_of(12))
    }
}

struct PointTask<'a, 'g> {
    points: &'g Points<'a>,
    shape: &'g ConvShape,
    added: Option<Source<'g>>,
    /// Number of the first voxel among those of the target.
    at: usize,
    out: SlabMut<'g>,
    room: &'g mut [f32],
}

impl Work for PointTask<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let stride = self.shape.map().blocks() as usize * 4;
        let (plane, mut done, count) = (self.points.plane, 0, self.out.len() / stride);
        while done < count {
            let at = self.at + done;
            let z = self.shape.target.begin as usize + at / plane;
            // the scale of what is added is that of one plane
            let most = if self.added.is_some() { plane - at % plane } else { usize::MAX };
            let n = (count - done).min(most);
            let added = self.added.map(|source| {
                let own = Source { norm: source.load.table(source.norm, source.norm_window, z, stride), ..source };
                (own, ((z - source.window.first as usize) * plane + at % plane) * stride - done * stride)
            });
            let (out, activation) = (&mut self.out, self.shape.activation);
            let begin = done * stride;
            let mut store = Store { out, stride, voxel: stride, activation, added, columns: n, step: n * stride, begin, next: [0; 2] };
            self.points.sums::<I, _>(z, at % plane, n, self.room, &mut store);
            done += n;
        }
    }
}

impl HostHalf for Conv3dPointwise {
    fn scratch(&self) -> u64 {
        self.0.points_scratch(self.0.most_points()) as u64
    }

    fn arrange(&self, weights: &[f32]) -> Option<Vec<f32>> {
        Some(arrange(weights, self.0.in_channels, self.0.out_channels, 1))
    }

    fn run(&self, inputs: &[Slab<'_>], output: SlabMut<'_>, scratch: &Scratch) {
        let s = &self.0;
        let Some(inputs) = inputs.first_chunk() else { return };
        let (points, added) = Points::new(s, inputs);
        let stride = s.map().blocks() as usize * 4;
        let out = output.planes_of(&s.target, points.plane * stride);
        let chunk = chunk(out.len() / stride, points.channels);
        let tasks = out.parts(chunk * stride).into_iter().enumerate().collect();
        each(tasks, s.cost().flops, scratch, |(i, out), room| {
            isa::run(PointTask { points: &points, shape: s, added, at: i * chunk, out, room });
        });
    }
}

/// Voxels of a task of the head: logits of as many are held.
const HEAD_VOXELS: usize = 240;

/// Sums are logits, kept for a few voxels.
struct Logits<'a> {
    values: &'a mut [f32],
    stride: usize,
    activation: Activation,
}

impl Sink for Logits<'_> {
    #[inline(always)]
    fn store<I: Isa>(&mut self, at: usize, first: usize, sums: &[f32]) {
        let logits = &mut self.values[at * self.stride + first..][..sums.len()];
        logits.copy_from_slice(sums);
        activate::<I>(self.activation, logits);
    }
}

struct HeadTask<'a, 'g> {
    points: &'g Points<'a>,
    shape: &'g ConvShape,
    z: usize,
    /// First voxel in the plane, and how many.
    voxels: [usize; 2],
    out: &'g mut [u32],
    room: &'g mut [f32],
}

impl Work for HeadTask<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let (classes, lanes) = (self.shape.out_channels, labels_per_word(self.shape.out_channels));
        let (stride, [at, count]) = (self.points.weights.columns, self.voxels);
        let (values, room) = self.room.split_at_mut(HEAD_VOXELS * stride);
        let mut logits = Logits { values, stride, activation: self.shape.activation };
        self.points.sums::<I, _>(self.z, at, count, room, &mut logits);
        self.out.fill(0);
        for (v, x) in (0u32..).zip(values.chunks_exact(stride).take(count)) {
            let label = label_of(&x[..classes as usize], lanes);
            self.out[(v / lanes) as usize] |= label << (v % lanes * (32 / lanes));
        }
    }
}

impl HostHalf for HeadArgmax {
    fn scratch(&self) -> u64 {
        let logits = HEAD_VOXELS * self.0.out_channels.next_multiple_of(OUT_BLOCK) as usize;
        (logits + self.0.points_scratch(HEAD_VOXELS)) as u64
    }

    fn arrange(&self, weights: &[f32]) -> Option<Vec<f32>> {
        Some(arrange(weights, self.0.in_channels, self.0.out_channels, 1))
    }

    fn run(&self, inputs: &[Slab<'_>], output: SlabMut<'_>, scratch: &Scratch) {
        let s = &self.0;
        let Some(inputs) = inputs.first_chunk() else { return };
        let (points, _) = Points::new(s, inputs);
        let words = plane_words(s.input, s.out_channels) as usize;
        let lanes = labels_per_word(s.out_channels) as usize;
        let planes = output.planes_of(&s.target, words).words();
        let mut tasks = Vec::new();
        for (i, plane) in planes.chunks_mut(words).enumerate() {
            let z = s.target.begin as usize + i;
            for (j, out) in plane.chunks_mut(HEAD_VOXELS / lanes).enumerate() {
                let at = j * HEAD_VOXELS;
                tasks.push((z, [at, HEAD_VOXELS.min(points.plane - at)], out));
            }
        }
        each(tasks, s.cost().flops, scratch, |(z, voxels, out), room| {
            isa::run(HeadTask { points: &points, shape: s, z, voxels, out, room });
        });
    }
}
