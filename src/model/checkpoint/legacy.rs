//! The container of checkpoints before PyTorch 1.6, which torch.save still writes with
//! `_use_new_zipfile_serialization=False`.
//!
//! Source: `_legacy_save` and `_legacy_load` in `torch/serialization.py` of PyTorch 2.15. Five
//! pickles lie one after the other: a number by which the format is known, its version, facts of
//! the machine, what was saved, and the keys of its storages. The storages follow in that order,
//! each after the number of its elements.

use std::collections::{BTreeMap, HashMap};

use super::pickle::{Pickle, Value};
use super::tensor::{dtype, named};
use super::zip::Entry;

/// The first bytes of such a file: a pickle of the number 0x1950a86a20f9469cfc6c.
const BEGIN: [u8; 14] = [0x80, 2, 0x8A, 0x0A, 0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19];

/// The version that PyTorch reads and writes.
const VERSION: i64 = 1001;

/// Bytes of the number of a storage's elements.
const COUNT: usize = 8;

/// Returns `true` if bytes begin as such a file does.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    bytes.starts_with(&BEGIN)
}

/// Reads the saved object, and its storages under the names that an archive has for them.
///
/// # Errors
/// Says what is damaged or of another version or byte order.
pub(super) fn read(bytes: &[u8]) -> Result<(Pickle<'_>, BTreeMap<String, Entry>), String> {
    // behind the number and its end
    let mut at = BEGIN.len() + 1;
    let mut next = |what: &str| {
        let rest = bytes.get(at..).unwrap_or_default();
        let pickle = Pickle::read(rest).map_err(|e| format!("{what} is damaged: {e}"))?;
        at += pickle.length;
        Ok::<_, String>(pickle)
    };
    let version = next("the version of the checkpoint's format")?;
    if *version.value(version.root) != Value::Int(VERSION) {
        return Err(format!("the checkpoint's format before PyTorch 1.6 is of another version than {VERSION}"));
    }
    let machine = next("what the checkpoint says of its machine")?;
    if machine.get(machine.root, "little_endian").is_some_and(|order| *machine.value(order) == Value::Bool(false)) {
        return Err("the checkpoint's numbers are big-endian, which is not read; save it anew on a little-endian machine".into());
    }
    let saved = next("what the checkpoint holds")?;
    let keys = next("the list of the checkpoint's storages")?;
    let Value::List(list) = keys.value(keys.root) else { return Err("the list of the checkpoint's storages is none".into()) };
    let classes: HashMap<&str, &str> = saved.persistent().filter_map(|id| named(&saved, id)).map(|(class, key)| (key, class)).collect();
    let mut storages = BTreeMap::new();
    for &key in list {
        let key = keys.text(key).ok_or("the key of a storage of the checkpoint is no string")?;
        let cut = || format!("the checkpoint's storage {key:.40} is cut short");
        let count = bytes.get(at..).and_then(<[u8]>::first_chunk::<COUNT>).ok_or_else(cut)?;
        let count = usize::try_from(i64::from_le_bytes(*count)).map_err(|_| cut())?;
        let class = classes.get(key).ok_or_else(|| format!("the checkpoint's storage {key:.40} is of no tensor"))?;
        let size =
            dtype(class).ok_or_else(|| format!("the checkpoint's storage {key:.40} is a {class:.40}, which is not read"))?.bitsize() / 8;
        let begin = at + COUNT;
        let end = count.checked_mul(size).and_then(|n| begin.checked_add(n)).filter(|&end| end <= bytes.len()).ok_or_else(cut)?;
        storages.insert(format!("data/{key}"), Entry { data: begin..end, stored: true });
        at = end;
    }
    Ok((saved, storages))
}
