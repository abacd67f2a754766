//! Arguments of `organum segment` and `stats`.

use std::path::PathBuf;

use clap::Args;

use super::{Host, Mode, Run};

#[derive(Debug, Args)]
pub(crate) struct Segment {
    /// NIfTI, NRRD, MetaImage or MGH file, or a DICOM series: its folder, its files or a zip
    /// archive of it. Several files in the order of the model's channels, or the first,
    /// CASE_0000.nii.gz, alone. With a folder or a pattern as --output, scans: folders of them,
    /// however deep, patterns such as 'sub-*/anat/*_T1w.nii.gz', or @FILE, a list
    #[arg(required_unless_present = "input_option")]
    pub(crate) input: Vec<PathBuf>,
    /// The same as INPUT
    #[arg(short, long = "input", id = "input_option", value_name = "INPUT", num_args = 1.., conflicts_with = "input")]
    pub(crate) input_option: Vec<PathBuf>,
    /// Model file, the folder of an nnU-Net model (all its folds, averaged), or a MONAI bundle, the
    /// latter two also zipped. Given several times, an ensemble: the models' probabilities are
    /// averaged
    #[arg(short, long, required = true)]
    pub(crate) model: Vec<PathBuf>,
    /// The folds to take of an nnU-Net folder, averaged: numbers, or `all`. Not given: those there
    /// are
    #[arg(long, value_name = "K,..", value_delimiter = ',')]
    pub(crate) fold: Vec<String>,
    /// The checkpoint to take of each fold: `final`, `best`, `latest`, or a file's name. Not given:
    /// that of the whole training
    #[arg(long, value_name = "NAME")]
    pub(crate) checkpoint: Option<String>,
    /// The key of a checkpoint's outermost dict, or the begin of its tensors' names, under which
    /// the network is, where there are several: `ema`, `teacher`
    #[arg(long, value_name = "KEY")]
    pub(crate) weights: Option<String>,
    /// Share of a window that its neighbour overlaps, from 0 to below 1. Not given: as the model
    /// has it
    #[arg(long, value_name = "X")]
    pub(crate) overlap: Option<f64>,
    /// Distance of neighbouring windows as a share of a window, above 0 to 1, nnU-Net's step_size;
    /// what
    /// --overlap leaves of 1
    #[arg(long, value_name = "X", conflicts_with = "overlap")]
    pub(crate) step_size: Option<f64>,
    /// Leave out the mirror images of windows that the model asks for, nnU-Net's --disable_tta
    #[arg(long, aliases = ["disable-tta", "disable_tta"])]
    pub(crate) no_mirror: bool,
    /// postprocessing.pkl or postprocessing.json of nnU-Net, applied to the labels; absent: that
    /// beside the model, if there is one
    #[arg(long, value_name = "FILE")]
    pub(crate) postprocessing: Option<PathBuf>,
    /// Leave out the postprocessing.pkl or .json beside the model, nnU-Net v1's
    /// --disable_postprocessing
    #[arg(long, alias = "disable_postprocessing", conflicts_with = "postprocessing")]
    pub(crate) no_postprocessing: bool,
    /// Label map of the previous stage of a cascade, on the input's grid; absent: the model of that
    /// stage, whose folder lies beside the model's, runs first. For many scans with {case} in its
    /// name
    #[arg(long, value_name = "LABELS")]
    pub(crate) previous: Option<PathBuf>,
    /// UID of the DICOM series to take, where there are several
    #[arg(long, value_name = "UID")]
    pub(crate) series: Option<String>,
    /// Label map to write, on the input's grid: .nii, .nii.gz, .seg.nrrd (3D Slicer), .nrrd or
    /// .mha. For many scans a folder (that is there, or ends in /), which gets CASE.nii.gz, or a
    /// name with {case} in it
    #[arg(short, long)]
    pub(crate) output: PathBuf,
    /// The whole volume at once, windows of the card's patch, or, for 2D networks, slices zoomed to
    /// it and back; absent: as the card says, else as the network was published or its extents tell
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Mode>,
    /// Also write a picture: three planes and a row of slices with the labels, and their names
    #[arg(long, value_name = "P.png")]
    pub(crate) overlay: Option<PathBuf>,
    /// Also write a page of HTML: slices with labels that can be switched off, their measures,
    /// warnings, and how they were made; it needs no network
    #[arg(long, value_name = "R.html")]
    pub(crate) report: Option<PathBuf>,
    /// Values of the scan that are black and white in pictures. Not given: as the model sees CT,
    /// soft tissue for other CT, else percentiles
    #[arg(long, value_name = "LOW,HIGH", value_parser = super::values::range, allow_hyphen_values = true)]
    pub(crate) grey: Option<[f32; 2]>,
    /// Also write the probabilities of all classes, 4D
    #[arg(long, value_name = "P.nii.gz")]
    pub(crate) probabilities: Option<PathBuf>,
    /// Also write a picture of the attention gates into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) attention: Option<PathBuf>,
    /// Also write a mask of each class into this folder, NAME.nii.gz
    #[arg(long, value_name = "DIR")]
    pub(crate) masks: Option<PathBuf>,
    /// Also write the surfaces of the labels: into a folder NAME.stl of each, or all into one file
    #[arg(long, value_name = "DIR|S.obj|S.glb")]
    pub(crate) surfaces: Option<PathBuf>,
    /// Also write names and colours of the labels: .txt for ITK-SNAP, .ctbl for 3D Slicer
    #[arg(long, value_name = "T.txt|T.ctbl")]
    pub(crate) label_table: Option<PathBuf>,
    /// Also write volumes, places and values of the labels
    #[arg(long, value_name = "S.json|S.csv")]
    pub(crate) statistics: Option<PathBuf>,
    /// Of many scans, leave out those whose --output is there
    #[arg(long)]
    pub(crate) resume: bool,
    /// Of many scans, take every n-th from the i-th on, from 1
    #[arg(long, value_name = "i/n", value_parser = super::values::shard)]
    pub(crate) shard: Option<[usize; 2]>,
    /// Of many scans, append a line of JSON for each to this file; absent: manifest.jsonl in the
    /// folder of --output
    #[arg(long, value_name = "M.jsonl")]
    pub(crate) manifest: Option<PathBuf>,
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

impl Segment {
    /// The paths of the scans, however they were given.
    pub(crate) fn inputs(&self) -> &[PathBuf] {
        if self.input.is_empty() { &self.input_option } else { &self.input }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Label map of any format but DICOM
    pub(crate) labels: PathBuf,
    /// Scan on the same grid, whose values are told
    pub(crate) scan: Option<PathBuf>,
    /// Model that tells the names of the labels; absent: those that the
    /// label map holds
    #[arg(short, long)]
    pub(crate) model: Option<PathBuf>,
    /// File to write
    #[arg(short, long, value_name = "S.json|S.csv")]
    pub(crate) output: Option<PathBuf>,
    /// End with exit code 3 where there would be a warning
    #[arg(long)]
    pub(crate) strict: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
