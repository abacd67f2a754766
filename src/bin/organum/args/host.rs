//! The bound of the host's memory.

use std::path::Path;

use clap::Args;
use organum::SegmentOptions;

use super::values::size;

/// In how much of the host's memory to run.
#[derive(Debug, Args)]
pub(crate) struct Host {
    /// Most host bytes: scan, prepared scan, sums of windows, class scores, labels, and with `--device cpu` the
    /// device's bytes, too. Not given: as many as are needed
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) host_memory: Option<u64>,
    /// Where --host-memory is too small, let sums and class scores wait in a file beside the output, which vanishes
    /// with the run
    #[arg(long, requires = "host_memory")]
    pub(crate) host_spill: bool,
}

impl Host {
    /// Bounds a segmentation whose labels are written to `output`.
    pub(crate) fn bound(&self, options: &mut SegmentOptions, output: &Path) {
        options.host_memory = self.host_memory;
        let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        options.host_spill = self.host_spill.then(|| folder.to_owned());
    }
}
