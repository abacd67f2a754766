//! The way of a scan through preparation, network and export.

use super::explain::{gate_maps, gates, volume_attention};
use super::result::{Attention, SegmentReport, WindowsReport, centroid};
use super::runner::{Done, RunReport, Runner, Work};
use super::{SegmentError, SegmentOptions};
use crate::error::{LoadError, LoadErrorKind, RunError, internal};
use crate::model::{Mode, Model};
use crate::monai::{self, Invert};
use crate::networks::Networks;
use crate::nnunet::{self, Average};
use crate::pipeline::{Prepared, argmax, softmax};
use crate::plan::{OutputMode, PlanOptions};
use crate::run::{Progress, RunOptions};
use crate::scan::Scan;
use crate::transfer::{Input, OutputData, OutputVolume};
use crate::volume::{Volume, VolumeError};
use crate::window::{Blended, Windows};

/// What a scan goes through.
pub(super) struct Route<'a> {
    pub(super) networks: &'a Networks,
    /// The first network, and the number of its session.
    pub(super) first: (usize, &'a Model),
    pub(super) runner: &'a mut Runner,
    pub(super) options: &'a SegmentOptions,
    pub(super) mode: Mode,
}

/// What comes of it.
pub(super) struct Found {
    pub(super) labels: Volume<u16>,
    pub(super) probabilities: Option<Volume<f32>>,
    pub(super) attention: Option<Attention>,
    pub(super) report: SegmentReport,
}

fn nothing() -> RunError {
    internal("the run brought nothing back")
}

fn report(run: RunReport, windows: Option<&Windows>) -> SegmentReport {
    SegmentReport { run, windows: windows.map(WindowsReport::from), slices: None, folds: None }
}

