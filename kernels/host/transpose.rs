//! Host halves of the transposed convolutions: one product for every tap where the kernel tiles the output, else one for every
//! phase, the voxels whose positions are equal modulo the stride and which sum over the same taps.

use super::conv::{Store, arrange, one_source, weights};
use super::isa::{self, Isa, Work};
use super::product::{Rows, Run, Weights, multiply};
use super::rows::Source;
use super::{HostHalf, Scratch, Slab, SlabMut, each, tasks_wanted};
use crate::kernels::ConvTransposeShape;
use crate::kernels::conv_transpose3d::ConvTranspose3d;
use crate::kernels::conv_transpose3d_general::ConvTranspose3dGeneral;

/// Numbers of a panel.
const PANEL: usize = 1 << 18;

impl ConvTransposeShape {
    fn host_taps(&self) -> usize {
        self.kernel.iter().map(|&k| k as usize).product()
    }

    fn host_source<'a>(&self, slabs: [Slab<'a>; 2], norm: Slab<'a>) -> Source<'a> {
        one_source(slabs, self.input, self.in_channels, (self.load, norm), self.windows, self.elem)
    }

    fn row_scratch(&self) -> usize {
        Source::scratch(self.input, self.in_channels.next_multiple_of(4) as usize, false, self.elem)
    }

    /// Rows of the source that one task of a transposed convolution which tiles reads.
    fn tile_rows(&self) -> usize {
        let row = self.input.w as usize * self.in_channels as usize;
        (PANEL / row.max(1)).clamp(1, self.input.h as usize)
    }

    /// Rows and columns of zeros around the rows of a panel, in front and behind: taps that reach beyond the map.
    fn margins(&self) -> [usize; 2] {
        [1, 2].map(|a| self.kernel[a].div_ceil(self.stride[a]) as usize)
    }

    /// Numbers of the panel of so many rows of the output.
    fn general_panel(&self, rows: usize) -> usize {
        let [my, mx] = self.margins();
        let planes = self.kernel[0].div_ceil(self.stride[0]) as usize;
        let source_rows = rows.div_ceil(self.stride[1] as usize) + 1 + 2 * my;
        planes * source_rows * (self.input.w as usize + 2 * mx) * self.in_channels as usize
    }
}

/// Rows of a plane of the result.
struct Part<'a, 'g> {
    shape: &'g ConvTransposeShape,
    source: &'g Source<'a>,
    weights: Weights<'a>,
    bias: &'a [f32],
    z: usize,
    /// The first row: of the source in a [`Tile`], of the output in a [`Phase`].
    y: usize,
    out: SlabMut<'g>,
    room: &'g mut [f32],
}

/// Rows that are computed tap by tap, where no taps overlap.
struct Tile<'a, 'g>(Part<'a, 'g>);

impl Work for Tile<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let mut part = self.0;
        let s = part.shape;
        let [kd, kh, kw] = s.kernel.map(|k| k as usize);
        let (w, stride, channels) = (s.input.w as usize, s.map().blocks() as usize * 4, s.in_channels as usize);
        let row = w * kw * stride;
        let rows = part.out.len() / (row * kh);
        let (panel, room) = part.room.split_at_mut(rows * w * channels);
        for (r, line) in panel.chunks_exact_mut(w * channels).enumerate() {
            part.source.row::<I>([part.z / kd, part.y + r], 0..w, room, line, channels, 0);
        }
        let begins: Vec<usize> = (0..rows * w).map(|v| v * channels).collect();
        for (j, k) in (0..kh).flat_map(|j| (0..kw).map(move |k| (j, k))) {
            let tap = (part.z % kd * kh + j) * kw + k;
            let runs = [Run { at: 0, row: tap * channels, len: channels }];
            // neighbours of a source row are kw voxels apart
            let mut store = Store {
                out: &mut part.out,
                stride,
                voxel: kw * stride,
                activation: s.activation,
                added: None,
                columns: w,
                step: kh * row,
                begin: j * row + k * stride,
                next: [0; 2],
            };
            multiply::<I>(Rows { panel, begins: &begins, runs: &runs }, part.weights, part.bias, &mut store);
        }
    }
}

impl HostHalf for ConvTranspose3d {
    fn scratch(&self) -> u64 {
        let s = &self.0;
        (s.tile_rows() * s.input.w as usize * s.in_channels as usize + s.row_scratch()) as u64
    }

    fn arrange(&self, weights: &[f32]) -> Option<Vec<f32>> {
        Some(arrange(weights, [self.0.in_channels, 0], self.0.out_channels, self.0.host_taps()))
    }

