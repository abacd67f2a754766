//! Python's pickle, protocols 2 to 5, as data: nothing is imported and nothing is called.
//!
//! Source: the opcodes of CPython's `pickletools`. Objects other than containers, numbers and strings stay what the file says of
//! them: the name of a class or function, its arguments and its state.
//!
//! Values lie in an arena and refer to each other by number, so that neither cycles nor nesting cost a stack, and every opcode
//! makes at most one: memory is a small multiple of the pickle.

use std::collections::HashMap;
use std::ops::Range;

/// Largest pickle in bytes. Those of checkpoints have some hundred bytes a tensor.
const MOST_BYTES: usize = 64 << 20;

/// Most values of a pickle.
const MOST_VALUES: usize = 4 << 20;

/// Most places of the memo: a place for each value is what `pickle` writes at most.
const MOST_PLACES: usize = MOST_VALUES;

/// Most containers that are begun and not yet closed.
const MOST_OPEN: usize = 1 << 16;

/// Most references to values, of containers and of the stack: a value may be named again and again.
const MOST_REFERENCES: usize = 16 << 20;

/// A value, by its place in the arena.
pub(super) type Id = u32;

/// Bytes of the pickle.
pub(super) type Span = Range<u32>;

/// What a pickle holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    /// Integers beyond 64 bits are [`Value::Opaque`].
    Int(i64),
    Float(f64),
    /// UTF-8.
    Text(Span),
    Bytes(Span),
    /// Also a set.
    List(Vec<Id>),
    Tuple(Vec<Id>),
    /// In the order of insertion; a later key replaces an equal one.
    Dict(Vec<(Id, Id)>),
    /// A class or function: module and name.
    Global(Span, Span),
    /// What calling a class or function with these arguments would give, and the state that it would be given.
    Object {
        callee: Id,
        arguments: Id,
        state: Option<Id>,
    },
    /// What lies outside of the pickle under this identity.
    Persistent(Id),
    /// Not rebuilt.
    Opaque,
}

/// A pickle that was read.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    bytes: &'a [u8],
    values: Vec<Value>,
    /// The outermost value.
    pub root: Id,
    /// The bytes that it takes.
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the begin of `bytes`.
    ///
    /// # Errors
    /// Says what is damaged, too large or beyond protocol 5.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let bytes = &bytes[..bytes.len().min(MOST_BYTES)];
        let mut machine = Machine::new(bytes);
        let root = machine.run()?;
        Ok(Self { bytes, length: machine.at, values: machine.values, root })
    }

    pub(super) fn value(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::Opaque)
    }

    pub(super) fn span(&self, span: &Span) -> &'a str {
        text(self.bytes, span)
    }

    /// The bytes of [`Value::Bytes`].
    pub(super) fn raw(&self, span: &Span) -> &'a [u8] {
        self.bytes.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    /// All that lie outside of it.
    pub(super) fn persistent(&self) -> impl Iterator<Item = Id> {
        self.values.iter().filter_map(|value| if let Value::Persistent(id) = value { Some(*id) } else { None })
    }

    /// The text of a string.
    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match self.value(id) {
            Value::Text(span) => Some(self.span(span)),
            _ => None,
        }
    }

    /// Module and name of a class or function.
    pub(super) fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.value(id) {
            Value::Global(module, name) => Some((self.span(module), self.span(name))),
            _ => None,
        }
    }

    /// Items of a dict.
    pub(super) fn len(&self, id: Id) -> usize {
        match self.value(id) {
            Value::Dict(items) => items.len(),
            _ => 0,
        }
    }

    /// The value of a key in a dict.
    pub(super) fn get(&self, id: Id, key: &str) -> Option<Id> {
        match self.value(id) {
            Value::Dict(items) => items.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|&(_, v)| v),
            _ => None,
        }
    }
}

