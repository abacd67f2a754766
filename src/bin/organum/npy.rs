//! Arrays of `.npy` files, their claims checked before the reader sees them.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use organum::host::{available_memory, open_file};

/// The longest header in bytes; numpy refuses more than 10,000.
const LONGEST_HEADER: u32 = 1 << 16;
/// The most brackets in a header that are open at once: the reader of headers recurses.
const DEEPEST: i32 = 8;
/// The bytes of the longest prefix: magic, version, length.
const PREFIX: usize = 12;

/// An array of f32 in C order.
pub(crate) struct Array {
    pub(crate) shape: Vec<u64>,
    pub(crate) values: Vec<f32>,
}

/// Reads an array of f32.
///
/// # Errors
/// Says what is damaged or of another kind.
pub(crate) fn read(path: &Path) -> Result<Array, String> {
    let mut file = open_file(path).map_err(|e| e.to_string())?;
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    check_header(&mut file)?;
    file.rewind().map_err(|e| e.to_string())?;
    let npy = npyz::NpyFile::new(BufReader::new(file)).map_err(|e| e.to_string())?;
    if npy.order() != npyz::Order::C {
        return Err("the array is in Fortran order; save it with numpy.ascontiguousarray".into());
    }
    let shape = npy.shape().to_vec();
    let bytes = claimed(&shape).ok_or("its shape is beyond 64 bits")?;
    if bytes > length {
        return Err(format!("it is cut short: its shape announces {bytes} bytes, the file has {length}"));
    }
    if available_memory().is_some_and(|there| bytes > there) {
        return Err(format!("its {bytes} bytes do not fit into the memory"));
    }
    let values = npy.into_vec::<f32>().map_err(|e| e.to_string())?;
    Ok(Array { shape, values })
}

/// The bytes of the values of a shape.
fn claimed(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(4u64, |all, &n| all.checked_mul(n))
}

/// Refuses a header that is too long or nested too deeply.
fn check_header(file: &mut File) -> Result<(), String> {
    let mut begin = Vec::new();
    file.take(PREFIX as u64).read_to_end(&mut begin).map_err(|e| e.to_string())?;
    let (length, at) = match begin.as_slice() {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, a, b, ..] => (u32::from(u16::from_le_bytes([*a, *b])), 10),
        [0x93, b'N', b'U', b'M', b'P', b'Y', _, _, a, b, c, d] => (u32::from_le_bytes([*a, *b, *c, *d]), PREFIX),
        _ => return Err("it is no .npy file".into()),
    };
    if length > LONGEST_HEADER {
        return Err(format!("its header claims {length} bytes, {LONGEST_HEADER} at most are read"));
    }
    let mut header = begin.split_off(at);
    file.take(u64::from(length).saturating_sub(header.len() as u64)).read_to_end(&mut header).map_err(|e| e.to_string())?;
    let mut depth = 0i32;
    for byte in header {
        depth += match byte {
            b'(' | b'[' | b'{' => 1,
            b')' | b']' | b'}' => -1,
            _ => 0,
        };
        if depth > DEEPEST {
            return Err(format!("the brackets in its header are nested more than {DEEPEST} deep"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_those_of_the_shape() {
        assert_eq!(claimed(&[]), Some(4));
        assert_eq!(claimed(&[2, 3]), Some(24));
        assert_eq!(claimed(&[0, u64::MAX]), Some(0));
        assert_eq!(claimed(&[1 << 32, 1 << 32]), None);
    }
}
