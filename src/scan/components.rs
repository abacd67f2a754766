//! Connected components of masks, told by runs of voxels along W.

use std::ops::Range;

/// The rows before a row whose voxels may be neighbours of its own: steps along D and H.
const BEFORE: [[isize; 2]; 4] = [[0, -1], [-1, -1], [-1, 0], [-1, 1]];

/// The connected components of a mask `[D][H][W]`.
pub(super) struct Components {
    width: usize,
    /// The number of the first run of each row, and that of all runs.
    rows: Vec<usize>,
    /// The first voxel of each run along W, and the one after its last.
    runs: Vec<[u32; 2]>,
    /// The component of each run, from 0 on in the order of their first voxels.
    of_run: Vec<u32>,
    /// Voxels of each component.
    pub(super) sizes: Vec<u64>,
}

/// Host bytes that the components of so many voxels take at most: every other voxel a run.
pub(crate) fn bytes(voxels: u64) -> u64 {
    voxels / 2 * (8 + 4 + 8)
}

impl Components {
    /// The components of the voxels for whose number in storage order `inside` is true. Voxels are
    /// neighbours if they differ by 1 along at most `connectivity` axes.
    pub(super) fn of(n: [usize; 3], connectivity: u32, inside: impl Fn(usize) -> bool) -> Self {
        let [depth, height, width] = n;
        let (mut rows, mut runs) = (vec![0], Vec::new());
        for row in 0..depth * height {
            let mut begin = None;
            for x in 0..=width {
                let on = x < width && inside(row * width + x);
                match begin {
                    None if on => begin = Some(x),
                    Some(first) if !on => {
                        runs.push([first, x].map(narrow));
                        begin = None;
                    }
                    _ => {}
                }
            }
            rows.push(runs.len());
        }
        let mut parents: Vec<u32> = (0..narrow(runs.len())).collect();
        for row in 0..depth * height {
            for step in BEFORE {
                let apart = step.iter().filter(|s| **s != 0).count();
                let place = [row / height, row % height];
                let [Some(z), Some(y)] = [0, 1].map(|axis| place[axis].checked_add_signed(step[axis])) else { continue };
                if y >= height || apart > connectivity as usize {
                    continue;
                }
                let reach = u32::from(connectivity as usize > apart);
                join(&mut parents, &runs, [rows[row]..rows[row + 1], range(&rows, z * height + y)], reach);
            }
        }
        let mut sizes = Vec::new();
        let mut of_run = vec![0; runs.len()];
        for run in 0..runs.len() {
            let root = root(&mut parents, run);
            // the root of a component is its first run
            if root == run {
                of_run[run] = narrow(sizes.len());
                sizes.push(0);
            } else {
                of_run[run] = of_run[root];
            }
            sizes[of_run[run] as usize] += u64::from(runs[run][1] - runs[run][0]);
        }
        Self { width, rows, runs, of_run, sizes }
    }

    /// The voxels of each run, by their numbers in storage order, with the run's component.
    pub(super) fn runs(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        (0..self.rows.len() - 1).flat_map(move |row| {
            range(&self.rows, row).map(move |run| {
                let [begin, end] = self.runs[run].map(|x| row * self.width + x as usize);
                (begin..end, self.of_run[run] as usize)
            })
        })
    }
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn range(rows: &[usize], row: usize) -> Range<usize> {
    rows[row]..rows[row + 1]
}

/// Joins the runs of two rows that touch, where neighbours may be `reach` apart along W.
fn join(parents: &mut [u32], runs: &[[u32; 2]], [a, b]: [Range<usize>; 2], reach: u32) {
    let (mut i, mut j) = (a.start, b.start);
    while i < a.end && j < b.end {
        let ([begin, end], [other, end_other]) = (runs[i], runs[j]);
        if other < end + reach && begin < end_other + reach {
            let [one, two] = [i, j].map(|run| root(parents, run));
            parents[one.max(two)] = narrow(one.min(two));
        }
        if end < end_other { i += 1 } else { j += 1 }
    }
}

/// The first run of what a run was joined to.
fn root(parents: &mut [u32], mut run: usize) -> usize {
    while parents[run] as usize != run {
        parents[run] = parents[parents[run] as usize];
        run = parents[run] as usize;
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_those_of_a_flood() {
        // a fixed random mask, flooded voxel by voxel
        let n = [7, 9, 11];
        let mut state = 1u64;
        let mask: Vec<bool> = (0..n.iter().product())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 60) < 5
            })
            .collect();
        for connectivity in 1..=3 {
            let found = Components::of(n, connectivity, |at| mask[at]);
            let mut number = vec![None; mask.len()];
            for (voxels, component) in found.runs() {
                voxels.for_each(|at| number[at] = Some(component));
            }
            let mut flooded: Vec<Option<usize>> = vec![None; mask.len()];
            let mut count = 0;
            for start in 0..mask.len() {
                if !mask[start] || flooded[start].is_some() {
                    continue;
                }
                let mut stack = vec![start];
                flooded[start] = Some(count);
                while let Some(at) = stack.pop() {
                    let place = |at: usize| [at / 99, at / 11 % 9, at % 11];
                    for next in (0..mask.len()).filter(|&next| mask[next]) {
                        let steps: Vec<usize> = (0..3).map(|a| place(at)[a].abs_diff(place(next)[a])).collect();
                        let near = steps.iter().all(|s| *s < 2) && steps.iter().sum::<usize>() <= connectivity as usize;
                        if near && flooded[next].is_none() {
                            flooded[next] = Some(count);
                            stack.push(next);
                        }
                    }
                }
                count += 1;
            }
            assert_eq!(number, flooded, "connectivity {connectivity}");
            let sizes: Vec<u64> = (0..count).map(|c| flooded.iter().filter(|f| **f == Some(c)).count() as u64).collect();
            assert_eq!(found.sizes, sizes);
            assert!(connectivity > 1 || count > 5, "{count} components");
        }
    }
}