impl Route<'_> {
    pub(super) async fn segment(&mut self, scan: &Scan<'_>, how: &mut RunOptions<'_>) -> Result<Found, SegmentError> {
        let input = &self.first.1.card().input;
        if input.nnunet.is_some() {
            return self.nnunet(scan, how).await;
        }
        if input.monai.is_some() {
            return self.monai(scan, how).await;
        }
        match self.mode {
            Mode::Whole => {
                let prepared = Prepared::new(self.first.1, scan.image)?;
                self.at_once(prepared, how).await
            }
            Mode::Slices => {
                let model = self.first.1;
                let slice = model.card().slice().map_err(|e| SegmentError::option("mode slices", e))?;
                let prepared = Prepared::for_slices(model, scan.image, slice)?;
                let [count, h, w] = prepared.volume.extent.axes();
                let mut found = self.at_once(prepared, how).await?;
                found.report.slices = Some((count, [h, w]));
                Ok(found)
            }
            Mode::Window => self.in_windows(scan, how).await,
        }
    }

    /// The network on a prepared scan at once.
    async fn at_once(&mut self, prepared: Prepared, how: &mut RunOptions<'_>) -> Result<Found, SegmentError> {
        let (number, model) = self.first;
        let mut options = PlanOptions::default();
        // labels of logits that are not finite are told apart on the host alone
        if self.options.probabilities || how.allows_non_finite() {
            options = options.with_output(OutputMode::Logits);
        }
        if self.options.attention {
            options.taps = gates(model);
        }
        let work = Work::Once(prepared.input());
        let (done, run) = self.runner.work(Some(number), model, work, &options, how).await?;
        let Done::Outputs(mut outputs) = done else { return Err(nothing().into()) };
        let taps = outputs.split_off(1.min(outputs.len()));
        let classes = model.card().classes();
        let (raw, probabilities) = match outputs.pop().map(|o| o.data) {
            Some(OutputData::Labels(labels)) => (labels, None),
            Some(OutputData::Map(mut logits)) => {
                let labels = argmax(&logits, classes);
                let wanted = self.options.probabilities;
                if wanted {
                    softmax(&mut logits, classes);
                }
                (labels, wanted.then_some(logits))
            }
            None => return Err(nothing().into()),
        };
        let at = centroid(&raw, prepared.volume.extent);
        let maps = gate_maps(&prepared.volume, taps)?;
        let labels = prepared.restore_labels(raw)?;
        let probabilities = probabilities.map(|values| prepared.restore_maps(classes, values)).transpose()?;
        let attention = Attention { image: prepared.volume, maps, at, tokens: None };
        let attention = Some(attention).filter(|_| self.options.attention);
        Ok(Found { labels, probabilities, attention, report: report(run, None) })
    }

    fn windows(&self, volume: &Volume<f32>) -> Result<Windows, SegmentError> {
        Windows::new(self.first.1.card(), volume.extent).map_err(|e| SegmentError::option("mode window", e))
    }

    /// The network in windows over a scan.
    async fn in_windows(&mut self, scan: &Scan<'_>, how: &mut RunOptions<'_>) -> Result<Found, SegmentError> {
        let (number, model) = self.first;
        let prepared = Prepared::for_windows(model, scan.image)?;
        let windows = self.windows(&prepared.volume)?;
        let options = PlanOptions::default().with_output(OutputMode::Logits);
        let probabilities = self.options.probabilities;
        let work = Work::Labels { windows: &windows, input: prepared.input(), probabilities };
        // pictures of attention are drawn by a session of their own
        let number = Some(number).filter(|_| !self.options.attention);
        let (done, run) = self.runner.work(number, model, work, &options, how).await?;
        let Done::Labels(Blended { labels, probabilities }) = done else { return Err(nothing().into()) };
        let attention = if self.options.attention {
            let centre = centroid(&labels, prepared.volume.extent);
            Some(volume_attention(self.runner, model, &prepared.volume, &windows, centre, how).await?)
        } else {
            None
        };
        let labels = prepared.restore_labels(labels)?;
        let classes = model.card().classes();
        let probabilities = probabilities.map(|values| prepared.restore_maps(classes, values)).transpose()?;
        Ok(Found { labels, probabilities, attention, report: report(run, Some(&windows)) })
    }

    /// The logits that a network blends in windows.
    async fn scores(
        &mut self,
        (number, model): (Option<usize>, &Model),
        (windows, input): (&Windows, Input<'_>),
        how: &mut RunOptions<'_>,
    ) -> Result<(Vec<f32>, RunReport), SegmentError> {
        let options = PlanOptions::default().with_output(OutputMode::Logits);
        match self.runner.work(number, model, Work::Scores { windows, input }, &options, how).await? {
            (Done::Scores(scores), run) => Ok((scores, run)),
            _ => Err(nothing().into()),
        }
    }

    /// All folds of an nnU-Net model.
    async fn nnunet(&mut self, scan: &Scan<'_>, how: &mut RunOptions<'_>) -> Result<Found, SegmentError> {
        let (networks, card) = (self.networks, self.first.1.card());
        let Some(pipeline) = &card.input.nnunet else { return Err(nothing().into()) };
        let case = nnunet::Case::new(card, pipeline, scan.clone())?;
        let windows = Windows::new(card, case.volume.extent)?;
        let mut mean = Average::new(pipeline);
        let folds = networks.folds().len().max(1) as u64;
        // the session of one network is kept for the next scan, not those of several
        let number = Some(self.first.0).filter(|_| folds == 1);
        let mut progress = Share { how: how.reborrow(), of: folds, done: 0 };
        let passed = (&windows, case.input());
        let (scores, mut run) = progress.of_one(self, (number, self.first.1), passed).await?;
        mean.add(scores);
        for (fold, model) in networks.others() {
            let model = model?;
            if model.card().input != card.input {
                let first = networks.folds().first().map_or("", String::as_str);
                let text = format!("fold {fold} is of another configuration than fold {first}");
                return Err(LoadError::new(LoadErrorKind::Card, text).into());
            }
            let (scores, next) = progress.of_one(self, (None, &model), passed).await?;
            mean.add(scores);
            run = run.then(next);
        }
        let (labels, probabilities) = case.export(&mean.finish(), card.classes(), self.options.probabilities)?;
        let labels = on(scan.image, labels)?;
        let probabilities = probabilities.map(|maps| on(scan.image, maps)).transpose()?;
        let mut report = report(run, Some(&windows));
        report.folds = Some(networks.folds().to_vec());
        Ok(Found { labels, probabilities, attention: None, report })
    }

    /// A MONAI bundle.
    async fn monai(&mut self, scan: &Scan<'_>, how: &mut RunOptions<'_>) -> Result<Found, SegmentError> {
        let (number, model) = self.first;
        let card = model.card();
        let Some(pipeline) = &card.input.monai else { return Err(nothing().into()) };
        let seen = scan.as_monai_reads()?;
        let whole = self.mode == Mode::Whole;
        let case = monai::Case::new(card, pipeline, &seen, whole.then(|| model.stride()))?;
        drop(seen);
        let (scores, report) = if whole {
            let options = PlanOptions::default().with_output(OutputMode::Logits);
            match self.runner.work(Some(number), model, Work::Once(case.input()), &options, how).await? {
                (Done::Outputs(outputs), run) => (logits(outputs)?, report(run, None)),
                _ => return Err(nothing().into()),
            }
        } else {
            let windows = self.windows(&case.volume)?;
            let (scores, run) = self.scores((Some(number), model), (&windows, case.input()), how).await?;
            (scores, report(run, Some(&windows)))
        };
        let (mut labels, mut probabilities) = case.export(scores, card.classes(), self.options.probabilities)?;
        if pipeline.invert != Invert::Nothing {
            labels = on(scan.image, labels)?;
            probabilities = probabilities.map(|maps| on(scan.image, maps)).transpose()?;
        }
        Ok(Found { labels, probabilities, attention: None, report })
    }
}

/// The progress of several networks as that of one run.
struct Share<'a> {
    how: RunOptions<'a>,
    of: u64,
    done: u64,
}

impl Share<'_> {
    async fn of_one(
        &mut self,
        route: &mut Route<'_>,
        network: (Option<usize>, &Model),
        passed: (&Windows, Input<'_>),
    ) -> Result<(Vec<f32>, RunReport), SegmentError> {
        let Self { how, of, done } = self;
        let cancel = how.cancel();
        let allowed = how.allows_non_finite();
        let (before, folds) = (*done, *of);
        let mut show = |p: Progress| how.report(Progress { done: before * p.total + p.done, total: folds * p.total });
        let mut one = RunOptions::default().with_progress(&mut show).with_cancel(cancel);
        if allowed {
            one = one.with_non_finite();
        }
        let scores = route.scores(network, passed, &mut one).await?;
        self.done += 1;
        Ok(scores)
    }
}

/// The logits of a run.
fn logits(mut outputs: Vec<OutputVolume>) -> Result<Vec<f32>, SegmentError> {
    match outputs.pop().map(|o| o.data) {
        Some(OutputData::Map(logits)) => Ok(logits),
        _ => Err(nothing().into()),
    }
}

/// Voxels that came back to those of the scan, where the scan itself says that they lie.
fn on<T>(scan: &Volume<f32>, volume: Volume<T>) -> Result<Volume<T>, VolumeError> {
    let data = volume.data;
    Ok(Volume::new(volume.channels, scan.extent, scan.spacing, scan.axes, data)?.with_affine(*scan.affine()))
}
