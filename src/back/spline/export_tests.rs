use proptest::prelude::*;

use super::*;
use crate::export::hand_over;
use crate::scores::{argmax, softmax};
use crate::shape::Extent;
use crate::volume::{Affine, Axes, Volume, interpolate, reorient};

/// What is exported: sizes, how, and from which numbers.
#[derive(Clone, Debug)]
struct Setup {
    from: [usize; 3],
    size: [usize; 3],
    /// Voxels before and after the box that the scan was cropped to.
    around: [[usize; 2]; 3],
    resampling: Resampling,
    axis: Option<usize>,
    classes: usize,
    version: u32,
    /// Whether scores are multiples of a half, so that many are equal.
    coarse: bool,
    regions: bool,
    seed: u64,
    to: &'static str,
}

fn setups() -> impl Strategy<Value = Setup> {
    let n = || prop_oneof![1usize..6, 14usize..20, Just(33)];
    let wide = || prop_oneof![1usize..6, 60usize..70, Just(131)];
    let order = || prop_oneof![1 => Just(0u32), 4 => Just(1u32), 1 => Just(3u32)];
    let around = || prop::array::uniform2(0usize..3);
    let axis = prop_oneof![2 => Just(None), 3 => (0usize..3).prop_map(Some)];
    let to = prop::sample::select(vec!["SAR", "LPI", "RAS", "PIL", "ARS"]);
    let grids = (
        [n().boxed(), n().boxed(), wide().boxed()],
        [n().boxed(), n().boxed(), wide().boxed()],
        prop::array::uniform3(around()),
        any::<[bool; 3]>(),
    );
    let switches = prop::array::uniform3(any::<bool>());
    let how = (order(), order(), axis, 1usize..5, 1u32..3, switches, any::<u64>(), to);
    (grids, how).prop_map(|((from, mut size, around, same), how)| {
        let (order, order_along, axis, classes, version, [coarse, regions, torch], seed, to) = how;
        (0..3).filter(|&a| same[a]).for_each(|a| size[a] = from[a]);
        let resampling = if torch && version == 2 {
            let [order, order_along] = [order, order_along].map(|order| order.min(1));
            Resampling { by: Interpolation::Torch, order, order_along, ..Resampling::default() }
        } else {
            Resampling { order, order_along, ..Resampling::default() }
        };
        Setup { from, size, around, resampling, axis, classes, version, coarse, regions: regions && version == 2, seed, to }
    })
}

impl Setup {
    fn case(&self) -> SplineCase {
        let axes: Axes = "SAR".parse().expect("these are axes");
        let extent = |n: [usize; 3]| Extent::from(n.map(|n| u32::try_from(n).expect("small")));
        let whole = [0, 1, 2].map(|a| self.size[a] + self.around[a][0] + self.around[a][1]);
        let spacing = [3.0, 1.0, 2.0];
        let data = vec![0.0; self.from.iter().product()];
        SplineCase {
            volume: Volume::new(1, extent(self.from), spacing, axes, data).expect("it is a volume"),
            whole: extent(whole),
            spacing,
            first: [0, 1, 2].map(|a| self.around[a][0]),
            size: self.size,
            axes: self.to.parse().expect("these are axes"),
            affine: Affine { origin: [1.0, 2.0, 3.0], ..Affine::orthogonal(spacing, axes) },
            back: (self.resampling, self.axis),
            probable: self.version == 1,
            reduction: self.reduction(),
            filters: (Vec::new(), 1.0),
        }
    }

