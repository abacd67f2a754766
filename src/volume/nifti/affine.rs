//! Which patient directions the voxel axes of a NIfTI file run in, and how far apart the voxels are.

use ::nifti::NiftiHeader;

use crate::volume::affine::Affine;
use crate::volume::orient::Direction;
use crate::warning::{Warning, WarningKind};

/// The geometry of a file along its axes i, j, k.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Geometry {
    pub(super) directions: [Direction; 3],
    /// In millimetres.
    pub(super) spacing: [f64; 3],
    /// The columns in the order i, j, k.
    pub(super) affine: Affine,
}

/// Spacings that differ by more than this share contradict each other.
const SPACING_TOLERANCE: f64 = 1e-3;
/// Axes are told as sheared from this deviation from a right angle in degrees.
const SHEAR_TOLERANCE: f64 = 0.5;
/// Grids whose corners lie further apart than this share of a voxel contradict each other.
const CORNER_TOLERANCE: f64 = 1e-2;

/// The 3x3 part of an affine: `m[world][voxel axis]`, world being right, anterior, superior.
type Matrix = [[f64; 3]; 3];

/// The directions of i, j, k, their spacing and the affine in millimetres; `None` if the header's affine is degenerate.
///
/// The sform counts if its code is above 0, else the qform if its code is, else the grid spacing alone with i running
/// to the left (as nibabel has it). The directions are those of nibabel's `io_orientation`: of the orthogonal matrix
/// nearest to the affine, each column in turn takes the world axis it is closest to.
pub(super) fn geometry(header: &NiftiHeader) -> Option<Geometry> {
    let form = form(header);
    let mut matrix = linear(header, form);
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
    let origin = origin(header, form);
    if spacing.iter().any(|s| !(s.is_finite() && *s > 0.0)) || origin.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let scale = match header.xyzt_units & 7 {
        1 => 1e3,
        3 => 1e-3,
        _ => 1.0,
    };
    let affine = Affine { steps: [0, 1, 2].map(|axis| column(&matrix, axis).map(|x| x * scale)), origin: origin.map(|x| x * scale) };
    for row in &mut matrix {
        for (x, s) in row.iter_mut().zip(spacing) {
            *x /= s;
        }
    }
    let directions = closest_axes(nearest_orthogonal(matrix)?)?;
    Some(Geometry { directions, spacing: spacing.map(|s| s * scale), affine })
}

/// Where a header says how its voxels lie in the patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Sform,
    Qform,
    /// The spacing alone.
    Neither,
}

/// The form that counts.
fn form(header: &NiftiHeader) -> Form {
    match (header.sform_code > 0, header.qform_code > 0) {
        (true, _) => Form::Sform,
        (false, true) => Form::Qform,
        (false, false) => Form::Neither,
    }
}

fn origin(header: &NiftiHeader, form: Form) -> [f64; 3] {
    match form {
        Form::Sform => [header.srow_x, header.srow_y, header.srow_z].map(|row| f64::from(row[3])),
        Form::Qform => [header.quatern_x, header.quatern_y, header.quatern_z].map(f64::from),
        // as nibabel: the centre of the volume lies at 0
        Form::Neither => {
            let half = |i: usize| 0.5 * (f64::from(header.dim[i].max(1)) - 1.0) * zoom(header, i);
            [half(1), -half(2), -half(3)]
        }
    }
}

fn zoom(header: &NiftiHeader, i: usize) -> f64 {
    f64::from(header.pixdim[i]).abs()
}

/// What a header says twice in different ways, or not at all, about where its voxels lie.
///
/// `geometry` is what was read of it.
pub(super) fn contradictions(header: &NiftiHeader, geometry: &Geometry, file: &str) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |text: String| warnings.push(Warning::new(WarningKind::Geometry, text));
    let show = |s: [f64; 3]| format!("{:.4}x{:.4}x{:.4} mm", s[0], s[1], s[2]);
    let form = form(header);
    let scale = match header.xyzt_units & 7 {
        1 => 1e3,
        3 => 1e-3,
        _ => 1.0,
    };
    let pixdim = [1, 2, 3].map(|i| zoom(header, i) * scale);
    let used = if header.dim[0] < 3 { 2 } else { 3 };
    let apart = |(a, b): (&f64, &f64)| (a - b).abs() > SPACING_TOLERANCE * a.abs().max(b.abs());
    if form == Form::Sform && geometry.spacing.iter().zip(&pixdim).take(used).any(apart) {
        warn(format!(
            "{file} contradicts itself: its sform has voxels of {}, its pixdim of {} (i, j, k); \
             models of nnU-Net take the pixdim, as its readers do, all others the sform; repair the header",
            show(geometry.spacing),
            show(pixdim)
        ));
    }
    if form == Form::Sform && header.qform_code > 0 {
        let other = linear(header, Form::Qform);
        let qform = Affine {
            steps: [0, 1, 2].map(|axis| column(&other, axis).map(|x| x * scale)),
            origin: origin(header, Form::Qform).map(|x| x * scale),
        };
        let extent = [1, 2, 3].map(|i| if i <= used { u32::from(header.dim[i].max(1)) } else { 1 });
        let apart = geometry.affine.distance(&qform, extent);
        let least = geometry.spacing.iter().copied().fold(f64::INFINITY, f64::min);
        if apart.is_nan() || apart > CORNER_TOLERANCE * least {
            warn(format!(
                "{file} contradicts itself: by its sform and its qform the same voxel lies up to {apart:.3} mm \
                 apart (origins {} and {}); the sform is taken",
                point(geometry.affine.origin),
                point(qform.origin)
            ));
        }
    }
    let shear = geometry.affine.shear_degrees();
    if shear > SHEAR_TOLERANCE {
        warn(format!(
            "{file} is sheared: its axes are {shear:.1} degrees off a right angle (gantry tilt?); \
             networks see its voxels as if they were at right angles"
        ));
    }
    if form == Form::Neither {
        let [i, j, k] = geometry.directions.map(Direction::letter);
        warn(format!(
            "{file} says nothing of its orientation (sform_code and qform_code are 0); \
             i, j, k are taken to run to {i}, {j}, {k}"
        ));
    }
    warnings
}

fn point(p: [f64; 3]) -> String {
    format!("({:.2}, {:.2}, {:.2})", p[0], p[1], p[2])
}

fn linear(header: &NiftiHeader, form: Form) -> Matrix {
    if form == Form::Sform {
        return [header.srow_x, header.srow_y, header.srow_z].map(|row| [f64::from(row[0]), f64::from(row[1]), f64::from(row[2])]);
    }
    let zooms = [1, 2, 3].map(|i| zoom(header, i));
    if form == Form::Qform {
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
        geometry(header).map(|g| g.directions.iter().map(|d| d.letter()).collect())
    }

    fn sform(rows: [[f32; 4]; 3]) -> NiftiHeader {
        let [srow_x, srow_y, srow_z] = rows;
        NiftiHeader { sform_code: 1, srow_x, srow_y, srow_z, dim: [3; 8], ..NiftiHeader::default() }
    }

    #[test]
    fn sform_flips_and_permutes() {
        let header = sform([[0., 0., -2., 9.], [3., 0., 0., 9.], [0., -4., 0., 9.]]);
        assert_eq!(letters(&header).as_deref(), Some("AIL"));
        assert_eq!(geometry(&header).map(|g| g.spacing), Some([3.0, 4.0, 2.0]));
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
        let spacing = geometry(&header).map_or([0.0; 3], |g| g.spacing);
        assert!((spacing[0] - 1.0).abs() < 1e-6 && (spacing[1] - 2.0).abs() < 1e-6);
    }
}
