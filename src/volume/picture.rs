//! Pictures of results: labels over the scan, and attention maps over the scan, in three orthogonal planes.
//!
//! Planes are shown side by side as radiologists are used to: sagittal (anterior at the left, superior up), coronal and
//! axial (the patient's right at the left; superior or anterior up). Pixels are square in millimetres, and the three
//! planes share one scale.

mod colour;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use self::colour::Rgb;
use super::orient::{Axes, Direction, View};
use super::resample::{Tap, source_position};
use super::{Volume, VolumeError, VolumeErrorKind, same_grid, sizes, write_whole};

/// The longest side of the volume takes at least this many pixels, and at most [`LONGEST_PX`].
const SHORTEST_PX: f64 = 256.0;
/// Bounds the picture where the spacing is very uneven.
const LONGEST_PX: f64 = 2048.0;
/// Pixels between and around the planes.
const GAP: usize = 8;
/// Pixels across the colour bar.
const BAR: usize = 10;
/// How much of the scan a label's inside covers.
const FILL: f32 = 0.3;
/// How much of it the least and the greatest attention cover.
const VEIL: [f32; 2] = [0.15, 0.75];
/// Pixels a voxel from which outlines are two pixels wide.
const BOLD_FROM: usize = 4;
/// Voxels that the grey range is taken from, at most.
const SAMPLES: usize = 1 << 20;

/// An RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<Rgb>,
    notes: Vec<(&'static str, String)>,
}

impl Picture {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![[0; 3]; width * height], notes: Vec::new() }
    }

    /// Pixels from left to right.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels from top to bottom.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// Red, green and blue of the pixel at column `x`, row `y`, if there is one.
    #[must_use]
    pub fn pixel(&self, x: usize, y: usize) -> Option<[u8; 3]> {
        let inside = x < self.width && y < self.height;
        inside.then(|| self.pixels[y * self.width + x])
    }

    /// Writes the picture as a PNG, whole or not at all.
    ///
    /// # Errors
    /// [`VolumeErrorKind::NotFound`] (no such folder) or [`VolumeErrorKind::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), VolumeError> {
        write_whole(path.as_ref(), "picture.png", |file| {
            let mut out = BufWriter::new(File::create(file)?);
            self.encode(&mut out).map_err(|e| match e {
                png::EncodingError::IoError(e) => e,
                e => io::Error::other(e),
            })?;
            out.flush()
        })
    }

    fn encode(&self, out: &mut impl Write) -> Result<(), png::EncodingError> {
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut encoder = png::Encoder::new(out, size(self.width), size(self.height));
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (key, text) in &self.notes {
            encoder.add_itxt_chunk((*key).to_owned(), text.clone())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(self.pixels.as_flattened())?;
        writer.finish()
    }

    /// Sets the pixels of a rectangle at (`x`, `y`) from their column and row in it.
    fn fill(&mut self, x: usize, y: usize, size: (usize, usize), colour: impl Fn(usize, usize) -> Rgb) {
        for row in 0..size.1 {
            for column in 0..size.0 {
                self.pixels[(y + row) * self.width + x + column] = colour(column, row);
            }
        }
    }
}

/// Draws `labels` over `image` (its first channel) in the three planes through the labels' centroid, or through the
/// middle if there are none: grey from the 1st to the 99th percentile, labels as a tint with a solid outline. Where the
/// centroid lies between objects, an axis shows the plane with most of them instead.
///
/// Both volumes lie on one grid, along any axes.
///
/// # Errors
/// [`VolumeErrorKind::GridMismatch`] if the grids differ.
pub fn overlay(image: &Volume<f32>, labels: &Volume<u16>) -> Result<Picture, VolumeError> {
    same_grid(image, "image", labels, "labels")?;
    let scene = Scene::new(image, best_planes(labels))?;
    let mut picture = Picture::new(scene.width(), scene.height());
    scene.panels(|plane, x, y| {
        let size = scene.panel_size(plane);
        let grey = scene.grey(plane);
        let window = scene.window(labels, plane);
        let label: Vec<u16> = (0..size.0 * size.1).map(|i| window.vote(&labels.data, i % size.0, i / size.0)).collect();
        picture.fill(x, y + GAP, size, |column, row| {
            let i = row * size.0 + column;
            let back = grey(column, row);
            if label[i] == 0 {
                return back;
            }
            let edge = (1..=scene.outline).any(|by| {
                (column >= by && label[i - by] != label[i])
                    || (column + by < size.0 && label[i + by] != label[i])
                    || (row >= by && label[i - by * size.0] != label[i])
                    || (row + by < size.1 && label[i + by * size.0] != label[i])
            });
            colour::mix(back, colour::of_label(label[i]), if edge { 1.0 } else { FILL })
        });
    });
    Ok(picture)
}

