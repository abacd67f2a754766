//! Arguments of the commands on models, devices and label maps.

use std::path::PathBuf;

use clap::Args;
use organum::Extent;

use super::values::{extent, size};
use super::{Host, Precision, Which};
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Model file, a folder of nnU-Net's or MONAI's, also zipped, or a card alone (.json)
    #[arg(short, long)]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Extent of the input, DxHxW (1xHxW or HxW for an image)
    #[arg(long, value_parser = extent)]
    pub(crate) extent: Extent,
    /// Most device bytes of the run
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<u64>,
    /// Storage type of activations and weights
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) precision: Precision,
    /// Also draw the bytes alive over time
    #[arg(long, value_name = "P.png")]
    pub(crate) plot: Option<PathBuf>,
    /// `default` (what every WebGPU device guarantees), `desktop` (bindings of 2 GiB), `host` (this one) or a JSON file of limits
    #[arg(long, default_value = "default", value_name = "default|desktop|host|FILE.json")]
    pub(crate) caps: String,
    /// A table of plans from no budget to 0.5 GB, in both precisions
    #[arg(long, conflicts_with_all = ["memory", "plot", "json"])]
    pub(crate) table: bool,
    /// Keep every slab on the device
    #[arg(long)]
    pub(crate) no_spill: bool,
    /// Compute nothing twice
    #[arg(long)]
    pub(crate) no_recompute: bool,
    /// Take NaN and infinite weights
    #[arg(long)]
    pub(crate) allow_non_finite: bool,
    #[command(flatten)]
    pub(crate) host: Host,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// .safetensors, what torch.save or torch.jit.save wrote (.pth, .pt, .ckpt, .model), the folder of an nnU-Net model, or a
    /// MONAI bundle
    pub(crate) source: PathBuf,
    /// Model file to write: .safetensors
    #[arg(short, long, value_name = "M.safetensors")]
    pub(crate) output: PathBuf,
    /// The network, where the names of the tensors do not tell it
    #[arg(long, value_name = "A")]
    pub(crate) architecture: Option<String>,
    /// Arguments of the network that shapes do not tell, as a JSON object
    #[arg(long, value_name = "C.json")]
    pub(crate) config: Option<PathBuf>,
    /// A card or a part of one: input, inference, labels, provenance
    #[arg(long, value_name = "CARD.json")]
    pub(crate) card: Option<PathBuf>,
    /// Which fold of a folder: a number, or `all`; needed where it has several
    #[arg(long, value_name = "K", conflicts_with_all = ["architecture", "config", "card"])]
    pub(crate) fold: Option<String>,
    /// The checkpoint of the fold: `final`, `best`, `latest`, or a file's name. Not given: that of
    /// the whole training
    #[arg(long, value_name = "NAME", conflicts_with_all = ["architecture", "config", "card"])]
    pub(crate) checkpoint: Option<String>,
    /// The key of a checkpoint's outermost dict, or the begin of its tensors' names, under which
    /// the network is, where there are several: `ema`, `teacher`
    #[arg(long, value_name = "KEY")]
    pub(crate) weights: Option<String>,
    /// Take NaN and infinite weights
    #[arg(long)]
    pub(crate) allow_non_finite: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Model file or checkpoint, or a folder of nnU-Net's or MONAI's, also zipped
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Take NaN and infinite weights
    #[arg(long)]
    pub(crate) allow_non_finite: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Devices {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Evaluate {
    /// Label map to judge, or a folder of them
    pub(crate) prediction: PathBuf,
    /// Label map to judge by, or a folder of them, which are compared by name
    pub(crate) reference: PathBuf,
    /// Distance in mm within which a surface counts as met
    #[arg(long, value_name = "MM", default_value_t = organum::volume::TOLERANCE_MM)]
    pub(crate) tolerance: f64,
    /// Also write a table, a line for each label of each case
    #[arg(long, value_name = "FILE.csv")]
    pub(crate) csv: Option<PathBuf>,
    /// End with exit code 3 where there would be a warning
    #[arg(long)]
    pub(crate) strict: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Only cases with this in their name
    pub(crate) filter: Option<String>,
    /// Index or part of a name from `organum devices`
    #[arg(long, value_name = "D")]
    pub(crate) device: Option<String>,
    /// Half the extents, as on software adapters
    #[arg(long)]
    pub(crate) small: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Tune {
    /// The JSON file to write
    pub(crate) output: PathBuf,
    /// Index or part of a name from `organum devices`. Not given: the adapter that wgpu prefers
    #[arg(long, value_name = "D")]
    pub(crate) device: Option<String>,
}