    /// Scores `[C][D][H][W]` of a fold.
    fn scores(&self, fold: u64) -> Vec<f32> {
        let mut state = self.seed ^ fold.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f32 / (1u64 << 24) as f32;
            let score = if self.coarse { (unit * 8.0).floor() / 2.0 - 2.0 } else { unit * 20.0 - 10.0 };
            if self.version == 1 { score } else { widened(narrowed(score)) }
        };
        // classes that are ahead somewhere and behind elsewhere, so that some tiles have one winner
        let voxels: usize = self.from.iter().product();
        let bias = |class: usize, at: usize| if (at * self.classes / voxels.max(1)) == class { 12.0 } else { 0.0 };
        let scores = (0..self.classes * voxels).map(|i| next() + bias(i / voxels, i % voxels));
        scores.map(|v| if self.version == 1 { v } else { widened(narrowed(v)) }).collect()
    }

    fn reduction(&self) -> Reduction {
        let labels = [7, 2, 300, 1];
        if self.regions { Reduction::Regions(labels[..self.classes].to_vec()) } else { Reduction::ArgMax }
    }

    /// The export of whole arrays: all classes on the cropped scan at once.
    fn expected(&self, case: &SplineCase, scores: &[f32]) -> (Volume<u16>, Volume<f32>) {
        let voxels: usize = self.from.iter().product();
        let order = |degree| Order::of_degree(degree).expect("it is one");
        let along = self.axis.map(|axis| (axis, order(self.resampling.order_along)));
        let resampled = |map: &[f32]| -> Vec<f32> {
            if self.resampling.by == Interpolation::Torch {
                return interpolate::resize(map, self.from, self.size, order(self.resampling.order), along);
            }
            let values = if self.from == self.size {
                map.iter().map(|&v| f64::from(v)).collect()
            } else {
                spline::resized(map, self.from, self.size, order(self.resampling.order), along)
            };
            values.into_iter().map(|v| if self.version == 1 { v as f32 } else { once(v) }).collect()
        };
        let mut maps: Vec<f32> = scores.chunks_exact(voxels).flat_map(resampled).collect();
        let classes = self.classes as u32;
        let cropped: usize = self.size.iter().product();
        let labels = match self.reduction() {
            Reduction::ArgMax => argmax(&maps, classes),
            Reduction::Regions(regions) => {
                let mut labels = vec![0; cropped];
                for (map, region) in maps.chunks_exact(cropped).zip(regions) {
                    let inside = map.iter().map(|v| 1.0 / (1.0 + (-v).exp()) > 0.5);
                    labels.iter_mut().zip(inside).filter(|(_, inside)| *inside).for_each(|(l, _)| *l = region);
                }
                labels
            }
        };
        match (self.regions, self.version) {
            (true, _) => maps.iter_mut().for_each(|v| *v = 1.0 / (1.0 + (-*v).exp())),
            (false, 2) => softmax(&mut maps, classes),
            _ => {}
        }
        let outside = |class: usize| if class == 0 && !self.regions { 1.0 } else { 0.0 };
        let pasted = maps.chunks_exact(cropped).enumerate().flat_map(|(c, map)| self.paste(map, outside(c)));
        let maps = Volume::new(classes, case.whole, case.spacing, case.volume.axes, pasted.collect()).expect("a volume");
        let labels = Volume::new(1, case.whole, case.spacing, case.volume.axes, self.paste(&labels, 0)).expect("a volume");
        (reorient(&labels, case.axes).with_affine(case.affine), reorient(&maps, case.axes).with_affine(case.affine))
    }

    fn paste<T: Copy>(&self, values: &[T], outside: T) -> Vec<T> {
        let n = [0, 1, 2].map(|a| self.size[a] + self.around[a][0] + self.around[a][1]);
        let mut out = vec![outside; n.iter().product()];
        for (i, &value) in values.iter().enumerate() {
            let [_, h, w] = self.size;
            let [z, y, x] = [i / (h * w), i / w % h, i % w];
            let [z, y, x] = [z + self.around[0][0], y + self.around[1][0], x + self.around[2][0]];
            out[(z * n[1] + y) * n[2] + x] = value;
        }
        out
    }

    /// As windows hand them over: nnU-Net v2's in 16 bits, which `single` does not take.
    fn stored(&self, plane: ScorePlane, single: bool) -> ScorePlane {
        match plane {
            ScorePlane::Single(scores) if self.version == 2 && !single => ScorePlane::Half(scores.into_iter().map(narrowed).collect()),
            plane => plane,
        }
    }
}

