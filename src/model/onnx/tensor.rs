//! Tensors of an ONNX file: shapes and numbers, read when they are needed.

use std::path::{Component, Path, PathBuf};

use safetensors::Dtype;

use super::proto::{TensorProto, Values};
use crate::model::weights::{Bytes, Place, floats_of};

/// Most elements of a tensor that is computed from others.
pub(super) const MOST_COMPUTED: usize = 1 << 25;

/// A tensor that is known before any input: a weight, a shape, or what was computed of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub shape: Vec<usize>,
    pub data: Data,
}

/// The elements of a tensor in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    /// Integers and truth values.
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    /// Floats of this type where they lie.
    Stored(Dtype, Place),
}

/// The file and those beside it.
#[derive(Debug)]
pub(super) struct Files {
    /// The bytes of the file first.
    pub all: Vec<Bytes>,
    /// The folder that the file lies in; `None` for one in memory.
    folder: Option<PathBuf>,
    names: Vec<String>,
}

impl Files {
    /// The file with these bytes in a folder.
    pub(super) fn new(bytes: Bytes, folder: Option<&Path>) -> Self {
        Self { all: vec![bytes], folder: folder.map(Path::to_owned), names: vec![String::new()] }
    }

    /// The number of a file beside the first, which is mapped once.
    ///
    /// # Errors
    /// When the name leads out of the folder, or the file cannot be read.
    fn open(&mut self, name: &str) -> Result<usize, String> {
        if let Some(known) = self.names.iter().skip(1).position(|known| known == name) {
            return Ok(known + 1);
        }
        let Some(folder) = &self.folder else {
            return Err(format!("has its values in the file {name:.80}, which bytes in memory do not have beside them; open the file"));
        };
        let inside = !name.is_empty() && Path::new(name).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        let path = folder.join(name);
        // a link may lead out, too
        let within = || Some(path.canonicalize().ok()?.starts_with(folder.canonicalize().ok()?));
        if !inside || within() == Some(false) {
            return Err(format!("has its values in {name:.80}, which is outside of the model's folder; put them into one folder"));
        }
        self.all.push(Bytes::read(&path).map_err(|e| format!("has its values in another file: {e}"))?);
        self.names.push(name.to_owned());
        Ok(self.names.len() - 1)
    }
}

/// The bytes at a place.
fn bytes_at<'a>(files: &'a [Bytes], place: &'a Place) -> &'a [u8] {
    match place {
        Place::File(range) => files.first().and_then(|bytes| bytes.get().get(range.clone())),
        Place::Beside(file, range) => files.get(*file).and_then(|bytes| bytes.get().get(range.clone())),
        Place::Held(bytes) => Some(&bytes[..]),
    }
    .unwrap_or_default()
}

/// The type of elements by ONNX's number: how they are stored and whether they are floats.
fn dtype(kind: i64) -> Option<(Dtype, bool)> {
    Some(match kind {
        1 => (Dtype::F32, true),
        2 => (Dtype::U8, false),
        3 => (Dtype::I8, false),
        4 => (Dtype::U16, false),
        5 => (Dtype::I16, false),
        6 => (Dtype::I32, false),
        7 => (Dtype::I64, false),
        9 => (Dtype::BOOL, false),
        10 => (Dtype::F16, true),
        11 => (Dtype::F64, true),
        12 => (Dtype::U32, false),
        13 => (Dtype::U64, false),
        16 => (Dtype::BF16, true),
        _ => return None,
    })
}

/// True if ONNX's number of a type is one of floats.
pub(super) fn is_float(kind: i64) -> Option<bool> {
    dtype(kind).map(|(_, float)| float)
}

/// Integers of a type, little-endian.
fn ints_of(dtype: Dtype, bytes: &[u8]) -> Vec<i64> {
    fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> i64) -> Vec<i64> {
        bytes.as_chunks::<N>().0.iter().map(|&b| f(b)).collect()
    }
    match dtype {
        Dtype::I8 => each(bytes, |b| i8::from_le_bytes(b).into()),
        Dtype::U16 => each(bytes, |b| u16::from_le_bytes(b).into()),
        Dtype::I16 => each(bytes, |b| i16::from_le_bytes(b).into()),
        Dtype::U32 => each(bytes, |b| u32::from_le_bytes(b).into()),
        Dtype::I32 => each(bytes, |b| i32::from_le_bytes(b).into()),
        Dtype::U64 | Dtype::I64 => each(bytes, i64::from_le_bytes),
        _ => each(bytes, |[b]| b.into()),
    }
}

