//! A scan with its labels: three planes, slices side by side, and a legend.

use super::scene::{PLANES, Plane, Row, Scene};
use super::text::{self, FAINT, INK, LINE};
use super::{GAP, Picture, best_planes, colour};
use crate::volume::{Legend, Volume, VolumeError, same_grid, sizes};

/// Pixels that a slice in the montage is wide, or more.
const TILE: usize = 150;
/// Slices in a line of the montage, at most.
const ACROSS: usize = 8;
/// Letters of a name in the legend, at most.
const LETTERS: usize = 36;
/// The side of a colour in the legend.
const SWATCH: usize = 14;

/// Draws `labels` over `image` (its first channel): the three planes through the labels' centroid, or
/// through the middle if there are none, then slices from one end of the labels to the other, and at
/// the right the number, name and colour of the labels that occur. Where the centroid lies between
/// objects, an axis shows the plane with most of them instead. Labels are a tint with a solid outline.
///
/// `range` holds the values that are black and white; `None` stands for soft tissue where values
/// look like Hounsfield units, else for percentiles. Both volumes lie on one grid, along any axes.
///
/// # Errors
/// [`crate::volume::VolumeErrorKind::GridMismatch`] if the grids differ.
pub fn overlay(image: &Volume<f32>, labels: &Volume<u16>, legend: &Legend, range: Option<[f32; 2]>) -> Result<Picture, VolumeError> {
    same_grid(image, "image", labels, "labels")?;
    let scene = Scene::new(image, best_planes(labels), range)?;
    let row = Row::new(&scene, text::width("sagittal  S 888.8 mm"));
    let montage = Montage::new(&scene, labels, row.width);
    let caption = GAP + row.height + 2;
    let top = caption + 2 * LINE + GAP;
    let scale = top + montage.rows() * (montage.size().1 + GAP);
    let height = scale + LINE + GAP;
    let entries = entries(labels, legend);
    let lines = ((height - 2 * GAP) / LINE).max(1);
    let longest = entries.iter().map(|(_, name)| text::width(name)).max().unwrap_or(0);
    let column = SWATCH + 6 + longest + GAP;
    let mut picture = Picture::new(row.width + GAP + entries.len().div_ceil(lines) * column, height);

    for (plane, x) in row.panels {
        scene.draw(&mut picture, labels, plane, x, GAP);
        scene.write_letters(&mut picture, plane, x, GAP);
        picture.write(x, caption, &format!("{}  {} mm", plane.name, scene.place(plane)), INK);
    }
    scene.write_scale(&mut picture, GAP, caption + LINE, row.width / 4);
    for (n, at) in montage.cuts.iter().enumerate() {
        let (width, height) = montage.size();
        let x = GAP + n % montage.across * (width + GAP);
        let y = top + n / montage.across * (height + GAP);
        let slice = montage.scene.cut(montage.plane.cuts, *at);
        slice.draw(&mut picture, labels, montage.plane, x, y);
        picture.write_over(x + 3, y + 1, &slice.place(montage.plane), INK);
    }
    montage.scene.write_scale(&mut picture, GAP, scale, row.width / 4);
    for (n, (label, name)) in entries.iter().enumerate() {
        let (x, y) = (row.width + GAP + n / lines * column, GAP + n % lines * LINE);
        if *label > 0 {
            picture.fill(x, y + 1, (SWATCH, SWATCH), |_, _| colour::of_label(*label));
        }
        picture.write(x + SWATCH + 6, y, name, if *label > 0 { INK } else { FAINT });
    }
    Ok(picture)
}

/// The labels that occur with what the legend says of them, in the order of their numbers.
fn entries(labels: &Volume<u16>, legend: &Legend) -> Vec<(u16, String)> {
    let mut seen = vec![false; usize::from(u16::MAX) + 1];
    labels.data.iter().for_each(|label| seen[usize::from(*label)] = true);
    let entry = |label: u16| (label, text::cut(&format!("{label} {}", legend.name(label)), LETTERS));
    let all: Vec<(u16, String)> = (1..=u16::MAX).filter(|label| seen[usize::from(*label)]).map(entry).collect();
    if all.is_empty() { vec![(0, "no labels".into())] } else { all }
}

/// Slices side by side.
struct Montage<'a> {
    scene: Scene<'a>,
    plane: Plane,
    /// Places of the slices along the shown axis.
    cuts: Vec<usize>,
    across: usize,
}

impl<'a> Montage<'a> {
    /// Slices across the axis with the coarsest voxels, from the first to the last that has labels,
    /// in lines of `width` pixels.
    fn new(scene: &Scene<'a>, labels: &Volume<u16>, width: usize) -> Self {
        // the axial plane if spacings are alike
        let coarser = |best: Plane, plane: Plane| {
            let [old, new] = [best, plane].map(|p| scene.view.spacing[p.cuts]);
            if new > 1.01 * old { plane } else { best }
        };
        let plane = PLANES.into_iter().rev().reduce(coarser).unwrap_or(PLANES[2]);
        let [first, last] = ends(labels).map(|corner| scene.view.locate(corner)[plane.cuts]);
        let (first, last) = (first.min(last), first.max(last));
        let planes = last - first + 1;
        let across = ((width - GAP) / (TILE + GAP)).clamp(2, ACROSS);
        let tile = (width - GAP) / across - GAP;
        let (columns, rows) = scene.panel_size(plane);
        // no taller than one and a half times its width
        let shrink = (tile as f64 / columns as f64).min(1.5 * tile as f64 / rows as f64);
        let count = planes.min(if planes > across { 2 * across } else { across });
        let cuts = (0..count).map(|i| first + (2 * i + 1) * planes / (2 * count)).collect();
        Self { scene: scene.sized(scene.pixel / shrink), plane, cuts, across }
    }

    fn size(&self) -> (usize, usize) {
        self.scene.panel_size(self.plane)
    }

    fn rows(&self) -> usize {
        self.cuts.len().div_ceil(self.across)
    }
}

/// The first and the last voxel (D, H, W as stored) of the box around all labels; of the map, if
/// there are none.
fn ends(labels: &Volume<u16>) -> [[usize; 3]; 2] {
    let n = sizes(labels.extent);
    let (mut first, mut last) = (n, [0; 3]);
    for (i, _) in labels.data.iter().take(n.iter().product()).enumerate().filter(|(_, l)| **l > 0) {
        for (axis, at) in [i / (n[1] * n[2]), i / n[2] % n[1], i % n[2]].into_iter().enumerate() {
            first[axis] = first[axis].min(at);
            last[axis] = last[axis].max(at);
        }
    }
    if first == n { [[0; 3], n.map(|n| n - 1)] } else { [first, last] }
}
