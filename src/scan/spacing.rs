//! Which grid `Spacing` resamples a scan to, and how one grid's voxels lie in another: MONAI's
//! `Spacing`, `zoom_affine`, `compute_shape_offset` and the part of `SpatialResample` before it
//! samples, in their floating-point steps.
//!
//! Axes are D, H, W; in MONAI they are the first, second and third.

use super::linear::{Square, batch_product, cholesky, identity, product, solve, transform, transposed};
use crate::volume::Affine;

/// Entries of affines that differ by less than this are taken as equal (MONAI's `AFFINE_TOL`), and
/// so are spacings in mm.
const TOLERANCE: f64 = 1e-3;
/// Corners of the new grid that lie outside by more than this, in its voxels, are outside (numpy's
/// `allclose`).
const CORNER: f64 = 1e-8;

/// The matrix whose columns are the steps and the origin.
fn matrix(affine: &Affine) -> Square<4> {
    let entry = |row: usize, column: usize| match (row, column) {
        (3, column) => f64::from(u8::from(column == 3)),
        (row, 3) => affine.origin[row],
        (row, column) => affine.steps[column][row],
    };
    std::array::from_fn(|row| std::array::from_fn(|column| entry(row, column)))
}

/// The inverse of [`matrix`].
fn affine(m: &Square<4>) -> Affine {
    Affine { steps: std::array::from_fn(|column| std::array::from_fn(|row| m[row][column])), origin: std::array::from_fn(|row| m[row][3]) }
}

/// The part without the origin.
fn linear(m: &Square<4>) -> Square<3> {
    std::array::from_fn(|row| std::array::from_fn(|column| m[row][column]))
}

/// The affine of voxels whose first has the indices `first`, as MONAI updates it.
pub(super) fn shifted(from: &Affine, first: [f64; 3]) -> Affine {
    let mut shift = identity();
    for (row, value) in shift.iter_mut().zip(first) {
        row[3] = value;
    }
    affine(&product(&matrix(from), &shift))
}

/// The affine and the shape that `Spacing` resamples a scan of shape `n` to; a spacing of 0 in `mm`
/// stays as it is. The shape is not checked. `None` if the columns of the affine do not span space.
///
/// Shear is taken away: the first axis stays, the second turns within the plane of both, the third
/// becomes their normal. Where the first voxel or another corner comes to lie below all others
/// along every new axis, beyond the rounding of f64, that corner becomes the first voxel. It does
/// so on grids along the patient's axes, and on turned ones whose affine is a quaternion's; the f32
/// numbers of an oblique sform are too coarse for it, and the centres are put upon each other.
pub(super) fn target(from: &Affine, n: [usize; 3], mm: [f64; 3]) -> Option<(Affine, [f64; 3])> {
    let m = matrix(from);
    let old = from.spacing();
    let spacing: [f64; 3] = std::array::from_fn(|axis| {
        let (wanted, old) = (if mm[axis] > 0.0 { mm[axis] } else { -1.0 }, old[axis]);
        let near = wanted - TOLERANCE <= old && old <= wanted + TOLERANCE;
        if near || wanted <= 0.0 { old } else { wanted }
    });
    let steps = linear(&m);
    let factor = transposed(&cholesky(product(&transposed(&steps), &steps))?);
    let rotation = product(&steps, &solve(factor, identity())?);
    let mut to: Square<4> = identity();
    for (to, row) in to.iter_mut().zip(rotation) {
        for axis in 0..3 {
            to[axis] = row[axis] * spacing[axis];
        }
    }

    let size = n.map(|n| n as f64);
    let last = size.map(|n| n - 1.0);
    let at = |axis: usize, corner: usize| if corner >> (2 - axis) & 1 == 1 { last[axis] } else { 0.0 };
    let corners: [[f64; 8]; 4] = std::array::from_fn(|axis| std::array::from_fn(|corner| if axis == 3 { 1.0 } else { at(axis, corner) }));
    let seen = product(&solve(to, m)?, &corners);
    let least = |values: [f64; 8]| values.into_iter().fold(f64::INFINITY, f64::min);
    let shape: [f64; 3] = std::array::from_fn(|axis| {
        let along: [f64; 8] = std::array::from_fn(|corner| seen[axis][corner] / seen[3][corner]);
        let most = along.into_iter().fold(f64::NEG_INFINITY, f64::max);
        (most - least(along) + 1.0).round_ties_even()
    });
    let first = |corner: usize| (0..3).all(|axis| least(seen[axis].map(|x| x - seen[axis][corner])).abs() <= CORNER);
    let origin: [f64; 3] = if let Some(corner) = (0..8).find(|&corner| first(corner)) {
        let places = product(&m, &corners);
        std::array::from_fn(|row| places[row][corner])
    } else {
        let centre = transform(&steps, size.map(|n| n / 2.0));
        let new_centre = transform(&linear(&to), shape.map(|n| n / 2.0));
        std::array::from_fn(|row| centre[row] + m[row][3] - new_centre[row])
    };
    for (row, value) in to.iter_mut().zip(origin) {
        row[3] = value;
    }
    Some((affine(&to), shape))
}

