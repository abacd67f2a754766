//! Orientation, layout and files of the pictures.

use super::*;
use crate::shape::Extent;

fn volume<T: Copy>(extent: Extent, fill: T) -> Result<Volume<T>, VolumeError> {
    let voxels = usize::try_from(extent.voxels()).unwrap_or(0);
    Volume::new(1, extent, [3.0, 2.0, 1.0], "SAR".parse()?, vec![fill; voxels])
}

/// Where the label's colour lies in the picture: mean column and row within panel `panel`.
fn middle(picture: &Picture, columns: std::ops::Range<usize>) -> Option<(usize, usize)> {
    let mut found = Vec::new();
    for y in 0..picture.height() {
        for x in columns.clone() {
            if picture.pixel(x, y).is_some_and(|[r, g, _]| r > g) {
                found.push((x - columns.start, y));
            }
        }
    }
    let n = found.len();
    (n > 0).then(|| {
        let sum = found.iter().fold((0, 0), |s, f| (s.0 + f.0, s.1 + f.1));
        (sum.0 / n, sum.1 / n)
    })
}

#[test]
fn planes_face_the_radiologists_way_whatever_the_axes() -> Result<(), VolumeError> {
    // One labelled block at the superior, anterior, right end of an otherwise empty field of 60 mm cubed.
    let image = volume(Extent::new(20, 30, 60), 0.0f32)?;
    let mut labels = volume(Extent::new(20, 30, 60), 0u16)?;
    for d in 16..20 {
        for h in 24..30 {
            labels.data[(d * 30 + h) * 60 + 48..][..12].fill(1);
        }
    }
    let straight = overlay(&image, &labels)?;
    let side = (straight.width() - 4 * GAP) / 3;
    assert!(side >= 256 && straight.height() == side + 2 * GAP);
    for panel in 0..3 {
        let start = GAP + panel * (side + GAP);
        // Sagittal: anterior left, superior up. Coronal: right left, superior up. Axial: right left, anterior up.
        let (x, y) = middle(&straight, start..start + side).unwrap_or((usize::MAX, usize::MAX));
        assert!(x < side / 5 && y < GAP + side / 5, "panel {panel}: {x}, {y}");
    }
    for axes in ["LIA", "PSL", "RAS"] {
        let to: Axes = axes.parse()?;
        let turned = overlay(&super::super::reorient(&image, to), &super::super::reorient(&labels, to))?;
        assert_eq!(turned, straight, "{axes}");
    }
    Ok(())
}

#[test]
fn two_objects_are_cut_rather_than_the_gap_between_them() -> Result<(), VolumeError> {
    let mut labels = volume(Extent::new(3, 3, 9), 0u16)?;
    labels.data[9 * 4 + 1] = 1;
    labels.data[9 * 4 + 7] = 2;
    assert_eq!(best_planes(&labels)[..2], [1, 1]);
    assert!([1, 7].contains(&best_planes(&labels)[2]));
    assert_eq!(best_planes(&volume(Extent::new(3, 5, 9), 0u16)?), [1, 2, 4]);
    Ok(())
}

#[test]
fn attention_has_a_row_per_map_and_names_them() -> Result<(), Box<dyn std::error::Error>> {
    let image = volume(Extent::new(8, 8, 8), 1.0f32)?;
    let mut low = volume(Extent::new(2, 2, 2), 0.0f32)?;
    low.data[7] = 1.0;
    let maps = [("gate 1".to_owned(), low.clone()), ("gate 2".to_owned(), volume(Extent::new(1, 1, 1), 0.5)?)];
    let picture = attention(&image, &maps, [7, 7, 7])?;
    let single = attention(&image, &maps[..1], [7, 7, 7])?;
    assert_eq!(picture.height() - GAP, 2 * (single.height() - GAP));
    // The map's peak is superior, anterior and right: at the upper left of the sagittal plane.
    let [peak, base] =
        [(GAP + 4, GAP + 4), (GAP + 100, picture.height() / 2 - GAP - 4)].map(|(x, y)| picture.pixel(x, y).map_or(0, |p| p[1]));
    assert!(peak > base + 50, "{peak} {base}");
    assert!(attention(&image, &[], [0; 3]).is_err());
    assert!(attention(&image, &maps, [8, 0, 0]).is_err());

    let folder = tempfile::tempdir()?;
    let path = folder.path().join("attention.png");
    picture.save(&path)?;
    let reader = png::Decoder::new(io::BufReader::new(File::open(&path)?)).read_info()?;
    let texts = &reader.info().utf8_text;
    assert_eq!(texts[0].get_text()?, "gate 1\ngate 2");
    assert_eq!(reader.info().size(), (u32::try_from(picture.width())?, u32::try_from(picture.height())?));
    let missing = picture.save(folder.path().join("no/a.png"));
    assert_eq!(missing.err().map(|e| e.kind()), Some(VolumeErrorKind::NotFound));
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 1);
    Ok(())
}

#[test]
fn uneven_spacing_stays_in_bounds() -> Result<(), VolumeError> {
    let mut image = volume(Extent::new(40, 4, 4), 0.0f32)?;
    image.spacing = [50.0, 0.01, 1.0];
    let labels = image.regrid(image.extent, image.spacing, vec![0u16; 640]);
    let picture = overlay(&image, &labels)?;
    assert!(picture.height() <= 2048 + 2 * GAP && picture.width() < 6200);
    let other = volume(Extent::new(4, 4, 4), 0u16)?;
    assert_eq!(overlay(&image, &other).err().map(|e| e.kind()), Some(VolumeErrorKind::GridMismatch));
    Ok(())
}
