//! The messages of an ONNX file, as `onnx.proto` of ONNX 1.23 numbers their fields. Values of
//! tensors stay where they lie.

use std::collections::BTreeMap;
use std::ops::Range;

use super::wire::{Field, Items, Part};

/// The version that ONNX files begin with; the field's number and type are its first byte.
pub(super) const FIRST_BYTE: u8 = 8;

/// The fields read of `ModelProto`.
#[derive(Debug, Default)]
pub(super) struct ModelProto {
    pub graph: GraphProto,
    /// Texts by their keys.
    pub metadata: BTreeMap<String, String>,
    /// The version of ONNX's own operators.
    pub opset: i64,
}

/// The fields read of `GraphProto`.
#[derive(Debug, Default)]
pub(super) struct GraphProto {
    pub nodes: Vec<NodeProto>,
    pub initializers: Vec<TensorProto>,
    pub inputs: Vec<ValueInfo>,
    pub outputs: Vec<ValueInfo>,
}

/// An input or output of the graph.
#[derive(Debug, Default)]
pub(super) struct ValueInfo {
    pub name: String,
    /// Its axes; `None`: any extent.
    pub dims: Vec<Option<i64>>,
}

/// One operation.
#[derive(Debug, Default)]
pub(super) struct NodeProto {
    pub name: String,
    pub op: String,
    pub domain: String,
    /// Empty where an optional input is left out.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attributes: Vec<(String, Attribute)>,
}

/// The value of an attribute.
#[derive(Debug)]
pub(super) enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Tensor(TensorProto),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    /// Another graph, or a type that no operation here has.
    Other,
}

/// A tensor.
#[derive(Debug, Default)]
pub(super) struct TensorProto {
    pub name: String,
    pub dims: Vec<i64>,
    pub kind: i64,
    pub values: Values,
    /// Place of the values outside the file, by `location`, `offset`, `length`.
    pub external: BTreeMap<String, String>,
}

