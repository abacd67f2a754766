//! What happens to a scan before a network sees it, and to the network's scores afterwards, as
//! data.

use serde::{Deserialize, Serialize};

use super::filters::{Filter, Filtered};
use super::largest::Largest;
use super::previous::PreviousStage;
use super::reader::Reader;
use super::scaling::Scaling;
use super::splines::Resampling;
use super::values::Values;
use crate::volume::{Axes, Intensity};

/// The version of recipes that is written and read.
const VERSION: u32 = 1;

/// What happens to a scan before a network sees it, and to the network's scores afterwards.
///
/// It is plain data, the key `input.recipe` of a card:
/// ```json
/// {"version": 1,
///  "steps": [{"step": "orient", "axes": "RAS"},
///            {"step": "resample", "method": "half_pixel", "mm": [1.0, 1.0, 1.0]},
///            {"step": "scale", "scheme": "zscore"}],
///  "results": [{"result": "arg_max"}, {"result": "restore", "method": "half_pixel"}]}
/// ```
/// The readers of nnU-Net's folders and of MONAI's bundles make recipes too. What distinguishes
/// frameworks to the last bit, as the splines of scipy and the grids of PyTorch, are methods of a
/// step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The version of the format: 1.
    pub version: u32,
    /// Steps from the scan to the network's input, in order.
    pub steps: Vec<Step>,
    /// Steps from the network's scores to labels on the scan's grid, in order.
    pub results: Vec<ResultStep>,
}

/// A step on the way of a scan to the network. Axes are D, H, W; lengths are in mm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Takes the scan's spacing to be what nnU-Net's reader of that name says.
    Read {
        /// The reader.
        by: Reader,
    },
    /// Sees the scan where MONAI's reader sees it, its axes in the order of a NIfTI file, the
    /// fastest first. It comes first.
    ReadAsMonai,
    /// Turns the axes to these directions of the patient. Nothing is interpolated.
    Orient {
        /// Directions in which D, H, W increase.
        axes: Axes,
    },
    /// Exchanges axes.
    Transpose {
        /// The axis, 0 to 2, that becomes D, H, W.
        order: [usize; 3],
    },
    /// Crops to the smallest box around voxels that are not 0 in all channels. What is enclosed by
    /// them is the body that `scale_channels` may ask for.
    CropNonzero,
    /// Crops to the box of what is above 0 in any of the channels, as MONAI's `CropForeground`.
    CropForeground {
        /// Voxels more on either side.
        #[serde(default, skip_serializing_if = "is_default")]
        margin: [u32; 3],
        /// Whether the margin ends where the scan does; else zeros are put around.
        #[serde(default, skip_serializing_if = "is_default")]
        allow_smaller: bool,
        /// The box becomes as large as a multiple of this; 0 counts as 1.
        #[serde(default, skip_serializing_if = "is_default")]
        k_divisible: [u32; 3],
    },
    /// Puts voxels around, as MONAI's `SpatialPad` and `DivisiblePad`, or as its sliding windows
    /// where the scan is smaller.
    Pad {
        /// The least extent; 0 leaves an axis as it is.
        #[serde(default, skip_serializing_if = "is_default")]
        least: [u32; 3],
        /// The extent becomes a multiple of this; 0 counts as 1.
        #[serde(default, skip_serializing_if = "is_default")]
        multiple: [u32; 3],
        /// Whether all of it lies behind the last voxel, instead of half of it before the first.
        #[serde(default, skip_serializing_if = "is_default")]
        end: bool,
        /// Whether the outermost voxels are repeated, instead of zeros.
        #[serde(default, skip_serializing_if = "is_default")]
        replicate: bool,
    },
    /// Resamples to a spacing.
    Resample(Resample),
    /// Scales the values of every channel by its own statistics, or by a window.
    Scale(Intensity),
    /// Scales the values of each channel as a version of nnU-Net does.
    ScaleChannels {
        /// Of nnU-Net: 1 or 2.
        version: u32,
        /// How each channel is scaled.
        channels: Vec<Scaling>,
    },
    /// Scales values as a transform of MONAI does.
    ScaleValues(Values),
    /// Adds channels of the labels that a cascade's previous stage found, which went through the
    /// steps before with the scan. It comes last.
    AddPrevious(PreviousStage),
}

