//! Which patient directions the voxel axes of a NIfTI file run in, and how far apart the voxels are.

use ::nifti::NiftiHeader;

use crate::volume::orient::Direction;

/// The 3x3 part of an affine: `m[world][voxel axis]`, world being right, anterior, superior.
type Matrix = [[f64; 3]; 3];

/// The directions of i, j, k and their spacing in millimetres; `None` if the header's affine is degenerate.
///
/// The sform counts if its code is above 0, else the qform if its code is, else the grid spacing alone with i running
/// to the left (as nibabel has it). The directions are those of nibabel's `io_orientation`: of the orthogonal matrix
/// nearest to the affine, each column in turn takes the world axis it is closest to.
pub(super) fn geometry(header: &NiftiHeader) -> Option<([Direction; 3], [f64; 3])> {
    let mut matrix = linear(header);
    let mut spacing = norms(&matrix);
    // A single slice may come without a normal; any will do.
    if (header.dim[0] < 3 || header.dim[3] == 1) && spacing[2] == 0.0 {
        let normal = cross(column(&matrix, 0), column(&matrix, 1));
        let length = normal.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (row, x) in matrix.iter_mut().zip(normal) {
            row[2] = x / length;
        }
        spacing = norms(&matrix);
    }
    if spacing.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
        return None;
    }
    for row in &mut matrix {
        for (x, s) in row.iter_mut().zip(spacing) {
            *x /= s;
        }
    }
    let scale = match header.xyzt_units & 7 {
        1 => 1e3,
        3 => 1e-3,
        _ => 1.0,
    };
    Some((closest_axes(nearest_orthogonal(matrix)?)?, spacing.map(|s| s * scale)))
}

fn linear(header: &NiftiHeader) -> Matrix {
    if header.sform_code > 0 {
        return [header.srow_x, header.srow_y, header.srow_z].map(|row| [f64::from(row[0]), f64::from(row[1]), f64::from(row[2])]);
    }
    let zooms = [1, 2, 3].map(|i| f64::from(header.pixdim[i]).abs());
    if header.qform_code > 0 {
        let handedness = if header.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
        let mut matrix = rotation([header.quatern_b, header.quatern_c, header.quatern_d].map(f64::from));
        for row in &mut matrix {
            for (x, zoom) in row.iter_mut().zip(zooms) {
                *x *= zoom;
            }
            row[2] *= handedness;
        }
        return matrix;
    }
    [[-zooms[0], 0.0, 0.0], [0.0, zooms[1], 0.0], [0.0, 0.0, zooms[2]]]
}

/// The rotation of the unit quaternion whose vector part is `v`.
fn rotation(v: [f64; 3]) -> Matrix {
    let square = v.iter().map(|x| x * x).sum::<f64>();
    // Rounding may leave the vector part longer than 1: then it is a half turn about that axis.
    let length = square.max(1.0).sqrt();
    let [b, c, d] = v.map(|x| x / length);
    let a = (1.0 - square).max(0.0).sqrt();
    [
        [1.0 - 2.0 * (c * c + d * d), 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
        [2.0 * (b * c + a * d), 1.0 - 2.0 * (b * b + d * d), 2.0 * (c * d - a * b)],
        [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), 1.0 - 2.0 * (b * b + c * c)],
    ]
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

fn closest_axes(matrix: Matrix) -> Option<[Direction; 3]> {
    let mut taken = [false; 3];
    let mut directions = [Direction::Right; 3];
    for (axis, direction) in directions.iter_mut().enumerate() {
        let entries = column(&matrix, axis);
        // The first of equals, as numpy's argmax.
        let world = (0..3).filter(|w| !taken[*w]).reduce(|best, w| if entries[w].abs() > entries[best].abs() { w } else { best })?;
        taken[world] = true;
        *direction = Direction::along(world, entries[world] >= 0.0);
    }
    Some(directions)
}

fn column(m: &Matrix, axis: usize) -> [f64; 3] {
    [m[0][axis], m[1][axis], m[2][axis]]
}

fn norms(m: &Matrix) -> [f64; 3] {
    [0, 1, 2].map(|axis| column(m, axis).iter().map(|x| x * x).sum::<f64>().sqrt())
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(header: &NiftiHeader) -> Option<String> {
        geometry(header).map(|(d, _)| d.iter().map(|d| d.letter()).collect())
    }

    fn sform(rows: [[f32; 4]; 3]) -> NiftiHeader {
        let [srow_x, srow_y, srow_z] = rows;
        NiftiHeader { sform_code: 1, srow_x, srow_y, srow_z, dim: [3; 8], ..NiftiHeader::default() }
    }

    #[test]
    fn sform_flips_and_permutes() {
        let header = sform([[0., 0., -2., 9.], [3., 0., 0., 9.], [0., -4., 0., 9.]]);
        assert_eq!(letters(&header).as_deref(), Some("AIL"));
        assert_eq!(geometry(&header).map(|g| g.1), Some([3.0, 4.0, 2.0]));
    }

    #[test]
    fn oblique_takes_the_closest_axes() {
        let (s, c) = 30f32.to_radians().sin_cos();
        let header = sform([[c, 0., s, 0.], [0., -1., 0., 0.], [s, 0., -c, 0.]]);
        assert_eq!(letters(&header).as_deref(), Some("RPI"));
    }

    #[test]
    fn without_forms_i_runs_left() {
        let header = NiftiHeader { sform_code: 0, qform_code: 0, dim: [3; 8], ..NiftiHeader::default() };
        assert_eq!(letters(&header).as_deref(), Some("LAS"));
    }

    #[test]
    fn qform_follows_the_quaternion_and_handedness() {
        // A half turn about the superior axis, and a left-handed grid.
        let mut header = NiftiHeader { sform_code: 0, qform_code: 1, quatern_d: 1.0, dim: [3; 8], ..NiftiHeader::default() };
        assert_eq!(letters(&header).as_deref(), Some("LPS"));
        header.pixdim[0] = -1.0;
        assert_eq!(letters(&header).as_deref(), Some("LPI"));
    }

    #[test]
    fn degenerate_affines_are_refused() {
        let flat = sform([[1., 1., 0., 0.], [1., 1., 0., 0.], [0., 0., 1., 0.]]);
        assert_eq!(letters(&flat), None);
        let empty = sform([[0.; 4]; 3]);
        assert_eq!(letters(&empty), None);
        let nan = sform([[f32::NAN, 0., 0., 0.], [0., 1., 0., 0.], [0., 0., 1., 0.]]);
        assert_eq!(letters(&nan), None);
    }

    #[test]
    fn a_single_slice_needs_no_normal_and_units_are_heeded() {
        let mut header = sform([[0.001, 0., 0., 0.], [0., 0.002, 0., 0.], [0., 0., 0., 0.]]);
        header.dim[0] = 2;
        header.xyzt_units = 1;
        assert_eq!(letters(&header).as_deref(), Some("RAS"));
        let spacing = geometry(&header).map_or([0.0; 3], |g| g.1);
        assert!((spacing[0] - 1.0).abs() < 1e-6 && (spacing[1] - 2.0).abs() < 1e-6);
    }
}
