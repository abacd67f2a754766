//! `organum plan --plot`: bytes alive over the tasks as a picture.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use organum::Occupancy;
use organum::volume::write_whole;

use crate::fail::Failure;

const WIDTH: usize = 720;
const HEIGHT: usize = 240;
const PAPER: [u8; 3] = [255, 255, 255];
const INK: [u8; 3] = [58, 110, 165];
const LINE: [u8; 3] = [200, 70, 60];

/// Time to the right, bytes upwards; the red line is the size of the activation buffers.
pub(crate) fn occupancy(o: &Occupancy, path: &Path) -> Result<(), Failure> {
    let columns = o.columns(WIDTH);
    let most = columns.iter().copied().max().unwrap_or(0).max(o.chunk_bytes()).max(1);
    let height = |bytes: u64| usize::try_from(u128::from(bytes) * (HEIGHT as u128 - 1) / u128::from(most)).unwrap_or(0);
    let top = height(o.chunk_bytes());
    let mut pixels = Vec::with_capacity(WIDTH * HEIGHT * 3);
    for y in (0..HEIGHT).rev() {
        for x in 0..WIDTH {
            let bytes = columns.get(x * columns.len() / WIDTH).copied().unwrap_or(0);
            pixels.extend(if y == top {
                LINE
            } else if y < height(bytes) {
                INK
            } else {
                PAPER
            });
        }
    }
    write_whole(path, "plot.png", |temporary| {
        let (width, height) = (u32::try_from(WIDTH).unwrap_or(1), u32::try_from(HEIGHT).unwrap_or(1));
        let mut encoder = png::Encoder::new(BufWriter::new(File::create(temporary)?), width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header()?.write_image_data(&pixels)?;
        Ok(())
    })
    .map_err(|e| Failure::writing(&e))
}
