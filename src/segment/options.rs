//! How a scan is segmented.

use crate::model::Mode;
use crate::shape::Elem;

/// How scans are segmented.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SegmentOptions {
    /// The whole volume at once, in windows, or in slices; `None` as the model's card has it.
    pub mode: Option<Mode>,
    /// The most device bytes of a run. With `None` a device that shares the host's memory takes
    /// half of what is available, any other what it has.
    pub budget: Option<u64>,
    /// Storage type of activations and weights.
    pub precision: Elem,
    /// Whether probabilities of all classes are returned.
    pub probabilities: bool,
    /// Whether maps of the network's attention are returned.
    pub attention: bool,
    /// Whether voxels go to the network as they are where the model does not say how scans are
    /// prepared; without it such a model is refused.
    pub raw_voxels: bool,
    /// Whether kernels are timed. The run takes longer, its results stay.
    pub profile: bool,
    /// Whether the device's memory is given back after each scan, instead of kept for the next of
    /// the same extent.
    pub close_session: bool,
}

impl SegmentOptions {
    /// Segments in this mode, whatever the card says.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Bounds every device byte of a run.
    #[must_use]
    pub fn with_budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Sets the storage type of activations and weights.
    #[must_use]
    pub fn with_precision(mut self, precision: Elem) -> Self {
        self.precision = precision;
        self
    }

    /// Returns probabilities too.
    #[must_use]
    pub fn with_probabilities(mut self) -> Self {
        self.probabilities = true;
        self
    }

    /// Returns maps of the network's attention too.
    #[must_use]
    pub fn with_attention(mut self) -> Self {
        self.attention = true;
        self
    }

    /// Gives voxels to the network as they are where the model does not say how scans are prepared.
    #[must_use]
    pub fn with_raw_voxels(mut self) -> Self {
        self.raw_voxels = true;
        self
    }

    /// Times the kernels.
    #[must_use]
    pub fn with_profile(mut self) -> Self {
        self.profile = true;
        self
    }

    /// Gives the device's memory back after each scan.
    #[must_use]
    pub fn with_closed_sessions(mut self) -> Self {
        self.close_session = true;
        self
    }
}
