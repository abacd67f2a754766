//! Host halves of the convolutions: rows of the sources, padded and normalised, make a panel that the product reads in place.

use super::isa::{self, Isa, Work};
use super::math::activate;
use super::product::{Rows, Run, Sink, Weights, multiply, width};
use super::rows::Source;
use super::{HostHalf, Scratch, Slab, SlabMut, each, tasks_wanted};
use crate::kernels::conv::OUT_BLOCK;
use crate::kernels::conv3d_direct::Conv3dDirect;
use crate::kernels::conv3d_general::Conv3dGeneral;
use crate::kernels::{Activation, ConvShape, Kernel, Load, Scope, Window};
use crate::shape::{Elem, Extent};

/// Numbers of a panel: as much as a core's second-level cache holds beside the weights.
pub(super) const PANEL: usize = 1 << 18;

/// Brings packed weights, `[O/8][taps][I padded][8]` and biases, into the order of [`Weights`]: `[O/32][taps][I][32]`, the last
/// blocks of 16 or 8, and without the channels that pad.
pub(super) fn arrange(packed: &[f32], in_channels: [u32; 2], out_channels: u32, taps: usize) -> Vec<f32> {
    let [a, b] = in_channels.map(|c| c as usize);
    let (padded_a, block) = (a.next_multiple_of(4), OUT_BLOCK as usize);
    let padded = padded_a + b.next_multiple_of(4);
    let columns = (out_channels as usize).next_multiple_of(block);
    let rows = taps * (a + b);
    let mut arranged = vec![0.0; packed.len()];
    let mut first = 0;
    while first < columns {
        let width = width(columns - first);
        let to = &mut arranged[first * rows..][..width * rows];
        for (row, to) in to.chunks_exact_mut(width).enumerate() {
            let (tap, c) = (row / (a + b), row % (a + b));
            let c = if c < a { c } else { padded_a + c - a };
            for (o, to) in to.chunks_exact_mut(block).enumerate() {
                let from = (((first / block + o) * taps + tap) * padded + c) * block;
                to.copy_from_slice(&packed[from..from + block]);
            }
        }
        first += width;
    }
    arranged[columns * rows..][..columns].copy_from_slice(&packed[columns * taps * padded..][..columns]);
    arranged
}

/// Weights and biases of [`arrange`].
pub(super) fn weights(arranged: &[f32], in_channels: [u32; 2], out_channels: u32, taps: usize) -> (Weights<'_>, &[f32]) {
    let columns = out_channels.next_multiple_of(OUT_BLOCK) as usize;
    let rows = taps * (in_channels[0] + in_channels[1]) as usize;
    let (values, bias) = arranged.split_at(columns * rows);
    (Weights { values, rows, columns }, &bias[..columns])
}

