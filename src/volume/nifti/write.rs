//! Writing a NIfTI file as a stream: header, then voxels as they come, compressed if the name says so.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use ::nifti::NiftiHeader;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::file::{EXTENDER_BYTES, HEADER_BYTES};
use crate::volume::whole::delay;
use crate::volume::{VolumeError, VolumeErrorKind, write_whole};

/// `NIFTI_ECODE_IGNORE`, which TotalSegmentator gives its names of labels: of code 30, which is
/// that of such XML, nibabel 5.4 does not hand out the text.
const CODE: i32 = 0;

/// A type of voxels that is written.
pub(super) trait Voxel: Copy {
    /// The code of the type in a header.
    const DATATYPE: i16;
    /// Appends the little-endian bytes.
    fn append(self, bytes: &mut Vec<u8>);
}

macro_rules! voxels {
    ($($t:ty => $code:literal),*) => {$(
        impl Voxel for $t {
            const DATATYPE: i16 = $code;

            fn append(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

voxels!(u8 => 2, f32 => 16, u16 => 512);

/// Where the voxels of a file go.
pub(super) struct Voxels<'a> {
    to: &'a mut dyn Write,
    left: usize,
}

impl Voxels<'_> {
    /// Writes the voxels that follow.
    pub(super) fn write<T: Voxel>(&mut self, voxels: impl IntoIterator<Item = T>) -> io::Result<()> {
        const ROOM: usize = 1 << 16;
        let mut bytes = Vec::with_capacity(ROOM + 8);
        for voxel in voxels {
            voxel.append(&mut bytes);
            self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
            if bytes.len() >= ROOM {
                self.to.write_all(&bytes)?;
                bytes.clear();
                delay();
            }
        }
        self.to.write_all(&bytes)
    }
}

/// Writes a file of voxels of type `T` and `shape` (fastest axis first), whose header is otherwise
/// `header`, atomically: into a folder of its own beside `path`, then moved. `write` hands over the
/// voxels in the file's order.
pub(super) fn store<T: Voxel>(
    path: &Path,
    header: &NiftiHeader,
    shape: &[usize],
    extension: &str,
    write: impl FnOnce(&mut Voxels<'_>) -> io::Result<()>,
) -> Result<(), VolumeError> {
    let name = path.display();
    let file_name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let compressed = file_name.ends_with(".nii.gz");
    if !compressed && !file_name.ends_with(".nii") {
        return Err(VolumeError::new(
            VolumeErrorKind::Unsupported,
            format!("cannot write {name}: give it a name that ends in .nii or .nii.gz"),
        ));
    }
    let header = encoded::<T>(header, shape, extension);
    let all = |to: &mut dyn Write| -> io::Result<()> {
        to.write_all(&header)?;
        let mut voxels = Voxels { to, left: shape.iter().product() };
        write(&mut voxels)?;
        if voxels.left > 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    };
    write_whole(path, "volume", |file| {
        let mut file = BufWriter::new(File::create(file)?);
        if compressed {
            let mut encoder = GzEncoder::new(file, Compression::fast());
            all(&mut encoder)?;
            return encoder.finish()?.flush();
        }
        all(&mut file)?;
        file.flush()
    })
}

/// A header's bytes for voxels of type `T` and such a shape, and after them an extension of text,
/// or the flag that says that none follows.
fn encoded<T: Voxel>(header: &NiftiHeader, shape: &[usize], extension: &str) -> Vec<u8> {
    let blocks = if extension.is_empty() { 0 } else { (extension.len() + 8).div_ceil(16) };
    let mut bytes = Vec::new();
    macro_rules! put {
        ($($value:expr),*) => {$( bytes.extend_from_slice(&$value.to_le_bytes()); )*};
    }
    let mut dim = [1u16; 8];
    for (to, &n) in dim.iter_mut().zip([shape.len()].iter().chain(shape)) {
        *to = u16::try_from(n).unwrap_or(u16::MAX);
    }
    let h = header;
    put!(348i32);
    bytes.extend_from_slice(&h.data_type);
    bytes.extend_from_slice(&h.db_name);
    put!(h.extents, h.session_error, h.regular, h.dim_info);
    dim.iter().for_each(|n| {
        put!(n);
    });
    put!(h.intent_p1, h.intent_p2, h.intent_p3, h.intent_code, T::DATATYPE);
    #[expect(clippy::cast_possible_truncation, reason = "at most 32 bits")]
    let bits = (size_of::<T>() * 8) as i16;
    put!(bits, h.slice_start);
    h.pixdim.iter().for_each(|f| {
        put!(f);
    });
    put!((HEADER_BYTES + EXTENDER_BYTES + 16 * blocks as u64) as f32, 1f32, 0f32, h.slice_end, h.slice_code, h.xyzt_units);
    put!(h.cal_max, h.cal_min, h.slice_duration, h.toffset, h.glmax, h.glmin);
    let description = bytes.len();
    bytes.extend(h.descrip.iter().take(80));
    bytes.resize(description + 80, 0);
    bytes.extend_from_slice(&h.aux_file);
    put!(h.qform_code, h.sform_code);
    put!(h.quatern_b, h.quatern_c, h.quatern_d, h.quatern_x, h.quatern_y, h.quatern_z);
    [h.srow_x, h.srow_y, h.srow_z].iter().flatten().for_each(|f| {
        put!(f);
    });
    bytes.extend_from_slice(&h.intent_name);
    bytes.extend_from_slice(b"n+1\0");
    bytes.extend_from_slice(&[u8::from(blocks > 0), 0, 0, 0]);
    if blocks > 0 {
        let end = bytes.len() + 16 * blocks;
        bytes.extend_from_slice(&i32::try_from(16 * blocks).unwrap_or(i32::MAX).to_le_bytes());
        bytes.extend_from_slice(&CODE.to_le_bytes());
        bytes.extend_from_slice(extension.as_bytes());
        bytes.resize(end, b' ');
    }
    bytes
}
