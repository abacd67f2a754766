//! Resizing by splines of order 0, 1 and 3, as nnU-Net resizes scans and logits, and as TransUNet and Swin-Unet zoom slices.
//!
//! Sources: Unser, "Splines: a perfect fit for signal and image processing" (IEEE Signal Processing Magazine 16, 1999) for the
//! filter. All sums are in f64. Splines are products along the axes, so that each axis is resized by itself. Two conventions:
//! - [`resize`], [`resize_slices`]: those that `skimage.transform.resize(mode="edge", anti_aliasing=False)` takes from
//!   `scipy.ndimage.zoom(mode="nearest", grid_mode=True)`. Voxel centres lie at `(i + 0.5) * n_source / n_target - 0.5`; the outermost
//!   voxels go on forever.
//! - [`zoom_slices`], [`zoom_labels`]: those of `scipy.ndimage.zoom` as it is (mode `constant`). Corners are aligned: voxel centres lie at
//!   `i * ((n_source - 1) / (n_target - 1))`; lines are mirrored at their outermost voxels. That product is rounded, and where it ends
//!   up beyond the last voxel scipy has 0 there: so the last row and column of 512 zoomed to 224 are 0, as in the references' own runs.

use rayon::prelude::*;

/// The pole of the cubic spline's filter, sqrt(3) - 2.
const POLE: f64 = -0.267_949_192_431_122_7;

/// Values whose share of a sum of the pole's powers counts: the power of those beyond is 1e-14.
const REACH: usize = 25;

/// Where the voxels of a resized line lie, and how the line goes on beyond its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grid {
    /// Both lines cover one field; the outermost voxels go on forever.
    Field,
    /// Both lines begin and end with the same voxels' centres; mirrored there.
    Corners,
}

impl Grid {
    /// Voxels by which a line is continued on both sides before it is filtered. Forever is 12 voxels for scipy, where the pole's power is
    /// 1e-7; of mirrored lines it computes the limit, and here the pole's power is 1e-16.
    fn margin(self, order: Order) -> usize {
        match (order, self) {
            (Order::Cubic, Self::Field) => 12,
            (Order::Cubic, Self::Corners) => 28,
            _ => 0,
        }
    }

    /// The voxel of a line of `n` that stands at `at`, which may lie beyond its ends.
    fn voxel(self, at: isize, n: usize) -> usize {
        let last = n.cast_signed() - 1;
        let within = match self {
            Self::Field => at.clamp(0, last),
            Self::Corners => {
                let turn = at.rem_euclid((2 * last).max(1));
                turn.min(2 * last - turn)
            }
        };
        within.unsigned_abs()
    }

    /// The place of target voxel `i` on the source line.
    fn place(self, i: usize, source: usize, target: usize) -> f64 {
        match self {
            Self::Field => (i as f64 + 0.5) * (source as f64 / target as f64) - 0.5,
            // rounded as scipy rounds it
            Self::Corners if target > 1 => i as f64 * ((source as f64 - 1.0) / (target as f64 - 1.0)),
            Self::Corners => 0.0,
        }
    }
}

/// Degree of the interpolating spline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The nearest voxel; of two that are equally near the later one.
    Nearest,
    /// Between the two nearest.
    Linear,
    /// The cubic spline through all voxels.
    Cubic,
}

impl Order {
    /// The spline of a degree: 0, 1 or 3.
    #[must_use]
    pub fn of_degree(degree: u32) -> Option<Self> {
        match degree {
            0 => Some(Self::Nearest),
            1 => Some(Self::Linear),
            3 => Some(Self::Cubic),
            _ => None,
        }
    }
}

/// Resizes values `[D][H][W]` of shape `from` to shape `to`. No result lies beyond the least and the greatest of the values, as
/// cubic splines would have it.
///
/// # Panics
/// When there are not as many values as the shape has voxels.
#[must_use]
pub fn resize(values: &[f32], from: [usize; 3], to: [usize; 3], order: Order) -> Vec<f32> {
    resized(values, from, to, order, None).into_par_iter().map(narrow).collect()
}

