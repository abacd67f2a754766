//! A device with a budget: opens sessions, and opens them again within less where the device runs
//! out of memory.

use std::time::{Duration, Instant};

use crate::caps::DeviceCaps;
use crate::device::Device;
use crate::error::{EngineError, EngineErrorKind, PlanError, RunError, RunErrorKind};
use crate::export::PlaneSink;
use crate::fitting::smaller_budget;
use crate::model::Model;
use crate::plan::{OutputMode, Plan, PlanOptions, Report};
use crate::profile::Profile;
use crate::run::RunOptions;
use crate::segment::SegmentError;
use crate::session::Session;
use crate::shape::{Elem, Extent};
use crate::transfer::{Input, OutputVolume};
use crate::window::{Blended, Windows};

/// Runs networks on a device within a budget.
///
/// Where no budget is set and the device runs out of memory, the network is planned again within
/// less, as often as there is a smaller plan.
#[derive(Debug)]
pub struct Runner {
    pub(super) device: Device,
    /// The most device bytes of a run; `None` for [`Device::default_budget`], or less.
    pub(super) budget: Option<u64>,
    precision: Elem,
    /// Whether kernels are timed.
    pub(super) profile: bool,
    kept: Option<(Key, Session)>,
}

/// The work that a session is planned for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Planned<'a> {
    /// Runs on an input of this extent.
    Runs(Extent),
    /// Windows over a scan of so many channels, of which labels come back, or scores.
    Windows { windows: &'a Windows, channels: u32, labels: bool },
}

impl Planned<'_> {
    pub(super) fn plan(self, model: &Model, device: &Device, caps: &DeviceCaps, options: &PlanOptions) -> Result<Plan, PlanError> {
        match self {
            Self::Runs(extent) => Plan::new(model, extent, caps, options),
            Self::Windows { windows, channels, labels } if matches!(device, Device::Gpu(_)) => {
                windows.plan(model, channels, labels, caps, options)
            }
            Self::Windows { windows, .. } => Plan::new(model, windows.tile(), caps, options),
        }
    }
}

/// What a session was opened for.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    network: usize,
    extent: Extent,
    /// The windows that it was planned for, with the channels of the scan, and whether labels come back.
    windows: Option<(Windows, u32, bool)>,
    output: OutputMode,
    taps: Vec<String>,
    budget: Option<u64>,
}

/// Where a run's time and memory went.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RunReport {
    /// The plan's figures.
    pub plan: Report,
    /// Device bytes that were really allocated, at most.
    pub allocated_bytes: u64,
    /// Time in which the plan was made; none for a session that was kept.
    pub planning: Duration,
    /// Time in which buffers were made, kernels compiled and weights uploaded; none for a session
    /// that was kept.
    pub opening: Duration,
    /// Time of the run.
    pub running: Duration,
    /// The budget in bytes within which the run fitted, after the device had run out of memory.
    pub reduced_budget: Option<u64>,
    /// Time of every kernel and node, where they were timed.
    pub profile: Option<Profile>,
    /// Time in which the host recorded the commands of the last pass.
    pub recording: Duration,
    /// Bytes that left the device: of the last pass, or of all windows where the device sums them.
    pub downloaded_bytes: u64,
}

impl RunReport {
    /// This run and a later one of another network on the same device.
    pub(crate) fn then(mut self, next: Self) -> Self {
        let profile = match (self.profile.take(), next.profile) {
            (Some(mut before), Some(after)) => {
                before.add(&after);
                Some(before)
            }
            (before, after) => before.or(after),
        };
        Self {
            allocated_bytes: self.allocated_bytes.max(next.allocated_bytes),
            planning: self.planning + next.planning,
            opening: self.opening + next.opening,
            running: self.running + next.running,
            reduced_budget: next.reduced_budget.or(self.reduced_budget),
            recording: self.recording + next.recording,
            downloaded_bytes: self.downloaded_bytes + next.downloaded_bytes,
            profile,
            plan: next.plan,
        }
    }
}

