//! The way of a scan through preparation, networks and the way back.

use super::explain::{gate_maps, gates, volume_attention};
use super::prepared::{PreparedScan, Scores};
use super::result::{Attention, SegmentReport, WindowsReport, centroid};
use super::runner::{Done, RunReport, Runner, Work};
use super::{SegmentError, SegmentOptions};
use crate::error::{LoadError, LoadErrorKind, RunError, internal};
use crate::model::{Mode, Model};
use crate::networks::Networks;
use crate::nnunet::Average;
use crate::plan::{OutputMode, PlanOptions};
use crate::run::{Progress, RunOptions};
use crate::scan::{Scan, WayBack};
use crate::scores::{argmax, softmax};
use crate::transfer::{Input, OutputData, OutputVolume};
use crate::volume::Volume;
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

/// Scores of a prepared scan, how they were made, and values of the gates.
struct Scored {
    scores: Scores,
    run: RunReport,
    taps: Vec<OutputVolume>,
}

fn nothing() -> RunError {
    internal("the run brought nothing back")
}

impl Route<'_> {
    pub(super) async fn segment(&mut self, scan: &Scan<'_>, how: &mut RunOptions<'_>) -> Result<Found, SegmentError> {
        let (card, mode) = (self.first.1.card(), self.mode);
        let prepared = PreparedScan::new(card, scan.clone(), mode)?;
        let extent = prepared.volume().extent;
        let windows = match mode {
            Mode::Window => Some(Windows::new(card, extent).map_err(|e| self.no_windows(e))?),
            Mode::Whole | Mode::Slices => None,
        };
        let folds = match card.way_back() {
            WayBack::Spline { half, .. } => Some(half),
            _ => None,
        };
        let Scored { scores, run, taps } = match (&windows, folds) {
            (Some(windows), Some(half)) => self.folds(windows, &prepared, half, how).await?,
            (Some(windows), None) => self.windows(windows, &prepared, how).await?,
            (None, _) => self.at_once(&prepared, how).await?,
        };
        let attention = self.attention(&prepared, windows.as_ref(), &scores, taps, how).await?;
        let (labels, probabilities) = prepared.restore(scan.clone(), scores, self.options.probabilities)?;
        let [count, h, w] = extent.axes();
        let report = SegmentReport {
            run,
            windows: windows.as_ref().map(WindowsReport::from),
            slices: (mode == Mode::Slices).then_some((count, [h, w])),
            folds: folds.map(|_| self.networks.folds().to_vec()),
        };
        Ok(Found { labels, probabilities, attention, report })
    }

    /// Why there are no windows: what was asked for, or the model itself.
    fn no_windows(&self, e: crate::PlanError) -> SegmentError {
        match self.first.1.card().way_back() {
            WayBack::Spline { .. } => e.into(),
            _ => SegmentError::option("mode window", e),
        }
    }

    /// The network on a prepared scan at once.
    async fn at_once(&mut self, prepared: &PreparedScan, how: &mut RunOptions<'_>) -> Result<Scored, SegmentError> {
        let (number, model) = self.first;
        let mut options = PlanOptions::default();
        // labels of logits that are not finite are told apart on the host alone
        if self.options.probabilities || how.allows_non_finite() || !prepared.takes_labels() {
            options = options.with_output(OutputMode::Logits);
        }
        if self.options.attention {
            options.taps = gates(model);
        }
        let work = Work::Once(prepared.input());
        let (done, run) = self.runner.work(Some(number), model, work, &options, how).await?;
        let Done::Outputs(mut outputs) = done else { return Err(nothing().into()) };
        let taps = outputs.split_off(1.min(outputs.len()));
        let scores = match outputs.pop().map(|o| o.data) {
            Some(OutputData::Labels(labels)) => Scores::Labels(labels, None),
            Some(OutputData::Map(mut logits)) if prepared.takes_labels() => {
                let classes = model.card().classes();
                let labels = argmax(&logits, classes);
                let wanted = self.options.probabilities;
                if wanted {
                    softmax(&mut logits, classes);
                }
                Scores::Labels(labels, Some(logits).filter(|_| wanted))
            }
            Some(OutputData::Map(logits)) => Scores::Logits(logits),
            None => return Err(nothing().into()),
        };
        Ok(Scored { scores, run, taps })
    }

    /// The network in windows over a prepared scan.
    async fn windows(&mut self, windows: &Windows, prepared: &PreparedScan, how: &mut RunOptions<'_>) -> Result<Scored, SegmentError> {
        let (number, model) = self.first;
        let input = prepared.input();
        if !prepared.takes_labels() {
            let (logits, run) = self.logits((Some(number), model), (windows, input), how).await?;
            return Ok(Scored { scores: Scores::Logits(logits), run, taps: Vec::new() });
        }
        let work = Work::Labels { windows, input, probabilities: self.options.probabilities };
        let options = PlanOptions::default().with_output(OutputMode::Logits);
        // pictures of attention are drawn by a session of their own
        let number = Some(number).filter(|_| !self.options.attention);
        let (done, run) = self.runner.work(number, model, work, &options, how).await?;
        let Done::Labels(Blended { labels, probabilities }) = done else { return Err(nothing().into()) };
        Ok(Scored { scores: Scores::Labels(labels, probabilities), run, taps: Vec::new() })
    }

    /// The logits that a network blends in windows.
    async fn logits(
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

    /// The average of all folds in windows over a prepared scan.
    async fn folds(
        &mut self,
        windows: &Windows,
        prepared: &PreparedScan,
        half: bool,
        how: &mut RunOptions<'_>,
    ) -> Result<Scored, SegmentError> {
        let networks = self.networks;
        let (number, first) = self.first;
        let mut mean = Average::new(half);
        let folds = networks.folds().len().max(1) as u64;
        // the session of one network is kept for the next scan, not those of several
        let number = Some(number).filter(|_| folds == 1);
        let mut progress = Share { how: how.reborrow(), of: folds, done: 0 };
        let passed = (windows, prepared.input());
        let (scores, mut run) = progress.of_one(self, (number, first), passed).await?;
        mean.add(scores);
        for (fold, model) in networks.others() {
            let model = model?;
            if model.card().input != first.card().input {
                let first = networks.folds().first().map_or("", String::as_str);
                let text = format!("fold {fold} is of another configuration than fold {first}");
                return Err(LoadError::new(LoadErrorKind::Card, text).into());
            }
            let (scores, next) = progress.of_one(self, (None, &model), passed).await?;
            mean.add(scores);
            run = run.then(next);
        }
        Ok(Scored { scores: Scores::Logits(mean.finish()), run, taps: Vec::new() })
    }

    /// Maps of where the network looked, if they are asked for.
    async fn attention(
        &mut self,
        prepared: &PreparedScan,
        windows: Option<&Windows>,
        scores: &Scores,
        taps: Vec<OutputVolume>,
        how: &mut RunOptions<'_>,
    ) -> Result<Option<Attention>, SegmentError> {
        let Scores::Labels(labels, _) = scores else { return Ok(None) };
        if !self.options.attention {
            return Ok(None);
        }
        let (model, volume) = (self.first.1, prepared.volume());
        let at = centroid(labels, volume.extent);
        if let Some(windows) = windows {
            return volume_attention(self.runner, model, volume, windows, at, how).await.map(Some);
        }
        let maps = gate_maps(volume, taps)?;
        Ok(Some(Attention { image: volume.clone(), maps, at, tokens: None }))
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
        let scores = route.logits(network, passed, &mut one).await?;
        self.done += 1;
        Ok(scores)
    }
}
