//! A budget for a device whose memory is not known: wgpu does not tell its size, only that a buffer could not be created.

use std::fmt;

use crate::engine::Engine;
use crate::error::{EngineError, EngineErrorKind, PlanError};
use crate::model::Model;
use crate::plan::{PlanOptions, Planner};
use crate::session::Session;
use crate::shape::Extent;

/// The budget in bytes to try after a plan of `peak` bytes ran out of memory, or `None` when that plan was already the
/// smallest: 0.7 of the peak, but not below `smallest`, the [`crate::Report::smallest_budget`] of the plan.
#[must_use]
pub fn smaller_budget(peak: u64, smallest: u64) -> Option<u64> {
    (peak > smallest).then(|| (peak / 10 * 7).max(smallest))
}

/// No session fits.
#[derive(Debug)]
#[non_exhaustive]
pub enum FitError {
    /// There is no plan within the budget and the device's limits.
    Plan(PlanError),
    /// The device refused even the smallest plan, or failed otherwise.
    Engine(EngineError),
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(e) => e.fmt(f),
            Self::Engine(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for FitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Plan(e) => e.source(),
            Self::Engine(e) => e.source(),
        }
    }
}

impl From<PlanError> for FitError {
    fn from(e: PlanError) -> Self {
        Self::Plan(e)
    }
}

impl From<EngineError> for FitError {
    fn from(e: EngineError) -> Self {
        Self::Engine(e)
    }
}

impl Session {
    /// Plans and creates a session that the device has memory for: tries the given options, usually without a budget, and as
    /// often as the device runs out of memory plans again within [`smaller_budget`]. The budget that was found is
    /// `session.plan().report().budget`, `None` if the options' own plan fitted.
    ///
    /// Best on a device from [`Engine::request`], which refuses buffers beyond what the driver says is free. Other devices may
    /// swap or run out of memory only in the first run; set [`wgpu::InstanceDescriptor::memory_budget_thresholds`] on yours.
    ///
    /// # Errors
    /// When there is no plan, when the device cannot hold the smallest one, or as [`Session::new`].
    pub async fn fitting(engine: &Engine, model: &Model, extent: Extent, options: &PlanOptions) -> Result<Self, FitError> {
        let planner = Planner::new(model, extent, engine.caps(), options)?;
        let plan = |budget: Option<u64>| {
            let plan = planner.plan(budget)?;
            let (peak, smallest) = (plan.report().peak_bytes, plan.report().smallest_budget);
            Ok((plan, peak, smallest))
        };
        fit(options.budget, plan, |plan| Self::new(engine, model, plan)).await
    }
}