/// What a session is to do.
pub(crate) enum Work<'a> {
    /// One run.
    Once(Input<'a>),
    /// One run at a position in the volume, for networks with volume tokens.
    Placed(Input<'a>, [i64; 3]),
    /// Windows over a volume; labels, and probabilities if they are asked for.
    Labels { windows: &'a Windows, input: Input<'a>, probabilities: bool },
    /// Windows over a volume; planes of the blended logits or probabilities go to a sink.
    Scores { windows: &'a Windows, input: Input<'a>, sink: &'a mut dyn PlaneSink },
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    Outputs(Vec<OutputVolume>),
    Labels(Blended),
    /// All planes went to the sink.
    Scores,
}

impl Work<'_> {
    /// The work that its session is planned for, if results that are not finite are allowed or not: the device tells them from
    /// others, but has no labels for them.
    fn planned(&self, non_finite: bool) -> Planned<'_> {
        match self {
            Self::Once(input) | Self::Placed(input, _) => Planned::Runs(input.extent),
            Self::Labels { windows, input, probabilities } => {
                Planned::Windows { windows, channels: input.channels, labels: !probabilities && !non_finite }
            }
            Self::Scores { windows, input, .. } => Planned::Windows { windows, channels: input.channels, labels: false },
        }
    }

    async fn perform(&mut self, session: &mut Session, model: &Model, how: RunOptions<'_>) -> Result<Done, RunError> {
        match self {
            Self::Once(input) => session.run(*input, how).await.map(Done::Outputs),
            Self::Placed(input, position) => {
                session.place(model, *position, &[]).await?;
                session.run(*input, how).await.map(Done::Outputs)
            }
            Self::Labels { windows, input, probabilities } => {
                windows.run(session, model, *input, *probabilities, how).await.map(Done::Labels)
            }
            Self::Scores { windows, input, sink } => windows.planes(session, model, *input, *sink, how).await.map(|()| Done::Scores),
        }
    }
}

impl Runner {
    /// A runner without a budget, in f32.
    #[must_use]
    pub fn new(device: impl Into<Device>) -> Self {
        Self { device: device.into(), budget: None, precision: Elem::F32, profile: false, kept: None }
    }

    /// Bounds every device byte of a run.
    #[must_use]
    pub fn with_budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Sets the storage type of activations and weights.
    #[must_use]
    pub fn with_precision(mut self, precision: Elem) -> Self {
        self.precision = precision;
        self
    }

    /// Times the kernels.
    #[must_use]
    pub fn with_profile(mut self) -> Self {
        self.profile = true;
        self
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs a network once: labels or logits as `options` says, then its taps. Budget and precision
    /// are the runner's, not those of `options`.
    ///
    /// # Errors
    /// When there is no plan, the device refuses it, or as [`Session::run`].
    pub async fn run(
        &mut self,
        model: &Model,
        input: Input<'_>,
        options: &PlanOptions,
        mut how: RunOptions<'_>,
    ) -> Result<(Vec<OutputVolume>, RunReport), SegmentError> {
        let options = PlanOptions { budget: None, ..options.clone() };
        match self.work(None, model, Work::Once(input), &options, &mut how).await? {
            (Done::Outputs(outputs), report) => Ok((outputs, report)),
            _ => Err(crate::error::internal("a run brought no outputs back").into()),
        }
    }

    /// [`Runner::run`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub fn run_blocking(
        &mut self,
        model: &Model,
        input: Input<'_>,
        options: &PlanOptions,
        how: RunOptions<'_>,
    ) -> Result<(Vec<OutputVolume>, RunReport), SegmentError> {
        pollster::block_on(self.run(model, input, options, how))
    }

