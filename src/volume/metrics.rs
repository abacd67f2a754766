//! Agreement of two label volumes: Dice, the 95th percentile of the surface distance (HD95),
//! surface Dice at a tolerance (NSD), and volumes.
//!
//! HD95 follows MedPy's `hd95`: a surface is an object minus its erosion with the 6-neighbourhood (what lies outside
//! the volume counts as background), the distances from each surface to the other are pooled, and their 95th percentile
//! is taken with linear interpolation. NSD is the share of these distances that are at most the
//! tolerance, as MONAI's `compute_surface_dice` counts surface voxels (Nikolov et al., arXiv
//! 1809.04430, weigh surface elements by their area). Distances are exact, in millimetres, under
//! any affine: where the axes are at right angles by a distance transform (Felzenszwalb and
//! Huttenlocher, "Distance transforms of sampled functions", 2012), on sheared grids by a search in
//! a tree of the surface's points in the patient.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::statistics::quantile;
use super::{Affine, Volume, VolumeError, VolumeErrorKind, same_grid, sizes};

/// How well a prediction agrees with a reference on one label.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LabelScore {
    /// The label's value, above 0.
    pub label: u16,
    /// `2 |P and R| / (|P| + |R|)`, from 0 to 1; `None` if both are empty.
    pub dice: Option<f64>,
    /// The 95th percentile of the surface distances in millimetres; `None` if either is empty.
    pub hd95_mm: Option<f64>,
    /// The share of surface voxels of both sides that lie within the tolerance of the other
    /// surface, from 0 to 1; `None` if both are empty, 0 if one is.
    pub nsd: Option<f64>,
    /// How many voxels the prediction gives the label.
    pub voxels_prediction: u64,
    /// How many voxels the reference gives the label.
    pub voxels_reference: u64,
    /// The label's volume in the prediction in millilitres, by the determinant of its affine.
    pub ml_prediction: f64,
    /// The label's volume in the reference in millilitres.
    pub ml_reference: f64,
}

impl LabelScore {
    /// The volume of the prediction less that of the reference in millilitres.
    #[must_use]
    pub fn difference_ml(&self) -> f64 {
        self.ml_prediction - self.ml_reference
    }

    /// The same as a share of the reference's volume; `None` if that is empty.
    #[must_use]
    pub fn difference(&self) -> Option<f64> {
        (self.voxels_reference > 0).then(|| self.difference_ml() / self.ml_reference)
    }
}

/// The tolerance of surface Dice in millimetres where none is given.
pub const TOLERANCE_MM: f64 = 1.0;

/// [`evaluate_at`] with a tolerance of [`TOLERANCE_MM`].
///
/// # Errors
/// As [`evaluate_at`].
pub fn evaluate(prediction: &Volume<u16>, reference: &Volume<u16>) -> Result<Vec<LabelScore>, VolumeError> {
    evaluate_at(prediction, reference, TOLERANCE_MM)
}

/// Scores every label above 0 that occurs in either volume, in rising order; surface Dice is that
/// at a tolerance in millimetres.
///
/// An axis of a single voxel (a 2D image) has no neighbours to erode along.
///
/// # Errors
/// [`VolumeErrorKind::GridMismatch`] if the two differ in extent, axes or spacing, or have several channels.
pub fn evaluate_at(prediction: &Volume<u16>, reference: &Volume<u16>, tolerance_mm: f64) -> Result<Vec<LabelScore>, VolumeError> {
    same_grid(prediction, "prediction", reference, "reference")?;
    if prediction.channels != 1 || reference.channels != 1 {
        return Err(VolumeError::new(
            VolumeErrorKind::GridMismatch,
            format!("labels have one channel, but the prediction has {} and the reference {}", prediction.channels, reference.channels),
        ));
    }
    let n = sizes(reference.extent);
    Ok(tally(prediction, reference)
        .into_iter()
        .map(|(label, count)| {
            let both_empty = count.prediction + count.reference == 0;
            let surfaces = (count.prediction > 0 && count.reference > 0).then(|| {
                let p = count.cut(&prediction.data, n, label);
                let r = count.cut(&reference.data, n, label);
                let solid = [0, 1, 2].map(|axis| n[axis] > 1);
                let mut all = distances(&p, &r, count.box_sizes(), reference.affine(), solid);
                let within = all.iter().filter(|d| **d <= tolerance_mm).count() as f64 / all.len() as f64;
                (percentile(&mut all, 0.95), within)
            });
            LabelScore {
                label,
                dice: (!both_empty).then(|| 2.0 * count.shared as f64 / (count.prediction + count.reference) as f64),
                hd95_mm: surfaces.map(|(hd95, _)| hd95),
                nsd: (!both_empty).then(|| surfaces.map_or(0.0, |(_, within)| within)),
                voxels_prediction: count.prediction,
                voxels_reference: count.reference,
                ml_prediction: count.prediction as f64 * prediction.voxel_ml(),
                ml_reference: count.reference as f64 * reference.voxel_ml(),
            }
        })
        .collect())
}

