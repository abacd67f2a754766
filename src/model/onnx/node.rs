//! One operation of an ONNX graph with its attributes.

use std::sync::Arc;

use super::proto::{Attribute, NodeProto};
use super::tensor::{Data, Files, Tensor};

/// An operation.
#[derive(Debug)]
pub(super) struct Node {
    /// Its name, or where it has none that of its first output.
    pub name: String,
    op: String,
    /// Empty where an optional input is left out.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    attributes: Vec<(String, Value)>,
}

/// The value of an attribute.
#[derive(Debug)]
enum Value {
    Int(i64),
    Float(f32),
    Text(String),
    Tensor(Arc<Tensor>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Other,
}

impl Node {
    /// The node of a file.
    ///
    /// # Errors
    /// When a tensor among its attributes cannot be read.
    pub(super) fn read(proto: NodeProto, files: &mut Files) -> Result<Self, String> {
        let NodeProto { name, op, domain, inputs, outputs, attributes } = proto;
        let attributes = attributes.into_iter().map(|(name, value)| {
            let value = match value {
                Attribute::Int(v) => Value::Int(v),
                Attribute::Float(v) => Value::Float(v),
                Attribute::Text(v) => Value::Text(v),
                Attribute::Tensor(v) => Value::Tensor(Arc::new(Tensor::read(v, files)?)),
                Attribute::Ints(v) => Value::Ints(v),
                Attribute::Floats(v) => Value::Floats(v),
                Attribute::Other => Value::Other,
            };
            Ok((name, value))
        });
        let attributes = attributes.collect::<Result<_, String>>()?;
        let op = if matches!(domain.as_str(), "" | "ai.onnx") { op } else { format!("{domain}.{op}") };
        let name = if name.is_empty() { outputs.first().cloned().unwrap_or_default() } else { name };
        Ok(Self { name, op, inputs, outputs, attributes })
    }

    /// The operation, after its domain where it is none of ONNX's own.
    pub(super) fn op(&self) -> &str {
        &self.op
    }

    /// The input of a slot, if it is not left out.
    pub(super) fn input(&self, slot: usize) -> Option<&str> {
        self.inputs.get(slot).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The name of the first output.
    pub(super) fn output(&self) -> &str {
        self.outputs.first().map_or("", String::as_str)
    }

    fn attribute(&self, name: &str) -> Option<&Value> {
        self.attributes.iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    /// An integer attribute.
    pub(super) fn int(&self, name: &str) -> Option<i64> {
        if let Some(Value::Int(v)) = self.attribute(name) { Some(*v) } else { None }
    }

    /// An attribute that is a float.
    pub(super) fn float(&self, name: &str) -> Option<f32> {
        if let Some(Value::Float(v)) = self.attribute(name) { Some(*v) } else { None }
    }

    /// An attribute that is a text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        if let Some(Value::Text(v)) = self.attribute(name) { Some(v) } else { None }
    }

    /// An attribute that is a list of integers; one without a type is an empty one.
    pub(super) fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attribute(name) {
            Some(Value::Ints(v)) => Some(v),
            Some(Value::Other) => Some(&[]),
            _ => None,
        }
    }

    /// An attribute that is a tensor.
    ///
    /// # Errors
    /// When it is something else.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<&Tensor>, String> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Value::Tensor(v)) => Ok(Some(v)),
            Some(_) => Err(format!("has the attribute {name}, which is no tensor")),
        }
    }

    /// The tensor of a `Constant`.
    ///
    /// # Errors
    /// When it has none that is read.
    pub(super) fn constant(&self) -> Result<Option<Tensor>, String> {
        let (name, value) = self.attributes.first().ok_or("has no value")?;
        Ok(Some(match (name.as_str(), value) {
            ("value", Value::Tensor(tensor)) => Tensor::clone(tensor),
            ("value_int", Value::Int(v)) => Tensor { shape: Vec::new(), data: Data::Ints(vec![*v]) },
            ("value_float", Value::Float(v)) => Tensor { shape: Vec::new(), data: Data::Floats(vec![*v]) },
            ("value_ints", Value::Ints(v)) => Tensor::ints(v.clone()),
            ("value_floats", Value::Floats(v)) => Tensor { shape: vec![v.len()], data: Data::Floats(v.clone()) },
            _ => return Err(format!("is a constant by its attribute {name:.80}, which is not read")),
        }))
    }
}
