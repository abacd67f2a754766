//! Pooling, resampling and padding.

use std::sync::Arc;

use super::node::Node;
use super::translate::{Needed, Translator, Value, narrow};
use crate::graph::{Conv, NodeId, Op, Resize, Size};
use crate::kernels::{Interpolation, Shift};
use crate::shape::Extent;

impl Translator<'_> {
    /// A window of all voxels that a network sees at once: of an image one plane's.
    pub(super) fn everything(&self, id: NodeId) -> [u32; 3] {
        let [d, h, w] = self.map(id).extent.axes();
        [if self.flat { 1 } else { d }, h, w]
    }

    pub(super) fn pool(&mut self, node: &Node) -> Result<Value, String> {
        let view = self.image(node, 0)?;
        let n = self.map(view.node).extent.axes();
        let all = self.everything(view.node);
        let op = match node.op() {
            "GlobalAveragePool" => Op::AvgPool { kernel: all },
            "GlobalMaxPool" => Op::max_pool(all),
            name => {
                let window = self.window(node, &view, None)?;
                if window.dilation != [1; 3] {
                    return Err("has dilations, which are not read; export it with dilation 1".into());
                }
                let [before, after] = window.padding;
                let uneven = || format!("pads {before:?} voxels before and {after:?} after, which is not read where they differ");
                let padding = window.even().ok_or_else(uneven)?;
                let wide = |n: [u32; 3], axis: usize| u64::from(n[axis]);
                let padded = |axis: usize| wide(n, axis) + 2 * wide(padding, axis);
                let rest = |axis: usize| Some(padded(axis).checked_sub(wide(window.kernel, axis))? % wide(window.stride, axis));
                let partial = (0..3).any(|axis| rest(axis).is_some_and(|rest| rest > 0));
                if node.int("ceil_mode").unwrap_or(0) != 0 && partial {
                    return Err(format!("has ceil_mode, which adds a window at the end of {n:?}; give a multiple of its stride"));
                }
                if name == "MaxPool" {
                    if node.outputs.len() > 1 {
                        return Err("gives the places of its maxima, which are not read".into());
                    }
                    Op::MaxPool { kernel: window.kernel, stride: window.stride, padding }
                } else if padding == [0; 3] && window.kernel == window.stride {
                    Op::AvgPool { kernel: window.kernel }
                } else {
                    let counted = node.int("count_include_pad").unwrap_or(0) != 0 || padding == [0; 3];
                    if !counted {
                        return Err("leaves padding out of its means, which is not read; export it with count_include_pad=True".into());
                    }
                    let id = self.mean_of_windows(&node.name, view.node, [window.kernel, window.stride, padding])?;
                    return Ok(self.made(id));
                }
            }
        };
        let id = self.emit(&node.name, op, &[view.node])?;
        Ok(self.made(id))
    }

    /// Means of windows that overlap: a convolution of each channel by itself.
    fn mean_of_windows(&mut self, name: &str, x: NodeId, [kernel, stride, padding]: [[u32; 3]; 3]) -> Result<NodeId, String> {
        let channels = self.map(x).channels;
        let module = self.next_name(name);
        let taps: usize = kernel.iter().map(|&n| n as usize).product();
        let conv = Conv {
            module: module.clone(),
            in_channels: channels,
            out_channels: channels,
            kernel,
            stride,
            padding,
            groups: channels,
            bias: false,
            weight_shape: vec![channels as usize, 1, kernel[0] as usize, kernel[1] as usize, kernel[2] as usize],
            ..Conv::default()
        };
        super::fold::count(&conv.weight_shape)?;
        #[expect(clippy::cast_precision_loss, reason = "a window has few voxels")]
        let weights = vec![1.0 / taps as f32; channels as usize * taps];
        self.need(format!("{module}.weight"), conv.weight_shape.clone(), Needed::Floats(weights));
        self.emit(name, Op::Conv(conv), &[x])
    }

    pub(super) fn resize(&mut self, node: &Node) -> Result<Value, String> {
        let view = self.image(node, 0)?;
        let from = view.shape();
        let upsample = node.op() == "Upsample";
        let floats = |slot: usize| -> Result<Option<Vec<f32>>, String> {
            let tensor = self.constant(node, slot)?.filter(|tensor| tensor.len() > 0);
            Ok(tensor.map(|tensor| tensor.floats(self.files())))
        };
        let scales = floats(if upsample { 1 } else { 2 })?;
        let told = if upsample { None } else { self.int_list(node, 3)?.filter(|list| !list.is_empty()) };
        if node.ints("axes").is_some() || node.text("keep_aspect_ratio_policy").is_some_and(|policy| policy != "stretch") {
            return Err("has axes or keep_aspect_ratio_policy, which are not read; export it with a size or scale for all axes".into());
        }
        let to = match (told, scales) {
            (Some(told), _) => super::fold::sizes(&told)?,
            (None, Some(scales)) => {
                let mut to = Vec::with_capacity(from.len());
                for (&n, &scale) in from.iter().zip(&scales) {
                    #[expect(
                        clippy::cast_precision_loss,
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "extents are small"
                    )]
                    let (exact, whole) = (n as f64 * f64::from(scale), (n as f64 * f64::from(scale)).round().max(0.0) as usize);
                    #[expect(clippy::cast_precision_loss, reason = "extents are small")]
                    let off = (exact - whole as f64).abs();
                    if off > 1e-4 {
                        return Err(format!("scales {n} voxels by {scale}, which is no whole number of voxels"));
                    }
                    to.push(whole);
                }
                to
            }
            (None, None) => return Err("lacks scales and sizes".into()),
        };
        if to.len() != from.len() || to[..2] != from[..2] {
            return Err(format!("resamples {from:?} to {to:?}"));
        }
        let mode = node.text("mode").unwrap_or("nearest");
        let way = node.text("coordinate_transformation_mode").unwrap_or(if upsample { "asymmetric" } else { "half_pixel" });
        let nearest = node.text("nearest_mode").unwrap_or(if upsample { "floor" } else { "round_prefer_floor" });
        let times: Option<Vec<u32>> =
            from[2..].iter().zip(&to[2..]).map(|(&a, &b)| if b.is_multiple_of(a) { u32::try_from(b / a).ok() } else { None }).collect();
        let antialias = node.int("antialias").unwrap_or(0) != 0;
        let interpolation = match (mode, way) {
            _ if antialias => None,
            ("nearest", "asymmetric") if nearest == "floor" => Some(Interpolation::Nearest),
            // rounding halves to the voxel below: the same where every voxel is repeated
            ("nearest", "half_pixel" | "pytorch_half_pixel") if times.is_some() && nearest == "round_prefer_floor" => {
                Some(Interpolation::Nearest)
            }
            ("linear", "align_corners") => Some(Interpolation::Aligned),
            ("linear", "half_pixel") => Some(Interpolation::HalfPixel),
            // differs where an axis becomes one voxel
            ("linear", "pytorch_half_pixel") if to[2..].iter().zip(&from[2..]).all(|(&n, &m)| n > 1 || m == 1) => {
                Some(Interpolation::HalfPixel)
            }
            _ => None,
        };
        let mode = interpolation.ok_or_else(|| {
            let how = if mode == "nearest" { format!(", nearest_mode {nearest:.40}") } else { String::new() };
            format!(
                "has the mode {mode:.40} with coordinates {way:.40}{how}; this version reads nearest and linear as PyTorch exports them"
            )
        })?;
        if to == from {
            return Ok(Value::Map(view));
        }
        let size = match (times, &to[2..]) {
            (Some(f), _) if self.flat => Size::Times([1, f[0], f[1]]),
            (Some(f), _) => Size::Times([f[0], f[1], f[2]]),
            (None, &[h, w]) => Size::Plane([narrow(h)?, narrow(w)?]),
            (None, &[d, h, w]) => Size::Extent(Extent::new(narrow(d)?, narrow(h)?, narrow(w)?)),
            _ => return Err(format!("resamples {from:?} to {to:?}")),
        };
        let id = self.emit(&node.name, Op::Resize(Resize { size, mode }), &[view.node])?;
        Ok(self.made(id))
    }

    pub(super) fn pad(&mut self, node: &Node) -> Result<Value, String> {
        let view = self.view(node, 0)?;
        let rank = view.dims.len();
        let pads = self.int_list(node, 1)?.or_else(|| node.ints("pads").map(<[i64]>::to_vec)).ok_or("lacks its pads")?;
        let axes = match self.int_list(node, 3)? {
            Some(list) => list.iter().map(|&axis| super::fold::axis_of(axis, rank)).collect::<Result<Vec<_>, _>>()?,
            None => (0..rank).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err(format!("has {} pads for {} axes", pads.len(), axes.len()));
        }
        if pads.iter().all(|&n| n == 0) {
            return Ok(Value::Map(view));
        }
        let value = self.constant(node, 2)?.filter(|tensor: &Arc<_>| tensor.len() > 0);
        let value = value.map_or(Some(0.0), |tensor| tensor.scalar(self.files())).unwrap_or(f32::NAN);
        let view = self.laid_out(&node.name, &view)?;
        // axes may lie in another order than the map's: channels last
        let mut amounts = [[0i32; 2]; 3];
        for (i, &axis) in axes.iter().enumerate() {
            let [before, after] = [pads[i], pads[i + axes.len()]];
            if before == 0 && after == 0 {
                continue;
            }
            let own = match view.dims[axis][..] {
                [part] if part.axis > 0 && view.parts(part.axis).count() == 1 => part.axis,
                // an axis of one voxel is known by its place alone
                [] if view.is_image(self.map(view.node), self.flat) && axis >= 2 => axis + 4 - rank,
                _ => return Err("pads channels, or an axis that is made of several".into()),
            };
            let signed = |n: i64| i32::try_from(n).map_err(|_| format!("pads {n} voxels"));
            amounts[own - 1] = [signed(before)?, signed(after)?];
        }
        let crops = amounts.iter().flatten().all(|&n| n <= 0);
        let id = match node.text("mode").unwrap_or("constant") {
            "constant" if value == 0.0 || crops => {
                let shift = amounts.map(|[before, after]| Shift::Pad { before, after });
                self.emit(&node.name, Op::Shift(shift), &[view.node])?
            }
            "constant" => return Err(format!("pads with {value}; only zeros are read")),
            "edge" if amounts.iter().all(|&[before, after]| before == 0 && (0..=1).contains(&after)) => {
                let flip = amounts.map(|[_, after]| if after > 0 { Shift::Flip } else { Shift::NONE });
                let n = self.map(view.node).extent.axes();
                let to: [u32; 3] = std::array::from_fn(|axis| n[axis] + u32::from(amounts[axis][1] > 0));
                // resampling to one voxel more, the nearest at or below, repeats the first
                let size = if self.flat { Size::Plane([to[1], to[2]]) } else { Size::Extent(to.into()) };
                let x = self.emit(&format!("{}.flipped", node.name), Op::Shift(flip), &[view.node])?;
                let longer = Resize { size, mode: Interpolation::Nearest };
                let x = self.emit(&format!("{}.repeated", node.name), Op::Resize(longer), &[x])?;
                self.emit(&node.name, Op::Shift(flip), &[x])?
            }
            mode => {
                return Err(format!(
                    "pads by {amounts:?} voxels in the mode {mode:.40}, which is not read: zeros, or one voxel at the end"
                ));
            }
        };
        let map = self.map(id);
        let mut made = super::view::View { alone: true, ..view.of(id) };
        if view.is_image(self.map(view.node), self.flat) {
            return Ok(self.made(id));
        }
        let n = super::view::sizes(map);
        for part in made.dims.iter_mut().flatten().filter(|part| part.axis > 0 && amounts[part.axis - 1] != [0; 2]) {
            part.size = n[part.axis];
        }
        Ok(Value::Map(made))
    }
}
