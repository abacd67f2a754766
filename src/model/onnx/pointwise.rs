//! Operations on each element by itself: activations, sums and products with constants and of maps.

use super::fold;
use super::node::Node;
use super::tensor::Tensor;
use super::translate::{Needed, Translator, Value, narrow};
use super::view::{C, Part, View, sizes};
use crate::graph::{Combine, Op, Parameter, Resize, Size};
use crate::kernels::{Activation, Interpolation, Spread};
use crate::shape::Map;

/// A part of a GELU that is written out.
#[derive(Clone, Debug)]
pub(super) struct ErrorFunction {
    stage: Stage,
    of: View,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// erf(x / sqrt 2).
    Erf,
    /// 1 + erf(x / sqrt 2).
    OneMore,
    /// Half of that.
    Half,
}

/// The place in a constant that is spread over a view, of an element of the view's map at C, D, H,
/// W.
fn place(view: &View, shape: &[usize], at: [usize; 4]) -> usize {
    let offset = view.dims.len() - shape.len();
    let mut place = 0;
    for (dim, &size) in shape.iter().enumerate() {
        let index = view.dims[dim + offset].iter().fold(0, |sum, part| sum * part.size + at[part.axis] / part.step % part.size);
        place = place * size + if size == 1 { 0 } else { index };
    }
    place
}

/// A shape without the ones before as many axes as a value has.
fn aligned(shape: &[usize], rank: usize) -> Option<&[usize]> {
    let (more, rest) = shape.split_at(shape.len().saturating_sub(rank));
    more.iter().all(|&n| n == 1).then_some(rest)
}

/// The factor or summand of each channel of a view that is all of its map, where a constant has
/// one.
fn of_channels(view: &View, map: Map, shape: &[usize], values: &[f32]) -> Option<Vec<f64>> {
    let offset = view.dims.len() - shape.len();
    let spread = |dim: usize| shape[dim] == 1 || view.dims[dim + offset].iter().all(|part| part.axis == C);
    (0..shape.len()).all(spread).then(|| (0..map.channels as usize).map(|c| f64::from(values[place(view, shape, [c, 0, 0, 0])])).collect())
}

