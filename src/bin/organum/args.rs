//! Arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use organum::{Elem, Extent};

/// Runs medical image segmentation networks on any GPU, on the whole volume, in the memory you give it.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Segments the bundled scans with the bundled model and compares with the bundled labels
    Demo(Demo),
    /// Segments a scan
    Segment(Segment),
    /// Runs the network alone, on arrays
    Infer(Infer),
    /// Shows what a run needs, without a device
    Plan(Plan),
    /// Shows what a model file or a checkpoint holds
    Inspect(Inspect),
    /// Makes a model file of a PyTorch checkpoint or of tensors without a card; runs no code of theirs
    Convert(Convert),
    /// Lists the devices
    Devices(Devices),
    /// Dice and HD95 of each label
    Evaluate(Evaluate),
    /// Times the kernels at the shapes of real networks
    Bench(Bench),
    /// Measures what the device can do and writes it to a file for `--tuning`
    Tune(Tune),
}

/// Where and in how much memory to run.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Most device bytes of the run: a number, or with a suffix KiB MiB GiB kB MB GB. Not given: half of the available
    /// memory on a software adapter, an integrated GPU or `cpu`; on other GPUs what they have memory for
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<u64>,
    /// Index or part of a name from `organum devices`, `cpu` (this host) or `reference`. Not given: a GPU if there is one, else the host
    #[arg(long, value_name = "D")]
    pub(crate) device: Option<String>,
    /// Storage type of activations and weights
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) precision: Precision,
    /// Take NaN and infinite weights, and results of the network that are NaN or infinite
    #[arg(long)]
    pub(crate) allow_non_finite: bool,
    /// Tell the time of every kernel and node, their rates, and what share these are of what the device can do; slows the run
    #[arg(long)]
    pub(crate) profile: bool,
    /// What the device can do, in GFLOP/s and GB/s, instead of measuring it for --profile
    #[arg(long, value_name = "GFLOPS,GBS", value_parser = ceilings, requires = "profile")]
    pub(crate) ceilings: Option<[f64; 2]>,
    /// What `organum tune` measured on this device; plans are ranked by it
    #[arg(long, value_name = "FILE.json")]
    pub(crate) tuning: Option<PathBuf>,
    /// Neither read nor write the file of compiled kernels in the user's cache folder; as does the
    /// environment variable ORGANUM_NO_PIPELINE_CACHE
    #[arg(long)]
    pub(crate) no_pipeline_cache: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

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

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Precision {
    F32,
    F16,
}

