//! Attention that is written out: products of queries, keys and values with a softmax between them.

use std::sync::Arc;

use super::fold;
use super::node::Node;
use super::tensor::Tensor;
use super::translate::{Needed, Translator, Value, narrow};
use super::view::{C, Part, View, sizes};
use crate::graph::{Attention, Op, RelativeBias, WindowAttention};
use crate::kernels::{TokenChannels, WindowShape};

/// The scores of queries and keys, which are never stored: `[..][queries][keys]`.
#[derive(Clone, Debug)]
pub(super) struct Scores {
    /// `[..][queries][channels]`.
    q: View,
    /// `[..][keys][channels]`.
    k: View,
    scale: f64,
    /// Added to the scores of every window, `[heads][queries][keys]`.
    bias: Option<Arc<[f32]>>,
    /// Added to the scores of each window, `[windows][queries][keys]`.
    mask: Option<Arc<[f32]>>,
    softmax: bool,
}

/// The number added to the scores of tokens that are neighbours in a rolled map alone.
const HIDDEN: f32 = -100.0;

impl Scores {
    /// Extents of the axes.
    fn shape(&self) -> Vec<usize> {
        let (mut shape, keys) = (self.q.shape(), self.k.shape());
        let last = shape.len() - 1;
        shape[last] = keys[last - 1];
        shape
    }
}

/// The axes of a product that `Einsum` writes out, by letters.
struct Letters<'a> {
    inputs: [&'a [u8]; 2],
    output: &'a [u8],
}

impl<'a> Letters<'a> {
    fn parse(equation: &'a str) -> Option<Self> {
        let (inputs, output) = equation.split_once("->")?;
        let (a, b) = inputs.split_once(',')?;
        let inputs = [a.trim().as_bytes(), b.trim().as_bytes()];
        let output = output.trim().as_bytes();
        let plain = |letters: &[u8]| letters.iter().enumerate().all(|(i, c)| c.is_ascii_alphabetic() && !letters[..i].contains(c));
        [inputs[0], inputs[1], output].iter().all(|letters| plain(letters)).then_some(Self { inputs, output })
    }

    /// The order of axes that brings an input's letters to this order.
    fn order(&self, slot: usize, letters: &[u8]) -> Option<Vec<usize>> {
        let own = self.inputs[slot];
        let order: Option<Vec<usize>> = letters.iter().map(|c| own.iter().position(|o| o == c)).collect();
        order.filter(|order| order.len() == own.len())
    }
}

/// The parts of axes but the last two.
fn batch(view: &View) -> Vec<Part> {
    view.dims[..view.dims.len() - 2].iter().flatten().copied().collect()
}

