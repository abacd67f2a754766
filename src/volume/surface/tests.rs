//! Closedness, volume, place and files of surfaces.

use std::collections::HashMap;

use super::*;
use crate::shape::Extent;
use crate::volume::{Affine, Axes, Legend, reorient};

/// A ball of label 2 and radius 9 voxels in a shell of label 1, cut by the border, off the origin.
fn balls(spacing: [f64; 3]) -> Result<Volume<u16>, VolumeError> {
    let extent = Extent::new(24, 26, 40);
    let mut data = vec![0u16; 24 * 26 * 40];
    for (at, label) in data.iter_mut().enumerate() {
        let from = |i: usize, centre: f64| (i as f64 - centre).powi(2);
        let [k, j, i] = [at / (26 * 40), at / 40 % 26, at % 40];
        let square = from(k, 12.0) + from(j, 13.0) + from(i, 20.0);
        *label = if square <= 81.0 { 2 } else { u16::from(square <= 225.0) };
    }
    Volume::new(1, extent, spacing, "SAL".parse()?, data)
}

/// Every edge is passed as often in one direction as in the other.
fn closed(surface: &Surface) -> bool {
    let mut passed: HashMap<[u32; 2], i64> = HashMap::new();
    for [a, b, c] in &surface.triangles {
        for (from, to) in [(a, b), (b, c), (c, a)] {
            let (key, way) = if from < to { ([*from, *to], 1) } else { ([*to, *from], -1) };
            *passed.entry(key).or_default() += way;
        }
    }
    !passed.is_empty() && passed.values().all(|sum| *sum == 0)
}

#[test]
fn surfaces_are_closed_and_hold_the_volume_of_their_voxels() -> Result<(), VolumeError> {
    let labels = balls([1.5, 1.0, 0.5])?;
    let legend = Legend::new([(1, "shell".into()), (2, "ball".into()), (3, "none".into())]);
    let found = surfaces(&labels, &legend)?;
    assert_eq!(found.iter().map(|s| (s.label, s.name.as_str())).collect::<Vec<_>>(), [(1, "shell"), (2, "ball")]);
    for surface in &found {
        let voxels = labels.data.iter().filter(|label| **label == surface.label).count() as f64 * labels.voxel_ml();
        assert!(closed(surface), "{}", surface.name);
        assert!((surface.ml() / voxels - 1.0).abs() < 0.02, "{}: {} of {voxels} ml", surface.name, surface.ml());
    }
    // the ball is round: all vertices within half a voxel of radius 9
    let ball = &found[1];
    let scale = [-0.5, 1.0, 1.5];
    let centre = [20.0, 13.0, 12.0];
    for vertex in &ball.vertices {
        let radius = (0..3).map(|axis| (vertex[axis] / scale[axis] - centre[axis]).powi(2)).sum::<f64>().sqrt();
        assert!((8.3..9.9).contains(&radius), "{vertex:?}: {radius}");
    }
    // the same place and the same way round, whatever the axes
    for axes in ["LIA", "PSL", "RAS", "IPR"] {
        let turned = surfaces(&reorient(&labels, axes.parse::<Axes>()?), &legend)?;
        for (a, b) in turned.iter().zip(&found) {
            assert!(closed(a) && (a.ml() / b.ml() - 1.0).abs() < 5e-3, "{axes}: {} {}", a.ml(), b.ml());
            let mean = |s: &Surface| [0, 1, 2].map(|axis| s.vertices.iter().map(|v| v[axis]).sum::<f64>() / s.vertices.len() as f64);
            assert!(mean(a).iter().zip(mean(b)).all(|(a, b)| (a - b).abs() < 0.05), "{axes}: {:?} {:?}", mean(a), mean(b));
        }
    }
    Ok(())
}