    /// Does a piece of work with a network; the session stays open for more of the same if the
    /// network has a number. A budget of `options` comes before the runner's.
    pub(crate) async fn work(
        &mut self,
        network: Option<usize>,
        model: &Model,
        mut work: Work<'_>,
        options: &PlanOptions,
        how: &mut RunOptions<'_>,
    ) -> Result<(Done, RunReport), SegmentError> {
        let given = options.budget.or(self.budget);
        let non_finite = how.allows_non_finite();
        let key = network.map(|network| {
            let (output, taps) = (options.output, options.taps.clone());
            let (extent, windows) = match work.planned(non_finite) {
                Planned::Runs(extent) => (extent, None),
                Planned::Windows { windows, channels, labels } => {
                    let on_device = matches!(self.device, Device::Gpu(_));
                    (windows.tile(), on_device.then(|| (windows.clone(), channels, labels)))
                }
            };
            Key { network, extent, windows, output, taps, budget: given }
        });
        // a session of something else gives its memory back before the next one is opened
        let mut kept = self.kept.take().filter(|(kept, _)| Some(kept) == key.as_ref()).map(|(_, session)| session);
        let first = given.or_else(|| self.device.default_budget());
        let mut budget = first;
        loop {
            let (planning, opening, mut session) = match kept.take() {
                Some(session) => (Duration::ZERO, Duration::ZERO, session),
                None => {
                    let started = Instant::now();
                    let mut options = options.clone().with_precision(self.precision);
                    options.budget = budget;
                    let planned = work.planned(non_finite);
                    let plan = in_span!("plan", planned.plan(model, &self.device, &self.device.caps(), &options))?;
                    let (planning, smaller) = (started.elapsed(), smaller(given, plan.report()));
                    let started = Instant::now();
                    match (awaited_in!("open", self.open(model, plan)), smaller) {
                        (Ok(session), _) => (planning, started.elapsed(), session),
                        (Err(e), Some(bytes)) if e.kind() == EngineErrorKind::OutOfMemory => {
                            budget = Some(bytes);
                            continue;
                        }
                        (Err(e), _) => return Err(e.into()),
                    }
                }
            };
            if self.profile {
                session.start_profile();
            }
            let started = Instant::now();
            let done = awaited_in!("run", work.perform(&mut session, model, how.reborrow()));
            let running = started.elapsed();
            let plan = session.plan().report().clone();
            let smaller = smaller(given, &plan);
            let report = RunReport {
                plan,
                allocated_bytes: session.allocated_bytes(),
                planning,
                opening,
                running,
                reduced_budget: budget.filter(|_| budget != first),
                recording: session.recording_time(),
                downloaded_bytes: session.downloaded_bytes(),
                profile: session.take_profile(),
            };
            match (done, smaller) {
                (Err(e), Some(bytes)) if e.kind() == RunErrorKind::OutOfMemory => budget = Some(bytes),
                (done, _) => {
                    let usable = done.as_ref().err().is_none_or(|e| e.kind() == RunErrorKind::Cancelled);
                    self.kept = key.filter(|_| usable).map(|key| (key, session));
                    return Ok((done?, report));
                }
            }
        }
    }

    /// Takes budget, precision and profile from options; a session of another precision is closed.
    pub(super) fn set_options(&mut self, options: &super::SegmentOptions) {
        if self.precision != options.precision || self.profile != options.profile {
            self.close();
        }
        (self.budget, self.precision, self.profile) = (options.budget, options.precision, options.profile);
    }

    /// Gives the memory of the session that was kept back.
    pub(crate) fn close(&mut self) {
        self.kept = None;
    }

    async fn open(&self, model: &Model, plan: Plan) -> Result<Session, EngineError> {
        match &self.device {
            Device::Gpu(engine) => Session::new(engine, model, plan).await,
            Device::Host | Device::Reference => Session::on_host(model, plan),
        }
    }
}

/// The budget after the device ran out of memory for a plan, if none was given.
fn smaller(given: Option<u64>, plan: &Report) -> Option<u64> {
    if given.is_some() { None } else { smaller_budget(plan.peak_bytes, plan.smallest_budget) }
}
