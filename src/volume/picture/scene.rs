//! A scan cut in three planes, and the pixels of each.

use super::colour;
use super::text::{FAINT, INK, LINE};
use super::{GAP, LONGEST_PX, Picture, SHORTEST_PX, grey, text, unit, whole};
use crate::volume::orient::{Axes, Direction, View};
use crate::volume::resample::{Tap, source_position};
use crate::volume::{Volume, VolumeError};

/// The share of the scan that a label's inside covers.
const FILL: f32 = 0.35;
/// Pixels a voxel from which outlines are two pixels wide.
const BOLD_FROM: usize = 4;

/// The axes in which rows run down and columns run right in every plane.
const SHOWN: [Direction; 3] = [Direction::Inferior, Direction::Posterior, Direction::Left];

/// The shown axes of a plane's rows and columns, and the one that it cuts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) cuts: usize,
    pub(super) name: &'static str,
}

/// The planes from left to right.
pub(super) const PLANES: [Plane; 3] = [
    Plane { rows: 0, columns: 1, cuts: 2, name: "sagittal" },
    Plane { rows: 0, columns: 2, cuts: 1, name: "coronal" },
    Plane { rows: 1, columns: 2, cuts: 0, name: "axial" },
];

/// An image, where it is cut, and how large it is drawn.
#[derive(Clone, Debug)]
pub(super) struct Scene<'a> {
    image: &'a Volume<f32>,
    axes: Axes,
    pub(super) view: View,
    /// The voxel along every shown axis at which it is cut.
    pub(super) at: [usize; 3],
    /// The pixels that every shown axis takes.
    pub(super) pixels: [usize; 3],
    /// The side of a pixel in mm.
    pub(super) pixel: f64,
    /// The values that are black and white.
    pub(super) range: [f32; 2],
}

impl<'a> Scene<'a> {
    /// The image through the voxel `centre` (D, H, W as stored); without a range that of its values.
    pub(super) fn new(image: &'a Volume<f32>, centre: [usize; 3], range: Option<[f32; 2]>) -> Result<Self, VolumeError> {
        let axes = Axes::new(SHOWN)?;
        let view = View::new(image, axes);
        let finest = view.spacing.into_iter().fold(f64::INFINITY, f64::min);
        let longest = (0..3).map(|axis| view.sizes[axis] as f64 * view.spacing[axis]).fold(0.0, f64::max);
        let factor = (SHORTEST_PX * finest / longest).ceil().max(1.0);
        let scene = Self {
            image,
            axes,
            view,
            at: view.locate(centre),
            pixels: [1; 3],
            pixel: 1.0,
            range: range.unwrap_or_else(|| grey::range(image)),
        };
        Ok(scene.sized((finest / factor).max(longest / LONGEST_PX)))
    }

    /// The same scene with pixels of so many mm.
    pub(super) fn sized(&self, pixel: f64) -> Self {
        let pixels = [0, 1, 2].map(|axis| whole(self.view.sizes[axis] as f64 * self.view.spacing[axis] / pixel));
        Self { pixels, pixel, ..self.clone() }
    }

    /// The same scene cut elsewhere along a shown axis.
    pub(super) fn cut(&self, axis: usize, at: usize) -> Self {
        let mut scene = self.clone();
        scene.at[axis] = at;
        scene
    }

    /// Columns and rows of a plane.
    pub(super) fn panel_size(&self, plane: Plane) -> (usize, usize) {
        (self.pixels[plane.columns], self.pixels[plane.rows])
    }

    /// The place where a plane cuts the patient, such as `R 26.3`, in mm; on an oblique grid where the voxel
    /// that all three planes share lies.
    pub(super) fn place(&self, plane: Plane) -> String {
        let axis = SHOWN[plane.cuts].world_axis();
        let mm = self.view.affine(self.image.affine()).apply(self.at.map(|i| i as f64))[axis];
        let direction = Direction::along(axis, mm > -0.05);
        format!("{} {:.1}", direction.letter(), mm.abs())
    }

    /// The directions at the left, the right, the top and the bottom of a plane.
    pub(super) fn letters(plane: Plane) -> [char; 4] {
        let (right, bottom) = (SHOWN[plane.columns], SHOWN[plane.rows]);
        [right.opposite(), right, bottom.opposite(), bottom].map(Direction::letter)
    }

    /// A volume over the scene's field, seen through the pixels of a plane.
    pub(super) fn window<T>(&self, volume: &Volume<T>, plane: Plane) -> Window {
        let view = View::new(volume, self.axes);
        let taps = |axis: usize| {
            let tap = |i: usize| Tap::at(source_position(i, view.sizes[axis], self.pixels[axis]), view.sizes[axis]);
            (0..self.pixels[axis]).map(tap).collect()
        };
        let share = (self.at[plane.cuts] as f64 + 0.5) / self.view.sizes[plane.cuts] as f64;
        let cut = Tap::at(share * view.sizes[plane.cuts] as f64 - 0.5, view.sizes[plane.cuts]);
        Window { rows: taps(plane.rows), columns: taps(plane.columns), cut, plane, view }
    }

    /// The value of the image at each pixel of a plane, as a share of the range.
    pub(super) fn shares(&self, plane: Plane) -> impl Fn(usize, usize) -> f32 {
        let window = self.window(self.image, plane);
        let [low, high] = self.range;
        move |x, y| unit(window.sample(&self.image.data, x, y), low, high)
    }

    /// The label at each pixel of a plane, row by row.
    pub(super) fn labels(&self, labels: &Volume<u16>, plane: Plane) -> Vec<u16> {
        let (columns, rows) = self.panel_size(plane);
        let window = self.window(labels, plane);
        (0..columns * rows).map(|i| window.vote(&labels.data, i % columns, i / columns)).collect()
    }

