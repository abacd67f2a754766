//! Norms, as one operation or written out.

use std::sync::Arc;

use super::fold::axis_of;
use super::node::Node;
use super::tensor::Tensor;
use super::translate::{Affine, Needed, Translator, Value, narrow};
use super::view::{C, Part, View};
use crate::graph::{Conv, Norm, Op};
use crate::kernels::Activation;

/// The epsilon of a norm that names none.
const EPS: f32 = 1e-5;

/// A part of a norm that is written out: over some axes of a value.
#[derive(Clone, Debug)]
pub(super) struct Statistic {
    kind: Kind,
    of: View,
    axes: Vec<usize>,
    /// True if the axes stay as axes of one.
    kept: bool,
    eps: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mean,
    /// The value less its mean.
    Centred,
    /// That squared.
    Squared,
    Variance,
    /// The root of the variance plus eps.
    Deviation,
    /// One over it.
    Inverse,
}

impl Statistic {
    fn turned(&self, kind: Kind) -> Value {
        Value::Statistic(Self { kind, ..self.clone() })
    }

    /// True if another is of the same value.
    fn goes_with(&self, other: &Self) -> bool {
        self.is_of(&other.of) && self.axes == other.axes
    }

    fn is_of(&self, view: &View) -> bool {
        let View { node, dims, first, gain, roll, .. } = view;
        let own = &self.of;
        (&own.node, &own.dims, &own.first, &own.gain, &own.roll) == (node, dims, first, gain, roll)
    }
}