/// The means over the labels of a comparison, and the labels that one side lacks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The mean Dice; `None` without a label. A label that one side lacks counts as 0.
    pub dice: Option<f64>,
    /// The mean HD95 in mm over the labels that both sides have; `None` if there are none.
    pub hd95_mm: Option<f64>,
    /// The mean surface Dice; `None` without a label. A label that one side lacks counts as 0.
    pub nsd: Option<f64>,
    /// The number of labels in the means of Dice and of surface Dice.
    pub dice_labels: usize,
    /// How many labels the mean HD95 is of: those that both sides have.
    pub hd95_labels: usize,
    /// Labels of the reference that the prediction lacks.
    pub missed: Vec<u16>,
    /// Labels of the prediction that the reference lacks.
    pub false_labels: Vec<u16>,
}

impl Summary {
    /// The summary of these scores.
    #[must_use]
    pub fn of(scores: &[LabelScore]) -> Self {
        let dice: Vec<f64> = scores.iter().filter_map(|s| s.dice).collect();
        let hd95: Vec<f64> = scores.iter().filter_map(|s| s.hd95_mm).collect();
        let nsd: Vec<f64> = scores.iter().filter_map(|s| s.nsd).collect();
        let mean = |v: &[f64]| (!v.is_empty()).then(|| v.iter().sum::<f64>() / v.len() as f64);
        let lacking = |side: fn(&LabelScore) -> u64| scores.iter().filter(|s| side(s) == 0).map(|s| s.label).collect();
        Self {
            dice: mean(&dice),
            hd95_mm: mean(&hd95),
            nsd: mean(&nsd),
            dice_labels: dice.len(),
            hd95_labels: hd95.len(),
            missed: lacking(|s| s.voxels_prediction),
            false_labels: lacking(|s| s.voxels_reference),
        }
    }
}

/// What one sweep over the voxels learns of a label; the box holds both objects.
#[derive(Clone, Copy, Debug)]
struct Tally {
    prediction: u64,
    reference: u64,
    shared: u64,
    low: [usize; 3],
    high: [usize; 3],
}

impl Tally {
    const NONE: Self = Self { prediction: 0, reference: 0, shared: 0, low: [usize::MAX; 3], high: [0; 3] };

    fn widen(&mut self, at: [usize; 3]) {
        for (axis, i) in at.into_iter().enumerate() {
            self.low[axis] = self.low[axis].min(i);
            self.high[axis] = self.high[axis].max(i + 1);
        }
    }

    fn box_sizes(&self) -> [usize; 3] {
        [0, 1, 2].map(|axis| self.high[axis] - self.low[axis])
    }

    /// The label's mask inside the box, which is all that the distances depend on.
    fn cut(&self, labels: &[u16], n: [usize; 3], label: u16) -> Vec<bool> {
        let mut mask = Vec::with_capacity(self.box_sizes().iter().product());
        for d in self.low[0]..self.high[0] {
            for h in self.low[1]..self.high[1] {
                let row = (d * n[1] + h) * n[2];
                mask.extend(labels[row + self.low[2]..row + self.high[2]].iter().map(|l| *l == label));
            }
        }
        mask
    }
}

fn tally(prediction: &Volume<u16>, reference: &Volume<u16>) -> BTreeMap<u16, Tally> {
    let [_, height, width] = sizes(reference.extent);
    let mut labels = BTreeMap::new();
    for (i, (&p, &r)) in prediction.data.iter().zip(&reference.data).enumerate() {
        if p == 0 && r == 0 {
            continue;
        }
        let at = [i / (height * width), i / width % height, i % width];
        if p > 0 {
            let count: &mut Tally = labels.entry(p).or_insert(Tally::NONE);
            count.prediction += 1;
            count.shared += u64::from(p == r);
            count.widen(at);
        }
        if r > 0 {
            let count: &mut Tally = labels.entry(r).or_insert(Tally::NONE);
            count.reference += 1;
            count.widen(at);
        }
    }
    labels
}

