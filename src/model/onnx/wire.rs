//! Fields of protobuf messages, read where they lie: nothing is copied, and nothing is allocated by
//! a length that a file claims.

use prost::encoding::{WireType, decode_key, decode_varint};

/// Most fields and numbers of a file outside the values of its tensors.
const MOST_ITEMS: u64 = 8_000_000;

/// Fields that may still be read of a file: what is kept of one is of bounded size.
#[derive(Debug)]
pub(super) struct Items(u64);

impl Default for Items {
    fn default() -> Self {
        Self(MOST_ITEMS)
    }
}

impl Items {
    /// Counts so many more.
    ///
    /// # Errors
    /// When there are too many.
    fn take(&mut self, items: u64) -> Result<(), String> {
        self.0 = self.0.checked_sub(items).ok_or_else(|| format!("has more than {MOST_ITEMS} fields"))?;
        Ok(())
    }
}

/// A part of the file, and where it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub bytes: &'a [u8],
    pub begin: usize,
}

/// The value of a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field<'a> {
    /// An integer, or a float of 64 bits.
    Number(u64),
    /// A float of 32 bits.
    Word(u32),
    /// A message, a text or bytes.
    Part(Part<'a>),
}

impl<'a> Field<'a> {
    /// A signed integer; zero of a field of another type, as protobuf reads a field that is not
    /// there.
    pub(super) fn int(self) -> i64 {
        if let Self::Number(n) = self { n.cast_signed() } else { 0 }
    }

    /// A float; zero of a field of another type.
    pub(super) fn float(self) -> f32 {
        if let Self::Word(bits) = self { f32::from_bits(bits) } else { 0.0 }
    }

    /// The bytes; none of a field of another type.
    pub(super) fn part(self) -> Part<'a> {
        if let Self::Part(part) = self { part } else { Part { bytes: &[], begin: 0 } }
    }

    /// A text.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub(super) fn text(self) -> Result<String, String> {
        let text = std::str::from_utf8(self.part().bytes).map_err(|_| "has a name that is not UTF-8")?;
        Ok(text.to_owned())
    }

    /// Appends the integers of a repeated field, packed or not.
    ///
    /// # Errors
    /// When they are cut short or too many.
    pub(super) fn ints(self, items: &mut Items, list: &mut Vec<i64>) -> Result<(), String> {
        let Self::Part(part) = self else {
            list.push(self.int());
            return Ok(());
        };
        let mut rest = part.bytes;
        while !rest.is_empty() {
            items.take(1)?;
            list.push(decode_varint(&mut rest).map_err(|e| e.to_string())?.cast_signed());
        }
        Ok(())
    }

    /// Appends the floats of a repeated field, packed or not.
    ///
    /// # Errors
    /// When they are too many.
    pub(super) fn floats(self, items: &mut Items, list: &mut Vec<f32>) -> Result<(), String> {
        let Self::Part(part) = self else {
            list.push(self.float());
            return Ok(());
        };
        items.take(part.bytes.len() as u64 / 4)?;
        list.extend(part.bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)));
        Ok(())
    }
}

impl<'a> Part<'a> {
    /// Calls `each` with the number and the value of every field of a message.
    ///
    /// # Errors
    /// When the message is damaged or has too many fields, and those of `each`.
    pub(super) fn fields(
        self,
        items: &mut Items,
        mut each: impl FnMut(&mut Items, u32, Field<'a>) -> Result<(), String>,
    ) -> Result<(), String> {
        let cut = || "is damaged: a field reaches beyond its message".to_owned();
        let mut rest = self.bytes;
        while !rest.is_empty() {
            items.take(1)?;
            let (number, kind) = decode_key(&mut rest).map_err(|e| format!("is damaged: {e}"))?;
            let field = match kind {
                WireType::Varint => Field::Number(decode_varint(&mut rest).map_err(|e| format!("is damaged: {e}"))?),
                WireType::SixtyFourBit => {
                    let (word, after) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
                    rest = after;
                    Field::Number(u64::from_le_bytes(*word))
                }
                WireType::ThirtyTwoBit => {
                    let (word, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
                    rest = after;
                    Field::Word(u32::from_le_bytes(*word))
                }
                WireType::LengthDelimited => {
                    let length = decode_varint(&mut rest).map_err(|e| format!("is damaged: {e}"))?;
                    let begin = self.begin + (self.bytes.len() - rest.len());
                    let length = usize::try_from(length).map_err(|_| cut())?;
                    let (bytes, after) = rest.split_at_checked(length).ok_or_else(cut)?;
                    rest = after;
                    Field::Part(Part { bytes, begin })
                }
                WireType::StartGroup | WireType::EndGroup => return Err("is damaged: it has a group, which ONNX has not".into()),
            };
            each(items, number, field)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(u32, String)>, String> {
        let mut list = Vec::new();
        let part = Part { bytes, begin: 100 };
        part.fields(&mut Items::default(), |_, number, field| {
            list.push((number, format!("{field:?}")));
            Ok(())
        })?;
        Ok(list)
    }

    #[test]
    fn fields_are_read_where_they_lie() {
        let list = read(&[8, 0x96, 1, 0x15, 0, 0, 0x80, 0x3f, 0x1a, 2, 7, 8]).expect("it is a message");
        let shown = ["Number(150)", "Word(1065353216)", "Part(Part { bytes: [7, 8], begin: 110 })"];
        assert_eq!(list, (1..=3).zip(shown.map(str::to_owned)).collect::<Vec<_>>());
    }

    #[test]
    fn damaged_messages_are_refused() {
        for bytes in [&[0x1a, 3, 7, 8][..], &[0x15, 0, 0], &[0x11, 0], &[8], &[0x0b], &[0], &[0x1a, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
            let told = read(bytes).expect_err("it is damaged");
            assert!(told.contains("is damaged"), "{bytes:?}: {told}");
        }
    }

    #[test]
    fn lists_are_packed_or_not_and_bounded() {
        let (mut items, mut ints, mut floats) = (Items(3), Vec::new(), Vec::new());
        Field::Number(u64::MAX).ints(&mut items, &mut ints).expect("one");
        Field::Part(Part { bytes: &[1, 0x80, 1], begin: 0 }).ints(&mut items, &mut ints).expect("two");
        assert_eq!(ints, [-1, 1, 128]);
        Field::Part(Part { bytes: &[0, 0, 0x80, 0x3f], begin: 0 }).floats(&mut items, &mut floats).expect("one");
        assert_eq!(floats, [1.0]);
        assert!(Field::Part(Part { bytes: &[1], begin: 0 }).ints(&mut items, &mut ints).is_err_and(|e| e.contains("more than")));
    }
}