/// The same, slice by slice across `axis`, and then along it by an order of its own: for scans whose slices are thick.
///
/// # Panics
/// When there are not as many values as the shape has voxels, or no such axis.
#[must_use]
pub fn resize_slices(values: &[f32], from: [usize; 3], to: [usize; 3], order: Order, axis: usize, order_along: Order) -> Vec<f32> {
    resized(values, from, to, order, Some((axis, order_along))).into_par_iter().map(narrow).collect()
}

/// The values that [`resize`] rounds, or, with an axis and its order, [`resize_slices`].
pub(crate) fn resized(values: &[f32], from: [usize; 3], to: [usize; 3], order: Order, along: Option<(usize, Order)>) -> Vec<f64> {
    assert_eq!(values.len(), from.iter().product::<usize>(), "values and shape must agree");
    let wide = values.par_iter().map(|&v| f64::from(v)).collect();
    let Some((axis, order_along)) = along else {
        let mut resized = along_axes(wide, from, to, [Some(order); 3], Grid::Field);
        if order == Order::Cubic {
            let (low, high) = range(values.iter().copied());
            resized.par_iter_mut().for_each(|v| *v = clamped(*v, low, high));
        }
        return resized;
    };
    let mut orders = [Some(order); 3];
    orders[axis] = None;
    let mut between = to;
    between[axis] = from[axis];
    let mut sliced = along_axes(wide, from, between, orders, Grid::Field);
    if order == Order::Cubic {
        let step = |shape: [usize; 3]| shape[axis + 1..].iter().product::<usize>();
        let (step_from, step_to) = (step(from), step(between));
        let slices = from[axis];
        let ranges: Vec<_> = (0..slices)
            .into_par_iter()
            .map(|slice| {
                let lines = values.chunks_exact(step_from).skip(slice).step_by(slices);
                range(lines.flatten().copied())
            })
            .collect();
        sliced.par_chunks_exact_mut(step_to).enumerate().for_each(|(i, line)| {
            let (low, high) = ranges[i % slices];
            line.iter_mut().for_each(|v| *v = clamped(*v, low, high));
        });
    }
    let mut orders = [None; 3];
    orders[axis] = Some(order_along);
    along_axes(sliced, between, to, orders, Grid::Field)
}

/// The bytes that [`resized`] takes, its result included.
pub(crate) fn resized_bytes(from: [usize; 3], to: [usize; 3], along: Option<(usize, Order)>) -> u64 {
    let mut sequence = [0, 1, 2];
    if let Some((axis, _)) = along {
        sequence[axis..].rotate_left(1);
    }
    let (mut shape, mut most) = (from, 0);
    for axis in sequence {
        let before: usize = shape.iter().product();
        shape[axis] = to[axis];
        most = most.max(before + shape.iter().product::<usize>());
    }
    8 * most as u64
}

/// Zooms slices `[..][H][W]` of shape `from` to shape `to`, each by itself, as `scipy.ndimage.zoom(slice, order=3)` does for the cubic
/// spline: results may lie beyond the least and the greatest of the values. Linear, places stay on the line: nothing becomes 0.
///
/// # Panics
/// When the values are no whole number of slices.
#[must_use]
pub fn zoom_slices(values: &[f32], from: [usize; 2], to: [usize; 2], order: Order) -> Vec<f32> {
    let slice = from[0] * from[1];
    assert!(slice > 0 && values.len().is_multiple_of(slice), "values and shape must agree");
    let zoom = |slice: &[f32]| {
        let wide = slice.iter().map(|&v| f64::from(v)).collect();
        along_axes(wide, [1, from[0], from[1]], [1, to[0], to[1]], [None, Some(order), Some(order)], Grid::Corners)
    };
    values.par_chunks_exact(slice).flat_map_iter(|slice| zoom(slice).into_iter().map(narrow)).collect()
}