impl Translator<'_> {
    pub(super) fn batch_norm(&mut self, node: &Node) -> Result<Value, String> {
        if node.int("training_mode").unwrap_or(0) != 0 || node.outputs.iter().skip(1).any(|name| !name.is_empty()) {
            return Err("is one of training; export the network after model.eval()".into());
        }
        let view = self.image(node, 0)?;
        let channels = self.map(view.node).channels as usize;
        let mut parts = Vec::with_capacity(4);
        for slot in 1..5 {
            let tensor = self.constant(node, slot)?.filter(|tensor| tensor.len() == channels);
            parts.push(tensor.ok_or_else(|| format!("lacks a value for each of {channels} channels"))?.floats(self.files()));
        }
        let eps = f64::from(node.float("epsilon").unwrap_or(EPS));
        let part = |slot: usize, channel: usize| f64::from(parts[slot][channel]);
        let scale: Vec<f64> = (0..channels).map(|c| part(0, c) / (part(3, c) + eps).sqrt()).collect();
        let shift = (0..channels).map(|c| part(1, c) - part(2, c) * scale[c]).collect();
        self.scaled(&node.name, &view, scale, shift).map(Value::Map)
    }

    pub(super) fn norm(&mut self, node: &Node) -> Result<Value, String> {
        let view = self.view(node, 0)?;
        let rank = view.dims.len();
        let eps = f64::from(node.float("epsilon").unwrap_or(EPS));
        let factors = |t: &Self, slot: usize| t.constant(node, slot);
        let (scale, shift) = (factors(self, 1)?, factors(self, 2)?);
        let along = |tensor: Option<Arc<Tensor>>, behind: usize| -> Result<Option<Tensor>, String> {
            let Some(tensor) = tensor else { return Ok(None) };
            let shape = [tensor.len()].into_iter().chain(std::iter::repeat_n(1, behind)).collect();
            tensor.shaped(shape).map(Some)
        };
        let (view, axes, factors) = match node.op() {
            "InstanceNormalization" => (view, (2..rank).collect(), [along(scale, rank.max(2) - 2)?, along(shift, rank.max(2) - 2)?]),
            "GroupNormalization" => {
                let groups = usize::try_from(node.int("num_groups").unwrap_or(0)).unwrap_or(0);
                let shape = view.shape();
                if groups == 0 || rank < 2 || !shape[1].is_multiple_of(groups) {
                    return Err(format!("has {groups} groups for a map of shape {shape:?}"));
                }
                let split: Vec<usize> = [shape[0], groups, shape[1] / groups].iter().chain(&shape[2..]).copied().collect();
                let parts = view.reshaped(&split).ok_or("takes groups of what are no channels")?;
                let made = self.normalised(&node.name, &parts, &(2..rank + 1).collect::<Vec<_>>(), eps)?;
                let of_groups = |tensor: &Option<Arc<Tensor>>| tensor.as_ref().is_none_or(|t| t.len() == groups && groups != shape[1]);
                let behind = rank - 2 + usize::from(of_groups(&scale) && of_groups(&shift));
                let made = if behind > rank - 2 { made } else { made.reshaped(&shape).ok_or("takes groups of what are no channels")? };
                let mut made = made;
                for (tensor, add) in [(along(scale, behind)?, false), (along(shift, behind)?, true)] {
                    if let Some(tensor) = tensor {
                        made = self.with_constant(&node.name, &made, &tensor, add)?;
                    }
                }
                return made.reshaped(&shape).map(Value::Map).ok_or_else(|| "takes groups of what are no channels".to_owned());
            }
            _ => {
                let axis = axis_of(node.int("axis").unwrap_or(-1), rank)?;
                if node.outputs.iter().skip(1).any(|name| !name.is_empty()) {
                    return Err("gives its mean and deviation, which are not read".into());
                }
                (view, (axis..rank).collect::<Vec<_>>(), [scale.map(|t| Tensor::clone(&t)), shift.map(|t| Tensor::clone(&t))])
            }
        };
        let mut made = self.normalised(&node.name, &view, &axes, eps)?;
        for (tensor, add) in factors.into_iter().zip([false, true]) {
            if let Some(tensor) = tensor {
                made = self.with_constant(&node.name, &made, &tensor, add)?;
            }
        }
        Ok(Value::Map(made))
    }

    /// A value less its mean over some axes, over the root of its variance there plus `eps`.
    fn normalised(&mut self, name: &str, view: &View, axes: &[usize], eps: f64) -> Result<View, String> {
        let view = self.whole(name, view)?;
        let map = self.map(view.node);
        let channels = map.channels;
        let op = if let [axis] = *axes
            && view.is_channels(axis, map)
            && channels > 1
        {
            Op::LayerNorm { module: None, channels, eps, before: Activation::None, after: Activation::None }
        } else {
            let outside = |part: &Part, dim: usize| !axes.contains(&dim) && part.size > 1;
            let rest: Vec<Part> =
                view.dims.iter().enumerate().flat_map(|(dim, parts)| parts.iter().filter(move |p| outside(p, dim))).copied().collect();
            let groups: usize = rest.iter().map(|part| part.size).product();
            let groups = narrow(groups)?;
            let inner = channels.checked_div(groups).unwrap_or(0) as usize;
            if rest.iter().any(|part| part.axis != C) || rest.iter().map(|part| part.step).min().unwrap_or(inner) != inner || rest.len() > 1
            {
                return Err(format!("normalises over the axes {axes:?} of {:?}, which are neither channels nor space", view.shape()));
            }
            Op::Norm(Norm { module: None, channels, groups, eps, per_plane: self.flat })
        };
        let id = self.emit(name, op, &[view.node])?;
        let n = channels as usize;
        self.set_affine(id, Affine { scale: vec![1.0; n], shift: vec![0.0; n] });
        Ok(View { alone: true, ..view.of(id) })
    }

    pub(super) fn mean(&mut self, node: &Node) -> Result<Value, String> {
        let kept = node.int("keepdims").unwrap_or(1) != 0;
        let told = self.int_list(node, 1)?.or_else(|| node.ints("axes").map(<[i64]>::to_vec));
        let value = self.value(node, 0)?.ok_or("lacks its input 0")?;
        let rank = match &value {
            Value::Statistic(part) => part.of.dims.len(),
            _ => self.view(node, 0)?.dims.len(),
        };
        let mut axes = match told.filter(|list| !list.is_empty()) {
            Some(list) => list.iter().map(|&axis| axis_of(axis, rank)).collect::<Result<Vec<_>, _>>()?,
            None => (0..rank).collect(),
        };
        axes.sort_unstable();
        match value {
            Value::Statistic(part) if part.kind == Kind::Squared && part.axes == axes => Ok(part.turned(Kind::Variance)),
            Value::Map(of) => Ok(Value::Statistic(Statistic { kind: Kind::Mean, of, axes, kept, eps: 0.0 })),
            _ => Err("takes the mean of a part of a norm that is written out otherwise than exporters do".into()),
        }
    }

    /// The mean that a part of a norm is, as a map of its own.
    pub(super) fn stored_mean(&mut self, name: &str, part: &Statistic) -> Result<View, String> {
        let odd = || "reads a part of a norm that is written out otherwise than exporters do".to_owned();
        if part.kind == Kind::Centred {
            let mean = self.stored_mean(&format!("{name}.mean"), &Statistic { kind: Kind::Mean, ..part.clone() })?;
            return self.less(name, &View { alone: false, ..part.of.clone() }, &mean);
        }
        if part.kind != Kind::Mean {
            return Err(odd());
        }
        let view = self.laid_out(name, &part.of)?;
        let map = self.map(view.node);
        let spatial: Vec<usize> = (2..view.dims.len()).collect();
        let mut made = if let [axis] = part.axes[..]
            && view.is_channels(axis, map)
        {
            let module = self.next_name(name);
            let channels = map.channels as usize;
            let conv = Conv {
                module: module.clone(),
                in_channels: map.channels,
                out_channels: 1,
                bias: false,
                weight_shape: vec![1, channels],
                ..Conv::default()
            };
            #[expect(clippy::cast_precision_loss, reason = "channels are few")]
            self.need(format!("{module}.weight"), vec![1, channels], Needed::Floats(vec![1.0 / channels as f32; channels]));
            let id = self.emit(name, Op::Conv(conv), &[view.node])?;
            let mut made = View { alone: true, ..view.of(id) };
            made.dims[axis] = Vec::new();
            made
        } else if view.is_image(map, self.flat) && part.axes == spatial {
            let kernel = self.everything(view.node);
            let id = self.emit(name, Op::AvgPool { kernel }, &[view.node])?;
            View { alone: true, ..View::image(id, self.map(id), self.flat) }
        } else {
            return Err(format!(
                "takes the mean over the axes {:?} of {:?}, which are neither channels nor all of space",
                part.axes,
                view.shape()
            ));
        };
        if !part.kept {
            made.dims = (0..made.dims.len()).filter(|dim| !part.axes.contains(dim)).map(|dim| made.dims[dim].clone()).collect();
        }
        Ok(made)
    }

    /// The next part of a norm that is written out, if it is one.
    pub(super) fn statistics(&mut self, node: &Node, a: &Value, b: &Value) -> Result<Option<Value>, String> {
        let constant = |value: &Value| match value {
            Value::Constant(tensor) => tensor.scalar(self.files()),
            _ => None,
        };
        Ok(match (node.op(), a, b) {
            ("Sub", Value::Map(view), Value::Statistic(part)) if part.kind == Kind::Mean && part.kept && part.is_of(view) => {
                Some(part.turned(Kind::Centred))
            }
            ("Mul", Value::Statistic(p), Value::Statistic(q)) if p.kind == Kind::Centred && q.kind == Kind::Centred && p.goes_with(q) => {
                Some(p.turned(Kind::Squared))
            }
            ("Add", Value::Statistic(part), other) | ("Add", other, Value::Statistic(part)) if part.kind == Kind::Variance => {
                let eps = constant(other).ok_or("adds something else than a number to a variance")?;
                Some(Value::Statistic(Statistic { eps: part.eps + f64::from(eps), ..part.clone() }))
            }
            ("Div", Value::Statistic(p), Value::Statistic(q)) if p.kind == Kind::Centred && q.kind == Kind::Deviation && p.goes_with(q) => {
                Some(Value::Map(self.normalised(&node.name, &p.of.clone(), &p.axes.clone(), q.eps)?))
            }
            ("Mul", Value::Statistic(p), Value::Statistic(q)) if p.kind == Kind::Centred && q.kind == Kind::Inverse && p.goes_with(q) => {
                Some(Value::Map(self.normalised(&node.name, &p.of.clone(), &p.axes.clone(), q.eps)?))
            }
            _ => None,
        })
    }

    /// A power, a root or a reciprocal, which are read as parts of norms alone.
    pub(super) fn of_statistic(&mut self, node: &Node) -> Result<Value, String> {
        let Some(Value::Statistic(part)) = self.value(node, 0)? else {
            return Err("is an operation on maps that this version reads as a part of norms alone".into());
        };
        let square = || Some(self.constant(node, 1).ok()??.scalar(self.files()) == Some(2.0));
        match (node.op(), part.kind) {
            ("Pow", Kind::Centred) if square() == Some(true) => Ok(part.turned(Kind::Squared)),
            ("Sqrt", Kind::Variance) => Ok(part.turned(Kind::Deviation)),
            ("Reciprocal", Kind::Deviation) => Ok(part.turned(Kind::Inverse)),
            _ => Err("is a part of a norm that is written out otherwise than exporters do".into()),
        }
    }
}