/// The last steps of a convolution: adds a second map to the sums, activates and stores them.
pub(super) struct Store<'a, 'o> {
    pub out: &'o mut SlabMut<'a>,
    /// Elements of a stored voxel, and from one voxel of a run to the next.
    pub stride: usize,
    pub voxel: usize,
    pub activation: Activation,
    /// The map that is added, and the row and plane of its first voxel. The product's voxels are
    /// neighbours there.
    pub added: Option<(Source<'o>, usize)>,
    /// Columns of a run of voxels that are neighbours, and elements from run to run.
    pub columns: usize,
    pub step: usize,
    /// Element of the first voxel.
    pub begin: usize,
    /// The column of the voxel that comes next, and its element.
    pub next: [usize; 2],
}

impl Sink for Store<'_, '_> {
    #[inline(always)]
    fn store<I: Isa>(&mut self, at: usize, first: usize, sums: &[f32]) {
        // voxels come in order: no division for each
        let [column, place] = if at == 0 { [0, self.begin] } else { self.next };
        self.next = if column + 1 < self.columns {
            [column + 1, place + self.voxel]
        } else {
            [0, place + self.step - (self.columns - 1) * self.voxel]
        };
        let count = sums.len().min(self.stride - first.min(self.stride));
        // of a known length where that is the usual one
        match sums.first_chunk::<32>() {
            Some(sums) if count == 32 => self.finish::<I, 32>(place + first, first, sums),
            _ => {
                for (i, part) in sums[..count].chunks(4).enumerate() {
                    let mut four = [0.0; 4];
                    four.copy_from_slice(part);
                    self.finish::<I, 4>(place + first + 4 * i, first + 4 * i, &four);
                }
            }
        }
    }
}

impl Store<'_, '_> {
    /// Finishes and stores sums of output channels from `first` on, as element `place` and the following.
    #[inline(always)]
    fn finish<I: Isa, const N: usize>(&mut self, place: usize, first: usize, sums: &[f32; N]) {
        let mut sums = *sums;
        if let Some((source, offset)) = &self.added {
            let mut room = [0.0; N];
            let mut values = [0.0; N];
            values.copy_from_slice(source.slabs[0].view(offset + place, N, &mut room));
            if source.load.norm.is_some() {
                let (scale, shift) = (&source.norm[first..][..N], &source.norm[self.stride + first..][..N]);
                for ((v, &a), &b) in values.iter_mut().zip(scale).zip(shift) {
                    *v = isa::fma::<I>(*v, a, b);
                }
            }
            activate::<I>(source.load.activation, &mut values);
            for (s, v) in sums.iter_mut().zip(&values) {
                *s += v;
            }
        }
        activate::<I>(self.activation, &mut sums);
        self.out.store(place, &sums);
    }
}

/// A convolution over one map or two, as rows of a panel.
pub(super) struct Geometry<'a> {
    pub(super) sources: [Option<Source<'a>>; 2],
    /// Extents at which it reads and writes.
    input: Extent,
    output: Extent,
    kernel: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
    dilation: [usize; 3],
    /// Channels of both maps.
    pub(super) channels: usize,
    pub(super) weights: Weights<'a>,
    pub(super) bias: &'a [f32],
    activation: Activation,
    pub(super) added: Option<Source<'a>>,
    /// Elements of a stored voxel of the output.
    out_stride: usize,
}

/// Rows and columns of the output that are computed from one panel.
#[derive(Clone, Copy, Debug)]
struct Block {
    planes: usize,
    rows: usize,
    columns: usize,
}

/// Source voxels along an axis behind `n` neighbouring voxels of the output.
fn behind(n: usize, kernel: usize, stride: usize, dilation: usize) -> usize {
    (n - 1) * stride + (kernel - 1) * dilation + 1
}

/// Numbers of the panel of a block.
fn panel_len(block: Block, kernel: [usize; 3], stride: [usize; 3], dilation: [usize; 3], channels: usize) -> usize {
    [block.planes, block.rows, block.columns]
        .iter()
        .enumerate()
        .map(|(a, &n)| behind(n, kernel[a], stride[a], dilation[a]))
        .product::<usize>()
        * channels
}

/// The block for so many planes of an output of `rows` x `columns`: as many columns as a panel holds, then rows, then planes, but
/// no more than leave every thread its tasks, and `at_once` planes.
fn block([planes, rows, columns]: [usize; 3], at_once: usize, len: impl Fn(Block) -> usize) -> Block {
    let fits = |b: Block| len(b) <= PANEL;
    let mut b = Block { planes: 1, rows: 1, columns };
    while b.columns > 12 && !fits(b) {
        b.columns = (b.columns / 2).next_multiple_of(12).min(b.columns - 1);
    }
    let most = (planes * rows).div_ceil(tasks_wanted(planes * rows * columns));
    while b.rows < rows.min(most) && fits(Block { rows: b.rows + 1, ..b }) {
        b.rows += 1;
    }
    b.rows = rows.div_ceil(rows.div_ceil(b.rows));
    if b.rows == rows {
        while b.planes < planes.min(at_once) && (b.planes + 1) * rows <= most && fits(Block { planes: b.planes + 1, ..b }) {
            b.planes += 1;
        }
    }
    b
}

/// Output planes that a task computes one after the other at most.
const CHAIN: usize = 8;

/// A task: rows of the output from `y` on, of one block of planes after the other from plane `z`
/// on.
struct Task<'a, 'g> {
    geometry: &'g Geometry<'a>,
    block: Block,
    at: [usize; 2],
    /// The elements of each block of planes.
    out: Vec<SlabMut<'g>>,
    room: &'g mut [f32],
}

impl Work for Task<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let g = self.geometry;
        let [first, y] = self.at;
        let width = g.output.w as usize;
        let of_rows = |rows: usize| if rows > g.output.h as usize { [rows / g.output.h as usize, g.output.h as usize] } else { [1, rows] };
        let most = self.out.iter().map(SlabMut::len).max().unwrap_or(0) / (width * g.out_stride);
        let mut begins = Vec::with_capacity(most * self.block.columns);
        let mut runs = Vec::with_capacity(g.kernel.iter().product());
        // the source planes that the panel holds for the columns from 0 on: the next block reads
        // most of them again
        let mut filled = 0..0;
        for (i, mut out) in self.out.into_iter().enumerate() {
            let z = first + i * self.block.planes;
            let [planes, rows] = of_rows(out.len() / (width * g.out_stride));
            let mut x = 0;
            while x < width {
                let block = Block { planes, rows, columns: self.block.columns.min(width - x) };
                let len = panel_len(block, g.kernel, g.stride, g.dilation, g.channels);
                let (panel, room) = self.room.split_at_mut(len);
                let of = |a: usize, n: usize| behind(n, g.kernel[a], g.stride[a], g.dilation[a]);
                let (panel_planes, panel_rows, line) = (of(0, planes), of(1, rows), of(2, block.columns) * g.channels);
                let wanted = z * g.stride[0]..z * g.stride[0] + panel_planes;
                // planes lie in a ring where a block is one plane of all columns
                let ring = self.block.planes == 1 && block.columns == width;
                let slot = |plane: usize| if ring { plane % panel_planes } else { plane - wanted.start };
                for plane in wanted.clone().filter(|plane| !(ring && filled.contains(plane))) {
                    let own = &mut panel[slot(plane) * panel_rows * line..][..panel_rows * line];
                    for (row, line) in own.chunks_exact_mut(line).enumerate() {
                        g.fill::<I>([plane, y * g.stride[1] + row], x * g.stride[2], line, room);
                    }
                }
                begins.clear();
                for p in 0..planes {
                    for r in 0..rows {
                        let row = (p * g.stride[0] * panel_rows + r * g.stride[1]) * line;
                        begins.extend((0..block.columns).map(|c| row + c * g.stride[2] * g.channels));
                    }
                }
                g.runs(|tap| slot(wanted.start + tap) * panel_rows, line, &mut runs);
                filled = wanted;
                let begin = x * g.out_stride;
                let added = g.added.map(|source| {
                    let plane = g.output.plane() as usize * g.out_stride;
                    let own = Source { norm: source.load.table(source.norm, source.norm_window, z, g.out_stride), ..source };
                    (own, (z - source.window.first as usize) * plane + y * width * g.out_stride)
                });
                let (stride, step) = (g.out_stride, width * g.out_stride);
                let mut store = Store {
                    out: &mut out,
                    stride,
                    voxel: stride,
                    activation: g.activation,
                    added,
                    columns: block.columns,
                    step,
                    begin,
                    next: [0; 2],
                };
                multiply::<I>(Rows { panel, begins: &begins, runs: &runs }, g.weights, g.bias, &mut store);
                x += block.columns;
            }
        }
    }
}

