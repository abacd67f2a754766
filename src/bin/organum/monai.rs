//! The part of `organum segment` for models with MONAI's pipeline.

use organum::export::{Exported, hand_over};
use organum::model::Mode;
use organum::monai::{Case, Export, Invert, Pipeline};
use organum::volume::{Volume, VolumeError, nifti};
use organum::{HostNeeds, Model, OutputData, OutputMode, PlanOptions, Warning, WarningKind, Windows};
use serde_json::{Map, json};

use crate::args;
use crate::device::{self, Device};
use crate::fail::Failure;
use crate::host::Bounded;
use crate::segment::{Segmented, Wanted};

/// Warnings of what the bundle does with a scan that its owner may not expect; `seen` is the image
/// where MONAI's reader sees it.
pub(crate) fn warnings(pipeline: &Pipeline, scan: &nifti::Scan, seen: &Volume<f32>) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if pipeline.invert == Invert::Nothing {
        let text = "the bundle inverts nothing and saves without resampling: the labels are written on the grid that its \
                    preprocessing makes of the scan, not on the scan's; for that, give its postprocessing an Invertd";
        warnings.push(Warning::new(WarningKind::Pipeline, text));
    }
    if seen.axes != scan.image.axes {
        let text = format!(
            "the pixdim of the scan is not the spacing of its sform; MONAI's reader then takes the qform, by which the axes \
             run along {} (D, H, W), not {}",
            seen.axes, scan.image.axes
        );
        warnings.push(Warning::new(WarningKind::Geometry, text));
    }
    warnings
}

/// Segments a scan as a MONAI bundle does.
pub(crate) fn segment(
    device: &Device,
    model: &Model,
    pipeline: &Pipeline,
    (scan, seen): (&nifti::Scan, &Volume<f32>),
    a: &args::Segment,
    mode: Mode,
    wanted: &Wanted<'_>,
) -> Result<Segmented, Failure> {
    let (card, run) = (model.card(), &a.run);
    let mut options = PlanOptions::default().with_output(OutputMode::Logits);
    let mut told = Map::new();
    let maps = wanted.probabilities.is_some();
    let (export, ran) = match mode {
        Mode::Whole => {
            let case = Case::new(card, pipeline, seen, Some(model.stride()))?;
            let mut export = Export::new(&case, card.classes(), maps);
            let [prepared, preparing] = case.host_bytes();
            let bytes = [seen.data.len() as u64 * 4, prepared, preparing];
            let needs = HostNeeds::at_once(bytes, export.bytes());
            let bounds = (&a.host, run);
            let mut bounded = Bounded::new(device, model, case.volume.extent, needs, bounds, &mut options, wanted.labels)?;
            if let Some(file) = bounded.scores.take() {
                export.spill_to(file);
            }
            let (mut outputs, ran) = device::run(device, model, case.input(), run, &options)?.take();
            told.insert("host_memory".into(), bounded.told(device, &ran));
            let Some(OutputData::Map(logits)) = outputs.pop().map(|o| o.data) else {
                return Err(Failure::internal("the run brought no logits back"));
            };
            hand_over(&logits, card.classes(), case.volume.extent, &mut export)?;
            (export, ran)
        }
        Mode::Slices => return Err(Failure::usage("--mode slices: a model with MONAI's pipeline runs in windows or at once")),
        Mode::Window => {
            let case = Case::new(card, pipeline, seen, None)?;
            let windows = Windows::new(card, case.volume.extent).map_err(|e| Failure::usage(format!("--mode window: {e}")))?;
            let mut export = Export::new(&case, card.classes(), maps);
            let [prepared, preparing] = case.host_bytes();
            let bytes = [seen.data.len() as u64 * 4, prepared, preparing];
            let needs = windows.host_needs(card.classes(), bytes, export.bytes());
            let bounds = (&a.host, run);
            let mut bounded = Bounded::new(device, model, windows.tile(), needs, bounds, &mut options, wanted.labels)?;
            if let Some(file) = bounded.scores.take() {
                export.spill_to(file);
            }
            let ran = device::run_with(device, model, windows.tile(), run, &options, |session, how| {
                let how = bounded.spilling(how);
                pollster::block_on(windows.planes(session, model, case.input(), &mut export, how))
            })?;
            let ((), ran) = ran.take();
            told.insert("host_memory".into(), bounded.told(device, &ran));
            told.insert("windows".into(), json!({"count": windows.count(), "passes": windows.passes(), "extent": windows.tile().axes()}));
            (export, ran)
        }
    };
    let Exported { labels, probabilities: maps, .. } = export.finish()?;
    if pipeline.invert == Invert::Nothing {
        let header = Some(nifti::header_on(&scan.header, &labels));
        return Ok(Segmented { labels, maps, header, ran, told, attention: None });
    }
    let labels = on(&scan.image, labels)?;
    let maps = maps.map(|maps| maps.on(&scan.image)).transpose()?;
    Ok(Segmented { labels, maps, header: None, ran, told, attention: None })
}

/// Voxels that came back to those of the scan, where the scan's own header says that they lie.
fn on<T>(scan: &Volume<f32>, volume: Volume<T>) -> Result<Volume<T>, VolumeError> {
    Ok(Volume::new(volume.channels, scan.extent, scan.spacing, scan.axes, volume.data)?.with_affine(*scan.affine()))
}
