//! The host's memory of a segmentation: what its parts take, and which fit a budget.

use serde::Serialize;

use crate::error::PlanError;
use crate::export::ExportBytes;
use crate::plan::Report;
use crate::shape::format_bytes;

/// What a segmentation takes of the host's memory beside its session, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostNeeds {
    /// The models' files, which stay in memory.
    pub model: u64,
    /// The scan as it was read, where it is kept while the network runs.
    pub scan: u64,
    /// The scan as the network is given it.
    pub prepared: u64,
    /// The most while the scan is prepared, itself included.
    pub preparing: u64,
    /// Sums of the planes that windows still reach.
    pub sums: u64,
    /// Those of the weights among them, which stay on the host where a device sums windows.
    pub totals: u64,
    /// The same where the sums lie in a file.
    pub sums_in_file: u64,
    /// Bytes of that file.
    pub file: u64,
    /// The sum over mirror images of a window.
    pub mirrors: u64,
    /// The label map, and the planes of scores that it is made of.
    pub export: u64,
    /// Class scores that wait until all planes are there.
    pub waiting: u64,
    /// The most, beside the waiting scores, while labels and probabilities are made of them.
    pub finishing: u64,
}

impl HostNeeds {
    /// Those of a segmentation at once, of a scan that takes so many bytes as it was read and as the
    /// network is given it, and while that is done.
    #[must_use]
    pub fn at_once([scan, prepared, preparing]: [u64; 3], export: ExportBytes) -> Self {
        let ExportBytes { running, waiting, finishing } = export;
        Self { scan, prepared, preparing, export: running, waiting, finishing, ..Self::default() }
    }

    fn waiting_in(&self, place: HostPlace) -> u64 {
        if place == HostPlace::Memory { self.waiting } else { 0 }
    }

    /// Sums of windows where the device does not hold them.
    fn summing(&self, place: HostPlace, on_device: bool) -> u64 {
        match place {
            _ if on_device => self.totals,
            HostPlace::Files => self.sums_in_file + self.mirrors,
            HostPlace::Memory | HostPlace::ScoresInFile => self.sums + self.mirrors,
        }
    }

    /// While the network runs, beside the session.
    fn running(&self, place: HostPlace, on_device: bool) -> u64 {
        self.model + self.scan + self.prepared + self.summing(place, on_device) + self.export + self.waiting_in(place)
    }

    /// Before and after it runs.
    fn around(&self, place: HostPlace) -> u64 {
        self.model + self.preparing.max(self.scan + self.export + self.finishing + self.waiting_in(place))
    }

    /// All of it with a session, whose device may be the host.
    fn with(&self, place: HostPlace, report: &Report, on_host: bool) -> u64 {
        let device = if on_host { report.peak_bytes } else { 0 };
        self.around(place).max(self.running(place, report.windows_bytes > 0) + report.host_bytes + device)
    }

    /// Bytes of files.
    fn files(&self, place: HostPlace) -> u64 {
        match place {
            HostPlace::Memory => 0,
            HostPlace::ScoresInFile => self.waiting,
            HostPlace::Files => self.waiting + self.file,
        }
    }
}

/// Where values wait on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HostPlace {
    /// All in memory.
    #[default]
    Memory,
    /// Class scores that wait until all planes are there lie in a file.
    ScoresInFile,
    /// Those, and the sums of windows.
    Files,
}

/// The host's memory of a segmentation; field names are those of the command line's JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HostPlan {
    /// The budget asked for.
    pub budget: Option<u64>,
    /// The most bytes at once: scan, prepared scan, sums, scores, labels, the session's own and, where
    /// the host is the device, the device's.
    pub peak_bytes: u64,
    /// Before and after the network runs.
    pub around_bytes: u64,
    /// The models' files.
    pub model_bytes: u64,
    /// The scan, as it was read and as it was prepared.
    pub scan_bytes: u64,
    /// Sums of windows, in memory.
    pub sums_bytes: u64,
    /// Labels, and class scores on their way to them.
    pub export_bytes: u64,
    /// What the session holds: input, outputs, slabs that wait; with the device's where that is the
    /// host.
    pub session_bytes: u64,
    /// Where values wait.
    pub place: HostPlace,
    /// Bytes of files beside the output.
    pub file_bytes: u64,
    /// Device bytes that are left for the session where the host is the device.
    pub device_budget: Option<u64>,
}

