//! DICOM segmentation objects: the labels of a series as bits, a segment a class.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::mem::InMemElement;
use dicom_object::meta::FileMetaTableBuilder;
use sha2::{Digest, Sha256};

use super::image::{Image, Object, Slice};
use crate::volume::{Legend, Volume, VolumeError, VolumeErrorKind, sizes, write_whole};

/// Elements of patient and study that the standard wants in every object of a study, with the types
/// that stand empty where they are not told.
const KEPT: [(Tag, VR); 11] = [
    (tags::SPECIFIC_CHARACTER_SET, VR::CS),
    (tags::PATIENT_NAME, VR::PN),
    (tags::PATIENT_ID, VR::LO),
    (tags::PATIENT_BIRTH_DATE, VR::DA),
    (tags::PATIENT_SEX, VR::CS),
    (tags::STUDY_INSTANCE_UID, VR::UI),
    (tags::STUDY_DATE, VR::DA),
    (tags::STUDY_TIME, VR::TM),
    (tags::REFERRING_PHYSICIAN_NAME, VR::PN),
    (tags::STUDY_ID, VR::SH),
    (tags::ACCESSION_NUMBER, VR::SH),
];

/// The facts that a segmentation takes from the series that was segmented.
#[derive(Clone, Debug)]
pub(in crate::volume::file) struct Origin {
    kept: Vec<InMemElement>,
    series: String,
    frame_of_reference: String,
    /// In the order of the grid: class, instance, frame, and place.
    images: Vec<(String, String, u32, [f64; 3])>,
    /// Rows and columns.
    size: [u32; 2],
    directions: [[f64; 3]; 2],
    spacing: [f64; 2],
    between: f64,
}

impl Origin {
    /// Of slices in order, `step` apart.
    pub(super) fn of(images: &[Image], slices: &[Slice], step: [f64; 3]) -> Result<Self, VolumeError> {
        let first = &images[slices[0].file];
        let object = first.header()?;
        let element = |(tag, vr): (Tag, VR)| match object.element_opt(tag).ok().flatten() {
            Some(element) => Some(element.clone()),
            None if tag == tags::SPECIFIC_CHARACTER_SET => None,
            None => Some(DataElement::new(tag, vr, PrimitiveValue::Empty)),
        };
        let text = |tag: Tag| object.element_opt(tag).ok().flatten().and_then(|e| Some(e.to_str().ok()?.trim_end_matches('\0').to_owned()));
        let place = |slice: &Slice| {
            let image = &images[slice.file];
            let frame = if image.slices.len() == 1 { 0 } else { slice.frame + 1 };
            (image.class.clone(), image.uid.clone(), frame, slice.position)
        };
        Ok(Self {
            kept: KEPT.into_iter().filter_map(element).collect(),
            series: first.series.clone(),
            frame_of_reference: text(tags::FRAME_OF_REFERENCE_UID).unwrap_or_default(),
            images: slices.iter().map(place).collect(),
            size: [first.rows, first.columns],
            directions: slices[0].directions,
            spacing: slices[0].spacing,
            between: step.iter().map(|x| x * x).sum::<f64>().sqrt(),
        })
    }
}

/// A UID of what it is for and of what it is of: the same for the same, another for anything else.
fn uid(purpose: &str, content: &[u8]) -> String {
    let hash = Sha256::new().chain_update(purpose).chain_update(content).finalize();
    let mut number = [0; 16];
    number.copy_from_slice(&hash[..16]);
    format!("2.25.{}", u128::from_be_bytes(number))
}

fn put(object: &mut Object, tag: Tag, vr: VR, text: impl Into<String>) {
    object.put(DataElement::new(tag, vr, PrimitiveValue::from(text.into())));
}

fn short(object: &mut Object, tag: Tag, value: u16) {
    object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
}

fn items(object: &mut Object, tag: Tag, items: Vec<Object>) {
    object.put(DataElement::new(tag, VR::SQ, DataSetSequence::from(items)));
}

fn object(fill: impl FnOnce(&mut Object)) -> Object {
    let mut object = Object::new_empty();
    fill(&mut object);
    object
}

/// Numbers in at most 16 characters each.
fn decimals(numbers: &[f64]) -> String {
    let one = |x: &f64| {
        let exact = x.to_string();
        let cut = (0..=12).rev().map(|digits| format!("{x:.digits$}")).find(|text| text.len() <= 16);
        if exact.len() <= 16 { exact } else { cut.unwrap_or_else(|| format!("{x:.6e}")) }
    };
    numbers.iter().map(one).collect::<Vec<_>>().join("\\")
}

