//! Pictures of results: labels over the scan, and attention maps over the scan, in three orthogonal planes.
//!
//! Planes are shown side by side as radiologists are used to: sagittal (anterior at the left, superior up), coronal and
//! axial (the patient's right at the left; superior or anterior up), with the letters of the
//! directions at their edges. Pixels are square in millimetres, and the three planes share one scale.

mod colour;
mod grey;
mod page;
mod report;
mod scene;
mod text;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use self::colour::Rgb;
use self::scene::{Row, Scene};
use self::text::{INK, LINE};
use super::{Volume, VolumeError, VolumeErrorKind, sizes, write_whole};

pub use self::grey::SOFT_TISSUE;
pub use self::page::overlay;
pub use self::report::{ReportText, report};

/// The longest side of the volume takes at least this many pixels, and at most [`LONGEST_PX`].
const SHORTEST_PX: f64 = 256.0;
/// Bounds the picture where the spacing is very uneven.
const LONGEST_PX: f64 = 2048.0;
/// Pixels between and around the planes.
const GAP: usize = 8;
/// Pixels across the colour bar.
const BAR: usize = 10;
/// The share of the scan that the least and the greatest attention cover.
const VEIL: [f32; 2] = [0.15, 0.75];

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

/// Draws for each named map its name and three planes through the voxel `at` (D, H, W of `image`), its values (the mean
/// over its channels) in colour from the map's least to its greatest over the grey image, with a colour bar and these
/// two values at the end of the row. The names also go into the PNG's text under `Maps`, from top to bottom.
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
    let scene = Scene::new(image, centre, None)?;
    let row = Row::new(&scene, 0);
    let height = LINE + row.height + GAP;
    let mut picture = Picture::new(row.width + BAR + 6 + text::width("-0.0e-38") + GAP, maps.len() * height + GAP);
    let names: Vec<&str> = maps.iter().map(|(name, _)| name.as_str()).collect();
    picture.notes.push(("Maps", names.join("\n")));
    for (n, (name, map)) in maps.iter().enumerate() {
        let mean = channel_mean(map);
        let (low, high) = mean.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)));
        let top = GAP + n * height + LINE;
        picture.write(GAP, top - LINE, &text::cut(name, row.width / text::width("n")), INK);
        for (plane, x) in row.panels {
            let share = scene.shares(plane);
            let window = scene.window(map, plane);
            picture.fill(x, top, scene.panel_size(plane), |column, row| {
                let value = unit(window.sample(&mean, column, row), low, high);
                let veil = VEIL[0] + (VEIL[1] - VEIL[0]) * value;
                colour::mix(colour::grey(share(column, row)), colour::of_value(value), veil)
            });
            scene.write_letters(&mut picture, plane, x, top);
        }
        let length = row.height;
        picture.fill(row.width, top, (BAR, length), |_, y| colour::of_value(1.0 - y as f32 / (length - 1).max(1) as f32));
        let x = row.width + BAR + 6;
        picture.write(x, top, &scene::number(high), INK);
        picture.write(x, top + length.saturating_sub(LINE - 2), &scene::number(low), INK);
    }
    Ok(picture)
}

/// The value as a share of the range, 0 where the range is empty.
fn unit(value: f32, low: f32, high: f32) -> f32 {
    if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.0 }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what a picture may measure")]
fn whole(pixels: f64) -> usize {
    pixels.round().clamp(1.0, LONGEST_PX) as usize
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