impl Translator<'_> {
    /// The same elements as all of a map, which may still be to be rolled.
    pub(super) fn whole(&mut self, name: &str, view: &View) -> Result<View, String> {
        if view.is_whole(self.map(view.node)) { Ok(view.clone()) } else { self.laid_out(name, view) }
    }

    /// A value with a constant added, or multiplied by it.
    pub(super) fn with_constant(&mut self, name: &str, view: &View, tensor: &Tensor, add: bool) -> Result<View, String> {
        self.with_values(name, view, &tensor.shape, &tensor.floats(self.files()), add)
    }

    fn with_values(&mut self, name: &str, view: &View, shape: &[usize], values: &[f32], add: bool) -> Result<View, String> {
        let own = view.shape();
        let shape = aligned(shape, own.len()).filter(|shape| fold::spread(&own, shape).is_ok_and(|made| made == own));
        let shape = shape.ok_or_else(|| format!("spreads a map of shape {own:?} over a constant"))?;
        if let (&[value], false, false) = (values, add, view.is_whole(self.map(view.node))) {
            return Ok(View { gain: view.gain * f64::from(value), ..view.clone() });
        }
        let view = self.whole(name, view)?;
        let map = self.map(view.node);
        let n = map.channels as usize;
        if let Some(channels) = of_channels(&view, map, shape, values) {
            let (ones, zeros) = (vec![1.0; n], vec![0.0; n]);
            return if add { self.scaled(name, &view, ones, channels) } else { self.scaled(name, &view, channels, zeros) };
        }
        let view = self.laid_out(name, &view)?;
        let offset = own.len() - shape.len();
        let one = (0..shape.len()).all(|dim| shape[dim] == 1 || view.dims[dim + offset].iter().all(|part| part.axis != C));
        let [_, d, h, w] = sizes(map);
        let channels = if one { 1 } else { n };
        let voxels = d * h * w;
        let mut rows = Vec::with_capacity(fold::count(&[voxels, channels])?);
        for voxel in 0..voxels {
            let at = |c: usize| [c, voxel / (h * w), voxel / w % h, voxel % w];
            rows.extend((0..channels).map(|c| values[place(&view, shape, at(c))]));
        }
        let tensor = self.next_name(&format!("{name}.constant"));
        let parameter = Parameter {
            tensor: tensor.clone(),
            shape: [narrow(voxels)?, narrow(channels)?],
            batched: false,
            rows: 0..narrow(voxels)?,
            extent: map.extent,
            per_plane: self.flat,
        };
        self.need(tensor.clone(), vec![voxels, channels], Needed::Floats(rows));
        let other = self.emit(&tensor, Op::Parameter(parameter), &[])?;
        let combine = Combine { spread: if one && n > 1 { Spread::Channels } else { Spread::Nothing }, ..Combine::default() };
        let id = self.emit(name, if add { Op::Add(combine) } else { Op::Multiply(combine) }, &[view.node, other])?;
        Ok(View { alone: true, ..view.of(id) })
    }

    /// A value scaled and shifted by two numbers.
    fn linear(&mut self, name: &str, view: &View, factor: f64, summand: f64) -> Result<View, String> {
        let view = self.whole(name, view)?;
        let n = self.map(view.node).channels as usize;
        self.scaled(name, &view, vec![factor; n], vec![summand; n])
    }

    fn activated(&mut self, name: &str, view: &View, activation: Activation) -> Result<View, String> {
        let view = self.whole(name, view)?;
        let id = self.emit(name, Op::Activation(activation), &[view.node])?;
        Ok(View { alone: true, ..view.of(id) })
    }

    pub(super) fn activation(&mut self, node: &Node) -> Result<Value, String> {
        let name = node.name.as_str();
        if let (Some(Value::Scores(scores)), "Softmax") = (self.value(node, 0)?, node.op()) {
            return self.scores_softmax(node, &scores);
        }
        let view = self.view(node, 0)?;
        let alpha = |missing: f32| node.float("alpha").unwrap_or(missing);
        let made = match node.op() {
            "Relu" => self.activated(name, &view, Activation::Relu)?,
            "Sigmoid" => self.activated(name, &view, Activation::Sigmoid)?,
            "LeakyRelu" => self.activated(name, &view, Activation::LeakyRelu { slope: alpha(0.01) })?,
            "Elu" => self.activated(name, &view, Activation::Elu { alpha: alpha(1.0) })?,
            "Gelu" if node.text("approximate").unwrap_or("none") == "none" => self.activated(name, &view, Activation::Gelu)?,
            "Gelu" => return Err("is approximated by tanh, which is not read; export it with approximate=\"none\"".into()),
            "Neg" => self.linear(name, &view, -1.0, 0.0)?,
            "Tanh" => {
                let double = self.linear(&format!("{name}.twice"), &View { alone: false, ..view }, 2.0, 0.0)?;
                let sigmoid = self.activated(&format!("{name}.sigmoid"), &double, Activation::Sigmoid)?;
                self.linear(name, &sigmoid, 2.0, -1.0)?
            }
            "HardSigmoid" => self.hard_sigmoid(name, &view, alpha(0.2), node.float("beta").unwrap_or(0.5))?,
            "HardSwish" => {
                let view = View { alone: false, ..view };
                let gate = self.hard_sigmoid(&format!("{name}.gate"), &view, 1.0 / 6.0, 0.5)?;
                self.combined(name, &view, &gate, false)?
            }
            "Swish" => {
                let view = View { alone: false, ..view };
                let scaled =
                    if alpha(1.0) == 1.0 { view.clone() } else { self.linear(&format!("{name}.alpha"), &view, alpha(1.0).into(), 0.0)? };
                let gate = self.activated(&format!("{name}.gate"), &scaled, Activation::Sigmoid)?;
                self.combined(name, &view, &gate, false)?
            }
            "Clip" => {
                let bound = |slot: usize, key: &str| -> Result<Option<f32>, String> {
                    let tensor = self.constant(node, slot)?;
                    Ok(tensor.map_or_else(|| node.float(key), |tensor| tensor.scalar(self.files())))
                };
                let (low, high) = (bound(1, "min")?, bound(2, "max")?);
                self.clipped(name, &view, low, high)?
            }
            "PRelu" => {
                let slopes = self.constant(node, 1)?.ok_or("lacks its slopes")?;
                let view = self.whole(name, &view)?;
                let map = self.map(view.node);
                let (own, values) = (view.shape(), slopes.floats(self.files()));
                let shape = aligned(&slopes.shape, own.len()).filter(|shape| fold::spread(&own, shape).is_ok_and(|made| made == own));
                let slopes = shape.and_then(|shape| of_channels(&view, map, shape, &values));
                let slopes = slopes.ok_or("has slopes that are not one for all or one for each channel")?;
                #[expect(clippy::cast_possible_truncation, reason = "they were f32")]
                let slopes: Vec<f32> = if values.len() == 1 { values } else { slopes.into_iter().map(|v| v as f32).collect() };
                let module = self.next_name(name);
                let channels = narrow(slopes.len())?;
                self.need(format!("{module}.weight"), vec![slopes.len()], Needed::Floats(slopes));
                let id = self.emit(name, Op::PRelu { module, channels }, &[view.node])?;
                View { alone: true, ..view.of(id) }
            }
            "Softmax" => {
                let view = self.whole(name, &view)?;
                let axis = fold::axis_of(node.int("axis").unwrap_or(-1), view.dims.len())?;
                if !view.is_channels(axis, self.map(view.node)) {
                    return Err(format!("is over the axis {axis} of {:?}, which is not that of channels", view.shape()));
                }
                let id = self.emit(name, Op::Softmax, &[view.node])?;
                View { alone: true, ..view.of(id) }
            }
            _ => return self.erf(&view),
        };
        Ok(Value::Map(made))
    }

    fn hard_sigmoid(&mut self, name: &str, view: &View, alpha: f32, beta: f32) -> Result<View, String> {
        let line = self.linear(&format!("{name}.line"), &View { alone: false, ..view.clone() }, alpha.into(), beta.into())?;
        self.clipped(name, &line, Some(0.0), Some(1.0))
    }

    /// Values within bounds: what is above the lower, less what is above the upper.
    fn clipped(&mut self, name: &str, view: &View, low: Option<f32>, high: Option<f32>) -> Result<View, String> {
        let bounds = [low, high].map(|bound| bound.filter(|v| v.abs() < 1e30));
        let above = |t: &mut Self, view: &View, end: &str, bound: f32| -> Result<View, String> {
            let from = if bound == 0.0 { view.clone() } else { t.linear(&format!("{name}.{end}"), view, 1.0, -f64::from(bound))? };
            t.activated(&format!("{name}.above_{end}"), &from, Activation::Relu)
        };
        let view = View { alone: false, ..view.clone() };
        let lower = match bounds[0] {
            None => view.clone(),
            Some(low) => {
                let part = above(self, &view, "min", low)?;
                if low == 0.0 { part } else { self.linear(&format!("{name}.raised"), &part, 1.0, low.into())? }
            }
        };
        let Some(high) = bounds[1] else { return Ok(lower) };
        let over = above(self, &view, "max", high)?;
        let over = self.linear(&format!("{name}.over"), &over, -1.0, 0.0)?;
        self.combined(name, &lower, &over, true)
    }

    /// erf(x / sqrt 2) of a GELU that is written out.
    fn erf(&mut self, view: &View) -> Result<Value, String> {
        let root = std::f64::consts::FRAC_1_SQRT_2;
        let halved = self
            .affine_of(view.node)
            .is_some_and(|affine| affine.scale.iter().all(|s| (s - root).abs() < 1e-6) && affine.shift.iter().all(|&t| t == 0.0));
        match (self.op(view.node), self.input_of(view.node)) {
            (Op::BatchNorm(_), Some(node)) if halved => {
                Ok(Value::ErrorFunction(ErrorFunction { stage: Stage::Erf, of: View { node, alone: false, ..view.clone() } }))
            }
            _ => Err("is no part of a GELU, which alone is read".into()),
        }
    }

    /// The next part of a GELU that is written out.
    fn gelu(&mut self, node: &Node, part: &ErrorFunction, other: &Value) -> Result<Value, String> {
        let odd = || "is a part of a GELU that is written out otherwise than exporters do".to_owned();
        let number = match other {
            Value::Constant(tensor) => tensor.scalar(self.files()),
            _ => None,
        };
        let turned = |stage| Ok(Value::ErrorFunction(ErrorFunction { stage, of: part.of.clone() }));
        match (node.op(), part.stage, number, other) {
            ("Add", Stage::Erf, Some(1.0), _) => turned(Stage::OneMore),
            ("Mul", Stage::OneMore, Some(0.5), _) => turned(Stage::Half),
            ("Mul", stage @ (Stage::OneMore | Stage::Half), None, Value::Map(x)) => {
                let half = self.affine_of(x.node).is_some_and(|a| a.scale.iter().all(|&s| s == 0.5) && a.shift.iter().all(|&t| t == 0.0));
                let own = x.node == part.of.node && x.dims == part.of.dims;
                let halved = half && self.input_of(x.node) == Some(part.of.node) && x.dims == part.of.dims;
                if !(own || halved && stage == Stage::OneMore) {
                    return Err(odd());
                }
                let made = self.activated(&node.name, &part.of.clone(), Activation::Gelu)?;
                let twice = own && stage == Stage::OneMore;
                // its half comes next
                Ok(Value::Map(if twice { View { gain: 2.0 * made.gain, ..made } } else { made }))
            }
            _ => Err(odd()),
        }
    }

    pub(super) fn arithmetic(&mut self, node: &Node) -> Result<Value, String> {
        let (Some(a), Some(b)) = (self.value(node, 0)?, self.value(node, 1)?) else { return Err("lacks an input".into()) };
        if let Some(made) = self.statistics(node, &a, &b)? {
            return Ok(made);
        }
        let name = node.name.as_str();
        match (&a, &b) {
            (Value::ErrorFunction(part), other) | (other, Value::ErrorFunction(part)) => return self.gelu(node, part, other),
            (Value::Scores(scores), Value::Constant(tensor)) => return self.scores_arithmetic(node, scores, tensor),
            (Value::Constant(tensor), Value::Scores(scores)) if matches!(node.op(), "Add" | "Mul") => {
                return self.scores_arithmetic(node, scores, tensor);
            }
            _ => {}
        }
        let made = match (&a, &b) {
            (Value::Constant(tensor), _) | (_, Value::Constant(tensor)) => {
                let first = matches!(a, Value::Constant(_));
                let view = self.view(node, usize::from(first))?;
                let values = tensor.floats(self.files());
                match node.op() {
                    "Add" => self.with_values(name, &view, &tensor.shape, &values, true)?,
                    "Mul" => self.with_values(name, &view, &tensor.shape, &values, false)?,
                    "Sub" if !first => {
                        let minus: Vec<f32> = values.iter().map(|v| -v).collect();
                        self.with_values(name, &view, &tensor.shape, &minus, true)?
                    }
                    "Sub" => {
                        let minus = self.linear(&format!("{name}.minus"), &view, -1.0, 0.0)?;
                        self.with_values(name, &minus, &tensor.shape, &values, true)?
                    }
                    _ if !first => {
                        let over: Vec<f32> = values.iter().map(|v| 1.0 / v).collect();
                        self.with_values(name, &view, &tensor.shape, &over, false)?
                    }
                    _ => return Err("divides by a map, which is not read".into()),
                }
            }
            _ => {
                let (a, b) = (self.view(node, 0)?, self.view(node, 1)?);
                match node.op() {
                    "Add" => {}
                    "Mul" => return self.combined(name, &a, &b, false).map(Value::Map),
                    "Sub" => return self.less(name, &a, &b).map(Value::Map),
                    _ => return Err("divides by a map, which is not read".into()),
                }
                self.combined(name, &a, &b, true)?
            }
        };
        Ok(Value::Map(made))
    }

    /// A map less another.
    pub(super) fn less(&mut self, name: &str, a: &View, b: &View) -> Result<View, String> {
        let minus = self.linear(&format!("{name}.minus"), b, -1.0, 0.0)?;
        self.combined(name, a, &minus, true)
    }

    /// The sum or the product of two maps, one of which may be spread over the other's voxels or
    /// channels.
    pub(super) fn combined(&mut self, name: &str, a: &View, b: &View, add: bool) -> Result<View, String> {
        let (mut a, mut b) = (self.whole(name, a)?, self.whole(name, b)?);
        if a.roll != b.roll {
            (a, b) = (self.laid_out(name, &a)?, self.laid_out(name, &b)?);
        }
        let rank = a.dims.len().max(b.dims.len());
        for view in [&mut a, &mut b] {
            while view.dims.len() < rank {
                view.dims.insert(0, Vec::new());
            }
        }
        let (x, y) = (self.map(a.node), self.map(b.node));
        if fold::spread(&a.shape(), &b.shape())? != a.shape() || (x.channels, x.extent.voxels()) < (y.channels, y.extent.voxels()) {
            std::mem::swap(&mut a, &mut b);
        }
        let (x, y) = (self.map(a.node), self.map(b.node));
        // axes of the second are those of the first, or are missing where the first has all
        // channels or all of space
        let like = |channels: bool| {
            let spread = |p: &[Part]| p.iter().all(|part| (part.axis == C) == channels);
            a.dims.iter().zip(&b.dims).all(|(p, q)| p == q || (q.is_empty() && spread(p)))
        };
        let spread = if x == y && a.dims == b.dims {
            Spread::Nothing
        } else if y.channels == 1 && x.extent == y.extent && like(true) {
            Spread::Channels
        } else if y.extent.voxels() == 1 && x.channels == y.channels && like(false) {
            Spread::Voxels
        } else {
            let (a, b) = (a.shape(), b.shape());
            return Err(format!(
                "takes maps of shapes {a:?} and {b:?}, which are laid out differently or are not spread over channels or space"
            ));
        };
        let mut other = b.node;
        let mut combine = Combine { spread, ..Combine::default() };
        if self.flat && spread == Spread::Voxels {
            // each plane has a voxel of its own
            let size = Size::Plane([x.extent.h, x.extent.w]);
            other = self.emit(&format!("{name}.spread"), Op::Resize(Resize { size, mode: Interpolation::Nearest }), &[other])?;
            combine.spread = Spread::Nothing;
        }
        let id = self.emit(name, if add { Op::Add(combine) } else { Op::Multiply(combine) }, &[a.node, other])?;
        Ok(View { alone: true, ..a.of(id) })
    }
}
