//! `organum plan`: what a run would need, without a device.

use std::path::Path;

use organum::export::ExportBytes;
use organum::graph::Graph;
use organum::host::read_text;
use organum::model::Mode;
use organum::{Card, DeviceCaps, Elem, Extent, HostNeeds, HostPlan, Model, Plan, PlanError, PlanOptions, Windows, format_bytes};
use serde_json::json;

use crate::args;
use crate::fail::Failure;
use crate::models;
use crate::output::{LARGEST_JSON, say, say_json};

/// A network to plan: with its weights, or the card of one without.
enum Network {
    Card(Card, Graph),
    Model(Model),
}

impl Network {
    fn card(&self) -> &Card {
        match self {
            Self::Card(card, _) => card,
            Self::Model(model) => model.card(),
        }
    }

    fn plan(&self, extent: Extent, caps: &DeviceCaps, options: &PlanOptions) -> Result<Plan, PlanError> {
        match self {
            Self::Card(_, graph) => Plan::of_graph(graph, extent, caps, options),
            Self::Model(model) => Plan::new(model, extent, caps, options),
        }
    }

    /// The plan of a session that runs windows, whose labels come back.
    fn windows(&self, windows: &Windows, caps: &DeviceCaps, options: &PlanOptions) -> Result<Plan, PlanError> {
        let (channels, classes) = (self.card().in_channels(), self.card().classes());
        match self {
            Self::Card(_, graph) => windows.plan_graph(graph, classes, (channels, true), caps, options),
            Self::Model(model) => windows.plan(model, channels, true, caps, options),
        }
    }
}

/// `organum plan`.
pub(crate) fn run(a: &args::Plan) -> Result<(), Failure> {
    let network = if a.model.extension().is_some_and(|e| e == "json") {
        let text = read_text(&a.model, LARGEST_JSON)
            .map_err(|e| Failure { code: 4, message: format!("cannot read {}: {e}", a.model.display()) })?;
        let (card, graph) = organum::model::architecture(&text)?;
        Network::Card(card, graph)
    } else {
        Network::Model(models::network(&a.model, &a.which, a.allow_non_finite)?)
    };
    let card = network.card();
    let caps = match a.caps.as_str() {
        "default" => DeviceCaps::default(),
        "desktop" => DeviceCaps::desktop(),
        "host" => DeviceCaps::host(),
        file => {
            let text = read_text(Path::new(file), LARGEST_JSON).map_err(|e| Failure::input(format!("cannot read {file}: {e}")))?;
            serde_json::from_str(&text).map_err(|e| Failure::input(format!("{file} is not a list of limits: {e}")))?
        }
    };
    let mut options = PlanOptions::default().with_precision(a.precision.into());
    if a.no_spill {
        options = options.without_spill();
    }
    if a.no_recompute {
        options = options.without_recompute();
    }
    if let Some(bytes) = a.memory {
        options = options.with_budget(bytes);
    }
    organum::plan::check_extent(a.extent, card)?;
    if a.table {
        return table(&network, a.extent, &caps, &options);
    }
    let plan = network.plan(a.extent, &caps, &options)?;
    if let Some(path) = &a.plot {
        crate::plot::occupancy(plan.occupancy(), path)?;
    }
    let host = host_plan(a, &network, &caps, &options)?;
    if a.json {
        let mut told = serde_json::to_value(plan.report()).map_err(|e| Failure::internal(e.to_string()))?;
        told["host_memory"] = json!(host);
        say_json(&told);
    } else {
        let bytes = format_bytes(host.peak_bytes);
        say(&format!("{plan}\nhost memory, peak   {bytes} ({} bytes) of a whole segmentation", host.peak_bytes));
        say(&format!("\n{}", plan.occupancy()));
    }
    Ok(())
}

/// The host's memory of a segmentation whose scan has the extent and the grid of the network's input;
/// in windows where the card says so.
fn host_plan(a: &args::Plan, network: &Network, caps: &DeviceCaps, options: &PlanOptions) -> Result<HostPlan, Failure> {
    let card = network.card();
    let (classes, scan) = (card.classes(), 4 * u64::from(card.scan_channels()) * a.extent.voxels());
    let bytes = [scan, scan, 3 * scan];
    let windows = (card.mode() == Mode::Window).then(|| Windows::new(card, a.extent)).transpose()?;
    let needs = match &windows {
        Some(windows) => windows.host_needs(classes, bytes, windows.export_bytes(classes)),
        None => HostNeeds::at_once(bytes, ExportBytes::of_labels(a.extent)),
    };
    let session = |memory: Option<u64>| {
        let mut options = options.clone();
        options.budget = memory;
        let plan = match &windows {
            Some(windows) => network.windows(windows, caps, &options)?,
            None => network.plan(a.extent, caps, &options)?,
        };
        Ok(plan.report().clone())
    };
    let on_host = a.caps == "host";
    Ok(match a.host.host_memory {
        Some(budget) => HostPlan::within(&needs, budget, a.host.host_spill, on_host, a.memory, session)?,
        None => HostPlan::unbounded(&needs, &session(a.memory)?, on_host),
    })
}

/// Budgets of the table in bytes.
const BUDGETS: [Option<u64>; 7] =
    [None, Some(16_000_000_000), Some(8_000_000_000), Some(4_000_000_000), Some(2_000_000_000), Some(1_000_000_000), Some(500_000_000)];

/// `organum plan --table`: Markdown, all figures planned.
fn table(network: &Network, extent: Extent, caps: &DeviceCaps, options: &PlanOptions) -> Result<(), Failure> {
    say("| budget | precision | device bytes, planned | to the host and back | work |");
    say("|---|---|---|---|---|");
    for precision in [Elem::F16, Elem::F32] {
        for budget in BUDGETS {
            let mut options = options.clone().with_precision(precision);
            options.budget = budget;
            let asked = budget.map_or_else(|| "none".to_owned(), |b| format!("{} GB", decimal(b)));
            match network.plan(extent, caps, &options) {
                Ok(plan) => {
                    let r = plan.report();
                    let once = (r.flops - r.recomputed_flops).max(1);
                    let (peak, spilled) = (decimal(r.peak_bytes), decimal(r.spilled_bytes));
                    let work = r.flops as f64 / once as f64;
                    say(&format!("| {asked} | {} | {peak} GB | {spilled} GB | {work:.2}x |", precision.name()));
                }
                Err(e) => match e.smallest_budget() {
                    Some(least) => {
                        say(&format!("| {asked} | {} | does not fit: the smallest is {} GB | | |", precision.name(), decimal(least)))
                    }
                    None => return Err(e.into()),
                },
            }
        }
    }
    Ok(())
}

/// Bytes in decimal gigabytes.
fn decimal(bytes: u64) -> String {
    let text = format!("{:.3}", bytes as f64 / 1e9);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
