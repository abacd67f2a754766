use super::*;
use crate::export::hand_over;
use crate::model::Card;
use crate::monai::{Largest, Pipeline, Transform};
use crate::volume::resample::crop;

const CLASSES: u32 = 3;

/// A number from 0 to 1 of a place and a seed.
fn noise(at: usize, seed: u64) -> f32 {
    let mut x = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd1b5_4a32_d192_ed03);
    x = (x ^ x >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((x ^ x >> 29) >> 40) as f32 / (1u64 << 24) as f32
}

fn case(
    invert: Invert,
    nearest: bool,
    largest: Option<Largest>,
    multiple: Option<[u32; 3]>,
    seed: u64,
) -> Result<InverseCase, VolumeError> {
    let extent = Extent::new(9, 12, 10);
    let inside = |at: usize| [at / 120, at / 10 % 12, at % 10].into_iter().all(|i| (2..8).contains(&i));
    let data = (0..1080).map(|at| if inside(at) { noise(at, seed) + 0.5 } else { 0.0 }).collect();
    let scan = Volume::new(1, extent, [2.0, 1.0, 1.5], "SAR".parse()?, data)?;
    let pipeline = Pipeline {
        transforms: vec![
            Transform::Orientation { axes: "RAS".parse()? },
            Transform::Spacing { mm: [1.25, 1.5, 1.0], nearest: false, align_corners: true },
            Transform::CropForeground { margin: [1, 0, 2], allow_smaller: false, k_divisible: [1, 4, 1] },
        ],
        invert,
        nearest,
        largest,
        before: Vec::new(),
        after: Vec::new(),
        threshold: None,
        sigmoid: false,
    };
    let config = serde_json::json!({"dims": 3, "in_channels": 1, "classes": CLASSES, "features": [4, 4], "convs_per_stage": 2,
        "kernels": [[3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [2, 2, 2]]});
    let card: Card = serde_json::from_value(serde_json::json!({"architecture": "plain_conv_unet", "config": config})).expect("a card");
    InverseCase::new(&card, &pipeline, &scan, multiple)
}

/// The export of whole arrays: all classes on the scan at once.
fn expected(case: &InverseCase, logits: Vec<f32>) -> Result<(Volume<u16>, Volume<f32>), VolumeError> {
    let padded = Volume::new(CLASSES, case.volume.extent, case.volume.spacing, case.volume.axes, logits)?;
    let mut logits = crop(&padded, case.offset, case.prepared.extent)?.data;
    let mm3 = case.scan.affine.spacing().iter().product();
    let keep = |labels: &mut [u16], extent: Extent, first: bool| {
        filter(&case.filters, first, labels, sizes(extent), mm3);
    };
    let (labels, maps) = if case.inverts_scores() {
        if case.invert == Invert::Probabilities {
            softmax(&mut logits, CLASSES);
        }
        let mut maps = case.scores_back(case.prepared.volume(CLASSES, logits)?)?;
        let mut labels = argmax(&maps.data, CLASSES);
        keep(&mut labels, maps.extent, false);
        if case.invert == Invert::Logits {
            softmax(&mut maps.data, CLASSES);
        }
        (maps.regrid(maps.extent, maps.spacing, labels.clone()), maps)
    } else {
        let mut labels = argmax(&logits, CLASSES);
        keep(&mut labels, case.prepared.extent, true);
        softmax(&mut logits, CLASSES);
        let maps = case.prepared.volume(CLASSES, logits)?;
        if case.invert == Invert::Nothing {
            let [d, h, w] = case.prepared.axes.directions();
            let axes = Axes::new([w, h, d])?;
            return Ok((reorient(&case.prepared.volume(1, labels)?, axes), reorient(&maps, axes)));
        }
        let labels = case.prepared.volume(1, labels.into_iter().map(f32::from).collect())?;
        let mut labels = whole(&case.labels_back(labels)?)?;
        keep(&mut labels.data, labels.extent, false);
        (labels, case.scores_back(maps)?)
    };
    let labels = Volume::new(1, labels.extent, labels.spacing, labels.axes, labels.data)?;
    Ok((reorient(&labels, case.axes).with_affine(case.affine), reorient(&maps, case.axes).with_affine(case.affine)))
}

#[test]
fn planes_are_exported_as_whole_arrays_were() -> Result<(), Box<dyn std::error::Error>> {
    let parts = |first| Some(Largest { labels: vec![], union: false, connectivity: 1, first });
    let mut seed = 0;
    for invert in [Invert::Logits, Invert::Probabilities, Invert::Labels, Invert::Saving, Invert::Nothing] {
        for nearest in [false, true] {
            // labels that are not made before the way back have no parts to keep there
            let soft = matches!(invert, Invert::Logits | Invert::Probabilities);
            let mut largests = vec![None, parts(false)];
            largests.extend((!soft).then(|| parts(true)));
            for largest in largests {
                for multiple in [None, Some([8, 4, 8])] {
                    seed += 1;
                    let made = case(invert, nearest, largest.clone(), multiple, seed);
                    if matches!(invert, Invert::Logits | Invert::Probabilities) && largest.as_ref().is_some_and(|l| l.first) {
                        // there are no labels yet
                        assert!(made.is_err_and(|e| e.to_string().contains("in no order")));
                        continue;
                    }
                    let case = made?;
                    let count = case.volume.data.len() * CLASSES as usize;
                    let logits: Vec<f32> = (0..count).map(|at| noise(at, seed ^ 99) * 6.0 - 3.0).collect();
                    let (labels, maps) = expected(&case, logits.clone())?;
                    for (probabilities, file) in [(false, false), (true, false), (true, true)] {
                        let mut export = InverseExport::new(&case, CLASSES, probabilities);
                        if file {
                            export.spill_to(tempfile::tempfile()?);
                        }
                        hand_over(&logits, CLASSES, case.volume.extent, &mut export)?;
                        // an attempt that is made again changes nothing
                        export.plane(0, ScorePlane::Single(Vec::new()))?;
                        let exported = export.finish()?;
                        assert_eq!((&exported.labels.data, exported.labels.axes), (&labels.data, labels.axes), "{invert:?} {nearest}");
                        assert_eq!(exported.labels.affine(), labels.affine());
                        let got = exported.probabilities.map(|p| p.to_volume()).transpose()?;
                        assert_eq!(got.as_ref().map(|v| &v.data), probabilities.then_some(&maps.data), "{invert:?} {nearest}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn missing_planes_and_a_full_disk_are_told() -> Result<(), Box<dyn std::error::Error>> {
    let case = case(Invert::Logits, false, None, None, 1)?;
    let error = InverseExport::new(&case, CLASSES, false).finish().err().ok_or("planes are missing")?;
    assert_eq!(error.kind(), VolumeErrorKind::GridMismatch);
    assert!(error.to_string().contains("0 planes"), "{error}");
    let error = case.export(&[0.0], CLASSES, false).err().ok_or("it is one logit")?;
    assert_eq!(error.kind(), VolumeErrorKind::GridMismatch);
    #[cfg(target_os = "linux")]
    {
        let mut export = InverseExport::new(&case, CLASSES, false);
        export.spill_to(File::options().read(true).write(true).open("/dev/full")?);
        let plane = vec![0.0; case.volume.extent.plane() as usize * CLASSES as usize];
        let error = export.plane(0, ScorePlane::Single(plane)).err().ok_or("it is full")?;
        assert_eq!(error.kind(), RunErrorKind::Io);
    }
    Ok(())
}
