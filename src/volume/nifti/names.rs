//! Names of labels in the extensions of a header.

/// Bytes of extensions that are looked at, at most.
pub(super) const MOST: u64 = 16 << 20;

/// Numbers and names of labels in extensions, which begin with the flag that announces them: those of
/// the first `LabelTable`, as Connectome Workbench, TotalSegmentator and organum write it. What is
/// cut short or of another kind has none.
pub(super) fn names(extensions: &[u8], big_endian: bool) -> Vec<(u16, String)> {
    let Some(([flag, ..], mut rest)) = extensions.split_first_chunk::<4>() else { return Vec::new() };
    if *flag == 0 {
        return Vec::new();
    }
    while let Some((size, _)) = rest.split_first_chunk::<4>() {
        let size = if big_endian { u32::from_be_bytes(*size) } else { u32::from_le_bytes(*size) } as usize;
        let Some(extension) = rest.get(8..size) else { break };
        let found = table(&String::from_utf8_lossy(extension));
        if !found.is_empty() {
            return found;
        }
        rest = &rest[size..];
    }
    Vec::new()
}

/// The labels of a `LabelTable`.
fn table(text: &str) -> Vec<(u16, String)> {
    let Some((_, table)) = text.split_once("<LabelTable>") else { return Vec::new() };
    let table = table.split_once("</LabelTable>").map_or("", |(table, _)| table);
    let label = |element: &str| {
        let (attributes, rest) = element.split_once('>')?;
        let key = attributes.split_once("Key=\"")?.1.split_once('"')?.0.trim().parse().ok()?;
        let name = match rest.strip_prefix("<![CDATA[") {
            Some(rest) => rest.split_once("]]>")?.0.to_owned(),
            None => unescape(rest.split_once('<')?.0),
        };
        Some((key, name.trim().to_owned()))
    };
    table.split("<Label ").skip(1).filter_map(label).collect()
}

/// Text of XML with its five entities replaced.
fn unescape(text: &str) -> String {
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    entities.iter().fold(text.to_owned(), |text, (entity, letter)| text.replace(entity, letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flag, an extension of another kind, and one of this text.
    fn extensions(text: &str) -> Vec<u8> {
        let mut bytes = vec![1, 0, 0, 0, 16, 0, 0, 0, 6, 0, 0, 0];
        bytes.extend(*b"comment ");
        let size = u32::try_from(text.len() + 8).unwrap_or(0);
        bytes.extend(size.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn tables_are_read_and_damage_is_passed_over() {
        let text = "<CaretExtension><LabelTable>\n<Label Key=\"0\"><![CDATA[]]></Label>\n\
                    <Label Key=\"3\" Red=\"1\" Alpha=\"1\"><![CDATA[a & <b>]]></Label>\
                    <Label Red=\"1\" Key=\"12\">c &amp; d &lt;e&gt;</Label><Label Key=\"x\">y</Label>\
                    <Label Key=\"70000\">y</Label></LabelTable></CaretExtension>";
        let bytes = extensions(text);
        let expected = [(0, String::new()), (3, "a & <b>".into()), (12, "c & d <e>".into())];
        assert_eq!(names(&bytes, false), expected);
        for cut in 0..bytes.len() {
            assert!(names(&bytes[..cut], false).is_empty(), "{cut}");
        }
        assert!(names(&bytes, true).is_empty(), "sizes of the other order lie outside");
        let mut unannounced = bytes.clone();
        unannounced[0] = 0;
        assert!(names(&unannounced, false).is_empty());
        for size in [0u32, 4, 8, u32::MAX] {
            let mut odd = bytes.clone();
            odd[4..8].copy_from_slice(&size.to_le_bytes());
            assert!(names(&odd, false).is_empty(), "{size}");
        }
    }
}
