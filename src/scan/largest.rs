//! The largest connected part of labels, as `KeepLargestConnectedComponent` of MONAI finds it with
//! scikit-image.

use serde::{Deserialize, Serialize};

use super::components::Components;

/// `KeepLargestConnectedComponent` on labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Largest {
    /// The labels that it is done to; none for all but 0.
    #[serde(default)]
    pub labels: Vec<u32>,
    /// Whether one part of all of them together is kept, instead of one of each.
    #[serde(default)]
    pub union: bool,
    /// Along how many axes neighbours may differ by one voxel: 1 to 3.
    pub connectivity: u32,
    /// Whether it is done before labels go the way back.
    pub first: bool,
}

/// Sets labels to 0 that are not in the largest part of their kind, `[D][H][W]`.
pub(crate) fn keep(labels: &mut [u16], n: [usize; 3], largest: &Largest) {
    let mut kinds: Vec<u16> = largest.labels.iter().filter_map(|&l| u16::try_from(l).ok()).collect();
    if kinds.is_empty() {
        kinds = labels.iter().copied().filter(|&l| l != 0).collect();
        kinds.sort_unstable();
        kinds.dedup();
    }
    let mut apart = |of: &[u16]| {
        let mask: Vec<bool> = labels.iter().map(|label| of.contains(label)).collect();
        let kept = part(&mask, n, largest.connectivity);
        for ((label, mask), kept) in labels.iter_mut().zip(mask).zip(kept) {
            if mask && !kept {
                *label = 0;
            }
        }
    };
    if largest.union {
        apart(&kinds);
    } else {
        kinds.iter().for_each(|kind| apart(std::slice::from_ref(kind)));
    }
}

/// The largest part of a mask; of several equally large the last in storage order.
fn part(mask: &[bool], n: [usize; 3], connectivity: u32) -> Vec<bool> {
    let (number, sizes) = parts(mask, n, connectivity);
    let best = (1..).zip(&sizes).max_by_key(|(_, size)| **size).map_or(0, |(best, _)| best);
    number.iter().map(|&number| number != 0 && number == best).collect()
}

/// The number of the part of a mask that each voxel is in, from 1 on in storage order, 0 outside,
/// and the voxels of each part. Voxels are neighbours if they differ by 1 along at most so many
/// axes.
pub(super) fn parts(mask: &[bool], n: [usize; 3], connectivity: u32) -> (Vec<u32>, Vec<u64>) {
    let components = Components::of(n, connectivity, |at| mask[at]);
    let mut number = vec![0; mask.len()];
    for (voxels, component) in components.runs() {
        number[voxels].fill(u32::try_from(component + 1).unwrap_or(u32::MAX));
    }
    (number, components.sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_part_stays() {
        let kept = |labels: &[u16], largest: Largest| {
            let mut labels = labels.to_vec();
            keep(&mut labels, [1, 3, 4], &largest);
            labels
        };
        let plane = [1, 0, 2, 2, 0, 1, 0, 0, 1, 0, 0, 2];
        let each = Largest { labels: vec![], union: false, connectivity: 3, first: true };
        assert_eq!(kept(&plane, each.clone()), [1, 0, 2, 2, 0, 1, 0, 0, 1, 0, 0, 0], "diagonals are neighbours");
        assert_eq!(kept(&plane, Largest { connectivity: 1, ..each.clone() }), [0, 0, 2, 2, 0, 0, 0, 0, 1, 0, 0, 0], "of three the last");
        assert_eq!(kept(&plane, Largest { labels: vec![2], ..each.clone() }), [1, 0, 2, 2, 0, 1, 0, 0, 1, 0, 0, 0]);
        let both = [1, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
        assert_eq!(kept(&both, Largest { union: true, connectivity: 1, ..each }), [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
    }
}