/// Axes are taken to be at right angles up to this deviation in degrees: over 1000 voxels, a
/// thousandth of a voxel.
const SHEAR_TOLERANCE: f64 = 5e-5;

/// The distances in mm of the surface voxels of each side to the surface of the other.
fn distances(p: &[bool], r: &[bool], n: [usize; 3], affine: &Affine, solid: [bool; 3]) -> Vec<f64> {
    let (p, r) = (surface(p, n, solid), surface(r, n, solid));
    let mut distances = Vec::new();
    for (from, to) in [(&p, &r), (&r, &p)] {
        if affine.shear_degrees() > SHEAR_TOLERANCE {
            distances.extend(distances_in_the_patient(from, to, n, affine));
        } else {
            let squared = squared_distance(to, n, affine.spacing());
            distances.extend(from.iter().zip(&squared).filter(|(on, _)| **on).map(|(_, d)| d.sqrt()));
        }
    }
    distances
}

/// The distance in mm of every marked voxel of `from` to the nearest one of `to`, which has some,
/// under any affine.
fn distances_in_the_patient(from: &[bool], to: &[bool], n: [usize; 3], affine: &Affine) -> Vec<f64> {
    let place = |i: usize| affine.apply([i / (n[1] * n[2]), i / n[2] % n[1], i % n[2]].map(|i| i as f64));
    let marked = |mask: &[bool]| -> Vec<[f64; 3]> { mask.iter().enumerate().filter(|(_, on)| **on).map(|(i, _)| place(i)).collect() };
    let tree = rstar::RTree::bulk_load(marked(to));
    let nearest = |at: &[f64; 3]| {
        let squared = |other: &[f64; 3]| at.iter().zip(other).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        tree.nearest_neighbor(*at).map_or(f64::NAN, |other| squared(other).sqrt())
    };
    marked(from).par_iter().map(nearest).collect()
}

/// The voxels of the object that have a 6-neighbour outside it.
fn surface(mask: &[bool], n: [usize; 3], solid: [bool; 3]) -> Vec<bool> {
    let strides = [n[1] * n[2], n[2], 1];
    mask.iter()
        .enumerate()
        .map(|(i, on)| {
            let at = [i / strides[0], i / n[2] % n[1], i % n[2]];
            let inside = |axis: usize| {
                let stride = strides[axis];
                at[axis] > 0 && at[axis] + 1 < n[axis] && mask[i - stride] && mask[i + stride]
            };
            *on && (0..3).any(|axis| solid[axis] && !inside(axis))
        })
        .collect()
}

/// The squared distance in mm² of every voxel to the nearest marked one, which must exist somewhere.
fn squared_distance(marked: &[bool], n: [usize; 3], spacing: [f64; 3]) -> Vec<f64> {
    let mut field: Vec<f64> = marked.iter().map(|on| if *on { 0.0 } else { f64::INFINITY }).collect();
    // Each pass sweeps the last axis and then moves it to the front, so after three every axis is back in place.
    for axis in [2, 1, 0] {
        let length = n[axis];
        field
            .par_chunks_exact_mut(length)
            .for_each_init(|| Envelope::with_capacity(length), |envelope, row| envelope.sweep(row, spacing[axis] * spacing[axis]));
        let rows = field.len() / length;
        let mut turned = vec![0.0; field.len()];
        turned.par_chunks_exact_mut(rows).enumerate().for_each(|(column, out)| {
            for (row, value) in out.iter_mut().enumerate() {
                *value = field[row * length + column];
            }
        });
        field = turned;
    }
    field
}

/// The lower envelope of parabolas over one row: each with its root and the position where it takes over.
#[derive(Debug)]
struct Envelope {
    parabolas: Vec<(usize, f64, f64)>,
}

impl Envelope {
    fn with_capacity(length: usize) -> Self {
        Self { parabolas: Vec::with_capacity(length) }
    }

    /// Replaces `row[x]` by the least of `row[q] + squared_spacing * (x - q)²`.
    fn sweep(&mut self, row: &mut [f64], squared_spacing: f64) {
        self.parabolas.clear();
        for (q, &height) in row.iter().enumerate().filter(|(_, f)| f.is_finite()) {
            let mut start = f64::NEG_INFINITY;
            while let Some(&(root, base, from)) = self.parabolas.last() {
                let gap = (q - root) as f64;
                start = 0.5 * ((height - base) / (squared_spacing * gap) + (q + root) as f64);
                if start > from {
                    break;
                }
                self.parabolas.pop();
                start = f64::NEG_INFINITY;
            }
            self.parabolas.push((q, height, start));
        }
        let mut k = 0;
        for (x, value) in row.iter_mut().enumerate() {
            while self.parabolas.get(k + 1).is_some_and(|next| next.2 < x as f64) {
                k += 1;
            }
            if let Some(&(root, base, _)) = self.parabolas.get(k) {
                let gap = x.abs_diff(root) as f64;
                *value = base + squared_spacing * gap * gap;
            }
        }
    }
}

