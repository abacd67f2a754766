//! The part of `organum segment` for models with nnU-Net's pipeline: one, or the folds of a folder.

use std::path::Path;

use organum::model::Mode;
use organum::monai::Bundle;
use organum::nnunet::{Average, Case, Folder, Pipeline};
use organum::volume::nifti;
use organum::{Model, OutputMode, PlanOptions, Warning, Windows};
use serde_json::{Map, json};

use crate::args;
use crate::device::{self, Device, Ran};
use crate::fail::Failure;
use crate::segment::{Segmented, Wanted};

/// A model, and the folds that its results are averaged with.
pub(crate) struct Networks {
    pub(crate) first: Model,
    folder: Option<(Folder, Vec<String>)>,
    warnings: Vec<Warning>,
}

impl Networks {
    /// A model file, a MONAI bundle, or a folder of nnU-Net's with its folds or the one told.
    pub(crate) fn open(path: &Path, fold: Option<&str>) -> Result<Self, Failure> {
        let bundle = Bundle::is_one(path);
        if !path.is_dir() || bundle {
            if fold.is_some() {
                return Err(Failure::usage("--fold: a model file or a MONAI bundle has no folds; folders of nnU-Net models have"));
            }
            let first = if bundle { Bundle::open(path)?.model()? } else { Model::load(path)? };
            return Ok(Self { first, folder: None, warnings: Vec::new() });
        }
        let folder = Folder::open(path)?;
        let folds = fold.map_or_else(|| folder.folds(), |fold| Ok(vec![fold.to_owned()]))?;
        let first = folder.model(&folds[0])?;
        let warnings = folder.warnings(&folds[0])?;
        Ok(Self { first, folder: Some((folder, folds)), warnings })
    }

    /// What the results lack of the reference implementation's, and what is assumed.
    pub(crate) fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

/// Segments a scan as nnU-Net does.
pub(crate) fn segment(
    device: &Device,
    networks: &Networks,
    pipeline: &Pipeline,
    scan: &nifti::Scan,
    a: &args::Segment,
    wanted: &Wanted<'_>,
) -> Result<Segmented, Failure> {
    let card = networks.first.card();
    if a.mode.map_or(card.mode(), Mode::from) != Mode::Window {
        return Err(Failure::usage("--mode: a model with nnU-Net's pipeline runs in windows"));
    }
    let case = Case::new(card, pipeline, &scan.image)?;
    let windows = Windows::new(card, case.volume.extent)?;
    let options = PlanOptions::default().with_output(OutputMode::Logits);
    let mut mean = Average::new(pipeline);
    let mut all: Option<Ran<()>> = None;
    let mut run = |model: &Model| -> Result<(), Failure> {
        let ran = device::run_with(device, model, windows.tile(), &a.run, &options, |session, how| {
            pollster::block_on(windows.logits(session, model, case.input(), how))
        })?;
        let (logits, ran) = ran.take();
        mean.add(logits);
        all = Some(match all.take() {
            None => ran,
            Some(before) => Ran {
                allocated: before.allocated.max(ran.allocated),
                seconds: [0, 1, 2].map(|i| before.seconds[i] + ran.seconds[i]),
                ..ran
            },
        });
        Ok(())
    };
    run(&networks.first)?;
    let folds = networks.folder.as_ref().map_or(&[][..], |(_, folds)| folds);
    if let Some((folder, folds)) = &networks.folder {
        for fold in &folds[1..] {
            let model = folder.model(fold)?;
            if model.card().input != card.input {
                return Err(Failure { code: 4, message: format!("fold {fold} is of another configuration than fold {}", folds[0]) });
            }
            run(&model)?;
        }
    }
    let ran = all.ok_or_else(|| Failure::internal("no fold ran"))?;
    let (labels, maps) = case.export(&mean.finish(), card.classes(), wanted.probabilities.is_some())?;
    let mut told = Map::new();
    told.insert("windows".into(), json!({"count": windows.count(), "passes": windows.passes(), "extent": windows.tile().axes()}));
    told.insert("folds".into(), json!(folds));
    Ok(Segmented { labels, maps, header: None, ran, told, attention: None })
}
