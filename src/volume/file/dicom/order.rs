//! Slices in order: by where they lie along the normal of their planes.

use std::collections::BTreeSet;

use super::image::{Image, Slice};
use crate::volume::closest::cross;
use crate::volume::{VolumeError, VolumeErrorKind};
use crate::warning::{Warning, WarningKind};

/// Slices lie in one place if they are less than this share of their distance apart.
const SAME: f64 = 0.01;
/// A distance is a gap if it is more than this multiple of the median.
const GAP: f64 = 1.5;
/// The distance at which a slice may lie beside its place in an even grid, as a share of the
/// distance, without a word.
const EVEN: f64 = 0.02;
/// The most kinds of slices that are told apart.
const MOST_GROUPS: usize = 256;
/// The names that a message lists.
const LISTED: usize = 3;

/// Slices in order.
pub(super) struct Stack {
    pub(super) slices: Vec<Slice>,
    /// From a slice to the next, in mm.
    pub(super) step: [f64; 3],
    pub(super) warnings: Vec<Warning>,
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn minus(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [0, 1, 2].map(|row| a[row] - b[row])
}

fn length(a: [f64; 3]) -> f64 {
    dot(a, a).sqrt()
}

/// Whether two slices are cut alike, so that they stack.
fn alike(a: (&Image, &Slice), b: (&Image, &Slice)) -> bool {
    let near = |a: f64, b: f64, most: f64| (a - b).abs() <= most;
    let directions = a.1.directions.iter().flatten().zip(b.1.directions.iter().flatten());
    (a.0.rows, a.0.columns) == (b.0.rows, b.0.columns)
        && directions.into_iter().all(|(x, y)| near(*x, *y, 1e-3))
        && a.1.spacing.iter().zip(b.1.spacing).all(|(x, y)| near(*x, y, 1e-3 * y))
}

/// Puts the slices of a series in order.
pub(super) fn stack(images: &[Image]) -> Result<Stack, VolumeError> {
    let mut warnings = Vec::new();
    let mut seen = BTreeSet::new();
    let mut groups: Vec<Vec<Slice>> = Vec::new();
    for (file, image) in images.iter().enumerate() {
        if !image.uid.is_empty() && !seen.insert(&image.uid) {
            let text = format!("{} is the same image as another file; it is passed over", image.place.name());
            warnings.push(Warning::new(WarningKind::Geometry, text));
            continue;
        }
        for slice in &image.slices {
            let slice = Slice { file, ..slice.clone() };
            let group = groups.iter_mut().find(|group| alike((&images[group[0].file], &group[0]), (image, &slice)));
            match group {
                Some(group) => group.push(slice),
                None => groups.push(vec![slice]),
            }
            if groups.len() > MOST_GROUPS {
                let text = format!("the images of the series are of more than {MOST_GROUPS} extents, orientations and spacings");
                return Err(VolumeError::new(VolumeErrorKind::Format, text));
            }
        }
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    let name = |slice: &Slice| {
        let image = &images[slice.file];
        if image.slices.len() == 1 { image.place.name() } else { format!("{} frame {}", image.place.name(), slice.frame + 1) }
    };
    let names = |slices: &[&Slice]| {
        let list: Vec<String> = slices.iter().take(LISTED).map(|slice| name(slice)).collect();
        format!("{}{}", list.join(", "), if slices.len() > LISTED { ", .." } else { "" })
    };
    let bad = |text: String| Err(VolumeError::new(VolumeErrorKind::Format, text));
    if let [first, second, ..] = &groups[..] {
        let others: Vec<&Slice> = groups[1..].iter().flatten().collect();
        if first.len() == second.len() {
            return bad(format!(
                "the series holds {} images of one extent, orientation and spacing and as many of others ({}); separate them",
                first.len(),
                names(&others)
            ));
        }
        let text = format!(
            "{} images of the series ({}) are of another extent, orientation or spacing than the other {}; they are passed over",
            others.len(),
            names(&others),
            first.len()
        );
        warnings.push(Warning::new(WarningKind::Geometry, text));
    }
    let Some(mut slices) = groups.into_iter().next() else {
        return bad("the series has no images".into());
    };
    let normal = cross(slices[0].directions[0], slices[0].directions[1]);
    let normal = normal.map(|x| x / length(normal));
    if !normal.iter().all(|x| x.is_finite()) {
        return bad(format!("the orientation of {} does not span a plane", name(&slices[0])));
    }
    let height = |slice: &Slice| dot(slice.position, normal);
    slices.sort_by(|a, b| height(a).total_cmp(&height(b)));
    let [first, .., last] = &slices[..] else {
        let thickness = slices[0].thickness;
        if thickness.is_none() {
            let text = format!("{} does not tell its thickness; it is taken for 1 mm", name(&slices[0]));
            warnings.push(Warning::new(WarningKind::Geometry, text));
        }
        let step = normal.map(|x| x * thickness.unwrap_or(1.0));
        return Ok(Stack { slices, step, warnings });
    };
    let distances: Vec<f64> = slices.windows(2).map(|pair| height(&pair[1]) - height(&pair[0])).collect();
    let mut sorted: Vec<f64> = distances.iter().copied().filter(|d| *d > 1e-4).collect();
    sorted.sort_by(f64::total_cmp);
    let Some(&median) = sorted.get(sorted.len() / 2) else {
        return bad(format!("all {} images of the series lie in one place; they are no volume", slices.len()));
    };
    let twice: Vec<&[Slice]> = slices.windows(2).filter(|p| height(&p[1]) - height(&p[0]) < SAME * median).collect();
    if let Some(pair) = twice.first() {
        return bad(format!(
            "{} pairs of images of the series lie in one place ({} and {} first): it holds several volumes \
             (times, echoes, reconstructions), or images twice; separate them",
            twice.len(),
            name(&pair[0]),
            name(&pair[1])
        ));
    }
    let gaps: Vec<&[Slice]> = slices.windows(2).filter(|p| height(&p[1]) - height(&p[0]) > GAP * median).collect();
    if let Some(pair) = gaps.first() {
        return bad(format!(
            "{} gaps in the series: {:.3} mm lie between {} and {}, {median:.3} mm between most others; images are missing",
            gaps.len(),
            height(&pair[1]) - height(&pair[0]),
            name(&pair[0]),
            name(&pair[1])
        ));
    }
    #[expect(clippy::cast_precision_loss, reason = "numbers of slices")]
    let count = |n: usize| n as f64;
    let step = minus(last.position, first.position).map(|x| x / count(slices.len() - 1));
    let off = |(i, slice): (usize, &Slice)| {
        let place = [0, 1, 2].map(|row| first.position[row] + count(i) * step[row]);
        length(minus(slice.position, place))
    };
    let (worst, far) = slices.iter().enumerate().map(off).enumerate().fold((0, 0.0), |most, (i, d)| if d > most.1 { (i, d) } else { most });
    if far > EVEN * length(step) {
        let text = format!(
            "the images of the series are not evenly apart: {} lies {far:.3} mm beside its place; they are taken to be \
             {:.4} mm apart",
            name(&slices[worst]),
            length(step)
        );
        warnings.push(Warning::new(WarningKind::Geometry, text));
    }
    let tilt = (dot(step, normal) / length(step)).clamp(-1.0, 1.0).acos().to_degrees();
    if tilt > 0.5 {
        let text = format!(
            "the series is sheared: its slices are stacked {tilt:.1} degrees off their normal (gantry tilt); the grid is \
             kept as it is, and networks see its voxels as if they were at right angles"
        );
        warnings.push(Warning::new(WarningKind::Geometry, text));
    }
    Ok(Stack { step, warnings, slices })
}