/// The `share` quantile of values in any order.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    quantile(values, share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Extent;

    fn labels(extent: Extent, spacing: [f64; 3], data: Vec<u16>) -> Result<Volume<u16>, VolumeError> {
        Volume::new(1, extent, spacing, "SAR".parse()?, data)
    }

    #[test]
    fn identical_volumes_agree_fully() -> Result<(), VolumeError> {
        let v = labels(Extent::new(2, 2, 2), [1.0; 3], vec![0, 1, 1, 3, 0, 0, 3, 3])?;
        let scores = evaluate(&v, &v)?;
        assert_eq!(scores.iter().map(|s| s.label).collect::<Vec<_>>(), [1, 3]);
        assert!(scores.iter().all(|s| s.dice == Some(1.0) && s.hd95_mm == Some(0.0)));
        assert_eq!(scores[1].voxels_reference, 3);
        Ok(())
    }

    #[test]
    fn a_missing_label_has_no_distance() -> Result<(), VolumeError> {
        let p = labels(Extent::new(1, 1, 3), [1.0; 3], vec![0, 2, 0])?;
        let r = labels(Extent::new(1, 1, 3), [1.0; 3], vec![0, 0, 0])?;
        let scores = evaluate(&p, &r)?;
        assert_eq!((scores[0].dice, scores[0].hd95_mm), (Some(0.0), None));
        assert!(evaluate(&r, &r)?.is_empty());
        Ok(())
    }

    #[test]
    fn grids_must_match() -> Result<(), VolumeError> {
        let a = labels(Extent::new(1, 2, 2), [1.0; 3], vec![1; 4])?;
        let b = labels(Extent::new(1, 1, 4), [1.0; 3], vec![1; 4])?;
        let c = labels(Extent::new(1, 2, 2), [1.0, 1.0, 1.1], vec![1; 4])?;
        for other in [b, c] {
            let kind = evaluate(&a, &other).err().map(|e| e.kind());
            assert_eq!(kind, Some(VolumeErrorKind::GridMismatch));
        }
        Ok(())
    }

    #[test]
    fn distances_are_the_brute_force_ones() {
        let (n, spacing) = ([5, 6, 7], [2.5, 0.7, 1.3]);
        let mut state = 7u32;
        for density in [1, 3, 40] {
            let mut marked: Vec<bool> = (0..210)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 16) % 100 < density
                })
                .collect();
            marked[17] = true;
            let at = |i: usize| [i / 42, i / 7 % 6, i % 7];
            for (i, got) in squared_distance(&marked, n, spacing).into_iter().enumerate() {
                let want = (0..210)
                    .filter(|j| marked[*j])
                    .map(|j| (0..3).map(|a| (at(i)[a].abs_diff(at(j)[a]) as f64 * spacing[a]).powi(2)).sum::<f64>())
                    .fold(f64::INFINITY, f64::min);
                assert!((got - want).abs() < 1e-9, "{i}: {got} {want}");
            }
        }
    }

    #[test]
    fn hd95_of_shifted_bars() -> Result<(), VolumeError> {
        // Two bars of one voxel width, three voxels apart along H at 2 mm: every distance is 6 mm.
        let mut p = vec![0; 40];
        let mut r = vec![0; 40];
        p[8..16].fill(1);
        r[32..40].fill(1);
        let e = Extent::new(1, 5, 8);
        let scores = evaluate(&labels(e, [1.0, 2.0, 1.0], p)?, &labels(e, [1.0, 2.0, 1.0], r)?)?;
        assert_eq!((scores[0].dice, scores[0].hd95_mm), (Some(0.0), Some(6.0)));
        Ok(())
    }

    /// Two boxes that overlap, on 12x14x16 voxels of 3x1x1 mm, as tests/vectors/make_metrics.py has
    /// them.
    fn boxes() -> Result<[Volume<u16>; 2], VolumeError> {
        let (mut p, mut r) = (vec![0; 12 * 14 * 16], vec![0; 12 * 14 * 16]);
        for (d, h, w) in (0..12).flat_map(|d| (0..14).flat_map(move |h| (0..16).map(move |w| (d, h, w)))) {
            let i = (d * 14 + h) * 16 + w;
            p[i] = u16::from((2..8).contains(&d) && (3..9).contains(&h) && (4..11).contains(&w));
            r[i] = u16::from((4..11).contains(&d) && (3..11).contains(&h) && (2..9).contains(&w));
        }
        let e = Extent::new(12, 14, 16);
        Ok([labels(e, [3.0, 1.0, 1.0], p)?, labels(e, [3.0, 1.0, 1.0], r)?])
    }

    #[test]
    fn distances_follow_the_true_axes() -> Result<(), VolumeError> {
        // scipy.ndimage and scipy.spatial.cKDTree on the same masks; see
        // tests/vectors/make_metrics.py
        let [p, r] = boxes()?;
        let of = |affine: Affine| -> Result<f64, VolumeError> {
            let scores = evaluate(&p.clone().with_affine(affine), &r.clone().with_affine(affine))?;
            Ok(scores[0].hd95_mm.unwrap_or(f64::NAN))
        };
        let straight = *p.affine();
        let tilted = Affine { steps: [[0.0, 1.5, 3.0], straight.steps[1], straight.steps[2]], ..straight };
        let by_tree = {
            let solid = [true; 3];
            let n = [12, 14, 16];
            let mask = |v: &Volume<u16>| v.data.iter().map(|l| *l == 1).collect::<Vec<_>>();
            let (a, b) = (surface(&mask(&p), n, solid), surface(&mask(&r), n, solid));
            let mut all = distances_in_the_patient(&a, &b, n, &straight);
            all.extend(distances_in_the_patient(&b, &a, n, &straight));
            percentile(&mut all, 0.95)
        };
        assert!((of(straight)? - by_tree).abs() < 1e-12, "both ways agree at right angles");
        let (straight, tilted) = (of(straight)?, of(tilted)?);
        assert!((straight - 9.055385138137417).abs() < 1e-9, "{straight}");
        assert!((tilted - 9.93180901463987).abs() < 1e-9, "{tilted}");
        Ok(())
    }

    #[test]
    fn labels_of_one_side_are_named_and_lower_the_mean() -> Result<(), VolumeError> {
        let e = Extent::new(1, 1, 5);
        let p = labels(e, [1.0; 3], vec![1, 1, 2, 0, 0])?;
        let r = labels(e, [1.0; 3], vec![1, 1, 0, 5, 5])?;
        let summary = Summary::of(&evaluate(&p, &r)?);
        assert_eq!((summary.dice_labels, summary.hd95_labels), (3, 1));
        assert_eq!((summary.missed, summary.false_labels), (vec![5], vec![2]));
        assert_eq!((summary.dice, summary.hd95_mm), (Some(1.0 / 3.0), Some(0.0)));
        assert_eq!((summary.nsd, Summary::of(&[]).dice), (Some(1.0 / 3.0), None));
        Ok(())
    }

    #[test]
    fn surface_dice_is_monais() -> Result<(), VolumeError> {
        // compute_surface_dice of MONAI 1.6.1 on the masks of distances_follow_the_true_axes; see
        // tests/vectors/make_metrics.py
        let [p, r] = boxes()?;
        for (tolerance, expected) in [
            (0.0, 0.17391304671764374),
            (1.0, 0.30676329135894775),
            (2.5, 0.5700483322143555),
            (3.0, 0.6425120830535889),
            (6.5, 0.8623188138008118),
        ] {
            let score = evaluate_at(&p, &r, tolerance)?[0];
            let nsd = score.nsd.ok_or_else(|| VolumeError::new(VolumeErrorKind::Format, "no surface"))?;
            assert!((nsd - expected).abs() < 1e-6, "{tolerance}: {nsd}");
            // 252 and 392 voxels of 3 mm3
            assert!((score.ml_prediction - 0.756).abs() < 1e-12 && (score.ml_reference - 1.176).abs() < 1e-12, "{score:?}");
            assert!(score.difference().is_some_and(|d| (d + 140.0 / 392.0).abs() < 1e-12), "{score:?}");
        }
        Ok(())
    }

    #[test]
    fn percentile_is_numpys() {
        assert!((percentile(&mut [4.0, 1.0, 2.0, 3.0], 0.95) - 3.85).abs() < 1e-12);
        assert!((percentile(&mut [2.0], 0.95) - 2.0).abs() < 1e-12);
    }
}