/// Draws one row of three planes through the voxel `at` (D, H, W of `image`) for each named map, its values (the mean
/// over its channels) in colour from the map's least to its greatest over the grey image, with a colour bar at the end
/// of the row. The names go into the PNG's text under `Maps`, from top to bottom.
///
/// A map covers the same physical field as `image`, along any axes and with any extent, and is sampled trilinearly.
///
/// # Errors
/// [`VolumeErrorKind::GridMismatch`] if there are no maps, or `at` lies outside the image.
pub fn attention(image: &Volume<f32>, maps: &[(String, Volume<f32>)], at: [u32; 3]) -> Result<Picture, VolumeError> {
    let centre = at.map(|i| i as usize);
    if maps.is_empty() || centre.iter().zip(sizes(image.extent)).any(|(i, n)| *i >= n) {
        return Err(VolumeError::new(
            VolumeErrorKind::GridMismatch,
            format!("attention needs at least one map (there are {}) and a voxel inside {} (it is {at:?})", maps.len(), image.extent),
        ));
    }
    let scene = Scene::new(image, centre)?;
    let row_height = scene.height() - GAP;
    let mut picture = Picture::new(scene.width() + BAR + GAP, maps.len() * row_height + GAP);
    let names: Vec<&str> = maps.iter().map(|(name, _)| name.as_str()).collect();
    picture.notes.push(("Maps", names.join("\n")));
    for (row, (_, map)) in maps.iter().enumerate() {
        let mean = channel_mean(map);
        let (low, high) = mean.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)));
        let top = row * row_height + GAP;
        scene.panels(|plane, x, y| {
            let grey = scene.grey(plane);
            let window = scene.window(map, plane);
            picture.fill(x, y + top, scene.panel_size(plane), |column, row| {
                let value = unit(window.sample(&mean, column, row), low, high);
                let veil = VEIL[0] + (VEIL[1] - VEIL[0]) * value;
                colour::mix(grey(column, row), colour::of_value(value), veil)
            });
        });
        let length = row_height - GAP;
        picture.fill(scene.width(), top, (BAR, length), |_, y| colour::of_value(1.0 - y as f32 / (length - 1).max(1) as f32));
    }
    Ok(picture)
}

/// The axes in which rows run down and columns run right in every plane.
const SHOWN: [Direction; 3] = [Direction::Inferior, Direction::Posterior, Direction::Left];

/// Which shown axes a plane's rows and columns follow, and which it cuts.
#[derive(Clone, Copy, Debug)]
struct Plane {
    rows: usize,
    columns: usize,
    cuts: usize,
}

/// Sagittal, coronal, axial.
const PLANES: [Plane; 3] =
    [Plane { rows: 0, columns: 1, cuts: 2 }, Plane { rows: 0, columns: 2, cuts: 1 }, Plane { rows: 1, columns: 2, cuts: 0 }];

/// An image, where it is cut, and how large it is drawn.
#[derive(Debug)]
struct Scene<'a> {
    image: &'a Volume<f32>,
    axes: Axes,
    /// The cut of every shown axis as a share of its length.
    cuts: [f64; 3],
    /// The pixels that every shown axis takes.
    pixels: [usize; 3],
    range: (f32, f32),
    /// The width of outlines in pixels.
    outline: usize,
}

impl<'a> Scene<'a> {
    fn new(image: &'a Volume<f32>, centre: [usize; 3]) -> Result<Self, VolumeError> {
        let axes = Axes::new(SHOWN)?;
        let view = View::new(image, axes);
        let at = view.locate(centre);
        let lengths = [0, 1, 2].map(|axis| view.sizes[axis] as f64 * view.spacing[axis]);
        let longest = lengths.into_iter().fold(0.0, f64::max);
        let finest = view.spacing.into_iter().fold(f64::INFINITY, f64::min);
        let factor = (SHORTEST_PX * finest / longest).ceil().max(1.0);
        let pixel = (finest / factor).max(longest / LONGEST_PX);
        let scene = Self {
            image,
            axes,
            cuts: [0, 1, 2].map(|axis| (at[axis] as f64 + 0.5) / view.sizes[axis] as f64),
            pixels: lengths.map(|length| whole(length / pixel)),
            range: grey_range(image),
            outline: if whole(finest / pixel) >= BOLD_FROM { 2 } else { 1 },
        };
        Ok(scene)
    }