impl HostPlan {
    /// What runs without a budget take, everything in memory.
    #[must_use]
    pub fn unbounded(needs: &HostNeeds, report: &Report, on_host: bool) -> Self {
        Self::of(needs, HostPlace::Memory, report, on_host, None)
    }

    fn of(needs: &HostNeeds, place: HostPlace, report: &Report, on_host: bool, budget: Option<u64>) -> Self {
        Self {
            budget,
            peak_bytes: needs.with(place, report, on_host),
            around_bytes: needs.around(place),
            model_bytes: needs.model,
            scan_bytes: needs.scan + needs.prepared,
            sums_bytes: needs.summing(place, report.windows_bytes > 0),
            export_bytes: needs.export + needs.waiting_in(place),
            session_bytes: report.host_bytes + if on_host { report.peak_bytes } else { 0 },
            place,
            file_bytes: needs.files(place),
            device_budget: (on_host && budget.is_some()).then_some(report.peak_bytes),
        }
    }

    /// The fastest within `budget` bytes of host memory: in memory, else, if `spill` allows files, with
    /// as little in them as does. `plan` plans the session within so many device bytes, which where the
    /// host is the device are what is left, `memory` at most.
    ///
    /// # Errors
    /// [`crate::PlanErrorKind::HostBudget`] if it does not fit; the message names the smallest that does. Those of
    /// `plan`.
    pub fn within(
        needs: &HostNeeds,
        budget: u64,
        spill: bool,
        on_host: bool,
        memory: Option<u64>,
        mut plan: impl FnMut(Option<u64>) -> Result<Report, PlanError>,
    ) -> Result<Self, PlanError> {
        let (mut smallest, mut with_files) = (u64::MAX, u64::MAX);
        for place in [HostPlace::Memory, HostPlace::ScoresInFile, HostPlace::Files] {
            let needed = if on_host {
                let inner = needs.running(place, false) + host_bytes(&mut plan, memory)?;
                let room = budget.saturating_sub(inner).min(memory.unwrap_or(u64::MAX));
                match plan(Some(room)) {
                    Ok(report) => {
                        let told = Self::of(needs, place, &report, on_host, Some(budget));
                        if told.peak_bytes <= budget && (spill || place == HostPlace::Memory) {
                            return Ok(told);
                        }
                        told.peak_bytes
                    }
                    Err(e) => match e.smallest_budget() {
                        Some(least) if memory.is_none_or(|memory| least <= memory) => {
                            let report = plan(Some(least))?;
                            needs.with(place, &report, on_host)
                        }
                        _ => return Err(e),
                    },
                }
            } else {
                let report = plan(memory)?;
                let told = Self::of(needs, place, &report, on_host, Some(budget));
                if told.peak_bytes <= budget && (spill || place == HostPlace::Memory) {
                    return Ok(told);
                }
                told.peak_bytes
            };
            if spill || place == HostPlace::Memory {
                smallest = smallest.min(needed);
            }
            with_files = with_files.min(needed);
        }
        Err(refused(budget, smallest, with_files))
    }
}

/// What a session holds on the host however small its device budget is: at least its input and output.
fn host_bytes(plan: &mut impl FnMut(Option<u64>) -> Result<Report, PlanError>, memory: Option<u64>) -> Result<u64, PlanError> {
    Ok(plan(memory)?.host_bytes)
}

fn refused(budget: u64, smallest: u64, with_files: u64) -> PlanError {
    let mut text = format!(
        "{} ({budget} bytes) of host memory are too few: the smallest that works is {}, in bytes {smallest}",
        format_bytes(budget),
        format_bytes(smallest)
    );
    if with_files < smallest {
        text += &format!("; with --host-spill it is {}, in bytes {with_files}", format_bytes(with_files));
    }
    PlanError::host(text, smallest)
}
