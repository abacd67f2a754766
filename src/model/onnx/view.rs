//! Values of an ONNX graph as views of maps: reshaping and transposing moves nothing.
//!
//! A map has the axes C, D, H, W. An axis of an ONNX value is a product of parts of them: the
//! tokens of a map are D, H and W in one axis, the heads of its channels are the outer part of C.

use crate::graph::NodeId;
use crate::kernels::Shift;
use crate::shape::Map;

/// The axes of a map: C, D, H, W.
pub(super) const C: usize = 0;

/// A part of an axis of a map: `size` places, `step` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// 0 to 3: C, D, H, W.
    pub axis: usize,
    pub size: usize,
    pub step: usize,
}

/// A value: a map, and which of its elements the value has, in which order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    pub node: NodeId,
    /// The parts of each axis of the value, outermost first; none of an axis of one.
    pub dims: Vec<Vec<Part>>,
    /// The first place of each axis of the map.
    pub first: [usize; 4],
    /// Factor of the elements.
    pub gain: f64,
    /// Voxels along D, H, W by which the map is rolled before anything is taken of it, as
    /// `torch.roll` by minus them.
    pub roll: [i32; 3],
    /// True if nothing else reads the map.
    pub alone: bool,
}

/// Sizes of the axes C, D, H, W.
pub(super) fn sizes(map: Map) -> [usize; 4] {
    let [d, h, w] = map.extent.axes();
    [map.channels, d, h, w].map(|n| n as usize)
}

/// The axis of a value that is a whole axis of a map.
fn whole(axis: usize, size: usize) -> Vec<Part> {
    if size == 1 { Vec::new() } else { vec![Part { axis, size, step: 1 }] }
}

/// Parts that follow each other become one where they are neighbours of one axis.
fn merge(parts: &[Part]) -> Vec<Part> {
    let mut list: Vec<Part> = Vec::new();
    for &part in parts.iter().filter(|part| part.size > 1) {
        match list.last_mut() {
            Some(last) if last.axis == part.axis && last.step == part.size * part.step => {
                *last = Part { size: last.size * part.size, ..part };
            }
            _ => list.push(part),
        }
    }
    list
}

impl View {
    /// A map as ONNX lays images out: `[1][C][D][H][W]`, or, where it is flat, `[1][C][H][W]`.
    pub(super) fn image(node: NodeId, map: Map, flat: bool) -> Self {
        let n = sizes(map);
        let spatial = if flat { 2..4 } else { 1..4 };
        let dims = [Vec::new(), whole(C, n[C])].into_iter().chain(spatial.map(|axis| whole(axis, n[axis]))).collect();
        Self { node, dims, first: [0; 4], gain: 1.0, roll: [0; 3], alone: false }
    }

    /// Extents of the axes.
    pub(super) fn shape(&self) -> Vec<usize> {
        self.dims.iter().map(|parts| parts.iter().map(|part| part.size).product()).collect()
    }

    /// Elements.
    pub(super) fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// True if it is all of its map, and nothing is to be done to it but an order of axes.
    pub(super) fn is_whole(&self, map: Map) -> bool {
        let n = sizes(map);
        let covered = |axis: usize| self.parts(axis).map(|part| part.size).product::<usize>() == n[axis];
        self.first == [0; 4] && self.gain == 1.0 && (0..4).all(covered)
    }

    /// True if it is its map as an image.
    pub(super) fn is_image(&self, map: Map, flat: bool) -> bool {
        self.roll == [0; 3] && self.is_whole(map) && self.dims == Self::image(self.node, map, flat).dims
    }

    /// True if an axis of the value is all channels of the map, in order.
    pub(super) fn is_channels(&self, dim: usize, map: Map) -> bool {
        self.first[C] == 0 && self.dims.get(dim) == Some(&whole(C, map.channels as usize))
    }

    /// The parts of an axis of the map, wherever they are.
    pub(super) fn parts(&self, axis: usize) -> impl Iterator<Item = Part> {
        self.dims.iter().flatten().copied().filter(move |part| part.axis == axis)
    }

    /// The same elements with axes of these extents; `None` where an axis would cut parts that do
    /// not divide.
    pub(super) fn reshaped(&self, shape: &[usize]) -> Option<Self> {
        let mut rest: Vec<Part> = self.dims.iter().flatten().rev().copied().collect();
        let mut dims = Vec::with_capacity(shape.len());
        for &size in shape {
            let (mut left, mut parts) = (size, Vec::new());
            while left > 1 {
                let part = rest.pop()?;
                if left.is_multiple_of(part.size) {
                    left /= part.size;
                    parts.push(part);
                } else if part.size.is_multiple_of(left) {
                    let inner = part.size / left;
                    rest.push(Part { size: inner, ..part });
                    parts.push(Part { size: left, step: part.step * inner, ..part });
                    left = 1;
                } else {
                    return None;
                }
            }
            dims.push(merge(&parts));
        }
        (rest.is_empty() && !shape.contains(&0)).then(|| Self { dims, ..self.clone() })
    }

    /// The axes in another order.
    pub(super) fn transposed(&self, order: &[usize]) -> Option<Self> {
        let mut seen = vec![false; self.dims.len()];
        order.iter().for_each(|&axis| seen.get_mut(axis).into_iter().for_each(|seen| *seen = true));
        let all = order.len() == self.dims.len() && seen.iter().all(|&seen| seen);
        all.then(|| Self { dims: order.iter().map(|&axis| self.dims[axis].clone()).collect(), ..self.clone() })
    }

