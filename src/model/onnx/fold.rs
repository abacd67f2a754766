//! Arithmetic of tensors that are known before any input: shapes, paddings, tables of positions.

use super::node::Node;
use super::tensor::{Data, MOST_COMPUTED, Tensor};
use crate::model::weights::Bytes;

/// Row-major steps of axes.
fn steps(shape: &[usize]) -> Vec<usize> {
    let mut steps = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        steps[axis - 1] = steps[axis] * shape[axis];
    }
    steps
}

/// Elements of a shape.
///
/// # Errors
/// When they are more than are computed.
pub(super) fn count(shape: &[usize]) -> Result<usize, String> {
    let count = shape.iter().try_fold(1, |n: usize, &m| n.checked_mul(m)).filter(|&n| n <= MOST_COMPUTED);
    count.ok_or_else(|| format!("makes a constant of shape {shape:?}, of which at most {MOST_COMPUTED} elements are computed"))
}

/// The shape that two shapes are spread to.
pub(super) fn spread(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], axis: usize| (axis + s.len()).checked_sub(rank).map_or(1, |axis| s[axis]);
    let axis = |axis: usize| match (at(a, axis), at(b, axis)) {
        (1, n) | (n, 1) => Ok(n),
        (n, m) if n == m => Ok(n),
        _ => Err(format!("has inputs of shapes {a:?} and {b:?}, which do not go together")),
    };
    (0..rank).map(axis).collect()
}

/// For each element of `shape` in order the element of a tensor of shape `of` that is spread over
/// it.
pub(super) fn indices(shape: &[usize], of: &[usize]) -> Result<Vec<usize>, String> {
    let offset = shape.len().saturating_sub(of.len());
    let own = steps(of);
    let walk: Vec<usize> =
        (0..shape.len()).map(|axis| if axis < offset || of[axis - offset] == 1 { 0 } else { own[axis - offset] }).collect();
    strided(shape, &walk, 0)
}

/// Places of the elements of `shape` where neighbours along each axis are so far apart.
fn strided(shape: &[usize], walk: &[usize], begin: usize) -> Result<Vec<usize>, String> {
    let n = count(shape)?;
    let mut list = Vec::with_capacity(n);
    let mut at = vec![0; shape.len()];
    let mut place = begin;
    for _ in 0..n {
        list.push(place);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            place += walk[axis];
            if at[axis] < shape[axis] {
                break;
            }
            place -= walk[axis] * shape[axis];
            at[axis] = 0;
        }
    }
    Ok(list)
}

impl Tensor {
    /// The elements at these places, in a shape.
    fn pick(&self, shape: Vec<usize>, places: &[usize], files: &[Bytes]) -> Result<Self, String> {
        let beyond = || "takes elements that its input does not have".to_owned();
        let data = match &self.data {
            Data::Ints(list) => Data::Ints(places.iter().map(|&i| list.get(i).copied()).collect::<Option<_>>().ok_or_else(beyond)?),
            _ => {
                let list = self.floats(files);
                Data::Floats(places.iter().map(|&i| list.get(i).copied()).collect::<Option<_>>().ok_or_else(beyond)?)
            }
        };
        Ok(Self { shape, data })
    }

    /// The same elements in another shape.
    pub(super) fn shaped(&self, shape: Vec<usize>) -> Result<Self, String> {
        if shape.iter().try_fold(1, |n: usize, &m| n.checked_mul(m)) != Some(self.len()) {
            return Err(format!("reshapes a constant of shape {:?} to {shape:?}", self.shape));
        }
        Ok(Self { shape, data: self.data.clone() })
    }

    /// The axes in another order.
    pub(super) fn transposed(&self, order: &[usize], files: &[Bytes]) -> Result<Self, String> {
        let own = steps(&self.shape);
        if order.len() != own.len() || order.iter().any(|&axis| axis >= own.len()) {
            return Err(format!("transposes {} axes by {order:?}", own.len()));
        }
        let shape: Vec<usize> = order.iter().map(|&axis| self.shape[axis]).collect();
        let walk: Vec<usize> = order.iter().map(|&axis| own[axis]).collect();
        let places = strided(&shape, &walk, 0)?;
        self.pick(shape, &places, files)
    }

