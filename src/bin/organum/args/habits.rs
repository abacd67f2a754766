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

#[derive(Debug, Args)]
pub(crate) struct Picture {
    /// Scan of any format that is read
    pub(crate) scan: PathBuf,
    /// Label map on its grid
    pub(crate) labels: PathBuf,
    /// Picture to write
    #[arg(short, long, value_name = "P.png")]
    pub(crate) output: PathBuf,
}
