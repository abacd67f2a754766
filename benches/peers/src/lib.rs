//! organum and burn on one case, and organum on a machine with a GPU: what `run` and
//! `../device.sh` drive.

use serde_json::Value;

pub mod case;
#[cfg(feature = "burn")]
mod nets;
pub mod ours;
pub mod table;
#[cfg(feature = "burn")]
pub mod theirs;

/// What can go wrong, for a line of JSON.
pub type Failure = Box<dyn std::error::Error>;

/// A case that is ready to run on one side.
pub trait Side {
    /// The result as `[C][D][H][W]`.
    fn output(&mut self) -> Result<Vec<f32>, Failure>;

    /// Seconds of a run.
    fn seconds(&mut self) -> Result<f64, Failure>;

    /// What it runs on.
    fn about(&self) -> Value;
}