    /// The elements spread over a shape.
    fn over(&self, shape: &[usize], files: &[Bytes]) -> Result<Self, String> {
        let places = indices(shape, &self.shape)?;
        self.pick(shape.to_vec(), &places, files)
    }

    /// A part of an axis.
    pub(super) fn sliced(&self, axis: usize, range: Range, files: &[Bytes]) -> Result<Self, String> {
        let own = steps(&self.shape);
        let places: Vec<usize> = range.places().collect();
        let (outer, size, inner) = (self.shape[..axis].iter().product::<usize>(), self.shape[axis], own[axis]);
        let mut shape = self.shape.clone();
        shape[axis] = places.len();
        count(&shape)?;
        let all = (0..outer).flat_map(|o| places.iter().flat_map(move |&p| (0..inner).map(move |i| (o * size + p) * inner + i)));
        let all: Vec<usize> = all.collect();
        self.pick(shape, &all, files)
    }
}

/// Places of an axis: from a start on, so many, each so far from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub start: usize,
    pub length: usize,
    pub step: i64,
}

impl Range {
    /// The range that ONNX's `Slice` takes of an axis of `size`.
    pub(super) fn of_slice(start: i64, end: i64, step: i64, size: usize) -> Option<Self> {
        let n = i64::try_from(size).ok()?;
        let (low, high) = if step < 0 { (-1, n - 1) } else { (0, n) };
        let clamp = |at: i64| if at < 0 { at.saturating_add(n) } else { at }.clamp(low, high);
        // an end that lies before the axis is none, whatever its size
        let end = if step < 0 && end < -n { -1 } else { clamp(end) };
        let start = clamp(start);
        let span = if step < 0 { start - end } else { end - start }.max(0);
        let length = span.checked_add(step.checked_abs()? - 1)?.checked_div(step.checked_abs()?)?;
        Some(Self { start: usize::try_from(start.max(0)).ok()?, length: usize::try_from(length).ok()?, step })
    }

    fn places(self) -> impl Iterator<Item = usize> {
        (0..self.length).map(move |i| {
            let by = i64::try_from(i).unwrap_or(i64::MAX).saturating_mul(self.step);
            self.start.saturating_add_signed(isize::try_from(by).unwrap_or(isize::MAX))
        })
    }
}

/// The number of an axis that may be counted from the end.
pub(super) fn axis_of(axis: i64, rank: usize) -> Result<usize, String> {
    let n = i64::try_from(rank).unwrap_or(i64::MAX);
    let at = if axis < 0 { axis.saturating_add(n) } else { axis };
    usize::try_from(at).ok().filter(|&at| at < rank).ok_or_else(|| format!("names the axis {axis} of {rank}"))
}

/// The shape that ONNX's `Reshape` makes of one.
pub(super) fn reshape(from: &[usize], to: &[i64], allow_zero: bool) -> Result<Vec<usize>, String> {
    let bad = || format!("reshapes {from:?} to {to:?}");
    let total = from.iter().try_fold(1, |n: usize, &m| n.checked_mul(m)).ok_or_else(bad)?;
    let mut shape = Vec::with_capacity(to.len());
    let mut open = None;
    for (axis, &n) in to.iter().enumerate() {
        shape.push(match n {
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            0 if !allow_zero => *from.get(axis).ok_or_else(bad)?,
            n => usize::try_from(n).map_err(|_| bad())?,
        });
    }
    let known = shape.iter().try_fold(1, |n: usize, &m| n.checked_mul(m)).ok_or_else(bad)?;
    if let Some(axis) = open {
        shape[axis] = total.checked_div(known).ok_or_else(bad)?;
    }
    let made = shape.iter().try_fold(1, |n: usize, &m| n.checked_mul(m));
    if made == Some(total) { Ok(shape) } else { Err(bad()) }
}

/// A function of two integers and of two floats.
type Binary = (fn(i64, i64) -> Option<i64>, fn(f32, f32) -> f32);