/// The values of a tensor.
#[derive(Debug, Default)]
pub(super) enum Values {
    #[default]
    None,
    /// Bytes of the file, little-endian.
    Raw(Range<usize>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
}

/// Reads a message into what has a default.
fn message<'a, T: Default>(
    part: Part<'a>,
    items: &mut Items,
    mut each: impl FnMut(&mut T, &mut Items, u32, Field<'a>) -> Result<(), String>,
) -> Result<T, String> {
    let mut value = T::default();
    part.fields(items, |items, number, field| each(&mut value, items, number, field))?;
    Ok(value)
}

/// Reads a file.
///
/// # Errors
/// When it is damaged, has too many fields, or parts of ONNX that no segmentation network has.
pub(super) fn model(bytes: &[u8]) -> Result<ModelProto, String> {
    message(Part { bytes, begin: 0 }, &mut Items::default(), |m: &mut ModelProto, items, number, field| {
        match number {
            7 => m.graph = graph(field.part(), items)?,
            8 => {
                let (domain, version) = message(field.part(), items, |set: &mut (String, i64), _, number, field| {
                    match number {
                        1 => set.0 = field.text()?,
                        2 => set.1 = field.int(),
                        _ => {}
                    }
                    Ok(())
                })?;
                if matches!(domain.as_str(), "" | "ai.onnx") {
                    m.opset = version;
                }
            }
            14 => m.metadata.extend([pair(field.part(), items)?]),
            _ => {}
        }
        Ok(())
    })
}

/// A key and its text.
fn pair(part: Part<'_>, items: &mut Items) -> Result<(String, String), String> {
    message(part, items, |pair: &mut (String, String), _, number, field| {
        match number {
            1 => pair.0 = field.text()?,
            2 => pair.1 = field.text()?,
            _ => {}
        }
        Ok(())
    })
}

fn graph(part: Part<'_>, items: &mut Items) -> Result<GraphProto, String> {
    message(part, items, |g: &mut GraphProto, items, number, field| {
        match number {
            1 => g.nodes.push(node(field.part(), items)?),
            5 => g.initializers.push(tensor(field.part(), items)?),
            11 => g.inputs.push(value_info(field.part(), items)?),
            12 => g.outputs.push(value_info(field.part(), items)?),
            15 => return Err("has sparse tensors, which are not read; export it with dense ones".into()),
            _ => {}
        }
        Ok(())
    })
}

fn node(part: Part<'_>, items: &mut Items) -> Result<NodeProto, String> {
    message(part, items, |n: &mut NodeProto, items, number, field| {
        match number {
            1 => n.inputs.push(field.text()?),
            2 => n.outputs.push(field.text()?),
            3 => n.name = field.text()?,
            4 => n.op = field.text()?,
            5 => n.attributes.push(attribute(field.part(), items)?),
            7 => n.domain = field.text()?,
            _ => {}
        }
        Ok(())
    })
}

fn attribute(part: Part<'_>, items: &mut Items) -> Result<(String, Attribute), String> {
    let mut name = String::new();
    let mut value = Attribute::Other;
    part.fields(items, |items, number, field| {
        match number {
            1 => name = field.text()?,
            2 => value = Attribute::Float(field.float()),
            3 => value = Attribute::Int(field.int()),
            4 => value = Attribute::Text(String::from_utf8_lossy(field.part().bytes).into_owned()),
            5 => value = Attribute::Tensor(tensor(field.part(), items)?),
            7 => {
                let mut list =
                    if let Attribute::Floats(list) = std::mem::replace(&mut value, Attribute::Other) { list } else { Vec::new() };
                field.floats(items, &mut list)?;
                value = Attribute::Floats(list);
            }
            8 => {
                let mut list = if let Attribute::Ints(list) = std::mem::replace(&mut value, Attribute::Other) { list } else { Vec::new() };
                field.ints(items, &mut list)?;
                value = Attribute::Ints(list);
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok((name, value))
}

fn tensor(part: Part<'_>, items: &mut Items) -> Result<TensorProto, String> {
    message(part, items, |t: &mut TensorProto, items, number, field| {
        match number {
            1 => field.ints(items, &mut t.dims)?,
            2 => t.kind = field.int(),
            3 => return Err("has a tensor in segments, which is not read".into()),
            4 => {
                let mut list = if let Values::Floats(list) = std::mem::take(&mut t.values) { list } else { Vec::new() };
                field.floats(items, &mut list)?;
                t.values = Values::Floats(list);
            }
            5 | 7 | 11 => {
                let mut list = if let Values::Ints(list) = std::mem::take(&mut t.values) { list } else { Vec::new() };
                field.ints(items, &mut list)?;
                t.values = Values::Ints(list);
            }
            8 => t.name = field.text()?,
            // doubles lie as raw data does where they are packed
            9 | 10 => {
                let Part { bytes, begin } = field.part();
                t.values = Values::Raw(begin..begin + bytes.len());
            }
            13 => t.external.extend([pair(field.part(), items)?]),
            _ => {}
        }
        Ok(())
    })
}

fn value_info(part: Part<'_>, items: &mut Items) -> Result<ValueInfo, String> {
    message(part, items, |v: &mut ValueInfo, items, number, field| {
        match number {
            1 => v.name = field.text()?,
            2 => v.dims = dims(field.part(), items)?,
            _ => {}
        }
        Ok(())
    })
}

/// The axes of a tensor's type.
fn dims(part: Part<'_>, items: &mut Items) -> Result<Vec<Option<i64>>, String> {
    let mut dims = Vec::new();
    part.fields(items, |items, number, tensor| {
        if number != 1 {
            return Ok(());
        }
        tensor.part().fields(items, |items, number, shape| {
            if number != 2 {
                return Ok(());
            }
            shape.part().fields(items, |items, number, dim| {
                if number == 1 {
                    let mut value = None;
                    dim.part().fields(items, |_, number, field| {
                        value = if number == 1 { Some(field.int()) } else { value };
                        Ok(())
                    })?;
                    dims.push(value);
                }
                Ok(())
            })
        })
    })?;
    Ok(dims)
}