/// Zooms labels `[..][H][W]` of shape `from` to shape `to`, slice by slice, as `scipy.ndimage.zoom(slice, order=0)` does: the nearest
/// voxel, of two that are equally near the later one; 0 where scipy's place ends up beyond the last voxel.
///
/// # Panics
/// When the labels are no whole number of slices.
#[must_use]
pub fn zoom_labels(labels: &[u16], from: [usize; 2], to: [usize; 2]) -> Vec<u16> {
    let slice = from[0] * from[1];
    assert!(slice > 0 && labels.len().is_multiple_of(slice), "labels and shape must agree");
    let nearest = |axis: usize| -> Vec<Option<usize>> {
        let taps = taps(from[axis], to[axis], Order::Nearest, Grid::Corners);
        taps.into_iter().map(|(first, weights)| (weights[0] > 0.0).then_some(first)).collect()
    };
    let (rows, columns) = (nearest(0), nearest(1));
    let zoom = |slice: &[u16]| -> Vec<u16> {
        let label = |y: Option<usize>, x: Option<usize>| y.zip(x).map_or(0, |(y, x)| slice[y * from[1] + x]);
        rows.iter().flat_map(|&y| columns.iter().map(move |&x| label(y, x))).collect()
    };
    labels.par_chunks_exact(slice).flat_map_iter(zoom).collect()
}

fn range(values: impl Iterator<Item = f32>) -> (f64, f64) {
    let (low, high) = values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    (low.into(), high.into())
}

/// The value held within a range; as it is where the range is none, since all values that it was
/// made of are NaN.
fn clamped(value: f64, low: f64, high: f64) -> f64 {
    if low <= high { value.clamp(low, high) } else { value }
}

#[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
fn narrow(x: f64) -> f32 {
    x as f32
}

/// Resizes along the axes that have an order. Each turn takes the first axis and makes it the last; three bring the axes back.
fn along_axes(mut values: Vec<f64>, from: [usize; 3], to: [usize; 3], orders: [Option<Order>; 3], grid: Grid) -> Vec<f64> {
    let changes = |axis: usize| orders[axis].filter(|_| from[axis] != to[axis]);
    if (0..3).all(|axis| changes(axis).is_none()) {
        return values;
    }
    for axis in 0..3 {
        let (n, target) = (from[axis], to[axis]);
        let others = values.len() / n;
        let taps = changes(axis).map(|order| (order, taps(n, target, order, grid)));
        let mut turned = vec![0.0; others * target];
        turned.par_chunks_exact_mut(target.max(1)).enumerate().for_each_init(Vec::new, |line, (i, out)| match &taps {
            None => out.iter_mut().enumerate().for_each(|(k, v)| *v = values[k * others + i]),
            Some((order, taps)) => {
                let margin = grid.margin(*order);
                line.clear();
                line.extend((0..n + 2 * margin).map(|k| values[grid.voxel(k.cast_signed() - margin.cast_signed(), n) * others + i]));
                if *order == Order::Cubic {
                    filter(line);
                }
                for (value, (first, weights)) in out.iter_mut().zip(taps) {
                    *value = line[*first..].iter().zip(weights).map(|(x, w)| x * w).sum();
                }
            }
        });
        values = turned;
    }
    values
}

/// For each target voxel the first source voxel (or coefficient) that counts, and the weights of it and those that follow.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positions lie within the line")]
fn taps(source: usize, target: usize, order: Order, grid: Grid) -> Vec<(usize, [f64; 4])> {
    let last = source as f64 - 1.0;
    let tap = |i: usize| {
        let at = grid.place(i, source, target);
        match order {
            // beyond the end by a rounding alone
            Order::Nearest | Order::Cubic if grid == Grid::Corners && at > last => (0, [0.0; 4]),
            Order::Nearest => ((at.clamp(0.0, last) + 0.5).floor() as usize, [1.0, 0.0, 0.0, 0.0]),
            Order::Linear => {
                let at = at.clamp(0.0, last);
                let t = at - at.floor();
                (at.floor() as usize, [1.0 - t, t, 0.0, 0.0])
            }
            Order::Cubic => {
                let at = at + grid.margin(order) as f64;
                let t = at - at.floor();
                let u = 1.0 - t;
                let middle = |t: f64| (t * t * (t - 2.0) * 3.0 + 4.0) / 6.0;
                (at.floor() as usize - 1, [u * u * u / 6.0, middle(t), middle(u), t * t * t / 6.0])
            }
        }
    };
    (0..target).map(tap).collect()
}

/// Of each voxel of a line that [`resize`] makes by order 0 or 1: the first voxel of the source, and
/// what it and the next weigh; `None` for cubic splines.
pub(crate) fn linear_taps(source: usize, target: usize, order: Order) -> Option<Vec<(usize, [f64; 2])>> {
    let pair = |(first, [a, b, ..]): (usize, [f64; 4])| (first, [a, b]);
    (order != Order::Cubic).then(|| taps(source, target, order, Grid::Field).into_iter().map(pair).collect())
}