fn binary(op: &str) -> Option<Binary> {
    let pair: Binary = match op {
        "Add" => (i64::checked_add, |a, b| a + b),
        "Sub" => (i64::checked_sub, |a, b| a - b),
        "Mul" => (i64::checked_mul, |a, b| a * b),
        // truncated, as ONNX's division of integers
        "Div" => (i64::checked_div, |a, b| a / b),
        "Max" => (|a, b| Some(a.max(b)), f32::max),
        "Min" => (|a, b| Some(a.min(b)), f32::min),
        "Pow" => (|a, b| a.checked_pow(u32::try_from(b).ok()?), f32::powf),
        _ => return None,
    };
    Some(pair)
}

fn compare(op: &str) -> Option<fn(f64, f64) -> bool> {
    let test: fn(f64, f64) -> bool = match op {
        "Equal" => |a, b| a == b,
        "Less" => |a, b| a < b,
        "LessOrEqual" => |a, b| a <= b,
        "Greater" => |a, b| a > b,
        "GreaterOrEqual" => |a, b| a >= b,
        "And" => |a, b| a != 0.0 && b != 0.0,
        "Or" => |a, b| a != 0.0 || b != 0.0,
        _ => return None,
    };
    Some(test)
}

fn unary(op: &str) -> Option<fn(f32) -> f32> {
    let function: fn(f32) -> f32 = match op {
        "Sqrt" => f32::sqrt,
        "Floor" => f32::floor,
        "Ceil" => f32::ceil,
        "Exp" => f32::exp,
        "Round" => f32::round_ties_even,
        "Reciprocal" => f32::recip,
        _ => return None,
    };
    Some(function)
}

