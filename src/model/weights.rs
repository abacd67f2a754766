//! Tensors of a model file or checkpoint, in memory as they are stored, converted on demand.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::tensor::{TensorInfo, TensorView};
use safetensors::{Dtype, SafeTensors};

use crate::error::{LoadError, LoadErrorKind};
use crate::host::{available_memory, open_file};
use crate::kernels::WindowShape;
use crate::shape::format_bytes;

/// The metadata key that holds the card.
const CARD_KEY: &str = "organum";

/// The largest header of a safetensors file in bytes, the card included.
const LARGEST_HEADER: u64 = 16 << 20;

/// Tensor names that are part of a training checkpoint and mean nothing to inference.
const IGNORED_SUFFIX: &str = "num_batches_tracked";

/// Names of buffers of masks, which are computed, end like this.
const MASK_SUFFIX: &str = "attn_mask";

/// Names of tensors of indices end like this.
const INDEX_SUFFIX: &str = "_index";

/// How the tensors of a file may differ from those of a graph.
#[derive(Clone, Debug)]
pub(super) struct Tolerance {
    /// The name under which the graph knows a tensor that repeats another under a further name.
    pub canonical: fn(&str) -> String,
    /// Prefixes of tensors that a checkpoint holds and no output depends on.
    pub dead: Vec<String>,
    /// What a missing index by relative position is, if it can be rebuilt: the row of the table for each query and key.
    pub relative_index: Option<fn(&WindowShape) -> Vec<f64>>,
}

impl Default for Tolerance {
    /// None at all.
    fn default() -> Self {
        Self { canonical: str::to_owned, dead: Vec::new(), relative_index: None }
    }
}

/// The tensors of a model file or checkpoint.
#[derive(Debug)]
pub struct Weights {
    /// The file, and those beside it.
    files: Arc<[Bytes]>,
    tensors: BTreeMap<String, Stored>,
    /// What a safetensors file says beside its tensors; the card is one of its keys.
    metadata: HashMap<String, String>,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Place,
}

/// Where a tensor's bytes lie, in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the file.
    File(Range<usize>),
    /// In a file beside it, by its number from 1 on.
    Beside(usize, Range<usize>),
    /// Here, as the file has them in another order.
    Held(Vec<u8>),
}

impl Place {
    fn len(&self) -> usize {
        match self {
            Self::File(range) | Self::Beside(_, range) => range.len(),
            Self::Held(bytes) => bytes.len(),
        }
    }
}

/// The bytes of a file, in memory: a mapped file that another program cuts short ends the process
/// where it is read.
#[derive(Debug)]
pub(super) struct Bytes(Cow<'static, [u8]>);

impl Bytes {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is missing, unreadable, cut short meanwhile, or larger than the memory.
    pub(super) fn read(path: &Path) -> Result<Self, LoadError> {
        let open = |e| LoadError::io(format!("cannot open the model {}", path.display()), e);
        let mut file = open_file(path).map_err(open)?;
        let length = file.metadata().map_err(open)?.len();
        let bytes = usize::try_from(length).ok().filter(|_| available_memory().is_none_or(|there| length <= there));
        let mut data = Vec::new();
        bytes.and_then(|bytes| data.try_reserve_exact(bytes).ok()).ok_or_else(|| {
            let text = format!("the model {} of {} does not fit into the memory", path.display(), format_bytes(length));
            LoadError::new(LoadErrorKind::Io, text)
        })?;
        file.by_ref().take(length).read_to_end(&mut data).map_err(open)?;
        if data.len() as u64 != length {
            let text = format!("the model {} was cut short while it was read: {} of {length} bytes", path.display(), data.len());
            return Err(LoadError::new(LoadErrorKind::Io, text));
        }
        Ok(Self(data.into()))
    }

    pub(super) fn get(&self) -> &[u8] {
        &self.0
    }
}

impl From<Cow<'static, [u8]>> for Bytes {
    fn from(bytes: Cow<'static, [u8]>) -> Self {
        Self(bytes)
    }
}

impl Weights {
    /// The tensors of a safetensors file in memory.
    #[cfg(test)]
    pub(super) fn from_bytes(bytes: Cow<'static, [u8]>) -> Result<Self, LoadError> {
        Self::of_safetensors(bytes.into())
    }

