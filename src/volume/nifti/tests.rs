//! Reading and writing, against files built byte by byte.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::volume::Affine;

type Outcome = Result<(), Box<dyn Error>>;

fn kind<T>(result: Result<T, VolumeError>) -> Option<VolumeErrorKind> {
    result.err().map(|e| e.kind())
}

/// A little-endian NIfTI-1 header with a RAS sform of 2, 3 and 4 mm.
fn header(dim: &[i16], datatype: i16, bits: i16) -> Vec<u8> {
    let mut h = vec![0u8; 352];
    let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &348i32.to_le_bytes());
    put(40, &i16::try_from(dim.len()).unwrap_or(0).to_le_bytes());
    for (i, n) in dim.iter().enumerate() {
        put(42 + 2 * i, &n.to_le_bytes());
    }
    put(70, &datatype.to_le_bytes());
    put(72, &bits.to_le_bytes());
    for (i, zoom) in [1f32, 2.0, 3.0, 4.0].iter().enumerate() {
        put(76 + 4 * i, &zoom.to_le_bytes());
    }
    put(108, &352f32.to_le_bytes());
    put(123, &[10]);
    put(254, &2i16.to_le_bytes());
    for (row, zoom) in [2f32, 3.0, 4.0].iter().enumerate() {
        put(280 + 16 * row + 4 * row, &zoom.to_le_bytes());
        put(280 + 16 * row + 12, &(-7.5f32).to_le_bytes());
    }
    put(344, b"n+1\0");
    h
}

fn with(mut header: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    header[at..at + bytes.len()].copy_from_slice(bytes);
    header
}

fn file(folder: &Path, name: &str, header: &[u8], voxels: &[u8]) -> io::Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, [header, voxels].concat())?;
    Ok(path)
}

#[test]
fn slope_and_intercept_and_axes() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut h = header(&[2, 1, 3], 4, 16);
    h = with(h, 112, &0.5f32.to_le_bytes());
    h = with(h, 116, &10f32.to_le_bytes());
    let voxels: Vec<u8> = [0i16, 1, 2, 3, -4, 5].iter().flat_map(|x| x.to_le_bytes()).collect();
    let scan = read(file(folder.path(), "a.nii", &h, &voxels)?)?;
    assert_eq!(scan.image.extent, Extent::new(3, 1, 2));
    assert_eq!(scan.image.axes.to_string(), "SAR");
    assert_eq!(scan.image.spacing, [4.0, 3.0, 2.0]);
    assert_eq!(scan.image.data, [10.0, 10.5, 11.0, 11.5, 8.0, 12.5]);
    Ok(())
}

#[test]
fn every_real_datatype_in_both_byte_orders() -> Outcome {
    let folder = tempfile::tempdir()?;
    macro_rules! check {
        ($($t:ty => $code:literal),*) => {$(
            let bits = i16::try_from(size_of::<$t>() * 8)?;
            let little = header(&[3, 1], $code, bits);
            let values = [1 as $t, 2 as $t, 120 as $t];
            let voxels: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let read_back = read(file(folder.path(), "little.nii", &little, &voxels)?)?;
            assert_eq!(read_back.image.data, [1.0, 2.0, 120.0], stringify!($t));

            let mut big = little.clone();
            for at in [40, 42, 44, 70, 72, 254] {
                big[at..at + 2].reverse();
            }
            for at in (76..124).step_by(4).chain((280..328).step_by(4)).chain([0]).filter(|at| *at != 120) {
                big[at..at + 4].reverse();
            }
            let voxels: Vec<u8> = values.iter().flat_map(|x| x.to_be_bytes()).collect();
            let path = file(folder.path(), "big.nii", &big, &voxels)?;
            let scan = read(path)?;
            assert_eq!(scan.image.data, [1.0, 2.0, 120.0], stringify!($t));
            assert_eq!(scan.image.spacing, [4.0, 3.0, 2.0]);
        )*};
    }
    check!(u8 => 2, i16 => 4, i32 => 8, f32 => 16, f64 => 64, i8 => 256, u16 => 512, u32 => 768, i64 => 1024, u64 => 1280);
    Ok(())
}