/// The tensor that a node makes of constants, the first of its outputs; `None` for an operation
/// that is not computed.
///
/// # Errors
/// When the inputs do not suit.
pub(super) fn fold(node: &Node, inputs: &[Option<&Tensor>], files: &[Bytes]) -> Result<Option<Tensor>, String> {
    let input = |slot: usize| inputs.get(slot).copied().flatten().ok_or_else(|| format!("lacks its input {slot}"));
    let list = |slot: usize| input(slot)?.as_ints().map(<[i64]>::to_vec).ok_or_else(|| format!("has floats as its input {slot}"));
    let axes = |slot: usize| -> Result<Option<Vec<i64>>, String> {
        if inputs.get(slot).copied().flatten().is_some() { list(slot).map(Some) } else { Ok(node.ints("axes").map(<[i64]>::to_vec)) }
    };
    if let Some((ints, floats)) = binary(node.op()) {
        let (a, b) = (input(0)?, input(1)?);
        let shape = spread(&a.shape, &b.shape)?;
        let (i, j) = (indices(&shape, &a.shape)?, indices(&shape, &b.shape)?);
        let data = if let (Some(a), Some(b)) = (a.as_ints(), b.as_ints()) {
            let value = |(&i, &j): (&usize, &usize)| ints(a[i], b[j]).ok_or_else(|| format!("has no integer as {} and {}", a[i], b[j]));
            Data::Ints(i.iter().zip(&j).map(value).collect::<Result<_, String>>()?)
        } else {
            let (a, b) = (a.floats(files), b.floats(files));
            Data::Floats(i.iter().zip(&j).map(|(&i, &j)| floats(a[i], b[j])).collect())
        };
        return Ok(Some(Tensor { shape, data }));
    }
    if let Some(test) = compare(node.op()) {
        let (a, b) = (input(0)?, input(1)?);
        let shape = spread(&a.shape, &b.shape)?;
        let (i, j) = (indices(&shape, &a.shape)?, indices(&shape, &b.shape)?);
        let (a, b) = (doubles(a, files), doubles(b, files));
        let data = Data::Ints(i.iter().zip(&j).map(|(&i, &j)| i64::from(test(a[i], b[j]))).collect());
        return Ok(Some(Tensor { shape, data }));
    }
    if let Some(function) = unary(node.op()) {
        let a = input(0)?;
        return Ok(Some(Tensor { shape: a.shape.clone(), data: Data::Floats(a.floats(files).into_iter().map(function).collect()) }));
    }
    Ok(Some(match node.op() {
        "Identity" | "Dropout" => input(0)?.clone(),
        "Shape" => shape_of(node, &input(0)?.shape)?,
        "Size" => Tensor { shape: Vec::new(), data: Data::Ints(vec![i64::try_from(input(0)?.len()).unwrap_or(i64::MAX)]) },
        "Neg" | "Abs" | "Not" => {
            let a = input(0)?;
            let int: fn(i64) -> i64 = match node.op() {
                "Neg" => i64::wrapping_neg,
                "Abs" => i64::wrapping_abs,
                _ => |v| i64::from(v == 0),
            };
            let float: fn(f32) -> f32 = if node.op() == "Neg" { |v| -v } else { f32::abs };
            let data = match &a.data {
                Data::Ints(list) => Data::Ints(list.iter().map(|&v| int(v)).collect()),
                _ => Data::Floats(a.floats(files).into_iter().map(float).collect()),
            };
            Tensor { shape: a.shape.clone(), data }
        }
        "Mod" => {
            let (a, b) = (input(0)?, input(1)?);
            let shape = spread(&a.shape, &b.shape)?;
            let (i, j) = (indices(&shape, &a.shape)?, indices(&shape, &b.shape)?);
            let (Some(a), Some(b)) = (a.as_ints(), b.as_ints()) else { return Ok(None) };
            // the sign is the divisor's, as Python's
            let value = |(&i, &j): (&usize, &usize)| {
                let r = a[i].checked_rem(b[j])?;
                Some(if r != 0 && (r < 0) != (b[j] < 0) { r + b[j] } else { r })
            };
            let data = i.iter().zip(&j).map(value).collect::<Option<_>>().ok_or("divides by zero")?;
            Tensor { shape, data: Data::Ints(data) }
        }
        "Cast" => {
            let a = input(0)?;
            match super::tensor::is_float(node.int("to").unwrap_or(0)) {
                None => return Err("casts to a type that is not read".into()),
                Some(true) => Tensor { shape: a.shape.clone(), data: Data::Floats(a.floats(files)) },
                Some(false) => {
                    let truth = node.int("to") == Some(9);
                    #[expect(clippy::cast_possible_truncation, reason = "a cast, as the file says")]
                    let cast = |v: f64| if truth { i64::from(v != 0.0) } else { v as i64 };
                    let data = match &a.data {
                        Data::Ints(list) if !truth => list.clone(),
                        _ => doubles(a, files).into_iter().map(cast).collect(),
                    };
                    Tensor { shape: a.shape.clone(), data: Data::Ints(data) }
                }
            }
        }
        "Constant" => match node.constant()? {
            Some(tensor) => tensor,
            None => return Ok(None),
        },
        "ConstantOfShape" => {
            let shape = sizes(&list(0)?)?;
            let n = count(&shape)?;
            let data = match node.tensor("value")? {
                None => Data::Floats(vec![0.0; n]),
                Some(value) => match &value.data {
                    Data::Ints(list) => Data::Ints(vec![*list.first().ok_or("has no value")?; n]),
                    _ => Data::Floats(vec![*value.floats(files).first().ok_or("has no value")?; n]),
                },
            };
            Tensor { shape, data }
        }
        "Range" => {
            let at = |slot: usize| input(slot)?.as_ints().and_then(|l| l.first().copied()).ok_or_else(|| "counts in floats".to_owned());
            let (start, limit, delta) = (at(0)?, at(1)?, at(2)?);
            let steps = i128::from(limit) - i128::from(start);
            let n = if delta == 0 { 0 } else { steps.unsigned_abs().div_ceil(delta.unsigned_abs().into()) };
            let n = if (steps > 0) == (delta > 0) { usize::try_from(n).unwrap_or(usize::MAX) } else { 0 };
            count(&[n])?;
            let value = |i: usize| start.wrapping_add(i64::try_from(i).unwrap_or(i64::MAX).wrapping_mul(delta));
            Tensor::ints((0..n).map(value).collect())
        }
        "Reshape" => {
            let a = input(0)?;
            a.shaped(reshape(&a.shape, &list(1)?, node.int("allowzero") == Some(1))?)?
        }
        "Flatten" => {
            let a = input(0)?;
            let axis = flatten_axis(node, a.shape.len())?;
            a.shaped(vec![a.shape[..axis].iter().product(), a.shape[axis..].iter().product()])?
        }
        "Unsqueeze" | "Squeeze" => {
            let a = input(0)?;
            a.shaped(squeezed(node, &a.shape, axes(1)?.as_deref())?)?
        }
        "Transpose" => {
            let a = input(0)?;
            a.transposed(&order(node, a.shape.len())?, files)?
        }
        "Expand" => {
            let a = input(0)?;
            let shape = spread(&a.shape, &sizes(&list(1)?)?)?;
            a.over(&shape, files)?
        }
        "Tile" => {
            let (mut a, repeats) = (input(0)?.clone(), sizes(&list(1)?)?);
            for (axis, &n) in repeats.iter().enumerate().take(a.shape.len()) {
                count(&[n, a.len().max(1)])?;
                let copies = vec![&a; n];
                a = concat(&copies, axis, files)?;
            }
            a
        }
        "Concat" => {
            let parts = (0..inputs.len()).map(input).collect::<Result<Vec<_>, _>>()?;
            let axis = axis_of(node.int("axis").unwrap_or(0), input(0)?.shape.len())?;
            concat(&parts, axis, files)?
        }
        "Slice" => {
            let mut a = input(0)?.clone();
            for (axis, range) in slices(node, &a.shape.clone(), |slot| inputs.get(slot).copied().flatten())? {
                a = a.sliced(axis, range, files)?;
            }
            a
        }
        "Gather" => gather(input(0)?, input(1)?, axis_of(node.int("axis").unwrap_or(0), input(0)?.shape.len())?, files)?,
        "Where" => {
            let (c, a, b) = (input(0)?, input(1)?, input(2)?);
            let shape = spread(&spread(&a.shape, &b.shape)?, &c.shape)?;
            let c = c.over(&shape, files)?;
            let (a, b) = (a.over(&shape, files)?, b.over(&shape, files)?);
            let truth = doubles(&c, files);
            let data = if let (Some(a), Some(b)) = (a.as_ints(), b.as_ints()) {
                Data::Ints(truth.iter().zip(a.iter().zip(b)).map(|(&t, (&a, &b))| if t != 0.0 { a } else { b }).collect())
            } else {
                let (a, b) = (a.floats(files), b.floats(files));
                Data::Floats(truth.iter().zip(a.into_iter().zip(b)).map(|(&t, (a, b))| if t != 0.0 { a } else { b }).collect())
            };
            Tensor { shape, data }
        }
        "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" if axes(1)?.is_none() && input(0)?.as_ints().is_some() => {
            let a = list(0)?;
            let value = match node.op() {
                "ReduceProd" => a.iter().try_fold(1, |n: i64, &m| n.checked_mul(m)),
                "ReduceSum" => a.iter().try_fold(0, |n: i64, &m| n.checked_add(m)),
                "ReduceMax" => a.iter().copied().max(),
                _ => a.iter().copied().min(),
            };
            let rank = if node.int("keepdims") == Some(0) { 0 } else { input(0)?.shape.len() };
            Tensor { shape: vec![1; rank], data: Data::Ints(vec![value.ok_or("has no integer as its result")?]) }
        }
        "ScatterND" => scatter(input(0)?, input(1)?, input(2)?, files)?,
        _ => return Ok(None),
    }))
}