impl From<Precision> for Elem {
    fn from(p: Precision) -> Self {
        match p {
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Whole,
    Window,
    Slices,
}

impl From<Mode> for organum::model::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Whole => Self::Whole,
            Mode::Window => Self::Window,
            Mode::Slices => Self::Slices,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Folder for label maps and pictures
    #[arg(long, default_value = "organum-demo")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) host: Host,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, Args)]
pub(crate) struct Segment {
    /// NIfTI file, .nii or .nii.gz; several in the order of the model's channels, or the first, CASE_0000.nii.gz, alone
    #[arg(required = true)]
    pub(crate) input: Vec<PathBuf>,
    /// Model file, the folder of an nnU-Net model (all its folds, averaged), or a MONAI bundle
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// The only fold to take of the folder: a number, or `all`
    #[arg(long, value_name = "K")]
    pub(crate) fold: Option<String>,
    /// Label map to write, on the input's grid
    #[arg(long)]
    pub(crate) output: PathBuf,
    /// The whole volume at once, windows of the card's patch, or, for 2D networks, slices zoomed to it and back; absent: as the card
    /// says, else as the network was published or its extents tell
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Mode>,
    /// Also write a picture of three planes with the labels
    #[arg(long, value_name = "P.png")]
    pub(crate) overlay: Option<PathBuf>,
    /// Also write the probabilities of all classes, 4D
    #[arg(long, value_name = "P.nii.gz")]
    pub(crate) probabilities: Option<PathBuf>,
    /// Also write a picture of the attention gates into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) attention: Option<PathBuf>,
    /// Give the scan's voxels to the network as they are where the model does not say how scans are
    /// prepared
    #[arg(long)]
    pub(crate) raw: bool,
    /// End with exit code 3, and write nothing, where there would be a warning
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) host: Host,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, Args)]
pub(crate) struct Infer {
    /// Model file, or a folder of nnU-Net's (its first fold) or MONAI's
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// .npy of (1,C,[D,]H,W) f32, or a safetensors file holding `input`
    #[arg(long)]
    pub(crate) input: PathBuf,
    /// .npy to write: logits (1,K,[D,]H,W) f32
    #[arg(long)]
    pub(crate) output: PathBuf,
    /// Position of the crop in the volume (architectures with volume tokens)
    #[arg(long, value_name = "z,y,x")]
    pub(crate) position: Option<String>,
    /// Visited volume tokens (architectures with volume tokens)
    #[arg(long, value_name = "i,j,..")]
    pub(crate) visited: Option<String>,
    /// Also write what the network's nodes compute into this folder, as NODE.npy in the layout of the reference implementation.
    /// What is looked at is not fused with what follows, so that the last bits of the result may differ
    #[arg(long, value_name = "DIR")]
    pub(crate) trace: Option<PathBuf>,
    /// Only the nodes with one of these parts in their names
    #[arg(long, value_name = "PART,..", value_delimiter = ',', requires = "trace")]
    pub(crate) trace_nodes: Vec<String>,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Model file, a folder of nnU-Net's or MONAI's, or a card alone (.json)
    #[arg(long)]
    pub(crate) model: PathBuf,
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
    #[arg(long, value_name = "M.safetensors")]
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
    /// Take NaN and infinite weights
    #[arg(long)]
    pub(crate) allow_non_finite: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Model file or checkpoint, or a folder of nnU-Net's or MONAI's
    pub(crate) model: PathBuf,
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
    /// Label map to judge
    pub(crate) prediction: PathBuf,
    /// Label map to judge by
    pub(crate) reference: PathBuf,
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

/// `64MiB` to bytes.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let unit: u64 = match suffix.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(format!("unknown suffix {other:?}; use KiB MiB GiB kB MB GB")),
    };
    if let Ok(n) = number.parse::<u64>() {
        return n.checked_mul(unit).ok_or_else(|| "too large".into());
    }
    let bytes = number.parse::<f64>().ok().map(|n| n * unit as f64).filter(|n| n.is_finite());
    let bytes = bytes.ok_or("not a size: a number, or with a suffix KiB MiB GiB kB MB GB")?;
    // 2^64
    if bytes >= 18_446_744_073_709_551_616.0 {
        return Err("too large".into());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a size like 1.5 GiB, below 2^64; digits and a point make no negative number"
    )]
    Ok(bytes as u64)
}

/// `GFLOPS,GBS` to two numbers.
fn ceilings(text: &str) -> Result<[f64; 2], String> {
    let number = |part: &str| part.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    let both = text.split_once(',').and_then(|(flops, bytes)| Some([number(flops)?, number(bytes)?]));
    both.ok_or_else(|| "not two numbers above 0 like 8000,300".into())
}

/// `DxHxW` to an extent.
fn extent(text: &str) -> Result<Extent, String> {
    let parts: Result<Vec<u32>, _> = text.split('x').map(str::parse).collect();
    match parts.as_deref() {
        Ok([d, h, w]) => Ok(Extent::new(*d, *h, *w)),
        Ok([h, w]) => Ok(Extent::new(1, *h, *w)),
        _ => Err("not an extent: three whole numbers like 128x256x256".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("1048576"), Ok(1 << 20));
        assert_eq!(size("24MiB"), Ok(24 << 20));
        assert_eq!(size("1.5GB"), Ok(1_500_000_000));
        assert!(size("12 parsecs").is_err());
        assert!(size("").is_err());
        assert!(size("99999999999GiB").is_err());
        assert!(size("1000000000000000000000000000000GiB").is_err());
        assert!(size("1.5e30").is_err());
    }

    #[test]
    fn two_ceilings() {
        assert_eq!(ceilings("8e3, 300.5"), Ok([8000.0, 300.5]));
        for wrong in ["", "1", "1,", "1,0", "-1,2", "1,2,3", "nan,1", "inf,1"] {
            assert!(ceilings(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn extents() {
        assert_eq!(extent("2x3x4"), Ok(Extent::new(2, 3, 4)));
        assert!(extent("2x3xq").is_err());
    }

    #[test]
    fn the_parser_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
