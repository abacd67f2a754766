//! DICOM series: the images of a folder, of a list of files or of a zip archive, put in order by
//! where they lie.

mod bytes;
mod image;
mod order;
pub(super) mod segmentation;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use self::bytes::{Place, places};
use self::image::{Image, Slice};
use self::order::Stack;
use self::segmentation::Origin;
use super::grid::from_lps;
use super::raw::room;
use super::{Grid, Scan, finite};
use crate::volume::{VolumeError, VolumeErrorKind};
use crate::warning::{Warning, WarningKind};

/// The most series that a message lists.
const LISTED: usize = 12;

/// Reads the only series of these paths, or that with this UID.
pub(super) fn read(paths: &[PathBuf], uid: Option<&str>) -> Result<Scan, VolumeError> {
    let from = paths.first().map_or(Path::new(""), PathBuf::as_path);
    let found = places(paths)?;
    let images: Vec<Option<Image>> = found.into_par_iter().map(Image::read).collect::<Result<_, _>>()?;
    let mut series: BTreeMap<String, Vec<Image>> = BTreeMap::new();
    for image in images.into_iter().flatten() {
        series.entry(image.series.clone()).or_default().push(image);
    }
    let images = pick(series, uid, from)?;
    // a slice out of a series is hardly what is meant
    let alone = paths.len() == 1 && images.len() == 1 && images[0].slices.len() == 1 && from.is_file();
    let Stack { slices, step, mut warnings } = order::stack(&images)?;
    if alone && matches!(images[0].place, Place::File(_)) {
        let text = format!("{} is a single image; for all of its series give the folder", from.display());
        warnings.push(Warning::new(WarningKind::Scan, text));
    }
    if images.iter().any(|image| image.inverted()) {
        let text = "the images are MONOCHROME1, of which low values are bright; they are inverted, as ITK does";
        warnings.push(Warning::new(WarningKind::Scan, text));
    }
    let grid = grid(&images[slices[0].file], &slices, step);
    let grid = grid.ok_or_else(|| failed(VolumeErrorKind::Format, from, "the directions of its images do not span space"))?;
    let voxels = voxels(&images, &slices, &grid, from)?;
    let place = |index: usize| {
        let plane = index / (grid.extent.h as usize * grid.extent.w as usize);
        slices.get(plane).map_or_else(String::new, |slice| format!("image {}", images[slice.file].place.name()))
    };
    let image = grid.volume(finite(voxels, from, place)?)?;
    let origin = Some(Arc::new(Origin::of(&images, &slices, step)?));
    Ok(Scan { header: grid.header(false), image, warnings, own: Some(grid.geometry(false)), origin })
}

fn failed(kind: VolumeErrorKind, path: &Path, text: impl AsRef<str>) -> VolumeError {
    VolumeError::new(kind, format!("{}: {}", path.display(), text.as_ref()))
}

/// The images of one series.
fn pick(mut series: BTreeMap<String, Vec<Image>>, uid: Option<&str>, from: &Path) -> Result<Vec<Image>, VolumeError> {
    let wanted = match (uid, series.len()) {
        (_, 0) => return Err(failed(VolumeErrorKind::Format, from, "there are no DICOM images")),
        (Some(uid), _) => uid.to_owned(),
        (None, 1) => series.keys().next().cloned().unwrap_or_default(),
        (None, n) => {
            let text = format!("{n} series are there, pick one by its UID (--series): {}", list(&series));
            return Err(failed(VolumeErrorKind::Unsupported, from, text));
        }
    };
    match series.remove(&wanted) {
        Some(images) => Ok(images),
        None => {
            let text = format!("there is no series {wanted}; there are {}", list(&series));
            Err(failed(VolumeErrorKind::NotFound, from, text))
        }
    }
}

fn list(series: &BTreeMap<String, Vec<Image>>) -> String {
    let one = |(uid, images): (&String, &Vec<Image>)| {
        let count: usize = images.iter().map(|image| image.slices.len()).sum();
        let shown: String = images[0].shown.chars().take(40).collect();
        format!("{uid} ({shown}, {count} images of {}x{})", images[0].rows, images[0].columns)
    };
    let mut text = series.iter().take(LISTED).map(one).collect::<Vec<_>>().join("; ");
    if series.len() > LISTED {
        text.push_str("; ..");
    }
    text
}

/// The grid of slices in order, `step` mm apart.
fn grid(first: &Image, slices: &[Slice], step: [f64; 3]) -> Option<Grid> {
    let slice = &slices[0];
    let [row, column] = slice.directions;
    let [between_rows, between_columns] = slice.spacing;
    let steps = [row.map(|x| x * between_columns), column.map(|x| x * between_rows), step];
    let (steps, origin) = from_lps(steps, slice.position);
    Grid::new(1, [first.columns, first.rows, u32::try_from(slices.len()).ok()?], steps, origin)
}

/// The voxels of slices in order; each file is read once.
fn voxels(images: &[Image], slices: &[Slice], grid: &Grid, from: &Path) -> Result<Vec<f32>, VolumeError> {
    let values = grid.values().ok_or_else(|| grid.too_large(from))?;
    // compressed voxels prove to be there as they are decoded
    room(from, values.saturating_mul(8))?;
    let plane = grid.extent.h as usize * grid.extent.w as usize;
    let mut data = Vec::new();
    let too_large = |e| grid.too_large(from).caused(e);
    data.try_reserve_exact(plane * slices.len()).map_err(too_large)?;
    data.resize(plane * slices.len(), 0f32);
    let mut files: BTreeMap<usize, Vec<(&Slice, &mut [f32])>> = BTreeMap::new();
    for (slice, to) in slices.iter().zip(data.chunks_exact_mut(plane)) {
        files.entry(slice.file).or_default().push((slice, to));
    }
    files.into_par_iter().try_for_each(|(file, planes)| {
        let mut decoder = images[file].voxels()?;
        planes.into_iter().try_for_each(|(slice, to)| decoder.frame(slice, to))
    })?;
    Ok(data)
}
