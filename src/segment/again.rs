//! A segmenter with other options.

use super::{SegmentError, SegmentOptions, Segmenter};
use crate::device::Device;

impl Segmenter {
    /// Segments the next scans with other options. The session of the last scan stays open as long
    /// as it has the same plan and precision.
    ///
    /// # Errors
    /// As [`Segmenter::new`]; the options then stay as they were.
    pub fn set_options(&mut self, options: SegmentOptions) -> Result<(), SegmentError> {
        let before = std::mem::replace(&mut self.options, options);
        if let Err(e) = self.check_options() {
            self.options = before;
            return Err(e);
        }
        self.runner.set_options(&self.options);
        Ok(())
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.runner.device()
    }
}