/// How a scan is resampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum Resample {
    /// Linearly, over the same field; spacings within a thousandth are taken as equal.
    HalfPixel {
        /// Voxel size.
        mm: [f64; 3],
    },
    /// By splines, as nnU-Net's `resample_data_or_seg_to_shape`.
    Spline {
        /// Voxel size along \[D,\] H, W; two numbers leave D as it is.
        mm: Vec<f64>,
        /// Degrees of the splines.
        orders: Resampling,
    },
    /// As MONAI's `Spacing`.
    Grid {
        /// Voxel size; 0 leaves an axis as it is.
        mm: [f64; 3],
        /// Whether the nearest voxel is read, instead of linearly.
        #[serde(default, skip_serializing_if = "is_default")]
        nearest: bool,
        /// How `grid_sample` counts; of no effect but in the last bit.
        #[serde(default, skip_serializing_if = "is_default")]
        align_corners: bool,
    },
}

/// A step from the network's scores to labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResultStep {
    /// Averages the scores of several folds.
    Average {
        /// Whether the sum is kept in 16-bit floats.
        half: bool,
    },
    /// Makes probabilities of logits.
    Softmax,
    /// Makes a probability of each logit by itself, of labels that may overlap.
    Sigmoid,
    /// Takes the class with the highest score.
    ArgMax,
    /// Writes nnU-Net's regions, which may lie within each other: each channel whose sigmoid is
    /// above 1/2 sets its label, in this order.
    Regions {
        /// The label of each channel.
        labels: Vec<u16>,
    },
    /// Gives a voxel every label whose score is at least this.
    Threshold {
        /// The score.
        at: f32,
    },
    /// Keeps the largest connected parts of labels alone, as MONAI's
    /// `KeepLargestConnectedComponent`.
    KeepLargest {
        /// The labels that it is done to; none for all but 0.
        #[serde(default)]
        labels: Vec<u32>,
        /// Whether one part of all of them together is kept, instead of one of each.
        #[serde(default)]
        union: bool,
        /// Along how many axes neighbours may differ by one voxel: 1 to 3.
        connectivity: u32,
    },
    /// Removes small parts of labels, or fills holes, as MONAI or nnU-Net does.
    Filter(Filter),
    /// Brings scores or labels back to the scan's grid.
    Restore(Restore),
}

/// How scores or labels come back to the scan's grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum Restore {
    /// Undoes the steps: labels by the nearest voxel, probabilities linearly.
    HalfPixel,
    /// Resamples scores by splines, as nnU-Net does.
    Spline {
        /// Degrees of the splines.
        orders: Resampling,
        /// Whether scores are kept in 16-bit floats.
        half: bool,
    },
    /// Undoes the steps, as MONAI's `Invertd`.
    Inverse {
        /// Whether scores are read at the nearest voxel; labels always are.
        #[serde(default)]
        nearest: bool,
    },
    /// Resamples to the scan's grid in one step, each voxel read at the nearest, as MONAI's
    /// `SaveImage`.
    Save,
}

/// What of a MONAI bundle's result is brought back to the scan's grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Invert {
    /// The network's logits.
    Logits,
    /// Their softmax.
    Probabilities,
    /// The most probable classes.
    Labels,
    /// Nothing, but as it saves the most probable classes, `SaveImage` resamples them to the scan's
    /// grid: in one step, each voxel read at the nearest, the outermost beyond the edges.
    Saving,
    /// Nothing: labels lie on the grid of the network's input.
    Nothing,
}

