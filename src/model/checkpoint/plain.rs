//! A pickle of plain values, numpy's among them, as JSON.
//!
//! Source: what `__reduce__` of numpy's arrays, scalars and types returns (numpy 1.x and 2.x, pickle protocols 2 to 5).

use std::borrow::Cow;

use serde_json::{Map, Value as Json};

use super::pickle::{Id, Pickle, Value};

/// Most values that are told or looked at: a file may tell one of them again and again.
const MOST_VALUES: usize = 1 << 20;

/// Most bytes of all texts that are told.
const MOST_BYTES: usize = 16 << 20;

/// Most elements of an array that is told.
const MOST_ELEMENTS: usize = 4096;

/// Deepest value within values.
const DEEPEST: u32 = 32;

/// The pickle's root as JSON. Of dicts, keys that are text are told if they are among `keys`, and whole numbers always, as text.
/// Tuples, sets and numpy's arrays are lists, a class or function is its name; what is no plain
/// value is null, and so are numbers that are not finite and arrays of more than 4096 elements.
///
/// # Errors
/// Says what is damaged, nested too deeply or too large.
pub(crate) fn plain(bytes: &[u8], keys: &[&str]) -> Result<Json, String> {
    let pickle = Pickle::read(bytes)?;
    Telling { pickle: &pickle, keys: Some(keys), told: 0, bytes: 0 }.value(pickle.root, 0)
}

/// The same with all keys of its dicts.
///
/// # Errors
/// As [`plain`].
pub(crate) fn pickled(bytes: &[u8]) -> Result<Json, String> {
    let pickle = Pickle::read(bytes)?;
    value(&pickle, pickle.root)
}

/// A value of a pickle as JSON, with all keys of its dicts; otherwise as [`plain`].
///
/// # Errors
/// As [`plain`].
pub(super) fn value(pickle: &Pickle<'_>, id: Id) -> Result<Json, String> {
    Telling { pickle, keys: None, told: 0, bytes: 0 }.value(id, 0)
}

/// Type of numpy's numbers: kind (`f`, `i`, `u`, `b`, or `O` for any value), bytes, and whether the first of them is the greatest.
struct Dtype {
    kind: char,
    size: usize,
    big: bool,
}

impl Dtype {
    fn number(&self, bytes: &[u8]) -> Json {
        let mut wide = [0; 8];
        for (i, byte) in bytes.iter().take(8).enumerate() {
            wide[if self.big { bytes.len() - 1 - i } else { i }] = *byte;
        }
        let bits = u64::from_le_bytes(wide);
        match (self.kind, self.size) {
            ('b', 1) => (bits != 0).into(),
            ('u', 1 | 2 | 4 | 8) => bits.into(),
            // the sign is that of the last byte
            ('i', 1 | 2 | 4 | 8) => {
                let above = 64 - 8 * self.size;
                ((bits << above).cast_signed() >> above).into()
            }
            ('f', 8) => f64::from_bits(bits).into(),
            ('f', 4) => f64::from(f32::from_le_bytes([wide[0], wide[1], wide[2], wide[3]])).into(),
            ('f', 2) => half::f16::from_le_bytes([wide[0], wide[1]]).to_f64().into(),
            _ => Json::Null,
        }
    }
}

struct Telling<'a> {
    pickle: &'a Pickle<'a>,
    /// Keys that are text are told if they are among these, or all of them.
    keys: Option<&'a [&'a str]>,
    told: usize,
    bytes: usize,
}