impl Geometry<'_> {
    /// The stretches of a panel that a voxel sums over: neighbouring taps of a row are one, unless
    /// the taps are apart. `rows` tells the number of the first row of a plane, given how many
    /// planes it lies behind the first that is read.
    fn runs(&self, rows: impl Fn(usize) -> usize, line: usize, runs: &mut Vec<Run>) {
        runs.clear();
        let [kd, kh, kw] = self.kernel;
        let (apart, together) = if self.dilation[2] > 1 { (kw, 1) } else { (1, kw) };
        for (i, j, k) in (0..kd).flat_map(|i| (0..kh).flat_map(move |j| (0..apart).map(move |k| (i, j, k)))) {
            let at = (rows(i * self.dilation[0]) + j * self.dilation[1]) * line + k * self.dilation[2] * self.channels;
            runs.push(Run { at, row: ((i * kh + j) * kw + k) * self.channels, len: together * self.channels });
        }
    }

    /// A row of the panel: row `y` of plane `z` from column `x` on, all counted from the begin of the padding.
    #[inline(always)]
    fn fill<I: Isa>(&self, [z, y]: [usize; 2], x: usize, line: &mut [f32], room: &mut [f32]) {
        let inside = |at: usize, axis: usize| at.checked_sub(self.padding[axis]).filter(|&at| at < self.input.axes()[axis] as usize);
        let (Some(z), Some(y)) = (inside(z, 0), inside(y, 1)) else {
            line.fill(0.0);
            return;
        };
        let (voxels, left) = (line.len() / self.channels, self.padding[2].saturating_sub(x));
        let begin = (x + left) - self.padding[2];
        let end = (x + voxels).saturating_sub(self.padding[2]).clamp(begin, (self.input.w as usize).max(begin));
        let left = left.min(voxels);
        line[..left * self.channels].fill(0.0);
        line[(left + end - begin).min(voxels) * self.channels..].fill(0.0);
        if begin == end {
            line.fill(0.0);
            return;
        }
        let own = &mut line[left * self.channels..][..(end - begin) * self.channels];
        let mut lane = 0;
        for source in self.sources.iter().flatten() {
            source.row::<I>([z, y], begin..end, room, own, self.channels, lane);
            lane += source.channels;
        }
    }

    /// Computes the planes of a target whose elements `out` are.
    fn compute(&self, first: usize, out: SlabMut<'_>, flops: u64, scratch: &Scratch) {
        let [h, w] = [self.output.h as usize, self.output.w as usize];
        let row = w * self.out_stride;
        let planes = out.len() / (h * row);
        let len = |b: Block| panel_len(b, self.kernel, self.stride, self.dilation, self.channels);
        // the scale of what is added is that of one plane
        let one = self.added.is_some_and(|source| source.load.norm == Some(Scope::Plane));
        let block = block([planes, h, w], if one { 1 } else { planes }, len);
        // bands of rows, and in each band blocks of planes
        let bands = h.div_ceil(block.rows);
        let mut cut: Vec<Vec<SlabMut<'_>>> = (0..bands).map(|_| Vec::new()).collect();
        for planes in out.parts(block.planes * h * row) {
            if bands == 1 {
                cut[0].push(planes);
            } else {
                cut.iter_mut().zip(planes.parts(block.rows * row)).for_each(|(band, rows)| band.push(rows));
            }
        }
        let chain = (planes.div_ceil(block.planes) * bands / (2 * tasks_wanted(planes * h * w))).clamp(1, CHAIN);
        let mut tasks = Vec::new();
        for (band, blocks) in cut.into_iter().enumerate() {
            let (mut z, mut blocks) = (first, blocks.into_iter().peekable());
            while blocks.peek().is_some() {
                tasks.push((z, band * block.rows, blocks.by_ref().take(chain).collect()));
                z += chain * block.planes;
            }
        }
        each(tasks, flops, scratch, |(z, y, out), room| isa::run(Task { geometry: self, block, at: [z, y], out, room }));
    }
}

