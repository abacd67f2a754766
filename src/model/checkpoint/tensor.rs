//! Tensors of a pickle: which bytes of the archive they are, and those bytes in row-major order where they are not.
//!
//! Source: `torch/_utils.py` (`_rebuild_tensor`, `_rebuild_tensor_v2`, `_rebuild_parameter`) and `torch/serialization.py` of
//! PyTorch 2.12.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;

use super::pickle::{Id, Pickle, Value};
use super::zip::Entry;

/// Most axes of a tensor.
const MOST_AXES: usize = 16;

/// Most wrappings of a tensor: a parameter, its tensor.
const DEEPEST: u32 = 4;

/// A tensor of an archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Elements from one to the next along each axis.
    strides: Vec<usize>,
    /// Where its first element lies in the archive, and where its storage ends.
    storage: Range<usize>,
}

impl Found {
    /// Elements.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn size(&self) -> usize {
        self.dtype.bitsize() / 8
    }

    /// Its bytes in the archive, if they lie there in row-major order.
    pub(super) fn range(&self) -> Option<Range<usize>> {
        if self.len() == 0 {
            return Some(self.storage.start..self.storage.start);
        }
        let mut next = 1;
        for (&n, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if n != 1 && stride != next {
                return None;
            }
            next *= n;
        }
        Some(self.storage.start..self.storage.start + self.len() * self.size())
    }

    /// Its bytes in row-major order.
    pub(super) fn laid_out(&self, archive: &[u8]) -> Vec<u8> {
        let size = self.size();
        let mut out = Vec::with_capacity(self.len() * size);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..self.len() {
            let at = self.storage.start + index.iter().zip(&self.strides).map(|(i, s)| i * s).sum::<usize>() * size;
            out.extend_from_slice(archive.get(at..at + size).unwrap_or(&[0; 16][..size]));
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        out
    }
}

/// Where an archive keeps what its pickle names.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    pub entries: &'a BTreeMap<String, Entry>,
    /// The folder of the pickle in the archive, with its slash.
    pub folder: &'a str,
}

/// The class and the key of a storage by its identity. None of those that are views of others, as
/// PyTorch had them once.
pub(super) fn named<'a>(pickle: &Pickle<'a>, id: Id) -> Option<(&'a str, &'a str)> {
    let Value::Tuple(parts) = pickle.value(id) else { return None };
    let &[kind, class, key, ..] = parts.as_slice() else { return None };
    let whole = parts.get(5).is_none_or(|&view| *pickle.value(view) == Value::None);
    match (pickle.text(kind), pickle.global(class), pickle.text(key)) {
        (Some("storage"), Some((_, class)), Some(key)) if whole => Some((class, key)),
        _ => None,
    }
}

