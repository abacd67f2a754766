//! Text in pictures: Noto Sans Mono, 16 pixels high, Latin letters.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::Picture;
use super::colour::{self, Rgb};

/// The height of a line in pixels.
pub(super) const LINE: usize = 20;
const WEIGHT: FontWeight = FontWeight::Regular;
const SIZE: RasterHeight = RasterHeight::Size16;
/// The colour of text on black.
pub(super) const INK: Rgb = [225, 225, 225];
/// The colour of text that matters less.
pub(super) const FAINT: Rgb = [160, 160, 160];

/// The width of a text in pixels.
pub(super) fn width(text: &str) -> usize {
    text.chars().count() * get_raster_width(WEIGHT, SIZE)
}

/// The text, cut to so many letters.
pub(super) fn cut(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    text.chars().take(letters.saturating_sub(2)).chain("..".chars()).collect()
}

/// The share of ink in a pixel of a text, given by its column and row: from 0 to 1. Letters that
/// the font lacks are question marks.
fn ink(text: &[char], x: usize, y: usize) -> f32 {
    let step = get_raster_width(WEIGHT, SIZE);
    let Some(&letter) = text.get(x / step) else { return 0.0 };
    let glyph = get_raster(letter, WEIGHT, SIZE).or_else(|| get_raster('?', WEIGHT, SIZE));
    f32::from(glyph.and_then(|glyph| glyph.pixel(x % step, y)).unwrap_or(0)) / 255.0
}

impl Picture {
    /// Writes a line of text whose upper left corner is (`x`, `y`), as far as it lies inside.
    pub(super) fn write(&mut self, x: usize, y: usize, text: &str, colour: Rgb) {
        let letters: Vec<char> = text.chars().collect();
        let right = self.width.min(x + width(text));
        for row in 0..SIZE.val().min(self.height.saturating_sub(y)) {
            for column in x..right {
                let pixel = &mut self.pixels[(y + row) * self.width + column];
                *pixel = colour::mix(*pixel, colour, ink(&letters, column - x, row));
            }
        }
    }

    /// Writes a line of text on what is drawn there, which is darkened around the letters.
    pub(super) fn write_over(&mut self, x: usize, y: usize, text: &str, colour: Rgb) {
        for (dx, dy) in [(0, 1), (2, 1), (1, 0), (1, 2), (0, 0), (2, 2), (0, 2), (2, 0)] {
            self.write((x + dx).saturating_sub(1), (y + dy).saturating_sub(1), text, [0; 3]);
        }
        self.write(x, y, text, colour);
    }
}