impl Tensor {
    /// Integers along one axis.
    pub(super) fn ints(values: Vec<i64>) -> Self {
        Self { shape: vec![values.len()], data: Data::Ints(values) }
    }

    /// A tensor of the file.
    ///
    /// # Errors
    /// When its type is not read, or it holds more or less values than its shape says.
    pub(super) fn read(proto: TensorProto, files: &mut Files) -> Result<Self, String> {
        let name = format!("the tensor {:.80}", proto.name);
        let shape = proto.dims.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| format!("{name} has a negative extent"))?;
        let count = shape.iter().try_fold(1, |n: usize, &m| n.checked_mul(m));
        let count = count.ok_or_else(|| format!("{name} is larger than memory"))?;
        let (dtype, float) = dtype(proto.kind).ok_or_else(|| format!("{name} is of ONNX's type {}, which is not read", proto.kind))?;
        let bytes = (dtype.bitsize() / 8).checked_mul(count).ok_or_else(|| format!("{name} is larger than memory"))?;
        let place = match proto.values {
            _ if !proto.external.is_empty() => {
                let of = |key: &str| proto.external.get(key).map(String::as_str);
                let number =
                    |key: &str| of(key).map(|text| text.parse::<usize>().map_err(|_| format!("{name} has a bad {key}"))).transpose();
                let begin = number("offset")?.unwrap_or(0);
                let length = number("length")?.unwrap_or(bytes);
                let file = files.open(of("location").unwrap_or_default()).map_err(|e| format!("{name} {e}"))?;
                let range = begin..begin.checked_add(length).ok_or_else(|| format!("{name} has a bad length"))?;
                if range.end > files.all[file].get().len() {
                    return Err(format!("{name} reaches beyond the end of the file beside the model"));
                }
                Place::Beside(file, range)
            }
            Values::Raw(range) => Place::File(range),
            Values::None => Place::Held(Vec::new()),
            Values::Floats(list) => return Self::counted(shape, Data::Floats(list), count, &name),
            Values::Ints(list) if dtype == Dtype::F16 || dtype == Dtype::BF16 => {
                // the bits of a float of 16 bits are stored as integers
                let bits = list.iter().flat_map(|&v| v.to_le_bytes().into_iter().take(2)).collect();
                Place::Held(bits)
            }
            Values::Ints(list) => return Self::counted(shape, Data::Ints(list), count, &name),
        };
        let data = bytes_at(&files.all, &place);
        if data.len() != bytes {
            return Err(format!("{name} of shape {shape:?} has {} bytes, not {bytes}", data.len()));
        }
        let data = if float { Data::Stored(dtype, place) } else { Data::Ints(ints_of(dtype, data)) };
        Ok(Self { shape, data })
    }

    fn counted(shape: Vec<usize>, data: Data, count: usize, name: &str) -> Result<Self, String> {
        let have = match &data {
            Data::Ints(list) => list.len(),
            Data::Floats(list) => list.len(),
            Data::Stored(..) => count,
        };
        if have != count {
            return Err(format!("{name} of shape {shape:?} has {have} values, not {count}"));
        }
        Ok(Self { shape, data })
    }

    /// Elements.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The integers, if they are.
    pub(super) fn as_ints(&self) -> Option<&[i64]> {
        if let Data::Ints(list) = &self.data { Some(list) } else { None }
    }

    /// The elements as floats, of a tensor of these files.
    pub(super) fn floats(&self, files: &[Bytes]) -> Vec<f32> {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "networks compute in f32")]
        match &self.data {
            Data::Ints(list) => list.iter().map(|&v| v as f32).collect(),
            Data::Floats(list) => list.clone(),
            Data::Stored(dtype, place) => {
                floats_of(*dtype, bytes_at(files, place)).unwrap_or_default().into_iter().map(|v| v as f32).collect()
            }
        }
    }

    /// The element, if there is one alone.
    pub(super) fn scalar(&self, files: &[Bytes]) -> Option<f32> {
        if self.len() == 1 { self.floats(files).first().copied() } else { None }
    }
}
