//! The box that holds all voxels but those around the patient.

use crate::shape::Extent;
use crate::volume::{Volume, sizes};

/// Where any channel is not 0, holes filled: `[D][H][W]`. Holes are what no path of neighbours that share a face leads to from
/// outside the volume.
pub(crate) fn body(volume: &Volume<f32>) -> Vec<bool> {
    let [d, h, w] = sizes(volume.extent);
    let voxels = d * h * w;
    let mut filled = vec![true; voxels];
    let empty = |at: usize| volume.data.iter().skip(at).step_by(voxels).all(|&v| v == 0.0);
    let mut reached = Vec::new();
    let mut reach = |at: usize, reached: &mut Vec<usize>| {
        if filled[at] && empty(at) {
            filled[at] = false;
            reached.push(at);
        }
    };
    for z in 0..d {
        for y in 0..h {
            let whole = z == 0 || z + 1 == d || y == 0 || y + 1 == h;
            for x in (0..w).filter(|&x| whole || x == 0 || x + 1 == w) {
                reach((z * h + y) * w + x, &mut reached);
            }
        }
    }
    while let Some(at) = reached.pop() {
        let (z, y, x) = (at / (h * w), at / w % h, at % w);
        for (step, i, n) in [(h * w, z, d), (w, y, h), (1, x, w)] {
            if i > 0 {
                reach(at - step, &mut reached);
            }
            if i + 1 < n {
                reach(at + step, &mut reached);
            }
        }
    }
    filled
}

/// First voxel and extent of the smallest box around all voxels that are set; the whole if there is none.
pub(crate) fn bounds(mask: &[bool], extent: Extent) -> ([usize; 3], [usize; 3]) {
    let n = sizes(extent);
    let (mut first, mut end) = (n, [0; 3]);
    for (at, _) in mask.iter().enumerate().filter(|(_, set)| **set) {
        for (axis, i) in [at / (n[1] * n[2]), at / n[2] % n[1], at % n[2]].into_iter().enumerate() {
            first[axis] = first[axis].min(i);
            end[axis] = end[axis].max(i + 1);
        }
    }
    if end == [0; 3] { ([0; 3], n) } else { (first, [0, 1, 2].map(|a| end[a] - first[a])) }
}

/// The values of a box in `[C][D][H][W]` of extent `n`.
pub(crate) fn cut<T: Copy>(values: &[T], n: [usize; 3], first: [usize; 3], size: [usize; 3]) -> Vec<T> {
    let mut out = Vec::with_capacity(values.len() / n.iter().product::<usize>().max(1) * size.iter().product::<usize>());
    for channel in values.chunks_exact(n.iter().product::<usize>().max(1)) {
        for z in 0..size[0] {
            for y in 0..size[1] {
                let from = ((first[0] + z) * n[1] + first[1] + y) * n[2] + first[2];
                out.extend_from_slice(&channel[from..from + size[2]]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::VolumeError;

    #[test]
    fn holes_are_filled_and_the_outside_is_cut() -> Result<(), VolumeError> {
        let n = [7, 8, 9];
        let inside = |at: usize| [at / 72, at / 9 % 8, at % 9].into_iter().all(|i| (2..5).contains(&i));
        let mut data = vec![0.0; 2 * 504];
        for at in (0..504).filter(|&at| inside(at)) {
            data[at + if at % 2 == 0 { 504 } else { 0 }] = -1.0;
        }
        let centre = (3 * 8 + 3) * 9 + 3;
        (data[centre], data[centre + 504]) = (0.0, 0.0);
        let volume = Volume::new(2, Extent::new(7, 8, 9), [1.0; 3], "SAR".parse()?, data)?;
        let mask = body(&volume);
        assert!((0..504).all(|at| mask[at] == inside(at)));
        let (first, size) = bounds(&mask, volume.extent);
        assert_eq!((first, size), ([2; 3], [3; 3]));
        let cropped = cut(&mask, n, first, size);
        assert!(cropped.len() == 27 && cropped.iter().all(|&m| m));
        // a slice has no inside: what is empty in it is outside; and where all is empty, all stays
        let ring = Volume::new(1, Extent::new(1, 3, 3), [1.0; 3], "SAR".parse()?, vec![1., 1., 1., 1., 0., 1., 1., 1., 1.])?;
        assert!(!body(&ring)[4]);
        assert_eq!(bounds(&[false; 9], ring.extent), ([0; 3], [1, 3, 3]));
        Ok(())
    }
}
