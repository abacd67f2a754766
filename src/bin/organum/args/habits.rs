//! Arguments of the commands that look at the machine, at pictures and at the program itself.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Folder for organum.1 and a page for each command; it is made
    pub(crate) folder: PathBuf,
}

/// A scan and its labels, as they are drawn.
#[derive(Debug, Args)]
pub(crate) struct Picture {
    /// Scan of any format that is read
    pub(crate) scan: PathBuf,
    /// Label map on its grid
    pub(crate) labels: PathBuf,
    /// Model that tells the names of the labels; absent: those that the label map holds
    #[arg(short, long)]
    pub(crate) model: Option<PathBuf>,
    /// Values that are black and white. Not given: soft tissue for CT, else percentiles
    #[arg(long, value_name = "LOW,HIGH", value_parser = super::values::range, allow_hyphen_values = true)]
    pub(crate) grey: Option<[f32; 2]>,
    /// Picture to write
    #[arg(short, long, value_name = "P.png")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Surfaces {
    /// Label map of any format but DICOM
    pub(crate) labels: PathBuf,
    /// Model that tells the names of the labels; absent: those that the label map holds
    #[arg(short, long)]
    pub(crate) model: Option<PathBuf>,
    /// Folder for NAME.stl of each label, or one file of all
    #[arg(short, long, value_name = "DIR|S.obj|S.glb")]
    pub(crate) output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Scan of any format that is read
    pub(crate) scan: PathBuf,
    /// Label map on its grid
    pub(crate) labels: PathBuf,
    /// Model that tells the names of the labels; absent: those that the label map holds
    #[arg(short, long)]
    pub(crate) model: Option<PathBuf>,
    /// Values that are black and white. Not given: soft tissue for CT, else percentiles
    #[arg(long, value_name = "LOW,HIGH", value_parser = super::values::range, allow_hyphen_values = true)]
    pub(crate) grey: Option<[f32; 2]>,
    /// Page of HTML to write
    #[arg(short, long, value_name = "R.html")]
    pub(crate) output: PathBuf,
}
