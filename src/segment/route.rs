//! The way of a scan through preparation, networks and the way back.

use super::bounded::Bounded;
use super::explain::{gate_maps, gates, volume_attention};
use super::prepared::{Export, PreparedScan, Restored, Scores};
use super::result::{Attention, SegmentReport, WindowsReport, centroid};
use super::runner::{Done, Planned, RunReport, Runner, Work};
use super::{SegmentError, SegmentOptions};
use crate::error::{LoadError, LoadErrorKind, PlanError, PlanErrorKind, RunError, internal};
use crate::export::{Probabilities, hand_over};
use crate::host_budget::HostNeeds;
use crate::model::{Mirror, Mode, Model};
use crate::networks::Networks;
use crate::plan::{OutputMode, PlanOptions};
use crate::run::{Progress, RunOptions};
use crate::scan::WayBack;
use crate::scores::{argmax, softmax};
use crate::shape::Extent;
use crate::transfer::{OutputData, OutputVolume};
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
    pub(super) probabilities: Option<Probabilities>,
    pub(super) attention: Option<Attention>,
    pub(super) report: SegmentReport,
}

/// Labels of a network's input, and probabilities if they are asked for; `None` where an export took
/// the scores.
type Labelled = Option<(Vec<u16>, Option<Vec<f32>>)>;

/// What a network makes of a prepared scan, how it was made, and values of the gates.
struct Scored {
    labelled: Labelled,
    run: RunReport,
    taps: Vec<OutputVolume>,
}

fn nothing() -> RunError {
    internal("the run brought nothing back")
}