    fn run(&self, inputs: &[Slab<'_>], output: SlabMut<'_>, scratch: &Scratch) {
        let &[slab, norm, weight] = inputs else { return };
        let s = &self.0;
        let source = s.host_source([slab; 2], norm);
        let (weights, bias) = weights(weight.floats(), [s.in_channels, 0], s.out_channels, s.host_taps());
        let (h, row) = (s.input.h as usize, s.output().w as usize * s.map().blocks() as usize * 4);
        let kh = s.kernel[1] as usize;
        let planes = s.target.count as usize;
        let most = (planes * h).div_ceil(tasks_wanted(planes * s.input.plane() as usize)).clamp(1, s.tile_rows());
        let out = output.planes_of(&s.target, h * kh * row);
        let mut tasks = Vec::new();
        for (i, plane) in out.parts(h * kh * row).into_iter().enumerate() {
            let z = s.target.begin as usize + i;
            tasks.extend(plane.parts(most * kh * row).into_iter().enumerate().map(|(j, out)| (z, j * most, out)));
        }
        each(tasks, s.cost().flops, scratch, |(z, y, out), room| {
            isa::run(Tile(Part { shape: s, source: &source, weights, bias, z, y, out, room }));
        });
    }
}

/// Rows that are computed phase by phase, where taps overlap.
struct Phase<'a, 'g>(Part<'a, 'g>);

impl Work for Phase<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let mut part = self.0;
        let s = part.shape;
        let [kd, kh, kw] = s.kernel.map(|k| k as usize);
        let [sd, sh, sw] = s.stride.map(|k| k as usize);
        let [pd, ph, pw] = s.padding.map(|k| k as usize);
        let (n, channels) = (s.input.axes().map(|n| n as usize), s.in_channels as usize);
        let stride = s.map().blocks() as usize * 4;
        let width = s.output().w as usize;
        let rows = part.out.len() / (width * stride);
        let [my, mx] = s.margins();
        // the planes behind output plane z, by tap
        let planes: Vec<(usize, usize)> = ((part.z + pd) % sd..kd)
            .step_by(sd)
            .filter_map(|i| (part.z + pd).checked_sub(i).map(|o| (i, o / sd)).filter(|&(_, z)| z < n[0]))
            .collect();
        // panel: rows from `top` - my of the source on, columns from -mx on
        let top = (part.y + ph) / sh;
        let (count, line) = (((part.y + rows - 1 + ph) / sh) + 1 - top + 2 * my, (n[2] + 2 * mx) * channels);
        let (panel, room) = part.room.split_at_mut(planes.len() * count * line);
        for (at, line) in panel.chunks_exact_mut(line).enumerate() {
            line.fill(0.0);
            let Some(y) = (top + at % count).checked_sub(my).filter(|&y| y < n[1]) else { continue };
            let own = &mut line[mx * channels..][..n[2] * channels];
            part.source.row::<I>([planes[at / count].1, y], 0..n[2], room, own, channels, 0);
        }
        let (mut begins, mut runs) = (Vec::new(), Vec::new());
        for (fy, fx) in (0..sh).flat_map(|y| (0..sw).map(move |x| (y, x))) {
            // rows and columns of the phase, and its taps
            let rows_of: Vec<usize> = (0..rows).filter(|r| (part.y + r + ph) % sh == fy).collect();
            let columns: Vec<usize> = (0..width).filter(|x| (x + pw) % sw == fx).collect();
            let [ty, tx] = [(kh, fy, sh), (kw, fx, sw)].map(|(k, first, step)| k.saturating_sub(first).div_ceil(step));
            runs.clear();
            for (p, &(i, _)) in planes.iter().enumerate() {
                for (j, k) in (0..ty).flat_map(|j| (0..tx).map(move |k| (j, k))) {
                    let tap = (i * kh + fy + j * sh) * kw + fx + k * sw;
                    let at = (p * count + my - j) * line + (mx - k) * channels;
                    runs.push(Run { at, row: tap * channels, len: channels });
                }
            }
            begins.clear();
            for r in &rows_of {
                let row = ((part.y + r + ph) / sh - top) * line;
                begins.extend(columns.iter().map(|x| row + (x + pw) / sw * channels));
            }
            if begins.is_empty() {
                continue;
            }
            let mut store = Store {
                out: &mut part.out,
                stride,
                voxel: sw * stride,
                activation: s.activation,
                added: None,
                columns: columns.len(),
                step: sh * width * stride,
                begin: (rows_of[0] * width + columns[0]) * stride,
                next: [0; 2],
            };
            multiply::<I>(Rows { panel, begins: &begins, runs: &runs }, part.weights, part.bias, &mut store);
        }
    }
}

impl ConvTransposeShape {
    /// Rows of the output that one task computes at most.
    fn general_rows(&self) -> usize {
        let mut rows = 1;
        while rows < self.output().h as usize && self.general_panel(rows + 1) <= PANEL {
            rows += 1;
        }
        rows
    }
}

impl HostHalf for ConvTranspose3dGeneral {
    fn scratch(&self) -> u64 {
        (self.0.general_panel(self.0.general_rows()) + self.0.row_scratch()) as u64
    }

    fn arrange(&self, weights: &[f32]) -> Option<Vec<f32>> {
        Some(arrange(weights, [self.0.in_channels, 0], self.0.out_channels, self.0.host_taps()))
    }

    fn run(&self, inputs: &[Slab<'_>], output: SlabMut<'_>, scratch: &Scratch) {
        let &[lo, hi, norm, weight] = inputs else { return };
        let s = &self.0;
        let source = s.host_source([lo, hi], norm);
        let (weights, bias) = weights(weight.floats(), [s.in_channels, 0], s.out_channels, s.host_taps());
        let (h, row) = (s.output().h as usize, s.output().w as usize * s.map().blocks() as usize * 4);
        let planes = s.target.count as usize;
        let most = (planes * h).div_ceil(tasks_wanted(planes * s.output().plane() as usize)).clamp(1, s.general_rows());
        let mut tasks = Vec::new();
        for (i, plane) in output.planes_of(&s.target, h * row).parts(h * row).into_iter().enumerate() {
            let z = s.target.begin as usize + i;
            tasks.extend(plane.parts(most * row).into_iter().enumerate().map(|(j, out)| (z, j * most, out)));
        }
        each(tasks, s.cost().flops, scratch, |(z, y, out), room| {
            isa::run(Phase(Part { shape: s, source: &source, weights, bias, z, y, out, room }));
        });
    }
}