/// Elements as f64, which holds integers of shapes, too.
fn doubles(tensor: &Tensor, files: &[Bytes]) -> Vec<f64> {
    #[expect(clippy::cast_precision_loss, reason = "numbers of shapes are far below 2^53")]
    match &tensor.data {
        Data::Ints(list) => list.iter().map(|&v| v as f64).collect(),
        _ => tensor.floats(files).into_iter().map(f64::from).collect(),
    }
}

/// The shape of a value, or the part of it that `Shape` asks for.
pub(super) fn shape_of(node: &Node, shape: &[usize]) -> Result<Tensor, String> {
    let rank = i64::try_from(shape.len()).unwrap_or(i64::MAX);
    let range = Range::of_slice(node.int("start").unwrap_or(0), node.int("end").unwrap_or(rank), 1, shape.len()).ok_or("takes no axes")?;
    Ok(Tensor::ints(range.places().map(|axis| i64::try_from(shape[axis]).unwrap_or(i64::MAX)).collect()))
}

/// Extents that are not negative.
pub(super) fn sizes(list: &[i64]) -> Result<Vec<usize>, String> {
    list.iter().map(|&n| usize::try_from(n).map_err(|_| format!("has a negative extent in {list:?}"))).collect()
}

/// The axis that `Flatten` cuts at.
pub(super) fn flatten_axis(node: &Node, rank: usize) -> Result<usize, String> {
    let axis = node.int("axis").unwrap_or(1);
    let at = if axis < 0 { axis.saturating_add_unsigned(rank as u64) } else { axis };
    usize::try_from(at).ok().filter(|&at| at <= rank).ok_or_else(|| format!("names the axis {axis} of {rank}"))
}

