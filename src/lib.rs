//! organum runs medical image segmentation networks on any GPU, on the whole volume, in the memory you give it.
//!
//! ```no_run
//! use organum::{DeviceCaps, Engine, Extent, Input, Model, Plan, PlanOptions, RunOptions, Session};
//!
//! # async fn example(voxels: &[f32]) -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load("hippocampus_u_transformer.safetensors")?;
//! let engine = Engine::request(None).await?; // or Engine::new(&device, &queue): your own wgpu device
//! let extent = Extent::new(40, 56, 40);
//! let plan = Plan::new(&model, extent, engine.caps(), &PlanOptions::default().with_budget(64 << 20))?;
//! println!("{plan}");
//! let mut session = Session::new(&engine, &model, plan).await?;
//! let outputs = session.run(Input { channels: 1, extent, data: voxels }, RunOptions::default()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Data flow: a [`Model`] holds a [`graph::Graph`] and weights; [`Plan::new`] cuts its values into slabs and places them
//! under the budget, without a device; the plan's [`record::Recording`] is run by a [`Session`], on the GPU or on the host
//! with the kernels' scalar twins. See ARCHITECTURE.md for the house on one page.

pub use wgpu;

mod caps;
mod device;
pub mod engine;
mod error;
mod fitting;
pub mod graph;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
pub mod harness;
pub mod host;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
#[path = "../kernels/mod.rs"]
pub mod kernels;
pub mod model;
pub mod monai;
mod networks;
pub mod nnunet;
pub mod pipeline;
pub mod plan;
mod profile;
pub mod record;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
mod reference;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
mod run;
pub mod scan;
pub mod scores;
pub mod segment;
mod session;
mod shape;
#[expect(clippy::cast_possible_truncation, reason = "extents below 2^31, and sums that are stored in f32")]
pub mod tiling;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
mod transfer;
pub mod volume;
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "counts of tokens, and shares that are shown")]
pub mod volume_tokens;
mod warning;
#[expect(clippy::cast_possible_truncation, reason = "lengths of slices that exist on this host")]
pub mod window;

pub use caps::{DeviceCaps, Measured};
pub use device::Device;
pub use engine::Engine;
pub use error::{EngineError, EngineErrorKind, LoadError, LoadErrorKind, PlanError, PlanErrorKind, RunError, RunErrorKind};
pub use fitting::{FitError, smaller_budget};
pub use model::{Card, Model};
pub use networks::{Carried, LoadOptions, Networks};
pub use plan::{Occupancy, OutputMode, Plan, PlanOptions, Planner, Report};
pub use profile::{Clock, Profile, Timed};
pub use run::{Cancel, Progress, RunOptions};
pub use scan::Scan;
pub use segment::{Runner, SegmentError, SegmentOptions, Segmentation, Segmenter, open};
pub use session::Session;
pub use shape::{Elem, Extent, Map, format_bytes};
pub use transfer::{Input, OutputData, OutputVolume};
pub use warning::{Warning, WarningKind};
pub use window::{Blended, Windows};
