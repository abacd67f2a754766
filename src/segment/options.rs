//! How a scan is segmented.

use std::path::PathBuf;

use crate::model::Mode;
use crate::shape::Elem;

/// How scans are segmented.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SegmentOptions {
    /// The whole volume at once, in windows, or in slices; `None` as the model's card has it.
    pub mode: Option<Mode>,
    /// The share of a window that its neighbour overlaps, from 0 to below 1; `None` as the model's
    /// card has it.
    pub overlap: Option<f64>,
    /// The distance of neighbouring windows as a share of a window, above 0 to 1, nnU-Net's
    /// `step_size`: what `overlap` leaves of 1, in place of it.
    pub step: Option<f64>,
    /// Whether windows are not mirrored, whatever the model's card says.
    pub unmirrored: bool,
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
    /// The most bytes of host memory of a segmentation: scan, prepared scan, sums of windows, class
    /// scores, labels, and the device's bytes where the host is the device. Lists, stacks of threads
    /// and buffers of files are not counted. With a bound no session is kept for the next scan. With
    /// `None` it takes what it needs.
    pub host_memory: Option<u64>,
    /// The folder in which sums and class scores may lie in files without a name where `host_memory`
    /// is too small for them; with `None` such a bound is refused.
    pub host_spill: Option<PathBuf>,
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

    /// Lets neighbouring windows overlap by this share of a window, from 0 to below 1.
    #[must_use]
    pub fn with_overlap(mut self, share: f64) -> Self {
        (self.overlap, self.step) = (Some(share), None);
        self
    }

    /// Moves windows by this share of a window, above 0 to 1.
    #[must_use]
    pub fn with_step(mut self, share: f64) -> Self {
        (self.overlap, self.step) = (None, Some(share));
        self
    }

    /// Leaves out the mirror images of windows.
    #[must_use]
    pub fn without_mirroring(mut self) -> Self {
        self.unmirrored = true;
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

    /// Bounds the host's memory of a segmentation.
    #[must_use]
    pub fn with_host_memory(mut self, bytes: u64) -> Self {
        self.host_memory = Some(bytes);
        self
    }

    /// Lets sums and class scores lie in files in this folder where the bound of the host's memory is
    /// too small for them. They vanish with the run.
    #[must_use]
    pub fn with_host_spill(mut self, folder: impl Into<PathBuf>) -> Self {
        self.host_spill = Some(folder.into());
        self
    }

    /// Gives the device's memory back after each scan.
    #[must_use]
    pub fn with_closed_sessions(mut self) -> Self {
        self.close_session = true;
        self
    }
}