#[test]
fn single_voxels_corners_and_oblique_grids() -> Result<(), VolumeError> {
    let mut labels = Volume::new(1, Extent::new(3, 3, 3), [1.0; 3], "SAR".parse()?, vec![0u16; 27])?;
    // a voxel, two that touch at an edge, two that touch at a corner
    labels.data[0] = 1;
    (labels.data[9], labels.data[9 + 4]) = (2, 2);
    (labels.data[7], labels.data[14]) = (3, 3);
    let oblique = Affine { steps: [[0.0, 0.5, 2.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]], origin: [100.0, 2.0, 3.0] };
    for labels in [labels.clone(), labels.clone().with_affine(oblique)] {
        for surface in surfaces(&labels, &Legend::default())? {
            assert!(closed(&surface) && surface.ml() > 0.0, "{surface:?}");
        }
    }
    assert!(surfaces(&Volume { data: vec![0; 27], ..labels.clone() }, &Legend::default())?.is_empty());
    let two = Volume::new(2, Extent::new(1, 1, 1), [1.0; 3], "SAR".parse()?, vec![1u16; 2])?;
    assert_eq!(surfaces(&two, &Legend::default()).err().map(|e| e.kind()), Some(VolumeErrorKind::GridMismatch));
    Ok(())
}

#[test]
fn files_hold_the_surfaces() -> Result<(), Box<dyn std::error::Error>> {
    let labels = balls([1.0; 3])?;
    let legend = Legend::new([(1, "a/b".into()), (2, "ball".into())]);
    let found = surfaces(&labels, &legend)?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    // STL: LPS, a file of each
    let files = write_surfaces(at("stl"), &labels, &legend)?;
    assert_eq!(files, [at("stl/a_b.stl"), at("stl/ball.stl")]);
    let bytes = std::fs::read(&files[1])?;
    assert!(bytes.starts_with(b"organum SPACE=LPS ball "));
    assert_eq!(
        (bytes.len(), u32::from_le_bytes(bytes[80..84].try_into()?) as usize),
        (84 + 50 * found[1].triangles.len(), found[1].triangles.len())
    );
    let corner: Vec<f32> = bytes[96..108].chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
    let [r, a, s] = found[1].vertices[found[1].triangles[0][0] as usize];
    assert!(corner.iter().zip([-r, -a, s]).all(|(x, y)| (f64::from(*x) - y).abs() < 1e-4));
    // OBJ: an object of each, positions from 1 on over all of them
    write_surfaces(at("s.obj"), &labels, &legend)?;
    let text = std::fs::read_to_string(at("s.obj"))?;
    let count = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    assert!(text.contains("# SPACE=LPS") && text.contains("\no ball\n"));
    assert_eq!(count("v "), found.iter().map(|s| s.vertices.len()).sum::<usize>());
    assert_eq!(count("f "), found.iter().map(|s| s.triangles.len()).sum::<usize>());
    let last =
        text.lines().filter_map(|line| line.strip_prefix("f ")).flat_map(|line| line.split(' ')).filter_map(|n| n.parse().ok()).max();
    assert_eq!(last, Some(count("v ")));
    // GLB: chunks, names, bounds
    write_surfaces(at("s.glb"), &labels, &legend)?;
    let bytes = std::fs::read(at("s.glb"))?;
    let word = |at: usize| bytes[at..at + 4].try_into().map(u32::from_le_bytes);
    assert_eq!((&bytes[..4], word(4)?, word(8)? as usize, &bytes[16..20]), (&b"glTF"[..], 2, bytes.len(), &b"JSON"[..]));
    let json: serde_json::Value = serde_json::from_slice(&bytes[20..20 + word(12)? as usize])?;
    assert_eq!((&json["meshes"][1]["name"], &json["nodes"][1]["extras"]["label"]), (&"ball".into(), &2.into()));
    let most = json["accessors"][3]["max"][1].as_f64().unwrap_or(0.0);
    assert!((most - 0.0214).abs() < 0.0005, "the head end of the ball at 21.5 mm: {most}");
    assert_eq!(json["buffers"][0]["byteLength"].as_u64(), Some(word(20 + word(12)? as usize)?.into()));
    // nothing to draw is a file, too
    let none = Volume { data: vec![0; labels.data.len()], ..labels.clone() };
    write_surfaces(at("none.glb"), &none, &legend)?;
    assert!(write_surfaces(at("no"), &none, &legend)?.is_empty());
    for (name, kind) in
        [("s.stl", VolumeErrorKind::Unsupported), ("no/no/s.glb", VolumeErrorKind::NotFound), ("s.obj/x", VolumeErrorKind::NotFound)]
    {
        assert_eq!(write_surfaces(at(name), &labels, &legend).err().map(|e| e.kind()), Some(kind), "{name}");
    }
    Ok(())
}
