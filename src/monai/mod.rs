//! MONAI bundles: what their config says becomes a card, and scans are prepared and results inverted as MONAI does it.
//!
//! Source: Cardoso et al., "MONAI: An open-source framework for deep learning in healthcare" (arXiv 2211.02701), and the bundle
//! specification, as MONAI 1.6.1 runs a bundle on a CPU. A bundle is a folder with `configs/inference.json` (or `.yaml`),
//! `configs/metadata.json` and `models/model.pt` ([`Bundle`]). Of the config are read `network_def` (or `network`),
//! `preprocessing`, `inferer` and `postprocessing`; Python in it is not run, but references (`@id::0`), literals, lists, sums and
//! `len` are resolved. The card that is made of it names the network, the windows (`inference`), and under `input.monai` everything
//! that happens to a scan before the network sees it, and to what the network says ([`Pipeline`]):
//! ```json
//! {"transforms": [{"transform": "orientation", "axes": "RAS"}, {"transform": "spacing", "mm": [1.5, 1.5, 2.0]},
//!                 {"transform": "scale_range", "from": [-57, 164], "to": [0, 1], "clip": true}],
//!  "invert": "probabilities"}
//! ```
//! What this version does not do is refused with its name.
//!
//! Grids are those of MONAI on an x86 CPU with AVX-512, to the last bit, for oblique and sheared
//! scans too: `Spacing` takes shear away and aligns a corner or the centres as its own test says. A
//! scan lies where MONAI's reader sees it, by the qform if the sform's spacing is not the pixdim
//! ([`crate::Scan::as_monai_reads`]). One thing differs on purpose: a file in metres or microns is
//! scaled to millimetres, which nibabel and so MONAI do not do.
//!
//! Where labels lie is what the bundle asks for ([`Invert`]). With `Invertd` they come back to the
//! scan's grid, `nearest_interp` as told; one whose `orig_keys` do not name the image inverts
//! nothing, in MONAI either. Without it `SaveImaged` writes the grid that the preprocessing makes,
//! or with `resample` brings labels to the scan's grid in one step. Its other arguments
//! (`output_dir`, `output_dtype`, `separate_folder` and so on) say where and in what form files are
//! written, which is the caller's matter here: labels are whole numbers in a file of the caller's
//! choice. `scale`, which would change them, is refused.

mod bundle;
mod config;
mod expression;
mod network;
mod pipeline;
mod transforms;

pub use bundle::Bundle;
pub use pipeline::{Filter, Invert, Largest, Pipeline, Transform};

use crate::error::{LoadError, LoadErrorKind};

#[cfg(fuzzing)]
pub(crate) fn fuzz_config(text: &str, yaml: bool) {
    drop(config::Config::parse(text, yaml).map(|config| Bundle::of_config(config).card()));
}

#[cfg(fuzzing)]
pub(crate) fn fuzz_expression(text: &str) {
    drop(expression::evaluate(text, &mut |id| (id.len() < 4).then(|| id.into())));
}

/// What is wrong with a bundle's config.
fn bad(message: impl Into<String>) -> LoadError {
    LoadError::new(LoadErrorKind::Card, message)
}
