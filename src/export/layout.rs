//! Where the voxels of a box of the network's grid lie in a scan.

use crate::shape::Extent;
use crate::volume::orient::View;
use crate::volume::{Affine, Axes, Volume, VolumeError, VolumeErrorKind, sizes};

/// A box of a grid whose axes are those of a scan in another order or direction.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Voxels of the box along D, H, W.
    pub(crate) size: [usize; 3],
    /// The place of its first voxel in the scan, and the steps along its axes.
    start: isize,
    steps: [isize; 3],
    /// The scan's grid.
    extent: Extent,
    spacing: [f64; 3],
    axes: Axes,
    affine: Affine,
}

impl Layout {
    /// The box of `size` voxels that begins at `first` of the grid of `whole` voxels of `spacing` along
    /// `from`, in the scan whose axes are `to` and whose voxels lie at `affine`.
    pub(crate) fn new(
        (whole, spacing, from): (Extent, [f64; 3], Axes),
        (first, size): ([usize; 3], [usize; 3]),
        (to, affine): (Axes, Affine),
    ) -> Self {
        let view = View::of(whole, spacing, from, to);
        let (origin, steps) = view.placed();
        let start = (0..3).fold(origin, |at, axis| at + first[axis].cast_signed() * steps[axis]);
        let extent = Extent::from(view.sizes.map(|n| u32::try_from(n).unwrap_or(u32::MAX)));
        Self { size, start, steps, extent, spacing: view.spacing, axes: to, affine }
    }

    /// The same voxels where another header says that they lie.
    pub(crate) fn on<T>(self, grid: &Volume<T>) -> Result<Self, VolumeError> {
        if grid.extent != self.extent {
            let text = format!("voxels over {} do not lie on a grid of {}", self.extent, grid.extent);
            return Err(VolumeError::new(VolumeErrorKind::GridMismatch, text));
        }
        Ok(Self { spacing: grid.spacing, axes: grid.axes, affine: *grid.affine(), ..self })
    }

    /// The extent of the scan, and its axes.
    #[cfg(feature = "nifti")]
    pub(crate) fn grid(&self) -> (Extent, Axes) {
        (self.extent, self.axes)
    }

    /// Voxels of the scan.
    pub(crate) fn voxels(&self) -> usize {
        sizes(self.extent).iter().product()
    }

    /// Puts plane `z` of the box, `[H][W]`, to its place among the voxels of the scan.
    pub(crate) fn put<T: Copy>(&self, z: usize, plane: &[T], scan: &mut [T]) {
        let [deep, high, wide] = self.steps;
        let start = self.start + z.cast_signed() * deep;
        for (y, line) in plane.chunks_exact(self.size[2]).enumerate() {
            let start = start + y.cast_signed() * high;
            if wide == 1 {
                let start = start.unsigned_abs();
                scan[start..start + line.len()].copy_from_slice(line);
                continue;
            }
            for (x, &value) in line.iter().enumerate() {
                scan[(start + x.cast_signed() * wide).unsigned_abs()] = value;
            }
        }
    }

    /// The values as a volume on the scan's grid.
    pub(crate) fn volume<T>(&self, channels: u32, data: Vec<T>) -> Result<Volume<T>, VolumeError> {
        let volume = Volume::new(channels, self.extent, self.spacing, self.axes, data)?;
        Ok(volume.with_affine(self.affine))
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "numbers of tests")]
mod tests {
    use super::*;
    use crate::volume::reorient;

    #[test]
    fn planes_land_where_reorienting_brings_them() -> Result<(), VolumeError> {
        let (whole, spacing) = (Extent::new(3, 4, 5), [2.0, 3.0, 4.0]);
        let from: Axes = "SAR".parse()?;
        for to in ["SAR", "RAS", "LPI", "ARI", "PSL", "IRP", "RIA"] {
            let to: Axes = to.parse()?;
            let (first, size) = ([1, 0, 2], [2, 3, 3]);
            let mut pasted = vec![0u16; 60];
            let inside = |at: usize| [at / 20, at / 5 % 4, at % 5];
            for (at, value) in (0..60).zip(&mut pasted) {
                let i = inside(at);
                let within = (0..3).all(|a| (first[a]..first[a] + size[a]).contains(&i[a]));
                *value = if within { at as u16 + 1 } else { 0 };
            }
            let volume = Volume::new(1, whole, spacing, from, pasted)?;
            let want = reorient(&volume, to);
            let layout = Layout::new((whole, spacing, from), (first, size), (to, *want.affine()));
            let mut scan = vec![0; layout.voxels()];
            for z in 0..2 {
                let at = |y: usize, x: usize| ((z + 1) * 4 + y) * 5 + x + 2;
                let plane: Vec<u16> = (0..9).map(|i| at(i / 3, i % 3) as u16 + 1).collect();
                layout.put(z, &plane, &mut scan);
            }
            assert_eq!(layout.volume(1, scan)?, want, "{to}");
            assert_eq!(layout.clone().on(&want)?.volume(1, want.data.clone())?, want);
            let other = Volume::new(1, Extent::new(1, 2, 30), spacing, to, vec![0u16; 60])?;
            assert_eq!(layout.on(&other).err().map(|e| e.kind()), Some(VolumeErrorKind::GridMismatch));
        }
        Ok(())
    }
}
