//! Orientation, layout and files of the pictures.

use super::scene::PLANES;
use super::*;
use crate::shape::Extent;
use crate::volume::orient::Axes;
use crate::volume::{Legend, reorient};

fn volume<T: Copy>(extent: Extent, fill: T) -> Result<Volume<T>, VolumeError> {
    let voxels = usize::try_from(extent.voxels()).unwrap_or(0);
    Volume::new(1, extent, [3.0, 2.0, 1.0], "SAR".parse()?, vec![fill; voxels])
}

/// Place of the label's colour in the picture: mean column and row within a panel.
fn middle(picture: &Picture, columns: std::ops::Range<usize>, rows: usize) -> Option<(usize, usize)> {
    let mut found = Vec::new();
    for y in 0..rows {
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
    for d in 16..19 {
        for h in 25..30 {
            labels.data[(d * 30 + h) * 60 + 49..][..11].fill(1);
        }
    }
    let legend = Legend::new([(1, "block".into())]);
    let straight = overlay(&image, &labels, &legend, None)?;
    let scene = Scene::new(&image, best_planes(&labels), None)?;
    let row = Row::new(&scene, 0);
    assert!(row.height >= 256);
    for (panel, (_, start)) in row.panels.into_iter().enumerate() {
        // Sagittal: anterior left, superior up. Coronal: right left, superior up. Axial: right left, anterior up.
        let (x, y) = middle(&straight, start..start + row.height, GAP + row.height).unwrap_or((usize::MAX, usize::MAX));
        assert!(x < row.height / 5 && y < GAP + row.height / 5, "panel {panel}: {x}, {y}");
    }
    assert_eq!(PLANES.map(Scene::letters), [['A', 'P', 'S', 'I'], ['R', 'L', 'S', 'I'], ['R', 'L', 'A', 'P']]);
    // the middle of the block
    let places = row.panels.map(|(plane, _)| scene.place(plane));
    assert_eq!(places, ["R 54.0", "A 54.0", "S 51.0"]);
    for axes in ["LIA", "PSL", "RAS"] {
        let to: Axes = axes.parse()?;
        let turned = overlay(&reorient(&image, to), &reorient(&labels, to), &legend, None)?;
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
        [(GAP + 4, GAP + LINE + 4), (GAP + 100, picture.height() / 2 - GAP - 4)].map(|(x, y)| picture.pixel(x, y).map_or(0, |p| p[1]));
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
    let legend = Legend::default();
    let picture = overlay(&image, &labels, &legend, None)?;
    assert!(picture.height() <= 2 * 2048 && picture.width() < 6500, "{}x{}", picture.width(), picture.height());
    let other = volume(Extent::new(4, 4, 4), 0u16)?;
    assert_eq!(overlay(&image, &other, &legend, None).err().map(|e| e.kind()), Some(VolumeErrorKind::GridMismatch));
    Ok(())
}

#[test]
fn the_legend_names_the_labels_that_occur() -> Result<(), VolumeError> {
    let image = volume(Extent::new(20, 30, 60), 0.0f32)?;
    let legend = |names: &[&str]| Legend::new((1..).zip(names.iter().map(|name| (*name).to_owned())));
    let mut labels = volume(Extent::new(20, 30, 60), 0u16)?;
    let none = overlay(&image, &labels, &legend(&["a", "b"]), None)?;
    labels.data[18000..18200].fill(2);
    let one = overlay(&image, &labels, &legend(&["a", "b"]), None)?;
    let swatches = |picture: &Picture, label: u16| {
        let colour = crate::volume::legend::colour(label);
        let right = Row::new(&Scene::new(&image, [0; 3], None).expect("axes"), text::width("sagittal  S 888.8 mm")).width;
        (0..picture.height()).filter(|y| picture.pixel(right + GAP, *y) == Some(colour)).count()
    };
    assert_eq!([1, 2].map(|label| swatches(&none, label)), [0, 0]);
    assert_eq!([1, 2].map(|label| swatches(&one, label)), [0, 14]);
    // another name changes the picture, one beyond the legend has its number
    assert_ne!(one, overlay(&image, &labels, &legend(&["a", "c"]), None)?);
    assert_ne!(one, overlay(&image, &labels, &legend(&["a"]), None)?);
    // many labels take columns beside each other
    for (label, voxel) in (1..=200).zip(labels.data.iter_mut()) {
        *voxel = label;
    }
    let many = overlay(&image, &labels, &legend(&[]), None)?;
    assert!(many.width() > one.width() && many.height() >= one.height());
    Ok(())
}

#[test]
fn given_values_are_black_and_white() -> Result<(), VolumeError> {
    let mut image = volume(Extent::new(20, 30, 60), 0.0f32)?;
    for (i, value) in (0u16..).zip(&mut image.data) {
        *value = f32::from(i);
    }
    let labels = volume(Extent::new(20, 30, 60), 0u16)?;
    let [dark, bright] = [[40e3, 50e3], [-2.0, -1.0]].map(|range| overlay(&image, &labels, &Legend::default(), Some(range)));
    let at = |picture: Picture| picture.pixel(GAP + 60, GAP + 60);
    assert_eq!((at(dark?), at(bright?)), (Some([0; 3]), Some([255; 3])));
    Ok(())
}

#[test]
fn text_is_drawn_and_cut() {
    let mut picture = Picture::new(40, 20);
    picture.write(2, 1, "L\u{142}\u{4e00}", INK);
    let ink = |columns: std::ops::Range<usize>| {
        columns.flat_map(|x| (0..20).map(move |y| (x, y))).filter(|(x, y)| picture.pixel(*x, *y) != Some([0; 3])).count()
    };
    let letter = text::width("L");
    assert!(ink(2..2 + letter) > 10 && ink(2 + letter..2 + 2 * letter) > 10 && ink(2 + 2 * letter..2 + 3 * letter) > 5);
    // what lies outside is left out
    picture.write(36, 15, "WWW", INK);
    assert_eq!((text::cut("abcdef", 6), text::cut("abcdefg", 6)), ("abcdef".into(), "abcd..".into()));
}
