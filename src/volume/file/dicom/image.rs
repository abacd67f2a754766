//! A DICOM file: what it says of its images, and their voxels.

use std::panic::{AssertUnwindSafe, catch_unwind};

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};
use dicom_object::meta::FileMetaTableBuilder;
use dicom_object::{FileDicomObject, InMemDicomObject};
use dicom_pixeldata::PixelDecoder;
use dicom_transfer_syntax_registry::{TransferSyntaxIndex, TransferSyntaxRegistry};

use super::bytes::{Layout, Place};
use crate::volume::{VolumeError, VolumeErrorKind};

pub(super) type Object = InMemDicomObject;

/// A plane of voxels, and where it lies.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    /// The number of the file, and of the frame in it.
    pub(super) file: usize,
    pub(super) frame: u32,
    /// The centre of the first voxel, to the left, the back and the head in mm.
    pub(super) position: [f64; 3],
    /// Along rows, then along columns.
    pub(super) directions: [[f64; 3]; 2],
    /// Between rows, then between columns, in mm.
    pub(super) spacing: [f64; 2],
    /// To the next slice, where the file says so.
    pub(super) thickness: Option<f64>,
    pub(super) scale: [f64; 2],
}

/// The description of a file's images.
#[derive(Clone)]
pub(super) struct Image {
    pub(super) place: Place,
    pub(super) series: String,
    /// Class and instance.
    pub(super) class: String,
    pub(super) uid: String,
    /// Modality and description, for lists.
    pub(super) shown: String,
    pub(super) syntax: String,
    pub(super) rows: u32,
    pub(super) columns: u32,
    bits: Bits,
    pub(super) slices: Vec<Slice>,
}

/// The bits of a stored voxel.
#[derive(Clone, Copy, Debug)]
struct Bits {
    allocated: u32,
    stored: u32,
    high: u32,
    signed: bool,
    /// Whether the greatest value stands for the least, as in MONOCHROME1.
    inverted: bool,
}

impl Bits {
    /// The value in these bytes.
    fn value(self, bytes: &[u8], big_endian: bool) -> f64 {
        let mut raw = 0u32;
        for i in 0..bytes.len() {
            let at = if big_endian { i } else { bytes.len() - 1 - i };
            raw = raw << 8 | u32::from(bytes[at]);
        }
        let unused = 31 - self.high;
        let left = raw << unused;
        let left = if self.inverted { !left } else { left };
        if self.signed { f64::from(left.cast_signed() >> (32 - self.stored)) } else { f64::from(left >> (32 - self.stored)) }
    }
}

fn text(object: &Object, tag: Tag) -> Option<String> {
    let value = object.element_opt(tag).ok()??.to_str().ok()?;
    Some(value.trim_end_matches(['\0', ' ']).trim().to_owned())
}

fn numbers(object: &Object, tag: Tag) -> Vec<f64> {
    let value = object.element_opt(tag).ok().flatten().and_then(|e| e.to_multi_float64().ok()).unwrap_or_default();
    if value.iter().all(|x| x.is_finite()) { value } else { Vec::new() }
}

fn whole(object: &Object, tag: Tag) -> Option<u32> {
    object.element_opt(tag).ok()??.to_int().ok()
}

/// The first item of a sequence.
fn item(object: &Object, tag: Tag) -> Option<&Object> {
    object.element_opt(tag).ok()??.items()?.first()
}

fn vector(list: &[f64]) -> Option<[f64; 3]> {
    list.get(..3)?.try_into().ok()
}

