//! The container of PyTorch's checkpoints: a zip archive whose entries are stored as they are.
//!
//! Source: PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.5.3; PyTorch writes zip64 fields where an archive needs them.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of the record at the end of an archive, without its comment.
const END: usize = 22;

/// What a field of 32 bits holds when the number is in the zip64 field.
const ELSEWHERE: u64 = 0xFFFF_FFFF;

/// An entry of an archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where its bytes lie in the archive.
    pub data: Range<usize>,
    /// Neither compressed nor encrypted.
    pub stored: bool,
}

/// A little-endian number of `N` bytes, at most eight.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(wide))
}

fn size(n: u64) -> Option<usize> {
    usize::try_from(n).ok()
}

/// Whether bytes begin as an archive does.
pub(super) fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
}

/// The entries of an archive by name.
///
/// # Errors
/// Says what is damaged.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    let (mut at, end) = directory(bytes).ok_or("the archive has no directory at its end: the file is cut short or damaged")?;
    let mut list = BTreeMap::new();
    while at < end {
        let (name, entry, next) = entry(bytes, at).ok_or("an entry of the archive's directory is damaged or points out of the file")?;
        list.insert(name, entry);
        at = next;
    }
    Ok(list)
}

/// Where the directory begins and ends.
fn directory(bytes: &[u8]) -> Option<(usize, usize)> {
    let last = bytes.len().checked_sub(END)?;
    let first = last.saturating_sub(0xFFFF);
    let end = (first..=last).rev().find(|&at| bytes[at..].starts_with(b"PK\x05\x06"))?;
    let (mut length, mut begin) = (number::<4>(bytes, end + 12)?, number::<4>(bytes, end + 16)?);
    if length == ELSEWHERE || begin == ELSEWHERE || number::<2>(bytes, end + 10)? == 0xFFFF {
        let locator = end.checked_sub(20).filter(|&at| bytes[at..].starts_with(b"PK\x06\x07"))?;
        let record = size(number::<8>(bytes, locator + 8)?)?;
        bytes.get(record..)?.starts_with(b"PK\x06\x06").then_some(())?;
        (length, begin) = (number::<8>(bytes, record.checked_add(40)?)?, number::<8>(bytes, record.checked_add(48)?)?);
    }
    let (begin, length) = (size(begin)?, size(length)?);
    let end = begin.checked_add(length).filter(|&end| end <= bytes.len())?;
    Some((begin, end))
}

/// The entry whose directory record is there, and where the next record begins.
fn entry(bytes: &[u8], at: usize) -> Option<(String, Entry, usize)> {
    bytes.get(at..)?.starts_with(b"PK\x01\x02").then_some(())?;
    let flags = number::<2>(bytes, at + 8)?;
    let method = number::<2>(bytes, at + 10)?;
    let [packed, unpacked] = [number::<4>(bytes, at + 20)?, number::<4>(bytes, at + 24)?];
    let [name, extra, comment] = [28, 30, 32].map(|field| number::<2>(bytes, at + field).and_then(size));
    let name = at + 46..(at + 46).checked_add(name?)?;
    let extra = name.end..name.end.checked_add(extra?)?;
    let next = extra.end.checked_add(comment?)?;
    let mut fields = [unpacked, packed, number::<4>(bytes, at + 42)?];
    zip64(bytes.get(extra)?, &mut fields)?;
    let [_, packed, header] = fields;
    let header = size(header)?;
    bytes.get(header..)?.starts_with(b"PK\x03\x04").then_some(())?;
    let [local, more] = [26, 28].map(|field| number::<2>(bytes, header + field).and_then(size));
    let begin = header.checked_add(30)?.checked_add(local?)?.checked_add(more?)?;
    let end = begin.checked_add(size(packed)?).filter(|&end| end <= bytes.len())?;
    let name = String::from_utf8_lossy(bytes.get(name)?).into_owned();
    Some((name, Entry { data: begin..end, stored: method == 0 && flags & 1 == 0 }, next))
}

/// Replaces what does not fit 32 bits, in the order of the fields, by the zip64 field among the extra ones.
fn zip64(mut extra: &[u8], fields: &mut [u64; 3]) -> Option<()> {
    if !fields.contains(&ELSEWHERE) {
        return Some(());
    }
    loop {
        let (id, length) = (number::<2>(extra, 0)?, size(number::<2>(extra, 2)?)?);
        let body = extra.get(4..4 + length)?;
        if id == 1 {
            let mut at = 0;
            for field in fields.iter_mut().filter(|field| **field == ELSEWHERE) {
                *field = number::<8>(body, at)?;
                at += 8;
            }
            return Some(());
        }
        extra = &extra[4 + length..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beyond_32_bits_are_in_a_further_field() {
        let mut extra = vec![0x42, 0x46, 2, 0, 9, 9, 1, 0, 16, 0];
        extra.extend(7u64.to_le_bytes());
        extra.extend((1u64 << 40).to_le_bytes());
        let mut fields = [ELSEWHERE, 5, ELSEWHERE];
        assert_eq!(zip64(&extra, &mut fields), Some(()));
        assert_eq!(fields, [7, 5, 1 << 40]);
        assert_eq!(zip64(&extra[..20], &mut [ELSEWHERE, 5, ELSEWHERE]), None);
        assert_eq!(zip64(&[], &mut [1, 2, 3]), Some(()));
    }

    #[test]
    fn what_is_no_archive_has_no_entries() {
        for bytes in [&b""[..], b"PK\x03\x04", &[0; 200]] {
            assert!(entries(bytes).is_err());
        }
        // an archive of nothing
        let mut end = b"PK\x05\x06".to_vec();
        end.extend([0; 18]);
        assert_eq!(entries(&end), Ok(BTreeMap::new()));
    }
}
