//! Measures of the labels of a map.

use rayon::prelude::*;
use serde::Serialize;

use super::{Legend, Volume, VolumeError, same_grid, sizes};

/// The measures of a label.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LabelStatistics {
    /// Its number.
    pub label: u16,
    /// Its name.
    pub name: String,
    /// Voxels.
    pub voxels: u64,
    /// Volume in millilitres.
    pub ml: f64,
    /// The centre of mass in mm to the right, the front and the head; `None` without voxels.
    pub centroid_mm: Option<[f64; 3]>,
    /// The first and the last voxel along i, j, k of the file that hold it, both included.
    pub box_voxels: Option<[[u32; 2]; 3]>,
    /// Whether it reaches the border of the map, where more of it may have been cut off.
    pub touches_border: bool,
    /// The values of the scan's first channel in it, where there is a scan.
    pub intensity: Option<Intensities>,
}

/// Values of a scan within a label.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Intensities {
    /// The mean.
    pub mean: f64,
    /// The standard deviation over all voxels (of the population).
    pub sd: f64,
    /// The least value.
    pub min: f32,
    /// The value below which 5 % lie, between voxels by straight lines, as numpy's `percentile`.
    pub p5: f64,
    /// The median.
    pub median: f64,
    /// The value below which 95 % lie.
    pub p95: f64,
    /// The greatest value.
    pub max: f32,
}

/// Sums over the voxels of a label.
#[derive(Clone)]
struct Sums {
    voxels: u64,
    /// Of the indices along k, j, i.
    sum: [u64; 3],
    first: [u32; 3],
    last: [u32; 3],
}

const NONE: Sums = Sums { voxels: 0, sum: [0; 3], first: [u32::MAX; 3], last: [0; 3] };

impl Sums {
    fn join(&mut self, other: &Self) {
        self.voxels += other.voxels;
        for axis in 0..3 {
            self.sum[axis] += other.sum[axis];
            self.first[axis] = self.first[axis].min(other.first[axis]);
            self.last[axis] = self.last[axis].max(other.last[axis]);
        }
    }
}

/// Measures the classes of a legend, and further labels that occur, in the order of their numbers;
/// with a scan on the same grid also the values of its first channel.
///
/// # Errors
/// [`super::VolumeErrorKind::GridMismatch`] if the scan lies on another grid.
pub fn statistics(labels: &Volume<u16>, legend: &Legend, scan: Option<&Volume<f32>>) -> Result<Vec<LabelStatistics>, VolumeError> {
    if let Some(scan) = scan {
        same_grid(labels, "label map", scan, "scan")?;
    }
    let [_, h, w] = sizes(labels.extent);
    let plane = |(k, plane): (usize, &[u16])| {
        let mut found: Vec<Sums> = Vec::new();
        for (at, &label) in plane.iter().enumerate().filter(|(_, label)| **label > 0) {
            if found.len() <= usize::from(label) {
                found.resize(usize::from(label) + 1, NONE);
            }
            let one = &mut found[usize::from(label)];
            one.voxels += 1;
            #[expect(clippy::cast_possible_truncation, reason = "indices of a volume")]
            for (axis, i) in [k as u32, (at / w) as u32, (at % w) as u32].into_iter().enumerate() {
                one.sum[axis] += u64::from(i);
                one.first[axis] = one.first[axis].min(i);
                one.last[axis] = one.last[axis].max(i);
            }
        }
        found
    };
    let join = |mut a: Vec<Sums>, b: Vec<Sums>| {
        if a.len() < b.len() {
            a.resize(b.len(), NONE);
        }
        a.iter_mut().zip(&b).for_each(|(a, b)| a.join(b));
        a
    };
    let sums = labels.data.par_chunks(h * w).enumerate().map(plane).reduce(Vec::new, join);
    let named = legend.classes().iter().map(|class| class.label);
    let occurring = (0u16..=u16::MAX).zip(&sums).filter(|(_, sums)| sums.voxels > 0).map(|(label, _)| label);
    let all: std::collections::BTreeSet<u16> = named.chain(occurring).collect();
    let mut measured: Vec<LabelStatistics> =
        all.into_iter().map(|label| measure(labels, label, legend.name(label), sums.get(usize::from(label)).unwrap_or(&NONE))).collect();
    if let Some(values) = scan.and_then(|scan| scan.channel(0)) {
        let mut values_of: Vec<Vec<f32>> = vec![Vec::new(); sums.len()];
        for (&label, &value) in labels.data.iter().zip(values).filter(|(label, _)| **label > 0) {
            values_of[usize::from(label)].push(value);
        }
        measured
            .par_iter_mut()
            .zip_eq(values_by_label(values_of, &sums, legend))
            .for_each(|(one, values)| one.intensity = intensities(values));
    }
    Ok(measured)
}

