//! The host's memory of a segmentation: what it takes, and where its values wait.

use std::fs::File;
use std::sync::Arc;

use super::runner::{Planned, RunReport, Runner};
use super::{SegmentError, SegmentOptions};
use crate::device::Device;
use crate::error::PlanError;
use crate::host_budget::{HostNeeds, HostPlace, HostPlan};
use crate::model::Model;
use crate::plan::{PlanOptions, Report};
use crate::run::RunOptions;

/// The host's memory of a segmentation, before it runs.
pub(super) struct Bounded {
    needs: HostNeeds,
    plan: Option<HostPlan>,
    on_host: bool,
    /// A file for class scores, and one for the sums of windows.
    pub(super) scores: Option<File>,
    sums: Option<Arc<File>>,
}

impl Bounded {
    /// Fits a segmentation into [`SegmentOptions::host_memory`], if that is set. `plan` are the
    /// options of its session, which is planned for `work`, whose budget is set to what is left for the device
    /// where that is the host.
    pub(super) fn new(
        runner: &Runner,
        options: &SegmentOptions,
        (model, work): (&Model, Planned<'_>),
        needs: HostNeeds,
        plan: &mut PlanOptions,
    ) -> Result<Self, SegmentError> {
        let on_host = matches!(runner.device(), Device::Host | Device::Reference);
        let Some(budget) = options.host_memory else {
            return Ok(Self { needs, plan: None, on_host, scores: None, sums: None });
        };
        let caps = runner.device().caps();
        let session = |memory: Option<u64>| -> Result<Report, PlanError> {
            let mut options = plan.clone().with_precision(options.precision);
            options.budget = memory;
            Ok(work.plan(model, runner.device(), &caps, &options)?.report().clone())
        };
        let spill = options.host_spill.is_some();
        let host = HostPlan::within(&needs, budget, spill, on_host, options.budget, session)?;
        plan.budget = host.device_budget;
        let file = |wanted: bool| wanted.then(|| spill_file(options)).transpose();
        let scores = file(host.place >= HostPlace::ScoresInFile && needs.waiting > 0)?;
        let sums = file(host.place == HostPlace::Files)?.map(Arc::new);
        Ok(Self { needs, plan: Some(host), on_host, scores, sums })
    }

    /// Lets sums lie in their file, if they have one.
    pub(super) fn spilling<'a>(&self, how: RunOptions<'a>) -> RunOptions<'a> {
        match &self.sums {
            Some(file) => how.with_spill(Arc::clone(file)),
            None => how,
        }
    }

    /// What is told of it after a run.
    pub(super) fn report(&self, run: &RunReport) -> HostPlan {
        self.plan.unwrap_or_else(|| HostPlan::unbounded(&self.needs, &run.plan, self.on_host))
    }
}

/// A file without a name in the folder for such files.
fn spill_file(options: &SegmentOptions) -> Result<File, SegmentError> {
    let folder = options.host_spill.as_deref().unwrap_or(std::path::Path::new("."));
    tempfile::tempfile_in(folder).map_err(|e| {
        let text = format!("no file can be made in {}: {e}", folder.display());
        SegmentError::option("host-spill", text)
    })
}