/// The ways back that there are: the results of a recipe, understood.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WayBack {
    /// Labels, and probabilities beside them.
    Direct,
    /// Scores by splines, averaged over folds.
    Spline { orders: Resampling, half: bool, regions: Option<Vec<u16>>, filters: Vec<Filtered> },
    /// As a MONAI bundle has it.
    Inverse { invert: Invert, nearest: bool, filters: Vec<Filtered>, overlapping: Option<Overlapping> },
}

/// Labels that may overlap: those whose score is at least a threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Overlapping {
    /// Whether scores are sigmoids of logits.
    pub(crate) sigmoid: bool,
    pub(crate) at: f32,
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Recipe {
    /// The recipe with these steps.
    #[must_use]
    pub fn new(steps: Vec<Step>, results: Vec<ResultStep>) -> Self {
        Self { version: VERSION, steps, results }
    }

    /// The order in which it transposes the scan's axes, if it does.
    pub(crate) fn transpose(&self) -> Option<[usize; 3]> {
        self.steps.iter().find_map(|step| match step {
            Step::Transpose { order } => Some(*order),
            _ => None,
        })
    }

    /// The previous stage of a cascade, whose labels it takes.
    pub(crate) fn previous(&self) -> Option<&PreviousStage> {
        self.steps.iter().find_map(|step| match step {
            Step::AddPrevious(stage) => Some(stage),
            _ => None,
        })
    }

    /// Number of the network's channels that are those of a previous stage.
    pub(crate) fn added(&self) -> u32 {
        self.previous().map_or(0, PreviousStage::added)
    }

    /// The way back that the results describe.
    ///
    /// # Errors
    /// The reason why they are none.
    pub(crate) fn way_back(&self) -> Result<WayBack, String> {
        use ResultStep as R;
        let none = || {
            let results = serde_json::to_string(&self.results).unwrap_or_default();
            format!("the results {results} are in no order that is supported")
        };
        let after = |results: &[ResultStep]| -> Result<Vec<Filtered>, String> {
            let filter = |result: &ResultStep| match result {
                R::Filter(filter) => Ok(Filtered { filter: filter.clone(), first: false }),
                _ => Err(none()),
            };
            results.iter().map(filter).collect()
        };
        match &self.results[..] {
            [R::ArgMax, R::Restore(Restore::HalfPixel)] => return Ok(WayBack::Direct),
            [R::Average { half: sum }, R::Restore(Restore::Spline { orders, half }), R::ArgMax, rest @ ..] if sum == half => {
                return Ok(WayBack::Spline { orders: *orders, half: *half, regions: None, filters: after(rest)? });
            }
            [R::Average { half: true }, R::Restore(Restore::Spline { orders, half: true }), R::Regions { labels }, rest @ ..] => {
                return Ok(WayBack::Spline { orders: *orders, half: true, regions: Some(labels.clone()), filters: after(rest)? });
            }
            _ => {}
        }
        let mut filters = Vec::new();
        let mut order = Vec::new();
        for result in &self.results {
            match result {
                R::KeepLargest { .. } | R::Filter(_) if order.contains(&&R::ArgMax) => {
                    let first = !order.iter().any(|r| matches!(r, R::Restore(_)));
                    let filter = match result {
                        R::KeepLargest { labels, union, connectivity } => {
                            Filter::KeepLargest(Largest { labels: labels.clone(), union: *union, connectivity: *connectivity, first })
                        }
                        R::Filter(filter) => filter.clone(),
                        _ => return Err(none()),
                    };
                    filters.push(Filtered { filter, first });
                }
                R::KeepLargest { .. } | R::Filter(_) => return Err(none()),
                other => order.push(other),
            }
        }
        let (invert, nearest) = match &order[..] {
            [R::Restore(Restore::Inverse { nearest }), R::ArgMax] => (Invert::Logits, *nearest),
            [R::Softmax, R::Restore(Restore::Inverse { nearest }), R::ArgMax] => (Invert::Probabilities, *nearest),
            [R::ArgMax, R::Restore(Restore::Inverse { nearest })] => (Invert::Labels, *nearest),
            [R::ArgMax, R::Restore(Restore::Save)] => (Invert::Saving, false),
            [R::ArgMax] => (Invert::Nothing, false),
            _ if !filters.is_empty() => return Err(none()),
            other => return Self::overlapping(other).ok_or_else(none),
        };
        Ok(WayBack::Inverse { invert, nearest, filters, overlapping: None })
    }

    /// The way back of labels that may overlap.
    fn overlapping(results: &[&ResultStep]) -> Option<WayBack> {
        use ResultStep as R;
        let sigmoid = results.iter().any(|result| matches!(result, R::Sigmoid));
        let (invert, nearest, at) = match *results {
            [R::Restore(Restore::Inverse { nearest }), R::Threshold { at }] => (Invert::Logits, *nearest, *at),
            [R::Restore(Restore::Inverse { nearest }), R::Sigmoid, R::Threshold { at }] => (Invert::Logits, *nearest, *at),
            [R::Sigmoid, R::Restore(Restore::Inverse { nearest }), R::Threshold { at }] => (Invert::Probabilities, *nearest, *at),
            [R::Threshold { at }, R::Restore(Restore::Inverse { .. })] => (Invert::Labels, false, *at),
            [R::Sigmoid, R::Threshold { at }, R::Restore(Restore::Inverse { .. })] => (Invert::Labels, false, *at),
            [R::Threshold { at }, R::Restore(Restore::Save)] => (Invert::Saving, false, *at),
            [R::Sigmoid, R::Threshold { at }, R::Restore(Restore::Save)] => (Invert::Saving, false, *at),
            [R::Threshold { at }] | [R::Sigmoid, R::Threshold { at }] => (Invert::Nothing, false, *at),
            _ => return None,
        };
        let overlapping = Some(Overlapping { sigmoid, at });
        at.is_finite().then_some(WayBack::Inverse { invert, nearest, filters: Vec::new(), overlapping })
    }

    /// What is wrong with it, for a network of so many dimensions and input channels.
    pub(crate) fn check(&self, dims: u32, channels: u32) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version {} is not supported; {VERSION} is", self.version));
        }
        let back = self.way_back()?;
        let added = self.added();
        let channels = channels.checked_sub(added).filter(|&n| n > 0);
        let channels = channels.ok_or_else(|| format!("{added} of the network's channels are labels of a previous stage"))?;
        if let WayBack::Inverse { filters, .. } | WayBack::Spline { filters, .. } = &back
            && let Some(Filtered { filter, .. }) = filters.iter().find(|f| !(1..=3).contains(&f.filter.connectivity()))
        {
            return Err(format!("{filter:?} is no way to keep parts of labels"));
        }
        for (i, step) in self.steps.iter().enumerate() {
            let fits = match (&back, step) {
                (WayBack::Inverse { .. }, Step::ReadAsMonai) => i == 0,
                (_, Step::ReadAsMonai) => false,
                (WayBack::Direct, Step::CropNonzero | Step::CropForeground { .. } | Step::Pad { .. }) => false,
                (WayBack::Spline { .. }, Step::Pad { .. }) => false,
                (WayBack::Direct, Step::Resample(r)) => matches!(r, Resample::HalfPixel { .. }),
                (WayBack::Spline { .. }, Step::AddPrevious(_)) => i + 1 == self.steps.len(),
                (_, Step::AddPrevious(_)) => false,
                (WayBack::Spline { .. }, Step::CropForeground { .. }) => false,
                (WayBack::Spline { .. }, Step::Resample(r)) => matches!(r, Resample::Spline { .. }),
                (WayBack::Inverse { .. }, Step::CropNonzero) => false,
                (WayBack::Inverse { .. }, Step::Resample(r)) => matches!(r, Resample::Grid { .. }),
                _ => true,
            };
            if !fits {
                return Err(format!("its results do not undo the step {step:?} at place {i}"));
            }
            step.check(dims, channels)?;
        }
        let places =
            |is: fn(&Step) -> bool| -> Vec<usize> { self.steps.iter().enumerate().filter(|(_, step)| is(step)).map(|(i, _)| i).collect() };
        let moves = places(|s| matches!(s, Step::Orient { .. } | Step::Transpose { .. } | Step::Read { .. }));
        let crops = places(|s| matches!(s, Step::CropNonzero));
        let resamples = places(|s| matches!(s, Step::Resample(_)));
        if let WayBack::Spline { orders, .. } = &back {
            orders.check()?;
            let late = crops.iter().chain(&resamples).any(|at| moves.iter().any(|other| other > at));
            let whole = crops.len() == 1 && resamples.len() == 1 && crops[0] < resamples[0];
            if late || !whole {
                return Err("results by splines undo one crop_nonzero and one resample, after all turns of axes".into());
            }
        }
        let masked = self.steps.iter().position(Step::asks_for_body);
        if masked.is_some_and(|at| !crops.iter().any(|&crop| crop < at)) {
            return Err("a channel is scaled by its body, which crop_nonzero finds; put that before it".into());
        }
        if back == WayBack::Direct && resamples.len() > 1 {
            return Err("its results undo one resample".into());
        }
        Ok(())
    }
}

