//! Model folders of nnU-Net: what its plans say becomes a card, and scans are prepared and results exported as it does it.
//!
//! Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation" (Nature
//! Methods 18, 2021), as nnunetv2 2.8.1 runs on a CPU. A folder holds `plans.json`, `dataset.json` and, for each fold, a checkpoint
//! `fold_K/checkpoint_final.safetensors` ([`Folder`]). The card that is made of it names the network, the windows
//! (`inference.patch`, `overlap`, `mirror`, `scheme: nnunet_v2`), and under `input.nnunet` everything else that
//! nnU-Net does with a scan ([`Pipeline`]):
//! ```json
//! {"transpose": [0, 1, 2], "spacing_mm": [5.0, 0.8, 0.8],
//!  "channels": [{"scheme": "ct", "low": -930.0, "high": 160.0, "mean": 35.0, "std": 60.0}, {"scheme": "zscore", "masked": true}],
//!  "resample": {"order": 3, "order_along": 0, "separate": null},
//!  "resample_logits": {"order": 1, "order_along": 0, "separate": null}}
//! ```
//! `spacing_mm` has two numbers for a 2d configuration, whose slices stay as they are. `separate` says whether the axis of the
//! thickest slices is resampled by itself (with `order_along`); null: where slices are thicker than
//! wide by more than `threshold`, 3 if it is absent. `by` says what resamples: `spline` (if
//! absent), `torch` or `none`. `regions`, if there are any, are the labels that the network's
//! channels write where their sigmoid is above 1/2, one after the other.
//!
//! `reader` names the class that nnU-Net reads scans with ([`Reader`]); without it that is
//! `SimpleITKIO`. A scan has the spacing which that reader says: the pixdim, also where the sform
//! says another, and for 2D images 999 times the greatest of both for the missing axis.
//!
//! `postprocessing` is what is done to the labels in the end, a list of
//! [`Filter`](crate::scan::Filter)s: what a `postprocessing.pkl` or `.json` beside the plans says.
//!
//! With `"version": 1` it is the pipeline of nnU-Net v1, as nnunet 1.7.1 runs on a CPU. Its folders hold `plans.pkl` and, for each fold,
//! `fold_K/model_final_checkpoint.model` and `.model.pkl`, whose plans and trainer are what counts; the scheme of its windows is
//! `nnunet_v1`.

mod architecture;
mod folder;
mod labels;
mod locate;
mod pipeline;
mod postprocessing;
mod resampling;
mod v1;
mod v2;

use crate::scan::reader;
pub(crate) use folder::beside;
pub use folder::{FoldCheckpoint, Folder};
pub(crate) use locate::of_part;
pub use pipeline::{Interpolation, Pipeline, Resampling, Scaling};
pub use postprocessing::postprocessing;
pub use reader::Reader;
pub use v2::card;

#[cfg(fuzzing)]
pub(crate) fn fuzz_sidecar(bytes: &[u8], checkpoint: &crate::model::Checkpoint) {
    let path = std::path::Path::new("nnUNetTrainerV2__nnUNetPlansv2.1");
    drop(v1::Sidecar::read(path, bytes, path).map(|sidecar| (sidecar.note(), sidecar.card(checkpoint))));
}