/// Plans, with the plan's peak and the smallest budget, and opens the plan, within ever less while there is no memory for it.
async fn fit<P, S, F: Future<Output = Result<S, EngineError>>>(
    mut budget: Option<u64>,
    mut plan: impl FnMut(Option<u64>) -> Result<(P, u64, u64), PlanError>,
    mut open: impl FnMut(P) -> F,
) -> Result<S, FitError> {
    loop {
        let (planned, peak, smallest) = plan(budget)?;
        match (open(planned).await, smaller_budget(peak, smallest)) {
            (Err(e), Some(bytes)) if e.kind() == EngineErrorKind::OutOfMemory => budget = Some(bytes),
            (result, _) => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Budgets tried with a planner that uses `share` percent of its budget, on a device of `memory` bytes.
    fn tried(resident: u64, smallest: u64, share: u64, memory: u64) -> (Vec<u64>, bool) {
        let mut list = Vec::new();
        let plan = |budget: Option<u64>| {
            list.extend(budget);
            let peak = budget.map_or(resident, |budget| (budget / 100 * share).max(smallest));
            Ok((peak, peak, smallest))
        };
        let open =
            |peak| async move { if peak > memory { Err(EngineError::new(EngineErrorKind::OutOfMemory, "no room")) } else { Ok(peak) } };
        let fitted = pollster::block_on(fit(None, plan, open));
        let refused = matches!(&fitted, Err(FitError::Engine(e)) if e.kind() == EngineErrorKind::OutOfMemory);
        assert!(fitted.is_ok() || refused);
        (list, !refused)
    }

    #[test]
    fn other_failures_are_not_tried_again() {
        let plan = |_| Ok(((), 100, 10));
        let lost = |()| async { Err::<(), _>(EngineError::new(EngineErrorKind::Unsupported, "not on this device")) };
        let error = pollster::block_on(fit(None, plan, lost)).expect_err("it is refused");
        assert!(matches!(error, FitError::Engine(e) if e.kind() == EngineErrorKind::Unsupported));
    }

    #[test]
    fn budgets_shrink_until_they_fit_or_the_smallest_does_not() {
        assert_eq!(tried(1000, 100, 100, 1000), (vec![], true));
        assert_eq!(tried(1000, 100, 100, 500), (vec![700, 490], true));
        assert_eq!(tried(1000, 600, 100, 650), (vec![700, 600], true));
        assert_eq!(tried(1000, 600, 100, 599), (vec![700, 600], false));
        assert_eq!(tried(100, 100, 100, 99), (vec![], false));
        // a plan may stay below its budget; the next one is smaller than the plan, not only than the budget
        assert_eq!(tried(1000, 100, 50, 300), (vec![700, 245], true));
        for memory in [1, 1 << 30, 1 << 36] {
            let (list, _) = tried(u64::MAX, 1 << 28, 90, memory);
            assert!(list.windows(2).all(|w| w[1] < w[0]) && list.len() < 100);
        }
        assert_eq!((smaller_budget(0, 0), smaller_budget(1, 0)), (None, Some(0)));
    }

    /// Plans of the bundled network on a fake device: every budget down to the smallest, or an error that names it.
    #[test]
    fn real_plans_shrink_until_they_fit_or_the_smallest_does_not() {
        let card = r#"{"architecture":"u_transformer","config":{"dims":3,"in_channels":1,"classes":3,"channels":[6,8,12],"heads":2}}"#;
        let model = Model::random(card, 1).expect("the card is one");
        let caps = crate::caps::DeviceCaps::default();
        let planner = Planner::new(&model, Extent::new(32, 40, 40), &caps, &PlanOptions::default()).expect("the extent suits");
        let whole = planner.plan(None).expect("there is a plan").report().clone();
        let (most, least) = (whole.peak_bytes, whole.smallest_budget);
        for memory in [most, most - 1, least + (most - least) / 2, least, least - 1] {
            let mut peaks = Vec::new();
            let plan = |budget| {
                let report = planner.plan(budget)?.report().clone();
                peaks.push(report.peak_bytes);
                Ok((report.clone(), report.peak_bytes, report.smallest_budget))
            };
            let open = |report: crate::plan::Report| async move {
                if report.peak_bytes <= memory {
                    return Ok(report);
                }
                Err(EngineError::new(EngineErrorKind::OutOfMemory, format!("no room for {} bytes", report.peak_bytes)))
            };
            match pollster::block_on(fit(None, plan, open)) {
                Ok(report) => {
                    assert!(memory >= least && report.peak_bytes <= memory);
                    assert_eq!(report.budget.is_none(), memory >= most);
                    assert!(report.budget.is_none_or(|b| b < most && b >= least));
                }
                Err(FitError::Engine(e)) => {
                    assert_eq!((memory, e.kind()), (least - 1, EngineErrorKind::OutOfMemory));
                    assert!(e.to_string().contains(&least.to_string()), "the smallest plan was not tried: {e}");
                }
                Err(e) => panic!("{e}"),
            }
            assert!(peaks[0] == most && peaks.windows(2).all(|w| w[1] < w[0]), "{peaks:?}");
        }
    }

    #[test]
    fn errors_tell_what_failed() {
        let plan = FitError::from(PlanError::budget(1, 2));
        assert!(plan.to_string().contains("too small"));
        let refused = FitError::from(EngineError::new(EngineErrorKind::OutOfMemory, "no room").caused_by(fmt::Error));
        assert!(refused.to_string().starts_with("no room") && std::error::Error::source(&refused).is_some());
    }
}
