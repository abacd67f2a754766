//! organum runs medical image segmentation networks on any GPU, on the whole volume, in the memory
//! you give it.
//!
//! # Segment a scan
//!
//! ```no_run
//! # #[cfg(feature = "nifti")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use organum::volume::{file, nifti};
//! use organum::{Device, LoadOptions, RunOptions, SegmentOptions, Segmenter};
//!
//! let model = organum::open("spleen_bundle", &LoadOptions::default())?;
//! let options = SegmentOptions::default().with_budget(1 << 30);
//! let mut segmenter = Segmenter::new(model, Device::Host, options)?;
//! let scan = file::read("scan.nii.gz")?; // or NRRD, MetaImage, a DICOM folder
//! let result = segmenter.segment_blocking(&scan, RunOptions::default())?;
//! nifti::write_labels("labels.nii.gz", &scan.header, &result.labels)?;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "nifti"))]
//! # fn main() {}
//! ```
//!
//! - [`open`] opens whatever is a model: a model file, a PyTorch checkpoint, an nnU-Net folder, a MONAI bundle. No code of a
//!   file is run.
//! - [`Segmenter`] takes scan after scan through preparation, network and export, and returns a [`Segmentation`]: labels on
//!   the scan's grid, volumes, and probabilities and attention if they are asked for. It is async; `segment_blocking` is
//!   for callers without an executor. [`RunOptions`] carry progress and a [`Cancel`].
//! - [`Device`] is where it runs: the host, or an [`Engine`] on a wgpu device, yours ([`Engine::new`]) or one that is
//!   requested. Nothing is global, no callback is installed, nothing is printed.
//! - [`volume::Volume`] holds voxels with their grid; [`volume::file`] reads NIfTI, NRRD,
//!   MetaImage, MGH and DICOM files,
//!   [`volume::nifti`] writes files. Voxels of your own are
//!   segmented like those of a file.
//! - Errors are [`SegmentError`], which holds the error of the stage that failed.
//!
//! What happens to a scan, and to the network's scores, is a [`scan::Recipe`] in the model's
//! [`Card`].
//!
//! # Memory
//!
//! A budget bounds every device byte of a run: weights, activations, uniforms, staging. The volume
//! is cut into slabs along its first axis, which are computed, spilled to the host or computed
//! again as the budget has it; the result has the same bits for every budget. One that is too small
//! is refused before anything runs, and the error names the smallest that works. Without a budget a
//! device that shares the host's memory takes half of what is available, and any other GPU is tried
//! again within less as often as it runs out of memory.
//!
//! Class scores are never all on the scan's grid: labels are made of two planes of them at a time.
//! [`SegmentOptions::with_host_memory`] bounds what a segmentation takes of the host, and
//! [`SegmentOptions::with_host_spill`] lets what does not fit wait in a file.
//!
//! # The network alone
//!
//! A [`Model`] holds a graph and weights. [`Plan::new`] cuts the values of the graph into slabs and
//! places them under the budget, without a device. A [`Session`] runs the plan's recording, on the
//! GPU or on the host; [`Runner`] does both, and plans again where memory runs out. Networks of
//! your own are built node by node ([`Model::from_graph`]).
//!
//! Everything below is in [`low_level`]: graphs, kernels, recordings, plans. These interfaces may
//! change with any version.
//!
//! # Features
//!
//! | feature | what | default |
//! |---|---|---|
//! | `cli` | the command line `organum` and what only it needs; implies the others | yes |
//! | `nifti` | reading NIfTI, NRRD, MetaImage and MGH volumes, writing NIfTI ([`volume::file`], [`volume::nifti`]) | with `cli` |
//! | `archives` | reading models from zip archives (`Unpacked`) | with `cli` |
//! | `dicom` | reading DICOM series ([`volume::file`]) | with `cli` |
//! | `yaml` | configs of MONAI bundles that are YAML | with `cli` |
//! | `tracing` | spans of the stages of a segmentation, for the crate `tracing`: `prepare`, `plan`, `open`, `run`, `export` | with `cli` |
//!
//! A library user takes `default-features = false, features = ["nifti"]`. No feature changes a
//! result.
//!
//! organum 0.1 goes with wgpu 30, which is re-exported as [`wgpu`]. ARCHITECTURE.md in the
//! repository is the house on one page; `examples/` are programs that embed it.

pub use wgpu;

#[macro_use]
mod trace;

#[cfg(feature = "archives")]
#[forbid(unsafe_code)]
mod archive;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod back;
#[forbid(unsafe_code)]
mod caps;
#[forbid(unsafe_code)]
mod device;
#[doc(hidden)]
pub mod engine;
#[forbid(unsafe_code)]
mod error;
#[forbid(unsafe_code)]
pub mod export;
#[forbid(unsafe_code)]
mod fitting;
#[cfg(fuzzing)]
#[allow(missing_docs, unused_results, clippy::all, reason = "compiled by fuzz/ alone")]
#[doc(hidden)]
pub mod fuzzing;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod graph;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod harness;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod host;
#[forbid(unsafe_code)]
mod host_budget;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
#[path = "../kernels/mod.rs"]
#[doc(hidden)]
pub mod kernels;
#[forbid(unsafe_code)]
pub mod model;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod monai;
#[forbid(unsafe_code)]
mod networks;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod nnunet;
#[doc(hidden)]
pub mod plan;
#[forbid(unsafe_code)]
mod profile;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod record;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
#[forbid(unsafe_code)]
mod reference;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
#[forbid(unsafe_code)]
mod run;
#[forbid(unsafe_code)]
pub mod scan;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod scores;
#[forbid(unsafe_code)]
pub mod segment;
#[forbid(unsafe_code)]
mod session;
#[forbid(unsafe_code)]
mod shape;
#[expect(clippy::cast_possible_truncation, reason = "extents below 2^31, and sums that are stored in f32")]
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod tiling;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
#[forbid(unsafe_code)]
mod transfer;
#[forbid(unsafe_code)]
pub mod volume;
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "counts of tokens, and shares that are shown")]
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod volume_tokens;
#[forbid(unsafe_code)]
mod warning;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod window;

#[cfg(feature = "archives")]
pub use archive::Unpacked;
pub use caps::{DeviceCaps, Measured};
pub use device::Device;
pub use engine::Engine;
pub use error::{EngineError, EngineErrorKind, LoadError, LoadErrorKind, PlanError, PlanErrorKind, RunError, RunErrorKind, one_line};
pub use fitting::{FitError, smaller_budget};
pub use host_budget::{HostNeeds, HostPlace, HostPlan};
pub use model::{Card, Model};
pub use networks::{Carried, LoadOptions, Networks, aside};
pub use plan::{Occupancy, OutputMode, Plan, PlanOptions, Planner, Report};
pub use profile::{Clock, Profile, Timed};
pub use run::{Cancel, Progress, RunOptions};
pub use scan::Scan;
pub use segment::{Runner, SegmentError, SegmentOptions, Segmentation, Segmenter, open};
pub use session::Session;
pub use shape::{Elem, Extent, Map, format_bytes, parse_bytes};
pub use transfer::{Input, OutputData, OutputVolume};
pub use warning::{Warning, WarningKind};
pub use window::{Blended, Windows};

/// The parts that organum is made of: graphs, kernels, plans, recordings, readers of formats. They
/// are for building networks node by node, for benches and for tools, and may change with any
/// version.
pub mod low_level {
    #[doc(inline)]
    pub use crate::{back, engine, graph, harness, host, kernels, monai, nnunet, plan, record, scores, tiling, volume_tokens, window};
}