fn code(value: &str, meaning: &str) -> Object {
    object(|o| {
        put(o, tags::CODE_VALUE, VR::SH, value);
        put(o, tags::CODING_SCHEME_DESIGNATOR, VR::SH, "SCT");
        put(o, tags::CODE_MEANING, VR::LO, meaning);
    })
}

/// A colour as the standard has it: CIE L*a*b* with D50, in 16 bits.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 16 bits")]
fn lab(colour: [u8; 3]) -> [u16; 3] {
    let linear = colour.map(|c| {
        let c = f64::from(c) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    });
    let row = |r: [f64; 3]| r.iter().zip(linear).map(|(a, b)| a * b).sum::<f64>();
    // sRGB to XYZ, adapted to D50, over its white
    let xyz = [
        row([0.436_074_7, 0.385_064_9, 0.143_080_4]) / 0.964_22,
        row([0.222_504_5, 0.716_878_6, 0.060_616_9]),
        row([0.013_932_2, 0.097_104_5, 0.714_173_3]) / 0.825_21,
    ];
    let [x, y, z] = xyz.map(|t| if t > 216.0 / 24389.0 { t.cbrt() } else { (24389.0 / 27.0 * t + 16.0) / 116.0 });
    let (l, a, b) = (116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z));
    let word = |x: f64| (x.clamp(0.0, 1.0) * 65535.0).round() as u16;
    [word(l / 100.0), word((a + 128.0) / 255.0), word((b + 128.0) / 255.0)]
}

/// Writes labels on the grid of the series that `origin` is of as a DICOM segmentation.
///
/// Codes are SNOMED's for a tissue of the body; the label of a segment is the name of its class.
pub(in crate::volume::file) fn write(path: &Path, origin: &Origin, labels: &Volume<u16>, legend: &Legend) -> Result<(), VolumeError> {
    let [d, h, w] = sizes(labels.extent);
    let bad = |text: String| VolumeError::new(VolumeErrorKind::GridMismatch, format!("cannot write {}: {text}", path.display()));
    let [rows, columns] = origin.size;
    if d != origin.images.len() || [h, w] != [rows as usize, columns as usize] {
        let images = origin.images.len();
        return Err(bad(format!("labels of {d}x{h}x{w} are not those of {images} images of {rows}x{columns}")));
    }
    let there: std::collections::BTreeSet<u16> = labels.data.iter().copied().filter(|label| *label > 0).collect();
    // a segmentation has a segment and a frame, be it empty
    let mut segments: Vec<u16> = there.into_iter().collect();
    if segments.is_empty() {
        segments.push(legend.classes().first().map_or(1, |class| class.label));
    }
    let mut frames: Vec<(usize, usize)> = Vec::new();
    let planes: Vec<&[u16]> = labels.data.chunks_exact(h * w).collect();
    for (segment, label) in segments.iter().enumerate() {
        frames.extend((0..d).filter(|k| planes[*k].contains(label)).map(|k| (segment, k)));
    }
    if frames.is_empty() {
        frames.push((0, 0));
    }
    let mut bits = vec![0u8; (frames.len() * h * w).div_ceil(16) * 2];
    for (n, (segment, k)) in frames.iter().enumerate() {
        for (at, _) in planes[*k].iter().enumerate().filter(|(_, label)| **label == segments[*segment]) {
            let bit = n * h * w + at;
            bits[bit / 8] |= 1 << (bit % 8);
        }
    }
    let mut o = header(origin, &bits);
    short(&mut o, tags::ROWS, u16::try_from(h).unwrap_or(0));
    short(&mut o, tags::COLUMNS, u16::try_from(w).unwrap_or(0));
    put(&mut o, tags::NUMBER_OF_FRAMES, VR::IS, frames.len().to_string());
    items(&mut o, tags::SEGMENT_SEQUENCE, segments.iter().enumerate().map(|(n, label)| segment(n, *label, legend)).collect());
    let dimension = uid("dimension", origin.series.as_bytes());
    functional_groups(&mut o, origin, &frames, &dimension);
    o.put(DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::from(bits)));
    let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let file = o.with_meta(meta).map_err(|e| bad(e.to_string()))?;
    write_whole(path, "segmentation.dcm", |temporary| {
        let mut to = BufWriter::new(File::create(temporary)?);
        file.write_all(&mut to).map_err(std::io::Error::other)?;
        to.flush()
    })
}

