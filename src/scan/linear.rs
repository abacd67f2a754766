//! Small linear algebra in the floating-point steps of the libraries that MONAI calls.
//!
//! A tie in MONAI's `Spacing` (a shape that ends in .5, a voxel half-way between two others) is
//! decided by the last bits of these results, for grids along the patient's axes too. The steps are
//! those of numpy's OpenBLAS and of PyTorch's MKL on an x86 CPU with AVX-512. On grids along the
//! axes every sum has one term and all CPUs agree; on oblique grids CPUs without AVX-512 differ in
//! the last bit, so that MONAI itself differs between machines where a tie hangs on it.
#![expect(clippy::needless_range_loop, reason = "rows and columns by their numbers, as in the algorithms")]

/// A square matrix of `N` rows.
pub(super) type Square<const N: usize> = [[f64; N]; N];

/// The matrix with ones on the diagonal.
pub(super) fn identity<const N: usize>() -> Square<N> {
    std::array::from_fn(|row| std::array::from_fn(|column| if row == column { 1.0 } else { 0.0 }))
}

/// The transpose.
pub(super) fn transposed<const N: usize>(a: &Square<N>) -> Square<N> {
    std::array::from_fn(|row| std::array::from_fn(|column| a[column][row]))
}

/// `a @ b` of numpy or PyTorch: every entry a chain of fused multiply-adds.
pub(super) fn product<const N: usize, const M: usize>(a: &Square<N>, b: &[[f64; M]; N]) -> [[f64; M]; N] {
    a.map(|row| std::array::from_fn(|column| row.iter().zip(b).fold(0.0, |sum, (x, y)| x.mul_add(y[column], sum))))
}

/// `a @ b` of PyTorch for batches of small matrices: products and sums rounded each.
pub(super) fn batch_product<const N: usize>(a: &Square<N>, b: &Square<N>) -> Square<N> {
    a.map(|row| std::array::from_fn(|column| row.iter().zip(b).fold(0.0, |sum, (x, y)| sum + x * y[column])))
}

/// `a @ v` of numpy, of a matrix and a vector.
pub(super) fn transform(a: &Square<3>, v: [f64; 3]) -> [f64; 3] {
    a.map(|row| row[2].mul_add(v[2], row[0].mul_add(v[0], row[1] * v[1])))
}

/// `numpy.linalg.solve(a, b)`: LAPACK's `gesv` as OpenBLAS computes it for so small matrices;
/// `None` if `a` is singular.
///
/// LU decomposition column by column with partial pivoting; pivots divide by their reciprocals.
pub(super) fn solve<const N: usize>(mut a: Square<N>, mut b: Square<N>) -> Option<Square<N>> {
    let dot = |a: &Square<N>, row: usize, column: usize, n: usize| (0..n).fold(0.0, |sum, k| a[row][k].mul_add(a[k][column], sum));
    let mut pivots = [0; N];
    for column in 0..N {
        for (row, &pivot) in pivots.iter().enumerate().take(column) {
            let value = a[row][column];
            a[row][column] = a[pivot][column];
            a[pivot][column] = value;
        }
        for row in 1..N {
            a[row][column] -= dot(&a, row, column, row.min(column));
        }
        let pivot = (column..N).reduce(|best, row| if a[row][column].abs() > a[best][column].abs() { row } else { best })?;
        pivots[column] = pivot;
        if a[pivot][column] == 0.0 || !a[pivot][column].is_finite() {
            return None;
        }
        for k in 0..=column {
            let value = a[column][k];
            a[column][k] = a[pivot][k];
            a[pivot][k] = value;
        }
        let reciprocal = 1.0 / a[column][column];
        for row in &mut a[column + 1..] {
            row[column] *= reciprocal;
        }
    }
    for (row, &pivot) in pivots.iter().enumerate() {
        b.swap(row, pivot);
    }
    for column in 0..N {
        for row in 0..N {
            for below in row + 1..N {
                b[below][column] = (-b[row][column]).mul_add(a[below][row], b[below][column]);
            }
        }
        for row in (0..N).rev() {
            b[row][column] *= 1.0 / a[row][row];
            for above in 0..row {
                b[above][column] = (-b[row][column]).mul_add(a[above][row], b[above][column]);
            }
        }
    }
    Some(b)
}

/// `numpy.linalg.cholesky(a)`, the lower factor; `None` if `a` is not positive definite.
pub(super) fn cholesky(mut a: Square<3>) -> Option<Square<3>> {
    for column in 0..3 {
        let dot = |a: &Square<3>, row: usize| (0..column).fold(0.0, |sum, k| a[row][k].mul_add(a[column][k], sum));
        let square = a[column][column] - dot(&a, column);
        if square.is_nan() || square <= 0.0 {
            return None;
        }
        let root = square.sqrt();
        a[column][column] = root;
        for row in column + 1..3 {
            a[row][column] = (a[row][column] - dot(&a, row)) * (1.0 / root);
        }
        for row in &mut a[..column] {
            row[column] = 0.0;
        }
    }
    Some(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Square<4> =
        [[0.034, 1.36, 1.225, -0.51], [-0.298, -0.527, 0.57, -0.056], [0.747, -1.847, 1.567, -0.096], [0.0, 0.0, 0.0, 1.0]];
    const B: Square<4> =
        [[0.825, -0.203, -0.153, 0.686], [-0.87, -1.514, 0.395, -0.671], [-1.92, -0.814, -0.468, -1.193], [0.0, 0.0, 0.0, 1.0]];

    fn part(m: &Square<4>) -> Square<3> {
        std::array::from_fn(|row| std::array::from_fn(|column| m[row][column]))
    }

    /// What numpy 2.4.6 says with OpenBLAS 0.3.31 on a CPU with AVX-512, to the last bit.
    #[test]
    fn results_are_those_of_numpy() {
        let solved = [
            [0.5389795414805092, 2.291273070314833, -1.0238832604648553, 0.594949073904721],
            [0.9352642711679527, 0.6039702933813367, -0.1249132045394209, 0.8490990674236302],
            [-0.3798242556724516, -0.8998390884810794, 0.04219917471789185, 0.017140407992736577],
            [0.0, 0.0, 0.0, 1.0],
        ];
        assert_eq!(solve(A, B), Some(solved));
        let gram = [[0.647969, -1.176423, 1.042339], [-1.176423, 5.538738, -1.5286389999999996], [1.042339, -1.5286389999999996, 4.281014]];
        let a = part(&A);
        assert_eq!(product(&transposed(&a), &a), gram);
        let factor = [
            [0.8049652166398248, 0.0, 0.0],
            [-1.4614581794114727, 1.8446891309462699, 0.0],
            [1.294887006858566, 0.19720624005654605, 1.6016839071276279],
        ];
        assert_eq!(cholesky(gram), Some(factor));
        assert_eq!(transform(&a, [3.5, 7.0, 2.5]), [12.701500000000001, -3.3070000000000004, -6.397000000000001]);
        assert_eq!(batch_product(&identity(), &A), A);
    }

    #[test]
    fn singular_matrices_have_no_solution() {
        assert_eq!(solve([[1.0, 2.0], [2.0, 4.0]], identity()), None);
        assert_eq!(solve([[f64::NAN, 2.0], [2.0, 4.0]], identity()), None);
        assert_eq!(cholesky([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 1.0]]), None);
    }
}