    /// Columns and rows of a plane.
    fn panel_size(&self, plane: Plane) -> (usize, usize) {
        (self.pixels[plane.columns], self.pixels[plane.rows])
    }

    fn width(&self) -> usize {
        GAP + PLANES.iter().map(|p| self.pixels[p.columns] + GAP).sum::<usize>()
    }

    fn height(&self) -> usize {
        2 * GAP + PLANES.iter().map(|p| self.pixels[p.rows]).max().unwrap_or(0)
    }

    /// Calls `draw` with every plane and the place of its corner, planes being centred upright.
    fn panels(&self, mut draw: impl FnMut(Plane, usize, usize)) {
        let mut x = GAP;
        for plane in PLANES {
            let (width, height) = self.panel_size(plane);
            draw(plane, x, (self.height() - 2 * GAP - height) / 2);
            x += width + GAP;
        }
    }

    /// A volume over the scene's field, seen through the pixels of a plane.
    fn window<T>(&self, volume: &Volume<T>, plane: Plane) -> Window {
        let view = View::new(volume, self.axes);
        let taps = |axis: usize| {
            (0..self.pixels[axis]).map(|i| Tap::at(source_position(i, view.sizes[axis], self.pixels[axis]), view.sizes[axis])).collect()
        };
        let cut = Tap::at(self.cuts[plane.cuts] * view.sizes[plane.cuts] as f64 - 0.5, view.sizes[plane.cuts]);
        Window { rows: taps(plane.rows), columns: taps(plane.columns), cut, plane, view }
    }

    fn grey(&self, plane: Plane) -> impl Fn(usize, usize) -> Rgb {
        let window = self.window(self.image, plane);
        let (low, high) = self.range;
        move |x, y| colour::grey(unit(window.sample(&self.image.data, x, y), low, high))
    }
}

/// The voxels around every pixel of a plane.
#[derive(Debug)]
struct Window {
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

    fn sample(&self, data: &[f32], x: usize, y: usize) -> f32 {
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

/// The value as a share of the range, 0 where the range is empty.
fn unit(value: f32, low: f32, high: f32) -> f32 {
    if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.0 }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what a picture may measure")]
fn whole(pixels: f64) -> usize {
    pixels.round().clamp(1.0, LONGEST_PX) as usize
}

/// The 1st and 99th percentile of the first channel, from evenly spread voxels.
fn grey_range(image: &Volume<f32>) -> (f32, f32) {
    let channel = image.channel(0).unwrap_or_default();
    let step = channel.len().div_ceil(SAMPLES).max(1);
    let mut values: Vec<f32> = channel.iter().copied().step_by(step).filter(|x| x.is_finite()).collect();
    values.sort_unstable_by(f32::total_cmp);
    let last = values.len().saturating_sub(1);
    let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
    let (low, high) = (at(last / 100), at(last - last / 100));
    // A mostly empty scan has no spread between the percentiles; its extremes have.
    if high > low { (low, high) } else { (at(0), at(last)) }
}

fn channel_mean(map: &Volume<f32>) -> Vec<f32> {
    let mut mean = map.channel(0).unwrap_or_default().to_vec();
    for channel in (1..map.channels).filter_map(|c| map.channel(c)) {
        for (sum, x) in mean.iter_mut().zip(channel) {
            *sum += x;
        }
    }
    for x in &mut mean {
        *x /= map.channels as f32;
    }
    mean
}

/// The voxel (D, H, W as stored) whose planes show the labels best.
fn best_planes(labels: &Volume<u16>) -> [usize; 3] {
    let n = sizes(labels.extent);
    let mut counts = n.map(|n| vec![0usize; n]);
    for (i, _) in labels.data.iter().take(n.iter().product()).enumerate().filter(|(_, l)| **l > 0) {
        counts[0][i / (n[1] * n[2])] += 1;
        counts[1][i / n[2] % n[1]] += 1;
        counts[2][i % n[2]] += 1;
    }
    counts.map(|planes| {
        let total: usize = planes.iter().sum();
        if total == 0 {
            return planes.len() / 2;
        }
        let moment: usize = planes.iter().enumerate().map(|(i, count)| i * count).sum();
        let centroid = (moment + total / 2) / total;
        let fullest = (0..planes.len()).max_by_key(|i| planes[*i]).unwrap_or(centroid);
        if 2 * planes[centroid] >= planes[fullest] { centroid } else { fullest }
    })
}

#[cfg(test)]
mod tests;
