//! Transforms of labels: MONAI's (the largest part kept, small parts removed, holes filled), and
//! nnU-Net's removal of all but the largest components.

use serde::{Deserialize, Serialize};

use super::components::Components;
use super::largest::{Largest, keep, parts};
use super::recipe::is_default;

/// A transform of labels, after MONAI's of about the same name, or nnU-Net's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "filter", rename_all = "snake_case", deny_unknown_fields)]
pub enum Filter {
    /// `KeepLargestConnectedComponent`; whether it is `first` is said beside it.
    KeepLargest(Largest),
    /// `RemoveSmallObjects`: parts of no more voxels become 0, as scikit-image reads MONAI's
    /// argument since 0.26. Where there are labels above 1, all voxels of a label count as one
    /// part, connected or not, as it counts them.
    RemoveSmall {
        /// The most voxels of a part that goes.
        min_size: u64,
        /// Along how many axes neighbours may differ by one voxel: 1 to 3.
        connectivity: u32,
        /// Whether parts are those of all labels together.
        #[serde(default, skip_serializing_if = "is_default")]
        union: bool,
    },
    /// `FillHoles`: what a label encloses becomes that label, one label after another.
    FillHoles {
        /// The labels that it is done to; none for all but 0.
        #[serde(default, skip_serializing_if = "is_default")]
        labels: Vec<u32>,
        /// Along how many axes neighbours may differ by one voxel: 1 to 3.
        connectivity: u32,
    },
    /// nnU-Net's post-processing: the voxels of some labels together fall into components, of which
    /// those smaller than the largest become background. Of several largest ones all stay.
    LargestComponents {
        /// The labels that are taken together; none for each but 0 by itself.
        #[serde(default, skip_serializing_if = "is_default")]
        labels: Vec<u16>,
        /// Along how many axes neighbours may differ by one voxel: 1 to 3.
        connectivity: u32,
        /// The label of what is removed.
        #[serde(default, skip_serializing_if = "is_default")]
        background: u16,
        /// The volume in mm³ from which on components stay though they are smaller than the
        /// largest; `None`: they all go.
        #[serde(default, skip_serializing_if = "is_default")]
        keep_mm3: Option<f64>,
    },
}

/// A transform of labels, and whether it is done before they go the way back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Filtered {
    pub(crate) filter: Filter,
    pub(crate) first: bool,
}

/// Applies those of the transforms that come before the way back, or those after it, to labels
/// `[D][H][W]` whose voxels have a volume in mm³.
pub(crate) fn apply(filters: &[Filtered], first: bool, labels: &mut [u16], n: [usize; 3], voxel_mm3: f64) {
    for filtered in filters.iter().filter(|filtered| filtered.first == first) {
        match &filtered.filter {
            Filter::KeepLargest(largest) => keep(labels, n, largest),
            Filter::RemoveSmall { min_size, connectivity, union } => remove_small(labels, n, *min_size, *connectivity, *union),
            Filter::FillHoles { labels: of, connectivity } => fill_holes(labels, n, of, *connectivity),
            Filter::LargestComponents { labels: of, connectivity, background, keep_mm3 } => {
                let keeps = |size: u64, largest: u64| {
                    #[expect(clippy::cast_precision_loss, reason = "a volume in mm³")]
                    let mm3 = size as f64 * voxel_mm3;
                    size == largest || keep_mm3.is_some_and(|least| mm3 >= least)
                };
                largest_components(labels, n, of, *connectivity, *background, &keeps);
            }
        }
    }
}

/// Gives the label of the background to components that do not stay for their size and that of the
/// largest.
fn largest_components(
    labels: &mut [u16],
    n: [usize; 3],
    of: &[u16],
    connectivity: u32,
    background: u16,
    keeps: &impl Fn(u64, u64) -> bool,
) {
    if of.is_empty() {
        let mut there = vec![false; usize::from(u16::MAX) + 1];
        labels.iter().for_each(|&label| there[usize::from(label)] = true);
        for label in (1..=u16::MAX).filter(|&label| there[usize::from(label)]) {
            largest_components(labels, n, &[label], connectivity, background, keeps);
        }
        return;
    }
    let components = Components::of(n, connectivity, |at| of.contains(&labels[at]));
    let largest = components.sizes.iter().copied().max().unwrap_or(0);
    for (voxels, component) in components.runs() {
        if !keeps(components.sizes[component], largest) {
            labels[voxels].fill(background);
        }
    }
}

impl Filter {
    /// Along how many axes neighbours may differ.
    pub(crate) fn connectivity(&self) -> u32 {
        match self {
            Self::KeepLargest(Largest { connectivity, .. })
            | Self::RemoveSmall { connectivity, .. }
            | Self::FillHoles { connectivity, .. }
            | Self::LargestComponents { connectivity, .. } => *connectivity,
        }
    }
}

fn remove_small(labels: &mut [u16], n: [usize; 3], min_size: u64, connectivity: u32, union: bool) {
    // MONAI leaves what is of one value as it is
    if labels.windows(2).all(|pair| pair[0] == pair[1]) {
        return;
    }
    if !union && labels.iter().any(|&label| label > 1) {
        let mut sizes = vec![0u64; usize::from(u16::MAX) + 1];
        labels.iter().for_each(|&label| sizes[usize::from(label)] += 1);
        labels.iter_mut().filter(|label| sizes[usize::from(**label)] <= min_size).for_each(|label| *label = 0);
        return;
    }
    let mask: Vec<bool> = labels.iter().map(|&label| label > 0).collect();
    let (number, sizes) = parts(&mask, n, connectivity);
    for (label, number) in labels.iter_mut().zip(number) {
        if number > 0 && sizes[number as usize - 1] <= min_size {
            *label = 0;
        }
    }
}

