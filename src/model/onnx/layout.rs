//! Operations that move nothing, or voxels and channels as they are.

use std::sync::Arc;

use super::fold::{self, axis_of};
use super::node::Node;
use super::tensor::{self, Tensor};
use super::translate::{Translator, Value};
use super::view::{C, View};
use crate::graph::{Op, PatchMerge};

impl<'a> Translator<'a> {
    /// Reshaping, transposing, slicing and what is known of a shape.
    pub(super) fn layout(&mut self, node: &Node) -> Result<Value, String> {
        let value = self.value(node, 0)?.ok_or("lacks its input 0")?;
        if matches!(node.op(), "Identity" | "Dropout" | "Cast") {
            if node.op() == "Cast" && tensor::is_float(node.int("to").unwrap_or(0)) != Some(true) {
                return Err("casts a map to integers; export the scores of the classes, not their labels".into());
            }
            return Ok(value);
        }
        if let Value::Scores(scores) = &value {
            return self.scores_layout(node, scores);
        }
        let view = self.view(node, 0)?;
        let shape = view.shape();
        let cut = |shape: &[usize]| format!("reshapes {:?} to {shape:?}, which cuts through the axes of the map", view.shape());
        let view = match node.op() {
            "Shape" => return fold::shape_of(node, &shape).map(|t| Value::Constant(Arc::new(t))),
            "Size" => {
                return Ok(Value::Constant(Arc::new(
                    Tensor::ints(vec![i64::try_from(view.len()).unwrap_or(i64::MAX)]).shaped(Vec::new())?,
                )));
            }
            "Reshape" => {
                let to = self.int_list(node, 1)?.ok_or("lacks its shape")?;
                let to = fold::reshape(&shape, &to, node.int("allowzero") == Some(1))?;
                view.reshaped(&to).ok_or_else(|| cut(&to))?
            }
            "Flatten" => {
                let axis = fold::flatten_axis(node, shape.len())?;
                let to = [shape[..axis].iter().product(), shape[axis..].iter().product()];
                view.reshaped(&to).ok_or_else(|| cut(&to))?
            }
            "Squeeze" | "Unsqueeze" => {
                let axes = self.int_list(node, 1)?.or_else(|| node.ints("axes").map(<[i64]>::to_vec));
                let to = fold::squeezed(node, &shape, axes.as_deref())?;
                view.reshaped(&to).ok_or_else(|| cut(&to))?
            }
            "Transpose" => view.transposed(&fold::order(node, shape.len())?).ok_or("names an axis twice")?,
            "Expand" => {
                let to = fold::sizes(&self.int_list(node, 1)?.ok_or("lacks its shape")?)?;
                if fold::spread(&shape, &to)? != shape {
                    return Err(format!("repeats a map of shape {shape:?} to {to:?}"));
                }
                view
            }
            "Slice" => self.slice(node, view)?,
            _ => self.gather(node, view)?,
        };
        Ok(Value::Map(view))
    }

    fn slice(&mut self, node: &Node, mut view: View) -> Result<View, String> {
        let parts = (1..5).map(|slot| self.constant(node, slot)).collect::<Result<Vec<_>, _>>()?;
        let input = |slot: usize| parts.get(slot.checked_sub(1)?)?.as_deref();
        for (axis, range) in fold::slices(node, &view.shape(), input)? {
            let step = usize::try_from(range.step).map_err(|_| "takes a map backwards, which is not done")?;
            view = self.part(&node.name, &view, axis, (range.start, step, range.length))?;
        }
        Ok(view)
    }

    /// A range of an axis: a start, a step and a length.
    fn part(&mut self, name: &str, view: &View, axis: usize, (start, step, length): (usize, usize, usize)) -> Result<View, String> {
        if length == 0 {
            return Err("takes nothing of a map".into());
        }
        if let Some(part) = view.sliced(axis, start, step, length) {
            return Ok(part);
        }
        let stored = self.laid_out(name, view)?;
        stored.sliced(axis, start, step, length).ok_or_else(|| "takes a part of an axis that is made of several, across them".to_owned())
    }