#[test]
fn damaged_files_are_named_errors() -> Outcome {
    use VolumeErrorKind::{Format, NonFinite, NotFound, Unsupported};
    let folder = tempfile::tempdir()?;
    let f = folder.path();
    let plain = header(&[2, 1, 2], 2, 8);
    assert_eq!(kind(read(f.join("none.nii.gz"))), Some(NotFound));
    let cases: [(&str, Vec<u8>, &[u8], VolumeErrorKind); 14] = [
        ("magic", with(plain.clone(), 344, b"abc\0"), &[0; 4], Format),
        ("not nifti", b"\x89PNG and so on".to_vec(), &[], Format),
        ("empty", vec![], &[], Format),
        ("short header", plain[..200].to_vec(), &[], Format),
        ("short voxels", plain.clone(), &[0; 3], Format),
        ("nifti 2 cut", with(plain.clone(), 0, &540i32.to_le_bytes()), &[0; 4], Format),
        ("complex", header(&[2, 1, 2], 32, 64), &[0; 32], Unsupported),
        ("bits", header(&[2, 1, 2], 2, 64), &[0; 32], Format),
        ("no extent", header(&[2, 0, 2], 2, 8), &[0; 4], Format),
        ("huge", header(&[32767, 32767, 32767], 64, 64), &[0; 4], Format),
        ("5d", header(&[1, 1, 1, 2, 2], 2, 8), &[0; 4], Unsupported),
        ("affine", with(plain.clone(), 280, &[0; 48]), &[0; 4], Format),
        ("offset", with(plain.clone(), 108, &f32::NAN.to_le_bytes()), &[0; 4], Format),
        ("infinite", header(&[2, 1], 16, 32), &[0, 0, 0, 0, 0, 0, 0x80, 0x7f], NonFinite),
    ];
    for (name, header, voxels, want) in cases {
        let path = file(f, "case.nii", &header, voxels)?;
        let error = read(&path).err().ok_or(format!("{name} was accepted"))?;
        assert_eq!(error.kind(), want, "{name}: {error}");
        assert!(error.to_string().contains("case.nii"), "{error}");
    }
    let error = read(f.join("case.nii")).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("1 voxels") && error.contains("(1, 0, 0)"), "{error}");
    Ok(())
}

#[test]
fn truncated_and_corrupt_gzip() -> Outcome {
    let folder = tempfile::tempdir()?;
    let whole = file(folder.path(), "a.nii", &header(&[8, 8, 8], 2, 8), &[3; 512])?;
    let (h, labels) = read_labels(whole)?;
    let path = folder.path().join("a.nii.gz");
    write_labels(&path, &h, &labels)?;
    let bytes = fs::read(&path)?;
    for cut in [3, 12, bytes.len() / 2, bytes.len() - 3] {
        fs::write(&path, &bytes[..cut])?;
        assert_eq!(kind(read(&path)), Some(VolumeErrorKind::Format), "{cut} of {}", bytes.len());
    }
    let mut checksum = bytes.clone();
    checksum[bytes.len() - 6] ^= 1;
    fs::write(&path, checksum)?;
    assert_eq!(kind(read(&path)), Some(VolumeErrorKind::Format));
    // The content decides, not the name.
    let misnamed = folder.path().join("b.nii");
    fs::write(&misnamed, bytes)?;
    assert_eq!(read_labels(misnamed)?.1, labels);
    Ok(())
}

