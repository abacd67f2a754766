//! Convolutions, transposed convolutions and products with matrices of weights.

use std::sync::Arc;

use super::fold;
use super::node::Node;
use super::tensor::Tensor;
use super::translate::{Needed, Translator, Value, narrow};
use super::view::{C, Part, View, sizes};
use crate::graph::{Conv, ConvTranspose, NodeId, Op};
use crate::kernels::Shift;

/// A window as a node's attributes say it, along D, H, W.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub kernel: [u32; 3],
    pub stride: [u32; 3],
    pub dilation: [u32; 3],
    /// Padding before the first voxel and after the last.
    pub padding: [[u32; 3]; 2],
}

impl Window {
    /// The padding, where it is the same on both sides.
    pub(super) fn even(&self) -> Option<[u32; 3]> {
        (self.padding[0] == self.padding[1]).then_some(self.padding[0])
    }
}

/// Numbers along the network's axes as numbers along D, H, W, of which images lack the first.
fn along(list: &[i64], flat: bool, missing: u32) -> Result<[u32; 3], String> {
    let bad = || format!("has {list:?} along {} axes", if flat { 2 } else { 3 });
    let numbers = list.iter().map(|&n| u32::try_from(n)).collect::<Result<Vec<_>, _>>().map_err(|_| bad())?;
    match (flat, &numbers[..]) {
        (true, &[h, w]) => Ok([missing, h, w]),
        (false, &[d, h, w]) => Ok([d, h, w]),
        _ => Err(bad()),
    }
}

/// Weights of groups as those of all channels, zero between groups, with zeros between the taps of
/// a dilated kernel.
fn widened(weights: &[f32], [groups, inputs, outputs]: [usize; 3], kernel: [usize; 3], dilation: [usize; 3]) -> Vec<f32> {
    let wide: [usize; 3] = std::array::from_fn(|axis| (kernel[axis] - 1) * dilation[axis] + 1);
    let (taps, wide_taps) = (kernel.iter().product::<usize>(), wide.iter().product::<usize>());
    let mut all = vec![0.0; groups * inputs * groups * outputs * wide_taps];
    for input in 0..groups * inputs {
        for output in 0..outputs {
            let from = (input * outputs + output) * taps;
            let to = (input * groups * outputs + input / inputs * outputs + output) * wide_taps;
            for (tap, &weight) in weights[from..from + taps].iter().enumerate() {
                let [z, y, x] = [tap / (kernel[1] * kernel[2]), tap / kernel[2] % kernel[1], tap % kernel[2]];
                all[to + (z * dilation[0] * wide[1] + y * dilation[1]) * wide[2] + x * dilation[2]] = weight;
            }
        }
    }
    all
}

/// A matrix with its rows as columns.
fn turned(values: Vec<f32>, rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| values[r * columns + c]).collect()
}