    fn gather(&mut self, node: &Node, view: View) -> Result<View, String> {
        let numbers = self.constant(node, 1)?.ok_or("lacks its numbers")?;
        let shape = view.shape();
        let axis = axis_of(node.int("axis").unwrap_or(0), shape.len())?;
        let list = numbers.as_ints().ok_or("gathers by floats")?;
        let list = list.iter().map(|&i| axis_of(i, shape[axis])).collect::<Result<Vec<_>, _>>()?;
        let first = *list.first().ok_or("takes nothing of a map")?;
        if list.iter().zip(first..).any(|(&i, next)| i != next) {
            return Err("picks parts of a map that are no neighbours".into());
        }
        let part = self.part(&node.name, &view, axis, (first, 1, list.len()))?;
        let to: Vec<usize> = shape[..axis].iter().chain(&numbers.shape).chain(&shape[axis + 1..]).copied().collect();
        part.reshaped(&to).ok_or_else(|| "takes a part of an axis that is made of several".to_owned())
    }

    /// Parts of an axis, one after another.
    pub(super) fn split(&mut self, node: &'a Node) -> Result<(), String> {
        let value = self.value(node, 0)?.ok_or("lacks its input 0")?;
        let shape = match &value {
            Value::Map(view) => view.shape(),
            Value::Constant(tensor) => tensor.shape.clone(),
            _ => return Err("splits a part of a norm, a GELU or an attention".into()),
        };
        let axis = axis_of(node.int("axis").unwrap_or(0), shape.len())?;
        let told = self.int_list(node, 1)?.or_else(|| node.ints("split").map(<[i64]>::to_vec));
        let lengths = match told {
            Some(list) => fold::sizes(&list)?,
            None => {
                let each = shape[axis].div_ceil(node.outputs.len().max(1)).max(1);
                (0..node.outputs.len()).map(|i| each.min(shape[axis].saturating_sub(i * each))).collect()
            }
        };
        let sum = lengths.iter().try_fold(0, |sum: usize, &n| sum.checked_add(n));
        if sum != Some(shape[axis]) || lengths.len() != node.outputs.len() {
            return Err(format!("splits an axis of {} into {lengths:?}", shape[axis]));
        }
        let mut start = 0;
        for (slot, &length) in lengths.iter().enumerate() {
            let part = match &value {
                Value::Map(view) => Value::Map(View { alone: false, ..self.part(&node.name, view, axis, (start, 1, length))? }),
                Value::Constant(tensor) => {
                    Value::Constant(Arc::new(tensor.sliced(axis, fold::Range { start, length, step: 1 }, self.files())?))
                }
                _ => return Err("splits a part of an attention".into()),
            };
            self.set(node, slot, part);
            start += length;
        }
        Ok(())
    }

    /// Channels one after another, or what was taken apart along another axis.
    pub(super) fn concat(&mut self, node: &Node) -> Result<Value, String> {
        let views = (0..node.inputs.len()).map(|slot| self.view(node, slot)).collect::<Result<Vec<_>, _>>()?;
        let rank = views[0].dims.len();
        let axis = axis_of(node.int("axis").unwrap_or(0), rank)?;
        if let [view] = &views[..] {
            return Ok(Value::Map(view.clone()));
        }
        if let Some(rolled) = self.rolled(&views, axis) {
            return Ok(Value::Map(rolled));
        }
        if let Some(merged) = self.merged(node, &views, axis)? {
            return Ok(Value::Map(merged));
        }
        let mut whole: Option<View> = None;
        for view in &views {
            let mut view = self.laid_out(&node.name, view)?;
            if !view.is_channels(axis, self.map(view.node)) {
                return Err("joins maps along another axis than their channels, or along a part of these".into());
            }
            view.alone = false;
            whole = Some(match whole {
                None => view,
                Some(first) => {
                    let others = |v: &View| (0..rank).filter(|&dim| dim != axis).map(|dim| v.dims[dim].clone()).collect::<Vec<_>>();
                    if view.dims.len() != rank || others(&first) != others(&view) {
                        return Err(format!("joins maps of shapes {:?} and {:?}", first.shape(), view.shape()));
                    }
                    let id = self.emit(&node.name, Op::Concat, &[first.node, view.node])?;
                    let channels = self.map(id).channels as usize;
                    let mut joined = View { alone: true, ..first.of(id) };
                    joined.dims[axis] = vec![super::view::Part { axis: C, size: channels, step: 1 }];
                    joined
                }
            });
        }
        whole.map(Value::Map).ok_or_else(|| "joins nothing".into())
    }

