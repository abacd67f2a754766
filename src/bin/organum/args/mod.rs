//! Arguments.

mod habits;
mod host;
mod models;
mod segment;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use habits::{Completions, Doctor, Man, Picture, Report, Surfaces};
pub(crate) use host::Host;
pub(crate) use models::{Bench, Convert, Devices, Evaluate, Inspect, Plan, Tune};
pub(crate) use segment::{Segment, Stats};
pub(crate) use values::Precision;
use values::{ceilings, size};

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
    /// Segments a scan, or many
    Segment(Box<Segment>),
    /// Measures the labels of a map: volumes, places, and values of a scan in them
    Stats(Stats),
    /// Draws a scan with its labels: three planes, a row of slices, and the labels' names
    Picture(Picture),
    /// Makes a page of HTML of a scan with its labels, which needs no network
    Report(Report),
    /// Makes surfaces of a label map: STL, OBJ or GLB
    Surfaces(Surfaces),
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
    /// Dice, HD95, surface Dice and volumes of each label
    Evaluate(Evaluate),
    /// Times the kernels at the shapes of real networks
    Bench(Bench),
    /// Measures what the device can do and writes it to a file for `--tuning`
    Tune(Tune),
    /// Tells what organum finds on this machine, and what to install
    Doctor(Doctor),
    /// Prints a script that completes commands and options in a shell
    Completions(Completions),
    /// Writes manual pages
    Man(Man),
}

/// Where and in how much memory to run.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Most device bytes of the run: a number, or with a suffix K M G (of 1024), kB MB GB (of
    /// 1000). Not given: half of the available memory on a software adapter, an integrated GPU or
    /// `cpu`; on other GPUs what they have memory for
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
    /// No progress, warnings or notes on stderr; errors stay
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Also where stderr is no terminal, tell the progress in lines
    #[arg(short, long, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
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

/// Which network of an nnU-Net folder.
#[derive(Debug, Default, Args)]
pub(crate) struct Which {
    /// Which fold of an nnU-Net folder: a number, or `all`. Not given: the first
    #[arg(long, value_name = "K")]
    pub(crate) fold: Option<String>,
    /// The checkpoint of the fold: `final`, `best`, `latest`, or a file's name. Not given: that of
    /// the whole training
    #[arg(long, value_name = "NAME")]
    pub(crate) checkpoint: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Infer {
    /// Model file, or a folder of nnU-Net's (its first fold) or MONAI's, also zipped
    #[arg(short, long)]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) which: Which,
    /// .npy of (1,C,[D,]H,W) f32, or a safetensors file holding `input`
    #[arg(short, long)]
    pub(crate) input: PathBuf,
    /// .npy to write: logits (1,K,[D,]H,W) f32
    #[arg(short, long)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parser_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
