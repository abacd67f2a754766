//! `--host-memory`: what a segmentation takes of the host, and where its values wait.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use organum::{Extent, HostNeeds, HostPlace, HostPlan, Model, Plan, PlanError, PlanOptions, Report, RunOptions, format_bytes};

use crate::args;
use crate::device::{Device, Ran};
use crate::fail::Failure;

/// The host's memory of a segmentation, before it runs.
pub(crate) struct Bounded {
    needs: HostNeeds,
    plan: Option<HostPlan>,
    /// A file for class scores, and one for the sums of windows.
    pub(crate) scores: Option<File>,
    pub(crate) sums: Option<Arc<File>>,
}

impl Bounded {
    /// Fits a segmentation into `--host-memory`, if that is given; `options` are those of its session over
    /// `extent`, whose budget is set to what is left for the device where that is the host. Files lie beside `output`.
    pub(crate) fn new(
        device: &Device,
        model: &Model,
        extent: Extent,
        needs: HostNeeds,
        (host, run): (&args::Host, &args::Run),
        options: &mut PlanOptions,
        output: Option<&Path>,
    ) -> Result<Self, Failure> {
        let Some(budget) = host.host_memory else {
            return Ok(Self { needs, plan: None, scores: None, sums: None });
        };
        let caps = device.caps();
        let session = |memory: Option<u64>| -> Result<Report, PlanError> {
            let mut options = options.clone().with_precision(run.precision.into());
            options.budget = memory;
            Ok(Plan::new(model, extent, &caps, &options)?.report().clone())
        };
        let plan = HostPlan::within(&needs, budget, host.host_spill, device.is_host(), run.memory, session)?;
        options.budget = plan.device_budget;
        let file = |wanted: bool| wanted.then(|| spill(output)).transpose();
        let scores = file(plan.place >= HostPlace::ScoresInFile && needs.waiting > 0)?;
        let sums = file(plan.place == HostPlace::Files)?.map(Arc::new);
        Ok(Self { needs, plan: Some(plan), scores, sums })
    }

    /// Lets sums lie in their file, if they have one.
    pub(crate) fn spilling<'a>(&self, how: RunOptions<'a>) -> RunOptions<'a> {
        match &self.sums {
            Some(file) => how.with_spill(Arc::clone(file)),
            None => how,
        }
    }

    /// What is told of it after a run.
    pub(crate) fn told(&self, device: &Device, ran: &Ran<()>) -> serde_json::Value {
        let plan = self.plan.unwrap_or_else(|| HostPlan::unbounded(&self.needs, &ran.plan, device.is_host()));
        serde_json::json!(plan)
    }
}

/// Refuses a budget in which a scan cannot even be prepared, before it is.
pub(crate) fn enough_to_prepare(host: &args::Host, bytes: u64) -> Result<(), Failure> {
    match host.host_memory {
        Some(budget) if budget < bytes => {
            let message = format!(
                "--host-memory: {} ({budget} bytes) of host memory are too few: to prepare the scan takes {}, in bytes {bytes}",
                format_bytes(budget),
                format_bytes(bytes)
            );
            Err(Failure { code: 5, message })
        }
        _ => Ok(()),
    }
}

/// A file without a name beside the output.
fn spill(output: Option<&Path>) -> Result<File, Failure> {
    let folder = output.and_then(Path::parent).filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(folder).map_err(|e| Failure::usage(format!("--host-spill: no file can be made in {}: {e}", folder.display())))
}