/// The type of the elements of a storage of this class.
pub(super) fn dtype(storage: &str) -> Option<Dtype> {
    Some(match storage {
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "CharStorage" => Dtype::I8,
        "ShortStorage" => Dtype::I16,
        "IntStorage" => Dtype::I32,
        "LongStorage" => Dtype::I64,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

impl Archive<'_> {
    /// The tensor that a value is; `None` where it is something else.
    ///
    /// # Errors
    /// When it is a tensor of which a part is missing, or that reaches out of its storage.
    pub(super) fn tensor(&self, pickle: &Pickle<'_>, id: Id) -> Result<Option<Found>, String> {
        let mut id = id;
        for _ in 0..DEEPEST {
            let Value::Object { callee, arguments, .. } = pickle.value(id) else { return Ok(None) };
            let Value::Tuple(arguments) = pickle.value(*arguments) else { return Ok(None) };
            match (pickle.global(*callee), arguments.as_slice()) {
                (Some(("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")), [inner, ..]) => id = *inner,
                (Some(("torch._tensor", "_rebuild_from_type_v2")), [function, _, inner, ..]) => {
                    let Value::Tuple(inner) = pickle.value(*inner) else { return Ok(None) };
                    return match pickle.global(*function) {
                        Some(("torch._utils", "_rebuild_tensor_v2")) => self.rebuilt(pickle, inner).map(Some),
                        _ => Ok(None),
                    };
                }
                (Some(("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2")), arguments) => {
                    return self.rebuilt(pickle, arguments).map(Some);
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    fn rebuilt(&self, pickle: &Pickle<'_>, arguments: &[Id]) -> Result<Found, String> {
        let [storage, offset, shape, strides, ..] = arguments else { return Err("it lacks a shape".into()) };
        let (dtype, bytes) = self.storage(pickle, *storage)?;
        let (offset, shape, strides) = (number(pickle, *offset), numbers(pickle, *shape), numbers(pickle, *strides));
        let (Some(offset), Some(shape), Some(strides)) = (offset, shape, strides) else {
            return Err("its shape or strides are no numbers".into());
        };
        if shape.len() != strides.len() || shape.len() > MOST_AXES {
            return Err(format!("it has {} axes and {} strides", shape.len(), strides.len()));
        }
        let size = dtype.bitsize() / 8;
        let beyond = || format!("its shape {shape:?} reaches beyond its storage of {} bytes", bytes.len());
        let elements = shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n)).and_then(|n| n.checked_mul(size));
        elements.ok_or_else(beyond)?;
        // one after the last element that any index reaches
        let mut end = offset;
        if shape.contains(&0) {
            end = end.min(bytes.len() / size);
        } else {
            for (&n, &stride) in shape.iter().zip(&strides) {
                end = (n - 1).checked_mul(stride).and_then(|reach| end.checked_add(reach)).ok_or_else(beyond)?;
            }
            end = end.checked_add(1).ok_or_else(beyond)?;
        }
        if end.checked_mul(size).is_none_or(|n| n > bytes.len()) {
            return Err(beyond());
        }
        let begin = bytes.start + offset.min(end) * size;
        Ok(Found { dtype, shape, strides, storage: begin..bytes.end })
    }

    /// Type and bytes of a storage.
    fn storage(&self, pickle: &Pickle<'_>, id: Id) -> Result<(Dtype, Range<usize>), String> {
        let Value::Persistent(id) = pickle.value(id) else { return Err("its storage is not in the archive".into()) };
        let (class, key) = named(pickle, *id).ok_or("its storage has no name")?;
        let dtype = dtype(class).ok_or_else(|| format!("its elements are in a {class:.40}, which is not read"))?;
        let name = format!("{}data/{key}", self.folder);
        let entry = self.entries.get(&name).ok_or_else(|| format!("the archive lacks {name:.80}"))?;
        if !entry.stored {
            return Err(format!("{name:.80} is compressed; torch.save stores it as it is"));
        }
        Ok((dtype, entry.data.clone()))
    }
}

fn number(pickle: &Pickle<'_>, id: Id) -> Option<usize> {
    match pickle.value(id) {
        Value::Int(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}

fn numbers(pickle: &Pickle<'_>, id: Id) -> Option<Vec<usize>> {
    match pickle.value(id) {
        Value::Tuple(list) | Value::List(list) if list.len() <= MOST_AXES => list.iter().map(|&id| number(pickle, id)).collect(),
        // torch.Size
        Value::Object { arguments, .. } => match pickle.value(*arguments) {
            Value::Tuple(one) if one.len() == 1 => match pickle.value(one[0]) {
                Value::Tuple(list) | Value::List(list) if list.len() <= MOST_AXES => list.iter().map(|&id| number(pickle, id)).collect(),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(shape: &[usize], strides: &[usize]) -> Found {
        Found { dtype: Dtype::U8, shape: shape.to_vec(), strides: strides.to_vec(), storage: 1..7 }
    }

    #[test]
    fn only_rows_in_their_order_are_mapped() {
        let archive = [9, 0, 1, 2, 3, 4, 5];
        assert_eq!(found(&[2, 3], &[3, 1]).range(), Some(1..7));
        assert_eq!(found(&[1, 6], &[77, 1]).range(), Some(1..7));
        assert_eq!(found(&[0, 6], &[1, 7]).range(), Some(1..1));
        assert_eq!(found(&[0, usize::MAX, 2], &[1, 7, 1]).range(), Some(1..1));
        assert_eq!(found(&[], &[]).range(), Some(1..2));
        let transposed = found(&[3, 2], &[1, 3]);
        assert_eq!((transposed.range(), transposed.laid_out(&archive)), (None, vec![0, 3, 1, 4, 2, 5]));
        let repeated = found(&[2, 2], &[0, 2]);
        assert_eq!((repeated.range(), repeated.laid_out(&archive)), (None, vec![0, 2, 0, 2]));
    }
}
