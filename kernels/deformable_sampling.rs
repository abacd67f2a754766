//! Multi-head deformable sampling: every query of a head samples each level's map at a few computed places, trilinear with
//! zeros outside, and sums the samples with weights that are softmaxed over levels and points.
//!
//! Source: Deformable DETR (arXiv 2010.04159) eq. 3, in 3D as CoTr has it (spec, networks, section 4.9). CoTr's order of
//! axes is kept: a place has the components (d, x, y), each a fraction of its own axis, and these are taken along W, H and D.

use bytemuck::{Pod, Zeroable};

use super::{Binding, BindingSizes, Cost, HostHalf, HostSlice, Kernel, Reach, Source, Target, Variant, Window, elements, workgroup_size};
use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

/// One dispatch of deformable sampling.
#[derive(Clone, Debug)]
pub struct DeformableSampling {
    /// Extent of the queries and of the output.
    pub queries: Extent,
    /// Extents of the maps that are sampled, one to four; all have the channels of the output.
    pub levels: Vec<Extent>,
    /// Channels of the output, all heads; head h owns the channels `h * C / heads ..`.
    pub channels: u32,
    /// Heads.
    pub heads: u32,
    /// Places in each level for a query of a head.
    pub points: u32,
    /// Storage type.
    pub elem: Elem,
    /// Where the sources' planes lie: offsets, weights, and the levels.
    pub windows: [Window; 6],
    /// What is written.
    pub target: Target,
}

/// The shader's uniform block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Params {
    queries: [u32; 3],
    offset_stride: u32,
    levels: [[u32; 4]; 4],
    weight_stride: u32,
    value_stride: u32,
    heads: u32,
    dim: u32,
    blocks: u32,
    offset_first: u32,
    weight_first: u32,
    out_first: u32,
    out_begin: u32,
    pad: [u32; 3],
}

const VALUES: u32 = 16;

impl DeformableSampling {
    /// Places of a query, all heads.
    pub(super) fn places(&self) -> u32 {
        self.heads * self.points * u32::try_from(self.levels.len()).unwrap_or(u32::MAX)
    }

    fn dim(&self) -> u32 {
        self.channels / self.heads
    }

    fn blocks(&self) -> u32 {
        self.dim().div_ceil(VALUES)
    }
}

fn padded(channels: u32) -> u32 {
    channels.div_ceil(4) * 4
}

impl Kernel for DeformableSampling {
    const NAME: &'static str = "deformable_sampling";
    const SHADER: &'static str = include_str!("../shaders/deformable_sampling.wgsl");
    const BINDINGS: &'static [Binding] =
        &[Binding::Params, Binding::Read, Binding::Read, Binding::Read, Binding::Read, Binding::Read, Binding::Read, Binding::Write];
    type Params = Params;

    fn variant(&self, caps: &DeviceCaps) -> Variant {
        Variant::new(self.elem, workgroup_size(caps))
            .set("LEVELS", u32::try_from(self.levels.len()).unwrap_or(u32::MAX))
            .set("POINTS", self.points)
    }

    fn packs(&self) -> bool {
        self.heads == 1 || (self.channels / self.heads).is_multiple_of(2)
    }

    fn params(&self) -> Params {
        let mut levels = [[1; 4]; 4];
        for (level, extent) in levels.iter_mut().zip(&self.levels) {
            level[..3].copy_from_slice(&extent.axes());
        }
        Params {
            queries: self.queries.axes(),
            offset_stride: padded(3 * self.places()),
            levels,
            weight_stride: padded(self.places()),
            value_stride: padded(self.channels),
            heads: self.heads,
            dim: self.dim(),
            blocks: self.blocks(),
            offset_first: self.windows[0].first,
            weight_first: self.windows[1].first,
            out_first: self.target.first,
            out_begin: self.target.begin,
            pad: [0; 3],
        }
    }

    fn grid(&self) -> [u64; 3] {
        [self.queries.plane(), u64::from(self.heads) * u64::from(self.blocks()), self.target.count.into()]
    }

    fn cost(&self) -> Cost {
        let queries = self.queries.plane() * u64::from(self.target.count);
        let places = u64::from(self.places());
        let samples = queries * places * u64::from(self.dim());
        Cost {
            flops: 16 * samples + 40 * queries * places * u64::from(self.blocks()),
            bytes: (8 * samples + queries * (4 * places + u64::from(self.channels))) * self.elem.bytes(),
        }
    }

    fn sizes(&self) -> BindingSizes {
        let of = |extent: Extent, channels: u32| elements(extent, channels, extent.d);
        let mut sizes = vec![of(self.queries, 3 * self.places()), of(self.queries, self.places())];
        sizes.extend((0..4).map(|level| of(*self.levels.get(level).unwrap_or(&self.levels[0]), self.channels)));
        sizes.push(of(self.queries, self.channels));
        sizes
    }

    fn sources(&self) -> Vec<Source> {
        let own = Source { planes: self.queries.d, reach: Reach::Same };
        let levels = self.levels.iter().map(|extent| Source { planes: extent.d, reach: Reach::Whole });
        [own, own].into_iter().chain(levels).collect()
    }