impl Image {
    /// Reads the description of a file's images; `None` where it is no DICOM file, or holds no
    /// image.
    pub(super) fn read(place: Place) -> Result<Option<Self>, VolumeError> {
        let bad = |text: String| VolumeError::new(VolumeErrorKind::Format, format!("{}: {text}", place.path().display()));
        let Some(layout) = Layout::of(place.bytes()?) else { return Ok(None) };
        let layout = layout.map_err(|e| bad(format!("a damaged DICOM file: {e}")))?;
        let object = layout.object(true).map_err(|e| bad(format!("a damaged DICOM file: {e}")))?;
        let Some((_, value)) = &layout.pixels else { return Ok(None) };
        let unsupported = |text: String| VolumeError::new(VolumeErrorKind::Unsupported, format!("{}: {text}", place.path().display()));
        let need = |tag: Tag, name: &str| whole(&object, tag).filter(|n| *n > 0).ok_or_else(|| bad(format!("it does not tell its {name}")));
        let (rows, columns) = (need(tags::ROWS, "rows")?, need(tags::COLUMNS, "columns")?);
        let kind = text(&object, tags::PHOTOMETRIC_INTERPRETATION).unwrap_or_default();
        if !kind.starts_with("MONOCHROME") || whole(&object, tags::SAMPLES_PER_PIXEL).unwrap_or(1) != 1 {
            return Err(unsupported(format!("images of colours ({kind}) are not read, those of grey values are")));
        }
        let allocated = need(tags::BITS_ALLOCATED, "bits allocated")?;
        let stored = whole(&object, tags::BITS_STORED).unwrap_or(allocated);
        let high = whole(&object, tags::HIGH_BIT).unwrap_or(stored.saturating_sub(1));
        if ![8, 16, 32].contains(&allocated) || stored == 0 || high >= allocated || stored > high + 1 {
            return Err(unsupported(format!("voxels of {stored} bits in {allocated}, the highest {high}, are not read")));
        }
        let bits = Bits {
            allocated,
            stored,
            high,
            signed: whole(&object, tags::PIXEL_REPRESENTATION) == Some(1),
            inverted: kind == "MONOCHROME1",
        };
        let frames = whole(&object, tags::NUMBER_OF_FRAMES).unwrap_or(1).max(1);
        let each = u64::from(rows) * u64::from(columns) * u64::from(allocated / 8);
        let claimed = each.saturating_mul(frames.into());
        if let Some(value) = value.as_ref().filter(|value| (value.len() as u64) < claimed) {
            return Err(bad(format!("it claims {frames} frames of {rows}x{columns} voxels, {claimed} bytes, but holds {}", value.len())));
        }
        let slices = slices(&object, frames).map_err(bad)?;
        let described = [tags::MODALITY, tags::SERIES_DESCRIPTION].map(|tag| text(&object, tag).unwrap_or_default());
        Ok(Some(Self {
            series: text(&object, tags::SERIES_INSTANCE_UID).unwrap_or_default(),
            class: text(&object, tags::SOP_CLASS_UID).unwrap_or_default(),
            uid: text(&object, tags::SOP_INSTANCE_UID).unwrap_or_default(),
            shown: described.join(" ").trim().to_owned(),
            syntax: layout.syntax.clone(),
            rows,
            columns,
            bits,
            slices,
            place,
        }))
    }

    /// The elements before the pixel data.
    pub(super) fn header(&self) -> Result<Object, VolumeError> {
        let layout = Layout::of(self.place.bytes()?).and_then(Result::ok);
        layout.ok_or_else(|| self.damaged("it has changed"))?.object(true).map_err(|e| self.damaged(&e))
    }

    /// The voxels of the frames.
    pub(super) fn voxels(&self) -> Result<Decoder<'_>, VolumeError> {
        let layout = Layout::of(self.place.bytes()?).and_then(Result::ok);
        Ok(Decoder { image: self, object: None, layout: layout.ok_or_else(|| self.damaged("it has changed"))? })
    }

    /// Whether low values are bright.
    pub(super) fn inverted(&self) -> bool {
        self.bits.inverted
    }

    fn damaged(&self, text: &str) -> VolumeError {
        let text = format!("{}: its pixel data cannot be decoded: {text}", self.place.path().display());
        VolumeError::new(VolumeErrorKind::Format, text)
    }
}