fn text<'a>(bytes: &'a [u8], span: &Span) -> &'a str {
    bytes.get(span.start as usize..span.end as usize).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// References that were made.
    references: usize,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), references: 0 }
    }

    fn run(&mut self) -> Result<Id, String> {
        loop {
            let at = self.at;
            let code = self.take::<1>()?[0];
            if code == b'.' {
                return self.pop();
            }
            self.step(code).map_err(|e| format!("{e} (opcode {code:#04x} at byte {at} of the pickle)"))?;
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let found = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk::<N>).ok_or("the pickle is cut short or too large")?;
        self.at += N;
        Ok(*found)
    }

    /// So many bytes that follow.
    fn skip(&mut self, n: u64) -> Result<Span, String> {
        let n = usize::try_from(n).ok().filter(|&n| n <= self.bytes.len() - self.at).ok_or("the pickle is cut short or too large")?;
        let begin = self.at;
        self.at += n;
        match (u32::try_from(begin), u32::try_from(self.at)) {
            (Ok(begin), Ok(end)) => Ok(begin..end),
            _ => Err("the pickle is too large".into()),
        }
    }

    /// The bytes up to the next line feed.
    fn line(&mut self) -> Result<Span, String> {
        let n = self.bytes[self.at..].iter().position(|&b| b == b'\n').ok_or("the pickle is cut short or too large")?;
        let span = self.skip(n as u64)?;
        self.at += 1;
        Ok(span)
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        if self.values.len() >= MOST_VALUES {
            return Err(format!("the pickle holds more than {MOST_VALUES} values"));
        }
        let id = u32::try_from(self.values.len()).map_err(|e| e.to_string())?;
        self.values.push(value);
        self.refer(id)
    }

    /// Puts a value on the stack that is there.
    fn refer(&mut self, id: Id) -> Result<(), String> {
        self.references += 1;
        if self.references > MOST_REFERENCES {
            return Err(format!("the pickle refers to values more than {MOST_REFERENCES} times"));
        }
        self.stack.push(id);
        Ok(())
    }

    /// The floor below which the stack belongs to what is before the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, String> {
        if self.stack.len() <= self.floor() {
            return Err("the pickle takes more than it put on its stack".into());
        }
        self.stack.pop().ok_or_else(|| "the pickle's stack is empty".into())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.get(self.floor()..).and_then(<[Id]>::last).copied().ok_or_else(|| "the pickle's stack is empty".into())
    }

    /// What lies above the last mark.
    fn popped(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("the pickle has no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn many<const N: usize>(&mut self) -> Result<[Id; N], String> {
        let mut list = [0; N];
        for id in list.iter_mut().rev() {
            *id = self.pop()?;
        }
        Ok(list)
    }

    fn text_or_opaque(&mut self, length: u64) -> Result<(), String> {
        let span = self.skip(length)?;
        let valid = std::str::from_utf8(&self.bytes[span.start as usize..span.end as usize]).is_ok();
        self.push(if valid { Value::Text(span) } else { Value::Opaque })
    }

    fn bytes_of(&mut self, length: u64) -> Result<(), String> {
        let span = self.skip(length)?;
        self.push(Value::Bytes(span))
    }

    /// An integer of so many bytes in two's complement.
    fn long(&mut self, length: u64) -> Result<(), String> {
        let span = self.skip(length)?;
        let bytes = &self.bytes[span.start as usize..span.end as usize];
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xFF } else { 0 }; 8];
        let fits = bytes.len() <= 8;
        if fits {
            wide[..bytes.len()].copy_from_slice(bytes);
        }
        self.push(if fits { Value::Int(i64::from_le_bytes(wide)) } else { Value::Opaque })
    }

    fn remember(&mut self, index: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(index, top);
        if self.memo.len() > MOST_PLACES {
            return Err(format!("the pickle's memo has more than {MOST_PLACES} places"));
        }
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let id = *self.memo.get(&index).ok_or("the pickle refers to what it did not remember")?;
        self.refer(id)
    }

    fn extend_list(&mut self, list: Id, items: Vec<Id>) {
        if let Some(Value::List(all)) = self.values.get_mut(list as usize) {
            all.extend(items);
        }
    }

    fn extend_dict(&mut self, dict: Id, items: &[Id]) -> Result<(), String> {
        if !items.len().is_multiple_of(2) {
            return Err("a key of the pickle has no value".into());
        }
        if let Some(Value::Dict(all)) = self.values.get_mut(dict as usize) {
            all.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        }
        Ok(())
    }

    /// An object, or a dict where its class is one.
    fn call(&mut self, callee: Id, arguments: Id) -> Result<(), String> {
        let known = match self.values.get(callee as usize) {
            Some(Value::Global(module, name)) => matches!(
                (text(self.bytes, module), text(self.bytes, name)),
                ("collections", "OrderedDict" | "defaultdict" | "Counter") | ("builtins" | "__builtin__", "dict")
            ),
            _ => false,
        };
        self.push(if known { Value::Dict(Vec::new()) } else { Value::Object { callee, arguments, state: None } })
    }

    fn step(&mut self, code: u8) -> Result<(), String> {
        match code {
            0x80 => match self.take::<1>()?[0] {
                0..=5 => Ok(()),
                other => Err(format!("the pickle's protocol is {other}; 2 to 5 are read")),
            },
            // a frame is but a hint for reading ahead
            0x95 => self.take::<8>().map(|_| ()),
            b'(' => {
                if self.marks.len() == MOST_OPEN {
                    return Err(format!("the pickle begins more than {MOST_OPEN} containers within each other"));
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => match self.marks.last() {
                // Python pops the mark, if that is what lies on top
                Some(&mark) if mark == self.stack.len() => self.marks.pop().map(|_| ()).ok_or_else(String::new),
                _ => self.pop().map(|_| ()),
            },
            b'1' => self.popped().map(|_| ()),
            b'2' => {
                let top = self.top()?;
                self.refer(top)
            }
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool(code == 0x88)),
            b'J' => self.take().map(i32::from_le_bytes).and_then(|n| self.push(Value::Int(n.into()))),
            b'K' => self.take::<1>().and_then(|[n]| self.push(Value::Int(n.into()))),
            b'M' => self.take().map(u16::from_le_bytes).and_then(|n| self.push(Value::Int(n.into()))),
            0x8A => self.take::<1>().and_then(|[n]| self.long(n.into())),
            0x8B => self.take().map(u32::from_le_bytes).and_then(|n| self.long(n.into())),
            b'G' => self.take().map(f64::from_be_bytes).and_then(|x| self.push(Value::Float(x))),
            0x8C | b'U' => self.take::<1>().and_then(|[n]| self.text_or_opaque(n.into())),
            b'X' | b'T' => self.take().map(u32::from_le_bytes).and_then(|n| self.text_or_opaque(n.into())),
            0x8D => self.take().map(u64::from_le_bytes).and_then(|n| self.text_or_opaque(n)),
            b'C' => self.take::<1>().and_then(|[n]| self.bytes_of(n.into())),
            b'B' => self.take().map(u32::from_le_bytes).and_then(|n| self.bytes_of(n.into())),
            0x8E | 0x96 => self.take().map(u64::from_le_bytes).and_then(|n| self.bytes_of(n)),
            b'q' => self.take::<1>().and_then(|[n]| self.remember(n.into())),
            b'r' => self.take().map(u32::from_le_bytes).and_then(|n| self.remember(n)),
            0x94 => u32::try_from(self.memo.len()).map_err(|e| e.to_string()).and_then(|n| self.remember(n)),
            b'h' => self.take::<1>().and_then(|[n]| self.recall(n.into())),
            b'j' => self.take().map(u32::from_le_bytes).and_then(|n| self.recall(n)),
            _ => self.compose(code),
        }
    }

    /// The opcodes that make something of what lies on the stack.
    fn compose(&mut self, code: u8) -> Result<(), String> {
        match code {
            b']' | 0x8F => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => self.popped().and_then(|items| self.push(Value::Tuple(items))),
            0x85 => self.many::<1>().and_then(|items| self.push(Value::Tuple(items.to_vec()))),
            0x86 => self.many::<2>().and_then(|items| self.push(Value::Tuple(items.to_vec()))),
            0x87 => self.many::<3>().and_then(|items| self.push(Value::Tuple(items.to_vec()))),
            b'l' | 0x91 => self.popped().and_then(|items| self.push(Value::List(items))),
            b'd' => {
                let items = self.popped()?;
                self.push(Value::Dict(Vec::new()))?;
                let dict = self.top()?;
                self.extend_dict(dict, &items)
            }
            b'a' => {
                let item = self.pop()?;
                let list = self.top()?;
                self.extend_list(list, vec![item]);
                Ok(())
            }
            b'e' | 0x90 => {
                let items = self.popped()?;
                let list = self.top()?;
                self.extend_list(list, items);
                Ok(())
            }
            b's' => {
                let items = self.many::<2>()?;
                let dict = self.top()?;
                self.extend_dict(dict, &items)
            }
            b'u' => {
                let items = self.popped()?;
                let dict = self.top()?;
                self.extend_dict(dict, &items)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(module, name))
            }
            0x93 => {
                let [module, name] = self.many()?;
                match (&self.values[module as usize], &self.values[name as usize]) {
                    (Value::Text(module), Value::Text(name)) => {
                        let value = Value::Global(module.clone(), name.clone());
                        self.push(value)
                    }
                    _ => Err("the name of a class is no string".into()),
                }
            }
            b'R' | 0x81 => self.many().and_then(|[callee, arguments]| self.call(callee, arguments)),
            0x92 => self.many().and_then(|[callee, arguments, _named]| self.call(callee, arguments)),
            b'o' => {
                let mut items = self.popped()?;
                if items.is_empty() {
                    return Err("an object of the pickle has no class".into());
                }
                let callee = items.remove(0);
                self.push(Value::Tuple(items))?;
                let arguments = self.pop()?;
                self.call(callee, arguments)
            }
            b'b' => {
                let given = self.pop()?;
                let object = self.top()?;
                if let Some(Value::Object { state, .. }) = self.values.get_mut(object as usize) {
                    *state = Some(given);
                }
                Ok(())
            }
            b'Q' => self.pop().and_then(|id| self.push(Value::Persistent(id))),
            b'I' | b'F' | b'L' | b'S' | b'V' | b'p' | b'g' | b'i' | b'P' => {
                Err("this is an opcode of the text protocols 0 and 1, which are not read".into())
            }
            _ => Err("this is no opcode that is read".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(begin: &[u8], again: &[u8], times: usize) -> String {
        let bytes = [begin, &again.repeat(times), b"."].concat();
        Pickle::read(&bytes).map(|_| ()).expect_err("it floods the machine")
    }

    #[test]
    fn what_repeats_costs_no_more_than_an_honest_pickle() {
        assert!(refused(b"\x80\x04N", &[0x94], MOST_PLACES + 1).contains("memo"));
        assert!(refused(b"\x80\x02", b"(", MOST_OPEN + 1).contains("containers"));
        for again in [&b"2"[..], b"h\0", b"20"] {
            assert!(refused(b"\x80\x02Nq\0", again, MOST_REFERENCES).contains("refers"), "{again:?}");
        }
        assert!(refused(b"\x80\x02", b"N", MOST_VALUES + 1).contains("values"));
        // an opcode of the text protocols, or one that is none, is no reason to go on
        assert!(Pickle::read(b"\x80\x02I1\n.").is_err_and(|e| e.contains("text protocols")));
        assert!(Pickle::read(b"\x80\x02\xff.").is_err_and(|e| e.contains("no opcode")));
    }
}