impl Route<'_> {
    pub(super) async fn segment(&mut self, mut prepared: PreparedScan, how: &mut RunOptions<'_>) -> Result<Found, SegmentError> {
        let (card, mode) = (self.first.1.card(), self.mode);
        let extent = prepared.volume().extent;
        let windows = match mode {
            Mode::Window => Some(self.windows(extent).map_err(|e| self.no_windows(e))?),
            Mode::Whole | Mode::Slices => None,
        };
        let averaged = matches!(card.way_back(), WayBack::Spline { .. });
        let probabilities = self.options.probabilities;
        let mut export = prepared.export(self.folds()?, probabilities);
        let mut options = self.plan_options(&prepared, windows.is_some(), how);
        let non_finite = how.allows_non_finite();
        let mut bounded = self.bounded(&prepared, windows.as_ref(), export.as_ref(), (&mut options, non_finite))?;
        if let (Some(export), Some(file)) = (&mut export, bounded.scores.take()) {
            export.spill_to(file);
        }
        let mut how = bounded.spilling(how.reborrow());
        let Scored { labelled, run, taps } = match (&windows, &mut export) {
            (Some(windows), Some(export)) => self.scores((windows, &prepared), export, &options, &mut how).await?,
            (Some(windows), None) => self.labels((windows, &prepared), &options, &mut how).await?,
            (None, export) => self.at_once(&prepared, export.as_mut(), &options, &mut how).await?,
        };
        let attention = self.attention(&prepared, windows.as_ref(), &labelled, taps, &mut how).await?;
        prepared.free_input();
        let restored = in_span!("export", restored(&prepared, labelled, export, probabilities));
        let (labels, probabilities) = restored?;
        let [count, h, w] = extent.axes();
        let report = SegmentReport {
            host_memory: bounded.report(&run),
            run,
            windows: windows.as_ref().map(WindowsReport::from),
            slices: (mode == Mode::Slices).then_some((count, [h, w])),
            folds: averaged.then(|| self.networks.folds().to_vec()),
        };
        Ok(Found { labels, probabilities, attention, report })
    }

    /// The windows over an extent, as the card and the options have them.
    fn windows(&self, extent: Extent) -> Result<Windows, PlanError> {
        let SegmentOptions { overlap, step, unmirrored, .. } = *self.options;
        let mut card = self.first.1.card().clone();
        card.inference.overlap = overlap.or(card.inference.overlap);
        if unmirrored {
            card.inference.mirror = Mirror::All(false);
        }
        Windows::stepping(&card, extent, step)
    }

    /// How many networks are averaged.
    fn folds(&self) -> Result<u16, SegmentError> {
        let folds = self.networks.folds().len().max(1);
        let many = |_| LoadError::new(LoadErrorKind::Card, format!("{folds} folds are too many to average"));
        Ok(u16::try_from(folds).map_err(many)?)
    }

    /// The options of the first network's plan.
    fn plan_options(&self, prepared: &PreparedScan, in_windows: bool, how: &RunOptions<'_>) -> PlanOptions {
        let mut options = PlanOptions::default();
        // labels of logits that are not finite are told apart on the host alone
        if in_windows || self.options.probabilities || how.allows_non_finite() || !prepared.takes_labels() {
            options = options.with_output(OutputMode::Logits);
        }
        if self.options.attention && !in_windows {
            options.taps = gates(self.first.1);
        }
        options
    }

    /// The host's memory of what follows; sets the budget of the plan where the host is the device.
    fn bounded(
        &self,
        prepared: &PreparedScan,
        windows: Option<&Windows>,
        export: Option<&Export>,
        (options, non_finite): (&mut PlanOptions, bool),
    ) -> Result<Bounded, SegmentError> {
        let model = self.first.1;
        let (bytes, classes) = (prepared.host_bytes(), model.card().classes());
        let labels = export.is_none() && !self.options.probabilities && !non_finite;
        let export = export.map_or_else(|| prepared.export_bytes(self.options.probabilities), Export::bytes);
        let (planned, mut needs) = match windows {
            Some(windows) => {
                let channels = prepared.input().channels;
                (Planned::Windows { windows, channels, labels }, windows.host_needs(classes, bytes, export))
            }
            None => (Planned::Runs(prepared.volume().extent), HostNeeds::at_once(bytes, export)),
        };
        // of several networks the first stays open beside another
        needs.model = model.held_bytes() * self.networks.folds().len().clamp(1, 2) as u64;
        Bounded::new(self.runner, self.options, (model, planned), needs, options)
    }

    /// The number of the first network's session, if it is kept for the next scan.
    fn number(&self) -> Option<usize> {
        let closes = self.options.close_session || self.options.host_memory.is_some();
        Some(self.first.0).filter(|_| !closes)
    }

    /// Why there are no windows: what was asked for, or the model itself.
    fn no_windows(&self, e: PlanError) -> SegmentError {
        match self.first.1.card().way_back() {
            WayBack::Spline { .. } => e.into(),
            _ if e.kind() == PlanErrorKind::Limits => e.into(),
            _ => SegmentError::option("mode window", e),
        }
    }

    /// The network on a prepared scan at once.
    async fn at_once(
        &mut self,
        prepared: &PreparedScan,
        export: Option<&mut Export>,
        options: &PlanOptions,
        how: &mut RunOptions<'_>,
    ) -> Result<Scored, SegmentError> {
        let (number, model) = (self.number(), self.first.1);
        let input = prepared.input();
        let (done, run) = self.runner.work(number, model, Work::Once(input), options, how).await?;
        let Done::Outputs(mut outputs) = done else { return Err(nothing().into()) };
        let taps = outputs.split_off(1.min(outputs.len()));
        let classes = model.card().classes();
        let labelled = match (outputs.pop().map(|o| o.data), export) {
            (Some(OutputData::Labels(labels)), None) => Some((labels, None)),
            (Some(OutputData::Map(mut logits)), None) => {
                let labels = argmax(&logits, classes);
                let wanted = self.options.probabilities;
                if wanted {
                    softmax(&mut logits, classes);
                }
                Some((labels, Some(logits).filter(|_| wanted)))
            }
            (Some(OutputData::Map(logits)), Some(export)) => {
                hand_over(&logits, classes, input.extent, export)?;
                None
            }
            _ => return Err(nothing().into()),
        };
        Ok(Scored { labelled, run, taps })
    }

    /// The labels of a network in windows over a prepared scan.
    async fn labels(
        &mut self,
        (windows, prepared): (&Windows, &PreparedScan),
        options: &PlanOptions,
        how: &mut RunOptions<'_>,
    ) -> Result<Scored, SegmentError> {
        let work = Work::Labels { windows, input: prepared.input(), probabilities: self.options.probabilities };
        // pictures of attention are drawn by a session of their own
        let number = self.number().filter(|_| !self.options.attention);
        let (done, run) = self.runner.work(number, self.first.1, work, options, how).await?;
        let Done::Labels(Blended { labels, probabilities }) = done else { return Err(nothing().into()) };
        Ok(Scored { labelled: Some((labels, probabilities)), run, taps: Vec::new() })
    }

    /// The scores of all folds in windows over a prepared scan, plane by plane to their export.
    async fn scores(
        &mut self,
        passed: (&Windows, &PreparedScan),
        export: &mut Export,
        options: &PlanOptions,
        how: &mut RunOptions<'_>,
    ) -> Result<Scored, SegmentError> {
        let networks = self.networks;
        let first = self.first.1;
        let folds = networks.folds().len().max(1) as u64;
        // the session of one network is kept for the next scan, not those of several
        let number = self.number().filter(|_| folds == 1);
        let mut progress = Share { how: how.reborrow(), of: folds, done: 0 };
        let mut run = progress.of_one(self, (number, first, options), passed, export).await?;
        for (fold, model) in networks.others() {
            let model = model?;
            if model.card().input != first.card().input {
                let first = networks.folds().first().map_or("", String::as_str);
                let text = format!("fold {fold} is of another configuration than fold {first}");
                return Err(LoadError::new(LoadErrorKind::Card, text).into());
            }
            export.next_fold();
            run = run.then(progress.of_one(self, (None, &model, options), passed, export).await?);
        }
        Ok(Scored { labelled: None, run, taps: Vec::new() })
    }

    /// Maps of where the network looked, if they are asked for.
    async fn attention(
        &mut self,
        prepared: &PreparedScan,
        windows: Option<&Windows>,
        labelled: &Labelled,
        taps: Vec<OutputVolume>,
        how: &mut RunOptions<'_>,
    ) -> Result<Option<Attention>, SegmentError> {
        let Some((labels, _)) = labelled else { return Ok(None) };
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

/// Results on the grid of the scan.
fn restored(prepared: &PreparedScan, labelled: Labelled, export: Option<Export>, probabilities: bool) -> Result<Restored, SegmentError> {
    let restored = match (labelled, export) {
        (Some((labels, maps)), _) => prepared.restore(Scores::Labels(labels, maps), probabilities)?,
        (None, Some(export)) => prepared.finish(export)?,
        (None, None) => return Err(nothing().into()),
    };
    Ok(restored)
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
        (number, model, options): (Option<usize>, &Model, &PlanOptions),
        (windows, prepared): (&Windows, &PreparedScan),
        sink: &mut Export,
    ) -> Result<RunReport, SegmentError> {
        let Self { how, of, done } = self;
        let (cancel, spill) = (how.cancel(), how.spill());
        let allowed = how.allows_non_finite();
        let (before, folds) = (*done, *of);
        let mut show = |p: Progress| how.report(Progress { done: before * p.total + p.done, total: folds * p.total });
        let mut one = RunOptions::default().with_progress(&mut show).with_cancel(cancel);
        if allowed {
            one = one.with_non_finite();
        }
        if let Some(file) = spill {
            one = one.with_spill(file);
        }
        let work = Work::Scores { windows, input: prepared.input(), sink };
        match route.runner.work(number, model, work, options, &mut one).await? {
            (Done::Scores, run) => {
                *done += 1;
                Ok(run)
            }
            _ => Err(nothing().into()),
        }
    }
}