impl Step {
    /// What is wrong with it.
    fn check(&self, dims: u32, channels: u32) -> Result<(), String> {
        let positive = |mm: &[f64]| mm.iter().all(|v| v.is_finite() && *v > 0.0);
        match self {
            Self::Transpose { order } => {
                let mut axes = *order;
                axes.sort_unstable();
                if axes != [0, 1, 2] {
                    return Err(format!("transpose {order:?} is no order of the axes 0, 1, 2"));
                }
            }
            Self::Resample(Resample::HalfPixel { mm }) if !positive(mm) => {
                return Err(format!("the spacing {mm:?} is not positive"));
            }
            Self::Resample(Resample::Spline { mm, orders }) => {
                if mm.len() != dims as usize || !positive(mm) {
                    return Err(format!("spacing_mm {mm:?} is not {dims} positive numbers"));
                }
                orders.check()?;
            }
            Self::Resample(Resample::Grid { mm, .. }) if !mm.iter().all(|v| v.is_finite() && *v >= 0.0) => {
                return Err(format!("{self:?} is no transform of a scan of {channels} channels"));
            }
            Self::ScaleChannels { version, channels: list } => {
                if !(1..=2).contains(version) {
                    return Err(format!("version {version} is not supported; nnU-Net's 1 and 2 are"));
                }
                if list.len() != channels as usize {
                    return Err(format!("{} channels are scaled, the network takes {channels}", list.len()));
                }
            }
            Self::AddPrevious(stage) => {
                stage.resample.check()?;
                if stage.labels.is_empty() || stage.labels.contains(&0) {
                    return Err(format!("the labels {:?} of {} are no classes", stage.labels, stage.stage));
                }
            }
            Self::ScaleValues(values) if !values.fits(channels) => {
                return Err(format!("{values:?} is no transform of a scan of {channels} channels"));
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Result<Recipe, String> {
        let recipe: Recipe = serde_json::from_value(value).map_err(|e| e.to_string())?;
        recipe.check(3, 1).map(|()| recipe)
    }

    #[test]
    fn recipes_are_read_and_written() -> Result<(), String> {
        let own = json!({"version": 1,
            "steps": [{"step": "orient", "axes": "RAS"}, {"step": "resample", "method": "half_pixel", "mm": [1.0, 1.0, 2.0]},
                {"step": "scale", "scheme": "window", "low": -160.0, "high": 240.0}],
            "results": [{"result": "arg_max"}, {"result": "restore", "method": "half_pixel"}]});
        let orders = json!({"order": 3, "order_along": 0, "separate": null});
        let nnunet = json!({"version": 1,
            "steps": [{"step": "read", "by": "NibabelIO"}, {"step": "transpose", "order": [2, 0, 1]}, {"step": "crop_nonzero"},
                {"step": "scale_channels", "version": 2, "channels": [{"scheme": "zscore", "masked": true}]},
                {"step": "resample", "method": "spline", "mm": [1.0, 1.0, 1.0], "orders": orders}],
            "results": [{"result": "average", "half": true}, {"result": "restore", "method": "spline", "orders": orders, "half": true},
                {"result": "arg_max"}]});
        let monai = json!({"version": 1,
            "steps": [{"step": "read_as_monai"}, {"step": "resample", "method": "grid", "mm": [1.5, 0.0, 2.0], "nearest": true},
                {"step": "crop_foreground", "margin": [1, 1, 1]},
                {"step": "pad", "least": [32, 0, 32], "multiple": [16, 16, 16], "end": true, "replicate": true},
                {"step": "scale_values", "transform": "clip_percentiles", "low": 0.5, "high": null},
                {"step": "scale_values", "transform": "scale_min_max", "to": [0.0, 1.0]}],
            "results": [{"result": "softmax"}, {"result": "restore", "method": "inverse", "nearest": false}, {"result": "arg_max"},
                {"result": "keep_largest", "labels": [1], "union": false, "connectivity": 3},
                {"result": "filter", "filter": "remove_small", "min_size": 64, "connectivity": 1},
                {"result": "filter", "filter": "fill_holes", "labels": [1, 2], "connectivity": 3}]});
        let overlapping = json!({"version": 1, "steps": [{"step": "pad", "multiple": [8, 8, 8]}],
            "results": [{"result": "sigmoid"}, {"result": "threshold", "at": 0.5}, {"result": "restore", "method": "save"}]});
        for value in [own, nnunet, monai, overlapping] {
            let recipe = read(value.clone())?;
            assert_eq!(serde_json::to_value(&recipe).map_err(|e| e.to_string())?, value);
        }
        Ok(())
    }

    #[test]
    fn results_are_understood_by_their_order() -> Result<(), String> {
        use ResultStep as R;
        let inverse = |nearest| R::Restore(Restore::Inverse { nearest });
        let keep = || R::KeepLargest { labels: vec![], union: true, connectivity: 1 };
        let back = |results: Vec<R>| Recipe::new(vec![], results).way_back();
        for (results, invert, first) in [
            (vec![inverse(false), R::ArgMax], Invert::Logits, None),
            (vec![R::Softmax, inverse(false), R::ArgMax, keep()], Invert::Probabilities, Some(false)),
            (vec![R::ArgMax, keep(), inverse(false)], Invert::Labels, Some(true)),
            (vec![R::ArgMax, R::Restore(Restore::Save), keep()], Invert::Saving, Some(false)),
            (vec![R::ArgMax, keep()], Invert::Nothing, Some(true)),
        ] {
            let WayBack::Inverse { invert: found, filters, .. } = back(results)? else { return Err("another".into()) };
            assert_eq!((found, filters.first().map(|f| f.first)), (invert, first));
        }
        let at = || R::Threshold { at: 0.5 };
        for (results, invert, sigmoid) in [
            (vec![inverse(false), at()], Invert::Logits, false),
            (vec![inverse(false), R::Sigmoid, at()], Invert::Logits, true),
            (vec![R::Sigmoid, inverse(true), at()], Invert::Probabilities, true),
            (vec![R::Sigmoid, at(), inverse(true)], Invert::Labels, true),
            (vec![at(), inverse(true)], Invert::Labels, false),
            (vec![R::Sigmoid, at(), R::Restore(Restore::Save)], Invert::Saving, true),
            (vec![at(), R::Restore(Restore::Save)], Invert::Saving, false),
            (vec![R::Sigmoid, at()], Invert::Nothing, true),
        ] {
            let WayBack::Inverse { invert: found, overlapping, .. } = back(results)? else { return Err("another".into()) };
            assert_eq!((found, overlapping), (invert, Some(Overlapping { sigmoid, at: 0.5 })));
        }
        for wrong in [vec![R::Sigmoid], vec![at(), keep()], vec![R::Threshold { at: f32::NAN }], vec![R::Softmax, at()]] {
            assert!(back(wrong).is_err_and(|e| e.contains("in no order")));
        }
        for wrong in [vec![], vec![R::Softmax], vec![keep(), R::ArgMax], vec![R::ArgMax, R::ArgMax]] {
            assert!(back(wrong).is_err_and(|e| e.contains("in no order")));
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_is_told() {
        let with = |steps: serde_json::Value, results: serde_json::Value| json!({"version": 1, "steps": steps, "results": results});
        let own = json!([{"result": "arg_max"}, {"result": "restore", "method": "half_pixel"}]);
        let orders = json!({"order": 1, "order_along": 0, "separate": null});
        let spline = json!([{"result": "average", "half": true},
            {"result": "restore", "method": "spline", "orders": orders, "half": true}, {"result": "arg_max"}]);
        let inverse = json!([{"result": "restore", "method": "inverse"}, {"result": "arg_max"}]);
        let bad = |value, word: &str| assert!(read(value).is_err_and(|e| e.contains(word)), "{word}");
        bad(json!({"version": 2, "steps": [], "results": own}), "version 2");
        bad(json!({"version": 1, "steps": [{"step": "blur"}], "results": own}), "blur");
        bad(with(json!([{"step": "crop_nonzero"}]), own.clone()), "do not undo");
        bad(with(json!([{"step": "read_as_monai"}]), own.clone()), "do not undo");
        bad(with(json!([{"step": "orient", "axes": "RAS"}, {"step": "read_as_monai"}]), inverse.clone()), "do not undo");
        bad(with(json!([{"step": "transpose", "order": [0, 0, 1]}]), own.clone()), "no order of the axes");
        let half = json!({"step": "resample", "method": "half_pixel", "mm": [1.0, 0.0, 1.0]});
        bad(with(json!([half]), own.clone()), "not positive");
        let half = json!({"step": "resample", "method": "half_pixel", "mm": [1.0, 1.0, 1.0]});
        bad(with(json!([half, half]), own), "undo one resample");
        bad(with(json!([half]), inverse.clone()), "do not undo");
        bad(with(json!([]), spline.clone()), "one crop_nonzero and one resample");
        let resample = json!({"step": "resample", "method": "spline", "mm": [1.0, 1.0], "orders": orders});
        bad(with(json!([{"step": "crop_nonzero"}, resample]), spline.clone()), "spacing_mm");
        let scale = json!({"step": "scale_channels", "version": 3, "channels": [{"scheme": "none"}]});
        bad(with(json!([scale]), spline.clone()), "version 3");
        let scale = json!({"step": "scale_channels", "version": 2, "channels": [{"scheme": "zscore", "masked": true}]});
        bad(with(json!([scale]), inverse.clone()), "by its body");
        let scale = json!({"step": "scale_channels", "version": 2, "channels": []});
        bad(with(json!([scale]), spline), "0 channels are scaled");
        let grid = json!({"step": "resample", "method": "grid", "mm": [1.0, 1.0, -1.0]});
        bad(with(json!([grid]), inverse.clone()), "is no transform");
        let keep = json!([{"result": "arg_max"}, {"result": "keep_largest", "connectivity": 4}]);
        bad(with(json!([]), keep), "no way to keep parts");
        let values = json!({"step": "scale_values", "transform": "scale_percentiles", "from": [0.0, 101.0]});
        bad(with(json!([values]), inverse.clone()), "is no transform");
        let values = json!({"step": "scale_values", "transform": "clip_percentiles", "low": 60.0, "high": 40.0});
        bad(with(json!([values]), inverse), "is no transform");
        let pad = json!({"step": "pad", "least": [8, 8, 8], "replicate": true});
        bad(with(json!([pad]), json!([{"result": "arg_max"}, {"result": "restore", "method": "half_pixel"}])), "do not undo");
    }
}