/// The nearest 16-bit float by way of whole numbers of its last bit.
fn once(x: f64) -> f32 {
    let step = (x.abs().log2().floor().max(-14.0) - 10.0).exp2();
    ((x / step).round_ties_even() * step) as f32
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn planes_are_exported_as_whole_arrays_were(setup in setups(), single: bool) {
        let case = setup.case();
        let scores = setup.scores(0);
        let (labels, maps) = setup.expected(&case, &scores);
        for probabilities in [false, true] {
            let options = SplineExportOptions { reduction: setup.reduction(), probabilities, ..SplineExportOptions::default() };
            let mut export = SplineExport::new(&case, setup.classes as u32, options);
            for (z, plane) in planes(&scores, setup.classes, setup.from).into_iter().enumerate() {
                export.plane(z, setup.stored(plane, single)).expect("it is taken");
                // an attempt that ends here is tried again
                if z == 0 {
                    let again = planes(&scores, setup.classes, setup.from).swap_remove(0);
                    export.plane(0, setup.stored(again, single)).expect("it is passed over");
                }
            }
            let exported = export.finish().expect("all planes are there");
            prop_assert_eq!(&exported.labels, &labels);
            let got = exported.probabilities.map(|p| p.to_volume().expect("it is made"));
            prop_assert_eq!(got.is_some(), probabilities);
            if let Some(got) = got {
                prop_assert_eq!(got, maps.clone());
            }
        }
    }

    #[test]
    fn folds_are_averaged_plane_by_plane(setup in setups(), folds in 2u16..4, file: bool, probabilities: bool) {
        let case = setup.case();
        let all: Vec<Vec<f32>> = (0..folds).map(|fold| setup.scores(fold.into())).collect();
        let round = |v: f32| if setup.version == 1 { v } else { widened(narrowed(v)) };
        let mean: Vec<f32> = (0..all[0].len())
            .map(|i| {
                let sum = all[1..].iter().fold(all[0][i], |sum, fold| round(sum + fold[i]));
                round(sum / f32::from(folds))
            })
            .collect();
        let (labels, maps) = setup.expected(&case, &mean);
        let spill = file.then(|| tempfile::tempfile().expect("a file"));
        let options = SplineExportOptions { folds, reduction: setup.reduction(), probabilities };
        let mut export = SplineExport::new(&case, setup.classes as u32, options);
        if let Some(file) = spill {
            export.spill_to(file);
        }
        for (fold, scores) in all.iter().enumerate() {
            if fold > 0 {
                export.next_fold();
            }
            for (z, plane) in planes(scores, setup.classes, setup.from).into_iter().enumerate() {
                export.plane(z, setup.stored(plane, false)).expect("it is taken");
            }
        }
        let exported = export.finish().expect("all planes are there");
        prop_assert_eq!(&exported.labels, &labels);
        if let Some(got) = exported.probabilities {
            prop_assert_eq!(got.to_volume().expect("it is made"), maps);
        }
    }
}

/// Scores `[C][D][H][W]` plane by plane.
fn planes(scores: &[f32], classes: usize, from: [usize; 3]) -> Vec<ScorePlane> {
    struct List(Vec<ScorePlane>);
    impl PlaneSink for List {
        fn plane(&mut self, _: usize, plane: ScorePlane) -> Result<(), RunError> {
            self.0.push(plane);
            Ok(())
        }
    }
    let mut list = List(Vec::new());
    let extent = Extent::from(from.map(|n| u32::try_from(n).expect("small")));
    hand_over(scores, u32::try_from(classes).expect("few"), extent, &mut list).expect("it is taken");
    list.0
}

fn simple() -> Setup {
    Setup {
        from: [3, 4, 5],
        size: [6, 4, 5],
        around: [[0; 2]; 3],
        resampling: Resampling::default(),
        axis: None,
        classes: 2,
        version: 2,
        coarse: false,
        regions: false,
        seed: 1,
        to: "SAR",
    }
}

#[test]
fn sums_are_in_the_versions_precision() {
    for (half, want) in [(true, 1024.0), (false, 1024.5)] {
        let mut plane = sum(ScorePlane::Single(vec![2048.0, 1.0]), &ScorePlane::Single(vec![1.0, 2.0]), half);
        divide(&mut plane, 2.0, half);
        assert_eq!(plane, ScorePlane::Single(vec![want, 1.5]));
    }
    let halves = |v: [f32; 2]| ScorePlane::Half(v.map(narrowed).to_vec());
    let mut plane = sum(halves([2048.0, 1.0]), &halves([1.0, 2.0]), true);
    divide(&mut plane, 2.0, true);
    assert_eq!(plane, halves([1024.0, 1.5]));
}

#[test]
fn missing_planes_and_folds_are_told() {
    let (setup, scores) = (simple(), simple().scores(0));
    for (folds, given) in [(1, 2), (2, 3)] {
        let mut export = SplineExport::new(&setup.case(), 2, SplineExportOptions { folds, ..SplineExportOptions::default() });
        for (z, plane) in planes(&scores, 2, setup.from).into_iter().enumerate().take(given) {
            export.plane(z, plane).expect("it is taken");
        }
        let error = export.finish().expect_err("something is missing");
        assert_eq!(error.kind(), VolumeErrorKind::GridMismatch);
        assert!(error.to_string().contains(&format!("{given} planes of fold 1 of {folds}")), "{error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run() {
    let spill = File::options().read(true).write(true).open("/dev/full").expect("Linux has it");
    let setup = simple();
    let mut export = SplineExport::new(&setup.case(), 2, SplineExportOptions { folds: 2, ..SplineExportOptions::default() });
    export.spill_to(spill);
    let plane = planes(&setup.scores(0), 2, setup.from).swap_remove(0);
    let error = export.plane(0, setup.stored(plane, false)).expect_err("it is full");
    assert_eq!(error.kind(), RunErrorKind::Io);
}