fn segment(n: usize, label: u16, legend: &Legend) -> Object {
    object(|o| {
        short(o, tags::SEGMENT_NUMBER, u16::try_from(n + 1).unwrap_or(u16::MAX));
        let name: String = legend.name(label).replace('\\', "/").chars().take(64).collect();
        put(o, tags::SEGMENT_LABEL, VR::LO, name);
        put(o, tags::SEGMENT_ALGORITHM_TYPE, VR::CS, "AUTOMATIC");
        put(o, tags::SEGMENT_ALGORITHM_NAME, VR::LO, "organum");
        items(o, tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE, vec![code("85756007", "Tissue")]);
        items(o, tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE, vec![code("85756007", "Tissue")]);
        let colour = lab(crate::volume::legend::colour(label));
        o.put(DataElement::new(tags::RECOMMENDED_DISPLAY_CIE_LAB_VALUE, VR::US, PrimitiveValue::U16(colour.into_iter().collect())));
    })
}

/// The elements that do not depend on the frames.
fn header(origin: &Origin, bits: &[u8]) -> Object {
    let mut o = Object::new_empty();
    for element in &origin.kept {
        o.put(element.clone());
    }
    let content: Vec<u8> = [origin.series.as_bytes(), bits].concat();
    for (tag, vr, text) in [
        (tags::SOP_CLASS_UID, VR::UI, uids::SEGMENTATION_STORAGE.to_owned()),
        (tags::SOP_INSTANCE_UID, VR::UI, uid("instance", &content)),
        (tags::SERIES_INSTANCE_UID, VR::UI, uid("series", &content)),
        (tags::FRAME_OF_REFERENCE_UID, VR::UI, origin.frame_of_reference.clone()),
        (tags::POSITION_REFERENCE_INDICATOR, VR::LO, String::new()),
        (tags::MODALITY, VR::CS, "SEG".into()),
        (tags::SERIES_NUMBER, VR::IS, "1".into()),
        (tags::SERIES_DESCRIPTION, VR::LO, "organum segmentation".into()),
        (tags::INSTANCE_NUMBER, VR::IS, "1".into()),
        (tags::MANUFACTURER, VR::LO, "organum".into()),
        (tags::MANUFACTURER_MODEL_NAME, VR::LO, "organum".into()),
        (tags::DEVICE_SERIAL_NUMBER, VR::LO, "0".into()),
        (tags::SOFTWARE_VERSIONS, VR::LO, env!("CARGO_PKG_VERSION").into()),
        (tags::IMAGE_TYPE, VR::CS, "DERIVED\\PRIMARY".into()),
        (tags::SEGMENTATION_TYPE, VR::CS, "BINARY".into()),
        (tags::CONTENT_LABEL, VR::CS, "SEGMENTATION".into()),
        (tags::CONTENT_DESCRIPTION, VR::LO, String::new()),
        (tags::CONTENT_CREATOR_NAME, VR::PN, String::new()),
        (tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "00".into()),
        (tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2".into()),
        (tags::SEGMENTS_OVERLAP, VR::CS, "NO".into()),
    ] {
        put(&mut o, tag, vr, text);
    }
    // the study's, so that the same labels are the same file
    for (tag, vr, from, absent) in
        [(tags::CONTENT_DATE, VR::DA, tags::STUDY_DATE, "19000101"), (tags::CONTENT_TIME, VR::TM, tags::STUDY_TIME, "000000")]
    {
        let told = origin.kept.iter().find(|e| e.header().tag == from).and_then(|e| e.to_str().ok().map(|t| t.into_owned()));
        put(&mut o, tag, vr, told.filter(|text| !text.is_empty()).unwrap_or_else(|| absent.into()));
    }
    for (tag, value) in [
        (tags::SAMPLES_PER_PIXEL, 1),
        (tags::BITS_ALLOCATED, 1),
        (tags::BITS_STORED, 1),
        (tags::HIGH_BIT, 0),
        (tags::PIXEL_REPRESENTATION, 0),
    ] {
        short(&mut o, tag, value);
    }
    let mut seen = std::collections::BTreeSet::new();
    let one =
        |(class, instance, _, _): &(String, String, u32, [f64; 3])| seen.insert(instance.clone()).then(|| reference(class, instance, 0));
    let instances: Vec<Object> = origin.images.iter().filter_map(one).collect();
    let series = object(|o| {
        put(o, tags::SERIES_INSTANCE_UID, VR::UI, origin.series.clone());
        items(o, tags::REFERENCED_INSTANCE_SEQUENCE, instances);
    });
    items(&mut o, tags::REFERENCED_SERIES_SEQUENCE, vec![series]);
    o
}

fn reference(class: &str, instance: &str, frame: u32) -> Object {
    object(|o| {
        put(o, tags::REFERENCED_SOP_CLASS_UID, VR::UI, class);
        put(o, tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, instance);
        if frame > 0 {
            put(o, tags::REFERENCED_FRAME_NUMBER, VR::IS, frame.to_string());
        }
    })
}

/// The places, segments and order of the frames.
fn functional_groups(o: &mut Object, origin: &Origin, frames: &[(usize, usize)], dimension: &str) {
    let pointer = |tag: Tag, group: Tag| {
        object(|o| {
            put(o, tags::DIMENSION_ORGANIZATION_UID, VR::UI, dimension);
            o.put(DataElement::new(tags::DIMENSION_INDEX_POINTER, VR::AT, PrimitiveValue::Tags([tag].into_iter().collect())));
            o.put(DataElement::new(tags::FUNCTIONAL_GROUP_POINTER, VR::AT, PrimitiveValue::Tags([group].into_iter().collect())));
        })
    };
    items(o, tags::DIMENSION_ORGANIZATION_SEQUENCE, vec![object(|o| put(o, tags::DIMENSION_ORGANIZATION_UID, VR::UI, dimension))]);
    let pointers = vec![
        pointer(tags::REFERENCED_SEGMENT_NUMBER, tags::SEGMENT_IDENTIFICATION_SEQUENCE),
        pointer(tags::IMAGE_POSITION_PATIENT, tags::PLANE_POSITION_SEQUENCE),
    ];
    items(o, tags::DIMENSION_INDEX_SEQUENCE, pointers);
    let directions = object(|o| put(o, tags::IMAGE_ORIENTATION_PATIENT, VR::DS, decimals(&origin.directions.concat())));
    let measures = object(|o| {
        put(o, tags::SLICE_THICKNESS, VR::DS, decimals(&[origin.between]));
        put(o, tags::SPACING_BETWEEN_SLICES, VR::DS, decimals(&[origin.between]));
        put(o, tags::PIXEL_SPACING, VR::DS, decimals(&origin.spacing));
    });
    let shared = object(|o| {
        items(o, tags::PLANE_ORIENTATION_SEQUENCE, vec![directions]);
        items(o, tags::PIXEL_MEASURES_SEQUENCE, vec![measures]);
    });
    items(o, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared]);
    let frame = |&(segment, k): &(usize, usize)| {
        let (class, instance, frame, position) = &origin.images[k];
        let number = |n: usize| u32::try_from(n + 1).unwrap_or(u32::MAX);
        let content = object(|o| {
            let values = PrimitiveValue::U32([number(segment), number(k)].into_iter().collect());
            o.put(DataElement::new(tags::DIMENSION_INDEX_VALUES, VR::UL, values));
        });
        let source = object(|o| {
            *o = reference(class, instance, *frame);
            put(o, tags::SPATIAL_LOCATIONS_PRESERVED, VR::CS, "YES");
            items(o, tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE, vec![dcm("121322", "Source image for image processing operation")]);
        });
        let derivation = object(|o| {
            items(o, tags::SOURCE_IMAGE_SEQUENCE, vec![source]);
            items(o, tags::DERIVATION_CODE_SEQUENCE, vec![dcm("113076", "Segmentation")]);
        });
        object(|o| {
            items(o, tags::FRAME_CONTENT_SEQUENCE, vec![content]);
            items(o, tags::DERIVATION_IMAGE_SEQUENCE, vec![derivation]);
            let place = object(|o| put(o, tags::IMAGE_POSITION_PATIENT, VR::DS, decimals(position)));
            items(o, tags::PLANE_POSITION_SEQUENCE, vec![place]);
            let of = object(|o| short(o, tags::REFERENCED_SEGMENT_NUMBER, u16::try_from(segment + 1).unwrap_or(u16::MAX)));
            items(o, tags::SEGMENT_IDENTIFICATION_SEQUENCE, vec![of]);
        })
    };
    items(o, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, frames.iter().map(frame).collect());
}

/// A code of DICOM's own.
fn dcm(value: &str, meaning: &str) -> Object {
    let mut o = code(value, meaning);
    put(&mut o, tags::CODING_SCHEME_DESIGNATOR, VR::SH, "DCM");
    o
}