/// Numbers of scratch of a convolution whose panel is `least` at one column of one row, and `whole` at all of them.
fn panel_scratch(output: Extent, len: impl Fn(Block) -> usize) -> usize {
    let least = len(Block { planes: 1, rows: 1, columns: 12.min(output.w as usize) });
    let whole = len(Block { planes: output.d as usize, rows: output.h as usize, columns: output.w as usize });
    least.max(whole.min(PANEL))
}

impl ConvShape {
    fn host_taps(&self) -> usize {
        self.kernel.iter().map(|&k| k as usize).product()
    }

    pub(super) fn host_channels(&self) -> usize {
        (self.in_channels[0] + self.in_channels[1]) as usize
    }

    /// Numbers that reading a row of a source takes.
    fn row_scratch(&self) -> usize {
        let of = |slot: usize| {
            let stored = self.upsampled[slot].map_or(self.input, |through| through.stored);
            let stride = self.in_channels[slot].next_multiple_of(4) as usize;
            Source::scratch(stored, stride, self.upsampled[slot].is_some(), self.elem)
        };
        of(0).max(of(1))
    }

    fn host_source<'a>(&self, slot: usize, slabs: [Slab<'a>; 2], norm: Slab<'a>) -> Source<'a> {
        let added = slot == 1 && self.residual;
        let channels = if added { self.out_channels } else { self.in_channels[slot] };
        Source {
            slabs,
            window: self.window(slot),
            extent: if added { self.output() } else { self.input },
            through: self.upsampled[slot],
            channels: channels as usize,
            stride: channels.next_multiple_of(4) as usize,
            load: self.loads[slot],
            norm: norm.floats(),
            norm_window: self.norm_window(slot),
            elem: self.elem,
        }
    }

    pub(super) fn geometry<'a>(&self, inputs: &[Slab<'a>; 7]) -> Geometry<'a> {
        let [a_lo, a_hi, b_lo, b_hi, a_norm, b_norm, weight] = *inputs;
        let (weights, bias) = weights(weight.floats(), self.in_channels, self.out_channels, self.host_taps());
        let second = self.host_source(1, [b_lo, b_hi], b_norm);
        Geometry {
            sources: [Some(self.host_source(0, [a_lo, a_hi], a_norm)), (self.in_channels[1] > 0).then_some(second)],
            input: self.input,
            output: self.output(),
            kernel: self.kernel.map(|k| k as usize),
            stride: self.stride.map(|s| s as usize),
            padding: self.padding.map(|p| p as usize),
            dilation: [1; 3],
            channels: self.host_channels(),
            weights,
            bias,
            activation: self.activation,
            added: self.residual.then_some(second),
            out_stride: self.map().blocks() as usize * 4,
        }
    }
}

