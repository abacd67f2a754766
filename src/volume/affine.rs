//! The affine map from voxel indices to patient coordinates.

use super::orient::{Axes, Direction};

/// The affine map from the indices (D, H, W) of a voxel to its centre in patient coordinates:
/// right, anterior, superior, in millimetres.
///
/// The columns need not be orthogonal: a scan with gantry tilt is sheared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// The steps from a voxel to the next along D, H and W, each a vector in patient coordinates.
    pub steps: [[f64; 3]; 3],
    /// The centre of voxel (0, 0, 0).
    pub origin: [f64; 3],
}

impl Affine {
    /// The orthogonal grid with these spacings (mm) and directions, whose first voxel lies at 0.
    #[must_use]
    pub fn orthogonal(spacing: [f64; 3], axes: Axes) -> Self {
        let mut steps = [[0.0; 3]; 3];
        for ((step, length), direction) in steps.iter_mut().zip(spacing).zip(axes.directions()) {
            let axis = direction.world_axis();
            step[axis] = if direction == Direction::along(axis, true) { length } else { -length };
        }
        Self { steps, origin: [0.0; 3] }
    }

    /// The centre of a voxel, given its indices, in patient coordinates.
    #[must_use]
    pub fn apply(&self, at: [f64; 3]) -> [f64; 3] {
        [0, 1, 2].map(|row| self.origin[row] + (0..3).map(|axis| self.steps[axis][row] * at[axis]).sum::<f64>())
    }

    /// The distances between neighbouring voxel centres along D, H and W in mm.
    #[must_use]
    pub fn spacing(&self) -> [f64; 3] {
        self.steps.map(|step| step.iter().map(|x| x * x).sum::<f64>().sqrt())
    }

    /// The volume of a voxel in mm³: the absolute value of the determinant.
    #[must_use]
    pub fn voxel_volume(&self) -> f64 {
        let [a, b, c] = self.steps;
        let cross = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
        cross.iter().zip(c).map(|(x, y)| x * y).sum::<f64>().abs()
    }

    /// The products of the steps with each other in mm²: the squared distance between two voxels
    /// whose indices differ by `d` is `d^T G d`.
    #[must_use]
    pub fn metric(&self) -> [[f64; 3]; 3] {
        let product = |a: usize, b: usize| self.steps[a].iter().zip(self.steps[b]).map(|(x, y)| x * y).sum::<f64>();
        [0, 1, 2].map(|a| [0, 1, 2].map(|b| product(a, b)))
    }

    /// The greatest deviation of two axes from a right angle, in degrees; 0 without shear.
    #[must_use]
    pub fn shear_degrees(&self) -> f64 {
        let (g, s) = (self.metric(), self.spacing());
        [(0, 1), (0, 2), (1, 2)]
            .map(|(a, b)| (g[a][b] / (s[a] * s[b])).clamp(-1.0, 1.0).asin().abs().to_degrees())
            .into_iter()
            .fold(0.0, f64::max)
    }

    /// The greatest distance in mm between the places that two affines give the same corner voxel of
    /// a volume of this extent.
    pub(crate) fn distance(&self, other: &Self, extent: [u32; 3]) -> f64 {
        let corner = |bits: usize| [0, 1, 2].map(|axis| if bits >> axis & 1 == 1 { f64::from(extent[axis].max(1)) - 1.0 } else { 0.0 });
        let between = |bits: usize| {
            let (a, b) = (self.apply(corner(bits)), other.apply(corner(bits)));
            a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
        };
        (0..8).map(between).fold(0.0, |most, d| if d <= most { most } else { d })
    }

    /// The affine of the same voxels seen along other axes: `source[a]` is the old axis that the new
    /// axis `a` runs along, `last[a]` its last index where it is flipped.
    pub(crate) fn reoriented(&self, source: [usize; 3], last: [Option<usize>; 3]) -> Self {
        let mut origin = self.origin;
        let mut steps = source.map(|axis| self.steps[axis]);
        for (step, last) in steps.iter_mut().zip(last) {
            if let Some(last) = last {
                for (o, x) in origin.iter_mut().zip(step.iter_mut()) {
                    *o += *x * last as f64;
                    *x = -*x;
                }
            }
        }
        Self { steps, origin }
    }

    /// The affine of a box of the voxels, or of a larger one, whose first voxel has these indices.
    pub(crate) fn shifted(&self, first: [f64; 3]) -> Self {
        Self { origin: self.apply(first), ..*self }
    }

    /// The affine of another number of voxels over the same field, outer faces kept:
    /// `scale[a]` old voxels make a new one.
    pub(crate) fn scaled(&self, scale: [f64; 3]) -> Self {
        let mut steps = self.steps;
        for (step, k) in steps.iter_mut().zip(scale) {
            step.iter_mut().for_each(|x| *x *= k);
        }
        Self { steps, origin: self.apply(scale.map(|k| 0.5 * k - 0.5)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Extent;
    use crate::volume::{Volume, VolumeError, reorient};

    #[test]
    fn sheared_voxels_have_the_determinants_volume() -> Result<(), VolumeError> {
        let mut affine = Affine::orthogonal([2.0, 3.0, 4.0], "SAL".parse()?);
        assert_eq!(affine.steps, [[0.0, 0.0, 2.0], [0.0, 3.0, 0.0], [-4.0, 0.0, 0.0]]);
        assert_eq!((affine.voxel_volume(), affine.shear_degrees()), (24.0, 0.0));
        affine.steps[0][1] = 2.0;
        assert!((affine.voxel_volume() - 24.0).abs() < 1e-12);
        assert!((affine.shear_degrees() - 45.0).abs() < 1e-9);
        assert!((affine.spacing()[0] - 8f64.sqrt()).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn a_voxel_keeps_its_place_along_other_axes() -> Result<(), VolumeError> {
        let data: Vec<u16> = (0..24).collect();
        let mut v = Volume::new(1, Extent::new(2, 3, 4), [2.0, 3.0, 4.0], "SAR".parse()?, data)?;
        v = v.with_affine(Affine { steps: [[0.1, 0.2, 2.0], [0.3, 3.0, 0.1], [4.0, -0.2, 0.3]], origin: [10.0, -20.0, 30.0] });
        let turned = reorient(&v, "LIP".parse()?);
        assert_eq!(turned.extent, Extent::new(4, 2, 3));
        // voxel (1, 2, 3) becomes (3 - 3, 1 - 1, 2 - 2)
        let (a, b) = (v.affine().apply([1.0, 2.0, 3.0]), turned.affine().apply([0.0; 3]));
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} {b:?}");
        let back = reorient(&turned, v.axes);
        let near = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near(back.affine().origin, v.affine().origin));
        assert_eq!(back.affine().steps, v.affine().steps);
        let half = v.affine().scaled([0.5, 1.0, 1.0]);
        assert!(near(half.apply([0.5, 0.0, 0.0]), v.affine().origin));
        Ok(())
    }
}
