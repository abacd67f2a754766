//! Which patient directions the voxel axes of a NIfTI file run in, and how far apart the voxels are.

use ::nifti::NiftiHeader;

use super::extended::Extended;
use crate::volume::affine::Affine;
use crate::volume::closest::{self, Matrix, column, cross, norms};
use crate::volume::orient::Direction;
use crate::warning::{Warning, WarningKind};

/// The geometry of a header of NIfTI-1 or 2, in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fields {
    /// The number of dimensions, and their sizes.
    pub(super) dim: [i64; 8],
    pub(super) pixdim: [f64; 8],
    pub(super) qform_code: i32,
    pub(super) sform_code: i32,
    pub(super) quaternion: [f64; 3],
    pub(super) offset: [f64; 3],
    pub(super) srow: [[f64; 4]; 3],
    pub(super) units: u8,
}

impl From<&NiftiHeader> for Fields {
    fn from(h: &NiftiHeader) -> Self {
        Self {
            dim: h.dim.map(i64::from),
            pixdim: h.pixdim.map(f64::from),
            qform_code: h.qform_code.into(),
            sform_code: h.sform_code.into(),
            quaternion: [h.quatern_b, h.quatern_c, h.quatern_d].map(f64::from),
            offset: [h.quatern_x, h.quatern_y, h.quatern_z].map(f64::from),
            srow: [h.srow_x, h.srow_y, h.srow_z].map(|row| row.map(f64::from)),
            units: h.xyzt_units,
        }
    }
}

impl Fields {
    /// The number of dimensions.
    pub(super) fn rank(&self) -> usize {
        usize::try_from(self.dim[0]).unwrap_or(0)
    }
}

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

/// The directions of i, j, k, their spacing and the affine in millimetres; `None` if the header's
/// affine is degenerate.
///
/// The sform counts if its code is above 0, else the qform if its code is, else the grid spacing alone with i running
/// to the left. All numbers are nibabel's to the last bit (on x86), and the directions those of its `io_orientation`.
pub(super) fn geometry(header: impl Into<Fields>) -> Option<Geometry> {
    let header = &header.into();
    let form = form(header);
    placed(header, linear(header, form), origin(header, form))
}

/// The geometry of a grid with these columns and this origin in the header's unit.
fn placed(header: &Fields, mut matrix: Matrix, origin: [f64; 3]) -> Option<Geometry> {
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
    if spacing.iter().any(|s| !(s.is_finite() && *s > 0.0)) || origin.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let scale = unit(header);
    let affine = Affine { steps: [0, 1, 2].map(|axis| column(&matrix, axis).map(|x| x * scale)), origin: origin.map(|x| x * scale) };
    let directions = closest::directions(matrix)?;
    Some(Geometry { directions, spacing: spacing.map(|s| s * scale), affine })
}

/// The header's unit of length in millimetres; none stands for millimetres.
pub(super) fn unit(header: &Fields) -> f64 {
    match header.units & 7 {
        1 => 1e3,
        3 => 1e-3,
        _ => 1.0,
    }
}

/// The geometry that MONAI's reader gives a file, where it is another than [`geometry`]: where the
/// spacing of the sform is not the pixdim, to one part in 10^5, the qform in numbers of f32
/// (MONAI's `rectify_header_sform_qform`), whatever its code.
pub(super) fn rectified(header: &Fields) -> Option<Geometry> {
    let rank = header.rank();
    if form(header) != Form::Sform || rank >= 5 {
        return None;
    }
    let (sform, qform) = (linear(header, Form::Sform), linear(header, Form::Qform));
    // of an image of four dimensions the origin counts as a column
    let norms = |matrix: &Matrix, origin: [f64; 3]| {
        let rows = rank.min(3);
        let norm = |axis: usize| {
            let entry = |row: usize| if axis == 3 { origin[row] } else { matrix[row][axis] };
            let square = (0..rows).map(|row| entry(row) * entry(row)).sum::<f64>();
            let norm = if axis == 3 { (square + 1.0).sqrt() } else { square.sqrt() };
            if norm == 0.0 { 1.0 } else { norm }
        };
        (0..rank).map(norm).collect::<Vec<_>>()
    };
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-8 + 1e-5 * b.abs());
    let pixdim: Vec<f64> = (1..=rank).map(|i| zoom(header, i)).collect();
    let of_sform = norms(&sform, origin(header, Form::Sform));
    let of_qform = norms(&qform, origin(header, Form::Qform));
    if close(&pixdim, &of_sform) || close(&of_sform, &pixdim) || !close(&of_qform, &pixdim) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "it goes through the header's f32")]
    let single = qform.map(|row| row.map(|x| f64::from(x as f32)));
    placed(header, single, origin(header, Form::Qform))
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
fn form(header: &Fields) -> Form {
    match (header.sform_code > 0, header.qform_code > 0) {
        (true, _) => Form::Sform,
        (false, true) => Form::Qform,
        (false, false) => Form::Neither,
    }
}