impl Telling<'_> {
    /// Counts values that are told or looked at.
    fn count(&mut self, values: usize) -> Result<(), String> {
        self.told = self.told.saturating_add(values);
        if self.told > MOST_VALUES {
            return Err(format!("the pickle's values, and those that they repeat, are more than {MOST_VALUES}"));
        }
        Ok(())
    }

    /// The text of a value, which is copied.
    fn copied(&mut self, text: &str) -> Result<String, String> {
        self.bytes = self.bytes.saturating_add(text.len());
        if self.bytes > MOST_BYTES {
            return Err(format!("the pickle's texts, and those that they repeat, are more than {MOST_BYTES} bytes"));
        }
        Ok(text.to_owned())
    }

    fn value(&mut self, id: Id, depth: u32) -> Result<Json, String> {
        let pickle = self.pickle;
        self.count(1)?;
        if depth > DEEPEST {
            return Err(format!("the pickle's values are nested more than {DEEPEST} deep"));
        }
        Ok(match pickle.value(id) {
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Text(span) => self.copied(pickle.span(span))?.into(),
            Value::List(items) | Value::Tuple(items) => self.list(items, depth)?,
            Value::Dict(items) => {
                // keys that are not told are looked at
                self.count(items.len())?;
                let mut told = Map::new();
                for &(key, value) in items {
                    if let Some(key) = self.key(key)? {
                        told.insert(key, self.value(value, depth + 1)?);
                    }
                }
                told.into()
            }
            Value::Object { callee, arguments, state } => self.object(*callee, *arguments, *state, depth)?,
            Value::Global(module, name) => {
                let name = format!("{}.{}", pickle.span(module), pickle.span(name));
                self.copied(&name)?.into()
            }
            Value::None | Value::Bytes(_) | Value::Persistent(_) | Value::Opaque => Json::Null,
        })
    }

    fn list(&mut self, items: &[Id], depth: u32) -> Result<Json, String> {
        items.iter().map(|&item| self.value(item, depth + 1)).collect::<Result<Vec<_>, _>>().map(Json::from)
    }

    /// A key that is told.
    fn key(&mut self, id: Id) -> Result<Option<String>, String> {
        let pickle = self.pickle;
        Ok(match pickle.value(id) {
            Value::Text(span) => {
                let wanted = |key: &&str| self.keys.is_none_or(|keys| keys.contains(key));
                Some(pickle.span(span)).filter(wanted).map(|key| self.copied(key)).transpose()?
            }
            Value::Int(number) => Some(number.to_string()),
            Value::Object { callee, arguments, .. } => {
                let number = tuple(pickle, *arguments).and_then(|arguments| self.scalar(*callee, arguments));
                number.filter(|n| n.is_i64()).map(|n| n.to_string())
            }
            _ => None,
        })
    }

    /// A function of numpy's insides.
    fn numpy(&self, callee: Id) -> Option<&str> {
        let (module, name) = self.pickle.global(callee)?;
        module.strip_prefix("numpy.core.").or_else(|| module.strip_prefix("numpy._core."))?;
        Some(name)
    }

    fn object(&mut self, callee: Id, arguments: Id, state: Option<Id>, depth: u32) -> Result<Json, String> {
        let pickle = self.pickle;
        let arguments = tuple(pickle, arguments).unwrap_or_default();
        let found = match (self.numpy(callee), arguments) {
            (Some("scalar"), arguments) => return Ok(self.scalar(callee, arguments).unwrap_or_default()),
            (Some("_reconstruct"), _) => match state.and_then(|state| tuple(pickle, state)) {
                Some(&[_, shape, dtype, columns, data]) => Some((shape, dtype, *pickle.value(columns) == Value::Bool(true), data)),
                _ => None,
            },
            (Some("_frombuffer"), &[data, dtype, shape, order]) => Some((shape, dtype, pickle.text(order) == Some("F"), data)),
            _ => None,
        };
        let Some((shape, dtype, columns, data)) = found else { return Ok(Json::Null) };
        let Some((shape, dtype)) = self.shape(shape).zip(self.dtype(dtype)) else { return Ok(Json::Null) };
        let elements = if let Value::List(items) = pickle.value(data) {
            if items.len() > MOST_ELEMENTS {
                return Ok(Json::Null);
            }
            match self.list(items, depth)? {
                Json::Array(elements) => elements,
                _ => Vec::new(),
            }
        } else {
            let bytes = self.bytes(data).unwrap_or_default();
            if bytes.len() > MOST_ELEMENTS * dtype.size {
                return Ok(Json::Null);
            }
            bytes.chunks_exact(dtype.size).map(|element| dtype.number(element)).collect()
        };
        self.count(elements.len())?;
        if shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n)) != Some(elements.len()) {
            return Err("an array's elements are not those of its shape".into());
        }
        // of no elements there may be any number of lists; their product is not that of the others
        if elements.is_empty() {
            return Ok(Json::Array(Vec::new()));
        }
        let mut steps = vec![1; shape.len()];
        for axis in 1..shape.len() {
            let (axis, before) = if columns { (axis, axis - 1) } else { (shape.len() - 1 - axis, shape.len() - axis) };
            steps[axis] = steps[before] * shape[before];
        }
        Ok(nested(&elements, &shape, &steps, 0))
    }

    /// A number of numpy's.
    fn scalar(&self, callee: Id, arguments: &[Id]) -> Option<Json> {
        let (Some("scalar"), &[dtype, bytes]) = (self.numpy(callee), arguments) else { return None };
        let (dtype, bytes) = (self.dtype(dtype)?, self.bytes(bytes)?);
        (bytes.len() == dtype.size).then(|| dtype.number(&bytes))
    }

    fn shape(&self, id: Id) -> Option<Vec<usize>> {
        let axes = tuple(self.pickle, id).filter(|axes| axes.len() < DEEPEST as usize)?;
        let axis = |&id: &Id| match self.pickle.value(id) {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        axes.iter().map(axis).collect()
    }

    fn dtype(&self, id: Id) -> Option<Dtype> {
        let Value::Object { callee, arguments, state } = self.pickle.value(id) else { return None };
        let (("numpy", "dtype"), [name, ..]) = (self.pickle.global(*callee)?, tuple(self.pickle, *arguments)?) else { return None };
        let name = self.pickle.text(*name)?;
        let kind = name.chars().next()?;
        let size = name.get(1..)?.parse().ok().filter(|size| (1..=8).contains(size))?;
        let order = state.and_then(|state| tuple(self.pickle, state)?.get(1)).and_then(|&order| self.pickle.text(order));
        Some(Dtype { kind, size, big: order == Some(">") })
    }

    /// Bytes as they are, of a bytearray, or as protocol 2 writes them: as text of which each character is one.
    fn bytes(&self, id: Id) -> Option<Cow<'_, [u8]>> {
        match self.pickle.value(id) {
            Value::Bytes(span) => Some(self.pickle.raw(span).into()),
            Value::Object { callee, arguments, .. } => match (self.pickle.global(*callee)?, tuple(self.pickle, *arguments)?) {
                (("_codecs", "encode"), [text, ..]) => {
                    self.pickle.text(*text)?.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<Vec<_>>>().map(Cow::from)
                }
                (("builtins" | "__builtin__", "bytearray"), [bytes, ..]) => match self.pickle.value(*bytes) {
                    Value::Bytes(span) => Some(self.pickle.raw(span).into()),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }
}

fn tuple<'a>(pickle: &'a Pickle<'_>, id: Id) -> Option<&'a [Id]> {
    match pickle.value(id) {
        Value::Tuple(items) => Some(items),
        _ => None,
    }
}

/// Elements from `at` on as lists within lists; `steps` are those from one to the next along each axis.
fn nested(elements: &[Json], shape: &[usize], steps: &[usize], at: usize) -> Json {
    match (shape, steps) {
        ([n, shape @ ..], [step, steps @ ..]) => (0..*n).map(|i| nested(elements, shape, steps, at + i * step)).collect(),
        _ => elements.get(at).cloned().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `{"a": np.array([[1.5, 2], [3, 4]], order="F"), "b": [np.int64(-3), np.float32(0.5), np.bool_(True)], 7: (None, "x"),
    /// np.int64(8): np.array([1, "y"], object), "left": 1, "c": np.arange(3, dtype=">i2")}`, by numpy 2.4 in protocols 2, 4 and 5.
    const PICKLES: [&[u8]; 3] = [
        include_bytes!("../../../tests/vectors/numpy/protocol_2.pkl"),
        include_bytes!("../../../tests/vectors/numpy/protocol_4.pkl"),
        include_bytes!("../../../tests/vectors/numpy/protocol_5.pkl"),
    ];

    #[test]
    fn numpys_values_are_numbers_and_lists() {
        let want = json!({"a": [[1.5, 2.0], [3.0, 4.0]], "b": [-3, 0.5, true], "7": [null, "x"], "8": [1, "y"], "c": [0, 1, 2]});
        for bytes in PICKLES {
            assert_eq!(plain(bytes, &["a", "b", "c"]), Ok(want.clone()));
        }
    }

    #[test]
    fn damaged_pickles_are_no_panic() {
        for bytes in PICKLES {
            for n in 0..bytes.len() {
                assert!(plain(&bytes[..n], &["a"]).is_err());
                let mut other = bytes.to_vec();
                for flip in [1, 0x80, 0xFF] {
                    other[n] = bytes[n] ^ flip;
                    drop(plain(&other, &["a", "b", "c"]));
                }
            }
        }
    }

    #[test]
    fn arrays_without_elements_cost_nothing() {
        let array = |shape: &[u64]| {
            let mut bytes = b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R(".to_vec();
            for n in shape {
                bytes.extend([0x8A, 8]);
                bytes.extend(n.to_le_bytes());
            }
            bytes.extend(b"tX\x01\x00\x00\x00CtR.");
            plain(&bytes, &[])
        };
        for shape in [&[1 << 40, 0][..], &[0, 1 << 40], &[100_000_000, 0, 3], &[0]] {
            assert_eq!(array(shape), Ok(json!([])), "{shape:?}");
        }
        assert!(array(&[1 << 32, 1 << 32]).is_err_and(|e| e.contains("shape")));
    }

    #[test]
    fn values_that_repeat_without_end_are_refused() {
        // ten times a list of the last list, and so on: 10^8 values of some hundred bytes
        let mut bytes = b"\x80\x02]".to_vec();
        for level in 0..8 {
            bytes.extend([b'q', level, b'0', b']', b'(']);
            bytes.extend([b'h', level].repeat(10));
            bytes.push(b'e');
        }
        bytes.push(b'.');
        assert!(plain(&bytes, &[]).is_err_and(|e| e.contains("more than 1048576")));
        // one text of a megabyte, twenty thousand times
        let mut bytes = b"\x80\x02X\0\0\x10\0".to_vec();
        bytes.resize(bytes.len() + (1 << 20), b'x');
        bytes.extend(b"q\x000](");
        bytes.extend(b"h\x00".repeat(20_000));
        bytes.extend(b"e.");
        assert!(plain(&bytes, &[]).is_err_and(|e| e.contains("texts")));
        // and so are its keys
        let at = bytes.len() - 2;
        bytes[at..].copy_from_slice(b"d.");
        assert!(plain(&bytes, &[]).is_ok_and(|v| v == json!({})), "keys that are not asked for are not copied");
        // a dict of keys that are not told, again and again
        let mut bytes = b"\x80\x02}(".to_vec();
        bytes.extend(b"NN".repeat(10_000));
        bytes.extend(b"uq\x000](");
        bytes.extend(b"h\x00".repeat(10_000));
        bytes.extend(b"e.");
        assert!(plain(&bytes, &[]).is_err_and(|e| e.contains("more than 1048576")));
        // a list of itself
        assert!(plain(b"\x80\x02]q\x00h\x00a.", &[]).is_err_and(|e| e.contains("nested")));
        assert_eq!(plain(b"\x80\x02N.", &[]), Ok(Json::Null));
    }
}