/// Values to the coefficients of the cubic spline through them, where the line is mirrored at its ends (each end value twice).
fn filter(line: &mut [f64]) {
    let n = line.len();
    line.iter_mut().for_each(|v| *v *= 6.0);
    // what the mirrored line leaves before the first value
    let mut before: f64 = line.iter().take(REACH).rev().fold(0.0, |sum, value| value + POLE * sum);
    for value in line.iter_mut() {
        before = *value + POLE * before;
        *value = before;
    }
    let mut after = line[n - 1] * POLE / (POLE - 1.0);
    line[n - 1] = after;
    for value in line[..n - 1].iter_mut().rev() {
        after = POLE * (after - *value);
        *value = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 10.0).collect()
    }

    /// The spline through values that go on forever, by solving for its coefficients (Gauss-Seidel) on a long line.
    fn spline(values: &[f32], at: f64) -> f64 {
        let long = 40;
        let n = values.len() + 2 * long;
        let value = |k: usize| f64::from(values[k.saturating_sub(long).min(values.len() - 1)]);
        let mut c: Vec<f64> = (0..n).map(value).collect();
        for _ in 0..200 {
            for k in 0..n {
                let (before, after) = (c[k.saturating_sub(1)], c[(k + 1).min(n - 1)]);
                c[k] = (6.0 * value(k) - before - after) / 4.0;
            }
        }
        let basis = |x: f64| match x.abs() {
            x if x < 1.0 => 2.0 / 3.0 - x * x + x * x * x / 2.0,
            x if x < 2.0 => (2.0 - x).powi(3) / 6.0,
            _ => 0.0,
        };
        c.iter().enumerate().map(|(k, c)| c * basis(at + long as f64 - k as f64)).sum()
    }

    #[test]
    fn a_line_follows_its_spline_within_its_range() {
        for axis in 0..3 {
            for (n, target) in [(9, 14), (9, 5), (2, 7), (1, 3), (30, 31)] {
                let values = wave(n);
                let (mut from, mut to) = ([1; 3], [1; 3]);
                (from[axis], to[axis]) = (n, target);
                let got = resize(&values, from, to, Order::Cubic);
                let (low, high) = range(values.iter().copied());
                for (i, got) in got.iter().enumerate() {
                    let at = (i as f64 + 0.5) * n as f64 / target as f64 - 0.5;
                    let want = spline(&values, at).clamp(low, high);
                    assert!((f64::from(*got) - want).abs() < 3e-6, "{n} to {target}, {i}: {got} for {want}");
                }
            }
        }
    }

    #[test]
    fn lines_are_linear_or_nearest() {
        let values = [0.0, 1.0, 4.0];
        assert_eq!(resize(&values, [1, 1, 3], [1, 1, 6], Order::Linear), [0.0, 0.25, 0.75, 1.75, 3.25, 4.0]);
        assert_eq!(resize(&values, [1, 3, 1], [1, 5, 1], Order::Nearest), [0.0, 0.0, 1.0, 4.0, 4.0]);
        // halfway between two voxels: the later
        assert_eq!(resize(&[1.0, 2.0, 3.0, 4.0], [4, 1, 1], [2, 1, 1], Order::Nearest), [2.0, 4.0]);
        assert_eq!(Order::of_degree(3), Some(Order::Cubic));
        assert_eq!(Order::of_degree(2), None);
    }

    #[test]
    fn values_that_are_not_finite_are_no_panic() {
        let nan = [f32::NAN; 12];
        assert!(resize(&nan, [1, 3, 4], [1, 5, 6], Order::Cubic).iter().all(|v| v.is_nan()));
        assert!(resize_slices(&nan, [3, 2, 2], [3, 3, 5], Order::Cubic, 0, Order::Nearest).iter().all(|v| v.is_nan()));
        // a slice of NaN beside others, and values near the greatest float
        let mut mixed = wave(12);
        mixed[..4].fill(f32::NAN);
        let got = resize_slices(&mixed, [3, 2, 2], [3, 3, 5], Order::Cubic, 0, Order::Nearest);
        assert!(got[..15].iter().all(|v| v.is_nan()) && got[15..].iter().all(|v| v.is_finite()));
        let large: Vec<f32> = (0..12).map(|i| if i % 2 == 0 { f32::MAX } else { -f32::MAX }).collect();
        assert!(resize(&large, [1, 3, 4], [1, 7, 9], Order::Cubic).iter().all(|v| v.is_finite()));
        assert!(resize(&[f32::INFINITY; 12], [1, 3, 4], [1, 7, 9], Order::Cubic).len() == 63);
    }

    #[test]
    fn slices_are_resized_each_by_itself() {
        let (from, to) = ([3, 5, 4], [6, 7, 9]);
        let values = wave(60);
        let got = resize_slices(&values, from, to, Order::Cubic, 0, Order::Nearest);
        for (slice, got) in got.chunks_exact(63).enumerate() {
            let alone = resize(&values[slice / 2 * 20..][..20], [1, 5, 4], [1, 7, 9], Order::Cubic);
            assert_eq!(got, alone);
        }
        // across the last axis: the same on a volume that is turned
        let turned: Vec<f32> = (0..60).map(|i| values[i % 3 * 20 + i / 3]).collect();
        let across = resize_slices(&turned, [5, 4, 3], [7, 9, 6], Order::Cubic, 2, Order::Nearest);
        for (i, v) in across.iter().enumerate() {
            assert!((v - got[i % 6 * 63 + i / 6]).abs() < 1e-6);
        }
    }

    /// Slices and what scipy makes of them; see `tests/vectors/make_slices.py`.
    #[test]
    fn slices_are_zoomed_as_scipy_zooms_them() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/slices.safetensors");
        let bytes = std::fs::read(path).expect("the fixture is there");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("it is one");
        let of = |name: &str| {
            let t = file.tensor(name).expect("the case has it");
            let words: Vec<[u8; 4]> = t.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect();
            ([t.shape()[0], t.shape()[1]], words)
        };
        let mut ends = 0;
        for name in file.names().iter().filter_map(|name| name.strip_suffix(".slice")) {
            let ((from, slice), (to, zoomed)) = (of(&format!("{name}.slice")), of(&format!("{name}.zoomed")));
            if name.starts_with("cubic") {
                let [slice, zoomed] = [slice, zoomed].map(|v| v.into_iter().map(f32::from_le_bytes).collect::<Vec<_>>());
                let got = zoom_slices(&slice.repeat(2), from, to, Order::Cubic);
                let worst = got.iter().zip(zoomed.repeat(2)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(got.len() == 2 * zoomed.len() && worst <= 1.2e-7, "{name}: {worst:e}");
            } else {
                let [slice, zoomed] = [slice, zoomed].map(|v| {
                    let labels = v.into_iter().map(|b| u16::try_from(i32::from_le_bytes(b)));
                    labels.collect::<Result<Vec<_>, _>>().expect("they are small")
                });
                assert_eq!(zoom_labels(&slice.repeat(2), from, to), zoomed.repeat(2), "{name}");
                ends += u32::from(zoomed.last() == Some(&0));
            }
        }
        assert_eq!(ends, 4, "places beyond the end are a part of the cases");
    }

    #[test]
    fn linear_zooms_end_with_the_lines() {
        assert_eq!(zoom_slices(&[0.0, 1.0, 4.0], [1, 3], [1, 5], Order::Linear), [0.0, 0.5, 1.0, 2.5, 4.0]);
        assert_eq!(zoom_slices(&[0.0, 3.0], [2, 1], [1, 2], Order::Linear), [0.0, 0.0]);
        // where scipy has 0
        let row: Vec<f32> = (0u8..63).map(f32::from).collect();
        assert_eq!(zoom_slices(&row, [1, 63], [1, 16], Order::Linear).last(), Some(&62.0));
        assert_eq!(zoom_slices(&row, [1, 63], [1, 16], Order::Cubic).last(), Some(&0.0));
    }

    #[test]
    fn the_same_shape_keeps_the_bits() {
        let values = wave(24);
        assert_eq!(zoom_slices(&values, [3, 4], [3, 4], Order::Cubic), values);
        assert_eq!(resize(&values, [2, 3, 4], [2, 3, 4], Order::Cubic), values);
    }
}
