//! The first stage of a cascade, whose labels the second takes with the scan.

use std::pin::Pin;

use super::{SegmentError, SegmentOptions, Segmentation, Segmenter};
use crate::run::RunOptions;
use crate::scan::Scan;
use crate::volume::Volume;

/// A future of its own, which may go to another thread but in browsers.
#[cfg(not(target_arch = "wasm32"))]
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
#[cfg(target_arch = "wasm32")]
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

impl Segmenter {
    /// The labels of the previous stage of a cascade, on the scan's grid: what
    /// [`Scan::with_previous`] takes. The model of that stage is the one whose folder lies beside
    /// the model's, with its folds and checkpoints as they were asked for; its post-processing is
    /// left out, as nnU-Net does. `None` for models that are no second stage, and for scans that have
    /// such labels.
    ///
    /// [`Segmenter::segment`] does this by itself, [`Segmenter::prepare`] does not.
    ///
    /// # Errors
    /// When there is no such folder, or as [`Segmenter::segment`].
    pub async fn previous_stage<'a>(
        &mut self,
        scan: impl Into<Scan<'a>>,
        mut how: RunOptions<'_>,
    ) -> Result<Option<Volume<u16>>, SegmentError> {
        let scan = scan.into();
        if scan.previous.is_some() || self.model().card().input.recipe().previous().is_none() {
            return Ok(None);
        }
        // a stage at a time lies on the device
        self.runner.close();
        let previous = match &mut self.previous {
            Some(previous) => previous,
            none => {
                let networks = self.networks.previous_stage()?;
                let options = SegmentOptions {
                    mode: None,
                    probabilities: false,
                    attention: false,
                    profile: false,
                    close_session: true,
                    ..self.options.clone()
                };
                none.insert(Box::new(Self::new(networks, self.runner.device.clone(), options)?))
            }
        };
        let segmentation = previous.boxed(scan, how.reborrow()).await?;
        Ok(Some(segmentation.labels))
    }

    /// [`Segmenter::segment`] as a future that does not hold its own kind.
    fn boxed<'a>(&'a mut self, scan: Scan<'a>, how: RunOptions<'a>) -> Boxed<'a, Result<Segmentation, SegmentError>> {
        Box::pin(self.segment(scan, how))
    }

    /// [`Segmenter::previous_stage`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Segmenter::previous_stage`].
    pub fn previous_stage_blocking<'a>(
        &mut self,
        scan: impl Into<Scan<'a>>,
        how: RunOptions<'_>,
    ) -> Result<Option<Volume<u16>>, SegmentError> {
        pollster::block_on(self.previous_stage(scan, how))
    }
}