fn origin(header: &Fields, form: Form) -> [f64; 3] {
    match form {
        Form::Sform => header.srow.map(|row| row[3]),
        Form::Qform => header.offset,
        // as nibabel: the centre of the volume lies at 0
        Form::Neither => {
            let half = |i: usize| 0.5 * (extent(header, i) - 1.0) * zoom(header, i);
            [half(1), -half(2), -half(3)]
        }
    }
}

fn zoom(header: &Fields, i: usize) -> f64 {
    header.pixdim[i].abs()
}

#[expect(clippy::cast_precision_loss, reason = "larger extents are refused")]
fn extent(header: &Fields, i: usize) -> f64 {
    header.dim[i].max(1) as f64
}

/// Warnings of a header that says where its voxels lie twice in different ways, or not at all.
///
/// `geometry` is what was read of it.
pub(super) fn contradictions(header: &Fields, geometry: &Geometry, file: &str) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |text: String| warnings.push(Warning::new(WarningKind::Geometry, text));
    let show = |s: [f64; 3]| format!("{:.4}x{:.4}x{:.4} mm", s[0], s[1], s[2]);
    let form = form(header);
    let scale = unit(header);
    let pixdim = [1, 2, 3].map(|i| zoom(header, i) * scale);
    let used = if header.dim[0] < 3 { 2 } else { 3 };
    let apart = |(a, b): (&f64, &f64)| (a - b).abs() > SPACING_TOLERANCE * a.abs().max(b.abs());
    if form == Form::Sform && geometry.spacing.iter().zip(&pixdim).take(used).any(apart) {
        warn(format!(
            "{file} contradicts itself: its sform has voxels of {}, its pixdim of {} (i, j, k); \
             models of nnU-Net take the pixdim, as its readers do, those of MONAI the qform with the pixdim, \
             all others the sform; repair the header",
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
        let extent = [1, 2, 3].map(|i| if i <= used { u32::try_from(header.dim[i].max(1)).unwrap_or(u32::MAX) } else { 1 });
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

fn linear(header: &Fields, form: Form) -> Matrix {
    if form == Form::Sform {
        return header.srow.map(|row| [row[0], row[1], row[2]]);
    }
    let zooms = [1, 2, 3].map(|i| zoom(header, i));
    if form == Form::Qform {
        let handedness = if header.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
        return rotation(header.quaternion, [zooms[0], zooms[1], zooms[2] * handedness]);
    }
    [[-zooms[0], 0.0, 0.0], [0.0, zooms[1], 0.0], [0.0, 0.0, zooms[2]]]
}

/// The matrix of a quaternion with the vector part `v`, whose columns are `zooms` long: in the
/// steps of nibabel's `fillpositive` and `quat2mat`.
fn rotation(v: [f64; 3], zooms: [f64; 3]) -> Matrix {
    if v.iter().chain(&zooms).any(|x| !x.is_finite()) {
        return [[f64::NAN; 3]; 3];
    }
    let [one, two] = [1.0, 2.0].map(Extended::new);
    let mut v = v.map(Extended::new);
    let mut square = one - (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    if square.to_f64().abs() < 3.0 * f64::from(f32::EPSILON) {
        square = Extended::ZERO;
    } else if square.is_negative() {
        // nibabel refuses it; as the NIfTI library has it, it is a half turn about that axis
        let length = (one - square).square_root();
        v = v.map(|x| x / length);
        square = Extended::ZERO;
    }
    let w = square.square_root();
    let [x, y, z] = v;
    let s = two / (w * w + x * x + y * y + z * z);
    let scaled = v.map(|a| a * s);
    let [wx, wy, wz] = scaled.map(|a| w * a);
    let [xx, xy, xz] = scaled.map(|a| x * a);
    let [_, yy, yz] = scaled.map(|a| y * a);
    let zz = z * scaled[2];
    let rows = [[one - (yy + zz), xy - wz, xz + wy], [xy + wz, one - (xx + zz), yz - wx], [xz - wy, yz + wx, one - (xx + yy)]];
    let zooms = zooms.map(Extended::new);
    rows.map(|row| [0, 1, 2].map(|axis| (row[axis] * zooms[axis]).to_f64()))
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