    /// The tensors of a safetensors file.
    ///
    /// # Errors
    /// When it is damaged.
    pub(super) fn of_safetensors(bytes: Bytes) -> Result<Self, LoadError> {
        let format = |e| LoadError::new(LoadErrorKind::Format, "damaged or no safetensors data").caused_by(e);
        // what a header becomes in memory is many times larger
        if let Some(length) = bytes.get().first_chunk().map(|b| u64::from_le_bytes(*b)).filter(|n| *n > LARGEST_HEADER) {
            let text = format!("damaged or no safetensors data: its header claims {length} bytes, {LARGEST_HEADER} at most are read");
            return Err(LoadError::new(LoadErrorKind::Format, text));
        }
        let (header, metadata) = SafeTensors::read_metadata(bytes.get()).map_err(format)?;
        // checks the offsets once, so that tensors can be sliced without parsing the header again
        SafeTensors::deserialize(bytes.get()).map_err(format)?;
        let said = metadata.metadata().clone().unwrap_or_default();
        let stored = |info: &TensorInfo| Stored {
            dtype: info.dtype,
            shape: info.shape.clone(),
            data: Place::File(header + 8 + info.data_offsets.0..header + 8 + info.data_offsets.1),
        };
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, stored(info))).collect();
        Ok(Self { files: Arc::new([bytes]), tensors, metadata: said })
    }

    /// Tensors of a file of another format, or of several, the first first.
    pub(super) fn of_tensors(files: impl Into<Arc<[Bytes]>>, tensors: BTreeMap<String, Stored>) -> Self {
        Self { files: files.into(), tensors, metadata: HashMap::new() }
    }

    /// Bytes of memory that the file takes, and tensors beside it.
    pub(super) fn held(&self) -> u64 {
        let owned = |file: &&Bytes| matches!(file.0, Cow::Owned(_));
        let files: usize = self.files.iter().filter(owned).map(|file| file.get().len()).sum();
        let tensors = self.tensors.values().map(|t| if matches!(t.data, Place::Held(_)) { t.data.len() } else { 0 });
        (files + tensors.sum::<usize>()) as u64
    }

    /// The card's JSON, if the file holds one.
    pub(super) fn card(&self) -> Option<&str> {
        self.said(CARD_KEY)
    }

    /// What a safetensors file says under a key of its metadata.
    pub(super) fn said(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Names and shapes of all tensors, sorted by name.
    #[must_use]
    pub fn list(&self) -> Vec<(String, Vec<usize>)> {
        self.tensors.iter().map(|(name, t)| (name.clone(), t.shape.clone())).collect()
    }

    /// The shape of a tensor.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// The type of a tensor's elements.
    #[cfg(test)]
    pub(super) fn tensor_type(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|t| t.dtype)
    }

    /// The names of all tensors, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Gives tensors other names, and leaves out those that get none.
    pub(super) fn rename(&mut self, name: impl Fn(&str) -> Option<String>) {
        let renamed = |(old, tensor): (String, Stored)| Some((name(&old)?, tensor));
        self.tensors = std::mem::take(&mut self.tensors).into_iter().filter_map(renamed).collect();
    }

    /// Leaves out tensors that share their bytes with the one that a network knows them by.
    pub(super) fn drop_repeated(&mut self, canonical: fn(&str) -> String) {
        let repeats = |name: &str| {
            let first = canonical(name);
            first != name && self.tensors.get(name) == self.tensors.get(&first)
        };
        let repeated: Vec<String> = self.names().filter(|name| repeats(name)).map(str::to_owned).collect();
        repeated.iter().for_each(|name| drop(self.tensors.remove(name)));
    }

    /// Leaves out the card.
    pub(super) fn forget_card(&mut self) {
        self.metadata.remove(CARD_KEY);
    }

    /// A tensor's bytes in row-major order, little-endian.
    pub(super) fn data(&self, name: &str) -> Option<&[u8]> {
        match &self.tensors.get(name)?.data {
            Place::File(range) => self.files.first()?.get().get(range.clone()),
            Place::Beside(file, range) => self.files.get(*file)?.get().get(range.clone()),
            Place::Held(bytes) => Some(bytes),
        }
    }

    /// Writes a safetensors file of all tensors, as they are, under a card.
    ///
    /// # Errors
    /// When a tensor is cut short or the file cannot be written.
    pub(super) fn save(&self, card: &str, path: &Path) -> std::io::Result<()> {
        let views = self.tensors.iter().map(|(name, t)| {
            let data = self.data(name).ok_or_else(|| std::io::Error::other(format!("{name} is cut short")))?;
            Ok((name.as_str(), TensorView::new(t.dtype, t.shape.clone(), data).map_err(std::io::Error::other)?))
        });
        let views = views.collect::<std::io::Result<Vec<_>>>()?;
        let metadata = HashMap::from([(CARD_KEY.to_owned(), card.to_owned())]);
        safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => e,
            other => std::io::Error::other(other),
        })
    }

    /// Bytes of all tensors as stored.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.data.len() as u64).sum()
    }

    /// Elements of all tensors that are parameters.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let count = |shape: &[usize]| shape.iter().map(|&n| n as u64).product::<u64>();
        self.tensors
            .iter()
            .filter(|(name, t)| {
                !name.contains("running_") && ![IGNORED_SUFFIX, MASK_SUFFIX].iter().any(|s| name.ends_with(s)) && is_float(t.dtype)
            })
            .map(|(_, t)| count(&t.shape))
            .sum()
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Compares with what an output needs, and what the modules hold that lead to none besides.
    ///
    /// # Errors
    /// Lists every tensor that is missing, extra, mis-shaped or of a type that is not read.
    pub(super) fn check(
        &self,
        needed: &[(String, Vec<usize>)],
        all: &[(String, Vec<usize>)],
        tolerance: &Tolerance,
    ) -> Result<(), LoadError> {
        let present = &self.tensors;
        let mut problems = Vec::new();
        let needed: std::collections::HashSet<&str> = needed.iter().map(|(name, _)| name.as_str()).collect();
        for (name, shape) in all {
            match present.get(name) {
                None if !needed.contains(name.as_str()) => {}
                None if tolerance.relative_index.is_some() && name.ends_with(INDEX_SUFFIX) => {}
                None => problems.push(format!("missing {name} {shape:?}")),
                Some(t) if t.shape != *shape => {
                    problems.push(format!("mis-shaped {name}: {:?} in the file, {shape:?} in the network", t.shape))
                }
                Some(t) if !(is_float(t.dtype) || name.ends_with(INDEX_SUFFIX) && matches!(t.dtype, Dtype::I32 | Dtype::I64)) => {
                    problems.push(format!("unsupported type {:?} of {name}", t.dtype))
                }
                Some(_) => {}
            }
        }
        let shapes: HashMap<&str, &Vec<usize>> = all.iter().map(|(name, shape)| (name.as_str(), shape)).collect();
        let known = |name: &str, shape: &Vec<usize>| {
            shapes.contains_key(name)
                || name.ends_with(IGNORED_SUFFIX)
                || shapes.get((tolerance.canonical)(name).as_str()) == Some(&shape)
                || tolerance.dead.iter().any(|prefix| name.starts_with(prefix))
        };
        let extra = present.iter().filter(|(name, t)| !known(name, &t.shape)).map(|(name, _)| name);
        problems.extend(extra.map(|n| format!("extra {n}")));
        if problems.is_empty() {
            return Ok(());
        }
        Err(LoadError::new(
            LoadErrorKind::Tensors,
            format!("{} tensors do not fit the architecture: {}", problems.len(), problems.join("; ")),
        ))
    }

    /// Refuses NaN and infinite values in tensors that an output needs, and what f32 does not hold.
    ///
    /// # Errors
    /// Names the tensor, and how many of its values it are.
    pub(super) fn check_finite(&self, needed: &[(String, Vec<usize>)]) -> Result<(), LoadError> {
        use rayon::prelude::*;
        let broken = needed.par_iter().find_map_first(|(name, _)| {
            let tensor = self.tensor(name).ok()?;
            let count = tensor.non_finite();
            (count > 0).then(|| (name, count, tensor.len()))
        });
        let Some((name, count, of)) = broken else { return Ok(()) };
        let text = format!(
            "{count} of the {of} values of the tensor {name} are NaN or infinite, so that the network's results would be; \
             take another checkpoint, or say that they are allowed (--allow-non-finite)"
        );
        Err(LoadError::new(LoadErrorKind::NonFinite, text))
    }

    /// A tensor's elements in row-major order, as f64.
    ///
    /// # Errors
    /// When it is missing or neither of a float nor of a signed integer type.
    pub fn floats(&self, name: &str) -> Result<Vec<f64>, LoadError> {
        let tensor = self.tensor(name)?;
        Ok(tensor.read(0..tensor.len()))
    }

    /// A tensor, to be read where it lies.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor<'_>, LoadError> {
        let bad = |what: String| LoadError::new(LoadErrorKind::Tensors, what);
        let stored = self.tensors.get(name).ok_or_else(|| bad(format!("missing {name}")))?;
        let data = self.data(name).ok_or_else(|| bad(format!("{name} is cut short")))?;
        let dtype = stored.dtype;
        if !(is_float(dtype) || matches!(dtype, Dtype::I32 | Dtype::I64)) {
            return Err(bad(format!("unsupported type {dtype:?} of {name}")));
        }
        Ok(Tensor { dtype, data })
    }
}

