//! The patient directions that the axes of an affine are closest to.

use super::orient::Direction;

/// A 3x3 matrix, `m[world][voxel axis]`, world being right, anterior, superior.
pub(super) type Matrix = [[f64; 3]; 3];

/// The directions that nibabel's `io_orientation` (5.4) gives the columns of a matrix: of the
/// orthogonal matrix nearest to it, the columns, those that lie closest to a world axis first, each
/// take the world axis that they are closest to and that is left. `None` if the columns do not span
/// space.
pub(crate) fn directions(mut matrix: Matrix) -> Option<[Direction; 3]> {
    let norms = norms(&matrix);
    if norms.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
        return None;
    }
    for row in &mut matrix {
        for (x, norm) in row.iter_mut().zip(norms) {
            *x /= norm;
        }
    }
    let matrix = nearest_orthogonal(matrix)?;
    let strength = |axis: usize| column(&matrix, axis).iter().fold(0.0f64, |most, x| most.max(x * x));
    let mut order = [0, 1, 2];
    order.sort_by(|&a, &b| strength(b).total_cmp(&strength(a)));
    let mut taken = [false; 3];
    let mut directions = [Direction::Right; 3];
    for axis in order {
        let entries = column(&matrix, axis);
        // The first of equals, as numpy's argmax.
        let world = (0..3).filter(|w| !taken[*w]).reduce(|best, w| if entries[w].abs() > entries[best].abs() { w } else { best })?;
        taken[world] = true;
        directions[axis] = Direction::along(world, entries[world] >= 0.0);
    }
    Some(directions)
}

/// The orthogonal factor of the polar decomposition, by Newton's iteration `X <- (X + X^-T) / 2`.
fn nearest_orthogonal(mut x: Matrix) -> Option<Matrix> {
    for _ in 0..100 {
        // The rows of the cofactor matrix are the cross products of the rows; it is det(X) X^-T.
        let cofactor = [cross(x[1], x[2]), cross(x[2], x[0]), cross(x[0], x[1])];
        let determinant: f64 = x[0].iter().zip(cofactor[0]).map(|(a, b)| a * b).sum();
        if determinant.is_nan() || determinant.abs() < 1e-9 {
            return None;
        }
        let mut change = 0.0f64;
        for (row, cofactors) in x.iter_mut().zip(cofactor) {
            for (value, c) in row.iter_mut().zip(cofactors) {
                let next = 0.5 * (*value + c / determinant);
                change = change.max((next - *value).abs());
                *value = next;
            }
        }
        if change < 1e-14 {
            break;
        }
    }
    Some(x)
}

pub(super) fn column(m: &Matrix, axis: usize) -> [f64; 3] {
    [m[0][axis], m[1][axis], m[2][axis]]
}

/// The lengths of the columns, summed as numpy sums them.
pub(super) fn norms(m: &Matrix) -> [f64; 3] {
    [0, 1, 2].map(|axis| {
        let [x, y, z] = column(m, axis);
        (x * x + y * y + z * z).sqrt()
    })
}

pub(super) fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_column_chooses_first() {
        // nibabel 5.4.2 says the same: the second column is closer to the first world axis than the
        // first one is
        let matrix = [[0.6, 0.78, 0.18], [0.58, -0.45, 0.7], [0.56, -0.43, -0.71]];
        let letters = directions(matrix).map(|d| d.map(Direction::letter));
        assert_eq!(letters, Some(LETTERS));
    }

    const LETTERS: [char; 3] = ['A', 'R', 'I'];
}