/// The values of the labels that are measured, in the same order.
fn values_by_label(mut values: Vec<Vec<f32>>, sums: &[Sums], legend: &Legend) -> Vec<Vec<f32>> {
    let named = legend.classes().iter().map(|class| usize::from(class.label));
    let occurring = (0..sums.len()).filter(|label| sums[*label].voxels > 0);
    let all: std::collections::BTreeSet<usize> = named.chain(occurring).collect();
    all.into_iter().map(|label| values.get_mut(label).map(std::mem::take).unwrap_or_default()).collect()
}

#[expect(clippy::cast_precision_loss, reason = "measures for people")]
fn measure(labels: &Volume<u16>, label: u16, name: String, sums: &Sums) -> LabelStatistics {
    let there = sums.voxels > 0;
    let centre = sums.sum.map(|sum| sum as f64 / sums.voxels as f64);
    let extent = labels.extent.axes();
    LabelStatistics {
        label,
        name,
        voxels: sums.voxels,
        ml: sums.voxels as f64 * labels.voxel_ml(),
        centroid_mm: there.then(|| labels.affine().apply(centre)),
        box_voxels: there.then(|| [2, 1, 0].map(|axis| [sums.first[axis], sums.last[axis]])),
        // an axis of one voxel has no inside
        touches_border: there && (0..3).any(|axis| extent[axis] > 1 && (sums.first[axis] == 0 || sums.last[axis] + 1 == extent[axis])),
        intensity: None,
    }
}

/// The `share` quantile of sorted values, between neighbours linearly, as `numpy.percentile` has
/// it; NaN of nothing.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a position in the list")]
pub(crate) fn quantile<T: Copy + Into<f64>>(sorted: &[T], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = share * last as f64;
    let below = (position.floor() as usize).min(last);
    let [a, b] = [below, (below + 1).min(last)].map(|at| sorted[at].into());
    a + (b - a) * (position - below as f64)
}

fn intensities(mut values: Vec<f32>) -> Option<Intensities> {
    values.sort_unstable_by(f32::total_cmp);
    let (&min, &max) = (values.first()?, values.last()?);
    let n = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
    let [p5, median, p95] = [0.05, 0.5, 0.95].map(|share| quantile(&values, share));
    Some(Intensities { mean, sd: variance.sqrt(), min, p5, median, p95, max })
}