/// A tensor of floats or signed integers in the file.
pub(super) struct Tensor<'a> {
    dtype: Dtype,
    data: &'a [u8],
}

impl Tensor<'_> {
    /// Elements.
    pub(super) fn len(&self) -> usize {
        self.data.len() * 8 / self.dtype.bitsize().max(8)
    }

    /// How many elements are NaN, infinite, or beyond the range of f32.
    fn non_finite(&self) -> usize {
        // all bits of the exponent are set
        fn count<const N: usize>(data: &[u8], is: impl Fn([u8; N]) -> bool + Sync) -> usize {
            data.as_chunks::<N>().0.iter().filter(|&&bytes| is(bytes)).count()
        }
        match self.dtype {
            Dtype::F16 => count(self.data, |b| u16::from_le_bytes(b) & 0x7C00 == 0x7C00),
            Dtype::BF16 => count(self.data, |b| u16::from_le_bytes(b) & 0x7F80 == 0x7F80),
            Dtype::F32 => count(self.data, |b| u32::from_le_bytes(b) & 0x7F80_0000 == 0x7F80_0000),
            #[expect(clippy::cast_possible_truncation, reason = "the range of f32 is what is asked for")]
            Dtype::F64 => count(self.data, |b| !(f64::from_le_bytes(b) as f32).is_finite()),
            _ => 0,
        }
    }

    /// Elements of a range in row-major order; none where the range is not the tensor's.
    pub(super) fn read(&self, range: Range<usize>) -> Vec<f64> {
        let size = self.dtype.bitsize() / 8;
        let bytes = self.data.get(range.start * size..range.end * size).unwrap_or_default();
        floats_of(self.dtype, bytes).unwrap_or_default()
    }
}

