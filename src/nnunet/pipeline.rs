//! The card's key `input.nnunet`.

use serde::{Deserialize, Serialize};

use super::reader::Reader;
use crate::scan::{Filter, PreviousStage, Recipe, Resample, Restore, ResultStep, Step, is_default};
pub use crate::scan::{Interpolation, Resampling, Scaling};
use crate::volume::Axes;

/// What nnU-Net does with a scan before the network sees it, and with its logits. In this order:
/// the axes are transposed, the scan is cropped to what is not 0, its values are scaled, and it is
/// resampled; and back. Version 1 resamples before it scales, and has probabilities where version 2
/// has logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Of nnU-Net: 1 or 2.
    #[serde(default = "two", skip_serializing_if = "is_two")]
    pub version: u32,
    /// The file's axis (0, 1, 2: slowest to fastest) that becomes D, H, W of the network.
    pub transpose: [usize; 3],
    /// Voxel size of the network along \[D,\] H, W; two numbers leave D as it is.
    pub spacing_mm: Vec<f64>,
    /// How each channel is scaled.
    pub channels: Vec<Scaling>,
    /// How the scan is resampled.
    pub resample: Resampling,
    /// How the logits are, or the probabilities.
    pub resample_logits: Resampling,
    /// Of a network of regions, the label that each of its channels writes where its sigmoid is
    /// above 1/2, the later ones over the earlier ones; `None` where classes exclude each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<u16>>,
    /// Filters of labels in the end: nnU-Net's post-processing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub postprocessing: Vec<Filter>,
    /// The labels that the network of a cascade's second stage takes beside the scan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousStage>,
    /// What scans are read with.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reader: Reader,
}

fn two() -> u32 {
    2
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_two(version: &u32) -> bool {
    *version == 2
}

impl Pipeline {
    /// What is wrong with it, for a network of so many dimensions and input channels.
    pub(crate) fn check(&self, dims: u32, channels: u32) -> Result<(), String> {
        if !(1..=2).contains(&self.version) {
            return Err(format!("version {} is not supported; nnU-Net's 1 and 2 are", self.version));
        }
        self.recipe(None).check(dims, channels)
    }

    /// The recipe that it stands for, of a card whose `input.axes` are these.
    #[must_use]
    pub fn recipe(&self, axes: Option<Axes>) -> Recipe {
        let mut steps = vec![Step::Read { by: self.reader }];
        steps.extend(axes.map(|axes| Step::Orient { axes }));
        steps.extend([Step::Transpose { order: self.transpose }, Step::CropNonzero]);
        let scale = Step::ScaleChannels { version: self.version, channels: self.channels.clone() };
        let mm = self.spacing_mm.clone();
        let resample = Step::Resample(Resample::Spline { mm, orders: self.resample });
        steps.extend(if self.is_first() { [resample, scale] } else { [scale, resample] });
        steps.extend(self.previous.clone().map(Step::AddPrevious));
        let half = !self.is_first();
        let restore = Restore::Spline { orders: self.resample_logits, half };
        let labels = match &self.regions {
            Some(labels) => ResultStep::Regions { labels: labels.clone() },
            None => ResultStep::ArgMax,
        };
        let mut results = vec![ResultStep::Average { half }, ResultStep::Restore(restore), labels];
        results.extend(self.postprocessing.iter().cloned().map(ResultStep::Filter));
        Recipe::new(steps, results)
    }

    /// Whether it is that of nnU-Net v1.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.version == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_told() {
        let resample = Resampling { order: 3, ..Resampling::default() };
        let good = Pipeline {
            version: 2,
            transpose: [2, 0, 1],
            spacing_mm: vec![1.0; 3],
            channels: vec![Scaling::None],
            resample,
            resample_logits: resample,
            regions: None,
            postprocessing: Vec::new(),
            previous: None,
            reader: Reader::SimpleItk,
        };
        assert_eq!(good.check(3, 1), Ok(()));
        let bad = |p: Pipeline, word: &str| assert!(p.check(3, 1).is_err_and(|e| e.contains(word)), "{word}");
        bad(Pipeline { transpose: [0, 0, 1], ..good.clone() }, "transpose");
        bad(Pipeline { version: 3, ..good.clone() }, "version 3");
        bad(Pipeline { spacing_mm: vec![1.0; 2], ..good.clone() }, "spacing_mm");
        bad(Pipeline { spacing_mm: vec![1.0, 0.0, 1.0], ..good.clone() }, "spacing_mm");
        bad(Pipeline { channels: vec![], ..good.clone() }, "channels");
        let filter = Filter::LargestComponents { labels: vec![1], connectivity: 4, background: 0, keep_mm3: None };
        bad(Pipeline { postprocessing: vec![filter], ..good.clone() }, "no way to keep parts");
        bad(Pipeline { resample_logits: Resampling { order: 2, ..resample }, ..good }, "order 2");
    }
}