impl Layout {
    /// The elements, or those before the pixel data.
    fn object(&self, header: bool) -> Result<Object, String> {
        let end = self.pixels.as_ref().filter(|_| header).map_or(self.bytes.len(), |p| p.0);
        // the syntax of the elements; pixel data in fragments is explicit
        let syntax = TransferSyntaxRegistry.get(&self.syntax).or_else(|| TransferSyntaxRegistry.get(uids::EXPLICIT_VR_LITTLE_ENDIAN));
        let syntax = syntax.ok_or("its transfer syntax is not known")?;
        Object::read_dataset_with_ts(&self.bytes[self.start..end], syntax).map_err(|e| e.to_string())
    }
}

/// Planes of the frames: of an enhanced object each in its own place.
fn slices(object: &Object, frames: u32) -> Result<Vec<Slice>, String> {
    let shared = item(object, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE);
    let each = object.element_opt(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).ok().flatten().and_then(|e| e.items());
    let one = |frame: u32| -> Option<Slice> {
        let own = each.and_then(|items| items.get(frame as usize));
        // of the frame, of all frames, or of the object itself
        let find = |group: Tag, tag: Tag| {
            let places = [own.and_then(|o| item(o, group)), shared.and_then(|o| item(o, group)), Some(object)];
            places.into_iter().flatten().map(|o| numbers(o, tag)).find(|list| !list.is_empty()).unwrap_or_default()
        };
        let cosines = find(tags::PLANE_ORIENTATION_SEQUENCE, tags::IMAGE_ORIENTATION_PATIENT);
        let spacing = find(tags::PIXEL_MEASURES_SEQUENCE, tags::PIXEL_SPACING);
        let spacing = if spacing.is_empty() { numbers(object, tags::IMAGER_PIXEL_SPACING) } else { spacing };
        let value = |tag: Tag| find(tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, tag).first().copied();
        let thickness = [tags::SPACING_BETWEEN_SLICES, tags::SLICE_THICKNESS]
            .into_iter()
            .find_map(|tag| find(tags::PIXEL_MEASURES_SEQUENCE, tag).first().copied().map(f64::abs).filter(|t| *t > 0.0));
        Some(Slice {
            file: 0,
            frame,
            position: vector(&find(tags::PLANE_POSITION_SEQUENCE, tags::IMAGE_POSITION_PATIENT))?,
            directions: [vector(&cosines)?, vector(cosines.get(3..)?)?],
            spacing: spacing.get(..2)?.try_into().ok().filter(|s: &[f64; 2]| s.iter().all(|s| *s > 0.0))?,
            thickness,
            scale: [value(tags::RESCALE_SLOPE).unwrap_or(1.0), value(tags::RESCALE_INTERCEPT).unwrap_or(0.0)],
        })
    };
    if frames > 1 && each.is_none_or(|items| items.len() != frames as usize) {
        return Err(format!("it does not tell where its {frames} frames lie"));
    }
    let all: Option<Vec<Slice>> = (0..frames).map(one).collect();
    all.ok_or_else(|| "it does not tell where it lies (position, orientation, pixel spacing)".into())
}

/// The frames of a file.
pub(super) struct Decoder<'a> {
    image: &'a Image,
    layout: Layout,
    object: Option<FileDicomObject<Object>>,
}