/// The order of axes that `Transpose` makes.
pub(super) fn order(node: &Node, rank: usize) -> Result<Vec<usize>, String> {
    match node.ints("perm") {
        None => Ok((0..rank).rev().collect()),
        Some(perm) => perm.iter().map(|&axis| axis_of(axis, rank)).collect(),
    }
}

/// The shape that `Squeeze` or `Unsqueeze` makes of one.
pub(super) fn squeezed(node: &Node, shape: &[usize], axes: Option<&[i64]>) -> Result<Vec<usize>, String> {
    if node.op() == "Squeeze" {
        let Some(axes) = axes else { return Ok(shape.iter().copied().filter(|&n| n != 1).collect()) };
        let axes = axes.iter().map(|&axis| axis_of(axis, shape.len())).collect::<Result<Vec<_>, _>>()?;
        if let Some(&axis) = axes.iter().find(|&&axis| shape[axis] != 1) {
            return Err(format!("squeezes the axis {axis} of {shape:?}"));
        }
        return Ok((0..shape.len()).filter(|axis| !axes.contains(axis)).map(|axis| shape[axis]).collect());
    }
    let axes = axes.ok_or("lacks its axes")?;
    let rank = shape.len() + axes.len();
    let axes = axes.iter().map(|&axis| axis_of(axis, rank)).collect::<Result<Vec<_>, _>>()?;
    let mut rest = shape.iter();
    let made: Vec<usize> = (0..rank)
        .map(|axis| if axes.contains(&axis) { Some(1) } else { rest.next().copied() })
        .collect::<Option<_>>()
        .ok_or("names an axis twice")?;
    if rest.next().is_some() { Err("names an axis twice".into()) } else { Ok(made) }
}

/// The axes that `Slice` cuts, and what it takes of each.
pub(super) fn slices<'a>(node: &Node, shape: &[usize], input: impl Fn(usize) -> Option<&'a Tensor>) -> Result<Vec<(usize, Range)>, String> {
    let part = |slot: usize, name: &str| -> Result<Option<Vec<i64>>, String> {
        match input(slot) {
            Some(tensor) => tensor.as_ints().map(|l| Some(l.to_vec())).ok_or_else(|| format!("has {name} that are floats")),
            None => Ok(node.ints(name).map(<[i64]>::to_vec)),
        }
    };
    let (starts, ends) = (part(1, "starts")?.ok_or("lacks its starts")?, part(2, "ends")?.ok_or("lacks its ends")?);
    let axes = part(3, "axes")?.unwrap_or_else(|| (0..starts.len()).map(|axis| i64::try_from(axis).unwrap_or(i64::MAX)).collect());
    let steps = part(4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err("has starts, ends, axes and steps of different numbers".into());
    }
    let cut = |i: usize| {
        let axis = axis_of(axes[i], shape.len())?;
        let range = Range::of_slice(starts[i], ends[i], steps[i], shape[axis]);
        Ok((axis, range.ok_or_else(|| format!("slices by a step of {}", steps[i]))?))
    };
    (0..starts.len()).map(cut).collect()
}