    /// The channels of a map, all of them several times.
    pub(super) fn tile(&mut self, node: &Node) -> Result<Value, String> {
        let view = self.view(node, 0)?;
        let repeats = fold::sizes(&self.int_list(node, 1)?.ok_or("lacks its repeats")?)?;
        let view = self.laid_out(&node.name, &view)?;
        let map = self.map(view.node);
        let several: Vec<usize> = (0..repeats.len()).filter(|&axis| repeats[axis] != 1).collect();
        let axis = match several[..] {
            [] => return Ok(Value::Map(view)),
            // of one channel the axis is known by its place alone
            [axis] if view.is_channels(axis, map) && (map.channels > 1 || axis == 1) => axis,
            _ => return Err(format!("repeats a map of shape {:?} by {repeats:?}", view.shape())),
        };
        let (all, times) = (map.channels as usize, repeats[axis]);
        let outputs = all.checked_mul(times).ok_or("repeats a map more often than memory holds")?;
        let mut weights = vec![0.0; fold::count(&[outputs, all])?];
        (0..outputs).for_each(|output| weights[output * all + output % all] = 1.0);
        let node = self.selected(&node.name, view.node, outputs, weights)?;
        let mut made = View { alone: true, ..view.of(node) };
        made.dims[axis] = vec![super::view::Part { axis: C, size: outputs, step: 1 }];
        Ok(Value::Map(made))
    }

    /// Two parts of one axis of a map that have changed places: it is rolled.
    fn rolled(&self, views: &[View], axis: usize) -> Option<View> {
        let [late, early] = views else { return None };
        if late.dims.len() != early.dims.len() {
            return None;
        }
        let [part] = early.dims[axis][..] else {
            // a part of one voxel has no axis
            return self.rolled_by_one(late, early, axis);
        };
        self.roll_of(late, early, axis, part.axis)
    }

    fn rolled_by_one(&self, late: &View, early: &View, axis: usize) -> Option<View> {
        let [part] = late.dims.get(axis)?[..] else { return None };
        early.dims[axis].is_empty().then(|| self.roll_of(late, early, axis, part.axis)).flatten()
    }

    fn roll_of(&self, late: &View, early: &View, axis: usize, of: usize) -> Option<View> {
        let n = super::view::sizes(self.map(early.node))[of];
        let (first, second) = (late.shape()[axis], early.shape()[axis]);
        let same = late.node == early.node && late.gain == early.gain && late.roll == early.roll;
        let rest = (0..early.dims.len()).all(|dim| dim == axis || late.dims.get(dim) == early.dims.get(dim));
        let (at, from) = (late.first, early.first);
        let others = (0..4).all(|axis| axis == of || at[axis] == from[axis]);
        let dense = [late, early].iter().all(|view| view.is_dense(of));
        if of == C || !same || !rest || !others || !dense || (at[of], from[of]) != (second, 0) || first + second != n {
            return None;
        }
        let mut view = early.clone();
        view.dims[axis] = vec![super::view::Part { axis: of, size: n, step: 1 }];
        // the first voxel is now what was so many behind it
        let roll = i32::try_from(second).ok()?.checked_add(view.roll[of - 1])?;
        view.roll[of - 1] = roll.rem_euclid(i32::try_from(n).ok()?);
        view.alone = false;
        Some(view)
    }

    /// The voxels of patches that were taken at steps, as the channels of one: Swin's patch
    /// merging.
    fn merged(&mut self, node: &Node, views: &[View], axis: usize) -> Result<Option<View>, String> {
        let first = &views[0];
        let map = self.map(first.node);
        let channels = |view: &View| view.is_channels(axis, map);
        let mut patch = [1u32; 3];
        for part in first.dims.iter().flatten().filter(|part| part.axis != C) {
            patch[part.axis - 1] = super::translate::narrow(part.step)?;
        }
        let same = |view: &View| {
            let plain = view.node == first.node && view.gain == 1.0 && view.roll == [0; 3];
            plain && view.dims == first.dims && channels(view) && (1..4).all(|axis| view.first[axis] < patch[axis - 1] as usize)
        };
        if patch == [1; 3] || !views.iter().all(same) {
            return Ok(None);
        }
        let order = views.iter().map(|view| [1, 2, 3].map(|axis| u32::try_from(view.first[axis]).unwrap_or(u32::MAX))).collect();
        let id = self.emit(&node.name, Op::PatchMerge(PatchMerge { patch, order }), &[first.node])?;
        let mut view = View { alone: true, ..first.of(id) };
        for part in view.dims.iter_mut().flatten().filter(|part| part.axis != C) {
            part.step = 1;
        }
        view.dims[axis] = vec![super::view::Part { axis: C, size: self.map(id).channels as usize, step: 1 }];
        Ok(view.is_whole(self.map(id)).then_some(view))
    }
}