impl Decoder<'_> {
    /// Writes a frame's voxels, rescaled.
    pub(super) fn frame(&mut self, slice: &Slice, to: &mut [f32]) -> Result<(), VolumeError> {
        let (bits, [slope, intercept], big_endian) = (self.image.bits, slice.scale, self.layout.big_endian());
        let size = (bits.allocated / 8) as usize;
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
        let mut write = |bytes: &[u8], big_endian: bool| {
            for (to, voxel) in to.iter_mut().zip(bytes.chunks_exact(size)) {
                *to = (bits.value(voxel, big_endian) * slope + intercept) as f32;
            }
        };
        let length = self.image.rows as usize * self.image.columns as usize * size;
        if let Some((_, Some(value))) = &self.layout.pixels {
            let first = value.start + slice.frame as usize * length;
            let bytes = self.layout.bytes.get(first..first + length).ok_or_else(|| self.image.damaged("it is cut short"))?;
            write(bytes, big_endian);
            return Ok(());
        }
        let bytes = self.decoded(slice.frame)?;
        if bytes.len() != length {
            return Err(self.image.damaged(&format!("{} bytes come of it, {length} are claimed", bytes.len())));
        }
        write(&bytes, false);
        Ok(())
    }

    /// The bytes of a frame that is compressed.
    fn decoded(&mut self, frame: u32) -> Result<Vec<u8>, VolumeError> {
        let image = self.image;
        if self.object.is_none() {
            let object = self.layout.object(false).map_err(|e| image.damaged(&e))?;
            let meta = FileMetaTableBuilder::new().transfer_syntax(&image.syntax);
            self.object = Some(object.with_meta(meta).map_err(|e| image.damaged(&e.to_string()))?);
        }
        let Some(object) = &self.object else { return Err(image.damaged("it is not there")) };
        let syntax = TransferSyntaxRegistry.get(&image.syntax);
        if syntax.is_none_or(|syntax| !syntax.can_decode_all()) {
            let text = format!(
                "{}: voxels in the transfer syntax {} are not read; uncompressed, RLE, deflate, JPEG (baseline, extended, \
                 lossless) and JPEG 2000 are (dcmdjpeg or gdcmconv --raw decompress it)",
                image.place.path().display(),
                syntax.map_or(image.syntax.as_str(), |syntax| syntax.name())
            );
            return Err(VolumeError::new(VolumeErrorKind::Unsupported, text));
        }
        self.check_codestream(object, frame)?;
        let decode = || object.decode_pixel_data_frame(frame).map(|decoded| decoded.data().to_vec());
        // a decoder may not expect what a damaged file holds
        match catch_unwind(AssertUnwindSafe(decode)) {
            Ok(decoded) => decoded.map_err(|e| image.damaged(&chain(&e))),
            Err(_) => Err(image.damaged("the decoder gave up")),
        }
    }

    /// Refuses JPEG and JPEG 2000 data of other extents than the header's, of which a decoder would
    /// make something larger.
    fn check_codestream(&self, object: &FileDicomObject<Object>, frame: u32) -> Result<(), VolumeError> {
        let Some(fragments) = object.element_opt(tags::PIXEL_DATA).ok().flatten().and_then(|e| e.fragments()) else {
            return Err(self.image.damaged("it has no fragments"));
        };
        let single = self.image.slices.len() == 1;
        let Some(data) = fragments.get(if single { 0 } else { frame as usize }) else { return Ok(()) };
        let at = |i: usize| data.get(i).map_or(0, |b| u32::from(*b));
        let four = |i: usize| at(i) << 24 | at(i + 1) << 16 | at(i + 2) << 8 | at(i + 3);
        let found = if data.starts_with(&[0xff, 0x4f, 0xff, 0x51]) {
            Some([four(12).saturating_sub(four(20)), four(8).saturating_sub(four(16)), at(40) << 8 | at(41)])
        } else if data.starts_with(&[0xff, 0xd8]) {
            jpeg_extent(data)
        } else {
            None
        };
        match found {
            Some(found) if found != [self.image.rows, self.image.columns, 1] => {
                let [h, w, c] = found;
                Err(self.image.damaged(&format!("it is an image of {h}x{w} voxels and {c} components")))
            }
            _ => Ok(()),
        }
    }
}

/// Height, width and components of a JPEG image.
fn jpeg_extent(data: &[u8]) -> Option<[u32; 3]> {
    let mut at = 2;
    loop {
        let [0xff, marker, a, b] = *data.get(at..at + 4)? else { return None };
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            let two = |i: usize| Some(u32::from(*data.get(at + i)?) << 8 | u32::from(*data.get(at + i + 1)?));
            return Some([two(5)?, two(7)?, u32::from(*data.get(at + 9)?)]);
        }
        at += 2 + (usize::from(a) << 8 | usize::from(b));
    }
}

/// An error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