fn fill_holes(labels: &mut [u16], n: [usize; 3], of: &[u32], connectivity: u32) {
    let mut kinds: Vec<u16> = of.iter().filter_map(|&label| u16::try_from(label).ok()).filter(|&label| label > 0).collect();
    if of.is_empty() {
        kinds = labels.iter().copied().filter(|&label| label > 0).collect();
    }
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        let outside: Vec<bool> = labels.iter().map(|&label| label != kind).collect();
        let (number, sizes) = parts(&outside, n, connectivity);
        let mut open = vec![false; sizes.len()];
        for (at, &number) in number.iter().enumerate().filter(|(_, number)| **number > 0) {
            let place = [at / (n[1] * n[2]), at / n[2] % n[1], at % n[2]];
            open[number as usize - 1] |= (0..3).any(|axis| place[axis] == 0 || place[axis] + 1 == n[axis]);
        }
        for (label, number) in labels.iter_mut().zip(number) {
            if number > 0 && !open[number as usize - 1] {
                *label = kind;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(labels: &[u16], n: [usize; 3], filter: Filter) -> Vec<u16> {
        let mut labels = labels.to_vec();
        apply(&[Filtered { filter, first: true }], true, &mut labels, n, 2.0);
        labels
    }

    #[test]
    fn all_but_the_largest_components_go() {
        let of = |labels: &[u16], of: &[u16], connectivity, background, keep_mm3| {
            let filter = Filter::LargestComponents { labels: of.to_vec(), connectivity, background, keep_mm3 };
            filtered(labels, [1, 3, 4], filter)
        };
        let plane = [1, 0, 2, 2, 0, 1, 0, 0, 1, 0, 0, 2];
        assert_eq!(of(&plane, &[1], 3, 0, None), plane, "diagonals are neighbours");
        assert_eq!(of(&plane, &[2], 3, 7, None), [1, 0, 2, 2, 0, 1, 0, 0, 1, 0, 0, 7]);
        assert_eq!(of(&plane, &[1], 1, 0, None), plane, "of three equal ones all stay");
        assert_eq!(of(&plane, &[1, 2], 1, 0, None), [0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(of(&plane, &[1, 2], 3, 0, None), [1, 0, 2, 2, 0, 1, 0, 0, 1, 0, 0, 0]);
        assert_eq!(of(&plane, &[], 1, 0, None), [1, 0, 2, 2, 0, 1, 0, 0, 1, 0, 0, 0], "each by itself");
        assert_eq!(of(&plane, &[2], 1, 0, Some(2.0)), plane, "a voxel has 2 mm³");
        assert_eq!(of(&plane, &[2], 1, 0, Some(2.1))[11], 0);
        assert_eq!(of(&plane, &[9], 1, 0, None), plane, "of nothing nothing goes");
        assert_eq!(of(&plane, &[0], 1, 5, None), [1, 5, 2, 2, 5, 1, 0, 0, 1, 0, 0, 2], "the background, too");
    }

    #[test]
    fn small_parts_go() {
        let of = |labels: &[u16], min_size, connectivity, union| {
            filtered(labels, [1, 3, 4], Filter::RemoveSmall { min_size, connectivity, union })
        };
        // RemoveSmallObjects of MONAI 1.6.1 with scikit-image 0.26
        let ones = [1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1];
        assert_eq!(of(&ones, 3, 1, false), [0; 12]);
        assert_eq!(of(&ones, 2, 2, false), [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(of(&ones, 1, 2, false), ones, "diagonals are neighbours");
        let many = [1, 0, 0, 2, 0, 1, 0, 2, 0, 0, 0, 3];
        assert_eq!(of(&many, 1, 1, false), [1, 0, 0, 2, 0, 1, 0, 2, 0, 0, 0, 0], "a label counts as a whole");
        assert_eq!(of(&many, 2, 1, false), [0; 12]);
        assert_eq!(of(&many, 2, 1, true), [0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3]);
        assert_eq!(of(&[1; 12], 100, 1, false), [1; 12], "of one value nothing is removed");
    }

    #[test]
    fn holes_are_filled() {
        let of =
            |labels: &[u16], of: &[u32], connectivity| filtered(labels, [3, 3, 8], Filter::FillHoles { labels: of.to_vec(), connectivity });
        // the example of MONAI's FillHoles, a plane deeper on both sides
        let [edge, ring] = [[1, 1, 1, 2, 2, 2, 3, 3], [1, 0, 1, 2, 0, 0, 3, 0]];
        let (wall, middle) = ([edge; 3].concat(), [edge, ring, edge].concat());
        let volume = [wall.clone(), middle.clone(), wall.clone()].concat();
        let filled = [edge, [1, 1, 1, 2, 0, 0, 3, 0], edge].concat();
        assert_eq!(of(&volume, &[], 3), [wall.clone(), filled.clone(), wall.clone()].concat());
        assert_eq!(of(&volume, &[2], 3), volume);
        // what is enclosed becomes the label whatever it was
        let mut other = volume.clone();
        other[24 + 9] = 3;
        assert_eq!(of(&other, &[1], 3), [wall.clone(), filled, wall].concat());
        // a way out through a corner counts only where corners are neighbours
        let mut leak = vec![1; 27];
        (leak[13], leak[0]) = (0, 0);
        let cube = |connectivity| filtered(&leak, [3; 3], Filter::FillHoles { labels: vec![], connectivity });
        assert_eq!((cube(3)[13], cube(1)[13]), (0, 1));
    }
}
