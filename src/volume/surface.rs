//! Surfaces of labels: closed meshes of triangles, by surface nets.

mod write;

use fast_surface_nets::ndshape::{RuntimeShape, Shape};
use fast_surface_nets::{SignedDistance, SurfaceNetsBuffer, surface_nets};

use super::{LabelStatistics, Legend, Volume, VolumeError, VolumeErrorKind, sizes, statistics};

pub use write::{SurfaceFormat, write_surfaces};

/// Pairs of steps that smooth a surface: one inwards, one outwards by a little more, so that
/// volumes stay (Taubin 1995).
const SMOOTHINGS: usize = 10;
const STEPS: [f32; 2] = [0.5, -0.53];

/// The surface of a label.
///
/// It is closed: every edge is passed as often in one direction as in the other. Where voxels touch
/// at an edge alone, four triangles meet there.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Surface {
    /// The number of the label.
    pub label: u16,
    /// Its name.
    pub name: String,
    /// Red, green, blue.
    pub colour: [u8; 3],
    /// Points in mm to the right, the front and the head.
    pub vertices: Vec<[f64; 3]>,
    /// Triangles as three positions in `vertices`, counter-clockwise as seen from outside.
    pub triangles: Vec<[u32; 3]>,
}

impl Surface {
    /// The volume within in millilitres.
    #[must_use]
    pub fn ml(&self) -> f64 {
        signed_volume(&self.vertices, &self.triangles) / 1000.0
    }
}

/// Six times the tetrahedra from the first vertex, which lies near, to all triangles, by 6.
fn signed_volume(vertices: &[[f64; 3]], triangles: &[[u32; 3]]) -> f64 {
    let Some(&near) = vertices.first() else { return 0.0 };
    let from = |i: u32| [0, 1, 2].map(|axis| vertices[i as usize][axis] - near[axis]);
    let six = |triangle: &[u32; 3]| {
        let [a, b, c] = triangle.map(from);
        a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])
    };
    triangles.iter().map(six).sum::<f64>() / 6.0
}

/// A voxel inside or outside of a label.
#[derive(Clone, Copy)]
struct Side(bool);

impl From<Side> for f32 {
    fn from(side: Side) -> Self {
        if side.0 { -1.0 } else { 1.0 }
    }
}

impl SignedDistance for Side {
    fn is_negative(self) -> bool {
        self.0
    }
}

/// The surfaces of the labels that occur, in the order of their numbers, with names and colours of
/// a legend.
///
/// Surfaces lie between voxels: no vertex leaves the box of the eight voxel centres around it, as
/// in the constrained surface nets of Gibson (1998).
///
/// # Errors
/// [`VolumeErrorKind::TooLarge`] for a label over 2^32 voxels; [`VolumeErrorKind::GridMismatch`]
/// for several labels a voxel.
pub fn surfaces(labels: &Volume<u16>, legend: &Legend) -> Result<Vec<Surface>, VolumeError> {
    occurring(labels, legend)?.iter().map(|one| surface(labels, one)).collect()
}

/// The labels that have voxels.
fn occurring(labels: &Volume<u16>, legend: &Legend) -> Result<Vec<LabelStatistics>, VolumeError> {
    if labels.channels != 1 {
        let text = format!("surfaces are of one label a voxel, and there are {}", labels.channels);
        return Err(VolumeError::new(VolumeErrorKind::GridMismatch, text));
    }
    Ok(statistics(labels, legend, None)?.into_iter().filter(|one| one.voxels > 0).collect())
}

/// The surface of a label that was measured.
fn surface(labels: &Volume<u16>, one: &LabelStatistics) -> Result<Surface, VolumeError> {
    let sides = one.box_voxels.unwrap_or_default();
    // with a voxel around that is outside, and one more after the last: the crate makes no faces of the last cells
    let shape = sides.map(|[first, last]| u64::from(last - first) + 4);
    let shape32 = shape.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    if shape.iter().product::<u64>() > u64::from(u32::MAX) {
        let text = format!("the surface of {}: its box has more than 2^32 voxels", one.name);
        return Err(VolumeError::new(VolumeErrorKind::TooLarge, text));
    }
    let grid = RuntimeShape::<u32, 3>::new(shape32);
    let mut voxels = vec![Side(false); grid.usize()];
    let [_, height, width] = sizes(labels.extent);
    let [[i0, i1], j, k] = sides.map(|side| side.map(|at| at as usize));
    let columns = shape32[0] as usize;
    for (z, at) in (k[0]..=k[1]).enumerate() {
        for (y, row) in (j[0]..=j[1]).enumerate() {
            let from = (at * height + row) * width;
            let to = ((z + 1) * shape32[1] as usize + y + 1) * columns + 1;
            for (side, label) in voxels[to..].iter_mut().zip(&labels.data[from + i0..=from + i1]) {
                *side = Side(*label == one.label);
            }
        }
    }
    let mut net = SurfaceNetsBuffer::default();
    surface_nets(&voxels, &grid, [0; 3], shape32.map(|n| n - 1), &mut net);
    drop(voxels);
    smooth(&mut net);
    let place = |p: &[f32; 3]| {
        let index = [0, 1, 2].map(|axis| f64::from(p[axis]) - 1.0 + f64::from(sides[axis][0]));
        labels.affine().apply([index[2], index[1], index[0]])
    };
    let vertices: Vec<[f64; 3]> = net.positions.iter().map(place).collect();
    let mut triangles: Vec<[u32; 3]> = net.indices.chunks_exact(3).map(|t| [t[0], t[1], t[2]]).collect();
    if signed_volume(&vertices, &triangles) < 0.0 {
        // the axes of the grid are left-handed
        triangles.iter_mut().for_each(|t| t.swap(1, 2));
    }
    let colour = super::legend::colour(one.label);
    Ok(Surface { label: one.label, name: one.name.clone(), colour, vertices, triangles })
}

/// Moves vertices towards the middle of their neighbours and back, within their cells.
fn smooth(net: &mut SurfaceNetsBuffer) {
    // two triangles after each other are a quadrilateral: its diagonal, whose ends come twice, is no
    // edge of the net
    let mut edges = Vec::with_capacity(net.indices.len() * 2 / 3);
    for six in net.indices.chunks_exact(6) {
        let (first, second) = six.split_at(3);
        let corners = [(first, second), (second, first)].map(|(one, other)| one.iter().find(|v| !other.contains(v)));
        for end in first.iter().filter(|v| second.contains(v)) {
            edges.extend(corners.iter().flatten().map(|corner| [*end, **corner]));
        }
    }
    let mut sums = vec![[0.0f32; 4]; net.positions.len()];
    for step in STEPS.into_iter().cycle().take(2 * SMOOTHINGS) {
        sums.fill([0.0; 4]);
        for &ends in &edges {
            let [a, b] = ends.map(|end| end as usize);
            for (to, from) in [(a, b), (b, a)] {
                let [x, y, z] = net.positions[from];
                sums[to].iter_mut().zip([x, y, z, 1.0]).for_each(|(sum, x)| *sum += x);
            }
        }
        for ((position, cell), sum) in net.positions.iter_mut().zip(&net.surface_points).zip(&sums) {
            for axis in 0..3 {
                #[expect(clippy::cast_precision_loss, reason = "a voxel's index")]
                let low = cell[axis] as f32;
                let moved = position[axis] + step * (sum[axis] / sum[3].max(1.0) - position[axis]);
                position[axis] = moved.clamp(low, low + 1.0);
            }
        }
    }
}

#[cfg(test)]
mod tests;
