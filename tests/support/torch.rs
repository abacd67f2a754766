//! Checkpoints as torch.save writes them, made here: a zip archive of stored entries, one of them a pickle.
#![allow(dead_code, clippy::cast_possible_truncation, reason = "each test uses a part; checkpoints of tests are small")]

/// A zip archive of entries that are stored as they are.
pub(crate) fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let begin = out.len() as u32;
        // version, flags, method, time, date
        let mut common = vec![0; 10];
        common.extend(crc32(data).to_le_bytes());
        common.extend([data.len() as u32; 2].map(u32::to_le_bytes).concat());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(data);
        directory.extend(b"PK\x01\x02\0\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(begin.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let begin = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([entries.len() as u16; 2].map(u16::to_le_bytes).concat());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(begin.to_le_bytes());
    out.extend([0, 0]);
    out
}

fn crc32(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in data {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

/// An archive of a pickle and of storages under their keys.
pub(crate) fn archive(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut entries = vec![("net/data.pkl".to_owned(), pickle.to_vec())];
    entries.extend(storages.iter().map(|(key, data)| (format!("net/data/{key}"), data.to_vec())));
    zip(&entries)
}

/// Opcodes of protocol 2, in the order in which torch.save has them.
#[derive(Debug, Default)]
pub(crate) struct Pickler(pub(crate) Vec<u8>);

impl Pickler {
    pub(crate) fn op(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.0.extend(bytes.as_ref());
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.op("X").op((text.len() as u32).to_le_bytes()).op(text)
    }

    pub(crate) fn int(&mut self, n: usize) -> &mut Self {
        self.op([0x8A, 8]).op((n as u64).to_le_bytes())
    }

    pub(crate) fn ints(&mut self, list: &[usize]) -> &mut Self {
        self.op("(");
        for &n in list {
            self.int(n);
        }
        self.op("t")
    }

    pub(crate) fn tensor(&mut self, class: &str, key: &str, offset: usize, shape: &[usize], strides: &[usize]) -> &mut Self {
        self.op("ctorch._utils\n_rebuild_tensor_v2\n((").text("storage").op("ctorch\n").op(class).op("\n").text(key).text("cpu");
        self.int(shape.iter().product()).op("tQ").int(offset).ints(shape).ints(strides);
        self.op([0x89]).op("ccollections\nOrderedDict\n)RtR")
    }
}

/// A tensor to save: a name, a storage class of torch, a shape, the bytes.
pub(crate) type Tensor<'a> = (String, &'a str, Vec<usize>, &'a [u8]);

/// What torch.save writes of these tensors under keys within each other. A name of `repeated` shares the storage of another.
pub(crate) fn save(tensors: &[Tensor<'_>], repeated: &[(String, String)], wrapper: &[&str], prefix: &str) -> Vec<u8> {
    let mut p = Pickler(vec![0x80, 2]);
    for key in wrapper {
        p.op("}").text(key);
    }
    p.op("ccollections\nOrderedDict\n)R(");
    let all = tensors.iter().enumerate().map(|(i, t)| (&t.0, i));
    let found = |name: &String| tensors.iter().position(|t| t.0 == *name).expect("what is repeated is there");
    for (name, i) in all.chain(repeated.iter().map(|(name, of)| (name, found(of)))) {
        let (_, class, shape, _) = &tensors[i];
        let mut strides = vec![1; shape.len()];
        (1..shape.len()).rev().for_each(|axis| strides[axis - 1] = strides[axis] * shape[axis]);
        p.text(&format!("{prefix}{name}")).tensor(class, &i.to_string(), 0, shape, &strides);
    }
    p.op("u");
    p.op("s".repeat(wrapper.len())).op(".");
    let keys: Vec<String> = (0..tensors.len()).map(|i| i.to_string()).collect();
    let storages: Vec<(&str, &[u8])> = keys.iter().zip(tensors).map(|(key, t)| (key.as_str(), t.3)).collect();
    archive(&p.0, &storages)
}