/// A safetensors file of random f32 tensors under a card: weights scaled by their fan-in, variances positive.
pub(super) fn random(card: &str, tensors: &[(String, Vec<usize>)], seed: u64) -> Result<Vec<u8>, LoadError> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut unit = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        // the high bits of xorshift64* as the fraction of a float in 2..4
        let bits = u32::try_from(state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 41).unwrap_or(0);
        f32::from_bits(0x4000_0000 | bits) - 3.0
    };
    let mut data = Vec::with_capacity(tensors.len());
    let mut rows = 1u16;
    for (name, shape) in tensors {
        let n: usize = shape.iter().product();
        let fan_in: f32 = shape.iter().skip(1).map(|&k| f32::from(u16::try_from(k).unwrap_or(u16::MAX))).product();
        let positive = shape.len() == 1 && (name.ends_with("running_var") || name.ends_with("weight"));
        // an index comes after the table that it points into
        let indexed = std::mem::replace(&mut rows, shape.first().map_or(1, |&n| u16::try_from(n).unwrap_or(u16::MAX).max(1)));
        let index = name.ends_with(INDEX_SUFFIX);
        let mut bytes = Vec::with_capacity(n * 4);
        for _ in 0..n {
            let v = if index {
                (f32::from(indexed) * 0.5 * (1.0 + unit())).floor().clamp(0.0, f32::from(indexed - 1))
            } else if positive {
                1.0 + 0.5 * unit()
            } else if shape.len() == 1 {
                0.1 * unit()
            } else {
                unit() * (6.0 / fan_in).sqrt()
            };
            bytes.extend_from_slice(&v.to_le_bytes());
        }
        data.push((name, shape, bytes));
    }
    let format = |e| LoadError::new(LoadErrorKind::Format, "the random weights could not be stored").caused_by(e);
    let views = data
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, (*shape).clone(), bytes).map_err(format)?)))
        .collect::<Result<Vec<_>, LoadError>>()?;
    let metadata = HashMap::from([(CARD_KEY.to_owned(), card.to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(format)
}

/// The weights of an output less their mean, over the root of their biased variance plus `eps`.
pub(super) fn standardise(row: &mut [f64], eps: f64) {
    #[expect(clippy::cast_precision_loss, reason = "weights of one output are few")]
    let n = row.len() as f64;
    let mean = row.iter().sum::<f64>() / n;
    let variance = row.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / n;
    row.iter_mut().for_each(|w| *w = (*w - mean) / (variance + eps).sqrt());
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// Elements of a tensor of floats, or of signed integers, as f64; `None` for other types.
pub(super) fn floats_of(dtype: Dtype, data: &[u8]) -> Option<Vec<f64>> {
    fn each<const N: usize>(data: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        data.as_chunks::<N>().0.iter().map(|&b| f(b)).collect()
    }
    Some(match dtype {
        Dtype::F16 => each(data, |b| f16::from_le_bytes(b).to_f64()),
        Dtype::BF16 => each(data, |b| bf16::from_le_bytes(b).to_f64()),
        Dtype::F32 => each(data, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::F64 => each(data, f64::from_le_bytes),
        Dtype::I32 => each(data, |b| f64::from(i32::from_le_bytes(b))),
        #[expect(clippy::cast_precision_loss, reason = "indices are far below 2^53")]
        Dtype::I64 => each(data, |b| i64::from_le_bytes(b) as f64),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::standardise;

    #[test]
    fn weights_of_an_output_are_standardised() {
        let mut weight = [1.0, 2.0, 3.0, 6.0];
        standardise(&mut weight, 0.5);
        // mean 3, biased variance 3.5
        assert_eq!(weight, [-1.0, -0.5, 0.0, 1.5]);
    }
}
