//! The part of `organum segment` for models with nnU-Net's pipeline: one, or the folds of a folder.

use std::path::Path;

use organum::export::Exported;
use organum::model::{Checkpoint, Mode};
use organum::monai::Bundle;
use organum::nnunet::{Case, Export, ExportOptions, Pipeline};
use organum::volume::nifti;
use organum::{LoadOptions, Model, Networks, OutputMode, PlanOptions, Windows};
use serde_json::{Map, json};

use crate::args;
use crate::device::{self, Device, Ran};
use crate::fail::Failure;
use crate::host::{self, Bounded};
use crate::segment::{Segmented, Wanted};

/// The networks that `--model` and `--fold` name.
pub(crate) fn open(path: &Path, fold: Option<&str>, allow_non_finite: bool) -> Result<Networks, Failure> {
    if fold.is_some() && (!path.is_dir() || Bundle::is_one(path)) {
        return Err(Failure::usage("--fold: a model file or a MONAI bundle has no folds; folders of nnU-Net models have"));
    }
    let mut options = LoadOptions::default();
    (options.fold, options.allow_non_finite) = (fold.map(str::to_owned), allow_non_finite);
    Ok(Networks::open(path, &options)?)
}

/// The network alone: of an nnU-Net folder that of the first fold, of a file what its card or its
/// tensors tell.
pub(crate) fn network(path: &Path, allow_non_finite: bool) -> Result<Model, Failure> {
    if path.is_dir() {
        return Ok(open(path, None, allow_non_finite)?.first);
    }
    Ok(Checkpoint::open(path)?.allow_non_finite(allow_non_finite).into_model(None)?)
}

/// Segments a scan as nnU-Net does.
pub(crate) fn segment(
    device: &Device,
    networks: &Networks,
    pipeline: &Pipeline,
    scan: &mut nifti::Scan,
    a: &args::Segment,
    wanted: &Wanted<'_>,
) -> Result<Segmented, Failure> {
    let card = networks.first.card();
    if a.mode.map_or(card.mode(), Mode::from) != Mode::Window {
        return Err(Failure::usage("--mode: a model with nnU-Net's pipeline runs in windows"));
    }
    let [read, _, preparing] = Case::host_bytes(card, pipeline, &scan.image);
    host::enough_to_prepare(&a.host, preparing)?;
    let case = Case::new(card, pipeline, &scan.image)?;
    if wanted.overlay.is_none() {
        scan.image.data = Vec::new();
    }
    let windows = Windows::new(card, case.volume.extent)?;
    let mut options = PlanOptions::default().with_output(OutputMode::Logits);
    let mut export_options = ExportOptions::default();
    export_options.folds = u16::try_from(networks.folds().len().max(1)).map_err(|_| Failure::usage("--model: there are too many folds"))?;
    export_options.probabilities = wanted.probabilities.is_some();
    let mut export = Export::new(&case, card.classes(), export_options);
    let prepared = case.volume.data.len() as u64 * 4;
    let kept = scan.image.data.len() as u64 * 4;
    let needs = windows.host_needs(card.classes(), [kept, prepared, preparing.max(read)], export.bytes());
    let tile = windows.tile();
    let bounds = (&a.host, &a.run);
    let mut bounded = Bounded::new(device, &networks.first, tile, needs, bounds, &mut options, wanted.labels)?;
    if let Some(file) = bounded.scores.take() {
        export.spill_to(file);
    }
    let mut all: Option<Ran<()>> = None;
    let mut run = |model: &Model, export: &mut Export| -> Result<(), Failure> {
        let ran = device::run_with(device, model, tile, &a.run, &options, |session, how| {
            let how = bounded.spilling(how);
            pollster::block_on(windows.planes(session, model, case.input(), export, how))
        })?;
        let ((), ran) = ran.take();
        all = Some(match all.take() {
            None => ran,
            Some(before) => before.then(ran),
        });
        Ok(())
    };
    run(&networks.first, &mut export)?;
    for (fold, model) in networks.others() {
        let model = model?;
        if model.card().input != card.input {
            let first = networks.folds().first().map_or("", String::as_str);
            return Err(Failure { code: 4, message: format!("fold {fold} is of another configuration than fold {first}") });
        }
        export.next_fold();
        run(&model, &mut export)?;
    }
    let ran = all.ok_or_else(|| Failure::internal("no fold ran"))?;
    drop(case);
    let Exported { labels, probabilities, .. } = export.finish()?;
    let mut told = Map::new();
    told.insert("windows".into(), json!({"count": windows.count(), "passes": windows.passes(), "extent": windows.tile().axes()}));
    told.insert("folds".into(), json!(networks.folds()));
    told.insert("host_memory".into(), bounded.told(device, &ran));
    Ok(Segmented { labels, maps: probabilities, header: None, ran, told, attention: None })
}
