//! The part of `organum segment` for models with MONAI's pipeline.

use organum::model::Mode;
use organum::monai::{Case, Pipeline};
use organum::volume::nifti;
use organum::{Model, OutputData, OutputMode, PlanOptions, Windows};
use serde_json::{Map, json};

use crate::args;
use crate::device::{self, Device};
use crate::fail::Failure;
use crate::segment::{Segmented, Wanted};

/// Segments a scan as a MONAI bundle does.
pub(crate) fn segment(
    device: &Device,
    model: &Model,
    pipeline: &Pipeline,
    scan: &nifti::Scan,
    run: &args::Run,
    mode: Mode,
    wanted: &Wanted<'_>,
) -> Result<Segmented, Failure> {
    let card = model.card();
    let options = PlanOptions::default().with_output(OutputMode::Logits);
    let mut told = Map::new();
    let (case, logits, ran) = match mode {
        Mode::Whole => {
            let case = Case::new(card, pipeline, &scan.image, Some(model.stride()))?;
            let (mut outputs, ran) = device::run(device, model, case.input(), run, &options)?.take();
            match outputs.pop().map(|o| o.data) {
                Some(OutputData::Map(logits)) => (case, logits, ran),
                _ => return Err(Failure::internal("the run brought no logits back")),
            }
        }
        Mode::Slices => return Err(Failure::usage("--mode slices: a model with MONAI's pipeline runs in windows or at once")),
        Mode::Window => {
            let case = Case::new(card, pipeline, &scan.image, None)?;
            let windows = Windows::new(card, case.volume.extent).map_err(|e| Failure::usage(format!("--mode window: {e}")))?;
            let ran = device::run_with(device, model, windows.tile(), run, &options, |session, how| {
                pollster::block_on(windows.logits(session, model, case.input(), how))
            })?;
            let (logits, ran) = ran.take();
            told.insert("windows".into(), json!({"count": windows.count(), "passes": windows.passes(), "extent": windows.tile().axes()}));
            (case, logits, ran)
        }
    };
    let (labels, maps) = case.export(logits, card.classes(), wanted.probabilities.is_some())?;
    Ok(Segmented { labels, maps, ran, told, attention: None })
}