/// Tensors one after another along an axis.
pub(super) fn concat(parts: &[&Tensor], axis: usize, files: &[Bytes]) -> Result<Tensor, String> {
    let first = parts.first().ok_or("joins nothing")?;
    let same = |a: &Tensor| a.shape.len() == first.shape.len() && (0..a.shape.len()).all(|i| i == axis || a.shape[i] == first.shape[i]);
    if axis >= first.shape.len() || !parts.iter().all(|part| same(part)) {
        return Err("joins constants whose shapes differ".into());
    }
    let mut shape = first.shape.clone();
    shape[axis] = parts.iter().map(|part| part.shape[axis]).sum();
    count(&shape)?;
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    fn join<T: Copy>(lists: &[(Vec<T>, usize)], outer: usize) -> Vec<T> {
        (0..outer).flat_map(|o| lists.iter().flat_map(move |(list, row)| list[o * row..(o + 1) * row].iter().copied())).collect()
    }
    let row = |part: &&Tensor| part.shape[axis] * inner;
    let ints: Option<Vec<_>> = parts.iter().map(|part| Some((part.as_ints()?.to_vec(), row(part)))).collect();
    let data = match ints {
        Some(lists) => Data::Ints(join(&lists, outer)),
        None => Data::Floats(join(&parts.iter().map(|part| (part.floats(files), row(part))).collect::<Vec<_>>(), outer)),
    };
    Ok(Tensor { shape, data })
}

/// Parts of an axis by their numbers.
fn gather(from: &Tensor, numbers: &Tensor, axis: usize, files: &[Bytes]) -> Result<Tensor, String> {
    let size = from.shape[axis];
    let list = numbers.as_ints().ok_or("gathers by floats")?;
    let picked = list.iter().map(|&i| axis_of(i, size)).collect::<Result<Vec<_>, _>>()?;
    let (outer, inner) = (from.shape[..axis].iter().product::<usize>(), from.shape[axis + 1..].iter().product::<usize>());
    let shape: Vec<usize> = from.shape[..axis].iter().chain(&numbers.shape).chain(&from.shape[axis + 1..]).copied().collect();
    count(&shape)?;
    let places: Vec<usize> =
        (0..outer).flat_map(|o| picked.iter().flat_map(move |&p| (0..inner).map(move |i| (o * size + p) * inner + i))).collect();
    from.pick(shape, &places, files)
}

/// A constant of which parts are replaced.
fn scatter(into: &Tensor, indices: &Tensor, updates: &Tensor, files: &[Bytes]) -> Result<Tensor, String> {
    let bad = || "replaces parts that its input does not have".to_owned();
    let depth = *indices.shape.last().ok_or_else(bad)?;
    let own = steps(&into.shape);
    if depth > own.len() || depth == 0 {
        return Err(bad());
    }
    let inner: usize = into.shape[depth..].iter().product();
    let list = indices.as_ints().ok_or_else(bad)?;
    let place =
        |at: &[i64]| at.iter().enumerate().try_fold(0, |sum, (axis, &i)| Some(sum + axis_of(i, into.shape[axis]).ok()? * own[axis]));
    let places = list.chunks_exact(depth).map(place).collect::<Option<Vec<usize>>>().ok_or_else(bad)?;
    if places.len() * inner != updates.len() {
        return Err(bad());
    }
    fn put<T: Copy>(mut into: Vec<T>, places: &[usize], inner: usize, updates: &[T]) -> Vec<T> {
        for (i, &place) in places.iter().enumerate() {
            into[place..place + inner].copy_from_slice(&updates[i * inner..(i + 1) * inner]);
        }
        into
    }
    let data = match (into.as_ints(), updates.as_ints()) {
        (Some(a), Some(b)) => Data::Ints(put(a.to_vec(), &places, inner, b)),
        _ => Data::Floats(put(into.floats(files), &places, inner, &updates.floats(files))),
    };
    Ok(Tensor { shape: into.shape.clone(), data })
}