impl Translator<'_> {
    /// A product of two maps, or of scores and values.
    pub(super) fn attention_product(&mut self, node: &Node) -> Result<Value, String> {
        let (Some(a), Some(b)) = (self.value(node, 0)?, self.value(node, 1)?) else {
            return Err("lacks an input".into());
        };
        let odd = || "multiplies two maps otherwise than attention does".to_owned();
        let b = match b {
            Value::Map(view) => view,
            _ => return Err(odd()),
        };
        let rank = b.dims.len();
        if rank < 2 {
            return Err(odd());
        }
        let swapped = |view: &View| {
            let mut order: Vec<usize> = (0..rank).collect();
            order.swap(rank - 1, rank - 2);
            view.transposed(&order)
        };
        match a {
            Value::Map(q) => {
                let (q, k) = if node.op() == "Einsum" {
                    let letters = Letters::parse(node.text("equation").unwrap_or_default()).ok_or_else(odd)?;
                    let (shared, rest) = letters.output.split_at_checked(rank - 2).ok_or_else(odd)?;
                    let summed = letters.inputs[0].iter().find(|c| !letters.output.contains(c)).ok_or_else(odd)?;
                    let of = |slot: usize, token: u8| letters.order(slot, &[shared, &[token, *summed]].concat());
                    let &[x, y] = rest else { return Err(odd()) };
                    (q.transposed(&of(0, x).ok_or_else(odd)?).ok_or_else(odd)?, b.transposed(&of(1, y).ok_or_else(odd)?).ok_or_else(odd)?)
                } else {
                    (q, swapped(&b).ok_or_else(odd)?)
                };
                let (queries, keys) = (q.shape(), k.shape());
                if queries.len() != rank || queries[..rank - 2] != keys[..rank - 2] || queries[rank - 1] != keys[rank - 1] {
                    return Err(format!("multiplies maps of shapes {queries:?} and {keys:?}"));
                }
                Ok(Value::Scores(Box::new(Scores { q, k, scale: 1.0, bias: None, mask: None, softmax: false })))
            }
            Value::Scores(scores) => {
                let v = if node.op() == "Einsum" {
                    let letters = Letters::parse(node.text("equation").unwrap_or_default()).ok_or_else(odd)?;
                    let (&key, before) = letters.inputs[0].split_last().ok_or_else(odd)?;
                    let (&channel, shared) = letters.output.split_last().ok_or_else(odd)?;
                    let batch = before.split_last().map(|(_, batch)| batch).ok_or_else(odd)?;
                    if shared != before {
                        return Err(odd());
                    }
                    b.transposed(&letters.order(1, &[batch, &[key, channel]].concat()).ok_or_else(odd)?).ok_or_else(odd)?
                } else {
                    b
                };
                self.attend(node, &scores, &v).map(Value::Map)
            }
            _ => Err(odd()),
        }
    }

    /// Scores times a number, or with biases of pairs of tokens or the mask of shifted windows
    /// added.
    pub(super) fn scores_arithmetic(&mut self, node: &Node, scores: &Scores, tensor: &Arc<Tensor>) -> Result<Value, String> {
        let odd = || "changes the scores of attention otherwise than by a factor, a bias or the mask of shifted windows".to_owned();
        if scores.softmax {
            return Err(odd());
        }
        let mut made = scores.clone();
        match (node.op(), tensor.scalar(self.files())) {
            ("Mul", Some(v)) if scores.bias.is_none() && scores.mask.is_none() => made.scale *= f64::from(v),
            ("Div", Some(v)) if scores.bias.is_none() && scores.mask.is_none() => made.scale /= f64::from(v),
            ("Add", _) => {
                let shape = scores.shape();
                let own = fold::spread(&shape, &tensor.shape).is_ok_and(|spread| spread == shape);
                // axes of heads, of windows and of both tokens that the constant differs along
                let missing = shape.len().saturating_sub(tensor.shape.len());
                let differs = |axis: usize| axis >= missing && tensor.shape[axis - missing] != 1;
                let batch = 0..shape.len() - 2;
                let (heads, windows): (Vec<usize>, Vec<usize>) =
                    batch.filter(|&axis| shape[axis] > 1).partition(|&axis| scores.q.dims[axis].iter().all(|part| part.axis == C));
                let mut whole = shape.clone();
                let over_windows = windows.iter().any(|&axis| differs(axis));
                let rest = if over_windows { &heads } else { &windows };
                if !own || rest.iter().any(|&axis| differs(axis)) || heads.len() > 1 || windows.len() > 1 {
                    return Err(odd());
                }
                rest.iter().for_each(|&axis| whole[axis] = 1);
                fold::count(&whole)?;
                let values = tensor.floats(self.files());
                let list: Arc<[f32]> = fold::indices(&whole, &tensor.shape)?.into_iter().map(|i| values[i]).collect();
                let slot = if over_windows { &mut made.mask } else { &mut made.bias };
                if slot.replace(list).is_some() {
                    return Err(odd());
                }
            }
            _ => return Err(odd()),
        }
        Ok(Value::Scores(Box::new(made)))
    }

    pub(super) fn scores_softmax(&mut self, node: &Node, scores: &Scores) -> Result<Value, String> {
        let rank = scores.q.dims.len();
        let axis = fold::axis_of(node.int("axis").unwrap_or(-1), rank)?;
        if axis != rank - 1 || scores.softmax {
            return Err("is over another axis than the keys of attention".into());
        }
        Ok(Value::Scores(Box::new(Scores { softmax: true, ..scores.clone() })))
    }

    /// Reshaping of scores, of which the last two axes stay.
    pub(super) fn scores_layout(&mut self, node: &Node, scores: &Scores) -> Result<Value, String> {
        let odd = || "lays out the scores of attention otherwise than by windows".to_owned();
        let shape = scores.shape();
        let to = match node.op() {
            "Reshape" => fold::reshape(&shape, &self.int_list(node, 1)?.ok_or("lacks its shape")?, node.int("allowzero") == Some(1))?,
            "Squeeze" | "Unsqueeze" => {
                let axes = self.int_list(node, 1)?.or_else(|| node.ints("axes").map(<[i64]>::to_vec));
                fold::squeezed(node, &shape, axes.as_deref())?
            }
            "Shape" => return fold::shape_of(node, &shape).map(|t| Value::Constant(Arc::new(t))),
            _ => return Err(odd()),
        };
        let (batch, tokens) = to.split_at_checked(to.len().saturating_sub(2)).ok_or_else(odd)?;
        if tokens != &shape[shape.len() - 2..] {
            return Err(odd());
        }
        let of = |view: &View| {
            let own = view.shape();
            view.reshaped(&[batch, &own[own.len() - 2..]].concat()).ok_or_else(odd)
        };
        let (q, k) = (of(&scores.q)?, of(&scores.k)?);
        Ok(Value::Scores(Box::new(Scores { q, k, ..scores.clone() })))
    }

    fn attend(&mut self, node: &Node, scores: &Scores, v: &View) -> Result<View, String> {
        let Scores { q, k, scale, bias, mask, softmax } = scores;
        if !softmax {
            return Err("multiplies scores of attention that had no softmax".into());
        }
        let rank = q.dims.len();
        let (tokens, channels) = (rank - 2, rank - 1);
        if v.dims.len() != rank || v.shape()[..rank - 1] != k.shape()[..rank - 1] {
            return Err(format!("multiplies scores of {} keys with values of shape {:?}", k.shape()[tokens], v.shape()));
        }
        // rolled keys and values are the same keys and values
        if (k.roll, &k.dims[tokens]) != (v.roll, &v.dims[tokens]) {
            return Err("has values in another order than its keys".into());
        }
        let odd = || "is attention of which tokens and heads are no parts of maps that are read".to_owned();
        let (mut heads, mut widths, mut first, mut windows) = (None, [0; 3], [0; 3], Vec::new());
        for (i, view) in [q, k, v].into_iter().enumerate() {
            let own = &view.dims[channels];
            let width = view.shape()[channels];
            let plain = own.is_empty() || own == &[Part { axis: C, size: width, step: 1 }];
            if !plain || view.first[1..] != [0; 3] {
                return Err(odd());
            }
            let (of_heads, of_windows): (Vec<Part>, Vec<Part>) = batch(view).into_iter().partition(|part| part.axis == C);
            let count = match of_heads[..] {
                [] => 1,
                [Part { size, step, .. }] if step == width => size,
                _ => return Err(odd()),
            };
            if heads.replace(count).is_some_and(|other| other != count) {
                return Err(odd());
            }
            windows.push((self.tokens_of(view, tokens, &of_windows).ok_or_else(odd)?, of_windows));
            (widths[i], first[i]) = (width, narrow(view.first[C])?);
        }
        let heads = heads.unwrap_or(1);
        let channel_count = |width: usize| narrow(width.saturating_mul(heads));
        let (qk, v_channels) = (channel_count(widths[0])?, channel_count(widths[2])?);
        #[expect(clippy::cast_possible_truncation, reason = "shaders compute in f32")]
        let scale = (scale * q.gain * k.gain) as f32;
        let window = windows[0].0;
        let in_windows = !windows[0].1.is_empty() || bias.is_some();
        let id = if in_windows {
            let alike = windows.iter().all(|other| *other == windows[0]) && k.node == v.node && q.roll == k.roll;
            let maps = self.map(q.node).extent == self.map(k.node).extent;
            if !alike || !maps {
                return Err("is attention in windows of maps that differ".into());
            }
            let shift = q.roll.map(i32::unsigned_abs);
            let expected = self.mask_of(q, &windows[0].1, window)?;
            if mask.as_deref().unwrap_or_default() != &expected[..] {
                return Err("has a mask that is not that of windows of a rolled map".into());
            }
            let mut shape = WindowShape {
                heads: narrow(heads)?,
                qk_channels: qk,
                v_channels,
                first,
                scale,
                q_window: window,
                k_window: window,
                shift,
                tokens: 0,
                token_queries: false,
                bias_rows: 0,
            };
            let bias = match bias {
                None => None,
                Some(values) => {
                    let pairs = q.shape()[tokens] * k.shape()[tokens];
                    let of_heads = values.len() / pairs.max(1);
                    let table = (0..pairs).flat_map(|pair| (0..heads).map(move |head| (pair, head)));
                    let table = table.map(|(pair, head)| values[head % of_heads.max(1) * pairs + pair]).collect();
                    let bias = RelativeBias {
                        table: self.next_name(&format!("{}.bias", node.name)),
                        index: self.next_name(&format!("{}.bias_index", node.name)),
                    };
                    shape.bias_rows = narrow(pairs)?;
                    self.need(bias.table.clone(), vec![pairs, heads], Needed::Floats(table));
                    #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2^24")]
                    let index = (0..pairs).map(|pair| pair as f32).collect();
                    self.need(bias.index.clone(), vec![q.shape()[tokens], k.shape()[tokens]], Needed::Floats(index));
                    Some(bias)
                }
            };
            let op = Op::WindowAttention(WindowAttention { shape, bias, padding: None, clipped: false });
            self.emit(&node.name, op, &[q.node, k.node])?
        } else {
            if mask.is_some() {
                return Err("has a mask without windows".into());
            }
            let op = Op::Attention(Attention {
                heads: narrow(heads)?,
                scale,
                per_plane: self.flat,
                channels: Some(TokenChannels { qk, v: v_channels, first }),
                mask: None,
            });
            self.emit(&node.name, op, &[q.node, k.node, v.node])?
        };
        let mut made = View { alone: true, gain: v.gain, roll: q.roll, ..q.of(id) };
        made.dims[channels] = if widths[2] > 1 { vec![Part { axis: C, size: widths[2], step: 1 }] } else { Vec::new() };
        made.dims[..tokens].iter_mut().flatten().filter(|part| part.axis == C).for_each(|part| part.step = widths[2]);
        Ok(made)
    }

    /// Voxels of a window along D, H, W whose tokens, row by row, are an axis of a view; `windows`
    /// are the parts of all windows.
    fn tokens_of(&self, view: &View, tokens: usize, windows: &[Part]) -> Option<[u32; 3]> {
        let n = sizes(self.map(view.node));
        let mut window = [1; 3];
        let mut expected = Vec::new();
        for axis in if self.flat { 2..4 } else { 1..4 } {
            let outer = windows.iter().filter(|part| part.axis == axis);
            let size = match outer.copied().collect::<Vec<_>>()[..] {
                [] => n[axis],
                [Part { size, step, .. }] if size * step == n[axis] => step,
                _ => return None,
            };
            window[axis - 1] = u32::try_from(size).ok()?;
            if size > 1 {
                expected.push(Part { axis, size, step: 1 });
            }
        }
        (view.dims[tokens] == expected).then_some(window)
    }

    /// The mask of windows of a rolled map, `[windows][queries][keys]`: voxels that the roll made
    /// neighbours do not see each other. None at all of a map that is not rolled.
    fn mask_of(&self, view: &View, windows: &[Part], window: [u32; 3]) -> Result<Vec<f32>, String> {
        if view.roll == [0; 3] {
            return Ok(Vec::new());
        }
        let n = self.map(view.node).extent.axes();
        let count: usize = windows.iter().map(|part| part.size).product();
        let voxels: usize = window.iter().map(|&w| w as usize).product();
        let mut mask = Vec::with_capacity(fold::count(&[count, voxels, voxels])?);
        let region = |number: usize, token: usize| -> [u8; 3] {
            let [_, h, w] = window.map(|w| w as usize);
            let mut at = [token / (h * w), token / w % h, token % w];
            let mut rest = number;
            for part in windows.iter().rev() {
                at[part.axis - 1] += rest % part.size * part.step;
                rest /= part.size;
            }
            std::array::from_fn(|axis| {
                let (n, roll) = (n[axis] as usize, view.roll[axis].unsigned_abs() as usize);
                let last = n.saturating_sub(window[axis] as usize);
                if roll == 0 { 0 } else { u8::from(at[axis] >= last) + u8::from(at[axis] >= n - roll) }
            })
        };
        for number in 0..count {
            let regions: Vec<[u8; 3]> = (0..voxels).map(|token| region(number, token)).collect();
            mask.extend(regions.iter().flat_map(|a| regions.iter().map(move |b| if a == b { 0.0 } else { HIDDEN })));
        }
        Ok(mask)
    }
}