    /// Draws a plane of the image with labels, as a tint with a solid outline.
    pub(super) fn draw(&self, picture: &mut Picture, labels: &Volume<u16>, plane: Plane, x: usize, y: usize) {
        let size = self.panel_size(plane);
        let share = self.shares(plane);
        let label = self.labels(labels, plane);
        let finest = self.view.spacing.into_iter().fold(f64::INFINITY, f64::min);
        let outline = if whole(finest / self.pixel) >= BOLD_FROM { 2 } else { 1 };
        picture.fill(x, y, size, |column, row| {
            let i = row * size.0 + column;
            let back = colour::grey(share(column, row));
            if label[i] == 0 {
                return back;
            }
            let edge = (1..=outline).any(|by| {
                (column >= by && label[i - by] != label[i])
                    || (column + by < size.0 && label[i + by] != label[i])
                    || (row >= by && label[i - by * size.0] != label[i])
                    || (row + by < size.1 && label[i + by * size.0] != label[i])
            });
            colour::mix(back, colour::of_label(label[i]), if edge { 1.0 } else { FILL })
        });
    }

    /// Writes the directions of the patient at the edges of a plane.
    pub(super) fn write_letters(&self, picture: &mut Picture, plane: Plane, x: usize, y: usize) {
        let (width, height) = self.panel_size(plane);
        let letter = text::width("R");
        let [left, right, top, bottom] = Self::letters(plane).map(|c| c.to_string());
        let (middle, centre) = (y + height.saturating_sub(LINE) / 2, x + width.saturating_sub(letter) / 2);
        picture.write_over(x + 3, middle, &left, INK);
        picture.write_over(x + width.saturating_sub(letter + 3), middle, &right, INK);
        picture.write_over(centre, y + 1, &top, INK);
        picture.write_over(centre, y + height.saturating_sub(LINE - 1), &bottom, INK);
    }

    /// Draws a bar of a round length no longer than `most` pixels with its length, and beside it the
    /// values that are black and white; pixels up to its end.
    pub(super) fn write_scale(&self, picture: &mut Picture, x: usize, y: usize, most: usize) {
        let (mm, pixels) = self.scale(most);
        picture.fill(x, y + 8, (pixels.min(picture.width - x), 4), |_, _| INK);
        let [low, high] = self.range;
        let text = format!("{mm} mm    values {} to {}", number(low), number(high));
        picture.write(x + pixels + 6, y, &text, FAINT);
    }

    /// A round length in mm that takes `most` pixels at most, or else the least, and its pixels.
    fn scale(&self, most: usize) -> (f64, usize) {
        let fits = |mm: &f64| mm / self.pixel <= most as f64;
        let mut round = (-2..4).flat_map(|power| [1.0, 2.0, 5.0].map(|n| n * 10f64.powi(power)));
        let mm = round.rfind(fits).unwrap_or(0.01);
        (mm, whole(mm / self.pixel).min(most))
    }
}

/// A value of a scan for people: three digits or more.
pub(super) fn number(value: f32) -> String {
    match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

/// The voxels around every pixel of a plane.
#[derive(Debug)]
pub(super) struct Window {
    rows: Vec<Tap>,
    columns: Vec<Tap>,
    cut: Tap,
    plane: Plane,
    view: View,
}

impl Window {
    /// The eight voxels around the pixel, as positions in the channel with weights that add up to 1.
    fn around(&self, x: usize, y: usize) -> [(usize, f32); 8] {
        let taps = [(self.plane.rows, self.rows[y]), (self.plane.columns, self.columns[x]), (self.plane.cuts, self.cut)];
        std::array::from_fn(|corner| {
            taps.iter().enumerate().fold((0, 1.0), |(position, weight), (bit, (axis, tap))| {
                let (i, share) = if corner >> bit & 1 == 0 { (tap.first, 1.0 - tap.weight) } else { (tap.second, tap.weight) };
                (position + self.view.offset(*axis, i), weight * share)
            })
        })
    }

    pub(super) fn sample(&self, data: &[f32], x: usize, y: usize) -> f32 {
        self.around(x, y).iter().map(|(position, weight)| data[*position] * weight).sum()
    }

    /// The label with the greatest weight around the pixel: smooth outlines that stay within half a voxel.
    fn vote(&self, data: &[u16], x: usize, y: usize) -> u16 {
        let around = self.around(x, y).map(|(position, weight)| (data[position], weight));
        let total = |label: u16| around.iter().filter(|(l, _)| *l == label).map(|(_, w)| w).sum::<f32>();
        around
            .iter()
            .fold((0, total(0)), |best, (label, _)| {
                let weight = total(*label);
                if weight > best.1 { (*label, weight) } else { best }
            })
            .0
    }
}

/// The place of the panels of the three planes side by side.
pub(super) struct Row {
    /// Each plane and its left edge.
    pub(super) panels: [(Plane, usize); 3],
    /// The left edge of what follows.
    pub(super) width: usize,
    /// The height of the tallest.
    pub(super) height: usize,
}

impl Row {
    /// Planes in columns that are at least so wide, tops in one line.
    pub(super) fn new(scene: &Scene<'_>, least: usize) -> Self {
        let mut width = GAP;
        let panels = PLANES.map(|plane| {
            let x = width;
            width += scene.panel_size(plane).0.max(least) + GAP;
            (plane, x)
        });
        let height = PLANES.iter().map(|p| scene.panel_size(*p).1).max().unwrap_or(0);
        Self { panels, width, height }
    }
}