#[test]
fn header_and_image_pairs() -> Outcome {
    let folder = tempfile::tempdir()?;
    let h = with(with(header(&[2, 2, 1], 2, 8), 344, b"ni1\0"), 108, &1f32.to_le_bytes());
    let path = file(folder.path(), "pair.v1.hdr", &h, &[])?;
    assert_eq!(kind(read(&path)), Some(VolumeErrorKind::NotFound));
    let image = file(folder.path(), "pair.v1.img", &[], &[9, 1, 2, 3, 4])?;
    assert_eq!(read(path)?.image.data, [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(read(image)?.image.data, [1.0, 2.0, 3.0, 4.0]);
    Ok(())
}

#[test]
fn channels_and_labels() -> Outcome {
    let folder = tempfile::tempdir()?;
    let f = folder.path();
    let scan = read(file(f, "a.nii", &header(&[2, 1, 1, 3], 2, 8), &[0, 1, 2, 3, 4, 5])?)?;
    assert_eq!((scan.image.channels, scan.image.extent), (3, Extent::new(1, 1, 2)));
    assert_eq!(scan.image.channel(2), Some(&[4.0, 5.0][..]));
    // The labels of a scan with channels are 3D.
    let labels = Volume::new(1, Extent::new(1, 1, 2), [4.0, 3.0, 2.0], scan.image.axes, vec![1, 300])?;
    let labels = labels.with_affine(*scan.image.affine());
    write_labels(f.join("l.nii"), &scan.header, &labels)?;
    let (h, back) = read_labels(f.join("l.nii"))?;
    assert_eq!((back, h.datatype, &h.dim[..4]), (labels, 512, &[3, 2, 1, 1][..]));
    let fractions: Vec<u8> = [0.5f32, -1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    for skip in [0, 4] {
        let path = file(f, "bad.nii", &header(&[1, 1], 16, 32), &fractions[skip..skip + 4])?;
        assert_eq!(kind(read_labels(path)), Some(VolumeErrorKind::Format));
    }
    Ok(())
}

#[test]
fn voxels_in_memory_are_read_as_those_of_a_file() -> Outcome {
    let folder = tempfile::tempdir()?;
    // sform and pixdim disagree, and the image is 2D with channels
    let bytes = with(header(&[2, 1, 1, 3], 2, 8), 80, &9f32.to_le_bytes());
    let of_file = read(file(folder.path(), "a.nii", &bytes, &[0, 1, 2, 3, 4, 5])?)?;
    let voxels: Vec<f32> = (0u8..6).map(f32::from).collect();
    let in_memory = scan(&bytes[..348], voxels.clone())?;
    assert_eq!(in_memory.image, of_file.image);
    assert_eq!(in_memory.warnings.len(), of_file.warnings.len());
    assert!(!of_file.warnings.is_empty());
    assert_eq!(crate::Scan::from(&in_memory).header, crate::Scan::from(&of_file).header);

    assert_eq!(kind(scan(&bytes, voxels.clone())), Some(VolumeErrorKind::Format));
    assert_eq!(kind(scan(&[0; 348], voxels.clone())), Some(VolumeErrorKind::Format));
    assert_eq!(kind(scan(&bytes[..348], voxels[1..].to_vec())), Some(VolumeErrorKind::GridMismatch));
    let refused = scan(&bytes[..348], vec![0.0, 1.0, 2.0, 3.0, 4.0, f32::NAN]).err().map(|e| e.to_string());
    assert!(refused.is_some_and(|text| text.contains("voxel (1, 0, 0)")));
    Ok(())
}

#[test]
fn voxels_of_no_file_have_a_header_to_write_by() -> Outcome {
    let folder = tempfile::tempdir()?;
    let affine = Affine { steps: [[0.0, 0.1, 3.0], [0.0, -2.0, 0.0], [1.5, 0.0, 0.0]], origin: [1.0, 2.0, 3.0] };
    for planar in [false, true] {
        let depth = if planar { 1 } else { 2 };
        let extent = Extent::new(depth, 3, 4);
        let image = Volume::on_affine(1, extent, affine, vec![0.5; depth as usize * 12])?;
        let scan = Scan::of_volume(image, planar)?;
        assert_eq!((scan.header.dim[0], crate::Scan::from(&scan).header.planar), (if planar { 2 } else { 3 }, planar));
        let labels = scan.image.regrid(extent, scan.image.spacing, vec![3u16; depth as usize * 12]);
        let path = folder.path().join("labels.nii");
        write_labels(&path, &scan.header, &labels)?;
        let (_, back) = read_labels(&path)?;
        assert!(back.affine().distance(&affine, [2, 3, 4]) < 1e-5);
        assert_eq!((back.data, back.extent), (labels.data, extent));
    }
    let hole = Volume::on_affine(1, Extent::new(1, 1, 2), affine, vec![0.5, f32::INFINITY])?;
    let refused = Scan::of_volume(hole, false).err();
    assert!(refused.is_some_and(|e| e.kind() == VolumeErrorKind::NonFinite && e.to_string().contains("column 1")));
    Ok(())
}

#[test]
fn written_files_keep_the_grid() -> Outcome {
    let folder = tempfile::tempdir()?;
    let f = folder.path();
    let scan = read(file(f, "in.nii", &header(&[2, 3, 4], 2, 8), &[7; 24])?)?;
    let map = scan.image.regrid(scan.image.extent, scan.image.spacing, vec![0.25f32; 24]);
    // Names with dots are where the crate's writer goes wrong.
    for name in ["sub-1.run.2.nii", "sub-1.run.2.nii.gz", "map.nii"] {
        let path = f.join(name);
        write_maps(&path, &scan.header, &map)?;
        let back = read(&path)?;
        assert_eq!(back.image, map, "{name}");
        assert_eq!(back.header.dim[..5], [4, 2, 3, 4, 1]);
        assert_eq!(back.header.srow_x, scan.header.srow_x);
        assert_eq!(back.header.xyzt_units, 10);
    }
    assert_eq!(fs::read_dir(f)?.count(), 4, "temporary files remain");
    Ok(())
}

#[test]
fn a_failed_write_leaves_nothing() -> Outcome {
    let folder = tempfile::tempdir()?;
    let f = folder.path();
    let (h, labels) = read_labels(file(f, "in.nii", &header(&[2, 3, 4], 2, 8), &[7; 24])?)?;
    assert_eq!(kind(write_labels(f.join("out.nrrd"), &h, &labels)), Some(VolumeErrorKind::Unsupported));
    assert_eq!(kind(write_labels(f.join("no/out.nii"), &h, &labels)), Some(VolumeErrorKind::NotFound));
    let turned = crate::volume::reorient(&labels, "RAS".parse()?);
    assert_eq!(kind(write_labels(f.join("out.nii"), &h, &turned)), Some(VolumeErrorKind::GridMismatch));
    fs::create_dir(f.join("folder.nii"))?;
    assert_eq!(kind(write_labels(f.join("folder.nii"), &h, &labels)), Some(VolumeErrorKind::Io));
    assert_eq!(fs::read_dir(f)?.count(), 2);
    Ok(())
}
