//! The header of NIfTI-2: 64 bits where NIfTI-1 has 16 or 32.

use ::nifti::{Endianness, NiftiHeader};

use super::affine::Fields;
use super::file::Header;

/// The length of the header, as its first field says it.
pub(super) const HEADER_BYTES: i32 = 540;
/// The bytes that it has more than a header of NIfTI-1.
pub(super) const MORE_BYTES: u64 = 192;

/// The fields of a header, one after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = rest;
        let mut first = *first;
        if self.big_endian {
            first.reverse();
        }
        Some(first)
    }

    fn i16(&mut self) -> Option<i16> {
        self.take().map(i16::from_le_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_le_bytes)
    }

    fn f64(&mut self) -> Option<f64> {
        self.take().map(f64::from_le_bytes)
    }

    fn list<T: Copy + Default, const N: usize>(&mut self, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<[T; N]> {
        let mut list = [T::default(); N];
        for place in &mut list {
            *place = one(self)?;
        }
        Some(list)
    }
}

/// The header in these bytes, and what of it a header of NIfTI-1 holds; `None` where it is cut
/// short.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "headers of NIfTI-1 hold less")]
pub(super) fn parse(bytes: &[u8], big_endian: bool) -> Option<Header> {
    let magic: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
    let mut r = Reader { bytes: bytes.get(12..)?, big_endian };
    let (datatype, bitpix) = (r.i16()?, r.i16()?);
    let dim = r.list::<i64, 8>(Reader::i64)?;
    r.list::<f64, 3>(Reader::f64)?;
    let pixdim = r.list::<f64, 8>(Reader::f64)?;
    let offset = r.i64()? as f64;
    let scale = r.list::<f64, 2>(Reader::f64)?;
    // what describes values and slices
    r.list::<i64, 6>(Reader::i64)?;
    let descrip = r.bytes.get(..80)?.to_vec();
    r.bytes = r.bytes.get(104..)?;
    let (qform_code, sform_code) = (r.i32()?, r.i32()?);
    let quaternion = r.list::<f64, 3>(Reader::f64)?;
    let offsets = r.list::<f64, 3>(Reader::f64)?;
    let srow = r.list::<[f64; 4], 3>(|r| r.list(Reader::f64))?;
    r.i32()?;
    let units = r.i32()? as u8;
    let small = |x: f64| x as f32;
    let [b, c, d] = quaternion.map(small);
    let [x, y, z] = offsets.map(small);
    let [srow_x, srow_y, srow_z] = srow.map(|row| row.map(small));
    let header = NiftiHeader {
        // sizes that are none, or too large for it, are refused as it is used
        dim: dim.map(|n| u16::try_from(n).unwrap_or(if n > 0 { u16::MAX } else { 0 })),
        datatype,
        bitpix,
        pixdim: pixdim.map(small),
        scl_slope: small(scale[0]),
        scl_inter: small(scale[1]),
        descrip,
        qform_code: qform_code as i16,
        sform_code: sform_code as i16,
        quatern_b: b,
        quatern_c: c,
        quatern_d: d,
        quatern_x: x,
        quatern_y: y,
        quatern_z: z,
        srow_x,
        srow_y,
        srow_z,
        xyzt_units: units,
        magic: *b"n+1\0",
        endianness: if big_endian { Endianness::Big } else { Endianness::Little },
        ..NiftiHeader::default()
    };
    let fields = Fields { dim, pixdim, qform_code, sform_code, quaternion, offset: offsets, srow, units };
    Some(Header { header, fields, length: 540, single: magic.starts_with(b"n+2"), offset, scale, big_endian })
}