impl HostHalf for Conv3dDirect {
    fn scratch(&self) -> u64 {
        let s = &self.0;
        let [kernel, stride] = [s.kernel, s.stride].map(|a| a.map(|n| n as usize));
        let panel = panel_scratch(s.output(), |b| panel_len(b, kernel, stride, [1; 3], s.host_channels()));
        (panel + s.row_scratch()) as u64
    }

    fn arrange(&self, weights: &[f32]) -> Option<Vec<f32>> {
        Some(arrange(weights, self.0.in_channels, self.0.out_channels, self.0.host_taps()))
    }

    fn run(&self, inputs: &[Slab<'_>], output: SlabMut<'_>, scratch: &Scratch) {
        let s = &self.0;
        let Some(inputs) = inputs.first_chunk() else { return };
        let g = s.geometry(inputs);
        let out = output.planes_of(&s.target, g.output.plane() as usize * g.out_stride);
        g.compute(s.target.begin as usize, out, s.cost().flops, scratch);
    }
}

impl HostHalf for Conv3dGeneral {
    fn scratch(&self) -> u64 {
        let [kernel, stride, dilation] = [self.kernel, self.stride, self.dilation].map(|a| a.map(|n| n as usize));
        let channels = self.grouping.inputs;
        let panel = panel_scratch(self.output(), |b| panel_len(b, kernel, stride, dilation, channels as usize));
        (panel + Source::scratch(self.input, channels.next_multiple_of(4) as usize, false, self.elem)) as u64
    }

    fn arrange(&self, weights: &[f32]) -> Option<Vec<f32>> {
        Some(arrange(weights, [self.grouping.inputs, 0], self.grouping.outputs, self.kernel.iter().map(|&k| k as usize).product()))
    }

    fn run(&self, inputs: &[Slab<'_>], output: SlabMut<'_>, scratch: &Scratch) {
        let &[lo, hi, norm, weight] = inputs else { return };
        let channels = self.grouping.inputs;
        let taps = self.kernel.iter().map(|&k| k as usize).product();
        let (weights, bias) = weights(weight.floats(), [channels, 0], self.grouping.outputs, taps);
        let source = Source {
            slabs: [lo, hi],
            window: self.windows[0],
            extent: self.input,
            through: None,
            channels: channels as usize,
            stride: channels.next_multiple_of(4) as usize,
            load: self.load,
            norm: norm.floats(),
            norm_window: self.windows[1],
            elem: self.elem,
        };
        let g = Geometry {
            sources: [Some(source), None],
            input: self.input,
            output: self.output(),
            kernel: self.kernel.map(|k| k as usize),
            stride: self.stride.map(|s| s as usize),
            padding: self.padding.map(|p| p as usize),
            dilation: self.dilation.map(|d| d as usize),
            channels: channels as usize,
            weights,
            bias,
            activation: self.activation,
            added: None,
            out_stride: self.grouping.outputs.next_multiple_of(4) as usize,
        };
        let out = output.planes_of(&self.target, g.output.plane() as usize * g.out_stride);
        g.compute(self.target.begin as usize, out, self.cost().flops, scratch);
    }
}

/// The source of a kernel that reads one map.
pub(super) fn one_source<'a>(
    slabs: [Slab<'a>; 2],
    extent: Extent,
    channels: u32,
    (load, norm): (Load, Slab<'a>),
    windows: [Window; 2],
    elem: Elem,
) -> Source<'a> {
    Source {
        slabs,
        window: windows[0],
        extent,
        through: None,
        channels: channels as usize,
        stride: channels.next_multiple_of(4) as usize,
        load,
        norm: norm.floats(),
        norm_window: windows[1],
        elem,
    }
}