/// Statistics as CSV: a line a label, with a line of names first.
#[must_use]
pub fn statistics_csv(statistics: &[LabelStatistics]) -> String {
    let mut text = String::from(
        "label,name,voxels,ml,centroid_r_mm,centroid_a_mm,centroid_s_mm,i_first,i_last,j_first,j_last,k_first,k_last,\
         touches_border,mean,sd,min,p5,median,p95,max\n",
    );
    for s in statistics {
        let name = format!("\"{}\"", s.name.replace('"', "\"\""));
        let mut cells = vec![s.label.to_string(), name, s.voxels.to_string(), s.ml.to_string()];
        match s.centroid_mm {
            Some(centre) => cells.extend(centre.map(|x| x.to_string())),
            None => cells.extend([const { String::new() }; 3]),
        }
        match s.box_voxels {
            Some(sides) => cells.extend(sides.iter().flatten().map(u32::to_string)),
            None => cells.extend([const { String::new() }; 6]),
        }
        cells.push(s.touches_border.to_string());
        match &s.intensity {
            Some(v) => {
                let [min, max] = [v.min, v.max].map(f64::from);
                cells.extend([v.mean, v.sd, min, v.p5, v.median, v.p95, max].map(|x| x.to_string()));
            }
            None => cells.extend([const { String::new() }; 7]),
        }
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}

/// Statistics as a table for people.
#[must_use]
pub fn statistics_table(statistics: &[LabelStatistics]) -> String {
    let width = statistics.iter().map(|s| s.name.chars().count()).max().unwrap_or(0).clamp(4, 40);
    let values = statistics.iter().any(|s| s.intensity.is_some());
    let mut text = format!("{:>5}  {:<width$} {:>11} {:>10}", "label", "name", "ml", "voxels");
    if values {
        text.push_str(&format!(" {:>10} {:>10} {:>10} {:>10}", "mean", "p5", "median", "p95"));
    }
    text.push_str("  centroid R, A, S mm");
    for s in statistics {
        text.push_str(&format!("\n{:>5}  {:<width$} {:>11.3} {:>10}", s.label, s.name, s.ml, s.voxels));
        match &s.intensity {
            Some(v) => text.push_str(&format!(" {:>10.2} {:>10.2} {:>10.2} {:>10.2}", v.mean, v.p5, v.median, v.p95)),
            None if values => text.push_str(&format!(" {:>10} {:>10} {:>10} {:>10}", "-", "-", "-", "-")),
            None => {}
        }
        match s.centroid_mm {
            Some([r, a, s]) => text.push_str(&format!("  {r:.1}, {a:.1}, {s:.1}")),
            None => text.push_str("  -"),
        }
        if s.touches_border {
            text.push_str("  touches the border");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Extent;

    #[test]
    fn labels_are_measured() -> Result<(), VolumeError> {
        let mut data = vec![0u16; 3 * 4 * 5];
        // k 1, j 1 and 2, i 2: inside; and the corner at the end
        (data[20 + 5 + 2], data[20 + 10 + 2], data[59]) = (7, 7, 2);
        let labels = Volume::new(1, Extent::new(3, 4, 5), [2.0, 3.0, 4.0], "SAL".parse()?, data)?;
        let values: Vec<f32> = (0u8..60).map(f32::from).collect();
        let scan = Volume::new(1, labels.extent, labels.spacing, labels.axes, values)?;
        let legend = Legend::new([(7, "a, \"b\"".into()), (9, "none".into())]);
        let all = statistics(&labels, &legend, Some(&scan))?;
        assert_eq!(all.iter().map(|s| s.label).collect::<Vec<_>>(), [2, 7, 9]);
        let [corner, inside, none] = &all[..] else { panic!("three labels") };
        assert_eq!((corner.touches_border, inside.touches_border, none.touches_border), (true, false, false));
        assert_eq!((inside.voxels, inside.box_voxels), (2, Some([[2, 2], [1, 2], [1, 1]])));
        assert!((inside.ml - 0.048).abs() < 1e-12);
        assert_eq!(inside.centroid_mm, Some([-8.0, 4.5, 2.0]));
        let Some(v) = inside.intensity else { panic!("values") };
        assert_eq!((v.min, v.mean, v.median, v.max, v.sd), (27.0, 29.5, 29.5, 32.0, 2.5));
        assert!((v.p5 - 27.25).abs() < 1e-12 && (v.p95 - 31.75).abs() < 1e-12);
        assert_eq!((none.voxels, none.centroid_mm, none.intensity), (0, None, None));
        let csv = statistics_csv(&all);
        assert!(csv.lines().all(|line| line.replace("a, ", "").matches(',').count() == 20), "{csv}");
        assert!(csv.contains("7,\"a, \"\"b\"\"\",2,0.048,-8,4.5,2,2,2,1,2,1,1,false,29.5,2.5,27,27.25,29.5,31.75,32"), "{csv}");
        let table = statistics_table(&all);
        assert!(table.lines().count() == 4 && table.contains("touches the border"), "{table}");
        let other = Volume::new(1, Extent::new(3, 4, 5), [2.0, 3.0, 5.0], "SAL".parse()?, vec![0.0; 60])?;
        assert!(statistics(&labels, &legend, Some(&other)).is_err());
        Ok(())
    }
}