impl Translator<'_> {
    /// The window of a node over a map of `view`, of that kernel where the attributes lack it.
    pub(super) fn window(&self, node: &Node, view: &View, kernel: Option<&[usize]>) -> Result<Window, String> {
        let rank = if self.flat { 2 } else { 3 };
        let told = node.ints("kernel_shape").map(<[i64]>::to_vec);
        let kernel = match kernel {
            Some(kernel) => kernel.iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect(),
            None => told.ok_or("lacks its kernel_shape")?,
        };
        let list = |name: &str, missing: u32| match node.ints(name) {
            Some(list) => along(list, self.flat, missing),
            None => Ok([1; 3]),
        };
        let (kernel, stride, dilation) = (along(&kernel, self.flat, 1)?, list("strides", 1)?, list("dilations", 1)?);
        if kernel.contains(&0) || stride.contains(&0) || dilation.contains(&0) {
            return Err("has a kernel, stride or dilation of zero".into());
        }
        let mut padding = [[0; 3]; 2];
        match node.text("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" => {
                if let Some(pads) = node.ints("pads") {
                    let (before, after) = pads.split_at_checked(rank).ok_or("has too few pads")?;
                    padding = [along(before, self.flat, 0)?, along(after, self.flat, 0)?];
                }
            }
            "VALID" => {}
            same @ ("SAME_UPPER" | "SAME_LOWER") => {
                let n = sizes(self.map(view.node));
                for axis in 3 - rank..3 {
                    let size = narrow(n[axis + 1])?;
                    let reach = u64::from(kernel[axis] - 1) * u64::from(dilation[axis]) + 1;
                    let span = u64::from(size.div_ceil(stride[axis]) - 1) * u64::from(stride[axis]) + reach;
                    let total = u32::try_from(span.saturating_sub(size.into())).map_err(|_| "has a kernel beyond 32-bit extents")?;
                    let less = total / 2;
                    let [before, after] = if same == "SAME_UPPER" { [less, total - less] } else { [total - less, less] };
                    (padding[0][axis], padding[1][axis]) = (before, after);
                }
            }
            other => return Err(format!("has the auto_pad {other:.40}, which ONNX does not know")),
        }
        Ok(Window { kernel, stride, dilation, padding })
    }

    /// The node padded with zeros where a window is padded more on one side than on the other; else
    /// the window's own padding.
    fn padded(&mut self, name: &str, node: NodeId, window: &Window) -> Result<(NodeId, [u32; 3]), String> {
        if let Some(padding) = window.even() {
            return Ok((node, padding));
        }
        let signed = |n: u32| i32::try_from(n).map_err(|_| "has a padding beyond 31 bits".to_owned());
        let mut shift = [Shift::NONE; 3];
        for (axis, shift) in shift.iter_mut().enumerate() {
            let [before, after] = window.padding.map(|side| signed(side[axis]));
            *shift = Shift::Pad { before: before?, after: after? };
        }
        Ok((self.emit(&format!("{name}.pad"), Op::Shift(shift), &[node])?, [0; 3]))
    }

    /// The bias of a convolution, if it has one.
    fn bias(&mut self, node: &Node, slot: usize, module: &str, outputs: usize) -> Result<bool, String> {
        let Some(bias) = self.constant(node, slot)? else { return Ok(false) };
        if bias.len() != outputs {
            return Err(format!("has a bias of shape {:?} for {outputs} channels", bias.shape));
        }
        self.need(format!("{module}.bias"), vec![outputs], Needed::Tensor(Arc::new(bias.shaped(vec![outputs])?)));
        Ok(true)
    }

    /// The weights of a convolution over the network's axes.
    fn weights(&self, node: &Node) -> Result<Arc<Tensor>, String> {
        let weights = self.constant(node, 1)?.ok_or("lacks its weights")?;
        if weights.shape.len() != if self.flat { 4 } else { 5 } || weights.len() == 0 {
            return Err(format!("has weights of shape {:?} in a network of {} axes", weights.shape, if self.flat { 2 } else { 3 }));
        }
        Ok(weights)
    }

    pub(super) fn conv(&mut self, node: &Node) -> Result<Value, String> {
        let weights = self.weights(node)?;
        let view = self.image(node, 0)?;
        let window = self.window(node, &view, Some(&weights.shape[2..]))?;
        let (x, padding) = self.padded(&node.name, view.node, &window)?;
        let module = self.next_name(&node.name);
        let groups = u32::try_from(node.int("group").unwrap_or(1)).map_err(|_| "has a bad number of groups")?;
        let in_channels = narrow(weights.shape[1])?.checked_mul(groups).ok_or("has more channels than 32 bits count")?;
        let bias = self.bias(node, 2, &module, weights.shape[0])?;
        let conv = Conv {
            module: module.clone(),
            in_channels,
            out_channels: narrow(weights.shape[0])?,
            kernel: window.kernel,
            stride: window.stride,
            padding,
            dilation: window.dilation,
            groups,
            bias,
            weight_shape: weights.shape.clone(),
            ..Conv::default()
        };
        self.need(format!("{module}.weight"), weights.shape.clone(), Needed::Tensor(weights));
        let id = self.emit(&node.name, Op::Conv(conv), &[x])?;
        Ok(self.made(id))
    }

    pub(super) fn conv_transpose(&mut self, node: &Node) -> Result<Value, String> {
        let weights = self.weights(node)?;
        let view = self.image(node, 0)?;
        let window = self.window(node, &view, Some(&weights.shape[2..]))?;
        let auto = node.text("auto_pad").unwrap_or("NOTSET");
        if node.ints("output_shape").is_some() || !matches!(auto, "NOTSET" | "VALID") {
            return Err("asks for an output_shape or an auto_pad, which is not read; export it with pads and output_padding".into());
        }
        let groups = usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|&g| g > 0 && weights.shape[0].is_multiple_of(g));
        let groups = groups.ok_or("has groups that do not divide its channels")?;
        let extra = match node.ints("output_padding") {
            Some(list) => along(list, self.flat, 0)?,
            None => [0; 3],
        };
        // what is cut off on both sides; of the other side's rest a crop takes care
        let [before, after] = window.padding;
        let padding: [u32; 3] = std::array::from_fn(|axis| before[axis].min(after[axis]));
        let mut kernel = window.kernel;
        let (inputs, outputs) = (weights.shape[0], weights.shape[1].checked_mul(groups).ok_or("has more channels than memory")?);
        let mut shape = vec![inputs, outputs];
        let needed = if groups == 1 && window.dilation == [1; 3] {
            shape.extend(&weights.shape[2..]);
            Needed::Tensor(weights)
        } else {
            let (narrow_kernel, dilation) = (kernel.map(|n| n as usize), window.dilation.map(|n| n as usize));
            for (size, step) in kernel.iter_mut().zip(window.dilation) {
                let wide = (u64::from(*size) - 1) * u64::from(step) + 1;
                *size = u32::try_from(wide).map_err(|_| "has a kernel beyond 32-bit extents")?;
            }
            shape.extend(kernel[if self.flat { 1 } else { 0 }..].iter().map(|&n| n as usize));
            fold::count(&shape)?;
            let parts = [groups, inputs / groups, weights.shape[1]];
            Needed::Made(weights, Box::new(move |values| widened(&values, parts, narrow_kernel, dilation)))
        };
        let module = self.next_name(&node.name);
        let bias = self.bias(node, 2, &module, outputs)?;
        let conv = ConvTranspose {
            module: module.clone(),
            in_channels: narrow(inputs)?,
            out_channels: narrow(outputs)?,
            kernel,
            stride: window.stride,
            padding,
            output_padding: extra,
            bias,
            weight_shape: shape.clone(),
            ..ConvTranspose::default()
        };
        self.need(format!("{module}.weight"), shape, needed);
        let mut id = self.emit(&node.name, Op::ConvTranspose(conv), &[view.node])?;
        if before != after {
            let rest = |side: [u32; 3], axis: usize| i32::try_from(side[axis] - padding[axis]).map(|n| -n);
            let mut shift = [Shift::NONE; 3];
            for (axis, shift) in shift.iter_mut().enumerate() {
                let [before, after] = [before, after].map(|side| rest(side, axis).map_err(|_| "has pads beyond 31 bits"));
                *shift = Shift::Pad { before: before?, after: after? };
            }
            id = self.emit(&format!("{}.crop", node.name), Op::Shift(shift), &[id])?;
        }
        Ok(self.made(id))
    }

    /// A product of a map with a matrix of weights, or of two maps in attention.
    pub(super) fn product(&mut self, node: &Node) -> Result<Value, String> {
        let gemm = node.op() == "Gemm";
        let weights = match (self.value(node, 0)?, self.value(node, 1)?) {
            (Some(Value::Map(_)), Some(Value::Constant(weights))) => weights,
            (Some(Value::Constant(_)), _) => return Err("multiplies weights with a map on their right, which is not read".into()),
            _ if !gemm => return self.attention_product(node),
            _ => return Err("multiplies two maps".into()),
        };
        let factor = |name: &str| node.float(name).unwrap_or(1.0);
        let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
        if node.op() == "Einsum" || flag("transA") || factor("beta") != 1.0 {
            return Err("multiplies a map with weights otherwise than a linear layer does".into());
        }
        let [rows, columns] = weights.shape[..] else {
            return Err(format!("multiplies a map with weights of shape {:?}", weights.shape));
        };
        let turn = !flag("transB");
        let (inputs, outputs) = if turn { (rows, columns) } else { (columns, rows) };
        let view = self.view(node, 0)?;
        let view = self.whole(&node.name, &view)?;
        let last = view.dims.len().checked_sub(1).ok_or("multiplies a map without axes")?;
        let map = self.map(view.node);
        if !view.is_channels(last, map) || map.channels as usize != inputs {
            let text = format!("multiplies weights of shape {:?} with a map of shape {:?}", weights.shape, view.shape());
            return Err(format!("{text}, whose last axis is not its {} channels", map.channels));
        }
        let module = self.next_name(&node.name);
        let bias = if gemm { self.bias(node, 2, &module, outputs)? } else { false };
        let conv = Conv {
            module: module.clone(),
            in_channels: narrow(inputs)?,
            out_channels: narrow(outputs)?,
            bias,
            gain: factor("alpha").into(),
            weight_shape: vec![outputs, inputs],
            ..Conv::default()
        };
        if bias && conv.gain != 1.0 {
            return Err("has an alpha other than 1 beside a bias".into());
        }
        let needed = match turn {
            true => Needed::Made(weights, Box::new(move |values| turned(values, rows, columns))),
            false => Needed::Tensor(weights),
        };
        self.need(format!("{module}.weight"), vec![outputs, inputs], needed);
        let id = self.emit(&node.name, Op::Conv(conv), &[view.node])?;
        let mut made = View { alone: true, ..view.of(id) };
        made.dims[last] = if outputs == 1 { Vec::new() } else { vec![Part { axis: C, size: outputs, step: 1 }] };
        Ok(Value::Map(made))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_dilations_are_zeros_between_weights() {
        // two groups of one input and one output, a kernel of two, two apart
        let wide = widened(&[1.0, 2.0, 3.0, 4.0], [2, 1, 1], [1, 1, 2], [1, 1, 2]);
        assert_eq!(wide, [1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 4.0]);
        assert_eq!(turned(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