    /// `length` places of an axis, `step` apart, from `start` on, which must exist. `None` where they are no parts of the map.
    pub(super) fn sliced(&self, dim: usize, start: usize, step: usize, length: usize) -> Option<Self> {
        let (mut view, size) = (self.clone(), self.shape()[dim]);
        if (start, step, length) == (0, 1, size) {
            return Some(view);
        }
        if length == 1 {
            let mut at = start;
            for part in self.dims[dim].iter().rev() {
                view.first[part.axis] += at % part.size * part.step;
                at /= part.size;
            }
            view.dims[dim] = Vec::new();
            return Some(view);
        }
        let (&outer, inner) = self.dims[dim].split_first()?;
        let within: usize = inner.iter().map(|part| part.size).product();
        if within > 1 && (step != 1 || !start.is_multiple_of(within) || !length.is_multiple_of(within)) {
            return None;
        }
        view.first[outer.axis] += start / within * outer.step;
        let outer = Part { size: length / within, step: outer.step * step, ..outer };
        view.dims[dim] = merge(&[&[outer][..], inner].concat());
        Some(view)
    }

    /// The spatial part of a neighbouring range of the map: how the map is cropped to it, or `None`
    /// where it is all of it or none.
    pub(super) fn crop(&self, map: Map) -> Option<[Shift; 3]> {
        let n = sizes(map);
        let mut shift = [Shift::NONE; 3];
        for axis in 1..4 {
            let covered: usize = self.parts(axis).map(|part| part.size).product();
            if !self.is_dense(axis) {
                return None;
            }
            let before = i32::try_from(self.first[axis]).ok()?;
            let after = i32::try_from(n[axis].checked_sub(self.first[axis] + covered)?).ok()?;
            shift[axis - 1] = Shift::Pad { before: -before, after: -after };
        }
        Some(shift)
    }

    /// True if the places of an axis of the map are neighbours.
    pub(super) fn is_dense(&self, axis: usize) -> bool {
        let mut parts: Vec<Part> = self.parts(axis).filter(|part| part.size > 1).collect();
        parts.sort_by_key(|part| part.step);
        let mut step = 1;
        parts.iter().all(|part| {
            let dense = part.step == step;
            step *= part.size;
            dense
        })
    }

    /// The same view of another map that is as large as what this one is of.
    pub(super) fn of(&self, node: NodeId) -> Self {
        Self { node, first: [0; 4], gain: 1.0, alone: false, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Extent;

    fn sample() -> View {
        View::image(NodeId(3), Map::new(Extent::new(4, 6, 8), 12), false)
    }

    fn part(axis: usize, size: usize, step: usize) -> Part {
        Part { axis, size, step }
    }

    #[test]
    fn tokens_are_an_image_again() {
        let map = Map::new(Extent::new(4, 6, 8), 12);
        let tokens = sample().reshaped(&[1, 12, 192]).and_then(|v| v.transposed(&[0, 2, 1])).expect("tokens");
        assert_eq!(tokens.shape(), [1, 192, 12]);
        assert!(tokens.is_channels(2, map) && tokens.is_whole(map) && !tokens.is_image(map, false));
        let back = tokens.reshaped(&[1, 4, 6, 8, 12]).and_then(|v| v.transposed(&[0, 4, 1, 2, 3])).expect("an image");
        assert!(back.is_image(map, false));
        assert!(sample().reshaped(&[1, 5, 2304]).is_none() && sample().reshaped(&[2304, 2]).is_none());
        assert!(sample().transposed(&[0, 1, 2, 3]).is_none() && sample().transposed(&[0, 1, 1, 3, 4]).is_none());
    }

    #[test]
    fn heads_and_windows_are_parts_of_axes() {
        // b l (qkv heads d) of three projections of two heads
        let tokens = sample().reshaped(&[1, 12, 192]).and_then(|v| v.transposed(&[0, 2, 1])).expect("tokens");
        let parts = tokens.reshaped(&[1, 192, 3, 2, 2]).and_then(|v| v.transposed(&[2, 0, 3, 1, 4])).expect("parts");
        let keys = parts.sliced(0, 1, 1, 1).expect("the keys");
        assert_eq!((keys.first[C], &keys.dims[2], &keys.dims[4]), (4, &vec![part(C, 2, 2)], &vec![part(C, 2, 1)]));
        assert!(keys.is_dense(C) && !keys.is_whole(Map::new(Extent::new(4, 6, 8), 12)));
        let windows = sample().reshaped(&[1, 12, 2, 2, 3, 2, 2, 4]).and_then(|v| v.transposed(&[0, 2, 4, 6, 3, 5, 7, 1])).expect("windows");
        let windows = windows.reshaped(&[12, 16, 12]).expect("tokens of windows");
        assert_eq!(windows.dims[0], [part(1, 2, 2), part(2, 3, 2), part(3, 2, 4)]);
        assert_eq!(windows.dims[1], [part(1, 2, 1), part(2, 2, 1), part(3, 4, 1)]);
    }

    #[test]
    fn slices_crop() {
        let map = Map::new(Extent::new(4, 6, 8), 12);
        let slice = sample().sliced(3, 2, 1, 3).expect("a slice");
        let pad = |before, after| Shift::Pad { before, after };
        assert_eq!(slice.crop(map), Some([pad(0, 0), pad(-2, -1), pad(0, 0)]));
        let strided = sample().sliced(4, 1, 2, 4).expect("a slice");
        assert_eq!((strided.crop(map), strided.first[3]), (None, 1));
        let tokens = sample().reshaped(&[1, 12, 192]).expect("tokens");
        assert!(tokens.sliced(2, 8, 1, 24).is_none(), "neither whole planes nor in one");
        assert_eq!(tokens.sliced(2, 48, 1, 96).map(|v| v.first), Some([0, 1, 0, 0]));
    }
}