/// Where the voxels of a grid lie in another, as `SpatialResample` hands it to `grid_sample`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Map {
    /// The affine of the new grid, as MONAI updates it.
    pub(super) affine: Affine,
    /// The new voxels' positions in normalised coordinates of the old grid, W first: three rows of
    /// four factors for the new voxels' normalised coordinates along W, H and D and 1.
    pub(super) theta: [[f64; 4]; 3],
}

/// What [`map`] says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Change {
    /// MONAI takes the grids as the same and leaves the voxels as they are.
    None,
    Resample(Map),
}

/// How the voxels of a grid at `to` of shape `new` lie in one at `from` of shape `old`. With
/// `align` the centres of the outer voxels count as -1 and 1 in between, else their outer faces.
/// `None` if `from` is singular.
pub(super) fn map(from: &Affine, to: &Affine, [old, new]: [[usize; 3]; 2], align: bool) -> Option<Change> {
    let (source, destination) = (matrix(from), matrix(to));
    let between = solve(source, destination)?;
    let close = |a: &Square<4>, b: &Square<4>| {
        a.as_flattened().iter().zip(b.as_flattened()).all(|(a, b)| (a - b).abs() <= TOLERANCE + 1e-5 * b.abs())
    };
    if old == new && (close(&source, &destination) || close(&between, &identity())) {
        return Some(Change::None);
    }
    let normal = solve(normalising(new, align), identity())?;
    let theta = batch_product(&batch_product(&normalising(old, align), &between), &normal);
    let theta = [2, 1, 0].map(|row| [theta[row][2], theta[row][1], theta[row][0], theta[row][3]]);
    Some(Change::Resample(Map { affine: affine(&product(&source, &between)), theta }))
}

/// From indices to normalised coordinates (MONAI's `normalize_transform`).
fn normalising(shape: [usize; 3], align: bool) -> Square<4> {
    let mut m = identity();
    for (axis, n) in shape.into_iter().enumerate() {
        let n = n as f64;
        let steps = if align && n > 1.0 { n - 1.0 } else { n };
        m[axis][axis] = 2.0 / steps;
        m[axis][3] = if align { -1.0 } else { 1.0 / n - 1.0 };
    }
    m
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(steps: [[f64; 3]; 3], origin: [f64; 3]) -> Affine {
        Affine { steps, origin }
    }

    fn along(spacing: [f64; 3]) -> Affine {
        let [a, b, c] = spacing;
        at([[a, 0.0, 0.0], [0.0, b, 0.0], [0.0, 0.0, c]], [0.0; 3])
    }

    /// Shapes and affines of MONAI 1.6.1.
    #[test]
    fn shapes_and_affines_are_those_of_monai() {
        let (to, shape) = target(&along([0.5, 0.5, 0.7]), [64, 10, 11], [1.0, 1.0, 1.4]).expect("it is");
        assert_eq!((to, shape), (along([1.0, 1.0, 1.4]), [32.0, 6.0, 6.0]), "ties to even");
        // 20.5 voxels each but for the last bits; a spacing that is near stays
        let (to, shape) = target(&along([1.3, 0.9, 1.3]), [28, 14, 7], [1.8, 0.6, 1.3009]).expect("it is");
        assert_eq!((to, shape), (along([1.8, 0.6, 1.3]), [21.0, 20.0, 7.0]));
        let turned = at([[0.0, 0.9, 0.0], [-1.5, 0.0, 0.0], [0.0, 0.0, 2.2]], [3.0, -7.0, 1.0]);
        let (to, shape) = target(&turned, [12, 20, 9], [1.0, 1.0, 0.0]).expect("it is");
        let wanted = at([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 2.2]], [3.0, -7.0, 1.0]);
        assert_eq!((to, shape), (wanted, [11.0, 30.0, 9.0]));
        let sheared = at([[1.0, 0.1, 0.0], [0.2, 1.2, 0.1], [0.1, 0.0, 2.2]], [3.0, -7.0, 1.0]);
        let (to, shape) = target(&sheared, [12, 20, 9], [1.5, 1.5, 2.0]).expect("it is");
        let wanted = at(
            [
                [1.492555785314984, 0.1492555785314984, 0.0],
                [-0.14871718096872888, 1.4871718096872886, 0.12729182438848827],
                [0.016888013236829955, -0.16888013236829968, 1.9927855619459356],
            ],
            [3.0, -7.0, 1.0],
        );
        assert_eq!((to, shape), (wanted, [13.0, 17.0, 10.0]));
        assert!(target(&along([0.0, 1.0, 1.0]), [2; 3], [1.0; 3]).is_none());
    }

    #[test]
    fn grids_within_a_thousandth_are_the_same() {
        let (a, b) = (along([1.0, 2.0, 3.0]), along([1.0009, 2.0, 2.9991]));
        assert_eq!(map(&a, &b, [[4; 3]; 2], false), Some(Change::None));
        assert!(matches!(map(&a, &b, [[4; 3], [4, 4, 5]], false), Some(Change::Resample(_))));
        // ten-thousandths of the old voxels, though a millimetre
        let (a, b) = (along([2000.0, 1.0, 1.0]), along([2001.0, 1.0, 1.0]));
        assert_eq!(map(&a, &b, [[4; 3]; 2], false), Some(Change::None));
        assert_eq!(map(&along([0.0, 1.0, 1.0]), &b, [[4; 3]; 2], false), None);
    }
}