    fn operands(&mut self) -> (&mut [Window], &mut Target) {
        (&mut self.windows[..2 + self.levels.len()], &mut self.target)
    }

    fn bind<T: Copy>(&self, sources: &[[T; 2]], _: &[T]) -> Vec<T> {
        // the shader binds four levels even where there are fewer
        (0..6).map(|slot| sources.get(slot).unwrap_or(&sources[2])[0]).collect()
    }

    fn reference(&self, inputs: &[&[f32]], mut output: HostSlice<'_>) {
        use rayon::prelude::*;
        let [offsets, weights, levels @ ..] = inputs else { return };
        let (stride, dim, points) = (padded(self.channels) as usize, self.dim() as usize, self.points as usize);
        let places = points * self.levels.len();
        let [n_d, n_h, n_w] = self.queries.axes().map(|n| n as usize);
        let row = |slot: usize, z: usize, at: usize| (z - self.windows[slot].first as usize) * n_h * n_w + at;
        self.target.planes(output.floats(), n_h * n_w * stride).for_each(|(z, plane)| {
            plane.par_chunks_exact_mut(stride).enumerate().for_each(|(at, out)| {
                out.fill(0.0);
                let (y, x) = (at / n_w, at % n_w);
                #[expect(clippy::cast_precision_loss, reason = "extents are small")]
                let place = [(z as f64 + 0.5) / n_d as f64, (x as f64 + 0.5) / n_w as f64, (y as f64 + 0.5) / n_h as f64];
                for head in 0..self.heads as usize {
                    let own = &weights[row(1, z, at) * padded(self.places()) as usize + head * places..][..places];
                    let shifts = &offsets[row(0, z, at) * padded(3 * self.places()) as usize + head * places * 3..][..places * 3];
                    let high = own.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let shares: Vec<f64> = own.iter().map(|&w| (f64::from(w) - f64::from(high)).exp()).collect();
                    let total: f64 = shares.iter().sum();
                    let mut acc = vec![0.0f64; dim];
                    for (i, (share, shift)) in shares.iter().zip(shifts.as_chunks::<3>().0).enumerate() {
                        let level = i / points;
                        let [d, h, w] = self.levels[level].axes();
                        // component 0 is a fraction of D, taken along W, and so on
                        let axes = [(w, d), (h, w), (d, h)];
                        let sampled =
                            [0, 1, 2].map(|a| (place[a] + f64::from(shift[a]) / f64::from(axes[a].1)) * f64::from(axes[a].0) - 0.5);
                        for corner in 0..8 {
                            let side = [corner & 1, corner >> 1 & 1, corner >> 2];
                            let mut weight = share / total;
                            for a in 0..3 {
                                let part = sampled[a] - sampled[a].floor();
                                weight *= if side[a] == 1 { part } else { 1.0 - part };
                            }
                            let voxel = [0, 1, 2].map(|a| sampled[a].floor() + f64::from(side[a]));
                            if (0..3).any(|a| voxel[a] < 0.0 || voxel[a] >= f64::from(axes[a].0)) {
                                continue;
                            }
                            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "inside the map")]
                            let [x, y, z] = voxel.map(|v| v as usize);
                            let voxel = ((z * h as usize + y) * w as usize + x) * stride + head * dim;
                            for (sum, &v) in acc.iter_mut().zip(&levels[level][voxel..]) {
                                *sum += weight * f64::from(v);
                            }
                        }
                    }
                    for (y, a) in out[head * dim..].iter_mut().zip(&acc) {
                        #[expect(clippy::cast_possible_truncation, reason = "the twin stores what the shader stores")]
                        {
                            *y = *a as f32;
                        }
                    }
                }
            });
        });
    }

    fn host(&self) -> Option<&dyn HostHalf> {
        Some(self)
    }

    fn stored_as(mut self, elem: Elem) -> Self {
        self.elem = elem;
        self
    }

    fn cases() -> Vec<(String, Self)> {
        let case = |label: &str, queries: Extent, levels: &[Extent], channels: u32, heads: u32, points: u32, elem| {
            let target = Target::whole(queries.d);
            let k = Self { queries, levels: levels.to_vec(), channels, heads, points, elem, windows: [Window::whole(0); 6], target };
            (label.to_owned(), k)
        };
        let (fine, coarse, one) = (Extent::new(4, 6, 5), Extent::new(2, 3, 4), Extent::new(1, 1, 1));
        vec![
            case("two_levels", fine, &[fine, coarse], 24, 3, 4, Elem::F32),
            case("coarse_queries", coarse, &[fine, coarse], 24, 3, 4, Elem::F32),
            case("odd_heads", fine, &[coarse], 15, 3, 1, Elem::F32),
            case("wide_heads", coarse, &[coarse], 70, 2, 2, Elem::F32),
            case("four_levels", Extent::new(3, 2, 1), &[fine, coarse, one, Extent::new(1, 7, 2)], 6, 2, 3, Elem::F32),
            case("two_levels_f16", fine, &[fine, coarse], 24, 3, 4, Elem::F16),
        ]
    }
}
